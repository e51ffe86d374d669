//! A world and a string of faults from a seed, then peace, then the question whether all is well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    num::NonZeroU8,
    sync::Arc,
    time::Duration,
};

use ferrogate_core::{
    model::{
        Family,
        advertisement::{L2Advertisement, PreferredNodes},
        node::{EXCLUDE_LABEL, Node},
        selector::LabelSelector,
        service::{Service, TrafficPolicy},
    },
    snapshot::Snapshot,
    speaker::{
        Announcements, Config, DataPath, MIN_LEASE_DURATION,
        bfd::{Damping, Settings},
    },
};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};

use super::{Violation, World, facts};

/// A seed whose run went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What went wrong.
    pub violation: Violation,
    /// What was done to the world before, in order.
    pub history: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.violation)?;
        self.history.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        write!(f, "run it again: SEED={} cargo test -p ferrogate-integration --test sim", self.seed)
    }
}

impl std::error::Error for Failure {}

/// Runs a seed to its end. Returns how many steps the machines took.
///
/// # Errors
/// What went wrong.
pub fn run(seed: u64) -> Result<u64, Box<Failure>> {
    Chaos::new(seed, None).outcome(seed)
}

/// The same where speakers gossip on another network than the one that they serve, and only that one breaks.
///
/// # Errors
/// What went wrong.
pub fn run_with_management(seed: u64) -> Result<u64, Box<Failure>> {
    let mut chaos = Chaos::new(seed, None);
    chaos.world.add_management();
    chaos.outcome(seed)
}

/// The same where speakers know each other by Leases at the API server, and do not gossip.
///
/// # Errors
/// What went wrong.
pub fn run_by_leases(seed: u64) -> Result<u64, Box<Failure>> {
    Chaos::new(seed, Some(MIN_LEASE_DURATION)).outcome(seed)
}

struct Chaos {
    /// Apart from the world's own, so that what is done does not depend on what it leads to.
    rng: SmallRng,
    world: World,
    detection: Duration,
    goes_by_leases: bool,
    services: u32,
    history: Vec<String>,
}

const MS: Duration = Duration::from_millis(1);

/// How long it takes until whoever never answers by BFD counts as dead: not seen for three seconds, others looked at until one
/// is seen, and nobody's answer for three seconds more.
const FOUND_OUT_WITHIN: Duration = Duration::from_secs(9);

impl Chaos {
    fn new(seed: u64, lease_duration: Option<Duration>) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let nodes = rng.random_range(2..=4);
        let clients = rng.random_range(1..=2);
        let data_path = if rng.random() { DataPath::Proxy } else { DataPath::KubeProxy };
        let interval = *[50, 100, 200].choose(&mut rng).unwrap_or(&50) * MS;
        // Long bursts would hide that somebody should have spoken up again.
        let (quick, slow) = *[(1, 1), (0, 2), (5, 5)].choose(&mut rng).unwrap_or(&(5, 5));
        // Flaps are forgotten soon, so that nobody is still held down when all should be well.
        let damping = Damping { initial: MS * 100, maximum: MS * 400, forgive_after: Duration::from_secs(2) };
        let bfd = [Some(Settings::DEFAULT), Some(Settings::DEFAULT), Some(Settings::FAST), None];
        let bfd = bfd.choose(&mut rng).copied().flatten();
        let bfd = bfd.map(|settings| Settings { damping: Some(damping), ..settings });
        let config = Config {
            lease_duration,
            gossip_interval: interval,
            bfd,
            announcements: Announcements { quick, slow, ..Announcements::default() },
            yield_on_cordon: rng.random(),
            ..Config::new("any".into(), data_path, 0)
        };
        let detection = config.detection_time();
        let world = World::new(rng.random(), config, facts::cluster(nodes), clients);
        let goes_by_leases = lease_duration.is_some();
        Self { rng, world, detection, goes_by_leases, services: 0, history: Vec::new() }
    }

    fn outcome(mut self, seed: u64) -> Result<u64, Box<Failure>> {
        match self.run() {
            Ok(()) => Ok(self.world.steps),
            Err(violation) => Err(Box::new(Failure { seed, violation, history: self.history })),
        }
    }

    fn run(&mut self) -> Result<(), Violation> {
        for _ in 0..self.rng.random_range(1..=5) {
            self.add_service();
        }
        let quiet = self.detection + self.rng.random_range(100..600) * MS;
        self.world.run(quiet)?;
        self.ask_all();
        let mut end = self.world.now() + self.rng.random_range(500..2500) * MS;
        if self.goes_by_leases {
            // So that some are over before all is mended.
            end += self.detection * self.rng.random_range(0..3);
        }
        if self.world.has_management {
            // So that some are found out before.
            end += FOUND_OUT_WITHIN * self.rng.random_range(0..2);
        }
        while self.world.now() < end {
            self.disturb();
            let pause = self.rng.random_range(5..200) * MS;
            self.world.run(pause)?;
        }
        if self.rng.random_ratio(1, 3) {
            self.lose_one_way()?;
        }
        self.mend();
        self.world.run(self.settling())?;
        self.world.check_settled()?;
        if self.rng.random_ratio(1, 16) {
            self.world.run(Duration::from_secs(6))?;
            self.world.check_settled()?;
            self.world.check_tidy()?;
        }
        Ok(())
    }

    fn note(&mut self, what: impl fmt::Display) {
        self.history.push(format!("{:?} {what}", self.world.now()));
    }

    fn any_node(&mut self) -> usize {
        self.rng.random_range(0..self.world.nodes().len())
    }

    fn some_nodes(&mut self, chance: f64) -> Vec<usize> {
        (0..self.world.nodes().len()).filter(|_| self.rng.random_bool(chance)).collect()
    }

    /// How long it takes at most until all is well: a BFD session that is down may be held there, and then speaks once a
    /// second.
    fn settling(&self) -> Duration {
        Duration::from_millis(1500) + self.detection * 2
    }

    /// Mends all, then lets some nodes not hear some others, and asks what they have agreed on.
    fn lose_one_way(&mut self) -> Result<(), Violation> {
        self.mend();
        let settle = self.settling();
        self.world.run(settle)?;
        self.world.unsettle();
        let before = self.owners();
        let (one, kind) = (self.any_node(), self.rng.random_range(0..3));
        let nodes = self.world.nodes().len();
        for (from, to) in (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to))) {
            let is_mute = match kind {
                0 => from == one,
                1 => to == one,
                // Everybody still hears the one and is heard by it, unless there are only two.
                _ => (from != one && to != one && self.rng.random()) || (nodes == 2 && from == one),
            };
            if is_mute && from != to {
                self.note(format!("{} hears nothing from {}", facts::node_name(to), facts::node_name(from)));
                self.world.link.mute(from, to);
            }
        }
        if !self.world.has_management {
            self.world.run(settle)?;
            return self.world.check_agreed();
        }
        // Everybody sees the one and is seen by it, unless there are only two.
        let is_all_seen = kind == 2 && nodes > 2;
        let anew = if is_all_seen { Vec::new() } else { self.some_nodes(0.5) };
        for node in anew {
            self.note(format!("the speaker of {} is started anew", facts::node_name(node)));
            self.world.kill(node);
            self.world.start(node);
        }
        self.world.run(settle + FOUND_OUT_WITHIN)?;
        self.world.check_agreed()?;
        if !self.world.watches() {
            return Ok(());
        }
        if kind < 2 {
            return self.world.check_unseen(one);
        }
        // What was taken over for a moment comes back, unless its owner is to keep it.
        let is_sticky = self.world.truth().l2_advertisements.values().any(|advertisement| advertisement.is_sticky);
        if is_all_seen && !is_sticky && self.world.takes_part(one) {
            self.world.check_unmoved(&before, &self.owners())?;
        }
        Ok(())
    }

    fn owners(&self) -> BTreeMap<IpAddr, Vec<usize>> {
        let services = self.world.truth().services.values();
        let addresses = services.flat_map(|service| service.observed.addresses.clone());
        addresses.map(|address| (address, self.world.owners(address))).collect()
    }

    fn disturb(&mut self) {
        self.world.unsettle();
        let node = self.any_node();
        let name = facts::node_name(node);
        match self.rng.random_range(0..20) {
            0 if self.world.runs(node) => {
                self.note(format!("the speaker of {name} crashes"));
                self.world.kill(node);
            }
            1 => {
                self.note(format!("{name} loses power"));
                self.world.set_power(node, false);
            }
            2 if self.world.runs(node) => {
                self.note(format!("the speaker of {name} is asked to stop"));
                self.world.stop(node);
            }
            0..=4 if !self.world.runs(node) => {
                self.note(format!("the speaker of {name} starts"));
                self.world.set_power(node, true);
            }
            5 => {
                let plugged = self.rng.random();
                self.note(format!("the cable of {name} is plugged: {plugged}"));
                self.world.set_cable(node, plugged);
            }
            6 => {
                let ready = self.rng.random();
                self.note(format!("the proxy of {name} is ready: {ready}"));
                self.world.set_proxy(node, ready);
            }
            7 => {
                let stuck = self.rng.random();
                self.note(format!("the source of {name} is stuck: {stuck}"));
                self.world.set_source(node, stuck);
                if self.goes_by_leases {
                    let held = self.rng.random();
                    self.note(format!("nothing that {name} writes reaches anybody: {held}"));
                    self.world.set_writes(node, held);
                }
            }
            8 => {
                let nodes: BTreeSet<usize> = self.some_nodes(0.5).into_iter().collect();
                let clients = (0..self.world.link.clients.len()).filter(|_| self.rng.random()).collect();
                self.note(format!("nodes {nodes:?} and clients {clients:?} are parted from the rest"));
                self.world.link.part(&nodes, &clients);
            }
            9 => {
                let other = self.any_node();
                self.note(format!("{} hears nothing from {name}", facts::node_name(other)));
                self.world.link.mute(node, other);
            }
            10 => {
                let loss = self.rng.random_range(0..500);
                self.note(format!("{loss} of 1000 frames are lost"));
                self.world.link.loss_per_mille = loss;
            }
            11 => {
                let slowest = self.rng.random_range(1..60) * MS;
                self.note(format!("frames take up to {slowest:?}"));
                self.world.link.slowest = slowest;
            }
            12 => {
                self.note("the network is whole again");
                self.world.link.heal();
            }
            13 => {
                self.note("the controller crashes");
                self.world.kill_controller();
            }
            14 => {
                self.note("the controller runs");
                self.world.start_controller();
            }
            15..=17 => self.change_facts(node),
            _ => self.ask_all(),
        }
    }

    fn change_facts(&mut self, node: usize) {
        let names: Vec<_> = self.world.truth().services.keys().cloned().collect();
        let service = names.choose(&mut self.rng).cloned();
        let endpoints = self.some_nodes(0.6);
        let flag: bool = self.rng.random();
        match (self.rng.random_range(0..12), service) {
            (0, _) => self.add_service(),
            (1, Some(service)) => {
                self.note(format!("{service} is deleted"));
                self.world.change(|facts| drop(facts.services.remove(&service)));
            }
            (2 | 3, Some(service)) => {
                self.note(format!("{service} has endpoints on nodes {endpoints:?}"));
                self.world.change(|facts| {
                    with_same_backends(facts, &service, |service| {
                        service.endpoints = facts::endpoints(&endpoints);
                    })
                });
            }
            (4, _) => {
                self.note(format!("{} is excluded: {flag}", facts::node_name(node)));
                self.change_node(node, |node| {
                    if flag {
                        node.labels.insert(EXCLUDE_LABEL.to_owned(), String::new());
                    } else {
                        node.labels.remove(EXCLUDE_LABEL);
                    }
                });
            }
            (5, _) => {
                self.note(format!("{} has no network: {flag}", facts::node_name(node)));
                self.change_node(node, |node| node.network_unavailable = flag);
            }
            (6, _) => {
                self.note(format!("advertised from {} only: {flag}", facts::node_name(node)));
                self.change_advertisement(|advertisement| {
                    advertisement.node_selectors = if flag { vec![named(node)] } else { Vec::new() };
                });
            }
            (7, _) => {
                self.note(format!("{} is cordoned: {flag}", facts::node_name(node)));
                self.change_node(node, |node| node.unschedulable = flag);
            }
            (8, _) => {
                self.note(format!("owners keep what they have: {flag}"));
                self.change_advertisement(|advertisement| advertisement.is_sticky = flag);
            }
            (10, _) => {
                self.note(format!("{} is in the subnets of the pool: {flag}", facts::node_name(node)));
                self.world.set_at_home(node, flag);
            }
            (9, Some(service)) => {
                let wished = flag.then(|| facts::node_name(node));
                self.note(format!("{service} is wanted on {wished:?}"));
                self.world.change(|facts| {
                    if let Some(service) = facts.services.get_mut(&service) {
                        Arc::make_mut(service).wished_node = wished;
                    }
                });
            }
            _ => {
                self.note(format!("{} is preferred: {flag}", facts::node_name(node)));
                let preferred = PreferredNodes { weight: NonZeroU8::MIN, preference: named(node) };
                self.change_advertisement(|advertisement| {
                    advertisement.preferred_nodes = if flag { vec![preferred] } else { Vec::new() };
                });
            }
        }
    }

    fn change_node(&mut self, node: usize, change: impl FnOnce(&mut Node)) {
        self.world.change(|facts| {
            if let Some(node) = facts.nodes.get_mut(&facts::node_name(node)) {
                change(Arc::make_mut(node));
            }
        });
    }

    fn change_advertisement(&mut self, change: impl FnOnce(&mut L2Advertisement)) {
        self.world.change(|facts| {
            if let Some(advertisement) = facts.l2_advertisements.get_mut(&facts::advertisement().key) {
                change(Arc::make_mut(advertisement));
            }
        });
    }

    /// Adds a Service; some share an address with others, in groups with the same backends.
    fn add_service(&mut self) {
        self.services += 1;
        let name = format!("s{}", self.services);
        let families: &[Family] = match self.rng.random_range(0..4) {
            0 => &[Family::V6],
            1 => &[Family::V4, Family::V6],
            _ => &[Family::V4],
        };
        let endpoints = self.some_nodes(0.8);
        let port = u16::try_from(self.services).unwrap_or(u16::MAX);
        let mut service = facts::service(&name, port, families, &endpoints);
        if self.rng.random_ratio(1, 3) {
            service.external_traffic_policy = TrafficPolicy::Local;
        }
        if self.rng.random_ratio(1, 2) {
            let group = format!("group-{}-{:?}", families.len(), service.external_traffic_policy);
            if let Some(Ok(request)) = service.load_balancer.as_mut().map(|wish| wish.request.as_mut()) {
                request.sharing_key = Some(group.clone());
            }
            service.selector.insert("app".to_owned(), group);
        }
        self.note(format!("{name} is added, endpoints on nodes {endpoints:?}"));
        self.world.change(|facts| {
            let endpoints = service.endpoints.clone();
            let key = service.key.clone();
            facts.services.insert(key.clone(), Arc::new(service));
            with_same_backends(facts, &key, |service| service.endpoints.clone_from(&endpoints));
        });
    }

    fn ask_all(&mut self) {
        let services = self.world.truth().services.values();
        let addresses: BTreeSet<IpAddr> = services.flat_map(|service| service.observed.addresses.clone()).collect();
        for client in 0..self.world.link.clients.len() {
            for &address in &addresses {
                self.world.ask(client, address);
            }
        }
    }

    /// Ends every fault. What the facts say stays as it is.
    fn mend(&mut self) {
        self.note("everything is mended");
        self.world.link.heal();
        for node in 0..self.world.nodes().len() {
            self.world.set_source(node, false);
            self.world.set_writes(node, false);
            self.world.set_cable(node, true);
            self.world.set_proxy(node, true);
            if self.world.is_stopping(node) {
                self.world.kill(node);
            }
            self.world.set_power(node, true);
        }
        self.world.start_controller();
    }
}

fn named(node: usize) -> LabelSelector {
    let label = ("name".to_owned(), facts::node_name(node).to_string());
    LabelSelector { match_labels: [label].into(), match_expressions: Vec::new() }
}

/// Changes every Service with the selector of this one: equal selectors mean equal pods.
fn with_same_backends(facts: &mut Snapshot, key: &ferrogate_core::model::ServiceKey, change: impl Fn(&mut Service)) {
    let Some(selector) = facts.services.get(key).map(|service| service.selector.clone()) else { return };
    let same: Vec<_> = facts.services.values().filter(|service| service.selector == selector).cloned().collect();
    for service in same {
        if let Some(service) = facts.services.get_mut(&service.key) {
            change(Arc::make_mut(service));
        }
    }
}
