//! What is said to routers, and what is known of each session.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
    sync::Arc,
    time::Duration,
};

use ferrogate_wire::bgp::{Asn, BgpIdentifier, Family, HoldTime, Notification, Role};
use imbl::OrdMap;

use crate::{
    model::{
        InterfaceName, PeerName, Prefix,
        community::Community,
        peer::{Key, PeerAsn},
    },
    speaker::bfd,
};

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
    /// The longest wait between two attempts to connect; up to the engine unless told.
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
    /// Prefixes it has announced and not withdrawn; counted, never kept.
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
