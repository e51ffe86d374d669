//! From MetalLB to Ferrogate: what its configuration is in our words, and whether every Service keeps its address.
//!
//! Pure. What was found goes in, a [`Plan`] comes out. The plan does not promise, it has tried: the objects it writes
//! and the Services there are go through the very translation and the very controller that run in a cluster, and
//! every address that comes out is compared with the one the Service has.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ferrogate_core::{
    controller::{self, Verdict},
    model::{ServiceKey, service::ClassPolicy},
    snapshot::{Fault, Origin, Snapshot},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::translate::{self, Entry, Rules, Source, Translator, metallb};

mod convert;
pub mod read;
mod remarks;

/// One object as somebody wrote it, and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Where it stands.
    pub origin: Origin,
    /// The object.
    pub value: Value,
}

/// Where things are, and which Services are served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our namespace.
    pub namespace: String,
    /// MetalLB's namespace.
    pub metallb_namespace: String,
    /// Which load balancer classes are to be served; `None` serves what MetalLB serves, by its own flags.
    pub class: Option<ClassPolicy>,
    /// Where the objects come from.
    pub source: Source,
}

/// What becomes of a MetalLB installation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Each object of MetalLB's, and what it becomes.
    pub changes: Vec<Change>,
    /// Each Service that has an address or wants one.
    pub services: Vec<ServiceOutcome>,
    /// What else there is to know, worst first.
    pub remarks: Vec<Remark>,
    /// Flags that Ferrogate needs to do as MetalLB did, beside `--metallb-compat`.
    pub flags: Vec<String>,
    /// Whether anything is announced by layer 2.
    pub uses_layer2: bool,
    /// Whether anything is announced by BGP.
    pub uses_bgp: bool,
    /// Objects of ours, in the order in which they are written.
    pub objects: Vec<Value>,
    /// Annotations that Services need once `--metallb-compat` is off, as partial Services to apply.
    pub annotations: Vec<Value>,
}

/// One object, and what it becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Kind, namespace and name.
    pub from: String,
    /// What it becomes.
    pub to: Vec<String>,
    /// Where it stands.
    pub origin: String,
}

/// What becomes of the address of one Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceOutcome {
    /// Namespace and name.
    pub service: String,
    /// The addresses in its status.
    pub now: Vec<IpAddr>,
    /// The addresses it has with Ferrogate.
    pub then: Vec<IpAddr>,
    /// The pool they are of.
    pub pool: Option<String>,
    /// How the two compare.
    pub outcome: Outcome,
    /// Why, where it is not `keeps`.
    pub reason: String,
}

/// How the address of a Service compares with the one it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It has no address, and will have none either.
    Waits,
    /// It has no address yet and gets the one that MetalLB would give it.
    Gets,
    /// It keeps what it has.
    Keeps,
    /// It gets another one.
    Moves,
    /// It has one and would have none.
    Loses,
}

/// Something a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// Whether somebody has to decide or do something before the migration.
    pub needs_a_person: bool,
    /// What it is about.
    pub about: String,
    /// What there is to know, and what to do.
    pub message: String,
}

impl Remark {
    fn must(about: impl Into<String>, message: impl Into<String>) -> Self {
        Self { needs_a_person: true, about: about.into(), message: message.into() }
    }

    fn note(about: impl Into<String>, message: impl Into<String>) -> Self {
        Self { needs_a_person: false, about: about.into(), message: message.into() }
    }
}

impl Plan {
    /// Whether somebody has to decide or do something first.
    pub fn needs_a_person(&self) -> bool {
        self.remarks.iter().any(|remark| remark.needs_a_person)
            || self.services.iter().any(|service| matches!(service.outcome, Outcome::Moves | Outcome::Loses))
    }
}

/// What becomes of all that was found.
pub fn plan(found: &[Found], settings: &Settings) -> Plan {
    let converted = convert::convert(found, settings);
    let mut remarks = converted.remarks;
    let (flags, class) = remarks::class(found, settings);
    remarks.extend(remarks::remarks(found, settings, &converted.objects));

    let facts = found.iter().filter(|one| !is_metallb(&one.value)).cloned();
    let facts: Vec<Found> = facts.filter(|one| !converted.replaced.contains(&one.origin)).collect();
    let rules = |metallb: bool| Rules {
        class: class.clone(),
        namespace: settings.namespace.clone(),
        metallb: metallb.then(|| settings.metallb_namespace.clone()),
        // Those of a cluster are not looked for.
        secrets: settings.source == Source::Directory,
        source: settings.source,
    };
    let ours = |(number, value): (usize, &Value)| {
        let path = format!("written object {}", number + 1);
        Found { origin: Origin::File { path, document: 1 }, value: value.clone() }
    };
    let written: Vec<Found> = converted.objects.iter().enumerate().map(ours).collect();

    // What MetalLB no longer reads has no other words than ours to begin with.
    let legacy = written.iter().filter(|_| converted.is_legacy);
    let original: Vec<Found> = found.iter().chain(legacy).cloned().collect();
    let before = outcomes(&translated(rules(true), &original).0);
    let (snapshot, problems) = translated(rules(true), &[facts.clone(), written.clone()].concat());
    let after = outcomes(&snapshot);
    let annotations = converted_annotations(&facts, &class);
    let relabelled: Vec<Found> = facts.iter().map(|one| with_annotations(one, &annotations)).collect();
    let last = outcomes(&translated(rules(false), &[relabelled, written].concat()).0);

    remarks.extend(problems);
    let services = services(&snapshot, &before, &after);
    for service in services.iter().filter(|service| matches!(service.outcome, Outcome::Keeps | Outcome::Gets)) {
        let key = service.service.split_once('/').map(|(namespace, name)| ServiceKey::new(namespace, name));
        let without = key.and_then(|key| last.get(&key)).map(addresses).unwrap_or_default();
        if without != service.then {
            let message = format!("would have {} without --metallb-compat; keep the switch on", shown(&without));
            remarks.push(Remark::must(format!("Service {}", service.service), message));
        }
    }
    let rank = |remark: &Remark| (!remark.needs_a_person, remark.about.clone(), remark.message.clone());
    remarks.sort_by_key(rank);
    remarks.dedup();
    let has = |kind: &str| converted.objects.iter().any(|object| object["kind"] == kind);
    Plan {
        changes: converted.changes,
        services,
        remarks,
        flags,
        uses_layer2: has("L2Advertisement"),
        uses_bgp: has("BGPPeer"),
        objects: converted.objects,
        annotations,
    }
}

/// An object as YAML.
pub fn yaml(object: &Value) -> String {
    // JSON is YAML too, should there ever be a value that YAML has no plainer form for.
    serde_saphyr::to_string(object).unwrap_or_else(|_| object.to_string())
}

/// Whether an object is written for MetalLB.
fn is_metallb(value: &Value) -> bool {
    value["apiVersion"].as_str().is_some_and(|version| version.starts_with("metallb.io/"))
}

/// Kind, namespace and name of an object.
fn name_of(value: &Value) -> String {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    match text("/metadata/namespace") {
        "" => format!("{} {}", text("/kind"), text("/metadata/name")),
        namespace => format!("{} {namespace}/{}", text("/kind"), text("/metadata/name")),
    }
}

/// The facts that follow from objects, and what is wrong with configuration of ours among them.
fn translated(rules: Rules, found: &[Found]) -> (Arc<Snapshot>, Vec<Remark>) {
    let mut translator = Translator::new(rules, None);
    let mut readings = Vec::new();
    for one in found {
        for entry in translate::read(one.value.clone(), translator.rules()) {
            if let Entry::Object(reading) = entry {
                readings.push((one.origin.clone(), reading));
            }
        }
    }
    translator.replace("found", readings, |_| false);
    let snapshot = translator.snapshot();
    let mut remarks = Vec::new();
    for problem in snapshot.problems.values().flatten() {
        let Some(object) = &problem.object else { continue };
        if !object.api_version.starts_with("ferrogate.io/") && object.kind != "Service" {
            continue;
        }
        let (about, field) = (object.to_string(), &problem.field);
        let message = if field.is_empty() { problem.fault.to_string() } else { format!("{field}: {}", problem.fault) };
        remarks.push(match &problem.fault {
            Fault::DeprecatedAnnotation { .. } => continue,
            fault if fault.is_warning() => Remark::note(about, message),
            _ => Remark::must(about, message),
        });
    }
    (snapshot, remarks)
}

fn outcomes(snapshot: &Arc<Snapshot>) -> BTreeMap<ServiceKey, Verdict> {
    controller::explain_all(snapshot)
}

fn addresses(verdict: &Verdict) -> Vec<IpAddr> {
    match verdict {
        Verdict::Assigned { assignment, .. } => assignment.addresses.clone(),
        Verdict::NotServed | Verdict::Refused(_) => Vec::new(),
    }
}

fn shown(addresses: &[IpAddr]) -> String {
    let shown: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    if shown.is_empty() { "no address".to_owned() } else { shown.join(", ") }
}

fn services(
    snapshot: &Snapshot,
    before: &BTreeMap<ServiceKey, Verdict>,
    after: &BTreeMap<ServiceKey, Verdict>,
) -> Vec<ServiceOutcome> {
    let served = snapshot.services.values().filter(|service| service.load_balancer.is_some());
    let outcome = |service: &Arc<ferrogate_core::model::service::Service>| {
        let now = service.observed.addresses.clone();
        let verdict = after.get(&service.key).unwrap_or(&Verdict::NotServed);
        let then = addresses(verdict);
        let promised = before.get(&service.key).map(addresses).unwrap_or_default();
        let set = |addresses: &[IpAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
        let (had, gives) = if now.is_empty() { (&promised, Outcome::Gets) } else { (&now, Outcome::Keeps) };
        let outcome = match (had.is_empty(), then.is_empty()) {
            (true, true) => Outcome::Waits,
            (false, true) => Outcome::Loses,
            _ if set(had) == set(&then) => gives,
            (true, false) => Outcome::Gets,
            (false, false) => Outcome::Moves,
        };
        let (pool, reason) = match verdict {
            Verdict::Assigned { assignment, .. } => (Some(assignment.pool.to_string()), String::new()),
            Verdict::Refused(refusal) => (None, refusal.to_string()),
            Verdict::NotServed => (None, String::new()),
        };
        let reason = match outcome {
            Outcome::Moves => format!("has {} with MetalLB", shown(had)),
            _ => reason,
        };
        ServiceOutcome { service: service.key.to_string(), now, then, pool, outcome, reason }
    };
    let mut services: Vec<_> = served.map(outcome).collect();
    services.sort_by_key(|one| (Reverse(one.outcome), one.service.clone()));
    services
}

/// What Services ask for in MetalLB's words, in ours.
fn converted_annotations(facts: &[Found], class: &ClassPolicy) -> Vec<Value> {
    let mut converted = Vec::new();
    for Found { value, .. } in facts {
        let is_ours = value["kind"] == "Service"
            && value["apiVersion"] == "v1"
            && value["spec"]["type"] == "LoadBalancer"
            && class.serves(value["spec"]["loadBalancerClass"].as_str());
        let written = value.pointer("/metadata/annotations").filter(|_| is_ours);
        let Some(written) = written.and_then(|all| BTreeMap::<String, String>::deserialize(all).ok()) else { continue };
        let wishes = metallb::WISHES.into_iter().filter_map(|wish| {
            let ours = format!("ferrogate.io/{wish}");
            let (name, said) = metallb::wish(&written, &ours)?;
            (name != ours && !said.trim().is_empty()).then(|| (ours, said.to_owned()))
        });
        let wishes: BTreeMap<String, String> = wishes.collect();
        if wishes.is_empty() {
            continue;
        }
        let namespace = value["metadata"]["namespace"].as_str().unwrap_or("default");
        converted.push(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": value["metadata"]["name"], "namespace": namespace, "annotations": wishes },
        }));
    }
    converted.sort_by_key(name_of);
    converted
}

/// A Service with the annotations that are to be applied to it.
fn with_annotations(found: &Found, annotations: &[Value]) -> Found {
    let mut found = found.clone();
    let namespace = found.value["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    let is_same = |one: &&Value| {
        found.value["kind"] == "Service"
            && found.value["apiVersion"] == "v1"
            && one["metadata"]["name"] == found.value["metadata"]["name"]
            && one["metadata"]["namespace"] == namespace
    };
    let added = annotations.iter().find(is_same).and_then(|one| one["metadata"]["annotations"].as_object()).cloned();
    // Another one of the same name may have anything there; what it says is not read then.
    if let (Some(added), Some(Value::Object(written))) = (added, found.value.pointer_mut("/metadata/annotations")) {
        written.extend(added);
    }
    found
}

#[cfg(test)]
mod tests;
