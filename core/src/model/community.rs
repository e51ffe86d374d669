//! BGP communities, and names for them.

use std::{fmt, str::FromStr};

use crate::model::ObjectKey;

/// A community on a route. Extended communities are none of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Community {
    /// Two 16 bit numbers (RFC 1997), written `65000:100`.
    Standard(u16, u16),
    /// Three 32 bit numbers (RFC 8092), written `large:64496:1:2`.
    Large(u32, u32, u32),
    /// Eight octets as they are sent (RFC 4360).
    Extended([u8; 8]),
}

/// Why a text is not a [`Community`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A:B with numbers up to 65535, or large:A:B:C with numbers up to 4294967295")]
pub struct NotACommunity;

impl FromStr for Community {
    type Err = NotACommunity;

    fn from_str(text: &str) -> Result<Self, NotACommunity> {
        let (text, is_large) = text.strip_prefix("large:").map_or((text, false), |rest| (rest, true));
        let numbers: Option<Vec<u32>> = text.split(':').map(number).collect();
        match (numbers.ok_or(NotACommunity)?.as_slice(), is_large) {
            (&[a, b], false) => {
                let short = |number| u16::try_from(number).map_err(|_| NotACommunity);
                Ok(Self::Standard(short(a)?, short(b)?))
            }
            (&[a, b, c], true) => Ok(Self::Large(a, b, c)),
            _ => Err(NotACommunity),
        }
    }
}

/// A number of digits alone; Rust would take a plus sign as well.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard(a, b) => write!(f, "{a}:{b}"),
            Self::Large(a, b, c) => write!(f, "large:{a}:{b}:{c}"),
            Self::Extended(octets) => write!(f, "{octets:?}"),
        }
    }
}

impl fmt::Debug for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A valid Community object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommunityAliases {
    /// Where the object lives.
    pub key: ObjectKey,
    /// Written for MetalLB: it counts like any other, and its status is left to MetalLB.
    pub read_only: bool,
    /// `metadata.generation`; 0 where the source has none.
    pub generation: i64,
    /// `spec.communities` in the order written; in a snapshot no name is given twice.
    pub aliases: Vec<(String, Community)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m_030_a_community_is_two_short_or_three_long_numbers() {
        for (text, expected) in [
            ("0:0", Community::Standard(0, 0)),
            ("65535:65281", Community::Standard(65_535, 65_281)),
            ("large:1:2:4294967295", Community::Large(1, 2, u32::MAX)),
        ] {
            assert_eq!(text.parse(), Ok(expected));
            assert_eq!(expected.to_string(), text);
        }
        for text in [
            "",
            ":",
            "1",
            "1:",
            "1:65536",
            "1:2:3",
            "large:1:2",
            "large:1:2:4294967296",
            "extended:1:2:3",
            "a:b",
            "-1:1",
            "+1:1",
            "1: 1",
            "large:",
            "large:large:1:2:3",
        ] {
            assert_eq!(text.parse::<Community>(), Err(NotACommunity), "{text:?}");
        }
    }
}
