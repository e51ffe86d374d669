//! The requests that carry out wishes and Events at an API server: server-side apply of what we own, nothing else.

use std::{collections::BTreeMap, sync::Arc};

use ::kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams},
};
use ferrogate_core::{
    configuration::Reporter,
    model::{NodeName, ObjectKey},
    write::{Event, Severity},
};
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{api::events::v1 as events, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::{
    kube::{Live, LiveObjects, resource},
    objects::{Id, Kind, OUR_API},
    state::Place,
    write::{Conditions, Wish, adopt, body, entry},
};

/// The field manager of what a controller says.
pub const CONTROLLER: &str = "ferrogate-controller";
/// The field manager of what a speaker says.
pub const SPEAKER: &str = "ferrogate-speaker";

/// The label that says which node's speaker reports; absent where the name is too long for one.
pub const NODE_LABEL: &str = "ferrogate.io/node";
/// The longest value of a label.
pub const MAX_LABEL: usize = 63;

/// How many Events are known for counting.
const MAX_TOLD: usize = 256;

/// Who writes, and what must be known for it.
pub struct Requests {
    client: Client,
    /// Where the reports of speakers live.
    namespace: String,
    /// Who says so, in Events.
    reporter: &'static str,
    identity: String,
    /// Whether MetalLB's words are said beside ours.
    beside_metallb: bool,
    live: watch::Receiver<LiveObjects>,
    told: BTreeMap<Event, Told>,
}

/// An Event that stands at the API server.
#[derive(Clone, Debug)]
struct Told {
    name: String,
    count: i32,
}

impl Requests {
    /// One that reports as `reporter` and is told apart from others of its kind by `identity`.
    pub fn new(
        client: Client,
        namespace: String,
        reporter: &'static str,
        identity: String,
        live: watch::Receiver<LiveObjects>,
    ) -> Self {
        Self { client, namespace, reporter, identity, beside_metallb: false, live, told: BTreeMap::new() }
    }

    /// The same, which says in MetalLB's words too what MetalLB would say.
    pub fn beside_metallb(self, beside_metallb: bool) -> Self {
        Self { beside_metallb, ..self }
    }

    /// Begins anew with an Event. Returns whether it was to be counted where it should have stood already.
    pub fn forget(&mut self, event: &Event) -> bool {
        self.told.remove(event).is_some_and(|told| told.count > 1)
    }

    /// Says something in one place.
    pub fn say(&self, place: &Place, wish: &Wish) -> BoxFuture<'static, Result<(), ::kube::Error>> {
        let now = Timestamp::now();
        let none = Conditions::default();
        match (place, wish) {
            (Place::Service(key), _) => self.status_of(Kind::Service, key, place, wish, now),
            (Place::Pool(key), _) => self.status_of(Kind::IpAddressPool, key, place, wish, now),
            (Place::Ingress(key), _) => self.status_of(Kind::Ingress, key, place, wish, now),
            (Place::EntryService(key), wish) => {
                let live = self.live(&Id::keyed(Kind::Service, key.clone()));
                entry::service(self.client.clone(), key, wish, live)
            }
            (Place::EntrySlice { service, family }, wish) => entry::slice(self.client.clone(), service, *family, wish),
            (Place::Conditions { key, .. }, Wish::Conditions { object, conditions }) => {
                let kind = object.kind.as_str();
                if object.api_version != OUR_API && kind != "Service" {
                    // Nobody looks for conditions there, and most have no place for them. Its Event says the same.
                    return futures::future::ready(Ok(())).boxed();
                }
                let live = Id::of(object).and_then(|id| self.live(&id));
                let before = live.map(|live| live.conditions()).unwrap_or_default();
                let api = self.api(&object.api_version, kind, Some(&key.namespace));
                let mut applies = Vec::new();
                for condition in conditions.values() {
                    let body = json!({
                        "apiVersion": object.api_version,
                        "kind": kind,
                        "metadata": { "name": &*key.name, "namespace": &*key.namespace },
                        "status": { "conditions": before.next(std::iter::once(condition), now) },
                    });
                    // A manager of its own for each type: applying one must not take the others away.
                    applies.push((format!("{CONTROLLER}-{}", condition.kind), body));
                }
                let name = key.name.to_string();
                async move {
                    for (manager, body) in applies {
                        apply_status(&api, &name, &manager, &body).await?;
                    }
                    Ok(())
                }
                .boxed()
            }
            (Place::L2Status { node, service }, wish) => {
                let name = report_name("l2", &format!("{node}/{service}"));
                let labels = labels([
                    (NODE_LABEL, node.as_str()),
                    ("ferrogate.io/service-name", &service.name),
                    ("ferrogate.io/service-namespace", &service.namespace),
                ]);
                // It says which node had the Service last, and outlives that node.
                self.report("ServiceL2Status", name, json!({ "labels": labels }), body(place, wish, &none, now))
            }
            (Place::BgpStatus { node, service }, wish) => {
                let name = report_name("bgp", &format!("{node}/{service}"));
                let labels = labels([
                    (NODE_LABEL, node.as_str()),
                    ("ferrogate.io/service-name", &service.name),
                    ("ferrogate.io/service-namespace", &service.namespace),
                ]);
                let metadata = json!({ "labels": labels, "ownerReferences": owner(&self.live, node) });
                self.report("ServiceBGPStatus", name, metadata, body(place, wish, &none, now))
            }
            (Place::BgpSession { node, peer }, wish) => {
                let name = report_name("session", &format!("{node}/{peer}"));
                let labels = labels([(NODE_LABEL, node.as_str()), ("ferrogate.io/peer", peer.as_str())]);
                let metadata = json!({ "labels": labels, "ownerReferences": owner(&self.live, node) });
                self.report("BGPSessionStatus", name, metadata, body(place, wish, &none, now))
            }
            (Place::Configuration(reporter), wish) => self.configuration(reporter, place, wish),
            // The proxies of a cluster learn it from the EndpointSlices, and soon from the speaker itself.
            (Place::Membership { .. } | Place::Conditions { .. } | Place::Events { .. }, _) => {
                futures::future::ready(Ok(())).boxed()
            }
        }
    }

    /// What a speaker says in an object of its own, or that it takes it back.
    fn report(
        &self,
        kind: &str,
        name: String,
        mut metadata: Value,
        body: Option<Value>,
    ) -> BoxFuture<'static, Result<(), ::kube::Error>> {
        let api = self.api(OUR_API, kind, Some(&self.namespace));
        let Some(body) = body else {
            return async move {
                match api.delete(&name, &DeleteParams::default()).await {
                    Ok(_) => Ok(()),
                    Err(::kube::Error::Api(status)) if status.code == 404 => Ok(()),
                    Err(error) => Err(error),
                }
            }
            .boxed();
        };
        metadata["name"] = json!(name);
        metadata["namespace"] = json!(self.namespace);
        let part =
            |field: &str| json!({ "apiVersion": OUR_API, "kind": kind, "metadata": metadata, field: body[field] });
        let (object, status) = (part("spec"), part("status"));
        async move {
            let parameters = PatchParams::apply(SPEAKER).force();
            api.patch(&name, &parameters, &Patch::Apply(&object)).await?;
            apply_status(&api, &name, SPEAKER, &status).await.map(|_| ())
        }
        .boxed()
    }

    fn configuration(
        &self,
        reporter: &Reporter,
        place: &Place,
        wish: &Wish,
    ) -> BoxFuture<'static, Result<(), ::kube::Error>> {
        let name = reporter.name();
        let (manager, owner) = match reporter {
            Reporter::Controller => (CONTROLLER, None),
            // It goes with its node.
            Reporter::Speaker(node) => (SPEAKER, Some(owner(&self.live, node))),
        };
        let api = self.api(OUR_API, "ConfigurationState", Some(&self.namespace));
        let (namespace, place, wish) = (self.namespace.clone(), place.clone(), wish.clone());
        async move {
            let before = api.get_opt(&name).await?.map(|object| Conditions::of(&object.data)).unwrap_or_default();
            let Some(mut object) = body(&place, &wish, &before, Timestamp::now()) else { return Ok(()) };
            object["metadata"]["namespace"] = json!(namespace);
            let status = object.clone();
            if let Some(owner) = owner {
                object["metadata"]["ownerReferences"] = owner;
            }
            if let Some(fields) = object.as_object_mut() {
                fields.remove("status");
            }
            api.patch(&name, &PatchParams::apply(manager).force(), &Patch::Apply(&object)).await?;
            apply_status(&api, &name, manager, &status).await.map(|_| ())
        }
        .boxed()
    }

    fn status_of(
        &self,
        kind: Kind,
        key: &ObjectKey,
        place: &Place,
        wish: &Wish,
        now: Timestamp,
    ) -> BoxFuture<'static, Result<(), ::kube::Error>> {
        let live = self.live(&Id::keyed(kind, key.clone()));
        let before = live.map(|live| live.conditions()).unwrap_or_default();
        let Some(mut body) = body(place, wish, &before, now) else { return futures::future::ready(Ok(())).boxed() };
        let is_service = kind == Kind::Service;
        if is_service && self.beside_metallb {
            adopt::note(&mut body);
        }
        let api = self.api(kind.api_version(), kind.name(), Some(&key.namespace));
        let name = key.name.to_string();
        async move {
            let answer = apply_status(&api, &name, CONTROLLER, &body).await?;
            if is_service { adopt::clear(&api, &name, CONTROLLER, &body, &answer).await } else { Ok(()) }
        }
        .boxed()
    }

    /// Tells an Event, or counts it where it was told before.
    pub fn tell(&mut self, event: &Event) -> BoxFuture<'static, Result<(), ::kube::Error>> {
        let now = Timestamp::now();
        let object = &event.object;
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<events::Event> = Api::namespaced(self.client.clone(), &namespace);
        if self.told.len() >= MAX_TOLD && !self.told.contains_key(event) {
            // An equal one that follows stands there twice then, with counts of their own.
            self.told.clear();
        }
        if let Some(told) = self.told.get_mut(event) {
            told.count = told.count.saturating_add(1);
            let name = told.name.clone();
            let series = json!({ "series": { "count": told.count, "lastObservedTime": MicroTime(now) } });
            return async move { api.patch(&name, &PatchParams::default(), &Patch::Merge(&series)).await.map(|_| ()) }
                .boxed();
        }
        let name = event_name(&object.name, now);
        self.told.insert(event.clone(), Told { name: name.clone(), count: 1 });
        let live = Id::of(object).and_then(|id| self.live(&id));
        let regarding = k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some(object.api_version.clone()),
            kind: Some(object.kind.clone()),
            namespace: object.namespace.clone(),
            name: Some(object.name.clone()),
            uid: live.map(|live| live.uid.clone()),
            ..Default::default()
        };
        let event = events::Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..Default::default() },
            action: Some(event.reason.clone()),
            event_time: Some(MicroTime(now)),
            note: Some(shortened(&event.message, MAX_NOTE)),
            reason: Some(event.reason.clone()),
            regarding: Some(regarding),
            reporting_controller: Some(format!("ferrogate.io/{}", self.reporter)),
            reporting_instance: Some(shortened(&self.identity, MAX_INSTANCE)),
            type_: Some(match event.severity {
                Severity::Normal => "Normal".to_owned(),
                Severity::Warning => "Warning".to_owned(),
            }),
            ..Default::default()
        };
        async move { api.create(&PostParams::default(), &event).await.map(|_| ()) }.boxed()
    }

    /// What the API server has of an object now, as far as the watch has come.
    pub fn live(&self, id: &Id) -> Option<Arc<Live>> {
        self.live.borrow().get(id).cloned()
    }

    fn api(&self, api_version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let resource = resource(api_version, kind);
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }
}

/// The `ownerReferences` of what goes with its node; none where the node is not known.
pub fn owner(live: &watch::Receiver<LiveObjects>, node: &NodeName) -> Value {
    let live = live.borrow().get(&Id::new(Kind::Node, "", node.as_str())).cloned();
    let owner = |live: Arc<Live>| json!({ "apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": live.uid });
    live.map(owner).into_iter().collect()
}

/// The longest name of an object.
const MAX_NAME: usize = 253;
/// The longest `note` the API server takes.
const MAX_NOTE: usize = 1024;
/// The longest `reportingInstance` it takes.
const MAX_INSTANCE: usize = 128;

async fn apply_status(
    api: &Api<DynamicObject>,
    name: &str,
    manager: &str,
    body: &Value,
) -> Result<DynamicObject, ::kube::Error> {
    let parameters = PatchParams::apply(manager).force();
    api.patch_status(name, &parameters, &Patch::Apply(body)).await
}

/// The name of the object that says something about these: short enough whatever the names are.
pub fn report_name(kind: &str, about: &str) -> String {
    let digest = Sha256::digest(about);
    let hex: String = digest.iter().take(10).map(|byte| format!("{byte:02x}")).collect();
    format!("{kind}-{hex}")
}

/// Labels whose values are short enough to be one.
fn labels<const N: usize>(all: [(&str, &str); N]) -> BTreeMap<String, String> {
    let fitting = all.into_iter().filter(|(_, value)| value.len() <= MAX_LABEL);
    fitting.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The name of an Event about an object of this name, whatever length that has.
fn event_name(about: &str, now: Timestamp) -> String {
    let told_at = format!("{:x}", now.as_nanosecond());
    let about = shortened(about, MAX_NAME.saturating_sub(told_at.len() + 1));
    // Cut off in the middle, no part of a name may end so.
    format!("{}.{told_at}", about.trim_end_matches(['.', '-']))
}

fn shortened(text: &str, bytes: usize) -> String {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::read::is_dns_name;

    #[test]
    fn an_event_about_an_object_with_the_longest_name_has_a_name_that_the_api_server_takes() {
        let now = Timestamp::now();
        let long = format!("{}.{}-{}", "a".repeat(63), "b".repeat(171), "c".repeat(17));

        for about in ["web", "a.b-c", &long] {
            let name = event_name(about, now);

            assert!(name.len() <= MAX_NAME && is_dns_name(&name), "{name}");
            assert!(name.starts_with(&about[..about.len().min(200)]), "{name}");
        }
    }
}
