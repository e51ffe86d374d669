//! The switch, what can go wrong on it, and the clients with their neighbour tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ferrogate_core::speaker::{self, Frame};
use ferrogate_wire::{
    arp::{Arp, Operation},
    ethernet::Mac,
    ndp::{Ndp, Solicitation, solicited_node},
};
use rand::{Rng, rngs::SmallRng};

use super::{Happening, INTERFACE, World, facts};

/// Something that hangs on the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Port {
    Node(usize),
    Client(usize),
}

/// A frame under way.
#[derive(Clone, Debug)]
pub enum Packet {
    /// ARP.
    Arp(Arp),
    /// Neighbour discovery.
    Ndp(Ndp),
}

impl From<Frame> for Packet {
    fn from(frame: Frame) -> Self {
        match frame {
            Frame::Arp(arp) => Self::Arp(arp),
            Frame::Advertisement(advertisement) => Self::Ndp(Ndp::Advertisement(advertisement)),
            Frame::Solicitation(solicitation) => Self::Ndp(Ndp::Solicitation(solicitation)),
        }
    }
}

impl Packet {
    fn destination(&self) -> Mac {
        match self {
            Self::Arp(arp) => arp.destination,
            Self::Ndp(Ndp::Solicitation(solicitation)) => solicitation.destination_mac,
            Self::Ndp(Ndp::Advertisement(advertisement)) => advertisement.destination_mac,
        }
    }

    /// The solicited-node group it goes to, if it goes to one. A snooping switch sends it only where that was joined.
    fn group(&self) -> Option<Ipv6Addr> {
        match self {
            Self::Ndp(Ndp::Solicitation(solicitation)) => Some(solicitation.destination),
            _ => None,
        }
    }

    /// Which address it says is where.
    fn tells(&self) -> Option<(IpAddr, Mac)> {
        match self {
            Self::Arp(arp) if arp.sender.is_unspecified() => None,
            Self::Arp(arp) => Some((arp.sender.into(), arp.sender_mac)),
            Self::Ndp(Ndp::Solicitation(_)) => None,
            Self::Ndp(Ndp::Advertisement(advertisement)) => {
                Some((advertisement.target.into(), advertisement.target_link_layer?))
            }
        }
    }
}

/// The switch and everything that hangs on it.
#[derive(Debug)]
pub struct Link {
    pub(super) nodes: Vec<NodePort>,
    /// All clients.
    pub clients: Vec<Client>,
    /// On which side of a partition each port is; equal numbers reach each other.
    sides: BTreeMap<Port, u8>,
    /// One-way losses between nodes: from, to.
    pub(super) mute: BTreeSet<(usize, usize)>,
    /// How many of a thousand frames and datagrams are lost.
    pub(super) loss_per_mille: u32,
    /// The longest a frame or datagram is under way.
    pub(super) slowest: Duration,
}

#[derive(Debug)]
pub(super) struct NodePort {
    pub(super) has_power: bool,
    pub(super) has_cable: bool,
    pub(super) listens: bool,
    pub(super) groups: BTreeSet<Ipv6Addr>,
}

impl NodePort {
    /// Its process is gone, and its sockets with it.
    pub(super) fn restart(&mut self) {
        self.listens = false;
        self.groups.clear();
    }
}

/// A client: a neighbour table that believes what the kernel of Linux would believe, and never forgets by itself.
#[derive(Debug, Default)]
pub struct Client {
    /// Where it sends what is for an address.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// What it asks for just now, and who answered.
    pub asking: BTreeMap<IpAddr, BTreeSet<Mac>>,
    /// Addresses of which it missed an announcement through a fault; it cannot be blamed for an old entry.
    pub deprived: BTreeSet<IpAddr>,
}

/// The usual time a frame is under way, at most.
pub(super) const USUAL: Duration = Duration::from_micros(400);

impl Link {
    pub(super) fn new(nodes: usize, clients: usize) -> Self {
        let port = || NodePort { has_power: true, has_cable: true, listens: false, groups: BTreeSet::new() };
        Self {
            nodes: (0..nodes).map(|_| port()).collect(),
            clients: (0..clients).map(|_| Client::default()).collect(),
            sides: BTreeMap::new(),
            mute: BTreeSet::new(),
            loss_per_mille: 0,
            slowest: USUAL,
        }
    }

    /// Puts these nodes and clients on a side of their own.
    pub fn part(&mut self, nodes: &BTreeSet<usize>, clients: &BTreeSet<usize>) {
        let nodes = nodes.iter().map(|&node| Port::Node(node));
        self.sides = nodes.chain(clients.iter().map(|&client| Port::Client(client))).map(|port| (port, 1)).collect();
    }

    /// Lets a node not hear another any more.
    pub fn mute(&mut self, speaker: usize, listener: usize) {
        self.mute.insert((speaker, listener));
    }

    /// Makes everything reach everything again, at once and without loss. Cables stay as they are.
    pub fn heal(&mut self) {
        self.sides.clear();
        self.mute.clear();
        self.loss_per_mille = 0;
        self.slowest = USUAL;
    }

    /// A speaker that ends while the network is broken may be one the others have never heard of. Then nobody knows
    /// that clients believe in it, and they find out by themselves.
    pub(super) fn forgive_clients_of(&mut self, node: usize) {
        if self.sides.is_empty() && self.mute.is_empty() && self.loss_per_mille == 0 {
            return;
        }
        for client in &mut self.clients {
            let mac = facts::node_mac(node);
            client
                .deprived
                .extend(client.neighbours.iter().filter(|(_, entry)| **entry == mac).map(|(address, _)| *address));
        }
    }

    /// Whether nothing between two ports is broken for good.
    fn reaches(&self, from: Port, to: Port) -> bool {
        let is_up = |port| match port {
            Port::Node(node) => self.nodes.get(node).is_some_and(|node: &NodePort| node.has_power && node.has_cable),
            Port::Client(_) => true,
        };
        let side = |port| self.sides.get(&port).copied().unwrap_or_default();
        let is_mute = matches!((from, to), (Port::Node(from), Port::Node(to)) if self.mute.contains(&(from, to)));
        is_up(from) && is_up(to) && side(from) == side(to) && !is_mute
    }

    /// Whether what one node says to another arrives, as long as nothing is lost by chance.
    pub(super) fn hears(&self, listener: usize, speaker: usize) -> bool {
        self.reaches(Port::Node(speaker), Port::Node(listener))
    }

    /// Whether nothing is lost by chance, and nothing late.
    pub(super) fn is_clear(&self) -> bool {
        self.loss_per_mille == 0 && self.slowest <= USUAL
    }

    fn is_lost(&self, rng: &mut SmallRng) -> bool {
        self.loss_per_mille > 0 && rng.random_range(0..1000) < self.loss_per_mille
    }

    pub(super) fn carries_between_nodes(&self, rng: &mut SmallRng, from: usize, to: usize) -> bool {
        self.reaches(Port::Node(from), Port::Node(to)) && !self.is_lost(rng)
    }

    pub(super) fn delay(&self, rng: &mut SmallRng) -> Duration {
        let slowest = u64::try_from(self.slowest.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(rng.random_range(50..=slowest.max(50)))
    }

    fn ports(&self) -> impl Iterator<Item = Port> + use<> {
        (0..self.nodes.len()).map(Port::Node).chain((0..self.clients.len()).map(Port::Client))
    }
}

fn client_mac(client: usize) -> Mac {
    Mac([2, 0, 0, 0, 2, u8::try_from(client).unwrap_or(u8::MAX)])
}

fn mac_of(port: Port) -> Mac {
    match port {
        Port::Node(node) => facts::node_mac(node),
        Port::Client(client) => client_mac(client),
    }
}

impl World {
    /// A client asks who has an address. Answers come as time passes.
    pub fn ask(&mut self, client: usize, address: IpAddr) {
        self.link.clients[client].asking.insert(address, BTreeSet::new());
        let mac = client_mac(client);
        let packet = match address {
            IpAddr::V4(target) => Packet::Arp(Arp {
                destination: Mac::BROADCAST,
                source: mac,
                operation: Operation::Request,
                sender_mac: mac,
                sender: Ipv4Addr::new(198, 51, 100, 200),
                target_mac: Mac::ZERO,
                target,
            }),
            IpAddr::V6(target) => {
                let group = solicited_node(target);
                Packet::Ndp(Ndp::Solicitation(Solicitation {
                    destination_mac: Mac::of_group(group),
                    source_mac: mac,
                    source: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x200),
                    destination: group,
                    target,
                    source_link_layer: Some(mac),
                }))
            }
        };
        self.transmit(Port::Client(client), packet);
    }

    /// Whether a packet that a client sends to an address now would be served: its neighbour is there, has the
    /// address and a ready proxy.
    pub fn is_served(&self, client: usize, address: IpAddr) -> bool {
        let Some(mac) = self.link.clients[client].neighbours.get(&address) else { return false };
        let Some(node) = (0..self.nodes.len()).find(|&node| facts::node_mac(node) == *mac) else { return false };
        let host = &self.nodes[node];
        let reaches = self.link.reaches(Port::Client(client), Port::Node(node));
        reaches && host.proxy_ready && host.addresses.contains(&address)
    }

    pub(super) fn transmit(&mut self, from: Port, packet: Packet) {
        let destination = packet.destination();
        for to in self.link.ports().filter(|&to| to != from) {
            if !destination.is_group() && destination != mac_of(to) {
                continue;
            }
            let arrives = self.link.reaches(from, to) && !self.link.is_lost(&mut self.rng);
            match (to, packet.tells()) {
                (Port::Client(client), Some((address, _))) if !arrives => {
                    self.link.clients[client].deprived.insert(address);
                }
                _ if arrives => {
                    let delay = self.link.delay(&mut self.rng);
                    self.plan(delay, Happening::Packet { to, packet: packet.clone() });
                }
                _ => {}
            }
        }
    }

    pub(super) fn arrive(&mut self, to: Port, packet: Packet) {
        let node = match to {
            Port::Node(node) => node,
            Port::Client(client) => return self.link.clients[client].take(client_mac(client), &packet),
        };
        if let Packet::Arp(arp) = &packet
            && arp.operation == Operation::Request
            && IpAddr::from(arp.target) == facts::node_address(node)
        {
            // The kernel does so, whatever has become of the speaker.
            self.transmit(to, Packet::Arp(Arp::answer(arp, facts::node_mac(node))));
        }
        let port = &self.link.nodes[node];
        let is_joined = packet.group().is_none_or(|group| port.groups.contains(&group));
        if port.listens && port.has_cable && is_joined {
            let interface = INTERFACE.into();
            let event = match packet {
                Packet::Arp(arp) => speaker::Event::Arp { interface, arp },
                Packet::Ndp(ndp) => speaker::Event::Ndp { interface, ndp },
            };
            self.step(node, event);
        }
    }
}

impl Client {
    /// An entry that is there follows whatever is said about it; a new one takes an answer to a question of its own.
    fn take(&mut self, own: Mac, packet: &Packet) {
        let Some((address, mac)) = packet.tells() else { return };
        if packet.destination() == own
            && let Some(answers) = self.asking.get_mut(&address)
        {
            answers.insert(mac);
            self.neighbours.insert(address, mac);
            self.deprived.remove(&address);
        } else if let Some(entry) = self.neighbours.get_mut(&address) {
            *entry = mac;
            self.deprived.remove(&address);
        }
    }
}
