//! What becomes of objects, kind by kind, and that nothing depends on the way that led there.

use std::time::Duration;

use ferrogate_core::{
    controller::{self, Refusal},
    model::{
        Family, PoolName,
        advertisement::PoolChoice,
        route::{Host, PathKind},
        service::{ClassPolicy, FamilyPolicy, RequestFault, SessionAffinity, TrafficPolicy},
    },
    write::{BgpReport, BgpSession, L2Status},
};
use proptest::prelude::*;

use super::*;
use crate::{NAMESPACE, document::documents};

mod allocation;
mod configuration;
mod entry;
mod metallb;

fn translator(source: Source) -> Translator {
    let namespace = NAMESPACE.to_owned();
    Translator::new(Rules { class: ClassPolicy::default(), namespace, metallb: None, secrets: true, source }, None)
}

/// Reads a file of valid YAML into a translator.
fn feed(translator: &mut Translator, file: &str, text: &str) {
    let (mut readings, mut problems) = (Vec::new(), Vec::new());
    for document in documents(text) {
        let in_file = Origin::File { path: file.to_owned(), document: document.number };
        for entry in read(document.value.expect("YAML"), translator.rules()) {
            match entry {
                Entry::Object(reading) if translator.rules().source == Source::Kubernetes => {
                    readings.push((Origin::Cluster(reading.id.object()), reading));
                }
                Entry::Object(reading) => readings.push((in_file.clone(), reading)),
                Entry::Unknown(problem) => problems.push((in_file.clone(), problem)),
                Entry::Foreign => {}
            }
        }
    }
    translator.replace(file, readings, |_| false);
    translator.set_source_problems(file, problems);
}

fn snapshot_in(source: Source, text: &str) -> Arc<Snapshot> {
    let mut translator = translator(source);
    feed(&mut translator, "f.yaml", text);
    translator.snapshot()
}

fn snapshot(text: &str) -> Arc<Snapshot> {
    snapshot_in(Source::Directory, text)
}

fn problems(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems.values().flatten().map(Problem::to_string).collect()
}

/// The only problem of a text, without the name of its object.
fn complaint(text: &str) -> String {
    let snapshot = snapshot(text);
    let all = problems(&snapshot);
    assert_eq!(all.len(), 1, "{all:#?}");
    all[0].split_once(": ").map(|(_, rest)| rest.to_owned()).unwrap_or_default()
}

/// A Service of type LoadBalancer with more in its spec and metadata.
fn service(metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web{metadata}}}\nspec: {{type: LoadBalancer, ports: \
         [{{port: 80}}]{spec}}}\n"
    )
}

fn the_service(text: &str) -> Arc<Service> {
    let snapshot = snapshot(text);
    assert_eq!(problems(&snapshot), Vec::<String>::new());
    snapshot.services[&ServiceKey::new("default", "web")].clone()
}

fn wish(metadata: &str, spec: &str) -> Result<ferrogate_core::model::service::Request, RequestFault> {
    let request = the_service(&service(metadata, spec)).load_balancer.clone().expect("served").request;
    request.map_err(|unreadable| unreadable.fault)
}

fn families(spec: &str) -> (Vec<Family>, FamilyPolicy) {
    let balancer = the_service(&service("", spec)).load_balancer.clone().expect("served");
    (balancer.families, balancer.family_policy)
}

fn pool(name: &str, addresses: &str) -> String {
    format!(
        "---\napiVersion: ferrogate.io/v1beta1\nkind: IPAddressPool\nmetadata: {{name: {name}}}\nspec: {{addresses: \
         [{addresses}]}}\n"
    )
}

fn ingress(metadata: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: web{metadata}}}\nspec: {{{spec}}}\n"
    )
}

const BACKEND: &str = "backend: {service: {name: web, port: {number: 80}}}";

fn one_path(path: &str) -> String {
    let spec = format!("rules: [{{http: {{paths: [{{{path}, {BACKEND}}}]}}}}]");
    format!("{}{}", service("", ""), ingress("", &spec))
}

#[test]
fn a_service_is_read_with_all_it_says() {
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  generation: 4\n  creationTimestamp: \
                '2024-01-02T03:04:05Z'\n  labels: {app: web}\nspec:\n  type: LoadBalancer\n  clusterIPs: \
                ['2001:db8::1', 192.0.2.1]\n  selector: {app: web}\n  externalTrafficPolicy: Local\n  \
                healthCheckNodePort: 30001\n  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: \
                {timeoutSeconds: 60}}\n  loadBalancerSourceRanges: [' 198.51.100.7/24']\n  ports:\n  - {name: a, \
                port: 80, nodePort: 30000}\n  - {name: b, port: 80, protocol: UDP, targetPort: http}\nstatus:\n  \
                loadBalancer: {ingress: [{ip: 192.0.2.9}]}\n";

    let service = the_service(text);

    let balancer = service.load_balancer.clone().expect("served");
    assert_eq!(balancer.families, [Family::V6, Family::V4]);
    assert_eq!((service.generation, service.created), (4, 1_704_164_645));
    assert_eq!(service.external_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.health_check_node_port.map(|port| port.get()), Some(30_001));
    assert_eq!(service.session_affinity, SessionAffinity::ClientIp { timeout: Duration::from_secs(60) });
    assert_eq!(service.source_ranges, ["198.51.100.0/24".parse().unwrap()]);
    assert_eq!(service.ports.len(), 2);
    assert_eq!(service.observed.addresses, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
}

#[test]
fn what_an_api_server_would_refuse_in_a_service_is_refused_with_field_and_remedy() {
    for (metadata, spec, expected) in [
        ("", ", sessionAffinity: Maybe", "spec.sessionAffinity: \"Maybe\" is not valid: None or ClientIP"),
        (
            "",
            ", sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: \"86401\" is not valid: 1 to 86400 seconds",
        ),
        (
            "",
            ", externalTrafficPolicy: Sometimes",
            "spec.externalTrafficPolicy: \"Sometimes\" is not valid: Cluster or Local",
        ),
        ("", ", ipFamilies: [IPv5]", "spec.ipFamilies[0]: \"IPv5\" is not valid: IPv4 or IPv6, each once"),
        ("", ", ipFamilies: [IPv4, IPv4]", "spec.ipFamilies[1]: \"IPv4\" is not valid: IPv4 or IPv6, each once"),
        (
            "",
            ", ipFamilies: [IPv4, IPv6], ipFamilyPolicy: SingleStack",
            "spec.ipFamilies: \"IPv4, IPv6\" is not valid: one family, as ipFamilyPolicy is SingleStack",
        ),
        (
            "",
            ", clusterIP: None",
            "spec.clusterIP: \"None\" is not valid: no headless Service may be of type LoadBalancer",
        ),
        (
            "",
            ", loadBalancerSourceRanges: [198.51.100.0/33]",
            "spec.loadBalancerSourceRanges[0]: \"198.51.100.0/33\" is not valid: a prefix such as 198.51.100.0/24",
        ),
        (
            "",
            ", loadBalancerSourceRanges: [198.51.100.1]",
            "spec.loadBalancerSourceRanges[0]: \"198.51.100.1\" is not valid: a prefix such as 198.51.100.0/24",
        ),
        (
            ", annotations: {service.beta.kubernetes.io/load-balancer-source-ranges: 'all'}",
            "",
            "metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges][0]: \"all\" is not valid: a \
             prefix such as 198.51.100.0/24",
        ),
        (
            ", labels: {ferrogate.io/entry: yes}",
            "",
            "metadata.labels[ferrogate.io/entry]: \"yes\" is not valid: `ingress`, or no such label",
        ),
        (
            ", labels: {a: 1}",
            "",
            "metadata.labels.a: does not fit the schema of its kind: invalid type: integer `1`, expected a string",
        ),
    ] {
        let text = service(metadata, spec);

        assert_eq!(complaint(&text), expected);
        assert!(snapshot(&text).services.is_empty(), "{text}");
    }
}

#[test]
fn ports_are_checked_as_an_api_server_would() {
    let ports = |ports: &str| service("", "").replace("{port: 80}", ports);
    for (text, expected) in [
        ("", "spec.ports: does not fit the schema of its kind: a Service of type LoadBalancer needs at least one port"),
        ("{port: 0}", "spec.ports[0].port: \"0\" is not valid: a port from 1 to 65535"),
        ("{port: 65536}", "spec.ports[0].port: \"65536\" is not valid: a port from 1 to 65535"),
        (
            "{port: http}",
            "spec.ports[0].port: does not fit the schema of its kind: invalid type: string \"http\", expected i32",
        ),
        ("{port: 80, protocol: ICMP}", "spec.ports[0].protocol: \"ICMP\" is not valid: TCP, UDP or SCTP"),
        ("{port: 80, nodePort: 70000}", "spec.ports[0].nodePort: \"70000\" is not valid: a port from 1 to 65535"),
        (
            "{port: 80, name: a}, {port: 81}",
            "spec.ports[1].name: does not fit the schema of its kind: where there are several ports each needs a name",
        ),
        ("{port: 80, name: a}, {port: 81, name: a}", "spec.ports[1].name: \"a\" is not valid: each name once"),
        (
            "{port: 80, name: a}, {port: 80, name: b}",
            "spec.ports[1].port: \"80\" is not valid: each port once for each protocol",
        ),
    ] {
        assert_eq!(complaint(&ports(text)), expected);
    }
}

#[test]
fn an_unknown_field_is_named_and_the_object_stays() {
    let text = service("", ", loadbalancerIP: 192.0.2.1");

    let snapshot = snapshot(&text);

    assert_eq!(snapshot.services.len(), 1);
    assert!(problems(&snapshot)[0].contains("spec.loadbalancerIP: is ignored"), "{:?}", problems(&snapshot));
    assert_eq!(snapshot_in(Source::Kubernetes, &text).problems.len(), 0);
}

#[test]
fn wishes_are_read_from_annotation_or_field_and_never_from_both() {
    let ips = |value: &str| format!(", annotations: {{ferrogate.io/loadBalancerIPs: '{value}'}}");
    let addresses = |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    let asked = |value: &str| wish(&ips(value), "").map(|request| request.addresses);

    assert_eq!(asked(" 192.0.2.7 , 2001:db8::7"), Ok(addresses(&["192.0.2.7", "2001:db8::7"])));
    assert_eq!(asked("::ffff:192.0.2.7"), Ok(addresses(&["192.0.2.7"])));
    assert_eq!(asked(""), Ok(Vec::new()));
    assert_eq!(wish("", ", loadBalancerIP: 192.0.2.7").map(|request| request.addresses), Ok(addresses(&["192.0.2.7"])));
    assert_eq!(wish(&ips("192.0.2.7"), ", loadBalancerIP: 192.0.2.7"), Err(RequestFault::TwoSources));
    assert!(matches!(asked("192.0.2.300"), Err(RequestFault::NotAnAddress { .. })));
    assert!(matches!(asked("192.0.2.7,"), Err(RequestFault::NotAnAddress { .. })));
    assert!(matches!(asked("192.0.2.7,192.0.2.8"), Err(RequestFault::SameFamily { .. })));
    assert!(matches!(asked("192.0.2.7,192.0.2.8,192.0.2.9"), Err(RequestFault::TooMany { count: 3, .. })));
}

/// A Service that an API server takes and nobody here can read, with this status.
fn left_out(status: &str) -> String {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: default, \
                 labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nendpoints: [{addresses: [10.1.0.1]}]\n";
    let web = service(", labels: {ferrogate.io/entry: mistyped}", ", clusterIPs: [10.0.0.1]");
    format!("{web}status: {status}\n{slice}")
}

#[test]
fn a_service_that_is_left_out_keeps_the_address_it_has_and_nobody_else_is_given_it() {
    let pool = "---\napiVersion: ferrogate.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: p}\n\
                spec: {addresses: [192.0.2.1-192.0.2.2]}\n---\n";
    let new = service("", ", clusterIPs: [10.0.0.2]").replace("name: web", "name: new, namespace: default");
    let web = left_out("{loadBalancer: {ingress: [{ip: 192.0.2.1}]}}");
    let mut translator = translator(Source::Kubernetes);
    feed(&mut translator, "f.yaml", &[web.as_str(), pool, new.as_str()].concat());

    let snapshot = translator.snapshot();

    let has = |name: &str| match controller::explain(&snapshot, &ServiceKey::new("default", name)) {
        controller::Verdict::Assigned { assignment, ignored, .. } => (assignment.addresses, ignored),
        verdict => panic!("{name}: {verdict:?}"),
    };
    let fault = RequestFault::LeftOut;
    assert_eq!(has("web"), (vec!["192.0.2.1".parse().unwrap()], Some(Refusal::UnreadableRequest { fault })));
    assert_eq!(has("new"), (vec!["192.0.2.2".parse().unwrap()], None));
    assert_eq!(snapshot.services[&ServiceKey::new("default", "web")].endpoints, []);

    feed(&mut translator, "f.yaml", &web.replace("mistyped", "ingress"));
    let web = translator.snapshot().services[&ServiceKey::new("default", "web")].clone();
    assert!(web.is_entry && web.load_balancer.as_ref().unwrap().request.is_ok() && web.endpoints.len() == 1);
}

#[test]
fn a_service_that_is_left_out_and_has_no_address_is_given_none() {
    assert_eq!(snapshot_in(Source::Kubernetes, &left_out("{}")).services.len(), 0);
}

#[test]
fn pool_and_sharing_key_are_read_and_a_misspelt_annotation_is_named() {
    let request =
        wish(", annotations: {ferrogate.io/address-pool: p, ferrogate.io/allow-shared-ip: ' k '}", "").unwrap();
    assert_eq!((request.pool, request.sharing_key), (Some(PoolName::from("p")), Some("k".to_owned())));

    let text = complaint(&service(", annotations: {ferrogate.io/addresspool: p}", ""));
    assert!(text.starts_with("metadata.annotations[ferrogate.io/addresspool]: is ignored"), "{text}");
}

#[test]
fn the_families_of_a_manifest_are_what_it_names_then_what_it_asks_for_then_ipv4() {
    use Family::{V4, V6};
    use FamilyPolicy::{PreferDualStack, RequireDualStack, SingleStack};

    assert_eq!(families(""), (vec![V4], SingleStack));
    assert_eq!(families(", ipFamilies: [IPv6]"), (vec![V6], SingleStack));
    assert_eq!(families(", ipFamilyPolicy: PreferDualStack"), (vec![V4, V6], PreferDualStack));
    assert_eq!(families(", ipFamilies: [IPv6], ipFamilyPolicy: RequireDualStack"), (vec![V6, V4], RequireDualStack));
    assert_eq!(families(", ipFamilies: [IPv6, IPv4]"), (vec![V6, V4], RequireDualStack));
    assert_eq!(families(", loadBalancerIP: '2001:db8::1'"), (vec![V6], SingleStack));
    assert_eq!(families(", clusterIP: '2001:db8::1'"), (vec![V6], SingleStack));
}

#[test]
fn m_079_only_services_of_a_class_we_serve_wish_for_an_address() {
    let served = |spec: &str| the_service(&service("", spec)).load_balancer.is_some();

    assert!(served(""));
    assert!(served(", loadBalancerClass: ferrogate.io/lb"));
    assert!(!served(", loadBalancerClass: example.com/other"));
    assert_eq!(the_service(&service("", "").replace("LoadBalancer", "NodePort")).load_balancer, None);
}

#[test]
fn endpoints_of_all_slices_join_their_service() {
    let slice = |name: &str, address: &str, more: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: \
             {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints: \
             [{{addresses: [{address}]{more}}}]\n"
        )
    };
    let text = format!(
        "{}{}{}{}",
        service("", ""),
        slice("a", "198.51.100.2", ", nodeName: one, conditions: {ready: false, serving: true, terminating: true}"),
        slice("b", "198.51.100.1", ""),
        slice("c", "198.51.100.1", "")
    );

    let endpoints = &the_service(&text).endpoints;

    assert_eq!(endpoints.len(), 2);
    assert!(endpoints[0].ready && endpoints[0].serving && !endpoints[0].terminating);
    assert!(!endpoints[1].ready && endpoints[1].serving && endpoints[1].terminating);
    assert_eq!(endpoints[1].node, Some(NodeName::from("one")));
    assert_eq!(endpoints[0].ports[0].port.get(), 8080);
}

#[test]
fn a_slice_of_no_service_or_of_addresses_nobody_can_dial_is_named() {
    let slice = |label: &str, kind: &str, address: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a, labels: {{{label}}}}}\n\
             addressType: {kind}\nendpoints: [{{addresses: ['{address}']}}]\n"
        )
    };
    let label = "kubernetes.io/service-name: web";
    for (text, expected) in [
        (slice(label, "IPv4", "192.0.2.1"), "metadata.labels: Service \"default/web\" does not exist"),
        (slice("", "IPv4", "192.0.2.1"), "metadata.labels: does not fit the schema of its kind: the label"),
        (slice(label, "FQDN", "example.com"), "addressType: FQDN is not supported"),
        (slice(label, "IPv4", "2001:db8::1"), "endpoints[0].addresses[0]: \"2001:db8::1\" is not valid: an IPv4"),
        (slice(label, "IPv4", "192.0.2.1000"), "endpoints[0].addresses[0]: \"192.0.2.1000\" is not valid"),
        (slice(label, "IPv4", "224.0.0.1"), "endpoints[0].addresses[0]: \"224.0.0.1\" is not valid"),
        (slice(label, "IPv4", "0.0.0.0"), "endpoints[0].addresses[0]: \"0.0.0.0\" is not valid"),
    ] {
        let complaint = complaint(&text);
        assert!(complaint.starts_with(expected), "{complaint}");
    }
}

#[test]
fn m_005_a_pool_without_addresses_is_refused() {
    assert!(complaint(&pool("p", "")).starts_with("spec.addresses: does not fit the schema"));
    let without = pool("p", "").replace("spec: {addresses: []}", "spec: {}");
    assert!(complaint(&without).contains("missing field `addresses`"), "{}", complaint(&without));
}

#[test]
fn m_008_of_two_pools_that_overlap_the_later_is_left_out_and_both_ranges_are_named() {
    let text = format!(
        "{}{}{}",
        pool("a", "192.0.2.0/24"),
        pool("b", "198.51.100.0/24, 192.0.2.128/25"),
        pool("c", "203.0.113.0/24")
    );

    let snapshot = snapshot(&text);

    let names: Vec<&str> = snapshot.pools.keys().map(PoolName::as_str).collect();
    assert_eq!(names, ["a", "c"]);
    assert_eq!(
        problems(&snapshot),
        [
            "IPAddressPool ferrogate-system/b: spec.addresses[1]: 192.0.2.128-192.0.2.255 overlaps with 192.0.2.0-192.0.2.255 of \
          pool a; give each address to one pool only"
        ]
    );
    assert!(complaint(&pool("p", "192.0.2.0/24, 192.0.2.7-192.0.2.8")).contains("192.0.2.7-192.0.2.8 overlaps"));
}

#[test]
fn the_older_of_two_pools_that_overlap_stands_whatever_its_name() {
    let old = pool("z", "192.0.2.0/24").replace("{name: z", "{name: z, creationTimestamp: '2020-01-01T00:00:00Z'");
    let new = pool("a", "192.0.2.0/25").replace("{name: a", "{name: a, creationTimestamp: '2021-01-01T00:00:00Z'");

    let snapshot = snapshot(&format!("{new}{old}"));

    assert_eq!(snapshot.pools.keys().map(PoolName::as_str).collect::<Vec<_>>(), ["z"]);
}

#[test]
fn m_009_both_families_may_stand_in_one_pool() {
    let snapshot = snapshot(&pool("p", "192.0.2.0/30, '2001:db8::/126'"));

    let pool = &snapshot.pools[&PoolName::from("p")];
    assert!(pool.has_family(Family::V4) && pool.has_family(Family::V6));
    assert!(pool.auto_assign && !pool.avoid_buggy_ips);
}

#[test]
fn m_010_whatever_stands_twice_in_a_service_allocation_is_refused() {
    let with = |allocation: &str| {
        pool("p", "192.0.2.0/24").replace("addresses:", &format!("serviceAllocation: {{{allocation}}}, addresses:"))
    };
    for allocation in [
        "namespaces: [a, a]",
        "namespaceSelectors: [{matchLabels: {a: b}}, {matchLabels: {a: b}}]",
        "serviceSelectors: [{matchExpressions: [{key: a, operator: In, values: [b, b]}]}]",
        "serviceSelectors: [{matchExpressions: [{key: a, operator: In}]}]",
        "serviceSelectors: [{matchExpressions: [{key: a, operator: Near, values: [b]}]}]",
    ] {
        assert!(complaint(&with(allocation)).starts_with("spec.serviceAllocation."), "{allocation}");
    }
    assert_eq!(problems(&snapshot(&with("namespaces: [a, b], priority: 3"))), Vec::<String>::new());
}

#[test]
fn an_advertisement_is_read_and_one_that_names_a_missing_pool_stays_with_a_warning() {
    let text = "---\napiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: l2}\nspec:\n  \
                ipAddressPools: [p, q]\n  interfaces: [eth0]\n  preferredNodeSelectors: [{weight: 7, preference: \
                {matchLabels: {zone: a}}}]\n  stickiness: Owner\n";
    let mut translator = translator(Source::Directory);
    feed(&mut translator, "l2.yaml", text);
    feed(&mut translator, "p.yaml", &pool("p", "192.0.2.0/24"));

    let snapshot = translator.snapshot();
    let standing = snapshot.l2_advertisements.values().next().expect("it stays");
    assert_eq!(standing.pools, PoolChoice { names: ["p", "q"].map(PoolName::from).into(), selectors: Vec::new() });
    assert_eq!(standing.preferred_nodes[0].weight.get(), 7);
    assert!(standing.is_sticky);
    assert_eq!(
        problems(&snapshot),
        [
            "L2Advertisement ferrogate-system/l2: spec.ipAddressPools: IPAddressPool \"q\" does not exist; create it or correct \
          the name"
        ]
    );

    feed(&mut translator, "q.yaml", &pool("q", "198.51.100.0/24"));
    assert_eq!(problems(&translator.snapshot()), Vec::<String>::new());
}

#[test]
fn bad_advertisements_are_refused() {
    for spec in [
        "ipAddressPools: [p, p]",
        "interfaces: [eth0, eth0]",
        "interfaces: ['a/b']",
        "interfaces: [much-too-long-for-one]",
        "nodeSelectors: [{}, {}]",
        "preferredNodeSelectors: [{weight: 0, preference: {}}]",
        "preferredNodeSelectors: [{weight: 101, preference: {}}]",
    ] {
        let text = format!(
            "apiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: {{name: l2}}\nspec: {{{spec}}}\n{}",
            pool("p", "192.0.2.0/24")
        );
        assert!(complaint(&text).starts_with("spec."), "{spec}");
        assert!(snapshot(&text).l2_advertisements.is_empty());
    }
}

#[test]
fn what_is_not_supported_says_so_and_what_bgp_needs_is_in_force() {
    for text in [
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a}\nspec: {rules: []}\n",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: a}\nspec: {}\n",
        "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: a}\nspec: {}\n",
    ] {
        assert!(complaint(text).contains("is not supported"), "{text}");
    }
    for text in [
        "apiVersion: ferrogate.io/v1beta1\nkind: BGPPeer\nmetadata: {name: a}\nspec: {myASN: 64500, peerASN: 64501, \
         peerAddress: 192.0.2.1}\n",
        "apiVersion: ferrogate.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {name: a}\n",
        "apiVersion: ferrogate.io/v1beta1\nkind: BFDProfile\nmetadata: {name: a}\nspec: {}\n",
        "apiVersion: ferrogate.io/v1beta1\nkind: Community\nmetadata: {name: a}\nspec: {communities: []}\n",
    ] {
        assert_eq!(problems(&snapshot(text)), Vec::<String>::new());
    }
    let wrong = "apiVersion: ferrogate.io/v1beta1\nkind: BGPPeer\nmetadata: {name: a}\nspec: {myASN: many}\n";
    assert!(complaint(wrong).starts_with("spec.myASN: does not fit the schema"), "{}", complaint(wrong));
}

#[test]
fn kinds_that_are_kept_beside_services_are_passed_over_and_unknown_ones_are_named() {
    for (api_version, kind) in
        [("v1", "ConfigMap"), ("apps/v1", "Deployment"), ("rbac.authorization.k8s.io/v1", "Role")]
    {
        let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}\n");
        assert_eq!(problems(&snapshot(&text)), Vec::<String>::new());
    }
    for (api_version, kind) in
        [("v1", "Servce"), ("v2", "Service"), ("ferrogate.io/v1beta1", "IPPool"), ("ferrogate.io/v1", "IPAddressPool")]
    {
        let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}\n");
        assert!(complaint(&text).starts_with(&format!("{api_version} {kind} is not a kind that is read here")));
    }
    assert!(problems(&snapshot("just: yaml\n"))[0].contains("apiVersion and kind are missing"));
    assert!(problems(&snapshot("just text\n"))[0].contains("apiVersion and kind are missing"));
}

#[test]
fn the_items_of_a_list_are_objects_like_any_other() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- \
                {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n- nonsense\n";

    let snapshot = snapshot(text);

    assert_eq!(snapshot.namespaces.len(), 2);
    assert_eq!(problems(&snapshot).len(), 1);
}

#[test]
fn an_ingress_is_read_with_hosts_in_lower_case_and_paths_as_written() {
    let spec = format!(
        "defaultBackend: {{service: {{name: web, port: {{name: http}}}}}}, rules: [{{host: WWW.example.com, http: \
         {{paths: [{{path: /A, pathType: Exact, {BACKEND}}}, {{pathType: ImplementationSpecific, {BACKEND}}}]}}}}, \
         {{host: '*.example.com'}}]"
    );
    let text = format!("{}{}", service("", "").replace("{port: 80}", "{port: 80, name: http}"), ingress("", &spec));

    let snapshot = snapshot(&text);

    assert_eq!(problems(&snapshot), Vec::<String>::new());
    let ingress = snapshot.ingresses.values().next().expect("ours");
    assert_eq!(ingress.rules[0].host, Host::Exact("www.example.com".to_owned()));
    assert_eq!(ingress.rules[1].host, Host::Wildcard("example.com".to_owned()));
    let paths: Vec<_> = ingress.rules[0].paths.iter().map(|path| (path.path.as_str(), path.kind)).collect();
    assert_eq!(paths, [("/A", PathKind::Exact), ("/", PathKind::Prefix)]);
}

#[test]
fn bad_hosts_paths_and_backends_are_refused_with_their_field() {
    for path in ["a", "//", "/a/./b", "/a/../b", "/a%2fb", "/a%2Fb", "/a/.", "/a/.."] {
        let complaint = complaint(&one_path(&format!("path: '{path}', pathType: Prefix")));
        assert!(complaint.starts_with("spec.rules[0].http.paths[0].path: "), "{complaint}");
    }
    for host in ["192.0.2.1", "example.com:80", "*", "a.*.com", "-a.com", "ex ample.com", "*.*.com"] {
        let text = ingress(
            "",
            &format!("defaultBackend: {{service: {{name: web, port: {{number: 80}}}}}}, rules: [{{host: '{host}'}}]"),
        );
        let complaint = complaint(&format!("{}{text}", service("", "")));
        assert!(complaint.starts_with("spec.rules[0].host: "), "{complaint}");
    }
    for (spec, expected) in [
        ("", "spec: does not fit the schema of its kind: an Ingress needs rules or a defaultBackend"),
        ("defaultBackend: {resource: {kind: A, name: b}}", "spec.defaultBackend.resource: a resource backend is not"),
        ("defaultBackend: {}", "spec.defaultBackend.service: does not fit"),
        ("defaultBackend: {service: {name: web}}", "spec.defaultBackend.service.port: does not fit"),
        (
            "defaultBackend: {service: {name: web, port: {number: 70000}}}",
            "spec.defaultBackend.service.port.number: \"70000\"",
        ),
        ("defaultBackend: {service: {name: '../x', port: {number: 1}}}", "spec.defaultBackend.service.name: \"../x\""),
    ] {
        let all = problems(&snapshot(&ingress("", spec)));
        assert!(all[0].contains(expected), "{all:?}");
    }
    let complaint = complaint(&one_path("path: /"));
    assert!(complaint.contains("pathType"), "{complaint}");
}

#[test]
fn a_backend_that_is_missing_is_named_and_the_ingress_stays() {
    let spec = "defaultBackend: {service: {name: web, port: {number: 81}}}";
    let mut translator = translator(Source::Directory);
    feed(&mut translator, "i.yaml", &ingress("", spec));
    let before = translator.snapshot();
    assert_eq!(before.ingresses.len(), 1);
    assert!(problems(&before)[0].contains("spec.defaultBackend.service.name: Service \"default/web\" does not exist"));

    feed(&mut translator, "s.yaml", &service("", ""));
    let after = translator.snapshot();
    assert!(
        problems(&after)[0].contains("port of Service default/web \"81\" does not exist"),
        "{:?}",
        problems(&after)
    );
}

#[test]
fn l_029_a_backend_of_type_external_name_is_refused_and_has_no_endpoints() {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{type: ExternalName, externalName: \
         example.com}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a, labels: \
         {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nendpoints: [{{addresses: [192.0.2.1]}}]\n{}",
        ingress("", "defaultBackend: {service: {name: web, port: {number: 80}}}")
    );

    let snapshot = snapshot(&text);

    assert!(problems(&snapshot)[0].contains("the ExternalName Service default/web is not supported"));
    assert!(snapshot.services.values().all(|service| service.endpoints.is_empty()));
}

#[test]
fn an_l2_advertisement_without_a_spec_covers_every_pool() {
    let snapshot = snapshot("apiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: all}\n");

    assert_eq!(problems(&snapshot), Vec::<String>::new());
    assert_eq!(snapshot.l2_advertisements.values().next().unwrap().pools, PoolChoice::default());
}

#[test]
fn a_slice_without_its_service_is_reported_in_a_folder_only() {
    let text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a, labels: \
                {kubernetes.io/service-name: web}}\naddressType: IPv4\nendpoints: [{addresses: [192.0.2.1]}]\n";

    assert!(problems(&snapshot_in(Source::Directory, text))[0].contains("Service \"default/web\" does not exist"));
    assert_eq!(problems(&snapshot_in(Source::Kubernetes, text)), Vec::<String>::new());
}

fn class(name: &str, controller: &str, default: bool) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {{name: {name}, annotations: \
         {{ingressclass.kubernetes.io/is-default-class: '{default}'}}}}\nspec: {{controller: {controller}}}\n"
    )
}

fn is_ours(source: Source, classes: &str, metadata: &str, named: &str) -> bool {
    let spec = format!("{named}defaultBackend: {{service: {{name: web, port: {{number: 80}}}}}}");
    let text = format!("{}{classes}{}", service("", ""), ingress(metadata, &spec));
    !snapshot_in(source, &text).ingresses.is_empty()
}

#[test]
fn l_023_an_ingress_is_ours_by_the_controller_of_its_class() {
    use Source::{Directory, Kubernetes};
    let ours = class("edge", ingress_class::CONTROLLER, false);
    let foreign = class("edge", "example.com/other", false);

    for source in [Directory, Kubernetes] {
        assert!(is_ours(source, &ours, "", "ingressClassName: edge, "));
        assert!(!is_ours(source, &foreign, "", "ingressClassName: edge, "));
        assert!(!is_ours(source, &ours, "", "ingressClassName: nobodys, "));
    }
    assert!(is_ours(Directory, "", "", "ingressClassName: ferrogate, "));
    assert!(!is_ours(Kubernetes, "", "", "ingressClassName: ferrogate, "));
}

#[test]
fn l_024_the_older_annotation_names_the_class_where_the_field_does_not() {
    let ours = class("edge", ingress_class::CONTROLLER, false);
    let older = ", annotations: {kubernetes.io/ingress.class: edge}";

    assert!(is_ours(Source::Kubernetes, &ours, older, ""));
    assert!(!is_ours(Source::Kubernetes, &ours, older, "ingressClassName: other, "));
}

#[test]
fn l_025_without_a_class_the_default_decides_and_in_a_folder_we_are_the_default() {
    use Source::{Directory, Kubernetes};
    let ours = class("edge", ingress_class::CONTROLLER, true);
    let foreign = class("edge", "example.com/other", true);

    assert!(is_ours(Directory, "", "", ""));
    assert!(!is_ours(Kubernetes, "", "", ""));
    for source in [Directory, Kubernetes] {
        assert!(is_ours(source, &ours, "", ""));
        assert!(!is_ours(source, &foreign, "", ""));
    }

    let mut translator = translator(Kubernetes);
    feed(&mut translator, "i", &ingress("", "defaultBackend: {service: {name: web, port: {number: 80}}}"));
    assert!(translator.snapshot().ingresses.is_empty());
    feed(&mut translator, "c", &ours);
    assert_eq!(translator.snapshot().ingresses.len(), 1);
    feed(&mut translator, "c", &foreign);
    assert!(translator.snapshot().ingresses.is_empty());
}

#[test]
fn tls_is_told_to_be_served_plain() {
    let spec = "tls: [{hosts: [a.example.com]}], defaultBackend: {service: {name: web, port: {number: 80}}}";

    assert!(complaint(&format!("{}{}", service("", ""), ingress("", spec))).starts_with("spec.tls: is ignored"));
}

#[test]
fn nodes_are_read_with_their_addresses_and_a_bad_one_is_left_out() {
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: one}\nstatus:\n  addresses: [{type: InternalIP, address: \
                '::ffff:192.0.2.1'}, {type: InternalIP, address: x}, {type: Hostname, address: one}]\n  conditions: \
                [{type: NetworkUnavailable, status: 'True'}]\nspec: {unschedulable: true}\n";

    let snapshot = snapshot(text);

    let node = &snapshot.nodes["one"];
    assert_eq!(node.internal_addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert!(node.network_unavailable && node.unschedulable);
    assert!(problems(&snapshot)[0].contains("status.addresses[1].address"));
}

#[test]
fn a_snapshot_in_which_nothing_changed_is_the_same_one() {
    let mut translator = translator(Source::Directory);
    feed(&mut translator, "s", &service("", ""));
    let before = translator.snapshot();

    feed(&mut translator, "s", &service("", ""));

    assert!(Arc::ptr_eq(&before, &translator.snapshot()));
}

#[test]
fn what_did_not_change_is_shared_with_the_snapshot_before() {
    let mut translator = translator(Source::Directory);
    feed(&mut translator, "a", &service("", ""));
    feed(&mut translator, "b", &service("", "").replace("web", "db"));
    let before = translator.snapshot();

    feed(&mut translator, "b", &service("", ", externalTrafficPolicy: Local").replace("web", "db"));

    let (key, after) = (ServiceKey::new("default", "web"), translator.snapshot());
    assert!(Arc::ptr_eq(&before.services[&key], &after.services[&key]));
    assert_eq!(before.services.diff(&after.services).count(), 1);
}

#[test]
fn m_011_configuration_is_read_in_our_own_namespace_only() {
    let elsewhere = |text: &str| text.replace("metadata: {", "metadata: {namespace: elsewhere, ");
    let text = elsewhere(&pool("p", "192.0.2.0/24"));
    let expected = "metadata.namespace: is not in namespace ferrogate-system, and configuration is read there only; \
                    move the object";

    assert_eq!(complaint(&text), expected);
    assert!(snapshot(&text).pools.is_empty());
    let without = snapshot(&pool("p", "192.0.2.0/24"));
    assert_eq!(&*without.pools[&PoolName::from("p")].key.namespace, NAMESPACE);
}

/// An object of ours with this spec.
fn ours(kind: &str, name: &str, spec: &str) -> String {
    format!("---\napiVersion: ferrogate.io/v1beta1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

fn peer(name: &str, address: &str, more: &str) -> String {
    ours("BGPPeer", name, &format!("myASN: 64500, peerASN: 64501, peerAddress: {address}{more}"))
}

/// A Secret beside our own objects, with more at its top.
fn secret(name: &str, more: &str) -> String {
    let metadata = format!("{{name: {name}, namespace: {NAMESPACE}}}");
    format!("---\n{{apiVersion: v1, kind: Secret, metadata: {metadata}, {more}}}\n")
}

/// Files of a small world in which everything can meet everything: each is one choice for one of a few files.
fn file_text(choice: usize) -> String {
    let slice = |name: &str, service: &str, address: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: \
             {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nendpoints: [{{addresses: [{address}]}}]\n"
        )
    };
    let l2 = |pools: &str| {
        format!(
            "---\napiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: {{name: l2}}\nspec: \
             {{ipAddressPools: [{pools}]}}\n"
        )
    };
    let node = |name: &str| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    let backend = |name: &str| format!("defaultBackend: {{service: {{name: {name}, port: {{number: 80}}}}}}");
    match choice {
        0 => String::new(),
        1 => service("", ""),
        2 => service("", ", externalTrafficPolicy: Local"),
        3 => service("", "").replace("web", "db"),
        4 => "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {type: ExternalName}\n".to_owned(),
        5 => slice("s", "web", "192.0.2.1"),
        6 => slice("s", "db", "192.0.2.2"),
        7 => slice("t", "web", "192.0.2.3"),
        8 => pool("p", "192.0.2.0/24"),
        9 => pool("p", "198.51.100.0/24"),
        10 => pool("q", "192.0.2.0/25"),
        11 => format!("{}{}", pool("q", "203.0.113.0/24"), pool("o", "192.0.2.64/32")),
        12 => l2("p"),
        13 => l2("q"),
        14 => ingress("", &backend("web")),
        15 => ingress("", &format!("ingressClassName: edge, {}", backend("db"))),
        16 => class("edge", ingress_class::CONTROLLER, false),
        17 => class("edge", "example.com/other", true),
        18 => node("one"),
        19 => node("two"),
        20 => "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {b: c}}\n".to_owned(),
        21 => "apiVersion: v1\nkind: Nonsense\nmetadata: {name: a}\n".to_owned(),
        22 => pool("p", "192.0.2.0/23").replace("ferrogate.io", "metallb.io"),
        23 => l2("p").replace("ferrogate.io", "metallb.io"),
        24 => format!("{}{}", pool("q", "192.0.2.0/24"), l2("q").replace("l2", "l3"))
            .replace("ferrogate.io", "metallb.io"),
        25 => peer("a", "192.0.2.1", ", bfdProfile: fast"),
        26 => peer("b", "192.0.2.1", ", nodeSelectors: [{matchLabels: {kubernetes.io/hostname: one}}]"),
        27 => format!("{}{}", peer("c", "192.0.2.2", ""), peer("b", "192.0.2.2", "")),
        28 => ours("BFDProfile", "fast", "echoMode: true"),
        29 => ours("BFDProfile", "fast", ""),
        30 => ours("BGPAdvertisement", "x", "localPref: 100, communities: [red]"),
        31 => ours("BGPAdvertisement", "x", "aggregationLength: 24, peers: [a]"),
        32 => ours("BGPAdvertisement", "y", "localPref: 200, ipAddressPools: [q, p]"),
        33 => ours("Community", "k", "communities: [{name: red, value: '1:1'}]"),
        34 => ours("Community", "l", "communities: [{name: red, value: '1:2'}, {name: blue, value: '1:3'}]"),
        35 => pool("p", "192.0.2.0/24, '2001:db8::/64'"),
        36 => peer("a", "192.0.2.1", ", passwordSecret: {name: key}"),
        37 => secret("key", "type: kubernetes.io/basic-auth, stringData: {password: one}"),
        38 => secret("key", "type: kubernetes.io/basic-auth, stringData: {password: two}"),
        39 => secret("key", "type: Opaque, stringData: {password: two}"),
        40 => ours("BGPPeer", "d", "myASN: 64500, peerASN: 64501, peerPrefix: 192.0.2.0/24"),
        41 => ours("BGPPeer", "e", "myASN: 64500, peerASN: 64501, peerPrefix: 192.0.2.0/28"),
        42 => ours("BGPPeer", "f", "peerASN: 64501, nodeValues: {myASN: {label: asn}, peerAddress: {label: tor}}"),
        43 => node("one").replace("name: one", "name: one, annotations: {ferrogate.io/tor: 192.0.2.1, other: x}"),
        _ => format!("{}{}", service("", "").replace("web", "db"), slice("s", "web", "192.0.2.4")),
    }
}

const CHOICES: usize = 45;

#[derive(Clone, Debug)]
enum Turn {
    File(usize, usize),
    Service(Option<u8>),
    Pool(Option<i64>),
    Ingress(Option<u8>),
    Announcer(usize, Option<usize>),
    Advertiser(usize, Option<usize>),
    Session(usize, Option<usize>),
    Unreachable(bool),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        8 => (0..5usize, 0..CHOICES).prop_map(|(file, choice)| Turn::File(file, choice)),
        1 => proptest::option::of(0..3u8).prop_map(Turn::Service),
        1 => proptest::option::of(0..3i64).prop_map(Turn::Pool),
        1 => proptest::option::of(0..3u8).prop_map(Turn::Ingress),
        1 => (0..3usize, proptest::option::of(0..2usize)).prop_map(|(file, node)| Turn::Announcer(file, node)),
        1 => (0..3usize, proptest::option::of(0..2usize)).prop_map(|(file, node)| Turn::Advertiser(file, node)),
        1 => (0..3usize, proptest::option::of(0..2usize)).prop_map(|(file, node)| Turn::Session(file, node)),
        1 => any::<bool>().prop_map(Turn::Unreachable),
    ]
}

/// Everything a translator was told last, to tell it to another at once.
#[derive(Clone, Default)]
struct Told {
    files: BTreeMap<usize, usize>,
    service: Option<u8>,
    pool: Option<i64>,
    ingress: Option<u8>,
    announcers: BTreeMap<usize, Option<usize>>,
    advertisers: BTreeMap<usize, Option<usize>>,
    sessions: BTreeMap<usize, Option<usize>>,
    unreachable: bool,
}

fn l2_status() -> L2Status {
    L2Status {
        pool: "p".into(),
        addresses: Vec::new(),
        interfaces: BTreeSet::new(),
        transitions: 0,
        conflicts: Vec::new(),
    }
}

impl Told {
    fn tell(&self, translator: &mut Translator) {
        let nodes = ["one", "two"].map(NodeName::from);
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        for (file, choice) in &self.files {
            feed(translator, &format!("{file}.yaml"), &file_text(*choice));
        }
        let web = ObjectKey::new("default", "web");
        let status = self
            .service
            .map(|last| Remembered::Known(ServiceStatus { addresses: vec![address(last)], ..Default::default() }));
        translator.remember_service(web.clone(), status);
        let status =
            self.pool.map(|count| Remembered::Known(PoolStatus { assigned_ipv4: count, ..Default::default() }));
        translator.remember_pool(ObjectKey::new(NAMESPACE, "q"), status);
        translator.remember_ingress(web.clone(), self.ingress.map(|last| Remembered::Known(vec![address(last)])));
        for (file, node) in &self.announcers {
            let said = |node: usize| Announcer {
                service: web.clone(),
                node: nodes[node].clone(),
                status: L2Status { transitions: u32::try_from(*file).unwrap(), ..l2_status() },
            };
            translator.remember_announcer(&file.to_string(), node.map(said));
        }
        for (file, node) in &self.advertisers {
            let said = |node: usize| Advertiser {
                service: web.clone(),
                node: nodes[node].clone(),
                peers: [format!("peer-{file}").into()].into(),
            };
            translator.remember_advertiser(&file.to_string(), node.map(said));
        }
        for (file, node) in &self.sessions {
            let session = BgpSession { flaps: u32::try_from(*file).unwrap(), ..BgpSession::default() };
            let said = |node: usize| Reporting {
                node: nodes[node].clone(),
                peer: "peer".into(),
                report: BgpReport { session: session.clone(), since: String::new(), closed_at: None },
            };
            translator.remember_session(&file.to_string(), node.map(said));
        }
        translator.set_unreachable(if self.unreachable { [nodes[0].clone()].into() } else { BTreeSet::new() });
    }
}

#[test]
fn conditions_of_the_state_show_until_their_file_goes() {
    let mut translator = translator(Source::Directory);
    let object = ObjectRef::namespaced("ferrogate.io/v1beta1", "L2Advertisement", &ObjectKey::new("default", "a"));
    let accepted = Condition {
        kind: "Accepted".to_owned(),
        holds: true,
        reason: "Accepted".to_owned(),
        message: "in force".to_owned(),
        observed_generation: 0,
    };

    translator.remember_conditions("a.yaml", Some((object.clone(), vec![accepted.clone()])));
    let shown = translator.snapshot();
    translator.remember_conditions("a.yaml", None);
    let gone = translator.snapshot();

    assert_eq!(shown.conditions[&object].as_slice(), [accepted]);
    assert!(gone.conditions.is_empty());
}

proptest! {
    #[test]
    fn a_snapshot_made_step_by_step_equals_one_made_at_once(turns in proptest::collection::vec(turn(), 1..25)) {
        let lone = Some(NodeName::from("lone"));
        // The same namespace for both spellings, so that nothing else tells their objects apart.
        let (namespace, metallb) = (NAMESPACE.to_owned(), Some(NAMESPACE.to_owned()));
        let rules = Rules { class: ClassPolicy::default(), namespace, metallb, secrets: true, source: Source::Directory };
        let mut told = Told::default();
        let mut stepwise = Translator::new(rules.clone(), lone.clone());
        for turn in turns {
            match turn {
                Turn::File(file, choice) => { told.files.insert(file, choice); }
                Turn::Service(last) => told.service = last,
                Turn::Pool(count) => told.pool = count,
                Turn::Ingress(last) => told.ingress = last,
                Turn::Announcer(file, node) => { told.announcers.insert(file, node); }
                Turn::Advertiser(file, node) => { told.advertisers.insert(file, node); }
                Turn::Session(file, node) => { told.sessions.insert(file, node); }
                Turn::Unreachable(yes) => told.unreachable = yes,
            }
            told.tell(&mut stepwise);
            let stood = stepwise.standing.clone();
            let by_steps = stepwise.snapshot();
            // What stood is all there is to remember.
            let mut at_once = Translator { standing: stood, ..Translator::new(rules.clone(), lone.clone()) };
            told.tell(&mut at_once);
            prop_assert_eq!(&*by_steps, &*at_once.snapshot());
        }
    }
}
