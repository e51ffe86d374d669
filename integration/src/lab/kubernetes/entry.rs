//! The shared Ingress entry: by every way into the cluster, and when its proxies go.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
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

/// A request that is not answered by then has failed.
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
    let stream = while_asked(cluster, to, || {
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
    let Asked { found: next, asked, failed, gap, .. } = stream;
    ensure!(gap <= GAP, "no answer for {} ms", gap.as_millis());
    Ok(((), format!("from {node} to {next}: {} ms without an answer, {failed} of {asked} requests", gap.as_millis())))
}

/// Every proxy is replaced by another one, node by node, while the client asks.
pub fn the_proxies_are_updated(scene: &mut Scene<'_>) -> Option<()> {
    scene.check("a rolling restart replaces every proxy, and the entry answers", |cluster| {
        let to = address(cluster, false)?;
        until(LIMIT, || page(cluster, to, "/"))?;
        let stream = while_asked(cluster, to, || {
            cluster.plane.kubectl(["rollout", "restart", "daemonset/ferrogate-proxy", "--namespace", NAMESPACE])?;
            let status = ["rollout", "status", "daemonset/ferrogate-proxy", "--namespace", NAMESPACE, "--timeout=180s"];
            cluster.plane.kubectl(status)?;
            cluster.wait_pods(NAMESPACE, PROXIES, usize::from(NODES), LIMIT * 2)
        })?;
        let Asked { asked, failed, gap, first, .. } = stream;
        until(LIMIT, || page(cluster, to, "/"))?;
        // What is lost on the way is told, not judged: requests are still reset while one proxy follows another.
        let lost = if failed == 0 { String::new() } else { format!("; the first because: {first}") };
        Ok(((), format!("{failed} of {asked} requests failed, {} ms without an answer at most{lost}", gap.as_millis())))
    })
}

/// What a client saw while something happened.
struct Asked<T> {
    found: T,
    asked: u32,
    failed: u32,
    /// The longest time between two answers.
    gap: Duration,
    /// Why the first one failed.
    first: String,
}

fn while_asked<T>(cluster: &Cluster, to: SocketAddr, happens: impl FnOnce() -> Result<T>) -> Result<Asked<T>> {
    let stop = AtomicBool::new(false);
    let (found, (asked, failed, gap, first)) = thread::scope(|scope| {
        let client = scope.spawn(|| {
            cluster.topology.client.run(|| {
                let (mut asked, mut failed, mut gap, mut first) = (0, 0, Duration::ZERO, String::new());
                let mut answered_at = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let next = Instant::now() + RHYTHM;
                    asked += 1;
                    match hello(to) {
                        Ok(()) => {
                            gap = gap.max(answered_at.elapsed());
                            answered_at = Instant::now();
                        }
                        Err(error) => {
                            failed += 1;
                            if first.is_empty() {
                                first = format!("{error:#}");
                            }
                        }
                    }
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                (asked, failed, gap.max(answered_at.elapsed()), first)
            })
        });
        let found = happens();
        stop.store(true, Ordering::Relaxed);
        (found, client.join().unwrap_or_default())
    });
    Ok(Asked { found: found?, asked, failed, gap, first })
}

/// One request by a connection of its own.
fn hello(to: SocketAddr) -> Result<()> {
    let mut stream = probe::connect(to, None, PATIENCE)?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web.example\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "answered {:?}", answer.lines().next().unwrap_or_default());
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
