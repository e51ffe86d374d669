//! BGPAdvertisements: which pools each can stand for.
//!
//! An advertisement that does not fit one pool still covers the others: taking all its routes back would hurt more
//! than the mistake.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ferrogate_core::{
    model::{
        Family, NodeName, ObjectKey, PoolName,
        advertisement::{BgpAdvertisement, least_aggregation},
        community::Community,
        node::Node,
        pool::Pool,
    },
    snapshot::{Fault, Problem},
};
use imbl::OrdMap;

use super::{
    Board,
    peers::{Peers, meeting},
};
use crate::objects::{BgpAdvertisementFact, Fact, Id};

/// Which advertisements cover each pool.
pub(super) struct Routes<'a> {
    pools: &'a OrdMap<PoolName, Arc<Pool>>,
    peers: &'a Peers,
    aliases: &'a BTreeMap<&'a str, Community>,
    nodes: &'a OrdMap<NodeName, Arc<Node>>,
    covering: BTreeMap<PoolName, Vec<Arc<BgpAdvertisement>>>,
    advertisements: BTreeMap<ObjectKey, Arc<BgpAdvertisement>>,
}

impl<'a> Routes<'a> {
    pub(super) fn new(
        pools: &'a OrdMap<PoolName, Arc<Pool>>,
        peers: &'a Peers,
        aliases: &'a BTreeMap<&'a str, Community>,
        nodes: &'a OrdMap<NodeName, Arc<Node>>,
    ) -> Self {
        Self { pools, peers, aliases, nodes, covering: BTreeMap::new(), advertisements: BTreeMap::new() }
    }

    /// Every advertisement that stands, aliases resolved.
    pub(super) fn advertisements(self) -> BTreeMap<ObjectKey, Arc<BgpAdvertisement>> {
        self.advertisements
    }

    /// Why this advertisement cannot stand for pools it chooses, pool by pool, and the field that is to blame.
    fn misfits<'b>(
        &'b self,
        advertisement: &'b BgpAdvertisement,
    ) -> impl Iterator<Item = (&'b PoolName, &'static str, Fault)> {
        let chosen = self.pools.values().filter(|pool| advertisement.pools.covers(pool));
        chosen.filter_map(|pool| {
            let wide = self.too_wide(advertisement, pool);
            let misfit = wide.or_else(|| self.echo(advertisement, pool)).or_else(|| self.conflict(advertisement, pool));
            misfit.map(|(field, fault)| (&pool.name, field, fault))
        })
    }

    fn too_wide(&self, advertisement: &BgpAdvertisement, pool: &Pool) -> Option<(&'static str, Fault)> {
        pool.ranges.iter().find_map(|range| {
            let (length, least) = (advertisement.aggregation.of(range.family()), least_aggregation(range));
            let field = match range.family() {
                Family::V4 => "spec.aggregationLength",
                Family::V6 => "spec.aggregationLengthV6",
            };
            let fault = Fault::AggregateTooWide { length, range: range.to_string(), pool: pool.name.clone(), least };
            (length < least).then_some((field, fault))
        })
    }

    fn echo(&self, advertisement: &BgpAdvertisement, pool: &Pool) -> Option<(&'static str, Fault)> {
        if !pool.has_family(Family::V6) {
            return None;
        }
        let (peer, profile) = self.peers.echoing(advertisement)?;
        let fault = Fault::EchoTowardsIpv6 { pool: pool.name.clone(), peer: peer.clone(), profile: profile.to_owned() };
        Some(("spec.peers", fault))
    }

    fn conflict(&self, one: &BgpAdvertisement, pool: &Pool) -> Option<(&'static str, Fault)> {
        // Where Services are chosen it depends on them whether two advertisements meet at all.
        if !one.service_selectors.is_empty() {
            return None;
        }
        let others = self.covering.get(&pool.name).into_iter().flatten();
        let other = others.into_iter().find(|other| self.contradict(one, other, pool))?;
        let number =
            |advertisement: &BgpAdvertisement| advertisement.local_pref.map_or(0, |preference| preference.get());
        let fault = Fault::LocalPrefConflict {
            ours: number(one),
            theirs: number(other),
            other: other.key.name.to_string(),
            pool: pool.name.clone(),
        };
        Some(("spec.localPref", fault))
    }

    /// Whether the two give a route to one peer from one node different values.
    fn contradict(&self, one: &BgpAdvertisement, other: &BgpAdvertisement, pool: &Pool) -> bool {
        let same_route = [Family::V4, Family::V6]
            .into_iter()
            .any(|family| pool.has_family(family) && one.aggregation.of(family) == other.aggregation.of(family));
        let same_peer = one.peers.is_empty() || other.peers.is_empty() || !one.peers.is_disjoint(&other.peers);
        let both = |node: &Node| one.allows_node(&node.labels) && other.allows_node(&node.labels);
        one.local_pref != other.local_pref
            && other.service_selectors.is_empty()
            && same_route
            && same_peer
            && meeting(self.nodes, both).is_some()
    }
}

impl Board for Routes<'_> {
    const STANDS_IN_PART: bool = true;

    fn objections(&self, id: &Id, fact: &Fact) -> Vec<Problem> {
        let Fact::BgpAdvertisement(BgpAdvertisementFact { advertisement, .. }) = fact else { return Vec::new() };
        let problem = |(_, field, fault): (_, &str, _)| Problem {
            object: Some(id.object()),
            generation: advertisement.generation,
            field: field.to_owned(),
            fault,
        };
        self.misfits(advertisement).map(problem).collect()
    }

    fn place(&mut self, id: &Id, fact: &Fact) {
        let Fact::BgpAdvertisement(BgpAdvertisementFact { advertisement, aliases, .. }) = fact else { return };
        let mut advertisement = BgpAdvertisement::clone(advertisement);
        let unfit: BTreeSet<PoolName> = self.misfits(&advertisement).map(|(pool, _, _)| pool.clone()).collect();
        advertisement.unfit_pools = unfit;
        for alias in aliases {
            match self.aliases.get(alias.as_str()) {
                Some(community) => _ = advertisement.communities.insert(*community),
                None => _ = advertisement.unknown_aliases.insert(alias.clone()),
            }
        }
        let advertisement = Arc::new(advertisement);
        for pool in self.pools.values().filter(|pool| advertisement.covers(pool)) {
            self.covering.entry(pool.name.clone()).or_default().push(advertisement.clone());
        }
        self.advertisements.insert(id.key.clone(), advertisement);
    }
}
