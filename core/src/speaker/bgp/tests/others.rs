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
    bench.done.clear();
    bench.step(Event::Ended { connection: first, loss: Loss::Closed });
    let [.., Action::Status(last), gone] = &bench.done[..] else { panic!("{:?}", bench.done) };
    assert_eq!(*gone, Action::Gone { peer: "tor".into(), remote: Some(ip("192.0.2.10")) });
    assert_eq!((last.state, &last.last_close), (State::Active, &Some(Closing::Lost(Loss::Closed))));
    assert_eq!(bench.statuses.len(), 1);
    // Anybody may come and go, and the log is not told of it.
    let stranger = bench.accept(from("192.0.2.12"));
    bench.done.clear();
    bench.step(Event::Ended { connection: stranger, loss: Loss::Closed });
    assert_eq!(bench.done.iter().filter(|action| matches!(action, Action::Status(_))).count(), 0);
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
    let secret = Neighbor {
        transport: Transport { signature: Key::new("secret").map(Signature::Md5), ..neighbor().transport },
        ..neighbor()
    };
    let other = Neighbor { remote: Remote::Address { address: ip("192.0.2.253"), port: port() }, ..neighbor() };
    let mut bench = Bench::new([("tor", secret), ("open", other)]);

    bench.step(Event::Mistrusted);

    assert_eq!(bench.status().trouble, Some(Trouble::Md5Mismatch));
    assert_eq!(bench.status_of("open").trouble, None);
    assert!(!format!("{:?}", bench.peers).contains("secret"), "n_065: no key is shown");
}

fn by_tcp_ao(neighbor: Neighbor) -> Neighbor {
    let terms = TcpAo { send_id: 1, receive_id: 2, algorithm: AoAlgorithm::HmacSha1 };
    let signature = Key::new("secret").map(|key| Signature::Ao { key, terms });
    Neighbor { transport: Transport { signature, ..neighbor.transport.clone() }, ..neighbor }
}

fn listens(bench: &Bench) -> usize {
    let last = bench.done.iter().rev().find_map(|action| match action {
        Action::Listen(expected) => Some(expected.len()),
        _ => None,
    });
    last.unwrap_or_default()
}

#[test]
fn n_063_without_tcp_ao_in_the_kernel_nothing_is_started_and_the_status_says_why() {
    let trouble = Some(Trouble::NoTcpAo(AoAlgorithm::HmacSha1));
    let prefix = Remote::Prefix(prefix("192.0.2.0/24"));
    for neighbor in [
        neighbor(),
        Neighbor { passive: true, ..neighbor() },
        Neighbor { remote: prefix, ..neighbor() },
        Neighbor { remote: Remote::Interface { name: "eth1".into(), port: port() }, ..neighbor() },
    ] {
        let mut bench = Bench::with(by_tcp_ao(neighbor.clone()));
        bench.step(Event::Found { interface: "eth1".into(), address: ip("fe80::1") });
        bench.pass(600 * SECOND);

        assert!(bench.attempts.is_empty(), "{:?}", neighbor.remote);
        assert_eq!(listens(&bench), 0, "{:?}", neighbor.remote);
        assert_eq!((bench.status().state, &bench.status().trouble), (State::Idle, &trouble), "{:?}", neighbor.remote);
        // Somebody else may be listened for.
        let connection = bench.accept(ends());
        assert!(!bench.is_open(connection) && bench.hear(connection).is_empty(), "{:?}", neighbor.remote);

        bench.configure("tor", |neighbor| neighbor.transport.signature = None);

        let status = bench.statuses.get(&("tor".into(), None));
        assert!(status.is_none_or(|status| status.trouble != trouble), "{:?}: {status:?}", neighbor.remote);
        bench.configure("tor", |neighbor| *neighbor = by_tcp_ao(neighbor.clone()));
        assert_eq!(bench.status().trouble, trouble, "{:?}", neighbor.remote);
    }
}

#[test]
fn n_063_a_session_that_is_to_have_a_key_the_kernel_cannot_use_ends_and_is_not_waited_for() {
    let (mut bench, connection) = Bench::up(neighbor(), open());

    bench.configure("tor", |neighbor| *neighbor = by_tcp_ao(neighbor.clone()));

    let trouble = Some(Trouble::NoTcpAo(AoAlgorithm::HmacSha1));
    assert!(!bench.is_open(connection));
    assert_eq!((bench.status().state, &bench.status().trouble), (State::Idle, &trouble));
    assert_eq!(bench.peers.deadline(), None);
    // Segments that are dropped meanwhile say nothing new.
    bench.step(Event::Mistrusted);
    assert_eq!(bench.status().trouble, trouble);

    bench.configure("tor", |neighbor| neighbor.transport.signature = None);

    assert_eq!((bench.attempts.len(), &bench.status().trouble), (1, &None));
}

#[test]
fn n_063_with_tcp_ao_in_the_kernel_connections_are_made_and_waited_for_with_its_key() {
    let other = Neighbor { remote: Remote::Prefix(prefix("198.51.100.0/24")), ..neighbor() };
    let mut bench = Bench::new([]);
    bench.peers = Peers::new(bench.now, 7).on(Kernel { tcp_ao: [AoAlgorithm::HmacSha1].into() });
    bench.want(|wanted| {
        wanted.neighbors.insert("tor".into(), Arc::new(by_tcp_ao(neighbor())));
        wanted.neighbors.insert("racks".into(), Arc::new(by_tcp_ao(other.clone())));
    });

    let signed = by_tcp_ao(neighbor()).transport;
    let is_signed = |action: &Action| match action {
        Action::Connect { transport, .. } => *transport == signed,
        Action::Listen(expected) => expected.iter().all(|expected| expected.transport == signed),
        _ => false,
    };
    assert_eq!(bench.done.iter().filter(|action| is_signed(action)).count(), 2, "{:?}", bench.done);
    assert_eq!((listens(&bench), bench.attempts.len()), (2, 1));
    bench.step(Event::Mistrusted);
    assert_eq!(bench.status().trouble, Some(Trouble::AoMismatch));
    assert!(!format!("{:?}", bench.peers).contains("secret"));
}

#[test]
fn n_065_a_router_behind_an_interface_that_has_a_password_is_connected_to_and_never_taken_without_it() {
    let key = || Key::new("secret");
    let terms = TcpAo { send_id: 1, receive_id: 2, algorithm: AoAlgorithm::HmacSha1 };
    for signature in [key().map(Signature::Md5), key().map(|key| Signature::Ao { key, terms })] {
        let transport = Transport { signature, ..neighbor().transport };
        let mut bench = Bench::new([]);
        bench.peers = Peers::new(bench.now, 7).on(Kernel { tcp_ao: [AoAlgorithm::HmacSha1].into() });
        bench.want(|wanted| {
            wanted.neighbors.insert("tor".into(), Arc::new(Neighbor { transport, ..unnumbered() }));
            // Somebody is waited for, so that there is a listening socket, and it has no key for the link.
            wanted.neighbors.insert("other".into(), Arc::new(Neighbor { passive: true, ..neighbor() }));
        });
        bench.step(Event::Found { interface: "eth1".into(), address: ip("fe80::1") });
        assert_eq!(bench.attempts.len(), 1);

        let forged = bench.accept(from("fe80::1"));

        let rejected = Action::Reject { connection: forged, remote: ip("fe80::1"), reason: Rejection::Keyless };
        assert!(bench.done.contains(&rejected) && bench.hear(forged).is_empty(), "{:?}", bench.done);
        assert_eq!(bench.attempts.len(), 1);
    }
}

/// Somebody at an address or in a prefix, by the IPv4 documentation network.
fn at(place: &str, is_passive: bool) -> Neighbor {
    let remote = match place.parse() {
        Ok(address) => Remote::Address { address, port: port() },
        Err(_) => Remote::Prefix(prefix(place)),
    };
    Neighbor { remote, passive: is_passive, ..neighbor() }
}

fn by_md5(neighbor: Neighbor) -> Neighbor {
    let signature = Key::new("other").map(Signature::Md5);
    Neighbor { transport: Transport { signature, ..neighbor.transport.clone() }, ..neighbor }
}

fn with_ao(neighbors: &[(&str, Neighbor)]) -> Bench {
    let mut bench = Bench::new([]);
    bench.peers = Peers::new(bench.now, 7).on(Kernel { tcp_ao: [AoAlgorithm::HmacSha1].into() });
    bench.want(|wanted| {
        let all = neighbors.iter().map(|(name, neighbor)| ((*name).into(), Arc::new(neighbor.clone())));
        wanted.neighbors = all.collect();
    });
    bench
}

#[test]
fn n_063_keys_of_tcp_ao_that_a_listening_socket_could_mistake_are_refused_to_the_wider_peer_aloud() {
    let (racks, tor) = ("192.0.2.0/24", "192.0.2.9");
    for (what, outer, inner) in [
        ("two keys of TCP-AO", by_tcp_ao(at(racks, true)), by_tcp_ao(at(tor, false))),
        ("MD5 within TCP-AO", by_tcp_ao(at(racks, true)), by_md5(at(tor, false))),
        ("TCP-AO within MD5", by_md5(at(racks, true)), by_tcp_ao(at(tor, false))),
        ("prefixes", by_tcp_ao(at(racks, true)), by_tcp_ao(at("192.0.2.0/28", true))),
        ("one address as a prefix", by_tcp_ao(at("192.0.2.9/32", true)), by_tcp_ao(at(tor, true))),
        ("none within TCP-AO, where it is waited for", by_tcp_ao(at(racks, true)), at(tor, true)),
    ] {
        let waited = ("waited", Neighbor { passive: true, ..at("198.51.100.1", true) });
        let mut bench = with_ao(&[("racks", outer.clone()), ("tor", inner.clone()), waited.clone()]);

        let status = bench.status_of("racks");
        let trouble = Trouble::KeyOverlap { other: "tor".into() };
        assert_eq!((status.state, &status.trouble), (State::Idle, &Some(trouble.clone())), "{what}");
        assert_eq!(trouble.reason(), "TCPAOKeyOverlap");
        let inner_prefix = match &inner.remote {
            Remote::Prefix(prefix) => *prefix,
            _ => prefix("192.0.2.9/32"),
        };
        assert_eq!(listening(&bench), [inner_prefix, prefix("198.51.100.1/32")], "{what}");
        if outer.remote == Remote::Prefix(prefix(racks)) {
            let connection = bench.accept(from("192.0.2.200"));
            assert!(!bench.is_open(connection) && bench.hear(connection).is_empty(), "{what}");
        }

        // Once the other one is gone it is waited for.
        bench.want(|wanted| drop(wanted.neighbors.remove(&PeerName::from("tor"))));

        assert!(!bench.statuses.contains_key(&("racks".into(), None)), "{what}");
        assert_eq!(listening(&bench).len(), 2, "{what}");
        let connection = bench.accept(from("192.0.2.9"));
        assert!(bench.is_open(connection), "{what}");

        // And when it comes back, nobody stays who has come by the wider one meanwhile.
        bench.want(|wanted| drop(wanted.neighbors.insert("tor".into(), Arc::new(inner.clone()))));

        assert!(!bench.is_open(connection), "{what}");
        assert_eq!(bench.status_of("racks").trouble, Some(trouble), "{what}");
    }
}

#[test]
fn n_063_keys_that_a_listening_socket_tells_apart_are_refused_to_nobody() {
    let (racks, tor) = ("192.0.2.0/24", "192.0.2.9");
    let in_vrf = |neighbor: Neighbor| Neighbor {
        transport: Transport { vrf: Some("red".into()), ..neighbor.transport.clone() },
        ..neighbor
    };
    for (what, outer, inner) in [
        ("MD5 within MD5", by_md5(at(racks, true)), by_md5(at(tor, true))),
        ("TCP-AO within none", at(racks, true), by_tcp_ao(at(tor, true))),
        ("none within TCP-AO, connected to", by_tcp_ao(at(racks, true)), at(tor, false)),
        ("another VRF", by_tcp_ao(at(racks, true)), in_vrf(by_tcp_ao(at(tor, true)))),
        ("beside it", by_tcp_ao(at(racks, true)), by_tcp_ao(at("198.51.100.9", true))),
        ("the other family", by_tcp_ao(at(racks, true)), by_tcp_ao(at("2001:db8::9", true))),
    ] {
        let bench = with_ao(&[("racks", outer), ("tor", inner)]);

        assert!(!bench.statuses.contains_key(&("racks".into(), None)), "{what}: {:?}", bench.statuses);
        assert_eq!(listening(&bench).len(), 2, "{what}");
    }
}
