//! L2Advertisement: announce pools by ARP and NDP.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{ConfigurationStatus, schema};

/// Announces the addresses of pools on the local network, by ARP and NDP, each from one node at a time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "ferrogate.io",
    version = "v1beta1",
    kind = "L2Advertisement",
    plural = "l2advertisements",
    singular = "l2advertisement",
    namespaced,
    status = "ConfigurationStatus",
    derive = "PartialEq",
    shortname = "fgl2",
    category = "ferrogate",
    doc = "Announces the addresses of pools on the local network, by ARP and NDP, each from one node at a time.",
    printcolumn(name = "IPAddressPools", type_ = "string", json_path = ".spec.ipAddressPools"),
    printcolumn(name = "IPAddressPool Selectors", type_ = "string", json_path = ".spec.ipAddressPoolSelectors"),
    printcolumn(name = "Interfaces", type_ = "string", json_path = ".spec.interfaces"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(name = "Node Selectors", type_ = "string", json_path = ".spec.nodeSelectors", priority = "10"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct L2AdvertisementSpec {
    /// Pools by name, none twice. With ipAddressPoolSelectors: either suffices. Neither given means every pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names")]
    pub ip_address_pools: Vec<String>,

    /// Pools by label; any one selector suffices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub ip_address_pool_selectors: Vec<LabelSelector>,

    /// Nodes that may announce, by label; any one selector suffices. None given means every node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub node_selectors: Vec<LabelSelector>,

    /// Network interfaces to announce on, by their exact names (not patterns), none twice. None given means every
    /// suitable interface of the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::interfaces")]
    pub interfaces: Vec<String>,

    /// Services by label; any one selector suffices. None given means every Service. A Service that shares its address
    /// with others cannot be told apart on the network, so it is not announced through an advertisement that has this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub service_selectors: Vec<LabelSelector>,

    /// Nodes to prefer among those that may announce. The node with the largest sum of matching weights, over all
    /// advertisements of the address, announces; without any match the choice stays as if this were absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub preferred_node_selectors: Vec<PreferredNodeSelector>,

    /// Whether an address stays where it is when a node comes back that would come first. Default: None.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stickiness: Option<Stickiness>,
}

/// Whether an address stays where it is when a node comes back that would come first: `None`, it goes back at once;
/// `Owner`, the node that announces it keeps it, whatever is preferred, until it cannot or somebody moves the address
/// (ferrogate move). Of several advertisements of an address one that says Owner suffices. Default: None.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Stickiness {
    /// It goes back at once.
    None,
    /// Its owner keeps it.
    Owner,
}

/// A weight for some of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreferredNodeSelector {
    /// How much a node that matches is preferred, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,

    /// The nodes, by label. An empty selector matches every node.
    #[schemars(schema_with = "schema::selector")]
    pub preference: LabelSelector,
}
