//! Objects for the tests of this module: valid throughout, and each test changes only what it is about.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use crate::{
    model::{
        Family, NodeName, ObjectKey,
        route::{Backend, BackendPort, Host, Ingress, IngressPath, IngressRule, PathKind},
        service::{
            Endpoint, EndpointPort, FamilyPolicy, LoadBalancer, Protocol, Request, Service, ServicePort, ServiceStatus,
            SessionAffinity, TrafficPolicy,
        },
    },
    proxy::{RequestView, RouteTable},
    snapshot::Snapshot,
};

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).unwrap()
}

pub(super) fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

/// A LoadBalancer Service without address, with TCP port `http` 80 whose endpoints listen on 8080.
pub(super) fn service(name: &str) -> Service {
    Service {
        key: key(name),
        labels: Default::default(),
        created: 0,
        generation: 1,
        version: Default::default(),
        load_balancer: Some(LoadBalancer {
            class: None,
            families: vec![Family::V4],
            family_policy: FamilyPolicy::SingleStack,
            request: Ok(Request::default()),
        }),
        ports: vec![port("http", Protocol::Tcp, 80)],
        cluster_ips: Vec::new(),
        selector: Default::default(),
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        session_affinity: SessionAffinity::None,
        source_ranges: Vec::new(),
        is_foreign: false,
        is_entry: false,
        wished_node: None,
        endpoints: Vec::new(),
        observed: ServiceStatus::default(),
    }
}

/// A Service with one endpoint, named by it.
pub(super) fn backend(name: &str) -> Service {
    Service { endpoints: vec![endpoint("198.51.100.1")], ..service(name) }
}

pub(super) fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort { name: name.to_owned(), protocol, port: number(port), node_port: None }
}

/// A ready endpoint on node `a` with TCP port `http` 8080 and UDP port `dns` 5353.
pub(super) fn endpoint(text: &str) -> Endpoint {
    Endpoint {
        address: address(text),
        node: Some(NodeName::from("a")),
        ready: true,
        serving: true,
        terminating: false,
        ports: Arc::from([
            EndpointPort { name: "http".to_owned(), protocol: Protocol::Tcp, port: number(8080) },
            EndpointPort { name: "dns".to_owned(), protocol: Protocol::Udp, port: number(5353) },
        ]),
    }
}

pub(super) trait BuildService {
    fn at(self, text: &str) -> Self;
    fn with(self, endpoint: Endpoint) -> Self;
}

impl BuildService for Service {
    fn at(mut self, text: &str) -> Self {
        self.observed.addresses.push(address(text));
        self
    }

    fn with(mut self, endpoint: Endpoint) -> Self {
        self.endpoints.push(endpoint);
        self
    }
}

pub(super) trait BuildEndpoint {
    fn on(self, node: &str) -> Self;
    fn terminating(self) -> Self;
    fn not_ready(self) -> Self;
}

impl BuildEndpoint for Endpoint {
    fn on(mut self, node: &str) -> Self {
        self.node = Some(NodeName::from(node));
        self
    }

    fn terminating(mut self) -> Self {
        self.ready = false;
        self.terminating = true;
        self
    }

    fn not_ready(mut self) -> Self {
        self.ready = false;
        self.serving = false;
        self
    }
}

pub(super) fn ingress(name: &str) -> Ingress {
    Ingress {
        key: key(name),
        created: 0,
        generation: 1,
        default_backend: None,
        rules: Vec::new(),
        observed_addresses: Vec::new(),
    }
}

pub(super) fn to(service: &str) -> Backend {
    Backend { service: key(service), port: BackendPort::Number(number(80)) }
}

/// A host as Ingresses write it; empty for any.
pub(super) fn host(text: &str) -> Host {
    match text.strip_prefix("*.") {
        Some(suffix) => Host::Wildcard(suffix.to_owned()),
        None if text.is_empty() => Host::Any,
        None => Host::Exact(text.to_owned()),
    }
}

pub(super) trait BuildIngress {
    fn created(self, seconds: i64) -> Self;
    fn default_to(self, service: &str) -> Self;
    fn exact(self, host: &str, path: &str, service: &str) -> Self;
    fn prefix(self, host: &str, path: &str, service: &str) -> Self;
    fn path(self, text: &str, path: &str, kind: PathKind, backend: Backend) -> Self;
    fn bare_host(self, text: &str) -> Self;
}

impl BuildIngress for Ingress {
    fn created(mut self, seconds: i64) -> Self {
        self.created = seconds;
        self
    }

    fn default_to(mut self, service: &str) -> Self {
        self.default_backend = Some(to(service));
        self
    }

    fn exact(self, host: &str, path: &str, service: &str) -> Self {
        self.path(host, path, PathKind::Exact, to(service))
    }

    fn prefix(self, host: &str, path: &str, service: &str) -> Self {
        self.path(host, path, PathKind::Prefix, to(service))
    }

    fn path(mut self, text: &str, path: &str, kind: PathKind, backend: Backend) -> Self {
        let path = IngressPath { path: path.to_owned(), kind, backend };
        self.rules.push(IngressRule { host: host(text), paths: vec![path] });
        self
    }

    fn bare_host(mut self, text: &str) -> Self {
        self.rules.push(IngressRule { host: host(text), paths: Vec::new() });
        self
    }
}

pub(super) fn snapshot(
    services: impl IntoIterator<Item = Service>,
    ingresses: impl IntoIterator<Item = Ingress>,
) -> Snapshot {
    Snapshot {
        services: services.into_iter().map(|service| (service.key.clone(), Arc::new(service))).collect(),
        ingresses: ingresses.into_iter().map(|ingress| (ingress.key.clone(), Arc::new(ingress))).collect(),
        ..Snapshot::default()
    }
}

/// A table of these Ingresses, every Service that they name being there.
pub(super) fn routes(ingresses: impl IntoIterator<Item = Ingress>) -> RouteTable {
    let ingresses: Vec<Ingress> = ingresses.into_iter().collect();
    let paths = ingresses.iter().flat_map(|ingress| &ingress.rules).flat_map(|rule| &rule.paths);
    let defaults = ingresses.iter().flat_map(|ingress| &ingress.default_backend);
    let named = paths.map(|path| &path.backend).chain(defaults);
    let services: Vec<Service> = named.map(|named| backend(&named.service.name)).collect();
    RouteTable::compile(&snapshot(services, ingresses), None)
}

impl RouteTable {
    /// The name of the Service that takes a request.
    pub(super) fn taker(&self, host: &str, path: &str) -> Option<&str> {
        let host = Some(host).filter(|host| !host.is_empty());
        self.route(&RequestView { host, path }).ok().map(|route| route.backend.service.name.as_ref())
    }
}
