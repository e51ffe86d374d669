//! What MetalLB was configured with before version 0.13: one ConfigMap, and for a while the kind AddressPool. Only
//! `ferrogate migrate` reads them; MetalLB itself no longer does.
//!
//! The objects that come out are named as MetalLB's own converter names them.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{document::documents, objects::OUR_API, translate::read::is_dns_name};

/// Old configuration in our words, and what of it has no words there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Converted {
    /// Objects of ours.
    pub objects: Vec<Value>,
    /// Fields that are not carried over, each with the reason and what to do.
    pub lost: Vec<(String, String)>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Config {
    peers: Vec<Peer>,
    bgp_communities: BTreeMap<String, String>,
    address_pools: Vec<Pool>,
    bfd_profiles: Vec<BTreeMap<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Peer {
    my_asn: Value,
    peer_asn: Value,
    peer_address: Value,
    source_address: Value,
    peer_port: Value,
    hold_time: Value,
    keepalive_time: Value,
    router_id: Value,
    node_selectors: Vec<Selector>,
    password: Value,
    bfd_profile: Value,
    ebgp_multihop: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Selector {
    match_labels: Map<String, Value>,
    match_expressions: Vec<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Pool {
    name: String,
    protocol: String,
    addresses: Vec<Value>,
    auto_assign: Value,
    avoid_buggy_ips: Value,
    bgp_advertisements: Vec<Advertisement>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Advertisement {
    aggregation_length: Value,
    aggregation_length_v6: Value,
    localpref: Value,
    communities: Vec<Value>,
}

/// An AddressPool, the kind between the ConfigMap and IPAddressPool; its fields have other names than there.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AddressPoolSpec {
    protocol: String,
    addresses: Vec<Value>,
    auto_assign: Value,
    #[serde(rename = "avoidBuggyIPs")]
    avoid_buggy_ips: Value,
    bgp_advertisements: Vec<Map<String, Value>>,
}

/// Whether an object is the ConfigMap of old.
pub fn is_config_map(value: &Value, namespace: &str) -> bool {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    text("/apiVersion") == Some("v1")
        && text("/kind") == Some("ConfigMap")
        && text("/metadata/namespace").is_none_or(|found| found == namespace)
        && text("/data/config").is_some()
        && (text("/metadata/name") == Some("config") || text("/metadata/namespace") == Some(namespace))
}

/// The ConfigMap of old as objects of ours in `namespace`.
///
/// # Errors
/// When its text cannot be read at all.
pub fn config_map(value: &Value, namespace: &str) -> Result<Converted, String> {
    let text = value.pointer("/data/config").and_then(Value::as_str).unwrap_or_default();
    let document = documents(text).into_iter().next().map_or(Ok(Value::Null), |document| document.value);
    let mut found = Converted::default();
    let Some(config): Option<Config> = known(document?, "data.config", &mut found)? else { return Ok(found) };

    for (number, peer) in (1..).zip(config.peers) {
        let selectors = peer.node_selectors.into_iter().map(
            |Selector { match_labels, match_expressions }| json!({ "matchLabels": match_labels, "matchExpressions": match_expressions }),
        );
        let spec = json!({
            "myASN": peer.my_asn,
            "peerASN": peer.peer_asn,
            "peerAddress": peer.peer_address,
            "sourceAddress": peer.source_address,
            "peerPort": peer.peer_port,
            "holdTime": peer.hold_time,
            "keepaliveTime": peer.keepalive_time,
            "routerID": peer.router_id,
            "nodeSelectors": selectors.collect::<Vec<_>>(),
            "password": peer.password,
            "bfdProfile": peer.bfd_profile,
            "ebgpMultiHop": peer.ebgp_multihop,
        });
        found.objects.push(object("BGPPeer", namespace, &format!("peer{number}"), spec));
    }
    let (mut layer2, mut bgp) = (1_usize, 1_usize);
    for (index, pool) in config.address_pools.into_iter().enumerate() {
        let field = format!("data.config.address-pools[{index}]");
        let name = found.name(&pool.name, &format!("{field}.name"));
        let spec = json!({
            "addresses": pool.addresses,
            "autoAssign": pool.auto_assign,
            "avoidBuggyIPs": pool.avoid_buggy_ips,
            "sharing": super::SHARING,
        });
        found.objects.push(object("IPAddressPool", namespace, &name, spec));
        let advertisements = pool.bgp_advertisements.into_iter().map(|one| {
            json!({
                "aggregationLength": one.aggregation_length,
                "aggregationLengthV6": one.aggregation_length_v6,
                "localPref": one.localpref,
                "communities": one.communities,
            })
        });
        let advertisements = advertisements.collect();
        found.advertise(&pool.protocol, &field, namespace, &name, advertisements, &mut layer2, &mut bgp);
    }
    for (index, mut profile) in config.bfd_profiles.into_iter().enumerate() {
        let name = profile.remove("name").and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default();
        let name = found.name(&name, &format!("data.config.bfd-profiles[{index}].name"));
        let spec: Map<String, Value> = profile.into_iter().map(|(field, said)| (camel_case(&field), said)).collect();
        found.objects.push(object("BFDProfile", namespace, &name, Value::Object(spec)));
    }
    if !config.bgp_communities.is_empty() {
        let aliases = config.bgp_communities.into_iter().map(|(name, value)| json!({ "name": name, "value": value }));
        let spec = json!({ "communities": aliases.collect::<Vec<_>>() });
        found.objects.push(object("Community", namespace, "communities", spec));
    }
    Ok(found)
}

/// An AddressPool as objects of ours in `namespace`.
///
/// # Errors
/// When it cannot be read at all.
pub fn address_pool(value: &Value, namespace: &str) -> Result<Converted, String> {
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let mut found = Converted::default();
    let spec = value.get("spec").cloned().unwrap_or_default();
    let Some(pool): Option<AddressPoolSpec> = known(spec, "spec", &mut found)? else { return Ok(found) };
    let spec = json!({
        "addresses": pool.addresses,
        "autoAssign": pool.auto_assign,
        "avoidBuggyIPs": pool.avoid_buggy_ips,
        "sharing": super::SHARING,
    });
    let mut pool_object = object("IPAddressPool", namespace, name, spec);
    if let Some(labels) = value.pointer("/metadata/labels") {
        pool_object["metadata"]["labels"] = labels.clone();
    }
    found.objects.push(pool_object);
    let advertisements: Vec<Value> = pool.bgp_advertisements.into_iter().map(Value::Object).collect();
    match pool.protocol.as_str() {
        "layer2" => {
            found.objects.push(object("L2Advertisement", namespace, name, json!({ "ipAddressPools": [name] })));
        }
        "bgp" => {
            let count = advertisements.len();
            for (number, spec) in (1..).zip(if count == 0 { vec![json!({})] } else { advertisements }) {
                let own = if number == 1 { name.to_owned() } else { format!("{name}-{number}") };
                found.objects.push(advertisement(namespace, &own, name, spec));
            }
        }
        other => found.lost.push(("spec.protocol".to_owned(), unknown_protocol(other))),
    }
    Ok(found)
}

impl Converted {
    #[allow(clippy::too_many_arguments, reason = "two counters go on from pool to pool")]
    fn advertise(
        &mut self,
        protocol: &str,
        field: &str,
        namespace: &str,
        pool: &str,
        advertisements: Vec<Value>,
        layer2: &mut usize,
        bgp: &mut usize,
    ) {
        match protocol {
            "layer2" => {
                let spec = json!({ "ipAddressPools": [pool] });
                self.objects.push(object("L2Advertisement", namespace, &format!("l2advertisement{layer2}"), spec));
                *layer2 += 1;
            }
            "bgp" => {
                for spec in if advertisements.is_empty() { vec![json!({})] } else { advertisements } {
                    self.objects.push(advertisement(namespace, &format!("bgpadvertisement{bgp}"), pool, spec));
                    *bgp += 1;
                }
            }
            other => self.lost.push((format!("{field}.protocol"), unknown_protocol(other))),
        }
    }

    /// A name that an object can have; another one than was written is told.
    fn name(&mut self, written: &str, field: &str) -> String {
        if is_dns_name(written) {
            return written.to_owned();
        }
        let fits = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '.';
        let plain: String =
            written.to_lowercase().chars().map(|letter| if fits(letter) { letter } else { '-' }).collect();
        let name = plain.trim_matches(['-', '.']).to_owned();
        let name = if is_dns_name(&name) { name } else { "unnamed".to_owned() };
        let why =
            format!("{written:?} cannot name an object and becomes {name:?}; correct whoever asks for it by name");
        self.lost.push((field.to_owned(), why));
        name
    }
}

fn unknown_protocol(protocol: &str) -> String {
    format!("{protocol:?} is neither layer2 nor bgp, so that nothing announces the pool; add an advertisement")
}

fn advertisement(namespace: &str, name: &str, pool: &str, mut spec: Value) -> Value {
    spec["ipAddressPools"] = json!([pool]);
    object("BGPAdvertisement", namespace, name, spec)
}

/// An object of ours; fields that hold nothing are left out.
fn object(kind: &str, namespace: &str, name: &str, mut spec: Value) -> Value {
    if let Some(spec) = spec.as_object_mut() {
        spec.retain(|_, said| !super::says_nothing(said) && said.as_array().is_none_or(|list| !list.is_empty()));
    }
    json!({
        "apiVersion": OUR_API,
        "kind": kind,
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    })
}

/// Reads what is known of a value and notes the rest as lost. Nothing at all is `None`.
fn known<T: DeserializeOwned>(value: Value, field: &str, found: &mut Converted) -> Result<Option<T>, String> {
    if value.is_null() {
        return Ok(None);
    }
    let mut unknown = Vec::new();
    let read = serde_ignored::deserialize(value, |path| unknown.push(path.to_string()));
    let why = "is no field that MetalLB ever had here; check its spelling";
    found.lost.extend(unknown.into_iter().map(|path| (format!("{field}.{path}"), why.to_owned())));
    read.map(Some).map_err(|error| format!("{field}: {error}"))
}

/// `minimum-ttl` to `minimumTtl`.
fn camel_case(kebab: &str) -> String {
    let mut words = kebab.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let mut letters = word.chars();
        let head = letters.next().map(|letter| letter.to_ascii_uppercase());
        name + &head.into_iter().chain(letters).collect::<String>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_config(config: &str) -> Converted {
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "config", "namespace": "metallb-system" },
            "data": { "config": config },
        });
        assert!(is_config_map(&map, "metallb-system"));
        config_map(&map, "ferrogate-system").unwrap()
    }

    fn named<'a>(found: &'a Converted, kind: &str, name: &str) -> &'a Value {
        let object = found.objects.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
        &object.unwrap_or_else(|| panic!("{kind} {name} in {found:#?}"))["spec"]
    }

    #[test]
    fn the_config_map_of_old_becomes_pools_advertisements_peers_profiles_and_communities() {
        let found = of_config(
            "peers:\n- {peer-address: 192.0.2.254, peer-asn: 64501, my-asn: 64500, hold-time: 30s, bfd-profile: fast,\n   \
             node-selectors: [{match-labels: {rack: a}, match-expressions: [{key: k, operator: In, values: [v]}]}]}\n\
             bgp-communities: {local: '65535:65281'}\n\
             bfd-profiles: [{name: fast, receive-interval: 50, minimum-ttl: 10}]\n\
             address-pools:\n\
             - {name: one, protocol: layer2, addresses: [192.0.2.0/28], auto-assign: false}\n\
             - {name: two, protocol: bgp, addresses: [198.51.100.0/24], avoid-buggy-ips: true,\n   \
             bgp-advertisements: [{aggregation-length: 32, localpref: 100, communities: [local]}, {aggregation-length: 24}]}\n\
             - {name: three, protocol: bgp, addresses: [203.0.113.0/28]}\n",
        );

        assert_eq!(found.lost, []);
        assert_eq!(
            named(&found, "IPAddressPool", "one"),
            &json!({ "addresses": ["192.0.2.0/28"], "autoAssign": false, "sharing": "AnyNamespace" })
        );
        assert_eq!(named(&found, "L2Advertisement", "l2advertisement1"), &json!({ "ipAddressPools": ["one"] }));
        let first =
            json!({ "aggregationLength": 32, "localPref": 100, "communities": ["local"], "ipAddressPools": ["two"] });
        assert_eq!(named(&found, "BGPAdvertisement", "bgpadvertisement1"), &first);
        assert_eq!(named(&found, "BGPAdvertisement", "bgpadvertisement2")["aggregationLength"], 24);
        assert_eq!(named(&found, "BGPAdvertisement", "bgpadvertisement3"), &json!({ "ipAddressPools": ["three"] }));
        let peer = named(&found, "BGPPeer", "peer1");
        assert_eq!((&peer["holdTime"], &peer["nodeSelectors"][0]["matchLabels"]["rack"]), (&json!("30s"), &json!("a")));
        assert_eq!(named(&found, "BFDProfile", "fast"), &json!({ "receiveInterval": 50, "minimumTtl": 10 }));
        let community = json!({ "communities": [{ "name": "local", "value": "65535:65281" }] });
        assert_eq!(named(&found, "Community", "communities"), &community);
    }

    #[test]
    fn what_the_config_map_says_and_nobody_knows_is_named() {
        let found = of_config("address-pools: [{name: My Pool, protocol: arp, addresses: [], colour: red}]");

        let fields: Vec<&str> = found.lost.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "data.config.address-pools.0.colour",
                "data.config.address-pools[0].name",
                "data.config.address-pools[0].protocol",
            ]
        );
        assert_eq!(found.objects[0]["metadata"]["name"], "my-pool");
    }

    #[test]
    fn an_address_pool_becomes_a_pool_and_its_advertisements() {
        let pool = |spec: Value| json!({ "metadata": { "name": "p", "labels": { "a": "b" } }, "spec": spec });

        let layer2 = address_pool(&pool(json!({ "protocol": "layer2", "addresses": ["192.0.2.0/24"] })), "ns").unwrap();
        let bgp = json!({ "protocol": "bgp", "addresses": [], "bgpAdvertisements": [{ "localPref": 7 }, {}] });
        let bgp = address_pool(&pool(bgp), "ns").unwrap();

        assert_eq!(named(&layer2, "L2Advertisement", "p"), &json!({ "ipAddressPools": ["p"] }));
        assert_eq!(layer2.objects[0]["metadata"]["labels"]["a"], "b");
        assert_eq!(named(&bgp, "BGPAdvertisement", "p"), &json!({ "ipAddressPools": ["p"], "localPref": 7 }));
        assert_eq!(named(&bgp, "BGPAdvertisement", "p-2"), &json!({ "ipAddressPools": ["p"] }));
    }

    #[test]
    fn text_that_is_no_configuration_is_an_error() {
        let map = |config: &str| json!({ "data": { "config": config } });

        assert!(config_map(&map("address-pools: 7"), "ns").is_err());
        assert!(config_map(&map(": ["), "ns").is_err());
        assert_eq!(config_map(&map(""), "ns"), Ok(Converted::default()));
    }
}
