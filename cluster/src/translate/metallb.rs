//! MetalLB's words in ours: its objects under `metallb.io`, its annotations, and what it wrote before it had either.
//!
//! Nothing beyond `translate` knows that there are two spellings. An object of MetalLB's becomes the same object of
//! ours here, as a value, and is then read like any other; `ferrogate migrate` writes the same value to a file.

use std::{collections::BTreeMap, net::IpAddr};

use ferrogate_core::{
    model::pool::{AddressRange, Pool, address_bits, address_from_bits},
    snapshot::Fault,
};
use serde_json::Value;

use crate::objects::{Kind, OUR_API};

pub mod legacy;

/// MetalLB's namespace, unless told otherwise.
pub const NAMESPACE: &str = "metallb-system";

/// The prefix of our annotations.
const OURS: &str = "ferrogate.io/";
/// The prefix of MetalLB's annotations.
pub const PREFIX: &str = "metallb.io/";
/// The prefix that MetalLB had first and has declared outdated.
pub const OLD_PREFIX: &str = "metallb.universe.tf/";

/// Annotations on Services that ask for something, without their prefix.
pub const WISHES: [&str; 3] = ["address-pool", "loadBalancerIPs", "allow-shared-ip"];
/// The annotation in which MetalLB notes the pool of an address.
pub const FROM_POOL_ANNOTATION: &str = "metallb.io/ip-allocated-from-pool";

/// Who may share an address of a pool of MetalLB's: there the sharing key alone decides, and Services that share an
/// address already must not be parted.
pub const SHARING: &str = "AnyNamespace";

/// The annotation of ours, or else of MetalLB's, that holds this wish; `None` when nobody wrote one. The newest name
/// counts even where its value is empty.
pub fn wish<'a>(annotations: &'a BTreeMap<String, String>, ours: &str) -> Option<(&'a str, &'a str)> {
    let wish = ours.strip_prefix(OURS)?;
    let names = [OURS, PREFIX, OLD_PREFIX].into_iter().map(|prefix| format!("{prefix}{wish}"));
    let found = names.into_iter().find_map(|name| annotations.get_key_value(&name))?;
    Some((found.0.as_str(), found.1.as_str()))
}

/// Outdated annotations, each with the fault to tell.
pub fn outdated(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, Fault)> {
    annotations.keys().filter_map(|name| {
        let wish = name.strip_prefix(OLD_PREFIX).filter(|wish| WISHES.contains(wish))?;
        Some((name.as_str(), Fault::DeprecatedAnnotation { name: name.clone(), instead: format!("{OURS}{wish}") }))
    })
}

/// An object of MetalLB's as ours says the same. What MetalLB's API fills in without meaning anything is left out,
/// and so is its status, which is not ours.
pub fn in_our_words(mut value: Value) -> Value {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(object) = value.as_object_mut() else { return value };
    object.insert("apiVersion".to_owned(), Value::from(OUR_API));
    object.remove("status");
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        // Its clients write every field they know; an empty one says the same as none.
        spec.retain(|_, said| !says_nothing(said));
        if kind == "IPAddressPool" {
            spec.insert("sharing".to_owned(), Value::from(SHARING));
        }
        if kind == "BGPPeer" {
            // In the older version of the kind 0 stands for the default, and beside dynamicASN for none.
            for field in ["peerPort", "peerASN"] {
                if spec.get(field).and_then(Value::as_u64) == Some(0) {
                    spec.remove(field);
                }
            }
        }
    }
    value
}

/// Fields that only kinds of ours have. Of an object of MetalLB's its API server drops them; so does [`drop_ours`].
const ONLY_OURS: [(Kind, &[&str]); 2] = [
    (Kind::BgpAdvertisement, &["asPathPrepend", "med"]),
    (
        Kind::BgpPeer,
        &[
            "gracefulRestartTime",
            "maxPrefixes",
            "nodeValues",
            "passive",
            "peerPrefix",
            "role",
            "shutdown",
            "ttlSecurityHops",
        ],
    ),
];

/// Takes the fields out of an object of MetalLB's that MetalLB does not know, and names them.
pub fn drop_ours(kind: Kind, value: &mut Value) -> Vec<String> {
    let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) else { return Vec::new() };
    let fields = ONLY_OURS.iter().filter(|(of, _)| *of == kind).flat_map(|(_, fields)| *fields);
    fields.filter(|field| spec.remove(**field).is_some()).map(|field| format!("spec.{field}")).collect()
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.values().all(says_nothing),
        _ => false,
    }
}

/// What is left of a pool of MetalLB's where pools of ours have some of its addresses: its ranges without theirs.
pub fn without(pool: &Pool, ours: &[AddressRange]) -> Vec<AddressRange> {
    let mut left = pool.ranges.clone();
    for taken in ours {
        left = left.into_iter().flat_map(|range| cut(range, taken)).flatten().collect();
    }
    left
}

/// A range without another one: what lies below it, and what lies above.
fn cut(range: AddressRange, taken: &AddressRange) -> [Option<AddressRange>; 2] {
    if !range.overlaps(taken) {
        return [Some(range), None];
    }
    let family = range.family();
    let beside = |address: IpAddr, step: fn(u128) -> Option<u128>| {
        step(address_bits(address)).map(|bits| address_from_bits(family, bits))
    };
    let below = beside(taken.first(), |bits| bits.checked_sub(1)).filter(|_| range.first() < taken.first());
    let above = beside(taken.last(), |bits| bits.checked_add(1)).filter(|_| range.last() > taken.last());
    [
        below.and_then(|last| AddressRange::new(range.first(), last)),
        above.and_then(|first| AddressRange::new(first, range.last())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn m_056_the_newest_name_of_an_annotation_counts_even_where_it_is_empty() {
        let ours = "ferrogate.io/address-pool";
        let (new, old) = (("metallb.io/address-pool", ""), ("metallb.universe.tf/address-pool", "c"));

        assert_eq!(wish(&annotations(&[old, new, (ours, "a")]), ours), Some((ours, "a")));
        assert_eq!(wish(&annotations(&[old, new]), ours), Some(("metallb.io/address-pool", "")));
        assert_eq!(wish(&annotations(&[old]), ours), Some(("metallb.universe.tf/address-pool", "c")));
        assert_eq!(wish(&annotations(&[]), ours), None);
    }

    #[test]
    fn a_range_loses_what_another_one_has() {
        let range = |first: &str, last: &str| AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap();
        let shown = |taken| cut(range("192.0.2.10", "192.0.2.20"), &taken).into_iter().flatten().collect::<Vec<_>>();

        assert_eq!(shown(range("192.0.2.0", "192.0.2.9")), [range("192.0.2.10", "192.0.2.20")]);
        assert_eq!(shown(range("192.0.2.0", "192.0.2.12")), [range("192.0.2.13", "192.0.2.20")]);
        assert_eq!(shown(range("192.0.2.20", "192.0.2.30")), [range("192.0.2.10", "192.0.2.19")]);
        let inner = [range("192.0.2.10", "192.0.2.11"), range("192.0.2.14", "192.0.2.20")];
        assert_eq!(shown(range("192.0.2.12", "192.0.2.13")), inner);
        assert_eq!(shown(range("192.0.2.0", "192.0.2.255")), []);
        let whole = cut(range("0.0.0.0", "255.255.255.255"), &range("0.0.0.0", "255.255.255.255"));
        assert_eq!(whole, [None, None]);
    }

    #[test]
    fn what_the_api_of_metallb_fills_in_is_not_taken_for_a_wish() {
        let peer = serde_json::json!({
            "apiVersion": "metallb.io/v1beta2",
            "kind": "BGPPeer",
            "metadata": { "name": "p" },
            "spec": { "myASN": 64500, "peerASN": 0, "dynamicASN": "external", "passwordSecret": {}, "vrf": "" },
            "status": {},
        });

        let ours = in_our_words(peer);

        let expected = serde_json::json!({
            "apiVersion": "ferrogate.io/v1beta1",
            "kind": "BGPPeer",
            "metadata": { "name": "p" },
            "spec": { "myASN": 64500, "dynamicASN": "external" },
        });
        assert_eq!(ours, expected);
    }
}
