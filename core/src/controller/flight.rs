//! Writes in flight: what was asked for and does not show in a snapshot yet.
//!
//! This is the one place where the controller remembers what it did instead of looking at what is.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{
    model::{ObjectKey, ObjectRef, ResourceVersion, ServiceKey},
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
    /// The condition `Accepted` of any other object.
    Accepted(ObjectRef),
}

/// All writes in flight.
#[derive(Debug, Default)]
pub(super) struct Flights {
    by_target: BTreeMap<Target, (Write, Instant)>,
    due: BTreeSet<(Instant, Target)>,
}

impl Flights {
    /// Wishes for `write`, which `shown` says is already so. Returns whether it has to be asked for now.
    pub fn wish(&mut self, target: Target, write: Write, shown: bool, repeat_at: Instant) -> Option<Write> {
        let asked = self.by_target.get(&target).map(|(asked, _)| asked);
        let is_asked = asked == Some(&write);
        if shown {
            // Something else may still be on its way, and would stand in the end: this has to come after it.
            let supersedes = asked.is_some() && !is_asked;
            self.forget(&target);
            return supersedes.then_some(write);
        }
        if is_asked {
            return None;
        }
        self.forget(&target);
        self.due.insert((repeat_at, target.clone()));
        self.by_target.insert(target, (write.clone(), repeat_at));
        Some(write)
    }

    /// Nothing is wished for this target any more.
    pub fn forget(&mut self, target: &Target) {
        if let Some((_, repeat_at)) = self.by_target.remove(target) {
            self.due.remove(&(repeat_at, target.clone()));
        }
    }

    /// Whether something was asked for that does not show yet.
    pub fn is_in_flight(&self, target: &Target) -> bool {
        self.by_target.contains_key(target)
    }

    /// The version of the Service that the write in flight was decided on.
    pub fn version(&self, target: &Target) -> Option<&ResourceVersion> {
        match self.by_target.get(target) {
            Some((Write::ServiceStatus { version, .. }, _)) => Some(version),
            _ => None,
        }
    }

    /// When the oldest write has waited long enough.
    pub fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(repeat_at, _)| *repeat_at)
    }

    /// Writes that have waited long enough and are asked for again.
    pub fn repeat(&mut self, now: Instant, patience: Duration) -> Vec<Write> {
        let mut again = Vec::new();
        while let Some((repeat_at, _)) = self.due.first()
            && *repeat_at <= now
            && let Some((_, target)) = self.due.pop_first()
        {
            if let Some((write, repeat_at)) = self.by_target.get_mut(&target) {
                *repeat_at = now + patience;
                again.push(write.clone());
                self.due.insert((*repeat_at, target));
            }
        }
        again
    }
}
