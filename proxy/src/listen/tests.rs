use super::*;
use crate::{
    config::Config,
    fixtures::{World, loopback, run},
};

/// More than a task may accept in one turn.
const WAITING: usize = 200;

/// A listener in which that many connections wait, and the Service of HTTP that stands for it.
fn crowded() -> (std::net::TcpListener, World, Vec<std::net::TcpStream>) {
    let socket = bound(loopback(), Type::STREAM, Protocol::TCP).unwrap();
    socket.listen(BACKLOG).unwrap();
    let socket = std::net::TcpListener::from(socket);
    let mut world = World::new(socket.local_addr().unwrap(), Transport::Tcp);
    world.service.is_entry = true;
    let clients = (0..WAITING).map(|_| std::net::TcpStream::connect(world.key.socket).unwrap()).collect();
    (socket, world, clients)
}

#[test]
fn everything_that_waits_in_a_listener_is_accepted_before_it_is_closed() {
    run(async {
        let (socket, world, _clients) = crowded();
        let thread = world.thread(Config::default());

        open_tcp(&thread, world.key, socket).unwrap().close().await;

        assert_eq!(thread.counters.accepted.value(), WAITING as u64);
    });
}

#[test]
fn what_a_listener_has_accepted_is_open_by_the_time_it_is_closed() {
    run(async {
        let (socket, world, _clients) = crowded();
        let thread = world.thread(Config::default());

        open_tcp(&thread, world.key, socket).unwrap().close().await;

        assert_eq!(thread.watches.len(), WAITING);
    });
}
