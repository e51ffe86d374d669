//! L2Advertisement: which pools, nodes and interfaces.

use std::{collections::BTreeSet, num::NonZeroU8, sync::Arc};

use ferrogate_core::model::advertisement::{L2Advertisement, PoolChoice, PreferredNodes};
use ferrogate_crds::Stickiness;

use crate::{
    objects::{Fact, Spelling},
    translate::read::{Check, each_once, interface, selector, selectors},
};

/// Reads an L2Advertisement.
pub fn read(object: ferrogate_crds::L2Advertisement, check: &mut Check) -> Option<Fact> {
    let spec = object.spec;
    let names = each_once(spec.ip_address_pools, "spec.ipAddressPools", check);
    let mut interfaces = BTreeSet::new();
    for (index, name) in spec.interfaces.into_iter().enumerate() {
        let field = format!("spec.interfaces[{index}]");
        if let Some(interface) = interface(&name, &field, check)
            && !interfaces.insert(interface)
        {
            check.invalid(&field, &name, "each interface once");
        }
    }
    let mut preferred_nodes = Vec::new();
    for (index, preferred) in spec.preferred_node_selectors.into_iter().enumerate() {
        let field = format!("spec.preferredNodeSelectors[{index}]");
        let weight = u8::try_from(preferred.weight).ok().filter(|weight| *weight <= 100).and_then(NonZeroU8::new);
        let preference = selector(preferred.preference, &format!("{field}.preference"), check);
        match weight {
            Some(weight) => preferred_nodes.push(PreferredNodes { weight, preference }),
            None => check.invalid(&format!("{field}.weight"), preferred.weight, "1 to 100"),
        }
    }
    let pool_selectors = selectors(spec.ip_address_pool_selectors, "spec.ipAddressPoolSelectors", check);
    Some(Fact::L2Advertisement(Arc::new(L2Advertisement {
        key: check.key.clone(),
        read_only: check.spelling == Spelling::Metallb,
        generation: check.generation,
        pools: PoolChoice { names, selectors: pool_selectors },
        node_selectors: selectors(spec.node_selectors, "spec.nodeSelectors", check),
        interfaces,
        service_selectors: selectors(spec.service_selectors, "spec.serviceSelectors", check),
        preferred_nodes,
        is_sticky: spec.stickiness == Some(Stickiness::Owner),
    })))
}
