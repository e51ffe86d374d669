//! What a speaker costs that speaks with many routers: CPU time and resident memory, and whether every session lives.
//!
//! A hundred BIRDs, each in a namespace of its own, stand on one switch with a node. First each has one session of both
//! families with a hold time of 9 s; then two, one over IPv4 and one over IPv6, each watched by BFD, 300 ms × 3. Then one
//! more router comes and sends a full table. What counts is CPU time of the speaker's threads
//! (`/proc/PID/task/*/schedstat`) as a share of one core, and what of its memory is resident. The program fails above a
//! limit.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ferrogate_integration::{
    lab::{
        cost::{forget_peak, measure, own_mib, peak_mib, resident_mib, say_ready, taken, taken_by},
        product::Product,
        topology::{Plan, Topology, uplink, uplink_v6},
        wait::until_every,
    },
    netns::Namespace,
    router::{Config, Neighbor, Router, Vendor},
};

/// How long sessions are watched unless told otherwise, in seconds; those with BFD a tenth of it.
const SECONDS: u64 = 600;
/// How many routers.
const ROUTERS: u8 = 100;
/// How many Services, each with an address of both families.
const SERVICES: usize = 100;
/// How many routes are in the full table.
const TABLE: u32 = 1_000_000;
/// How many of them have the same attributes, and so fit into one message.
const ALIKE: u32 = 10;
/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(180);
/// How often it is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// So long after everything is there nothing is measured.
const SETTLE: Duration = Duration::from_secs(5);

/// Share of a core that a speaker with a hundred sessions may take.
const CPU: f64 = 0.03;
/// What of its memory may be resident.
const RESIDENT_MIB: f64 = 40.0;
/// Share of a core that two hundred BFD sessions may take.
const BFD_CPU: f64 = 0.05;
/// By how much a full table may raise what is resident, in MB.
const TABLE_MB: f64 = 50.0;

/// The AS of the node, and that of the routers.
const OURS: u32 = 64500;
const THEIRS: u32 = 64512;
/// Milliseconds between BFD packets.
const INTERVAL_MS: u32 = 300;

const UP: &str = "ferrogate_speaker_bgp_session_up";
const FLAPS: &str = "ferrogate_speaker_bgp_session_flaps_total";
const RECEIVED: &str = "ferrogate_speaker_bgp_prefixes_received";

fn main() -> ExitCode {
    measure(SECONDS, inside)
}

fn inside(binary: &Path, folder: &Path, time: Duration) -> Result<ExitCode> {
    let mut bench = Bench::start(binary, folder)?;

    let hundred = bench.over(time)?;
    bench.watch_by_bfd()?;
    let watched = bench.over(time / 10)?;
    let table = bench.take_full_table()?;

    println!("| {ROUTERS} routers, {} routes to each, {} s | seen | limit |", 2 * SERVICES, time.as_secs());
    println!("|---|---:|---:|");
    let mb = |mib: f64| mib * 1.048576;
    let rows = [
        ("all sessions established after its start, s", bench.up.as_secs_f64(), None),
        ("sessions lost, hold time 9 s", hundred.lost, Some(0.0)),
        ("CPU of the speaker, % of a core", 100.0 * hundred.cpu, Some(100.0 * CPU)),
        ("its memory (RSS), MiB", hundred.resident_mib, Some(RESIDENT_MIB)),
        ("of that its own, not pages of the binary, MiB", hundred.own_mib, None),
        ("200 BFD sessions, 300 ms × 3: BGP sessions lost", watched.lost, Some(0.0)),
        ("CPU of the thread of BFD, % of a core", 100.0 * watched.bfd_cpu, Some(100.0 * BFD_CPU)),
        ("CPU of the speaker with 200 sessions and BFD, % of a core", 100.0 * watched.cpu, None),
        ("its memory (RSS), MiB", watched.resident_mib, None),
        ("1,000,000 routes from one router: most memory on top, MB", mb(table.peak_mib), Some(TABLE_MB)),
        ("until all have come, s", table.took.as_secs_f64(), None),
        ("sessions lost meanwhile", table.lost, Some(0.0)),
    ];
    for (what, seen, limit) in &rows {
        let limit = limit.map(|limit| format!("≤ {limit}")).unwrap_or_default();
        println!("| {what} | {seen:.2} | {limit} |");
    }
    let is_beyond = |(_, seen, limit): &&(_, f64, Option<f64>)| limit.is_some_and(|limit| *seen > limit);
    let beyond: Vec<&str> = rows.iter().filter(is_beyond).map(|(what, ..)| *what).collect();
    if bench.sum(FLAPS)? > 0.0 {
        bench.tell_losses()?;
    }
    ensure!(beyond.is_empty(), "beyond the limit: {}", beyond.join("; "));
    Ok(ExitCode::SUCCESS)
}

/// What happened and was taken in a time.
struct Spent {
    /// Of one core.
    cpu: f64,
    /// The same of the thread of BFD alone.
    bfd_cpu: f64,
    resident_mib: f64,
    /// Of that what is no file's.
    own_mib: f64,
    /// Sessions that ended.
    lost: f64,
}

/// What came of a full table.
struct Table {
    /// What was resident at most, beyond what was before.
    peak_mib: f64,
    /// How long it took until it had come.
    took: Duration,
    /// Sessions that ended.
    lost: f64,
}

/// The node with its speaker, and the routers.
struct Bench {
    product: Product,
    routers: Vec<Router<'static>>,
    topology: Topology,
    /// How long it took until all sessions of the beginning stood.
    up: Duration,
}

impl Bench {
    fn start(binary: &Path, folder: &Path) -> Result<Self> {
        let plan = Plan { nodes: 1, pods_per_node: 0, management: false };
        let topology = Topology::without_pods(plan)?;
        let routers = (0..ROUTERS).map(|number| {
            let namespace = Namespace::new(format!("router-{number}"))?;
            topology.attach(&namespace, addresses(number))?;
            Router::start_holding(Vendor::Bird, &namespace, &config(number, false))
        });
        let routers = routers.collect::<Result<Vec<_>>>()?;
        let mut product = Product::without_manifests(binary, folder)?;
        product.write("services.yaml", &services())?;
        product.write("peers.yaml", &peers(false))?;
        topology.nodes[0].namespace.spawn_thread(|| say_ready().expect("nothing else listens here"))?;
        product.start_one(&topology, "controller", 0)?;
        let begun = Instant::now();
        product.start_one(&topology, "speaker", 0)?;
        product.wait_ready(&topology)?;
        let mut bench = Self { product, routers, topology, up: Duration::ZERO };
        bench.wait_for_sum(UP, f64::from(ROUTERS))?;
        bench.up = begun.elapsed();
        bench.wait_for_routes()?;
        Ok(bench)
    }

    fn sum(&self, metric: &str) -> Result<f64> {
        self.product.speaker_metric(&self.topology, 0, metric)
    }

    fn wait_for_sum(&self, metric: &str, wanted: f64) -> Result<()> {
        until_every(LOOK_AGAIN, LIMIT, || {
            let sum = self.sum(metric)?;
            ensure!(sum == wanted, "{metric} is {sum}, not {wanted}");
            Ok(())
        })
    }

    /// Every router has a route to every address.
    fn wait_for_routes(&self) -> Result<()> {
        self.routers.iter().try_for_each(|router| router.wait_for_count(2 * SERVICES))?;
        thread::sleep(SETTLE);
        Ok(())
    }

    /// What the speaker takes while nothing happens for a time.
    fn over(&self, time: Duration) -> Result<Spent> {
        let pid = self.product.pid("speaker", 0)?;
        // There is no such thread before there is a session.
        let bfd = || taken_by(pid, "bfd").unwrap_or_default();
        let (begun, lost, before, bfd_before) = (Instant::now(), self.sum(FLAPS)?, taken(pid)?.0, bfd());
        thread::sleep(time);
        let share = |cpu: u64| cpu as f64 / 1e9 / begun.elapsed().as_secs_f64();
        Ok(Spent {
            cpu: share(taken(pid)?.0 - before),
            bfd_cpu: share(bfd() - bfd_before),
            resident_mib: resident_mib(pid)?,
            own_mib: own_mib(pid)?,
            lost: self.sum(FLAPS)? - lost,
        })
    }

    /// Prints what the speaker wrote down of sessions that it lost.
    fn tell_losses(&self) -> Result<()> {
        let log = fs::read_to_string(self.product.logs().join("speaker-node-1.log"))?;
        log.lines().filter(|line| line.contains("session lost")).for_each(|line| eprintln!("{line}"));
        Ok(())
    }

    /// Gives every router a second session, and has both watched.
    fn watch_by_bfd(&mut self) -> Result<()> {
        for (number, router) in (0..).zip(&mut self.routers) {
            router.reconfigure(&config(number, true))?;
        }
        self.product.write("peers.yaml", &peers(true))?;
        self.wait_for_sum(UP, 2.0 * f64::from(ROUTERS))?;
        until_every(LOOK_AGAIN, LIMIT, || {
            let metrics = self.product.speaker_metrics(&self.topology, 0)?;
            let wanted = format!("ferrogate_speaker_bfd_sessions{{state=\"Up\"}} {}", 2 * u16::from(ROUTERS));
            ensure!(metrics.lines().any(|line| line == wanted), "not {wanted}");
            Ok(())
        })?;
        thread::sleep(SETTLE);
        Ok(())
    }

    /// Has one more router send a full table.
    fn take_full_table(&mut self) -> Result<Table> {
        let namespace = Namespace::new("router-full")?;
        self.topology.attach(&namespace, addresses(ROUTERS))?;
        let mut config = config(ROUTERS, false);
        config.extra = full_table();
        let router = Router::start_holding(Vendor::Bird, &namespace, &config)?;
        let pid = self.product.pid("speaker", 0)?;
        let (before, lost) = (resident_mib(pid)?, self.sum(FLAPS)?);
        forget_peak(pid)?;
        let begun = Instant::now();
        self.product.write("full.yaml", &peer("full", addresses(ROUTERS)[0], false))?;
        self.wait_for_sum(RECEIVED, f64::from(TABLE))?;
        let took = begun.elapsed();
        router.wait_until_established(uplink(1).into())?;
        self.routers.push(router);
        Ok(Table { peak_mib: peak_mib(pid)? - before, took, lost: self.sum(FLAPS)? - lost })
    }
}

/// The addresses of a router.
fn addresses(number: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, u16::from(number));
    [Ipv4Addr::new(192, 0, 2, 100 + number).into(), v6.into()]
}

/// How a router is configured: for one session over IPv4, or for two that BFD watches.
fn config(number: u8, is_watched: bool) -> Config {
    let [v4, v6] = addresses(number);
    let neighbor = |address: IpAddr, local| Neighbor {
        bfd_ms: is_watched.then_some(INTERVAL_MS),
        ..Neighbor::new(address, local, OURS)
    };
    let mut neighbors = vec![neighbor(uplink(1).into(), v4)];
    if is_watched {
        neighbors.push(neighbor(uplink_v6(1).into(), v6));
    }
    let identifier = Ipv4Addr::new(192, 0, 2, 100 + number);
    Config { asn: THEIRS, identifier, neighbors, extra: String::new() }
}

/// A million routes of 24 bits, ten and ten with the same attributes.
fn full_table() -> String {
    let mut text = String::from("protocol static { ipv4;\n");
    let first = Ipv4Addr::new(16, 0, 0, 0).to_bits();
    for number in 0..TABLE {
        let network = Ipv4Addr::from_bits(first + (number << 8));
        _ = writeln!(text, "route {network}/24 blackhole {{ bgp_med = {}; }};", number / ALIKE);
    }
    text + "}\n"
}

/// The routers as the speaker is to speak with them.
fn peers(is_watched: bool) -> String {
    let mut text = format!(
        "\
apiVersion: ferrogate.io/v1beta1
kind: BFDProfile
metadata: {{name: calm}}
spec: {{receiveInterval: {INTERVAL_MS}, transmitInterval: {INTERVAL_MS}, detectMultiplier: 3}}
"
    );
    for number in 0..ROUTERS {
        let [v4, v6] = addresses(number);
        text += &peer(&format!("four-{number}"), v4, is_watched);
        if is_watched {
            text += &peer(&format!("six-{number}"), v6, true);
        }
    }
    text
}

fn peer(name: &str, address: IpAddr, is_watched: bool) -> String {
    let bfd = if is_watched { ", bfdProfile: calm" } else { "" };
    format!(
        "---
apiVersion: ferrogate.io/v1beta1
kind: BGPPeer
metadata: {{name: {name}}}
spec: {{myASN: {OURS}, peerASN: {THEIRS}, peerAddress: '{address}', holdTime: 9s, dualStackAddressFamily: true{bfd}}}
"
    )
}

/// The node, and Services that each have an endpoint on it.
fn services() -> String {
    // Addresses that are set aside for benchmarks (RFC 2544).
    let mut text = format!(
        "\
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: {{name: main}}
spec: {{addresses: [198.18.0.0/24, '2001:db8:5::/120']}}
---
apiVersion: ferrogate.io/v1beta1
kind: BGPAdvertisement
metadata: {{name: main}}
spec: {{}}
---
apiVersion: v1
kind: Node
metadata: {{name: node-1}}
status: {{addresses: [{{type: InternalIP, address: {}}}, {{type: InternalIP, address: '{}'}}]}}
",
        uplink(1),
        uplink_v6(1)
    );
    for service in 0..SERVICES {
        _ = write!(
            text,
            "---
apiVersion: v1
kind: Service
metadata: {{name: s-{service}}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports: [{{port: 80}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: s-{service}, labels: {{kubernetes.io/service-name: s-{service}}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{{addresses: [198.51.100.18], nodeName: node-1}}]
"
        );
    }
    text
}
