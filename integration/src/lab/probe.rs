//! What the client sees: single questions, and a steady stream of them that tells exactly what was lost.
//!
//! A question is always answered by a pod through the whole path, never by ICMP, which a dead product answers too.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Namespace;

/// Time between two datagrams of a stream.
const DATAGRAM_EVERY: Duration = Duration::from_millis(2);

/// Time between two requests of a stream.
const REQUEST_EVERY: Duration = Duration::from_millis(10);

/// A question without an answer after this long is lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// An answer that takes longer than this is not counted on any more while the stream flows; it may still come.
const DUE: Duration = Duration::from_millis(50);

/// How many busy loops keep the processors from everyone else.
const LOOPS: usize = 4;

/// Of how many requests that failed, and connections that broke, the reasons are printed.
const REASONS: usize = 4;

/// How many TCP connections stand while the stream flows. Every other one says something all the while, the others not
/// before its end.
const CONNECTIONS: usize = 20;

/// How often those say something that do.
const TALK_EVERY: Duration = Duration::from_millis(50);

/// Opens a TCP connection, from one of several addresses of the client if told so.
///
/// # Errors
/// When nobody accepts in time.
pub fn connect(to: SocketAddr, from: Option<IpAddr>, patience: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&to.into(), patience)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    Ok(socket.into())
}

/// `GET` by a connection of its own. Returns the status code and the body.
///
/// # Errors
/// When there is no complete answer in time.
pub fn get(to: SocketAddr, host: &str, path: &str) -> io::Result<(u16, String)> {
    let mut stream = connect(to, None, PATIENCE)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(broken)?;
    Ok((code, body.to_owned()))
}

/// An answer on a connection that may go on.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The body.
    pub body: String,
    /// The connection ends with it.
    pub is_last: bool,
}

/// `GET` on a connection that is there. The next answer on it may be asked for in the same way.
///
/// # Errors
/// When there is no complete answer of a length that is told, in time.
pub fn get_on(mut stream: &TcpStream, host: &str, path: &str) -> io::Result<Answer> {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")?;
    let (mut head, mut line, mut reader) = (String::new(), String::new(), BufReader::new(stream));
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("closed after {head:?}")));
        }
        head.push_str(&line.to_ascii_lowercase());
    }
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let broken = || io::Error::new(io::ErrorKind::InvalidData, format!("not such an answer: {head:?}"));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(broken)?;
    let length = field("content-length:").and_then(|length| length.parse().ok()).ok_or_else(broken)?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8(body).map_err(|_| broken())?;
    Ok(Answer { code, body, is_last: field("connection:") == Some("close") })
}

/// Says a line to a TCP echo and returns what comes back.
///
/// # Errors
/// When nothing comes back in time.
pub fn say(stream: &TcpStream, line: &str) -> io::Result<String> {
    let mut writer = stream;
    writer.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer.trim_end().to_owned())
}

/// Sends one datagram to a UDP echo and returns what comes back.
///
/// # Errors
/// When nothing comes back within `patience`.
pub fn datagram(to: SocketAddr, text: &str, patience: Duration) -> io::Result<String> {
    let socket = any_socket(to)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(text.as_bytes())?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn any_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    Ok(socket)
}

/// Where a stream is sent.
#[derive(Clone, Debug)]
pub struct Targets {
    /// A UDP echo.
    pub udp: SocketAddr,
    /// A TCP echo.
    pub tcp: SocketAddr,
    /// An HTTP address, and the host to ask it for.
    pub http: (SocketAddr, String),
}

/// One question of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Question {
    asked: Instant,
    answered: Option<Instant>,
}

/// What a stream of questions lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Losses {
    /// The longest time between two datagrams in a row that were answered, in milliseconds.
    pub longest_gap_ms: f64,
    /// Datagrams without an answer.
    pub lost: usize,
    /// Datagrams in all.
    pub sent: usize,
    /// HTTP requests, each on a new connection, without a good answer within a second.
    pub http_failed: usize,
    /// HTTP requests in all.
    pub http_sent: usize,
    /// The longest time between the starts of two HTTP requests in a row that were answered, in milliseconds.
    pub http_longest_gap_ms: f64,
    /// TCP connections that stood before and no longer carry anything after.
    pub tcp_broken: usize,
    /// TCP connections that stood before.
    pub tcp_open: usize,
}

impl Losses {
    /// The longest time in which a client had no answer, in milliseconds: the longer of both gaps, that among requests
    /// less what it is longer by only because there are fewer of them.
    pub fn silence_ms(&self) -> f64 {
        let rarer = milliseconds(REQUEST_EVERY - DATAGRAM_EVERY);
        let among_requests = self.http_longest_gap_ms - rarer;
        // Still to a tenth.
        (self.longest_gap_ms.max(among_requests) * 10.0).round() / 10.0
    }

    /// What was asked, when nothing at all was lost.
    ///
    /// # Errors
    /// What was lost.
    pub fn none(&self) -> Result<String> {
        ensure!(
            self.lost + self.http_failed + self.tcp_broken == 0,
            "lost {} datagrams, {} HTTP requests, {} TCP connections",
            self.lost,
            self.http_failed,
            self.tcp_broken
        );
        Ok(format!(
            "{} datagrams, {} HTTP requests, {} TCP connections, longest gap {:.1} ms",
            self.sent, self.http_sent, self.tcp_open, self.longest_gap_ms
        ))
    }
}

/// A stream of questions from a namespace.
pub struct Stream {
    stop: Arc<AtomicBool>,
    datagrams: Arc<Mutex<Vec<Question>>>,
    requests: Arc<Mutex<Vec<Question>>>,
    /// Why requests failed.
    reasons: Arc<Mutex<Vec<String>>>,
    asking: Vec<JoinHandle<io::Result<()>>>,
    /// Everything was asked.
    is_over: Arc<AtomicBool>,
    hearing: Option<JoinHandle<io::Result<()>>>,
    /// Connections that say nothing.
    connections: Vec<TcpStream>,
    /// Those that do.
    talking: Vec<JoinHandle<io::Result<TcpStream>>>,
}

impl Stream {
    /// Opens the connections and starts to ask.
    ///
    /// # Errors
    /// When a connection cannot be opened or a thread cannot be started.
    pub fn start(client: &Namespace, targets: &Targets) -> io::Result<Self> {
        let any: SocketAddr = if targets.udp.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        Self::start_from(client, targets, client.run(|| UdpSocket::bind(any))?)
    }

    /// As [`Self::start`], with datagrams from this socket of the client, which is not connected.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_from(client: &Namespace, targets: &Targets, socket: UdpSocket) -> io::Result<Self> {
        let mut connections = client.run(|| {
            let open = |_| {
                let stream = connect(targets.tcp, None, PATIENCE)?;
                say(&stream, "hello")?;
                Ok(stream)
            };
            (0..CONNECTIONS).map(open).collect::<io::Result<Vec<_>>>()
        })?;
        let talkative = connections.split_off(CONNECTIONS / 2);
        let mut stream = Self {
            stop: Arc::default(),
            datagrams: Arc::default(),
            requests: Arc::default(),
            reasons: Arc::default(),
            asking: Vec::new(),
            is_over: Arc::default(),
            hearing: None,
            connections,
            talking: Vec::new(),
        };
        for connection in talkative {
            let stop = Arc::clone(&stream.stop);
            stream.talking.push(thread::spawn(move || talk(connection, &stop)));
        }
        let (sender, log, stop) = (socket.try_clone()?, Arc::clone(&stream.datagrams), Arc::clone(&stream.stop));
        let to = targets.udp;
        stream.asking.push(client.spawn_thread(move || ask_datagrams(&sender, to, &log, &stop))?);
        let (log, is_over) = (Arc::clone(&stream.datagrams), Arc::clone(&stream.is_over));
        stream.hearing = Some(client.spawn_thread(move || hear_datagrams(&socket, &log, &is_over))?);
        let (log, stop, http) = (Arc::clone(&stream.requests), Arc::clone(&stream.stop), targets.http.clone());
        let reasons = Arc::clone(&stream.reasons);
        stream.asking.push(client.spawn_thread(move || ask_requests(http, &log, &reasons, &stop))?);
        Ok(stream)
    }

    /// Since when every datagram was answered whose answer is due, if there are at least `count` of them in a row.
    pub fn steady_since(&self, count: usize) -> Option<Instant> {
        let due = Instant::now().checked_sub(DUE)?;
        let log = lock(&self.datagrams);
        let settled = log.iter().rev().filter(|question| question.asked < due);
        let answered: Vec<_> = settled.take_while(|question| question.answered.is_some()).collect();
        answered.last().filter(|_| answered.len() >= count).map(|first| first.asked)
    }

    /// Stops asking.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops asking, waits for answers that are under way, and adds up what was lost.
    pub fn finish(mut self) -> Losses {
        self.stop();
        for thread in self.asking.drain(..) {
            // A thread that could no longer ask has stopped answering questions too, and that shows in the numbers.
            let _ = thread.join();
        }
        // Only now: whoever hears would else be gone before the last question.
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.hearing.take() {
            let _ = thread.join();
        }
        for reason in self.reasons.lock().unwrap_or_else(PoisonError::into_inner).iter().take(REASONS) {
            println!("    request {reason}");
        }
        let mut broken = Vec::new();
        for talking in self.talking.drain(..) {
            match talking.join() {
                Ok(Ok(connection)) => self.connections.push(connection),
                Ok(Err(error)) => broken.push(error),
                Err(_) => broken.push(io::Error::other("whoever spoke panicked")),
            }
        }
        broken.extend(self.connections.iter().filter_map(|stream| say(stream, "still there").err()));
        for reason in broken.iter().take(REASONS) {
            println!("    connection broken: {reason}");
        }
        let (datagrams, requests) = (lock(&self.datagrams), lock(&self.requests));
        Losses {
            longest_gap_ms: milliseconds(longest_gap(&datagrams)),
            lost: datagrams.iter().filter(|question| question.answered.is_none()).count(),
            sent: datagrams.len(),
            http_failed: requests.iter().filter(|question| question.answered.is_none()).count(),
            http_sent: requests.len(),
            http_longest_gap_ms: milliseconds(longest_gap(&requests)),
            tcp_broken: broken.len(),
            tcp_open: CONNECTIONS,
        }
    }
}

/// Whether both streams flow: as many of their datagrams in a row were answered.
///
/// # Errors
/// When answers are missing.
pub fn steady(streams: &[Stream; 2], count: usize) -> Result<()> {
    streams.iter().try_for_each(|stream| stream.steady_since(count).map(drop).context("answers are missing"))
}

/// Stops both streams at the same time, and adds up what each lost.
pub fn finish(streams: [Stream; 2]) -> [Losses; 2] {
    streams.iter().for_each(Stream::stop);
    streams.map(Stream::finish)
}

/// Keeps the processors busy for a while.
///
/// # Errors
/// When a thread cannot.
pub fn busy(time: Duration) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let round = |stop: Arc<AtomicBool>| move || while !stop.load(Ordering::Relaxed) {};
    let loops: Vec<_> = (0..LOOPS).map(|_| thread::spawn(round(Arc::clone(&stop)))).collect();
    thread::sleep(time);
    stop.store(true, Ordering::Relaxed);
    loops.into_iter().try_for_each(JoinHandle::join).ok().context("a busy loop panicked")
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop();
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn lock(log: &Mutex<Vec<Question>>) -> std::sync::MutexGuard<'_, Vec<Question>> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The longest time without an answered question: from one that was answered to the next that was, and from the last
/// one that was to the end.
fn longest_gap(log: &[Question]) -> Duration {
    let answered = log.iter().filter(|question| question.answered.is_some()).map(|question| question.asked);
    let ends =
        log.first().map(|first| first.asked).into_iter().chain(answered).chain(log.last().map(|last| last.asked));
    let moments: Vec<_> = ends.collect();
    moments.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0])).max().unwrap_or_default()
}

/// To a tenth of a millisecond; beyond that it is noise.
pub fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

/// Keeps a rhythm: a beat that was missed is not made up for.
fn at_rhythm(interval: Duration, stop: &AtomicBool, mut beat: impl FnMut(usize)) {
    let mut next = Instant::now();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        beat(number);
        number += 1;
        next = (next + interval).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Says something again and again, until it is not answered in time.
fn talk(connection: TcpStream, stop: &AtomicBool) -> io::Result<TcpStream> {
    while !stop.load(Ordering::Relaxed) {
        say(&connection, "and so on")?;
        thread::sleep(TALK_EVERY);
    }
    Ok(connection)
}

fn ask_datagrams(socket: &UdpSocket, to: SocketAddr, log: &Mutex<Vec<Question>>, stop: &AtomicBool) -> io::Result<()> {
    at_rhythm(DATAGRAM_EVERY, stop, |number| {
        lock(log).push(Question { asked: Instant::now(), answered: None });
        // A datagram that cannot even leave is one without an answer.
        let _ = socket.send_to(&(number as u64).to_be_bytes(), to);
    });
    Ok(())
}

fn hear_datagrams(socket: &UdpSocket, log: &Mutex<Vec<Question>>, is_over: &AtomicBool) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buffer = [0; 2048];
    let mut stopped = None::<Instant>;
    loop {
        if let Ok(length) = socket.recv(&mut buffer) {
            let number = buffer[..length].first_chunk().map(|number| u64::from_be_bytes(*number) as usize);
            if let Some(question) = number.and_then(|number| lock(log).get_mut(number).copied().map(|_| number)) {
                lock(log)[question].answered.get_or_insert_with(Instant::now);
            }
        }
        if is_over.load(Ordering::Relaxed) {
            let since = *stopped.get_or_insert_with(Instant::now);
            if since.elapsed() > PATIENCE || lock(log).iter().all(|question| question.answered.is_some()) {
                return Ok(());
            }
        }
    }
}

fn ask_requests(
    (to, host): (SocketAddr, String),
    log: &Arc<Mutex<Vec<Question>>>,
    reasons: &Arc<Mutex<Vec<String>>>,
    stop: &AtomicBool,
) -> io::Result<()> {
    // Each request has a thread of its own, so that one that hangs holds up no other. The threads inherit the namespace.
    let mut asking: Vec<JoinHandle<()>> = Vec::new();
    at_rhythm(REQUEST_EVERY, stop, |number| {
        lock(log).push(Question { asked: Instant::now(), answered: None });
        let (log, reasons, host) = (Arc::clone(log), Arc::clone(reasons), host.clone());
        asking.push(thread::spawn(move || {
            let begun = Instant::now();
            let reason = match get(to, &host, "/") {
                Ok((200, _)) => {
                    lock(&log)[number].answered = Some(Instant::now());
                    return;
                }
                Ok((code, _)) => format!("got {code}"),
                Err(error) => format!("failed: {error}"),
            };
            let told = format!("{number} to {to} {reason} after {:.1} ms", milliseconds(begun.elapsed()));
            reasons.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        }));
        asking.retain(|request| !request.is_finished());
    });
    for request in asking {
        let _ = request.join();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(answered: &[bool]) -> Vec<Question> {
        let begun = Instant::now();
        let question = |(number, answered): (usize, &bool)| {
            let asked = begun + DATAGRAM_EVERY * u32::try_from(number).unwrap();
            Question { asked, answered: answered.then_some(asked) }
        };
        answered.iter().enumerate().map(question).collect()
    }

    #[test]
    fn a_gap_reaches_from_answer_to_answer() {
        assert_eq!(longest_gap(&log(&[true, true, false, false, true])), Duration::from_millis(6));
    }

    #[test]
    fn silence_until_the_end_is_a_gap() {
        assert_eq!(longest_gap(&log(&[true, false, false, false])), Duration::from_millis(6));
    }

    #[test]
    fn a_client_is_without_an_answer_as_long_as_the_worse_of_both_probes() {
        let losses =
            |longest_gap_ms, http_longest_gap_ms| Losses { longest_gap_ms, http_longest_gap_ms, ..Losses::default() };

        assert_eq!(losses(120.0, 127.0).silence_ms(), 120.0);
        assert_eq!(losses(2.0, 210.0).silence_ms(), 202.0);
    }

    #[test]
    fn nothing_asked_is_no_gap() {
        assert_eq!(longest_gap(&[]), Duration::ZERO);
    }
}
