//! One listener for each address and port of the table, opened and closed as the table says.
//!
//! Each thread has a socket of its own for each listener (`SO_REUSEPORT`), so the kernel spreads connections and no
//! two threads share a queue. Sockets are bound before their address is on the host (`IP_FREEBIND`): a node that takes
//! an address over serves its first packet. All sockets of a listener are bound in one place, so that a failure is
//! one failure; then they are handed to the threads. A listener that cannot be bound never stops another.

use std::{collections::BTreeMap, io, net::SocketAddr, rc::Rc, time::Duration};

use ferrogate_core::proxy::{ListenerKey, RouteTable, Serves, Transport};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{forward, metrics::Metrics, succession, tcp, thread::Thread, udp};

/// Connections that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How long accepting rests after the process ran out of descriptors or memory: trying again at once would only spin.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// The sockets of one listener, one for each thread.
pub(crate) enum Sockets {
    Tcp(Vec<std::net::TcpListener>),
    Udp(Vec<std::net::UdpSocket>),
}

/// Which listeners are open, and which should be but cannot.
pub(crate) struct Listeners {
    threads: usize,
    /// For TCP with one more handle of the first socket, to tell the kernel something about all of them.
    open: BTreeMap<ListenerKey, Option<std::net::TcpListener>>,
    failed: BTreeMap<ListenerKey, io::ErrorKind>,
    metrics: Metrics,
}

/// What must change for the listeners to be as the table says.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) opened: Vec<(ListenerKey, Sockets)>,
    pub(crate) closed: Vec<ListenerKey>,
}

impl Listeners {
    /// None yet, for so many threads.
    pub(crate) fn new(threads: usize, metrics: Metrics) -> Self {
        Self { threads, open: BTreeMap::new(), failed: BTreeMap::new(), metrics }
    }

    /// Whether a listener is missing that a later try may give.
    pub(crate) fn incomplete(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Binds what the table wants and is not open, and names what is open and no longer wanted.
    pub(crate) fn follow(&mut self, table: &RouteTable) -> Changes {
        let wanted = table.listeners();
        let mut changes = Changes::default();
        changes.closed.extend(self.open.keys().filter(|key| !wanted.contains_key(key)));
        self.open.retain(|key, _| wanted.contains_key(key));
        self.failed.retain(|key, _| wanted.contains_key(key));
        for (key, listener) in wanted {
            if self.open.contains_key(key) {
                continue;
            }
            match bind(*key, self.threads) {
                Ok(sockets) => {
                    let first = match &sockets {
                        Sockets::Tcp(sockets) => sockets.first().and_then(|first| first.try_clone().ok()),
                        Sockets::Udp(_) => None,
                    };
                    self.open.insert(*key, first);
                    self.failed.remove(key);
                    tracing::info!(listener = %key.socket, service = %listener.service, "listening");
                    changes.opened.push((*key, sockets));
                }
                Err(error) => {
                    let reason = reason(&error);
                    self.metrics.bind_failures.get_or_create(&[("reason", reason)]).inc();
                    if self.failed.insert(*key, error.kind()) != Some(error.kind()) {
                        let (listener, service) = (key.socket, &listener.service);
                        let remedy = remedy(&error, key.socket);
                        tracing::error!(%listener, %service, %error, reason, remedy, "cannot listen; trying again");
                    }
                }
            }
        }
        self.metrics.listeners.set(i64::try_from(self.open.len()).unwrap_or(i64::MAX));
        self.metrics.unbound.set(i64::try_from(self.failed.len()).unwrap_or(i64::MAX));
        changes
    }
}

impl Listeners {
    /// Leaves new connections to the process that follows on the same ports, if there is one.
    pub(crate) fn leave(&self) {
        self.tell_kernel(succession::leave_to_successor);
    }

    /// Leaves them to it while the sockets are closed, one after the other.
    pub(crate) fn close(self) {
        self.tell_kernel(succession::leave_to_one_successor);
    }

    fn tell_kernel(&self, leave: fn(&std::net::TcpListener, u32) -> io::Result<()>) {
        let own = u32::try_from(self.threads).unwrap_or(u32::MAX);
        for (key, socket) in &self.open {
            if let Some(socket) = socket
                && let Err(error) = leave(socket, own)
            {
                tracing::warn!(listener = %key.socket, %error, "a few connections may be lost to the one that follows");
            }
        }
    }
}

fn reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "PermissionDenied",
        io::ErrorKind::AddrInUse => "AddressInUse",
        io::ErrorKind::AddrNotAvailable => "AddressNotAvailable",
        _ => "Other",
    }
}

fn remedy(error: &io::Error, socket: SocketAddr) -> String {
    let port = socket.port();
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "lower net.ipv4.ip_unprivileged_port_start to {port} or below, or give the process CAP_NET_BIND_SERVICE"
        ),
        io::ErrorKind::AddrInUse => {
            format!(
                "another process has port {port}: find it with `ss -lnp 'sport = {port}'`, or change one of the two"
            )
        }
        io::ErrorKind::AddrNotAvailable => "check that the address is not multicast or of a family that is turned off \
             (net.ipv6.conf.all.disable_ipv6)"
            .to_owned(),
        _ => "see the error".to_owned(),
    }
}

/// Binds one socket for each thread.
fn bind(key: ListenerKey, threads: usize) -> io::Result<Sockets> {
    match key.transport {
        Transport::Tcp => {
            let sockets = (0..threads).map(|_| {
                let socket = bound(key.socket, Type::STREAM, Protocol::TCP)?;
                // Inherited by every connection, which saves a call for each.
                socket.set_tcp_nodelay(true)?;
                Ok(socket)
            });
            let sockets: Vec<Socket> = sockets.collect::<io::Result<_>>()?;
            // Only once all are bound: a queue that nobody will serve must not take connections.
            for socket in &sockets {
                socket.listen(BACKLOG)?;
            }
            if let Some(first) = sockets.first()
                && let Err(error) = succession::prefer_none(first)
            {
                tracing::debug!(listener = %key.socket, %error, "the kernel cannot be told which socket to pick");
            }
            Ok(Sockets::Tcp(sockets.into_iter().map(Into::into).collect()))
        }
        Transport::Udp => {
            let sockets = (0..threads).map(|_| Ok(bound(key.socket, Type::DGRAM, Protocol::UDP)?.into()));
            Ok(Sockets::Udp(sockets.collect::<io::Result<_>>()?))
        }
    }
}

fn bound(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), Some(protocol))?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    if protocol == Protocol::TCP {
        // Connections of an earlier process that still linger must not keep us out.
        socket.set_reuse_address(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A listener of one thread.
pub(crate) struct Open {
    close: CancellationToken,
    task: JoinHandle<()>,
}

impl Open {
    /// Accepts what already waits, then closes the socket.
    pub(crate) async fn close(self) {
        self.close.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "listener ended in a panic");
        }
    }
}

/// Begins to accept connections.
pub(crate) fn open_tcp(thread: &Rc<Thread>, key: ListenerKey, socket: std::net::TcpListener) -> io::Result<Open> {
    let listener = TcpListener::from_std(socket)?;
    let close = CancellationToken::new();
    let task = tokio::task::spawn_local(accept(Rc::clone(thread), key, listener, close.clone()));
    Ok(Open { close, task })
}

async fn accept(thread: Rc<Thread>, key: ListenerKey, listener: TcpListener, close: CancellationToken) {
    let limit = thread.config.max_connections;
    loop {
        // Both are cancel-safe: a connection that is not taken stays in the queue.
        let accepted = tokio::select! {
            biased;
            () = close.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => admit(&thread, key, stream, client),
            Err(error) => rest(&error, key).await,
        }
        if thread.watches.len() >= limit {
            thread.counters.full.add(1);
            thread.watches.close_idle(None);
            while thread.watches.len() >= limit && !close.is_cancelled() {
                tokio::select! {
                    () = close.cancelled() => {}
                    () = thread.watches.freed() => {}
                }
            }
        }
    }
    // The kernel has already told these clients that they are connected.
    drain(&thread, key, listener);
}

/// Asks the system itself: tokio may not have heard yet of what waits, and hides it once the task has used up its turn.
fn drain(thread: &Rc<Thread>, key: ListenerKey, listener: TcpListener) {
    let drained = listener.into_std().and_then(|listener| {
        // No more than a full queue: it may be filled as fast as it is emptied.
        for _ in 0..=BACKLOG {
            match listener.accept() {
                Ok((stream, client)) => {
                    stream.set_nonblocking(true)?;
                    admit(thread, key, TcpStream::from_std(stream)?, client);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    });
    if let Err(error) = drained {
        tracing::warn!(listener = %key.socket, %error, "connections were lost as their listener was closed");
    }
}

/// Whether only the connection that was to be accepted broke while it waited.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

/// A connection that broke while it waited is nothing; to be out of descriptors is worth a rest.
async fn rest(error: &io::Error, key: ListenerKey) {
    if !is_of_one_connection(error) {
        tracing::warn!(listener = %key.socket, %error, "a connection could not be accepted");
        tokio::time::sleep(ACCEPT_REST).await;
    }
}

/// Starts the task of a connection, if its client may come in. The connection is served as the table says now: a
/// change that closes this listener may already be on its way.
fn admit(thread: &Rc<Thread>, key: ListenerKey, stream: TcpStream, client: SocketAddr) {
    let table = thread.table();
    let Some(listener) = table.listener(key) else { return };
    thread.counters.accepted.add(1);
    if !listener.source_ranges.allows(client.ip()) {
        thread.counters.forbidden.add(1);
        return;
    }
    let open = Counted::new(thread);
    match listener.serves {
        Serves::Http => {
            let served = forward::serve(Rc::clone(thread), stream, client, key, listener.port.get());
            tokio::task::spawn_local(open.during(served));
        }
        Serves::Tcp(backend) => {
            let served = tcp::serve(Rc::clone(thread), Rc::clone(&table), backend, stream, client, key);
            tokio::task::spawn_local(open.during(served));
        }
        // Connections do not come in over UDP.
        Serves::Udp(_) => {}
    }
}

/// A connection that counts as open, however its task ends.
struct Counted(Rc<Thread>);

impl Counted {
    fn new(thread: &Rc<Thread>) -> Self {
        thread.counters.connections.add(1);
        Self(Rc::clone(thread))
    }

    async fn during(self, served: impl Future<Output = ()>) {
        served.await;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.counters.connections.remove(1);
    }
}

/// Begins to take datagrams.
pub(crate) fn open_udp(thread: &Rc<Thread>, key: ListenerKey, socket: std::net::UdpSocket) -> io::Result<Open> {
    let close = CancellationToken::new();
    let task = tokio::task::spawn_local(udp::open(thread, key, socket, close.clone())?);
    Ok(Open { close, task })
}

#[cfg(test)]
mod tests;
