//! Which client addresses a listener takes traffic from.

use std::net::IpAddr;

use crate::model::{Prefix, pool::address_bits};

/// `spec.loadBalancerSourceRanges`, merged so that a client is looked up in logarithmic time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRanges {
    restricted: bool,
    /// Disjoint and ascending, both ends included.
    v4: Box<[(u128, u128)]>,
    v6: Box<[(u128, u128)]>,
}

impl SourceRanges {
    /// The union of these prefixes; none at all means everyone.
    pub fn new(prefixes: &[Prefix]) -> Self {
        let of_family = |wanted_v4: bool| {
            let ranges = prefixes.iter().filter(|prefix| prefix.is_ipv4() == wanted_v4);
            merge(ranges.map(|prefix| (address_bits(prefix.network()), address_bits(prefix.broadcast()))).collect())
        };
        Self { restricted: !prefixes.is_empty(), v4: of_family(true), v6: of_family(false) }
    }

    /// Whether this client may come in. IPv4-mapped IPv6 addresses count as the IPv4 address they stand for.
    pub fn allows(&self, client: IpAddr) -> bool {
        if !self.restricted {
            return true;
        }
        let client = client.to_canonical();
        let ranges = if client.is_ipv4() { &self.v4 } else { &self.v6 };
        let bits = address_bits(client);
        let after = ranges.partition_point(|(first, _)| *first <= bits);
        after.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|(_, last)| bits <= *last)
    }
}

fn merge(mut ranges: Vec<(u128, u128)>) -> Box<[(u128, u128)]> {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= *end => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(prefixes: &[&str]) -> SourceRanges {
        SourceRanges::new(&prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect::<Vec<_>>())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn no_range_lets_everyone_in() {
        assert!(ranges(&[]).allows(address("192.0.2.1")));
        assert!(ranges(&[]).allows(address("2001:db8::1")));
    }

    #[test]
    fn ranges_of_one_family_shut_the_other_out() {
        let ranges = ranges(&["192.0.2.0/25"]);

        assert!(ranges.allows(address("192.0.2.127")));
        assert!(!ranges.allows(address("192.0.2.128")));
        assert!(!ranges.allows(address("2001:db8::1")));
    }

    #[test]
    fn a_mapped_address_counts_as_ipv4() {
        assert!(ranges(&["192.0.2.0/24"]).allows(address("::ffff:192.0.2.9")));
        assert!(!ranges(&["::/0"]).allows(address("::ffff:192.0.2.9")));
    }

    proptest! {
        #[test]
        fn membership_equals_asking_every_prefix(
            prefixes in prop::collection::vec((any::<u8>(), 20_u8..=32), 1..12),
            clients in prop::collection::vec(any::<u16>(), 1..32),
        ) {
            let prefixes: Vec<Prefix> = prefixes
                .iter()
                .map(|(byte, length)| Prefix::new(address(&format!("198.51.{byte}.{byte}")), *length).unwrap())
                .collect();
            let ranges = SourceRanges::new(&prefixes);
            for client in clients {
                let [high, low] = client.to_be_bytes();
                let client = address(&format!("198.51.{high}.{low}"));
                prop_assert_eq!(ranges.allows(client), prefixes.iter().any(|prefix| prefix.contains(client)));
            }
        }
    }
}
