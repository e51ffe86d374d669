//! BGP messages as bytes and as values, both directions, and every way a header or an OPEN can be wrong.
//!
//! The bytes are put together by hand from RFC 4271 §4 and the RFCs of the capabilities.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use ferrogate_wire::bgp::{
    Asn, BgpIdentifier, Capabilities, Cease, ExtendedNextHop, Family, GracefulRestart, HoldTime, Message, MessageError,
    Notification, Open, OpenError, OutOfTurn, Role, TextError,
    frame::{Cutter, Frame, HeaderError, MAX_EXTENDED_LEN, MAX_LEN, MessageType},
    keepalive,
};
use proptest::prelude::*;

const MARKER: [u8; 16] = [0xff; 16];

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).expect("two hexadecimal digits"))
        .collect()
}

/// A header with these fields, followed by zeros up to `length`.
fn message(kind: u8, length: u16) -> Vec<u8> {
    let mut bytes = MARKER.to_vec();
    bytes.extend(length.to_be_bytes());
    bytes.push(kind);
    bytes.resize(usize::from(length).max(19), 0);
    bytes
}

/// Everything that comes out when all bytes are there at once.
fn cut(bytes: &[u8]) -> Result<Vec<(MessageType, Vec<u8>)>, HeaderError> {
    cut_with(Cutter::default(), [bytes])
}

fn cut_with<'a>(
    mut cutter: Cutter,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<(MessageType, Vec<u8>)>, HeaderError> {
    let mut messages = Vec::new();
    for mut piece in pieces {
        while let Some(frame) = cutter.feed(&mut piece)? {
            messages.push((frame.kind, frame.body.to_vec()));
        }
    }
    Ok(messages)
}

/// The body of an OPEN: version 4, AS 64500, hold time 90 s, identifier 192.0.2.1, and these optional parameters.
fn open_body(parameters: &[u8]) -> Vec<u8> {
    let mut body = bytes("04 fbf4 005a c0000201");
    body.push(u8::try_from(parameters.len()).expect("short parameters"));
    body.extend(parameters);
    body
}

fn open_with(capabilities: Capabilities) -> Open {
    Open {
        asn: Asn::new(64500).expect("not 0"),
        hold_time: HoldTime::from_seconds(90).expect("long enough"),
        identifier: BgpIdentifier::new(0xc000_0201).expect("not 0"),
        capabilities,
    }
}

#[test]
fn n_001_a_marker_that_is_not_all_ones_ends_the_session_with_1_1() {
    for spoiled in 0..16 {
        let mut header = message(4, 19);
        header[spoiled] = 0x7f;
        let error = cut(&header).unwrap_err();
        assert_eq!(error, HeaderError::NotSynchronized);
        assert_eq!(error.notification(), Notification::new(1, 1, []));
    }
}

#[test]
fn n_002_a_length_the_type_cannot_have_is_answered_with_1_2_and_the_length() {
    let wrong = [
        (4, 18),
        (4, 0),
        (4, 20),
        (1, 28),
        (1, 4097),
        (2, 22),
        (2, 4097),
        (2, 65535),
        (3, 20),
        (5, 22),
        // Whether the length or the type is wrong first: a length no message has.
        (9, 18),
    ];
    for (kind, length) in wrong {
        let error = cut(&message(kind, length)).unwrap_err();
        assert_eq!(error, HeaderError::BadLength { kind, length });
        assert_eq!(error.notification(), Notification::new(1, 2, length.to_be_bytes()));
    }
    for (kind, length) in [(4, 19), (1, 29), (1, 4096), (2, 23), (2, 4096), (3, 21), (3, 4096), (5, 23)] {
        assert_eq!(cut(&message(kind, length)).expect("a length the type may have").len(), 1);
    }
}

#[test]
fn n_003_a_type_that_does_not_exist_is_answered_with_1_3_and_the_type() {
    for kind in [0, 6, 255] {
        let error = cut(&message(kind, 19)).unwrap_err();
        assert_eq!(error, HeaderError::BadType(kind));
        assert_eq!(error.notification(), Notification::new(1, 3, [kind]));
    }
}

#[test]
fn n_004_single_bytes_and_ten_messages_at_once_decode_the_same() {
    let mut stream = Vec::new();
    for _ in 0..5 {
        stream.extend(keepalive());
        stream.extend(Notification::cease_with_text(Cease::AdministrativeReset, "back soon").encode());
    }
    let at_once = cut(&stream).expect("ten messages");

    assert_eq!(at_once.len(), 10);
    assert_eq!(cut_with(Cutter::default(), stream.chunks(1)), Ok(at_once));
}

#[test]
fn longer_messages_pass_only_once_they_are_allowed_and_never_an_open_or_keepalive() {
    let longest = message(2, 65535);
    assert_eq!(cut(&longest), Err(HeaderError::BadLength { kind: 2, length: 65535 }));

    let mut cutter = Cutter::default();
    cutter.allow_extended();
    let messages = cut_with(cutter.clone(), [&longest[..]]).expect("both sides have agreed");
    assert_eq!(messages[0].1.len(), MAX_EXTENDED_LEN - 19);
    for kind in [1, 4] {
        let length = u16::try_from(MAX_LEN + 1).unwrap();
        assert!(cut_with(cutter.clone(), [&message(kind, length)[..]]).is_err());
    }
}

#[test]
fn a_message_under_way_waits_for_the_rest_of_it() {
    let mut cutter = Cutter::default();
    let stream = [keepalive(), keepalive()].concat();
    let (mut first, mut second) = stream.split_at(25);

    assert_eq!(cutter.feed(&mut first).unwrap().map(|frame| frame.kind), Some(MessageType::Keepalive));
    assert_eq!(cutter.feed(&mut first), Ok(None));
    assert!(first.is_empty());
    assert_eq!(cutter.feed(&mut second).unwrap().map(|frame| frame.kind), Some(MessageType::Keepalive));
    assert_eq!(cutter.feed(&mut second), Ok(None));
}

#[test]
fn a_keepalive_is_a_header_alone() {
    assert_eq!(keepalive(), bytes("ffffffffffffffffffffffffffffffff 0013 04"));
}

#[test]
fn an_open_with_everything_has_the_bytes_of_the_rfcs() {
    let open = Open {
        asn: Asn::new(4_200_000_001).unwrap(),
        ..open_with(Capabilities {
            families: Some(BTreeSet::from([Family::Ipv4Unicast, Family::Ipv6Unicast])),
            route_refresh: true,
            extended_next_hop: BTreeSet::from([ExtendedNextHop {
                family: Family::Ipv4Unicast,
                next_hop: Family::Ipv6Unicast,
            }]),
            extended_message: true,
            role: Some(Role::Customer),
            graceful_restart: Some(GracefulRestart {
                restarting: true,
                notification: true,
                restart_time_seconds: 120,
                forwarding: BTreeMap::from([(Family::Ipv4Unicast, true), (Family::Ipv6Unicast, false)]),
            }),
            four_octet_asn: true,
            enhanced_route_refresh: true,
        })
    };
    let expected = bytes(
        "ffffffffffffffffffffffffffffffff 005e 01 04 5ba0 005a c0000201 41
         02 06 01 04 0001 00 01
         02 06 01 04 0002 00 01
         02 02 02 00
         02 08 05 06 0001 0001 0002
         02 02 06 00
         02 03 09 01 03
         02 0c 40 0a c078 0001 01 80 0002 01 00
         02 06 41 04 fa56ea01
         02 02 46 00",
    );

    assert_eq!(open.encode(), expected);
    assert_eq!(Open::decode(&expected[19..]), Ok(open));
}

#[test]
fn n_006_an_open_that_cannot_stand_is_answered_with_its_subcode() {
    let spoiled = |offset: usize, with: &[u8]| {
        let mut body = open_body(&[]);
        body[offset..offset + with.len()].copy_from_slice(with);
        body
    };
    let cases: [(Vec<u8>, OpenError, Notification); 5] = [
        (spoiled(0, &[3]), OpenError::Version(3), Notification::new(2, 1, [0, 4])),
        (spoiled(1, &[0, 0]), OpenError::BadPeerAs, Notification::new(2, 2, [])),
        (spoiled(5, &[0, 0, 0, 0]), OpenError::BadIdentifier, Notification::new(2, 3, [])),
        (spoiled(3, &[0, 1]), OpenError::HoldTime(1), Notification::new(2, 6, [])),
        (spoiled(3, &[0, 2]), OpenError::HoldTime(2), Notification::new(2, 6, [])),
    ];
    for (body, error, notification) in cases {
        assert_eq!(Open::decode(&body), Err(error));
        assert_eq!(error.notification(), notification);
    }
    for seconds in [0, 3, 65535] {
        let body = spoiled(3, &u16::to_be_bytes(seconds));
        assert_eq!(Open::decode(&body).expect("a hold time one may have").hold_time.seconds(), seconds);
    }
}

#[test]
fn n_008_a_large_as_number_travels_in_the_capability_and_23456_in_its_place() {
    let open = Open {
        asn: Asn::new(4_200_000_001).unwrap(),
        ..open_with(Capabilities { four_octet_asn: true, ..Capabilities::default() })
    };
    let encoded = open.encode();

    assert_eq!(encoded[20..22], 23456u16.to_be_bytes());
    assert_eq!(encoded[29..], bytes("02 06 41 04 fa56ea01"));
    assert_eq!(Open::decode(&encoded[19..]).unwrap().asn.get(), 4_200_000_001);
}

#[test]
fn n_009_capabilities_and_families_nobody_knows_are_passed_over() {
    let parameters = bytes(
        "02 06 01 04 0001 00 49
         02 06 01 04 0019 00 46
         02 06 01 04 4004 00 47
         02 02 80 00
         02 05 c8 03 010203
         02 08 05 06 4004 0047 0002",
    );
    let open = Open::decode(&open_body(&parameters)).expect("nothing of this is an error");

    assert_eq!(open, open_with(Capabilities { families: Some(BTreeSet::new()), ..Capabilities::default() }));
}

#[test]
fn n_010_one_parameter_or_many_repeated_or_empty_capabilities_are_all_accepted() {
    let expected = open_with(Capabilities {
        families: Some(BTreeSet::from([Family::Ipv4Unicast])),
        route_refresh: true,
        four_octet_asn: true,
        ..Capabilities::default()
    });
    for parameters in [
        // All in one, one each, and everything twice.
        "02 0e 01 04 0001 00 01 02 00 41 04 0000fbf4",
        "02 06 01 04 0001 00 01 02 02 02 00 02 06 41 04 0000fbf4",
        "02 0e 01 04 0001 00 01 02 00 41 04 0000fbf4 02 0e 01 04 0001 00 01 02 00 41 04 0000fbf4",
        // A parameter without capabilities; capabilities whose value is missing or too short count as not sent.
        "02 00 02 0e 01 04 0001 00 01 02 00 41 04 0000fbf4",
        "02 16 41 00 01 00 40 00 05 00 01 04 0001 00 01 02 00 41 04 0000fbf4",
    ] {
        assert_eq!(Open::decode(&open_body(&bytes(parameters))), Ok(expected.clone()), "{parameters}");
    }
}

#[test]
fn n_011_the_extended_form_of_optional_parameters_is_accepted() {
    let mut capabilities = bytes("01 04 0001 00 01 41 04 0000fbf4");
    // Host name and more of it than one octet of length could say.
    for _ in 0..2 {
        capabilities.extend([200, 250]);
        capabilities.extend([0; 250]);
    }
    let mut body = bytes("04 fbf4 005a c0000201 ff ff");
    let parameter = u16::try_from(capabilities.len()).unwrap();
    body.extend((parameter + 3).to_be_bytes());
    body.push(2);
    body.extend(parameter.to_be_bytes());
    body.extend(capabilities);

    let open = Open::decode(&body).expect("RFC 9072");
    assert_eq!(open.capabilities.families, Some(BTreeSet::from([Family::Ipv4Unicast])));
    assert!(open.capabilities.four_octet_asn);
    body.pop();
    assert_eq!(Open::decode(&body), Err(OpenError::Malformed));
}

#[test]
fn without_a_multiprotocol_capability_nothing_is_said_about_families() {
    assert_eq!(Open::decode(&open_body(&[])).unwrap().capabilities.families, None);
}

#[test]
fn n_014_an_optional_parameter_that_is_not_capabilities_is_answered_with_2_4() {
    let error = Open::decode(&open_body(&bytes("01 01 00"))).unwrap_err();
    assert_eq!(error, OpenError::UnsupportedParameter(1));
    assert_eq!(error.notification(), Notification::new(2, 4, []));
}

#[test]
fn n_015_as_0_is_refused_wherever_it_stands() {
    assert_eq!(Asn::new(0), None);
    assert_eq!(Open::decode(&open_body(&bytes("02 06 41 04 00000000"))), Err(OpenError::BadPeerAs));
    assert_eq!(Open::decode(&bytes("04 0000 005a c0000201 08 02 06 41 04 0000fbf4")), Err(OpenError::BadPeerAs));
}

const ROLES: [Role; 5] = [Role::Provider, Role::RouteServer, Role::RouteServerClient, Role::Customer, Role::Peer];

#[test]
fn a_role_may_be_repeated_but_not_changed_within_an_open() {
    let role = |parameters: &str| Open::decode(&open_body(&bytes(parameters))).map(|open| open.capabilities.role);

    for (code, expected) in (0..).zip(ROLES) {
        assert_eq!(role(&format!("02 03 09 01 {code:02x}")), Ok(Some(expected)));
    }
    assert_eq!(role("02 06 09 01 03 09 01 03"), Ok(Some(Role::Customer)));
    // A role that nobody knows, and values of another length than one octet, count as not sent.
    for unknown in ["02 03 09 01 05", "02 02 09 00", "02 04 09 02 0303"] {
        assert_eq!(role(unknown), Ok(None), "{unknown}");
    }
    for (contradiction, first, second) in [("02 06 09 01 03 09 01 00", 3, 0), ("02 03 09 01 ff 02 03 09 01 04", 255, 4)]
    {
        let error = role(contradiction).unwrap_err();
        assert_eq!(error, OpenError::ContradictoryRoles(first, second));
        assert_eq!(error.notification(), Notification::new(2, 11, []));
    }
}

#[test]
fn roles_fit_in_the_pairs_of_the_rfc_and_no_others() {
    let fitting = [
        (Role::Provider, Role::Customer),
        (Role::Customer, Role::Provider),
        (Role::RouteServer, Role::RouteServerClient),
        (Role::RouteServerClient, Role::RouteServer),
        (Role::Peer, Role::Peer),
    ];
    for ours in ROLES {
        for theirs in ROLES {
            assert_eq!(ours.fits(theirs), fitting.contains(&(ours, theirs)), "{ours:?} and {theirs:?}");
        }
    }
}

#[test]
fn lengths_that_contradict_each_other_break_an_open() {
    for parameters in ["02", "02 01", "02 05 01 04 0001", "02 03 41 04 00", "02 01 02", "ff", "ff 00", "ff 0000 02"] {
        assert_eq!(Open::decode(&open_body(&bytes(parameters))), Err(OpenError::Malformed), "{parameters}");
    }
    // More and less behind the length octet than it says, and no length octet at all.
    for body in ["04 fbf4 005a c0000201 00 02", "04 fbf4 005a c0000201 04 02 02", "04 fbf4 005a c0000201", "", "04"] {
        assert_eq!(Open::decode(&bytes(body)), Err(OpenError::Malformed), "{body}");
    }
}

#[test]
fn a_cease_has_the_bytes_of_the_rfcs() {
    assert_eq!(
        Notification::cease(Cease::PeerDeconfigured).encode(),
        bytes("ffffffffffffffffffffffffffffffff 0015 03 06 03")
    );
    let drain = Notification::cease_with_text(Cease::AdministrativeShutdown, "drain");
    assert_eq!(drain.encode(), bytes("ffffffffffffffffffffffffffffffff 001b 03 06 02 05 647261696e"));
    assert_eq!(Notification::decode(&drain.encode()[19..]), Some(drain.clone()));
    assert_eq!(drain.text(), Some(Ok("drain")));
    assert_eq!(drain.to_string(), "6/2 administrative shutdown: \"drain\"");
}

#[test]
fn a_long_text_is_cut_at_a_character() {
    let notification = Notification::cease_with_text(Cease::AdministrativeReset, &"\u{e4}".repeat(200));
    assert_eq!(notification.data[0], 254);
    assert_eq!(notification.text(), Some(Ok("\u{e4}".repeat(127).as_str())));
}

#[test]
fn only_a_shutdown_and_a_reset_carry_text() {
    assert_eq!(Notification::cease_with_text(Cease::OutOfResources, "full").data, []);
    assert_eq!(Notification::new(6, 8, *b"\x04full").text(), None);
    assert_eq!(Notification::new(4, 2, *b"\x04full").text(), None);
    assert_eq!(Notification::cease(Cease::AdministrativeShutdown).text(), None);
}

#[test]
fn n_034_a_broken_shutdown_text_is_a_finding_and_nothing_else() {
    let cases: [(&[u8], TextError, &str); 3] = [
        (b"\x02\xff\xfe", TextError::NotUtf8, "6/2 administrative shutdown: the text is not UTF-8"),
        (
            b"\x05abc",
            TextError::Length { length: 5, present: 3 },
            "6/2 administrative shutdown: a text of 5 bytes is announced and 3 bytes are there",
        ),
        (
            b"\x01abc",
            TextError::Length { length: 1, present: 3 },
            "6/2 administrative shutdown: a text of 1 bytes is announced and 3 bytes are there",
        ),
    ];
    for (data, fault, shown) in cases {
        let notification = Notification::decode(&[&[6, 2], data].concat()).expect("it is a NOTIFICATION all the same");
        assert_eq!(notification.text(), Some(Err(fault)));
        assert_eq!(notification.to_string(), shown);
    }
    // Control characters of a stranger do not reach a terminal.
    let hostile = Notification::cease_with_text(Cease::AdministrativeShutdown, "\u{1b}[2J\n");
    assert_eq!(hostile.to_string(), r#"6/2 administrative shutdown: "\u{1b}[2J\n""#);
}

#[test]
fn a_hard_reset_wraps_the_real_reason() {
    let reason = Notification::cease_with_text(Cease::AdministrativeShutdown, "done");
    let reset = Notification::hard_reset(&reason);

    assert_eq!(reset.encode()[19..], bytes("06 09 06 02 04 646f6e65"));
    assert_eq!(reset.hard_reset_reason(), Some(reason));
    assert_eq!(Notification::cease(Cease::HardReset).hard_reset_reason(), None);
}

#[test]
fn every_end_of_a_session_has_its_codes() {
    let ends = [
        (Notification::bad_peer_as(), "2/2 bad peer AS"),
        (Notification::bad_identifier(), "2/3 bad BGP identifier"),
        (Notification::role_mismatch(), "2/11 role mismatch"),
        (Notification::hold_timer_expired(), "4/0 hold timer expired"),
        (Notification::out_of_turn(OutOfTurn::OpenSent), "5/1 unexpected message in OpenSent"),
        (Notification::out_of_turn(OutOfTurn::OpenConfirm), "5/2 unexpected message in OpenConfirm"),
        (Notification::out_of_turn(OutOfTurn::Established), "5/3 unexpected message in Established"),
        (Notification::send_hold_timer_expired(), "8/0 send hold timer expired"),
    ];
    for (notification, shown) in ends {
        assert_eq!(notification.to_string(), shown);
        assert_eq!(notification.data, []);
    }
}

#[test]
fn a_message_of_every_type_is_read_as_what_it_is() {
    let mut cutter = Cutter::default();
    let mut read = |message: Vec<u8>| {
        Message::decode(cutter.feed(&mut &message[..]).expect("a good header").expect("a whole message"))
    };
    let open = open_with(Capabilities::default());
    let notification = Notification::cease(Cease::PeerDeconfigured);

    assert_eq!(read(open.encode()), Ok(Message::Open(open)));
    assert_eq!(read(notification.encode()), Ok(Message::Notification(notification)));
    assert_eq!(read(keepalive()), Ok(Message::Keepalive));
    assert_eq!(read(message(1, 29)), Err(MessageError::Open(OpenError::Version(0))));
    assert_eq!(read(message(1, 29)).unwrap_err().notification(), Notification::new(2, 1, [0, 4]));
    // Nothing that was cut is as short as this.
    let short = Message::decode(Frame { kind: MessageType::Notification, body: &[6] });
    assert_eq!(short, Err(MessageError::Header(HeaderError::BadLength { kind: 3, length: 20 })));
    assert_eq!(short.unwrap_err().notification(), Notification::new(1, 2, [0, 20]));
}

#[test]
fn a_notification_without_its_codes_is_none() {
    assert_eq!(Notification::decode(&[]), None);
    assert_eq!(Notification::decode(&[6]), None);
    assert_eq!(Notification::decode(&[0, 255]), Some(Notification::new(0, 255, [])));
}

/// What makes the codec behind the wrapper panic or refuse too much, as a peer would send it.
const HOSTILE: [(&str, &str); 6] = [
    ("an OPEN for BGP-LS", "0025 01 04 fbf4 005a c0000201 08 02 06 01 04 4004 00 47"),
    ("an UPDATE with BGP-LS in MP_REACH_NLRI", "0022 02 0000 000b 80 0e 08 4004 47 04 01020304"),
    ("an UPDATE with a short MPLS-VPN prefix", "0024 02 0000 000d 80 0e 0a 0001 80 04 01020304 00 08"),
    ("an UPDATE whose AS_PATH runs over its attribute", "001e 02 0000 0007 40 02 04 02 ff fbf4"),
    ("an UPDATE with a default route beside another", "001b 02 0000 0000 00 10 0a00"),
    ("an OPEN with an ORF capability cut short", "0023 01 04 fbf4 005a c0000201 06 02 04 03 02 0001"),
];

#[test]
fn n_123_hostile_messages_pass_the_wrapper_without_a_panic() {
    for (name, hex) in HOSTILE {
        let stream = [&MARKER[..], &bytes(hex)].concat();
        let messages = cut(&stream).unwrap_or_else(|error| panic!("{name}: {error}"));
        let [(kind, body)] = &messages[..] else { panic!("{name} is one message") };
        Message::decode(Frame { kind: *kind, body }).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn n_123_one_file_names_the_codec() {
    fn visit(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("a readable folder").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                visit(&path, found);
            } else if name.ends_with(".rs")
                && fs::read_to_string(&path).expect("readable source").contains(concat!("bgp", "_rs::"))
            {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    let mut found = Vec::new();
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut found);

    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].ends_with("wire/src/bgp.rs"), "{found:?}");
}

fn families() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Ipv4Unicast), Just(Family::Ipv6Unicast)]
}

fn roles() -> impl Strategy<Value = Role> {
    prop::sample::select(&ROLES[..])
}

fn graceful_restarts() -> impl Strategy<Value = GracefulRestart> {
    (
        any::<bool>(),
        any::<bool>(),
        0..=GracefulRestart::MAX_SECONDS,
        prop::collection::btree_map(families(), any::<bool>(), 0..3),
    )
        .prop_map(|(restarting, notification, restart_time_seconds, forwarding)| GracefulRestart {
            restarting,
            notification,
            restart_time_seconds,
            forwarding,
        })
}

fn opens() -> impl Strategy<Value = Open> {
    let hop = (families(), families()).prop_map(|(family, next_hop)| ExtendedNextHop { family, next_hop });
    let capabilities = (
        prop::option::of(prop::collection::btree_set(families(), 1..3)),
        any::<[bool; 3]>(),
        prop::collection::btree_set(hop, 0..5),
        prop::option::of(roles()),
        prop::option::of(graceful_restarts()),
    );
    (1..=u32::MAX, any::<u16>(), 1..=u32::MAX, capabilities).prop_map(|(asn, hold, id, capabilities)| {
        let (families, flags, extended_next_hop, role, graceful_restart) = capabilities;
        let [route_refresh, extended_message, enhanced_route_refresh] = flags;
        Open {
            asn: Asn::new(asn).expect("not 0"),
            hold_time: HoldTime::from_seconds(hold.max(3)).expect("long enough"),
            identifier: BgpIdentifier::new(id).expect("not 0"),
            capabilities: Capabilities {
                families,
                route_refresh,
                extended_next_hop,
                extended_message,
                role,
                graceful_restart,
                four_octet_asn: true,
                enhanced_route_refresh,
            },
        }
    })
}

const TYPES: [MessageType; 5] = [
    MessageType::Open,
    MessageType::Update,
    MessageType::Notification,
    MessageType::Keepalive,
    MessageType::RouteRefresh,
];

proptest! {
    #[test]
    fn an_open_says_the_same_when_read_back(open in opens()) {
        let messages = cut(&open.encode()).unwrap();
        prop_assert_eq!(messages.len(), 1);
        prop_assert_eq!(messages[0].0, MessageType::Open);
        prop_assert_eq!(Open::decode(&messages[0].1), Ok(open));
    }

    #[test]
    fn a_notification_says_the_same_when_read_back(code: u8, subcode: u8, data in prop::collection::vec(any::<u8>(), 0..5000)) {
        let notification = Notification::new(code, subcode, data);
        let messages = cut(&notification.encode()).unwrap();
        let mut expected = notification;
        expected.data.truncate(Notification::MAX_DATA_LEN);
        prop_assert_eq!(Notification::decode(&messages[0].1), Some(expected));
    }

    #[test]
    fn n_005_any_bytes_are_cut_without_a_panic_however_they_arrive(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        messages in 0usize..5,
        piece in 1usize..64,
    ) {
        let stream = [keepalive().repeat(messages), noise].concat();
        let at_once = cut(&stream);
        if let Ok(found) = &at_once {
            prop_assert!(found.len() >= messages);
        }
        prop_assert_eq!(cut_with(Cutter::default(), stream.chunks(piece)), at_once);
        for kind in TYPES {
            let _ = Message::decode(Frame { kind, body: &stream }).map_err(|error| error.notification().to_string());
        }
        let _ = Notification::decode(&stream).map(|notification| notification.to_string());
    }
}
