//! BGPAdvertisement: which pools, to whom, and with which attributes.

use std::{collections::BTreeSet, num::NonZeroU32, sync::Arc};

use ferrogate_core::{
    model::advertisement::{Aggregation, BgpAdvertisement, PoolChoice},
    snapshot::Fault,
};
use ferrogate_crds::BGPAdvertisement;

use crate::{
    objects::{BgpAdvertisementFact, Fact, Spelling},
    translate::{
        community::community,
        read::{Check, created, each_once, selectors},
    },
};

/// The most communities of one advertisement: what one UPDATE surely holds beside its other attributes.
const MAX_COMMUNITIES: usize = 63;

/// The most times that our AS is prepended.
const MAX_PREPEND: u8 = 250;

/// Reads a BGPAdvertisement.
pub fn read(object: BGPAdvertisement, check: &mut Check) -> Option<Fact> {
    let (spec, created) = (object.spec, created(&object.metadata));
    let aggregation = Aggregation { v4: spec.aggregation_length, v6: spec.aggregation_length_v6 };
    for (field, length, most) in [
        ("spec.aggregationLength", aggregation.v4, Aggregation::NONE.v4),
        ("spec.aggregationLengthV6", aggregation.v6, Aggregation::NONE.v6),
    ] {
        if !(1..=most).contains(&length) {
            check.invalid(field, length, &format!("1 to {most}"));
        }
    }
    if !spec.service_selectors.is_empty() && aggregation != Aggregation::NONE {
        let detail = "cannot be combined with aggregation, since one route would then stand for Services that are \
                      chosen and others that are not; leave aggregationLength at 32 and aggregationLengthV6 at 128";
        check.refuse("spec.serviceSelectors", Fault::Schema { detail: detail.to_owned() });
    }
    if spec.as_path_prepend > MAX_PREPEND {
        check.invalid("spec.asPathPrepend", spec.as_path_prepend, "0 to 250");
    }
    if spec.communities.len() > MAX_COMMUNITIES {
        check.invalid("spec.communities", spec.communities.len(), "at most 63 communities");
    }
    let (mut written, mut communities, mut aliases) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (index, text) in spec.communities.into_iter().enumerate() {
        let field = format!("spec.communities[{index}]");
        if !written.insert(text.clone()) {
            check.invalid(&field, &text, "each community once");
        }
        match community(&text, check.spelling) {
            Ok(community) => _ = communities.insert(community),
            // A name holds no colon, so that a mistyped value is never taken for one.
            Err(expected) if text.is_empty() || text.contains(':') => {
                check.invalid(&field, text, &format!("{expected}, or a name from a Community object"));
            }
            Err(_) => aliases.push(text),
        }
    }
    let names = each_once(spec.ip_address_pools, "spec.ipAddressPools", check);
    let pool_selectors = selectors(spec.ip_address_pool_selectors, "spec.ipAddressPoolSelectors", check);
    let advertisement = BgpAdvertisement {
        key: check.key.clone(),
        read_only: check.spelling == Spelling::Metallb,
        generation: check.generation,
        pools: PoolChoice { names, selectors: pool_selectors },
        unfit_pools: BTreeSet::new(),
        node_selectors: selectors(spec.node_selectors, "spec.nodeSelectors", check),
        service_selectors: selectors(spec.service_selectors, "spec.serviceSelectors", check),
        peers: each_once(spec.peers, "spec.peers", check),
        aggregation,
        local_pref: spec.local_pref.and_then(NonZeroU32::new),
        multi_exit_disc: spec.med,
        prepend: spec.as_path_prepend,
        communities,
        unknown_aliases: BTreeSet::new(),
    };
    Some(Fact::BgpAdvertisement(BgpAdvertisementFact { advertisement: Arc::new(advertisement), aliases, created }))
}
