//! Facts as the simulator needs them: builders with every default valid, and the sharing rule in its own words.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    sync::Arc,
};

use ferrogate_core::{
    model::{
        Family, NodeName, ObjectKey, ServiceKey,
        advertisement::{L2Advertisement, PoolChoice},
        node::Node,
        pool::{AddressRange, Pool, PoolStatus},
        service::{
            Endpoint, EndpointPort, FamilyPolicy, LoadBalancer, Protocol, Request, Service, ServicePort, ServiceStatus,
            SessionAffinity, TrafficPolicy,
        },
    },
    snapshot::Snapshot,
    speaker::Interface,
};
use ferrogate_wire::ethernet::Mac;

/// The name of a node by its number, from 0.
pub fn node_name(node: usize) -> NodeName {
    format!("k{}", node + 1).into()
}

/// The address of a node on the switch; the only one, unless it has a network of its own for what nodes say to each other.
pub fn node_address(node: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(198, 51, 100, 11).to_bits() + u32::try_from(node).unwrap_or(u32::MAX)))
}

/// The address of a node on a network on which nodes talk to each other and nothing else is.
pub fn management_address(node: usize) -> IpAddr {
    IpAddr::from([203, 0, 113, u8::try_from(node).map_or(u8::MAX, |node| node.saturating_add(100))])
}

/// The hardware address of a node's interface.
pub fn node_mac(node: usize) -> Mac {
    Mac([2, 0, 0, 0, 1, u8::try_from(node).unwrap_or(u8::MAX)])
}

/// A node's interface to the switch, with or without addresses in the subnets of the pool.
pub fn interface(node: usize, has_carrier: bool, is_at_home: bool) -> Interface {
    let own = ipnetwork::IpNetwork::new(node_address(node), 24);
    let link_local = "fe80::1/64".parse();
    let homes = ["192.0.2.255/24", "2001:db8::fff/64"].into_iter().filter(|_| is_at_home);
    Interface {
        index: 2,
        mac: Some(node_mac(node)),
        up: true,
        carrier: has_carrier,
        broadcast: true,
        no_arp: false,
        loopback: false,
        controller: None,
        addresses: own.into_iter().chain(link_local).chain(homes.filter_map(|prefix| prefix.parse().ok())).collect(),
    }
}

/// Nodes `k1` to `kN`, a pool of both families and an advertisement of it.
pub fn cluster(nodes: usize) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in 0..nodes {
        let name = node_name(node);
        let node = Node {
            name: name.clone(),
            labels: BTreeMap::from([("name".to_owned(), name.to_string())]),
            annotations: BTreeMap::new(),
            internal_addresses: vec![node_address(node)],
            network_unavailable: false,
            unschedulable: false,
        };
        snapshot.nodes.insert(name, Arc::new(node));
    }
    let pool = pool();
    snapshot.pools.insert(pool.name.clone(), Arc::new(pool));
    let advertisement = advertisement();
    snapshot.l2_advertisements.insert(advertisement.key.clone(), Arc::new(advertisement));
    snapshot
}

/// The one pool.
pub fn pool() -> Pool {
    let range = |first: [u16; 8], last: [u16; 8]| AddressRange::new(first.into(), last.into());
    let v6 = range([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x3ff]);
    let v4 = AddressRange::new([192, 0, 2, 1].into(), [192, 0, 2, 254].into());
    Pool {
        key: ObjectKey::new("default", "pool"),
        read_only: false,
        name: "pool".into(),
        labels: BTreeMap::new(),
        generation: 1,
        ranges: v4.into_iter().chain(v6).collect(),
        auto_assign: true,
        avoid_buggy_ips: false,
        edges: Default::default(),
        sharing: Default::default(),
        allocation: None,
        observed: PoolStatus::default(),
    }
}

/// The one advertisement: everything, from every node.
pub fn advertisement() -> L2Advertisement {
    L2Advertisement {
        key: ObjectKey::new("default", "all"),
        read_only: false,
        generation: 1,
        pools: PoolChoice::default(),
        node_selectors: Vec::new(),
        interfaces: BTreeSet::new(),
        service_selectors: Vec::new(),
        preferred_nodes: Vec::new(),
        is_sticky: false,
    }
}

/// A Service on a port, of these families, with endpoints on these nodes; it has no address yet.
pub fn service(name: &str, port: u16, families: &[Family], nodes: &[usize]) -> Service {
    let port = NonZeroU16::new(port).unwrap_or(NonZeroU16::MIN);
    Service {
        key: ServiceKey::new("default", name),
        labels: BTreeMap::new(),
        created: 0,
        generation: 1,
        version: Default::default(),
        load_balancer: Some(LoadBalancer {
            class: None,
            families: families.to_vec(),
            family_policy: if families.len() > 1 { FamilyPolicy::RequireDualStack } else { FamilyPolicy::SingleStack },
            request: Ok(Request::default()),
        }),
        ports: vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port, node_port: None }],
        cluster_ips: Vec::new(),
        selector: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        session_affinity: SessionAffinity::None,
        source_ranges: Vec::new(),
        is_foreign: false,
        is_entry: false,
        wished_node: None,
        endpoints: endpoints(nodes),
        observed: ServiceStatus::default(),
    }
}

/// Ready endpoints on these nodes.
pub fn endpoints(nodes: &[usize]) -> Vec<Endpoint> {
    let port = EndpointPort { name: String::new(), protocol: Protocol::Tcp, port: NonZeroU16::MIN };
    let ports: Arc<[EndpointPort]> = Arc::from([port]);
    let endpoint = |node: &usize| Endpoint {
        address: IpAddr::from([203, 0, 113, u8::try_from(*node).unwrap_or(u8::MAX)]),
        node: Some(node_name(*node)),
        ready: true,
        serving: true,
        terminating: false,
        ports: ports.clone(),
    };
    nodes.iter().map(endpoint).collect()
}

/// Whether two Services may have one address: equal sharing keys, different ports, and either both with policy
/// `Cluster` or both `Local` with equal selectors.
pub fn may_share(one: &Service, other: &Service) -> bool {
    let key = |service: &Service| service.load_balancer.as_ref()?.sharing_key().cloned();
    let same_backends = match (one.external_traffic_policy, other.external_traffic_policy) {
        (TrafficPolicy::Cluster, TrafficPolicy::Cluster) => true,
        (TrafficPolicy::Local, TrafficPolicy::Local) => one.selector == other.selector,
        _ => false,
    };
    let is_same_port =
        |port: &ServicePort| other.ports.iter().any(|other| (other.protocol, other.port) == (port.protocol, port.port));
    key(one).is_some() && key(one) == key(other) && same_backends && !one.ports.iter().any(is_same_port)
}
