//! BFDProfile: how quickly a silent neighbour is noticed.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::ConfigurationStatus;

/// Settings of BFD sessions (RFC 5880), which notice within milliseconds that a neighbour is gone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "ferrogate.io",
    version = "v1beta1",
    kind = "BFDProfile",
    plural = "bfdprofiles",
    singular = "bfdprofile",
    namespaced,
    status = "ConfigurationStatus",
    derive = "PartialEq",
    shortname = "fgbfd",
    category = "ferrogate",
    doc = "Settings of BFD sessions (RFC 5880), which notice within milliseconds that a neighbour is gone.",
    printcolumn(name = "Passive Mode", type_ = "boolean", json_path = ".spec.passiveMode"),
    printcolumn(name = "Transmit Interval", type_ = "integer", json_path = ".spec.transmitInterval"),
    printcolumn(name = "Receive Interval", type_ = "integer", json_path = ".spec.receiveInterval"),
    printcolumn(name = "Multiplier", type_ = "integer", json_path = ".spec.detectMultiplier"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct BFDProfileSpec {
    /// The shortest time between packets that we are ready to receive, 10 to 60000 ms. Default: 300 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 60000))]
    pub receive_interval: Option<u32>,

    /// The shortest time between packets that we want to send, 10 to 60000 ms. Default: 300 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 60000))]
    pub transmit_interval: Option<u32>,

    /// How many packets in a row must be missing before the neighbour counts as gone, 2 to 255. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 255))]
    pub detect_multiplier: Option<u8>,

    /// The shortest time between echo packets, 10 to 60000 ms. Without effect, see echoMode. Default: 50 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 60000))]
    pub echo_interval: Option<u32>,

    /// Ask for echo packets, which the neighbour's forwarding plane returns. They are not sent: the sessions run with the
    /// ordinary packets alone, and the object says so. Default: false.
    #[serde(default)]
    pub echo_mode: bool,

    /// Wait for the neighbour to start the session instead of starting it. Default: false.
    #[serde(default)]
    pub passive_mode: bool,

    /// The lowest TTL of packets that are accepted over several hops, 1 to 254. Default: 254, which is one hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 254))]
    pub minimum_ttl: Option<u8>,
}
