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
    let leaving = Heartbeat { leaving: true, ..stand.heartbeat(2) };

    let actions = stand.receive(2, leaving);

    assert!(stand.owns(SECOND));
    assert_eq!(reports(&actions)[0], &Report::MemberLeaving { node: "k2".into() });
    assert_eq!(frames(&actions).len(), 1);
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
fn heartbeats_go_to_every_address_of_every_other_node_at_each_interval() {
    let mut facts = facts(3);
    let addresses = vec![ip("198.51.100.12"), ip("2001:db8:1::12")];
    set_node(&mut facts, Node { internal_addresses: addresses.clone(), ..node(2) });
    let mut stand = Stand::new(DataPath::Proxy);
    assert_eq!(heartbeats(&stand.snapshot(&facts)).len(), 0);

    let first = stand.step(Event::Interfaces(interfaces(1)));
    let later: Vec<(Duration, Action)> = stand.pass(INTERVAL * 2);

    let receivers = |action: &Action| match action {
        Action::SendHeartbeat { to, .. } => Some(to.clone()),
        _ => None,
    };
    let all: Vec<Vec<IpAddr>> = first.iter().filter_map(receivers).collect();
    assert_eq!(all, [addresses, vec![ip("198.51.100.13")]]);
    let times: BTreeSet<Duration> =
        later.iter().filter(|(_, action)| receivers(action).is_some()).map(|(time, _)| *time).collect();
    assert_eq!(times, BTreeSet::from([INTERVAL, INTERVAL * 2]));
    let expected = Heartbeat {
        node: "k1".to_owned(),
        incarnation: 1,
        sequence: 1,
        links: vec![Link { name: "eth1".to_owned(), ipv4: true, ipv6: true }],
        ..Heartbeat::default()
    };
    assert_eq!(heartbeats(&first), [&expected, &expected]);
}

#[test]
fn a_lone_node_sends_no_heartbeat_and_has_no_deadline_for_one() {
    let mut stand = Stand::started(DataPath::KubeProxy, facts(1));

    let actions = only(stand.pass(Duration::from_secs(60)));

    assert_eq!(heartbeats(&actions), Vec::<&Heartbeat>::new());
    assert_eq!(stand.speaker.deadline(), None);
}

#[test]
fn news_about_this_node_does_not_wait_for_the_next_interval() {
    let mut stand = settled(DataPath::Proxy);
    stand.pass(MS * 20);

    let actions = stand.step(Event::ProxyReady(false));

    assert_eq!(heartbeats(&actions).iter().map(|heartbeat| heartbeat.proxy_ready).collect::<Vec<_>>(), [false; 2]);
}

#[test]
fn heartbeats_of_strangers_are_refused_and_reported_once_each() {
    let mut stand = settled(DataPath::KubeProxy);
    let heartbeat = stand.heartbeat(2);
    let from = |from: &str| Event::Heard { from: ip(from), heartbeat: heartbeat.clone() };

    let stranger = stand.step(from("203.0.113.1"));
    let again = stand.step(from("203.0.113.1"));
    let impostor = stand.step(from("198.51.100.13"));

    let refused = |from: &str| Report::HeartbeatRefused { from: ip(from), node: "k2".to_owned() };
    assert_eq!(reports(&stranger), [&refused("203.0.113.1")]);
    assert_eq!(reports(&again), Vec::<&Report>::new());
    assert_eq!(reports(&impostor), [&refused("198.51.100.13")]);
}

#[test]
fn a_repeated_heartbeat_keeps_nobody_alive() {
    let mut stand = settled(DataPath::KubeProxy);
    let old = stand.heartbeat(2);
    stand.receive(2, old.clone());

    for _ in 0..4 {
        stand.receive(2, old.clone());
        stand.pass_hearing(INTERVAL, &[3]);
    }

    assert!(stand.owns(SECOND));
    stand.receive(2, old);
    assert!(stand.owns(SECOND));
}

#[test]
fn a_restarted_speaker_is_believed_although_its_count_starts_again() {
    let mut stand = settled(DataPath::KubeProxy);
    let leaving = Heartbeat { leaving: true, ..stand.heartbeat(2) };
    stand.receive(2, leaving);
    assert!(stand.owns(SECOND));

    stand.receive(2, Heartbeat { incarnation: 2, sequence: 1, ..stand.speaker_of_k2() });

    assert!(!stand.owns(SECOND));
}

#[test]
fn a_speaker_whose_clock_went_back_is_believed_when_its_former_life_is_over() {
    let mut stand = settled(DataPath::KubeProxy);
    let reborn = |sequence| Heartbeat { incarnation: 0, sequence, ..Stand::new(DataPath::Proxy).speaker_of_k2() };

    stand.receive(2, reborn(1));
    stand.pass_hearing(DETECTION, &[3]);
    assert!(stand.owns(SECOND));
    stand.receive(2, reborn(2));

    assert!(!stand.owns(SECOND));
}

impl Stand {
    fn speaker_of_k2(&self) -> Heartbeat {
        Heartbeat {
            node: "k2".to_owned(),
            proxy_ready: true,
            links: vec![Link { name: "eth1".to_owned(), ipv4: true, ipv6: true }],
            ..Heartbeat::default()
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
    let leaving = Heartbeat { leaving: true, ..stand.heartbeat(2) };
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

    let yielded: Vec<(usize, u32)> =
        heartbeats(&actions).iter().enumerate().map(|(at, heartbeat)| (at % 2, heartbeat.yielded)).collect();
    assert_eq!(yielded[..2], [(0, 1), (1, 0)]);
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
    let yielded =
        |actions: &[Action]| -> Vec<u32> { heartbeats(actions).iter().map(|heartbeat| heartbeat.yielded).collect() };

    stand.pass(MS * 20);
    let to_k2 = stand.snapshot(&prefer("k2"));
    stand.pass(MS * 20);
    let to_k3 = stand.snapshot(&prefer("k3"));
    stand.pass(MS * 20);
    let again = stand.snapshot(&prefer("k3"));

    assert_eq!(yielded(&to_k2), [1, 0]);
    assert_eq!(yielded(&to_k3), [1, 1]);
    assert_eq!(yielded(&again), Vec::<u32>::new());
}

#[test]
fn n_111_an_owner_announces_again_when_another_has_left_addresses_to_it() {
    let mut stand = settled(DataPath::KubeProxy);
    stand.pass_hearing(Duration::from_secs(10), &[2, 3]);
    let yielded = Heartbeat { yielded: 1, ..stand.heartbeat(2) };
    let known = Heartbeat { yielded: 1, ..stand.heartbeat(2) };

    assert_eq!(frames(&stand.receive(2, yielded)).len(), 2);

    stand.pass(MS);
    assert!(frames(&stand.receive(2, known)).is_empty());
}

#[test]
fn n_111_an_owner_announces_again_when_another_comes_back_from_a_crash() {
    let mut stand = settled(DataPath::KubeProxy);
    stand.pass_hearing(Duration::from_secs(10), &[2, 3]);
    let reborn = Heartbeat { incarnation: 2, ..stand.heartbeat(2) };

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

    assert_eq!(heartbeats(&stop).iter().map(|heartbeat| heartbeat.leaving).collect::<Vec<_>>(), [true; 2]);
    assert!(stop.iter().any(|action| matches!(action, Action::Write(Write::L2Status { status: None, .. }))));
    let is_end = |action: &Action| matches!(action, Action::Release { .. } | Action::Finished);
    assert!(!stop.iter().chain(&grace).any(is_end));
    assert!(heartbeats(&grace).len() > 10 && heartbeats(&grace).iter().all(|heartbeat| heartbeat.leaving));
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
        facts.announced_by.insert(key(name), Arc::new(BTreeSet::from(["k1".into()])));
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
    fn whatever_is_heard_owners_are_those_of_a_fresh_look(
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
        for (node, [proxy_ready, leaving, ipv4, ipv6, own], pause) in changes {
            let links = vec![Link { name: "eth1".to_owned(), ipv4, ipv6 }];
            let heartbeat = Heartbeat { proxy_ready, leaving: leaving && ipv4, links, ..stand.heartbeat(node) };
            stand.receive(node, heartbeat);
            if pause % 4 == 0 {
                stand.step(Event::ProxyReady(own));
            }
            stand.pass(MS * u32::try_from(pause).unwrap());

            let standings = stand.speaker.standings();
            for (service, outcome) in stand.speaker.outcomes() {
                let expected = announce::ranking(&facts, PROXY, &standings, service);
                let expected = expected.ok().and_then(|ranking| Some(ranking.candidates.first()?.node.clone()));
                match outcome {
                    Ok(_) => prop_assert_eq!(expected, Some("k1".into())),
                    Err(Silence::NotElected { owner }) => prop_assert_eq!(expected.as_ref(), Some(owner)),
                    Err(_) => {}
                }
            }
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
