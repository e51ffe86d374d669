//! TCP connections passed on as they are, for Services that are not HTTP.
//!
//! A connection is made to an endpoint before any byte of the client is read, so that every endpoint may be tried
//! without losing one. Then bytes go both ways until both sides have finished; each side may finish by itself
//! (half-close). A reset on one side becomes a reset on the other, so that no application takes a broken stream for a
//! complete one. A silent connection holds no buffer.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use ferrogate_core::proxy::{BackendId, ListenerKey};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::{
    buffer::Buffer,
    thread::{Table, Thread},
    upstream::{self, Wanted},
    watches::{Ended, Watch},
};

/// The life of one connection of a client that may come in.
pub(crate) async fn serve(
    thread: Rc<Thread>,
    table: Rc<Table>,
    backend: BackendId,
    client: TcpStream,
    address: SocketAddr,
    key: ListenerKey,
) {
    let watch = thread.watch(key);
    let connected = {
        let wanted = Wanted { table: &table, backend, client: address.ip(), fresh: true };
        upstream::obtain(&thread, &watch, wanted, &mut Vec::new()).await
    };
    drop(table);
    match connected {
        Ok(upstream) => {
            let copied = copy(&watch, thread.config.tunnel_timeout, &client, &upstream.stream).await;
            if let Err(Broken::Reset(error)) = copied {
                tracing::debug!(listener = %key.socket, client = %address, %error, "connection broke");
                reset_on_close(&client);
                reset_on_close(&upstream.stream);
            }
        }
        // The client sees what it would see if nobody listened: it is the nearest to the truth, and clients try again.
        Err(_) => {
            thread.counters.unconnected.add(1);
            reset_on_close(&client);
        }
    }
}

/// Why copying ended before both sides had finished.
#[derive(Debug)]
pub(crate) enum Broken {
    /// One side reset the connection.
    Reset(io::Error),
    /// Nothing was heard from either side for too long.
    Silent,
}

/// Copies both ways until both sides have finished, or neither has moved a byte for `limit`.
pub(crate) async fn copy(watch: &Watch, limit: Duration, one: &TcpStream, other: &TcpStream) -> Result<(), Broken> {
    let moved = || watch.arm(limit);
    moved();
    let both = async { tokio::try_join!(pump(one, other, moved), pump(other, one, moved)) };
    match watch.guard(both).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Broken::Reset(error)),
        Err(Ended::Timeout | Ended::Closing) => Err(Broken::Silent),
    }
}

/// Copies one way until `from` has finished, then tells `to`.
async fn pump(from: &TcpStream, to: &TcpStream, moved: impl Fn()) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = Buffer::take();
        match from.try_read(buffer.spare()) {
            Ok(0) => return finish(to),
            Ok(length) => buffer.received(length),
            Err(error) if is_passing(&error) => continue,
            Err(error) => return Err(error),
        }
        moved();
        while !buffer.filled().is_empty() {
            match to.try_write(buffer.filled()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => buffer.consume(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            moved();
        }
        drop(buffer);
        // A fast connection must not keep the others of its thread waiting.
        tokio::task::coop::consume_budget().await;
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Sends FIN. That the other side has gone already is no news that matters here: reading from it says so.
fn finish(to: &TcpStream) -> io::Result<()> {
    match SockRef::from(to).shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}

/// Makes the close that follows an RST.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "connection is closed instead of reset");
    }
}

#[cfg(test)]
mod tests;
