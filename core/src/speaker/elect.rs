//! One owner per set of addresses, the same answer on every node that knows the same facts.
//!
//! There is no lock and no stored leader: candidates are put in order by facts alone, and the first one owns. Taking
//! a candidate away moves only what it owned; adding one moves only what it now wins.

use std::{cmp::Reverse, net::IpAddr};

use sha2::{Digest, Sha256};

use crate::model::NodeName;

/// Where a candidate stands for one set of addresses. The smallest comes first and owns.
///
/// The fields stand in the order of the rule: who does not yield to the others, then who is seen to be reached, then who
/// is not cordoned, then who can serve most of what shares the addresses, then whom a person wants, then who has them
/// already where that counts, then who is preferred most, then the hash, which spreads addresses over nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// It is not heard by others who could do it.
    pub yields: bool,
    /// Only interfaces that somebody finds dead could carry it.
    pub is_cut_off: bool,
    /// It is cordoned, where that counts.
    pub cordoned: bool,
    /// How many addresses of how many Services it can serve, summed up.
    pub serves: Reverse<usize>,
    /// A person asked for it.
    pub wished: Reverse<bool>,
    /// It announced the addresses last, where that counts.
    pub keeps: Reverse<bool>,
    /// Summed weights of the `preferredNodeSelectors` that match.
    pub preference: Reverse<u32>,
    /// [`hash`] of the node and the set's first address.
    pub hash: [u8; 32],
    /// Its name.
    pub node: NodeName,
}

/// SHA-256 of `<node>#<address>`, the address in its canonical text. The same rule as MetalLB's, so that taking over
/// from it moves nothing.
pub fn hash(node: &NodeName, address: IpAddr) -> [u8; 32] {
    hash_text(node, &address.to_string())
}

/// [`hash`] for an address that is text already: many nodes are hashed for one address.
pub(super) fn hash_text(node: &NodeName, address: &str) -> [u8; 32] {
    Sha256::new().chain_update(node.as_str()).chain_update("#").chain_update(address).finalize().into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn order(nodes: &[&str], address: &str) -> Vec<String> {
        let address: IpAddr = address.parse().unwrap();
        let mut nodes: Vec<NodeName> = nodes.iter().map(|&node| node.into()).collect();
        nodes.sort_by_key(|node| hash(node, address));
        nodes.iter().map(NodeName::to_string).collect()
    }

    #[test]
    fn m_099_the_published_hash_order_is_reproduced() {
        let short = ["k1", "k2", "k3"];
        let racks = ["rack1-n1", "rack1-n2", "rack2-n1"];

        assert_eq!(order(&short, "192.0.2.10"), ["k1", "k2", "k3"]);
        assert_eq!(order(&short, "192.0.2.11"), ["k3", "k1", "k2"]);
        assert_eq!(order(&short, "2001:db8::1"), ["k2", "k1", "k3"]);
        assert_eq!(order(&short, "2001:db8::10"), ["k1", "k3", "k2"]);
        assert_eq!(order(&racks, "192.0.2.10"), ["rack1-n1", "rack2-n1", "rack1-n2"]);
        assert_eq!(order(&racks, "192.0.2.11"), ["rack1-n1", "rack1-n2", "rack2-n1"]);
        assert_eq!(order(&racks, "2001:db8::1"), ["rack1-n1", "rack1-n2", "rack2-n1"]);
        assert_eq!(order(&racks, "2001:db8::10"), ["rack1-n2", "rack1-n1", "rack2-n1"]);
    }

    #[test]
    fn m_099_the_hash_is_sha_256_of_node_number_sign_and_address() {
        let hex: String =
            hash(&"k1".into(), "192.0.2.10".parse().unwrap()).iter().map(|b| format!("{b:02x}")).collect();

        assert_eq!(hex, "07396f43a12c73f7b02cee3c43c54e523995e54a7547991c77dfbdb64f3643ae");
    }

    #[test]
    fn addresses_spread_over_the_nodes() {
        let nodes: Vec<NodeName> = (0..10).map(|number| format!("node-{number}").into()).collect();
        let mut shares: BTreeMap<&NodeName, usize> = BTreeMap::new();

        for number in 0..10_000_u32 {
            let address = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
            *shares.entry(nodes.iter().min_by_key(|node| hash(node, address)).unwrap()).or_default() += 1;
        }

        // A fair share is 1000 with a standard deviation of 30.
        assert!(shares.values().all(|share| (880..1120).contains(share)), "{shares:?}");
    }

    /// The hash is MetalLB's, so its spread is what it is: how even it is shows over many clusters.
    #[test]
    fn of_a_thousand_addresses_on_ten_nodes_none_has_more_than_a_quarter_above_the_mean_in_most_clusters() {
        let busiest = |cluster: u32| -> usize {
            let nodes: Vec<NodeName> =
                (0..10).map(|number| format!("c{cluster}-worker-{number}").as_str().into()).collect();
            let mut shares: BTreeMap<&NodeName, usize> = BTreeMap::new();
            for number in 0..1000_u32 {
                let address = IpAddr::from((0xc000_0200 + number).to_be_bytes());
                *shares.entry(nodes.iter().min_by_key(|node| hash(node, address)).unwrap()).or_default() += 1;
            }
            shares.into_values().max().unwrap()
        };

        let mut busiest: Vec<usize> = (0..100).map(busiest).collect();
        busiest.sort_unstable();

        assert!(busiest[50] <= 125, "{busiest:?}");
    }

    type Parts = ([bool; 5], [u8; 2], u8);

    proptest! {
        #[test]
        fn each_part_of_a_rank_beats_all_that_follow_it(a: Parts, b: Parts) {
            let rank = |([yields, is_cut_off, cordoned, wished, keeps], [serves, preference], hash): Parts, node: &str| {
                Rank {
                    yields,
                    is_cut_off,
                    cordoned,
                    serves: Reverse((serves % 3).into()),
                    wished: Reverse(wished),
                    keeps: Reverse(keeps),
                    preference: Reverse((preference % 3).into()),
                    hash: [hash % 3; 32],
                    node: node.into(),
                }
            };
            // In the order of the rule, the greater the better.
            let parts = |([yields, is_cut_off, cordoned, wished, keeps], [serves, preference], hash): Parts| {
                let flags = |flag: bool| u8::from(flag);
                [
                    flags(!yields), flags(!is_cut_off), flags(!cordoned), serves % 3, flags(wished), flags(keeps),
                    preference % 3, 3 - hash % 3,
                ]
            };

            let first_is_a = rank(a, "a") < rank(b, "b");

            let decisive = parts(a).into_iter().zip(parts(b)).find(|(a, b)| a != b);
            prop_assert_eq!(first_is_a, decisive.is_none_or(|(a, b)| a > b));
        }
    }
}
