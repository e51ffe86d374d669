//! Socket options that BGP needs and no safe wrapper knows: keys of TCP MD5 signatures (RFC 2385) and of TCP-AO
//! (RFC 5925), the least TTL or hop limit that is taken (RFC 5082), and which ICMPv6 types a raw socket gets.
//!
//! `unsafe` is needed here because they are set by plain `setsockopt` with structures of the kernel.
#![allow(unsafe_code)]

use std::{
    collections::BTreeSet,
    io, mem,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd},
};

use ferrogate_core::model::{
    Prefix,
    peer::{AoAlgorithm, Key, Signature, TcpAo},
};
use nix::libc::{self, c_int, c_void};
use socket2::{Domain, Protocol, Socket, Type};

/// `TCP_MD5SIG_EXT`.
const TCP_MD5SIG_EXT: c_int = 32;
/// `TCP_MD5SIG_FLAG_PREFIX`.
const FLAG_PREFIX: u8 = 1;
/// `TCP_AO_ADD_KEY`.
const TCP_AO_ADD_KEY: c_int = 38;
/// Room for the name of an algorithm in `struct tcp_ao_add`, a zero at its end included.
const AO_NAME_BYTES: usize = 64;
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

/// `struct tcp_ao_add` of linux/tcp.h, Linux 6.7 and later.
#[repr(C, align(8))]
struct TcpAoAdd {
    address: [u8; mem::size_of::<libc::sockaddr_storage>()],
    algorithm: [u8; AO_NAME_BYTES],
    ifindex: i32,
    /// Two bits that choose among keys of a connection that stands, and 30 that must be 0.
    flags: u32,
    reserved: u16,
    prefix_len: u8,
    send_id: u8,
    receive_id: u8,
    /// How long codes are; 0 is the 96 bits of both algorithms of RFC 5926.
    code_len: u8,
    key_flags: u8,
    key_len: u8,
    key: [u8; Key::MAX_BYTES],
}

/// Signs what goes to these addresses, and takes from them only what is signed so.
pub(super) fn sign(socket: &impl AsFd, from: Prefix, signature: &Signature) -> io::Result<()> {
    match signature {
        Signature::Md5(key) => {
            let (key, key_len) = padded(key);
            let signature = TcpMd5Sig {
                address: address(from),
                flags: FLAG_PREFIX,
                prefix_len: from.prefix(),
                key_len: key_len.into(),
                ifindex: 0,
                key,
            };
            set(socket, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &signature)
        }
        Signature::Ao { key, terms } => {
            let (key, key_len) = padded(key);
            let mut algorithm = [0; AO_NAME_BYTES];
            let name = kernel_name(terms.algorithm).as_bytes();
            algorithm[..name.len()].copy_from_slice(name);
            let signature = TcpAoAdd {
                address: address(from),
                algorithm,
                ifindex: 0,
                flags: 0,
                reserved: 0,
                prefix_len: from.prefix(),
                send_id: terms.send_id,
                receive_id: terms.receive_id,
                code_len: 0,
                key_flags: 0,
                key_len,
                key,
            };
            set(socket, libc::IPPROTO_TCP, TCP_AO_ADD_KEY, &signature)
        }
    }
}

/// Takes from these addresses what is not signed by MD5 any more.
pub(super) fn unsign(socket: &impl AsFd, from: Prefix) -> io::Result<()> {
    let signature = TcpMd5Sig {
        address: address(from),
        flags: FLAG_PREFIX,
        prefix_len: from.prefix(),
        key_len: 0,
        ifindex: 0,
        key: [0; Key::MAX_BYTES],
    };
    set(socket, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &signature)
}

/// Whether this is what a kernel says that does not have the option at all, or not the algorithm.
pub(super) fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::ENOENT))
}

/// The algorithms of TCP-AO that this kernel has; none where it does not know TCP-AO at all. Where it could not be asked,
/// memory being short, say, it is taken to have them: whoever makes a connection is told what is wrong.
pub(super) fn ao_algorithms() -> BTreeSet<AoAlgorithm> {
    let has = |algorithm: &AoAlgorithm| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP));
        let terms = TcpAo { send_id: 0, receive_id: 0, algorithm: *algorithm };
        let signature = Key::new("probe").map(|key| Signature::Ao { key, terms });
        // It goes nowhere: the socket is closed again, and has never been connected.
        let anybody = Prefix::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let refusal = socket.ok().zip(signature).and_then(|(socket, key)| sign(&socket, anybody, &key).err());
        !refusal.is_some_and(|error| is_missing(&error))
    };
    AoAlgorithm::ALL.into_iter().filter(has).collect()
}

/// What the kernel calls an algorithm.
fn kernel_name(algorithm: AoAlgorithm) -> &'static str {
    match algorithm {
        AoAlgorithm::HmacSha1 => "hmac(sha1)",
        AoAlgorithm::AesCmac => "cmac(aes128)",
    }
}

/// An address as `sockaddr_storage`: family, port and, for IPv6, flow information come before it (`sockaddr_in`,
/// `sockaddr_in6`).
fn address(from: Prefix) -> [u8; mem::size_of::<libc::sockaddr_storage>()] {
    let (family, at, octets) = match from.ip() {
        IpAddr::V4(address) => (libc::AF_INET, 4, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, 8, address.octets().to_vec()),
    };
    let mut address = [0; mem::size_of::<libc::sockaddr_storage>()];
    address[..2].copy_from_slice(&(family as libc::sa_family_t).to_ne_bytes());
    address[at..at + octets.len()].copy_from_slice(&octets);
    address
}

/// A key as the kernel takes it, and how long it is.
fn padded(key: &Key) -> ([u8; Key::MAX_BYTES], u8) {
    let octets = key.expose().as_bytes();
    let mut padded = [0; Key::MAX_BYTES];
    padded[..octets.len()].copy_from_slice(octets);
    (padded, u8::try_from(octets.len()).expect("a key has 80 bytes at most"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n_063_the_key_of_tcp_ao_is_laid_out_as_linux_has_it() {
        // By hand, from include/uapi/linux/tcp.h: 128 bytes of address, 64 of name, and what follows in order.
        assert_eq!((mem::size_of::<TcpAoAdd>(), mem::align_of::<TcpAoAdd>()), (288, 8));
        let offsets = [
            (mem::offset_of!(TcpAoAdd, address), 0),
            (mem::offset_of!(TcpAoAdd, algorithm), 128),
            (mem::offset_of!(TcpAoAdd, ifindex), 192),
            (mem::offset_of!(TcpAoAdd, flags), 196),
            (mem::offset_of!(TcpAoAdd, reserved), 200),
            (mem::offset_of!(TcpAoAdd, prefix_len), 202),
            (mem::offset_of!(TcpAoAdd, send_id), 203),
            (mem::offset_of!(TcpAoAdd, receive_id), 204),
            (mem::offset_of!(TcpAoAdd, code_len), 205),
            (mem::offset_of!(TcpAoAdd, key_flags), 206),
            (mem::offset_of!(TcpAoAdd, key_len), 207),
            (mem::offset_of!(TcpAoAdd, key), 208),
        ];
        for (place, (found, wanted)) in offsets.into_iter().enumerate() {
            assert_eq!(found, wanted, "field {place}");
        }
    }

    #[test]
    fn the_key_of_an_md5_signature_is_laid_out_as_linux_has_it() {
        assert_eq!(mem::size_of::<TcpMd5Sig>(), 216);
        assert_eq!(mem::offset_of!(TcpMd5Sig, key_len), 130);
        assert_eq!(mem::offset_of!(TcpMd5Sig, key), 136);
    }

    #[test]
    fn n_063_the_kernel_says_of_each_algorithm_what_setting_a_key_says() {
        let known = ao_algorithms();

        for algorithm in AoAlgorithm::ALL {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).unwrap();
            let signature = Signature::Ao {
                key: Key::new("secret").unwrap(),
                terms: TcpAo { send_id: 1, receive_id: 2, algorithm },
            };
            let set = sign(&socket, "2001:db8::/64".parse().unwrap(), &signature);
            assert_eq!(set.is_ok(), known.contains(&algorithm), "{algorithm}: {set:?}");
            // Without TCP-AO the option is unknown, without the algorithm there is none of its name.
            assert!(set.as_ref().err().is_none_or(is_missing), "{set:?}");
        }
    }

    #[test]
    fn n_063_only_two_errors_mean_that_the_kernel_has_no_tcp_ao() {
        for (error, is_absent) in [
            (libc::ENOPROTOOPT, true),
            (libc::ENOENT, true),
            (libc::ENOMEM, false),
            (libc::EPERM, false),
            (libc::EINVAL, false),
            (libc::EKEYREJECTED, false),
        ] {
            assert_eq!(is_missing(&io::Error::from_raw_os_error(error)), is_absent, "{error}");
        }
    }
}
