//! What a plan says of installations as people have them, and of those that need a look first.

use super::*;
use crate::document::documents;

fn settings() -> Settings {
    Settings {
        namespace: "ferrogate-system".to_owned(),
        metallb_namespace: "metallb-system".to_owned(),
        class: None,
        source: Source::Directory,
    }
}

fn found(text: &str) -> Vec<Found> {
    let one = |document: crate::document::Document| Found {
        origin: Origin::File { path: "f.yaml".to_owned(), document: document.number },
        value: document.value.expect("YAML"),
    };
    documents(text).into_iter().map(one).collect()
}

fn planned(text: &str) -> Plan {
    plan(&found(text), &settings())
}

fn theirs(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: metallb.io/v1beta1\nkind: {kind}\nmetadata: {{name: {name}, namespace: metallb-system}}\n\
         spec: {{{spec}}}\n"
    )
}

fn service(name: &str, annotations: &str, address: Option<&str>) -> String {
    let status = address.map(|ip| format!("status: {{loadBalancer: {{ingress: [{{ip: {ip}}}]}}}}\n"));
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a, annotations: {{{annotations}}}}}\n\
         spec: {{type: LoadBalancer, clusterIPs: [10.0.0.1], ports: [{{port: 80}}]}}\n{}",
        status.unwrap_or_default()
    )
}

fn outcomes_of(plan: &Plan) -> Vec<(&str, Outcome)> {
    plan.services.iter().map(|service| (service.service.as_str(), service.outcome)).collect()
}

fn must(plan: &Plan) -> Vec<String> {
    let all = plan.remarks.iter().filter(|remark| remark.needs_a_person);
    all.map(|remark| format!("{}: {}", remark.about, remark.message)).collect()
}

#[test]
fn objects_become_ours_and_services_keep_their_addresses() {
    let text = [
        theirs("L2Advertisement", "l2", "ipAddressPoolSelectors: [{matchLabels: {a: b}}]"),
        theirs("IPAddressPool", "p", "addresses: [192.0.2.0/28]").replace("name: p", "name: p, labels: {a: b}, uid: x"),
        service("web", "metallb.universe.tf/address-pool: p", Some("192.0.2.7")),
        service("new", "", None),
    ];

    let plan = planned(&text.concat());

    assert!(!plan.needs_a_person(), "{plan:#?}");
    assert_eq!(outcomes_of(&plan), [("a/web", Outcome::Keeps), ("a/new", Outcome::Gets)]);
    assert_eq!(plan.services[1].then, ["192.0.2.0".parse::<IpAddr>().unwrap()]);
    let names: Vec<String> = plan.objects.iter().map(name_of).collect();
    assert_eq!(names, ["IPAddressPool ferrogate-system/p", "L2Advertisement ferrogate-system/l2"]);
    let metadata = json!({ "name": "p", "namespace": "ferrogate-system", "labels": { "a": "b" } });
    assert_eq!(
        (&plan.objects[0]["apiVersion"], &plan.objects[0]["metadata"]),
        (&json!("ferrogate.io/v1beta1"), &metadata)
    );
    assert_eq!(plan.annotations[0]["metadata"]["annotations"], json!({ "ferrogate.io/address-pool": "p" }));
    assert!(plan.uses_layer2 && !plan.uses_bgp);
}

#[test]
fn a_service_that_metallb_let_have_what_we_would_not_is_named() {
    // An empty set of namespaces restricts nobody who asks by name, as MetalLB reads it.
    let pool = "addresses: [192.0.2.0/28], serviceAllocation: {namespaceSelectors: [{matchLabels: {no: such}}]}";
    let text = [theirs("IPAddressPool", "p", pool), service("web", "metallb.io/address-pool: p", Some("192.0.2.7"))];

    let plan = planned(&text.concat());

    assert!(plan.needs_a_person());
    assert_eq!(outcomes_of(&plan), [("a/web", Outcome::Loses)]);
    assert!(plan.services[0].reason.contains("namespaces of the pool"), "{plan:#?}");
}

#[test]
fn what_cannot_be_carried_over_is_named_with_what_to_do() {
    let text = [
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: bgpextras, namespace: metallb-system}\ndata: {extras: \
         'router bgp 1'}\n"
            .to_owned(),
        theirs(
            "BGPPeer",
            "tor",
            "myASN: 64500, peerASN: 64501, peerAddress: 192.0.2.1, passwordSecret: {name: secret}",
        ),
        theirs("IPAddressPool", "p", "addresses: [192.0.2.0/33]"),
    ];

    let plan = planned(&text.concat());

    let must = must(&plan);
    let named = |what: &str| must.iter().any(|message| message.starts_with(what));
    for what in ["ConfigMap metallb-system/bgpextras", "BGPPeer metallb-system/tor", "IPAddressPool ferrogate-system/p"]
    {
        assert!(named(what), "{what}: {must:#?}");
    }
    assert!(plan.needs_a_person() && plan.uses_bgp);
}

#[test]
fn a_secret_that_is_there_goes_along_with_its_peer() {
    let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: metallb-system}\ntype: \
                  kubernetes.io/basic-auth\nstringData: {password: x}\n";
    let spec = "myASN: 64500, peerASN: 64501, peerAddress: 192.0.2.1, passwordSecret: {name: s, namespace: other}";

    let plan = planned(&[theirs("BGPPeer", "tor", spec), secret.to_owned()].concat());

    let names: Vec<String> = plan.objects.iter().map(name_of).collect();
    assert_eq!(names, ["Secret ferrogate-system/s", "BGPPeer ferrogate-system/tor"]);
    assert_eq!(plan.objects[1]["spec"]["passwordSecret"], json!({ "name": "s" }));
    assert_eq!(must(&plan), Vec::<String>::new());
}

#[test]
fn an_object_that_exists_is_left_alone_and_a_different_one_is_named() {
    let ours = |addresses: &str| {
        // As an API server shows it, with what it fills in.
        theirs("IPAddressPool", "p", &format!("addresses: [{addresses}], autoAssign: true, sharing: AnyNamespace"))
            .replace("metallb.io", "ferrogate.io")
            .replace("metallb-system", "ferrogate-system")
    };
    let original = theirs("IPAddressPool", "p", "addresses: [192.0.2.0/28]");

    let same = planned(&[original.clone(), ours("192.0.2.0/28")].concat());
    let other = planned(&[original, ours("192.0.2.0/29"), service("web", "", Some("192.0.2.9"))].concat());

    assert!(!same.needs_a_person() && same.objects.is_empty(), "{same:#?}");
    assert_eq!(outcomes_of(&other), [("a/web", Outcome::Moves)]);
    assert!(must(&other)[0].starts_with("IPAddressPool ferrogate-system/p: exists already"), "{other:#?}");
}

#[test]
fn the_class_that_metallb_serves_is_the_one_we_serve() {
    let controller = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: controller, namespace: \
                      metallb-system}\nspec: {template: {spec: {containers: [{args: [--lb-class=example.com/lb], env: \
                      [{name: METALLB_BGP_TYPE, value: native}]}]}}}\n";
    let of_class =
        service("mine", "", Some("192.0.2.7")).replace("type: LoadB", "loadBalancerClass: example.com/lb, type: LoadB");
    let pool = theirs("IPAddressPool", "p", "addresses: [192.0.2.0/28]");

    let plan = planned(&[pool, controller.to_owned(), of_class, service("other", "", None)].concat());

    assert_eq!(plan.flags, ["--load-balancer-class=example.com/lb", "--serve-classless=false"]);
    assert_eq!(outcomes_of(&plan), [("a/mine", Outcome::Keeps)]);
}

#[test]
fn the_config_map_of_old_counts_only_where_metallb_still_reads_it() {
    let map = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: config, namespace: metallb-system}\ndata: {config: \
               'address-pools: [{name: p, protocol: layer2, addresses: [192.0.2.0/28]}]'}\n";
    let pool = theirs("IPAddressPool", "q", "addresses: [198.51.100.0/28]");
    let names = |plan: &Plan| plan.objects.iter().map(name_of).collect::<Vec<_>>();

    let old = planned(&[map.to_owned(), service("web", "", Some("192.0.2.7"))].concat());
    let new = planned(&[map.to_owned(), pool].concat());

    let expected = ["IPAddressPool ferrogate-system/p", "L2Advertisement ferrogate-system/l2advertisement1"];
    assert_eq!(
        (names(&old), outcomes_of(&old)),
        (expected.map(str::to_owned).to_vec(), vec![("a/web", Outcome::Keeps)])
    );
    assert_eq!(names(&new), ["IPAddressPool ferrogate-system/q"]);
}

#[test]
fn the_plan_does_not_depend_on_the_order_in_which_things_are_found() {
    let parts = [
        theirs("IPAddressPool", "b", "addresses: [192.0.2.0/28]"),
        theirs("IPAddressPool", "a", "addresses: [198.51.100.0/28]"),
        theirs("L2Advertisement", "l2", ""),
        service("web", "metallb.io/address-pool: a", Some("198.51.100.1")),
        service("db", "metallb.io/address-pool: b", Some("192.0.2.1")),
    ];
    let mut forward = found(&parts.concat());
    for one in &mut forward {
        one.origin = Origin::File { path: name_of(&one.value), document: 1 };
    }
    let mut backward = forward.clone();
    backward.reverse();

    assert_eq!(plan(&forward, &settings()), plan(&backward, &settings()));
}

#[test]
fn an_object_of_another_kind_or_form_with_the_name_of_a_service_is_left_as_it_is() {
    let web = service("web", "metallb.io/address-pool: p", Some("192.0.2.7"));
    let namesake =
        "---\napiVersion: example.com/v1\nkind: Service\nmetadata: {name: web, namespace: a, annotations: text}\n";
    let twin = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a, annotations: [one]}\n";

    let plan = planned(
        &[theirs("IPAddressPool", "p", "addresses: [192.0.2.0/28]"), web, namesake.to_owned(), twin.to_owned()]
            .concat(),
    );

    assert_eq!(outcomes_of(&plan), [("a/web", Outcome::Keeps)]);
}
