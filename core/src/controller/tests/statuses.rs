//! What is written about pools, advertisements, Ingresses and problems, and when it is written again.

use std::num::NonZeroU8;

use super::*;
use crate::{
    model::{
        advertisement::{Aggregation, BgpAdvertisement},
        bfd_profile::BfdProfile,
        route::{Backend, BackendPort},
    },
    snapshot::{Fault, Origin, Problem},
    write::{ACCEPTED, Condition},
};

impl World {
    fn report(&mut self, problems: Vec<Problem>) {
        let origin = Origin::File { path: "file.yaml".into(), document: 1 };
        self.facts.problems = Arc::new(BTreeMap::from([(origin, problems)]));
    }

    fn accepted(&self, object: &ObjectRef) -> Option<&Condition> {
        self.facts.conditions.get(object)?.iter().find(|condition| condition.kind == ACCEPTED)
    }
}

fn problem(object: ObjectRef, fault: Fault) -> Problem {
    Problem { object: Some(object), generation: 7, field: "spec.addresses[0]".into(), fault }
}

fn overlap() -> Fault {
    Fault::Overlap {
        range: "192.0.2.0-192.0.2.9".into(),
        other_range: "192.0.2.5-192.0.2.6".into(),
        other_pool: "p".into(),
    }
}

fn reasons(writes: &[Write]) -> Vec<&str> {
    let events = writes.iter().filter_map(|write| match write {
        Write::Event(event) => Some(&*event.reason),
        _ => None,
    });
    events.collect()
}

#[test]
fn m_081_capacity_follows_avoid_buggy_ips() {
    for (avoid, expected) in [(false, 256), (true, 254)] {
        let mut world = World::new();
        let mut pool = pool("p", &["192.0.2.0-192.0.2.255"]);
        pool.avoid_buggy_ips = avoid;
        world.put_pool(pool);

        world.run();

        assert_eq!(world.facts.pools[&PoolName::from("p")].observed.available_ipv4, expected);
        assert_eq!(world.controller.usage().next().unwrap().capacity, expected as u128);
    }
}

#[test]
fn nothing_is_written_to_what_was_written_for_metallb() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    let theirs = Pool { read_only: true, ..Pool::clone(&world.facts.pools[&PoolName::from("p")]) };
    world.put_pool(theirs);
    let key = ObjectKey::new("metallb-system", "l2");
    let advertisement = L2Advertisement { key: key.clone(), read_only: true, ..advertisement("l2", &[]) };
    world.facts.l2_advertisements.insert(key, Arc::new(advertisement));
    world.put(service("web"));

    let writes = world.run();

    assert_eq!(world.addresses("web"), "192.0.2.1");
    let strange = writes.iter().filter(|write| matches!(write, Write::PoolStatus { .. } | Write::Condition { .. }));
    assert_eq!(strange.collect::<Vec<_>>(), Vec::<&Write>::new());
}

#[test]
fn counters_edited_by_hand_are_put_right() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    let mut edited = Pool::clone(&world.facts.pools[&PoolName::from("p")]);
    edited.observed.assigned_ipv4 = 77;
    world.facts.pools.insert(edited.name.clone(), Arc::new(edited));

    world.run();

    assert_eq!(world.facts.pools[&PoolName::from("p")].observed.assigned_ipv4, 0);
}

#[test]
fn a_pool_that_was_left_out_says_why_until_it_is_right() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    let bad = pool("bad", &["192.0.2.0-192.0.2.9"]);
    let object = pool_ref(&bad);
    world.report(vec![problem(object.clone(), overlap())]);

    let writes = world.run();

    let condition = world.accepted(&object).unwrap();
    assert_eq!((condition.holds, &*condition.reason, condition.observed_generation), (false, "OverlappingPools", 7));
    assert_eq!(reasons(&writes), ["OverlappingPools"]);
    world.restart();
    assert_eq!(world.run(), []);

    world.report(Vec::new());
    world.put_pool(pool("bad", &["203.0.113.1"]));
    world.run();
    assert!(world.accepted(&object).unwrap().holds);
    assert!(world.facts.pools[&bad.name].observed.conditions[0].holds);
}

#[test]
fn a_warning_leaves_the_object_accepted_and_says_so() {
    let mut world = World::new();
    let object = advertisement_ref(&ObjectKey::new("ferrogate-system", "everything"));
    assert_eq!(world.accepted(&object).unwrap().reason, "Accepted");
    let dangling = Fault::DanglingReference { kind: "IPAddressPool".into(), name: "gone".into() };

    world.report(vec![problem(object.clone(), dangling)]);
    let writes = world.run();

    let condition = world.accepted(&object).unwrap();
    assert_eq!((condition.holds, &*condition.reason), (true, "DanglingReference"));
    assert!(condition.message.contains("gone"), "{}", condition.message);
    assert_eq!(reasons(&writes), ["DanglingReference"]);
}

#[test]
fn a_problem_of_a_kind_without_conditions_is_told_by_an_event_alone() {
    let mut world = World::new();
    let object = ObjectRef::ingress(&key("site"));
    world.report(vec![problem(object, Fault::Unsupported { feature: "x".into(), instead: "use y".into() })]);

    let writes = world.run();

    assert_eq!(writes.len(), 1);
    assert_eq!(reasons(&writes), ["Unsupported"]);
}

#[test]
fn a_pool_says_who_uses_its_lowest_addresses_and_no_more_than_that() {
    let mut world = World::with_pool(&["192.0.2.200-192.0.2.250", "192.0.2.1-192.0.2.2"]);
    let used = |world: &World| world.facts.pools[&PoolName::from("p")].observed.used_by.clone();
    world.put(service("high"));
    world.put(service("one").shares("k").port(1).wants(&["192.0.2.1"]));
    world.put(service("two").shares("k").port(2).wants(&["192.0.2.1"]));
    world.run();
    let of = |address: &str, services: &[&str]| AddressUse {
        address: ip(address),
        services: services.iter().map(|name| key(name)).collect(),
    };
    assert_eq!(used(&world), [of("192.0.2.1", &["one", "two"]), of("192.0.2.200", &["high"])]);

    world.remove("one");
    world.run();
    assert_eq!(used(&world)[0], of("192.0.2.1", &["two"]));

    for number in 0..45 {
        world.put(service(&format!("more-{number:02}")));
    }
    world.run();
    assert_eq!(used(&world).len(), PoolStatus::LISTED);
}

#[test]
fn m_152_events_say_what_an_alert_written_for_metallb_looks_for() {
    let mut world = World::with_pool(&["192.0.2.1", "2001:db8::1"]);
    world.put(service("web").families(FamilyPolicy::RequireDualStack, DUAL));
    world.put(service("late").created(1));
    let events: Vec<_> = world
        .run()
        .into_iter()
        .filter_map(|write| match write {
            Write::Event(event) => Some((event.reason, event.message)),
            _ => None,
        })
        .collect();

    assert!(events[0].1.starts_with("Failed to allocate IP for \"default/late\": no free IPv4 address"), "{events:?}");
    assert_eq!(events[0].0, "AllocationFailed");
    assert_eq!(events[1].0, "IPAllocated");
    assert_eq!(events[1].1, "Assigned IP [\"192.0.2.1\" \"2001:db8::1\"] of pool p");
}

#[test]
fn an_address_that_nobody_announces_is_said_to_be_so() {
    let mut world = World::empty(Snapshot::default());
    world.put_pool(pool("p", &["192.0.2.1"]));
    world.put_pool(pool("loopback", &["127.0.0.1"]).manual());
    world.put(service("web"));
    world.put(service("local").wants_pool("loopback"));
    assert_eq!(told(&world.run(), "web"), ["IPAllocated", "NotAdvertised"]);
    world.restart();
    assert_eq!(world.run(), []);
    let reason = |world: &World, name| world.status(name).condition.as_ref().unwrap().reason.clone();
    assert_eq!(reason(&world, "web"), "NotAdvertised");
    assert_eq!(reason(&world, "local"), "Assigned");

    let mut covering = advertisement("ad", &["p"]);
    covering.service_selectors = vec![selector("app", "x")];
    world.facts.l2_advertisements.insert(covering.key.clone(), Arc::new(covering.clone()));
    world.run();
    assert_eq!(reason(&world, "web"), "NotAdvertised");
    world.change("web", |web| _ = web.labels.insert("app".into(), "x".into()));
    world.run();
    assert_eq!(reason(&world, "web"), "Assigned");

    world.facts.l2_advertisements.remove(&covering.key);
    world.run();
    assert_eq!(reason(&world, "web"), "NotAdvertised");
}

#[test]
fn every_ingress_shows_the_addresses_of_the_entry() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9"]);
    world.facts.ingresses.insert(key("site"), Arc::new(ingress("site")));
    let mut entry = service("entry");
    entry.is_entry = true;
    let shown = |world: &World| refusal::list(&world.facts.ingresses[&key("site")].observed_addresses);

    world.put(entry);
    world.run();
    assert_eq!(shown(&world), "192.0.2.1");
    world.facts.ingresses.insert(key("late"), Arc::new(ingress("late")));
    let writes = world.run();
    assert_eq!(writes.len(), 1);
    world.remove("entry");
    world.run();

    assert_eq!(shown(&world), "");
}

#[test]
fn a_write_that_does_not_show_is_repeated_when_patience_ends_and_not_before() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web"));
    let first = world.step();
    assert!(!first.is_empty());
    assert_eq!(world.step(), []);
    let deadline = world.controller.deadline().unwrap();
    assert_eq!(deadline, world.now + WRITE_PATIENCE);

    assert_eq!(world.controller.step(deadline - Duration::from_millis(1), Event::Tick), []);
    let again = world.controller.step(deadline, Event::Tick);

    let without_events: Vec<_> = first.into_iter().filter(|write| !matches!(write, Write::Event(_))).collect();
    assert_eq!(again.len(), without_events.len());
    assert!(again.iter().all(|write| without_events.contains(write)));
    assert_eq!(world.controller.deadline(), Some(deadline + WRITE_PATIENCE));
}

#[test]
fn a_newer_wish_supersedes_a_write_in_flight() {
    let mut world = World::with_pool(&["192.0.2.1-192.0.2.9"]);
    world.put(service("web"));
    let first = world.step();
    world.put(service("web").wants(&["192.0.2.7"]));

    let second = world.step();

    assert_eq!(statuses(&second, "web")[0].addresses, [ip("192.0.2.7")]);
    // The older write lands late: it is an echo, not somebody's wish.
    first.iter().for_each(|write| world.carry_out(write));
    assert_eq!(statuses(&world.step(), "web"), [] as [&ServiceStatus; 0]);
    second.iter().for_each(|write| world.carry_out(write));
    assert_eq!(statuses(&world.run(), "web"), [] as [&ServiceStatus; 0]);
}

#[test]
fn a_wish_that_goes_back_to_what_is_shown_still_cancels_the_write_in_flight() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("holder"));
    world.run();
    world.put(service("web"));
    world.run();
    world.remove("holder");
    let lost = world.step();
    assert_eq!(statuses(&lost, "web").len(), 1);

    world.put(service("holder").wants(&["192.0.2.1"]));
    world.put(service("web").wants_pool("nowhere"));
    world.step();
    world.put(service("web"));
    let writes = world.step();

    assert_eq!(statuses(&writes, "web").last().unwrap().addresses, [] as [IpAddr; 0]);
}

#[test]
fn who_does_not_lead_decides_and_writes_nothing() {
    let mut world = World::new();
    world.controller = Controller::new(Config::default());
    world.put_pool(pool("p", &["192.0.2.1"]));
    world.put(service("web"));
    assert_eq!(world.step(), []);
    assert_eq!(world.controller.verdict(&key("web")), Verdict::NotServed);

    let writes = world.controller.step(world.now, Event::Leads(true));
    assert_eq!(statuses(&writes, "web").len(), 1);
    assert_eq!(world.controller.step(world.now, Event::Leads(false)), []);

    assert_eq!(world.controller.deadline(), None);
    assert_eq!(world.step(), []);
}

#[test]
fn explain_says_what_the_controller_says() {
    let mut world = World::with_pool(&["192.0.2.1"]);
    world.put(service("web"));
    world.put(service("late").created(1));
    world.put(service("inner").cluster_ip());
    world.run();
    let facts = Arc::new(world.facts.clone());

    for name in ["web", "late", "inner", "absent"] {
        assert_eq!(explain(&facts, &key(name)), world.controller.verdict(&key(name)), "{name}");
    }
    assert_eq!(explain(&facts, &key("inner")), Verdict::NotServed);
    assert_eq!(world.controller.pending(), &BTreeMap::from([("Exhausted", 1)]));
}

#[test]
fn an_ingress_whose_service_is_missing_is_told_once_and_again_when_it_goes_away() {
    let mut world = World::new();
    let mut site = ingress("site");
    let port = BackendPort::Number(NonZeroU16::new(80).unwrap());
    site.default_backend = Some(Backend { service: key("web"), port });
    world.facts.ingresses.insert(site.key.clone(), Arc::new(site));

    assert_eq!(reasons(&world.run()), ["ServiceNotFound"]);
    world.put(service("other").cluster_ip());
    assert_eq!(world.run(), []);
    world.put(service("web").cluster_ip());
    assert_eq!(world.run(), []);
    world.remove("web");

    assert_eq!(reasons(&world.run()), ["ServiceNotFound"]);
}

#[test]
fn a_port_that_the_proxy_cannot_carry_is_reported_where_it_has_to() {
    for carries in [false, true] {
        let mut world = World::with_pool(&["192.0.2.1"]);
        world.controller = Controller::new(Config { proxy_carries_services: carries, ..Config::default() });
        world.controller.step(world.now, Event::Leads(true));
        world.put(service("web").ports(&[(Protocol::Tcp, 80), (Protocol::Sctp, 81)]));
        world.run();
        let object = ObjectRef::service(&key("web"));
        let reason = world.accepted(&object).map(|condition| condition.reason.as_str());
        assert_eq!(reason, carries.then_some("UnsupportedProtocol"));
        assert_eq!(world.addresses("web"), "192.0.2.1");

        world.put(service("web"));
        world.run();

        assert_eq!(world.accepted(&object).is_some_and(|condition| condition.holds), carries);
    }
}

fn profile(name: &str) -> BfdProfile {
    BfdProfile {
        key: ObjectKey::new("ferrogate-system", name),
        read_only: false,
        generation: 3,
        receive_interval: Duration::from_millis(300),
        transmit_interval: Duration::from_millis(300),
        detect_multiplier: NonZeroU8::MIN,
        echo_interval: None,
        passive: false,
        minimum_ttl: NonZeroU8::MAX,
    }
}

#[test]
fn every_kind_of_configuration_says_whether_it_is_accepted_but_not_what_was_written_for_metallb() {
    let mut world = World::new();
    let (ours, theirs) = (profile("fast"), BfdProfile { read_only: true, ..profile("theirs") });
    for profile in [&ours, &theirs] {
        world.facts.bfd_profiles.insert(profile.key.clone(), Arc::new(profile.clone()));
    }

    world.run();

    let object = |key| ObjectRef::namespaced(API_VERSION, "BFDProfile", key);
    let condition = world.accepted(&object(&ours.key)).unwrap();
    assert_eq!((condition.holds, &*condition.reason, condition.observed_generation), (true, "Accepted", 3));
    assert_eq!(world.accepted(&object(&theirs.key)), None);
    assert_eq!(world.run(), []);
}

#[test]
fn m_036_the_condition_of_a_change_that_is_refused_says_what_is_in_force_meanwhile() {
    let mut world = World::new();
    let fast = profile("fast");
    world.facts.bfd_profiles.insert(fast.key.clone(), Arc::new(fast.clone()));
    world.run();
    let object = ObjectRef::namespaced(API_VERSION, "BFDProfile", &fast.key);

    let fault = Fault::Invalid { value: "9".into(), expected: "10 to 60000 milliseconds".into() };
    world.report(vec![problem(object.clone(), fault)]);
    world.run();

    let condition = world.accepted(&object).unwrap();
    assert_eq!((condition.holds, &*condition.reason), (false, "InvalidValue"));
    assert!(condition.message.ends_with("; the version before stays in force"), "{}", condition.message);
}

#[test]
fn what_only_bgp_would_announce_is_announced_by_nobody_yet() {
    let mut world = World::empty(Snapshot::default());
    world.put_pool(pool("p", &["192.0.2.1"]));
    world.put(service("web"));
    let everything = BgpAdvertisement {
        key: ObjectKey::new("ferrogate-system", "all"),
        read_only: false,
        generation: 0,
        pools: PoolChoice::default(),
        unfit_pools: BTreeSet::new(),
        node_selectors: Vec::new(),
        service_selectors: Vec::new(),
        peers: BTreeSet::new(),
        aggregation: Aggregation::NONE,
        local_pref: None,
        multi_exit_disc: None,
        prepend: 0,
        communities: BTreeSet::new(),
        unknown_aliases: BTreeSet::new(),
    };
    world.facts.bgp_advertisements.insert(everything.key.clone(), Arc::new(everything));

    world.run();

    assert_eq!(world.status("web").condition.as_ref().unwrap().reason, "NotAdvertised");
}
