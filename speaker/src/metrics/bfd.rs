//! What is counted of the BFD sessions with BGP peers, each by itself.

use std::collections::BTreeSet;

use ferrogate_core::{
    model::InterfaceName,
    speaker::bfd::{Change, sessions::Path},
};
use ferrogate_wire::bfd::State;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// The figures of every session with a peer; clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct BfdPeerMetrics {
    up: Family<PathLabels, Gauge>,
    ups: Family<PathLabels, Counter>,
    losses: Family<PathLabels, Counter>,
    sent: Family<PathLabels, Counter>,
    received: Family<PathLabels, Counter>,
    /// The same in MetalLB's words, where somebody reads those.
    metallb: Option<Metallb>,
}

/// What MetalLB calls `metallb_bfd_…`. Its counters do not end in `_total`, which is why they are gauges here.
#[derive(Clone, Debug, Default)]
struct Metallb {
    up: Family<MetallbLabels, Gauge>,
    ups: Family<MetallbLabels, Gauge>,
    downs: Family<MetallbLabels, Gauge>,
    output: Family<MetallbLabels, Gauge>,
    input: Family<MetallbLabels, Gauge>,
}

/// A session with a peer: by which way, and in which VRF the peer is.
pub(crate) type PeerPath = (Path, Option<InterfaceName>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct PathLabels {
    address: String,
    /// The interface of a neighbour, the VRF device over several hops, or nothing.
    interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct MetallbLabels {
    peer: String,
    vrf: String,
}

/// Where the packets of one session are counted, without waiting for anyone.
#[derive(Clone, Debug)]
pub(crate) struct PathCounters {
    sent: Counter,
    received: Counter,
    metallb: Option<(Gauge, Gauge)>,
}

impl PathCounters {
    pub(crate) fn sent(&self) {
        self.sent.inc();
        if let Some((output, _)) = &self.metallb {
            output.inc();
        }
    }

    pub(crate) fn received(&self) {
        self.received.inc();
        if let Some((_, input)) = &self.metallb {
            input.inc();
        }
    }
}

impl BfdPeerMetrics {
    /// Makes them known to a registry that has a prefix already.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("bfd_peer_up", "1 while the BFD session with a BGP peer is up", metrics.up.clone());
        registry.register("bfd_peer_ups", "Times the BFD session with a BGP peer has come up", metrics.ups.clone());
        registry.register(
            "bfd_peer_losses",
            "Times the BFD session with a BGP peer was up and is no more, for whatever reason",
            metrics.losses.clone(),
        );
        registry.register("bfd_peer_sent", "BFD packets sent to a BGP peer", metrics.sent.clone());
        registry.register("bfd_peer_received", "BFD packets received from a BGP peer", metrics.received.clone());
        metrics
    }

    /// Shows them under MetalLB's names too.
    pub(super) fn register_metallb(&mut self, registry: &mut Registry) {
        let names = Metallb::default();
        let theirs = registry.sub_registry_with_prefix("metallb_bfd");
        theirs.register("session_up", "1 while the BFD session is up", names.up.clone());
        theirs.register("session_up_events", "Times the BFD session has come up", names.ups.clone());
        theirs.register("session_down_events", "Times the BFD session was up and is no more", names.downs.clone());
        theirs.register("control_packet_output", "BFD packets sent", names.output.clone());
        theirs.register("control_packet_input", "BFD packets received", names.input.clone());
        self.metallb = Some(names);
    }

    /// Where the packets of a session are counted. Every figure of it is shown from now on.
    pub(crate) fn counters(&self, peer: &PeerPath) -> PathCounters {
        let (labels, theirs) = (labels(peer), metallb_labels(peer));
        drop(self.up.get_or_create(&labels));
        drop(self.ups.get_or_create(&labels));
        drop(self.losses.get_or_create(&labels));
        let metallb = self.metallb.as_ref().map(|names| {
            for gauge in [&names.up, &names.ups, &names.downs] {
                drop(gauge.get_or_create(&theirs));
            }
            (names.output.get_or_create_owned(&theirs), names.input.get_or_create_owned(&theirs))
        });
        PathCounters {
            sent: self.sent.get_or_create_owned(&labels),
            received: self.received.get_or_create_owned(&labels),
            metallb,
        }
    }

    /// A session has come up, or is up no more.
    pub(crate) fn changed(&self, peer: &PeerPath, change: &Change) {
        let (labels, theirs) = (labels(peer), metallb_labels(peer));
        let is_up = change.to == State::Up;
        self.is_up(peer, is_up);
        if let Some(names) = &self.metallb {
            let events = if is_up { &names.ups } else { &names.downs };
            events.get_or_create(&theirs).inc();
        }
        let times = if is_up { &self.ups } else { &self.losses };
        times.get_or_create(&labels).inc();
    }

    /// A session is up, and was before anybody counted, or is not.
    pub(crate) fn is_up(&self, peer: &PeerPath, is_up: bool) {
        self.up.get_or_create(&labels(peer)).set(i64::from(is_up));
        if let Some(names) = &self.metallb {
            names.up.get_or_create(&metallb_labels(peer)).set(i64::from(is_up));
        }
    }

    /// Sessions are no more. What is shown under the same labels for one of the `others` stays.
    pub(crate) fn forget<'a>(&self, gone: &[PeerPath], others: impl Iterator<Item = &'a PeerPath> + Clone) {
        let left: BTreeSet<PathLabels> = others.clone().map(labels).collect();
        for labels in gone.iter().map(labels).filter(|labels| !left.contains(labels)) {
            self.up.remove(&labels);
            for counters in [&self.ups, &self.losses, &self.sent, &self.received] {
                counters.remove(&labels);
            }
        }
        let Some(names) = &self.metallb else { return };
        let left: BTreeSet<MetallbLabels> = others.map(metallb_labels).collect();
        for labels in gone.iter().map(metallb_labels).filter(|labels| !left.contains(labels)) {
            for gauges in [&names.up, &names.ups, &names.downs, &names.output, &names.input] {
                gauges.remove(&labels);
            }
        }
    }
}

fn labels((path, _): &PeerPath) -> PathLabels {
    let interface = path.interface.as_ref().or(path.vrf.as_ref());
    let interface = interface.map(InterfaceName::to_string).unwrap_or_default();
    PathLabels { address: path.remote.to_string(), interface }
}

/// MetalLB names a peer of BFD by its address alone, and the VRF that is none `default`.
fn metallb_labels((path, vrf): &PeerPath) -> MetallbLabels {
    let vrf = vrf.as_ref().map_or_else(|| "default".to_owned(), InterfaceName::to_string);
    MetallbLabels { peer: path.remote.to_string(), vrf }
}

#[cfg(test)]
mod tests {
    use ferrogate_wire::bfd::Diagnostic;
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn m_149_the_bfd_session_of_a_peer_is_counted_under_both_names_until_it_is_gone() {
        let mut registry = Registry::default();
        let mut metrics = BfdPeerMetrics::register(registry.sub_registry_with_prefix("ferrogate_speaker"));
        metrics.register_metallb(&mut registry);
        let shown = |registry: &Registry| {
            let mut text = String::new();
            encode(&mut text, registry).unwrap();
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let (remote, local) = ("192.0.2.254".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let path = Path { remote, local, interface: None, vrf: Some("red".into()) };
        let peer = (path, Some("red".into()));

        let counters = metrics.counters(&peer);
        counters.sent();
        counters.sent();
        counters.received();
        let diagnostic = Diagnostic::ControlDetectionTimeExpired;
        let (up, down) = ((State::Init, State::Up), (State::Up, State::Down));
        for (from, to) in [up, down, up] {
            metrics.changed(&peer, &Change { from, to, diagnostic, remote_state: State::Up });
        }

        let ours = "{address=\"192.0.2.254\",interface=\"red\"}";
        let theirs = "{peer=\"192.0.2.254\",vrf=\"red\"}";
        let expected = [
            format!("ferrogate_speaker_bfd_peer_up{ours} 1"),
            format!("ferrogate_speaker_bfd_peer_ups_total{ours} 2"),
            format!("ferrogate_speaker_bfd_peer_losses_total{ours} 1"),
            format!("ferrogate_speaker_bfd_peer_sent_total{ours} 2"),
            format!("ferrogate_speaker_bfd_peer_received_total{ours} 1"),
            format!("metallb_bfd_session_up{theirs} 1"),
            format!("metallb_bfd_session_up_events{theirs} 2"),
            format!("metallb_bfd_session_down_events{theirs} 1"),
            format!("metallb_bfd_control_packet_output{theirs} 2"),
            format!("metallb_bfd_control_packet_input{theirs} 1"),
        ];
        assert_eq!(shown(&registry), expected.into());
        metrics.forget(&[peer], [].iter());
        assert_eq!(shown(&registry), BTreeSet::new());
    }

    #[test]
    fn m_149_two_peers_with_one_address_in_two_vrfs_are_told_apart_and_one_that_goes_takes_nothing_of_others_along() {
        let mut registry = Registry::default();
        let mut metrics = BfdPeerMetrics::register(registry.sub_registry_with_prefix("ferrogate_speaker"));
        metrics.register_metallb(&mut registry);
        let shown = |line: &str| {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text.lines().any(|found| found == line)
        };
        // Over one hop, where the path names the interface and no VRF.
        let by = |interface: &str, local: &str, vrf: Option<&str>| {
            let (remote, local) = ("192.0.2.254".parse().unwrap(), local.parse().unwrap());
            let path = Path { remote, local, interface: Some(interface.into()), vrf: None };
            (path, vrf.map(InterfaceName::from))
        };
        let red = by("eth1", "192.0.2.1", Some("red"));
        let [blue, other] = ["192.0.2.1", "192.0.2.2"].map(|local| by("eth2", local, Some("blue")));

        metrics.counters(&red).sent();
        for peer in [&blue, &other] {
            metrics.counters(peer).sent();
            metrics.is_up(peer, true);
        }

        let of_red = "metallb_bfd_control_packet_output{peer=\"192.0.2.254\",vrf=\"red\"} 1";
        let of_blue = "metallb_bfd_control_packet_output{peer=\"192.0.2.254\",vrf=\"blue\"} 2";
        let up = "ferrogate_speaker_bfd_peer_up{address=\"192.0.2.254\",interface=\"eth2\"} 1";
        assert!(shown(of_red) && shown(of_blue) && shown(up));
        metrics.forget(&[red.clone(), blue], [other.clone()].iter());
        assert!(!shown(of_red) && shown(of_blue) && shown(up));
        metrics.forget(&[other], [].iter());
        assert!(!shown(of_blue) && !shown(up));
    }
}
