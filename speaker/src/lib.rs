//! Hands of the speaker: raw frames, gossip, interfaces, addresses on the host. What to do with them is decided
//! in `ferrogate_core::speaker`.
//!
//! ```text
//!  snapshots ─────────────────┐                         ┌─► layer2: frames, groups
//!  interfaces (task) ─────────┤                         ├─► gossip: sealed datagrams
//!  layer2 (task per socket) ──┼─► loop: Speaker::step ──┼─► host: addresses on lo; detours: packets for others
//!  gossip (read by the loop) ─┤                         ├─► writes
//!  bfd (thread) ──────────────┤                         ├─► bfd: sessions
//!  bgp (thread) ──────────────┤                         ├─► bgp: routers and routes
//!  proxy_probe (task) ────────┤                         ├─► health_probe: ports to ask at
//!  health_probe (task per port)                         └─► log, metrics
//! ```
//!
//! Everything is opened when it is first needed: with nothing to announce there is no raw socket and no address on the
//! host, with no other node there is no gossip socket, and no privilege is asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    ops::ControlFlow,
    panic::resume_unwind,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ferrogate_core::{
    configuration::{self, Keeper, Reporter},
    model::NodeName,
    snapshot::Snapshot,
    speaker::{Action, Disbelieved, Event, NotPassedOn, Report, Speaker, StrayRules},
    write::Write,
};
use ferrogate_wire::{arp::Operation, gossip::Keys, ndp::Ndp};
use tokio::{
    runtime,
    sync::{mpsc, oneshot, watch},
    task::{JoinSet, yield_now},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info, info_span, trace, warn};

mod alarm;
pub mod bfd;
pub mod bgp;
mod clock;
mod config;
mod detours;
mod gossip;
mod health_probe;
mod host;
mod interfaces;
mod keys;
mod layer2;
mod metrics;
mod nft;
mod outbox;
mod packet;
mod patience;
mod peering;
mod proxy_probe;
mod realtime;
mod strays;
mod watcher;

pub use config::{BfdProfile, Config, Flags, GOSSIP_PORT, Liveness, ProxyReadiness};
pub use gossip::GossipError;
pub use host::HostError;
pub use interfaces::InterfacesError;
pub use keys::{CURRENT_KEY, KeysError};
pub use layer2::RawSocketsRefused;
pub use metrics::Metrics;

use crate::{
    alarm::Alarm,
    detours::Detours,
    gossip::Gossip,
    health_probe::HealthProbes,
    host::Host,
    interfaces::Following,
    layer2::Layer2,
    metrics::{Announced, GossipRefusal},
    outbox::Outbox,
    peering::{News, Peering},
    strays::Strays,
    watcher::{Seen, Watcher},
};

/// Frames, and answers of health checks, that may wait for the loop. What comes on top is lost, as it would be on a busy wire.
const EVENTS: usize = 1024;

/// How many of them are taken in before the loop looks for anything else.
const AT_ONCE: usize = 64;

/// How often silences are counted at most; counting visits every Service.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Why a speaker stops before it was told to. Other speakers take over what it announced.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The interfaces cannot be told.
    #[error(transparent)]
    Interfaces(#[from] InterfacesError),
    /// No raw sockets.
    #[error(transparent)]
    RawSockets(#[from] RawSocketsRefused),
    /// Addresses cannot be put on the host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There is no gossip.
    #[error(transparent)]
    Gossip(#[from] GossipError),
    /// There are no keys to seal it with.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The kernel closed the netlink connection.
    #[error("the netlink connection ended")]
    NetlinkEnded,
    /// The kernel has no thread or descriptor left.
    #[error("the thread of the speaker cannot be started; raise the limits of threads and open files")]
    Thread(#[source] io::Error),
    /// The kernel has no descriptor left, or no room to watch one.
    #[error(
        "the alarm of the speaker cannot be made; raise the limit of open files, or the sysctl fs.epoll.max_user_watches"
    )]
    Alarm(#[source] io::Error),
    /// What speaks with routers has failed.
    #[error("BGP has ended by itself; what happened stands above")]
    BgpEnded,
}

/// Runs a speaker until `shutdown`, and then until its addresses are handed over.
///
/// It has a thread of its own, in the network namespace of the caller: whoever asks on the link, and whoever counts on a
/// takeover, waits for nothing else that the process does, and what one task tells the other costs no switch between
/// threads.
///
/// `ready` turns true with the first snapshot and false with the shutdown. When the source of snapshots ends, the
/// last one stays in force.
///
/// # Errors
/// What no part of a speaker can do without; see [`RunError`]. Trouble with one interface or address is logged, and
/// the rest goes on.
pub async fn run(
    config: Config,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    writes: mpsc::Sender<Write>,
    metrics: Metrics,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let span = info_span!("speaker", node = %config.node);
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Thread)?;
    let (tell, told) = oneshot::channel();
    let abandoned = CancellationToken::new();
    let until_dropped = abandoned.clone().drop_guard();
    let work = move || {
        if let Err(error) = realtime::go_first() {
            debug!(%error, "the speaker has the usual priority: on a busy machine it may be late");
        }
        let all = follow(config, snapshots, writes, metrics, ready, shutdown).instrument(span);
        // Nobody listens when this was abandoned.
        _ = tell.send(runtime.block_on(abandoned.run_until_cancelled_owned(all)));
    };
    let thread = thread::Builder::new().name("speaker".to_owned()).spawn(work).map_err(RunError::Thread)?;
    let ended = told.await;
    drop(until_dropped);
    // All it does after it has told is to close its sockets.
    match thread.join() {
        Err(panic) => resume_unwind(panic),
        Ok(()) => ended.ok().flatten().unwrap_or(Ok(())),
    }
}

async fn follow(
    config: Config,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    writes: mpsc::Sender<Write>,
    metrics: Metrics,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let mut tasks = JoinSet::new();
    let Following { first, next: mut interfaces, netlink, requests } = interfaces::follow(&mut tasks).await?;
    let keys = keys(&config, &mut tasks)?;
    let mut proxy = proxy_readiness(&config, &mut tasks).await;
    let mut alarm = Alarm::new().map_err(RunError::Alarm)?;
    let (events, mut received) = mpsc::channel(EVENTS);
    let (answers, mut answered) = mpsc::channel(EVENTS);
    let flags = &config.flags;
    let (watcher, mut watched) = Watcher::new(flags.bfd_profile, metrics.clone());
    let mut hands = Hands {
        layer2: Layer2::new(events, metrics.clone()),
        health: HealthProbes::new(answers),
        gossip: Gossip::new(flags.gossip_port, flags.gossip_bind.clone(), keys.clone(), metrics.clone()),
        keys,
        watcher,
        peering: Peering::new(metrics.bgp.clone()),
        disbelieved: Disbelieved::default(),
        renewals: 0,
        host: Host::open(netlink, requests, &first, flags.hand_over_grace).await,
        detours: Detours::start(metrics.clone()).map_err(RunError::Thread)?,
        strays: Strays::start(metrics.clone()).map_err(RunError::Thread)?,
        host_is_quiet: false,
        outbox: Outbox::new(writes),
        members: BTreeSet::new(),
        metrics,
        keeper: Keeper::new(Reporter::Speaker(config.node.clone()), true),
        announced: Announced::default(),
        count_at: None,
    };
    let mut speaker = Speaker::new(config.machine());
    let proxy_ready = *proxy.borrow_and_update();
    let snapshot = snapshots.borrow_and_update().clone();
    for event in [Event::Interfaces(first), Event::ProxyReady(proxy_ready), Event::Snapshot(snapshot)] {
        if hands.take(&mut speaker, event).await?.is_break() {
            return Ok(());
        }
    }
    ready.send_replace(true);

    let mut is_stopping = false;
    let mut waiting = Vec::new();
    loop {
        hands.catch_up(&speaker).await;
        if hands.gossip.is_flooded() {
            yield_now().await;
        }
        let deadline = [speaker.deadline(), hands.deadline()].into_iter().flatten().min();
        // Every arm is cancel-safe: channels, watches and a timer. An arm whose channel has closed is passed over.
        let event = tokio::select! {
            () = shutdown.cancelled(), if !is_stopping => {
                is_stopping = true;
                ready.send_replace(false);
                Event::Shutdown
            }
            Ok(()) = snapshots.changed() => Event::Snapshot(snapshots.borrow_and_update().clone()),
            Some(interfaces) = interfaces.recv() => Event::Interfaces(interfaces),
            Ok(()) = proxy.changed() => Event::ProxyReady(*proxy.borrow_and_update()),
            () = hands.gossip.comes() => Event::Tick,
            Some(event) = answered.recv() => event,
            1.. = received.recv_many(&mut waiting, AT_ONCE) => {
                for event in waiting.drain(..) {
                    if hands.take(&mut speaker, event).await?.is_break() {
                        return Ok(());
                    }
                }
                continue;
            }
            Some(report) = watched.recv() => {
                let Seen { events, peers } = hands.watcher.take(report);
                for (path, is_up, failure) in peers {
                    hands.peering.watched(&path, is_up, failure);
                }
                for event in events {
                    if hands.take(&mut speaker, event).await?.is_break() {
                        return Ok(());
                    }
                }
                continue;
            }
            news = hands.peering.news() => {
                let Some(News { events, watch }) = news else {
                    hands.host.clear().await;
                    return Err(RunError::BgpEnded);
                };
                if let Some(watch) = watch {
                    hands.watcher.follow_peers(watch);
                }
                for event in events {
                    if hands.take(&mut speaker, event).await?.is_break() {
                        return Ok(());
                    }
                }
                continue;
            }
            () = hands.outbox.moves() => continue,
            Some(_) = tasks.join_next() => {
                hands.host.clear().await;
                return Err(RunError::NetlinkEnded);
            }
            () = alarm.rings(deadline) => Event::Tick,
        };
        if hands.take(&mut speaker, event).await?.is_break() {
            return Ok(());
        }
    }
}

async fn proxy_readiness(config: &Config, tasks: &mut JoinSet<()>) -> watch::Receiver<bool> {
    match &config.proxy {
        Some(ProxyReadiness::Watch(ready)) => ready.clone(),
        Some(ProxyReadiness::Ask(proxy)) => {
            let is_ready = proxy_probe::ask_once(*proxy, proxy_probe::FIRST_PATIENCE).await;
            let (sender, ready) = watch::channel(is_ready);
            tasks.spawn(proxy_probe::ask(*proxy, sender));
            ready
        }
        None => watch::channel(false).1,
    }
}

/// The keys of gossip as they are from now on; none unless told where they are.
fn keys(config: &Config, tasks: &mut JoinSet<()>) -> Result<watch::Receiver<Keys>, KeysError> {
    let Some(folder) = &config.flags.gossip_key else { return Ok(watch::channel(Keys::default()).1) };
    let (sender, keys) = watch::channel(keys::read(folder)?);
    tasks.spawn(keys::follow(folder.clone(), sender));
    Ok(keys)
}

/// Everything the loop acts with.
struct Hands {
    layer2: Layer2,
    health: HealthProbes,
    gossip: Gossip,
    keys: watch::Receiver<Keys>,
    watcher: Watcher,
    peering: Peering,
    /// What was counted of it so far.
    disbelieved: Disbelieved,
    /// How many of them were counted so far.
    renewals: u64,
    host: Host,
    detours: Detours,
    strays: Strays,
    /// Whether it is known that the kernel keeps quiet about addresses on the host.
    host_is_quiet: bool,
    outbox: Outbox,
    members: BTreeSet<NodeName>,
    metrics: Metrics,
    keeper: Keeper,
    announced: Announced,
    /// When silences are counted next.
    count_at: Option<Instant>,
}

impl Hands {
    /// Lets the machine take in one event and does what it wants. Breaks when everything is handed over; then, and on
    /// an error, nothing of ours is left on the host.
    async fn take(&mut self, speaker: &mut Speaker, event: Event) -> Result<ControlFlow<()>, RunError> {
        let now = Instant::now();
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        // Questions come by the thousand. Before anything else, and before anybody is missed, all that was said is heard.
        let is_question = matches!(event, Event::Arp { .. } | Event::Ndp { .. });
        let is_to_be_heard = !is_question || is_due(speaker.deadline()) || is_due(self.gossip.deadline());
        let heard = if is_to_be_heard { self.gossip.gather() } else { Vec::new() };
        let heard = (!heard.is_empty()).then_some(Event::Heard(heard));
        for event in [heard, Some(event)].into_iter().flatten() {
            let taken = self.try_take(speaker, now, event).await;
            if !matches!(taken, Ok(ControlFlow::Continue(()))) {
                self.host.clear().await;
                return taken;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn try_take(
        &mut self,
        speaker: &mut Speaker,
        now: Instant,
        event: Event,
    ) -> Result<ControlFlow<()>, RunError> {
        log_event(&event);
        if let Event::Interfaces(interfaces) = &event {
            // The sockets must be right before the machine sends by them.
            self.layer2.interfaces(interfaces)?;
            self.peering.interfaces(interfaces);
            self.host.interfaces(interfaces).await?;
            self.host_is_quiet = false;
        }
        if matches!(event, Event::Snapshot(_) | Event::Interfaces(_) | Event::ProxyReady(_) | Event::Health { .. }) {
            self.count_at.get_or_insert(now + COUNT_INTERVAL);
        }
        let asked = asked(&event);
        let seen = match &event {
            Event::Snapshot(snapshot) => Some(configuration::Event::Snapshot(snapshot.clone())),
            Event::Tick if self.keeper.deadline().is_some_and(|due| due <= now) => Some(configuration::Event::Tick),
            _ => None,
        };
        let actions = speaker.step(now, event);
        let decided = Instant::now();
        let is_answered = |target: &IpAddr| actions.iter().any(|action| is_about(action, *target));
        // Of one that yields, what was counted is the business of its next owner.
        if let Some(target) = asked.filter(|target| is_answered(target) && speaker.owned().contains_key(target)) {
            self.metrics.asked(target);
        }
        if let Some(seen) = seen {
            let write = self.keeper.step(now, seen);
            self.metrics.judged(self.keeper.state());
            write.into_iter().for_each(|write| self.outbox.push(write));
        }
        self.check_host(&actions)?;
        if let Some(rules) = actions.iter().find_map(stray_rules) {
            self.strays.follow(rules.clone(), !speaker.owned().is_empty()).await;
        }
        // All together, and before anything is told to the outside.
        let hold = actions.iter().filter_map(|action| match action {
            Action::Hold { address } => Some(*address),
            _ => None,
        });
        self.host.hold(&hold.collect::<Vec<_>>()).await?;
        let owned = actions.iter().filter_map(owned).collect::<Vec<_>>();
        for action in actions {
            log_action(&action);
            if action == Action::Finished {
                return Ok(ControlFlow::Break(()));
            }
            self.perform(action).await?;
        }
        // The frames have gone out with the rest.
        for failed_at in owned {
            self.metrics.announced_after(decided.elapsed());
            if let Some(failed_at) = failed_at {
                self.metrics.took_over(failed_at.elapsed());
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn perform(&mut self, action: Action) -> Result<(), RunError> {
        match action {
            Action::Send { interface, frame } => self.layer2.send(&interface, &frame),
            Action::Gossip { to, datagram } => self.gossip.send(&to, &datagram)?,
            Action::Listen { interfaces } => self.layer2.listen(interfaces)?,
            Action::CheckHealth { ports, at } => self.health.follow(&ports, at),
            Action::Watch(watch) => self.watcher.follow(watch),
            Action::Peer(wanted) => self.peering.follow(&wanted),
            Action::PassOn(next_hops) => self.detours.follow(next_hops).await,
            Action::Release { address } => self.host.release(address).await,
            Action::Join { interface, group } => self.layer2.join(interface, group),
            Action::Leave { interface, group } => self.layer2.leave(&interface, group),
            Action::Write(write) => {
                self.announced.note(&write, &self.metrics);
                self.outbox.push(write);
            }
            Action::Report(report) => self.report(report),
            // Done before, and by the caller.
            Action::Hold { .. } | Action::FollowStrays(_) | Action::Finished => {}
        }
        Ok(())
    }

    /// Makes sure that the kernel keeps quiet about addresses on the host, before there are any on new interfaces.
    fn check_host(&mut self, actions: &[Action]) -> Result<(), HostError> {
        let listen = actions.iter().rev().find_map(|action| match action {
            Action::Listen { interfaces } => Some(interfaces),
            _ => None,
        });
        self.host_is_quiet &= listen.is_none();
        let holds = |action: &Action| matches!(action, Action::Hold { address } if address.is_ipv4());
        if !self.host_is_quiet && (self.host.holds_ipv4() || actions.iter().any(holds)) {
            host::kernel_keeps_quiet(listen.unwrap_or(self.layer2.listening()))?;
            self.host_is_quiet = true;
        }
        Ok(())
    }

    fn report(&mut self, report: Report) {
        self.count_at.get_or_insert(Instant::now() + COUNT_INTERVAL);
        match report {
            Report::MemberAlive { node } => {
                info!(%node, "speaker heard");
                self.members.insert(node);
            }
            Report::MemberLost { node } => {
                warn!(%node, "speaker lost");
                self.members.remove(&node);
            }
            Report::MemberLeaving { node } => {
                info!(%node, "speaker is stopping");
                self.members.remove(&node);
            }
            Report::LeasesUnseen => {
                warn!("the lease of this speaker is not seen to be renewed; nobody counts as lost until it is");
                self.metrics.leases_unseen.set(1);
            }
            Report::LeasesSeen => {
                info!("the lease of this speaker is seen to be renewed again");
                self.metrics.leases_unseen.set(0);
            }
            Report::GossipRefused { from, node } => {
                warn!(address = %from, node, "gossip refused, it comes from no address of its node");
            }
            Report::Owned { address, interfaces, failed_at } => {
                let after = failed_at.map(|failed_at| failed_at.elapsed());
                info!(%address, ?interfaces, ?after, "address taken over");
                self.metrics.takeovers.inc();
            }
            Report::Lost { address, owner } => {
                let to = owner.as_ref().map(NodeName::as_str);
                info!(%address, to, "address given up");
                self.metrics.lost(address);
            }
            Report::NotPassedOn { address, from, why } => {
                info!(%address, %from, reason = why.reason(), "TCP connections end with the move, {why}");
                self.metrics.not_passed_on(why.reason());
            }
            Report::TooManyNodes { nodes } => {
                let why = NotPassedOn::TooManyNodes;
                info!(
                    nodes,
                    reason = why.reason(),
                    "TCP connections end when a router sends them to another node, {why}"
                );
                self.metrics.not_passed_on(why.reason());
            }
            Report::Conflict { address, interface, mac } => {
                error!(%address, %interface, %mac, "another device claims an address of this node; find it and change it");
                self.metrics.conflicts.inc();
            }
            Report::Rival { address, interface, node, yields } => {
                warn!(%address, %interface, %node, yields, "another speaker owns an address of this node");
                self.metrics.rivals.inc();
            }
            Report::Unseen { node, interface } => {
                warn!(
                    %node, %interface,
                    "the interface of an owner does not answer by BFD, where others do; if nobody else sees it, its addresses \
                     move; look at its cable and VLAN, and let UDP 3784 through"
                );
            }
            Report::Unpeered { peer, why } => {
                warn!(%peer, reason = why.reason(), error = %why, "router is not spoken with");
            }
        }
        self.metrics.members.set(self.members.len() as i64);
    }

    fn deadline(&self) -> Option<Instant> {
        let own = [self.host.deadline(), self.count_at, self.keeper.deadline(), self.gossip.deadline()];
        own.into_iter().flatten().min()
    }

    /// What is due apart from the machine.
    async fn catch_up(&mut self, speaker: &Speaker) {
        self.metrics.owned.set(speaker.owned().len() as i64);
        self.metrics.gossip_sealed(self.keys.borrow().are_there());
        let renewals = speaker.renewals();
        let more = renewals - std::mem::replace(&mut self.renewals, renewals);
        self.metrics.lease_renewals.inc_by(more);
        let Disbelieved { strangers, repeated } = speaker.disbelieved();
        let before = std::mem::replace(&mut self.disbelieved, speaker.disbelieved());
        self.metrics.gossip_disbelieved(GossipRefusal::Stranger, strangers - before.strangers);
        self.metrics.gossip_disbelieved(GossipRefusal::Repeated, repeated - before.repeated);
        let now = Instant::now();
        if self.host.deadline().is_some_and(|due| due <= now) {
            self.host.sweep().await;
        }
        if self.count_at.is_some_and(|due| due <= now) {
            self.count_at = None;
            let mut silences: BTreeMap<&'static str, i64> = BTreeMap::new();
            for (_, outcome) in speaker.outcomes() {
                if let Err(silence) = outcome {
                    *silences.entry(silence.reason()).or_default() += 1;
                }
            }
            self.metrics.silences(silences);
        }
    }
}

/// Of an address that is this node's from now on: when the node failed that it is taken over from, if one did.
fn owned(action: &Action) -> Option<Option<Instant>> {
    match action {
        Action::Report(Report::Owned { failed_at, .. }) => Some(*failed_at),
        _ => None,
    }
}

/// What is to be done about connections that routers bring to the wrong node.
fn stray_rules(action: &Action) -> Option<&StrayRules> {
    match action {
        Action::FollowStrays(rules) => Some(rules),
        _ => None,
    }
}

/// The address that somebody on the link asks for.
fn asked(event: &Event) -> Option<IpAddr> {
    match event {
        Event::Arp { arp, .. } if arp.operation == Operation::Request => Some(arp.target.into()),
        Event::Ndp { ndp: Ndp::Solicitation(solicitation), .. } => Some(solicitation.target.into()),
        _ => None,
    }
}

/// Whether this says that an address is here.
fn is_about(action: &Action, address: IpAddr) -> bool {
    matches!(action, Action::Send { frame, .. } if layer2::about(frame) == Some(address))
}

fn log_event(event: &Event) {
    match event {
        Event::Heard(_) | Event::Tick => trace!(?event, "event"),
        Event::Snapshot(snapshot) => debug!(services = snapshot.services.len(), "new snapshot"),
        _ => debug!(?event, "event"),
    }
}

fn log_action(action: &Action) {
    match action {
        Action::Gossip { .. } | Action::Write(Write::Lease { .. }) => trace!(?action, "action"),
        _ => debug!(?action, "action"),
    }
}
