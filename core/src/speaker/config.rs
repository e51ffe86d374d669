//! What a speaker is told before it starts.

use std::{num::NonZeroU8, time::Duration};

use crate::{
    model::NodeName,
    speaker::{announce::Policy, bfd},
};

/// How traffic for an announced address reaches its endpoints on the node that owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// The built-in proxy of the owner carries every Service. The address is put on the host while it is owned, and
    /// only a node whose proxy is ready may own one.
    Proxy,
    /// kube-proxy, or what stands for it, carries Services. The host is left alone.
    KubeProxy,
}

/// What a speaker must know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node it runs on.
    pub node: NodeName,
    /// How traffic reaches endpoints.
    pub data_path: DataPath,
    /// Which life of this speaker it is: greater than at any earlier start. Microseconds since 1970 will do.
    pub incarnation: u64,
    /// What decides whom gossip is passed on to first.
    pub seed: u64,
    /// Whether nodes with the label that excludes them from load balancers may announce all the same.
    pub ignore_exclude_label: bool,
    /// Whether cordoned nodes announce only what nobody else can.
    pub yield_on_cordon: bool,
    /// Names of interfaces that are never announced on, `*` standing for any characters.
    pub excluded_interfaces: Vec<String>,
    /// How long a Lease of a speaker lasts, where speakers know each other by Leases at the API server; `None` where they
    /// gossip.
    pub lease_duration: Option<Duration>,
    /// How often every other speaker hears from this one by gossip.
    pub gossip_interval: Duration,
    /// After how many silent intervals a speaker counts as lost.
    pub detect_multiplier: NonZeroU8,
    /// How the owners of addresses are watched by those next in line; `None` leaves it to gossip alone.
    pub bfd: Option<bfd::Settings>,
    /// Whether the node's kube-proxy is asked at `healthCheckNodePort` before a Service with traffic policy `Local` is
    /// announced ([`DataPath::KubeProxy`] only).
    pub health_checks: bool,
    /// How a new owner makes itself known.
    pub announcements: Announcements,
    /// How long an address stays on the host after it is lost to another owner, for traffic still under way, and how long
    /// connections that began at a former owner are passed on to it.
    pub hand_over_grace: Duration,
    /// How long a stopping speaker stays for its successors to announce themselves.
    pub shutdown_grace: Duration,
}

/// When gratuitous ARP and unsolicited neighbour advertisements are sent. The first always goes at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcements {
    /// How many follow the first quickly.
    pub quick: u32,
    /// Time between two quick ones.
    pub quick_interval: Duration,
    /// How many follow after that.
    pub slow: u32,
    /// Time between two slow ones.
    pub slow_interval: Duration,
    /// Time between two of those that follow after that for as long as the address is owned; none unless given.
    pub periodic: Option<Duration>,
    /// How many frames a second all of them may take together, at least 1.
    pub frames_per_second: u32,
}

/// How often speakers hear from each other unless told otherwise.
pub const GOSSIP_INTERVAL: Duration = Duration::from_millis(50);
/// How many silent intervals make a speaker lost: 150 ms with the interval above, as fast as BFD is commonly run.
pub const DETECT_MULTIPLIER: NonZeroU8 = NonZeroU8::new(3).expect("three is not zero");
/// How long an address outlives its ownership on the host: long enough for the announcements of the next owner.
pub const HAND_OVER_GRACE: Duration = Duration::from_secs(5);
/// How long a stopping speaker stays: long enough for the quick announcements of its successors.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// How long a Lease of a speaker lasts unless told otherwise: as long as it takes to find one dead, and a renewal each two
/// seconds is what an API server does not feel.
pub const LEASE_DURATION: Duration = Duration::from_secs(10);
/// The shortest one that is told apart from a slow API server.
pub const MIN_LEASE_DURATION: Duration = Duration::from_secs(3);
/// The longest one that is believed.
pub const MAX_LEASE_DURATION: Duration = Duration::from_secs(300);
/// How often a Lease is renewed in the time that it lasts.
const RENEWALS: u32 = 5;
/// Interfaces of container networks and the like, and the loopback: no stranger asks there.
pub const EXCLUDED_INTERFACES: [&str; 14] = [
    "docker*",
    "cbr*",
    "dummy*",
    "virbr*",
    "lxcbr*",
    "veth*",
    "lo",
    "cali*",
    "tunl*",
    "flannel*",
    "kube-ipvs*",
    "cni*",
    "nodelocaldns*",
    "lxc*",
];

impl Default for Announcements {
    fn default() -> Self {
        Self {
            quick: 5,
            quick_interval: Duration::from_millis(100),
            slow: 5,
            slow_interval: Duration::from_secs(1),
            periodic: None,
            frames_per_second: 4000,
        }
    }
}

impl Config {
    /// The defaults for a node.
    pub fn new(node: NodeName, data_path: DataPath, incarnation: u64) -> Self {
        Self {
            node,
            data_path,
            incarnation,
            seed: 0,
            ignore_exclude_label: false,
            yield_on_cordon: false,
            excluded_interfaces: EXCLUDED_INTERFACES.map(str::to_owned).to_vec(),
            lease_duration: None,
            gossip_interval: GOSSIP_INTERVAL,
            detect_multiplier: DETECT_MULTIPLIER,
            bfd: Some(bfd::Settings::DEFAULT),
            health_checks: true,
            announcements: Announcements::default(),
            hand_over_grace: HAND_OVER_GRACE,
            shutdown_grace: SHUTDOWN_GRACE,
        }
    }

    /// How often this speaker says its word.
    pub fn interval(&self) -> Duration {
        self.lease_duration.map_or(self.gossip_interval, |duration| duration / RENEWALS)
    }

    /// After how much silence a speaker counts as lost.
    pub fn detection_time(&self) -> Duration {
        if let Some(duration) = self.lease_duration {
            return duration;
        }
        self.gossip_interval * u32::from(self.detect_multiplier.get())
    }

    /// How long two speakers that own one address wait for each other's words before one leaves it.
    pub fn patience(&self) -> Duration {
        if self.lease_duration.is_some() { self.interval() } else { self.detection_time() }
    }

    /// What of it takes part in elections.
    pub fn policy(&self) -> Policy {
        let Self { data_path, ignore_exclude_label, yield_on_cordon, .. } = *self;
        Policy { data_path, ignore_exclude_label, yield_on_cordon }
    }
}
