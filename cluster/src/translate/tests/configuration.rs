//! What of the configuration stands beside each other, and what stays when somebody makes a mistake.

use ferrogate_core::model::{
    community::Community,
    peer::{BgpPeer, PeerAsn},
};

use super::*;

/// The peer of a text in which nothing is wrong.
fn the_peer(more: &str) -> Arc<BgpPeer> {
    let snapshot = snapshot(&peer("tor", "192.0.2.1", more));
    assert_eq!(mistakes(&snapshot), Vec::<String>::new());
    snapshot.bgp_peers.values().next().expect("it stands").clone()
}

/// What is wrong, beside that BGP comes later.
fn mistakes(snapshot: &Snapshot) -> Vec<String> {
    let all = snapshot.problems.values().flatten();
    all.filter(|problem| !matches!(problem.fault, Fault::NotYet { .. })).map(Problem::to_string).collect()
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
    let mut all = mistakes(&snapshot(&format!("{text}{}{}", two[0], two[1])));
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

    assert_eq!((peer.my_asn.get(), peer.local_asn.map(|asn| asn.get())), (64_500, Some(64_510)));
    assert!(matches!(peer.peer_asn, PeerAsn::Fixed(asn) if asn.get() == 64_501));
    assert_eq!((peer.port.get(), peer.connect_time), (1_179, Some(Duration::from_secs(10))));
    assert_eq!(peer.router_id.map(|id| id.to_string()).as_deref(), Some("192.0.2.8"));
    assert!(peer.graceful_restart && peer.multi_hop && peer.dual_stack);
    assert!(!format!("{peer:?}").contains("secret"), "{peer:?}");
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
        assert_eq!(mistakes(&snapshot(&text)), Vec::<String>::new(), "{addresses} {spec}");
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
        mistakes(&snapshot),
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
        assert_eq!(mistakes(&snapshot(&text)), Vec::<String>::new());
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
    assert!(mistakes(&shared)[0].contains("192.0.2.1 is already the place of BGPPeer a on node n"));
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
    assert!(mistakes(&unknown)[0].contains("spec.communities: Community \"red\" does not exist"));
    assert!(of(&known).unknown_aliases.is_empty() && mistakes(&known).is_empty());
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
        assert!(mistakes(&after)[0].contains(&said), "{:?}", mistakes(&after));
        feed(&mut translator, "other", &pool(other, "198.51.100.0/24"));
        let mended = translator.snapshot();
        assert_eq!(mistakes(&mended), Vec::<String>::new());
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
    assert_eq!(mistakes(&after), Vec::<String>::new());
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
    assert_eq!(mistakes(&after).len(), 2, "{:?}", mistakes(&after));
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
