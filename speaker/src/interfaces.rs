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
    Handle, MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags},
        link::{LinkAttribute, LinkFlags},
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
    let (connection, netlink, changes) = new_multicast_connection(&groups).map_err(InterfacesError::Socket)?;
    tasks.spawn(connection);
    let first = read(&netlink).await.map_err(InterfacesError::Read)?;
    let (sender, next) = mpsc::channel(CHANGES);
    tasks.spawn(publish(first.clone(), sender, netlink.clone(), changes));
    Ok(Following { first, next, netlink })
}

async fn publish(
    mut known: Interfaces,
    sender: mpsc::Sender<Interfaces>,
    netlink: Handle,
    mut changes: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
) {
    while let Some((change, _)) = changes.next().await {
        let loopback: BTreeSet<u32> = known.values().filter(|own| own.loopback).map(|own| own.index).collect();
        let mut concerns = concerns_interfaces(&change, &loopback);
        let mut went_down = BTreeSet::from_iter(down(&change));
        while let Some(Some((change, _))) = changes.next().now_or_never() {
            concerns |= concerns_interfaces(&change, &loopback);
            went_down.extend(down(&change));
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
        // An interface that went down and came back before it was read was down all the same: whoever is behind it may
        // have forgotten this node.
        let mut between = fresh.clone();
        for interface in between.values_mut().filter(|interface| went_down.contains(&interface.index)) {
            interface.carrier = false;
        }
        for next in [between, fresh] {
            if next != known {
                known.clone_from(&next);
                if sender.send(next).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The interface that a message says is switched off or has no carrier.
fn down(change: &NetlinkMessage<RouteNetlinkMessage>) -> Option<u32> {
    match &change.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            let header = &link.header;
            (!header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp)).then_some(header.index)
        }
        _ => None,
    }
}

/// Whether a message can change the facts. Addresses on the loopback cannot: most of them are our own doing, and
/// reading everything again for each of a thousand would take long.
fn concerns_interfaces(change: &NetlinkMessage<RouteNetlinkMessage>, loopback: &BTreeSet<u32>) -> bool {
    match &change.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
        ) => !loopback.contains(&address.header.index),
        // An overrun means that messages were lost.
        _ => true,
    }
}

async fn read(handle: &Handle) -> Result<Interfaces, rtnetlink::Error> {
    let mut enslaved = BTreeSet::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        if link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Controller(_))) {
            enslaved.insert(link.header.index);
        }
    }
    let mut tentative: BTreeSet<(u32, IpAddr)> = BTreeSet::new();
    let mut addresses = handle.address().get().execute();
    while let Some(address) = addresses.try_next().await? {
        let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
        if !address.header.flags.intersects(unusable) {
            continue;
        }
        tentative.extend(address.attributes.iter().filter_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some((address.header.index, *ip)),
            _ => None,
        }));
    }

    let interfaces = pnet::datalink::interfaces().into_iter().map(|found| {
        let usable = |address: &&_| {
            let address: &Prefix = address;
            !tentative.contains(&(found.index, address.ip()))
        };
        let interface = Interface {
            index: found.index,
            mac: found.mac.map(|mac| Mac(mac.octets())).filter(|mac| mac.is_station()),
            up: found.is_up(),
            carrier: found.is_running() && found.is_lower_up(),
            broadcast: found.is_broadcast(),
            no_arp: found.flags & NO_ARP != 0,
            loopback: found.is_loopback(),
            enslaved: enslaved.contains(&found.index),
            // Addresses of the loopback are of no use to anyone here and may be many.
            addresses: found.ips.iter().filter(usable).filter(|_| !found.is_loopback()).copied().collect(),
        };
        (InterfaceName::from(found.name.as_str()), interface)
    });
    Ok(interfaces.collect())
}
