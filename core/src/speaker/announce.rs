//! What a node announces by layer 2, and why not the rest.
//!
//! Everything here is a function of a snapshot and of what speakers know about each other; nothing is remembered.
//!
//! Ownership is decided per *address set*: Services that share an address, and all addresses of those Services,
//! belong together and have one owner. So a shared address never has two, and both families of a Service go the same
//! way. A Service of the set that can be served nowhere (no endpoint, say) takes no part and does not stop the others.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    sync::Arc,
};

use ferrogate_wire::ethernet::Mac;

use crate::{
    model::{
        Family, InterfaceName, NodeName, ObjectKey, PoolName, Prefix, ServiceKey,
        advertisement::L2Advertisement,
        node::EXCLUDE_LABEL,
        service::{Endpoint, Service, TrafficPolicy},
    },
    snapshot::Snapshot,
    speaker::{
        DataPath,
        elect::{self, Rank},
        health::Refusals,
        watch::Watched,
    },
};

/// Why a node does not announce a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Silence {
    /// Not a LoadBalancer Service, or not of a class that is served.
    NotServed,
    /// It has no address yet.
    NoAddress,
    /// Its addresses never leave the host.
    LoopbackAddress,
    /// One of its addresses is in no pool.
    NoPool {
        /// The address.
        address: IpAddr,
    },
    /// No endpoint is ready or still serving.
    NoReadyEndpoint,
    /// No L2Advertisement covers its pool and itself.
    NoAdvertisement {
        /// Its pool.
        pool: PoolName,
    },
    /// There is no Node object of this name.
    NodeUnknown,
    /// Advertisements cover the Service, but none of them this node.
    NoAdvertisementSelectsThisNode,
    /// The node carries the label that keeps it out of load balancing.
    NodeExcluded,
    /// The node's network is not set up (condition `NetworkUnavailable`).
    NodeNetworkUnavailable,
    /// The node's speaker is not heard.
    SpeakerLost,
    /// The node's speaker is stopping.
    SpeakerLeaving,
    /// The node's proxy, which would carry the traffic, is not ready.
    ProxyNotReady,
    /// No endpoint on this node is ready or still serving, and the traffic policy is `Local`.
    NoLocalEndpoint,
    /// The traffic policy is `Local`, and the node's kube-proxy does not say that it carries the Service.
    HealthCheckFails {
        /// `healthCheckNodePort`.
        port: NonZeroU16,
    },
    /// The node has no interface to announce on.
    NoUsableInterface {
        /// The interfaces that the advertisements allow; empty means any.
        allowed: BTreeSet<InterfaceName>,
    },
    /// No interface of the node has an address in the subnet of an address, and another node's has.
    NotInSubnet {
        /// The address.
        address: IpAddr,
    },
    /// Another node comes first.
    NotElected {
        /// That node.
        owner: NodeName,
    },
    /// No BGPAdvertisement covers its pool and itself.
    NoBgpAdvertisement {
        /// Its pool.
        pool: PoolName,
    },
    /// BGPAdvertisements cover the Service, but none of them this node.
    NoBgpAdvertisementSelectsThisNode,
    /// Two BGPAdvertisements give one route to one peer different values of LOCAL_PREF.
    ConflictingAdvertisements {
        /// The first by name.
        one: ObjectKey,
        /// The other.
        other: ObjectKey,
    },
    /// A BGPAdvertisement names a community that no Community object gives: its routes must not go without.
    UnknownCommunityAlias {
        /// The advertisement.
        advertisement: ObjectKey,
        /// The first name that is not known.
        alias: String,
    },
    /// The node speaks with no peer that a BGPAdvertisement is for and that carries the family.
    NoPeer {
        /// The advertisement.
        advertisement: ObjectKey,
    },
}

impl Silence {
    /// One CamelCase word for conditions, Events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotServed => "NotServed",
            Self::NoAddress => "NoAddress",
            Self::LoopbackAddress => "LoopbackAddress",
            Self::NoPool { .. } => "NoPool",
            Self::NoReadyEndpoint => "NoReadyEndpoint",
            Self::NoAdvertisement { .. } => "NoAdvertisement",
            Self::NodeUnknown => "NodeUnknown",
            Self::NoAdvertisementSelectsThisNode => "NoAdvertisementSelectsThisNode",
            Self::NodeExcluded => "NodeExcluded",
            Self::NodeNetworkUnavailable => "NodeNetworkUnavailable",
            Self::SpeakerLost => "SpeakerLost",
            Self::SpeakerLeaving => "SpeakerLeaving",
            Self::ProxyNotReady => "ProxyNotReady",
            Self::NoLocalEndpoint => "NoLocalEndpoint",
            Self::HealthCheckFails { .. } => "HealthCheckFails",
            Self::NoUsableInterface { .. } => "NoUsableInterface",
            Self::NotInSubnet { .. } => "NotInSubnet",
            Self::NotElected { .. } => "NotElected",
            Self::NoBgpAdvertisement { .. } => "NoBGPAdvertisement",
            Self::NoBgpAdvertisementSelectsThisNode => "NoBGPAdvertisementSelectsThisNode",
            Self::ConflictingAdvertisements { .. } => "ConflictingAdvertisements",
            Self::UnknownCommunityAlias { .. } => "UnknownCommunityAlias",
            Self::NoPeer { .. } => "NoPeer",
        }
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotServed => f.write_str("the Service is not of type LoadBalancer, or of a class not served here"),
            Self::NoAddress => f.write_str("the Service has no address"),
            Self::LoopbackAddress => f.write_str("loopback addresses never leave the host"),
            Self::NoPool { address } => write!(f, "{address} is in no pool"),
            Self::NoReadyEndpoint => f.write_str("the Service has no ready endpoint"),
            Self::NoAdvertisement { pool } => write!(f, "no L2Advertisement covers pool {pool} and this Service"),
            Self::NodeUnknown => f.write_str("there is no Node object of this name"),
            Self::NoAdvertisementSelectsThisNode => f.write_str("no L2Advertisement of the Service selects the node"),
            Self::NodeExcluded => write!(f, "the node has the label {EXCLUDE_LABEL}"),
            Self::NodeNetworkUnavailable => f.write_str("the node's condition NetworkUnavailable is True"),
            Self::SpeakerLost => f.write_str("the node's speaker is not heard"),
            Self::SpeakerLeaving => f.write_str("the node's speaker is stopping"),
            Self::ProxyNotReady => f.write_str("the node's proxy is not ready"),
            Self::NoLocalEndpoint => f.write_str("externalTrafficPolicy is Local and the node has no ready endpoint"),
            Self::HealthCheckFails { port } => write!(
                f,
                "externalTrafficPolicy is Local and the node's kube-proxy does not answer 200 at healthCheckNodePort {port}"
            ),
            Self::NoUsableInterface { allowed } if allowed.is_empty() => {
                f.write_str("the node has no interface that is up, has a carrier and may be announced on")
            }
            Self::NoUsableInterface { allowed } => {
                f.write_str("none of the interfaces of the L2Advertisement is usable on the node:")?;
                allowed.iter().try_for_each(|name| write!(f, " {name}"))
            }
            Self::NotInSubnet { address } => {
                write!(f, "no interface of the node has an address in the subnet of {address}, and another node's has")
            }
            Self::NotElected { owner } => write!(f, "node {owner} announces it"),
            Self::NoBgpAdvertisement { pool } => {
                write!(f, "no BGPAdvertisement covers pool {pool} and this Service")
            }
            Self::NoBgpAdvertisementSelectsThisNode => {
                f.write_str("no BGPAdvertisement of the Service selects the node")
            }
            Self::ConflictingAdvertisements { one, other } => write!(
                f,
                "BGPAdvertisements {} and {} give the same route different localPref; use one value, or other peers or \
                 aggregation lengths",
                one.name, other.name
            ),
            Self::UnknownCommunityAlias { advertisement, alias } => write!(
                f,
                "BGPAdvertisement {} names community {alias:?}, which no Community object gives; create one or correct \
                 the name",
                advertisement.name
            ),
            Self::NoPeer { advertisement } => write!(
                f,
                "the node speaks with no peer that BGPAdvertisement {} is for and that carries the family of the address",
                advertisement.name
            ),
        }
    }
}

/// The settings of a speaker that take part in the decision. They must be the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How traffic reaches endpoints.
    pub data_path: DataPath,
    /// Whether excluded nodes may announce all the same.
    pub ignore_exclude_label: bool,
    /// Whether cordoned nodes announce only what nobody else can.
    pub yield_on_cordon: bool,
}

/// What speakers know about a node beyond its Node object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether its speaker is there.
    pub liveness: Liveness,
    /// Whether its proxy is ready.
    pub proxy_ready: bool,
    /// Health check ports that its kube-proxy does not agree to.
    pub refusals: Refusals,
    /// Where it could announce; `None` while that is not known, which counts as everywhere.
    pub links: Option<Links>,
    /// Where it could too, but for somebody who finds these interfaces dead: there it announces what nobody else can.
    pub dead_links: Links,
}

/// Whether a speaker is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Heard, or not yet missed.
    Alive,
    /// Not heard for the detection time.
    Lost,
    /// Said that it is stopping.
    Leaving,
    /// Not heard by the others, who go on without it, as it knows from them: it announces what nobody else can.
    Yielding,
}

/// Interfaces a node could announce on.
pub type Links = BTreeMap<InterfaceName, Carries>;

/// Which families an interface can be announced on, and where it is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carries {
    /// ARP works there.
    pub ipv4: bool,
    /// Neighbour discovery works there.
    pub ipv6: bool,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// An IPv4 address of its own with the length of its prefix, at which a neighbour can watch it.
    pub watch_ipv4: Option<(Ipv4Addr, u8)>,
    /// A link-local address of its own, at which a neighbour can watch it.
    pub watch_ipv6: Option<Ipv6Addr>,
    /// The subnets of its addresses, but for link-local ones; `None` where they are not known, which counts as all.
    pub subnets: Option<BTreeSet<Prefix>>,
}

impl Carries {
    /// Whether this family is among them.
    pub fn family(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }

    /// Whether an address is known to be in one of its subnets.
    pub(crate) fn is_near(&self, address: IpAddr) -> bool {
        self.subnets.iter().flatten().any(|subnet| subnet.contains(address))
    }

    /// Whether both may be in one subnet.
    pub(crate) fn shares_subnet(&self, other: &Self) -> bool {
        let (Some(ours), Some(theirs)) = (&self.subnets, &other.subnets) else { return true };
        let overlap = |one: &Prefix, other: &Prefix| one.contains(other.network()) || other.contains(one.network());
        ours.iter().any(|one| theirs.iter().any(|other| overlap(one, other)))
    }

    /// Whether an address is in one of its subnets.
    fn is_at_home(&self, address: IpAddr) -> bool {
        self.subnets.as_ref().is_none_or(|subnets| subnets.iter().any(|subnet| subnet.contains(address)))
    }
}

/// What is known about every node. One that is missing here counts as alive and able: whoever has no speaker's view
/// (a person's terminal) asks what *should* be.
pub type Standings = BTreeMap<NodeName, Standing>;

/// What this node announces for one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The Service's pool.
    pub pool: PoolName,
    /// Its addresses in their order, and the interfaces to announce each on. None for an address whose family no
    /// interface carries.
    pub addresses: Vec<(IpAddr, BTreeSet<InterfaceName>)>,
    /// The interfaces that the advertisements allow; empty means any.
    pub allowed: BTreeSet<InterfaceName>,
}

/// The whole contest for the addresses of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranking {
    /// Every Service of the address set.
    pub services: BTreeSet<ServiceKey>,
    /// The address that the hash is taken of.
    pub elected_by: IpAddr,
    /// Candidates, the owner first.
    pub candidates: Vec<Rank>,
    /// Every other node, and why it is out.
    pub out: BTreeMap<NodeName, Silence>,
}

/// Ranks nodes for one Service after the other, by the same facts.
pub struct Rankings<'a> {
    snapshot: &'a Snapshot,
    ground: Ground,
    sharing: Sharing,
}

impl<'a> Rankings<'a> {
    /// Works out what the rankings of all Services have in common.
    pub fn new(snapshot: &'a Snapshot, policy: Policy, standings: &Standings) -> Self {
        Self { snapshot, ground: Ground::new(snapshot, policy, standings), sharing: Sharing::new(snapshot) }
    }

    /// Ranks all nodes for the addresses of a Service.
    ///
    /// # Errors
    /// Why no node at all can announce it.
    pub fn of(&self, service: &ServiceKey) -> Result<Ranking, Silence> {
        let own = self.snapshot.services.get(service).ok_or(Silence::NotServed)?;
        self.ground.offer(own)?;
        let services = self.sharing.set_of(self.snapshot, service);
        let contest = self.ground.contest(self.snapshot, &services);
        let elected_by = contest.elected_by().ok_or(Silence::NoAddress)?;
        let text = elected_by.to_string();
        let mut candidates = Vec::new();
        let mut out = BTreeMap::new();
        for node in self.ground.nodes.keys() {
            match contest.claim(node) {
                Ok(claim) => candidates.push(contest.rank(claim, node, &text)),
                Err(silence) => {
                    out.insert(node.clone(), silence);
                }
            }
        }
        candidates.sort();
        Ok(Ranking { services, elected_by, candidates, out })
    }
}

/// [`Rankings::of`] a single Service.
///
/// # Errors
/// Why no node at all can announce it.
pub fn ranking(
    snapshot: &Snapshot,
    policy: Policy,
    standings: &Standings,
    service: &ServiceKey,
) -> Result<Ranking, Silence> {
    Rankings::new(snapshot, policy, standings).of(service)
}

/// The addresses of a Service that can be announced at all.
pub fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let served = service.load_balancer.is_some();
    service.observed.addresses.iter().copied().filter(move |address| served && !address.is_loopback())
}

/// Which Services stand behind each address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sharing {
    by_address: BTreeMap<IpAddr, BTreeSet<ServiceKey>>,
}

impl Sharing {
    pub(crate) fn new(snapshot: &Snapshot) -> Self {
        let mut sharing = Self::default();
        for service in snapshot.services.values() {
            sharing.insert(service);
        }
        sharing
    }

    pub(crate) fn insert(&mut self, service: &Service) {
        for address in addresses(service) {
            self.by_address.entry(address).or_default().insert(service.key.clone());
        }
    }

    pub(crate) fn remove(&mut self, service: &Service) {
        for address in addresses(service) {
            let Some(services) = self.by_address.get_mut(&address) else { continue };
            services.remove(&service.key);
            if services.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }

    /// The Services behind an address.
    pub(crate) fn of(&self, address: IpAddr) -> impl Iterator<Item = &ServiceKey> {
        self.by_address.get(&address).into_iter().flatten()
    }

    /// Every Service that is tied to this one by shared addresses, itself included.
    pub(crate) fn set_of(&self, snapshot: &Snapshot, service: &ServiceKey) -> BTreeSet<ServiceKey> {
        let mut found = BTreeSet::from([service.clone()]);
        let mut open = vec![service.clone()];
        while let Some(key) = open.pop() {
            let Some(service) = snapshot.services.get(&key) else { continue };
            for neighbour in addresses(service).flat_map(|address| self.of(address)) {
                if found.insert(neighbour.clone()) {
                    open.push(neighbour.clone());
                }
            }
        }
        found
    }
}

/// Which pool each address is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// First address of every range, with its last one and the pool. Ranges never overlap.
    by_first: BTreeMap<IpAddr, (IpAddr, PoolName)>,
}

impl Ranges {
    pub(crate) fn new(snapshot: &Snapshot) -> Self {
        let ranges = snapshot
            .pools
            .values()
            .flat_map(|pool| pool.ranges.iter().map(|range| (range.first(), (range.last(), pool.name.clone()))));
        Self { by_first: ranges.collect() }
    }

    fn pool_of(&self, address: IpAddr) -> Option<&PoolName> {
        let (_, (last, pool)) = self.by_first.range(..=address).next_back()?;
        (Family::of(*last) == Family::of(address) && address <= *last).then_some(pool)
    }

    /// The addresses of a Service, at least one, and its pool; or why nobody can announce it.
    pub(crate) fn place(&self, service: &Service) -> Result<(Vec<IpAddr>, &PoolName), Silence> {
        if service.load_balancer.is_none() {
            return Err(Silence::NotServed);
        }
        let addresses: Vec<IpAddr> = addresses(service).collect();
        let Some(&first) = addresses.first() else {
            let loopback = !service.observed.addresses.is_empty();
            return Err(if loopback { Silence::LoopbackAddress } else { Silence::NoAddress });
        };
        let pool = self.pool_of(first).ok_or(Silence::NoPool { address: first })?;
        if let Some(&address) = addresses.iter().find(|&&address| self.pool_of(address).is_none()) {
            return Err(Silence::NoPool { address });
        }
        Ok((addresses, pool))
    }
}

/// Facts that many Services share, worked out once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ground {
    data_path: DataPath,
    ranges: Ranges,
    /// The advertisements that cover each pool.
    reaches: BTreeMap<PoolName, Vec<Reach>>,
    nodes: BTreeMap<NodeName, Footing>,
}

/// An advertisement and the nodes it allows, each with its summed preference.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reach {
    advertisement: Arc<L2Advertisement>,
    nodes: BTreeMap<NodeName, u32>,
    /// The highest preference among them.
    highest: u32,
}

/// What concerns a node whatever the Service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Footing {
    silence: Option<Silence>,
    yields: bool,
    cordoned: bool,
    proxy_ready: bool,
    refusals: Refusals,
    links: Option<Links>,
    dead_links: Links,
}

impl Ground {
    pub(crate) fn new(snapshot: &Snapshot, policy: Policy, standings: &Standings) -> Self {
        let reach = |advertisement: &Arc<L2Advertisement>| {
            let allowed = snapshot.nodes.values().filter(|node| advertisement.allows_node(&node.labels));
            let nodes: BTreeMap<NodeName, u32> = allowed
                .map(|node| {
                    let preferred = advertisement.preferred_nodes.iter();
                    let weights = preferred.filter(|preferred| preferred.preference.matches(&node.labels));
                    (node.name.clone(), weights.map(|preferred| u32::from(preferred.weight.get())).sum())
                })
                .collect();
            let highest = nodes.values().copied().max().unwrap_or_default();
            Reach { advertisement: advertisement.clone(), nodes, highest }
        };
        let reaches: Vec<Reach> = snapshot.l2_advertisements.values().map(reach).collect();
        let reaches = snapshot.pools.values().map(|pool| {
            let covering = reaches.iter().filter(|reach| reach.advertisement.pools.covers(pool));
            (pool.name.clone(), covering.cloned().collect())
        });
        let nodes = snapshot.nodes.values().map(|node| {
            let standing = standings.get(&node.name);
            let excluded = !policy.ignore_exclude_label && node.labels.contains_key(EXCLUDE_LABEL);
            let silence = if excluded {
                Some(Silence::NodeExcluded)
            } else if node.network_unavailable {
                Some(Silence::NodeNetworkUnavailable)
            } else {
                match standing.map_or(Liveness::Alive, |standing| standing.liveness) {
                    Liveness::Alive | Liveness::Yielding => None,
                    Liveness::Lost => Some(Silence::SpeakerLost),
                    Liveness::Leaving => Some(Silence::SpeakerLeaving),
                }
            };
            let footing = Footing {
                silence,
                yields: standing.is_some_and(|standing| standing.liveness == Liveness::Yielding),
                cordoned: policy.yield_on_cordon && node.unschedulable,
                proxy_ready: standing.is_none_or(|standing| standing.proxy_ready),
                refusals: standing.map(|standing| standing.refusals.clone()).unwrap_or_default(),
                links: standing.and_then(|standing| standing.links.clone()),
                dead_links: standing.map(|standing| standing.dead_links.clone()).unwrap_or_default(),
            };
            (node.name.clone(), footing)
        });
        Self {
            data_path: policy.data_path,
            ranges: Ranges::new(snapshot),
            reaches: reaches.collect(),
            nodes: nodes.collect(),
        }
    }

    /// The nodes in which two grounds differ, if they differ in nothing else.
    pub(crate) fn differing_nodes<'a>(&'a self, other: &Self) -> Option<BTreeSet<&'a NodeName>> {
        let is_alike = self.data_path == other.data_path
            && self.ranges == other.ranges
            && self.reaches == other.reaches
            && self.nodes.len() == other.nodes.len();
        let mut differing = BTreeSet::new();
        for (name, footing) in &self.nodes {
            if other.nodes.get(name)? != footing {
                differing.insert(name);
            }
        }
        is_alike.then_some(differing)
    }

    /// The health check ports by which a node differs from what it was, if it differs in nothing else.
    pub(crate) fn differing_refusals(&self, node: &NodeName, other: &Self) -> Option<BTreeSet<NonZeroU16>> {
        let (now, before) = (self.nodes.get(node)?, other.nodes.get(node)?);
        let ports = now.refusals.difference(&before.refusals)?;
        let same = Footing { refusals: before.refusals.clone(), ..now.clone() } == *before;
        same.then_some(ports)
    }

    /// Whether an election has to be held again now that this node is another than it was before.
    pub(crate) fn upsets(&self, before: &Self, node: &NodeName, lead: Option<&Lead>) -> bool {
        let Some(lead) = lead else { return true };
        if lead.rank.node == *node || lead.next.as_ref().is_some_and(|next| next.rank.node == *node) {
            return true;
        }
        // It is in their subnets or was, which decides what everybody else can serve.
        let settles_homes = |ground: &Self| {
            let footing = ground.nodes.get(node);
            lead.away.iter().any(|address| footing.is_some_and(|footing| footing.is_at_home(*address)))
        };
        if settles_homes(self) || settles_homes(before) {
            return true;
        }
        let is_out = self.nodes.get(node).is_none_or(|footing| footing.silence.is_some());
        // Whoever does not come before the next in line does not come before the first.
        !is_out
            && lead
                .next
                .as_ref()
                .is_none_or(|next| !next.is_best_possible || elect::hash_text(node, &lead.elected_by) < next.rank.hash)
    }

    /// What a Service brings into the contest, or why no node can announce it.
    fn offer<'a>(&'a self, service: &'a Service) -> Result<Offer<'a>, Silence> {
        let (addresses, pool) = self.ranges.place(service)?;
        let has_endpoints = has_endpoints(service, self.data_path);
        let mut servable = service.endpoints.iter().filter(|endpoint| takes(service, endpoint)).peekable();
        if has_endpoints && servable.peek().is_none() {
            return Err(Silence::NoReadyEndpoint);
        }
        let is_local = has_endpoints && service.external_traffic_policy == TrafficPolicy::Local;
        let local_nodes = is_local.then(|| servable.filter_map(|endpoint| endpoint.node.as_ref()).collect());
        let covering = self.reaches.get(pool).into_iter().flatten();
        let reaches: Vec<&Reach> =
            covering.filter(|reach| reach.advertisement.covers_service(&service.labels)).collect();
        if reaches.is_empty() {
            return Err(Silence::NoAdvertisement { pool: pool.clone() });
        }
        let needs_proxy = needs_proxy(service, self.data_path);
        let health_check = health_check(service).filter(|_| self.data_path == DataPath::KubeProxy);
        let wished = service.wished_node.as_ref();
        Ok(Offer { addresses, pool, reaches, local_nodes, needs_proxy, health_check, wished })
    }

    /// The contest between all nodes for one address set.
    pub(crate) fn contest<'a>(&'a self, snapshot: &'a Snapshot, set: &BTreeSet<ServiceKey>) -> Contest<'a> {
        let services = set.iter().filter_map(|key| snapshot.services.get(key));
        let offers: Vec<_> = services.map(|service| (&service.key, self.offer(service))).collect();
        let able = || offers.iter().filter_map(|(key, offer)| Some((*key, offer.as_ref().ok()?)));
        let homes = self.homes(able().map(|(_, offer)| offer));
        let wished = able().find_map(|(_, offer)| offer.wished);
        let sticky = able().filter(|(_, offer)| offer.reaches.iter().any(|reach| reach.advertisement.is_sticky));
        let announcers = sticky.filter_map(|(key, _)| snapshot.announcer(key));
        let keeper = announcers.max_by_key(|(node, status)| (status.transitions, Reverse(*node))).map(|(node, _)| node);
        Contest { ground: self, offers, homes, wished, keeper }
    }

    /// The addresses that some node could serve in their own subnet.
    fn homes<'a>(&self, offers: impl Iterator<Item = &'a Offer<'a>>) -> BTreeSet<IpAddr> {
        let mut homes = BTreeSet::new();
        for offer in offers {
            let mut away: Vec<IpAddr> =
                offer.addresses.iter().copied().filter(|address| !homes.contains(address)).collect();
            for (node, footing) in &self.nodes {
                if away.is_empty() {
                    break;
                }
                // Whoever yields to the others must not stand in their way.
                if !footing.yields && offer.is_served_by(node, footing).is_ok() {
                    let allowed = offer.allowed_on(node);
                    homes.extend(away.extract_if(.., |address| is_home(footing.links(false), &allowed, *address)));
                }
            }
        }
        homes
    }
}

impl Footing {
    /// What it announces on: where it is cut off, the interfaces that somebody finds dead. `None` counts as any.
    fn links(&self, is_cut_off: bool) -> Option<&Links> {
        if is_cut_off { Some(&self.dead_links) } else { self.links.as_ref() }
    }

    /// Whether any interface it has is in the subnet of this address.
    fn is_at_home(&self, address: IpAddr) -> bool {
        self.links.as_ref().is_none_or(|links| links.values().any(|carries| carries.is_at_home(address)))
    }
}

/// Whether an address can be announced at all, on one of the interfaces allowed; none listed means any.
fn carries(links: Option<&Links>, allowed: &BTreeSet<InterfaceName>, address: IpAddr) -> bool {
    links.is_none_or(|links| carriers(links, allowed, address).next().is_some())
}

/// Whether an address can be announced in its own subnet.
fn is_home(links: Option<&Links>, allowed: &BTreeSet<InterfaceName>, address: IpAddr) -> bool {
    links.is_none_or(|links| {
        let is_home = |name: &InterfaceName| links.get(name).is_some_and(|carries| carries.is_at_home(address));
        carriers(links, allowed, address).any(is_home)
    })
}

/// What a Service brings into the contest.
struct Offer<'a> {
    /// Never empty.
    addresses: Vec<IpAddr>,
    pool: &'a PoolName,
    /// Never empty.
    reaches: Vec<&'a Reach>,
    /// With policy `Local`, the nodes that have an endpoint.
    local_nodes: Option<BTreeSet<&'a NodeName>>,
    needs_proxy: bool,
    /// With policy `Local`, the port at which kube-proxy must agree.
    health_check: Option<NonZeroU16>,
    /// The node that a person wants.
    wished: Option<&'a NodeName>,
}

/// Whether a Service hangs on endpoints at all. The proxies themselves are the endpoints of an entry; with kube-proxy they
/// stand in its EndpointSlices.
pub(crate) fn has_endpoints(service: &Service, data_path: DataPath) -> bool {
    !(service.is_entry && data_path == DataPath::Proxy)
}

/// Whether an endpoint takes what still comes. A proxy that is about to go does, but draws no more.
pub(crate) fn takes(service: &Service, endpoint: &Endpoint) -> bool {
    endpoint.ready || (endpoint.servable() && !service.is_entry)
}

/// Whether the proxy of a node that announces a Service must be ready.
pub(crate) fn needs_proxy(service: &Service, data_path: DataPath) -> bool {
    data_path == DataPath::Proxy || service.is_entry
}

/// Where kube-proxy says whether it carries a Service on a node, if that is the question.
pub(crate) fn health_check(service: &Service) -> Option<NonZeroU16> {
    let is_local = service.external_traffic_policy == TrafficPolicy::Local && service.load_balancer.is_some();
    service.health_check_node_port.filter(|_| is_local)
}

/// What a node brings into the contest.
#[derive(Clone, Copy, Default)]
struct Claim {
    yields: bool,
    is_cut_off: bool,
    cordoned: bool,
    serves: usize,
    preference: u32,
}

impl Offer<'_> {
    /// The interfaces the advertisements allow on a node; empty means any.
    fn allowed_on(&self, node: &NodeName) -> BTreeSet<InterfaceName> {
        let mut allowed = BTreeSet::new();
        for reach in self.reaches.iter().filter(|reach| reach.nodes.contains_key(node)) {
            if reach.advertisement.interfaces.is_empty() {
                return BTreeSet::new();
            }
            allowed.extend(reach.advertisement.interfaces.iter().cloned());
        }
        allowed
    }

    /// Whether a node may and can do what the Service needs, wherever its interfaces are.
    fn is_served_by(&self, node: &NodeName, footing: &Footing) -> Result<(), Silence> {
        if !self.reaches.iter().any(|reach| reach.nodes.contains_key(node)) {
            return Err(Silence::NoAdvertisementSelectsThisNode);
        }
        if let Some(silence) = &footing.silence {
            return Err(silence.clone());
        }
        if self.needs_proxy && !footing.proxy_ready {
            return Err(Silence::ProxyNotReady);
        }
        if self.local_nodes.as_ref().is_some_and(|nodes| !nodes.contains(node)) {
            return Err(Silence::NoLocalEndpoint);
        }
        if let Some(port) = self.health_check.filter(|port| footing.refusals.contains(*port)) {
            return Err(Silence::HealthCheckFails { port });
        }
        Ok(())
    }

    /// What a node can do for the Service, where these addresses are served in their own subnets by those who are there.
    fn claim(&self, node: &NodeName, footing: &Footing, homes: &BTreeSet<IpAddr>) -> Result<Claim, Silence> {
        self.is_served_by(node, footing)?;
        let allowed = self.allowed_on(node);
        let carried = |is_cut_off: bool| -> Vec<IpAddr> {
            let links = footing.links(is_cut_off);
            self.addresses.iter().copied().filter(|address| carries(links, &allowed, *address)).collect()
        };
        let (is_cut_off, carried) = match carried(false) {
            alive if alive.is_empty() => (true, carried(true)),
            alive => (false, alive),
        };
        let Some(&first) = carried.first() else { return Err(Silence::NoUsableInterface { allowed }) };
        let links = footing.links(is_cut_off);
        let serves = |address: &&IpAddr| !homes.contains(*address) || is_home(links, &allowed, **address);
        match carried.iter().filter(serves).count() {
            0 => Err(Silence::NotInSubnet { address: first }),
            serves => {
                let preference = self.reaches.iter().filter_map(|reach| reach.nodes.get(node)).sum();
                Ok(Claim { yields: footing.yields, is_cut_off, cordoned: footing.cordoned, serves, preference })
            }
        }
    }
}

/// The interfaces that carry an address, among those allowed.
fn carriers<'a>(
    links: &'a Links,
    allowed: &'a BTreeSet<InterfaceName>,
    address: IpAddr,
) -> impl Iterator<Item = &'a InterfaceName> {
    let family = Family::of(address);
    links
        .iter()
        .filter(move |(name, carries)| carries.family(family) && (allowed.is_empty() || allowed.contains(*name)))
        .map(|(name, _)| name)
}

/// The contest between all nodes for one address set.
pub(crate) struct Contest<'a> {
    ground: &'a Ground,
    offers: Vec<(&'a ServiceKey, Result<Offer<'a>, Silence>)>,
    /// Addresses that nodes outside of their subnets do not serve.
    homes: BTreeSet<IpAddr>,
    /// The node that a person wants.
    wished: Option<&'a NodeName>,
    /// The node that has the set and keeps it if it can.
    keeper: Option<&'a NodeName>,
}

/// The one in front of a contest, who owns the set.
#[derive(Clone, Debug)]
pub(crate) struct Lead {
    pub(crate) rank: Rank,
    /// The address that the hash is taken of, as text.
    elected_by: Arc<str>,
    /// Who takes over when the owner is lost.
    next: Option<Next>,
    /// Addresses that it does not serve in their own subnet, so that it matters who does.
    away: Vec<IpAddr>,
}

/// The second of a contest.
#[derive(Clone, Debug)]
struct Next {
    rank: Rank,
    /// Only a smaller hash could beat it: nobody else can serve more, be asked for, or be preferred more.
    is_best_possible: bool,
}

/// How a contest ended, as one node sees it.
pub(crate) struct Verdict {
    pub(crate) lead: Option<Lead>,
    /// Where the owner announces, if this node comes next and is the one to watch it.
    pub(crate) watched: Option<Arc<Watched>>,
    pub(crate) outcomes: Vec<(ServiceKey, Result<Announcement, Silence>)>,
}

impl Contest<'_> {
    fn offers(&self) -> impl Iterator<Item = &Offer<'_>> {
        self.offers.iter().filter_map(|(_, offer)| offer.as_ref().ok())
    }

    /// The lowest of the Services' first addresses: for a single Service its first one.
    pub(crate) fn elected_by(&self) -> Option<IpAddr> {
        self.offers().filter_map(|offer| offer.addresses.first().copied()).min()
    }

    /// What a node can do for the whole set; if nothing, why not for the first Service.
    fn claim(&self, node: &NodeName) -> Result<Claim, Silence> {
        let footing = self.ground.nodes.get(node).ok_or(Silence::NodeUnknown)?;
        let (mut total, mut cut_off) = (Claim::default(), Claim::default());
        let mut silence = None;
        for offer in self.offers() {
            match offer.claim(node, footing, &self.homes) {
                Ok(claim) => {
                    let total = if claim.is_cut_off { &mut cut_off } else { &mut total };
                    total.yields = claim.yields;
                    total.is_cut_off = claim.is_cut_off;
                    total.cordoned = claim.cordoned;
                    total.serves += claim.serves;
                    total.preference += claim.preference;
                }
                Err(found) => silence = silence.or(Some(found)),
            }
        }
        let best = [total, cut_off].into_iter().find(|claim| claim.serves > 0);
        best.ok_or_else(|| silence.unwrap_or(Silence::NoAddress))
    }

    fn rank(&self, claim: Claim, node: &NodeName, elected_by: &str) -> Rank {
        Rank {
            yields: claim.yields,
            is_cut_off: claim.is_cut_off,
            cordoned: claim.cordoned,
            serves: Reverse(claim.serves),
            wished: Reverse(self.wished == Some(node)),
            keeps: Reverse(self.keeper == Some(node)),
            preference: Reverse(claim.preference),
            hash: elect::hash_text(node, elected_by),
            node: node.clone(),
        }
    }

    fn lead(&self) -> Option<Lead> {
        let elected_by: Arc<str> = self.elected_by()?.to_string().into();
        let claims = self.ground.nodes.keys().filter_map(|node| Some((node, self.claim(node).ok()?)));
        let claims: Vec<(&NodeName, Claim)> = claims.collect();
        let weight = |(node, claim): &(&NodeName, Claim)| {
            let asked_for = (self.wished == Some(*node), self.keeper == Some(*node));
            (Reverse((claim.yields, claim.is_cut_off, claim.cordoned)), claim.serves, asked_for, claim.preference)
        };
        // Hashing is what costs here, so only those who tie are hashed.
        let ranks = |tied| {
            let tied = claims.iter().filter(move |one| weight(one) == tied);
            tied.map(|(node, claim)| self.rank(*claim, node, &elected_by)).collect::<BTreeSet<Rank>>()
        };
        let most = claims.iter().map(weight).max()?;
        let mut first = ranks(most).into_iter();
        let rank = first.next()?;
        let next = first.next().map(|next| (next, most)).or_else(|| {
            let less = claims.iter().map(weight).filter(|weight| *weight < most).max()?;
            Some((ranks(less).pop_first()?, less))
        });
        let everything = self.offers().map(|offer| offer.addresses.len()).sum::<usize>();
        let highest = self.offers().flat_map(|offer| &offer.reaches).map(|reach| reach.highest).sum::<u32>();
        let is_for_others = |asked_for: Option<&NodeName>| asked_for.is_some_and(|node| *node != rank.node);
        let asked_for = (is_for_others(self.wished), is_for_others(self.keeper));
        let best_possible = (Reverse((false, false, false)), everything, asked_for, highest);
        let next = next.map(|(rank, weight)| Next { rank, is_best_possible: weight == best_possible });
        let footing = self.ground.nodes.get(&rank.node)?;
        let away = self.offers().flat_map(|offer| {
            let allowed = offer.allowed_on(&rank.node);
            let addresses = offer.addresses.iter().copied();
            addresses.filter(move |address| footing.yields || !is_home(footing.links(false), &allowed, *address))
        });
        let away = away.collect();
        Some(Lead { rank, elected_by, next, away })
    }

    /// Where the owner announces the set, if a node comes next.
    fn watched(&self, node: &NodeName, lead: &Lead) -> Option<Watched> {
        lead.next.as_ref().filter(|next| next.rank.node == *node)?;
        let owner = &lead.rank.node;
        let footing = self.ground.nodes.get(owner)?;
        let alive = footing.links.as_ref()?;
        let mut interfaces = BTreeSet::new();
        for offer in self.offers() {
            let links = match offer.claim(owner, footing, &self.homes) {
                Ok(claim) if claim.is_cut_off => &footing.dead_links,
                Ok(_) | Err(Silence::NotInSubnet { .. }) => alive,
                Err(_) => continue,
            };
            let allowed = offer.allowed_on(owner);
            let addresses = offer.addresses.iter();
            interfaces.extend(addresses.flat_map(|&address| carriers(links, &allowed, address).cloned()));
        }
        Some(Watched { node: owner.clone(), interfaces })
    }

    /// Who owns the set, and what that means for each Service on this node, whose interfaces are `links`.
    pub(crate) fn verdict(&self, node: &NodeName, links: &Links) -> Verdict {
        let lead = self.lead();
        let owner = lead.as_ref().map(|lead| &lead.rank.node);
        let outcome = |offer: &Result<Offer<'_>, Silence>| {
            let offer = offer.as_ref().map_err(Silence::clone)?;
            let footing = self.ground.nodes.get(node).ok_or(Silence::NodeUnknown)?;
            let claim = offer.claim(node, footing, &self.homes);
            if let Some(owner) = owner.filter(|owner| *owner != node) {
                claim?;
                return Err(Silence::NotElected { owner: owner.clone() });
            }
            let links = match claim {
                Ok(claim) if claim.is_cut_off => &footing.dead_links,
                // What the owner of the set does not announce, nobody does.
                Ok(_) | Err(Silence::NotInSubnet { .. }) => links,
                Err(silence) => return Err(silence),
            };
            let allowed = offer.allowed_on(node);
            let addresses = offer.addresses.iter();
            let addresses =
                addresses.map(|&address| (address, carriers(links, &allowed, address).cloned().collect())).collect();
            Ok(Announcement { pool: offer.pool.clone(), addresses, allowed })
        };
        let outcomes = self.offers.iter().map(|(key, offer)| ((*key).clone(), outcome(offer))).collect();
        let watched = lead.as_ref().and_then(|lead| self.watched(node, lead)).map(Arc::new);
        Verdict { lead, watched, outcomes }
    }

    /// Whether a node comes before another one that can own the set, too.
    pub(crate) fn is_ahead(&self, one: &NodeName, other: &NodeName) -> bool {
        let Some(elected_by) = self.elected_by().map(|address| address.to_string()) else { return false };
        let rank = |node: &NodeName| Some(self.rank(self.claim(node).ok()?, node, &elected_by));
        match (rank(one), rank(other)) {
            (Some(one), Some(other)) => one < other,
            (one, _) => one.is_some(),
        }
    }

    /// Whether this node would own the set if only it had an interface: it is the one to complain.
    pub(crate) fn lacks_only_an_interface(&self, node: &NodeName) -> bool {
        let Some(elected_by) = self.elected_by() else { return false };
        let lacking =
            self.ground.nodes.keys().filter(|node| matches!(self.claim(node), Err(Silence::NoUsableInterface { .. })));
        lacking.min_by_key(|node| elect::hash(node, elected_by)) == Some(node)
    }
}
