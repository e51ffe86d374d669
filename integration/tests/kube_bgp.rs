//! BGP from objects at a real API server to a route in a router, and back to what people look at. The speaker has the
//! rights of `examples/install`; the router is ExaBGP, on the loopback like everything here.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{net::Ipv4Addr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use ferrogate_integration::{
    kube::{ControlPlane, Options, install::NAMESPACE, product::Ferrogate},
    lab::wait::until,
    netns::Namespace,
    router::{Config, Neighbor, Router, Vendor},
    workspace,
};
use serde_json::Value;

/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(60);

/// What the peer's Secret says.
const PASSWORD: &str = "not-to-be-shown";

fn network(node: Ipv4Addr, router: Ipv4Addr) -> String {
    format!(
        "
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: {{ name: main, namespace: {NAMESPACE} }}
spec: {{ addresses: [203.0.113.0/24] }}
---
apiVersion: ferrogate.io/v1beta1
kind: BGPAdvertisement
metadata: {{ name: main, namespace: {NAMESPACE} }}
spec: {{ communities: ['64500:7'], med: 20 }}
---
apiVersion: ferrogate.io/v1beta1
kind: BGPPeer
metadata: {{ name: tor-a, namespace: {NAMESPACE} }}
spec:
  myASN: 64500
  peerASN: 64512
  peerAddress: {router}
  sourceAddress: {node}
  ebgpMultiHop: true
  holdTime: 9s
  passwordSecret: {{ name: tor-a }}
---
apiVersion: v1
kind: Service
metadata: {{ name: web }}
spec: {{ type: LoadBalancer, ports: [{{ port: 80 }}] }}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: web, labels: {{ kubernetes.io/service-name: web }} }}
addressType: IPv4
ports: [{{ port: 8080 }}]
endpoints: [{{ addresses: [10.0.0.1], conditions: {{ ready: true }} }}]
---
apiVersion: v1
kind: Node
metadata: {{ name: node-a }}
"
    )
}

fn secret() -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{ name: tor-a, namespace: {NAMESPACE} }}\n\
         type: kubernetes.io/basic-auth\nstringData: {{ password: {PASSWORD} }}\n"
    )
}

/// All objects of a kind in our namespace.
fn list(plane: &ControlPlane, kind: &str) -> Result<Vec<Value>> {
    let args = ["get", kind, "--namespace", NAMESPACE, "--output", "json"];
    let list: Value = serde_json::from_str(&plane.kubectl(args)?)?;
    Ok(list["items"].as_array().context("a list")?.clone())
}

/// The only session there is, once it is as wanted.
fn session(plane: &ControlPlane, is_wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let sessions = list(plane, "bgpsessionstatuses.ferrogate.io")?;
    ensure!(sessions.len() == 1 && is_wanted(&sessions[0]["status"]), "{sessions:#?}");
    Ok(sessions[0]["status"].clone())
}

#[test]
fn m_135_m_136_m_146_a_service_becomes_a_route_once_the_secret_is_there_and_statuses_say_how_it_stands() {
    let [second, third] = rand::random::<[u8; 2]>().map(|octet| octet.clamp(1, 254));
    let (node, router) = (Ipv4Addr::new(127, second, third, 1), Ipv4Addr::new(127, second, third, 2));
    let here = Namespace::here("this machine").unwrap();
    let neighbor = Neighbor { password: Some(PASSWORD.to_owned()), ..Neighbor::new(node, router, 64500) };
    let config = Config { asn: 64512, identifier: router, neighbors: vec![neighbor], extra: String::new() };
    let router = Router::start(Vendor::Exabgp, &here, &config).unwrap();
    let plane = ControlPlane::start(Options::default()).unwrap();
    plane.install().unwrap();
    plane.apply(&network(node, config.identifier)).unwrap();
    let mut controller = Ferrogate::start(&plane, "controller", "a", &[]).unwrap();
    controller.wait_ready().unwrap();
    let mut speaker = Ferrogate::start(&plane, "speaker", "a", &["--node", "node-a"]).unwrap();
    speaker.wait_ready().unwrap();
    let shown = |error: anyhow::Error, speaker: &Ferrogate| -> Value { panic!("{error:#}\n{}", speaker.output()) };

    // Without the Secret there is no session, and it says so.
    let idle = until(LIMIT, || session(&plane, |status| status["state"] == "Idle"));
    let idle = idle.unwrap_or_else(|error| shown(error, &speaker));
    assert!(idle["trouble"].as_str().is_some_and(|trouble| trouble.contains("Secret")), "{idle}");

    plane.apply(&secret()).unwrap();

    let address = until(LIMIT, || {
        let args = ["get", "service", "web", "--output", "jsonpath={.status.loadBalancer.ingress[0].ip}"];
        Ok::<_, anyhow::Error>(format!("{}/32", plane.kubectl(args)?).parse()?)
    });
    let route = router.wait_for_route(address.unwrap(), |_| true);
    let route = route.unwrap_or_else(|error| panic!("{error:#}\n{}", speaker.output()));
    assert_eq!((route.as_path, route.multi_exit_disc), (vec![64500], Some(20)));
    assert_eq!(route.communities, ["64500:7"]);
    let up = until(LIMIT, || session(&plane, |status| status["state"] == "Established" && status["prefixesSent"] == 1));
    let up = up.unwrap_or_else(|error| shown(error, &speaker));
    assert_eq!(up["remoteASN"], 64512, "{up}");
    let advertised = until(LIMIT, || {
        let all = list(&plane, "servicebgpstatuses.ferrogate.io")?;
        ensure!(all.iter().any(|one| one["status"]["serviceName"] == "web"), "{all:#?}");
        Ok::<_, anyhow::Error>(all)
    });
    assert_eq!(advertised.unwrap()[0]["status"]["peers"], serde_json::json!(["tor-a"]));
    let mut status = Command::new(workspace::ship().unwrap());
    let status = status.args(["status", "bgp", "--output", "json"]).env("KUBECONFIG", plane.kubeconfig()).output();
    let status = String::from_utf8(status.unwrap().stdout).unwrap();
    assert!(status.contains("Established"), "{status}");

    plane.kubectl(["delete", "bgpadvertisement.ferrogate.io", "main", "--namespace", NAMESPACE]).unwrap();
    until(LIMIT, || {
        ensure!(router.count()? == 0 && list(&plane, "servicebgpstatuses.ferrogate.io")?.is_empty(), "still there");
        Ok::<_, anyhow::Error>(())
    })
    .unwrap();

    assert_eq!(plane.forbidden(NAMESPACE).unwrap(), []);
    assert!(!speaker.output().contains(PASSWORD), "the password stands in the log");
    assert!(speaker.stop().unwrap().success());
}
