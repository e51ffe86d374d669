//! Community: names for communities, each given once.

use std::{collections::BTreeSet, sync::Arc};

use ferrogate_core::model::community::{Community, CommunityAliases, NotACommunity};

use crate::{
    objects::{CommunityFact, Fact, Spelling},
    translate::read::{Check, created},
};

/// What MetalLB takes for a community.
const OF_METALLB: &str = "A:B with numbers up to 65535, or large:A:B:C with numbers up to 4294967295; for extended ones \
                          write the object with apiVersion ferrogate.io/v1beta1";

/// A community as it is written, or what could be; MetalLB has no extended ones.
pub fn community(text: &str, spelling: Spelling) -> Result<Community, String> {
    match (text.parse(), spelling) {
        (Ok(Community::Extended(_)) | Err(_), Spelling::Metallb) => Err(OF_METALLB.to_owned()),
        (read, _) => read.map_err(|no: NotACommunity| no.to_string()),
    }
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
            Err(expected) => check.invalid(&format!("{field}.value"), alias.value, &expected),
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
