//! The listener of the validating webhook: HTTPS in, the answer of [`ferrogate_cluster::admission`] out.
//!
//! ```text
//!  certificate (watch) ──► resolver ──┐
//!  accept ──► task per connection: TLS ──► HTTP/1.1 ──► Admission::answer
//! ```
//!
//! Every replica serves, whether it leads or not. The certificate is looked at in each handshake, so that a new one
//! takes effect without a connection lost. Nothing that comes in is trusted to end: handshake, body and answer have
//! their time, bodies a size, connections and large bodies a number. On shutdown requests under way are answered, and
//! nothing else.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ferrogate_cluster::{
    Webhook,
    admission::{Admission, AnswerError, MAX_BODY},
    webhook::Certificate,
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use rustls::sign::CertifiedKey;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::tls;

/// Connections served at once; more wait in the kernel's queue. An API server needs a few.
const MAX_CONNECTIONS: usize = 256;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may lie idle: longer than API servers keep theirs, so that none is closed under a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a request may take from its head to its answer: less than the five seconds that the API server waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// The longest body that is read whatever else is being read, in bytes; reviews are shorter, as a rule.
const SMALL_BODY: u64 = 32 * 1024;
/// How many longer ones are read at a time, so that strangers cannot fill the memory; the others wait.
const LARGE_BODIES: usize = 2;
/// How long requests under way may hold up the end.
const FAREWELL: Duration = Duration::from_secs(3);

/// The one path that is answered.
pub const PATH: &str = "/validate";

/// What the webhook counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    reviews: Family<ResultLabel, Counter>,
    not_after: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: Answered,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Answered {
    /// The change may be made.
    Allowed,
    /// The change is refused.
    Refused,
    /// It was no question.
    Malformed,
    /// It was a question that was not answered, for want of time say.
    Unanswered,
}

impl Metrics {
    /// Makes the metrics known to a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("ferrogate_webhook");
        registry.register("reviews", "Requests of API servers, by what was answered", metrics.reviews.clone());
        registry.register(
            "certificate_not_after_seconds",
            "When the served certificate ends to be valid, in seconds since 1970; 0 while there is none",
            metrics.not_after.clone(),
        );
        metrics
    }
}

/// Opens the listener, so that a taken port is known before anything else starts.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        // The kernel has no IPv6; then "every address" means every IPv4 address.
        Err(error) if error.raw_os_error() == Some(EAFNOSUPPORT) && address.ip().is_unspecified() => {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// `EAFNOSUPPORT` of Linux, for which the standard library has no name.
const EAFNOSUPPORT: i32 = 97;

/// Serves until `shutdown`.
///
/// # Errors
/// When the TLS library refuses its own defaults.
pub async fn run(
    listener: TcpListener,
    webhook: Webhook,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Webhook { admission, mut certificate } = webhook;
    let (shown, resolver) = watch::channel(None);
    let tls = tls::acceptor(resolver)?;
    if let Ok(address) = listener.local_addr() {
        info!(%address, "webhook is open");
    }
    certificate.mark_changed();
    let desk = Desk { admission, metrics: metrics.clone(), large_bodies: Arc::new(Semaphore::new(LARGE_BODIES)) };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Ok(()) = certificate.changed() => {
                let new = certificate.borrow_and_update().clone();
                show(new.as_deref(), &shown, &metrics);
            }
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, tls.clone(), desk.clone(), shutdown.clone()));
                }
                // Out of file descriptors, say: give the others time to close instead of spinning.
                Err(error) => {
                    debug!(%error, "webhook connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(FAREWELL, drained).await.is_err() {
        debug!("webhook requests were cut off at the end");
    }
    Ok(())
}

fn show(certificate: Option<&Certificate>, shown: &watch::Sender<Option<Arc<CertifiedKey>>>, metrics: &Metrics) {
    let Some(certificate) = certificate else { return };
    match tls::certified(certificate.chain.as_bytes(), certificate.key.as_bytes()) {
        Ok(key) => {
            shown.send_replace(Some(Arc::new(key)));
            metrics.not_after.set(certificate.not_after);
            info!(not_after = certificate.not_after, "webhook shows a new certificate");
        }
        Err(error) => error!(error = format!("{error:#}"), "certificate of the webhook cannot be shown"),
    }
}

/// What every connection answers by.
#[derive(Clone)]
struct Desk {
    admission: Admission,
    metrics: Metrics,
    /// Room for bodies longer than [`SMALL_BODY`].
    large_bodies: Arc<Semaphore>,
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, desk: Desk, shutdown: CancellationToken) {
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "webhook handshake failed"),
        Err(_) => return debug!("webhook handshake took too long"),
    };
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, std::convert::Infallible>(respond(request, &desk).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "webhook connection ended early");
    }
}

async fn respond(request: Request<Incoming>, desk: &Desk) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return text(StatusCode::NOT_FOUND, format!("only {PATH} is answered here\n"));
    }
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only POST is answered here\n");
    }
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, answer(request.into_body(), desk)).await;
    let (result, response) =
        answered.unwrap_or_else(|_| (Answered::Unanswered, text(StatusCode::GATEWAY_TIMEOUT, "it took too long\n")));
    desk.metrics.reviews.get_or_create(&ResultLabel { result }).inc();
    response
}

async fn answer<B>(body: B, desk: &Desk) -> (Answered, Response<Full<Bytes>>)
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || {
        let message = format!("the body is larger than {MAX_BODY} bytes\n");
        (Answered::Malformed, text(StatusCode::PAYLOAD_TOO_LARGE, message))
    };
    // What says beforehand that it is too large need not be waited for.
    if usize::try_from(body.size_hint().lower()).is_ok_and(|length| length > MAX_BODY) {
        return too_large();
    }
    let is_small = body.size_hint().upper().is_some_and(|length| length <= SMALL_BODY);
    // Kept until it is answered: what was made of the body takes more room than the body did.
    let _room = if is_small { None } else { desk.large_bodies.acquire().await.ok() };
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return too_large(),
        Err(error) => {
            return (Answered::Malformed, text(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}\n")));
        }
    };
    match desk.admission.answer(&body).await {
        Ok(verdict) => {
            let result = if verdict.refusal.is_none() { Answered::Allowed } else { Answered::Refused };
            if let Some(refusal) = &verdict.refusal {
                info!(reason = %refusal, "object refused");
            }
            let mut response = Response::new(Full::new(verdict.body().to_string().into()));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            (result, response)
        }
        Err(error @ AnswerError::NotAReview(_)) => {
            (Answered::Malformed, text(StatusCode::BAD_REQUEST, format!("{error}\n")))
        }
        Err(error @ AnswerError::Stopping) => {
            (Answered::Unanswered, text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")))
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests;
