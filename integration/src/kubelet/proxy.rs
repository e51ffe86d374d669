//! The real kube-proxy in a node's namespace, by nftables: cluster IPs, NodePorts and external addresses.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{
    kube::process::{Keeper, Process, tied},
    lab::topology::Node,
};

/// Where it says whether it works, on every address of the node.
pub const HEALTH: u16 = 10256;

/// What kube-proxy cannot do without, and how to get it.
///
/// # Errors
/// When the program `nft` is not there.
pub fn check() -> Result<()> {
    let mut nft = std::process::Command::new("nft");
    let found = nft.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    ensure!(found.is_ok_and(|status| status.success()), "kube-proxy needs the program nft: apt-get install nftables");
    Ok(())
}

/// kube-proxy on one node. It is killed when this is dropped; what it told the kernel stays.
#[derive(Debug)]
pub struct KubeProxy {
    // Ends before the thread it is tied to.
    process: Process,
    _keeper: Keeper,
}

impl KubeProxy {
    /// Starts it with its kubeconfig, as user `system:kube-proxy`; its log and configuration go to `folder`.
    ///
    /// # Errors
    /// When a file cannot be written or the program cannot be started.
    pub fn start(node: &Node, program: &Path, kubeconfig: &Path, folder: &Path) -> Result<Self> {
        let name = format!("kube-proxy-{}", node.name);
        let configuration = folder.join(format!("{name}.json"));
        fs::write(&configuration, configure(&node.name, kubeconfig).to_string())
            .with_context(|| format!("writing {}", configuration.display()))?;
        let keeper = node.namespace.run(Keeper::start).context("making a thread for kube-proxy")?;
        let mut command = tied(program);
        command.arg("--config").arg(&configuration);
        let process = Process::start(&keeper, &name, command, &folder.join(format!("{name}.log")))?;
        Ok(Self { process, _keeper: keeper })
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn configure(node: &str, kubeconfig: &Path) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": node,
        "clientConnection": { "kubeconfig": kubeconfig },
        "detectLocalMode": "NodeCIDR",
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": format!("0.0.0.0:{HEALTH}"),
        "metricsBindAddress": "127.0.0.1:10249",
        // A namespace may not change what all namespaces share.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        "nftables": { "minSyncPeriod": "0s", "syncPeriod": "30s" },
    })
}
