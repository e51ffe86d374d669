//! The shared Ingress entry of a cluster: the Service and the EndpointSlices that the controller keeps for the proxies,
//! and what they follow from. A folder of manifests has none of this: there the user writes the entry's Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    ops::RangeInclusive,
};

use crate::model::{Family, NodeName, ObjectKey, ServiceKey};

/// Name of the entry's Service, in the namespace of our own objects.
pub const ENTRY_NAME: &str = "ferrogate-ingress";
/// The name of the entry's own port.
pub const HTTP_PORT_NAME: &str = "http";
/// The port at which clients reach the entry.
pub const HTTP_PORT: NonZeroU16 = NonZeroU16::new(80).expect("80 is not zero");
/// The numbers that target ports are chosen from: below the usual NodePorts and outgoing ports, and in nobody's way.
pub const TARGET_PORTS: RangeInclusive<u16> = FIRST_TARGET_PORT.get()..=29_999;
/// The target port that is chosen where nothing speaks against it.
pub const FIRST_TARGET_PORT: NonZeroU16 = NonZeroU16::new(20_000).expect("20000 is not zero");
/// The label (value [`PROXY_COMPONENT`]) that marks the pods of the proxy, in the namespace of our own objects.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// The value of [`COMPONENT_LABEL`] on pods of the proxy.
pub const PROXY_COMPONENT: &str = "proxy";
/// The annotation on an IngressClass of ours that, with the value `false`, lets the entry do without NodePorts.
pub const NODE_PORTS_ANNOTATION: &str = "ferrogate.io/node-ports";

/// Everything in a cluster that the entry follows from, and the entry as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The namespace of our own objects.
    pub namespace: String,
    /// The `spec.loadBalancerClass` that a new Service of ours gets.
    pub class: Option<String>,
    /// What the IngressClasses of ours wish for; `None` while there is none.
    pub wish: Option<EntryWish>,
    /// The Service as it stands.
    pub service: Option<EntryService>,
    /// The EndpointSlices of ours as they stand.
    pub slices: BTreeMap<Family, EntrySlice>,
    /// Every pod of the proxy, by namespace and name.
    pub proxies: BTreeMap<ObjectKey, ProxyPod>,
}

/// What an IngressClass of ours says about the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryWish {
    /// Whether the Service gets NodePorts ([`NODE_PORTS_ANNOTATION`]); of several classes, one that wants them counts.
    pub node_ports: bool,
}

/// The entry's Service, as far as the controller keeps it. All else in it is the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryService {
    /// It has the labels that make it the entry and ours.
    pub is_labelled: bool,
    /// `type` is `LoadBalancer`.
    pub is_load_balancer: bool,
    /// `externalTrafficPolicy` is `Local`.
    pub is_local: bool,
    /// `ipFamilyPolicy` is `PreferDualStack`.
    pub prefers_dual_stack: bool,
    /// `loadBalancerClass`, which nobody can change once it stands.
    pub class: Option<String>,
    /// `allocateLoadBalancerNodePorts`.
    pub allocates_node_ports: bool,
    /// `ports` of TCP.
    pub ports: Vec<EntryPort>,
}

/// One TCP port of the entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryPort {
    /// `name`.
    pub name: String,
    /// `port`: what clients connect to.
    pub port: NonZeroU16,
    /// `targetPort`, if it is a number that a proxy may listen on ([`TARGET_PORTS`]).
    pub target: Option<NonZeroU16>,
    /// A `nodePort` stands there.
    pub has_node_port: bool,
}

/// One EndpointSlice of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntrySlice {
    /// The name of each port and the number the proxies listen on.
    pub ports: BTreeSet<(String, NonZeroU16)>,
    /// One endpoint for each node that has a proxy.
    pub endpoints: BTreeSet<EntryEndpoint>,
}

/// The proxy of one node, as an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryEndpoint {
    /// `nodeName`.
    pub node: NodeName,
    /// The one of its `addresses`.
    pub address: IpAddr,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
}

/// A pod of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyPod {
    /// `spec.nodeName`.
    pub node: NodeName,
    /// `status.podIPs`: with the node's network, addresses of the node.
    pub addresses: Vec<IpAddr>,
    /// Condition `Ready` is `True`.
    pub ready: bool,
    /// It has been asked to end.
    pub terminating: bool,
}

impl Entry {
    /// The entry's Service.
    pub fn key(&self) -> ServiceKey {
        ServiceKey::new(self.namespace.as_str(), ENTRY_NAME)
    }
}

impl EntryService {
    /// Where the proxies listen: the port clients connect to, and the number on the node.
    pub fn targets(&self) -> impl Iterator<Item = (&EntryPort, NonZeroU16)> {
        self.ports.iter().filter_map(|port| Some((port, port.target?)))
    }

    /// The target port of a port, if it has one that may be kept.
    pub fn target_of(&self, port: NonZeroU16) -> Option<NonZeroU16> {
        self.targets().find(|(own, _)| own.port == port).map(|(_, target)| target)
    }
}
