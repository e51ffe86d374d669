//! BGP messages (RFC 4271 §4): the only file that names bgp-rs.
//!
//! bgp-rs writes our OPEN, KEEPALIVE and NOTIFICATION and reads NOTIFICATIONs, which it does without fault. It must not
//! see a peer's OPEN (an address family it does not know makes it refuse the whole message) nor a peer's UPDATE (crafted
//! ones make it panic), and it writes paths of two octets where four were agreed; so [`frame`], the decoder of OPEN, and
//! UPDATE and ROUTE-REFRESH in both directions are ours. Types of bgp-rs do not leave this file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    num::NonZeroU32,
};

use bgp_rs::{AFI, OpenCapability, OpenParameter, SAFI};

pub mod frame;
mod message;
mod open;
mod update;

pub use message::{Message, MessageError, Refresh, route_refresh};
pub use open::OpenError;
pub use update::{AttributeFault, Attributes, Dialect, NextHop, Update, UpdateError, announce, end_of_rib, withdraw};

/// What a route leads to: an IPv4 or IPv6 network whose host bits are zero.
pub type Prefix = ipnetwork::IpNetwork;

/// The version we speak.
pub const VERSION: u8 = 4;

/// Stands in the two octets of an OPEN for an AS number that does not fit them (RFC 6793).
const AS_TRANS: u16 = 23456;

/// Codes of the capabilities we know.
mod capability {
    pub const MULTIPROTOCOL: u8 = 1;
    pub const ROUTE_REFRESH: u8 = 2;
    pub const EXTENDED_NEXT_HOP: u8 = 5;
    pub const EXTENDED_MESSAGE: u8 = 6;
    pub const ROLE: u8 = 9;
    pub const GRACEFUL_RESTART: u8 = 64;
    pub const FOUR_OCTET_ASN: u8 = 65;
    pub const ENHANCED_ROUTE_REFRESH: u8 = 70;
}

/// An AS number, 1 to 4294967295 (RFC 6793, 7607).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asn(NonZeroU32);

impl Asn {
    /// The AS with this number, or `None` for 0.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Asn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Asn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AS{}", self.0)
    }
}

/// A BGP identifier: any number but 0, shown as an IPv4 address, compared as a number (RFC 6286).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BgpIdentifier(NonZeroU32);

impl BgpIdentifier {
    /// The identifier with this number, or `None` for 0.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for BgpIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from_bits(self.get()).fmt(f)
    }
}

impl fmt::Debug for BgpIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A hold time: for ever, or 3 to 65535 seconds (RFC 4271 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HoldTime(u16);

impl HoldTime {
    /// A hold time of so many seconds, 0 standing for ever; `None` for 1 and 2.
    pub fn from_seconds(seconds: u16) -> Option<Self> {
        (!matches!(seconds, 1 | 2)).then_some(Self(seconds))
    }

    /// Seconds; 0 stands for ever.
    pub fn seconds(self) -> u16 {
        self.0
    }

    /// What two sides keep to of which each proposed one: the smaller number (RFC 4271 §4.2).
    pub fn agreed(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }
}

/// An address family and subsequent address family that we carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    Ipv6Unicast,
}

impl Family {
    /// Both, in the order of their codes.
    pub const ALL: [Self; 2] = [Self::Ipv4Unicast, Self::Ipv6Unicast];

    /// The family that `prefix` belongs to.
    pub fn of(prefix: &Prefix) -> Self {
        if prefix.is_ipv4() { Self::Ipv4Unicast } else { Self::Ipv6Unicast }
    }

    fn from_codes(afi: u16, safi: u8) -> Option<Self> {
        match (afi, safi) {
            (1, 1) => Some(Self::Ipv4Unicast),
            (2, 1) => Some(Self::Ipv6Unicast),
            _ => None,
        }
    }

    fn afi(self) -> AFI {
        match self {
            Self::Ipv4Unicast => AFI::IPV4,
            Self::Ipv6Unicast => AFI::IPV6,
        }
    }

    fn afi_octets(self) -> [u8; 2] {
        (self.afi() as u16).to_be_bytes()
    }

    /// AFI and SAFI.
    fn octets(self) -> [u8; 3] {
        let [high, low] = self.afi_octets();
        [high, low, SAFI::Unicast as u8]
    }
}

/// OPEN: who is there, and what it can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The sender's AS number: that of the four-octet capability where it was sent.
    pub asn: Asn,
    /// The hold time the sender proposes.
    pub hold_time: HoldTime,
    /// The sender's identifier.
    pub identifier: BgpIdentifier,
    /// What the sender can do, so far as we know it.
    pub capabilities: Capabilities,
}

/// Capabilities we know (RFC 5492).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Families by the multiprotocol capability (1). `None`: it was not sent, which means IPv4 unicast only.
    /// `Some` of none: it was sent, but for families unknown to us.
    pub families: Option<BTreeSet<Family>>,
    /// Route refresh (2).
    pub route_refresh: bool,
    /// Next hops of another family than the prefix (5, RFC 8950).
    pub extended_next_hop: BTreeSet<ExtendedNextHop>,
    /// Messages up to 65535 bytes (6, RFC 8654).
    pub extended_message: bool,
    /// What the sender is to its peer (9, RFC 9234); `None` also for a role that we do not know.
    pub role: Option<Role>,
    /// Graceful restart (64, RFC 4724).
    pub graceful_restart: Option<GracefulRestart>,
    /// AS numbers of four octets (65, RFC 6793). The number itself is [`Open::asn`].
    pub four_octet_asn: bool,
    /// Enhanced route refresh (70, RFC 7313).
    pub enhanced_route_refresh: bool,
}

/// A family whose prefixes may have next hops of another family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtendedNextHop {
    /// Of the prefixes.
    pub family: Family,
    /// Of the next hop.
    pub next_hop: Family,
}

/// What the sender of an OPEN is to its peer (RFC 9234 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Sells transit to the peer.
    Provider = 0,
    /// Passes routes on between its clients.
    RouteServer = 1,
    /// Client of a route server.
    RouteServerClient = 2,
    /// Buys transit from the peer.
    Customer = 3,
    /// Exchanges its own routes and those of its customers.
    Peer = 4,
}

impl Role {
    /// Whether a session may be between this role and that of the other side (RFC 9234 §4.2, table 2).
    pub fn fits(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Provider, Self::Customer)
                | (Self::Customer, Self::Provider)
                | (Self::RouteServer, Self::RouteServerClient)
                | (Self::RouteServerClient, Self::RouteServer)
                | (Self::Peer, Self::Peer)
        )
    }

    fn from_code(code: u8) -> Option<Self> {
        let roles = [Self::Provider, Self::RouteServer, Self::RouteServerClient, Self::Customer, Self::Peer];
        roles.into_iter().find(|&role| role as u8 == code)
    }
}

/// The graceful restart capability (RFC 4724 §3, RFC 8538 §2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GracefulRestart {
    /// R: the sender has restarted.
    pub restarting: bool,
    /// N: a NOTIFICATION starts a graceful restart as well.
    pub notification: bool,
    /// How long the sender's return may take, 0 to [`GracefulRestart::MAX_SECONDS`]; only the low 12 bits are sent.
    pub restart_time_seconds: u16,
    /// The families it covers, and for each whether forwarding was kept (F).
    pub forwarding: BTreeMap<Family, bool>,
}

impl GracefulRestart {
    /// The longest restart time that fits the capability.
    pub const MAX_SECONDS: u16 = 0x0fff;
}

impl Open {
    /// Reads the body of an OPEN.
    ///
    /// # Errors
    /// What breaks the message as such; whether the peer is the one that was configured is not judged here.
    pub fn decode(body: &[u8]) -> Result<Self, OpenError> {
        open::decode(body)
    }

    /// The message with its header.
    pub fn encode(&self) -> Vec<u8> {
        let raw = |code, value: Vec<u8>| OpenCapability::Unknown {
            cap_code: code,
            cap_length: u8::try_from(value.len()).expect("two families do not fill a capability"),
            value,
        };
        let ours = &self.capabilities;
        let mut sent = Vec::new();
        for family in ours.families.iter().flatten() {
            sent.push(OpenCapability::MultiProtocol((family.afi(), SAFI::Unicast)));
        }
        if ours.route_refresh {
            sent.push(OpenCapability::RouteRefresh);
        }
        if !ours.extended_next_hop.is_empty() {
            let tuple = |hop: &ExtendedNextHop| {
                let ([a, b, safi], [c, d]) = (hop.family.octets(), hop.next_hop.afi_octets());
                [a, b, 0, safi, c, d]
            };
            sent.push(raw(capability::EXTENDED_NEXT_HOP, ours.extended_next_hop.iter().flat_map(tuple).collect()));
        }
        if ours.extended_message {
            sent.push(raw(capability::EXTENDED_MESSAGE, Vec::new()));
        }
        if let Some(role) = ours.role {
            sent.push(raw(capability::ROLE, vec![role as u8]));
        }
        if let Some(restart) = &ours.graceful_restart {
            sent.push(raw(capability::GRACEFUL_RESTART, restart.value()));
        }
        if ours.four_octet_asn {
            sent.push(OpenCapability::FourByteASN(self.asn.get()));
        }
        if ours.enhanced_route_refresh {
            sent.push(raw(capability::ENHANCED_ROUTE_REFRESH, Vec::new()));
        }
        encode(bgp_rs::Message::Open(bgp_rs::Open {
            version: VERSION,
            peer_asn: u16::try_from(self.asn.get()).unwrap_or(AS_TRANS),
            hold_timer: self.hold_time.seconds(),
            identifier: self.identifier.get(),
            parameters: vec![OpenParameter::Capabilities(sent)],
        }))
    }
}

impl GracefulRestart {
    fn value(&self) -> Vec<u8> {
        let flags = u16::from(self.restarting) << 15 | u16::from(self.notification) << 14;
        let mut value = (flags | self.restart_time_seconds & Self::MAX_SECONDS).to_be_bytes().to_vec();
        for (family, &kept) in &self.forwarding {
            value.extend(family.octets());
            value.push(if kept { 0x80 } else { 0 });
        }
        value
    }
}

/// A KEEPALIVE with its header; it has no body.
pub fn keepalive() -> Vec<u8> {
    encode(bgp_rs::Message::KeepAlive)
}

/// NOTIFICATION: why a session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Error code.
    pub code: u8,
    /// Error subcode; 0 where the code has none.
    pub subcode: u8,
    /// What explains them further, at most [`Notification::MAX_DATA_LEN`] bytes when it is ours.
    pub data: Vec<u8>,
}

/// Subcodes of Cease, error code 6 (RFC 4486, 8538, 9384).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cease {
    /// More prefixes arrived than are allowed.
    MaximumPrefixes = 1,
    /// Somebody turned the session off.
    AdministrativeShutdown = 2,
    /// The peer is no longer configured.
    PeerDeconfigured = 3,
    /// Somebody restarts the session.
    AdministrativeReset = 4,
    /// The connection is not wanted.
    ConnectionRejected = 5,
    /// The configuration of the peer changed.
    OtherConfigurationChange = 6,
    /// Another connection to the same peer is kept.
    ConnectionCollision = 7,
    /// Out of resources.
    OutOfResources = 8,
    /// The end is final: no graceful restart.
    HardReset = 9,
    /// BFD says that the peer is gone.
    BfdDown = 10,
}

/// States in which a message can come out of turn: the subcodes of the finite state machine error, error code 5
/// (RFC 6608).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutOfTurn {
    /// Anything but an OPEN while it is waited for.
    OpenSent = 1,
    /// Anything but a KEEPALIVE while it is waited for.
    OpenConfirm = 2,
    /// An OPEN in a session that is up.
    Established = 3,
}

/// Why the text in a NOTIFICATION cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The length octet does not fit what follows it.
    #[error("a text of {length} bytes is announced and {present} bytes are there")]
    Length {
        /// What the length octet says.
        length: u8,
        /// How many bytes follow it.
        present: usize,
    },
    /// It is not UTF-8.
    #[error("the text is not UTF-8")]
    NotUtf8,
}

impl Notification {
    /// The most data that fits a message of ordinary length.
    pub const MAX_DATA_LEN: usize = frame::MAX_LEN - frame::HEADER_LEN - 2;

    const CEASE: u8 = 6;
    const MAX_TEXT_LEN: usize = 255;

    /// A NOTIFICATION of any kind.
    pub fn new(code: u8, subcode: u8, data: impl Into<Vec<u8>>) -> Self {
        Self { code, subcode, data: data.into() }
    }

    /// The peer's AS is not the configured one, or none at all (RFC 4271 §6.2).
    pub fn bad_peer_as() -> Self {
        Self::new(2, 2, [])
    }

    /// The peer's identifier is 0 or, inside one AS, ours (RFC 6286 §2.2).
    pub fn bad_identifier() -> Self {
        Self::new(2, 3, [])
    }

    /// The peer's role does not fit ours or contradicts itself (RFC 9234 §4.2).
    pub fn role_mismatch() -> Self {
        Self::new(2, 11, [])
    }

    /// Nothing arrived for the hold time (RFC 4271 §6.5).
    pub fn hold_timer_expired() -> Self {
        Self::new(4, 0, [])
    }

    /// A message came that this state does not take (RFC 6608).
    pub fn out_of_turn(state: OutOfTurn) -> Self {
        Self::new(5, state as u8, [])
    }

    /// Nothing could be sent for the send hold time (RFC 9687). To be sent only where that delays nothing: the peer does
    /// not read.
    pub fn send_hold_timer_expired() -> Self {
        Self::new(8, 0, [])
    }

    /// A Cease without further data.
    pub fn cease(reason: Cease) -> Self {
        Self::new(Self::CEASE, reason as u8, [])
    }

    /// A Cease that tells people why (RFC 9003), cut to 255 bytes at a character. Other reasons than a shutdown or a
    /// reset carry no text.
    pub fn cease_with_text(reason: Cease, text: &str) -> Self {
        let mut notification = Self::cease(reason);
        if notification.carries_text() {
            let text = &text[..text.floor_char_boundary(Self::MAX_TEXT_LEN)];
            notification.data.push(u8::try_from(text.len()).expect("the text was cut to 255 bytes"));
            notification.data.extend(text.as_bytes());
        }
        notification
    }

    /// A Cease/9 around the real reason, which ends the session even where a NOTIFICATION starts a graceful restart
    /// (RFC 8538 §3.1).
    pub fn hard_reset(reason: &Self) -> Self {
        let mut data = vec![reason.code, reason.subcode];
        data.extend(&reason.data);
        Self::new(Self::CEASE, Cease::HardReset as u8, data)
    }

    /// The real reason inside a hard reset.
    pub fn hard_reset_reason(&self) -> Option<Self> {
        match self.data[..] {
            [code, subcode, ref data @ ..] if self.is_cease(Cease::HardReset) => Some(Self::new(code, subcode, data)),
            _ => None,
        }
    }

    /// The text for people, where there is one; what is wrong with it is worth a word in the log and nothing more.
    pub fn text(&self) -> Option<Result<&str, TextError>> {
        let (&length, text) = self.data.split_first().filter(|_| self.carries_text())?;
        if text.len() != usize::from(length) {
            return Some(Err(TextError::Length { length, present: text.len() }));
        }
        Some(std::str::from_utf8(text).map_err(|_| TextError::NotUtf8))
    }

    fn is_cease(&self, reason: Cease) -> bool {
        self.code == Self::CEASE && self.subcode == reason as u8
    }

    fn carries_text(&self) -> bool {
        self.is_cease(Cease::AdministrativeShutdown) || self.is_cease(Cease::AdministrativeReset)
    }

    /// Reads the body of a NOTIFICATION; `None` when even the two codes are missing.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let header = bgp_rs::Header {
            marker: [0xff; 16],
            length: u16::try_from(frame::HEADER_LEN + body.len()).ok()?,
            record_type: 3,
        };
        let read = bgp_rs::Notification::parse(&header, &mut &body[..]).ok()?;
        Some(Self::new(read.major_err_code, read.minor_err_code, read.data))
    }

    /// The message with its header. Data beyond [`Self::MAX_DATA_LEN`] is left off.
    pub fn encode(&self) -> Vec<u8> {
        encode(bgp_rs::Message::Notification(bgp_rs::Notification {
            major_err_code: self.code,
            minor_err_code: self.subcode,
            data: self.data.iter().copied().take(Self::MAX_DATA_LEN).collect(),
        }))
    }
}

/// Code, subcode and what they mean, as a person would note them; text of the peer is quoted.
impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match (self.code, self.subcode) {
            (1, 1) => "connection not synchronized",
            (1, 2) => "bad message length",
            (1, 3) => "bad message type",
            (1, _) => "message header error",
            (2, 1) => "unsupported version",
            (2, 2) => "bad peer AS",
            (2, 3) => "bad BGP identifier",
            (2, 4) => "unsupported optional parameter",
            (2, 6) => "unacceptable hold time",
            (2, 7) => "unsupported capability",
            (2, 11) => "role mismatch",
            (2, _) => "OPEN message error",
            (3, 1) => "malformed attribute list",
            (3, 9) => "optional attribute error",
            (3, 10) => "invalid network field",
            (3, _) => "UPDATE message error",
            (4, _) => "hold timer expired",
            (5, 1) => "unexpected message in OpenSent",
            (5, 2) => "unexpected message in OpenConfirm",
            (5, 3) => "unexpected message in Established",
            (5, _) => "finite state machine error",
            (6, 1) => "maximum number of prefixes reached",
            (6, 2) => "administrative shutdown",
            (6, 3) => "peer deconfigured",
            (6, 4) => "administrative reset",
            (6, 5) => "connection rejected",
            (6, 6) => "other configuration change",
            (6, 7) => "connection collision",
            (6, 8) => "out of resources",
            (6, 9) => "hard reset",
            (6, 10) => "BFD down",
            (6, _) => "cease",
            (7, 1) => "invalid ROUTE-REFRESH length",
            (7, _) => "ROUTE-REFRESH message error",
            (8, _) => "send hold timer expired",
            _ => "unknown error",
        };
        write!(f, "{}/{} {meaning}", self.code, self.subcode)?;
        if let Some(reason) = self.hard_reset_reason() {
            // Only one level: the inner text of a peer could nest for ever.
            write!(f, " ({}/{})", reason.code, reason.subcode)?;
        }
        match self.text() {
            Some(Ok(text)) if !text.is_empty() => write!(f, ": {text:?}"),
            Some(Err(fault)) => write!(f, ": {fault}"),
            _ => Ok(()),
        }
    }
}

fn encode(message: bgp_rs::Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    message.encode(&mut bytes).expect("our messages keep to the limits of their fields");
    bytes
}
