//! EndpointSlice: where a Service's traffic goes.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use ferrogate_core::{
    model::{
        Family, NodeName, ServiceKey,
        service::{Endpoint, EndpointPort},
    },
    snapshot::Fault,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::{
    objects::{Fact, SliceFact},
    translate::{
        entry,
        read::{Check, address},
        service::{PORT_RANGE, port_number, protocol},
    },
};

/// The label that names the Service of a slice.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Reads an EndpointSlice.
pub fn read(object: EndpointSlice, check: &mut Check) -> Option<Fact> {
    let labels = object.metadata.labels.clone().unwrap_or_default();
    let Some(service) = labels.get(SERVICE_LABEL).filter(|name| !name.is_empty()) else {
        check.missing("metadata.labels", "the label kubernetes.io/service-name must name the Service of this slice");
        return None;
    };
    let service = ServiceKey::new(&*check.key.namespace, service.as_str());
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => {
            let instead = "write the addresses themselves with addressType IPv4 or IPv6".to_owned();
            check.refuse("addressType", Fault::Unsupported { feature: "FQDN".to_owned(), instead });
            return None;
        }
        other => {
            check.invalid("addressType", other, "IPv4 or IPv6");
            return None;
        }
    };
    let ports = ports(object.ports.clone().unwrap_or_default(), check);
    let mut endpoints = Vec::new();
    for (index, one) in object.endpoints.clone().unwrap_or_default().into_iter().enumerate() {
        let field = format!("endpoints[{index}].addresses");
        if one.addresses.is_empty() {
            check.missing(&field, "at least one address is needed");
        }
        let conditions = one.conditions.unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        for (place, text) in one.addresses.iter().enumerate() {
            let field = format!("{field}[{place}]");
            let Some(address) = address(text).filter(|address| can_be_dialled(*address)) else {
                check.invalid(&field, text, "the address of one host");
                continue;
            };
            if Family::of(address) != family {
                check.invalid(&field, text, &format!("an {family} address, as addressType says"));
                continue;
            }
            endpoints.push(Endpoint {
                address,
                node: one.node_name.as_deref().map(NodeName::from),
                ready,
                serving: conditions.serving.unwrap_or(ready),
                terminating: conditions.terminating.unwrap_or(false),
                ports: ports.clone(),
            });
        }
    }
    let entry = entry::slice(&object, &endpoints).map(|slice| (family, Box::new(slice)));
    Some(Fact::EndpointSlice(SliceFact { service, endpoints, entry }))
}

fn ports(from: Vec<k8s_openapi::api::discovery::v1::EndpointPort>, check: &mut Check) -> Arc<[EndpointPort]> {
    let mut ports = Vec::new();
    for (index, one) in from.into_iter().enumerate() {
        let field = format!("ports[{index}]");
        let Some(number) = one.port else {
            check.ignore(&format!("{field}.port"), "a port without a number stands for nothing that can be dialled");
            continue;
        };
        let number: Option<NonZeroU16> = port_number(number);
        match (number, protocol(one.protocol.as_deref())) {
            (Some(port), Some(protocol)) => {
                ports.push(EndpointPort { name: one.name.unwrap_or_default(), protocol, port });
            }
            (None, _) => check.invalid(&format!("{field}.port"), one.port.unwrap_or_default(), PORT_RANGE),
            (_, None) => {
                check.invalid(&format!("{field}.protocol"), one.protocol.unwrap_or_default(), "TCP, UDP or SCTP");
            }
        }
    }
    ports.into()
}

fn can_be_dialled(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !broadcast
}
