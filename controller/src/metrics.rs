//! What a controller counts.

use ferrogate_core::{
    configuration::{ConfigurationState, Judgement},
    controller::Controller,
    model::Family,
    write::Write,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family as Labelled, gauge::Gauge},
    registry::Registry,
};

/// The controller's metrics; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    used: Labelled<PoolLabels, Gauge>,
    capacity: Labelled<PoolLabels, Gauge>,
    pending: Labelled<ReasonLabel, Gauge>,
    leading: Gauge,
    loaded: Gauge,
    incomplete: Gauge,
    steps: Counter,
    writes: Labelled<KindLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
    family: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

impl Metrics {
    /// Makes the metrics known to a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("ferrogate_controller");
        registry.register(
            "pool_addresses_in_use",
            "Distinct addresses of a pool that Services have, by family",
            metrics.used.clone(),
        );
        registry.register(
            "pool_addresses",
            "Addresses that a pool can hand out in all, by family, at most 2^63 - 1",
            metrics.capacity.clone(),
        );
        registry.register(
            "pending_services",
            "LoadBalancer Services without an address, by the reason in their condition",
            metrics.pending.clone(),
        );
        registry.register(
            "leading",
            "1 while this process is the one that assigns and writes",
            metrics.leading.clone(),
        );
        registry.register(
            "configuration_loaded",
            "1 once the configuration has been read and worked in",
            metrics.loaded.clone(),
        );
        registry.register(
            "configuration_incomplete",
            "1 while part of the newest configuration is not in force; the ConfigurationState says what and why",
            metrics.incomplete.clone(),
        );
        registry.register("steps", "Snapshots, changes of leadership and deadlines worked in", metrics.steps.clone());
        registry.register("writes", "Changes asked for outside, by what they change", metrics.writes.clone());
        metrics
    }

    /// After a step: what the controller says now.
    pub(crate) fn stepped(&self, controller: &mut Controller, leads: bool) {
        self.steps.inc();
        // Pools and reasons that are gone must not keep their last value.
        if self.leading.set(i64::from(leads)) != i64::from(leads) {
            self.used.clear();
            self.capacity.clear();
        }
        for (pool, usage) in controller.take_usage_changes() {
            for family in [Family::V4, Family::V6] {
                let labels = PoolLabels { pool: pool.to_string(), family: family.to_string() };
                match usage.iter().find(|usage| usage.family == family) {
                    Some(usage) => {
                        self.used.get_or_create(&labels).set(i64::try_from(usage.used).unwrap_or(i64::MAX));
                        self.capacity.get_or_create(&labels).set(i64::try_from(usage.capacity).unwrap_or(i64::MAX));
                    }
                    None => {
                        self.used.remove(&labels);
                        self.capacity.remove(&labels);
                    }
                }
            }
        }
        self.pending.clear();
        for (reason, count) in controller.pending() {
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            self.pending.get_or_create(&ReasonLabel { reason }).set(count);
        }
    }

    /// After a step: what there is to say of the configuration.
    pub(crate) fn judged(&self, state: Option<&ConfigurationState>) {
        let Some(state) = state else { return };
        self.loaded.set(1);
        self.incomplete.set(i64::from(state.judgement != Judgement::Valid));
    }

    /// Before a write is sent.
    pub(crate) fn wrote(&self, write: &Write) {
        let kind = match write {
            Write::ServiceStatus { .. } => "service_status",
            Write::PoolStatus { .. } => "pool_status",
            Write::IngressStatus { .. } => "ingress_status",
            Write::EntryService { .. } => "entry_service",
            Write::EntrySlice { .. } => "entry_slice",
            Write::Condition { .. } => "condition",
            Write::Event(_) => "event",
            Write::L2Status { .. } => "l2_status",
            Write::BgpStatus { .. } => "bgp_status",
            Write::BgpSession { .. } => "bgp_session",
            Write::Configuration { .. } => "configuration_state",
            Write::Membership { .. } => "membership",
            Write::Lease { .. } => "lease",
        };
        self.writes.get_or_create(&KindLabel { kind }).inc();
    }
}
