//! What MetalLB wrote into a Service, when the Service is ours.
//!
//! MetalLB writes status and its pool annotation by update, so the API server lists it as an owner beside us. What an
//! apply merely leaves out stays for as long as it has another owner, and who owns what cannot be changed through the
//! status subresource, the only door to Services that we ask for. So nothing is released by leaving it out:
//!
//! - the addresses are applied as an empty list with force, which takes them away from every owner;
//! - the annotation is removed by name, where a release has left it behind.
//!
//! Annotations and conditions of anybody else are in neither.

use ::kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::translate::{metallb, service};

/// Notes the pool in MetalLB's words too: whoever looks for them finds them, and the way back stays open.
pub fn note(body: &mut Value) {
    let annotations = body.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    if let Some(annotations) = annotations
        && let Some(pool) = annotations.get(service::FROM_POOL_ANNOTATION).cloned()
    {
        annotations.insert(metallb::FROM_POOL_ANNOTATION.to_owned(), pool);
    }
}

/// Removes MetalLB's note of a pool from a Service that was just released. `body` is what was applied, `answer` what
/// stands there now.
///
/// # Errors
/// When the API server refuses; 409 where somebody changed the Service meanwhile.
pub async fn clear(
    api: &Api<DynamicObject>,
    name: &str,
    manager: &str,
    body: &Value,
    answer: &DynamicObject,
) -> Result<(), ::kube::Error> {
    let is_held = body["metadata"]["annotations"].get(service::FROM_POOL_ANNOTATION).is_some();
    let annotations = answer.metadata.annotations.as_ref();
    let is_noted = annotations.is_some_and(|all| all.contains_key(metallb::FROM_POOL_ANNOTATION));
    if is_held || !is_noted {
        return Ok(());
    }
    let parameters = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    let removal = json!({
        "metadata": {
            "resourceVersion": answer.metadata.resource_version,
            "annotations": { metallb::FROM_POOL_ANNOTATION: Value::Null },
        },
    });
    api.patch_status(name, &parameters, &Patch::Merge(&removal)).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_noted_in_both_words_and_nothing_is_noted_of_none() {
        let mut held = json!({ "metadata": { "annotations": { "ferrogate.io/ip-allocated-from-pool": "p" } } });
        let mut released = json!({ "metadata": { "name": "web" } });
        let before = released.clone();

        note(&mut held);
        note(&mut released);

        assert_eq!(held["metadata"]["annotations"]["metallb.io/ip-allocated-from-pool"], "p");
        assert_eq!(released, before);
    }
}
