//! Whom connections are offered to that routers bring to the wrong node.

use super::{routers::routed, *};
use crate::speaker::{HAND_OVER_GRACE, NextHop, StrayRules};

/// The last that is told, if anything is.
fn told(actions: &[Action]) -> Option<&StrayRules> {
    let mut told = actions.iter().filter_map(|action| match action {
        Action::FollowStrays(rules) => Some(rules),
        _ => None,
    });
    told.next_back()
}

/// How another node is found on the link.
fn found(node: u8) -> Link {
    let (watch_ipv4, watch_ipv6) = (Some(([198, 51, 100, 10 + node].into(), 24)), Some(v6(&format!("fe80::{node}"))));
    let subnets = Some(vec![(ip("198.51.100.0"), 24)]);
    Link { watch_ipv4, watch_ipv6, mac: Some(mac(node)), subnets, ..wire_link("eth1") }
}

fn hear(stand: &mut Stand, node: u8) -> Vec<Action> {
    let word = Word { links: vec![found(node)], ..stand.word(node) };
    stand.receive(node, word)
}

/// Lets time pass while both others are heard.
fn pass(stand: &mut Stand, time: Duration) -> Vec<Action> {
    let end = stand.now + time;
    let mut actions = Vec::new();
    while stand.now < end {
        for node in [2, 3] {
            actions.extend(hear(stand, node));
        }
        actions.extend(only(stand.pass(INTERVAL.min(end - stand.now))));
    }
    actions
}

/// Node `k1` beside two others.
fn at_rest_on(data_path: DataPath, snapshot: Snapshot) -> Stand {
    let mut stand = Stand::started(data_path, snapshot);
    pass(&mut stand, DETECTION * 2);
    assert_eq!(told(&pass(&mut stand, DETECTION)), None);
    stand
}

fn at_rest(snapshot: Snapshot) -> Stand {
    at_rest_on(DataPath::Proxy, snapshot)
}

fn by(address: &str) -> NextHop {
    NextHop { address: ip(address), interface: interface(1).index }
}

fn web() -> Service {
    service("web", &["192.0.2.1", "2001:db8::1"])
}

#[test]
fn where_there_are_routers_strays_are_offered_to_all_others() {
    let mut stand = Stand::started(DataPath::Proxy, routed(3, [web()]));

    let actions = [hear(&mut stand, 2), hear(&mut stand, 3)].concat();

    let expected = StrayRules {
        addresses: [ip("192.0.2.1"), ip("2001:db8::1")].into_iter().collect(),
        next_hops: ["198.51.100.12", "198.51.100.13", "fe80::2", "fe80::3"].map(by).into(),
        offered_by: [mac(2), mac(3)].into(),
    };
    assert_eq!(told(&actions), Some(&expected));
    assert_eq!(told(&pass(&mut stand, DETECTION)), None);
}

#[test]
fn addresses_are_told_before_anybody_has_said_how_it_is_found() {
    let mut stand = Stand::new(DataPath::Proxy);
    let mut actions = stand.step(Event::Snapshot(Arc::new(routed(3, [web()]))));
    actions.extend(stand.step(Event::Interfaces(interfaces(1))));

    let rules = told(&actions).unwrap();
    assert_eq!((rules.addresses.len(), rules.offered_by.len()), (2, 0));
}

#[test]
fn without_routers_or_other_nodes_nothing_is_done_about_strays() {
    for facts in [snapshot(3, [web()]), routed(1, [web()])] {
        let mut stand = Stand::started(DataPath::Proxy, facts);
        assert_eq!(told(&pass(&mut stand, DETECTION)), None);
    }

    // Those that there were are gone.
    let mut stand = at_rest(routed(3, [web()]));
    let actions = stand.snapshot(&snapshot(3, [web()]));
    assert_eq!(told(&actions), Some(&StrayRules::default()));
    assert_eq!(told(&pass(&mut stand, DETECTION)), None);
}

#[test]
fn addresses_come_and_go_with_the_last_service_that_has_them() {
    let mut stand = at_rest(routed(3, [web()]));

    let other = service("other", &["192.0.2.1", "192.0.2.2"]);
    let actions = stand.snapshot(&routed(3, [web(), other.clone()]));
    assert_eq!(told(&actions).unwrap().addresses.len(), 3);

    let actions = stand.snapshot(&routed(3, [other]));
    assert_eq!(told(&actions).unwrap().addresses, [ip("192.0.2.1"), ip("192.0.2.2")].into_iter().collect());
    assert!(told(&stand.snapshot(&routed(3, []))).unwrap().addresses.is_empty());
}

#[test]
fn a_node_that_is_lost_is_asked_no_more() {
    let mut stand = at_rest(routed(3, [web()]));

    let mut actions = Vec::new();
    for _ in 0..6 {
        actions.extend(hear(&mut stand, 3));
        actions.extend(only(stand.pass(INTERVAL)));
    }

    assert_eq!(told(&actions).unwrap().next_hops, ["198.51.100.13", "fe80::3"].map(by).into());
    let back = hear(&mut stand, 2);
    assert_eq!(told(&back).unwrap().next_hops.len(), 4);
}

#[test]
fn a_node_whose_speaker_leaves_is_asked_on_where_the_proxy_goes_with_its_addresses_and_not_beside_kube_proxy() {
    for (data_path, asked) in [(DataPath::Proxy, None), (DataPath::KubeProxy, Some(2))] {
        let mut stand = at_rest_on(data_path, routed(3, [web()]));
        let leaving = Word { links: vec![found(2)], leaving: true, ..stand.word(2) };
        let actions = stand.receive(2, leaving);
        assert_eq!(told(&actions).map(|rules| rules.next_hops.len()), asked, "{data_path:?}");
    }
}

#[test]
fn who_is_not_known_to_be_on_a_link_of_this_node_is_not_asked() {
    let elsewhere = |link: Link| Link { subnets: Some(vec![(ip("10.9.0.0"), 24)]), ..link };
    let cases = [
        ("in another subnet", elsewhere(Link { watch_ipv4: Some((v4("10.9.0.2"), 24)), ..found(2) })),
        ("nobody knows where", Link { watch_ipv4: None, subnets: None, ..found(2) }),
    ];
    for (name, link) in cases {
        let mut stand = Stand::started(DataPath::Proxy, routed(2, [web()]));
        let word = Word { links: vec![link], ..stand.word(2) };
        let actions = stand.receive(2, word);
        let next_hops = &told(&actions).unwrap().next_hops;
        // Its Node object says where it is by IPv4.
        assert!(next_hops.iter().all(|next_hop| next_hop.address.is_ipv4()), "{name}: {next_hops:?}");
    }
}

#[test]
fn nobody_is_asked_where_there_are_too_many_and_that_is_told_once() {
    let most = u8::try_from(StrayRules::MAX_NODES).unwrap() + 1;
    let mut stand = Stand::started(DataPath::Proxy, routed(1, [web()]));
    let mut hear_all = |nodes: u8| {
        let mut actions = stand.snapshot(&routed(nodes, [web()]));
        for node in 2..=nodes {
            actions.extend(hear(&mut stand, node));
        }
        actions
    };
    let count = |actions: &[Action]| {
        let too_many = |report: &&&Report| matches!(report, Report::TooManyNodes { nodes: 17 });
        reports(actions).iter().filter(too_many).count()
    };

    let actions = hear_all(most);
    assert_eq!((count(&actions), told(&actions).unwrap().next_hops.len()), (0, 2 * StrayRules::MAX_NODES));
    let actions = hear_all(most + 1);
    assert_eq!((count(&actions), told(&actions).unwrap().next_hops.len()), (1, 0));
    let actions = hear_all(most + 1);
    assert_eq!(count(&actions), 0);
    let actions = hear_all(most);
    assert_eq!((count(&actions), told(&actions).unwrap().next_hops.len()), (0, 2 * StrayRules::MAX_NODES));
}

/// Node `k1` some time after it was excluded from load balancing, and the facts of that.
fn excluded() -> (Stand, Snapshot) {
    let mut stand = at_rest(routed(3, [web()]));
    stand.step(Event::ProxyReady(true));
    assert!(stand.speaker.host.needs(ip("192.0.2.1")));
    let mut facts = routed(3, [web()]);
    set_node(&mut facts, Node { labels: [(EXCLUDE_LABEL.to_owned(), String::new())].into(), ..node(1) });
    stand.snapshot(&facts);
    pass(&mut stand, HAND_OVER_GRACE * 2);
    assert!(!stand.speaker.host.needs(ip("192.0.2.1")) && stand.speaker.host.has(ip("192.0.2.1")));
    (stand, facts)
}

fn released(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Release { .. })).count()
}

#[test]
fn a_node_that_takes_no_more_keeps_addresses_for_its_connections() {
    let (mut stand, facts) = excluded();
    stand.snapshot(&routed(3, [web()]));
    stand.snapshot(&facts);
    assert_eq!(released(&pass(&mut stand, HAND_OVER_GRACE * 2)), 0);

    let mut actions = stand.step(Event::Shutdown);
    actions.extend(only(stand.pass(HAND_OVER_GRACE)));
    assert_eq!(released(&actions), 1, "it stops");
}

#[test]
fn it_keeps_them_no_longer_than_its_proxy_is_ready_or_anybody_brings_connections_back() {
    let (mut stand, _) = excluded();
    stand.step(Event::ProxyReady(false));
    assert_eq!(released(&pass(&mut stand, HAND_OVER_GRACE - INTERVAL)), 0);
    assert_eq!(released(&pass(&mut stand, INTERVAL * 2)), 1);

    let (mut stand, mut facts) = excluded();
    facts.bgp_peers.clear();
    stand.snapshot(&facts);
    assert_eq!(released(&pass(&mut stand, HAND_OVER_GRACE + INTERVAL)), 1);

    let (mut stand, mut facts) = excluded();
    facts.services.clear();
    assert_eq!(released(&stand.snapshot(&facts)), 1);

    // What is over soon changes nothing.
    let (mut stand, _) = excluded();
    stand.step(Event::ProxyReady(false));
    pass(&mut stand, HAND_OVER_GRACE / 2);
    stand.step(Event::ProxyReady(true));
    assert_eq!(released(&pass(&mut stand, HAND_OVER_GRACE * 2)), 0);
}
