//! An object of any kind as a watch shows it, without `metadata.managedFields`. They are the larger part of most
//! objects and nothing here follows from them; a list of Services with them takes several times the memory that is
//! ever needed for the Services.

use std::borrow::Cow;

use ::kube::{
    Resource,
    api::ApiResource,
    core::{DynamicResourceScope, ObjectMeta},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// An object of the API server.
#[derive(Clone, Debug, Deserialize)]
pub struct Object {
    /// `metadata`, but for `managedFields`.
    #[serde(default, deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// All else.
    #[serde(flatten)]
    pub data: Map<String, Value>,
}

impl Object {
    /// `status`, where it has one.
    pub fn status(&self) -> Option<&Value> {
        self.data.get("status")
    }
}

impl From<Object> for Value {
    fn from(Object { metadata, mut data }: Object) -> Self {
        let metadata = serde_json::to_value(metadata).unwrap_or_default();
        data.insert("metadata".to_owned(), metadata);
        Self::Object(data)
    }
}

impl Resource for Object {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What is read of `metadata`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<std::collections::BTreeMap<String, String>>,
    annotations: Option<std::collections::BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    finalizers: Option<Vec<String>>,
}

fn metadata<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    let Metadata {
        name,
        namespace,
        uid,
        resource_version,
        generation,
        creation_timestamp,
        deletion_timestamp,
        labels,
        annotations,
        owner_references,
        finalizers,
    } = Metadata::deserialize(from)?;
    Ok(ObjectMeta {
        name,
        namespace,
        uid,
        resource_version,
        generation,
        creation_timestamp,
        deletion_timestamp,
        labels,
        annotations,
        owner_references,
        finalizers,
        ..ObjectMeta::default()
    })
}

#[cfg(test)]
mod tests {
    use ::kube::core::WatchEvent;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_keeps_everything_but_who_wrote_what() {
        let whole = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "web",
                "namespace": "default",
                "uid": "0a",
                "resourceVersion": "7",
                "generation": 3,
                "creationTimestamp": "2024-01-01T00:00:00Z",
                "deletionTimestamp": "2024-01-02T00:00:00Z",
                "labels": { "app": "web" },
                "annotations": { "example.com/mine": "stays" },
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "a", "uid": "0b" }],
                "finalizers": ["example.com/hold"],
            },
            "spec": { "ports": [{ "port": 80 }] },
            "status": { "loadBalancer": {} },
        });
        let mut told = json!({ "type": "ADDED", "object": whole });
        told["object"]["metadata"]["managedFields"] = json!([{ "manager": "kubectl", "fieldsV1": { "f:spec": {} } }]);

        let event: WatchEvent<Object> = serde_json::from_str(&told.to_string()).unwrap();

        let WatchEvent::Added(object) = event else { panic!("{event:?}") };
        assert_eq!(Value::from(object), whole);
    }

    #[test]
    fn an_object_without_metadata_or_status_is_an_object() {
        let object: Object = serde_json::from_value(json!({ "kind": "ConfigMap" })).unwrap();

        assert_eq!((object.metadata.name.as_deref(), object.status()), (None, None));
    }
}
