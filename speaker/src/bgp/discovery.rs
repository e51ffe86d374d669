//! Finds routers behind interfaces by their router advertisements, and makes this node known there by its own
//! (RFC 4861 §4.2). Ours say that this node is no default router.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddrV6},
    os::fd::AsRawFd,
    sync::Arc,
    time::Duration,
};

use ferrogate_core::{model::InterfaceName, speaker::bgp::Event};
use ferrogate_wire::{
    ethernet::Mac,
    ndp::{
        ALL_NODES, HOP_LIMIT,
        router::{RouterAdvertisement, router_solicitation},
    },
};
use nix::{
    cmsg_space,
    net::if_::if_nametoindex,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt as nix_sockopt},
};
use pnet::datalink;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::unix::AsyncFd,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, interval, sleep_until},
};
use tracing::{debug, warn};

use super::sockopt;
use crate::packet;

/// `ff02::2`: all routers on the link.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// ICMPv6 type of router advertisements.
const ROUTER_ADVERTISEMENT: u8 = 134;

/// How often this node makes itself known. A router forgets who is silent, at the earliest after three of these
/// (RFC 4861 §6.2.1 has routers say so within seconds too when they start).
const PRESENCE_INTERVAL: Duration = Duration::from_secs(3);

/// When a router that is not heard any more gives way to another on the link.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// When an interface that could not be used is tried again: soon after it is there.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// The longest advertisement that is read.
const MAX_LEN: usize = 1500;

/// One task for each interface.
pub(super) struct Discovery {
    events: mpsc::Sender<Event>,
    tasks: BTreeMap<InterfaceName, JoinSet<()>>,
}

impl Discovery {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Self { events, tasks: BTreeMap::new() }
    }

    /// Looks behind exactly these interfaces from now on.
    pub(super) fn follow(&mut self, interfaces: BTreeSet<InterfaceName>) {
        self.tasks.retain(|interface, _| interfaces.contains(interface));
        for interface in interfaces {
            let events = self.events.clone();
            self.tasks.entry(interface.clone()).or_insert_with(|| {
                let mut task = JoinSet::new();
                task.spawn(search(interface, events));
                task
            });
        }
    }
}

async fn search(interface: InterfaceName, events: mpsc::Sender<Event>) {
    let mut said = None;
    loop {
        let Err(error) = talk(&interface, &events).await else { return };
        // It is tried all the time while the interface is not there, and told once.
        if said != error.raw_os_error() || error.raw_os_error().is_none() {
            warn!(%interface, %error, "cannot look for routers; is the interface there and up, and has it IPv6?");
            said = error.raw_os_error();
        }
        sleep_until(Instant::now() + TRY_AGAIN).await;
    }
}

/// Listens and speaks on one interface until it is gone, or nobody listens to what is found.
async fn talk(interface: &InterfaceName, events: &mpsc::Sender<Event>) -> io::Result<()> {
    let link = Link::open(interface)?;
    let mut presence = interval(PRESENCE_INTERVAL);
    let mut known: Option<(Ipv6Addr, Instant)> = None;
    link.send(ALL_ROUTERS, &router_solicitation(link.mac))?;
    loop {
        let router = tokio::select! {
            _ = presence.tick() => {
                link.send(ALL_NODES, &RouterAdvertisement::presence(link.mac).encode())?;
                continue;
            }
            router = link.receive() => router?,
        };
        let now = Instant::now();
        // One that is heard is kept: others on the link, nodes like this one among them, make themselves known as well.
        let is_kept = known.is_some_and(|(known, heard_at)| known != router && now < heard_at + FORGET_AFTER);
        if is_kept {
            continue;
        }
        let is_new = known.is_none_or(|(known, _)| known != router);
        known = Some((router, now));
        if is_new {
            debug!(%interface, %router, "router found");
            let found = Event::Found { interface: interface.clone(), address: IpAddr::V6(router) };
            if events.send(found).await.is_err() {
                return Ok(());
            }
        }
    }
}

struct Link {
    socket: AsyncFd<Arc<Socket>>,
    index: u32,
    mac: Mac,
}

impl Link {
    fn open(interface: &InterfaceName) -> io::Result<Self> {
        let index = if_nametoindex(interface.as_str())?;
        let own = datalink::interfaces().into_iter().find(|own| own.index == index);
        let mac = own.and_then(|own| own.mac).ok_or_else(|| io::Error::other("it has no hardware address"))?;
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.set_nonblocking(true)?;
        sockopt::take_only_icmpv6(&socket, ROUTER_ADVERTISEMENT)?;
        socket.bind_device(Some(interface.as_str().as_bytes()))?;
        socket.set_multicast_if_v6(index)?;
        socket.set_multicast_hops_v6(HOP_LIMIT.into())?;
        socket.set_multicast_loop_v6(false)?;
        setsockopt(&socket, nix_sockopt::Ipv6RecvHopLimit, &true)?;
        // Routers that advertise to routers alone are heard too.
        socket.join_multicast_v6(&ALL_ROUTERS, index)?;
        Ok(Self { socket: packet::register(Arc::new(socket))?, index, mac: Mac(mac.octets()) })
    }

    fn send(&self, to: Ipv6Addr, message: &[u8]) -> io::Result<()> {
        let to = SocketAddrV6::new(to, 0, 0, self.index);
        self.socket.get_ref().send_to(message, &to.into()).map(drop)
    }

    /// The link-local address of the next router that makes itself known.
    async fn receive(&self) -> io::Result<Ipv6Addr> {
        loop {
            let mut guard = self.socket.readable().await?;
            match guard.try_io(|socket| next(socket.get_ref())) {
                Ok(Ok(Some(router))) => return Ok(router),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                // Nothing was there after all.
                Err(_) => {}
            }
        }
    }
}

/// Reads one message. `None` where it is not what a router on the link has sent.
fn next(socket: &Socket) -> io::Result<Option<Ipv6Addr>> {
    let mut bytes = [0; MAX_LEN];
    let mut control = cmsg_space!(nix::libc::c_int);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let hop_limit = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6HopLimit(hops) => Some(hops),
        _ => None,
    });
    let (from, length) = (message.address.map(|from| from.ip()), message.bytes);
    let is_from_link = hop_limit == Some(HOP_LIMIT.into());
    let router = from.filter(|from| is_from_link && from.is_unicast_link_local());
    let advertisement = RouterAdvertisement::decode(bytes.get(..length).unwrap_or_default());
    Ok(router.filter(|_| advertisement.is_ok()))
}
