//! Which endpoints of a Service take traffic, in which order of preference, and why the others do not.

use std::{collections::BTreeSet, fmt, net::SocketAddr, num::NonZeroU16};

use crate::model::{
    Family, NodeName, ServiceKey,
    service::{Endpoint, Service, ServicePort, SessionAffinity},
};

/// One port of one Service with the endpoints behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The Service.
    pub service: ServiceKey,
    /// The number of its port, not the one to dial.
    pub port: NonZeroU16,
    /// Whether a client keeps its endpoint.
    pub affinity: SessionAffinity,
    targets: Box<[Target]>,
}

/// An endpoint that may take traffic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// How willingly it is used; the least first.
    pub tier: Tier,
    /// What to dial.
    pub address: SocketAddr,
    /// The node it runs on, where known.
    pub node: Option<NodeName>,
}

/// How willingly an endpoint is used: one of a greater tier takes traffic only when none of a lesser one is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tier {
    /// The speaker of this node has lost sight of the endpoint's node.
    pub unreachable: bool,
    /// It is about to go, but still serves.
    pub terminating: bool,
}

/// Where traffic for a backend comes in, as far as that decides which endpoints it may use.
#[derive(Clone, Copy, Debug)]
pub struct Entrance<'a> {
    /// The family of the address that clients dial. Where a Service has endpoints of both families, those of this
    /// one are used.
    pub family: Family,
    /// Only endpoints on this node may be used (`externalTrafficPolicy: Local`).
    pub only_node: Option<&'a NodeName>,
    /// Nodes that the speaker of this node has lost sight of.
    pub unreachable: &'a BTreeSet<NodeName>,
}

/// Why an endpoint takes no traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unused {
    /// Neither ready nor still serving.
    NotReady,
    /// Its EndpointSlice has no port for the Service's port.
    NoSuchPort,
    /// `externalTrafficPolicy: Local`, and it runs elsewhere.
    OnOtherNode,
    /// The Service has usable endpoints in the family of the address that clients dial, and this is not one of them.
    OtherFamily,
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReady => "it is not ready",
            Self::NoSuchPort => "its EndpointSlice has no port of that name and protocol",
            Self::OnOtherNode => "externalTrafficPolicy is Local and it runs on another node",
            Self::OtherFamily => "the Service has endpoints of the address's own family",
        })
    }
}

impl Backend {
    /// The endpoints behind one port of a Service.
    pub fn new(service: &Service, port: &ServicePort, entrance: Entrance<'_>) -> Self {
        let mut targets: Vec<Target> = judge(service, port, entrance).filter_map(|(_, verdict)| verdict.ok()).collect();
        // The same socket may stand in several slices while endpoints move between them: the best word on it counts.
        targets.sort_unstable_by(|one, other| (one.address, one).cmp(&(other.address, other)));
        targets.dedup_by_key(|target| target.address);
        targets.sort_unstable();
        Self {
            service: service.key.clone(),
            port: port.port,
            affinity: service.session_affinity,
            targets: targets.into_boxed_slice(),
        }
    }

    /// Every endpoint that may take traffic, the preferred ones first, then by address.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The endpoints that keep their flows and idle connections.
    ///
    /// An endpoint loses them once it is gone, or once its node is out of sight while another endpoint is not. One
    /// that terminates keeps what it has for as long as it serves.
    pub fn kept(&self) -> impl Iterator<Item = SocketAddr> {
        let out_of_sight = self.targets.first().is_some_and(|best| best.tier.unreachable);
        let kept = self.targets.iter().filter(move |target| target.tier.unreachable <= out_of_sight);
        kept.map(|target| target.address)
    }

    /// Whether this endpoint keeps its flows and idle connections.
    pub fn keeps(&self, endpoint: SocketAddr) -> bool {
        self.kept().any(|kept| kept == endpoint)
    }
}

/// Every endpoint of a Service with the verdict on it, for one port and one entrance.
pub fn judge<'a>(
    service: &'a Service,
    port: &'a ServicePort,
    entrance: Entrance<'a>,
) -> impl Iterator<Item = (&'a Endpoint, Result<Target, Unused>)> {
    let verdict = move |endpoint: &Endpoint| {
        let Some(number) = endpoint.port_for(port) else { return Err(Unused::NoSuchPort) };
        if !endpoint.servable() {
            return Err(Unused::NotReady);
        }
        if entrance.only_node.is_some() && endpoint.node.as_ref() != entrance.only_node {
            return Err(Unused::OnOtherNode);
        }
        let unreachable = endpoint.node.as_ref().is_some_and(|node| entrance.unreachable.contains(node));
        Ok(Target {
            tier: Tier { unreachable, terminating: !endpoint.ready },
            address: SocketAddr::new(endpoint.address, number.get()),
            node: endpoint.node.clone(),
        })
    };
    let own_family = service
        .endpoints
        .iter()
        .any(|endpoint| Family::of(endpoint.address) == entrance.family && verdict(endpoint).is_ok());
    service.endpoints.iter().map(move |endpoint| {
        let verdict = verdict(endpoint).and_then(|target| {
            if own_family && Family::of(endpoint.address) != entrance.family {
                return Err(Unused::OtherFamily);
            }
            Ok(target)
        });
        (endpoint, verdict)
    })
}
