//! Leaving new connections to the process that follows on the same ports.
//!
//! Sockets of one port that share it (`SO_REUSEPORT`) are picked by hash. Closing one loses whoever is in the middle of
//! the handshake with it. So before the sockets of an old process are closed, the kernel is told to pick others: a
//! classic BPF program, which needs no privilege, names a socket behind the first `own` ones. Those came first, since
//! they are the older. Where there are no others, the program names a socket that does not exist, and the kernel picks
//! by hash as before.

use std::io;

use nix::{
    libc::{sock_filter, sock_fprog},
    sys::socket::{setsockopt, sockopt::AttachReusePortCbpf},
};

/// `A = a random number`: `BPF_LD | BPF_W | BPF_ABS` of the ancillary word `SKF_AD_RANDOM` (linux/filter.h).
const LOAD_RANDOM: (u16, u32) = (0x20, (-0x1000_i32 + 56).cast_unsigned());
/// `A %= k`.
const MODULO: u16 = 0x94;
/// `A += k`.
const ADD: u16 = 0x04;
/// `return A`.
const RETURN: u16 = 0x16;

/// Lets the kernel pick sockets of this port beyond the first `own` ones from now on, as long as there are any.
pub(crate) fn leave_to_successor(socket: &std::net::TcpListener, own: u32) -> io::Result<()> {
    let step = |code, k| sock_filter { code, jt: 0, jf: 0, k };
    let mut program = [step(LOAD_RANDOM.0, LOAD_RANDOM.1), step(MODULO, own.max(1)), step(ADD, own), step(RETURN, 0)];
    let program = sock_fprog { len: 4, filter: program.as_mut_ptr() };
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

    fn connect(port: u16, count: usize) -> Vec<TcpStream> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        (0..count).map(|_| TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap()).collect()
    }

    fn accepted(listeners: &[TcpListener]) -> usize {
        listeners.iter().map(|listener| std::iter::from_fn(|| listener.accept().ok()).count()).sum()
    }

    #[test]
    fn the_sockets_that_came_later_get_every_new_connection() {
        let first = listener(0);
        let port = first.local_addr().unwrap().port();
        let old = [first, listener(port)];
        let new = [listener(port), listener(port)];

        leave_to_successor(&old[0], 2).unwrap();
        let _clients = connect(port, 40);

        assert_eq!((accepted(&old), accepted(&new)), (0, 40));
        assert!(new.iter().all(|one| one.local_addr().is_ok()));
    }

    #[test]
    fn without_a_successor_nothing_changes() {
        let first = listener(0);
        let port = first.local_addr().unwrap().port();
        let old = [first, listener(port)];

        leave_to_successor(&old[0], 2).unwrap();
        let _clients = connect(port, 40);

        assert_eq!(accepted(&old), 40);
    }

    #[test]
    fn once_the_old_sockets_are_closed_the_new_ones_serve_on() {
        let first = listener(0);
        let port = first.local_addr().unwrap().port();
        let old = [first, listener(port)];
        let new = [listener(port), listener(port)];
        leave_to_successor(&old[0], 2).unwrap();

        drop(old);
        let _clients = connect(port, 40);

        assert_eq!(accepted(&new), 40);
    }
}
