//! A node and a client, each in a network namespace of its own, with a cable between them.
//!
//! The namespaces have no name: they are held by a descriptor and gone with the test, however it ends. Threads are
//! made inside them; the thread of the test itself never moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as std_mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::Parser;
use ferrogate_core::{
    model::{
        ObjectKey,
        advertisement::{L2Advertisement, PoolChoice},
        node::Node,
        pool::{AddressRange, Pool, PoolStatus},
        service::{
            Endpoint, FamilyPolicy, LoadBalancer, Protocol, Request, Service, ServicePort, ServiceStatus,
            SessionAffinity, TrafficPolicy,
        },
    },
    snapshot::Snapshot,
    speaker::DataPath,
    write::Write,
};
use ferrogate_speaker::{Config, Flags, Metrics, ProxyReadiness, RunError};
use ferrogate_wire::{
    arp::{self, Arp, Operation},
    ethernet::Mac,
    ndp::{self, Ndp, Solicitation, solicited_node},
};
use futures::{StreamExt, TryStreamExt};
use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::Uid,
};
use pnet::datalink::{self, Channel, DataLinkSender};
use prometheus_client::registry::Registry;
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, MulticastGroup, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressHeaderFlags},
        neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub const NODE_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xc]);
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);
pub const CLIENT_IP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100);

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Namespace(Arc<File>);

impl Namespace {
    /// Only the loopback is in it, switched on. Addresses are usable at once: nobody checks for duplicates.
    pub fn new() -> Self {
        assert!(
            Uid::effective().is_root(),
            "this test makes network namespaces and needs root; run: sudo -E cargo test -p ferrogate-speaker --test netns"
        );
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            File::open("/proc/thread-self/ns/net").expect("the namespace just made")
        });
        let namespace = Self(Arc::new(made.join().expect("no panic above")));
        for scope in ["all", "default"] {
            namespace.set(&format!("ipv6/conf/{scope}/accept_dad"), "0");
        }
        namespace.netlink(async |netlink| up(&netlink, "lo").await);
        namespace
    }

    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = self.0.clone();
        thread::spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("a namespace we made can be entered");
            work()
        })
    }

    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Sets a parameter, by its path below `/proc/sys/net`.
    pub fn set(&self, key: &str, value: &str) {
        let (path, value) = (format!("/proc/sys/net/{key}"), value.to_owned());
        self.run(move || fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}")));
    }

    pub fn read(&self, path: &str) -> String {
        let path = path.to_owned();
        self.run(move || fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    pub fn netlink<T: Send + 'static>(&self, work: impl AsyncFnOnce(Handle) -> T + Send + 'static) -> T {
        self.run(|| {
            runtime().block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().expect("a netlink socket");
                tokio::spawn(connection);
                work(handle).await
            })
        })
    }

    /// Addresses that the kernel takes in by `lo` and that were not there from the start.
    pub fn held(&self) -> BTreeSet<IpAddr> {
        self.netlink(async |netlink| held_by(&netlink).await)
    }

    /// Waits until the addresses that the kernel takes in by `lo` are exactly these.
    pub fn wait_until_held(&self, expected: impl IntoIterator<Item = IpAddr>) {
        let expected: BTreeSet<IpAddr> = expected.into_iter().collect();
        let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
        self.wait_for(groups, async |netlink| held_by(netlink).await, move |held| *held == expected);
    }

    /// Waits until an interface has its link-local address, and so a carrier.
    pub fn wait_until_linked(&self, interface: &'static str) {
        let is_link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let look = async move |netlink: &Handle| addresses_on(netlink, interface).await;
        self.wait_for(groups, look, move |addresses| addresses.iter().any(is_link_local));
    }

    fn wait_for(
        &self,
        groups: [MulticastGroup; 2],
        look: impl AsyncFn(&Handle) -> BTreeSet<IpAddr> + Send + 'static,
        are_right: impl Fn(&BTreeSet<IpAddr>) -> bool + Send + 'static,
    ) {
        self.run(move || {
            runtime().block_on(async {
                let (connection, netlink, mut changes) = rtnetlink::new_multicast_connection(&groups).unwrap();
                tokio::spawn(connection);
                loop {
                    let addresses = look(&netlink).await;
                    if are_right(&addresses) {
                        return;
                    }
                    let change = tokio::time::timeout(PATIENCE, changes.next()).await;
                    assert!(change.is_ok(), "not what is expected: {addresses:?}");
                }
            });
        });
    }

    /// Believes that an address is somewhere, as after an earlier conversation.
    pub fn believe(&self, interface: &'static str, address: IpAddr, mac: Mac) {
        self.netlink(async move |netlink| {
            let index = index(&netlink, interface).await;
            let entry = netlink.neighbours().add(index, address).link_layer_address(&mac.0);
            entry.state(NeighbourState::Reachable).execute().await.unwrap();
        });
    }

    /// Sends nothing any more to an address that would arrive, and the link stays up.
    pub fn lose(&self, interface: &'static str, address: IpAddr) {
        self.netlink(async move |netlink| {
            let index = index(&netlink, interface).await;
            let entry = netlink.neighbours().add(index, address).link_layer_address(&[2, 0, 0, 0, 0xff, 0xff]);
            entry.state(NeighbourState::Permanent).replace().execute().await.unwrap();
        });
    }

    /// Waits until the kernel believes that an address is there.
    pub fn wait_until_believed(&self, address: IpAddr, mac: Mac) {
        self.run(move || {
            runtime().block_on(async {
                let (connection, netlink, mut changes) =
                    rtnetlink::new_multicast_connection(&[MulticastGroup::Neigh]).unwrap();
                tokio::spawn(connection);
                loop {
                    let entries: Vec<_> = netlink.neighbours().get().execute().try_collect().await.unwrap();
                    let is_right = |entry: &NeighbourMessage| {
                        entry.attributes.contains(&NeighbourAttribute::Destination(address.into()))
                            && entry.attributes.contains(&NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()))
                    };
                    if entries.iter().any(is_right) {
                        return;
                    }
                    let change = tokio::time::timeout(PATIENCE, changes.next()).await;
                    assert!(change.is_ok(), "{address} is not at {mac}: {entries:?}");
                }
            });
        });
    }

    pub fn up(&self, interface: &'static str) {
        self.netlink(async move |netlink| up(&netlink, interface).await);
    }

    pub fn down(&self, interface: &'static str) {
        self.netlink(async move |netlink| {
            let link = LinkUnspec::new_with_name(interface).down().build();
            netlink.link().set(link).execute().await.unwrap();
        });
    }

    /// Down and up again at once.
    pub fn flap(&self, interface: &'static str) {
        self.netlink(async move |netlink| {
            let link = LinkUnspec::new_with_name(interface).down().build();
            netlink.link().set(link).execute().await.unwrap();
            up(&netlink, interface).await;
        });
    }

    pub fn delete(&self, interface: &'static str) {
        self.netlink(async move |netlink| {
            netlink.link().del(index(&netlink, interface).await).execute().await.unwrap()
        });
    }

    pub fn add_address(&self, interface: &'static str, address: IpAddr, length: u8) {
        self.netlink(async move |netlink| {
            let index = index(&netlink, interface).await;
            netlink.address().add(index, address, length).execute().await.unwrap();
        });
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn index(netlink: &Handle, name: &str) -> u32 {
    let found = netlink.link().get().match_name(name.to_owned()).execute().try_next().await;
    found.unwrap().expect("the interface is there").header.index
}

async fn up(netlink: &Handle, name: &str) {
    netlink.link().set(LinkUnspec::new_with_name(name).up().build()).execute().await.unwrap();
}

/// The addresses that can be used.
pub async fn addresses_on(netlink: &Handle, interface: &str) -> BTreeSet<IpAddr> {
    let index = index(netlink, interface).await;
    let addresses = netlink.address().get().set_link_index_filter(index).execute();
    let messages: Vec<_> = addresses.try_collect().await.unwrap();
    let usable = messages.into_iter().filter(|found| !found.header.flags.contains(AddressHeaderFlags::Tentative));
    let addresses = usable.flat_map(|message| message.attributes).filter_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(address),
        _ => None,
    });
    addresses.collect()
}

/// The addresses with a local route by `lo`, but for those that every host has.
async fn held_by(netlink: &Handle) -> BTreeSet<IpAddr> {
    let index = index(netlink, "lo").await;
    let mut held = BTreeSet::new();
    for question in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
        let routes: Vec<RouteMessage> = netlink.route().get(question).execute().try_collect().await.unwrap();
        let local = routes.iter().filter(|route| {
            route.header.kind == RouteType::Local && route.attributes.contains(&RouteAttribute::Oif(index))
        });
        held.extend(local.flat_map(|route| &route.attributes).filter_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
            _ => None,
        }));
    }
    held.retain(|address| !address.is_loopback());
    held
}

/// The node and the client on one cable, `eth0` at both ends.
pub struct Stand {
    pub node: Namespace,
    pub client: Namespace,
}

impl Stand {
    pub fn new() -> Self {
        let stand = Self { node: Namespace::new(), client: Namespace::new() };
        stand.node.set("ipv4/conf/all/arp_ignore", "1");
        stand.node.set("ipv4/conf/all/arp_announce", "2");
        stand.lay_cable("eth0", NODE_MAC);
        stand.node.up("eth0");
        stand.node.add_address("eth0", NODE_IP.into(), 24);
        stand.client.add_address("eth0", CLIENT_IP.into(), 24);
        stand.client.add_address("eth0", CLIENT_IP6.into(), 64);
        stand.node.wait_until_linked("eth0");
        stand.client.wait_until_linked("eth0");
        stand
    }

    /// Lays a cable whose ends have the same name; the end at the node is still switched off.
    pub fn lay_cable(&self, name: &'static str, node_mac: Mac) {
        let node = self.node.0.clone();
        self.client.netlink(async move |netlink| {
            let far = "far-end";
            netlink.link().add(LinkVeth::new(name, far).build()).execute().await.unwrap();
            let near = LinkUnspec::new_with_name(name).address(CLIENT_MAC.0.to_vec()).up().build();
            netlink.link().set(near).execute().await.unwrap();
            let far = LinkUnspec::new_with_index(index(&netlink, far).await).address(node_mac.0.to_vec());
            let moved = far.name(name.to_owned()).setns_by_fd(node.as_raw_fd()).build();
            netlink.link().set(moved).execute().await.unwrap();
        });
    }

    /// What the client sees on an interface from now on.
    pub fn watch(&self, interface: &'static str) -> Tap {
        let (sender, mut receiver) = self.client.run(move || {
            let found = datalink::interfaces().into_iter().find(|found| found.name == interface);
            let config = datalink::Config { read_timeout: Some(Duration::from_millis(50)), ..Default::default() };
            match datalink::channel(&found.expect("the interface is there"), config).expect("root may look at frames") {
                Channel::Ethernet(sender, receiver) => (sender, receiver),
                _ => unreachable!("pnet knows no other channel"),
            }
        });
        let (frames, received) = std_mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(frame) = receiver.next() {
                    let _ = frames.send(frame.to_vec());
                }
            }
        });
        Tap { sender, received, stop }
    }

    /// A speaker on the node, already told that the proxy is ready.
    pub fn speaker(&self, snapshot: Snapshot, flags: &[&str]) -> RunningSpeaker {
        RunningSpeaker::start(&self.node, snapshot, flags, CapabilitySet::empty())
    }
}

/// A frame, as far as these tests care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Arp(Arp),
    Ndp(Ndp),
    Other(Vec<u8>),
}

pub struct Tap {
    sender: Box<dyn DataLinkSender>,
    received: std_mpsc::Receiver<Vec<u8>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Tap {
    pub fn send(&mut self, frame: &[u8]) {
        self.sender.send_to(frame, None).expect("the channel is open").expect("the frame is sent");
    }

    /// The next frame that did not come from the client itself.
    pub fn next(&mut self) -> Seen {
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            let left = give_up_at.saturating_duration_since(Instant::now());
            let seen = Seen::from(self.received.recv_timeout(left).expect("a frame within the patience of the test"));
            if seen.source() != CLIENT_MAC {
                return seen;
            }
        }
    }

    /// Asks until an answer comes. A link that has just come up swallows what is sent at first.
    pub fn ask_until_answered(&mut self, question: &[u8], address: impl Into<IpAddr>) {
        let (address, give_up_at) = (address.into(), Instant::now() + PATIENCE);
        loop {
            assert!(Instant::now() < give_up_at, "no answer about {address}");
            self.send(question);
            let wait_until = Instant::now() + Duration::from_millis(100);
            while let Some(left) = wait_until.checked_duration_since(Instant::now()) {
                let seen = self.received.recv_timeout(left).map(Seen::from);
                if seen.is_ok_and(|seen| seen.is_answer_about(address)) {
                    return;
                }
            }
        }
    }

    /// All frames up to the first that fits, that one included.
    pub fn up_to(&mut self, fits: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let mut seen = Vec::new();
        while !seen.last().is_some_and(&fits) {
            seen.push(self.next());
        }
        seen
    }

    /// Asks by ARP who has an address, in the name of the client.
    pub fn ask(&mut self, target: Ipv4Addr) {
        self.send(&question(CLIENT_IP, target).encode());
    }

    /// Asks by neighbour solicitation.
    pub fn ask6(&mut self, source: Ipv6Addr, target: Ipv6Addr) {
        self.send(&question6(source, target).encode());
    }
}

pub fn question(sender: Ipv4Addr, target: Ipv4Addr) -> Arp {
    Arp {
        destination: Mac::BROADCAST,
        source: CLIENT_MAC,
        operation: Operation::Request,
        sender_mac: CLIENT_MAC,
        sender,
        target_mac: Mac::ZERO,
        target,
    }
}

pub fn question6(source: Ipv6Addr, target: Ipv6Addr) -> Solicitation {
    let group = solicited_node(target);
    Solicitation {
        destination_mac: Mac::of_group(group),
        source_mac: CLIENT_MAC,
        source,
        destination: group,
        target,
        source_link_layer: (!source.is_unspecified()).then_some(CLIENT_MAC),
    }
}

impl From<Vec<u8>> for Seen {
    fn from(frame: Vec<u8>) -> Self {
        match (arp::decode(&frame), ndp::decode(&frame)) {
            (Ok(arp), _) => Self::Arp(arp),
            (_, Ok(ndp)) => Self::Ndp(ndp),
            _ => Self::Other(frame),
        }
    }
}

impl Seen {
    pub fn source(&self) -> Mac {
        match self {
            Self::Arp(arp) => arp.source,
            Self::Ndp(Ndp::Solicitation(solicitation)) => solicitation.source_mac,
            Self::Ndp(Ndp::Advertisement(advertisement)) => advertisement.source_mac,
            Self::Other(frame) => frame.get(6..12).and_then(|source| source.try_into().ok()).map_or(Mac::ZERO, Mac),
        }
    }

    /// Whom it says to have an address, if it is an answer or an announcement.
    pub fn says(&self) -> Option<(IpAddr, Mac)> {
        match self {
            Self::Arp(arp) => Some((arp.sender.into(), arp.sender_mac)),
            Self::Ndp(Ndp::Advertisement(own)) => Some((own.target.into(), own.target_link_layer?)),
            _ => None,
        }
    }

    pub fn is_about(&self, address: impl Into<IpAddr>) -> bool {
        self.says().is_some_and(|(said, _)| said == address.into())
    }

    /// Whether it speaks to the client alone.
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Arp(arp) => arp.destination == CLIENT_MAC,
            Self::Ndp(Ndp::Advertisement(own)) => own.destination_mac == CLIENT_MAC,
            _ => false,
        }
    }

    pub fn is_answer_about(&self, address: impl Into<IpAddr>) -> bool {
        self.is_answer() && self.is_about(address)
    }
}

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    flags: Flags,
}

pub struct RunningSpeaker {
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub proxy_ready: watch::Sender<bool>,
    pub ready: watch::Receiver<bool>,
    pub writes: mpsc::Receiver<Write>,
    registry: Registry,
    shutdown: CancellationToken,
    kill: CancellationToken,
    thread: Option<JoinHandle<Option<Result<(), RunError>>>>,
}

impl RunningSpeaker {
    /// A speaker that lacks some of root's rights.
    pub fn start(namespace: &Namespace, snapshot: Snapshot, flags: &[&str], missing: CapabilitySet) -> Self {
        Self::start_on("node-a", namespace, snapshot, flags, missing)
    }

    /// A speaker of another node than `node-a`.
    pub fn start_on(
        node: &str,
        namespace: &Namespace,
        snapshot: Snapshot,
        flags: &[&str],
        missing: CapabilitySet,
    ) -> Self {
        let (snapshots, snapshots_receiver) = watch::channel(Arc::new(snapshot));
        let (proxy_ready, proxy) = watch::channel(true);
        let (ready_sender, ready) = watch::channel(false);
        let (writes_sender, writes) = mpsc::channel(16);
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let config = Config {
            node: node.into(),
            data_path: DataPath::Proxy,
            proxy: Some(ProxyReadiness::Watch(proxy)),
            flags: Command::parse_from([&["speaker"], flags].concat()).flags,
        };
        let (shutdown, kill) = (CancellationToken::new(), CancellationToken::new());
        let (stop, end) = (shutdown.clone(), kill.clone());
        let thread = namespace.spawn(move || {
            let mut rights = capabilities(None).expect("rights of this thread");
            rights.effective -= missing;
            set_capabilities(None, rights).expect("a thread may give up its rights");
            let run = ferrogate_speaker::run(config, snapshots_receiver, writes_sender, metrics, ready_sender, stop);
            // Dropping the future and its runtime is as sudden as a signal 9: nothing is cleaned up.
            runtime().block_on(async { end.run_until_cancelled(run).await })
        });
        Self { snapshots, proxy_ready, ready, writes, registry, shutdown, kill, thread: Some(thread) }
    }

    pub fn stop(mut self) -> Result<(), RunError> {
        self.shutdown.cancel();
        self.ended().expect("it was not killed")
    }

    pub fn kill(mut self) {
        self.kill.cancel();
        self.ended();
    }

    /// Waits for its end, which it must find by itself.
    pub fn fails(mut self) -> RunError {
        self.ended().expect("it was not killed").expect_err("it has a reason to fail")
    }

    fn ended(&mut self) -> Option<Result<(), RunError>> {
        self.thread.take().and_then(|thread| thread.join().expect("the speaker does not panic"))
    }

    pub fn wait_until_ready(&mut self) {
        let ready = self.ready.wait_for(|ready| *ready);
        let waited =
            runtime().block_on(async { tokio::time::timeout(PATIENCE, ready).await.map(|ready| ready.is_ok()) });
        assert_eq!(waited, Ok(true), "the speaker becomes ready");
    }

    /// Lines of the metrics page that begin like this.
    pub fn metrics(&self, prefix: &str) -> Vec<String> {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry).expect("a page of text");
        page.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
    }
}

impl Drop for RunningSpeaker {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

/// Node, pool and advertisement, and one Service for each set of addresses.
pub fn snapshot<'a>(services: impl IntoIterator<Item = &'a [IpAddr]>) -> Snapshot {
    let range = |first: &str, last: &str| {
        let (first, last) = (first.parse().expect("an address"), last.parse().expect("an address"));
        AddressRange::new(first, last).expect("an ordered range")
    };
    let pool = Pool {
        key: ObjectKey::new("default", "pool"),
        read_only: false,
        name: "pool".into(),
        labels: BTreeMap::new(),
        generation: 0,
        ranges: vec![range("192.0.2.0", "192.0.2.63"), range("2001:db8::12:0", "2001:db8::1ff:ffff")],
        auto_assign: true,
        avoid_buggy_ips: false,
        edges: Default::default(),
        sharing: Default::default(),
        allocation: None,
        observed: PoolStatus::default(),
    };
    let node = Node {
        name: "node-a".into(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        internal_addresses: vec![NODE_IP.into()],
        network_unavailable: false,
        unschedulable: false,
    };
    let services = services.into_iter().enumerate().map(|(number, addresses)| {
        let service = service(number, addresses);
        (service.key.clone(), Arc::new(service))
    });
    let mut snapshot = Snapshot { services: services.collect(), ..Snapshot::default() };
    snapshot.pools.insert(pool.name.clone(), Arc::new(pool));
    snapshot.nodes.insert(node.name.clone(), Arc::new(node));
    with_interfaces(snapshot, &[])
}

/// The snapshot with an advertisement on these interfaces only; none means all.
pub fn with_interfaces(mut snapshot: Snapshot, interfaces: &[&str]) -> Snapshot {
    let advertisement = L2Advertisement {
        key: ObjectKey::new("default", "all"),
        read_only: false,
        generation: 0,
        pools: PoolChoice::default(),
        node_selectors: Vec::new(),
        interfaces: interfaces.iter().map(|&name| name.into()).collect(),
        service_selectors: Vec::new(),
        preferred_nodes: Vec::new(),
        is_sticky: false,
    };
    snapshot.l2_advertisements.insert(advertisement.key.clone(), Arc::new(advertisement));
    snapshot
}

fn service(number: usize, addresses: &[IpAddr]) -> Service {
    Service {
        key: ObjectKey::new("default", format!("service-{number:05}")),
        labels: BTreeMap::new(),
        created: 0,
        generation: 0,
        version: Default::default(),
        load_balancer: Some(LoadBalancer {
            class: None,
            families: Vec::new(),
            family_policy: FamilyPolicy::default(),
            request: Ok(Request::default()),
        }),
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
            node_port: None,
        }],
        cluster_ips: Vec::new(),
        selector: BTreeMap::new(),
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        session_affinity: SessionAffinity::None,
        source_ranges: Vec::new(),
        is_foreign: false,
        is_entry: false,
        wished_node: None,
        endpoints: vec![Endpoint {
            address: IpAddr::from([198, 51, 100, 1]),
            node: None,
            ready: true,
            serving: true,
            terminating: false,
            ports: Arc::from([]),
        }],
        observed: ServiceStatus {
            addresses: addresses.to_vec(),
            pool: Some("pool".into()),
            ..ServiceStatus::default()
        },
    }
}
