use std::{num::NonZeroU16, sync::Arc};

use ferrogate_core::{
    model::{
        ServiceKey,
        route::{Backend, BackendPort, Ingress},
        service::Service,
    },
    proxy::Transport,
};
use tokio::{io::AsyncReadExt, net::TcpListener};

use super::*;
use crate::{
    config::Config,
    fixtures::{World, loopback, run, settle},
    listen,
};

fn size<Served: Future>(_: fn(Rc<Thread>, TcpStream, SocketAddr, ListenerKey, u16) -> Served) -> usize {
    size_of::<Served>()
}

#[test]
fn an_idle_connection_holds_little_memory() {
    // Beside it: the registration of its socket, its watch, the lines about its client. 4 KiB is the promise.
    assert!(size(serve) <= 2048, "{} bytes", size(serve));
}

/// A proxy that sends every request to this endpoint.
fn gateway(endpoint: SocketAddr) -> (std::net::TcpListener, World) {
    let socket = std::net::TcpListener::bind(loopback()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut world = World::new(socket.local_addr().unwrap(), Transport::Tcp);
    let web = World::new(SocketAddr::new(loopback().ip(), 80), Transport::Tcp).endpoint(endpoint, "a").service;
    let key = ServiceKey::new("default", "pods");
    let backend = Backend { service: key.clone(), port: BackendPort::Number(NonZeroU16::new(80).unwrap()) };
    let web = Service { key: key.clone(), load_balancer: None, ..web };
    let ingress = Ingress {
        key: key.clone(),
        created: 0,
        generation: 1,
        default_backend: Some(backend),
        rules: Vec::new(),
        observed_addresses: Vec::new(),
    };
    world.service.is_entry = true;
    world.snapshot.services.insert(key.clone(), Arc::new(web));
    world.snapshot.ingresses.insert(key, Arc::new(ingress));
    (socket, world)
}

#[test]
fn an_answer_that_takes_long_does_not_hold_an_old_table() {
    run(async {
        let pod = TcpListener::bind(loopback()).await.unwrap();
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nbegun",
        ] {
            let (socket, world) = gateway(pod.local_addr().unwrap());
            let thread = world.thread(Config::default());
            let _open = listen::open_tcp(&thread, world.key, socket).unwrap();
            let mut client = TcpStream::connect(world.key.socket).await.unwrap();
            let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            client.write_all(request.as_bytes()).await.unwrap();
            let (mut served, _) = pod.accept().await.unwrap();
            served.write_all(answer.as_bytes()).await.unwrap();
            let mut received = String::new();
            while !received.ends_with("begun") {
                let mut piece = [0; 256];
                let length = client.read(&mut piece).await.unwrap();
                received.push_str(std::str::from_utf8(&piece[..length]).unwrap());
            }

            let old = Rc::downgrade(&thread.table());
            thread.adopt(world.table());

            assert!(old.upgrade().is_none(), "{received:?}");
        }
    });
}

#[test]
fn a_request_that_comes_as_the_time_to_wait_for_it_ends_is_still_answered() {
    run(async {
        let socket = std::net::TcpListener::bind(loopback()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut world = World::new(socket.local_addr().unwrap(), Transport::Tcp);
        world.service.is_entry = true;
        let thread = world.thread(Config::default());
        let _open = listen::open_tcp(&thread, world.key, socket).unwrap();
        let mut client = TcpStream::connect(world.key.socket).await.unwrap();
        while thread.watches.len() == 0 {
            settle().await;
        }

        client.try_write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        thread.watches.sweep(thread.now() + thread.config.idle_timeout);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();

        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer:?}");
        assert!(answer.contains("Connection: close\r\n"), "{answer:?}");
    });
}

#[tokio::test]
async fn a_task_that_has_used_up_its_turn_is_not_told_that_there_is_nothing_to_read() {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut receiver, _) = listener.accept().await.unwrap();
    sender.write_all(b"hello").await.unwrap();
    receiver.readable().await.unwrap();
    let (mut read, _) = receiver.split();
    let mut buffer = Buffer::none();

    while coop::has_budget_remaining() {
        poll_fn(|context| coop::poll_proceed(context).map(|turn| turn.made_progress())).await;
    }
    let found = read_now(&mut read, &mut buffer).await;

    assert!(matches!(found, Some(Ok(5))), "{found:?}");
}
