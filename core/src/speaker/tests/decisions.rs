//! Who may announce what, and who does.

use proptest::prelude::*;

use super::*;

#[test]
fn m_098_the_owner_has_the_smallest_hash_among_the_candidates() {
    let ranking = ranked(&snapshot(3, [service("web", &["192.0.2.11"])]), "web").unwrap();

    assert_eq!(candidates(&ranking), ["k3", "k1", "k2"]);
    assert_eq!(ranking.candidates[0].hash, elect::hash(&"k3".into(), ip("192.0.2.11")));
}

#[test]
fn m_098_of_all_nodes_exactly_one_announces() {
    let facts = Arc::new(snapshot(3, [service("web", &["192.0.2.11"])]));
    let mut owners = Vec::new();

    for name in ["k1", "k2", "k3"] {
        let mut stand = Stand::with(Config::new(name.into(), DataPath::KubeProxy, 1));
        stand.step(Event::Interfaces(interfaces(1)));
        stand.step(Event::Snapshot(facts.clone()));
        match stand.silence("web") {
            None => owners.push(name),
            Some(silence) => assert_eq!(silence, Silence::NotElected { owner: "k3".into() }),
        }
    }

    assert_eq!(owners, ["k3"]);
}

#[test]
fn m_100_an_excluded_node_is_never_elected_unless_the_label_is_ignored() {
    let mut facts = snapshot(3, [service("web", &[WON])]);
    let mut excluded = node(1);
    excluded.labels.insert(EXCLUDE_LABEL.to_owned(), "false".to_owned());
    set_node(&mut facts, excluded);

    let obeying = ranked(&facts, "web").unwrap();
    let ignoring = Policy { ignore_exclude_label: true, ..KUBE_PROXY };
    let ignoring = announce::ranking(&facts, ignoring, &Standings::new(), &key("web")).unwrap();

    assert_eq!(candidates(&obeying), ["k2", "k3"]);
    assert_eq!(obeying.out[&NodeName::from("k1")], Silence::NodeExcluded);
    assert_eq!(candidates(&ignoring), ["k1", "k2", "k3"]);
}

#[test]
fn m_101_a_node_without_network_is_never_elected() {
    let mut facts = snapshot(3, [service("web", &[WON])]);
    set_node(&mut facts, Node { network_unavailable: true, ..node(1) });

    let ranking = ranked(&facts, "web").unwrap();

    assert_eq!(candidates(&ranking), ["k2", "k3"]);
    assert_eq!(ranking.out[&NodeName::from("k1")], Silence::NodeNetworkUnavailable);
}

#[test]
fn m_102_with_policy_local_only_nodes_with_an_endpoint_are_candidates() {
    let cluster = Service { endpoints: vec![endpoint(Some("k3"))], ..service("cluster", &["192.0.2.1"]) };
    let facts = snapshot(3, [local("local", &[WON], &["k2", "k3"]), cluster]);

    let local = ranked(&facts, "local").unwrap();

    assert_eq!(candidates(&local), ["k2", "k3"]);
    assert_eq!(local.out[&NodeName::from("k1")], Silence::NoLocalEndpoint);
    assert_eq!(ranked(&facts, "cluster").unwrap().candidates.len(), 3);
}

#[test]
fn m_103_without_a_servable_endpoint_nobody_announces() {
    let draining = Endpoint { ready: false, serving: true, terminating: true, ..endpoint(None) };
    let gone = Endpoint { serving: false, ..draining.clone() };
    let with = |name, endpoints| Service { endpoints, ..service(name, &[WON]) };

    let ranking = |service: Service| ranked(&snapshot(3, [service.clone()]), &service.key.name);

    assert_eq!(ranking(with("none", vec![])), Err(Silence::NoReadyEndpoint));
    assert_eq!(ranking(with("gone", vec![gone.clone()])), Err(Silence::NoReadyEndpoint));
    assert_eq!(ranking(with("draining", vec![gone, draining])).unwrap().candidates.len(), 3);
}

#[test]
fn m_104_a_pool_without_an_advertisement_is_not_announced() {
    let mut facts = snapshot(3, [service("web", &[WON])]);
    let pools = PoolChoice { names: BTreeSet::from(["other".into()]), selectors: Vec::new() };
    set_advertisement(&mut facts, L2Advertisement { pools, ..advertisement() });

    assert_eq!(ranked(&facts, "web"), Err(Silence::NoAdvertisement { pool: "pool".into() }));
}

#[test]
fn m_105_candidates_are_the_union_of_what_all_advertisements_select() {
    let select = |name, node| L2Advertisement {
        key: ObjectKey::new("default", name),
        node_selectors: vec![named(node)],
        ..advertisement()
    };
    let mut facts = snapshot(3, [service("web", &[WON])]);
    facts.l2_advertisements.clear();
    set_advertisement(&mut facts, select("a", "k2"));
    set_advertisement(&mut facts, select("b", "k3"));

    let ranking = ranked(&facts, "web").unwrap();

    assert_eq!(candidates(&ranking), ["k2", "k3"]);
    assert_eq!(ranking.out[&NodeName::from("k1")], Silence::NoAdvertisementSelectsThisNode);
}

#[test]
fn m_106_service_selectors_limit_an_advertisement_to_matching_services() {
    let mut chosen = service("chosen", &["192.0.2.1"]);
    chosen.labels.insert("name".to_owned(), "web".to_owned());
    let mut facts = snapshot(3, [chosen, service("other", &["192.0.2.2"])]);
    set_advertisement(&mut facts, L2Advertisement { service_selectors: vec![named("web")], ..advertisement() });

    assert_eq!(ranked(&facts, "chosen").unwrap().candidates.len(), 3);
    assert_eq!(ranked(&facts, "other"), Err(Silence::NoAdvertisement { pool: "pool".into() }));
}

/// MetalLB is silent in this case, because its owners are elected for each Service alone. Ours are elected for the
/// shared address, so there is nothing to fear.
#[test]
fn m_107_a_shared_address_has_one_owner_even_if_advertisements_tell_its_services_apart() {
    let labelled = |name: &str| {
        let mut service = service(name, &[WON]);
        service.labels.insert("name".to_owned(), name.to_owned());
        service
    };
    let to = |service, node| L2Advertisement {
        key: ObjectKey::new("default", service),
        service_selectors: vec![named(service)],
        node_selectors: vec![named(node)],
        ..advertisement()
    };
    let mut facts = snapshot(3, [labelled("a"), labelled("b")]);
    facts.l2_advertisements.clear();
    set_advertisement(&mut facts, to("a", "k2"));
    set_advertisement(&mut facts, to("b", "k3"));

    let a = ranked(&facts, "a").unwrap();

    assert_eq!(a, ranked(&facts, "b").unwrap());
    assert_eq!(candidates(&a), ["k2", "k3"]);
}

#[test]
fn m_108_the_highest_sum_of_preferences_wins_and_others_still_stand_by() {
    let prefer = |name, weight, node| L2Advertisement {
        key: ObjectKey::new("default", name),
        preferred_nodes: vec![PreferredNodes { weight: NonZeroU8::new(weight).unwrap(), preference: named(node) }],
        ..advertisement()
    };
    let mut facts = snapshot(3, [service("web", &[WON])]);
    facts.l2_advertisements.clear();
    set_advertisement(&mut facts, prefer("a", 60, "k3"));
    set_advertisement(&mut facts, prefer("b", 50, "k2"));
    set_advertisement(&mut facts, prefer("c", 50, "k2"));

    assert_eq!(candidates(&ranked(&facts, "web").unwrap()), ["k2", "k3", "k1"]);

    facts.nodes.remove("k2");
    facts.nodes.remove("k3");
    assert_eq!(candidates(&ranked(&facts, "web").unwrap()), ["k1"]);
}

#[test]
fn m_108_preference_for_nodes_an_advertisement_does_not_allow_counts_nothing() {
    let mut facts = snapshot(3, [service("web", &[WON])]);
    let preferred = PreferredNodes { weight: NonZeroU8::new(100).unwrap(), preference: named("k3") };
    set_advertisement(
        &mut facts,
        L2Advertisement {
            key: ObjectKey::new("default", "some"),
            node_selectors: vec![named("k2")],
            preferred_nodes: vec![preferred],
            ..advertisement()
        },
    );

    assert_eq!(candidates(&ranked(&facts, "web").unwrap()), ["k1", "k2", "k3"]);
}

#[test]
fn m_110_without_a_listed_interface_another_node_takes_over() {
    let mut facts = snapshot(2, [service("web", &[WON])]);
    set_advertisement(&mut facts, L2Advertisement { interfaces: names(&["eth1"]), ..advertisement() });
    let mut stand = Stand::started(DataPath::KubeProxy, facts);
    assert!(stand.owns(WON));

    let actions = stand.step(Event::Interfaces(BTreeMap::from([("eth2".into(), interface(2))])));

    let silence = Silence::NoUsableInterface { allowed: names(&["eth1"]) };
    assert_eq!(stand.silence("web"), Some(silence));
    assert!(reports(&actions).contains(&&Report::Lost { address: ip(WON), owner: Some("k2".into()) }));
    assert_eq!(events(&actions), []);
}

#[test]
fn m_110_without_a_listed_interface_anywhere_one_node_says_so_once() {
    let mut facts = snapshot(2, [service("web", &[WON])]);
    set_advertisement(&mut facts, L2Advertisement { interfaces: names(&["eth7"]), ..advertisement() });
    let mut stand = Stand::started(DataPath::KubeProxy, facts);

    let actions = stand.pass_hearing(INTERVAL * 4, &[2]);

    let message = "no node can announce it; on node k1, none of the interfaces of the L2Advertisement is usable on the \
                   node: eth7";
    assert_eq!(events(&actions), [(Severity::Warning, "announceFailed", message)]);
}

#[test]
fn m_119_both_families_of_a_service_have_one_owner_by_its_first_address() {
    let facts = snapshot(3, [service("web", &["2001:db8::1", WON])]);

    let ranking = ranked(&facts, "web").unwrap();

    assert_eq!(ranking.elected_by, ip("2001:db8::1"));
    assert_eq!(candidates(&ranking), ["k2", "k1", "k3"]);
}

#[test]
fn m_122_lost_and_leaving_speakers_are_no_candidates_and_unknown_ones_are() {
    let facts = snapshot(3, [service("web", &[WON])]);
    let standings = Standings::from([
        ("k1".into(), Standing { liveness: Liveness::Lost, ..standing() }),
        ("k2".into(), Standing { liveness: Liveness::Leaving, ..standing() }),
    ]);

    let ranking = announce::ranking(&facts, KUBE_PROXY, &standings, &key("web")).unwrap();

    assert_eq!(candidates(&ranking), ["k3"]);
    assert_eq!(ranking.out[&NodeName::from("k1")], Silence::SpeakerLost);
    assert_eq!(ranking.out[&NodeName::from("k2")], Silence::SpeakerLeaving);
}

#[test]
fn n_112_services_that_share_an_address_have_one_owner_with_all_their_addresses() {
    let facts = snapshot(
        3,
        [service("a", &["192.0.2.1", "2001:db8::1"]), service("b", &["192.0.2.1"]), service("c", &["2001:db8::1"])],
    );

    let ranking = ranked(&facts, "c").unwrap();

    assert_eq!(ranking.services, BTreeSet::from([key("a"), key("b"), key("c")]));
    assert_eq!(ranking.elected_by, ip("192.0.2.1"));
    assert_eq!(Ok(&ranking), ranked(&facts, "a").as_ref());
    assert_eq!(Ok(&ranking), ranked(&facts, "b").as_ref());
}

#[test]
fn n_112_a_service_without_endpoints_does_not_silence_who_shares_its_address() {
    let empty = Service { endpoints: Vec::new(), ..service("empty", &[WON]) };
    let mut stand = Stand::started(DataPath::KubeProxy, snapshot(1, [empty, service("web", &[WON])]));

    assert!(stand.owns(WON));
    assert_eq!(stand.silence("web"), None);
    assert_eq!(stand.silence("empty"), Some(Silence::NoReadyEndpoint));

    stand.snapshot(&snapshot(1, [service("web", &[WON])]));
    assert!(stand.owns(WON));
}

#[test]
fn the_node_that_serves_most_of_a_shared_address_owns_it() {
    let facts = snapshot(3, [local("a", &[WON], &["k1", "k3"]), local("b", &[WON], &["k2", "k3"])]);

    assert_eq!(candidates(&ranked(&facts, "a").unwrap()), ["k3", "k1", "k2"]);
}

#[test]
fn with_the_built_in_data_path_only_nodes_with_a_ready_proxy_are_candidates() {
    let facts = snapshot(2, [service("web", &[WON])]);
    let standings = Standings::from([("k1".into(), Standing { proxy_ready: false, ..standing() })]);

    let built_in = announce::ranking(&facts, PROXY, &standings, &key("web")).unwrap();
    let kube_proxy = announce::ranking(&facts, KUBE_PROXY, &standings, &key("web")).unwrap();

    assert_eq!(candidates(&built_in), ["k2"]);
    assert_eq!(built_in.out[&NodeName::from("k1")], Silence::ProxyNotReady);
    assert_eq!(candidates(&kube_proxy), ["k1", "k2"]);
}

#[test]
fn an_entry_needs_no_endpoints_where_the_proxies_are_its_endpoints() {
    let entry = Service { is_entry: true, endpoints: Vec::new(), ..local("entry", &[WON], &[]) };
    let facts = snapshot(2, [entry]);

    let built_in = announce::ranking(&facts, PROXY, &Standings::new(), &key("entry")).unwrap();

    assert_eq!(candidates(&built_in), ["k1", "k2"]);
    assert_eq!(ranked(&facts, "entry"), Err(Silence::NoReadyEndpoint));
}

#[test]
fn loopback_addresses_are_never_announced() {
    let mut stand = Stand::started(DataPath::Proxy, snapshot(1, [service("web", &["127.0.0.2"])]));
    stand.step(Event::ProxyReady(true));

    assert_eq!(stand.silence("web"), Some(Silence::LoopbackAddress));
    assert!(stand.speaker.owned().is_empty());
}

#[test]
fn every_no_says_why() {
    let mut facts = snapshot(1, [service("stranger", &["198.51.100.1"]), service("waiting", &[])]);
    set_service(&mut facts, Service { load_balancer: None, ..service("internal", &[WON]) });

    assert_eq!(ranked(&facts, "stranger"), Err(Silence::NoPool { address: ip("198.51.100.1") }));
    assert_eq!(ranked(&facts, "waiting"), Err(Silence::NoAddress));
    assert_eq!(ranked(&facts, "internal"), Err(Silence::NotServed));
    assert_eq!(ranked(&facts, "nothing"), Err(Silence::NotServed));
}

#[test]
fn a_node_without_an_object_announces_nothing() {
    let mut facts = snapshot(2, [service("web", &[WON])]);
    facts.nodes.remove("k1");

    let stand = Stand::started(DataPath::KubeProxy, facts);

    assert_eq!(stand.silence("web"), Some(Silence::NodeUnknown));
}

fn owners(facts: &Snapshot) -> BTreeMap<ServiceKey, NodeName> {
    let owner = |key: &ServiceKey| {
        let ranking = announce::ranking(facts, KUBE_PROXY, &Standings::new(), key).ok()?;
        Some((key.clone(), ranking.candidates.first()?.node.clone()))
    };
    facts.services.keys().filter_map(owner).collect()
}

/// Services with few addresses between them, so that many share.
fn worlds() -> impl Strategy<Value = Snapshot> {
    let service = (prop::collection::btree_set(0_u8..12, 1..3), any::<bool>(), prop::collection::vec(1_u8..6, 0..3));
    (2_u8..6, prop::collection::vec(service, 1..12)).prop_map(|(nodes, services)| {
        let services = services.into_iter().enumerate().map(|(number, (addresses, is_local, endpoints))| {
            let addresses: Vec<String> = addresses.into_iter().map(|last| format!("192.0.2.{last}")).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let name = format!("s{number}");
            let nodes: Vec<String> = endpoints.into_iter().map(|number| format!("k{number}")).collect();
            let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
            let local = local(&name, &addresses, &nodes);
            if is_local { local } else { Service { external_traffic_policy: TrafficPolicy::Cluster, ..local } }
        });
        snapshot(nodes, services)
    })
}

proptest! {
    #[test]
    fn removing_a_node_moves_only_its_addresses(nodes in 2_u8..8, gone in 1_u8..8, count in 1_u8..60) {
        prop_assume!(gone <= nodes);
        let names: Vec<String> = (0..count).map(|number| format!("192.0.2.{number}")).collect();
        let services = names.iter().map(|address| service(address, &[address]));
        let before = snapshot(nodes, services);
        let gone = NodeName::from(format!("k{gone}"));
        let mut after = before.clone();
        after.nodes.remove(&gone);

        let (before, after) = (owners(&before), owners(&after));

        for (service, owner) in before {
            prop_assert!(owner == gone || after[&service] == owner);
        }
    }

    #[test]
    fn an_address_has_at_most_one_owner_whoever_asks(facts in worlds()) {
        let mut owners: BTreeMap<IpAddr, NodeName> = BTreeMap::new();

        for (service, owner) in super::decisions::owners(&facts) {
            for address in announce::addresses(&facts.services[&service]) {
                prop_assert_eq!(owners.entry(address).or_insert_with(|| owner.clone()), &owner);
            }
        }
    }

    /// What the machine keeps from step to step must not show.
    #[test]
    fn changing_facts_bit_by_bit_ends_where_a_fresh_speaker_begins(worlds in prop::collection::vec(worlds(), 1..6)) {
        let mut stand = Stand::new(DataPath::KubeProxy);
        stand.step(Event::Interfaces(interfaces(1)));
        let mut mixed = Snapshot::default();
        for world in &worlds {
            // Nodes stay known once they are, or they would have to be heard first.
            let nodes = world.nodes.clone().union(mixed.nodes.clone());
            mixed = Snapshot { nodes, ..world.clone() };
            stand.snapshot(&mixed);
            for number in 2..6 {
                stand.hear(number);
            }

            let mut fresh = Stand::new(DataPath::KubeProxy);
            fresh.step(Event::Interfaces(interfaces(1)));
            fresh.snapshot(&mixed);
            for number in 2..6 {
                fresh.hear(number);
            }

            prop_assert_eq!(stand.speaker.owned(), fresh.speaker.owned());
            let (kept, new): (Vec<_>, Vec<_>) = (stand.speaker.outcomes().collect(), fresh.speaker.outcomes().collect());
            prop_assert_eq!(kept, new);
        }
    }
}
