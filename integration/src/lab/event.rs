//! What is done to a network, how often, how quickly failures are noticed, and by which addresses clients look.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use crate::lab::{scenario::Scenario, topology::Plan};

/// What is measured, and how often.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How often each event happens (scenarios l2 and bgp)
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// What happens; may be repeated. Everything unless given (scenarios l2 and bgp)
    #[arg(long = "event", value_enum, value_name = "EVENT")]
    pub events: Vec<Event>,
    /// How quickly failures are noticed; may be repeated. Both unless given, by BGP both for link-cut only (scenarios l2
    /// and bgp)
    #[arg(long = "profile", value_enum, value_name = "PROFILE")]
    pub profiles: Vec<Profile>,
    /// For how many seconds the processors are kept busy in each run of false-takeover and false-down
    #[arg(long, value_name = "SECONDS", default_value_t = BUSY_SECONDS, value_parser = clap::value_parser!(u64).range(1..))]
    pub busy_seconds: u64,
    /// The router that speaks BGP (scenario bgp)
    #[arg(long, value_enum, value_name = "ROUTER", default_value = "bird")]
    pub router: Peer,
}

/// How long busy loops go round in each run, unless told otherwise.
const BUSY_SECONDS: u64 = 20;

impl Options {
    /// Whether they say anything.
    pub fn are_given(&self) -> bool {
        let Self { runs, events, profiles, busy_seconds, router } = self;
        *runs > 1
            || !events.is_empty()
            || !profiles.is_empty()
            || *busy_seconds != BUSY_SECONDS
            || *router != Peer::Bird
    }

    /// One that is named and does not happen in this scenario.
    pub fn stranger(&self, scenario: Scenario) -> Option<Event> {
        self.events.iter().copied().find(|event| !event.happens_in(scenario))
    }

    /// What is to happen in a scenario, in order.
    pub fn events(&self, scenario: Scenario) -> Vec<Event> {
        chosen(&self.events).into_iter().filter(|event| event.happens_in(scenario)).collect()
    }

    /// The profiles by which an event is measured in the scenario of BGP, in order: where none is named the quick one only
    /// where it is the point.
    pub fn bgp_profiles(&self, event: Event) -> Vec<Profile> {
        let is_wanted =
            |profile: &Profile| *profile == Profile::Default || event == Event::LinkCut || !self.profiles.is_empty();
        chosen(&self.profiles).into_iter().filter(is_wanted).collect()
    }
}

/// Each of them once in their own order; all of them when none is named.
pub fn chosen<T: ValueEnum + PartialEq>(named: &[T]) -> Vec<T> {
    T::value_variants().iter().filter(|value| named.is_empty() || named.contains(value)).cloned().collect()
}

/// A router that speaks BGP and forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// BIRD
    Bird,
    /// FRR
    Frr,
}

/// Something that happens to the node that clients reach, which in layer 2 owns the addresses, or to everyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The node's cable is cut, and its carrier is lost; the router keeps its own
    LinkCut,
    /// The owner's service network is cut behind the switch: its carrier stays, and so does its management network (l2)
    CarrierUpCut,
    /// The node's speaker is killed without a warning
    SpeakerKill,
    /// The owner's speaker is stopped and not ended (SIGSTOP) (l2)
    SpeakerFreeze,
    /// The node is taken out of load balancing, and its pods leave
    Drain,
    /// One speaker after the other is ended and started again
    RollingRestart,
    /// The addresses are moved to another node (l2)
    Move,
    /// The switch is parted with the owner on one side, and made whole again; measured from then on (l2)
    PartitionHeal,
    /// Nothing, with four busy loops beside it (l2)
    FalseTakeover,
    /// As rolling-restart, where routers were asked to keep routes meanwhile (graceful restart; bgp)
    GrRestart,
    /// A node comes back, and flows spread over one more (bgp)
    EcmpJoin,
    /// A Service is created; from its address in the status to the route in the router's kernel (bgp)
    RouteLatency,
    /// A speaker with 10,000 addresses starts; until the router's kernel has all routes, beside ExaBGP (bgp)
    #[value(name = "bulk-10k")]
    #[serde(rename = "bulk-10k")]
    Bulk10k,
    /// Nothing, with four busy loops beside it; sessions that are lost (bgp)
    FalseDown,
}

/// How quickly failures are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// As speakers watch each other without flags: by BFD, 50 ms and 3 packets
    Default,
    /// As quickly as they can: 10 ms and 3 packets
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
    /// Whether it happens in a scenario.
    pub fn happens_in(self, scenario: Scenario) -> bool {
        match self {
            Self::LinkCut | Self::SpeakerKill | Self::Drain | Self::RollingRestart => {
                matches!(scenario, Scenario::L2 | Scenario::Bgp)
            }
            Self::CarrierUpCut | Self::SpeakerFreeze | Self::Move | Self::PartitionHeal | Self::FalseTakeover => {
                scenario == Scenario::L2
            }
            Self::GrRestart | Self::EcmpJoin | Self::RouteLatency | Self::Bulk10k | Self::FalseDown => {
                scenario == Scenario::Bgp
            }
        }
    }

    /// By which addresses it is measured.
    pub fn families(self) -> &'static [Family] {
        if self == Self::Bulk10k { &[Family::Ipv4] } else { &Family::BOTH }
    }

    /// The network of layer 2 that it happens to.
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

    /// Milliseconds between two BFD packets.
    pub fn interval_ms(self) -> u32 {
        match self {
            Self::Default => 50,
            Self::Fast => 10,
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
    fn what_is_named_is_measured_once_and_everything_of_the_scenario_when_nothing_is() {
        let options = |events: &[Event]| Options {
            runs: 1,
            events: events.to_vec(),
            profiles: Vec::new(),
            busy_seconds: BUSY_SECONDS,
            router: Peer::Bird,
        };

        let named = options(&[Event::Move, Event::LinkCut, Event::Move]);
        assert_eq!(named.events(Scenario::L2), [Event::LinkCut, Event::Move]);
        assert_eq!((named.stranger(Scenario::L2), named.stranger(Scenario::Bgp)), (None, Some(Event::Move)));
        assert_eq!(options(&[]).events(Scenario::L2).len(), 9);
        assert_eq!(options(&[]).events(Scenario::Bgp).len(), 9);
    }

    #[test]
    fn by_bgp_the_quick_profile_is_for_cut_links_unless_it_is_named() {
        let options = |profiles: &[Profile]| Options {
            runs: 1,
            events: Vec::new(),
            profiles: profiles.to_vec(),
            busy_seconds: BUSY_SECONDS,
            router: Peer::Bird,
        };

        assert_eq!(options(&[]).bgp_profiles(Event::LinkCut), [Profile::Default, Profile::Fast]);
        assert_eq!(options(&[]).bgp_profiles(Event::Drain), [Profile::Default]);
        assert_eq!(options(&[Profile::Fast]).bgp_profiles(Event::Drain), [Profile::Fast]);
    }

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
