//! Addresses left to another speaker of ours that announces them too and ranks first.
//!
//! Speakers that do not hear each other's words may still hear each other's frames. Whoever comes second leaves such an
//! address, and asks for it on the link from then on: while the other answers it is there, whatever gossip says, and once
//! it does not the address is free.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::model::{InterfaceName, NodeName};

/// How many questions may stay without an answer; together they take the detection time.
pub(super) const PATIENCE: u32 = 3;

/// Questions for one address never come closer than this for each address that is asked for, which bounds their rate.
const PACE: Duration = Duration::from_millis(1);

/// What was left to whom.
#[derive(Debug, Default)]
pub(super) struct Ceded(BTreeMap<IpAddr, Address>);

#[derive(Debug)]
struct Address {
    to: NodeName,
    interfaces: BTreeSet<InterfaceName>,
    heard_at: Instant,
    ask_at: Instant,
}

/// What is due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Ask for these.
    pub(super) questions: Vec<(IpAddr, BTreeSet<InterfaceName>)>,
    /// Nobody answers for these any more.
    pub(super) free: Vec<IpAddr>,
}

impl Ceded {
    pub(super) fn leave(
        &mut self,
        now: Instant,
        address: IpAddr,
        to: NodeName,
        interfaces: BTreeSet<InterfaceName>,
        interval: Duration,
    ) {
        let interval = self.interval(interval);
        self.0.insert(address, Address { to, interfaces, heard_at: now, ask_at: now + interval });
    }

    pub(super) fn take_back(&mut self, address: IpAddr) {
        self.0.remove(&address);
    }

    /// To whom an address was left.
    pub(super) fn to(&self, address: IpAddr) -> Option<&NodeName> {
        self.0.get(&address).map(|ceded| &ceded.to)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.keys().copied()
    }

    /// Somebody on the link says it has an address. Returns whether that address was left to somebody.
    pub(super) fn hear(&mut self, now: Instant, address: IpAddr, node: Option<&NodeName>) -> bool {
        let Some(ceded) = self.0.get_mut(&address) else { return false };
        if node == Some(&ceded.to) {
            ceded.heard_at = now;
        }
        true
    }

    pub(super) fn tick(&mut self, now: Instant, interval: Duration) -> Due {
        let interval = self.interval(interval);
        let mut due = Due::default();
        for (address, ceded) in self.0.iter_mut().filter(|(_, ceded)| ceded.ask_at <= now) {
            if ceded.heard_at + interval * PATIENCE < now {
                due.free.push(*address);
            } else {
                ceded.ask_at = now + interval;
                due.questions.push((*address, ceded.interfaces.clone()));
            }
        }
        for address in &due.free {
            self.0.remove(address);
        }
        due
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.values().map(|ceded| ceded.ask_at).min()
    }

    fn interval(&self, least: Duration) -> Duration {
        least.max(PACE * u32::try_from(self.0.len()).unwrap_or(u32::MAX))
    }
}
