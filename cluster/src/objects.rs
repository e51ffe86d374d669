//! Every object we have been told of, by kind and name, with the file or watch it came from.
//!
//! The store replaces, it never merges: a source hands over all it holds of a file (or of a kind), and what it does
//! not name is gone. Two rules keep running things running. An object that can no longer be read keeps its last good
//! form, and a file with an unreadable part keeps the objects it used to define. Where there is no last good form, a
//! Service keeps at least the address that it has. Of two sources that define the same object the first one counts,
//! files in the order of their paths. Where our words and MetalLB's define a kind of configuration under one name, ours
//! count and MetalLB's stand aside, so that both may exist while a cluster moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ferrogate_core::{
    model::{
        Family, Labels, ObjectKey, ObjectRef, ServiceKey,
        advertisement::{BgpAdvertisement, L2Advertisement},
        bfd_profile::BfdProfile,
        community::CommunityAliases,
        entry::{EntryService, EntrySlice, ProxyPod},
        node::Node,
        peer::{BgpPeer, Key},
        pool::Pool,
        route::Ingress,
        selector::LabelSelector,
        service::{Endpoint, Service},
    },
    snapshot::{Origin, PasswordFault, Problem},
};

/// The kinds that are read, and what they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1 Namespace`.
    Namespace,
    /// `v1 Node`.
    Node,
    /// `v1 Secret`.
    Secret,
    /// `v1 Service`.
    Service,
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice,
    /// `v1 Pod`; those of the proxy, in a cluster.
    Pod,
    /// `networking.k8s.io/v1 IngressClass`.
    IngressClass,
    /// `networking.k8s.io/v1 Ingress`.
    Ingress,
    /// Our `IPAddressPool`.
    IpAddressPool,
    /// Our `L2Advertisement`.
    L2Advertisement,
    /// Our `BGPAdvertisement`.
    BgpAdvertisement,
    /// Our `BGPPeer`.
    BgpPeer,
    /// Our `BFDProfile`.
    BfdProfile,
    /// Our `Community`.
    Community,
    /// A Gateway API kind.
    Gateway(&'static str),
}

/// The API group and version of our own kinds.
pub const OUR_API: &str = "ferrogate.io/v1beta1";

impl Kind {
    /// Every kind but those of the Gateway API.
    pub const ALL: [Self; 14] = [
        Self::Namespace,
        Self::Node,
        Self::Secret,
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
        Self::IngressClass,
        Self::Ingress,
        Self::IpAddressPool,
        Self::L2Advertisement,
        Self::BgpAdvertisement,
        Self::BgpPeer,
        Self::BfdProfile,
        Self::Community,
    ];

    /// The kind an object is said to be of, and in whose words.
    pub fn of(object: &ObjectRef) -> Option<(Self, Spelling)> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == object.kind)?;
        match object.api_version.as_str() {
            version if version == kind.api_version() => Some((kind, Spelling::Ours)),
            version if kind.is_configuration() && version == kind.metallb_api_version() => {
                Some((kind, Spelling::Metallb))
            }
            _ => None,
        }
    }

    /// `apiVersion` of a kind of configuration in MetalLB's words: of several that it serves, the one it stores.
    pub fn metallb_api_version(self) -> &'static str {
        if self == Self::BgpPeer { "metallb.io/v1beta2" } else { "metallb.io/v1beta1" }
    }

    /// `apiVersion`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Secret | Self::Service | Self::Pod => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::IngressClass | Self::Ingress => "networking.k8s.io/v1",
            Self::Gateway(_) => "gateway.networking.k8s.io/v1",
            Self::IpAddressPool
            | Self::L2Advertisement
            | Self::BgpAdvertisement
            | Self::BgpPeer
            | Self::BfdProfile
            | Self::Community => OUR_API,
        }
    }

    /// `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Secret => "Secret",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::IngressClass => "IngressClass",
            Self::Ingress => "Ingress",
            Self::IpAddressPool => "IPAddressPool",
            Self::L2Advertisement => "L2Advertisement",
            Self::BgpAdvertisement => "BGPAdvertisement",
            Self::BgpPeer => "BGPPeer",
            Self::BfdProfile => "BFDProfile",
            Self::Community => "Community",
            Self::Gateway(kind) => kind,
        }
    }

    /// Whether objects of this kind say what Ferrogate should do, and are therefore read in one namespace only.
    pub fn is_configuration(self) -> bool {
        self.api_version() == OUR_API
    }

    /// Whether objects of this kind live outside namespaces.
    pub fn is_cluster_scoped(self) -> bool {
        matches!(self, Self::Namespace | Self::Node | Self::IngressClass | Self::Gateway("GatewayClass"))
    }
}

/// In whose words an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spelling {
    /// Ours, or Kubernetes' own.
    Ours,
    /// MetalLB's: a kind of ours under `metallb.io`. Read and never written to.
    Metallb,
}

/// Which object: its kind, namespace (empty for cluster-scoped kinds) and name, and in whose words it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// The kind.
    pub kind: Kind,
    /// Namespace and name.
    pub key: ObjectKey,
    /// In whose words.
    pub spelling: Spelling,
}

impl Id {
    /// The name of an object of this kind.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self::keyed(kind, ObjectKey::new(if kind.is_cluster_scoped() { "" } else { namespace }, name))
    }

    /// The same from a key.
    pub fn keyed(kind: Kind, key: ObjectKey) -> Self {
        Self { kind, key, spelling: Spelling::Ours }
    }

    /// The same object in other words.
    pub fn spelled(self, spelling: Spelling) -> Self {
        Self { spelling, ..self }
    }

    /// The object a problem or an Event names.
    pub fn of(object: &ObjectRef) -> Option<Self> {
        let (kind, spelling) = Kind::of(object)?;
        let id = Self::new(kind, object.namespace.as_deref().unwrap_or_default(), &object.name);
        Some(id.spelled(spelling))
    }

    /// `apiVersion`.
    pub fn api_version(&self) -> &'static str {
        match self.spelling {
            Spelling::Ours => self.kind.api_version(),
            Spelling::Metallb => self.kind.metallb_api_version(),
        }
    }

    /// The same as problems and Events name it.
    pub fn object(&self) -> ObjectRef {
        ObjectRef {
            api_version: self.api_version().to_owned(),
            kind: self.kind.name().to_owned(),
            namespace: (!self.kind.is_cluster_scoped()).then(|| self.key.namespace.to_string()),
            name: self.key.name.to_string(),
        }
    }
}

/// What one object says, checked as far as it can be without looking at any other object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Labels of a Namespace.
    Namespace(Arc<Labels>),
    /// A Node.
    Node(Arc<Node>),
    /// A Service, without the endpoints of its slices.
    Service(ServiceFact),
    /// An EndpointSlice.
    EndpointSlice(SliceFact),
    /// A pod of the proxy.
    ProxyPod(ProxyPod),
    /// An IngressClass.
    IngressClass(IngressClassFact),
    /// An Ingress of any class.
    Ingress(IngressFact),
    /// A pool, not yet compared to the others.
    Pool(PoolFact),
    /// An L2Advertisement.
    L2Advertisement(Arc<L2Advertisement>),
    /// A BGPAdvertisement, not yet compared to the others.
    BgpAdvertisement(BgpAdvertisementFact),
    /// A BGPPeer, not yet compared to the others.
    BgpPeer(BgpPeerFact),
    /// A BFDProfile.
    BfdProfile(Arc<BfdProfile>),
    /// A Community, not yet compared to the others.
    Community(CommunityFact),
    /// The password that a Secret holds, or why it holds none.
    Secret(Result<Key, PasswordFault>),
    /// An object of which nothing counts but that it exists.
    Accepted,
}

impl Fact {
    /// Seconds since 1970 at which a piece of configuration was made; 0 where unknown. Of two that contradict each
    /// other the older one stays in force.
    pub fn created(&self) -> i64 {
        match self {
            Self::Pool(PoolFact { created, .. })
            | Self::BgpAdvertisement(BgpAdvertisementFact { created, .. })
            | Self::BgpPeer(BgpPeerFact { created, .. })
            | Self::Community(CommunityFact { created, .. }) => *created,
            _ => 0,
        }
    }
}

/// A Service, and what only `translate` needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFact {
    /// The Service, without endpoints. The snapshot shares it where there are none.
    pub service: Arc<Service>,
    /// Type `ExternalName`: it has no endpoints, whatever slices say.
    pub external_name: bool,
    /// It is left out but for the address that it has, and has no endpoints either.
    pub is_left_out: bool,
    /// What the controller keeps of it, if its name is that of the entry.
    pub entry: Option<Box<EntryService>>,
}

/// A pool, and what decides between two that overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFact {
    /// The pool.
    pub pool: Arc<Pool>,
    /// Seconds since 1970; 0 where unknown. The older of two pools stays in force.
    pub created: i64,
}

/// A BGPAdvertisement, and what only `translate` needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpAdvertisementFact {
    /// The advertisement, with the communities that are written out.
    pub advertisement: Arc<BgpAdvertisement>,
    /// The names among its communities.
    pub aliases: Vec<String>,
    /// See [`Fact::created`].
    pub created: i64,
}

/// A BGPPeer, and what only `translate` needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpPeerFact {
    /// The peer.
    pub peer: Arc<BgpPeer>,
    /// See [`Fact::created`].
    pub created: i64,
}

/// A Community, and what only `translate` needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommunityFact {
    /// The object.
    pub object: Arc<CommunityAliases>,
    /// See [`Fact::created`].
    pub created: i64,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFact {
    /// The Service it belongs to.
    pub service: ServiceKey,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// The same and its ports, if the controller keeps it for the entry.
    pub entry: Option<(Family, Box<EntrySlice>)>,
}

/// An IngressClass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressClassFact {
    /// Whether `spec.controller` names us.
    pub ours: bool,
    /// Whether it is marked as the default class.
    pub default: bool,
    /// Whether an entry of it gets NodePorts.
    pub node_ports: bool,
    /// Seconds since 1970; 0 where unknown.
    pub created: i64,
}

/// An Ingress of any class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressFact {
    /// The Ingress.
    pub ingress: Arc<Ingress>,
    /// `spec.ingressClassName`, or the older annotation.
    pub class: Option<String>,
    /// Every backend with the field that names it.
    pub backends: Vec<(String, ferrogate_core::model::route::Backend)>,
}

/// One object as a source read it: what it says, or nothing when it is refused, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Which object.
    pub id: Id,
    /// `metadata.generation`; 0 where the source has none.
    pub generation: i64,
    /// What it says; `None` when it is refused and nothing is left of it.
    pub fact: Option<Fact>,
    /// Whether that is only what is left of an object that is refused; its last good form counts before it.
    pub is_remnant: bool,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// Its `nodeSelectors`, as far as they can be read whatever else is wrong; empty means every node.
    pub concerned_nodes: Vec<LabelSelector>,
}

/// What one source says of one object.
#[derive(Clone, Debug, PartialEq)]
struct Claim {
    /// The last good form; where there never was one, what is left of the object, if anything is.
    fact: Option<Arc<Fact>>,
    is_remnant: bool,
    generation: i64,
    problems: Vec<Problem>,
    concerned_nodes: Vec<LabelSelector>,
}

impl Claim {
    fn new(reading: Reading, last_good: Option<Arc<Fact>>) -> Self {
        let Reading { id: _, generation, fact, is_remnant, problems, concerned_nodes } = reading;
        let fact = fact.map(Arc::new);
        let (fact, is_remnant) = match last_good {
            Some(last_good) if is_remnant || fact.is_none() => (Some(last_good), false),
            _ => (fact, is_remnant),
        };
        Self { fact, is_remnant, generation, problems, concerned_nodes }
    }
}

/// The form of an object that counts, and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct InForce<'a> {
    /// What it says.
    pub fact: &'a Arc<Fact>,
    /// Where it stands.
    pub origin: &'a Origin,
    /// `metadata.generation`.
    pub generation: i64,
}

/// What every source says of one object, in the order of their names. Nearly always there is one, and a map would keep
/// room for eleven.
#[derive(Clone, Debug, Default)]
struct Claims(Vec<(Arc<Origin>, Claim)>);

impl Claims {
    fn get(&self, origin: &Origin) -> Option<&Claim> {
        self.find(origin).ok().map(|index| &self.0[index].1)
    }

    fn set(&mut self, origin: &Arc<Origin>, claim: Option<Claim>) {
        match (self.find(origin), claim) {
            (Ok(index), Some(claim)) => self.0[index].1 = claim,
            (Ok(index), None) => _ = self.0.remove(index),
            (Err(index), Some(claim)) => {
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.insert(index, (Arc::clone(origin), claim));
            }
            (Err(_), None) => {}
        }
    }

    fn find(&self, origin: &Origin) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| (**known).cmp(origin))
    }

    fn iter(&self) -> impl Iterator<Item = (&Origin, &Claim)> {
        self.0.iter().map(|(origin, claim)| (&**origin, claim))
    }
}

/// An object in a place where a source holds it.
type Held = (Id, Arc<Origin>);

/// Every object we have been told of.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    claims: BTreeMap<Id, Claims>,
    /// Configuration by kind and name: what we and MetalLB call the same.
    namesakes: BTreeMap<(Kind, Arc<str>), BTreeSet<Id>>,
    sources: BTreeMap<String, BTreeSet<Held>>,
    changed: BTreeMap<Id, Option<Arc<Fact>>>,
}

impl Objects {
    /// Takes in all that a source (a file by its path, or a kind of the API server) holds now. What it held before
    /// and does not name any more is gone, but for what `keep` says may stand in a part that could not be read.
    pub fn replace(&mut self, source: &str, readings: Vec<(Origin, Reading)>, keep: impl Fn(&Id) -> bool) {
        let mut before = self.sources.remove(source).unwrap_or_default();
        let mut now = BTreeSet::new();
        let mut last_good: BTreeMap<Id, Arc<Fact>> = BTreeMap::new();
        for (id, origin) in &before {
            if let Some(fact) = self.last_good(id, origin) {
                last_good.insert(id.clone(), fact);
            }
        }
        for (origin, reading) in readings {
            let last_good = last_good.get(&reading.id).cloned();
            let place = (reading.id.clone(), Arc::new(origin));
            // The one that was there is shared with its claim.
            let place = before.take(&place).unwrap_or(place);
            self.put(&place, Some(Claim::new(reading, last_good)));
            now.insert(place);
        }
        // Most of what is read is new, at a start all of it.
        let named: BTreeSet<Id> = match before.is_empty() {
            true => BTreeSet::new(),
            false => now.iter().map(|(id, _)| id.clone()).collect(),
        };
        for place in before {
            if !named.contains(&place.0) && keep(&place.0) {
                now.insert(place);
            } else {
                self.put(&place, None);
            }
        }
        if !now.is_empty() {
            self.sources.insert(source.to_owned(), now);
        }
    }

    /// Takes in one object of a source that has one place for each object (the API server).
    pub fn apply(&mut self, source: &str, origin: Origin, reading: Reading) {
        let last_good = self.last_good(&reading.id, &origin);
        let place = (reading.id.clone(), Arc::new(origin));
        self.put(&place, Some(Claim::new(reading, last_good)));
        self.sources.entry(source.to_owned()).or_default().insert(place);
    }

    /// Forgets one object of such a source.
    pub fn delete(&mut self, source: &str, origin: Origin, id: Id) {
        let place = (id, Arc::new(origin));
        self.put(&place, None);
        if let Some(places) = self.sources.get_mut(source) {
            places.remove(&place);
        }
    }

    fn last_good(&self, id: &Id, origin: &Origin) -> Option<Arc<Fact>> {
        let claim = self.claims.get(id)?.get(origin)?;
        claim.fact.clone().filter(|_| !claim.is_remnant)
    }

    fn put(&mut self, (id, origin): &Held, claim: Option<Claim>) {
        let before = self.facts_around(id);
        if id.kind.is_configuration() {
            self.namesakes.entry((id.kind, id.key.name.clone())).or_default().insert(id.clone());
        }
        let claims = self.claims.entry(id.clone()).or_default();
        let same = claims.get(origin) == claim.as_ref();
        if !same {
            claims.set(origin, claim);
        }
        if claims.0.is_empty() {
            self.claims.remove(id);
            let place = (id.kind, id.key.name.clone());
            if let Some(namesakes) = self.namesakes.get_mut(&place) {
                namesakes.remove(id);
                if namesakes.is_empty() {
                    self.namesakes.remove(&place);
                }
            }
        }
        if !same {
            for (id, before) in before {
                self.changed.entry(id).or_insert(before);
            }
        }
    }

    /// The same without some objects, as if all the others had just come.
    pub fn without(&self, left_out: impl Fn(&Id) -> bool) -> Self {
        let kept = self.claims.iter().filter(|(id, _)| !left_out(id));
        let claims: BTreeMap<_, _> = kept.map(|(id, claims)| (id.clone(), claims.clone())).collect();
        let namesakes = namesakes(claims.keys());
        let changed = claims.keys().map(|id| (id.clone(), None)).collect();
        Self { claims, namesakes, changed, sources: BTreeMap::new() }
    }

    /// What counts of an object, and of those that stand aside for it or would.
    fn facts_around(&self, id: &Id) -> Vec<(Id, Option<Arc<Fact>>)> {
        let namesakes = id.kind.is_configuration().then(|| self.namesakes.get(&(id.kind, id.key.name.clone())));
        let namesakes = namesakes.flatten().into_iter().flatten();
        let aside = namesakes.filter(|other| id.spelling == Spelling::Ours && other.spelling == Spelling::Metallb);
        let ids = std::iter::once(id).chain(aside);
        ids.map(|id| (id.clone(), self.in_force(id).map(|found| found.fact.clone()))).collect()
    }

    /// The form of an object that counts: the first that was ever readable.
    pub fn in_force(&self, id: &Id) -> Option<InForce<'_>> {
        if self.stands_aside(id) {
            return None;
        }
        self.readable(id)
    }

    /// Whether an object in MetalLB's words stands aside, because one in ours has its kind and name.
    pub fn stands_aside(&self, id: &Id) -> bool {
        let of_ours = || {
            let mut namesakes = self.namesakes.get(&(id.kind, id.key.name.clone())).into_iter().flatten();
            namesakes.any(|other| other.spelling == Spelling::Ours && self.readable(other).is_some())
        };
        id.spelling == Spelling::Metallb && of_ours()
    }

    fn readable(&self, id: &Id) -> Option<InForce<'_>> {
        let claims = self.claims.get(id)?;
        let first = |is_remnant: bool| {
            claims.iter().filter(|(_, claim)| claim.is_remnant == is_remnant).find_map(|(origin, claim)| {
                claim.fact.as_ref().map(|fact| InForce { fact, origin, generation: claim.generation })
            })
        };
        first(false).or_else(|| first(true))
    }

    /// Whether any source names this object, readable or not.
    pub fn knows(&self, id: &Id) -> bool {
        self.claims.contains_key(id)
    }

    /// Every object of a kind that counts, by name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Id, InForce<'_>)> {
        let first = Id::keyed(kind, ObjectKey::new("", ""));
        self.claims
            .range(first..)
            .take_while(move |(id, _)| id.kind == kind)
            .filter_map(|(id, _)| self.in_force(id).map(|found| (id, found)))
    }

    /// Every object any source names.
    pub fn ids(&self) -> impl Iterator<Item = &Id> {
        self.claims.keys()
    }

    /// What changed since this was last asked, with the form that counted then.
    pub fn take_changed(&mut self) -> BTreeMap<Id, Option<Arc<Fact>>> {
        std::mem::take(&mut self.changed)
    }

    /// Which nodes an object concerns: any of these, or all where there are none.
    pub fn concerned_nodes(&self, id: &Id) -> &[LabelSelector] {
        let first = self.claims.get(id).and_then(|claims| claims.iter().next());
        first.map(|(_, claim)| claim.concerned_nodes.as_slice()).unwrap_or_default()
    }

    /// What is wrong with an object in itself, everywhere it is defined, double definitions included.
    pub fn problems(&self, id: &Id) -> Vec<(Origin, Problem)> {
        let Some(claims) = self.claims.get(id) else { return Vec::new() };
        let first = self.readable(id).map(|found| found.origin);
        let mut problems = Vec::new();
        for (origin, claim) in claims.iter() {
            problems.extend(claim.problems.iter().map(|problem| (origin.clone(), problem.clone())));
            if let Some(first) = first
                && first != origin
                && claim.fact.is_some()
            {
                let fault = ferrogate_core::snapshot::Fault::Duplicate { first: first.to_string() };
                let problem =
                    Problem { object: Some(id.object()), generation: claim.generation, field: String::new(), fault };
                problems.push((origin.clone(), problem));
            }
        }
        problems
    }
}

fn namesakes<'a>(ids: impl Iterator<Item = &'a Id>) -> BTreeMap<(Kind, Arc<str>), BTreeSet<Id>> {
    let mut namesakes: BTreeMap<_, BTreeSet<Id>> = BTreeMap::new();
    for id in ids.filter(|id| id.kind.is_configuration()) {
        namesakes.entry((id.kind, id.key.name.clone())).or_default().insert(id.clone());
    }
    namesakes
}
