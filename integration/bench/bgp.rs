//! What a speaker costs that speaks BGP with a hundred routers: CPU time, resident memory, and whether every session lives.
//!
//! The routers are one BIRD with an address for each session, hold time 9 s, on the other end of a cable. The speaker is the
//! binary that ships; it advertises one hundred Services of both families. The program fails above a limit.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ferrogate_integration::{
    lab::{
        cost::{measure, resident_mib, say_ready, taken},
        product::Product,
        topology::{Plan, Topology},
    },
    netns::Namespace,
    router::{Config, Router, Vendor},
};

/// How long the sessions are watched unless told otherwise, in seconds.
const SECONDS: u64 = 600;
/// How many routers.
const PEERS: usize = 100;
/// How many Services, each with an address of both families.
const SERVICES: usize = 100;
/// How long all sessions may take to come up.
const LIMIT: Duration = Duration::from_secs(60);
/// Share of a core that the speaker may take.
const CPU: f64 = 0.03;
/// What of its memory may be resident.
const RESIDENT_MIB: f64 = 40.0;

const NODE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

fn main() -> ExitCode {
    measure(SECONDS, inside)
}

fn inside(binary: &Path, folder: &Path, time: Duration) -> Result<ExitCode> {
    let plan = Plan { nodes: 1, pods_per_node: 0, management: false };
    let topology = Topology::new(plan)?;
    let add = |namespace: &Namespace, address: Ipv4Addr| {
        namespace.links(async |links| links.add_address("eth0", address.into(), 16).await)
    };
    (0..PEERS).try_for_each(|peer| add(&topology.client, address(peer)))?;
    add(&topology.nodes[0].namespace, NODE)?;
    let config = Config { asn: 64512, identifier: address(0), neighbors: Vec::new(), extra: routers() };
    let router = Router::start(Vendor::Bird, &topology.client, &config)?;
    let mut product = Product::without_manifests(binary, folder)?;
    product.write("all.yaml", &objects(&plan))?;
    topology.nodes[0].namespace.spawn_thread(|| say_ready().expect("nothing else listens here"))?;
    product.start_one(&topology, "controller", 0)?;
    product.start_one(&topology, "speaker", 0)?;
    product.wait_ready(&topology)?;

    let since = Instant::now();
    let flaps = || product.speaker_metric(&topology, 0, "ferrogate_speaker_bgp_session_flaps_total");
    while established(&router)? < PEERS {
        ensure!(since.elapsed() < LIMIT, "{} of {PEERS} sessions within {LIMIT:?}", established(&router)?);
        thread::sleep(Duration::from_millis(100));
    }
    let up = since.elapsed();
    let routes = 2 * SERVICES * PEERS;
    while router.count()? < routes {
        ensure!(since.elapsed() < LIMIT, "{} of {routes} routes within {LIMIT:?}", router.count()?);
        thread::sleep(Duration::from_millis(100));
    }
    let pid = product.pid("speaker", 0)?;
    let (began, (before, _), lost) = (Instant::now(), taken(pid)?, flaps()?);
    thread::sleep(time);
    let cpu = (taken(pid)?.0 - before) as f64 / 1e9 / began.elapsed().as_secs_f64();
    let resident = resident_mib(pid)?;
    let lost = flaps()? - lost;

    println!("| {PEERS} routers, {} routes each, {} s | seen | limit |\n|---|---:|---:|", 2 * SERVICES, time.as_secs());
    println!("| all sessions established after, s | {:.2} | |", up.as_secs_f64());
    println!("| sessions lost | {lost} | 0 |");
    println!("| CPU of the speaker, % of a core | {:.2} | ≤ {} |", 100.0 * cpu, 100.0 * CPU);
    println!("| its memory (RSS), MiB | {resident:.2} | ≤ {RESIDENT_MIB} |");
    ensure!(lost == 0.0 && cpu <= CPU && resident <= RESIDENT_MIB, "beyond a limit");
    Ok(ExitCode::SUCCESS)
}

/// The address of a router.
fn address(peer: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 1, 1).to_bits() + u32::try_from(peer).unwrap_or_default())
}

/// BIRD's side of every session.
fn routers() -> String {
    let mut text = String::new();
    for peer in 0..PEERS {
        _ = writeln!(
            text,
            "ipv4 table four{peer}; ipv6 table six{peer};\nprotocol bgp peer{peer} {{ local {} as 64512; neighbor {NODE} as \
             64500; passive on; direct; hold time 9; ipv4 {{ table four{peer}; import all; export none; }}; ipv6 {{ table \
             six{peer}; import all; export none; }}; }}",
            address(peer)
        );
    }
    text
}

fn established(router: &Router<'_>) -> Result<usize> {
    let protocols = router.ask("show protocols")?;
    Ok(protocols.lines().filter(|line| line.starts_with("peer") && line.contains("Established")).count())
}

/// The node, the routers, and Services that each have an endpoint.
fn objects(plan: &Plan) -> String {
    // Addresses that are set aside for benchmarks (RFC 2544).
    let mut text = format!(
        "\
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: {{name: main}}
spec: {{addresses: [198.19.0.0/24, '2001:db8::1:0-2001:db8::1:ffff']}}
---
apiVersion: ferrogate.io/v1beta1
kind: BGPAdvertisement
metadata: {{name: main}}
spec: {{}}
---
apiVersion: v1
kind: Node
metadata: {{name: node-1}}
status: {{addresses: [{{type: InternalIP, address: {}}}]}}
",
        plan.node_address(1)
    );
    for peer in 0..PEERS {
        text += &format!(
            "---
apiVersion: ferrogate.io/v1beta1
kind: BGPPeer
metadata: {{name: peer-{peer}}}
spec: {{myASN: 64500, peerASN: 64512, peerAddress: {}, holdTime: 9s, dualStackAddressFamily: true}}
",
            address(peer)
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
