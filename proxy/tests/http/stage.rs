//! A proxy on loopback with scripted backends and a client that speaks raw bytes.
//!
//! Ports are held by sockets that are bound but do not listen, so no two tests can meet and none is chosen by hand.

use std::{
    collections::BTreeMap,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU16, NonZeroUsize},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ferrogate_core::{
    model::{
        Family, ObjectKey,
        entry::{Entry, EntryPort, EntryService, EntryWish},
        route::{Backend, BackendPort, Host, Ingress, IngressPath, IngressRule, PathKind},
        service::{
            Endpoint, EndpointPort, FamilyPolicy, LoadBalancer, Protocol, Request, Service, ServicePort, ServiceStatus,
            SessionAffinity, TrafficPolicy,
        },
    },
    snapshot::Snapshot,
};
use ferrogate_proxy::{Config, Metrics, RunError};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Nothing in these tests takes as long, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something that must happen soon.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it took too long")
}

/// A running proxy.
pub struct Stage {
    pub port: u16,
    pub registry: Registry,
    pub shutdown: CancellationToken,
    pub ready: watch::Receiver<bool>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    run: JoinHandle<Result<(), RunError>>,
    _reserved: TcpSocket,
}

/// A port that is this test's own, and the socket that holds it.
pub fn reserve() -> (u16, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    (socket.local_addr().unwrap().port(), socket)
}

/// The same for UDP: the socket that holds the port is connected, so it takes nobody else's datagrams.
pub fn reserve_udp() -> (u16, std::net::UdpSocket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let socket = std::net::UdpSocket::from(socket);
    socket.connect((Ipv4Addr::LOCALHOST, 9)).unwrap();
    (socket.local_addr().unwrap().port(), socket)
}

/// Short time limits nowhere, one thread.
pub fn config() -> Config {
    Config { threads: NonZeroUsize::new(1), ..Config::default() }
}

impl Stage {
    /// Serves every host from these endpoints.
    pub async fn new(endpoints: &[SocketAddr]) -> Self {
        Self::with(config(), endpoints).await
    }

    pub async fn with(config: Config, endpoints: &[SocketAddr]) -> Self {
        let (port, reserved) = reserve();
        let mut stage = Self::starting(config, world(&[port], endpoints), port, reserved);
        soon(stage.ready.wait_for(|ready| *ready)).await.expect("the proxy runs");
        stage
    }

    /// A proxy that shall serve this world, perhaps not ready yet.
    pub fn starting(config: Config, world: Snapshot, port: u16, reserved: TcpSocket) -> Self {
        let (snapshots, receiver) = watch::channel(Arc::new(world));
        let (ready_sender, ready) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let run = tokio::spawn(ferrogate_proxy::run(config, receiver, metrics, ready_sender, shutdown.clone()));
        Self { port, registry, shutdown, ready, snapshots, run, _reserved: reserved }
    }

    /// Shows the proxy another world.
    pub fn show(&self, snapshot: Snapshot) {
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    pub async fn connect(&self) -> Client {
        Client::to(self.port).await
    }

    /// Sends one request on a new connection and reads until the proxy closes.
    pub async fn once(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.send(request).await;
        client.rest().await
    }

    /// The value of a metric, summed over lines that begin so.
    pub fn metric(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let lines = text.lines().filter(|found| found.starts_with(line));
        lines.map(|found| found.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Waits for the end after a shutdown.
    pub async fn ended(self) -> Result<(), RunError> {
        soon(self.run).await.unwrap()
    }
}

/// A client that speaks raw bytes.
pub struct Client {
    pub stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    pub async fn to(port: u16) -> Self {
        let stream = soon(TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, received: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Everything up to and with `end`.
    pub async fn until(&mut self, end: &str) -> String {
        loop {
            let found = self.received.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let rest = self.received.split_off(at + end.len());
                return String::from_utf8_lossy(&std::mem::replace(&mut self.received, rest)).into_owned();
            }
            let mut piece = [0; 4096];
            let length = soon(self.stream.read(&mut piece)).await.unwrap();
            assert_ne!(length, 0, "closed after {:?}", String::from_utf8_lossy(&self.received));
            self.received.extend_from_slice(&piece[..length]);
        }
    }

    /// So many bytes.
    pub async fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() < length {
            let mut piece = vec![0; 65536];
            let read = soon(self.stream.read(&mut piece)).await.unwrap();
            assert_ne!(read, 0, "closed after {} bytes", self.received.len());
            self.received.extend_from_slice(&piece[..read]);
        }
        let rest = self.received.split_off(length);
        std::mem::replace(&mut self.received, rest)
    }

    /// A whole answer with a Content-Length.
    pub async fn answer(&mut self) -> (String, String) {
        let head = self.until("\r\n\r\n").await;
        let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        let body = self.exactly(length).await;
        (head, String::from_utf8_lossy(&body).into_owned())
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Everything until the other side closes.
    pub async fn rest(mut self) -> String {
        soon(self.stream.read_to_end(&mut self.received)).await.unwrap();
        String::from_utf8_lossy(&self.received).into_owned()
    }

    /// Waits until the other side closes without another byte.
    pub async fn closed(self) {
        assert_eq!(self.rest().await, "");
    }
}

/// The value of a header.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// A backend that handles each connection with a script of its own.
pub struct Origin {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Origin {
    /// `script` gets the connection and its number from 0.
    pub async fn scripted<F, Done>(script: F) -> Self
    where
        F: Fn(Client, usize) -> Done + Send + 'static,
        Done: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(script(Client { stream, received: Vec::new() }, number));
            }
        });
        Self { address, connections, heads: Arc::default(), task }
    }

    /// Answers every request with `200` and this body, and keeps connections. Request bodies with a length are read.
    pub async fn saying(body: &'static str) -> Self {
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&heads);
        let mut origin = Self::scripted(move |mut client, _| {
            let seen = Arc::clone(&seen);
            async move {
                while let Some(head) = client.next_head().await {
                    let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
                    client.exactly(length).await;
                    seen.lock().unwrap().push(head);
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    client.send(answer).await;
                }
            }
        })
        .await;
        origin.heads = heads;
        origin
    }

    /// The heads that [`saying`](Self::saying) has seen.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    /// The next request's head, if there is a next request.
    pub async fn next_head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                let rest = self.received.split_off(at + 4);
                return Some(String::from_utf8_lossy(&std::mem::replace(&mut self.received, rest)).into_owned());
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece).await {
                Ok(0) | Err(_) => return None,
                Ok(length) => self.received.extend_from_slice(&piece[..length]),
            }
        }
    }
}

/// An entry on 127.0.0.1 with these ports, and one Ingress that sends every host to these endpoints.
pub fn world(ports: &[u16], endpoints: &[SocketAddr]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let entry = Service {
        is_foreign: false,
        is_entry: true,
        load_balancer: Some(LoadBalancer {
            class: None,
            families: vec![Family::V4],
            family_policy: FamilyPolicy::SingleStack,
            request: Ok(Request::default()),
        }),
        ports: ports.iter().map(|port| service_port(&format!("http-{port}"), *port)).collect(),
        observed: ServiceStatus { addresses: vec![IpAddr::from(Ipv4Addr::LOCALHOST)], ..ServiceStatus::default() },
        ..service("entry")
    };
    let web = Service {
        ports: vec![service_port("http", 80)],
        endpoints: endpoints.iter().map(|address| endpoint(*address)).collect(),
        ..service("web")
    };
    let backend = Backend { service: web.key.clone(), port: BackendPort::Number(NonZeroU16::new(80).unwrap()) };
    let ingress = Ingress {
        key: ObjectKey::new("default", "web"),
        created: 0,
        generation: 0,
        default_backend: None,
        rules: vec![IngressRule {
            host: Host::Any,
            paths: vec![IngressPath { path: "/".to_owned(), kind: PathKind::Prefix, backend }],
        }],
        observed_addresses: Vec::new(),
    };
    snapshot.services.insert(entry.key.clone(), Arc::new(entry));
    snapshot.services.insert(web.key.clone(), Arc::new(web));
    snapshot.ingresses.insert(ingress.key.clone(), Arc::new(ingress));
    snapshot
}

/// The same, and a LoadBalancer Service on 127.0.0.1 with this port that is not HTTP.
pub fn world_with(mut snapshot: Snapshot, protocol: Protocol, port: u16, endpoints: &[SocketAddr]) -> Snapshot {
    let mut plain =
        Service { is_entry: false, ..(**snapshot.services.get(&ObjectKey::new("default", "entry")).unwrap()).clone() };
    plain.key = ObjectKey::new("default", format!("plain-{port}"));
    plain.ports = vec![ServicePort { protocol, ..service_port("", port) }];
    plain.endpoints = endpoints.iter().map(|address| endpoint_named("", protocol, *address)).collect();
    snapshot.services.insert(plain.key.clone(), Arc::new(plain));
    snapshot
}

/// The same in a cluster, where kube-proxy passes port 80 of the entry on to this port of the node.
pub fn cluster(port: u16, endpoints: &[SocketAddr]) -> Snapshot {
    let mut snapshot = world(&[80], endpoints);
    let mut entry = Service::clone(&snapshot.services.remove(&ObjectKey::new("default", "entry")).unwrap());
    let facts = Entry {
        namespace: "ferrogate-system".to_owned(),
        wish: Some(EntryWish { node_ports: true }),
        service: Some(EntryService {
            is_labelled: true,
            is_load_balancer: true,
            is_local: true,
            prefers_dual_stack: true,
            class: None,
            allocates_node_ports: true,
            ports: vec![EntryPort {
                name: "http".to_owned(),
                port: NonZeroU16::new(80).unwrap(),
                target: NonZeroU16::new(port),
                has_node_port: true,
            }],
        }),
        ..Entry::default()
    };
    entry.key = facts.key();
    entry.cluster_ips = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
    snapshot.services.insert(entry.key.clone(), Arc::new(entry));
    snapshot.entry = Some(Arc::new(facts));
    snapshot
}

fn service(name: &str) -> Service {
    Service {
        key: ObjectKey::new("default", name),
        labels: BTreeMap::new(),
        created: 0,
        generation: 0,
        version: Default::default(),
        load_balancer: None,
        ports: Vec::new(),
        cluster_ips: Vec::new(),
        selector: BTreeMap::new(),
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        session_affinity: SessionAffinity::None,
        source_ranges: Vec::new(),
        is_foreign: false,
        is_entry: false,
        wished_node: None,
        endpoints: Vec::new(),
        observed: ServiceStatus::default(),
    }
}

fn service_port(name: &str, port: u16) -> ServicePort {
    let port = NonZeroU16::new(port).unwrap();
    ServicePort { name: name.to_owned(), protocol: Protocol::Tcp, port, node_port: None }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    endpoint_named("http", Protocol::Tcp, address)
}

fn endpoint_named(name: &str, protocol: Protocol, address: SocketAddr) -> Endpoint {
    let port = NonZeroU16::new(address.port()).unwrap();
    Endpoint {
        address: address.ip(),
        node: None,
        ready: true,
        serving: true,
        terminating: false,
        ports: Arc::from([EndpointPort { name: name.to_owned(), protocol, port }]),
    }
}
