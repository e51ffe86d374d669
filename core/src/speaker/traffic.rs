//! What goes into a speaker and what comes out of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU16,
    sync::Arc,
    time::Instant,
};

use ferrogate_wire::{
    arp::Arp,
    ethernet::Mac,
    gossip::Datagram,
    ndp::{Advertisement, Ndp, Solicitation},
};
use imbl::OrdSet;

use crate::{
    model::{InterfaceName, NodeName, ObjectKey, PeerName, Prefix},
    snapshot::Snapshot,
    speaker::{
        Watch,
        advertise::Unpeered,
        bgp::{SessionStatus, Wanted},
    },
    write::Write,
};

/// A datagram of another speaker. It has crossed no router (TTL or hop limit 255).
#[derive(Clone, Debug)]
pub struct Arrived {
    /// When it was there. What can wait may be taken in later.
    pub at: Instant,
    /// The IP source.
    pub from: IpAddr,
    /// What it says.
    pub datagram: Box<Datagram>,
}

/// What a speaker takes in.
#[derive(Clone, Debug)]
pub enum Event {
    /// All facts, new.
    Snapshot(Arc<Snapshot>),
    /// Every interface of this node, new.
    Interfaces(BTreeMap<InterfaceName, Interface>),
    /// Datagrams of other speakers arrived and were opened: all that are there when something else is due, and those that can
    /// wait before one that came later and cannot.
    Heard(Vec<Arrived>),
    /// What is seen of an interface of another node, by whatever watches it.
    Watched {
        /// The node.
        node: NodeName,
        /// Its interface, by its own name.
        interface: InterfaceName,
        /// What is seen.
        verdict: Verdict,
    },
    /// Whether the proxy of this node is ready; it counts as not ready until told.
    ProxyReady(bool),
    /// What the node's kube-proxy says at a health check port; the last answer stands until another comes.
    Health {
        /// The port.
        port: NonZeroU16,
        /// What it says.
        answer: Answer,
    },
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
    /// How the session with a router stands is different.
    Session(Box<SessionStatus>),
    /// A router is spoken with no more.
    SessionGone {
        /// By its BGPPeer.
        peer: PeerName,
        /// Which of several, where the BGPPeer stands for a prefix.
        remote: Option<IpAddr>,
    },
    /// After an [`Action::Peer`] with [`Wanted::departing`]: every router has been told.
    Parted,
    /// Stop: hand over, then finish.
    Shutdown,
    /// The deadline has come.
    Tick,
}

/// What kube-proxy says of a Service on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It carries it (`200`).
    Agrees,
    /// It does not (any other status).
    Refuses,
    /// Nobody answers.
    Nothing,
}

/// What is seen of an interface of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answers.
    Up,
    /// It did, and does not any more.
    Down,
    /// Nobody looks.
    Unwatched,
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
    /// Seal a datagram and send it to every address, with TTL or hop limit 255. From the first one on, datagrams should
    /// be received too.
    Gossip {
        /// The addresses, of one other speaker or of all.
        to: Vec<IpAddr>,
        /// What to say.
        datagram: Datagram,
    },
    /// Receive ARP and neighbour discovery on exactly these interfaces; none means nothing is to be announced.
    Listen {
        /// The interfaces.
        interfaces: BTreeSet<InterfaceName>,
    },
    /// Ask `GET /healthz` at exactly these ports, at the first of these addresses that answers, and tell what is heard.
    CheckHealth {
        /// The ports.
        ports: BTreeSet<NonZeroU16>,
        /// Addresses of this node, the likeliest first.
        at: Vec<IpAddr>,
    },
    /// Have exactly these BFD sessions, and tell what [`Watch::told`] makes of their changes.
    Watch(Watch),
    /// Speak BGP with exactly these routers, and tell them exactly these routes.
    Peer(Arc<Wanted>),
    /// Put an address on the host, as `/32` or `/128`.
    Hold {
        /// Which.
        address: IpAddr,
    },
    /// Of the traffic to exactly these addresses, pass on what belongs to TCP connections that began elsewhere.
    PassOn(BTreeMap<IpAddr, NextHop>),
    /// Deal so with TCP connections that routers have brought to the wrong node.
    FollowStrays(StrayRules),
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

/// A neighbour on the link that packets are passed on to as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// An address of it, of the family of what is passed on.
    pub address: IpAddr,
    /// The interface of this node that it is behind, by the kernel's number.
    pub interface: u32,
}

/// What becomes of TCP connections that routers bring to a node which does not know them: *strays*. They are offered to all
/// other nodes, each of which takes what it knows and keeps silent about the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StrayRules {
    /// The addresses of Services; none where there are no routers, or no other nodes.
    pub addresses: OrdSet<IpAddr>,
    /// Where the other nodes are, at most [`Self::MAX_NODES`] for a family. Without any of its family a connection that this node
    /// does not know ends.
    pub next_hops: BTreeSet<NextHop>,
    /// The hardware addresses from which other nodes offer; none where they are not known yet.
    pub offered_by: BTreeSet<Mac>,
}

impl StrayRules {
    /// To how many other nodes strays are offered: whatever comes in for one goes out as often.
    pub const MAX_NODES: usize = 16;
}

/// A frame to send. Its Ethernet source is the interface's own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// ARP, for IPv4.
    Arp(Arp),
    /// A neighbour advertisement, for IPv6.
    Advertisement(Advertisement),
    /// A neighbour solicitation, for IPv6.
    Solicitation(Solicitation),
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
    /// The index of the bridge, bond or VRF device it belongs to, if it does (`IFLA_MASTER`).
    pub controller: Option<u32>,
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
    /// Renewals of this speaker's own Lease are seen no more: nobody is lost for want of one until they are.
    LeasesUnseen,
    /// They are seen again.
    LeasesSeen,
    /// A datagram came from an address that no node has, or speaks for another node. Told once per address.
    GossipRefused {
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
        /// Where it is taken over from a node that failed: when that one was heard last, or when the way to an interface of
        /// it was found to be lost. The frames that announce it are in the same step.
        failed_at: Option<Instant>,
    },
    /// This node has left an address to another, or nobody announces it any more.
    Lost {
        /// Which.
        address: IpAddr,
        /// Who owns it now, as far as this node can tell.
        owner: Option<NodeName>,
    },
    /// TCP connections to an address of this node that began at its former owner end now.
    NotPassedOn {
        /// Which.
        address: IpAddr,
        /// The former owner.
        from: NodeName,
        /// Why they are not passed on to it.
        why: NotPassedOn,
    },
    /// Connections that routers bring to the wrong node end there, as there are too many nodes to ask.
    TooManyNodes {
        /// How many others there are.
        nodes: usize,
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
    /// The interface of an owner that this node comes after for addresses was never seen by BFD, while others are from the same
    /// interface of this node. It is asked whether somebody else sees it.
    Unseen {
        /// The owner.
        node: NodeName,
        /// Its interface.
        interface: InterfaceName,
    },
    /// Another speaker announces an address that this node owns, and knows no better. One of the two leaves it.
    Rival {
        /// Which.
        address: IpAddr,
        /// Where it was seen.
        interface: InterfaceName,
        /// The other node.
        node: NodeName,
        /// Whether this node leaves it to the other.
        yields: bool,
    },
    /// A BGPPeer is for this node, and yet its router is not spoken with.
    Unpeered {
        /// Which.
        peer: ObjectKey,
        /// Why.
        why: Unpeered,
    },
}

/// Why connections that began at another node are not passed on to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPassedOn {
    /// It has no Node object any more, or was silent all the time.
    #[error("nothing is known of that node")]
    Unknown,
    /// None of its interfaces is on the link of the address, or is any more.
    #[error("that node is not on the link of the address")]
    NotOnLink,
    /// No way to it is known.
    #[error("the two nodes share no link on which both have an address of its family")]
    NoSharedLink,
    /// Its speaker is not heard, and neither is its kernel.
    #[error("that node does not answer on the link")]
    NoAnswer,
    /// Its speaker has stopped, or begun anew, and taken the address off its host.
    #[error("that node has taken the address off its host")]
    Released,
    /// There are more other nodes than [`StrayRules::MAX_NODES`], any of which it may have begun at.
    #[error("there are too many nodes to ask")]
    TooManyNodes,
}

impl NotPassedOn {
    /// One word for it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::NotOnLink => "NotOnLink",
            Self::NoSharedLink => "NoSharedLink",
            Self::NoAnswer => "NoAnswer",
            Self::Released => "Released",
            Self::TooManyNodes => "TooManyNodes",
        }
    }
}

/// Datagrams that were opened and yet not believed, counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disbelieved {
    /// They come from no address of the node they speak for.
    pub strangers: u64,
    /// They are old, or were received before: a replay, or another way to the same node.
    pub repeated: u64,
}
