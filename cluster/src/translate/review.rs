//! What would become of the configuration if one object were different: asked before the change is made.
//!
//! The answer comes from a second translation of the configuration beside the one in force, before and after the
//! change, so that whoever is asked beforehand and whoever finds the object later can never disagree.

use std::collections::BTreeMap;

use ferrogate_core::snapshot::{Fault, Origin, Problem};
use serde_json::Value;

use crate::{
    objects::{Id, Kind, Reading},
    translate::{Entry, Translator, read},
};

/// Kinds that decide nothing about the configuration; there may be many objects of them.
const WORKLOAD: [Kind; 5] = [Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::Ingress, Kind::IngressClass];

/// A change that somebody asks for.
#[derive(Clone, Debug)]
pub enum Proposal {
    /// This object comes, or takes the place of the one of its name.
    Set(Value),
    /// This object goes.
    Remove(Id),
}

/// What would become of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// What would be left out for it: the object itself, or one that stands now.
    pub losses: Vec<Loss>,
    /// What would be worth knowing, and costs nothing.
    pub warnings: Vec<Problem>,
}

/// Something that would be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What would be wrong, and with which object.
    pub problem: Problem,
    /// Whether the same is wrong already, change or no change.
    pub is_old: bool,
}

/// Everything that is wrong, by object.
type Findings = BTreeMap<Id, Vec<Problem>>;

impl Translator {
    /// What would become of a change, judged by the objects known now. Nothing changes by asking.
    pub fn review(&self, proposal: Proposal) -> Review {
        let objects = self.objects.without(|id| WORKLOAD.contains(&id.kind) || matches!(id.kind, Kind::Gateway(_)));
        let mut beside =
            Self { objects, standing: self.standing.clone(), ..Self::new(self.rules.clone(), self.lone_node.clone()) };
        let before = beside.findings();
        let id = match proposal {
            Proposal::Remove(id) => {
                beside.delete(id.kind.name(), Origin::Cluster(id.object()), id.clone());
                id
            }
            Proposal::Set(value) => {
                let reading = match read(value, &self.rules).pop() {
                    Some(Entry::Object(reading)) => reading,
                    Some(Entry::Unknown(problem)) => {
                        return Review { losses: vec![Loss { problem, is_old: false }], ..Review::default() };
                    }
                    Some(Entry::Foreign) | None => return Review::default(),
                };
                let Reading { id, .. } = &reading;
                let id = id.clone();
                beside.apply(id.kind.name(), Origin::Cluster(id.object()), reading);
                id
            }
        };
        compare(&id, &before, beside.findings())
    }

    fn findings(&mut self) -> Findings {
        let mut findings = Findings::new();
        for problem in self.snapshot().problems.values().flatten() {
            if let Some(id) = problem.object.as_ref().and_then(Id::of) {
                findings.entry(id).or_default().push(problem.clone());
            }
        }
        findings
    }
}

fn compare(changed: &Id, before: &Findings, after: Findings) -> Review {
    let mut review = Review::default();
    for (id, problems) in after {
        let known = before.get(&id).map(Vec::as_slice).unwrap_or_default();
        let was_left_out = known.iter().any(|problem| !problem.fault.is_warning());
        for problem in problems {
            // The generation is another one after every change.
            let is_old = known.iter().any(|old| old.field == problem.field && old.fault == problem.fault);
            let is_own = id == *changed;
            match problem.fault.is_warning() {
                true if leaves_in_the_lurch(changed, &problem) && !is_old => {
                    review.losses.push(Loss { problem, is_old });
                }
                true if is_own || !is_old => review.warnings.push(problem),
                false if is_own || !was_left_out => review.losses.push(Loss { problem, is_old }),
                _ => {}
            }
        }
    }
    review
}

/// Whether this problem is that a BFD profile is missing that somebody names: a session without it would go on and
/// find out late that its path is dead.
fn leaves_in_the_lurch(changed: &Id, problem: &Problem) -> bool {
    matches!(&problem.fault, Fault::DanglingReference { kind, name }
        if changed.kind == Kind::BfdProfile && kind == changed.kind.name() && **name == *changed.key.name)
}
