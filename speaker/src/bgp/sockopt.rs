//! Socket options that BGP needs and no safe wrapper knows: keys of TCP MD5 signatures (RFC 2385), the least TTL or hop
//! limit that is taken (RFC 5082), and which ICMPv6 types a raw socket gets.
//!
//! `unsafe` is needed here because they are set by plain `setsockopt` with structures of the kernel.
#![allow(unsafe_code)]

use std::{
    io, mem,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use ferrogate_core::model::{Prefix, peer::Key};
use nix::libc::{self, c_int, c_void};

/// `TCP_MD5SIG_EXT`.
const TCP_MD5SIG_EXT: c_int = 32;
/// `TCP_MD5SIG_FLAG_PREFIX`.
const FLAG_PREFIX: u8 = 1;
/// `IPV6_MINHOPCOUNT`.
const IPV6_MINHOPCOUNT: c_int = 73;
/// `ICMP6_FILTER`.
const ICMP6_FILTER: c_int = 1;

/// `struct tcp_md5sig` of linux/tcp.h.
#[repr(C)]
struct TcpMd5Sig {
    address: [u8; mem::size_of::<libc::sockaddr_storage>()],
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    ifindex: c_int,
    key: [u8; Key::MAX_BYTES],
}

/// Signs what goes to these addresses and takes from them only what is signed so; without a key neither any more.
pub(super) fn set_md5_key(socket: &impl AsFd, from: Prefix, key: Option<&Key>) -> io::Result<()> {
    let mut signature = TcpMd5Sig {
        address: [0; mem::size_of::<libc::sockaddr_storage>()],
        flags: FLAG_PREFIX,
        prefix_len: from.prefix(),
        key_len: 0,
        ifindex: 0,
        key: [0; Key::MAX_BYTES],
    };
    // Family, port and, for IPv6, flow information come before the address (`sockaddr_in`, `sockaddr_in6`).
    let (family, at, octets) = match from.ip() {
        IpAddr::V4(address) => (libc::AF_INET, 4, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, 8, address.octets().to_vec()),
    };
    signature.address[..2].copy_from_slice(&(family as libc::sa_family_t).to_ne_bytes());
    signature.address[at..at + octets.len()].copy_from_slice(&octets);
    if let Some(key) = key {
        let octets = key.expose().as_bytes();
        signature.key[..octets.len()].copy_from_slice(octets);
        signature.key_len = u16::try_from(octets.len()).unwrap_or_default();
    }
    set(socket, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &signature)
}

/// Takes no segment whose TTL or hop limit is less.
pub(super) fn set_least_ttl(socket: &impl AsFd, is_ipv4: bool, least: u8) -> io::Result<()> {
    let value = c_int::from(least);
    match is_ipv4 {
        true => set(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &value),
        false => set(socket, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, &value),
    }
}

/// Takes ICMPv6 of one type only.
pub(super) fn take_only_icmpv6(socket: &impl AsFd, kind: u8) -> io::Result<()> {
    // A bit that is set blocks its type.
    let mut blocked = [u32::MAX; 8];
    blocked[usize::from(kind >> 5)] &= !(1 << (kind & 31));
    set(socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &blocked)
}

fn set<T>(socket: &impl AsFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let len = mem::size_of::<T>() as libc::socklen_t;
    let value: *const c_void = std::ptr::from_ref(value).cast();
    // SAFETY: `value` points to `len` readable bytes for the whole call, and the kernel only copies them.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value, len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
