//! The directory source as its users meet it: files in, snapshots and state files out.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ferrogate_cluster::{Cluster, DirectoryConfig, DirectoryError, NAMESPACE, Role};
use ferrogate_core::{
    configuration::{self, ConfigurationState, Judgement, Reporter},
    model::{
        NodeName, ObjectKey, ObjectRef, PeerName, PoolName, ResourceVersion, ServiceKey,
        pool::PoolStatus,
        service::{ADDRESS_ASSIGNED, ClassPolicy, Service, ServiceStatus},
    },
    snapshot::{Fault, Problem, Snapshot},
    write::{BgpSession, Condition, Event, L2Conflict, L2Status, Severity, Write},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

struct Folders {
    root: TempDir,
}

impl Folders {
    fn new() -> Self {
        let folders = Self { root: TempDir::new().unwrap() };
        fs::create_dir(folders.manifests()).unwrap();
        folders
    }

    fn manifests(&self) -> PathBuf {
        self.root.path().join("manifests")
    }

    fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    fn put(&self, file: &str, text: &str) {
        let path = self.manifests().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn put_state(&self, file: &str, text: &str) {
        let path = self.state().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read_state(&self, file: &str) -> String {
        fs::read_to_string(self.state().join(file)).unwrap()
    }

    async fn try_open(&self, role: Role) -> Result<Cluster, DirectoryError> {
        let config = DirectoryConfig {
            manifests: self.manifests(),
            state: self.state(),
            namespace: NAMESPACE.to_owned(),
            role,
            class: ClassPolicy::default(),
            metallb: None,
        };
        Cluster::directory(config, CancellationToken::new()).await
    }

    async fn open(&self) -> Cluster {
        self.try_open(Role::Controller).await.unwrap()
    }
}

async fn until(cluster: &mut Cluster, what: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let found = tokio::time::timeout(PATIENCE, cluster.snapshots.wait_for(|snapshot| what(snapshot))).await;
    found.expect("in time").expect("still open").clone()
}

/// What is written whatever version the Service has.
fn service_status(service: ServiceKey, status: ServiceStatus) -> Write {
    Write::ServiceStatus { service, status, version: ResourceVersion::default(), fence: false }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: LoadBalancer\n  \
         ports: [{{port: 80}}]\n"
    )
}

fn pool(name: &str, addresses: &str) -> String {
    format!(
        "apiVersion: ferrogate.io/v1beta1\nkind: IPAddressPool\nmetadata: {{name: {name}}}\nspec: {{addresses: \
         [{addresses}]}}\n"
    )
}

fn problems(snapshot: &Snapshot) -> Vec<(String, Problem)> {
    let all = snapshot.problems.iter();
    all.flat_map(|(origin, problems)| problems.iter().map(|problem| (origin.to_string(), problem.clone()))).collect()
}

fn shown(snapshot: &Snapshot) -> Vec<String> {
    problems(snapshot).into_iter().map(|(origin, problem)| format!("{origin}: {problem}")).collect()
}

fn standing(snapshot: &Snapshot, name: &str) -> Arc<Service> {
    snapshot.services[&key(name)].clone()
}

fn assigned(address: &str) -> ServiceStatus {
    let condition = Condition {
        kind: ADDRESS_ASSIGNED.to_owned(),
        holds: true,
        reason: "Assigned".to_owned(),
        message: "has an address".to_owned(),
        observed_generation: 0,
    };
    ServiceStatus {
        addresses: vec![address.parse().unwrap()],
        pool: Some(PoolName::from("p")),
        condition: Some(condition),
        ..ServiceStatus::default()
    }
}

#[tokio::test]
async fn everything_in_the_folder_is_in_the_first_snapshot() {
    let folders = Folders::new();
    folders.put("a.yaml", &format!("{}---\n{}", service("web"), pool("p", "192.0.2.0/24")));
    folders.put("deep/er/b.yml", &service("db"));
    folders.put("c.json", r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"ns","labels":{"a":"b"}}}"#);

    let cluster = folders.open().await;

    let snapshot = cluster.snapshots.borrow().clone();
    assert_eq!(snapshot.services.len(), 2);
    assert_eq!(snapshot.pools.len(), 1);
    assert_eq!(snapshot.namespaces["ns"]["a"], "b");
    assert_eq!(shown(&snapshot), Vec::<String>::new());
}

#[tokio::test]
async fn of_files_that_are_read_many_at_a_time_each_is_told_apart() {
    let folders = Folders::new();
    for number in 0..2_100 {
        folders.put(&format!("{number:04}.yaml"), &service(&format!("web-{number}")));
    }
    folders.put("1500.yaml", "kind: [\n");

    let cluster = folders.open().await;

    let snapshot = cluster.snapshots.borrow().clone();
    assert_eq!(snapshot.services.len(), 2_099);
    assert!(!snapshot.services.contains_key(&key("web-1500")));
    let shown = shown(&snapshot);
    assert!(shown.len() == 1 && shown[0].starts_with("1500.yaml"), "{shown:?}");
}

#[tokio::test]
async fn an_empty_folder_is_an_empty_snapshot_and_fills_later() {
    let folders = Folders::new();
    let mut cluster = folders.open().await;
    assert!(cluster.snapshots.borrow().services.is_empty());

    folders.put("new/web.yaml", &service("web"));

    until(&mut cluster, |snapshot| snapshot.services.contains_key(&key("web"))).await;
}

#[tokio::test]
async fn a_manifest_folder_that_is_not_there_is_told_with_its_path() {
    let folders = Folders::new();
    fs::remove_dir(folders.manifests()).unwrap();

    let error = folders.try_open(Role::Controller).await.err().unwrap();

    assert!(error.to_string().contains(folders.manifests().to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_state_folder_among_the_manifests_is_refused() {
    let folders = Folders::new();
    let config = DirectoryConfig {
        manifests: folders.manifests(),
        state: folders.manifests().join("state"),
        namespace: NAMESPACE.to_owned(),
        role: Role::Controller,
        class: ClassPolicy::default(),
        metallb: None,
    };

    let error = Cluster::directory(config, CancellationToken::new()).await.err().unwrap();

    assert!(matches!(error, DirectoryError::Nested { .. }), "{error}");
}

#[tokio::test]
async fn a_changed_file_is_seen_and_a_removed_one_is_gone() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    let mut cluster = folders.open().await;

    folders.put("web.yaml", &service("web").replace("80", "81"));
    until(&mut cluster, |snapshot| standing(snapshot, "web").ports[0].port.get() == 81).await;
    fs::remove_file(folders.manifests().join("web.yaml")).unwrap();
    until(&mut cluster, |snapshot| snapshot.services.is_empty()).await;
}

#[tokio::test]
async fn an_editor_that_replaces_a_file_drops_nothing() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    let mut cluster = folders.open().await;
    let path = folders.manifests().join("web.yaml");

    // As editors do: the old file becomes a backup, a new one is created and written.
    fs::rename(&path, folders.manifests().join("web.yaml~")).unwrap();
    fs::write(&path, service("web").replace("80", "81")).unwrap();

    let mut seen = Vec::new();
    loop {
        tokio::time::timeout(PATIENCE, cluster.snapshots.changed()).await.unwrap().unwrap();
        let snapshot = cluster.snapshots.borrow_and_update().clone();
        seen.push(snapshot.services.len());
        if snapshot.services.get(&key("web")).is_some_and(|web| web.ports[0].port.get() == 81) {
            break;
        }
    }
    assert!(seen.iter().all(|count| *count == 1), "{seen:?}");
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_when_its_link_is_turned() {
    let folders = Folders::new();
    let dir = folders.manifests();
    let version = |name: &str, port: &str| {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("web.yaml"), service("web").replace("80", port)).unwrap();
    };
    version("..one", "80");
    symlink("..one", dir.join("..data")).unwrap();
    symlink("..data/web.yaml", dir.join("web.yaml")).unwrap();
    let mut cluster = folders.open().await;
    assert_eq!(cluster.snapshots.borrow().services.len(), 1);

    version("..two", "81");
    symlink("..two", dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();

    until(&mut cluster, |snapshot| standing(snapshot, "web").ports[0].port.get() == 81).await;
}

#[tokio::test]
async fn hidden_files_and_what_editors_leave_behind_are_not_read() {
    let folders = Folders::new();
    for file in [".web.yaml", "web.yaml~", "#web.yaml#", ".web.yaml.swp", "web.txt", ".git/web.yaml"] {
        folders.put(file, &service("web"));
    }

    let cluster = folders.open().await;

    assert!(cluster.snapshots.borrow().services.is_empty());
}

#[tokio::test]
async fn a_syntax_error_leaves_out_its_document_only_and_names_file_document_and_line() {
    let folders = Folders::new();
    folders.put("a.yaml", &format!("{}---\nkind: [Service\n---\n{}", service("one"), service("two")));

    let cluster = folders.open().await;

    let snapshot = cluster.snapshots.borrow().clone();
    assert_eq!(snapshot.services.len(), 2);
    let (origin, problem) = problems(&snapshot).remove(0);
    assert_eq!(origin, "a.yaml (document 2)");
    let text = problem.to_string();
    assert!(text.contains("line 9") || text.contains("line 8"), "{text}");
    assert!(text.contains("correct the file"), "{text}");
}

#[tokio::test]
async fn a_file_edited_through_a_broken_state_drops_no_service() {
    let folders = Folders::new();
    let both = format!("{}---\n{}", service("one"), service("two"));
    folders.put("a.yaml", &both);
    let mut cluster = folders.open().await;

    folders.put("a.yaml", &format!("{}---\napiVersion: v1\nkind: [Service\n", service("one").replace("80", "81")));
    let broken = until(&mut cluster, |snapshot| !snapshot.problems.is_empty()).await;
    assert_eq!(broken.services.len(), 2);
    assert_eq!(standing(&broken, "one").ports[0].port.get(), 81);

    folders.put("a.yaml", &service("two"));
    let healed = until(&mut cluster, |snapshot| snapshot.problems.is_empty()).await;
    assert_eq!(healed.services.len(), 1);
}

#[tokio::test]
async fn m_036_an_object_that_becomes_invalid_stays_in_force_as_it_was() {
    let folders = Folders::new();
    folders.put("a.yaml", &format!("{}---\n{}", pool("p", "192.0.2.0/24"), service("web")));
    let mut cluster = folders.open().await;

    folders.put("a.yaml", &format!("{}---\n{}", pool("p", "10.0.0.300/24"), service("web").replace("80", "0")));

    let broken = until(&mut cluster, |snapshot| snapshot.problems.len() == 2).await;
    assert_eq!(broken.pools[&PoolName::from("p")].ranges[0].to_string(), "192.0.2.0-192.0.2.255");
    assert_eq!(standing(&broken, "web").ports[0].port.get(), 80);
    let text = shown(&broken).join("\n");
    for part in ["a.yaml: IPAddressPool ferrogate-system/p: spec.addresses[0]: \"10.0.0.300/24\"", "192.0.2.0/24 (one"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.contains("a.yaml (document 2): Service default/web: spec.ports[0].port: \"0\""), "{text}");
}

#[tokio::test]
async fn a_kind_nobody_knows_is_named_and_well_known_ones_are_not() {
    let folders = Folders::new();
    folders.put(
        "a.yaml",
        "apiVersion: v1\nkind: Servce\nmetadata: {name: web}\n---\napiVersion: apps/v1\nkind: Deployment\n\
         metadata: {name: web}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\n",
    );

    let cluster = folders.open().await;

    let snapshot = cluster.snapshots.borrow().clone();
    let text = shown(&snapshot);
    assert_eq!(text.len(), 1);
    assert!(text[0].starts_with("a.yaml: Servce web: v1 Servce is not a kind that is read here"), "{text:?}");
    assert!(text[0].contains("typing error"));
}

#[tokio::test]
async fn a_misspelt_kind_keeps_the_object_it_used_to_be() {
    let folders = Folders::new();
    folders.put("a.yaml", &format!("{}---\n{}", service("web"), service("db")));
    let mut cluster = folders.open().await;

    folders.put("a.yaml", &service("web").replace("Service", "Servce"));

    let snapshot = until(&mut cluster, |snapshot| !snapshot.problems.is_empty()).await;
    assert!(snapshot.services.contains_key(&key("web")));
    assert!(!snapshot.services.contains_key(&key("db")));
}

#[tokio::test]
async fn of_two_files_with_the_same_object_the_first_by_path_counts_and_the_other_is_named() {
    let folders = Folders::new();
    folders.put("a.yaml", &service("web"));
    folders.put("b.yaml", &service("web").replace("80", "81"));
    let mut cluster = folders.open().await;

    let snapshot = cluster.snapshots.borrow().clone();
    assert_eq!(standing(&snapshot, "web").ports[0].port.get(), 80);
    let (origin, problem) = problems(&snapshot).remove(0);
    assert_eq!(origin, "b.yaml");
    assert_eq!(problem.fault, Fault::Duplicate { first: "a.yaml".to_owned() });

    fs::remove_file(folders.manifests().join("a.yaml")).unwrap();
    let after = until(&mut cluster, |snapshot| snapshot.problems.is_empty()).await;
    assert_eq!(standing(&after, "web").ports[0].port.get(), 81);
}

#[tokio::test]
async fn a_folder_that_vanishes_clears_nothing_and_is_followed_again_when_it_returns() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    folders.put_state("services/default/web.yaml", &state_of("web", "192.0.2.7"));
    let mut cluster = folders.open().await;
    let away = folders.root.path().join("away");

    fs::rename(folders.manifests(), &away).unwrap();
    let gone = until(&mut cluster, |snapshot| !snapshot.problems.is_empty()).await;
    assert_eq!(gone.services.len(), 1);
    assert!(shown(&gone)[0].contains(folders.manifests().to_str().unwrap()), "{:?}", shown(&gone));

    fs::rename(&away, folders.manifests()).unwrap();
    until(&mut cluster, |snapshot| snapshot.problems.is_empty()).await;
    folders.put("db.yaml", &service("db"));
    let after = until(&mut cluster, |snapshot| snapshot.services.len() == 2).await;
    assert_eq!(standing(&after, "web").observed.addresses, ["192.0.2.7".parse::<std::net::IpAddr>().unwrap()]);
}

#[tokio::test]
async fn a_folder_that_is_removed_with_all_in_it_clears_nothing() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    folders.put_state("services/default/web.yaml", &state_of("web", "192.0.2.7"));
    let mut cluster = folders.open().await;

    fs::remove_dir_all(folders.manifests()).unwrap();
    until(&mut cluster, |snapshot| !snapshot.problems.is_empty()).await;
    folders.put("db.yaml", &service("db"));

    // What the new folder does not hold is gone now, but not before it was there.
    let mut seen = Vec::new();
    loop {
        let snapshot = cluster.snapshots.borrow_and_update().clone();
        seen.push(snapshot.services.len());
        if snapshot.services.contains_key(&key("db")) && snapshot.services.len() == 1 {
            break;
        }
        tokio::time::timeout(PATIENCE, cluster.snapshots.changed()).await.unwrap().unwrap();
    }
    assert!(!seen.contains(&0), "{seen:?}");
}

#[tokio::test]
async fn a_link_to_another_folder_is_followed_and_one_in_a_circle_ends() {
    let folders = Folders::new();
    let other = folders.root.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("web.yaml"), service("web")).unwrap();
    symlink(&other, folders.manifests().join("linked")).unwrap();
    symlink(folders.manifests(), folders.manifests().join("circle")).unwrap();
    let mut cluster = folders.open().await;
    assert_eq!(cluster.snapshots.borrow().services.len(), 1);

    fs::write(other.join("db.yaml"), service("db")).unwrap();

    let snapshot = until(&mut cluster, |snapshot| snapshot.services.len() == 2).await;
    assert!(snapshot.problems.is_empty(), "{:?}", shown(&snapshot));
}

#[tokio::test]
async fn a_file_that_is_too_large_is_told_and_nothing_else_is_lost() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    fs::File::create(folders.manifests().join("big.yaml")).unwrap().set_len((64 << 20) + 1).unwrap();

    let cluster = folders.open().await;

    let snapshot = cluster.snapshots.borrow().clone();
    assert_eq!(snapshot.services.len(), 1);
    assert!(shown(&snapshot)[0].starts_with("big.yaml: cannot be read: larger than 64 MiB; split it"));
}

#[tokio::test]
async fn a_pipe_among_the_manifests_holds_nothing_up() {
    let folders = Folders::new();
    let mut cluster = folders.open().await;
    let pipe = folders.manifests().join("pipe.yaml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());

    let snapshot = until(&mut cluster, |snapshot| !snapshot.problems.is_empty()).await;
    folders.put("web.yaml", &service("web"));

    assert!(shown(&snapshot)[0].starts_with("pipe.yaml: cannot be read: it is not a regular file"));
    until(&mut cluster, |snapshot| !snapshot.services.is_empty()).await;
    fs::remove_file(pipe).unwrap();
    until(&mut cluster, |snapshot| snapshot.problems.is_empty()).await;
}

#[tokio::test]
async fn a_file_that_may_not_be_read_is_reported_and_stays_as_it_was() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    let mut cluster = folders.open().await;

    fs::write(folders.manifests().join("web.yaml"), [0xff, 0xfe, 0x00]).unwrap();

    let snapshot = until(&mut cluster, |snapshot| !snapshot.problems.is_empty()).await;
    assert!(matches!(problems(&snapshot)[0].1.fault, Fault::Unreadable { .. }));
    assert_eq!(snapshot.services.len(), 1);
}

#[tokio::test]
async fn a_name_that_is_a_path_gets_nowhere() {
    let folders = Folders::new();
    folders.put("a.yaml", &service("../../../etc/passwd"));

    let cluster = folders.open().await;

    let snapshot = cluster.snapshots.borrow().clone();
    assert!(snapshot.services.is_empty());
    assert!(shown(&snapshot)[0].contains("metadata.name"), "{:?}", shown(&snapshot));
}

fn state_of(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\n  annotations:\n    \
         ferrogate.io/ip-allocated-from-pool: p\nstatus:\n  loadBalancer:\n    ingress:\n    - ip: {address}\n"
    )
}

#[tokio::test]
async fn m_069_an_address_is_read_back_after_a_restart() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    let mut cluster = folders.open().await;
    let status = assigned("192.0.2.7");

    cluster.writes.send(service_status(key("web"), status.clone())).await.unwrap();
    until(&mut cluster, |snapshot| standing(snapshot, "web").observed == status).await;
    cluster.closed().await;
    drop(cluster);
    let again = folders.open().await;

    assert_eq!(standing(&again.snapshots.borrow(), "web").observed, status);
}

#[tokio::test]
async fn m_043_an_entry_of_the_status_is_an_address_and_nothing_else() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    let mut cluster = folders.open().await;

    cluster.writes.send(service_status(key("web"), assigned("192.0.2.7"))).await.unwrap();
    cluster.closed().await;

    let text = folders.read_state("services/default/web.yaml");
    let object: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(object["status"]["loadBalancer"], serde_json::json!({ "ingress": [{ "ip": "192.0.2.7" }] }));
}

#[tokio::test]
async fn a_condition_keeps_its_time_while_its_status_stays_and_an_equal_file_is_not_written_again() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    folders.put_state(
        "services/default/web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\nstatus:\n  loadBalancer: {}\n  \
         conditions:\n  - {type: ferrogate.io/AddressAssigned, status: 'True', reason: Old, message: old, \
         observedGeneration: 0, lastTransitionTime: '2001-02-03T04:05:06Z'}\n",
    );
    let mut cluster = folders.open().await;
    let path = folders.state().join("services/default/web.yaml");
    let write = |address: &str| service_status(key("web"), assigned(address));

    cluster.writes.send(write("192.0.2.7")).await.unwrap();
    until(&mut cluster, |snapshot| standing(snapshot, "web").observed == assigned("192.0.2.7")).await;
    let before = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
    cluster.writes.send(write("192.0.2.7")).await.unwrap();
    cluster.closed().await;

    assert!(folders.read_state("services/default/web.yaml").contains("2001-02-03T04:05:06Z"));
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap()), before);
}

#[tokio::test]
async fn the_state_of_an_object_goes_with_the_object() {
    let folders = Folders::new();
    let condition = "{type: Accepted, status: 'True', reason: A, message: '', lastTransitionTime: \
                     '2001-02-03T04:05:06Z'}";
    let conditions = format!(
        "apiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: {{name: l2, namespace: \
         ferrogate-system}}\nstatus: {{conditions: [{condition}]}}\n"
    );
    folders.put_state("conditions/L2Advertisement/ferrogate-system/l2.yaml", &conditions);
    folders.put("web.yaml", &service("web"));
    folders.put_state("services/default/web.yaml", &state_of("web", "192.0.2.7"));
    folders.put_state("services/default/orphan.yaml", &state_of("orphan", "192.0.2.8"));
    let mut cluster = folders.open().await;

    fs::remove_file(folders.manifests().join("web.yaml")).unwrap();
    until(&mut cluster, |snapshot| snapshot.services.is_empty()).await;
    cluster.closed().await;

    assert_eq!(files_below(&folders.state().join("services")), Vec::<PathBuf>::new());
    assert_eq!(files_below(&folders.state().join("conditions")), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn no_state_is_forgotten_while_a_file_is_broken() {
    let folders = Folders::new();
    folders.put("web.yaml", "apiVersion: v1\nkind: [\n");
    folders.put_state("services/default/web.yaml", &state_of("web", "192.0.2.7"));

    let mut cluster = folders.open().await;
    cluster.closed().await;

    assert!(folders.state().join("services/default/web.yaml").exists());
}

fn files_below(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

#[tokio::test]
async fn a_damaged_state_file_gives_its_service_no_other_address() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    for damaged in [
        "",
        "apiVersion: v1\nkind: Serv",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nstatus:\n  conditions: []\n",
        &state_of("web", "192.0.2.300"),
    ] {
        folders.put_state("services/default/web.yaml", damaged);

        let mut cluster = folders.open().await;

        let snapshot = cluster.snapshots.borrow().clone();
        assert_eq!(standing(&snapshot, "web").load_balancer, None, "{damaged:?}");
        let (origin, problem) = problems(&snapshot).remove(0);
        assert!(origin.ends_with("state/services/default/web.yaml"), "{origin}");
        assert_eq!(problem.object, Some(ObjectRef::service(&key("web"))));
        assert!(problem.to_string().contains("restore the file"), "{problem}");
        cluster.closed().await;
    }
}

#[tokio::test]
async fn a_state_file_damaged_while_running_changes_nothing() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    folders.put_state("services/default/web.yaml", &state_of("web", "192.0.2.7"));
    let mut cluster = folders.open().await;

    folders.put_state("services/default/web.yaml", "status: [");

    let snapshot = until(&mut cluster, |snapshot| !snapshot.problems.is_empty()).await;
    let web = standing(&snapshot, "web");
    assert!(web.load_balancer.is_some());
    assert_eq!(web.observed.addresses.len(), 1);
}

#[tokio::test]
async fn writes_that_fail_are_kept_and_told_with_path_and_remedy() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    // A file where a folder must be: nothing can be written below it, not even by root.
    folders.put_state("services", "");
    let mut cluster = folders.open().await;
    let status = assigned("192.0.2.7");
    let write = service_status(key("web"), status.clone());

    cluster.writes.send(write).await.unwrap();
    let snapshot = until(&mut cluster, |snapshot| !snapshot.problems.is_empty()).await;
    assert!(shown(&snapshot)[0].contains("state/services/default/web.yaml"), "{:?}", shown(&snapshot));
    let pool_status = PoolStatus { assigned_ipv4: 1, ..PoolStatus::default() };
    cluster.writes.send(Write::PoolStatus { pool: key("p"), status: pool_status }).await.unwrap();

    fs::remove_file(folders.state().join("services")).unwrap();
    until(&mut cluster, |snapshot| standing(snapshot, "web").observed == status).await;
    until(&mut cluster, |snapshot| snapshot.problems.is_empty()).await;
}

#[tokio::test]
async fn a_disk_that_is_full_for_a_while_loses_no_write() {
    let folders = Folders::new();
    folders.put("web.yaml", &service("web"));
    fs::create_dir_all(folders.state().join("services/default")).unwrap();
    // The file is written beside its place first; there the disk is full, until the half-written file is removed.
    symlink("/dev/full", folders.state().join("services/default/.web.yaml.new")).unwrap();
    let mut cluster = folders.open().await;
    let status = assigned("192.0.2.7");

    cluster.writes.send(service_status(key("web"), status.clone())).await.unwrap();

    until(&mut cluster, |snapshot| standing(snapshot, "web").observed == status).await;
    until(&mut cluster, |snapshot| snapshot.problems.is_empty()).await;
}

#[tokio::test]
async fn equal_events_are_counted_and_continue_after_a_restart() {
    let folders = Folders::new();
    let event = |message: &str| {
        Write::Event(Event {
            object: ObjectRef::service(&key("web")),
            severity: Severity::Warning,
            reason: "AllocationFailed".to_owned(),
            message: message.to_owned(),
        })
    };
    for _ in 0..2 {
        let mut cluster = folders.open().await;
        cluster.writes.send(event("no room")).await.unwrap();
        cluster.closed().await;
    }
    let mut cluster = folders.open().await;
    for number in 0..300 {
        cluster.writes.send(event(&format!("no room {number}"))).await.unwrap();
    }
    cluster.writes.send(event("no room")).await.unwrap();
    cluster.closed().await;

    let list: serde_json::Value = serde_json::from_str(&folders.read_state("events/controller.yaml")).unwrap();
    let events = list["items"].as_array().unwrap();
    assert!(events.len() == 256 && events.iter().all(|event| event["kind"] == "Event"));
    let has = |message: &str| events.iter().any(|event| event["message"] == message);
    assert!(!has("no room 44") && has("no room 45"), "the oldest go first");
    assert!(events.iter().any(|event| event["count"] == 1));
}

#[tokio::test]
async fn speakers_say_whom_they_see_and_what_they_announce() {
    let folders = Folders::new();
    let (one, two) = (NodeName::from("one"), NodeName::from("two"));
    let speaker = folders.try_open(Role::Speaker { node: one.clone(), leases: false }).await.unwrap();
    let mut proxy = folders.try_open(Role::Reader(Some(one.clone()))).await.unwrap();
    let mut other = folders.try_open(Role::Reader(Some(two.clone()))).await.unwrap();
    let announces = |status| Write::L2Status { service: key("web"), node: one.clone(), status };
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

    let membership = Write::Membership { node: one.clone(), unreachable: [two.clone()].into() };
    speaker.writes.send(membership).await.unwrap();
    speaker.writes.send(announces(Some(status.clone()))).await.unwrap();

    until(&mut proxy, |snapshot| snapshot.unreachable.contains(&two)).await;
    let seen = until(&mut other, |snapshot| snapshot.announced_by.contains_key(&key("web"))).await;
    assert_eq!(seen.announced_by[&key("web")][&one], status);
    assert!(seen.unreachable.is_empty());

    speaker.writes.send(announces(None)).await.unwrap();
    until(&mut other, |snapshot| snapshot.announced_by.is_empty()).await;
}

#[tokio::test]
async fn m_146_speakers_say_to_whom_they_advertise_and_how_their_sessions_are_until_they_take_it_back() {
    let folders = Folders::new();
    let (node, peer) = (NodeName::from("one"), PeerName::from("tor-a"));
    let session = |state: &str| BgpSession { state: state.to_owned(), ..BgpSession::default() };
    let advertises = |peers| Write::BgpStatus { service: key("web"), node: node.clone(), peers };
    let has = |status: Option<BgpSession>| Write::BgpSession {
        peer: peer.clone(),
        node: node.clone(),
        status: status.map(Box::new),
    };
    let place = (node.clone(), peer.clone());
    let mut speaker = folders.try_open(Role::Speaker { node: node.clone(), leases: false }).await.unwrap();
    let mut reader = folders.try_open(Role::Reader(None)).await.unwrap();

    speaker.writes.send(advertises([peer.clone()].into())).await.unwrap();
    speaker.writes.send(has(Some(session("Established")))).await.unwrap();

    let seen = until(&mut reader, |snapshot| {
        snapshot.bgp_sessions.contains_key(&place) && snapshot.advertised_by.contains_key(&key("web"))
    })
    .await;
    assert_eq!(seen.advertised_by[&key("web")][&node], [peer.clone()].into());
    let up = &seen.bgp_sessions[&place];
    assert_eq!((&up.session, up.closed_at.as_deref()), (&session("Established"), None));
    assert!(up.since.ends_with('Z'), "{}", up.since);

    // The next life finds what this one left, and takes it back.
    speaker.closed().await;
    let mut speaker = folders.try_open(Role::Speaker { node: node.clone(), leases: false }).await.unwrap();
    until(&mut speaker, |snapshot| !snapshot.bgp_sessions.is_empty() && !snapshot.advertised_by.is_empty()).await;
    speaker.writes.send(advertises(Default::default())).await.unwrap();
    speaker.writes.send(has(None)).await.unwrap();
    until(&mut reader, |snapshot| snapshot.bgp_sessions.is_empty() && snapshot.advertised_by.is_empty()).await;
}

#[tokio::test]
async fn a_report_on_bgp_that_nobody_can_read_is_no_problem_since_it_is_written_anew() {
    let folders = Folders::new();
    let node = NodeName::from("one");
    folders.put_state("speakers/one/bgpsession/tor-a.yaml", "kind: BGPSessionStatus\nstatus: [");
    folders.put_state("speakers/one/bgpstatus/default_web.yaml", "");
    let mut speaker = folders.try_open(Role::Speaker { node: node.clone(), leases: false }).await.unwrap();
    assert!(speaker.snapshots.borrow().problems.is_empty(), "{:?}", speaker.snapshots.borrow().problems);

    let status = Some(Box::new(BgpSession { state: "Idle".to_owned(), ..BgpSession::default() }));
    speaker.writes.send(Write::BgpSession { peer: "tor-a".into(), node: node.clone(), status }).await.unwrap();

    until(&mut speaker, |snapshot| snapshot.bgp_sessions.len() == 1).await;
}

#[tokio::test]
async fn a_second_controller_on_the_same_state_is_refused_and_a_speaker_is_not() {
    let folders = Folders::new();
    let first = folders.open().await;
    assert!(*first.leads.borrow());

    let error = folders.try_open(Role::Controller).await.err().unwrap();
    assert!(matches!(error, DirectoryError::InUse { .. }));
    assert!(error.to_string().contains(folders.state().to_str().unwrap()), "{error}");
    assert!(folders.try_open(Role::Standalone(NodeName::from("a"))).await.is_err());
    let speaker = folders.try_open(Role::Speaker { node: NodeName::from("a"), leases: false }).await.unwrap();
    assert!(!*speaker.leads.borrow());
}

#[tokio::test]
async fn standalone_stands_in_for_the_node_until_there_are_nodes() {
    let folders = Folders::new();
    let me = NodeName::from("me");
    let mut cluster = folders.try_open(Role::Standalone(me.clone())).await.unwrap();
    assert!(cluster.snapshots.borrow().nodes.contains_key(&me));

    folders.put("node.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: other}\n");

    let snapshot = until(&mut cluster, |snapshot| snapshot.nodes.contains_key("other")).await;
    assert_eq!(snapshot.nodes.len(), 1);
}

#[tokio::test]
async fn conditions_of_other_objects_are_kept_side_by_side() {
    let folders = Folders::new();
    let object = ObjectRef::namespaced("ferrogate.io/v1beta1", "L2Advertisement", &ObjectKey::new(NAMESPACE, "l2"));
    let condition = |kind: &str, holds| Write::Condition {
        object: object.clone(),
        condition: Condition {
            kind: kind.to_owned(),
            holds,
            reason: "Because".to_owned(),
            message: String::new(),
            observed_generation: 3,
        },
    };
    let mut cluster = folders.open().await;
    cluster.writes.send(condition("Accepted", false)).await.unwrap();
    cluster.writes.send(condition("Other", true)).await.unwrap();
    cluster.closed().await;
    drop(cluster);
    folders.put("l2.yaml", "apiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: l2}\nspec: {}\n");
    let mut cluster = folders.open().await;
    cluster.writes.send(condition("Accepted", true)).await.unwrap();
    cluster.closed().await;

    let object: serde_json::Value =
        serde_json::from_str(&folders.read_state("conditions/L2Advertisement/ferrogate-system/l2.yaml")).unwrap();
    let conditions = object["status"]["conditions"].as_array().unwrap();
    assert!(conditions.len() == 2 && conditions.iter().all(|one| one["status"] == "True"), "{object}");
}

#[tokio::test]
async fn m_041_a_report_on_the_configuration_is_read_back_until_somebody_deletes_or_breaks_it() {
    let folders = Folders::new();
    let mut cluster = folders.try_open(Role::Standalone("one".into())).await.unwrap();
    let reporter = Reporter::Speaker("one".into());
    let summary = "configuration error: a: \"b\"\nconfiguration error: c # d: 'e'".to_owned();
    let state = ConfigurationState { judgement: Judgement::Invalid, summary };
    let shows = |snapshot: &Snapshot| snapshot.configuration_states.get(&reporter).map(|shown| (**shown).clone());
    let path = folders.state().join("configuration/speaker-one.yaml");

    for spoil in [|path: &Path| fs::remove_file(path).unwrap(), |path: &Path| fs::write(path, "status: {").unwrap()] {
        let write = Write::Configuration { reporter: reporter.clone(), state: state.clone() };
        cluster.writes.send(write).await.unwrap();
        until(&mut cluster, |snapshot| shows(snapshot).as_ref() == Some(&state)).await;
        spoil(&path);
        until(&mut cluster, |snapshot| shows(snapshot).is_none()).await;
    }
    assert_eq!(shown(&cluster.snapshots.borrow()), Vec::<String>::new());
}

#[tokio::test]
async fn m_040_a_peer_that_cannot_be_read_is_the_business_of_the_nodes_it_chooses() {
    let folders = Folders::new();
    folders.put("nodes.yaml", &["a", "b"].map(node_named).join("---\n"));
    folders.put(
        "peer.yaml",
        "apiVersion: ferrogate.io/v1beta1\nkind: BGPPeer\nmetadata: {name: rack}\nspec:\n  myASN: 64500\n  \
         peerASN: 64501\n  peerAddress: nonsense\n  nodeSelectors: [{matchLabels: {rack: a}}]\n",
    );
    let cluster = folders.open().await;
    let snapshot = cluster.snapshots.borrow().clone();

    let judgement = |reporter| configuration::judge(&snapshot, &reporter).judgement;

    assert_eq!(judgement(Reporter::Controller), Judgement::Valid);
    assert_eq!(judgement(Reporter::Speaker("a".into())), Judgement::Invalid, "{:?}", shown(&snapshot));
    assert_eq!(judgement(Reporter::Speaker("b".into())), Judgement::Valid);
}

fn node_named(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{rack: {name}}}}}\n")
}
