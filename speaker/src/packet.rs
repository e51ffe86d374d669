//! AF_PACKET sockets that see nothing but what they ask for.
//!
//! A socket is created for no protocol, gets its filter, and is bound only then: no stray frame can be queued before
//! the filter stands. Bound to one EtherType it never sees what this node sends, so `PACKET_IGNORE_OUTGOING` has
//! nothing to do; and it is never promiscuous.
//!
//! `unsafe` is needed here because no safe wrapper knows `sockaddr_ll`, which says where an AF_PACKET socket is bound, and
//! tokio wants a promise about the descriptor it watches.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use libc::{
    BPF_ABS, BPF_B, BPF_JEQ, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, PACKET_MULTICAST, SKF_AD_OFF, SKF_AD_PKTTYPE,
};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

/// Room for frames, as the kernel reckons, which takes a short one for 768 bytes and some cards for more, and doubles it.
const ROOM: usize = 1 << 19;

/// What a socket receives and sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// ARP.
    Arp,
    /// Neighbour solicitations and advertisements.
    Ndp,
}

impl Protocol {
    fn ether_type(self) -> u16 {
        match self {
            Self::Arp => libc::ETH_P_ARP as u16,
            Self::Ndp => libc::ETH_P_IPV6 as u16,
        }
    }

    /// Classic BPF. A frame for another station (also one whose VLAN this node does not have) is of a higher packet
    /// type than multicast; what this node sends is too.
    fn filter(self) -> Vec<SockFilter> {
        const ACCEPT: SockFilter = SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, u32::MAX);
        const REFUSE: SockFilter = SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, 0);
        let load = |offset: u32| SockFilter::new((BPF_LD | BPF_B | BPF_ABS) as u16, 0, 0, offset);
        let skip =
            |test: u32, value: u8, yes, no| SockFilter::new((BPF_JMP | test | BPF_K) as u16, yes, no, u32::from(value));
        let packet_type = load((SKF_AD_OFF + SKF_AD_PKTTYPE) as u32);
        match self {
            Self::Arp => vec![packet_type, skip(BPF_JGT, PACKET_MULTICAST, 0, 1), REFUSE, ACCEPT],
            Self::Ndp => vec![
                packet_type,
                skip(BPF_JGT, PACKET_MULTICAST, 5, 0),
                // The next header of IPv6: ICMPv6.
                load(14 + 6),
                skip(BPF_JEQ, 58, 0, 3),
                // The ICMPv6 type: neighbour solicitation or advertisement.
                load(14 + 40),
                skip(BPF_JEQ, 135, 2, 0),
                skip(BPF_JEQ, 136, 1, 0),
                REFUSE,
                ACCEPT,
            ],
        }
    }
}

/// Opens a socket on one interface, by the kernel's number for it.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_RAW; whatever the kernel says when the interface is gone.
pub(crate) fn open(protocol: Protocol, interface: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    if setsockopt(&socket, sockopt::RcvBufForce, &ROOM).is_err() {
        // Without CAP_NET_ADMIN it gets as much as the host allows (`net.core.rmem_max`).
        socket.set_recv_buffer_size(ROOM)?;
    }
    socket.attach_filter(&protocol.filter())?;
    let index = i32::try_from(interface).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the storage is zeroed and at least as large and as aligned as every socket address; all of `sockaddr_ll`
    // that is set here is written, and the length says so.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_protocol = protocol.ether_type().to_be();
            (*link).sll_ifindex = index;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })?
    };
    socket.bind(&address)?;
    Ok(socket)
}

/// Has the runtime say when there is something to read.
///
/// # Errors
/// When the kernel has no room for one more.
pub(crate) fn register<T: Owner>(owner: Arc<T>) -> io::Result<AsyncFd<Arc<T>>> {
    // SAFETY: an `Owner` keeps its descriptor until it is dropped; what is watched keeps it from that.
    Ok(unsafe { AsyncFd::register(owner) }?)
}

/// What owns a descriptor, never replaces it, and closes it only when it is dropped.
pub(crate) trait Owner: AsRawFd {}

impl Owner for Socket {}

impl Owner for OwnedFd {}
