//! The sockets of BFD: two to receive at for each port, family and VRF, one to send by for each session.
//!
//! One of the two has what says no more than that its sender is up, which may lie there for a while; the other has the rest.
//! The kernel tells them apart (`SO_ATTACH_REUSEPORT_CBPF`), so that waiting for news costs nothing while there are none.

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
use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LEN, BPF_RET, BPF_W, sock_filter, sock_fprog,
};
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
    pair: Pair,
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
    pub(super) fn open(port: Port) -> io::Result<Self> {
        let device = port.device()?;
        let address: IpAddr = match port.family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let pair = Pair::bind((address, port.number()).into(), port.vrf.as_ref())?;
        let control = cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo, libc::c_int, libc::timespec, u32);
        Ok(Self { port, device, pair, control, names: BTreeMap::new(), dropped: [0; 2], has_overflowed: false })
    }

    /// Whether the VRF device is still the one they were bound to; one of the same name may have come in its place.
    pub(super) fn is_in_place(&self) -> bool {
        self.port.device().is_ok_and(|device| device == self.device)
    }

    /// The next packet at one of the two, if one waits.
    pub(super) fn next(&mut self, kind: Kind) -> io::Result<Option<Received>> {
        let mut bytes = [0; MAX_LEN];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let descriptor = self.pair.of(kind).as_raw_fd();
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

    pub(super) fn socket(&self, kind: Kind) -> BorrowedFd<'_> {
        self.pair.of(kind).as_fd()
    }

    /// Interfaces may have other names from now on.
    pub(super) fn forget_names(&mut self) {
        self.names.clear();
    }
}

/// What a packet says, as far as that decides how soon it is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// That its sender is up, as it was.
    Calm,
    /// Anything else.
    News,
}

impl Kind {
    pub(super) const BOTH: [Self; 2] = [Self::Calm, Self::News];
}

/// One socket for each kind of packets.
struct Pair([Socket; 2]);

impl Pair {
    /// Nobody but this user can have the port too, and what comes for the two goes to nobody else even then. A socket that is
    /// bound to a VRF device is given what comes by that, and one that is not the rest.
    fn bind(address: SocketAddr, vrf: Option<&InterfaceName>) -> io::Result<Self> {
        let calm = bind_one(address, vrf)?;
        // The kernel counts them in the order in which they were bound.
        attach(&calm)?;
        // The port is another one if any would have done.
        let address = calm.local_addr()?;
        let news = bind_one(address.as_socket().ok_or(io::ErrorKind::InvalidData)?, vrf)?;
        Ok(Self([calm, news]))
    }

    fn of(&self, kind: Kind) -> &Socket {
        &self.0[kind as usize]
    }
}

fn bind_one(address: SocketAddr, vrf: Option<&InterfaceName>) -> io::Result<Socket> {
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
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Has the kernel sort what comes for a socket and for those that share its port, by the datagram without its headers.
fn attach(socket: &Socket) -> io::Result<()> {
    // State in the upper two bits, then Poll, Final, control plane independent, authentication, demand, multipoint.
    const FLAGS: u32 = 1;
    const ALL_BUT_INDEPENDENT_AND_MULTIPOINT: u32 = 0b1111_0110;
    const UP: u32 = 0b1100_0000;
    let instruction = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        instruction(BPF_LD | BPF_W | BPF_LEN, 0, 0, 0),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 4, bfd::LEN as u32),
        instruction(BPF_LD | BPF_B | BPF_ABS, 0, 0, FLAGS),
        instruction(BPF_ALU | BPF_AND | BPF_K, 0, 0, ALL_BUT_INDEPENDENT_AND_MULTIPOINT),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, UP),
        instruction(BPF_RET | BPF_K, 0, 0, Kind::Calm as u32),
        instruction(BPF_RET | BPF_K, 0, 0, Kind::News as u32),
    ];
    let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    Ok(setsockopt(socket, sockopt::AttachReusePortCbpf, &program)?)
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

    fn pair() -> (Pair, SocketAddr) {
        let pair = Pair::bind((Ipv4Addr::LOCALHOST, 0).into(), None).unwrap();
        let address = pair.of(Kind::Calm).local_addr().unwrap().as_socket().unwrap();
        (pair, address)
    }

    #[test]
    fn n_083_sockets_of_ours_share_a_port_and_nobody_else_has_it_too() {
        let (pair, address) = pair();
        assert_eq!(pair.of(Kind::News).local_addr().unwrap().as_socket(), Some(address));

        let other = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        other.set_reuse_address(true).unwrap();
        assert_eq!(other.bind(&address.into()).unwrap_err().kind(), io::ErrorKind::AddrInUse);

        // The pair of a VRF device has it beside them.
        let lo = InterfaceName::from("lo");
        assert!(Pair::bind(address, Some(&lo)).is_ok());
        // As does a pair of the same user, which hears nothing.
        let thief = Pair::bind(address, None).unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for length in 0..50 {
            sender.send_to(&vec![0xc0; length], address).unwrap();
        }
        let heard = |pair: &Pair| Kind::BOTH.map(|kind| heard(pair.of(kind)).len());
        assert_eq!((heard(&pair), heard(&thief)), ([1, 49], [0, 0]));
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
        let (pair, address) = pair();
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

        assert_eq!(heard(pair.of(Kind::Calm)), calm.map(|packet| packet.encode().to_vec()));
        let expected: Vec<_> = news.map(|packet| packet.encode().to_vec()).into_iter().chain(odd).collect();
        assert_eq!(heard(pair.of(Kind::News)), expected);
    }

    #[test]
    fn n_083_a_socket_whose_vrf_device_is_another_one_or_gone_is_not_in_place() {
        let receiver = |vrf: Option<&str>, device| Receiver {
            port: Port { family: Family::V4, is_single_hop: false, vrf: vrf.map(Into::into) },
            device,
            pair: pair().0,
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
