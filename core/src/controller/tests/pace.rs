//! How often what changes all the time is written.

use super::*;

fn pool_writes(writes: &[Write]) -> usize {
    writes.iter().filter(|write| matches!(write, Write::PoolStatus { .. })).count()
}

#[test]
fn the_counters_of_a_pool_are_written_once_a_second_however_many_services_come() {
    let mut world = World::with_pool(&["192.0.2.0-192.0.2.255"]);
    let (mut pools, mut services) = (0, 0);
    for number in 0..200 {
        world.now += Duration::from_millis(20);
        world.put(service(&format!("web-{number:03}")));
        let writes = world.step();
        writes.iter().for_each(|write| world.carry_out(write));
        pools += pool_writes(&writes);
        services += writes.iter().filter(|write| matches!(write, Write::ServiceStatus { .. })).count();
    }
    assert_eq!((pools, services), (4, 200), "four seconds");

    let last = world.run();

    assert_eq!(pool_writes(&last), 1);
    assert_eq!(world.facts.pools[&PoolName::from("p")].observed.assigned_ipv4, 200);
    assert_eq!(world.controller.deadline(), None);
}

#[test]
fn a_pool_that_is_back_where_it_was_before_its_turn_is_not_written() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9"]);
    world.put(service("a"));
    world.step().iter().for_each(|write| world.carry_out(write));
    world.step();
    world.put(service("b"));
    assert_eq!(pool_writes(&world.step()), 0);

    world.remove("b");
    world.step();

    assert_eq!(world.controller.deadline(), None);
}

#[test]
fn a_pool_that_comes_and_goes_costs_bounded_writes() {
    let mut world = World::with_pool(&["198.51.100.1"]);
    world.put(service("web").wants(&["192.0.2.1"]));
    world.run();
    let mut count = 0;
    for round in 0..600 {
        world.now += Duration::from_millis(10);
        match round % 2 {
            0 => world.put_pool(pool("flaps", &["192.0.2.1"])),
            _ => world.remove_pool("flaps"),
        }
        let writes = world.step();
        count += writes.len();
        writes.iter().for_each(|write| world.carry_out(write));
    }
    assert!(count <= 60, "{count} writes in six seconds");

    world.put_pool(pool("flaps", &["192.0.2.1"]));
    world.run();

    assert_eq!(world.addresses("web"), "192.0.2.1");
}

#[test]
fn somebody_who_keeps_changing_a_status_back_is_answered_ten_times_in_ten_seconds() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web"));
    world.run();
    world.now += Duration::from_secs(60);
    let mut answers = 0;
    for _ in 0..1000 {
        world.now += Duration::from_millis(10);
        world.change("web", |web| web.observed.addresses = vec![ip("203.0.113.1")]);
        let writes = world.step();
        answers += statuses(&writes, "web").len();
        writes.iter().for_each(|write| world.carry_out(write));
        let echo = world.step();
        echo.iter().for_each(|write| world.carry_out(write));
    }
    assert!((10..=20).contains(&answers), "{answers}");

    world.run();

    assert_eq!(world.addresses("web"), "192.0.2.1");
}
