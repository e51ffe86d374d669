//! Neighbour solicitation and advertisement (RFC 4861 §4.3, §4.4) in IPv6 on Ethernet.
//!
//! The checks are those of RFC 4861 §7.1: what a router could have forwarded (hop limit below 255), what was damaged
//! (checksum) and what contradicts itself is a [`DecodeError`]. Extension headers are not looked behind: RFC 6980
//! forbids fragments here, and no host sends others.
//!
//! [`router`] is about the messages between hosts and routers, which arrive without the headers before them.

use std::net::Ipv6Addr;

use pnet_packet::{
    Packet,
    ethernet::EtherTypes,
    icmpv6::{
        self, Icmpv6Code, Icmpv6Packet, Icmpv6Types, MutableIcmpv6Packet,
        ndp::{
            MutableNeighborAdvertPacket, MutableNeighborSolicitPacket, NdpOptionTypes, NeighborAdvertFlags,
            NeighborAdvertPacket, NeighborSolicitPacket,
        },
    },
    ip::IpNextHeaderProtocols,
    ipv6::{Ipv6Packet, MutableIpv6Packet},
};

use crate::ethernet::{self, FrameError, HEADER_LEN, Mac};

pub mod router;

/// The hop limit that proves that no router was in between (RFC 4861 §7.1).
pub const HOP_LIMIT: u8 = 255;

/// All nodes on the link, `ff02::1`.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const IPV6_LEN: usize = Ipv6Packet::minimum_packet_size();
/// Both messages: type, code, checksum, four bytes of flags, the target.
const BODY_LEN: usize = NeighborSolicitPacket::minimum_packet_size();
/// A link-layer address option on Ethernet: type, length in units of eight bytes, six bytes of address.
const LINK_LAYER_LEN: usize = 8;

/// Length of an encoded frame with its link-layer option, in bytes; without the option it is eight shorter.
pub const MAX_LEN: usize = HEADER_LEN + IPV6_LEN + BODY_LEN + LINK_LAYER_LEN;

/// The solicited-node group that stations with `address` listen to: `ff02::1:ff` and its last 24 bits (RFC 4291 §2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

/// A message of neighbour discovery that concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ndp {
    /// Who has the target address?
    Solicitation(Solicitation),
    /// The target address is here.
    Advertisement(Advertisement),
}

/// A neighbour solicitation together with the frame around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// Ethernet destination.
    pub destination_mac: Mac,
    /// Ethernet source, always a station.
    pub source_mac: Mac,
    /// IPv6 source; unspecified when the sender checks that nobody else has the target (RFC 4862 §5.4).
    pub source: Ipv6Addr,
    /// IPv6 destination: the target itself or its solicited-node group.
    pub destination: Ipv6Addr,
    /// The address asked for, never multicast.
    pub target: Ipv6Addr,
    /// The source link-layer address option, always a station.
    pub source_link_layer: Option<Mac>,
}

/// A neighbour advertisement together with the frame around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Ethernet destination.
    pub destination_mac: Mac,
    /// Ethernet source, always a station.
    pub source_mac: Mac,
    /// IPv6 source.
    pub source: Ipv6Addr,
    /// IPv6 destination.
    pub destination: Ipv6Addr,
    /// R: the sender is a router.
    pub is_router: bool,
    /// S: this answers a solicitation; never set towards a group.
    pub is_solicited: bool,
    /// O: replaces what is cached.
    pub overrides: bool,
    /// The address that is advertised, never multicast.
    pub target: Ipv6Addr,
    /// The target link-layer address option, always a station.
    pub target_link_layer: Option<Mac>,
}

/// Why a frame is not a neighbour solicitation or advertisement for us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The frame around it.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The version field is not 6.
    #[error("IP version is {0}, not 6")]
    Version(u8),
    /// Something else than ICMPv6, or an extension header, follows the IPv6 header.
    #[error("next header is {0}, not ICMPv6 (58)")]
    NextHeader(u8),
    /// The payload length says more than the frame holds, or less than a message needs.
    #[error("payload length {length} does not fit: {available} bytes follow, {BODY_LEN} are needed")]
    PayloadLength {
        /// What the IPv6 header says.
        length: usize,
        /// Bytes there are.
        available: usize,
    },
    /// A router was in between.
    #[error("hop limit is {0}, not 255")]
    HopLimit(u8),
    /// Another ICMPv6 type.
    #[error("ICMPv6 type is {0}, neither solicitation (135) nor advertisement (136)")]
    Type(u8),
    /// The ICMPv6 code is not zero.
    #[error("ICMPv6 code is {0}, not 0")]
    Code(u8),
    /// The ICMPv6 checksum is wrong.
    #[error("checksum is {found:#06x}, not {computed:#06x}")]
    Checksum {
        /// What it says.
        found: u16,
        /// What it should say.
        computed: u16,
    },
    /// The source is multicast, or an advertisement comes from nobody.
    #[error("source {0} is not one a station can have")]
    Source(Ipv6Addr),
    /// The target is multicast or unspecified.
    #[error("target {0} is not one a station can have")]
    Target(Ipv6Addr),
    /// A solicitation from `::` goes to a solicited-node group, no other address (RFC 4861 §7.1.1).
    #[error("duplicate address detection is sent to {0}, which is no solicited-node group")]
    ProbeDestination(Ipv6Addr),
    /// A solicitation from `::` has no hardware address to tell (RFC 4861 §7.1.1).
    #[error("duplicate address detection carries a source link-layer address")]
    ProbeWithLinkLayer,
    /// An advertisement to a group answers nobody (RFC 4861 §7.1.2).
    #[error("advertisement to the group {0} is marked as solicited")]
    SolicitedToGroup(Ipv6Addr),
    /// The options behind it.
    #[error(transparent)]
    Options(#[from] OptionError),
}

/// Why the options of a message cannot be read, which makes all of it void (RFC 4861 §4.6, §6.1, §7.1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// An option says that its length is zero; a reader would never get past it.
    #[error("option of type {0} has length 0")]
    ZeroLength(u8),
    /// An option reaches beyond the message.
    #[error("option of type {option} needs {needed} bytes, {available} are left")]
    Overrun {
        /// Its type; 0 when not even that is there.
        option: u8,
        /// Bytes it claims.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// A link-layer address option of another length than Ethernet's, which is one unit of eight bytes.
    #[error("link-layer address option has length {0}, not 1")]
    LinkLayerLength(u8),
    /// A link-layer address option that names a group, broadcast or zero.
    #[error("link-layer address {0} is not a station")]
    LinkLayer(Mac),
}

/// Reads one frame. Padding after the message and options of other types are ignored.
///
/// # Errors
/// Everything RFC 4861 §7.1 tells a node to discard, by the first field that is wrong.
pub fn decode(frame: &[u8]) -> Result<Ndp, DecodeError> {
    let frame = ethernet::open(frame, EtherTypes::Ipv6, IPV6_LEN)?;
    let header = Ipv6Packet::new(frame.payload).expect("the frame was opened with room for the IPv6 header");
    if header.get_version() != 6 {
        return Err(DecodeError::Version(header.get_version()));
    }
    if header.get_next_header() != IpNextHeaderProtocols::Icmpv6 {
        return Err(DecodeError::NextHeader(header.get_next_header().0));
    }
    let length = usize::from(header.get_payload_length());
    let rest = frame.payload.get(IPV6_LEN..).unwrap_or_default();
    let message = match rest.get(..length) {
        Some(message) if length >= BODY_LEN => message,
        _ => return Err(DecodeError::PayloadLength { length, available: rest.len() }),
    };
    if header.get_hop_limit() != HOP_LIMIT {
        return Err(DecodeError::HopLimit(header.get_hop_limit()));
    }
    let (source, destination) = (header.get_source(), header.get_destination());
    if source.is_multicast() {
        return Err(DecodeError::Source(source));
    }

    let icmp = Icmpv6Packet::new(message).expect("the message is longer than an ICMPv6 header");
    let kind = icmp.get_icmpv6_type();
    if kind != Icmpv6Types::NeighborSolicit && kind != Icmpv6Types::NeighborAdvert {
        return Err(DecodeError::Type(kind.0));
    }
    if icmp.get_icmpv6_code() != Icmpv6Code(0) {
        return Err(DecodeError::Code(icmp.get_icmpv6_code().0));
    }
    let computed = icmpv6::checksum(&icmp, &source, &destination);
    if icmp.get_checksum() != computed {
        return Err(DecodeError::Checksum { found: icmp.get_checksum(), computed });
    }
    let options = message.get(BODY_LEN..).unwrap_or_default();

    if kind == Icmpv6Types::NeighborSolicit {
        let body = NeighborSolicitPacket::new(message).expect("the message is at least as long as both bodies");
        let target = checked_target(body.get_target_addr())?;
        let source_link_layer = link_layer(options, NdpOptionTypes::SourceLLAddr.0)?;
        if source.is_unspecified() {
            if destination != solicited_node(destination) {
                return Err(DecodeError::ProbeDestination(destination));
            }
            if source_link_layer.is_some() {
                return Err(DecodeError::ProbeWithLinkLayer);
            }
        }
        return Ok(Ndp::Solicitation(Solicitation {
            destination_mac: frame.destination,
            source_mac: frame.source,
            source,
            destination,
            target,
            source_link_layer,
        }));
    }

    let body = NeighborAdvertPacket::new(message).expect("the message is at least as long as both bodies");
    let target = checked_target(body.get_target_addr())?;
    let target_link_layer = link_layer(options, NdpOptionTypes::TargetLLAddr.0)?;
    let flags = body.get_flags();
    let is_solicited = flags & NeighborAdvertFlags::Solicited != 0;
    if source.is_unspecified() {
        return Err(DecodeError::Source(source));
    }
    if is_solicited && destination.is_multicast() {
        return Err(DecodeError::SolicitedToGroup(destination));
    }
    Ok(Ndp::Advertisement(Advertisement {
        destination_mac: frame.destination,
        source_mac: frame.source,
        source,
        destination,
        is_router: flags & NeighborAdvertFlags::Router != 0,
        is_solicited,
        overrides: flags & NeighborAdvertFlags::Override != 0,
        target,
        target_link_layer,
    }))
}

fn checked_target(target: Ipv6Addr) -> Result<Ipv6Addr, DecodeError> {
    if target.is_multicast() || target.is_unspecified() {
        return Err(DecodeError::Target(target));
    }
    Ok(target)
}

/// Walks all options and returns the first link-layer address of the wanted type. pnet's own iterator does not refuse
/// a length of zero, so the walk is ours; each step takes at least eight bytes, so it ends.
fn link_layer(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, OptionError> {
    let mut address = None;
    while let Some((&option, rest)) = options.split_first() {
        let overrun = |needed| OptionError::Overrun { option, needed, available: options.len() };
        let Some((&units, _)) = rest.split_first() else {
            return Err(overrun(2));
        };
        if units == 0 {
            return Err(OptionError::ZeroLength(option));
        }
        let length = usize::from(units) * 8;
        let Some((whole, next)) = options.split_at_checked(length) else {
            return Err(overrun(length));
        };
        if option == wanted && address.is_none() {
            let &[_, _, a, b, c, d, e, f] = whole else {
                return Err(OptionError::LinkLayerLength(units));
            };
            let mac = Mac([a, b, c, d, e, f]);
            if !mac.is_station() {
                return Err(OptionError::LinkLayer(mac));
            }
            address = Some(mac);
        }
        options = next;
    }
    Ok(address)
}

impl Solicitation {
    /// The question of a station at `mac` whether anybody has `address`, which tells nobody anything (RFC 4862 §5.4.2).
    pub fn probe(address: Ipv6Addr, mac: Mac) -> Self {
        let group = solicited_node(address);
        Self {
            destination_mac: Mac::of_group(group),
            source_mac: mac,
            source: Ipv6Addr::UNSPECIFIED,
            destination: group,
            target: address,
            source_link_layer: None,
        }
    }

    /// The question of a station that has `source` and is at `mac` where `address` is found (RFC 4861 §7.2.2).
    pub fn request(address: Ipv6Addr, source: Ipv6Addr, mac: Mac) -> Self {
        Self { source, source_link_layer: Some(mac), ..Self::probe(address, mac) }
    }

    /// Whether a station asks if an address is free before it takes it (RFC 4862 §5.4).
    pub fn is_probe(&self) -> bool {
        self.source.is_unspecified()
    }

    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = vec![0; frame_len(self.source_link_layer)];
        let body = write_envelope(&mut frame, self.destination_mac, self.source_mac, self.source, self.destination);
        let mut packet = MutableNeighborSolicitPacket::new(body).expect("the buffer has room for the body");
        packet.set_icmpv6_type(Icmpv6Types::NeighborSolicit);
        packet.set_target_addr(self.target);
        write_link_layer(body, NdpOptionTypes::SourceLLAddr.0, self.source_link_layer);
        write_checksum(body, self.source, self.destination);
        frame
    }
}

impl Advertisement {
    /// The answer to a solicitation: its target is at `mac`. Who checks for duplicates has no address to send to, so
    /// that answer goes to all nodes and is not marked as solicited (RFC 4861 §7.2.4).
    pub fn answer(solicitation: &Solicitation, mac: Mac) -> Self {
        if solicitation.is_probe() {
            return Self::announcement(solicitation.target, mac);
        }
        Self {
            destination_mac: solicitation.source_link_layer.unwrap_or(solicitation.source_mac),
            destination: solicitation.source,
            is_solicited: true,
            ..Self::announcement(solicitation.target, mac)
        }
    }

    /// An unsolicited advertisement to all nodes that `address` is at `mac` (RFC 4861 §7.2.6).
    pub fn announcement(address: Ipv6Addr, mac: Mac) -> Self {
        Self {
            destination_mac: Mac::of_group(ALL_NODES),
            source_mac: mac,
            source: address,
            destination: ALL_NODES,
            is_router: false,
            is_solicited: false,
            overrides: true,
            target: address,
            target_link_layer: Some(mac),
        }
    }

    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = vec![0; frame_len(self.target_link_layer)];
        let body = write_envelope(&mut frame, self.destination_mac, self.source_mac, self.source, self.destination);
        let flag = |set, flag| if set { flag } else { 0 };
        let mut packet = MutableNeighborAdvertPacket::new(body).expect("the buffer has room for the body");
        packet.set_icmpv6_type(Icmpv6Types::NeighborAdvert);
        packet.set_flags(
            flag(self.is_router, NeighborAdvertFlags::Router)
                | flag(self.is_solicited, NeighborAdvertFlags::Solicited)
                | flag(self.overrides, NeighborAdvertFlags::Override),
        );
        packet.set_target_addr(self.target);
        write_link_layer(body, NdpOptionTypes::TargetLLAddr.0, self.target_link_layer);
        write_checksum(body, self.source, self.destination);
        frame
    }
}

impl Ndp {
    /// Which address the sender says is its own, and where that is found: unspecified in a probe, the target of an
    /// advertisement.
    pub fn sender(&self) -> (Ipv6Addr, Mac) {
        match self {
            Self::Solicitation(Solicitation { source, source_mac, source_link_layer, .. }) => {
                (*source, source_link_layer.unwrap_or(*source_mac))
            }
            Self::Advertisement(Advertisement { target, source_mac, target_link_layer, .. }) => {
                (*target, target_link_layer.unwrap_or(*source_mac))
            }
        }
    }

    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Solicitation(solicitation) => solicitation.encode(),
            Self::Advertisement(advertisement) => advertisement.encode(),
        }
    }
}

fn frame_len(link_layer: Option<Mac>) -> usize {
    if link_layer.is_some() { MAX_LEN } else { MAX_LEN - LINK_LAYER_LEN }
}

/// Writes the Ethernet and IPv6 headers and returns what follows them.
fn write_envelope(
    frame: &mut [u8],
    destination_mac: Mac,
    source_mac: Mac,
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> &mut [u8] {
    ethernet::write_header(frame, destination_mac, source_mac, EtherTypes::Ipv6);
    let (_, packet) = frame.split_at_mut(HEADER_LEN);
    let length = packet.len() - IPV6_LEN;
    let mut header = MutableIpv6Packet::new(packet).expect("the buffer has room for the IPv6 header");
    header.set_version(6);
    header.set_payload_length(length as u16);
    header.set_next_header(IpNextHeaderProtocols::Icmpv6);
    header.set_hop_limit(HOP_LIMIT);
    header.set_source(source);
    header.set_destination(destination);
    packet.split_at_mut(IPV6_LEN).1
}

fn write_link_layer(body: &mut [u8], option: u8, address: Option<Mac>) {
    let Some(address) = address else {
        return;
    };
    let (_, place) = body.split_at_mut(BODY_LEN);
    place.copy_from_slice(&link_layer_option(option, address));
}

fn link_layer_option(option: u8, Mac([a, b, c, d, e, f]): Mac) -> [u8; LINK_LAYER_LEN] {
    [option, 1, a, b, c, d, e, f]
}

fn write_checksum(body: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr) {
    let mut packet = MutableIcmpv6Packet::new(body).expect("the buffer has room for an ICMPv6 header");
    packet.set_checksum(0);
    let whole = Icmpv6Packet::new(packet.packet()).expect("it was just written");
    let checksum = icmpv6::checksum(&whole, &source, &destination);
    packet.set_checksum(checksum);
}
