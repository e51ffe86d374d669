//! Routers to speak BGP with.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
    sync::Arc,
    time::Duration,
};

pub use ferrogate_wire::bgp::{Asn, BgpIdentifier, HoldTime, Role};

use crate::model::{
    Family, InterfaceName, Labels, ObjectKey, PeerName, Prefix,
    node::Node,
    selector::{LabelSelector, any_matches},
};

/// A valid BGPPeer. What of it may differ from node to node is told by [`BgpPeer::on`].
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
    /// `spec.myASN` or `spec.nodeValues.myASN`.
    pub my_asn: PerNode<Asn>,
    /// `spec.localASN`: the AS to show this peer in place of ours.
    pub local_asn: Option<Asn>,
    /// `spec.peerASN`, `spec.dynamicASN` or `spec.nodeValues.peerASN`.
    pub peer_asn: PerNode<PeerAsn>,
    /// `spec.peerAddress`, `spec.interface`, `spec.peerPrefix` or `spec.nodeValues.peerAddress`.
    pub place: PerNode<PeerPlace>,
    /// `spec.peerPort`.
    pub port: NonZeroU16,
    /// `spec.sourceAddress` or `spec.nodeValues.sourceAddress`: our address of the session, of the family of the peer's.
    pub source_address: Option<PerNode<IpAddr>>,
    /// `spec.vrf`: the VRF device to connect from.
    pub vrf: Option<InterfaceName>,
    /// `spec.routerID` or `spec.nodeValues.routerID`.
    pub router_id: Option<PerNode<BgpIdentifier>>,
    /// `spec.holdTime`, or what follows from `spec.keepaliveTime`.
    pub hold_time: HoldTime,
    /// `spec.keepaliveTime`, or what follows from `spec.holdTime`; whole seconds, not above the hold time.
    pub keepalive_time: Duration,
    /// `spec.connectTime`: whole seconds between two attempts to connect.
    pub connect_time: Option<Duration>,
    /// `spec.password` or `spec.passwordSecret`. Where it is set and [`Password::key`] is not, there must be no session.
    pub password: Option<Password>,
    /// `spec.bfdProfile`: name of a BFDProfile, which may not exist yet.
    pub bfd_profile: Option<String>,
    /// `spec.enableGracefulRestart` and `spec.gracefulRestartTime`: how long our return may take.
    pub graceful_restart: Option<RestartTime>,
    /// `spec.ebgpMultiHop`: never together with `ttl_security`.
    pub multi_hop: bool,
    /// `spec.ttlSecurityHops`: how many hops away the peer may be at most, 1 to 254 (RFC 5082).
    pub ttl_security: Option<NonZeroU8>,
    /// `spec.dualStackAddressFamily`: carry both families, not only that of the address.
    pub dual_stack: bool,
    /// `spec.passive`, and wherever the place is a prefix: the peer connects to us.
    pub passive: bool,
    /// `spec.role`: what we are to the peer's AS, which is another one (RFC 9234).
    pub role: Option<Role>,
    /// `spec.maxPrefixes`: how many prefixes it may send before the session ends.
    pub max_prefixes: Option<NonZeroU32>,
    /// `spec.shutdown`: the session is held down, and the peer is told this, at most 255 bytes (RFC 9003).
    pub shutdown: Option<String>,
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

impl PeerAsn {
    /// Whether it can only be ours.
    pub fn is_internal(self, ours: Asn) -> bool {
        match self {
            Self::Fixed(asn) => asn == ours,
            Self::Internal => true,
            Self::External => false,
        }
    }
}

/// Where a peer is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerPlace {
    /// At this address.
    Address(IpAddr),
    /// Behind this interface, by its router advertisements.
    Interface(InterfaceName),
    /// At any address of this prefix that no other peer of the VRF has: whoever connects from there.
    Prefix(Prefix),
}

impl fmt::Display for PeerPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Interface(interface) => write!(f, "interface {interface}"),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

/// How long the return of a speaker may take that restarts, 1 to 4095 seconds (RFC 4724 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartTime(u16);

impl RestartTime {
    /// So many seconds; `None` outside of 1 to 4095.
    pub fn from_seconds(seconds: u16) -> Option<Self> {
        (1..=4_095).contains(&seconds).then_some(Self(seconds))
    }

    /// Seconds.
    pub fn seconds(self) -> u16 {
        self.0
    }
}

/// The password of a TCP connection (RFC 2385), or its master key (RFC 5925), 1 to 80 bytes. It is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Arc<str>);

impl Key {
    /// The longest there is: what the kernel takes (`TCP_MD5SIG_MAXKEYLEN`, `TCP_AO_MAXKEYLEN`).
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
        // Debug output ends in logs and in the messages of failed tests.
        f.write_str("Key(…)")
    }
}

/// The password of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Password {
    /// Where it stands.
    pub place: PasswordPlace,
    /// `spec.tcpAO`: it is a key of TCP-AO, and not of MD5.
    pub tcp_ao: Option<TcpAo>,
}

/// Where the password of a peer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordPlace {
    /// In the object.
    Clear(Key),
    /// In a Secret beside the peer.
    Secret {
        /// Its name.
        name: String,
        /// What it says; `None` where it is not there, says nothing that can be used, or is not read here.
        key: Option<Key>,
    },
}

impl Password {
    /// The password, if it is known.
    pub fn key(&self) -> Option<&Key> {
        match &self.place {
            PasswordPlace::Clear(key) => Some(key),
            PasswordPlace::Secret { key, .. } => key.as_ref(),
        }
    }

    /// How segments are signed with this key of it.
    pub fn signature(&self, key: Key) -> Signature {
        match self.tcp_ao {
            Some(terms) => Signature::Ao { key, terms },
            None => Signature::Md5(key),
        }
    }
}

/// How the segments of a connection are signed, and with which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signature {
    /// By TCP MD5 signatures (RFC 2385).
    Md5(Key),
    /// By the TCP Authentication Option (RFC 5925).
    Ao {
        /// The master key.
        key: Key,
        /// Everything else that both sides must agree on.
        terms: TcpAo,
    },
}

/// What both sides of a connection must agree on besides the key (RFC 5925 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpAo {
    /// SendID: the KeyID of what we send, which is the RecvID of the peer.
    pub send_id: u8,
    /// RecvID: the KeyID of what we take, which is the SendID of the peer.
    pub receive_id: u8,
    /// The algorithm.
    pub algorithm: AoAlgorithm,
}

/// How codes are made of keys (RFC 5926 §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AoAlgorithm {
    /// HMAC-SHA-1-96.
    HmacSha1,
    /// AES-128-CMAC-96.
    AesCmac,
}

impl AoAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 2] = [Self::HmacSha1, Self::AesCmac];

    /// The name in manifests: that of RFC 5926 in small letters.
    pub fn name(self) -> &'static str {
        match self {
            Self::HmacSha1 => "hmac-sha-1-96",
            Self::AesCmac => "aes-128-cmac-96",
        }
    }
}

impl fmt::Display for AoAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something of a peer that is the same on every node or stands on each Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PerNode<T> {
    /// The same on every node.
    Same(T),
    /// What the Node says there.
    From(NodeKey),
}

impl<T> PerNode<T> {
    /// What is the same on every node, if it is.
    pub fn same(&self) -> Option<&T> {
        match self {
            Self::Same(value) => Some(value),
            Self::From(_) => None,
        }
    }
}

/// A label or annotation of a Node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeKey {
    /// The label with this key.
    Label(String),
    /// The annotation with this key, which begins with [`ANNOTATION_PREFIX`](crate::model::node::ANNOTATION_PREFIX).
    Annotation(String),
}

impl NodeKey {
    /// What a Node says there.
    pub fn of<'a>(&self, node: &'a Node) -> Option<&'a str> {
        let value = match self {
            Self::Label(key) => node.labels.get(key),
            Self::Annotation(key) => node.annotations.get(key),
        };
        value.map(String::as_str)
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(key) => write!(f, "label {key}"),
            Self::Annotation(key) => write!(f, "annotation {key}"),
        }
    }
}

/// What of a peer may differ from node to node, as it is on one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerOnNode {
    /// The AS that we show it: `localASN`, or else `myASN`.
    pub local_asn: Asn,
    /// Its AS.
    pub peer_asn: PeerAsn,
    /// Where it is found.
    pub place: PeerPlace,
    /// Our address of the session, of the family of the peer's; `None` leaves it to the node's routing.
    pub source_address: Option<IpAddr>,
    /// Our identifier; `None` leaves it to the node's addresses.
    pub router_id: Option<BgpIdentifier>,
}

/// Why a node cannot speak with a peer whose values stand on the Node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeValueError {
    /// The Node has no such label or annotation.
    #[error("{field} stands in {key} of the Node, which has none; set it, or choose other nodes by nodeSelectors")]
    Missing {
        /// The field of `spec.nodeValues`.
        field: &'static str,
        /// Where the value should be.
        key: NodeKey,
    },
    /// What it says there is not what the field needs.
    #[error("{field} stands in {key} of the Node, and {value:?} is not valid: {expected}")]
    Invalid {
        /// The field of `spec.nodeValues`.
        field: &'static str,
        /// Where the value is.
        key: NodeKey,
        /// What it says.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Another peer has the place already.
    #[error("{place} is already the place of BGPPeer {other} on this node; correct {key} of the Node")]
    SamePlace {
        /// The address.
        place: PeerPlace,
        /// The peer that has it.
        other: PeerName,
        /// Where the address was read.
        key: NodeKey,
    },
}

impl NodeValueError {
    /// Reason for conditions, Events and metrics: one CamelCase word per variant.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "NodeValueMissing",
            Self::Invalid { .. } => "NodeValueInvalid",
            Self::SamePlace { .. } => "DuplicatePeer",
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

    /// The peer as it is on this node, looked at alone; see [`on_node`] for all peers of a node.
    ///
    /// # Errors
    /// Where the Node does not say what it should, or says what does not fit the rest of the peer.
    pub fn on(&self, node: &Node) -> Result<PeerOnNode, NodeValueError> {
        let my_asn = value(&self.my_asn, node, "myASN", AN_ASN, asn)?;
        let local_asn = self.local_asn.unwrap_or(my_asn);
        let peer_asn = value(&self.peer_asn, node, "peerASN", AN_ASN, |text| asn(text).map(PeerAsn::Fixed))?;
        let place =
            value(&self.place, node, "peerAddress", A_ROUTER, |text| router_address(text).map(PeerPlace::Address))?;
        let source_address = self.source_address.as_ref();
        let source_address =
            source_address.map(|source| value(source, node, "sourceAddress", A_ROUTER, router_address)).transpose()?;
        let router_id = self.router_id.as_ref();
        let router_id = router_id.map(|id| value(id, node, "routerID", AN_IDENTIFIER, router_id_of)).transpose()?;

        // What is the same everywhere has been checked where the object was read.
        if (self.multi_hop || self.role.is_some()) && peer_asn.is_internal(local_asn) {
            let expected = match self.multi_hop {
                true => "an AS number other than ours, since ebgpMultiHop is set",
                false => "an AS number other than ours, since role is set",
            };
            refuse(&self.peer_asn, node, "peerASN", expected)?;
            refuse(&self.my_asn, node, "myASN", expected)?;
        }
        let family = match &place {
            PeerPlace::Address(address) => Some(Family::of(*address)),
            PeerPlace::Prefix(prefix) => Some(Family::of(prefix.ip())),
            PeerPlace::Interface(_) => None,
        };
        if let (Some(source), Some(address), Some(family)) = (&self.source_address, source_address, family)
            && Family::of(address) != family
        {
            refuse(source, node, "sourceAddress", "an address of the family of the peer's")?;
            refuse(&self.place, node, "peerAddress", "an address of the family of sourceAddress")?;
        }
        Ok(PeerOnNode { local_asn, peer_asn, place, source_address, router_id })
    }
}

/// Every peer that this node speaks with, as it is there. Of two that would be in one place the one counts that is in
/// the same place everywhere, then the first by name.
pub fn on_node<'a>(
    peers: impl IntoIterator<Item = &'a Arc<BgpPeer>>,
    node: &Node,
) -> Vec<(&'a Arc<BgpPeer>, Result<PeerOnNode, NodeValueError>)> {
    let mut chosen: Vec<_> = peers.into_iter().filter(|peer| peer.allows_node(&node.labels)).collect();
    chosen.sort_by_key(|peer| (peer.place.same().is_none(), &peer.name));
    let mut taken: BTreeMap<(Option<&InterfaceName>, PeerPlace), &PeerName> = BTreeMap::new();
    let mut all = Vec::new();
    for peer in chosen {
        let mut here = peer.on(node);
        if let Ok(PeerOnNode { place, .. }) = &here {
            let slot = (peer.vrf.as_ref(), place.clone());
            match (taken.get(&slot), &peer.place) {
                (Some(other), PerNode::From(key)) => {
                    let (place, other, key) = (place.clone(), (*other).clone(), key.clone());
                    here = Err(NodeValueError::SamePlace { place, other, key });
                }
                _ => _ = taken.insert(slot, &peer.name),
            }
        }
        all.push((peer, here));
    }
    all
}

const AN_ASN: &str = "an AS number, 1 to 4294967295";
const A_ROUTER: &str = "the IPv4 or IPv6 address of a router";
const AN_IDENTIFIER: &str = "written as an IPv4 address, and not 0.0.0.0";

/// What a field is on this node.
fn value<T: Clone>(
    said: &PerNode<T>,
    node: &Node,
    field: &'static str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, NodeValueError> {
    let key = match said {
        PerNode::Same(value) => return Ok(value.clone()),
        PerNode::From(key) => key,
    };
    let Some(text) = key.of(node) else { return Err(NodeValueError::Missing { field, key: key.clone() }) };
    let invalid = || NodeValueError::Invalid { field, key: key.clone(), value: text.to_owned(), expected };
    parse(text.trim()).ok_or_else(invalid)
}

/// Refuses what a Node says, if it is the Node that says it.
fn refuse<T>(
    said: &PerNode<T>,
    node: &Node,
    field: &'static str,
    expected: &'static str,
) -> Result<(), NodeValueError> {
    let PerNode::From(key) = said else { return Ok(()) };
    let value = key.of(node).unwrap_or_default().to_owned();
    Err(NodeValueError::Invalid { field, key: key.clone(), value, expected })
}

fn asn(text: &str) -> Option<Asn> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten().and_then(Asn::new)
}

/// A BGP identifier as it is written: like an IPv4 address, and not 0.0.0.0.
pub fn router_id_of(text: &str) -> Option<BgpIdentifier> {
    text.parse().ok().and_then(|address: Ipv4Addr| BgpIdentifier::new(address.to_bits()))
}

/// An address that one router can have, in its plainest form: an IPv4-mapped IPv6 address is the IPv4 address it stands
/// for.
pub fn router_address(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok()?.to_canonical();
    let is_one = !address.is_unspecified() && !address.is_multicast() && address != IpAddr::V4(Ipv4Addr::BROADCAST);
    is_one.then_some(address)
}

#[cfg(test)]
mod tests;
