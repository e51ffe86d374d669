//! Facts that nobody should make, and some do.

use super::*;
use crate::snapshot::{Fault, Origin, Problem};

#[test]
fn a_status_with_three_addresses_or_two_of_one_family_is_replaced() {
    for shown in [
        &["192.0.2.1", "192.0.2.2"][..],
        &["192.0.2.1", "2001:db8::1", "192.0.2.2"],
        &["2001:db8::1", "2001:db8::2", "2001:db8::3"],
        &["192.0.2.1", "192.0.2.1"],
    ] {
        let mut world = World::with_pool(&["192.0.2.1-192.0.2.9", "2001:db8::1-2001:db8::9"]);
        world.put(service("dual").families(FamilyPolicy::RequireDualStack, DUAL).shows(shown));

        let writes = world.run();

        assert_eq!(world.addresses("dual"), "192.0.2.1, 2001:db8::1", "{shown:?}");
        assert_eq!(told(&writes, "dual"), ["ClearAssignment", "IPAllocated"]);
        world.restart();
        assert_eq!(world.run(), []);
    }
}

#[test]
fn a_service_of_three_families_gets_what_two_are() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9", "2001:db8::1-2001:db8::9"]);
    let three = [Family::V6, Family::V4, Family::V6];

    world.put(service("web").families(FamilyPolicy::RequireDualStack, &three));
    world.put(service("single").families(FamilyPolicy::SingleStack, &three));
    world.run();

    assert_eq!(world.addresses("single"), "2001:db8::1");
    assert_eq!(world.addresses("web"), "192.0.2.1, 2001:db8::2");
}

#[test]
fn m_043_what_others_add_to_the_list_of_addresses_is_taken_out() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web"));
    world.run();

    world.change("web", |web| web.observed.is_altered = true);
    let writes = world.run();

    assert_eq!(statuses(&writes, "web").len(), 1);
    assert!(!world.status("web").is_altered);
    assert_eq!(told(&writes, "web"), [""; 0]);
}

#[test]
fn a_pool_that_is_renamed_shrunk_and_deleted_in_one_snapshot_loses_only_what_is_gone() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.4"]);
    world.put_pool(pool("gone", &["198.51.100.1"]).manual());
    for name in ["a", "b", "c", "d"] {
        world.put(service(name));
    }
    world.put(service("e").wants_pool("gone"));
    world.run();
    world.change("e", |e| e.request().pool = None);
    world.run();

    world.remove_pool("p");
    world.remove_pool("gone");
    world.put_pool(pool("q", &["192.0.2.2-192.0.2.3"]));
    world.put_pool(pool("r", &["192.0.2.4", "203.0.113.1"]));
    let writes = world.run();

    let found = ["a", "b", "c", "d", "e"].map(|name| world.addresses(name));
    assert_eq!(found, ["203.0.113.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", ""]);
    for name in ["b", "c", "d"] {
        assert_eq!(told(&writes, name), [""; 0]);
        assert_eq!(statuses(&writes, name).len(), 1, "only the pool's name");
    }
    assert_eq!(world.refusal("e").reason(), "Exhausted");
    world.restart();
    assert_eq!(world.run(), []);
}

#[test]
fn pools_of_2_to_the_64_and_2_to_the_127_addresses_cost_no_more_than_small_ones() {
    let mut world = World::new();
    let half = "2001:db8::-2001:db8::ffff:ffff:ffff:ffff";
    world.put_pool(pool("large", &[half]).without_edges(&["2001:db8::"]));
    world.put_pool(pool("vast", &["8000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]));
    let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    world.put(service("low").families(FamilyPolicy::SingleStack, V6).wants_pool("large"));
    world.put(service("high").families(FamilyPolicy::SingleStack, V6).wants(&[last]));

    world.run();

    assert_eq!((world.addresses("low"), world.addresses("high")), ("2001:db8::1".into(), last.into()));
    let capacities: Vec<_> = world.controller.usage().map(|usage| usage.capacity).collect();
    assert_eq!(capacities, [(1 << 64) - 1, 1 << 127]);
    let status = &world.facts.pools[&PoolName::from("vast")].observed;
    assert_eq!((status.assigned_ipv6, status.available_ipv6), (1, i64::MAX));
}

#[test]
fn equal_facts_write_nothing_however_often_they_come() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.2"]);
    for name in ["a", "b", "c"] {
        world.put(service(name));
    }
    world.put(service("x").shows(&["203.0.113.1"]));
    world.run();

    for _ in 0..3 {
        // The same facts in maps of their own, as after a new list from the API server.
        world.facts.services =
            world.facts.services.values().map(|one| (one.key.clone(), Arc::new(Service::clone(one)))).collect();
        world.facts.pools =
            world.facts.pools.values().map(|one| (one.name.clone(), Arc::new(Pool::clone(one)))).collect();
        assert_eq!(world.step(), []);
    }
}

/// Facts with this many pools, one for each Namespace `n-…` where `pinned`, and a Service in each Namespace.
fn many(count: u32, pinned: bool) -> World {
    let mut world = World::new();
    for number in 0..count {
        let address = IpAddr::from(std::net::Ipv4Addr::from(0xc612_0000 + number));
        let mut one = pool(&format!("p-{number:05}"), &[&address.to_string()]);
        if pinned {
            one = one.pinned(|allocation| _ = allocation.namespaces.insert(format!("n-{number:05}")));
        }
        world.facts.pools.insert(one.name.clone(), Arc::new(one));
        let one = service(&format!("n-{number:05}/web"));
        world.facts.services.insert(one.key.clone(), Arc::new(one));
    }
    world
}

#[test]
fn with_thousands_of_pools_a_service_looks_at_those_that_can_help() {
    for pinned in [true, false] {
        let mut world = many(5_000, pinned);
        world.put(service("one-too-many/web").created(1));

        let writes = world.step();

        assert_eq!(statuses(&writes, "n-04999/web")[0].pool, Some("p-04999".into()));
        let looked_at = crate::controller::allocate::LOOKED_AT.with(|count| count.replace(0));
        assert!(looked_at < 30_000, "{looked_at} pools were looked at for 5,001 Services");
        writes.iter().for_each(|write| world.carry_out(write));
        world.run();
        let refusal = world.refusal("one-too-many/web").to_string();
        assert!(refusal.len() < 300, "{refusal}");

        world.remove("n-02500/web");
        world.run();
        let took_it = world.addresses("one-too-many/web");
        assert_eq!(took_it, if pinned { "" } else { "198.18.9.196" });
        world.restart();
        assert_eq!(world.run(), []);
    }
}

#[test]
fn thousands_of_services_that_change_at_once_are_settled_in_one_step() {
    let mut world = World::with_pool(&["198.18.0.0-198.19.255.255"]);
    for number in 0..5_000 {
        world.put(service(&format!("web-{number:04}")));
    }
    world.run();

    for number in 0..5_000 {
        world.put(service(&format!("web-{number:04}")).shares("k").port(number + 1));
    }
    let writes = world.run();

    let services = writes.iter().filter(|write| matches!(write, Write::ServiceStatus { .. }));
    assert_eq!(services.count(), 0, "each is the only user of its address");
    world.restart();
    assert_eq!(world.run(), []);
}

/// A pool that is there and not in force, as a controller finds it that has not seen it otherwise.
fn leave_out(world: &mut World, pool: &str) {
    let key = world.facts.pools[&PoolName::from(pool)].key.clone();
    world.remove_pool(pool);
    let object = ObjectRef::namespaced(API_VERSION, "IPAddressPool", &key);
    let fault = Fault::Schema { detail: "no addresses".to_owned() };
    let problem = Problem { object: Some(object.clone()), generation: 2, field: String::new(), fault };
    world.facts.problems = Arc::new(BTreeMap::from([(Origin::Cluster(object), vec![problem])]));
}

#[test]
fn whoever_has_an_address_of_a_pool_that_is_left_out_keeps_it_after_a_restart() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.2"]);
    world.put(service("web"));
    world.run();

    leave_out(&mut world, "p");
    world.restart();
    world.put(service("new"));
    world.run();

    assert_eq!((world.addresses("web"), world.addresses("new")), ("192.0.2.1".into(), String::new()));
    assert_eq!(world.status("web").condition.as_ref().unwrap().reason, "PoolLeftOut");
    world.restart();
    assert_eq!(world.run(), []);
}

#[test]
fn an_address_of_a_pool_that_is_left_out_is_given_to_nobody_else() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.2"]);
    world.put(service("web"));
    world.run();
    leave_out(&mut world, "p");
    world.restart();
    world.run();

    world.put_pool(pool("q", &["192.0.2.1", "198.51.100.1"]));
    world.put(service("new"));
    world.run();

    assert_eq!((world.addresses("web"), world.addresses("new")), ("192.0.2.1".into(), "198.51.100.1".into()));
    assert_eq!(world.status("web").pool, Some("q".into()));
}

#[test]
fn a_pool_that_comes_back_into_force_takes_away_what_it_no_longer_has_and_one_that_is_deleted_all() {
    for comes_back in [true, false] {
        let mut world = World::with_pool(&["192.0.2.1-192.0.2.2"]);
        world.put(service("a"));
        world.put(service("b"));
        world.run();
        leave_out(&mut world, "p");
        world.restart();
        world.run();

        world.facts.problems = Arc::default();
        if comes_back {
            world.put_pool(pool("p", &["192.0.2.2-192.0.2.3"]));
        }
        world.run();

        let expected = if comes_back { ["192.0.2.3", "192.0.2.2"] } else { ["", ""] };
        assert_eq!(["a", "b"].map(|name| world.addresses(name)), expected);
    }
}
