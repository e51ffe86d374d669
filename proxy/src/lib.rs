//! Hands of the proxy: listeners, requests, endpoints.
//!
//! [`run`] follows the snapshots: it compiles each into a [`RouteTable`], binds and closes listeners ([`listen`]), and
//! hands both to the threads ([`thread`]), which share nothing. What happens to a request is told from top to bottom
//! in [`forward`]. Nothing here decides where a request goes; `ferrogate_core::proxy` does.
//!
//! A source that ends or stops telling anything changes nothing: the last table is served until the shutdown.

use std::{io, num::NonZeroUsize, sync::Arc, time::Duration};

use ferrogate_core::{
    proxy::{RouteTable, Standing},
    snapshot::Snapshot,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    access::Log,
    listen::{Changes, Listeners, Sockets},
    thread::{Command, Handle},
};

mod access;
mod buffer;
mod config;
mod datagrams;
#[cfg(test)]
mod fixtures;
mod forward;
mod listen;
mod metrics;
mod respond;
pub mod succession;
mod tcp;
mod thread;
mod udp;
mod upstream;
mod watches;

pub use access::{AccessLog, Destination};
pub use config::*;
pub use metrics::Metrics;

/// How often a listener that could not be bound is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// How long the end waits for whoever reads the access log.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Why the proxy ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A flag cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A thread could not be started.
    #[error("a proxy thread could not be started")]
    Start(#[source] io::Error),
    /// A thread ended in a panic.
    #[error("a proxy thread ended by itself")]
    ThreadEnded,
}

/// Serves what the snapshots say until `shutdown`, and then until the requests in flight are done or their time is
/// over. `ready` becomes true once every listener of the first snapshot that can be bound is bound, and false at the
/// shutdown. Behind kube-proxy it is true only while every listener is open, and at the shutdown new connections are
/// taken for `leave_time` more, until nobody brings any.
///
/// # Errors
/// A flag that cannot be used, a thread that cannot be started or that ends by itself. Listeners that cannot be bound
/// are no error: they are logged, counted and tried again.
pub async fn run(
    config: Config,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: Metrics,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    config.check()?;
    let config = Arc::new(config);
    allow_descriptors();
    let stop = CancellationToken::new();
    let log = Log::start(config.access_log, config.access_log_to.clone()).map_err(RunError::Start)?;
    let (log, logged) = log.unzip();
    let mut threads = Threads::start(&config, log, &metrics, &stop).map_err(RunError::Start)?;
    let mut listeners = Listeners::new(threads.commands.len(), metrics.clone());
    let mut table = Arc::new(RouteTable::default());
    let mut source_ended = false;
    let mut leave_at = None;
    let result = loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let next = RouteTable::compile(&snapshot, config.node.as_ref());
        if next != *table {
            table = Arc::new(next);
            metrics.tables.inc();
            for unserved in table.unserved() {
                tracing::warn!(object = %unserved.object, reason = unserved.why.reason(), why = %unserved.why, "not served");
            }
        }
        threads.apply(listeners.follow(&table), &table).await;
        let stands = match table.standing() {
            Standing::OwnAddresses => true,
            Standing::BehindKubeProxy => !listeners.incomplete(),
            Standing::AwaitsEntry => false,
        };
        let is_ready = stands && leave_at.is_none();
        ready.send_if_modified(|ready| std::mem::replace(ready, is_ready) != is_ready);

        // All of these are cancel-safe: what was not taken is seen in the next round.
        tokio::select! {
            changed = snapshots.changed(), if !source_ended => source_ended = changed.is_err(),
            () = tokio::time::sleep(BIND_AGAIN), if listeners.incomplete() => {}
            _ = threads.ended.join_next() => break Err(RunError::ThreadEnded),
            () = shutdown.cancelled(), if leave_at.is_none() => {
                ready.send_replace(false);
                if table.standing() == Standing::OwnAddresses {
                    break Ok(());
                }
                tracing::info!(leave_time = ?config.leave_time, "not ready any more, waiting for traffic to go elsewhere");
                listeners.leave();
                threads.tell_all(|| Command::Leave).await;
                leave_at = Some(tokio::time::Instant::now() + config.leave_time);
            }
            () = reached(leave_at) => break Ok(()),
        }
    };
    ready.send_replace(false);
    // Before the threads close theirs: the handles it keeps would hold the sockets open.
    listeners.close();
    stop.cancel();
    while threads.ended.join_next().await.is_some() {}
    if let Some(logged) = logged
        && tokio::time::timeout(LAST_LINES, logged).await.is_err()
    {
        tracing::warn!("the last lines of the access log could not be written");
    }
    metrics.forget_threads();
    result
}

async fn reached(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The running threads.
struct Threads {
    commands: Vec<tokio::sync::mpsc::Sender<Command>>,
    /// One task for each thread, which ends with it.
    ended: JoinSet<()>,
    table: Option<Arc<RouteTable>>,
}

impl Threads {
    fn start(config: &Arc<Config>, log: Option<Log>, metrics: &Metrics, stop: &CancellationToken) -> io::Result<Self> {
        let cpus = allowed_cpus();
        let count = config.threads.map_or(cpus.len().max(1), NonZeroUsize::get);
        let pinned = config.pin_threads && count == cpus.len() && count > 1;
        let mut threads = Self { commands: Vec::new(), ended: JoinSet::new(), table: None };
        for number in 0..count {
            let cpu = cpus.get(number).copied().filter(|_| pinned);
            let (config, log, counters) = (Arc::clone(config), log.clone(), metrics.thread());
            let Handle { commands, ended } = thread::start(number, cpu, config, log, counters, stop.clone())?;
            threads.commands.push(commands);
            threads.ended.spawn(async move {
                // An error means that the thread ended in a panic, which is an end too.
                let _ = ended.await;
            });
        }
        Ok(threads)
    }

    /// Tells every thread. What is closed accepts its last connections on the old table.
    async fn apply(&mut self, changes: Changes, table: &Arc<RouteTable>) {
        for key in changes.closed {
            tracing::info!(listener = %key.socket, "listening no more");
            self.tell_all(|| Command::Close(key)).await;
        }
        if !self.table.as_ref().is_some_and(|known| Arc::ptr_eq(known, table)) {
            self.table = Some(Arc::clone(table));
            self.tell_all(|| Command::Table(Arc::clone(table))).await;
        }
        for (key, sockets) in changes.opened {
            match sockets {
                Sockets::Tcp(sockets) => {
                    for (thread, socket) in self.commands.iter().zip(sockets) {
                        tell(thread, Command::OpenTcp(key, socket)).await;
                    }
                }
                Sockets::Udp(sockets) => {
                    for (thread, socket) in self.commands.iter().zip(sockets) {
                        tell(thread, Command::OpenUdp(key, socket)).await;
                    }
                }
            }
        }
    }

    async fn tell_all(&self, command: impl Fn() -> Command) {
        for thread in &self.commands {
            tell(thread, command()).await;
        }
    }
}

/// A thread that is gone is noticed by `run` in its next round.
async fn tell(thread: &tokio::sync::mpsc::Sender<Command>, command: Command) {
    if thread.send(command).await.is_err() {
        tracing::debug!("a command came after the end of its thread");
    }
}

/// Raises the limit of open descriptors to what the system allows: shells and service managers set it low for the sake
/// of programs that use `select`.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
}

/// The CPUs this process may use.
fn allowed_cpus() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => vec![0],
    }
}
