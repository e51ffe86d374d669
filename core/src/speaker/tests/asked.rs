//! What a person can ask of an election: to spare a cordoned node, to keep an owner, to move an address.

use super::*;

fn cordoned(number: u8) -> Node {
    Node { unschedulable: true, ..node(number) }
}

fn sticky() -> L2Advertisement {
    L2Advertisement { is_sticky: true, ..advertisement() }
}

fn wishes(service: Service, node: &str) -> Service {
    Service { wished_node: Some(node.into()), ..service }
}

fn announced_by(facts: &mut Snapshot, name: &str, nodes: &[(&str, u32)]) {
    let nodes = nodes.iter().map(|(node, transitions)| ((*node).into(), status(*transitions))).collect();
    facts.announced_by.insert(key(name), Arc::new(nodes));
}

/// What this node says of its own announcing of `web`, in order: for the how manieth time the owner had changed.
fn told(actions: &[Action]) -> Vec<Option<u32>> {
    let status = |action: &Action| match action {
        Action::Write(Write::L2Status { status, .. }) => Some(status.as_ref().map(|status| status.transitions)),
        _ => None,
    };
    actions.iter().filter_map(status).collect()
}

#[test]
fn m_101_a_cordoned_node_is_elected_like_any_other() {
    let mut facts = snapshot(3, [service("web", &[WON])]);
    set_node(&mut facts, cordoned(1));

    assert_eq!(candidates(&ranked(&facts, "web").unwrap()), ["k1", "k2", "k3"]);
}

#[test]
fn with_yield_on_cordon_a_cordoned_node_comes_last_and_serves_if_it_is_the_only_one() {
    let policy = Policy { yield_on_cordon: true, ..KUBE_PROXY };
    let mut facts = snapshot(3, [wishes(service("web", &[WON]), "k1"), local("alone", &[WON], &["k1"])]);
    facts.services.remove(&key("alone"));
    set_node(&mut facts, cordoned(1));
    announced_by(&mut facts, "web", &[("k1", 4)]);
    set_advertisement(&mut facts, sticky());

    let many = announce::ranking(&facts, policy, &Standings::new(), &key("web")).unwrap();
    set_service(&mut facts, local("web", &[WON], &["k1"]));
    let alone = announce::ranking(&facts, policy, &Standings::new(), &key("web")).unwrap();

    assert_eq!(candidates(&many), ["k2", "k3", "k1"]);
    assert_eq!(candidates(&alone), ["k1"]);
}

#[test]
fn a_node_that_is_cordoned_answers_until_its_successor_is_heard_on_the_link() {
    let config = Config { yield_on_cordon: true, ..Config::new("k1".into(), DataPath::KubeProxy, 1) };
    let mut facts = snapshot(2, [service("web", &[WON])]);
    let mut stand = Stand::with(config);
    stand.step(Event::Interfaces(interfaces(1)));
    stand.snapshot(&facts);
    stand.hear(2);
    assert!(stand.owns(WON));

    set_node(&mut facts, cordoned(1));
    stand.snapshot(&facts);

    assert_eq!(stand.silence("web"), Some(Silence::NotElected { owner: "k2".into() }));
    assert!(stand.is_answering(WON));
    stand.step(Event::Arp { interface: "eth1".into(), arp: Arp::announcement(Operation::Request, v4(WON), mac(20)) });
    assert!(!stand.is_answering(WON));
}

impl Stand {
    /// Whether somebody who asks for an IPv4 address on the first interface is answered.
    fn is_answering(&mut self, address: &str) -> bool {
        let request = Arp { sender: v4("192.0.2.200"), ..Arp::probe(v4(address), mac(100)) };
        !frames(&self.step(Event::Arp { interface: "eth1".into(), arp: request })).is_empty()
    }
}

#[test]
fn without_stickiness_an_address_goes_back_to_the_first_in_order() {
    let mut facts = snapshot(3, [service("web", &[WON])]);
    announced_by(&mut facts, "web", &[("k3", 7)]);

    assert_eq!(candidates(&ranked(&facts, "web").unwrap())[0], "k1");
}

#[test]
fn a_sticky_owner_keeps_its_address_before_preference_and_hash() {
    let mut facts = snapshot(3, [service("web", &[WON])]);
    let preferred = PreferredNodes { weight: NonZeroU8::MIN, preference: named("k2") };
    set_advertisement(&mut facts, L2Advertisement { preferred_nodes: vec![preferred], ..sticky() });
    announced_by(&mut facts, "web", &[("k3", 7)]);

    assert_eq!(candidates(&ranked(&facts, "web").unwrap()), ["k3", "k2", "k1"]);
}

#[test]
fn of_several_that_say_they_announce_it_the_last_one_keeps_it() {
    let mut facts = snapshot(3, [service("web", &[WON])]);
    set_advertisement(&mut facts, sticky());
    // One has died, and what it said still stands.
    announced_by(&mut facts, "web", &[("k1", 7), ("k2", 8)]);

    assert_eq!(candidates(&ranked(&facts, "web").unwrap())[0], "k2");
}

#[test]
fn an_owner_that_cannot_serve_keeps_nothing() {
    let mut facts = snapshot(3, [local("web", &[WON], &["k1", "k2"])]);
    set_advertisement(&mut facts, sticky());
    announced_by(&mut facts, "web", &[("k3", 7)]);

    assert_eq!(candidates(&ranked(&facts, "web").unwrap()), ["k1", "k2"]);
}

#[test]
fn a_move_beats_stickiness_preference_and_hash_but_not_what_can_be_served() {
    let mut facts = snapshot(3, [wishes(service("web", &[WON]), "k3")]);
    let preferred = PreferredNodes { weight: NonZeroU8::MIN, preference: named("k2") };
    set_advertisement(&mut facts, L2Advertisement { preferred_nodes: vec![preferred], ..sticky() });
    announced_by(&mut facts, "web", &[("k1", 7)]);

    assert_eq!(candidates(&ranked(&facts, "web").unwrap()), ["k3", "k1", "k2"]);

    set_service(&mut facts, wishes(local("web", &[WON], &["k1", "k2"]), "k3"));
    assert_eq!(candidates(&ranked(&facts, "web").unwrap()), ["k1", "k2"]);
}

#[test]
fn n_106_a_move_loses_nothing_and_counts_once() {
    let mut facts = snapshot(2, [service("web", &[WON])]);
    let mut old = Stand::new(DataPath::KubeProxy);
    let mut new = Stand::with(Config::new("k2".into(), DataPath::KubeProxy, 1));
    for stand in [&mut old, &mut new] {
        stand.step(Event::Interfaces(interfaces(1)));
        stand.snapshot(&facts);
    }
    old.hear(2);
    announced_by(&mut facts, "web", &[("k1", 0)]);
    set_service(&mut facts, wishes(service("web", &[WON]), "k2"));

    // The new owner speaks before the old one falls silent.
    let taken = new.snapshot(&facts);
    let left = old.snapshot(&facts);
    assert!(new.owns(WON) && new.is_answering(WON));
    assert!(!old.owns(WON) && old.is_answering(WON));
    assert_eq!((told(&taken), told(&left)), (vec![Some(1)], vec![None]));
    old.step(Event::Arp { interface: "eth1".into(), arp: Arp::announcement(Operation::Request, v4(WON), mac(20)) });
    assert!(!old.is_answering(WON));

    // And back.
    announced_by(&mut facts, "web", &[("k2", 1)]);
    set_service(&mut facts, service("web", &[WON]));
    assert_eq!(told(&old.snapshot(&facts)), [Some(2)]);
    assert!(old.owns(WON));
}

#[test]
fn a_node_that_comes_back_leaves_a_sticky_address_where_it_is() {
    let mut facts = snapshot(2, [service("web", &[WON])]);
    set_advertisement(&mut facts, sticky());
    announced_by(&mut facts, "web", &[("k1", 3), ("k2", 4)]);
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));

    let actions = stand.snapshot(&facts);

    assert_eq!(stand.silence("web"), Some(Silence::NotElected { owner: "k2".into() }));
    assert_eq!(told(&actions), [None], "what its earlier life said is taken away");

    stand.pass(DETECTION);
    assert!(stand.owns(WON), "the owner is gone");
}

#[test]
fn a_speaker_that_was_never_missed_goes_on_where_it_was() {
    let mut facts = snapshot(1, [service("web", &[WON])]);
    announced_by(&mut facts, "web", &[("k1", 3)]);
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));

    assert_eq!(told(&stand.snapshot(&facts)), [Some(3)]);
}

#[test]
fn news_of_who_announces_moves_what_is_sticky() {
    let mut facts = snapshot(2, [service("web", &[WON])]);
    set_advertisement(&mut facts, sticky());
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));
    stand.snapshot(&facts);
    stand.hear(2);
    assert!(stand.owns(WON));

    announced_by(&mut facts, "web", &[("k1", 0), ("k2", 1)]);
    stand.snapshot(&facts);

    assert_eq!(stand.silence("web"), Some(Silence::NotElected { owner: "k2".into() }));
}

#[test]
fn a_node_that_is_wanted_and_comes_back_later_gets_the_address() {
    let mut facts = snapshot(3, [wishes(service("web", &[WON]), "k3")]);
    set_advertisement(&mut facts, advertisement());
    let mut stand = Stand::new(DataPath::KubeProxy);
    stand.step(Event::Interfaces(interfaces(1)));
    stand.snapshot(&facts);
    stand.pass_hearing(DETECTION, &[2]);
    assert!(stand.owns(WON));

    stand.hear(3);

    assert_eq!(stand.silence("web"), Some(Silence::NotElected { owner: "k3".into() }));
}
