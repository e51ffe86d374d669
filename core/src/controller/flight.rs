//! Writes in flight: what was asked for and does not show in a snapshot yet.
//!
//! This is the one place where the controller remembers what it did instead of looking at what is. It also keeps the
//! pace: what changes faster than it is worth writing down is held back for a moment, and only the newest wish is
//! carried out then. So ten thousand new Services write their pool's counters once a second, and somebody who keeps
//! changing a status of ours back is answered in bounded steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::Clock;
use crate::{
    model::{Family, ObjectKey, ObjectRef, ResourceVersion, ServiceKey},
    write::Write,
};

/// What a write is about; a newer wish for the same target supersedes the older one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// Status of a Service.
    Service(ServiceKey),
    /// Status of a pool.
    Pool(ObjectKey),
    /// Status of an Ingress.
    Ingress(ObjectKey),
    /// The Service of the shared Ingress entry.
    EntryService,
    /// One EndpointSlice of the shared Ingress entry.
    EntrySlice(Family),
    /// The condition `Accepted` of any other object.
    Accepted(ObjectRef),
}

impl Target {
    /// How many writes may be asked for within how long.
    fn pace(&self) -> (u32, Duration) {
        match self {
            // Every Service that comes or goes moves its pool's counters.
            Self::Pool(_) => (1, Duration::from_secs(1)),
            // Every proxy that comes or goes, and traffic follows it.
            Self::EntrySlice(_) => (5, Duration::from_secs(1)),
            // An address that moves takes two or three. More than this is a quarrel with another writer.
            Self::Service(_) | Self::Ingress(_) | Self::EntryService | Self::Accepted(_) => {
                (10, Duration::from_secs(10))
            }
        }
    }
}

/// All writes in flight.
#[derive(Debug, Default)]
pub(super) struct Flights {
    by_target: BTreeMap<Target, Flight>,
    due: BTreeSet<(Instant, Target)>,
    /// Targets asked for lately: how often, and until when that counts.
    lately: BTreeMap<Target, (u32, Instant)>,
    /// The same by time.
    lately_until: BTreeSet<(Instant, Target)>,
}

#[derive(Debug)]
struct Flight {
    write: Write,
    /// When it is asked for, again or for the first time.
    due: Instant,
    /// Whether anything was asked for since this target last showed what was wished.
    is_sent: bool,
    /// Whether this very write was.
    is_asked: bool,
}

impl Flights {
    /// Wishes for `write`, which `shown` says is already so. Returns whether it has to be asked for now; what is asked
    /// for and does not show is due again after `patience`.
    pub fn wish(&mut self, target: Target, write: Write, shown: bool, clock: Clock) -> Option<Write> {
        let Clock { now, patience } = clock;
        let before = self.by_target.get(&target);
        let is_same = before.is_some_and(|before| before.write == write);
        if is_same && !shown {
            return None;
        }
        let is_sent = before.is_some_and(|before| before.is_sent);
        let is_asked = is_same && before.is_some_and(|before| before.is_asked);
        self.forget(&target);
        if shown {
            // Something else may still be on its way, and would stand in the end: this has to come after it.
            return (is_sent && !is_asked).then_some(write);
        }
        let ready_at = self.ready_at(&target, now);
        if ready_at > now {
            self.put(target, Flight { write, due: ready_at, is_sent, is_asked: false });
            return None;
        }
        self.count(&target, now);
        self.put(target, Flight { write: write.clone(), due: now + patience, is_sent: true, is_asked: true });
        Some(write)
    }

    /// Nothing is wished for this target any more.
    pub fn forget(&mut self, target: &Target) {
        if let Some(flight) = self.by_target.remove(target) {
            self.due.remove(&(flight.due, target.clone()));
        }
    }

    /// Whether something was wished for that does not show yet.
    pub fn is_in_flight(&self, target: &Target) -> bool {
        self.by_target.contains_key(target)
    }

    /// The version of the Service that the write in flight was decided on; none while nothing was asked for yet.
    pub fn version(&self, target: &Target) -> Option<&ResourceVersion> {
        match self.by_target.get(target) {
            Some(Flight { write: Write::ServiceStatus { version, .. }, is_sent: true, .. }) => Some(version),
            _ => None,
        }
    }

    /// Whether this target has been asked for as often as it may be for now.
    pub fn is_slowed(&self, target: &Target) -> bool {
        self.lately.get(target).is_some_and(|(count, _)| *count >= target.pace().0)
    }

    /// When the next write is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Writes that are due: held back until now, or asked for long enough ago to be asked for again.
    pub fn due(&mut self, Clock { now, patience }: Clock) -> Vec<Write> {
        let mut writes = Vec::new();
        while let Some((due, _)) = self.due.first()
            && *due <= now
            && let Some((_, target)) = self.due.pop_first()
        {
            let Some(flight) = self.by_target.remove(&target) else { continue };
            writes.push(flight.write.clone());
            self.count(&target, now);
            self.put(target, Flight { due: now + patience, is_sent: true, is_asked: true, ..flight });
        }
        writes
    }

    fn put(&mut self, target: Target, flight: Flight) {
        self.due.insert((flight.due, target.clone()));
        self.by_target.insert(target, flight);
    }

    /// When this target may be asked for next.
    fn ready_at(&mut self, target: &Target, now: Instant) -> Instant {
        self.forget_lately(now);
        match self.lately.get(target) {
            Some((count, until)) if *count >= target.pace().0 => *until,
            _ => now,
        }
    }

    fn count(&mut self, target: &Target, now: Instant) {
        self.forget_lately(now);
        match self.lately.get_mut(target) {
            Some((count, _)) => *count += 1,
            None => {
                let until = now + target.pace().1;
                self.lately.insert(target.clone(), (1, until));
                self.lately_until.insert((until, target.clone()));
            }
        }
    }

    fn forget_lately(&mut self, now: Instant) {
        while let Some((until, _)) = self.lately_until.first()
            && *until <= now
            && let Some((_, target)) = self.lately_until.pop_first()
        {
            self.lately.remove(&target);
        }
    }
}
