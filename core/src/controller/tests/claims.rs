//! Who keeps an address, when two statuses claim it, and whose status is left alone.

use super::*;

/// Messages of the Events about a Service.
fn messages(writes: &[Write], name: &str) -> Vec<String> {
    let object = ObjectRef::service(&key(name));
    let events = writes.iter().filter_map(|write| match write {
        Write::Event(event) if event.object == object => Some(event.message.clone()),
        _ => None,
    });
    events.collect()
}

#[test]
fn of_two_statuses_with_one_address_the_older_assignment_stays_and_the_other_service_moves() {
    let table = [
        // The time of the assignment, then the age of the Service, then its name.
        (service("a").assigned_at(20), service("b").assigned_at(10).created(9), "b"),
        (service("a").assigned_at(10).created(5), service("b").assigned_at(10).created(3), "b"),
        (service("a").assigned_at(10), service("b").assigned_at(10), "a"),
        // What no controller of ours vouches for comes last, however old it is.
        (service("a").created(1), service("b").assigned_at(10).created(9), "b"),
        (service("a").created(7), service("b").created(3), "b"),
        // An explicit wish is no older assignment.
        (service("a").assigned_at(20).wants(&["192.0.2.1"]), service("b").assigned_at(10), "b"),
    ];
    for (one, other, keeper) in table {
        let mut world = World::new();
        world.put_pool(pool("p", &["192.0.2.1-192.0.2.2"]));
        let loser = if keeper == "a" { "b" } else { "a" };
        let is_picky = one.load_balancer.as_ref().unwrap().request.as_ref().unwrap().addresses.len() == 1;
        world.put(one.shows(&["192.0.2.1"]));
        world.put(other.shows(&["192.0.2.1"]));

        let writes = world.run();

        assert_eq!(world.addresses(keeper), "192.0.2.1");
        assert_eq!(world.addresses(loser), if is_picky { "" } else { "192.0.2.2" });
        assert_eq!(told(&writes, loser)[0], "ClearAssignment");
        assert!(messages(&writes, loser)[0].contains(&format!("default/{keeper}")), "{writes:#?}");
        assert!(!told(&writes, keeper).contains(&"ClearAssignment"));
        world.restart();
        assert_eq!(world.run(), []);
    }
}

#[test]
fn a_write_of_a_former_leader_that_lands_late_does_not_move_who_was_given_the_address_since() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.3"]);
    world.put(service("given"));
    world.put(service("other").created(-5));
    world.run();
    let (given, other) = (world.addresses("given"), world.addresses("other"));

    let late = ip(&given);
    world.change("other", |other| {
        other.observed.addresses = vec![late];
        other.observed.assigned_at = Some(1);
    });
    let writes = world.run();

    assert_eq!((world.addresses("given"), world.addresses("other")), (given, other));
    assert!(messages(&writes, "other")[0].contains("default/given has"), "{writes:#?}");
}

#[test]
fn who_shares_an_address_rightly_is_no_duplicate() {
    let mut world = World::new();
    world.put_pool(pool("p", &["192.0.2.1-192.0.2.2"]));
    for (name, port) in [("a", 80), ("b", 81)] {
        world.put(service(name).shares("k").port(port).shows(&["192.0.2.1"]));
    }

    let writes = world.run();

    assert_eq!((world.addresses("a"), world.addresses("b")), ("192.0.2.1".into(), "192.0.2.1".into()));
    assert_eq!((told(&writes, "a"), told(&writes, "b")), (vec![], vec![]));
}

/// As a Service of another class looks, which another Ferrogate serves and marks.
fn served_by_another(name: &str) -> Service {
    let mut service = service(name).cluster_ip().shows(&["192.0.2.1"]);
    service.is_foreign = true;
    service.observed.pool = Some("theirs".into());
    service
}

#[test]
fn m_079_the_marks_of_another_ferrogate_are_left_alone() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(served_by_another("theirs"));
    world.put(service("ours"));

    let writes = world.run();

    assert_eq!(statuses(&writes, "theirs"), [] as [&ServiceStatus; 0]);
    assert_eq!(world.addresses("ours"), "192.0.2.1");
    world.change("theirs", |theirs| theirs.observed.addresses = vec![ip("198.51.100.9")]);
    assert_eq!(world.run(), []);
}

#[test]
fn m_067_a_change_of_class_or_type_releases_the_address_at_once() {
    let no_load_balancer: fn(&mut Service) = |web| web.load_balancer = None;
    let other_class: fn(&mut Service) = |web| {
        web.load_balancer = None;
        web.is_foreign = true;
    };
    for change in [no_load_balancer, other_class] {
        let mut world = World::with_pool(&["192.0.2.1"]);
        world.put(service("web"));
        world.run();
        world.put(service("next").created(1));
        world.run();
        assert_eq!(world.refusal("next").reason(), "Exhausted");

        world.change("web", change);
        world.run();

        assert_eq!(world.status("web"), &ServiceStatus::default());
        assert_eq!(world.addresses("next"), "192.0.2.1");
        world.restart();
        assert_eq!(world.run(), []);
    }
}

#[test]
fn a_service_that_comes_back_from_another_class_is_served_again() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web"));
    world.run();
    world.change("web", |web| {
        web.load_balancer = None;
        web.is_foreign = true;
    });
    world.step();

    world.put(service("web"));
    world.run();

    assert_eq!(world.addresses("web"), "192.0.2.1");
    world.change("web", |web| web.observed = ServiceStatus { pool: Some("theirs".into()), ..Default::default() });
    world.run();
    assert_eq!(world.addresses("web"), "192.0.2.1");
}
