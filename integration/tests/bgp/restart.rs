//! Restarts that keep routes, ends that do not, and how a node takes its leave.

use std::{
    net::IpAddr,
    num::NonZeroU8,
    time::{Duration, Instant},
};

use ferrogate_core::speaker::{
    bfd::Settings,
    bgp::{BfdState, BfdWish, Departure, GracefulRestart, Neighbor},
};
use ferrogate_integration::router::{Router, Vendor};

use crate::stand::{
    NODE, NODE6, OURS, ROUTER, ROUTER6, Speaker, Stand, THEIRS, neighbor, prefix, updates, wait_until,
    wait_until_quick, within,
};

const IPV4: &str = "198.51.100.7/32";
const IPV6: &str = "2001:db8:5::7/128";

/// A router at this address that keeps our routes for so long.
fn keeping(address: impl Into<IpAddr>, restart_time_seconds: u16) -> Neighbor {
    Neighbor {
        graceful_restart: Some(GracefulRestart { restart_time_seconds, forwarding_preserved: true }),
        ..neighbor(address, THEIRS)
    }
}

/// Watched by BFD, 50 ms × 3.
fn watched(neighbor: Neighbor) -> Neighbor {
    let bfd = BfdWish { settings: Settings { damping: None, ..Settings::DEFAULT }, minimum_ttl: NonZeroU8::MAX };
    Neighbor { bfd: Some(bfd), ..neighbor }
}

/// A router that keeps routes while a neighbour restarts.
fn patient(stand: &Stand, vendor: Vendor) -> Router<'_> {
    stand.router(vendor, THEIRS, |neighbor| neighbor.graceful_restart = true)
}

/// A speaker whose routes are in the kernel of the router.
fn advertising(stand: &Stand, neighbor: Neighbor, prefixes: &[&str]) -> Speaker {
    let mut speaker = stand.speaker();
    speaker.peer("router", neighbor);
    speaker.advertise(prefixes);
    speaker.wait_until_established("router");
    stand.wait_for_fib("the routes", |fib| prefixes.iter().all(|text| fib.contains(&prefix(text))));
    speaker
}

#[test]
fn m_142_n_070_routes_stay_in_the_kernel_of_a_router_while_the_speaker_is_killed_and_comes_back() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = patient(&stand, vendor);
        let speaker = advertising(&stand, keeping(ROUTER, 20), &[IPV4, IPV6]);
        let guard = stand.guard(&[IPV4, IPV6]);

        drop(speaker);
        router.wait_for_route(prefix(IPV4), |route| route.stale).unwrap();
        router.wait_for_route(prefix(IPV6), |route| route.stale).unwrap();
        let speaker = advertising(&stand, keeping(ROUTER, 20), &[IPV4, IPV6]);

        router.wait_for_route(prefix(IPV4), |route| !route.stale).unwrap();
        router.wait_for_route(prefix(IPV6), |route| !route.stale).unwrap();
        speaker.wait_until_established("router");
        let (looks, misses) = guard.misses();
        assert!(looks > 0 && misses == 0, "{vendor:?}: not there {misses} times of {looks}");
    }
}

#[test]
fn n_071_a_route_that_the_speaker_does_not_bring_back_goes_when_it_has_told_all() {
    let gone = "198.51.100.8/32";
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = patient(&stand, vendor);
        let speaker = advertising(&stand, keeping(ROUTER, 60), &[IPV4, gone]);
        let guard = stand.guard(&[IPV4]);
        drop(speaker);
        router.wait_for_route(prefix(gone), |route| route.stale).unwrap();

        // It does not know all of its routes yet, and then it does.
        let mut speaker = stand.speaker();
        speaker.want(|wanted| wanted.is_complete = false);
        speaker.peer("router", keeping(ROUTER, 60));
        speaker.advertise(&[IPV4]);
        speaker.wait_for("router", |status| status.prefixes_sent == 1);
        router.wait_until_established(NODE.into()).unwrap();
        assert!(router.route(prefix(gone)).unwrap().is_some_and(|route| route.stale), "{vendor:?}");
        speaker.want(|wanted| wanted.is_complete = true);

        within(Duration::from_secs(2), &format!("{vendor:?}"), || {
            stand.wait_for_fib("the end of it", |fib| !fib.contains(&prefix(gone)));
            router.wait_until_gone(prefix(gone)).unwrap();
        });
        assert_eq!(guard.misses().1, 0, "{vendor:?}");
    }
}

#[test]
fn n_072_the_routes_of_a_speaker_that_does_not_come_back_go_after_the_restart_time() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = patient(&stand, vendor);
        let speaker = advertising(&stand, keeping(ROUTER, 6), &[IPV4]);

        drop(speaker);

        let since = Instant::now();
        stand.wait_for_fib("the end of the route", |fib| !fib.contains(&prefix(IPV4)));
        // BIRD takes some seconds more until its kernel knows.
        let took = since.elapsed();
        assert!((Duration::from_secs(5)..Duration::from_secs(12)).contains(&took), "{vendor:?}: {took:?}");
        router.wait_until_gone(prefix(IPV4)).unwrap();
    }
}

#[test]
fn n_073_without_graceful_restart_the_routes_of_a_killed_speaker_go_at_once() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = patient(&stand, vendor);
        let speaker = advertising(&stand, neighbor(ROUTER, THEIRS), &[IPV4, IPV6]);

        within(Duration::from_secs(1), &format!("{vendor:?}"), || {
            drop(speaker);
            stand.wait_for_fib("the end of the routes", |fib| {
                !fib.contains(&prefix(IPV4)) && !fib.contains(&prefix(IPV6))
            });
        });
        router.wait_until_gone(prefix(IPV4)).unwrap();
    }
}

#[test]
fn n_074_the_routes_of_a_speaker_that_leaves_go_at_every_peer_within_a_second_also_where_a_notification_restarts() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = patient(&stand, vendor);
        let mut speaker = advertising(&stand, keeping(ROUTER, 60), &[IPV4, IPV6]);
        speaker.peer("other", keeping(ROUTER6, 60));
        speaker.wait_until_established("other");
        router.wait_for_route(prefix(IPV6), |route| route.next_hops.contains(&NODE6.into())).unwrap();

        within(Duration::from_secs(1), &format!("{vendor:?}"), || {
            speaker.want(|wanted| wanted.departing = Some(Departure::Leave { text: "drained".to_owned() }));
            stand.wait_for_fib("the end of the routes", |fib| {
                !fib.contains(&prefix(IPV4)) && !fib.contains(&prefix(IPV6))
            });
        });

        speaker.wait("everybody to be told", |sessions| sessions.parted.then_some(()));
        router.wait_until_gone(prefix(IPV4)).unwrap();
        router.wait_until_gone(prefix(IPV6)).unwrap();
        // Nor does the end of the sessions bring anything back.
        wait_until("the end of the sessions", || {
            [NODE.into(), NODE6.into()].iter().all(|node| !router.is_established(*node).unwrap())
        });
        assert_eq!(router.count().unwrap(), 0, "{vendor:?}");
    }
}

#[test]
fn n_076_a_planned_restart_ends_bfd_by_intention_and_routes_stay() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = stand.router(vendor, THEIRS, |neighbor| {
            neighbor.graceful_restart = true;
            neighbor.bfd_ms = Some(50);
            // BIRD does not tell AdminDown from a failure: it either keeps routes in both cases or in none.
            neighbor.extra = if vendor == Vendor::Bird { "bfd graceful; ".to_owned() } else { String::new() };
        });
        let mut speaker = stand.watching_speaker();
        speaker.peer("router", watched(keeping(ROUTER, 60)));
        speaker.advertise(&[IPV4]);
        stand.wait_for_fib("the route", |fib| fib.contains(&prefix(IPV4)));
        speaker.wait_for("router", |status| status.bfd == Some(BfdState::Up));
        wait_until_quick(&router, NODE.into());
        let guard = stand.guard(&[IPV4]);

        speaker.want(|wanted| wanted.departing = Some(Departure::Restart));
        speaker.wait("everybody to be told", |sessions| sessions.parted.then_some(()));
        drop(speaker);

        router.wait_for_route(prefix(IPV4), |route| route.stale).unwrap();
        let log = router.log();
        assert!(!log.contains("6/10"), "{vendor:?}: {log}");
        let mut speaker = stand.watching_speaker();
        speaker.peer("router", watched(keeping(ROUTER, 60)));
        speaker.advertise(&[IPV4]);
        router.wait_for_route(prefix(IPV4), |route| !route.stale).unwrap();
        speaker.wait_for("router", |status| status.bfd == Some(BfdState::Up));
        let (looks, misses) = guard.misses();
        assert!(looks > 0 && misses == 0, "{vendor:?}: not there {misses} times of {looks}");
    }
}

#[test]
fn n_077_the_routes_of_a_node_that_dies_go_within_the_time_of_bfd_whatever_the_restart_time() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = stand.router(vendor, THEIRS, |neighbor| {
            neighbor.graceful_restart = true;
            neighbor.bfd_ms = Some(50);
        });
        let mut speaker = stand.watching_speaker();
        speaker.peer("router", watched(keeping(ROUTER, 60)));
        speaker.advertise(&[IPV4]);
        stand.wait_for_fib("the route", |fib| fib.contains(&prefix(IPV4)));
        speaker.wait_for("router", |status| status.bfd == Some(BfdState::Up));
        wait_until_quick(&router, NODE.into());

        within(Duration::from_millis(500), &format!("{vendor:?}"), || {
            stand.cut();
            stand.wait_for_fib("the end of the route", |fib| !fib.contains(&prefix(IPV4)));
        });

        router.wait_until_gone(prefix(IPV4)).unwrap();
    }
}

#[test]
fn n_078_a_speaker_that_leaves_first_makes_every_other_path_better_then_withdraws_then_says_why() {
    let stand = Stand::new();
    let router = stand.router(Vendor::Exabgp, THEIRS, |_| {});
    let mut speaker = advertising_to_exabgp(&stand, &router);
    let before = updates(&router).len();

    speaker.want(|wanted| wanted.departing = Some(Departure::Leave { text: "drained".to_owned() }));
    speaker.wait("everybody to be told", |sessions| sessions.parted.then_some(()));

    let notified = || {
        let messages = router.messages().unwrap();
        messages.iter().any(|message| message["neighbor"]["message"]["category"] == 3)
    };
    wait_until("a NOTIFICATION", notified);
    let said: Vec<(u64, String)> = router
        .messages()
        .unwrap()
        .into_iter()
        .filter_map(|message| {
            let message = &message["neighbor"]["message"];
            let body = message["body"].as_str()?.trim_start_matches("0x").to_lowercase();
            Some((message["category"].as_u64()?, body))
        })
        .filter(|(category, _)| *category == 2 || *category == 3)
        .collect();
    let [lower, withdrawn, cease] = &said[before..] else { panic!("{said:?}") };
    // GRACEFUL_SHUTDOWN, and a path that is longer than before.
    assert!(lower.0 == 2 && lower.1.contains("c00804ffff0000"), "{lower:?}");
    assert!(lower.1.matches("0000fbf4").count() > 1, "{lower:?}");
    assert_eq!(*withdrawn, (2, "000520c63364070000".to_owned()));
    // RFC 9003: the length of the text before it.
    let text: String = "drained".bytes().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(*cease, (3, format!("060207{text}")));
}

fn advertising_to_exabgp(stand: &Stand, router: &Router<'_>) -> Speaker {
    let mut speaker = stand.speaker();
    speaker.peer("router", neighbor(ROUTER, THEIRS));
    speaker.advertise(&[IPV4]);
    let route = router.wait_for_route(prefix(IPV4), |_| true).unwrap();
    assert_eq!(route.as_path, [OURS]);
    // The ends of both families follow.
    wait_until("three UPDATEs", || updates(router).len() == 3);
    speaker
}

#[test]
fn n_078_within_the_as_the_preference_goes_down_before_a_route_goes() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let router = stand.router(vendor, OURS, |_| {});
        let mut speaker = stand.speaker();
        speaker.peer("router", neighbor(ROUTER, OURS));
        speaker.advertise(&[IPV4]);
        router.wait_for_route(prefix(IPV4), |route| route.local_pref == Some(100)).unwrap();

        speaker.want(|wanted| wanted.departing = Some(Departure::Leave { text: "drained".to_owned() }));

        let is_lower = |route: &ferrogate_integration::router::Route| route.local_pref == Some(0);
        let route = router.wait_for_route(prefix(IPV4), is_lower).unwrap();
        assert_eq!(route.communities.len(), 1, "{vendor:?}: {route:?}");
        router.wait_until_gone(prefix(IPV4)).unwrap();
    }
}
