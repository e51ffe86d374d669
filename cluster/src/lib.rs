//! Where facts come from and where writes go: an API server or a directory.
//!
//! A [`Cluster`] is a stream of snapshots and a sink of writes. Both ways to open one end in the same objects and the
//! same translation, so that no room can tell them apart.
//!
//! ```text
//! files ───► document ─┐
//! watches ─► kube ─────┴► translate/read ─► objects ─► translate ─► Snapshot
//! state ───► state ─────────────────────────────────────┘
//! Write ───► write ─► files or server-side apply
//! ```

use std::{path::PathBuf, sync::Arc};

use ferrogate_core::{
    model::{NodeName, service::ClassPolicy},
    snapshot::Snapshot,
    write::Write,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub mod admission;
pub mod certificate;
mod clock;
mod dir;
pub mod document;
pub mod gossip_key;
mod heartbeat;
mod kube;
mod lease;
pub mod migrate;
pub mod objects;
mod parallel;
pub mod scrapers;
pub mod state;
pub mod translate;
pub mod webhook;
mod wish;
mod write;

use admission::Admission;
use certificate::Lifetimes;
use clock::Clock;
pub use dir::DirectoryError;
pub use kube::KubernetesError;
pub use lease::Timing;
pub use wish::WishError;
use write::apply::{Applier, Mandate, Requests};

/// The namespace of our own objects, unless told otherwise.
pub const NAMESPACE: &str = "ferrogate-system";

/// How many writes may wait for the writer. It only keeps the latest for each object, so that it is quick to take
/// them; a room that finds the channel full waits.
const WRITES: usize = 1024;

/// How many bundles of forgotten objects may wait for the writer.
const GONE: usize = 16;

/// Facts in, writes out.
pub struct Cluster {
    /// The facts, the latest at any time. The first is complete.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Where writes go.
    pub writes: mpsc::Sender<Write>,
    /// Whether this process is the one that decides for all; only ever true for a controller.
    pub leads: watch::Receiver<bool>,
    tasks: JoinSet<()>,
    finish: CancellationToken,
    _finish_on_drop: DropGuard,
    /// The API server, if there is one.
    client: Option<::kube::Client>,
    /// Where there is an API server that asks, and a controller that answers.
    answers: Option<Answers>,
    /// Where leadership never changes, what keeps `leads` open.
    _leads: Option<watch::Sender<bool>>,
}

/// What a webhook needs to serve.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Answers whether a change would be taken.
    pub admission: Admission,
    /// What to show to whoever calls, the latest at any time; nothing until the Secret was read or made.
    pub certificate: watch::Receiver<Option<Arc<webhook::Certificate>>>,
}

/// What becomes a [`Webhook`] when it is asked for.
struct Answers {
    client: ::kube::Client,
    namespace: String,
    admission: Admission,
}

/// What the process is, which says what it may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Writes addresses, conditions and Events.
    Controller,
    /// Writes what its node announces and whom it sees.
    Speaker {
        /// The node.
        node: NodeName,
        /// Whether speakers know each other by Leases in our namespace, and not by gossip. A folder has none.
        leases: bool,
    },
    /// Writes nothing; reads whom the speaker of this node sees, if it is a node's.
    Reader(Option<NodeName>),
    /// Writes nothing; reads everything that speakers report of BGP as well, which is an object for each Service and node.
    BgpReader,
    /// The proxy of a node: reads what it serves and writes nothing.
    Proxy(NodeName),
    /// Controller and speaker of the one node there is.
    Standalone(NodeName),
}

impl Role {
    fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Speaker { node, .. } | Self::Proxy(node) | Self::Standalone(node) => Some(node),
            Self::Reader(node) => node.as_ref(),
            Self::Controller | Self::BgpReader => None,
        }
    }

    /// Whether it speaks with routers, and so needs their passwords.
    fn speaks(&self) -> bool {
        matches!(self, Self::Speaker { .. } | Self::Standalone(_))
    }

    /// Whether it keeps a Lease by which other speakers know it.
    fn keeps_lease(&self) -> bool {
        matches!(self, Self::Speaker { leases: true, .. })
    }

    fn decides(&self) -> bool {
        matches!(self, Self::Controller | Self::Standalone(_))
    }

    /// The names under which this process writes: one lock each, the first for its Events.
    fn writers(&self) -> Vec<String> {
        match self {
            Self::Controller => vec!["controller".to_owned()],
            Self::Speaker { node, .. } => vec![format!("speaker-{node}")],
            Self::Reader(_) | Self::BgpReader | Self::Proxy(_) => Vec::new(),
            Self::Standalone(node) => vec!["controller".to_owned(), format!("speaker-{node}")],
        }
    }
}

/// Which folders, and who asks.
#[derive(Clone, Debug)]
pub struct DirectoryConfig {
    /// The folder of manifests.
    pub manifests: PathBuf,
    /// The folder in which statuses are kept; made where it is missing.
    pub state: PathBuf,
    /// The namespace of our own objects: those that name none are in it, those that name another are left out.
    pub namespace: String,
    /// What the process is.
    pub role: Role,
    /// Which load balancer classes are served.
    pub class: ClassPolicy,
    /// MetalLB's namespace, if its objects and annotations are honoured too.
    pub metallb: Option<String>,
}

/// Which namespace, and who asks.
#[derive(Clone, Debug)]
pub struct KubernetesConfig {
    /// The namespace of our own objects and of the Lease.
    pub namespace: String,
    /// What the process is.
    pub role: Role,
    /// What tells this process apart from every other one: no two may have the same.
    pub identity: String,
    /// Which load balancer classes are served.
    pub class: ClassPolicy,
    /// MetalLB's namespace, if its objects and annotations are honoured too.
    pub metallb: Option<String>,
}

impl Cluster {
    /// Opens the API server that KUBECONFIG or the service account of the pod names. Everything has been listed when
    /// this returns; until then it is tried without end.
    ///
    /// # Errors
    /// When it cannot be told where the API server is, and on `shutdown`.
    pub async fn kubernetes(config: KubernetesConfig, shutdown: CancellationToken) -> Result<Self, KubernetesError> {
        let client = kube::client().await?;
        Self::kubernetes_with(client, config, Timing::default(), shutdown).await
    }

    /// The same with a client that stands already.
    ///
    /// # Errors
    /// On `shutdown`.
    pub async fn kubernetes_with(
        client: ::kube::Client,
        config: KubernetesConfig,
        timing: Timing,
        shutdown: CancellationToken,
    ) -> Result<Self, KubernetesError> {
        let KubernetesConfig { namespace, role, identity, class, metallb } = config;
        let home = namespace.clone();
        let beside_metallb = metallb.is_some();
        let (secrets, source) = (role.speaks(), translate::Source::Kubernetes);
        let rules = translate::Rules { class, namespace: home, metallb, secrets, source };
        let translator = translate::Translator::new(rules, None);
        let finish = CancellationToken::new();
        let guard = finish.clone().drop_guard();
        let mut tasks = JoinSet::new();
        let (snapshots_in, snapshots) = watch::channel(Arc::default());
        let (live_in, live) = watch::channel(kube::LiveObjects::new());
        let (ready, listed) = oneshot::channel();
        let (admission, inquiries) = Admission::new(namespace.clone());
        let answers = Answers { client: client.clone(), namespace: namespace.clone(), admission };
        let answers = role.decides().then_some(answers);
        let (relist, relisting) = kube::Relist::pair();
        let watcher = kube::Watcher::new(
            client.clone(),
            namespace.clone(),
            &role,
            translator,
            inquiries,
            snapshots_in,
            live_in,
            relisting,
        );
        tasks.spawn(watcher.run(ready, finish.clone()));
        tokio::select! {
            listed = listed => listed.map_err(|_| KubernetesError::Stopped)?,
            () = shutdown.cancelled() => return Err(KubernetesError::Stopped),
        }
        let (writes, writes_out) = mpsc::channel(WRITES);
        let reporter = match role {
            Role::Controller | Role::Standalone(_) => Some(write::apply::CONTROLLER),
            Role::Speaker { .. } => Some(write::apply::SPEAKER),
            Role::Reader(_) | Role::BgpReader | Role::Proxy(_) => None,
        };
        let (leads_in, leads) = watch::channel(false);
        let clock = Clock::new();
        let (until_in, until) = watch::channel(None);
        // The Lease is given up only when nothing is written any more.
        let (settled, resign) = oneshot::channel();
        if let Some(reporter) = reporter {
            let (client, namespace, identity) = (client.clone(), namespace.clone(), identity.clone());
            let mut renewals = None;
            if role.keeps_lease() {
                let (wanted, asked) = watch::channel(None);
                tasks.spawn(heartbeat::keep(client.clone(), namespace.clone(), live.clone(), asked));
                renewals = Some(wanted);
            }
            let requests = Requests::new(client, namespace, reporter, identity, live).beside_metallb(beside_metallb);
            let mandate = Mandate { until, clock, request: timing.request };
            let applier = Applier::new(requests, role.decides().then_some(mandate));
            let applier = match renewals {
                Some(renewals) => applier.renewing(renewals),
                None => applier,
            };
            let finish = finish.clone();
            tasks.spawn(async move {
                // Nobody waits for it where there is no Lease.
                let _ = settled.send(applier.run(writes_out, finish).await);
            });
        }
        let mut kept = Some(leads_in);
        if role.decides()
            && let Some(leads) = kept.take()
        {
            let (snapshots, writes) = (snapshots.clone(), writes.clone());
            let around = lease::Surroundings { snapshots, relist, writes, until: until_in, leads, clock };
            let candidate = lease::Candidate::new(client.clone(), &namespace, identity, timing, around);
            tasks.spawn(candidate.run(resign));
        }
        let client = Some(client);
        Ok(Self { snapshots, writes, leads, tasks, finish, _finish_on_drop: guard, client, answers, _leads: kept })
    }

    /// Opens a folder of manifests and the state beside it. All of both has been read when this returns.
    ///
    /// # Errors
    /// When the manifest folder cannot be read, the state folder cannot be made, another process writes there, or the
    /// kernel refuses to watch. Whatever is wrong with a file is a problem in the snapshot instead.
    pub async fn directory(config: DirectoryConfig, shutdown: CancellationToken) -> Result<Self, DirectoryError> {
        let DirectoryConfig { manifests, state, namespace, role, class, metallb } = config;
        let names = role.writers();
        let locks = locks(&state, &names)?;
        if let (Ok(manifests), Ok(state)) = (manifests.canonicalize(), state.canonicalize())
            && (manifests.starts_with(&state) || state.starts_with(&manifests))
        {
            return Err(DirectoryError::Nested { manifests, state });
        }
        let lone_node = match &role {
            Role::Standalone(node) => Some(node.clone()),
            _ => None,
        };
        let source = translate::Source::Directory;
        let rules = translate::Rules { class, namespace, metallb, secrets: true, source };
        let translator = translate::Translator::new(rules, lone_node);
        let finish = CancellationToken::new();
        let guard = finish.clone().drop_guard();
        let mut tasks = JoinSet::new();
        let (writes, writes_out) = mpsc::channel(WRITES);
        let (trouble, trouble_out) = watch::channel(None);
        let mut forget = None;
        if let Some(name) = names.first() {
            let (gone, gone_out) = mpsc::channel(GONE);
            let writer = write::files::Writer::new(state.clone(), name.clone(), locks, trouble);
            let run = writer.run(writes_out, gone_out, finish.clone());
            spawn_thread(&mut tasks, run)?;
            forget = role.decides().then_some(gone);
        }
        let (snapshots_in, snapshots) = watch::channel(Arc::default());
        let (ready, opened) = oneshot::channel();
        let node = role.node().cloned();
        let directory = dir::Directory::new(manifests, state, translator, node, snapshots_in, forget, trouble_out);
        spawn_thread(&mut tasks, directory.run(ready, finish.clone()))?;
        tokio::select! {
            opened = opened => opened.unwrap_or(Err(DirectoryError::Stopped))?,
            () = shutdown.cancelled() => return Err(DirectoryError::Stopped),
        }
        // The lock in the state folder is what makes this process the only one.
        let (leads_in, leads) = watch::channel(role.decides());
        let _leads = Some(leads_in);
        let (client, answers) = (None, None);
        Ok(Self { snapshots, writes, leads, tasks, finish, _finish_on_drop: guard, client, answers, _leads })
    }

    /// What a webhook needs; begins to keep its certificate. `None` where nobody would ask: in a folder, and for
    /// roles other than the controller. To be called once.
    pub fn webhook(&mut self, lifetimes: Lifetimes) -> Option<Webhook> {
        let Answers { client, namespace, admission } = self.answers.take()?;
        let (serve, certificate) = watch::channel(None);
        let keeper = webhook::Keeper::new(client, &namespace, lifetimes, serve);
        self.tasks.spawn(keeper.run(self.finish.clone()));
        Some(Webhook { admission, certificate })
    }

    /// Who tells which scrapers may read metrics. `None` where there is no API server to know.
    pub fn scrapers(&self) -> Option<scrapers::Scrapers> {
        self.client.clone().map(scrapers::Scrapers::new)
    }

    /// Makes the key of the speakers' gossip where there is none. Nothing in a folder, and for roles other than the
    /// controller. To be called once, before [`webhook`](Self::webhook).
    pub fn make_gossip_key(&mut self) {
        if let Some(Answers { client, namespace, .. }) = &self.answers {
            let make = gossip_key::make(client.clone(), namespace.clone(), self.finish.clone());
            self.tasks.spawn(make);
        }
    }

    /// Waits until everything that was sent is written and every task has ended. To be called when the rooms have
    /// ended: what they send later is lost.
    pub async fn closed(&mut self) {
        self.finish.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

fn locks(state: &std::path::Path, names: &[String]) -> Result<Vec<std::fs::File>, DirectoryError> {
    let failed = |source| DirectoryError::State { path: state.to_owned(), source };
    if names.is_empty() {
        return Ok(Vec::new());
    }
    std::fs::create_dir_all(state).map_err(failed)?;
    let mut locks = Vec::new();
    for name in names {
        let lock = write::files::lock(state, name).map_err(failed)?;
        let in_use = || DirectoryError::InUse { path: state.to_owned(), writer: name.clone() };
        locks.push(lock.ok_or_else(in_use)?);
    }
    Ok(locks)
}

/// Runs a future on a thread and a runtime of its own: these wait for disks, which the rooms must not feel.
fn spawn_thread(
    tasks: &mut JoinSet<()>,
    future: impl Future<Output = ()> + Send + 'static,
) -> Result<(), DirectoryError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DirectoryError::Thread)?;
    tasks.spawn_blocking(move || runtime.block_on(future));
    Ok(())
}
