//! The heartbeat speakers send each other over UDP.
//!
//! A datagram is one heartbeat, in network byte order:
//!
//! ```text
//! magic "FGHB" | version 1 | flags | incarnation u64 | sequence u64 | yielded u32
//! | node name: length u8, bytes | number of links u8 | each link: flags, name length u8, bytes
//! | with the flag for it: number of refused ports u8 | each port u16
//! ```
//!
//! Flags that this version does not know are ignored, so that a later one may add some; anything else that differs
//! is a [`DecodeError`]. Whether the sender may be believed is not judged here.

use std::num::NonZeroU16;

/// The longest heartbeat, in bytes. It fits into one datagram on every link that carries IPv6 (RFC 8200 §5).
pub const MAX_LEN: usize = HEAD_LEN + 1 + MAX_NODE_LEN + 1 + MAX_LINKS * (2 + MAX_LINK_LEN) + 1 + MAX_REFUSED * 2;

/// The longest node name, in bytes (a DNS subdomain, RFC 1123).
pub const MAX_NODE_LEN: usize = 253;

/// The longest interface name, in bytes (`IFNAMSIZ` without its end mark).
pub const MAX_LINK_LEN: usize = 15;

/// How many links a heartbeat can tell about.
pub const MAX_LINKS: usize = 48;

/// How many refused ports a heartbeat can name.
pub const MAX_REFUSED: usize = 64;

const MAGIC: [u8; 4] = *b"FGHB";
const VERSION: u8 = 1;
const HEAD_LEN: usize = 4 + 1 + 1 + 8 + 8 + 4;

const FLAG_PROXY_READY: u8 = 1 << 0;
const FLAG_LEAVING: u8 = 1 << 1;
const FLAG_REFUSES: u8 = 1 << 2;
const FLAG_REFUSES_ALL: u8 = 1 << 3;
const LINK_IPV4: u8 = 1 << 0;
const LINK_IPV6: u8 = 1 << 1;

/// What a speaker says about itself, many times a second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// The sender's node, 1 to [`MAX_NODE_LEN`] bytes.
    pub node: String,
    /// Which life of the sender this is; a later start has a greater number.
    pub incarnation: u64,
    /// Counts the heartbeats of one life to anyone, upwards.
    pub sequence: u64,
    /// How often the sender has left addresses to the receiver, in this life; wraps around.
    pub yielded: u32,
    /// The proxy of the sender's node is ready.
    pub proxy_ready: bool,
    /// The sender is stopping and wants no address any more.
    pub leaving: bool,
    /// Interfaces the sender could announce on, at most [`MAX_LINKS`].
    pub links: Vec<Link>,
    /// Health check ports that the kube-proxy of the sender's node does not agree to, at most [`MAX_REFUSED`].
    pub refused: Box<[NonZeroU16]>,
    /// There are more of them than can be named.
    pub refuses_all: bool,
}

/// An interface one could announce on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name, 1 to [`MAX_LINK_LEN`] bytes.
    pub name: String,
    /// It carries ARP.
    pub ipv4: bool,
    /// It carries neighbour discovery.
    pub ipv6: bool,
}

/// Why a heartbeat cannot be put into bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The node name is empty or too long.
    #[error("node name of {0} bytes, 1 to {MAX_NODE_LEN} are allowed")]
    NodeLength(usize),
    /// An interface name is empty or too long.
    #[error("interface name of {0} bytes, 1 to {MAX_LINK_LEN} are allowed")]
    LinkLength(usize),
    /// Too many links.
    #[error("{0} links, at most {MAX_LINKS} are allowed")]
    TooManyLinks(usize),
    /// Too many refused ports.
    #[error("{0} refused ports, at most {MAX_REFUSED} are allowed")]
    TooManyRefused(usize),
}

/// Why bytes are not a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The datagram ends too early.
    #[error("truncated")]
    Truncated,
    /// It does not begin as a heartbeat does.
    #[error("not a heartbeat")]
    Magic,
    /// A version we do not speak.
    #[error("version {0}, only {VERSION} is spoken here")]
    Version(u8),
    /// A name that is empty or too long.
    #[error("name of {0} bytes")]
    NameLength(u8),
    /// A name that is not UTF-8.
    #[error("name is not UTF-8")]
    NameEncoding,
    /// Too many links.
    #[error("{0} links, at most {MAX_LINKS} are allowed")]
    TooManyLinks(u8),
    /// Too many refused ports.
    #[error("{0} refused ports, at most {MAX_REFUSED} are allowed")]
    TooManyRefused(u8),
    /// A port that is none.
    #[error("port 0")]
    Port,
    /// The datagram goes on after its end.
    #[error("{0} bytes after the end")]
    TrailingBytes(usize),
}

impl Heartbeat {
    /// The datagram, at most [`MAX_LEN`] bytes.
    ///
    /// # Errors
    /// When a name or the list of links is outside its bounds.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = Vec::with_capacity(MAX_LEN);
        bytes.extend(MAGIC);
        bytes.push(VERSION);
        let refuses = flag(!self.refused.is_empty(), FLAG_REFUSES) | flag(self.refuses_all, FLAG_REFUSES_ALL);
        bytes.push(flag(self.proxy_ready, FLAG_PROXY_READY) | flag(self.leaving, FLAG_LEAVING) | refuses);
        bytes.extend(self.incarnation.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.yielded.to_be_bytes());
        bytes.push(name_len(&self.node, MAX_NODE_LEN).ok_or(EncodeError::NodeLength(self.node.len()))?);
        bytes.extend(self.node.as_bytes());
        let count = u8::try_from(self.links.len()).ok().filter(|&count| usize::from(count) <= MAX_LINKS);
        bytes.push(count.ok_or(EncodeError::TooManyLinks(self.links.len()))?);
        for link in &self.links {
            bytes.push(flag(link.ipv4, LINK_IPV4) | flag(link.ipv6, LINK_IPV6));
            bytes.push(name_len(&link.name, MAX_LINK_LEN).ok_or(EncodeError::LinkLength(link.name.len()))?);
            bytes.extend(link.name.as_bytes());
        }
        if !self.refused.is_empty() {
            let count = u8::try_from(self.refused.len()).ok().filter(|&count| usize::from(count) <= MAX_REFUSED);
            bytes.push(count.ok_or(EncodeError::TooManyRefused(self.refused.len()))?);
            bytes.extend(self.refused.iter().flat_map(|port| port.get().to_be_bytes()));
        }
        Ok(bytes)
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// Everything that [`encode`](Self::encode) would not have written, but for unknown flags.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { rest: bytes };
        if reader.array()? != MAGIC {
            return Err(DecodeError::Magic);
        }
        match reader.byte()? {
            VERSION => {}
            other => return Err(DecodeError::Version(other)),
        }
        let flags = reader.byte()?;
        let incarnation = u64::from_be_bytes(reader.array()?);
        let sequence = u64::from_be_bytes(reader.array()?);
        let yielded = u32::from_be_bytes(reader.array()?);
        let node = reader.name(MAX_NODE_LEN)?;
        let count = reader.byte()?;
        if usize::from(count) > MAX_LINKS {
            return Err(DecodeError::TooManyLinks(count));
        }
        let mut links = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let flags = reader.byte()?;
            let name = reader.name(MAX_LINK_LEN)?;
            links.push(Link { name, ipv4: flags & LINK_IPV4 != 0, ipv6: flags & LINK_IPV6 != 0 });
        }
        let mut refused = Vec::new();
        if flags & FLAG_REFUSES != 0 {
            let count = reader.byte()?;
            if usize::from(count) > MAX_REFUSED {
                return Err(DecodeError::TooManyRefused(count));
            }
            for _ in 0..count {
                refused.push(NonZeroU16::new(u16::from_be_bytes(reader.array()?)).ok_or(DecodeError::Port)?);
            }
        }
        if !reader.rest.is_empty() {
            return Err(DecodeError::TrailingBytes(reader.rest.len()));
        }
        Ok(Self {
            node,
            incarnation,
            sequence,
            yielded,
            proxy_ready: flags & FLAG_PROXY_READY != 0,
            leaving: flags & FLAG_LEAVING != 0,
            links,
            refused: refused.into(),
            refuses_all: flags & FLAG_REFUSES_ALL != 0,
        })
    }
}

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn name_len(name: &str, max: usize) -> Option<u8> {
    u8::try_from(name.len()).ok().filter(|&length| length > 0 && usize::from(length) <= max)
}

/// Takes bytes from the front, never beyond the end.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[byte]| byte)
    }

    fn name(&mut self, max: usize) -> Result<String, DecodeError> {
        let length = self.byte()?;
        if length == 0 || usize::from(length) > max {
            return Err(DecodeError::NameLength(length));
        }
        let (name, rest) = self.rest.split_at_checked(usize::from(length)).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        std::str::from_utf8(name).map(str::to_owned).map_err(|_| DecodeError::NameEncoding)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By hand, from the picture in the module's documentation.
    const VECTOR: &[u8] = b"FGHB\x01\x03\
        \x00\x00\x00\x00\x00\x00\x00\x07\
        \x00\x00\x00\x00\x00\x00\x01\x02\
        \x00\x00\x00\x05\
        \x06node-a\
        \x02\x03\x04eth0\x01\x04eth1";

    fn value() -> Heartbeat {
        Heartbeat {
            node: "node-a".to_owned(),
            incarnation: 7,
            sequence: 258,
            yielded: 5,
            proxy_ready: true,
            leaving: true,
            links: vec![
                Link { name: "eth0".to_owned(), ipv4: true, ipv6: true },
                Link { name: "eth1".to_owned(), ipv4: true, ipv6: false },
            ],
            refused: Box::default(),
            refuses_all: false,
        }
    }

    #[test]
    fn the_vector_stands_for_its_value_both_ways() {
        assert_eq!(value().encode().unwrap(), VECTOR);
        assert_eq!(Heartbeat::decode(VECTOR), Ok(value()));
    }

    #[test]
    fn every_truncation_is_refused() {
        for length in 0..VECTOR.len() {
            assert_eq!(Heartbeat::decode(&VECTOR[..length]), Err(DecodeError::Truncated), "{length} bytes");
        }
    }

    #[test]
    fn what_is_not_a_heartbeat_is_refused_by_its_first_fault() {
        let with = |at: usize, byte: u8| {
            let mut bytes = VECTOR.to_vec();
            bytes[at] = byte;
            Heartbeat::decode(&bytes)
        };

        assert_eq!(with(0, b'X'), Err(DecodeError::Magic));
        assert_eq!(with(4, 2), Err(DecodeError::Version(2)));
        assert_eq!(with(26, 0), Err(DecodeError::NameLength(0)));
        assert_eq!(with(26, 254), Err(DecodeError::NameLength(254)));
        assert_eq!(with(27, 0xff), Err(DecodeError::NameEncoding));
        assert_eq!(with(33, 49), Err(DecodeError::TooManyLinks(49)));
        assert_eq!(with(35, 16), Err(DecodeError::NameLength(16)));
        assert_eq!(Heartbeat::decode(&[VECTOR, b"!"].concat()), Err(DecodeError::TrailingBytes(1)));
    }

    #[test]
    fn refused_ports_stand_behind_the_links_and_only_where_there_are_some() {
        let port = |number| NonZeroU16::new(number).unwrap();
        let refusing = Heartbeat { refused: [port(30_000), port(258)].into(), ..value() };

        let bytes = refusing.encode().unwrap();

        assert_eq!(bytes[5], VECTOR[5] | 0b0100);
        assert_eq!(bytes[VECTOR.len()..], [2, 0x75, 0x30, 1, 2]);
        assert_eq!(Heartbeat::decode(&bytes), Ok(refusing));
        let with = |tail: &[u8]| Heartbeat::decode(&[&bytes[..VECTOR.len()], tail].concat());
        assert_eq!(with(&[1, 0, 0]), Err(DecodeError::Port));
        assert_eq!(with(&[65]), Err(DecodeError::TooManyRefused(65)));
        let many = Heartbeat { refused: vec![port(1); 65].into(), ..value() };
        assert_eq!(many.encode(), Err(EncodeError::TooManyRefused(65)));
    }

    #[test]
    fn flags_of_a_later_version_are_ignored() {
        let mut bytes = VECTOR.to_vec();
        bytes[5] |= 0xf0;

        assert_eq!(Heartbeat::decode(&bytes), Ok(value()));
    }

    #[test]
    fn what_does_not_fit_is_not_encoded() {
        let link = Link { name: "eth0".to_owned(), ipv4: true, ipv6: true };
        let long_link = Link { name: "a-name-of-sixteen".to_owned(), ..link.clone() };

        let encode = |heartbeat: Heartbeat| heartbeat.encode().unwrap_err();

        assert_eq!(encode(Heartbeat { node: String::new(), ..value() }), EncodeError::NodeLength(0));
        assert_eq!(encode(Heartbeat { node: "n".repeat(254), ..value() }), EncodeError::NodeLength(254));
        assert_eq!(encode(Heartbeat { links: vec![long_link], ..value() }), EncodeError::LinkLength(17));
        assert_eq!(encode(Heartbeat { links: vec![link; 49], ..value() }), EncodeError::TooManyLinks(49));
    }

    fn heartbeats() -> impl Strategy<Value = Heartbeat> {
        let link = ("[a-z0-9.@-]{1,15}", any::<bool>(), any::<bool>()).prop_map(|(name, ipv4, ipv6)| Link {
            name,
            ipv4,
            ipv6,
        });
        let links = prop::collection::vec(link, 0..=MAX_LINKS);
        let refused = prop::collection::vec(any::<NonZeroU16>(), 0..=MAX_REFUSED);
        (any::<[u64; 2]>(), any::<u32>(), any::<[bool; 3]>(), "[a-z0-9.-]{1,253}", links, refused).prop_map(
            |([incarnation, sequence], yielded, [proxy_ready, leaving, refuses_all], node, links, refused)| Heartbeat {
                node,
                incarnation,
                sequence,
                yielded,
                proxy_ready,
                leaving,
                links,
                refused: refused.into(),
                refuses_all,
            },
        )
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_returns(bytes in prop::collection::vec(any::<u8>(), 0..2 * MAX_LEN)) {
            let _ = Heartbeat::decode(&bytes);
        }

        #[test]
        fn decoding_damaged_heartbeats_returns(heartbeat in heartbeats(), at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = heartbeat.encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;

            let _ = Heartbeat::decode(&bytes);
        }

        #[test]
        fn every_heartbeat_survives_the_wire_within_its_bound(heartbeat in heartbeats()) {
            let bytes = heartbeat.encode().unwrap();

            prop_assert!(bytes.len() <= MAX_LEN);
            prop_assert_eq!(Heartbeat::decode(&bytes), Ok(heartbeat));
        }
    }
}
