//! IngressClass: which Ingresses are ours.

use ferrogate_core::model::entry::NODE_PORTS_ANNOTATION;
use k8s_openapi::api::networking::v1::IngressClass;

use crate::{
    objects::{Fact, IngressClassFact},
    translate::read::created,
};

/// `spec.controller` of the classes that are ours.
pub const CONTROLLER: &str = "ferrogate.io/ingress-controller";

/// The class that is ours in a folder even where no IngressClass object stands for it.
pub const CLASS: &str = "ferrogate";

const DEFAULT_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";

/// Reads an IngressClass.
pub fn read(object: IngressClass) -> Option<Fact> {
    let annotation = |name: &str| object.metadata.annotations.as_ref().and_then(|all| all.get(name));
    Some(Fact::IngressClass(IngressClassFact {
        default: annotation(DEFAULT_ANNOTATION).is_some_and(|value| value == "true"),
        node_ports: annotation(NODE_PORTS_ANNOTATION).is_none_or(|value| value != "false"),
        ours: object.spec.and_then(|spec| spec.controller).as_deref() == Some(CONTROLLER),
        created: created(&object.metadata),
    }))
}
