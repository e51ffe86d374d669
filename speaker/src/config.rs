//! What a speaker is told before it starts: facts from `cli`, and flags.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU8,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ferrogate_core::{
    model::NodeName,
    speaker::{
        Announcements, DETECT_MULTIPLIER, DataPath, EXCLUDED_INTERFACES, GOSSIP_INTERVAL, HAND_OVER_GRACE,
        LEASE_DURATION, SHUTDOWN_GRACE, bfd::Settings,
    },
};
use tokio::sync::watch;

/// UDP port of gossip. Not 7946, so that a MetalLB speaker can run beside this one during a migration.
pub const GOSSIP_PORT: u16 = 17946;

/// Everything a speaker must know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node it runs on.
    pub node: NodeName,
    /// How traffic for an announced address reaches its endpoints on this node.
    pub data_path: DataPath,
    /// How to learn whether this node's proxy is ready; without it the proxy counts as not ready.
    pub proxy: Option<ProxyReadiness>,
    /// What was said on the command line.
    pub flags: Flags,
}

/// How to learn whether this node's proxy is ready.
#[derive(Clone, Debug)]
pub enum ProxyReadiness {
    /// By asking `GET /readyz` at its admin address.
    Ask(SocketAddr),
    /// By what the same process says.
    Watch(watch::Receiver<bool>),
}

/// Flags of the speaker.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Speaker")]
pub struct Flags {
    /// How speakers know who of them is alive; the same on every node
    #[arg(long, value_name = "HOW", default_value = "gossip")]
    pub liveness: Liveness,

    /// With --liveness=leases: how long a speaker counts as alive after it was seen to renew its Lease, 3s to 5min in whole
    /// seconds. It is renewed five times as often
    #[arg(long, value_name = "TIME", default_value = Time(LEASE_DURATION), value_parser = seconds::<3, 300>)]
    pub lease_duration: Duration,

    /// UDP port of gossip between speakers; the same on every node
    #[arg(long, value_name = "PORT", default_value_t = GOSSIP_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub gossip_port: u16,

    /// Address of this node to gossip on; may be repeated. All addresses unless given
    #[arg(long, value_name = "ADDRESS")]
    pub gossip_bind: Vec<IpAddr>,

    /// Folder of the keys that gossip is sealed with, the same on every node: files of 32 bytes or 64 hexadecimal digits.
    /// Sealed with the file `current`, or else the first by name; opened with any. It is read again while the speaker
    /// runs. Without it gossip is neither secret nor safe from forgery
    #[arg(long, value_name = "DIR")]
    pub gossip_key: Option<PathBuf>,

    /// How often every other speaker hears from this one, 10ms to 10s
    #[arg(long, value_name = "TIME", default_value = Time(GOSSIP_INTERVAL), value_parser = time::<10, 10_000>)]
    pub gossip_interval: Duration,

    /// After how many silent intervals a speaker counts as lost, 1 to 255
    #[arg(long, value_name = "COUNT", default_value_t = DETECT_MULTIPLIER)]
    pub detect_multiplier: NonZeroU8,

    /// How next in line watches the owner of an address by BFD, on UDP 3784: a lost one is noticed within 150ms (default)
    /// or 30ms (fast), also where only the interface that it announces on is dead; the same on every node
    #[arg(long, value_name = "PROFILE", default_value = "default")]
    pub bfd_profile: BfdProfile,

    /// Announcements that follow quickly after the first when an address is taken over
    #[arg(long, value_name = "COUNT", default_value_t = Announcements::default().quick, value_parser = clap::value_parser!(u32).range(..=1000))]
    pub announce_quick: u32,

    /// Time between two quick announcements, 10ms to 10s
    #[arg(long, value_name = "TIME", default_value = Time(Announcements::default().quick_interval), value_parser = time::<10, 10_000>)]
    pub announce_quick_interval: Duration,

    /// Announcements that follow slowly after the quick ones
    #[arg(long, value_name = "COUNT", default_value_t = Announcements::default().slow, value_parser = clap::value_parser!(u32).range(..=1000))]
    pub announce_slow: u32,

    /// Time between two slow announcements, 100ms to 1min
    #[arg(long, value_name = "TIME", default_value = Time(Announcements::default().slow_interval), value_parser = time::<100, 60_000>)]
    pub announce_slow_interval: Duration,

    /// Time between announcements that go on for as long as an address is owned, 1s to 1h; without it they end after the
    /// slow ones. For switches that forget an entry before anybody speaks again
    #[arg(long, value_name = "TIME", value_parser = time::<1000, 3_600_000>)]
    pub announce_periodic: Option<Duration>,

    /// Frames a second that all announcements together may take
    #[arg(long, value_name = "COUNT", default_value_t = Announcements::default().frames_per_second, value_parser = clap::value_parser!(u32).range(1..))]
    pub announce_rate: u32,

    /// How long an address stays on the host after another node has taken it over, and how long TCP connections that began at
    /// the former owner are passed on to it, 0s to 5min
    #[arg(long, value_name = "TIME", default_value = Time(HAND_OVER_GRACE), value_parser = time::<0, 300_000>)]
    pub hand_over_grace: Duration,

    /// How long a stopping speaker stays until its successors have announced themselves, 0s to 1min; up to 3s longer while
    /// BGP peers have to be told
    #[arg(long, value_name = "TIME", default_value = Time(SHUTDOWN_GRACE), value_parser = time::<0, 60_000>)]
    pub shutdown_grace: Duration,

    /// Interface never to announce on, `*` standing for any characters; may be repeated. Replaces the default list
    #[arg(long, value_name = "PATTERN", default_values_t = EXCLUDED_INTERFACES.map(str::to_owned))]
    pub exclude_interface: Vec<String>,

    /// Whether a Service with externalTrafficPolicy Local waits until its healthCheckNodePort on this node answers 200;
    /// turn it off only where what stands for kube-proxy does not serve that port
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub health_checks: bool,

    /// Announce from nodes labelled node.kubernetes.io/exclude-from-external-load-balancers too
    #[arg(long)]
    pub ignore_exclude_lb: bool,

    /// Announce from a cordoned node only what no other node can; give it to every speaker
    #[arg(long)]
    pub yield_on_cordon: bool,
}

/// How speakers know who of them is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Liveness {
    /// By what they tell each other over the network: in a fraction of a second, and whatever the API server does
    Gossip,
    /// By Leases at the API server, for networks in which they may not talk to each other: in seconds, and not while it is
    /// away. Speakers need the right to write Leases (examples/install/leases.yaml)
    Leases,
}

/// How owners of addresses are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BfdProfile {
    /// A packet every 50 ms, and lost when 3 are missing; a busy machine keeps it
    Default,
    /// A packet every 10 ms, and lost when 3 are missing; wants CAP_SYS_NICE for real-time priority
    Fast,
    /// Not at all: gossip alone notices who is lost
    Off,
}

impl BfdProfile {
    fn settings(self) -> Option<Settings> {
        match self {
            Self::Default => Some(Settings::DEFAULT),
            Self::Fast => Some(Settings::FAST),
            Self::Off => None,
        }
    }
}

impl Config {
    /// What the machine in `core` needs to know.
    pub(crate) fn machine(&self) -> ferrogate_core::speaker::Config {
        let flags = &self.flags;
        // Only compared with earlier lives of the same speaker, on the same machine.
        let incarnation = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        ferrogate_core::speaker::Config {
            node: self.node.clone(),
            data_path: self.data_path,
            incarnation,
            seed: rand::random(),
            ignore_exclude_label: flags.ignore_exclude_lb,
            yield_on_cordon: flags.yield_on_cordon,
            excluded_interfaces: flags.exclude_interface.clone(),
            lease_duration: match flags.liveness {
                Liveness::Gossip => None,
                Liveness::Leases => Some(flags.lease_duration),
            },
            gossip_interval: flags.gossip_interval,
            detect_multiplier: flags.detect_multiplier,
            bfd: flags.bfd_profile.settings(),
            health_checks: flags.health_checks,
            announcements: Announcements {
                quick: flags.announce_quick,
                quick_interval: flags.announce_quick_interval,
                slow: flags.announce_slow,
                slow_interval: flags.announce_slow_interval,
                periodic: flags.announce_periodic,
                frames_per_second: flags.announce_rate,
            },
            hand_over_grace: flags.hand_over_grace,
            shutdown_grace: flags.shutdown_grace,
        }
    }
}

/// A duration as a flag shows it.
struct Time(Duration);

impl From<Time> for clap::builder::OsStr {
    fn from(Time(time): Time) -> Self {
        let millis = time.as_millis();
        if millis % 1000 == 0 { format!("{}s", millis / 1000).into() } else { format!("{millis}ms").into() }
    }
}

/// Reads a duration such as `50ms`, `5s` or `1min` within bounds given in milliseconds.
fn time<const MIN: u64, const MAX: u64>(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        _ => return Err("a whole number and its unit are wanted: 50ms, 5s, 1min".to_owned()),
    };
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale));
    match millis {
        Some(millis) if (MIN..=MAX).contains(&millis) => Ok(Duration::from_millis(millis)),
        _ => Err(format!("{MIN}ms to {MAX}ms are allowed")),
    }
}

/// Reads a duration as [`time`] does, of whole seconds within bounds in seconds.
fn seconds<const MIN: u64, const MAX: u64>(text: &str) -> Result<Duration, String> {
    match time::<0, { u64::MAX }>(text)? {
        time if time.subsec_millis() == 0 && (MIN..=MAX).contains(&time.as_secs()) => Ok(time),
        _ => Err(format!("{MIN}s to {MAX}s in whole seconds are allowed")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: Flags,
    }

    fn flags(arguments: &[&str]) -> Result<Flags, clap::Error> {
        Command::try_parse_from([&["speaker"], arguments].concat()).map(|command| command.flags)
    }

    #[test]
    fn without_flags_the_machine_runs_with_its_own_defaults() {
        let config =
            Config { node: "node-a".into(), data_path: DataPath::Proxy, proxy: None, flags: flags(&[]).unwrap() };

        let machine = config.machine();

        let (incarnation, seed) = (machine.incarnation, machine.seed);
        let expected = ferrogate_core::speaker::Config::new("node-a".into(), DataPath::Proxy, incarnation);
        let expected = ferrogate_core::speaker::Config { seed, ..expected };
        assert_eq!(format!("{machine:?}"), format!("{expected:?}"));
    }

    #[test]
    fn a_time_has_a_unit_and_stays_within_its_bounds() {
        assert_eq!(time::<10, 60_000>("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(time::<10, 60_000>("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(time::<10, 60_000>("1min"), Ok(Duration::from_secs(60)));
        for wrong in ["", "50", "ms", "5 s", "-5s", "9ms", "61s", "99999999999999999999ms", "9999999999999999999min"] {
            assert!(time::<10, 60_000>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn leases_last_whole_seconds_and_count_only_when_asked_for() {
        let lasts = |arguments: &[&str]| {
            let flags = flags(arguments).unwrap();
            let config = Config { node: "a".into(), data_path: DataPath::KubeProxy, proxy: None, flags };
            config.machine().lease_duration
        };

        assert_eq!(lasts(&["--lease-duration=20s"]), None);
        assert_eq!(lasts(&["--liveness=leases"]), Some(LEASE_DURATION));
        assert_eq!(lasts(&["--liveness=leases", "--lease-duration=1min"]), Some(Duration::from_secs(60)));
        for wrong in ["2s", "3500ms", "301s", "10"] {
            assert!(flags(&["--lease-duration", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn excluded_interfaces_given_replace_the_default_list() {
        assert_eq!(flags(&["--exclude-interface", "lo"]).unwrap().exclude_interface, ["lo"]);
    }

    #[test]
    fn a_flag_out_of_its_range_is_refused_by_name() {
        let error = flags(&["--gossip-interval", "1ms"]).unwrap_err().to_string();

        assert!(error.contains("--gossip-interval") && error.contains("1ms") && error.contains("10ms"), "{error}");
    }
}
