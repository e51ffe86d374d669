//! The shared Ingress entry of a cluster: its Service and EndpointSlices as they stand, and the pods of the proxy.

use std::{collections::BTreeSet, num::NonZeroU16};

use ferrogate_core::model::{
    NodeName,
    entry::{
        COMPONENT_LABEL, EntryEndpoint, EntryPort, EntryService, EntrySlice, PROXY_COMPONENT, ProxyPod, TARGET_PORTS,
    },
    service::{ENTRY_LABEL, Endpoint, Protocol},
};
use k8s_openapi::{
    api::{core::v1, discovery::v1::EndpointSlice},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    objects::Fact,
    translate::{
        read::address,
        service::{port_number, protocol},
    },
};

/// The label that says who looks after an object.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The label that says the same of an EndpointSlice.
pub const SLICE_MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// The value of both on what the controller keeps for the entry.
pub const MANAGER: &str = "ferrogate-controller";

/// What of a Service the controller keeps if it is the entry's.
pub fn service(object: &v1::Service) -> EntryService {
    let labels = object.metadata.labels.as_ref();
    let has_label = |name: &str, value: &str| labels.and_then(|all| all.get(name)).is_some_and(|found| found == value);
    let spec = object.spec.as_ref();
    let says = |field: Option<&Option<String>>, value: &str| field.and_then(Option::as_deref) == Some(value);
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let ports = ports.iter().filter(|port| protocol(port.protocol.as_deref()) == Some(Protocol::Tcp));
    let port = |port: &v1::ServicePort| {
        let target = match &port.target_port {
            Some(IntOrString::Int(number)) => port_number(*number),
            _ => None,
        };
        Some(EntryPort {
            name: port.name.clone().unwrap_or_default(),
            port: port_number(port.port)?,
            target: target.filter(|target| TARGET_PORTS.contains(&target.get())),
            has_node_port: port.node_port.is_some_and(|port| port != 0),
        })
    };
    EntryService {
        is_labelled: has_label(ENTRY_LABEL, "ingress") && has_label(MANAGED_BY_LABEL, MANAGER),
        is_load_balancer: says(spec.map(|spec| &spec.type_), "LoadBalancer"),
        is_local: says(spec.map(|spec| &spec.external_traffic_policy), "Local"),
        prefers_dual_stack: says(spec.map(|spec| &spec.ip_family_policy), "PreferDualStack"),
        class: spec.and_then(|spec| spec.load_balancer_class.clone()),
        allocates_node_ports: spec.is_some_and(|spec| spec.allocate_load_balancer_node_ports.unwrap_or(true)),
        ports: ports.filter_map(port).collect(),
    }
}

/// What an EndpointSlice says, if it is one that the controller keeps. `endpoints` are those of the slice.
pub fn slice(object: &EndpointSlice, endpoints: &[Endpoint]) -> Option<EntrySlice> {
    let labels = object.metadata.labels.as_ref()?;
    if labels.get(SLICE_MANAGED_BY_LABEL).is_none_or(|manager| manager != MANAGER) {
        return None;
    }
    let port = |port: &k8s_openapi::api::discovery::v1::EndpointPort| {
        Some((port.name.clone().unwrap_or_default(), port_number(port.port?)?))
    };
    let ports: BTreeSet<(String, NonZeroU16)> = object.ports.iter().flatten().filter_map(port).collect();
    let endpoint = |one: &Endpoint| {
        Some(EntryEndpoint {
            node: one.node.clone()?,
            address: one.address,
            ready: one.ready,
            serving: one.serving,
            terminating: one.terminating,
        })
    };
    Some(EntrySlice { ports, endpoints: endpoints.iter().filter_map(endpoint).collect() })
}

/// Reads a Pod. Only one of the proxy decides anything, while it is on a node and not at its end.
pub fn pod(object: v1::Pod) -> Fact {
    proxy(object).map_or(Fact::Accepted, Fact::ProxyPod)
}

fn proxy(object: v1::Pod) -> Option<ProxyPod> {
    let is_proxy = object.metadata.labels.as_ref().and_then(|all| all.get(COMPONENT_LABEL));
    if is_proxy.is_none_or(|component| component != PROXY_COMPONENT) {
        return None;
    }
    let node = object.spec.and_then(|spec| spec.node_name).filter(|node| !node.is_empty())?;
    let status = object.status.unwrap_or_default();
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let conditions = status.conditions.unwrap_or_default();
    let addresses = status.pod_ips.unwrap_or_default();
    Some(ProxyPod {
        node: NodeName::from(node),
        addresses: addresses.iter().filter_map(|one| address(&one.ip)).collect(),
        ready: conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True"),
        terminating: object.metadata.deletion_timestamp.is_some(),
    })
}
