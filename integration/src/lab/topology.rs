//! The switch, the nodes with their pods, and the client.
//!
//! A [`Plan`] may ask for a second network beside it, on which the nodes talk to each other and reach each other's pods:
//!
//! ```text
//!            ┌──────────── management (bridge) ────────────┐  203.0.113.0/24, 2001:db8:0:ff::/64
//!            │ eth1            │ eth1          │ eth1
//!          node-1            node-2          node-3
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use ferrogate_wire::ethernet::Mac;

use crate::netns::{Links, Namespace};

/// How many nodes there are, unless a plan says otherwise.
pub const NODES: u8 = 3;

/// How many pods each node has, unless a plan says otherwise.
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

/// The address of a client on the far side of a switch that is parted.
const FAR_CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 102);

/// The same by IPv6.
const FAR_CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x102);

/// The client's address by IPv6.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100);
const BRIDGE: &str = "br0";

/// The other half of the switch while it is parted.
const FAR_BRIDGE: &str = "br1";

/// The switch of the management network.
const MANAGEMENT_BRIDGE: &str = "br2";

/// What is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How many nodes, at most 14.
    pub nodes: u8,
    /// How many pods each of them has, at most [`MAX_PODS`].
    pub pods_per_node: u8,
    /// Whether the nodes have a network of their own beside the one of the clients.
    pub management: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { nodes: NODES, pods_per_node: PODS_PER_NODE, management: false }
    }
}

impl Plan {
    /// Where a node is reached by the others.
    pub fn node_address(self, number: u8) -> Ipv4Addr {
        if self.management { Ipv4Addr::new(203, 0, 113, 10 + number) } else { uplink(number) }
    }

    /// The same by IPv6.
    pub fn node_address_v6(self, number: u8) -> Ipv6Addr {
        if self.management {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0xff, 0, 0, 0, 0x10 + u16::from(number))
        } else {
            uplink_v6(number)
        }
    }
}

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
    process: Child,
}

impl Drop for Pod {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The whole of it.
#[derive(Debug)]
pub struct Topology {
    plan: Plan,
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
    pub fn new(plan: Plan) -> Result<Self> {
        let mut topology = Self::without_pods(plan)?;
        for node in &topology.nodes {
            node.add_pod_bridge()?;
            for number in 1..=plan.pods_per_node {
                topology.pods.push(Pod::new(node, number)?);
            }
        }
        Ok(topology)
    }

    /// Makes namespaces and cables: switch, client and nodes with routes between their pods, but no pods.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn without_pods(plan: Plan) -> Result<Self> {
        let switch = Namespace::new("switch")?;
        switch.links(async |links| {
            links.add_bridge(BRIDGE).await?;
            links.add_bridge(FAR_BRIDGE).await?;
            links.add_bridge(MANAGEMENT_BRIDGE).await
        })?;
        let client = Namespace::new("client")?;
        switch.links(async |links| links.add_cable("client", BRIDGE, "eth0", &client).await)?;
        client.links(async |links| {
            for (address, length) in [(IpAddr::from(CLIENT), 24), (STRANGER.into(), 24), (CLIENT_V6.into(), 64)] {
                links.add_address("eth0", address, length).await?;
            }
            links.up("eth0").await
        })?;
        let nodes = (1..=plan.nodes).map(|number| Node::new(number, &switch, plan)).collect::<Result<Vec<_>>>()?;
        Ok(Self { plan, switch, nodes, client, pods: Vec::new() })
    }

    /// What it was made by.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// The switch: `br0`, with one port for each node that has the node's name.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// The namespaces of the nodes and the client.
    pub fn namespaces(&self) -> Vec<&Namespace> {
        self.nodes.iter().map(|node| &node.namespace).chain([&self.client]).collect()
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
            add_pod_routes(links, 1..=self.plan.nodes, Plan { management: false, ..self.plan }).await
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

    /// Lets nothing of a node through the switch any more, and nothing to it, while its carrier stays: as if a cable
    /// were cut further away. Its management network is not touched.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn silence(&self, node: &Node) -> Result<()> {
        self.switch.links(async |links| links.unplug(&node.name).await)
    }

    /// Parts the switch: this node, and whoever [`Self::attach_far`] put there, on one side, everyone else on the other.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn part(&self, node: &Node) -> Result<()> {
        self.switch.links(async |links| links.plug(&node.name, FAR_BRIDGE).await)
    }

    /// Makes the switch whole again for a node that was silenced or parted from the others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self, node: &Node) -> Result<()> {
        self.switch.links(async |links| links.plug(&node.name, BRIDGE).await)
    }

    /// Makes a second client, on the side of the switch that is empty until it is parted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_far(&self) -> Result<Namespace> {
        let far = Namespace::new("far client")?;
        self.switch.links(async |links| links.add_cable("far", FAR_BRIDGE, "eth0", &far).await)?;
        far.links(async |links| {
            links.add_address("eth0", FAR_CLIENT.into(), 24).await?;
            links.add_address("eth0", FAR_CLIENT_V6.into(), 64).await?;
            links.up("eth0").await
        })?;
        Ok(far)
    }
}

impl Node {
    fn new(number: u8, switch: &Namespace, plan: Plan) -> Result<Self> {
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
        switch.links(async |links| {
            links.add_cable(&name, BRIDGE, "eth0", &namespace).await?;
            if plan.management {
                links.add_cable(&format!("{name}-m"), MANAGEMENT_BRIDGE, "eth1", &namespace).await?;
            }
            Ok(())
        })?;
        namespace.links(async |links| {
            links.set_mac("eth0", mac).await?;
            links.add_address("eth0", uplink(number).into(), 24).await?;
            links.add_address("eth0", uplink_v6(number).into(), 64).await?;
            links.up("eth0").await?;
            if plan.management {
                links.add_address("eth1", plan.node_address(number).into(), 24).await?;
                links.add_address("eth1", plan.node_address_v6(number).into(), 64).await?;
                links.up("eth1").await?;
            }
            add_pod_routes(links, (1..=plan.nodes).filter(|other| *other != number), plan).await
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
        Ok(Self { name, _namespace: namespace, process })
    }
}

/// Adds routes to the pods of these nodes.
async fn add_pod_routes(links: &Links, nodes: impl Iterator<Item = u8>, plan: Plan) -> Result<()> {
    for node in nodes {
        links.add_route(pod_network(node).into(), 28, plan.node_address(node).into()).await?;
        links.add_route(pod_network_v6(node).into(), 64, plan.node_address_v6(node).into()).await?;
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
