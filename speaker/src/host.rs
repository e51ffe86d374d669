//! Addresses this node owns, as local routes of its loopback interface, so that the kernel takes their traffic in.
//!
//! Each is a `/32` or `/128` of type local in the table local that carries our mark, routing protocol number 70 (`ip route
//! show table local proto 70`, `ip -6 …`); by the mark, what an earlier life left behind is found again. They are routes
//! and not addresses of the interface for two reasons: the kernel never picks one as the source of the node's own
//! traffic, and one more costs the same however many there are, while it compares a new address with all others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use ferrogate_core::model::InterfaceName;
use futures::{StreamExt, TryStreamExt, future::ready};
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
    sys::SocketAddr,
};
use tracing::{error, info, warn};

use crate::interfaces::{Interfaces, Requests};

/// `rtm_protocol` of our routes; the kernel and well-known routing daemons use others (`/etc/iproute2/rt_protos`).
const ROUTE_PROTOCOL: u8 = 70;

/// Routes that the kernel is asked to add at once: few enough for all answers to fit into the buffer of the socket.
const REQUESTS_AT_ONCE: usize = 64;

/// The kernel takes no longer unless something else holds its network configuration, and clients of an address that is taken over
/// wait for it.
const PROMPT: Duration = Duration::from_millis(500);

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
    requests: Requests,
    loopback: Option<u32>,
    loopback_is_up: bool,
    /// What is on the host; `false` for an address somebody else had put there before, which is not ours to take away.
    held: BTreeMap<IpAddr, bool>,
    /// What an earlier life left behind, until it is held again or swept.
    leftovers: BTreeSet<IpAddr>,
    /// When to sweep.
    sweep_at: Option<Instant>,
}

impl Host {
    /// Finds what an earlier life left behind. It stays for the grace time, for connections that outlived the speaker.
    pub(crate) async fn open(netlink: Handle, requests: Requests, interfaces: &Interfaces, grace: Duration) -> Self {
        let mut host = Self {
            netlink,
            requests,
            loopback: None,
            loopback_is_up: false,
            held: BTreeMap::new(),
            leftovers: BTreeSet::new(),
            sweep_at: None,
        };
        host.find_loopback(interfaces);
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

    /// Takes note of the loopback interface. When it comes up again what is held is put on it again: IPv6 routes
    /// went when it was switched off, also those that an earlier life left.
    ///
    /// # Errors
    /// As for [`hold`](Self::hold).
    pub(crate) async fn interfaces(&mut self, interfaces: &Interfaces) -> Result<(), HostError> {
        let was_up = self.loopback_is_up;
        self.find_loopback(interfaces);
        if !self.loopback_is_up {
            self.leftovers.retain(IpAddr::is_ipv4);
        }
        if was_up || !self.loopback_is_up {
            return Ok(());
        }
        let ours = self.held.iter().filter(|(_, is_ours)| **is_ours);
        let ours: Vec<IpAddr> = ours.map(|(address, _)| *address).collect();
        self.put(&ours, true).await
    }

    fn find_loopback(&mut self, interfaces: &Interfaces) {
        let loopback = interfaces.values().find(|interface| interface.loopback);
        self.loopback = loopback.map(|interface| interface.index);
        self.loopback_is_up = loopback.is_some_and(|interface| interface.up);
    }

    async fn marked(&self) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
        let mut marked = BTreeSet::new();
        for question in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let routes = self.netlink.route().get(question).execute();
            let ours = routes.try_filter_map(async |route| Ok(ours(&route)));
            marked.extend(ours.try_collect::<Vec<_>>().await?);
        }
        Ok(marked)
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
        self.put(&missing, false).await
    }

    async fn put(&mut self, addresses: &[IpAddr], are_ours: bool) -> Result<(), HostError> {
        let (Some(loopback), Some(first)) = (self.loopback, addresses.first()) else {
            return Ok(());
        };
        if !self.loopback_is_up {
            error!(address = %first, "the loopback interface is down and takes no traffic in; run: ip link set lo up");
        }
        let asked = Instant::now();
        for some in addresses.chunks(REQUESTS_AT_ONCE) {
            let refused = self.add(loopback, some, are_ours).await;
            for &address in some {
                let errno = refused.get(&Some(address)).or_else(|| refused.get(&None));
                self.note_added(address, errno.copied())?;
            }
        }
        let (time, addresses) = (asked.elapsed(), addresses.len());
        if time > PROMPT {
            warn!(addresses, ?time, "the kernel was slow to put addresses on this host; they were announced no sooner");
        }
        Ok(())
    }

    /// Adds a route for each address, all by one message: thousands are wanted at a start, and routers wait for them. Says
    /// which the kernel refused and by which error.
    async fn add(&self, loopback: u32, addresses: &[IpAddr], are_ours: bool) -> BTreeMap<Option<IpAddr>, i32> {
        let requests: Vec<_> = addresses.iter().map(|&address| addition(loopback, address, are_ours)).collect();
        match self.requests.request_batch(requests, SocketAddr::new(0, 0)) {
            Ok(answers) => answers.filter_map(|answer| ready(refusal(&answer))).collect().await,
            // The connection has ended, and with it the speaker does.
            Err(_) => BTreeMap::from([(None, libc::ENOTCONN)]),
        }
    }

    fn note_added(&mut self, address: IpAddr, errno: Option<i32>) -> Result<(), HostError> {
        let Some(errno) = errno else {
            self.held.insert(address, true);
            return Ok(());
        };
        match errno {
            libc::EPERM => return Err(HostError::NotPermitted { address }),
            libc::EEXIST => {
                warn!(%address, "the address is on the loopback interface already and will stay there");
                self.held.insert(address, false);
            }
            libc::EACCES if address.is_ipv6() => {
                error!(
                    %address,
                    "IPv6 is switched off on the loopback interface; run: sysctl -w net.ipv6.conf.lo.disable_ipv6=0"
                );
            }
            // It follows as soon as the interface is up.
            libc::ENETDOWN => drop(self.held.insert(address, true)),
            _ => {
                let error = io::Error::from_raw_os_error(errno);
                error!(%address, %error, "cannot put the address on the loopback interface");
            }
        }
        Ok(())
    }

    /// Takes an address off the host.
    pub(crate) async fn release(&mut self, address: IpAddr) {
        if self.held.remove(&address) == Some(true) {
            self.delete(address).await;
        }
    }

    /// Whether an IPv4 address is on the host, so that the kernel must be known to keep quiet about it.
    pub(crate) fn holds_ipv4(&self) -> bool {
        // They sort before those of IPv6.
        self.held.keys().next().is_some_and(IpAddr::is_ipv4)
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
        match self.netlink.route().del(local(loopback, address)).execute().await {
            Ok(()) => {}
            // Somebody was faster, or the interface went down.
            Err(error) if code(&error) == Some(libc::ESRCH) => {}
            Err(error) => error!(%address, %error, "cannot take the address off the loopback interface"),
        }
    }
}

/// The route that puts an address on the host.
fn local(loopback: u32, address: IpAddr) -> RouteMessage {
    let mut route = match address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build(),
        IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build(),
    };
    route.header.kind = RouteType::Local;
    route.header.table = libc::RT_TABLE_LOCAL;
    route.header.scope = RouteScope::Host;
    route.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    route.attributes.push(RouteAttribute::Oif(loopback));
    route
}

/// What asks the kernel to put an address on the host; where it is ours already, to put it there anew.
fn addition(loopback: u32, address: IpAddr, is_ours: bool) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(local(loopback, address)));
    let how = if is_ours { NLM_F_REPLACE } else { NLM_F_EXCL };
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | how;
    request
}

/// Which address the kernel refuses by an answer, and by which error; no address where it does not say so.
fn refusal(answer: &NetlinkMessage<RouteNetlinkMessage>) -> Option<(Option<IpAddr>, i32)> {
    let NetlinkPayload::Error(error) = &answer.payload else { return None };
    let errno = error.code?.get().saturating_neg();
    // What is refused comes back with the error.
    let refused = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&error.header).ok();
    let address = refused.and_then(|refused| match refused.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => ours(&route),
        _ => None,
    });
    Some((address, errno))
}

/// The address that a route puts on the host, if it carries our mark.
fn ours(route: &RouteMessage) -> Option<IpAddr> {
    let header = &route.header;
    let is_marked = header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL) && header.kind == RouteType::Local;
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    destination.filter(|_| is_marked)
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use rtnetlink::packet_core::ErrorMessage;

    use super::*;

    /// What the kernel answers to a request: an error and the request, or no error.
    fn answer(to: NetlinkMessage<RouteNetlinkMessage>, errno: i32) -> NetlinkMessage<RouteNetlinkMessage> {
        let mut request = to;
        request.finalize();
        let mut error = ErrorMessage::default();
        error.code = NonZeroI32::new(-errno);
        error.header = vec![0; request.buffer_len()];
        request.serialize(&mut error.header);
        NetlinkMessage::new(request.header, NetlinkPayload::Error(error))
    }

    #[test]
    fn an_answer_says_which_address_is_refused_and_by_which_error() {
        for address in ["198.51.100.7", "2001:db8::7"].map(|address| address.parse().unwrap()) {
            let refused = answer(addition(1, address, false), libc::EEXIST);

            assert_eq!(refusal(&refused), Some((Some(address), libc::EEXIST)));
            assert_eq!(refusal(&answer(addition(1, address, false), 0)), None);
        }
    }

    #[test]
    fn an_error_without_the_request_is_about_every_address() {
        let mut refused = answer(addition(1, "198.51.100.7".parse().unwrap(), true), libc::ENOBUFS);
        if let NetlinkPayload::Error(error) = &mut refused.payload {
            error.header.clear();
        }

        assert_eq!(refusal(&refused), Some((None, libc::ENOBUFS)));
    }
}
