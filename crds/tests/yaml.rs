//! `crds/yaml` says what the Rust types say, and an API server takes it as it is.
//!
//! `UPDATE=1 cargo test -p ferrogate-crds --test yaml` writes the files anew.

use std::{collections::BTreeSet, fs, path::Path};

use ferrogate_crds::definitions;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::cel::{compile_schema, estimate_rule_cost};
use serde_json::Value;

const HEADER: &str = "# Generated from crds/src. Write anew with: UPDATE=1 cargo test -p ferrogate-crds --test yaml\n";

fn file_name(definition: &CustomResourceDefinition) -> String {
    format!("{}_{}.yaml", definition.spec.group, definition.spec.names.plural)
}

#[test]
fn the_committed_yaml_is_what_the_types_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    let update = std::env::var_os("UPDATE").is_some();
    let mut stale = Vec::new();
    let mut expected_names = BTreeSet::new();
    for definition in definitions() {
        let name = file_name(&definition);
        let text = format!("{HEADER}{}", serde_saphyr::to_string(&definition).expect("a definition is plain data"));
        let path = folder.join(&name);
        if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
            if update {
                fs::create_dir_all(&folder).expect("crds/yaml can be made");
                fs::write(&path, text).expect("crds/yaml can be written");
            } else {
                stale.push(name.clone());
            }
        }
        expected_names.insert(name);
    }
    let names: BTreeSet<String> = fs::read_dir(&folder)
        .expect("crds/yaml exists")
        .map(|entry| entry.expect("crds/yaml can be listed").file_name().to_string_lossy().into_owned())
        .collect();
    assert!(stale.is_empty(), "stale: {stale:?}; run UPDATE=1 cargo test -p ferrogate-crds --test yaml");
    assert_eq!(names, expected_names, "crds/yaml holds one file for each kind and nothing else");
}

#[test]
fn a_yaml_file_reads_back_as_the_definition_it_was_written_from() {
    for definition in definitions() {
        let text = serde_saphyr::to_string(&definition).expect("a definition is plain data");
        let back: CustomResourceDefinition = serde_saphyr::from_str(&text).expect("what was written can be read");
        assert_eq!(back, definition);
    }
}

#[test]
fn m_001_every_kind_is_namespaced_in_one_version_with_a_status_of_its_own() {
    let kinds: Vec<String> = definitions().iter().map(|definition| definition.spec.names.kind.clone()).collect();
    assert_eq!(
        kinds,
        [
            "BFDProfile",
            "BGPAdvertisement",
            "BGPPeer",
            "BGPSessionStatus",
            "Community",
            "ConfigurationState",
            "IPAddressPool",
            "L2Advertisement",
            "ServiceBGPStatus",
            "ServiceL2Status"
        ]
    );
    let mut short_names = BTreeSet::new();
    for definition in definitions() {
        let spec = definition.spec;
        assert_eq!(spec.group, "ferrogate.io");
        assert_eq!(spec.scope, "Namespaced");
        assert_eq!(spec.names.categories.as_deref(), Some(&["ferrogate".to_owned()][..]));
        let [version] = &spec.versions[..] else { panic!("{} has one version", spec.names.kind) };
        assert_eq!(version.name, "v1beta1");
        assert!(version.served && version.storage);
        assert!(version.subresources.as_ref().is_some_and(|subresources| subresources.status.is_some()));
        let [short] = &spec.names.short_names.expect("a short name")[..] else { panic!("one short name") };
        assert!(short.starts_with("fg"), "{short} cannot be taken for somebody else's");
        assert!(short_names.insert(short.clone()), "{short} is given twice");
    }
}

/// Expects the first printer columns of a kind.
fn begins_with_columns(kind: &str, columns: &[&str]) {
    let definition = definitions().into_iter().find(|definition| definition.spec.names.kind == kind).expect(kind);
    let printed = definition.spec.versions[0].additional_printer_columns.as_deref().unwrap_or_default();
    let names: Vec<&str> = printed.iter().map(|column| column.name.as_str()).collect();
    assert!(names.starts_with(columns), "{kind}: {names:?}");
}

#[test]
fn m_002_a_list_of_pools_shows_how_they_are_used_and_what_they_hold() {
    begins_with_columns("IPAddressPool", &["Auto Assign", "Avoid Buggy IPs", "Addresses"]);
}

#[test]
fn m_003_a_list_of_peers_shows_who_they_are() {
    begins_with_columns("BGPPeer", &["Address", "ASN", "BFD Profile", "Multi Hops"]);
}

#[test]
fn a_list_of_sessions_shows_their_state_since_when_and_how_the_last_one_ended() {
    begins_with_columns("BGPSessionStatus", &["Node", "Peer", "State", "Since", "BFD", "Prefixes", "Last Close"]);
}

#[test]
fn lists_of_the_other_kinds_begin_with_the_columns_users_know() {
    begins_with_columns("BFDProfile", &["Passive Mode", "Transmit Interval", "Receive Interval", "Multiplier"]);
    begins_with_columns("BGPAdvertisement", &["IPAddressPools", "IPAddressPool Selectors", "Peers"]);
    begins_with_columns("ConfigurationState", &["Result", "ErrorSummary", "Age"]);
    begins_with_columns("L2Advertisement", &["IPAddressPools", "IPAddressPool Selectors", "Interfaces"]);
    begins_with_columns("ServiceBGPStatus", &["Node", "Service Name", "Service Namespace"]);
    begins_with_columns("ServiceL2Status", &["Allocated Node", "Service Name", "Service Namespace"]);
}

/// The keywords a structural schema of ours may use. Absent on purpose: `anyOf`, `oneOf`, `not`, `$ref`, `nullable`,
/// `uniqueItems`, `title`, `x-kubernetes-preserve-unknown-fields`.
const KEYWORDS: [&str; 22] = [
    "type",
    "format",
    "description",
    "default",
    "enum",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "pattern",
    "minimum",
    "maximum",
    "maxProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
    "minProperties",
];

/// Reports every breach of the rules an API server, or we, have for schemas.
fn breaches(path: &str, schema: &Value, found: &mut Vec<String>) {
    let Some(fields) = schema.as_object() else {
        found.push(format!("{path}: not a schema object"));
        return;
    };
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            found.push(format!("{path}: {what}"));
        }
    };
    for keyword in fields.keys() {
        expect(KEYWORDS.contains(&keyword.as_str()), &format!("keyword {keyword}"));
    }
    let has = |keyword: &str| fields.contains_key(keyword);
    match fields.get("type").and_then(Value::as_str) {
        Some("object") => {
            expect(!(has("properties") && has("additionalProperties")), "fields named and open at once");
            expect(!has("additionalProperties") || has("maxProperties"), "a map without maxProperties");
        }
        Some("array") => {
            expect(has("items"), "no items");
            expect(has("maxItems"), "no maxItems");
            let items = &schema["items"];
            match fields.get("x-kubernetes-list-type").and_then(Value::as_str) {
                Some("set") => expect(
                    items["type"] == "string" || items["x-kubernetes-map-type"] == "atomic",
                    "a set of what cannot be compared",
                ),
                Some("map") => {
                    for key in fields["x-kubernetes-list-map-keys"].as_array().into_iter().flatten() {
                        expect(items["required"].as_array().is_some_and(|all| all.contains(key)), "an optional key");
                    }
                }
                _ => {}
            }
        }
        Some("integer") => {
            expect(matches!(fields.get("format").and_then(Value::as_str), Some("int32" | "int64")), "format");
            expect(has("minimum") || path.ends_with(".priority"), "no minimum");
        }
        Some("string") => {
            expect(has("maxLength") || has("enum") || has("format"), "no maxLength");
            expect(!has("format") || fields["format"] == "date-time", "an unknown format");
        }
        Some("boolean") => expect(has("default"), "no default"),
        _ => expect(false, "no type"),
    }
    for rule in fields.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
        let message = rule["message"].as_str().unwrap_or_default();
        expect(!message.is_empty() && !message.contains('\n') && message.len() <= 2048, "a rule without a message");
    }
    for (name, property) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = format!("{path}.{name}");
        if property["description"].as_str().is_none_or(str::is_empty) {
            found.push(format!("{path}: no description"));
        }
        breaches(&path, property, found);
    }
    for (keyword, step) in [("items", "[]"), ("additionalProperties", ".*")] {
        if let Some(inner) = fields.get(keyword) {
            breaches(&format!("{path}{step}"), inner, found);
        }
    }
}

fn schema_of(definition: &CustomResourceDefinition) -> Value {
    let schema = definition.spec.versions[0].schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
    serde_json::to_value(schema.expect("a schema")).expect("a schema is plain data")
}

#[test]
fn every_schema_is_structural_bounded_and_described() {
    let mut found = Vec::new();
    for definition in definitions() {
        let schema = schema_of(&definition);
        let kind = &definition.spec.names.kind;
        assert!(schema["description"].as_str().is_some_and(|text| !text.contains("Auto-generated")), "{kind}");
        assert_eq!(schema.get("title"), None, "{kind}");
        let parts = schema["properties"].as_object().expect("a kind has fields");
        assert_eq!(parts.keys().collect::<Vec<_>>(), ["spec", "status"], "{kind}");
        for (part, schema) in parts {
            breaches(&format!("{kind}.{part}"), schema, &mut found);
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Every rule of a schema with the schema it stands in.
fn rules<'a>(schema: &'a Value, found: &mut Vec<(&'a Value, &'a str)>) {
    match schema {
        Value::Object(fields) => {
            for rule in fields.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                found.push((schema, rule["rule"].as_str().expect("a rule is text")));
            }
            fields.values().for_each(|value| rules(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| rules(value, found)),
        _ => {}
    }
}

/// The estimate finds what has no bound at all. That of an API server is finer: comprehensions over the parts of a
/// string and `string()` cost more there than they look.
#[test]
fn every_rule_compiles_and_has_a_bounded_cost() {
    let mut count = 0;
    for definition in definitions() {
        let schema = schema_of(&definition);
        let mut all = Vec::new();
        rules(&schema, &mut all);
        for (place, rule) in all {
            let compiled = compile_schema(place);
            assert!(!compiled.has_errors(), "{rule}: {:?}", compiled.compilation_errors());
            assert_eq!(estimate_rule_cost(rule, &compiled), [], "{rule}");
            count += 1;
        }
    }
    assert!(count > 20, "{count} rules were found");
}
