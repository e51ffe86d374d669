//! What a node advertises for every Service, kept so that one that changes costs its own routes and no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::Advertised;
use crate::{
    model::{Prefix, ServiceKey},
    speaker::{
        announce::Silence,
        bgp::{Part, Route, Routes},
    },
};

/// What was decided about a Service.
type Outcome = Result<Advertised, Silence>;

/// What was decided about every Service, and the routes that come of it.
#[derive(Debug, Default)]
pub(in crate::speaker) struct Table {
    outcomes: BTreeMap<ServiceKey, Outcome>,
    /// How many Services want each part of a route.
    wishes: BTreeMap<Prefix, BTreeMap<Part, usize>>,
    routes: Routes,
    /// How many Services wait for the node to be able to carry them.
    waiting: usize,
}

impl Table {
    /// What was decided last about each Service.
    pub(in crate::speaker) fn outcomes(&self) -> impl Iterator<Item = (&ServiceKey, &Outcome)> {
        self.outcomes.iter()
    }

    /// What is advertised for a Service.
    pub(in crate::speaker) fn advertised(&self, service: &ServiceKey) -> Option<&Advertised> {
        self.outcomes.get(service)?.as_ref().ok()
    }

    pub(in crate::speaker) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Whether a Service is not advertised only because the node is not known to carry it, or not yet.
    pub(in crate::speaker) fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Takes in what was decided about a Service, or that there is none any more; returns what was before.
    pub(in crate::speaker) fn note(&mut self, service: &ServiceKey, outcome: Option<Outcome>) -> Option<Outcome> {
        let waits = |outcome: &Option<Outcome>| {
            let waits = matches!(outcome, Some(Err(Silence::ProxyNotReady | Silence::HealthCheckFails { .. })));
            usize::from(waits)
        };
        let before = self.outcomes.remove(service);
        self.waiting -= waits(&before);
        self.waiting += waits(&outcome);
        let (old, new) = (routes(before.as_ref()), routes(outcome.as_ref()));
        if old != new {
            for (prefix, part) in parts(new) {
                *self.wishes.entry(*prefix).or_default().entry(part.clone()).or_default() += 1;
            }
            for (prefix, part) in parts(old) {
                self.take_back(prefix, part);
            }
            let prefixes = [old, new].into_iter().flatten().flat_map(BTreeMap::keys);
            let touched: BTreeSet<&Prefix> = prefixes.collect();
            touched.into_iter().for_each(|prefix| self.settle(prefix));
        }
        if let Some(outcome) = outcome {
            self.outcomes.insert(service.clone(), outcome);
        }
        before
    }

    fn take_back(&mut self, prefix: &Prefix, part: &Part) {
        let Some(parts) = self.wishes.get_mut(prefix) else { return };
        let Some(count) = parts.get_mut(part) else { return };
        *count -= 1;
        if *count == 0 {
            parts.remove(part);
        }
        if parts.is_empty() {
            self.wishes.remove(prefix);
        }
    }

    /// Brings one route to what is wanted of it.
    fn settle(&mut self, prefix: &Prefix) {
        let Some(parts) = self.wishes.get(prefix) else {
            self.routes.remove(prefix);
            return;
        };
        let is_so = |route: &Arc<Route>| route.parts.iter().eq(parts.keys());
        if !self.routes.get(prefix).is_some_and(is_so) {
            self.routes.insert(*prefix, Arc::new(Route { parts: parts.keys().cloned().collect() }));
        }
    }
}

/// What a Service wants advertised.
fn routes(outcome: Option<&Outcome>) -> Option<&BTreeMap<Prefix, BTreeSet<Part>>> {
    Some(&outcome?.as_ref().ok()?.routes)
}

/// Each part of each route.
fn parts(routes: Option<&BTreeMap<Prefix, BTreeSet<Part>>>) -> impl Iterator<Item = (&Prefix, &Part)> {
    routes.into_iter().flatten().flat_map(|(prefix, parts)| parts.iter().map(move |part| (prefix, part)))
}
