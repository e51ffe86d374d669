//! Routers to speak BGP with.

use std::{collections::BTreeSet, fmt, net::IpAddr, num::NonZeroU16, time::Duration};

pub use ferrogate_wire::bgp::{Asn, BgpIdentifier, HoldTime};

use crate::model::{
    InterfaceName, Labels, ObjectKey, PeerName,
    selector::{LabelSelector, any_matches},
};

/// A valid BGPPeer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpPeer {
    /// Where the object lives.
    pub key: ObjectKey,
    /// Written for MetalLB: it counts like any other, and its status is left to MetalLB.
    pub read_only: bool,
    /// `metadata.name`.
    pub name: PeerName,
    /// `metadata.generation`; 0 where the source has none.
    pub generation: i64,
    /// `spec.myASN`.
    pub my_asn: Asn,
    /// `spec.localASN`: the AS to show this peer in place of ours.
    pub local_asn: Option<Asn>,
    /// `spec.peerASN` or `spec.dynamicASN`.
    pub peer_asn: PeerAsn,
    /// `spec.peerAddress` or `spec.interface`.
    pub place: PeerPlace,
    /// `spec.peerPort`.
    pub port: NonZeroU16,
    /// `spec.sourceAddress`: our address of the session, of the family of the peer's.
    pub source_address: Option<IpAddr>,
    /// `spec.vrf`: the VRF device to connect from.
    pub vrf: Option<InterfaceName>,
    /// `spec.routerID`.
    pub router_id: Option<BgpIdentifier>,
    /// `spec.holdTime`, or what follows from `spec.keepaliveTime`.
    pub hold_time: HoldTime,
    /// `spec.keepaliveTime`, or what follows from `spec.holdTime`; whole seconds, not above the hold time.
    pub keepalive_time: Duration,
    /// `spec.connectTime`: whole seconds between two attempts to connect.
    pub connect_time: Option<Duration>,
    /// `spec.password` or `spec.passwordSecret`.
    pub password: Option<Password>,
    /// `spec.bfdProfile`: name of a BFDProfile, which may not exist yet.
    pub bfd_profile: Option<String>,
    /// `spec.enableGracefulRestart`.
    pub graceful_restart: bool,
    /// `spec.ebgpMultiHop`.
    pub multi_hop: bool,
    /// `spec.dualStackAddressFamily`: carry both families, not only that of the address.
    pub dual_stack: bool,
    /// `spec.nodeSelectors`: nodes that speak with it; empty means all.
    pub node_selectors: Vec<LabelSelector>,
}

/// Which AS a peer is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAsn {
    /// This one.
    Fixed(Asn),
    /// Ours.
    Internal,
    /// Any but ours.
    External,
}

/// Where a peer is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerPlace {
    /// At this address.
    Address(IpAddr),
    /// Behind this interface, by its router advertisements.
    Interface(InterfaceName),
}

impl fmt::Display for PeerPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Interface(interface) => write!(f, "interface {interface}"),
        }
    }
}

/// The password of a TCP connection (RFC 2385).
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// As it stands in the object.
    Clear(String),
    /// In the Secret of this name beside the peer.
    Secret(String),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Debug output ends in logs and in the messages of failed tests.
            Self::Clear(_) => f.write_str("Clear(…)"),
            Self::Secret(name) => f.debug_tuple("Secret").field(name).finish(),
        }
    }
}

impl BgpPeer {
    /// Whether a node with these labels speaks with it.
    pub fn allows_node(&self, labels: &Labels) -> bool {
        any_matches(&self.node_selectors, labels)
    }

    /// Whether an advertisement that names these peers, or all by naming none, reaches it.
    pub fn is_among(&self, peers: &BTreeSet<PeerName>) -> bool {
        peers.is_empty() || peers.contains(&self.name)
    }
}

/// The password of a TCP connection (RFC 2385), 1 to 80 bytes. It is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(std::sync::Arc<str>);

impl Key {
    /// The longest there is: what the kernel takes (`TCP_MD5SIG_MAXKEYLEN`).
    pub const MAX_BYTES: usize = 80;

    /// A key of this text; `None` where it is empty or too long.
    pub fn new(text: &str) -> Option<Self> {
        (1..=Self::MAX_BYTES).contains(&text.len()).then(|| Self(text.into()))
    }

    /// The password itself, for whoever hands it to the kernel.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}
