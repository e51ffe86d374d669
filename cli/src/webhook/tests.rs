//! The listener against real TLS clients on the loopback.

use std::{
    cell::Cell,
    net::{Ipv4Addr, Ipv6Addr},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use ferrogate_cluster::certificate::{self, Kept, Lifetimes};
use hyper::body::Frame;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;

const NOW: i64 = 1_800_000_000;

/// A certificate of its own authority, of today, and the authority.
fn made() -> (Certificate, String) {
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap_or(NOW);
    let names = certificate::names("ferrogate-system");
    let due = certificate::due(now, &Kept::default(), &names, &Lifetimes::default());
    let kept = certificate::renewed(now, due, &Kept::default(), &names, &Lifetimes::default()).unwrap();
    let not_after = certificate::not_after(&kept).unwrap();
    (Certificate { chain: kept.leaf, key: kept.leaf_key, not_after }, kept.bundle)
}

/// A client that trusts this authority only, and speaks these versions only.
fn client(authority: &str, versions: &[&'static rustls::SupportedProtocolVersion]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

fn name() -> ServerName<'static> {
    ServerName::try_from("ferrogate-webhook.ferrogate-system.svc").unwrap()
}

/// A listener without anybody behind it who knows the configuration: what needs no knowledge is answered.
struct Stand {
    address: SocketAddr,
    certificate: watch::Sender<Option<Arc<Certificate>>>,
    authority: String,
    metrics: Registry,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Stand {
    async fn open() -> Self {
        let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shown, authority) = made();
        let (certificate, receiver) = watch::channel(Some(Arc::new(shown)));
        let webhook = Webhook { admission: Admission::unattended("ferrogate-system"), certificate: receiver };
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(listener, webhook, metrics, stop.clone()));
        Self { address, certificate, authority, metrics: registry, stop, task }
    }

    async fn connect(&self, authority: &str) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        client(authority, rustls::ALL_VERSIONS).connect(name(), stream).await
    }

    /// The status and the whole answer to one request.
    async fn ask(&self, request: &[u8]) -> (u16, String) {
        let mut stream = self.connect(&self.authority).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // Whoever sends too much may find the connection closed behind the answer.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, answer)
    }

    fn count(&self, result: &str) -> bool {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        text.contains(&format!("ferrogate_webhook_reviews_total{{result=\"{result}\"}}"))
    }
}

fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: webhook\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
        .into()
}

/// A question that needs no knowledge of the configuration.
const FOREIGN: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1",
    "kind":{"group":"example.com","version":"v1","kind":"Other"},"operation":"CREATE","object":{}}}"#;

#[tokio::test]
async fn a_review_is_answered_over_tls() {
    let stand = Stand::open().await;

    let (status, answer) = stand.ask(&post(PATH, FOREIGN)).await;

    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains(r#""allowed":true"#) && answer.contains(r#""uid":"u-1""#), "{answer}");
    assert!(stand.count("Allowed"));
}

#[tokio::test]
async fn what_is_no_review_is_told_so() {
    let stand = Stand::open().await;
    let too_long = format!(
        "POST {PATH} HTTP/1.1\r\nhost: webhook\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        MAX_BODY + 1
    );

    assert_eq!(stand.ask(&post(PATH, "nonsense")).await.0, 400);
    assert_eq!(stand.ask(&post("/other", FOREIGN)).await.0, 404);
    assert_eq!(stand.ask(b"GET /validate HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.0, 405);
    assert_eq!(stand.ask(too_long.as_bytes()).await.0, 413);
    assert!(stand.count("Malformed"));
}

/// A body of unknown length that never comes, and whether anybody reads it.
struct Endless<'a>(&'a Cell<usize>);

impl Body for Endless<'_> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.set(self.0.get() + 1);
        Poll::Pending
    }
}

#[test]
fn of_bodies_that_may_be_large_a_few_are_read_at_a_time_and_small_ones_do_not_wait_for_them() {
    let admission = Admission::unattended("ferrogate-system");
    let large_bodies = Arc::new(Semaphore::new(LARGE_BODIES));
    let desk = Desk { admission, metrics: Metrics::default(), large_bodies };
    let (read, mut context) = (Cell::new(0), Context::from_waker(Waker::noop()));
    let mut asked: Vec<_> = (0..MAX_CONNECTIONS).map(|_| Box::pin(answer(Endless(&read), &desk))).collect();

    for one in &mut asked {
        assert!(one.as_mut().poll(&mut context).is_pending());
    }

    assert_eq!(read.get(), LARGE_BODIES);
    let small = pin!(answer(Full::new(Bytes::from(FOREIGN)), &desk));
    let Poll::Ready((answered, _)) = small.poll(&mut context) else { panic!("it waits") };
    assert_eq!(answered, Answered::Allowed);
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_and_plain_text_is_not() {
    let stand = Stand::open().await;

    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let stream = TcpStream::connect(stand.address).await.unwrap();
        client(&stand.authority, &[version]).connect(name(), stream).await.unwrap();
    }
    let mut plain = TcpStream::connect(stand.address).await.unwrap();
    plain.write_all(&post(PATH, FOREIGN)).await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn a_new_certificate_is_shown_at_once_and_open_connections_live_on() {
    let stand = Stand::open().await;
    let mut open = stand.connect(&stand.authority).await.unwrap();
    let (renewed, authority) = made();

    stand.certificate.send_replace(Some(Arc::new(renewed)));
    while stand.connect(&authority).await.is_err() {
        tokio::task::yield_now().await;
    }

    assert!(stand.connect(&stand.authority).await.is_err());
    open.write_all(&post(PATH, FOREIGN)).await.unwrap();
    let mut answer = String::new();
    let _ = open.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_shown_leaves_the_one_before() {
    let stand = Stand::open().await;
    stand.connect(&stand.authority).await.unwrap();
    let (other, _) = made();
    let broken = Certificate { key: "nonsense".to_owned(), ..other };

    stand.certificate.send_replace(Some(Arc::new(broken)));
    for _ in 0..3 {
        assert!(stand.connect(&stand.authority).await.is_ok());
    }
}

#[tokio::test]
async fn at_the_end_a_request_under_way_is_answered_and_idle_connections_are_closed() {
    let stand = Stand::open().await;
    let mut idle = stand.connect(&stand.authority).await.unwrap();
    let mut busy = stand.connect(&stand.authority).await.unwrap();
    let request = post(PATH, FOREIGN);
    let (head, rest) = request.split_at(request.len() - 10);
    busy.write_all(head).await.unwrap();
    busy.flush().await.unwrap();
    // Its head has certainly been read when a request behind it is answered.
    stand.ask(&post(PATH, FOREIGN)).await;

    stand.stop.cancel();
    busy.write_all(rest).await.unwrap();

    let mut answer = String::new();
    let _ = busy.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0);
    stand.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn every_address_means_ipv4_too() {
    let listener = bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).await.unwrap();
    let port = listener.local_addr().unwrap().port();

    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok());
}
