//! Graceful restart, deferral of End-of-RIB, draining and parting (RFC 4724, 8326, 8538).

use super::*;

fn graceful() -> Neighbor {
    Neighbor { graceful_restart: restarts(), ..neighbor() }
}

const EOR: fn() -> Message = || end_of_rib(Family::Ipv4Unicast);

#[test]
fn n_071_the_end_of_rib_waits_until_all_routes_are_known() {
    let mut bench = Bench::with(graceful());
    bench.want(|wanted| wanted.is_complete = false);
    let connection = bench.establish(restarting_open(true));
    bench.announce("198.51.100.1/32", part());
    bench.pass(5 * SECOND);
    assert_eq!(bench.hear(connection), [announces(&["198.51.100.1/32"])]);

    bench.want(|wanted| {
        wanted.is_complete = true;
        wanted.routes.insert(prefix("198.51.100.2/32"), route(part()));
    });
    bench.pass(COALESCE);

    assert_eq!(bench.hear(connection), [announces(&["198.51.100.2/32"]), EOR()]);
    bench.pass(20 * SECOND);
    assert!(bench.hear(connection).iter().all(|message| *message == Message::Keepalive));
}

#[test]
fn n_071_the_end_of_rib_follows_at_once_when_nothing_else_is_to_come() {
    let mut bench = Bench::with(graceful());
    bench.want(|wanted| wanted.is_complete = false);
    let connection = bench.establish(restarting_open(true));

    bench.want(|wanted| wanted.is_complete = true);

    assert_eq!(bench.hear(connection), [EOR()]);
}

#[test]
fn n_071_the_end_of_rib_waits_no_longer_than_the_deferral() {
    let mut bench = Bench::with(graceful());
    bench.want(|wanted| wanted.is_complete = false);
    let connection = bench.establish(restarting_open(true));
    let end = bench.begin + DEFERRAL;

    bench.pass(end - MS - bench.now);
    assert!(bench.hear(connection).is_empty());
    bench.pass(MS);

    assert_eq!(bench.hear(connection), [EOR()]);
}

#[test]
fn a_deferral_that_ends_while_the_peer_takes_nothing_wakes_nobody_in_vain() {
    let mut bench = Bench::with(graceful());
    bench.want(|wanted| wanted.is_complete = false);
    let connection = bench.establish(restarting_open(true));
    bench.announce("198.51.100.1/32", part());
    bench.stall(connection);
    bench.pass(2 * DEFERRAL);

    bench.relieve(connection);

    assert_eq!(bench.hear(connection), [announces(&["198.51.100.1/32"]), EOR()]);
}

#[test]
fn n_050_an_end_of_rib_of_each_family_comes_also_without_routes() {
    let mut bench = Bench::with(Neighbor { families: Family::ALL.into(), ..neighbor() });
    let connection = bench.connect();
    bench.greet(connection, open());

    let said = bench.hear(connection);

    assert_eq!(said[2..], [end_of_rib(Family::Ipv4Unicast), end_of_rib(Family::Ipv6Unicast)]);
}

/// The graceful restart capability of the next OPEN.
fn capability(bench: &mut Bench) -> Option<bgp::GracefulRestart> {
    let connection = bench.connect();
    let Message::Open(open) = bench.hear(connection).remove(0) else { panic!("an OPEN comes first") };
    bench.step(Event::Ended { connection, loss: Loss::Closed });
    bench.pass(6 * SECOND);
    open.capabilities.graceful_restart
}

#[test]
fn n_075_r_is_set_for_as_long_as_a_peer_may_hold_routes_of_an_earlier_life_and_not_later() {
    let mut bench = Bench::with(graceful());

    assert!(capability(&mut bench).unwrap().restarting);
    bench.pass(100 * SECOND);
    // That attempt has waited all the time.
    assert!(capability(&mut bench).unwrap().restarting);
    bench.pass(20 * SECOND);
    assert!(!capability(&mut bench).unwrap().restarting);
}

#[test]
fn n_075_f_is_set_for_each_family_and_the_time_is_the_configured_one() {
    for (seconds, forwarding_preserved) in [(1, true), (120, false), (4095, true)] {
        let mut bench = Bench::with(Neighbor {
            families: Family::ALL.into(),
            graceful_restart: Some(GracefulRestart { restart_time_seconds: seconds, forwarding_preserved }),
            ..neighbor()
        });

        let capability = capability(&mut bench).unwrap();

        assert_eq!(capability.restart_time_seconds, seconds);
        let kept = Family::ALL.into_iter().filter(|_| forwarding_preserved);
        assert_eq!(capability.forwarding, kept.map(|family| (family, true)).collect());
    }
    assert_eq!(capability(&mut Bench::with(neighbor())), None);
}

#[test]
fn n_076_a_restart_ends_the_connection_without_a_word_and_only_then_switches_bfd_off() {
    let (mut bench, connection) = Bench::up(Neighbor { bfd: bfd_wish(), ..graceful() }, restarting_open(true));
    bench.announce("198.51.100.1/32", part());
    bench.pass(SECOND);
    bench.hear(connection);

    bench.want(|wanted| wanted.departing = Some(Departure::Restart));

    assert_eq!(bench.farewell(connection), None, "a NOTIFICATION or a withdrawal would take the routes");
    assert_eq!(bench.watched().unwrap().len(), 1);
    assert_eq!(bench.status().last_close, Some(Closing::Lost(Loss::Restart)));
    bench.pass(SECOND);
    assert_eq!(bench.watched(), Some(&BTreeMap::new()));
    assert_eq!(bench.done.last(), Some(&Action::Parted));
}

#[test]
fn n_076_a_restart_ends_the_connection_before_bfd_for_a_router_of_a_prefix_too() {
    let remote = Remote::Prefix(prefix("192.0.2.0/24"));
    let mut bench = Bench::with(Neighbor { remote, passive: true, bfd: bfd_wish(), ..graceful() });
    let connection = bench.accept(ends());
    bench.greet(connection, restarting_open(true));

    bench.want(|wanted| wanted.departing = Some(Departure::Restart));

    assert!(!bench.is_open(connection));
    assert_eq!(bench.watched().unwrap().len(), 1);
    bench.pass(SECOND);
    assert_eq!(bench.watched(), Some(&BTreeMap::new()));
    assert_eq!(bench.done.last(), Some(&Action::Parted));
}

/// Everything said over a connection after a departure, with the time since.
fn parting(neighbor: Neighbor, open: Open, departure: Departure) -> Vec<(Duration, Heard)> {
    let (mut bench, connection) = Bench::up(neighbor, open);
    bench.announce("198.51.100.1/32", part());
    bench.pass(SECOND);
    bench.hear(connection);
    let begin = bench.now;
    bench.want(|wanted| wanted.departing = Some(departure));
    bench.pass(2 * SECOND);
    assert!(!bench.is_open(connection));
    assert_eq!(bench.done.last(), Some(&Action::Parted));
    bench.listen(connection).into_iter().map(|heard| (heard.at - begin, heard)).collect()
}

#[test]
fn n_078_a_drain_lowers_the_preference_then_withdraws_then_says_cease_2_with_the_text() {
    let said = parting(neighbor(), open(), Departure::Leave { text: "node is drained".into() });

    let [(first, lowered), (second, withdrawn), (third, cease)] = &said[..] else { panic!("{said:?}") };
    assert_eq!(*first, Duration::ZERO);
    assert_eq!(lowered.message, announces(&["198.51.100.1/32"]));
    let lowered = attributes(&lowered.body);
    assert_eq!(lowered[&COMMUNITIES], [0xff, 0xff, 0, 0], "GRACEFUL_SHUTDOWN");
    assert!(lowered[&AS_PATH].len() > 2 + 4, "routers without policy see a longer path");
    assert_eq!(*second, DRAIN_TIME);
    assert_eq!(withdrawn.message, withdraws(&["198.51.100.1/32"]));
    assert_eq!(*third, DRAIN_TIME + WITHDRAW_TIME);
    let Message::Notification(cease) = &cease.message else { panic!("{cease:?}") };
    assert_eq!((cease.code, cease.subcode), (6, 2));
    assert_eq!(cease.text(), Some(Ok("node is drained")));
}

#[test]
fn n_078_a_drain_inside_one_as_lowers_local_pref_to_0() {
    let internal = Neighbor { peer_asn: PeerAsn::Internal, ..neighbor() };
    let said = parting(internal, Open { asn: asn(OURS), ..open() }, Departure::Leave { text: String::new() });

    let lowered = attributes(&said[0].1.body);
    assert_eq!(lowered[&LOCAL_PREF], [0, 0, 0, 0]);
    assert_eq!(lowered[&AS_PATH], []);
}

#[test]
fn n_074_whoever_leaves_withdraws_within_a_second_also_from_those_that_would_keep_routes() {
    let said = parting(graceful(), restarting_open(true), Departure::Leave { text: "gone".into() });

    let (at, _) = said.iter().find(|(_, heard)| heard.message == withdraws(&["198.51.100.1/32"])).unwrap();
    assert!(*at <= SECOND);
    let Message::Notification(last) = &said.last().unwrap().1.message else { panic!("{said:?}") };
    assert_eq!((last.code, last.subcode), (6, 9));
    let reason = last.hard_reset_reason().unwrap();
    assert_eq!((reason.code, reason.subcode), (6, 2));
    assert_eq!(reason.text(), Some(Ok("gone")));
}

#[test]
fn a_restart_drains_the_routes_of_a_peer_that_cannot_keep_them() {
    let said = parting(graceful(), open(), Departure::Restart);

    assert!(said.iter().any(|(_, heard)| heard.message == withdraws(&["198.51.100.1/32"])));
    let Message::Notification(last) = &said.last().unwrap().1.message else { panic!("{said:?}") };
    assert_eq!((last.code, last.subcode), (6, 2));
}

#[test]
fn a_restart_drains_the_routes_that_nobody_would_forward_by_meanwhile() {
    let restart = GracefulRestart { restart_time_seconds: 120, forwarding_preserved: false };
    let neighbor = Neighbor { graceful_restart: Some(restart), ..neighbor() };

    let said = parting(neighbor, restarting_open(true), Departure::Restart);

    assert!(said.iter().any(|(_, heard)| heard.message == withdraws(&["198.51.100.1/32"])));
    let Message::Notification(last) = &said.last().unwrap().1.message else { panic!("{said:?}") };
    assert_eq!((last.code, last.subcode), (6, 9));
}

#[test]
fn whoever_stops_tries_nothing_any_more_and_parts_though_peers_come_and_go_meanwhile() {
    let (mut bench, _) = Bench::up(neighbor(), open());
    let other = || Neighbor { remote: Remote::Address { address: ip("192.0.2.253"), port: port() }, ..neighbor() };
    bench.want(|wanted| drop(wanted.neighbors.insert("other".into(), Arc::new(other()))));
    assert_eq!(bench.attempts.len(), 1);

    bench.want(|wanted| wanted.departing = Some(Departure::Leave { text: String::new() }));
    assert!(bench.attempts.is_empty());
    bench.want(|wanted| drop(wanted.neighbors.insert("late".into(), Arc::new(other()))));
    assert!(bench.attempts.is_empty());
    bench.pass(SECOND);

    assert_eq!(bench.done.last(), Some(&Action::Parted));
    assert_eq!(bench.peers.deadline(), None);
    let late = bench.accept(ends());
    assert!(!bench.is_open(late));
}

#[test]
fn a_peer_that_is_gone_in_the_middle_of_a_drain_is_not_waited_for() {
    let (mut bench, connection) = Bench::up(neighbor(), open());
    bench.want(|wanted| wanted.departing = Some(Departure::Leave { text: String::new() }));

    bench.step(Event::Ended { connection, loss: Loss::Closed });

    assert_eq!(bench.done.last(), Some(&Action::Parted));
}

#[test]
fn a_peer_that_is_changed_in_the_middle_of_a_drain_is_drained_to_its_end() {
    let (mut bench, connection) = Bench::up(graceful(), restarting_open(true));
    bench.announce("198.51.100.1/32", part());
    bench.pass(SECOND);
    bench.want(|wanted| wanted.departing = Some(Departure::Leave { text: String::new() }));

    bench.configure("tor", |neighbor| neighbor.hold_time = hold(30));
    bench.pass(SECOND);

    let said = bench.hear(connection);
    assert!(said.contains(&withdraws(&["198.51.100.1/32"])), "{said:?}");
    let Some(Message::Notification(last)) = said.last() else { panic!("{said:?}") };
    assert_eq!((last.code, last.subcode), (6, 9));
    assert_eq!(bench.done.last(), Some(&Action::Parted));
}
