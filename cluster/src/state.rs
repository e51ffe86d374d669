//! The state folder: where each file lies, who writes it, and what it says when it is read back.
//!
//! Every file has exactly one writer and is replaced as a whole. It is read as carefully as a manifest: a file that
//! says nothing anyone can rely on is told apart from one that is not there.

use std::{collections::BTreeSet, net::IpAddr};

use ferrogate_core::{
    configuration::{ConfigurationState, Judgement, Reporter},
    model::{Family, NodeName, ObjectKey, ObjectRef, PeerName, ServiceKey, pool::PoolStatus, service::ServiceStatus},
    snapshot::Fault,
    write::{Condition, L2Conflict, L2Status},
};
use ferrogate_crds::{
    ConfigurationResult, ConfigurationState as ConfigurationStateObject, ConfigurationStateStatus, ConflictStatus,
    IPAddressPool, ServiceL2Status, ServiceL2StatusStatus,
};
use k8s_openapi::{
    api::{core::v1::Service, networking::v1::Ingress},
    apimachinery::pkg::apis::meta::v1 as meta,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    document::documents,
    objects::OUR_API,
    translate::{ingress, pool, read::address, read::is_dns_name, service},
};

/// Which file of the state folder, in the order in which they are written: the urgent first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Whom a node cannot see, written by its speaker.
    Membership {
        /// The node.
        node: NodeName,
    },
    /// That a node announces a Service by layer 2, written by its speaker.
    L2Status {
        /// The node.
        node: NodeName,
        /// The Service.
        service: ServiceKey,
    },
    /// The Service of the shared Ingress entry, which the controller keeps in a cluster only.
    EntryService(ServiceKey),
    /// An EndpointSlice of it.
    EntrySlice {
        /// The entry's Service.
        service: ServiceKey,
        /// The family of its addresses.
        family: Family,
    },
    /// Status of a Service, written by the controller.
    Service(ServiceKey),
    /// Status of a pool, written by the controller.
    Pool(ObjectKey),
    /// Status of an Ingress, written by the controller.
    Ingress(ObjectKey),
    /// Conditions of an object that has no status above, written by the controller.
    Conditions {
        /// Kind of the object.
        kind: String,
        /// Namespace (empty for cluster-scoped kinds) and name.
        key: ObjectKey,
    },
    /// How the session of a node with a peer is, written by its speaker.
    BgpSession {
        /// The node.
        node: NodeName,
        /// The BGPPeer.
        peer: PeerName,
    },
    /// To which peers a node advertises a Service, written by its speaker.
    BgpStatus {
        /// The node.
        node: NodeName,
        /// The Service.
        service: ServiceKey,
    },
    /// Whether the configuration can be used, written by whoever says so.
    Configuration(Reporter),
    /// Events of one writer.
    Events {
        /// `controller` or `speaker-NODE`.
        writer: String,
    },
}

mod bgp;

pub use bgp::{Advertiser, Reporting, advertiser, read_bgp_session, read_bgp_status, reporting};

/// Stands for the namespace of an object that has none.
const NO_NAMESPACE: &str = "_cluster";

impl Place {
    /// The path below the state folder.
    pub fn path(&self) -> String {
        let key_path = |key: &ObjectKey| {
            let namespace = if key.namespace.is_empty() { NO_NAMESPACE } else { &key.namespace };
            format!("{namespace}/{}.yaml", key.name)
        };
        match self {
            Self::Service(key) => format!("services/{}", key_path(key)),
            Self::Pool(key) => format!("pools/{}", key_path(key)),
            Self::Ingress(key) => format!("ingresses/{}", key_path(key)),
            Self::EntryService(key) => format!("entry/service/{}", key_path(key)),
            Self::EntrySlice { service, family } => format!("entry/{family}/{}", key_path(service)),
            Self::Conditions { kind, key } => format!("conditions/{kind}/{}", key_path(key)),
            Self::Configuration(reporter) => format!("configuration/{}.yaml", reporter.name()),
            Self::Events { writer } => format!("events/{writer}.yaml"),
            Self::L2Status { node, service } => {
                format!("speakers/{node}/l2status/{}_{}.yaml", service.namespace, service.name)
            }
            Self::BgpStatus { node, service } => {
                format!("speakers/{node}/bgpstatus/{}_{}.yaml", service.namespace, service.name)
            }
            Self::BgpSession { node, peer } => format!("speakers/{node}/bgpsession/{peer}.yaml"),
            Self::Membership { node } => format!("speakers/{node}/membership.yaml"),
        }
    }

    /// The file at a path below the state folder; `None` where no file of ours belongs.
    pub fn at(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_suffix(".yaml")?.split('/').collect();
        let name = |text: &str| is_dns_name(text).then(|| text.to_owned());
        let key = |namespace: &str, object: &str| -> Option<ObjectKey> {
            let namespace = if namespace == NO_NAMESPACE { String::new() } else { name(namespace)? };
            Some(ObjectKey::new(namespace, name(object)?))
        };
        match parts[..] {
            ["services", namespace, object] => Some(Self::Service(key(namespace, object)?)),
            ["pools", namespace, object] => Some(Self::Pool(key(namespace, object)?)),
            ["ingresses", namespace, object] => Some(Self::Ingress(key(namespace, object)?)),
            ["conditions", kind, namespace, object] => {
                let kind = kind.bytes().all(|byte| byte.is_ascii_alphanumeric()).then(|| kind.to_owned())?;
                Some(Self::Conditions { kind, key: key(namespace, object)? })
            }
            ["configuration", reporter] => Some(Self::Configuration(Reporter::of(&name(reporter)?)?)),
            ["events", writer] => Some(Self::Events { writer: name(writer)? }),
            ["speakers", node, "l2status", file] => {
                let (namespace, object) = file.split_once('_')?;
                Some(Self::L2Status { node: name(node)?.into(), service: key(namespace, object)? })
            }
            ["speakers", node, "bgpstatus", file] => {
                let (namespace, object) = file.split_once('_')?;
                Some(Self::BgpStatus { node: name(node)?.into(), service: key(namespace, object)? })
            }
            ["speakers", node, "bgpsession", peer] => {
                Some(Self::BgpSession { node: name(node)?.into(), peer: name(peer)?.into() })
            }
            ["speakers", node, "membership"] => Some(Self::Membership { node: name(node)?.into() }),
            _ => None,
        }
    }
}

/// Whom the speaker of a node has lost sight of, as it stands in a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// Always [`OUR_API`].
    pub api_version: String,
    /// Always `Membership`.
    pub kind: String,
    /// The node whose speaker says so.
    pub node: String,
    /// Nodes it has lost sight of.
    pub unreachable: BTreeSet<String>,
}

impl Membership {
    /// What a speaker says.
    pub fn new(node: &NodeName, unreachable: &BTreeSet<NodeName>) -> Self {
        Self {
            api_version: OUR_API.to_owned(),
            kind: "Membership".to_owned(),
            node: node.to_string(),
            unreachable: unreachable.iter().map(NodeName::to_string).collect(),
        }
    }
}

/// The status of a Service as its file says it.
pub fn read_service(text: &str) -> Result<ServiceStatus, Fault> {
    let object: Service = only(text)?;
    let Some(status) = &object.status else { return Err(says_nothing("status")) };
    // It is always written and comes last, so that a file that was cut short does not have it.
    let Some(balancer) = &status.load_balancer else { return Err(says_nothing("status.loadBalancer")) };
    let ingress = balancer.ingress.as_ref();
    // An address nobody can read must not be taken for none: the Service would be given another.
    let ips = ingress.into_iter().flatten().map(|one| one.ip.as_deref());
    check_addresses(ips, "status.loadBalancer.ingress")?;
    Ok(service::observed(&object))
}

/// The status of a pool as its file says it.
pub fn read_pool(text: &str) -> Result<PoolStatus, Fault> {
    let object: serde_json::Value = only(text)?;
    let status = object.get("status").cloned().ok_or_else(|| says_nothing("status"))?;
    let status: <IPAddressPool as kube::core::object::HasStatus>::Status =
        serde_json::from_value(status).map_err(|error| Fault::Schema { detail: format!("status: {error}") })?;
    Ok(pool::observed(status))
}

/// The addresses of an Ingress as its file says them.
pub fn read_ingress(text: &str) -> Result<Vec<IpAddr>, Fault> {
    let object: Ingress = only(text)?;
    let Some(status) = &object.status else { return Err(says_nothing("status")) };
    // It is always written and comes last, so that a file that was cut short does not have it.
    let Some(balancer) = &status.load_balancer else { return Err(says_nothing("status.loadBalancer")) };
    let ingress = balancer.ingress.as_ref();
    let ips = ingress.into_iter().flatten().map(|one| one.ip.as_deref());
    check_addresses(ips, "status.loadBalancer.ingress")?;
    Ok(ingress::observed(&object))
}

/// Conditions of an object of any kind, as they stand in a file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conditioned {
    api_version: String,
    kind: String,
    metadata: meta::ObjectMeta,
    status: ConditionedStatus,
}

#[derive(Deserialize)]
struct ConditionedStatus {
    conditions: Vec<meta::Condition>,
}

/// Which object a file is about, and its conditions.
pub fn read_conditions(text: &str) -> Result<(ObjectRef, Vec<Condition>), Fault> {
    let object: Conditioned = only(text)?;
    let about = ObjectRef {
        api_version: object.api_version,
        kind: object.kind,
        namespace: object.metadata.namespace,
        name: object.metadata.name.ok_or_else(|| says_nothing("metadata.name"))?,
    };
    Ok((about, object.status.conditions.into_iter().map(pool::condition).collect()))
}

/// What a speaker says of a Service that it announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcer {
    /// Which Service.
    pub service: ServiceKey,
    /// The node of the speaker.
    pub node: NodeName,
    /// What it says.
    pub status: L2Status,
}

/// What a ServiceL2Status says.
pub fn read_l2_status(text: &str) -> Result<Announcer, Fault> {
    let object: ServiceL2Status = only(text)?;
    let status = object.status.ok_or_else(|| says_nothing("status"))?;
    Ok(announcer(status))
}

/// What a status says, as far as it can be read.
pub fn announcer(status: ServiceL2StatusStatus) -> Announcer {
    let conflict = |conflict: ConflictStatus| {
        let address = conflict.address.parse().ok()?;
        Some(L2Conflict { address, interface: conflict.interface.as_str().into(), mac: conflict.mac })
    };
    let interfaces = status.interfaces.into_iter().map(|interface| interface.name.as_str().into());
    Announcer {
        service: ServiceKey::new(status.service_namespace, status.service_name),
        node: NodeName::from(status.node),
        status: L2Status {
            pool: status.pool.as_str().into(),
            addresses: status.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
            interfaces: interfaces.collect(),
            transitions: u32::try_from(status.transitions.unwrap_or_default()).unwrap_or_default(),
            conflicts: status.conflicts.into_iter().filter_map(conflict).collect(),
        },
    }
}

/// What a reporter says of the configuration.
pub fn read_configuration(text: &str) -> Result<ConfigurationState, Fault> {
    let object: ConfigurationStateObject = only(text)?;
    object.status.and_then(configuration).ok_or_else(|| says_nothing("status.result"))
}

/// What a status says of the configuration, if it says anything yet.
pub fn configuration(status: ConfigurationStateStatus) -> Option<ConfigurationState> {
    let judgement = match status.result? {
        ConfigurationResult::Valid => Judgement::Valid,
        ConfigurationResult::Invalid => Judgement::Invalid,
        ConfigurationResult::Unknown => Judgement::Unknown,
    };
    Some(ConfigurationState { judgement, summary: status.error_summary })
}

/// Whom a speaker has lost sight of.
pub fn read_membership(text: &str) -> Result<BTreeSet<NodeName>, Fault> {
    let membership: Membership = only(text)?;
    Ok(membership.unreachable.into_iter().map(NodeName::from).collect())
}

/// The one object of a file.
pub fn only<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    let mut documents = documents(text);
    let Some(document) = documents.pop().filter(|_| documents.is_empty()) else {
        return Err(Fault::Syntax { detail: "exactly one object is expected here".to_owned() });
    };
    let value = document.value.map_err(|detail| Fault::Syntax { detail })?;
    serde_json::from_value(value).map_err(|error| Fault::Schema { detail: error.to_string() })
}

fn says_nothing(field: &str) -> Fault {
    Fault::Schema { detail: format!("{field} is missing") }
}

fn check_addresses<'a>(ips: impl Iterator<Item = Option<&'a str>>, field: &str) -> Result<(), Fault> {
    for ip in ips {
        if ip.and_then(address).is_none() {
            let value = ip.unwrap_or_default().to_owned();
            return Err(Fault::Invalid { value, expected: format!("an IP address in {field}") });
        }
    }
    Ok(())
}
