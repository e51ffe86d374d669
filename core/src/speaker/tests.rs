//! The machine as a whole, on a clock that the test moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::{NonZeroU8, NonZeroU16},
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_wire::{
    arp::{Arp, Operation},
    ethernet::Mac,
    gossip::{Datagram, Link, Message, NodeTag, Origin, Word},
    ndp::{self, Advertisement, Ndp, Solicitation},
};

use super::{
    Action, Announcements, Arrived, Config, DataPath, Event, Frame, Interface, Report, Speaker, Verdict,
    announce::{self, Liveness, Policy, Ranking, Silence, Standing, Standings},
    elect,
    health::Refusals,
};
use crate::{
    model::{
        Family, InterfaceName, NodeName, ObjectKey, ServiceKey,
        advertisement::{L2Advertisement, PoolChoice, PreferredNodes},
        node::{EXCLUDE_LABEL, Node},
        pool::{AddressRange, Pool, PoolStatus},
        selector::LabelSelector,
        service::{
            Endpoint, FamilyPolicy, LoadBalancer, Request, Service, ServicePort, ServiceStatus, SessionAffinity,
            TrafficPolicy,
        },
    },
    snapshot::Snapshot,
    write::{L2Conflict, L2Status, Severity, Write},
};

mod asked;
mod decisions;
mod detours;
mod health;
mod leases;
mod link;
mod liveness;
mod rivals;
mod routers;
mod settlement;
mod strays;
mod subnets;
mod unseen;
mod watch;

const MS: Duration = Duration::from_millis(1);
const INTERVAL: Duration = Duration::from_millis(50);
const DETECTION: Duration = Duration::from_millis(150);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

fn service(name: &str, addresses: &[&str]) -> Service {
    Service {
        key: key(name),
        labels: BTreeMap::new(),
        created: 0,
        generation: 0,
        version: Default::default(),
        load_balancer: Some(LoadBalancer {
            class: None,
            families: vec![Family::V4],
            family_policy: FamilyPolicy::default(),
            request: Ok(Request::default()),
        }),
        ports: vec![ServicePort {
            name: String::new(),
            protocol: crate::model::service::Protocol::Tcp,
            port: NonZeroU16::new(80).unwrap(),
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
        endpoints: vec![endpoint(None)],
        observed: ServiceStatus {
            addresses: addresses.iter().map(|address| ip(address)).collect(),
            pool: Some("pool".into()),
            ..ServiceStatus::default()
        },
    }
}

fn endpoint(node: Option<&str>) -> Endpoint {
    Endpoint {
        address: ip("198.51.100.1"),
        node: node.map(NodeName::from),
        ready: true,
        serving: true,
        terminating: false,
        ports: Arc::from([]),
    }
}

fn local(name: &str, addresses: &[&str], nodes: &[&str]) -> Service {
    Service {
        external_traffic_policy: TrafficPolicy::Local,
        endpoints: nodes.iter().map(|node| endpoint(Some(node))).collect(),
        ..service(name, addresses)
    }
}

fn pool() -> Pool {
    let range = |first, last| AddressRange::new(ip(first), ip(last)).unwrap();
    Pool {
        key: ObjectKey::new("default", "pool"),
        read_only: false,
        name: "pool".into(),
        labels: BTreeMap::new(),
        generation: 0,
        ranges: vec![
            range("127.0.0.0", "127.0.0.255"),
            range("192.0.2.0", "192.0.2.255"),
            range("203.0.112.0", "203.0.127.255"),
            range("2001:db8::", "2001:db8::ffff"),
        ],
        auto_assign: true,
        avoid_buggy_ips: false,
        edges: Default::default(),
        sharing: Default::default(),
        allocation: None,
        observed: PoolStatus::default(),
    }
}

fn advertisement() -> L2Advertisement {
    L2Advertisement {
        key: ObjectKey::new("default", "all"),
        read_only: false,
        generation: 0,
        pools: PoolChoice::default(),
        node_selectors: Vec::new(),
        interfaces: BTreeSet::new(),
        service_selectors: Vec::new(),
        preferred_nodes: Vec::new(),
        is_sticky: false,
    }
}

fn node(number: u8) -> Node {
    Node {
        name: format!("k{number}").as_str().into(),
        labels: BTreeMap::from([("name".to_owned(), format!("k{number}"))]),
        annotations: BTreeMap::new(),
        internal_addresses: vec![IpAddr::from([198, 51, 100, 10 + number])],
        network_unavailable: false,
        unschedulable: false,
    }
}

fn named(name: &str) -> LabelSelector {
    LabelSelector {
        match_labels: BTreeMap::from([("name".to_owned(), name.to_owned())]),
        match_expressions: Vec::new(),
    }
}

/// Nodes `k1` to `kN`, one pool, one advertisement of everything, and these Services.
fn snapshot(nodes: u8, services: impl IntoIterator<Item = Service>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for number in 1..=nodes {
        set_node(&mut snapshot, node(number));
    }
    snapshot.pools.insert("pool".into(), Arc::new(pool()));
    set_advertisement(&mut snapshot, advertisement());
    for service in services {
        set_service(&mut snapshot, service);
    }
    snapshot
}

fn set_node(snapshot: &mut Snapshot, node: Node) {
    snapshot.nodes.insert(node.name.clone(), Arc::new(node));
}

fn set_advertisement(snapshot: &mut Snapshot, advertisement: L2Advertisement) {
    snapshot.l2_advertisements.insert(advertisement.key.clone(), Arc::new(advertisement));
}

fn set_service(snapshot: &mut Snapshot, service: Service) {
    snapshot.services.insert(service.key.clone(), Arc::new(service));
}

const KUBE_PROXY: Policy =
    Policy { data_path: DataPath::KubeProxy, ignore_exclude_label: false, yield_on_cordon: false };
const PROXY: Policy = Policy { data_path: DataPath::Proxy, ..KUBE_PROXY };

/// Who announces, with every speaker alive and able.
fn ranked(snapshot: &Snapshot, name: &str) -> Result<Ranking, Silence> {
    announce::ranking(snapshot, KUBE_PROXY, &Standings::new(), &key(name))
}

fn candidates(ranking: &Ranking) -> Vec<&str> {
    ranking.candidates.iter().map(|rank| rank.node.as_str()).collect()
}

/// What a speaker reports of a Service.
fn status(transitions: u32) -> L2Status {
    L2Status {
        pool: "pool".into(),
        addresses: Vec::new(),
        interfaces: BTreeSet::new(),
        transitions,
        conflicts: Vec::new(),
    }
}

fn standing() -> Standing {
    Standing {
        liveness: Liveness::Alive,
        proxy_ready: true,
        refusals: Refusals::default(),
        links: None,
        dead_links: Default::default(),
    }
}

fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, number])
}

fn interface(number: u8) -> Interface {
    Interface {
        index: u32::from(number) + 1,
        mac: Some(mac(number)),
        up: true,
        carrier: true,
        broadcast: true,
        no_arp: false,
        loopback: false,
        controller: None,
        addresses: [&["fe80::1/64"], HOMES].concat().into_iter().map(|prefix| prefix.parse().unwrap()).collect(),
    }
}

/// Addresses of an interface in the subnet of each range that Services have addresses of.
const HOMES: &[&str] = &["192.0.2.251/24", "203.0.112.251/20", "2001:db8::fb/64"];

/// `eth1` to `ethN`; `eth1` has the address of node `k1`.
fn interfaces(count: u8) -> BTreeMap<InterfaceName, Interface> {
    let mut interfaces: BTreeMap<InterfaceName, Interface> =
        (1..=count).map(|number| (format!("eth{number}").as_str().into(), interface(number))).collect();
    if let Some(first) = interfaces.get_mut("eth1") {
        first.addresses.insert(0, "198.51.100.11/24".parse().unwrap());
    }
    interfaces
}

fn names(names: &[&str]) -> BTreeSet<InterfaceName> {
    names.iter().map(|&name| name.into()).collect()
}

/// The speaker of node `k1`, on a clock of its own.
struct Stand {
    speaker: Speaker,
    now: Instant,
    /// How many words and datagrams the others have made.
    sequence: u64,
}

impl Stand {
    fn new(data_path: DataPath) -> Self {
        Self::with(Config::new("k1".into(), data_path, 1))
    }

    #[allow(clippy::disallowed_methods, reason = "an instant cannot be had otherwise; only differences matter")]
    fn with(config: Config) -> Self {
        Self { speaker: Speaker::new(config), now: Instant::now(), sequence: 0 }
    }

    /// A speaker with one interface that has taken in `snapshot`.
    fn started(data_path: DataPath, snapshot: Snapshot) -> Self {
        let mut stand = Self::new(data_path);
        stand.step(Event::Snapshot(Arc::new(snapshot)));
        stand.step(Event::Interfaces(interfaces(1)));
        stand
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.speaker.step(self.now, event)
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Vec<Action> {
        self.step(Event::Snapshot(Arc::new(snapshot.clone())))
    }

    /// Lets time pass and keeps every deadline. Actions come with the time since this call.
    fn pass(&mut self, time: Duration) -> Vec<(Duration, Action)> {
        let begin = self.now;
        let end = begin + time;
        let mut actions = Vec::new();
        while let Some(deadline) = self.speaker.deadline().filter(|&deadline| deadline <= end) {
            assert!(deadline > self.now || actions.len() < 1_000_000, "the clock stands still");
            self.now = deadline.max(self.now);
            let now = self.now - begin;
            actions.extend(self.step(Event::Tick).into_iter().map(|action| (now, action)));
        }
        self.now = end;
        actions
    }

    /// Lets time pass while the named nodes are heard every interval.
    fn pass_hearing(&mut self, time: Duration, nodes: &[u8]) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while self.now < end {
            for &node in nodes {
                actions.extend(self.hear(node));
            }
            let step = INTERVAL.min(end - self.now);
            actions.extend(self.pass(step).into_iter().map(|(_, action)| action));
        }
        actions
    }

    /// What a node says, newer than all before.
    fn word(&mut self, node: u8) -> Word {
        self.sequence += 1;
        Word {
            node: format!("k{node}"),
            life: 1,
            version: self.sequence,
            proxy_ready: true,
            links: vec![wire_link("eth1")],
            greets: vec![(tag("k1"), 1)],
            ..Word::default()
        }
    }

    fn hear(&mut self, node: u8) -> Vec<Action> {
        let word = self.word(node);
        self.receive(node, word)
    }

    fn receive(&mut self, node: u8, word: Word) -> Vec<Action> {
        let datagram = self.datagram(word);
        self.arrive(node, datagram)
    }

    /// The next datagram of the word's speaker.
    fn datagram(&mut self, word: Word) -> Datagram {
        self.sequence += 1;
        let origin = Origin { node: word.node.clone(), life: word.life, counter: 2 * self.sequence + 1 };
        Datagram { origin, message: Message::Word(word) }
    }

    fn arrive(&mut self, node: u8, datagram: Datagram) -> Vec<Action> {
        let from = IpAddr::from([198, 51, 100, 10 + node]);
        self.step(Event::Heard(vec![Arrived { at: self.now, from, datagram: Box::new(datagram) }]))
    }

    fn owns(&self, address: &str) -> bool {
        self.speaker.owned().contains_key(&ip(address))
    }

    fn silence(&self, name: &str) -> Option<Silence> {
        let (_, result) = self.speaker.outcomes().find(|(service, _)| **service == key(name))?;
        result.err().cloned()
    }
}

fn only<T>(actions: Vec<(Duration, T)>) -> Vec<T> {
    actions.into_iter().map(|(_, action)| action).collect()
}

fn frames(actions: &[Action]) -> Vec<(&str, &Frame)> {
    let frames = actions.iter().filter_map(|action| match action {
        Action::Send { interface, frame } => Some((interface.as_str(), frame)),
        _ => None,
    });
    frames.collect()
}

/// What this node says to everybody, in order.
fn words(actions: &[Action]) -> Vec<&Word> {
    let words = actions.iter().filter_map(|action| match action {
        Action::Gossip { datagram: Datagram { message: Message::Word(word), .. }, .. } => Some(word),
        _ => None,
    });
    words.collect()
}

fn wire_link(name: &str) -> Link {
    Link { name: name.to_owned(), ipv4: true, ipv6: true, ..Link::default() }
}

fn tag(name: &str) -> NodeTag {
    NodeTag::of(name)
}

fn reports(actions: &[Action]) -> Vec<&Report> {
    let reports = actions.iter().filter_map(|action| match action {
        Action::Report(report) => Some(report),
        _ => None,
    });
    reports.collect()
}

fn events(actions: &[Action]) -> Vec<(Severity, &str, &str)> {
    let events = actions.iter().filter_map(|action| match action {
        Action::Write(Write::Event(event)) => Some((event.severity, event.reason.as_str(), event.message.as_str())),
        _ => None,
    });
    events.collect()
}

/// An address that `k1` wins against `k2` and `k3`.
const WON: &str = "192.0.2.10";
/// An address that `k2` wins, with `k1` next.
const SECOND: &str = "2001:db8::1";
