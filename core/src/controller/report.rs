//! What there is to say about an object beside its address: what had to be left out of it, and what of it the proxy
//! does not serve.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::ordmap::DiffItem;

use crate::{
    model::{ObjectRef, ServiceKey, service::Service},
    proxy::{Unserved, unserved_ports, unserved_rules},
    snapshot::{Fault, Problem, Snapshot},
};

/// One thing to say about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence for a person.
    pub message: String,
    /// `metadata.generation` it is about; 0 where the source has none.
    pub generation: i64,
    /// Whether the object is in force all the same.
    pub is_warning: bool,
    /// Whether the object could be read at all. What could not be read has no status to write to.
    pub is_readable: bool,
}

impl From<&Problem> for Report {
    fn from(problem: &Problem) -> Self {
        let message = match problem.field.as_str() {
            "" => problem.fault.to_string(),
            field => format!("{field}: {}", problem.fault),
        };
        Self {
            reason: problem.fault.reason(),
            message,
            generation: problem.generation,
            // Of two objects of one name, the first is in force, and a status cannot tell them apart.
            is_warning: problem.fault.is_warning() || matches!(problem.fault, Fault::Duplicate { .. }),
            is_readable: !matches!(
                problem.fault,
                Fault::UnknownKind { .. } | Fault::Syntax { .. } | Fault::Unreadable { .. }
            ),
        }
    }
}

impl From<&Unserved> for Report {
    fn from(unserved: &Unserved) -> Self {
        Self {
            reason: unserved.why.reason(),
            message: unserved.why.to_string(),
            generation: unserved.generation,
            is_warning: false,
            is_readable: true,
        }
    }
}

type ByObject = BTreeMap<ObjectRef, Vec<Report>>;

/// Everything to be said, by object.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// Whether the proxy is to carry every LoadBalancer Service, not only the entry.
    carries_services: bool,
    problems: ByObject,
    rules: ByObject,
    ports: ByObject,
    /// Services that Ingresses send requests to.
    backends: BTreeSet<ServiceKey>,
}

impl Reports {
    pub fn new(carries_services: bool) -> Self {
        Self { carries_services, ..Self::default() }
    }

    /// What there is to say about this object.
    pub fn of(&self, object: &ObjectRef) -> Vec<Report> {
        let sources = [&self.problems, &self.rules, &self.ports];
        sources.into_iter().filter_map(|source| source.get(object)).flatten().cloned().collect()
    }

    /// Moves on to newer facts and returns the objects of which something else is to be said now.
    pub fn compare(&mut self, last: &Snapshot, next: &Snapshot) -> BTreeSet<ObjectRef> {
        let mut changed = BTreeSet::new();
        if !Arc::ptr_eq(&last.problems, &next.problems) {
            let problems = next.problems.values().flatten();
            let named = problems.filter_map(|problem| Some((problem.object.as_ref()?, problem.into())));
            replace(&mut self.problems, named, &mut changed);
        }
        let mut rules_changed = last.ingresses.diff(&next.ingresses).next().is_some();
        for change in last.services.diff(&next.services) {
            match change {
                DiffItem::Add(key, service) => {
                    rules_changed |= self.backends.contains(key);
                    self.compare_ports(key, Some(service), &mut changed);
                }
                DiffItem::Update { old: (key, old), new: (_, new) } => {
                    rules_changed |= old.ports != new.ports && self.backends.contains(key);
                    self.compare_ports(key, Some(new), &mut changed);
                }
                DiffItem::Remove(key, _) => {
                    rules_changed |= self.backends.contains(key);
                    self.compare_ports(key, None, &mut changed);
                }
            }
        }
        if rules_changed {
            self.backends = next.ingresses.values().flat_map(|ingress| ingress.backends()).cloned().collect();
            let unserved = unserved_rules(next);
            replace(&mut self.rules, unserved.iter().map(|one| (&one.object, one.into())), &mut changed);
        }
        changed
    }

    fn compare_ports(&mut self, key: &ServiceKey, service: Option<&Arc<Service>>, changed: &mut BTreeSet<ObjectRef>) {
        let service = service.filter(|service| self.carries_services || service.is_entry);
        let reports: Vec<_> =
            service.into_iter().flat_map(|service| unserved_ports(service)).map(|one| Report::from(&one)).collect();
        if reports.is_empty() && self.ports.is_empty() {
            return;
        }
        let object = ObjectRef::service(key);
        if self.ports.get(&object).map_or(&[][..], Vec::as_slice) == reports {
            return;
        }
        changed.insert(object.clone());
        if reports.is_empty() {
            self.ports.remove(&object);
        } else {
            self.ports.insert(object, reports);
        }
    }
}

fn replace<'a>(
    old: &mut ByObject,
    new: impl Iterator<Item = (&'a ObjectRef, Report)>,
    changed: &mut BTreeSet<ObjectRef>,
) {
    let mut by_object = ByObject::new();
    for (object, report) in new {
        by_object.entry(object.clone()).or_default().push(report);
    }
    let before = std::mem::replace(old, by_object);
    let objects = before.keys().chain(old.keys());
    changed.extend(objects.filter(|object| before.get(*object) != old.get(*object)).cloned());
}
