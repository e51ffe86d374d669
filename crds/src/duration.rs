//! Lengths of time as Kubernetes writes them (`1m30s`). Kubernetes' own parser is Go's `time.ParseDuration`.
//!
//! `kube` brings such a type, but it panics on text such as `9999999999999999h` or `5s-3s`, and this text comes from
//! files that users write.

use std::{fmt, str::FromStr, time};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, never negative: `90s`, `1m30s`, `500ms`, `1.5h`. Precise to the nanosecond, below 2^63 of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(time::Duration);

/// Why a text is not a [`Duration`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseDurationError(String);

impl fmt::Display for ParseDurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a duration such as 90s, 1m30s or 500ms (units: ns us ms s m h)", self.0)
    }
}

impl std::error::Error for ParseDurationError {}

impl From<time::Duration> for Duration {
    fn from(duration: time::Duration) -> Self {
        Self(duration)
    }
}

impl From<Duration> for time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

/// Units, the longer spelling first where one begins with another.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Go's durations are 64 bit signed nanoseconds.
const LONGEST_NS: u128 = i64::MAX as u128;

impl FromStr for Duration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseDurationError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::default());
    }
    let mut rest = text;
    let mut total_ns: u128 = 0;
    while !rest.is_empty() || total_ns == 0 && rest.len() == text.len() {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        let (unit, unit_ns) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        rest = &after[unit.len()..];
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total_ns += u128::from(whole) * unit_ns + fraction_of(fraction, unit_ns);
        if total_ns > LONGEST_NS {
            return None;
        }
    }
    Some(Duration(time::Duration::from_nanos(u64::try_from(total_ns).ok()?)))
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// `0.fraction` of a unit, rounded down to the nanosecond; digits past the 15th weigh less than one.
fn fraction_of(fraction: &str, unit_ns: u128) -> u128 {
    let mut scale = 1;
    let mut value = 0;
    for digit in fraction.bytes().take(15) {
        scale *= 10;
        value = value * 10 + u128::from(digit - b'0');
    }
    value * unit_ns / scale
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        if seconds == 0 && nanos == 0 {
            return f.write_str("0s");
        }
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        if seconds > 0 {
            write!(f, "{seconds}s")?;
        }
        for (value, unit) in [(nanos / 1_000_000, "ms"), (nanos / 1000 % 1000, "us"), (nanos % 1000, "ns")] {
            if value > 0 {
                write!(f, "{value}{unit}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
