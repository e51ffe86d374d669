//! The long-running roles: open a source of facts, join the rooms to it, and take them down in order.
//!
//! ```text
//!            ┌── snapshots ──► room ── writes ──┐
//!  Cluster ──┤                                  ├──► Cluster
//!            └── snapshots ──► room ── writes ──┘
//!  signal ──► rooms stop (withdraw, drain) ──► Cluster flushes what they wrote ──► exit
//! ```

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::Args;
use ferrogate_cluster::{Cluster, Role, certificate::Lifetimes};
use ferrogate_core::{model::NodeName, speaker::DataPath};
use ferrogate_speaker::{Liveness, ProxyReadiness};
use prometheus_client::registry::Registry;
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    admin::Admin,
    ready,
    scrape::{Scrape, ScrapeArgs},
    source::{NodeArgs, SourceArgs},
    webhook,
};

/// Admin port of the controller, and of a process that holds every role.
pub const CONTROLLER_ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 17480);
/// Admin port of a speaker.
pub const SPEAKER_ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 17481);
/// Admin port of a proxy.
pub const PROXY_ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 17482);

/// Flags of `ferrogate controller`.
#[derive(Args)]
pub struct ControllerArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Where metrics and health are served; never an external address
    #[arg(long, value_name = "ADDR:PORT", default_value_t = CONTROLLER_ADMIN)]
    admin: SocketAddr,
    #[command(flatten)]
    scrape: ScrapeArgs,
    /// Where the API server asks by HTTPS whether a change of the configuration is sound (a validating webhook), as a
    /// rule port 9443 of every address; without it nobody is answered
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "manifests")]
    webhook_listen: Option<SocketAddr>,
}

/// Flags of `ferrogate speaker`.
#[derive(Args)]
pub struct SpeakerArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// Where metrics and health are served; never an external address
    #[arg(long, value_name = "ADDR:PORT", default_value_t = SPEAKER_ADMIN)]
    admin: SocketAddr,
    #[command(flatten)]
    scrape: ScrapeArgs,
    /// Admin listener of this node's proxy, asked whether it is ready
    #[arg(long, value_name = "ADDR:PORT", default_value_t = PROXY_ADMIN)]
    proxy_admin: SocketAddr,
    #[command(flatten)]
    flags: ferrogate_speaker::Flags,
}

/// Flags of `ferrogate proxy`.
#[derive(Args)]
pub struct ProxyArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// Where metrics and health are served; never an external address
    #[arg(long, value_name = "ADDR:PORT", default_value_t = PROXY_ADMIN)]
    admin: SocketAddr,
    /// Name under which this very process tells `ferrogate ready` whether it is ready; without it nobody is told
    #[arg(long, value_name = "NAME", env = ready::NAME)]
    ready_name: Option<String>,
    #[command(flatten)]
    scrape: ScrapeArgs,
    #[command(flatten)]
    config: ferrogate_proxy::Config,
}

/// Flags of `ferrogate standalone`.
#[derive(Args)]
pub struct StandaloneArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// Where metrics and health are served; never an external address
    #[arg(long, value_name = "ADDR:PORT", default_value_t = CONTROLLER_ADMIN)]
    admin: SocketAddr,
    #[command(flatten)]
    speaker: ferrogate_speaker::Flags,
    #[command(flatten)]
    proxy: ferrogate_proxy::Config,
}

/// Runs the controller until a signal.
pub async fn controller(args: ControllerArgs) -> anyhow::Result<ExitCode> {
    let mut process = Process::start(args.admin, Holding::Alone).await?.scraped(&args.scrape).await?;
    let listener = match args.webhook_listen {
        None => None,
        Some(address) => Some(webhook::bind(address).await.with_context(|| {
            format!("--webhook-listen {address} cannot be opened; is another one running? choose another port")
        })?),
    };
    let mut cluster = process.open(&args.source, Role::Controller).await?;
    cluster.make_gossip_key();
    process.controller(&args.source, &cluster);
    if let Some(listener) = listener {
        process.webhook(listener, &mut cluster);
    }
    process.run(cluster).await
}

/// Runs the speaker of one node until a signal.
pub async fn speaker(args: SpeakerArgs) -> anyhow::Result<ExitCode> {
    let node = args.node.name()?;
    let liveness = args.flags.liveness;
    can_tell_who_lives(liveness, &args.source)?;
    let mut process = Process::start(args.admin, Holding::Alone).await?.scraped(&args.scrape).await?;
    let role = Role::Speaker { node: node.clone(), leases: liveness == Liveness::Leases };
    let cluster = process.open(&args.source, role).await?;
    let data_path = if args.source.manifests.is_some() { DataPath::Proxy } else { DataPath::KubeProxy };
    let proxy = Some(ProxyReadiness::Ask(args.proxy_admin));
    process.speaker(ferrogate_speaker::Config { node, data_path, proxy, flags: args.flags }, &args.source, &cluster);
    process.run(cluster).await
}

/// Runs the proxy of one node until a signal.
pub async fn proxy(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    let node = args.node.name()?;
    // In a cluster an update overlaps: the new one must be ready before the old one is asked to end.
    let holding = if args.source.manifests.is_some() { Holding::Alone } else { Holding::Shared };
    let mut process = Process::start(args.admin, holding).await?.scraped(&args.scrape).await?;
    let cluster = process.open(&args.source, Role::Proxy(node.clone())).await?;
    let is_ready = process.proxy(args.config, node, &cluster);
    if let Some(name) = &args.ready_name {
        process.tell_ready(ready::bind(name)?, is_ready);
    }
    process.run(cluster).await
}

/// Runs every role in this process until a signal.
pub async fn standalone(args: StandaloneArgs) -> anyhow::Result<ExitCode> {
    if args.source.manifests.is_none() {
        bail!("standalone works on a folder of manifests: give --manifests DIR");
    }
    can_tell_who_lives(args.speaker.liveness, &args.source)?;
    let node = args.node.name()?;
    let mut process = Process::start(args.admin, Holding::Alone).await?;
    let cluster = process.open(&args.source, Role::Standalone(node.clone())).await?;
    process.controller(&args.source, &cluster);
    let ready = process.proxy(args.proxy, node.clone(), &cluster);
    let proxy = Some(ProxyReadiness::Watch(ready));
    let config = ferrogate_speaker::Config { node, data_path: DataPath::Proxy, proxy, flags: args.speaker };
    process.speaker(config, &args.source, &cluster);
    process.run(cluster).await
}

/// Leases are kept by an API server and by nothing else: the state beside a folder of manifests is each node's own, and a
/// shared file system that is slow or away says of nobody whether they live.
fn can_tell_who_lives(liveness: Liveness, source: &SourceArgs) -> anyhow::Result<()> {
    if liveness == Liveness::Leases && source.manifests.is_some() {
        bail!("--liveness=leases needs an API server, and with --manifests there is none; use --liveness=gossip");
    }
    Ok(())
}

/// How a process has its admin address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holding {
    /// By itself, to its very end.
    Alone,
    /// Beside the process that it follows or that follows it.
    Shared,
}

/// What every role has in common: an admin listener, metrics, and an orderly end.
struct Process {
    /// Open until the end; taken by whoever serves it.
    admin: Option<TcpListener>,
    /// Where scrapers ask, if they may.
    scrape: Option<Scrape>,
    holding: Holding,
    registry: Registry,
    ready: Vec<watch::Receiver<bool>>,
    rooms: JoinSet<anyhow::Result<()>>,
    /// Cancelled by the first SIGTERM or SIGINT.
    signal: CancellationToken,
}

impl Process {
    /// Opens the admin listener, so that a taken port is known before anything else starts, and listens to signals.
    async fn start(admin: SocketAddr, holding: Holding) -> anyhow::Result<Self> {
        let listener = Admin::bind(admin, holding == Holding::Shared).await.with_context(|| {
            format!("--admin {admin} cannot be opened; is another one running? choose another port")
        })?;
        let signal = CancellationToken::new();
        let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let asked = signal.clone();
        // Lives as long as the process: there is always somebody to hear the second signal.
        tokio::spawn(async move {
            let next = async |terminate: &mut Signal, interrupt: &mut Signal| {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            };
            next(&mut terminate, &mut interrupt).await;
            info!("asked to stop; ask again to stop at once");
            asked.cancel();
            next(&mut terminate, &mut interrupt).await;
            warn!("stopping at once");
            std::process::exit(EXIT_AT_ONCE);
        });
        let (registry, ready, rooms) = (Registry::default(), Vec::new(), JoinSet::new());
        Ok(Self { admin: Some(listener), scrape: None, holding, registry, ready, rooms, signal })
    }

    /// Opens the listener for scrapers too, if there is to be one.
    async fn scraped(mut self, args: &ScrapeArgs) -> anyhow::Result<Self> {
        self.scrape = args.open(self.holding == Holding::Shared).await?;
        Ok(self)
    }

    /// Opens the source. However long that takes, probes are answered meanwhile: alive, and not ready.
    async fn open(&mut self, source: &SourceArgs, role: Role) -> anyhow::Result<Cluster> {
        let Some(listener) = self.admin.take() else { bail!("the source is opened once") };
        let opened = CancellationToken::new();
        let (_never, not_ready) = watch::channel(false);
        let admin = Admin::new(listener, Arc::default(), vec![not_ready]);
        let open = async {
            let cluster = source.open(role, self.signal.clone()).await;
            opened.cancel();
            cluster
        };
        let (cluster, listener) = tokio::join!(open, admin.run(opened.clone()));
        self.admin = Some(listener);
        cluster
    }

    fn readiness(&mut self) -> watch::Sender<bool> {
        let (sender, receiver) = watch::channel(false);
        self.ready.push(receiver);
        sender
    }

    fn controller(&mut self, source: &SourceArgs, cluster: &Cluster) {
        let config = ferrogate_controller::Config { proxy_carries_services: source.manifests.is_some() };
        let metrics = ferrogate_controller::Metrics::register(&mut self.registry);
        let (snapshots, leads, writes) = (cluster.snapshots.clone(), cluster.leads.clone(), cluster.writes.clone());
        let (ready, stop) = (self.readiness(), self.signal.clone());
        self.rooms.spawn(async move {
            ferrogate_controller::run(config, snapshots, leads, writes, metrics, ready, stop)
                .await
                .context("controller")
        });
    }

    fn webhook(&mut self, listener: TcpListener, cluster: &mut Cluster) {
        let Some(webhook) = cluster.webhook(Lifetimes::default()) else { return };
        let metrics = webhook::Metrics::register(&mut self.registry);
        let stop = self.signal.clone();
        self.rooms.spawn(async move { webhook::run(listener, webhook, metrics, stop).await.context("webhook") });
    }

    fn speaker(&mut self, config: ferrogate_speaker::Config, source: &SourceArgs, cluster: &Cluster) {
        let mut metrics = ferrogate_speaker::Metrics::register(&mut self.registry);
        if source.metallb_compat {
            metrics = metrics.with_metallb_names(&mut self.registry);
        }
        let (snapshots, writes) = (cluster.snapshots.clone(), cluster.writes.clone());
        let (ready, stop) = (self.readiness(), self.signal.clone());
        self.rooms.spawn(async move {
            ferrogate_speaker::run(config, snapshots, writes, metrics, ready, stop).await.context("speaker")
        });
    }

    fn tell_ready(&mut self, listener: UnixListener, is_ready: watch::Receiver<bool>) {
        let stop = self.signal.clone();
        self.rooms.spawn(async move {
            ready::tell(listener, is_ready, stop).await;
            Ok(())
        });
    }

    /// Also tells whether the proxy is ready.
    fn proxy(
        &mut self,
        mut config: ferrogate_proxy::Config,
        node: NodeName,
        cluster: &Cluster,
    ) -> watch::Receiver<bool> {
        config.node = Some(node);
        let metrics = ferrogate_proxy::Metrics::register(&mut self.registry);
        let snapshots = cluster.snapshots.clone();
        let (ready, stop) = (self.readiness(), self.signal.clone());
        let is_ready = ready.subscribe();
        self.rooms
            .spawn(async move { ferrogate_proxy::run(config, snapshots, metrics, ready, stop).await.context("proxy") });
        is_ready
    }

    /// Waits for the end: by a signal, or because a room cannot go on. Then the rooms hand over and drain, what they
    /// wrote is flushed, and only then the admin listener goes: probes see the whole way down.
    ///
    /// Where another process may have the same admin address, this one leaves it to that one as soon as it is to end:
    /// whoever asks then hears of the one that stays, or of nobody.
    async fn run(mut self, mut cluster: Cluster) -> anyhow::Result<ExitCode> {
        let end = match self.holding {
            Holding::Alone => CancellationToken::new(),
            Holding::Shared => self.signal.clone(),
        };
        let Some(listener) = self.admin.take() else { bail!("the source was not opened") };
        let registry = Arc::new(self.registry);
        let admin = tokio::spawn(Admin::new(listener, Arc::clone(&registry), self.ready).run_to_end(end.clone()));
        if let Some((scrape, scrapers)) = self.scrape.zip(cluster.scrapers()) {
            let stop = self.signal.clone();
            self.rooms.spawn(async move { scrape.run(scrapers, registry, stop).await.context("metrics by HTTPS") });
        }
        let mut outcome = Ok(ExitCode::SUCCESS);
        while let Some(ended) = self.rooms.join_next().await {
            if let Err(error) = ended.context("a part of the process panicked").flatten() {
                error!(error = format!("{error:#}"), "stopping");
                outcome = outcome.and(Err(error));
            }
            // One room without the others would look alive and do half the work: let a supervisor start all anew.
            self.signal.cancel();
        }
        cluster.closed().await;
        end.cancel();
        admin.await.context("the admin listener panicked")?;
        outcome
    }
}

/// The code a shell shows for a process that was ended by an interrupt.
const EXIT_AT_ONCE: i32 = 130;

fn listen(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("signals cannot be received")
}
