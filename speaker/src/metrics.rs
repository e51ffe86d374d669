//! What a speaker counts.

use std::collections::BTreeMap;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family, gauge::Gauge},
    registry::Registry,
};

/// The speaker's metrics; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) owned: Gauge,
    pub(crate) members: Gauge,
    pub(crate) takeovers: Counter,
    pub(crate) conflicts: Counter,
    answers: family::Family<FamilyLabel, Counter>,
    announcements: family::Family<FamilyLabel, Counter>,
    not_sent: family::Family<FamilyLabel, Counter>,
    refused: family::Family<RefusalLabel, Counter>,
    silent: family::Family<SilenceLabel, Gauge>,
    heartbeats_sent: Counter,
    heartbeats_received: Counter,
    heartbeats_refused: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyLabel {
    family: Family,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    family: Family,
    reason: Refusal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SilenceLabel {
    reason: &'static str,
}

/// Which protocol a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Family {
    /// ARP.
    Ipv4,
    /// Neighbour discovery.
    Ipv6,
}

/// Why a received frame was not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Refusal {
    /// It is not well-formed.
    Malformed,
    /// Too many at once.
    Busy,
}

impl Metrics {
    /// Makes the metrics known to a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            owned: Gauge::default(),
            members: Gauge::default(),
            takeovers: Counter::default(),
            conflicts: Counter::default(),
            answers: family::Family::default(),
            announcements: family::Family::default(),
            not_sent: family::Family::default(),
            refused: family::Family::default(),
            silent: family::Family::default(),
            heartbeats_sent: Counter::default(),
            heartbeats_received: Counter::default(),
            heartbeats_refused: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("ferrogate_speaker");
        registry.register(
            "owned_addresses",
            "External addresses that this node owns and answers for",
            metrics.owned.clone(),
        );
        registry.register("members", "Other nodes whose speaker is heard", metrics.members.clone());
        registry.register("takeovers", "Times this node became the owner of an address", metrics.takeovers.clone());
        registry.register(
            "conflicts",
            "Times a stranger claimed an address that this node owns",
            metrics.conflicts.clone(),
        );
        registry.register("answers", "ARP and neighbour questions answered", metrics.answers.clone());
        registry.register(
            "announcements",
            "Gratuitous ARP and unsolicited neighbour advertisements sent",
            metrics.announcements.clone(),
        );
        registry.register("unsent_frames", "Frames the kernel did not take", metrics.not_sent.clone());
        registry.register("refused_frames", "Received frames that were not looked at", metrics.refused.clone());
        registry.register(
            "silent_services",
            "LoadBalancer Services that this node does not announce, by reason",
            metrics.silent.clone(),
        );
        registry.register("heartbeats_sent", "Heartbeats sent to other speakers", metrics.heartbeats_sent.clone());
        registry.register(
            "heartbeats_received",
            "Well-formed heartbeats received, from whomever",
            metrics.heartbeats_received.clone(),
        );
        registry.register(
            "heartbeats_refused",
            "Datagrams at the heartbeat port that are no heartbeats",
            metrics.heartbeats_refused.clone(),
        );
        metrics
    }

    pub(crate) fn sent(&self, family: Family, to_all: bool) {
        let counters = if to_all { &self.announcements } else { &self.answers };
        counters.get_or_create(&FamilyLabel { family }).inc();
    }

    pub(crate) fn not_sent(&self, family: Family) {
        self.not_sent.get_or_create(&FamilyLabel { family }).inc();
    }

    pub(crate) fn refused(&self, family: Family, reason: Refusal) {
        self.refused.get_or_create(&RefusalLabel { family, reason }).inc();
    }

    /// Replaces all figures by these.
    pub(crate) fn silences(&self, by_reason: BTreeMap<&'static str, i64>) {
        self.silent.clear();
        for (reason, count) in by_reason {
            self.silent.get_or_create(&SilenceLabel { reason }).set(count);
        }
    }

    pub(crate) fn heartbeat_sent(&self) {
        self.heartbeats_sent.inc();
    }

    pub(crate) fn heartbeat_received(&self) {
        self.heartbeats_received.inc();
    }

    pub(crate) fn heartbeat_refused(&self) {
        self.heartbeats_refused.inc();
    }
}
