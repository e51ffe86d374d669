//! Nodes that speak BGP with a router and watch it by BFD, on one virtual clock, and everything that can come between.
//!
//! Of the nodes the real machines run, [`bgp::Peers`] and [`Sessions`]; the router is a small model of its own that runs
//! BFD too. Connections take their time, each another, so that one may overtake the end of the one before it; they are
//! lost, or stand still while a cable is cut; both sides crash, with and without a word. After every step the router may
//! hold no route that its node has not wanted, or not for a long time; once the faults are over it holds just those that
//! are wanted.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    num::{NonZeroU8, NonZeroU16},
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_core::{
    model::peer::PeerAsn,
    speaker::{
        bfd::{
            Damping, Interval, Settings,
            sessions::{self, Arrival, Path, Sessions, Wish},
        },
        bgp::{
            self, Action, BfdWish, Connection, Departure, Ends, Event, GracefulRestart, Loss, Neighbor, Part, Peers,
            Remote, Route, Routes, State, Transport, Trouble, Ttl, Wanted,
        },
    },
};
use ferrogate_wire::{
    bfd as packets,
    bgp::{Asn, BgpIdentifier, Family, HoldTime, Message, Prefix, frame::Cutter},
};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};

use self::router::{Deed, Router};
use super::{Violation, chaos::Failure};

mod router;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// How long an attempt to connect is waited for.
const PATIENCE: Duration = SECOND;

/// The longest time between two attempts.
const RETRY: Duration = SECOND;

/// What the router's interface and that of every node are called.
const INTERFACE: &str = "eth1";

/// How the two sides are set up.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How many nodes there are.
    pub nodes: usize,
    /// The hold time that both sides propose; not 0.
    pub hold_time: HoldTime,
    /// The AS of the router.
    pub router_asn: Asn,
    /// Its identifier; that of a node is its address, 192.0.2.10 or above.
    pub router_identifier: BgpIdentifier,
    /// The AS of the nodes.
    pub node_asn: Asn,
    /// How long the return of a node may take, in seconds.
    pub restart_seconds: u16,
    /// Whether nodes ask for graceful restart.
    pub nodes_restart: bool,
    /// Whether the router helps with it, and whether a NOTIFICATION starts it as well (N).
    pub router_restart: Option<bool>,
    /// Whether the router connects too.
    pub router_connects: bool,
    /// Whether there is BFD.
    pub bfd: bool,
    /// How long a piece of a connection may take.
    pub slowest: Duration,
}

impl Terms {
    /// Two nodes with graceful restart and BFD, and a router of another AS that helps, with the lowest identifier.
    pub fn new() -> Self {
        let (asn, identifier) = ("the number is not 0", "the address is not 0");
        Self {
            nodes: 2,
            hold_time: HoldTime::from_seconds(3).expect("three seconds are allowed"),
            router_asn: Asn::new(64501).expect(asn),
            router_identifier: BgpIdentifier::new(u32::from(router_address())).expect(identifier),
            node_asn: Asn::new(64500).expect(asn),
            restart_seconds: 4,
            nodes_restart: true,
            router_restart: Some(true),
            router_connects: false,
            bfd: true,
            slowest: 5 * MS,
        }
    }

    fn hold(&self) -> Duration {
        Duration::from_secs(self.hold_time.seconds().into())
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self::new()
    }
}

fn router_address() -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 1)
}

fn node_address(node: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(192, 0, 2, 10).to_bits() + node as u32)
}

/// The prefix with this number.
pub fn prefix(number: u8) -> Prefix {
    IpAddr::from(Ipv4Addr::new(198, 51, 100, number)).into()
}

fn settings() -> Settings {
    let interval = Interval::nearest(200 * MS);
    let damping = Damping { initial: 100 * MS, maximum: 400 * MS, forgive_after: 2 * SECOND };
    let damping = Some(damping);
    Settings { desired_min_tx_interval: interval, required_min_rx_interval: interval, damping, ..Settings::DEFAULT }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Node,
    Router,
}

impl End {
    fn other(self) -> Self {
        match self {
            Self::Node => Self::Router,
            Self::Router => Self::Node,
        }
    }
}

/// What goes over a connection.
#[derive(Debug)]
enum Piece {
    Syn,
    Stands,
    Refused,
    Bytes(Vec<u8>),
    Closed(Loss),
}

/// A TCP connection, from the attempt on.
#[derive(Debug)]
struct Link {
    node: usize,
    maker: End,
    connection: Option<Connection>,
    /// What is under way to each end, in order.
    under_way: [VecDeque<Piece>; 2],
    /// When the last of it arrives.
    latest: [Duration; 2],
    /// Whether an end knows nothing of it any more.
    is_gone: [bool; 2],
    /// Of what the node is sent.
    cutter: Cutter,
    slowest: Duration,
}

#[derive(Debug)]
enum Happening {
    Piece { link: usize, to: End },
    GiveUp { link: usize },
    Written { link: usize },
    Bfd { node: usize, to: End, bytes: [u8; packets::LEN] },
}

/// A node.
#[derive(Debug)]
struct Node {
    life: u64,
    engine: Option<Peers>,
    bfd: Sessions,
    listens: bool,
    wanted: Wanted,
    /// When each route was last wanted with a MULTI_EXIT_DISC, in this life or an earlier one; those that are wanted now
    /// are not among them.
    past: BTreeMap<(Prefix, u32), Duration>,
    is_cut: bool,
    has_power: bool,
    /// Pieces that wait for the cable.
    held: Vec<(usize, End)>,
    is_stalled: bool,
    unwritten: Vec<usize>,
}

/// The whole.
#[derive(Debug)]
pub struct World {
    rng: SmallRng,
    begin: Instant,
    now: Duration,
    terms: Terms,
    agenda: BTreeMap<(Duration, u64), Happening>,
    entries: u64,
    nodes: Vec<Node>,
    router: Router,
    router_bfd: Sessions,
    router_refuses: bool,
    links: Vec<Link>,
    violation: Option<Violation>,
    /// How many times a machine was stepped.
    pub steps: u64,
    steps_at_once: u64,
}

impl World {
    /// All nodes run, and want nothing to be announced.
    pub fn new(seed: u64, terms: Terms) -> Self {
        let node = |_| Node {
            life: 0,
            engine: None,
            bfd: Sessions::new(0),
            listens: false,
            wanted: Wanted::default(),
            past: BTreeMap::new(),
            is_cut: false,
            has_power: true,
            held: Vec::new(),
            is_stalled: false,
            unwritten: Vec::new(),
        };
        let mut world = Self {
            rng: SmallRng::seed_from_u64(seed),
            begin: Instant::now(),
            now: Duration::ZERO,
            agenda: BTreeMap::new(),
            entries: 0,
            nodes: (0..terms.nodes).map(node).collect(),
            router: Router::new(terms.clone(), terms.nodes),
            router_bfd: Sessions::new(seed),
            router_refuses: false,
            links: Vec::new(),
            violation: None,
            steps: 0,
            steps_at_once: 0,
            terms,
        };
        world.start_router();
        for node in 0..world.nodes.len() {
            world.start(node, true);
        }
        world
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// What the router holds of a node, each route with its MULTI_EXIT_DISC.
    pub fn table(&self, node: usize) -> &BTreeMap<Prefix, u32> {
        &self.router.sides[node].table
    }

    /// Whether a node's speaker runs.
    pub fn runs(&self, node: usize) -> bool {
        self.nodes[node].engine.is_some()
    }

    fn routes(&self, node: usize) -> BTreeMap<Prefix, u32> {
        let wanted = self.nodes[node].wanted.routes.iter();
        wanted.map(|(prefix, route)| (*prefix, multi_exit_disc(route))).collect()
    }

    /// A node's speaker begins a life. It may not know at once that it knows all routes.
    pub fn start(&mut self, node: usize, is_complete: bool) {
        let terms = &self.terms;
        let neighbor = |remote: IpAddr, passive| Neighbor {
            remote: Remote::Address { address: remote, port: NonZeroU16::MIN },
            local_asn: terms.node_asn,
            peer_asn: PeerAsn::Fixed(terms.router_asn),
            identifier: BgpIdentifier::new(node_address(node).to_bits()).unwrap_or(terms.router_identifier),
            hold_time: terms.hold_time,
            keepalive_time: terms.hold() / 3,
            connect_retry_time: Some(RETRY),
            families: [Family::Ipv4Unicast].into(),
            graceful_restart: terms
                .nodes_restart
                .then_some(GracefulRestart { restart_time_seconds: terms.restart_seconds, forwarding_preserved: true }),
            passive,
            role: None,
            max_prefixes: None,
            shutdown: None,
            bfd: terms.bfd.then_some(BfdWish { settings: settings(), minimum_ttl: NonZeroU8::MAX }),
            transport: Transport { source: None, vrf: None, signature: None, ttl: Ttl::Direct },
        };
        let mut neighbors = BTreeMap::from([("router".into(), Arc::new(neighbor(router_address().into(), false)))]);
        if terms.router_connects {
            // Somebody is waited for, so that the node listens.
            let nobody = Ipv4Addr::new(192, 0, 2, 200).into();
            neighbors.insert("nobody".into(), Arc::new(neighbor(nobody, true)));
        }
        let host = &mut self.nodes[node];
        host.life += 1;
        let seed = host.life << 8 | node as u64;
        host.has_power = true;
        host.bfd = Sessions::new(seed);
        host.engine = Some(Peers::new(self.begin + self.now, seed));
        host.wanted = Wanted { neighbors, routes: host.wanted.routes.clone(), is_complete, departing: None };
        self.tell(node);
    }

    fn tell(&mut self, node: usize) {
        let wanted = self.nodes[node].wanted.clone();
        self.step(node, Event::Want(wanted));
    }

    /// A node wants a route announced with this MULTI_EXIT_DISC, or not any more.
    pub fn want(&mut self, node: usize, prefix: Prefix, multi_exit_disc: Option<u32>) {
        self.forget(node, prefix);
        let part = |multi_exit_disc| Part {
            peers: Arc::default(),
            local_pref: None,
            multi_exit_disc: Some(multi_exit_disc),
            prepend: 0,
            communities: Arc::default(),
            draining: false,
        };
        let routes: &mut Routes = &mut self.nodes[node].wanted.routes;
        match multi_exit_disc {
            Some(value) => _ = routes.insert(prefix, Arc::new(Route { parts: vec![part(value)] })),
            None => _ = routes.remove(&prefix),
        }
        self.tell(node);
    }

    /// Notes until when a route was wanted.
    fn forget(&mut self, node: usize, prefix: Prefix) {
        let now = self.now;
        let host = &mut self.nodes[node];
        if let Some(route) = host.wanted.routes.get(&prefix) {
            host.past.insert((prefix, multi_exit_disc(route)), now);
        }
    }

    /// A node knows that it knows all routes.
    pub fn complete(&mut self, node: usize) {
        self.nodes[node].wanted.is_complete = true;
        self.tell(node);
    }

    /// A node's speaker is to stop; it ends once it has parted.
    pub fn depart(&mut self, node: usize, departure: Departure) {
        self.nodes[node].wanted.departing = Some(departure);
        self.tell(node);
    }

    /// A node's speaker is gone at once. Its kernel closes the connections, unless the power is gone too.
    pub fn kill(&mut self, node: usize, with_power: bool) {
        self.nodes[node].engine = None;
        self.nodes[node].listens = false;
        self.nodes[node].has_power = !with_power;
        let ends: Vec<usize> = (0..self.links.len()).filter(|&link| self.links[link].node == node).collect();
        for link in ends {
            if !std::mem::replace(&mut self.links[link].is_gone[End::Node as usize], true) && !with_power {
                self.push(link, End::Router, Piece::Closed(Loss::Closed));
            }
        }
    }

    /// The router forgets everything, with or without closing its connections.
    pub fn restart_router(&mut self, silently: bool) {
        self.router = Router::new(self.terms.clone(), self.terms.nodes);
        for link in 0..self.links.len() {
            if !std::mem::replace(&mut self.links[link].is_gone[End::Router as usize], true) && !silently {
                self.push(link, End::Node, Piece::Closed(Loss::Closed));
            }
        }
        self.start_router();
    }

    fn start_router(&mut self) {
        self.router_bfd = Sessions::new(self.rng.random());
        let sessions = (0..self.terms.nodes)
            .filter(|_| self.terms.bfd)
            .map(|node| (router_path(node), Wish { settings: settings(), minimum_ttl: NonZeroU8::MAX }));
        let wanted = sessions::Wanted { sessions: sessions.collect(), permitted: BTreeMap::new() };
        self.step_router_bfd(sessions::Event::Want(wanted));
    }

    /// The router asks a node for all routes again.
    pub fn refresh(&mut self, node: usize) {
        let deeds = self.router.ask(node);
        self.carry_out(deeds);
    }

    /// The router takes no connections, or does again.
    pub fn set_refusing(&mut self, refuses: bool) {
        self.router_refuses = refuses;
    }

    /// Nothing gets from or to a node, or does again; what was under way waits.
    pub fn set_cut(&mut self, node: usize, is_cut: bool) {
        self.nodes[node].is_cut = is_cut;
        if !is_cut {
            for (link, to) in std::mem::take(&mut self.nodes[node].held) {
                self.plan(Duration::ZERO, Happening::Piece { link, to });
            }
        }
    }

    /// What a node writes does not get out of its buffers, or does again.
    pub fn set_stalled(&mut self, node: usize, is_stalled: bool) {
        self.nodes[node].is_stalled = is_stalled;
        if !is_stalled {
            for link in std::mem::take(&mut self.nodes[node].unwritten) {
                self.plan(Duration::ZERO, Happening::Written { link });
            }
        }
    }

    /// All connections of a node are reset.
    pub fn reset(&mut self, node: usize) {
        for link in 0..self.links.len() {
            if self.links[link].node == node && self.links[link].is_gone == [false; 2] {
                self.push(link, End::Node, Piece::Closed(Loss::Reset));
                self.push(link, End::Router, Piece::Closed(Loss::Reset));
            }
        }
    }

    /// How long pieces of connections made from now on may take.
    pub fn set_slowest(&mut self, slowest: Duration) {
        self.terms.slowest = slowest;
    }

    /// Runs for a time.
    ///
    /// # Errors
    /// The first violation.
    pub fn run(&mut self, time: Duration) -> Result<(), Violation> {
        let end = self.now + time;
        loop {
            if let Some(violation) = &self.violation {
                return Err(violation.clone());
            }
            let happening = self.agenda.keys().next().map(|(at, _)| *at);
            let (due, machine) = self.next_machine();
            match happening {
                Some(at) if at <= end && at <= due => {
                    self.advance(at);
                    if let Some((_, happening)) = self.agenda.pop_first() {
                        self.happen(happening);
                    }
                }
                _ if due <= end => {
                    self.advance(due);
                    self.wake(machine);
                }
                _ => {
                    self.now = end;
                    return Ok(());
                }
            }
        }
    }

    fn advance(&mut self, at: Duration) {
        self.steps_at_once = if at > self.now { 0 } else { self.steps_at_once + 1 };
        self.now = self.now.max(at);
        if self.steps_at_once > 10_000 {
            self.blame("time stands still: somebody wants to be woken for nothing".to_owned());
        }
    }

    /// Which machine has something to do next: two for each node, then the router and its BFD.
    fn next_machine(&self) -> (Duration, usize) {
        let since = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(self.begin));
        let mut machines = Vec::with_capacity(2 * self.nodes.len() + 2);
        for node in &self.nodes {
            let engine = node.engine.as_ref();
            machines.push(since(engine.and_then(Peers::deadline)));
            machines.push(since(engine.and_then(|_| node.bfd.deadline())));
        }
        machines.push(self.router.deadline());
        machines.push(since(self.router_bfd.deadline()));
        let due = machines.into_iter().enumerate().map(|(machine, due)| (due.unwrap_or(Duration::MAX), machine));
        due.min().unwrap_or((Duration::MAX, 0))
    }

    fn wake(&mut self, machine: usize) {
        match (machine.checked_sub(2 * self.nodes.len()), machine % 2) {
            (Some(0), _) => {
                let deeds = self.router.tick(self.now);
                self.carry_out(deeds);
            }
            (Some(_), _) => self.step_router_bfd(sessions::Event::Tick),
            (None, 0) => self.step(machine / 2, Event::Tick),
            (None, _) => self.step_bfd(machine / 2, sessions::Event::Tick),
        }
    }

    fn plan(&mut self, delay: Duration, happening: Happening) {
        self.entries += 1;
        self.agenda.insert((self.now + delay, self.entries), happening);
    }

    fn delay(&mut self, slowest: Duration) -> Duration {
        MS * self.rng.random_range(0..=u32::try_from(slowest.as_millis()).unwrap_or(u32::MAX))
    }

    /// Sends a piece on its way, behind those that are.
    fn push(&mut self, link: usize, to: End, piece: Piece) {
        let delay = self.delay(self.links[link].slowest);
        let state = &mut self.links[link];
        state.under_way[to as usize].push_back(piece);
        let latest = &mut state.latest[to as usize];
        *latest = (*latest).max(self.now + delay);
        let delay = *latest - self.now;
        self.plan(delay, Happening::Piece { link, to });
    }

    fn connect(&mut self, node: usize, maker: End, connection: Option<Connection>) {
        let link = self.links.len();
        let slowest = self.delay(self.terms.slowest);
        self.links.push(Link {
            node,
            maker,
            connection,
            under_way: [VecDeque::new(), VecDeque::new()],
            latest: [self.now; 2],
            is_gone: [false; 2],
            cutter: Cutter::default(),
            slowest,
        });
        self.push(link, maker.other(), Piece::Syn);
        self.plan(PATIENCE, Happening::GiveUp { link });
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Piece { link, to } => {
                let node = self.links[link].node;
                if self.nodes[node].is_cut {
                    self.nodes[node].held.push((link, to));
                } else if let Some(piece) = self.links[link].under_way[to as usize].pop_front() {
                    self.arrive(link, to, piece);
                }
            }
            Happening::GiveUp { link } => {
                let state = &self.links[link];
                // An engine that has the connection, or wants it no more, takes no notice.
                if let (End::Node, Some(connection), false) = (state.maker, state.connection, state.is_gone[0]) {
                    self.step(state.node, Event::Refused { connection, trouble: Trouble::TimedOut });
                }
            }
            Happening::Written { link } => {
                let state = &self.links[link];
                if let (Some(connection), false) = (state.connection, state.is_gone[0]) {
                    self.step(state.node, Event::Written { connection });
                }
            }
            Happening::Bfd { node, to, bytes } => {
                let packet = packets::decode(&bytes);
                let ttl = u8::MAX;
                match to {
                    End::Node => {
                        let arrival = Arrival { path: node_path(node), ttl };
                        self.step_bfd(node, sessions::Event::Received { arrival, packet });
                    }
                    End::Router => {
                        let arrival = Arrival { path: router_path(node), ttl };
                        self.step_router_bfd(sessions::Event::Received { arrival, packet });
                    }
                }
            }
        }
    }

    fn arrive(&mut self, link: usize, to: End, piece: Piece) {
        let (node, maker) = (self.links[link].node, self.links[link].maker);
        if self.links[link].is_gone[to as usize] {
            let answers = to == End::Router || self.nodes[node].has_power;
            if matches!(piece, Piece::Bytes(_)) && answers {
                self.push(link, to.other(), Piece::Closed(Loss::Reset));
            }
            return;
        }
        match (to, piece) {
            (End::Router, Piece::Syn) if self.router_refuses => self.push(link, End::Node, Piece::Refused),
            (End::Router, Piece::Syn) => {
                self.push(link, End::Node, Piece::Stands);
                let deeds = self.router.stands(self.now, link, node, false);
                self.carry_out(deeds);
            }
            (End::Node, Piece::Syn) => {
                let host = &mut self.nodes[node];
                if !host.listens {
                    self.links[link].is_gone = [true; 2];
                    return;
                }
                let Some(engine) = &mut host.engine else { return };
                let connection = engine.accept();
                self.links[link].connection = Some(connection);
                self.push(link, End::Router, Piece::Stands);
                self.step(node, Event::Accepted { connection, vrf: None, ends: ends(node) });
            }
            (End::Router, Piece::Stands) => {
                let deeds = self.router.stands(self.now, link, node, true);
                self.carry_out(deeds);
            }
            (End::Router, Piece::Bytes(bytes)) => {
                let deeds = self.router.takes(self.now, link, &bytes);
                self.carry_out(deeds);
            }
            (End::Router, Piece::Closed(_)) => {
                self.links[link].is_gone[End::Router as usize] = true;
                self.router.ended(self.now, link);
                self.check(node);
            }
            (End::Router, Piece::Refused) => {}
            (End::Node, piece) => {
                let Some(connection) = self.links[link].connection else { return };
                match piece {
                    Piece::Stands => self.step(node, Event::Connected { connection, ends: ends(node) }),
                    Piece::Refused => {
                        self.step(node, Event::Refused { connection, trouble: Trouble::ConnectionRefused });
                    }
                    Piece::Bytes(bytes) => self.hand_over(link, connection, &bytes),
                    // An attempt that is reset has failed.
                    Piece::Closed(loss) => {
                        self.links[link].is_gone[End::Node as usize] = true;
                        if maker == End::Node {
                            self.step(node, Event::Refused { connection, trouble: Trouble::ConnectionRefused });
                        }
                        self.step(node, Event::Ended { connection, loss });
                    }
                    Piece::Syn => {}
                }
            }
        }
    }

    /// Hands bytes to a node's engine, message by message, for as long as it keeps the connection.
    fn hand_over(&mut self, link: usize, connection: Connection, bytes: &[u8]) {
        let mut rest = bytes;
        let mut cutter = std::mem::take(&mut self.links[link].cutter);
        while !self.links[link].is_gone[End::Node as usize] {
            let message = match cutter.feed(&mut rest) {
                Ok(None) => break,
                Ok(Some(frame)) => Message::decode(frame),
                Err(error) => Err(error.into()),
            };
            self.step(self.links[link].node, Event::Received { connection, message });
        }
        self.links[link].cutter = cutter;
    }

    fn link_of(&self, node: usize, connection: Connection) -> Option<usize> {
        let is_it = |link: &Link| link.node == node && link.connection == Some(connection) && !link.is_gone[0];
        self.links.iter().rposition(is_it)
    }

    fn step(&mut self, node: usize, event: Event) {
        let now = self.begin + self.now;
        let Some(engine) = &mut self.nodes[node].engine else { return };
        self.steps += 1;
        for action in engine.step(now, event) {
            match action {
                Action::Connect { connection, .. } => self.connect(node, End::Node, Some(connection)),
                Action::Listen(expected) => self.nodes[node].listens = !expected.is_empty(),
                Action::Send { connection, bytes } => {
                    let Some(link) = self.link_of(node, connection) else { continue };
                    self.push(link, End::Router, Piece::Bytes(bytes));
                    if self.nodes[node].is_stalled {
                        self.nodes[node].unwritten.push(link);
                    } else {
                        let delay = self.delay(5 * MS);
                        self.plan(delay, Happening::Written { link });
                    }
                }
                Action::Close { connection } | Action::Reject { connection, .. } => {
                    if let Some(link) = self.link_of(node, connection) {
                        self.links[link].is_gone[End::Node as usize] = true;
                        self.push(link, End::Router, Piece::Closed(Loss::Closed));
                    }
                }
                Action::Watch(watched) => {
                    let wish = |wish: BfdWish| Wish { settings: wish.settings, minimum_ttl: wish.minimum_ttl };
                    let sessions = watched.into_iter().map(|(path, watched)| (path, wish(watched.wish))).collect();
                    let wanted = sessions::Wanted { sessions, permitted: BTreeMap::new() };
                    self.step_bfd(node, sessions::Event::Want(wanted));
                }
                Action::Parted => self.kill(node, false),
                Action::Discover(_) | Action::Status(_) | Action::Gone { .. } => {}
            }
        }
    }

    fn step_bfd(&mut self, node: usize, event: sessions::Event) {
        let now = self.begin + self.now;
        if self.nodes[node].engine.is_none() {
            return;
        }
        self.steps += 1;
        for action in self.nodes[node].bfd.step(now, event) {
            match action {
                sessions::Action::Send { packet, .. } => self.send_bfd(node, End::Router, packet.encode()),
                sessions::Action::Changed { path, change } => {
                    let is_up = change.to == packets::State::Up;
                    self.step(node, Event::Bfd { path, is_up, failure: change.failure() });
                }
                sessions::Action::Standing { paths } => {
                    for path in paths {
                        self.step(node, Event::Bfd { path, is_up: true, failure: None });
                    }
                }
                _ => {}
            }
        }
    }

    fn step_router_bfd(&mut self, event: sessions::Event) {
        let now = self.begin + self.now;
        self.steps += 1;
        for action in self.router_bfd.step(now, event) {
            let node_of = |path: &Path| (0..self.terms.nodes).find(|&node| path.remote == node_address(node));
            match action {
                sessions::Action::Send { path, packet } => {
                    if let Some(node) = node_of(&path) {
                        self.send_bfd(node, End::Node, packet.encode());
                    }
                }
                sessions::Action::Changed { path, change } if change.is_failure() => {
                    if let Some(node) = node_of(&path) {
                        let deeds = self.router.fails(self.now, node);
                        self.carry_out(deeds);
                    }
                }
                _ => {}
            }
        }
    }

    fn send_bfd(&mut self, node: usize, to: End, bytes: [u8; packets::LEN]) {
        if !self.nodes[node].is_cut {
            let delay = self.delay(5 * MS);
            self.plan(delay, Happening::Bfd { node, to, bytes });
        }
    }

    fn carry_out(&mut self, deeds: Vec<Deed>) {
        for deed in deeds {
            match deed {
                Deed::Send { link, bytes } => self.push(link, End::Node, Piece::Bytes(bytes)),
                Deed::Close { link } => {
                    self.links[link].is_gone[End::Router as usize] = true;
                    self.push(link, End::Node, Piece::Closed(Loss::Closed));
                }
                Deed::Connect { node } => self.connect(node, End::Router, None),
            }
        }
        for node in 0..self.nodes.len() {
            self.check(node);
        }
    }

    fn blame(&mut self, what: String) {
        let at = self.now;
        self.violation.get_or_insert(Violation { at, what });
    }

    /// A route that the router holds is wanted, or was not long ago.
    fn check(&mut self, node: usize) {
        if let Some(fault) = self.router.fault.take() {
            self.blame(fault);
        }
        let host = &self.nodes[node];
        let restart_time = Duration::from_secs(self.terms.restart_seconds.into());
        // The session may be lost, found to be and come back, and only then it is told that nothing else will come.
        let longest = self.terms.hold() + restart_time + bgp::DEFERRAL;
        let is_fault = |(prefix, held): (&Prefix, &u32)| {
            if host.wanted.routes.get(prefix).is_some_and(|route| multi_exit_disc(route) == *held) {
                return None;
            }
            match host.past.get(&(*prefix, *held)) {
                None => Some(format!("{prefix} with {held} is held of node {node}, which never wanted it")),
                Some(at) if *at + longest < self.now => {
                    Some(format!("{prefix} with {held} is held of node {node}, which wanted it last after {at:?}"))
                }
                Some(_) => None,
            }
        };
        if let Some(fault) = self.router.sides[node].table.iter().find_map(is_fault) {
            self.blame(fault);
        }
    }

    /// Everything is as it should be: every session stands, and the router holds what is wanted and nothing else.
    ///
    /// # Errors
    /// What is not.
    pub fn check_settled(&self) -> Result<(), Violation> {
        let violation = |what| Err(Violation { at: self.now, what });
        for (node, host) in self.nodes.iter().enumerate() {
            let (held, wanted) = (self.table(node), self.routes(node));
            let Some(engine) = &host.engine else { return violation(format!("node {node} does not run")) };
            let status = engine.statuses().find(|status| status.peer.as_str() == "router");
            match status {
                Some(status) if status.state == State::Established && self.router.is_established(node) => {
                    if status.prefixes_sent != wanted.len() {
                        let sent = status.prefixes_sent;
                        return violation(format!("node {node} says it sent {sent} routes of {}", wanted.len()));
                    }
                }
                status => return violation(format!("the session of node {node} does not stand: {status:?}")),
            }
            if *held != wanted {
                return violation(format!("the router holds {held:?} of node {node}, which wants {wanted:?}"));
            }
        }
        Ok(())
    }
}

fn multi_exit_disc(route: &Route) -> u32 {
    route.parts.first().and_then(|part| part.multi_exit_disc).unwrap_or_default()
}

fn ends(node: usize) -> Ends {
    let local = node_address(node).into();
    let addresses = Prefix::new(local, 24).into_iter().collect();
    Ends { local, remote: router_address().into(), interface: Some(INTERFACE.into()), addresses }
}

fn node_path(node: usize) -> Path {
    let (remote, local) = (router_address().into(), node_address(node).into());
    Path { remote, local, interface: Some(INTERFACE.into()), vrf: None }
}

fn router_path(node: usize) -> Path {
    let path = node_path(node);
    Path { remote: path.local, local: path.remote, ..path }
}

/// Runs a seed to its end. Returns how many steps the machines took.
///
/// # Errors
/// What went wrong.
pub fn run(seed: u64) -> Result<u64, Box<Failure>> {
    let mut chaos = Chaos::new(seed);
    match chaos.run() {
        Ok(()) => Ok(chaos.world.steps),
        Err(violation) => Err(Box::new(Failure { seed, violation, history: chaos.history })),
    }
}

struct Chaos {
    /// Apart from the world's own, so that what is done does not depend on what it leads to.
    rng: SmallRng,
    world: World,
    history: Vec<String>,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let own = Terms::new().router_identifier;
        let terms = Terms {
            nodes: rng.random_range(1..=2),
            nodes_restart: rng.random_bool(0.7),
            router_restart: *[None, Some(false), Some(true), Some(true)].choose(&mut rng).unwrap_or(&None),
            router_connects: rng.random(),
            bfd: rng.random(),
            slowest: *[2, 50, 400].choose(&mut rng).unwrap_or(&2) * MS,
            // The lowest of all or the highest.
            router_identifier: BgpIdentifier::new(u32::MAX).filter(|_| rng.random()).unwrap_or(own),
            ..Terms::new()
        };
        let history = vec![format!("{terms:?}")];
        let world = World::new(rng.random(), terms);
        Self { rng, world, history }
    }

    fn run(&mut self) -> Result<(), Violation> {
        let end = self.world.now() + self.rng.random_range(1000..12_000) * MS;
        while self.world.now() < end {
            self.disturb();
            let longest = if self.rng.random() { 20 } else { 600 };
            let pause = self.rng.random_range(0..longest) * MS;
            self.world.run(pause)?;
        }
        self.mend();
        self.world.run(self.settling())?;
        self.world.check_settled()
    }

    /// A side that has sent its OPEN to one that forgot the connection waits ten seconds for an answer; then the next
    /// attempt is made; the router lets go of a session that is dead after the hold time.
    fn settling(&self) -> Duration {
        10 * SECOND + self.world.terms.hold() + PATIENCE + 2 * RETRY + SECOND
    }

    fn note(&mut self, what: String) {
        self.history.push(format!("{:?} {what}", self.world.now()));
    }

    fn disturb(&mut self) {
        let node = self.rng.random_range(0..self.world.nodes.len());
        let flag: bool = self.rng.random();
        match self.rng.random_range(0..24) {
            0 if self.world.runs(node) => {
                self.note(format!("the speaker of node {node} is killed"));
                self.world.kill(node, false);
            }
            1 if self.world.runs(node) => {
                self.note(format!("node {node} loses power"));
                self.world.kill(node, true);
            }
            2 if self.world.runs(node) => {
                let departure = if flag { Departure::Restart } else { Departure::Leave { text: "drained".to_owned() } };
                self.note(format!("node {node} is to stop: {departure:?}"));
                self.world.depart(node, departure);
            }
            0..=5 if !self.world.runs(node) => {
                self.note(format!("the speaker of node {node} starts, knowing everything: {flag}"));
                self.world.start(node, flag);
            }
            3 | 4 => {
                self.note(format!("node {node} knows everything"));
                self.world.complete(node);
            }
            5 => {
                self.note(format!("the router restarts, silently: {flag}"));
                self.world.restart_router(flag);
            }
            6 => {
                self.note(format!("the cable of node {node} is cut: {flag}"));
                self.world.set_cut(node, flag);
            }
            7 => {
                self.note(format!("the connections of node {node} are reset"));
                self.world.reset(node);
            }
            8 => {
                self.note(format!("what node {node} writes does not get out: {flag}"));
                self.world.set_stalled(node, flag);
            }
            9 => {
                self.note(format!("the router refuses connections: {flag}"));
                self.world.set_refusing(flag);
            }
            10 => {
                let slowest = *[2, 50, 400].choose(&mut self.rng).unwrap_or(&2) * MS;
                self.note(format!("new connections take up to {slowest:?}"));
                self.world.set_slowest(slowest);
            }
            11 => {
                self.note(format!("the router wants all routes of node {node} again"));
                self.world.refresh(node);
            }
            _ => {
                let prefix = prefix(self.rng.random_range(0..6));
                let value = flag.then(|| self.rng.random_range(0..3));
                self.note(format!("node {node} wants {prefix} with {value:?}"));
                self.world.want(node, prefix, value);
            }
        }
    }

    /// Ends every fault. What is wanted stays as it is.
    fn mend(&mut self) {
        self.note("everything is mended".to_owned());
        self.world.set_refusing(false);
        self.world.set_slowest(5 * MS);
        for node in 0..self.world.nodes.len() {
            self.world.set_cut(node, false);
            self.world.set_stalled(node, false);
            if self.world.nodes[node].wanted.departing.is_some() {
                self.world.kill(node, false);
            }
            if !self.world.runs(node) {
                self.world.start(node, false);
            }
            self.world.complete(node);
        }
    }
}
