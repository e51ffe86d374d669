//! The brain of a speaker: which addresses this node announces, and every frame and heartbeat it takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU8,
    sync::Arc,
    time::Duration,
};

use ferrogate_wire::{
    arp::Arp,
    ethernet::Mac,
    gossip::Heartbeat,
    ndp::{Advertisement, Ndp},
};

use crate::{
    model::{InterfaceName, NodeName, Prefix},
    snapshot::Snapshot,
    write::Write,
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
    /// Whether nodes with the label that excludes them from load balancers may announce all the same.
    pub ignore_exclude_label: bool,
    /// Names of interfaces that are never announced on, `*` standing for any characters.
    pub excluded_interfaces: Vec<String>,
    /// How often every other speaker hears from this one.
    pub heartbeat_interval: Duration,
    /// After how many silent intervals a speaker counts as lost.
    pub detect_multiplier: NonZeroU8,
    /// How a new owner makes itself known.
    pub announcements: Announcements,
    /// How long an address stays on the host after it is lost to another owner, for traffic still under way.
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
    /// How many frames a second all of them may take together, at least 1.
    pub frames_per_second: u32,
}

/// How often speakers hear from each other unless told otherwise.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(50);
/// How many silent intervals make a speaker lost: 150 ms with the interval above, as fast as BFD is commonly run.
pub const DETECT_MULTIPLIER: NonZeroU8 = NonZeroU8::new(3).expect("three is not zero");
/// How long an address outlives its ownership on the host: long enough for the announcements of the next owner.
pub const HAND_OVER_GRACE: Duration = Duration::from_secs(5);
/// How long a stopping speaker stays: long enough for the quick announcements of its successors.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
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
            ignore_exclude_label: false,
            excluded_interfaces: EXCLUDED_INTERFACES.map(str::to_owned).to_vec(),
            heartbeat_interval: HEARTBEAT_INTERVAL,
            detect_multiplier: DETECT_MULTIPLIER,
            announcements: Announcements::default(),
            hand_over_grace: HAND_OVER_GRACE,
            shutdown_grace: SHUTDOWN_GRACE,
        }
    }
}

/// What a speaker takes in.
#[derive(Clone, Debug)]
pub enum Event {
    /// All facts, new.
    Snapshot(Arc<Snapshot>),
    /// Every interface of this node, new.
    Interfaces(BTreeMap<InterfaceName, Interface>),
    /// A heartbeat arrived. It has crossed no router (TTL or hop limit 255).
    Heard {
        /// The IP source.
        from: IpAddr,
        /// What it says.
        heartbeat: Heartbeat,
    },
    /// Whether the proxy of this node is ready; it counts as not ready until told.
    ProxyReady(bool),
    /// An ARP message arrived.
    Arp {
        /// Where.
        interface: InterfaceName,
        /// What it says.
        arp: Arp,
    },
    /// A neighbour solicitation or advertisement arrived.
    Ndp {
        /// Where.
        interface: InterfaceName,
        /// What it says.
        ndp: Ndp,
    },
    /// Stop: hand over, then finish.
    Shutdown,
    /// The deadline has come.
    Tick,
}

/// What a speaker wants done, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a frame.
    Send {
        /// Where.
        interface: InterfaceName,
        /// What.
        frame: Frame,
    },
    /// Send a heartbeat to every address of one other speaker, with TTL or hop limit 255. From the first one on,
    /// heartbeats should be received too.
    SendHeartbeat {
        /// The addresses, all of one node.
        to: Vec<IpAddr>,
        /// What to say.
        heartbeat: Heartbeat,
    },
    /// Receive ARP and neighbour discovery on exactly these interfaces; none means nothing is to be announced.
    Listen {
        /// The interfaces.
        interfaces: BTreeSet<InterfaceName>,
    },
    /// Put an address on the host, as `/32` or `/128`.
    Hold {
        /// Which.
        address: IpAddr,
    },
    /// Take an address off the host.
    Release {
        /// Which.
        address: IpAddr,
    },
    /// Join a solicited-node group.
    Join {
        /// Where.
        interface: InterfaceName,
        /// Which.
        group: Ipv6Addr,
    },
    /// Leave a solicited-node group.
    Leave {
        /// Where.
        interface: InterfaceName,
        /// Which.
        group: Ipv6Addr,
    },
    /// Ask for a change outside.
    Write(Write),
    /// Something that deserves a line in the log.
    Report(Report),
    /// Everything is handed over after [`Event::Shutdown`]; no action follows.
    Finished,
}

/// A frame to send. Its Ethernet source is the interface's own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// ARP, for IPv4.
    Arp(Arp),
    /// A neighbour advertisement, for IPv6.
    Advertisement(Advertisement),
}

/// A network interface of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it; another number under the same name is another interface.
    pub index: u32,
    /// Its hardware address, if it has one like Ethernet's.
    pub mac: Option<Mac>,
    /// `IFF_UP`: switched on.
    pub up: bool,
    /// `IFF_RUNNING` or `IFF_LOWER_UP`: has a carrier.
    pub carrier: bool,
    /// `IFF_BROADCAST`.
    pub broadcast: bool,
    /// `IFF_NOARP`.
    pub no_arp: bool,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// Belongs to a bridge, bond or VRF (`IFLA_MASTER`).
    pub enslaved: bool,
    /// Its addresses with their prefix lengths, host bits kept; tentative ones left out.
    pub addresses: Vec<Prefix>,
}

/// Something that deserves a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Another speaker is heard, for the first time or again.
    MemberAlive {
        /// Its node.
        node: NodeName,
    },
    /// Another speaker has been silent for the detection time.
    MemberLost {
        /// Its node.
        node: NodeName,
    },
    /// Another speaker is stopping.
    MemberLeaving {
        /// Its node.
        node: NodeName,
    },
    /// A heartbeat came from an address that no node has, or speaks for another node. Told once per address.
    HeartbeatRefused {
        /// The IP source.
        from: IpAddr,
        /// The node it speaks for.
        node: String,
    },
    /// This node owns an address now.
    Owned {
        /// Which.
        address: IpAddr,
        /// Where it is announced.
        interfaces: BTreeSet<InterfaceName>,
    },
    /// This node has left an address to another, or nobody announces it any more.
    Lost {
        /// Which.
        address: IpAddr,
        /// Who owns it now, as far as this node can tell.
        owner: Option<NodeName>,
    },
    /// Somebody else claims an address that this node owns. Told at most once per defence interval and address.
    Conflict {
        /// Which.
        address: IpAddr,
        /// Where it was seen.
        interface: InterfaceName,
        /// Who claims it.
        mac: Mac,
    },
}
