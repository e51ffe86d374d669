//! Ingress: hosts, paths and the Services behind them.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use ferrogate_core::{
    model::{
        ServiceKey,
        route::{Backend, BackendPort, Host, Ingress, IngressPath, IngressRule, PathKind},
    },
    snapshot::Fault,
};
use k8s_openapi::api::networking::v1;

use crate::{
    objects::{Fact, IngressFact},
    translate::{
        read::{Check, address, created, is_dns_name},
        service::{PORT_RANGE, port_number},
    },
};

/// The older way to name the class, which counts where `spec.ingressClassName` is not set.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Reads an Ingress.
pub fn read(object: v1::Ingress, check: &mut Check) -> Option<Fact> {
    let observed_addresses = observed(&object);
    let created = created(&object.metadata);
    let annotations = object.metadata.annotations.unwrap_or_default();
    let spec = object.spec.unwrap_or_default();
    let named = spec.ingress_class_name.or_else(|| annotations.get(CLASS_ANNOTATION).cloned());
    let mut backends = Vec::new();
    let default_backend = spec.default_backend.and_then(|from| {
        let backend = backend(from, "spec.defaultBackend", check)?;
        backends.push(("spec.defaultBackend".to_owned(), backend.clone()));
        Some(backend)
    });
    let from = spec.rules.unwrap_or_default();
    if from.is_empty() && default_backend.is_none() {
        check.missing("spec", "an Ingress needs rules or a defaultBackend");
    }
    let mut rules = Vec::new();
    for (index, one) in from.into_iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        let host = host(one.host.as_deref().unwrap_or_default());
        if host.is_none() {
            let expected = "a DNS name, or one after `*.`, in lower case and without a port";
            check.invalid(&format!("{field}.host"), one.host.unwrap_or_default(), expected);
        }
        let mut paths = Vec::new();
        for (place, path) in one.http.map(|http| http.paths).unwrap_or_default().into_iter().enumerate() {
            let field = format!("{field}.http.paths[{place}]");
            if let Some(path) = read_path(path, &field, check) {
                backends.push((format!("{field}.backend"), path.backend.clone()));
                paths.push(path);
            }
        }
        if let Some(host) = host {
            rules.push(IngressRule { host, paths });
        }
    }
    if spec.tls.is_some_and(|tls| !tls.is_empty()) {
        check.ignore("spec.tls", "this release does not serve TLS; the hosts are served over plain HTTP");
    }
    let ingress = Arc::new(Ingress {
        key: check.key.clone(),
        created,
        generation: check.generation,
        default_backend,
        rules,
        observed_addresses,
    });
    Some(Fact::Ingress(IngressFact { ingress, class: named.filter(|name| !name.is_empty()), backends }))
}

/// The addresses in the status of an Ingress.
pub fn observed(object: &v1::Ingress) -> Vec<IpAddr> {
    let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    ingress.into_iter().flatten().filter_map(|one| address(one.ip.as_deref()?)).collect()
}

fn host(text: &str) -> Option<Host> {
    if text.is_empty() {
        return Some(Host::Any);
    }
    let text = text.to_ascii_lowercase();
    let is_name = |name: &str| is_dns_name(name) && name.parse::<IpAddr>().is_err();
    match text.strip_prefix("*.") {
        Some(suffix) => is_name(suffix).then(|| Host::Wildcard(suffix.to_owned())),
        None => is_name(&text).then(|| Host::Exact(text.clone())),
    }
}

fn read_path(from: v1::HTTPIngressPath, field: &str, check: &mut Check) -> Option<IngressPath> {
    let kind = match from.path_type.as_str() {
        "Exact" => Some(PathKind::Exact),
        "Prefix" | "ImplementationSpecific" => Some(PathKind::Prefix),
        other => {
            check.invalid(&format!("{field}.pathType"), other, "Exact, Prefix or ImplementationSpecific");
            None
        }
    };
    let path = match from.path {
        Some(path) if !path.is_empty() => path,
        _ if from.path_type == "ImplementationSpecific" => "/".to_owned(),
        _ => {
            check.missing(&format!("{field}.path"), "Exact and Prefix need a path");
            return None;
        }
    };
    if !is_plain_path(&path) {
        let expected =
            "a path that begins with `/` and has no `//`, `/./`, `/../`, `%2f`, and no `/.` or `/..` at its end";
        check.invalid(&format!("{field}.path"), &path, expected);
        return None;
    }
    let backend = backend(from.backend, &format!("{field}.backend"), check)?;
    Some(IngressPath { path, kind: kind?, backend })
}

/// Whether a path reads the same to everyone who might rewrite it on the way.
fn is_plain_path(path: &str) -> bool {
    let twisted = ["//", "/./", "/../", "%2f", "%2F"].iter().any(|part| path.contains(part));
    path.starts_with('/') && !twisted && !path.ends_with("/.") && !path.ends_with("/..")
}

fn backend(from: v1::IngressBackend, field: &str, check: &mut Check) -> Option<Backend> {
    if from.resource.is_some() {
        let instead = "name a Service instead".to_owned();
        check
            .refuse(&format!("{field}.resource"), Fault::Unsupported { feature: "a resource backend".into(), instead });
        return None;
    }
    let Some(service) = from.service else {
        check.missing(&format!("{field}.service"), "a backend needs a Service");
        return None;
    };
    if !is_dns_name(&service.name) {
        check.invalid(&format!("{field}.service.name"), &service.name, "the name of a Service");
        return None;
    }
    let port = service.port.unwrap_or_default();
    let field = format!("{field}.service.port");
    let number: Option<NonZeroU16> = port.number.filter(|number| *number != 0).and_then(port_number);
    let port = match (port.name.filter(|name| !name.is_empty()), port.number.filter(|number| *number != 0)) {
        (Some(name), None) => BackendPort::Name(name),
        (None, Some(written)) => match number {
            Some(number) => BackendPort::Number(number),
            None => {
                check.invalid(&format!("{field}.number"), written, PORT_RANGE);
                return None;
            }
        },
        _ => {
            check.missing(&field, "exactly one of name and number is needed");
            return None;
        }
    };
    Some(Backend { service: ServiceKey::new(&*check.key.namespace, service.name), port })
}
