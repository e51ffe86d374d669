//! One connection: bytes to messages, and bytes out.

use std::time::Duration;

use ferrogate_core::speaker::bgp::{Connection, Event, Loss};
use ferrogate_wire::bgp::{Message, MessageError, frame::Cutter};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::yield_now,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Pieces that may wait to be written. The machine hands out the next ones when those before are written, so that only
/// a NOTIFICATION and a KEEPALIVE come on top.
const PIECES: usize = 16;

/// How long a connection that is being closed may take to get its last words out, and the peer to close its side.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How many bytes are read at once.
const READ: usize = 16 * 1024;

/// What the owner of a connection holds. The connection is closed, with everything said that was given out, when this is
/// let go.
pub(super) struct Outgoing {
    pieces: mpsc::Sender<Vec<u8>>,
    _let_go: DropGuard,
}

impl Outgoing {
    /// What a connection says, and what [`serve`] needs to say it.
    pub(super) fn new() -> (Self, Incoming) {
        let (pieces, taken) = mpsc::channel(PIECES);
        let let_go = CancellationToken::new();
        (Self { pieces, _let_go: let_go.clone().drop_guard() }, Incoming { pieces: taken, let_go })
    }

    /// Full only where the peer takes nothing, and then the machine gives the connection up.
    pub(super) fn send(&self, piece: Vec<u8>) {
        _ = self.pieces.try_send(piece);
    }
}

/// The other end of [`Outgoing`].
pub(super) struct Incoming {
    pieces: mpsc::Receiver<Vec<u8>>,
    let_go: CancellationToken,
}

/// Carries a connection until its owner lets it go, or the peer ends it.
pub(super) async fn serve(connection: Connection, stream: TcpStream, incoming: Incoming, events: mpsc::Sender<Event>) {
    let (from, to) = stream.into_split();
    let let_go = incoming.let_go.clone();
    tokio::join!(read(connection, from, events.clone(), let_go), write(connection, to, incoming, events));
}

async fn read(connection: Connection, mut from: OwnedReadHalf, events: mpsc::Sender<Event>, let_go: CancellationToken) {
    let mut cutter = Cutter::default();
    let mut bytes = vec![0; READ];
    // A wrong message is the last that is read.
    let loss = loop {
        let count = tokio::select! {
            () = let_go.cancelled() => break None,
            count = from.read(&mut bytes) => count,
        };
        let mut rest = match count {
            Ok(0) => break Some(Loss::Closed),
            Ok(count) => &bytes[..count],
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => break Some(Loss::TimedOut),
            Err(_) => break Some(Loss::Reset),
        };
        let mut is_broken = false;
        loop {
            let message = match cutter.feed(&mut rest) {
                Ok(None) => break,
                Ok(Some(frame)) => Message::decode(frame),
                Err(error) => Err(MessageError::from(error)),
            };
            // We always offer them, so that the peer's offer is the agreement (RFC 8654 §3).
            if matches!(&message, Ok(Message::Open(open)) if open.capabilities.extended_message) {
                cutter.allow_extended();
            }
            is_broken = message.is_err();
            // The machine being busy slows the peer down, and costs nothing else.
            if events.send(Event::Received { connection, message }).await.is_err() || is_broken {
                break;
            }
            // A message may take milliseconds to read, and a peer may have many of them ready: everybody else, whose
            // KEEPALIVE may be due, goes before the next.
            yield_now().await;
        }
        if is_broken {
            let_go.cancelled().await;
            break None;
        }
    };
    match loss {
        Some(loss) => _ = events.send(Event::Ended { connection, loss }).await,
        // What the peer still sends would be answered by a reset, which can overtake our last words.
        None => _ = timeout(LAST_WORDS, drain(from, bytes)).await,
    }
}

async fn drain(mut from: OwnedReadHalf, mut bytes: Vec<u8>) {
    while matches!(from.read(&mut bytes).await, Ok(count) if count > 0) {}
}

async fn write(
    connection: Connection,
    mut to: OwnedWriteHalf,
    Incoming { mut pieces, let_go }: Incoming,
    events: mpsc::Sender<Event>,
) {
    let last_words_are_over = async || {
        let_go.cancelled().await;
        sleep(LAST_WORDS).await;
    };
    while let Some(piece) = pieces.recv().await {
        let written = tokio::select! {
            written = to.write_all(&piece) => written.is_ok(),
            // The owner has let go and the peer takes nothing.
            () = last_words_are_over() => false,
        };
        if !written {
            break;
        }
        if pieces.is_empty() && !let_go.is_cancelled() && events.send(Event::Written { connection }).await.is_err() {
            break;
        }
    }
    // What breaks otherwise is seen by who reads.
    if let_go.is_cancelled() {
        _ = timeout(LAST_WORDS, to.shutdown()).await;
    }
}
