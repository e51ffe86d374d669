//! Writes on their way out. The loop never waits for them: a full disk or a slow API server must not cost a word to the
//! others.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
};

use ferrogate_core::{
    model::{PeerName, ServiceKey},
    write::{Event, Write},
};
use tokio::sync::mpsc::{self, error::TrySendError};

/// Events (the Kubernetes kind) that wait while writes are not taken; older ones give way.
const WAITING_EVENTS: usize = 1024;

/// Where writes go, and those that wait because it takes no more.
pub(crate) struct Outbox {
    writes: mpsc::Sender<Write>,
    waiting: Line,
}

impl Outbox {
    pub(crate) fn new(writes: mpsc::Sender<Write>) -> Self {
        Self { writes, waiting: Line::default() }
    }

    pub(crate) fn push(&mut self, write: Write) {
        self.waiting.push(write);
        while !self.waiting.is_empty() {
            match self.writes.try_reserve() {
                Ok(permit) => self.waiting.pop().map_or((), |write| permit.send(write)),
                Err(TrySendError::Full(())) => return,
                // Nobody writes any more: the process is ending.
                Err(TrySendError::Closed(())) => self.waiting = Line::default(),
            }
        }
    }

    /// Hands over one waiting write as soon as there is room.
    pub(crate) async fn moves(&mut self) {
        if self.waiting.is_empty() {
            pending::<()>().await;
        }
        match self.writes.reserve().await {
            Ok(permit) => self.waiting.pop().map_or((), |write| permit.send(write)),
            Err(_) => self.waiting = Line::default(),
        }
    }
}

/// Writes in the order they came, but for those that a newer one about the same thing has made pointless: it stays as small
/// as the number of things, and Events are capped.
#[derive(Default)]
struct Line {
    writes: BTreeMap<u64, Write>,
    /// Where what is about each thing stands.
    places: BTreeMap<Thing, u64>,
    /// Which places are those of Events.
    events: BTreeSet<u64>,
    next: u64,
}

/// What a write is about. Everything a speaker writes is about its own node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    L2Status(ServiceKey),
    BgpStatus(ServiceKey),
    BgpSession(PeerName),
    Membership,
    Lease,
    Configuration,
    /// Equal ones are one.
    Event(Event),
}

impl Thing {
    /// `None`: every such write counts.
    fn of(write: &Write) -> Option<Self> {
        match write {
            Write::L2Status { service, .. } => Some(Self::L2Status(service.clone())),
            Write::BgpStatus { service, .. } => Some(Self::BgpStatus(service.clone())),
            Write::BgpSession { peer, .. } => Some(Self::BgpSession(peer.clone())),
            Write::Membership { .. } => Some(Self::Membership),
            Write::Lease { .. } => Some(Self::Lease),
            Write::Configuration { .. } => Some(Self::Configuration),
            Write::Event(event) => Some(Self::Event(event.clone())),
            // Only controllers ask for these.
            Write::ServiceStatus { .. }
            | Write::PoolStatus { .. }
            | Write::IngressStatus { .. }
            | Write::EntryService { .. }
            | Write::EntrySlice { .. }
            | Write::Condition { .. } => None,
        }
    }
}

impl Line {
    fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    fn push(&mut self, write: Write) {
        let (place, thing) = (self.next, Thing::of(&write));
        self.next += 1;
        if let Some(thing) = &thing
            && let Some(older) = self.places.get(thing).copied()
        {
            self.remove(older);
        }
        if matches!(write, Write::Event(_)) {
            if self.events.len() >= WAITING_EVENTS
                && let Some(oldest) = self.events.first().copied()
            {
                self.remove(oldest);
            }
            self.events.insert(place);
        }
        self.places.extend(thing.map(|thing| (thing, place)));
        self.writes.insert(place, write);
    }

    fn pop(&mut self) -> Option<Write> {
        let (first, _) = self.writes.first_key_value()?;
        self.remove(*first)
    }

    fn remove(&mut self, place: u64) -> Option<Write> {
        let write = self.writes.remove(&place)?;
        self.events.remove(&place);
        if let Some(thing) = Thing::of(&write) {
            self.places.remove(&thing);
        }
        Some(write)
    }
}

#[cfg(test)]
mod tests {
    use ferrogate_core::{model::ObjectRef, write::Severity};

    use super::*;

    fn membership(unreachable: &[&str]) -> Write {
        let unreachable = unreachable.iter().map(|&node| node.into()).collect();
        Write::Membership { node: "node-a".into(), unreachable }
    }

    fn silent(service: &str) -> Write {
        Write::L2Status { service: ServiceKey::new("default", service), node: "node-a".into(), status: None }
    }

    fn event(message: String) -> Write {
        let object = ObjectRef::service(&ServiceKey::new("default", "web"));
        Write::Event(Event { object, severity: Severity::Normal, reason: "nodeAssigned".to_owned(), message })
    }

    #[tokio::test]
    async fn writes_nobody_takes_wait_in_order_and_only_the_newest_about_each_thing() {
        let (writes, mut taken) = mpsc::channel(1);
        let mut outbox = Outbox::new(writes);

        for write in [silent("first"), membership(&["node-b"]), silent("second"), membership(&[]), silent("second")] {
            outbox.push(write);
        }

        assert_eq!(taken.recv().await, Some(silent("first")));
        for expected in [membership(&[]), silent("second")] {
            outbox.moves().await;
            assert_eq!(taken.recv().await, Some(expected));
        }
        assert!(outbox.waiting.is_empty());
    }

    #[tokio::test]
    async fn when_nobody_writes_any_more_nothing_waits() {
        let (writes, taken) = mpsc::channel(1);
        drop(taken);
        let mut outbox = Outbox::new(writes);

        outbox.push(silent("first"));

        assert!(outbox.waiting.is_empty());
    }

    #[test]
    fn of_too_many_events_the_oldest_give_way_and_nothing_else_does() {
        let mut line = Line::default();
        line.push(silent("first"));

        for number in 0..WAITING_EVENTS + 2 {
            line.push(event(number.to_string()));
        }

        assert_eq!(line.pop(), Some(silent("first")));
        assert_eq!(line.pop(), Some(event("2".to_owned())));
        assert_eq!(
            (line.writes.len(), line.events.len(), line.places.len()),
            (WAITING_EVENTS - 1, WAITING_EVENTS - 1, WAITING_EVENTS - 1)
        );
    }
}
