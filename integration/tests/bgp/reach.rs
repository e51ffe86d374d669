//! Peers that are several hops away, and peers in VRFs.

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU8,
};

use ferrogate_core::{
    model::peer::PeerAsn,
    speaker::{
        bfd::{Discard, Settings},
        bgp::{BfdState, BfdWish, Neighbor, SessionStatus, State, Transport, Trouble, Ttl},
    },
};
use ferrogate_integration::{
    netns::Namespace,
    router::{self, Router, Vendor},
};
use ferrogate_speaker::bfd::Priority;

use crate::stand::{
    NODE, OURS, ROUTER, Speaker, THEIRS, neighbor, prefix, speaker_in, wait_until, watching_speaker_in,
};

const ONE: &str = "203.0.113.1/32";
const TWO: &str = "203.0.113.2/32";

/// The router in the middle, towards the node and towards the other one.
const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The router that is two hops away.
const DISTANT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);

/// A node, a router that only forwards, and one to speak with behind it.
struct Distance {
    node: Namespace,
    _middle: Namespace,
    router: Namespace,
}

impl Distance {
    fn new() -> Self {
        let [node, middle, router] = ["node", "middle", "router"].map(|name| Namespace::new(name).unwrap());
        middle.set("ipv4/ip_forward", "1").unwrap();
        middle
            .links(async |links| {
                for (name, own, other) in [("near", NEAR, &node), ("far", FAR, &router)] {
                    links.add_pair(name, "eth0", other).await?;
                    links.add_address(name, own.into(), 24).await?;
                }
                Ok(())
            })
            .unwrap();
        for (namespace, own, gateway, beyond) in
            [(&node, NODE, NEAR, Ipv4Addr::new(198, 51, 100, 0)), (&router, DISTANT, FAR, Ipv4Addr::new(192, 0, 2, 0))]
        {
            namespace
                .links(async |links| {
                    links.up("eth0").await?;
                    links.add_address("eth0", own.into(), 24).await?;
                    links.add_route(beyond.into(), 24, gateway.into()).await
                })
                .unwrap();
        }
        Self { node, _middle: middle, router }
    }

    fn router(&self, vendor: Vendor, adapt: impl Fn(&mut router::Neighbor)) -> Router<'_> {
        let mut neighbor = router::Neighbor { multi_hop: true, ..router::Neighbor::new(NODE, DISTANT, OURS) };
        adapt(&mut neighbor);
        // BIRD looks a next hop up among its own routes alone.
        let extra = match vendor {
            Vendor::Bird => format!("protocol static {{ ipv4; route 192.0.2.0/24 via {FAR}; }}\n"),
            _ => String::new(),
        };
        let config = router::Config { asn: THEIRS, identifier: DISTANT, neighbors: vec![neighbor], extra };
        Router::start(vendor, &self.router, &config).unwrap()
    }
}

/// The distant router, over as many hops as it takes or over one.
fn distant(ttl: Ttl) -> Neighbor {
    let mut neighbor = neighbor(DISTANT, THEIRS);
    neighbor.transport.ttl = ttl;
    neighbor
}

#[test]
fn m_138_a_peer_of_another_as_that_is_two_hops_away_is_reached_with_ebgp_multi_hop_and_not_without() {
    for vendor in Vendor::STRICT {
        let stand = Distance::new();
        let router = stand.router(vendor, |_| {});
        let mut speaker = speaker_in(&stand.node, || {});
        speaker.advertise(&[ONE]);

        speaker.peer("router", distant(Ttl::Direct));

        let status = speaker.wait_for("router", |status| status.trouble.is_some());
        let is_far = matches!(status.trouble, Some(Trouble::TimedOut | Trouble::Unreachable(_)));
        assert!(is_far && status.flaps == 0 && status.state != State::Established, "{vendor:?}: {status:?}");
        assert!(!router.is_established(NODE.into()).unwrap(), "{vendor:?}");

        speaker.peer("router", distant(Ttl::MultiHop));

        let status = speaker.wait_until_established("router");
        assert_eq!(status.remote_address, Some(DISTANT.into()), "{vendor:?}");
        let route = router.wait_for_route(prefix(ONE), |_| true).unwrap();
        assert_eq!(route.as_path, [OURS], "{vendor:?}");
    }
}

fn bfd(minimum_ttl: u8) -> Option<BfdWish> {
    let settings = Settings { damping: None, ..Settings::DEFAULT };
    Some(BfdWish { settings, minimum_ttl: NonZeroU8::new(minimum_ttl).unwrap() })
}

/// Whether the router hears the node by BFD, and the node does not hear it.
fn hears_in_vain(router: &Router<'_>) -> bool {
    match router.vendor() {
        Vendor::Frr => {
            let answer = router.ask("show bfd peers json").unwrap();
            answer.replace(' ', "").contains("\"status\":\"init\"")
        }
        _ => router.ask("show bfd sessions").unwrap().lines().any(|line| line.contains(" Init ")),
    }
}

#[test]
fn n_083_over_several_hops_packets_with_a_ttl_below_the_minimum_are_not_taken_and_those_at_it_are() {
    // FRR sends with the highest TTL, BIRD with 64; one router is in between.
    for (vendor, arrives_with) in [(Vendor::Frr, 254), (Vendor::Bird, 63)] {
        let stand = Distance::new();
        let router = stand.router(vendor, |neighbor| neighbor.bfd_ms = Some(50));
        let mut speaker = watching_speaker_in(&stand.node, Priority::RealTime);
        speaker.peer("router", Neighbor { bfd: bfd(arrives_with + 1), ..distant(Ttl::MultiHop) });
        speaker.wait_until_established("router");

        wait_until("the router to hear the node in vain", || hears_in_vain(&router));
        // Only packets that have come and were not taken show that it is the TTL that keeps the session down.
        let before = speaker.discarded(Discard::Ttl);
        wait_until("several packets that are not taken", || speaker.discarded(Discard::Ttl) >= before + 5);
        let is_watched = |status: &SessionStatus| status.bfd == Some(BfdState::Up);
        assert!(!is_watched(&speaker.status("router").unwrap()), "{vendor:?}");

        speaker.peer("router", Neighbor { bfd: bfd(arrives_with), ..distant(Ttl::MultiHop) });

        let status = speaker.wait_for("router", is_watched);
        assert_eq!((status.state, status.flaps), (State::Established, 0), "{vendor:?}");
    }
}

/// Two cables to two routers that have the same address; the node has the same address at both.
struct Twins {
    node: Namespace,
    red: Namespace,
    blue: Namespace,
}

impl Twins {
    fn new() -> Self {
        let [node, red, blue] = ["node", "red", "blue"].map(|name| Namespace::new(name).unwrap());
        node.links(async |links| {
            for (name, other) in [("red", &red), ("blue", &blue)] {
                links.add_pair(name, "eth0", other).await?;
                links.add_address(name, NODE.into(), 24).await?;
            }
            Ok(())
        })
        .unwrap();
        // What comes by the second would go out by the first, if the main routing table decided.
        for key in ["all", "red", "blue"] {
            node.set(&format!("ipv4/conf/{key}/rp_filter"), "0").unwrap();
        }
        for router in [&red, &blue] {
            router
                .links(async |links| {
                    links.up("eth0").await?;
                    links.add_address("eth0", ROUTER.into(), 24).await
                })
                .unwrap();
        }
        Self { node, red, blue }
    }
}

fn router_of(namespace: &Namespace, vendor: Vendor, asn: u32, passive: bool, is_far: bool) -> Router<'_> {
    let neighbor =
        router::Neighbor { passive, multi_hop: is_far, bfd_ms: Some(50), ..router::Neighbor::new(NODE, ROUTER, OURS) };
    let config = router::Config { asn, identifier: ROUTER, neighbors: vec![neighbor], extra: String::new() };
    Router::start(vendor, namespace, &config).unwrap()
}

/// The router by this device, of whatever AS it says.
fn by(vrf: &str, passive: bool, is_far: bool) -> Neighbor {
    let ttl = if is_far { Ttl::MultiHop } else { Ttl::Direct };
    let plain = neighbor(ROUTER, THEIRS);
    let transport = Transport { vrf: Some(vrf.into()), ttl, ..plain.transport.clone() };
    Neighbor { peer_asn: PeerAsn::External, passive, bfd: bfd(64), transport, ..plain }
}

fn wait_until_watched(speaker: &Speaker, peer: &str) -> SessionStatus {
    speaker.wait_for(peer, |status| status.state == State::Established && status.bfd == Some(BfdState::Up))
}

#[test]
fn m_139_two_routers_with_one_address_in_two_vrfs_are_each_reached_and_watched_by_their_own() {
    const BLUE: u32 = 64_513;
    for vendor in Vendor::STRICT {
        for is_far in [false, true] {
            let context = format!("{vendor:?}, {}", if is_far { "several hops" } else { "one hop" });
            let twins = Twins::new();
            let red = router_of(&twins.red, vendor, THEIRS, true, is_far);
            // This one connects, and is waited for.
            let blue = router_of(&twins.blue, vendor, BLUE, false, is_far);
            let mut speaker = watching_speaker_in(&twins.node, Priority::RealTime);
            speaker.peer("red", by("red", false, is_far));
            speaker.peer("blue", by("blue", true, is_far));
            for (peer, route) in [("red", ONE), ("blue", TWO)] {
                let only = std::sync::Arc::new([peer.into()].into());
                speaker.advertise_with(&[route], |part| part.peers = std::sync::Arc::clone(&only));
            }

            // Of which AS they are says which they are.
            for (peer, asn) in [("red", THEIRS), ("blue", BLUE)] {
                let status = wait_until_watched(&speaker, peer);
                assert_eq!(status.remote_asn.map(|asn| asn.get()), Some(asn), "{context}");
                assert_eq!(status.vrf.as_ref().map(|vrf| vrf.as_str()), Some(peer), "{context}");
                let addresses = (status.local_address, status.remote_address);
                assert_eq!(addresses, (Some(NODE.into()), Some(IpAddr::from(ROUTER))), "{context}");
            }
            for (router, own, other) in [(&red, ONE, TWO), (&blue, TWO, ONE)] {
                router.wait_for_route(prefix(own), |_| true).unwrap();
                assert_eq!(router.route(prefix(other)).unwrap(), None, "{context}");
            }

            // One that goes takes neither session nor watch of the other along.
            twins.node.links(async |links| links.down("red").await).unwrap();
            let lost = speaker.wait_for("red", |status| status.state != State::Established);
            assert_eq!((lost.bfd, lost.bfd_losses), (Some(BfdState::Down), 1), "{context}");
            let status = wait_until_watched(&speaker, "blue");
            assert_eq!((status.flaps, status.bfd_losses), (0, 0), "{context}");
        }
    }
}
