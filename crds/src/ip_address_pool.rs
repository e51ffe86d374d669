//! IPAddressPool: addresses to give to Services.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::schema;

/// Addresses that Services of type LoadBalancer get.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "ferrogate.io",
    version = "v1beta1",
    kind = "IPAddressPool",
    plural = "ipaddresspools",
    singular = "ipaddresspool",
    namespaced,
    status = "IPAddressPoolStatus",
    derive = "PartialEq",
    shortname = "fgpool",
    category = "ferrogate",
    doc = "Addresses that Services of type LoadBalancer get.",
    printcolumn(name = "Auto Assign", type_ = "boolean", json_path = ".spec.autoAssign"),
    printcolumn(name = "Avoid Buggy IPs", type_ = "boolean", json_path = ".spec.avoidBuggyIPs"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(name = "Assigned IPv4", type_ = "integer", json_path = ".status.assignedIPv4"),
    printcolumn(name = "Available IPv4", type_ = "integer", json_path = ".status.availableIPv4"),
    printcolumn(name = "Assigned IPv6", type_ = "integer", json_path = ".status.assignedIPv6", priority = "1"),
    printcolumn(name = "Available IPv6", type_ = "integer", json_path = ".status.availableIPv6", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct IPAddressPoolSpec {
    /// The addresses, 1 to 1024 entries, used in the order written and each from its lowest address upward. An entry
    /// is a prefix (`192.0.2.0/24`; bits behind the prefix length are ignored) or a range with both ends included
    /// (`192.0.2.10-192.0.2.19`). One address alone is `192.0.2.7/32`. IPv4 and IPv6 may stand in one pool. No address
    /// may belong to two entries or two pools.
    #[schemars(schema_with = "addresses")]
    pub addresses: Vec<String>,

    /// Whether a Service that asks for nothing in particular may get an address of this pool. If false, only those
    /// that ask for the pool or for one of its addresses do. Default: true.
    #[serde(default = "yes")]
    pub auto_assign: bool,

    /// Leave out addresses that equipment does not deliver to. Every IPv4 address that ends in .0 or .255 is then no
    /// part of the pool, even for a Service that asks for it, and a Service that has one is moved. Of an entry that is
    /// written as a prefix, the first and the last IPv4 address (network and broadcast address, up to /30) and the
    /// first IPv6 address (that of any router of the subnet, up to /126) are given to nobody any more; a Service that
    /// has one keeps it. Write the entry as a range where its prefix is not a subnet of its own. Default: false.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,

    /// Who may share an address. Default: SameNamespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<Sharing>,

    /// Whom the pool serves. If absent, everyone; if present, only Services that match, and those before any pool
    /// without this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,
}

/// Which Services may share an address of this pool by the annotation ferrogate.io/allow-shared-ip: `SameNamespace`,
/// those of one Namespace; `AnyNamespace`, all, so that whoever learns the sharing key of another Namespace can take
/// free ports of its address. Default: SameNamespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Sharing {
    /// Those of one Namespace.
    SameNamespace,
    /// All.
    AnyNamespace,
}

/// Which Services a pool serves, and how early.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// The order among pools that match a Service: 1 is asked first, larger numbers later, 0 last. Default: 0.
    #[serde(default)]
    pub priority: i32,

    /// Namespaces by name, none twice. They need not exist yet. Together with namespaceSelectors: either suffices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names")]
    pub namespaces: Vec<String>,

    /// Namespaces by label; any one selector suffices. Followed when labels change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub namespace_selectors: Vec<LabelSelector>,

    /// Services by label; any one selector suffices. Where namespaces are chosen as well, both must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub service_selectors: Vec<LabelSelector>,
}

/// How full the pool is, and whether it is in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolStatus {
    /// IPv4 addresses in use. An address that several Services share counts once.
    #[serde(default, rename = "assignedIPv4")]
    #[schemars(range(min = 0))]
    pub assigned_ipv4: i64,

    /// IPv6 addresses in use. An address that several Services share counts once.
    #[serde(default, rename = "assignedIPv6")]
    #[schemars(range(min = 0))]
    pub assigned_ipv6: i64,

    /// IPv4 addresses that are free.
    #[serde(default, rename = "availableIPv4")]
    #[schemars(range(min = 0))]
    pub available_ipv4: i64,

    /// IPv6 addresses that are free; 9223372036854775807 also stands for every larger number.
    #[serde(default, rename = "availableIPv6")]
    #[schemars(range(min = 0))]
    pub available_ipv6: i64,

    /// Who uses the addresses: the lowest 32 of those in use, with up to 32 Services each. `ferrogate status` lists
    /// every Service with its addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "used_by")]
    pub used_by: Vec<AddressUse>,

    /// `Accepted` says whether the pool is in force, and if not, which entry is wrong and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Who uses one address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressUse {
    /// The address.
    pub address: String,
    /// Its Services, each as namespace/name.
    #[serde(default)]
    pub services: Vec<String>,
}

fn used_by(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "object",
            "required": ["address"],
            "properties": {
                "address": {"type": "string", "description": "The address.", "maxLength": 45},
                "services": {
                    "type": "array",
                    "description": "Its Services, each as namespace/name.",
                    "maxItems": 32,
                    "x-kubernetes-list-type": "atomic",
                    "items": {"type": "string", "maxLength": 507},
                },
            },
        },
    })
}

fn yes() -> bool {
    true
}

fn addresses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 1024,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "string",
            "minLength": 1,
            "maxLength": 96,
            "x-kubernetes-validations": [{
                "rule": "isCIDR(self) || (self.split('-').size() == 2 \
                         && isIP(self.split('-')[0].trim()) && isIP(self.split('-')[1].trim()) \
                         && ip(self.split('-')[0].trim()).family() == ip(self.split('-')[1].trim()).family())",
                "message": "must be a prefix such as 192.0.2.0/24, or a range of one family such as \
                            192.0.2.10-192.0.2.19",
            }],
        },
    })
}
