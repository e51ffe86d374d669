//! What is counted of BGP sessions.

use std::net::{IpAddr, SocketAddr};

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
    /// The same in MetalLB's words, where somebody reads those.
    metallb: Option<Metallb>,
}

/// What MetalLB calls `metallb_bgp_…`.
#[derive(Clone, Debug, Default)]
struct Metallb {
    session_up: Family<MetallbLabels, Gauge>,
    announced_prefixes: Family<MetallbLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MetallbLabels {
    peer: String,
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

    /// Shows them under MetalLB's names too.
    pub(super) fn register_metallb(&mut self, registry: &mut Registry) {
        let names = Metallb::default();
        let theirs = registry.sub_registry_with_prefix("metallb_bgp");
        theirs.register("session_up", "1 while the BGP session is established", names.session_up.clone());
        theirs.register(
            "announced_prefixes_total",
            "Prefixes that the peer has from this node",
            names.announced_prefixes.clone(),
        );
        self.metallb = Some(names);
    }

    /// How a session stands now.
    pub(crate) fn note(&self, before: Option<&SessionStatus>, status: &SessionStatus) {
        let labels = labels(&status.peer, &status.remote);
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.up.get_or_create(&labels).set(i64::from(status.state == State::Established));
        self.sent.get_or_create(&labels).set(number(status.prefixes_sent as u64));
        self.received.get_or_create(&labels).set(number(status.prefixes_received));
        if let Some(names) = &self.metallb {
            let labels = metallb_labels(status);
            names.session_up.get_or_create(&labels).set(i64::from(status.state == State::Established));
            names.announced_prefixes.get_or_create(&labels).set(number(status.prefixes_sent as u64));
        }
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
        if let Some(names) = &self.metallb {
            names.session_up.remove(&metallb_labels(status));
            names.announced_prefixes.remove(&metallb_labels(status));
        }
        for reason in status.withheld.keys() {
            let PeerLabels { peer, address } = labels.clone();
            self.withheld.remove(&WithheldLabels { peer, address, reason: reason.reason() });
        }
    }
}

fn labels(peer: &PeerName, remote: &str) -> PeerLabels {
    PeerLabels { peer: peer.to_string(), address: remote.to_owned() }
}

/// MetalLB names a peer by its address and port.
fn metallb_labels(status: &SessionStatus) -> MetallbLabels {
    let peer = match (status.remote.parse::<IpAddr>(), status.port) {
        (Ok(address), Some(port)) => SocketAddr::new(address, port.get()).to_string(),
        _ => status.remote.clone(),
    };
    MetallbLabels { peer }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use ferrogate_core::speaker::bgp::Withheld;
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn session(state: State) -> SessionStatus {
        SessionStatus {
            peer: "tor-a".into(),
            remote: "192.0.2.254".to_owned(),
            port: std::num::NonZeroU16::new(179),
            dynamic: None,
            state,
            trouble: None,
            remote_asn: None,
            remote_identifier: None,
            local_address: None,
            remote_address: None,
            hold_time_seconds: None,
            families: BTreeSet::new(),
            prefixes_sent: 7,
            prefixes_received: 0,
            withheld: BTreeMap::from([(Withheld::NoNextHop, 2)]),
            flaps: 1,
            last_close: None,
            bfd: None,
        }
    }

    #[test]
    fn a_session_is_shown_under_both_names_until_it_is_gone() {
        let mut registry = Registry::default();
        let mut metrics = BgpMetrics::register(registry.sub_registry_with_prefix("ferrogate_speaker"));
        metrics.register_metallb(&mut registry);
        let shown = |registry: &Registry| {
            let mut text = String::new();
            encode(&mut text, registry).unwrap();
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<BTreeSet<_>>()
        };

        metrics.note(None, &session(State::Established));

        let lines = shown(&registry);
        for line in [
            "ferrogate_speaker_bgp_session_up{peer=\"tor-a\",address=\"192.0.2.254\"} 1",
            "ferrogate_speaker_bgp_session_flaps_total{peer=\"tor-a\",address=\"192.0.2.254\"} 1",
            "ferrogate_speaker_bgp_prefixes_withheld{peer=\"tor-a\",address=\"192.0.2.254\",reason=\"NoNextHop\"} 2",
            "metallb_bgp_session_up{peer=\"192.0.2.254:179\"} 1",
            "metallb_bgp_announced_prefixes_total{peer=\"192.0.2.254:179\"} 7",
        ] {
            assert!(lines.contains(line), "{line} is not among {lines:#?}");
        }
        metrics.forget(&session(State::Idle));
        assert_eq!(shown(&registry), BTreeSet::new());
    }
}
