//! A proxy that kube-proxy brings traffic to.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ferrogate_proxy::Config;

use crate::stage::{Client, Origin, PATIENCE, Stage, cluster, config, header, reserve, soon};

#[tokio::test]
async fn behind_kube_proxy_endpoints_hear_of_the_port_the_client_used_and_of_its_address() {
    let origin = Origin::saying("hello").await;
    let (port, reserved) = reserve();
    let mut stage = Stage::starting(config(), cluster(port, &[origin.address]), port, reserved);
    soon(stage.ready.wait_for(|ready| *ready)).await.unwrap();

    let mut client = stage.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    client.answer().await;

    let head = &origin.heads()[0];
    assert_eq!(header(head, "x-forwarded-port"), Some("80"));
    assert_eq!(header(head, "x-forwarded-for"), Some("127.0.0.1"));
}

#[tokio::test]
async fn a_proxy_that_is_asked_to_end_is_not_ready_at_once_and_takes_connections_until_it_has_left() {
    let origin = Origin::saying("hello").await;
    let (port, reserved) = reserve();
    let config = Config { leave_time: Duration::from_millis(500), ..config() };
    let mut stage = Stage::starting(config, cluster(port, &[origin.address]), port, reserved);
    soon(stage.ready.wait_for(|ready| *ready)).await.unwrap();

    stage.shutdown.cancel();
    soon(stage.ready.wait_for(|ready| !*ready)).await.unwrap();
    let mut client = Client::to(port).await;
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;

    assert_eq!(client.answer().await.1, "hello");
    stage.ended().await.unwrap();
}

#[tokio::test]
async fn a_proxy_that_leaves_tells_every_client_with_its_answer_that_the_connection_ends() {
    let origin = Origin::saying("hello").await;
    let (port, reserved) = reserve();
    let config = Config { leave_time: PATIENCE, ..config() };
    let mut stage = Stage::starting(config, cluster(port, &[origin.address]), port, reserved);
    soon(stage.ready.wait_for(|ready| *ready)).await.unwrap();
    let mut client = stage.connect().await;

    stage.shutdown.cancel();
    let mut last = false;
    while !last {
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        last = header(&client.answer().await.0, "connection") == Some("close");
    }

    client.closed().await;
    let mut next = Client::to(port).await;
    next.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(next.answer().await.1, "hello");
}

#[tokio::test]
async fn a_client_that_is_connected_when_the_proxy_ends_gets_its_first_answer() {
    let origin = Origin::saying("hello").await;
    let (port, reserved) = reserve();
    let config = Config { leave_time: Duration::ZERO, ..config() };
    let mut stage = Stage::starting(config, cluster(port, &[origin.address]), port, reserved);
    soon(stage.ready.wait_for(|ready| *ready)).await.unwrap();
    let mut client = stage.connect().await;

    stage.shutdown.cancel();
    soon(stage.ready.wait_for(|ready| !*ready)).await.unwrap();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;

    assert_eq!(client.answer().await.1, "hello");
    stage.ended().await.unwrap();
}

/// How often one proxy follows another.
const UPDATES: usize = 10;
/// Clients that ask meanwhile.
const CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn one_proxy_follows_another_on_a_node_and_no_request_is_lost() {
    let origin = Origin::saying("hello").await;
    let (port, _reserved) = reserve();
    let config = Config { threads: NonZeroUsize::new(4), leave_time: Duration::from_millis(100), ..config() };
    let start = || {
        let (_, reserved) = reserve();
        Stage::starting(config.clone(), cluster(port, &[origin.address]), port, reserved)
    };
    let mut current = start();
    soon(current.ready.wait_for(|ready| *ready)).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let ask_until_then = || {
        let stop = Arc::clone(&stop);
        tokio::task::spawn_blocking(move || {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                ask(port).unwrap_or_else(|error| panic!("after {asked} answers: {error}"));
                asked += 1;
            }
            asked
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(|_| ask_until_then()).collect();

    for _ in 0..UPDATES {
        let mut next = start();
        soon(next.ready.wait_for(|ready| *ready)).await.unwrap();
        current.shutdown.cancel();
        current.ended().await.unwrap();
        current = next;
    }
    stop.store(true, Ordering::Relaxed);

    for client in clients {
        assert!(soon(client).await.unwrap() > 0);
    }
}

/// One request on a connection of its own.
fn ask(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(std::io::Error::other(answer)) }
}

#[tokio::test]
async fn a_proxy_is_ready_only_while_the_entry_is_there_and_every_listener_open() {
    let (port, reserved) = reserve();
    let whole = cluster(port, &[]);
    let mut waiting = whole.clone();
    Arc::make_mut(waiting.entry.as_mut().unwrap()).service = None;
    let mut stage = Stage::starting(config(), waiting.clone(), port, reserved);

    stage.show(whole);
    soon(stage.ready.wait_for(|ready| *ready)).await.unwrap();
    stage.show(waiting);
    soon(stage.ready.wait_for(|ready| !*ready)).await.unwrap();

    // Somebody else has this one, and does not share it.
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    stage.show(cluster(taken.local_addr().unwrap().port(), &[]));
    soon(async {
        while stage.metric("ferrogate_proxy_listeners_unbound") == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!*stage.ready.borrow());
}
