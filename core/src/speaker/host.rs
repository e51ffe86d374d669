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
    held: BTreeMap<IpAddr, Need>,
    /// Addresses stay for the sake of connections that began here.
    keeps: bool,
    releases: BTreeSet<(Instant, IpAddr)>,
}

/// What keeps an address on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// This node announces it, or draws traffic for it.
    Now,
    /// Connections that began here may go on.
    Connections,
    /// What is under way, until then.
    Until(Instant),
}

impl Host {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, held: BTreeMap::new(), keeps: false, releases: BTreeSet::new() }
    }

    /// Whether addresses that are needed no more stay, as connections that began here find their way back.
    pub(super) fn keep(&mut self, now: Instant, keeps: bool) {
        if std::mem::replace(&mut self.keeps, keeps) == keeps {
            return;
        }
        let due = now + self.grace;
        for (address, need) in &mut self.held {
            match need {
                Need::Connections if !keeps => {
                    *need = Need::Until(due);
                    self.releases.insert((due, *address));
                }
                Need::Until(due) if keeps => {
                    self.releases.remove(&(*due, *address));
                    *need = Need::Connections;
                }
                _ => {}
            }
        }
    }

    pub(super) fn hold(&mut self, address: IpAddr, actions: &mut Vec<Action>) {
        match self.held.insert(address, Need::Now) {
            None => actions.push(Action::Hold { address }),
            Some(Need::Until(due)) => drop(self.releases.remove(&(due, address))),
            Some(Need::Now | Need::Connections) => {}
        }
    }

    /// Takes an address off, if it is there, once what is under way has arrived, or connections are not kept any more.
    pub(super) fn let_go(&mut self, now: Instant, address: IpAddr) {
        let Some(need) = self.held.get_mut(&address).filter(|need| **need == Need::Now) else { return };
        if self.keeps {
            *need = Need::Connections;
        } else {
            let due = now + self.grace;
            *need = Need::Until(due);
            self.releases.insert((due, address));
        }
    }

    pub(super) fn release(&mut self, address: IpAddr, actions: &mut Vec<Action>) {
        if let Some(need) = self.held.remove(&address) {
            if let Need::Until(due) = need {
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
        self.held.get(&address) == Some(&Need::Now)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}
