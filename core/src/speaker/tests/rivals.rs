//! Two speakers of ours that own the same address.

use super::*;

/// `k1` on the stage, which has heard `k2` say where its interface is found, and then never again.
fn alone(address: &str) -> Stand {
    let mut stand = Stand::started(DataPath::KubeProxy, snapshot(2, [service("web", &[address])]));
    let word = told(&mut stand);
    stand.receive(2, word);
    stand.pass(Duration::from_secs(20));
    assert!(stand.owns(address));
    stand
}

/// What `k2` says, with its hardware address.
fn told(stand: &mut Stand) -> Word {
    let link = Link { mac: Some(mac(20)), ..wire_link("eth1") };
    Word { links: vec![link], ..stand.word(2) }
}

fn of_k2(address: &str) -> Event {
    of(2, address)
}

fn of(number: u8, address: &str) -> Event {
    let mac = mac(10 * number);
    match ip(address) {
        IpAddr::V4(address) => {
            Event::Arp { interface: "eth1".into(), arp: Arp::announcement(Operation::Reply, address, mac) }
        }
        IpAddr::V6(address) => {
            Event::Ndp { interface: "eth1".into(), ndp: Ndp::Advertisement(Advertisement::announcement(address, mac)) }
        }
    }
}

/// The addresses that these frames only ask for.
fn questions(actions: &[Action]) -> Vec<IpAddr> {
    let asked = |frame: &Frame| match frame {
        Frame::Arp(arp) if arp.sender.is_unspecified() => Some(arp.target.into()),
        Frame::Solicitation(solicitation) if solicitation.is_probe() => Some(solicitation.target.into()),
        _ => None,
    };
    frames(actions).into_iter().filter_map(|(_, frame)| asked(frame)).collect()
}

/// Lets time pass while `k2` owns the address: it answers when it is asked.
fn pass_with_k2(stand: &mut Stand, time: Duration, address: &str) -> Vec<Action> {
    let end = stand.now + time;
    let mut actions = Vec::new();
    while stand.now < end {
        let more = only(stand.pass(MS.min(end - stand.now)));
        let is_asked = questions(&more).contains(&ip(address));
        actions.extend(more);
        if is_asked {
            actions.extend(stand.step(of_k2(address)));
        }
    }
    actions
}

fn rival(address: &str, yields: bool) -> Report {
    Report::Rival { address: ip(address), interface: "eth1".into(), node: "k2".into(), yields }
}

#[test]
fn a_speaker_that_announces_before_its_word_has_come_is_no_stranger() {
    let mut stand = Stand::started(DataPath::KubeProxy, snapshot(2, [service("web", &[WON])]));
    assert!(stand.owns(WON));

    let mut actions = stand.step(of_k2(WON));
    actions.extend(only(stand.pass(INTERVAL)));
    let word = told(&mut stand);
    actions.extend(stand.receive(2, word));
    actions.extend(only(stand.pass(DETECTION * 2)));

    assert_eq!(events(&actions).into_iter().filter(|(_, reason, _)| *reason == "addressConflict").count(), 0);
    assert!(!reports(&actions).iter().any(|report| matches!(report, Report::Conflict { .. })));
}

#[test]
fn of_two_owners_that_do_not_hear_each_other_the_lower_ranked_yields_within_one_detection_time() {
    for address in ["192.0.2.11", SECOND] {
        // Of k1 and k2 the first is ahead for one, the second for the other.
        let is_second = address == SECOND;
        let mut stand = alone(address);

        stand.step(of_k2(address));
        let actions = pass_with_k2(&mut stand, DETECTION, address);

        assert_eq!(reports(&actions)[0], &rival(address, is_second));
        assert_eq!(stand.owns(address), !is_second);
        assert_eq!(events(&actions), [], "it is no stranger");
    }
}

#[test]
fn of_two_owners_that_hear_each_other_the_same_one_yields_by_both_families() {
    const SIX: &str = "2001:db8::1";
    let is_ahead = |address| elect::hash(&"k1".into(), ip(address)) < elect::hash(&"k2".into(), ip(address));
    assert!(is_ahead("192.0.2.11") && !is_ahead(SIX));
    for address in ["192.0.2.11", SIX] {
        let mut stand = Stand::started(DataPath::KubeProxy, snapshot(2, [service("web", &["192.0.2.11", SIX])]));
        let hear = |stand: &mut Stand| {
            let word = told(stand);
            stand.receive(2, word);
        };
        hear(&mut stand);

        stand.step(of_k2(address));
        let mut actions = pass_with_k2(&mut stand, DETECTION / 2, address);
        hear(&mut stand);
        actions.extend(pass_with_k2(&mut stand, DETECTION / 2, address));

        assert_eq!(reports(&actions), [&rival(address, false)]);
    }
}

#[test]
fn of_three_owners_that_do_not_hear_each_other_only_the_first_in_rank_stays() {
    for address in ["192.0.2.11", SECOND] {
        let mut stand = Stand::started(DataPath::KubeProxy, snapshot(3, [service("web", &[address])]));
        for number in [2, 3] {
            let link = Link { mac: Some(mac(10 * number)), ..wire_link("eth1") };
            let word = Word { links: vec![link], ..stand.word(number) };
            stand.receive(number, word);
        }
        stand.pass(Duration::from_secs(20));
        assert!(stand.owns(address));
        let first = (1..=3).min_by_key(|number| elect::hash(&format!("k{number}").as_str().into(), ip(address)));

        // All who own it answer whoever asks, and ask themselves.
        for _ in 0..20 {
            for number in [2, 3] {
                stand.step(of(number, address));
            }
            stand.pass(MS * 20);
        }

        assert_eq!(stand.owns(address), first == Some(1), "{address}");
    }
}

#[test]
fn the_one_that_stays_says_so_once_for_the_other_to_hear() {
    let mut stand = alone("192.0.2.11");

    stand.step(of_k2("192.0.2.11"));
    let actions = pass_with_k2(&mut stand, Duration::from_secs(5), "192.0.2.11");

    let announced = frames(&actions).len() - questions(&actions).len();
    assert_eq!(announced, 2, "one round of ARP");
    assert!(stand.owns("192.0.2.11"));
}

#[test]
fn a_rival_that_does_not_answer_had_left_the_address_already() {
    let mut stand = alone(SECOND);

    stand.step(of_k2(SECOND));
    let actions = only(stand.pass(Duration::from_secs(20)));

    assert_eq!(questions(&actions), [ip(SECOND)]);
    assert_eq!(reports(&actions), Vec::<&Report>::new());
    assert!(stand.owns(SECOND));
}

/// Who asks may be the other owner, which would leave the address to a node that has just left it.
#[test]
fn a_node_that_only_answers_on_for_its_successor_does_not_answer_probes() {
    let mut facts = snapshot(2, [service("web", &[WON])]);
    let mut stand = Stand::started(DataPath::KubeProxy, facts.clone());
    let word = told(&mut stand);
    stand.receive(2, word);
    set_service(&mut facts, Service { wished_node: Some("k2".into()), ..service("web", &[WON]) });
    stand.snapshot(&facts);
    let asked = |arp: Arp| Event::Arp { interface: "eth1".into(), arp };

    let probe = Arp::probe(v4(WON), mac(20));
    let request = Arp { sender: v4("192.0.2.200"), ..Arp::probe(v4(WON), mac(100)) };

    assert_eq!(frames(&stand.step(asked(probe))), []);
    assert_eq!(frames(&stand.step(asked(request))).len(), 1);
}

#[test]
fn what_was_ceded_stays_so_while_the_other_answers_and_comes_back_soon_after_it_does_not() {
    let mut stand = alone(SECOND);
    stand.step(of_k2(SECOND));
    pass_with_k2(&mut stand, DETECTION, SECOND);
    assert_eq!(stand.silence("web"), Some(Silence::NotElected { owner: "k2".into() }));

    let actions = pass_with_k2(&mut stand, Duration::from_secs(30), SECOND);
    assert!(!stand.owns(SECOND));
    assert_eq!(frames(&actions).len(), questions(&actions).len(), "nothing is announced");

    let actions = only(stand.pass(DETECTION * 5));
    assert!(stand.owns(SECOND));
    assert!(frames(&actions).len() > questions(&actions).len());
}

#[test]
fn once_words_come_through_again_they_decide() {
    let mut stand = alone(SECOND);
    stand.step(of_k2(SECOND));
    pass_with_k2(&mut stand, DETECTION, SECOND);

    let word = told(&mut stand);
    stand.receive(2, word);
    assert_eq!(stand.silence("web"), Some(Silence::NotElected { owner: "k2".into() }));
    // It is lost without another word on the link: there is nothing left to ask for.
    let actions = only(stand.pass(DETECTION));

    assert!(stand.owns(SECOND));
    assert_eq!(questions(&actions), Vec::<IpAddr>::new());
}

#[test]
fn two_that_hear_each_other_and_differ_in_their_facts_go_by_the_hash() {
    let mut facts = snapshot(3, [service("web", &[SECOND])]);
    let preferred = PreferredNodes { weight: NonZeroU8::MIN, preference: named("k1") };
    set_advertisement(&mut facts, L2Advertisement { preferred_nodes: vec![preferred], ..advertisement() });
    let mut stand = Stand::started(DataPath::KubeProxy, facts);
    let word = told(&mut stand);
    stand.receive(2, word);
    assert!(stand.owns(SECOND));

    stand.step(of_k2(SECOND));
    for _ in 0..30 {
        let word = told(&mut stand);
        stand.receive(2, word);
        pass_with_k2(&mut stand, MS * 10, SECOND);
    }
    assert!(!stand.owns(SECOND));

    // What somebody else leaves to us is not this.
    let other = Word { yields: vec![(tag("k1"), 1)], ..stand.word(3) };
    stand.receive(3, other);
    assert!(!stand.owns(SECOND));

    // It has learned what it did not know, and says that it has left the address to us.
    let word = Word { yields: vec![(tag("k1"), 1)], ..told(&mut stand) };
    stand.receive(2, word);
    assert!(stand.owns(SECOND));
}

#[test]
fn a_thousand_ceded_addresses_are_asked_for_at_a_bounded_rate() {
    let addresses: Vec<String> =
        (0..1500_u32).map(|number| format!("203.0.{}.{}", 112 + number / 250, number % 250)).collect();
    let services = addresses.iter().map(|address| service(address, &[address]));
    let mut stand = Stand::started(DataPath::KubeProxy, snapshot(2, services));
    let word = told(&mut stand);
    stand.receive(2, word);
    stand.pass(Duration::from_secs(30));
    for address in &addresses {
        stand.step(of_k2(address));
    }
    let first = only(stand.pass(DETECTION / 2));
    for address in questions(&first) {
        stand.step(of_k2(&address.to_string()));
    }
    stand.pass(DETECTION / 2);
    let left = addresses.len() - stand.speaker.owned().len();
    assert!(left > 600, "{left}");

    let mut asked = 0;
    for _ in 0..100 {
        let actions = only(stand.pass(MS * 50));
        let questions = questions(&actions);
        asked += questions.len();
        for address in questions {
            stand.step(of_k2(&address.to_string()));
        }
    }

    assert_eq!(addresses.len() - stand.speaker.owned().len(), left);
    assert!((3000..=6000).contains(&asked), "{asked} in 5 s");
}
