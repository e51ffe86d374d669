//! A kubelet whose nodes are network namespaces and whose containers are processes: real Deployments, DaemonSets,
//! Services and EndpointSlices live on it, with no container runtime and no image.
//!
//! ```text
//! API server ──watch──► kubelet ──one task a pod──► one task a container ──► lab container FILE ──exec──► program
//!     ▲                 (a thread in the node's         │  probes, restarts      own mounts, names, rights,
//!     └── Node, Lease, Pod status ── namespace) ◄───────┘                        and the pod's network
//! ```
//!
//! Everything is asked of the API server as `system:node:NAME`, with the rights the node authorizer gives. What is
//! honoured: pod addresses of both families or the node's network, commands, arguments and variables, Secret,
//! ConfigMap, projected, downward, emptyDir and hostPath volumes with service account tokens, users, groups and
//! capabilities, probes by HTTP, TCP and exec, restart policies with a back-off, readiness gates, grace periods. What is not
//! there on purpose: images (a table names programs), init containers, `kubectl exec`, resource limits, pod logs by the API (they
//! are files).
//!
//! As an ordinary user everything runs as the one user there is; what a container must not do, it still cannot.

pub mod container;
pub mod environment;
pub mod image;
pub mod launch;
pub mod log;
pub mod network;
pub mod node;
pub mod pod;
pub mod probe;
pub mod proxy;
pub mod status;
pub mod volume;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1 as core;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::{image::Images, log::Log, network::Addresses, node::Identity};
use crate::lab::topology::{Node, uplink, uplink_v6};

/// Time before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// What a kubelet works with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kubeconfig of `system:node:NAME` in `system:nodes`.
    pub kubeconfig: PathBuf,
    /// The program whose command `container` is [`launch::run`]: the lab.
    pub launcher: PathBuf,
    /// Which program stands for which image.
    pub images: Images,
    /// Where files of pods go, below `pods`, and logs, below `logs`: `kubelet-NODE.log`, and
    /// `NAMESPACE_POD_CONTAINER.log` for each container.
    pub folder: PathBuf,
}

/// What every pod of a node shares.
pub struct Context {
    client: Client,
    identity: Arc<Identity>,
    images: Images,
    launcher: PathBuf,
    pods: PathBuf,
    logs: PathBuf,
    /// Address and port of the Service `kubernetes`.
    api_server: (String, u16),
    addresses: Addresses,
    log: Arc<Log>,
}

/// The kubelet of one node. When it is dropped, its containers are killed, as when a machine loses power; the objects
/// stay.
#[derive(Debug)]
pub struct Kubelet {
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Starts it, on a thread in the namespace of its node. The node is registered when the API server hears of it.
    ///
    /// # Errors
    /// When the folder cannot be made, or no thread.
    pub fn start(node: &Node, options: Options) -> Result<Self> {
        let (pods, logs) = (options.folder.join("pods"), options.folder.join("logs"));
        for folder in [&pods, &logs] {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let log = Arc::new(Log::new(&logs.join(format!("kubelet-{}.log", node.name))).context("opening a log")?);
        let identity = Arc::new(Identity {
            number: node.number,
            name: node.name.clone(),
            addresses: vec![uplink(node.number).into(), uplink_v6(node.number).into()],
        });
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = node.namespace.spawn_thread(move || {
            runtime.block_on(async {
                tokio::select! {
                    ended = run(options, identity, (pods, logs), Arc::clone(&log)) => {
                        if let Err(error) = ended {
                            log.line(format_args!("the kubelet has ended: {error:#}"));
                        }
                    }
                    () = token.cancelled() => log.line(format_args!("the kubelet is stopped")),
                }
            });
        })?;
        Ok(Self { shutdown, thread: Some(thread) })
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            // Should it have panicked, its containers are gone all the same: they are tied to the thread.
            let _ = thread.join();
        }
    }
}

async fn run(options: Options, identity: Arc<Identity>, places: (PathBuf, PathBuf), log: Arc<Log>) -> Result<()> {
    let client = crate::kube::plane::client(&options.kubeconfig).await?;
    identity.register(&client, &log).await;
    let mut background = JoinSet::new();
    background.spawn(Arc::clone(&identity).renew(client.clone(), Arc::clone(&log)));
    let (pods, logs) = places;
    let context = Arc::new(Context {
        api_server: api_server(&client, &log).await,
        client: client.clone(),
        addresses: Addresses::new(identity.number),
        images: options.images,
        launcher: options.launcher,
        identity,
        pods,
        logs,
        log,
    });
    let fields = format!("spec.nodeName={}", context.identity.name);
    let config = watcher::Config::default().fields(&fields);
    let mut events = std::pin::pin!(watcher(Api::<core::Pod>::all(client), config).backoff(Steady));
    let mut crew = Crew { context, pods: BTreeMap::new(), tasks: JoinSet::new() };
    let mut listed = BTreeSet::new();
    loop {
        let event = tokio::select! {
            event = events.try_next() => event,
            Some(uid) = crew.tasks.join_next() => {
                // One that panicked is never started again, which its status shows.
                let _ = uid.map(|uid| crew.pods.remove(&uid));
                continue;
            }
        };
        match event {
            Ok(Some(watcher::Event::Init)) => listed.clear(),
            Ok(Some(watcher::Event::InitApply(pod))) => {
                listed.extend(pod.metadata.uid.clone());
                crew.see(pod);
            }
            Ok(Some(watcher::Event::InitDone)) => crew.keep_only(&listed),
            Ok(Some(watcher::Event::Apply(pod))) => crew.see(pod),
            Ok(Some(watcher::Event::Delete(pod))) => crew.lose(pod.metadata.uid.as_deref().unwrap_or_default()),
            Ok(None) => return Ok(()),
            Err(error) => crew.context.log.line(format_args!("watching pods: {error}")),
        }
    }
}

/// The same pause before every attempt: tests take the API server away, and bring it back, often.
struct Steady;

impl Iterator for Steady {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(AGAIN)
    }
}

impl Backoff for Steady {
    fn reset(&mut self) {}
}

/// The pods of a node, each with a task.
struct Crew {
    context: Arc<Context>,
    pods: BTreeMap<String, watch::Sender<pod::Seen>>,
    tasks: JoinSet<String>,
}

impl Crew {
    fn see(&mut self, pod: core::Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let pod = Arc::new(pod);
        if let Some(known) = self.pods.get(&uid) {
            known.send_replace(Some(pod));
            return;
        }
        let is_over = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if is_over.is_some_and(|phase| phase == "Succeeded" || phase == "Failed")
            && pod.metadata.deletion_timestamp.is_none()
        {
            return;
        }
        let (sender, seen) = watch::channel(Some(Arc::clone(&pod)));
        self.pods.insert(uid.clone(), sender);
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            pod::run(context, pod, seen).await;
            uid
        });
    }

    fn lose(&self, uid: &str) {
        if let Some(known) = self.pods.get(uid) {
            known.send_replace(None);
        }
    }

    /// What a complete list does not have is gone.
    fn keep_only(&self, listed: &BTreeSet<String>) {
        self.pods.keys().filter(|uid| !listed.contains(*uid)).for_each(|uid| self.lose(uid));
    }
}

/// Where pods reach the API server: the Service `kubernetes`, which it makes itself.
async fn api_server(client: &Client, log: &Log) -> (String, u16) {
    let api: Api<core::Service> = Api::namespaced(client.clone(), "default");
    loop {
        match api.get("kubernetes").await {
            Ok(service) => {
                let spec = service.spec.unwrap_or_default();
                let port = spec.ports.iter().flatten().next().and_then(|port| u16::try_from(port.port).ok());
                if let (Some(address), Some(port)) = (spec.cluster_ip, port) {
                    return (address, port);
                }
            }
            Err(error) => log.line(format_args!("looking for Service kubernetes: {error}")),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
