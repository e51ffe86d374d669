//! What the tests of TCP and UDP forwarding stand on: a thread of the proxy inside the test's own runtime, with one
//! Service behind one listener on loopback.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use ferrogate_core::{
    model::{
        Family, NodeName, ServiceKey,
        service::{
            Endpoint, EndpointPort, FamilyPolicy, LoadBalancer, Protocol, Request, Service, ServicePort, ServiceStatus,
            SessionAffinity, TrafficPolicy,
        },
    },
    proxy::{ListenerKey, RouteTable, Transport},
    snapshot::Snapshot,
};
use tokio::task::LocalSet;

use crate::{config::Config, metrics::Counters, thread::Thread};

/// A Service of one port at one loopback socket; its endpoints are sockets of the test.
pub(crate) struct World {
    pub(crate) key: ListenerKey,
    pub(crate) service: Service,
    pub(crate) snapshot: Snapshot,
}

impl World {
    pub(crate) fn new(socket: SocketAddr, transport: Transport) -> Self {
        let port = NonZeroU16::new(socket.port()).unwrap();
        let protocol = match transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
        };
        let service = Service {
            key: ServiceKey::new("default", "web"),
            labels: Default::default(),
            created: 0,
            generation: 1,
            version: Default::default(),
            load_balancer: Some(LoadBalancer {
                class: None,
                families: vec![Family::of(socket.ip())],
                family_policy: FamilyPolicy::SingleStack,
                request: Ok(Request::default()),
            }),
            ports: vec![ServicePort { name: String::new(), protocol, port, node_port: None }],
            cluster_ips: Vec::new(),
            selector: Default::default(),
            external_traffic_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            session_affinity: SessionAffinity::None,
            source_ranges: Vec::new(),
            is_foreign: false,
            is_entry: false,
            wished_node: None,
            endpoints: Vec::new(),
            observed: ServiceStatus { addresses: vec![socket.ip()], ..ServiceStatus::default() },
        };
        Self { key: ListenerKey { socket, transport }, service, snapshot: Snapshot::default() }
    }

    /// Adds an endpoint on the node of this name.
    pub(crate) fn endpoint(mut self, socket: SocketAddr, node: &str) -> Self {
        let protocol = self.service.ports.first().unwrap().protocol;
        let port = NonZeroU16::new(socket.port()).unwrap();
        self.service.endpoints.push(Endpoint {
            address: socket.ip(),
            node: Some(NodeName::from(node)),
            ready: true,
            serving: true,
            terminating: false,
            ports: Arc::from([EndpointPort { name: String::new(), protocol, port }]),
        });
        self
    }

    pub(crate) fn table(&self) -> Arc<RouteTable> {
        let mut snapshot = self.snapshot.clone();
        snapshot.services.insert(self.service.key.clone(), Arc::new(self.service.clone()));
        Arc::new(RouteTable::compile(&snapshot, None))
    }

    /// A thread that serves this.
    pub(crate) fn thread(&self, config: Config) -> Rc<Thread> {
        let thread = Thread::new(Arc::new(config), None, Arc::new(Counters::default()), 1);
        thread.adopt(self.table());
        thread
    }
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0)
}

/// Runs a test that is over within ten seconds whatever happens.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(10), test).await.expect("it takes too long") };
    LocalSet::new().block_on(&runtime, limited);
}

/// Lets every task that can go on do so.
pub(crate) async fn settle() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}
