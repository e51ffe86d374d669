//! What the product is told: the applications of the quickstart, at addresses that a router is told of.

use std::fmt::Write;

use serde_json::json;

use super::{Setup, ground::ROUTER};
use crate::lab::{
    layer2::manifests::{Wishes, entry, nodes},
    topology::{POD_ECHO, Plan, pod_address, pod_address_v6},
};

/// The AS of the nodes.
pub const OURS: u32 = 64500;

/// The AS of the router.
pub const THEIRS: u32 = 64512;

/// A Service that comes and goes.
pub const LATE: &str = "late";

/// `network.yaml`: the pool, its announcement to the router, the entry, and the nodes.
pub fn network(plan: Plan, wishes: Wishes, setup: Setup) -> String {
    let peering = peering("198.51.100.1-198.51.100.14, 2001:db8:5::1-2001:db8:5::e", setup);
    peering + &entry(wishes) + &nodes(plan, wishes)
}

/// `network.yaml` with Services that have an IPv4 address each and nothing behind it.
pub fn many(plan: Plan, services: usize, setup: Setup) -> String {
    // Addresses that are set aside for benchmarks (RFC 2544).
    let mut text = peering("198.18.0.0/16", setup) + &nodes(plan, Wishes::default());
    // As programs write them: so many are by nobody's hand.
    for service in 1..=services {
        let name = format!("s-{service}");
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]},
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"port": 8080}],
            "endpoints": [{"addresses": ["198.51.100.18"], "nodeName": "node-1"}],
        });
        let _ = write!(text, "---\n{service}\n---\n{slice}\n");
    }
    text
}

fn peering(ranges: &str, setup: Setup) -> String {
    let Setup { profile, graceful_restart } = setup;
    let interval = profile.interval_ms();
    format!(
        "\
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata:
  name: quickstart
spec:
  addresses: [{ranges}]
---
apiVersion: ferrogate.io/v1beta1
kind: BGPAdvertisement
metadata:
  name: quickstart
spec:
  ipAddressPools: [quickstart]
---
apiVersion: ferrogate.io/v1beta1
kind: BFDProfile
metadata:
  name: watch
spec:
  receiveInterval: {interval}
  transmitInterval: {interval}
  detectMultiplier: 3
---
apiVersion: ferrogate.io/v1beta1
kind: BGPPeer
metadata:
  name: router
spec:
  myASN: {OURS}
  peerASN: {THEIRS}
  peerAddress: {ROUTER}
  dualStackAddressFamily: true
  bfdProfile: watch
  connectTime: 1s
  enableGracefulRestart: {graceful_restart}
"
    )
}

/// `late.yaml`: one more Service.
pub fn late() -> String {
    let mut text = format!(
        "\
apiVersion: v1
kind: Service
metadata: {{name: {LATE}}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports: [{{name: tcp, port: 7000}}]
"
    );
    for (family, address) in [("IPv4", pod_address(1, 1).to_string()), ("IPv6", pod_address_v6(1, 1).to_string())] {
        let _ = write!(
            text,
            "\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {LATE}-{}, labels: {{kubernetes.io/service-name: {LATE}}}}}
addressType: {family}
ports: [{{name: tcp, port: {POD_ECHO}}}]
endpoints: [{{addresses: ['{address}'], nodeName: node-1}}]
",
            family.to_lowercase()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::event::Profile;

    fn documents(text: &str) -> Vec<serde_json::Value> {
        serde_saphyr::from_multiple(text).unwrap()
    }

    #[test]
    fn routers_are_watched_as_the_profile_says() {
        let setup = Setup { profile: Profile::Fast, graceful_restart: true };

        let network = documents(&network(Plan::default(), Wishes::default(), setup));

        let find = |kind: &str| network.iter().find(|object| object["kind"] == kind).unwrap();
        assert_eq!(find("BFDProfile")["spec"]["receiveInterval"], 10);
        assert_eq!(find("BGPPeer")["spec"]["enableGracefulRestart"], true);
        assert_eq!(find("BGPPeer")["spec"]["bfdProfile"], find("BFDProfile")["metadata"]["name"]);
        assert_eq!(find("IPAddressPool")["spec"]["addresses"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn every_service_has_an_endpoint() {
        let setup = Setup { profile: Profile::Default, graceful_restart: false };

        let count = |text: &str, kind: &str| documents(text).iter().filter(|object| object["kind"] == kind).count();
        let many = many(Plan::default(), 3, setup);
        assert_eq!((count(&many, "Service"), count(&many, "EndpointSlice")), (3, 3));
        assert_eq!((count(&late(), "Service"), count(&late(), "EndpointSlice")), (1, 2));
    }
}
