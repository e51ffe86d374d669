//! Communities: no name for two things.

use std::{collections::BTreeMap, sync::Arc};

use ferrogate_core::{
    model::community::Community,
    snapshot::{Fault, Problem},
};

use super::Board;
use crate::objects::{CommunityFact, Fact, Id};

/// Every name that is given, with what it stands for and the object that gives it.
#[derive(Default)]
pub(super) struct Aliases(BTreeMap<String, (Community, Arc<str>)>);

impl Aliases {
    /// What each name stands for.
    pub(super) fn names(&self) -> BTreeMap<&str, Community> {
        self.0.iter().map(|(name, (community, _))| (name.as_str(), *community)).collect()
    }
}

impl Board for Aliases {
    fn objections(&self, id: &Id, fact: &Fact) -> Vec<Problem> {
        let Fact::Community(CommunityFact { object, .. }) = fact else { return Vec::new() };
        let taken = object.aliases.iter().enumerate().filter_map(|(index, (alias, _))| {
            let (_, other) = self.0.get(alias)?;
            let fault = Fault::SameAlias { alias: alias.clone(), other: other.to_string() };
            let field = format!("spec.communities[{index}].name");
            Some(Problem { object: Some(id.object()), generation: object.generation, field, fault })
        });
        taken.collect()
    }

    fn place(&mut self, id: &Id, fact: &Fact) {
        let Fact::Community(CommunityFact { object, .. }) = fact else { return };
        for (alias, community) in &object.aliases {
            self.0.insert(alias.clone(), (*community, id.key.name.clone()));
        }
    }
}
