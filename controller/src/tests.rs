//! The room between its channels, on paused time.

use std::{collections::BTreeSet, num::NonZeroU16, time::Duration};

use ferrogate_core::{
    model::{
        Family, ObjectKey, ObjectRef,
        pool::{AddressRange, Pool, PoolStatus},
        service::{
            FamilyPolicy, LoadBalancer, Protocol, Request, Service, ServicePort, ServiceStatus, SessionAffinity,
            TrafficPolicy,
        },
    },
    snapshot::{Fault, Origin, Problem},
    write::WRITE_PATIENCE,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::task::JoinHandle;

use super::*;

fn web() -> Service {
    Service {
        key: ObjectKey::new("default", "web"),
        labels: Default::default(),
        created: 0,
        generation: 0,
        version: Default::default(),
        load_balancer: Some(LoadBalancer {
            class: None,
            families: vec![Family::V4],
            family_policy: FamilyPolicy::SingleStack,
            request: Ok(Request::default()),
        }),
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
            node_port: None,
        }],
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
        observed: ServiceStatus::default(),
    }
}

fn pool() -> Pool {
    let address = "192.0.2.1".parse().unwrap();
    Pool {
        key: ObjectKey::new("ferrogate-system", "p"),
        read_only: false,
        name: "p".into(),
        labels: Default::default(),
        generation: 0,
        ranges: vec![AddressRange::new(address, address).unwrap()],
        auto_assign: true,
        avoid_buggy_ips: false,
        edges: Default::default(),
        sharing: Default::default(),
        allocation: None,
        observed: PoolStatus::default(),
    }
}

fn facts() -> Snapshot {
    let mut facts = Snapshot::default();
    facts.services.insert(web().key, Arc::new(web()));
    facts.pools.insert(pool().name, Arc::new(pool()));
    facts
}

/// A running room, and the other ends of its channels.
struct Room {
    snapshots: watch::Sender<Arc<Snapshot>>,
    leads: watch::Sender<bool>,
    writes: mpsc::Receiver<Write>,
    ready: watch::Receiver<bool>,
    registry: Registry,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

fn open(leads: bool) -> Room {
    let (snapshots, snapshots_rx) = watch::channel(Arc::new(facts()));
    let (leads, leads_rx) = watch::channel(leads);
    let (writes_tx, writes) = mpsc::channel(64);
    let (ready_tx, ready) = watch::channel(false);
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let shutdown = CancellationToken::new();
    let room = run(Config::default(), snapshots_rx, leads_rx, writes_tx, metrics, ready_tx, shutdown.clone());
    Room { snapshots, leads, writes, ready, registry, shutdown, task: tokio::spawn(room) }
}

impl Room {
    async fn service_status(&mut self) -> ServiceStatus {
        loop {
            if let Write::ServiceStatus { status, .. } = self.writes.recv().await.unwrap() {
                return status;
            }
        }
    }

    fn metrics(&self) -> BTreeSet<String> {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn m_081_the_first_snapshot_makes_it_ready_and_its_metrics_give_the_size_of_each_pool() {
    let mut room = open(true);

    let status = room.service_status().await;
    room.ready.wait_for(|ready| *ready).await.unwrap();

    assert_eq!(status.addresses.len(), 1);
    let metrics = room.metrics();
    for line in [
        r#"ferrogate_controller_pool_addresses_in_use{pool="p",family="IPv4"} 1"#,
        r#"ferrogate_controller_pool_addresses{pool="p",family="IPv4"} 1"#,
        r#"ferrogate_controller_writes_total{kind="service_status"} 1"#,
        "ferrogate_controller_leading 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn m_081_the_metric_is_256_for_a_prefix_of_24_bits_254_without_buggy_addresses_and_goes_with_the_pool() {
    let mut room = open(true);
    room.service_status().await;
    let lines = |room: &Room| -> Vec<String> {
        let all = room.metrics().into_iter();
        all.filter(|line| line.starts_with("ferrogate_controller_pool_addresses{")).collect()
    };
    for (avoid_buggy_ips, count) in [(false, 256), (true, 254)] {
        let mut facts = facts();
        let range = AddressRange::new("192.0.2.0".parse().unwrap(), "192.0.2.255".parse().unwrap()).unwrap();
        let pool = Pool { ranges: vec![range], avoid_buggy_ips, ..pool() };
        facts.pools.insert(pool.name.clone(), Arc::new(pool));
        room.snapshots.send_replace(Arc::new(facts));
        loop {
            if let Write::PoolStatus { status, .. } = room.writes.recv().await.unwrap()
                && status.assigned_ipv4 + status.available_ipv4 == count
            {
                break;
            }
        }
        let expected = format!(r#"ferrogate_controller_pool_addresses{{pool="p",family="IPv4"}} {count}"#);
        assert_eq!(lines(&room), [expected]);
    }

    let mut without = facts();
    without.pools.clear();
    room.snapshots.send_replace(Arc::new(without));
    while !room.service_status().await.addresses.is_empty() {}

    assert_eq!(lines(&room), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_write_that_does_not_show_is_sent_again_after_patience() {
    let mut room = open(true);
    let first = room.service_status().await;
    let asked_at = Instant::now();

    let again = room.service_status().await;

    assert_eq!(first, again);
    assert!(asked_at.elapsed() >= WRITE_PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_lead_is_ready_and_silent_until_it_leads() {
    let mut room = open(false);
    room.ready.wait_for(|ready| *ready).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(room.writes.is_empty());

    room.leads.send_replace(true);

    assert_eq!(room.service_status().await.addresses.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pending_service_is_counted_by_reason_until_it_is_gone() {
    let mut room = open(true);
    let mut other = web();
    other.key = ObjectKey::new("default", "other");
    let mut more = facts();
    more.services.insert(other.key.clone(), Arc::new(other.clone()));
    let line = r#"ferrogate_controller_pending_services{reason="Exhausted"} 1"#;

    room.snapshots.send_replace(Arc::new(more));
    while room.service_status().await.condition.unwrap().reason != "Exhausted" {}
    assert!(room.metrics().contains(line));
    room.snapshots.send_replace(Arc::new(facts()));
    while room.metrics().contains(line) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn m_037_a_metric_says_that_part_of_the_configuration_is_not_in_force_whether_this_process_leads_or_not() {
    for leads in [true, false] {
        let mut room = open(leads);
        room.ready.wait_for(|ready| *ready).await.unwrap();
        let shows = |room: &Room, number| {
            room.metrics().contains(&format!("ferrogate_controller_configuration_incomplete {number}"))
        };
        assert!(shows(&room, 0));
        let object =
            ObjectRef::namespaced("ferrogate.io/v1beta1", "IPAddressPool", &ObjectKey::new("ferrogate-system", "q"));
        let fault = Fault::Schema { detail: "nonsense".to_owned() };
        let problem = Problem { object: Some(object.clone()), generation: 1, field: String::new(), fault };
        let mut bad = facts();
        bad.problems = Arc::new([(Origin::Cluster(object), vec![problem])].into());

        for (facts, number) in [(bad, 1), (facts(), 0)] {
            room.snapshots.send_replace(Arc::new(facts));
            while !shows(&room, number) {
                tokio::task::yield_now().await;
            }
        }
        assert!(room.metrics().contains("ferrogate_controller_configuration_loaded 1"));
    }
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_told_and_says_why_when_not() {
    let room = open(true);
    room.shutdown.cancel();
    assert!(room.task.await.unwrap().is_ok());

    let room = open(true);
    drop(room.writes);
    assert!(matches!(room.task.await.unwrap(), Err(RunError::SinkEnded)));

    let room = open(false);
    drop(room.snapshots);
    assert!(matches!(room.task.await.unwrap(), Err(RunError::SourceEnded)));
}
