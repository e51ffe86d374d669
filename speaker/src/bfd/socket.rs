//! The sockets of BFD: one to receive at for each port and family, one to send by for each session.

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    family: Family,
    is_single_hop: bool,
}

impl Port {
    pub(super) fn number(self) -> u16 {
        if self.is_single_hop { SINGLE_HOP_PORT } else { MULTIHOP_PORT }
    }
}

/// Where packets for these sessions, and for those that others may open, arrive.
pub(super) fn ports(wanted: &Wanted) -> BTreeSet<Port> {
    let sessions = wanted.sessions.keys().map(|path| (path.remote, path.interface.is_some()));
    let all = sessions.chain(wanted.permitted.keys().map(|neighbor| (neighbor.remote, true)));
    all.map(|(remote, is_single_hop)| Port { family: Family::of(remote), is_single_hop }).collect()
}

/// A socket that says of each packet where it was sent to, by which interface it came and with which TTL or hop limit.
pub(super) struct Receiver {
    port: Port,
    socket: Socket,
    control: Vec<u8>,
    /// By the kernel's numbers, as far as packets came from there.
    names: BTreeMap<u32, InterfaceName>,
}

impl Receiver {
    pub(super) fn open(port: Port) -> io::Result<Self> {
        let socket = match port.family {
            Family::V4 => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
                setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
                setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
                socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.number())).into())?;
                socket
            }
            Family::V6 => {
                let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
                socket.set_only_v6(true)?;
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
                socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.number())).into())?;
                socket
            }
        };
        socket.set_nonblocking(true)?;
        let control = cmsg_space!(nix::libc::in6_pktinfo, nix::libc::in_pktinfo, nix::libc::c_int);
        Ok(Self { port, socket, control, names: BTreeMap::new() })
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
        Ok(Some((Arrival { path: Path { remote, local, interface }, ttl }, packet)))
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

/// The socket of one session. It has a source port that no other session has, and keeps it.
pub(super) struct Sender {
    socket: Socket,
    port: u16,
    to: SocketAddr,
}

impl Sender {
    /// Takes a source port that is not among those `taken`.
    pub(super) fn open(path: &Path, taken: &BTreeSet<u16>) -> io::Result<Self> {
        let index = match &path.interface {
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
        if let Some(interface) = &path.interface {
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
