//! The switch with its nodes, a router beside them that speaks BGP, and a client behind it.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use anyhow::{Context, Result};

use super::manifests::{OURS, THEIRS};
use crate::{
    lab::{
        event::{Peer, Profile},
        topology::{Node, Plan, Topology, uplink, uplink_v6},
    },
    netns::Namespace,
    router::{Config, Neighbor, Router, Vendor},
};

/// The router's address on the switch.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe);

/// The network behind the router: its own address there, and the client's.
const BEHIND: [(IpAddr, IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 241)), IpAddr::V4(Ipv4Addr::new(198, 51, 100, 242)), 28),
    (
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0xfe, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0xfe, 0, 0, 0, 2)),
        64,
    ),
];

/// The hold time that the router proposes, in seconds.
const HOLD_TIME: u16 = 9;

/// The network, with nothing at work in it yet.
pub struct Ground {
    /// The switch and the nodes. Its own client, beside them, has no part in this.
    pub topology: Topology,
    /// The router: `eth0` is at the switch, `eth1` at the client.
    pub router: Namespace,
    /// The client behind it.
    pub client: Namespace,
}

impl Ground {
    /// Makes it.
    ///
    /// # Errors
    /// When the kernel refuses, or a pod does not start.
    pub fn new(plan: Plan) -> Result<Self> {
        let topology = Topology::new(plan)?;
        let (router, client) = (Namespace::new("router")?, Namespace::new("client")?);
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            // By ports too, as routers do: one client has many flows.
            ("ipv4/fib_multipath_hash_policy", "1"),
            ("ipv6/fib_multipath_hash_policy", "1"),
        ] {
            router.set(key, value)?;
        }
        // Labels would be made of what the kernel counts connections by, see [`Self::socket`].
        client.set("ipv6/auto_flowlabels", "0")?;
        topology.attach(&router, [ROUTER.into(), ROUTER_V6.into()])?;
        router.links(async |links| {
            links.add_pair("eth1", "eth0", &client).await?;
            for (own, _, length) in BEHIND {
                links.add_address("eth1", own, length).await?;
            }
            Ok(())
        })?;
        client.links(async |links| {
            links.up("eth0").await?;
            for (gateway, own, length) in BEHIND {
                links.add_address("eth0", own, length).await?;
                links.add_route(unspecified(gateway), 0, gateway).await?;
            }
            Ok(())
        })?;
        for node in &topology.nodes {
            node.namespace.links(async |links| {
                links.add_route(Ipv4Addr::UNSPECIFIED.into(), 0, ROUTER.into()).await?;
                links.add_route(Ipv6Addr::UNSPECIFIED.into(), 0, ROUTER_V6.into()).await
            })?;
        }
        Ok(Self { topology, router, client })
    }

    /// Starts the router: it waits for the speaker of every node and watches it by BFD.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start_router(&self, peer: Peer, profile: Profile, graceful_restart: bool) -> Result<Router<'static>> {
        let neighbor = |node: &Node| Neighbor {
            hold_time: HOLD_TIME,
            graceful_restart,
            bfd_ms: Some(profile.interval_ms()),
            ..Neighbor::new(uplink(node.number), ROUTER, OURS)
        };
        let config = Config {
            asn: THEIRS,
            identifier: ROUTER,
            neighbors: self.topology.nodes.iter().map(neighbor).collect(),
            extra: String::new(),
        };
        let vendor = match peer {
            Peer::Bird => Vendor::Bird,
            Peer::Frr => Vendor::Frr,
        };
        Router::start_holding(vendor, &self.router, &config)
    }

    /// The nodes over which the router's kernel spreads flows to an address, by their place.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn spread(&self, address: IpAddr) -> Result<BTreeSet<usize>> {
        let gateways = self.router.links(async |links| links.gateways(address, host_length(address)).await)?;
        gateways.into_iter().map(|gateway| self.node_of(gateway)).collect()
    }

    /// A socket of the client, and the node to which the router's kernel forwards datagrams from it. It must not be
    /// connected: a namespace hands on what the kernel counts connections by, and routers know nothing of that.
    ///
    /// # Errors
    /// When no port is left, or the router's kernel forwards it to none.
    pub fn socket(&self, to: SocketAddr) -> Result<(UdpSocket, usize)> {
        let (_, own, _) = BEHIND[usize::from(to.is_ipv6())];
        let socket = self.client.run(|| UdpSocket::bind((own, 0)))?;
        let from = socket.local_addr()?;
        let gateway = self.router.links(async |links| links.way("eth1", from, to).await)?;
        Ok((socket, self.node_of(gateway)?))
    }

    /// Which of the nodes a gateway is.
    fn node_of(&self, gateway: IpAddr) -> Result<usize> {
        let is_it = |node: &Node| {
            gateway == uplink(node.number) || gateway == uplink_v6(node.number) || gateway == link_local(node)
        };
        self.topology.nodes.iter().position(is_it).with_context(|| format!("{gateway} is no node"))
    }

    /// Whether the router's kernel has a route to an address.
    ///
    /// # Errors
    /// When its table cannot be read.
    pub fn has_route(address: IpAddr) -> Result<bool> {
        Ok(match address {
            IpAddr::V4(address) => {
                // In the order of the machine's bytes.
                let wanted = format!("\t{:08X}\t", u32::from_ne_bytes(address.octets()));
                fs::read_to_string("/proc/thread-self/net/route")?.contains(&wanted)
            }
            IpAddr::V6(address) => {
                let wanted = format!("{:032x} 80 ", u128::from(address));
                fs::read_to_string("/proc/thread-self/net/ipv6_route")?
                    .lines()
                    .any(|line| line.starts_with(&wanted) && !line.ends_with(" lo"))
            }
        })
    }

    /// How many routes to one IPv4 address each the kernel of this namespace has.
    ///
    /// # Errors
    /// When its table cannot be read.
    pub fn host_routes() -> Result<usize> {
        let table = fs::read_to_string("/proc/thread-self/net/route")?;
        Ok(table.lines().filter(|line| line.contains("\tFFFFFFFF\t")).count())
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn host_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The link-local address that the kernel makes of a node's Ethernet address (RFC 4291, appendix A).
fn link_local(node: &Node) -> IpAddr {
    let [a, b, c, d, e, f] = node.mac.0;
    let identifier = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    Ipv6Addr::from((0xfe80 << 112) | u128::from(u64::from_be_bytes(identifier))).into()
}
