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
    validation = Rule::new("has(self.peerASN) != has(self.dynamicASN)")
        .message("exactly one of peerASN and dynamicASN must be set"),
    validation = Rule::new("has(self.peerAddress) != has(self.interface)")
        .message("exactly one of peerAddress and interface must be set"),
    validation = Rule::new("!has(self.password) || !has(self.passwordSecret)")
        .message("password and passwordSecret exclude each other"),
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
        "!has(self.ebgpMultiHop) || !self.ebgpMultiHop || ((!has(self.peerASN) || self.peerASN != self.myASN) \
         && (!has(self.dynamicASN) || self.dynamicASN != 'internal'))"
    ).message("ebgpMultiHop is for peers of another AS only"),
    validation = Rule::new(
        "!has(self.sourceAddress) || !has(self.peerAddress) || !isIP(self.sourceAddress) || !isIP(self.peerAddress) \
         || ip(self.sourceAddress).family() == ip(self.peerAddress).family()"
    ).message("sourceAddress and peerAddress must be of one family"),
)]
pub struct BGPPeerSpec {
    /// Our AS number, 1 to 4294967295.
    #[serde(rename = "myASN")]
    #[schemars(range(min = 1, max = 4294967295u32))]
    pub my_asn: u32,

    /// The peer's AS number, 1 to 4294967295. Exactly one of peerASN and dynamicASN.
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

    /// The peer's IPv4 or IPv6 address. Exactly one of peerAddress and interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = Rule::new("isIP(self)").message("must be an IPv4 or IPv6 address"))]
    pub peer_address: Option<String>,

    /// The network interface behind which the peer is found by its router advertisements (an unnumbered session), up
    /// to 15 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = schema::INTERFACE_PATTERN))]
    pub interface: Option<String>,

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

    /// Password of the TCP connection (RFC 2385), up to 80 characters, in clear text: prefer passwordSecret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 80))]
    pub password: Option<String>,

    /// The Secret of type kubernetes.io/basic-auth whose key `password` holds the password of the TCP connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<SecretReference>,

    /// Name of the BFDProfile to watch the peer with. Absent, there is no BFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub bfd_profile: Option<String>,

    /// Ask the peer to keep our routes while the speaker restarts (RFC 4724). Cannot be changed later. Default: false.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("enableGracefulRestart cannot be changed: make a new BGPPeer"))]
    pub enable_graceful_restart: bool,

    /// Allow a peer of another AS to be more than one hop away. Default: false.
    #[serde(default)]
    pub ebgp_multi_hop: bool,

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
