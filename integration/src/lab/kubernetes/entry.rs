//! The shared Ingress entry: by every way into the cluster, and when its proxies go.

use std::{
    fmt, fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::networking::v1::Ingress;
use kube::Api;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    scenes::{APPS, LIMIT, Scene, ask, page},
    stand::{Cluster, cluster_address},
};
use crate::{
    kube::install::NAMESPACE,
    lab::{
        neighbours::one_owner,
        probe,
        topology::{CLIENT, CLIENT_V6, NODES, uplink, uplink_v6},
        wait::until,
    },
};

/// The Service that Ferrogate keeps for every Ingress.
const ENTRY: &str = "ferrogate-ingress";

/// Labels of the pods of the proxy.
const PROXIES: &str = "app.kubernetes.io/name=ferrogate,app.kubernetes.io/component=proxy";

/// Where a pod says which client the proxy has named to it.
const WHO: &str = "/forwardedfor";

/// Time between two requests of the client while something goes.
const RHYTHM: Duration = Duration::from_millis(10);

/// A request that is not answered by then has failed, where silence is what is measured.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long the entry may be without an answer when a proxy is killed: until the speaker has noticed, the next one is
/// elected and the client has heard of it, on a machine that is busy otherwise too.
const GAP: Duration = Duration::from_millis(1500);

const INGRESS: &str = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: web}\nspec:\n  \
    ingressClassName: ferrogate\n  rules:\n  - host: web.example\n    http:\n      paths:\n      - {path: /, pathType: \
    Prefix, backend: {service: {name: web, port: {name: http}}}}\n";

/// One Ingress, by external address, by NodePort and by cluster IP, with the client's address all the way.
pub fn every_way_in(scene: &mut Scene<'_>) -> Option<()> {
    scene.check("an Ingress shows the addresses of the entry", |cluster| {
        cluster.plane.apply(INGRESS)?;
        let addresses = cluster.wait_addresses(NAMESPACE, ENTRY, LIMIT)?;
        let shown = until(LIMIT, || {
            let ingress =
                cluster.ask(async |client| Ok(Api::<Ingress>::namespaced(client, APPS).get("web").await?))?;
            let status = ingress.status.and_then(|status| status.load_balancer?.ingress).unwrap_or_default();
            let mut shown: Vec<IpAddr> = status.iter().filter_map(|one| one.ip.as_ref()?.parse().ok()).collect();
            shown.sort_by_key(IpAddr::is_ipv6);
            ensure!(shown == addresses, "it shows {shown:?} instead of {addresses:?}");
            Ok(shown)
        })?;
        Ok(((), shown.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")))
    })?;
    for v6 in [false, true] {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let client: IpAddr = if v6 { CLIENT_V6.into() } else { CLIENT.into() };
        scene.check(
            &format!("Ingress, {family}: by external address, the pod hears of the client's address"),
            |cluster| {
                let to = address(cluster, v6)?;
                let (owner, _) = until(LIMIT, || one_owner(&cluster.topology, to.ip()))?;
                let seen = until(LIMIT, || page(cluster, to, WHO))?;
                ensure!(seen == client.to_string(), "the pod hears of {seen} instead of {client}");
                Ok(((), format!("{to} is at {}, the pod hears of {seen}", cluster.topology.nodes[owner].name)))
            },
        )?;
        scene.check(&format!("Ingress, {family}: by NodePort and by cluster IP"), |cluster| {
            let (address, port) = cluster_address(&cluster.service(NAMESPACE, ENTRY)?, v6).context("no cluster IP")?;
            let node: IpAddr = if v6 { uplink_v6(2).into() } else { uplink(2).into() };
            let seen = until(LIMIT, || page(cluster, (node, port).into(), WHO))?;
            ensure!(seen == client.to_string(), "by NodePort the pod hears of {seen} instead of {client}");
            let inside = &cluster.topology.nodes[0];
            let answer = until(LIMIT, || inside.namespace.run(|| ask(address, "/")))?;
            Ok(((), format!("{node} port {port}: {seen}; {address} from {}: {answer}", inside.name)))
        })?;
    }
    scene.check("the access log of the proxies names the client", |cluster| {
        let line = until(LIMIT, || {
            let logs = cluster.all_logs().into_iter().filter_map(|path| fs::read_to_string(path).ok());
            let is_told = |line: &&str| {
                line.contains(&format!("\"client\":\"{CLIENT}\"")) && line.contains("\"ingress\":\"default/web\"")
            };
            let mut lines = logs.filter_map(|log| log.lines().find(is_told).map(str::to_owned));
            lines.next().context("no line of the client's requests")
        })?;
        Ok(((), line))
    })
}

/// The proxy that carries the entry is killed: its node is silent at once, whether there is an API server or not.
pub fn a_proxy_is_killed(scene: &mut Scene<'_>) -> Option<()> {
    scene.check("a proxy is killed: its node is silent at once, the entry moves", killed)?;
    scene.check("the same without an API server", |cluster| {
        cluster.plane.kill_api_server()?;
        let seen = killed(cluster);
        cluster.plane.start_api_server()?;
        seen
    })?;
    scene.check("the killed proxies are back", |cluster| {
        let pods = cluster.wait_pods(NAMESPACE, PROXIES, usize::from(NODES), LIMIT * 4)?;
        Ok(((), format!("{} are ready", pods.len())))
    })
}

fn killed(cluster: &Cluster) -> Result<((), String)> {
    let to = address_of(cluster)?;
    let (owner, _) = until(LIMIT, || one_owner(&cluster.topology, to.ip()))?;
    let node = &cluster.topology.nodes[owner].name;
    until(LIMIT, || page(cluster, to, "/"))?;
    let ask: Ask<'_> = Box::new(|| hello(to, PATIENCE));
    let (next, asked) = while_asked(cluster, vec![ask], || {
        thread::sleep(RHYTHM * 20);
        let pid = process(node)?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("killing the proxy")?;
        let now = until(LIMIT, || {
            let (now, _) = one_owner(&cluster.topology, to.ip())?;
            ensure!(now != owner, "{node} still answers for {}", to.ip());
            Ok(now)
        })?;
        thread::sleep(RHYTHM * 50);
        Ok(cluster.topology.nodes[now].name.clone())
    })?;
    let Asked { asked, failed, gap, .. } = asked.into_iter().next().context("nobody has asked")?;
    ensure!(gap <= GAP, "no answer for {} ms", gap.as_millis());
    Ok(((), format!("from {node} to {next}: {} ms without an answer, {failed} of {asked} requests", gap.as_millis())))
}

/// Every proxy is replaced by another one, node by node, while clients ask each node, and the external address on new
/// connections and on a kept one.
pub fn the_proxies_are_updated(scene: &mut Scene<'_>) -> Option<()> {
    scene.check("a rolling restart of the proxies loses no request", |cluster| {
        let to = address(cluster, false)?;
        let (_, port) = cluster_address(&cluster.service(NAMESPACE, ENTRY)?, false).context("no NodePort")?;
        until(LIMIT, || page(cluster, to, "/"))?;
        let mut asks: Vec<Ask<'_>> = Vec::new();
        for node in &cluster.topology.nodes {
            let to = SocketAddr::new(uplink(node.number).into(), port);
            until(LIMIT, || page(cluster, to, "/"))?;
            asks.push(Box::new(move || hello(to, LIMIT)));
        }
        let nodes = asks.len();
        let mut kept = None;
        asks.push(Box::new(move || hello(to, LIMIT)));
        asks.push(Box::new(move || hello_again(&mut kept, to, LIMIT)));
        let lost_before = speakers_lost(cluster);

        let ((), asked) = while_asked(cluster, asks, || {
            cluster.plane.kubectl(["rollout", "restart", "daemonset/ferrogate-proxy", "--namespace", NAMESPACE])?;
            let status = ["rollout", "status", "daemonset/ferrogate-proxy", "--namespace", NAMESPACE, "--timeout=180s"];
            cluster.plane.kubectl(status)?;
            cluster.wait_pods(NAMESPACE, PROXIES, usize::from(NODES), LIMIT * 2).map(drop)
        })?;

        let (by_node, by_address) = asked.split_at(nodes);
        for (asked, node) in by_node.iter().zip(&cluster.topology.nodes) {
            ensure!(asked.failed == 0, "by {}: {asked}", node.name);
        }
        // Speakers that hear nothing of each other, on a machine that is too busy, move addresses: that loses
        // connections, whatever the proxies do.
        let lost = speakers_lost(cluster) - lost_before;
        let failed: u32 = by_address.iter().map(|asked| asked.failed).sum();
        let told = || by_address.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        ensure!(failed == 0 || lost > 0, "by {to}: {}", told());
        let total: u32 = asked.iter().map(|asked| asked.asked).sum();
        let moved = format!("; speakers lost each other {lost} times meanwhile, and at {to}: {}", told());
        Ok(((), format!("{} of {total} requests are answered{}", total - failed, if lost > 0 { &moved } else { "" })))
    })
}

/// How often a speaker has lost another one so far.
fn speakers_lost(cluster: &Cluster) -> usize {
    let logs = cluster.all_logs().into_iter().filter_map(|path| fs::read_to_string(path).ok());
    logs.map(|log| log.lines().filter(|line| line.contains("ferrogate_speaker: speaker lost")).count()).sum()
}

/// One request, as a client sends it.
type Ask<'a> = Box<dyn FnMut() -> Result<()> + Send + 'a>;

/// How many failures are told in words.
const TOLD: usize = 5;

/// What a client saw while something happened.
#[derive(Default)]
struct Asked {
    asked: u32,
    failed: u32,
    /// The longest time between two answers.
    gap: Duration,
    /// When and why the first ones failed.
    why: Vec<String>,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failed, asked, gap, why } = self;
        write!(f, "{failed} of {asked} requests failed, {} ms without an answer", gap.as_millis())?;
        why.iter().try_for_each(|why| write!(f, "; {why}"))
    }
}

/// Asks from the client, each in a rhythm of its own, while something happens.
fn while_asked<T>(
    cluster: &Cluster,
    asks: Vec<Ask<'_>>,
    happens: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<Asked>)> {
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        let start = |ask| scope.spawn(move || cluster.topology.client.run(|| ask_until(stop, ask)));
        let clients: Vec<_> = asks.into_iter().map(start).collect();
        let found = happens();
        stop.store(true, Ordering::Relaxed);
        let asked = clients.into_iter().map(|client| client.join().ok().context("a client has panicked"));
        let asked = asked.collect::<Result<Vec<_>>>();
        Ok((found?, asked?))
    })
}

fn ask_until(stop: &AtomicBool, mut ask: Ask<'_>) -> Asked {
    let began_at = Instant::now();
    let mut answered_at = began_at;
    let mut all = Asked::default();
    while !stop.load(Ordering::Relaxed) {
        let next = Instant::now() + RHYTHM;
        all.asked += 1;
        match ask() {
            Ok(()) => {
                all.gap = all.gap.max(answered_at.elapsed());
                answered_at = Instant::now();
            }
            Err(error) => {
                all.failed += 1;
                if all.why.len() < TOLD {
                    all.why.push(format!("after {} ms: {error:#}", began_at.elapsed().as_millis()));
                }
            }
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    all.gap = all.gap.max(answered_at.elapsed());
    all
}

/// One request by a connection of its own.
fn hello(to: SocketAddr, patience: Duration) -> Result<()> {
    let mut stream = probe::connect(to, None, patience).context("connecting")?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web.example\r\nconnection: close\r\n\r\n").context("asking")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "answered {:?}", answer.lines().next().unwrap_or_default());
    Ok(())
}

/// One request on the connection of the one before, if that has not been told to be the last.
fn hello_again(kept: &mut Option<TcpStream>, to: SocketAddr, patience: Duration) -> Result<()> {
    let stream = match kept.take() {
        Some(stream) => stream,
        None => probe::connect(to, None, patience).context("connecting")?,
    };
    let answer = probe::get_on(&stream, "web.example", "/").context("asking")?;
    ensure!(answer.code == 200, "answered {}", answer.code);
    if !answer.is_last {
        *kept = Some(stream);
    }
    Ok(())
}

fn address(cluster: &Cluster, v6: bool) -> Result<SocketAddr> {
    let addresses = cluster.wait_addresses(NAMESPACE, ENTRY, LIMIT)?;
    let address = addresses.into_iter().find(|address| address.is_ipv6() == v6);
    Ok(SocketAddr::new(address.context("the entry has no address of that family")?, 80))
}

/// The entry's IPv4 address as the pool of the lab gives it, found on the link: there may be no API server to ask.
fn address_of(cluster: &Cluster) -> Result<SocketAddr> {
    let of_pool = (240..=250).map(|last| SocketAddr::from(([192, 0, 2, last], 80)));
    let mut answering = of_pool.filter(|to| {
        // Every other Service answers too, but only the entry knows no such host.
        cluster.topology.client.run(|| probe::get(*to, "nobody.example", "/")).is_ok_and(|(code, _)| code == 404)
    });
    answering.next().context("nobody serves the entry")
}

/// The process of the proxy on this node.
fn process(node: &str) -> Result<i32> {
    let wanted = format!("NODE_NAME={node}");
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while it is looked at.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        let mut words = line.split(|byte| *byte == 0);
        if words.next() == Some(b"/ferrogate")
            && words.next() == Some(b"proxy")
            && environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
        {
            return Ok(pid);
        }
    }
    anyhow::bail!("no proxy runs on {node}")
}
