//! The Ethernet II header that ARP and neighbour discovery arrive in, and hardware addresses.

use std::{fmt, net::Ipv6Addr};

use pnet_packet::{
    Packet,
    ethernet::{EtherType, EtherTypes, EthernetPacket, MutableEthernetPacket},
};

/// Length of the header: two addresses and the EtherType.
pub const HEADER_LEN: usize = EthernetPacket::minimum_packet_size();

/// The longest frame that is looked at, in bytes: a header and the classic MTU of 1500. ARP and neighbour discovery
/// are far shorter, on jumbo links too; what is longer only costs time.
pub const MAX_FRAME_LEN: usize = HEADER_LEN + 1500;

/// A hardware address of Ethernet, shown as `02:00:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// No station; stands for "not known" in an ARP request.
    pub const ZERO: Self = Self([0; 6]);

    /// The group that carries an IPv6 multicast destination: `33:33` and its last four bytes (RFC 2464 §7).
    pub fn of_group(group: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = group.octets();
        Self([0x33, 0x33, a, b, c, d])
    }

    /// Whether it names a group of stations (broadcast is one) rather than a single one.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether it names a single station and is not zero, so that a frame can come from it.
    pub fn is_station(self) -> bool {
        !self.is_group() && self != Self::ZERO
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, last] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{last:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why the frame around a message cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than the message it should carry.
    #[error("frame of {found} bytes is truncated, at least {needed} are needed")]
    Truncated {
        /// Bytes there are.
        found: usize,
        /// Bytes that are needed.
        needed: usize,
    },
    /// Longer than [`MAX_FRAME_LEN`].
    #[error("frame of {found} bytes is oversized, at most {MAX_FRAME_LEN} are looked at")]
    Oversized {
        /// Bytes there are.
        found: usize,
    },
    /// Carries a VLAN tag (802.1Q or 802.1ad): it belongs to another network than the untagged link.
    #[error("frame is VLAN-tagged")]
    VlanTagged,
    /// Another EtherType than the one asked for.
    #[error("EtherType is {found:#06x}, not {expected:#06x}")]
    EtherType {
        /// What it says.
        found: u16,
        /// What it should say.
        expected: u16,
    },
    /// A frame cannot come from a group, from broadcast or from nobody.
    #[error("source address {0} is not a station")]
    Source(Mac),
}

/// The parts of a frame, once it is known to be one of ours.
pub(crate) struct Frame<'a> {
    pub(crate) destination: Mac,
    pub(crate) source: Mac,
    /// At least as long as was asked for; may end with padding.
    pub(crate) payload: &'a [u8],
}

/// Opens a frame of the given type whose payload is at least `payload_len` bytes.
pub(crate) fn open(bytes: &[u8], expected: EtherType, payload_len: usize) -> Result<Frame<'_>, FrameError> {
    let found = bytes.len();
    if found > MAX_FRAME_LEN {
        return Err(FrameError::Oversized { found });
    }
    let truncated = FrameError::Truncated { found, needed: HEADER_LEN + payload_len };
    let Some(header) = EthernetPacket::new(bytes) else {
        return Err(truncated);
    };
    match header.get_ethertype() {
        found if found == expected => {}
        EtherTypes::Vlan | EtherTypes::PBridge | EtherTypes::QinQ => return Err(FrameError::VlanTagged),
        found => return Err(FrameError::EtherType { found: found.0, expected: expected.0 }),
    }
    let payload = bytes.get(HEADER_LEN..).unwrap_or_default();
    if payload.len() < payload_len {
        return Err(truncated);
    }
    let source = Mac(header.get_source().octets());
    if !source.is_station() {
        return Err(FrameError::Source(source));
    }
    Ok(Frame { destination: Mac(header.get_destination().octets()), source, payload })
}

/// Writes the header at the start of `bytes`, which must have room for it.
pub(crate) fn write_header(bytes: &mut [u8], destination: Mac, source: Mac, ether_type: EtherType) {
    let mut header = MutableEthernetPacket::new(bytes).expect("every buffer of this crate has room for a header");
    header.set_destination(destination.0.into());
    header.set_source(source.0.into());
    header.set_ethertype(ether_type);
    debug_assert!(header.packet().len() >= HEADER_LEN);
}
