//! A whole cluster of network namespaces: a real control plane, three nodes with a kubelet and a real kube-proxy each,
//! and a client that knows nothing of Kubernetes.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client, api::ListParams};

use crate::{
    kube::{ControlPlane, Options, plane},
    kubelet::{self, Kubelet, image::Images, proxy, proxy::KubeProxy},
    lab::{
        topology::{Node, Plan, Topology, uplink, uplink_v6},
        wait::until,
    },
    netns::Namespace,
};

/// Where cluster IPs come from: nobody routes them.
const SERVICES: &str = "203.0.113.0/24,2001:db8:5::/112";

/// How long one question to the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The cluster. Everything ends when it is dropped. A test may start one too, as root; its `launcher` is
/// `env!("CARGO_BIN_EXE_lab")`.
#[derive(Debug)]
pub struct Cluster {
    // What asks the API server ends before it does.
    kubelets: Vec<Kubelet>,
    proxies: Vec<KubeProxy>,
    /// The control plane, which knows how to apply manifests.
    pub plane: ControlPlane,
    /// The network namespace it is in.
    pub namespace: Namespace,
    /// Switch, nodes and client.
    pub topology: Topology,
    /// How long it took to start.
    pub took: Duration,
    folder: PathBuf,
}

impl Cluster {
    /// Starts everything, with its files below `folder`; `launcher` is the lab's own program. Nodes become ready soon
    /// after this returns.
    ///
    /// # Errors
    /// When the kernel refuses, a program is missing, or something does not start.
    pub fn start(folder: &Path, launcher: &Path, images: &Images) -> Result<Self> {
        let begun = Instant::now();
        proxy::check()?;
        let topology = Topology::without_pods(Plan::default())?;
        let namespace = Namespace::new("plane")?;
        let address = uplink(0);
        topology.attach(&namespace, [address.into(), uplink_v6(0).into()])?;
        let options = Options {
            address: Some(address.into()),
            service_cidrs: SERVICES.to_owned(),
            controller_manager: true,
            scheduler: true,
            // Webhooks are reached at their pods: no kube-proxy runs beside the API server.
            api_server_flags: vec!["--enable-aggregator-routing=true".to_owned()],
            ..Options::default()
        };
        let plane = namespace.run(|| ControlPlane::start(options))?;
        let folder = folder.to_owned();
        let (kubelets, proxies, took) = (Vec::new(), Vec::new(), Duration::ZERO);
        let mut cluster = Self { kubelets, proxies, plane, namespace, topology, took, folder };
        fs::create_dir_all(cluster.logs()).context("making a folder for logs")?;
        let for_proxies = cluster.plane.user_kubeconfig("system:kube-proxy", None)?;
        let program = cluster.plane.programs().path("kube-proxy")?;
        for node in &cluster.topology.nodes {
            let user = format!("system:node:{}", node.name);
            let options = kubelet::Options {
                kubeconfig: cluster.plane.user_kubeconfig(&user, Some("system:nodes"))?,
                launcher: launcher.to_owned(),
                images: images.clone(),
                folder: cluster.folder.clone(),
            };
            // What is nowhere on the link goes to a router, as on every real node: kube-proxy changes only what has
            // a route at first. This one forwards nothing.
            node.namespace.links(async |links| {
                links.add_route([0; 4].into(), 0, uplink(0).into()).await?;
                links.add_route([0; 16].into(), 0, uplink_v6(0).into()).await
            })?;
            cluster.kubelets.push(Kubelet::start(node, options)?);
            cluster.proxies.push(KubeProxy::start(node, &program, &for_proxies, &cluster.logs())?);
        }
        cluster.took = begun.elapsed();
        Ok(cluster)
    }

    /// Where kubelets, kube-proxies and containers write what they have to say.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Asks the API server as an administrator, whatever thread this is.
    ///
    /// # Errors
    /// What the question returns, or that there was no answer in time.
    pub fn ask<T: Send>(&self, question: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        let kubeconfig = self.plane.kubeconfig();
        self.namespace.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let asked = async { question(plane::client(&kubeconfig).await?).await };
                tokio::time::timeout(PATIENCE, asked).await.context("the API server does not answer")?
            })
        })
    }

    /// The names of the nodes that are ready, once there are so many.
    ///
    /// # Errors
    /// When there are fewer, or the API server does not tell.
    pub fn ready_nodes(&self, count: usize) -> Result<Vec<String>> {
        let nodes =
            self.ask(async |client| Ok(Api::<core::Node>::all(client).list(&ListParams::default()).await?.items))?;
        let is_ready = |node: &core::Node| {
            let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        };
        let ready: Vec<_> =
            nodes.iter().filter(|node| is_ready(node)).filter_map(|node| node.metadata.name.clone()).collect();
        ensure!(ready.len() >= count, "{} of {count} nodes are ready", ready.len());
        Ok(ready)
    }

    /// The pods of a namespace that a label selector names, those that are going away included.
    ///
    /// # Errors
    /// When the API server does not tell.
    pub fn pods(&self, namespace: &str, labels: &str) -> Result<Vec<core::Pod>> {
        self.ask(async |client| {
            let api: Api<core::Pod> = Api::namespaced(client, namespace);
            Ok(api.list(&ListParams::default().labels(labels)).await?.items)
        })
    }

    /// Waits until a selector names exactly `count` pods and all are ready; returns them by name.
    ///
    /// # Errors
    /// When it did not come to that in time; the text says what stood in the way.
    pub fn wait_pods(&self, namespace: &str, labels: &str, count: usize, limit: Duration) -> Result<Vec<core::Pod>> {
        until(limit, || {
            std::thread::sleep(POLL);
            let mut pods = self.pods(namespace, labels)?;
            let troubles: Vec<_> = pods.iter().filter_map(trouble).collect();
            ensure!(
                pods.len() == count && troubles.is_empty(),
                "{} of {count} pods of {labels}: {}",
                pods.len(),
                troubles.join("; ")
            );
            pods.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
            Ok(pods)
        })
    }

    /// A Service.
    ///
    /// # Errors
    /// When the API server does not tell.
    pub fn service(&self, namespace: &str, name: &str) -> Result<core::Service> {
        self.ask(async |client| Ok(Api::<core::Service>::namespaced(client, namespace).get(name).await?))
    }

    /// Waits until a Service has as many external addresses as it has families; returns them, IPv4 first.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn wait_addresses(&self, namespace: &str, name: &str, limit: Duration) -> Result<Vec<IpAddr>> {
        until(limit, || {
            std::thread::sleep(POLL);
            let service = self.service(namespace, name)?;
            let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref()).map_or(1, Vec::len);
            let mut addresses = external(&service);
            ensure!(addresses.len() == families, "{name} has {} of {families} addresses", addresses.len());
            addresses.sort_by_key(IpAddr::is_ipv6);
            Ok(addresses)
        })
    }

    /// The node of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.topology.nodes.iter().find(|node| node.name == name).with_context(|| format!("there is no node {name}"))
    }

    /// How a person uses kubectl on it, in words.
    pub fn remote(&self) -> String {
        let kubectl = self.plane.programs().folder().join("kubectl");
        format!(
            "in a shell of namespace plane, as an administrator:\n  {} --kubeconfig {} get pods --all-namespaces\nlogs are in {}",
            kubectl.display(),
            self.plane.kubeconfig().display(),
            self.logs().display()
        )
    }

    /// Every log of kubelets, kube-proxies and containers.
    pub fn all_logs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.logs()).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut logs: Vec<_> = entries.filter(|path| path.extension().is_some_and(|kind| kind == "log")).collect();
        logs.sort();
        logs
    }
}

/// Time between two questions to the API server.
const POLL: Duration = Duration::from_millis(50);

/// Why a pod is not simply ready, if so.
pub fn trouble(pod: &core::Pod) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(format!("{name} is going away"));
    }
    let status = pod.status.clone().unwrap_or_default();
    let is_ready = |condition: &core::PodCondition| condition.type_ == "Ready" && condition.status == "True";
    if status.conditions.iter().flatten().any(is_ready) {
        return None;
    }
    let waiting =
        status.container_statuses.iter().flatten().find_map(|container| container.state.as_ref()?.waiting.as_ref());
    let why = match waiting {
        Some(waiting) => format!(
            "{}: {}",
            waiting.reason.as_deref().unwrap_or_default(),
            waiting.message.as_deref().unwrap_or_default()
        ),
        None => status
            .conditions
            .iter()
            .flatten()
            .filter(|condition| condition.status != "True")
            .filter_map(|condition| condition.message.clone())
            .next()
            .unwrap_or_else(|| "no word yet".to_owned()),
    };
    Some(format!("{name} is not ready: {why}"))
}

/// The external addresses of a Service.
pub fn external(service: &core::Service) -> Vec<IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    entries.filter_map(|entry| entry.ip.as_ref()?.parse().ok()).collect()
}

/// The address of a pod, of one family.
pub fn pod_address(pod: &core::Pod, v6: bool) -> Option<IpAddr> {
    let addresses = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    addresses.filter_map(|address| address.ip.parse().ok()).find(|address: &IpAddr| address.is_ipv6() == v6)
}

/// A port of a Service of one family: its cluster IP with the port, and its NodePort.
pub fn cluster_address(service: &core::Service, v6: bool) -> Option<(SocketAddr, u16)> {
    let spec = service.spec.as_ref()?;
    let port = spec.ports.as_ref()?.first()?;
    let address = spec.cluster_ips.iter().flatten().filter_map(|address| address.parse().ok());
    let address = address.into_iter().find(|address: &IpAddr| address.is_ipv6() == v6)?;
    let node_port = u16::try_from(port.node_port.unwrap_or_default()).ok()?;
    Some((SocketAddr::new(address, u16::try_from(port.port).ok()?), node_port))
}
