//! The admin listener of a role: `/metrics`, `/healthz`, `/readyz`. Never on an external address, no authentication.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use ferrogate_proxy::succession;

/// Connections served at once; more wait in the kernel's queue. A scraper and a few probes need one each.
const MAX_CONNECTIONS: usize = 64;

/// Connections that wait in the kernel's queue at most.
const BACKLOG: u32 = 128;

/// How long a client may take to send the head of a request, and how long a connection may lie idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the answer to who wants to hear of a change is held back.
const HELD_BACK: Duration = Duration::from_secs(1);

/// What the listener tells.
pub struct Admin {
    listener: TcpListener,
    registry: Arc<Registry>,
    ready: Vec<watch::Receiver<bool>>,
}

impl Admin {
    /// Binds the listener, so that a taken port is known before anything else starts. A port that is `shared` may be
    /// bound by several processes of one user at the same time; the one that came first is asked until it leaves, so
    /// that nobody hears of one that is still to follow it. `[::]` means every address there is, also where the kernel
    /// has no IPv6.
    pub async fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
        let bind = |address: SocketAddr| {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.set_reuseport(shared)?;
            socket.bind(address)?;
            let listener = socket.listen(BACKLOG)?;
            if shared && let Err(error) = succession::prefer_oldest(&listener) {
                warn!(%address, %error, "whoever asks while two processes overlap may hear of either");
            }
            Ok::<_, io::Error>(listener)
        };
        match bind(address) {
            Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse => {
                bind((Ipv4Addr::UNSPECIFIED, address.port()).into()).map_err(|_| error)
            }
            bound => bound,
        }
    }

    /// Joins a bound listener with the metrics it shows; ready when every one of `ready` says so.
    pub fn new(listener: TcpListener, registry: Arc<Registry>, ready: Vec<watch::Receiver<bool>>) -> Self {
        Self { listener, registry, ready }
    }

    /// Serves until shut down, and returns the listener. Connections end with it.
    pub async fn run(mut self, shutdown: CancellationToken) -> TcpListener {
        drop(self.serve(&shutdown).await);
        self.listener
    }

    /// Serves until shut down, closes the listener, and only then ends the connections: whoever asks again is answered
    /// by the process that follows, or by nobody.
    pub async fn run_to_end(mut self, shutdown: CancellationToken) {
        let connections = self.serve(&shutdown).await;
        drop(self.listener);
        drop(connections);
    }

    /// Serves until shut down. The connections that are open end when what is returned is dropped.
    async fn serve(&mut self, shutdown: &CancellationToken) -> JoinSet<()> {
        if let Ok(address) = self.listener.local_addr() {
            info!(%address, "admin listener is open");
        }
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return connections,
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, self.registry.clone(), self.ready.clone()));
                    }
                    // Out of file descriptors, say: give the others time to close instead of spinning.
                    Err(error) => {
                        debug!(%error, "admin connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn serve(stream: TcpStream, registry: Arc<Registry>, ready: Vec<watch::Receiver<bool>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (registry, mut ready) = (registry.clone(), ready.clone());
        async move {
            if let Some(known) = known(&request) {
                // With the time it is answered whatever is so then.
                _ = timeout(HELD_BACK, no_longer(known, &mut ready)).await;
            }
            Ok::<_, Infallible>(respond(&request, &registry, &ready))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "admin connection ended early");
    }
}

/// Whether whoever asks for the readiness takes it for ready: `/readyz?while=ready` and `?while=unready` are answered as soon
/// as it is no longer so, and after a second in any case. So whoever follows it hears at once, and asks seldom.
fn known<B>(request: &Request<B>) -> Option<bool> {
    match (request.method(), request.uri().path(), request.uri().query()?) {
        (&Method::GET, "/readyz", "while=ready") => Some(true),
        (&Method::GET, "/readyz", "while=unready") => Some(false),
        _ => None,
    }
}

/// Waits until that is so no longer, or a room is gone that could say so.
async fn no_longer(known: bool, ready: &mut [watch::Receiver<bool>]) {
    while ready.iter_mut().all(|ready| *ready.borrow_and_update()) == known {
        let mut changes: Vec<_> = ready.iter_mut().map(|ready| Box::pin(ready.changed())).collect();
        let changed = poll_fn(|context| {
            let first = changes.iter_mut().map(|change| change.as_mut().poll(context)).find(Poll::is_ready);
            first.unwrap_or(Poll::Pending)
        });
        if changed.await.is_err() {
            return;
        }
    }
}

fn respond<B>(request: &Request<B>, registry: &Registry, ready: &[watch::Receiver<bool>]) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if ready.iter().all(|ready| *ready.borrow()) => text(StatusCode::OK, "ready\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        "/metrics" => metrics(registry),
        _ => text(StatusCode::NOT_FOUND, "try /metrics, /healthz or /readyz\n"),
    }
}

/// Every metric, as OpenMetrics text.
pub fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut body = String::new();
    match encode(&mut body, registry) {
        Ok(()) => {
            let mut response = text(StatusCode::OK, body);
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
            response
        }
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be encoded\n"),
    }
}

/// An answer in words.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn get(path: &str, ready: &[watch::Receiver<bool>]) -> StatusCode {
        let request = Request::builder().uri(path).body(()).unwrap();
        respond(&request, &Registry::default(), ready).status()
    }

    #[test]
    fn readyz_needs_every_room_to_be_ready() {
        let (first, first_ready) = watch::channel(true);
        let (_second, second_ready) = watch::channel(true);
        let both = [first_ready, second_ready];

        assert_eq!(get("/readyz", &both), StatusCode::OK);
        first.send_replace(false);
        assert_eq!(get("/readyz", &both), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get("/healthz", &both), StatusCode::OK);
    }

    #[test]
    fn only_reading_is_answered() {
        let request = Request::builder().method(Method::POST).uri("/metrics").body(()).unwrap();

        let response = respond(&request, &Registry::default(), &[]);

        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(get("/", &[]), StatusCode::NOT_FOUND);
        assert_eq!(get("/metrics", &[]), StatusCode::OK);
    }

    /// The head of the answer to a GET.
    async fn ask(address: SocketAddr, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    }

    #[tokio::test]
    async fn m_151_health_and_readiness_are_answered_on_the_address_given_and_on_no_other() {
        let listener = Admin::bind(SocketAddr::new(crate::run::SPEAKER_ADMIN.ip(), 0), false).await.unwrap();
        let address = listener.local_addr().unwrap();
        let beside = SocketAddr::from(([127, 0, 0, 2], address.port()));
        let (_room, ready) = watch::channel(true);
        tokio::spawn(Admin::new(listener, Arc::default(), vec![ready]).run(CancellationToken::new()));

        assert_eq!(ask(address, "/healthz").await.unwrap(), "HTTP/1.1 200 OK");
        assert_eq!(ask(address, "/readyz").await.unwrap(), "HTTP/1.1 200 OK");
        assert_eq!(ask(address, "/readyz?while=ready").await.unwrap(), "HTTP/1.1 200 OK");
        assert_eq!(ask(beside, "/healthz").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_is_so_no_longer_when_a_room_is_not_ready_or_all_are() {
        let rooms = [watch::channel(true), watch::channel(true)];
        let mut ready: Vec<_> = rooms.iter().map(|(_, ready)| ready.clone()).collect();
        let mut changes_by = async |known, room: usize, is_ready| {
            let (changed, ()) = tokio::join!(timeout(HELD_BACK, no_longer(known, &mut ready)), async {
                tokio::time::sleep(HELD_BACK / 2).await;
                rooms[room].0.send_replace(is_ready);
            });
            changed.is_ok()
        };

        assert!(!changes_by(true, 0, true).await);
        assert!(changes_by(false, 0, true).await, "it never was so");
        assert!(changes_by(true, 1, false).await);
        assert!(!changes_by(false, 0, false).await);
        assert!(!changes_by(false, 1, true).await);
        assert!(changes_by(false, 0, true).await);
    }

    #[tokio::test(start_paused = true)]
    async fn when_a_room_is_gone_nobody_waits_for_it() {
        let (room, ready) = watch::channel(true);
        drop(room);

        timeout(HELD_BACK, no_longer(true, &mut [ready])).await.unwrap();
    }

    #[test]
    fn only_who_asks_to_hear_of_a_change_waits_for_it() {
        let asked = |method, path| known(&Request::builder().method(method).uri(path).body(()).unwrap());

        assert_eq!(asked(Method::GET, "/readyz?while=ready"), Some(true));
        assert_eq!(asked(Method::GET, "/readyz?while=unready"), Some(false));
        for path in ["/readyz", "/readyz?while=anything", "/healthz?while=ready"] {
            assert_eq!(asked(Method::GET, path), None, "{path}");
        }
        assert_eq!(asked(Method::POST, "/readyz?while=ready"), None);
    }

    /// An admin listener that shares its address, and the room whose readiness it tells.
    async fn shared(address: SocketAddr, ready: bool) -> (SocketAddr, watch::Sender<bool>, CancellationToken) {
        let listener = Admin::bind(address, true).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (room, ready) = watch::channel(ready);
        let end = CancellationToken::new();
        tokio::spawn(Admin::new(listener, Arc::new(Registry::default()), vec![ready]).run_to_end(end.clone()));
        (address, room, end)
    }

    #[tokio::test]
    async fn of_two_that_share_an_address_the_one_that_stays_ready_is_asked_and_the_next_one_as_soon_as_it_leaves() {
        let (address, _old, leave) = shared(([127, 0, 0, 1], 0).into(), true).await;
        let (_, new, _end) = shared(address, false).await;

        for _ in 0..20 {
            assert_eq!(ask(address, "/readyz").await.unwrap(), "HTTP/1.1 200 OK");
        }
        let mut kept = TcpStream::connect(address).await.unwrap();
        leave.cancel();
        // What it has kept open ends after it has closed the listener.
        assert_eq!(kept.read(&mut [0]).await.unwrap_or_default(), 0);
        for _ in 0..20 {
            assert_eq!(ask(address, "/readyz").await.unwrap(), "HTTP/1.1 503 Service Unavailable");
        }
        new.send_replace(true);
        assert_eq!(ask(address, "/readyz").await.unwrap(), "HTTP/1.1 200 OK");
    }

    #[test]
    fn m_151_nobody_outside_of_the_host_reaches_an_admin_listener_unless_told_so() {
        for address in [crate::run::CONTROLLER_ADMIN, crate::run::SPEAKER_ADMIN, crate::run::PROXY_ADMIN] {
            assert!(address.ip().is_loopback(), "{address}");
        }
    }
}
