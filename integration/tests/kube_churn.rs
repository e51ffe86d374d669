//! Two controllers on a real API server while users come and go: one is killed, one sleeps past its Lease, one's
//! requests are held up on the way. At no moment do two Services have one address, and in the end every one has one.
//!
//! The same while the clocks of day of both are set forth and back by hours.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ferrogate_integration::kube::{ControlPlane, Options, clock::ClockOfDay, install::NAMESPACE, product::Ferrogate};
use futures::TryStreamExt;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Service,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use nix::sys::signal::Signal;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// How many names Services are made under.
const NAMES: u32 = 160;
/// How long one thing that a user does comes after another.
const PACE: Duration = Duration::from_millis(15);
/// How long a change of leader may take: the Lease, one request, the attempts in between, and a busy machine.
const TAKEOVER: Duration = Duration::from_secs(60);

const POOL: &str =
    "{apiVersion: ferrogate.io/v1beta1, kind: IPAddressPool, metadata: {name: churn, namespace: ferrogate-system},
  spec: {addresses: [192.0.2.0/24]}}";
const SMALLER_POOL: &str =
    "{apiVersion: ferrogate.io/v1beta1, kind: IPAddressPool, metadata: {name: churn, namespace: ferrogate-system},
  spec: {addresses: [192.0.2.20-192.0.2.255]}}";

/// What every Service has, by what a watch tells in order, and the first address that two had.
#[derive(Debug, Default)]
struct Seen {
    wants: BTreeSet<String>,
    addresses: BTreeMap<String, BTreeSet<String>>,
    doubled: Option<String>,
    events: usize,
}

impl Seen {
    fn note(&mut self, service: &Service) {
        self.events += 1;
        let name = service.metadata.name.clone().unwrap();
        let wants = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
        if wants {
            self.wants.insert(name.clone())
        } else {
            self.wants.remove(&name)
        };
        let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.clone());
        let addresses: BTreeSet<String> = ingress.into_iter().flatten().filter_map(|one| one.ip).collect();
        for (other, others) in self.addresses.iter().filter(|(other, _)| **other != name) {
            if let Some(address) = others.intersection(&addresses).next() {
                self.doubled.get_or_insert(format!("both {name} and {other} have {address}"));
            }
        }
        self.addresses.insert(name, addresses);
    }

    fn forget(&mut self, service: &Service) {
        let name = service.metadata.name.as_deref().unwrap();
        self.wants.remove(name);
        self.addresses.remove(name);
    }

    fn without(&self) -> Vec<&String> {
        let has_none = |name: &&String| self.addresses.get(*name).is_none_or(BTreeSet::is_empty);
        self.wants.iter().filter(has_none).collect()
    }
}

/// Watches every Service for as long as it is let.
async fn watch_services(client: Client, seen: watch::Sender<Seen>) {
    let events = watcher(Api::<Service>::all(client), watcher::Config::default()).default_backoff();
    futures::pin_mut!(events);
    loop {
        let Ok(Some(event)) = events.try_next().await else { continue };
        seen.send_modify(|seen| match event {
            watcher::Event::Apply(service) | watcher::Event::InitApply(service) => seen.note(&service),
            watcher::Event::Delete(service) => seen.forget(&service),
            watcher::Event::Init | watcher::Event::InitDone => {}
        });
    }
}

fn service(name: &str) -> Service {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name },
        "spec": { "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{ "port": 80 }] },
    }))
    .unwrap()
}

/// Makes, deletes and changes Services and the pool until told otherwise.
async fn churn(client: Client, plane: Arc<ControlPlane>, stop: Arc<AtomicBool>) {
    let api: Api<Service> = Api::default_namespaced(client);
    let mut rng = SmallRng::seed_from_u64(7);
    let mut pace = tokio::time::interval(PACE);
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let name = format!("s{}", rng.random_range(0..NAMES));
        let merge = async |spec: serde_json::Value| {
            api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({ "spec": spec }))).await.map(drop)
        };
        // What is there already, or not there any more, is no failure of anybody.
        let _ = match rng.random_range(0..100) {
            0..55 => api.create(&PostParams::default(), &service(&name)).await.map(drop),
            55..80 => api.delete(&name, &DeleteParams::default()).await.map(drop),
            80..88 => merge(json!({ "type": "ClusterIP", "allocateLoadBalancerNodePorts": null })).await,
            88..99 => merge(json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false })).await,
            _ => {
                let plane = Arc::clone(&plane);
                let pool = if rng.random() { POOL } else { SMALLER_POOL };
                tokio::task::spawn_blocking(move || plane.apply(pool).map(drop)).await.unwrap().unwrap();
                Ok(())
            }
        };
    }
    tokio::task::spawn_blocking(move || plane.apply(POOL).map(drop)).await.unwrap().unwrap();
}

/// A way to the API server on which requests can be held up.
struct Way {
    port: u16,
    is_open: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Way {
    async fn to(plane: &ControlPlane) -> Self {
        let server = plane.api_server();
        let listener = TcpListener::bind((server.ip(), 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_open, open) = watch::channel(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, server, open.clone()));
            }
        });
        Self { port, is_open, _tasks: tasks }
    }
}

/// Carries one connection. What a client has sent arrives in the end, even if the client has gone meanwhile.
async fn carry(client: TcpStream, server: std::net::SocketAddr, mut open: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let forth = async move {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
            if open.wait_for(|open| *open).await.is_err() || to_server.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
        let _ = open.wait_for(|open| *open).await;
        let _ = to_server.shutdown().await;
    };
    // An end in one direction is told in the other by whoever gets it.
    let back = async move { tokio::io::copy(&mut from_server, &mut to_client).await };
    let _ = tokio::join!(forth, back);
}

struct Stand {
    plane: Arc<ControlPlane>,
    client: Client,
    seen: watch::Receiver<Seen>,
    started: usize,
    _tasks: JoinSet<()>,
}

/// A controller, and its way to the API server.
struct Controller {
    process: Ferrogate,
    way: Way,
}

impl Controller {
    /// Whether it says that it decides.
    fn leads(&self) -> bool {
        self.process.get("/metrics").unwrap().lines().any(|line| line == "ferrogate_controller_leading 1")
    }
}

impl Stand {
    /// A control plane with Ferrogate's objects and a pool, and somebody who watches.
    async fn new() -> Self {
        let plane = tokio::task::spawn_blocking(|| {
            let plane = ControlPlane::start(Options::default()).unwrap();
            plane.install().unwrap();
            plane.apply(POOL).unwrap();
            plane
        });
        let plane = Arc::new(plane.await.unwrap());
        let client = plane.client().await.unwrap();
        let (told, seen) = watch::channel(Seen::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_services(client.clone(), told));
        Self { plane, client, seen, started: 0, _tasks: tasks }
    }

    /// Begins to make and delete Services; who sets the flag ends it.
    fn users(&self) -> (JoinHandle<()>, Arc<AtomicBool>) {
        let stop = Arc::new(AtomicBool::new(false));
        (tokio::spawn(churn(self.client.clone(), Arc::clone(&self.plane), Arc::clone(&stop))), stop)
    }

    async fn controller(&mut self) -> Controller {
        self.started += 1;
        self.start(format!("churn-{}", self.started), None).await
    }

    async fn start(&self, name: String, clock: Option<ClockOfDay>) -> Controller {
        let way = Way::to(&self.plane).await;
        let kubeconfig = self.plane.service_account_kubeconfig(NAMESPACE, "ferrogate-controller").unwrap();
        let text = std::fs::read_to_string(&kubeconfig).unwrap();
        let server = self.plane.api_server();
        let by_the_way = text.replace(&format!(":{}", server.port()), &format!(":{}", way.port));
        assert_ne!(text, by_the_way, "{text}");
        let kubeconfig = self.plane.folder().join(format!("{name}.kubeconfig"));
        std::fs::write(&kubeconfig, by_the_way).unwrap();
        let plane = Arc::clone(&self.plane);
        let process = tokio::task::spawn_blocking(move || {
            let started = match clock {
                Some(clock) => Ferrogate::start_under(&clock, &plane, "controller", &name, kubeconfig),
                None => Ferrogate::start_as(&plane, "controller", &name, &[], kubeconfig),
            };
            let mut process = started.unwrap();
            process.wait_ready().unwrap();
            process
        });
        Controller { process: process.await.unwrap(), way }
    }

    /// A controller with a clock of day of its own, which is right.
    async fn clocked(&mut self) -> (Controller, ClockOfDay) {
        self.started += 1;
        let name = format!("clocked-{}", self.started);
        let clock = ClockOfDay::new(&self.plane.folder().join(format!("{name}.clock"))).unwrap();
        (self.start(name, Some(clock.clone())).await, clock)
    }

    /// The Lease.
    async fn lease(&self) -> LeaseSpec {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        leases.get("ferrogate-controller").await.unwrap().spec.unwrap()
    }

    /// By how many seconds the Lease says to have been renewed ahead of the right time.
    async fn renewed_ahead(&self) -> i64 {
        self.lease().await.renew_time.unwrap().0.as_second() - Timestamp::now().as_second()
    }

    /// Waits until the Lease says that it was renewed so many seconds ahead of the right time, and then for longer than it
    /// lasts. Whoever holds it holds it all the while, and none of the others leads.
    async fn holds_on(&mut self, holder: &str, ahead: i64, others: &[&Controller]) {
        let begin = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut is_seen = false;
        let mut lasts = Duration::ZERO;
        while !is_seen || begin.elapsed() <= lasts {
            assert!(begin.elapsed() < TAKEOVER, "the Lease was never renewed {ahead} s from the right time");
            tick.tick().await;
            let lease = self.lease().await;
            assert_eq!(lease.holder_identity.as_deref(), Some(holder), "a step of a clock took the Lease away");
            assert!(!others.iter().any(|other| other.leads()), "two lead");
            is_seen |= (self.renewed_ahead().await - ahead).abs() < 60;
            lasts = Duration::from_secs(u64::try_from(lease.lease_duration_seconds.unwrap()).unwrap()) * 5 / 4;
        }
        self.check();
    }

    /// The name in the Lease.
    async fn holder(&self) -> Option<String> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        leases.get_opt("ferrogate-controller").await.unwrap()?.spec?.holder_identity
    }

    /// Waits until somebody else leads, and a Service that is made now has an address. Returns the name in the Lease.
    async fn follows(&mut self, former: Option<&str>, probe: &str) -> String {
        let begin = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let holder = loop {
            tick.tick().await;
            match self.holder().await.filter(|holder| !holder.is_empty() && Some(holder.as_str()) != former) {
                Some(holder) => break holder,
                None => assert!(begin.elapsed() < TAKEOVER, "nobody follows {former:?}"),
            }
        };
        let api: Api<Service> = Api::default_namespaced(self.client.clone());
        api.create(&PostParams::default(), &service(probe)).await.unwrap();
        let has = |seen: &Seen| seen.addresses.get(probe).is_some_and(|addresses| !addresses.is_empty());
        tokio::time::timeout(TAKEOVER, self.seen.wait_for(has)).await.expect(probe).unwrap();
        println!("{holder} follows {former:?} and writes after {:.1?}", begin.elapsed());
        self.check();
        holder
    }

    fn check(&self) {
        assert_eq!(self.seen.borrow().doubled, None);
    }

    /// Waits until every Service that wants one has an address.
    async fn settles(&mut self) {
        let all = |seen: &Seen| seen.without().is_empty();
        let settled = tokio::time::timeout(TAKEOVER, self.seen.wait_for(all)).await.is_ok();
        assert!(settled, "without an address: {:?}", self.seen.borrow().without());
        self.check();
    }
}

#[tokio::test]
async fn no_address_is_given_twice_whatever_becomes_of_the_leader() {
    let mut stand = Stand::new().await;
    let plane = Arc::clone(&stand.plane);

    let mut leader = stand.controller().await;
    let first = stand.follows(None, "probe-1").await;
    let second = stand.controller().await;
    let (users, stop) = stand.users();

    // Killed, while it has plenty to write.
    stand.seen.wait_for(|seen| seen.events > 400).await.unwrap();
    leader.process.process().signal(Signal::SIGKILL).unwrap();
    let held = stand.follows(Some(&first), "probe-2").await;
    let mut leader = second;

    // Stopped past its Lease, and then told to go on.
    let third = stand.controller().await;
    leader.process.process().signal(Signal::SIGSTOP).unwrap();
    let third_name = stand.follows(Some(&held), "probe-3").await;
    leader.process.process().signal(Signal::SIGCONT).unwrap();
    let stopped = std::mem::replace(&mut leader, third);

    // Cut off with requests under way, which arrive when another has long been leading.
    leader.way.is_open.send_replace(false);
    stand.follows(Some(&third_name), "probe-4").await;
    leader.way.is_open.send_replace(true);
    let events = stand.seen.borrow().events;
    stand.seen.wait_for(|seen| seen.events > events + 200).await.unwrap();

    stop.store(true, Ordering::Relaxed);
    users.await.unwrap();
    stand.settles().await;
    // What is said beside addresses may still change for a moment.
    while tokio::time::timeout(Duration::from_secs(2), stand.seen.changed()).await.is_ok() {}

    // Whoever starts when all is well has nothing to say.
    let before = writes(&plane);
    let processes = Arc::new(Mutex::new(vec![stopped, leader]));
    tokio::task::spawn_blocking(move || {
        for controller in processes.lock().unwrap().iter_mut() {
            controller.process.stop().unwrap();
        }
    })
    .await
    .unwrap();
    let last = stand.controller().await;
    let name = stand.follows(None, "probe-5").await;
    stand.settles().await;
    let after = writes(&plane);
    println!("{name} started on {} services", stand.seen.borrow().wants.len());
    let news: BTreeSet<_> = after.iter().skip(before.len()).collect();
    assert_eq!(news.into_iter().collect::<Vec<_>>(), ["probe-5"]);
    assert_eq!(plane.forbidden(NAMESPACE).unwrap(), []);
    drop(last);
}

const HOUR: i64 = 3600;

/// Who leads and who follows have clocks of day that are set while they do, and while one takes over from the other.
#[tokio::test]
async fn steps_of_the_clock_of_day_end_no_leadership_begin_none_and_give_no_address_twice() {
    let mut stand = Stand::new().await;
    let (mut leader, leaders) = stand.clocked().await;
    let first = stand.follows(None, "probe-1").await;
    let (second, followers) = stand.clocked().await;
    let (users, stop) = stand.users();

    // While one leads: its own clock goes forth and back, and the other's, by which the Lease is long over.
    leaders.set_ahead(5 * HOUR).unwrap();
    stand.holds_on(&first, 5 * HOUR, &[&second]).await;
    leaders.set_ahead(-7 * HOUR).unwrap();
    followers.set_ahead(9 * HOUR).unwrap();
    stand.holds_on(&first, -7 * HOUR, &[&second]).await;

    // While the other takes over: the Lease seems to be renewed in the future, and the clock of its next holder goes back.
    leaders.set_ahead(11 * HOUR).unwrap();
    stand.holds_on(&first, 11 * HOUR, &[&second]).await;
    let transitions = stand.lease().await.lease_transitions.unwrap();
    leader.process.process().signal(Signal::SIGKILL).unwrap();
    followers.set_ahead(-3 * HOUR).unwrap();
    let next = stand.follows(Some(&first), "probe-2").await;
    stand.holds_on(&next, -3 * HOUR, &[]).await;
    assert_eq!(stand.lease().await.lease_transitions, Some(transitions + 1));

    stop.store(true, Ordering::Relaxed);
    users.await.unwrap();
    stand.settles().await;
    assert_eq!(stand.plane.forbidden(NAMESPACE).unwrap(), []);
    drop((leader, second));
}

/// Names of Services whose status a controller has written, in order.
fn writes(plane: &ControlPlane) -> Vec<String> {
    let asked = plane.asked().unwrap();
    let status = asked.iter().filter(|one| one.verb == "patch" && one.what.starts_with("services/"));
    status.map(|one| one.name.clone()).collect()
}
