//! What a node advertises by BGP, to which routers, and why not the rest.
//!
//! Nobody is elected: every node that may advertise a Service does, and routers share the traffic out among them. So
//! nothing here depends on what other speakers say: it is a function of a snapshot and of what a speaker knows of its own
//! node. [`Table`] remembers what came of it for each Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ferrogate_wire::bgp;
use sha2::{Digest, Sha256};

use crate::{
    model::{
        Family, NodeName, ObjectKey, PeerName, PoolName, Prefix,
        advertisement::BgpAdvertisement,
        node::{EXCLUDE_LABEL, Node},
        peer::{BgpIdentifier, BgpPeer, NodeValueError, PasswordPlace, PeerOnNode, PeerPlace, on_node},
        service::{Service, TrafficPolicy},
    },
    snapshot::Snapshot,
    speaker::{
        DataPath,
        announce::{Liveness, Policy, Ranges, Silence, Standing, has_endpoints, health_check, needs_proxy, takes},
        bfd,
        bgp::{BfdWish, GracefulRestart, Neighbor, Part, Remote, Transport, Ttl},
        health::Refusals,
    },
};

mod table;

pub(super) use table::Table;

/// Why a node does not speak with the router of a BGPPeer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unpeered {
    /// There is no Node object of this name.
    NodeUnknown,
    /// The peer is for other nodes.
    NotSelected,
    /// What the Node should say of the peer is not there, or does not do.
    NodeValue(NodeValueError),
    /// A password is wanted, and nobody knows it: there must be no session without.
    PasswordUnknown {
        /// The Secret that should have it.
        secret: String,
    },
    /// Another BGPPeer of this name, in another namespace, is spoken with.
    SameName {
        /// That one.
        other: ObjectKey,
    },
}

impl Unpeered {
    /// One CamelCase word for conditions, Events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NodeUnknown => "NodeUnknown",
            Self::NotSelected => "NodeNotSelected",
            Self::NodeValue(error) => error.reason(),
            Self::PasswordUnknown { .. } => "PasswordUnknown",
            Self::SameName { .. } => "DuplicatePeer",
        }
    }
}

impl fmt::Display for Unpeered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeUnknown => f.write_str("there is no Node object of this name"),
            Self::NotSelected => f.write_str("its nodeSelectors do not select the node"),
            Self::NodeValue(error) => error.fmt(f),
            Self::PasswordUnknown { secret } => write!(
                f,
                "Secret {secret} gives no password, and there is no session without it; create the Secret, of type \
                 kubernetes.io/basic-auth with the key password"
            ),
            Self::SameName { other } => {
                write!(f, "BGPPeer {other} has the same name and is spoken with; rename one of the two")
            }
        }
    }
}

/// The routers that a node speaks with, and why not with the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peering {
    /// How each router is spoken with, by the name of its BGPPeer.
    pub neighbors: BTreeMap<PeerName, Arc<Neighbor>>,
    /// Every other BGPPeer.
    pub unpeered: BTreeMap<ObjectKey, Unpeered>,
}

impl Peering {
    /// Whom of them a part of a route is for, if it can carry the family.
    pub fn reached<'a>(&'a self, prefix: &Prefix, part: &'a Part) -> impl Iterator<Item = &'a PeerName> {
        reached(&self.neighbors, &part.peers, Family::of(prefix.ip()))
    }
}

/// Whom of these routers an advertisement for these peers reaches with routes of a family; no peers means all.
fn reached<'a>(
    neighbors: &'a BTreeMap<PeerName, Arc<Neighbor>>,
    peers: &'a BTreeSet<PeerName>,
    family: Family,
) -> impl Iterator<Item = &'a PeerName> {
    let is_meant = |name: &PeerName| peers.is_empty() || peers.contains(name);
    let carries = move |neighbor: &Neighbor| neighbor.families.contains(&unicast(family));
    let reached = neighbors
        .iter()
        .filter(move |(name, neighbor)| is_meant(name) && carries(neighbor) && neighbor.shutdown.is_none());
    reached.map(|(name, _)| name)
}

/// The routers that a node speaks with.
pub fn peering(snapshot: &Snapshot, node: &NodeName, data_path: DataPath) -> Peering {
    let mut peering = Peering::default();
    let Some(node) = snapshot.nodes.get(node) else {
        peering.unpeered.extend(snapshot.bgp_peers.keys().map(|key| (key.clone(), Unpeered::NodeUnknown)));
        return peering;
    };
    let chosen = |peer: &&Arc<BgpPeer>| peer.allows_node(&node.labels);
    let others = snapshot.bgp_peers.values().filter(|peer| !chosen(peer));
    peering.unpeered.extend(others.map(|peer| (peer.key.clone(), Unpeered::NotSelected)));
    // What was written for us comes before what is only read.
    let mut bearers: BTreeMap<&PeerName, (bool, &ObjectKey)> = BTreeMap::new();
    for peer in snapshot.bgp_peers.values().filter(chosen) {
        let bearer = (peer.read_only, &peer.key);
        bearers.entry(&peer.name).and_modify(|first| *first = bearer.min(*first)).or_insert(bearer);
    }
    for (peer, here) in on_node(snapshot.bgp_peers.values(), node) {
        let neighbor = match bearers.get(&peer.name) {
            Some((_, other)) if **other != peer.key => Err(Unpeered::SameName { other: (*other).clone() }),
            _ => here.map_err(Unpeered::NodeValue).and_then(|here| neighbor(snapshot, node, data_path, peer, here)),
        };
        match neighbor {
            Ok(neighbor) => _ = peering.neighbors.insert(peer.name.clone(), Arc::new(neighbor)),
            Err(unpeered) => _ = peering.unpeered.insert(peer.key.clone(), unpeered),
        }
    }
    peering
}

/// How a node speaks with a peer that is like this there.
fn neighbor(
    snapshot: &Snapshot,
    node: &Node,
    data_path: DataPath,
    peer: &BgpPeer,
    here: PeerOnNode,
) -> Result<Neighbor, Unpeered> {
    let PeerOnNode { local_asn, peer_asn, place, source_address, router_id } = here;
    let signature = match &peer.password {
        None => None,
        Some(password) => match &password.place {
            PasswordPlace::Clear(key) | PasswordPlace::Secret { key: Some(key), .. } => {
                Some(password.signature(key.clone()))
            }
            PasswordPlace::Secret { name, key: None } => {
                return Err(Unpeered::PasswordUnknown { secret: name.clone() });
            }
        },
    };
    let family = match &place {
        PeerPlace::Address(address) => Some(Family::of(*address)),
        PeerPlace::Prefix(prefix) => Some(Family::of(prefix.ip())),
        PeerPlace::Interface(_) => None,
    };
    let families = match family.filter(|_| !peer.dual_stack) {
        Some(family) => BTreeSet::from([unicast(family)]),
        None => BTreeSet::from([Family::V4, Family::V6].map(unicast)),
    };
    let passive = peer.passive || matches!(place, PeerPlace::Prefix(_));
    let port = peer.port;
    let remote = match place {
        PeerPlace::Address(address) => Remote::Address { address, port },
        PeerPlace::Interface(name) => Remote::Interface { name, port },
        PeerPlace::Prefix(prefix) => Remote::Prefix(prefix),
    };
    let ttl = match peer.ttl_security {
        Some(hops) => Ttl::Security { hops },
        // Within an AS a neighbour may be anywhere (RFC 4271 §5.1.3).
        None if peer.multi_hop || peer_asn.is_internal(local_asn) => Ttl::MultiHop,
        None => Ttl::Direct,
    };
    let bfd = peer.bfd_profile.as_ref().and_then(|name| {
        let beside = ObjectKey::new(peer.key.namespace.clone(), name.as_str());
        let same_name = || snapshot.bfd_profiles.values().find(|profile| *profile.key.name == **name);
        // One that is missing is a problem of its own, and no reason to do without routes.
        let profile = snapshot.bfd_profiles.get(&beside).or_else(same_name)?;
        Some(BfdWish { settings: bfd::Settings::of(profile), minimum_ttl: profile.minimum_ttl })
    });
    Ok(Neighbor {
        remote,
        local_asn,
        peer_asn,
        identifier: router_id.unwrap_or_else(|| identifier(node)),
        hold_time: peer.hold_time,
        keepalive_time: peer.keepalive_time,
        connect_retry_time: peer.connect_time,
        families,
        graceful_restart: peer.graceful_restart.map(|time| GracefulRestart {
            restart_time_seconds: time.seconds(),
            // The built-in proxy ends with its node's speaker, kube-proxy does not.
            forwarding_preserved: data_path == DataPath::KubeProxy,
        }),
        passive,
        role: peer.role,
        max_prefixes: peer.max_prefixes,
        shutdown: peer.shutdown.clone(),
        bfd,
        transport: Transport { source: source_address, vrf: peer.vrf.clone(), signature, ttl },
    })
}

/// What a node is called by where its peers do not say: its first IPv4 address, or else a number made of its name.
fn identifier(node: &Node) -> BgpIdentifier {
    let of_address = node.internal_addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => BgpIdentifier::new(address.to_bits()),
        IpAddr::V6(_) => None,
    });
    let of_name = || {
        let hash = Sha256::digest(node.name.as_str());
        hash.as_chunks().0.iter().find_map(|octets| BgpIdentifier::new(u32::from_be_bytes(*octets)))
    };
    of_address.or_else(of_name).expect("no name hashes to zeros alone")
}

fn unicast(family: Family) -> bgp::Family {
    match family {
        Family::V4 => bgp::Family::Ipv4Unicast,
        Family::V6 => bgp::Family::Ipv6Unicast,
    }
}

/// What a node advertises for one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// The Service's pool.
    pub pool: PoolName,
    /// What is said of each prefix; neither is ever empty.
    pub routes: BTreeMap<Prefix, BTreeSet<Part>>,
    /// The BGPPeers that get at least one of them; never empty.
    pub peers: BTreeSet<PeerName>,
    /// BGPAdvertisements of the Service and the node from which nothing follows, and why.
    pub withheld: BTreeMap<ObjectKey, Silence>,
}

/// On what terms a node advertises: facts that many Services share, worked out once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    node: NodeName,
    data_path: DataPath,
    /// Why the node advertises nothing whatever the Service.
    silence: Option<Silence>,
    proxy_ready: bool,
    refusals: Refusals,
    ranges: Ranges,
    /// The advertisements that cover each pool.
    offers: BTreeMap<PoolName, Vec<Arc<Offer>>>,
}

/// An advertisement as one node carries it out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Offer {
    advertisement: Arc<BgpAdvertisement>,
    /// It is for this node.
    selects_node: bool,
    /// The nodes it is for that can take traffic.
    nodes: BTreeSet<NodeName>,
    /// What it says of its routes.
    part: Part,
    /// Whom of the routers of this node it reaches with routes of each family.
    reached: BTreeMap<Family, BTreeSet<PeerName>>,
}

impl Terms {
    /// What all Services have in common on a node with these routers. Without a standing it counts as able.
    pub fn new(
        snapshot: &Snapshot,
        node: &NodeName,
        policy: Policy,
        standing: Option<&Standing>,
        neighbors: &BTreeMap<PeerName, Arc<Neighbor>>,
    ) -> Self {
        let own = snapshot.nodes.get(node);
        let draining = policy.yield_on_cordon && own.is_some_and(|own| own.unschedulable);
        let offer = |advertisement: &Arc<BgpAdvertisement>| {
            let able = snapshot
                .nodes
                .values()
                .filter(|node| advertisement.allows_node(&node.labels) && Self::silence_of(node, policy).is_none());
            let reached = [Family::V4, Family::V6]
                .map(|family| (family, reached(neighbors, &advertisement.peers, family).cloned().collect()));
            Arc::new(Offer {
                advertisement: advertisement.clone(),
                selects_node: own.is_some_and(|own| advertisement.allows_node(&own.labels)),
                nodes: able.map(|node| node.name.clone()).collect(),
                part: Part {
                    peers: Arc::new(advertisement.peers.clone()),
                    local_pref: advertisement.local_pref,
                    multi_exit_disc: advertisement.multi_exit_disc,
                    prepend: advertisement.prepend,
                    communities: Arc::new(advertisement.communities.clone()),
                    draining,
                },
                reached: reached.into(),
            })
        };
        let offers: Vec<Arc<Offer>> = snapshot.bgp_advertisements.values().map(offer).collect();
        let offers = snapshot.pools.values().map(|pool| {
            let covering = offers.iter().filter(|offer| offer.advertisement.covers(pool));
            (pool.name.clone(), covering.cloned().collect())
        });
        // Of its own node no speaker thinks so.
        let is_lost = standing.is_some_and(|standing| standing.liveness == Liveness::Lost);
        let silence = own.map_or(Some(Silence::NodeUnknown), |own| Self::silence_of(own, policy));
        Self {
            node: node.clone(),
            data_path: policy.data_path,
            silence: silence.or_else(|| is_lost.then_some(Silence::SpeakerLost)),
            proxy_ready: standing.is_none_or(|standing| standing.proxy_ready),
            refusals: standing.map(|standing| standing.refusals.clone()).unwrap_or_default(),
            ranges: Ranges::new(snapshot),
            offers: offers.collect(),
        }
    }

    fn silence_of(node: &Node, policy: Policy) -> Option<Silence> {
        if node.network_unavailable {
            Some(Silence::NodeNetworkUnavailable)
        } else if !policy.ignore_exclude_label && node.labels.contains_key(EXCLUDE_LABEL) {
            Some(Silence::NodeExcluded)
        } else {
            None
        }
    }

    /// What the node advertises for a Service.
    ///
    /// # Errors
    /// Why it advertises nothing.
    pub fn of(&self, service: &Service) -> Result<Advertised, Silence> {
        let (addresses, pool) = self.ranges.place(service)?;
        let of_pool = self.offers.get(pool).into_iter().flatten().map(AsRef::as_ref);
        let covering: Vec<&Offer> =
            of_pool.filter(|offer: &&Offer| offer.advertisement.covers_service(&service.labels)).collect();
        if covering.is_empty() {
            return Err(Silence::NoBgpAdvertisement { pool: pool.clone() });
        }
        if let Some(Silence::NodeUnknown) = self.silence {
            return Err(Silence::NodeUnknown);
        }
        let own: Vec<&Offer> = covering.iter().copied().filter(|offer| offer.selects_node).collect();
        if own.is_empty() {
            return Err(Silence::NoBgpAdvertisementSelectsThisNode);
        }
        if let Some(conflict) = conflict(&own, &addresses) {
            return Err(conflict);
        }
        if let Some(silence) = &self.silence {
            return Err(silence.clone());
        }
        self.judge_endpoints(service, &covering)?;
        if needs_proxy(service, self.data_path) && !self.proxy_ready {
            return Err(Silence::ProxyNotReady);
        }
        let health_check = health_check(service).filter(|_| self.data_path == DataPath::KubeProxy);
        if let Some(port) = health_check.filter(|port| self.refusals.contains(*port)) {
            return Err(Silence::HealthCheckFails { port });
        }
        let (mut routes, mut peers, mut withheld) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        for offer in own {
            match offer.routes(&addresses) {
                Ok(found) => {
                    for (prefix, reached) in found {
                        routes.entry(prefix).or_insert_with(BTreeSet::new).insert(offer.part.clone());
                        peers.extend(reached.iter().cloned());
                    }
                }
                Err(silence) => _ = withheld.insert(offer.advertisement.key.clone(), silence),
            }
        }
        if routes.is_empty()
            && let Some((_, silence)) = withheld.pop_first()
        {
            return Err(silence);
        }
        Ok(Advertised { pool: pool.clone(), routes, peers, withheld })
    }

    /// Whether traffic that comes here gets to an endpoint.
    fn judge_endpoints(&self, service: &Service, covering: &[&Offer]) -> Result<(), Silence> {
        if !has_endpoints(service, self.data_path) {
            return Ok(());
        }
        let taking = || service.endpoints.iter().filter(|endpoint| takes(service, endpoint));
        if service.external_traffic_policy == TrafficPolicy::Cluster {
            return if taking().next().is_some() { Ok(()) } else { Err(Silence::NoReadyEndpoint) };
        }
        let mut here = taking().filter(|endpoint| endpoint.node.as_ref() == Some(&self.node)).peekable();
        let takes_any = here.peek().is_some();
        if here.any(|endpoint| endpoint.ready) {
            return Ok(());
        }
        // Those that are about to go finish what they have. New traffic goes where there is somebody to stay, if it can.
        let is_elsewhere = |node: &NodeName| covering.iter().any(|offer| offer.nodes.contains(node));
        let mut staying = taking().filter(|endpoint| endpoint.ready);
        if takes_any && !staying.any(|endpoint| endpoint.node.as_ref().is_some_and(is_elsewhere)) {
            return Ok(());
        }
        Err(Silence::NoLocalEndpoint)
    }

    /// Whether Services may have to be looked at again of which nobody else says so, now that these terms have taken the
    /// place of others: all but those behind health check ports that are told apart from the ones before.
    pub(super) fn upsets(&self, before: &Self) -> bool {
        let Self { node, data_path, silence, proxy_ready, refusals, ranges, offers } = self;
        (node, data_path, silence, proxy_ready)
            != (&before.node, &before.data_path, &before.silence, &before.proxy_ready)
            || (ranges, offers) != (&before.ranges, &before.offers)
            || refusals.difference(&before.refusals).is_none()
    }
}

impl Offer {
    /// The routes it makes of these addresses, and whom each reaches.
    fn routes(&self, addresses: &[IpAddr]) -> Result<Vec<(Prefix, &BTreeSet<PeerName>)>, Silence> {
        let advertisement = &self.advertisement;
        if let Some(alias) = advertisement.unknown_aliases.first() {
            let (advertisement, alias) = (advertisement.key.clone(), alias.clone());
            return Err(Silence::UnknownCommunityAlias { advertisement, alias });
        }
        let routes = addresses.iter().filter_map(|&address| {
            let family = Family::of(address);
            let reached = self.reached.get(&family).filter(|peers| !peers.is_empty())?;
            Some((aggregate(address, advertisement.aggregation.of(family))?, reached))
        });
        let routes: Vec<_> = routes.collect();
        if routes.is_empty() {
            return Err(Silence::NoPeer { advertisement: advertisement.key.clone() });
        }
        Ok(routes)
    }
}

/// The first two advertisements that give one route to one peer different values of LOCAL_PREF.
fn conflict(offers: &[&Offer], addresses: &[IpAddr]) -> Option<Silence> {
    let mut rest = offers.iter().map(|offer| &*offer.advertisement);
    while let Some(one) = rest.next() {
        let contradicts = |other: &&BgpAdvertisement| {
            let same_peer = one.peers.is_empty() || other.peers.is_empty() || !one.peers.is_disjoint(&other.peers);
            let mut families = addresses.iter().map(|address| Family::of(*address));
            one.local_pref != other.local_pref
                && same_peer
                && families.any(|family| one.aggregation.of(family) == other.aggregation.of(family))
        };
        if let Some(other) = rest.clone().find(contradicts) {
            return Some(Silence::ConflictingAdvertisements { one: one.key.clone(), other: other.key.clone() });
        }
    }
    None
}

/// The network of so many bits that an address is in; `None` for more bits than it has.
fn aggregate(address: IpAddr, length: u8) -> Option<Prefix> {
    let within = Prefix::new(address, length).ok()?;
    Prefix::new(within.network(), length).ok()
}
