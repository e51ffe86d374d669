//! Connections to endpoints: made, kept for the next request, given up.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use ferrogate_core::proxy::{Backend, BackendId, RouteTable};
use tokio::{net::TcpStream, task::coop};

use crate::{
    config::Config,
    respond::Refusal,
    thread::Thread,
    watches::{Ended, Watch},
};

/// Idle connections of one thread. The one used last is used next: it is the one least likely to be closed.
pub(crate) struct Pool {
    patience: Duration,
    most: usize,
    idle: BTreeMap<SocketAddr, Vec<Idle>>,
}

struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Pool {
    /// An empty pool.
    pub(crate) fn new(config: &Config) -> Self {
        let (patience, most) = (config.upstream_idle_timeout, config.upstream_idle_connections);
        Self { patience, most, idle: BTreeMap::new() }
    }

    /// An idle connection on which nothing has happened since.
    fn take(&mut self, endpoint: SocketAddr) -> Option<TcpStream> {
        let idle = self.idle.get_mut(&endpoint)?;
        loop {
            let Idle { stream, .. } = idle.pop()?;
            if is_quiet(&stream) {
                return Some(stream);
            }
        }
    }

    /// Keeps a connection on which everything that was asked for has been received, and not a byte more.
    fn put(&mut self, endpoint: SocketAddr, stream: TcpStream, now: Instant) {
        let idle = self.idle.entry(endpoint).or_default();
        if idle.len() < self.most {
            idle.push(Idle { stream, since: now });
        }
    }

    /// Drops connections that were idle for too long or that were closed from the other side.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let patience = self.patience;
        self.idle.retain(|_, idle| {
            idle.retain(|one| now.duration_since(one.since) < patience && is_quiet(&one.stream));
            !idle.is_empty()
        });
    }

    /// Drops connections to endpoints that the table no longer uses, or that are on nodes out of sight.
    pub(crate) fn adopt(&mut self, table: &RouteTable) {
        // A table may have far more endpoints than this thread has connections, so each is looked at once.
        let kept = table.backends().iter().flat_map(Backend::kept);
        let kept: BTreeSet<SocketAddr> = kept.filter(|endpoint| self.idle.contains_key(endpoint)).collect();
        self.idle.retain(|endpoint, _| kept.contains(endpoint));
    }
}

/// Whether nothing has come since the last answer: neither an end nor bytes that nobody asked for.
fn is_quiet(stream: &TcpStream) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    // Out of turns, tokio says that nothing has come, whatever has.
    let ready = pin!(coop::unconstrained(poll_fn(|context| stream.poll_read_ready(context))));
    match ready.poll(&mut context) {
        Poll::Pending => true,
        Poll::Ready(Err(_)) => false,
        Poll::Ready(Ok(())) => {
            matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        }
    }
}

/// Work in flight at an endpoint, for as long as this lives.
pub(crate) struct Work {
    thread: Rc<Thread>,
    endpoint: SocketAddr,
}

impl Work {
    /// Takes over from [`Balancer::choose`](ferrogate_core::proxy::balance::Balancer::choose).
    pub(crate) fn new(thread: Rc<Thread>, endpoint: SocketAddr) -> Self {
        Self { thread, endpoint }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.thread.balancer.borrow_mut().finished(self.endpoint);
    }
}

/// A connection to an endpoint, in use by one request.
pub(crate) struct Upstream {
    /// The connection.
    pub(crate) stream: TcpStream,
    /// Whether another request has used it before, so that it may have been closed meanwhile.
    pub(crate) reused: bool,
    work: Work,
}

impl Upstream {
    /// Keeps the connection for another request.
    pub(crate) fn release(self) {
        let Work { thread, endpoint } = &self.work;
        // During the last requests of a thread nothing is worth keeping.
        if !thread.draining.get() {
            thread.pool.borrow_mut().put(*endpoint, self.stream, thread.now());
        }
    }

    /// The endpoint.
    pub(crate) fn endpoint(&self) -> SocketAddr {
        self.work.endpoint
    }
}

/// Whom to connect to.
pub(crate) struct Wanted<'a> {
    pub(crate) table: &'a RouteTable,
    pub(crate) backend: BackendId,
    pub(crate) client: IpAddr,
    /// Not over a connection that was used before.
    pub(crate) fresh: bool,
}

/// A connection to an endpoint of the backend that was not `tried` yet. Endpoints that cannot be connected to are
/// added to `tried`, and the next one is taken, up to the limit.
pub(crate) async fn obtain(
    thread: &Rc<Thread>,
    watch: &Watch,
    wanted: Wanted<'_>,
    tried: &mut Vec<SocketAddr>,
) -> Result<Upstream, Refusal> {
    // Whoever was tried before broke off; otherwise there was nobody to try.
    let mut refusal = if tried.is_empty() { Refusal::NoEndpoint } else { Refusal::UpstreamClosed };
    while tried.len() < thread.config.tries {
        let Some(backend) = wanted.table.backend(wanted.backend) else { break };
        let chosen = thread.balancer.borrow_mut().choose(thread.now(), wanted.backend, backend, wanted.client, tried);
        let Some(endpoint) = chosen else { break };
        let work = thread.work(endpoint);
        let kept = if wanted.fresh { None } else { thread.pool.borrow_mut().take(endpoint) };
        if let Some(stream) = kept {
            thread.counters.reused.add(1);
            return Ok(Upstream { stream, reused: true, work });
        }
        match connect(thread, watch, endpoint).await {
            Ok(stream) => return Ok(Upstream { stream, reused: false, work }),
            Err(why) => refusal = why,
        }
        tried.push(endpoint);
    }
    Err(refusal)
}

/// Connects, and tells the balancer how that went.
pub(crate) async fn connect(thread: &Rc<Thread>, watch: &Watch, endpoint: SocketAddr) -> Result<TcpStream, Refusal> {
    watch.arm(thread.config.connect_timeout);
    let (refusal, error) = match watch.guard(TcpStream::connect(endpoint)).await {
        Ok(Ok(stream)) => {
            thread.balancer.borrow_mut().connected(endpoint);
            thread.counters.dialled.add(1);
            // Heads and bodies are written in as few pieces as they come in: waiting for more helps nobody.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(backend = %endpoint, %error, "connection keeps its delay");
            }
            return Ok(stream);
        }
        Ok(Err(error)) => (Refusal::ConnectFailed, Some(error)),
        Err(Ended::Timeout | Ended::Closing) => (Refusal::ConnectTimeout, None),
    };
    thread.balancer.borrow_mut().failed(thread.now(), endpoint);
    thread.counters.dial_failures.add(1);
    tracing::debug!(backend = %endpoint, error = error.map(tracing::field::display), "endpoint refused a connection");
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;
    use crate::fixtures::loopback;

    #[tokio::test]
    async fn a_connection_that_says_something_unasked_is_not_quiet_even_to_a_task_that_has_used_up_its_turn() {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let kept = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut endpoint, _) = listener.accept().await.unwrap();
        endpoint.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        kept.readable().await.unwrap();

        while coop::has_budget_remaining() {
            poll_fn(|context| coop::poll_proceed(context).map(|turn| turn.made_progress())).await;
        }

        assert!(!is_quiet(&kept));
    }
}
