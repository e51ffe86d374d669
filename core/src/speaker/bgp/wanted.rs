//! What a node wants to say to routers: to whom, how, and which routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
    sync::Arc,
    time::Duration,
};

use ferrogate_wire::bgp::{Asn, BgpIdentifier, Family, HoldTime, Role};
use imbl::OrdMap;

use crate::{
    model::{
        InterfaceName, PeerName, Prefix,
        community::Community,
        peer::{PeerAsn, Signature},
    },
    speaker::bfd,
};

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
    /// The longest wait between two attempts to connect; [`RETRY_MAX`](super::peer::RETRY_MAX) unless told.
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
    pub(super) fn speaks_ipv6(&self) -> bool {
        match &self.remote {
            Remote::Address { address, .. } => address.is_ipv6(),
            Remote::Interface { .. } => true,
            Remote::Prefix(prefix) => prefix.is_ipv6(),
        }
    }

    /// Whether it may be several hops away although it is of another AS.
    pub(super) fn is_far(&self) -> bool {
        self.peer_asn != PeerAsn::Internal
            && self.peer_asn != PeerAsn::Fixed(self.local_asn)
            && self.transport.ttl == Ttl::MultiHop
    }

    /// Whether a session may go on when this becomes `other`.
    pub(super) fn is_same_session(&self, other: &Self) -> bool {
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
    /// Whoever connects from this prefix, up to [`MAX_DYNAMIC`](super::MAX_DYNAMIC) of them.
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
    /// How segments are signed; `None` leaves them unsigned.
    pub signature: Option<Signature>,
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

/// A BFD session that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// How.
    pub wish: BfdWish,
    /// The VRF device of the peer; over one hop the path does not name it.
    pub vrf: Option<InterfaceName>,
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
