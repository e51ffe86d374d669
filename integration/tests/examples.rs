//! Every folder of `examples/` is loaded by the real directory source and the real controller, and must do what the
//! `expect` blocks of its README say. `examples/README.md` explains their sentences.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_cluster::{Cluster, DirectoryConfig, NAMESPACE, Role};
use ferrogate_core::{
    controller::{self, Controller, Event},
    model::{NodeName, PeerName, ServiceKey, service::ClassPolicy},
    proxy::{RequestView, RouteTable},
    snapshot::Snapshot,
    speaker::{
        DataPath,
        advertise::{self, Advertised, Terms},
        announce::{Policy, Silence},
    },
};
use ferrogate_integration::{kube::install::MANIFESTS, readme, workspace};
use tokio_util::sync::CancellationToken;

/// Decisions and files follow each other for at most this long.
const LIMIT: Duration = Duration::from_secs(20);

fn examples() -> PathBuf {
    workspace::root().join("examples")
}

fn expectations(example: &Path) -> Vec<String> {
    let text = fs::read_to_string(example.join("README.md")).unwrap();
    let blocks = readme::blocks(&text).into_iter().filter(|block| block.language == "expect");
    blocks.flat_map(|block| block.text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The facts once the controller has nothing left to ask for.
async fn settled(manifests: PathBuf, metallb: Option<String>) -> Arc<Snapshot> {
    let state = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let config = DirectoryConfig {
        manifests,
        state: state.path().to_owned(),
        namespace: NAMESPACE.to_owned(),
        role: Role::Standalone("node-1".into()),
        class: ClassPolicy::default(),
        metallb,
    };
    let mut cluster = Cluster::directory(config, shutdown.clone()).await.unwrap();
    let mut controller = Controller::new(controller::Config::default());
    controller.step(Instant::now(), Event::Leads(true));
    let snapshot = loop {
        let snapshot = cluster.snapshots.borrow_and_update().clone();
        for write in controller.step(Instant::now(), Event::Snapshot(Arc::clone(&snapshot))) {
            cluster.writes.send(write).await.unwrap();
        }
        if controller.deadline().is_none() {
            break snapshot;
        }
        cluster.snapshots.changed().await.unwrap();
    };
    shutdown.cancel();
    cluster.closed().await;
    snapshot
}

fn service(text: &str) -> ServiceKey {
    let (namespace, name) = text.split_once('/').unwrap_or_else(|| panic!("{text:?} is not NAMESPACE/NAME"));
    ServiceKey::new(namespace, name)
}

fn check(expectation: &str, snapshot: &Snapshot, table: &RouteTable) {
    let words: Vec<_> = expectation.split_whitespace().collect();
    match words[..] {
        ["service", name, "has", ref addresses @ ..] if !addresses.is_empty() => {
            let expected: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let service = &snapshot.services[&service(name)];
            assert_eq!(service.observed.addresses, expected, "{expectation}: {:?}", service.observed.condition);
        }
        ["service", name, "is", "refused:", reason] => {
            let status = &snapshot.services[&service(name)].observed;
            assert_eq!(status.addresses, Vec::<IpAddr>::new(), "{expectation}");
            let condition = status.condition.as_ref().unwrap_or_else(|| panic!("{expectation}: no condition"));
            assert!(!condition.holds, "{expectation}: {condition:?}");
            assert_eq!(condition.reason, reason, "{expectation}");
        }
        ["service", name, "is", "advertised", "from", node, "to", ref peers @ ..] if !peers.is_empty() => {
            let advertised = advertised(snapshot, name, node).unwrap_or_else(|why| panic!("{expectation}: {why}"));
            let told: Vec<&str> = advertised.peers.iter().map(PeerName::as_str).collect();
            assert_eq!(told, peers, "{expectation}");
        }
        ["service", name, "is", "not", "advertised", "from", node, reason] => {
            let why = advertised(snapshot, name, node.trim_end_matches(':')).expect_err(expectation);
            assert_eq!(why.reason(), reason, "{expectation}");
        }
        ["GET", url, "goes", "to", name] => match table.route(&request(url)) {
            Ok(route) => assert_eq!(route.rule.service, service(name), "{expectation}"),
            Err(reason) => panic!("{expectation}: {reason:?}"),
        },
        ["GET", url, "is", "answered", "404"] => {
            assert!(table.route(&request(url)).is_err(), "{expectation}");
        }
        _ => panic!("{expectation:?} is not a sentence that examples/README.md explains"),
    }
}

/// What a speaker whose proxy is ready advertises by BGP.
fn advertised(snapshot: &Snapshot, name: &str, node: &str) -> Result<Advertised, Silence> {
    let node = NodeName::from(node);
    let peering = advertise::peering(snapshot, &node, DataPath::KubeProxy);
    let policy = Policy { data_path: DataPath::KubeProxy, ignore_exclude_label: false, yield_on_cordon: false };
    Terms::new(snapshot, &node, policy, None, &peering.neighbors).of(&snapshot.services[&service(name)])
}

fn request(url: &str) -> RequestView<'_> {
    let rest = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url:?} does not begin with http://"));
    let (host, _) = rest.split_once('/').unwrap_or_else(|| panic!("{url:?} has no path"));
    let path = rest[host.len()..].split('?').next().unwrap_or_default();
    RequestView { host: Some(host), path }
}

async fn does_what_its_readme_says(example: &str) {
    let folder = examples().join(example);
    let expectations = expectations(&folder);
    assert_ne!(expectations, Vec::<String>::new(), "the README of {example} promises nothing");

    let manifests = folder.join("manifests");
    // Only this one is written in MetalLB's words.
    let metallb = (example == "metallb").then(|| "metallb-system".to_owned());
    let snapshot =
        tokio::time::timeout(LIMIT, settled(manifests, metallb)).await.expect("the controller comes to rest");

    assert_eq!(*snapshot.problems, Default::default(), "an example has no problems");
    let table = RouteTable::compile(&snapshot, None);
    for expectation in expectations {
        check(&expectation, &snapshot, &table);
    }
}

#[tokio::test]
async fn quickstart() {
    does_what_its_readme_says("quickstart").await;
}

#[tokio::test]
async fn bgp() {
    does_what_its_readme_says("bgp").await;
}

#[tokio::test]
async fn ingress() {
    does_what_its_readme_says("ingress").await;
}

#[tokio::test]
async fn dual_stack() {
    does_what_its_readme_says("dual-stack").await;
}

#[tokio::test]
async fn metallb() {
    does_what_its_readme_says("metallb").await;
}

#[tokio::test]
async fn pools() {
    does_what_its_readme_says("pools").await;
}

/// The facts that the only `yaml` block of a document makes, as long as there is nothing wrong with it.
async fn told_by(document: &str) -> Arc<Snapshot> {
    let text = fs::read_to_string(workspace::root().join(document)).unwrap();
    let manifests: Vec<_> = readme::blocks(&text).into_iter().filter(|block| block.language == "yaml").collect();
    assert_eq!(manifests.len(), 1, "{document}");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.yaml"), &manifests[0].text).unwrap();

    let settled = tokio::time::timeout(LIMIT, settled(folder.path().to_owned(), None)).await;

    let snapshot = settled.expect("the controller comes to rest");
    assert_eq!(*snapshot.problems, Default::default(), "{document}");
    snapshot
}

#[tokio::test]
async fn the_manifests_that_docs_bgp_begins_with_have_no_problems() {
    let snapshot = told_by("docs/bgp.md").await;

    assert_eq!((snapshot.bgp_peers.len(), snapshot.bgp_advertisements.len()), (1, 1));
}

#[tokio::test]
async fn the_manifests_that_follow_an_install_have_no_problems() {
    let snapshot = told_by("examples/install/README.md").await;

    assert_eq!((snapshot.pools.len(), snapshot.l2_advertisements.len()), (1, 1));
}

#[test]
fn every_folder_has_a_test_and_a_line_in_the_table() {
    let table = fs::read_to_string(examples().join("README.md")).unwrap();
    let source = fs::read_to_string(workspace::root().join("integration/tests/examples.rs")).unwrap();
    for entry in fs::read_dir(examples()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            let name = entry.file_name().into_string().unwrap();
            assert!(table.contains(&format!("]({name})")), "{name} is not in examples/README.md");
            if workspace::root().join(MANIFESTS).starts_with(entry.path()) {
                // It is for API servers; `kube_install` runs it on one.
                continue;
            }
            assert!(source.contains(&format!("does_what_its_readme_says(\"{name}\")")), "{name} has no test");
        }
    }
}
