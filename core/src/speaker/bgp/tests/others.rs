//! Peers that connect to us, peers that a prefix stands for, and peers behind an interface.

use super::*;

fn from(address: &str) -> Ends {
    Ends { remote: ip(address), ..ends() }
}

fn listening(bench: &Bench) -> Vec<Prefix> {
    let listens = bench.done.iter().rev().find_map(|action| match action {
        Action::Listen(expected) => Some(expected.iter().map(|expected| expected.from).collect()),
        _ => None,
    });
    listens.unwrap_or_default()
}

#[test]
fn a_passive_peer_is_waited_for_and_never_connected_to() {
    let mut bench = Bench::with(Neighbor { passive: true, ..neighbor() });
    assert_eq!(listening(&bench), [prefix("192.0.2.254/32")]);
    assert_eq!(bench.status().state, State::Active);

    bench.pass(3600 * SECOND);
    assert!(bench.attempts.is_empty());

    let connection = bench.accept(ends());
    bench.greet(connection, open());
    assert_eq!(bench.status().state, State::Established);
    bench.step(Event::Ended { connection, loss: Loss::Closed });
    bench.pass(3600 * SECOND);
    assert!(bench.attempts.is_empty());
}

#[test]
fn nothing_listens_where_nobody_is_waited_for() {
    let bench = Bench::with(neighbor());

    assert!(!bench.done.iter().any(|action| matches!(action, Action::Listen(_))));
}

#[test]
fn whoever_is_not_configured_is_turned_away_without_a_word() {
    let mut bench = Bench::with(Neighbor { passive: true, ..neighbor() });

    let stranger = bench.accept(from("192.0.2.99"));

    assert!(!bench.is_open(stranger));
    assert!(bench.hear(stranger).is_empty());
}

#[test]
fn one_address_in_two_vrfs_is_two_routers() {
    let at = |vrf: &str| Neighbor {
        passive: true,
        transport: Transport { vrf: Some(vrf.into()), ..neighbor().transport },
        ..neighbor()
    };
    let mut bench = Bench::new([("blue", at("vrf-blue")), ("red", at("vrf-red"))]);
    let mut accept = |vrf: Option<&str>| {
        let connection = bench.peers.accept();
        bench.step(Event::Accepted { connection, vrf: vrf.map(Into::into), ends: ends() });
        (connection, bench.done.clone())
    };

    let (red, _) = accept(Some("vrf-red"));
    let (stranger, done) = accept(None);

    let rejected = Action::Reject { connection: stranger, remote: ip(ROUTER), reason: Rejection::Stranger };
    assert!(done.contains(&rejected), "{done:?}");
    assert!(bench.is_open(red));
    assert_eq!(bench.statuses[&("red".into(), None)].state, State::OpenSent);
    assert_ne!(bench.statuses[&("blue".into(), None)].state, State::OpenSent);
}

fn dynamic() -> Neighbor {
    Neighbor {
        remote: Remote::Prefix(prefix("192.0.2.0/24")),
        passive: true,
        peer_asn: PeerAsn::External,
        ..neighbor()
    }
}

#[test]
fn every_router_of_a_prefix_has_a_session_and_a_status_of_its_own_until_it_closes() {
    let mut bench = Bench::with(dynamic());
    assert_eq!(listening(&bench), [prefix("192.0.2.0/24")]);
    assert!(bench.statuses.is_empty());

    let [first, second] = ["192.0.2.10", "192.0.2.11"].map(|address| {
        let connection = bench.accept(from(address));
        bench.greet(connection, Open { identifier: identifier(address), ..open() });
        connection
    });
    bench.announce("198.51.100.1/32", part());
    bench.pass(COALESCE);

    for (connection, address) in [(first, "192.0.2.10"), (second, "192.0.2.11")] {
        let status = &bench.statuses[&("tor".into(), Some(ip(address)))];
        assert_eq!((status.state, &status.remote[..]), (State::Established, address));
        assert!(bench.hear(connection).contains(&announces(&["198.51.100.1/32"])));
    }
    bench.step(Event::Ended { connection: first, loss: Loss::Closed });
    assert!(bench.done.contains(&Action::Gone { peer: "tor".into(), remote: Some(ip("192.0.2.10")) }));
    assert_eq!(bench.statuses.len(), 1);
    bench.pass(60 * SECOND);
    assert!(bench.attempts.is_empty());
}

#[test]
fn a_router_that_is_configured_by_address_is_not_taken_for_one_of_the_prefix() {
    let mut bench = Bench::new([("all", dynamic()), ("tor", Neighbor { passive: true, ..neighbor() })]);

    let connection = bench.accept(ends());
    bench.greet(connection, open());

    assert_eq!(bench.status().state, State::Established);
    assert_eq!(bench.statuses.len(), 1);
}

#[test]
fn a_prefix_stands_for_so_many_routers_and_no_more() {
    let mut bench = Bench::with(Neighbor { remote: Remote::Prefix(prefix("198.51.100.0/24")), ..dynamic() });
    let connections: Vec<Connection> =
        (0..MAX_DYNAMIC).map(|last| bench.accept(from(&format!("198.51.100.{last}")))).collect();
    assert!(connections.iter().all(|connection| bench.is_open(*connection)));

    let surplus = bench.accept(from("198.51.100.250"));
    let reason = Rejection::TooManyRouters;
    let remote = ip("198.51.100.250");
    assert!(bench.done.contains(&Action::Reject { connection: surplus, remote, reason }));

    bench.step(Event::Ended { connection: connections[0], loss: Loss::Closed });
    let next = bench.accept(from("198.51.100.250"));
    assert!(bench.is_open(next));
}

#[test]
fn a_peer_that_comes_to_stand_for_a_prefix_leaves_no_status_of_its_own_behind() {
    let (mut bench, connection) = Bench::up(neighbor(), open());

    bench.want(|wanted| drop(wanted.neighbors.insert("tor".into(), Arc::new(dynamic()))));

    assert_eq!(bench.farewell(connection), Some(Notification::new(6, 3, [])));
    assert!(bench.statuses.is_empty());
    let connection = bench.accept(ends());
    bench.greet(connection, open());
    assert_eq!(bench.statuses.keys().collect::<Vec<_>>(), [&("tor".into(), Some(ip(ROUTER)))]);

    bench.want(|wanted| drop(wanted.neighbors.insert("tor".into(), Arc::new(neighbor()))));

    assert!(!bench.is_open(connection));
    assert_eq!(bench.statuses.keys().collect::<Vec<_>>(), [&("tor".into(), None)]);
    assert_eq!(bench.attempts.len(), 1);
}

fn unnumbered() -> Neighbor {
    Neighbor {
        remote: Remote::Interface { name: "eth1".into(), port: port() },
        peer_asn: PeerAsn::External,
        families: Family::ALL.into(),
        ..neighbor()
    }
}

#[test]
fn n_057_a_router_behind_an_interface_is_connected_to_as_soon_as_it_is_found() {
    let mut bench = Bench::with(unnumbered());
    assert!(bench.done.contains(&Action::Discover(["eth1".into()].into())));
    assert_eq!(bench.status().trouble, Some(Trouble::NoRouter("eth1".into())));
    bench.pass(60 * SECOND);
    assert!(bench.attempts.is_empty());

    bench.step(Event::Found { interface: "eth2".into(), address: ip("fe80::2") });
    assert!(bench.attempts.is_empty());
    bench.step(Event::Found { interface: "eth1".into(), address: ip("fe80::1") });

    let (_, _, to) = bench.attempts[0].clone();
    assert_eq!(to, Target { address: ip("fe80::1"), port: port(), interface: Some("eth1".into()) });
}

#[test]
fn n_057_a_router_that_repeats_itself_is_not_connected_to_twice_and_one_that_moved_is_followed() {
    let mut bench = Bench::with(unnumbered());
    bench.step(Event::Found { interface: "eth1".into(), address: ip("fe80::1") });
    bench.step(Event::Found { interface: "eth1".into(), address: ip("fe80::1") });
    assert_eq!(bench.attempts.len(), 1);
    let (_, connection, _) = bench.attempts.pop().unwrap();
    bench.step(Event::Refused { connection, trouble: Trouble::TimedOut });

    bench.step(Event::Found { interface: "eth1".into(), address: ip("fe80::9") });

    assert_eq!(bench.attempts.pop().unwrap().2.address, ip("fe80::9"));
}

#[test]
fn n_057_routes_of_both_families_go_by_the_link_local_address_outside_and_inside_one_as() {
    let internal = Neighbor {
        peer_asn: PeerAsn::Internal,
        transport: Transport { ttl: Ttl::MultiHop, ..neighbor().transport },
        ..unnumbered()
    };
    for (neighbor, number) in [(unnumbered(), THEIRS), (internal, OURS)] {
        let mut bench = Bench::with(neighbor);
        bench.step(Event::Found { interface: "eth1".into(), address: ip("fe80::1") });
        let (_, connection, _) = bench.attempts.pop().unwrap();
        let ends = Ends {
            local: ip("fe80::a"),
            remote: ip("fe80::1"),
            interface: Some("eth1".into()),
            addresses: vec![prefix("fe80::a/64"), prefix("192.0.2.1/24")],
        };
        bench.step(Event::Connected { connection, ends });
        let mut open = Open { asn: asn(number), ..open() };
        open.capabilities.extended_next_hop =
            [ExtendedNextHop { family: Family::Ipv4Unicast, next_hop: Family::Ipv6Unicast }].into();
        bench.greet(connection, open);
        bench.listen(connection);

        for (text, octets) in [("198.51.100.1/32", [0, 1, 1, 16]), ("2001:db8::1/128", [0, 2, 1, 16])] {
            bench.announce(text, part());
            bench.pass(COALESCE);

            let reach = &only_attributes(&bench.listen(connection))[&MP_REACH_NLRI];
            assert_eq!(reach[..4], octets);
            assert_eq!(reach[4..8], [0xfe, 0x80, 0, 0]);
            assert_eq!(reach[19], 0x0a);
        }
    }
}

#[test]
fn a_wrong_signature_is_suspected_where_a_password_is_in_use_and_no_connection_stands() {
    let secret =
        Neighbor { transport: Transport { password: Key::new("secret"), ..neighbor().transport }, ..neighbor() };
    let other = Neighbor { remote: Remote::Address { address: ip("192.0.2.253"), port: port() }, ..neighbor() };
    let mut bench = Bench::new([("tor", secret), ("open", other)]);

    bench.step(Event::Mistrusted);

    assert_eq!(bench.status().trouble, Some(Trouble::Md5Mismatch));
    assert_eq!(bench.status_of("open").trouble, None);
    assert!(!format!("{:?}", bench.peers).contains("secret"), "n_065: no key is shown");
}
