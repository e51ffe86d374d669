//! What the lab shows in a cluster.
//!
//! To show something more, write a function `fn(&mut Scene<'_>) -> Option<()>` in a file of its own beside this one,
//! and name it in [`SCENES`]. It finds everything running: Ferrogate from `examples/install`, and what `apps.yaml`
//! has. It calls [`Scene::check`] for each thing that should hold, with a closure that waits by
//! [`until`] as long as it may take; it returns `None` when the rest stands on what failed;
//! and it leaves the cluster as it found it, for those after it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1 as core;

use super::{
    admission, entry, moves, rights,
    stand::{Cluster, cluster_address},
    troubles,
};
use crate::{
    kube::install::NAMESPACE,
    lab::{
        neighbours::one_owner,
        probe,
        report::Report,
        topology::{CLIENT, CLIENT_V6, NODES, Node, uplink, uplink_v6},
        wait::until,
    },
};

/// How long anything may take to become true.
pub const LIMIT: Duration = Duration::from_secs(30);

/// How long it may take until everything has started, on a machine that is busy otherwise too.
const START: Duration = Duration::from_secs(120);

/// The namespace of what `apps.yaml` has.
pub const APPS: &str = "default";

/// Everything that is shown, in order.
const SCENES: &[fn(&mut Scene<'_>) -> Option<()>] = &[
    external_addresses,
    other_ways,
    entry::every_way_in,
    entry::the_proxies_are_updated,
    moves::a_pod_goes_away,
    moves::a_deployment_is_restarted,
    moves::a_speaker_goes_away,
    moves::an_address_is_moved,
    admission::refuses,
    rights::as_shipped,
    troubles::are_told,
    // The last, since not everything of Kubernetes itself is well for long after its API server has been away.
    entry::a_proxy_is_killed,
];

/// A cluster that is shown, and what was seen so far.
pub struct Scene<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    report: &'a mut Report,
}

/// Shows everything. It ends early when a scene fails on which the rest stands.
pub fn show(cluster: &Cluster, report: &mut Report) {
    let mut scene = Scene { cluster, report };
    if scene.settle().is_none() || SCENES.iter().any(|shown| shown(&mut scene).is_none()) {
        let told = "not shown, because it stands on what failed";
        scene.report.add("the rest", Duration::ZERO, Err::<String, _>(told.to_owned()));
    }
}

impl Scene<'_> {
    /// Looks whether something holds. What is returned says what was seen; it is none when it does not hold.
    pub fn check<T>(&mut self, name: &str, look: impl FnOnce(&Cluster) -> Result<(T, String)>) -> Option<T> {
        let mut found = None;
        let cluster = self.cluster;
        self.report.check(name, || {
            let (value, text) = look(cluster)?;
            found = Some(value);
            anyhow::Ok(text)
        });
        found
    }

    /// Installs Ferrogate and what it is to carry, and waits until everything runs.
    fn settle(&mut self) -> Option<()> {
        self.report.add(
            "control plane, kubelets and kube-proxies are started",
            self.cluster.took,
            Ok::<_, String>(format!("API server at {}", self.cluster.plane.api_server())),
        );
        self.check("Ferrogate is installed from its manifests", |cluster| {
            cluster.plane.install_whole()?;
            let applied = cluster.plane.apply(include_str!("apps.yaml"))?;
            Ok(((), format!("and {} objects to carry", applied.lines().count())))
        })?;
        self.check("three nodes are ready", |cluster| {
            let nodes = until(START, || cluster.ready_nodes(usize::from(NODES)))?;
            Ok(((), nodes.join(", ")))
        })?;
        self.check("its pods are ready: controllers, and a speaker and a proxy on each node", |cluster| {
            let mut text = Vec::new();
            for (component, count) in [("controller", 2), ("speaker", 3), ("proxy", 3)] {
                let labels = format!("app.kubernetes.io/name=ferrogate,app.kubernetes.io/component={component}");
                cluster.wait_pods(NAMESPACE, &labels, count, START)?;
                text.push(format!("{count} of {component}"));
            }
            Ok(((), text.join(", ")))
        })?;
        self.check("a Deployment has a pod on each node", |cluster| {
            let pods = cluster.wait_pods(APPS, "app=web", usize::from(NODES), LIMIT)?;
            cluster.wait_pods(APPS, "app=single", 1, LIMIT)?;
            let nodes: BTreeSet<_> = pods.iter().map(node_of).collect();
            ensure!(nodes.len() == usize::from(NODES), "they are on {nodes:?} only");
            let text: Vec<_> = pods.iter().map(|pod| format!("{} on {}", name(pod), node_of(pod))).collect();
            Ok(((), text.join(", ")))
        })?;
        self.check("each Service has its addresses", |cluster| {
            let mut text = Vec::new();
            for service in ["web", "web-local", "single"] {
                let addresses = cluster.wait_addresses(APPS, service, LIMIT)?;
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                text.push(format!("{service} {}", addresses.join(" ")));
            }
            Ok(((), text.join("; ")))
        })
    }
}

/// The client reaches Services by their external addresses, which it asked the link for.
fn external_addresses(scene: &mut Scene<'_>) -> Option<()> {
    for v6 in [false, true] {
        let family = if v6 { "IPv6" } else { "IPv4" };
        scene.check(&format!("Cluster, {family}: the client reaches every pod"), |cluster| {
            let to = external(cluster, "web", v6)?;
            let (owner, mac) = until(LIMIT, || one_owner(&cluster.topology, to.ip()))?;
            let seen = every_pod(cluster, to)?;
            let owner = &cluster.topology.nodes[owner].name;
            Ok(((), format!("{to} is at {owner} ({mac}); answers from {}", seen.join(", "))))
        })?;
        scene.check(&format!("Local, {family}: the pod sees the client's address"), |cluster| {
            let to = external(cluster, "web-local", v6)?;
            let (owner, _) = until(LIMIT, || one_owner(&cluster.topology, to.ip()))?;
            let expected: IpAddr = if v6 { CLIENT_V6.into() } else { CLIENT.into() };
            let seen = until(LIMIT, || page(cluster, to, "/clientip"))?;
            let seen: SocketAddr = seen.parse().with_context(|| format!("not an address: {seen}"))?;
            ensure!(seen.ip().to_canonical() == expected, "the pod sees {seen} instead of {expected}");
            Ok(((), format!("{to} is at {}, whose pod sees {seen}", cluster.topology.nodes[owner].name)))
        })?;
    }
    Some(())
}

/// The same Service by the ways that need no Ferrogate.
fn other_ways(scene: &mut Scene<'_>) -> Option<()> {
    for v6 in [false, true] {
        let family = if v6 { "IPv6" } else { "IPv4" };
        scene.check(&format!("{family}: by NodePort from the client, by cluster IP from a node"), |cluster| {
            let service = cluster.service(APPS, "web")?;
            let (address, port) = cluster_address(&service, v6).context("no cluster IP")?;
            let node: IpAddr = if v6 { uplink_v6(2).into() } else { uplink(2).into() };
            let by_port = until(LIMIT, || page(cluster, (node, port).into(), "/"))?;
            let inside = &cluster.topology.nodes[0];
            let by_address = until(LIMIT, || inside.namespace.run(|| ask(address, "/")))?;
            Ok(((), format!("{node} port {port}: {by_port}; {address}: {by_address}")))
        })?;
    }
    Some(())
}

/// An external address of a Service of one family, with port 80.
pub fn external(cluster: &Cluster, service: &str, v6: bool) -> Result<SocketAddr> {
    let addresses = cluster.wait_addresses(APPS, service, LIMIT)?;
    let address = addresses.into_iter().find(|address| address.is_ipv6() == v6);
    Ok(SocketAddr::new(address.with_context(|| format!("{service} has no address of that family"))?, 80))
}

/// What a page says to the client.
pub fn page(cluster: &Cluster, to: SocketAddr, path: &str) -> Result<String> {
    cluster.topology.client.run(|| ask(to, path))
}

/// What a page says in this namespace.
pub fn ask(to: SocketAddr, path: &str) -> Result<String> {
    let (code, body) = probe::get(to, "web.example", path)?;
    ensure!(code == 200, "status {code}: {}", body.trim_end());
    Ok(body.trim_end().to_owned())
}

/// Asks until every pod of `web` has answered; returns their names.
fn every_pod(cluster: &Cluster, to: SocketAddr) -> Result<Vec<String>> {
    let wanted: BTreeSet<_> = cluster.pods(APPS, "app=web")?.iter().map(|pod| name(pod).to_owned()).collect();
    let mut seen = BTreeSet::new();
    until(LIMIT, || {
        let answer = page(cluster, to, "/")?;
        seen.extend(answer.split(' ').next().map(str::to_owned));
        ensure!(wanted.is_subset(&seen), "{seen:?} of {wanted:?} have answered");
        Ok(seen.iter().cloned().collect())
    })
}

/// Who owns an address, once it is one of these nodes.
pub fn owner_among<'a>(cluster: &'a Cluster, address: IpAddr, nodes: &[&str]) -> Result<&'a Node> {
    until(LIMIT, || {
        let (owner, _) = one_owner(&cluster.topology, address)?;
        let node = &cluster.topology.nodes[owner];
        ensure!(nodes.contains(&node.name.as_str()), "{address} is at {}, not at {}", node.name, nodes.join(" or "));
        Ok(node)
    })
}

/// The name of a pod.
pub fn name(pod: &core::Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The name of its node.
pub fn node_of(pod: &core::Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}
