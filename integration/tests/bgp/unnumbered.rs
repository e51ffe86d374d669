//! Sessions between interfaces that have no address but that of the link.

use std::{collections::BTreeSet, net::Ipv4Addr, num::NonZeroU16, time::Duration};

use ferrogate_core::{
    model::peer::PeerAsn,
    speaker::bgp::{Neighbor, Remote, Trouble, Ttl},
};
use ferrogate_integration::router::{self, Router, Vendor};

use crate::stand::{ROUTER, Speaker, Stand, THEIRS, neighbor, prefix, within};

const IPV4: &str = "198.51.100.7/32";
const IPV6: &str = "2001:db8:5::7/128";

/// The router behind our only interface, whoever it is.
fn behind() -> Neighbor {
    let mut neighbor = Neighbor {
        remote: Remote::Interface { name: "eth0".into(), port: NonZeroU16::new(179).unwrap() },
        peer_asn: PeerAsn::External,
        ..neighbor(ROUTER, THEIRS)
    };
    neighbor.transport.ttl = Ttl::Direct;
    neighbor
}

/// FRR that speaks with whoever is behind its only interface.
fn frr(stand: &Stand) -> Router<'_> {
    let extra = format!(
        "interface eth0\n ipv6 nd ra-interval 1\n no ipv6 nd suppress-ra\nexit\nrouter bgp {THEIRS}\n neighbor eth0 \
         interface remote-as external\n neighbor eth0 timers 3 9\n neighbor eth0 timers connect 1\n address-family \
         ipv4 unicast\n  neighbor eth0 activate\n exit-address-family\n address-family ipv6 unicast\n  neighbor eth0 \
         activate\n exit-address-family\nexit\n"
    );
    let config =
        router::Config { asn: THEIRS, identifier: Ipv4Addr::new(192, 0, 2, 254), neighbors: Vec::new(), extra };
    Router::start(Vendor::Frr, &stand.router, &config).unwrap()
}

fn link_local(stand: &Stand) -> BTreeSet<std::net::IpAddr> {
    let all = stand.node.run(pnet::datalink::interfaces).into_iter().filter(|found| found.name == "eth0");
    all.flat_map(|found| found.ips).map(|network| network.ip()).collect()
}

fn advertising(stand: &Stand) -> Speaker {
    let mut speaker = stand.speaker();
    speaker.peer("router", behind());
    speaker.advertise(&[IPV4, IPV6]);
    speaker
}

#[test]
fn m_139_n_057_a_session_by_interface_name_carries_both_families_by_our_link_local_address() {
    let stand = Stand::with(&[], &[]);
    // Even a kernel that believes routers is not to be told that this node is one.
    stand.router.set("ipv6/conf/eth0/accept_ra", "2").unwrap();
    let router = frr(&stand);

    let speaker = within(Duration::from_secs(3), "a session", || {
        let speaker = advertising(&stand);
        speaker.wait_until_established("router");
        speaker
    });

    stand.wait_for_fib("both routes", |fib| fib.contains(&prefix(IPV4)) && fib.contains(&prefix(IPV6)));
    let own = link_local(&stand);
    for text in [IPV4, IPV6] {
        let route = router.wait_for_route(prefix(text), |_| true).unwrap();
        assert!(!route.next_hops.is_empty() && route.next_hops.is_subset(&own), "{route:?} by {own:?}");
    }
    let fib = stand.fib();
    assert!(!fib.contains(&prefix("::/0")) && !fib.contains(&prefix("0.0.0.0/0")), "{fib:?}");
    assert_eq!(speaker.wait_until_established("router").flaps, 0);
}

#[test]
fn n_057_a_session_by_interface_name_is_up_within_three_seconds_of_the_link() {
    let stand = Stand::with(&[], &[]);
    stand.node.links(async |links| links.down("eth0").await).unwrap();
    let _router = frr(&stand);
    let speaker = advertising(&stand);
    let nobody = Some(Trouble::NoRouter("eth0".into()));
    speaker.wait_for("router", |status| status.trouble == nobody);

    within(Duration::from_secs(3), "a session", || {
        stand.node.links(async |links| links.up("eth0").await).unwrap();
        stand.tell_interfaces(&speaker);
        speaker.wait_until_established("router")
    });

    stand.wait_for_fib("both routes", |fib| fib.contains(&prefix(IPV4)) && fib.contains(&prefix(IPV6)));
}
