//! Why sessions end, what is said then and what status keeps of it (RFC 4486, 5882, 8538, 9003, 9384).

use super::*;

fn other() -> Neighbor {
    Neighbor { remote: Remote::Address { address: ip("192.0.2.253"), port: port() }, ..neighbor() }
}

/// Two routers, both established.
fn two() -> (Bench, Connection, Connection) {
    let mut bench = Bench::new([("tor", neighbor()), ("other", other())]);
    let attempts: Vec<Connection> =
        std::mem::take(&mut bench.attempts).into_iter().map(|(_, connection, _)| connection).collect();
    // In the order of their names.
    let (second, first) = (attempts[0], attempts[1]);
    for (connection, remote) in [(first, ROUTER), (second, "192.0.2.253")] {
        bench.wires.entry(connection).or_default();
        bench.step(Event::Connected { connection, ends: Ends { remote: ip(remote), ..ends() } });
        bench.greet(connection, Open { identifier: identifier(remote), ..open() });
        bench.hear(connection);
    }
    (bench, first, second)
}

#[test]
fn n_031_a_changed_peer_resets_only_that_peer_and_at_once() {
    let (mut bench, changed, other) = two();

    bench.configure("tor", |neighbor| neighbor.hold_time = hold(30));

    assert_eq!(bench.farewell(changed), Some(Notification::new(6, 6, [])));
    assert!(bench.is_open(other) && bench.hear(other).is_empty());
    assert_eq!(bench.attempts.len(), 1, "a reset by configuration waits for nothing");
    assert_eq!(bench.status_of("other").flaps, 0);
}

#[test]
fn n_031_an_edit_that_changes_nothing_resets_nobody() {
    let (mut bench, tor, other) = two();

    bench.configure("tor", |_| ());

    assert!(bench.is_open(tor) && bench.is_open(other));
    assert!(bench.hear(tor).is_empty() && bench.hear(other).is_empty());
}

#[test]
fn n_031_what_is_no_matter_of_the_session_does_not_reset_it() {
    let changes: [fn(&mut Neighbor); 3] = [
        |neighbor| neighbor.connect_retry_time = Some(SECOND),
        |neighbor| neighbor.max_prefixes = NonZeroU32::new(10),
        |neighbor| neighbor.bfd = bfd_wish(),
    ];
    for change in changes {
        let (mut bench, connection) = Bench::up(neighbor(), open());

        bench.configure("tor", change);

        assert!(bench.is_open(connection) && bench.hear(connection).is_empty());
    }
}

#[test]
fn n_032_adding_and_removing_routes_resets_no_session() {
    let (mut bench, tor, other) = two();

    for round in 0..10 {
        bench.announce(&format!("198.51.100.{round}/32"), part());
        bench.pass(SECOND);
        bench.withdraw(&format!("198.51.100.{round}/32"));
        bench.pass(SECOND);
    }

    assert!(bench.is_open(tor) && bench.is_open(other));
    assert_eq!((bench.status().flaps, bench.status_of("other").flaps), (0, 0));
}

#[test]
fn n_033_a_deleted_peer_gets_cease_3_and_its_status_goes() {
    let (mut bench, tor, other) = two();

    bench.want(|wanted| drop(wanted.neighbors.remove("tor")));

    assert_eq!(bench.farewell(tor), Some(Notification::new(6, 3, [])));
    assert!(bench.done.contains(&Action::Gone { peer: "tor".into(), remote: None }));
    assert!(bench.is_open(other));
    bench.pass(60 * SECOND);
    assert!(bench.attempts.is_empty());
}

#[test]
fn n_033_a_deleted_peer_that_would_keep_routes_gets_a_hard_reset_around_the_reason() {
    // Without N a NOTIFICATION of any kind ends a graceful restart.
    for (n, expected) in [(true, Notification::new(6, 9, [6, 3])), (false, Notification::new(6, 3, []))] {
        let neighbor = Neighbor { graceful_restart: restarts(), ..neighbor() };
        let (mut bench, connection) = Bench::up(neighbor, restarting_open(n));

        bench.want(|wanted| wanted.neighbors.clear());

        assert_eq!(bench.farewell(connection), Some(expected));
    }
}

#[test]
fn n_033_a_peer_whose_as_changes_gets_cease_6_and_is_greeted_as_the_new_one() {
    let (mut bench, connection) = Bench::up(neighbor(), open());

    bench.configure("tor", |neighbor| neighbor.peer_asn = PeerAsn::Fixed(asn(64502)));

    assert_eq!(bench.farewell(connection), Some(Notification::new(6, 6, [])));
    let connection = bench.connect();
    bench.greet(connection, Open { asn: asn(64502), ..open() });
    assert_eq!(bench.status().state, State::Established);
    assert_eq!(bench.status().remote_asn, Some(asn(64502)));
}

#[test]
fn n_033_a_peer_that_is_shut_down_gets_cease_2_with_the_text_and_is_left_alone() {
    let (mut bench, connection) = Bench::up(neighbor(), open());

    bench.configure("tor", |neighbor| neighbor.shutdown = Some("until Monday".into()));

    let farewell = bench.farewell(connection).unwrap();
    assert_eq!((farewell.code, farewell.subcode), (6, 2));
    assert_eq!(farewell.text(), Some(Ok("until Monday")));
    assert_eq!(bench.status().state, State::Idle);
    bench.pass(3600 * SECOND);
    assert!(bench.attempts.is_empty());
    let refused = bench.accept(ends());
    assert_eq!(bench.farewell(refused), Some(Notification::new(6, 5, [])));

    bench.configure("tor", |neighbor| neighbor.shutdown = None);
    bench.establish(open());
}

#[test]
fn n_034_a_shutdown_text_that_cannot_be_read_is_reported_and_harmless() {
    for data in [vec![2, 0xff, 0xfe], vec![9, b'n', b'o'], vec![]] {
        let (mut bench, connection) = Bench::up(neighbor(), open());
        let notification = Notification::new(6, 2, data);

        bench.say(connection, Message::Notification(notification.clone()));

        assert_eq!(bench.farewell(connection), None);
        assert_eq!(bench.status().last_close, Some(Closing::Received(notification)));
        bench.pass(SECOND);
        bench.establish(open());
    }
}

#[test]
fn n_035_every_close_states_who_and_why() {
    type Close = fn(&mut Bench, Connection);
    let table: [(Close, &str, &str); 7] = [
        (
            |bench, connection| bench.step(Event::Ended { connection, loss: Loss::Closed }),
            "ConnectionClosed",
            "the peer closed the connection",
        ),
        (|bench, connection| bench.step(Event::Ended { connection, loss: Loss::Reset }), "ConnectionReset", "reset"),
        (
            |bench, connection| bench.step(Event::Ended { connection, loss: Loss::TimedOut }),
            "ConnectionTimedOut",
            "acknowledged nothing",
        ),
        (
            |bench, connection| {
                let text = Notification::cease_with_text(Cease::AdministrativeShutdown, "rack move");
                bench.say(connection, Message::Notification(text));
            },
            "NotificationReceived",
            "the peer sent 6/2 administrative shutdown",
        ),
        (|bench, _| bench.pass(90 * SECOND), "NotificationSent", "this node sent 4/0 hold timer expired"),
        (|bench, connection| bench.say(connection, Message::Open(open())), "NotificationSent", "this node sent 5/3"),
        (
            |bench, _| {
                bench.step(Event::Bfd {
                    path: bench.path(),
                    is_up: false,
                    failure: Some(Diagnostic::ControlDetectionTimeExpired),
                })
            },
            "NotificationSent",
            "this node sent 6/10 BFD down",
        ),
    ];
    for (close, reason, text) in table {
        let (mut bench, connection) = Bench::up(Neighbor { bfd: bfd_wish(), ..neighbor() }, open());

        close(&mut bench, connection);

        let closing = bench.status().last_close.as_ref().unwrap();
        assert_eq!(closing.reason(), reason);
        assert!(closing.to_string().contains(text), "{closing}");
        assert_eq!(bench.status().flaps, 1);
    }
}

#[test]
fn n_035_the_text_of_the_peer_is_shown() {
    let (mut bench, connection) = Bench::up(neighbor(), open());

    let text = Notification::cease_with_text(Cease::AdministrativeShutdown, "rack move");
    bench.say(connection, Message::Notification(text));

    assert!(bench.status().last_close.as_ref().unwrap().to_string().contains("rack move"));
}

#[test]
fn n_056_more_prefixes_than_allowed_give_cease_1() {
    let limited = Neighbor { max_prefixes: NonZeroU32::new(2), ..neighbor() };
    let (mut bench, connection) = Bench::up(limited, open());
    bench.say(connection, announces(&["198.51.100.1/32", "198.51.100.2/32"]));
    // The same again are not more, and one that goes makes room.
    bench.say(connection, announces(&["198.51.100.1/32"]));
    bench.say(connection, withdraws(&["198.51.100.1/32"]));
    bench.say(connection, announces(&["198.51.100.3/32"]));
    assert!(bench.is_open(connection));

    bench.say(connection, announces(&["198.51.100.4/32"]));

    assert_eq!(bench.farewell(connection), Some(Notification::new(6, 1, [])));
}

#[test]
fn n_054_what_a_peer_announces_is_counted_and_goes_no_further() {
    let (mut bench, connection) = Bench::up(neighbor(), open());

    bench.say(connection, announces(&["198.51.100.1/32", "198.51.100.2/32"]));
    bench.say(connection, withdraws(&["198.51.100.1/32"]));

    assert_eq!(bench.current().prefixes_received, 1);
    assert!(bench.hear(connection).is_empty());
}

#[test]
fn n_084_bfd_down_closes_with_cease_10_and_the_status_says_so() {
    let (mut bench, connection) = Bench::up(Neighbor { bfd: bfd_wish(), ..neighbor() }, open());
    assert_eq!(bench.watched().unwrap().keys().collect::<Vec<_>>(), [&bench.path()]);
    bench.step(Event::Bfd { path: bench.path(), is_up: true, failure: None });
    assert_eq!(bench.status().bfd, Some(BfdState::Up));

    bench.step(Event::Bfd { path: bench.path(), is_up: false, failure: Some(Diagnostic::ControlDetectionTimeExpired) });

    assert_eq!(bench.farewell(connection), Some(Notification::new(6, 10, [])));
    assert_eq!(bench.status().bfd, Some(BfdState::Down));
    assert_eq!(bench.status().last_close, Some(Closing::Sent(Notification::new(6, 10, []))));
}

#[test]
fn n_077_bfd_down_is_a_hard_reset_where_a_notification_would_keep_routes() {
    let neighbor = Neighbor { bfd: bfd_wish(), graceful_restart: restarts(), ..neighbor() };
    let (mut bench, connection) = Bench::up(neighbor, restarting_open(true));

    bench.step(Event::Bfd { path: bench.path(), is_up: false, failure: Some(Diagnostic::ControlDetectionTimeExpired) });

    assert_eq!(bench.farewell(connection), Some(Notification::new(6, 9, [6, 10])));
    assert_eq!(bench.status().last_close, Some(Closing::Sent(Notification::new(6, 10, []))));
}

#[test]
fn bfd_that_is_switched_off_on_the_other_side_is_no_failure() {
    let (mut bench, connection) = Bench::up(Neighbor { bfd: bfd_wish(), ..neighbor() }, open());
    bench.step(Event::Bfd { path: bench.path(), is_up: true, failure: None });

    bench.step(Event::Bfd { path: bench.path(), is_up: false, failure: None });

    assert!(bench.is_open(connection));
}

#[test]
fn n_093_bfd_comes_and_goes_on_a_live_session_without_a_reset() {
    let (mut bench, connection) = Bench::up(Neighbor { bfd: bfd_wish(), ..neighbor() }, open());
    bench.step(Event::Bfd { path: bench.path(), is_up: true, failure: None });

    bench.configure("tor", |neighbor| neighbor.bfd = None);

    assert_eq!(bench.watched(), Some(&BTreeMap::new()));
    assert!(bench.is_open(connection) && bench.hear(connection).is_empty());
    assert_eq!(bench.status().bfd, None);
    bench.configure("tor", |neighbor| neighbor.bfd = bfd_wish());
    assert_eq!(bench.watched().unwrap().len(), 1);
    assert!(bench.is_open(connection));
}

#[test]
fn bfd_looks_over_several_hops_where_routers_may_be_in_between() {
    let far =
        Neighbor { bfd: bfd_wish(), transport: Transport { ttl: Ttl::MultiHop, ..neighbor().transport }, ..neighbor() };
    let (bench, _) = Bench::up(far, open());

    let path = Path { interface: None, ..bench.path() };
    assert_eq!(bench.watched().unwrap().keys().collect::<Vec<_>>(), [&path]);
}

#[test]
fn n_092_the_status_tells_how_often_bfd_has_lost_the_peer_and_why_it_did_last() {
    let mut bench = Bench::with(Neighbor { bfd: bfd_wish(), ..neighbor() });
    for (losses, failure) in
        [(1, Diagnostic::ControlDetectionTimeExpired), (2, Diagnostic::NeighborSignaledSessionDown)]
    {
        bench.pass(10 * SECOND);
        bench.establish(open());
        bench.step(Event::Bfd { path: bench.path(), is_up: true, failure: None });

        bench.step(Event::Bfd { path: bench.path(), is_up: false, failure: Some(failure) });

        let status = bench.status();
        assert_eq!(
            (status.bfd, status.bfd_losses, status.bfd_last_loss),
            (Some(BfdState::Down), losses, Some(failure))
        );
    }
    // What ends by intention is no loss.
    bench.step(Event::Bfd { path: bench.path(), is_up: false, failure: None });
    assert_eq!(bench.status().bfd_losses, 2);
}
