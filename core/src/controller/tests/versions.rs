//! Writes to Services whose versions are known: each is decided on one, and none comes late.

use super::*;

impl World {
    /// Gives a Service its next version.
    fn version(&mut self, name: &str, version: &str) {
        self.change(name, |service| service.version = version.into());
    }
}

/// Status, version and fence of the one write about a Service.
fn write(writes: &[Write]) -> Option<(Vec<String>, &str, bool)> {
    let mut found = writes.iter().filter_map(|write| match write {
        Write::ServiceStatus { status, version, fence, .. } => {
            Some((status.addresses.iter().map(ToString::to_string).collect(), version.as_str(), *fence))
        }
        _ => None,
    });
    let first = found.next();
    assert_eq!(found.next(), None);
    first
}

fn has(address: &str, version: &'static str) -> Option<(Vec<String>, &'static str, bool)> {
    Some((Vec::from([address.to_owned()]), version, false))
}

#[test]
fn a_write_names_the_version_it_was_decided_on_and_follows_it() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web"));
    world.version("web", "5");
    assert_eq!(write(&world.step()), has("192.0.2.1", "5"));
    assert_eq!(write(&world.step()), None);

    world.version("web", "6");

    assert_eq!(write(&world.step()), has("192.0.2.1", "6"));
}

#[test]
fn a_wish_that_is_already_so_is_still_set_behind_one_in_flight() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.remove_pool("p");
    world.put(service("web"));
    world.version("web", "1");
    world.run();
    world.version("web", "2");
    world.put_pool(pool("p", &["192.0.2.1"]));
    assert_eq!(write(&world.step()), has("192.0.2.1", "2"));

    world.remove_pool("p");
    let fence = world.step();
    world.put_pool(pool("q", &["192.0.2.1"]));
    world.put(service("other"));
    world.version("other", "3");
    world.change("web", |service| service.load_balancer.as_mut().unwrap().families = vec![Family::V6]);

    assert_eq!(write(&fence), Some((vec![], "2", true)));
    assert!(!world.step().iter().any(|write| matches!(
        write,
        Write::ServiceStatus { service, status, .. } if *service == key("other") && !status.addresses.is_empty()
    )));
    world.version("web", "4");
    world.run();
    assert_eq!(world.addresses("other"), "192.0.2.1");
}

#[test]
fn a_service_that_moves_is_seen_without_an_address_in_between() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.2"]);
    world.put(service("web"));
    world.version("web", "1");
    world.run();
    world.version("web", "2");
    world.put_pool(pool("p", &["192.0.2.2"]));

    let writes = world.step();

    assert_eq!(write(&writes), Some((vec![], "2", false)));
    world.carry_out(&writes[0]);
    assert_eq!(write(&world.step()), has("192.0.2.2", "3"));
}

#[test]
fn a_source_without_versions_moves_a_service_at_once() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.2"]);
    world.put(service("web"));
    world.run();

    world.put_pool(pool("p", &["192.0.2.2"]));

    assert_eq!(write(&world.step()), has("192.0.2.2", ""));
}

#[test]
fn the_later_of_two_claims_to_one_address_goes_by_way_of_none() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.2"]);
    world.put(service("first").shows(&["192.0.2.1"]).assigned_at(1));
    world.put(service("later").shows(&["192.0.2.1"]).assigned_at(2));
    world.version("first", "1");
    world.version("later", "2");

    let writes = world.step();
    let of =
        |writes: &[Write], name: &str| statuses(writes, name).iter().map(|status| status.addresses.clone()).collect();
    let (first, later): (Vec<_>, Vec<_>) = (of(&writes, "first"), of(&writes, "later"));
    assert_eq!((first, later), (vec![vec![ip("192.0.2.1")]], vec![vec![]]));
    writes.iter().for_each(|write| world.carry_out(write));
    world.version("first", "3");
    world.version("later", "4");

    let later: Vec<_> = of(&world.step(), "later");
    assert_eq!(later, [[ip("192.0.2.2")]]);
}
