//! The sockets of BFD: one to receive at for each port, family and VRF, one to send by for each session.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use ferrogate_core::{
    model::{Family, InterfaceName},
    speaker::bfd::sessions::{Arrival, Path, Wanted},
};
use ferrogate_wire::bfd::{self, DecodeError, MULTIHOP_PORT, Packet, SINGLE_HOP_PORT};
use nix::{
    cmsg_space,
    errno::Errno,
    net::if_::{if_indextoname, if_nametoindex},
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
};
use rand::Rng;
use socket2::{Domain, Socket, Type};

/// TTL and hop limit of everything that is sent (RFC 5881 §5).
const TTL: u8 = 255;

/// Source ports (RFC 5881 §4).
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;

/// How many source ports are tried before a session has to wait for its next packet.
const SOURCE_PORTS_TRIED: usize = 16;

/// The longest datagram that is looked at as a whole. What claims to be longer is no packet of ours.
const MAX_LEN: usize = 256;

/// Names of interfaces that are remembered by number.
const MAX_NAMES: usize = 1024;

/// Where packets are received.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    family: Family,
    is_single_hop: bool,
    /// What comes by this VRF device and no other.
    vrf: Option<InterfaceName>,
}

impl Port {
    pub(super) fn number(&self) -> u16 {
        if self.is_single_hop { SINGLE_HOP_PORT } else { MULTIHOP_PORT }
    }

    /// Whether the kernel would refuse a socket here and one there, unless both agree: one of them takes what comes by any
    /// device. Each packet is given to the one that is bound to where it came from.
    fn must_share_with(&self, other: &Self) -> bool {
        let is_same = (self.family, self.is_single_hop) == (other.family, other.is_single_hop);
        is_same && self.vrf.is_none() != other.vrf.is_none()
    }

    /// The number of the VRF device now; 0 where there is to be none.
    fn device(&self) -> io::Result<u32> {
        Ok(self.vrf.as_ref().map_or(Ok(0), |vrf| if_nametoindex(vrf.as_str()))?)
    }
}

/// Where packets for these sessions, and for those that others may open, arrive.
pub(super) fn ports(wanted: &Wanted) -> BTreeSet<Port> {
    let sessions = wanted.sessions.keys().map(|path| (path.remote, path.interface.is_some(), path.vrf.clone()));
    let all = sessions.chain(wanted.permitted.keys().map(|neighbor| (neighbor.remote, true, None)));
    all.map(|(remote, is_single_hop, vrf)| Port { family: Family::of(remote), is_single_hop, vrf }).collect()
}

/// A socket that says of each packet where it was sent to, by which interface it came and with which TTL or hop limit.
pub(super) struct Receiver {
    port: Port,
    /// The number of the VRF device it is bound to.
    device: u32,
    socket: Socket,
    control: Vec<u8>,
    /// By the kernel's numbers, as far as packets came from there.
    names: BTreeMap<u32, InterfaceName>,
}

impl Receiver {
    /// Beside the others that are open.
    pub(super) fn open<'a>(port: Port, others: impl Iterator<Item = &'a Self>) -> io::Result<Self> {
        let (socket, address) = match port.family {
            Family::V4 => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
                setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
                setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
                (socket, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.number())))
            }
            Family::V6 => {
                let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
                socket.set_only_v6(true)?;
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
                (socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.number())))
            }
        };
        let device = port.device()?;
        if let Some(vrf) = &port.vrf {
            socket.bind_device(Some(vrf.as_str().as_bytes()))?;
        }
        let sharing: Vec<&Socket> =
            others.filter(|other| port.must_share_with(&other.port)).map(|other| &other.socket).collect();
        bind_beside(&socket, &sharing, address)?;
        socket.set_nonblocking(true)?;
        let control = cmsg_space!(nix::libc::in6_pktinfo, nix::libc::in_pktinfo, nix::libc::c_int);
        Ok(Self { port, device, socket, control, names: BTreeMap::new() })
    }

    /// Whether the VRF device is still the one it was bound to; one of the same name may have come in its place.
    pub(super) fn is_in_place(&self) -> bool {
        self.port.device().is_ok_and(|device| device == self.device)
    }

    /// The next packet, if one waits.
    pub(super) fn next(&mut self) -> io::Result<Option<(Arrival, Result<Packet, DecodeError>)>> {
        let mut bytes = [0; MAX_LEN];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let descriptor = self.socket.as_raw_fd();
        let message =
            match recvmsg::<SockaddrStorage>(descriptor, &mut parts, Some(&mut self.control), MsgFlags::MSG_DONTWAIT) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let (mut local, mut interface, mut ttl) = (None, 0, 0);
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    local = Some(IpAddr::from(Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr))));
                    interface = u32::try_from(info.ipi_ifindex).unwrap_or_default();
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    local = Some(IpAddr::from(info.ipi6_addr.s6_addr));
                    interface = info.ipi6_ifindex;
                }
                ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops) => {
                    ttl = u8::try_from(hops).unwrap_or_default();
                }
                _ => {}
            }
        }
        let source = message.address.and_then(|source| match self.port.family {
            Family::V4 => source.as_sockaddr_in().map(|source| IpAddr::from(source.ip())),
            Family::V6 => source.as_sockaddr_in6().map(|source| IpAddr::from(source.ip())),
        });
        let length = message.bytes;
        let (Some(remote), Some(local)) = (source, local) else { return Err(io::ErrorKind::InvalidData.into()) };
        let interface = if self.port.is_single_hop { Some(self.name(interface)?) } else { None };
        let packet = bfd::decode(bytes.get(..length).unwrap_or_default());
        let path = Path { remote, local, interface, vrf: self.port.vrf.clone() };
        Ok(Some((Arrival { path, ttl }, packet)))
    }

    fn name(&mut self, index: u32) -> io::Result<InterfaceName> {
        if let Some(name) = self.names.get(&index) {
            return Ok(name.clone());
        }
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        let name = InterfaceName::from(if_indextoname(index)?.to_string_lossy().as_ref());
        self.names.insert(index, name.clone());
        Ok(name)
    }

    /// Interfaces may have other names from now on.
    pub(super) fn forget_names(&mut self) {
        self.names.clear();
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Binds a socket to the port that these others of ours have. Only for that moment they all agree to it (`SO_REUSEADDR`), and
/// only where there are others: else any process could bind the port too, and hear in our place.
fn bind_beside(socket: &Socket, others: &[&Socket], address: SocketAddr) -> io::Result<()> {
    let agree = |agrees| others.iter().chain([&socket]).try_for_each(|socket| socket.set_reuse_address(agrees));
    if others.is_empty() {
        return socket.bind(&address.into());
    }
    let bound = agree(true).and_then(|()| socket.bind(&address.into()));
    bound.and(agree(false))
}

/// The socket of one session. It has a source port that no other session has, and keeps it.
pub(super) struct Sender {
    socket: Socket,
    port: u16,
    to: SocketAddr,
}

impl Sender {
    /// Takes a source port that is not among those `taken`.
    pub(super) fn open(path: &Path, taken: &BTreeSet<u16>) -> io::Result<Self> {
        let index = match path.interface.as_ref().or(path.vrf.as_ref()) {
            Some(interface) => if_nametoindex(interface.as_str())?,
            None => 0,
        };
        let number = if path.interface.is_some() { SINGLE_HOP_PORT } else { MULTIHOP_PORT };
        let at = |address: IpAddr, port: u16| match address {
            IpAddr::V6(address) if address.is_unicast_link_local() => SocketAddrV6::new(address, port, 0, index).into(),
            _ => SocketAddr::new(address, port),
        };
        let to = at(path.remote, number);
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
        match to {
            SocketAddr::V4(_) => socket.set_ttl_v4(TTL.into())?,
            SocketAddr::V6(_) => socket.set_unicast_hops_v6(TTL.into())?,
        }
        if let Some(interface) = path.interface.as_ref().or(path.vrf.as_ref()) {
            socket.bind_device(Some(interface.as_str().as_bytes()))?;
        }
        // Network control: it is not to wait behind other traffic.
        match to {
            SocketAddr::V4(_) => socket.set_tos_v4(CLASS)?,
            SocketAddr::V6(_) => socket.set_tclass_v6(CLASS)?,
        }
        socket.set_nonblocking(true)?;
        let mut refused = io::ErrorKind::AddrInUse.into();
        for _ in 0..SOURCE_PORTS_TRIED {
            let port = rand::rng().random_range(SOURCE_PORTS);
            if taken.contains(&port) {
                continue;
            }
            match socket.bind(&at(path.local, port).into()) {
                Ok(()) => return Ok(Self { socket, port, to }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.socket.send_to(packet, &self.to.into()).map(drop)
    }
}

/// Differentiated services code point CS6, in its place in the byte (RFC 4594 §3.2).
const CLASS: u32 = 48 << 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn udp() -> Socket {
        Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap()
    }

    /// Whether somebody else, who would share it, can have the port too.
    fn is_free_for_others(address: SocketAddr) -> bool {
        let other = udp();
        other.set_reuse_address(true).unwrap();
        other.bind(&address.into()).is_ok()
    }

    #[test]
    fn n_083_sockets_of_ours_share_a_port_and_nobody_else_has_it_too() {
        let first = udp();
        bind_beside(&first, &[], SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        let address = first.local_addr().unwrap().as_socket().unwrap();
        assert!(!is_free_for_others(address));

        let second = udp();
        bind_beside(&second, &[&first], address).unwrap();

        assert_eq!(second.local_addr().unwrap().as_socket(), Some(address));
        assert!(!is_free_for_others(address));
        // One of another program is not pushed aside.
        assert_eq!(bind_beside(&udp(), &[], address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn n_083_only_a_socket_of_no_vrf_and_one_of_a_vrf_have_to_agree() {
        let far = |family, vrf: Option<&str>| Port { family, is_single_hop: false, vrf: vrf.map(Into::into) };
        let near = Port { family: Family::V4, is_single_hop: true, vrf: None };
        let [none, red, blue] = [None, Some("red"), Some("blue")].map(|vrf| far(Family::V4, vrf));

        assert!(none.must_share_with(&red) && blue.must_share_with(&none));
        assert!(!red.must_share_with(&blue));
        assert!(!far(Family::V6, None).must_share_with(&red));
        assert!(!near.must_share_with(&none) && !near.must_share_with(&red));
    }

    #[test]
    fn n_083_a_socket_whose_vrf_device_is_another_one_or_gone_is_not_in_place() {
        let receiver = |vrf: Option<&str>, device| Receiver {
            port: Port { family: Family::V4, is_single_hop: false, vrf: vrf.map(Into::into) },
            device,
            socket: udp(),
            control: Vec::new(),
            names: BTreeMap::new(),
        };
        let index = if_nametoindex("lo").unwrap();

        assert!(receiver(None, 0).is_in_place() && receiver(Some("lo"), index).is_in_place());
        assert!(!receiver(Some("lo"), index + 1).is_in_place());
        assert!(!receiver(Some("no-such-device"), index).is_in_place());
    }
}
