//! What is answered and announced on the link, and where.

use super::*;

fn request(sender: &str, target: &str) -> Arp {
    Arp {
        destination: Mac::BROADCAST,
        source: mac(100),
        operation: Operation::Request,
        sender_mac: mac(100),
        sender: v4(sender),
        target_mac: Mac::ZERO,
        target: v4(target),
    }
}

fn solicitation(source: &str, target: &str) -> Solicitation {
    let group = ndp::solicited_node(v6(target));
    let source = v6(source);
    Solicitation {
        destination_mac: Mac::of_group(group),
        source_mac: mac(100),
        source,
        destination: group,
        target: v6(target),
        source_link_layer: (!source.is_unspecified()).then_some(mac(100)),
    }
}

impl Stand {
    fn arp(&mut self, interface: &str, arp: Arp) -> Vec<Action> {
        self.step(Event::Arp { interface: interface.into(), arp })
    }

    fn solicit(&mut self, interface: &str, solicitation: Solicitation) -> Vec<Action> {
        self.step(Event::Ndp { interface: interface.into(), ndp: Ndp::Solicitation(solicitation) })
    }
}

/// `k1` alone, with two interfaces, owner of one address of each family.
fn owner() -> Stand {
    let mut stand = Stand::started(DataPath::KubeProxy, snapshot(1, [service("web", &[WON, "2001:db8::10"])]));
    stand.step(Event::Interfaces(interfaces(2)));
    stand.pass(Duration::from_secs(10));
    stand
}

fn with_interfaces(limit: &[&str]) -> Snapshot {
    let mut facts = snapshot(1, [service("web", &[WON, "2001:db8::10"])]);
    set_advertisement(&mut facts, L2Advertisement { interfaces: names(limit), ..advertisement() });
    facts
}

#[test]
fn m_114_answers_carry_the_hardware_address_of_the_receiving_interface() {
    let mut stand = owner();

    for number in [1, 2] {
        let name = format!("eth{number}");
        let expected = Frame::Arp(Arp {
            destination: mac(100),
            source: mac(number),
            operation: Operation::Reply,
            sender_mac: mac(number),
            sender: v4(WON),
            target_mac: mac(100),
            target: v4("192.0.2.200"),
        });

        assert_eq!(frames(&stand.arp(&name, request("192.0.2.200", WON))), [(name.as_str(), &expected)]);
    }
}

#[test]
fn m_116_solicited_advertisements_go_to_the_asker_with_solicited_and_override() {
    let mut stand = owner();

    let actions = stand.solicit("eth2", solicitation("fe80::100", "2001:db8::10"));

    let [("eth2", Frame::Advertisement(answer))] = frames(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!((answer.destination_mac, answer.destination), (mac(100), v6("fe80::100")));
    assert_eq!((answer.is_router, answer.is_solicited, answer.overrides), (false, true, true));
    assert_eq!((answer.target, answer.target_link_layer), (v6("2001:db8::10"), Some(mac(2))));
}

/// MetalLB ignores these; a neighbour that checks whether its entry is still right may leave the option out
/// (RFC 4861 §4.3), and silence would make it forget us.
#[test]
fn m_117_a_solicitation_without_link_layer_option_is_answered_to_where_it_came_from() {
    let mut stand = owner();
    let probe = Solicitation {
        destination_mac: mac(1),
        destination: v6("2001:db8::10"),
        source_link_layer: None,
        ..solicitation("fe80::100", "2001:db8::10")
    };

    let actions = stand.solicit("eth1", probe);

    let [(_, Frame::Advertisement(answer))] = frames(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!(answer.destination_mac, mac(100));
}

#[test]
fn n_101_probes_for_an_owned_address_are_answered() {
    let mut stand = owner();

    let arp = stand.arp("eth1", request("0.0.0.0", WON));
    let ndp = stand.solicit("eth1", solicitation("::", "2001:db8::10"));

    let [(_, Frame::Arp(answer))] = frames(&arp)[..] else { panic!("{arp:?}") };
    assert_eq!((answer.sender, answer.sender_mac, answer.destination), (v4(WON), mac(1), mac(100)));
    let [(_, Frame::Advertisement(answer))] = frames(&ndp)[..] else { panic!("{ndp:?}") };
    assert_eq!(answer.destination, ndp::ALL_NODES);
    assert_eq!((answer.is_solicited, answer.overrides), (false, true));
}

#[test]
fn n_102_only_owned_addresses_are_answered() {
    let mut stand = owner();

    assert_eq!(stand.arp("eth1", request("192.0.2.200", "192.0.2.11")), []);
    assert_eq!(stand.solicit("eth1", solicitation("fe80::100", "2001:db8::11")), []);
}

#[test]
fn n_100_a_node_that_is_not_elected_answers_nothing() {
    let mut stand = Stand::started(DataPath::KubeProxy, snapshot(3, [service("web", &[SECOND])]));

    assert_eq!(stand.silence("web"), Some(Silence::NotElected { owner: "k2".into() }));
    assert_eq!(stand.solicit("eth1", solicitation("fe80::100", SECOND)), []);
}

#[test]
fn m_113_requests_to_somebody_else_and_replies_are_ignored() {
    let mut stand = owner();
    let to_other = Arp { destination: mac(50), ..request("192.0.2.200", WON) };
    let reply = Arp { operation: Operation::Reply, ..request("192.0.2.200", WON) };
    let to_other_group = Solicitation {
        destination: ndp::ALL_NODES,
        destination_mac: Mac::of_group(ndp::ALL_NODES),
        ..solicitation("fe80::100", "2001:db8::10")
    };

    assert_eq!(stand.arp("eth1", to_other), []);
    assert_eq!(stand.arp("eth1", reply), []);
    assert_eq!(stand.solicit("eth1", to_other_group), []);
}

#[test]
fn m_109_only_listed_interfaces_answer_and_announce() {
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(3)));

    let mut actions = stand.snapshot(&with_interfaces(&["eth2"]));
    actions.extend(only(stand.pass(Duration::from_secs(10))));

    assert!(!frames(&actions).is_empty());
    assert!(frames(&actions).iter().all(|(interface, _)| *interface == "eth2"));
    assert_eq!(stand.arp("eth1", request("192.0.2.200", WON)), []);
    assert_eq!(frames(&stand.arp("eth2", request("192.0.2.200", WON))).len(), 1);

    stand.snapshot(&with_interfaces(&[]));
    assert_eq!(frames(&stand.arp("eth1", request("192.0.2.200", WON))).len(), 1);
}

#[test]
fn m_111_excluded_enslaved_down_and_no_arp_interfaces_are_never_used() {
    let good = interface(1);
    let bad = BTreeMap::from([
        ("docker0", good.clone()),
        ("veth1234", good.clone()),
        ("lo", good.clone()),
        ("enslaved", Interface { controller: Some(9), ..good.clone() }),
        ("down", Interface { up: false, ..good.clone() }),
        ("nocarrier", Interface { carrier: false, ..good.clone() }),
        ("noarp", Interface { no_arp: true, ..good.clone() }),
        ("loop", Interface { loopback: true, ..good.clone() }),
        ("nomac", Interface { mac: None, ..good.clone() }),
        ("p2p", Interface { broadcast: false, addresses: Vec::new(), ..good.clone() }),
    ]);
    let bad = bad.into_iter().map(|(name, interface)| (name.into(), interface)).collect();
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(bad));

    stand.snapshot(&with_interfaces(&[]));

    assert_eq!(stand.silence("web"), Some(Silence::NoUsableInterface { allowed: BTreeSet::new() }));
}

#[test]
fn n_113_the_loopback_is_not_used_even_if_an_advertisement_names_it() {
    let mut config = Config::new("k1".into(), DataPath::KubeProxy, 1);
    config.excluded_interfaces.clear();
    let mut stand = Stand::with(config);
    stand.step(Event::Interfaces(BTreeMap::from([("lo".into(), Interface { loopback: true, ..interface(1) })])));

    let mut actions = stand.snapshot(&with_interfaces(&["lo"]));
    actions.extend(only(stand.pass(Duration::from_secs(10))));

    assert!(frames(&actions).is_empty());
}

#[test]
fn arp_needs_broadcast_and_neighbour_discovery_a_link_local_address() {
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(BTreeMap::from([
        ("plain".into(), Interface { addresses: Vec::new(), ..interface(1) }),
        ("point".into(), Interface { broadcast: false, ..interface(2) }),
    ])));
    stand.snapshot(&with_interfaces(&[]));

    let owned = stand.speaker.owned();

    assert_eq!(owned[&ip(WON)], names(&["plain"]));
    assert_eq!(owned[&ip("2001:db8::10")], names(&["point"]));
}

#[test]
fn m_115_announcements_come_in_request_and_reply_form_from_each_interface() {
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(2)));

    let actions = stand.snapshot(&snapshot(1, [service("web", &[WON])]));

    let form = |number, operation| {
        Frame::Arp(Arp {
            destination: Mac::BROADCAST,
            source: mac(number),
            operation,
            sender_mac: mac(number),
            sender: v4(WON),
            target_mac: Mac::BROADCAST,
            target: v4(WON),
        })
    };
    assert_eq!(
        frames(&actions),
        [
            ("eth1", &form(1, Operation::Request)),
            ("eth1", &form(1, Operation::Reply)),
            ("eth2", &form(2, Operation::Request)),
            ("eth2", &form(2, Operation::Reply)),
        ]
    );
}

#[test]
fn m_116_unsolicited_advertisements_go_to_all_nodes_with_override_only() {
    let actions = {
        let mut stand = Stand::new(DataPath::KubeProxy);
        stand.step(Event::Interfaces(interfaces(1)));
        stand.snapshot(&snapshot(1, [service("web", &["2001:db8::10"])]))
    };

    let [("eth1", Frame::Advertisement(advertisement))] = frames(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!(advertisement, &Advertisement::announcement(v6("2001:db8::10"), mac(1)));
    assert_eq!((advertisement.is_solicited, advertisement.overrides), (false, true));
    assert_eq!(advertisement.destination, ndp::ALL_NODES);
}

#[test]
fn n_103_a_takeover_is_announced_at_once_then_quickly_then_slowly_then_not_at_all() {
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));

    let first = stand.snapshot(&snapshot(1, [service("web", &["2001:db8::10"])]));
    let later: Vec<u128> = stand
        .pass(Duration::from_secs(60))
        .iter()
        .filter(|(_, action)| matches!(action, Action::Send { .. }))
        .map(|(time, _)| time.as_millis())
        .collect();

    assert_eq!(frames(&first).len(), 1);
    assert_eq!(later, [100, 200, 300, 400, 500, 1500, 2500, 3500, 4500, 5500]);
    assert_eq!(stand.speaker.deadline(), None);
}

#[test]
fn m_118_the_solicited_node_group_is_joined_with_the_first_address_and_left_with_the_last() {
    let group = ndp::solicited_node(v6("2001:db8::10"));
    let same = ["2001:db8::10", "2001:db8:1::10"];
    let mut facts = snapshot(1, [service("a", &[same[0]]), service("b", &[same[1]])]);
    let range = AddressRange::new(ip("2001:db8:1::"), ip("2001:db8:1::ff")).unwrap();
    let mut wide = pool();
    wide.ranges.push(range);
    facts.pools.insert("pool".into(), Arc::new(wide));
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));
    let groups = |actions: &[Action]| -> Vec<Action> {
        let is_group = |action: &&Action| matches!(action, Action::Join { .. } | Action::Leave { .. });
        actions.iter().filter(is_group).cloned().collect()
    };

    let both = stand.snapshot(&facts);
    facts.services.remove(&key("a"));
    let one = stand.snapshot(&facts);
    facts.services.remove(&key("b"));
    let none = stand.snapshot(&facts);

    assert_eq!(groups(&both), [Action::Join { interface: "eth1".into(), group }]);
    assert_eq!(groups(&one), []);
    assert_eq!(groups(&none), [Action::Leave { interface: "eth1".into(), group }]);
}

#[test]
fn n_108_groups_are_joined_again_on_an_interface_that_was_made_anew() {
    let mut stand = owner();
    let mut anew = interfaces(2);
    anew.insert("eth2".into(), Interface { index: 99, ..interface(2) });

    let actions = stand.step(Event::Interfaces(anew));

    let group = ndp::solicited_node(v6("2001:db8::10"));
    assert_eq!(actions[0], Action::Join { interface: "eth2".into(), group });
    assert!(!actions.contains(&Action::Join { interface: "eth1".into(), group }));
}

#[test]
fn m_112_an_interface_that_appears_later_is_announced_on_and_answered_at_once() {
    let mut stand = owner();

    let actions = stand.step(Event::Interfaces(interfaces(3)));

    assert!(frames(&actions).iter().any(|(interface, _)| *interface == "eth3"));
    assert_eq!(frames(&stand.arp("eth3", request("192.0.2.200", WON))).len(), 1);
}

#[test]
fn n_107_an_address_is_announced_again_when_its_link_comes_back() {
    let mut stand = owner();
    let mut down = interfaces(2);
    down.insert("eth2".into(), Interface { carrier: false, ..interface(2) });

    assert!(frames(&stand.step(Event::Interfaces(down))).is_empty());
    stand.pass(Duration::from_secs(10));
    let up = stand.step(Event::Interfaces(interfaces(2)));

    assert!(frames(&up).iter().any(|(interface, _)| *interface == "eth2"));
}

#[test]
fn n_110_a_claim_that_lasts_is_a_conflict_with_one_defence_in_ten_seconds() {
    let mut stand = owner();
    let claim = Arp { sender_mac: mac(66), source: mac(66), ..request(WON, WON) };

    let mut actions = Vec::new();
    for _ in 0..200 {
        assert_eq!(stand.arp("eth1", claim.clone()), []);
        actions.extend(stand.pass(Duration::from_millis(100)));
    }

    let defences = actions.iter().filter(|(_, action)| matches!(action, Action::Send { .. })).count();
    // One round is two frames on each of two interfaces; at 0.15 s and 10.15 s.
    assert_eq!(defences, 8);
    let actions = only(actions);
    let conflict = Report::Conflict { address: ip(WON), interface: "eth1".into(), mac: mac(66) };
    assert_eq!(reports(&actions), [&conflict, &conflict]);
    let (severity, reason, message) = events(&actions)[0];
    assert_eq!((severity, reason), (Severity::Warning, "addressConflict"));
    assert!(message.contains("02:00:00:00:00:42") && message.contains(WON), "{message}");
}

#[test]
fn n_110_a_conflict_stands_in_the_status_until_a_minute_after_the_last_claim() {
    let mut stand = owner();
    let claim = Arp { sender_mac: mac(66), source: mac(66), ..request(WON, WON) };
    let statuses = |actions: Vec<(Duration, Action)>| -> Vec<(Duration, Vec<L2Conflict>)> {
        let status = |(time, action)| match action {
            Action::Write(Write::L2Status { status, .. }) => Some((time, status.unwrap().conflicts)),
            _ => None,
        };
        actions.into_iter().filter_map(status).collect()
    };

    stand.arp("eth1", claim.clone());
    let first = statuses(stand.pass(Duration::from_secs(30)));
    stand.arp("eth1", claim);
    let second = statuses(stand.pass(Duration::from_secs(120)));

    let conflict = L2Conflict { address: ip(WON), interface: "eth1".into(), mac: mac(66).to_string() };
    assert_eq!(first, [(DETECTION, vec![conflict])]);
    assert_eq!(second, [(DETECTION + Duration::from_secs(60), Vec::new())]);
}

#[test]
fn n_103_announced_periodically_an_address_is_never_silent_and_the_rate_stays_bounded() {
    let announcements = Announcements { periodic: Some(Duration::from_secs(30)), ..Announcements::default() };
    let config = Config { announcements, ..Config::new("k1".into(), DataPath::KubeProxy, 1) };
    let mut stand = Stand::with(config);
    stand.step(Event::Interfaces(interfaces(1)));
    stand.snapshot(&snapshot(1, [service("web", &[WON])]));
    stand.pass(Duration::from_secs(10));

    let later = stand.pass(Duration::from_secs(90));

    let rounds: BTreeSet<Duration> = later.iter().map(|(time, _)| *time).collect();
    assert_eq!((later.len(), rounds.len()), (6, 3), "a request and a reply every 30 s");
    let services: Vec<String> =
        (0..1000).map(|number| format!("203.0.{}.{}", 112 + number / 250, number % 250)).collect();
    stand.snapshot(&snapshot(1, services.iter().map(|address| service(address, &[address]))));
    stand.pass(Duration::from_secs(60));
    for (_, frames) in by_second(&stand.pass(Duration::from_secs(60))) {
        assert!(frames <= 4100, "{frames} in a second");
    }
}

/// How many frames go out in each second.
fn by_second(actions: &[(Duration, Action)]) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for (time, action) in actions {
        if let Action::Send { .. } = action {
            *counts.entry(time.as_secs()).or_default() += 1;
        }
    }
    counts
}

#[test]
fn n_110_neighbours_that_claim_an_ipv6_address_are_noticed_too() {
    let mut stand = owner();
    let claim = Advertisement::announcement(v6("2001:db8::10"), mac(66));

    stand.step(Event::Ndp { interface: "eth1".into(), ndp: Ndp::Advertisement(claim) });
    let actions = only(stand.pass(DETECTION));

    let conflict = Report::Conflict { address: ip("2001:db8::10"), interface: "eth1".into(), mac: mac(66) };
    assert_eq!(reports(&actions), [&conflict]);
}

#[test]
fn own_frames_that_come_back_are_no_conflict() {
    let mut stand = owner();
    let own = Arp { sender_mac: mac(2), source: mac(2), ..request(WON, WON) };

    stand.arp("eth1", own);

    assert_eq!(only(stand.pass(Duration::from_secs(20))), []);
}

/// `k1`, which owns what `k2` would own if it were heard.
fn stand_in() -> Stand {
    let mut stand = Stand::started(DataPath::Proxy, snapshot(2, [service("web", &["192.0.2.11", SECOND])]));
    stand.step(Event::ProxyReady(true));
    let mut facts = snapshot(2, [service("web", &["192.0.2.13", SECOND])]);
    facts.services.clear();
    set_service(&mut facts, service("web", &[SECOND, WON]));
    stand.snapshot(&facts);
    stand.pass(Duration::from_secs(10));
    assert!(stand.owns(WON));
    stand
}

#[test]
fn n_106_an_old_owner_answers_until_the_new_one_is_heard_on_the_link() {
    let mut stand = stand_in();
    let taken = Arp { sender_mac: mac(20), source: mac(20), ..request(WON, WON) };

    stand.hear(2);
    assert!(!stand.owns(WON));
    assert_eq!(frames(&stand.arp("eth1", request("192.0.2.200", WON))).len(), 1);
    assert_eq!(frames(&stand.arp("eth1", taken)), []);

    assert_eq!(frames(&stand.arp("eth1", request("192.0.2.200", WON))), []);
    // The other family has not been taken yet; that answers end with the detection time.
    assert_eq!(frames(&stand.solicit("eth1", solicitation("fe80::100", SECOND))).len(), 1);
    stand.pass_hearing(DETECTION, &[2]);
    assert_eq!(frames(&stand.solicit("eth1", solicitation("fe80::100", SECOND))), []);
}

#[test]
fn n_106_a_new_owner_that_announces_before_it_is_heard_is_no_conflict() {
    let mut stand = stand_in();
    let taken = Arp { sender_mac: mac(20), source: mac(20), ..request(WON, WON) };

    stand.arp("eth1", taken);
    stand.hear(2);
    assert_eq!(frames(&stand.arp("eth1", request("192.0.2.200", WON))), []);
    let actions = stand.pass_hearing(Duration::from_secs(1), &[2]);

    assert!(!reports(&actions).iter().any(|report| matches!(report, Report::Conflict { .. })));
}

#[test]
fn n_079_n_106_the_host_keeps_an_address_for_the_grace_time_after_it_is_lost() {
    let mut stand = stand_in();

    let mut actions = stand.hear(2);
    actions.extend(stand.pass_hearing(Duration::from_millis(4950), &[2]));
    assert!(!actions.iter().any(|action| matches!(action, Action::Release { .. })));

    let actions = stand.pass_hearing(Duration::from_millis(100), &[2]);
    assert!(actions.contains(&Action::Release { address: ip(WON) }));
    assert!(actions.contains(&Action::Release { address: ip(SECOND) }));
}

#[test]
fn the_host_has_an_address_before_it_is_announced() {
    let mut stand = Stand::started(DataPath::Proxy, snapshot(1, [service("web", &[WON])]));
    assert_eq!(stand.silence("web"), Some(Silence::ProxyNotReady));

    let actions = stand.step(Event::ProxyReady(true));

    let hold = actions.iter().position(|action| *action == Action::Hold { address: ip(WON) }).unwrap();
    let send = actions.iter().position(|action| matches!(action, Action::Send { .. })).unwrap();
    assert!(hold < send);
}

#[test]
fn an_address_no_service_has_is_given_up_at_once() {
    let mut stand = Stand::started(DataPath::Proxy, snapshot(1, [service("web", &[WON])]));
    stand.step(Event::ProxyReady(true));

    let actions = stand.snapshot(&snapshot(1, []));

    assert!(actions.contains(&Action::Release { address: ip(WON) }));
    assert_eq!(stand.arp("eth1", request("192.0.2.200", WON)), []);
}

#[test]
fn a_node_whose_proxy_fails_stops_answering_at_once() {
    let mut stand = Stand::started(DataPath::Proxy, snapshot(2, [service("web", &[WON])]));
    stand.step(Event::ProxyReady(true));
    assert!(stand.owns(WON));

    let actions = stand.step(Event::ProxyReady(false));

    assert!(reports(&actions).contains(&&Report::Lost { address: ip(WON), owner: Some("k2".into()) }));
    assert_eq!(stand.arp("eth1", request("192.0.2.200", WON)), []);
}

#[test]
fn an_address_won_back_within_its_grace_stays_on_the_host() {
    let mut stand = stand_in();
    stand.hear(2);
    let leaving = Word { leaving: true, ..stand.word(2) };

    let mut actions = stand.receive(2, leaving);
    actions.extend(only(stand.pass(Duration::from_secs(30))));

    assert!(stand.owns(WON));
    assert!(!actions.iter().any(|action| matches!(action, Action::Hold { .. } | Action::Release { .. })));
}

#[test]
fn nothing_is_listened_to_while_there_is_nothing_to_announce() {
    let listens = |actions: &[Action]| -> Vec<BTreeSet<InterfaceName>> {
        let listens = |action: &Action| match action {
            Action::Listen { interfaces } => Some(interfaces.clone()),
            _ => None,
        };
        actions.iter().filter_map(listens).collect()
    };
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(2)));

    let nothing = stand.snapshot(&snapshot(3, [service("waiting", &[]), service("loopback", &["127.0.0.2"])]));
    // It could have to take over any moment.
    let standing_by = stand.snapshot(&snapshot(3, [service("web", &[SECOND])]));
    let over = stand.snapshot(&snapshot(3, []));

    assert_eq!(listens(&nothing), Vec::<BTreeSet<InterfaceName>>::new());
    assert_eq!(listens(&standing_by), [names(&["eth1", "eth2"])]);
    assert_eq!(listens(&over), [BTreeSet::new()]);
}

#[test]
fn n_114_a_thousand_addresses_are_announced_within_a_second_at_a_bounded_rate() {
    let count = 1000_u32;
    let address = |number: u32| Ipv4Addr::from_bits(v4("203.0.112.0").to_bits() + number).to_string();
    let services = (0..count).map(|number| service(&format!("s{number}"), &[&address(number)]));
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));

    let mut sent = vec![Duration::ZERO; frames(&stand.snapshot(&snapshot(1, services))).len()];
    let mut announced = BTreeSet::new();
    let mut all_announced_at = None;
    for (time, action) in stand.pass(Duration::from_secs(30)) {
        if let Action::Send { frame: Frame::Arp(arp), .. } = action {
            sent.push(time);
            announced.insert(arp.sender);
            // Those in the first breath are not among these.
            if announced.len() == 900 {
                all_announced_at.get_or_insert(time);
            }
        }
    }

    assert_eq!(sent.len(), 1000 * 2 * 11);
    assert!(all_announced_at.unwrap() < Duration::from_secs(1), "{all_announced_at:?}");
    for window in sent.windows(600) {
        let time = window[599] - window[0];
        assert!(time >= MS * 100, "600 frames in {time:?}");
    }
}

#[test]
fn m_152_the_event_of_a_speaker_says_what_people_look_for_who_come_from_metallb() {
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));

    let announced = stand.snapshot(&snapshot(1, [service("web", &[WON])]));

    let words = "announcing from node \"k1\" with protocol \"layer2\"";
    assert_eq!(events(&announced), [(Severity::Normal, "nodeAssigned", words)]);
}

#[test]
fn m_121_the_status_moves_with_the_announcement() {
    let statuses = |actions: &[Action]| -> Vec<Option<Vec<IpAddr>>> {
        let status = |action: &Action| match action {
            Action::Write(Write::L2Status { status, .. }) => Some(status.clone().map(|status| status.addresses)),
            _ => None,
        };
        actions.iter().filter_map(status).collect()
    };
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));
    let mut facts = snapshot(1, [service("web", &[WON])]);

    let announced = stand.snapshot(&facts);
    let again = stand.snapshot(&facts);
    set_service(&mut facts, Service { endpoints: Vec::new(), ..service("web", &[WON]) });
    let silent = stand.snapshot(&facts);

    assert_eq!(statuses(&announced), [Some(vec![ip(WON)])]);
    assert_eq!(events(&announced).len(), 1);
    assert_eq!(again, []);
    assert_eq!(statuses(&silent), [None]);
    assert_eq!(events(&silent), []);
}
