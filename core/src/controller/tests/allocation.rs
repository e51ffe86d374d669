//! Which Service gets which address.

use super::*;

#[test]
fn m_042_a_new_service_gets_address_and_pool_in_one_status_update() {
    let mut world = World::with_pool(&["192.0.2.0-192.0.2.255"]);

    world.put(service("web"));
    let writes = world.run();

    let statuses = statuses(&writes, "web");
    assert_eq!(statuses.len(), 1);
    assert_eq!((&statuses[0].addresses[..], &statuses[0].pool), (&[ip("192.0.2.0")][..], &Some("p".into())));
    assert_eq!(told(&writes, "web"), ["IPAllocated"]);
}

#[test]
fn m_044_allocation_goes_from_the_lowest_free_address_upward() {
    let mut world = World::with_pool(&["192.0.2.0-192.0.2.255"]);
    for number in 0..256 {
        world.put(service(&format!("web-{number:03}")));
    }

    world.run();

    assert_eq!(world.addresses("web-000"), "192.0.2.0");
    assert_eq!(world.addresses("web-017"), "192.0.2.17");
    assert_eq!(world.addresses("web-255"), "192.0.2.255");
}

#[test]
fn ranges_of_a_pool_are_used_in_the_order_written() {
    let mut world = World::with_pool(&["192.0.2.9", "192.0.2.3"]);
    world.put(service("a"));
    world.put(service("b"));

    world.run();

    assert_eq!((world.addresses("a"), world.addresses("b")), ("192.0.2.9".into(), "192.0.2.3".into()));
}

#[test]
fn a_huge_pool_costs_nothing() {
    let mut world = World::with_pool(&["2001:db8::-2001:db8:0:ffff:ffff:ffff:ffff:ffff"]);

    world.put(service("web").families(FamilyPolicy::SingleStack, V6));
    world.run();

    assert_eq!(world.addresses("web"), "2001:db8::");
    let status = &world.facts.pools[&PoolName::from("p")].observed;
    assert_eq!((status.assigned_ipv6, status.available_ipv6), (1, i64::MAX));
}

#[test]
fn m_045_buggy_addresses_are_never_given_and_a_wish_for_one_is_refused() {
    let mut world = World::new();
    world.put_pool(pool("p", &["192.0.2.254-192.0.3.1"]).avoids_buggy());
    world.put(service("a"));
    world.put(service("b"));
    world.put(service("wish").wants(&["192.0.2.255"]));

    world.run();

    assert_eq!((world.addresses("a"), world.addresses("b")), ("192.0.2.254".into(), "192.0.3.1".into()));
    assert_eq!(world.refusal("wish"), Refusal::AddressAvoided { address: ip("192.0.2.255"), pool: "p".into() });
}

#[test]
fn the_edges_of_a_prefix_are_given_to_nobody_and_who_has_one_keeps_it() {
    let mut world = World::with_pool(&["192.0.2.64-192.0.2.67"]);
    for name in ["a", "b", "c", "d"] {
        world.put(service(name));
    }
    world.run();

    world.put_pool(pool("p", &["192.0.2.64-192.0.2.67"]).without_edges(&["192.0.2.64", "192.0.2.67"]));
    let writes = world.run();
    for name in ["a", "b", "c", "d"] {
        assert_eq!(statuses(&writes, name), [] as [&ServiceStatus; 0], "an address in use does not move");
    }
    let counters = |world: &World| {
        let status = &world.facts.pools[&PoolName::from("p")].observed;
        (status.assigned_ipv4, status.available_ipv4)
    };
    assert_eq!(counters(&world), (4, 0));
    world.restart();
    assert_eq!(world.run(), []);

    world.remove("a");
    world.remove("b");
    world.run();
    assert_eq!(counters(&world), (2, 1));
    world.put(service("asks").wants(&["192.0.2.64"]));
    world.put(service("next"));
    world.put(service("late").created(1));
    world.run();

    assert_eq!(world.refusal("asks"), Refusal::AddressAvoided { address: ip("192.0.2.64"), pool: "p".into() });
    assert_eq!(world.addresses("next"), "192.0.2.65");
    assert_eq!(world.refusal("late").reason(), "Exhausted");
    assert_eq!(counters(&world), (3, 0));
}

#[test]
fn m_046_a_pool_without_auto_assign_is_used_on_request_only() {
    let mut world = World::new();
    world.put_pool(pool("manual", &["192.0.2.1-192.0.2.9"]).manual());
    world.put(service("unasked"));
    world.put(service("by-pool").wants_pool("manual"));
    world.put(service("by-address").wants(&["192.0.2.5"]));

    world.run();

    assert_eq!(world.refusal("unasked"), Refusal::NoPoolServesIt);
    assert_eq!(world.addresses("by-pool"), "192.0.2.1");
    assert_eq!(world.addresses("by-address"), "192.0.2.5");
}

#[test]
fn m_047_a_requested_pool_is_used_and_an_unknown_one_refused_without_fallback() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put_pool(pool("q", &["198.51.100.1"]));
    world.put(service("a").wants_pool("q"));
    world.put(service("b").wants_pool("nowhere"));

    let writes = world.run();

    assert_eq!(world.addresses("a"), "198.51.100.1");
    assert_eq!(world.refusal("b"), Refusal::UnknownPool { pool: "nowhere".into() });
    assert_eq!(told(&writes, "b"), ["AllocationFailed"]);
}

#[test]
fn m_048_a_requested_address_is_given() {
    let mut world = World::with_pool(&["192.0.2.0-192.0.2.255"]);

    world.put(service("web").wants(&["192.0.2.7"]));
    world.run();

    assert_eq!(world.addresses("web"), "192.0.2.7");
}

#[test]
fn m_049_two_sources_of_a_wish_assign_nothing() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    let mut web = service("web");
    web.make_unreadable();

    world.put(web);
    let writes = world.run();

    assert_eq!(world.refusal("web"), Refusal::UnreadableRequest { fault: RequestFault::TwoSources });
    assert_eq!(told(&writes, "web"), ["AllocationFailed"]);
}

#[test]
fn a_request_that_cannot_be_read_takes_nothing_away() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web"));
    world.run();

    world.change("web", |web| web.make_unreadable());
    let writes = world.run();

    assert_eq!(world.addresses("web"), "192.0.2.1");
    assert_eq!(told(&writes, "web"), ["LoadBalancerFailed"]);
    let condition = world.status("web").condition.as_ref().unwrap();
    assert_eq!((condition.holds, &*condition.reason), (true, "UnreadableRequest"));
    world.restart();
    assert_eq!(world.run(), []);
}

#[test]
fn m_050_to_m_054_wishes_that_cannot_be_met_say_why() {
    let prefer = FamilyPolicy::PreferDualStack;
    let table = [
        (service("outside").wants(&["203.0.113.1"]), Refusal::OutsidePools { address: ip("203.0.113.1") }),
        (
            service("other-pool").wants(&["192.0.2.1"]).wants_pool("b"),
            Refusal::PoolMismatch { address: ip("192.0.2.1"), holder: "a".into(), requested: "b".into() },
        ),
        (
            service("family").wants(&["2001:db8::1"]),
            Refusal::WrongFamilies { requested: vec![ip("2001:db8::1")], families: V4.to_vec() },
        ),
        (
            service("two-pools").families(prefer, DUAL).wants(&["192.0.2.1", "2001:db8:1::1"]),
            Refusal::DifferentPools {
                first: ip("192.0.2.1"),
                first_pool: "a".into(),
                second: ip("2001:db8:1::1"),
                second_pool: "b".into(),
            },
        ),
        (service("lacking").wants_pool("c"), Refusal::PoolLacksFamily { pool: "c".into(), family: Family::V4 }),
    ];
    for (wish, expected) in table {
        let mut world = World::new();
        world.put_pool(pool("a", &["192.0.2.1-192.0.2.9", "2001:db8::1-2001:db8::9"]));
        world.put_pool(pool("b", &["198.51.100.1-198.51.100.9", "2001:db8:1::1-2001:db8:1::9"]));
        world.put_pool(pool("c", &["2001:db8:2::1"]));
        let name = wish.key.name.to_string();
        world.put(wish);

        world.run();

        assert_eq!(world.refusal(&name), expected);
    }
}

#[test]
fn m_050_an_address_outside_all_pools_is_refused() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web").wants(&["203.0.113.7"]));
    world.run();
    assert_eq!(world.refusal("web"), Refusal::OutsidePools { address: ip("203.0.113.7") });

    world.put_pool(pool("more", &["203.0.113.7"]).manual());
    world.run();

    assert_eq!(world.addresses("web"), "203.0.113.7");
}

#[test]
fn m_053_two_addresses_of_two_families_in_one_pool_are_given() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9", "2001:db8::1-2001:db8::9"]);

    world.put(service("web").families(FamilyPolicy::RequireDualStack, DUAL).wants(&["2001:db8::5", "192.0.2.5"]));
    world.run();

    assert_eq!(world.addresses("web"), "192.0.2.5, 2001:db8::5");
}

#[test]
fn m_057_to_m_060_a_pinned_pool_serves_only_who_matches() {
    let namespaces = |allocation: &mut ServiceAllocation| _ = allocation.namespaces.insert("one".to_owned());
    let services = |allocation: &mut ServiceAllocation| {
        allocation.service_selectors = vec![selector("tier", "front"), selector("app", "x")]
    };
    let other_namespace = Mismatch::Namespace { namespace: "two".to_owned() };
    let table = [
        (pool("p", &["192.0.2.1"]).pinned(namespaces), service("one/web"), None),
        (pool("p", &["192.0.2.1"]).pinned(namespaces), service("two/web"), Some(other_namespace.clone())),
        (pool("p", &["192.0.2.1"]).pinned(services), service("web").label("app", "x"), None),
        (pool("p", &["192.0.2.1"]).pinned(services), service("web").label("app", "y"), Some(Mismatch::ServiceLabels)),
        (
            pool("p", &["192.0.2.1"]).pinned(namespaces).pinned(services),
            service("one/web"),
            Some(Mismatch::ServiceLabels),
        ),
        (
            pool("p", &["192.0.2.1"]).pinned(namespaces).pinned(services),
            service("two/web").label("app", "x"),
            Some(other_namespace),
        ),
        (pool("p", &["192.0.2.1"]).pinned(namespaces).pinned(services), service("one/web").label("app", "x"), None),
    ];
    for (pool, unasked, mismatch) in table {
        for asks in [false, true] {
            let mut world = World::new();
            world.put_pool(pool.clone());
            let name = unasked.key.to_string();
            world.put(if asks { unasked.clone().wants(&["192.0.2.1"]) } else { unasked.clone() });

            world.run();

            match &mismatch {
                None => assert_eq!(world.addresses(&name), "192.0.2.1"),
                Some(_) if !asks => assert_eq!(world.refusal(&name), Refusal::NoPoolServesIt),
                Some(mismatch) => {
                    let mismatch = mismatch.clone();
                    assert_eq!(world.refusal(&name), Refusal::PoolNotForService { pool: "p".into(), mismatch });
                }
            }
        }
    }
}

#[test]
fn m_058_a_pool_follows_the_labels_of_namespaces() {
    let mut world = World::new();
    let pinned = |allocation: &mut ServiceAllocation| allocation.namespace_selectors = vec![selector("team", "a")];
    world.put_pool(pool("p", &["192.0.2.1"]).pinned(pinned));
    world.put(service("one/web"));
    world.run();
    assert_eq!(world.refusal("one/web"), Refusal::NoPoolServesIt);

    world.label_namespace("one", "team", "a");
    world.run();
    assert_eq!(world.addresses("one/web"), "192.0.2.1");

    world.label_namespace("one", "team", "b");
    world.run();
    assert_eq!(world.refusal("one/web"), Refusal::NoPoolServesIt);
}

#[test]
fn m_061_to_m_063_pinned_pools_come_first_by_priority_and_then_the_rest() {
    let mut world = World::new();
    let priority = |priority| move |allocation: &mut ServiceAllocation| allocation.priority = priority;
    world.put_pool(pool("unpinned-b", &["192.0.2.6"]));
    world.put_pool(pool("unpinned-a", &["192.0.2.5"]));
    world.put_pool(pool("unset", &["192.0.2.4"]).pinned(priority(0)));
    world.put_pool(pool("twenty", &["192.0.2.3"]).pinned(priority(20)));
    world.put_pool(pool("ten-b", &["192.0.2.2"]).pinned(priority(10)));
    world.put_pool(pool("ten-a", &["192.0.2.1"]).pinned(priority(10)));
    for number in 1..=6 {
        world.put(service(&format!("web-{number}")));
    }

    world.run();

    for number in 1..=6 {
        assert_eq!(world.addresses(&format!("web-{number}")), format!("192.0.2.{number}"));
    }
}

#[test]
fn m_064_an_allocation_with_only_a_priority_serves_everyone() {
    let mut world = World::new();
    world.put_pool(pool("p", &["192.0.2.1"]).pinned(|allocation| allocation.priority = 5));

    world.put(service("anywhere/web"));
    world.run();

    assert_eq!(world.addresses("anywhere/web"), "192.0.2.1");
}

#[test]
fn m_065_a_namespace_selector_that_matches_nothing_serves_nobody_asked_or_not() {
    let mut world = World::new();
    let pinned = |allocation: &mut ServiceAllocation| allocation.namespace_selectors = vec![selector("team", "a")];
    world.put_pool(pool("p", &["192.0.2.1"]).pinned(pinned));
    world.put(service("unasked"));
    world.put(service("asks").wants_pool("p"));

    world.run();

    assert_eq!(world.refusal("unasked"), Refusal::NoPoolServesIt);
    assert_eq!(world.refusal("asks").reason(), "PoolNotForService");
}

#[test]
fn m_066_and_m_068_a_full_pool_refuses_until_somebody_leaves() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("first"));
    world.run();
    world.put(service("second"));
    let writes = world.run();
    assert_eq!(world.refusal("second"), Refusal::Exhausted { pools: vec!["p".into()], families: V4.to_vec() });
    assert_eq!(told(&writes, "second"), ["AllocationFailed"]);

    world.remove("first");
    let writes = world.run();

    assert_eq!(world.addresses("second"), "192.0.2.1");
    assert_eq!(told(&writes, "second"), ["IPAllocated"]);
}

#[test]
fn a_refusal_is_told_once_and_not_at_every_step() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("first"));
    world.put(service("second").created(1));
    let writes = world.run();
    assert_eq!(told(&writes, "second"), ["AllocationFailed"]);

    world.put_pool(pool("elsewhere", &["198.51.100.1"]).manual());
    let writes = world.run();
    assert_eq!(told(&writes, "second"), [""; 0]);

    world.restart();
    assert_eq!(world.run(), []);
}

#[test]
fn those_who_wait_are_served_in_creation_order_and_explicit_wishes_first() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("holder"));
    world.run();
    world.put(service("young").created(3));
    world.put(service("old").created(1));
    world.put(service("wish").created(5).wants(&["192.0.2.1"]));
    world.run();

    for next in ["holder", "wish", "old"] {
        world.remove(next);
        world.run();
    }

    assert_eq!(world.addresses("young"), "192.0.2.1");
    world.put(service("after").created(0));
    world.run();
    assert_eq!(world.addresses("young"), "192.0.2.1");
}

#[test]
fn m_067_a_service_that_is_no_load_balancer_any_more_is_cleared() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web"));
    world.run();
    world.put(service("next").created(1));

    world.change("web", |web| web.load_balancer = None);
    let writes = world.run();

    assert_eq!(world.status("web"), &ServiceStatus::default());
    assert_eq!(world.addresses("next"), "192.0.2.1");
    let given = statuses(&writes, "next");
    assert_eq!((given.len(), given[0].addresses.is_empty(), given[1].addresses.len()), (2, true, 1));
}

#[test]
fn an_address_is_written_to_the_next_one_only_when_the_last_one_is_seen_without() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web"));
    world.run();
    world.put(service("next").created(1));
    world.run();
    world.put(service("web").wants(&["203.0.113.1"]));

    let writes = world.step();

    let next = statuses(&writes, "next");
    let condition = next[0].condition.as_ref().unwrap();
    assert_eq!((next.len(), next[0].addresses.len(), &*condition.reason), (1, 0, "Moving"));
    assert!(condition.message.contains("default/web"), "{}", condition.message);
    writes
        .iter()
        .filter(|write| statuses(&[(*write).clone()], "next").len() == 1)
        .for_each(|write| world.carry_out(write));
    assert_eq!(statuses(&world.step(), "next").len(), 0);
    writes.iter().for_each(|write| world.carry_out(write));
    world.run();
    assert_eq!(world.addresses("next"), "192.0.2.1");
}

#[test]
fn m_069_a_restart_on_a_settled_world_writes_nothing() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.2"]);
    for name in ["a", "b", "c"] {
        world.put(service(name));
    }
    world.put(service("wish").wants(&["203.0.113.9"]));
    world.facts.ingresses.insert(key("site"), Arc::new(ingress("site")));
    world.run();

    world.restart();

    assert_eq!(world.run(), []);
    assert_eq!(world.controller.deadline(), None);
}

#[test]
fn m_070_who_has_an_address_keeps_it_at_a_restart_even_against_older_ones() {
    let mut world = World::new();
    world.put_pool(pool("p", &["192.0.2.1"]));
    world.put(service("pending").created(1).wants(&["192.0.2.1"]));
    world.put(service("holder").created(9).shows(&["192.0.2.1"]));

    world.run();

    assert_eq!(world.addresses("holder"), "192.0.2.1");
    assert_eq!(world.refusal("pending").reason(), "AddressTaken");
}

#[test]
fn m_071_a_status_written_by_hand_is_adopted_or_replaced() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9"]);
    world.put(service("web"));
    world.run();

    world.change("web", |web| web.observed.addresses = vec![ip("192.0.2.8")]);
    world.run();
    assert_eq!(world.addresses("web"), "192.0.2.8");
    world.put(service("other"));
    world.run();
    assert_eq!(world.addresses("other"), "192.0.2.1");

    world.change("web", |web| web.observed.addresses = vec![ip("203.0.113.1")]);
    let writes = world.run();
    assert_eq!(world.addresses("web"), "192.0.2.8");
    assert_eq!(told(&writes, "web"), ["ClearAssignment"]);

    world.put(service("hand-made").shows(&["203.0.113.5"]));
    let writes = world.run();
    assert_eq!(world.addresses("hand-made"), "192.0.2.2");
    assert_eq!(told(&writes, "hand-made"), ["ClearAssignment", "IPAllocated"]);
}

#[test]
fn m_072_shrinking_a_pool_moves_only_who_is_outside() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.3"]);
    for name in ["a", "b", "c"] {
        world.put(service(name));
    }
    world.run();

    world.put_pool(pool("p", &["192.0.2.2-192.0.2.3", "192.0.2.9"]));
    let writes = world.run();
    assert_eq!(world.addresses("a"), "192.0.2.9");
    assert_eq!((world.addresses("b"), world.addresses("c")), ("192.0.2.2".into(), "192.0.2.3".into()));
    assert_eq!(told(&writes, "a"), ["ClearAssignment", "IPAllocated"]);
    assert_eq!(statuses(&writes, "b"), [] as [&ServiceStatus; 0]);

    world.remove_pool("p");
    world.run();
    assert_eq!(world.refusal("b"), Refusal::NoPools);
}

#[test]
fn m_073_renaming_a_pool_keeps_the_address_and_changes_the_annotation() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.3"]);
    world.put(service("web"));
    world.run();

    world.remove_pool("p");
    world.put_pool(pool("q", &["192.0.2.0-192.0.2.255"]));
    let writes = world.run();

    assert_eq!(world.addresses("web"), "192.0.2.1");
    assert_eq!(world.status("web").pool, Some("q".into()));
    assert_eq!(told(&writes, "web"), [""; 0]);
    assert_eq!(world.facts.pools[&PoolName::from("q")].observed.assigned_ipv4, 1);
}

#[test]
fn m_074_switching_auto_assign_off_keeps_addresses() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web"));
    world.run();

    world.put_pool(pool("p", &["192.0.2.1"]).manual());
    let writes = world.run();

    assert_eq!(statuses(&writes, "web"), [] as [&ServiceStatus; 0]);
}

#[test]
fn m_075_a_pool_that_no_longer_matches_takes_the_address_away() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web").label("app", "x"));
    world.run();

    let pinned = |allocation: &mut ServiceAllocation| allocation.service_selectors = vec![selector("app", "x")];
    world.put_pool(pool("p", &["192.0.2.1"]).pinned(pinned));
    world.run();
    assert_eq!(world.addresses("web"), "192.0.2.1");
    world.change("web", |web| _ = web.labels.insert("app".into(), "y".into()));
    world.run();

    assert_eq!(world.refusal("web"), Refusal::NoPoolServesIt);
}

#[test]
fn m_076_switching_avoid_buggy_on_moves_who_has_one() {
    let mut world = World::with_pool(&["192.0.2.0-192.0.2.9"]);
    world.put(service("a"));
    world.put(service("b"));
    world.run();

    world.put_pool(pool("p", &["192.0.2.0-192.0.2.9"]).avoids_buggy());
    world.run();

    assert_eq!((world.addresses("a"), world.addresses("b")), ("192.0.2.2".into(), "192.0.2.1".into()));
}

#[test]
fn m_077_another_wish_moves_the_service() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9"]);
    world.put_pool(pool("q", &["198.51.100.1"]).manual());
    world.put(service("web"));
    world.run();

    world.put(service("web").wants(&["192.0.2.7"]));
    world.run();
    assert_eq!(world.addresses("web"), "192.0.2.7");
    world.put(service("web").wants_pool("q"));
    world.run();

    assert_eq!(world.addresses("web"), "198.51.100.1");
    assert_eq!(world.status("web").pool, Some("q".into()));
}

#[test]
fn m_078_without_pools_nothing_is_assigned_until_one_comes() {
    let mut world = World::new();
    world.put(service("web"));
    world.run();
    assert_eq!(world.refusal("web"), Refusal::NoPools);

    world.put_pool(pool("p", &["192.0.2.1"]));
    world.run();

    assert_eq!(world.addresses("web"), "192.0.2.1");
}

#[test]
fn m_079_a_service_of_another_class_is_not_touched() {
    let mut world = World::with_pool(&["192.0.2.1"]);

    world.put(service("foreign").cluster_ip().shows(&["192.0.2.1"]));
    world.put(service("web"));
    let writes = world.run();

    assert_eq!(statuses(&writes, "foreign"), [] as [&ServiceStatus; 0]);
    assert_eq!(world.addresses("web"), "192.0.2.1");
}

#[test]
fn two_services_that_swap_their_addresses_are_never_written_with_the_same_one() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.2"]);
    world.put(service("a").wants(&["192.0.2.1"]));
    world.put(service("b").wants(&["192.0.2.2"]));
    world.run();

    world.put(service("a").wants(&["192.0.2.2"]));
    world.put(service("b").wants(&["192.0.2.1"]));
    for _ in 0..4 {
        for write in world.step() {
            world.carry_out(&write);
            assert!(world.addresses("a").is_empty() || world.addresses("a") != world.addresses("b"));
        }
    }

    assert_eq!((world.addresses("a"), world.addresses("b")), ("192.0.2.2".into(), "192.0.2.1".into()));
    world.run();
    world.restart();
    assert_eq!(world.run(), []);
}
