//! Advertisements: which pools are announced, from which nodes, how.

use std::{
    collections::BTreeSet,
    num::{NonZeroU8, NonZeroU32},
};

use crate::model::{
    Family, InterfaceName, Labels, ObjectKey, PeerName, PoolName,
    community::Community,
    pool::{AddressRange, Pool, address_bits},
    selector::{LabelSelector, any_matches},
};

/// A valid L2Advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2Advertisement {
    /// Where the object lives.
    pub key: ObjectKey,
    /// Written for MetalLB: it counts like any other, and its status is left to MetalLB.
    pub read_only: bool,
    /// `metadata.generation`; 0 where the source has none.
    pub generation: i64,
    /// `spec.ipAddressPools` and `spec.ipAddressPoolSelectors`.
    pub pools: PoolChoice,
    /// `spec.nodeSelectors`: nodes that may announce; empty means all.
    pub node_selectors: Vec<LabelSelector>,
    /// `spec.interfaces`: exact interface names; empty means every suitable interface.
    pub interfaces: BTreeSet<InterfaceName>,
    /// `spec.serviceSelectors`: Services by label; empty means all.
    pub service_selectors: Vec<LabelSelector>,
    /// `spec.preferredNodeSelectors`: soft preference for some of the nodes.
    pub preferred_nodes: Vec<PreferredNodes>,
    /// `spec.stickiness` is `Owner`: whoever announces an address keeps it for as long as it can.
    pub is_sticky: bool,
}

/// A valid BGPAdvertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpAdvertisement {
    /// Where the object lives.
    pub key: ObjectKey,
    /// Written for MetalLB: it counts like any other, and its status is left to MetalLB.
    pub read_only: bool,
    /// `metadata.generation`; 0 where the source has none.
    pub generation: i64,
    /// `spec.ipAddressPools` and `spec.ipAddressPoolSelectors`.
    pub pools: PoolChoice,
    /// Pools that are chosen, and yet not covered, because the advertisement cannot stand for them.
    pub unfit_pools: BTreeSet<PoolName>,
    /// `spec.nodeSelectors`: nodes that advertise; empty means all.
    pub node_selectors: Vec<LabelSelector>,
    /// `spec.serviceSelectors`: Services by label; empty means all.
    pub service_selectors: Vec<LabelSelector>,
    /// `spec.peers`: BGPPeers by name; empty means all.
    pub peers: BTreeSet<PeerName>,
    /// `spec.aggregationLength` and `spec.aggregationLengthV6`.
    pub aggregation: Aggregation,
    /// `spec.localPref`; `None` leaves LOCAL_PREF to whoever receives the route.
    pub local_pref: Option<NonZeroU32>,
    /// `spec.med`: MULTI_EXIT_DISC of the route; `None` sends none.
    pub multi_exit_disc: Option<u32>,
    /// `spec.asPathPrepend`: how many times more our AS stands in the path towards another AS, 0 to 250.
    pub prepend: u8,
    /// `spec.communities`, aliases resolved.
    pub communities: BTreeSet<Community>,
    /// Aliases of `spec.communities` that no Community object gives. A route that should carry one must not go out
    /// without it: it may be what keeps the route from spreading.
    pub unknown_aliases: BTreeSet<String>,
}

/// How many leading bits of an address are advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregation {
    /// 1 to 32.
    pub v4: u8,
    /// 1 to 128.
    pub v6: u8,
}

impl Aggregation {
    /// Every address alone.
    pub const NONE: Self = Self { v4: 32, v6: 128 };

    /// The length for addresses of this family.
    pub fn of(self, family: Family) -> u8 {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// The shortest prefixes that make up this range and nothing else: the least [`Aggregation`] that stays within it.
pub fn least_aggregation(range: &AddressRange) -> u8 {
    let width = u32::from(Aggregation::NONE.of(range.family()));
    let (first, last) = (address_bits(range.first()), address_bits(range.last()));
    let host_bits = first.trailing_zeros().min(last.trailing_ones()).min(width);
    u8::try_from(width - host_bits).unwrap_or(u8::MAX)
}

/// Which pools an advertisement covers: by name or by label; both empty means every pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolChoice {
    /// Pools by name.
    pub names: BTreeSet<PoolName>,
    /// Pools by label, added to `names`.
    pub selectors: Vec<LabelSelector>,
}

/// One entry of `preferredNodeSelectors`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreferredNodes {
    /// 1 to 100; weights of all matching entries add up.
    pub weight: NonZeroU8,
    /// The nodes that get the weight.
    pub preference: LabelSelector,
}

impl PoolChoice {
    /// Whether this pool is covered.
    pub fn covers(&self, pool: &Pool) -> bool {
        (self.names.is_empty() && self.selectors.is_empty())
            || self.names.contains(&pool.name)
            || self.selectors.iter().any(|selector| selector.matches(&pool.labels))
    }
}

impl L2Advertisement {
    /// Whether a node with these labels may announce.
    pub fn allows_node(&self, labels: &Labels) -> bool {
        any_matches(&self.node_selectors, labels)
    }

    /// Whether a Service with these labels is covered.
    pub fn covers_service(&self, labels: &Labels) -> bool {
        any_matches(&self.service_selectors, labels)
    }
}

impl BgpAdvertisement {
    /// Whether routes to this pool are advertised.
    pub fn covers(&self, pool: &Pool) -> bool {
        self.pools.covers(pool) && !self.unfit_pools.contains(&pool.name)
    }

    /// Whether a node with these labels advertises.
    pub fn allows_node(&self, labels: &Labels) -> bool {
        any_matches(&self.node_selectors, labels)
    }

    /// Whether a Service with these labels is covered.
    pub fn covers_service(&self, labels: &Labels) -> bool {
        any_matches(&self.service_selectors, labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_aggregation_of_a_range_never_reaches_outside_of_it() {
        for (first, last, expected) in [
            ("192.0.2.0", "192.0.2.255", 24),
            ("192.0.2.16", "192.0.2.31", 28),
            ("192.0.2.200", "192.0.2.250", 32),
            ("192.0.2.200", "192.0.2.251", 30),
            ("192.0.2.0", "192.0.2.2", 32),
            ("192.0.2.7", "192.0.2.7", 32),
            ("192.0.0.0", "192.0.2.255", 24),
            ("0.0.0.0", "255.255.255.255", 0),
            ("2001:db8::", "2001:db8::ffff", 112),
            ("2001:db8::1", "2001:db8::ffff", 128),
            ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0),
        ] {
            let range = AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap();
            assert_eq!(least_aggregation(&range), expected, "{range}");
        }
    }
}
