//! The admin listener of a role: `/metrics`, `/healthz`, `/readyz`. Never on an external address, no authentication.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
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
        let response = respond(&request, &registry, &ready);
        async move { Ok::<_, Infallible>(response) }
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
        assert_eq!(ask(beside, "/healthz").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
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
