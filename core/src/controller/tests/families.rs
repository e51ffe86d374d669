//! One family, both, or both where possible.

use super::*;

use FamilyPolicy::{PreferDualStack, RequireDualStack, SingleStack};

#[test]
fn m_090_to_m_097_families_and_pools() {
    let four = || pool("a", &["192.0.2.1"]);
    let six = || pool("b", &["2001:db8::1"]);
    let both = || pool("c", &["2001:db8:1::1", "198.51.100.1"]);
    let all = || vec![four(), six(), both()];
    let backwards = &[Family::V6, Family::V4][..];
    let table = [
        (all(), SingleStack, V4, "192.0.2.1"),
        (all(), SingleStack, V6, "2001:db8::1"),
        (all(), RequireDualStack, DUAL, "198.51.100.1, 2001:db8:1::1"),
        (vec![four(), six()], RequireDualStack, DUAL, ""),
        (all(), RequireDualStack, V4, ""),
        (all(), PreferDualStack, DUAL, "198.51.100.1, 2001:db8:1::1"),
        (all(), PreferDualStack, V6, "2001:db8::1"),
        (vec![four(), six()], PreferDualStack, DUAL, "192.0.2.1"),
        (vec![four(), six()], PreferDualStack, backwards, "2001:db8::1"),
        (vec![six()], PreferDualStack, DUAL, "2001:db8::1"),
        (vec![four()], SingleStack, V6, ""),
        (all(), SingleStack, &[], ""),
    ];
    for (pools, policy, families, expected) in table {
        let mut world = World::new();
        for pool in pools {
            world.put_pool(pool);
        }
        world.put(service("web").families(policy, families));

        world.run();

        assert_eq!(world.addresses("web"), expected, "{policy:?} {families:?}");
        world.restart();
        assert_eq!(world.run(), []);
    }
}

#[test]
fn m_091_and_m_092_what_cannot_be_had_in_both_families_says_why() {
    let mut world = World::new();
    world.put_pool(pool("a", &["192.0.2.1"]));
    world.put_pool(pool("b", &["2001:db8::1"]));
    world.put(service("dual").families(RequireDualStack, DUAL));
    world.put(service("single").families(RequireDualStack, V4));
    world.put(service("unknown").families(SingleStack, &[]));

    world.run();

    let pools = vec!["a".into(), "b".into()];
    assert_eq!(world.refusal("dual"), Refusal::NoPoolWithFamilies { pools, families: DUAL.to_vec() });
    assert_eq!(world.refusal("single"), Refusal::NotDualStack { present: Family::V4 });
    assert_eq!(world.refusal("unknown"), Refusal::NoFamily);
}

#[test]
fn m_095_a_second_family_is_gained_later_and_the_first_address_stays() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9", "2001:db8::1"]);
    world.put(service("holder").families(SingleStack, V6));
    world.run();
    world.put(service("web").families(PreferDualStack, DUAL));
    world.run();
    assert_eq!(world.addresses("web"), "192.0.2.1");

    world.remove("holder");
    let writes = world.run();

    assert_eq!(world.addresses("web"), "192.0.2.1, 2001:db8::1");
    assert_eq!(told(&writes, "web"), ["IPAllocated"]);
}

#[test]
fn m_095_a_pool_that_gains_a_family_gives_it_to_who_prefers_both() {
    let mut world = World::with_pool(&["2001:db8::1"]);
    world.put(service("web").families(PreferDualStack, DUAL));
    world.run();
    assert_eq!(world.addresses("web"), "2001:db8::1");

    world.put_pool(pool("p", &["2001:db8::1", "192.0.2.1"]));
    world.run();

    assert_eq!(world.addresses("web"), "2001:db8::1, 192.0.2.1");
    world.restart();
    assert_eq!(world.run(), []);
}

#[test]
fn m_096_a_second_address_never_comes_from_another_pool() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web").families(PreferDualStack, DUAL));
    world.run();

    world.put_pool(pool("six", &["2001:db8::1"]));
    world.run();

    assert_eq!(world.addresses("web"), "192.0.2.1");
}

#[test]
fn a_dual_service_that_loses_one_address_is_allocated_anew() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9", "2001:db8::1-2001:db8::9"]);
    world.put(service("web").families(RequireDualStack, DUAL));
    world.run();

    world.put_pool(pool("p", &["192.0.2.1-192.0.2.9", "2001:db8::2-2001:db8::9"]));
    world.run();

    assert_eq!(world.addresses("web"), "192.0.2.1, 2001:db8::2");
}

#[test]
fn who_needs_both_is_served_as_soon_as_the_last_lacking_family_is_free() {
    let mut world = World::with_pool(&["192.0.2.1", "2001:db8::1"]);
    world.put(service("four").families(SingleStack, V4));
    world.put(service("six").families(SingleStack, V6));
    world.run();
    world.put(service("dual").families(RequireDualStack, DUAL));
    world.run();

    world.remove("four");
    world.run();
    assert_eq!(world.refusal("dual").reason(), "Exhausted");
    world.remove("six");
    world.run();

    assert_eq!(world.addresses("dual"), "192.0.2.1, 2001:db8::1");
}
