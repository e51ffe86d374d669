//! OPEN, what it is judged by and what follows from it, and messages out of turn (RFC 4271 §6.2, §8.2.2; RFC 6608).

use super::*;

/// What the engine says to an OPEN, if it does not take it.
fn refusal(neighbor: Neighbor, open: Open) -> Option<(u8, u8)> {
    let mut bench = Bench::with(neighbor);
    let connection = bench.connect();
    bench.say(connection, Message::Open(open));
    if bench.is_open(connection) {
        assert_eq!(bench.status().state, State::OpenConfirm);
        return None;
    }
    bench.farewell(connection).map(|notification| (notification.code, notification.subcode))
}

#[test]
fn m_139_n_006_an_open_of_the_wrong_peer_is_refused_with_the_reason() {
    let ours = identifier("192.0.2.1");
    let fixed = |number| PeerAsn::Fixed(asn(number));
    let table = [
        (fixed(THEIRS), asn(THEIRS), identifier(ROUTER), None),
        (fixed(THEIRS), asn(64502), identifier(ROUTER), Some((2, 2))),
        (PeerAsn::External, asn(64502), identifier(ROUTER), None),
        (PeerAsn::External, asn(OURS), identifier(ROUTER), Some((2, 2))),
        (PeerAsn::Internal, asn(OURS), identifier(ROUTER), None),
        (PeerAsn::Internal, asn(64502), identifier(ROUTER), Some((2, 2))),
        // The same identifier is wrong inside one AS only (RFC 6286 §2.2).
        (fixed(OURS), asn(OURS), ours, Some((2, 3))),
        (PeerAsn::Internal, asn(OURS), ours, Some((2, 3))),
        (fixed(THEIRS), asn(THEIRS), ours, None),
    ];
    for (peer_asn, asn, identifier, expected) in table {
        let refused = refusal(Neighbor { peer_asn, ..neighbor() }, Open { asn, identifier, ..open() });

        assert_eq!(refused, expected, "{peer_asn:?} {asn} {identifier}");
    }
}

#[test]
fn n_006_an_open_that_cannot_be_read_is_refused_with_the_reason() {
    let table = [
        (bgp::OpenError::Version(3), Notification::new(2, 1, [0, 4])),
        (bgp::OpenError::BadPeerAs, Notification::new(2, 2, [])),
        (bgp::OpenError::BadIdentifier, Notification::new(2, 3, [])),
        (bgp::OpenError::UnsupportedParameter(1), Notification::new(2, 4, [])),
        (bgp::OpenError::HoldTime(2), Notification::new(2, 6, [])),
    ];
    for (error, expected) in table {
        let mut bench = Bench::with(neighbor());
        let connection = bench.connect();

        bench.step(Event::Received { connection, message: Err(error.into()) });

        assert_eq!(bench.farewell(connection), Some(expected.clone()));
        assert_eq!(bench.status().last_close, Some(Closing::Sent(expected)));
    }
}

#[test]
fn messages_are_counted_by_direction_and_type_for_as_long_as_the_peer_is_spoken_with() {
    let (mut bench, connection) = Bench::up(neighbor(), open());
    let counted = |bench: &Bench| -> Vec<(Direction, MessageType, u64)> {
        let mut all = bench.peers.messages();
        let (key, messages) = all.next().expect("there is one peer");
        assert_eq!((key, all.count()), (("tor".into(), None), 0));
        messages.iter().map(|((direction, kind), count)| (*direction, *kind, *count)).collect()
    };
    // The end of the routes is an UPDATE.
    let (sent, received) = (Direction::Sent, Direction::Received);
    let first = [
        (sent, MessageType::Open, 1),
        (sent, MessageType::Update, 1),
        (sent, MessageType::Keepalive, 1),
        (received, MessageType::Open, 1),
        (received, MessageType::Keepalive, 1),
    ];
    assert_eq!(counted(&bench), first);

    bench.say(connection, announces(&["203.0.113.0/24"]));
    bench.say(connection, Message::RouteRefresh { family: None, kind: Refresh::Request });
    bench.configure("tor", |neighbor| neighbor.hold_time = hold(30));

    let then = [
        (sent, MessageType::Open, 1),
        (sent, MessageType::Update, 1),
        (sent, MessageType::Notification, 1),
        (sent, MessageType::Keepalive, 1),
        (received, MessageType::Open, 1),
        (received, MessageType::Update, 1),
        (received, MessageType::Keepalive, 1),
        (received, MessageType::RouteRefresh, 1),
    ];
    assert_eq!(counted(&bench), then);
    bench.want(|wanted| wanted.neighbors.clear());
    assert_eq!(bench.peers.messages().count(), 0);
}

#[test]
fn a_role_that_does_not_fit_is_refused_with_2_11() {
    let with_role = |role| {
        let mut open = open();
        open.capabilities.role = role;
        open
    };
    let customer = Neighbor { role: Some(Role::Customer), ..neighbor() };

    assert_eq!(refusal(customer.clone(), with_role(Some(Role::Provider))), None);
    assert_eq!(refusal(customer.clone(), with_role(None)), None);
    assert_eq!(refusal(customer, with_role(Some(Role::Customer))), Some((2, 11)));
    assert_eq!(refusal(neighbor(), with_role(Some(Role::Customer))), None);
}

/// The body of our OPEN.
fn our_open(neighbor: Neighbor) -> Vec<u8> {
    let mut bench = Bench::with(neighbor);
    let connection = bench.connect();
    bench.listen(connection).remove(0).body
}

#[test]
fn n_008_an_as_number_of_four_octets_stands_in_capability_65_and_23456_in_its_place() {
    let body = our_open(Neighbor { local_asn: asn(4_200_000_001), ..neighbor() });

    // Version 4, AS 23456, 90 s, 192.0.2.1.
    assert_eq!(body[..9], [4, 0x5b, 0xa0, 0, 90, 192, 0, 2, 1]);
    assert!(body.windows(6).any(|part| part == [65, 4, 0xfa, 0x56, 0xea, 0x01]), "{body:?}");
}

#[test]
fn n_008_an_as_number_of_two_octets_stands_in_both_places() {
    let body = our_open(neighbor());

    assert_eq!(body[1..3], [0xfb, 0xf4]);
    assert!(body.windows(6).any(|part| part == [65, 4, 0, 0, 0xfb, 0xf4]), "{body:?}");
}

/// The attributes of a route towards a router with or without capability 65.
fn path_of(local: u32, four_octet_asn: bool) -> BTreeMap<u8, Vec<u8>> {
    let mut open = open();
    open.capabilities.four_octet_asn = four_octet_asn;
    let (mut bench, connection) = Bench::up(Neighbor { local_asn: asn(local), ..neighbor() }, open);
    bench.announce("198.51.100.1/32", part());
    bench.pass(COALESCE);
    only_attributes(&bench.listen(connection))
}

#[test]
fn n_012_without_capability_65_the_path_has_two_octets_and_an_as4_path_where_needed() {
    let long = path_of(4_200_000_001, false);
    assert_eq!(long[&AS_PATH], [2, 1, 0x5b, 0xa0]);
    assert_eq!(long[&AS4_PATH], [2, 1, 0xfa, 0x56, 0xea, 0x01]);

    let short = path_of(OURS, false);
    assert_eq!(short[&AS_PATH], [2, 1, 0xfb, 0xf4]);
    assert!(!short.contains_key(&AS4_PATH));
}

#[test]
fn n_040_with_capability_65_the_path_has_four_octets_even_where_two_would_do() {
    let path = path_of(OURS, true);

    assert_eq!(path[&AS_PATH], [2, 1, 0, 0, 0xfb, 0xf4]);
    assert!(!path.contains_key(&AS4_PATH));
    assert!(!path.contains_key(&LOCAL_PREF));
}

#[test]
fn n_013_a_family_is_carried_only_when_both_sides_have_said_so() {
    const V4: Family = Family::Ipv4Unicast;
    const V6: Family = Family::Ipv6Unicast;
    let set = |families: &[Family]| families.iter().copied().collect::<BTreeSet<_>>();
    let table = [
        (set(&[V4]), Some(set(&[V4, V6])), set(&[V4])),
        (set(&[V4, V6]), Some(set(&[V6])), set(&[V6])),
        (set(&[V4, V6]), Some(set(&[V4, V6])), set(&[V4, V6])),
        // No capability of that kind means IPv4; one for families unknown to us means none.
        (set(&[V4, V6]), None, set(&[V4])),
        (set(&[V6]), None, set(&[])),
        (set(&[V4, V6]), Some(set(&[])), set(&[])),
    ];
    for (families, theirs, expected) in table {
        let mut open = open();
        open.capabilities.families = theirs;

        let (bench, _) = Bench::up(Neighbor { families, ..neighbor() }, open);

        assert_eq!(bench.status().families, expected);
    }
}

#[test]
fn n_013_a_route_of_a_family_not_carried_is_withheld_and_the_reason_shown() {
    let mut open = open();
    open.capabilities.families = None;
    let (mut bench, connection) = Bench::up(Neighbor { families: Family::ALL.into(), ..neighbor() }, open);

    bench.announce("2001:db8::1/128", part());
    bench.pass(2 * SECOND);

    assert!(bench.hear(connection).is_empty());
    assert_eq!(bench.current().withheld, [(Withheld::FamilyNotNegotiated, 1)].into());
    assert_eq!(bench.current().prefixes_sent, 0);
}

/// An engine with a connection of ours in one of the three states that a connection can have.
fn in_state(state: State) -> (Bench, Connection) {
    let mut bench = Bench::with(neighbor());
    let connection = bench.connect();
    if state >= State::OpenConfirm {
        bench.say(connection, Message::Open(open()));
    }
    if state >= State::Established {
        bench.say(connection, Message::Keepalive);
    }
    assert_eq!(bench.status().state, state);
    bench.hear(connection);
    (bench, connection)
}

#[test]
fn n_025_every_state_takes_its_messages_and_answers_the_others_with_5_and_its_subcode() {
    enum Then {
        Is(State),
        Says(u8, u8),
        EndsSilently,
    }
    use Then::{EndsSilently, Is, Says};
    let open = || Message::Open(open());
    let update = || Message::Update(Update::default());
    let notification = || Message::Notification(Notification::cease(Cease::AdministrativeReset));
    let refresh = || refresh(Refresh::Request, Family::Ipv4Unicast);
    let table = [
        (State::OpenSent, open(), Is(State::OpenConfirm)),
        (State::OpenSent, update(), Says(5, 1)),
        (State::OpenSent, notification(), EndsSilently),
        (State::OpenSent, Message::Keepalive, Says(5, 1)),
        (State::OpenSent, refresh(), Says(5, 1)),
        (State::OpenConfirm, open(), Says(5, 2)),
        (State::OpenConfirm, update(), Says(5, 2)),
        (State::OpenConfirm, notification(), EndsSilently),
        (State::OpenConfirm, Message::Keepalive, Is(State::Established)),
        (State::OpenConfirm, refresh(), Says(5, 2)),
        (State::Established, open(), Says(5, 3)),
        (State::Established, update(), Is(State::Established)),
        (State::Established, notification(), EndsSilently),
        (State::Established, Message::Keepalive, Is(State::Established)),
        (State::Established, refresh(), Is(State::Established)),
    ];
    for (state, message, then) in table {
        let (mut bench, connection) = in_state(state);

        bench.say(connection, message.clone());

        match then {
            Is(after) => assert_eq!(bench.status().state, after, "{state} {message:?}"),
            Says(code, subcode) => {
                let said = bench.farewell(connection);
                assert_eq!(said, Some(Notification::new(code, subcode, [])), "{state} {message:?}");
            }
            EndsSilently => assert_eq!(bench.farewell(connection), None, "{state} {message:?}"),
        }
    }
}

#[test]
fn a_message_that_cannot_be_read_ends_the_session_in_every_state() {
    for state in [State::OpenSent, State::OpenConfirm, State::Established] {
        let (mut bench, connection) = in_state(state);

        let message = Err(bgp::frame::HeaderError::NotSynchronized.into());
        bench.step(Event::Received { connection, message });

        assert_eq!(bench.farewell(connection), Some(Notification::new(1, 1, [])), "{state}");
    }
}

#[test]
fn our_open_says_what_the_peer_is_offered() {
    let neighbor = Neighbor { families: Family::ALL.into(), graceful_restart: restarts(), ..neighbor() };

    let open = Open::decode(&our_open(neighbor)).unwrap();

    assert_eq!(open.capabilities.families, Some(Family::ALL.into()));
    assert!(open.capabilities.route_refresh && open.capabilities.extended_message);
    assert!(open.capabilities.enhanced_route_refresh);
    let restart = open.capabilities.graceful_restart.unwrap();
    assert!(restart.notification);
    assert_eq!(restart.restart_time_seconds, 120);
}

#[test]
fn messages_are_longer_than_4096_octets_only_by_agreement() {
    let routes: Vec<String> = (0..2000u32).map(|at| format!("{}/32", Ipv4Addr::from_bits(0xc633_6400 + at))).collect();
    for extended_message in [false, true] {
        let mut open = open();
        open.capabilities.extended_message = extended_message;
        let mut bench = Bench::with(neighbor());
        let connection = bench.connect();
        bench.wires.get_mut(&connection).unwrap().cutter.allow_extended();
        bench.want(|wanted| {
            wanted.routes.extend(routes.iter().map(|text| (prefix(text), route(part()))));
        });
        bench.greet(connection, open);

        let longest = bench.listen(connection).iter().map(|heard| 19 + heard.body.len()).max().unwrap();
        assert_eq!(longest > MAX_LEN, extended_message);
    }
}

#[test]
fn n_025_without_a_connection_no_message_counts() {
    // Idle, Connect and Active: what arrives is of a connection that is over.
    let idle = Neighbor { shutdown: Some(String::new()), ..neighbor() };
    let active = Neighbor { passive: true, ..neighbor() };
    for (neighbor, state) in [(idle, State::Idle), (neighbor(), State::Connect), (active, State::Active)] {
        let mut bench = Bench::with(neighbor);
        assert_eq!(bench.status().state, state);
        bench.done.clear();

        let update = Message::Update(Update::default());
        let notification = Message::Notification(Notification::cease(Cease::AdministrativeReset));
        let refresh = refresh(Refresh::Request, Family::Ipv4Unicast);
        for message in [Message::Open(open()), update, notification, Message::Keepalive, refresh] {
            bench.say(Connection(u64::MAX), message);
        }

        assert!(bench.done.is_empty() && bench.wires.is_empty());
    }
}
