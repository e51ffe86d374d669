//! What an answer of the webhook costs: whether one pool more would be taken, asked beside so many others.
//!
//! Timed is [`Translator::review`], which is all of an answer but the connection. Every second question is about a pool
//! that overlaps another. Ten thousand Services lie beside the pools in each world, and must not count. CPU time, so
//! that a busy machine counts for little. The program fails when an answer in the largest world takes more than a
//! tenth of the time that the API server gives it, or ten times as many pools cost more than [`ALLOWED_GROWTH`] times
//! as much.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use ferrogate_cluster::{
    NAMESPACE,
    objects::{Id, Reading},
    translate::{Entry, Proposal, Review, Rules, Source, Translator, read},
};
use ferrogate_core::{model::service::ClassPolicy, snapshot::Origin};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// Pools in the worlds that are compared.
const SIZES: [usize; 3] = [50, 500, 5_000];
/// Services in each.
const SERVICES: usize = 10_000;
/// Answers timed in each.
const ROUNDS: usize = 100;
/// `timeoutSeconds` of the ValidatingWebhookConfiguration.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How many times as much an answer may cost with ten times as many pools.
const ALLOWED_GROWTH: f64 = 15.0;

fn main() -> ExitCode {
    println!("| pools | an answer, median | longest | share of the time it may take |\n|---:|---:|---:|---:|");
    let medians: Vec<Duration> = SIZES.into_iter().map(world).collect();
    let last = medians[medians.len() - 1];
    let growth = medians.windows(2).map(|pair| pair[1].as_secs_f64() / pair[0].as_secs_f64());
    let growth = growth.fold(0.0, f64::max);
    println!("\nTen times as many pools cost {growth:.1} times as much at most.");
    if last * 10 <= TIMEOUT && growth <= ALLOWED_GROWTH {
        ExitCode::SUCCESS
    } else {
        eprintln!("an answer takes {last:?} in the largest world");
        ExitCode::FAILURE
    }
}

/// Prints the row of one size and returns the median.
fn world(size: usize) -> Duration {
    let namespace = NAMESPACE.to_owned();
    let rules =
        Rules { class: ClassPolicy::default(), namespace, metallb: None, secrets: false, source: Source::Kubernetes };
    let mut translator = Translator::new(rules, None);
    for (kind, objects) in [
        ("IPAddressPool", (0..size).map(|number| pool(number, number)).collect::<Vec<_>>()),
        ("Service", (0..SERVICES).map(service).collect()),
    ] {
        let readings = objects.into_iter().map(|object| reading(&translator, object));
        let readings = readings.map(|reading| (origin(&reading.id), reading)).collect();
        translator.replace(kind, readings, |_| false);
    }
    let snapshot = translator.snapshot();
    assert_eq!((snapshot.pools.len(), snapshot.services.len()), (size, SERVICES), "everything is read");

    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            let overlaps = round % 2 == 1;
            // Steps that are prime to the size, so that the pools in the way lie all over the map.
            let block = if overlaps { round * 7_919 % size } else { size };
            let proposal = Proposal::Set(pool(size, block));
            let (begun, begun_at) = (cpu_time(), Instant::now());
            let Review { losses, .. } = translator.review(proposal);
            // The clock of the processor goes in steps on some machines; it never says more than has passed.
            let time = cpu_time().saturating_sub(begun).min(begun_at.elapsed());
            assert_eq!(losses.len(), usize::from(overlaps), "{losses:?}");
            time
        })
        .collect();
    times.sort();
    let (median, longest) = (times[ROUNDS / 2], times[ROUNDS - 1]);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let share = 100.0 * longest.as_secs_f64() / TIMEOUT.as_secs_f64();
    println!("| {size} | {:.2} ms | {:.2} ms | {share:.2} % |", ms(median), ms(longest));
    median
}

/// A pool with the 16 addresses of one block in 198.18.0.0/15.
fn pool(number: usize, block: usize) -> Value {
    let first = 0xc612_0000 + u32::try_from(block * 16).expect("the blocks fit");
    let first = std::net::Ipv4Addr::from_bits(first);
    json!({
        "apiVersion": "ferrogate.io/v1beta1",
        "kind": "IPAddressPool",
        "metadata": { "name": format!("pool-{number:05}"), "namespace": NAMESPACE, "generation": 1 },
        "spec": { "addresses": [format!("{first}/28")] },
    })
}

fn service(number: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": format!("svc-{number:05}"), "namespace": "default", "generation": 1 },
        "spec": { "type": "LoadBalancer", "ports": [{ "port": 80, "protocol": "TCP" }] },
    })
}

fn reading(translator: &Translator, object: Value) -> Reading {
    match read(object, translator.rules()).pop() {
        Some(Entry::Object(reading)) => reading,
        other => unreachable!("a valid object is read: {other:?}"),
    }
}

fn origin(id: &Id) -> Origin {
    Origin::Cluster(id.object())
}

/// CPU time that this thread has used.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock").into()
}
