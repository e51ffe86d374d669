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
use futures::{FutureExt, StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup, new_connection, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags},
        link::LinkAttribute,
    },
    sys::SocketAddr,
};
use tokio::{sync::mpsc, task::JoinSet};
use tracing::warn;

/// Every interface by name.
pub(crate) type Interfaces = BTreeMap<InterfaceName, Interface>;

/// `IFF_NOARP`, which pnet does not name.
const NO_ARP: u32 = libc::IFF_NOARP as u32;

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
    /// The interfaces after each change. The kernel's own queue takes what does not fit.
    pub(crate) next: mpsc::Receiver<Interfaces>,
    /// The connection to the kernel, for other questions.
    pub(crate) netlink: Handle,
}

/// Reads the interfaces now and follows them in a task.
pub(crate) async fn follow(tasks: &mut JoinSet<()>) -> Result<Following, InterfacesError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    // Two connections: a flood of changes makes the kernel drop messages, and an answer that is dropped would be waited
    // for without end.
    let (connection, _, changes) = new_multicast_connection(&groups).map_err(InterfacesError::Socket)?;
    tasks.spawn(connection);
    let (connection, netlink, _) = new_connection().map_err(InterfacesError::Socket)?;
    tasks.spawn(connection);
    let first = read(&netlink).await.map_err(InterfacesError::Read)?;
    let (sender, next) = mpsc::channel(CHANGES);
    let following = Following { first: first.interfaces.clone(), next, netlink: netlink.clone() };
    tasks.spawn(publish(first, sender, netlink, changes));
    Ok(following)
}

async fn publish(
    mut known: Reading,
    sender: mpsc::Sender<Interfaces>,
    netlink: Handle,
    mut changes: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
) {
    while let Some((change, _)) = changes.next().await {
        let loopbacks = known.interfaces.values().filter(|interface| interface.loopback);
        let loopbacks: BTreeSet<u32> = loopbacks.map(|interface| interface.index).collect();
        let mut concerns = concerns_interfaces(&change, &loopbacks);
        while let Some(Some((change, _))) = changes.next().now_or_never() {
            concerns |= concerns_interfaces(&change, &loopbacks);
        }
        if !concerns {
            continue;
        }
        let fresh = loop {
            match read(&netlink).await {
                Ok(fresh) => break fresh,
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

/// The interfaces, and how often each, by its number, has lost its carrier.
struct Reading {
    interfaces: Interfaces,
    losses: BTreeMap<u32, u32>,
}

impl Reading {
    /// The interfaces as they were between an earlier reading and this one, if that is different: one that lost its
    /// carrier and has it again was without in between, and whoever is behind it may have forgotten this node.
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
        is_different.then_some(between)
    }
}

async fn read(netlink: &Handle) -> Result<Reading, rtnetlink::Error> {
    let mut names = BTreeMap::new();
    let mut enslaved = BTreeSet::new();
    let mut losses = BTreeMap::new();
    let mut links = netlink.link().get().execute();
    while let Some(link) = links.try_next().await? {
        let index = link.header.index;
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => drop(names.insert(index, name)),
                LinkAttribute::Controller(_) => drop(enslaved.insert(index)),
                LinkAttribute::CarrierDownCount(count) => drop(losses.insert(index, count)),
                _ => {}
            }
        }
    }
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
    let interfaces = found.iter().filter(|found| names.get(&found.index) == Some(&found.name)).map(|main| {
        let labels = found.iter().filter(|other| other.index == main.index);
        let addresses = labels.flat_map(|label| &label.ips).filter(|address: &&Prefix| {
            // Addresses of the loopback are of no use to anyone here and may be many.
            !main.is_loopback() && !unusable.contains(&(main.index, address.ip()))
        });
        let interface = Interface {
            index: main.index,
            mac: main.mac.map(|mac| Mac(mac.octets())).filter(|mac| mac.is_station()),
            up: main.is_up(),
            carrier: main.is_running() && main.is_lower_up(),
            broadcast: main.is_broadcast(),
            no_arp: main.flags & NO_ARP != 0,
            loopback: main.is_loopback(),
            enslaved: enslaved.contains(&main.index),
            addresses: addresses.copied().collect(),
        };
        (InterfaceName::from(main.name.as_str()), interface)
    });
    Ok(Reading { interfaces: interfaces.collect(), losses })
}
