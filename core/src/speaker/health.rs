//! Whether the kube-proxy of this node agrees to carry a Service with `externalTrafficPolicy: Local`.
//!
//! kube-proxy answers at the Service's `healthCheckNodePort`: 200 once it passes traffic on to an endpoint of the
//! node, 503 while there is none. An address announced before that would draw traffic into the void. Every such port
//! with an endpoint here is asked all the time, so that the answer is known before it matters.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    time::{Duration, Instant},
};

use ferrogate_wire::gossip::{MAX_REFUSED, Word};

use crate::{
    model::{NodeName, ServiceKey, node::Node, service::Service},
    speaker::{Action, Answer},
};

use super::announce::health_check;

/// How many ports are asked at most. Services beyond count as carried.
const MAX_PORTS: usize = 1024;

/// How long kube-proxy may be silent before it is taken for gone: it carries on what it has set up while it restarts,
/// and restarts are short.
pub const SILENCE_PATIENCE: Duration = Duration::from_secs(5);

/// Health check ports that a node's kube-proxy does not agree to, as its speaker tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusals {
    /// These.
    Some(BTreeSet<NonZeroU16>),
    /// More than can be told: all count as refused.
    All,
}

impl Default for Refusals {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

impl Refusals {
    /// What another speaker says of its node.
    pub(super) fn of(word: &Word) -> Self {
        match word.refuses_all {
            true => Self::All,
            false => Self::Some(word.refused.iter().copied().collect()),
        }
    }

    /// Whether this port is among them.
    pub fn contains(&self, port: NonZeroU16) -> bool {
        match self {
            Self::All => true,
            Self::Some(ports) => ports.contains(&port),
        }
    }

    /// The ports by which two differ; `None` where they may differ in any.
    pub(super) fn difference(&self, other: &Self) -> Option<BTreeSet<NonZeroU16>> {
        match (self, other) {
            (Self::All, Self::All) => Some(BTreeSet::new()),
            (Self::Some(one), Self::Some(other)) => Some(one.symmetric_difference(other).copied().collect()),
            _ => None,
        }
    }
}

/// The health checks of this node.
#[derive(Debug)]
pub(super) struct HealthChecks {
    node: NodeName,
    is_on: bool,
    port_of: BTreeMap<ServiceKey, NonZeroU16>,
    checks: BTreeMap<NonZeroU16, Check>,
    /// Ports that had agreed, and since when nobody answers there.
    silent: BTreeMap<NonZeroU16, Instant>,
    /// Where the ports are asked.
    at: Vec<IpAddr>,
    /// Something is different since [`HealthChecks::news`] was last asked.
    is_news: bool,
}

/// What follows from the health checks now.
#[derive(Debug)]
pub(super) struct News {
    /// The ports that kube-proxy does not agree to, or not yet.
    pub(super) refusals: Refusals,
    /// What has to be asked from now on.
    pub(super) asks: Action,
}

#[derive(Debug, Default)]
struct Check {
    services: BTreeSet<ServiceKey>,
    agrees: bool,
}

impl HealthChecks {
    pub(super) fn new(node: NodeName, is_on: bool) -> Self {
        let (port_of, checks, silent) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { node, is_on, port_of, checks, silent, at: Vec::new(), is_news: false }
    }

    /// Takes in a Service as it is now, or that it is gone.
    pub(super) fn note(&mut self, key: &ServiceKey, service: Option<&Service>) {
        if !self.is_on {
            return;
        }
        let has_endpoint = |service: &&Service| {
            let here = |endpoint: &crate::model::service::Endpoint| endpoint.node.as_ref() == Some(&self.node);
            service.endpoints.iter().any(|endpoint| endpoint.servable() && here(endpoint))
        };
        let now = service.filter(has_endpoint).and_then(health_check);
        let before = self.port_of.get(key).copied();
        if before == now {
            return;
        }
        self.is_news = true;
        if let Some(port) = before
            && let Some(check) = self.checks.get_mut(&port)
        {
            check.services.remove(key);
            if check.services.is_empty() {
                self.checks.remove(&port);
                self.silent.remove(&port);
            }
        }
        self.port_of.remove(key);
        if let Some(port) = now
            && (self.checks.contains_key(&port) || self.checks.len() < MAX_PORTS)
        {
            self.checks.entry(port).or_default().services.insert(key.clone());
            self.port_of.insert(key.clone(), port);
        }
    }

    /// Takes in where kube-proxy answers: on the node's own addresses, and on the loopback unless told otherwise.
    pub(super) fn note_node(&mut self, node: Option<&Node>) {
        let mut at = node.map(|node| node.internal_addresses.clone()).unwrap_or_default();
        at.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
        if self.at != at {
            self.at = at;
            self.is_news |= !self.checks.is_empty();
        }
    }

    /// Takes in what was heard at a port.
    pub(super) fn hear(&mut self, now: Instant, port: NonZeroU16, answer: Answer) {
        let Some(check) = self.checks.get_mut(&port) else { return };
        let agrees = match answer {
            Answer::Agrees => true,
            Answer::Refuses => false,
            Answer::Nothing => {
                if check.agrees {
                    self.silent.entry(port).or_insert(now);
                }
                return;
            }
        };
        self.silent.remove(&port);
        self.is_news |= std::mem::replace(&mut check.agrees, agrees) != agrees;
    }

    /// Gives up those that have been silent for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let checks = &mut self.checks;
        let is_news = &mut self.is_news;
        self.silent.retain(|port, since| {
            let waits = *since + SILENCE_PATIENCE > now;
            if !waits && let Some(check) = checks.get_mut(port) {
                check.agrees = false;
                *is_news = true;
            }
            waits
        });
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.silent.values().min().map(|since| *since + SILENCE_PATIENCE)
    }

    /// What follows from the checks, if that may be something else than before.
    pub(super) fn news(&mut self) -> Option<News> {
        if !std::mem::take(&mut self.is_news) {
            return None;
        }
        let refused = self.checks.iter().filter(|(_, check)| !check.agrees).map(|(port, _)| *port);
        let refused: BTreeSet<NonZeroU16> = refused.take(MAX_REFUSED + 1).collect();
        let refusals = if refused.len() > MAX_REFUSED { Refusals::All } else { Refusals::Some(refused) };
        let ports = self.checks.keys().copied().collect();
        Some(News { refusals, asks: Action::CheckHealth { ports, at: self.at.clone() } })
    }

    /// The Services that hang on a port.
    pub(super) fn services(&self, port: NonZeroU16) -> impl Iterator<Item = &ServiceKey> {
        self.checks.get(&port).into_iter().flat_map(|check| &check.services)
    }
}
