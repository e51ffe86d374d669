//! Which of the processes that share a port the kernel gives new connections to.
//!
//! Sockets of one port that share it (`SO_REUSEPORT`) are picked by hash. Closing one loses whoever is in the middle of
//! the handshake with it, and whoever waits in its queue. A classic BPF program, which needs no privilege and holds for
//! all sockets of the port, names another one: the place of a socket is the order in which they began to listen, so
//! that those of an older process come first. A socket that is closed leaves its place to the last one. Where there is
//! no socket at the place that the program names, the kernel picks by hash as before.

use std::{io, os::fd::AsFd};

use nix::{
    libc::{sock_filter, sock_fprog},
    sys::socket::{setsockopt, sockopt::AttachReusePortCbpf},
};

/// `A = a random number`: `BPF_LD | BPF_W | BPF_ABS` of the ancillary word `SKF_AD_RANDOM` (linux/filter.h).
const LOAD_RANDOM: (u16, u32) = (0x20, (-0x1000_i32 + 56).cast_unsigned());
/// `A = k`.
const LOAD: u16 = 0x00;
/// `A %= k`.
const MODULO: u16 = 0x94;
/// `A += k`.
const ADD: u16 = 0x04;
/// `return A`.
const RETURN: u16 = 0x16;

/// Lets the kernel pick the socket that has listened for longest, where each process has one.
///
/// # Errors
/// When the socket does not share its port, or does not listen.
pub fn prefer_oldest(socket: &impl AsFd) -> io::Result<()> {
    attach(socket, &mut [step(LOAD, 0), step(RETURN, 0)])
}

/// Lets the kernel pick by hash, whatever an earlier process has told it.
pub(crate) fn prefer_none(socket: &impl AsFd) -> io::Result<()> {
    attach(socket, &mut [step(LOAD, u32::MAX), step(RETURN, 0)])
}

/// Lets the kernel spread connections over sockets beyond the first `own` ones, as long as there are as many more.
pub(crate) fn leave_to_successor(socket: &impl AsFd, own: u32) -> io::Result<()> {
    let random = step(LOAD_RANDOM.0, LOAD_RANDOM.1);
    attach(socket, &mut [random, step(MODULO, own.max(1)), step(ADD, own), step(RETURN, 0)])
}

/// The same while the first `own` ones are closed, in whatever order: places change with each, and only the first one
/// beyond them is taken to the end by somebody who stays.
pub(crate) fn leave_to_one_successor(socket: &impl AsFd, own: u32) -> io::Result<()> {
    attach(socket, &mut [step(LOAD, own), step(RETURN, 0)])
}

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn attach(socket: &impl AsFd, program: &mut [sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = sock_fprog { len, filter: program.as_mut_ptr() };
    setsockopt(socket, AttachReusePortCbpf, &program).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
        time::Duration,
    };

    use socket2::{Domain, Socket, Type};

    use super::*;

    fn listener(port: u16) -> TcpListener {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
        socket.listen(64).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.into()
    }

    /// So many listeners of one process beside those that are there.
    fn listeners(port: &mut u16, count: usize) -> Vec<TcpListener> {
        let listen = |_| {
            let listener = listener(*port);
            *port = listener.local_addr().unwrap().port();
            listener
        };
        (0..count).map(listen).collect()
    }

    fn connect(port: u16, count: usize) -> Vec<TcpStream> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        (0..count).map(|_| TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap()).collect()
    }

    fn accepted<'a>(listeners: impl IntoIterator<Item = &'a TcpListener>) -> usize {
        listeners.into_iter().map(|listener| std::iter::from_fn(|| listener.accept().ok()).count()).sum()
    }

    #[test]
    fn the_sockets_that_came_later_get_every_new_connection() {
        let mut port = 0;
        let (old, new) = (listeners(&mut port, 2), listeners(&mut port, 2));

        leave_to_successor(&old[0], 2).unwrap();
        let _clients = connect(port, 40);

        assert_eq!(accepted(&old), 0);
        assert!(new.iter().all(|one| accepted([one]) > 0));
    }

    #[test]
    fn without_a_successor_nothing_changes() {
        let mut port = 0;
        let old = listeners(&mut port, 2);

        leave_to_successor(&old[0], 2).unwrap();
        let _clients = connect(port, 40);

        assert_eq!(accepted(&old), 40);
    }

    #[test]
    fn no_socket_is_picked_while_its_process_closes_them_one_by_one() {
        for first_closed in [0, 2] {
            let mut port = 0;
            let (mut old, new) = (listeners(&mut port, 3), listeners(&mut port, 3));
            let handle = old[0].try_clone().unwrap();
            leave_to_successor(&handle, 3).unwrap();
            leave_to_one_successor(&handle, 3).unwrap();
            drop(handle);

            while !old.is_empty() {
                drop(old.remove(first_closed.min(old.len() - 1)));
                let _clients = connect(port, 40);

                assert_eq!((accepted(&old), accepted(&new)), (0, 40), "{} are left", old.len());
            }
        }
    }

    #[test]
    fn what_an_earlier_process_told_the_kernel_does_not_hold_for_the_next_two() {
        let mut port = 0;
        let (oldest, old) = (listeners(&mut port, 1), listeners(&mut port, 1));
        leave_to_one_successor(&oldest[0], 1).unwrap();
        drop(oldest);
        let new = listeners(&mut port, 1);

        prefer_none(&new[0]).unwrap();
        let _clients = connect(port, 40);

        assert!([old, new].iter().all(|one| accepted(one) > 0));
    }

    #[test]
    fn the_oldest_is_asked_until_it_closes() {
        let mut port = 0;
        let old = listeners(&mut port, 1);
        prefer_oldest(&old[0]).unwrap();
        let new = listeners(&mut port, 1);
        prefer_oldest(&new[0]).unwrap();

        let _clients = connect(port, 40);
        assert_eq!((accepted(&old), accepted(&new)), (40, 0));

        drop(old);
        let _clients = connect(port, 40);
        assert_eq!(accepted(&new), 40);
    }
}
