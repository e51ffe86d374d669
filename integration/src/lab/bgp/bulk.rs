//! Ten thousand routes from the start of a speaker to the router's kernel, beside ExaBGP with the same routes in a file.

use std::{
    fmt::Write,
    fs::{self, File},
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Setup,
    ground::{Ground, ROUTER},
    manifests::{self, OURS, THEIRS},
};
use crate::lab::{
    event::{Peer, Profile},
    probe::milliseconds,
    product::{PROXY_ADMIN, Product},
    row::Seen,
    topology::{Plan, uplink},
    wait::until,
};

/// How many routes.
const ROUTES: usize = 10_000;

/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(240);

/// How long routes took.
#[derive(Clone, Copy)]
struct Took {
    /// From the start to the last of them.
    all: Duration,
    /// From the first to the last, as far as looking tells.
    coming: Duration,
}

/// A process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Makes a network of one node and a router, and measures both in it, with files in `folder`.
///
/// # Errors
/// When something does not start, or the routes do not come.
pub(super) fn run(binary: &Path, folder: &Path, peer: Peer) -> Result<[Seen; 2]> {
    let plan = Plan { nodes: 1, pods_per_node: 1, ..Plan::default() };
    let setup = Setup { profile: Profile::Default, graceful_restart: false };
    let ground = Ground::new(plan)?;
    let mut product = Product::without_manifests(binary, folder)?;
    product.write("network.yaml", &manifests::many(plan, ROUTES, setup))?;
    product.start_one(&ground.topology, "controller", 0)?;
    until(LIMIT, || {
        let given = fs::read_dir(product.state().join("services/default")).map_or(0, Iterator::count);
        ensure!(given == ROUTES, "{given} of {ROUTES} Services have an address");
        Ok(())
    })?;
    // The proxy would need a socket for each address, and what is measured is what routers are told.
    let _proxy = stand_in(&ground)?;

    let file = product.logs().join("exabgp.conf");
    fs::write(&file, feed())?;
    let log = product.logs().join("exabgp.log");
    let router_log = product.logs().join("router-of-exabgp.log");
    let beside = with_router(&ground, peer, setup, &router_log, || {
        let begun = Instant::now();
        let _exabgp = start_exabgp(&ground, &file, &log)?;
        wait_for_routes(&ground, begun)
    })?;
    let router_log = product.logs().join("router-of-speaker.log");
    let own = with_router(&ground, peer, setup, &router_log, || {
        let begun = Instant::now();
        product.start_one(&ground.topology, "speaker", 0)?;
        let own = wait_for_routes(&ground, begun)?;
        product.kill("speaker", 0)?;
        Ok(own)
    })?;

    for (who, Took { all, coming }) in [("the speaker", own), ("ExaBGP", beside)] {
        println!("  10,000 routes from {who}: {all:.2?} from its start, {coming:.2?} from the first to the last");
    }
    let ratio = own.all.as_secs_f64() / beside.all.as_secs_f64();
    let seen = Seen { ms: milliseconds(own.all), ratio: Some((ratio * 100.0).round() / 100.0), ..Seen::default() };
    Ok([seen, Seen::default()])
}

/// Measures with a router that nobody has spoken with yet: one that has lost a session waits before it takes the next.
fn with_router(
    ground: &Ground,
    peer: Peer,
    setup: Setup,
    log: &Path,
    measure: impl FnOnce() -> Result<Took>,
) -> Result<Took> {
    let router = ground.start_router(peer, setup.profile, setup.graceful_restart)?;
    let measured = measure();
    // Beside the logs of the product, for whoever looks why something failed.
    _ = fs::write(log, router.log());
    let took = measured?;
    ground.router.run(|| {
        until(LIMIT, || {
            let left = Ground::host_routes()?;
            ensure!(left == 0, "the router's kernel still has {left} routes");
            Ok(())
        })
    })?;
    Ok(took)
}

/// Waits until the router's kernel has every route.
fn wait_for_routes(ground: &Ground, begun: Instant) -> Result<Took> {
    let mut first = None;
    ground.router.run(|| {
        until(LIMIT, || {
            let there = Ground::host_routes()?;
            let now = Instant::now();
            if there > 0 {
                first.get_or_insert(now);
            }
            ensure!(there == ROUTES, "the router's kernel has {there} routes, not {ROUTES}");
            Ok(Took { all: now - begun, coming: now - first.unwrap_or(now) })
        })
    })
}

/// What ExaBGP is told: the same routes to the same router.
fn feed() -> String {
    let own = uplink(1);
    let mut text = format!(
        "neighbor {ROUTER} {{ router-id {own}; local-address {own}; local-as {OURS}; peer-as {THEIRS}; hold-time 9; \
         family {{ ipv4 unicast; }} static {{\n"
    );
    let first = Ipv4Addr::new(198, 18, 0, 0).to_bits();
    for address in (first..).take(ROUTES).map(Ipv4Addr::from_bits) {
        let _ = writeln!(text, "route {address}/32 next-hop self;");
    }
    text + "} }\n"
}

fn start_exabgp(ground: &Ground, file: &Path, log: &Path) -> Result<Process> {
    let log = File::create(log)?;
    let mut exabgp = Command::new("exabgp");
    exabgp
        .env("exabgp.daemon.daemonize", "false")
        .env("exabgp.daemon.user", "root")
        .env("exabgp.api.cli", "false")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let process = ground.topology.nodes[0].namespace.spawn(&mut exabgp);
    Ok(Process(process.context("ExaBGP is installed: apt-get install exabgp")?))
}

/// Says in place of the node's proxy that it is ready.
fn stand_in(ground: &Ground) -> Result<Process> {
    let mut backend = Command::new("/proc/self/exe");
    backend.args(["backend", "--name", "proxy", "--http", &format!("127.0.0.1:{PROXY_ADMIN}")]);
    backend.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Process(ground.topology.nodes[0].namespace.spawn(&mut backend).context("standing in for the proxy")?))
}
