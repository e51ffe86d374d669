//! Addresses on the host of this node, which takes what is sent to them for its own: from before an address is announced
//! until what was under way has arrived.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::speaker::Action;

/// What is on the host.
#[derive(Debug)]
pub(super) struct Host {
    /// How long an address stays that is needed no more.
    grace: Duration,
    /// With the time each is taken off, unless it is needed again.
    held: BTreeMap<IpAddr, Option<Instant>>,
    releases: BTreeSet<(Instant, IpAddr)>,
}

impl Host {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, held: BTreeMap::new(), releases: BTreeSet::new() }
    }

    pub(super) fn hold(&mut self, address: IpAddr, actions: &mut Vec<Action>) {
        match self.held.insert(address, None) {
            None => actions.push(Action::Hold { address }),
            Some(Some(due)) => drop(self.releases.remove(&(due, address))),
            Some(None) => {}
        }
    }

    /// Takes an address off, if it is there, once what is under way has arrived.
    pub(super) fn let_go(&mut self, now: Instant, address: IpAddr) {
        if let Some(release @ None) = self.held.get_mut(&address) {
            let due = now + self.grace;
            *release = Some(due);
            self.releases.insert((due, address));
        }
    }

    pub(super) fn release(&mut self, address: IpAddr, actions: &mut Vec<Action>) {
        if let Some(due) = self.held.remove(&address) {
            if let Some(due) = due {
                self.releases.remove(&(due, address));
            }
            actions.push(Action::Release { address });
        }
    }

    pub(super) fn release_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some(&(_, address)) = self.releases.first().filter(|(due, _)| *due <= now) {
            self.release(address, actions);
        }
    }

    pub(super) fn release_all(&mut self, actions: &mut Vec<Action>) {
        while let Some((&address, _)) = self.held.first_key_value() {
            self.release(address, actions);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.releases.first().map(|(due, _)| *due)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.held.keys().copied()
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.held.contains_key(&address)
    }

    /// Whether an address is there to stay.
    #[cfg(test)]
    pub(super) fn needs(&self, address: IpAddr) -> bool {
        self.held.get(&address).is_some_and(Option::is_none)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}
