//! Every change we may ask for outside. `cluster::write` carries them out.
//!
//! A write says what an object's status *should be*, never how to get there; asking twice changes nothing, and a
//! newer write for the same thing replaces an older one that has not been carried out yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use crate::{
    configuration::{ConfigurationState, Reporter},
    model::{
        Family, InterfaceName, NodeName, ObjectKey, ObjectRef, PeerName, PoolName, ResourceVersion, ServiceKey,
        entry::{EntryService, EntrySlice},
        peer::{Asn, BgpIdentifier},
        pool::PoolStatus,
        service::ServiceStatus,
    },
};

/// A change outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Addresses, pool annotation and condition of a Service.
    ServiceStatus {
        /// Which Service.
        service: ServiceKey,
        /// What its status should say.
        status: ServiceStatus,
        /// The state of the Service that this was decided on. Where it has another one by now the write is refused,
        /// and decided anew; an unknown version is never refused.
        version: ResourceVersion,
        /// Whether the Service gets a new version although its status says all this already, so that no earlier write
        /// that was decided on the same version can come after this one.
        fence: bool,
    },
    /// Counters and conditions of a pool.
    PoolStatus {
        /// Which pool object.
        pool: ObjectKey,
        /// What its status should say.
        status: PoolStatus,
    },
    /// Addresses in the status of an Ingress.
    IngressStatus {
        /// Which Ingress.
        ingress: ObjectKey,
        /// The addresses of the entry that serves it.
        addresses: Vec<IpAddr>,
    },
    /// The Service of the shared Ingress entry; `None` takes it away.
    EntryService {
        /// Which Service.
        service: ServiceKey,
        /// What of it is ours to say.
        wish: Option<EntryService>,
    },
    /// One EndpointSlice of the shared Ingress entry; `None` takes it away.
    EntrySlice {
        /// The entry's Service.
        service: ServiceKey,
        /// The family of its addresses.
        family: Family,
        /// What it should say.
        wish: Option<EntrySlice>,
    },
    /// One condition of an object that has no status of its own above.
    Condition {
        /// Which object.
        object: ObjectRef,
        /// The condition.
        condition: Condition,
    },
    /// The ConfigurationState of one reporter.
    Configuration {
        /// Whose.
        reporter: Reporter,
        /// What it should say.
        state: ConfigurationState,
    },
    /// An Event on an object; equal Events are counted, not repeated.
    Event(Event),
    /// The ServiceL2Status of one Service on one node; `None` takes it away.
    L2Status {
        /// Which Service.
        service: ServiceKey,
        /// The node whose speaker says so.
        node: NodeName,
        /// What it announces, or nothing any more.
        status: Option<L2Status>,
    },
    /// The ServiceBGPStatus of one Service on one node.
    BgpStatus {
        /// Which Service.
        service: ServiceKey,
        /// The node whose speaker says so.
        node: NodeName,
        /// The peers it is advertised to; none takes the object away.
        peers: BTreeSet<PeerName>,
    },
    /// The BGPSessionStatus of one peer on one node; `None` takes it away.
    BgpSession {
        /// Which BGPPeer.
        peer: PeerName,
        /// The node whose speaker says so.
        node: NodeName,
        /// How the session is, or that the node has none any more.
        status: Option<Box<BgpSession>>,
    },
    /// The Lease of the speaker of one node, by which the others know that it lives.
    Lease {
        /// The node.
        node: NodeName,
        /// What it should say.
        lease: SpeakerLease,
    },
    /// Whom the speaker of one node can see; read by the proxies of that node.
    Membership {
        /// The node whose speaker says so.
        node: NodeName,
        /// Nodes it has lost sight of.
        unreachable: BTreeSet<NodeName>,
    },
}

/// The Lease of a speaker. When it was renewed is not read by anyone but people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpeakerLease {
    /// How long it counts after a change was seen; whole seconds.
    pub duration: Duration,
    /// What the speaker says, as it would be gossiped, not sealed.
    pub says: Box<[u8]>,
    /// When the clock of its node says that it was renewed, as text; empty on its way out.
    pub renewed_at: String,
}

/// What one node announces for one Service by layer 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2Status {
    /// The Service's pool.
    pub pool: PoolName,
    /// The addresses this node owns.
    pub addresses: Vec<IpAddr>,
    /// The interfaces it answers on; empty means every suitable one.
    pub interfaces: BTreeSet<InterfaceName>,
    /// How often the Service had got another owner when this node became it. Of several nodes that say they announce it,
    /// the one with the greatest number came last.
    pub transitions: u32,
    /// Who else has claimed one of the addresses lately, at most one for each.
    pub conflicts: Vec<L2Conflict>,
}

/// Somebody on the link who claims an address of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2Conflict {
    /// Which.
    pub address: IpAddr,
    /// Where it was seen.
    pub interface: InterfaceName,
    /// Its hardware address as text, like `02:00:00:00:00:42`.
    pub mac: String,
}

/// How the session of one node with one peer is. Since when, and when it closed last, is added where it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BgpSession {
    /// The state as RFC 4271 §8.2.2 names it, `Idle` to `Established`.
    pub state: String,
    /// The peer as the BGPPeer names it: an address, an interface or a prefix.
    pub remote: String,
    /// The peer's AS as its OPEN says it.
    pub remote_asn: Option<Asn>,
    /// The peer's BGP identifier as its OPEN says it.
    pub remote_identifier: Option<BgpIdentifier>,
    /// Our address of the connection.
    pub local_address: Option<IpAddr>,
    /// The peer's address of the connection.
    pub remote_address: Option<IpAddr>,
    /// The hold time both agreed on, in seconds; 0 stands for ever.
    pub hold_time_seconds: Option<u16>,
    /// The families both agreed on, all of them unicast.
    pub families: BTreeSet<Family>,
    /// How many prefixes the peer has from us.
    pub prefixes_sent: u64,
    /// How many prefixes the peer has announced, less those it has withdrawn.
    pub prefixes_received: u64,
    /// How many prefixes the peer should have and does not get, by the reason in one CamelCase word.
    pub withheld: BTreeMap<String, u64>,
    /// How often the session has left Established since the speaker started. Of a router that a prefix stands for nothing is
    /// counted beyond its connection.
    pub flaps: u32,
    /// Why the last connection ended, if one did since the speaker started.
    pub last_close: Option<BgpClose>,
    /// The state of the BFD session as RFC 5880 §6.2 names it, if the peer is watched by one.
    pub bfd: Option<String>,
    /// How often BFD has lost the peer since the speaker started; of a router that a prefix stands for as above.
    pub bfd_losses: u32,
    /// Why it did so last, as a sentence for a person; empty where it did not.
    pub bfd_last_loss: String,
    /// What keeps the session from coming up, or will, as a sentence for a person; empty where nothing is known.
    pub trouble: String,
}

/// How a connection to a peer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpClose {
    /// Who ended it.
    pub by: ClosedBy,
    /// What was said or seen, as a sentence for a person.
    pub text: String,
}

/// Who ended a connection. Code and subcode are those of the NOTIFICATION (RFC 4271 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// We sent a NOTIFICATION.
    Us {
        /// Error code.
        code: u8,
        /// Error subcode; 0 where the code has none.
        subcode: u8,
    },
    /// The peer sent one.
    Peer {
        /// Error code.
        code: u8,
        /// Error subcode; 0 where the code has none.
        subcode: u8,
    },
    /// Nobody said anything: the connection failed or was cut.
    Connection,
}

/// A session as its node reported it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpReport {
    /// How it is.
    pub session: BgpSession,
    /// Since when it is in this state, as RFC 3339 writes a time; empty where the report does not say.
    pub since: String,
    /// When the last connection ended, in the same form.
    pub closed_at: Option<String>,
}

/// A condition as Kubernetes has them (`metav1.Condition`). The time of its last change is added where it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// `type`.
    pub kind: String,
    /// `status`: `True` or `False`.
    pub holds: bool,
    /// `reason`: one CamelCase word.
    pub reason: String,
    /// `message`: a sentence for a person.
    pub message: String,
    /// `observedGeneration`.
    pub observed_generation: i64,
}

/// Condition type on every object users write: whether it is in force.
pub const ACCEPTED: &str = "Accepted";

/// An Event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// What it is about.
    pub object: ObjectRef,
    /// `type`.
    pub severity: Severity,
    /// `reason`: one CamelCase word.
    pub reason: String,
    /// `message`: a sentence for a person.
    pub message: String,
}

/// `type` of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something happened as it should.
    Normal,
    /// Somebody should look.
    Warning,
}

/// How long a machine waits for a write to show up in a snapshot before it asks again.
pub const WRITE_PATIENCE: Duration = Duration::from_secs(10);
