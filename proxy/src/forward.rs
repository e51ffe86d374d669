//! The life of one client connection and of each request on it, top to bottom.
//!
//! ```text
//! wait (no buffer) ─► head ─► route ─► endpoint ─► send ─► answer's head ─► body ─┬─► wait
//!                       │        │         │                   │                  └─► close, lingering if need be
//!                       └────────┴─────────┴───────────────────┴─► an answer of our own (respond.rs)
//! ```
//! A request that is complete in one read, which is nearly every one, is sent on in one write together with its head,
//! and can be sent once more if a kept connection turns out to be dead. A longer one is streamed while the answer is
//! already listened for ([`stream_request`]).
//!
//! A client that has only finished sending (half-close) still gets its answer. One that is gone is noticed when the
//! answer is sent, and its endpoint's connection is closed then.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io::{self, IoSlice, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use ferrogate_core::proxy::{BackendId, ListenerKey, RequestView};
use ferrogate_wire::http1::{
    Answer, ChunkScanner, Fault, Head, HeadScanner, Keep, Method, RequestBody, RequestHead, ResponseBody, ResponseHead,
    Slots, Version, path,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    task::coop,
};

use crate::{
    access::{Log, Record},
    buffer::{BUFFER_BYTES, Buffer, Output},
    respond::Refusal,
    tcp,
    thread::{Table, Thread},
    upstream::{self, Upstream, Wanted},
    watches::{Ended, Watch},
};

/// How much is read and thrown away after a last answer, so that the client sees the answer and not a reset.
const LINGER_BYTES: usize = 1024 * 1024;
/// How long that may take.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// How long a client that is connected already may take for its first request once the proxy ends: it is on its way.
const FIRST_REQUEST_TIME: Duration = Duration::from_secs(2);
/// Body bytes that are copied behind a head to be sent in one call; more are sent by a gathering write.
const COPIED: usize = 8 * 1024;
/// Interim answers (1xx) before the final one; more serve no purpose but to keep us busy.
const MAX_INTERIM: usize = 64;

/// One client connection.
struct Client<'a> {
    thread: &'a Rc<Thread>,
    watch: &'a Watch,
    address: IpAddr,
    /// The lines about the client that every request gets.
    about: &'a [u8],
    /// The request that is under way, where requests are logged.
    record: Option<Box<Record>>,
    /// It has not asked for anything yet.
    is_new: bool,
    read: ReadHalf<'a>,
    write: WriteHalf<'a>,
}

/// What becomes of the client connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Another request may come.
    Keep,
    /// It ends.
    Close,
    /// It ends, but the client may still be sending.
    Linger,
}

/// What was decided about a request from its head.
struct Plan {
    /// Held until an answer begins: an answer may take hours, and a table is large.
    table: Cell<Option<Rc<Table>>>,
    backend: BackendId,
    version: Version,
    to_head: bool,
    websocket: bool,
    keep_alive: bool,
    idempotent: bool,
    body: RequestBody,
}

/// How far a request got before it failed.
struct Failed {
    refusal: Refusal,
    /// Nothing of an answer has been received.
    unanswered: bool,
    /// Nothing of an answer has been sent on.
    unsent: bool,
}

/// How much of a final answer the client has got while the request was still under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    /// Nothing.
    No,
    /// A part; its framing tells the client that the rest is missing.
    Framed,
    /// A part that the client would take for all of it if the connection just ended.
    Unframed,
}

/// An answer that was sent on completely.
struct Answered {
    upstream_reusable: bool,
    client_reusable: bool,
    switched: bool,
}

/// Serves a connection until its end; `port` is the one the client believes to talk to. It counts as open from the call on, before its task has its first turn.
pub(crate) fn serve(
    thread: Rc<Thread>,
    mut stream: TcpStream,
    client: SocketAddr,
    listener: ListenerKey,
    port: u16,
) -> impl Future<Output = ()> {
    let watch = thread.watch(listener);
    async move {
        let about = lines_about(client.ip(), port);
        let (read, write) = stream.split();
        let address = client.ip();
        let (thread, watch, about) = (&thread, &watch, about.as_slice());
        let client = Client { thread, watch, address, about, record: None, is_new: true, read, write };
        client.run().await;
    }
}

/// What is said about the client to endpoints. Everything the client said of the kind itself is dropped: whoever talks
/// to the gateway directly could claim anything.
fn lines_about(client: IpAddr, port: u16) -> Vec<u8> {
    let mut lines = Vec::with_capacity(160);
    let client = client.to_canonical();
    // Writing to memory cannot fail.
    let _ = write!(
        lines,
        "X-Forwarded-For: {client}\r\nX-Real-IP: {client}\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: {port}\r\n"
    );
    lines
}

impl Client<'_> {
    async fn run(mut self) {
        let mut pipelined: Option<Buffer> = None;
        loop {
            let (input, last) = match pipelined.take() {
                Some(input) => (input, false),
                None => match self.wait().await {
                    Some(found) => found,
                    None => return,
                },
            };
            self.is_new = false;
            self.record = self.thread.access_log.as_ref().map(Log::begin);
            let (next, rest) = self.request(input, last).await;
            self.log();
            match next {
                Next::Keep => pipelined = rest,
                Next::Close => return,
                Next::Linger => {
                    drop(rest);
                    return self.linger().await;
                }
            }
        }
    }

    /// Logs the request that is over.
    fn log(&mut self) {
        if let (Some(log), Some(record)) = (&self.thread.access_log, self.record.take())
            && record.is_worth_a_line()
            && !log.write(&record, self.address)
        {
            self.thread.counters.unlogged.add(1);
        }
    }

    /// Waits for a next request, holding nothing. A request that came just before the connection was to be closed is
    /// still taken, as the last one; so is the first one of a client that came just before the end.
    async fn wait(&mut self) -> Option<(Buffer, bool)> {
        self.watch.arm_idle(self.thread.config.idle_timeout);
        let mut last = false;
        loop {
            if self.thread.draining.get() && !last {
                if !self.is_new {
                    return self.take_last();
                }
                self.watch.arm(FIRST_REQUEST_TIME);
                last = true;
            }
            match self.watch.guard(self.read.readable()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(Ended::Closing) if self.is_new && self.thread.draining.get() && !last => continue,
                Err(Ended::Timeout | Ended::Closing) => return self.take_last(),
            }
            let mut input = Buffer::take();
            match read_now(&mut self.read, &mut input).await {
                Some(Ok(1..)) => return Some((input, last)),
                Some(_) => return None,
                None => {}
            }
        }
    }

    /// Asks the system itself: tokio may not have heard yet of what has just come.
    fn take_last(&self) -> Option<(Buffer, bool)> {
        let mut input = Buffer::take();
        match (&*SockRef::from(self.read.as_ref())).read(input.spare()) {
            Ok(length @ 1..) => {
                input.received(length);
                Some((input, true))
            }
            _ => None,
        }
    }

    /// One request: reads it, sends it on, sends the answer back. Returns what was read beyond it.
    async fn request(&mut self, mut input: Buffer, last: bool) -> (Next, Option<Buffer>) {
        let head = match self.read_head(&mut input).await {
            Ok(Some(head)) => head,
            Ok(None) => return (Next::Close, None),
            Err(refusal) => return (self.refuse(refusal, false, Next::Linger).await, None),
        };
        let mut out = Output::take();
        let (plan, expects_continue) = match self.plan(&input, head, &mut out) {
            Ok(planned) => planned,
            Err((refusal, to_head, keep)) if keep && !last => {
                input.consume(head.end);
                let next = self.refuse(refusal, to_head, Next::Keep).await;
                return (next, Some(input).filter(|input| !input.filled().is_empty()));
            }
            Err((refusal, to_head, _)) => return (self.refuse(refusal, to_head, Next::Linger).await, None),
        };
        let plan = Plan { keep_alive: plan.keep_alive && !last, ..plan };
        input.consume(head.end);

        let mut body = Body::new(plan.body);
        if let Err(fault) = body.take(&mut input, &mut out) {
            let refusal = Refusal::Malformed(fault);
            return (self.refuse(refusal, plan.to_head, Next::Linger).await, None);
        }
        input.rest();
        let next = if body.is_done() && !expects_continue {
            self.exchange(&plan, out, &mut input).await
        } else {
            // Rare, and larger than all the rest of this future: kept off the memory of idle connections.
            Box::pin(self.exchange_streaming(&plan, body, out, &mut input)).await
        };
        (next, Some(input).filter(|input| !input.filled().is_empty()))
    }

    /// `None` when the client went away before it asked for anything.
    async fn read_head(&mut self, input: &mut Buffer) -> Result<Option<Head>, Refusal> {
        let limits = self.thread.config.limits();
        let mut scanner = HeadScanner::request();
        self.watch.arm(self.thread.config.header_timeout);
        loop {
            if let Some(head) = scanner.scan(input.filled(), &limits).map_err(Refusal::Malformed)? {
                return Ok(Some(head));
            }
            input.compact();
            match self.watch.guard(read_more(&mut self.read, input)).await {
                Ok(Ok(0)) | Ok(Err(_)) => return Ok(None),
                Ok(Ok(_)) => {}
                Err(_) if input.filled().is_empty() => return Ok(None),
                Err(_) => return Err(Refusal::HeaderTimeout),
            }
        }
    }

    /// Reads and routes a head, and writes what the endpoint gets to `out`. A refusal comes with whether it answers
    /// HEAD, and whether the connection can go on.
    fn plan(&self, input: &Buffer, head: Head, out: &mut Output) -> Result<(Plan, bool), (Refusal, bool, bool)> {
        let mut slots = Slots::default();
        let bytes = input.filled().get(head.start..head.end).unwrap_or_default();
        let head = RequestHead::parse(bytes, &mut slots, &self.thread.config.limits())
            .map_err(|fault| (Refusal::Malformed(fault), false, false))?;
        let to_head = head.method == Method::Head;
        if let Some(record) = &self.record {
            record.asked(head.method_name, head.host, head.path);
        }
        let mut scratch = Output::take();
        let path =
            path::normalise(head.path, &mut scratch).map_err(|fault| (Refusal::Malformed(fault), to_head, false))?;
        let table = self.thread.table();
        let host = if head.authority.is_empty() { None } else { Some(head.authority) };
        let keep_alive = head.keep_alive && !self.thread.leaving.get();
        let routed = table.route(&RequestView { host, path }).map(|route| {
            if let Some(record) = &self.record {
                record.routed(&route.rule.ingress);
            }
            route.id
        });
        let backend = routed.map_err(|none| {
            let unread = head.body != RequestBody::None;
            (Refusal::from(&none), to_head, keep_alive && !unread)
        })?;
        head.write(path, self.about, out);
        let expects_continue = head.expects_continue;
        let plan = Plan {
            backend,
            version: head.version,
            to_head,
            websocket: head.websocket,
            keep_alive,
            idempotent: head.method.is_idempotent(),
            body: head.body,
            table: Cell::new(Some(table)),
        };
        Ok((plan, expects_continue))
    }

    /// A connection to an endpoint of the plan's backend.
    async fn obtain(&self, plan: &Plan, fresh: bool, tried: &mut Vec<SocketAddr>) -> Result<Upstream, Refusal> {
        let table = plan.table.take();
        plan.table.set(table.clone());
        // Nothing is tried again once an answer has begun, so that it is there.
        let Some(table) = table else { return Err(Refusal::NoEndpoint) };
        let wanted = Wanted { table: &table, backend: plan.backend, client: self.address, fresh };
        let obtained = upstream::obtain(self.thread, self.watch, wanted, tried).await;
        if let (Some(record), Ok(upstream)) = (&self.record, &obtained) {
            record.upstream.set(Some(upstream.endpoint()));
        }
        obtained
    }

    /// Sends a request that is complete in `out`, as often as that is allowed and needed.
    async fn exchange(&mut self, plan: &Plan, mut out: Output, input: &mut Buffer) -> Next {
        let mut tried = Vec::new();
        let mut fresh = false;
        loop {
            let mut upstream = match self.obtain(plan, fresh, &mut tried).await {
                Ok(upstream) => upstream,
                Err(refusal) => return self.refuse_planned(plan, refusal, true).await,
            };
            let (uploaded, begun) = (Cell::new(true), Cell::new(Begun::No));
            let result = {
                let (mut read, mut write) = upstream.stream.split();
                self.watch.arm(self.thread.config.body_timeout);
                match self.watch.guard(write.write_all(&out)).await {
                    Ok(Ok(())) => {
                        let mut answer = Download {
                            thread: self.thread,
                            watch: self.watch,
                            plan,
                            uploaded: &uploaded,
                            begun: &begun,
                            record: self.record.as_deref(),
                            read: &mut read,
                            client: &mut self.write,
                        };
                        answer.run().await
                    }
                    Ok(Err(_)) => Err(Failed { refusal: Refusal::UpstreamClosed, unanswered: true, unsent: true }),
                    Err(_) => Err(Failed { refusal: Refusal::ResponseTimeout, unanswered: false, unsent: true }),
                }
            };
            match result {
                Ok(answered) => {
                    // What follows may be a WebSocket that is silent for hours.
                    drop(out);
                    return self.finish(plan, upstream, answered, input).await;
                }
                Err(failed) => {
                    // RFC 9112 §9.3.1: only what can be done twice, and only while no answer has begun.
                    let again = failed.unanswered && failed.unsent && plan.idempotent;
                    if again && (upstream.reused || tried.len() + 1 < self.thread.config.tries) {
                        self.thread.counters.retries.add(1);
                        if !upstream.reused {
                            tried.push(upstream.endpoint());
                        }
                        fresh = true;
                        continue;
                    }
                    out.clear();
                    return self.fail(plan, &failed, true, begun.get()).await;
                }
            }
        }
    }

    /// Sends a request whose body is still coming, while already listening for the answer: an endpoint may refuse
    /// early, ask for the body (`100 Continue`), or answer as it reads.
    async fn exchange_streaming(&mut self, plan: &Plan, mut body: Body, out: Output, input: &mut Buffer) -> Next {
        let mut upstream = match self.obtain(plan, false, &mut Vec::new()).await {
            Ok(upstream) => upstream,
            Err(refusal) => return self.refuse_planned(plan, refusal, false).await,
        };
        drop(plan.table.take());
        let (uploaded, begun) = (Cell::new(false), Cell::new(Begun::No));
        let waiting_for_client = Cell::new(false);
        let result = {
            let (mut read, mut write) = upstream.stream.split();
            let upload = Upload {
                thread: self.thread,
                watch: self.watch,
                waiting_for_client: &waiting_for_client,
                client: &mut self.read,
                upstream: &mut write,
            };
            let mut download = Download {
                thread: self.thread,
                watch: self.watch,
                plan,
                uploaded: &uploaded,
                begun: &begun,
                record: self.record.as_deref(),
                read: &mut read,
                client: &mut self.write,
            };
            stream_request(upload.run(&mut body, out, input), download.run(), &uploaded).await
        };
        match result {
            Ok(answered) if uploaded.get() => self.finish(plan, upstream, answered, input).await,
            // The rest of the request is unread on one side and unsent on the other.
            Ok(_) => Next::Linger,
            Err(Broken::Download(failed)) if failed.refusal == Refusal::ResponseTimeout && waiting_for_client.get() => {
                let failed = Failed { refusal: Refusal::BodyTimeout, ..failed };
                self.fail(plan, &failed, false, begun.get()).await
            }
            Err(Broken::Download(failed)) => self.fail(plan, &failed, uploaded.get(), begun.get()).await,
            Err(Broken::Client) => Next::Close,
            Err(Broken::Request(_)) if begun.get() != Begun::No => self.break_off(begun.get()),
            Err(Broken::Request(fault)) => self.refuse(Refusal::Malformed(fault), plan.to_head, Next::Linger).await,
        }
    }

    /// After a complete answer.
    async fn finish(&mut self, plan: &Plan, upstream: Upstream, answered: Answered, input: &mut Buffer) -> Next {
        if answered.switched {
            return Box::pin(self.tunnel(upstream, input)).await;
        }
        if answered.upstream_reusable {
            upstream.release();
        }
        match answered.client_reusable && plan.keep_alive {
            true => Next::Keep,
            false if input.filled().is_empty() => Next::Close,
            false => Next::Linger,
        }
    }

    /// Answers that a request failed, or breaks off where an answer has begun already.
    async fn fail(&mut self, plan: &Plan, failed: &Failed, request_read: bool, begun: Begun) -> Next {
        match failed.unsent {
            true => self.refuse_planned(plan, failed.refusal, request_read).await,
            false => {
                tracing::debug!(reason = ?failed.refusal, "an answer was broken off");
                self.break_off(begun)
            }
        }
    }

    /// Ends the connection in the middle of an answer, and by a reset where a mere end would look like the answer's.
    fn break_off(&self, begun: Begun) -> Next {
        if begun == Begun::Unframed {
            tcp::reset_on_close(self.read.as_ref());
        }
        Next::Close
    }

    async fn refuse_planned(&mut self, plan: &Plan, refusal: Refusal, request_read: bool) -> Next {
        let keep = plan.keep_alive && request_read && !self.thread.leaving.get();
        self.refuse(refusal, plan.to_head, if keep { Next::Keep } else { Next::Linger }).await
    }

    /// Sends an answer of our own.
    async fn refuse(&mut self, refusal: Refusal, to_head: bool, next: Next) -> Next {
        self.thread.counters.refused(refusal);
        tracing::debug!(client = %self.address, reason = ?refusal, "request refused");
        let mut out = Output::take();
        self.thread.with_date(|date| refusal.write(to_head, next != Next::Keep, date, &mut out));
        if let Some(record) = &self.record {
            record.status.set(refusal.reply().status);
            record.reason.set(refusal.word());
        }
        self.watch.arm(self.thread.config.body_timeout);
        match self.watch.guard(self.write.write_all(&out)).await {
            Ok(Ok(())) => next,
            _ => Next::Close,
        }
    }

    /// Ends the connection so that the client gets the last answer: closing while bytes of it are unread would send a
    /// reset, which overtakes the answer (RFC 9112 §9.6).
    async fn linger(&mut self) {
        self.watch.arm(LINGER_TIME);
        let drained = async {
            self.write.shutdown().await?;
            let mut left = LINGER_BYTES;
            while left > 0 {
                self.read.readable().await?;
                let mut input = Buffer::take();
                match read_now(&mut self.read, &mut input).await.transpose()? {
                    Some(0) => break,
                    Some(length) => left = left.saturating_sub(length),
                    None => {}
                }
            }
            io::Result::Ok(())
        };
        if let Ok(Err(error)) = self.watch.guard(drained).await {
            tracing::trace!(%error, "a closing connection broke");
        }
    }

    /// After `101`: bytes go both ways until both sides are done, or silent for too long.
    async fn tunnel(&mut self, upstream: Upstream, input: &mut Buffer) -> Next {
        let first = input.filled().to_vec();
        // Thousands of these may be open and silent for hours.
        *input = Buffer::none();
        let limit = self.thread.config.tunnel_timeout;
        let joined = tcp::join(self.watch, limit, &first, self.read.as_ref(), &upstream.stream).await;
        if let Err(error) = joined {
            tracing::trace!(%error, "an upgraded connection broke");
        }
        Next::Close
    }
}

/// Reads what is there, without waiting: `None` when there is nothing after all, as after the readiness that tokio
/// assumes of every new connection. Unlike `try_read`, a read that does not fill the buffer clears the readiness,
/// which saves one call that would only find nothing.
async fn read_now(from: &mut ReadHalf<'_>, buffer: &mut Buffer) -> Option<io::Result<usize>> {
    // Out of turns, tokio says that there is nothing, though there is: whoever asks again would ask for ever.
    let read = coop::unconstrained(poll_fn(|context| {
        let mut into = ReadBuf::new(buffer.spare());
        Poll::Ready(match Pin::new(&mut *from).poll_read(context, &mut into) {
            Poll::Ready(Ok(())) => Some(Ok(into.filled().len())),
            Poll::Ready(Err(error)) => Some(Err(error)),
            Poll::Pending => None,
        })
    }))
    .await;
    if let Some(Ok(length)) = read {
        buffer.received(length);
    }
    read
}

/// Waits for more without holding an empty buffer, and reads it; 0 at the end.
async fn read_more(from: &mut ReadHalf<'_>, buffer: &mut Buffer) -> io::Result<usize> {
    // A fast connection must not keep the others of its thread waiting.
    coop::consume_budget().await;
    loop {
        buffer.rest();
        from.readable().await?;
        if let Some(read) = read_now(from, buffer).await {
            return read;
        }
    }
}

/// How much of a request body is still to come.
enum Body {
    Length(u64),
    Chunks(ChunkScanner),
}

impl Body {
    fn new(body: RequestBody) -> Self {
        match body {
            RequestBody::None => Self::Length(0),
            RequestBody::Length(length) => Self::Length(length),
            RequestBody::Chunked => Self::Chunks(ChunkScanner::new(Keep::Framing)),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunks(scanner) => scanner.is_done(),
        }
    }

    /// Moves what belongs to the body from `input` to `out`.
    fn take(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<(), Fault> {
        let bytes = input.filled_mut();
        let (kept, consumed) = match self {
            Self::Length(left) => {
                let length = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= length as u64;
                (length, length)
            }
            Self::Chunks(scanner) => {
                let scanned = scanner.scan(bytes)?;
                (scanned.kept, scanned.consumed)
            }
        };
        out.extend_from_slice(bytes.get(..kept).unwrap_or_default());
        input.consume(consumed);
        Ok(())
    }
}

/// What broke while a request was streamed.
enum Broken {
    Client,
    Request(Fault),
    Download(Failed),
}

/// Runs both directions of a streamed request until the answer is complete. An endpoint that stops reading may still
/// have an answer, so a failure to send to it only ends the upload.
async fn stream_request(
    upload: impl Future<Output = Result<(), Stopped>>,
    download: impl Future<Output = Result<Answered, Failed>>,
    uploaded: &Cell<bool>,
) -> Result<Answered, Broken> {
    let mut upload = pin!(upload);
    let mut download = pin!(download);
    let mut uploading = true;
    poll_fn(|context| {
        if uploading && let Poll::Ready(result) = upload.as_mut().poll(context) {
            uploading = false;
            match result {
                Ok(()) => uploaded.set(true),
                Err(Stopped::Upstream) => {}
                Err(Stopped::Client) => return Poll::Ready(Err(Broken::Client)),
                Err(Stopped::Malformed(fault)) => return Poll::Ready(Err(Broken::Request(fault))),
            }
        }
        download.as_mut().poll(context).map_err(Broken::Download)
    })
    .await
}

/// Why a request body could not be sent to its end.
enum Stopped {
    Client,
    Upstream,
    Malformed(Fault),
}

/// The way of a request body. Its time limits are guarded by the [`Download`] that runs beside it.
struct Upload<'a, 'c, 'u> {
    thread: &'a Rc<Thread>,
    watch: &'a Watch,
    waiting_for_client: &'a Cell<bool>,
    client: &'a mut ReadHalf<'c>,
    upstream: &'a mut WriteHalf<'u>,
}

impl Upload<'_, '_, '_> {
    async fn run(self, body: &mut Body, mut out: Output, input: &mut Buffer) -> Result<(), Stopped> {
        let limit = self.thread.config.body_timeout;
        loop {
            self.watch.arm(limit);
            self.upstream.write_all(&out).await.map_err(|_| Stopped::Upstream)?;
            out.clear();
            if body.is_done() {
                self.watch.arm(self.thread.config.response_timeout);
                return Ok(());
            }
            self.waiting_for_client.set(true);
            self.watch.arm(limit);
            match read_more(self.client, input).await {
                Ok(0) | Err(_) => return Err(Stopped::Client),
                Ok(_) => {}
            }
            self.waiting_for_client.set(false);
            body.take(input, &mut out).map_err(Stopped::Malformed)?;
        }
    }
}

/// The way of an answer: heads, then the body, from the endpoint to the client.
struct Download<'a, 'u, 'c> {
    thread: &'a Rc<Thread>,
    watch: &'a Watch,
    plan: &'a Plan,
    /// Whether the whole request has been sent.
    uploaded: &'a Cell<bool>,
    /// Told once the client gets a part of the answer.
    begun: &'a Cell<Begun>,
    record: Option<&'a Record>,
    read: &'a mut ReadHalf<'u>,
    client: &'a mut WriteHalf<'c>,
}

/// What an answer's head says.
struct Outline {
    status: u16,
    interim: bool,
    body: ResponseBody,
    upstream_keeps: bool,
    client_keeps: bool,
}

impl Download<'_, '_, '_> {
    async fn run(&mut self) -> Result<Answered, Failed> {
        let mut input = Buffer::none();
        let mut out = Output::take();
        let mut unsent = true;
        for _ in 0..=MAX_INTERIM {
            let head = self.read_head(&mut input, unsent).await?;
            let outline = self.begin(&input, head, &mut out).map_err(|fault| Failed {
                refusal: Refusal::UpstreamMalformed(fault),
                unanswered: false,
                unsent,
            })?;
            input.consume(head.end);
            if outline.interim {
                // RFC 9110 §15.2: nothing of the kind to a client that cannot know it.
                if self.plan.version == Version::Http11 {
                    self.send(&out, &[]).await?;
                    unsent = false;
                }
                out.clear();
                continue;
            }
            self.thread.counters.answered(outline.status);
            if let Some(record) = self.record {
                record.status.set(outline.status);
            }
            drop(self.plan.table.take());
            return self.body(&outline, input, out).await;
        }
        Err(Failed { refusal: Refusal::UpstreamMalformed(Fault::StatusLine), unanswered: false, unsent })
    }

    async fn read_head(&mut self, input: &mut Buffer, unsent: bool) -> Result<Head, Failed> {
        let limits = self.thread.config.limits();
        let mut scanner = HeadScanner::response();
        if self.uploaded.get() {
            self.watch.arm(self.thread.config.response_timeout);
        }
        loop {
            let failed = |refusal, unanswered| Failed { refusal, unanswered, unsent };
            let malformed = |fault| failed(Refusal::UpstreamMalformed(fault), false);
            if let Some(head) = scanner.scan(input.filled(), &limits).map_err(malformed)? {
                return Ok(head);
            }
            input.compact();
            match self.watch.guard(read_more(self.read, input)).await {
                Ok(Ok(0)) | Ok(Err(_)) => return Err(failed(Refusal::UpstreamClosed, input.filled().is_empty())),
                Ok(Ok(_)) => {}
                Err(_) => return Err(failed(Refusal::ResponseTimeout, false)),
            }
        }
    }

    /// Reads a head and writes what the client gets to `out`.
    fn begin(&self, input: &Buffer, head: Head, out: &mut Output) -> Result<Outline, Fault> {
        let mut slots = Slots::default();
        let bytes = input.filled().get(head.start..head.end).unwrap_or_default();
        let limits = self.thread.config.limits();
        let head = ResponseHead::parse(bytes, self.plan.to_head, self.plan.websocket, &mut slots, &limits)?;
        let (version, body) = (self.plan.version, head.body);
        let framed = match body {
            ResponseBody::UntilClose => false,
            ResponseBody::Chunked => version == Version::Http11,
            ResponseBody::None | ResponseBody::Length(_) => true,
        };
        let client_keeps = self.plan.keep_alive && framed && self.uploaded.get() && !self.thread.leaving.get();
        self.thread.with_date(|date| head.write(&Answer { version, close: !client_keeps, date }, out));
        Ok(Outline {
            status: head.status,
            interim: head.is_interim(),
            body,
            upstream_keeps: head.keep_alive,
            client_keeps,
        })
    }

    /// Sends the head in `out` and the body behind it.
    async fn body(&mut self, outline: &Outline, mut input: Buffer, out: Output) -> Result<Answered, Failed> {
        if outline.status == 101 {
            // The first words of the new protocol may have come along.
            self.send(&out, input.filled()).await?;
            return Ok(Answered { upstream_reusable: false, client_reusable: false, switched: true });
        }
        let keep = match self.plan.version {
            Version::Http11 => Keep::Framing,
            Version::Http10 => Keep::Payload,
        };
        let mut chunks = ChunkScanner::new(keep);
        let mut left = match outline.body {
            ResponseBody::None => 0,
            ResponseBody::Length(length) => length,
            ResponseBody::Chunked | ResponseBody::UntilClose => u64::MAX,
        };
        let unframed = match outline.body {
            ResponseBody::UntilClose => true,
            ResponseBody::Chunked => keep == Keep::Payload,
            ResponseBody::None | ResponseBody::Length(_) => false,
        };
        let mut head: &[u8] = &out;
        loop {
            let bytes = input.filled_mut();
            let (kept, consumed) = match outline.body {
                ResponseBody::Chunked => match chunks.scan(bytes) {
                    Ok(scanned) => {
                        if scanned.done {
                            left = 0;
                        }
                        (scanned.kept, scanned.consumed)
                    }
                    Err(fault) => {
                        let unsent = !head.is_empty();
                        return Err(Failed { refusal: Refusal::UpstreamMalformed(fault), unanswered: false, unsent });
                    }
                },
                _ => {
                    let length = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if outline.body != ResponseBody::UntilClose {
                        left -= length as u64;
                    }
                    (length, length)
                }
            };
            let body = input.filled().get(..kept).unwrap_or_default();
            if !head.is_empty() || !body.is_empty() {
                self.begun.set(if unframed { Begun::Unframed } else { Begun::Framed });
                self.send(head, body).await?;
                head = &[];
            }
            input.consume(consumed);
            if left == 0 {
                break;
            }
            match self.watch.guard(read_more(self.read, &mut input)).await {
                Ok(Ok(0)) if outline.body == ResponseBody::UntilClose => break,
                Ok(Ok(0)) | Ok(Err(_)) => return Err(broken_off(Refusal::UpstreamClosed)),
                Ok(Ok(_)) => {}
                Err(_) => return Err(broken_off(Refusal::ResponseTimeout)),
            }
        }
        // A byte beyond the answer is an answer to something nobody asked.
        let clean = input.filled().is_empty() && outline.body != ResponseBody::UntilClose;
        Ok(Answered {
            upstream_reusable: clean && outline.upstream_keeps && self.uploaded.get(),
            client_reusable: outline.client_keeps,
            switched: false,
        })
    }

    /// Sends to the client, in one call if it takes everything.
    async fn send(&mut self, head: &[u8], body: &[u8]) -> Result<(), Failed> {
        self.watch.arm(self.thread.config.body_timeout);
        let sent = match (head, body) {
            (head, []) => self.watch.guard(self.client.write_all(head)).await,
            ([], body) => self.watch.guard(self.client.write_all(body)).await,
            (head, body) if body.len() <= COPIED => {
                let mut both = Output::take();
                both.extend_from_slice(head);
                both.extend_from_slice(body);
                self.watch.guard(self.client.write_all(&both)).await
            }
            (head, body) => self.watch.guard(write_both(self.client, head, body)).await,
        };
        match sent {
            Ok(Ok(())) => {
                if let Some(record) = self.record {
                    record.sent(body.len());
                }
                Ok(())
            }
            Ok(Err(_)) => Err(broken_off(Refusal::UpstreamClosed)),
            Err(_) => Err(broken_off(Refusal::BodyTimeout)),
        }
    }
}

/// A failure after which no answer can be sent any more.
fn broken_off(refusal: Refusal) -> Failed {
    Failed { refusal, unanswered: false, unsent: false }
}

async fn write_both(to: &mut WriteHalf<'_>, head: &[u8], body: &[u8]) -> io::Result<()> {
    let sent = to.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]).await?;
    if sent < head.len() {
        to.write_all(head.get(sent..).unwrap_or_default()).await?;
    }
    to.write_all(body.get(sent.saturating_sub(head.len())..).unwrap_or_default()).await
}

const _: () = assert!(COPIED < BUFFER_BYTES);

#[cfg(test)]
mod tests;
