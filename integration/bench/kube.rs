//! Ten thousand Services at a real API server: how long each waits for its address, what is asked of the API server for
//! it, what the controller costs meanwhile, and what a restart among them costs.
//!
//! Services are created as fast as the API server takes them. A second run leaves NodePorts on, which are fewer, and
//! shows what users then read. The program fails when a Service stays without address or a restart writes anything.

use std::{
    collections::BTreeMap,
    env, fs,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use ferrogate_integration::kube::{
    ControlPlane, Options,
    audit::{self, Asked},
    product::Ferrogate,
};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, Error,
    api::PostParams,
    runtime::watcher::{self, Event},
};
use serde_json::json;

/// Services unless the first argument says otherwise.
const SERVICES: usize = 10_000;

/// Services of the second run: more than there are NodePorts.
const WITH_NODE_PORTS: usize = 3_000;

/// How many requests for new Services run at a time.
const AT_ONCE: usize = 32;

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(900);

/// Addresses that are set aside for benchmarks (RFC 2544).
const NETWORK: &str = "
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: { name: main, namespace: ferrogate-system }
spec: { addresses: [198.18.0.0/15] }
---
apiVersion: ferrogate.io/v1beta1
kind: L2Advertisement
metadata: { name: main, namespace: ferrogate-system }
";

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let count = match env::args().nth(1) {
        Some(count) => count.parse().with_context(|| format!("{count:?} is not a number of Services"))?,
        None => SERVICES,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(many(count))?;
    runtime.block_on(too_many())
}

/// A control plane with what is installed, and a controller that is ready.
fn stand() -> Result<(ControlPlane, Ferrogate)> {
    let plane = ControlPlane::start(Options::default())?;
    plane.install()?;
    plane.apply(NETWORK)?;
    let mut controller = Ferrogate::start(&plane, "controller", "first", &[])?;
    controller.wait_ready()?;
    Ok((plane, controller))
}

/// When each Service was there, and when it had an address.
#[derive(Debug, Default)]
struct Times {
    created: BTreeMap<String, Instant>,
    assigned: BTreeMap<String, Instant>,
}

async fn many(count: usize) -> Result<()> {
    let (plane, mut controller) = stand()?;
    let client = plane.client().await?;
    let times = Arc::new(Mutex::new(Times::default()));
    let watch = tokio::spawn(watch(client.clone(), Arc::clone(&times)));
    let (cpu_before, asked_before) = (cpu(&mut controller)?, plane.asked()?.len());

    let begun = Instant::now();
    let refused = create(&client, "web", count, false, &times).await?;
    ensure!(refused.is_empty(), "not created: {refused:?}");
    let created = begun.elapsed();
    wait_assigned(&times, count).await?;
    let assigned = begun.elapsed();
    let busy = cpu(&mut controller)? - cpu_before;

    let waits = waits(&times);
    let quantile = |share: f64| waits[((waits.len() as f64 * share).ceil() as usize).clamp(1, waits.len()) - 1];
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!("| {count} Services | |\n|---|---:|");
    println!("| created, each second | {:.0} |", count as f64 / created.as_secs_f64());
    println!("| the last had its address after the last was created, ms | {:.0} |", ms(assigned - created));
    println!("| from creation to status, p50, ms | {:.0} |", ms(quantile(0.5)));
    println!("| from creation to status, p99, ms | {:.0} |", ms(quantile(0.99)));
    println!("| CPU time of the controller for each, µs | {:.0} |", busy.as_secs_f64() * 1e6 / count as f64);
    println!("| memory of the controller (RSS), MiB | {:.0} |", memory(&mut controller, "VmRSS:")?);
    println!("| at most (VmHWM), MiB | {:.0} |", memory(&mut controller, "VmHWM:")?);
    println!("\n| asked of the API server | for each Service |\n|---|---:|");
    let asked = plane.asked()?;
    for ((_, verb, what, code), number) in audit::counted(&asked[asked_before..]) {
        println!("| {verb} {what}: {code} | {:.3} |", number as f64 / count as f64);
    }

    restart(&plane, &mut controller, &client, &times, count).await?;
    watch.abort();
    Ok(())
}

/// Ends the controller and starts another; nothing may be written that was there.
async fn restart(
    plane: &ControlPlane,
    controller: &mut Ferrogate,
    client: &Client,
    times: &Mutex<Times>,
    count: usize,
) -> Result<()> {
    controller.stop()?;
    let before = plane.asked()?.len();
    let begun = Instant::now();
    let mut next = Ferrogate::start(plane, "controller", "second", &[])?;
    next.wait_ready()?;
    let ready = begun.elapsed();
    // When one more has its address, everything has been looked at.
    create(client, "one-more", 1, false, times).await?;
    wait_assigned(times, count + 1).await?;

    let asked = plane.asked()?;
    let is_new = |one: &&Asked| {
        let read = matches!(one.verb.as_str(), "list" | "watch" | "get");
        let own = one.name.starts_with("one-more") || one.what.starts_with("events.");
        !read && !own && !one.what.starts_with("leases.") && one.name != "main"
    };
    let written: Vec<_> = asked[before..].iter().filter(is_new).collect();
    println!("\n| a restart among {count} Services | |\n|---|---:|");
    println!("| from the start of the process to ready, lists included, ms | {:.0} |", ready.as_secs_f64() * 1e3);
    println!("| writes | {} |", written.len());
    println!("| memory afterwards (RSS), MiB | {:.0} |", memory(&mut next, "VmRSS:")?);
    ensure!(written.is_empty(), "a restart wrote {:?}", &written[..written.len().min(5)]);
    Ok(())
}

async fn too_many() -> Result<()> {
    let (plane, _controller) = stand()?;
    let client = plane.client().await?;
    let times = Arc::new(Mutex::new(Times::default()));
    let watch = tokio::spawn(watch(client.clone(), Arc::clone(&times)));

    let refused = create(&client, "web", WITH_NODE_PORTS, true, &times).await?;
    let served = WITH_NODE_PORTS - refused.len();
    wait_assigned(&times, served).await?;

    println!("\n| {WITH_NODE_PORTS} Services with NodePorts | |\n|---|---:|");
    println!("| created, each with an address | {served} |");
    println!("| refused by the API server | {} |", refused.len());
    println!("\n{}", refused.first().context("there was a NodePort for every one")?);
    watch.abort();
    Ok(())
}

/// Creates Services, and says of each that was refused why.
async fn create(
    client: &Client,
    prefix: &str,
    count: usize,
    node_ports: bool,
    times: &Mutex<Times>,
) -> Result<Vec<String>> {
    let api: Api<Service> = Api::default_namespaced(client.clone());
    let create = |number: usize| {
        let api = api.clone();
        async move {
            let name = format!("{prefix}-{number}");
            let service: Service = serde_json::from_value(json!({
                "metadata": { "name": name },
                "spec": {
                    "type": "LoadBalancer",
                    "allocateLoadBalancerNodePorts": node_ports,
                    "ipFamilies": ["IPv4"],
                    "ports": [{ "port": 80 }],
                },
            }))?;
            match api.create(&PostParams::default(), &service).await {
                Ok(_) => {
                    let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
                    times.created.insert(name, Instant::now());
                    Ok(None)
                }
                Err(Error::Api(status)) => Ok(Some(status.message)),
                Err(error) => Err(anyhow::Error::from(error)),
            }
        }
    };
    let answers: Vec<_> = stream::iter(0..count).map(create).buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(answers.into_iter().flatten().collect())
}

/// Notes when each Service is first seen with an address.
async fn watch(client: Client, times: Arc<Mutex<Times>>) -> Result<()> {
    let api: Api<Service> = Api::default_namespaced(client);
    let mut events = watcher::watcher(api, watcher::Config::default()).boxed();
    while let Some(event) = events.try_next().await? {
        let (Event::Apply(service) | Event::InitApply(service)) = event else { continue };
        let status = service.status.and_then(|status| status.load_balancer).and_then(|status| status.ingress);
        if status.is_some_and(|entries| !entries.is_empty()) {
            let name = service.metadata.name.unwrap_or_default();
            times.lock().unwrap_or_else(PoisonError::into_inner).assigned.entry(name).or_insert_with(Instant::now);
        }
    }
    bail!("the watch has ended")
}

async fn wait_assigned(times: &Mutex<Times>, count: usize) -> Result<()> {
    let begun = Instant::now();
    loop {
        let assigned = times.lock().unwrap_or_else(PoisonError::into_inner).assigned.len();
        if assigned >= count {
            return Ok(());
        }
        ensure!(begun.elapsed() < LIMIT, "{assigned} of {count} have an address");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How long each Service waited, shortest first.
fn waits(times: &Mutex<Times>) -> Vec<Duration> {
    let times = times.lock().unwrap_or_else(PoisonError::into_inner);
    let wait =
        |(name, at): (&String, &Instant)| times.created.get(name).map(|from| at.saturating_duration_since(*from));
    let mut waits: Vec<_> = times.assigned.iter().filter_map(wait).collect();
    waits.sort();
    waits
}

/// CPU time of a process so far.
fn cpu(process: &mut Ferrogate) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.process().id()))?;
    // The second field is a name, which may hold blanks.
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| -> Result<f64> { Ok(fields.get(index).context("a short line")?.parse()?) };
    let each = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock")? as f64;
    Ok(Duration::from_secs_f64((ticks(11)? + ticks(12)?) / each))
}

/// Memory of a process in MiB.
fn memory(process: &mut Ferrogate, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.process().id()))?;
    let line = status.lines().find(|line| line.starts_with(field)).context("no such field")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}
