//! Community: names for BGP communities.

use kube::{CustomResource, KubeSchema};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    ConfigurationStatus,
    bgp_advertisement::{VALUE_MESSAGE, VALUE_RULE},
};

/// Gives BGP communities names that BGPAdvertisements can use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "ferrogate.io",
    version = "v1beta1",
    kind = "Community",
    plural = "communities",
    singular = "community",
    namespaced,
    status = "ConfigurationStatus",
    derive = "PartialEq",
    shortname = "fgcommunity",
    category = "ferrogate",
    doc = "Gives BGP communities names that BGPAdvertisements can use.",
    printcolumn(name = "Names", type_ = "string", json_path = ".spec.communities[*].name"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct CommunitySpec {
    /// The names and what each stands for. A name may be given once only, over all Community objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "aliases")]
    pub communities: Vec<CommunityAlias>,
}

/// A name for a community.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommunityAlias {
    /// The name. It holds no colon, so that it cannot be mistaken for a value.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[^:]+$"))]
    pub name: String,

    /// The community: `65000:100` (two numbers up to 65535), `large:64496:1:2` (three numbers up to 4294967295),
    /// `target:64496:100` or `origin:64496:100` (extended; an AS number or an IPv4 address, and a number, one of them at
    /// most 65535), or `extended:0x0102030405060708` (any other extended one, as it is sent).
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new(VALUE_RULE).message(VALUE_MESSAGE))]
    pub value: String,
}

fn aliases(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 1024,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": generator.subschema_for::<CommunityAlias>(),
    })
}
