//! The Node object, and the Lease that says that its kubelet lives.

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{coordination::v1 as coordination, core::v1 as core},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::log::Log;
use crate::lab::topology::{MAX_PODS, pod_network, pod_network_v6};

/// The namespace of the Leases of nodes.
const LEASES: &str = "kube-node-lease";

/// How long a Lease is good, in seconds, and how often it is renewed; both as Kubernetes has them.
const LEASE_SECONDS: i32 = 40;
const RENEWAL: Duration = Duration::from_secs(10);

/// Time before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Who writes.
const MANAGER: &str = "kubelet";

/// A node as its object says it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its number, from 1.
    pub number: u8,
    /// The name of its object.
    pub name: String,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
}

impl Identity {
    /// Says that the node is there and ready, until it is heard.
    pub async fn register(&self, client: &Client, log: &Log) {
        let api: Api<core::Node> = Api::all(client.clone());
        let parameters = PatchParams::apply(MANAGER).force();
        loop {
            let done = async {
                api.patch(&self.name, &parameters, &Patch::Apply(self.object())).await?;
                // An apply would take two addresses of one type for one twice.
                api.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(self.status())).await
            };
            match done.await {
                Ok(_) => return log.line(format_args!("the node is registered")),
                Err(error) => log.line(format_args!("registering the node: {error}")),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Says again and again that its kubelet lives.
    pub async fn renew(self: Arc<Self>, client: Client, log: Arc<Log>) {
        let api: Api<coordination::Lease> = Api::namespaced(client, LEASES);
        let parameters = PatchParams::apply(MANAGER).force();
        loop {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": self.name },
                "spec": {
                    "holderIdentity": self.name,
                    "leaseDurationSeconds": LEASE_SECONDS,
                    "renewTime": MicroTime(Timestamp::now()),
                },
            });
            let pause = match api.patch(&self.name, &parameters, &Patch::Apply(lease)).await {
                Ok(_) => RENEWAL,
                Err(error) => {
                    log.line(format_args!("renewing the lease: {error}"));
                    AGAIN
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn object(&self) -> serde_json::Value {
        let pods = [format!("{}/28", pod_network(self.number)), format!("{}/64", pod_network_v6(self.number))];
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {
                    "kubernetes.io/hostname": self.name,
                    "kubernetes.io/os": "linux",
                    "kubernetes.io/arch": architecture(),
                },
            },
            "spec": { "podCIDR": pods[0], "podCIDRs": pods },
        })
    }

    /// Processors and memory are more than a lab ever asks for: what it runs is not measured by a scheduler.
    fn status(&self) -> serde_json::Value {
        let room = json!({
            "cpu": "64",
            "memory": "64Gi",
            "ephemeral-storage": "100Gi",
            "pods": MAX_PODS.to_string(),
        });
        let addresses = self.addresses.iter().map(|address| json!({ "type": "InternalIP", "address": address }));
        let name = json!({ "type": "Hostname", "address": self.name });
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now());
        let condition = |kind: &str, status: &str, reason: &str| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": "",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            })
        };
        json!({
            "status": {
                "capacity": room,
                "allocatable": room,
                "addresses": addresses.chain([name]).collect::<Vec<_>>(),
                "conditions": [
                    condition("Ready", "True", "KubeletReady"),
                    condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                    condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                    condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                ],
                "nodeInfo": {
                    "architecture": architecture(),
                    "operatingSystem": "linux",
                    "osImage": "network namespace",
                    "kernelVersion": std::fs::read_to_string("/proc/sys/kernel/osrelease")
                        .map(|text| text.trim().to_owned()).unwrap_or_default(),
                    "containerRuntimeVersion": "processes://1",
                    "kubeletVersion": "v1.36.0",
                    "kubeProxyVersion": "",
                    "machineID": self.name,
                    "systemUUID": self.name,
                    "bootID": self.name,
                },
            },
        })
    }
}

/// This machine's, as Kubernetes spells it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
