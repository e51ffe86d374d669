//! Whether this node's proxy is ready, asked over one kept connection so that its death is known at once.
//!
//! The proxy answers when what is known of it is so no longer, and each second.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tracing::debug;

/// Time between two questions at least, where answers are not held back: by an older proxy, and by one that cannot make up
/// its mind.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long an answer may take: the second that it is held back, and one more.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the first answer is waited for at the start. A later one is heard of all the same.
pub(crate) const FIRST_PATIENCE: Duration = Duration::from_millis(20);

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024;

/// Asks once; a proxy that does not answer within `patience` is not ready. Whoever starts knows by it what to go by, and
/// need not decide about everything twice.
pub(crate) async fn ask_once(proxy: SocketAddr, patience: Duration) -> bool {
    let answer = async {
        let mut stream = TcpStream::connect(proxy).await?;
        stream.write_all(question(proxy, "/readyz").as_bytes()).await?;
        read_answer(&mut stream).await
    };
    matches!(timeout(patience, answer).await, Ok(Ok(Answer { is_ok: true, .. })))
}

fn question(proxy: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {proxy}\r\n\r\n")
}

/// Asks for ever; the channel changes only when the answer does.
pub(crate) async fn ask(proxy: SocketAddr, ready: watch::Sender<bool>) {
    loop {
        let began_at = Instant::now();
        let Err(error) = ask_over_one_connection(proxy, &ready).await;
        let lasted = began_at.elapsed() >= INTERVAL;
        if *ready.borrow() && lasted && error.kind() != io::ErrorKind::TimedOut {
            // During an update the next proxy has the same address already, and gets the traffic: what it says counts,
            // however busy it is at first. Without one this is refused at once.
            continue;
        }
        // Refused, closed, slow or not HTTP: all mean that this proxy takes no traffic.
        debug!(address = %proxy, %error, "proxy does not answer");
        set(&ready, false);
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn ask_over_one_connection(
    proxy: SocketAddr,
    ready: &watch::Sender<bool>,
) -> io::Result<std::convert::Infallible> {
    let [while_unready, while_ready] =
        ["unready", "ready"].map(|known| question(proxy, &format!("/readyz?while={known}")));
    let mut stream = timeout(PATIENCE, TcpStream::connect(proxy)).await??;
    stream.set_nodelay(true)?;
    loop {
        let asked_at = Instant::now();
        let question = if *ready.borrow() { &while_ready } else { &while_unready };
        stream.write_all(question.as_bytes()).await?;
        let answer = timeout(PATIENCE, read_answer(&mut stream)).await??;
        set(ready, answer.is_ok);
        if answer.is_last {
            // Not a sign of trouble: an older server. The next question needs a connection of its own.
            stream = timeout(PATIENCE, TcpStream::connect(proxy)).await??;
        }
        let mut byte = [0];
        tokio::select! {
            () = sleep_until(asked_at + INTERVAL) => {}
            // Nothing was asked, so this is the end of the connection, or rubbish.
            read = stream.read(&mut byte) => {
                read?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
    }
}

fn set(ready: &watch::Sender<bool>, is_ready: bool) {
    ready.send_if_modified(|known| std::mem::replace(known, is_ready) != is_ready);
}

/// As much of an answer as matters.
pub(crate) struct Answer {
    /// `200`.
    pub(crate) is_ok: bool,
    /// The connection takes no further question.
    pub(crate) is_last: bool,
}

/// Reads one answer with its body. Only as much HTTP as our own admin server speaks: a length, or the end of the
/// connection, ends the body.
pub(crate) async fn read_answer(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut received = Vec::new();
    loop {
        if let Some(head_len) = received.windows(4).position(|end| end == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(received.get(..head_len).unwrap_or_default()).to_ascii_lowercase();
            let is_ok = head.starts_with("http/1.1 200") || head.starts_with("http/1.0 200");
            let header = |name: &str| {
                let of_name = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned());
                head.lines().skip(1).find_map(of_name)
            };
            let Some(length) = header("content-length").and_then(|length| length.parse::<usize>().ok()) else {
                return Ok(Answer { is_ok, is_last: true });
            };
            if received.len() - (head_len + 4) >= length {
                return Ok(Answer { is_ok, is_last: header("connection").as_deref() == Some("close") });
            }
        }
        if received.len() > MAX_ANSWER || stream.read_buf(&mut received).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    /// Reads one question and answers it; says what was asked for.
    async fn answer(stream: &mut TcpStream, answer: &str) -> String {
        let mut question = Vec::new();
        while !question.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut question).await.unwrap(), 0);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        let question = String::from_utf8(question).unwrap();
        let path = question.strip_prefix("GET ").and_then(|rest| rest.split_once(" HTTP/1.1\r\n"));
        path.unwrap().0.to_owned()
    }

    async fn changes_to(ready: &mut watch::Receiver<bool>, expected: bool) {
        timeout(Duration::from_secs(5), ready.wait_for(|ready| *ready == expected)).await.unwrap().unwrap();
    }

    const READY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const NOT_READY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn the_answer_is_followed_over_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, mut ready) = watch::channel(false);
        let _probe = AbortOnDropHandle::new(tokio::spawn(ask(listener.local_addr().unwrap(), sender)));
        let (mut stream, _) = listener.accept().await.unwrap();

        for (text, is_ready, known) in [(READY, true, "unready"), (NOT_READY, false, "ready"), (READY, true, "unready")]
        {
            assert_eq!(answer(&mut stream, text).await, format!("/readyz?while={known}"));
            changes_to(&mut ready, is_ready).await;
        }
    }

    #[tokio::test]
    async fn whoever_answers_at_once_is_asked_again_only_after_a_while() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, _ready) = watch::channel(true);
        let _probe = AbortOnDropHandle::new(tokio::spawn(ask(listener.local_addr().unwrap(), sender)));
        let (mut stream, _) = listener.accept().await.unwrap();

        stream.readable().await.unwrap();
        let begun_at = Instant::now();
        for _ in 0..3 {
            answer(&mut stream, READY).await;
        }

        // The first question had come when this began.
        assert!(begun_at.elapsed() >= INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_connection_means_not_ready_before_the_next_question() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, mut ready) = watch::channel(false);
        let _probe = AbortOnDropHandle::new(tokio::spawn(ask(listener.local_addr().unwrap(), sender)));
        let (mut stream, _) = listener.accept().await.unwrap();
        answer(&mut stream, READY).await;
        changes_to(&mut ready, true).await;

        drop(stream);

        changes_to(&mut ready, false).await;
    }

    #[tokio::test]
    async fn a_proxy_that_is_followed_by_another_at_the_same_address_stays_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, mut ready) = watch::channel(false);
        let _probe = AbortOnDropHandle::new(tokio::spawn(ask(listener.local_addr().unwrap(), sender)));
        let (mut first, _) = listener.accept().await.unwrap();
        answer(&mut first, READY).await;
        changes_to(&mut ready, true).await;
        answer(&mut first, READY).await;
        ready.mark_unchanged();

        drop(first);
        let (mut next, _) = listener.accept().await.unwrap();
        answer(&mut next, READY).await;
        answer(&mut next, READY).await;

        assert!(!ready.has_changed().unwrap());
    }

    #[tokio::test]
    async fn the_first_answer_is_waited_for() {
        for (text, expected) in [(READY, true), (NOT_READY, false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let first = ask_once(listener.local_addr().unwrap(), Duration::from_secs(5));

            let (is_ready, ()) = tokio::join!(first, async {
                let (mut stream, _) = listener.accept().await.unwrap();
                answer(&mut stream, text).await;
            });

            assert_eq!(is_ready, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_proxy_is_not_ready_at_first_and_not_waited_for() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let begun_at = Instant::now();

        let is_ready = ask_once(silent.local_addr().unwrap(), FIRST_PATIENCE).await;

        assert!(!is_ready);
        assert!(begun_at.elapsed() < INTERVAL, "what asks later is no slower than this");
    }

    #[tokio::test]
    async fn what_is_not_an_answer_means_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, mut ready) = watch::channel(true);
        let _probe = AbortOnDropHandle::new(tokio::spawn(ask(listener.local_addr().unwrap(), sender)));
        let (mut stream, _) = listener.accept().await.unwrap();

        answer(&mut stream, &"x".repeat(MAX_ANSWER + 1)).await;

        changes_to(&mut ready, false).await;
    }
}
