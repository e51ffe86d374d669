//! Addresses this node owns, on its loopback interface, so that the kernel takes their traffic in.
//!
//! Each is a `/32` or `/128` that carries our mark: routing protocol number 70 (`ip address show proto 70`), and for
//! IPv4 the label `lo:ferrogate` too. By the mark, what an earlier life left behind is found again. IPv4 addresses
//! have the scope of the host and IPv6 addresses are deprecated, so that the kernel never picks one as the source of
//! the node's own traffic.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv6Addr},
    pin::pin,
    time::{Duration, Instant},
};

use ferrogate_core::model::{Family, InterfaceName};
use futures::{TryStreamExt, future::join_all};
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{
            AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope,
            CacheInfo,
        },
        route::RouteType,
    },
};
use tracing::{error, info, warn};

use crate::interfaces::Interfaces;

/// `IFA_PROTO` of our addresses; the kernel itself uses 1 to 3.
pub const ADDRESS_PROTOCOL: u8 = 70;

/// `IFA_LABEL` of our IPv4 addresses.
pub const ADDRESS_LABEL: &str = "lo:ferrogate";

/// Netlink requests under way at a time.
const REQUESTS_AT_ONCE: usize = 64;

/// How long the kernel may take to make the local routes of new addresses; milliseconds are usual.
const SETTLE_PATIENCE: Duration = Duration::from_millis(200);

/// Why addresses cannot be put on this host at all.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No right to change addresses.
    #[error(
        "the kernel does not let this process put {address} on the loopback interface; give it CAP_NET_ADMIN \
         (run it as root, or add the capability NET_ADMIN to its container or service)"
    )]
    NotPermitted {
        /// The first address.
        address: IpAddr,
    },
    /// The kernel would answer ARP for the addresses itself, on a node that does not own them.
    #[error(
        "{sysctl} is {value} on interface {interface}: the kernel would {danger} addresses that another node owns; \
         run: sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2"
    )]
    KernelAnswers {
        /// The setting.
        sysctl: &'static str,
        /// What is in force: the greater of `all` and the interface's own.
        value: u8,
        /// The interface.
        interface: InterfaceName,
        /// What would happen.
        danger: &'static str,
    },
}

/// The loopback interface and what we have put there.
pub(crate) struct Host {
    netlink: Handle,
    loopback: Option<u32>,
    loopback_is_up: bool,
    /// What is on the host; `false` for an address somebody else had put there before, which is not ours to take away.
    held: BTreeMap<IpAddr, bool>,
    /// What an earlier life left behind, until it is held again or swept.
    leftovers: BTreeSet<IpAddr>,
    /// The newest IPv6 address, until the kernel is known to take in its traffic.
    newest: Option<Ipv6Addr>,
    /// When to sweep.
    sweep_at: Option<Instant>,
}

impl Host {
    /// Finds what an earlier life left behind. It stays for the grace time, for connections that outlived the speaker.
    pub(crate) async fn open(netlink: Handle, interfaces: &Interfaces, grace: Duration) -> Self {
        let mut host = Self {
            netlink,
            loopback: None,
            loopback_is_up: false,
            held: BTreeMap::new(),
            leftovers: BTreeSet::new(),
            newest: None,
            sweep_at: None,
        };
        host.interfaces(interfaces);
        match host.marked().await {
            Ok(leftovers) if leftovers.is_empty() => {}
            Ok(leftovers) => {
                info!(addresses = leftovers.len(), "addresses of an earlier run found on the host");
                host.leftovers = leftovers;
                host.sweep_at = Some(Instant::now() + grace);
            }
            Err(error) => warn!(%error, "cannot look for addresses of an earlier run"),
        }
        host
    }

    /// Takes note of the loopback interface.
    pub(crate) fn interfaces(&mut self, interfaces: &Interfaces) {
        let loopback = interfaces.values().find(|interface| interface.loopback);
        self.loopback = loopback.map(|interface| interface.index);
        self.loopback_is_up = loopback.is_some_and(|interface| interface.up);
    }

    async fn marked(&self) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
        let Some(loopback) = self.loopback else {
            return Ok(BTreeSet::new());
        };
        let addresses = self.netlink.address().get().set_link_index_filter(loopback).execute();
        addresses.try_filter_map(async |message| Ok(ours(&message))).try_collect().await
    }

    /// Puts addresses on the host.
    ///
    /// # Errors
    /// When no address can be put there, now or later. What concerns one alone is logged.
    pub(crate) async fn hold(&mut self, addresses: &[IpAddr]) -> Result<(), HostError> {
        let mut missing = Vec::new();
        for &address in addresses {
            if self.leftovers.remove(&address) {
                self.held.insert(address, true);
            } else if !self.held.contains_key(&address) {
                missing.push(address);
            }
        }
        let (Some(loopback), Some(first)) = (self.loopback, missing.first()) else {
            return Ok(());
        };
        if !self.loopback_is_up {
            error!(address = %first, "the loopback interface is down and takes no traffic in; run: ip link set lo up");
        }
        // Few enough at a time for all answers to fit into the buffer of the socket.
        for some in missing.chunks(REQUESTS_AT_ONCE) {
            let add = some.iter().map(|&address| {
                let mut request = self.netlink.address().add(loopback, address, 0);
                mark(request.message_mut(), address);
                async move { (address, request.execute().await) }
            });
            for (address, added) in join_all(add).await {
                self.note_added(address, added)?;
            }
        }
        Ok(())
    }

    fn note_added(&mut self, address: IpAddr, added: Result<(), rtnetlink::Error>) -> Result<(), HostError> {
        let Err(error) = added else {
            self.held.insert(address, true);
            if let IpAddr::V6(address) = address {
                self.newest = Some(address);
            }
            return Ok(());
        };
        match code(&error) {
            Some(libc::EPERM) => return Err(HostError::NotPermitted { address }),
            Some(libc::EEXIST) => {
                warn!(%address, "the address is on the loopback interface already and will stay there");
                self.held.insert(address, false);
            }
            Some(libc::EACCES) if address.is_ipv6() => {
                error!(
                    %address,
                    "IPv6 is switched off on the loopback interface; run: sysctl -w net.ipv6.conf.lo.disable_ipv6=0"
                );
            }
            _ => error!(%address, %error, "cannot put the address on the loopback interface"),
        }
        Ok(())
    }

    /// Waits until the kernel takes in traffic for everything held. It makes the local routes of IPv6 addresses a
    /// little later than the addresses and in their order; who announces before that loses the first packets.
    pub(crate) async fn settle(&mut self) {
        let Some(newest) = self.newest.take() else { return };
        let give_up_at = Instant::now() + SETTLE_PATIENCE;
        while !self.is_local(newest).await {
            if Instant::now() > give_up_at {
                warn!(address = %newest, "the kernel has no local route to the address yet");
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn is_local(&self, address: Ipv6Addr) -> bool {
        let question = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build();
        let mut routes = pin!(self.netlink.route().get(question).execute());
        matches!(routes.try_next().await, Ok(Some(route)) if route.header.kind == RouteType::Local)
    }

    /// Takes an address off the host.
    pub(crate) async fn release(&mut self, address: IpAddr) {
        if self.held.remove(&address) == Some(true) {
            self.delete(address).await;
        }
        self.newest.take_if(|newest| IpAddr::V6(*newest) == address);
    }

    /// Whether an IPv4 address is on the host, so that the kernel must be known to keep quiet about it.
    pub(crate) fn holds_ipv4(&self) -> bool {
        self.held.keys().any(|address| Family::of(*address) == Family::V4)
    }

    /// When [`sweep`](Self::sweep) has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.sweep_at
    }

    /// Takes away what an earlier life left and nobody wanted since.
    pub(crate) async fn sweep(&mut self) {
        self.sweep_at = None;
        for address in std::mem::take(&mut self.leftovers) {
            info!(%address, "taking an address of an earlier run off the host");
            self.delete(address).await;
        }
    }

    /// Takes everything away that is ours.
    pub(crate) async fn clear(&mut self) {
        for address in self.held.keys().copied().collect::<Vec<_>>() {
            self.release(address).await;
        }
        self.sweep().await;
    }

    async fn delete(&self, address: IpAddr) {
        let Some(loopback) = self.loopback else { return };
        let mut message = AddressMessage::default();
        message.header.index = loopback;
        mark(&mut message, address);
        match self.netlink.address().del(message).execute().await {
            Ok(()) => {}
            // Somebody was faster.
            Err(error) if code(&error) == Some(libc::EADDRNOTAVAIL) => {}
            Err(error) => error!(%address, %error, "cannot take the address off the loopback interface"),
        }
    }
}

/// What an address of ours looks like.
fn mark(message: &mut AddressMessage, address: IpAddr) {
    let header = &mut message.header;
    header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Protocol(AddressProtocol::Other(ADDRESS_PROTOCOL)),
    ];
    if address.is_ipv4() {
        message.header.scope = AddressScope::Host;
        message.attributes.push(AddressAttribute::Label(ADDRESS_LABEL.to_owned()));
        return;
    }
    message.header.flags = AddressHeaderFlags::Nodad;
    let mut lifetime = CacheInfo::default();
    lifetime.ifa_preferred = 0;
    lifetime.ifa_valid = u32::MAX;
    message.attributes.extend([AddressAttribute::Flags(AddressFlags::Nodad), AddressAttribute::CacheInfo(lifetime)]);
}

/// The address, if it carries our mark. A kernel before 5.18 keeps no protocol number; there the label alone tells,
/// and IPv6 leftovers stay until they are held again.
fn ours(message: &AddressMessage) -> Option<IpAddr> {
    let marked = message.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Protocol(protocol) => *protocol == AddressProtocol::Other(ADDRESS_PROTOCOL),
        AddressAttribute::Label(label) => label == ADDRESS_LABEL,
        _ => false,
    });
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    address.filter(|_| marked)
}

fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    }
}

/// Fails if the kernel would speak for addresses on the loopback interface by itself, on one of these interfaces.
pub(crate) fn kernel_keeps_quiet<'a>(interfaces: impl IntoIterator<Item = &'a InterfaceName>) -> Result<(), HostError> {
    for interface in interfaces {
        let in_force = |setting| {
            let read = |who: &str| read_sysctl(who, setting).unwrap_or(0);
            read("all").max(read(interface.as_str()))
        };
        let refuse = |sysctl, value, danger| {
            Err(HostError::KernelAnswers { sysctl, value, interface: interface.clone(), danger })
        };
        match in_force("arp_ignore") {
            1..=3 | 8 => {}
            value => return refuse("arp_ignore", value, "answer ARP for"),
        }
        // 1 is not enough: addresses of the subnet, as announced ones are, are still used as sender.
        match in_force("arp_announce") {
            2.. => {}
            value => return refuse("arp_announce", value, "ask by ARP in the name of"),
        }
    }
    Ok(())
}

fn read_sysctl(interface: &str, setting: &str) -> io::Result<u8> {
    let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{interface}/{setting}"))?;
    text.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}
