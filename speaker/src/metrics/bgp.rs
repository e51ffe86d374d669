//! What is counted of BGP sessions.

use ferrogate_core::{
    model::PeerName,
    speaker::bgp::{SessionStatus, State},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// The figures of every session; clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct BgpMetrics {
    up: Family<PeerLabels, Gauge>,
    flaps: Family<PeerLabels, Counter>,
    sent: Family<PeerLabels, Gauge>,
    received: Family<PeerLabels, Gauge>,
    withheld: Family<WithheldLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    peer: String,
    address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WithheldLabels {
    peer: String,
    address: String,
    reason: &'static str,
}

impl BgpMetrics {
    /// Makes them known to a registry that has a prefix already.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "bgp_session_up",
            "1 while the BGP session is established, 0 while it is not",
            metrics.up.clone(),
        );
        registry.register("bgp_session_flaps", "Times an established BGP session has ended", metrics.flaps.clone());
        registry.register("bgp_prefixes_sent", "Prefixes that the peer has from this node", metrics.sent.clone());
        registry.register(
            "bgp_prefixes_received",
            "Prefixes that the peer has announced to this node, which uses none of them",
            metrics.received.clone(),
        );
        registry.register(
            "bgp_prefixes_withheld",
            "Prefixes that the peer should have and does not get, by reason",
            metrics.withheld.clone(),
        );
        metrics
    }

    /// How a session stands now.
    pub(crate) fn note(&self, before: Option<&SessionStatus>, status: &SessionStatus) {
        let labels = labels(&status.peer, &status.remote);
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.up.get_or_create(&labels).set(i64::from(status.state == State::Established));
        self.sent.get_or_create(&labels).set(number(status.prefixes_sent as u64));
        self.received.get_or_create(&labels).set(number(status.prefixes_received));
        let flaps = before.map_or(0, |before| before.flaps);
        self.flaps.get_or_create(&labels).inc_by(status.flaps.saturating_sub(flaps).into());
        let with = |reason| {
            let PeerLabels { peer, address } = labels.clone();
            WithheldLabels { peer, address, reason }
        };
        for reason in before.into_iter().flat_map(|before| before.withheld.keys()) {
            if !status.withheld.contains_key(reason) {
                self.withheld.remove(&with(reason.reason()));
            }
        }
        for (reason, count) in &status.withheld {
            self.withheld.get_or_create(&with(reason.reason())).set(number(*count as u64));
        }
    }

    /// A session is no more.
    pub(crate) fn forget(&self, status: &SessionStatus) {
        let labels = labels(&status.peer, &status.remote);
        for gauges in [&self.up, &self.sent, &self.received] {
            gauges.remove(&labels);
        }
        self.flaps.remove(&labels);
        for reason in status.withheld.keys() {
            let PeerLabels { peer, address } = labels.clone();
            self.withheld.remove(&WithheldLabels { peer, address, reason: reason.reason() });
        }
    }
}

fn labels(peer: &PeerName, remote: &str) -> PeerLabels {
    PeerLabels { peer: peer.to_string(), address: remote.to_owned() }
}
