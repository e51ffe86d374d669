//! Writes: what should be said outside, and in which words.
//!
//! For each object only the latest wish is kept, so that what waits is bounded by the objects there are. `files.rs`
//! carries wishes out in a state folder, `apply.rs` at an API server; the words are the same in both.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ferrogate_core::{
    configuration::{ConfigurationState, Judgement, Reporter},
    model::{
        NodeName, ObjectKey, ObjectRef, PeerName, ResourceVersion,
        entry::{EntryService, EntrySlice},
        pool::{AddressUse, PoolStatus},
        service::ServiceStatus,
    },
    write::{BgpReport, Condition, Event, L2Conflict, L2Status, Write},
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1 as meta, jiff::Timestamp};
use serde_json::{Value, json};

use crate::{
    heartbeat::Renewal,
    objects::OUR_API,
    state::{Membership, Place},
    translate::{
        pool,
        service::{FENCE_ANNOTATION, FROM_POOL_ANNOTATION},
    },
};

mod adopt;
pub mod apply;
mod bgp;
mod entry;
mod events;
pub mod files;
mod request;

pub use request::{MAX_LABEL, NODE_LABEL, owner, report_name};

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Request {
    /// That something be said in one place.
    Say(Place, Wish),
    /// That an Event be told.
    Tell(Event),
    /// That the Lease of a speaker be renewed.
    Renew(Renewal),
}

/// What should be said in one place.
#[derive(Clone, Debug, PartialEq)]
pub enum Wish {
    /// Status of a Service.
    Service {
        /// What it should say.
        status: ServiceStatus,
        /// The version it was decided on.
        version: ResourceVersion,
        /// Whether the object must change although its status says so already.
        fence: bool,
    },
    /// Status of a pool.
    Pool(PoolStatus),
    /// Status of an Ingress.
    Ingress(Vec<IpAddr>),
    /// The Service of the shared Ingress entry.
    EntryService(EntryService),
    /// An EndpointSlice of it.
    EntrySlice(EntrySlice),
    /// Some conditions of an object, by type.
    Conditions {
        /// Which object.
        object: ObjectRef,
        /// The conditions.
        conditions: BTreeMap<String, Condition>,
    },
    /// What a node announces.
    L2Status(L2Status),
    /// How a session is.
    BgpSession(Box<BgpReport>),
    /// The peers a Service is advertised to.
    BgpStatus(BTreeSet<PeerName>),
    /// What a reporter says of the configuration.
    Configuration(ConfigurationState),
    /// Whom a node cannot see.
    Membership(BTreeSet<NodeName>),
    /// The Events of this writer.
    Events,
    /// Nothing any more.
    Nothing,
}

impl From<Write> for Request {
    fn from(write: Write) -> Self {
        match write {
            Write::ServiceStatus { service, status, version, fence } => {
                Self::Say(Place::Service(service), Wish::Service { status, version, fence })
            }
            Write::PoolStatus { pool, status } => Self::Say(Place::Pool(pool), Wish::Pool(status)),
            Write::IngressStatus { ingress, addresses } => Self::Say(Place::Ingress(ingress), Wish::Ingress(addresses)),
            Write::EntryService { service, wish } => {
                Self::Say(Place::EntryService(service), wish.map_or(Wish::Nothing, Wish::EntryService))
            }
            Write::EntrySlice { service, family, wish } => {
                Self::Say(Place::EntrySlice { service, family }, wish.map_or(Wish::Nothing, Wish::EntrySlice))
            }
            Write::Condition { object, condition } => {
                let key = ObjectKey::new(object.namespace.as_deref().unwrap_or_default(), object.name.as_str());
                let place = Place::Conditions { kind: object.kind.clone(), key };
                let conditions = BTreeMap::from([(condition.kind.clone(), condition)]);
                Self::Say(place, Wish::Conditions { object, conditions })
            }
            Write::L2Status { service, node, status } => {
                Self::Say(Place::L2Status { node, service }, status.map_or(Wish::Nothing, Wish::L2Status))
            }
            Write::BgpStatus { service, node, peers } => {
                let wish = if peers.is_empty() { Wish::Nothing } else { Wish::BgpStatus(peers) };
                Self::Say(Place::BgpStatus { node, service }, wish)
            }
            Write::BgpSession { peer, node, status } => {
                // The times are added by whoever keeps them: `bgp::Clocked`.
                let report = |session: Box<_>| BgpReport { session: *session, since: String::new(), closed_at: None };
                let wish = status.map(report).map(Box::new).map_or(Wish::Nothing, Wish::BgpSession);
                Self::Say(Place::BgpSession { node, peer }, wish)
            }
            Write::Membership { node, unreachable } => {
                Self::Say(Place::Membership { node }, Wish::Membership(unreachable))
            }
            Write::Configuration { reporter, state } => {
                Self::Say(Place::Configuration(reporter), Wish::Configuration(state))
            }
            Write::Event(event) => Self::Tell(event),
            Write::Lease { node, lease } => Self::Renew((node, lease)),
        }
    }
}

impl Wish {
    /// This wish in place of an older one that still waits. Conditions of other types are wished for all the same.
    fn over(self, waiting: Option<Self>) -> Self {
        match (self, waiting) {
            (Self::Conditions { object, conditions }, Some(Self::Conditions { conditions: mut all, .. })) => {
                all.extend(conditions);
                Self::Conditions { object, conditions: all }
            }
            (newer, _) => newer,
        }
    }
}

/// The object that says a wish, as it stands in a file or is applied; `None` for what is no object of its own.
fn body(place: &Place, wish: &Wish, before: &Conditions, now: Timestamp) -> Option<Value> {
    let ingress = |addresses: &[IpAddr]| -> Value { addresses.iter().map(|ip| json!({ "ip": ip })).collect() };
    let body = match (place, wish) {
        (Place::Service(key), Wish::Service { status, version, fence }) => {
            let mut object = object("v1", "Service", key);
            if let Some(pool) = &status.pool {
                object["metadata"]["annotations"] = json!({ FROM_POOL_ANNOTATION: pool.as_str() });
            }
            if version.is_known() {
                object["metadata"]["resourceVersion"] = json!(version.as_str());
                if *fence {
                    // No fence before this one can have had the same value.
                    object["metadata"]["annotations"][FENCE_ANNOTATION] = json!(version.as_str());
                }
            }
            object["status"] = json!({
                "loadBalancer": { "ingress": ingress(&status.addresses) },
                "conditions": before.next(status.condition.iter(), now),
            });
            object
        }
        (Place::Pool(key), Wish::Pool(status)) => {
            let mut object = object(OUR_API, "IPAddressPool", key);
            object["status"] = json!({
                "assignedIPv4": status.assigned_ipv4,
                "assignedIPv6": status.assigned_ipv6,
                "availableIPv4": status.available_ipv4,
                "availableIPv6": status.available_ipv6,
                "usedBy": status.used_by.iter().map(address_use).collect::<Vec<_>>(),
                "conditions": before.next(status.conditions.iter(), now),
            });
            object
        }
        (Place::Ingress(key), Wish::Ingress(addresses)) => {
            let mut object = object("networking.k8s.io/v1", "Ingress", key);
            object["status"] = json!({ "loadBalancer": { "ingress": ingress(addresses) } });
            object
        }
        (Place::EntryService(key), Wish::EntryService(service)) => entry::service_body(key, service),
        (Place::EntrySlice { service, family }, Wish::EntrySlice(slice)) => entry::slice_body(service, *family, slice),
        (Place::Conditions { key, .. }, Wish::Conditions { object: about, conditions }) => {
            let mut object = object(&about.api_version, &about.kind, key);
            object["status"] = json!({ "conditions": before.merged(conditions, now) });
            object
        }
        (Place::L2Status { node, service }, Wish::L2Status(status)) => {
            let name = format!("l2-{node}-{}-{}", service.namespace, service.name);
            let interfaces = status.interfaces.iter().map(|name| json!({ "name": name.as_str() }));
            let conflicts = status.conflicts.iter().map(|L2Conflict { address, interface, mac }| {
                json!({ "address": address, "interface": interface.as_str(), "mac": mac })
            });
            json!({
                "apiVersion": OUR_API,
                "kind": "ServiceL2Status",
                "metadata": { "name": name, "namespace": &*service.namespace },
                "spec": {},
                "status": {
                    "node": node.as_str(),
                    "serviceName": &*service.name,
                    "serviceNamespace": &*service.namespace,
                    "pool": status.pool.as_str(),
                    "addresses": status.addresses,
                    "interfaces": interfaces.collect::<Vec<_>>(),
                    "transitions": status.transitions,
                    "conflicts": conflicts.collect::<Vec<_>>(),
                },
            })
        }
        (Place::BgpSession { node, peer }, Wish::BgpSession(report)) => bgp::session_body(node, peer, report),
        (Place::BgpStatus { node, service }, Wish::BgpStatus(peers)) => bgp::status_body(node, service, peers),
        (Place::Configuration(reporter), Wish::Configuration(state)) => configuration(reporter, state, before, now),
        (Place::Membership { node }, Wish::Membership(unreachable)) => json!(Membership::new(node, unreachable)),
        _ => return None,
    };
    Some(body)
}

fn address_use(from: &AddressUse) -> Value {
    let services: Vec<String> = from.services.iter().map(ToString::to_string).collect();
    json!({ "address": from.address, "services": services })
}

fn configuration(reporter: &Reporter, state: &ConfigurationState, before: &Conditions, now: Timestamp) -> Value {
    let labels = match reporter {
        Reporter::Controller => json!({ "ferrogate.io/component-type": "controller" }),
        // A name that is too long for a label stands in the object's own name all the same.
        Reporter::Speaker(node) if node.as_str().len() > MAX_LABEL => {
            json!({ "ferrogate.io/component-type": "speaker" })
        }
        Reporter::Speaker(node) => {
            json!({ "ferrogate.io/component-type": "speaker", "ferrogate.io/node-name": node.as_str() })
        }
    };
    json!({
        "apiVersion": OUR_API,
        "kind": "ConfigurationState",
        "metadata": { "name": reporter.name(), "labels": labels },
        "spec": {},
        "status": {
            "result": match state.judgement {
                Judgement::Valid => "Valid",
                Judgement::Invalid => "Invalid",
                Judgement::Unknown => "Unknown",
            },
            "errorSummary": state.summary,
            "conditions": before.next(std::iter::once(&state.condition()), now),
        },
    })
}

fn object(api_version: &str, kind: &str, key: &ObjectKey) -> Value {
    let mut object = json!({ "apiVersion": api_version, "kind": kind, "metadata": { "name": &*key.name } });
    if !key.namespace.is_empty() {
        object["metadata"]["namespace"] = json!(&*key.namespace);
    }
    object
}

/// The conditions an object has, by type.
#[derive(Clone, Debug, Default)]
pub struct Conditions(BTreeMap<String, Value>);

impl Conditions {
    /// Those of an object's status.
    pub fn of(object: &Value) -> Self {
        Self::listed(object.pointer("/status/conditions").cloned())
    }

    /// Those of a list; none where it is no list.
    pub fn listed(list: Option<Value>) -> Self {
        let Some(Value::Array(list)) = list else { return Self::default() };
        let named = |one: Value| Some((one.get("type")?.as_str()?.to_owned(), one));
        Self(list.into_iter().filter_map(named).collect())
    }

    /// As facts.
    pub fn facts(&self) -> Vec<Condition> {
        let read = self.0.values().filter_map(|one| serde_json::from_value::<meta::Condition>(one.clone()).ok());
        read.map(pool::condition).collect()
    }

    /// These conditions alone; one whose status stays keeps the time of its last change.
    fn next<'a>(&self, conditions: impl Iterator<Item = &'a Condition>, now: Timestamp) -> Vec<Value> {
        conditions.map(|condition| self.timed(condition, now)).collect()
    }

    /// These conditions beside the ones of other types.
    fn merged(&self, conditions: &BTreeMap<String, Condition>, now: Timestamp) -> Vec<Value> {
        let mut all = self.0.clone();
        for (kind, condition) in conditions {
            all.insert(kind.clone(), self.timed(condition, now));
        }
        all.into_values().collect()
    }

    fn timed(&self, condition: &Condition, now: Timestamp) -> Value {
        let status = if condition.holds { "True" } else { "False" };
        let before = self.0.get(&condition.kind).filter(|before| before["status"] == status);
        let kept = before.and_then(|before| before["lastTransitionTime"].as_str());
        json!({
            "type": condition.kind,
            "status": status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": condition.observed_generation,
            "lastTransitionTime": kept.map_or_else(|| seconds(now), str::to_owned),
        })
    }
}

/// A time as Kubernetes writes it, to the second.
fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state;

    proptest! {
        // Lines that say something, as every judgement writes them.
        #[test]
        fn whatever_a_summary_says_reads_back_as_it_was_written(
            summary in "([!-~äλ][ -~äλ\\t]{0,29}(\n[!-~äλ][ -~äλ\\t]{0,29}){0,5})?"
        ) {
            let reporter = Reporter::Controller;
            let said = ConfigurationState { judgement: Judgement::Invalid, summary };
            let body = configuration(&reporter, &said, &Conditions::default(), Timestamp::now());

            let read = state::read_configuration(&files::text(&body));

            prop_assert_eq!(read, Ok(said));
        }
    }
}
