//! What clients notice when pods come and go, and addresses.

use std::{
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use ferrogate_cluster::translate::service::NODE_ANNOTATION;

use super::{
    scenes::{APPS, LIMIT, Scene, ask, external, name, node_of, owner_among, page},
    stand::Cluster,
};
use crate::{
    kube::install::NAMESPACE,
    lab::{
        neighbours::one_owner,
        probe,
        topology::{NODES, Node},
        wait::until,
    },
};

/// Time between two questions while something is replaced.
const RHYTHM: Duration = Duration::from_millis(20);

/// The only pod of a Service moves to another node, and its address after it.
pub fn a_pod_goes_away(scene: &mut Scene<'_>) -> Option<()> {
    scene.check("Local: the address follows the only pod to another node", |cluster| {
        let to = external(cluster, "single", false)?;
        let pods = cluster.wait_pods(APPS, "app=single", 1, LIMIT)?;
        let before = pods.first().context("no pod")?;
        let from = owner_among(cluster, to.ip(), &[node_of(before)])?;
        until(LIMIT, || page(cluster, to, "/"))?;
        cluster.plane.kubectl(["cordon", &from.name])?;
        let moved = (|| {
            cluster.plane.kubectl(["delete", "pod", name(before), "--wait=false"])?;
            let pods = cluster.wait_pods(APPS, "app=single", 1, LIMIT)?;
            let after = pods.first().context("no pod")?;
            let owner = owner_among(cluster, to.ip(), &[node_of(after)])?;
            ensure!(owner.name != from.name, "the pod came back to {}", from.name);
            let answer = until(LIMIT, || page(cluster, to, "/"))?;
            Ok(((), format!("{to} moved from {} to {}: {answer}", from.name, owner.name)))
        })();
        cluster.plane.kubectl(["uncordon", &from.name])?;
        moved
    })
}

/// Every pod of a Deployment is replaced while the client asks.
pub fn a_deployment_is_restarted(scene: &mut Scene<'_>) -> Option<()> {
    scene.check("a rolling restart drops no request", |cluster| {
        let to = external(cluster, "web", false)?;
        let before = cluster.wait_pods(APPS, "app=web", usize::from(NODES), LIMIT)?;
        until(LIMIT, || page(cluster, to, "/"))?;
        let stop = AtomicBool::new(false);
        let (done, asked, failed) = thread::scope(|scope| {
            let client = scope.spawn(|| {
                cluster.topology.client.run(|| {
                    let (mut asked, mut failed) = (0_u32, Vec::new());
                    while !stop.load(Ordering::Relaxed) {
                        let next = Instant::now() + RHYTHM;
                        asked += 1;
                        failed.extend(ask(to, "/").err());
                        thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                    (asked, failed)
                })
            });
            let done = restart(cluster);
            stop.store(true, Ordering::Relaxed);
            let (asked, failed) = client.join().unwrap_or_default();
            (done, asked, failed)
        });
        let after = done?;
        ensure!(
            after.iter().all(|pod| !before.iter().any(|old| name(old) == name(pod))),
            "some pods were not replaced"
        );
        let first = failed.first().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(failed.is_empty(), "{} of {asked} requests failed, the first because: {first}", failed.len());
        Ok(((), format!("{asked} requests, all answered")))
    })
}

fn restart(cluster: &Cluster) -> Result<Vec<k8s_openapi::api::core::v1::Pod>> {
    cluster.plane.kubectl(["rollout", "restart", "deployment/web"])?;
    cluster.plane.kubectl(["rollout", "status", "deployment/web", "--timeout=60s"])?;
    cluster.wait_pods(APPS, "app=web", usize::from(NODES), LIMIT)
}

/// What speakers need to pass packets on, as docs/layer2.md says, and do without unless they are given it.
const NET_ADMIN: &str = r#"[{"op": "add", "path": "/spec/template/spec/containers/0/securityContext/capabilities/add/-",
    "value": "NET_ADMIN"}]"#;

/// A person moves addresses by which the client has connections: kube-proxy of the node where they began goes on with them,
/// although their packets come by the next.
pub fn an_address_is_moved(scene: &mut Scene<'_>) -> Option<()> {
    let speakers = ["daemonset/ferrogate-speaker", "--namespace", NAMESPACE];
    let replace = |cluster: &Cluster, command: &[&str]| {
        cluster.plane.kubectl(command.iter().copied().chain(speakers))?;
        cluster.plane.kubectl(["rollout", "status", "--timeout=180s"].into_iter().chain(speakers))
    };
    scene.check("connections through kube-proxy stand while their address is moved", |cluster| {
        replace(cluster, &["patch", "--type=json", "--patch", NET_ADMIN])?;
        let moved = move_connections(cluster);
        let left = cluster.plane.kubectl(["annotate", "service", "web", &format!("{NODE_ANNOTATION}-")]);
        let undone = replace(cluster, &["rollout", "undo"]);
        let text = moved?;
        left.and(undone)?;
        Ok(((), text))
    })
}

fn move_connections(cluster: &Cluster) -> Result<String> {
    let [from, to, ..] = &cluster.topology.nodes[..] else { bail!("there are too few nodes") };
    let addresses = [external(cluster, "web", false)?, external(cluster, "web", true)?];
    let wish = |node: &Node| {
        let wish = format!("{NODE_ANNOTATION}={}", node.name);
        cluster.plane.kubectl(["annotate", "--overwrite", "service", "web", &wish])
    };
    let goes_to = |address: SocketAddr, node: &Node| {
        until(LIMIT, || {
            let known = cluster.topology.client.links(async |links| links.neighbour(address.ip()).await)?;
            ensure!(known == Some(node.mac), "for {address} the client goes to {known:?}, not to {}", node.name);
            Ok(())
        })
    };
    wish(from)?;
    let mut stand = Vec::new();
    for address in addresses {
        owner_among(cluster, address.ip(), &[&from.name])?;
        until(LIMIT, || page(cluster, address, "/"))?;
        goes_to(address, from)?;
        let stream = cluster.topology.client.run(|| probe::connect(address, None, LIMIT)).context("connecting")?;
        let pod = pod_behind(&stream)?;
        stand.push((address, stream, pod));
    }
    wish(to)?;
    let mut text = format!("from {} to {}", from.name, to.name);
    for (address, stream, before) in stand {
        // Packets are passed on for a few seconds only, and so nobody else is asked first.
        goes_to(address, to)?;
        let after = pod_behind(&stream).with_context(|| format!("after {address} had moved to {}", to.name))?;
        ensure!(after == before, "{address} was answered by {before} and then by {after}");
        text.push_str(&format!("; {address} is answered by {after} before and after"));
    }
    Ok(text)
}

/// Which pod answers on a connection.
fn pod_behind(stream: &TcpStream) -> Result<String> {
    let answer = probe::get_on(stream, "web.example", "/")?;
    ensure!(answer.code == 200, "answered {}", answer.code);
    Ok(answer.body.trim_end().to_owned())
}

/// The speaker that owns an address is deleted: another one takes it.
pub fn a_speaker_goes_away(scene: &mut Scene<'_>) -> Option<()> {
    scene.check("a speaker pod is deleted: its address moves, and is answered", |cluster| {
        let to = external(cluster, "web", false)?;
        let (owner, mac) = until(LIMIT, || one_owner(&cluster.topology, to.ip()))?;
        let node = &cluster.topology.nodes[owner].name;
        until(LIMIT, || page(cluster, to, "/"))?;
        let labels = "app.kubernetes.io/name=ferrogate,app.kubernetes.io/component=speaker";
        let speakers = cluster.pods(NAMESPACE, labels)?;
        let speaker = speakers.iter().find(|pod| node_of(pod) == node).context("no speaker there")?;
        let begun = Instant::now();
        cluster.plane.kubectl(["delete", "pod", name(speaker), "--namespace", NAMESPACE, "--wait=false"])?;
        // The client hears of it unasked; the owner may take it back as soon as its new speaker runs.
        let now = until(LIMIT, || {
            let known = cluster.topology.client.links(async |links| links.neighbour(to.ip()).await)?;
            let known = known.context("the client knows nobody")?;
            ensure!(known != mac, "the client still goes to {mac}");
            Ok(known)
        })?;
        let took = begun.elapsed();
        let other = cluster.topology.nodes.iter().find(|node| node.mac == now).context("moved to no node")?;
        let answer = until(LIMIT, || page(cluster, to, "/"))?;
        cluster.wait_pods(NAMESPACE, labels, usize::from(NODES), LIMIT)?;
        Ok(((), format!("{to} moved from {node} to {} in {} ms: {answer}", other.name, took.as_millis())))
    })
}
