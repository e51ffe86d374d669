//! Services and their endpoints.

use std::{collections::BTreeMap, fmt, net::IpAddr, num::NonZeroU16, sync::Arc, time::Duration};

use crate::{
    model::{Family, Labels, NodeName, PoolName, Prefix, ResourceVersion, ServiceKey},
    write::Condition,
};

/// The `spec.loadBalancerClass` that is ours unless told otherwise.
pub const DEFAULT_CLASS: &str = "ferrogate.io/lb";

/// Which LoadBalancer Services are served, by `spec.loadBalancerClass`. The others are not touched in any way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassPolicy {
    /// The class that is served; `None` serves no Service that names a class.
    pub class: Option<String>,
    /// Whether Services that name no class are served too.
    pub serve_classless: bool,
}

impl Default for ClassPolicy {
    fn default() -> Self {
        Self { class: Some(DEFAULT_CLASS.to_owned()), serve_classless: true }
    }
}

impl ClassPolicy {
    /// Whether a LoadBalancer Service of this class is served.
    pub fn serves(&self, class: Option<&str>) -> bool {
        match class {
            Some(class) => self.class.as_deref() == Some(class),
            None => self.serve_classless,
        }
    }
}

/// The label (value `ingress`) that makes a LoadBalancer Service the shared entry of every Ingress: its ports are
/// served by the built-in proxy, not by endpoints.
pub const ENTRY_LABEL: &str = "ferrogate.io/entry";

/// A Service with everything that decides its address, its announcement and its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `metadata.creationTimestamp` in seconds since 1970; 0 where the source has none.
    pub created: i64,
    /// `metadata.generation`; 0 where the source has none.
    pub generation: i64,
    /// `metadata.resourceVersion`.
    pub version: ResourceVersion,
    /// Whether this is a Service of type LoadBalancer and of a class we serve, and what it wishes for.
    pub load_balancer: Option<LoadBalancer>,
    /// Whether this is a Service of type LoadBalancer of a class that others serve. Its status is theirs.
    pub is_foreign: bool,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.clusterIPs`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.selector`.
    pub selector: BTreeMap<String, String>,
    /// `spec.externalTrafficPolicy`.
    pub external_traffic_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`, for `Local`.
    pub health_check_node_port: Option<NonZeroU16>,
    /// `spec.sessionAffinity`.
    pub session_affinity: SessionAffinity,
    /// `spec.loadBalancerSourceRanges`; empty means everyone.
    pub source_ranges: Vec<Prefix>,
    /// Whether the built-in proxy itself is the backend ([`ENTRY_LABEL`]).
    pub is_entry: bool,
    /// `ferrogate.io/announce-from`: the node that shall announce it by layer 2 if it can.
    pub wished_node: Option<NodeName>,
    /// Endpoints of all its EndpointSlices, ordered and without duplicates.
    pub endpoints: Vec<Endpoint>,
    /// What the status says now.
    pub observed: ServiceStatus,
}

/// What a LoadBalancer Service of ours wishes for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancer {
    /// `spec.loadBalancerClass`, one that we serve, or none.
    pub class: Option<String>,
    /// The families it wants, primary first; empty when it has no cluster IP and none can be told.
    pub families: Vec<Family>,
    /// `spec.ipFamilyPolicy`.
    pub family_policy: FamilyPolicy,
    /// What it asks for by annotation or `spec.loadBalancerIP`, or why nobody can tell.
    pub request: Result<Request, UnreadableRequest>,
}

impl LoadBalancer {
    /// `ferrogate.io/allow-shared-ip`, whatever is wrong with the rest.
    pub fn sharing_key(&self) -> Option<&String> {
        match &self.request {
            Ok(request) => request.sharing_key.as_ref(),
            Err(unreadable) => unreadable.sharing_key.as_ref(),
        }
    }
}

/// What a Service asks for by annotation or `spec.loadBalancerIP`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `ferrogate.io/loadBalancerIPs` or `spec.loadBalancerIP`, in the order written.
    pub addresses: Vec<IpAddr>,
    /// `ferrogate.io/address-pool`.
    pub pool: Option<PoolName>,
    /// `ferrogate.io/allow-shared-ip`: Services with equal keys may share an address. Never empty.
    pub sharing_key: Option<String>,
}

/// A wish that cannot be read, and what of it can be: whoever shares an address goes on to share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableRequest {
    /// Why it cannot be read.
    pub fault: RequestFault,
    /// See [`Request::sharing_key`].
    pub sharing_key: Option<String>,
}

/// Why a wish cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// Annotation and field are both set.
    #[error("both the annotation ferrogate.io/loadBalancerIPs and spec.loadBalancerIP are set; keep one")]
    TwoSources,
    /// The Service as a whole is left out.
    #[error("the Service is left out; its condition Accepted says why")]
    LeftOut,
    /// Not an IP address.
    #[error("{field}: {value:?} is not an IP address")]
    NotAnAddress {
        /// The annotation or field.
        field: String,
        /// What it says.
        value: String,
    },
    /// More addresses than families.
    #[error("{field}: at most one address of each family may be asked for, found {count}")]
    TooMany {
        /// The annotation or field.
        field: String,
        /// How many it lists.
        count: usize,
    },
    /// Two addresses of one family.
    #[error("{field}: {first} and {second} are of the same family")]
    SameFamily {
        /// The annotation or field.
        field: String,
        /// The first of the two.
        first: IpAddr,
        /// The second of the two.
        second: IpAddr,
    },
}

/// `spec.ipFamilyPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FamilyPolicy {
    /// One family.
    #[default]
    SingleStack,
    /// Both where possible.
    PreferDualStack,
    /// Both or nothing.
    RequireDualStack,
}

/// `spec.externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Every node takes traffic and may pass it to another.
    #[default]
    Cluster,
    /// Only nodes with an endpoint of their own take traffic; the client's address survives.
    Local,
}

/// `spec.sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionAffinity {
    /// Every connection is balanced by itself.
    #[default]
    None,
    /// A client keeps its endpoint until it has been quiet for `timeout`.
    ClientIp {
        /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`, 1 s to 24 h.
        timeout: Duration,
    },
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP; only kube-proxy carries it.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`; empty when the Service has a single unnamed port. EndpointSlice ports refer to it.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: NonZeroU16,
    /// `nodePort`, if allocated.
    pub node_port: Option<NonZeroU16>,
}

/// One address behind a Service (one address of one entry of an EndpointSlice).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Where it listens.
    pub address: IpAddr,
    /// `nodeName`.
    pub node: Option<NodeName>,
    /// `conditions.ready`, absent counting as true.
    pub ready: bool,
    /// `conditions.serving`; where absent, the same as `ready`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// The slice's ports; endpoints of one slice share the list.
    pub ports: Arc<[EndpointPort]>,
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPort {
    /// The name of the Service port it stands for.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// The number to dial.
    pub port: NonZeroU16,
}

impl Endpoint {
    /// Whether it can take traffic at all: ready, or terminating but still serving.
    pub fn servable(&self) -> bool {
        self.ready || self.serving
    }

    /// The number to dial for a Service port, if this endpoint has it.
    pub fn port_for(&self, port: &ServicePort) -> Option<NonZeroU16> {
        let found = self.ports.iter().find(|own| own.name == port.name && own.protocol == port.protocol);
        found.map(|own| own.port)
    }
}

/// What the status and output annotation of a Service say. Two that say the same are equal, whenever they said it.
#[derive(Clone, Debug, Default)]
pub struct ServiceStatus {
    /// `status.loadBalancer.ingress[].ip`, in order.
    pub addresses: Vec<IpAddr>,
    /// Annotation `ferrogate.io/ip-allocated-from-pool`.
    pub pool: Option<PoolName>,
    /// Our condition [`ADDRESS_ASSIGNED`], if it is there.
    pub condition: Option<Condition>,
    /// Whether the list of addresses holds what we never write: a host name, ports, or a mode other than the default.
    pub is_altered: bool,
    /// Since when the condition has been true, in seconds since 1970. Where two Services claim one address, the older
    /// claim counts.
    pub assigned_at: Option<i64>,
}

impl PartialEq for ServiceStatus {
    fn eq(&self, other: &Self) -> bool {
        let Self { addresses, pool, condition, is_altered, assigned_at: _ } = self;
        (addresses, pool, condition, is_altered) == (&other.addresses, &other.pool, &other.condition, &other.is_altered)
    }
}

impl Eq for ServiceStatus {}

/// Condition type on a Service: whether it has the addresses it asked for, and why not.
pub const ADDRESS_ASSIGNED: &str = "ferrogate.io/AddressAssigned";
