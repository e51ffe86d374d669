//! IPAddressPool: addresses as ranges, and no address in two places.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ferrogate_core::{
    model::{
        Family, PoolName, ServiceKey,
        pool::{
            AddressRange, AddressUse, Pool, PoolStatus, ServiceAllocation, Sharing, address_bits, address_from_bits,
        },
    },
    snapshot::Fault,
    write::Condition,
};
use ferrogate_crds::IPAddressPool;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

use crate::{
    objects::{Fact, PoolFact, Spelling},
    translate::read::{Check, address, created, selectors},
};

/// Reads an IPAddressPool.
pub fn read(object: IPAddressPool, check: &mut Check) -> Option<Fact> {
    let (spec, created) = (object.spec, created(&object.metadata));
    let mut ranges: Vec<AddressRange> = Vec::new();
    let mut edges = BTreeSet::new();
    if spec.addresses.is_empty() {
        check.missing("spec.addresses", "at least one prefix or range of addresses is needed");
    }
    for (index, text) in spec.addresses.iter().enumerate() {
        let field = format!("spec.addresses[{index}]");
        match range(text) {
            Ok(range) => {
                if spec.avoid_buggy_ips && text.contains('/') {
                    edges.extend(edges_of(range));
                }
                if let Some(other) = ranges.iter().find(|other| other.overlaps(&range)) {
                    let fault = Fault::Overlap {
                        range: text.clone(),
                        other_range: other.to_string(),
                        other_pool: PoolName::from(&*check.key.name),
                    };
                    check.refuse(&field, fault);
                }
                ranges.push(range);
            }
            Err(expected) => check.invalid(&field, text, expected),
        }
    }
    let allocation = spec.service_allocation.map(|from| {
        let field = "spec.serviceAllocation";
        let mut namespaces = BTreeSet::new();
        for (index, namespace) in from.namespaces.into_iter().enumerate() {
            if !namespaces.insert(namespace.clone()) {
                check.invalid(&format!("{field}.namespaces[{index}]"), namespace, "each namespace once");
            }
        }
        ServiceAllocation {
            priority: from.priority,
            namespaces,
            namespace_selectors: selectors(from.namespace_selectors, &format!("{field}.namespaceSelectors"), check),
            service_selectors: selectors(from.service_selectors, &format!("{field}.serviceSelectors"), check),
        }
    });
    let pool = Arc::new(Pool {
        key: check.key.clone(),
        read_only: check.spelling == Spelling::Metallb,
        name: PoolName::from(&*check.key.name),
        labels: object.metadata.labels.unwrap_or_default(),
        generation: check.generation,
        ranges,
        auto_assign: spec.auto_assign,
        avoid_buggy_ips: spec.avoid_buggy_ips,
        edges,
        sharing: match spec.sharing {
            None | Some(ferrogate_crds::Sharing::SameNamespace) => Sharing::SameNamespace,
            Some(ferrogate_crds::Sharing::AnyNamespace) => Sharing::AnyNamespace,
        },
        allocation,
        observed: object.status.map(observed).unwrap_or_default(),
    });
    Some(Fact::Pool(PoolFact { pool, created }))
}

/// The status of a pool as we keep it.
pub fn observed(status: ferrogate_crds::IPAddressPoolStatus) -> PoolStatus {
    PoolStatus {
        assigned_ipv4: status.assigned_ipv4,
        assigned_ipv6: status.assigned_ipv6,
        available_ipv4: status.available_ipv4,
        available_ipv6: status.available_ipv6,
        used_by: status.used_by.into_iter().filter_map(address_use).collect(),
        conditions: status.conditions.into_iter().map(condition).collect(),
    }
}

/// What nobody can read was not written by us, and is written anew.
fn address_use(from: ferrogate_crds::AddressUse) -> Option<AddressUse> {
    let service = |text: &String| text.split_once('/').map(|(namespace, name)| ServiceKey::new(namespace, name));
    let services = from.services.iter().map(service).collect::<Option<_>>()?;
    Some(AddressUse { address: address(&from.address)?, services })
}

/// A condition as we keep it, without its time.
pub fn condition(from: meta::Condition) -> Condition {
    Condition {
        kind: from.type_,
        holds: from.status == "True",
        reason: from.reason,
        message: from.message,
        observed_generation: from.observed_generation.unwrap_or(0),
    }
}

const EXPECTED: &str =
    "a prefix such as 192.0.2.0/24 (one address is 192.0.2.7/32) or a range such as 192.0.2.10-192.0.2.19";

/// The addresses of one entry of `spec.addresses`.
fn range(text: &str) -> Result<AddressRange, &'static str> {
    if let Some((network, length)) = text.split_once('/') {
        return prefix(network, length).ok_or(EXPECTED);
    }
    let (first, last) = text.split_once('-').ok_or(EXPECTED)?;
    let (first, last) = (address(first.trim()).ok_or(EXPECTED)?, address(last.trim()).ok_or(EXPECTED)?);
    if Family::of(first) != Family::of(last) {
        return Err("both ends of a range must be of one family");
    }
    AddressRange::new(first, last).ok_or("the first address of a range must not be above its last")
}

/// The addresses of a prefix that a host of its subnet cannot have: network and broadcast address (IPv4), and that of
/// the subnet's routers (IPv6, RFC 4291 §2.6.1). Links between two hosts have none (RFC 3021, RFC 6164).
fn edges_of(prefix: AddressRange) -> Vec<IpAddr> {
    match Family::of(prefix.first()) {
        _ if prefix.span() < 2 => Vec::new(),
        Family::V4 => vec![prefix.first(), prefix.last()],
        Family::V6 => vec![prefix.first()],
    }
}

fn prefix(network: &str, length: &str) -> Option<AddressRange> {
    // An IPv4-mapped prefix would change its meaning with its length; nobody needs one.
    let network: IpAddr = network.parse().ok()?;
    if network != network.to_canonical() {
        return None;
    }
    // `u8` would take a plus sign and leading zeros.
    if !length.bytes().all(|byte| byte.is_ascii_digit()) || (length.len() > 1 && length.starts_with('0')) {
        return None;
    }
    let length: u32 = length.parse().ok()?;
    let family = Family::of(network);
    let width: u32 = match family {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    let host_bits = width.checked_sub(length)?;
    let mask = if host_bits == 128 { u128::MAX } else { (1 << host_bits) - 1 };
    let first = address_bits(network) & !mask;
    AddressRange::new(address_from_bits(family, first), address_from_bits(family, first | mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Option<String> {
        range(text).ok().map(|range| range.to_string())
    }

    #[test]
    fn m_006_a_prefix_is_masked_and_what_is_no_prefix_or_range_is_refused() {
        assert_eq!(shown("192.0.2.5/24").as_deref(), Some("192.0.2.0-192.0.2.255"));
        for refused in [
            " 192.0.2.0/24",
            "192.0.2.0/24 ",
            "192.0.2.1",
            "192.0.2.9-192.0.2.1",
            "10.0.0.300/24",
            "192.0.2.0/33",
            "192.0.2.0/+4",
            "192.0.2.0/024",
            "2001:db8::/129",
            "192.0.2.1-2001:db8::1",
            "192.0.2.1-",
            "-",
            "/",
            "",
            "a-b",
            "::ffff:192.0.2.0/120",
        ] {
            assert_eq!(shown(refused), None, "{refused:?}");
        }
    }

    #[test]
    fn m_007_blanks_around_the_ends_of_a_range_do_not_matter() {
        assert_eq!(shown("192.0.2.1 - 192.0.2.9").as_deref(), Some("192.0.2.1-192.0.2.9"));
        assert_eq!(shown("2001:db8::1-2001:db8::1").as_deref(), Some("2001:db8::1-2001:db8::1"));
        assert_eq!(shown("::ffff:192.0.2.1-192.0.2.9").as_deref(), Some("192.0.2.1-192.0.2.9"));
    }

    #[test]
    fn the_edges_of_a_prefix_are_those_of_its_subnet() {
        for (text, expected) in [
            ("192.0.2.70/26", &["192.0.2.64", "192.0.2.127"][..]),
            ("192.0.2.4/30", &["192.0.2.4", "192.0.2.7"]),
            ("192.0.2.4/31", &[]),
            ("192.0.2.4/32", &[]),
            ("10.0.0.0/8", &["10.0.0.0", "10.255.255.255"]),
            ("2001:db8::5/64", &["2001:db8::"]),
            ("2001:db8::4/127", &[]),
            ("2001:db8::4/128", &[]),
        ] {
            let found: Vec<String> = edges_of(range(text).unwrap()).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn the_whole_of_either_family_is_a_prefix() {
        assert_eq!(shown("0.0.0.0/0").as_deref(), Some("0.0.0.0-255.255.255.255"));
        assert_eq!(range("::/0").unwrap().span(), u128::MAX);
    }
}
