//! The access log: one line for each request, to standard output.
//!
//! A thread of its own writes the lines. Requests never wait for it: a line that finds the queue full is dropped and
//! counted. Headers and query strings are left out, since they carry secrets; what a client wrote is escaped.

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    fs::File,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use ferrogate_core::model::ObjectKey;
use tokio::sync::oneshot;

/// Lines that may wait for the writer; more are dropped.
const QUEUE: usize = 4096;
/// Bytes that are written in one call at most.
const BATCH: usize = 64 * 1024;
/// Bytes of a path or host that are kept; longer ones serve nobody who reads the log.
const MAX_TEXT: usize = 1024;

/// Whether and how requests are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AccessLog {
    /// Not at all.
    #[default]
    Off,
    /// One JSON object a line.
    Json,
    /// One line for people.
    Text,
}

/// Where the access log goes.
#[derive(Clone, Debug, Default)]
pub enum Destination {
    /// Standard output.
    #[default]
    Stdout,
    /// This file.
    File(Arc<File>),
}

/// Takes lines for the writer.
#[derive(Clone)]
pub(crate) struct Log {
    is_json: bool,
    lines: SyncSender<Vec<u8>>,
}

impl Log {
    /// Starts the writer, if there is to be a log. It ends when the last clone of the log is gone, and says so.
    pub(crate) fn start(format: AccessLog, to: Destination) -> io::Result<Option<(Self, oneshot::Receiver<()>)>> {
        if format == AccessLog::Off {
            return Ok(None);
        }
        let (lines, queue) = sync_channel(QUEUE);
        let (ending, ended) = oneshot::channel();
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            let written = match &to {
                Destination::Stdout => write_all(&queue, io::stdout()),
                Destination::File(file) => write_all(&queue, &**file),
            };
            if let Err(error) = written {
                tracing::error!(%error, "the access log cannot be written; no more of it is");
            }
            let _ = ending.send(());
        })?;
        Ok(Some((Self { is_json: format == AccessLog::Json, lines }, ended)))
    }

    /// Begins the record of a request.
    pub(crate) fn begin(&self) -> Box<Record> {
        Box::new(Record {
            began_at: Instant::now(),
            head: RefCell::default(),
            upstream: Cell::new(None),
            status: Cell::new(0),
            bytes: Cell::new(0),
            reason: Cell::new(""),
        })
    }

    /// Hands a record over. Returns whether there was room.
    pub(crate) fn write(&self, record: &Record, client: IpAddr) -> bool {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Line { record, client, time: Time(time), seconds: record.began_at.elapsed().as_secs_f64() };
        let line = if self.is_json { line.json() } else { line.text() };
        self.lines.try_send(line.into_bytes()).is_ok()
    }
}

fn write_all(queue: &Receiver<Vec<u8>>, mut to: impl Write) -> io::Result<()> {
    while let Ok(mut batch) = queue.recv() {
        while batch.len() < BATCH
            && let Ok(line) = queue.try_recv()
        {
            batch.extend_from_slice(&line);
        }
        to.write_all(&batch)?;
        to.flush()?;
    }
    Ok(())
}

/// What is known of one request.
pub(crate) struct Record {
    began_at: Instant,
    head: RefCell<HeadText>,
    /// Whom it was sent to last.
    pub(crate) upstream: Cell<Option<SocketAddr>>,
    /// Of the answer; 0 while there is none.
    pub(crate) status: Cell<u16>,
    /// Bytes of the answer's body that were sent, its chunk lines included.
    pub(crate) bytes: Cell<u64>,
    /// Why the proxy answered itself.
    pub(crate) reason: Cell<&'static str>,
}

#[derive(Default)]
struct HeadText {
    method: String,
    host: String,
    path: String,
    ingress: Option<ObjectKey>,
}

impl Record {
    /// Notes what the client asked for.
    pub(crate) fn asked(&self, method: &str, host: &str, path: &str) {
        let short = |text: &str| text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default().to_owned();
        let mut head = self.head.borrow_mut();
        (head.method, head.host, head.path) = (short(method), short(host), short(path));
    }

    /// Notes which Ingress took it.
    pub(crate) fn routed(&self, ingress: &ObjectKey) {
        self.head.borrow_mut().ingress = Some(ingress.clone());
    }

    /// Counts a part of the answer's body.
    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes.set(self.bytes.get().saturating_add(bytes as u64));
    }

    /// Whether there was a request at all: most connections end without another one.
    pub(crate) fn is_worth_a_line(&self) -> bool {
        self.status.get() != 0 || !self.head.borrow().method.is_empty()
    }
}

struct Line<'a> {
    record: &'a Record,
    client: IpAddr,
    time: Time,
    seconds: f64,
}

impl Line<'_> {
    fn json(&self) -> String {
        let Self { record, client, time, seconds } = self;
        let head = record.head.borrow();
        let mut line = format!("{{\"time\":\"{time}\",\"client\":\"{}\",\"method\":\"", client.to_canonical());
        escape(&head.method, &mut line);
        line.push_str("\",\"host\":\"");
        escape(&head.host, &mut line);
        line.push_str("\",\"path\":\"");
        escape(&head.path, &mut line);
        let (status, bytes) = (record.status.get(), record.bytes.get());
        // Writing to a String cannot fail.
        let _ = write!(line, "\",\"status\":{status},\"bytes\":{bytes},\"duration_seconds\":{seconds:.6}");
        if let Some(upstream) = record.upstream.get() {
            let _ = write!(line, ",\"upstream\":\"{upstream}\"");
        }
        if let Some(ingress) = &head.ingress {
            let _ = write!(line, ",\"ingress\":\"{ingress}\"");
        }
        if !record.reason.get().is_empty() {
            let _ = write!(line, ",\"reason\":\"{}\"", record.reason.get());
        }
        line.push_str("}\n");
        line
    }

    fn text(&self) -> String {
        let Self { record, client, time, seconds } = self;
        let head = record.head.borrow();
        let mut line = format!("{time} {} \"", client.to_canonical());
        escape(&head.method, &mut line);
        line.push(' ');
        escape(&head.host, &mut line);
        escape(&head.path, &mut line);
        let (status, bytes) = (record.status.get(), record.bytes.get());
        let _ = write!(line, "\" {status} {bytes} {seconds:.6}s");
        match record.upstream.get() {
            Some(upstream) => _ = write!(line, " {upstream}"),
            None => line.push_str(" -"),
        }
        match &head.ingress {
            Some(ingress) => _ = write!(line, " {ingress}"),
            None => line.push_str(" -"),
        }
        if !record.reason.get().is_empty() {
            let _ = write!(line, " {}", record.reason.get());
        }
        line.push('\n');
        line
    }
}

/// Appends what a client wrote so that it can end neither the string nor the line (RFC 8259 §7), nor steer a terminal.
fn escape(text: &str, out: &mut String) {
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(letter),
            _ => {
                let mut units = [0; 2];
                for unit in letter.encode_utf16(&mut units) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
}

/// Time since 1970, shown as RFC 3339 has it.
struct Time(std::time::Duration);

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        // Counted in eras of 400 years that begin in March, so that leap days come last.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let millis = self.0.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record() -> Record {
        let record = Record {
            began_at: Instant::now(),
            head: RefCell::default(),
            upstream: Cell::new(Some("10.1.2.3:8080".parse().unwrap())),
            status: Cell::new(200),
            bytes: Cell::new(12),
            reason: Cell::new(""),
        };
        record.asked("GET", "web.example", "/a");
        record.routed(&ObjectKey::new("default", "web"));
        record
    }

    fn line(record: &Record) -> Line<'_> {
        Line { record, client: "::ffff:192.0.2.7".parse().unwrap(), time: Time(Duration::ZERO), seconds: 0.0015 }
    }

    #[test]
    fn a_request_is_one_line_in_either_form() {
        let record = record();

        assert_eq!(
            line(&record).json(),
            "{\"time\":\"1970-01-01T00:00:00.000Z\",\"client\":\"192.0.2.7\",\"method\":\"GET\",\"host\":\"web.example\",\
             \"path\":\"/a\",\"status\":200,\"bytes\":12,\"duration_seconds\":0.001500,\"upstream\":\"10.1.2.3:8080\",\
             \"ingress\":\"default/web\"}\n"
        );
        assert_eq!(
            line(&record).text(),
            "1970-01-01T00:00:00.000Z 192.0.2.7 \"GET web.example/a\" 200 12 0.001500s 10.1.2.3:8080 default/web\n"
        );
    }

    #[test]
    fn an_answer_of_our_own_says_why() {
        let record = record();
        record.upstream.set(None);
        record.head.borrow_mut().ingress = None;
        record.status.set(404);
        record.reason.set("NoHost");

        assert!(line(&record).json().ends_with("\"duration_seconds\":0.001500,\"reason\":\"NoHost\"}\n"));
        assert!(line(&record).text().ends_with(" 404 12 0.001500s - - NoHost\n"));
    }

    #[test]
    fn what_a_client_wrote_can_end_neither_string_nor_line() {
        let record = record();
        record.asked("GET", "x\r\n\u{1b}[2J", "/\"},{\\\u{7f}é😀");

        for text in [line(&record).json(), line(&record).text()] {
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(text.trim_end().bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
            assert!(text.contains("x\\u000d\\u000a\\u001b[2J"), "{text}");
            assert!(text.contains("/\\\"},{\\\\\\u007f\\u00e9\\ud83d\\ude00"), "{text}");
        }
    }

    #[test]
    fn a_long_path_is_cut() {
        let record = record();
        record.asked("GET", "x", &"é".repeat(5000));

        assert!(record.head.borrow().path.len() <= MAX_TEXT);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let time = |seconds: u64| Time(Duration::from_millis(seconds * 1000 + 7)).to_string();

        assert_eq!(time(951_782_400), "2000-02-29T00:00:00.007Z");
        assert_eq!(time(1_709_251_199), "2024-02-29T23:59:59.007Z");
        assert_eq!(time(1_767_225_600), "2026-01-01T00:00:00.007Z");
        assert_eq!(time(4_107_542_400), "2100-03-01T00:00:00.007Z");
    }

    #[test]
    fn a_writer_that_stands_still_costs_lines_and_no_time() {
        let (lines, queue) = sync_channel(1);
        let log = Log { is_json: true, lines };

        let first = log.write(&record(), "192.0.2.7".parse().unwrap());
        let second = log.write(&record(), "192.0.2.7".parse().unwrap());

        assert_eq!((first, second), (true, false));
        drop(log);
        let mut written = Vec::new();
        write_all(&queue, &mut written).unwrap();
        assert_eq!(written.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
