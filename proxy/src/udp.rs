//! UDP datagrams passed on as they are.
//!
//! What one client address sends is a *flow*. A flow has an endpoint and a connected socket to it; answers leave from
//! the listener's own socket, so that they come from the address the client asked. A flow ends when it has been
//! silent for a while. It gets another endpoint at once when its endpoint refuses (ICMP port unreachable), goes away,
//! or is on a node that went out of sight while other endpoints did not. What the former one was asked it may still
//! answer for a moment.
//!
//! ```text
//! client ──► listener socket ──► flow's socket ──► endpoint      task of the listener
//! client ◄── listener socket ◄── flow's socket ◄── endpoint      one task for each flow
//! ```
//!
//! The flows of a listener are bounded. When they are full, one that has no client any more goes first, then the oldest
//! that never had an answer (a flood of forged addresses therefore displaces itself), then the oldest that is silent.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    rc::{Rc, Weak},
    time::Duration,
};

use ferrogate_core::proxy::{ListenerKey, Serves, Transport};
use rustix::io::Errno;
use socket2::{SockAddr, SockRef};
use tokio::{
    task::AbortHandle,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    buffer::Buffer,
    datagrams::{self, Socket},
    thread::Thread,
    upstream::Work,
};

/// Datagrams taken from one socket before others get their turn.
const BATCH: usize = 64;

/// A flow ends after so many looks in a row that found it silent; they are spread over the idle timeout.
const LOOKS: u8 = 4;

/// How long a listener goes on after the thread began to drain, and an endpoint is heard whose client has another one: what
/// was asked shortly before still gets its answer.
const LINGER: Duration = Duration::from_secs(1);

/// Serves one listener until it is closed.
///
/// # Errors
/// The socket cannot be registered with the runtime.
pub(crate) fn open(
    thread: &Rc<Thread>,
    key: ListenerKey,
    socket: UdpSocket,
    close: CancellationToken,
) -> io::Result<impl Future<Output = ()> + use<>> {
    let listener = Rc::new(Listener {
        thread: Rc::clone(thread),
        key,
        socket: datagrams::register(socket)?,
        flows: RefCell::default(),
    });
    Ok(serve(listener, close))
}

async fn serve(listener: Rc<Listener>, close: CancellationToken) {
    tokio::select! {
        () = close.cancelled() => {}
        () = listener.run() => {}
    }
    if !listener.thread.draining.get() {
        return listener.end();
    }
    // Whoever waits for the thread to drain waits for this as well, but nobody waits for one listener after another.
    let watch = listener.thread.watch(listener.key);
    tokio::task::spawn_local(async move {
        let _ = tokio::time::timeout(LINGER, listener.run()).await;
        listener.end();
        drop(watch);
    });
}

struct Listener {
    thread: Rc<Thread>,
    key: ListenerKey,
    socket: Socket,
    flows: RefCell<Flows>,
}

#[derive(Default)]
struct Flows {
    by_client: HashMap<SocketAddr, Entry>,
    /// Flows in the order in which they began; each is given a number.
    begun: u64,
    /// Flows that had no answer when they were queued, oldest first. Some have ended or had one since.
    asking: VecDeque<(SocketAddr, u64)>,
    /// Flows that had an answer, next to be displaced first. Some have ended since.
    answered: VecDeque<(SocketAddr, u64)>,
    /// Flows whose clients have another endpoint, or none, and until when answers are taken from their own.
    parted: VecDeque<(Instant, Entry)>,
    /// A task ends those when their time is over.
    are_parted_ended: bool,
}

struct Entry {
    flow: Rc<Flow>,
    /// The task that copies the answers; it ends with the flow.
    answers: AbortHandle,
}

/// One client at one endpoint.
struct Flow {
    number: u64,
    client: SocketAddr,
    endpoint: SocketAddr,
    socket: Socket,
    /// Something was sent or received since the last look.
    active: Cell<bool>,
    answered: Cell<bool>,
    /// Looks in a row that found it silent.
    silent: Cell<u8>,
    _work: Work,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

impl Flow {
    fn touch(&self) {
        self.active.set(true);
    }

    /// Whether nothing has happened since the last look.
    fn look(&self) -> u8 {
        let silent = if self.active.take() { 0 } else { self.silent.get().saturating_add(1) };
        self.silent.set(silent);
        silent
    }
}

impl Listener {
    /// Never returns but when the socket is unusable.
    async fn run(self: &Rc<Self>) {
        let mut adopted = self.thread.adopted();
        let mut look = tokio::time::interval(self.thread.config.udp_idle_timeout / u32::from(LOOKS));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // All three are cancel-safe: what is not taken is still there the next time.
            tokio::select! {
                biased;
                changed = adopted.changed() => match changed {
                    Ok(()) => self.adopt(),
                    Err(_) => return,
                },
                _ = look.tick() => self.flows.borrow_mut().look(),
                received = self.receive() => if let Err(error) = received {
                    tracing::error!(listener = %self.key.socket, %error, "listener ended");
                    return;
                },
            }
            tokio::task::coop::consume_budget().await;
        }
    }

    /// Waits for datagrams of clients and passes on what is there.
    async fn receive(self: &Rc<Self>) -> io::Result<()> {
        let mut ready = self.socket.readable().await?;
        let mut buffer = Buffer::take();
        let space = buffer.spare();
        for _ in 0..BATCH {
            match ready.get_inner().recv_from(space) {
                Ok((length, client)) => self.pass_on(client, space.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    ready.clear_ready();
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(listener = %self.key.socket, %error, "receiving failed");
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    fn pass_on(self: &Rc<Self>, client: SocketAddr, datagram: &[u8]) {
        let counters = &self.thread.counters;
        let known = self.flows.borrow().by_client.get(&client).map(|entry| Rc::clone(&entry.flow));
        let Some(flow) = known.or_else(|| self.begin(client)) else { return };
        flow.touch();
        let sent = match flow.socket.get_ref().send(datagram) {
            // An earlier datagram found nobody there; this one has not been sent.
            Err(error) if is_refusal(&error) => match self.leave(&flow) {
                Some(other) => other.socket.get_ref().send(datagram),
                None => flow.socket.get_ref().send(datagram),
            },
            sent => sent,
        };
        match sent {
            Ok(_) => counters.datagrams_in.add(1),
            // A full socket loses datagrams, as networks do.
            Err(_) => counters.datagrams_lost.add(1),
        }
    }

    /// Begins the flow of a new client, if it may come in and there is an endpoint for it.
    fn begin(self: &Rc<Self>, client: SocketAddr) -> Option<Rc<Flow>> {
        let counters = &self.thread.counters;
        let table = self.thread.table();
        if !table.listener(self.key)?.source_ranges.allows(client.ip()) {
            counters.forbidden.add(1);
            return None;
        }
        // A forged sender could set two of our own listeners to answer each other for ever.
        if table.listener(ListenerKey { socket: client, transport: Transport::Udp }).is_some() {
            counters.forbidden.add(1);
            return None;
        }
        let flow = self.open(client, None);
        match &flow {
            Some(_) => counters.flows.add(1),
            None => counters.datagrams_lost.add(1),
        }
        flow
    }

    /// Gives a client an endpoint other than the one to `avoid`.
    fn open(self: &Rc<Self>, client: SocketAddr, avoid: Option<SocketAddr>) -> Option<Rc<Flow>> {
        let thread = &self.thread;
        let table = thread.table();
        let Serves::Udp(id) = table.listener(self.key)?.serves else { return None };
        let backend = table.backend(id)?;
        let mut tried: Vec<SocketAddr> = avoid.into_iter().collect();
        for _ in 0..thread.config.tries {
            let chosen = thread.balancer.borrow_mut().choose(thread.now(), id, backend, client.ip(), &tried);
            let endpoint = chosen?;
            let work = thread.work(endpoint);
            match connect(endpoint) {
                Ok(socket) => return Some(self.insert(client, endpoint, socket, work)),
                Err(error) if is_shortage(&error) => {
                    tracing::warn!(listener = %self.key.socket, %error, "no socket for a new flow; an old one ends");
                    self.make_room();
                    return None;
                }
                Err(error) => {
                    tracing::debug!(backend = %endpoint, %error, "endpoint cannot be reached");
                    thread.balancer.borrow_mut().failed(thread.now(), endpoint);
                    tried.push(endpoint);
                }
            }
        }
        None
    }

    fn insert(self: &Rc<Self>, client: SocketAddr, endpoint: SocketAddr, socket: Socket, work: Work) -> Rc<Flow> {
        let replaced = self.flows.borrow_mut().by_client.remove(&client);
        if let Some(entry) = replaced {
            self.thread.counters.flows_moved.add(1);
            self.part(entry);
        }
        if self.flows.borrow().len() >= self.thread.config.udp_flows {
            self.make_room();
        }
        let mut flows = self.flows.borrow_mut();
        let number = flows.begun;
        flows.begun += 1;
        let flow = Rc::new(Flow {
            number,
            client,
            endpoint,
            socket,
            active: Cell::new(true),
            answered: Cell::new(false),
            silent: Cell::new(0),
            _work: work,
        });
        let answers = tokio::task::spawn_local(answers(Rc::clone(self), Rc::clone(&flow))).abort_handle();
        flows.asking.push_back((client, number));
        flows.by_client.insert(client, Entry { flow: Rc::clone(&flow), answers });
        flow
    }

    fn make_room(&self) {
        let mut flows = self.flows.borrow_mut();
        if flows.parted.pop_front().is_none() {
            self.thread.counters.flows_displaced.add(1);
            flows.displace();
        }
    }

    /// The endpoint of a flow refuses: gives its client another one, if there is any.
    fn leave(self: &Rc<Self>, flow: &Flow) -> Option<Rc<Flow>> {
        let thread = &self.thread;
        thread.balancer.borrow_mut().failed(thread.now(), flow.endpoint);
        // Both directions may learn of one refusal; the second must not undo what the first has done.
        if !self.flows.borrow().holds(flow.client, flow.number) {
            return None;
        }
        self.open(flow.client, Some(flow.endpoint))
    }

    /// The first answer of a flow: its endpoint is well, and the flow is worth more than one without.
    fn answered(&self, flow: &Flow) {
        flow.answered.set(true);
        self.thread.balancer.borrow_mut().connected(flow.endpoint);
        self.flows.borrow_mut().answered.push_back((flow.client, flow.number));
    }

    /// A new table is in force: ends flows that it forbids, and moves those that it wants elsewhere.
    fn adopt(self: &Rc<Self>) {
        let table = self.thread.table();
        let Some(listener) = table.listener(self.key) else { return };
        let Serves::Udp(id) = listener.serves else { return };
        let Some(backend) = table.backend(id) else { return };
        let unsettled: Vec<SocketAddr> = {
            let flows = self.flows.borrow();
            let settled = |flow: &Flow| backend.keeps(flow.endpoint) && listener.source_ranges.allows(flow.client.ip());
            let unsettled = flows.by_client.values().filter(|entry| !settled(&entry.flow));
            unsettled.map(|entry| entry.flow.client).collect()
        };
        for client in unsettled {
            let allowed = listener.source_ranges.allows(client.ip());
            if allowed && self.open(client, None).is_some() {
                continue;
            }
            let left = self.flows.borrow_mut().by_client.remove(&client);
            if let Some(entry) = left.filter(|_| allowed) {
                self.part(entry);
            }
        }
        let may_hear = |flow: &Flow| listener.source_ranges.allows(flow.client.ip());
        self.flows.borrow_mut().parted.retain(|(_, entry)| may_hear(&entry.flow));
    }

    /// Hears an endpoint out for a moment whose client is not its own any more.
    fn part(self: &Rc<Self>, entry: Entry) {
        let mut flows = self.flows.borrow_mut();
        if !std::mem::replace(&mut flows.are_parted_ended, true) {
            tokio::task::spawn_local(end_parted(Rc::downgrade(self)));
        }
        flows.parted.push_back((Instant::now() + LINGER, entry));
    }

    /// Ends every flow, and with them the tasks that keep this listener alive.
    fn end(&self) {
        *self.flows.borrow_mut() = Flows::default();
    }
}

/// Copies what an endpoint answers, for as long as the flow lives.
async fn answers(listener: Rc<Listener>, flow: Rc<Flow>) {
    let client = SockAddr::from(flow.client);
    let counters = &listener.thread.counters;
    while let Ok(mut ready) = flow.socket.readable().await {
        let mut buffer = Buffer::take();
        let space = buffer.spare();
        for _ in 0..BATCH {
            match ready.get_inner().recv(space) {
                Ok(length) => {
                    flow.touch();
                    if !flow.answered.get() {
                        listener.answered(&flow);
                    }
                    let answer = space.get(..length).unwrap_or_default();
                    match SockRef::from(listener.socket.get_ref()).send_to(answer, &client) {
                        Ok(_) => counters.datagrams_out.add(1),
                        Err(_) => counters.datagrams_lost.add(1),
                    }
                }
                Err(error) if is_refusal(&error) => drop(listener.leave(&flow)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    ready.clear_ready();
                    break;
                }
            }
        }
        drop(buffer);
        drop(ready);
        tokio::task::coop::consume_budget().await;
    }
}

impl Flows {
    fn holds(&self, client: SocketAddr, number: u64) -> bool {
        self.by_client.get(&client).is_some_and(|entry| entry.flow.number == number)
    }

    /// Ends what has been silent for too long, and forgets queued flows that are no more.
    fn look(&mut self) {
        self.by_client.retain(|_, entry| entry.flow.look() < LOOKS);
        let Self { by_client, asking, answered, .. } = self;
        let flow = |(client, number): &(SocketAddr, u64)| {
            by_client.get(client).map(|entry| &entry.flow).filter(|flow| flow.number == *number)
        };
        asking.retain(|queued| flow(queued).is_some_and(|flow| !flow.answered.get()));
        answered.retain(|queued| flow(queued).is_some());
    }

    fn len(&self) -> usize {
        self.by_client.len() + self.parted.len()
    }

    /// Ends one flow to make room.
    fn displace(&mut self) {
        while let Some((client, number)) = self.asking.pop_front() {
            let asks = |entry: &Entry| entry.flow.number == number && !entry.flow.answered.get();
            if self.by_client.get(&client).is_some_and(asks) {
                self.by_client.remove(&client);
                return;
            }
        }
        // Everyone who was active since the last time gets a second chance; after one round nobody has.
        while let Some((client, number)) = self.answered.pop_front() {
            match self.by_client.get(&client) {
                Some(entry) if entry.flow.number != number => {}
                Some(entry) if entry.flow.active.take() => {
                    entry.flow.silent.set(0);
                    self.answered.push_back((client, number));
                }
                Some(_) => {
                    self.by_client.remove(&client);
                    return;
                }
                None => {}
            }
        }
    }
}

/// Ends flows that have no client when their time is over, until there are none.
async fn end_parted(listener: Weak<Listener>) {
    let next = |listener: Rc<Listener>| {
        let mut flows = listener.flows.borrow_mut();
        let until = flows.parted.front().map(|(until, _)| *until);
        flows.are_parted_ended = until.is_some();
        until
    };
    while let Some(until) = listener.upgrade().and_then(next) {
        tokio::time::sleep_until(until).await;
        let Some(listener) = listener.upgrade() else { return };
        listener.flows.borrow_mut().parted.pop_front_if(|(due, _)| *due <= until);
    }
}

/// A socket that talks to this endpoint only, and hears when nobody is there.
fn connect(endpoint: SocketAddr) -> io::Result<Socket> {
    let any = match endpoint {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(endpoint)?;
    datagrams::register(socket)
}

/// Whether an ICMP message said that the endpoint or its host cannot be reached.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
    )
}

/// Whether it is this process that has run out of something.
fn is_shortage(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

#[cfg(test)]
mod tests;
