//! The proxy as clients and backends see it, on loopback sockets.
#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside of the test functions")]

mod access;
mod cluster;
mod stage;

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    time::Duration,
};

use ferrogate_core::model::{ObjectKey, service::Protocol};
use ferrogate_proxy::Config;
use stage::{Client, Origin, Stage, config, header, reserve, reserve_udp, soon, world, world_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const GET: &str = "GET /a?b=c HTTP/1.1\r\nHost: example.test\r\n\r\n";
const GET_AND_CLOSE: &str = "GET / HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n\r\n";

/// Time limits short enough to be waited for.
fn impatient() -> Config {
    let short = Duration::from_millis(50);
    Config { header_timeout: short, idle_timeout: short, body_timeout: short, response_timeout: short, ..config() }
}

/// An endpoint that refuses connections, for as long as the second part lives.
fn dead() -> (SocketAddr, tokio::net::TcpSocket) {
    let (port, held) = reserve();
    (SocketAddr::from(([127, 0, 0, 1], port)), held)
}

#[tokio::test]
async fn a_request_reaches_the_endpoint_and_its_answer_the_client() {
    let origin = Origin::saying("hello").await;
    let stage = Stage::new(&[origin.address]).await;

    let mut client = stage.connect().await;
    client.send(GET).await;
    let (head, body) = client.answer().await;

    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!(body, "hello");
    assert!(header(&head, "date").is_some());
    assert_eq!(header(&head, "server"), Some("ferrogate"));
    let seen = origin.heads().remove(0);
    assert!(seen.starts_with("GET /a?b=c HTTP/1.1\r\nHost: example.test\r\n"), "{seen}");
    assert_eq!(header(&seen, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(header(&seen, "x-forwarded-proto"), Some("http"));
    assert_eq!(header(&seen, "x-forwarded-host"), Some("example.test"));
    assert_eq!(stage.metric("ferrogate_proxy_requests_total{code=\"2xx\"}"), 1);
}

#[tokio::test]
async fn both_connections_are_kept_for_the_next_request() {
    let origin = Origin::saying("hello").await;
    let stage = Stage::new(&[origin.address]).await;
    let mut client = stage.connect().await;

    for _ in 0..10 {
        client.send(GET).await;
        assert_eq!(client.answer().await.1, "hello");
    }

    assert_eq!(origin.connections(), 1);
    assert_eq!(stage.metric("ferrogate_proxy_connections_accepted_total"), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::scripted(|mut client, _| async move {
        while let Some(head) = client.next_head().await {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            client.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len())).await;
        }
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;

    let mut client = stage.connect().await;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    client.send(request("/1") + &request("/2") + &request("/3")).await;

    for path in ["/1", "/2", "/3"] {
        assert_eq!(client.answer().await.1, path);
    }
}

#[tokio::test]
async fn no_route_no_endpoint_and_a_dead_endpoint_are_told_apart() {
    let (dead, _held) = dead();
    let stage = Stage::new(&[dead]).await;
    let refused = stage.once(GET_AND_CLOSE).await;
    stage.show(world(&[stage.port], &[]));
    let empty = eventually(&stage, "503").await;
    let mut bare = world(&[stage.port], &[]);
    bare.ingresses.clear();
    stage.show(bare);
    let missing = eventually(&stage, "404").await;

    assert!(refused.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{refused}");
    assert_eq!(header(&refused, "x-ferrogate-reason"), Some("ConnectFailed"));
    assert_eq!(header(&empty, "x-ferrogate-reason"), Some("NoEndpoint"));
    assert_eq!(header(&missing, "x-ferrogate-reason"), Some("NoHost"));
    assert!(missing.ends_with("\r\n\r\nno route takes this host\n"), "{missing}");
}

/// Asks until the answer has this status: a new world takes effect a moment after it is shown.
async fn eventually(stage: &Stage, status: &str) -> String {
    soon(async {
        loop {
            let answer = stage.once(GET_AND_CLOSE).await;
            if answer.starts_with(&format!("HTTP/1.1 {status}")) {
                return answer;
            }
        }
    })
    .await
}

#[tokio::test]
async fn l_112_to_l_116_and_l_134_a_malformed_request_is_refused_with_the_reason_and_the_connection_ends() {
    let origin = Origin::saying("hello").await;
    let stage = Stage::new(&[origin.address]).await;

    let both = stage
        .once("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        .await;
    let trace = stage.once("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let large = stage.once(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(40_000))).await;
    let long = stage.once(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(9_000))).await;

    assert!(both.starts_with("HTTP/1.1 400 "), "{both}");
    assert_eq!(header(&both, "x-ferrogate-reason"), Some("LengthAndChunked"));
    assert_eq!(header(&both, "connection"), Some("close"));
    assert!(trace.starts_with("HTTP/1.1 405 "), "{trace}");
    assert!(large.starts_with("HTTP/1.1 431 "), "{large}");
    assert!(long.starts_with("HTTP/1.1 414 "), "{long}");
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn chunked_bodies_pass_in_both_directions() {
    let origin = Origin::scripted(|mut client, _| async move {
        while client.next_head().await.is_some() {
            let body = client.until("0\r\n\r\n").await;
            client.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
        }
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;
    let mut client = stage.connect().await;

    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhel").await;
        client.send("lo\r\n6\r\n world\r\n").await;
        client.send("0\r\nTrailer: dropped\r\n\r\n").await;
        let head = client.until("\r\n\r\n").await;
        let body = client.until("0\r\n\r\n").await;

        assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
        assert_eq!(body, "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_a_chunked_answer_without_its_chunks() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client
            .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
            .await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;

    let answer = stage.once("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;

    assert!(answer.ends_with("\r\n\r\nhello world"), "{answer}");
    assert_eq!(header(&answer, "connection"), Some("close"));
    assert_eq!(header(&answer, "transfer-encoding"), None);
}

#[tokio::test]
async fn large_bodies_pass_in_both_directions_at_the_same_time() {
    const SIZE: usize = 8 * 1024 * 1024;
    let origin = Origin::scripted(|client, _| async move {
        let mut client = client;
        client.next_head().await;
        client.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
        let mut left = SIZE;
        while left > 0 {
            let piece = client.exactly(left.min(64 * 1024)).await;
            left -= piece.len();
            client.send(piece).await;
        }
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;
    let sent: Vec<u8> = (0..SIZE).map(|index| (index % 251) as u8).collect();

    let mut client = stage.connect().await;
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n")).await;
    let (mut read, mut write) = client.stream.into_split();
    let upload = tokio::spawn({
        let sent = sent.clone();
        async move { write.write_all(&sent).await.map(|()| write) }
    });
    let mut received = Vec::new();
    let download = async {
        use tokio::io::AsyncReadExt;
        while received.len() < SIZE || !received.ends_with(&sent[SIZE - 1000..]) {
            assert_ne!(read.read_buf(&mut received).await.unwrap(), 0);
        }
    };
    soon(download).await;
    soon(upload).await.unwrap().unwrap();

    assert_eq!(received[received.len() - SIZE..], sent);
}

#[tokio::test]
async fn l_132_an_answer_to_head_has_a_length_but_no_body() {
    let origin = Origin::scripted(|mut client, _| async move {
        while client.next_head().await.is_some() {
            client.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
        }
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;
    let mut client = stage.connect().await;

    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = client.until("\r\n\r\n").await;
        assert_eq!(header(&head, "content-length"), Some("5"));
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn l_132_the_endpoint_decides_when_a_waiting_body_may_come() {
    let origin = Origin::scripted(|mut client, _| async move {
        let head = client.next_head().await.unwrap();
        assert_eq!(header(&head, "expect"), Some("100-continue"));
        client.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(client.exactly(5).await, b"hello");
        client.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n").await;
        client.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
        client.next_head().await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;
    let mut client = stage.connect().await;

    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    let interim = client.until("\r\n\r\n").await;
    client.send("hello").await;
    let hints = client.until("\r\n\r\n").await;
    let answer = client.until("\r\n\r\n").await;

    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
    assert_eq!(header(&answer, "connection"), None);
}

#[tokio::test]
async fn an_early_answer_is_passed_on_while_the_body_is_still_coming() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch").await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;
    let mut client = stage.connect().await;

    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nbegun").await;
    let (head, body) = client.answer().await;

    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    assert_eq!(header(&head, "connection"), Some("close"));
    assert_eq!(body, "much");
}

#[tokio::test]
async fn l_120_an_upgraded_connection_is_joined_in_both_directions() {
    let origin = Origin::scripted(|mut client, _| async move {
        let head = client.next_head().await.unwrap();
        assert_eq!(header(&head, "upgrade"), Some("websocket"));
        assert_eq!(header(&head, "connection"), Some("Upgrade"));
        client.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst").await;
        assert_eq!(client.exactly(4).await, b"ping");
        client.send("pong").await;
        client.closed().await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;
    let mut client = stage.connect().await;

    client.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    let first = client.exactly(5).await;
    client.send("ping").await;
    let pong = client.exactly(4).await;
    client.stream.shutdown().await.unwrap();

    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert_eq!((first, pong), (b"first".to_vec(), b"pong".to_vec()));
    client.closed().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let origin = Origin::saying("hello").await;
    let stage = Stage::with(impatient(), &[origin.address]).await;
    let mut client = stage.connect().await;

    client.send(GET).await;
    client.answer().await;

    client.closed().await;
}

#[tokio::test]
async fn l_125_a_slow_head_and_a_slow_body_are_given_up() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client.closed().await;
    })
    .await;
    let stage = Stage::with(impatient(), &[origin.address]).await;

    let head = stage.once("GET / HTTP/1.1\r\nHos").await;
    let body = stage.once("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await;

    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    assert_eq!(header(&head, "x-ferrogate-reason"), Some("HeaderTimeout"));
    assert!(body.starts_with("HTTP/1.1 408 "), "{body}");
    assert_eq!(header(&body, "x-ferrogate-reason"), Some("BodyTimeout"));
}

#[tokio::test]
async fn l_125_a_client_that_does_not_read_is_given_up() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client.send("HTTP/1.1 200 OK\r\n\r\n").await;
        let piece = vec![0; 64 * 1024];
        // Ends when the proxy has given up.
        while client.stream.write_all(&piece).await.is_ok() {}
        drop(client);
    })
    .await;
    let stage = Stage::with(impatient(), &[origin.address]).await;
    let mut client = stage.connect().await;

    client.send(GET).await;

    soon(async {
        while stage.metric("ferrogate_proxy_requests_total{code=\"2xx\"}") == 0
            || stage.metric("ferrogate_proxy_connections ") > 0
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_becomes_a_504() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client.closed().await;
    })
    .await;
    let stage = Stage::with(impatient(), &[origin.address]).await;

    let answer = stage.once(GET).await;

    assert!(answer.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{answer}");
    assert_eq!(header(&answer, "x-ferrogate-reason"), Some("ResponseTimeout"));
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_for_a_living_one() {
    let (dead, _held) = dead();
    let origin = Origin::saying("hello").await;
    let stage = Stage::new(&[dead, origin.address]).await;

    for _ in 0..4 {
        assert!(stage.once(GET_AND_CLOSE).await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(stage.metric("ferrogate_proxy_upstream_connect_failures_total"), 1);
}

#[tokio::test]
async fn a_kept_connection_that_turns_out_dead_is_replaced_without_the_client_noticing() {
    // Each connection answers one request and then dies on reading the next.
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        client.next_head().await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;
    let mut client = stage.connect().await;

    for _ in 0..3 {
        client.send(GET).await;
        assert_eq!(client.answer().await.1, "ok");
    }

    assert_eq!(stage.metric("ferrogate_proxy_upstream_retries_total"), 2);
}

#[tokio::test]
async fn a_request_that_may_not_be_done_twice_is_not_sent_twice() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        client.next_head().await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;
    let mut client = stage.connect().await;

    client.send(GET).await;
    client.answer().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
    let (head, _) = client.answer().await;

    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    assert_eq!(header(&head, "x-ferrogate-reason"), Some("UpstreamClosed"));
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn l_133_a_malformed_answer_becomes_a_502_and_bytes_beyond_an_answer_end_the_connection() {
    let origin = Origin::scripted(|mut client, number| async move {
        client.next_head().await;
        let answer = match number {
            0 => "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        };
        client.send(answer).await;
        client.next_head().await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;
    let mut client = stage.connect().await;

    client.send(GET).await;
    let (malformed, _) = client.answer().await;
    for _ in 0..2 {
        client.send(GET).await;
        assert_eq!(client.answer().await.1, "ok");
    }

    assert!(malformed.starts_with("HTTP/1.1 502 "), "{malformed}");
    assert_eq!(header(&malformed, "x-ferrogate-reason"), Some("MalformedResponse"));
    assert_eq!(origin.connections(), 3);
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_the_connection() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client.send("HTTP/1.0 200 OK\r\n\r\nall of it").await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;

    let answer = stage.once(GET).await;

    assert!(answer.ends_with("\r\n\r\nall of it"), "{answer}");
    assert_eq!(header(&answer, "connection"), Some("close"));
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_client_too() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;

    let answer = stage.once(GET).await;

    assert!(answer.ends_with("\r\n\r\nhalf"), "{answer}");
}

#[tokio::test]
async fn an_answer_without_a_length_that_breaks_off_is_not_taken_for_a_whole_one() {
    let reset = |answer: &'static str| {
        Origin::scripted(move |mut client, _| async move {
            client.next_head().await;
            client.send(answer).await;
            client.until("go on").await;
            client.reset();
        })
    };
    let until_close = reset("HTTP/1.1 200 OK\r\n\r\nhalf").await;
    let chunked = reset("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;

    for (origin, version) in [(&until_close, "1.1"), (&until_close, "1.0"), (&chunked, "1.0")] {
        let stage = Stage::new(&[origin.address]).await;
        let mut client = stage.connect().await;
        let head = format!("POST / HTTP/{version}\r\nHost: a\r\nContent-Length: 10\r\n\r\nabcde");
        client.send(head).await;
        client.until("half").await;
        client.send("go on").await;
        let end = soon(client.stream.read(&mut [0])).await;

        assert_eq!(end.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset), "{version}");
    }
}

#[tokio::test]
async fn a_request_that_turns_malformed_puts_no_second_answer_into_one_that_has_begun() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun").await;
        client.rest().await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;

    let mut client = stage.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    client.until("begun").await;
    client.send("no chunk size\r\n").await;

    client.closed().await;
}

#[tokio::test]
async fn no_request_is_lost_while_the_world_changes() {
    let origins = [Origin::saying("one").await, Origin::saying("two").await];
    let config = Config { threads: NonZeroUsize::new(2), ..config() };
    let stage = Stage::with(config, &[origins[0].address]).await;
    let (other_port, _held) = reserve();
    let port = stage.port;
    let load = |keep: bool| {
        tokio::spawn(async move {
            let mut client = Client::to(port).await;
            for _ in 0..200 {
                if !keep {
                    client = Client::to(port).await;
                }
                client.send(GET).await;
                let (head, _) = client.answer().await;
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            }
        })
    };

    let mut running = tokio::task::JoinSet::new();
    for client in 0..8 {
        running.spawn(load(client % 2 == 0));
    }
    let mut round = 0;
    while let Some(done) = soon(async {
        tokio::select! {
            done = running.join_next() => done.map(Some),
            () = tokio::task::yield_now() => Some(None),
        }
    })
    .await
    {
        if let Some(done) = done {
            done.unwrap().unwrap();
        }
        // Endpoints change, and another listener comes and goes.
        round += 1;
        let ports: &[u16] = if round % 2 == 0 { &[port] } else { &[port, other_port] };
        stage.show(world(ports, &[origins[round % 2].address]));
    }
    assert_eq!(stage.metric("ferrogate_proxy_requests_total{code=\"2xx\"}"), 1600);
}

#[tokio::test]
async fn a_listener_that_goes_finishes_its_requests_and_closes_its_idle_connections() {
    let (release, released) = tokio::sync::watch::channel(false);
    let origin = Origin::scripted(move |mut client, _| {
        let mut released = released.clone();
        async move {
            client.next_head().await;
            released.wait_for(|released| *released).await.unwrap();
            client.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;
    let (other_port, _held) = reserve();
    let idle = stage.connect().await;
    let mut busy = stage.connect().await;
    busy.send(GET).await;
    soon(async {
        while origin.connections() == 0 {
            tokio::task::yield_now().await
        }
    })
    .await;

    stage.show(world(&[other_port], &[origin.address]));
    idle.closed().await;
    release.send_replace(true);

    assert_eq!(busy.answer().await.1, "ok");
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", stage.port)).await.is_err());
}

#[tokio::test]
async fn a_listener_that_cannot_be_bound_does_not_stop_the_others() {
    let origin = Origin::saying("hello").await;
    let stage = Stage::new(&[origin.address]).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_port = taken.local_addr().unwrap().port();
    let (other_port, _held) = reserve();

    stage.show(world(&[stage.port, taken_port, other_port], &[origin.address]));
    soon(async { while tokio::net::TcpStream::connect(("127.0.0.1", other_port)).await.is_err() {} }).await;

    assert!(stage.once(GET_AND_CLOSE).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(stage.metric("ferrogate_proxy_listeners_unbound"), 1);
    assert_eq!(stage.metric("ferrogate_proxy_bind_failures_total{reason=\"AddressInUse\"}"), 1);
}

#[tokio::test]
async fn a_shutdown_finishes_what_is_in_flight_and_closes_what_is_idle() {
    let (release, released) = tokio::sync::watch::channel(false);
    let origin = Origin::scripted(move |mut client, _| {
        let mut released = released.clone();
        async move {
            while client.next_head().await.is_some() {
                released.wait_for(|released| *released).await.unwrap();
                client.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;
    let idle = stage.connect().await;
    let mut busy = stage.connect().await;
    busy.send(GET).await;
    soon(async {
        while origin.connections() == 0 {
            tokio::task::yield_now().await
        }
    })
    .await;

    stage.shutdown.cancel();
    idle.closed().await;
    release.send_replace(true);
    let (head, body) = busy.answer().await;

    assert_eq!(body, "ok");
    assert_eq!(header(&head, "connection"), Some("close"));
    busy.closed().await;
    assert!(!*stage.ready.borrow());
    stage.ended().await.unwrap();
}

#[tokio::test]
async fn a_shutdown_cuts_what_does_not_end_in_time() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client.closed().await;
    })
    .await;
    let config = Config { drain_timeout: Duration::from_millis(50), ..config() };
    let stage = Stage::with(config, &[origin.address]).await;
    let mut stuck = stage.connect().await;
    stuck.send(GET).await;
    soon(async {
        while origin.connections() == 0 {
            tokio::task::yield_now().await
        }
    })
    .await;

    stage.shutdown.cancel();

    stage.ended().await.unwrap();
    stuck.closed().await;
}

#[tokio::test]
async fn a_full_thread_closes_idle_connections_for_new_ones() {
    let origin = Origin::saying("hello").await;
    let config = Config { max_connections: 4, ..config() };
    let stage = Stage::with(config, &[origin.address]).await;

    let mut idle = Vec::new();
    for _ in 0..4 {
        let mut client = stage.connect().await;
        client.send(GET).await;
        client.answer().await;
        idle.push(client);
    }
    let answer = stage.once(GET_AND_CLOSE).await;

    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn l_001_a_plain_service_is_carried_by_tcp_and_udp_beside_http() {
    let origin = Origin::scripted(|mut client, _| async move {
        assert_eq!(client.exactly(4).await, b"ping");
        client.send("pong").await;
    })
    .await;
    let echo = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let echo_address = echo.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let mut datagram = [0; 100];
        let (length, from) = echo.recv_from(&mut datagram).await.unwrap();
        echo.send_to(&datagram[..length], from).await.unwrap();
    });
    let web = Origin::saying("hello").await;
    let stage = Stage::new(&[web.address]).await;
    let (tcp_port, _tcp) = reserve();
    let (udp_port, _udp) = reserve_udp();

    let with_tcp = world_with(world(&[stage.port], &[web.address]), Protocol::Tcp, tcp_port, &[origin.address]);
    stage.show(world_with(with_tcp, Protocol::Udp, udp_port, &[echo_address]));
    let listening = soon(async {
        while stage.metric("ferrogate_proxy_listeners ") < 3 {
            tokio::task::yield_now().await;
        }
    });
    listening.await;
    let mut client = Client::to(tcp_port).await;
    client.send("ping").await;
    let datagrams = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    datagrams.send_to(b"datagram", ("127.0.0.1", udp_port)).await.unwrap();
    let mut datagram = [0; 100];
    let length = soon(datagrams.recv(&mut datagram)).await.unwrap();

    assert_eq!(client.exactly(4).await, b"pong");
    client.closed().await;
    assert_eq!(&datagram[..length], b"datagram");
    assert!(stage.once(GET_AND_CLOSE).await.starts_with("HTTP/1.1 200 "));
    answering.await.unwrap();
}

#[tokio::test]
async fn an_endpoint_that_closes_without_an_answer_becomes_a_502() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;

    let answer = stage.once(GET_AND_CLOSE).await;

    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(header(&answer, "x-ferrogate-reason"), Some("UpstreamClosed"));
}

#[tokio::test]
async fn l_020_an_answer_carries_length_type_date_and_server() {
    let origin = Origin::scripted(|mut client, _| async move {
        client.next_head().await;
        client.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok").await;
    })
    .await;
    let stage = Stage::new(&[origin.address]).await;

    let answer = stage.once(GET_AND_CLOSE).await;

    for name in ["content-length", "content-type", "date", "server"] {
        assert!(header(&answer, name).is_some(), "{name} is missing: {answer}");
    }
}

#[tokio::test]
async fn l_027_a_hundred_requests_reach_all_of_ten_endpoints() {
    let mut origins = Vec::new();
    for _ in 0..10 {
        origins.push(Origin::saying("hello").await);
    }
    let endpoints: Vec<SocketAddr> = origins.iter().map(|origin| origin.address).collect();
    let stage = Stage::with(Config { threads: NonZeroUsize::new(2), ..config() }, &endpoints).await;

    for _ in 0..50 {
        let mut client = stage.connect().await;
        for _ in 0..2 {
            client.send(GET).await;
            assert_eq!(client.answer().await.1, "hello");
        }
    }

    assert!(origins.iter().all(|origin| !origin.heads().is_empty()));
}

#[tokio::test]
async fn a_client_that_has_finished_sending_still_gets_its_answer() {
    let origin = Origin::saying("hello").await;
    let stage = Stage::new(&[origin.address]).await;
    let mut client = stage.connect().await;

    client.send(GET).await;
    client.stream.shutdown().await.unwrap();

    assert!(client.rest().await.ends_with("\r\n\r\nhello"));
}

#[tokio::test]
async fn an_address_that_is_not_on_the_host_yet_is_listened_on() {
    let origin = Origin::saying("hello").await;
    let stage = Stage::new(&[origin.address]).await;
    let mut elsewhere = world(&[stage.port], &[origin.address]);
    let key = ObjectKey::new("default", "entry");
    let mut entry = (**elsewhere.services.get(&key).unwrap()).clone();
    entry.observed.addresses.extend(["192.0.2.77".parse::<IpAddr>().unwrap(), "2001:db8::77".parse().unwrap()]);
    elsewhere.services.insert(key, entry.into());

    stage.show(elsewhere);

    soon(async {
        while stage.metric("ferrogate_proxy_listeners ") < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(stage.metric("ferrogate_proxy_listeners_unbound"), 0);
}

#[tokio::test]
async fn clients_outside_the_source_ranges_are_turned_away() {
    let origin = Origin::saying("hello").await;
    let stage = Stage::new(&[origin.address]).await;
    let mut closed = world(&[stage.port], &[origin.address]);
    let key = ObjectKey::new("default", "entry");
    let mut entry = (**closed.services.get(&key).unwrap()).clone();
    entry.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    closed.services.insert(key, entry.into());

    stage.show(closed);

    soon(async {
        while stage.metric("ferrogate_proxy_connections_forbidden_total") == 0 {
            drop(tokio::net::TcpStream::connect(("127.0.0.1", stage.port)).await);
        }
    })
    .await;
    let refused = stage.connect().await;
    refused.closed().await;
}
