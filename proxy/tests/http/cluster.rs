//! A proxy that kube-proxy brings traffic to.

use std::{sync::Arc, time::Duration};

use ferrogate_proxy::Config;

use crate::stage::{Client, Origin, Stage, cluster, config, header, reserve, soon};

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
