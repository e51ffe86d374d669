#![allow(clippy::disallowed_methods, reason = "tests need some instant to start from")]

use std::{
    net::Ipv4Addr,
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
    ops::RangeInclusive,
};

use ferrogate_wire::{
    bfd::Diagnostic,
    bgp::{
        self, Asn, BgpIdentifier, Capabilities, ExtendedNextHop, Family, HoldTime, Message, Open, Refresh, Role,
        Update,
        frame::{Cutter, MAX_LEN, MessageType},
    },
};

use super::*;
use crate::{
    model::{
        community::Community,
        peer::{AoAlgorithm, Key, PeerAsn, Signature, TcpAo},
    },
    speaker::bfd,
};

mod closing;
mod collision;
mod messages;
mod others;
mod restart;
mod sent;
mod timers;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

const OURS: u32 = 64500;
const THEIRS: u32 = 64501;
/// Ours is lower.
const ROUTER: &str = "192.0.2.254";

fn asn(number: u32) -> Asn {
    Asn::new(number).unwrap()
}

fn identifier(address: &str) -> BgpIdentifier {
    BgpIdentifier::new(address.parse::<Ipv4Addr>().unwrap().to_bits()).unwrap()
}

fn hold(seconds: u16) -> HoldTime {
    HoldTime::from_seconds(seconds).unwrap()
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn port() -> NonZeroU16 {
    NonZeroU16::new(179).unwrap()
}

/// A router on the link, of another AS.
fn neighbor() -> Neighbor {
    Neighbor {
        remote: Remote::Address { address: ip(ROUTER), port: port() },
        local_asn: asn(OURS),
        peer_asn: PeerAsn::Fixed(asn(THEIRS)),
        identifier: identifier("192.0.2.1"),
        hold_time: hold(90),
        keepalive_time: 30 * SECOND,
        connect_retry_time: None,
        families: [Family::Ipv4Unicast].into(),
        graceful_restart: None,
        passive: false,
        role: None,
        max_prefixes: None,
        shutdown: None,
        bfd: None,
        transport: Transport { source: None, vrf: None, signature: None, ttl: Ttl::Direct },
    }
}

fn restarts() -> Option<GracefulRestart> {
    Some(GracefulRestart { restart_time_seconds: 120, forwarding_preserved: true })
}

fn bfd_wish() -> Option<BfdWish> {
    Some(BfdWish { settings: bfd::Settings::DEFAULT, minimum_ttl: NonZeroU8::MAX })
}

/// The router's OPEN.
fn open() -> Open {
    Open {
        asn: asn(THEIRS),
        hold_time: hold(90),
        identifier: identifier(ROUTER),
        capabilities: Capabilities {
            families: Some(Family::ALL.into()),
            route_refresh: true,
            four_octet_asn: true,
            ..Capabilities::default()
        },
    }
}

/// The same of a router that keeps routes through a restart; `notification` is N.
fn restarting_open(notification: bool) -> Open {
    let mut open = open();
    open.capabilities.graceful_restart = Some(bgp::GracefulRestart {
        restarting: false,
        notification,
        restart_time_seconds: 120,
        forwarding: [(Family::Ipv4Unicast, true)].into(),
    });
    open
}

fn ends() -> Ends {
    Ends {
        local: ip("192.0.2.1"),
        remote: ip(ROUTER),
        interface: Some("eth1".into()),
        addresses: vec![prefix("192.0.2.1/24")],
    }
}

fn part() -> Part {
    Part {
        peers: Arc::default(),
        local_pref: None,
        multi_exit_disc: None,
        prepend: 0,
        communities: Arc::default(),
        draining: false,
    }
}

fn route(part: Part) -> Arc<Route> {
    Arc::new(Route { parts: vec![part] })
}

/// One byte of the stream after another, as messages.
#[derive(Debug, Default)]
struct Wire {
    cutter: Cutter,
    heard: Vec<Heard>,
    is_closed: bool,
    is_stalled: bool,
}

#[derive(Clone, Debug)]
struct Heard {
    at: Instant,
    message: Message,
    body: Vec<u8>,
}

/// An engine, and the other side of everything that it does.
struct Bench {
    begin: Instant,
    now: Instant,
    peers: Peers,
    wanted: Wanted,
    wires: BTreeMap<Connection, Wire>,
    /// What was done and not looked at, apart from what went over connections.
    done: Vec<Action>,
    /// Attempts that nobody has answered.
    attempts: Vec<(Instant, Connection, Target)>,
    statuses: BTreeMap<(PeerName, Option<IpAddr>), SessionStatus>,
}

impl Bench {
    fn new<const N: usize>(neighbors: [(&str, Neighbor); N]) -> Self {
        let begin = Instant::now();
        let mut bench = Self {
            begin,
            now: begin,
            peers: Peers::new(begin, 7),
            wanted: Wanted { is_complete: true, ..Wanted::default() },
            wires: BTreeMap::new(),
            done: Vec::new(),
            attempts: Vec::new(),
            statuses: BTreeMap::new(),
        };
        bench.want(|wanted| {
            wanted.neighbors =
                neighbors.into_iter().map(|(name, neighbor)| (name.into(), Arc::new(neighbor))).collect();
        });
        bench
    }

    /// With one router, `tor`.
    fn with(neighbor: Neighbor) -> Self {
        Self::new([("tor", neighbor)])
    }

    fn step(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.peers.step(self.now, event) {
                match &action {
                    Action::Send { connection, bytes } => {
                        let wire = self.wires.entry(*connection).or_default();
                        assert!(!wire.is_closed, "nothing is sent to a closed connection");
                        let mut rest = &bytes[..];
                        while let Some(frame) = wire.cutter.feed(&mut rest).unwrap() {
                            let message = Message::decode(frame).unwrap();
                            wire.heard.push(Heard { at: self.now, message, body: frame.body.to_vec() });
                        }
                        if !wire.is_stalled {
                            events.retain(
                                |event| !matches!(event, Event::Written { connection: other } if other == connection),
                            );
                            events.push(Event::Written { connection: *connection });
                        }
                        continue;
                    }
                    Action::Close { connection } | Action::Reject { connection, .. } => {
                        self.attempts.retain(|(_, attempt, _)| attempt != connection);
                        if let Some(wire) = self.wires.get_mut(connection) {
                            wire.is_closed = true;
                        }
                    }
                    Action::Connect { connection, to, .. } => {
                        self.attempts.push((self.now, *connection, to.clone()));
                    }
                    Action::Status(status) => {
                        self.statuses.insert((status.peer.clone(), status.dynamic), *status.clone());
                    }
                    Action::Gone { peer, remote } => {
                        self.statuses.remove(&(peer.clone(), *remote));
                    }
                    _ => {}
                }
                self.done.push(action);
            }
        }
    }

    fn want(&mut self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.wanted);
        self.step(Event::Want(self.wanted.clone()));
    }

    fn configure(&mut self, peer: &str, change: impl FnOnce(&mut Neighbor)) {
        self.want(|wanted| {
            let mut neighbor = Neighbor::clone(&wanted.neighbors[peer]);
            change(&mut neighbor);
            wanted.neighbors.insert(peer.into(), Arc::new(neighbor));
        });
    }

    fn announce(&mut self, text: &str, part: Part) {
        self.want(|wanted| drop(wanted.routes.insert(prefix(text), route(part))));
    }

    fn withdraw(&mut self, text: &str) {
        self.want(|wanted| drop(wanted.routes.remove(&prefix(text))));
    }

    /// Lets time pass; the engine is never to be woken for nothing.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut woken = 0;
        while let Some(due) = self.peers.deadline().filter(|due| *due <= end) {
            woken = if due <= self.now { woken + 1 } else { 0 };
            assert!(woken < 3, "it spins");
            self.now = self.now.max(due);
            self.step(Event::Tick);
        }
        self.now = end;
    }

    /// The only attempt stands.
    fn connect(&mut self) -> Connection {
        let (_, connection, _) = self.attempts.pop().expect("it tries to connect");
        assert!(self.attempts.is_empty());
        self.wires.entry(connection).or_default();
        self.step(Event::Connected { connection, ends: ends() });
        connection
    }

    fn accept(&mut self, ends: Ends) -> Connection {
        let connection = self.peers.accept();
        self.wires.entry(connection).or_default();
        self.step(Event::Accepted { connection, vrf: None, ends });
        connection
    }

    fn say(&mut self, connection: Connection, message: Message) {
        self.step(Event::Received { connection, message: Ok(message) });
    }

    /// OPEN and KEEPALIVE of the router.
    fn greet(&mut self, connection: Connection, open: Open) {
        self.say(connection, Message::Open(open));
        self.say(connection, Message::Keepalive);
    }

    /// A connection of ours that is established; what was said until then is heard.
    fn establish(&mut self, open: Open) -> Connection {
        let connection = self.connect();
        self.greet(connection, open);
        assert_eq!(self.status().state, State::Established);
        self.hear(connection);
        connection
    }

    /// Established, with one router.
    fn up(neighbor: Neighbor, open: Open) -> (Self, Connection) {
        let mut bench = Self::with(neighbor);
        let connection = bench.establish(open);
        (bench, connection)
    }

    fn stall(&mut self, connection: Connection) {
        self.wires.get_mut(&connection).unwrap().is_stalled = true;
    }

    fn relieve(&mut self, connection: Connection) {
        self.wires.get_mut(&connection).unwrap().is_stalled = false;
        self.step(Event::Written { connection });
    }

    /// What came over a connection and was not heard yet.
    fn listen(&mut self, connection: Connection) -> Vec<Heard> {
        self.wires.get_mut(&connection).map(|wire| std::mem::take(&mut wire.heard)).unwrap_or_default()
    }

    fn hear(&mut self, connection: Connection) -> Vec<Message> {
        self.listen(connection).into_iter().map(|heard| heard.message).collect()
    }

    /// The last words over a connection, if it is closed.
    fn farewell(&mut self, connection: Connection) -> Option<Notification> {
        assert!(self.wires[&connection].is_closed, "it is closed");
        match self.hear(connection).pop() {
            Some(Message::Notification(notification)) => Some(notification),
            _ => None,
        }
    }

    fn is_open(&self, connection: Connection) -> bool {
        !self.wires[&connection].is_closed
    }

    fn status_of(&self, peer: &str) -> &SessionStatus {
        &self.statuses[&(peer.into(), None)]
    }

    /// How the only session stands, told or not.
    fn current(&self) -> SessionStatus {
        self.peers.statuses().next().unwrap()
    }

    fn status(&self) -> &SessionStatus {
        self.status_of("tor")
    }

    fn watched(&self) -> Option<&BTreeMap<Path, Watched>> {
        self.done.iter().rev().find_map(|action| match action {
            Action::Watch(watched) => Some(watched),
            _ => None,
        })
    }

    fn path(&self) -> Path {
        Path { remote: ip(ROUTER), local: ip("192.0.2.1"), interface: Some("eth1".into()), vrf: None }
    }
}

fn announces(prefixes: &[&str]) -> Message {
    let announced = prefixes.iter().map(|text| prefix(text)).collect();
    Message::Update(Update { announced, ..Update::default() })
}

fn withdraws(prefixes: &[&str]) -> Message {
    let withdrawn = prefixes.iter().map(|text| prefix(text)).collect();
    Message::Update(Update { withdrawn, ..Update::default() })
}

fn end_of_rib(family: Family) -> Message {
    Message::Update(Update { end_of_rib: Some(family), ..Update::default() })
}

fn refresh(kind: Refresh, family: Family) -> Message {
    Message::RouteRefresh { family: Some(family), kind }
}

/// Attributes of an UPDATE by type. MP_REACH_NLRI comes without its prefixes.
fn attributes(body: &[u8]) -> BTreeMap<u8, Vec<u8>> {
    let length = |at: usize| usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
    let from = 2 + length(0);
    let mut block = &body[from + 2..from + 2 + length(from)];
    let mut found = BTreeMap::new();
    while let [flags, code, rest @ ..] = block {
        let (length, rest) = match (flags & 0x10, rest) {
            (0, [length, rest @ ..]) => (usize::from(*length), rest),
            (_, [high, low, rest @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), rest),
            _ => panic!("an attribute is cut short"),
        };
        let value = if *code == 14 { &rest[..5 + usize::from(rest[3])] } else { &rest[..length] };
        assert!(found.insert(*code, value.to_vec()).is_none(), "no attribute comes twice");
        block = &rest[length..];
    }
    found
}

/// The attributes of the only route that was announced.
fn only_attributes(heard: &[Heard]) -> BTreeMap<u8, Vec<u8>> {
    let is_announcement =
        |heard: &&Heard| matches!(&heard.message, Message::Update(update) if !update.announced.is_empty());
    let mut announcements = heard.iter().filter(is_announcement);
    let only = announcements.next().expect("something was announced");
    assert!(announcements.next().is_none());
    attributes(&only.body)
}

const AS_PATH: u8 = 2;
const LOCAL_PREF: u8 = 5;
const COMMUNITIES: u8 = 8;
const MP_REACH_NLRI: u8 = 14;
const AS4_PATH: u8 = 17;
