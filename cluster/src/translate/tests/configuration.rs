//! What of the configuration stands beside each other, and what stays when somebody makes a mistake.

use ferrogate_core::model::{
    community::Community,
    peer::{AoAlgorithm, Asn, BgpPeer, NodeKey, PeerAsn, PeerPlace, PerNode, RestartTime, Role, TcpAo, router_id_of},
};

use super::*;

/// The peer of a text in which nothing is wrong.
fn the_peer(more: &str) -> Arc<BgpPeer> {
    let snapshot = snapshot(&peer("tor", "192.0.2.1", more));
    assert_eq!(problems(&snapshot), Vec::<String>::new());
    snapshot.bgp_peers.values().next().expect("it stands").clone()
}

/// Two advertisements of LOCAL_PREF 100 and 200 for pool `p` of these addresses, with more in the spec of each.
fn contradiction(addresses: &str, first: &str, second: &str) -> Vec<String> {
    let text = format!(
        "{}{}{}",
        pool("p", addresses),
        ours("BGPAdvertisement", "a", &format!("localPref: 100{first}")),
        ours("BGPAdvertisement", "b", &format!("localPref: 200{second}"))
    );
    let two = ["one", "two"]
        .map(|name| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{rack: {name}}}}}\n"));
    let mut all = problems(&snapshot(&format!("{text}{}{}", two[0], two[1])));
    all.retain(|problem| !problem.contains("does not exist"));
    all
}

#[test]
fn a_peer_is_read_with_all_it_says() {
    let peer = the_peer(
        ", localASN: 64510, peerPort: 1179, sourceAddress: 192.0.2.9, vrf: red, routerID: 192.0.2.8, connectTime: 10s, \
         password: secret, enableGracefulRestart: true, ebgpMultiHop: true, dualStackAddressFamily: true, \
         nodeSelectors: [{matchLabels: {rack: a}}]",
    );

    assert_eq!((peer.my_asn.same().unwrap().get(), peer.local_asn.map(Asn::get)), (64_500, Some(64_510)));
    assert!(matches!(peer.peer_asn, PerNode::Same(PeerAsn::Fixed(asn)) if asn.get() == 64_501));
    assert_eq!((peer.port.get(), peer.connect_time), (1_179, Some(Duration::from_secs(10))));
    assert_eq!(peer.router_id, router_id_of("192.0.2.8").map(PerNode::Same));
    assert_eq!(peer.graceful_restart.map(RestartTime::seconds), Some(120));
    assert!(peer.multi_hop && peer.dual_stack && !peer.passive);
    assert!(!format!("{peer:?}").contains("secret"), "{peer:?}");
}

#[test]
fn a_peer_is_read_with_all_that_metallb_does_not_have() {
    let peer = the_peer(
        ", passive: true, ttlSecurityHops: 2, role: rs-client, maxPrefixes: 10, shutdown: 'until monday', \
         enableGracefulRestart: true, gracefulRestartTime: 5m",
    );

    assert!(peer.passive);
    assert_eq!(peer.ttl_security.map(|hops| hops.get()), Some(2));
    assert_eq!((peer.role, peer.shutdown.as_deref()), (Some(Role::RouteServerClient), Some("until monday")));
    assert_eq!(peer.max_prefixes.map(|most| most.get()), Some(10));
    assert_eq!(peer.graceful_restart.map(RestartTime::seconds), Some(300));
}

#[test]
fn n_063_a_peer_is_signed_by_tcp_ao_where_it_says_so_and_needs_a_key_for_it() {
    let short = the_peer(", password: secret, tcpAO: {sendID: 7}");
    let long = the_peer(", password: secret, tcpAO: {sendID: 1, recvID: 2, algorithm: aes-128-cmac-96}");
    let bare = snapshot(&peer("tor", "192.0.2.1", ", tcpAO: {sendID: 1}"));
    let of = |peer: &BgpPeer| peer.password.as_ref().and_then(|password| password.tcp_ao);

    assert_eq!(of(&short), Some(TcpAo { send_id: 7, receive_id: 7, algorithm: AoAlgorithm::HmacSha1 }));
    assert_eq!(of(&long), Some(TcpAo { send_id: 1, receive_id: 2, algorithm: AoAlgorithm::AesCmac }));
    assert_eq!(
        problems(&bare),
        ["BGPPeer ferrogate-system/tor: spec.tcpAO: does not fit the schema of its kind: needs password or \
          passwordSecret, which holds its key; set one, or remove tcpAO"]
    );
    // Nobody speaks with it unsigned.
    assert!(bare.bgp_peers.is_empty());
}

#[test]
fn whoever_connects_from_a_prefix_is_the_peer_of_that_prefix() {
    let text = ours("BGPPeer", "racks", "myASN: 64500, dynamicASN: external, peerPrefix: 10.0.0.0/24");

    let snapshot = snapshot(&text);

    let peer = snapshot.bgp_peers.values().next().expect("it stands");
    assert_eq!(peer.place, PerNode::Same(PeerPlace::Prefix("10.0.0.0/24".parse().unwrap())));
    assert!(peer.passive);
}

#[test]
fn values_of_nodes_take_the_place_of_fields() {
    let values = "myASN: {label: rack.example.com/asn}, peerASN: {label: tor-asn}, peerAddress: {annotation: \
                  ferrogate.io/tor}, sourceAddress: {label: source}, routerID: {label: id}";
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n, labels: {rack.example.com/asn: '64600'}, annotations: \
                {ferrogate.io/tor: 192.0.2.1, example.com/large: x}}\n";
    let text = format!("{node}{}", ours("BGPPeer", "tor", &format!("nodeValues: {{{values}}}")));

    let snapshot = snapshot(&text);

    assert_eq!(problems(&snapshot), Vec::<String>::new());
    let peer = snapshot.bgp_peers.values().next().expect("it stands");
    assert_eq!(peer.my_asn, PerNode::From(NodeKey::Label("rack.example.com/asn".to_owned())));
    assert_eq!(peer.place, PerNode::From(NodeKey::Annotation("ferrogate.io/tor".to_owned())));
    let annotations = snapshot.nodes["n"].annotations.clone();
    assert_eq!(annotations, [("ferrogate.io/tor".to_owned(), "192.0.2.1".to_owned())].into());
    let missing = peer.on(&snapshot.nodes["n"]).unwrap_err().to_string();
    assert!(missing.starts_with("peerASN stands in label tor-asn of the Node, which has none"), "{missing}");
}

#[test]
fn settings_of_a_peer_that_do_not_go_together_are_refused_with_the_field() {
    let both = "exclude each other";
    for (spec, field, expected) in [
        ("passive: true, interface: eth1", "spec.passive", both),
        ("peerAddress: 192.0.2.1, ttlSecurityHops: 1, ebgpMultiHop: true", "spec.ttlSecurityHops", both),
        ("peerAddress: 192.0.2.1, ttlSecurityHops: 255", "spec.ttlSecurityHops", "1 to 254"),
        ("peerAddress: 192.0.2.1, ttlSecurityHops: 0", "spec.ttlSecurityHops", "1 to 254"),
        ("peerAddress: 192.0.2.1, maxPrefixes: 0", "spec.maxPrefixes", "1 to 4294967295"),
        ("peerAddress: 192.0.2.1, localASN: 64501, role: peer", "spec.role", "peers of another AS only"),
        ("peerAddress: 192.0.2.1, gracefulRestartTime: 5s", "spec.gracefulRestartTime", "needs enableGracefulRestart"),
        (
            "peerAddress: 192.0.2.1, enableGracefulRestart: true, gracefulRestartTime: 4096s",
            "spec.gracefulRestartTime",
            "a whole number of seconds, 1s to 4095s",
        ),
        (
            "peerAddress: 192.0.2.1, enableGracefulRestart: true, gracefulRestartTime: 1500ms",
            "spec.gracefulRestartTime",
            "a whole number of seconds, 1s to 4095s",
        ),
        ("peerAddress: 192.0.2.1, peerPrefix: 192.0.2.0/24", "spec.peerAddress", "exactly one of"),
        ("peerPrefix: 192.0.2.1/24", "spec.peerPrefix", "without bits beyond its length"),
        ("peerPrefix: 192.0.2.1", "spec.peerPrefix", "without bits beyond its length"),
        ("peerPrefix: 224.0.0.0/4", "spec.peerPrefix", "a prefix of routers"),
        ("peerPrefix: '::ffff:192.0.2.0/120'", "spec.peerPrefix", "a prefix of routers"),
        ("peerPrefix: 192.0.2.0/24, sourceAddress: '2001:db8::1'", "spec.sourceAddress", "the family of peerPrefix"),
        ("nodeValues: {peerAddress: {}}", "spec.nodeValues.peerAddress", "exactly one of label and annotation"),
        (
            "nodeValues: {peerAddress: {annotation: example.com/tor}}",
            "spec.nodeValues.peerAddress.annotation",
            "begins",
        ),
        ("nodeValues: {peerAddress: {label: 'a b'}}", "spec.nodeValues.peerAddress.label", "a label"),
        ("peerAddress: 192.0.2.1, routerID: 192.0.2.2, nodeValues: {routerID: {label: id}}", "spec.routerID", both),
        (
            "peerAddress: 192.0.2.1, sourceAddress: 192.0.2.2, nodeValues: {sourceAddress: {label: id}}",
            "spec.sourceAddress",
            both,
        ),
        ("peerAddress: 192.0.2.1, nodeValues: {myASN: {label: asn}}", "spec.myASN", "exactly one of"),
        ("peerAddress: 192.0.2.1, nodeValues: {peerASN: {label: asn}}", "spec.peerASN", "exactly one of"),
    ] {
        let said = problems(&snapshot(&ours("BGPPeer", "tor", &format!("myASN: 64500, peerASN: 64501, {spec}"))));

        let is_it = |one: &String| one.contains(&format!(" {field}: ")) && one.contains(expected);
        assert!(said.iter().any(is_it), "{spec}: {said:?}");
    }
    let long = format!(", shutdown: '{}'", "\u{e9}".repeat(128));
    assert!(complaint(&peer("tor", "192.0.2.1", &long)).starts_with("spec.shutdown: \"256 bytes\""));
}

#[test]
fn an_address_may_lie_within_the_prefix_of_another_peer_and_two_prefixes_must_not_meet() {
    let racks = |name: &str, prefix: &str, more: &str| {
        ours("BGPPeer", name, &format!("myASN: 64500, peerASN: 64501, peerPrefix: {prefix}{more}"))
    };
    let said = |texts: &[String]| problems(&snapshot(&texts.concat()));

    let wide = racks("a", "10.0.0.0/16", "");
    for other in [
        peer("b", "10.0.0.1", ""),
        racks("b", "10.1.0.0/16", ""),
        racks("b", "10.0.1.0/24", ", vrf: red"),
        racks("b", "'2001:db8::/64'", ""),
    ] {
        assert_eq!(said(&[wide.clone(), other]), Vec::<String>::new());
    }
    let told = said(&[wide.clone(), racks("b", "10.0.1.0/24", "")]);
    let expected = "BGPPeer ferrogate-system/b: spec.peerPrefix: 10.0.1.0/24 overlaps with 10.0.0.0/16, which is already \
                    the place of BGPPeer a on every node; name each router once for a node";
    assert_eq!(told, [expected]);
    assert!(said(&[wide.clone(), racks("b", "10.0.0.0/16", "")])[0].contains("10.0.0.0/16 is already the place"));
}

#[test]
fn a_route_is_read_with_its_attributes() {
    let communities = "communities: ['target:64500:7', 'extended:0x4004fc0000000064', 'large:1:2:3']";
    let spec = format!("med: 0, asPathPrepend: 250, localPref: 200, {communities}");

    let snapshot = snapshot(&ours("BGPAdvertisement", "a", &spec));

    assert_eq!(problems(&snapshot), Vec::<String>::new());
    let one = snapshot.bgp_advertisements.values().next().expect("it stands");
    assert_eq!((one.multi_exit_disc, one.prepend), (Some(0), 250));
    assert_eq!(one.communities.len(), 3);
    let said = complaint(&ours("BGPAdvertisement", "a", "asPathPrepend: 251"));
    assert_eq!(said, "spec.asPathPrepend: \"251\" is not valid: 0 to 250");
}

#[test]
fn bfd_runs_without_echo_and_the_profile_says_so() {
    let text = ours("BFDProfile", "fast", "echoMode: true, transmitInterval: 50");

    let snapshot = snapshot(&text);
    assert_eq!(snapshot.bfd_profiles.len(), 1);
    // A warning: the condition Accepted stays true, with this as its reason and message.
    let problems: Vec<_> = snapshot.problems.values().flatten().collect();
    let [problem] = problems[..] else { panic!("{problems:?}") };
    assert_eq!((problem.fault.reason(), problem.fault.is_warning()), ("Ignored", true));
    let said = complaint(&text);
    assert!(said.starts_with("spec.echoMode: is ignored: echo packets are not sent"), "{said}");
    assert!(said.ends_with("set that as short as it has to be, and remove echoMode"), "{said}");
}

/// A peer whose password is in the Secret `key`, as it stands beside these Secrets, and what is wrong.
fn with_secrets(rules: Rules, secrets: &str) -> (Arc<BgpPeer>, Vec<String>) {
    let mut translator = Translator::new(rules, None);
    feed(&mut translator, "p", &peer("tor", "192.0.2.1", ", passwordSecret: {name: key}"));
    feed(&mut translator, "s", secrets);
    let snapshot = translator.snapshot();
    (snapshot.bgp_peers.values().next().expect("it stands").clone(), problems(&snapshot))
}

fn key_of(peer: &BgpPeer) -> Option<&str> {
    peer.password.as_ref().expect("it needs one").key().map(|key| key.expose())
}

#[test]
fn m_136_a_secret_that_gives_no_password_is_told_and_the_peer_still_needs_one() {
    let rules = || translator(Source::Directory).rules().clone();
    let typed = |data: &str| secret("key", &format!("type: kubernetes.io/basic-auth{data}"));
    let long = format!(", stringData: {{password: {}}}", "x".repeat(81));
    for (secrets, expected) in [
        (String::new(), "does not exist as one of type kubernetes.io/basic-auth; create it or correct the name"),
        (
            typed(", stringData: {password: x}").replace(NAMESPACE, "default"),
            "does not exist as one of type kubernetes.io/basic-auth; create it or correct the name",
        ),
        (
            secret("key", "stringData: {password: x}"),
            "is of type \"Opaque\"; make it anew as one of type kubernetes.io/basic-auth",
        ),
        (typed(""), "has no key `password`; add it"),
        (typed(", stringData: {passwort: x}"), "has no key `password`; add it"),
        (typed(", stringData: {password: ''}"), "holds a password of 0 bytes; use one of 1 to 80 bytes"),
        (typed(&long), "holds a password of 81 bytes; use one of 1 to 80 bytes"),
        (typed(", data: {password: //4=}"), "holds a password that is not UTF-8; use one that is"),
    ] {
        let (peer, said) = with_secrets(rules(), &secrets);

        assert_eq!(key_of(&peer), None);
        let prefix = "BGPPeer ferrogate-system/tor: spec.passwordSecret.name: Secret ferrogate-system/key ";
        assert_eq!(said, [format!("{prefix}{expected}; there is no session until then")]);
    }
    let (peer, said) = with_secrets(Rules { secrets: false, ..rules() }, "");
    assert_eq!((key_of(&peer), said), (None, Vec::new()));
}

#[test]
fn a_password_is_read_from_either_field_of_its_secret_and_what_is_not_encoded_counts() {
    let rules = || translator(Source::Directory).rules().clone();
    for (data, expected) in [
        ("stringData: {password: open sesame}", "open sesame"),
        ("data: {password: b3BlbiBzZXNhbWU=}", "open sesame"),
        ("data: {password: eA==}, stringData: {password: 'y '}", "y "),
    ] {
        let (peer, said) = with_secrets(rules(), &secret("key", &format!("type: kubernetes.io/basic-auth, {data}")));

        assert_eq!((key_of(&peer), said), (Some(expected), Vec::new()));
    }
}

#[test]
fn n_061_a_new_password_in_a_secret_changes_its_peer_and_no_other() {
    let mut translator = translator(Source::Directory);
    let typed = |password: &str| {
        secret("key", &format!("type: kubernetes.io/basic-auth, stringData: {{password: {password}}}"))
    };
    let two = [peer("tor", "192.0.2.1", ", passwordSecret: {name: key}"), peer("other", "192.0.2.2", "")];
    feed(&mut translator, "p", &two.concat());
    feed(&mut translator, "s", &typed("one"));
    let before = translator.snapshot();

    feed(&mut translator, "s", &typed("two"));

    let after = translator.snapshot();
    let changed: Vec<_> = before.bgp_peers.diff(&after.bgp_peers).collect();
    assert_eq!(changed.len(), 1);
    let tor = &after.bgp_peers[&ObjectKey::new(NAMESPACE, "tor")];
    assert_eq!(key_of(tor), Some("two"));
}

#[test]
fn n_065_a_password_shows_in_nothing_that_is_made_of_a_peer() {
    let secret = secret("key", "type: kubernetes.io/basic-auth, stringData: {password: sesame-482915}");
    let clear = peer("clear", "192.0.2.2", ", password: sesame-482915");
    let mut translator = translator(Source::Directory);
    feed(&mut translator, "p", &peer("tor", "192.0.2.1", ", passwordSecret: {name: key}"));
    feed(&mut translator, "s", &format!("{secret}{clear}"));

    let snapshot = translator.snapshot();

    assert_eq!(snapshot.bgp_peers.values().filter_map(|peer| key_of(peer)).count(), 2);
    for shown in [format!("{snapshot:?}"), format!("{translator:?}"), problems(&snapshot).join("\n")] {
        assert!(!shown.contains("482915"), "{shown}");
    }
}

#[test]
fn m_022_of_hold_and_keepalive_time_the_one_that_is_missing_follows_from_the_other() {
    let timers = |more: &str| {
        let peer = the_peer(more);
        (peer.hold_time.seconds(), peer.keepalive_time.as_secs())
    };

    assert_eq!(timers(""), (90, 30));
    assert_eq!(timers(", holdTime: 90s"), (90, 30));
    assert_eq!(timers(", keepaliveTime: 20s"), (60, 20));
    assert_eq!(timers(", holdTime: 3.9s, keepaliveTime: 3.5s"), (3, 3));
    assert_eq!(timers(", holdTime: 0s"), (0, 0));
    assert_eq!(timers(", keepaliveTime: 0s"), (0, 0));
    assert_eq!(timers(", keepaliveTime: 21845s"), (65_535, 21_845));
}

#[test]
fn m_013_an_aggregate_within_every_entry_of_its_pool_is_accepted() {
    for (addresses, spec) in [
        ("192.0.2.0/24", "aggregationLength: 32"),
        ("192.0.2.0/24", "aggregationLength: 24"),
        ("192.0.2.16/28, 192.0.2.64/26", "aggregationLength: 28"),
        ("192.0.2.200-192.0.2.251", "aggregationLength: 30"),
        ("'2001:db8::/64'", "aggregationLength: 8, aggregationLengthV6: 64"),
    ] {
        let text = format!("{}{}", pool("p", addresses), ours("BGPAdvertisement", "a", spec));
        assert_eq!(problems(&snapshot(&text)), Vec::<String>::new(), "{addresses} {spec}");
    }
}

#[test]
fn an_advertisement_that_does_not_fit_one_pool_still_covers_the_others() {
    let text = format!(
        "{}{}{}",
        pool("small", "192.0.2.16/28"),
        pool("large", "198.51.100.0/24"),
        ours("BGPAdvertisement", "a", "aggregationLength: 24")
    );

    let snapshot = snapshot(&text);

    let advertisement = snapshot.bgp_advertisements.values().next().expect("it stands");
    assert!(advertisement.covers(&snapshot.pools["large"]));
    assert!(!advertisement.covers(&snapshot.pools["small"]));
    assert_eq!(
        problems(&snapshot),
        [
            "BGPAdvertisement ferrogate-system/a: spec.aggregationLength: 24 bits reach outside 192.0.2.16-192.0.2.31 of \
          pool small; use at least 28"
        ]
    );
}

#[test]
fn m_015_contradicting_local_preferences_are_refused_and_the_other_advertisement_is_named() {
    let text = "BGPAdvertisement ferrogate-system/b: spec.localPref: 200 contradicts 100 of BGPAdvertisement a for \
                pool p; use one value, or other peers, nodes or aggregation lengths";

    assert_eq!(contradiction("192.0.2.0/24", "", ""), [text]);
    assert_eq!(contradiction("192.0.2.0/24", ", peers: [x, y]", ", peers: [y]"), [text]);
    assert_eq!(contradiction("192.0.2.0/24", ", peers: [x]", ""), [text]);
    assert_eq!(contradiction("192.0.2.0/24", ", nodeSelectors: [{matchLabels: {rack: one}}]", ""), [text]);
    assert_eq!(contradiction("192.0.2.0/24", "", ", aggregationLengthV6: 64"), [text]);
}

#[test]
fn the_advertisement_that_stood_first_keeps_a_pool_however_often_it_is_asked_again() {
    let mut translator = translator(Source::Directory);
    feed(&mut translator, "p", &pool("p", "192.0.2.0/24"));
    feed(&mut translator, "b", &ours("BGPAdvertisement", "b", "localPref: 200"));
    translator.snapshot();
    feed(&mut translator, "a", &ours("BGPAdvertisement", "a", "localPref: 100"));
    let before = translator.snapshot();
    feed(&mut translator, "q", &pool("q", "198.51.100.0/24"));

    let after = translator.snapshot();

    for snapshot in [before, after] {
        let unfit: Vec<_> = snapshot.bgp_advertisements.values().map(|one| one.unfit_pools.len()).collect();
        assert_eq!(unfit, [snapshot.pools.len(), 0]);
    }
}

#[test]
fn m_016_local_preferences_may_differ_where_peers_nodes_or_every_length_do() {
    let fine = |addresses: &str, first: &str, second: &str| {
        assert_eq!(contradiction(addresses, first, second), Vec::<String>::new(), "{first} {second}");
    };
    let rack = |name: &str| format!(", nodeSelectors: [{{matchLabels: {{rack: {name}}}}}]");

    fine("192.0.2.0/24", ", peers: [x]", ", peers: [y]");
    fine("192.0.2.0/24", &rack("one"), &rack("two"));
    fine("192.0.2.0/24", "", ", aggregationLength: 24");
    fine("'2001:db8::/64'", "", ", aggregationLengthV6: 64");
    fine("192.0.2.0/24, '2001:db8::/64'", "", ", aggregationLength: 24, aggregationLengthV6: 64");
    fine("192.0.2.0/24", "", ", serviceSelectors: [{matchLabels: {app: web}}]");
}

#[test]
fn m_034_peers_of_one_node_may_differ_in_identifier_and_as_and_share_an_address_where_they_never_meet() {
    let rack = |name: &str, more: &str| {
        peer(name, "192.0.2.1", &format!(", nodeSelectors: [{{matchLabels: {{rack: {name}}}}}]{more}"))
    };
    let nodes = ["one", "two"]
        .map(|name| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{rack: {name}}}}}\n"));
    let apart = format!("{}{}{}{}", nodes[0], nodes[1], rack("one", ""), rack("two", ""));
    let vrfs = format!("{}{}", peer("a", "192.0.2.1", ""), peer("b", "192.0.2.1", ", vrf: red"));
    let identifiers = format!("{}{}", peer("a", "192.0.2.1", ""), peer("b", "192.0.2.2", ", routerID: 192.0.2.8"))
        .replacen("64500", "64510", 1);

    for text in [apart, vrfs, identifiers] {
        assert_eq!(problems(&snapshot(&text)), Vec::<String>::new());
    }
}

#[test]
fn peers_that_come_to_share_a_node_contradict_each_other_from_then_on() {
    let rack = |name: &str| peer(name, "192.0.2.1", &format!(", nodeSelectors: [{{matchLabels: {{{name}: x}}}}]"));
    let node = |labels: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n, labels: {{{labels}}}}}\n");
    let mut translator = translator(Source::Directory);
    feed(&mut translator, "p", &format!("{}{}", rack("a"), rack("b")));
    feed(&mut translator, "n", &node("a: x"));
    assert_eq!(translator.snapshot().bgp_peers.len(), 2);

    feed(&mut translator, "n", &node("a: x, b: x"));

    let shared = translator.snapshot();
    assert_eq!(shared.bgp_peers.keys().map(|key| &*key.name).collect::<Vec<_>>(), ["a"]);
    assert!(problems(&shared)[0].contains("192.0.2.1 is already the place of BGPPeer a on node n"));
}

#[test]
fn communities_of_an_advertisement_follow_their_names() {
    let mut translator = translator(Source::Directory);
    feed(&mut translator, "a", &ours("BGPAdvertisement", "a", "communities: [red, '65000:1']"));
    let unknown = translator.snapshot();
    feed(&mut translator, "c", &ours("Community", "c", "communities: [{name: red, value: 'large:1:2:3'}]"));
    let known = translator.snapshot();

    let of = |snapshot: &Snapshot| snapshot.bgp_advertisements.values().next().expect("it stands").clone();
    assert_eq!(of(&unknown).unknown_aliases, ["red".to_owned()].into());
    assert!(problems(&unknown)[0].contains("spec.communities: Community \"red\" does not exist"));
    assert!(of(&known).unknown_aliases.is_empty() && problems(&known).is_empty());
    assert_eq!(of(&known).communities, [Community::Standard(65_000, 1), Community::Large(1, 2, 3)].into());
}

#[test]
fn m_036_a_pool_that_is_edited_into_another_stays_as_it_was_whoever_is_older() {
    for (edited, other) in [("a", "b"), ("b", "a")] {
        let mut translator = translator(Source::Directory);
        feed(&mut translator, "edited", &pool(edited, "192.0.2.0/25"));
        feed(&mut translator, "other", &pool(other, "192.0.2.128/25"));
        let before = translator.snapshot();

        feed(&mut translator, "edited", &pool(edited, "192.0.2.0/24"));

        let after = translator.snapshot();
        assert_eq!(after.pools, before.pools);
        let said = format!("192.0.2.0-192.0.2.255 overlaps with 192.0.2.128-192.0.2.255 of pool {other}");
        assert!(problems(&after)[0].contains(&said), "{:?}", problems(&after));
        feed(&mut translator, "other", &pool(other, "198.51.100.0/24"));
        let mended = translator.snapshot();
        assert_eq!(problems(&mended), Vec::<String>::new());
        assert_eq!(mended.pools[edited].ranges[0].to_string(), "192.0.2.0-192.0.2.255");
    }
}

#[test]
fn two_pools_may_change_places_at_once() {
    let mut translator = translator(Source::Directory);
    let two = |first: &str, second: &str| format!("{}{}", pool("a", first), pool("b", second));
    feed(&mut translator, "f", &two("192.0.2.0/25", "192.0.2.128/25"));
    translator.snapshot();

    feed(&mut translator, "f", &two("192.0.2.128/25", "192.0.2.0/25"));

    let after = translator.snapshot();
    assert_eq!(problems(&after), Vec::<String>::new());
    assert_eq!(after.pools["a"].ranges[0].to_string(), "192.0.2.128-192.0.2.255");
}

#[test]
fn a_pool_keeps_its_place_when_its_own_edit_fails_and_another_is_edited_into_it() {
    let mut translator = translator(Source::Directory);
    let three = |a: &str, b: &str| format!("{}{}{}", pool("a", a), pool("b", b), pool("c", "203.0.113.0/24"));
    feed(&mut translator, "f", &three("192.0.2.0/24", "198.51.100.0/24"));
    let before = translator.snapshot();

    feed(&mut translator, "f", &three("198.51.100.0/25", "203.0.113.0/25"));

    let after = translator.snapshot();
    assert_eq!(after.pools, before.pools);
    assert_eq!(problems(&after).len(), 2, "{:?}", problems(&after));
}

#[test]
fn the_status_of_a_pool_goes_on_while_the_form_before_stays() {
    let with_status = |addresses: &str, assigned: u8| {
        format!("{}status: {{assignedIPv4: {assigned}, conditions: []}}\n", pool("p", addresses))
    };
    let mut translator = translator(Source::Kubernetes);
    feed(&mut translator, "q", &pool("q", "198.51.100.0/24"));
    feed(&mut translator, "p", &with_status("192.0.2.0/24", 1));
    translator.snapshot();

    feed(&mut translator, "p", &with_status("198.51.100.0/24", 2));
    feed(&mut translator, "p", &with_status("198.51.100.0/24", 3));

    let after = translator.snapshot();
    assert_eq!(after.pools["p"].ranges[0].to_string(), "192.0.2.0-192.0.2.255");
    assert_eq!(after.pools["p"].observed.assigned_ipv4, 3);
}

#[test]
fn a_value_that_may_be_secret_stands_in_no_problem() {
    let peer = |said: &str| {
        format!(
            "apiVersion: ferrogate.io/v1beta1\nkind: BGPPeer\nmetadata: {{name: p}}\n\
             spec: {{myASN: 64500, peerASN: 64501, peerAddress: 192.0.2.1, {said}}}\n"
        )
    };
    let secret = |said: &str| format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n{said}\n");
    for text in [
        peer("password: 482915"),
        peer("password: [x-482915]"),
        peer("passwordSecret: x-482915"),
        secret("stringData: {password: 482915}"),
        secret("data: x-482915"),
    ] {
        let told = problems(&snapshot(&text)).join("\n");

        assert!(told.contains("assword") || told.contains("ata"), "the field is named: {told}");
        assert!(!told.contains("482915"), "{told}");
    }
}
