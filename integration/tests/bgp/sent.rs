//! What is sent, as routers and their kernels have it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use ferrogate_core::{
    model::{Prefix, community::Community},
    speaker::bgp::{Closing, Part, Route, State, Withheld},
};
use ferrogate_integration::router::{Router, Vendor};

use crate::stand::{
    NODE, NODE6, OURS, ROUTER, ROUTER6, Speaker, Stand, THEIRS, config, fib, neighbor, part, prefix, updates,
    wait_until, within,
};

const IPV4: &str = "198.51.100.7/32";
const IPV6: &str = "2001:db8:5::7/128";

/// A speaker with an established session to the IPv4 address of a router of this AS.
fn connected(stand: &Stand, asn: u32) -> Speaker {
    let mut speaker = stand.speaker();
    speaker.peer("router", neighbor(ROUTER, asn));
    speaker.wait_until_established("router");
    speaker
}

/// So many host routes.
fn many(count: u32) -> Vec<String> {
    (0..count).map(|number| format!("{}/32", Ipv4Addr::from_bits(0x0a00_0000 + number))).collect()
}

fn advertise_all(speaker: &mut Speaker, prefixes: &[String]) {
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    speaker.advertise(&prefixes);
}

#[test]
fn m_134_m_145_n_040_n_041_the_path_is_one_segment_of_four_octets_or_empty_within_the_as_which_alone_has_a_local_preference()
 {
    for asn in [THEIRS, OURS] {
        let stand = Stand::new();
        let router = stand.router(Vendor::Exabgp, asn, |_| {});
        let mut speaker = connected(&stand, asn);

        speaker.advertise(&[IPV4]);

        let route = router.wait_for_route(prefix(IPV4), |_| true).unwrap();
        let body = updates(&router).into_iter().find(|body| body.ends_with("20c6336407")).unwrap();
        if asn == OURS {
            assert_eq!((route.as_path.as_slice(), route.local_pref), (&[][..], Some(100)));
            assert!(body.contains("400200"), "{body}");
        } else {
            assert_eq!((route.as_path.as_slice(), route.local_pref), (&[OURS][..], None));
            assert!(body.contains("40020602010000fbf4"), "{body}");
        }
    }
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = stand.router(vendor, OURS, |_| {});
        let mut speaker = connected(&stand, OURS);

        speaker.advertise_with(&[IPV4], |part| part.local_pref = NonZeroU32::new(250));

        let route = router.wait_for_route(prefix(IPV4), |_| true).unwrap();
        assert_eq!((route.as_path, route.local_pref), (Vec::new(), Some(250)), "{vendor:?}");
    }
}

#[test]
fn n_042_the_next_hop_is_our_address_of_the_session_and_over_ipv6_the_one_of_the_link_as_well() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = stand.router(vendor, THEIRS, |_| {});
        let mut speaker = stand.speaker();
        speaker.peer("router", neighbor(ROUTER6, THEIRS));

        speaker.advertise(&[IPV4, IPV6]);

        let route = router.wait_for_route(prefix(IPV4), |_| true).unwrap();
        assert_eq!(route.next_hops, BTreeSet::from([NODE.into()]), "{vendor:?}");
        router.wait_for_route(prefix(IPV6), |route| route.next_hops.contains(&NODE6.into())).unwrap();
        let words = match vendor {
            Vendor::Frr => format!("show bgp ipv6 unicast {IPV6} json"),
            _ => format!("show route for {IPV6} all"),
        };
        let answer = router.ask(&words).unwrap();
        assert!(answer.contains("fe80::"), "{vendor:?}: {answer}");
        stand.wait_for_fib("both routes", |fib| fib.contains(&prefix(IPV4)) && fib.contains(&prefix(IPV6)));
    }
}

#[test]
fn n_043_ipv6_arrives_and_leaves_over_either_session_whatever_its_length() {
    let prefixes = [IPV6, "2001:db8:6::/48", "2001:db8:7::8000:0:0:0/65", "::/0"];
    for vendor in Vendor::STRICT {
        for address in [IpAddr::from(ROUTER), ROUTER6.into()] {
            let stand = Stand::new();
            let router = stand.router(vendor, THEIRS, |_| {});
            let mut speaker = stand.speaker();
            speaker.peer("router", neighbor(address, THEIRS));

            speaker.advertise(&prefixes);

            for text in prefixes {
                router.wait_for_route(prefix(text), |_| true).unwrap();
            }
            stand.wait_for_fib("every route", |fib| prefixes.iter().all(|text| fib.contains(&prefix(text))));
            speaker.withdraw(&prefixes);
            for text in prefixes {
                router.wait_until_gone(prefix(text)).unwrap();
            }
            let status = speaker.wait_until_established("router");
            assert_eq!(status.flaps, 0, "{vendor:?}");
        }
    }
}

#[test]
fn n_044_ipv4_goes_by_an_ipv6_next_hop_to_who_takes_it_and_is_withheld_from_others() {
    for vendor in Vendor::STRICT {
        for takes_it in [true, false] {
            let stand = Stand::with(&[NODE6.into()], &[ROUTER.into(), ROUTER6.into()]);
            let router = stand.router(vendor, THEIRS, |neighbor| neighbor.extended_next_hop = takes_it);
            let mut speaker = stand.speaker();
            speaker.peer("router", neighbor(ROUTER6, THEIRS));

            speaker.advertise(&[IPV4, IPV6]);

            router.wait_for_route(prefix(IPV6), |_| true).unwrap();
            let withheld = if takes_it { BTreeMap::new() } else { BTreeMap::from([(Withheld::NoNextHop, 1)]) };
            let sent = if takes_it { 2 } else { 1 };
            speaker.wait_for("router", |status| status.withheld == withheld && status.prefixes_sent == sent);
            if takes_it {
                router.wait_for_route(prefix(IPV4), |route| route.next_hops.iter().all(IpAddr::is_ipv6)).unwrap();
                stand.wait_for_fib("the route", |fib| fib.contains(&prefix(IPV4)));
            } else {
                assert_eq!(router.route(prefix(IPV4)).unwrap(), None, "{vendor:?}");
            }
        }
    }
}

#[test]
fn n_045_communities_arrive_sorted_without_duplicates() {
    let communities = |texts: &[&str]| Arc::new(texts.iter().map(|text| text.parse::<Community>().unwrap()).collect());
    let first =
        Part { communities: communities(&["64500:300", "64500:20", "large:64500:2:1", "target:64500:9"]), ..part() };
    let second = Part {
        communities: communities(&["64500:20", "100:7", "large:64500:1:9", "large:64500:2:1", "origin:64500:3"]),
        ..part()
    };
    let mut parts = vec![first, second];
    parts.sort();
    let route = Arc::new(Route { parts });
    for vendor in [Vendor::Exabgp, Vendor::Bird, Vendor::Frr] {
        let stand = Stand::new();
        let router = stand.router(vendor, THEIRS, |_| {});
        let mut speaker = connected(&stand, THEIRS);

        speaker.want(|wanted| _ = wanted.routes.insert(prefix(IPV4), route.clone()));

        let arrived = router.wait_for_route(prefix(IPV4), |_| true).unwrap();
        assert_eq!(arrived.communities, ["100:7", "64500:20", "64500:300"], "{vendor:?}");
        assert_eq!(arrived.large_communities, ["64500:1:9", "64500:2:1"], "{vendor:?}");
        assert_eq!(arrived.extended_communities.len(), 2, "{vendor:?}: {:?}", arrived.extended_communities);
        if vendor == Vendor::Exabgp {
            let body = updates(&router).into_iter().find(|body| body.ends_with("20c6336407")).unwrap();
            for attribute in [
                "c0080c00640007fbf40014fbf4012c",
                "c0101000 02fbf400000009 0003fbf400000003",
                "c02018 0000fbf40000000100000009 0000fbf40000000200000001",
            ] {
                assert!(body.contains(&attribute.replace(' ', "")), "no {attribute} in {body}");
            }
        }
    }
}

#[test]
fn n_046_prepending_adds_our_as_so_often_and_beyond_255_in_a_second_segment() {
    for vendor in [Vendor::Frr, Vendor::Bird, Vendor::Exabgp] {
        for times in [1, 3, 255] {
            let stand = Stand::new();
            let router = stand.router(vendor, THEIRS, |_| {});
            let mut speaker = connected(&stand, THEIRS);

            speaker.advertise_with(&[IPV4], |part| part.prepend = times);

            let route = router.wait_for_route(prefix(IPV4), |_| true).unwrap();
            let length = usize::from(times) + 1;
            assert!(route.as_path.iter().all(|asn| *asn == OURS), "{vendor:?}: {route:?}");
            if vendor == Vendor::Bird {
                // It does not show all of a long one.
                let answer = router.ask(&format!("show route where bgp_path.len = {length}")).unwrap();
                assert!(answer.contains(IPV4), "{answer}");
            } else {
                assert_eq!(route.as_path.len(), length, "{vendor:?}");
            }
        }
    }
}

#[test]
fn n_047_a_thousand_prefixes_with_the_same_attributes_take_two_updates() {
    let stand = Stand::new();
    let router = stand.router(Vendor::Exabgp, THEIRS, |_| {});
    let mut speaker = connected(&stand, THEIRS);
    router.wait_until_established(NODE.into()).unwrap();
    speaker.advertise(&[IPV4]);
    router.wait_for_count(1).unwrap();
    let before = updates(&router).len();

    advertise_all(&mut speaker, &many(1000));

    router.wait_for_count(1001).unwrap();
    let updates = updates(&router);
    assert!(updates.len() - before <= 2, "{} UPDATEs", updates.len() - before);
}

#[test]
fn n_048_ten_thousand_prefixes_are_in_the_kernel_of_a_router_within_two_seconds() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = stand.router(vendor, THEIRS, |_| {});
        let mut speaker = connected(&stand, THEIRS);
        router.wait_until_established(NODE.into()).unwrap();
        let prefixes = many(10_000);
        let wanted: BTreeSet<Prefix> = prefixes.iter().map(|text| prefix(text)).collect();

        within(Duration::from_secs(2), &format!("{vendor:?}"), || {
            advertise_all(&mut speaker, &prefixes);
            stand.wait_for_fib("10,000 routes", |fib| fib.is_superset(&wanted));
        });

        router.wait_for_count(10_000).unwrap();
        speaker.want(|wanted| wanted.routes.clear());
        router.wait_for_count(0).unwrap();
        stand.wait_for_fib("the end of them", |fib| fib.is_disjoint(&wanted));
    }
}

/// The families whose routes ExaBGP was told to be complete, in their order, and how many routes came before.
fn ends(router: &Router<'_>) -> Vec<(String, usize)> {
    let mut routes = 0;
    let mut ends = Vec::new();
    for message in router.messages().unwrap() {
        let message = &message["neighbor"]["message"];
        if let Some(family) = message["eor"]["afi"].as_str() {
            ends.push((family.to_owned(), routes));
        }
        routes += usize::from(message["update"]["announce"].is_object());
    }
    ends
}

#[test]
fn n_050_end_of_rib_follows_the_first_routes_of_each_family_also_where_there_are_none() {
    for (routes, before) in [(&[IPV4, IPV6][..], 2), (&[], 0)] {
        let stand = Stand::new();
        let router = stand.router(Vendor::Exabgp, THEIRS, |_| {});
        let mut speaker = stand.speaker();
        speaker.advertise(routes);

        speaker.peer("router", neighbor(ROUTER, THEIRS));

        wait_until("two ends", || ends(&router).len() == 2);
        assert_eq!(ends(&router), [("ipv4".to_owned(), before), ("ipv6".to_owned(), before)]);
    }
}

#[test]
fn n_051_what_does_not_change_is_not_sent_again_and_what_does_replaces_itself() {
    let stand = Stand::new();
    let router = stand.router(Vendor::Exabgp, THEIRS, |_| {});
    let mut speaker = connected(&stand, THEIRS);
    speaker.advertise(&[IPV4, "198.51.100.8/32"]);
    router.wait_for_count(2).unwrap();
    let before = updates(&router).len();

    // The same again, as a new value.
    speaker.advertise(&[IPV4]);
    speaker.advertise_with(&[IPV4], |part| part.multi_exit_disc = Some(7));
    router.wait_for_route(prefix(IPV4), |route| route.multi_exit_disc == Some(7)).unwrap();

    let after = updates(&router);
    assert_eq!(after.len(), before + 1);
    assert!(after[before].starts_with("0000"), "withdraws nothing: {}", after[before]);
    assert!(after[before].ends_with("20c6336407"), "only what changed: {}", after[before]);
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = stand.router(vendor, THEIRS, |_| {});
        let mut speaker = connected(&stand, THEIRS);
        speaker.advertise(&[IPV4]);
        stand.wait_for_fib("the route", |fib| fib.contains(&prefix(IPV4)));
        let guard = stand.guard(&[IPV4]);

        speaker.advertise_with(&[IPV4], |part| part.multi_exit_disc = Some(7));

        router.wait_for_route(prefix(IPV4), |route| route.multi_exit_disc == Some(7)).unwrap();
        let (looks, misses) = guard.misses();
        assert!(looks > 0 && misses == 0, "{vendor:?}: {misses} of {looks}");
    }
}

#[test]
fn n_053_a_router_that_asks_for_a_family_gets_it_again_and_no_other() {
    // Without this FRR keeps what it needs and does not ask.
    let forget = format!(
        "router bgp {THEIRS}\n address-family ipv4 unicast\n  no neighbor {NODE} soft-reconfiguration inbound\n \
         exit-address-family\nexit\n"
    );
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let mut config = config(THEIRS, |_| {});
        if vendor == Vendor::Frr {
            config.extra = forget.clone();
        }
        let router = Router::start(vendor, &stand.router, &config).unwrap();
        let mut speaker = stand.speaker();
        speaker.peer("router", neighbor(ROUTER, THEIRS));
        speaker.advertise(&[IPV4, IPV6]);
        router.wait_for_count(2).unwrap();
        let received = || received(&router);
        let before = received();

        let words = match vendor {
            Vendor::Frr => format!("clear bgp ipv4 unicast {NODE} soft in"),
            _ => "reload in s_192_0_2_1".to_owned(),
        };
        router.ask(&words).unwrap();

        // BIRD asks for every family of the session.
        let more = if vendor == Vendor::Frr { 1 } else { 2 };
        wait_until("routes to come again", || received() == before + more);
        // One change more shows that nothing else was on its way.
        speaker.advertise(&["198.51.100.8/32"]);
        router.wait_for_count(3).unwrap();
        assert_eq!(received(), before + more + 1, "{vendor:?}");
        assert_eq!(speaker.wait_until_established("router").flaps, 0, "{vendor:?}");
    }
}

/// How many UPDATEs FRR has received, or how many routes BIRD.
fn received(router: &Router<'_>) -> u64 {
    match router.vendor() {
        Vendor::Frr => {
            let answer = router.ask(&format!("show bgp neighbors {NODE} json")).unwrap();
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            answer[NODE.to_string()]["messageStats"]["updatesRecv"].as_u64().unwrap()
        }
        _ => {
            let answer = router.ask("show protocols all s_192_0_2_1").unwrap();
            let lines = answer.lines().filter_map(|line| line.trim().strip_prefix("Import updates:"));
            lines.map(|line| line.split_whitespace().next().unwrap().parse::<u64>().unwrap()).sum()
        }
    }
}

/// A router that announces routes of its own.
fn talkative(stand: &Stand, vendor: Vendor) -> Router<'_> {
    let routes = ["203.0.113.0/26", "203.0.113.64/26", "203.0.113.128/26"];
    let mut config = config(THEIRS, |_| {});
    config.extra = match vendor {
        Vendor::Frr => {
            let networks: String = routes.iter().map(|route| format!("  network {route}\n")).collect();
            format!(
                "router bgp {THEIRS}\n no bgp network import-check\n address-family ipv4 unicast\n{networks} \
                 exit-address-family\nexit\n"
            )
        }
        _ => {
            let networks: String = routes.iter().map(|route| format!("route {route} blackhole; ")).collect();
            format!("protocol static {{ ipv4; {networks}}}\n")
        }
    };
    Router::start(vendor, &stand.router, &config).unwrap()
}

#[test]
fn m_137_n_054_routes_of_a_peer_are_counted_and_neither_installed_nor_sent_on() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = talkative(&stand, vendor);
        let mut speaker = connected(&stand, THEIRS);
        speaker.peer("other", neighbor(ROUTER6, THEIRS));

        for peer in ["router", "other"] {
            let status = speaker.wait_for(peer, |status| status.prefixes_received == 3);
            assert_eq!(status.prefixes_sent, 0, "{vendor:?}");
        }

        speaker.advertise(&[IPV4]);
        router.wait_for_route(prefix(IPV4), |_| true).unwrap();
        let foreign = |found: &&Prefix| prefix("203.0.113.0/24").contains(found.ip());
        let fib = stand.node.run(fib);
        assert_eq!(fib.iter().filter(foreign).count(), 0, "{vendor:?}: {fib:?}");
        assert!(fib.contains(&prefix("192.0.2.0/24")), "{vendor:?}: {fib:?}");
    }
}

#[test]
fn n_054_a_router_with_a_hundred_thousand_routes_is_heard_out_and_none_reaches_the_kernel() {
    // FRR would take minutes to have as many of its own.
    let many = 100_000;
    let stand = Stand::new();
    let mut config = config(THEIRS, |_| {});
    let first = Ipv4Addr::new(16, 0, 0, 0).to_bits();
    let routes = (0..many).map(|number| {
        let network = Ipv4Addr::from_bits(first + (number << 8));
        format!("route {network}/24 blackhole {{ bgp_med = {}; }};\n", number / 10)
    });
    config.extra = format!("protocol static {{ ipv4; {} }}\n", routes.collect::<String>());
    let router = Router::start(Vendor::Bird, &stand.router, &config).unwrap();
    let mut speaker = connected(&stand, THEIRS);

    let status = speaker.wait_for("router", |status| status.prefixes_received == u64::from(many));
    assert_eq!((status.prefixes_sent, status.flaps), (0, 0));
    speaker.advertise(&[IPV4]);
    router.wait_for_route(prefix(IPV4), |_| true).unwrap();
    let fib = stand.node.run(fib);
    assert!(fib.len() < 20, "{} routes in the kernel", fib.len());
}

#[test]
fn n_056_a_peer_that_sends_too_much_is_told_so() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = talkative(&stand, vendor);
        let mut speaker = stand.speaker();
        let limited = |limit| {
            let mut neighbor = neighbor(ROUTER, THEIRS);
            neighbor.max_prefixes = NonZeroU32::new(limit);
            neighbor
        };

        speaker.peer("router", limited(2));

        let status = speaker.wait_for("router", |status| status.last_close.is_some());
        let Some(Closing::Sent(said)) = status.last_close else { panic!("{status:?}") };
        assert_eq!((said.code, said.subcode), (6, 1), "{vendor:?}");
        let text = if vendor == Vendor::Frr { "6/1" } else { "Maximum number of prefixes reached" };
        router.wait_for_log(text).unwrap();
        speaker.peer("router", limited(3));
        speaker.wait_for("router", |status| status.state == State::Established && status.prefixes_received == 3);
    }
}
