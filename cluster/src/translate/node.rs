//! Node and Namespace.

use std::sync::Arc;

use ferrogate_core::{
    model::{NodeName, node},
    snapshot::Fault,
};
use k8s_openapi::api::core::v1::{Namespace, Node};

use crate::{
    objects::Fact,
    translate::read::{Check, address},
};

/// Reads a Node.
pub fn read(object: Node, check: &mut Check) -> Option<Fact> {
    let unschedulable = object.spec.and_then(|spec| spec.unschedulable).unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let mut internal_addresses = Vec::new();
    for (index, one) in status.addresses.unwrap_or_default().into_iter().enumerate() {
        if one.type_ != "InternalIP" {
            continue;
        }
        match address(&one.address) {
            Some(address) if internal_addresses.contains(&address) => {}
            Some(address) => internal_addresses.push(address),
            None => {
                let fault = Fault::Invalid { value: one.address, expected: "an IP address".to_owned() };
                check.say(&format!("status.addresses[{index}].address"), fault);
            }
        }
    }
    let conditions = status.conditions.unwrap_or_default();
    let unavailable = conditions.iter().any(|one| one.type_ == "NetworkUnavailable" && one.status == "True");
    let mut annotations = object.metadata.annotations.unwrap_or_default();
    annotations.retain(|key, _| key.starts_with(node::ANNOTATION_PREFIX));
    Some(Fact::Node(Arc::new(node::Node {
        name: NodeName::from(&*check.key.name),
        labels: object.metadata.labels.unwrap_or_default(),
        annotations,
        internal_addresses,
        network_unavailable: unavailable,
        unschedulable,
    })))
}

/// Reads a Namespace.
pub fn read_namespace(object: Namespace) -> Fact {
    Fact::Namespace(Arc::new(object.metadata.labels.unwrap_or_default()))
}
