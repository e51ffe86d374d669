//! Objects to a [`Snapshot`]: pure and total. Whatever is wrong becomes a problem in the snapshot, never an error.
//!
//! `translate/read.rs` and the file of each kind check one object by itself; here the objects meet: slices join their
//! Services, pools are compared, references are followed, the class of an Ingress is decided. The snapshot before is
//! the cache: only what hangs on a changed object is made again, the rest is shared. A property test holds the result
//! equal to a translation from nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ferrogate_core::{
    configuration::{ConfigurationState, Reporter},
    model::{
        Labels, NodeName, ObjectKey, ObjectRef, PeerName, ServiceKey,
        entry::{ENTRY_NAME, Entry as SharedEntry, EntryWish},
        node::Node,
        pool::{Pool, PoolStatus},
        route::{Backend, BackendPort, Ingress},
        selector::LabelSelector,
        service::{Endpoint, Service, ServiceStatus},
    },
    snapshot::{Fault, Origin, Problem, Snapshot},
    write::{Condition, SpeakerLease},
};
use imbl::{OrdMap, ordmap::DiffItem};

use crate::{
    objects::{Fact, Id, IngressFact, Kind, Objects, PoolFact, Reading, Spelling},
    state::{Advertiser, Announcer, Reporting},
};

mod advertisement;
mod bfd_profile;
mod bgp_advertisement;
mod bgp_peer;
mod community;
mod configuration;
mod endpoints;
pub mod entry;
pub mod ingress;
pub mod ingress_class;
pub mod metallb;
mod node;
pub mod pool;
pub mod read;
mod reports;
pub mod review;
pub mod secret;
pub mod service;

use reports::Reports;

pub use read::{Entry, Rules, Source, read};
pub use review::{Loss, Proposal, Review};

/// What a state file says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remembered<T> {
    /// The status that was written last.
    Known(T),
    /// There is a file, and nobody can read it.
    Unreadable,
}

/// Makes snapshots, each from the one before.
#[derive(Debug)]
pub struct Translator {
    rules: Rules,
    /// The node that stands in where no Node object is known.
    lone_node: Option<NodeName>,
    objects: Objects,
    snapshot: Arc<Snapshot>,

    services: BTreeMap<ObjectKey, Remembered<ServiceStatus>>,
    pools: BTreeMap<ObjectKey, Remembered<PoolStatus>>,
    ingresses: BTreeMap<ObjectKey, Remembered<Vec<IpAddr>>>,
    unreachable: BTreeSet<NodeName>,
    configuration_states: OrdMap<Reporter, Arc<ConfigurationState>>,
    /// The Leases of speakers.
    leases: OrdMap<NodeName, Arc<SpeakerLease>>,
    /// Who says of which Service that it announces it.
    announcers: Reports<ServiceKey, Announcer>,
    /// Who says of which Service that it advertises it.
    advertisers: Reports<ServiceKey, Advertiser>,
    /// Who says how the session with which peer is.
    sessions: Reports<(NodeName, PeerName), Reporting>,
    /// Conditions of objects without a status above, by the file that says so.
    conditions: BTreeMap<String, (ObjectRef, Vec<Condition>)>,

    slices_of: BTreeMap<ServiceKey, BTreeSet<Id>>,
    ingresses_of: BTreeMap<ServiceKey, BTreeSet<Id>>,
    node_count: usize,
    /// Problems of files and of what nobody could name, by source.
    source_problems: BTreeMap<String, Vec<(Origin, Problem)>>,
    /// The forms of configuration that stand, for those that can contradict each other.
    standing: BTreeMap<Id, Arc<Fact>>,
    /// Problems an object has because of others.
    joint_problems: BTreeMap<Id, Vec<Problem>>,
    object_problems: BTreeMap<Id, Vec<(Origin, Problem)>>,

    stale: Stale,
    gone: BTreeSet<Id>,
}

/// What has to be made again.
#[derive(Debug, Default)]
struct Stale {
    services: BTreeSet<ObjectKey>,
    slices: BTreeSet<Id>,
    ingresses: BTreeSet<Id>,
    pool_status: BTreeSet<ObjectKey>,
    configuration: bool,
    classes: bool,
    entry: bool,
    conditions: BTreeMap<ObjectRef, Option<Arc<Vec<Condition>>>>,
    problems: BTreeSet<Id>,
    all_problems: bool,
}

impl Translator {
    /// A translator that knows nothing yet. `lone_node` stands in for the Nodes where there are none.
    pub fn new(rules: Rules, lone_node: Option<NodeName>) -> Self {
        Self {
            rules,
            lone_node,
            objects: Objects::default(),
            snapshot: Arc::default(),
            services: BTreeMap::new(),
            pools: BTreeMap::new(),
            ingresses: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            configuration_states: OrdMap::new(),
            leases: OrdMap::new(),
            announcers: Reports::default(),
            advertisers: Reports::default(),
            sessions: Reports::default(),
            conditions: BTreeMap::new(),
            slices_of: BTreeMap::new(),
            ingresses_of: BTreeMap::new(),
            node_count: 0,
            source_problems: BTreeMap::new(),
            standing: BTreeMap::new(),
            joint_problems: BTreeMap::new(),
            object_problems: BTreeMap::new(),
            stale: Stale { configuration: true, entry: true, ..Stale::default() },
            gone: BTreeSet::new(),
        }
    }

    /// How objects are read here.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Objects whose state nobody needs any more, since this was last asked: no source names them.
    pub fn take_gone(&mut self) -> BTreeSet<Id> {
        let gone = std::mem::take(&mut self.gone).into_iter();
        gone.filter(|id| id.spelling == Spelling::Ours && !self.objects.knows(id)).collect()
    }

    /// Every object known.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Takes in all that a source holds now; see [`Objects::replace`].
    pub fn replace(&mut self, source: &str, readings: Vec<(Origin, Reading)>, keep: impl Fn(&Id) -> bool) {
        self.objects.replace(source, readings, keep);
    }

    /// Takes in one object; see [`Objects::apply`].
    pub fn apply(&mut self, source: &str, origin: Origin, reading: Reading) {
        self.objects.apply(source, origin, reading);
    }

    /// Forgets one object.
    pub fn delete(&mut self, source: &str, origin: Origin, id: Id) {
        self.objects.delete(source, origin, id);
    }

    /// Says what is wrong with a source as a whole, in place of what was said before.
    pub fn set_source_problems(&mut self, source: &str, problems: Vec<(Origin, Problem)>) {
        let before = self.source_problems.get(source).map(Vec::as_slice).unwrap_or_default();
        if before == problems {
            return;
        }
        match problems.is_empty() {
            true => self.source_problems.remove(source),
            false => self.source_problems.insert(source.to_owned(), problems),
        };
        self.stale.all_problems = true;
    }

    /// Takes in what the state says of a Service, or that it says nothing. What was known stays where it cannot be
    /// read any more.
    pub fn remember_service(&mut self, key: ObjectKey, status: Option<Remembered<ServiceStatus>>) {
        self.note_orphan(Kind::Service, &key, status.is_some());
        if remember(&mut self.services, &key, status) {
            self.stale.services.insert(key);
        }
    }

    /// Takes in what the state says of a pool.
    pub fn remember_pool(&mut self, key: ObjectKey, status: Option<Remembered<PoolStatus>>) {
        self.note_orphan(Kind::IpAddressPool, &key, status.is_some());
        if remember(&mut self.pools, &key, status) {
            self.stale.pool_status.insert(key);
        }
    }

    /// Takes in what the state says of an Ingress.
    pub fn remember_ingress(&mut self, key: ObjectKey, addresses: Option<Remembered<Vec<IpAddr>>>) {
        self.note_orphan(Kind::Ingress, &key, addresses.is_some());
        if remember(&mut self.ingresses, &key, addresses) {
            self.stale.ingresses.insert(Id::keyed(Kind::Ingress, key));
        }
    }

    fn note_orphan(&mut self, kind: Kind, key: &ObjectKey, said: bool) {
        let id = Id::keyed(kind, key.clone());
        if said && !self.objects.knows(&id) {
            self.gone.insert(id);
        }
    }

    /// Takes in that a speaker announces a Service by layer 2, or, of the same file, that it does no more.
    pub fn remember_announcer(&mut self, file: &str, said: Option<Announcer>) {
        self.announcers.remember(file, said.map(|said| (said.service.clone(), said)));
    }

    /// Takes in that a speaker advertises a Service by BGP, or, of the same file, that it does no more.
    pub fn remember_advertiser(&mut self, file: &str, said: Option<Advertiser>) {
        self.advertisers.remember(file, said.map(|said| (said.service.clone(), said)));
    }

    /// Takes in how a session is as a speaker says it, or, of the same file, that there is none any more.
    pub fn remember_session(&mut self, file: &str, said: Option<Reporting>) {
        self.sessions.remember(file, said.map(|said| ((said.node.clone(), said.peer.clone()), said)));
    }

    /// Takes in which conditions the state says an object has, or, of the same file, that it says nothing any more.
    pub fn remember_conditions(&mut self, file: &str, said: Option<(ObjectRef, Vec<Condition>)>) {
        let before = match &said {
            Some(said) => self.conditions.insert(file.to_owned(), said.clone()),
            None => self.conditions.remove(file),
        };
        if before == said {
            return;
        }
        if let Some(id) = said.as_ref().and_then(|(object, _)| Id::of(object))
            && !self.objects.knows(&id)
        {
            self.gone.insert(id);
        }
        self.stale.conditions.extend(before.map(|(object, _)| (object, None)));
        self.stale.conditions.extend(said.map(|(object, conditions)| (object, Some(Arc::new(conditions)))));
    }

    /// Takes in what the Lease of a node's speaker says, or that there is none.
    pub fn remember_lease(&mut self, node: NodeName, said: Option<SpeakerLease>) {
        set(&mut self.leases, node, said.map(Arc::new));
    }

    /// Takes in what the ConfigurationState of a reporter says, or that there is none.
    pub fn remember_configuration(&mut self, reporter: Reporter, said: Option<ConfigurationState>) {
        match said {
            Some(said) => _ = self.configuration_states.insert(reporter, Arc::new(said)),
            None => _ = self.configuration_states.remove(&reporter),
        }
    }

    /// Takes in which nodes the speaker of this node has lost sight of.
    pub fn set_unreachable(&mut self, nodes: BTreeSet<NodeName>) {
        self.unreachable = nodes;
    }

    /// The facts as they stand, sharing with the snapshot before whatever did not change. The same `Arc` when
    /// nothing did.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        let mut next = (*self.snapshot).clone();
        self.sort_changes(&mut next);
        self.supply_lone_node(&mut next);
        // Two peers, and two advertisements, contradict each other only where they meet, and Nodes may say where a peer is.
        self.stale.configuration |= self.snapshot.nodes.diff(&next.nodes).any(|change| match change {
            DiffItem::Add(..) | DiffItem::Remove(..) => true,
            DiffItem::Update { old: (_, old), new: (_, new) } => {
                (&old.labels, &old.annotations) != (&new.labels, &new.annotations)
            }
        });
        let stale = std::mem::take(&mut self.stale);
        let mut problems = stale.problems;
        if stale.configuration {
            self.settle_configuration(&mut next, &mut problems);
        } else {
            for key in stale.pool_status {
                self.refresh_pool(&mut next, &key);
            }
        }
        let mut slices = stale.slices;
        let mut ingresses = stale.ingresses;
        for key in stale.services {
            self.join_service(&mut next, &key);
            slices.extend(self.slices_of.get(&key).into_iter().flatten().cloned());
            ingresses.extend(self.ingresses_of.get(&key).into_iter().flatten().cloned());
        }
        for id in slices {
            self.follow_slice(&id);
            problems.insert(id);
        }
        if stale.entry {
            self.join_entry(&mut next);
        }
        if stale.classes {
            ingresses.extend(self.objects.of_kind(Kind::Ingress).map(|(id, _)| id.clone()));
        }
        if !ingresses.is_empty() {
            let default_class = self.default_class();
            for id in ingresses {
                self.join_ingress(&mut next, &id, default_class);
                problems.insert(id);
            }
        }
        self.announcers.settle(|service, mut said| {
            // Of two reports of one node the newer one counts.
            said.sort_by_key(|said| said.status.transitions);
            let nodes: BTreeMap<_, _> = said.into_iter().map(|said| (said.node.clone(), said.status.clone())).collect();
            set(&mut next.announced_by, service, (!nodes.is_empty()).then(|| Arc::new(nodes)));
        });
        self.advertisers.settle(|service, said| {
            let nodes: BTreeMap<_, _> = said.into_iter().map(|said| (said.node.clone(), said.peers.clone())).collect();
            set(&mut next.advertised_by, service, (!nodes.is_empty()).then(|| Arc::new(nodes)));
        });
        self.sessions.settle(|key, said| {
            let last = said.last().map(|said| Arc::new(said.report.clone()));
            set(&mut next.bgp_sessions, key, last);
        });
        for (object, conditions) in stale.conditions {
            set(&mut next.conditions, object, conditions);
        }
        if !next.leases.ptr_eq(&self.leases) {
            next.leases = self.leases.clone();
        }
        if next.configuration_states != self.configuration_states {
            next.configuration_states = self.configuration_states.clone();
        }
        if next.unreachable != self.unreachable {
            next.unreachable = self.unreachable.clone();
        }
        self.collect_problems(&mut next, problems, stale.all_problems);
        if next != *self.snapshot {
            self.snapshot = Arc::new(next);
        }
        self.snapshot.clone()
    }

    /// Sorts what changed by what hangs on it, keeps the indexes, and takes over what hangs on nothing.
    fn sort_changes(&mut self, next: &mut Snapshot) {
        for (id, before) in self.objects.take_changed() {
            let now = self.objects.in_force(&id).map(|found| found.fact.clone());
            self.stale.problems.insert(id.clone());
            if !self.objects.knows(&id) {
                self.gone.insert(id.clone());
            }
            self.stale.entry |= self.is_of_entry(&id, [&before, &now]);
            match id.kind {
                Kind::Service => {
                    self.stale.services.insert(id.key.clone());
                }
                Kind::EndpointSlice => {
                    for (fact, is_now) in [(&before, false), (&now, true)] {
                        let Some(Fact::EndpointSlice(slice)) = fact.as_deref() else { continue };
                        index(&mut self.slices_of, &slice.service, &id, is_now);
                        self.stale.services.insert(slice.service.clone());
                    }
                    self.stale.slices.insert(id);
                }
                Kind::Ingress => {
                    for (fact, is_now) in [(&before, false), (&now, true)] {
                        let Some(Fact::Ingress(ingress)) = fact.as_deref() else { continue };
                        for (_, backend) in &ingress.backends {
                            index(&mut self.ingresses_of, &backend.service, &id, is_now);
                        }
                    }
                    self.stale.ingresses.insert(id);
                }
                Kind::IngressClass => self.stale.classes = true,
                Kind::Node => {
                    self.node_count = self.node_count + usize::from(now.is_some()) - usize::from(before.is_some());
                    let node = match now.as_deref() {
                        Some(Fact::Node(node)) => Some(node.clone()),
                        _ => None,
                    };
                    set(&mut next.nodes, NodeName::from(&*id.key.name), node);
                }
                Kind::Namespace => {
                    let labels = match now.as_deref() {
                        Some(Fact::Namespace(labels)) => Some(labels.clone()),
                        _ => None,
                    };
                    set(&mut next.namespaces, id.key.name.to_string(), labels);
                }
                Kind::IpAddressPool if is_same_but_for_status(&before, &now) => {
                    self.stale.pool_status.insert(id.key);
                }
                Kind::IpAddressPool
                | Kind::L2Advertisement
                | Kind::BgpAdvertisement
                | Kind::BgpPeer
                | Kind::BfdProfile
                | Kind::Community
                // A peer may name it.
                | Kind::Secret => self.stale.configuration = true,
                Kind::Pod | Kind::Gateway(_) => {}
            }
        }
    }

    fn refresh_pool(&mut self, next: &mut Snapshot, key: &ObjectKey) {
        let Some(pool) = next.pools.get(&*key.name).filter(|pool| pool.key == *key) else { return };
        let pool = self.with_status(pool);
        set(&mut next.pools, pool.name.clone(), Some(pool));
    }

    /// A pool with its status as it is now, which may not be the status it had in the form that stands.
    fn with_status(&self, pool: &Arc<Pool>) -> Arc<Pool> {
        if pool.read_only {
            return pool.clone();
        }
        let id = Id::keyed(Kind::IpAddressPool, pool.key.clone());
        let newest = match (self.pools.get(&pool.key), self.objects.in_force(&id).map(|found| &**found.fact)) {
            (Some(Remembered::Known(status)), _) => status,
            (_, Some(Fact::Pool(PoolFact { pool: newest, .. }))) => &newest.observed,
            _ => return pool.clone(),
        };
        match *newest == pool.observed {
            true => pool.clone(),
            false => Arc::new(Pool { observed: newest.clone(), ..(**pool).clone() }),
        }
    }

    fn join_service(&mut self, next: &mut Snapshot, key: &ServiceKey) {
        let id = Id::keyed(Kind::Service, key.clone());
        let found = self.objects.in_force(&id);
        let Some(Fact::Service(fact)) = found.map(|found| &**found.fact) else {
            set(&mut next.services, key.clone(), None);
            return;
        };
        let has_none = fact.external_name || fact.is_left_out;
        let endpoints = if has_none { Vec::new() } else { self.endpoints(key) };
        let remembered = self.services.get(key);
        if endpoints.is_empty() && remembered.is_none() && !fact.is_left_out {
            set(&mut next.services, key.clone(), Some(Arc::clone(&fact.service)));
            return;
        }
        let mut service = Service { endpoints, ..(*fact.service).clone() };
        match remembered {
            Some(Remembered::Known(status)) => service.observed = status.clone(),
            // Its address stands in a file that nobody can read. Giving it another would move it for good.
            Some(Remembered::Unreadable) => service.load_balancer = None,
            None => {}
        }
        if fact.is_left_out {
            service::keep_families(&mut service);
        }
        let is_of_use = !fact.is_left_out || !service.observed.addresses.is_empty();
        set(&mut next.services, key.clone(), is_of_use.then(|| Arc::new(service)));
    }

    fn endpoints(&self, service: &ServiceKey) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        for id in self.slices_of.get(service).into_iter().flatten() {
            if let Some(Fact::EndpointSlice(slice)) = self.objects.in_force(id).map(|found| &**found.fact) {
                endpoints.extend(slice.endpoints.iter().cloned());
            }
        }
        endpoints.sort();
        endpoints.dedup();
        endpoints
    }

    fn follow_slice(&mut self, id: &Id) {
        let mut problems = Vec::new();
        // In a cluster slices outlive their Service for a moment, and nobody has mistyped a name.
        if self.rules.source == Source::Directory
            && let Some(found) = self.objects.in_force(id)
            && let Fact::EndpointSlice(slice) = &**found.fact
            && self.objects.in_force(&Id::keyed(Kind::Service, slice.service.clone())).is_none()
        {
            problems.push(dangling(id, found.generation, "metadata.labels", "Service", &slice.service));
        }
        self.set_joint(id, problems);
    }

    /// Whether the default IngressClass is ours; `None` where no class is the default. Of several the newest counts.
    fn default_class(&self) -> Option<bool> {
        let mut default: Option<(i64, &Id, bool)> = None;
        for (id, found) in self.objects.of_kind(Kind::IngressClass) {
            if let Fact::IngressClass(class) = &**found.fact
                && class.default
                && default.is_none_or(|(created, _, _)| class.created > created)
            {
                default = Some((class.created, id, class.ours));
            }
        }
        default.map(|(_, _, ours)| ours)
    }

    fn join_ingress(&mut self, next: &mut Snapshot, id: &Id, default_class: Option<bool>) {
        let mut problems = Vec::new();
        let mut ours = None;
        if let Some(found) = self.objects.in_force(id)
            && let Fact::Ingress(fact) = &**found.fact
            && self.is_ours(fact, default_class, &mut |class| {
                problems.push(dangling(id, found.generation, "spec.ingressClassName", "IngressClass", class));
            })
        {
            for (field, backend) in &fact.backends {
                problems.extend(self.follow_backend(id, found.generation, field, backend));
            }
            ours = Some(match self.ingresses.get(&id.key) {
                Some(Remembered::Known(addresses)) if *addresses != fact.ingress.observed_addresses => {
                    Arc::new(Ingress { observed_addresses: addresses.clone(), ..(*fact.ingress).clone() })
                }
                _ => fact.ingress.clone(),
            });
        }
        self.set_joint(id, problems);
        set(&mut next.ingresses, id.key.clone(), ours);
    }

    /// Whether an Ingress is ours. In a folder we are the only controller there is: an Ingress without a class is
    /// ours unless a default class says otherwise, and our class needs no object.
    fn is_ours(&self, fact: &IngressFact, default_class: Option<bool>, dangling: &mut dyn FnMut(&String)) -> bool {
        let in_folder = self.rules.source == Source::Directory;
        let Some(class) = &fact.class else {
            return default_class.unwrap_or(in_folder);
        };
        match self.objects.in_force(&Id::new(Kind::IngressClass, "", class)).map(|found| &**found.fact) {
            Some(Fact::IngressClass(class)) => class.ours,
            _ if in_folder && class != ingress_class::CLASS => {
                dangling(class);
                false
            }
            _ => in_folder,
        }
    }

    /// Whether the entry follows from this object.
    fn is_of_entry(&self, id: &Id, facts: [&Option<Arc<Fact>>; 2]) -> bool {
        let in_place = *id.key.namespace == *self.rules.namespace;
        match id.kind {
            Kind::IngressClass => true,
            Kind::Pod => in_place,
            Kind::Service => in_place && *id.key.name == *ENTRY_NAME,
            Kind::EndpointSlice => {
                let is_kept =
                    |fact: &Fact| matches!(fact, Fact::EndpointSlice(slice) if *slice.service.name == *ENTRY_NAME);
                in_place && facts.into_iter().flatten().any(|fact| is_kept(fact))
            }
            _ => false,
        }
    }

    fn join_entry(&self, next: &mut Snapshot) {
        if self.rules.source == Source::Directory {
            return;
        }
        let (namespace, class) = (self.rules.namespace.clone(), self.rules.class.class.clone());
        let mut entry = SharedEntry { namespace, class, ..SharedEntry::default() };
        for (_, found) in self.objects.of_kind(Kind::IngressClass) {
            if let Fact::IngressClass(class) = &**found.fact
                && class.ours
            {
                let others = entry.wish.is_some_and(|wish| wish.node_ports);
                entry.wish = Some(EntryWish { node_ports: others || class.node_ports });
            }
        }
        let key = entry.key();
        if let Some(found) = self.objects.in_force(&Id::keyed(Kind::Service, key.clone()))
            && let Fact::Service(fact) = &**found.fact
        {
            entry.service = fact.entry.as_deref().cloned();
        }
        for id in self.slices_of.get(&key).into_iter().flatten() {
            if let Some(Fact::EndpointSlice(slice)) = self.objects.in_force(id).map(|found| &**found.fact)
                && let Some((family, slice)) = &slice.entry
            {
                entry.slices.insert(*family, (**slice).clone());
            }
        }
        for (id, found) in self.objects.of_kind(Kind::Pod) {
            if let Fact::ProxyPod(proxy) = &**found.fact {
                entry.proxies.insert(id.key.clone(), proxy.clone());
            }
        }
        if next.entry.as_deref() != Some(&entry) {
            next.entry = Some(Arc::new(entry));
        }
    }

    fn follow_backend(&self, id: &Id, generation: i64, field: &str, backend: &Backend) -> Option<Problem> {
        let service = Id::keyed(Kind::Service, backend.service.clone());
        let Some(Fact::Service(fact)) = self.objects.in_force(&service).map(|found| &**found.fact) else {
            return Some(dangling(id, generation, &format!("{field}.service.name"), "Service", &backend.service));
        };
        if fact.external_name {
            let fault = Fault::Unsupported {
                feature: format!("the ExternalName Service {}", backend.service),
                instead: "name a Service with endpoints; requests are answered 503 until then".to_owned(),
            };
            let field = format!("{field}.service.name");
            return Some(Problem { object: Some(id.object()), generation, field, fault });
        }
        let ports = &fact.service.ports;
        let (known, shown) = match &backend.port {
            BackendPort::Name(name) => (ports.iter().any(|port| port.name == *name), name.clone()),
            BackendPort::Number(number) => (ports.iter().any(|port| port.port == *number), number.to_string()),
        };
        let kind = format!("port of Service {}", backend.service);
        (!known).then(|| dangling(id, generation, &format!("{field}.service.port"), &kind, &shown))
    }

    fn supply_lone_node(&self, next: &mut Snapshot) {
        let Some(name) = &self.lone_node else { return };
        if self.node_count == 0 {
            let labels = Labels::from([("kubernetes.io/hostname".to_owned(), name.to_string())]);
            let node = Node {
                name: name.clone(),
                labels,
                annotations: Labels::new(),
                internal_addresses: Vec::new(),
                network_unavailable: false,
                unschedulable: false,
            };
            set(&mut next.nodes, name.clone(), Some(Arc::new(node)));
        } else if self.objects.in_force(&Id::new(Kind::Node, "", name.as_str())).is_none() {
            set(&mut next.nodes, name.clone(), None);
        }
    }

    fn set_joint(&mut self, id: &Id, problems: Vec<Problem>) {
        match problems.is_empty() {
            true => self.joint_problems.remove(id),
            false => self.joint_problems.insert(id.clone(), problems),
        };
    }

    fn collect_problems(&mut self, next: &mut Snapshot, stale: BTreeSet<Id>, mut changed: bool) {
        for id in stale {
            let mut problems = self.objects.problems(&id);
            if let Some(found) = self.objects.in_force(&id) {
                let joint = self.joint_problems.get(&id).into_iter().flatten();
                problems.extend(joint.map(|problem| (found.origin.clone(), problem.clone())));
            }
            let before = match problems.is_empty() {
                true => self.object_problems.remove(&id),
                false => self.object_problems.insert(id.clone(), problems.clone()),
            };
            changed |= before.unwrap_or_default() != problems;
        }
        if !changed {
            return;
        }
        let mut all: BTreeMap<Origin, Vec<Problem>> = BTreeMap::new();
        for (origin, problem) in self.source_problems.values().chain(self.object_problems.values()).flatten() {
            all.entry(origin.clone()).or_default().push(problem.clone());
        }
        next.problems = Arc::new(all);
        let mut concerned: OrdMap<ObjectRef, Arc<Vec<LabelSelector>>> = OrdMap::new();
        for id in self.object_problems.keys() {
            let nodes = self.objects.concerned_nodes(id);
            if !nodes.is_empty() {
                concerned.insert(id.object(), Arc::new(nodes.to_vec()));
            }
        }
        if next.concerned_nodes != concerned {
            next.concerned_nodes = concerned;
        }
    }
}

/// Whether two forms of a pool differ in nothing that a user wrote.
fn is_same_but_for_status(before: &Option<Arc<Fact>>, now: &Option<Arc<Fact>>) -> bool {
    let (Some(Fact::Pool(before)), Some(Fact::Pool(now))) = (before.as_deref(), now.as_deref()) else { return false };
    let with_status = Pool { observed: now.pool.observed.clone(), ..(*before.pool).clone() };
    before.created == now.created && with_status == *now.pool
}

/// Keeps what a state file says; a file that can no longer be read changes nothing. Returns whether it was news.
fn remember<T: PartialEq>(
    known: &mut BTreeMap<ObjectKey, Remembered<T>>,
    key: &ObjectKey,
    said: Option<Remembered<T>>,
) -> bool {
    match said {
        None => known.remove(key).is_some(),
        Some(Remembered::Unreadable) if matches!(known.get(key), Some(Remembered::Known(_))) => false,
        Some(said) if known.get(key) == Some(&said) => false,
        Some(said) => {
            known.insert(key.clone(), said);
            true
        }
    }
}

fn index(of: &mut BTreeMap<ServiceKey, BTreeSet<Id>>, service: &ServiceKey, id: &Id, is_now: bool) {
    if is_now {
        of.entry(service.clone()).or_default().insert(id.clone());
    } else if let Some(ids) = of.get_mut(service) {
        ids.remove(id);
        if ids.is_empty() {
            of.remove(service);
        }
    }
}

/// Sets or removes an entry, and leaves the map's sharing alone where nothing changes.
fn set<K: Ord + Clone, T: PartialEq>(map: &mut OrdMap<K, Arc<T>>, key: K, value: Option<Arc<T>>) {
    let standing = map.get(&key);
    match value {
        Some(value) if standing.is_none_or(|standing| **standing != *value) => {
            map.insert(key, value);
        }
        None if standing.is_some() => {
            map.remove(&key);
        }
        _ => {}
    }
}

fn dangling(id: &Id, generation: i64, field: &str, kind: &str, name: impl std::fmt::Display) -> Problem {
    let fault = Fault::DanglingReference { kind: kind.to_owned(), name: name.to_string() };
    Problem { object: Some(id.object()), generation, field: field.to_owned(), fault }
}

#[cfg(test)]
mod tests;
