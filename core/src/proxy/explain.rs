//! How traffic for one Service travels, hop by hop, as `ferrogate explain` tells it. It asks the functions that
//! decided, so that what it says is what happens.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use crate::{
    model::{
        Family, NodeName, ServiceKey,
        service::{Endpoint, Protocol, Service, ServicePort},
    },
    proxy::{
        ListenerKey, RouteTable, Serves, Target, Tier, Transport, Why,
        backend::{Unused, judge},
        listener_entrance, primary_family, unserved_ports,
    },
    snapshot::Snapshot,
};

/// One port of a Service at one of its addresses, from the outside to the endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The address that clients dial; `None` while the Service has none.
    pub address: Option<IpAddr>,
    /// The port that clients dial.
    pub port: NonZeroU16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on every node, if one is allocated.
    pub node_port: Option<NonZeroU16>,
    /// What the proxy does there, or why nothing; `None` while the Service has no address.
    pub carried: Option<Result<Carried, Why>>,
    /// Every endpoint of the Service with the part it plays; empty for the shared entry of a folder.
    pub endpoints: Vec<EndpointHop>,
}

/// What the proxy does with traffic for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// It is the shared entry: requests go where the Ingresses say.
    Http,
    /// It passes bytes or datagrams on to the endpoints.
    Forwarded,
}

/// One endpoint and the part it plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointHop {
    /// Its address.
    pub address: IpAddr,
    /// The node it runs on, where known.
    pub node: Option<NodeName>,
    /// The part it plays.
    pub part: Part,
}

/// The part an endpoint plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// It takes traffic.
    Used(SocketAddr),
    /// It takes traffic only when no better one is left.
    Spare(SocketAddr, Tier),
    /// It takes none.
    Unused(Unused),
}

/// The way to one Service: a hop for every address and port. `node` is the node whose proxy is asked, which matters
/// for `externalTrafficPolicy: Local`. `None` when there is no such Service.
pub fn chain(snapshot: &Snapshot, service: &ServiceKey, node: Option<&NodeName>) -> Option<Vec<Hop>> {
    let service = snapshot.services.get(service)?;
    let table = RouteTable::compile(snapshot, node);
    let addresses: Vec<Option<IpAddr>> = match service.observed.addresses.as_slice() {
        [] => vec![None],
        addresses => addresses.iter().copied().map(Some).collect(),
    };
    let hop = |address: Option<IpAddr>, port: &ServicePort| Hop {
        address,
        port: port.port,
        protocol: port.protocol,
        node_port: port.node_port,
        carried: match &snapshot.entry {
            Some(_) => address.map(|_| Ok(if service.is_entry { Carried::Http } else { Carried::Forwarded })),
            None => address.and_then(|address| carried(&table, service, address, port)),
        },
        endpoints: if service.is_entry && snapshot.entry.is_none() {
            Vec::new()
        } else {
            endpoints(snapshot, service, address, port, node)
        },
    };
    let hops = addresses.iter().flat_map(|address| service.ports.iter().map(move |port| (*address, port)));
    Some(hops.map(|(address, port)| hop(address, port)).collect())
}

fn carried(table: &RouteTable, service: &Service, address: IpAddr, port: &ServicePort) -> Option<Result<Carried, Why>> {
    let about_this_port = |why: &Why| match why {
        Why::Protocol { port: number, protocol } | Why::EntryProtocol { port: number, protocol } => {
            (*number, *protocol) == (port.port, port.protocol)
        }
        _ => false,
    };
    if let Some(unserved) = unserved_ports(service).find(|unserved| about_this_port(&unserved.why)) {
        return Some(Err(unserved.why));
    }
    let transport = match port.protocol {
        Protocol::Udp => Transport::Udp,
        Protocol::Tcp | Protocol::Sctp => Transport::Tcp,
    };
    let listener = table.listener(ListenerKey { socket: SocketAddr::new(address, port.port.get()), transport })?;
    Some(match listener.serves {
        _ if listener.service != service.key => Err(Why::PortTaken {
            socket: SocketAddr::new(address, port.port.get()),
            protocol: port.protocol,
            by: listener.service.clone(),
        }),
        Serves::Http => Ok(Carried::Http),
        Serves::Tcp(_) | Serves::Udp(_) => Ok(Carried::Forwarded),
    })
}

fn endpoints(
    snapshot: &Snapshot,
    service: &Service,
    address: Option<IpAddr>,
    port: &ServicePort,
    node: Option<&NodeName>,
) -> Vec<EndpointHop> {
    let family = address.map_or_else(|| primary_family(service), Family::of);
    let entrance = listener_entrance(snapshot, service, family, node);
    let verdicts: Vec<_> = judge(service, port, entrance).collect();
    let best = verdicts.iter().filter_map(|(_, verdict)| verdict.as_ref().ok()).map(|target| target.tier).min();
    let part = |(endpoint, verdict): (&Endpoint, Result<Target, Unused>)| EndpointHop {
        address: endpoint.address,
        node: endpoint.node.clone(),
        part: match verdict {
            Ok(target) if Some(target.tier) == best => Part::Used(target.address),
            Ok(target) => Part::Spare(target.address, target.tier),
            Err(unused) => Part::Unused(unused),
        },
    };
    verdicts.into_iter().map(part).collect()
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Used(_) => f.write_str("takes traffic"),
            Self::Spare(_, Tier { unreachable: true, .. }) => {
                f.write_str("takes traffic only when no other is left: its node is out of sight")
            }
            Self::Spare(..) => f.write_str("takes traffic only when no ready one is left: it is terminating"),
            Self::Unused(unused) => write!(f, "takes no traffic: {unused}"),
        }
    }
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "served as HTTP for every Ingress",
            Self::Forwarded => "passed on to the endpoints",
        })
    }
}
