//! What a peer is on a node, and that keys are shown nowhere.

use super::*;

fn node(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Node {
    let map = |all: &[(&str, &str)]| all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Node {
        name: "n".into(),
        labels: map(labels),
        annotations: map(annotations),
        internal_addresses: Vec::new(),
        network_unavailable: false,
        unschedulable: false,
    }
}

fn label<T>(key: &str) -> PerNode<T> {
    PerNode::From(NodeKey::Label(key.to_owned()))
}

fn annotation<T>(key: &str) -> PerNode<T> {
    PerNode::From(NodeKey::Annotation(key.to_owned()))
}

fn asn_of(number: u32) -> Asn {
    Asn::new(number).unwrap()
}

fn peer(name: &str, place: PerNode<PeerPlace>) -> BgpPeer {
    BgpPeer {
        key: ObjectKey::new("ferrogate-system", name),
        read_only: false,
        name: name.into(),
        generation: 1,
        my_asn: PerNode::Same(asn_of(64_500)),
        local_asn: None,
        peer_asn: PerNode::Same(PeerAsn::Fixed(asn_of(64_501))),
        place,
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

fn at(address: &str) -> PerNode<PeerPlace> {
    PerNode::Same(PeerPlace::Address(address.parse().unwrap()))
}

#[test]
fn a_peer_without_values_of_nodes_is_the_same_on_every_node() {
    let peer = BgpPeer { local_asn: Some(asn_of(64_510)), ..peer("tor", at("192.0.2.1")) };

    let here = peer.on(&node(&[], &[])).unwrap();

    assert_eq!((here.local_asn, here.peer_asn), (asn_of(64_510), PeerAsn::Fixed(asn_of(64_501))));
    assert_eq!(here.place, PeerPlace::Address("192.0.2.1".parse().unwrap()));
    assert_eq!((here.source_address, here.router_id), (None, None));
}

#[test]
fn values_of_a_node_are_read_from_its_labels_and_annotations() {
    let peer = BgpPeer {
        my_asn: label("asn"),
        peer_asn: label("tor-asn"),
        source_address: Some(annotation("ferrogate.io/source")),
        router_id: Some(label("id")),
        ..peer("tor", annotation("ferrogate.io/tor"))
    };
    let node = node(
        &[("asn", "64600"), ("tor-asn", "4200000000"), ("id", "192.0.2.9")],
        &[("ferrogate.io/tor", " 2001:db8::1 "), ("ferrogate.io/source", "2001:db8::2")],
    );

    let here = peer.on(&node).unwrap();

    let expected = PeerOnNode {
        local_asn: asn_of(64_600),
        peer_asn: PeerAsn::Fixed(asn_of(4_200_000_000)),
        place: PeerPlace::Address("2001:db8::1".parse().unwrap()),
        source_address: Some("2001:db8::2".parse().unwrap()),
        router_id: router_id_of("192.0.2.9"),
    };
    assert_eq!(here, expected);
}

#[test]
fn what_a_node_does_not_say_or_says_wrongly_is_named_with_its_field_and_key() {
    let said = |peer: &BgpPeer, value: Option<&str>| {
        let labels: Vec<_> = value.into_iter().map(|value| ("x", value)).collect();
        peer.on(&node(&labels, &[])).unwrap_err().to_string()
    };
    let address = peer("tor", label("x"));
    let number = BgpPeer { peer_asn: label("x"), ..peer("tor", at("192.0.2.1")) };
    let identifier = BgpPeer { router_id: Some(label("x")), ..peer("tor", at("192.0.2.1")) };
    let source = BgpPeer { source_address: Some(label("x")), ..peer("tor", at("2001:db8::1")) };
    let elsewhere = BgpPeer { source_address: Some(PerNode::Same("2001:db8::1".parse().unwrap())), ..address.clone() };
    let multi_hop = BgpPeer { multi_hop: true, ..number.clone() };
    let role = BgpPeer { role: Some(Role::Customer), my_asn: label("x"), ..peer("tor", at("192.0.2.1")) };

    let missing = "peerAddress stands in label x of the Node, which has none; set it, or choose other nodes by \
                   nodeSelectors";
    assert_eq!(said(&address, None), missing);
    for (peer, value, expected) in [
        (
            &address,
            "rack-7",
            "peerAddress stands in label x of the Node, and \"rack-7\" is not valid: the IPv4 or IPv6 \
                              address of a router",
        ),
        (
            &number,
            "+5",
            "peerASN stands in label x of the Node, and \"+5\" is not valid: an AS number, 1 to 4294967295",
        ),
        (&number, "0", "peerASN stands in label x of the Node, and \"0\" is not valid: an AS number, 1 to 4294967295"),
        (
            &identifier,
            "0.0.0.0",
            "routerID stands in label x of the Node, and \"0.0.0.0\" is not valid: written as an \
                                  IPv4 address, and not 0.0.0.0",
        ),
        (
            &source,
            "192.0.2.2",
            "sourceAddress stands in label x of the Node, and \"192.0.2.2\" is not valid: an address \
                                of the family of the peer's",
        ),
        (
            &elsewhere,
            "192.0.2.2",
            "peerAddress stands in label x of the Node, and \"192.0.2.2\" is not valid: an address \
                                   of the family of sourceAddress",
        ),
        (
            &multi_hop,
            "64500",
            "peerASN stands in label x of the Node, and \"64500\" is not valid: an AS number other \
                               than ours, since ebgpMultiHop is set",
        ),
        (
            &role,
            "64501",
            "myASN stands in label x of the Node, and \"64501\" is not valid: an AS number other than ours, \
                          since role is set",
        ),
    ] {
        assert_eq!(said(peer, Some(value)), expected);
    }
}

#[test]
fn of_two_peers_that_come_to_one_place_on_a_node_the_one_counts_that_is_there_everywhere() {
    let everywhere = Arc::new(peer("z", at("192.0.2.1")));
    let [first, second] = ["a", "b"].map(|name| Arc::new(peer(name, label(name))));
    let in_vrf = Arc::new(BgpPeer { vrf: Some("red".into()), ..peer("c", label("a")) });
    let peers = [&first, &second, &in_vrf, &everywhere];
    let outcome = |a: &str, b: &str| {
        let node = node(&[("a", a), ("b", b)], &[]);
        let all = on_node(peers.iter().copied(), &node);
        all.into_iter()
            .map(|(peer, here)| (peer.name.to_string(), here.err().map(|no| no.reason())))
            .collect::<Vec<_>>()
    };
    let named = |all: [(&str, Option<&'static str>); 4]| all.map(|(name, no)| (name.to_owned(), no)).to_vec();

    let duplicate = Some("DuplicatePeer");
    assert_eq!(outcome("192.0.2.1", "192.0.2.2"), named([("z", None), ("a", duplicate), ("b", None), ("c", None)]));
    assert_eq!(outcome("192.0.2.3", "192.0.2.3"), named([("z", None), ("a", None), ("b", duplicate), ("c", None)]));
}

#[test]
fn n_065_a_key_shows_in_no_debug_output_and_is_one_to_eighty_bytes() {
    let key = Key::new("open sesame").unwrap();
    let secret = PasswordPlace::Secret { name: "s".to_owned(), key: Some(key.clone()) };
    let password = Password { place: PasswordPlace::Clear(key.clone()), tcp_ao: None };
    let peer = BgpPeer { password: Some(password), ..peer("tor", at("192.0.2.1")) };

    for shown in [format!("{key:?}"), format!("{secret:#?}"), format!("{peer:#?}")] {
        assert!(!shown.contains("sesame") && shown.contains("Key(…)"), "{shown}");
    }
    assert_eq!((key.expose(), Key::new(""), Key::new(&"x".repeat(81))), ("open sesame", None, None));
    assert!(Key::new(&"x".repeat(80)).is_some());
}
