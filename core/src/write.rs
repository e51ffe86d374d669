//! Every change we may ask for outside. `cluster::write` carries them out.
//!
//! A write says what an object's status *should be*, never how to get there; asking twice changes nothing, and a
//! newer write for the same thing replaces an older one that has not been carried out yet.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use crate::{
    configuration::{ConfigurationState, Reporter},
    model::{
        Family, InterfaceName, NodeName, ObjectKey, ObjectRef, PoolName, ResourceVersion, ServiceKey,
        entry::{EntryService, EntrySlice},
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
    /// Whom the speaker of one node can see; read by the proxies of that node.
    Membership {
        /// The node whose speaker says so.
        node: NodeName,
        /// Nodes it has lost sight of.
        unreachable: BTreeSet<NodeName>,
    },
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
