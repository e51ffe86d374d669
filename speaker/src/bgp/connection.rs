//! One connection: bytes to messages, and bytes out.

use std::{sync::Arc, time::Duration};

use ferrogate_core::speaker::bgp::{Connection, Event, Loss};
use ferrogate_wire::bgp::{Message, MessageError, frame::Cutter};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, mpsc},
    time::timeout,
};

/// Pieces that may wait to be written. The machine hands out the next ones when those before are written, so that only
/// a NOTIFICATION and a KEEPALIVE come on top.
pub(super) const PIECES: usize = 16;

/// How long a connection that is being closed may take to get its last words out, and the peer to close its side.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How many bytes are read at once.
const READ: usize = 16 * 1024;

/// Carries a connection until `pieces` is closed by its owner, who has told everything then, or the peer ends it.
pub(super) async fn serve(
    connection: Connection,
    stream: TcpStream,
    pieces: mpsc::Receiver<Vec<u8>>,
    events: mpsc::Sender<Event>,
) {
    let (from, to) = stream.into_split();
    let closing = Arc::new(Notify::new());
    let writing = write(connection, to, pieces, events.clone(), closing.clone());
    tokio::join!(read(connection, from, events, closing), writing);
}

async fn read(connection: Connection, mut from: OwnedReadHalf, events: mpsc::Sender<Event>, closing: Arc<Notify>) {
    let mut cutter = Cutter::default();
    let mut bytes = vec![0; READ];
    // A wrong message is the last that is read.
    let loss = loop {
        let count = tokio::select! {
            () = closing.notified() => break None,
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
        }
        if is_broken {
            closing.notified().await;
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
    mut pieces: mpsc::Receiver<Vec<u8>>,
    events: mpsc::Sender<Event>,
    closing: Arc<Notify>,
) {
    while let Some(piece) = pieces.recv().await {
        let written = tokio::select! {
            written = to.write_all(&piece) => written.is_ok(),
            // The owner has let go and the peer takes nothing.
            () = last_words_are_over(&pieces) => false,
        };
        if !written {
            break;
        }
        if pieces.is_empty() && !pieces.is_closed() && events.send(Event::Written { connection }).await.is_err() {
            break;
        }
    }
    // What breaks otherwise is seen by who reads.
    if pieces.is_closed() {
        closing.notify_one();
        _ = timeout(LAST_WORDS, to.shutdown()).await;
    }
}

/// Ready some time after the owner has let go of the connection.
async fn last_words_are_over(pieces: &mpsc::Receiver<Vec<u8>>) {
    while !pieces.is_closed() {
        tokio::time::sleep(LAST_WORDS / 4).await;
    }
    tokio::time::sleep(LAST_WORDS).await;
}
