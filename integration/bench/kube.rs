//! Ten thousand Services at a real API server: how long each waits for its address, what is asked of the API server for
//! it, what the controller costs meanwhile, and what a restart among them costs; beside it the same for MetalLB's own
//! controller, and the time that creating the Services takes where nobody looks.
//!
//! Services are created as fast as the API server takes them, on a control plane of its own for each. A last run leaves
//! NodePorts on, which are fewer, and shows what users then read. The program fails when a Service stays without
//! address, needs more than one write beside its Event, or a restart writes anything; and when our controller holds
//! more than [`ALLOWED_MEMORY`].
//!
//! The first argument says how many Services; `alone` as the second leaves MetalLB out.

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
    process::{Process, tied},
    product::Ferrogate,
    tools::METALLB,
};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, Error,
    api::{ListParams, Patch, PatchParams, PostParams},
    runtime::watcher::{self, Event},
};
use nix::sys::signal::Signal;
use serde_json::json;

/// Services unless the first argument says otherwise.
const SERVICES: usize = 10_000;

/// Services of the last run: more than there are NodePorts.
const WITH_NODE_PORTS: usize = 3_000;

/// How many requests for new Services run at a time.
const AT_ONCE: usize = 32;

/// How many statuses a plain client writes at a time; as many as our controller does.
const PATCHES_AT_ONCE: usize = 16;

/// How much our controller may hold at most, in MiB, with [`SERVICES`] Services.
const ALLOWED_MEMORY: f64 = 80.0;

/// How long nobody may have asked for anything until all is told.
const QUIET: Duration = Duration::from_secs(5);

/// How long all of it may take for one of them.
const LIMIT: Duration = Duration::from_secs(1_800);

/// A Service that comes after every other by name, so that whoever serves it has written all that was due before.
const LAST: &str = "zz-last";

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
    let alone = runtime.block_on(nobody(count))?;
    let ours = runtime.block_on(many(Who::Ferrogate, count))?;
    let theirs = match env::args().nth(2).as_deref() {
        None => Some(runtime.block_on(many(Who::Metallb, count))?),
        Some("alone") => None,
        Some(other) => bail!("{other:?} is neither `alone` nor nothing"),
    };
    print(count, alone, &ours, theirs.as_ref());
    runtime.block_on(too_many())?;
    ours.check(count)
}

/// Whose controller gives the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Ferrogate,
    Metallb,
}

/// A controller that runs.
enum Controller {
    Ferrogate(Ferrogate),
    Metallb(Process),
}

impl Who {
    fn install(self, plane: &ControlPlane) -> Result<()> {
        let (group, namespace) = match self {
            Self::Ferrogate => ("ferrogate.io", "ferrogate-system"),
            Self::Metallb => ("metallb.io", "metallb-system"),
        };
        match self {
            Self::Ferrogate => plane.install()?,
            Self::Metallb => {
                let definitions = METALLB.source("go.universe.tf/metallb")?.join("config/crd/bases");
                let definitions = definitions.display().to_string();
                plane.kubectl(["apply", "--filename", &definitions])?;
                let wait = ["wait", "--for", "condition=Established", "--timeout", "60s", "--filename", &definitions];
                plane.kubectl(wait)?;
                plane.kubectl(["create", "namespace", namespace])?;
                plane.kubectl(["create", "serviceaccount", "controller", "--namespace", namespace])?;
                // What it may do is not what is measured; that it has an account of its own makes the audit see it.
                let account = format!("{namespace}:controller");
                let admin = ["--clusterrole", "cluster-admin", "--serviceaccount", &account];
                plane.kubectl(["create", "clusterrolebinding", "metallb"].into_iter().chain(admin))?;
            }
        }
        // Addresses that are set aside for benchmarks (RFC 2544).
        plane.apply(&format!(
            "apiVersion: {group}/v1beta1\nkind: IPAddressPool\nmetadata: {{ name: main, namespace: {namespace} }}\n\
             spec: {{ addresses: [198.18.0.0/15] }}\n---\napiVersion: {group}/v1beta1\nkind: L2Advertisement\n\
             metadata: {{ name: main, namespace: {namespace} }}\n"
        ))?;
        Ok(())
    }

    /// Waits until it says that it sees everything. A watch that failed while the API server made room for the kinds
    /// counts as lost for a while.
    fn wait_settled(self, plane: &ControlPlane) -> Result<()> {
        if self == Self::Ferrogate {
            let valid = ["--for", "jsonpath={.status.result}=Valid", "--timeout", "120s"];
            let report = ["wait", "configurationstate", "controller", "--namespace", "ferrogate-system"];
            plane.kubectl(report.into_iter().chain(valid))?;
        }
        Ok(())
    }

    fn start(self, plane: &ControlPlane, name: &str) -> Result<Controller> {
        match self {
            Self::Ferrogate => {
                let mut controller = Ferrogate::start(plane, "controller", name, &[])?;
                controller.wait_ready()?;
                Ok(Controller::Ferrogate(controller))
            }
            Self::Metallb => {
                let kubeconfig = plane.service_account_kubeconfig("metallb-system", "controller")?;
                let mut command = tied(METALLB.build()?.path("controller")?);
                command.args(["--webhook-mode", "disabled", "--port", "0", "--kubeconfig"]).arg(kubeconfig);
                command.env("METALLB_NAMESPACE", "metallb-system").env("METALLB_BGP_TYPE", "native");
                let log = plane.folder().join(format!("metallb-{name}.log"));
                Ok(Controller::Metallb(Process::start(plane.keeper(), "metallb controller", command, &log)?))
            }
        }
    }
}

impl Controller {
    fn process(&mut self) -> &mut Process {
        match self {
            Self::Ferrogate(controller) => controller.process(),
            Self::Metallb(process) => process,
        }
    }

    fn stop(mut self) -> Result<()> {
        self.process().signal(Signal::SIGTERM)?;
        self.process().wait()?;
        Ok(())
    }
}

/// What was measured of one controller.
struct Figures {
    /// From the first creation to the last.
    created: Duration,
    /// From the first creation to the last address.
    assigned: Duration,
    p50: Duration,
    p99: Duration,
    /// CPU time of the controller, Events included.
    busy: Duration,
    memory: f64,
    /// What of it is no part of a file, as the program is.
    own_memory: f64,
    most_memory: f64,
    asked: Vec<Asked>,
    /// From the start of the process to ready; none for one that does not say.
    ready: Option<Duration>,
    /// From the start of the process until one more Service had its address.
    served: Duration,
    /// What it wrote after a restart, but for what one more Service needs.
    rewritten: Vec<Asked>,
    memory_after: f64,
}

/// When each Service was there, and when it had an address.
#[derive(Debug, Default)]
struct Times {
    created: BTreeMap<String, Instant>,
    assigned: BTreeMap<String, Instant>,
}

/// How long creating all of them takes where nobody looks, and how long a plain client then takes to write a status of
/// each.
async fn nobody(count: usize) -> Result<(Duration, Duration)> {
    let plane = ControlPlane::start(Options::default())?;
    let client = plane.client().await?;
    let begun = Instant::now();
    create(&client, "web", count, false, &Mutex::default()).await?;
    let created = begun.elapsed();
    let api: Api<Service> = Api::default_namespaced(client);
    let begun = Instant::now();
    let write = |number: usize| {
        let api = api.clone();
        async move {
            let address = std::net::Ipv4Addr::from_bits(0xc612_0000 + u32::try_from(number)?);
            let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": address }] } } });
            api.patch_status(&format!("web-{number}"), &PatchParams::default(), &Patch::Merge(&status)).await?;
            anyhow::Ok(())
        }
    };
    stream::iter(0..count).map(write).buffer_unordered(PATCHES_AT_ONCE).try_collect::<Vec<_>>().await?;
    Ok((created, begun.elapsed()))
}

async fn many(who: Who, count: usize) -> Result<Figures> {
    let plane = ControlPlane::start(Options::default())?;
    who.install(&plane)?;
    let mut controller = who.start(&plane, "first")?;
    let client = plane.client().await?;
    let times = Arc::new(Mutex::new(Times::default()));
    let watch = tokio::spawn(watch(client.clone(), Arc::clone(&times)));
    // One that has an address says that the controller leads and knows its pool.
    create(&client, "first", 1, false, &times).await?;
    wait_assigned(&times, 1).await?;
    let asked_before = quiet(&plane).await?.len();
    *times.lock().unwrap_or_else(PoisonError::into_inner) = Times::default();
    let cpu_before = cpu(controller.process())?;

    let begun = Instant::now();
    let refused = create(&client, "web", count, false, &times).await?;
    ensure!(refused.is_empty(), "not created: {refused:?}");
    let created = begun.elapsed();
    wait_assigned(&times, count).await?;
    let assigned = begun.elapsed();
    let asked = quiet(&plane).await?.split_off(asked_before);
    let busy = cpu(controller.process())? - cpu_before;
    let [memory, own_memory, most_memory] =
        ["VmRSS:", "RssAnon:", "VmHWM:"].map(|field| held(controller.process(), field));
    let (memory, own_memory, most_memory) = (memory?, own_memory?, most_memory?);
    let waits = waits(&times);
    let quantile = |share: f64| waits[((waits.len() as f64 * share).ceil() as usize).clamp(1, waits.len()) - 1];
    let (p50, p99) = (quantile(0.5), quantile(0.99));

    // Ends the controller and starts another; nothing may be written that was there.
    who.wait_settled(&plane)?;
    controller.stop()?;
    let before = quiet(&plane).await?.len();
    let begun = Instant::now();
    let mut controller = who.start(&plane, "second")?;
    let ready = (who == Who::Ferrogate).then(|| begun.elapsed());
    create(&client, LAST, 1, false, &times).await?;
    wait_assigned(&times, count + 1).await?;
    let served = begun.elapsed();
    let rewritten = rewritten(quiet(&plane).await?.split_off(before), &client).await?;
    let memory_after = held(controller.process(), "VmRSS:")?;
    watch.abort();
    Ok(Figures {
        created,
        assigned,
        p50,
        p99,
        busy,
        memory,
        own_memory,
        most_memory,
        asked,
        ready,
        served,
        rewritten,
        memory_after,
    })
}

/// What was written but for the Lease and what one more Service needs: a status, its pool's counters, an Event. To make
/// what is there already (409, a Secret that nobody may read) writes nothing.
async fn rewritten(asked: Vec<Asked>, client: &Client) -> Result<Vec<Asked>> {
    let own = ListParams::default().fields(&format!("involvedObject.name={LAST}-0"));
    let api: Api<k8s_openapi::api::core::v1::Event> = Api::default_namespaced(client.clone());
    let mut events = api.list(&own).await?.items.len();
    let mut pools = 1;
    let is_due = |left: &mut usize| left.checked_sub(1).map(|less| *left = less).is_some();
    let written = asked.into_iter().filter(|one| {
        let read = matches!(one.verb.as_str(), "list" | "watch" | "get");
        // Asking what one may do, or who one is, is a creation by its verb.
        let own = one.name.starts_with(LAST) || one.what.starts_with("leases.") || one.what.contains("reviews.");
        let due = !read
            && !own
            && ((one.what.starts_with("events") && one.verb == "create" && is_due(&mut events))
                || (one.what.starts_with("ipaddresspools.") && is_due(&mut pools)));
        let is_there = one.verb == "create" && one.code == 409;
        !read && !own && !due && !is_there
    });
    Ok(written.collect())
}

impl Figures {
    /// How often something like this was asked for.
    fn number(&self, is_meant: impl Fn(&Asked) -> bool) -> usize {
        self.asked.iter().filter(|one| is_meant(one)).count()
    }

    fn services_written(&self) -> usize {
        self.number(|one| one.what.starts_with("services") && !matches!(one.verb.as_str(), "list" | "watch" | "get"))
    }

    fn events(&self) -> usize {
        self.number(|one| one.what.starts_with("events"))
    }

    fn others(&self) -> usize {
        self.asked.len() - self.services_written() - self.events()
    }

    /// Whether what was promised of ours holds.
    fn check(&self, count: usize) -> Result<()> {
        ensure!(self.services_written() <= count, "{count} Services took {} writes", self.services_written());
        ensure!(self.rewritten.is_empty(), "a restart wrote {:?}", &self.rewritten[..self.rewritten.len().min(5)]);
        let most = self.most_memory.max(self.memory_after);
        ensure!(count > SERVICES || most <= ALLOWED_MEMORY, "the controller holds {most:.0} MiB");
        Ok(())
    }
}

fn print(count: usize, (created, patched): (Duration, Duration), ours: &Figures, theirs: Option<&Figures>) {
    let ms = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e3);
    let seconds = |time: Duration| format!("{:.1}", time.as_secs_f64());
    let times = |time: Duration| format!("{:.2}", time.as_secs_f64() / created.as_secs_f64());
    let each = |number: usize| format!("{:.3}", number as f64 / count as f64);
    let mib = |memory: f64| format!("{memory:.0}");
    println!("Where nobody looks, {count} Services are created in {} s; a plain client", seconds(created));
    println!("then writes the status of each in {} s.\n", seconds(patched));
    println!("| {count} Services | Ferrogate | MetalLB |\n|---|---:|---:|");
    let row = |what: &str, figure: &dyn Fn(&Figures) -> String| {
        println!("| {what} | {} | {} |", figure(ours), theirs.map_or("—".to_owned(), figure));
    };
    row("all created after, s", &|of| seconds(of.created));
    row("all with an address after, s", &|of| seconds(of.assigned));
    row("the same by the time that creating takes where nobody looks", &|of| times(of.assigned));
    row("from creation to status, p50, ms", &|of| ms(of.p50));
    row("from creation to status, p99, ms", &|of| ms(of.p99));
    row("writes of a Service, each", &|of| each(of.services_written()));
    row("Events, each", &|of| each(of.events()));
    row("all other requests, each", &|of| each(of.others()));
    row("CPU time of the controller, each, µs", &|of| format!("{:.0}", of.busy.as_secs_f64() * 1e6 / count as f64));
    row("memory of the controller (RSS), MiB", &|of| mib(of.memory));
    row("of that without the program itself (RssAnon), MiB", &|of| mib(of.own_memory));
    row("at most (VmHWM), MiB", &|of| mib(of.most_memory));
    row("restart: from the start of the process to ready, s", &|of| of.ready.map_or("—".to_owned(), seconds));
    row("restart: until one more Service has an address, s", &|of| seconds(of.served));
    row("restart: writes", &|of| of.rewritten.len().to_string());
    row("restart: memory (RSS), MiB", &|of| mib(of.memory_after));
    println!();
    for (who, figures) in [("Ferrogate", Some(ours)), ("MetalLB", theirs)] {
        let Some(figures) = figures else { continue };
        println!("| asked by {who} | times |\n|---|---:|");
        for ((_, verb, what, code), number) in audit::counted(&figures.asked) {
            println!("| {verb} {what}: {code} | {number} |");
        }
        println!();
    }
}

async fn too_many() -> Result<()> {
    let plane = ControlPlane::start(Options::default())?;
    Who::Ferrogate.install(&plane)?;
    let _controller = Who::Ferrogate.start(&plane, "first")?;
    let client = plane.client().await?;
    let times = Arc::new(Mutex::new(Times::default()));
    let watch = tokio::spawn(watch(client.clone(), Arc::clone(&times)));

    let refused = create(&client, "web", WITH_NODE_PORTS, true, &times).await?;
    let served = WITH_NODE_PORTS - refused.len();
    wait_assigned(&times, served).await?;

    println!("| {WITH_NODE_PORTS} Services with NodePorts | |\n|---|---:|");
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
                "metadata": { "name": name, "labels": { "app": name } },
                "spec": {
                    "type": "LoadBalancer",
                    "allocateLoadBalancerNodePorts": node_ports,
                    "ipFamilies": ["IPv4"],
                    "selector": { "app": name },
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

/// Waits until nobody asks for anything but to renew a Lease; returns all that was asked until then.
async fn quiet(plane: &ControlPlane) -> Result<Vec<Asked>> {
    let counts = |asked: &[Asked]| asked.iter().filter(|one| !one.what.starts_with("leases.")).count();
    let begun = Instant::now();
    let mut before = counts(&plane.asked()?);
    loop {
        tokio::time::sleep(QUIET).await;
        let asked = plane.asked()?;
        let now = counts(&asked);
        if now == before {
            return Ok(asked);
        }
        ensure!(begun.elapsed() < LIMIT, "{now} requests, and there is no end");
        before = now;
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
fn cpu(process: &Process) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id()))?;
    // The second field is a name, which may hold blanks.
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| -> Result<f64> { Ok(fields.get(index).context("a short line")?.parse()?) };
    let each = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock")? as f64;
    Ok(Duration::from_secs_f64((ticks(11)? + ticks(12)?) / each))
}

/// What a process holds in memory, in MiB, by a field of its status.
fn held(process: &Process, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find(|line| line.starts_with(field)).context("no such field")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}
