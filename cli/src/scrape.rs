//! Metrics for scrapers that come from elsewhere: by HTTPS, and only for those whom the API server lets.
//!
//! The admin listener asks nobody who they are and so stays on the loopback; this one may stand on an address that
//! others reach. It tells nothing but metrics. Nothing that comes in is trusted to end: handshake, head and answer
//! have their time, connections a number.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use ferrogate_cluster::scrapers::{Denied, PATH, Scrapers};
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use rustls::sign::CertifiedKey;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::{
    admin::{Admin, metrics, text},
    tls,
};

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may lie idle: longer than the minute that scrapers take at most between two questions.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How often the certificate is looked at again. A kubelet takes about as long to bring a new one.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Names within a Secret of type `kubernetes.io/tls`, and so of the files of its volume.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Flags of every role that has metrics.
#[derive(Args, Clone, Debug)]
pub struct ScrapeArgs {
    /// Where metrics are served by HTTPS too, to whoever shows a token that the API server knows and who may `get` the
    /// path /metrics; without it they are at --admin alone
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "manifests", requires = "metrics_certificate")]
    metrics_listen: Option<SocketAddr>,
    /// Folder with the certificate to show there, tls.crt, and its key, tls.key: a Secret of type kubernetes.io/tls,
    /// mounted. A new one is taken within a minute
    #[arg(long, value_name = "DIR", requires = "metrics_listen")]
    metrics_certificate: Option<PathBuf>,
}

/// The listener, before there is anything to tell.
#[derive(Debug)]
pub struct Scrape {
    listener: TcpListener,
    folder: PathBuf,
    files: Files,
}

/// A certificate as it lies in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Files {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    fn read(folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).with_context(|| format!("reading {}", path.display()))
        };
        Ok(Self { chain: read(CERTIFICATE)?, key: read(KEY)? })
    }

    fn certified(&self) -> anyhow::Result<CertifiedKey> {
        tls::certified(&self.chain, &self.key)
    }
}

impl ScrapeArgs {
    /// Opens the listener, if one is asked for, so that a taken port or a missing certificate is known before anything
    /// else starts. One that is `shared` may be open in several processes of one user at the same time.
    pub async fn open(&self, shared: bool) -> anyhow::Result<Option<Scrape>> {
        let (Some(address), Some(folder)) = (self.metrics_listen, &self.metrics_certificate) else { return Ok(None) };
        let wrong = || format!("--metrics-certificate {}", folder.display());
        let files = Files::read(folder).with_context(wrong)?;
        files.certified().with_context(wrong)?;
        let listener = Admin::bind(address, shared).await.with_context(|| {
            format!("--metrics-listen {address} cannot be opened; is another one running? choose another port")
        })?;
        Ok(Some(Scrape { listener, folder: folder.clone(), files }))
    }
}

impl Scrape {
    /// Serves until shut down. Connections end with it.
    ///
    /// # Errors
    /// When the TLS library refuses its own defaults.
    pub async fn run(
        self,
        scrapers: Scrapers,
        registry: Arc<Registry>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self { listener, folder, mut files } = self;
        let (shown, newest) = watch::channel(Some(Arc::new(files.certified()?)));
        let tls = tls::acceptor(newest)?;
        if let Ok(address) = listener.local_addr() {
            info!(%address, "metrics are served by HTTPS");
        }
        let mut look = tokio::time::interval(LOOK_AGAIN);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = look.tick() => files = looked_again(&folder, files, &shown).await,
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, tls.clone(), scrapers.clone(), Arc::clone(&registry)));
                    }
                    // Out of file descriptors, say: give the others time to close instead of spinning.
                    Err(error) => {
                        debug!(%error, "connection of a scraper was not accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// Shows what lies in the folder now, if it is another certificate. One that is wrong is told once; the one before stays.
async fn looked_again(folder: &Path, before: Files, shown: &watch::Sender<Option<Arc<CertifiedKey>>>) -> Files {
    let path = folder.to_owned();
    // Disks may be slow.
    let read = tokio::task::spawn_blocking(move || Files::read(&path)).await;
    let Ok(Ok(files)) = read else {
        debug!(folder = %folder.display(), "certificate for metrics cannot be read, the one before is shown");
        return before;
    };
    if files == before {
        return before;
    }
    match files.certified() {
        Ok(certified) => {
            shown.send_replace(Some(Arc::new(certified)));
            info!(folder = %folder.display(), "metrics are served with a new certificate");
        }
        Err(error) => {
            error!(folder = %folder.display(), error = format!("{error:#}"), "certificate for metrics cannot be shown");
        }
    }
    files
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, scrapers: Scrapers, registry: Arc<Registry>) {
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "handshake of a scraper failed"),
        Err(_) => return debug!("handshake of a scraper took too long"),
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let (scrapers, registry) = (scrapers.clone(), Arc::clone(&registry));
        async move {
            let response = match misplaced(&request) {
                Some(response) => response,
                None => match scrapers.admit(bearer(request.headers())).await {
                    Ok(()) => metrics(&registry),
                    Err(denied) => refusal(&denied),
                },
            };
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "connection of a scraper ended early");
    }
}

/// The answer to whoever asks for anything but metrics.
fn misplaced<B>(request: &Request<B>) -> Option<Response<Full<Bytes>>> {
    if request.uri().path() != PATH {
        return Some(text(StatusCode::NOT_FOUND, format!("only {PATH} is answered here\n")));
    }
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    (!reads).then(|| text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n"))
}

/// The token that a request shows (RFC 6750 §2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '))
}

fn refusal(denied: &Denied) -> Response<Full<Bytes>> {
    debug!(reason = %denied, "somebody may not read metrics");
    let status = match denied {
        Denied::NoToken | Denied::UnknownToken => StatusCode::UNAUTHORIZED,
        Denied::MayNotGet { .. } => StatusCode::FORBIDDEN,
        Denied::NotAsked { .. } => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = text(status, format!("{denied}\n"));
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use ferrogate_cluster::certificate::{self, Kept, Lifetimes};

    use super::*;

    /// A certificate of today, and its key.
    fn made() -> Files {
        let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
        let names = certificate::names("ferrogate-system");
        let due = certificate::due(now, &Kept::default(), &names, &Lifetimes::default());
        let kept = certificate::renewed(now, due, &Kept::default(), &names, &Lifetimes::default()).unwrap();
        Files { chain: kept.leaf.into_bytes(), key: kept.leaf_key.into_bytes() }
    }

    fn put(folder: &Path, files: &Files) {
        fs::write(folder.join(CERTIFICATE), &files.chain).unwrap();
        fs::write(folder.join(KEY), &files.key).unwrap();
    }

    #[test]
    fn a_token_is_what_follows_the_word_bearer_however_it_is_spelt() {
        let of = |value: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
            bearer(&headers).map(str::to_owned)
        };

        assert_eq!(of("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(of("bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(of("Basic abc"), None);
        assert_eq!(of("Bearer"), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn m_149_who_may_not_read_is_told_why_and_nothing_else() {
        let status = |denied: Denied| refusal(&denied).status();
        let user = || "system:serviceaccount:a:b".to_owned();

        assert_eq!(status(Denied::NoToken), StatusCode::UNAUTHORIZED);
        assert_eq!(refusal(&Denied::UnknownToken).headers()[WWW_AUTHENTICATE], "Bearer");
        assert_eq!(status(Denied::MayNotGet { user: user() }), StatusCode::FORBIDDEN);
        assert_eq!(status(Denied::NotAsked { detail: String::new() }), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn nothing_but_reading_metrics_is_answered() {
        let ask = |method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            misplaced(&request).map(|response| response.status())
        };

        assert_eq!(ask(Method::GET, "/metrics"), None);
        assert_eq!(ask(Method::POST, "/metrics"), Some(StatusCode::METHOD_NOT_ALLOWED));
        assert_eq!(ask(Method::GET, "/healthz"), Some(StatusCode::NOT_FOUND));
    }

    #[tokio::test]
    async fn a_new_certificate_is_shown_and_a_broken_one_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (made(), made());
        put(folder.path(), &first);
        let (shown, newest) = watch::channel(None);

        let same = looked_again(folder.path(), first.clone(), &shown).await;
        assert!(newest.borrow().is_none() && same == first);

        put(folder.path(), &second);
        let files = looked_again(folder.path(), first.clone(), &shown).await;
        let certificate = |files: &Files| files.certified().unwrap().cert;
        assert_eq!(newest.borrow().as_ref().unwrap().cert, certificate(&second));

        fs::write(folder.path().join(KEY), &first.key).unwrap();
        let files = looked_again(folder.path(), files, &shown).await;
        fs::remove_file(folder.path().join(KEY)).unwrap();
        looked_again(folder.path(), files, &shown).await;
        assert_eq!(newest.borrow().as_ref().unwrap().cert, certificate(&second));
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_there_is_known_before_anything_starts() {
        let folder = tempfile::tempdir().unwrap();
        let args = ScrapeArgs {
            metrics_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            metrics_certificate: Some(folder.path().to_owned()),
        };

        let error = format!("{:#}", args.open(false).await.unwrap_err());

        assert!(error.contains("--metrics-certificate") && error.contains("tls.crt"), "{error}");
    }
}
