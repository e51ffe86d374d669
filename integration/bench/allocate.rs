//! How long the controller takes for one Service more or less, in worlds of four sizes, and for many at once.
//!
//! What is timed is `Controller::step`: from the snapshot that shows the change to the finished list of writes. The
//! snapshots themselves are made beforehand. The sizes take turns and the median counts, so that a busy machine slows
//! all of them alike; batches are given in CPU time for the same reason. What counts is the ratio between the ends,
//! and the program fails when it is above [`ALLOWED_RATIO`].

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::IpAddr,
    num::NonZeroU16,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_core::{
    controller::{Config, Controller, Event},
    model::{
        Family, ObjectKey, ServiceKey,
        pool::{AddressRange, Pool, PoolStatus},
        service::{
            FamilyPolicy, LoadBalancer, Protocol, Request, Service, ServicePort, ServiceStatus, SessionAffinity,
            TrafficPolicy,
        },
    },
    snapshot::Snapshot,
    write::Write,
};
use nix::time::{ClockId, clock_gettime};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Services in the worlds that are compared.
const SIZES: [usize; 4] = [100, 1_000, 10_000, 100_000];
/// Services added and removed in each world.
const ROUNDS: usize = 3_000;
/// Services of the batch figure.
const BATCH: usize = 10_000;
/// How much longer the largest world may take than the smallest.
const ALLOWED_RATIO: f64 = 2.0;
/// 198.18.0.0/15, which RFC 2544 sets aside for benchmarks.
const FIRST: [u8; 4] = [198, 18, 0, 0];
const LAST: [u8; 4] = [198, 19, 255, 255];

fn main() -> ExitCode {
    let mut worlds: Vec<World> = SIZES.iter().map(|&size| World::settled(size)).collect();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut added = vec![Vec::with_capacity(ROUNDS); SIZES.len()];
    let mut removed = added.clone();
    for _ in 0..ROUNDS {
        // A random name, so that each change is somewhere else in the maps.
        let name = format!("svc-{:06}-new", rng.random_range(0..1_000_000));
        for (index, world) in worlds.iter_mut().enumerate() {
            added[index].push(world.add(&name));
            removed[index].push(world.remove(&name));
        }
    }

    println!("| Services | one added | one removed |");
    println!("|---:|---:|---:|");
    for (index, size) in SIZES.iter().enumerate() {
        row([size, &micros(median(&mut added[index])), &micros(median(&mut removed[index]))]);
    }
    let ratios = [ratio(&mut added), ratio(&mut removed)];
    row([&"ratio of the ends" as &dyn Display, &format!("{:.2}", ratios[0]), &format!("{:.2}", ratios[1])]);
    println!();
    println!("| {BATCH} Services created | CPU time | for each |");
    println!("|---|---:|---:|");
    for (how, batch) in
        [("in one snapshot", batch_at_once()), ("one snapshot after another, each also seen done", batch_one_by_one())]
    {
        row([&how as &dyn Display, &format!("{:.1} ms", batch.as_secs_f64() * 1e3), &micros(batch / BATCH as u32)]);
    }

    if ratios.iter().all(|ratio| *ratio <= ALLOWED_RATIO) {
        ExitCode::SUCCESS
    } else {
        eprintln!("one change costs more than {ALLOWED_RATIO} times as much in the largest world");
        ExitCode::FAILURE
    }
}

fn row(cells: [&dyn Display; 3]) {
    println!("| {} | {} | {} |", cells[0], cells[1], cells[2]);
}

fn micros(duration: Duration) -> String {
    format!("{:.1} µs", duration.as_secs_f64() * 1e6)
}

/// CPU time that this thread has used.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock").into()
}

fn median(samples: &mut [Duration]) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn ratio(samples: &mut [Vec<Duration>]) -> f64 {
    let ends = [0, samples.len() - 1].map(|index| median(&mut samples[index]).as_secs_f64());
    ends[1] / ends[0]
}

/// All Services of the batch in one step.
fn batch_at_once() -> Duration {
    let mut world = World::settled(0);
    for number in 0..BATCH {
        world.put(service(&format!("svc-{number:06}")));
    }
    let start = cpu_time();
    let (_, writes) = world.step();
    assert!(writes.len() >= BATCH, "every Service is to be written");
    cpu_time() - start
}

/// The batch one by one: the step that assigns and the step that sees it done, added up.
fn batch_one_by_one() -> Duration {
    let mut world = World::settled(0);
    world.pause = CLOSE;
    let mut total = Duration::ZERO;
    for number in 0..BATCH {
        world.put(service(&format!("svc-{number:06}")));
        let start = cpu_time();
        let (_, writes) = world.step();
        total += cpu_time() - start;
        world.carry_out(writes);
        let start = cpu_time();
        world.step();
        total += cpu_time() - start;
    }
    total
}

/// How far apart the steps of a world are: a pool that changed is written in each of them, so that all is counted.
const APART: Duration = Duration::from_secs(2);
/// The same in a batch, where a pool is written once in a thousand.
const CLOSE: Duration = Duration::from_millis(1);

/// Facts, a controller that leads, and a hand that carries out its writes.
struct World {
    facts: Snapshot,
    controller: Controller,
    /// What the controller is told the time is.
    now: Instant,
    pause: Duration,
}

impl World {
    /// With this many Services, each with an address that shows in its status.
    fn settled(size: usize) -> Self {
        let mut controller = Controller::new(Config::default());
        let now = Instant::now();
        controller.step(now, Event::Leads(true));
        let mut world = Self { facts: Snapshot::default(), controller, now, pause: APART };
        let pool = pool();
        world.facts.pools.insert(pool.name.clone(), Arc::new(pool));
        for number in 0..size {
            world.put(service(&format!("svc-{number:06}")));
        }
        world.settle();
        world
    }

    fn settle(&mut self) {
        loop {
            let (_, writes) = self.step();
            if writes.is_empty() {
                return;
            }
            self.carry_out(writes);
        }
    }

    fn put(&mut self, service: Service) {
        self.facts.services.insert(service.key.clone(), Arc::new(service));
    }

    fn step(&mut self) -> (Duration, Vec<Write>) {
        let event = Event::Snapshot(Arc::new(self.facts.clone()));
        self.now += self.pause;
        let start = Instant::now();
        let writes = self.controller.step(self.now, event);
        (start.elapsed(), writes)
    }

    fn carry_out(&mut self, writes: Vec<Write>) {
        for write in writes {
            match write {
                Write::ServiceStatus { service, status, .. } => {
                    let old = &self.facts.services[&service];
                    let new = Service { observed: status, ..Service::clone(old) };
                    self.facts.services.insert(service, Arc::new(new));
                }
                Write::PoolStatus { pool, status } => {
                    let name = (&*pool.name).into();
                    let new = Pool { observed: status, ..Pool::clone(&self.facts.pools[&name]) };
                    self.facts.pools.insert(name, Arc::new(new));
                }
                _ => {}
            }
        }
    }

    /// Time for one Service more.
    fn add(&mut self, name: &str) -> Duration {
        self.put(service(name));
        let (elapsed, writes) = self.step();
        assert!(
            writes
                .iter()
                .any(|write| matches!(write, Write::ServiceStatus { status, .. } if status.addresses.len() == 1))
        );
        self.carry_out(writes);
        self.settle();
        elapsed
    }

    /// Time for one Service less.
    fn remove(&mut self, name: &str) -> Duration {
        self.facts.services.remove(&key(name));
        let (elapsed, writes) = self.step();
        assert!(!writes.is_empty(), "the pool has one address more");
        self.carry_out(writes);
        self.settle();
        elapsed
    }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

fn service(name: &str) -> Service {
    Service {
        key: key(name),
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        created: 0,
        generation: 1,
        version: Default::default(),
        load_balancer: Some(LoadBalancer {
            class: None,
            families: vec![Family::V4],
            family_policy: FamilyPolicy::SingleStack,
            request: Ok(Request::default()),
        }),
        ports: vec![ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
            node_port: None,
        }],
        cluster_ips: Vec::new(),
        selector: BTreeMap::from([("app".to_owned(), name.to_owned())]),
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
}

fn pool() -> Pool {
    let range = AddressRange::new(IpAddr::from(FIRST), IpAddr::from(LAST)).expect("the ends are in order");
    Pool {
        key: ObjectKey::new("ferrogate-system", "p"),
        read_only: false,
        name: "p".into(),
        labels: BTreeMap::new(),
        generation: 1,
        ranges: vec![range],
        auto_assign: true,
        avoid_buggy_ips: false,
        edges: Default::default(),
        sharing: Default::default(),
        allocation: None,
        observed: PoolStatus::default(),
    }
}
