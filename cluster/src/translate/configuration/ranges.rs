//! Pools: no address in two of them.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ferrogate_core::{
    model::{
        Family, PoolName,
        pool::{AddressRange, Pool},
    },
    snapshot::{Fault, Problem},
};

use super::Board;
use crate::{
    objects::{Fact, Id, PoolFact, Spelling},
    translate::metallb,
};

/// Every range that is taken.
#[derive(Default)]
pub(super) struct Ranges {
    /// By family and first address: the last one, and whose it is.
    taken: BTreeMap<(Family, IpAddr), (IpAddr, PoolName)>,
    /// Ranges of pools in our words. What they have is taken from MetalLB's pools.
    ours: Vec<AddressRange>,
    pools: BTreeMap<PoolName, Arc<Pool>>,
    shadowed: BTreeMap<Id, Vec<Problem>>,
}

impl Ranges {
    /// Every pool that stands.
    pub(super) fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.values()
    }

    /// Pools of MetalLB's that have lost addresses to ours.
    pub(super) fn shadowed(&self) -> BTreeMap<Id, Vec<Problem>> {
        self.shadowed.clone()
    }

    /// A pool as far as pools of ours leave it.
    fn left_of(&self, id: &Id, pool: &Arc<Pool>) -> Arc<Pool> {
        if id.spelling == Spelling::Ours {
            return pool.clone();
        }
        let ranges = metallb::without(pool, &self.ours);
        if ranges == pool.ranges { pool.clone() } else { Arc::new(Pool { ranges, ..(**pool).clone() }) }
    }

    fn conflict(&self, id: &Id, pool: &Pool) -> Option<Problem> {
        let problem =
            |field: String, fault| Problem { object: Some(id.object()), generation: pool.generation, field, fault };
        if let Some(other) = self.pools.get(&pool.name) {
            let first = format!("namespace {}", other.key.namespace);
            return Some(problem("metadata.name".to_owned(), Fault::Duplicate { first }));
        }
        for (index, range) in pool.ranges.iter().enumerate() {
            // Ranges that stand never overlap, so only the last one that begins at or below our end can reach us.
            let below = self.taken.range(..=(range.family(), range.last())).next_back();
            if let Some(((family, first), (last, other))) = below
                && *family == range.family()
                && *last >= range.first()
            {
                let fault = Fault::Overlap {
                    range: range.to_string(),
                    other_range: format!("{first}-{last}"),
                    other_pool: other.clone(),
                };
                return Some(problem(format!("spec.addresses[{index}]"), fault));
            }
        }
        None
    }
}

impl Board for Ranges {
    fn objections(&self, id: &Id, fact: &Fact) -> Vec<Problem> {
        let Fact::Pool(PoolFact { pool, .. }) = fact else { return Vec::new() };
        self.conflict(id, &self.left_of(id, pool)).into_iter().collect()
    }

    fn place(&mut self, id: &Id, fact: &Fact) {
        let Fact::Pool(PoolFact { pool: whole, .. }) = fact else { return };
        let pool = self.left_of(id, whole);
        if pool.ranges != whole.ranges {
            self.shadowed.insert(id.clone(), vec![shadowed(id, &pool)]);
        }
        if pool.ranges.is_empty() {
            return;
        }
        if id.spelling == Spelling::Ours {
            self.ours.extend(&pool.ranges);
        }
        for range in &pool.ranges {
            self.taken.insert((range.family(), range.first()), (range.last(), pool.name.clone()));
        }
        self.pools.insert(pool.name.clone(), pool);
    }
}

/// That pools of ours have addresses of this pool of MetalLB's.
fn shadowed(id: &Id, left: &Pool) -> Problem {
    let ranges: Vec<_> = left.ranges.iter().map(AddressRange::to_string).collect();
    let ranges = if ranges.is_empty() { "nothing".to_owned() } else { ranges.join(", ") };
    let detail =
        format!("pools of ferrogate.io have addresses of it, and {ranges} is left here; delete it when you move");
    let (field, fault) = ("spec.addresses".to_owned(), Fault::Ignored { detail });
    Problem { object: Some(id.object()), generation: left.generation, field, fault }
}
