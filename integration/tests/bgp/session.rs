//! Sessions: who is spoken with, and what is sent.

use std::time::Duration;

use ferrogate_integration::router::Vendor;

use crate::stand::{NODE, NODE6, OURS, ROUTER, ROUTER6, Stand, THEIRS, neighbor, prefix, within};

#[test]
fn n_020_a_session_with_every_router_is_established_within_a_second_over_either_family_and_routes_arrive() {
    for vendor in Vendor::ALL {
        for asn in [THEIRS, OURS] {
            let stand = Stand::new();
            let router = stand.router(vendor, asn, |_| {});
            let mut speaker = stand.speaker();
            speaker.advertise(&["198.51.100.7/32", "2001:db8:5::7/128"]);

            within(Duration::from_secs(1), &format!("{vendor:?} AS {asn}"), || {
                speaker.peer("over-ipv4", neighbor(ROUTER, asn));
                if vendor != Vendor::Exabgp {
                    speaker.peer("over-ipv6", neighbor(ROUTER6, asn));
                    speaker.wait_until_established("over-ipv6");
                }
                speaker.wait_until_established("over-ipv4")
            });

            let path: &[u32] = if asn == OURS { &[] } else { &[OURS] };
            let route = router.wait_for_route(prefix("198.51.100.7/32"), |_| true).unwrap();
            assert_eq!(route.as_path, path, "{vendor:?} AS {asn}");
            assert!(route.next_hops.contains(&NODE.into()), "{vendor:?} AS {asn}: {route:?}");
            let route = router.wait_for_route(prefix("2001:db8:5::7/128"), |_| true).unwrap();
            assert!(route.next_hops.contains(&NODE6.into()), "{vendor:?} AS {asn}: {route:?}");
            speaker.withdraw(&["198.51.100.7/32", "2001:db8:5::7/128"]);
            router.wait_until_gone(prefix("198.51.100.7/32")).unwrap();
            router.wait_until_gone(prefix("2001:db8:5::7/128")).unwrap();
        }
    }
}
