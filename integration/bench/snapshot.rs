//! How long manifests take to become a snapshot: all of them at the start, and one that changed among many.
//!
//! Timed are reading the YAML, joining the objects, both again for one changed file, and the way of an edit from the
//! folder on disk to the snapshot a room sees. Each Service has one EndpointSlice and a file of its own. What takes
//! long is given in CPU time and what is short as a median, so that a busy machine counts for little. The program
//! fails when one change costs more than [`ALLOWED_RATIO`] times as much in the largest world as in the smallest.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use ferrogate_cluster::{
    Cluster, DirectoryConfig, NAMESPACE, Role,
    document::documents,
    objects::Reading,
    translate::{Entry, Rules, Source, Translator, read},
};
use ferrogate_core::{
    model::{ServiceKey, service::ClassPolicy},
    snapshot::Origin,
};
use nix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

/// Services in the worlds that are compared.
const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// Services in the folder on disk.
const FILES: usize = 10_000;
/// Changes timed in each world.
const ROUNDS: usize = 2_000;
/// Edits timed in the folder.
const EDITS: usize = 100;
/// How much longer one change may take in the largest world than in the smallest.
const ALLOWED_RATIO: f64 = 2.0;

fn main() -> ExitCode {
    println!("| Services | YAML to objects | objects to snapshot | one changed, YAML to snapshot | of that joining |");
    println!("|---:|---:|---:|---:|---:|");
    let ends: Vec<f64> = SIZES.into_iter().map(world).collect();
    let ratio = ends[ends.len() - 1] / ends[0];
    println!("\nOne change in the largest world takes {ratio:.2} times as long as in the smallest.\n");
    if let Err(error) = folder() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    if ratio <= ALLOWED_RATIO {
        ExitCode::SUCCESS
    } else {
        eprintln!("one change costs more than {ALLOWED_RATIO} times as much in the largest world");
        ExitCode::FAILURE
    }
}

/// Prints the row of one size and returns the microseconds of one change.
fn world(size: usize) -> f64 {
    let namespace = NAMESPACE.to_owned();
    let rules =
        Rules { class: ClassPolicy::default(), namespace, metallb: None, secrets: true, source: Source::Directory };
    let mut translator = Translator::new(rules, None);
    let begun = cpu_time();
    let files: Vec<_> = (0..size).map(|number| (file(number), readings(&translator, number, 80))).collect();
    let parsed = cpu_time().saturating_sub(begun);
    let begun = cpu_time();
    for (file, readings) in files {
        translator.replace(&file, readings, |_| false);
    }
    let mut snapshot = translator.snapshot();
    let joined = cpu_time().saturating_sub(begun);
    assert_eq!(snapshot.services.len(), size, "every Service is read");

    let (mut whole, mut joining) = (Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS));
    for round in 0..ROUNDS {
        // Steps that are prime to the size, so that changes fall all over the maps.
        let number = round * 7_919 % size;
        let begun = Instant::now();
        let readings = readings(&translator, number, 8_000 + (round % 1_000) as u16);
        let read = begun.elapsed();
        translator.replace(&file(number), readings, |_| false);
        // The one before is kept until now, as a room keeps it.
        snapshot = translator.snapshot();
        whole.push(begun.elapsed());
        joining.push(begun.elapsed().saturating_sub(read));
    }
    assert_eq!(snapshot.services.len(), size);
    let (whole, joining) = (micros(median(&mut whole)), micros(median(&mut joining)));
    println!(
        "| {size} | {:.0} ms | {:.0} ms | {whole:.1} µs | {joining:.1} µs |",
        parsed.as_secs_f64() * 1e3,
        joined.as_secs_f64() * 1e3
    );
    whole
}

/// Prints how long a folder takes to open, and an edit to be seen.
fn folder() -> anyhow::Result<()> {
    let root = tempfile::TempDir::new()?;
    let manifests = root.path().join("manifests");
    for number in 0..FILES {
        write(&manifests, number, 80)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let config = DirectoryConfig {
            manifests: manifests.clone(),
            state: root.path().join("state"),
            namespace: NAMESPACE.to_owned(),
            role: Role::Controller,
            class: ClassPolicy::default(),
            metallb: None,
        };
        let begun = cpu_time();
        let mut cluster = Cluster::directory(config, CancellationToken::new()).await?;
        let opened = cpu_time().saturating_sub(begun);
        let mut edits = Vec::with_capacity(EDITS);
        for round in 0..EDITS {
            let (number, port) = (round * 7_919 % FILES, 8_000 + round as u16);
            let key = ServiceKey::new("default", name(number));
            write(&manifests, number, port)?;
            let begun = Instant::now();
            cluster.snapshots.wait_for(|snapshot| snapshot.services[&key].ports[0].port.get() == port).await?;
            edits.push(begun.elapsed());
        }
        let longest = edits.iter().max().copied().unwrap_or_default();
        println!(
            "A folder of {FILES} files opens in {:.0} ms of CPU time. An edit is seen after {:.1} ms (median), {:.1} ms at most.",
            opened.as_secs_f64() * 1e3,
            median(&mut edits).as_secs_f64() * 1e3,
            longest.as_secs_f64() * 1e3
        );
        cluster.closed().await;
        Ok(())
    })
}

fn write(manifests: &Path, number: usize, port: u16) -> anyhow::Result<()> {
    let path = manifests.join(file(number));
    fs::create_dir_all(path.parent().unwrap_or(manifests))?;
    Ok(fs::write(path, yaml(number, port))?)
}

fn readings(translator: &Translator, number: usize, port: u16) -> Vec<(Origin, Reading)> {
    let mut readings = Vec::new();
    for document in documents(&yaml(number, port)) {
        let origin = Origin::File { path: file(number), document: document.number };
        for entry in document.value.into_iter().flat_map(|value| read(value, translator.rules())) {
            if let Entry::Object(reading) = entry {
                readings.push((origin.clone(), reading));
            }
        }
    }
    readings
}

fn name(number: usize) -> String {
    format!("svc-{number:06}")
}

fn file(number: usize) -> String {
    format!("{:03}/{}.yaml", number % 100, name(number))
}

fn yaml(number: usize, port: u16) -> String {
    let (name, third, fourth) = (name(number), number / 250 % 250, number % 250 + 1);
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  labels: {{app: {name}}}
spec:
  type: LoadBalancer
  selector: {{app: {name}}}
  ports:
  - {{name: http, port: {port}, targetPort: 8080}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-1
  labels: {{kubernetes.io/service-name: {name}}}
addressType: IPv4
ports:
- {{name: http, port: 8080}}
endpoints:
- addresses: [198.18.{third}.{fourth}]
  nodeName: node-a
- addresses: [198.19.{third}.{fourth}]
  nodeName: node-b
"
    )
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
