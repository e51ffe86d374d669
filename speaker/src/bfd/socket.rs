//! The sockets of BFD: those to receive at for each port, family and VRF, one to send by for each session.
//!
//! At the port for a single hop there are two. One has what says no more than that its sender is up, which may lie there for a
//! while; the other has the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

use ferrogate_core::{
    model::{Family, InterfaceName},
    speaker::bfd::sessions::{Arrival, Path, Wanted},
};
use ferrogate_wire::bfd::{self, DecodeError, MULTIHOP_PORT, Packet, SINGLE_HOP_PORT};
use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LEN, BPF_RET, BPF_W};
use nix::{
    cmsg_space,
    errno::Errno,
    net::if_::{if_indextoname, if_nametoindex},
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
};
use rand::Rng;
use socket2::{Domain, Socket, Type};

use crate::patience::{self, Kind, instruction};

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

/// Sockets that say of each packet where it was sent to, by which interface it came and with which TTL or hop limit.
pub(super) struct Receiver {
    port: Port,
    /// The number of the VRF device they are bound to.
    device: u32,
    sockets: Vec<(Kind, Socket)>,
    control: Vec<u8>,
    /// By the kernel's numbers, as far as packets came from there.
    names: BTreeMap<u32, InterfaceName>,
    /// How many packets found no room at each, as far as the kernel has told.
    dropped: [u32; 2],
    has_overflowed: bool,
}

/// A packet that came.
pub(super) struct Received {
    /// When the kernel had it, by the clock of day, since its beginning.
    pub(super) stamp: Option<Duration>,
    pub(super) arrival: Arrival,
    pub(super) packet: Result<Packet, DecodeError>,
}

impl Receiver {
    /// Beside the others that are open.
    pub(super) fn open<'a>(port: Port, others: impl Iterator<Item = &'a Self>) -> io::Result<Self> {
        let device = port.device()?;
        let address: IpAddr = match port.family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let address = (address, port.number()).into();
        let sockets = if port.is_single_hop {
            pair(address)?.into()
        } else {
            let socket = new(address, port.vrf.as_ref())?;
            let others = others.filter(|other| port.must_share_with(&other.port)).flat_map(|other| &other.sockets);
            bind_beside(&socket, &others.map(|(_, socket)| socket).collect::<Vec<_>>(), address)?;
            vec![(Kind::News, socket)]
        };
        let control = cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo, libc::c_int, libc::timespec, u32);
        Ok(Self { port, device, sockets, control, names: BTreeMap::new(), dropped: [0; 2], has_overflowed: false })
    }

    /// Whether the VRF device is still the one they were bound to; one of the same name may have come in its place.
    pub(super) fn is_in_place(&self) -> bool {
        self.port.device().is_ok_and(|device| device == self.device)
    }

    /// The next packet of a kind, if one waits.
    pub(super) fn next(&mut self, kind: Kind) -> io::Result<Option<Received>> {
        let Some(descriptor) = self.socket(kind).map(|socket| socket.as_raw_fd()) else { return Ok(None) };
        let mut bytes = [0; MAX_LEN];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message =
            match recvmsg::<SockaddrStorage>(descriptor, &mut parts, Some(&mut self.control), MsgFlags::MSG_DONTWAIT) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let (mut local, mut interface, mut ttl) = (None, 0, 0);
        let mut stamp = None;
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
                ControlMessageOwned::ScmTimestampns(time) => stamp = Some(time.into()),
                ControlMessageOwned::RxqOvfl(dropped) => {
                    self.has_overflowed |= std::mem::replace(&mut self.dropped[kind as usize], dropped) != dropped;
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
        Ok(Some(Received { stamp, arrival: Arrival { path, ttl }, packet }))
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

    /// Whether packets found no room since this was last asked.
    pub(super) fn has_overflowed(&mut self) -> bool {
        std::mem::take(&mut self.has_overflowed)
    }

    /// Where packets of a kind come, if these are told from others.
    pub(super) fn socket(&self, kind: Kind) -> Option<BorrowedFd<'_>> {
        self.sockets.iter().find(|(of, _)| *of == kind).map(|(_, socket)| socket.as_fd())
    }

    /// Interfaces may have other names from now on.
    pub(super) fn forget_names(&mut self) {
        self.names.clear();
    }
}

/// A socket for each kind of packets.
fn pair(address: SocketAddr) -> io::Result<[(Kind, Socket); 2]> {
    // State in the upper two bits, then Poll, Final, control plane independent, authentication, demand, multipoint.
    const FLAGS: u32 = 1;
    const ALL_BUT_INDEPENDENT_AND_MULTIPOINT: u32 = 0b1111_0110;
    const UP: u32 = 0b1100_0000;
    let mut program = [
        instruction(BPF_LD | BPF_W | BPF_LEN, 0, 0, 0),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 4, bfd::LEN as u32),
        instruction(BPF_LD | BPF_B | BPF_ABS, 0, 0, FLAGS),
        instruction(BPF_ALU | BPF_AND | BPF_K, 0, 0, ALL_BUT_INDEPENDENT_AND_MULTIPOINT),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, UP),
        instruction(BPF_RET | BPF_K, 0, 0, Kind::Calm as u32),
        instruction(BPF_RET | BPF_K, 0, 0, Kind::News as u32),
    ];
    patience::pair(address, || new(address, None), &mut program)
}

/// A socket that is not bound yet.
fn new(address: SocketAddr, vrf: Option<&InterfaceName>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
    } else {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
    }
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    setsockopt(&socket, sockopt::RxqOvfl, &1)?;
    if let Some(vrf) = vrf {
        socket.bind_device(Some(vrf.as_str().as_bytes()))?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
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
    use std::{
        io::Read,
        net::UdpSocket,
        num::{NonZeroU8, NonZeroU32},
    };

    use ferrogate_wire::bfd::{Diagnostic, Sequence, State};

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

    /// Sockets for both kinds, and where they are.
    fn both() -> ([Socket; 2], SocketAddr) {
        let sockets = pair((Ipv4Addr::LOCALHOST, 0).into()).unwrap().map(|(_, socket)| socket);
        let address = sockets[0].local_addr().unwrap().as_socket().unwrap();
        (sockets, address)
    }

    #[test]
    fn n_083_nobody_else_has_the_port_of_both_kinds_nor_hears_what_comes_for_them() {
        let (sockets, address) = both();
        assert!(!is_free_for_others(address));
        assert_eq!(pair(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);

        // Another of this user, which agrees to share it.
        let thief = udp();
        setsockopt(&thief, sockopt::ReusePort, &true).unwrap();
        thief.set_nonblocking(true).unwrap();
        thief.bind(&address.into()).unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for length in 0..50 {
            sender.send_to(&vec![0xc0; length], address).unwrap();
        }
        assert_eq!([&sockets[0], &sockets[1], &thief].map(|socket| heard(socket).len()), [1, 49, 0]);
    }

    /// What has come to a socket.
    fn heard(socket: &Socket) -> Vec<Vec<u8>> {
        let next = || {
            let mut space = [0; 64];
            let length = { socket }.read(&mut space).ok()?;
            Some(space[..length].to_vec())
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn only_what_says_no_more_than_that_its_sender_is_up_may_lie_unread() {
        let ([calm_socket, news_socket], address) = both();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let up = Packet {
            diagnostic: Diagnostic::None,
            state: State::Up,
            sequence: Sequence::None,
            control_plane_independent: false,
            demand: false,
            detect_mult: NonZeroU8::MIN,
            my_discriminator: NonZeroU32::MIN,
            your_discriminator: Some(NonZeroU32::MIN),
            desired_min_tx_interval_us: 1,
            required_min_rx_interval_us: 1,
            required_min_echo_rx_interval_us: 0,
        };
        let calm = [up, Packet { control_plane_independent: true, ..up }];
        let news = [
            Packet { state: State::Down, ..up },
            Packet { state: State::Init, ..up },
            Packet { state: State::AdminDown, ..up },
            Packet { sequence: Sequence::Poll, ..up },
            Packet { sequence: Sequence::Final, ..up },
            Packet { demand: true, ..up },
        ];
        let odd = [&[][..], &up.encode()[..23], &[&up.encode()[..], &[0]].concat()].map(<[u8]>::to_vec);
        for packet in calm.iter().chain(&news) {
            sender.send_to(&packet.encode(), address).unwrap();
        }
        for bytes in &odd {
            sender.send_to(bytes, address).unwrap();
        }

        assert_eq!(heard(&calm_socket), calm.map(|packet| packet.encode().to_vec()));
        let expected: Vec<_> = news.map(|packet| packet.encode().to_vec()).into_iter().chain(odd).collect();
        assert_eq!(heard(&news_socket), expected);
    }

    #[test]
    fn n_083_a_socket_whose_vrf_device_is_another_one_or_gone_is_not_in_place() {
        let receiver = |vrf: Option<&str>, device| Receiver {
            port: Port { family: Family::V4, is_single_hop: false, vrf: vrf.map(Into::into) },
            device,
            sockets: Vec::new(),
            control: Vec::new(),
            names: BTreeMap::new(),
            dropped: [0; 2],
            has_overflowed: false,
        };
        let index = if_nametoindex("lo").unwrap();

        assert!(receiver(None, 0).is_in_place() && receiver(Some("lo"), index).is_in_place());
        assert!(!receiver(Some("lo"), index + 1).is_in_place());
        assert!(!receiver(Some("no-such-device"), index).is_in_place());
    }
}
