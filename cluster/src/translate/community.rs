//! Community: names for communities, each given once.

use std::{collections::BTreeSet, sync::Arc};

use ferrogate_core::model::community::{Community, CommunityAliases, NotACommunity};

use crate::{
    objects::{CommunityFact, Fact, Spelling},
    translate::read::{Check, created},
};

/// A community as it is written; MetalLB has no extended ones.
pub fn community(text: &str, spelling: Spelling) -> Result<Community, NotACommunity> {
    let is_known = |community: &Community| spelling == Spelling::Ours || !matches!(community, Community::Extended(_));
    text.parse().ok().filter(is_known).ok_or(NotACommunity)
}

/// Reads a Community.
pub fn read(object: ferrogate_crds::Community, check: &mut Check) -> Option<Fact> {
    let created = created(&object.metadata);
    let mut names = BTreeSet::new();
    let mut aliases = Vec::new();
    for (index, alias) in object.spec.communities.into_iter().enumerate() {
        let field = format!("spec.communities[{index}]");
        if alias.name.is_empty() || alias.name.len() > 253 || alias.name.contains(':') {
            check.invalid(&format!("{field}.name"), &alias.name, "1 to 253 characters without a colon");
        }
        if !names.insert(alias.name.clone()) {
            check.invalid(&format!("{field}.name"), &alias.name, "each name once");
        }
        match community(&alias.value, check.spelling) {
            Ok(community) => aliases.push((alias.name, community)),
            Err(NotACommunity) => {
                check.invalid(&format!("{field}.value"), alias.value, &NotACommunity.to_string());
            }
        }
    }
    let object = CommunityAliases {
        key: check.key.clone(),
        read_only: check.spelling == Spelling::Metallb,
        generation: check.generation,
        aliases,
    };
    Some(Fact::Community(CommunityFact { object: Arc::new(object), created }))
}
