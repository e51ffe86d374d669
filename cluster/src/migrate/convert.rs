//! MetalLB's objects as objects of ours, each under its own name, in one order whatever order they came in.

use std::collections::BTreeMap;

use ferrogate_core::snapshot::Origin;
use serde_json::{Value, json};

use super::{Change, Found, Remark, Settings, is_metallb, name_of};
use crate::{
    objects::OUR_API,
    translate::metallb::{self, legacy},
};

/// What became of everything that was written for MetalLB.
#[derive(Debug, Default)]
pub struct Converted {
    /// Objects of ours.
    pub objects: Vec<Value>,
    pub changes: Vec<Change>,
    pub remarks: Vec<Remark>,
    /// Whether any of it is of a kind that MetalLB no longer reads.
    pub is_legacy: bool,
    /// Where objects stood that are written anew, so that they do not count twice.
    pub replaced: Vec<Origin>,
}

/// Kinds in the order in which they are written.
const ORDER: [&str; 7] =
    ["Secret", "IPAddressPool", "L2Advertisement", "BGPAdvertisement", "BGPPeer", "BFDProfile", "Community"];

pub fn convert(found: &[Found], settings: &Settings) -> Converted {
    let mut converted = Converted::default();
    let mut by_name: BTreeMap<(usize, String), Value> = BTreeMap::new();
    let existing: BTreeMap<(String, String), &Value> = found
        .iter()
        .filter(|one| one.value["apiVersion"] == OUR_API)
        .map(|one| ((text(&one.value, "/kind"), text(&one.value, "/metadata/name")), &one.value))
        .collect();
    let is_modern = found.iter().any(|one| is_metallb(&one.value) && is_configuration(&one.value));
    for one in found {
        let Some(objects) = objects_of(one, found, settings, is_modern, &mut converted) else { continue };
        let mut to = Vec::new();
        for object in objects {
            let (kind, name) = (text(&object, "/kind"), text(&object, "/metadata/name"));
            let Some(rank) = ORDER.iter().position(|known| *known == kind) else { continue };
            if let Some(there) = existing.get(&(kind.clone(), name.clone())) {
                to.push(format!("{} (exists)", name_of(&object)));
                if !says_the_same(there, &object) {
                    let message = format!(
                        "exists already and says something else than {}; it is left alone and counts, decide which is right",
                        name_of(&one.value)
                    );
                    converted.remarks.push(Remark::must(name_of(there), message));
                }
                continue;
            }
            to.push(name_of(&object));
            let before = by_name.entry((rank, name)).or_insert_with(|| object.clone());
            if !says_the_same(before, &object) {
                let message = "another object becomes the same one; the first counts, rename one of the two";
                converted.remarks.push(Remark::must(name_of(&one.value), message));
            }
        }
        converted.changes.push(Change { from: name_of(&one.value), to, origin: one.origin.to_string() });
    }
    converted.changes.sort_by(|one, other| (&one.from, &one.origin).cmp(&(&other.from, &other.origin)));
    converted.objects = by_name.into_values().collect();
    converted
}

/// What one object becomes; `None` where it is not MetalLB's.
fn objects_of(
    one: &Found,
    found: &[Found],
    settings: &Settings,
    is_modern: bool,
    converted: &mut Converted,
) -> Option<Vec<Value>> {
    let Found { origin, value } = one;
    let namespace = text(value, "/metadata/namespace");
    let is_home = namespace.is_empty() || namespace == settings.metallb_namespace;
    let legacy = if legacy::is_config_map(value, &settings.metallb_namespace) {
        if is_modern {
            let message = "MetalLB has ignored this ConfigMap since version 0.13; it is not carried over, delete it";
            converted.remarks.push(Remark::note(name_of(value), message));
            return None;
        }
        Some(legacy::config_map(value, &settings.namespace))
    } else if is_metallb(value) && value["kind"] == "AddressPool" && is_home {
        Some(legacy::address_pool(value, &settings.namespace))
    } else {
        None
    };
    if let Some(legacy) = legacy {
        converted.is_legacy = true;
        converted.replaced.push(origin.clone());
        let legacy = legacy.unwrap_or_else(|error| {
            converted.remarks.push(Remark::must(name_of(value), format!("cannot be read: {error}; correct it")));
            legacy::Converted::default()
        });
        for (field, why) in legacy.lost {
            converted.remarks.push(Remark::must(name_of(value), format!("{field}: {why}")));
        }
        return Some(legacy.objects);
    }
    if !is_metallb(value) || !is_configuration(value) {
        return None;
    }
    converted.replaced.push(origin.clone());
    if !is_home {
        let message = format!(
            "MetalLB reads its objects in namespace {} only, so this one is not in force and not carried over",
            settings.metallb_namespace
        );
        converted.remarks.push(Remark::note(name_of(value), message));
        return Some(Vec::new());
    }
    let mut object = metallb::in_our_words(value.clone());
    object["metadata"] = metadata(value, &settings.namespace);
    let mut objects = Vec::new();
    if let Some(secret) = object.pointer("/spec/passwordSecret/name").and_then(Value::as_str).map(str::to_owned) {
        // MetalLB looks for it in its own namespace whatever the field says; we look in ours.
        object["spec"]["passwordSecret"] = json!({ "name": secret });
        objects.extend(secret_of(&secret, value, found, settings, converted));
    }
    objects.push(object);
    Some(objects)
}

/// The Secret of a peer for our namespace, or that somebody has to put it there.
fn secret_of(
    name: &str,
    peer: &Value,
    found: &[Found],
    settings: &Settings,
    converted: &mut Converted,
) -> Option<Value> {
    let is_it = |value: &Value| {
        value["kind"] == "Secret"
            && value["apiVersion"] == "v1"
            && value["metadata"]["name"] == name
            && text(value, "/metadata/namespace") == settings.metallb_namespace
    };
    let Some(secret) = found.iter().map(|one| &one.value).find(|value| is_it(value)) else {
        let message = format!(
            "its password is in Secret {}/{name}; make the same Secret in namespace {}",
            settings.metallb_namespace, settings.namespace
        );
        converted.remarks.push(Remark::must(name_of(peer), message));
        return None;
    };
    let mut copy = secret.clone();
    copy["metadata"] = metadata(secret, &settings.namespace);
    Some(copy)
}

/// Name and labels, which selectors may look at; the rest belongs to whoever wrote the old object.
fn metadata(value: &Value, namespace: &str) -> Value {
    let mut metadata = json!({ "name": value["metadata"]["name"], "namespace": namespace });
    if let Some(labels) = value.pointer("/metadata/labels").filter(|labels| labels.is_object()) {
        metadata["labels"] = labels.clone();
    }
    metadata
}

/// Whether two objects wish for the same. A field that only one of them has says the same as its default, which an
/// API server fills in.
fn says_the_same(one: &Value, other: &Value) -> bool {
    let spec = |object: &Value| object["spec"].as_object().cloned().unwrap_or_default();
    let (one_spec, other_spec) = (spec(one), spec(other));
    let mut fields = one_spec.keys().chain(other_spec.keys());
    let is_same = |field: &String| match (one_spec.get(field), other_spec.get(field)) {
        (Some(said), None) | (None, Some(said)) => is_default(field, said),
        (one, other) => one == other,
    };
    one["data"] == other["data"] && fields.all(is_same)
}

fn is_default(field: &str, said: &Value) -> bool {
    match field {
        "autoAssign" => *said == true,
        "aggregationLength" => *said == 32,
        "aggregationLengthV6" => *said == 128,
        "peerPort" => *said == 179,
        "localPref" | "asPathPrepend" => *said == 0,
        "sharing" => said == "SameNamespace",
        _ => *said == false || said.is_null() || said.as_array().is_some_and(Vec::is_empty),
    }
}

fn is_configuration(value: &Value) -> bool {
    let kind = text(value, "/kind");
    ORDER.contains(&kind.as_str()) || kind == "AddressPool"
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}
