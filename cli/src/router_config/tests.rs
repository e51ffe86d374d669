//! The facts that are told, and the lines that each vendor must be told them by.

use super::*;
use crate::explain::tests::folder;

/// Two nodes, one of which has a long name, and everything that can be asked for, over IPv4.
pub fn facts() -> Facts {
    let prefix = |text: &str| text.parse().unwrap();
    let node = |node: &str, address: &str| Neighbor { node: node.to_owned(), address: address.parse().unwrap() };
    Facts {
        peer: "tor-a".to_owned(),
        router: "192.0.2.1".parse().unwrap(),
        router_asn: Asn::new(64496).unwrap(),
        our_asn: Asn::new(64500).unwrap(),
        port: NonZeroU16::new(179).unwrap(),
        nodes: vec![node("node-1", "192.0.2.11"), node("node-2", "192.0.2.12")],
        has_password: true,
        multi_hop: false,
        ttl_security_hops: None,
        graceful_restart: true,
        bfd: Some(Bfd {
            transmit_ms: 300,
            receive_ms: 200,
            multiplier: NonZeroU8::new(5).unwrap(),
            minimum_ttl: NonZeroU8::new(250).unwrap(),
        }),
        families: [Family::V4, Family::V6].into(),
        prefixes: vec![prefix("198.51.100.0/25"), prefix("203.0.113.7/32"), prefix("2001:db8::/64")],
        notes: vec!["node-3 is left out: its Node has no InternalIP of IPv4.".to_owned()],
    }
}

/// Expects these lines, however they are indented, in this order.
fn says(text: &str, lines: &[&str]) {
    let mut rest = text.lines().map(str::trim);
    for line in lines {
        assert!(rest.any(|found| found == *line), "{line:?} is missing, or not where it should be, in\n{text}");
    }
}

#[test]
fn every_output_says_for_which_peer_it_is_and_whether_it_was_ever_executed() {
    for vendor in Vendor::value_variants() {
        let text = vendor.config(&facts());

        let first = text.lines().next().unwrap();
        assert!(first.contains("BGPPeer tor-a (192.0.2.1)"), "{vendor:?}: {first}");
        let executed = matches!(vendor, Vendor::Frr | Vendor::Bird | Vendor::Gobgp);
        let mark = first.split(' ').next().unwrap();
        let said = text.lines().any(|line| line == format!("{mark} not executed here"));
        assert_eq!(said, !executed, "{vendor:?}");
        assert!(text.contains(&format!("{mark} node-3 is left out")), "{vendor:?}");
    }
}

#[test]
fn every_output_names_both_autonomous_systems_every_node_and_every_prefix() {
    let facts = Facts { port: NonZeroU16::new(1790).unwrap(), multi_hop: true, ..facts() };
    for vendor in Vendor::value_variants() {
        let text = vendor.config(&facts);

        for part in [
            "64496",
            "64500",
            "192.0.2.11",
            "192.0.2.12",
            "node-1",
            "node-2",
            "198.51.100.0/25",
            "203.0.113.7/32",
            "2001:db8::/64",
            PASSWORD,
            "1790",
        ] {
            assert!(text.contains(part), "{vendor:?} leaves out {part}:\n{text}");
        }
    }
}

#[test]
fn without_password_bfd_and_graceful_restart_none_is_spoken_of() {
    let bare = Facts { has_password: false, graceful_restart: false, bfd: None, ..facts() };
    for vendor in Vendor::value_variants() {
        let text = vendor.config(&bare).to_lowercase();

        for part in ["password", "bfd", "authentication-key", "md5", "multiplier", "helper", "aware"] {
            let is_remark = *vendor == Vendor::Bird && part == "bfd";
            assert!(is_remark || !text.contains(part), "{vendor:?} speaks of {part}:\n{text}");
        }
    }
}

#[test]
fn ios_xe_is_told_in_its_words() {
    says(
        &ios_xe::config(&facts()),
        &[
            "bfd-template single-hop ferrogate-tor-a",
            "interval min-tx 300 min-rx 200 multiplier 5",
            "ip prefix-list ferrogate-tor-a-ipv4 seq 5 permit 198.51.100.0/25 le 32",
            "ip prefix-list ferrogate-tor-a-ipv4 seq 10 permit 203.0.113.7/32",
            "ipv6 prefix-list ferrogate-tor-a-ipv6 seq 5 permit 2001:db8::/64 le 128",
            "route-map ferrogate-tor-a-out deny 10",
            "router bgp 64496",
            "bgp graceful-restart",
            "neighbor ferrogate-tor-a remote-as 64500",
            "neighbor ferrogate-tor-a fall-over bfd",
            "neighbor 192.0.2.11 peer-group ferrogate-tor-a",
            "neighbor 192.0.2.12 peer-group ferrogate-tor-a",
            "address-family ipv4",
            "neighbor ferrogate-tor-a prefix-list ferrogate-tor-a-ipv4 in",
            "neighbor ferrogate-tor-a route-map ferrogate-tor-a-out out",
            "neighbor 192.0.2.11 activate",
            "maximum-paths 2",
            "address-family ipv6",
            "neighbor ferrogate-tor-a prefix-list ferrogate-tor-a-ipv6 in",
            "neighbor 192.0.2.12 activate",
        ],
    );
}

#[test]
fn ios_xe_watches_nodes_several_hops_away_by_a_template_of_its_own_kind() {
    let far = Facts { multi_hop: true, ..facts() };

    says(
        &ios_xe::config(&far),
        &[
            "bfd-template multi-hop ferrogate-tor-a",
            "bfd map ipv4 192.0.2.11/32 192.0.2.1/32 ferrogate-tor-a",
            "neighbor ferrogate-tor-a ebgp-multihop 255",
            "neighbor ferrogate-tor-a fall-over bfd multi-hop",
        ],
    );
}

#[test]
fn junos_is_told_in_its_words() {
    says(
        &junos::config(&facts()),
        &[
            "set policy-options policy-statement ferrogate-tor-a-in term ipv4 from route-filter 198.51.100.0/25 orlonger",
            "set policy-options policy-statement ferrogate-tor-a-in term ipv4 from route-filter 203.0.113.7/32 orlonger",
            "set policy-options policy-statement ferrogate-tor-a-in term ipv4 then accept",
            "set policy-options policy-statement ferrogate-tor-a-in term ipv6 from route-filter 2001:db8::/64 orlonger",
            "set policy-options policy-statement ferrogate-tor-a-in term ipv6 then accept",
            "set policy-options policy-statement ferrogate-tor-a-in term rest then reject",
            "set policy-options policy-statement ferrogate-tor-a-out term all then reject",
            "set protocols bgp group ferrogate-tor-a local-as 64496",
            "set protocols bgp group ferrogate-tor-a type external",
            "set protocols bgp group ferrogate-tor-a peer-as 64500",
            "set protocols bgp group ferrogate-tor-a import ferrogate-tor-a-in",
            "set protocols bgp group ferrogate-tor-a export ferrogate-tor-a-out",
            "set protocols bgp group ferrogate-tor-a family inet unicast",
            "set protocols bgp group ferrogate-tor-a family inet6 unicast",
            "set protocols bgp group ferrogate-tor-a multipath",
            "set protocols bgp group ferrogate-tor-a bfd-liveness-detection transmit-interval minimum-interval 300",
            "set protocols bgp group ferrogate-tor-a bfd-liveness-detection minimum-receive-interval 200",
            "set protocols bgp group ferrogate-tor-a bfd-liveness-detection multiplier 5",
            "set protocols bgp group ferrogate-tor-a neighbor 192.0.2.11 description node-1",
            "set protocols bgp group ferrogate-tor-a neighbor 192.0.2.12 description node-2",
        ],
    );
}

#[test]
fn eos_is_told_in_its_words() {
    says(
        &eos::config(&facts()),
        &[
            "ip prefix-list ferrogate-tor-a-ipv4",
            "seq 10 permit 198.51.100.0/25 le 32",
            "seq 20 permit 203.0.113.7/32",
            "ipv6 prefix-list ferrogate-tor-a-ipv6",
            "seq 10 permit 2001:db8::/64 le 128",
            "route-map ferrogate-tor-a-out deny 10",
            "router bgp 64496",
            "maximum-paths 2 ecmp 2",
            "neighbor ferrogate-tor-a remote-as 64500",
            "neighbor ferrogate-tor-a bfd",
            "neighbor ferrogate-tor-a bfd interval 300 min-rx 200 multiplier 5",
            "neighbor ferrogate-tor-a graceful-restart-helper",
            "neighbor 192.0.2.11 peer group ferrogate-tor-a",
            "address-family ipv4",
            "neighbor ferrogate-tor-a prefix-list ferrogate-tor-a-ipv4 in",
            "neighbor ferrogate-tor-a activate",
            "address-family ipv6",
            "neighbor ferrogate-tor-a prefix-list ferrogate-tor-a-ipv6 in",
            "neighbor ferrogate-tor-a route-map ferrogate-tor-a-out out",
            "neighbor ferrogate-tor-a activate",
        ],
    );
}

#[test]
fn routeros_is_told_in_its_words() {
    says(
        &routeros::config(&facts()),
        &[
            "add chain=ferrogate-tor-a-in rule=\"if (dst in 198.51.100.0/25 && dst-len >= 25) { accept }\"",
            "add chain=ferrogate-tor-a-in rule=\"if (dst in 2001:db8::/64 && dst-len >= 64) { accept }\"",
            "add chain=ferrogate-tor-a-in rule=\"reject\"",
            "add chain=ferrogate-tor-a-out rule=\"reject\"",
            "add interfaces=all addresses=192.0.2.11/32 min-tx=300ms min-rx=200ms multiplier=5",
            "add name=ferrogate-tor-a-1 comment=node-1 as=64496 local.role=ebgp remote.address=192.0.2.11 \
             remote.as=64500 address-families=ip,ipv6 input.filter=ferrogate-tor-a-in \
             output.filter-chain=ferrogate-tor-a-out use-bfd=yes tcp-md5-key=\"REPLACE-WITH-THE-PASSWORD\"",
        ],
    );
}

#[test]
fn vyos_is_told_in_its_words() {
    says(
        &vyos::config(&facts()),
        &[
            "set policy prefix-list ferrogate-tor-a-ipv4 rule 5 prefix 198.51.100.0/25",
            "set policy prefix-list ferrogate-tor-a-ipv4 rule 5 le 32",
            "set policy prefix-list ferrogate-tor-a-ipv4 rule 10 action permit",
            "set policy prefix-list ferrogate-tor-a-ipv4 rule 10 prefix 203.0.113.7/32",
            "set policy prefix-list6 ferrogate-tor-a-ipv6 rule 5 prefix 2001:db8::/64",
            "set policy prefix-list6 ferrogate-tor-a-ipv6 rule 5 le 128",
            "set policy route-map ferrogate-tor-a-out rule 10 action deny",
            "set protocols bfd profile ferrogate-tor-a interval transmit 300",
            "set protocols bgp system-as 64496",
            "set protocols bgp peer-group ferrogate-tor-a remote-as 64500",
            "set protocols bgp peer-group ferrogate-tor-a bfd profile ferrogate-tor-a",
            "set protocols bgp peer-group ferrogate-tor-a graceful-restart restart-helper",
            "set protocols bgp peer-group ferrogate-tor-a address-family ipv4-unicast prefix-list import \
             ferrogate-tor-a-ipv4",
            "set protocols bgp peer-group ferrogate-tor-a address-family ipv4-unicast route-map export \
             ferrogate-tor-a-out",
            "set protocols bgp address-family ipv4-unicast maximum-paths ebgp 2",
            "set protocols bgp peer-group ferrogate-tor-a address-family ipv6-unicast prefix-list import \
             ferrogate-tor-a-ipv6",
            "set protocols bgp neighbor 192.0.2.11 peer-group ferrogate-tor-a",
            "set protocols bgp neighbor 192.0.2.12 description node-2",
        ],
    );
}

#[test]
fn opnsense_is_told_what_to_enter_where() {
    says(
        &opnsense::config(&facts()),
        &[
            "BGP AS Number:  64496",
            "ferrogate-tor-a-ipv4  IPv4  sequence 10  permit  198.51.100.0/25 le 32",
            "ferrogate-tor-a-ipv4  IPv4  sequence 20  permit  203.0.113.7/32",
            "ferrogate-tor-a-ipv6  IPv6  sequence 10  permit  2001:db8::/64 le 128",
            "ferrogate-tor-a-in   permit  ID 10  Prefix List ferrogate-tor-a-ipv4",
            "ferrogate-tor-a-in   permit  ID 20  Prefix List ferrogate-tor-a-ipv6",
            "ferrogate-tor-a-out  deny    ID 10",
            "Peer-IP:        192.0.2.11",
            "Remote AS:      64500",
            "Multi-Protocol: yes",
            "Route-Map In:   ferrogate-tor-a-in",
            "Peer-IP:        192.0.2.12",
        ],
    );
}

#[test]
fn bird_is_told_whether_nodes_are_on_its_link() {
    let direct = "direct; # take this line away where the nodes are not on a link of the router";
    let far = Facts { multi_hop: true, ..facts() };
    let internal = Facts { our_asn: Asn::new(64496).unwrap(), ..facts() };
    let counted = Facts { ttl_security_hops: NonZeroU8::new(3), ..facts() };

    for near in [facts(), internal] {
        let text = bird::config(&near);

        says(
            &text,
            &[
                "protocol direct { ipv4; ipv6; }",
                "ipv4 { import none; export where source != RTS_DEVICE; };",
                "template bgp ferrogate_tor_a {",
                direct,
            ],
        );
        assert!(!text.contains("multihop"), "{text}");
    }
    for (far, multihop) in [(far, "multihop;"), (counted, "multihop 3;")] {
        let text = bird::config(&far);

        says(&text, &["protocol direct { ipv4; ipv6; }", "template bgp ferrogate_tor_a {", multihop]);
        assert!(!text.contains("direct;"), "{text}");
    }
}

#[test]
fn bird_keeps_routes_over_a_restart_of_a_node_that_it_watches_by_bfd() {
    let timers = "bfd { min rx interval 200 ms; min tx interval 300 ms; multiplier 5; };";
    let unkept = Facts { graceful_restart: false, ..facts() };

    says(&bird::config(&facts()), &["bfd graceful;", timers, "graceful restart aware;"]);
    says(&bird::config(&unkept), &[timers, "graceful restart off;"]);
    assert!(!bird::config(&unkept).contains("bfd graceful"));
}

#[test]
fn what_an_earlier_run_let_in_is_taken_back_before_anything_is_let_in() {
    says(
        &frr::config(&facts()),
        &[
            "no ip prefix-list ferrogate-tor-a-ipv4",
            "ip prefix-list ferrogate-tor-a-ipv4 seq 5 permit 198.51.100.0/25 le 32",
            "no ipv6 prefix-list ferrogate-tor-a-ipv6",
            "ipv6 prefix-list ferrogate-tor-a-ipv6 seq 5 permit 2001:db8::/64 le 128",
        ],
    );
    says(
        &ios_xe::config(&facts()),
        &[
            "no ip prefix-list ferrogate-tor-a-ipv4",
            "ip prefix-list ferrogate-tor-a-ipv4 seq 5 permit 198.51.100.0/25 le 32",
            "no ipv6 prefix-list ferrogate-tor-a-ipv6",
            "ipv6 prefix-list ferrogate-tor-a-ipv6 seq 5 permit 2001:db8::/64 le 128",
        ],
    );
    says(
        &eos::config(&facts()),
        &[
            "no ip prefix-list ferrogate-tor-a-ipv4",
            "ip prefix-list ferrogate-tor-a-ipv4",
            "no ipv6 prefix-list ferrogate-tor-a-ipv6",
            "ipv6 prefix-list ferrogate-tor-a-ipv6",
        ],
    );
    says(
        &junos::config(&facts()),
        &[
            "delete policy-options policy-statement ferrogate-tor-a-in",
            "set policy-options policy-statement ferrogate-tor-a-in term ipv4 from route-filter 198.51.100.0/25 orlonger",
        ],
    );
    says(
        &vyos::config(&facts()),
        &[
            "delete policy prefix-list ferrogate-tor-a-ipv4",
            "set policy prefix-list ferrogate-tor-a-ipv4 rule 5 action permit",
            "delete policy prefix-list6 ferrogate-tor-a-ipv6",
            "set policy prefix-list6 ferrogate-tor-a-ipv6 rule 5 action permit",
        ],
    );
    says(
        &routeros::config(&facts()),
        &[
            "/routing filter rule",
            "remove [find chain=\"ferrogate-tor-a-in\"]",
            "remove [find chain=\"ferrogate-tor-a-out\"]",
            "add chain=ferrogate-tor-a-in rule=\"if (dst in 198.51.100.0/25 && dst-len >= 25) { accept }\"",
        ],
    );
    says(
        &opnsense::config(&facts()),
        &[
            "# Remove the prefix lists ferrogate-tor-a-ipv4 and ferrogate-tor-a-ipv6 of an earlier run before you enter these:",
            "Routing > BGP > Prefix Lists",
        ],
    );
}

#[test]
fn no_node_speaks_with_ios_xe_or_eos_before_its_filters_stand() {
    for (vendor, group) in [(Vendor::IosXe, "peer-group"), (Vendor::Eos, "peer group")] {
        let text = vendor.config(&facts());

        says(
            &text,
            &[
                "router bgp 64496",
                &format!("neighbor ferrogate-tor-a {group}"),
                "neighbor ferrogate-tor-a shutdown",
                "no ip prefix-list ferrogate-tor-a-ipv4",
                "no ipv6 prefix-list ferrogate-tor-a-ipv6",
                "router bgp 64496",
                &format!("neighbor 192.0.2.11 {group} ferrogate-tor-a"),
                "neighbor ferrogate-tor-a prefix-list ferrogate-tor-a-ipv4 in",
                "neighbor ferrogate-tor-a prefix-list ferrogate-tor-a-ipv6 in",
                "neighbor ferrogate-tor-a route-map ferrogate-tor-a-out out",
            ],
        );
        assert_eq!(text.lines().last().map(str::trim), Some("no neighbor ferrogate-tor-a shutdown"), "{text}");
    }
}

#[test]
fn the_as_of_a_whole_junos_router_is_left_alone() {
    let internal = Facts { our_asn: Asn::new(64496).unwrap(), ..facts() };
    for facts in [facts(), internal] {
        let text = junos::config(&facts);

        says(&text, &["set protocols bgp group ferrogate-tor-a local-as 64496"]);
        assert!(!text.lines().any(|line| line.starts_with("set routing-options autonomous-system")), "{text}");
    }
}

#[test]
fn who_counts_hops_is_told_how_many() {
    let near = Facts { ttl_security_hops: NonZeroU8::new(1), ..facts() };
    let far = Facts { ttl_security_hops: NonZeroU8::new(3), ..facts() };

    says(&frr::config(&far), &["neighbor ferrogate-tor-a ttl-security hops 3"]);
    says(&bird::config(&near), &["ttl security on;"]);
    says(&bird::config(&far), &["multihop 3;", "ttl security on;"]);
    says(&gobgp::config(&far), &["[neighbors.ttl-security.config]", "enabled = true", "ttl-min = 253"]);
    says(&ios_xe::config(&far), &["neighbor ferrogate-tor-a ttl-security hops 3"]);
    says(&junos::config(&near), &["set protocols bgp group ferrogate-tor-a ttl 255"]);
    says(&junos::config(&far), &["set protocols bgp group ferrogate-tor-a multihop ttl 255"]);
    says(&eos::config(&far), &["neighbor ferrogate-tor-a ttl maximum-hops 3"]);
    says(&vyos::config(&far), &["set protocols bgp peer-group ferrogate-tor-a ttl-security hops 3"]);
    assert!(routeros::config(&far).contains(" multihop=yes local.ttl=255"));
    assert!(opnsense::config(&far).contains("`neighbor 192.0.2.11 ttl-security hops 3`"));
}

#[test]
fn a_peer_of_our_own_as_is_told_as_such() {
    let internal = Facts { our_asn: Asn::new(64496).unwrap(), ..facts() };

    says(&frr::config(&internal), &["neighbor ferrogate-tor-a remote-as 64496", "maximum-paths ibgp 2"]);
    says(&ios_xe::config(&internal), &["maximum-paths ibgp 2"]);
    says(&junos::config(&internal), &["set protocols bgp group ferrogate-tor-a type internal"]);
    says(&vyos::config(&internal), &["set protocols bgp address-family ipv4-unicast maximum-paths ibgp 2"]);
    assert!(routeros::config(&internal).contains("local.role=ibgp"));
}

#[test]
fn an_ipv6_session_carries_no_ipv4_unless_asked_for() {
    let facts = Facts { families: [Family::V6].into(), router: "2001:db8:ffff::1".parse().unwrap(), ..facts() };
    for vendor in [Vendor::Frr, Vendor::Eos] {
        says(&vendor.config(&facts), &["no neighbor ferrogate-tor-a activate"]);
    }
    says(&ios_xe::config(&facts), &["no neighbor 192.0.2.11 activate"]);
}

/// The prefixes that cover a range.
fn covered(first: &str, last: &str) -> Vec<String> {
    let range = AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap();
    cover(&range).iter().map(ToString::to_string).collect()
}

#[test]
fn a_range_is_covered_by_the_fewest_prefixes_and_nothing_beside_it_is() {
    assert_eq!(covered("192.0.2.0", "192.0.2.255"), ["192.0.2.0/24"]);
    assert_eq!(covered("192.0.2.7", "192.0.2.7"), ["192.0.2.7/32"]);
    assert_eq!(covered("192.0.2.10", "192.0.2.19"), ["192.0.2.10/31", "192.0.2.12/30", "192.0.2.16/30"]);
    assert_eq!(covered("0.0.0.0", "255.255.255.255"), ["0.0.0.0/0"]);
    assert_eq!(covered("255.255.255.254", "255.255.255.255"), ["255.255.255.254/31"]);
    assert_eq!(covered("2001:db8::1", "2001:db8::2"), ["2001:db8::1/128", "2001:db8::2/128"]);
    assert_eq!(covered("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), ["::/0"]);
}

const NODES: &str = "\n---\napiVersion: v1\nkind: Node\nmetadata: {name: node-2, labels: {rack: a}}\n\
    status: {addresses: [{type: InternalIP, address: 192.0.2.12}, {type: InternalIP, address: '2001:db8::12'}]}\n---\n\
    apiVersion: v1\nkind: Node\nmetadata: {name: node-3, labels: {rack: a}}\n\
    status: {addresses: [{type: InternalIP, address: '2001:db8::13'}]}\n";

/// The facts of a peer with this in its spec.
async fn of_peer(spec: &str, only: &[&str], asn: Option<u32>) -> anyhow::Result<Facts> {
    let peer = format!(
        "{NODES}---\napiVersion: ferrogate.io/v1beta1\nkind: BGPPeer\nmetadata: {{name: tor-a}}\nspec: {{{spec}}}\n---\n\
         apiVersion: ferrogate.io/v1beta1\nkind: BFDProfile\nmetadata: {{name: fast}}\n\
         spec: {{transmitInterval: 50, receiveInterval: 60, detectMultiplier: 4}}\n"
    );
    let snapshot = folder("", &peer).snapshot().await;
    let only: Vec<String> = only.iter().map(|&node| node.to_owned()).collect();
    let router = None;
    facts_of(&snapshot, Question { peer: "tor-a", nodes: &only, router, asn: asn.and_then(Asn::new) })
}

/// Two racks with a router each, and AS numbers of their own.
const RACKS: &str = "\n---\napiVersion: v1\nkind: Node\nmetadata: {name: node-2, labels: {tor: 192.0.2.1, asn: '64502'}}\n\
    status: {addresses: [{type: InternalIP, address: 192.0.2.12}]}\n---\n\
    apiVersion: v1\nkind: Node\nmetadata: {name: node-3, labels: {tor: 192.0.2.2, asn: '64503'}}\n\
    status: {addresses: [{type: InternalIP, address: 192.0.2.13}]}\n---\n\
    apiVersion: v1\nkind: Node\nmetadata: {name: node-4, labels: {tor: 192.0.2.2, asn: '64504'}}\n\
    status: {addresses: [{type: InternalIP, address: 192.0.2.14}]}\n---\n\
    apiVersion: ferrogate.io/v1beta1\nkind: BGPPeer\nmetadata: {name: tors}\n\
    spec: {peerASN: 64496, nodeValues: {myASN: {label: asn}, peerAddress: {label: tor}}}\n";

#[tokio::test]
async fn of_a_peer_that_stands_for_a_router_in_each_rack_one_router_and_its_nodes_are_told() {
    let snapshot = folder("", RACKS).snapshot().await;
    let ask = |router: Option<&str>, nodes: &[&str]| {
        let nodes: Vec<String> = nodes.iter().map(|&node| node.to_owned()).collect();
        let router = router.map(|router| router.parse().unwrap());
        facts_of(&snapshot, Question { peer: "tors", nodes: &nodes, router, asn: None })
    };
    let refused = |facts: anyhow::Result<Facts>| format!("{:#}", facts.unwrap_err());

    let first = ask(Some("192.0.2.1"), &[]).unwrap();
    assert_eq!((first.our_asn.get(), first.nodes.len(), first.nodes[0].node.as_str()), (64502, 1, "node-2"));
    assert!(first.notes[0].starts_with("node-1 is left out: "), "{:?}", first.notes);
    assert_eq!(ask(None, &["node-3"]).unwrap().router, "192.0.2.2".parse::<IpAddr>().unwrap());
    assert!(refused(ask(None, &[])).ends_with("say which with --router ADDRESS"));
    assert!(refused(ask(Some("192.0.2.2"), &[])).contains("name those of one AS with --node"));
    assert!(refused(ask(Some("192.0.2.9"), &[])).contains("does not stand for 192.0.2.9"));
}

use super::facts as facts_of;

#[tokio::test]
async fn the_facts_are_those_of_the_peer_its_nodes_and_the_pools() {
    let spec = "myASN: 64500, peerASN: 64496, peerAddress: 192.0.2.1, localASN: 64501, bfdProfile: fast, \
        password: secret, enableGracefulRestart: true, ebgpMultiHop: true, nodeSelectors: [{matchLabels: {rack: a}}]";

    let facts = of_peer(spec, &[], None).await.unwrap();

    assert_eq!((facts.router_asn.get(), facts.our_asn.get()), (64496, 64501));
    let nodes = [Neighbor { node: "node-2".to_owned(), address: "192.0.2.12".parse().unwrap() }];
    assert_eq!(facts.nodes, nodes);
    assert_eq!(facts.notes, ["node-3 is left out: its Node has no InternalIP of IPv4."]);
    assert_eq!(facts.prefixes, ["192.0.2.0/28".parse().unwrap()]);
    assert!(facts.has_password && facts.graceful_restart && facts.multi_hop);
    let bfd = facts.bfd.unwrap();
    assert_eq!((bfd.transmit_ms, bfd.receive_ms, bfd.multiplier.get()), (50, 60, 4));
    assert!(!Vendor::value_variants().iter().any(|vendor| vendor.config(&facts).contains("secret")));
}

#[tokio::test]
async fn n_063_of_a_peer_that_is_signed_by_tcp_ao_no_md5_is_written_and_the_ids_are_told_the_routers_way() {
    let spec = "myASN: 64500, peerASN: 64496, peerAddress: 192.0.2.1, password: x, tcpAO: {sendID: 1, recvID: 2}";
    let facts = of_peer(spec, &[], None).await.unwrap();

    for vendor in Vendor::value_variants() {
        let text = vendor.config(&facts);
        assert!(!text.contains(PASSWORD), "{vendor:?}: {text}");
        assert!(text.contains("a key with send-id 2, recv-id 1 and hmac-sha-1-96"), "{vendor:?}: {text}");
    }
}

#[tokio::test]
async fn a_session_of_both_families_accepts_both() {
    let spec = "myASN: 64500, peerASN: 64496, peerAddress: '2001:db8::1', dualStackAddressFamily: true";

    let facts = of_peer(spec, &["node-3"], None).await.unwrap();

    assert_eq!(facts.families, [Family::V4, Family::V6].into());
    assert_eq!(facts.nodes[0].address, "2001:db8::13".parse::<IpAddr>().unwrap());
    assert_eq!(facts.notes, ["No pool has IPv6 addresses: none are accepted."]);
}

#[tokio::test]
async fn what_a_router_must_know_and_nobody_says_is_asked_for() {
    let open = "myASN: 64500, dynamicASN: external, peerAddress: 192.0.2.1";
    let known = "myASN: 64500, peerASN: 64496, peerAddress: 192.0.2.1";
    let refused = |facts: anyhow::Result<Facts>| facts.unwrap_err().to_string();

    assert_eq!(of_peer(open, &[], Some(64499)).await.unwrap().router_asn.get(), 64499);
    assert!(refused(of_peer(open, &[], None).await).ends_with("give it with --asn NUMBER"));
    assert!(refused(of_peer(open, &[], Some(64500)).await).contains("asks for an AS other than 64500"));
    assert!(refused(of_peer(known, &[], Some(64496)).await).ends_with("leave out --asn"));
    assert!(refused(of_peer(known, &["node-9"], None).await).contains("there is no Node node-9"));
    assert!(refused(of_peer(known, &["node-3"], None).await).contains("no node speaks with BGPPeer tor-a"));
    let prefix = "myASN: 64500, peerASN: 64496, peerPrefix: 192.0.2.0/29";
    assert!(refused(of_peer(prefix, &[], None).await).ends_with("say which with --router ADDRESS"));
    let unnumbered = "myASN: 64500, peerASN: 64496, interface: eth1";
    assert!(refused(of_peer(unnumbered, &[], None).await).contains("behind interface eth1"));
    let missing = format!("{known}, bfdProfile: slow");
    assert!(refused(of_peer(&missing, &[], None).await).contains("BFDProfile slow"));
}
