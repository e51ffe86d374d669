//! What is advertised by BGP, to whom, and how a speaker goes about it.

use std::num::NonZeroU32;

use ferrogate_wire::{
    bfd::Diagnostic,
    bgp::{self as wire, Notification},
};
use proptest::prelude::*;

use super::*;
use crate::{
    model::{
        PeerName, Prefix,
        advertisement::{Aggregation, BgpAdvertisement},
        bfd_profile::BfdProfile,
        community::Community,
        peer::{
            Asn, BgpIdentifier, BgpPeer, HoldTime, Key, Password, PasswordPlace, PeerAsn, PeerPlace, PerNode,
            RestartTime, Signature,
        },
    },
    speaker::{
        advertise::{Advertised, Peering, Terms, Unpeered, peering},
        bgp::{
            BfdState, Closing, Departure, GracefulRestart, Loss, Neighbor, Part, Remote, Route, SessionStatus, State,
            Trouble, Ttl, Wanted,
        },
    },
    write::{BgpClose, BgpReport, BgpSession, ClosedBy},
};

fn asn(number: u32) -> Asn {
    Asn::new(number).unwrap()
}

fn peer(name: &str, address: &str) -> BgpPeer {
    BgpPeer {
        key: ObjectKey::new("default", name),
        read_only: false,
        name: name.into(),
        generation: 0,
        my_asn: PerNode::Same(asn(64500)),
        local_asn: None,
        peer_asn: PerNode::Same(PeerAsn::Fixed(asn(64501))),
        place: PerNode::Same(PeerPlace::Address(ip(address))),
        port: NonZeroU16::new(179).unwrap(),
        source_address: None,
        vrf: None,
        router_id: None,
        hold_time: HoldTime::from_seconds(90).unwrap(),
        keepalive_time: Duration::from_secs(30),
        connect_time: None,
        password: None,
        bfd_profile: None,
        graceful_restart: None,
        multi_hop: false,
        ttl_security: None,
        dual_stack: false,
        passive: false,
        role: None,
        max_prefixes: None,
        shutdown: None,
        node_selectors: Vec::new(),
    }
}

fn bgp_advertisement(name: &str) -> BgpAdvertisement {
    BgpAdvertisement {
        key: ObjectKey::new("default", name),
        read_only: false,
        generation: 0,
        pools: PoolChoice::default(),
        unfit_pools: BTreeSet::new(),
        node_selectors: Vec::new(),
        service_selectors: Vec::new(),
        peers: BTreeSet::new(),
        aggregation: Aggregation::NONE,
        local_pref: None,
        multi_exit_disc: None,
        prepend: 0,
        communities: BTreeSet::new(),
        unknown_aliases: BTreeSet::new(),
    }
}

fn set_peer(snapshot: &mut Snapshot, peer: BgpPeer) {
    snapshot.bgp_peers.insert(peer.key.clone(), Arc::new(peer));
}

fn set_bgp(snapshot: &mut Snapshot, advertisement: BgpAdvertisement) {
    snapshot.bgp_advertisements.insert(advertisement.key.clone(), Arc::new(advertisement));
}

/// [`snapshot`] with BGP in the place of layer 2: a BGPAdvertisement of everything, to router `tor`.
pub(super) fn routed(nodes: u8, services: impl IntoIterator<Item = Service>) -> Snapshot {
    let mut snapshot = snapshot(nodes, services);
    snapshot.l2_advertisements.clear();
    set_bgp(&mut snapshot, bgp_advertisement("all"));
    set_peer(&mut snapshot, peer("tor", "198.51.100.1"));
    snapshot
}

fn advertised_by(snapshot: &Snapshot, policy: Policy, node: u8, name: &str) -> Result<Advertised, Silence> {
    let node = NodeName::from(format!("k{node}"));
    let peering = peering(snapshot, &node, policy.data_path);
    Terms::new(snapshot, &node, policy, None, &peering.neighbors).of(&snapshot.services[&key(name)])
}

fn advertised(snapshot: &Snapshot, node: u8, name: &str) -> Result<Advertised, Silence> {
    advertised_by(snapshot, KUBE_PROXY, node, name)
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn prefixes(advertised: Result<Advertised, Silence>) -> Vec<String> {
    advertised.unwrap().routes.keys().map(ToString::to_string).collect()
}

fn peers(names: &[&str]) -> BTreeSet<PeerName> {
    names.iter().map(|&name| name.into()).collect()
}

fn part(advertisement: &BgpAdvertisement) -> Part {
    Part {
        peers: Arc::new(advertisement.peers.clone()),
        local_pref: advertisement.local_pref,
        multi_exit_disc: advertisement.multi_exit_disc,
        prepend: advertisement.prepend,
        communities: Arc::new(advertisement.communities.clone()),
        draining: false,
    }
}

fn preference(number: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(number)
}

fn dying(node: Option<&str>) -> Endpoint {
    Endpoint { ready: false, serving: true, terminating: true, ..endpoint(node) }
}

fn on(snapshot: &Snapshot, node: &str) -> Peering {
    peering(snapshot, &node.into(), DataPath::KubeProxy)
}

fn neighbor(snapshot: &Snapshot, name: &str) -> Neighbor {
    (*on(snapshot, "k1").neighbors[name]).clone()
}

/// The last thing that routers are to be told.
fn wanted(actions: &[Action]) -> Option<&Wanted> {
    actions.iter().rev().find_map(|action| match action {
        Action::Peer(wanted) => Some(&**wanted),
        _ => None,
    })
}

fn routes(actions: &[Action]) -> Option<Vec<String>> {
    wanted(actions).map(|wanted| wanted.routes.keys().map(ToString::to_string).collect())
}

/// What is written of a Service and of sessions, in short.
fn bgp_statuses(actions: &[Action]) -> Vec<(String, Vec<String>)> {
    let statuses = actions.iter().filter_map(|action| match action {
        Action::Write(Write::BgpStatus { service, peers, .. }) => {
            Some((service.name.to_string(), peers.iter().map(ToString::to_string).collect()))
        }
        _ => None,
    });
    statuses.collect()
}

fn sessions(actions: &[Action]) -> Vec<(&str, Option<&BgpSession>)> {
    let sessions = actions.iter().filter_map(|action| match action {
        Action::Write(Write::BgpSession { peer, status, .. }) => Some((peer.as_str(), status.as_deref())),
        _ => None,
    });
    sessions.collect()
}

pub(super) fn session(peer: &str) -> SessionStatus {
    SessionStatus {
        peer: peer.into(),
        remote: "198.51.100.1".to_owned(),
        port: None,
        dynamic: None,
        vrf: None,
        state: State::Established,
        trouble: None,
        remote_asn: Some(asn(64501)),
        remote_identifier: BgpIdentifier::new(7),
        local_address: Some(ip("198.51.100.11")),
        remote_address: Some(ip("198.51.100.1")),
        hold_time_seconds: Some(9),
        families: BTreeSet::from([wire::Family::Ipv4Unicast]),
        prefixes_sent: 1,
        prefixes_received: 2,
        withheld: BTreeMap::new(),
        flaps: 0,
        last_close: None,
        bfd: None,
        bfd_losses: 0,
        bfd_last_loss: None,
    }
}

#[test]
fn m_123_with_policy_cluster_every_node_advertises_and_with_local_those_with_an_endpoint() {
    let cluster = Service { endpoints: vec![endpoint(Some("k3"))], ..service("cluster", &["192.0.2.1"]) };
    let facts = routed(3, [cluster, local("local", &["192.0.2.2"], &["k2"])]);

    for node in 1..=3 {
        assert_eq!(prefixes(advertised(&facts, node, "cluster")), ["192.0.2.1/32"]);
    }
    assert_eq!(prefixes(advertised(&facts, 2, "local")), ["192.0.2.2/32"]);
    assert_eq!(advertised(&facts, 1, "local"), Err(Silence::NoLocalEndpoint));
}

#[test]
fn m_123_with_policy_local_a_node_stops_before_its_last_endpoint_is_gone_if_another_has_one_to_stay() {
    let with = |endpoints: Vec<Endpoint>| routed(3, [Service { endpoints, ..local("web", &["192.0.2.1"], &[]) }]);
    let both_dying = with(vec![dying(Some("k1")), dying(Some("k2"))]);
    let one_dying = with(vec![dying(Some("k1")), endpoint(Some("k2"))]);
    let mut nobody_takes_over = one_dying.clone();
    set_node(&mut nobody_takes_over, Node { network_unavailable: true, ..node(2) });
    let one_left = with(vec![dying(Some("k1")), Endpoint { address: ip("198.51.100.2"), ..endpoint(Some("k1")) }]);

    assert_eq!(advertised(&one_dying, 1, "web"), Err(Silence::NoLocalEndpoint));
    for (facts, node) in [(&one_dying, 2), (&both_dying, 1), (&both_dying, 2), (&nobody_takes_over, 1), (&one_left, 1)]
    {
        assert!(advertised(facts, node, "web").is_ok());
    }
}

#[test]
fn routers_are_told_of_a_service_before_those_who_read_about_it() {
    let mut stand = Stand::started(DataPath::KubeProxy, routed(1, []));

    let actions = stand.snapshot(&routed(1, [service("web", &["192.0.2.1"])]));

    let first = |is: fn(&Action) -> bool| actions.iter().position(is).unwrap();
    let told = first(|action| matches!(action, Action::Peer(_)));
    let written = first(|action| matches!(action, Action::Write(Write::BgpStatus { .. } | Write::Event(_))));
    assert!(told < written, "{actions:?}");
}

#[test]
fn m_124_without_a_servable_endpoint_the_route_is_withdrawn() {
    let gone = Endpoint { serving: false, ..dying(None) };
    let with = |endpoints: Vec<Endpoint>| routed(1, [Service { endpoints, ..service("web", &["192.0.2.1"]) }]);
    let mut stand = Stand::started(DataPath::KubeProxy, with(vec![dying(None), gone.clone()]));

    let actions = stand.snapshot(&with(vec![gone]));

    assert_eq!(routes(&actions), Some(vec![]));
    assert_eq!(bgp_statuses(&actions), [("web".to_owned(), vec![])]);
    let (_, outcome) = stand.speaker.advertised().next().unwrap();
    assert_eq!(outcome, Err(&Silence::NoReadyEndpoint));
}

#[test]
fn m_125_a_node_that_is_excluded_withdraws_its_routes_and_keeps_its_sessions() {
    let facts = routed(1, [service("web", &["192.0.2.1"])]);
    let mut excluded = node(1);
    excluded.labels.insert(EXCLUDE_LABEL.to_owned(), String::new());
    let without_network = Node { network_unavailable: true, ..node(1) };

    for (node, silence) in [(excluded, Silence::NodeExcluded), (without_network, Silence::NodeNetworkUnavailable)] {
        let mut stand = Stand::started(DataPath::KubeProxy, facts.clone());
        let mut next = facts.clone();
        set_node(&mut next, node);

        let actions = stand.snapshot(&next);
        let wanted = wanted(&actions).unwrap();

        assert!(wanted.routes.is_empty());
        assert!(wanted.neighbors.contains_key("tor"));
        assert_eq!(advertised(&next, 1, "web"), Err(silence));
        assert_eq!(routes(&stand.snapshot(&facts)), Some(vec!["192.0.2.1/32".to_owned()]));
    }
}

#[test]
fn m_126_a_pool_without_a_bgp_advertisement_is_not_advertised() {
    let mut facts = routed(1, [service("web", &["192.0.2.1"])]);
    let uncovered = Err(Silence::NoBgpAdvertisement { pool: "pool".into() });
    let other = PoolChoice { names: BTreeSet::from(["other".into()]), selectors: Vec::new() };

    set_bgp(&mut facts, BgpAdvertisement { pools: other, ..bgp_advertisement("all") });
    assert_eq!(advertised(&facts, 1, "web"), uncovered);
    let unfit_pools = BTreeSet::from(["pool".into()]);
    set_bgp(&mut facts, BgpAdvertisement { unfit_pools, ..bgp_advertisement("all") });
    assert_eq!(advertised(&facts, 1, "web"), uncovered);
    let service_selectors = vec![named("web")];
    set_bgp(&mut facts, BgpAdvertisement { service_selectors, ..bgp_advertisement("all") });
    assert_eq!(advertised(&facts, 1, "web"), uncovered);
}

#[test]
fn m_127_an_advertisement_with_peers_reaches_these_only() {
    let mut facts = routed(1, [service("web", &["192.0.2.1"])]);
    set_peer(&mut facts, peer("other", "198.51.100.2"));
    let to = |names: &[&str]| BgpAdvertisement { peers: peers(names), ..bgp_advertisement("all") };

    set_bgp(&mut facts, to(&["tor"]));
    let one = advertised(&facts, 1, "web").unwrap();
    set_bgp(&mut facts, to(&["gone"]));
    let nobody = advertised(&facts, 1, "web");

    assert_eq!(one.peers, peers(&["tor"]));
    assert_eq!(*one.routes[&prefix("192.0.2.1/32")].first().unwrap().peers, peers(&["tor"]));
    assert_eq!(nobody, Err(Silence::NoPeer { advertisement: ObjectKey::new("default", "all") }));
}

#[test]
fn m_128_an_advertisement_with_node_selectors_comes_from_those_nodes_and_follows_their_labels() {
    let mut facts = routed(2, [service("web", &["192.0.2.1"])]);
    set_bgp(&mut facts, BgpAdvertisement { node_selectors: vec![named("edge")], ..bgp_advertisement("all") });
    let mut stand = Stand::started(DataPath::KubeProxy, facts.clone());
    assert!(stand.speaker.advertised().all(|(_, own)| own == Err(&Silence::NoBgpAdvertisementSelectsThisNode)));

    let mut edge = facts.clone();
    set_node(&mut edge, Node { labels: BTreeMap::from([("name".into(), "edge".into())]), ..node(1) });

    assert_eq!(routes(&stand.snapshot(&edge)), Some(vec!["192.0.2.1/32".to_owned()]));
    assert_eq!(routes(&stand.snapshot(&facts)), Some(vec![]));
}

#[test]
fn m_129_a_peer_with_node_selectors_is_spoken_with_from_those_nodes_and_follows_their_labels() {
    let mut facts = routed(2, [service("web", &["192.0.2.1"])]);
    set_peer(&mut facts, BgpPeer { node_selectors: vec![named("edge")], ..peer("tor", "198.51.100.1") });
    let mut stand = Stand::new(DataPath::KubeProxy);
    let mut actions = stand.step(Event::Interfaces(interfaces(1)));
    actions.extend(stand.snapshot(&facts));
    assert_eq!(wanted(&actions), None);
    assert_eq!(stand.speaker.peering().unpeered[&ObjectKey::new("default", "tor")], Unpeered::NotSelected);
    assert_eq!(advertised(&facts, 1, "web").unwrap_err().reason(), "NoPeer");

    let mut edge = facts.clone();
    set_node(&mut edge, Node { labels: BTreeMap::from([("name".into(), "edge".into())]), ..node(1) });
    let actions = stand.snapshot(&edge);
    assert_eq!(wanted(&actions).unwrap().neighbors.len(), 1);
    assert_eq!(routes(&actions), Some(vec!["192.0.2.1/32".to_owned()]));

    let actions = stand.snapshot(&facts);
    assert_eq!(wanted(&actions), Some(&Wanted { is_complete: true, ..Wanted::default() }));
    assert_eq!(wanted(&stand.snapshot(&facts)), None);
}

#[test]
fn m_130_an_aggregate_is_advertised_once_and_withdrawn_with_the_last_service() {
    let mut facts = routed(1, [service("a", &["192.0.2.1"]), service("b", &["192.0.2.200"])]);
    set_bgp(&mut facts, BgpAdvertisement { aggregation: Aggregation { v4: 24, v6: 64 }, ..bgp_advertisement("all") });
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));

    let actions = stand.snapshot(&facts);
    let route = &wanted(&actions).unwrap().routes[&prefix("192.0.2.0/24")];
    assert_eq!(**route, Route { parts: vec![part(&bgp_advertisement("all"))] });
    assert_eq!(routes(&actions), Some(vec!["192.0.2.0/24".to_owned()]));

    facts.services.remove(&key("a"));
    let actions = stand.snapshot(&facts);
    assert_eq!(wanted(&actions), None);
    assert_eq!(bgp_statuses(&actions), [("a".to_owned(), vec![])]);
    facts.services.remove(&key("b"));
    assert_eq!(routes(&stand.snapshot(&facts)), Some(vec![]));
}

#[test]
fn m_131_two_advertisements_give_both_prefixes_with_their_own_attributes() {
    let mut facts = routed(1, [service("web", &["192.0.2.1"])]);
    let no_advertise = Community::Standard(65535, 65282);
    let one = BgpAdvertisement {
        local_pref: preference(100),
        communities: BTreeSet::from([no_advertise]),
        ..bgp_advertisement("all")
    };
    let all = BgpAdvertisement { aggregation: Aggregation { v4: 24, v6: 128 }, ..bgp_advertisement("wide") };
    set_bgp(&mut facts, one.clone());
    set_bgp(&mut facts, all.clone());

    let routes = advertised(&facts, 1, "web").unwrap().routes;

    let expected = [
        (prefix("192.0.2.0/24"), BTreeSet::from([part(&all)])),
        (prefix("192.0.2.1/32"), BTreeSet::from([part(&one)])),
    ];
    assert_eq!(routes, BTreeMap::from(expected));
}

#[test]
fn m_132_what_several_advertisements_say_of_one_prefix_stands_together_in_its_route() {
    let mut facts = routed(1, [service("web", &["192.0.2.1"])]);
    let with = |name, community| BgpAdvertisement {
        local_pref: preference(200),
        communities: BTreeSet::from([community]),
        ..bgp_advertisement(name)
    };
    let (one, other) = (with("all", Community::Large(1, 2, 3)), with("more", Community::Standard(64500, 7)));
    set_bgp(&mut facts, one.clone());
    set_bgp(&mut facts, other.clone());
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));

    let actions = stand.snapshot(&facts);
    let route = &wanted(&actions).unwrap().routes[&prefix("192.0.2.1/32")];

    assert_eq!(route.parts, [part(&other), part(&one)]);
}

#[test]
fn m_139_m_140_a_session_carries_the_family_of_its_address_and_both_on_request() {
    let mut facts = routed(1, [service("web", &["192.0.2.1", "2001:db8::1"])]);
    set_peer(&mut facts, peer("six", "2001:db8:f::1"));
    set_peer(&mut facts, BgpPeer { dual_stack: true, ..peer("both", "2001:db8:f::2") });
    let behind = PerNode::Same(PeerPlace::Interface("eth1".into()));
    set_peer(&mut facts, BgpPeer { place: behind, ..peer("unnumbered", "198.51.100.9") });
    let (four, six) = (wire::Family::Ipv4Unicast, wire::Family::Ipv6Unicast);

    let families = |name| neighbor(&facts, name).families.into_iter().collect::<Vec<_>>();
    assert_eq!(families("tor"), [four]);
    assert_eq!(families("six"), [six]);
    assert_eq!(families("both"), [four, six]);
    assert_eq!(families("unnumbered"), [four, six]);

    let own = advertised(&facts, 1, "web").unwrap();
    let peering = on(&facts, "k1");
    let reached = |text| {
        let prefix = prefix(text);
        let part = own.routes[&prefix].first().unwrap();
        peering.reached(&prefix, part).map(PeerName::as_str).collect::<Vec<_>>()
    };
    assert_eq!(reached("192.0.2.1/32"), ["both", "tor", "unnumbered"]);
    assert_eq!(reached("2001:db8::1/128"), ["both", "six", "unnumbered"]);
}

#[test]
fn m_140_a_service_whose_family_no_session_carries_says_so() {
    let facts = routed(1, [service("six", &["2001:db8::1"]), service("dual", &["192.0.2.1", "2001:db8::2"])]);

    assert_eq!(advertised(&facts, 1, "six").unwrap_err().reason(), "NoPeer");
    assert_eq!(prefixes(advertised(&facts, 1, "dual")), ["192.0.2.1/32"]);
}

#[test]
fn m_144_the_source_address_of_a_peer_is_that_of_its_connections() {
    let mut facts = routed(1, []);
    let source_address = Some(PerNode::Same(ip("198.51.100.11")));
    set_peer(&mut facts, BgpPeer { source_address, local_asn: Some(asn(64502)), ..peer("tor", "198.51.100.1") });

    let neighbor = neighbor(&facts, "tor");

    assert_eq!(neighbor.transport.source, Some(ip("198.51.100.11")));
    assert_eq!(neighbor.local_asn, asn(64502));
}

#[test]
fn m_146_the_status_of_a_service_names_its_peers_in_order_and_goes_with_the_last() {
    let mut facts = routed(1, [service("web", &["192.0.2.1"])]);
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));
    let mut told = Vec::new();
    let mut tell = |stand: &mut Stand, facts: &Snapshot| {
        let actions = stand.snapshot(facts);
        told.extend(events(&actions).into_iter().map(|(_, reason, message)| format!("{reason}: {message}")));
        bgp_statuses(&actions)
    };

    assert_eq!(tell(&mut stand, &facts), [("web".to_owned(), vec!["tor".to_owned()])]);
    set_peer(&mut facts, peer("alpha", "198.51.100.2"));
    assert_eq!(tell(&mut stand, &facts), [("web".to_owned(), vec!["alpha".to_owned(), "tor".to_owned()])]);
    assert_eq!(tell(&mut stand, &facts), []);
    set_peer(&mut facts, BgpPeer { shutdown: Some("works".into()), ..peer("alpha", "198.51.100.2") });
    assert_eq!(tell(&mut stand, &facts), [("web".to_owned(), vec!["tor".to_owned()])]);
    facts.bgp_advertisements.clear();
    assert_eq!(tell(&mut stand, &facts), [("web".to_owned(), vec![])]);
    assert_eq!(told, ["nodeAssigned: announcing from node \"k1\" with protocol \"bgp\""]);
}

#[test]
fn m_146_what_an_earlier_life_reported_and_is_not_so_any_more_goes() {
    let mut facts = routed(1, [service("web", &["192.0.2.1"])]);
    let by = |nodes: &[&str]| {
        let nodes = nodes.iter().map(|&node| (node.into(), peers(&["tor"])));
        Arc::new(nodes.collect::<BTreeMap<NodeName, BTreeSet<PeerName>>>())
    };
    facts.advertised_by.insert(key("web"), by(&["k1"]));
    facts.advertised_by.insert(key("gone"), by(&["k1", "k2"]));
    facts.advertised_by.insert(key("theirs"), by(&["k2"]));
    let report = Arc::new(BgpReport { session: BgpSession::default(), since: String::new(), closed_at: None });
    for (node, peer) in [("k1", "tor"), ("k1", "gone"), ("k2", "gone")] {
        facts.bgp_sessions.insert((node.into(), peer.into()), report.clone());
    }
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));

    let actions = stand.snapshot(&facts);

    // What stands there already is not written again.
    assert_eq!(bgp_statuses(&actions), [("gone".to_owned(), vec![])]);
    assert_eq!(sessions(&actions), [("gone", None)]);
}

#[test]
fn m_147_contradicting_local_preferences_stop_bgp_for_the_service_they_meet_in() {
    let labelled = Service {
        labels: BTreeMap::from([("name".to_owned(), "chosen".to_owned())]),
        ..service("chosen", &["192.0.2.1"])
    };
    let facts = |change: fn(&mut BgpAdvertisement)| {
        let mut facts = routed(1, [labelled.clone(), service("other", &["192.0.2.2"])]);
        let mut chosen = BgpAdvertisement {
            service_selectors: vec![named("chosen")],
            local_pref: preference(200),
            ..bgp_advertisement("chosen")
        };
        change(&mut chosen);
        set_bgp(&mut facts, chosen);
        set_bgp(&mut facts, BgpAdvertisement { peers: peers(&["tor"]), ..bgp_advertisement("all") });
        facts
    };
    let (one, other) = (ObjectKey::new("default", "all"), ObjectKey::new("default", "chosen"));

    let contradicting = facts(|_| ());
    assert_eq!(advertised(&contradicting, 1, "chosen"), Err(Silence::ConflictingAdvertisements { one, other }));
    assert!(advertised(&contradicting, 1, "other").is_ok());
    for harmless in [
        facts(|chosen| chosen.local_pref = None),
        facts(|chosen| chosen.peers = peers(&["another"])),
        facts(|chosen| chosen.aggregation.v4 = 24),
        facts(|chosen| chosen.node_selectors = vec![named("k2")]),
    ] {
        assert!(advertised(&harmless, 1, "chosen").is_ok());
    }
}

#[test]
fn m_148_a_service_may_be_announced_by_layer_2_and_bgp_at_once() {
    let mut facts = routed(1, [service("web", &[WON])]);
    set_advertisement(&mut facts, advertisement());
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));

    let actions = stand.snapshot(&facts);

    assert!(stand.owns(WON));
    assert_eq!(routes(&actions), Some(vec![format!("{WON}/32")]));
    let messages: Vec<&str> = events(&actions).into_iter().map(|(_, _, message)| message).collect();
    let expected = ["bgp", "layer2"].map(|by| format!("announcing from node \"k1\" with protocol \"{by}\""));
    assert_eq!(messages, expected);
}

#[test]
fn a_route_that_should_carry_an_unknown_community_does_not_go_out_and_the_others_do() {
    let mut facts = routed(1, [service("web", &["192.0.2.1"])]);
    let unknown_aliases = BTreeSet::from(["no-export".to_owned()]);
    set_bgp(&mut facts, BgpAdvertisement { unknown_aliases, ..bgp_advertisement("all") });
    let silence = Silence::UnknownCommunityAlias {
        advertisement: ObjectKey::new("default", "all"),
        alias: "no-export".to_owned(),
    };
    assert_eq!(advertised(&facts, 1, "web"), Err(silence.clone()));

    set_bgp(&mut facts, BgpAdvertisement { aggregation: Aggregation { v4: 24, v6: 64 }, ..bgp_advertisement("wide") });
    let own = advertised(&facts, 1, "web").unwrap();

    assert_eq!(own.routes.keys().collect::<Vec<_>>(), [&prefix("192.0.2.0/24")]);
    assert_eq!(own.withheld, BTreeMap::from([(ObjectKey::new("default", "all"), silence)]));
}

#[test]
fn a_cordoned_node_advertises_with_less_preference_where_it_is_to_yield() {
    let mut facts = routed(2, [service("web", &["192.0.2.1"])]);
    set_node(&mut facts, Node { unschedulable: true, ..node(1) });
    let yielding = Policy { yield_on_cordon: true, ..KUBE_PROXY };
    let drains = |policy, node| {
        let own = advertised_by(&facts, policy, node, "web").unwrap();
        own.routes.values().flatten().all(|part| part.draining)
    };

    assert!(drains(yielding, 1));
    assert!(!drains(yielding, 2));
    assert!(!drains(KUBE_PROXY, 1));
}

#[test]
fn with_the_built_in_proxy_a_node_advertises_while_that_is_ready_and_holds_the_addresses() {
    let mut stand = Stand::new(DataPath::Proxy);
    stand.step(Event::Interfaces(interfaces(1)));
    let facts = routed(1, [service("web", &["192.0.2.1"])]);

    let actions = stand.snapshot(&facts);
    assert_eq!(wanted(&actions).map(|wanted| (wanted.routes.len(), wanted.is_complete)), Some((0, false)));
    let actions = stand.step(Event::ProxyReady(true));
    assert_eq!(wanted(&actions).map(|wanted| (wanted.routes.len(), wanted.is_complete)), Some((1, true)));
    assert!(actions.contains(&Action::Hold { address: ip("192.0.2.1") }));
    assert!(!stand.owns("192.0.2.1"));

    let actions = stand.step(Event::ProxyReady(false));
    assert_eq!(routes(&actions), Some(vec![]));
    let released = Action::Release { address: ip("192.0.2.1") };
    assert!(!actions.contains(&released));
    assert!(only(stand.pass(Duration::from_secs(6))).contains(&released));
}

#[test]
fn an_address_that_layer_2_leaves_stays_on_the_host_while_bgp_draws_traffic_for_it() {
    let mut facts = routed(1, [service("web", &[WON])]);
    set_advertisement(&mut facts, advertisement());
    let mut stand = Stand::started(DataPath::Proxy, facts.clone());
    stand.step(Event::ProxyReady(true));
    assert!(stand.owns(WON));

    facts.l2_advertisements.clear();
    let mut actions = stand.snapshot(&facts);
    actions.extend(only(stand.pass(Duration::from_secs(10))));
    assert!(!stand.owns(WON));
    assert!(!actions.iter().any(|action| matches!(action, Action::Release { .. })));

    facts.services.clear();
    assert!(stand.snapshot(&facts).contains(&Action::Release { address: ip(WON) }));
}

#[test]
fn a_node_whose_kube_proxy_refuses_a_local_service_does_not_advertise_it_yet() {
    let port = NonZeroU16::new(30_000).unwrap();
    let web = Service { health_check_node_port: Some(port), ..local("web", &["192.0.2.1"], &["k1"]) };
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));

    let actions = stand.snapshot(&routed(1, [web, service("other", &["192.0.2.2"])]));
    let first = wanted(&actions).unwrap();
    assert_eq!((first.routes.len(), first.is_complete), (1, false));

    let actions = stand.step(Event::Health { port, answer: super::super::Answer::Agrees });
    let second = wanted(&actions).unwrap();
    assert_eq!((second.routes.len(), second.is_complete), (2, true));
    let actions = stand.step(Event::Health { port, answer: super::super::Answer::Refuses });
    assert_eq!(routes(&actions), Some(vec!["192.0.2.2/32".to_owned()]));
    assert!(wanted(&actions).unwrap().is_complete);
}

#[test]
fn a_peer_is_resolved_to_what_it_is_on_this_node() {
    let mut facts = routed(1, []);
    let profile = BfdProfile {
        key: ObjectKey::new("default", "fast"),
        read_only: false,
        generation: 0,
        receive_interval: Duration::from_millis(100),
        transmit_interval: Duration::from_millis(200),
        detect_multiplier: NonZeroU8::new(5).unwrap(),
        echo_interval: None,
        passive: false,
        minimum_ttl: NonZeroU8::new(250).unwrap(),
    };
    facts.bfd_profiles.insert(profile.key.clone(), Arc::new(profile.clone()));
    let password = Some(in_clear(Key::new("secret").unwrap()));
    set_peer(
        &mut facts,
        BgpPeer {
            peer_asn: PerNode::Same(PeerAsn::Internal),
            router_id: Some(PerNode::Same(BgpIdentifier::new(7).unwrap())),
            bfd_profile: Some("fast".to_owned()),
            graceful_restart: RestartTime::from_seconds(60),
            password: password.clone(),
            ..peer("inside", "198.51.100.2")
        },
    );
    set_peer(&mut facts, BgpPeer { bfd_profile: Some("missing".to_owned()), ..peer("plain", "198.51.100.3") });
    let hops = NonZeroU8::new(2).unwrap();
    set_peer(&mut facts, BgpPeer { ttl_security: Some(hops), ..peer("secured", "198.51.100.4") });
    let within = PerNode::Same(PeerPlace::Prefix(prefix("198.51.100.0/24")));
    set_peer(&mut facts, BgpPeer { place: within, ..peer("dynamic", "198.51.100.5") });

    let inside = neighbor(&facts, "inside");
    assert_eq!(inside.identifier, BgpIdentifier::new(7).unwrap());
    assert_eq!(inside.transport.ttl, Ttl::MultiHop);
    assert_eq!(inside.transport.signature, password.as_ref().unwrap().key().cloned().map(Signature::Md5));
    let wish = inside.bfd.unwrap();
    assert_eq!((wish.settings, wish.minimum_ttl.get()), (super::super::bfd::Settings::of(&profile), 250));
    let restart = |forwarding_preserved| Some(GracefulRestart { restart_time_seconds: 60, forwarding_preserved });
    assert_eq!(inside.graceful_restart, restart(true));
    let by_proxy = peering(&facts, &"k1".into(), DataPath::Proxy);
    assert_eq!(by_proxy.neighbors["inside"].graceful_restart, restart(false));

    let plain = neighbor(&facts, "plain");
    assert_eq!((plain.bfd, plain.transport.ttl, plain.passive), (None, Ttl::Direct, false));
    // The node's own address, 198.51.100.11.
    assert_eq!(plain.identifier, BgpIdentifier::new(0xc633_640b).unwrap());
    assert_eq!(neighbor(&facts, "secured").transport.ttl, Ttl::Security { hops });
    let dynamic = neighbor(&facts, "dynamic");
    assert_eq!((dynamic.remote, dynamic.passive), (Remote::Prefix(prefix("198.51.100.0/24")), true));
}

#[test]
fn without_an_ipv4_address_the_identifier_is_made_of_the_name_and_stays() {
    let identifier = |number: u8, addresses: Vec<IpAddr>| {
        let mut facts = routed(0, []);
        set_node(&mut facts, Node { internal_addresses: addresses, ..node(number) });
        on(&facts, &format!("k{number}")).neighbors["tor"].identifier
    };

    let made = identifier(1, vec![ip("2001:db8::1")]);

    assert_eq!(made, identifier(1, vec![]));
    assert_ne!(made, identifier(2, vec![]));
    assert_eq!(identifier(1, vec![ip("2001:db8::1"), ip("198.51.100.7")]).to_string(), "198.51.100.7");
}

fn in_clear(key: Key) -> Password {
    Password { place: PasswordPlace::Clear(key), tcp_ao: None }
}

fn in_secret(key: Option<Key>) -> Password {
    Password { place: PasswordPlace::Secret { name: "tor-password".to_owned(), key }, tcp_ao: None }
}

#[test]
fn a_peer_whose_password_nobody_knows_is_left_out_and_that_is_told_once() {
    let mut facts = routed(1, [service("web", &["192.0.2.1"])]);
    let password = in_secret(None);
    set_peer(&mut facts, BgpPeer { password: Some(password), ..peer("tor", "198.51.100.1") });
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));

    let actions = stand.snapshot(&facts);
    let why = Unpeered::PasswordUnknown { secret: "tor-password".to_owned() };
    let trouble = why.to_string();
    assert_eq!(reports(&actions), [&Report::Unpeered { peer: ObjectKey::new("default", "tor"), why }]);
    assert_eq!(wanted(&actions), None);
    let (state, remote) = ("Idle".to_owned(), "198.51.100.1".to_owned());
    let expected = BgpSession { state, remote, trouble, ..BgpSession::default() };
    assert_eq!(sessions(&actions), [("tor", Some(&expected))]);
    // The session that was there before ends, and its end is no news.
    let gone = Event::SessionGone { peer: "tor".into(), remote: None };
    for event in [Event::Session(Box::new(session("tor"))), gone] {
        assert_eq!(sessions(&stand.step(event)), []);
    }
    set_node(&mut facts, node(2));
    let actions = stand.snapshot(&facts);
    assert_eq!((reports(&actions), sessions(&actions)), (vec![], vec![]));

    let key = Some(Key::new("secret").unwrap());
    let password = in_secret(key);
    set_peer(&mut facts, BgpPeer { password: Some(password), ..peer("tor", "198.51.100.1") });
    let actions = stand.snapshot(&facts);
    assert!(wanted(&actions).unwrap().neighbors["tor"].transport.signature.is_some());
    assert_eq!(sessions(&actions), [("tor", None)]);
    assert!(!format!("{actions:?}").contains("\"secret\""));
}

#[test]
fn of_two_peers_with_one_name_ours_is_spoken_with() {
    let mut facts = routed(1, []);
    let theirs = ObjectKey::new("a-metallb", "tor");
    set_peer(&mut facts, BgpPeer { key: theirs.clone(), read_only: true, ..peer("tor", "198.51.100.2") });

    let peering = on(&facts, "k1");

    let address = ip("198.51.100.1");
    assert_eq!(peering.neighbors["tor"].remote, Remote::Address { address, port: NonZeroU16::new(179).unwrap() });
    assert_eq!(peering.unpeered[&theirs], Unpeered::SameName { other: ObjectKey::new("default", "tor") });
}

#[test]
fn a_node_that_is_not_there_speaks_with_nobody() {
    let facts = routed(1, [service("web", &["192.0.2.1"])]);

    let peering = on(&facts, "k9");

    assert!(peering.neighbors.is_empty());
    assert_eq!(peering.unpeered[&ObjectKey::new("default", "tor")], Unpeered::NodeUnknown);
    assert_eq!(advertised(&facts, 9, "web"), Err(Silence::NodeUnknown));
}

#[test]
fn a_session_is_written_when_what_is_known_of_it_changes() {
    let mut stand = Stand::started(DataPath::KubeProxy, routed(1, []));
    let step = |stand: &mut Stand, status: &SessionStatus| {
        let actions = stand.step(Event::Session(Box::new(status.clone())));
        sessions(&actions).into_iter().map(|(peer, session)| (peer.to_owned(), session.cloned())).collect::<Vec<_>>()
    };
    let expected = BgpSession {
        state: "Established".to_owned(),
        remote: "198.51.100.1".to_owned(),
        remote_asn: Some(asn(64501)),
        remote_identifier: BgpIdentifier::new(7),
        local_address: Some(ip("198.51.100.11")),
        remote_address: Some(ip("198.51.100.1")),
        hold_time_seconds: Some(9),
        families: BTreeSet::from([Family::V4]),
        prefixes_sent: 1,
        prefixes_received: 2,
        ..BgpSession::default()
    };

    assert_eq!(step(&mut stand, &session("tor")), [("tor".to_owned(), Some(expected))]);
    assert_eq!(step(&mut stand, &session("tor")), []);
    let watched = SessionStatus {
        bfd: Some(BfdState::Down),
        bfd_losses: 2,
        bfd_last_loss: Some(Diagnostic::ControlDetectionTimeExpired),
        ..session("tor")
    };
    let written = step(&mut stand, &watched);
    let written = written[0].1.as_ref().unwrap();
    assert_eq!((written.bfd.as_deref(), written.bfd_losses), (Some("Down"), 2));
    assert_eq!(written.bfd_last_loss, "nothing was heard for the detection time");
    let closed = SessionStatus {
        state: State::Idle,
        trouble: Some(Trouble::ConnectionRefused),
        last_close: Some(Closing::Received(Notification::new(6, 2, []))),
        ..session("tor")
    };
    let written = step(&mut stand, &closed);
    let written = written[0].1.as_ref().unwrap();
    assert_eq!(written.trouble, Trouble::ConnectionRefused.to_string());
    let by = ClosedBy::Peer { code: 6, subcode: 2 };
    assert_eq!(written.last_close, Some(BgpClose { by, text: closed.last_close.unwrap().to_string() }));

    let actions = stand.step(Event::SessionGone { peer: "tor".into(), remote: None });
    assert_eq!(sessions(&actions), [("tor", None)]);
    assert_eq!(sessions(&stand.step(Event::SessionGone { peer: "tor".into(), remote: None })), []);
}

#[test]
fn of_the_sessions_of_a_peer_that_is_a_prefix_the_one_that_is_down_is_written() {
    let mut stand = Stand::started(DataPath::KubeProxy, routed(1, []));
    let from = |address: &str, state| SessionStatus {
        remote: address.to_owned(),
        dynamic: Some(ip(address)),
        state,
        last_close: (state == State::Idle).then_some(Closing::Lost(Loss::Reset)),
        ..session("tor")
    };
    let written = |actions: &[Action]| {
        sessions(actions).into_iter().map(|(_, session)| session.map(|one| one.remote.clone())).collect::<Vec<_>>()
    };
    let mut step = |event| written(&stand.step(event));

    let one = || Some("198.51.100.1".to_owned());
    let two = Some("198.51.100.2".to_owned());
    assert_eq!(step(Event::Session(Box::new(from("198.51.100.1", State::Established)))), [one()]);
    assert_eq!(step(Event::Session(Box::new(from("198.51.100.2", State::Established)))), []);
    assert_eq!(step(Event::Session(Box::new(from("198.51.100.2", State::Idle)))), [two]);
    let gone = |address| Event::SessionGone { peer: "tor".into(), remote: Some(ip(address)) };
    assert_eq!(step(gone("198.51.100.2")), [one()]);
    assert_eq!(step(gone("198.51.100.1")), [None]);
}

/// What a speaker does that is told to stop, with the node like this.
fn stop(node: Node) -> (Stand, Vec<Action>) {
    let mut facts = routed(1, [service("web", &["192.0.2.1"])]);
    set_node(&mut facts, node);
    let mut stand = Stand::started(DataPath::KubeProxy, facts);
    stand.step(Event::Session(Box::new(session("tor"))));
    let actions = stand.step(Event::Shutdown);
    (stand, actions)
}

#[test]
fn a_speaker_that_stops_on_a_node_that_stays_asks_its_routers_to_keep_its_routes() {
    let (mut stand, actions) = stop(node(1));

    let leaving = wanted(&actions).unwrap();
    assert_eq!(leaving.departing, Some(Departure::Restart));
    assert_eq!(leaving.routes.len(), 1);
    assert!(!actions.contains(&Action::Finished));
    assert_eq!(only(stand.pass(900 * MS)).last(), None);
    let actions = stand.step(Event::Parted);
    assert_eq!(actions, [Action::Finished]);
}

#[test]
fn a_speaker_that_stops_on_a_node_that_goes_takes_its_routes_along() {
    let excluded = Node { labels: BTreeMap::from([(EXCLUDE_LABEL.to_owned(), String::new())]), ..node(1) };
    for node in [Node { unschedulable: true, ..node(1) }, excluded, Node { name: "k2".into(), ..node(2) }] {
        let mut facts = routed(1, [service("web", &["192.0.2.1"])]);
        let mut stand = Stand::started(DataPath::KubeProxy, facts.clone());
        facts.nodes.clear();
        set_node(&mut facts, node);
        stand.snapshot(&facts);

        let actions = stand.step(Event::Shutdown);

        let departing = wanted(&actions).unwrap().departing.clone();
        assert!(matches!(departing, Some(Departure::Leave { .. })), "{departing:?}");
    }

    let (mut stand, actions) = stop(Node { unschedulable: true, ..node(1) });
    assert_eq!(wanted(&actions).unwrap().routes.len(), 1);
    assert_eq!(bgp_statuses(&actions), [("web".to_owned(), vec![])]);
    let actions = stand.step(Event::Parted);
    assert_eq!(sessions(&actions), [("tor", None)]);
    assert_eq!(actions.last(), Some(&Action::Finished));
}

#[test]
fn a_speaker_whose_routers_cannot_be_told_waits_three_seconds_longer_than_others_and_goes() {
    let (mut stand, actions) = stop(node(1));
    assert!(!actions.contains(&Action::Finished));

    let actions = stand.pass(Duration::from_secs(5));

    assert_eq!(actions.last().unwrap(), &(Duration::from_secs(4), Action::Finished));
}

#[test]
fn a_speaker_that_never_had_a_router_waits_for_none() {
    let mut stand = Stand::started(DataPath::KubeProxy, snapshot(1, []));

    assert_eq!(stand.step(Event::Shutdown).last(), Some(&Action::Finished));
}

#[test]
fn what_concerns_no_service_costs_none_of_them() {
    let mut facts = routed(2, [service("web", &["192.0.2.1"])]);
    let mut stand = Stand::started(DataPath::KubeProxy, facts.clone());

    set_node(&mut facts, Node { unschedulable: true, ..node(2) });
    set_peer(&mut facts, BgpPeer { node_selectors: vec![named("k2")], ..peer("far", "198.51.100.9") });
    let actions = stand.snapshot(&facts);

    assert_eq!(wanted(&actions), None);
}

#[derive(Clone, Debug)]
enum Change {
    Put { name: u8, addresses: Vec<u8>, local: bool, labelled: bool, endpoints: Vec<(bool, bool)> },
    Remove(u8),
    Advertise { name: u8, length: u8, preference: u8, selects: bool, peers: Option<u8>, alias: bool },
    Unadvertise(u8),
    Peer { name: u8, dual: bool, elsewhere: bool },
    Unpeer(u8),
    Node { excluded: bool, cordoned: bool, other_out: bool },
    Ready(bool),
}

fn change() -> impl Strategy<Value = Change> {
    let flag = any::<bool>;
    let endpoints = proptest::collection::vec((flag(), flag()), 0..3);
    let addresses = proptest::collection::vec(0_u8..6, 0..3);
    prop_oneof![
        8 => (0_u8..6, addresses, flag(), flag(), endpoints).prop_map(|(name, addresses, local, labelled, endpoints)| {
            Change::Put { name, addresses, local, labelled, endpoints }
        }),
        2 => (0_u8..6).prop_map(Change::Remove),
        4 => (0_u8..3, 30_u8..33, 0_u8..2, flag(), proptest::option::of(0_u8..3), prop::bool::weighted(0.1)).prop_map(
            |(name, length, preference, selects, peers, alias)| {
                Change::Advertise { name, length, preference, selects, peers, alias }
            }
        ),
        1 => (0_u8..3).prop_map(Change::Unadvertise),
        2 => (0_u8..3, flag(), flag()).prop_map(|(name, dual, elsewhere)| Change::Peer { name, dual, elsewhere }),
        1 => (0_u8..3).prop_map(Change::Unpeer),
        1 => (prop::bool::weighted(0.2), flag(), flag()).prop_map(|(excluded, cordoned, other_out)| {
            Change::Node { excluded, cordoned, other_out }
        }),
        1 => flag().prop_map(Change::Ready),
    ]
}

fn apply(facts: &mut Snapshot, change: &Change) {
    let peer_name = |number: &u8| format!("tor{number}");
    match change {
        Change::Put { name, addresses, local, labelled, endpoints } => {
            let addresses: Vec<String> = addresses
                .iter()
                .map(|number| if *number == 5 { "2001:db8::5".to_owned() } else { format!("192.0.2.{number}") })
                .collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let mut service = service(&format!("s{name}"), &addresses);
            if *local {
                service.external_traffic_policy = TrafficPolicy::Local;
            }
            if *labelled {
                service.labels.insert("name".to_owned(), "chosen".to_owned());
            }
            let endpoint = |&(here, ready): &(bool, bool)| {
                let node = Some(if here { "k1" } else { "k2" });
                if ready { endpoint(node) } else { dying(node) }
            };
            service.endpoints = endpoints.iter().map(endpoint).collect();
            set_service(facts, service);
        }
        Change::Remove(name) => _ = facts.services.remove(&key(&format!("s{name}"))),
        Change::Advertise { name, length, preference: number, selects, peers: to, alias } => {
            let mut advertisement = bgp_advertisement(&format!("a{name}"));
            advertisement.aggregation.v4 = *length;
            advertisement.local_pref = preference(u32::from(*number));
            if *selects {
                advertisement.service_selectors = vec![named("chosen")];
            }
            advertisement.peers = to.iter().map(|number| peer_name(number).into()).collect();
            if *alias {
                advertisement.unknown_aliases.insert("alias".to_owned());
            }
            set_bgp(facts, advertisement);
        }
        Change::Unadvertise(name) => {
            facts.bgp_advertisements.remove(&ObjectKey::new("default", format!("a{name}")));
        }
        Change::Peer { name, dual, elsewhere } => {
            let node_selectors = if *elsewhere { vec![named("k2")] } else { Vec::new() };
            let address = format!("198.51.100.{}", 1 + name);
            set_peer(facts, BgpPeer { dual_stack: *dual, node_selectors, ..peer(&peer_name(name), &address) });
        }
        Change::Unpeer(name) => _ = facts.bgp_peers.remove(&ObjectKey::new("default", peer_name(name))),
        Change::Node { excluded, cordoned, other_out } => {
            let mut own = Node { unschedulable: *cordoned, ..node(1) };
            if *excluded {
                own.labels.insert(EXCLUDE_LABEL.to_owned(), String::new());
            }
            set_node(facts, own);
            set_node(facts, Node { network_unavailable: *other_out, ..node(2) });
        }
        Change::Ready(_) => {}
    }
}

proptest! {
    #[test]
    fn whatever_has_changed_one_by_one_is_advertised_as_if_decided_at_once(
        changes in proptest::collection::vec(change(), 1..30),
        data_path in prop_oneof![Just(DataPath::KubeProxy), Just(DataPath::Proxy)],
    ) {
        let config = || Config { yield_on_cordon: true, ..Config::new("k1".into(), data_path, 1) };
        let mut facts = routed(2, []);
        let mut stand = Stand::with(config());
        stand.step(Event::Interfaces(interfaces(1)));
        let (mut is_ready, mut said, mut told) = (false, Wanted::default(), BTreeMap::new());
        for change in &changes {
            let mut actions = Vec::new();
            if let Change::Ready(ready) = change {
                is_ready = *ready;
                actions.extend(stand.step(Event::ProxyReady(is_ready)));
            }
            apply(&mut facts, change);
            actions.extend(stand.snapshot(&facts));
            if let Some(wanted) = wanted(&actions) {
                said = wanted.clone();
            }
            told.extend(bgp_statuses(&actions));

            let mut fresh = Stand::with(config());
            fresh.step(Event::Interfaces(interfaces(1)));
            fresh.step(Event::ProxyReady(is_ready));
            let actions = fresh.snapshot(&facts);
            let expected = wanted(&actions).cloned().unwrap_or_default();
            prop_assert_eq!(&said.routes, &expected.routes);
            prop_assert_eq!(&said.neighbors, &expected.neighbors);
            prop_assert!(stand.speaker.advertised().eq(fresh.speaker.advertised()));
            told.retain(|_, peers| !peers.is_empty());
            prop_assert_eq!(&told, &bgp_statuses(&actions).into_iter().collect::<BTreeMap<_, _>>());
            let held = |stand: &Stand| {
                let host = &stand.speaker.host;
                host.addresses().filter(|address| host.needs(*address)).collect::<BTreeSet<_>>()
            };
            prop_assert_eq!(held(&stand), held(&fresh));
        }
    }
}
