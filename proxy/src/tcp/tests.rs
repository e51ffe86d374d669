use std::net::{IpAddr, SocketAddr};

use ferrogate_core::{
    model::service::SessionAffinity,
    proxy::{Serves, Transport},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    config::Config,
    fixtures::{World, loopback, run, settle},
    listen,
};

/// A listener without a proxy yet, and the Service that stands for it.
async fn world() -> (std::net::TcpListener, World) {
    let socket = std::net::TcpListener::bind(loopback()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let world = World::new(socket.local_addr().unwrap(), Transport::Tcp);
    (socket, world)
}

async fn pod() -> (TcpListener, SocketAddr) {
    let pod = TcpListener::bind(loopback()).await.unwrap();
    let address = pod.local_addr().unwrap();
    (pod, address)
}

/// An address where connections are refused for as long as this lives.
fn refusing() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&loopback().into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

fn proxy(socket: std::net::TcpListener, world: &World, config: Config) -> (Rc<Thread>, listen::Open) {
    let thread = world.thread(config);
    let open = listen::open_tcp(&thread, world.key, socket).unwrap();
    (thread, open)
}

#[test]
fn l_105_bytes_go_both_ways_and_each_side_may_finish_by_itself() {
    run(async {
        let (socket, world) = world().await;
        let (pod, address) = pod().await;
        let world = world.endpoint(address, "a");
        let _proxy = proxy(socket, &world, Config::default());

        let mut client = TcpStream::connect(world.key.socket).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut served, _) = pod.accept().await.unwrap();
        let mut question = String::new();
        served.read_to_string(&mut question).await.unwrap();
        served.write_all(b"a late answer").await.unwrap();
        drop(served);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();

        assert_eq!((question.as_str(), answer.as_str()), ("question", "a late answer"));
    });
}

#[test]
fn a_large_stream_to_a_slow_reader_arrives_whole() {
    run(async {
        let (socket, world) = world().await;
        let (pod, address) = pod().await;
        let world = world.endpoint(address, "a");
        let _proxy = proxy(socket, &world, Config::default());
        let sent: Vec<u8> = (0..8_u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();

        let mut client = TcpStream::connect(world.key.socket).await.unwrap();
        let copy = sent.clone();
        tokio::task::spawn_local(async move {
            let (mut served, _) = pod.accept().await.unwrap();
            served.write_all(&copy).await.unwrap();
        });
        let mut received = Vec::new();
        let mut piece = [0; 1000];
        loop {
            let length = client.read(&mut piece).await.unwrap();
            if length == 0 {
                break;
            }
            received.extend_from_slice(&piece[..length]);
        }

        assert!(received == sent);
    });
}

#[test]
fn an_endpoint_that_refuses_costs_the_client_nothing() {
    run(async {
        let (socket, world) = world().await;
        let (_refusing, nobody) = refusing();
        let (pod, address) = pod().await;
        let world = world.endpoint(nobody, "a").endpoint(address, "a");
        let (thread, _open) = proxy(socket, &world, Config::default());

        for _ in 0..4 {
            let mut client = TcpStream::connect(world.key.socket).await.unwrap();
            client.write_all(b"hello").await.unwrap();
            let (mut served, _) = pod.accept().await.unwrap();
            let mut hello = [0; 5];
            served.read_exact(&mut hello).await.unwrap();
            assert_eq!(&hello, b"hello");
        }

        assert_eq!(thread.counters.dial_failures.value(), 1);
    });
}

#[test]
fn without_an_endpoint_the_client_is_reset() {
    run(async {
        let (socket, world) = world().await;
        let (_refusing, nobody) = refusing();
        let world = world.endpoint(nobody, "a");
        let (thread, _open) = proxy(socket, &world, Config::default());

        let mut client = TcpStream::connect(world.key.socket).await.unwrap();
        let end = client.read(&mut [0]).await;

        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(thread.counters.unconnected.value(), 1);
    });
}

#[test]
fn a_reset_on_one_side_becomes_a_reset_on_the_other() {
    run(async {
        let (socket, world) = world().await;
        let (pod, address) = pod().await;
        let world = world.endpoint(address, "a");
        let _proxy = proxy(socket, &world, Config::default());
        for by_client in [true, false] {
            let client = TcpStream::connect(world.key.socket).await.unwrap();
            let (served, _) = pod.accept().await.unwrap();

            let (resets, mut learns) = if by_client { (client, served) } else { (served, client) };
            SockRef::from(&resets).set_linger(Some(Duration::ZERO)).unwrap();
            drop(resets);
            let end = learns.read(&mut [0]).await;

            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "by client: {by_client}");
        }
    });
}

#[test]
fn a_connection_that_is_silent_for_too_long_is_reset() {
    run(async {
        let (socket, world) = world().await;
        let (pod, address) = pod().await;
        let world = world.endpoint(address, "a");
        let (thread, _open) = proxy(socket, &world, Config::default());
        let mut client = TcpStream::connect(world.key.socket).await.unwrap();
        let (mut served, _) = pod.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        served.read_exact(&mut [0]).await.unwrap();

        let before = thread.now() + thread.config.tunnel_timeout - Duration::from_millis(1);
        thread.watches.sweep(before);
        assert_eq!(thread.watches.len(), 1);
        thread.watches.sweep(before + Duration::from_millis(1));

        for side in [&mut client, &mut served] {
            assert_eq!(side.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_connection_that_is_cut_at_the_end_of_the_thread_is_not_taken_for_a_complete_one() {
    run(async {
        let (socket, world) = world().await;
        let (pod, address) = pod().await;
        let world = world.endpoint(address, "a");
        let thread = world.thread(Config::default());
        let table = thread.table();
        let Some(Serves::Tcp(backend)) = table.listener(world.key).map(|listener| listener.serves) else { panic!() };
        let listener = TcpListener::from_std(socket).unwrap();
        let mut client = TcpStream::connect(world.key.socket).await.unwrap();
        let (accepted, from) = listener.accept().await.unwrap();
        let life = tokio::task::spawn_local(serve(thread, table, backend, accepted, from, world.key));
        let (mut served, _) = pod.accept().await.unwrap();
        settle().await;

        life.abort();

        for side in [&mut client, &mut served] {
            assert_eq!(side.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_client_outside_the_source_ranges_reaches_no_endpoint() {
    run(async {
        let (socket, world) = world().await;
        let (pod, address) = pod().await;
        let mut world = world.endpoint(address, "a");
        world.service.source_ranges = vec!["203.0.113.0/24".parse().unwrap()];
        let (thread, _open) = proxy(socket, &world, Config::default());

        let mut client = TcpStream::connect(world.key.socket).await.unwrap();
        let end = client.read(&mut [0]).await;

        assert!(matches!(end, Ok(0) | Err(_)));
        assert_eq!(thread.counters.forbidden.value(), 1);
        assert_eq!(thread.counters.dialled.value(), 0);
        drop(pod);
    });
}

#[test]
fn with_client_affinity_one_address_stays_at_one_endpoint() {
    run(async {
        let (socket, mut world) = world().await;
        let mut pods = Vec::new();
        for _ in 0..3 {
            let (pod, address) = pod().await;
            world = world.endpoint(address, "a");
            pods.push(pod);
        }
        world.service.session_affinity = SessionAffinity::ClientIp { timeout: Duration::from_secs(10_800) };
        let _proxy = proxy(socket, &world, Config::default());

        let mut reached = Vec::new();
        for last in [2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7] {
            let dialler = tokio::net::TcpSocket::new_v4().unwrap();
            dialler.bind(SocketAddr::new(IpAddr::from([127, 0, 0, last]), 0)).unwrap();
            let _client = dialler.connect(world.key.socket).await.unwrap();
            let (first, second, third) = (pods[0].accept(), pods[1].accept(), pods[2].accept());
            reached.push(tokio::select! { _ = first => 0, _ = second => 1, _ = third => 2 });
        }

        assert!(reached.chunks(2).all(|pair| pair[0] == pair[1]), "{reached:?}");
        assert!(reached.iter().any(|pod| *pod != reached[0]), "{reached:?}");
    });
}

#[test]
fn a_connection_outlives_the_endpoint_in_the_table_and_the_listener() {
    run(async {
        let (socket, world) = world().await;
        let (pod, address) = pod().await;
        let mut world = world.endpoint(address, "a");
        let (thread, open) = proxy(socket, &world, Config::default());
        let mut client = TcpStream::connect(world.key.socket).await.unwrap();
        let (mut served, _) = pod.accept().await.unwrap();

        world.service.endpoints.clear();
        thread.adopt(world.table());
        open.close().await;
        thread.watches.close_idle(Some(world.key));
        served.write_all(b"still here").await.unwrap();
        let mut heard = [0; 10];
        client.read_exact(&mut heard).await.unwrap();

        assert_eq!(&heard, b"still here");
    });
}
