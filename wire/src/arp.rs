//! ARP over Ethernet (RFC 826), with the probes and announcements of RFC 5227.
//!
//! Only what concerns IPv4 on Ethernet is a message here; everything else is a [`DecodeError`] that names the field.

use std::net::Ipv4Addr;

use pnet_packet::{
    arp::{ArpHardwareTypes, ArpOperation, ArpOperations, ArpPacket, MutableArpPacket},
    ethernet::EtherTypes,
};

use crate::ethernet::{self, FrameError, HEADER_LEN, Mac};

const BODY_LEN: usize = ArpPacket::minimum_packet_size();

/// Length of an encoded frame, in bytes. The link pads it.
pub const LEN: usize = HEADER_LEN + BODY_LEN;

/// An ARP message together with the frame around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Ethernet destination.
    pub destination: Mac,
    /// Ethernet source, always a station. Usually the sender's, but proxies differ.
    pub source: Mac,
    /// Request or reply.
    pub operation: Operation,
    /// Sender hardware address, always a station.
    pub sender_mac: Mac,
    /// Sender protocol address: unicast, or unspecified in a probe (RFC 5227 §2.1.1).
    pub sender: Ipv4Addr,
    /// Target hardware address; means nothing in a request.
    pub target_mac: Mac,
    /// Target protocol address.
    pub target: Ipv4Addr,
}

/// What an ARP message asks or says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender address is at the sender hardware address.
    Reply,
}

/// Why a frame is not an ARP message for us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The frame around it.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// `ar$hrd` is not Ethernet (1).
    #[error("hardware type is {0}, not Ethernet (1)")]
    HardwareType(u16),
    /// `ar$pro` is not IPv4.
    #[error("protocol type is {0:#06x}, not IPv4 (0x0800)")]
    ProtocolType(u16),
    /// `ar$hln` is not 6.
    #[error("hardware address length is {0}, not 6")]
    HardwareLength(u8),
    /// `ar$pln` is not 4.
    #[error("protocol address length is {0}, not 4")]
    ProtocolLength(u8),
    /// `ar$op` is neither request nor reply (reverse ARP and the like).
    #[error("operation is {0}, neither request (1) nor reply (2)")]
    Operation(u16),
    /// `ar$sha` is a group, broadcast or zero: nobody to answer, nothing to learn.
    #[error("sender hardware address {0} is not a station")]
    SenderMac(Mac),
    /// `ar$spa` is multicast or broadcast, or it is unspecified in a reply, where it says nothing.
    #[error("sender address {0} is not one a station can have")]
    Sender(Ipv4Addr),
}

/// Reads one frame. Padding after the message is ignored.
///
/// # Errors
/// Everything that is not a well-formed request or reply about IPv4 on Ethernet, by the first field that is wrong.
pub fn decode(frame: &[u8]) -> Result<Arp, DecodeError> {
    let frame = ethernet::open(frame, EtherTypes::Arp, BODY_LEN)?;
    let body = ArpPacket::new(frame.payload).expect("the frame was opened with room for the body");

    let hardware_type = body.get_hardware_type();
    if hardware_type != ArpHardwareTypes::Ethernet {
        return Err(DecodeError::HardwareType(hardware_type.0));
    }
    let protocol_type = body.get_protocol_type();
    if protocol_type != EtherTypes::Ipv4 {
        return Err(DecodeError::ProtocolType(protocol_type.0));
    }
    if body.get_hw_addr_len() != 6 {
        return Err(DecodeError::HardwareLength(body.get_hw_addr_len()));
    }
    if body.get_proto_addr_len() != 4 {
        return Err(DecodeError::ProtocolLength(body.get_proto_addr_len()));
    }
    let operation = match body.get_operation() {
        ArpOperations::Request => Operation::Request,
        ArpOperations::Reply => Operation::Reply,
        ArpOperation(other) => return Err(DecodeError::Operation(other)),
    };
    let sender_mac = Mac(body.get_sender_hw_addr().octets());
    if !sender_mac.is_station() {
        return Err(DecodeError::SenderMac(sender_mac));
    }
    let sender = body.get_sender_proto_addr();
    let says_nothing = sender.is_unspecified() && operation == Operation::Reply;
    if sender.is_multicast() || sender.is_broadcast() || says_nothing {
        return Err(DecodeError::Sender(sender));
    }

    Ok(Arp {
        destination: frame.destination,
        source: frame.source,
        operation,
        sender_mac,
        sender,
        target_mac: Mac(body.get_target_hw_addr().octets()),
        target: body.get_target_proto_addr(),
    })
}

impl Arp {
    /// The unicast answer to a request: its target address is at `mac`.
    pub fn answer(request: &Self, mac: Mac) -> Self {
        Self {
            destination: request.sender_mac,
            source: mac,
            operation: Operation::Reply,
            sender_mac: mac,
            sender: request.target,
            target_mac: request.sender_mac,
            target: request.sender,
        }
    }

    /// The question of a station at `mac` whether anybody has `address`, which tells nobody anything (RFC 5227 §2.1.1).
    pub fn probe(address: Ipv4Addr, mac: Mac) -> Self {
        Self {
            destination: Mac::BROADCAST,
            source: mac,
            operation: Operation::Request,
            sender_mac: mac,
            sender: Ipv4Addr::UNSPECIFIED,
            target_mac: Mac::ZERO,
            target: address,
        }
    }

    /// The question of a station that has `sender` and is at `mac` where `address` is found.
    pub fn request(address: Ipv4Addr, sender: Ipv4Addr, mac: Mac) -> Self {
        Self { sender, ..Self::probe(address, mac) }
    }

    /// An announcement to all stations that `address` is at `mac`, in request form (RFC 5227 §2.3) or in reply form,
    /// from which some devices learn only.
    pub fn announcement(operation: Operation, address: Ipv4Addr, mac: Mac) -> Self {
        Self {
            destination: Mac::BROADCAST,
            source: mac,
            operation,
            sender_mac: mac,
            sender: address,
            target_mac: Mac::BROADCAST,
            target: address,
        }
    }

    /// Whether a station asks if an address is free before it takes it (RFC 5227 §2.1.1).
    pub fn is_probe(&self) -> bool {
        self.operation == Operation::Request && self.sender.is_unspecified()
    }

    /// The frame, without padding.
    pub fn encode(&self) -> [u8; LEN] {
        let mut frame = [0; LEN];
        ethernet::write_header(&mut frame, self.destination, self.source, EtherTypes::Arp);
        let (_, body) = frame.split_at_mut(HEADER_LEN);
        let mut body = MutableArpPacket::new(body).expect("the rest of the frame is exactly the body");
        body.set_hardware_type(ArpHardwareTypes::Ethernet);
        body.set_protocol_type(EtherTypes::Ipv4);
        body.set_hw_addr_len(6);
        body.set_proto_addr_len(4);
        body.set_operation(match self.operation {
            Operation::Request => ArpOperations::Request,
            Operation::Reply => ArpOperations::Reply,
        });
        body.set_sender_hw_addr(self.sender_mac.0.into());
        body.set_sender_proto_addr(self.sender);
        body.set_target_hw_addr(self.target_mac.0.into());
        body.set_target_proto_addr(self.target);
        frame
    }
}
