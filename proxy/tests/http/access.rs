//! The access log of a running proxy.

use std::{
    io::{BufRead, BufReader, PipeReader},
    os::fd::OwnedFd,
    sync::Arc,
};

use ferrogate_proxy::{AccessLog, Config, Destination};

use crate::stage::{Origin, Stage, config};

fn logging() -> (Config, BufReader<PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let to = Destination::File(Arc::new(OwnedFd::from(writer).into()));
    (Config { access_log: AccessLog::Text, access_log_to: to, ..config() }, BufReader::new(reader))
}

async fn next(lines: BufReader<PipeReader>) -> (String, BufReader<PipeReader>) {
    let read = |mut lines: BufReader<PipeReader>| {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        (line, lines)
    };
    tokio::task::spawn_blocking(move || read(lines)).await.unwrap()
}

#[tokio::test]
async fn every_request_is_logged_with_its_client_its_ingress_and_what_came_of_it() {
    let origin = Origin::saying("hello").await;
    let (config, lines) = logging();
    let stage = Stage::with(config, &[origin.address]).await;
    let mut client = stage.connect().await;

    client.send("GET /a?token=secret HTTP/1.1\r\nHost: web.example:80\r\nCookie: secret\r\n\r\n").await;
    client.answer().await;
    let (line, lines) = next(lines).await;

    assert!(!line.contains("secret"), "{line}");
    let mut fields = line.split(' ').skip(1);
    assert_eq!(fields.by_ref().take(5).collect::<Vec<_>>(), ["127.0.0.1", "\"GET", "web.example/a\"", "200", "5"]);
    let rest: Vec<_> = fields.skip(1).collect();
    assert_eq!(rest, [origin.address.to_string().as_str(), "default/web\n"]);

    client.send("GET /%2e%2e/%2e%2e HTTP/1.1\r\nHost: web.example\r\n\r\n").await;
    client.rest().await;
    let (line, _) = next(lines).await;
    assert!(line.contains("/%2e%2e/%2e%2e\" 400 ") && line.ends_with(" - - MalformedRequest\n"), "{line}");
}

#[tokio::test]
async fn a_log_that_nobody_reads_costs_lines_and_not_the_service() {
    let origin = Origin::saying("hello").await;
    let (config, lines) = logging();
    let stage = Stage::with(config, &[origin.address]).await;
    let mut client = stage.connect().await;

    while stage.metric("ferrogate_proxy_access_log_lines_dropped") == 0 {
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100)).await;
        for _ in 0..100 {
            assert_eq!(client.answer().await.1, "hello");
        }
    }

    drop(lines);
}
