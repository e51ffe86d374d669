//! The controller in a small world that carries out its writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use super::*;
use crate::model::{
    advertisement::PoolChoice,
    pool::{AddressRange, AddressUse, PoolStatus, ServiceAllocation, Sharing},
    route::Ingress,
    selector::LabelSelector,
    service::{
        FamilyPolicy, LoadBalancer, Protocol, Request, RequestFault, ServicePort, SessionAffinity, TrafficPolicy,
        UnreadableRequest,
    },
};

mod allocation;
mod bad_input;
mod claims;
mod entry;
mod families;
mod pace;
mod properties;
mod sharing;
mod statuses;
mod versions;

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const DUAL: &[Family] = &[Family::V4, Family::V6];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(name: &str) -> ServiceKey {
    match name.split_once('/') {
        Some((namespace, name)) => ServiceKey::new(namespace, name),
        None => ServiceKey::new("default", name),
    }
}

/// A LoadBalancer Service with one IPv4 family and port TCP/80.
fn service(name: &str) -> Service {
    Service {
        key: key(name),
        labels: BTreeMap::new(),
        created: 0,
        generation: 0,
        version: Default::default(),
        load_balancer: Some(LoadBalancer {
            class: None,
            families: V4.to_vec(),
            family_policy: FamilyPolicy::SingleStack,
            request: Ok(Request::default()),
        }),
        ports: Vec::new(),
        cluster_ips: Vec::new(),
        selector: BTreeMap::new(),
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        session_affinity: SessionAffinity::None,
        source_ranges: Vec::new(),
        is_foreign: false,
        is_entry: false,
        wished_node: None,
        endpoints: Vec::new(),
        observed: ServiceStatus::default(),
    }
    .ports(&[(Protocol::Tcp, 80)])
}

impl Service {
    fn wish(&mut self) -> &mut LoadBalancer {
        self.load_balancer.as_mut().unwrap()
    }

    fn request(&mut self) -> &mut Request {
        self.wish().request.as_mut().unwrap()
    }

    /// With a wish for addresses that nobody can read.
    fn make_unreadable(&mut self) {
        let sharing_key = self.request().sharing_key.clone();
        self.wish().request = Err(UnreadableRequest { fault: RequestFault::TwoSources, sharing_key });
    }

    fn wants(mut self, addresses: &[&str]) -> Self {
        self.request().addresses = addresses.iter().map(|address| ip(address)).collect();
        self
    }

    fn wants_pool(mut self, pool: &str) -> Self {
        self.request().pool = Some(pool.into());
        self
    }

    fn shares(mut self, key: &str) -> Self {
        self.request().sharing_key = Some(key.to_owned());
        self
    }

    fn ports(mut self, ports: &[(Protocol, u16)]) -> Self {
        let port = |&(protocol, port)| ServicePort {
            name: format!("{protocol}-{port}"),
            protocol,
            port: NonZeroU16::new(port).unwrap(),
            node_port: None,
        };
        self.ports = ports.iter().map(port).collect();
        self
    }

    fn port(self, port: u16) -> Self {
        self.ports(&[(Protocol::Tcp, port)])
    }

    fn families(mut self, policy: FamilyPolicy, families: &[Family]) -> Self {
        self.wish().family_policy = policy;
        self.wish().families = families.to_vec();
        self
    }

    fn created(mut self, created: i64) -> Self {
        self.created = created;
        self
    }

    fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    fn local(mut self, selector: &str) -> Self {
        self.external_traffic_policy = TrafficPolicy::Local;
        self.selector = BTreeMap::from([("app".to_owned(), selector.to_owned())]);
        self
    }

    fn cluster_ip(mut self) -> Self {
        self.load_balancer = None;
        self
    }

    fn shows(mut self, addresses: &[&str]) -> Self {
        self.observed.addresses = addresses.iter().map(|address| ip(address)).collect();
        self
    }

    /// As a controller of ours left it: with a condition that has been true since then.
    fn assigned_at(mut self, seconds: i64) -> Self {
        self.observed.assigned_at = Some(seconds);
        self
    }
}

/// A pool of these ranges, each `first-last` or one address.
fn pool(name: &str, ranges: &[&str]) -> Pool {
    let range = |text: &&str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        AddressRange::new(ip(first), ip(last)).unwrap()
    };
    Pool {
        key: ObjectKey::new("ferrogate-system", name),
        read_only: false,
        name: name.into(),
        labels: BTreeMap::new(),
        generation: 0,
        ranges: ranges.iter().map(range).collect(),
        auto_assign: true,
        avoid_buggy_ips: false,
        edges: Default::default(),
        sharing: Default::default(),
        allocation: None,
        observed: PoolStatus::default(),
    }
}

impl Pool {
    fn manual(mut self) -> Self {
        self.auto_assign = false;
        self
    }

    fn avoids_buggy(mut self) -> Self {
        self.avoid_buggy_ips = true;
        self
    }

    /// As if its ranges were prefixes, without their first and last addresses.
    fn without_edges(mut self, edges: &[&str]) -> Self {
        self.avoid_buggy_ips = true;
        self.edges = edges.iter().map(|edge| ip(edge)).collect();
        self
    }

    fn any_namespace(mut self) -> Self {
        self.sharing = Sharing::AnyNamespace;
        self
    }

    fn pinned(mut self, change: impl FnOnce(&mut ServiceAllocation)) -> Self {
        change(self.allocation.get_or_insert_default());
        self
    }
}

fn selector(key: &str, value: &str) -> LabelSelector {
    LabelSelector { match_labels: BTreeMap::from([(key.to_owned(), value.to_owned())]), ..LabelSelector::default() }
}

fn advertisement(name: &str, pools: &[&str]) -> L2Advertisement {
    L2Advertisement {
        key: ObjectKey::new("ferrogate-system", name),
        read_only: false,
        generation: 0,
        pools: PoolChoice { names: pools.iter().map(|name| PoolName::from(*name)).collect(), selectors: Vec::new() },
        node_selectors: Vec::new(),
        interfaces: BTreeSet::new(),
        service_selectors: Vec::new(),
        preferred_nodes: Vec::new(),
        is_sticky: false,
    }
}

fn ingress(name: &str) -> Ingress {
    Ingress {
        key: key(name),
        created: 0,
        generation: 0,
        default_backend: None,
        rules: Vec::new(),
        observed_addresses: Vec::new(),
    }
}

/// Facts, a controller, and a hand that carries out its writes.
struct World {
    facts: Snapshot,
    controller: Controller,
    now: Instant,
}

impl World {
    /// An L2Advertisement for everything, and a controller that leads.
    fn new() -> Self {
        let mut facts = Snapshot::default();
        let everything = advertisement("everything", &[]);
        facts.l2_advertisements.insert(everything.key.clone(), Arc::new(everything));
        let mut world = Self::empty(facts);
        world.run();
        world
    }

    #[allow(clippy::disallowed_methods, reason = "an Instant cannot be had otherwise; from here on time is virtual")]
    fn empty(facts: Snapshot) -> Self {
        let mut world = Self { facts, controller: Controller::new(Config::default()), now: Instant::now() };
        world.controller.step(world.now, Event::Leads(true));
        world
    }

    /// With one pool `p`, which has been there for a while.
    fn with_pool(ranges: &[&str]) -> Self {
        let mut world = Self::new();
        world.put_pool(pool("p", ranges));
        world.run();
        world.now += Duration::from_secs(10);
        world
    }

    /// Puts a Service in; the status that is there already stays.
    fn put(&mut self, mut service: Service) {
        if let Some(old) = self.facts.services.get(&service.key)
            && service.observed == ServiceStatus::default()
        {
            service.observed = old.observed.clone();
        }
        self.facts.services.insert(service.key.clone(), Arc::new(service));
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Service)) {
        let mut service = Service::clone(&self.facts.services[&key(name)]);
        change(&mut service);
        self.facts.services.insert(service.key.clone(), Arc::new(service));
    }

    fn remove(&mut self, name: &str) {
        self.facts.services.remove(&key(name)).unwrap();
    }

    fn put_pool(&mut self, mut pool: Pool) {
        if let Some(old) = self.facts.pools.get(&pool.name) {
            pool.observed = old.observed.clone();
        }
        self.facts.pools.insert(pool.name.clone(), Arc::new(pool));
    }

    fn remove_pool(&mut self, name: &str) {
        self.facts.pools.remove(&PoolName::from(name)).unwrap();
    }

    fn label_namespace(&mut self, name: &str, key: &str, value: &str) {
        let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        self.facts.namespaces.insert(name.to_owned(), Arc::new(labels));
    }

    /// One step, whose writes are not carried out.
    fn step(&mut self) -> Vec<Write> {
        self.controller.step(self.now, Event::Snapshot(Arc::new(self.facts.clone())))
    }

    /// Steps and carries out until nothing is to be written; returns every write.
    fn run(&mut self) -> Vec<Write> {
        let mut all = Vec::new();
        for _ in 0..12 {
            let mut writes = self.step();
            if writes.is_empty() {
                // What changes often is held back for a moment.
                let Some(due) = self.controller.deadline() else { return all };
                self.now = due;
                writes = self.controller.step(self.now, Event::Tick);
            }
            writes.iter().for_each(|write| self.carry_out(write));
            all.extend(writes);
        }
        panic!("it never settles: {all:#?}");
    }

    fn carry_out(&mut self, write: &Write) {
        match write {
            Write::ServiceStatus { service, status, .. } => {
                if let Some(old) = self.facts.services.get(service) {
                    let version =
                        old.version.as_str().parse().map_or_else(|_| String::new(), |old: u64| (old + 1).to_string());
                    let new = Service { observed: status.clone(), version: version.into(), ..Service::clone(old) };
                    self.facts.services.insert(service.clone(), Arc::new(new));
                }
            }
            Write::PoolStatus { pool, status } => {
                let name = PoolName::from(&*pool.name);
                if let Some(old) = self.facts.pools.get(&name) {
                    let new = Pool { observed: status.clone(), ..Pool::clone(old) };
                    self.facts.pools.insert(name, Arc::new(new));
                }
            }
            Write::IngressStatus { ingress, addresses } => {
                if let Some(old) = self.facts.ingresses.get(ingress) {
                    let new = Ingress { observed_addresses: addresses.clone(), ..Ingress::clone(old) };
                    self.facts.ingresses.insert(ingress.clone(), Arc::new(new));
                }
            }
            Write::Condition { object, condition } => {
                self.facts.conditions.insert(object.clone(), Arc::new(vec![condition.clone()]));
            }
            Write::EntryService { .. } | Write::EntrySlice { .. } => {}
            Write::Event(_)
            | Write::L2Status { .. }
            | Write::BgpStatus { .. }
            | Write::BgpSession { .. }
            | Write::Lease { .. }
            | Write::Membership { .. }
            | Write::Configuration { .. } => {}
        }
    }

    /// A fresh controller takes over.
    fn restart(&mut self) {
        self.controller = Controller::new(Config::default());
        self.controller.step(self.now, Event::Leads(true));
    }

    fn status(&self, name: &str) -> &ServiceStatus {
        &self.facts.services[&key(name)].observed
    }

    fn addresses(&self, name: &str) -> String {
        refusal::list(&self.status(name).addresses)
    }

    /// The refusal of a Service, which its condition shows too.
    fn refusal(&self, name: &str) -> Refusal {
        let Verdict::Refused(refusal) = self.controller.verdict(&key(name)) else {
            panic!("{name} has {}", self.addresses(name));
        };
        let condition = self.status(name).condition.as_ref().unwrap();
        assert_eq!((condition.holds, &*condition.reason), (false, refusal.reason()));
        assert!(self.status(name).addresses.is_empty());
        refusal
    }
}

/// Reasons of the Events about a Service.
fn told<'a>(writes: &'a [Write], name: &str) -> Vec<&'a str> {
    let object = ObjectRef::service(&key(name));
    let events = writes.iter().filter_map(|write| match write {
        Write::Event(event) if event.object == object => Some(&*event.reason),
        _ => None,
    });
    events.collect()
}

/// Writes of the status of a Service.
fn statuses<'a>(writes: &'a [Write], name: &str) -> Vec<&'a ServiceStatus> {
    let statuses = writes.iter().filter_map(|write| match write {
        Write::ServiceStatus { service, status, .. } if *service == key(name) => Some(status),
        _ => None,
    });
    statuses.collect()
}
