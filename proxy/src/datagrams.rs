//! UDP sockets that are waited for only to be read.
//!
//! `tokio::net::UdpSocket` waits for room to write as well, and with edge-triggered events that wakes the thread once
//! more for every datagram that has left. This is the only file of the proxy with `unsafe` in it.
#![allow(unsafe_code)]

use std::{io, net::UdpSocket};

use tokio::io::{Interest, unix::AsyncFd};

/// A UDP socket registered for reading. Writing does not wait: what finds no room is lost, as on a network.
pub(crate) type Socket = AsyncFd<UdpSocket>;

/// Registers a socket.
///
/// # Errors
/// What the system says.
pub(crate) fn register(socket: UdpSocket) -> io::Result<Socket> {
    socket.set_nonblocking(true)?;
    // SAFETY: the standard library's socket owns its descriptor, keeps it open for as long as it lives, and names the
    // same one each time it is asked; `AsyncFd` owns the socket.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
}
