//! The switch, the nodes with their pods, and the client.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use ferrogate_wire::ethernet::Mac;

use crate::netns::{Links, Namespace};

/// How many nodes there are.
pub const NODES: u8 = 3;

/// How many pods each node has.
pub const PODS_PER_NODE: u8 = 2;

/// How many pods a node has addresses for.
pub const MAX_PODS: u8 = 13;

/// Where every pod answers HTTP.
pub const POD_HTTP: u16 = 8080;

/// Where every pod echoes lines and datagrams.
pub const POD_ECHO: u16 = 7000;

/// The client's address; it is within the source ranges of the examples.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

/// A second address of the client, outside of the source ranges.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 101);

/// The client's address by IPv6.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100);
const BRIDGE: &str = "br0";

/// A node: a namespace with an uplink to the switch, and a bridge of its own for its pods.
#[derive(Debug)]
pub struct Node {
    /// Its number, from 1.
    pub number: u8,
    /// The name of its Node object.
    pub name: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// The address of its uplink, `eth0`.
    pub mac: Mac,
}

/// A pod: a backend in a namespace of its own.
#[derive(Debug)]
pub struct Pod {
    /// Its name, which its answers carry.
    pub name: String,
    _namespace: Namespace,
    _process: Child,
}

/// The whole of it.
#[derive(Debug)]
pub struct Topology {
    switch: Namespace,
    /// The nodes, in order.
    pub nodes: Vec<Node>,
    /// The client.
    pub client: Namespace,
    /// Every pod.
    pub pods: Vec<Pod>,
}

impl Topology {
    /// Makes namespaces and cables, and starts the pods; each listens when this returns.
    ///
    /// # Errors
    /// When the kernel refuses or a pod does not start.
    pub fn new() -> Result<Self> {
        let mut topology = Self::without_pods()?;
        for node in &topology.nodes {
            node.add_pod_bridge()?;
            for number in 1..=PODS_PER_NODE {
                topology.pods.push(Pod::new(node, number)?);
            }
        }
        Ok(topology)
    }

    /// Makes namespaces and cables: switch, client and nodes with routes between their pods, but no pods.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn without_pods() -> Result<Self> {
        let switch = Namespace::new("switch")?;
        switch.links(async |links| links.add_bridge(BRIDGE).await)?;
        let client = Namespace::new("client")?;
        switch.links(async |links| links.add_cable("client", BRIDGE, "eth0", &client).await)?;
        client.links(async |links| {
            for (address, length) in [(IpAddr::from(CLIENT), 24), (STRANGER.into(), 24), (CLIENT_V6.into(), 64)] {
                links.add_address("eth0", address, length).await?;
            }
            links.up("eth0").await
        })?;
        let nodes = (1..=NODES).map(|number| Node::new(number, &switch)).collect::<Result<Vec<_>>>()?;
        Ok(Self { switch, nodes, client, pods: Vec::new() })
    }

    /// Plugs a further namespace into the switch, with these addresses and routes to every pod.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&self, other: &Namespace, addresses: [IpAddr; 2]) -> Result<()> {
        self.switch.links(async |links| links.add_cable(other.name(), BRIDGE, "eth0", other).await)?;
        other.links(async |links| {
            for address in addresses {
                links.add_address("eth0", address, if address.is_ipv4() { 24 } else { 64 }).await?;
            }
            links.up("eth0").await?;
            add_pod_routes(links, 1..=NODES).await
        })
    }

    /// Pulls the cable of a node out of the switch. The other nodes are not told.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut(&self, node: &Node) -> Result<()> {
        self.switch.links(async |links| links.down(&node.name).await)
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn heal(&self, node: &Node) -> Result<()> {
        self.switch.links(async |links| links.up(&node.name).await)
    }
}

impl Node {
    fn new(number: u8, switch: &Namespace) -> Result<Self> {
        let name = format!("node-{number}");
        let mac = Mac([2, 0, 0, 0, 0, 0x10 + number]);
        let namespace = Namespace::new(&name)?;
        // Speakers answer ARP themselves and only for what they own, so the kernel must not answer for addresses of
        // another interface; the product insists on it.
        for (key, value) in [
            ("ipv4/conf/all/arp_ignore", "1"),
            ("ipv4/conf/all/arp_announce", "2"),
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
        ] {
            namespace.set(key, value)?;
        }
        switch.links(async |links| links.add_cable(&name, BRIDGE, "eth0", &namespace).await)?;
        namespace.links(async |links| {
            links.set_mac("eth0", mac).await?;
            links.add_address("eth0", uplink(number).into(), 24).await?;
            links.add_address("eth0", uplink_v6(number).into(), 64).await?;
            links.up("eth0").await?;
            add_pod_routes(links, (1..=NODES).filter(|other| *other != number)).await
        })?;
        Ok(Self { number, name, namespace, mac })
    }

    fn add_pod_bridge(&self) -> Result<()> {
        self.namespace.links(async |links| {
            links.add_bridge("cni0").await?;
            links.add_address("cni0", pod_address(self.number, 0).into(), 28).await?;
            links.add_address("cni0", pod_address_v6(self.number, 0).into(), 64).await
        })
    }
}

impl Pod {
    fn new(node: &Node, number: u8) -> Result<Self> {
        let name = format!("pod-{}-{number}", node.number);
        let namespace = Namespace::new(&name)?;
        node.namespace.links(async |links| links.add_cable(&name, "cni0", "eth0", &namespace).await)?;
        namespace.links(async |links| {
            links.add_address("eth0", pod_address(node.number, number).into(), 28).await?;
            links.add_address("eth0", pod_address_v6(node.number, number).into(), 64).await?;
            links.up("eth0").await?;
            links.add_route(Ipv4Addr::UNSPECIFIED.into(), 0, pod_address(node.number, 0).into()).await?;
            links.add_route(Ipv6Addr::UNSPECIFIED.into(), 0, pod_address_v6(node.number, 0).into()).await
        })?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["backend", "--name", &name]);
        command.args(["--http", &format!("[::]:{POD_HTTP}"), "--echo", &format!("[::]:{POD_ECHO}")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = namespace.spawn(&mut command).with_context(|| format!("starting {name}"))?;
        let output = process.stdout.take().context("a pod without output")?;
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        anyhow::ensure!(line.ends_with("listens\n"), "{name} did not start: {line:?}");
        Ok(Self { name, _namespace: namespace, _process: process })
    }
}

/// Adds routes to the pods of these nodes.
async fn add_pod_routes(links: &Links, nodes: impl Iterator<Item = u8>) -> Result<()> {
    for node in nodes {
        links.add_route(pod_network(node).into(), 28, uplink(node).into()).await?;
        links.add_route(pod_network_v6(node).into(), 64, uplink_v6(node).into()).await?;
    }
    Ok(())
}

/// The network of a node's pods, which has 28 bits.
pub fn pod_network(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 16 * node)
}

/// The address of a node on the switch.
pub fn uplink(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + node)
}

/// The same by IPv6.
pub fn uplink_v6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10 + u16::from(node))
}

/// The address of a pod, counted from 1; 0 is the node's own end of the pod network.
pub fn pod_address(node: u8, pod: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 16 * node + 1 + pod)
}

/// The same by IPv6.
pub fn pod_address_v6(node: u8, pod: u8) -> Ipv6Addr {
    let [a, b, c, d, ..] = pod_network_v6(node).segments();
    Ipv6Addr::new(a, b, c, d, 0, 0, 0, 1 + u16::from(pod))
}

/// The same by IPv6, with 64 bits.
pub fn pod_network_v6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(node), 0, 0, 0, 0)
}
