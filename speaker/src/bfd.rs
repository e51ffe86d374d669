//! BFD on a thread of its own, so that nothing else this process does makes it late. What the sessions say and when is
//! decided in `ferrogate_core::speaker::bfd`.
//!
//! ```text
//!            commands                        ┌─► sockets of sessions: packets out
//!  Bfd ──────────────────► thread: Sessions ─┤
//!   ▲                          ▲             └─► metrics
//!   └───────── reports ────────┴──── UDP 3784 and 4784: packets in
//! ```
//!
//! The thread waits in `ppoll` until news, a command or the deadline of a session comes, and takes every packet that has
//! arrived before it looks at a deadline. Each counts from when the kernel had it, so that one that says that its sender is
//! up, as it was, need wake nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::mpsc as std_mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ferrogate_core::speaker::bfd::{
    Change, Discard, Sessions, Status,
    sessions::{Action, Event, Path, Wanted},
};
use ferrogate_wire::bfd::State;
use nix::poll::{PollFd, PollFlags, ppoll};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, trace, warn};

use self::socket::{Received, Receiver, Sender};
use crate::{
    clock::Clocks,
    metrics::{BfdMetrics, BfdPeerMetrics, Metrics, PathCounters, PeerPath},
    patience::Kind,
    realtime,
};

mod socket;

/// Packets taken from one socket before deadlines are looked at: more than one holds by default, so that everything that had
/// arrived by a deadline is taken before it.
const BATCH: usize = 1024;

/// For how long packets are taken as they come after a socket had no room for all.
const ALERT: Duration = Duration::from_secs(60);

/// When sockets that could not be opened are tried again.
const OPEN_AGAIN: Duration = Duration::from_secs(10);

/// What there is to tell of sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A session has come up, or is up no more.
    Changed {
        /// Which.
        path: Path,
        /// How.
        change: Change,
        /// When it came about.
        at: Instant,
    },
    /// Sessions that are wanted are up already. Told together, so that they leave room for others.
    Standing {
        /// Which.
        paths: Vec<Path>,
    },
    /// A session has flapped, and stays down until then.
    Held {
        /// Which.
        path: Path,
        /// For how long.
        time: Duration,
    },
    /// A session that is wanted cannot be: there are too many.
    Refused {
        /// Which.
        path: Path,
    },
}

/// How much depends on the thread being served in time. Whatever it is, the thread runs before all that has no real-time
/// priority (`SCHED_FIFO`), if the kernel permits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A machine has to be very busy to make it late.
    Usual,
    /// Without real-time priority it is late often, and that is worth a warning.
    RealTime,
}

/// The sessions of this process. When it is dropped every neighbour is told that its session is switched off, and the
/// thread is gone.
#[derive(Debug)]
pub struct Bfd {
    /// Taken by the thread as soon as it is woken.
    commands: std_mpsc::Sender<Command>,
    bell: UnixStream,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Command {
    Prefer(Priority),
    Count(BTreeSet<PeerPath>),
    Want(Wanted),
    Tell(oneshot::Sender<Vec<(Path, Status)>>),
    Stop,
}

impl Bfd {
    /// Starts the thread, with no session yet. It stays in the network namespace of the caller.
    ///
    /// Reports that do not fit are lost: only what begins or ends being up is told, which damping keeps rare.
    ///
    /// # Errors
    /// When the kernel has no thread or descriptor left.
    pub fn start(reports: mpsc::Sender<Report>, metrics: &Metrics, priority: Priority) -> io::Result<Self> {
        let (commands, commanded) = std_mpsc::channel();
        let (bell, rung) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        rung.set_nonblocking(true)?;
        let runner = Runner {
            sessions: Sessions::new(rand::random()),
            commanded,
            rung,
            reports,
            metrics: metrics.bfd(),
            peer_metrics: metrics.bfd_peers.clone(),
            counted: BTreeMap::new(),
            authenticating: BTreeSet::new(),
            receivers: BTreeMap::new(),
            needed: BTreeSet::new(),
            open_at: None,
            senders: BTreeMap::new(),
            priority: None,
            looked: Clocks::read(),
            stepped_at: Instant::now(),
            alert_until: None,
            is_stopping: false,
        };
        let thread = thread::Builder::new().name("bfd".to_owned()).spawn(move || runner.run())?;
        let bfd = Self { commands, bell, thread: Some(thread) };
        bfd.prefer(priority);
        Ok(bfd)
    }

    /// So much depends on it from now on. It never becomes less.
    pub fn prefer(&self, priority: Priority) {
        self.command(Command::Prefer(priority));
    }

    /// Has exactly these sessions from now on.
    pub fn want(&self, wanted: Wanted) {
        self.command(Command::Want(wanted));
    }

    /// Counts the packets of exactly these sessions, each by itself.
    pub(crate) fn count(&self, peers: BTreeSet<PeerPath>) {
        self.command(Command::Count(peers));
    }

    /// How every session stands.
    pub async fn statuses(&self) -> Vec<(Path, Status)> {
        let (sender, statuses) = oneshot::channel();
        self.command(Command::Tell(sender));
        statuses.await.unwrap_or_default()
    }

    fn command(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            // A bell that takes no more has been rung already.
            let _ = (&self.bell).write(&[0]);
        }
    }
}

impl Drop for Bfd {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of it has been told where it happened.
            let _ = thread.join();
        }
    }
}

/// The thread.
struct Runner {
    sessions: Sessions,
    commanded: std_mpsc::Receiver<Command>,
    rung: UnixStream,
    reports: mpsc::Sender<Report>,
    metrics: BfdMetrics,
    peer_metrics: BfdPeerMetrics,
    /// Sessions whose packets are counted each by itself.
    counted: BTreeMap<Path, (PeerPath, PathCounters)>,
    /// Of those, the ones that were said to authenticate.
    authenticating: BTreeSet<Path>,
    receivers: BTreeMap<socket::Port, Receiver>,
    /// What is to be listened at.
    needed: BTreeSet<socket::Port>,
    /// When those that are missing are opened again.
    open_at: Option<Instant>,
    senders: BTreeMap<Path, Sender>,
    /// What was wanted when the kernel was asked.
    priority: Option<Priority>,
    /// When packets were last taken.
    looked: Clocks,
    /// When the sessions were last told something.
    stepped_at: Instant,
    /// Until when packets are taken as they come, whatever the sessions say.
    alert_until: Option<Instant>,
    is_stopping: bool,
}

impl Runner {
    fn run(mut self) {
        while !self.is_stopping {
            // Whatever ends the wait, packets are looked for, as they may have lain unread.
            let has_commands = self.wait();
            let is_due = self.sessions.deadline().is_some_and(|deadline| deadline <= Instant::now());
            self.receive();
            if has_commands {
                self.obey();
            }
            let now = Instant::now();
            if self.open_at.is_some_and(|open_at| open_at <= now) {
                self.listen(now);
            }
            if is_due {
                self.step(now, Event::Tick);
            }
        }
    }

    /// Waits for whatever is next. Returns whether that may be a command.
    fn wait(&self) -> bool {
        let now = Instant::now();
        let is_alert = self.alert_until.is_some_and(|alert_until| now < alert_until);
        let unread_until = self.sessions.unread_until(now).filter(|_| !is_alert);
        let deadline = [self.sessions.deadline(), self.open_at, unread_until].into_iter().flatten().min();
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(now).into());
        let awaited = if unread_until.is_some() { &[Kind::News][..] } else { &Kind::BOTH };
        let sockets =
            self.receivers.values().flat_map(|receiver| awaited.iter().filter_map(|kind| receiver.socket(*kind)));
        let all = [self.rung.as_fd()].into_iter().chain(sockets);
        let mut all: Vec<PollFd> = all.map(|socket| PollFd::new(socket, PollFlags::POLLIN)).collect();
        // After a signal, or where memory is short, whatever may have come is looked at.
        ppoll(&mut all, timeout, None).is_err() || all.first().is_none_or(|rung| rung.any().unwrap_or(true))
    }

    /// Takes every packet that has arrived.
    fn receive(&mut self) {
        let mut arrived = Vec::new();
        for receiver in self.receivers.values_mut() {
            for kind in Kind::BOTH {
                for _ in 0..BATCH {
                    match receiver.next(kind) {
                        Ok(Some(received)) => arrived.push(received),
                        Ok(None) => break,
                        // Others may lie behind it.
                        Err(error) => trace!(%error, "BFD packet not received"),
                    }
                }
            }
        }
        let clocks = Clocks::read();
        let looked = std::mem::replace(&mut self.looked, clocks);
        if self.receivers.values_mut().any(Receiver::has_overflowed) {
            self.alert_until = Some(clocks.now() + ALERT);
        }
        let mut arrived: Vec<_> =
            arrived.into_iter().map(|received| (clocks.when(received.stamp, &looked), received)).collect();
        // Each socket has them in order, but there may be several.
        arrived.sort_by_key(|(at, _)| *at);
        for (at, Received { arrival, packet, .. }) in arrived {
            // What should have been sent by then is not sent in the past.
            let is_in_time = self.sessions.deadline().is_none_or(|deadline| at < deadline);
            let at = if is_in_time { at.max(self.stepped_at) } else { clocks.now() };
            self.metrics.received.inc();
            if let Some((_, counters)) = self.counted.get(&arrival.path) {
                counters.received();
            }
            self.step(at, Event::Received { arrival, packet });
        }
    }

    fn obey(&mut self) {
        while matches!((&self.rung).read(&mut [0; 64]), Ok(64)) {}
        let (mut wanted, mut counted) = (None, None);
        loop {
            match self.commanded.try_recv() {
                Ok(Command::Prefer(priority)) => self.prefer(priority),
                Ok(Command::Count(newest)) => counted = Some(newest),
                Ok(Command::Want(newest)) => wanted = Some(newest),
                Ok(Command::Tell(listener)) => {
                    let statuses = self.sessions.statuses().map(|(path, status)| (path.clone(), status));
                    let _ = listener.send(statuses.collect());
                }
                Ok(Command::Stop) | Err(std_mpsc::TryRecvError::Disconnected) => {
                    self.is_stopping = true;
                    self.step(Instant::now(), Event::Shutdown);
                    return;
                }
                Err(std_mpsc::TryRecvError::Empty) => break,
            }
        }
        if let Some(counted) = counted {
            self.count(counted);
        }
        if let Some(wanted) = wanted {
            let now = Instant::now();
            self.receivers.values_mut().for_each(Receiver::forget_names);
            self.needed = socket::ports(&wanted);
            self.listen(now);
            self.step(now, Event::Want(wanted));
        }
    }

    fn count(&mut self, peers: BTreeSet<PeerPath>) {
        let gone: Vec<PeerPath> =
            self.counted.values().map(|(peer, _)| peer).filter(|peer| !peers.contains(peer)).cloned().collect();
        for (path, _) in &gone {
            self.authenticating.remove(path);
            self.counted.remove(path);
        }
        self.peer_metrics.forget(&gone, peers.iter());
        for peer in peers {
            let counters = self.peer_metrics.counters(&peer);
            self.counted.entry(peer.0.clone()).or_insert((peer, counters));
        }
    }

    fn prefer(&mut self, priority: Priority) {
        if self.priority >= Some(priority) {
            return;
        }
        self.priority = Some(priority);
        match realtime::claim() {
            Ok(()) => {
                if self.metrics.real_time.set(1) == 0 {
                    info!("BFD runs with real-time priority");
                }
            }
            Err(error) if priority == Priority::Usual => info!(
                %error,
                "BFD runs without real-time priority and may raise false alarms on a very busy machine; give this process \
                 CAP_SYS_NICE to avoid that"
            ),
            Err(error) => warn!(
                %error,
                "BFD runs without real-time priority and may raise false alarms on a busy machine; give this process \
                 CAP_SYS_NICE"
            ),
        }
    }

    /// Opens the sockets that are needed and not there, before any session speaks, and closes those that are not needed, or
    /// hear nothing since their VRF device is another one.
    fn listen(&mut self, now: Instant) {
        self.open_at = None;
        self.receivers.retain(|port, receiver| self.needed.contains(port) && receiver.is_in_place());
        for port in &self.needed {
            if self.receivers.contains_key(port) {
                continue;
            }
            match Receiver::open(port.clone(), self.receivers.values()) {
                Ok(receiver) => drop(self.receivers.insert(port.clone(), receiver)),
                Err(error) => {
                    warn!(
                        port = port.number(), %error,
                        "cannot listen for BFD: next in line learns by gossip or Leases alone that an owner is lost, and takes \
                         this one for dead unless gossip goes by the network that is served; if another program has the UDP \
                         port, end it or choose --bfd-profile off"
                    );
                    self.open_at = Some(now + OPEN_AGAIN);
                }
            }
        }
    }

    fn step(&mut self, now: Instant, event: Event) {
        self.stepped_at = now;
        let mut is_different = false;
        for action in self.sessions.step(now, event) {
            match action {
                Action::Opened { .. } => is_different = true,
                Action::Closed { path } => {
                    is_different = true;
                    self.senders.remove(&path);
                }
                Action::Send { path, packet } => self.send(path, &packet.encode()),
                Action::Changed { path, change } => {
                    is_different = true;
                    self.metrics.changed(change.to);
                    if change.from == State::Up || change.to == State::Up {
                        self.report(Report::Changed { path, change, at: now });
                    }
                }
                Action::Held { path, until } => {
                    self.report(Report::Held { path, time: until.saturating_duration_since(now) });
                }
                Action::Discarded { path, reason } => self.discard(&path, reason),
                Action::Standing { paths } => self.report(Report::Standing { paths }),
                Action::Refused { path } => self.report(Report::Refused { path }),
                Action::Finished => {}
            }
        }
        if is_different {
            self.metrics.sessions(self.sessions.statuses().map(|(_, status)| status.state));
        }
    }

    fn send(&mut self, path: Path, packet: &[u8]) {
        let sent = match self.senders.get(&path) {
            Some(sender) => sender.send(packet),
            None => {
                let taken: BTreeSet<u16> = self.senders.values().map(Sender::port).collect();
                Sender::open(&path, &taken).and_then(|sender| {
                    let sent = sender.send(packet);
                    self.senders.insert(path.clone(), sender);
                    sent
                })
            }
        };
        match sent {
            Ok(()) => {
                self.metrics.sent.inc();
                if let Some((_, counters)) = self.counted.get(&path) {
                    counters.sent();
                }
            }
            Err(error) => {
                self.metrics.unsent.inc();
                debug!(peer = %path.remote, %error, "BFD packet not sent");
                // The interface is another one by now, or gone.
                if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::EINVAL)) {
                    self.senders.remove(&path);
                    // So may be what is received at.
                    self.open_at.get_or_insert(Instant::now() + OPEN_AGAIN);
                }
            }
        }
    }

    fn discard(&mut self, path: &Path, reason: Discard) {
        self.metrics.discarded(reason);
        let is_peer = self.counted.contains_key(path);
        if reason == Discard::Authenticated && is_peer && self.authenticating.insert(path.clone()) {
            warn!(
                peer = %path.remote,
                "BFD packets of a BGP peer are authenticated, which is not understood, and its session stays down; switch \
                 authentication of BFD off at the peer"
            );
        }
        trace!(peer = %path.remote, ?reason, "BFD packet discarded");
    }

    fn report(&self, report: Report) {
        let _ = self.reports.try_send(report);
    }
}
