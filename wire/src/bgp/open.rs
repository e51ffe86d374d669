//! Reads the body of an OPEN (RFC 4271 §4.2, §6.2; RFC 5492, 6793, 7607, 9072, 9234).
//!
//! Capabilities, and families inside them, that we do not know are passed over, and so is a capability whose value we
//! cannot read: it counts as not sent. Only what breaks the message itself is an error.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Asn, BgpIdentifier, Capabilities, ExtendedNextHop, Family, GracefulRestart, HoldTime, Notification, Open, Role,
    VERSION, capability,
};

/// What is wrong with an OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The peer speaks another version.
    #[error("version {0} is not spoken, only version 4")]
    Version(u8),
    /// AS 0, in either place.
    #[error("AS 0 is not an AS")]
    BadPeerAs,
    /// BGP identifier 0.
    #[error("the BGP identifier is 0")]
    BadIdentifier,
    /// An optional parameter that is not capabilities.
    #[error("optional parameter {0} is not known")]
    UnsupportedParameter(u8),
    /// A hold time of one or two seconds.
    #[error("a hold time of {0} s is neither 0 nor at least 3 s")]
    HoldTime(u16),
    /// More than one role, and not the same (RFC 9234 §4.2).
    #[error("roles {0} and {1} are both claimed")]
    ContradictoryRoles(u8, u8),
    /// Lengths inside the message contradict each other.
    #[error("the lengths inside the message contradict each other")]
    Malformed,
}

impl OpenError {
    /// What to tell the peer before closing.
    pub fn notification(self) -> Notification {
        match self {
            Self::Version(_) => Notification::new(2, 1, u16::from(VERSION).to_be_bytes()),
            Self::BadPeerAs => Notification::bad_peer_as(),
            Self::BadIdentifier => Notification::bad_identifier(),
            Self::UnsupportedParameter(_) => Notification::new(2, 4, []),
            Self::HoldTime(_) => Notification::new(2, 6, []),
            Self::ContradictoryRoles(..) => Notification::role_mismatch(),
            Self::Malformed => Notification::new(2, 0, []),
        }
    }
}

pub(super) fn decode(body: &[u8]) -> Result<Open, OpenError> {
    let Some((&[version, as_high, as_low, hold_high, hold_low, id @ .., _], _)) = body.split_first_chunk::<10>() else {
        return Err(OpenError::Malformed);
    };
    if version != VERSION {
        return Err(OpenError::Version(version));
    }
    let short_asn = Asn::new(u16::from_be_bytes([as_high, as_low]).into()).ok_or(OpenError::BadPeerAs)?;
    let identifier = BgpIdentifier::new(u32::from_be_bytes(id)).ok_or(OpenError::BadIdentifier)?;
    let hold_time = u16::from_be_bytes([hold_high, hold_low]);
    let hold_time = HoldTime::from_seconds(hold_time).ok_or(OpenError::HoldTime(hold_time))?;

    let mut capabilities = Capabilities::default();
    let mut asn = short_asn;
    let mut role_sent = None;
    for (code, value) in capabilities_in(parameters(&body[9..])?)? {
        match (code, value) {
            (capability::MULTIPROTOCOL, &[afi_high, afi_low, _, safi]) => {
                let families = capabilities.families.get_or_insert_default();
                families.extend(Family::from_codes(u16::from_be_bytes([afi_high, afi_low]), safi));
            }
            (capability::ROUTE_REFRESH, _) => capabilities.route_refresh = true,
            (capability::EXTENDED_NEXT_HOP, value) => {
                capabilities.extended_next_hop.extend(extended_next_hops(value));
            }
            (capability::EXTENDED_MESSAGE, _) => capabilities.extended_message = true,
            (capability::ROLE, &[role]) => {
                let first = *role_sent.get_or_insert(role);
                if first != role {
                    return Err(OpenError::ContradictoryRoles(first, role));
                }
                capabilities.role = Role::from_code(role);
            }
            (capability::GRACEFUL_RESTART, &[high, low, ref families @ ..]) => {
                capabilities.graceful_restart = Some(graceful_restart(u16::from_be_bytes([high, low]), families));
            }
            (capability::FOUR_OCTET_ASN, &[a, b, c, d]) => {
                asn = Asn::new(u32::from_be_bytes([a, b, c, d])).ok_or(OpenError::BadPeerAs)?;
                capabilities.four_octet_asn = true;
            }
            (capability::ENHANCED_ROUTE_REFRESH, _) => capabilities.enhanced_route_refresh = true,
            _ => {}
        }
    }
    Ok(Open { asn, hold_time, identifier, capabilities })
}

/// The optional parameters with their types, from the octet that holds their length onwards.
fn parameters(bytes: &[u8]) -> Result<Vec<(u8, &[u8])>, OpenError> {
    // Type 255 in the first place, which no parameter has, announces lengths of two octets (RFC 9072 §2).
    let (mut rest, wide) = match bytes {
        [length, 255, rest @ ..] if *length != 0 => {
            let [high, low, rest @ ..] = rest else { return Err(OpenError::Malformed) };
            (exactly(rest, u16::from_be_bytes([*high, *low]).into())?, true)
        }
        [length, rest @ ..] => (exactly(rest, (*length).into())?, false),
        [] => return Err(OpenError::Malformed),
    };
    let mut parameters = Vec::new();
    while let [kind, after @ ..] = rest {
        let (length, after) = match (wide, after) {
            (true, [high, low, after @ ..]) => (u16::from_be_bytes([*high, *low]).into(), after),
            (false, [length, after @ ..]) => (usize::from(*length), after),
            _ => return Err(OpenError::Malformed),
        };
        let (value, after) = after.split_at_checked(length).ok_or(OpenError::Malformed)?;
        parameters.push((*kind, value));
        rest = after;
    }
    Ok(parameters)
}

fn exactly(bytes: &[u8], length: usize) -> Result<&[u8], OpenError> {
    if bytes.len() == length { Ok(bytes) } else { Err(OpenError::Malformed) }
}

/// All capabilities of all parameters, in the order sent.
fn capabilities_in(parameters: Vec<(u8, &[u8])>) -> Result<Vec<(u8, &[u8])>, OpenError> {
    const CAPABILITIES: u8 = 2;
    let mut capabilities = Vec::new();
    for (kind, mut rest) in parameters {
        if kind != CAPABILITIES {
            return Err(OpenError::UnsupportedParameter(kind));
        }
        while let [code, after @ ..] = rest {
            let [length, after @ ..] = after else { return Err(OpenError::Malformed) };
            let (value, after) = after.split_at_checked((*length).into()).ok_or(OpenError::Malformed)?;
            capabilities.push((*code, value));
            rest = after;
        }
    }
    Ok(capabilities)
}

fn extended_next_hops(value: &[u8]) -> BTreeSet<ExtendedNextHop> {
    let tuples = value.as_chunks::<6>().0;
    let read = |tuple: &[u8; 6]| {
        let [afi_high, afi_low, 0, safi, hop_high, hop_low] = *tuple else { return None };
        let family = Family::from_codes(u16::from_be_bytes([afi_high, afi_low]), safi)?;
        let next_hop = Family::from_codes(u16::from_be_bytes([hop_high, hop_low]), 1)?;
        Some(ExtendedNextHop { family, next_hop })
    };
    tuples.iter().filter_map(read).collect()
}

fn graceful_restart(head: u16, families: &[u8]) -> GracefulRestart {
    let families: BTreeMap<Family, bool> = families
        .as_chunks::<4>()
        .0
        .iter()
        .filter_map(|&[high, low, safi, flags]| {
            Some((Family::from_codes(u16::from_be_bytes([high, low]), safi)?, flags & 0x80 != 0))
        })
        .collect();
    GracefulRestart {
        restarting: head & 0x8000 != 0,
        notification: head & 0x4000 != 0,
        restart_time_seconds: head & GracefulRestart::MAX_SECONDS,
        forwarding: families,
    }
}
