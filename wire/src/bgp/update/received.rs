//! Reads the body of an UPDATE (RFC 4271 §4.3, §6.3; RFC 7606).
//!
//! We learn no routes, so only the structure counts: which prefixes came and went. The session ends where these cannot
//! be told for certain. Any other fault takes back the routes it came with, or nothing at all. Families that we do not
//! carry are passed over.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{attribute, flag};
use crate::bgp::{Family, Notification, Prefix};

/// What an UPDATE of a peer says about routes of the families we carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Prefixes that can be reached by the peer, in the order sent.
    pub announced: Vec<Prefix>,
    /// Prefixes that cannot any more, in the order sent; with a fault that withdraws, the announced ones follow.
    pub withdrawn: Vec<Prefix>,
    /// All routes of this family have been sent (RFC 4724 §2).
    pub end_of_rib: Option<Family>,
    /// The gravest fault that does not end the session.
    pub discarded: Option<AttributeFault>,
}

/// What is wrong with the attributes of an UPDATE, other than what ends the session (RFC 7606 §3, §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributeFault {
    /// The attributes end within one.
    #[error("the attributes end within one of them")]
    Overrun,
    /// One that routes must have is not there.
    #[error("attribute {0} is missing")]
    Missing(u8),
    /// The flags are not those of its type.
    #[error("attribute {0} has the flags of another kind")]
    Flags(u8),
    /// It is said to be well-known and nobody knows it.
    #[error("attribute {0} is well-known by its flags and to nobody else")]
    Unrecognized(u8),
    /// The value is none that its type may have.
    #[error("attribute {0} is malformed")]
    Malformed(u8),
    /// It is there more than once; the first counts.
    #[error("attribute {0} is there more than once")]
    Repeated(u8),
}

impl AttributeFault {
    /// Whether the routes it came with count as withdrawn; else only the attribute is discarded.
    pub fn withdraws(self) -> bool {
        match self {
            Self::Repeated(_) => false,
            // They only inform (RFC 7606 §7.6, §7.7; RFC 6793 §6).
            Self::Malformed(code) => !matches!(
                code,
                attribute::ATOMIC_AGGREGATE | attribute::AGGREGATOR | attribute::AS4_PATH | attribute::AS4_AGGREGATOR
            ),
            Self::Overrun | Self::Missing(_) | Self::Flags(_) | Self::Unrecognized(_) => true,
        }
    }

    /// The word for it in a metric or condition.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Overrun => "Overrun",
            Self::Missing(_) => "Missing",
            Self::Flags(_) => "Flags",
            Self::Unrecognized(_) => "Unrecognized",
            Self::Malformed(_) => "Malformed",
            Self::Repeated(_) => "Repeated",
        }
    }
}

/// Why it cannot be told which prefixes an UPDATE is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// The lengths of its fields do not fit into it.
    #[error("the lengths of withdrawn routes and attributes do not fit the message")]
    MalformedAttributeList,
    /// MP_REACH_NLRI or MP_UNREACH_NLRI is there more than once (RFC 7606 §3 g).
    #[error("multiprotocol attribute {0} is there more than once")]
    RepeatedMultiprotocol(u8),
    /// A prefix among the withdrawn routes or in the last field is too long or cut short (RFC 7606 §5.3).
    #[error("a prefix is too long or cut short")]
    InvalidNetworkField,
    /// MP_REACH_NLRI or MP_UNREACH_NLRI cannot be read (RFC 4760 §7, RFC 7606 §7.11).
    #[error("multiprotocol attribute {0} cannot be read")]
    MalformedMultiprotocol(u8),
}

impl UpdateError {
    /// What to tell the peer before closing.
    pub fn notification(self) -> Notification {
        match self {
            Self::MalformedAttributeList | Self::RepeatedMultiprotocol(_) => Notification::new(3, 1, []),
            Self::MalformedMultiprotocol(_) => Notification::new(3, 9, []),
            Self::InvalidNetworkField => Notification::new(3, 10, []),
        }
    }
}

impl Update {
    /// Reads the body of an UPDATE.
    ///
    /// # Errors
    /// What makes it impossible to tell which prefixes it is about.
    pub fn decode(body: &[u8]) -> Result<Self, UpdateError> {
        let (withdrawn, rest) = field(body).ok_or(UpdateError::MalformedAttributeList)?;
        let (block, nlri) = field(rest).ok_or(UpdateError::MalformedAttributeList)?;
        let mut update = Self {
            announced: prefixes(Family::Ipv4Unicast, nlri).ok_or(UpdateError::InvalidNetworkField)?,
            withdrawn: prefixes(Family::Ipv4Unicast, withdrawn).ok_or(UpdateError::InvalidNetworkField)?,
            end_of_rib: (body == [0; 4]).then_some(Family::Ipv4Unicast),
            discarded: None,
        };

        let mut seen = BTreeSet::new();
        let mut rest = block;
        while !rest.is_empty() {
            let (attribute, after) = match Attribute::split_off(rest) {
                Ok(split) => split,
                Err(Some(code)) if is_multiprotocol(code) => return Err(UpdateError::MalformedMultiprotocol(code)),
                Err(_) => {
                    update.note(AttributeFault::Overrun);
                    break;
                }
            };
            rest = after;
            let code = attribute.code;
            if !seen.insert(code) {
                if is_multiprotocol(code) {
                    return Err(UpdateError::RepeatedMultiprotocol(code));
                }
                update.note(AttributeFault::Repeated(code));
                continue;
            }
            if let Some(fault) = attribute.fault() {
                update.note(fault);
            }
            let Some((family, prefixes)) = attribute.routes()? else { continue };
            if code == attribute::MP_REACH_NLRI {
                update.announced.extend(prefixes);
            } else {
                let alone = withdrawn.is_empty() && nlri.is_empty() && rest.is_empty() && seen.len() == 1;
                update.end_of_rib = (alone && prefixes.is_empty()).then_some(family);
                update.withdrawn.extend(prefixes);
            }
        }

        if !update.announced.is_empty() {
            let next_hop = (!nlri.is_empty()).then_some(attribute::NEXT_HOP);
            for code in [attribute::ORIGIN, attribute::AS_PATH].into_iter().chain(next_hop) {
                if !seen.contains(&code) {
                    update.note(AttributeFault::Missing(code));
                }
            }
        }
        if update.discarded.is_some_and(AttributeFault::withdraws) {
            update.withdrawn.append(&mut update.announced);
        }
        Ok(update)
    }

    /// Keeps the first fault, or the first that withdraws.
    fn note(&mut self, fault: AttributeFault) {
        if self.discarded.is_none_or(|noted| fault.withdraws() && !noted.withdraws()) {
            self.discarded = Some(fault);
        }
    }
}

/// Whether it is of a type that carries prefixes.
fn is_multiprotocol(code: u8) -> bool {
    matches!(code, attribute::MP_REACH_NLRI | attribute::MP_UNREACH_NLRI)
}

/// Splits off a field behind the two octets of its length.
fn field(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(u16::from_be_bytes(*length).into())
}

/// All prefixes of a field that holds nothing else.
fn prefixes(family: Family, mut bytes: &[u8]) -> Option<Vec<Prefix>> {
    let mut prefixes = Vec::new();
    while let [bits, rest @ ..] = bytes {
        let (octets, after) = rest.split_at_checked(bits.div_ceil(8).into())?;
        let prefix = match family {
            Family::Ipv4Unicast => Prefix::new(Ipv4Addr::from(padded(octets)?).into(), *bits),
            Family::Ipv6Unicast => Prefix::new(Ipv6Addr::from(padded(octets)?).into(), *bits),
        };
        let prefix = prefix.ok()?;
        // The bits beyond its length are of no meaning (RFC 4271 §4.3).
        prefixes.push(Prefix::new(prefix.network(), *bits).ok()?);
        bytes = after;
    }
    Some(prefixes)
}

/// The octets and zeros behind them; `None` when they are too many.
fn padded<const LEN: usize>(octets: &[u8]) -> Option<[u8; LEN]> {
    let mut padded = [0; LEN];
    padded.get_mut(..octets.len())?.copy_from_slice(octets);
    Some(padded)
}

#[derive(Clone, Copy)]
struct Attribute<'a> {
    flags: u8,
    code: u8,
    value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The first attribute and what follows it. An error is its type, where even that can be read.
    fn split_off(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Option<u8>> {
        let [flags, code, rest @ ..] = bytes else { return Err(None) };
        let (flags, code) = (*flags, *code);
        let value = if flags & flag::EXTENDED_LENGTH != 0 {
            field(rest)
        } else {
            rest.split_first().and_then(|(&length, rest)| rest.split_at_checked(length.into()))
        };
        let (value, after) = value.ok_or(Some(code))?;
        Ok((Self { flags, code, value }, after))
    }

    /// What is wrong with it by the rules of its type (RFC 7606 §7 and the RFC that defines it).
    fn fault(self) -> Option<AttributeFault> {
        use flag::{OPTIONAL, OPTIONAL_TRANSITIVE, WELL_KNOWN};

        let length = self.value.len();
        let list_of = |size| length != 0 && length.is_multiple_of(size);
        let (kind, valid) = match self.code {
            attribute::ORIGIN => (WELL_KNOWN, matches!(self.value, [0..=2])),
            attribute::AS_PATH => (WELL_KNOWN, is_path(self.value, 4) || is_path(self.value, 2)),
            attribute::NEXT_HOP | attribute::LOCAL_PREF => (WELL_KNOWN, length == 4),
            attribute::ATOMIC_AGGREGATE => (WELL_KNOWN, length == 0),
            attribute::MULTI_EXIT_DISC | attribute::ORIGINATOR_ID => (OPTIONAL, length == 4),
            attribute::CLUSTER_LIST => (OPTIONAL, list_of(4)),
            // Their values are read for what they say.
            attribute::MP_REACH_NLRI | attribute::MP_UNREACH_NLRI => (OPTIONAL, true),
            attribute::AGGREGATOR => (OPTIONAL_TRANSITIVE, matches!(length, 6 | 8)),
            attribute::COMMUNITIES => (OPTIONAL_TRANSITIVE, list_of(4)),
            attribute::EXTENDED_COMMUNITIES => (OPTIONAL_TRANSITIVE, list_of(8)),
            attribute::AS4_PATH => (OPTIONAL_TRANSITIVE, is_path(self.value, 4)),
            attribute::AS4_AGGREGATOR => (OPTIONAL_TRANSITIVE, length == 8),
            attribute::LARGE_COMMUNITIES => (OPTIONAL_TRANSITIVE, list_of(12)),
            attribute::ONLY_TO_CUSTOMER => (OPTIONAL_TRANSITIVE, length == 4),
            code if self.flags & OPTIONAL == 0 => return Some(AttributeFault::Unrecognized(code)),
            _ => return None,
        };
        if self.flags & OPTIONAL_TRANSITIVE != kind {
            return Some(AttributeFault::Flags(self.code));
        }
        (!valid).then_some(AttributeFault::Malformed(self.code))
    }

    /// Family and prefixes of MP_REACH_NLRI or MP_UNREACH_NLRI; `None` for a family that we do not carry, and for an
    /// attribute of another type.
    fn routes(self) -> Result<Option<(Family, Vec<Prefix>)>, UpdateError> {
        if !is_multiprotocol(self.code) {
            return Ok(None);
        }
        let unreadable = UpdateError::MalformedMultiprotocol(self.code);
        let [afi_high, afi_low, safi, rest @ ..] = self.value else { return Err(unreadable) };
        let Some(family) = Family::from_codes(u16::from_be_bytes([*afi_high, *afi_low]), *safi) else {
            return Ok(None);
        };
        let nlri = match self.code {
            attribute::MP_REACH_NLRI => behind_next_hop(family, rest).ok_or(unreadable)?,
            _ => rest,
        };
        Ok(Some((family, prefixes(family, nlri).ok_or(unreadable)?)))
    }
}

/// What follows the next hop and a reserved octet. A next hop of a length that the family does not have says nothing
/// about where the prefixes begin (RFC 7606 §7.11).
fn behind_next_hop(family: Family, bytes: &[u8]) -> Option<&[u8]> {
    let (&length, rest) = bytes.split_first()?;
    match (family, length) {
        (_, 16 | 32) | (Family::Ipv4Unicast, 4) => rest.get(usize::from(length) + 1..),
        _ => None,
    }
}

/// Whether these are segments with AS numbers of `width` octets. What a session has agreed on is not asked: nothing is
/// done with the numbers.
fn is_path(mut value: &[u8], width: usize) -> bool {
    while let [1..=4, count, rest @ ..] = value
        && *count != 0
    {
        let Some((_, after)) = rest.split_at_checked(usize::from(*count) * width) else { return false };
        value = after;
    }
    value.is_empty()
}
