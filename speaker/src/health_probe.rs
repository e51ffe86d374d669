//! Asks kube-proxy whether it carries Services on this node: `GET /healthz` at their `healthCheckNodePort`, one task
//! and one kept connection for each port.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

use ferrogate_core::speaker::{Answer, Event};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use crate::proxy_probe::read_answer;

/// Time between two questions at one port while it agrees.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same while it does not: kube-proxy may have set it up at any moment.
const EAGER_INTERVAL: Duration = Duration::from_millis(100);
/// Questions a second at all ports together.
const RATE: u32 = 200;
/// How long a connection or an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// The questions that are asked.
pub(crate) struct HealthProbes {
    tasks: BTreeMap<NonZeroU16, AbortOnDropHandle<()>>,
    at: Vec<IpAddr>,
    ports: usize,
    /// Where answers go. The speaker takes them in with its next turns; a task waits for that.
    events: mpsc::Sender<Event>,
}

impl HealthProbes {
    /// Asks nothing yet.
    pub(crate) fn new(events: mpsc::Sender<Event>) -> Self {
        Self { tasks: BTreeMap::new(), at: Vec::new(), ports: 0, events }
    }

    /// Asks at exactly these ports from now on.
    pub(crate) fn follow(&mut self, ports: &BTreeSet<NonZeroU16>, at: Vec<IpAddr>) {
        // Every pace depends on how many there are, which matters only once there are many.
        let is_other = self.at != at || pace(self.ports) != pace(ports.len());
        self.tasks.retain(|port, _| ports.contains(port) && !is_other);
        (self.at, self.ports) = (at, ports.len());
        for &port in ports {
            let (at, events, least) = (self.at.clone(), self.events.clone(), pace(ports.len()));
            let start = || AbortOnDropHandle::new(tokio::spawn(ask(port, at, least, events)));
            self.tasks.entry(port).or_insert_with(start);
        }
    }
}

/// The least time between two questions at one port, so that all together stay within [`RATE`].
fn pace(ports: usize) -> Duration {
    // In steps, so that a Service more or less changes nothing.
    let ports = u32::try_from(ports.next_power_of_two()).unwrap_or(u32::MAX);
    Duration::from_secs(1) * ports / RATE
}

/// Asks for ever, and tells every answer that is another than the one before.
async fn ask(port: NonZeroU16, at: Vec<IpAddr>, least: Duration, events: mpsc::Sender<Event>) {
    let mut stream = None;
    let mut told = None;
    loop {
        let asked_at = Instant::now();
        let answer = match ask_once(&mut stream, port, &at).await {
            Ok(true) => Answer::Agrees,
            Ok(false) => Answer::Refuses,
            Err(error) => {
                debug!(%port, %error, "health check is not answered");
                stream = None;
                Answer::Nothing
            }
        };
        if told != Some(answer) {
            info!(%port, ?answer, "health check");
            told = Some(answer);
            if events.send(Event::Health { port, answer }).await.is_err() {
                return;
            }
        }
        let interval = if answer == Answer::Agrees { INTERVAL } else { EAGER_INTERVAL };
        sleep_until(asked_at + interval.max(least)).await;
    }
}

/// Whether the answer is 200.
async fn ask_once(stream: &mut Option<TcpStream>, port: NonZeroU16, at: &[IpAddr]) -> io::Result<bool> {
    if let Some(kept) = stream {
        // A server may close what it has kept for long enough; that is no answer yet.
        if let Ok((is_ok, keeps)) = question(kept, port).await {
            if !keeps {
                *stream = None;
            }
            return Ok(is_ok);
        }
        *stream = None;
    }
    let mut fresh = connect(at, port).await?;
    let (is_ok, keeps) = question(&mut fresh, port).await?;
    *stream = Some(fresh).filter(|_| keeps);
    Ok(is_ok)
}

/// The first of these addresses that takes a connection.
async fn connect(at: &[IpAddr], port: NonZeroU16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for &address in at {
        match timeout(PATIENCE, TcpStream::connect(SocketAddr::new(address, port.get()))).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

async fn question(stream: &mut TcpStream, port: NonZeroU16) -> io::Result<(bool, bool)> {
    let question = format!("GET /healthz HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let answer = timeout(PATIENCE, read_answer(stream)).await??;
    Ok((answer.is_ok, !answer.is_last))
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    const LOOPBACK: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)];

    async fn hear(stream: &mut TcpStream) -> String {
        let mut question = Vec::new();
        while !question.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut question).await.unwrap(), 0);
        }
        String::from_utf8(question).unwrap()
    }

    async fn answer(stream: &mut TcpStream, status: &str) {
        assert!(hear(stream).await.starts_with("GET /healthz HTTP/1.1\r\n"));
        let body = "{\"localEndpoints\":1}";
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    async fn told(events: &mut mpsc::Receiver<Event>) -> Answer {
        match timeout(Duration::from_secs(10), events.recv()).await.unwrap() {
            Some(Event::Health { answer, .. }) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn changes_of_the_answer_are_told_and_repetitions_are_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap();
        let (sender, mut events) = mpsc::channel(4);
        let mut probes = HealthProbes::new(sender);
        probes.follow(&BTreeSet::from([port]), LOOPBACK.to_vec());
        let (mut stream, _) = listener.accept().await.unwrap();

        answer(&mut stream, "503 Service Unavailable").await;
        assert_eq!(told(&mut events).await, Answer::Refuses);
        answer(&mut stream, "503 Service Unavailable").await;
        answer(&mut stream, "200 OK").await;
        assert_eq!(told(&mut events).await, Answer::Agrees);

        drop((stream, listener));
        assert_eq!(told(&mut events).await, Answer::Nothing);
    }

    #[tokio::test]
    async fn a_port_that_is_no_longer_wanted_is_asked_no_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap();
        let (sender, _events) = mpsc::channel(4);
        let mut probes = HealthProbes::new(sender);
        probes.follow(&BTreeSet::from([port]), LOOPBACK.to_vec());
        let (mut stream, _) = listener.accept().await.unwrap();
        hear(&mut stream).await;

        probes.follow(&BTreeSet::new(), Vec::new());

        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }

    #[test]
    fn many_ports_are_asked_less_often_each() {
        assert!(pace(1) < EAGER_INTERVAL);
        assert_eq!(pace(1000), pace(1024));
        assert_eq!(pace(1024), Duration::from_millis(5120));
    }
}
