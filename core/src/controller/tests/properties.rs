//! Random worlds and changes: whatever happens, what stands in the statuses is right.

use proptest::{collection::vec, option, prelude::*};

use super::*;

/// One change of the facts.
#[derive(Clone, Debug)]
enum Change {
    Put(u8, Shape),
    Remove(u8),
    Pool(u8, PoolShape),
    RemovePool(u8),
    Relabel(bool),
    /// Somebody writes an address into a status.
    Edit(u8, Option<u8>),
    Restart,
    /// The controller steps, and only the first of its writes are carried out before it starts anew.
    Crash(u8),
    /// The controller steps twice before its writes are carried out.
    Lag,
}

#[derive(Clone, Debug)]
struct Shape {
    balancer: bool,
    created: i64,
    policy: u8,
    wants: Option<u8>,
    wants_pool: Option<u8>,
    key: Option<bool>,
    port: u16,
    local: bool,
    labelled: bool,
}

#[derive(Clone, Debug)]
struct PoolShape {
    first: u8,
    count: u8,
    six: Option<u8>,
    auto: bool,
    avoid: bool,
    pin: u8,
}

fn change() -> impl Strategy<Value = Change> {
    let shape = (
        prop::bool::weighted(0.9),
        0_i64..3,
        0_u8..6,
        option::weighted(0.25, 0_u8..14),
        option::weighted(0.15, 0_u8..4),
        option::weighted(0.4, any::<bool>()),
        80_u16..82,
        prop::bool::weighted(0.2),
        any::<bool>(),
    )
        .prop_map(|(balancer, created, policy, wants, wants_pool, key, port, local, labelled)| Shape {
            balancer,
            created,
            policy,
            wants,
            wants_pool,
            key,
            port,
            local,
            labelled,
        });
    let pool_shape = (0_u8..4, 1_u8..5, option::of(1_u8..3), prop::bool::weighted(0.8), any::<bool>(), 0_u8..6)
        .prop_map(|(first, count, six, auto, avoid, pin)| PoolShape { first, count, six, auto, avoid, pin });
    prop_oneof![
        8 => (0_u8..10, shape).prop_map(|(name, shape)| Change::Put(name, shape)),
        3 => (0_u8..10).prop_map(Change::Remove),
        3 => (0_u8..3, pool_shape).prop_map(|(name, shape)| Change::Pool(name, shape)),
        1 => (0_u8..3).prop_map(Change::RemovePool),
        1 => any::<bool>().prop_map(Change::Relabel),
        2 => (0_u8..10, option::of(0_u8..14)).prop_map(|(name, address)| Change::Edit(name, address)),
        1 => Just(Change::Restart),
        2 => (0_u8..12).prop_map(Change::Crash),
        2 => Just(Change::Lag),
    ]
}

/// Addresses 192.0.2.250 onward, over the block's end, so that some are buggy.
fn v4(number: u8) -> IpAddr {
    IpAddr::from((0xc000_02fa_u32 + u32::from(number)).to_be_bytes())
}

fn name(number: u8) -> String {
    format!("{}/s{number}", if number.is_multiple_of(2) { "even" } else { "odd" })
}

fn build(number: u8, shape: &Shape) -> Service {
    let mut service = service(&name(number)).port(shape.port).created(shape.created);
    let (policy, families) = match shape.policy {
        0 => (FamilyPolicy::RequireDualStack, DUAL),
        1 | 2 => (FamilyPolicy::PreferDualStack, DUAL),
        3 => (FamilyPolicy::SingleStack, V6),
        _ => (FamilyPolicy::SingleStack, V4),
    };
    service = service.families(policy, families);
    service.request().addresses = shape.wants.map(v4).into_iter().collect();
    service.request().pool = shape.wants_pool.map(|pool| PoolName::from(format!("p{pool}")));
    service.request().sharing_key = shape.key.map(|key| key.to_string());
    if shape.local {
        service = service.local("x");
    }
    if shape.labelled {
        service = service.label("app", "x");
    }
    if shape.balancer { service } else { service.cluster_ip() }
}

/// Pools have blocks of their own, so that they never overlap; two of them meet.
fn build_pool(number: u8, shape: &PoolShape) -> Pool {
    let start = number * 5;
    let first = start + shape.first.min(4);
    let last = (first + shape.count - 1).min(start + 4);
    let mut pool = pool(&format!("p{number}"), &[]);
    pool.ranges = vec![AddressRange::new(v4(first), v4(last)).unwrap()];
    if let Some(count) = shape.six {
        let six = |offset: u8| ip(&format!("2001:db8:{number}::{offset}"));
        pool.ranges.push(AddressRange::new(six(1), six(count)).unwrap());
    }
    pool.auto_assign = shape.auto;
    pool.sharing = sharing(number);
    pool.avoid_buggy_ips = shape.avoid;
    pool.allocation = match shape.pin {
        0 => Some(ServiceAllocation { namespaces: BTreeSet::from(["even".into()]), ..Default::default() }),
        1 => Some(ServiceAllocation {
            namespace_selectors: vec![selector("team", "a")],
            priority: 3,
            ..Default::default()
        }),
        2 => {
            Some(ServiceAllocation { service_selectors: vec![selector("app", "x")], priority: 1, ..Default::default() })
        }
        _ => None,
    };
    pool
}

impl World {
    fn make(&mut self, change: &Change) {
        match change {
            Change::Put(number, shape) => self.put(build(*number, shape)),
            Change::Remove(number) => _ = self.facts.services.remove(&key(&name(*number))),
            Change::Pool(number, shape) => self.put_pool(build_pool(*number, shape)),
            Change::RemovePool(number) => _ = self.facts.pools.remove(&PoolName::from(format!("p{number}"))),
            Change::Relabel(team) => self.label_namespace("odd", "team", if *team { "a" } else { "b" }),
            Change::Edit(number, address) => {
                if self.facts.services.contains_key(&key(&name(*number))) {
                    let addresses = address.map(v4).into_iter().collect();
                    self.change(&name(*number), |service| service.observed.addresses = addresses);
                }
            }
            Change::Restart => self.restart(),
            Change::Crash(count) => {
                let writes = self.step();
                for write in writes.iter().take(usize::from(*count)) {
                    self.carry_out(write);
                }
                self.restart();
            }
            Change::Lag => {
                let mut writes = self.step();
                writes.extend(self.step());
                writes.iter().for_each(|write| self.carry_out(write));
            }
        }
    }

    /// Everything that must hold once nothing is left to write, found from the statuses alone.
    fn check(&self) {
        let mut users: BTreeMap<IpAddr, Vec<&Service>> = BTreeMap::new();
        for service in self.facts.services.values() {
            let status = &service.observed;
            let Some(wish) = &service.load_balancer else {
                assert!(status.pool.is_none() && status.condition.is_none(), "{service:?}");
                continue;
            };
            for &address in &status.addresses {
                users.entry(address).or_default().push(service);
            }
            if status.addresses.is_empty() {
                assert!(status.pool.is_none() && !status.condition.as_ref().unwrap().holds, "{service:?}");
                assert!(!self.is_free_for(service), "{} was refused: {status:?}", service.key);
                continue;
            }
            let pool = &self.facts.pools[status.pool.as_ref().unwrap()];
            assert!(status.condition.as_ref().unwrap().holds);
            assert!(status.addresses.iter().all(|&address| pool.contains(address)), "{service:?} {pool:?}");
            assert!(self.serves(pool, service), "{service:?} {pool:?}");
            let request = wish.request.as_ref().unwrap();
            if !request.addresses.is_empty() {
                assert_eq!(request.addresses, status.addresses);
            }
            assert!(request.pool.as_ref().is_none_or(|wanted| *wanted == pool.name));
            let mut families: Vec<_> = status.addresses.iter().map(|&address| Family::of(address)).collect();
            families.sort();
            match wish.family_policy {
                FamilyPolicy::PreferDualStack if families.len() == 1 => {}
                _ => assert_eq!(families, wish.families),
            }
        }
        for (address, users) in &users {
            for (index, one) in users.iter().enumerate() {
                for other in &users[index + 1..] {
                    assert!(may_share(*address, one, other), "{address}: {} and {}", one.key, other.key);
                }
            }
        }
        for pool in self.facts.pools.values() {
            let used = |family| {
                users.keys().filter(|&&address| Family::of(address) == family && pool.contains(address)).count() as i64
            };
            let count = |family| {
                let ranges = pool.ranges.iter().filter(|range| range.family() == family);
                let bits = |range: &AddressRange| {
                    crate::model::pool::address_bits(range.first())..=crate::model::pool::address_bits(range.last())
                };
                let addresses = ranges.flat_map(bits).map(|bits| crate::model::pool::address_from_bits(family, bits));
                addresses.filter(|&address| pool.contains(address)).count() as i64
            };
            let status = &pool.observed;
            assert_eq!((status.assigned_ipv4, status.assigned_ipv6), (used(Family::V4), used(Family::V6)));
            assert_eq!(status.available_ipv4, count(Family::V4) - status.assigned_ipv4);
            assert_eq!(status.available_ipv6, count(Family::V6) - status.assigned_ipv6);
        }
    }

    fn serves(&self, pool: &Pool, service: &Service) -> bool {
        let Some(allocation) = &pool.allocation else { return true };
        let namespace = &*service.key.namespace;
        let team_a = self.facts.namespaces.get(namespace).is_some_and(|labels| labels.get("team") == Some(&"a".into()));
        let by_name = allocation.namespaces.contains(namespace);
        let by_label = !allocation.namespace_selectors.is_empty() && team_a;
        let any = allocation.namespaces.is_empty() && allocation.namespace_selectors.is_empty();
        let labelled = allocation.service_selectors.is_empty() || service.labels.contains_key("app");
        (any || by_name || by_label) && labelled
    }

    /// Whether a refused Service could have had an address: tries every one.
    fn is_free_for(&self, service: &Service) -> bool {
        let wish = service.load_balancer.as_ref().unwrap();
        let request = wish.request.as_ref().unwrap();
        let pools = self.facts.pools.values().filter(|pool| self.serves(pool, service)).filter(|pool| {
            match (&request.pool, request.addresses.is_empty()) {
                (Some(wanted), _) => *wanted == pool.name,
                (None, true) => pool.auto_assign,
                (None, false) => true,
            }
        });
        pools.into_iter().any(|pool| {
            let candidates: Vec<IpAddr> = if request.addresses.is_empty() {
                let six = (1..=2).map(|offset| ip(&format!("2001:db8:{}::{offset}", &pool.name.as_str()[1..])));
                (0..16).map(v4).chain(six).collect()
            } else {
                request.addresses.clone()
            };
            let usable = |address: &&IpAddr| {
                let users = self
                    .facts
                    .services
                    .values()
                    .filter(|other| other.load_balancer.is_some() && other.observed.addresses.contains(address));
                pool.contains(**address) && users.into_iter().all(|user| may_share(**address, service, user))
            };
            let found: BTreeSet<_> = candidates.iter().filter(usable).map(|&address| Family::of(address)).collect();
            match wish.family_policy {
                FamilyPolicy::RequireDualStack => found.len() == 2 && request.addresses.is_empty(),
                FamilyPolicy::PreferDualStack => !found.is_empty(),
                FamilyPolicy::SingleStack => found.contains(&wish.families[0]),
            }
        })
    }
}

/// In every second pool Services of different Namespaces may share.
fn sharing(pool: u8) -> Sharing {
    if pool.is_multiple_of(2) { Sharing::AnyNamespace } else { Sharing::SameNamespace }
}

fn may_share(address: IpAddr, one: &Service, other: &Service) -> bool {
    let pool = match address {
        IpAddr::V4(address) => address.octets()[3].wrapping_sub(250) / 5,
        IpAddr::V6(address) => address.octets()[5],
    };
    let sharing_key = |service: &Service| {
        service.load_balancer.as_ref().and_then(|wish| wish.request.as_ref().unwrap().sharing_key.clone())
    };
    let is_local = |service: &Service| service.external_traffic_policy == TrafficPolicy::Local;
    (one.key.namespace == other.key.namespace || sharing(pool) == Sharing::AnyNamespace)
        && sharing_key(one).is_some()
        && sharing_key(one) == sharing_key(other)
        && is_local(one) == is_local(other)
        && one.ports[0].port != other.ports[0].port
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_changes_the_statuses_are_right_and_a_restart_writes_nothing(changes in vec(change(), 1..30)) {
        let mut world = World::new();
        world.put_pool(build_pool(0, &PoolShape { first: 0, count: 5, six: Some(2), auto: true, avoid: false, pin: 9 }));
        for change in &changes {
            world.make(change);
            world.run();
            world.check();
            let pending = world.facts.services.values().filter(|service| {
                service.load_balancer.is_some() && service.observed.addresses.is_empty()
            });
            prop_assert_eq!(world.controller.pending().values().sum::<usize>(), pending.count());
            prop_assert_eq!(world.controller.deadline(), None);
            let facts = &mut world.facts;
            facts.services = facts.services.values().map(|one| (one.key.clone(), Arc::new(Service::clone(one)))).collect();
            facts.pools = facts.pools.values().map(|one| (one.name.clone(), Arc::new(Pool::clone(one)))).collect();
            prop_assert_eq!(world.step(), vec![], "equal facts write nothing");

            let mut fresh = Controller::new(Config::default());
            fresh.step(world.now, Event::Leads(true));
            prop_assert_eq!(fresh.step(world.now, Event::Snapshot(Arc::new(world.facts.clone()))), vec![]);
            for service in world.facts.services.keys() {
                prop_assert_eq!(fresh.verdict(service), world.controller.verdict(service));
            }
        }
    }

    #[test]
    fn an_address_that_is_still_valid_never_moves(changes in vec(change(), 1..20)) {
        let mut world = World::new();
        world.put_pool(build_pool(0, &PoolShape { first: 0, count: 5, six: Some(2), auto: true, avoid: false, pin: 9 }));
        for change in changes.iter().filter(|change| matches!(change, Change::Put(..) | Change::Remove(_))) {
            let before = world.facts.clone();
            world.make(change);
            world.run();
            let changed = match change {
                Change::Put(number, _) | Change::Remove(number) => key(&name(*number)),
                _ => continue,
            };
            for service in before.services.values().filter(|service| service.key != changed) {
                let now = &world.facts.services[&service.key].observed.addresses;
                prop_assert!(now.starts_with(&service.observed.addresses), "{} moved", service.key);
            }
        }
    }

    #[test]
    fn writes_lost_or_out_of_order_never_give_one_address_to_two(
        changes in vec((change(), any::<u32>()), 1..25),
    ) {
        let mut world = World::new();
        world.put_pool(build_pool(0, &PoolShape { first: 0, count: 5, six: Some(2), auto: true, avoid: false, pin: 9 }));
        for (change, fate) in changes {
            match &change {
                // A status edited by hand may claim anything, also what another Service has.
                Change::Edit(..) => continue,
                // What a Service shares with another one when it changes is in conflict before anything is written.
                Change::Put(number, _) if world.shares(&key(&name(*number))) => continue,
                // It carries out writes by itself, and wishes superseded meanwhile among them.
                Change::Lag => continue,
                change => world.make(change),
            }
            for round in 0..4 {
                let mut writes = world.step();
                if fate >> round & 1 == 1 {
                    writes.reverse();
                }
                for (index, write) in writes.iter().enumerate() {
                    if fate >> (4 + (round * 7 + index) % 28) & 1 == 1 {
                        continue;
                    }
                    world.carry_out(write);
                    world.check_claims()?;
                }
            }
        }
        world.now += WRITE_PATIENCE;
        for write in world.controller.step(world.now, Event::Tick) {
            world.carry_out(&write);
            world.check_claims()?;
        }
        world.run();
        world.check();
    }
}

impl World {
    /// Whether a Service has an address together with another one, or is to have one.
    fn shares(&self, key: &ServiceKey) -> bool {
        let addresses = |service: &Service| {
            let assigned = match self.controller.verdict(&service.key) {
                Verdict::Assigned { assignment, .. } => assignment.addresses,
                Verdict::Refused(_) | Verdict::NotServed => Vec::new(),
            };
            assigned.into_iter().chain(service.observed.addresses.clone()).collect::<BTreeSet<_>>()
        };
        let own = self.facts.services.get(key).map(|service| addresses(service)).unwrap_or_default();
        let mut others = self.facts.services.values().filter(|other| other.key != *key);
        others.any(|other| !addresses(other).is_disjoint(&own))
    }

    /// No two statuses claim an address that they may not share.
    fn check_claims(&self) -> Result<(), TestCaseError> {
        let claims: Vec<_> = self.facts.services.values().collect();
        for (index, one) in claims.iter().enumerate() {
            for other in &claims[index + 1..] {
                let common = one.observed.addresses.iter().filter(|address| other.observed.addresses.contains(address));
                for &address in common {
                    prop_assert!(may_share(address, one, other), "{} and {}", one.key, other.key);
                }
            }
        }
        Ok(())
    }
}
