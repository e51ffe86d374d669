//! What happens to connections that began at the former owner of an address.

use super::*;
use crate::speaker::{
    HAND_OVER_GRACE, NextHop, NotPassedOn, bfd,
    detours::{ANSWER_TIME, ASK_AGAIN, QUESTIONS},
};

const THIRD: &str = "192.0.2.30";
const OWN_V6: &str = "2001:db8::11";

fn wishes(services: &[&str], node: &str) -> Snapshot {
    let wished = |address: &&str| Service { wished_node: Some(node.into()), ..service(address, &[address]) };
    snapshot(3, services.iter().map(wished))
}

/// Node `k1` while `k2` owns these addresses, and has for a while.
fn second_to(data_path: DataPath, addresses: &[&str]) -> Stand {
    let mut stand = Stand::started(data_path, wishes(addresses, "k2"));
    stand.step(Event::ProxyReady(true));
    stand.hear(2);
    stand.hear(3);
    stand.pass_hearing(HAND_OVER_GRACE, &[2, 3]);
    assert!(addresses.iter().all(|address| !stand.owns(address)));
    stand
}

/// What is to be passed on, each time that is told.
fn passed_on(actions: &[Action]) -> Vec<Vec<(IpAddr, NextHop)>> {
    let told = actions.iter().filter_map(|action| match action {
        Action::PassOn(next_hops) => Some(next_hops.iter().map(|(address, next_hop)| (*address, *next_hop)).collect()),
        _ => None,
    });
    told.collect()
}

fn by(address: &str) -> NextHop {
    NextHop { address: ip(address), interface: interface(1).index }
}

/// Node `k2` says that it stops, which leaves its addresses to this node.
fn leave(stand: &mut Stand) -> Vec<Action> {
    let word = Word { leaving: true, ..stand.word(2) };
    stand.receive(2, word)
}

#[test]
fn n_079_what_began_at_an_owner_that_is_well_is_passed_on_to_it_before_anybody_is_told_of_the_move() {
    let mut stand = second_to(DataPath::KubeProxy, &[WON]);

    let actions = stand.snapshot(&wishes(&[WON], "k1"));

    assert_eq!(passed_on(&actions), [[(ip(WON), by("198.51.100.12"))]]);
    let pass_on = actions.iter().position(|action| matches!(action, Action::PassOn(_))).unwrap();
    let send = actions.iter().position(|action| matches!(action, Action::Send { .. })).unwrap();
    assert!(pass_on < send);
}

#[test]
fn n_079_it_is_passed_on_for_the_grace_time() {
    let mut stand = second_to(DataPath::Proxy, &[WON]);
    stand.snapshot(&wishes(&[WON], "k1"));

    assert_eq!(passed_on(&stand.pass_hearing(HAND_OVER_GRACE - INTERVAL, &[2, 3])), Vec::<Vec<_>>::new());
    assert_eq!(passed_on(&stand.pass_hearing(INTERVAL, &[2, 3])), [[]]);
}

#[test]
fn of_several_addresses_each_has_its_own_time() {
    let mut stand = second_to(DataPath::Proxy, &[WON, THIRD]);
    let mut facts = wishes(&[WON, THIRD], "k2");
    set_service(&mut facts, wishes(&[WON], "k1").services[&key(WON)].as_ref().clone());
    stand.snapshot(&facts);
    stand.pass_hearing(HAND_OVER_GRACE / 2, &[2, 3]);

    let both = [(ip(WON), by("198.51.100.12")), (ip(THIRD), by("198.51.100.12"))];
    let both = BTreeMap::from(both).into_iter().collect::<Vec<_>>();
    assert_eq!(passed_on(&stand.snapshot(&wishes(&[WON, THIRD], "k1"))), [both]);
    let actions = stand.pass_hearing(HAND_OVER_GRACE, &[2, 3]);
    assert_eq!(passed_on(&actions), [vec![(ip(THIRD), by("198.51.100.12"))], vec![]]);
}

#[test]
fn an_ipv6_address_is_passed_on_by_the_link_local_address_of_its_former_owner() {
    let mut stand = second_to(DataPath::KubeProxy, &[OWN_V6]);
    let there = Link { watch_ipv6: Some(v6("fe80::2")), ..wire_link("eth1") };
    let word = Word { links: vec![there], ..stand.word(2) };
    stand.receive(2, word);

    let actions = stand.snapshot(&wishes(&[OWN_V6], "k1"));

    assert_eq!(passed_on(&actions), [[(ip(OWN_V6), by("fe80::2"))]]);
}

#[test]
fn the_way_is_the_link_that_both_nodes_are_on_wherever_they_gossip() {
    let mut stand = second_to(DataPath::KubeProxy, &[WON]);
    let there = Link { watch_ipv4: Some((v4("198.51.100.77"), 24)), ..wire_link("eth1") };
    let word = Word { links: vec![there], ..stand.word(2) };
    stand.receive(2, word);

    assert_eq!(passed_on(&stand.snapshot(&wishes(&[WON], "k1"))), [[(ip(WON), by("198.51.100.77"))]]);
}

/// How `k2` is found on the link.
fn found() -> Link {
    let (watch_ipv4, watch_ipv6) = (Some((v4("198.51.100.12"), 24)), Some(v6("fe80::2")));
    Link { watch_ipv4, watch_ipv6, mac: Some(mac(2)), ..wire_link("eth1") }
}

/// Node `k1` where `k2` owns these addresses and says how it is found; so does `k3`, which cannot have them.
fn beside_owner(data_path: DataPath, addresses: &[&str]) -> Stand {
    let mut facts = snapshot(3, addresses.iter().map(|address| wished_at_k2(address)));
    let third = Node { labels: [(EXCLUDE_LABEL.to_owned(), String::new())].into(), ..node(3) };
    set_node(&mut facts, third);
    let mut stand = Stand::started(data_path, facts);
    stand.step(Event::ProxyReady(true));
    let begun = stand.now;
    while stand.now < begun + HAND_OVER_GRACE {
        hear_both(&mut stand);
        stand.pass(INTERVAL);
    }
    stand
}

fn hear_both(stand: &mut Stand) {
    let word = Word { links: vec![found()], ..stand.word(2) };
    stand.receive(2, word);
    hear_third(stand);
}

fn hear_third(stand: &mut Stand) -> Vec<Action> {
    let link = Link { watch_ipv4: Some((v4("198.51.100.13"), 24)), mac: Some(mac(3)), ..wire_link("eth1") };
    let word = Word { links: vec![link], ..stand.word(3) };
    stand.receive(3, word)
}

/// Node `k1` when the speaker of `k2`, which owned these addresses, has just been silent for too long, with what was done.
fn left_by_silence(data_path: DataPath, addresses: &[&str]) -> (Stand, Vec<Action>) {
    let mut stand = beside_owner(data_path, addresses);
    let mut actions = Vec::new();
    while !stand.owns(addresses[0]) {
        actions = hear_third(&mut stand);
        actions.extend(only(stand.pass(MS)));
    }
    (stand, actions)
}

fn wished_at_k2(address: &str) -> Service {
    Service { wished_node: Some("k2".into()), ..service(address, &[address]) }
}

/// What neighbours are asked, as it goes out.
fn questions(actions: &[Action]) -> Vec<Frame> {
    let asked = actions.iter().filter_map(|action| match action {
        Action::Send { frame: Frame::Arp(arp), .. } if arp.sender != arp.target => Some(Frame::Arp(arp.clone())),
        Action::Send { frame: frame @ Frame::Solicitation(_), .. } => Some(frame.clone()),
        _ => None,
    });
    asked.collect()
}

fn question() -> Frame {
    Frame::Arp(Arp::request(v4("198.51.100.12"), v4("198.51.100.11"), mac(1)))
}

fn arp_from(number: u8, sender: &str) -> Event {
    let arp = Arp { sender: v4(sender), ..Arp::probe(v4("198.51.100.11"), mac(number)) };
    Event::Arp { interface: "eth1".into(), arp }
}

fn not_passed_on(actions: &[Action]) -> Vec<(IpAddr, NotPassedOn)> {
    let told = actions.iter().filter_map(|action| match action {
        Action::Report(Report::NotPassedOn { address, why, .. }) => Some((*address, *why)),
        _ => None,
    });
    told.collect()
}

/// Lets time pass in which `k3` is heard, and `k2` answers each question or none.
fn pass_asking(stand: &mut Stand, time: Duration, answers: bool) -> Vec<Action> {
    let end = stand.now + time;
    let mut actions = Vec::new();
    while stand.now < end {
        let mut new = hear_third(stand);
        new.extend(only(stand.pass(MS)));
        if answers && !questions(&new).is_empty() {
            new.extend(stand.step(arp_from(2, "198.51.100.12")));
        }
        actions.extend(new);
    }
    actions
}

#[test]
fn an_owner_whose_speaker_is_silent_is_asked_twice_and_given_up_if_its_kernel_is_silent_too() {
    let (mut stand, actions) = left_by_silence(DataPath::KubeProxy, &[WON, THIRD]);

    let both = BTreeMap::from([(ip(WON), by("198.51.100.12")), (ip(THIRD), by("198.51.100.12"))]);
    assert_eq!(passed_on(&actions), [both.keys().map(|address| (*address, both[address])).collect::<Vec<_>>()]);
    assert_eq!(questions(&actions), [question()]);
    let actions = pass_asking(&mut stand, ANSWER_TIME * QUESTIONS - MS, false);
    assert_eq!((passed_on(&actions), not_passed_on(&actions)), (vec![], vec![]));
    assert_eq!(questions(&actions), [question()]);
    let actions = pass_asking(&mut stand, MS * 2, false);
    assert_eq!(passed_on(&actions), [[]]);
    let told: BTreeMap<_, _> = not_passed_on(&actions).into_iter().collect();
    assert_eq!(told, both.keys().map(|address| (*address, NotPassedOn::NoAnswer)).collect());
    assert_eq!(questions(&pass_asking(&mut stand, ASK_AGAIN * 2, false)), []);
}

#[test]
fn what_began_at_an_owner_whose_kernel_answers_is_passed_on_for_the_grace_time() {
    let (mut stand, actions) = left_by_silence(DataPath::Proxy, &[WON]);
    assert_eq!(questions(&actions), [question()]);
    stand.step(arp_from(2, "198.51.100.12"));

    let actions = pass_asking(&mut stand, HAND_OVER_GRACE - MS * 2, true);

    assert_eq!((passed_on(&actions), not_passed_on(&actions)), (vec![], vec![]));
    assert!(questions(&actions).len() >= 4, "{:?}", questions(&actions));
    let actions = pass_asking(&mut stand, MS * 3, true);
    assert_eq!((passed_on(&actions), not_passed_on(&actions)), (vec![vec![]], vec![]));
}

#[test]
fn an_owner_whose_kernel_answers_no_more_is_given_up_before_the_grace_is_over() {
    let (mut stand, _) = left_by_silence(DataPath::Proxy, &[WON]);
    pass_asking(&mut stand, ASK_AGAIN, true);
    stand.step(arp_from(2, "198.51.100.12"));

    let actions = pass_asking(&mut stand, ASK_AGAIN + ANSWER_TIME * (QUESTIONS + 1), false);

    assert_eq!((passed_on(&actions), not_passed_on(&actions)), (vec![vec![]], vec![(ip(WON), NotPassedOn::NoAnswer)]));
}

#[test]
fn whoever_is_not_the_former_owner_does_not_answer_for_it() {
    let (mut stand, _) = left_by_silence(DataPath::Proxy, &[WON]);

    // Another node at that address, the owner at another one, and the owner on another interface.
    stand.step(arp_from(3, "198.51.100.12"));
    stand.step(arp_from(2, "198.51.100.77"));
    let Event::Arp { arp, .. } = arp_from(2, "198.51.100.12") else { unreachable!() };
    stand.step(Event::Arp { interface: "eth9".into(), arp });

    let actions = pass_asking(&mut stand, ANSWER_TIME * (QUESTIONS + 1), false);
    assert_eq!(not_passed_on(&actions), [(ip(WON), NotPassedOn::NoAnswer)]);
}

#[test]
fn a_step_that_comes_late_does_not_take_an_answer_for_missing_that_is_still_to_be_read() {
    let (mut stand, _) = left_by_silence(DataPath::Proxy, &[WON]);

    let mut actions = Vec::new();
    for _ in 0..2 {
        stand.now += ANSWER_TIME * 10;
        actions.extend(stand.step(Event::Tick));
    }
    actions.extend(stand.step(arp_from(2, "198.51.100.12")));
    actions.extend(pass_asking(&mut stand, ASK_AGAIN / 2, false));

    assert_eq!((passed_on(&actions), not_passed_on(&actions)), (vec![], vec![]));
}

#[test]
fn by_ipv6_the_link_local_address_of_the_former_owner_is_asked() {
    let (mut stand, actions) = left_by_silence(DataPath::KubeProxy, &[OWN_V6]);

    let question = Solicitation::request(v6("fe80::2"), v6("fe80::1"), mac(1));
    assert_eq!(questions(&actions), [Frame::Solicitation(question.clone())]);
    let ndp = Ndp::Advertisement(Advertisement::answer(&question, mac(2)));
    stand.step(Event::Ndp { interface: "eth1".into(), ndp });
    assert_eq!(passed_on(&pass_asking(&mut stand, ASK_AGAIN - MS, false)), Vec::<Vec<_>>::new());
}

#[test]
fn an_owner_that_falls_silent_after_a_move_is_asked_and_not_given_up_at_once() {
    let mut stand = beside_owner(DataPath::Proxy, &[WON]);
    let mut facts = snapshot(3, [Service { wished_node: Some("k1".into()), ..service(WON, &[WON]) }]);
    set_node(&mut facts, Node { labels: [(EXCLUDE_LABEL.to_owned(), String::new())].into(), ..node(3) });
    let actions = stand.snapshot(&facts);
    assert_eq!((passed_on(&actions).len(), questions(&actions)), (1, vec![]));

    let actions = pass_asking(&mut stand, DETECTION * 2, true);

    assert_eq!((passed_on(&actions), not_passed_on(&actions)), (vec![], vec![]));
    assert_eq!(questions(&actions), [question()]);
}

#[test]
fn an_owner_whose_interface_is_found_dead_is_asked_though_its_words_come_by_another_way() {
    let mut stand = beside_owner(DataPath::KubeProxy, &[WON]);
    stand.step(Event::Watched { node: "k2".into(), interface: "eth1".into(), verdict: Verdict::Up });

    let mut actions =
        stand.step(Event::Watched { node: "k2".into(), interface: "eth1".into(), verdict: Verdict::Down });
    while !stand.owns(WON) {
        hear_both(&mut stand);
        actions.extend(only(stand.pass(MS)));
    }

    assert_eq!((passed_on(&actions).len(), questions(&actions)), (1, vec![question()]));
}

#[test]
fn an_address_that_goes_on_to_another_is_asked_about_no_more() {
    let (mut stand, _) = left_by_silence(DataPath::KubeProxy, &[WON]);
    let mut facts = snapshot(3, [Service { wished_node: Some("k3".into()), ..service(WON, &[WON]) }]);

    let mut actions = stand.snapshot(&facts);
    actions.extend(pass_asking(&mut stand, ANSWER_TIME * 4, false));

    assert_eq!((passed_on(&actions), not_passed_on(&actions), questions(&actions)), (vec![vec![]], vec![], vec![]));
    // Nor is anything left of it when it comes back.
    set_service(&mut facts, Service { wished_node: Some("k1".into()), ..service(WON, &[WON]) });
    assert_eq!(questions(&stand.snapshot(&facts)), []);
}

#[test]
fn an_owner_that_says_it_has_lost_the_link_is_not_asked_by_another() {
    let mut stand = beside_owner(DataPath::KubeProxy, &[WON]);
    let elsewhere =
        Link { watch_ipv4: Some((v4("10.0.0.2"), 24)), subnets: Some(vec![(ip("10.0.0.0"), 24)]), ..wire_link("eth9") };
    let word = Word { links: vec![elsewhere], ..stand.word(2) };

    let actions = stand.receive(2, word);

    assert!(stand.owns(WON));
    assert_eq!(not_passed_on(&actions), [(ip(WON), NotPassedOn::NotOnLink)]);
    assert_eq!((passed_on(&actions), questions(&actions)), (vec![], vec![]));
}

/// Interfaces need not have the same name on each node, and without BFD they tell no address.
#[test]
fn the_link_is_known_by_its_subnet_where_names_differ() {
    let facts = |node: &str| wishes(&[WON], node);
    let subnets = Some(vec![(ip("198.51.100.0"), 24), (ip("192.0.2.0"), 24)]);
    for (bfd, watch_ipv4) in [(None, None), (Some(bfd::Settings::DEFAULT), Some((v4("198.51.100.12"), 24)))] {
        let mut stand = Stand::with(Config { bfd, ..Config::new("k1".into(), DataPath::KubeProxy, 1) });
        stand.snapshot(&facts("k2"));
        stand.step(Event::Interfaces(interfaces(1)));
        let link = Link { watch_ipv4, subnets: subnets.clone(), ..wire_link("ens3") };
        for _ in 0..10 {
            let word = Word { links: vec![link.clone()], ..stand.word(2) };
            stand.receive(2, word);
            stand.hear(3);
            stand.pass(INTERVAL);
        }

        let actions = stand.snapshot(&facts("k1"));

        assert_eq!(passed_on(&actions), [[(ip(WON), by("198.51.100.12"))]], "{bfd:?}");
    }
}

#[test]
fn a_speaker_that_begins_anew_has_taken_the_address_off_its_host_where_the_proxy_carries_the_traffic() {
    let gone = (vec![vec![]], vec![(ip(WON), NotPassedOn::Released)]);
    for (data_path, expected) in [(DataPath::Proxy, gone), (DataPath::KubeProxy, (vec![], vec![]))] {
        let (mut stand, _) = left_by_silence(data_path, &[WON]);
        stand.step(arp_from(2, "198.51.100.12"));
        let word = Word { life: 2, leaving: true, ..stand.word(2) };

        let actions = stand.receive(2, word);

        assert_eq!((passed_on(&actions), not_passed_on(&actions)), expected, "{data_path:?}");
    }
}

#[test]
fn nothing_is_passed_on_where_the_former_owner_is_on_no_link_of_this_node() {
    let far = Node { internal_addresses: vec![ip("10.0.0.2")], ..node(2) };
    let with = |node| {
        let mut facts = wishes(&[WON], node);
        set_node(&mut facts, far.clone());
        facts
    };
    let mut stand = Stand::started(DataPath::KubeProxy, with("k2"));

    let actions = stand.snapshot(&with("k1"));

    assert!(stand.owns(WON));
    assert_eq!(passed_on(&actions), Vec::<Vec<_>>::new());
    assert_eq!(not_passed_on(&actions), [(ip(WON), NotPassedOn::NoSharedLink)]);
}

#[test]
fn nothing_is_passed_on_any_more_once_the_address_has_gone_back() {
    let mut stand = second_to(DataPath::KubeProxy, &[WON]);
    stand.snapshot(&wishes(&[WON], "k1"));

    assert_eq!(passed_on(&stand.snapshot(&wishes(&[WON], "k2"))), [[]]);
}

#[test]
fn a_node_whose_speaker_has_stopped_goes_on_for_the_grace_time_where_kube_proxy_carries_the_traffic() {
    let mut stand = second_to(DataPath::KubeProxy, &[WON]);
    let with = |node| snapshot(2, [Service { wished_node: Some(node), ..service(WON, &[WON]) }]);
    stand.snapshot(&with("k2".into()));

    assert_eq!(passed_on(&leave(&mut stand)), [[(ip(WON), by("198.51.100.12"))]]);
    assert_eq!(passed_on(&only(stand.pass(HAND_OVER_GRACE - MS))), Vec::<Vec<_>>::new());
    assert_eq!(passed_on(&only(stand.pass(MS))), [[]]);
}

#[test]
fn a_node_whose_speaker_has_stopped_has_taken_the_address_off_its_host_where_the_proxy_carries_the_traffic() {
    let mut stand = second_to(DataPath::Proxy, &[WON]);
    let with = |node| snapshot(2, [Service { wished_node: Some(node), ..service(WON, &[WON]) }]);
    stand.snapshot(&with("k2".into()));

    assert_eq!(passed_on(&leave(&mut stand)), [[(ip(WON), by("198.51.100.12"))]]);
    let actions = only(stand.pass(DETECTION * 2));
    assert_eq!((passed_on(&actions), not_passed_on(&actions)), (vec![vec![]], vec![(ip(WON), NotPassedOn::Released)]));
}

#[test]
fn a_speaker_that_has_just_started_goes_by_what_is_reported() {
    let mut facts = wishes(&[WON], "k1");
    facts.announced_by.insert(key(WON), Arc::new(BTreeMap::from([("k2".into(), status(3))])));

    let mut stand = Stand::new(DataPath::KubeProxy);
    let mut actions = stand.snapshot(&facts);
    actions.extend(stand.step(Event::Interfaces(interfaces(1))));

    assert!(stand.owns(WON));
    assert_eq!(passed_on(&actions), [[(ip(WON), by("198.51.100.12"))]]);
}

/// Of what stands at `k1` from before, its kernel knows no more than of what began at `k2`.
#[test]
fn where_the_proxy_carries_the_traffic_an_owner_that_comes_back_passes_on_for_no_longer_than_a_request_takes() {
    let mut facts = wishes(&[WON], "k1");
    facts.announced_by.insert(key(WON), Arc::new(BTreeMap::from([("k2".into(), status(3))])));
    let mut stand = Stand::started(DataPath::Proxy, facts);
    let mut actions = stand.step(Event::ProxyReady(true));
    actions.extend(stand.pass_hearing(INTERVAL * 10, &[2, 3]));
    assert_eq!(passed_on(&actions), [vec![(ip(WON), by("198.51.100.12"))], vec![]]);

    let mut stand = second_to(DataPath::Proxy, &[WON]);
    stand.snapshot(&wishes(&[WON], "k1"));
    stand.snapshot(&wishes(&[WON], "k2"));
    let mut actions = stand.snapshot(&wishes(&[WON], "k1"));
    actions.extend(stand.pass_hearing(INTERVAL * 10, &[2, 3]));
    assert_eq!(passed_on(&actions), [vec![(ip(WON), by("198.51.100.12"))], vec![]]);
}
