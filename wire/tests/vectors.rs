//! Captured byte strings beside the value they mean, both directions, and every way a frame can be wrong.
//!
//! The good frames of ARP and neighbour discovery were captured from Linux 6.18 talking to itself over a veth pair.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    net::Ipv6Addr,
    num::{NonZeroU8, NonZeroU32},
};

use ferrogate_wire::{
    arp::{self, Arp, Operation},
    bfd::{self, Diagnostic, Packet, Sequence, State},
    ethernet::{FrameError, MAX_FRAME_LEN, Mac},
    ndp::{
        self, ALL_NODES, Advertisement, Ndp, OptionError, Solicitation,
        router::{RouterAdvertisement, RouterError, router_solicitation},
        solicited_node,
    },
};
use proptest::prelude::*;

const A: Mac = Mac([2, 0, 0, 0, 0, 0x0a]);
const B: Mac = Mac([2, 0, 0, 0, 0, 0x0b]);

const ARP_REQUEST: &str =
    "ffffffffffff 02000000000a 0806 0001 0800 06 04 0001 02000000000a c000020a 000000000000 c000020b";
const ARP_REPLY: &str =
    "02000000000a 02000000000b 0806 0001 0800 06 04 0002 02000000000b c000020b 02000000000a c000020a";
const SOLICITATION: &str = "3333ff00000b 02000000000a 86dd 60000000 0020 3a ff \
    20010db800000000000000000000000a ff0200000000000000000001ff00000b \
    87 00 1c03 00000000 20010db800000000000000000000000b 01 01 02000000000a";
const ADVERTISEMENT: &str = "02000000000a 02000000000b 86dd 60000000 0020 3a ff \
    20010db800000000000000000000000b 20010db800000000000000000000000a \
    88 00 8a4d 60000000 20010db800000000000000000000000b 02 01 02000000000b";
/// Duplicate address detection; option 14 is the nonce of RFC 3971.
const PROBE: &str = "3333ff000dad 02000000000a 86dd 60000000 0020 3a ff \
    00000000000000000000000000000000 ff0200000000000000000001ff000dad \
    87 00 9c15 00000000 20010db8000000000000000000000dad 0e 01 60884594e159";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).expect("two hexadecimal digits"))
        .collect()
}

/// The frame with some bytes replaced.
fn with(hex: &str, offset: usize, replacement: &[u8]) -> Vec<u8> {
    let mut frame = bytes(hex);
    frame[offset..offset + replacement.len()].copy_from_slice(replacement);
    frame
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an IPv6 address")
}

fn arp_request() -> Arp {
    Arp {
        destination: Mac::BROADCAST,
        source: A,
        operation: Operation::Request,
        sender_mac: A,
        sender: [192, 0, 2, 10].into(),
        target_mac: Mac::ZERO,
        target: [192, 0, 2, 11].into(),
    }
}

fn solicitation() -> Solicitation {
    Solicitation {
        destination_mac: Mac([0x33, 0x33, 0xff, 0, 0, 0x0b]),
        source_mac: A,
        source: v6("2001:db8::a"),
        destination: v6("ff02::1:ff00:b"),
        target: v6("2001:db8::b"),
        source_link_layer: Some(A),
    }
}

fn advertisement() -> Advertisement {
    Advertisement {
        destination_mac: A,
        source_mac: B,
        source: v6("2001:db8::b"),
        destination: v6("2001:db8::a"),
        is_router: false,
        is_solicited: true,
        overrides: true,
        target: v6("2001:db8::b"),
        target_link_layer: Some(B),
    }
}

fn probe() -> Solicitation {
    Solicitation {
        destination_mac: Mac([0x33, 0x33, 0xff, 0, 0x0d, 0xad]),
        source_mac: A,
        source: Ipv6Addr::UNSPECIFIED,
        destination: v6("ff02::1:ff00:dad"),
        target: v6("2001:db8::dad"),
        source_link_layer: None,
    }
}

#[test]
fn an_arp_request_reads_and_writes_as_captured() {
    assert_eq!(arp::decode(&bytes(ARP_REQUEST)), Ok(arp_request()));
    assert_eq!(arp_request().encode().as_slice(), bytes(ARP_REQUEST));
}

#[test]
fn the_answer_to_the_captured_request_is_the_captured_reply() {
    let answer = Arp::answer(&arp_request(), B);

    assert_eq!(answer.encode().as_slice(), bytes(ARP_REPLY));
    assert_eq!(arp::decode(&bytes(ARP_REPLY)), Ok(answer));
}

#[test]
fn an_arp_probe_is_known_as_one_and_can_be_answered() {
    let probe = arp::decode(&with(ARP_REQUEST, 28, &[0; 4])).unwrap();

    assert!(probe.is_probe());
    assert!(!arp_request().is_probe());
    assert_eq!(Arp::answer(&probe, B).destination, A);
}

#[test]
fn an_arp_announcement_names_its_address_as_sender_and_target_to_everyone() {
    let request = Arp::announcement(Operation::Request, [192, 0, 2, 11].into(), B);
    let reply = Arp::announcement(Operation::Reply, [192, 0, 2, 11].into(), B);

    let expected = "ffffffffffff 02000000000b 0806 0001 0800 06 04 0001 02000000000b c000020b ffffffffffff c000020b";
    assert_eq!(request.encode().as_slice(), bytes(expected));
    assert_eq!(reply.encode().as_slice(), with(expected, 21, &[2]));
}

#[test]
fn padding_of_a_short_frame_is_ignored() {
    let mut arp = bytes(ARP_REPLY);
    arp.resize(60, 0xee);
    let mut advertised = bytes(ADVERTISEMENT);
    advertised.extend([0xee; 20]);

    assert_eq!(arp::decode(&arp), arp::decode(&bytes(ARP_REPLY)));
    assert_eq!(ndp::decode(&advertised), Ok(Ndp::Advertisement(advertisement())));
}

#[test]
fn n_102_each_malformed_arp_frame_is_refused_by_name() {
    use arp::DecodeError::*;
    let mut oversized = bytes(ARP_REQUEST);
    oversized.resize(MAX_FRAME_LEN + 1, 0);
    let group = Mac([1, 0, 0x5e, 0, 0, 1]);
    let table = [
        (bytes(""), Frame(FrameError::Truncated { found: 0, needed: 42 })),
        (bytes(ARP_REQUEST)[..41].to_vec(), Frame(FrameError::Truncated { found: 41, needed: 42 })),
        (oversized, Frame(FrameError::Oversized { found: MAX_FRAME_LEN + 1 })),
        (with(ARP_REQUEST, 12, &[0x81, 0]), Frame(FrameError::VlanTagged)),
        (with(ARP_REQUEST, 12, &[0x88, 0xa8]), Frame(FrameError::VlanTagged)),
        (with(ARP_REQUEST, 12, &[8, 0]), Frame(FrameError::EtherType { found: 0x0800, expected: 0x0806 })),
        (with(ARP_REQUEST, 6, &group.0), Frame(FrameError::Source(group))),
        (with(ARP_REQUEST, 6, &[0xff; 6]), Frame(FrameError::Source(Mac::BROADCAST))),
        (with(ARP_REQUEST, 6, &[0; 6]), Frame(FrameError::Source(Mac::ZERO))),
        (with(ARP_REQUEST, 14, &[0, 6]), HardwareType(6)),
        (with(ARP_REQUEST, 16, &[0x86, 0xdd]), ProtocolType(0x86dd)),
        (with(ARP_REQUEST, 18, &[8]), HardwareLength(8)),
        (with(ARP_REQUEST, 19, &[16]), ProtocolLength(16)),
        (with(ARP_REQUEST, 20, &[0, 3]), Operation(3)),
        (with(ARP_REQUEST, 22, &[0xff; 6]), SenderMac(Mac::BROADCAST)),
        (with(ARP_REQUEST, 22, &[0; 6]), SenderMac(Mac::ZERO)),
        (with(ARP_REQUEST, 28, &[224, 0, 0, 1]), Sender([224, 0, 0, 1].into())),
        (with(ARP_REQUEST, 28, &[255; 4]), Sender([255; 4].into())),
        (with(ARP_REPLY, 28, &[0; 4]), Sender([0; 4].into())),
    ];

    for (frame, error) in table {
        assert_eq!(arp::decode(&frame), Err(error));
    }
}

#[test]
fn a_solicitation_reads_and_writes_as_captured() {
    assert_eq!(ndp::decode(&bytes(SOLICITATION)), Ok(Ndp::Solicitation(solicitation())));
    assert_eq!(solicitation().encode(), bytes(SOLICITATION));
}

#[test]
fn the_answer_to_the_captured_solicitation_is_the_captured_advertisement() {
    let answer = Advertisement::answer(&solicitation(), B);

    assert_eq!(answer, advertisement());
    assert_eq!(answer.encode(), bytes(ADVERTISEMENT));
    assert_eq!(ndp::decode(&bytes(ADVERTISEMENT)), Ok(Ndp::Advertisement(answer)));
}

#[test]
fn a_solicitation_without_link_layer_option_is_answered_to_the_frame_it_came_in() {
    let asker = Solicitation { source_link_layer: None, ..solicitation() };

    assert_eq!(Advertisement::answer(&asker, B), advertisement());
}

#[test]
fn duplicate_address_detection_is_answered_to_all_nodes_and_unsolicited() {
    assert_eq!(ndp::decode(&bytes(PROBE)), Ok(Ndp::Solicitation(probe())));
    let answer = Advertisement::answer(&probe(), B);

    assert_eq!(answer, Advertisement::announcement(v6("2001:db8::dad"), B));
    assert_eq!(
        answer.encode(),
        summed(bytes(
            "333300000001 02000000000b 86dd 60000000 0020 3a ff \
             20010db8000000000000000000000dad ff020000000000000000000000000001 \
             88 00 0000 20000000 20010db8000000000000000000000dad 02 01 02000000000b"
        ))
    );
}

#[test]
fn groups_are_mapped_as_the_rfcs_say() {
    assert_eq!(solicited_node(v6("2001:db8::12ab:cdef")), v6("ff02::1:ffab:cdef"));
    assert_eq!(Mac::of_group(v6("ff02::1:ffab:cdef")), Mac([0x33, 0x33, 0xff, 0xab, 0xcd, 0xef]));
    assert_eq!(Mac::of_group(ALL_NODES), Mac([0x33, 0x33, 0, 0, 0, 1]));
}

/// Offsets in a frame: IPv6 header from 14, ICMPv6 from 54, target from 62, options from 78.
#[test]
fn n_102_each_malformed_ndp_frame_is_refused_by_name() {
    use ndp::DecodeError::*;
    let router = Mac([1, 0, 0, 0, 0, 0]);
    let group = v6("ff02::1");
    let fresh = |offset, replacement: &[u8]| summed(with(SOLICITATION, offset, replacement));
    let from_nobody = |hex| summed(with(hex, 22, &[0; 16]));
    let mut solicited_to_group = with(ADVERTISEMENT, 38, &group.octets());
    solicited_to_group = summed(solicited_to_group);
    let mut oversized = bytes(SOLICITATION);
    oversized.resize(MAX_FRAME_LEN + 1, 0);
    let table = [
        (bytes(SOLICITATION)[..53].to_vec(), Frame(FrameError::Truncated { found: 53, needed: 54 })),
        (bytes(SOLICITATION)[..85].to_vec(), PayloadLength { length: 32, available: 31 }),
        (oversized, Frame(FrameError::Oversized { found: MAX_FRAME_LEN + 1 })),
        (with(SOLICITATION, 12, &[0x81, 0]), Frame(FrameError::VlanTagged)),
        (bytes(ARP_REQUEST), Frame(FrameError::EtherType { found: 0x0806, expected: 0x86dd })),
        (with(SOLICITATION, 6, &router.0), Frame(FrameError::Source(router))),
        (with(SOLICITATION, 14, &[0x45]), Version(4)),
        (with(SOLICITATION, 20, &[44]), NextHeader(44)),
        (with(SOLICITATION, 18, &[0, 23]), PayloadLength { length: 23, available: 32 }),
        (with(SOLICITATION, 18, &[0xff, 0xff]), PayloadLength { length: 65535, available: 32 }),
        (with(SOLICITATION, 21, &[254]), HopLimit(254)),
        (with(SOLICITATION, 22, &group.octets()), Source(group)),
        (fresh(54, &[134]), Type(134)),
        (fresh(55, &[1]), Code(1)),
        (with(SOLICITATION, 56, &[0x1c, 0x04]), Checksum { found: 0x1c04, computed: 0x1c03 }),
        (fresh(62, &group.octets()), Target(group)),
        (fresh(62, &[0; 16]), Target(Ipv6Addr::UNSPECIFIED)),
        (from_nobody(SOLICITATION), ProbeWithLinkLayer),
        (from_nobody(ADVERTISEMENT), Source(Ipv6Addr::UNSPECIFIED)),
        (summed(with(PROBE, 38, &v6("2001:db8::dad").octets())), ProbeDestination(v6("2001:db8::dad"))),
        (solicited_to_group, SolicitedToGroup(group)),
        (fresh(79, &[0]), Options(OptionError::ZeroLength(1))),
        (fresh(79, &[2]), Options(OptionError::Overrun { option: 1, needed: 16, available: 8 })),
        (summed(resized(SOLICITATION, 25)), Options(OptionError::Overrun { option: 1, needed: 2, available: 1 })),
        (
            summed(with_options(SOLICITATION, &[1, 2, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0])),
            Options(OptionError::LinkLayerLength(2)),
        ),
        (fresh(80, &[0xff; 6]), Options(OptionError::LinkLayer(Mac::BROADCAST))),
        (fresh(80, &[0; 6]), Options(OptionError::LinkLayer(Mac::ZERO))),
    ];

    for (frame, error) in table {
        assert_eq!(ndp::decode(&frame), Err(error));
    }
}

/// As routers send it that serve as default routers: hop limit 64, 1800 s, then link-layer address, MTU and a prefix.
const ROUTER: &str = "86 00 0000 40 00 0708 00000000 00000000 01 01 02000000000a 05 01 0000 000005dc \
    03 04 40 c0 00278d00 00093a80 00000000 20010db8000000000000000000000000";

#[test]
fn n_057_our_router_advertisement_makes_nobody_take_us_for_a_default_router() {
    let ours = RouterAdvertisement::presence(A);

    assert_eq!(ours.encode(), bytes("86 00 0000 00 00 0000 00000000 00000000 01 01 02000000000a"));
    assert_eq!(RouterAdvertisement::decode(&ours.encode()), Ok(ours));
}

#[test]
fn a_router_advertisement_is_read_for_its_lifetime_and_link_layer_address() {
    let theirs = RouterAdvertisement { router_lifetime_seconds: 1800, source_link_layer: Some(A) };
    let bare = RouterAdvertisement { router_lifetime_seconds: 1800, source_link_layer: None };

    assert_eq!(RouterAdvertisement::decode(&bytes(ROUTER)), Ok(theirs));
    assert_eq!(RouterAdvertisement::decode(&bytes(ROUTER)[..16]), Ok(bare.clone()));
    assert_eq!(bare.encode(), bytes("86 00 0000 00 00 0708 00000000 00000000"));
}

#[test]
fn each_malformed_router_advertisement_is_refused_by_name() {
    let table = [
        (Vec::new(), RouterError::TooShort(0)),
        (bytes(ROUTER)[..15].to_vec(), RouterError::TooShort(15)),
        (with(ROUTER, 0, &[133]), RouterError::Type(133)),
        (with(ROUTER, 1, &[1]), RouterError::Code(1)),
        (with(ROUTER, 17, &[0]), RouterError::Options(OptionError::ZeroLength(1))),
        (with(ROUTER, 17, &[2]), RouterError::Options(OptionError::LinkLayerLength(2))),
        (with(ROUTER, 18, &[0xff; 6]), RouterError::Options(OptionError::LinkLayer(Mac::BROADCAST))),
        (
            bytes(ROUTER)[..63].to_vec(),
            RouterError::Options(OptionError::Overrun { option: 3, needed: 32, available: 31 }),
        ),
    ];

    for (message, error) in table {
        assert_eq!(RouterAdvertisement::decode(&message), Err(error));
    }
}

#[test]
fn a_router_solicitation_says_who_asks() {
    assert_eq!(router_solicitation(B), bytes("85 00 0000 00000000 01 01 02000000000b"));
}

#[test]
fn options_of_other_types_are_stepped_over() {
    let frame = with_options(SOLICITATION, &[14, 1, 1, 2, 3, 4, 5, 6, 1, 1, 2, 0, 0, 0, 0, 0x0a]);

    assert_eq!(ndp::decode(&summed(frame)), Ok(Ndp::Solicitation(solicitation())));
}

const BFD_UP: &str = "20 c0 03 18 0a0b0c0d 01020304 0000c350 00004e20 00000000";

fn bfd_up() -> Packet {
    Packet {
        diagnostic: Diagnostic::None,
        state: State::Up,
        sequence: Sequence::None,
        control_plane_independent: false,
        demand: false,
        detect_mult: NonZeroU8::new(3).unwrap(),
        my_discriminator: NonZeroU32::new(0x0a0b_0c0d).unwrap(),
        your_discriminator: NonZeroU32::new(0x0102_0304),
        desired_min_tx_interval_us: 50_000,
        required_min_rx_interval_us: 20_000,
        required_min_echo_rx_interval_us: 0,
    }
}

/// Written down from RFC 5880 §4.1.
#[test]
fn a_bfd_packet_reads_and_writes_as_the_rfc_draws_it() {
    let down = Packet {
        diagnostic: Diagnostic::ControlDetectionTimeExpired,
        state: State::Down,
        your_discriminator: None,
        desired_min_tx_interval_us: 1_000_000,
        ..bfd_up()
    };
    let neighbor_signaled = Diagnostic::NeighborSignaledSessionDown;
    let table = [
        (BFD_UP.to_owned(), bfd_up()),
        ("21 40 03 18 0a0b0c0d 00000000 000f4240 00004e20 00000000".to_owned(), down),
        (BFD_UP.replace("c0 03", "80 ff"), Packet { state: State::Init, detect_mult: NonZeroU8::MAX, ..bfd_up() }),
        (
            BFD_UP.replace("20 c0", "23 00"),
            Packet { diagnostic: neighbor_signaled, state: State::AdminDown, ..bfd_up() },
        ),
        (BFD_UP.replace("20 c0", "20 e0"), Packet { sequence: Sequence::Poll, ..bfd_up() }),
        (BFD_UP.replace("20 c0", "20 d0"), Packet { sequence: Sequence::Final, ..bfd_up() }),
        (BFD_UP.replace("20 c0", "20 ca"), Packet { control_plane_independent: true, demand: true, ..bfd_up() }),
        (BFD_UP.replace("00000000", "ffffffff"), Packet { required_min_echo_rx_interval_us: u32::MAX, ..bfd_up() }),
    ];

    for (hex, packet) in table {
        assert_eq!(bfd::decode(&bytes(&hex)), Ok(packet), "{hex}");
        assert_eq!(packet.encode().as_slice(), bytes(&hex), "{hex}");
    }
}

#[test]
fn every_bfd_diagnostic_is_named_as_in_the_rfc_and_none_is_refused() {
    let named = [
        "No Diagnostic",
        "Control Detection Time Expired",
        "Echo Function Failed",
        "Neighbor Signaled Session Down",
        "Forwarding Plane Reset",
        "Path Down",
        "Concatenated Path Down",
        "Administratively Down",
        "Reverse Concatenated Path Down",
    ];

    for code in 0..32 {
        let diagnostic = bfd::decode(&with(BFD_UP, 0, &[0x20 | code])).unwrap().diagnostic;

        let name = named.get(usize::from(code)).map_or_else(|| format!("Reserved ({code})"), |name| (*name).to_owned());
        assert_eq!(diagnostic.to_string(), name);
        assert_eq!(diagnostic.code(), code);
    }
}

#[test]
fn what_follows_a_bfd_packet_is_ignored_whether_its_length_counts_it_or_not() {
    for length in [24, 28] {
        let mut longer = with(BFD_UP, 3, &[length]);
        longer.extend([0xee; 4]);

        assert_eq!(bfd::decode(&longer), Ok(bfd_up()));
    }
}

#[test]
fn n_082_each_bfd_packet_that_must_be_discarded_is_refused_by_name() {
    use bfd::DecodeError::*;
    let mut authenticated = with(BFD_UP, 1, &[0xc4, 3, 33]);
    authenticated.extend(bytes("01 09 01 666572726f67"));
    let without_yours = |flags| {
        let mut packet = with(BFD_UP, 1, &[flags]);
        packet[8..12].fill(0);
        packet
    };
    let table = [
        (Vec::new(), Truncated(0)),
        (bytes(BFD_UP)[..23].to_vec(), Truncated(23)),
        (with(BFD_UP, 0, &[0x00]), Version(0)),
        (with(BFD_UP, 0, &[0x40]), Version(2)),
        (with(BFD_UP, 3, &[23]), Length { found: 23, needed: 24 }),
        (with(BFD_UP, 3, &[0]), Length { found: 0, needed: 24 }),
        (with(BFD_UP, 1, &[0xc4]), Length { found: 24, needed: 26 }),
        (with(BFD_UP, 3, &[25]), Overrun { length: 25, available: 24 }),
        (with(BFD_UP, 2, &[0]), DetectMult),
        (with(BFD_UP, 1, &[0xc1]), Multipoint),
        (with(BFD_UP, 1, &[0xf0]), PollAndFinal),
        (with(BFD_UP, 4, &[0; 4]), MyDiscriminator),
        (without_yours(0x80), YourDiscriminator(State::Init)),
        (without_yours(0xc0), YourDiscriminator(State::Up)),
        (authenticated, Authenticated),
    ];

    for (packet, error) in table {
        assert_eq!(bfd::decode(&packet), Err(error));
    }
    for flags in [0x00, 0x40] {
        assert!(bfd::decode(&without_yours(flags)).is_ok(), "a session that is down need not know the other end");
    }
}

/// The frame with its ICMPv6 message cut or stretched to a length.
fn resized(hex: &str, length: u16) -> Vec<u8> {
    let mut frame = with(hex, 18, &length.to_be_bytes());
    frame.resize(54 + usize::from(length), 0);
    frame
}

fn with_options(hex: &str, options: &[u8]) -> Vec<u8> {
    let mut frame = resized(hex, 24 + options.len() as u16);
    frame[78..].copy_from_slice(options);
    frame
}

/// The frame with its ICMPv6 checksum made right (RFC 8200 §8.1), written down here independently of the code.
fn summed(mut frame: Vec<u8>) -> Vec<u8> {
    frame[56..58].copy_from_slice(&[0, 0]);
    let mut pseudo = frame[22..54].to_vec();
    pseudo.extend((frame.len() as u32 - 54).to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    pseudo.extend(&frame[54..]);
    if pseudo.len() % 2 == 1 {
        pseudo.push(0);
    }
    let mut sum: u32 = pseudo.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[56..58].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame
}

fn station() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(|mut mac| {
        mac[0] &= 0xfe;
        mac[5] |= 1;
        Mac(mac)
    })
}

fn unicast() -> impl Strategy<Value = Ipv6Addr> {
    any::<[u8; 16]>().prop_map(|mut address| {
        address[0] = 0x20;
        address.into()
    })
}

proptest! {
    #[test]
    fn any_bytes_return(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = arp::decode(&frame);
        let _ = ndp::decode(&frame);
        let _ = bfd::decode(&frame);
    }

    #[test]
    fn what_bfd_encodes_it_decodes(
        code in 0u8..32, state in 0u8..4, sequence in 0usize..3, flags: [bool; 2], detect_mult in 1u8..,
        mine in 1u32.., yours in 1u32.., knows: bool, intervals: [u32; 3],
    ) {
        let head = bfd::decode(&with(BFD_UP, 0, &[0x20 | code, state << 6 & 0xc0])).unwrap();
        let knows = knows || matches!(head.state, State::Init | State::Up);
        let packet = Packet {
            sequence: [Sequence::None, Sequence::Poll, Sequence::Final][sequence],
            control_plane_independent: flags[0],
            demand: flags[1],
            detect_mult: NonZeroU8::new(detect_mult).unwrap(),
            my_discriminator: NonZeroU32::new(mine).unwrap(),
            your_discriminator: NonZeroU32::new(yours).filter(|_| knows),
            desired_min_tx_interval_us: intervals[0],
            required_min_rx_interval_us: intervals[1],
            required_min_echo_rx_interval_us: intervals[2],
            ..head
        };

        prop_assert_eq!(bfd::decode(&packet.encode()), Ok(packet));
    }

    #[test]
    fn any_bytes_after_a_good_header_return(
        body in proptest::collection::vec(any::<u8>(), 0..80),
        good in 14usize..86,
    ) {
        let mut frame = bytes(SOLICITATION)[..good].to_vec();
        frame.extend(&body);
        let _ = ndp::decode(&frame);
        if frame.len() >= 58 {
            let length = frame.len() as u16 - 54;
            frame[18..20].copy_from_slice(&length.to_be_bytes());
            let _ = ndp::decode(&summed(frame));
        }
        let mut frame = bytes(ARP_REQUEST)[..good.min(42)].to_vec();
        frame.extend(body);
        let _ = arp::decode(&frame);
    }

    #[test]
    fn what_arp_encodes_it_decodes(
        destination: [u8; 6], source in station(), sender_mac in station(), target_mac: [u8; 6],
        sender in 1u32..0xe000_0000, target: u32, asks: bool,
    ) {
        let message = Arp {
            destination: Mac(destination),
            source,
            operation: if asks { Operation::Request } else { Operation::Reply },
            sender_mac,
            sender: sender.into(),
            target_mac: Mac(target_mac),
            target: target.into(),
        };

        prop_assert_eq!(arp::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn what_ndp_encodes_it_decodes(
        destination_mac: [u8; 6], source_mac in station(), source in unicast(), destination in unicast(),
        target in unicast(), link_layer in proptest::option::of(station()), flags: [bool; 3], asks: bool,
    ) {
        let destination_mac = Mac(destination_mac);
        let [is_router, is_solicited, overrides] = flags;
        let message = if asks {
            let source_link_layer = link_layer;
            Ndp::Solicitation(Solicitation { destination_mac, source_mac, source, destination, target, source_link_layer })
        } else {
            Ndp::Advertisement(Advertisement {
                destination_mac, source_mac, source, destination, is_router, is_solicited, overrides, target,
                target_link_layer: link_layer,
            })
        };

        prop_assert_eq!(ndp::decode(&message.encode()), Ok(message));
    }
}
