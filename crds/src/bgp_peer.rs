//! BGPPeer: a router to speak BGP with.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{ConfigurationStatus, Duration, schema};

/// A router that the nodes speak BGP with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "ferrogate.io",
    version = "v1beta1",
    kind = "BGPPeer",
    plural = "bgppeers",
    singular = "bgppeer",
    namespaced,
    status = "ConfigurationStatus",
    derive = "PartialEq",
    shortname = "fgpeer",
    category = "ferrogate",
    doc = "A router that the nodes speak BGP with.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.peerAddress"),
    printcolumn(name = "ASN", type_ = "string", json_path = ".spec.peerASN"),
    printcolumn(name = "BFD Profile", type_ = "string", json_path = ".spec.bfdProfile"),
    printcolumn(name = "Multi Hops", type_ = "string", json_path = ".spec.ebgpMultiHop"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(name = "Interface", type_ = "string", json_path = ".spec.interface", priority = "1"),
    printcolumn(name = "VRF", type_ = "string", json_path = ".spec.vrf", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("has(self.myASN) != (has(self.nodeValues) && has(self.nodeValues.myASN))")
        .message("exactly one of myASN and nodeValues.myASN must be set"),
    validation = Rule::new(
        "[has(self.peerASN), has(self.dynamicASN), has(self.nodeValues) && has(self.nodeValues.peerASN)] \
         .exists_one(is_set, is_set)"
    ).message("exactly one of peerASN, dynamicASN and nodeValues.peerASN must be set"),
    validation = Rule::new(
        "[has(self.peerAddress), has(self.interface), has(self.peerPrefix), \
         has(self.nodeValues) && has(self.nodeValues.peerAddress)].exists_one(is_set, is_set)"
    ).message("exactly one of peerAddress, interface, peerPrefix and nodeValues.peerAddress must be set"),
    validation = Rule::new(
        "!has(self.nodeValues) || !(has(self.sourceAddress) && has(self.nodeValues.sourceAddress))"
    ).message("sourceAddress and nodeValues.sourceAddress exclude each other"),
    validation = Rule::new("!has(self.nodeValues) || !(has(self.routerID) && has(self.nodeValues.routerID))")
        .message("routerID and nodeValues.routerID exclude each other"),
    validation = Rule::new("!has(self.password) || !has(self.passwordSecret)")
        .message("password and passwordSecret exclude each other"),
    validation = Rule::new("!has(self.tcpAO) || has(self.password) || has(self.passwordSecret)")
        .message("tcpAO needs password or passwordSecret, which holds its key"),
    validation = Rule::new(
        "!has(self.holdTime) || !has(self.keepaliveTime) || duration(self.keepaliveTime) <= duration(self.holdTime)"
    ).message("keepaliveTime must not be longer than holdTime"),
    validation = Rule::new(
        "!has(self.keepaliveTime) || has(self.holdTime) || duration(self.keepaliveTime) <= duration('21845s')"
    ).message("keepaliveTime without holdTime must be at most 21845s, a third of the longest holdTime"),
    validation = Rule::new(
        "!has(self.keepaliveTime) || duration(self.keepaliveTime) >= duration('1s') || (has(self.holdTime) \
         ? duration(self.holdTime) < duration('1s') : duration(self.keepaliveTime) == duration('0s'))"
    ).message("keepaliveTime must be at least 1s, or 0s with a holdTime of 0s"),
    validation = Rule::new(
        "!has(self.ebgpMultiHop) || !self.ebgpMultiHop || ((!has(self.peerASN) || !has(self.myASN) \
         || self.peerASN != self.myASN) && (!has(self.dynamicASN) || self.dynamicASN != 'internal'))"
    ).message("ebgpMultiHop is for peers of another AS only"),
    validation = Rule::new(
        "!has(self.role) || ((!has(self.dynamicASN) || self.dynamicASN != 'internal') && (!has(self.peerASN) \
         || (has(self.localASN) ? self.peerASN != self.localASN : !has(self.myASN) || self.peerASN != self.myASN)))"
    ).message("role is for peers of another AS only"),
    validation = Rule::new("!has(self.ttlSecurityHops) || !has(self.ebgpMultiHop) || !self.ebgpMultiHop")
        .message("ttlSecurityHops and ebgpMultiHop exclude each other: ttlSecurityHops says how far away the peer may be"),
    validation = Rule::new("!has(self.interface) || !has(self.passive) || !self.passive")
        .message("passive and interface exclude each other: a peer behind an interface is connected to once it is found"),
    validation = Rule::new(
        "!has(self.gracefulRestartTime) || (has(self.enableGracefulRestart) && self.enableGracefulRestart)"
    ).message("gracefulRestartTime needs enableGracefulRestart"),
    validation = Rule::new(
        "!has(self.sourceAddress) || !has(self.peerAddress) || !isIP(self.sourceAddress) || !isIP(self.peerAddress) \
         || ip(self.sourceAddress).family() == ip(self.peerAddress).family()"
    ).message("sourceAddress and peerAddress must be of one family"),
    validation = Rule::new(
        "!has(self.sourceAddress) || !has(self.peerPrefix) || !isIP(self.sourceAddress) || !isCIDR(self.peerPrefix) \
         || ip(self.sourceAddress).family() == cidr(self.peerPrefix).ip().family()"
    ).message("sourceAddress and peerPrefix must be of one family"),
)]
pub struct BGPPeerSpec {
    /// Our AS number, 1 to 4294967295. Exactly one of myASN and nodeValues.myASN.
    #[serde(default, rename = "myASN", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4294967295u32))]
    pub my_asn: Option<u32>,

    /// The peer's AS number, 1 to 4294967295. Exactly one of peerASN, dynamicASN and nodeValues.peerASN.
    #[serde(default, rename = "peerASN", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4294967295u32))]
    pub peer_asn: Option<u32>,

    /// Take the peer's AS number from what it says, so long as it is ours (`internal`) or another (`external`).
    #[serde(default, rename = "dynamicASN", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DynamicAsn")]
    pub dynamic_asn: Option<DynamicAsn>,

    /// The AS number to show this peer in place of myASN, 1 to 4294967295.
    #[serde(default, rename = "localASN", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4294967295u32))]
    pub local_asn: Option<u32>,

    /// The peer's IPv4 or IPv6 address. Exactly one of peerAddress, interface, peerPrefix and nodeValues.peerAddress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = Rule::new("isIP(self)").message("must be an IPv4 or IPv6 address"))]
    pub peer_address: Option<String>,

    /// The network interface behind which the peer is found by its router advertisements (an unnumbered session), up
    /// to 15 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = schema::INTERFACE_PATTERN))]
    pub interface: Option<String>,

    /// A prefix such as 10.0.0.0/24 in place of an address: every router that connects from it is this peer, and none is
    /// connected to. A router whose address another BGPPeer has as its peerAddress is that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 43))]
    #[x_kube(validation = Rule::new("isCIDR(self) && cidr(self).masked() == cidr(self)")
        .message("must be an IPv4 or IPv6 prefix without bits beyond its length"))]
    pub peer_prefix: Option<String>,

    /// Our own address of the session. Absent, the node's routing decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = Rule::new("isIP(self)").message("must be an IPv4 or IPv6 address"))]
    pub source_address: Option<String>,

    /// The peer's TCP port, 1 to 16384. Default: 179.
    #[serde(default = "bgp_port")]
    #[schemars(range(min = 1, max = 16384))]
    pub peer_port: u16,

    /// How long the session may be silent before it counts as lost: 0s (for ever), or 3s to 65535s; parts of a second
    /// are dropped. Default: three times keepaliveTime if that is set, else 90s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new(
        "duration(self).getSeconds() == 0 || (duration(self) >= duration('3s') && duration(self) <= duration('65535s'))"
    ).message("must be 0s, or 3s to 65535s"))]
    pub hold_time: Option<Duration>,

    /// How often we say that we are there, at least 1s and not longer than holdTime, or 0s (never) with a holdTime of
    /// 0s; parts of a second are dropped. Default: a third of holdTime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('65535s')").message("must be at most 65535s"))]
    pub keepalive_time: Option<Duration>,

    /// How long to wait before another attempt to connect: whole seconds, 1s to 65535s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('65535s')")
            .message("must be 1s to 65535s"),
        validation = Rule::new("duration(self).getMilliseconds() % 1000 == 0")
            .message("must be a whole number of seconds"),
    )]
    pub connect_time: Option<Duration>,

    /// Our BGP identifier, written as an IPv4 address but 0.0.0.0. Absent, the node's own IPv4 address is used.
    #[serde(default, rename = "routerID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 7, max = 15))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 4 && self != '0.0.0.0'")
        .message("must be written as an IPv4 address, and not be 0.0.0.0"))]
    pub router_id: Option<String>,

    /// Nodes that speak with this peer, by label; any one selector suffices. None given means every node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub node_selectors: Vec<LabelSelector>,

    /// Password of the TCP connection, up to 80 characters, in clear text: prefer passwordSecret. It signs by MD5 (RFC 2385),
    /// or with tcpAO by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 80))]
    pub password: Option<String>,

    /// The Secret of type kubernetes.io/basic-auth whose key `password` holds the password of the TCP connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<SecretReference>,

    /// Sign the TCP connection by TCP-AO (RFC 5925) and not by MD5: password or passwordSecret holds the master key. Where
    /// the kernel of a node does not have it (Linux 6.7 and later can) there is no session, and the speaker there says why.
    #[serde(default, rename = "tcpAO", skip_serializing_if = "Option::is_none")]
    pub tcp_ao: Option<TcpAo>,

    /// Name of the BFDProfile to watch the peer with. Absent, there is no BFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub bfd_profile: Option<String>,

    /// Ask the peer to keep our routes while the speaker restarts (RFC 4724). Cannot be changed later. Default: false.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("enableGracefulRestart cannot be changed: make a new BGPPeer"))]
    pub enable_graceful_restart: bool,

    /// How long the return of a restarting speaker may take before the peer drops our routes: whole seconds, 1s to
    /// 4095s. Only with enableGracefulRestart. Default: 120s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('4095s')")
            .message("must be 1s to 4095s"),
        validation = Rule::new("duration(self).getMilliseconds() % 1000 == 0")
            .message("must be a whole number of seconds"),
    )]
    pub graceful_restart_time: Option<Duration>,

    /// Allow a peer of another AS to be more than one hop away. Default: false.
    #[serde(default)]
    pub ebgp_multi_hop: bool,

    /// Take packets of the peer only if they have crossed at most so many hops, 1 (a direct neighbour) to 254 (RFC 5082).
    /// The peer must do the same. Not together with ebgpMultiHop. Absent, distance is not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 254))]
    pub ttl_security_hops: Option<u8>,

    /// Wait for the peer to connect, and never connect to it. Not together with interface; with peerPrefix it is so
    /// anyway. Default: false.
    #[serde(default)]
    pub passive: bool,

    /// What we are to the peer's AS (RFC 9234): `provider`, `rs` (a route server), `rs-client` (the client of one),
    /// `customer` or `peer`. The session fails where the peer says something that does not go with it. Only for peers of
    /// another AS. Absent, no role is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "BgpRole")]
    pub role: Option<BgpRole>,

    /// How many prefixes the peer may send, 1 to 4294967295; the session is closed when it sends more (RFC 4486). Absent,
    /// they are not counted: none of them is used in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4294967295u32))]
    pub max_prefixes: Option<u32>,

    /// Hold the session down, and tell the peer this text as the reason, up to 255 bytes; it may be empty (RFC 9003).
    /// Absent, the session is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    #[x_kube(validation = Rule::new("size(bytes(self)) <= 255").message("must be at most 255 bytes"))]
    pub shutdown: Option<String>,

    /// Values that differ from node to node: each is read from a label or an annotation of the Node whose speaker speaks
    /// with the peer. On a node that does not say it there is no session, and the speaker there says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_values: Option<NodeValues>,

    /// The VRF device of the host to connect from, up to 15 characters. Absent, the main routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = schema::INTERFACE_PATTERN))]
    pub vrf: Option<String>,

    /// Deprecated: accepted so that old manifests load, and without effect.
    #[serde(default, rename = "disableMP")]
    pub disable_mp: bool,

    /// Carry both families on this session, not only the one of its addresses. Default: false.
    #[serde(default)]
    pub dual_stack_address_family: bool,
}

/// Which AS numbers a peer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DynamicAsn {
    /// Ours.
    Internal,
    /// Any but ours.
    External,
}

/// What one AS is to another (RFC 9234).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BgpRole {
    /// We give transit.
    Provider,
    /// We are a route server.
    Rs,
    /// We are the client of a route server.
    RsClient,
    /// We get transit.
    Customer,
    /// We exchange routes as equals.
    Peer,
}

/// Where values stand that differ from node to node. Each takes the place of the field of the same name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeValues {
    /// Where our AS number stands.
    #[serde(default, rename = "myASN", skip_serializing_if = "Option::is_none")]
    pub my_asn: Option<NodeValue>,

    /// Where the peer's AS number stands.
    #[serde(default, rename = "peerASN", skip_serializing_if = "Option::is_none")]
    pub peer_asn: Option<NodeValue>,

    /// Where the peer's address stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_address: Option<NodeValue>,

    /// Where our own address of the session stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_address: Option<NodeValue>,

    /// Where our BGP identifier stands.
    #[serde(default, rename = "routerID", skip_serializing_if = "Option::is_none")]
    pub router_id: Option<NodeValue>,
}

/// A label or an annotation of Nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.label) != has(self.annotation)")
    .message("exactly one of label and annotation must be set"))]
pub struct NodeValue {
    /// Key of the label, such as `example.com/tor`. Labels cannot hold IPv6 addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317), regex(pattern = schema::LABEL_KEY_PATTERN))]
    pub label: Option<String>,

    /// Key of the annotation, such as `ferrogate.io/tor`. It begins with `ferrogate.io/`; no other annotations of Nodes
    /// are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 76), regex(pattern = schema::OUR_KEY_PATTERN))]
    pub annotation: Option<String>,
}

/// What TCP-AO needs to be told besides its key (RFC 5925 §3.1).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TcpAo {
    /// SendID, the KeyID of what we send, 0 to 255: the RecvID of the peer.
    #[serde(rename = "sendID")]
    #[schemars(range(min = 0, max = 255))]
    pub send_id: u8,

    /// RecvID, the KeyID of what we take, 0 to 255: the SendID of the peer. Default: sendID.
    #[serde(default, rename = "recvID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub recv_id: Option<u8>,

    /// How codes are made of the key (RFC 5926): `hmac-sha-1-96` or `aes-128-cmac-96`. Default: hmac-sha-1-96.
    #[serde(default)]
    pub algorithm: TcpAoAlgorithm,
}

/// How the codes of TCP-AO are made (RFC 5926).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum TcpAoAlgorithm {
    /// HMAC-SHA-1-96.
    #[default]
    #[serde(rename = "hmac-sha-1-96")]
    HmacSha1,
    /// AES-128-CMAC-96.
    #[serde(rename = "aes-128-cmac-96")]
    AesCmac,
}

/// Names a Secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// Namespace of the Secret. Only that of the BGPPeer is read, so it may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
}

fn bgp_port() -> u16 {
    179
}
