//! What decides about addresses: pools, classes, wishes, and statuses that others have written into.

use ferrogate_core::{
    model::{pool::Sharing, service::DEFAULT_CLASS},
    write::Condition,
};

use super::*;

fn the_pool(spec: &str) -> Arc<Pool> {
    let text =
        format!("apiVersion: ferrogate.io/v1beta1\nkind: IPAddressPool\nmetadata: {{name: p}}\nspec: {{{spec}}}\n");
    let snapshot = snapshot(&text);
    assert_eq!(problems(&snapshot), Vec::<String>::new());
    snapshot.pools[&PoolName::from("p")].clone()
}

#[test]
fn edges_are_left_out_of_prefixes_alone_and_only_where_it_is_asked_for() {
    let edges = |spec: &str| the_pool(spec).edges.iter().map(ToString::to_string).collect::<Vec<_>>();
    let addresses = "addresses: [192.0.2.64/26, 192.0.2.128-192.0.2.191, '2001:db8::/64']";

    assert_eq!(edges(addresses), Vec::<String>::new());
    assert_eq!(edges(&format!("{addresses}, avoidBuggyIPs: true")), ["192.0.2.64", "192.0.2.127", "2001:db8::"]);
}

#[test]
fn m_086_sharing_is_within_a_namespace_unless_the_pool_says_otherwise() {
    assert_eq!(the_pool("addresses: [192.0.2.0/24]").sharing, Sharing::SameNamespace);
    assert_eq!(the_pool("addresses: [192.0.2.0/24], sharing: SameNamespace").sharing, Sharing::SameNamespace);
    assert_eq!(the_pool("addresses: [192.0.2.0/24], sharing: AnyNamespace").sharing, Sharing::AnyNamespace);
}

#[test]
fn m_079_a_class_class_less_services_or_both_are_served() {
    let one = |name: &str, class: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer{class}, \
             ports: [{{port: 80}}]}}\n"
        )
    };
    let text = [
        one("classless", ""),
        one("ours", ", loadBalancerClass: ferrogate.io/lb"),
        one("others", ", loadBalancerClass: example.com/other"),
        one("inner", "").replace("LoadBalancer", "ClusterIP"),
    ]
    .concat();
    let class = || Some(DEFAULT_CLASS.to_owned());
    let table = [
        (ClassPolicy { class: None, serve_classless: true }, &["classless"][..]),
        (ClassPolicy { class: class(), serve_classless: false }, &["ours"]),
        (ClassPolicy { class: class(), serve_classless: true }, &["classless", "ours"]),
        (ClassPolicy { class: None, serve_classless: false }, &[]),
    ];
    for (policy, expected) in table {
        let rules = Rules { class: policy.clone(), ..translator(Source::Directory).rules().clone() };
        let mut translator = Translator::new(rules, None);
        feed(&mut translator, "f.yaml", &text);
        let snapshot = translator.snapshot();

        let served = snapshot.services.values().filter(|service| service.load_balancer.is_some());
        assert_eq!(served.map(|service| &*service.key.name).collect::<Vec<_>>(), expected, "{policy:?}");
        let foreign = snapshot.services.values().filter(|service| service.is_foreign);
        assert_eq!(foreign.count(), 3 - expected.len(), "{policy:?}");
    }
}

/// What is seen of a Service with this `status.loadBalancer.ingress` at an API server.
fn observed(ingress: &str) -> ServiceStatus {
    let text = format!(
        "{}status: {{loadBalancer: {{ingress: [{ingress}]}}, conditions: [{{type: ferrogate.io/AddressAssigned, \
         status: 'True', reason: Assigned, message: m, lastTransitionTime: '1970-01-01T00:01:40Z'}}]}}\n",
        service("", "")
    );
    snapshot_in(Source::Kubernetes, &text).services[&ServiceKey::new("default", "web")].observed.clone()
}

#[test]
fn m_043_what_others_wrote_into_a_status_is_seen_as_theirs() {
    let addresses = |status: &ServiceStatus| status.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    for plain in ["{ip: 192.0.2.1}", "{ip: 192.0.2.1, ipMode: VIP}", "{ip: 192.0.2.1, hostname: '', ports: []}"] {
        let status = observed(plain);
        assert_eq!((addresses(&status), status.is_altered), (vec!["192.0.2.1".to_owned()], false), "{plain}");
    }
    for altered in [
        "{ip: 192.0.2.1, ipMode: Proxy}",
        "{ip: 192.0.2.1, hostname: web.example}",
        "{ip: 192.0.2.1}, {hostname: web.example}",
        "{ip: 192.0.2.1, ports: [{port: 80, protocol: TCP}]}",
        "{ip: '::ffff:192.0.2.1'}",
    ] {
        let status = observed(altered);
        assert_eq!((addresses(&status), status.is_altered), (vec!["192.0.2.1".to_owned()], true), "{altered}");
    }
    let only_a_name = observed("{hostname: web.example}");
    assert_eq!((addresses(&only_a_name), only_a_name.is_altered), (vec![], true));
}

#[test]
fn since_when_an_address_is_assigned_is_read_and_makes_no_difference_between_statuses() {
    let status = observed("{ip: 192.0.2.1}");
    assert_eq!(status.assigned_at, Some(100));
    let condition = Condition { holds: false, ..status.condition.clone().unwrap() };

    assert_eq!(status, ServiceStatus { assigned_at: None, ..status.clone() });
    assert_ne!(status, ServiceStatus { condition: Some(condition), ..status.clone() });
}

#[test]
fn annotations_with_blanks_lists_duplicates_and_nothing_are_read_or_named() {
    let request = |annotations: &str| wish(&format!(", annotations: {{{annotations}}}"), "");
    let ips = |value: &str| request(&format!("ferrogate.io/loadBalancerIPs: \"{value}\""));
    let addresses = |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };

    for nothing in ["", " ", "\\t", "\\n"] {
        assert_eq!(ips(nothing).map(|request| request.addresses), Ok(vec![]), "{nothing:?}");
    }
    for (value, expected) in [
        ("\\t192.0.2.7\\n", &["192.0.2.7"][..]),
        ("192.0.2.7 ,\\t2001:DB8:0::7", &["192.0.2.7", "2001:db8::7"]),
        ("::FFFF:192.0.2.7 , 2001:db8::7", &["192.0.2.7", "2001:db8::7"]),
    ] {
        assert_eq!(ips(value).map(|request| request.addresses), Ok(addresses(expected)), "{value:?}");
    }
    for unreadable in [",", "192.0.2.7,,2001:db8::7", "192.0.2.7 2001:db8::7", "192.0.2.0/24", "192.0.2.07", "web"] {
        assert!(matches!(ips(unreadable), Err(RequestFault::NotAnAddress { .. })), "{unreadable:?}");
    }
    for twice in ["192.0.2.7,192.0.2.7", "192.0.2.7, ::ffff:192.0.2.7", "2001:db8::7,2001:db8:0:0::7"] {
        assert!(matches!(ips(twice), Err(RequestFault::SameFamily { .. })), "{twice:?}");
    }
    assert!(matches!(ips(&["192.0.2.7"; 300].join(",")), Err(RequestFault::TooMany { count: 300, .. })));
    let blank = request("ferrogate.io/address-pool: ' ', ferrogate.io/allow-shared-ip: ''").unwrap();
    assert_eq!((blank.pool, blank.sharing_key), (None, None));
    let padded = request("ferrogate.io/address-pool: ' p ', ferrogate.io/allow-shared-ip: ' a, b '").unwrap();
    assert_eq!((padded.pool, padded.sharing_key), (Some("p".into()), Some("a, b".to_owned())));
}
