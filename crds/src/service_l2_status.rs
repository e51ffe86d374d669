//! ServiceL2Status: which node announces a Service by layer 2. Written by speakers.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Nothing to wish for: this kind only reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "ferrogate.io",
    version = "v1beta1",
    kind = "ServiceL2Status",
    plural = "servicel2statuses",
    singular = "servicel2status",
    namespaced,
    status = "ServiceL2StatusStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "fgl2status",
    category = "ferrogate",
    doc = "Reports which node announces a Service by layer 2. Written by speakers; editing it has no effect.",
    printcolumn(name = "Allocated Node", type_ = "string", json_path = ".status.node"),
    printcolumn(name = "Service Name", type_ = "string", json_path = ".status.serviceName"),
    printcolumn(name = "Service Namespace", type_ = "string", json_path = ".status.serviceNamespace"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".status.addresses"),
    printcolumn(name = "Conflicts", type_ = "string", json_path = ".status.conflicts[*].mac"),
    printcolumn(name = "Interfaces", type_ = "string", json_path = ".status.interfaces[*].name", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct ServiceL2StatusSpec {}

/// Who announces what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceL2StatusStatus {
    /// The node that announces the Service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cannot be changed"))]
    pub node: String,

    /// Name of the Service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cannot be changed"))]
    pub service_name: String,

    /// Namespace of the Service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("cannot be changed"))]
    pub service_namespace: String,

    /// Interfaces the node announces on. Empty means every suitable one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub interfaces: Vec<InterfaceStatus>,

    /// The pool the addresses come from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub pool: String,

    /// The addresses the node announces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 45)))]
    pub addresses: Vec<String>,

    /// How often the Service had got another owner when this node became it. Where several nodes say that they announce
    /// it, the one with the greatest number came last; the others have lost touch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub transitions: Option<i64>,

    /// Devices that have claimed one of the addresses within the last minute and are none of our nodes. Find them, and
    /// take the address from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conflicts: Vec<ConflictStatus>,
}

/// A device that claims an address of the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConflictStatus {
    /// The address it claims.
    #[serde(default)]
    #[schemars(length(max = 45))]
    pub address: String,

    /// The interface of the node on which it was seen.
    #[serde(default)]
    #[schemars(length(max = 15))]
    pub interface: String,

    /// Its hardware address.
    #[serde(default)]
    #[schemars(length(max = 17))]
    pub mac: String,
}

/// An interface of the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Name of the interface.
    #[serde(default)]
    #[schemars(length(max = 15))]
    pub name: String,
}
