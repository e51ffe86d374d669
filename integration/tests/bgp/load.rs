//! Many peers, and peers that do the others no good.

use std::{net::Ipv4Addr, sync::Arc, thread, time::Duration};

use ferrogate_core::{model::PeerName, speaker::bgp::State};
use ferrogate_integration::router::{self, Router, Vendor};
use ferrogate_speaker::bgp::Sessions;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::stand::{OURS, Stand, THEIRS, neighbor};

/// How many sessions there are where there are many.
const MANY: u8 = 100;

/// The address of our end of a session, and of the router's.
fn ends(session: u8) -> [Ipv4Addr; 2] {
    [Ipv4Addr::new(192, 0, 2, 1 + session), Ipv4Addr::new(192, 0, 2, 101 + session)]
}

/// Leaves this thread, and what it starts, the first processor of those it has.
fn keep_to_one_core() {
    let permitted = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|processor| permitted.is_set(*processor)).unwrap());
    sched_setaffinity(None, &one).unwrap();
}

#[test]
fn n_030_a_hundred_peers_with_a_hold_time_of_nine_seconds_stay_up_for_a_minute_on_one_core() {
    thread::scope(|scope| {
        for vendor in Vendor::STRICT {
            scope.spawn(move || many_stay_up(vendor, Duration::from_secs(60)));
        }
    });
}

fn many_stay_up(vendor: Vendor, time: Duration) {
    let all: Vec<[Ipv4Addr; 2]> = (0..MANY).map(ends).collect();
    let [ours, theirs] = [0, 1].map(|end| all.iter().map(|pair| pair[end].into()).collect::<Vec<_>>());
    let stand = Stand::with(&ours, &theirs);
    let neighbors = all.iter().map(|[node, router]| router::Neighbor::new(*node, *router, OURS)).collect();
    let config = router::Config { asn: THEIRS, identifier: all[0][1], neighbors, extra: String::new() };
    let router = Router::start(vendor, &stand.router, &config).unwrap();
    let mut speaker = stand.speaker_on(keep_to_one_core);
    speaker.advertise(&["198.51.100.7/32", "2001:db8:5::7/128"]);

    let peers = all.iter().map(|[node, router]| {
        let mut neighbor = neighbor(*router, THEIRS);
        neighbor.transport.source = Some((*node).into());
        (PeerName::from(router.to_string().as_str()), Arc::new(neighbor))
    });
    speaker.want(|wanted| wanted.neighbors = peers.collect());
    let are_up = |sessions: &Sessions| {
        let up = sessions.statuses.values().filter(|status| status.state == State::Established);
        up.count() == usize::from(MANY)
    };
    speaker.wait("all sessions", |sessions| are_up(sessions).then_some(()));

    speaker.stays(time, "sessions with all", are_up);
    let statuses = speaker.bgp.sessions().borrow().statuses.clone();
    assert!(statuses.values().all(|status| status.flaps == 0), "{vendor:?}: {statuses:#?}");
    for [node, _] in all {
        assert!(router.is_established(node.into()).unwrap(), "{vendor:?}: {node}");
    }
}
