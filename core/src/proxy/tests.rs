use std::sync::Arc;

use super::{
    explain::{Carried, EndpointHop, Part, chain},
    fixtures::{
        BuildEndpoint, BuildIngress, BuildService, address, backend, endpoint, ingress, key, number, port, service,
        snapshot, to,
    },
    *,
};
use crate::{
    model::{
        entry::{ENTRY_NAME, EntryPort, EntryService, EntryWish},
        node::Node,
    },
    proxy::backend::Unused,
};

fn tcp(socket: &str) -> ListenerKey {
    ListenerKey { socket: socket.parse().unwrap(), transport: Transport::Tcp }
}

fn udp(socket: &str) -> ListenerKey {
    ListenerKey { transport: Transport::Udp, ..tcp(socket) }
}

/// The addresses that a listener passes traffic on to, the preferred first.
fn targets(table: &RouteTable, listener: ListenerKey) -> Vec<String> {
    let Some(Serves::Tcp(id) | Serves::Udp(id)) = table.listener(listener).map(|listener| listener.serves) else {
        return Vec::new();
    };
    table.backend(id).unwrap().targets().iter().map(|target| target.address.to_string()).collect()
}

fn local(service: Service) -> Service {
    Service { external_traffic_policy: TrafficPolicy::Local, ..service }
}

fn entry() -> Service {
    Service { is_entry: true, endpoints: Vec::new(), ..service("entry") }
}

#[test]
fn every_port_of_every_address_gets_a_listener_of_its_own() {
    let mut web = backend("web").at("192.0.2.1").at("2001:db8::1");
    web.ports.push(port("dns", Protocol::Udp, 53));

    let table = RouteTable::compile(&snapshot([web], []), None);

    let open: Vec<ListenerKey> = table.listeners().keys().copied().collect();
    assert_eq!(open, [udp("192.0.2.1:53"), tcp("192.0.2.1:80"), udp("[2001:db8::1]:53"), tcp("[2001:db8::1]:80")]);
    assert_eq!(targets(&table, tcp("192.0.2.1:80")), ["198.51.100.1:8080"]);
    assert_eq!(targets(&table, udp("192.0.2.1:53")), ["198.51.100.1:5353"]);
}

#[test]
fn a_service_without_address_or_of_another_type_is_not_served() {
    let cluster_ip = Service { load_balancer: None, ..backend("internal").at("192.0.2.9") };

    let table = RouteTable::compile(&snapshot([backend("web"), cluster_ip], []), None);

    assert!(table.listeners().is_empty());
    assert_eq!(table.unserved(), []);
}

#[test]
fn l_002_the_entry_serves_http_on_each_of_its_ports() {
    let mut entry = entry().at("192.0.2.1");
    entry.ports.push(port("alt", Protocol::Tcp, 8080));
    entry.ports.push(port("quic", Protocol::Udp, 443));

    let table = RouteTable::compile(&snapshot([entry], []), None);

    assert_eq!(table.listener(tcp("192.0.2.1:80")).unwrap().serves, Serves::Http);
    assert_eq!(table.listener(tcp("192.0.2.1:8080")).unwrap().serves, Serves::Http);
    assert_eq!(table.listeners().len(), 2);
    let why = Why::EntryProtocol { port: number(443), protocol: Protocol::Udp };
    assert_eq!(table.unserved(), [Unserved { object: ObjectRef::service(&key("entry")), generation: 1, why }]);
}

#[test]
fn a_port_of_sctp_is_reported_and_the_others_are_served() {
    let mut web = backend("web").at("192.0.2.1");
    web.ports.push(port("signal", Protocol::Sctp, 2905));

    let table = RouteTable::compile(&snapshot([web.clone()], []), None);

    assert!(table.listener(tcp("192.0.2.1:80")).is_some());
    let [unserved] = table.unserved() else { panic!("{:?}", table.unserved()) };
    assert_eq!(unserved.why.reason(), "UnsupportedProtocol");
    assert!(unserved.why.to_string().starts_with("port 2905/SCTP: "));
    assert_eq!(unserved_ports(&web).collect::<Vec<_>>(), table.unserved());
}

#[test]
fn of_two_services_with_one_address_and_port_the_older_is_served_and_the_younger_reported() {
    let young = Service { created: 20, ..backend("aaa").at("192.0.2.1") };
    let old = Service { created: 10, ..backend("bbb").at("192.0.2.1") };

    let table = RouteTable::compile(&snapshot([young, old], []), None);

    assert_eq!(table.listener(tcp("192.0.2.1:80")).unwrap().service, key("bbb"));
    let why = Why::PortTaken { socket: "192.0.2.1:80".parse().unwrap(), protocol: Protocol::Tcp, by: key("bbb") };
    assert_eq!(table.unserved(), [Unserved { object: ObjectRef::service(&key("aaa")), generation: 1, why }]);
}

#[test]
fn services_that_share_an_address_with_different_ports_are_both_served() {
    let mut dns = backend("dns").at("192.0.2.1");
    dns.ports = vec![port("dns", Protocol::Udp, 80)];

    let table = RouteTable::compile(&snapshot([backend("web").at("192.0.2.1"), dns], []), None);

    assert_eq!(table.listener(tcp("192.0.2.1:80")).unwrap().service, key("web"));
    assert_eq!(table.listener(udp("192.0.2.1:80")).unwrap().service, key("dns"));
    assert_eq!(table.unserved(), []);
}

#[test]
fn source_ranges_hold_for_http_tcp_and_udp() {
    let source_ranges = vec!["203.0.113.0/24".parse().unwrap()];
    let mut web = Service { source_ranges: source_ranges.clone(), ..backend("web").at("192.0.2.1") };
    web.ports.push(port("dns", Protocol::Udp, 53));
    let entry = Service { source_ranges, ..entry().at("192.0.2.2") };

    let table = RouteTable::compile(&snapshot([web, entry], []), None);

    for listener in [tcp("192.0.2.1:80"), udp("192.0.2.1:53"), tcp("192.0.2.2:80")] {
        let ranges = &table.listener(listener).unwrap().source_ranges;
        assert!(ranges.allows(address("203.0.113.7")) && !ranges.allows(address("198.51.100.7")), "{listener:?}");
    }
}

#[test]
fn with_local_traffic_policy_only_endpoints_of_the_own_node_take_traffic() {
    let web = local(service("web").with(endpoint("198.51.100.1").on("a")).with(endpoint("198.51.100.2").on("b")));
    let snapshot = snapshot([web.at("192.0.2.1")], []);
    let on = |node: Option<&str>| {
        let node = node.map(NodeName::from);
        targets(&RouteTable::compile(&snapshot, node.as_ref()), tcp("192.0.2.1:80"))
    };

    assert_eq!(on(Some("a")), ["198.51.100.1:8080"]);
    assert_eq!(on(Some("b")), ["198.51.100.2:8080"]);
    assert_eq!(on(Some("c")), Vec::<String>::new());
    assert_eq!(on(None), ["198.51.100.1:8080", "198.51.100.2:8080"]);
}

#[test]
fn l_007_requests_of_an_ingress_reach_endpoints_on_every_node_whatever_the_policy() {
    let web = local(service("web").with(endpoint("198.51.100.1").on("a")).with(endpoint("198.51.100.2").on("b")));
    let snapshot = snapshot([web], [ingress("one").prefix("", "/", "web")]);

    let table = RouteTable::compile(&snapshot, Some(&NodeName::from("a")));

    let route = table.route(&RequestView { host: None, path: "/" }).unwrap();
    assert_eq!(route.backend.targets().len(), 2);
}

#[test]
fn each_family_of_a_dual_stack_service_reaches_its_own_endpoints() {
    let web = service("web").with(endpoint("198.51.100.1")).with(endpoint("2001:db8:1::1"));

    let table = RouteTable::compile(&snapshot([web.at("192.0.2.1").at("2001:db8::1")], []), None);

    assert_eq!(targets(&table, tcp("192.0.2.1:80")), ["198.51.100.1:8080"]);
    assert_eq!(targets(&table, tcp("[2001:db8::1]:80")), ["[2001:db8:1::1]:8080"]);
}

#[test]
fn an_address_without_endpoints_of_its_family_reaches_those_of_the_other() {
    let web = service("web").with(endpoint("198.51.100.1")).with(endpoint("2001:db8:1::1").not_ready());

    let table = RouteTable::compile(&snapshot([web.at("2001:db8::1")], []), None);

    assert_eq!(targets(&table, tcp("[2001:db8::1]:80")), ["198.51.100.1:8080"]);
}

#[test]
fn an_endpoint_in_two_slices_counts_once_and_by_its_best_word() {
    let web = service("web").with(endpoint("198.51.100.1").terminating()).with(endpoint("198.51.100.1"));

    let table = RouteTable::compile(&snapshot([web.at("192.0.2.1")], []), None);

    let Some(Serves::Tcp(id)) = table.listener(tcp("192.0.2.1:80")).map(|listener| listener.serves) else { panic!() };
    let [target] = table.backend(id).unwrap().targets() else { panic!() };
    assert_eq!(target.tier, Tier { unreachable: false, terminating: false });
}

#[test]
fn flows_stay_with_terminating_endpoints_and_leave_those_out_of_sight_or_gone() {
    let web = service("web")
        .with(endpoint("198.51.100.1").on("a"))
        .with(endpoint("198.51.100.2").on("a").terminating())
        .with(endpoint("198.51.100.3").on("b"));
    let mut facts = snapshot([web.at("192.0.2.1")], []);
    facts.unreachable.insert("b".into());
    let keeps = |facts: &Snapshot, endpoint: &str| {
        let table = RouteTable::compile(facts, None);
        table.backends()[0].keeps(format!("{endpoint}:8080").parse().unwrap())
    };

    assert!(keeps(&facts, "198.51.100.1"));
    assert!(keeps(&facts, "198.51.100.2"));
    assert!(!keeps(&facts, "198.51.100.3"));
    assert!(!keeps(&facts, "198.51.100.4"));
    facts.unreachable.insert("a".into());
    assert!(keeps(&facts, "198.51.100.3"));
}

#[test]
fn rules_that_name_one_service_port_share_a_backend() {
    let ingress = ingress("one").prefix("", "/a", "web").prefix("", "/b", "web");

    let table = RouteTable::compile(&snapshot([backend("web")], [ingress]), None);

    assert_eq!(table.backends().len(), 1);
}

#[test]
fn what_is_wrong_with_rules_is_known_without_listeners() {
    let facts = snapshot([entry().at("192.0.2.1")], [ingress("one").prefix("", "/", "missing")]);

    let unserved = unserved_rules(&facts);

    let why = Why::ServiceMissing { service: key("missing") };
    assert_eq!(unserved, [Unserved { object: ObjectRef::ingress(&key("one")), generation: 1, why }]);
}

#[test]
fn l_010_the_chain_of_a_service_names_each_hop_and_the_part_of_each_endpoint() {
    let mut web = service("web")
        .with(endpoint("198.51.100.1").on("a"))
        .with(endpoint("198.51.100.2").on("b"))
        .with(endpoint("198.51.100.3").on("a").terminating())
        .with(endpoint("198.51.100.4").on("a").not_ready())
        .at("192.0.2.1");
    web.ports[0].node_port = Some(number(30080));
    let mut facts = snapshot([web], []);
    facts.unreachable.insert("b".into());

    let hops = chain(&facts, &key("web"), None).unwrap();

    let [hop] = hops.as_slice() else { panic!("{hops:?}") };
    assert_eq!((hop.address, hop.port, hop.node_port), (Some(address("192.0.2.1")), number(80), Some(number(30080))));
    assert_eq!(hop.carried, Some(Ok(Carried::Forwarded)));
    let parts: Vec<String> = hop.endpoints.iter().map(|endpoint| endpoint.part.to_string()).collect();
    assert_eq!(
        parts,
        [
            "takes traffic",
            "takes traffic only when no other is left: its node is out of sight",
            "takes traffic only when no ready one is left: it is terminating",
            "takes no traffic: it is not ready",
        ]
    );
}

#[test]
fn the_chain_says_why_a_port_is_not_carried() {
    let mut web = backend("web").at("192.0.2.1");
    web.ports.push(port("signal", Protocol::Sctp, 2905));
    let other = Service { created: 5, ..backend("other").at("192.0.2.1") };
    let facts = snapshot([web, other, backend("waiting")], []);
    let reasons = |name| {
        let hops = chain(&facts, &key(name), None).unwrap();
        hops.iter()
            .map(|hop| hop.carried.as_ref().map(|carried| carried.as_ref().map_err(Why::reason).copied()))
            .collect::<Vec<_>>()
    };

    assert_eq!(reasons("web"), [Some(Ok(Carried::Forwarded)), Some(Err("UnsupportedProtocol"))]);
    assert_eq!(reasons("other"), [Some(Err("PortTaken"))]);
    assert_eq!(reasons("waiting"), [None]);
    assert_eq!(chain(&facts, &key("nobody"), None), None);
}

#[test]
fn the_chain_of_a_local_service_depends_on_the_node_that_is_asked() {
    let web = local(service("web").with(endpoint("198.51.100.1").on("a")).at("192.0.2.1"));

    let hops = chain(&snapshot([web], []), &key("web"), Some(&NodeName::from("b"))).unwrap();

    let part = Part::Unused(Unused::OnOtherNode);
    let node = Some(NodeName::from("a"));
    assert_eq!(hops[0].endpoints, [EndpointHop { address: address("198.51.100.1"), node, part }]);
}

/// Facts of a cluster whose entry has both families and listens on 20000.
fn cluster(node: &[&str]) -> Snapshot {
    let mut entry = entry().at("192.0.2.1");
    entry.key = ObjectKey::new("ferrogate-system", ENTRY_NAME);
    entry.cluster_ips = vec![address("10.96.0.1"), address("2001:db8::1")];
    let mut facts = snapshot(
        [entry, backend("web").at("192.0.2.2")],
        [ingress("web").path("web.example", "/", PathKind::Prefix, to("web"))],
    );
    let port = |name: &str, port, target: Option<u16>| EntryPort {
        name: name.to_owned(),
        port: number(port),
        target: target.map(number),
        has_node_port: true,
    };
    let service = EntryService {
        is_labelled: true,
        is_load_balancer: true,
        is_local: true,
        prefers_dual_stack: true,
        class: None,
        allocates_node_ports: true,
        ports: vec![port("http", 80, Some(20_000)), port("odd", 81, None)],
    };
    facts.entry = Some(Arc::new(Entry {
        namespace: "ferrogate-system".to_owned(),
        wish: Some(EntryWish { node_ports: true }),
        service: Some(service),
        ..Entry::default()
    }));
    let internal_addresses = node.iter().map(|text| address(text)).collect();
    let node = Node {
        name: "a".into(),
        labels: Default::default(),
        annotations: Default::default(),
        internal_addresses,
        network_unavailable: false,
        unschedulable: false,
    };
    facts.nodes.insert("a".into(), Arc::new(node));
    facts
}

#[test]
fn in_a_cluster_only_the_target_ports_of_the_entry_are_open_on_every_address_of_the_node() {
    let facts = cluster(&["198.51.100.9", "2001:db8::9"]);

    let table = RouteTable::compile(&facts, Some(&"a".into()));

    let open: Vec<_> = table.listeners().iter().map(|(key, listener)| (*key, listener.port.get())).collect();
    assert_eq!(open, [(tcp("0.0.0.0:20000"), 80), (tcp("[::]:20000"), 80)]);
    assert_eq!(table.standing(), Standing::BehindKubeProxy);
    assert_eq!(table.taker("web.example", "/"), Some("web"));
}

#[test]
fn a_node_of_one_family_is_not_asked_for_the_other() {
    let table = RouteTable::compile(&cluster(&["198.51.100.9"]), Some(&"a".into()));

    assert_eq!(table.listeners().keys().copied().collect::<Vec<_>>(), [tcp("0.0.0.0:20000")]);
}

#[test]
fn ingresses_without_the_entry_leave_the_proxy_waiting_and_a_cluster_without_ingresses_does_not() {
    let mut facts = cluster(&[]);
    Arc::make_mut(facts.entry.as_mut().unwrap()).service = None;
    assert_eq!(RouteTable::compile(&facts, None).standing(), Standing::AwaitsEntry);

    Arc::make_mut(facts.entry.as_mut().unwrap()).wish = None;

    assert_eq!(RouteTable::compile(&facts, None).standing(), Standing::BehindKubeProxy);
}
