//! What kube-proxy has to say before an address with traffic policy `Local` is announced.

use super::*;
use crate::speaker::{Answer, health::SILENCE_PATIENCE};

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

/// A Service with traffic policy `Local`, an endpoint on these nodes, and this health check port.
fn checked(name: &str, address: &str, nodes: &[&str], number: u16) -> Service {
    Service { health_check_node_port: Some(port(number)), ..local(name, &[address], nodes) }
}

fn entry(nodes: &[&str]) -> Service {
    Service { is_entry: true, ..checked("entry", "192.0.2.1", nodes, 32_000) }
}

fn checks(actions: &[Action]) -> Vec<(Vec<u16>, Vec<IpAddr>)> {
    let check = |action: &Action| match action {
        Action::CheckHealth { ports, at } => Some((ports.iter().map(|port| port.get()).collect(), at.clone())),
        _ => None,
    };
    actions.iter().filter_map(check).collect()
}

fn told(actions: &[Action]) -> Option<(Vec<u16>, bool)> {
    let word = actions.iter().find_map(|action| match action {
        Action::Gossip { datagram: Datagram { message: Message::Word(word), .. }, .. } => Some(word),
        _ => None,
    })?;
    Some((word.refused.iter().map(|port| port.get()).collect(), word.refuses_all))
}

impl Stand {
    fn answers(&mut self, number: u16, answer: Answer) -> Vec<Action> {
        self.step(Event::Health { port: port(number), answer })
    }
}

#[test]
fn an_address_with_policy_local_waits_for_kube_proxy_to_agree() {
    let facts = snapshot(1, [checked("web", "192.0.2.1", &["k1"], 32_000)]);
    let mut stand = Stand::new(DataPath::KubeProxy);
    let actions = stand.snapshot(&facts);
    stand.step(Event::Interfaces(interfaces(1)));

    assert_eq!(checks(&actions), [(vec![32_000], vec![ip("198.51.100.11"), ip("127.0.0.1")])]);
    assert_eq!(stand.silence("web"), Some(Silence::HealthCheckFails { port: port(32_000) }));

    stand.answers(32_000, Answer::Agrees);
    assert!(stand.owns("192.0.2.1"));

    stand.answers(32_000, Answer::Refuses);
    assert!(!stand.owns("192.0.2.1"));
}

#[test]
fn kube_proxy_may_restart_while_its_rules_carry_on() {
    let facts = snapshot(1, [checked("web", "192.0.2.1", &["k1"], 32_000)]);
    let mut stand = Stand::started(DataPath::KubeProxy, facts);
    stand.answers(32_000, Answer::Agrees);

    stand.answers(32_000, Answer::Nothing);
    stand.pass(SILENCE_PATIENCE - MS);
    assert!(stand.owns("192.0.2.1"));
    stand.answers(32_000, Answer::Agrees);
    stand.answers(32_000, Answer::Nothing);
    stand.pass(SILENCE_PATIENCE - MS);
    assert!(stand.owns("192.0.2.1"));

    stand.pass(MS);
    assert!(!stand.owns("192.0.2.1"));
}

#[test]
fn only_what_has_an_endpoint_here_and_policy_local_is_asked_for() {
    let cluster = Service { health_check_node_port: Some(port(32_001)), ..service("cluster", &["192.0.2.2"]) };
    let elsewhere = checked("elsewhere", "192.0.2.3", &["k2"], 32_002);
    let facts = snapshot(2, [cluster, elsewhere]);
    let mut stand = Stand::new(DataPath::KubeProxy);

    assert_eq!(checks(&stand.snapshot(&facts)), []);
    let mut other = Stand::new(DataPath::Proxy);
    assert_eq!(checks(&other.snapshot(&snapshot(1, [checked("web", "192.0.2.1", &["k1"], 32_000)]))), []);
}

#[test]
fn a_check_ends_with_its_last_service() {
    let mut facts = snapshot(1, [checked("web", "192.0.2.1", &["k1"], 32_000)]);
    let mut stand = Stand::started(DataPath::KubeProxy, facts.clone());
    facts.services.remove(&key("web"));

    let actions = stand.snapshot(&facts);

    assert_eq!(checks(&actions), [(vec![], vec![ip("198.51.100.11"), ip("127.0.0.1")])]);
}

#[test]
fn a_node_whose_kube_proxy_refuses_is_no_candidate_on_any_node() {
    // By the hash, k1 comes first for this address.
    let facts = snapshot(2, [checked("web", "192.0.2.10", &["k1", "k2"], 32_000)]);
    let mut stand = Stand::started(DataPath::KubeProxy, facts);
    stand.hear(2);

    assert_eq!(stand.silence("web"), Some(Silence::HealthCheckFails { port: port(32_000) }));
    stand.pass(INTERVAL);
    let actions = stand.pass(INTERVAL).into_iter().map(|(_, action)| action).collect::<Vec<_>>();
    assert_eq!(told(&actions), Some((vec![32_000], false)));

    let both = Word { refused: [port(32_000)].into(), ..stand.word(2) };
    stand.receive(2, both);
    stand.answers(32_000, Answer::Agrees);
    assert!(stand.owns("192.0.2.10"));

    stand.hear(2);
    stand.answers(32_000, Answer::Refuses);
    assert!(!stand.owns("192.0.2.10"));
}

#[test]
fn more_refusals_than_can_be_told_count_as_all() {
    let services =
        (0..65).map(|number| checked(&format!("web-{number}"), &format!("192.0.2.{number}"), &["k1"], 31_000 + number));
    let mut stand = Stand::started(DataPath::KubeProxy, snapshot(2, services));
    stand.hear(2);
    stand.answers(31_000, Answer::Agrees);
    assert!(stand.owns("192.0.2.0"));
    stand.answers(31_001, Answer::Agrees);
    assert!(stand.owns("192.0.2.1"));

    let actions = stand.answers(31_000, Answer::Refuses);
    let later = stand.pass(INTERVAL).into_iter().map(|(_, action)| action);
    assert_eq!(told(&actions.into_iter().chain(later).collect::<Vec<_>>()).unwrap().0.len(), 64);

    stand.answers(31_001, Answer::Refuses);
    let actions = stand.pass(INTERVAL).into_iter().map(|(_, action)| action).collect::<Vec<_>>();
    assert_eq!(told(&actions), Some((vec![], true)));
}

#[test]
fn the_entry_is_announced_only_where_the_proxy_says_so_itself_and_its_slice_too() {
    let mut facts = snapshot(2, [entry(&["k1"])]);
    let mut stand = Stand::started(DataPath::KubeProxy, facts.clone());
    stand.answers(32_000, Answer::Agrees);
    assert_eq!(stand.silence("entry"), Some(Silence::ProxyNotReady));

    stand.step(Event::ProxyReady(true));
    assert!(stand.owns("192.0.2.1"));

    stand.step(Event::ProxyReady(false));
    assert!(!stand.owns("192.0.2.1"));
    stand.step(Event::ProxyReady(true));

    // A proxy that is asked to end still serves, but draws nothing more.
    let mut leaving = entry(&["k1"]);
    leaving.endpoints[0] = Endpoint { ready: false, terminating: true, ..leaving.endpoints[0].clone() };
    set_service(&mut facts, leaving);
    stand.snapshot(&facts);
    assert!(!stand.owns("192.0.2.1"));
}

#[test]
fn other_services_of_a_cluster_do_not_need_the_proxy() {
    let mut stand = Stand::started(DataPath::KubeProxy, snapshot(1, [service("web", &["192.0.2.1"])]));

    stand.step(Event::ProxyReady(false));

    assert!(stand.owns("192.0.2.1"));
}

#[test]
fn an_entry_whose_owner_has_lost_its_proxy_moves_to_the_next_one() {
    // By the hash, k2 comes first for this address.
    let facts = snapshot(2, [Service { observed: service("", &["2001:db8::1"]).observed, ..entry(&["k1", "k2"]) }]);
    let mut stand = Stand::started(DataPath::KubeProxy, facts);
    stand.step(Event::ProxyReady(true));
    stand.answers(32_000, Answer::Agrees);
    stand.hear(2);
    assert_eq!(stand.silence("entry"), Some(Silence::NotElected { owner: "k2".into() }));

    let without = Word { proxy_ready: false, ..stand.word(2) };
    stand.receive(2, without);

    assert!(stand.owns("2001:db8::1"));
}
