//! All facts at one moment, and what had to be left out.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::OrdMap;

use crate::{
    configuration::{ConfigurationState, Reporter, is_configuration},
    model::{
        Labels, NodeName, ObjectKey, ObjectRef, PeerName, PoolName, ServiceKey,
        advertisement::{BgpAdvertisement, L2Advertisement},
        bfd_profile::BfdProfile,
        community::CommunityAliases,
        entry::Entry,
        node::Node,
        peer::BgpPeer,
        pool::Pool,
        route::Ingress,
        selector::LabelSelector,
        service::Service,
    },
    write::{BgpReport, Condition, L2Status, SpeakerLease},
};

/// All facts at one moment.
///
/// Cloning is cheap: the large maps share their nodes with the snapshot they came from, and two neighbours are
/// compared in the time of what differs (`OrdMap::diff` skips what they share).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every Service, whatever its type, with its endpoints.
    pub services: OrdMap<ServiceKey, Arc<Service>>,
    /// Every valid pool; no two ranges overlap.
    pub pools: OrdMap<PoolName, Arc<Pool>>,
    /// Every valid L2Advertisement.
    pub l2_advertisements: OrdMap<ObjectKey, Arc<L2Advertisement>>,
    /// Every valid BGPAdvertisement.
    pub bgp_advertisements: OrdMap<ObjectKey, Arc<BgpAdvertisement>>,
    /// Every valid BGPPeer; no two share a place on one node.
    pub bgp_peers: OrdMap<ObjectKey, Arc<BgpPeer>>,
    /// Every valid BFDProfile.
    pub bfd_profiles: OrdMap<ObjectKey, Arc<BfdProfile>>,
    /// Every valid Community; no alias stands for two things.
    pub communities: OrdMap<ObjectKey, Arc<CommunityAliases>>,
    /// Every Node.
    pub nodes: OrdMap<NodeName, Arc<Node>>,
    /// Labels of every Namespace.
    pub namespaces: OrdMap<String, Arc<Labels>>,
    /// Every Ingress of our class.
    pub ingresses: OrdMap<ObjectKey, Arc<Ingress>>,
    /// Nodes whose speaker the speaker of *this* node has lost sight of. Endpoints there are used last.
    pub unreachable: BTreeSet<NodeName>,
    /// Which speakers announce each Service by layer 2, as they report it.
    pub announced_by: OrdMap<ServiceKey, Arc<BTreeMap<NodeName, L2Status>>>,
    /// To which peers each node advertises a Service, as speakers report it. A speaker of a cluster sees what its own
    /// node reported, now or in an earlier life; of the others there only who asks for it sees anything.
    pub advertised_by: OrdMap<ServiceKey, Arc<BTreeMap<NodeName, BTreeSet<PeerName>>>>,
    /// The BGP sessions of each node, as speakers report them. Who sees them is as for `advertised_by`.
    pub bgp_sessions: OrdMap<(NodeName, PeerName), Arc<BgpReport>>,
    /// The Leases of speakers, by node, where speakers know each other by these and not by gossip.
    pub leases: OrdMap<NodeName, Arc<SpeakerLease>>,
    /// Our conditions as they stand now on objects whose status is in no other map here: advertisements, objects that
    /// were left out, and what [`Write::Condition`](crate::write::Write::Condition) said of a Service. Only objects
    /// that still exist are listed.
    pub conditions: OrdMap<ObjectRef, Arc<Vec<Condition>>>,
    /// The shared Ingress entry of a cluster; none where facts come from a folder, whose users write it themselves.
    pub entry: Option<Arc<Entry>>,
    /// Which nodes an object concerns that has problems and names some: its `nodeSelectors`, read as far as they can be.
    pub concerned_nodes: OrdMap<ObjectRef, Arc<Vec<LabelSelector>>>,
    /// What the ConfigurationStates say that this process reads: its own.
    pub configuration_states: OrdMap<Reporter, Arc<ConfigurationState>>,
    /// What was left out, by where it came from, and why.
    pub problems: Arc<BTreeMap<Origin, Vec<Problem>>>,
}

impl Snapshot {
    /// Which node announces a Service by layer 2, and what it reports. Of several that say so the one that came last: one
    /// that has died could not take its word back.
    pub fn announcer(&self, service: &ServiceKey) -> Option<(&NodeName, &L2Status)> {
        self.announced_by.get(service)?.iter().max_by_key(|(node, status)| (status.transitions, Reverse(*node)))
    }

    /// Pools that are there and not in force, because nobody can read what they say.
    pub fn pools_left_out(&self) -> BTreeSet<PoolName> {
        let problems = self.problems.values().flatten().filter(|problem| !problem.fault.is_warning());
        let objects = problems.filter_map(|problem| problem.object.as_ref());
        let pools = objects.filter(|object| object.kind == "IPAddressPool" && is_configuration(object));
        pools.map(|pool| PoolName::from(pool.name.as_str())).filter(|name| !self.pools.contains_key(name)).collect()
    }
}

/// Where an object or a problem came from: a file of the directory source, or an object of the API server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A manifest file, relative to the folder, and the document's number in it, from 1.
    File {
        /// Path relative to the manifest folder.
        path: String,
        /// Which document of the file, from 1; 0 for the file as a whole.
        document: usize,
    },
    /// An object of the API server.
    Cluster(ObjectRef),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { path, document: 0 | 1 } => f.write_str(path),
            Self::File { path, document } => write!(f, "{path} (document {document})"),
            Self::Cluster(object) => object.fmt(f),
        }
    }
}

/// One object, or one part of it, that is left out, and why. Everything else keeps working.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object, where one could be told.
    pub object: Option<ObjectRef>,
    /// `metadata.generation` of the object; 0 where the source has none.
    pub generation: i64,
    /// The field, as a path such as `spec.addresses[0]`; empty when it is the object as a whole.
    pub field: String,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with an object. The text names the value and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The file or folder cannot be read.
    #[error("cannot be read: {detail}; what was known of it before stays in force")]
    Unreadable {
        /// What the system said.
        detail: String,
    },
    /// Not YAML, or not a Kubernetes object.
    #[error("is not a Kubernetes object in YAML: {detail}; correct the file")]
    Syntax {
        /// What the parser said, with line and column.
        detail: String,
    },
    /// A kind we do not read.
    #[error("{api_version} {kind} is not a kind that is read here; check apiVersion and kind for a typing error")]
    UnknownKind {
        /// `apiVersion` as written.
        api_version: String,
        /// `kind` as written.
        kind: String,
    },
    /// The object does not fit its schema.
    #[error("does not fit the schema of its kind: {detail}")]
    Schema {
        /// What does not fit.
        detail: String,
    },
    /// A value outside what the field allows.
    #[error("{value:?} is not valid: {expected}")]
    Invalid {
        /// What it says.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// Configuration outside the namespace in which it is read.
    #[error("is not in namespace {ours}, and configuration is read there only; move the object")]
    ForeignNamespace {
        /// Where it is read.
        ours: String,
    },
    /// Two objects claim the same name.
    #[error("the same object is already defined in {first}; remove one of the two")]
    Duplicate {
        /// Where the one in force stands.
        first: String,
    },
    /// Two pools share addresses; the older one (then the first by name) stays in force.
    #[error("{range} overlaps with {other_range} of pool {other_pool}; give each address to one pool only")]
    Overlap {
        /// The range that is refused.
        range: String,
        /// The range in force.
        other_range: String,
        /// The pool in force.
        other_pool: PoolName,
    },
    /// Two BGPPeers that one node could not tell apart.
    #[error("{place} is already the place of BGPPeer {other} on {node}; name each router once for a node")]
    SamePlace {
        /// The address or interface, and the VRF.
        place: String,
        /// The peer in force.
        other: PeerName,
        /// Which node speaks with both.
        node: String,
    },
    /// An aggregate that would draw traffic for addresses outside of the pool.
    #[error("{length} bits reach outside {range} of pool {pool}; use at least {least}")]
    AggregateTooWide {
        /// The aggregation length.
        length: u8,
        /// An entry of the pool.
        range: String,
        /// The pool.
        pool: PoolName,
        /// The shortest length that does not.
        least: u8,
    },
    /// Two advertisements that give one route two values of LOCAL_PREF.
    #[error(
        "{ours} contradicts {theirs} of BGPAdvertisement {other} for pool {pool}; use one value, or other peers, nodes \
         or aggregation lengths"
    )]
    LocalPrefConflict {
        /// The value that is refused; 0 where there is none.
        ours: u32,
        /// The value in force.
        theirs: u32,
        /// The advertisement in force.
        other: String,
        /// A pool that both cover.
        pool: PoolName,
    },
    /// BFD echo exists for IPv4 only.
    #[error(
        "pool {pool} holds IPv6, and BFDProfile {profile} of BGPPeer {peer} has echoMode, which is for IPv4 only; use \
         another profile or other peers"
    )]
    EchoTowardsIpv6 {
        /// The pool.
        pool: PoolName,
        /// The peer.
        peer: PeerName,
        /// Its profile.
        profile: String,
    },
    /// Two Community objects that give one name.
    #[error("{alias:?} is already given by Community {other}; give each name once")]
    SameAlias {
        /// The name.
        alias: String,
        /// The object in force.
        other: String,
    },
    /// The password of a peer is not to be had. The object stays in force, and there is no session without it.
    #[error("Secret {secret} {fault}; there is no session until then")]
    NoPassword {
        /// Namespace and name of the Secret.
        secret: String,
        /// What is wrong with it.
        fault: PasswordFault,
    },
    /// A reference to something that does not exist. The object stays in force.
    #[error("{kind} {name:?} does not exist; create it or correct the name")]
    DanglingReference {
        /// The kind that is missing.
        kind: String,
        /// The name that is missing.
        name: String,
    },
    /// An annotation under a name that its maker has given up. It counts all the same.
    #[error("{name} is outdated; write {instead}")]
    DeprecatedAnnotation {
        /// The outdated name.
        name: String,
        /// The name to write.
        instead: String,
    },
    /// A part that nobody reads. The rest of the object stays in force.
    #[error("is ignored: {detail}")]
    Ignored {
        /// Why, and what to do.
        detail: String,
    },
    /// A feature that this release does not have.
    #[error("{feature} is not supported: {instead}")]
    Unsupported {
        /// What was asked for.
        feature: String,
        /// What to do instead.
        instead: String,
    },
}

impl Fault {
    /// Reason for conditions, Events and metrics: one CamelCase word per variant.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "Unreadable",
            Self::Syntax { .. } => "SyntaxError",
            Self::UnknownKind { .. } => "UnknownKind",
            Self::Schema { .. } => "SchemaViolation",
            Self::Invalid { .. } => "InvalidValue",
            Self::ForeignNamespace { .. } => "ForeignNamespace",
            Self::Duplicate { .. } => "DuplicateObject",
            Self::Overlap { .. } => "OverlappingPools",
            Self::SamePlace { .. } => "DuplicatePeer",
            Self::AggregateTooWide { .. } => "AggregateTooWide",
            Self::LocalPrefConflict { .. } => "LocalPrefConflict",
            Self::EchoTowardsIpv6 { .. } => "EchoModeForIPv6",
            Self::SameAlias { .. } => "DuplicateAlias",
            Self::NoPassword { .. } => "NoPassword",
            Self::DanglingReference { .. } => "DanglingReference",
            // MetalLB's own word, which people look for.
            Self::DeprecatedAnnotation { .. } => "deprecatedAnnotation",
            Self::Ignored { .. } => "Ignored",
            Self::Unsupported { .. } => "Unsupported",
        }
    }

    /// Whether the object stays in force all the same.
    pub fn is_warning(&self) -> bool {
        matches!(
            self,
            Self::NoPassword { .. }
                | Self::DanglingReference { .. }
                | Self::DeprecatedAnnotation { .. }
                | Self::Ignored { .. }
        )
    }
}

/// Why a Secret gives no password. What it holds stands in none of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordFault {
    /// There is none, or none that is looked at.
    #[error("does not exist as one of type kubernetes.io/basic-auth; create it or correct the name")]
    Missing,
    /// It is of another type.
    #[error("is of type {kind:?}; make it anew as one of type kubernetes.io/basic-auth")]
    WrongType {
        /// Its type.
        kind: String,
    },
    /// It has no key `password`.
    #[error("has no key `password`; add it")]
    NoKey,
    /// The password is empty or longer than the kernel takes.
    #[error("holds a password of {bytes} bytes; use one of 1 to 80 bytes")]
    Length {
        /// How long it is.
        bytes: usize,
    },
    /// The password is no text.
    #[error("holds a password that is not UTF-8; use one that is")]
    NotText,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        self.fault.fmt(f)
    }
}
