//! Which interfaces this node has, their addresses and their state; new facts as soon as the kernel tells of a change.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Duration,
};

use ferrogate_core::{
    model::{InterfaceName, Prefix},
    speaker::Interface,
};
use ferrogate_wire::ethernet::Mac;
use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup, new_connection, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags},
        link::{LinkAttribute, LinkFlags, LinkMessage},
    },
    proto,
    sys::{SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::warn;

/// Every interface by name.
pub(crate) type Interfaces = BTreeMap<InterfaceName, Interface>;

/// Changes that may wait for the loop.
const CHANGES: usize = 16;

/// How long to wait after the kernel could not be asked; a dump fails when an interface vanishes in its middle.
const READ_AGAIN: Duration = Duration::from_millis(100);

/// Why the interfaces cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum InterfacesError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused to answer.
    #[error("cannot read the network interfaces")]
    Read(#[source] rtnetlink::Error),
}

/// What [`follow`] gives.
pub(crate) struct Following {
    /// The interfaces now.
    pub(crate) first: Interfaces,
    /// The interfaces after each change. While it is full nothing is read, and then all changes since are one.
    pub(crate) next: mpsc::Receiver<Interfaces>,
    /// The connection to the kernel, for other questions.
    pub(crate) netlink: Handle,
    /// One that takes many requests at once.
    pub(crate) requests: Requests,
}

/// Takes many requests to the kernel at once.
pub(crate) type Requests = proto::ConnectionHandle<RouteNetlinkMessage>;

/// Reads the interfaces now and follows them in a task.
pub(crate) async fn follow(tasks: &mut JoinSet<()>) -> Result<Following, InterfacesError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    // Changes have a connection of their own: a flood of them makes the kernel drop messages, and an answer that is dropped
    // would be waited for without end.
    let (connection, _, changes) = new_multicast_connection(&groups).map_err(InterfacesError::Socket)?;
    tasks.spawn(connection);
    let (connection, netlink, _) = new_connection().map_err(InterfacesError::Socket)?;
    tasks.spawn(connection);
    let (connection, requests, _) = proto::new_connection(NETLINK_ROUTE).map_err(InterfacesError::Socket)?;
    tasks.spawn(connection);
    let first = read(&netlink).await.map_err(InterfacesError::Read)?;
    let (sender, next) = mpsc::channel(CHANGES);
    let following = Following { first: first.interfaces.clone(), next, netlink: netlink.clone(), requests };
    let (tell, told) = watch::channel(Told::default());
    tasks.spawn(notice(loopbacks(&first.interfaces), tell, changes));
    tasks.spawn(publish(first, sender, netlink, told));
    Ok(following)
}

/// What the kernel has told of since the speaker started, however often: whoever is slow finds all of it in one value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    /// How often the loopback went down, or may have.
    loopback_falls: u64,
}

/// Takes every message in at once, so that none waits for a reading or for the loop: what is queued in this process is
/// never more than one look at the socket finds.
async fn notice(
    loopbacks: BTreeSet<u32>,
    told: watch::Sender<Told>,
    mut changes: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
) {
    while let Some((change, _)) = changes.next().await {
        if concerns_interfaces(&change, &loopbacks) {
            told.send_modify(|told| told.loopback_falls += u64::from(may_be_a_fall(&change)));
        }
    }
}

async fn publish(
    mut known: Reading,
    sender: mpsc::Sender<Interfaces>,
    netlink: Handle,
    mut told: watch::Receiver<Told>,
) {
    while told.changed().await.is_ok() {
        // Before anything is read: what comes later is told of again.
        let loopback_falls = told.borrow_and_update().loopback_falls;
        let fresh = loop {
            match read(&netlink).await {
                Ok(fresh) => break Reading { loopback_falls, ..fresh },
                Err(error) => {
                    warn!(%error, "cannot read the network interfaces, trying again");
                    tokio::time::sleep(READ_AGAIN).await;
                }
            }
        };
        let between = fresh.between(&known);
        if between.is_some() || fresh.interfaces != known.interfaces {
            for interfaces in between.into_iter().chain([fresh.interfaces.clone()]) {
                if sender.send(interfaces).await.is_err() {
                    return;
                }
            }
        }
        known = fresh;
    }
}

/// Whether a message can change the facts. Addresses on the loopback cannot: most of them are our own doing, and
/// reading everything again for each of a thousand would take long.
fn concerns_interfaces(change: &NetlinkMessage<RouteNetlinkMessage>, loopbacks: &BTreeSet<u32>) -> bool {
    match &change.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
        ) => !loopbacks.contains(&address.header.index),
        // An overrun means that messages were lost.
        _ => true,
    }
}

/// Whether a message says that the loopback is down, or stands for others that may have said so.
fn may_be_a_fall(change: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &change.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            let flags = link.header.flags;
            flags.contains(LinkFlags::Loopback) && !flags.contains(LinkFlags::Up)
        }
        NetlinkPayload::InnerMessage(_) => false,
        _ => true,
    }
}

/// The interfaces, and what they have been through that their state alone does not show.
struct Reading {
    interfaces: Interfaces,
    /// How often each, by its number, has lost its carrier.
    losses: BTreeMap<u32, u32>,
    /// How often the loopback had gone down before; it never loses its carrier.
    loopback_falls: u64,
}

impl Reading {
    /// The interfaces as they were between an earlier reading and this one, if that is different: one that lost its
    /// carrier and has it again was without in between, and whoever is behind it may have forgotten this node. A
    /// loopback that went down and is up again was down in between, and has lost its routes of IPv6.
    fn between(&self, earlier: &Self) -> Option<Interfaces> {
        let mut between = self.interfaces.clone();
        let mut is_different = false;
        for interface in between.values_mut().filter(|interface| interface.carrier) {
            let losses = |reading: &Self| reading.losses.get(&interface.index).copied();
            if losses(earlier).is_some_and(|before| losses(self) != Some(before)) {
                interface.carrier = false;
                is_different = true;
            }
        }
        if self.loopback_falls != earlier.loopback_falls {
            for interface in between.values_mut().filter(|interface| interface.loopback && interface.up) {
                interface.up = false;
                is_different = true;
            }
        }
        is_different.then_some(between)
    }
}

async fn read(netlink: &Handle) -> Result<Reading, rtnetlink::Error> {
    let links: Vec<LinkMessage> = netlink.link().get().execute().try_collect().await?;
    let links: Vec<Link> = links.iter().map(Link::from).collect();
    let mut unusable: BTreeSet<(u32, IpAddr)> = BTreeSet::new();
    let mut addresses = netlink.address().get().execute();
    while let Some(message) = addresses.try_next().await? {
        if !message.header.flags.intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed) {
            continue;
        }
        unusable.extend(message.attributes.iter().filter_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some((message.header.index, *ip)),
            _ => None,
        }));
    }

    // An address with a label of its own (`eth0:1`) looks like an interface here; by the number it is found to belong
    // to one.
    let found = pnet::datalink::interfaces();
    let losses = links.iter().filter_map(|link| Some((link.interface.index, link.losses?))).collect();
    let interfaces = links.into_iter().map(|Link { name, mut interface, .. }| {
        let labels = found.iter().filter(|other| other.index == interface.index);
        let addresses = labels.flat_map(|label| &label.ips).filter(|address: &&Prefix| {
            // Addresses of the loopback are of no use to anyone here and may be many.
            !interface.loopback && !unusable.contains(&(interface.index, address.ip()))
        });
        interface.addresses = addresses.copied().collect();
        (name, interface)
    });
    Ok(Reading { interfaces: interfaces.collect(), losses, loopback_falls: 0 })
}

/// The loopbacks by their numbers; they are there as long as their namespace.
fn loopbacks(interfaces: &Interfaces) -> BTreeSet<u32> {
    interfaces.values().filter(|interface| interface.loopback).map(|interface| interface.index).collect()
}

/// What the kernel says of an interface in one message, which is all but its addresses.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    name: InterfaceName,
    interface: Interface,
    /// How often it has lost its carrier.
    losses: Option<u32>,
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            name: "".into(),
            interface: Interface {
                index: message.header.index,
                mac: None,
                up: flags.contains(LinkFlags::Up),
                carrier: flags.contains(LinkFlags::Running | LinkFlags::LowerUp),
                broadcast: flags.contains(LinkFlags::Broadcast),
                no_arp: flags.contains(LinkFlags::Noarp),
                loopback: flags.contains(LinkFlags::Loopback),
                controller: None,
                addresses: Vec::new(),
            },
            losses: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name.as_str().into(),
                LinkAttribute::Address(address) => {
                    let mac = address.as_slice().try_into().ok().map(Mac);
                    link.interface.mac = mac.filter(|mac| mac.is_station());
                }
                LinkAttribute::Controller(index) => link.interface.controller = Some(*index),
                LinkAttribute::CarrierDownCount(count) => link.losses = Some(*count),
                _ => {}
            }
        }
        link
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The numbers of linux/if.h, linux/if_link.h and linux/if_arp.h, written down by hand: what is tested is that they are
    // read as the kernel means them.
    const UP: u32 = 0x1;
    const BROADCAST: u32 = 0x2;
    const LOOPBACK: u32 = 0x8;
    const RUNNING: u32 = 0x40;
    const NOARP: u32 = 0x80;
    const MASTER: u32 = 0x400;
    const SLAVE: u32 = 0x800;
    const MULTICAST: u32 = 0x1000;
    const LOWER_UP: u32 = 0x1_0000;
    const ETHERNET: u16 = 1;
    const INFINIBAND: u16 = 32;
    const LOOP: u16 = 772;
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_LINK: u16 = 5;
    const IFLA_MASTER: u16 = 10;
    const IFLA_OPERSTATE: u16 = 16;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_CARRIER_DOWN_COUNT: u16 = 48;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const IFLA_INFO_SLAVE_KIND: u16 = 4;
    const IFLA_VLAN_ID: u16 = 1;
    const IFLA_VLAN_PROTOCOL: u16 = 5;
    const IFLA_BOND_MODE: u16 = 1;
    const IFLA_BOND_ACTIVE_SLAVE: u16 = 2;
    const RTM_NEWLINK: u16 = 16;

    const READY: u32 = UP | BROADCAST | RUNNING | MULTICAST | LOWER_UP;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn text(kind: u16, payload: &str) -> Vec<u8> {
        attribute(kind, &[payload.as_bytes(), b"\0"].concat())
    }

    /// A message as the kernel sends it (rtnetlink(7)).
    fn message(index: u32, hardware: u16, flags: u32, attributes: &[Vec<u8>]) -> NetlinkMessage<RouteNetlinkMessage> {
        let mut body = vec![0, 0];
        body.extend(hardware.to_ne_bytes());
        body.extend(index.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend([0; 4]);
        body.extend(attributes.concat());
        let mut bytes = u32::try_from(body.len() + 16).unwrap().to_ne_bytes().to_vec();
        bytes.extend(RTM_NEWLINK.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        NetlinkMessage::deserialize(&bytes).unwrap()
    }

    /// The same, read as the speaker does.
    fn link(index: u32, hardware: u16, flags: u32, attributes: &[Vec<u8>]) -> Link {
        let message = message(index, hardware, flags, attributes);
        let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload else {
            panic!("{message:?}")
        };
        Link::from(&link)
    }

    fn ethernet(name: &str, mac: Mac) -> Vec<Vec<u8>> {
        vec![
            text(IFLA_IFNAME, name),
            attribute(IFLA_MTU, &1500_u32.to_ne_bytes()),
            attribute(IFLA_OPERSTATE, &[6]),
            attribute(IFLA_ADDRESS, &mac.0),
        ]
    }

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x17]);

    fn usable(index: u32) -> Interface {
        Interface {
            index,
            mac: Some(MAC),
            up: true,
            carrier: true,
            broadcast: true,
            no_arp: false,
            loopback: false,
            controller: None,
            addresses: Vec::new(),
        }
    }

    /// `ip link add bond0 type bond mode active-backup` with two interfaces in it.
    #[test]
    fn a_bond_is_an_interface_and_what_is_in_it_is_none_of_its_own() {
        let data = [attribute(IFLA_BOND_MODE, &[1]), attribute(IFLA_BOND_ACTIVE_SLAVE, &2_u32.to_ne_bytes())];
        let info = [text(IFLA_INFO_KIND, "bond"), attribute(IFLA_INFO_DATA, &data.concat())];
        let bond = [ethernet("bond0", MAC), vec![attribute(IFLA_LINKINFO, &info.concat())]].concat();
        let part = |name: &str| {
            let info = text(IFLA_INFO_SLAVE_KIND, "bond");
            let more = vec![attribute(IFLA_MASTER, &4_u32.to_ne_bytes()), attribute(IFLA_LINKINFO, &info)];
            // All have the address of the bond.
            [ethernet(name, MAC), more].concat()
        };

        let bond = link(4, ETHERNET, READY | MASTER, &bond);
        let active = link(2, ETHERNET, READY | SLAVE, &part("eth0"));
        let spare = link(3, ETHERNET, READY | SLAVE, &part("eth1"));

        assert_eq!(bond, Link { name: "bond0".into(), interface: usable(4), losses: None });
        for (part, index, name) in [(active, 2, "eth0"), (spare, 3, "eth1")] {
            let interface = Interface { controller: Some(4), ..usable(index) };
            assert_eq!(part, Link { name: name.into(), interface, losses: None });
        }
    }

    #[test]
    fn a_bond_in_which_no_interface_works_has_no_carrier_and_counts_that() {
        let counted = [ethernet("bond0", MAC), vec![attribute(IFLA_CARRIER_DOWN_COUNT, &2_u32.to_ne_bytes())]].concat();

        // NO-CARRIER, as `ip link` has it: it is switched on and does not run.
        let bond = link(4, ETHERNET, UP | BROADCAST | MULTICAST | MASTER, &counted);

        assert_eq!((bond.interface.up, bond.interface.carrier, bond.losses), (true, false, Some(2)));
    }

    /// `ip link add link bond0 name bond0.100 type vlan id 100`.
    #[test]
    fn a_vlan_is_an_interface_of_its_own_beside_the_one_it_is_on() {
        let data =
            [attribute(IFLA_VLAN_ID, &100_u16.to_ne_bytes()), attribute(IFLA_VLAN_PROTOCOL, &0x8100_u16.to_be_bytes())];
        let info = [text(IFLA_INFO_KIND, "vlan"), attribute(IFLA_INFO_DATA, &data.concat())];
        let more = vec![attribute(IFLA_LINK, &4_u32.to_ne_bytes()), attribute(IFLA_LINKINFO, &info.concat())];
        let vlan = [ethernet("bond0.100", MAC), more].concat();

        let up = link(5, ETHERNET, READY, &vlan);
        // What it is on has lost its carrier, or is switched off.
        let cut = link(5, ETHERNET, UP | BROADCAST | MULTICAST, &vlan);

        assert_eq!(up, Link { name: "bond0.100".into(), interface: usable(5), losses: None });
        assert!(!cut.interface.carrier);
    }

    #[tokio::test]
    async fn however_many_changes_nobody_has_looked_at_one_value_says_what_matters_of_them() {
        let (kernel, changes) = futures::channel::mpsc::unbounded();
        let (tell, mut told) = watch::channel(Told::default());
        let lost = NetlinkPayload::<RouteNetlinkMessage>::Overrun(Vec::new());
        let up = message(1, LOOP, UP | LOOPBACK | RUNNING | LOWER_UP, &[text(IFLA_IFNAME, "lo")]);
        let down = message(1, LOOP, LOOPBACK, &[text(IFLA_IFNAME, "lo")]);
        let other = message(2, ETHERNET, BROADCAST | MULTICAST, &ethernet("eth0", MAC));
        for change in [down, up, other, NetlinkMessage::new(Default::default(), lost)] {
            kernel.unbounded_send((change, SocketAddr::new(0, 0))).unwrap();
        }
        drop(kernel);

        notice(BTreeSet::from([1]), tell, changes).await;

        // What was lost may have been a fall, too.
        assert_eq!(*told.borrow_and_update(), Told { loopback_falls: 2 });
    }

    #[test]
    fn a_loopback_that_went_down_and_is_up_again_was_down_in_between() {
        let lo = Interface { loopback: true, ..usable(1) };
        let reading = |up: bool, loopback_falls: u64| Reading {
            interfaces: BTreeMap::from([("lo".into(), Interface { up, ..lo.clone() }), ("eth0".into(), usable(2))]),
            losses: BTreeMap::new(),
            loopback_falls,
        };

        assert_eq!(reading(true, 1).between(&reading(true, 0)), Some(reading(false, 0).interfaces));
        // Whoever sees it down needs not be told twice.
        assert_eq!(reading(false, 1).between(&reading(true, 0)), None);
        assert_eq!(reading(true, 1).between(&reading(false, 1)), None);
    }

    #[test]
    fn what_has_no_address_like_that_of_ethernet_has_none() {
        let infiniband = [text(IFLA_IFNAME, "ib0"), attribute(IFLA_ADDRESS, &[2; 20])];
        let tunnel = [text(IFLA_IFNAME, "tun0")];

        assert_eq!(link(6, INFINIBAND, READY, &infiniband).interface.mac, None);
        let tunnel = link(7, 0xfffe, UP | RUNNING | LOWER_UP | NOARP, &tunnel).interface;
        assert_eq!((tunnel.mac, tunnel.no_arp, tunnel.broadcast), (None, true, false));
    }
}
