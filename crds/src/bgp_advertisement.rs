//! BGPAdvertisement: advertise pools to routers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{ConfigurationStatus, schema};

/// Advertises the addresses of pools to BGP peers, from every node that may.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "ferrogate.io",
    version = "v1beta1",
    kind = "BGPAdvertisement",
    plural = "bgpadvertisements",
    singular = "bgpadvertisement",
    namespaced,
    status = "ConfigurationStatus",
    derive = "PartialEq",
    shortname = "fgbgp",
    category = "ferrogate",
    doc = "Advertises the addresses of pools to BGP peers, from every node that may.",
    printcolumn(name = "IPAddressPools", type_ = "string", json_path = ".spec.ipAddressPools"),
    printcolumn(name = "IPAddressPool Selectors", type_ = "string", json_path = ".spec.ipAddressPoolSelectors"),
    printcolumn(name = "Peers", type_ = "string", json_path = ".spec.peers"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(name = "Node Selectors", type_ = "string", json_path = ".spec.nodeSelectors", priority = "10"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new(
    "!has(self.serviceSelectors) || size(self.serviceSelectors) == 0 \
     || ((!has(self.aggregationLength) || self.aggregationLength == 32) \
     && (!has(self.aggregationLengthV6) || self.aggregationLengthV6 == 128))"
).message(
    "serviceSelectors cannot be combined with aggregation: leave aggregationLength at 32 and aggregationLengthV6 at 128"
))]
pub struct BGPAdvertisementSpec {
    /// Length of the IPv4 prefix that is advertised, 1 to 32 bits; shorter ones bundle many addresses in one route and
    /// must not reach outside the pool. Default: 32, each address alone.
    #[serde(default = "whole_ipv4")]
    #[schemars(range(min = 1, max = 32))]
    pub aggregation_length: u8,

    /// Length of the IPv6 prefix that is advertised, 1 to 128 bits. Default: 128, each address alone.
    #[serde(default = "whole_ipv6")]
    #[schemars(range(min = 1, max = 128))]
    pub aggregation_length_v6: u8,

    /// LOCAL_PREF of the route for peers of our own AS, 0 to 4294967295; the larger is preferred. Absent or 0 leaves
    /// it to the receiving router's rule, which is usually 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4294967295u32))]
    pub local_pref: Option<u32>,

    /// MULTI_EXIT_DISC of the route (RFC 4271), 0 to 4294967295; of several ways into our AS the peer prefers the smaller.
    /// Absent, none is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4294967295u32))]
    pub med: Option<u32>,

    /// How many times more our AS number stands in the path towards peers of another AS, 0 to 250; the longer path is
    /// the less preferred one. Default: 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 250))]
    pub as_path_prepend: u8,

    /// Communities put on the route, at most 63, none twice: `65000:100` (two numbers up to 65535),
    /// `large:64496:1:2` (three numbers up to 4294967295), `target:64496:100` or `origin:64496:100` (extended; an AS number
    /// or an IPv4 address, and a number, one of them at most 65535), `extended:0x0102030405060708` (any other extended
    /// one, as it is sent), or an alias from a Community object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "communities")]
    pub communities: Vec<String>,

    /// Pools by name, none twice. With ipAddressPoolSelectors: either suffices. Neither given means every pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names")]
    pub ip_address_pools: Vec<String>,

    /// Pools by label; any one selector suffices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub ip_address_pool_selectors: Vec<LabelSelector>,

    /// Nodes that advertise, by label; any one selector suffices. None given means every node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub node_selectors: Vec<LabelSelector>,

    /// BGPPeer objects to advertise to, by name, none twice. None given means every peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names")]
    pub peers: Vec<String>,

    /// Services by label; any one selector suffices. None given means every Service. Not together with aggregation,
    /// because one route would then stand for Services that are chosen and others that are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub service_selectors: Vec<LabelSelector>,
}

fn whole_ipv4() -> u8 {
    32
}

fn whole_ipv6() -> u8 {
    128
}

fn communities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 63,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "minLength": 1,
            "maxLength": 253,
            "x-kubernetes-validations": [{
                "rule": format!("!self.contains(':') || {VALUE_RULE}"),
                "message": VALUE_MESSAGE,
            }],
        },
    })
}

/// CEL: whether a text is a standard, a large or an extended community.
pub const VALUE_RULE: &str = "(self.matches('^[0-9]{1,5}:[0-9]{1,5}$') \
    && self.split(':').all(part, int(part) <= 65535)) \
    || (self.matches('^large:[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}$') \
    && self.substring(6).split(':').all(part, int(part) <= 4294967295)) \
    || (self.matches('^(target|origin):[0-9]{1,10}:[0-9]{1,10}$') \
    && self.substring(7).split(':').all(part, int(part) <= 4294967295) \
    && self.substring(7).split(':').exists(part, int(part) <= 65535)) \
    || (self.matches('^(target|origin):[0-9.]{7,15}:[0-9]{1,5}$') && isIP(self.split(':')[1]) \
    && int(self.split(':')[2]) <= 65535) \
    || self.matches('^extended:0x[0-9a-fA-F]{16}$')";

/// What to say where [`VALUE_RULE`] does not hold.
pub const VALUE_MESSAGE: &str = "must be A:B with numbers up to 65535, large:A:B:C with numbers up to 4294967295, \
    target:A:B or origin:A:B with an AS number or an IPv4 address as A and a number as B, one of them at most 65535, or \
    extended:0x and 16 hexadecimal digits";
