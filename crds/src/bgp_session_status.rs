//! BGPSessionStatus: how the BGP session of one node with one peer is. Written by speakers.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Nothing to wish for: this kind only reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "ferrogate.io",
    version = "v1beta1",
    kind = "BGPSessionStatus",
    plural = "bgpsessionstatuses",
    singular = "bgpsessionstatus",
    namespaced,
    status = "BGPSessionStatusStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "fgsession",
    category = "ferrogate",
    doc = "Reports how the BGP session of one node with one peer is. Written by speakers; editing it has no effect.",
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
    printcolumn(name = "Peer", type_ = "string", json_path = ".status.peer"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.since"),
    printcolumn(name = "BFD", type_ = "string", json_path = ".status.bfd"),
    printcolumn(name = "Prefixes", type_ = "integer", json_path = ".status.prefixesSent"),
    printcolumn(name = "Last Close", type_ = "string", json_path = ".status.lastClose.message"),
    printcolumn(name = "Remote", type_ = "string", json_path = ".status.remote", priority = "1"),
    printcolumn(name = "ASN", type_ = "integer", json_path = ".status.remoteASN", priority = "1"),
    printcolumn(name = "Trouble", type_ = "string", json_path = ".status.trouble", priority = "1")
)]
pub struct BGPSessionStatusSpec {}

/// How a session is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BGPSessionStatusStatus {
    /// The node whose speaker has the session.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cannot be changed"))]
    pub node: String,

    /// Name of the BGPPeer object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cannot be changed"))]
    pub peer: String,

    /// Where the BGPPeer says the peer is: an address, an interface or a prefix.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub remote: String,

    /// The state of the session (RFC 4271 §8.2.2): Idle, Connect, Active, OpenSent, OpenConfirm or Established. Only an
    /// Established one carries routes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub state: String,

    /// Since when it is in this state.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(extend("format" = "date-time"))]
    pub since: String,

    /// The peer's AS number, as the peer says it.
    #[serde(default, rename = "remoteASN", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4294967295u32))]
    pub remote_asn: Option<u32>,

    /// The peer's BGP identifier, as the peer says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub remote_identifier: Option<String>,

    /// The node's address of the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub local_address: Option<String>,

    /// The peer's address of the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub remote_address: Option<String>,

    /// The hold time both agreed on, in seconds; 0 means that the peers do not expect to hear from each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub hold_time_seconds: Option<u16>,

    /// The address families both agreed on: IPv4, IPv6 or both. All of them unicast.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), inner(length(max = 4)))]
    pub families: Vec<String>,

    /// How many prefixes the peer has from this node.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub prefixes_sent: i64,

    /// How many prefixes the peer has announced, less those it has withdrawn. They are counted and not used; one that is
    /// announced anew counts again unless the BGPPeer sets maxPrefixes.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub prefixes_received: i64,

    /// Prefixes that the node advertises and this peer does not get, by the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub withheld: Vec<WithheldPrefixes>,

    /// How often the session has left Established since the speaker started. Of a router of a peerPrefix nothing is counted
    /// beyond its connection.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub flaps: i64,

    /// How the last connection ended, if one did since the speaker started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_close: Option<SessionClose>,

    /// The state of the BFD session that watches the peer (RFC 5880 §6.2): AdminDown, Down, Init or Up. Absent where
    /// none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub bfd: Option<String>,

    /// How often BFD has lost the peer since the speaker started. Of a router of a peerPrefix nothing is counted beyond its
    /// connection, which BFD ends.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub bfd_losses: i64,

    /// Why it did so last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub bfd_last_loss: String,

    /// What keeps the session from coming up, and what to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub trouble: String,
}

/// Prefixes that a peer does not get.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WithheldPrefixes {
    /// Why, in one word.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub reason: String,

    /// How many.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub count: i64,
}

/// How a connection ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionClose {
    /// Who ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SessionCloser")]
    pub by: Option<SessionCloser>,

    /// Error code of the NOTIFICATION that ended it (RFC 4271 §4.5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub code: Option<u8>,

    /// Error subcode of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub subcode: Option<u8>,

    /// What was said or seen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,

    /// When.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
}

/// Who ended a connection: `Us` and `Peer` by a NOTIFICATION; `Connection`, it failed or was cut and nobody said why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum SessionCloser {
    /// We, by a NOTIFICATION.
    Us,
    /// The peer, by a NOTIFICATION.
    Peer,
    /// Nobody: it failed or was cut.
    Connection,
}
