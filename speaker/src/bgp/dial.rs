//! Makes a connection to a peer the way its configuration says.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use ferrogate_core::{
    model::peer::Signature,
    speaker::bgp::{Target, Transport, Trouble, Ttl},
};
use nix::{errno::Errno, net::if_::if_nametoindex};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::sockopt;

/// How long a connection may take to be made.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// For how long data may wait to be acknowledged before the kernel gives a connection up (`TCP_USER_TIMEOUT`): longer than
/// hold times usually are, which are what ends a session.
const USER_TIMEOUT: Duration = Duration::from_secs(180);

/// TTL or hop limit of what may travel, and of what is to prove how near we are (RFC 5082 §3).
const FAR: u32 = 255;

/// Differentiated services code point CS6, in its place in the byte (RFC 4594 §3.2).
const CLASS: u32 = 48 << 2;

/// Makes a connection, or says why there is none.
pub(super) async fn dial(to: &Target, transport: &Transport) -> Result<TcpStream, Trouble> {
    let address = destination(to)?;
    let socket = prepare(to, address, transport)?;
    let signature = transport.signature.as_ref();
    match tokio::time::timeout(CONNECT_PATIENCE, TcpSocket::from_std_stream(socket.into()).connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(trouble(&error, signature)),
        Err(_) => Err(Trouble::silence(signature)),
    }
}

fn destination(to: &Target) -> Result<SocketAddr, Trouble> {
    match (to.address, &to.interface) {
        (IpAddr::V6(address), Some(interface)) => {
            let index = if_nametoindex(interface.as_str()).map_err(|_| Trouble::NoInterface(interface.clone()))?;
            Ok(SocketAddrV6::new(address, to.port.get(), 0, index).into())
        }
        _ => Ok(SocketAddr::new(to.address, to.port.get())),
    }
}

fn prepare(to: &Target, address: SocketAddr, transport: &Transport) -> Result<Socket, Trouble> {
    let other = |error: io::Error| trouble(&error, None);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).map_err(other)?;
    socket.set_nonblocking(true).map_err(other)?;
    // The interface of an unnumbered peer; a VRF is bound to by its device in the same way.
    if let Some(device) = to.interface.as_ref().or(transport.vrf.as_ref()) {
        socket.bind_device(Some(device.as_str().as_bytes())).map_err(|error| match Errno::try_from(error) {
            Ok(Errno::EPERM) => Trouble::NotPermitted("binding to an interface needs CAP_NET_RAW"),
            _ => Trouble::NoInterface(device.clone()),
        })?;
    }
    if let Some(source) = transport.source {
        socket.bind(&SockAddr::from(SocketAddr::new(source, 0))).map_err(|error| match error.kind() {
            io::ErrorKind::AddrNotAvailable => Trouble::NoSourceAddress(source),
            _ => other(error),
        })?;
    }
    if let Some(signature) = &transport.signature {
        sockopt::sign(&socket, to.address.into(), signature).map_err(|error| unsigned(&error, signature))?;
    }
    dress(&socket, address.is_ipv4(), transport.ttl).map_err(other)?;
    Ok(socket)
}

/// Why segments cannot be signed. Then there is no connection.
fn unsigned(error: &io::Error, signature: &Signature) -> Trouble {
    match signature {
        Signature::Md5(_) if sockopt::is_missing(error) => {
            Trouble::Unsupported("TCP MD5 signatures (CONFIG_TCP_MD5SIG)")
        }
        Signature::Ao { terms, .. } if sockopt::is_missing(error) => Trouble::NoTcpAo(terms.algorithm),
        _ => Trouble::Other(format!("cannot set the password of the connection: {error}")),
    }
}

/// What every connection gets, whoever made it.
pub(super) fn dress(socket: &Socket, is_ipv4: bool, ttl: Ttl) -> io::Result<()> {
    let (limit, least) = match ttl {
        Ttl::Direct => (1, None),
        Ttl::MultiHop => (FAR, None),
        Ttl::Security { hops } => (FAR, Some((FAR + 1 - u32::from(hops.get())) as u8)),
    };
    if is_ipv4 {
        socket.set_ttl_v4(limit)?;
        socket.set_tos_v4(CLASS)?;
    } else {
        socket.set_unicast_hops_v6(limit)?;
        socket.set_tclass_v6(CLASS)?;
    }
    if let Some(least) = least {
        sockopt::set_least_ttl(socket, is_ipv4, least)?;
    }
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_nodelay(true)
}

fn trouble(error: &io::Error, signature: Option<&Signature>) -> Trouble {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Trouble::ConnectionRefused,
        io::ErrorKind::TimedOut => Trouble::silence(signature),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
            Trouble::Unreachable(error.to_string())
        }
        _ => Trouble::Other(error.to_string()),
    }
}
