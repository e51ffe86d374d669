//! What the product is told: the applications of the quickstart, and a network that can change its mind about nodes.

use std::fmt::Write;

use crate::lab::topology::{POD_ECHO, POD_HTTP, Plan, pod_address, pod_address_v6};

/// What is wanted of the nodes. Without any of it the election decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Which node is to own the addresses, by its number, as `ferrogate move` writes it.
    pub owner: Option<u8>,
    /// Which node is to own nothing and has no pods any more, by its number.
    pub drained: Option<u8>,
}

/// `network.yaml`: the pool, its announcement by the service network, the entry, and the nodes.
pub fn network(plan: Plan, wishes: Wishes) -> String {
    let head = "\
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata:
  name: quickstart
spec:
  addresses:
    - 192.0.2.200-192.0.2.220
    - 2001:db8::200-2001:db8::220
---
apiVersion: ferrogate.io/v1beta1
kind: L2Advertisement
metadata:
  name: quickstart
spec:
  ipAddressPools: [quickstart]
  interfaces: [eth0]
";
    head.to_owned() + &entry(wishes) + &nodes(plan, wishes)
}

/// The Service by which every Ingress is reached.
pub fn entry(wishes: Wishes) -> String {
    let wish = wishes.owner.map(|node| format!("\n    ferrogate.io/announce-from: node-{node}")).unwrap_or_default();
    format!(
        "\
---
apiVersion: v1
kind: Service
metadata:
  name: ingress
  labels:
    ferrogate.io/entry: ingress
  annotations:
    ferrogate.io/allow-shared-ip: quickstart{wish}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports:
    - name: http
      port: 80
"
    )
}

/// The nodes.
pub fn nodes(plan: Plan, wishes: Wishes) -> String {
    let mut text = String::new();
    for node in 1..=plan.nodes {
        let excluded = if wishes.drained == Some(node) {
            "\n    node.kubernetes.io/exclude-from-external-load-balancers: ''"
        } else {
            ""
        };
        text += &format!(
            "---
apiVersion: v1
kind: Node
metadata:
  name: node-{node}
  labels:
    kubernetes.io/hostname: node-{node}{excluded}
status:
  addresses:
    - {{type: InternalIP, address: {}}}
    - {{type: InternalIP, address: '{}'}}
",
            plan.node_address(node),
            plan.node_address_v6(node)
        );
    }
    text
}

/// `endpoints.yaml`: the pods behind each application, by both families.
pub fn endpoints(plan: Plan, wishes: Wishes) -> String {
    let http = format!("  - {{name: http, protocol: TCP, port: {POD_HTTP}}}\n");
    let echo = format!(
        "  - {{name: tcp, protocol: TCP, port: {POD_ECHO}}}\n  - {{name: udp, protocol: UDP, port: {POD_ECHO}}}\n"
    );
    let mut text = String::new();
    for (service, ports, pods) in [("shop", &http, [1].as_slice()), ("cart", &http, &[2]), ("echo", &echo, &[1, 2])] {
        for family in ["IPv4", "IPv6"] {
            text += &format!(
                "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {service}-{}
  labels:
    kubernetes.io/service-name: {service}
addressType: {family}
ports:
{ports}endpoints:
",
                family.to_lowercase()
            );
            for node in (1..=plan.nodes).filter(|node| wishes.drained != Some(*node)) {
                for &pod in pods {
                    let address = match family {
                        "IPv4" => pod_address(node, pod).to_string(),
                        _ => pod_address_v6(node, pod).to_string(),
                    };
                    let _ = writeln!(text, "  - {{addresses: ['{address}'], nodeName: node-{node}}}");
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(text: &str) -> Vec<serde_json::Value> {
        serde_saphyr::from_multiple(text).unwrap()
    }

    #[test]
    fn a_node_that_is_drained_is_excluded_and_has_no_endpoint() {
        let (plan, wishes) = (Plan::default(), Wishes { drained: Some(2), ..Wishes::default() });

        let network = documents(&network(plan, wishes));
        let endpoints = documents(&endpoints(plan, wishes));

        let label = "node.kubernetes.io/exclude-from-external-load-balancers";
        let excluded = network.iter().filter(|object| object["metadata"]["labels"][label].is_string());
        assert_eq!(excluded.map(|object| &object["metadata"]["name"]).collect::<Vec<_>>(), ["node-2"]);
        assert_eq!(endpoints.len(), 6);
        for slice in endpoints {
            let nodes = slice["endpoints"].as_array().unwrap().iter().map(|endpoint| &endpoint["nodeName"]);
            assert!(nodes.clone().count() >= 2 && nodes.clone().all(|node| node != "node-2"), "{slice}");
        }
    }

    #[test]
    fn a_node_that_is_to_own_the_addresses_is_named_by_what_has_them() {
        let network = documents(&network(Plan::default(), Wishes { owner: Some(3), ..Wishes::default() }));

        let service = network.iter().find(|object| object["kind"] == "Service").unwrap();
        assert_eq!(service["metadata"]["annotations"]["ferrogate.io/announce-from"], "node-3");
    }

    #[test]
    fn with_a_management_network_nodes_are_found_there_and_announce_elsewhere() {
        let network = documents(&network(Plan { management: true, ..Plan::default() }, Wishes::default()));

        let node = network.iter().find(|object| object["kind"] == "Node").unwrap();
        assert_eq!(node["status"]["addresses"][0]["address"], "203.0.113.11");
        let advertisement = network.iter().find(|object| object["kind"] == "L2Advertisement").unwrap();
        assert_eq!(advertisement["spec"]["interfaces"], serde_json::json!(["eth0"]));
    }
}
