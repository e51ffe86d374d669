//! Nodes in the subnet of an address come before all others.

use proptest::prelude::*;

use super::*;
use crate::{
    model::Prefix,
    speaker::announce::{Carries, Links},
};

fn subnets(prefixes: &[&str]) -> BTreeSet<Prefix> {
    prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect()
}

fn links(prefixes: &[&str]) -> Links {
    let carries = Carries { ipv4: true, ipv6: true, subnets: Some(subnets(prefixes)), ..Carries::default() };
    Links::from([("eth1".into(), carries)])
}

/// Standings of nodes that are alive, `k1` first, with the subnets of each.
fn standings(nodes: &[&[&str]]) -> Standings {
    let standing = |prefixes: &[&str]| Standing { links: Some(links(prefixes)), ..standing() };
    (1..).zip(nodes).map(|(number, prefixes)| (format!("k{number}").as_str().into(), standing(prefixes))).collect()
}

fn ranked_by(facts: &Snapshot, standings: &Standings, name: &str) -> Ranking {
    announce::ranking(facts, KUBE_PROXY, standings, &key(name)).unwrap()
}

#[test]
fn a_node_outside_of_the_subnet_of_an_address_is_out_while_another_is_inside() {
    let facts = snapshot(3, [service("web", &[WON])]);
    let standings = standings(&[&["198.51.100.0/24"], &["198.51.100.0/24", "192.0.2.0/24"], &["192.0.2.0/28"]]);

    let ranking = ranked_by(&facts, &standings, "web");

    assert_eq!(candidates(&ranking), ["k2", "k3"]);
    assert_eq!(ranking.out[&NodeName::from("k1")], Silence::NotInSubnet { address: ip(WON) });
}

#[test]
fn where_no_candidate_is_inside_all_of_them_stay() {
    let facts = snapshot(3, [service("web", &[WON])]);
    let mut standings = standings(&[&[], &["198.51.100.0/24"], &["192.0.2.0/24"]]);
    standings.insert("k3".into(), Standing { liveness: Liveness::Lost, ..standings["k3"].clone() });

    let ranking = ranked_by(&facts, &standings, "web");

    assert_eq!(candidates(&ranking), ["k1", "k2"]);
    assert_eq!(ranking.out[&NodeName::from("k3")], Silence::SpeakerLost);
}

#[test]
fn ipv6_goes_by_any_prefix_that_is_not_link_local() {
    let facts = snapshot(3, [service("web", &[SECOND])]);
    let standings = standings(&[&["2001:db8::/64"], &["192.0.2.0/24", "2001:db8:1::/64"], &["2001:db8::/48"]]);

    assert_eq!(candidates(&ranked_by(&facts, &standings, "web")), ["k1", "k3"]);
}

#[test]
fn only_interfaces_that_are_allowed_count() {
    let mut facts = snapshot(2, [service("web", &[WON])]);
    set_advertisement(&mut facts, L2Advertisement { interfaces: names(&["eth1"]), ..advertisement() });
    let mut standings = standings(&[&["198.51.100.0/24"], &["192.0.2.0/24"]]);
    let first = standings.get_mut("k1").unwrap();
    first.links.as_mut().unwrap().insert("eth2".into(), links(&["192.0.2.0/24"])["eth1"].clone());

    assert_eq!(candidates(&ranked_by(&facts, &standings, "web")), ["k2"]);
}

#[test]
fn of_two_addresses_in_two_subnets_each_counts_where_it_is_at_home() {
    let facts = snapshot(3, [service("web", &[WON, SECOND])]);
    let standings = standings(&[&["192.0.2.0/24"], &["192.0.2.0/24", "2001:db8::/64"], &["198.51.100.0/24"]]);

    let ranking = ranked_by(&facts, &standings, "web");

    assert_eq!(candidates(&ranking), ["k2", "k1"]);
    assert_eq!(ranking.candidates.iter().map(|rank| rank.serves.0).collect::<Vec<_>>(), [2, 1]);
}

/// The others, who do not hear it, count it as lost: what it has in its subnet they have already taken.
#[test]
fn a_node_that_yields_does_not_keep_the_others_out() {
    let facts = snapshot(2, [service("web", &[WON])]);
    let mut standings = standings(&[&["192.0.2.0/24"], &[]]);
    standings.get_mut("k1").unwrap().liveness = Liveness::Yielding;

    assert_eq!(candidates(&ranked_by(&facts, &standings, "web")), ["k2", "k1"]);
}

#[test]
fn link_local_prefixes_and_single_addresses_are_no_subnets_and_too_many_count_as_unknown() {
    let told = |addresses: Vec<String>| {
        let mut stand = Stand::new(DataPath::KubeProxy);
        stand.step(Event::Snapshot(Arc::new(snapshot(2, []))));
        let addresses = addresses.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let interface = Interface { addresses, ..interface(1) };
        let actions = stand.step(Event::Interfaces(BTreeMap::from([("eth1".into(), interface)])));
        words(&actions)[0].links[0].subnets.clone()
    };
    let some = ["192.0.2.7/24", "192.0.2.8/24", "192.0.2.9/32", "fe80::1/64", "2001:db8::1/64", "2001:db8::2/128"];
    let many = |count: u8| (0..count).map(|number| format!("10.0.{number}.1/24")).collect();

    assert_eq!(told(some.map(str::to_owned).to_vec()), Some(vec![(ip("192.0.2.0"), 24), (ip("2001:db8::"), 64)]));
    assert_eq!(told(many(8)).map(|subnets| subnets.len()), Some(8));
    assert_eq!(told(many(9)), None);
}

/// `k1`, which is outside, with what `k2` says of its own subnets.
fn word_of_k2(stand: &mut Stand, prefixes: Option<&[&str]>) -> Word {
    let told = |prefix: Prefix| (prefix.ip(), prefix.prefix());
    let subnets = prefixes.map(|prefixes| subnets(prefixes).into_iter().map(told).collect());
    let link = Link { subnets, ..wire_link("eth1") };
    Word { links: vec![link], ..stand.word(2) }
}

fn outside() -> Stand {
    let mut stand = Stand::new(DataPath::KubeProxy);
    let addresses = vec!["fe80::1/64".parse().unwrap(), "198.51.100.11/24".parse().unwrap()];
    stand.step(Event::Interfaces(BTreeMap::from([("eth1".into(), Interface { addresses, ..interface(1) })])));
    stand.snapshot(&snapshot(2, [service("web", &[WON])]));
    stand
}

#[test]
fn a_node_of_unknown_subnets_is_believed_to_be_inside_until_its_first_word_says_otherwise() {
    let mut stand = outside();
    assert_eq!(stand.silence("web"), Some(Silence::NotInSubnet { address: ip(WON) }));

    let word = word_of_k2(&mut stand, Some(&["198.51.100.0/24"]));
    stand.receive(2, word);

    assert!(stand.owns(WON));
}

#[test]
fn the_word_by_which_a_node_in_the_subnet_is_heard_moves_the_address_and_nobody_asks_in_vain() {
    let mut stand = outside();
    stand.pass(DETECTION);
    assert!(stand.owns(WON));

    let word = word_of_k2(&mut stand, Some(&["192.0.2.0/24"]));
    let actions = stand.receive(2, word);

    assert_eq!(stand.silence("web"), Some(Silence::NotInSubnet { address: ip(WON) }));
    assert!(reports(&actions).contains(&&Report::Lost { address: ip(WON), owner: Some("k2".into()) }));
    let request = Arp {
        destination: Mac::BROADCAST,
        source: mac(9),
        operation: Operation::Request,
        sender_mac: mac(9),
        sender: v4("192.0.2.99"),
        target_mac: Mac([0; 6]),
        target: v4(WON),
    };
    let asked = stand.step(Event::Arp { interface: "eth1".into(), arp: request });
    assert_eq!(frames(&asked).len(), 1);
}

const PREFIXES: [&str; 4] = ["192.0.2.0/28", "192.0.2.4/30", "192.0.2.8/29", "2001:db8::/64"];

proptest! {
    /// What the machine keeps from step to step must not show.
    #[test]
    fn changing_subnets_bit_by_bit_ends_where_a_fresh_speaker_begins(
        addresses in prop::collection::vec(prop::collection::btree_set(0_u8..16, 1..3), 1..6),
        changes in prop::collection::vec((2_u8..5, prop::option::of(prop::sample::subsequence(PREFIXES.to_vec(), 0..4))), 1..12),
        own in prop::sample::subsequence(PREFIXES.to_vec(), 0..4),
    ) {
        let texts: Vec<Vec<String>> = addresses
            .iter()
            .map(|set| set.iter().map(|last| format!("192.0.2.{last}")).collect())
            .collect();
        let services = texts.iter().enumerate().map(|(number, addresses)| {
            service(&format!("s{number}"), &addresses.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let facts = snapshot(4, services);
        let begin = || {
            let mut stand = Stand::new(DataPath::KubeProxy);
            let addresses = ["fe80::1/64"].iter().chain(&own).map(|prefix| prefix.parse().unwrap()).collect();
            let interface = Interface { addresses, ..interface(1) };
            stand.step(Event::Interfaces(BTreeMap::from([("eth1".into(), interface)])));
            stand.snapshot(&facts);
            stand
        };
        let say = |stand: &mut Stand, node: u8, prefixes: Option<&Vec<&str>>| {
            let mut word = word_of_k2(stand, prefixes.map(Vec::as_slice));
            word.node = format!("k{node}");
            word.proxy_ready = node != 4;
            stand.receive(node, word);
        };
        let mut stand = begin();
        let mut last: BTreeMap<u8, &Option<Vec<&str>>> = BTreeMap::new();
        for (node, prefixes) in &changes {
            say(&mut stand, *node, prefixes.as_ref());
            last.insert(*node, prefixes);
        }

        let mut fresh = begin();
        for (node, prefixes) in last {
            say(&mut fresh, node, prefixes.as_ref());
        }

        prop_assert_eq!(stand.speaker.owned(), fresh.speaker.owned());
        let (kept, new): (Vec<_>, Vec<_>) = (stand.speaker.outcomes().collect(), fresh.speaker.outcomes().collect());
        prop_assert_eq!(kept, new);
    }
}
