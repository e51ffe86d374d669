//! Advertisements: which pools are announced, from which nodes, how.

use std::{collections::BTreeSet, num::NonZeroU8};

use crate::model::{
    InterfaceName, Labels, ObjectKey, PoolName,
    pool::Pool,
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
