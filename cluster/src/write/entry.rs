//! The objects of the shared Ingress entry: what of them is ours to say, applied under a field manager of its own, so
//! that whatever else stands in them stays the user's.

use std::sync::Arc;

use ::kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions},
};
use ferrogate_core::model::{
    Family, ServiceKey,
    entry::{EntryService, EntrySlice},
    service::ENTRY_LABEL,
};
use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};

use crate::{
    kube::{Live, resource},
    objects::Kind,
    translate::entry::{MANAGED_BY_LABEL, MANAGER, SLICE_MANAGED_BY_LABEL},
    write::Wish,
};

/// The field manager of the entry's objects. Not that of statuses, whose annotation stands in the Service too.
const FIELD_MANAGER: &str = "ferrogate-controller-entry";

/// Makes the entry's Service what it should be, or takes it away. `live` is the one that stands.
pub fn service(
    client: Client,
    key: &ServiceKey,
    wish: &Wish,
    live: Option<Arc<Live>>,
) -> BoxFuture<'static, Result<(), ::kube::Error>> {
    let api = api(client, Kind::Service, key);
    let name = key.name.to_string();
    match wish {
        Wish::EntryService(service) => apply(api, name, service_body(key, service)),
        // Only the one that was seen: somebody may have made another one meanwhile.
        _ => delete(api, name, live.map(|live| live.uid.clone())),
    }
}

/// Makes an EndpointSlice of the entry what it should be, or takes it away.
pub fn slice(
    client: Client,
    key: &ServiceKey,
    family: Family,
    wish: &Wish,
) -> BoxFuture<'static, Result<(), ::kube::Error>> {
    let api = api(client, Kind::EndpointSlice, key);
    match wish {
        Wish::EntrySlice(slice) => apply(api, slice_name(key, family), slice_body(key, family, slice)),
        _ => delete(api, slice_name(key, family), None),
    }
}

fn api(client: Client, kind: Kind, key: &ServiceKey) -> Api<DynamicObject> {
    Api::namespaced_with(client, &key.namespace, &resource(kind.api_version(), kind.name()))
}

fn apply(api: Api<DynamicObject>, name: String, body: Value) -> BoxFuture<'static, Result<(), ::kube::Error>> {
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    async move { api.patch(&name, &parameters, &Patch::Apply(&body)).await.map(|_| ()) }.boxed()
}

fn delete(api: Api<DynamicObject>, name: String, uid: Option<String>) -> BoxFuture<'static, Result<(), ::kube::Error>> {
    let preconditions = uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None });
    let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
    async move {
        match api.delete(&name, &parameters).await {
            Ok(_) => Ok(()),
            Err(::kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }
    .boxed()
}

fn slice_name(key: &ServiceKey, family: Family) -> String {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("{}-{family}", key.name)
}

/// The Service as it is applied.
pub fn service_body(key: &ServiceKey, service: &EntryService) -> Value {
    let ports = service.targets().map(|(port, target)| {
        let mut body = json!({ "name": port.name, "protocol": "TCP", "port": port.port, "targetPort": target });
        if !service.allocates_node_ports {
            // Leaving it out would keep the one that was allocated before.
            body["nodePort"] = json!(0);
        }
        body
    });
    let mut spec = json!({
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "ipFamilyPolicy": "PreferDualStack",
        "allocateLoadBalancerNodePorts": service.allocates_node_ports,
        "ports": ports.collect::<Vec<_>>(),
    });
    if let Some(class) = &service.class {
        spec["loadBalancerClass"] = json!(class);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": &*key.name,
            "namespace": &*key.namespace,
            "labels": { ENTRY_LABEL: "ingress", MANAGED_BY_LABEL: MANAGER },
        },
        "spec": spec,
    })
}

/// An EndpointSlice as it is applied.
pub fn slice_body(key: &ServiceKey, family: Family, slice: &EntrySlice) -> Value {
    let endpoints = slice.endpoints.iter().map(|one| {
        json!({
            "addresses": [one.address],
            "nodeName": one.node.as_str(),
            "conditions": { "ready": one.ready, "serving": one.serving, "terminating": one.terminating },
        })
    });
    let ports = slice.ports.iter().map(|(name, port)| json!({ "name": name, "protocol": "TCP", "port": port }));
    json!({
        "apiVersion": Kind::EndpointSlice.api_version(),
        "kind": Kind::EndpointSlice.name(),
        "metadata": {
            "name": slice_name(key, family),
            "namespace": &*key.namespace,
            "labels": { "kubernetes.io/service-name": &*key.name, SLICE_MANAGED_BY_LABEL: MANAGER },
        },
        "addressType": family.to_string(),
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": ports.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ferrogate_core::model::{
        ObjectKey,
        entry::{EntryEndpoint, EntryPort},
        service::ClassPolicy,
    };
    use k8s_openapi::api::{core::v1::Service, discovery::v1};

    use super::*;
    use crate::{
        objects::Fact,
        translate::{self, Entry, Rules, Source},
    };

    fn key() -> ServiceKey {
        ObjectKey::new("ferrogate-system", "ferrogate-ingress")
    }

    fn wished(node_ports: bool) -> EntryService {
        let port = EntryPort {
            name: "http".to_owned(),
            port: 80.try_into().unwrap(),
            target: Some(20_000.try_into().unwrap()),
            has_node_port: false,
        };
        EntryService {
            is_labelled: true,
            is_load_balancer: true,
            is_local: true,
            prefers_dual_stack: true,
            class: Some("ferrogate.io/lb".to_owned()),
            allocates_node_ports: node_ports,
            ports: vec![port],
        }
    }

    fn fact(value: Value) -> Fact {
        let rules = Rules {
            metallb: None,
            class: ClassPolicy::default(),
            namespace: "ferrogate-system".to_owned(),
            secrets: false,
            source: Source::Kubernetes,
        };
        let [Entry::Object(reading)] = &translate::read(value, &rules)[..] else { panic!("not read") };
        assert!(reading.problems.is_empty(), "{:?}", reading.problems);
        reading.fact.clone().unwrap()
    }

    #[test]
    fn a_service_that_was_applied_reads_as_it_was_wished_for() {
        for node_ports in [true, false] {
            let body = service_body(&key(), &wished(node_ports));
            let _: Service = serde_json::from_value(body.clone()).unwrap();

            let Fact::Service(fact) = fact(body) else { panic!("not a Service") };

            assert_eq!(fact.entry.as_deref(), Some(&wished(node_ports)));
            assert!(fact.service.is_entry && fact.service.selector.is_empty());
        }
    }

    #[test]
    fn a_slice_that_was_applied_reads_as_it_was_wished_for() {
        let endpoint = EntryEndpoint {
            node: "a".into(),
            address: "2001:db8::1".parse().unwrap(),
            ready: false,
            serving: true,
            terminating: true,
        };
        let wished = EntrySlice {
            ports: BTreeSet::from([("http".to_owned(), 20_000.try_into().unwrap())]),
            endpoints: BTreeSet::from([endpoint]),
        };

        let body = slice_body(&key(), Family::V6, &wished);
        let _: v1::EndpointSlice = serde_json::from_value(body.clone()).unwrap();
        let Fact::EndpointSlice(fact) = fact(body) else { panic!("not an EndpointSlice") };

        assert_eq!(fact.entry, Some((Family::V6, Box::new(wished))));
        assert_eq!(fact.service, key());
    }
}
