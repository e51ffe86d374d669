//! Services without an address, by what would help them.
//!
//! A release wakes only those whom it can help: with ten thousand Services waiting for a full pool, one address that
//! comes free costs one attempt.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Bound,
};

use crate::model::{Family, PoolName, ServiceKey};

/// The order in which Services are served. The fields stand in the order of the rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    /// Who asks for an address comes before who takes any.
    pub rank: Rank,
    /// `metadata.creationTimestamp`: older first.
    pub created: i64,
    /// Then by name.
    pub service: ServiceKey,
}

/// What a Service is waiting to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// It asks for an address by number.
    Explicit,
    /// It takes any address.
    Any,
    /// It has one address and would like one of its second family.
    Second,
}

/// What would help a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wait {
    /// A free address of this family in this pool.
    Room(PoolName, Family),
    /// A free address of this family in any pool with `autoAssign`.
    AnyRoom(Family),
    /// Another use of this address, or none.
    Address(IpAddr),
    /// Another use of any address of this sharing group.
    Group(String),
}

/// Who waits for what. Whoever waits for nothing in here can only be helped by a change of pools, of its Namespace or
/// of itself.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_wait: BTreeMap<Wait, BTreeSet<Turn>>,
}

impl Waiting {
    pub fn add(&mut self, wait: &Wait, turn: &Turn) {
        match self.by_wait.get_mut(wait) {
            Some(turns) => _ = turns.insert(turn.clone()),
            None => _ = self.by_wait.insert(wait.clone(), BTreeSet::from([turn.clone()])),
        }
    }

    pub fn remove(&mut self, wait: &Wait, turn: &Turn) {
        if let Some(turns) = self.by_wait.get_mut(wait) {
            turns.remove(turn);
            if turns.is_empty() {
                self.by_wait.remove(wait);
            }
        }
    }

    /// Everyone who waits for this.
    pub fn all(&self, wait: &Wait) -> impl Iterator<Item = &Turn> {
        self.by_wait.get(wait).into_iter().flatten()
    }

    /// The next one who waits for this, after `after`.
    pub fn next(&self, wait: &Wait, after: Option<&Turn>) -> Option<&Turn> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_wait.get(wait)?.range((start, Bound::Unbounded)).next()
    }
}
