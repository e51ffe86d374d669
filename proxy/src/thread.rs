//! One thread of the proxy: everything it has is its own, so that a request takes no lock and shares no cache line.
//!
//! ```text
//! run (lib.rs) ──Command──► control task ──► accept task for each listener ──► one task for each connection
//!                                  sweeper task (time limits, date, idle upstream connections)
//! ```
//! All tasks of a thread are local to it and end with it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

use ferrogate_core::proxy::{ListenerKey, RouteTable, balance::Balancer};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::LocalSet,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::Log,
    config::Config,
    listen,
    metrics::Counters,
    upstream::{Pool, Work},
    watches::{Watch, Watches},
};

/// What a thread is told. Commands are obeyed in order.
pub(crate) enum Command {
    /// Serve this table from now on. Requests in flight finish on the one they began with.
    Table(Arc<RouteTable>),
    /// Accept connections from this socket.
    OpenTcp(ListenerKey, std::net::TcpListener),
    /// Take datagrams from this socket.
    OpenUdp(ListenerKey, std::net::UdpSocket),
    /// Close this listener, once everything that is waiting in it has been accepted.
    Close(ListenerKey),
    /// Tell every client with its next answer that its connection ends: the thread will.
    Leave,
}

/// Commands that may wait for a thread. A full queue makes the sender wait: a table comes with at most one command
/// for each listener, and nothing else is urgent.
const COMMANDS: usize = 256;

/// A table as one thread holds it. The threads share the table itself; each counts its own holders of it, so that a
/// request touches no counter of another core.
#[derive(Default)]
pub(crate) struct Table(Arc<RouteTable>);

impl std::ops::Deref for Table {
    type Target = RouteTable;

    fn deref(&self) -> &RouteTable {
        &self.0
    }
}

/// The state of one thread.
pub(crate) struct Thread {
    /// Flags.
    pub(crate) config: Arc<Config>,
    /// Where requests are logged, if they are.
    pub(crate) access_log: Option<Log>,
    /// Numbers of this thread.
    pub(crate) counters: Arc<Counters>,
    /// Chooses endpoints.
    pub(crate) balancer: RefCell<Balancer>,
    /// Idle connections to endpoints.
    pub(crate) pool: RefCell<Pool>,
    /// Open connections and the time.
    pub(crate) watches: Rc<Watches>,
    /// Set once every answer is to be the last one on its connection.
    pub(crate) leaving: Cell<bool>,
    /// Set once no new request is to be begun.
    pub(crate) draining: Cell<bool>,
    table: RefCell<Rc<Table>>,
    /// Told whenever another table is in force.
    adopted: watch::Sender<()>,
    date: RefCell<Vec<u8>>,
}

impl Thread {
    pub(crate) fn new(config: Arc<Config>, access_log: Option<Log>, counters: Arc<Counters>, seed: u64) -> Rc<Self> {
        let thread = Self {
            pool: RefCell::new(Pool::new(&config)),
            config,
            access_log,
            counters,
            balancer: RefCell::new(Balancer::new(seed)),
            watches: Watches::new(Instant::now()),
            leaving: Cell::new(false),
            draining: Cell::new(false),
            table: RefCell::default(),
            adopted: watch::Sender::default(),
            date: RefCell::default(),
        };
        thread.set_date();
        Rc::new(thread)
    }

    /// The table in force.
    pub(crate) fn table(&self) -> Rc<Table> {
        Rc::clone(&self.table.borrow())
    }

    /// Tells when another table is in force.
    pub(crate) fn adopted(&self) -> watch::Receiver<()> {
        self.adopted.subscribe()
    }

    /// The time, good to one tick.
    pub(crate) fn now(&self) -> Instant {
        self.watches.now()
    }

    /// Counts in one more connection.
    pub(crate) fn watch(&self, listener: ListenerKey) -> Watch {
        Watch::new(&self.watches, listener)
    }

    /// Notes that work at an endpoint begins, which [`Balancer::choose`] has counted already.
    pub(crate) fn work(self: &Rc<Self>, endpoint: std::net::SocketAddr) -> Work {
        Work::new(Rc::clone(self), endpoint)
    }

    /// The `Date:` line of this second, complete.
    pub(crate) fn with_date<T>(&self, use_it: impl FnOnce(&[u8]) -> T) -> T {
        use_it(&self.date.borrow())
    }

    fn set_date(&self) {
        let date = format!("Date: {}\r\n", httpdate::fmt_http_date(SystemTime::now()));
        *self.date.borrow_mut() = date.into_bytes();
    }

    /// Puts another table in force.
    pub(crate) fn adopt(&self, table: Arc<RouteTable>) {
        self.balancer.borrow_mut().adopt(self.now());
        self.pool.borrow_mut().adopt(&table);
        *self.table.borrow_mut() = Rc::new(Table(table));
        self.adopted.send_replace(());
    }
}

/// The handle of a running thread.
pub(crate) struct Handle {
    /// Where it takes commands.
    pub(crate) commands: mpsc::Sender<Command>,
    /// Resolves when it has ended.
    pub(crate) ended: oneshot::Receiver<()>,
}

/// Starts a thread, on one CPU if one is given.
pub(crate) fn start(
    number: usize,
    cpu: Option<usize>,
    config: Arc<Config>,
    access_log: Option<Log>,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
) -> io::Result<Handle> {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (ending, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    std::thread::Builder::new().name(format!("proxy-{number}")).spawn(move || {
        if let Some(cpu) = cpu {
            pin(cpu);
        }
        let local = LocalSet::new();
        let thread = Thread::new(config, access_log, counters, number as u64);
        local.block_on(&runtime, control(thread, inbox, shutdown));
        // What is still open when the time to drain is over ends here, with its tasks.
        drop(local);
        drop(runtime);
        let _ = ending.send(());
    })?;
    Ok(Handle { commands, ended })
}

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(cpu, %error, "thread could not be bound to its cpu");
    }
}

async fn control(thread: Rc<Thread>, mut inbox: mpsc::Receiver<Command>, shutdown: CancellationToken) {
    let sweeper = tokio::task::spawn_local(sweep(Rc::clone(&thread)));
    let mut listeners: BTreeMap<ListenerKey, listen::Open> = BTreeMap::new();
    loop {
        // Receiving is cancel-safe: a command that is not taken stays in the channel. What was told before the end is
        // obeyed first: clients may be waiting already in a listener that comes with it.
        let command = tokio::select! {
            biased;
            command = inbox.recv() => command,
            () = shutdown.cancelled() => None,
        };
        match command {
            Some(Command::Table(table)) => thread.adopt(table),
            Some(Command::OpenTcp(key, socket)) => match listen::open_tcp(&thread, key, socket) {
                Ok(open) => drop(listeners.insert(key, open)),
                Err(error) => tracing::error!(listener = %key.socket, %error, "listener cannot be served"),
            },
            Some(Command::OpenUdp(key, socket)) => match listen::open_udp(&thread, key, socket) {
                Ok(open) => drop(listeners.insert(key, open)),
                Err(error) => tracing::error!(listener = %key.socket, %error, "listener cannot be served"),
            },
            Some(Command::Close(key)) => {
                if let Some(open) = listeners.remove(&key) {
                    open.close().await;
                    thread.watches.close_idle(Some(key));
                }
            }
            Some(Command::Leave) => thread.leaving.set(true),
            None => break,
        }
    }

    // No request is lost: what already waits in a listener is accepted, then served with the rest.
    thread.leaving.set(true);
    thread.draining.set(true);
    for (_, open) in listeners {
        open.close().await;
    }
    thread.watches.close_idle(None);
    let drained = async {
        while thread.watches.len() > 0 {
            thread.watches.freed().await;
        }
    };
    if tokio::time::timeout(thread.config.drain_timeout, drained).await.is_err() {
        tracing::warn!(connections = thread.watches.len(), "connections were cut at the end of the time to drain");
    }
    sweeper.abort();
}

async fn sweep(thread: Rc<Thread>) {
    let mut tick = tokio::time::interval(thread.config.tick());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await.into_std();
        thread.watches.sweep(now);
        thread.pool.borrow_mut().sweep(now);
        thread.set_date();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ferrogate_core::proxy::Transport;

    use super::*;
    use crate::fixtures::{World, loopback, run};

    #[test]
    fn what_a_thread_was_told_before_the_end_is_done_before_it_ends() {
        run(async {
            let socket = std::net::TcpListener::bind(loopback()).unwrap();
            socket.set_nonblocking(true).unwrap();
            let mut world = World::new(socket.local_addr().unwrap(), Transport::Tcp);
            world.service.is_entry = true;
            let _client = std::net::TcpStream::connect(world.key.socket).unwrap();
            let thread = world.thread(Config { drain_timeout: Duration::ZERO, ..Config::default() });
            let (commands, inbox) = mpsc::channel(COMMANDS);
            let shutdown = CancellationToken::new();
            for _ in 1..COMMANDS {
                commands.send(Command::Table(world.table())).await.unwrap();
            }
            commands.send(Command::OpenTcp(world.key, socket)).await.unwrap();
            shutdown.cancel();

            control(Rc::clone(&thread), inbox, shutdown).await;

            assert_eq!(thread.counters.accepted.value(), 1);
        });
    }
}
