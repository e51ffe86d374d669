//! Who is alive, and what moves when that changes.

use proptest::prelude::*;

use super::*;

/// Two Services: `won` belongs to `k1` while it is able, `second` to `k2` and after that to `k1`.
fn facts(nodes: u8) -> Snapshot {
    snapshot(nodes, [service("won", &[WON]), service("second", &[SECOND])])
}

/// `k1` among three nodes, all of which it has heard.
fn settled(data_path: DataPath) -> Stand {
    let mut stand = Stand::started(data_path, facts(3));
    stand.step(Event::ProxyReady(true));
    stand.pass_hearing(INTERVAL * 4, &[2, 3]);
    stand
}

#[test]
fn m_120_a_silent_owner_is_replaced_when_the_detection_time_is_over() {
    let mut stand = settled(DataPath::KubeProxy);
    stand.hear(2);
    stand.hear(3);

    let actions = stand.pass(DETECTION * 2);

    let is_announcement = |action: &Action| matches!(action, Action::Send { frame: Frame::Advertisement(advertisement), .. } if advertisement.target == v6(SECOND));
    let (when, _) = actions.iter().find(|(_, action)| is_announcement(action)).unwrap();
    assert_eq!(*when, DETECTION);
    assert!(reports(&only(actions)).contains(&&Report::MemberLost { node: "k2".into() }));
    assert!(stand.owns(SECOND));
}

#[test]
fn m_120_a_speaker_that_says_it_is_leaving_is_replaced_at_once() {
    let mut stand = settled(DataPath::KubeProxy);
    let leaving = Word { leaving: true, ..stand.word(2) };

    let actions = stand.receive(2, leaving);

    assert!(stand.owns(SECOND));
    assert_eq!(reports(&actions)[0], &Report::MemberLeaving { node: "k2".into() });
    assert_eq!(frames(&actions).len(), 1);
}

#[test]
fn a_takeover_from_a_node_that_failed_says_since_when_and_a_planned_one_does_not() {
    let since = |actions: &[Action]| {
        let taken = reports(actions).into_iter().find_map(|report| match report {
            Report::Owned { address, failed_at, .. } if *address == ip(SECOND) => Some(*failed_at),
            _ => None,
        });
        taken.unwrap()
    };
    let mut stand = settled(DataPath::KubeProxy);
    stand.hear(3);
    stand.hear(2);
    let heard = stand.now;
    assert_eq!(since(&only(stand.pass(DETECTION * 2))), Some(heard));

    let mut stand = settled(DataPath::KubeProxy);
    let leaving = Word { leaving: true, ..stand.word(2) };
    assert_eq!(since(&stand.receive(2, leaving)), None);

    let mut stand = settled(DataPath::KubeProxy);
    let mut facts = facts(3);
    facts.nodes.remove("k2");
    assert_eq!(since(&stand.snapshot(&facts)), None);
}

#[test]
fn a_starting_speaker_believes_in_everyone_for_one_detection_time() {
    let mut stand = Stand::started(DataPath::KubeProxy, facts(3));
    assert!(stand.owns(WON) && !stand.owns(SECOND));

    stand.pass(DETECTION - MS);
    assert!(!stand.owns(SECOND));

    stand.pass(MS);
    assert!(stand.owns(SECOND));
}

#[test]
fn a_node_that_joins_later_counts_once_it_is_heard() {
    let mut stand = Stand::started(DataPath::KubeProxy, facts(1));
    assert!(stand.owns(SECOND));

    stand.snapshot(&facts(2));
    assert!(stand.owns(SECOND));

    stand.hear(2);
    assert!(!stand.owns(SECOND));
}

#[test]
fn alone_a_speaker_keeps_what_it_owns() {
    let mut stand = settled(DataPath::Proxy);

    let actions = only(stand.pass(Duration::from_secs(60)));

    assert!(stand.owns(WON) && stand.owns(SECOND));
    assert!(!actions.iter().any(|action| matches!(action, Action::Release { .. })));
}

#[test]
fn a_word_goes_to_every_address_of_every_other_node_at_each_interval() {
    let mut facts = facts(3);
    let addresses = vec![ip("198.51.100.12"), ip("2001:db8:1::12")];
    set_node(&mut facts, Node { internal_addresses: addresses.clone(), ..node(2) });
    let mut stand = Stand::new(DataPath::Proxy);
    assert_eq!(words(&stand.snapshot(&facts)).len(), 0);

    let first = stand.step(Event::Interfaces(interfaces(1)));
    let later: Vec<(Duration, Action)> = stand.pass(INTERVAL * 2);

    let sent = |action: &Action| match action {
        Action::Gossip { to, datagram } => Some((to.clone(), datagram.origin.clone())),
        _ => None,
    };
    let origin = |counter| Origin { node: "k1".to_owned(), life: 1, counter };
    let all = [addresses, vec![ip("198.51.100.13")]].concat();
    assert_eq!(first.iter().filter_map(sent).collect::<Vec<_>>(), [(all.clone(), origin(1))]);
    let later: Vec<_> = later.iter().filter_map(|(time, action)| Some((*time, sent(action)?))).collect();
    assert_eq!(later, [(INTERVAL, (all.clone(), origin(3))), (INTERVAL * 2, (all, origin(5)))]);
    let link = Link {
        mac: Some(mac(1)),
        watch_ipv4: Some((v4("198.51.100.11"), 24)),
        watch_ipv6: Some(v6("fe80::1")),
        subnets: Some(vec![
            (ip("192.0.2.0"), 24),
            (ip("198.51.100.0"), 24),
            (ip("203.0.112.0"), 20),
            (ip("2001:db8::"), 64),
        ]),
        ..wire_link("eth1")
    };
    let expected = Word { node: "k1".to_owned(), life: 1, version: 1, links: vec![link], ..Word::default() };
    assert_eq!(words(&first), [&expected]);
}

#[test]
fn a_lone_node_says_nothing_and_has_no_deadline_for_it() {
    let mut stand = Stand::started(DataPath::KubeProxy, facts(1));

    let actions = only(stand.pass(Duration::from_secs(60)));

    assert_eq!(words(&actions), Vec::<&Word>::new());
    assert_eq!(stand.speaker.deadline(), None);
}

#[test]
fn news_about_this_node_does_not_wait_for_the_next_interval() {
    let mut stand = settled(DataPath::Proxy);
    stand.pass(MS * 20);

    let actions = stand.step(Event::ProxyReady(false));

    assert_eq!(words(&actions).iter().map(|word| word.proxy_ready).collect::<Vec<_>>(), [false]);
}

#[test]
fn what_is_said_again_and_again_can_wait_and_what_is_new_cannot_until_all_must_have_heard_it() {
    let mut stand = settled(DataPath::Proxy);
    let waits = |actions: &[Action]| {
        let waits = actions.iter().filter_map(|action| match action {
            Action::Gossip { datagram: datagram @ Datagram { message: Message::Word(_), .. }, .. } => {
                Some(datagram.origin.can_wait())
            }
            _ => None,
        });
        waits.collect::<Vec<_>>()
    };
    // Those that were heard first are greeted for a while.
    stand.pass_hearing(INTERVAL * 30, &[2, 3]);

    assert_eq!(waits(&stand.pass_hearing(INTERVAL * 3, &[2, 3])), [true; 3]);

    let news = stand.step(Event::ProxyReady(false));
    assert_eq!(waits(&news), [false]);
    // It was said ahead of its time, and again at each interval from then on.
    assert_eq!(waits(&stand.pass_hearing(INTERVAL * 4, &[2, 3])), [false, false, true, true]);

    // A speaker that was started again is greeted, and answers only to that.
    let word = Word { life: 2, ..stand.word(2) };
    stand.receive(2, word);
    let answers = waits(&stand.pass_hearing(INTERVAL * 4, &[2, 3]));
    assert!(answers.len() >= 4 && !answers.contains(&true), "{answers:?}");
}

/// A word of a node that repeats what it said before, and came a while ago.
fn waiting(stand: &mut Stand, node: u8, ago: Duration) -> Arrived {
    let word = stand.word(node);
    let mut datagram = stand.datagram(word);
    datagram.origin.counter += 1;
    Arrived { at: stand.now - ago, from: IpAddr::from([198, 51, 100, 10 + node]), datagram: Box::new(datagram) }
}

/// When the loss of node `k2` was reported.
fn loss(actions: Vec<(Duration, Action)>) -> Option<Duration> {
    let lost = Action::Report(Report::MemberLost { node: "k2".into() });
    actions.into_iter().find(|(_, action)| *action == lost).map(|(when, _)| when)
}

#[test]
fn a_word_that_was_left_to_wait_counts_from_when_it_came_and_takes_nothing_from_a_later_one() {
    let mut stand = settled(DataPath::KubeProxy);
    stand.hear(3);
    stand.hear(2);
    stand.pass(MS * 40);
    let word = waiting(&mut stand, 2, MS * 30);

    assert_eq!(stand.step(Event::Heard(vec![word])), []);
    assert_eq!(loss(stand.pass(DETECTION * 2)), Some(DETECTION - MS * 30));

    let mut stand = settled(DataPath::KubeProxy);
    stand.hear(3);
    stand.hear(2);
    let word = waiting(&mut stand, 2, MS * 10);
    stand.step(Event::Heard(vec![word]));
    assert_eq!(loss(stand.pass(DETECTION * 2)), Some(DETECTION));
}

#[test]
fn nobody_is_missed_whose_word_lies_behind_that_of_another() {
    let mut stand = settled(DataPath::KubeProxy);
    stand.hear(3);
    stand.hear(2);
    // Both have been silent for the detection time, and this step is a little late.
    stand.pass(DETECTION - MS);
    stand.now += MS * 2;
    let words = [3, 2].map(|node| waiting(&mut stand, node, MS * 20));

    let actions = stand.step(Event::Heard(words.into()));

    let is_lost = |report: &&Report| matches!(report, Report::MemberLost { .. });
    assert_eq!(reports(&actions).into_iter().filter(is_lost).count(), 0);
    assert_eq!(loss(stand.pass(DETECTION * 2)), Some(DETECTION - MS * 20));
}

#[test]
fn what_came_while_the_process_was_held_up_counts_as_if_it_came_now() {
    let mut stand = settled(DataPath::KubeProxy);
    stand.hear(3);
    stand.hear(2);
    stand.pass(MS);
    // Whoever spoke in the first moment of it went on speaking, but nobody had room for that.
    let early = waiting(&mut stand, 2, Duration::ZERO);
    stand.now += Duration::from_secs(5);

    stand.step(Event::Heard(vec![early]));

    assert_eq!(loss(stand.pass(DETECTION * 2)), Some(DETECTION));
}

#[test]
fn what_a_speaker_said_before_it_began_to_leave_does_not_bring_it_back() {
    let mut stand = settled(DataPath::KubeProxy);
    let before = stand.word(2);
    let leaving = Word { leaving: true, ..stand.word(2) };
    stand.receive(2, leaving);

    let actions = stand.receive(2, before);

    assert_eq!(reports(&actions), Vec::<&Report>::new());
    assert!(stand.owns(SECOND));
}

#[test]
fn a_flood_of_questions_holds_up_nothing_that_is_due() {
    let [mut flooded, mut quiet] = [(); 2].map(|()| {
        let mut stand = settled(DataPath::KubeProxy);
        stand.hear(2);
        stand.hear(3);
        stand
    });
    let question = Arp { sender: v4("192.0.2.200"), ..Arp::probe(v4(WON), mac(100)) };

    let mut actions = Vec::new();
    for _ in 0..150 {
        flooded.now += MS;
        actions.extend(flooded.step(Event::Arp { interface: "eth1".into(), arp: question.clone() }));
    }
    let expected = only(quiet.pass(DETECTION));

    let answer = Frame::Arp(Arp::answer(&question, mac(1)));
    assert_eq!(frames(&actions).iter().filter(|(_, frame)| **frame == answer).count(), 150);
    assert!(!words(&expected).is_empty());
    assert_eq!(words(&actions), words(&expected));
    // The others have been silent for the detection time.
    assert!(flooded.owns(SECOND) && quiet.owns(SECOND));
}

#[test]
fn datagrams_of_strangers_are_refused_and_reported_once_each() {
    let mut stand = settled(DataPath::KubeProxy);
    let word = stand.word(2);
    let datagram = stand.datagram(word);
    let at = stand.now;
    let from = |from: &str| Event::Heard(vec![Arrived { at, from: ip(from), datagram: Box::new(datagram.clone()) }]);

    let stranger = stand.step(from("203.0.113.1"));
    let again = stand.step(from("203.0.113.1"));
    let impostor = stand.step(from("198.51.100.13"));

    let refused = |from: &str| Report::GossipRefused { from: ip(from), node: "k2".to_owned() };
    assert_eq!(reports(&stranger), [&refused("203.0.113.1")]);
    assert_eq!(reports(&again), Vec::<&Report>::new());
    assert_eq!(reports(&impostor), [&refused("198.51.100.13")]);
}

#[test]
fn nobody_speaks_for_another_from_its_own_address() {
    let mut stand = settled(DataPath::KubeProxy);
    let word = Word { leaving: true, ..stand.word(3) };
    let mut datagram = stand.datagram(word);
    datagram.origin.node = "k2".to_owned();

    let actions = stand.arrive(2, datagram);

    let refused = Report::GossipRefused { from: ip("198.51.100.12"), node: "k2".to_owned() };
    assert_eq!(reports(&actions), [&refused]);
}

#[test]
fn a_replayed_datagram_keeps_nobody_alive_and_brings_nobody_back() {
    let mut stand = settled(DataPath::KubeProxy);
    let word = stand.word(2);
    let old = stand.datagram(word);
    stand.arrive(2, old.clone());

    for _ in 0..4 {
        stand.arrive(2, old.clone());
        stand.pass_hearing(INTERVAL, &[3]);
    }

    assert!(stand.owns(SECOND));
    stand.arrive(2, old);
    assert!(stand.owns(SECOND));
}

#[test]
fn whoever_greets_an_earlier_life_of_ours_may_be_a_recording_and_is_not_heard() {
    let mut stand = Stand::started(DataPath::KubeProxy, facts(2));
    let say = |stand: &mut Stand, greets: Vec<(NodeTag, u64)>| {
        let word = Word { greets, ..stand.word(2) };
        stand.receive(2, word)
    };

    let mut actions = say(&mut stand, vec![(tag("k1"), 0), (tag("k2"), 1)]);
    actions.extend(only(stand.pass(DETECTION)));
    // It is greeted, so that it may show that it is there.
    assert_eq!(words(&actions).last().unwrap().greets, [(tag("k2"), 1)]);
    say(&mut stand, Vec::new());
    assert!(stand.owns(SECOND));

    say(&mut stand, vec![(tag("k1"), 1)]);
    assert!(!stand.owns(SECOND));
    // Once is enough.
    stand.pass(DETECTION - MS);
    say(&mut stand, Vec::new());
    stand.pass(DETECTION - MS);
    assert!(!stand.owns(SECOND));
}

#[test]
fn what_was_recorded_of_a_former_life_brings_nobody_back() {
    let mut stand = settled(DataPath::KubeProxy);
    let word = stand.word(2);
    let recorded = stand.datagram(word);
    let second_life = Word { life: 2, ..stand.word(2) };
    stand.receive(2, second_life);
    stand.pass_hearing(DETECTION, &[3]);
    assert!(stand.owns(SECOND));

    stand.arrive(2, recorded);

    assert!(stand.owns(SECOND));
}

#[test]
fn a_restarted_speaker_is_believed_although_its_count_starts_again() {
    let mut stand = settled(DataPath::KubeProxy);
    let leaving = Word { leaving: true, ..stand.word(2) };
    stand.receive(2, leaving);
    assert!(stand.owns(SECOND));

    stand.receive(2, Word { life: 2, version: 1, ..stand.speaker_of_k2() });

    assert!(!stand.owns(SECOND));
}

#[test]
fn a_speaker_whose_clock_went_back_is_believed_when_its_former_life_is_over() {
    let mut stand = settled(DataPath::KubeProxy);
    let reborn = |version| Word { life: 0, version, ..Stand::new(DataPath::Proxy).speaker_of_k2() };

    stand.receive(2, reborn(1));
    stand.pass_hearing(DETECTION, &[3]);
    assert!(stand.owns(SECOND));
    stand.receive(2, reborn(2));

    assert!(!stand.owns(SECOND));
}

impl Stand {
    fn speaker_of_k2(&self) -> Word {
        Word {
            node: "k2".to_owned(),
            proxy_ready: true,
            links: vec![wire_link("eth1")],
            greets: vec![(tag("k1"), 1)],
            ..Word::default()
        }
    }
}

#[test]
fn a_node_without_a_carrier_misses_nobody_and_takes_nothing() {
    let mut stand = settled(DataPath::Proxy);
    let cut = BTreeMap::from([(
        "eth1".into(),
        Interface { carrier: false, ..interfaces(1)[&names(&["eth1"]).pop_first().unwrap()].clone() },
    )]);

    let actions = stand.step(Event::Interfaces(cut));
    assert!(reports(&actions).contains(&&Report::Lost { address: ip(WON), owner: Some("k2".into()) }));
    let actions = only(stand.pass(Duration::from_secs(60)));
    assert!(frames(&actions).is_empty() && reports(&actions).is_empty());

    let actions = stand.step(Event::Interfaces(interfaces(1)));
    assert!(stand.owns(WON) && !stand.owns(SECOND));
    assert_eq!(frames(&actions).len(), 2);
    stand.pass_hearing(DETECTION * 2, &[2, 3]);
    assert!(!stand.owns(SECOND));
}

#[test]
fn time_in_which_the_process_was_held_up_is_not_held_against_others() {
    let mut stand = settled(DataPath::KubeProxy);

    stand.now += Duration::from_secs(5);
    let actions = stand.step(Event::Tick);
    assert!(reports(&actions).is_empty());
    stand.hear(2);
    stand.pass_hearing(DETECTION * 2, &[2, 3]);

    assert!(!stand.owns(SECOND));
}

#[test]
fn proxies_are_told_whom_this_node_misses() {
    let mut stand = settled(DataPath::Proxy);
    let told = |actions: &[Action]| {
        let told = |action: &Action| match action {
            Action::Write(Write::Membership { unreachable, .. }) => Some(unreachable.clone()),
            _ => None,
        };
        actions.iter().filter_map(told).collect::<Vec<_>>()
    };

    let silent = stand.pass_hearing(DETECTION * 2, &[3]);
    let heard = stand.hear(2);
    let leaving = Word { leaving: true, ..stand.word(2) };
    let mut left = stand.receive(2, leaving);
    left.extend(stand.pass_hearing(DETECTION * 3, &[3]));

    assert_eq!(told(&silent), [BTreeSet::from(["k2".into()])]);
    assert_eq!(told(&heard), [BTreeSet::new()]);
    assert_eq!(told(&left), Vec::<BTreeSet<NodeName>>::new());
}

#[test]
fn who_was_missed_before_a_restart_is_missed_until_heard() {
    let unreachable = BTreeSet::from(["k2".into()]);
    let mut stand = Stand::started(DataPath::Proxy, Snapshot { unreachable, ..facts(3) });

    let silent = stand.pass_hearing(DETECTION * 2, &[3]);
    let heard = stand.hear(2);

    let is_membership = |action: &&Action| matches!(action, Action::Write(Write::Membership { .. }));
    assert_eq!(silent.iter().filter(is_membership).count(), 0);
    assert_eq!(heard.iter().filter(is_membership).count(), 1);
}

#[test]
fn a_node_whose_speaker_was_never_heard_is_not_missed() {
    let mut stand = Stand::started(DataPath::Proxy, facts(3));

    let actions = only(stand.pass(DETECTION * 3));

    assert!(!actions.iter().any(|action| matches!(action, Action::Write(Write::Membership { .. }))));
}

#[test]
fn the_next_owner_is_told_at_once_that_an_address_was_left_to_it() {
    let mut stand = settled(DataPath::KubeProxy);
    stand.pass_hearing(DETECTION * 2, &[3]);
    assert!(stand.owns(SECOND));

    let mut actions = stand.hear(2);
    actions.extend(only(stand.pass(INTERVAL)));

    assert_eq!(words(&actions)[0].yields, [(tag("k2"), 1)]);
}

/// Else clients that still send here would never learn whom to send to: the owner told first does not announce it.
#[test]
fn whoever_owns_an_address_later_is_told_too_that_it_was_left() {
    let mut stand = settled(DataPath::KubeProxy);
    let prefer = |name: &str| {
        let mut facts = facts(3);
        let preferred = PreferredNodes { weight: NonZeroU8::MIN, preference: named(name) };
        set_advertisement(&mut facts, L2Advertisement { preferred_nodes: vec![preferred], ..advertisement() });
        facts
    };
    let yielded = |actions: &[Action]| -> Vec<BTreeMap<NodeTag, u32>> {
        words(actions).iter().map(|word| word.yields.iter().copied().collect()).collect()
    };

    stand.pass(MS * 20);
    let to_k2 = stand.snapshot(&prefer("k2"));
    stand.pass(MS * 20);
    let to_k3 = stand.snapshot(&prefer("k3"));
    stand.pass(MS * 20);
    let again = stand.snapshot(&prefer("k3"));

    assert_eq!(yielded(&to_k2), [BTreeMap::from([(tag("k2"), 1)])]);
    assert_eq!(yielded(&to_k3), [BTreeMap::from([(tag("k2"), 1), (tag("k3"), 1)])]);
    assert!(yielded(&again).is_empty());
}

#[test]
fn n_111_an_owner_announces_again_when_another_has_left_addresses_to_it() {
    let mut stand = settled(DataPath::KubeProxy);
    stand.pass_hearing(Duration::from_secs(10), &[2, 3]);
    let yielded = Word { yields: vec![(tag("k1"), 1)], ..stand.word(2) };
    let known = Word { yields: vec![(tag("k1"), 1)], ..stand.word(2) };

    assert_eq!(frames(&stand.receive(2, yielded)).len(), 2);

    stand.pass(MS);
    assert!(frames(&stand.receive(2, known)).is_empty());
}

#[test]
fn n_111_an_owner_announces_again_when_another_comes_back_from_a_crash() {
    let mut stand = settled(DataPath::KubeProxy);
    stand.pass_hearing(Duration::from_secs(10), &[2, 3]);
    let reborn = Word { life: 2, ..stand.word(2) };

    assert_eq!(frames(&stand.receive(2, reborn)).len(), 2);
}

#[test]
fn m_120_a_stopping_speaker_forwards_until_its_successors_have_announced_themselves() {
    let mut stand = settled(DataPath::Proxy);
    stand.hear(2);
    stand.hear(3);

    let stop = stand.step(Event::Shutdown);
    let grace = stand.pass_hearing(Duration::from_millis(999), &[2, 3]);
    let end = only(stand.pass(MS));

    assert_eq!(words(&stop).iter().map(|word| word.leaving).collect::<Vec<_>>(), [true]);
    assert!(stop.iter().any(|action| matches!(action, Action::Write(Write::L2Status { status: None, .. }))));
    let is_end = |action: &Action| matches!(action, Action::Release { .. } | Action::Finished);
    assert!(!stop.iter().chain(&grace).any(is_end));
    assert!(words(&grace).len() > 10 && words(&grace).iter().all(|word| word.leaving));
    assert!(end.contains(&Action::Release { address: ip(WON) }));
    assert_eq!(end.last(), Some(&Action::Finished));
    assert_eq!(stand.speaker.deadline(), None);
    assert_eq!(stand.step(Event::Tick), []);
}

#[test]
fn a_stopping_speaker_without_company_goes_at_once() {
    let mut stand = Stand::started(DataPath::Proxy, facts(1));
    stand.step(Event::ProxyReady(true));
    assert!(stand.owns(WON));

    let actions = stand.step(Event::Shutdown);

    assert!(actions.contains(&Action::Release { address: ip(WON) }));
    assert_eq!(actions.last(), Some(&Action::Finished));
}

#[test]
fn statuses_of_an_earlier_life_are_taken_away() {
    let mut facts = facts(3);
    for name in ["won", "second", "deleted"] {
        facts.announced_by.insert(key(name), Arc::new(BTreeMap::from([("k1".into(), status(0))])));
    }
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.snapshot(&facts);

    let actions = stand.step(Event::Interfaces(interfaces(1)));

    let statuses: BTreeMap<String, bool> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Write(Write::L2Status { service, status, .. }) => {
                Some((service.name.to_string(), status.is_some()))
            }
            _ => None,
        })
        .collect();
    let expected = [("won", true), ("second", false), ("deleted", false)];
    assert_eq!(statuses, expected.map(|(name, is_some)| (name.to_owned(), is_some)).into());
}

proptest! {
    #[test]
    fn loss_shorter_than_the_detect_multiplier_moves_nothing(arrives in prop::collection::vec(any::<bool>(), 1..60)) {
        let mut stand = settled(DataPath::KubeProxy);
        let mut misses = 0;
        for arrives in arrives {
            // Two in a row may be missing; the third is on time.
            if arrives || misses == 2 {
                stand.hear(2);
                misses = 0;
            } else {
                misses += 1;
            }
            stand.hear(3);
            stand.pass(INTERVAL - MS / 10);
            prop_assert!(!stand.owns(SECOND));
        }
    }

    /// Only what a change can touch is decided again; that must not show.
    #[test]
    fn whatever_is_heard_owners_and_the_watched_are_those_of_a_fresh_look(
        is_preferring in any::<bool>(),
        changes in prop::collection::vec((2_u8..5, any::<[bool; 5]>(), 0_u64..120), 1..30),
    ) {
        let services = (0..12).map(|number| {
            let name = format!("s{number}");
            let address = format!("192.0.2.{}", number / 2 * 2 + number % 3 % 2);
            match number % 3 {
                0 => local(&name, &[&address], &["k1", "k3"]),
                1 => service(&name, &[&address]),
                _ => service(&name, &[&address, &format!("2001:db8::{number}")]),
            }
        });
        let mut facts = snapshot(4, services);
        if is_preferring {
            let preferred = PreferredNodes { weight: NonZeroU8::MIN, preference: named("k3") };
            set_advertisement(&mut facts, L2Advertisement { preferred_nodes: vec![preferred], ..advertisement() });
        }
        let mut stand = Stand::started(DataPath::Proxy, facts.clone());
        let mut watched = BTreeSet::new();
        for (node, [proxy_ready, leaving, ipv4, ipv6, own], pause) in changes {
            let links = vec![Link { ipv4, ipv6, ..watch::watch_link(node) }];
            let word = Word { proxy_ready, leaving: leaving && ipv4, links, ..stand.word(node) };
            let mut actions = stand.receive(node, word);
            if pause % 4 == 0 {
                actions.extend(stand.step(Event::ProxyReady(own)));
            }
            actions.extend(only(stand.pass(MS * u32::try_from(pause).unwrap())));
            if let Some(watch) = watch::watch(&actions) {
                watched = watch.wanted.sessions.keys().map(|path| path.remote).collect();
            }

            let standings = stand.speaker.standings();
            let mut to_watch = BTreeSet::new();
            for (service, outcome) in stand.speaker.outcomes() {
                let expected = announce::ranking(&facts, PROXY, &standings, service);
                let expected = expected.map(|ranking| ranking.candidates).unwrap_or_default();
                let mut expected = expected.into_iter().map(|rank| rank.node);
                let (expected, next) = (expected.next(), expected.next());
                if let Some(owner) = expected.as_ref().filter(|_| next == Some("k1".into()))
                    && standings[owner].links.is_some()
                {
                    let number = owner.as_str().trim_start_matches('k').parse().unwrap();
                    to_watch.insert(watch::path(number).remote);
                }
                match outcome {
                    Ok(_) => prop_assert_eq!(expected, Some("k1".into())),
                    Err(Silence::NotElected { owner }) => prop_assert_eq!(expected.as_ref(), Some(owner)),
                    Err(_) => {}
                }
            }
            prop_assert_eq!(&watched, &to_watch);
        }
    }

    /// Deadlines are kept by nothing but the frames themselves.
    #[test]
    fn no_frame_leaves_anything_undone_that_is_due(frames in prop::collection::vec((0_usize..5, 0_u64..40), 1..60)) {
        let frame = |sender: &str, target: &str, from| Arp { sender: v4(sender), ..Arp::probe(v4(target), mac(from)) };
        let frames = frames.into_iter().map(|(which, wait)| {
            let arp = match which {
                0 => frame("192.0.2.200", WON, 100),
                1 => frame("192.0.2.200", "192.0.2.201", 100),
                2 => frame("0.0.0.0", WON, 100),
                3 => frame(WON, WON, 100),
                _ => frame(WON, WON, 1),
            };
            (arp, MS * u32::try_from(wait).unwrap())
        });
        let mut stand = settled(DataPath::KubeProxy);
        for (arp, wait) in frames {
            stand.now += wait;
            stand.step(Event::Arp { interface: "eth1".into(), arp });
            let deadline = stand.speaker.deadline();

            prop_assert_eq!(stand.step(Event::Tick), vec![]);
            prop_assert_eq!(stand.speaker.deadline(), deadline);
        }
    }

    #[test]
    fn ticks_that_come_early_change_nothing(early in prop::collection::vec(0_u64..49, 1..20)) {
        let mut stand = settled(DataPath::Proxy);
        stand.pass_hearing(Duration::from_secs(10), &[2, 3]);
        stand.hear(2);
        stand.hear(3);
        stand.pass(MS / 2);
        for wait in early {
            let now = stand.now + Duration::from_micros(wait * 10);
            let deadline = stand.speaker.deadline();
            prop_assert_eq!(stand.speaker.step(now, Event::Tick), vec![]);
            prop_assert_eq!(stand.speaker.deadline(), deadline);
        }
    }
}
