//! UPDATE and ROUTE-REFRESH as bytes and as values, both directions, and every way an UPDATE of a peer can be wrong.
//!
//! The bytes are put together by hand from RFC 4271 §4.3, RFC 4760 and the RFCs of the attributes.

use std::{
    collections::BTreeSet,
    mem::size_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ferrogate_wire::bgp::{
    Asn, AttributeFault, Attributes, Dialect, Family, Message, MessageError, NextHop, Notification, Prefix, Refresh,
    Update, UpdateError, announce, end_of_rib,
    frame::{Cutter, Frame, MAX_EXTENDED_LEN, MAX_LEN, MessageType},
    route_refresh, withdraw,
};
use proptest::prelude::*;

const WIDE: Dialect = Dialect { four_octet_asn: true, max_len: MAX_LEN };
const NARROW: Dialect = Dialect { four_octet_asn: false, max_len: MAX_LEN };
const EXTENDED: Dialect = Dialect { four_octet_asn: true, max_len: MAX_EXTENDED_LEN };

const GLOBAL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

const VIA_IPV4: NextHop = NextHop::Ipv4(Ipv4Addr::new(192, 0, 2, 1));
const VIA_IPV6: NextHop = NextHop::Ipv6 { global: GLOBAL, link_local: None };

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).expect("two hexadecimal digits"))
        .collect()
}

/// A message: the marker, and what follows it.
fn message(hex: &str) -> Vec<u8> {
    [vec![0xff; 16], bytes(hex)].concat()
}

fn asn(number: u32) -> Asn {
    Asn::new(number).expect("not 0")
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

/// What one of AS 64500 sends to another AS.
fn external(next_hop: NextHop) -> Attributes {
    Attributes {
        as_path: vec![asn(64500)],
        next_hop,
        multi_exit_disc: None,
        local_pref: None,
        communities: BTreeSet::new(),
        extended_communities: BTreeSet::new(),
        large_communities: BTreeSet::new(),
    }
}

/// So many prefixes of one address.
fn hosts(family: Family, count: u32) -> Vec<Prefix> {
    let host = |number: u32| match family {
        Family::Ipv4Unicast => Prefix::from(IpAddr::from(Ipv4Addr::from_bits(0xc612_0000 + number))),
        Family::Ipv6Unicast => Prefix::from(IpAddr::from(Ipv6Addr::from_bits(GLOBAL.to_bits() + u128::from(number)))),
    };
    (0..count).map(host).collect()
}

fn decode(message: &[u8]) -> Result<Message, MessageError> {
    let mut cutter = Cutter::default();
    cutter.allow_extended();
    let mut input = message;
    let decoded = Message::decode(cutter.feed(&mut input).expect("a good header").expect("a whole message"));
    assert!(input.is_empty(), "one message and nothing behind it");
    decoded
}

fn read(message: &[u8]) -> Update {
    match decode(message) {
        Ok(Message::Update(update)) => update,
        other => panic!("{other:?} is no UPDATE"),
    }
}

/// The three fields of an UPDATE of ours.
fn fields(message: &[u8]) -> [&[u8]; 3] {
    let field = |bytes: &[u8]| usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let (_, rest) = message.split_at(19);
    let (withdrawn, rest) = rest[2..].split_at(field(rest));
    let (attributes, nlri) = rest[2..].split_at(field(rest));
    [withdrawn, attributes, nlri]
}

/// Flags, type and value of the attributes of an UPDATE of ours.
fn attributes(message: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
    let [_, mut block, _] = fields(message);
    let mut attributes = Vec::new();
    while !block.is_empty() {
        let (header, length) = match block[0] & 0x10 {
            0 => (3, usize::from(block[2])),
            _ => (4, usize::from(u16::from_be_bytes([block[2], block[3]]))),
        };
        attributes.push((block[0], block[1], block[header..header + length].to_vec()));
        block = &block[header + length..];
    }
    attributes
}

fn attribute(message: &[u8], code: u8) -> Option<(u8, Vec<u8>)> {
    attributes(message).into_iter().find(|found| found.1 == code).map(|(flags, _, value)| (flags, value))
}

/// The body of an UPDATE of a peer with these fields.
fn body(withdrawn: &str, attributes: &str, nlri: &str) -> Vec<u8> {
    let field = |hex| {
        let field = bytes(hex);
        [u16::try_from(field.len()).expect("a short field").to_be_bytes().to_vec(), field].concat()
    };
    [field(withdrawn), field(attributes), bytes(nlri)].concat()
}

/// What a route must have.
const MANDATORY: &str = "40 01 01 00  40 02 06 02 01 0000fbf5  40 03 04 c0000202";
/// What a route of MP_REACH_NLRI must have.
const MANDATORY_MP: &str = "40 01 01 00  40 02 06 02 01 0000fbf5";

#[test]
fn n_012_a_peer_of_two_octets_gets_23456_in_the_path_and_the_true_numbers_beside_it() {
    let attributes = Attributes { as_path: vec![asn(4_200_000_001), asn(64500)], ..external(VIA_IPV4) };

    assert_eq!(
        announce(NARROW, &attributes, &[prefix("198.51.100.7/32")]),
        [message(
            "003d 02 0000 0021 40 01 01 00  40 02 06 02 02 5ba0 fbf4  40 03 04 c0000201
             c0 11 0a 02 02 fa56ea01 0000fbf4  20 c6336407"
        )]
    );
}

#[test]
fn n_012_numbers_that_fit_two_octets_need_nothing_beside_the_path() {
    assert_eq!(
        announce(NARROW, &external(VIA_IPV4), &[prefix("198.51.100.7/32")]),
        [message("002e 02 0000 0012 40 01 01 00  40 02 04 02 01 fbf4  40 03 04 c0000201  20 c6336407")]
    );
}

#[test]
fn n_040_the_path_across_is_one_segment_of_four_octets_for_small_numbers_too() {
    assert_eq!(
        announce(WIDE, &external(VIA_IPV4), &[prefix("198.51.100.7/32")]),
        [message("0030 02 0000 0014 40 01 01 00  40 02 06 02 01 0000fbf4  40 03 04 c0000201  20 c6336407")]
    );
}

#[test]
fn n_041_the_path_inside_one_as_is_there_and_empty_and_local_pref_goes_with_it() {
    let internal = Attributes { as_path: Vec::new(), local_pref: Some(100), ..external(VIA_IPV4) };
    for dialect in [WIDE, NARROW] {
        assert_eq!(
            announce(dialect, &internal, &[prefix("198.51.100.7/32")]),
            [message("0031 02 0000 0015 40 01 01 00  40 02 00  40 03 04 c0000201  40 05 04 00000064  20 c6336407")]
        );
    }
    assert_eq!(attribute(&announce(WIDE, &external(VIA_IPV4), &hosts(Family::Ipv4Unicast, 1))[0], 5), None);
}

#[test]
fn n_042_a_peer_on_the_link_gets_the_link_local_address_beside_the_global_one() {
    let both = external(NextHop::Ipv6 { global: GLOBAL, link_local: Some(LINK_LOCAL) });
    let alone = external(NextHop::Ipv6 { global: LINK_LOCAL, link_local: None });

    assert_eq!(
        announce(WIDE, &both, &[prefix("2001:db8::7/128")]),
        [message(
            "005d 02 0000 0046 80 0e 36 0002 01 20 20010db8000000000000000000000001 fe800000000000000000000000000001 00
             80 20010db8000000000000000000000007  40 01 01 00  40 02 06 02 01 0000fbf4"
        )]
    );
    assert_eq!(
        announce(WIDE, &alone, &[prefix("2001:db8::7/128")]),
        [message(
            "004d 02 0000 0036 80 0e 26 0002 01 10 fe800000000000000000000000000001 00
             80 20010db8000000000000000000000007  40 01 01 00  40 02 06 02 01 0000fbf4"
        )]
    );
}

#[test]
fn n_043_ipv6_comes_by_mp_reach_and_goes_by_mp_unreach_with_clean_host_bits() {
    let unclean = [prefix("2001:db8:0:fff::9/61"), prefix("2001:db8::7/128"), prefix("::1/0")];
    let clean = [prefix("2001:db8:0:ff8::/61"), prefix("2001:db8::7/128"), prefix("::/0")];

    let announced = announce(WIDE, &external(VIA_IPV6), &unclean);
    assert_eq!(
        announced,
        [message(
            "0057 02 0000 0040 80 0e 30 0002 01 10 20010db8000000000000000000000001 00
             3d 20010db800000ff8  80 20010db8000000000000000000000007  00  40 01 01 00  40 02 06 02 01 0000fbf4"
        )]
    );
    assert_eq!(read(&announced[0]), Update { announced: clean.to_vec(), ..Update::default() });

    let withdrawn = withdraw(WIDE, &unclean);
    assert_eq!(
        withdrawn,
        [message("0038 02 0000 0021 80 0f 1e 0002 01  3d 20010db800000ff8  80 20010db8000000000000000000000007  00")]
    );
    assert_eq!(read(&withdrawn[0]), Update { withdrawn: clean.to_vec(), ..Update::default() });
}

#[test]
fn ipv4_comes_and_goes_in_the_fields_of_the_message_with_clean_host_bits() {
    let unclean = [prefix("198.51.100.7/32"), prefix("203.0.113.255/25"), prefix("192.0.2.1/0")];
    let clean = [prefix("198.51.100.7/32"), prefix("203.0.113.128/25"), prefix("0.0.0.0/0")];

    let announced = announce(WIDE, &external(VIA_IPV4), &unclean);
    assert_eq!(fields(&announced[0])[2], bytes("20 c6336407  19 cb007180  00"));
    assert_eq!(read(&announced[0]), Update { announced: clean.to_vec(), ..Update::default() });

    let withdrawn = withdraw(WIDE, &unclean);
    assert_eq!(withdrawn, [message("0022 02 000b 20 c6336407  19 cb007180  00 0000")]);
    assert_eq!(read(&withdrawn[0]), Update { withdrawn: clean.to_vec(), ..Update::default() });
}

#[test]
fn n_044_ipv4_over_an_ipv6_next_hop_goes_by_mp_reach() {
    let announced = announce(WIDE, &external(VIA_IPV6), &[prefix("198.51.100.7/32")]);

    assert_eq!(
        announced,
        [message(
            "0041 02 0000 002a 80 0e 1a 0001 01 10 20010db8000000000000000000000001 00  20 c6336407
             40 01 01 00  40 02 06 02 01 0000fbf4"
        )]
    );
    assert_eq!(read(&announced[0]).announced, [prefix("198.51.100.7/32")]);
}

#[test]
fn n_045_communities_of_all_kinds_are_sorted_and_there_once() {
    let attributes = Attributes {
        multi_exit_disc: Some(50),
        communities: BTreeSet::from([0xffff_ff01, 0xfbf4_0064, 0xfbf4_0064]),
        extended_communities: BTreeSet::from([*b"\x00\x02\xfb\xf4\0\0\0\x09", *b"\x00\x02\xfb\xf4\0\0\0\x01"]),
        large_communities: BTreeSet::from([[64500, 2, 1], [64500, 1, 0xffff_ffff], [64500, 1, 0xffff_ffff]]),
        ..external(VIA_IPV4)
    };

    assert_eq!(
        announce(WIDE, &attributes, &[prefix("198.51.100.7/32")]),
        [message(
            "0070 02 0000 0054 40 01 01 00  40 02 06 02 01 0000fbf4  40 03 04 c0000201  80 04 04 00000032
             c0 08 08 fbf40064 ffffff01  c0 10 10 0002fbf400000001 0002fbf400000009
             c0 20 18 0000fbf4 00000001 ffffffff 0000fbf4 00000002 00000001  20 c6336407"
        )]
    );
}

#[test]
fn n_046_a_path_longer_than_a_segment_gets_another_one() {
    for (length, segments) in [(1, vec![1]), (4, vec![4]), (255, vec![255]), (256, vec![255, 1])] {
        let attributes = Attributes { as_path: vec![asn(64500); length], ..external(VIA_IPV4) };
        let messages = announce(WIDE, &attributes, &[prefix("198.51.100.7/32")]);
        let expected: Vec<u8> = segments
            .into_iter()
            .flat_map(|count: u8| [vec![2, count], bytes("0000fbf4").repeat(count.into())].concat())
            .collect();
        let flags = if expected.len() > 255 { 0x50 } else { 0x40 };

        assert_eq!(attribute(&messages[0], 2), Some((flags, expected)));
        assert_eq!(read(&messages[0]).discarded, None);
    }
}

#[test]
fn n_047_routes_with_equal_attributes_fill_their_messages() {
    let cases = [
        (WIDE, Family::Ipv4Unicast, VIA_IPV4, 1000, 2),
        (EXTENDED, Family::Ipv4Unicast, VIA_IPV4, 1000, 1),
        (EXTENDED, Family::Ipv4Unicast, VIA_IPV4, 20_000, 2),
        (WIDE, Family::Ipv6Unicast, VIA_IPV6, 460, 2),
        (EXTENDED, Family::Ipv6Unicast, VIA_IPV6, 460, 1),
    ];
    for (dialect, family, next_hop, count, expected) in cases {
        let prefixes = hosts(family, count);
        for messages in [announce(dialect, &external(next_hop), &prefixes), withdraw(dialect, &prefixes)] {
            assert_eq!(messages.len(), expected, "{count} of {family:?}");
            assert!(messages.iter().all(|message| message.len() <= dialect.max_len));
        }
    }
}

#[test]
fn attributes_that_fill_a_message_leave_no_room_and_say_so() {
    // 19 + 4 of the message, 20 of ORIGIN, AS_PATH and NEXT_HOP, 4 + 4 * 1012 of communities: 4095.
    let mut attributes = Attributes { communities: (0..1012).collect(), ..external(VIA_IPV4) };
    let host = [prefix("198.51.100.7/32")];
    assert!(!attributes.fit(WIDE, Family::Ipv4Unicast));
    assert_eq!(announce(WIDE, &attributes, &host), Vec::<Vec<u8>>::new());
    assert!(attributes.fit(EXTENDED, Family::Ipv4Unicast));
    assert_eq!(announce(EXTENDED, &attributes, &host).len(), 1);

    attributes.communities.pop_last();
    assert!(attributes.fit(WIDE, Family::Ipv4Unicast));
    assert_eq!(announce(WIDE, &attributes, &host)[0].len(), 4096);
    // MP_REACH_NLRI takes more.
    assert!(!attributes.fit(WIDE, Family::Ipv6Unicast));

    // Longer than any length field could say.
    attributes.communities = (0..20_000).collect();
    assert!(!attributes.fit(EXTENDED, Family::Ipv4Unicast));
    assert_eq!(announce(EXTENDED, &attributes, &host), Vec::<Vec<u8>>::new());
}

#[test]
fn n_049_prefixes_of_both_families_go_apart() {
    let mixed = [prefix("2001:db8::7/128"), prefix("198.51.100.7/32"), prefix("2001:db8::8/128")];
    let announced = announce(WIDE, &external(VIA_IPV6), &mixed);
    let withdrawn = withdraw(WIDE, &mixed);

    assert_eq!(
        announced.iter().map(|message| read(message).announced).collect::<Vec<_>>(),
        [vec![mixed[1]], vec![mixed[0], mixed[2]]]
    );
    assert_eq!(
        withdrawn.iter().map(|message| read(message).withdrawn).collect::<Vec<_>>(),
        [vec![mixed[1]], vec![mixed[0], mixed[2]]]
    );
    assert_eq!(announce(WIDE, &external(VIA_IPV4), &[]), Vec::<Vec<u8>>::new());
    assert_eq!(withdraw(WIDE, &[]), Vec::<Vec<u8>>::new());
}

#[test]
fn n_050_the_end_of_the_routes_is_marked_per_family() {
    let marks =
        [(Family::Ipv4Unicast, "0017 02 0000 0000"), (Family::Ipv6Unicast, "001d 02 0000 0006 80 0f 03 0002 01")];
    for (family, hex) in marks {
        assert_eq!(end_of_rib(family), message(hex));
        assert_eq!(read(&message(hex)), Update { end_of_rib: Some(family), ..Update::default() });
    }
    // A long header, and IPv4 by the attribute.
    for (family, attributes) in [(Family::Ipv6Unicast, "90 0f 0003 0002 01"), (Family::Ipv4Unicast, "80 0f 03 0001 01")]
    {
        let update = Update::decode(&body("", attributes, ""));
        assert_eq!(update, Ok(Update { end_of_rib: Some(family), ..Update::default() }));
    }
    // A default route, a family that is not ours, and marks beside which there is more.
    for (withdrawn, attributes, nlri) in [
        ("00", "", ""),
        ("", "", "00"),
        ("", "80 0f 03 4004 47", ""),
        ("", "80 0f 03 0002 01  80 04 04 00000000", ""),
        ("00", "80 0f 03 0002 01", ""),
        ("", "80 0f 04 0002 01 00", ""),
    ] {
        assert_eq!(Update::decode(&body(withdrawn, attributes, nlri)).unwrap().end_of_rib, None);
    }
}

#[test]
fn n_053_a_refresh_names_a_family_and_where_it_begins_and_ends() {
    let table = [
        (Family::Ipv4Unicast, Refresh::Request, "0017 05 0001 00 01"),
        (Family::Ipv6Unicast, Refresh::Begin, "0017 05 0002 01 01"),
        (Family::Ipv6Unicast, Refresh::End, "0017 05 0002 02 01"),
    ];
    for (family, kind, hex) in table {
        assert_eq!(route_refresh(family, kind), message(hex));
        assert_eq!(decode(&message(hex)), Ok(Message::RouteRefresh { family: Some(family), kind }));
    }
}

#[test]
fn n_053_a_refresh_of_an_unknown_family_or_kind_is_to_be_ignored() {
    for hex in ["0017 05 4004 00 47", "0017 05 0001 00 02", "0017 05 0001 03 01"] {
        let decoded = decode(&message(hex));
        assert_eq!(decoded, Ok(Message::RouteRefresh { family: None, kind: Refresh::Request }), "{hex}");
    }
}

#[test]
fn a_refresh_that_is_too_long_is_answered_with_7_1_and_the_message() {
    let long = message("0018 05 0001 01 01 00");
    let error = decode(&long).unwrap_err();

    assert_eq!(error, MessageError::RouteRefreshLength { message: long.clone() });
    assert_eq!(error.notification(), Notification::new(7, 1, long));
}

#[test]
fn n_054_a_message_full_of_routes_takes_memory_in_proportion() {
    let full = [vec![0; 4], vec![0; MAX_EXTENDED_LEN - 23]].concat();
    let update = Update::decode(&full).expect("default routes");

    // The routes come without attributes, and so do not count as announced.
    assert_eq!((update.announced.len(), update.withdrawn.len()), (0, MAX_EXTENDED_LEN - 23));
    assert!(update.withdrawn.capacity() * size_of::<Prefix>() <= 64 * full.len());
}

#[test]
fn routes_of_a_peer_are_read_with_clean_host_bits() {
    let update = Update::decode(&body(
        "19 cb0071ff  00",
        &format!(
            "{MANDATORY}  80 0f 0c 0002 01 3d 20010db800000fff
             80 0e 1a 0002 01 10 20010db8000000000000000000000002 00  20 20010db8"
        ),
        "1f c63364ff",
    ));

    assert_eq!(
        update,
        Ok(Update {
            announced: vec![prefix("198.51.100.254/31"), prefix("2001:db8::/32")],
            withdrawn: vec![prefix("203.0.113.128/25"), prefix("0.0.0.0/0"), prefix("2001:db8:0:ff8::/61")],
            end_of_rib: None,
            discarded: None,
        })
    );
}

#[test]
fn a_message_of_frr_is_read_for_its_route() {
    // FRR 8.4.4: long headers where short ones would do, and a next hop that is an IPv4 address inside an IPv6 one.
    let captured = "0084 02 0000 006d 90 0e 0026 0002 01 10 00000000000000000000ffffc0000202 00
        80 20010db8000100000000000000000007  40 01 01 00  50 02 000a 02 02 0000fbf5 fa56ea01  c0 08 08 fbf40064 ffff0000
        c0 20 18 0000fbf4 00000000 00000009 0000fbf4 00000001 00000002  c0 10 08 0002fbf400000009";

    let expected = Update { announced: vec![prefix("2001:db8:1::7/128")], ..Update::default() };
    assert_eq!(read(&message(captured)), expected);
}

#[test]
fn families_that_are_not_ours_are_passed_over() {
    for attributes in [
        "80 0e 08 4004 47 04 01020304",
        "80 0e 0a 0001 80 04 01020304 00 08",
        "80 0f 05 0019 46 ffff",
        "80 0e 03 0002 02",
    ] {
        assert_eq!(Update::decode(&body("", attributes, "")), Ok(Update::default()), "{attributes}");
    }
}

#[test]
fn n_055_a_malformed_attribute_takes_back_its_routes_or_nothing_and_the_session_stays() {
    use AttributeFault::{Flags, Malformed, Overrun, Repeated, Unrecognized};
    let table = [
        // Two octets that cannot be a whole attribute, and values that reach beyond the block.
        ("c0", Overrun),
        ("c0 08", Overrun),
        ("d0 08 00", Overrun),
        ("c0 08 08 fbf40064", Overrun),
        ("d0 08 ffff fbf40064", Overrun),
        ("80 04 03 000000", Malformed(4)),
        ("40 05 00", Malformed(5)),
        ("40 06 01 00", Malformed(6)),
        ("c0 07 07 00000000000000", Malformed(7)),
        ("c0 08 00", Malformed(8)),
        ("c0 08 05 0000000000", Malformed(8)),
        ("80 09 05 0000000000", Malformed(9)),
        ("80 0a 00", Malformed(10)),
        ("c0 10 04 00000000", Malformed(16)),
        ("c0 11 01 02", Malformed(17)),
        ("c0 11 04 02 02 fbf4", Malformed(17)),
        ("c0 12 06 000000000000", Malformed(18)),
        ("c0 20 08 0000000000000000", Malformed(32)),
        ("c0 23 02 fbf4", Malformed(35)),
        ("c0 04 04 00000000", Flags(4)),
        ("80 08 04 fbf40064", Flags(8)),
        ("00 05 04 00000064", Flags(5)),
        ("40 63 00", Unrecognized(99)),
        ("40 01 01 00", Repeated(1)),
        ("c0 63 00 c0 63 00", Repeated(99)),
        // Of two faults the one that withdraws.
        ("40 01 01 00  80 04 00", Malformed(4)),
        ("80 04 00  40 01 01 00", Malformed(4)),
    ];
    let harmless = [Malformed(6), Malformed(7), Malformed(17), Malformed(18), Repeated(1), Repeated(99)];
    let route = prefix("203.0.113.7/32");

    for (hex, fault) in table {
        let update = Update::decode(&body("", &format!("{MANDATORY} {hex}"), "20 cb007107")).expect("no reset");
        assert_eq!(update.discarded, Some(fault), "{hex}");
        assert_eq!(fault.withdraws(), !harmless.contains(&fault), "{hex}");
        if fault.withdraws() {
            assert_eq!((update.announced, update.withdrawn), (vec![], vec![route]), "{hex}");
        } else {
            assert_eq!((update.announced, update.withdrawn), (vec![route], vec![]), "{hex}");
        }
    }
}

#[test]
fn n_055_mandatory_attributes_that_are_malformed_or_missing_take_back_their_routes() {
    use AttributeFault::{Flags, Malformed, Missing};
    let (origin, path, next_hop) = ("40 01 01 00", "40 02 06 02 01 0000fbf5", "40 03 04 c0000202");
    let table = [
        (format!("{path} {next_hop}"), Missing(1)),
        (format!("{origin} {next_hop}"), Missing(2)),
        (format!("{origin} {path}"), Missing(3)),
        (format!("40 01 01 03 {path} {next_hop}"), Malformed(1)),
        (format!("40 01 00 {path} {next_hop}"), Malformed(1)),
        (format!("c0 01 01 00 {path} {next_hop}"), Flags(1)),
        (format!("{origin} {path} 40 03 05 c000020200"), Malformed(3)),
        // A segment beyond its attribute, of no type, of no numbers, and a part of one.
        (format!("{origin} 40 02 04 02 ff fbf5 {next_hop}"), Malformed(2)),
        (format!("{origin} 40 02 06 05 01 0000fbf5 {next_hop}"), Malformed(2)),
        (format!("{origin} 40 02 02 02 00 {next_hop}"), Malformed(2)),
        (format!("{origin} 40 02 07 02 01 0000fbf5 02 {next_hop}"), Malformed(2)),
    ];
    for (attributes, fault) in table {
        let update = Update::decode(&body("", &attributes, "20 cb007107")).expect("no reset");
        assert_eq!(update.discarded, Some(fault), "{attributes}");
        assert_eq!((update.announced, update.withdrawn), (vec![], vec![prefix("203.0.113.7/32")]), "{attributes}");
    }
    // Good ones: a path of two octets, an empty one, confederations; and with MP_REACH_NLRI no NEXT_HOP is needed.
    let reach = "80 0e 16 0002 01 10 20010db8000000000000000000000002 00 00";
    for (attributes, nlri) in [
        (format!("{origin} 40 02 04 02 01 fbf5 {next_hop}"), "00"),
        (format!("{origin} 40 02 00 {next_hop}"), "00"),
        (format!("{origin} 40 02 0c 03 01 0000fbf6 02 01 0000fbf5 {next_hop}"), "00"),
        (format!("{reach} {MANDATORY_MP}"), ""),
    ] {
        let update = Update::decode(&body("", &attributes, nlri)).expect("no reset");
        assert_eq!((update.announced.len(), update.discarded), (1, None), "{attributes}");
    }
}

#[test]
fn n_055_routes_that_cannot_be_told_end_the_session() {
    use UpdateError::{InvalidNetworkField, MalformedAttributeList, MalformedMultiprotocol, RepeatedMultiprotocol};
    let reach = "80 0e 16 0002 01 10 20010db8000000000000000000000002 00 00";
    let unreach = "80 0f 03 0002 01";
    let table = [
        (bytes(""), MalformedAttributeList),
        (bytes("0000 00"), MalformedAttributeList),
        (bytes("0001 0000"), MalformedAttributeList),
        (bytes("0003 0000"), MalformedAttributeList),
        (bytes("0000 0001"), MalformedAttributeList),
        (bytes("ffff ffff"), MalformedAttributeList),
        // One bit too many, octets too few, in both fields.
        (body("", MANDATORY, "21 cb00710700"), InvalidNetworkField),
        (body("", MANDATORY, "20 cb0071"), InvalidNetworkField),
        (body("", MANDATORY, "18"), InvalidNetworkField),
        (body("21 cb00710700", "", ""), InvalidNetworkField),
        (body("20 cb0071", "", ""), InvalidNetworkField),
        (body("", &format!("{reach} {reach}"), ""), RepeatedMultiprotocol(14)),
        (body("", &format!("{unreach} {unreach}"), ""), RepeatedMultiprotocol(15)),
        // Without a whole family, with a next hop of no known length or cut short, without the octet behind it.
        (body("", "80 0e 02 0002", ""), MalformedMultiprotocol(14)),
        (body("", "80 0e 03 0002 01", ""), MalformedMultiprotocol(14)),
        (body("", "80 0e 09 0002 01 04 c0000202 00", ""), MalformedMultiprotocol(14)),
        (body("", "80 0e 05 0001 01 00 00", ""), MalformedMultiprotocol(14)),
        (body("", "80 0e 07 0001 01 04 c00002", ""), MalformedMultiprotocol(14)),
        (body("", "80 0e 08 0001 01 04 c0000202", ""), MalformedMultiprotocol(14)),
        (body("", "80 0e 0f 0001 01 04 c0000202 00 21 cb00710700", ""), MalformedMultiprotocol(14)),
        (body("", "80 0f 02 0002", ""), MalformedMultiprotocol(15)),
        (body("", "80 0f 05 0002 01 81 00", ""), MalformedMultiprotocol(15)),
        (body("", "80 0f 06 0002 01 20 2001", ""), MalformedMultiprotocol(15)),
        // What reaches beyond the block is of a kind that may not be lost.
        (body("", "80 0f", ""), MalformedMultiprotocol(15)),
        (body("", "80 0e 20 0002 01", ""), MalformedMultiprotocol(14)),
    ];
    for (body, error) in table {
        assert_eq!(Update::decode(&body), Err(error), "{body:02x?}");
        let subcode = match error {
            MalformedAttributeList | RepeatedMultiprotocol(_) => 1,
            MalformedMultiprotocol(_) => 9,
            InvalidNetworkField => 10,
        };
        let decoded = Message::decode(Frame { kind: MessageType::Update, body: &body });
        assert_eq!(decoded.unwrap_err().notification(), Notification::new(3, subcode, []));
    }
}

fn prefixes() -> impl Strategy<Value = Prefix> {
    let ipv4 = (any::<u32>(), 0..=32u8).prop_map(|(bits, length)| (Ipv4Addr::from_bits(bits).into(), length));
    let ipv6 = (any::<u128>(), 0..=128u8).prop_map(|(bits, length)| (Ipv6Addr::from_bits(bits).into(), length));
    prop_oneof![ipv4, ipv6].prop_map(|(address, length)| {
        let prefix = Prefix::new(address, length).expect("a length of its family");
        Prefix::new(prefix.network(), length).expect("the same")
    })
}

fn next_hops() -> impl Strategy<Value = NextHop> {
    prop_oneof![
        any::<u32>().prop_map(|bits| NextHop::Ipv4(Ipv4Addr::from_bits(bits))),
        (any::<u128>(), prop::option::of(any::<u128>())).prop_map(|(global, link_local)| NextHop::Ipv6 {
            global: Ipv6Addr::from_bits(global),
            link_local: link_local.map(Ipv6Addr::from_bits),
        }),
    ]
}

fn attribute_sets() -> impl Strategy<Value = Attributes> {
    let numbers = prop_oneof![1..=65535u32, 1..=u32::MAX].prop_map(asn);
    (
        prop::collection::vec(numbers, 0..300),
        next_hops(),
        any::<[Option<u32>; 2]>(),
        prop::collection::btree_set(any::<u32>(), 0..100),
        prop::collection::btree_set(any::<[u8; 8]>(), 0..50),
        prop::collection::btree_set(any::<[u32; 3]>(), 0..50),
    )
        .prop_map(
            |(as_path, next_hop, [multi_exit_disc, local_pref], communities, extended_communities, large)| Attributes {
                as_path,
                next_hop,
                multi_exit_disc,
                local_pref,
                communities,
                extended_communities,
                large_communities: large,
            },
        )
}

fn dialects() -> impl Strategy<Value = Dialect> {
    let longest = prop_oneof![Just(MAX_LEN), Just(MAX_EXTENDED_LEN), 23..600usize];
    (any::<bool>(), longest).prop_map(|(four_octet_asn, max_len)| Dialect { four_octet_asn, max_len })
}

/// What of these belongs to a family, in its order.
fn of_family(family: Family, prefixes: &[Prefix]) -> Vec<Prefix> {
    prefixes.iter().copied().filter(|prefix| Family::of(prefix) == family).collect()
}

proptest! {
    #[test]
    fn n_047_n_049_what_is_announced_arrives_once_in_messages_of_one_purpose(
        dialect in dialects(), wanted in attribute_sets(), prefixes in prop::collection::vec(prefixes(), 0..400),
    ) {
        let messages = announce(dialect, &wanted, &prefixes);
        let mut arrived = Vec::new();
        for message in &messages {
            prop_assert!(message.len() <= dialect.max_len);
            let [withdrawn, _, nlri] = fields(message);
            let codes: Vec<u8> = attributes(message).into_iter().map(|(_, code, _)| code).collect();
            let (reach, others) = codes.split_at(usize::from(codes[0] == 14));
            prop_assert!(withdrawn.is_empty());
            prop_assert_eq!(reach.is_empty(), !nlri.is_empty());
            prop_assert_eq!(others.contains(&3), reach.is_empty());
            prop_assert!(others.is_sorted_by(|one, next| one < next));

            let update = read(message);
            prop_assert_eq!((update.withdrawn, update.end_of_rib, update.discarded), (vec![], None, None));
            prop_assert!(!update.announced.is_empty());
            arrived.extend(update.announced);
        }
        for family in Family::ALL {
            let (arrived, sent) = (of_family(family, &arrived), of_family(family, &prefixes));
            if wanted.fit(dialect, family) {
                prop_assert_eq!(arrived, sent);
            } else {
                prop_assert!(arrived.len() <= sent.len());
            }
        }
    }

    #[test]
    fn n_047_n_049_what_is_withdrawn_arrives_once_in_messages_of_one_purpose(
        max_len in prop_oneof![Just(MAX_LEN), Just(MAX_EXTENDED_LEN), 47..600usize],
        prefixes in prop::collection::vec(prefixes(), 0..1000),
    ) {
        let mut arrived = Vec::new();
        for message in withdraw(Dialect { four_octet_asn: true, max_len }, &prefixes) {
            prop_assert!(message.len() <= max_len);
            let [withdrawn, _, nlri] = fields(&message);
            let codes: Vec<u8> = attributes(&message).into_iter().map(|(_, code, _)| code).collect();
            prop_assert!(nlri.is_empty());
            prop_assert_eq!(codes, if withdrawn.is_empty() { vec![15] } else { vec![] });

            let update = read(&message);
            prop_assert_eq!((update.announced, update.end_of_rib, update.discarded), (vec![], None, None));
            prop_assert!(!update.withdrawn.is_empty());
            arrived.extend(update.withdrawn);
        }
        for family in Family::ALL {
            prop_assert_eq!(of_family(family, &arrived), of_family(family, &prefixes));
        }
    }

    #[test]
    fn n_055_any_bytes_return(
        withdrawn in prop::collection::vec(any::<u8>(), 0..20),
        attributes in prop::collection::vec(any::<u8>(), 0..60),
        nlri in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let length = |field: &[u8]| (field.len() as u16).to_be_bytes().to_vec();
        let framed = [length(&withdrawn), withdrawn, length(&attributes), attributes, nlri].concat();
        if let Ok(update) = Update::decode(&framed) {
            prop_assert!(update.announced.len() + update.withdrawn.len() < framed.len());
            prop_assert!(!update.discarded.is_some_and(AttributeFault::withdraws) || update.announced.is_empty());
        }
    }
}
