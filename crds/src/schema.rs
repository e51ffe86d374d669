//! Pieces of schema that several kinds share, and the last touch on every definition.
//!
//! Every list, map and string has an upper bound: without one the API server cannot bound the cost of a CEL rule and
//! refuses the whole definition.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// `Condition`s keyed by their type, so that several writers can each own one.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"type": "string", "description": "What is judged, in CamelCase.", "maxLength": 316},
                "status": {"type": "string", "description": "Whether it holds.", "enum": ["True", "False", "Unknown"]},
                "reason": {
                    "type": "string",
                    "description": "Why, as one CamelCase word for programs.",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "message": {"type": "string", "description": "Why, as a sentence for people.", "maxLength": 32768},
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "When the status last changed.",
                },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                    "description": "The metadata.generation that was judged.",
                },
            },
        },
    })
}

/// One label selector. Lists of them treat it as one value, so that an entry can be compared and owned as a whole.
pub fn selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {
                "type": "object",
                "description": "Labels that must all be present with exactly these values.",
                "maxProperties": 64,
                "additionalProperties": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE_PATTERN},
            },
            "matchExpressions": {
                "type": "array",
                "description": "Further conditions on labels, all of which must hold.",
                "maxItems": 64,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {
                            "type": "string",
                            "description": "The label.",
                            "minLength": 1,
                            "maxLength": 317,
                            "pattern": LABEL_KEY_PATTERN,
                        },
                        "operator": {
                            "type": "string",
                            "description": "How the label is compared with the values.",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "type": "array",
                            "description": "At least one value for In and NotIn, none for Exists and DoesNotExist; \
                                            no value twice.",
                            "maxItems": 64,
                            "x-kubernetes-list-type": "set",
                            "items": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE_PATTERN},
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "self.operator in ['In', 'NotIn'] \
                                 ? has(self.values) && size(self.values) > 0 \
                                 : !has(self.values) || size(self.values) == 0",
                        "message": "In and NotIn need values, Exists and DoesNotExist take none",
                    }],
                },
            },
        },
    })
}

/// The name of a label, after a domain and a slash if need be.
pub const LABEL_KEY_PATTERN: &str =
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
/// The name of a label or an annotation of our own.
pub const OUR_KEY_PATTERN: &str = r"^ferrogate\.io/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
/// What a label can say; nothing is something, too.
const LABEL_VALUE_PATTERN: &str = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

/// Alternatives: any one selector of the list must match. No selector twice.
pub fn selectors(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "x-kubernetes-list-type": "set",
        "items": selector(generator),
    })
}

/// Names of objects, none twice.
pub fn names(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 256,
        "x-kubernetes-list-type": "set",
        "items": {"type": "string", "minLength": 1, "maxLength": 253},
    })
}

/// Names of network interfaces, none twice.
pub fn interfaces(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 256,
        "x-kubernetes-list-type": "set",
        "items": {"type": "string", "minLength": 1, "maxLength": 15, "pattern": INTERFACE_PATTERN},
    })
}

/// What the kernel takes as the name of a device: anything but blanks and slashes, up to 15 bytes.
pub const INTERFACE_PATTERN: &str = r"^[^/\s]+$";

/// A length of time as text.
pub fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 32, "pattern": r"^(0|([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+)$"})
}

/// Kinds whose rules want something of a `spec` in which no single field has to be there.
const NEVER_EMPTY: [&str; 1] = ["BGPPeer"];

/// Makes a derived definition one that every API server takes without a warning and reads as we mean it.
///
/// `nullable` goes, so that an explicit `null` is the same as leaving a field out: the API server then prunes it and
/// fills in the default. Number formats of Rust become the two that Kubernetes knows.
pub fn finish(definition: CustomResourceDefinition) -> CustomResourceDefinition {
    const UNCHANGED: &str = "a definition is plain JSON";
    let may_be_empty = !NEVER_EMPTY.contains(&definition.spec.names.kind.as_str());
    let mut json = serde_json::to_value(definition).expect(UNCHANGED);
    for version in json["spec"]["versions"].as_array_mut().into_iter().flatten() {
        let root = &mut version["schema"]["openAPIV3Schema"];
        tidy(root);
        // Where nothing has to be wished for, let nobody be made to write `spec: {}`.
        if may_be_empty && root["properties"]["spec"].get("required").is_none() {
            root["properties"]["spec"]["default"] = json!({});
            if let Some(required) = root["required"].as_array_mut() {
                required.retain(|name| name != "spec");
            }
        }
    }
    serde_json::from_value(json).expect(UNCHANGED)
}

fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("nullable");
            // As a keyword these two are text; a property of such a name holds an object.
            if fields.get("title").is_some_and(Value::is_string) {
                fields.remove("title");
            }
            if let Some(Value::String(description)) = fields.get_mut("description") {
                *description = description.replace('\n', " ");
            }
            if fields.get("required") == Some(&json!([])) {
                fields.remove("required");
            }
            let format = match fields.get("format").and_then(Value::as_str) {
                Some("uint8" | "uint16" | "int8" | "int16") => Some("int32"),
                Some("uint32" | "uint64" | "uint") => Some("int64"),
                _ => None,
            };
            if let Some(format) = format {
                fields.insert("format".to_owned(), json!(format));
            }
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}
