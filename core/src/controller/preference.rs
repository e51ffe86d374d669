//! Which pools are asked for an address that nobody named, in which order, and which of them have room.
//!
//! A Service looks at pools that could serve it and have an address left, not at every pool there is: pools that
//! serve certain Namespaces are found by Namespace, and those that are full are passed over without being looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::model::{Family, PoolName, pool::Pool};

/// A place in the order of pools; lower is asked first.
type Rank = usize;

/// A Namespace for pools that serve Namespaces by name; none for the others, of which only a look at the Service tells.
type Bucket = Option<Arc<str>>;

/// Pools with `autoAssign`, best first.
#[derive(Clone, Debug, Default)]
pub(super) struct Preference {
    ranked: Vec<(PoolName, Vec<Bucket>)>,
    rank_of: BTreeMap<PoolName, Rank>,
    by_bucket: BTreeMap<Bucket, Vec<Rank>>,
    vacant: BTreeMap<Family, BTreeMap<Bucket, BTreeSet<Rank>>>,
}

impl Preference {
    /// The order of these pools: those that serve only some Services, lower priority first and 0 last, then the rest;
    /// equal ones by name. None of them has room until it is [noted](Preference::note).
    pub fn new<'a>(pools: impl Iterator<Item = &'a Arc<Pool>>) -> Self {
        let mut pools: Vec<_> = pools
            .filter(|pool| pool.auto_assign)
            .map(|pool| {
                let priority = pool.allocation.as_ref().map(|allocation| allocation.priority);
                ((priority.is_none(), priority == Some(0), priority, &pool.name), pool)
            })
            .collect();
        pools.sort_by_key(|(order, _)| *order);
        let mut made = Self::default();
        for (rank, (_, pool)) in pools.into_iter().enumerate() {
            let buckets = buckets(pool);
            for bucket in &buckets {
                made.by_bucket.entry(bucket.clone()).or_default().push(rank);
            }
            made.rank_of.insert(pool.name.clone(), rank);
            made.ranked.push((pool.name.clone(), buckets));
        }
        made
    }

    /// Notes whether a pool has an address of this family left.
    pub fn note(&mut self, pool: &PoolName, family: Family, has_room: bool) {
        let Some(&rank) = self.rank_of.get(pool) else { return };
        let Some((_, buckets)) = self.ranked.get(rank) else { return };
        let vacant = self.vacant.entry(family).or_default();
        for bucket in buckets {
            match vacant.get_mut(bucket) {
                Some(ranks) if has_room => _ = ranks.insert(rank),
                Some(ranks) => _ = ranks.remove(&rank),
                None if has_room => _ = vacant.insert(bucket.clone(), BTreeSet::from([rank])),
                None => {}
            }
        }
    }

    /// Pools that may serve this Namespace, in order.
    pub fn serving(&self, namespace: &Arc<str>) -> impl Iterator<Item = &PoolName> {
        let ranks = |bucket: &Bucket| self.by_bucket.get(bucket).into_iter().flatten().copied();
        self.names(merged(ranks(&None), ranks(&Some(Arc::clone(namespace)))))
    }

    /// Those of them that have an address of this family left, and these `others`, in order.
    pub fn vacant<'a>(
        &'a self,
        namespace: &Arc<str>,
        family: Family,
        others: impl Iterator<Item = &'a PoolName>,
    ) -> impl Iterator<Item = &'a PoolName> {
        let vacant = self.vacant.get(&family);
        let ranks = |bucket: &Bucket| vacant.and_then(|vacant| vacant.get(bucket)).into_iter().flatten().copied();
        let others: BTreeSet<Rank> = others.filter_map(|pool| self.rank_of.get(pool)).copied().collect();
        let own = ranks(&Some(Arc::clone(namespace)));
        self.names(merged(merged(ranks(&None), own), others.into_iter()))
    }

    /// Whether any pool has an address of this family left.
    pub fn has_room(&self, family: Family) -> bool {
        self.vacant.get(&family).is_some_and(|vacant| vacant.values().any(|ranks| !ranks.is_empty()))
    }

    fn names(&self, ranks: impl Iterator<Item = Rank>) -> impl Iterator<Item = &PoolName> {
        ranks.filter_map(|rank| self.ranked.get(rank)).map(|(name, _)| name)
    }
}

fn buckets(pool: &Pool) -> Vec<Bucket> {
    let named = pool.allocation.as_ref().filter(|allocation| allocation.namespace_selectors.is_empty());
    let named: Vec<Bucket> = named
        .into_iter()
        .flat_map(|allocation| &allocation.namespaces)
        .map(|name| Some(name.as_str().into()))
        .collect();
    if named.is_empty() { vec![None] } else { named }
}

/// Two ascending sequences as one, what stands in both once.
fn merged(one: impl Iterator<Item = Rank>, other: impl Iterator<Item = Rank>) -> impl Iterator<Item = Rank> {
    let (mut one, mut other) = (one.peekable(), other.peekable());
    std::iter::from_fn(move || match (one.peek().copied(), other.peek().copied()) {
        (Some(left), Some(right)) => {
            let next = left.min(right);
            one.next_if_eq(&next);
            other.next_if_eq(&next);
            Some(next)
        }
        (Some(_), None) => one.next(),
        (None, _) => other.next(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ascending_sequences_become_one() {
        let all = |one: &[Rank], other: &[Rank]| -> Vec<Rank> {
            merged(one.iter().copied(), other.iter().copied()).collect()
        };

        assert_eq!(all(&[1, 3, 5], &[2, 3, 9]), [1, 2, 3, 5, 9]);
        assert_eq!(all(&[], &[4]), [4]);
        assert_eq!(all(&[4], &[]), [4]);
    }
}
