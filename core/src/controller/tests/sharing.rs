//! Who may use one address together.

use super::*;

/// Two Services that both ask for one address: does the second one get it?
fn second_gets_it(first: Service, second: Service) -> Result<(), Conflict> {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9"]);
    world.put(first.wants(&["192.0.2.5"]));
    world.run();
    let name = second.key.to_string();
    world.put(second.wants(&["192.0.2.5"]));
    world.run();
    match world.controller.verdict(&key(&name)) {
        Verdict::Assigned { .. } => Ok(()),
        Verdict::Refused(Refusal::AddressTaken { conflict, .. }) => Err(conflict),
        other => panic!("{other:?}"),
    }
}

#[test]
fn m_082_to_m_085_the_rule_of_sharing() {
    let one = || service("one").shares("k").port(80);
    let two = || service("two").shares("k").port(81);
    let different = || Conflict::DifferentKeys { own: "other".into(), other: "k".into() };
    let same_port = || Conflict::SamePort { protocol: Protocol::Tcp, port: NonZeroU16::new(80).unwrap() };
    let both = [(Protocol::Tcp, 53), (Protocol::Udp, 54)];
    let table = [
        (one(), two(), Ok(())),
        (one(), service("two").port(81), Err(Conflict::NotShared)),
        (service("one"), two(), Err(Conflict::NotShared)),
        (one(), service("two").shares("other").port(81), Err(different())),
        (one(), service("two").shares("k").port(80), Err(same_port())),
        (one().ports(&[(Protocol::Tcp, 53)]), two().ports(&[(Protocol::Udp, 53)]), Ok(())),
        (one().ports(&both), two().ports(&[(Protocol::Udp, 53), (Protocol::Tcp, 54)]), Ok(())),
        (one(), two().local("x"), Err(Conflict::DifferentBackends)),
        (one().local("x"), two().local("x"), Ok(())),
        (one().local("x"), two().local("y"), Err(Conflict::DifferentBackends)),
        (one(), service("elsewhere/two").shares("k").port(81), Err(Conflict::OtherNamespace)),
    ];
    for (first, second, expected) in table {
        assert_eq!(second_gets_it(first.clone(), second.clone()), expected, "{first:?} {second:?}");
    }
}

#[test]
fn m_086_services_of_two_namespaces_share_where_the_pool_says_so() {
    let one = || service("one").shares("k").port(80);
    let two = || service("elsewhere/two").shares("k").port(81);
    let mut world = World::new();
    world.put_pool(pool("p", &["192.0.2.1-192.0.2.2"]).any_namespace());
    world.put(one());
    world.put(two());
    world.run();
    assert_eq!((world.addresses("one"), world.addresses("elsewhere/two")), ("192.0.2.1".into(), "192.0.2.1".into()));
    world.restart();
    assert_eq!(world.run(), []);

    world.put_pool(pool("p", &["192.0.2.1-192.0.2.2"]));
    let writes = world.run();
    assert_eq!((world.addresses("one"), world.addresses("elsewhere/two")), ("192.0.2.1".into(), "192.0.2.2".into()));
    assert_eq!(told(&writes, "elsewhere/two"), ["ClearAssignment", "IPAllocated"]);

    world.put(two().wants(&["192.0.2.1"]));
    world.run();
    let refusal = world.refusal("elsewhere/two");
    assert!(refusal.to_string().contains("spec.sharing"), "{refusal}");
    world.put_pool(pool("p", &["192.0.2.1-192.0.2.2"]).any_namespace());
    world.run();
    assert_eq!(world.addresses("elsewhere/two"), "192.0.2.1");
}

#[test]
fn m_085_local_with_an_empty_selector_counts_as_cluster() {
    let mut local = service("one").shares("k").local("x");
    local.selector.clear();

    assert_eq!(second_gets_it(local, service("two").shares("k").port(81)), Ok(()));
}

#[test]
fn m_087_changing_the_key_of_one_moves_that_one_and_leaves_the_other() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9"]);
    world.put(service("one").shares("k").port(80));
    world.put(service("two").shares("k").port(81));
    world.run();
    assert_eq!((world.addresses("one"), world.addresses("two")), ("192.0.2.1".into(), "192.0.2.1".into()));

    world.put(service("one").shares("other").port(80));
    let writes = world.run();

    assert_eq!((world.addresses("one"), world.addresses("two")), ("192.0.2.2".into(), "192.0.2.1".into()));
    assert_eq!(statuses(&writes, "two"), [] as [&ServiceStatus; 0]);
}

#[test]
fn the_only_user_of_an_address_changes_its_key_in_place() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9"]);
    world.put(service("one").shares("k"));
    world.run();

    world.put(service("one").shares("other"));
    let writes = world.run();

    assert_eq!(statuses(&writes, "one"), [] as [&ServiceStatus; 0]);
}

#[test]
fn m_088_who_waits_for_an_address_is_tried_again_when_its_user_begins_to_share() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("one").port(80));
    world.run();
    world.put(service("any").created(1).shares("k").port(81));
    world.put(service("explicit").created(2).shares("k").port(82).wants(&["192.0.2.1"]));
    world.run();
    assert_eq!(world.refusal("explicit").reason(), "AddressTaken");

    world.put(service("one").shares("k").port(80));
    world.run();

    assert_eq!((world.addresses("any"), world.addresses("explicit")), ("192.0.2.1".into(), "192.0.2.1".into()));
}

#[test]
fn who_waits_in_a_full_pool_may_join_a_new_group() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("holder"));
    world.run();
    world.put(service("explicit").created(2).shares("k").port(80).wants(&["192.0.2.1"]));
    world.put(service("any").created(1).shares("k").port(81));
    world.run();

    world.remove("holder");
    world.run();

    assert_eq!((world.addresses("any"), world.addresses("explicit")), ("192.0.2.1".into(), "192.0.2.1".into()));
}

#[test]
fn m_089_a_group_lands_on_one_address_unasked() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9"]);
    for (name, port) in [("a", 80), ("b", 81), ("c", 82)] {
        world.put(service(name).shares("k").port(port));
    }

    world.run();

    for name in ["a", "b", "c"] {
        assert_eq!(world.addresses(name), "192.0.2.1");
    }
}

#[test]
fn m_080_a_shared_address_counts_once() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9"]);
    world.put(service("a").shares("k").port(80));
    world.put(service("b").shares("k").port(81));
    world.run();
    let counters = |world: &World| {
        let status = &world.facts.pools[&PoolName::from("p")].observed;
        (status.assigned_ipv4, status.available_ipv4)
    };
    assert_eq!(counters(&world), (1, 8));

    world.remove("a");
    world.run();
    assert_eq!(counters(&world), (1, 8));
    world.remove("b");
    world.run();

    assert_eq!(counters(&world), (0, 9));
}

#[test]
fn a_request_that_cannot_be_read_does_not_end_sharing() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9"]);
    world.put(service("a").shares("k").port(80));
    world.put(service("b").shares("k").port(81));
    world.run();

    world.change("a", |a| a.make_unreadable());
    world.run();

    assert_eq!((world.addresses("a"), world.addresses("b")), ("192.0.2.1".into(), "192.0.2.1".into()));
    world.restart();
    assert_eq!(world.run(), []);
}
