//! A world on one virtual clock: the real machines of `core` for several nodes and a controller, a switch, clients,
//! and faults drawn from a seed.
//!
//! Nothing in here decides anything that `core` decides. A [`World`] moves frames, sealed gossip, BFD packets, snapshots
//! and writes, each with a delay, and breaks what it is told to break. After every step it checks what must *never* be
//! ([`Violation`]); [`World::check_settled`] checks what must be *in the end*, once faults are over.
//!
//! ```text
//!                  ┌──────────── truth (objects and statuses) ◄───────────┐ writes
//!        snapshots ▼                                          ▼ snapshots │
//!   Speaker of each node ◄── gossip and BFD ──► …         Controller ─────┘
//!        │  ▲
//!        ▼  │ frames
//!       switch ◄────► clients (a neighbour table each)
//! ```
//!
//! The same seed gives the same run, so a seed that fails is all there is to report ([`chaos::run`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_core::{
    controller::{self, Controller},
    model::{InterfaceName, NodeName},
    snapshot::Snapshot,
    speaker::{
        self, Action, DataPath, Frame, Interface, NextHop, Report, Speaker, Watch,
        bfd::{
            Change,
            sessions::{self, Arrival, Path, Sessions},
        },
    },
    write::Write,
};
use ferrogate_wire::{
    bfd,
    ethernet::Mac,
    gossip::{Datagram, Key, Keys},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

pub mod chaos;
pub mod crash;
pub mod facts;
mod link;
pub mod routers;
mod settled;

pub use link::{Client, Link, Packet};

/// Something that must never be, or that should be and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When, since the beginning of the world.
    pub at: Duration,
    /// What.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:?}: {}", self.at, self.what)
    }
}

impl std::error::Error for Violation {}

/// The interface of every node that leads to the switch.
pub const INTERFACE: &str = "eth1";

/// How long what the sessions of a node have to tell is under way to its speaker.
const REPORTED: Duration = Duration::from_micros(200);

/// A node: its speaker, its host, its way to the facts.
#[derive(Debug)]
pub struct NodeHost {
    name: NodeName,
    speaker: Option<Speaker>,
    /// Its deadline.
    due: Option<Duration>,
    bfd: Sessions,
    bfd_due: Option<Duration>,
    /// What its speaker wants watched.
    watch: Watch,
    starts: u64,
    is_stopping: bool,
    /// The addresses on the host.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether its proxy is ready, whatever the speaker knows.
    pub proxy_ready: bool,
    source_is_stuck: bool,
    /// What its speaker has written while nothing of that reached anybody; none while it does.
    held: Option<Vec<Write>>,
    /// The version of the truth its speaker goes by.
    version: u64,
    /// The same, not counting Leases.
    facts: u64,
    /// Gossip that can wait.
    unread: Vec<speaker::Arrived>,
    unreachable: BTreeSet<NodeName>,
    /// Conflicts its speaker reported.
    pub conflicts: usize,
}

/// The whole.
#[derive(Debug)]
pub struct World {
    rng: SmallRng,
    keys: Keys,
    begin: Instant,
    now: Duration,
    agenda: BTreeMap<(Duration, u64), Happening>,
    entries: u64,
    template: speaker::Config,
    truth: Snapshot,
    version: u64,
    /// Counts changes of the truth other than of Leases.
    facts: u64,
    /// When the last write of each process is carried out.
    written: BTreeMap<Option<usize>, Duration>,
    controller: Option<Controller>,
    controller_due: Option<Duration>,
    nodes: Vec<NodeHost>,
    /// The switch and everything that hangs on it.
    pub link: Link,
    violation: Option<Violation>,
    /// Nodes talk to each other on a network of their own, on which nothing breaks.
    has_management: bool,
    /// Nodes with an address in the subnets of the pool.
    at_home: BTreeSet<usize>,
    /// Pairs of nodes that both own an address, and since when.
    splits: BTreeMap<(usize, usize), Duration>,
    /// When something was last done to this world.
    calm_since: Duration,
    /// How many times a machine was stepped.
    pub steps: u64,
}

/// A machine that has a deadline.
#[derive(Clone, Copy, Debug)]
enum Machine {
    Speaker(usize),
    Bfd(usize),
    Controller,
}

/// What happens at a time of its own.
#[derive(Debug)]
enum Happening {
    Gossip {
        from: usize,
        to: usize,
        bytes: Arc<[u8]>,
    },
    Bfd {
        to: usize,
        arrival: Arrival,
        bytes: [u8; bfd::LEN],
    },
    /// What the sessions of a node had to tell the speaker that ran then.
    Seen {
        node: usize,
        start: u64,
        report: BfdReport,
    },
    Packet {
        to: link::Port,
        packet: Packet,
    },
    SnapshotForNode(usize),
    SnapshotForController,
    Write {
        by: Option<usize>,
        write: Write,
    },
    ProxySeen(usize),
}

/// What the sessions of a node have to tell its speaker.
#[derive(Debug)]
enum BfdReport {
    Changed { path: Path, change: Change },
    Standing { paths: Vec<Path> },
}

impl World {
    /// A world with these facts, in which every node, the controller and all clients are up. Node `kN` of the facts
    /// is node `N - 1`. Every speaker is set up like `template`, but for its name and life.
    pub fn new(seed: u64, template: speaker::Config, facts: Snapshot, clients: usize) -> Self {
        let names: Vec<NodeName> = facts.nodes.keys().cloned().collect();
        let mut world = Self {
            rng: SmallRng::seed_from_u64(seed),
            keys: Keys::new([Key::from([7; 32])]),
            begin: Instant::now(),
            now: Duration::ZERO,
            agenda: BTreeMap::new(),
            entries: 0,
            template,
            truth: facts,
            version: 1,
            facts: 1,
            written: BTreeMap::new(),
            controller: None,
            controller_due: None,
            nodes: Vec::new(),
            link: Link::new(names.len(), clients),
            violation: None,
            has_management: false,
            at_home: BTreeSet::new(),
            splits: BTreeMap::new(),
            calm_since: Duration::ZERO,
            steps: 0,
        };
        for name in names {
            world.nodes.push(NodeHost {
                name,
                speaker: None,
                due: None,
                bfd: Sessions::new(0),
                bfd_due: None,
                watch: Watch::default(),
                starts: 0,
                is_stopping: false,
                addresses: BTreeSet::new(),
                proxy_ready: true,
                source_is_stuck: false,
                held: None,
                version: 0,
                facts: 0,
                unread: Vec::new(),
                unreachable: BTreeSet::new(),
                conflicts: 0,
            });
        }
        for node in 0..world.nodes.len() {
            world.start(node);
        }
        world.start_controller();
        world
    }

    /// Has nodes talk to each other on a network of their own from now on.
    pub fn add_management(&mut self) {
        self.has_management = true;
        self.change(|facts| {
            for number in 0..facts.nodes.len() {
                if let Some(node) = facts.nodes.get_mut(&facts::node_name(number)) {
                    Arc::make_mut(node).internal_addresses = vec![facts::management_address(number)];
                }
            }
        });
    }

    /// Whether speakers watch each other by BFD.
    pub fn watches(&self) -> bool {
        self.template.bfd.is_some()
    }

    /// Where a node is spoken to.
    fn gossip_address(&self, node: usize) -> IpAddr {
        if self.has_management { facts::management_address(node) } else { facts::node_address(node) }
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// All nodes.
    pub fn nodes(&self) -> &[NodeHost] {
        &self.nodes
    }

    /// The facts as they are, whoever knows.
    pub fn truth(&self) -> &Snapshot {
        &self.truth
    }

    /// Changes the facts.
    pub fn change(&mut self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.truth);
        self.spread();
    }

    /// The nodes whose running speakers own this address.
    pub fn owners(&self, address: IpAddr) -> Vec<usize> {
        let owns =
            |node: &NodeHost| node.speaker.as_ref().is_some_and(|speaker| speaker.owned().contains_key(&address));
        self.nodes.iter().enumerate().filter(|(_, node)| owns(node)).map(|(index, _)| index).collect()
    }

    /// Runs until `end` or the first violation.
    ///
    /// # Errors
    /// The violation.
    pub fn run_until(&mut self, end: Duration) -> Result<(), Violation> {
        loop {
            if let Some(violation) = &self.violation {
                return Err(violation.clone());
            }
            let happening = self.agenda.first_key_value().map(|(&(at, _), _)| at);
            let machine = self.next_machine();
            match (happening, machine) {
                (Some(at), machine) if at <= end && machine.is_none_or(|(due, _)| at <= due) => {
                    self.now = self.now.max(at);
                    if let Some((_, happening)) = self.agenda.pop_first() {
                        self.happen(happening);
                    }
                }
                (_, Some((due, who))) if due <= end => {
                    self.now = self.now.max(due);
                    match who {
                        Machine::Speaker(node) => self.step(node, speaker::Event::Tick),
                        Machine::Bfd(node) => self.step_bfd(node, sessions::Event::Tick),
                        Machine::Controller => self.step_controller(controller::Event::Tick),
                    }
                }
                _ => {
                    self.now = end;
                    return Ok(());
                }
            }
        }
    }

    /// Runs for a time.
    ///
    /// # Errors
    /// The first violation.
    pub fn run(&mut self, time: Duration) -> Result<(), Violation> {
        self.run_until(self.now + time)
    }

    /// The machine that has something to do next.
    fn next_machine(&self) -> Option<(Duration, Machine)> {
        let nodes = self.nodes.iter().enumerate();
        let machines =
            nodes.flat_map(|(index, node)| [(node.due, Machine::Speaker(index)), (node.bfd_due, Machine::Bfd(index))]);
        let machines = machines.chain([(self.controller_due, Machine::Controller)]);
        machines.filter_map(|(due, machine)| Some((due?, machine))).min_by_key(|(due, _)| *due)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Gossip { from, to, bytes } => match Datagram::open(&bytes, &self.keys) {
                Ok(datagram) => {
                    let can_wait = datagram.origin.can_wait();
                    let (at, from, datagram) = (self.begin + self.now, self.gossip_address(from), Box::new(datagram));
                    self.nodes[to].unread.push(speaker::Arrived { at, from, datagram });
                    if !can_wait {
                        self.read(to);
                    }
                }
                Err(error) => self.blame(format!("a datagram cannot be opened: {error}")),
            },
            Happening::Bfd { to, arrival, bytes } => {
                let packet = bfd::decode(&bytes);
                self.step_bfd(to, sessions::Event::Received { arrival, packet });
            }
            Happening::Seen { node, start, report } if self.nodes[node].starts == start => {
                let watch = &self.nodes[node].watch;
                let events = match report {
                    BfdReport::Changed { path, change } => watch.told(&path, &change).into_iter().collect(),
                    BfdReport::Standing { paths } => watch.standing(&paths),
                };
                events.into_iter().for_each(|event| self.step(node, event));
            }
            Happening::Seen { .. } => {}
            Happening::Packet { to, packet } => self.arrive(to, packet),
            Happening::SnapshotForNode(node) => {
                // By the facts it has so far.
                self.read(node);
                let host = &mut self.nodes[node];
                if host.source_is_stuck || host.speaker.is_none() || host.version == self.version {
                    return;
                }
                (host.version, host.facts) = (self.version, self.facts);
                let snapshot = Snapshot { unreachable: host.unreachable.clone(), ..self.truth.clone() };
                self.step(node, speaker::Event::Snapshot(Arc::new(snapshot)));
            }
            Happening::SnapshotForController => {
                self.step_controller(controller::Event::Snapshot(Arc::new(self.truth.clone())));
            }
            Happening::Write { by, write } => self.carry_out(by, write),
            Happening::ProxySeen(node) => {
                let ready = self.nodes[node].proxy_ready;
                self.step(node, speaker::Event::ProxyReady(ready));
            }
        }
    }

    /// Has a speaker hear what has come for it.
    fn read(&mut self, node: usize) {
        let unread = std::mem::take(&mut self.nodes[node].unread);
        if !unread.is_empty() {
            self.step(node, speaker::Event::Heard(unread));
        }
    }

    fn step(&mut self, node: usize, event: speaker::Event) {
        let is_question = matches!(event, speaker::Event::Arp { .. } | speaker::Event::Ndp { .. });
        let now = self.begin + self.now;
        let deadline = self.nodes[node].speaker.as_ref().and_then(Speaker::deadline);
        if !is_question || deadline.is_some_and(|due| due <= now) {
            self.read(node);
        }
        let host = &mut self.nodes[node];
        let Some(speaker) = host.speaker.as_mut() else { return };
        self.steps += 1;
        let actions = speaker.step(now, event);
        // The timers of a process are as fine as that.
        let late = Duration::from_micros(self.rng.random_range(0..1000));
        host.due = speaker.deadline().map(|due| due.saturating_duration_since(self.begin) + late);
        for action in actions {
            self.perform(node, action);
        }
        self.check_safety(node);
        self.check_splits(node);
    }

    fn step_bfd(&mut self, node: usize, event: sessions::Event) {
        let now = self.begin + self.now;
        let host = &mut self.nodes[node];
        if host.speaker.is_none() {
            return;
        }
        self.steps += 1;
        let actions = host.bfd.step(now, event);
        host.bfd_due = host.bfd.deadline().map(|due| due.saturating_duration_since(self.begin));
        for action in actions {
            match action {
                sessions::Action::Send { path, packet } => self.send_bfd(node, path, packet.encode()),
                sessions::Action::Changed { path, change } => self.report(node, BfdReport::Changed { path, change }),
                sessions::Action::Standing { paths } => self.report(node, BfdReport::Standing { paths }),
                sessions::Action::Refused { path } => self.blame(format!("there is no room for {path:?}")),
                sessions::Action::Opened { .. }
                | sessions::Action::Closed { .. }
                | sessions::Action::Held { .. }
                | sessions::Action::Discarded { .. }
                | sessions::Action::Finished => {}
            }
        }
    }

    /// The speaker reads it once it has done what it is at.
    fn report(&mut self, node: usize, report: BfdReport) {
        let start = self.nodes[node].starts;
        self.plan(REPORTED, Happening::Seen { node, start, report });
    }

    fn send_bfd(&mut self, from: usize, path: Path, bytes: [u8; bfd::LEN]) {
        let Some(to) = (0..self.nodes.len()).find(|&node| facts::node_address(node) == path.remote) else {
            return self.blame(format!("{} watches {path:?}, which nobody has", self.nodes[from].name));
        };
        if self.link.carries_between_nodes(&mut self.rng, from, to) {
            let delay = self.link.delay(&mut self.rng);
            let path = Path { remote: path.local, local: path.remote, ..path };
            self.plan(delay, Happening::Bfd { to, arrival: Arrival { path, ttl: 255 }, bytes });
        }
    }

    fn step_controller(&mut self, event: controller::Event) {
        let now = self.begin + self.now;
        let Some(controller) = self.controller.as_mut() else { return };
        self.steps += 1;
        let writes = controller.step(now, event);
        self.controller_due = controller.deadline().map(|due| due.saturating_duration_since(self.begin));
        for write in writes {
            self.plan_write(None, write);
        }
    }

    fn perform(&mut self, node: usize, action: Action) {
        match action {
            Action::Send { interface, frame } => self.send_frame(node, &interface, frame),
            // The salt need not be fresh: no node is asked to keep a secret here.
            Action::Gossip { to, datagram } => match datagram.seal(&self.keys, &[0; 16]) {
                Ok(bytes) => self.send_gossip(node, &to, bytes.into()),
                Err(error) => self.blame(format!("a datagram cannot be written: {error}")),
            },
            // The world of the simulator has no kube-proxy, and no router.
            Action::CheckHealth { .. } | Action::Peer(_) | Action::FollowStrays(_) => {}
            Action::Watch(watch) => {
                self.nodes[node].watch = watch.clone();
                self.step_bfd(node, sessions::Event::Want(watch.wanted));
            }
            Action::Listen { interfaces } => self.link.nodes[node].listens = interfaces.contains(INTERFACE),
            Action::Hold { address } => {
                if !self.nodes[node].addresses.insert(address) {
                    self.blame(format!("{address} was put twice on the host of {}", self.nodes[node].name));
                }
            }
            Action::PassOn(next_hops) => self.check_passing_on(node, &next_hops),
            Action::Release { address } => {
                if !self.nodes[node].addresses.remove(&address) {
                    self.blame(format!(
                        "{address} was taken off the host of {} without being there",
                        self.nodes[node].name
                    ));
                }
            }
            Action::Join { group, .. } => drop(self.link.nodes[node].groups.insert(group)),
            Action::Leave { group, .. } => drop(self.link.nodes[node].groups.remove(&group)),
            Action::Write(write) => self.plan_write(Some(node), write),
            Action::Report(Report::Conflict { .. }) => self.nodes[node].conflicts += 1,
            Action::Report(_) => {}
            Action::Finished => self.kill(node),
        }
    }

    /// Only an owner passes on, and only to other nodes.
    fn check_passing_on(&mut self, node: usize, next_hops: &BTreeMap<IpAddr, NextHop>) {
        let host = &self.nodes[node];
        let owns =
            |address: &IpAddr| host.speaker.as_ref().is_some_and(|speaker| speaker.owned().contains_key(address));
        let is_other = |to| (0..self.nodes.len()).any(|other| other != node && facts::node_address(other) == to);
        let wrong = next_hops.iter().find(|(address, to)| !owns(address) || !is_other(to.address));
        if let Some((address, to)) = wrong {
            self.blame(format!("{} passes traffic for {address} on to {}", host.name, to.address));
        }
    }

    fn send_gossip(&mut self, from: usize, to: &[IpAddr], bytes: Arc<[u8]>) {
        for to in (0..self.nodes.len()).filter(|&node| to.contains(&self.gossip_address(node))).collect::<Vec<_>>() {
            let has_power = self.link.nodes[from].has_power && self.link.nodes[to].has_power;
            let is_carried = match self.has_management {
                true => has_power,
                false => self.link.carries_between_nodes(&mut self.rng, from, to),
            };
            if is_carried {
                let delay = match self.has_management {
                    true => link::USUAL,
                    false => self.link.delay(&mut self.rng),
                };
                self.plan(delay, Happening::Gossip { from, to, bytes: bytes.clone() });
            }
        }
    }

    fn carry_out(&mut self, by: Option<usize>, write: Write) {
        match write {
            Write::ServiceStatus { service, status, .. } => {
                let Some(found) = self.truth.services.get_mut(&service) else { return };
                Arc::make_mut(found).observed = status;
                self.check_sharing();
            }
            Write::PoolStatus { pool, status } => {
                let Some(found) = self.truth.pools.get_mut(pool.name.as_ref()) else { return };
                Arc::make_mut(found).observed = status;
            }
            Write::L2Status { service, node, status } => {
                let nodes = Arc::make_mut(self.truth.announced_by.entry(service.clone()).or_default());
                match status {
                    Some(status) => nodes.insert(node, status),
                    None => nodes.remove(&node),
                };
                if nodes.is_empty() {
                    self.truth.announced_by.remove(&service);
                }
            }
            Write::Lease { node, lease } => {
                self.truth.leases.insert(node, Arc::new(lease));
                return self.tell_everyone();
            }
            Write::Membership { unreachable, .. } => {
                if let Some(node) = by {
                    self.nodes[node].unreachable = unreachable;
                }
                return;
            }
            Write::IngressStatus { .. }
            | Write::EntryService { .. }
            | Write::EntrySlice { .. }
            | Write::Condition { .. }
            | Write::Configuration { .. }
            | Write::BgpStatus { .. }
            | Write::BgpSession { .. }
            | Write::Event(_) => return,
        }
        self.spread();
    }

    /// Something is about to be done to this world: what follows takes its time again.
    pub fn unsettle(&mut self) {
        self.calm_since = self.now;
    }

    /// Lets everyone know of new facts, sooner or later.
    fn spread(&mut self) {
        self.unsettle();
        self.facts += 1;
        self.tell_everyone();
    }

    fn tell_everyone(&mut self) {
        self.version += 1;
        for node in 0..self.nodes.len() {
            let delay = self.between(1, 5);
            self.plan(delay, Happening::SnapshotForNode(node));
        }
        let delay = self.between(1, 5);
        self.plan(delay, Happening::SnapshotForController);
    }

    fn plan(&mut self, delay: Duration, happening: Happening) {
        self.entries += 1;
        self.agenda.insert((self.now + delay, self.entries), happening);
    }

    /// Writes of one process are carried out in their order.
    fn plan_write(&mut self, by: Option<usize>, write: Write) {
        if let Some(held) = by.and_then(|node| self.nodes[node].held.as_mut()) {
            // A renewal is not tried again: the next one says more. A farewell is, but here everybody has to do without it.
            if !matches!(write, Write::Lease { .. }) {
                held.push(write);
            }
            return;
        }
        let earliest = self.written.get(&by).copied().unwrap_or_default();
        let at = (self.now + self.between(1, 4)).max(earliest);
        self.written.insert(by, at);
        self.plan(at - self.now, Happening::Write { by, write });
    }

    fn between(&mut self, first: u64, last: u64) -> Duration {
        Duration::from_micros(self.rng.random_range(first * 1000..=last * 1000))
    }

    fn blame(&mut self, what: String) {
        self.violation.get_or_insert(Violation { at: self.now, what });
    }

    /// What must never be, whatever is broken.
    fn check_safety(&mut self, node: usize) {
        let Some(own) = &self.nodes[node].speaker else { return };
        if own.owned().is_empty() {
            return;
        }
        if self.template.data_path == DataPath::Proxy
            && let Some(address) = own.owned().keys().find(|address| !self.nodes[node].addresses.contains(address))
        {
            self.blame(format!("{} owns {address} without having it on the host", self.nodes[node].name));
            return;
        }
        for (other, host) in self.nodes.iter().enumerate() {
            let Some(speaker) = host.speaker.as_ref().filter(|_| other != node) else { continue };
            let Some(address) = own.owned().keys().find(|address| speaker.owned().contains_key(address)) else {
                continue;
            };
            // Two owners are only allowed to two who know different things.
            if host.version == self.nodes[node].version && own.standings() == speaker.standings() {
                let what = format!("{} and {} know the same and both own {address}", self.nodes[node].name, host.name);
                self.violation.get_or_insert(Violation { at: self.now, what });
            }
        }
    }

    /// Two that see each other both own an address only for as long as it takes to find out and to settle.
    fn check_splits(&mut self, node: usize) {
        let Some(own) = &self.nodes[node].speaker else { return };
        let settled = self.template.lease_duration.unwrap_or(self.template.gossip_interval * 8);
        let limit = settled + Duration::from_millis(50);
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let pair = (node.min(other), node.max(other));
            let host = &self.nodes[other];
            let has_common =
                |speaker: &Speaker| own.owned().keys().any(|address| speaker.owned().contains_key(address));
            let is_split = host.speaker.as_ref().is_some_and(has_common)
                && host.facts == self.nodes[node].facts
                && !host.is_stopping
                && !self.nodes[node].is_stopping
                && self.link.is_clear()
                && self.see_each_other(node, other);
            if !is_split {
                self.splits.remove(&pair);
                continue;
            }
            let since = *self.splits.entry(pair).or_insert(self.now);
            if self.now - since.max(self.calm_since) > limit {
                let what =
                    format!("{} and {} see each other and go on owning one address", self.nodes[node].name, host.name);
                self.violation.get_or_insert(Violation { at: self.now, what });
            }
        }
    }

    /// Whether two nodes hear each other, or both hear and are heard by a third.
    fn see_each_other(&self, one: usize, other: usize) -> bool {
        let is_mutual = |one: usize, other: usize| self.link.hears(one, other) && self.link.hears(other, one);
        let third = |node: usize| self.runs(node) && is_mutual(node, one) && is_mutual(node, other);
        is_mutual(one, other) || (0..self.nodes.len()).any(third)
    }

    /// No address is ever given to two Services that may not share it.
    fn check_sharing(&mut self) {
        let services: Vec<_> = self.truth.services.values().cloned().collect();
        for (index, one) in services.iter().enumerate() {
            for other in &services[..index] {
                let shared = one.observed.addresses.iter().find(|address| other.observed.addresses.contains(address));
                if let Some(address) = shared.filter(|_| !facts::may_share(one, other)) {
                    self.blame(format!("{} and {} both have {address} and may not share it", one.key, other.key));
                }
            }
        }
    }
}

/// Processes, and what can be done to them.
impl World {
    /// Starts the speaker of a node, as a new process on a clean host.
    pub fn start(&mut self, node: usize) {
        self.unsettle();
        let interfaces = self.interfaces(node);
        let seed = self.rng.random();
        let host = &mut self.nodes[node];
        host.starts += 1;
        host.is_stopping = false;
        // What an earlier process left on the host is swept at the start.
        host.addresses.clear();
        let config =
            speaker::Config { node: host.name.clone(), incarnation: host.starts, seed, ..self.template.clone() };
        host.speaker = Some(Speaker::new(config));
        host.bfd = Sessions::new(seed);
        host.bfd_due = None;
        host.watch = Watch::default();
        (host.version, host.facts) = (0, 0);
        host.unread.clear();
        self.link.nodes[node].restart();
        self.step(node, speaker::Event::Interfaces(interfaces));
        let (source, proxy) = (self.between(1, 30), self.between(1, 60));
        self.plan(source, Happening::SnapshotForNode(node));
        self.plan(proxy, Happening::ProxySeen(node));
    }

    /// Ends the speaker of a node without a word.
    pub fn kill(&mut self, node: usize) {
        self.unsettle();
        let host = &mut self.nodes[node];
        (host.speaker, host.due, host.bfd_due) = (None, None, None);
        host.held.iter_mut().for_each(Vec::clear);
        self.link.nodes[node].restart();
        self.link.forgive_clients_of(node);
    }

    /// Asks the speaker of a node to stop.
    pub fn stop(&mut self, node: usize) {
        self.unsettle();
        self.nodes[node].is_stopping = true;
        self.step(node, speaker::Event::Shutdown);
    }

    /// Whether the speaker of a node is running.
    pub fn runs(&self, node: usize) -> bool {
        self.nodes[node].speaker.is_some()
    }

    /// Whether the speaker of a node was asked to stop and has not finished.
    pub fn is_stopping(&self, node: usize) -> bool {
        self.nodes[node].is_stopping && self.runs(node)
    }

    /// Whether the node as a whole can forward: it has power, whatever its speaker does.
    pub fn set_power(&mut self, node: usize, on: bool) {
        self.link.nodes[node].has_power = on;
        if on && !self.runs(node) {
            self.start(node);
        }
        if !on {
            self.kill(node);
            self.nodes[node].addresses.clear();
        }
    }

    /// Pulls or plugs the cable of a node.
    pub fn set_cable(&mut self, node: usize, plugged: bool) {
        if self.link.nodes[node].has_cable != plugged {
            self.unsettle();
            self.link.nodes[node].has_cable = plugged;
            let interfaces = self.interfaces(node);
            self.step(node, speaker::Event::Interfaces(interfaces));
        }
    }

    /// Makes a node's proxy ready or not; its speaker notices after a while.
    pub fn set_proxy(&mut self, node: usize, ready: bool) {
        self.unsettle();
        self.nodes[node].proxy_ready = ready;
        let delay = self.between(1, 20);
        self.plan(delay, Happening::ProxySeen(node));
    }

    /// Holds up a node's source of facts, or lets it go on.
    pub fn set_source(&mut self, node: usize, stuck: bool) {
        self.unsettle();
        self.nodes[node].source_is_stuck = stuck;
        if !stuck {
            let delay = self.between(1, 5);
            self.plan(delay, Happening::SnapshotForNode(node));
        }
    }

    /// Has nothing that a node's speaker writes reach anybody, or lets it go on.
    pub fn set_writes(&mut self, node: usize, held: bool) {
        self.unsettle();
        if held {
            self.nodes[node].held.get_or_insert_default();
        } else {
            for write in self.nodes[node].held.take().into_iter().flatten() {
                self.plan_write(Some(node), write);
            }
        }
    }

    /// Gives a node's interface addresses in the subnets of the pool, or takes them away.
    pub fn set_at_home(&mut self, node: usize, is_at_home: bool) {
        self.unsettle();
        if is_at_home {
            self.at_home.insert(node);
        } else {
            self.at_home.remove(&node);
        }
        self.step(node, speaker::Event::Interfaces(self.interfaces(node)));
    }

    /// Ends the controller, if it runs.
    pub fn kill_controller(&mut self) {
        self.controller = None;
        self.controller_due = None;
    }

    /// Starts the controller, if it does not run.
    pub fn start_controller(&mut self) {
        if self.controller.is_none() {
            self.controller = Some(Controller::new(controller::Config::default()));
            self.step_controller(controller::Event::Snapshot(Arc::new(self.truth.clone())));
            self.step_controller(controller::Event::Leads(true));
        }
    }

    fn interfaces(&self, node: usize) -> BTreeMap<InterfaceName, Interface> {
        let interface = facts::interface(node, self.link.nodes[node].has_cable, self.at_home.contains(&node));
        BTreeMap::from([(INTERFACE.into(), interface)])
    }

    fn send_frame(&mut self, node: usize, interface: &InterfaceName, frame: Frame) {
        let mac = facts::node_mac(node);
        let (source, sender, address): (Mac, Mac, IpAddr) = match &frame {
            Frame::Arp(arp) => (arp.source, arp.sender_mac, arp.sender.into()),
            Frame::Advertisement(advertisement) => (
                advertisement.source_mac,
                advertisement.target_link_layer.unwrap_or(advertisement.source_mac),
                advertisement.target.into(),
            ),
            Frame::Solicitation(solicitation) => {
                (solicitation.source_mac, solicitation.source_mac, solicitation.source.into())
            }
        };
        if source != mac || sender != mac || interface.as_str() != INTERFACE {
            self.blame(format!("{} sent a frame that is not its own: {frame:?}", self.nodes[node].name));
        }
        let speaks_for_it = !address.is_unspecified() && address != facts::node_address(node);
        if speaks_for_it && self.template.data_path == DataPath::Proxy && !self.nodes[node].addresses.contains(&address)
        {
            self.blame(format!("{} spoke for {address} without having it on the host", self.nodes[node].name));
        }
        self.transmit(link::Port::Node(node), Packet::from(frame));
    }
}
