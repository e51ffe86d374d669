//! What a speaker says about itself and about whom it hears: a *word*.
//!
//! Several words of one speaker differ by their version; the newest stands. In network byte order:
//!
//! ```text
//! flags | life u64 | version u64 | renewals u16 | node name: length u8, bytes
//! | number of links u8 | each link: flags, name length u8, bytes, and with the flag for each:
//!                        hardware address [6], IPv4 address [4] and prefix length u8, IPv6 address [16],
//!                        number of subnets u8, each: version u8 (4 or 6), address [4] or [16], prefix length u8
//! | number of refused ports u8 | each port u16
//! | number of accusations u8 | each: node tag u64, number u32, interface name length u8 (0: the node), bytes
//! | number of vouchers u8 | each like an accusation
//! | number of yields u8 | each: node tag u64, count u32
//! | number of greetings u8 | each: node tag u64, life u64
//! ```
//!
//! Flags that this version does not know are ignored; anything else that differs is a [`DecodeError`].

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
};

use sha2::{Digest, Sha256};

use super::{DecodeError, EncodeError, Reader, flag, name_len};
use crate::ethernet::Mac;

/// The longest word, in bytes.
pub const MAX_WORD_LEN: usize = 1
    + 8
    + 8
    + 2
    + (1 + MAX_NODE_LEN)
    + (1 + MAX_LINKS * (2 + MAX_LINK_LEN + 6 + 5 + 16 + (1 + MAX_SUBNETS * 18)))
    + (1 + MAX_REFUSED * 2)
    + 2 * (1 + MAX_STATEMENTS * (8 + 4 + 1 + MAX_LINK_LEN))
    + (1 + MAX_YIELDS * (8 + 4))
    + (1 + MAX_GREETINGS * (8 + 8));

/// The longest node name, in bytes (a DNS subdomain, RFC 1123).
pub const MAX_NODE_LEN: usize = 253;

/// The longest interface name, in bytes (`IFNAMSIZ` without its end mark).
pub const MAX_LINK_LEN: usize = 15;

/// How many links a word can tell about.
pub const MAX_LINKS: usize = 48;

/// How many subnets a word can tell of one link.
pub const MAX_SUBNETS: usize = 8;

/// How many refused ports a word can name.
pub const MAX_REFUSED: usize = 64;

/// How many accusations, and how many vouchers, a word can hold.
pub const MAX_STATEMENTS: usize = 32;

/// How many receivers of addresses a word can name.
pub const MAX_YIELDS: usize = 32;

/// How many speakers a word can greet.
pub const MAX_GREETINGS: usize = 32;

const FLAG_PROXY_READY: u8 = 1 << 0;
const FLAG_LEAVING: u8 = 1 << 1;
const FLAG_REFUSES_ALL: u8 = 1 << 2;
const LINK_IPV4: u8 = 1 << 0;
const LINK_IPV6: u8 = 1 << 1;
const LINK_MAC: u8 = 1 << 2;
const LINK_WATCH_IPV4: u8 = 1 << 3;
const LINK_WATCH_IPV6: u8 = 1 << 4;
const LINK_SUBNETS: u8 = 1 << 5;
const SUBNET_IPV4: u8 = 4;
const SUBNET_IPV6: u8 = 6;

/// What a speaker says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// The speaker's node, 1 to [`MAX_NODE_LEN`] bytes.
    pub node: String,
    /// Which life of the speaker this is; a later start has a greater number.
    pub life: u64,
    /// Which word of this life it is; a later one has a greater number.
    pub version: u64,
    /// How often the speaker has joined the gossip anew in this life.
    pub renewals: u16,
    /// The proxy of the node is ready.
    pub proxy_ready: bool,
    /// The speaker is stopping and wants no address any more.
    pub leaving: bool,
    /// Interfaces it could announce on, at most [`MAX_LINKS`].
    pub links: Vec<Link>,
    /// Health check ports that the kube-proxy of the node does not agree to, at most [`MAX_REFUSED`].
    pub refused: Box<[NonZeroU16]>,
    /// There are more of them than can be named.
    pub refuses_all: bool,
    /// Whom, or which interface of whom, it does not hear any more, at most [`MAX_STATEMENTS`].
    pub accuses: Vec<Statement>,
    /// Whom it has heard since it learned of an accusation, and its own interfaces from which it sees an accuser again, at
    /// most [`MAX_STATEMENTS`].
    pub vouches: Vec<Statement>,
    /// How often it has left addresses to another node in this life, at most [`MAX_YIELDS`]; counts wrap around.
    pub yields: Vec<(NodeTag, u32)>,
    /// Whom it has heard for the first time, or is not heard by, with the life of each, at most [`MAX_GREETINGS`]. To the
    /// one greeted this shows that the word was not recorded before its own life began.
    pub greets: Vec<(NodeTag, u64)>,
}

/// An interface one could announce on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name, 1 to [`MAX_LINK_LEN`] bytes.
    pub name: String,
    /// It carries ARP.
    pub ipv4: bool,
    /// It carries neighbour discovery.
    pub ipv6: bool,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// Where it can be watched over IPv4: an address of its own with the length of its prefix.
    pub watch_ipv4: Option<(Ipv4Addr, u8)>,
    /// Where it can be watched over IPv6: a link-local address of its own.
    pub watch_ipv6: Option<Ipv6Addr>,
    /// The subnets of its addresses with the lengths of their prefixes, at most [`MAX_SUBNETS`]; `None` where they are not
    /// told, which says nothing about them.
    pub subnets: Option<Vec<(IpAddr, u8)>>,
}

/// Something said about a node, or about one of its interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The node.
    pub node: NodeTag,
    /// The interface, 1 to [`MAX_LINK_LEN`] bytes; none stands for the node.
    pub interface: Option<String>,
    /// Which accusation this is, or which is answered with all before it. 0 accuses nobody and asks who sees the interface, or
    /// answers that.
    pub number: u32,
}

/// A short name of a node: the first eight bytes of the SHA-256 of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeTag(pub u64);

impl NodeTag {
    /// The tag of the node with this name.
    pub fn of(node: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(node).into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl Word {
    /// The bytes, at most [`MAX_WORD_LEN`].
    ///
    /// # Errors
    /// When a name or a list is outside its bounds.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = Vec::new();
        self.encode_into(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn encode_into(&self, bytes: &mut Vec<u8>) -> Result<(), EncodeError> {
        let ready = flag(self.proxy_ready, FLAG_PROXY_READY);
        bytes.push(ready | flag(self.leaving, FLAG_LEAVING) | flag(self.refuses_all, FLAG_REFUSES_ALL));
        bytes.extend(self.life.to_be_bytes());
        bytes.extend(self.version.to_be_bytes());
        bytes.extend(self.renewals.to_be_bytes());
        bytes.push(name_len(&self.node, MAX_NODE_LEN).ok_or(EncodeError::NodeLength(self.node.len()))?);
        bytes.extend(self.node.as_bytes());
        bytes.push(count(self.links.len(), MAX_LINKS)?);
        for link in &self.links {
            link.encode_into(bytes)?;
        }
        bytes.push(count(self.refused.len(), MAX_REFUSED)?);
        bytes.extend(self.refused.iter().flat_map(|port| port.get().to_be_bytes()));
        for statements in [&self.accuses, &self.vouches] {
            bytes.push(count(statements.len(), MAX_STATEMENTS)?);
            for statement in statements {
                bytes.extend(statement.node.0.to_be_bytes());
                bytes.extend(statement.number.to_be_bytes());
                match &statement.interface {
                    None => bytes.push(0),
                    Some(name) => push_link_name(bytes, name)?,
                }
            }
        }
        bytes.push(count(self.yields.len(), MAX_YIELDS)?);
        for (node, count) in &self.yields {
            bytes.extend(node.0.to_be_bytes());
            bytes.extend(count.to_be_bytes());
        }
        bytes.push(count(self.greets.len(), MAX_GREETINGS)?);
        for (node, life) in &self.greets {
            bytes.extend(node.0.to_be_bytes());
            bytes.extend(life.to_be_bytes());
        }
        Ok(())
    }

    /// Reads a word.
    ///
    /// # Errors
    /// Everything that [`encode`](Self::encode) would not have written, but for unknown flags.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { rest: bytes };
        let flags = reader.byte()?;
        let life = u64::from_be_bytes(reader.array()?);
        let version = u64::from_be_bytes(reader.array()?);
        let renewals = u16::from_be_bytes(reader.array()?);
        let node = reader.name(MAX_NODE_LEN)?;
        let links = reader.list(MAX_LINKS, Link::decode)?;
        let refused = reader.list(MAX_REFUSED, |reader| {
            NonZeroU16::new(u16::from_be_bytes(reader.array()?)).ok_or(DecodeError::Port)
        })?;
        let accuses = reader.list(MAX_STATEMENTS, Statement::decode)?;
        let vouches = reader.list(MAX_STATEMENTS, Statement::decode)?;
        let yields = reader.list(MAX_YIELDS, |reader| {
            Ok((NodeTag(u64::from_be_bytes(reader.array()?)), u32::from_be_bytes(reader.array()?)))
        })?;
        let greets = reader.list(MAX_GREETINGS, |reader| {
            Ok((NodeTag(u64::from_be_bytes(reader.array()?)), u64::from_be_bytes(reader.array()?)))
        })?;
        reader.finish()?;
        Ok(Self {
            node,
            life,
            version,
            renewals,
            proxy_ready: flags & FLAG_PROXY_READY != 0,
            leaving: flags & FLAG_LEAVING != 0,
            links,
            refused: refused.into(),
            refuses_all: flags & FLAG_REFUSES_ALL != 0,
            accuses,
            vouches,
            yields,
            greets,
        })
    }
}

impl Link {
    fn encode_into(&self, bytes: &mut Vec<u8>) -> Result<(), EncodeError> {
        let carries = flag(self.ipv4, LINK_IPV4) | flag(self.ipv6, LINK_IPV6);
        let watch = flag(self.watch_ipv4.is_some(), LINK_WATCH_IPV4) | flag(self.watch_ipv6.is_some(), LINK_WATCH_IPV6);
        let subnets = flag(self.subnets.is_some(), LINK_SUBNETS);
        bytes.push(carries | flag(self.mac.is_some(), LINK_MAC) | watch | subnets);
        push_link_name(bytes, &self.name)?;
        bytes.extend(self.mac.iter().flat_map(|mac| mac.0));
        if let Some((address, length)) = self.watch_ipv4 {
            bytes.extend(address.octets());
            bytes.push(length);
        }
        bytes.extend(self.watch_ipv6.iter().flat_map(Ipv6Addr::octets));
        if let Some(subnets) = &self.subnets {
            bytes.push(count(subnets.len(), MAX_SUBNETS)?);
            for (address, length) in subnets {
                match address {
                    IpAddr::V4(address) => {
                        bytes.push(SUBNET_IPV4);
                        bytes.extend(address.octets());
                    }
                    IpAddr::V6(address) => {
                        bytes.push(SUBNET_IPV6);
                        bytes.extend(address.octets());
                    }
                }
                bytes.push(*length);
            }
        }
        Ok(())
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let flags = reader.byte()?;
        let name = reader.name(MAX_LINK_LEN)?;
        let mac = if flags & LINK_MAC != 0 { Some(Mac(reader.array()?)) } else { None };
        let watch_ipv4 = if flags & LINK_WATCH_IPV4 != 0 {
            let address = Ipv4Addr::from(reader.array::<4>()?);
            Some((address, prefix_length(reader, 32)?))
        } else {
            None
        };
        let watch_ipv6 = if flags & LINK_WATCH_IPV6 != 0 { Some(Ipv6Addr::from(reader.array::<16>()?)) } else { None };
        let subnets = if flags & LINK_SUBNETS != 0 { Some(reader.list(MAX_SUBNETS, decode_subnet)?) } else { None };
        let (ipv4, ipv6) = (flags & LINK_IPV4 != 0, flags & LINK_IPV6 != 0);
        Ok(Self { name, ipv4, ipv6, mac, watch_ipv4, watch_ipv6, subnets })
    }
}

fn decode_subnet(reader: &mut Reader<'_>) -> Result<(IpAddr, u8), DecodeError> {
    match reader.byte()? {
        SUBNET_IPV4 => Ok((reader.array::<4>()?.into(), prefix_length(reader, 32)?)),
        SUBNET_IPV6 => Ok((reader.array::<16>()?.into(), prefix_length(reader, 128)?)),
        other => Err(DecodeError::SubnetVersion(other)),
    }
}

fn prefix_length(reader: &mut Reader<'_>, max: u8) -> Result<u8, DecodeError> {
    let length = reader.byte()?;
    if length <= max { Ok(length) } else { Err(DecodeError::PrefixLength(length)) }
}

impl Statement {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let node = NodeTag(u64::from_be_bytes(reader.array()?));
        let number = u32::from_be_bytes(reader.array()?);
        let interface = match reader.byte()? {
            0 => None,
            length => Some(reader.name_of(length, MAX_LINK_LEN)?),
        };
        Ok(Self { node, interface, number })
    }
}

fn push_link_name(bytes: &mut Vec<u8>, name: &str) -> Result<(), EncodeError> {
    bytes.push(name_len(name, MAX_LINK_LEN).ok_or(EncodeError::LinkLength(name.len()))?);
    bytes.extend(name.as_bytes());
    Ok(())
}

fn count(count: usize, max: usize) -> Result<u8, EncodeError> {
    u8::try_from(count).ok().filter(|_| count <= max).ok_or(EncodeError::TooMany { count, max })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By hand, from the picture in the module's documentation.
    const VECTOR: &[u8] = b"\x03\
        \x00\x00\x00\x00\x00\x00\x00\x07\
        \x00\x00\x00\x00\x00\x00\x01\x02\
        \x00\x05\
        \x06node-a\
        \x02\
        \x3f\x04eth0\x02\x00\x00\x00\x00\x01\xc0\x00\x02\x01\x18\
        \xfe\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\
        \x02\x04\xc0\x00\x02\x00\x18\
        \x06\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x40\
        \x01\x04eth1\
        \x02\x75\x30\x01\x02\
        \x01\x00\x00\x00\x00\x00\x00\x00\x0b\x00\x00\x00\x02\x00\
        \x01\x00\x00\x00\x00\x00\x00\x00\x0c\x00\x00\x00\x03\x04eth0\
        \x01\x00\x00\x00\x00\x00\x00\x00\x0d\x00\x00\x00\x04\
        \x01\x00\x00\x00\x00\x00\x00\x00\x0e\x00\x00\x00\x00\x00\x00\x00\x05";

    pub(in super::super) fn value() -> Word {
        let port = |number| NonZeroU16::new(number).unwrap();
        Word {
            node: "node-a".to_owned(),
            life: 7,
            version: 258,
            renewals: 5,
            proxy_ready: true,
            leaving: true,
            links: vec![
                Link {
                    name: "eth0".to_owned(),
                    ipv4: true,
                    ipv6: true,
                    mac: Some(Mac([2, 0, 0, 0, 0, 1])),
                    watch_ipv4: Some(("192.0.2.1".parse().unwrap(), 24)),
                    watch_ipv6: Some("fe80::1".parse().unwrap()),
                    subnets: Some(vec![("192.0.2.0".parse().unwrap(), 24), ("2001:db8::".parse().unwrap(), 64)]),
                },
                Link { name: "eth1".to_owned(), ipv4: true, ..Link::default() },
            ],
            refused: [port(30_000), port(258)].into(),
            refuses_all: false,
            accuses: vec![Statement { node: NodeTag(11), interface: None, number: 2 }],
            vouches: vec![Statement { node: NodeTag(12), interface: Some("eth0".to_owned()), number: 3 }],
            yields: vec![(NodeTag(13), 4)],
            greets: vec![(NodeTag(14), 5)],
        }
    }

    #[test]
    fn the_vector_stands_for_its_value_both_ways() {
        assert_eq!(value().encode().unwrap(), VECTOR);
        assert_eq!(Word::decode(VECTOR), Ok(value()));
    }

    #[test]
    fn every_truncation_is_refused_and_so_is_whatever_follows() {
        for length in 0..VECTOR.len() {
            assert_eq!(Word::decode(&VECTOR[..length]), Err(DecodeError::Truncated), "{length} bytes");
        }
        assert_eq!(Word::decode(&[VECTOR, b"!"].concat()), Err(DecodeError::TrailingBytes(1)));
    }

    #[test]
    fn a_word_that_breaks_a_bound_is_refused_by_its_first_fault() {
        let with = |at: usize, byte: u8| {
            let mut bytes = VECTOR.to_vec();
            bytes[at] = byte;
            Word::decode(&bytes)
        };

        assert_eq!(with(19, 0), Err(DecodeError::NameLength(0)));
        assert_eq!(with(19, 254), Err(DecodeError::NameLength(254)));
        assert_eq!(with(20, 0xff), Err(DecodeError::NameEncoding));
        assert_eq!(with(26, 49), Err(DecodeError::TooMany { count: 49, max: MAX_LINKS }));
        assert_eq!(with(28, 16), Err(DecodeError::NameLength(16)));
        assert_eq!(with(43, 33), Err(DecodeError::PrefixLength(33)));
        assert_eq!(with(60, 9), Err(DecodeError::TooMany { count: 9, max: MAX_SUBNETS }));
        assert_eq!(with(61, 5), Err(DecodeError::SubnetVersion(5)));
        assert_eq!(with(66, 33), Err(DecodeError::PrefixLength(33)));
        assert_eq!(with(84, 129), Err(DecodeError::PrefixLength(129)));
    }

    #[test]
    fn flags_of_a_later_version_are_ignored() {
        let mut bytes = VECTOR.to_vec();
        bytes[0] |= 0xf0;

        assert_eq!(Word::decode(&bytes), Ok(value()));
    }

    #[test]
    fn what_does_not_fit_is_not_encoded() {
        let link = value().links[0].clone();
        let long_link = Link { name: "a-name-of-sixteen".to_owned(), ..link.clone() };
        let encode = |word: Word| word.encode().unwrap_err();

        assert_eq!(encode(Word { node: String::new(), ..value() }), EncodeError::NodeLength(0));
        assert_eq!(encode(Word { node: "n".repeat(254), ..value() }), EncodeError::NodeLength(254));
        assert_eq!(encode(Word { links: vec![long_link], ..value() }), EncodeError::LinkLength(17));
        let too_many = EncodeError::TooMany { count: 49, max: MAX_LINKS };
        let subnets = Some(vec![("192.0.2.0".parse().unwrap(), 24); 9]);
        let in_too_many = Link { subnets, ..link.clone() };
        assert_eq!(encode(Word { links: vec![link; 49], ..value() }), too_many);
        let too_many = EncodeError::TooMany { count: 9, max: MAX_SUBNETS };
        assert_eq!(encode(Word { links: vec![in_too_many], ..value() }), too_many);
    }

    #[test]
    fn the_tag_of_a_node_is_the_beginning_of_the_sha_256_of_its_name() {
        // echo -n abc | sha256sum
        assert_eq!(NodeTag::of("abc"), NodeTag(0xba78_16bf_8f01_cfea));
    }

    pub(in super::super) fn words() -> impl Strategy<Value = Word> {
        let name = "[a-z0-9.@-]{1,15}";
        let subnet = any::<(IpAddr, u8)>().prop_map(|(address, length)| match address {
            IpAddr::V4(_) => (address, length % 33),
            IpAddr::V6(_) => (address, length % 129),
        });
        let watch = (any::<Option<([u8; 4], u8)>>(), any::<Option<u128>>());
        let subnets = prop::option::of(prop::collection::vec(subnet, 0..=MAX_SUBNETS));
        let link = (name, any::<[bool; 2]>(), any::<Option<[u8; 6]>>(), watch, subnets).prop_map(
            |(name, [ipv4, ipv6], mac, (v4, v6), subnets)| Link {
                name,
                ipv4,
                ipv6,
                mac: mac.map(Mac),
                watch_ipv4: v4.map(|(address, length)| (address.into(), length % 33)),
                watch_ipv6: v6.map(Ipv6Addr::from_bits),
                subnets,
            },
        );
        let statement = (any::<u64>(), prop::option::of(name), any::<u32>())
            .prop_map(|(node, interface, number)| Statement { node: NodeTag(node), interface, number });
        let statements = prop::collection::vec(statement, 0..=MAX_STATEMENTS);
        let lists = (
            prop::collection::vec(link, 0..=MAX_LINKS),
            prop::collection::vec(any::<NonZeroU16>(), 0..=MAX_REFUSED),
            statements.clone(),
            statements,
            prop::collection::vec((any::<u64>().prop_map(NodeTag), any::<u32>()), 0..=MAX_YIELDS),
            prop::collection::vec((any::<u64>().prop_map(NodeTag), any::<u64>()), 0..=MAX_GREETINGS),
        );
        (any::<[u64; 2]>(), any::<u16>(), any::<[bool; 3]>(), "[a-z0-9.-]{1,253}", lists).prop_map(
            |([life, version], renewals, [proxy_ready, leaving, refuses_all], node, lists)| {
                let (links, refused, accuses, vouches, yields, greets) = lists;
                let refused = refused.into();
                Word {
                    node,
                    life,
                    version,
                    renewals,
                    proxy_ready,
                    leaving,
                    links,
                    refused,
                    refuses_all,
                    accuses,
                    vouches,
                    yields,
                    greets,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_returns(bytes in prop::collection::vec(any::<u8>(), 0..2 * MAX_WORD_LEN)) {
            let _ = Word::decode(&bytes);
        }

        #[test]
        fn decoding_damaged_words_returns(word in words(), at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = word.encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;

            let _ = Word::decode(&bytes);
        }

        #[test]
        fn every_word_survives_the_wire_within_its_bound(word in words()) {
            let bytes = word.encode().unwrap();

            prop_assert!(bytes.len() <= MAX_WORD_LEN);
            prop_assert_eq!(Word::decode(&bytes), Ok(word));
        }
    }
}
