//! What the proxy of one node serves: a [`RouteTable`] built from a snapshot.
//!
//! A table is rebuilt as a whole from every snapshot and swapped under the listeners. It says which address and port
//! is open and for which Service ([`Listener`]), which Ingress rule takes a request ([`RouteTable::route`]), and which
//! endpoints stand behind a rule or a port ([`Backend`]). What it cannot serve it reports as [`Unserved`] instead of
//! leaving it out without a word. Choosing among endpoints needs a memory and is the business of [`balance`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
};

use crate::{
    model::{
        Family, NodeName, ObjectKey, ObjectRef, ServiceKey,
        entry::Entry,
        route::{BackendPort, Host, PathKind},
        service::{Protocol, Service, ServicePort, TrafficPolicy},
    },
    snapshot::Snapshot,
};

pub mod backend;
pub mod balance;
pub mod explain;
#[cfg(test)]
mod fixtures;
pub mod matching;
pub mod precedence;
pub mod sources;

pub use backend::{Backend, Target, Tier};
pub use matching::{RequestView, Rule};
pub use sources::SourceRanges;

use backend::Entrance;
use matching::{Missing, NoRule, Rules};

/// Everything the proxy of one node serves at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    listeners: BTreeMap<ListenerKey, Listener>,
    backends: Vec<Backend>,
    rules: Rules,
    unserved: Vec<Unserved>,
    standing: Standing,
}

/// Whether the proxy may be counted on, as far as that follows from the facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Facts come from a folder: the speaker of the node brings traffic, and no listener is missed.
    #[default]
    OwnAddresses,
    /// kube-proxy brings traffic to the listeners, and there is nothing it could bring before all of them are open.
    BehindKubeProxy,
    /// The same, but the shared entry that Ingresses are waiting for is not there yet.
    AwaitsEntry,
}

/// The socket of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerKey {
    /// Address and port to bind.
    pub socket: SocketAddr,
    /// Over which transport.
    pub transport: Transport,
}

/// A transport that the proxy carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One open port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The Service it belongs to.
    pub service: ServiceKey,
    /// The port that clients connect to. The one of the socket where nobody stands between.
    pub port: NonZeroU16,
    /// Which clients may come in.
    pub source_ranges: SourceRanges,
    /// What is done with what comes in.
    pub serves: Serves,
}

/// What a listener does with what comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// HTTP/1.1 for every Ingress.
    Http,
    /// TCP connections, passed on as they are.
    Tcp(BackendId),
    /// UDP datagrams, passed on as they are.
    Udp(BackendId),
}

/// A [`Backend`] of one table; it means nothing to any other table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(usize);

impl BackendId {
    /// Position of the backend in its table, from 0.
    pub fn index(self) -> usize {
        self.0
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// The rule that takes it.
    pub rule: &'a Rule,
    /// Identifies the backend to the balancer.
    pub id: BackendId,
    /// The backend; it has at least one endpoint.
    pub backend: &'a Backend,
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute<'a> {
    /// No rule names the host, and there is no default backend.
    NoHost,
    /// Rules name the host, but none of their paths match, and there is no default backend.
    NoPath,
    /// A rule without paths names the host, and there is no default backend.
    NoDefault,
    /// The rule names a Service that does not exist.
    ServiceMissing(&'a Rule),
    /// The rule names a port that its Service does not have for TCP.
    PortMissing(&'a Rule),
    /// No endpoint of the Service can take traffic.
    NoEndpoint(&'a Rule),
}

/// One part of a Service or Ingress that is not served, and why. All other parts are, and a Service keeps its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// The Service or Ingress.
    pub object: ObjectRef,
    /// `metadata.generation` of the object; 0 where the source has none.
    pub generation: i64,
    /// Why.
    pub why: Why,
}

/// Why a part of a Service or Ingress is not served. The text names the part and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// A protocol that the proxy does not carry.
    #[error("port {port}/{protocol}: the proxy carries TCP and UDP only; serve this port by kube-proxy")]
    Protocol {
        /// `ports[].port`.
        port: NonZeroU16,
        /// `ports[].protocol`.
        protocol: Protocol,
    },
    /// A port of the shared entry that cannot carry HTTP.
    #[error("port {port}/{protocol}: the shared entry serves HTTP, which needs TCP; make it a TCP port")]
    EntryProtocol {
        /// `ports[].port`.
        port: NonZeroU16,
        /// `ports[].protocol`.
        protocol: Protocol,
    },
    /// Another Service has the same address and port.
    #[error("{socket}/{protocol} is served for Service {by}; give one of the two another address or port")]
    PortTaken {
        /// Address and port.
        socket: SocketAddr,
        /// Its protocol.
        protocol: Protocol,
        /// The Service in force: the older, then the first by namespace and name.
        by: ServiceKey,
    },
    /// An older rule has the same host, path and path type.
    #[error("{kind} path {path:?} of {} is already taken by Ingress {by}; remove one of the two", Hosts(.host))]
    PathTaken {
        /// Whose path.
        host: Host,
        /// The path as written.
        path: String,
        /// Its type.
        kind: PathKind,
        /// The Ingress in force.
        by: ObjectKey,
    },
    /// An older default backend serves the same.
    #[error("the default backend of Ingress {by} already serves {}; remove one of the two", Leftover(.host))]
    DefaultBackendTaken {
        /// For which host; `None` for what no host claims.
        host: Option<Host>,
        /// The Ingress in force.
        by: ObjectKey,
    },
    /// A rule names a Service that does not exist.
    #[error("Service {service} does not exist; create it or correct the name")]
    ServiceMissing {
        /// The Service.
        service: ServiceKey,
    },
    /// A rule names a port that its Service does not have.
    #[error("Service {service} has no TCP port {port}; correct the name or number")]
    PortMissing {
        /// The Service.
        service: ServiceKey,
        /// The port.
        port: BackendPort,
    },
}

impl Why {
    /// Reason for conditions, Events and metrics: one CamelCase word per variant.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Protocol { .. } => "UnsupportedProtocol",
            Self::EntryProtocol { .. } => "UnsupportedEntryProtocol",
            Self::PortTaken { .. } => "PortTaken",
            Self::PathTaken { .. } => "PathTaken",
            Self::DefaultBackendTaken { .. } => "DefaultBackendTaken",
            Self::ServiceMissing { .. } => "ServiceNotFound",
            Self::PortMissing { .. } => "ServicePortNotFound",
        }
    }
}

impl RouteTable {
    /// What the proxy on this node serves. With `node` unknown, `externalTrafficPolicy: Local` cannot be obeyed and
    /// endpoints of every node are used.
    pub fn compile(snapshot: &Snapshot, node: Option<&NodeName>) -> Self {
        let mut table = Self::default();
        match &snapshot.entry {
            Some(entry) => table.compile_entry(snapshot, entry, node),
            None => table.compile_listeners(snapshot, node),
        }
        table.compile_rules(snapshot);
        table
    }

    /// Whether the proxy may be counted on.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Every open port, by address and transport.
    pub fn listeners(&self) -> &BTreeMap<ListenerKey, Listener> {
        &self.listeners
    }

    /// One open port.
    pub fn listener(&self, key: ListenerKey) -> Option<&Listener> {
        self.listeners.get(&key)
    }

    /// A backend of this table; `None` for an id of another table that has more of them.
    pub fn backend(&self, id: BackendId) -> Option<&Backend> {
        self.backends.get(id.0)
    }

    /// Every backend.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Every Ingress rule in force.
    pub fn rules(&self) -> impl Iterator<Item = matching::Listed<'_>> {
        self.rules.list()
    }

    /// What is not served, and why.
    pub fn unserved(&self) -> &[Unserved] {
        &self.unserved
    }

    /// Where this request goes.
    pub fn route(&self, request: &RequestView<'_>) -> Result<Route<'_>, NoRoute<'_>> {
        let rule = self.rules.find(request).map_err(|none| match none {
            NoRule::Host => NoRoute::NoHost,
            NoRule::Path => NoRoute::NoPath,
            NoRule::Default => NoRoute::NoDefault,
        })?;
        let id = rule.backend.map_err(|missing| match missing {
            Missing::Service => NoRoute::ServiceMissing(rule),
            Missing::Port => NoRoute::PortMissing(rule),
        })?;
        match self.backend(id) {
            Some(backend) if !backend.targets().is_empty() => Ok(Route { rule, id, backend }),
            _ => Err(NoRoute::NoEndpoint(rule)),
        }
    }

    /// In a cluster kube-proxy carries every other Service, and this one to the target ports of the node. Whoever comes
    /// in there has passed the Service's source ranges already, or came by a way to which they do not apply.
    fn compile_entry(&mut self, snapshot: &Snapshot, entry: &Entry, node: Option<&NodeName>) {
        self.standing = Standing::BehindKubeProxy;
        let key = entry.key();
        if let (Some(observed), Some(service)) = (&entry.service, snapshot.services.get(&key)) {
            let of_service: BTreeSet<Family> = service.cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
            let node = node.and_then(|node| snapshot.nodes.get(node));
            let of_node = |family| node.is_none_or(|node| node.has_family(family));
            for family in of_service.into_iter().filter(|family| of_node(*family)) {
                let any = match family {
                    Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                };
                for (port, target) in observed.targets() {
                    let key = ListenerKey { socket: SocketAddr::new(any, target.get()), transport: Transport::Tcp };
                    let listener = Listener {
                        service: service.key.clone(),
                        port: port.port,
                        source_ranges: SourceRanges::default(),
                        serves: Serves::Http,
                    };
                    self.listeners.entry(key).or_insert(listener);
                }
            }
        }
        if entry.wish.is_some() && self.listeners.is_empty() {
            self.standing = Standing::AwaitsEntry;
        }
    }

    fn compile_listeners(&mut self, snapshot: &Snapshot, node: Option<&NodeName>) {
        let mut services: Vec<&Service> =
            snapshot.services.values().map(AsRef::as_ref).filter(|service| service.load_balancer.is_some()).collect();
        services.sort_unstable_by_key(|service| (service.created, &service.key));
        for service in services {
            let source_ranges = SourceRanges::new(&service.source_ranges);
            self.unserved.extend(unserved_ports(service));
            for (address, port, transport) in sockets(service) {
                let key = ListenerKey { socket: SocketAddr::new(address, port.port.get()), transport };
                if let Some(taken) = self.listeners.get(&key) {
                    // Listing one address or port twice is a matter of taste.
                    if taken.service != service.key {
                        let why =
                            Why::PortTaken { socket: key.socket, protocol: port.protocol, by: taken.service.clone() };
                        self.unserved.push(Unserved::of_service(service, why));
                    }
                    continue;
                }
                let serves = match (service.is_entry, transport) {
                    (true, _) => Serves::Http,
                    (false, Transport::Tcp) => Serves::Tcp(self.add_backend(snapshot, service, port, address, node)),
                    (false, Transport::Udp) => Serves::Udp(self.add_backend(snapshot, service, port, address, node)),
                };
                let source_ranges = source_ranges.clone();
                let service = service.key.clone();
                self.listeners.insert(key, Listener { service, port: port.port, source_ranges, serves });
            }
        }
    }

    fn add_backend(
        &mut self,
        snapshot: &Snapshot,
        service: &Service,
        port: &ServicePort,
        address: IpAddr,
        node: Option<&NodeName>,
    ) -> BackendId {
        let id = BackendId(self.backends.len());
        self.backends.push(Backend::new(
            service,
            port,
            listener_entrance(snapshot, service, Family::of(address), node),
        ));
        id
    }

    fn compile_rules(&mut self, snapshot: &Snapshot) {
        let mut known: BTreeMap<(ServiceKey, NonZeroU16), BackendId> = BTreeMap::new();
        let backends = &mut self.backends;
        let ingresses = snapshot.ingresses.values().map(AsRef::as_ref);
        let (rules, unserved) = Rules::compile(ingresses, |wanted| {
            let service = snapshot.services.get(&wanted.service).ok_or(Missing::Service)?;
            let port = service_port(service, &wanted.port).ok_or(Missing::Port)?;
            Ok(*known.entry((service.key.clone(), port.port)).or_insert_with(|| {
                let entrance =
                    Entrance { family: primary_family(service), only_node: None, unreachable: &snapshot.unreachable };
                backends.push(Backend::new(service, port, entrance));
                BackendId(backends.len() - 1)
            }))
        });
        self.rules = rules;
        self.unserved.extend(unserved);
    }
}

/// The ports of a LoadBalancer Service that no proxy serves, whatever else there is. Empty for any other Service.
pub fn unserved_ports(service: &Service) -> impl Iterator<Item = Unserved> {
    let ports = if service.load_balancer.is_some() { service.ports.as_slice() } else { &[] };
    ports.iter().filter_map(|port| {
        let (port, protocol) = (port.port, port.protocol);
        let why = match (service.is_entry, protocol) {
            (true, Protocol::Tcp) | (false, Protocol::Tcp | Protocol::Udp) => return None,
            (true, _) => Why::EntryProtocol { port, protocol },
            (false, Protocol::Sctp) => Why::Protocol { port, protocol },
        };
        Some(Unserved::of_service(service, why))
    })
}

/// What of the Ingresses is not served, and why.
pub fn unserved_rules(snapshot: &Snapshot) -> Vec<Unserved> {
    let mut table = RouteTable::default();
    table.compile_rules(snapshot);
    table.unserved
}

impl Unserved {
    fn of_service(service: &Service, why: Why) -> Self {
        Self { object: ObjectRef::service(&service.key), generation: service.generation, why }
    }
}

/// Every address, port and transport that a LoadBalancer Service is served on.
fn sockets(service: &Service) -> impl Iterator<Item = (IpAddr, &ServicePort, Transport)> {
    service.observed.addresses.iter().flat_map(|address| {
        service.ports.iter().filter_map(|port| {
            let transport = match port.protocol {
                Protocol::Tcp => Transport::Tcp,
                Protocol::Udp if !service.is_entry => Transport::Udp,
                Protocol::Udp | Protocol::Sctp => return None,
            };
            Some((*address, port, transport))
        })
    })
}

fn listener_entrance<'a>(
    snapshot: &'a Snapshot,
    service: &Service,
    family: Family,
    node: Option<&'a NodeName>,
) -> Entrance<'a> {
    let local = service.external_traffic_policy == TrafficPolicy::Local;
    Entrance { family, only_node: if local { node } else { None }, unreachable: &snapshot.unreachable }
}

fn service_port<'a>(service: &'a Service, wanted: &BackendPort) -> Option<&'a ServicePort> {
    service.ports.iter().filter(|port| port.protocol == Protocol::Tcp).find(|port| match wanted {
        BackendPort::Name(name) => port.name == *name,
        BackendPort::Number(number) => port.port == *number,
    })
}

fn primary_family(service: &Service) -> Family {
    let wished = service.load_balancer.as_ref().and_then(|wish| wish.families.first().copied());
    let assigned = service.cluster_ips.first().map(|address| Family::of(*address));
    assigned.or(wished).unwrap_or(Family::V4)
}

struct Hosts<'a>(&'a Host);

impl fmt::Display for Hosts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Host::Exact(name) => write!(f, "host {name}"),
            Host::Wildcard(suffix) => write!(f, "host *.{suffix}"),
            Host::Any => f.write_str("every host"),
        }
    }
}

struct Leftover<'a>(&'a Option<Host>);

impl fmt::Display for Leftover<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(host) => write!(f, "what no path of {} takes", Hosts(host)),
            None => f.write_str("what no rule takes"),
        }
    }
}

#[cfg(test)]
mod tests;
