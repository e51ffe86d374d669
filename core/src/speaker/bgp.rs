//! BGP (RFC 4271): everything this node says to routers, and when.
//!
//! [`Peers`] holds one machine for each router; each of those has its connections, at most two of them, and for the one that
//! is established what the router was told ([`rib_out`]). Routes are announced and never learned: what a peer sends is
//! counted and forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_wire::bgp::{Asn, BgpIdentifier, Family, HoldTime, Message, MessageError, Notification, Role};
use imbl::{OrdMap, ordmap::DiffItem};
use rand::{SeedableRng, rngs::SmallRng};

use self::peer::Peer;
use crate::{
    model::{
        InterfaceName, PeerName, Prefix,
        community::Community,
        peer::{Key, PeerAsn},
    },
    speaker::bfd::{self, sessions::Path},
};

mod peer;
mod rib_out;
mod session;
#[cfg(test)]
mod tests;

/// How long changes are gathered before they are sent, so that one that is taken back at once is not sent at all.
pub const COALESCE: Duration = Duration::from_millis(5);

/// For how long after its start a speaker may still not know everything it is to announce. Then it tells its peers that
/// it does all the same, and they forget what it has not repeated.
pub const DEFERRAL: Duration = Duration::from_secs(10);

/// How long routes stay with the lowest preference before they are withdrawn: other paths are in use by then.
pub const DRAIN_TIME: Duration = Duration::from_millis(600);

/// How long a session outlives the withdrawal of its routes: the time a router needs to take it in.
pub const WITHDRAW_TIME: Duration = Duration::from_millis(200);

/// How many routers one BGPPeer with a prefix can be.
pub const MAX_DYNAMIC: usize = 128;

/// Everything that is wanted at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The routers to speak with.
    pub neighbors: BTreeMap<PeerName, Arc<Neighbor>>,
    /// The routes to advertise.
    pub routes: Routes,
    /// Whether these are all routes that there will be. While a speaker starts it may have to ask first whether it can
    /// carry the others.
    pub is_complete: bool,
    /// Why this speaker stops, if it does.
    pub departing: Option<Departure>,
}

/// The routes of a node. Two that have grown from one another are compared in the time of what differs.
pub type Routes = OrdMap<Prefix, Arc<Route>>;

/// What is said of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// By each advertisement, in order; never empty. A peer gets the route that comes of all parts that are for it.
    pub parts: Vec<Part>,
}

/// What one advertisement says of a prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// To whom; empty means every peer.
    pub peers: Arc<BTreeSet<PeerName>>,
    /// LOCAL_PREF for peers of our AS; of several the highest.
    pub local_pref: Option<NonZeroU32>,
    /// MULTI_EXIT_DISC; of several the lowest.
    pub multi_exit_disc: Option<u32>,
    /// How many times more our AS number stands in the path; of several the most.
    pub prepend: u8,
    /// Communities; those of all parts are united.
    pub communities: Arc<BTreeSet<Community>>,
    /// It will go soon: if that is so of all parts, every other path is to be preferred (RFC 8326).
    pub draining: bool,
}

/// How one router is spoken with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// Where it is.
    pub remote: Remote,
    /// The AS we show it.
    pub local_asn: Asn,
    /// The AS it must be of.
    pub peer_asn: PeerAsn,
    /// Our BGP identifier.
    pub identifier: BgpIdentifier,
    /// The hold time we propose.
    pub hold_time: HoldTime,
    /// How often we say that we are there; no less often than a third of the hold time in use.
    pub keepalive_time: Duration,
    /// The longest wait between two attempts to connect; [`peer::RETRY_MAX`] unless told.
    pub connect_retry_time: Option<Duration>,
    /// The families to carry; never empty.
    pub families: BTreeSet<Family>,
    /// Ask it to keep our routes while this speaker restarts.
    pub graceful_restart: Option<GracefulRestart>,
    /// Wait until it connects.
    pub passive: bool,
    /// What we are to it (RFC 9234).
    pub role: Option<Role>,
    /// How many prefixes it may send at most.
    pub max_prefixes: Option<NonZeroU32>,
    /// It is switched off, and told this text.
    pub shutdown: Option<String>,
    /// How it is watched by BFD.
    pub bfd: Option<BfdWish>,
    /// What its connections are made of.
    pub transport: Transport,
}

impl Neighbor {
    /// Whether no router may be in between.
    pub fn is_direct(&self) -> bool {
        match self.transport.ttl {
            Ttl::Direct => true,
            Ttl::MultiHop => false,
            Ttl::Security { hops } => hops.get() == 1,
        }
    }

    /// Whether the session runs over IPv6.
    fn speaks_ipv6(&self) -> bool {
        match &self.remote {
            Remote::Address { address, .. } => address.is_ipv6(),
            Remote::Interface { .. } => true,
            Remote::Prefix(prefix) => prefix.is_ipv6(),
        }
    }

    /// Whether it may be several hops away although it is of another AS.
    fn is_far(&self) -> bool {
        self.peer_asn != PeerAsn::Internal
            && self.peer_asn != PeerAsn::Fixed(self.local_asn)
            && self.transport.ttl == Ttl::MultiHop
    }

    /// Whether a session may go on when this becomes `other`.
    fn is_same_session(&self, other: &Self) -> bool {
        let essence = |neighbor: &Self| Self {
            bfd: None,
            connect_retry_time: None,
            max_prefixes: None,
            shutdown: None,
            ..neighbor.clone()
        };
        essence(self) == essence(other)
    }
}

/// Where a router is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remote {
    /// At this address.
    Address {
        /// The address.
        address: IpAddr,
        /// Its TCP port.
        port: NonZeroU16,
    },
    /// Behind this interface, wherever its router advertisements come from.
    Interface {
        /// The interface.
        name: InterfaceName,
        /// Its TCP port.
        port: NonZeroU16,
    },
    /// Whoever connects from this prefix, up to [`MAX_DYNAMIC`] of them.
    Prefix(Prefix),
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { address, .. } => address.fmt(f),
            Self::Interface { name, .. } => write!(f, "interface {name}"),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

/// What connections are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Our address; `None` leaves it to the node's routing.
    pub source: Option<IpAddr>,
    /// The VRF device to connect from.
    pub vrf: Option<InterfaceName>,
    /// The key that segments are signed with (RFC 2385).
    pub password: Option<Key>,
    /// How far away the peer may be.
    pub ttl: Ttl,
}

/// How far away a peer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// On the link: our packets do not get farther.
    Direct,
    /// Anywhere.
    MultiHop,
    /// So many hops at most, and no farther can anybody be who pretends to be it (RFC 5082).
    Security {
        /// How many, 1 to 254.
        hops: NonZeroU8,
    },
}

/// How a peer is watched by BFD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BfdWish {
    /// What the session is told.
    pub settings: bfd::Settings,
    /// The lowest TTL or hop limit that is taken over several hops.
    pub minimum_ttl: NonZeroU8,
}

/// What a peer is asked to do while this speaker restarts (RFC 4724).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GracefulRestart {
    /// How long it may take, in seconds, 1 to 4095.
    pub restart_time_seconds: u16,
    /// Whether traffic gets through meanwhile (F).
    pub forwarding_preserved: bool,
}

/// Why a speaker stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It comes back at once: peers that can keep its routes.
    Restart,
    /// It does not: every route goes.
    Leave {
        /// What to tell people on the other side.
        text: String,
    },
}

/// A number for a connection, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection(u64);

/// The ends of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Our address.
    pub local: IpAddr,
    /// The peer's.
    pub remote: IpAddr,
    /// Our interface that has our address, if that is one of the link to the peer.
    pub interface: Option<InterfaceName>,
    /// All addresses of that interface with the lengths of their prefixes.
    pub addresses: Vec<Prefix>,
}

impl Ends {
    /// Whether the peer is a neighbour on the link.
    fn is_on_link(&self) -> bool {
        let is_link_local = matches!(self.remote, IpAddr::V6(remote) if remote.is_unicast_link_local());
        self.interface.is_some() && (is_link_local || self.addresses.iter().any(|own| own.contains(self.remote)))
    }
}

/// What there is to tell [`Peers`].
#[derive(Clone, Debug)]
pub enum Event {
    /// This is wanted from now on, and nothing else.
    Want(Wanted),
    /// A connection that was asked for stands.
    Connected {
        /// Which.
        connection: Connection,
        /// Its ends.
        ends: Ends,
    },
    /// A connection that was asked for does not.
    Refused {
        /// Which.
        connection: Connection,
        /// Why.
        trouble: Trouble,
    },
    /// Somebody has connected. [`Peers::accept`] gives the number.
    Accepted {
        /// Which.
        connection: Connection,
        /// The VRF device that it came by.
        vrf: Option<InterfaceName>,
        /// Its ends.
        ends: Ends,
    },
    /// A message came.
    Received {
        /// By which connection.
        connection: Connection,
        /// What it says.
        message: Result<Message, MessageError>,
    },
    /// Everything that was to be sent is on its way.
    Written {
        /// By which connection.
        connection: Connection,
    },
    /// The connection has ended without a word.
    Ended {
        /// Which.
        connection: Connection,
        /// How.
        loss: Loss,
    },
    /// A router has made itself known behind an interface.
    Found {
        /// The interface.
        interface: InterfaceName,
        /// Its link-local address.
        address: IpAddr,
    },
    /// What BFD sees of a peer has changed.
    Bfd {
        /// By which way.
        path: Path,
        /// The state now.
        is_up: bool,
        /// Whether it was up and the way has failed, other than by intention.
        is_failure: bool,
    },
    /// The kernel has dropped segments because their signatures were wrong, or were there or missing without cause
    /// (RFC 2385). Whose they were it does not say.
    Mistrusted,
    /// The deadline has come.
    Tick,
}

/// What [`Peers`] want done, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a connection.
    Connect {
        /// Its number.
        connection: Connection,
        /// Where to.
        to: Target,
        /// How.
        transport: Transport,
    },
    /// Take connections from exactly these; nobody means that nothing listens.
    Listen(Vec<Expected>),
    /// Look for routers behind exactly these interfaces, and make this node known there to those without a session.
    Discover(BTreeSet<InterfaceName>),
    /// Write this. One [`Event::Written`] follows when everything that was handed out is on its way.
    Send {
        /// To which connection.
        connection: Connection,
        /// What.
        bytes: Vec<u8>,
    },
    /// Close a connection as soon as everything is out, or give up making it. Nothing is told of it any more.
    Close {
        /// Which.
        connection: Connection,
    },
    /// Close a connection that somebody has made, without a word.
    Reject {
        /// Which.
        connection: Connection,
        /// Who has made it.
        remote: IpAddr,
        /// Why it is not wanted.
        reason: Rejection,
    },
    /// Have exactly these BFD sessions.
    Watch(BTreeMap<Path, BfdWish>),
    /// How a session stands has changed.
    Status(Box<SessionStatus>),
    /// A router is spoken with no more, and its status goes.
    Gone {
        /// By its object.
        peer: PeerName,
        /// Which of several, where the object stands for a prefix.
        remote: Option<IpAddr>,
    },
    /// After [`Wanted::departing`]: everybody was told. Nothing follows.
    Parted,
}

/// Why a connection that somebody has made is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejection {
    /// No BGPPeer of this node is there.
    Stranger,
    /// The BGPPeer stands for a prefix, and [`MAX_DYNAMIC`] routers of it are spoken with.
    TooManyRouters,
    /// Everybody was told that this speaker stops.
    Parted,
}

impl Rejection {
    /// One CamelCase word for the log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Stranger => "Stranger",
            Self::TooManyRouters => "TooManyRouters",
            Self::Parted => "Parted",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stranger => f.write_str("no BGPPeer of this node is there"),
            Self::TooManyRouters => {
                write!(f, "{MAX_DYNAMIC} routers of its BGPPeer are spoken with; use a longer prefix")
            }
            Self::Parted => f.write_str("this speaker stops"),
        }
    }
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address.
    pub address: IpAddr,
    /// The TCP port.
    pub port: NonZeroU16,
    /// By this interface and no other.
    pub interface: Option<InterfaceName>,
}

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// From where.
    pub from: Prefix,
    /// How.
    pub transport: Transport,
}

/// States of RFC 4271 §8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Nothing is tried for now.
    Idle,
    /// A connection is being made.
    Connect,
    /// The peer is to connect, or the next attempt is waited for.
    Active,
    /// Our OPEN is out.
    OpenSent,
    /// The peer's is as it should be.
    OpenConfirm,
    /// Routes go out.
    Established,
}

impl State {
    /// Every state, in the order of RFC 4271.
    pub const ALL: [Self; 6] =
        [Self::Idle, Self::Connect, Self::Active, Self::OpenSent, Self::OpenConfirm, Self::Established];

    /// The name RFC 4271 gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "Idle",
            Self::Connect => "Connect",
            Self::Active => "Active",
            Self::OpenSent => "OpenSent",
            Self::OpenConfirm => "OpenConfirm",
            Self::Established => "Established",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a connection or an attempt at one came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closing {
    /// This node closed it, and said so.
    Sent(Notification),
    /// The peer closed it, and said so.
    Received(Notification),
    /// It ended without a word.
    Lost(Loss),
}

/// How a connection ended without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// The peer closed it.
    Closed,
    /// It was reset.
    Reset,
    /// The peer acknowledged nothing any more.
    TimedOut,
    /// The peer took the connection and said nothing.
    Silent,
    /// The peer had lost it and made another one (RFC 4724 §4.2).
    Replaced,
    /// This speaker restarts.
    Restart,
}

impl Closing {
    /// One CamelCase word for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Sent(_) => "NotificationSent",
            Self::Received(_) => "NotificationReceived",
            Self::Lost(Loss::Closed) => "ConnectionClosed",
            Self::Lost(Loss::Reset) => "ConnectionReset",
            Self::Lost(Loss::TimedOut) => "ConnectionTimedOut",
            Self::Lost(Loss::Silent) => "PeerSilent",
            Self::Lost(Loss::Replaced) => "ConnectionReplaced",
            Self::Lost(Loss::Restart) => "SpeakerRestart",
        }
    }
}

impl fmt::Display for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent(notification) => write!(f, "this node sent {notification}"),
            Self::Received(notification) => write!(f, "the peer sent {notification}"),
            Self::Lost(Loss::Closed) => f.write_str("the peer closed the connection without a word"),
            Self::Lost(Loss::Reset) => f.write_str("the connection was reset"),
            Self::Lost(Loss::TimedOut) => f.write_str("the peer acknowledged nothing any more"),
            Self::Lost(Loss::Silent) => f.write_str("the peer took the connection and sent no OPEN"),
            Self::Lost(Loss::Replaced) => f.write_str("the peer made a new connection in its place"),
            Self::Lost(Loss::Restart) => f.write_str("this speaker restarts"),
        }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The peer refuses it.
    #[error("the peer refuses the connection; is BGP running there, and is this node one of its neighbours?")]
    ConnectionRefused,
    /// Nobody answers.
    #[error("nobody answers; look at the address, at firewalls, and whether the peer expects a password")]
    TimedOut,
    /// Nobody answers, and a password is in use.
    #[error("MD5 mismatch suspected: nobody answers what is signed with the password; compare it with the peer's")]
    Md5Mismatch,
    /// There is no way there.
    #[error("the peer cannot be reached from this node: {0}")]
    Unreachable(String),
    /// `spec.sourceAddress` is not there.
    #[error("this node does not have the source address {0}; correct spec.sourceAddress or limit the nodes")]
    NoSourceAddress(IpAddr),
    /// The interface is not there.
    #[error("this node has no interface {0}; correct the BGPPeer or limit the nodes")]
    NoInterface(InterfaceName),
    /// No router has made itself known.
    #[error("no router advertisement has come by interface {0}; is the peer set to send them there?")]
    NoRouter(InterfaceName),
    /// The kernel does not have it.
    #[error("this kernel does not support {0}; nothing is started without it")]
    Unsupported(&'static str),
    /// The process may not.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl Trouble {
    /// One CamelCase word for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ConnectionRefused => "ConnectionRefused",
            Self::TimedOut => "TimedOut",
            Self::Md5Mismatch => "MD5MismatchSuspected",
            Self::Unreachable(_) => "Unreachable",
            Self::NoSourceAddress(_) => "NoSourceAddress",
            Self::NoInterface(_) => "NoInterface",
            Self::NoRouter(_) => "NoRouterFound",
            Self::Unsupported(_) => "Unsupported",
            Self::NotPermitted(_) => "NotPermitted",
            Self::Other(_) => "ConnectFailed",
        }
    }
}

/// Why a peer does not get a route that is meant for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Withheld {
    /// The session does not carry the family.
    FamilyNotNegotiated,
    /// This node has no address of the family on the link, and the peer takes none of the other.
    NoNextHop,
    /// Communities and path do not fit a message.
    TooManyAttributes,
}

impl Withheld {
    /// One CamelCase word for conditions and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::FamilyNotNegotiated => "FamilyNotNegotiated",
            Self::NoNextHop => "NoNextHop",
            Self::TooManyAttributes => "TooManyAttributes",
        }
    }
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FamilyNotNegotiated => {
                "the session does not carry the family; set dualStackAddressFamily and enable it on the router"
            }
            Self::NoNextHop => {
                "this node has no address of the family towards the peer, and the peer takes no next hop of the other \
                 (RFC 8950)"
            }
            Self::TooManyAttributes => "communities and AS path do not fit one message; use fewer",
        })
    }
}

/// How a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// By its object.
    pub peer: PeerName,
    /// Where it is, as configured; for a prefix the address that connected.
    pub remote: String,
    /// The TCP port it is connected at; `None` where it is the one who connects.
    pub port: Option<NonZeroU16>,
    /// Its own address where the object stands for a prefix.
    pub dynamic: Option<IpAddr>,
    /// The state.
    pub state: State,
    /// Why it is not established, if that is known.
    pub trouble: Option<Trouble>,
    /// The AS the peer says it is of.
    pub remote_asn: Option<Asn>,
    /// The identifier it says it has.
    pub remote_identifier: Option<BgpIdentifier>,
    /// Our address.
    pub local_address: Option<IpAddr>,
    /// Its address.
    pub remote_address: Option<IpAddr>,
    /// The hold time in use; 0 is for ever.
    pub hold_time_seconds: Option<u16>,
    /// The families carried.
    pub families: BTreeSet<Family>,
    /// Routes the peer has of us.
    pub prefixes_sent: usize,
    /// Prefixes it has announced, less those it has withdrawn: they are counted and not kept, so that one which is announced
    /// anew counts again unless [`Neighbor::max_prefixes`] has them told apart.
    pub prefixes_received: u64,
    /// Routes meant for it that it does not get, and why.
    pub withheld: BTreeMap<Withheld, usize>,
    /// How often an established session has ended.
    pub flaps: u32,
    /// How the last connection ended.
    pub last_close: Option<Closing>,
    /// What BFD sees of it; `None` where it is not watched.
    pub bfd: Option<BfdState>,
}

/// What BFD sees of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BfdState {
    /// It was up and the way has failed, or it has not been up yet.
    Down,
    /// It answers.
    Up,
}

/// All peers of one node.
///
/// Whoever drives it calls [`step`](Self::step) with every event as it comes, and with [`Event::Tick`] when
/// [`deadline`](Self::deadline) has come, and carries out the actions in their order.
#[derive(Debug)]
pub struct Peers {
    dice: SmallRng,
    started_at: Instant,
    wanted: Wanted,
    peers: BTreeMap<PeerId, Peer>,
    /// Whose each connection is.
    owners: BTreeMap<Connection, PeerId>,
    next_connection: u64,
    /// Where routers were found.
    routers: BTreeMap<InterfaceName, IpAddr>,
    expected: Vec<Expected>,
    discovered: BTreeSet<InterfaceName>,
    /// How each peer is watched.
    watches: BTreeMap<PeerId, (Path, BfdWish)>,
    parted: bool,
}

/// A router: by its object, and where that stands for several, by its address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PeerId {
    name: PeerName,
    dynamic: Option<IpAddr>,
}

/// What the peers have in common.
struct Common<'a> {
    now: Instant,
    dice: &'a mut SmallRng,
    routes: &'a Routes,
    /// Whether it may be said that all routes were sent.
    is_complete: bool,
    /// Whether peers may take this for the return of an earlier life.
    is_restarted: bool,
    next_connection: &'a mut u64,
    routers: &'a BTreeMap<InterfaceName, IpAddr>,
}

impl Common<'_> {
    fn connection(&mut self) -> Connection {
        *self.next_connection += 1;
        Connection(*self.next_connection)
    }
}

impl Peers {
    /// No peer yet. The seed makes jitter.
    pub fn new(now: Instant, seed: u64) -> Self {
        Self {
            dice: SmallRng::seed_from_u64(seed),
            started_at: now,
            wanted: Wanted::default(),
            peers: BTreeMap::new(),
            owners: BTreeMap::new(),
            next_connection: 0,
            routers: BTreeMap::new(),
            expected: Vec::new(),
            discovered: BTreeSet::new(),
            watches: BTreeMap::new(),
            parted: false,
        }
    }

    /// The number of a connection that somebody has made to this node.
    pub fn accept(&mut self) -> Connection {
        self.next_connection += 1;
        Connection(self.next_connection)
    }

    /// When [`Event::Tick`] is wanted next.
    pub fn deadline(&self) -> Option<Instant> {
        if self.parted {
            return None;
        }
        let deferral = (!self.wanted.is_complete).then(|| self.started_at + DEFERRAL);
        let is_waited_for = self.peers.values().any(Peer::awaits_completion);
        self.peers.values().filter_map(Peer::deadline).chain(deferral.filter(|_| is_waited_for)).min()
    }

    /// How every session stands.
    pub fn statuses(&self) -> impl Iterator<Item = SessionStatus> {
        self.peers.iter().map(|(id, peer)| peer.status(id))
    }

    /// Whether it may be said that all routes were sent.
    fn is_complete(&self, now: Instant) -> bool {
        self.wanted.is_complete || self.started_at + DEFERRAL <= now
    }

    /// Takes in one event at `now` and returns what must be done about it, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.parted {
            match event {
                Event::Connected { connection, .. } => actions.push(Action::Close { connection }),
                Event::Accepted { connection, ends, .. } => {
                    actions.push(Action::Reject { connection, remote: ends.remote, reason: Rejection::Parted });
                }
                _ => {}
            }
            return actions;
        }
        let mut touched = BTreeSet::new();
        match event {
            Event::Want(wanted) => {
                self.want(now, wanted, &mut touched, &mut actions);
                self.expect(&mut actions);
            }
            Event::Accepted { connection, vrf, ends } => match self.peer_at(vrf.as_ref(), &ends) {
                Ok(id) => {
                    self.owners.insert(connection, id.clone());
                    self.with(now, &id, &mut actions, |peer, common, actions| {
                        peer.accepted(common, connection, ends, actions);
                    });
                    touched.insert(id);
                }
                Err(reason) => actions.push(Action::Reject { connection, remote: ends.remote, reason }),
            },
            Event::Found { interface, address } => {
                if self.routers.insert(interface.clone(), address) != Some(address) {
                    let behind = |peer: &Peer| matches!(&peer.neighbor().remote, Remote::Interface { name, .. } if *name == interface);
                    touched.extend(self.peers.iter().filter(|(_, peer)| behind(peer)).map(|(id, _)| id.clone()));
                    for id in touched.clone() {
                        self.with(now, &id, &mut actions, |peer, common, actions| peer.found(common, actions));
                    }
                }
            }
            Event::Bfd { path, is_up, is_failure } => {
                let watches = self.peers.iter().filter(|(_, peer)| peer.watch().is_some_and(|(own, _)| own == path));
                touched.extend(watches.map(|(id, _)| id.clone()));
                for id in touched.clone() {
                    self.with(now, &id, &mut actions, |peer, common, actions| {
                        peer.bfd(common, is_up, is_failure, actions);
                    });
                }
            }
            Event::Mistrusted => {
                touched.extend(self.peers.keys().cloned());
                self.peers.values_mut().for_each(Peer::mistrust);
            }
            Event::Tick => {
                let is_complete = self.is_complete(now);
                let due = self.peers.iter().filter(|(_, peer)| {
                    peer.deadline().is_some_and(|at| at <= now) || (is_complete && peer.awaits_completion())
                });
                touched.extend(due.map(|(id, _)| id.clone()));
                for id in touched.clone() {
                    self.with(now, &id, &mut actions, |peer, common, actions| peer.tick(common, actions));
                }
            }
            Event::Connected { connection, .. }
            | Event::Refused { connection, .. }
            | Event::Received { connection, .. }
            | Event::Written { connection }
            | Event::Ended { connection, .. } => {
                if let Some(id) = self.owners.get(&connection).cloned() {
                    self.with(now, &id, &mut actions, |peer, common, actions| match event {
                        Event::Connected { ends, .. } => peer.connected(common, connection, ends, actions),
                        Event::Refused { trouble, .. } => peer.refused(common, connection, trouble, actions),
                        Event::Received { message, .. } => peer.received(common, connection, message, actions),
                        Event::Ended { loss, .. } => peer.ended(common, connection, loss, actions),
                        _ => peer.written(common, connection, actions),
                    });
                    touched.insert(id);
                }
            }
        }
        self.settle(now, touched, &mut actions);
        actions
    }

    fn with(
        &mut self,
        now: Instant,
        id: &PeerId,
        actions: &mut Vec<Action>,
        act: impl FnOnce(&mut Peer, &mut Common<'_>, &mut Vec<Action>),
    ) {
        let is_complete = self.is_complete(now);
        let Some(peer) = self.peers.get_mut(id) else { return };
        let mut common = Common {
            now,
            dice: &mut self.dice,
            routes: &self.wanted.routes,
            is_complete,
            is_restarted: now < self.started_at + peer.restart_time(),
            next_connection: &mut self.next_connection,
            routers: &self.routers,
        };
        let before = actions.len();
        act(peer, &mut common, actions);
        for action in &actions[before..] {
            match action {
                Action::Connect { connection, .. } => _ = self.owners.insert(*connection, id.clone()),
                Action::Close { connection } => _ = self.owners.remove(connection),
                _ => {}
            }
        }
    }

    fn want(&mut self, now: Instant, wanted: Wanted, touched: &mut BTreeSet<PeerId>, actions: &mut Vec<Action>) {
        let before = std::mem::replace(&mut self.wanted, wanted);
        let changed: Vec<Prefix> = before
            .routes
            .diff(&self.wanted.routes)
            .map(|change| match change {
                DiffItem::Add(prefix, _) | DiffItem::Remove(prefix, _) => *prefix,
                DiffItem::Update { new: (prefix, _), .. } => *prefix,
            })
            .collect();
        let is_complete_now = self.wanted.is_complete && !before.is_complete;
        for id in self.peers.keys().cloned().collect::<Vec<_>>() {
            // An object that stood for one router and stands for several now, or the reverse, is another.
            let is_same_kind =
                |neighbor: &Arc<Neighbor>| matches!(neighbor.remote, Remote::Prefix(_)) == id.dynamic.is_some();
            match self.wanted.neighbors.get(&id.name).cloned().filter(is_same_kind) {
                Some(neighbor) => {
                    self.with(now, &id, actions, |peer, common, actions| {
                        peer.configure(common, neighbor, actions);
                        peer.touch(common, &changed, is_complete_now, actions);
                    });
                }
                None => self.with(now, &id, actions, |peer, common, actions| {
                    peer.retire(common, Notification::cease(ferrogate_wire::bgp::Cease::PeerDeconfigured), actions);
                }),
            }
            touched.insert(id);
        }
        // Nobody is spoken with who was not when the speaker began to stop.
        let running = if before.departing.is_none() { self.wanted.neighbors.clone() } else { BTreeMap::new() };
        for (name, neighbor) in running {
            let id = PeerId { name, dynamic: None };
            if matches!(neighbor.remote, Remote::Prefix(_)) || self.peers.contains_key(&id) {
                continue;
            }
            self.peers.insert(id.clone(), Peer::new(id.name.clone(), neighbor, None));
            self.with(now, &id, actions, |peer, common, actions| peer.start(common, actions));
            touched.insert(id);
        }
        if let Some(departure) = self.wanted.departing.clone().filter(|_| before.departing.is_none()) {
            for id in self.peers.keys().cloned().collect::<Vec<_>>() {
                self.with(now, &id, actions, |peer, common, actions| peer.depart(common, &departure, actions));
                touched.insert(id);
            }
        }
    }

    /// How whoever has connected is spoken with; `None` means that it is a stranger.
    pub fn transport_for(&self, vrf: Option<&InterfaceName>, ends: &Ends) -> Option<&Transport> {
        self.neighbor_at(vrf, ends).map(|(_, neighbor)| &neighbor.transport)
    }

    /// Who is at the other end of a connection that came by a VRF: an address before an interface before a prefix.
    fn neighbor_at(&self, vrf: Option<&InterfaceName>, ends: &Ends) -> Option<(&PeerName, &Arc<Neighbor>)> {
        let is_link_local = matches!(ends.remote, IpAddr::V6(remote) if remote.is_unicast_link_local());
        let precedence = |neighbor: &Neighbor| match &neighbor.remote {
            Remote::Address { address, .. } => (*address == ends.remote).then_some(0),
            Remote::Interface { name, .. } => (is_link_local && ends.interface.as_ref() == Some(name)).then_some(1),
            Remote::Prefix(prefix) => prefix.contains(ends.remote).then_some(2),
        };
        let here = self.wanted.neighbors.iter().filter(|(_, neighbor)| neighbor.transport.vrf.as_ref() == vrf);
        let found = here.filter_map(|entry| Some((precedence(entry.1)?, entry)));
        found.min_by_key(|(precedence, _)| *precedence).map(|(_, entry)| entry)
    }

    /// Whose peer it is that has connected.
    fn peer_at(&mut self, vrf: Option<&InterfaceName>, ends: &Ends) -> Result<PeerId, Rejection> {
        let (name, neighbor) = self.neighbor_at(vrf, ends).ok_or(Rejection::Stranger)?;
        let is_dynamic = matches!(neighbor.remote, Remote::Prefix(_));
        let (id, neighbor) =
            (PeerId { name: name.clone(), dynamic: is_dynamic.then_some(ends.remote) }, neighbor.clone());
        if is_dynamic && !self.peers.contains_key(&id) {
            if self.peers.keys().filter(|other| other.name == id.name).count() >= MAX_DYNAMIC {
                return Err(Rejection::TooManyRouters);
            }
            self.peers.insert(id.clone(), Peer::new(id.name.clone(), neighbor, id.dynamic));
        }
        Ok(id)
    }

    /// Tells what has changed around the peers that something happened to.
    fn settle(&mut self, now: Instant, touched: BTreeSet<PeerId>, actions: &mut Vec<Action>) {
        let mut is_watched_otherwise = false;
        for id in touched {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let is_over = peer.is_over();
            let watch = peer.watch().filter(|_| !is_over);
            if self.watches.get(&id) != watch.as_ref() {
                is_watched_otherwise = true;
                match watch {
                    Some(watch) => _ = self.watches.insert(id.clone(), watch),
                    None => _ = self.watches.remove(&id),
                }
            }
            if is_over {
                self.peers.remove(&id);
                self.owners.retain(|_, owner| *owner != id);
                actions.push(Action::Gone { peer: id.name, remote: id.dynamic });
            } else if let Some(status) = peer.news(now, &id) {
                actions.push(Action::Status(Box::new(status)));
            }
        }
        if is_watched_otherwise {
            // Whoever is told AdminDown is to be told before the connection ends.
            actions.insert(0, Action::Watch(self.watches.values().cloned().collect()));
        }
        if self.wanted.departing.is_some() && self.peers.values().all(Peer::has_parted) {
            self.parted = true;
            actions.push(Action::Parted);
        }
    }

    /// Says who may connect, and where routers are to be found.
    fn expect(&mut self, actions: &mut Vec<Action>) {
        let running = || self.wanted.neighbors.values().filter(|_| self.wanted.departing.is_none());
        let is_waited_for =
            |neighbor: &&Arc<Neighbor>| neighbor.passive || matches!(neighbor.remote, Remote::Prefix(_));
        let expected: Vec<Expected> = if running().any(|neighbor| is_waited_for(&neighbor)) {
            running().filter_map(|neighbor| expected(neighbor)).collect()
        } else {
            Vec::new()
        };
        if expected != self.expected {
            self.expected.clone_from(&expected);
            actions.push(Action::Listen(expected));
        }
        let discovered: BTreeSet<InterfaceName> = running()
            .filter_map(|neighbor| match &neighbor.remote {
                Remote::Interface { name, .. } => Some(name.clone()),
                _ => None,
            })
            .collect();
        if discovered != self.discovered {
            self.routers.retain(|interface, _| discovered.contains(interface));
            self.discovered.clone_from(&discovered);
            actions.push(Action::Discover(discovered));
        }
    }
}

/// From where a peer may connect.
fn expected(neighbor: &Neighbor) -> Option<Expected> {
    let from = match &neighbor.remote {
        Remote::Address { address, .. } => Prefix::from(*address),
        Remote::Prefix(prefix) => *prefix,
        Remote::Interface { .. } => return None,
    };
    Some(Expected { from, transport: neighbor.transport.clone() })
}
