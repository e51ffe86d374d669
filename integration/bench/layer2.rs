//! What a speaker costs: when nothing happens, when it is asked all the time, and when the link carries what is none of
//! its business.
//!
//! Five nodes on the lab's switch share 1,000 addresses, of both families in equal parts. What counts is CPU time of a
//! speaker's threads (`/proc/PID/task/*/schedstat`) as a share of one core, how often they woke up, and what of its
//! memory is resident. With this kernel the time includes what virtual Ethernet does on behalf of whoever sends. The
//! program fails above a limit; what a speaker is told of a proxy that is ready comes from here.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ferrogate_integration::{
    lab::{
        cost::{measure, resident_mib, say_ready, taken},
        neighbours::{answer_barely, ask_steadily},
        product::Product,
        topology::{CLIENT_V6, Plan, Topology, uplink, uplink_v6},
        wait::{steadily, until},
    },
    netns::Namespace,
};

/// Length of one measurement unless told otherwise, in seconds.
const SECONDS: u64 = 20;
/// How many nodes share the addresses.
const NODES: u8 = 5;
/// How many Services there are; each has an address of both families.
const SERVICES: u16 = 500;
/// ARP requests a second.
const QUESTIONS: f64 = 10_000.0;
/// Unrelated datagrams a second, to the node itself.
const UNRELATED: f64 = 20_000.0;
/// Unrelated bits a second of one stream, to the node itself.
const STREAMED: f64 = 8e9;
/// Bytes that are written to it at a time.
const BLOCK: usize = 1 << 20;
/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(60);
/// So long nobody announces anything before a speaker counts as idle: longer than between two announcements, and longer
/// than an address outlives its ownership on a host.
const QUIET: Duration = Duration::from_secs(7);

/// How long questions are asked before they are counted, and what a thread gets to start or to finish.
const WARM_UP: Duration = Duration::from_millis(100);

/// Share of a core that an idle speaker may take.
const IDLE_CPU: f64 = 0.01;
/// What of its memory may be resident.
const RESIDENT_MIB: f64 = 25.0;
/// Share of a core that answering may take.
const ANSWERING_CPU: f64 = 0.05;
/// Share of the questions that must be answered.
const ANSWERED: f64 = 0.99;
/// How often an idle speaker may wake up under unrelated traffic, over how often it does without.
const WAKES: f64 = 1.1;
/// Share of a core that the stream may cost a speaker.
const STREAM_CPU: f64 = 0.01;
/// How much of the stream must have come through, of what was to.
const CAME_THROUGH: f64 = 0.99;

fn main() -> ExitCode {
    measure(SECONDS, inside)
}

fn inside(binary: &Path, folder: &Path, time: Duration) -> Result<ExitCode> {
    let bench = Bench::start(binary, folder)?;

    let idle = bench.over(time, || Ok(()))?;
    let owned = bench.owned(0)?;
    let ask = |time| ask_steadily(&bench.topology.client, "eth0", &owned, QUESTIONS, time);
    let answers = || bench.product.speaker_metric(&bench.topology, 0, "ferrogate_speaker_answers_total");
    // What has never been counted is not shown.
    ask(WARM_UP)?;
    let (answered, mut asked) = (answers()?, 0);
    let asking = bench.over(time, || {
        asked = ask(time)?;
        Ok(())
    })?;
    let answered = answers()? - answered;
    let barely = bench.barely(time)?;
    let unrelated = bench.over(time, || bench.unrelated(time))?;
    let mut streamed = 0.0;
    let beside = bench.over(time, || {
        streamed = bench.stream(time)?;
        Ok(())
    })?;

    let worst = |spent: &[Spent]| spent.iter().map(|spent| spent.cpu).fold(0.0, f64::max);
    let wakes = |spent: &[Spent]| spent.first().map_or(0.0, |spent| spent.wakes);
    println!("| {} addresses, {NODES} nodes | seen | limit |\n|---|---:|---:|", 2 * SERVICES);
    let rows = [
        Row::at_most("CPU of an idle speaker, % of a core", 100.0 * worst(&idle), 100.0 * IDLE_CPU),
        Row::at_most("its memory (RSS), MiB", bench.resident_mib()?, RESIDENT_MIB),
        Row::at_most(
            "CPU while 10,000 ARP requests/s are answered, % of a core",
            100.0 * asking[0].cpu,
            100.0 * ANSWERING_CPU,
        ),
        Row::at_least("of them answered, %", 100.0 * answered / asked as f64, 100.0 * ANSWERED),
        Row::free("CPU of a thread that answers as many and does nothing else, % of a core", 100.0 * barely),
        Row::free("CPU of the others, who hear them too, % of a core", 100.0 * worst(&asking[1..])),
        Row::at_most("wake-ups under 20,000 unrelated datagrams/s, over idle", wakes(&unrelated) / wakes(&idle), WAKES),
        Row::free("CPU then, % of a core", 100.0 * unrelated[0].cpu),
        Row::at_most(
            "CPU beside an unrelated stream, less that of an idle speaker, % of a core",
            100.0 * (beside[0].cpu - idle[0].cpu),
            100.0 * STREAM_CPU,
        ),
        Row::at_least("that stream, Gbit/s", streamed / 1e9, CAME_THROUGH * STREAMED / 1e9),
    ];
    rows.iter().for_each(|row| println!("{row}"));
    let failed: Vec<_> = rows.iter().filter(|row| !row.holds()).map(|row| row.what).collect();
    ensure!(failed.is_empty(), "beyond the limit: {}", failed.join("; "));
    Ok(ExitCode::SUCCESS)
}

/// One line of the table.
struct Row {
    what: &'static str,
    seen: f64,
    at_least: Option<f64>,
    at_most: Option<f64>,
}

impl Row {
    fn free(what: &'static str, seen: f64) -> Self {
        Self { what, seen, at_least: None, at_most: None }
    }

    fn at_most(what: &'static str, seen: f64, limit: f64) -> Self {
        Self { at_most: Some(limit), ..Self::free(what, seen) }
    }

    fn at_least(what: &'static str, seen: f64, limit: f64) -> Self {
        Self { at_least: Some(limit), ..Self::free(what, seen) }
    }

    fn holds(&self) -> bool {
        self.at_most.is_none_or(|limit| self.seen <= limit) && self.at_least.is_none_or(|limit| self.seen >= limit)
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let limit = match (self.at_least, self.at_most) {
            (Some(limit), _) => format!("≥ {limit}"),
            (_, Some(limit)) => format!("≤ {limit}"),
            _ => String::new(),
        };
        write!(f, "| {} | {:.2} | {limit} |", self.what, self.seen)
    }
}

/// What a speaker took, each second.
#[derive(Clone, Copy, Debug)]
struct Spent {
    /// Of one core.
    cpu: f64,
    /// How often one of its threads had waited and went on.
    wakes: f64,
}

/// The nodes with their speakers.
struct Bench {
    topology: Topology,
    product: Product,
}

impl Bench {
    fn start(binary: &Path, folder: &Path) -> Result<Self> {
        let topology = Topology::new(Plan { nodes: NODES, pods_per_node: 0, management: false })?;
        let spaces = topology.nodes.iter().map(|node| (&node.namespace, Ipv4Addr::new(198, 18, 0, node.number)));
        for (namespace, address) in spaces.chain([(&topology.client, Ipv4Addr::new(198, 18, 0, 100))]) {
            namespace.links(async |links| links.add_address("eth0", address.into(), 16).await)?;
        }
        let mut product = Product::without_manifests(binary, folder)?;
        product.write("services.yaml", &manifests())?;
        product.start_one(&topology, "controller", 0)?;
        for (number, node) in topology.nodes.iter().enumerate() {
            node.namespace.spawn_thread(|| say_ready().expect("nothing else listens here"))?;
            product.start_one(&topology, "speaker", number)?;
        }
        product.wait_ready(&topology)?;
        let bench = Self { topology, product };
        let wanted = f64::from(2 * SERVICES);
        let mut looked = (Instant::now(), bench.sum("ferrogate_speaker_announcements_total").unwrap_or_default());
        until(LIMIT, || {
            let owned = bench.sum("ferrogate_speaker_owned_addresses")?;
            ensure!(owned == wanted, "{owned} of {wanted} addresses are owned");
            let sent = bench.sum("ferrogate_speaker_announcements_total")?;
            if sent != looked.1 {
                looked = (Instant::now(), sent);
            }
            ensure!(looked.0.elapsed() >= QUIET, "addresses are still announced");
            Ok(())
        })?;
        Ok(bench)
    }

    fn sum(&self, metric: &str) -> Result<f64> {
        (0..NODES.into()).map(|node| self.product.speaker_metric(&self.topology, node, metric)).sum()
    }

    /// The IPv4 addresses that a node owns.
    fn owned(&self, node: usize) -> Result<Vec<IpAddr>> {
        let text = self.product.speaker_metrics(&self.topology, node)?;
        let announced = text.lines().filter(|line| line.starts_with("ferrogate_speaker_announced{"));
        let addresses = announced.filter_map(|line| line.split_once("address=\"")?.1.split_once('"')?.0.parse().ok());
        let addresses: Vec<IpAddr> = addresses.filter(IpAddr::is_ipv4).collect();
        ensure!(!addresses.is_empty(), "{} owns no IPv4 address", self.topology.nodes[node].name);
        Ok(addresses)
    }

    /// What each speaker takes while something happens that lasts about so long. A takeover is no part of it: on a
    /// machine so busy that speakers miss each other nothing is measured.
    fn over(&self, time: Duration, work: impl FnOnce() -> Result<()> + Send) -> Result<Vec<Spent>> {
        let takeovers = self.sum("ferrogate_speaker_takeovers_total")?;
        let before = self.taken()?;
        let begun = Instant::now();
        work()?;
        thread::sleep(time.saturating_sub(begun.elapsed()));
        let (after, seconds) = (self.taken()?, begun.elapsed().as_secs_f64());
        let takeovers = self.sum("ferrogate_speaker_takeovers_total")? - takeovers;
        ensure!(takeovers == 0.0, "{takeovers} addresses were taken over meanwhile, although no speaker failed");
        let spent = before.into_iter().zip(after).map(|((cpu, wakes), (cpu_after, wakes_after))| Spent {
            cpu: (cpu_after - cpu) as f64 / 1e9 / seconds,
            wakes: (wakes_after - wakes) as f64 / seconds,
        });
        Ok(spent.collect())
    }

    /// CPU time of each speaker in nanoseconds, and its wake-ups, since its start.
    fn taken(&self) -> Result<Vec<(u64, u64)>> {
        (0..NODES.into()).map(|node| taken(self.product.pid("speaker", node)?)).collect()
    }

    /// The largest of all speakers.
    fn resident_mib(&self) -> Result<f64> {
        let resident = |node| resident_mib(self.product.pid("speaker", node)?);
        let all = (0..NODES.into()).map(resident).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().fold(0.0, f64::max))
    }

    /// What a thread on the first node, beside its speaker, takes of a core to answer as many questions, for addresses that nobody
    /// has. Whatever reads and answers by such a socket takes that, and a speaker has some more to do.
    fn barely(&self, time: Duration) -> Result<f64> {
        let free = (0..=u8::MAX).map(|last| IpAddr::from(Ipv4Addr::new(198, 18, 250, last)));
        let (addresses, node) = (free.collect::<BTreeSet<_>>(), &self.topology.nodes[0].namespace);
        let asked = addresses.iter().copied().collect::<Vec<_>>();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let answers = scope.spawn(|| answer_barely(node, "eth0", &addresses, &stop));
            // Until it looks, and until the last are answered.
            thread::sleep(WARM_UP);
            let asked = ask_steadily(&self.topology.client, "eth0", &asked, QUESTIONS, time);
            thread::sleep(WARM_UP);
            stop.store(true, Ordering::Relaxed);
            let (answered, taken) = answers.join().expect("it does not panic")?;
            let asked = asked?;
            ensure!(answered as f64 >= ANSWERED * asked as f64, "only {answered} of {asked} were answered barely");
            Ok(taken.as_secs_f64() / time.as_secs_f64())
        })
    }

    /// Datagrams by both families to the first node, which has a socket for them and never reads it.
    fn unrelated(&self, time: Duration) -> Result<()> {
        let node = &self.topology.nodes[0];
        let open = |namespace: &Namespace, address: IpAddr| namespace.run(|| UdpSocket::bind((address, 0)));
        let mut pairs = Vec::new();
        let clients = [IpAddr::from(Ipv4Addr::UNSPECIFIED), CLIENT_V6.into()];
        for (client, address) in clients.into_iter().zip([uplink(1).into(), IpAddr::from(uplink_v6(1))]) {
            let sink = open(&node.namespace, address)?;
            let source = open(&self.topology.client, client)?;
            source.connect(sink.local_addr()?)?;
            pairs.push((source, sink));
        }
        steadily(UNRELATED, time, |number| pairs[number % 2].0.send(&[0; 64]).map(drop))?;
        Ok(())
    }

    /// A stream by TCP to the first node. Returns its bits a second.
    fn stream(&self, time: Duration) -> Result<f64> {
        let node = &self.topology.nodes[0];
        let listener = node.namespace.run(|| TcpListener::bind((uplink(1), 0)))?;
        let to = listener.local_addr()?;
        let sink = node.namespace.spawn_thread(move || swallow(&listener))?;
        let mut source = self.topology.client.run(|| TcpStream::connect(to))?;
        let block = vec![0; BLOCK];
        let begun = Instant::now();
        steadily(STREAMED / 8.0 / BLOCK as f64, time, |_| source.write_all(&block))?;
        drop(source);
        let bytes = sink.join().expect("it does not panic")?;
        Ok(8.0 * bytes as f64 / begun.elapsed().as_secs_f64())
    }
}

/// Reads until the other end has finished. Returns how many bytes came.
fn swallow(listener: &TcpListener) -> io::Result<usize> {
    let mut stream = listener.accept()?.0;
    let (mut space, mut all) = (vec![0; BLOCK], 0);
    loop {
        match stream.read(&mut space)? {
            0 => return Ok(all),
            length => all += length,
        }
    }
}

/// The nodes, a pool, and Services that each have an endpoint.
fn manifests() -> String {
    let plan = Plan { nodes: NODES, ..Plan::default() };
    // Addresses that are set aside for benchmarks (RFC 2544).
    let mut text = "\
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: {name: main}
spec: {addresses: [198.18.1.0-198.18.4.255, '2001:db8::1:0-2001:db8::1:ffff']}
---
apiVersion: ferrogate.io/v1beta1
kind: L2Advertisement
metadata: {name: main}
spec: {ipAddressPools: [main]}
"
    .to_owned();
    for node in 1..=NODES {
        text += &format!(
            "---
apiVersion: v1
kind: Node
metadata: {{name: node-{node}}}
status: {{addresses: [{{type: InternalIP, address: {}}}]}}
",
            plan.node_address(node)
        );
    }
    for service in 0..SERVICES {
        text += &format!(
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
