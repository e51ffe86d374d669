//! Who watches whom by BFD.

use ferrogate_wire::{
    bfd::{Diagnostic, State},
    gossip::Statement,
};

use super::*;
use crate::speaker::{
    Watch,
    bfd::{
        Change, Settings,
        sessions::{Neighbor, Path, Wanted},
    },
};

/// `k1` comes after `k2`.
const AFTER_K2: [&str; 2] = [SECOND, "2001:db8::3"];
/// `k1` comes after `k3`.
pub(super) const AFTER_K3: &str = "192.0.2.11";

/// The interface of a node that serves; its words come from another address.
pub(super) fn watch_link(node: u8) -> Link {
    Link {
        watch_ipv4: Some((Ipv4Addr::new(198, 51, 100, 110 + node), 24)),
        watch_ipv6: Some(link_local(node)),
        ..wire_link("eth1")
    }
}

pub(super) fn link_local(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, node.into())
}

pub(super) fn path(node: u8) -> Path {
    Path {
        remote: IpAddr::from([198, 51, 100, 110 + node]),
        local: ip("198.51.100.11"),
        interface: Some("eth1".into()),
        vrf: None,
    }
}

fn path6(node: u8) -> Path {
    Path { remote: link_local(node).into(), local: link_local(1).into(), interface: Some("eth1".into()), vrf: None }
}

/// The last [`Action::Watch`].
pub(super) fn watch(actions: &[Action]) -> Option<Watch> {
    let mut watches = actions.iter().rev().filter_map(|action| match action {
        Action::Watch(watch) => Some(watch.clone()),
        _ => None,
    });
    watches.next()
}

fn sessions(watch: Option<&Watch>) -> Vec<Path> {
    watch.into_iter().flat_map(|watch| watch.wanted.sessions.keys().cloned()).collect()
}

impl Stand {
    fn hear_links(&mut self, node: u8, links: Vec<Link>) -> Vec<Action> {
        let word = Word { links, ..self.word(node) };
        self.receive(node, word)
    }

    /// An interval in which `k3` says that the interface of `k2` is dead.
    fn hear_accused(&mut self, number: u32) -> Vec<Action> {
        let word = Word { accuses: vec![accusation(number)], links: vec![watch_link(3)], ..self.word(3) };
        let mut actions = self.receive(3, word);
        actions.extend(self.hear_links(2, vec![watch_link(2)]));
        actions.extend(only(self.pass(INTERVAL)));
        actions
    }

    fn hear_from_k2(&mut self, accuses: Vec<Statement>, vouches: Vec<Statement>) -> Vec<Action> {
        let word = Word { accuses, vouches, links: vec![watch_link(2)], ..self.word(2) };
        self.receive(2, word)
    }

    fn see(&mut self, node: u8, verdict: Verdict) -> Vec<Action> {
        let node = format!("k{node}").as_str().into();
        self.step(Event::Watched { node, interface: "eth1".into(), verdict })
    }
}

/// That the interface of `k2` is dead, or with 0 that somebody else is to look.
pub(super) fn accusation(number: u32) -> Statement {
    Statement { node: tag("k2"), interface: Some("eth1".to_owned()), number }
}

/// `k1` with these Services among three nodes, and everything it did to get there.
fn meeting(services: impl IntoIterator<Item = Service>) -> (Stand, Vec<Action>) {
    meeting_with(Config::new("k1".into(), DataPath::KubeProxy, 1), services)
}

fn meeting_with(config: Config, services: impl IntoIterator<Item = Service>) -> (Stand, Vec<Action>) {
    let mut stand = Stand::with(config);
    let mut actions = stand.snapshot(&snapshot(3, services));
    actions.extend(stand.step(Event::Interfaces(interfaces(1))));
    for node in [2, 3] {
        actions.extend(stand.hear_links(node, vec![watch_link(node)]));
    }
    (stand, actions)
}

#[test]
fn next_in_line_watches_the_owner_once_whatever_the_number_of_addresses() {
    let names = AFTER_K2.iter().enumerate();
    let services = names.map(|(number, address)| service(&format!("s{number}"), &[address]));

    let (_, actions) = meeting(services);

    assert_eq!(sessions(watch(&actions).as_ref()), [path(2)]);
}

#[test]
fn every_speaker_on_the_link_may_watch_this_node_by_either_family() {
    let (_, actions) = meeting([service("won", &[WON])]);

    let wanted = watch(&actions).unwrap().wanted;
    let neighbors = [2, 3].into_iter().flat_map(|node| [path(node).remote, path6(node).remote]);
    let permitted = neighbors.map(|remote| (Neighbor { remote, interface: "eth1".into() }, Settings::DEFAULT));
    assert_eq!(wanted, Wanted { sessions: BTreeMap::new(), permitted: permitted.collect() });
}

#[test]
fn a_node_that_could_announce_nothing_watches_nobody_and_answers_nobody() {
    let (_, actions) = meeting([]);

    assert_eq!(watch(&actions), None);
}

#[test]
fn the_session_goes_by_ipv4_within_one_subnet_and_else_by_link_local_addresses() {
    let on = |address: &str, length| Some((v4(address), length));
    let link = watch_link(2);
    for (link, expected) in [
        (link.clone(), Some(path(2))),
        (Link { watch_ipv4: on("198.51.100.112", 8), ..link.clone() }, Some(path(2))),
        (Link { watch_ipv4: on("198.51.100.200", 25), ..link.clone() }, Some(path6(2))),
        (Link { watch_ipv4: on("203.0.113.12", 24), ..link.clone() }, Some(path6(2))),
        (Link { watch_ipv4: on("198.51.100.11", 24), ..link.clone() }, Some(path6(2))),
        (Link { watch_ipv4: on("198.51.100.12", 32), ..link.clone() }, Some(path6(2))),
        (Link { watch_ipv4: None, ..link.clone() }, Some(path6(2))),
        (Link { watch_ipv4: on("203.0.113.12", 24), watch_ipv6: None, ..link.clone() }, None),
        // Made up of the same bits, it cannot be told from ours.
        (Link { watch_ipv4: None, watch_ipv6: Some(link_local(1)), ..link.clone() }, None),
        (Link { watch_ipv4: None, watch_ipv6: None, ..link }, None),
    ] {
        let (mut stand, mut actions) = meeting([service("second", &[SECOND])]);

        actions.extend(stand.hear_links(2, vec![link.clone()]));

        assert_eq!(sessions(watch(&actions).as_ref()), Vec::from_iter(expected), "{link:?}");
    }
}

#[test]
fn each_interface_that_the_owner_announces_on_is_watched_from_where_it_is_a_neighbour() {
    let (mut stand, mut actions) = meeting([service("second", &[SECOND])]);
    let mut own = interfaces(3);
    own.get_mut("eth3").unwrap().addresses.insert(0, "203.0.113.11/24".parse().unwrap());
    actions.extend(stand.step(Event::Interfaces(own)));
    let second = Link { name: "lan".to_owned(), watch_ipv4: Some((v4("203.0.113.12"), 24)), ..watch_link(2) };
    let no_family = Link { name: "nothing".to_owned(), ipv4: false, ipv6: false, ..watch_link(2) };

    actions.extend(stand.hear_links(2, vec![watch_link(2), second, no_family]));

    let lan = Path { remote: ip("203.0.113.12"), local: ip("203.0.113.11"), interface: Some("eth3".into()), vrf: None };
    assert_eq!(sessions(watch(&actions).as_ref()), [path(2), lan]);
}

#[test]
fn interfaces_that_the_advertisement_leaves_out_are_not_watched() {
    let mut facts = snapshot(3, [service("second", &[SECOND])]);
    set_advertisement(&mut facts, L2Advertisement { interfaces: names(&["eth1", "eth9"]), ..advertisement() });
    let (mut stand, mut actions) = meeting([]);

    actions.extend(stand.snapshot(&facts));
    let links = ["eth1", "eth2"].map(|name| Link { name: name.to_owned(), ..watch_link(2) });
    actions.extend(stand.hear_links(2, links.into()));

    assert_eq!(watch(&actions).unwrap().wanted.sessions.len(), 1);
}

#[test]
fn with_the_owner_the_watched_one_changes() {
    let (mut stand, actions) = meeting([service("second", &[SECOND])]);
    assert_eq!(sessions(watch(&actions).as_ref()), [path(2)]);

    let actions = stand.snapshot(&snapshot(3, [service("second", &[AFTER_K3])]));
    assert_eq!(sessions(watch(&actions).as_ref()), [path(3)]);

    let actions = stand.snapshot(&snapshot(3, [service("second", &[WON])]));
    assert_eq!(watch(&actions).unwrap().wanted.sessions, BTreeMap::new());
}

#[test]
fn without_a_change_of_who_is_watched_nothing_is_said() {
    let (mut stand, _) = meeting([service("second", &[SECOND])]);

    let more = [service("second", &[SECOND]), service("third", &[AFTER_K2[1]])];
    let actions = [stand.snapshot(&snapshot(3, more)), stand.pass_hearing(INTERVAL, &[])].concat();

    assert_eq!(watch(&actions), None);
}

#[test]
fn switched_off_it_watches_nobody_and_tells_others_not_to() {
    let config = Config { bfd: None, ..Config::new("k1".into(), DataPath::KubeProxy, 1) };

    let (_, actions) = meeting_with(config, [service("second", &[SECOND])]);

    assert_eq!(watch(&actions), None);
    let links = words(&actions).last().unwrap().links.clone();
    let places: Vec<_> = links.iter().map(|link| (&*link.name, link.watch_ipv4, link.watch_ipv6)).collect();
    assert_eq!(places, [("eth1", None, None)]);
}

#[test]
fn who_still_sees_what_another_finds_dead_goes_on_watching_and_says_so() {
    let (mut stand, _) = meeting([service("second", &[SECOND])]);
    stand.see(2, Verdict::Up);

    let first = stand.hear_accused(1);
    assert!(stand.owns(SECOND));
    assert_eq!(watch(&first), None);
    let later: Vec<Action> = (0..4).flat_map(|_| stand.hear_accused(1)).collect();

    assert!(!stand.owns(SECOND));
    assert_eq!(watch(&later), None);
    assert_eq!(words(&later).last().unwrap().vouches, [accusation(1)]);
}

/// Of two nodes each finds the other's interface dead, and that of this one counts as dead for both.
fn mutual() -> Stand {
    let mut stand = Stand::with(Config::new("k1".into(), DataPath::KubeProxy, 1));
    stand.snapshot(&snapshot(2, [service("second", &[SECOND])]));
    stand.step(Event::Interfaces(interfaces(1)));
    stand.hear_links(2, vec![watch_link(2)]);
    stand.see(2, Verdict::Up);
    stand.see(2, Verdict::Down);
    for _ in 0..4 {
        stand.hear_from_k2(vec![own_accused()], Vec::new());
        stand.pass(INTERVAL);
    }
    assert!(!stand.owns(SECOND), "of two that accuse each other {:?} stays", tag("k2"));
    stand
}

/// That the interface of `k1` is dead.
fn own_accused() -> Statement {
    Statement { node: tag("k1"), ..accusation(1) }
}

#[test]
fn whoever_takes_back_what_it_said_of_this_node_is_not_dead_by_what_this_node_says_of_it() {
    let mut stand = mutual();

    stand.hear_from_k2(Vec::new(), vec![accusation(1)]);
    assert!(!stand.owns(SECOND));
    // That was the answer to this accusation, and to no later one.
    stand.see(2, Verdict::Up);
    stand.see(2, Verdict::Down);
    assert!(stand.owns(SECOND));

    let mut stand = mutual();
    stand.hear_from_k2(Vec::new(), Vec::new());
    assert!(stand.owns(SECOND), "it takes nothing back by forgetting what it said");
}

#[test]
fn this_node_answers_for_its_own_interface_when_it_sees_its_accuser_again() {
    let mut stand = mutual();
    let says_after = |stand: &mut Stand, accuses: &[Statement]| {
        let actions = [stand.hear_from_k2(accuses.to_vec(), Vec::new()), only(stand.pass(INTERVAL))].concat();
        words(&actions).last().copied().cloned().unwrap()
    };
    let elsewhere = Statement { interface: Some("eth2".to_owned()), ..own_accused() };
    says_after(&mut stand, &[own_accused(), elsewhere.clone()]);
    stand.see(2, Verdict::Up);

    // Of another interface nothing was seen.
    let word = says_after(&mut stand, &[own_accused(), elsewhere]);
    assert_eq!((&word.accuses[..], &word.vouches[..]), (&[][..], &[own_accused()][..]));

    // Another accusation is not answered by what was seen before it, though it has the same number.
    assert_eq!(says_after(&mut stand, &[]).vouches, []);
    assert_eq!(says_after(&mut stand, &[own_accused()]).vouches, []);
    stand.see(2, Verdict::Down);
    stand.see(2, Verdict::Up);
    assert_eq!(says_after(&mut stand, &[own_accused()]).vouches, [own_accused()]);
    assert_eq!(says_after(&mut stand, &[Statement { number: 2, ..own_accused() }]).vouches, []);

    // Nor is one by whoever was never lost from sight.
    let (mut stand, _) = meeting([service("second", &[SECOND])]);
    says_after(&mut stand, &[own_accused()]);
    stand.see(2, Verdict::Up);
    assert_eq!(says_after(&mut stand, &[own_accused()]).vouches, []);
}

/// Else nobody could tell whose way is lost, that of the accused or that of the one who accuses.
#[test]
fn whoever_is_not_next_in_line_looks_too_where_another_finds_an_interface_dead() {
    let (mut stand, before) = meeting([service("won", &[WON])]);
    assert_eq!(sessions(watch(&before).as_ref()), []);

    let actions = stand.hear_accused(1);

    assert_eq!(sessions(watch(&actions).as_ref()), [path(2)]);
}

/// Else it would be dead again, be looked at again, and its addresses would move each time: a session that flaps is held
/// down, and accuses, for up to a minute.
#[test]
fn whoever_sees_what_another_finds_dead_goes_on_while_that_one_says_so_though_it_does_not_come_next() {
    let (mut stand, _) = meeting([service("won", &[WON])]);
    stand.hear_accused(1);
    stand.see(2, Verdict::Up);

    let meanwhile: Vec<Action> = (0..20).flat_map(|_| stand.hear_accused(1)).collect();
    assert_eq!(watch(&meanwhile), None);
    assert_eq!(words(&meanwhile).last().unwrap().vouches, [accusation(1)]);

    let word = Word { links: vec![watch_link(3)], ..stand.word(3) };
    let after = stand.receive(3, word);
    assert_eq!(sessions(watch(&after).as_ref()), []);
    assert!(watch(&after).is_some());
}

/// Else whoever answers for this node could do so no longer once it has, and addresses would move each time. It was found by
/// `sim::chaos::run_by_leases`.
#[test]
fn this_node_closes_no_session_by_which_others_may_see_an_interface_that_is_said_to_be_dead() {
    for is_accuser_lost in [false, true] {
        let (mut stand, _) = meeting([service("second", &[SECOND])]);
        stand.see(2, Verdict::Up);
        let says = |stand: &mut Stand, accuses| {
            let word = Word { accuses, links: vec![watch_link(3)], ..stand.word(3) };
            let mut actions = stand.receive(3, word);
            actions.extend(stand.hear_from_k2(Vec::new(), vec![own_accused()]));
            actions
        };
        says(&mut stand, vec![own_accused()]);

        // It does not come next any more.
        let mut meanwhile = stand.snapshot(&snapshot(3, [service("second", &[WON])]));
        meanwhile.extend(says(&mut stand, vec![own_accused()]));
        assert_eq!(watch(&meanwhile), None);

        let mut after = Vec::new();
        if is_accuser_lost {
            let mut wait = |intervals| {
                for _ in 0..intervals {
                    after.extend(stand.hear_from_k2(Vec::new(), vec![own_accused()]));
                    after.extend(only(stand.pass(INTERVAL)));
                }
                watch(&after)
            };
            assert_eq!(wait(5), None, "others may have heard it later");
            wait(2);
        } else {
            after.extend(says(&mut stand, Vec::new()));
        }
        assert_eq!(sessions(watch(&after).as_ref()), []);
        assert!(watch(&after).is_some(), "the accuser is lost: {is_accuser_lost}");
    }
}

#[test]
fn a_session_that_was_up_before_it_was_wanted_can_go_down() {
    let (mut stand, actions) = meeting([service("second", &[SECOND])]);
    let watch = watch(&actions).unwrap();

    for _ in 0..2 {
        for event in watch.standing(&[path(2)]) {
            stand.step(event);
        }
    }
    stand.see(2, Verdict::Down);

    assert!(stand.owns(SECOND));
}

#[test]
fn who_hears_words_from_an_interface_answers_for_it_unwatched() {
    let (mut stand, _) = meeting([service("won", &[WON])]);
    let own = Link { watch_ipv4: Some((v4("198.51.100.12"), 24)), ..watch_link(2) };

    let before = stand.hear_accused(1);
    assert_eq!(words(&before).last().unwrap().vouches, []);
    let after = [stand.hear_links(2, vec![own]), only(stand.pass(INTERVAL))].concat();
    assert_eq!(words(&after).last().unwrap().vouches, [accusation(1)]);

    let silent = only(stand.pass(DETECTION));
    assert_eq!(words(&silent).last().unwrap().vouches, []);
}

#[test]
fn words_from_an_address_that_is_not_told_answer_for_the_only_interface_in_its_subnet() {
    let near = |name: &str| {
        let subnets = Some(vec![(ip("198.51.100.0"), 24)]);
        Link { name: name.to_owned(), watch_ipv4: None, subnets, ..watch_link(2) }
    };
    let first = watch_link(2).name;
    for (links, expected) in [
        (vec![near(&first)], vec![accusation(1)]),
        (vec![near(&first), near("other")], vec![]),
        (vec![Link { subnets: None, ..near(&first) }], vec![]),
    ] {
        let (mut stand, _) = meeting([service("won", &[WON])]);
        stand.hear_accused(1);

        let actions = [stand.hear_links(2, links), only(stand.pass(INTERVAL))].concat();

        assert_eq!(words(&actions).last().unwrap().vouches, expected);
    }
}

#[test]
fn what_nobody_else_can_serve_stays_where_it_is_though_its_interface_is_found_dead() {
    let (mut stand, _) = meeting([local("mine", &[WON], &["k1"]), service("any", &["192.0.2.12"])]);
    assert!(stand.owns(WON) && stand.owns("192.0.2.12"));
    let dead = Statement { node: tag("k1"), interface: Some("eth1".to_owned()), number: 1 };
    for _ in 0..4 {
        let word = Word { accuses: vec![dead.clone()], links: vec![watch_link(3)], ..stand.word(3) };
        stand.receive(3, word);
        stand.hear_links(2, vec![watch_link(2)]);
        stand.pass(INTERVAL);
    }

    assert!(stand.owns(WON) && !stand.owns("192.0.2.12"));
}

#[test]
fn whoever_was_found_dead_is_watched_until_it_is_seen_again_though_another_is_ahead_now() {
    let (mut stand, _) = meeting([service("second", &[SECOND])]);
    stand.see(2, Verdict::Up);
    stand.pass(MS * 20);
    assert!(!stand.owns(SECOND));

    let actions = stand.see(2, Verdict::Down);
    assert!(stand.owns(SECOND));
    assert_eq!(watch(&actions), None);
    assert_eq!(words(&actions).last().unwrap().accuses.len(), 1);

    let actions = stand.see(2, Verdict::Up);
    assert!(!stand.owns(SECOND));
    assert_eq!(watch(&actions), None);
}

/// Whom proxies are told to miss, one time after the other.
fn missed(actions: &[Action]) -> Vec<BTreeSet<NodeName>> {
    let told = actions.iter().filter_map(|action| match action {
        Action::Write(Write::Membership { unreachable, .. }) => Some(unreachable.clone()),
        _ => None,
    });
    told.collect()
}

/// A proxy that waited for the detection time of words would give requests to a node that is cut off.
#[test]
fn a_node_whose_interface_is_found_dead_is_missed_until_its_next_word() {
    let (mut stand, _) = meeting([service("second", &[SECOND])]);
    stand.see(2, Verdict::Up);

    let dead = stand.see(2, Verdict::Down);
    let heard = stand.hear_links(2, vec![watch_link(2)]);
    let silent = only(stand.pass(DETECTION * 2));

    assert_eq!(missed(&dead), [BTreeSet::from(["k2".into()])]);
    assert_eq!(missed(&heard), [BTreeSet::new()]);
    assert_eq!(missed(&silent).last(), Some(&BTreeSet::from(["k2".into(), "k3".into()])));
}

#[test]
fn a_node_whose_interface_another_finds_dead_is_missed_too_until_its_next_word() {
    let (mut stand, _) = meeting([service("won", &[WON])]);

    let actions = stand.hear_accused(1);

    assert_eq!(missed(&actions), [BTreeSet::from(["k2".into()]), BTreeSet::new()]);
}

#[test]
fn a_session_that_is_wanted_no_more_is_no_witness() {
    let (mut stand, _) = meeting([service("second", &[SECOND])]);
    stand.see(2, Verdict::Up);

    stand.snapshot(&snapshot(3, [service("second", &[WON])]));
    // It was under way when that was decided.
    stand.see(2, Verdict::Up);
    let said: Vec<Action> = (0..4).flat_map(|_| stand.hear_accused(1)).collect();

    assert_eq!(words(&said).last().unwrap().vouches, []);
}

/// It may have been one only because of what it answers, and would be one again as soon as it stopped.
#[test]
fn a_witness_that_is_no_candidate_any_more_goes_on_for_as_long_as_it_is_needed() {
    let (mut stand, mut actions) = meeting([service("won", &[WON])]);
    actions.extend(stand.hear_accused(1));
    assert_eq!(sessions(watch(&actions).as_ref()), [path(2)]);
    stand.see(2, Verdict::Up);

    let mut actions = stand.snapshot(&snapshot(3, [local("won", &[WON], &["k2"])]));
    actions.extend(stand.hear_accused(1));
    assert_eq!(watch(&actions), None);

    let actions = stand.hear_links(3, vec![watch_link(3)]);
    assert_eq!(watch(&actions), Some(Watch::default()));
}

#[test]
fn the_accused_answers_whoever_looks_though_it_is_no_candidate() {
    let (mut stand, _) = meeting([local("won", &[WON], &["k2"])]);
    let dead = Statement { node: tag("k1"), interface: Some("eth1".to_owned()), number: 1 };

    let word = Word { accuses: vec![dead], links: vec![watch_link(3)], ..stand.word(3) };
    let actions = stand.receive(3, word);

    let permitted = watch(&actions).unwrap().wanted.permitted;
    assert!(permitted.keys().any(|neighbor| neighbor.remote == path(3).remote), "{permitted:?}");
}

#[test]
fn a_stopping_owner_is_watched_no_more_and_a_stopping_speaker_ends_all_sessions() {
    let (mut stand, _) = meeting([service("second", &[SECOND])]);
    stand.see(2, Verdict::Up);

    let leaving = Word { leaving: true, links: vec![watch_link(2)], ..stand.word(2) };
    let actions = stand.receive(2, leaving);
    assert_eq!(watch(&actions).unwrap().wanted.sessions, BTreeMap::new());
    assert!(stand.owns(SECOND));

    let actions = stand.step(Event::Shutdown);
    assert_eq!(watch(&actions), Some(Watch::default()));
}

#[test]
fn only_a_loss_that_nobody_meant_is_a_failure() {
    let (_, actions) = meeting([service("second", &[SECOND])]);
    let watch = watch(&actions).unwrap();
    let silence = Diagnostic::ControlDetectionTimeExpired;
    let signaled = Diagnostic::NeighborSignaledSessionDown;
    let meant = Diagnostic::AdministrativelyDown;
    for (from, to, diagnostic, remote_state, expected) in [
        (State::Down, State::Init, Diagnostic::None, State::Down, None),
        (State::Down, State::Up, Diagnostic::None, State::Init, Some(Verdict::Up)),
        (State::Init, State::Up, Diagnostic::None, State::Up, Some(Verdict::Up)),
        (State::Up, State::Down, silence, State::Up, Some(Verdict::Down)),
        (State::Up, State::Down, signaled, State::Down, Some(Verdict::Down)),
        (State::Up, State::Down, signaled, State::AdminDown, Some(Verdict::Unwatched)),
        (State::Up, State::AdminDown, meant, State::Up, Some(Verdict::Unwatched)),
        (State::Init, State::Down, silence, State::Down, None),
        (State::Init, State::Down, signaled, State::AdminDown, None),
        (State::Down, State::AdminDown, meant, State::Down, None),
    ] {
        let told = watch.told(&path(2), &Change { from, to, diagnostic, remote_state });

        let told = told.map(|event| match event {
            Event::Watched { node, interface, verdict } => {
                assert_eq!((node, interface), ("k2".into(), "eth1".into()));
                verdict
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(told, expected, "{from:?} to {to:?}");
    }
    let down = Change { from: State::Up, to: State::Down, diagnostic: silence, remote_state: State::Up };
    assert!(watch.told(&path(3), &down).is_none(), "it watches us, not we it");
}
