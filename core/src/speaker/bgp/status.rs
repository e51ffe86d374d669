//! How sessions stand, and every reason why one does not or a route is not sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    num::NonZeroU16,
};

use ferrogate_wire::{
    bfd::Diagnostic,
    bgp::{Asn, BgpIdentifier, Family, Notification},
};

use crate::model::{
    InterfaceName, PeerName,
    peer::{AoAlgorithm, Signature},
};

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
    /// Nobody answers, and TCP-AO is in use.
    #[error(
        "TCP-AO mismatch suspected: nobody answers what is signed with the password; compare it, sendID, recvID and \
         algorithm with the peer's"
    )]
    AoMismatch,
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
    /// The kernel does not have TCP-AO, or not with this algorithm.
    #[error(
        "this kernel does not support TCP-AO with {0}, which spec.tcpAO asks for, and no session is started without it; \
         give the node Linux 6.7 or later with CONFIG_TCP_AO, or remove spec.tcpAO here and at the peer, which leaves MD5"
    )]
    NoTcpAo(AoAlgorithm),
    /// A listening socket could take its key for that of another peer, or the reverse.
    #[error(
        "its prefix holds the place of BGPPeer {other}, and with tcpAO the kernel does not tell apart by which key each \
         is to be taken; choose a prefix without that place, another VRF, or MD5 for both"
    )]
    KeyOverlap {
        /// The peer within its prefix.
        other: PeerName,
    },
    /// The process may not.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl Trouble {
    /// What it means that nobody answers what is signed like this.
    pub fn silence(signature: Option<&Signature>) -> Self {
        match signature {
            None => Self::TimedOut,
            Some(Signature::Md5(_)) => Self::Md5Mismatch,
            Some(Signature::Ao { .. }) => Self::AoMismatch,
        }
    }

    /// One CamelCase word for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ConnectionRefused => "ConnectionRefused",
            Self::TimedOut => "TimedOut",
            Self::Md5Mismatch => "MD5MismatchSuspected",
            Self::AoMismatch => "TCPAOMismatchSuspected",
            Self::Unreachable(_) => "Unreachable",
            Self::NoSourceAddress(_) => "NoSourceAddress",
            Self::NoInterface(_) => "NoInterface",
            Self::NoRouter(_) => "NoRouterFound",
            Self::Unsupported(_) | Self::NoTcpAo(_) => "Unsupported",
            Self::KeyOverlap { .. } => "TCPAOKeyOverlap",
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
    /// The VRF device by which it is spoken with.
    pub vrf: Option<InterfaceName>,
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
    /// anew counts again unless [`max_prefixes`](super::Neighbor::max_prefixes) has them told apart.
    pub prefixes_received: u64,
    /// Routes meant for it that it does not get, and why.
    pub withheld: BTreeMap<Withheld, usize>,
    /// How often an established session has ended.
    pub flaps: u32,
    /// How the last connection ended.
    pub last_close: Option<Closing>,
    /// What BFD sees of it; `None` where it is not watched.
    pub bfd: Option<BfdState>,
    /// How often BFD has lost it.
    pub bfd_losses: u32,
    /// Why it did so last.
    pub bfd_last_loss: Option<Diagnostic>,
}

/// What BFD sees of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BfdState {
    /// It was up and the way has failed, or it has not been up yet.
    Down,
    /// It answers.
    Up,
}
