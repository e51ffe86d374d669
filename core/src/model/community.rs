//! BGP communities, and names for them.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use crate::model::ObjectKey;

/// A community on a route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Community {
    /// Two 16 bit numbers (RFC 1997), written `65000:100`.
    Standard(u16, u16),
    /// Three 32 bit numbers (RFC 8092), written `large:64496:1:2`.
    Large(u32, u32, u32),
    /// Eight octets as they are sent (RFC 4360), written `target:64496:100`, `origin:64496:100` or, where they are
    /// neither, `extended:0x0102030405060708`.
    Extended([u8; 8]),
}

/// Why a text is not a [`Community`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "A:B with numbers up to 65535, large:A:B:C with numbers up to 4294967295, target:A:B or origin:A:B with an AS \
     number or an IPv4 address as A and a number as B, one of them at most 65535, or extended:0x and 16 hexadecimal \
     digits"
)]
pub struct NotACommunity;

/// Sub-types of extended communities that have a name (RFC 4360 §4, §5).
const SUB_TYPES: [(&str, u8); 2] = [("target", 0x02), ("origin", 0x03)];

impl FromStr for Community {
    type Err = NotACommunity;

    fn from_str(text: &str) -> Result<Self, NotACommunity> {
        let parts: Vec<&str> = text.split(':').collect();
        let known = match parts.as_slice() {
            ["large", a, b, c] => large(a, b, c),
            ["extended", octets] => hexadecimal(octets).map(Self::Extended),
            [name, administrator, number] => {
                let sub_type = SUB_TYPES.iter().find(|(known, _)| known == name);
                sub_type.and_then(|(_, sub_type)| extended(*sub_type, administrator, number)).map(Self::Extended)
            }
            [a, b] => standard(a, b),
            _ => None,
        };
        known.ok_or(NotACommunity)
    }
}

fn standard(a: &str, b: &str) -> Option<Community> {
    let short = |text| number(text).and_then(|number| u16::try_from(number).ok());
    Some(Community::Standard(short(a)?, short(b)?))
}

fn large(a: &str, b: &str, c: &str) -> Option<Community> {
    Some(Community::Large(number(a)?, number(b)?, number(c)?))
}

/// The octets of `target:A:B` or `origin:A:B`: the type follows from what A is.
fn extended(sub_type: u8, administrator: &str, assigned: &str) -> Option<[u8; 8]> {
    let assigned = number(assigned)?;
    if let Some(asn) = number(administrator).and_then(|number| u16::try_from(number).ok()) {
        let ([a, b], [c, d, e, f]) = (asn.to_be_bytes(), assigned.to_be_bytes());
        return Some([TWO_OCTET_AS, sub_type, a, b, c, d, e, f]);
    }
    let (kind, administrator) = match number(administrator) {
        Some(asn) => (FOUR_OCTET_AS, asn),
        None => (IPV4_ADDRESS, administrator.parse::<Ipv4Addr>().ok()?.to_bits()),
    };
    let ([a, b, c, d], [e, f]) = (administrator.to_be_bytes(), u16::try_from(assigned).ok()?.to_be_bytes());
    Some([kind, sub_type, a, b, c, d, e, f])
}

/// Types of extended communities by what the first number in them is (RFC 4360 §3.1 and §3.2, RFC 5668).
const TWO_OCTET_AS: u8 = 0x00;
const IPV4_ADDRESS: u8 = 0x01;
const FOUR_OCTET_AS: u8 = 0x02;

/// Eight octets as `0x` and 16 digits.
fn hexadecimal(text: &str) -> Option<[u8; 8]> {
    let digits = text.strip_prefix("0x")?;
    let fits = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    fits.then(|| u64::from_str_radix(digits, 16).ok()).flatten().map(u64::to_be_bytes)
}

/// A number of digits alone; Rust would take a plus sign as well.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Standard(a, b) => write!(f, "{a}:{b}"),
            Self::Large(a, b, c) => write!(f, "large:{a}:{b}:{c}"),
            Self::Extended(octets) => {
                let [kind, sub_type, a, b, c, d, e, g] = octets;
                let name = SUB_TYPES.iter().find(|(_, known)| *known == sub_type).map(|(name, _)| name);
                let (wide, narrow) = (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, g]));
                match (name, kind) {
                    (Some(name), TWO_OCTET_AS) => {
                        write!(f, "{name}:{}:{}", u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, g]))
                    }
                    (Some(name), IPV4_ADDRESS) => write!(f, "{name}:{}:{narrow}", Ipv4Addr::from_bits(wide)),
                    // One that fits two octets would be read as such.
                    (Some(name), FOUR_OCTET_AS) if wide > u32::from(u16::MAX) => write!(f, "{name}:{wide}:{narrow}"),
                    _ => write!(f, "extended:{:#018x}", u64::from_be_bytes(octets)),
                }
            }
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

    #[test]
    fn an_extended_community_is_a_target_an_origin_or_eight_octets() {
        for (text, octets) in [
            ("target:64512:100", [0x00, 0x02, 0xfc, 0x00, 0, 0, 0, 100]),
            ("target:0:4294967295", [0x00, 0x02, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            ("target:65536:65535", [0x02, 0x02, 0, 1, 0, 0, 0xff, 0xff]),
            ("origin:192.0.2.1:7", [0x01, 0x03, 192, 0, 2, 1, 0, 7]),
            ("origin:64512:100", [0x00, 0x03, 0xfc, 0x00, 0, 0, 0, 100]),
            // A number of four octets that would fit two has no shorter form of its own.
            ("extended:0x02020000fc000064", [0x02, 0x02, 0, 0, 0xfc, 0, 0, 100]),
            ("extended:0x4004fc0000000064", [0x40, 0x04, 0xfc, 0x00, 0, 0, 0, 100]),
            ("extended:0x0000000000000000", [0; 8]),
        ] {
            assert_eq!(text.parse(), Ok(Community::Extended(octets)));
            assert_eq!(Community::Extended(octets).to_string(), text);
        }
        let spelt_out: Community = "extended:0x0002FC0000000064".parse().unwrap();
        assert_eq!(spelt_out.to_string(), "target:64512:100");
        for text in [
            "target:64512",
            "target:65536:65536",
            "target:192.0.2.1:65536",
            "target:192.0.2:1",
            "target:4294967296:1",
            "target:1:4294967296",
            "target:1:",
            "target:+1:1",
            "Target:1:1",
            "extended:0002fc0000000064",
            "extended:0x0002fc000000006",
            "extended:0x0002fc00000000641",
            "extended:0x+002fc0000000064",
            "extended:0x",
        ] {
            assert_eq!(text.parse::<Community>(), Err(NotACommunity), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_extended_community_is_read_as_it_is_written(octets: [u8; 8], named: bool, kind in 0..4u8, sub in 1..5u8) {
            let [first, second, rest @ ..] = octets;
            let (kind, sub) = if named { (kind, sub) } else { (first, second) };
            let [a, b, c, d, e, f] = rest;
            let community = Community::Extended([kind, sub, a, b, c, d, e, f]);

            proptest::prop_assert_eq!(community.to_string().parse(), Ok(community));
        }
    }
}
