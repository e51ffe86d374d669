//! Two sockets at one port. What can wait comes to one of them and wakes nobody; everything else comes to the other. The kernel
//! tells them apart (`SO_ATTACH_REUSEPORT_CBPF`), so that waiting for news costs nothing while there are none.

use std::{io, net::SocketAddr};

use libc::{sock_filter, sock_fprog};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::Socket;

/// How soon a datagram is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It says nothing new.
    Calm,
    /// At once.
    News,
}

impl Kind {
    pub(crate) const BOTH: [Self; 2] = [Self::Calm, Self::News];
}

/// Sockets for both kinds, each `new` and bound to the address. Nobody who does not agree to it by the same option can have
/// the port too, and what comes for the two goes to nobody who has it by the same address.
///
/// The program says of a datagram without its headers which [`Kind`] it is. One that it cannot read is calm.
pub(crate) fn pair(
    address: SocketAddr,
    new: impl Fn() -> io::Result<Socket>,
    program: &mut [sock_filter],
) -> io::Result<[(Kind, Socket); 2]> {
    let (calm, news) = (new()?, new()?);
    // The first does not agree until it has the port, so that it does not get one that somebody has.
    calm.bind(&address.into())?;
    setsockopt(&calm, sockopt::ReusePort, &true)?;
    setsockopt(&news, sockopt::ReusePort, &true)?;
    // The kernel counts them in the order in which they were bound.
    news.bind(&calm.local_addr()?)?;
    let program = sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        filter: program.as_mut_ptr(),
    };
    setsockopt(&news, sockopt::AttachReusePortCbpf, &program)?;
    Ok([(Kind::Calm, calm), (Kind::News, news)])
}

/// An instruction of a program.
pub(crate) const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}
