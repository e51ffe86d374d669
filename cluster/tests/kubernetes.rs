//! The Kubernetes source against an API server that a test can make ill.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ferrogate_cluster::{Cluster, KubernetesConfig, Role, Timing};
use ferrogate_core::{
    configuration::{ConfigurationState, Judgement, Reporter, judge},
    model::{
        NodeName, ObjectKey, ObjectRef, PeerName, PoolName, ResourceVersion, ServiceKey,
        pool::PoolStatus,
        service::{ADDRESS_ASSIGNED, ClassPolicy, ServiceStatus},
    },
    snapshot::Snapshot,
    write::{BgpSession, Condition, Event, L2Conflict, L2Status, Severity, Write},
};
use hyper::Method;
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

#[path = "kubernetes/fake.rs"]
mod fake;
#[path = "kubernetes/leases.rs"]
mod leases;

use fake::{Fake, Mood, Seen};

/// Longer than anything here takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

const NAMESPACE: &str = "ferrogate-system";
const SERVICES: &str = "/api/v1/services";
const POOLS: &str = "/apis/ferrogate.io/v1beta1/ipaddresspools";
const PEERS: &str = "/apis/ferrogate.io/v1beta1/bgppeers";
const SECRETS: &str = "/api/v1/secrets";
const INGRESSES: &str = "/apis/networking.k8s.io/v1/ingresses";
const L2_STATUSES: &str = "/apis/ferrogate.io/v1beta1/servicel2statuses";
const BGP_STATUSES: &str = "/apis/ferrogate.io/v1beta1/servicebgpstatuses";
const BGP_SESSIONS: &str = "/apis/ferrogate.io/v1beta1/bgpsessionstatuses";
const CONFIGURATION_STATES: &str = "/apis/ferrogate.io/v1beta1/configurationstates";
const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";

/// As quick as can be told from the noise of a busy machine.
const TIMING: Timing = Timing {
    lease: Duration::from_secs(3),
    give_up: Duration::from_secs(2),
    retry: Duration::from_millis(100),
    request: Duration::from_secs(1),
};

fn config(role: Role, identity: &str) -> KubernetesConfig {
    let class = ClassPolicy::default();
    let (namespace, identity) = (NAMESPACE.to_owned(), identity.to_owned());
    KubernetesConfig { namespace, role, identity, class, metallb: None }
}

async fn open(fake: &Fake, role: Role, identity: &str) -> Cluster {
    let opened = Cluster::kubernetes_with(fake.client(), config(role, identity), TIMING, CancellationToken::new());
    tokio::time::timeout(PATIENCE, opened).await.expect("in time").unwrap()
}

async fn open_controller(fake: &Fake) -> Cluster {
    open(fake, Role::Controller, "one").await
}

async fn until(cluster: &mut Cluster, what: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let found = tokio::time::timeout(PATIENCE, cluster.snapshots.wait_for(|snapshot| what(snapshot))).await;
    found.expect("in time").expect("still open").clone()
}

async fn until_leads(cluster: &mut Cluster, wanted: bool) {
    let found = tokio::time::timeout(PATIENCE, cluster.leads.wait_for(|leads| *leads == wanted)).await;
    found.expect("in time").expect("still open");
}

/// What is written whatever version the Service has.
fn service_status(service: ServiceKey, status: ServiceStatus) -> Write {
    Write::ServiceStatus { service, status, version: ResourceVersion::default(), fence: false }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

fn service(name: &str) -> Value {
    json!({
        "metadata": { "namespace": "default", "name": name, "generation": 3 },
        "spec": { "type": "LoadBalancer", "clusterIPs": ["198.51.100.1"], "ports": [{ "port": 80 }] },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.9" }] } },
    })
}

fn pool(namespace: &str, name: &str) -> Value {
    json!({ "metadata": { "namespace": namespace, "name": name }, "spec": { "addresses": ["192.0.2.0/24"] } })
}

fn condition(kind: &str, holds: bool) -> Condition {
    Condition {
        kind: kind.to_owned(),
        holds,
        reason: "Because".to_owned(),
        message: "of that".to_owned(),
        observed_generation: 3,
    }
}

#[tokio::test]
async fn everything_the_api_server_lists_is_in_the_first_snapshot() {
    let fake = Fake::start().await;
    fake.put(SERVICES, service("web"));
    fake.put("/api/v1/nodes", json!({ "metadata": { "name": "one" } }));
    fake.put("/api/v1/namespaces", json!({ "metadata": { "name": "default", "labels": { "a": "b" } } }));
    fake.put(POOLS, pool(NAMESPACE, "p"));
    fake.put(POOLS, pool("elsewhere", "q"));
    fake.put(
        "/apis/ferrogate.io/v1beta1/l2advertisements",
        json!({ "metadata": { "namespace": NAMESPACE, "name": "l2" }, "spec": {} }),
    );
    fake.put(
        "/apis/discovery.k8s.io/v1/endpointslices",
        json!({
            "metadata": {
                "namespace": "default", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" },
            },
            "addressType": "IPv4",
            "ports": [{ "port": 8080 }],
            "endpoints": [{ "addresses": ["198.51.100.7"] }],
        }),
    );

    let cluster = open_controller(&fake).await;

    let snapshot = cluster.snapshots.borrow().clone();
    let web = &snapshot.services[&key("web")];
    assert_eq!(web.endpoints.len(), 1);
    assert_eq!(web.observed.addresses, ["192.0.2.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(web.generation, 3);
    assert!(snapshot.nodes.contains_key("one"));
    assert_eq!(snapshot.namespaces["default"]["a"], "b");
    assert_eq!(snapshot.l2_advertisements.len(), 1);
    // Pools count in our own namespace only.
    assert_eq!(snapshot.pools.keys().map(PoolName::as_str).collect::<Vec<_>>(), ["p"]);
    assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
}

#[tokio::test]
async fn changes_arrive_as_they_happen() {
    let fake = Fake::start().await;
    let mut cluster = open_controller(&fake).await;

    fake.put(SERVICES, service("web"));
    until(&mut cluster, |snapshot| snapshot.services.contains_key(&key("web"))).await;
    let mut changed = service("web");
    changed["spec"]["ports"][0]["port"] = json!(81);
    fake.put(SERVICES, changed);
    until(&mut cluster, |snapshot| snapshot.services[&key("web")].ports[0].port.get() == 81).await;
    fake.delete(SERVICES, "default", "web");
    until(&mut cluster, |snapshot| snapshot.services.is_empty()).await;
}

#[tokio::test]
async fn a_deletion_nobody_told_of_is_found_when_history_has_expired() {
    let fake = Fake::start().await;
    fake.put(SERVICES, service("web"));
    fake.put(SERVICES, service("db"));
    let mut cluster = open_controller(&fake).await;

    fake.set_mood(Mood::Down);
    fake.delete(SERVICES, "default", "web");
    fake.forget_history();
    fake.set_mood(Mood::Well);

    let snapshot = until(&mut cluster, |snapshot| snapshot.services.len() == 1).await;
    assert!(snapshot.services.contains_key(&key("db")));
}

#[tokio::test]
async fn losing_the_api_server_clears_nothing_and_says_so() {
    let fake = Fake::start().await;
    fake.put(SERVICES, service("web"));
    let mut cluster = open_controller(&fake).await;

    fake.set_mood(Mood::Down);
    let lost = until(&mut cluster, |snapshot| !snapshot.problems.is_empty()).await;
    assert!(lost.services.contains_key(&key("web")));
    let problem = lost.problems.values().flatten().next().unwrap().to_string();
    assert!(problem.contains("see that the API server can be reached"), "{problem}");

    fake.set_mood(Mood::Well);
    fake.put(SERVICES, service("db"));
    until(&mut cluster, |snapshot| snapshot.services.len() == 2).await;
}

#[tokio::test]
async fn a_bad_object_is_named_and_leaves_its_last_good_form_in_force() {
    let fake = Fake::start().await;
    fake.put(POOLS, pool(NAMESPACE, "p"));
    let mut cluster = open_controller(&fake).await;
    let mut bad = pool(NAMESPACE, "p");
    bad["spec"]["addresses"] = json!(["10.0.0.300/24"]);

    fake.put(POOLS, bad);

    let snapshot = until(&mut cluster, |snapshot| !snapshot.problems.is_empty()).await;
    let problem = snapshot.problems.values().flatten().next().unwrap().to_string();
    assert!(problem.starts_with(&format!("IPAddressPool {NAMESPACE}/p: spec.addresses[0]:")), "{problem}");
    assert_eq!(snapshot.pools.len(), 1);
}

#[tokio::test]
async fn m_042_address_and_annotation_are_applied_in_one_status_update() {
    let fake = Fake::start().await;
    let mut web = service("web");
    web["status"]["conditions"] = json!([{
        "type": ADDRESS_ASSIGNED, "status": "True", "reason": "Old", "message": "", "lastTransitionTime":
        "2001-02-03T04:05:06Z",
    }]);
    fake.put(SERVICES, web);
    let mut cluster = open_controller(&fake).await;
    let status = ServiceStatus {
        addresses: vec!["192.0.2.7".parse().unwrap()],
        pool: Some(PoolName::from("p")),
        condition: Some(condition(ADDRESS_ASSIGNED, true)),
        ..ServiceStatus::default()
    };

    cluster.writes.send(service_status(key("web"), status.clone())).await.unwrap();

    let seen = fake.seen(|seen| seen.path.ends_with("/services/web/status")).await;
    assert_eq!(seen.method, Method::PATCH);
    assert_eq!(seen.path, "/api/v1/namespaces/default/services/web/status");
    assert_eq!(seen.content_type, "application/apply-patch+yaml");
    assert_eq!(seen.query["fieldManager"], "ferrogate-controller");
    assert_eq!(seen.query["force"], "true");
    assert_eq!(
        seen.body,
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "namespace": "default",
                "name": "web",
                "annotations": { "ferrogate.io/ip-allocated-from-pool": "p" },
            },
            "status": {
                "loadBalancer": { "ingress": [{ "ip": "192.0.2.7" }] },
                "conditions": [{
                    "type": ADDRESS_ASSIGNED,
                    "status": "True",
                    "reason": "Because",
                    "message": "of that",
                    "observedGeneration": 3,
                    "lastTransitionTime": "2001-02-03T04:05:06Z",
                }],
            },
        })
    );
    until(&mut cluster, |snapshot| snapshot.services[&key("web")].observed == status).await;
}

#[tokio::test]
async fn pools_ingresses_and_conditions_get_their_status() {
    let fake = Fake::start().await;
    fake.put(POOLS, pool(NAMESPACE, "p"));
    let spec = json!({ "defaultBackend": { "service": { "name": "web", "port": { "number": 80 } } } });
    fake.put(INGRESSES, json!({ "metadata": { "namespace": "default", "name": "i" }, "spec": spec }));
    let mut cluster = open_controller(&fake).await;
    let pool_key = ObjectKey::new(NAMESPACE, "p");
    let status = PoolStatus { assigned_ipv4: 1, available_ipv4: 255, ..PoolStatus::default() };
    let accepted = Write::Condition {
        object: ObjectRef::namespaced("ferrogate.io/v1beta1", "IPAddressPool", &pool_key),
        condition: condition("Accepted", false),
    };
    let addresses = vec!["192.0.2.7".parse().unwrap()];

    cluster.writes.send(Write::PoolStatus { pool: pool_key, status: status.clone() }).await.unwrap();
    cluster.writes.send(accepted).await.unwrap();
    cluster.writes.send(Write::IngressStatus { ingress: key("i"), addresses }).await.unwrap();

    until(&mut cluster, |snapshot| {
        let observed = snapshot.pools.values().next().map(|pool| pool.observed.clone()).unwrap_or_default();
        observed.assigned_ipv4 == 1 && observed.conditions == [condition("Accepted", false)]
    })
    .await;
    fake.seen(|seen| seen.path.ends_with("/ingresses/i/status")).await;
    let manager = "ferrogate-controller-Accepted";
    fake.seen(|seen| seen.query.get("fieldManager").is_some_and(|found| found == manager)).await;
}

#[tokio::test]
async fn a_wish_is_an_annotation_that_comes_and_goes_and_touches_nothing_else() {
    let fake = Fake::start().await;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "type": "LoadBalancer", "ports": [{ "port": 80 }], "clusterIPs": ["203.0.113.1"] },
    });
    fake.put(SERVICES, service);
    let mut cluster = open(&fake, Role::Reader(None), "reader").await;
    let node = NodeName::from("one");
    let is_wished = |snapshot: &Snapshot, wish: Option<&NodeName>| {
        snapshot.services.get(&key("web")).is_some_and(|web| web.wished_node.as_ref() == wish)
    };

    cluster.wish(&key("web"), Some(&node)).await.unwrap();
    until(&mut cluster, |snapshot| is_wished(snapshot, Some(&node))).await;
    let seen = fake.seen(|seen| seen.method == Method::PATCH && seen.path.contains("services/web")).await;
    assert_eq!(seen.query["fieldManager"], "ferrogate-move");
    assert_eq!(seen.body, json!({ "metadata": { "annotations": { "ferrogate.io/announce-from": "one" } } }));

    cluster.wish(&key("web"), None).await.unwrap();
    let without = json!({ "metadata": { "annotations": { "ferrogate.io/announce-from": null } } });
    fake.seen(|seen| seen.body == without).await;
    until(&mut cluster, |snapshot| is_wished(snapshot, None)).await;
    cluster.closed().await;
}

#[tokio::test]
async fn speakers_report_what_they_announce_and_take_it_back() {
    let fake = Fake::start().await;
    let node = NodeName::from("one");
    let mut cluster = open(&fake, Role::Speaker { node: node.clone(), leases: false }, "speaker-one").await;
    let status = L2Status {
        pool: PoolName::from("p"),
        addresses: vec!["192.0.2.7".parse().unwrap()],
        interfaces: [ferrogate_core::model::InterfaceName::from("eth0")].into(),
        transitions: 2,
        conflicts: vec![L2Conflict {
            address: "192.0.2.7".parse().unwrap(),
            interface: "eth0".into(),
            mac: "02:00:00:00:00:42".to_owned(),
        }],
    };
    let write = |status| Write::L2Status { service: key("web"), node: node.clone(), status };

    cluster.writes.send(write(Some(status.clone()))).await.unwrap();
    let shown = until(&mut cluster, |snapshot| snapshot.announced_by.contains_key(&key("web"))).await;
    assert_eq!(shown.announced_by[&key("web")][&node], status);
    let seen = fake.seen(|seen| seen.path.contains("servicel2statuses") && seen.path.ends_with("/status")).await;
    assert_eq!(seen.query["fieldManager"], "ferrogate-speaker");
    assert_eq!(seen.body["status"]["interfaces"], json!([{ "name": "eth0" }]));
    let name = seen.body["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(fake.get(L2_STATUSES, NAMESPACE, &name).is_some());

    cluster.writes.send(write(None)).await.unwrap();
    until(&mut cluster, |snapshot| snapshot.announced_by.is_empty()).await;
}

#[tokio::test]
async fn m_146_speakers_say_to_whom_they_advertise_and_how_their_sessions_are_in_objects_that_go_with_the_node() {
    let fake = Fake::start().await;
    fake.put("/api/v1/nodes", json!({ "metadata": { "name": "one" } }));
    let (node, peer) = (NodeName::from("one"), PeerName::from("tor-a"));
    let mut cluster = open(&fake, Role::Speaker { node: node.clone(), leases: false }, "speaker-one").await;
    let session =
        |flaps| Some(Box::new(BgpSession { state: "Established".to_owned(), flaps, ..BgpSession::default() }));
    let has = |status| Write::BgpSession { peer: peer.clone(), node: node.clone(), status };
    let advertises = |peers| Write::BgpStatus { service: key("web"), node: node.clone(), peers };

    cluster.writes.send(advertises([peer.clone()].into())).await.unwrap();
    cluster.writes.send(has(session(0))).await.unwrap();
    let both = |snapshot: &Snapshot| snapshot.bgp_sessions.len() == 1 && snapshot.advertised_by.len() == 1;
    let seen = until(&mut cluster, both).await;
    assert_eq!(seen.advertised_by[&key("web")][&node], [peer.clone()].into());
    let since = seen.bgp_sessions[&(node.clone(), peer.clone())].since.clone();
    assert!(since.ends_with('Z'), "{since}");
    for (collection, labels) in [
        (BGP_STATUSES, json!({ "ferrogate.io/service-name": "web", "ferrogate.io/service-namespace": "default" })),
        (BGP_SESSIONS, json!({ "ferrogate.io/peer": "tor-a" })),
    ] {
        let kind = collection.rsplit('/').next().unwrap();
        let made = fake.seen(|seen| seen.path.contains(kind) && !seen.path.ends_with("/status")).await;
        assert_eq!(made.query["fieldManager"], "ferrogate-speaker");
        let metadata = &made.body["metadata"];
        assert_eq!(metadata["ownerReferences"][0]["name"], "one");
        assert_eq!(metadata["ownerReferences"][0]["kind"], "Node");
        assert_eq!(metadata["labels"]["ferrogate.io/node"], "one");
        for (label, value) in labels.as_object().unwrap() {
            assert_eq!(&metadata["labels"][label], value);
        }
    }

    cluster.writes.send(advertises(Default::default())).await.unwrap();
    cluster.writes.send(has(None)).await.unwrap();
    until(&mut cluster, |snapshot| snapshot.bgp_sessions.is_empty() && snapshot.advertised_by.is_empty()).await;
}

#[tokio::test]
async fn a_speaker_sees_what_an_earlier_life_of_its_node_said_of_bgp_and_nothing_of_other_nodes() {
    let fake = Fake::start().await;
    for node in ["one", "two"] {
        let metadata = json!({ "name": format!("session-{node}"), "namespace": NAMESPACE });
        let status = json!({ "node": node, "peer": "tor-a", "state": "Established", "since": "2026-01-02T03:04:05Z" });
        fake.put(BGP_SESSIONS, json!({ "metadata": metadata, "spec": {}, "status": status }));
        let metadata = json!({ "name": format!("bgp-{node}"), "namespace": NAMESPACE });
        let status = json!({ "node": node, "serviceName": "web", "serviceNamespace": "default", "peers": ["tor-a"] });
        fake.put(BGP_STATUSES, json!({ "metadata": metadata, "spec": {}, "status": status }));
    }

    let speaker = open(&fake, Role::Speaker { node: "one".into(), leases: false }, "speaker-one").await;
    let reader = open(&fake, Role::BgpReader, "reader").await;
    let other = open(&fake, Role::Reader(None), "other").await;
    let controller = open_controller(&fake).await;

    let nodes = |cluster: &Cluster| {
        let snapshot = cluster.snapshots.borrow().clone();
        let advertised: BTreeSet<_> = snapshot.advertised_by.values().flat_map(|by| by.keys().cloned()).collect();
        let sessions: BTreeSet<_> = snapshot.bgp_sessions.keys().map(|(node, _)| node.clone()).collect();
        assert_eq!(advertised, sessions);
        sessions.into_iter().map(|node| node.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(nodes(&speaker), ["one"]);
    assert_eq!(nodes(&reader), ["one", "two"]);
    // Nobody else has any use for an object of each Service and node.
    assert_eq!([nodes(&other), nodes(&controller)].concat(), Vec::<String>::new());
}

#[tokio::test]
async fn m_038_a_speaker_reports_on_the_configuration_under_its_own_name_and_its_node_owns_the_report() {
    let fake = Fake::start().await;
    fake.put("/api/v1/nodes", json!({ "metadata": { "name": "one" } }));
    let mut cluster = open(&fake, Role::Speaker { node: "one".into(), leases: false }, "speaker-one").await;
    let reporter = Reporter::Speaker("one".into());
    let state = |summary: &str| ConfigurationState { judgement: Judgement::Invalid, summary: summary.to_owned() };
    let write = |summary| Write::Configuration { reporter: reporter.clone(), state: state(summary) };
    let shows = |snapshot: &Snapshot, summary| {
        snapshot.configuration_states.get(&reporter).is_some_and(|shown| **shown == state(summary))
    };

    cluster.writes.send(write("first")).await.unwrap();
    until(&mut cluster, |snapshot| shows(snapshot, "first")).await;
    let first = fake.get(CONFIGURATION_STATES, NAMESPACE, "speaker-one").unwrap();
    cluster.writes.send(write("second")).await.unwrap();
    until(&mut cluster, |snapshot| shows(snapshot, "second")).await;
    let second = fake.get(CONFIGURATION_STATES, NAMESPACE, "speaker-one").unwrap();

    let labels = json!({ "ferrogate.io/component-type": "speaker", "ferrogate.io/node-name": "one" });
    assert_eq!(first["metadata"]["labels"], labels);
    assert_eq!(first["metadata"]["ownerReferences"][0]["kind"], "Node");
    let condition = |object: &Value| object["status"]["conditions"][0].clone();
    assert_eq!(condition(&first)["status"], "False");
    assert_eq!(condition(&first)["lastTransitionTime"], condition(&second)["lastTransitionTime"]);
    assert_eq!(condition(&second)["message"], "second");
}

fn secret(namespace: &str, password: &str) -> Value {
    json!({
        "metadata": { "namespace": namespace, "name": "key" },
        "type": "kubernetes.io/basic-auth",
        "data": { "password": ByteString(password.as_bytes().to_vec()) },
    })
}

/// A peer whose password is in the Secret `key`.
fn peer(namespace: &str, name: &str, address: &str) -> Value {
    let secret = json!({ "name": "key" });
    let spec = json!({ "myASN": 64500, "peerASN": 64501, "peerAddress": address, "passwordSecret": secret });
    json!({ "metadata": { "namespace": namespace, "name": name }, "spec": spec })
}

/// The password that a peer is spoken with.
fn password(snapshot: &Snapshot, namespace: &str, name: &str) -> Option<String> {
    let peer = snapshot.bgp_peers.get(&ObjectKey::new(namespace, name))?;
    Some(peer.password.as_ref()?.key()?.expose().to_owned())
}

#[tokio::test]
async fn a_speaker_knows_the_password_of_a_peer_from_its_secret_and_a_controller_does_not() {
    let fake = Fake::start().await;
    fake.put(PEERS, peer(NAMESPACE, "tor", "192.0.2.1"));
    fake.put(SECRETS, secret(NAMESPACE, "one"));
    fake.put(SECRETS, secret("elsewhere", "other"));
    let controller = open_controller(&fake).await;
    let mut speaker = open(&fake, Role::Speaker { node: "node-a".into(), leases: false }, "two").await;

    let seen = controller.snapshots.borrow().clone();
    assert_eq!((password(&seen, NAMESPACE, "tor"), seen.problems.len()), (None, 0));
    until(&mut speaker, |snapshot| password(snapshot, NAMESPACE, "tor").as_deref() == Some("one")).await;
    fake.put(SECRETS, secret(NAMESPACE, "two"));
    until(&mut speaker, |snapshot| password(snapshot, NAMESPACE, "tor").as_deref() == Some("two")).await;
    fake.delete(SECRETS, NAMESPACE, "key");
    let gone = until(&mut speaker, |snapshot| password(snapshot, NAMESPACE, "tor").is_none()).await;

    let problem = gone.problems.values().flatten().next().unwrap();
    assert_eq!(problem.fault.reason(), "NoPassword");
    let state = judge(&gone, &Reporter::Speaker("node-a".into()));
    assert_eq!(state.judgement, Judgement::Invalid);
}

#[tokio::test]
async fn passwords_of_metallbs_peers_stand_beside_them() {
    let fake = Fake::start().await;
    let theirs = "metallb-system";
    fake.put(PEERS, peer(NAMESPACE, "tor", "192.0.2.1"));
    fake.put(SECRETS, secret(NAMESPACE, "ours"));
    fake.put("/apis/metallb.io/v1beta2/bgppeers", peer(theirs, "spine", "192.0.2.2"));
    fake.put(SECRETS, secret(theirs, "theirs"));
    let config = KubernetesConfig {
        metallb: Some(theirs.to_owned()),
        ..config(Role::Speaker { node: "a".into(), leases: false }, "one")
    };

    let opened = Cluster::kubernetes_with(fake.client(), config, TIMING, CancellationToken::new());
    let mut speaker = tokio::time::timeout(PATIENCE, opened).await.expect("in time").unwrap();

    let both = |snapshot: &Snapshot| {
        (password(snapshot, NAMESPACE, "tor"), password(snapshot, theirs, "spine"))
            == (Some("ours".to_owned()), Some("theirs".to_owned()))
    };
    until(&mut speaker, both).await;
    fake.delete(SECRETS, theirs, "key");
    let half = until(&mut speaker, |snapshot| password(snapshot, theirs, "spine").is_none()).await;
    assert_eq!(password(&half, NAMESPACE, "tor").as_deref(), Some("ours"));
}

#[tokio::test]
async fn a_speaker_that_may_not_read_secrets_starts_without_them_and_says_so() {
    let fake = Fake::start().await;
    fake.set_mood(Mood::Discreet);
    fake.put(SERVICES, service("web"));
    fake.put(PEERS, peer(NAMESPACE, "tor", "192.0.2.1"));

    let mut speaker = open(&fake, Role::Speaker { node: "node-a".into(), leases: false }, "one").await;

    let seen = until(&mut speaker, |snapshot| snapshot.problems.len() == 2).await;
    assert!(seen.services.contains_key(&key("web")) && password(&seen, NAMESPACE, "tor").is_none());
    let said: Vec<String> = seen.problems.values().flatten().map(ToString::to_string).collect();
    assert!(said.iter().any(|text| text.contains("allow this service account to list and watch it")), "{said:?}");
}

#[tokio::test]
async fn an_event_is_created_once_and_then_counted() {
    let fake = Fake::start().await;
    fake.put(SERVICES, service("web"));
    let cluster = open_controller(&fake).await;
    let event = Write::Event(Event {
        object: ObjectRef::service(&key("web")),
        severity: Severity::Warning,
        reason: "AllocationFailed".to_owned(),
        message: "no room".to_owned(),
    });

    cluster.writes.send(event.clone()).await.unwrap();
    let created = fake.seen(|seen| seen.method == Method::POST && seen.path.ends_with("/events")).await;
    cluster.writes.send(event).await.unwrap();
    let counted = fake.seen(|seen| seen.method == Method::PATCH && seen.path.contains("/events/")).await;

    assert_eq!(created.path, "/apis/events.k8s.io/v1/namespaces/default/events");
    assert_eq!(created.body["note"], "no room");
    assert_eq!(created.body["regarding"]["uid"], fake.get(SERVICES, "default", "web").unwrap()["metadata"]["uid"]);
    assert_eq!(counted.body["series"]["count"], 2);
}

#[tokio::test]
async fn a_write_that_fails_is_tried_again_and_the_latest_wish_wins() {
    let fake = Fake::start().await;
    fake.put(SERVICES, service("web"));
    let mut cluster = open_controller(&fake).await;
    until_leads(&mut cluster, true).await;
    let write = |address: &str| {
        let addresses = vec![address.parse().unwrap()];
        service_status(key("web"), ServiceStatus { addresses, ..ServiceStatus::default() })
    };

    fake.set_mood(Mood::ReadOnly);
    cluster.writes.send(write("192.0.2.7")).await.unwrap();
    fake.seen(|seen| seen.path.ends_with("/services/web/status")).await;
    cluster.writes.send(write("192.0.2.8")).await.unwrap();
    fake.set_mood(Mood::Well);

    let wanted: std::net::IpAddr = "192.0.2.8".parse().unwrap();
    until(&mut cluster, |snapshot| snapshot.services[&key("web")].observed.addresses == [wanted]).await;
}

#[tokio::test]
async fn what_was_sent_is_written_before_the_end() {
    let fake = Fake::start().await;
    fake.put(SERVICES, service("web"));
    let mut cluster = open_controller(&fake).await;
    let write = service_status(key("web"), ServiceStatus::default());

    cluster.writes.send(write).await.unwrap();
    cluster.closed().await;

    let web = fake.get(SERVICES, "default", "web").unwrap();
    assert_eq!(web["status"]["loadBalancer"]["ingress"], json!([]));
}

#[tokio::test]
async fn one_of_two_controllers_leads_and_the_other_follows_when_it_goes() {
    let fake = Fake::start().await;
    let mut first = open(&fake, Role::Controller, "one").await;
    until_leads(&mut first, true).await;
    let mut second = open(&fake, Role::Controller, "two").await;
    assert!(!*second.leads.borrow());

    first.closed().await;

    assert!(!*first.leads.borrow());
    until_leads(&mut second, true).await;
    let lease = fake.get(LEASES, NAMESPACE, "ferrogate-controller").unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "two");
    assert_eq!(lease["spec"]["leaseTransitions"], 2);
}

#[tokio::test]
async fn a_leader_that_cannot_renew_steps_down_and_takes_over_again_when_it_can() {
    let fake = Fake::start().await;
    let mut cluster = open_controller(&fake).await;
    until_leads(&mut cluster, true).await;

    fake.set_mood(Mood::Hung);
    until_leads(&mut cluster, false).await;
    fake.set_mood(Mood::Well);

    until_leads(&mut cluster, true).await;
}

#[tokio::test]
async fn what_a_leader_could_not_say_in_time_is_not_said_later() {
    let fake = Fake::start().await;
    fake.put(SERVICES, service("web"));
    fake.put(SERVICES, service("db"));
    let before = fake.get(SERVICES, "default", "web").unwrap()["status"].clone();
    let mut cluster = open_controller(&fake).await;
    until_leads(&mut cluster, true).await;
    let write = |name: &str| service_status(key(name), ServiceStatus::default());

    fake.set_mood(Mood::Hung);
    cluster.writes.send(write("web")).await.unwrap();
    fake.seen(|seen| seen.path.ends_with("/services/web/status")).await;
    until_leads(&mut cluster, false).await;
    let mut lease = fake.get(LEASES, NAMESPACE, "ferrogate-controller").unwrap();
    lease["spec"]["holderIdentity"] = json!("other");
    fake.put(LEASES, lease);
    fake.set_mood(Mood::Well);
    // The other's Lease has to expire first, which is far longer than the pause before another attempt.
    until_leads(&mut cluster, true).await;

    cluster.writes.send(write("db")).await.unwrap();
    fake.seen(|seen| seen.path.ends_with("/services/db/status")).await;
    assert_eq!(fake.get(SERVICES, "default", "web").unwrap()["status"], before);
}

#[tokio::test]
async fn a_leader_whose_lease_another_has_taken_steps_down() {
    let fake = Fake::start().await;
    let mut cluster = open_controller(&fake).await;
    until_leads(&mut cluster, true).await;

    let mut lease = fake.get(LEASES, NAMESPACE, "ferrogate-controller").unwrap();
    lease["spec"]["holderIdentity"] = json!("other");
    fake.put(LEASES, lease);

    until_leads(&mut cluster, false).await;
    // Nobody renews it, so it expires.
    until_leads(&mut cluster, true).await;
}

#[tokio::test]
async fn speakers_and_readers_never_lead() {
    let fake = Fake::start().await;
    let speaker = open(&fake, Role::Speaker { node: NodeName::from("one"), leases: false }, "speaker-one").await;
    let reader = open(&fake, Role::Reader(None), "proxy").await;

    assert!(!*speaker.leads.borrow() && !*reader.leads.borrow());
    assert!(fake.get(LEASES, NAMESPACE, "ferrogate-controller").is_none());
}

fn lease_of(holder: &str) -> Value {
    json!({
        "metadata": { "namespace": NAMESPACE, "name": "ferrogate-controller" },
        "spec": { "holderIdentity": holder, "leaseDurationSeconds": 1 },
    })
}

fn is_status_of(seen: &Seen, name: &str) -> bool {
    seen.path.ends_with(&format!("/services/{name}/status"))
}

#[tokio::test]
async fn a_status_decided_on_an_older_service_is_refused() {
    let fake = Fake::start().await;
    fake.put(SERVICES, service("web"));
    let mut cluster = open_controller(&fake).await;
    until_leads(&mut cluster, true).await;
    let old = cluster.snapshots.borrow().services[&key("web")].version.clone();
    let mut touched = service("web");
    touched["metadata"]["labels"] = json!({ "a": "b" });
    fake.put(SERVICES, touched);
    let snapshot = until(&mut cluster, |snapshot| snapshot.services[&key("web")].version != old).await;
    let write = |version, address: &str| Write::ServiceStatus {
        service: key("web"),
        status: ServiceStatus { addresses: vec![address.parse().unwrap()], ..ServiceStatus::default() },
        version,
        fence: false,
    };

    cluster.writes.send(write(old, "192.0.2.7")).await.unwrap();
    fake.seen(|seen| is_status_of(seen, "web")).await;
    cluster.writes.send(write(snapshot.services[&key("web")].version.clone(), "192.0.2.8")).await.unwrap();

    let wanted: std::net::IpAddr = "192.0.2.8".parse().unwrap();
    until(&mut cluster, |snapshot| snapshot.services[&key("web")].observed.addresses == [wanted]).await;
    assert_eq!(fake.count(|seen| is_status_of(seen, "web")), 2, "what was refused is not tried again");
}

#[tokio::test]
async fn who_follows_a_leader_that_vanished_fences_what_it_could_still_write_before_leading() {
    let fake = Fake::start().await;
    let mut pending = service("pending");
    pending["status"] = json!({});
    fake.put(SERVICES, pending);
    fake.put(SERVICES, service("web"));
    fake.put(LEASES, lease_of("other"));
    let version = fake.get(SERVICES, "default", "pending").unwrap()["metadata"]["resourceVersion"].clone();

    let mut cluster = open_controller(&fake).await;
    until_leads(&mut cluster, true).await;

    let fence = fake.seen(|seen| is_status_of(seen, "pending")).await;
    assert_eq!(fence.body["metadata"]["annotations"]["ferrogate.io/fence"], version);
    assert_eq!(fence.body["metadata"]["resourceVersion"], version);
    let snapshot = cluster.snapshots.borrow().clone();
    assert_ne!(json!(snapshot.services[&key("pending")].version.as_str()), version);
    assert_eq!(fake.count(|seen| is_status_of(seen, "web")), 0, "one that has an address needs no fence");
}

#[tokio::test]
async fn an_api_server_that_is_ill_is_asked_rarely_and_everything_is_said_in_the_end() {
    let fake = Fake::start().await;
    let node = NodeName::from("one");
    let mut cluster = open(&fake, Role::Speaker { node: node.clone(), leases: false }, "speaker-one").await;
    fake.set_mood(Mood::ReadOnly);
    let status = L2Status {
        pool: PoolName::from("p"),
        addresses: Vec::new(),
        interfaces: Default::default(),
        transitions: 0,
        conflicts: Vec::new(),
    };
    for number in 0..200 {
        let service = key(&format!("s{number}"));
        let write = Write::L2Status { service, node: node.clone(), status: Some(status.clone()) };
        cluster.writes.send(write.clone()).await.unwrap();
        cluster.writes.send(write).await.unwrap();
    }

    // Sixteen that were sent before any was answered, and then one at a time.
    tokio::time::timeout(Duration::from_secs(3), std::future::pending::<()>()).await.unwrap_err();
    let asked = fake.count(|_| true);
    fake.set_mood(Mood::Well);

    assert!((17..40).contains(&asked), "{asked} requests in three seconds");
    until(&mut cluster, |snapshot| snapshot.announced_by.len() == 200).await;
}

/// A process with the timing of every real one, and no network between it and the API server.
async fn open_in_virtual_time(fake: &Fake, role: Role) -> Cluster {
    let config = config(role, "one");
    Cluster::kubernetes_with(fake.direct(), config, Timing::default(), CancellationToken::new()).await.unwrap()
}

fn announced(node: &NodeName, number: usize) -> Write {
    let status = L2Status {
        pool: PoolName::from("p"),
        addresses: Vec::new(),
        interfaces: Default::default(),
        transitions: 0,
        conflicts: Vec::new(),
    };
    Write::L2Status { service: key(&format!("s{number}")), node: node.clone(), status: Some(status) }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_for_an_hour_is_asked_rarely_and_all_goes_on_when_it_is_back() {
    let fake = Fake::start().await;
    fake.put(SERVICES, service("web"));
    fake.put(SERVICES, service("old"));
    let mut cluster = open_in_virtual_time(&fake, Role::Controller).await;
    until_leads(&mut cluster, true).await;

    fake.set_mood(Mood::Down);
    let before = fake.asked();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let asked = fake.asked() - before;
    assert!(!*cluster.leads.borrow());
    assert_eq!(cluster.snapshots.borrow().services.len(), 2, "what was known stays in force");
    fake.delete(SERVICES, "default", "old");
    fake.put(SERVICES, service("new"));
    fake.forget_history();
    fake.set_mood(Mood::Well);

    // One attempt at the Lease every other second, and each of fifteen watches about twice a minute.
    assert!((1_500..6_000).contains(&asked), "{asked} requests in an hour");
    tokio::time::timeout(Duration::from_secs(120), async {
        let is_new = |snapshot: &Snapshot| {
            snapshot.services.contains_key(&key("new")) && !snapshot.services.contains_key(&key("old"))
        };
        cluster.snapshots.wait_for(|snapshot| is_new(snapshot) && snapshot.problems.is_empty()).await.unwrap();
        cluster.leads.wait_for(|leads| *leads).await.unwrap();
    })
    .await
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_says_when_to_come_back_is_asked_nothing_before() {
    let fake = Fake::start().await;
    let node = NodeName::from("one");
    let mut cluster = open_in_virtual_time(&fake, Role::Speaker { node: node.clone(), leases: false }).await;
    fake.set_mood(Mood::Busy(20));
    for number in 0..200 {
        cluster.writes.send(announced(&node, number)).await.unwrap();
    }

    fake.seen(|_| true).await;
    tokio::time::sleep(Duration::from_secs(19)).await;
    let first = fake.count(|_| true);
    tokio::time::sleep(Duration::from_secs(180)).await;
    let more = fake.count(|_| true) - first;
    fake.set_mood(Mood::Well);

    assert!(first <= 16, "{first} at once, and more before the time was over");
    assert!((1..=9).contains(&more), "{more} more in three minutes");
    until_in_virtual_time(&mut cluster, |snapshot| snapshot.announced_by.len() == 200).await;
}

#[tokio::test(start_paused = true)]
async fn through_a_storm_of_errors_everything_is_said_and_seen_in_the_end_and_nobody_is_in_a_hurry() {
    let fake = Fake::start().await;
    let node = NodeName::from("one");
    let mut cluster = open_in_virtual_time(&fake, Role::Speaker { node: node.clone(), leases: false }).await;
    let before = fake.asked();
    fake.set_mood(Mood::Stormy);
    for number in 0..60 {
        fake.put(SERVICES, service(&format!("s{number}")));
        cluster.writes.send(announced(&node, number)).await.unwrap();
        // Whatever watches runs into the storm anew.
        fake.disconnect();
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let asked = fake.asked() - before;
    fake.set_mood(Mood::Well);

    assert!(asked < 6_000, "{asked} requests in ten minutes, with sixty ends of each of fourteen watches");
    until_in_virtual_time(&mut cluster, |snapshot| {
        snapshot.services.len() == 60 && snapshot.announced_by.len() == 60 && snapshot.problems.is_empty()
    })
    .await;
}

/// A virtual minute or two are no time; what takes longer than that does not come.
async fn until_in_virtual_time(cluster: &mut Cluster, what: impl Fn(&Snapshot) -> bool) {
    let found = cluster.snapshots.wait_for(|snapshot| what(snapshot));
    drop(tokio::time::timeout(Duration::from_secs(300), found).await.expect("in time").expect("still open"));
}
