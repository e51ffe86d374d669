//! UPDATE (RFC 4271 §4.3, RFC 4760) as we send it; what a peer sends is read in `received`.
//!
//! A message of ours has one purpose: it announces IPv4 routes in its last field, or others in MP_REACH_NLRI, or
//! withdraws the former or the latter; multiprotocol attributes come first, the others by type (RFC 7606 §5.1). Each
//! message is filled as far as its length allows.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    AS_TRANS, Asn, Family, Prefix,
    frame::{self, HEADER_LEN, MAX_EXTENDED_LEN, MessageType},
};

mod received;

pub use received::{AttributeFault, Update, UpdateError};

/// Types of attributes.
mod attribute {
    pub const ORIGIN: u8 = 1;
    pub const AS_PATH: u8 = 2;
    pub const NEXT_HOP: u8 = 3;
    pub const MULTI_EXIT_DISC: u8 = 4;
    pub const LOCAL_PREF: u8 = 5;
    pub const ATOMIC_AGGREGATE: u8 = 6;
    pub const AGGREGATOR: u8 = 7;
    pub const COMMUNITIES: u8 = 8;
    pub const ORIGINATOR_ID: u8 = 9;
    pub const CLUSTER_LIST: u8 = 10;
    pub const MP_REACH_NLRI: u8 = 14;
    pub const MP_UNREACH_NLRI: u8 = 15;
    pub const EXTENDED_COMMUNITIES: u8 = 16;
    pub const AS4_PATH: u8 = 17;
    pub const AS4_AGGREGATOR: u8 = 18;
    pub const LARGE_COMMUNITIES: u8 = 32;
    pub const ONLY_TO_CUSTOMER: u8 = 35;
}

/// Flags of attributes (RFC 4271 §4.3).
mod flag {
    /// Not optional, and always transitive.
    pub const WELL_KNOWN: u8 = 0x40;
    pub const OPTIONAL: u8 = 0x80;
    pub const OPTIONAL_TRANSITIVE: u8 = 0xc0;
    pub const EXTENDED_LENGTH: u8 = 0x10;
}

/// What comes with an announced route. Its ORIGIN is always IGP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attributes {
    /// AS_PATH, one sequence: the nearest AS first. Empty inside one AS.
    pub as_path: Vec<Asn>,
    /// Where the packets go.
    pub next_hop: NextHop,
    /// MULTI_EXIT_DISC: the lower, the better.
    pub multi_exit_disc: Option<u32>,
    /// LOCAL_PREF: the higher, the better. Only for peers of our own AS.
    pub local_pref: Option<u32>,
    /// COMMUNITIES (RFC 1997).
    pub communities: BTreeSet<u32>,
    /// Extended communities (RFC 4360), whole with their types.
    pub extended_communities: BTreeSet<[u8; 8]>,
    /// Large communities (RFC 8092): global administrator and two parts of local data.
    pub large_communities: BTreeSet<[u32; 3]>,
}

/// The router that packets go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NextHop {
    /// By an IPv4 address.
    Ipv4(Ipv4Addr),
    /// By an IPv6 address. IPv4 routes may have it as well, where the peer has said so (RFC 8950).
    Ipv6 {
        /// The global address; a link-local one where there is no other.
        global: Ipv6Addr,
        /// The link-local one beside it, only for a peer on the same link (RFC 2545 §3): FRR ends the session where it
        /// knows no interface for it.
        link_local: Option<Ipv6Addr>,
    },
}

/// What both sides of a session have agreed on about the form of an UPDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// AS numbers in AS_PATH have four octets (RFC 6793).
    pub four_octet_asn: bool,
    /// The longest message, in bytes: [`frame::MAX_LEN`], or [`frame::MAX_EXTENDED_LEN`] by agreement.
    pub max_len: usize,
}

impl Dialect {
    /// What an UPDATE has room for beside its header and its two lengths.
    fn room(self) -> usize {
        self.max_len.min(MAX_EXTENDED_LEN).saturating_sub(HEADER_LEN + 4)
    }
}

/// Header of an attribute with a long value: flags, type, two octets of length.
const LONG_ATTRIBUTE: usize = 4;

impl Attributes {
    /// Whether a message has room for any one route of this family with these attributes. [`announce`] gives no
    /// message for a route that has none.
    pub fn fit(&self, dialect: Dialect, family: Family) -> bool {
        let longest_prefix = match family {
            Family::Ipv4Unicast => 1 + 4,
            Family::Ipv6Unicast => 1 + 16,
        };
        self.room(dialect, family).is_some_and(|room| room >= longest_prefix)
    }

    /// What is left for prefixes of this family.
    fn room(&self, dialect: Dialect, family: Family) -> Option<usize> {
        let reach = self.mp_reach(family).map_or(0, |value| LONG_ATTRIBUTE + value.len());
        dialect.room().checked_sub(reach + self.encode(dialect, family).len())
    }

    /// MP_REACH_NLRI without its prefixes, where this family needs it.
    fn mp_reach(&self, family: Family) -> Option<Vec<u8>> {
        let next_hop = match (family, self.next_hop) {
            (Family::Ipv4Unicast, NextHop::Ipv4(_)) => return None,
            // RFC 4798 §2.
            (Family::Ipv6Unicast, NextHop::Ipv4(address)) => address.to_ipv6_mapped().octets().to_vec(),
            (_, NextHop::Ipv6 { global, link_local: None }) => global.octets().to_vec(),
            (_, NextHop::Ipv6 { global, link_local: Some(beside) }) => [global.octets(), beside.octets()].concat(),
        };
        let mut value = family.octets().to_vec();
        value.push(next_hop.len() as u8);
        value.extend(next_hop);
        value.push(0);
        Some(value)
    }

    /// All attributes but MP_REACH_NLRI.
    fn encode(&self, dialect: Dialect, family: Family) -> Vec<u8> {
        let mut block = Vec::with_capacity(64);
        push_attribute(&mut block, flag::WELL_KNOWN, attribute::ORIGIN, &[0]);
        let path = as_path(&self.as_path, dialect.four_octet_asn);
        push_attribute(&mut block, flag::WELL_KNOWN, attribute::AS_PATH, &path);
        if let (Family::Ipv4Unicast, NextHop::Ipv4(address)) = (family, self.next_hop) {
            push_attribute(&mut block, flag::WELL_KNOWN, attribute::NEXT_HOP, &address.octets());
        }
        if let Some(value) = self.multi_exit_disc {
            push_attribute(&mut block, flag::OPTIONAL, attribute::MULTI_EXIT_DISC, &value.to_be_bytes());
        }
        if let Some(value) = self.local_pref {
            push_attribute(&mut block, flag::WELL_KNOWN, attribute::LOCAL_PREF, &value.to_be_bytes());
        }
        if !self.communities.is_empty() {
            let value: Vec<u8> = self.communities.iter().flat_map(|community| community.to_be_bytes()).collect();
            push_attribute(&mut block, flag::OPTIONAL_TRANSITIVE, attribute::COMMUNITIES, &value);
        }
        if !self.extended_communities.is_empty() {
            let value: Vec<u8> = self.extended_communities.iter().copied().flatten().collect();
            push_attribute(&mut block, flag::OPTIONAL_TRANSITIVE, attribute::EXTENDED_COMMUNITIES, &value);
        }
        if !dialect.four_octet_asn && self.as_path.iter().any(|asn| u16::try_from(asn.get()).is_err()) {
            push_attribute(&mut block, flag::OPTIONAL_TRANSITIVE, attribute::AS4_PATH, &as_path(&self.as_path, true));
        }
        if !self.large_communities.is_empty() {
            let value: Vec<u8> = self.large_communities.iter().flatten().flat_map(|part| part.to_be_bytes()).collect();
            push_attribute(&mut block, flag::OPTIONAL_TRANSITIVE, attribute::LARGE_COMMUNITIES, &value);
        }
        block
    }
}

/// The messages that announce these prefixes with these attributes, or replace what was announced of them before.
///
/// Prefixes of both families may come together and go apart. There is no message for what has no room beside its
/// attributes: [`Attributes::fit`].
pub fn announce(dialect: Dialect, attributes: &Attributes, prefixes: &[Prefix]) -> Vec<Vec<u8>> {
    let of_family = |family| {
        let others = attributes.encode(dialect, family);
        let reach = attributes.mp_reach(family);
        let room = attributes.room(dialect, family).unwrap_or(0);
        pack(prefixes, family, room).into_iter().map(move |nlri| {
            let Some(head) = &reach else { return update(&[], &others, &nlri) };
            let mut block = Vec::with_capacity(LONG_ATTRIBUTE + head.len() + nlri.len() + others.len());
            push_attribute(&mut block, flag::OPTIONAL, attribute::MP_REACH_NLRI, &[head, &nlri[..]].concat());
            block.extend(&others);
            update(&[], &block, &[])
        })
    };
    Family::ALL.into_iter().flat_map(of_family).collect()
}

/// The messages that withdraw these prefixes. Prefixes of both families may come together and go apart.
pub fn withdraw(dialect: Dialect, prefixes: &[Prefix]) -> Vec<Vec<u8>> {
    let ipv4 = pack(prefixes, Family::Ipv4Unicast, dialect.room());
    let head = LONG_ATTRIBUTE + Family::Ipv6Unicast.octets().len();
    let ipv6 = pack(prefixes, Family::Ipv6Unicast, dialect.room().saturating_sub(head));
    ipv4.iter()
        .map(|withdrawn| update(withdrawn, &[], &[]))
        .chain(ipv6.iter().map(|withdrawn| mp_unreach(Family::Ipv6Unicast, withdrawn)))
        .collect()
}

/// The message that says that all routes of this family have been sent (End-of-RIB, RFC 4724 §2).
pub fn end_of_rib(family: Family) -> Vec<u8> {
    match family {
        Family::Ipv4Unicast => update(&[], &[], &[]),
        Family::Ipv6Unicast => mp_unreach(family, &[]),
    }
}

fn mp_unreach(family: Family, withdrawn: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(LONG_ATTRIBUTE + 3 + withdrawn.len());
    push_attribute(&mut block, flag::OPTIONAL, attribute::MP_UNREACH_NLRI, &[&family.octets(), withdrawn].concat());
    update(&[], &block, &[])
}

/// A message of these three fields, the first two with their lengths.
fn update(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let length = |field: &[u8]| (field.len() as u16).to_be_bytes();
    frame::encode(MessageType::Update, &[&length(withdrawn), withdrawn, &length(attributes), attributes, nlri])
}

/// Prefixes of one family as they stand in a message, in portions that fill `room` and no more.
fn pack(prefixes: &[Prefix], family: Family, room: usize) -> Vec<Vec<u8>> {
    let mut portions: Vec<Vec<u8>> = Vec::new();
    for prefix in prefixes.iter().filter(|&prefix| Family::of(prefix) == family) {
        let nlri = encode_prefix(prefix);
        match portions.last_mut() {
            Some(portion) if portion.len() + nlri.len() <= room => portion.extend(nlri),
            _ if nlri.len() <= room => portions.push(nlri),
            _ => {}
        }
    }
    portions
}

/// The length in bits, and as many octets as it needs (RFC 4271 §4.3). Host bits are zero.
fn encode_prefix(prefix: &Prefix) -> Vec<u8> {
    let mut nlri = vec![prefix.prefix()];
    let octets = usize::from(prefix.prefix().div_ceil(8));
    match prefix.network() {
        IpAddr::V4(network) => nlri.extend(network.octets().iter().take(octets)),
        IpAddr::V6(network) => nlri.extend(network.octets().iter().take(octets)),
    }
    nlri
}

/// The value of AS_PATH or AS4_PATH: sequences of at most 255.
fn as_path(path: &[Asn], four_octets: bool) -> Vec<u8> {
    const AS_SEQUENCE: u8 = 2;
    let mut value = Vec::new();
    for segment in path.chunks(255) {
        value.extend([AS_SEQUENCE, segment.len() as u8]);
        for asn in segment {
            if four_octets {
                value.extend(asn.get().to_be_bytes());
            } else {
                value.extend(u16::try_from(asn.get()).unwrap_or(AS_TRANS).to_be_bytes());
            }
        }
    }
    value
}

/// Adds one attribute. A value that does not even fit the long form makes the block longer than any message, so that
/// it is never sent.
fn push_attribute(block: &mut Vec<u8>, flags: u8, code: u8, value: &[u8]) {
    match u8::try_from(value.len()) {
        Ok(length) => block.extend([flags, code, length]),
        Err(_) => {
            block.extend([flags | flag::EXTENDED_LENGTH, code]);
            block.extend((value.len() as u16).to_be_bytes());
        }
    }
    block.extend(value);
}
