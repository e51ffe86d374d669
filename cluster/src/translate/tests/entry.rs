//! The shared Ingress entry, as the objects of a cluster make it.

use ferrogate_core::model::entry::{EntryEndpoint, ProxyPod};

use super::*;

const CLASS: &str = "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: ferrogate}\n\
                     spec: {controller: ferrogate.io/ingress-controller}\n";

fn entry(text: &str) -> SharedEntry {
    let mut translator = translator(Source::Kubernetes);
    feed(&mut translator, "f.yaml", text);
    (**translator.snapshot().entry.as_ref().expect("a cluster has an entry")).clone()
}

fn pod(name: &str, more: &str, status: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: ferrogate-system{more}}}\n\
         spec: {{nodeName: a, containers: []}}\nstatus: {status}\n"
    )
}

const PROXY: &str = ", labels: {app.kubernetes.io/component: proxy}";

#[test]
fn only_a_class_of_ours_wishes_for_an_entry() {
    let other = CLASS.replace("ferrogate.io/ingress-controller", "example.com/other");

    assert_eq!(entry(CLASS).wish, Some(EntryWish { node_ports: true }));
    assert_eq!(entry(&other).wish, None);
    assert_eq!(entry("").wish, None);
}

#[test]
fn a_class_may_do_without_node_ports() {
    let without = CLASS.replace("name: ferrogate}", "name: x, annotations: {ferrogate.io/node-ports: \"false\"}}");

    assert_eq!(entry(&without).wish, Some(EntryWish { node_ports: false }));
    assert_eq!(entry(&format!("{without}---\n{CLASS}")).wish, Some(EntryWish { node_ports: true }));
}

#[test]
fn a_folder_tells_of_no_entry() {
    assert_eq!(snapshot(CLASS).entry, None);
}

#[test]
fn a_pod_of_the_proxy_counts_while_it_is_on_a_node_and_not_at_its_end() {
    let ready = "{phase: Running, conditions: [{type: Ready, status: \"True\"}], podIPs: [{ip: 192.0.2.1}]}";
    let ended = pod("ended", PROXY, "{phase: Failed}");
    let leaving = pod("leaving", &format!("{PROXY}, deletionTimestamp: \"2026-01-01T00:00:00Z\""), ready);
    let all = [pod("ready", PROXY, ready), pod("starting", PROXY, "{phase: Pending}"), ended, leaving];

    let entry = entry(&[&all[..], &[pod("stranger", "", ready)]].concat().join("---\n"));

    let address = vec!["192.0.2.1".parse().unwrap()];
    let proxy = |addresses: &Vec<IpAddr>, ready, terminating| ProxyPod {
        node: "a".into(),
        addresses: addresses.clone(),
        ready,
        terminating,
    };
    assert_eq!(
        entry.proxies.into_iter().map(|(key, pod)| (key.name.to_string(), pod)).collect::<Vec<_>>(),
        [
            ("leaving".to_owned(), proxy(&address, true, true)),
            ("ready".to_owned(), proxy(&address, true, false)),
            ("starting".to_owned(), proxy(&Vec::new(), false, false)),
        ]
    );
}

#[test]
fn a_pod_that_comes_to_its_end_no_longer_counts() {
    let mut translator = translator(Source::Kubernetes);
    feed(&mut translator, "f.yaml", &pod("p", PROXY, "{phase: Running}"));
    assert_eq!(translator.snapshot().entry.as_ref().unwrap().proxies.len(), 1);

    feed(&mut translator, "f.yaml", &pod("p", PROXY, "{phase: Succeeded}"));

    assert_eq!(translator.snapshot().entry.as_ref().unwrap().proxies.len(), 0);
}

#[test]
fn slices_of_others_for_the_entry_are_not_taken_for_ours() {
    let slice = |manager: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: x, namespace: ferrogate-system, \
             labels: {{kubernetes.io/service-name: ferrogate-ingress, \
             endpointslice.kubernetes.io/managed-by: {manager}}}}}\naddressType: IPv4\nports: [{{name: http, port: \
             20000}}]\nendpoints: [{{addresses: [192.0.2.1], nodeName: a, conditions: {{ready: true}}}}]\n"
        )
    };

    assert_eq!(entry(&slice("endpointslice-controller.k8s.io")).slices.len(), 0);
    let ours = entry(&slice("ferrogate-controller")).slices.remove(&Family::V4).unwrap();
    let endpoint = EntryEndpoint {
        node: "a".into(),
        address: "192.0.2.1".parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
    };
    assert_eq!(ours.endpoints, BTreeSet::from([endpoint]));
}
