//! The Kubernetes source: watches, to snapshots.
//!
//! Every kind is listed and watched by itself; a list replaces all that was known of its kind, so that a deletion
//! nobody told us of is found then. A watch that fails is tried again for ever and clears nothing: what was known
//! last stays in force, and a problem says since when it is old.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ::kube::{
    Api, Client,
    api::{ApiResource, GroupVersionKind},
    runtime::{WatchStreamExt, watcher},
};
use ferrogate_core::{
    configuration::Reporter,
    model::{
        NodeName, ObjectRef, ResourceVersion,
        entry::{COMPONENT_LABEL, PROXY_COMPONENT},
    },
    snapshot::{Fault, Origin, Problem, Snapshot},
};
use futures::{
    StreamExt,
    stream::{BoxStream, SelectAll},
};
use imbl::OrdMap;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Role,
    admission::Inquiry,
    heartbeat,
    objects::{Id, Kind, OUR_API, Reading, Spelling},
    state,
    translate::{self, Entry, Remembered, Translator, secret::BASIC_AUTH},
    write::{Conditions, MAX_LABEL, NODE_LABEL},
};

mod object;

use object::Object;

/// How long a burst of changes is gathered before the next snapshot.
const SETTLE: Duration = Duration::from_millis(5);

/// How long after its last error a watch counts as recovered. The pause between two attempts is shorter.
const RECOVERED: Duration = Duration::from_secs(60);

/// The kinds that a proxy watches: what it serves, and nothing it could learn secrets from.
const OF_PROXY: [Kind; 5] = [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::IngressClass, Kind::Ingress];

/// The kinds that everyone else watches.
const KINDS: [Kind; 12] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::IngressClass,
    Kind::Ingress,
    Kind::IpAddressPool,
    Kind::L2Advertisement,
    Kind::BgpAdvertisement,
    Kind::BgpPeer,
    Kind::BfdProfile,
    Kind::Community,
];

/// Why the API server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// There is no usable kubeconfig and no service account.
    #[error("cannot tell where the API server is; set KUBECONFIG or run in a pod with a service account")]
    Config(#[source] ::kube::config::InferConfigError),
    /// What it says cannot be used, a certificate say.
    #[error("cannot connect to API servers as the kubeconfig or service account says")]
    Client(#[source] ::kube::Error),
    /// The process was told to stop before everything was listed.
    #[error("stopped before the API server had listed everything")]
    Stopped,
}

/// How long a connection may be silent, watches included, before it counts as dead; they hear a bookmark every minute.
const SILENCE: Duration = Duration::from_secs(300);

/// A client for the API server that KUBECONFIG or the service account of the pod names.
pub async fn client() -> Result<Client, KubernetesError> {
    let mut config = ::kube::Config::infer().await.map_err(KubernetesError::Config)?;
    // Whoever asks decides when to ask again: a Lease must not be renewed too late.
    config.default_retry = false;
    config.read_timeout = Some(SILENCE);
    Client::try_from(config).map_err(KubernetesError::Client)
}

/// What a write must know of the object it is about.
#[derive(Debug)]
pub struct Live {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: ResourceVersion,
    /// `status.conditions` as JSON. They are looked at when the object is written, and as values they take many times
    /// the room until then.
    conditions: Box<str>,
}

impl Live {
    /// `status.conditions`.
    pub fn conditions(&self) -> Conditions {
        Conditions::listed(serde_json::from_str(&self.conditions).ok())
    }
}

/// The objects as the API server has them now, as far as writes must know.
pub type LiveObjects = OrdMap<Id, Arc<Live>>;

/// What a process of this role watches.
fn subjects(role: &Role, honours_metallb: bool) -> BTreeSet<Subject> {
    let kinds = |kinds: &[Kind]| kinds.iter().copied().map(Subject::Kind).collect::<BTreeSet<_>>();
    let mut subjects = match role {
        Role::Proxy(_) => return kinds(&OF_PROXY),
        Role::Controller | Role::Speaker { .. } | Role::Reader(_) | Role::BgpReader | Role::Standalone(_) => {
            kinds(&KINDS)
        }
    };
    subjects.insert(Subject::Report(Report::L2));
    if matches!(role, Role::Speaker { .. } | Role::BgpReader) {
        subjects.extend([Subject::Report(Report::Bgp), Subject::Report(Report::Session)]);
    }
    let reads_leases = matches!(role, Role::Reader(_)) || role.keeps_lease();
    subjects.extend(reads_leases.then_some(Subject::Leases));
    subjects.extend(reporter(role).map(|_| Subject::Configuration));
    let metallb = KINDS.into_iter().filter(|kind| honours_metallb && kind.is_configuration());
    subjects.extend(metallb.map(Subject::Metallb));
    if role.decides() {
        subjects.insert(Subject::Kind(Kind::Pod));
    }
    if role.speaks() {
        subjects.insert(Subject::Secrets(Spelling::Ours));
        subjects.extend(honours_metallb.then_some(Subject::Secrets(Spelling::Metallb)));
    }
    subjects
}

/// Whose report on the configuration a process of this role writes.
fn reporter(role: &Role) -> Option<Reporter> {
    match role {
        Role::Controller => Some(Reporter::Controller),
        Role::Speaker { node, .. } => Some(Reporter::Speaker(node.clone())),
        Role::Reader(_) | Role::BgpReader | Role::Proxy(_) | Role::Standalone(_) => None,
    }
}

/// What a watch has to say.
type Told = (Subject, Result<watcher::Event<Object>, watcher::Error>);

/// What one watch is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Kind(Kind),
    /// Configuration in MetalLB's words, which need not be there at all.
    Metallb(Kind),
    /// The passwords of peers, beside the peers in these words.
    Secrets(Spelling),
    /// What speakers report.
    Report(Report),
    /// What this process itself says of the configuration.
    Configuration,
    /// By what speakers know each other.
    Leases,
}

/// What a speaker reports, in an object of its own for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Report {
    /// That it announces a Service by layer 2.
    L2,
    /// To which peers it advertises a Service.
    Bgp,
    /// How its session with a peer is.
    Session,
}

impl Report {
    fn kind(self) -> &'static str {
        match self {
            Self::L2 => "ServiceL2Status",
            Self::Bgp => "ServiceBGPStatus",
            Self::Session => "BGPSessionStatus",
        }
    }
}

impl Subject {
    fn kind(self) -> &'static str {
        match self {
            Self::Kind(kind) | Self::Metallb(kind) => kind.name(),
            Self::Secrets(_) => Kind::Secret.name(),
            Self::Report(report) => report.kind(),
            Self::Configuration => "ConfigurationState",
            Self::Leases => "Lease",
        }
    }

    fn spelling(self) -> Spelling {
        match self {
            Self::Metallb(_) => Spelling::Metallb,
            Self::Kind(_) | Self::Secrets(_) | Self::Report(_) | Self::Configuration | Self::Leases => Spelling::Ours,
        }
    }

    /// Which kind the objects are of that are read as such; none where only a report is.
    fn read_as(self) -> Option<Kind> {
        match self {
            Self::Kind(kind) | Self::Metallb(kind) => Some(kind),
            Self::Secrets(_) => Some(Kind::Secret),
            Self::Report(_) | Self::Configuration | Self::Leases => None,
        }
    }

    /// What the translator knows it by.
    fn source(self) -> String {
        let beside = if self == Self::Secrets(Spelling::Metallb) { "/metallb" } else { "" };
        format!("{}/{}{beside}", self.api_version(), self.kind())
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::Kind(kind) => kind.api_version(),
            Self::Metallb(kind) => kind.metallb_api_version(),
            Self::Secrets(_) => Kind::Secret.api_version(),
            Self::Report(_) | Self::Configuration => OUR_API,
            Self::Leases => heartbeat::API,
        }
    }

    /// What is wrong with the watch itself.
    fn problem(self, detail: String) -> (Origin, Problem) {
        let object = ObjectRef {
            api_version: self.api_version().to_owned(),
            kind: self.kind().to_owned(),
            namespace: None,
            name: "*".to_owned(),
        };
        let fault = Fault::Unreadable { detail };
        (Origin::Cluster(object), Problem { object: None, generation: 0, field: String::new(), fault })
    }
}

/// How a kind is named in the paths of the API server.
pub fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    // Every kind we read or write has the plural that English would give it, and this knows those.
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// Asks for lists of every Service, numbered from 1.
#[derive(Debug)]
pub struct Relist {
    /// The list that is asked for.
    pub wanted: watch::Sender<u64>,
    /// The list that the latest snapshot rests on: it was begun after it was asked for.
    pub done: watch::Receiver<u64>,
}

/// The other end of [`Relist`].
#[derive(Debug)]
pub struct Relisting {
    wanted: watch::Receiver<u64>,
    done: watch::Sender<u64>,
    /// What the list under way was asked for as.
    running: Option<u64>,
    /// What is in the next snapshot.
    listed: Option<u64>,
    /// Ends the watch that the list replaces.
    stop: Option<oneshot::Sender<()>>,
}

impl Relist {
    /// Both ends.
    pub fn pair() -> (Self, Relisting) {
        let ((wanted, wanted_out), (done_in, done)) = (watch::channel(0), watch::channel(0));
        (
            Self { wanted, done },
            Relisting { wanted: wanted_out, done: done_in, running: None, listed: None, stop: None },
        )
    }
}

/// What a list has shown so far.
#[derive(Debug, Default)]
struct Listing {
    ids: BTreeSet<Id>,
    /// Names of what is no object of ours to read.
    names: BTreeSet<String>,
    /// Leases, which mean something only all together.
    leases: Vec<Object>,
}

/// Follows the API server.
pub struct Watcher {
    client: Client,
    namespace: String,
    translator: Translator,
    inquiries: mpsc::Receiver<Inquiry>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    live: watch::Sender<LiveObjects>,
    /// The state of `live` to come.
    known: LiveObjects,
    listing: BTreeMap<Subject, Listing>,
    relisting: Relisting,
    unlisted: BTreeSet<Subject>,
    failing: BTreeMap<Subject, Instant>,
    /// Names of the objects in which speakers report.
    reports: BTreeMap<Report, BTreeSet<String>>,
    /// Whose Lease each of these names is.
    leases: BTreeMap<String, NodeName>,
    /// The node whose speaker this process is, if it is one.
    speaker: Option<NodeName>,
    reporter: Option<Reporter>,
}

impl Watcher {
    /// A watcher that has listed nothing yet. Our own kinds are read in `namespace` only.
    #[allow(clippy::too_many_arguments, reason = "each is one thing that only the caller has, and there is one caller")]
    pub fn new(
        client: Client,
        namespace: String,
        role: &Role,
        translator: Translator,
        inquiries: mpsc::Receiver<Inquiry>,
        snapshots: watch::Sender<Arc<Snapshot>>,
        live: watch::Sender<LiveObjects>,
        relisting: Relisting,
    ) -> Self {
        let unlisted = subjects(role, translator.rules().metallb.is_some());
        Self {
            client,
            namespace,
            translator,
            inquiries,
            snapshots,
            live,
            known: LiveObjects::new(),
            listing: BTreeMap::new(),
            relisting,
            unlisted,
            failing: BTreeMap::new(),
            reports: BTreeMap::new(),
            leases: BTreeMap::new(),
            speaker: match role {
                Role::Speaker { node, .. } => Some(node.clone()),
                Role::Controller | Role::Reader(_) | Role::BgpReader | Role::Proxy(_) | Role::Standalone(_) => None,
            },
            reporter: reporter(role),
        }
    }

    /// Lists everything, says so on `ready`, and follows it until `finish`.
    pub async fn run(mut self, ready: oneshot::Sender<()>, finish: CancellationToken) {
        let mut ready = Some(ready);
        let mut events = SelectAll::new();
        for subject in self.unlisted.clone() {
            events.push(self.follow(subject));
        }
        let mut publish_at: Option<Instant> = None;
        loop {
            let recovered_at = self.failing.values().min().map(|at| *at + RECOVERED);
            let deadline = publish_at.into_iter().chain(recovered_at).min();
            let patience = deadline.unwrap_or_else(|| Instant::now() + RECOVERED);
            tokio::select! {
                () = finish.cancelled() => return,
                Some((subject, event)) = events.next() => {
                    self.take(subject, event);
                    publish_at.get_or_insert_with(|| Instant::now() + SETTLE);
                }
                Ok(()) = self.relisting.wanted.changed() => {
                    self.relisting.running = Some(*self.relisting.wanted.borrow_and_update());
                    events.push(self.follow(Subject::Kind(Kind::Service)));
                }
                // Whoever asked may have gone away in the meantime.
                Some(Inquiry { proposal, reply }) = self.inquiries.recv() => {
                    let _ = reply.send(self.translator.review(proposal));
                }
                () = tokio::time::sleep_until(patience) => {
                    self.forgive();
                    publish_at = None;
                    if self.unlisted.is_empty() {
                        self.publish();
                        if let Some(ready) = ready.take() {
                            // Nobody waits any more when the process is about to stop.
                            let _ = ready.send(());
                        }
                    }
                }
            }
        }
    }

    /// The one namespace in which this is read, if it is one.
    fn namespace(&self, subject: Subject) -> Option<String> {
        let (ours, metallb) = (|| Some(self.namespace.clone()), || self.translator.rules().metallb.clone());
        match subject {
            Subject::Metallb(_) | Subject::Secrets(Spelling::Metallb) => metallb(),
            Subject::Secrets(Spelling::Ours) | Subject::Kind(Kind::Pod) | Subject::Leases => ours(),
            Subject::Kind(_) | Subject::Report(_) | Subject::Configuration => {
                (subject.api_version() == OUR_API).then(ours).flatten()
            }
        }
    }

    /// Lists and watches a kind. What followed Services before ends with it.
    fn follow(&mut self, subject: Subject) -> BoxStream<'static, Told> {
        let resource = resource(subject.api_version(), subject.kind());
        let api: Api<Object> = match self.namespace(subject) {
            Some(namespace) => Api::namespaced_with(self.client.clone(), &namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        // No version is named for the list, so that it is as things are and not as some cache has them.
        let config = match subject {
            Subject::Kind(Kind::Pod) => {
                watcher::Config::default().labels(&format!("{COMPONENT_LABEL}={PROXY_COMPONENT}"))
            }
            // Each speaker writes one for every Service, and takes back none but its own.
            Subject::Report(Report::Bgp | Report::Session) => match &self.speaker {
                Some(node) if node.as_str().len() <= MAX_LABEL => {
                    watcher::Config::default().labels(&format!("{NODE_LABEL}={node}"))
                }
                _ => watcher::Config::default(),
            },
            // Whatever else lies there is nothing that this process should hold.
            Subject::Secrets(_) => watcher::Config::default().fields(&format!("type={BASIC_AUTH}")),
            Subject::Leases => {
                let (label, value) = heartbeat::LABEL;
                watcher::Config::default().labels(&format!("{label}={value}"))
            }
            Subject::Configuration => {
                let name = self.reporter.as_ref().map(Reporter::name).unwrap_or_default();
                watcher::Config::default().fields(&format!("metadata.name={name}"))
            }
            _ => watcher::Config::default(),
        };
        let stream = watcher(api, config).default_backoff().map(move |event| (subject, event));
        if subject != Subject::Kind(Kind::Service) {
            return stream.boxed();
        }
        let (stop, stopped) = oneshot::channel();
        self.relisting.stop = Some(stop);
        stream.take_until(stopped).boxed()
    }

    fn take(&mut self, subject: Subject, event: Result<watcher::Event<Object>, watcher::Error>) {
        match event {
            Ok(watcher::Event::Init) => {
                self.listing.insert(subject, Listing::default());
            }
            Ok(watcher::Event::InitApply(object)) => self.list(subject, object),
            Ok(watcher::Event::InitDone) => {
                let listing = self.listing.remove(&subject).unwrap_or_default();
                self.end_list(subject, listing);
                self.unlisted.remove(&subject);
                self.recover(subject);
            }
            Ok(watcher::Event::Apply(object)) => {
                self.apply(subject, object);
                self.recover(subject);
            }
            Ok(watcher::Event::Delete(object)) => {
                self.delete(subject, &object);
                self.recover(subject);
            }
            Err(error) => self.fail(subject, &error),
        }
    }

    fn fail(&mut self, subject: Subject, error: &watcher::Error) {
        if is_expiry(error) {
            return;
        }
        // MetalLB's kinds need not exist. The watch goes on asking, more and more rarely, and sees them come.
        if subject.spelling() == Spelling::Metallb && code(error) == Some(404) {
            tracing::debug!(kind = subject.kind(), "kind of MetalLB does not exist here");
            self.end_list(subject, Listing::default());
            self.unlisted.remove(&subject);
            self.recover(subject);
            return;
        }
        // Where speakers gossip there are none, and a person who only looks may do without.
        if subject == Subject::Leases && matches!(code(error), Some(403 | 404)) {
            self.unlisted.remove(&subject);
            if self.speaker.is_none() {
                return;
            }
        }
        // Whoever has no passwords there need not let them be read. Peers that need one wait, and all else goes on.
        if matches!(subject, Subject::Secrets(_)) && code(error) == Some(403) {
            self.unlisted.remove(&subject);
        }
        let remedy = remedy(error);
        if self.failing.insert(subject, Instant::now()).is_none() {
            tracing::warn!(kind = subject.kind(), %error, remedy, "watch failed, trying again");
        }
        let problem = subject.problem(format!("{error}; {remedy}; it is tried again"));
        self.translator.set_source_problems(&format!("watch:{}", subject.source()), vec![problem]);
    }

    fn recover(&mut self, subject: Subject) {
        if self.failing.remove(&subject).is_some() {
            tracing::info!(kind = subject.kind(), "watch is back");
            self.translator.set_source_problems(&format!("watch:{}", subject.source()), Vec::new());
        }
    }

    /// A watch that resumed without any news says nothing; it counts as recovered when it has not failed for long.
    fn forgive(&mut self) {
        let now = Instant::now();
        let quiet = self.failing.iter().filter(|(_, at)| **at + RECOVERED <= now).map(|(subject, _)| *subject);
        for subject in quiet.collect::<Vec<_>>() {
            self.recover(subject);
        }
    }

    /// Takes in an object of a list as it comes: kept aside until the list is whole, all of them would take the room of
    /// what is known once more.
    fn list(&mut self, subject: Subject, object: Object) {
        let listing = self.listing.entry(subject).or_default();
        if subject == Subject::Leases {
            listing.leases.push(object);
            return;
        }
        match subject.read_as() {
            Some(kind) => _ = listing.ids.insert(id((kind, subject.spelling()), &object)),
            None => _ = listing.names.insert(object.metadata.name.clone().unwrap_or_default()),
        }
        self.apply(subject, object);
    }

    /// Forgets what a whole list does not name any more.
    fn end_list(&mut self, subject: Subject, listing: Listing) {
        if subject == Subject::Configuration {
            if listing.names.is_empty() {
                self.note_report(None);
            }
            return;
        }
        if subject == Subject::Leases {
            let before = std::mem::take(&mut self.leases);
            listing.leases.iter().for_each(|lease| self.note_lease(lease));
            for (_, gone) in before.into_iter().filter(|(name, _)| !self.leases.contains_key(name)) {
                self.translator.remember_lease(gone, None);
            }
            return;
        }
        if let Subject::Report(report) = subject {
            let before = self.reports.remove(&report).unwrap_or_default();
            for gone in before.difference(&listing.names) {
                self.forget_report(report, gone);
            }
            self.reports.insert(report, listing.names);
            return;
        }
        let Some(kind) = subject.read_as() else { return };
        let (spelling, namespace) = (subject.spelling(), self.namespace(subject));
        let is_here = |id: &Id| namespace.as_ref().is_none_or(|namespace| *id.key.namespace == **namespace);
        let is_of_it = |id: &Id| id.kind == kind && id.spelling == spelling && is_here(id);
        let is_gone = |id: &&Id| is_of_it(id) && !listing.ids.contains(*id);
        let gone: Vec<Id> = self.known.keys().filter(is_gone).cloned().collect();
        for id in gone {
            self.lose(subject, id);
        }
        if subject == Subject::Kind(Kind::Service) {
            self.relisting.listed = self.relisting.running.take().or(self.relisting.listed);
        }
    }

    fn apply(&mut self, subject: Subject, object: Object) {
        match (subject.read_as(), subject) {
            (Some(kind), _) => {
                let kind = (kind, subject.spelling());
                self.know(kind, &object);
                if let Some((origin, reading)) = self.read(kind, object) {
                    self.translator.apply(&subject.source(), origin, reading);
                }
            }
            (None, Subject::Report(report)) => {
                let name = object.metadata.name.clone().unwrap_or_default();
                // One without a status has just been made; what it is about follows.
                let status = object.status().cloned().unwrap_or_default();
                if self.note_report_of(report, &name, status).is_ok() {
                    self.reports.entry(report).or_default().insert(name);
                }
            }
            (None, Subject::Leases) => self.note_lease(&object),
            (None, _) => self.note_report(Some(&object)),
        }
    }

    fn delete(&mut self, subject: Subject, object: &Object) {
        match (subject.read_as(), subject) {
            (Some(kind), _) => self.lose(subject, id((kind, subject.spelling()), object)),
            (None, Subject::Report(report)) => {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                self.forget_report(report, name);
                self.reports.entry(report).or_default().remove(name);
            }
            (None, Subject::Leases) => {
                let node = object.metadata.name.as_ref().and_then(|name| self.leases.remove(name));
                node.into_iter().for_each(|node| self.translator.remember_lease(node, None));
            }
            (None, _) => self.note_report(None),
        }
    }

    fn note_lease(&mut self, object: &Object) {
        let said = object.data.get("spec").and_then(|spec| heartbeat::read(&object.metadata, spec));
        let Some(((node, lease), name)) = said.zip(object.metadata.name.clone()) else { return };
        self.leases.insert(name, node.clone());
        self.translator.remember_lease(node, Some(lease));
    }

    fn note_report_of(&mut self, report: Report, name: &str, status: Value) -> Result<(), serde_json::Error> {
        match report {
            Report::L2 => {
                let said = state::announcer(serde_json::from_value(status)?);
                self.translator.remember_announcer(name, Some(said));
            }
            Report::Bgp => {
                let said = state::advertiser(serde_json::from_value(status)?);
                self.translator.remember_advertiser(name, said.filter(|said| self.concerns(&said.node)));
            }
            Report::Session => {
                let said = state::reporting(serde_json::from_value(status)?);
                self.translator.remember_session(name, said.filter(|said| self.concerns(&said.node)));
            }
        }
        Ok(())
    }

    fn forget_report(&mut self, report: Report, name: &str) {
        match report {
            Report::L2 => self.translator.remember_announcer(name, None),
            Report::Bgp => self.translator.remember_advertiser(name, None),
            Report::Session => self.translator.remember_session(name, None),
        }
    }

    /// Whether what is reported of BGP on this node is of any use here. The label that the watch asks for may be missing.
    fn concerns(&self, node: &NodeName) -> bool {
        self.speaker.as_ref().is_none_or(|speaker| speaker == node)
    }

    fn note_report(&mut self, object: Option<&Object>) {
        let Some(reporter) = self.reporter.clone() else { return };
        let status = object.and_then(Object::status).cloned();
        let status = status.and_then(|status| serde_json::from_value(status).ok());
        self.translator.remember_configuration(reporter, status.and_then(state::configuration));
    }

    fn know(&mut self, kind: (Kind, Spelling), object: &Object) {
        let id = id(kind, object);
        if id.api_version() == OUR_API {
            let conditions = Conditions::listed(listed(object).cloned()).facts();
            let said = (!conditions.is_empty()).then(|| (id.object(), conditions));
            self.translator.remember_conditions(&source(&id), said);
        }
        if (id.kind, id.spelling) == (Kind::IpAddressPool, Spelling::Ours) {
            // A pool that keeps its last good form has a status that goes on.
            let status = object.status().cloned().unwrap_or_default();
            let status = serde_json::from_value(status).map(translate::pool::observed).unwrap_or_default();
            self.translator.remember_pool(id.key.clone(), Some(Remembered::Known(status)));
        }
        self.known.insert(id, Arc::new(live(object)));
    }

    fn lose(&mut self, subject: Subject, id: Id) {
        self.known.remove(&id);
        self.translator.remember_conditions(&source(&id), None);
        if (id.kind, id.spelling) == (Kind::IpAddressPool, Spelling::Ours) {
            self.translator.remember_pool(id.key.clone(), None);
        }
        self.translator.set_source_problems(&source(&id), Vec::new());
        self.translator.delete(&subject.source(), Origin::Cluster(id.object()), id);
    }

    fn read(&mut self, kind: (Kind, Spelling), object: Object) -> Option<(Origin, Reading)> {
        let id = id(kind, &object);
        let mut value = Value::from(object);
        value["apiVersion"] = Value::from(id.api_version());
        value["kind"] = Value::from(id.kind.name());
        let origin = Origin::Cluster(id.object());
        let mut nameless = Vec::new();
        let mut reading = None;
        for entry in translate::read(value, self.translator.rules()) {
            match entry {
                Entry::Object(one) => reading = Some((origin.clone(), one)),
                Entry::Unknown(problem) => nameless.push((origin.clone(), problem)),
                Entry::Foreign => {}
            }
        }
        self.translator.set_source_problems(&source(&id), nameless);
        reading
    }

    fn publish(&mut self) {
        // Writes look at these, so they must not be older than the snapshot that leads to them.
        self.live.send_replace(self.known.clone());
        let snapshot = self.translator.snapshot();
        self.translator.take_gone();
        self.snapshots.send_if_modified(|current| {
            let news = !Arc::ptr_eq(current, &snapshot);
            *current = snapshot;
            news
        });
        if let Some(number) = self.relisting.listed.take() {
            self.relisting.done.send_replace(number);
        }
    }
}

fn id((kind, spelling): (Kind, Spelling), object: &Object) -> Id {
    let meta = &object.metadata;
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    Id::new(kind, namespace, name).spelled(spelling)
}

fn live(object: &Object) -> Live {
    let meta = &object.metadata;
    Live {
        uid: meta.uid.clone().unwrap_or_default(),
        version: meta.resource_version.as_deref().unwrap_or_default().into(),
        conditions: listed(object).map(Value::to_string).unwrap_or_default().into(),
    }
}

/// `status.conditions`.
fn listed(object: &Object) -> Option<&Value> {
    object.status()?.get("conditions")
}

fn source(id: &Id) -> String {
    format!("object:{}/{}/{}", id.api_version(), id.kind.name(), id.key)
}

/// Whether a watch only has to list again: that its version has expired is no error.
pub fn is_expiry(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// What to do about a watch that fails.
pub fn remedy(error: &watcher::Error) -> &'static str {
    match code(error) {
        Some(404) => "install the definitions of its kind (crds/yaml)",
        Some(401 | 403) => "allow this service account to list and watch it",
        _ => "see that the API server can be reached",
    }
}

fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(::kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(::kube::Error::Api(status))
        | watcher::Error::WatchFailed(::kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_asked_for_by_the_name_the_api_server_has_for_it() {
        let plurals: Vec<String> = KINDS.iter().map(|kind| resource(kind.api_version(), kind.name()).plural).collect();

        assert_eq!(
            plurals,
            [
                "namespaces",
                "nodes",
                "services",
                "endpointslices",
                "ingressclasses",
                "ingresses",
                "ipaddresspools",
                "l2advertisements",
                "bgpadvertisements",
                "bgppeers",
                "bfdprofiles",
                "communities",
            ]
        );
        assert_eq!(resource(OUR_API, "ServiceL2Status").plural, "servicel2statuses");
        assert_eq!(resource(OUR_API, "ServiceBGPStatus").plural, "servicebgpstatuses");
        assert_eq!(resource(OUR_API, "BGPSessionStatus").plural, "bgpsessionstatuses");
        assert_eq!(resource(OUR_API, "ConfigurationState").plural, "configurationstates");
        assert_eq!(resource("v1", Kind::Pod.name()).plural, "pods");
    }

    #[test]
    fn a_proxy_watches_only_what_it_serves() {
        let watched: Vec<_> = subjects(&Role::Proxy("a".into()), true).into_iter().map(Subject::kind).collect();

        assert_eq!(watched, ["Node", "Service", "EndpointSlice", "IngressClass", "Ingress"]);
    }

    #[test]
    fn speakers_that_gossip_read_no_leases() {
        let reads = |role: Role| subjects(&role, true).contains(&Subject::Leases);

        assert!(reads(speaker(true)) && reads(Role::Reader(None)));
        assert!(!reads(speaker(false)) && !reads(Role::Standalone("a".into())) && !reads(Role::Controller));
    }

    fn speaker(leases: bool) -> Role {
        Role::Speaker { node: "a".into(), leases }
    }

    #[test]
    fn only_who_speaks_with_routers_reads_secrets() {
        let reads = |role: Role| subjects(&role, true).into_iter().any(|subject| subject.kind() == "Secret");

        assert!(reads(speaker(false)) && reads(Role::Standalone("a".into())));
        assert!(!reads(Role::Controller) && !reads(Role::Reader(None)) && !reads(Role::Proxy("a".into())));
    }
}
