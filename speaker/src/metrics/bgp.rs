//! What is counted of BGP sessions.

use std::net::{IpAddr, SocketAddr};

use ferrogate_core::{
    model::{InterfaceName, PeerName},
    speaker::bgp::{Direction, Messages, SessionStatus, State},
};
use ferrogate_wire::bgp::frame::MessageType;
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
    withheld: Family<ReasonLabels, Gauge>,
    trouble: Family<ReasonLabels, Gauge>,
    messages: Family<MessageLabels, Counter>,
    /// The same in MetalLB's words, where somebody reads those.
    metallb: Option<Metallb>,
}

/// What MetalLB calls `metallb_bgp_…`. Most of its counters do not end in `_total`, which is why they are gauges here.
#[derive(Clone, Debug, Default)]
struct Metallb {
    session_up: Family<MetallbLabels, Gauge>,
    announced_prefixes: Family<MetallbLabels, Gauge>,
    received_prefixes: Family<MetallbLabels, Gauge>,
    /// In the order of [`METALLB_MESSAGES`].
    messages: [Family<MetallbLabels, Gauge>; METALLB_MESSAGES.len()],
}

/// What MetalLB counts of messages: under which name, which way, and of which type, or all.
const METALLB_MESSAGES: [(&str, Direction, Option<MessageType>); 10] = [
    ("updates_total", Direction::Sent, Some(MessageType::Update)),
    ("updates_total_received", Direction::Received, Some(MessageType::Update)),
    ("opens_sent", Direction::Sent, Some(MessageType::Open)),
    ("opens_received", Direction::Received, Some(MessageType::Open)),
    ("notifications_sent", Direction::Sent, Some(MessageType::Notification)),
    ("keepalives_sent", Direction::Sent, Some(MessageType::Keepalive)),
    ("keepalives_received", Direction::Received, Some(MessageType::Keepalive)),
    ("route_refresh_sent", Direction::Sent, Some(MessageType::RouteRefresh)),
    ("total_sent", Direction::Sent, None),
    ("total_received", Direction::Received, None),
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MetallbLabels {
    peer: String,
    vrf: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    peer: String,
    address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    peer: String,
    address: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MessageLabels {
    peer: String,
    address: String,
    direction: &'static str,
    r#type: &'static str,
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
        registry.register(
            "bgp_session_trouble",
            "1 while it is known what keeps a BGP session from coming up, by that reason",
            metrics.trouble.clone(),
        );
        registry.register(
            "bgp_messages",
            "BGP messages sent to a peer and received from it, by direction and type",
            metrics.messages.clone(),
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
        theirs.register(
            "received_prefixes_total",
            "Prefixes that the peer has announced to this node",
            names.received_prefixes.clone(),
        );
        for ((name, direction, kind), family) in METALLB_MESSAGES.iter().zip(&names.messages) {
            let what = kind.map_or("Messages of every type", name_of);
            theirs.register(*name, format!("{what} {}", direction.name()), family.clone());
        }
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
            names.received_prefixes.get_or_create(&labels).set(number(status.prefixes_received));
        }
        let flaps = before.map_or(0, |before| before.flaps);
        self.flaps.get_or_create(&labels).inc_by(status.flaps.saturating_sub(flaps).into());
        let with = |reason| {
            let PeerLabels { peer, address } = labels.clone();
            ReasonLabels { peer, address, reason }
        };
        let trouble = |status: &SessionStatus| status.trouble.as_ref().map(|trouble| trouble.reason());
        if let Some(reason) = before.and_then(trouble).filter(|before| trouble(status) != Some(before)) {
            self.trouble.remove(&with(reason));
        }
        if let Some(reason) = trouble(status) {
            self.trouble.get_or_create(&with(reason)).set(1);
        }
        for reason in before.into_iter().flat_map(|before| before.withheld.keys()) {
            if !status.withheld.contains_key(reason) {
                self.withheld.remove(&with(reason.reason()));
            }
        }
        for (reason, count) in &status.withheld {
            self.withheld.get_or_create(&with(reason.reason())).set(number(*count as u64));
        }
    }

    /// How many messages there were until now, and until then.
    pub(crate) fn count(&self, status: &SessionStatus, before: Option<&Messages>, messages: &Messages) {
        for ((direction, kind), count) in messages {
            let before = before.and_then(|before| before.get(&(*direction, *kind))).copied().unwrap_or_default();
            let labels = message_labels(status, *direction, *kind);
            self.messages.get_or_create(&labels).inc_by(count.saturating_sub(before));
        }
        let Some(names) = &self.metallb else { return };
        for ((_, direction, kind), family) in METALLB_MESSAGES.iter().zip(&names.messages) {
            let is_meant =
                |(way, type_): &(Direction, MessageType)| way == direction && kind.is_none_or(|kind| kind == *type_);
            let sum: u64 = messages.iter().filter(|(key, _)| is_meant(key)).map(|(_, count)| count).sum();
            family.get_or_create(&metallb_labels(status)).set(i64::try_from(sum).unwrap_or(i64::MAX));
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
            let gauges = [&names.session_up, &names.announced_prefixes, &names.received_prefixes];
            for gauge in gauges.into_iter().chain(&names.messages) {
                gauge.remove(&metallb_labels(status));
            }
        }
        let with = |reason| {
            let PeerLabels { peer, address } = labels.clone();
            ReasonLabels { peer, address, reason }
        };
        for reason in status.withheld.keys() {
            self.withheld.remove(&with(reason.reason()));
        }
        if let Some(trouble) = &status.trouble {
            self.trouble.remove(&with(trouble.reason()));
        }
        for direction in [Direction::Sent, Direction::Received] {
            for kind in MessageType::ALL {
                self.messages.remove(&message_labels(status, direction, kind));
            }
        }
    }
}

/// Whether the figures of a session have the same labels as before, ours and those of MetalLB.
pub(crate) fn is_shown_alike(old: &SessionStatus, new: &SessionStatus) -> bool {
    (labels(&old.peer, &old.remote), metallb_labels(old)) == (labels(&new.peer, &new.remote), metallb_labels(new))
}

fn labels(peer: &PeerName, remote: &str) -> PeerLabels {
    PeerLabels { peer: peer.to_string(), address: remote.to_owned() }
}

fn message_labels(status: &SessionStatus, direction: Direction, kind: MessageType) -> MessageLabels {
    let PeerLabels { peer, address } = labels(&status.peer, &status.remote);
    MessageLabels { peer, address, direction: direction.name(), r#type: name_of(kind) }
}

/// A type of messages as RFC 4271 and RFC 2918 write it.
fn name_of(kind: MessageType) -> &'static str {
    match kind {
        MessageType::Open => "OPEN",
        MessageType::Update => "UPDATE",
        MessageType::Notification => "NOTIFICATION",
        MessageType::Keepalive => "KEEPALIVE",
        MessageType::RouteRefresh => "ROUTE-REFRESH",
    }
}

/// MetalLB names a peer by its address and port, and the VRF that is none `default`.
fn metallb_labels(status: &SessionStatus) -> MetallbLabels {
    let peer = match (status.remote.parse::<IpAddr>(), status.port) {
        (Ok(address), Some(port)) => SocketAddr::new(address, port.get()).to_string(),
        _ => status.remote.clone(),
    };
    let vrf = status.vrf.as_ref().map_or_else(|| "default".to_owned(), InterfaceName::to_string);
    MetallbLabels { peer, vrf }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use ferrogate_core::{
        model::peer::AoAlgorithm,
        speaker::bgp::{Trouble, Withheld},
    };
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn session(state: State) -> SessionStatus {
        SessionStatus {
            peer: "tor-a".into(),
            remote: "192.0.2.254".to_owned(),
            port: std::num::NonZeroU16::new(179),
            dynamic: None,
            vrf: None,
            state,
            trouble: Some(Trouble::NoTcpAo(AoAlgorithm::HmacSha1)),
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
            bfd_losses: 0,
            bfd_last_loss: None,
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
            "ferrogate_speaker_bgp_session_trouble{peer=\"tor-a\",address=\"192.0.2.254\",reason=\"Unsupported\"} 1",
            "metallb_bgp_session_up{peer=\"192.0.2.254:179\",vrf=\"default\"} 1",
            "metallb_bgp_announced_prefixes_total{peer=\"192.0.2.254:179\",vrf=\"default\"} 7",
            "metallb_bgp_received_prefixes_total{peer=\"192.0.2.254:179\",vrf=\"default\"} 0",
        ] {
            assert!(lines.contains(line), "{line} is not among {lines:#?}");
        }
        metrics.forget(&session(State::Idle));
        assert_eq!(shown(&registry), BTreeSet::new());
    }

    #[test]
    fn m_149_a_session_at_another_address_port_or_in_another_vrf_has_other_labels() {
        let before = session(State::Established);
        let other_port = SessionStatus { port: std::num::NonZeroU16::new(1179), ..before.clone() };
        let other_vrf = SessionStatus { vrf: Some("red".into()), ..before.clone() };
        let other_place = SessionStatus { remote: "192.0.2.253".to_owned(), ..before.clone() };

        for other in [other_port, other_vrf, other_place] {
            assert!(!is_shown_alike(&before, &other), "{other:?}");
        }
        assert!(is_shown_alike(&before, &SessionStatus { flaps: 9, ..session(State::Idle) }));
    }

    #[test]
    fn m_149_messages_are_counted_by_direction_and_type_and_under_the_names_of_metallb() {
        let mut registry = Registry::default();
        let mut metrics = BgpMetrics::register(registry.sub_registry_with_prefix("ferrogate_speaker"));
        metrics.register_metallb(&mut registry);
        let status = SessionStatus { vrf: Some("red".into()), ..session(State::Established) };
        let all =
            [Direction::Sent, Direction::Received].into_iter().flat_map(|way| MessageType::ALL.map(|kind| (way, kind)));
        // Of each another number: 1 OPEN sent, 2 UPDATEs sent, … 6 OPENs received, and so on.
        let first: Messages = all.zip(1..).collect();
        let mut second = first.clone();
        *second.get_mut(&(Direction::Sent, MessageType::Keepalive)).unwrap() += 10;

        metrics.count(&status, None, &first);
        metrics.count(&status, Some(&first), &second);

        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let theirs = [
            ("opens_sent", 1),
            ("updates_total", 2),
            ("notifications_sent", 3),
            ("keepalives_sent", 14),
            ("route_refresh_sent", 5),
            ("opens_received", 6),
            ("updates_total_received", 7),
            ("keepalives_received", 9),
            ("total_sent", 25),
            ("total_received", 40),
        ];
        for (name, count) in theirs {
            let line = format!("metallb_bgp_{name}{{peer=\"192.0.2.254:179\",vrf=\"red\"}} {count}");
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        for (direction, kind, count) in [("sent", "KEEPALIVE", 14), ("received", "ROUTE-REFRESH", 10)] {
            let labels = format!("peer=\"tor-a\",address=\"192.0.2.254\",direction=\"{direction}\",type=\"{kind}\"");
            let line = format!("ferrogate_speaker_bgp_messages_total{{{labels}}} {count}");
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        metrics.forget(&status);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
    }
}
