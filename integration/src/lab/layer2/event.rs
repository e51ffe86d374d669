//! What is done to a network, how quickly speakers watch each other, and by which addresses clients look.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use crate::lab::topology::Plan;

/// Something that happens to the node that owns the addresses, or to everyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The owner's cable is cut, and its carrier is lost
    LinkCut,
    /// The owner's service network is cut behind the switch: its carrier stays, and so does its management network
    CarrierUpCut,
    /// The owner's speaker is killed without a warning
    SpeakerKill,
    /// The owner's speaker is stopped and not ended (SIGSTOP)
    SpeakerFreeze,
    /// The owner's node is taken out of load balancing, and its pods leave
    Drain,
    /// One speaker after the other is ended and started again
    RollingRestart,
    /// The addresses are moved to another node
    Move,
    /// The switch is parted with the owner on one side, and made whole again; measured from then on
    PartitionHeal,
    /// Nothing, with four busy loops beside it, for 20 s each run
    FalseTakeover,
}

/// How quickly speakers watch each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// As they do without flags
    Default,
    /// As quickly as they can
    Fast,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Event {
    /// The network that it happens to.
    pub fn plan(self) -> Plan {
        Plan { management: self == Self::CarrierUpCut, ..Plan::default() }
    }
}

impl Profile {
    /// What a speaker is told for it.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[],
            Self::Fast => &["--bfd-profile", "fast"],
        }
    }
}

impl Family {
    /// Both, as outcomes list them.
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(*self).as_str())
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(*self).as_str())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        })
    }
}

/// As it is written on the command line and in JSON.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_on_the_command_line_and_in_json() {
        for event in Event::value_variants() {
            assert_eq!(serde_json::to_value(event).unwrap(), event.to_string());
        }
        for profile in Profile::value_variants() {
            assert_eq!(serde_json::to_value(profile).unwrap(), profile.to_string());
        }
        for family in Family::BOTH {
            assert_eq!(serde_json::to_value(family).unwrap(), family.to_string());
        }
    }
}
