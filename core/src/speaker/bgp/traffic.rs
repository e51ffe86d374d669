//! What goes into [`Peers`](super::Peers) and what comes out of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    num::NonZeroU16,
};

use ferrogate_wire::{
    bfd::Diagnostic,
    bgp::{
        Message, MessageError,
        frame::{HEADER_LEN, MessageType},
    },
};

use super::{Loss, MAX_DYNAMIC, SessionStatus, Transport, Trouble, Wanted, Watched};
use crate::{
    model::{InterfaceName, PeerName, Prefix},
    speaker::bfd::sessions::Path,
};

/// A number for a connection, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection(pub(super) u64);

/// How many messages of each type went which way.
pub type Messages = BTreeMap<(Direction, MessageType), u64>;

/// Which way a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From this node.
    Sent,
    /// To it.
    Received,
}

impl Direction {
    /// One word for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
        }
    }
}

/// The type of a message.
pub(super) fn type_of(message: &Message) -> MessageType {
    match message {
        Message::Open(_) => MessageType::Open,
        Message::Update(_) => MessageType::Update,
        Message::Notification(_) => MessageType::Notification,
        Message::Keepalive => MessageType::Keepalive,
        Message::RouteRefresh { .. } => MessageType::RouteRefresh,
    }
}

/// The types of messages of ours that follow one another.
pub(super) fn types_of(mut bytes: &[u8]) -> Vec<MessageType> {
    let mut types = Vec::new();
    while let Some([.., high, low, kind]) = bytes.first_chunk::<HEADER_LEN>() {
        types.extend(MessageType::from_code(*kind));
        bytes = bytes.get(usize::from(u16::from_be_bytes([*high, *low])).max(HEADER_LEN)..).unwrap_or_default();
    }
    types
}

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
    pub(super) fn is_on_link(&self) -> bool {
        let is_link_local = matches!(self.remote, IpAddr::V6(remote) if remote.is_unicast_link_local());
        self.interface.is_some() && (is_link_local || self.addresses.iter().any(|own| own.contains(self.remote)))
    }
}

/// What there is to tell [`Peers`](super::Peers).
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
    /// Somebody has connected. [`Peers::accept`](super::Peers::accept) gives the number.
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
        /// Why the way has failed, if it was up and has, other than by intention.
        failure: Option<Diagnostic>,
    },
    /// The kernel has dropped segments because their signatures were wrong, or were there or missing without cause
    /// (RFC 2385). Whose they were it does not say.
    Mistrusted,
    /// The deadline has come.
    Tick,
}

/// What [`Peers`](super::Peers) want done, in the order given.
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
    Watch(BTreeMap<Path, Watched>),
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
    /// Its BGPPeer wants it signed in a way that this node does not have, or not here.
    Unsigned,
    /// Its BGPPeer has a password and stands for an interface: no listening socket can have its key.
    Keyless,
    /// Everybody was told that this speaker stops.
    Parted,
}

impl Rejection {
    /// One CamelCase word for the log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Stranger => "Stranger",
            Self::TooManyRouters => "TooManyRouters",
            Self::Unsigned => "Unsigned",
            Self::Keyless => "Keyless",
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
            Self::Unsigned => f.write_str(
                "the signature that its BGPPeer asks for cannot be checked on this node, as its status says",
            ),
            Self::Keyless => f.write_str(
                "its BGPPeer has a password and stands for an interface; only this node connects, and signs",
            ),
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
