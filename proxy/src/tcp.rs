//! TCP connections passed on as they are, for Services that are not HTTP.
//!
//! A connection is made to an endpoint before any byte of the client is read, so that every endpoint may be tried
//! without losing one. Then bytes go both ways until both sides have finished; each side may finish by itself
//! (half-close). A reset on one side becomes a reset on the other, so that no application takes a broken stream for a
//! complete one. A silent connection holds no buffer.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use ferrogate_core::proxy::{BackendId, ListenerKey};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use crate::{
    buffer::Buffer,
    thread::{Table, Thread},
    upstream::{self, Wanted},
    watches::{Ended, Watch},
};

/// The life of one connection of a client that may come in. It counts as open from the call on, before its task has its
/// first turn.
pub(crate) fn serve(
    thread: Rc<Thread>,
    table: Rc<Table>,
    backend: BackendId,
    client: TcpStream,
    address: SocketAddr,
    key: ListenerKey,
) -> impl Future<Output = ()> {
    let watch = thread.watch(key);
    async move {
        let connected = {
            let wanted = Wanted { table: &table, backend, client: address.ip(), fresh: true };
            upstream::obtain(&thread, &watch, wanted, &mut Vec::new()).await
        };
        drop(table);
        match connected {
            Ok(upstream) => {
                let joined = join(&watch, thread.config.tunnel_timeout, &[], &client, &upstream.stream).await;
                if let Err(error) = joined {
                    tracing::debug!(listener = %key.socket, client = %address, %error, "connection broke");
                }
            }
            // The client sees what it would see if nobody listened: it is the nearest to the truth, and clients try
            // again.
            Err(_) => {
                thread.counters.unconnected.add(1);
                reset_on_close(&client);
            }
        }
    }
}

/// Sends `first` to the endpoint, then copies both ways until both sides have finished. When it ends in any other way,
/// even because the thread does, both connections are reset when they are closed.
///
/// # Errors
/// What broke a connection, or [`io::ErrorKind::TimedOut`] when neither side has moved a byte for `limit`.
pub(crate) async fn join(
    watch: &Watch,
    limit: Duration,
    first: &[u8],
    client: &TcpStream,
    endpoint: &TcpStream,
) -> io::Result<()> {
    let unfinished = ResetBoth(client, endpoint);
    let moved = || watch.arm(limit);
    moved();
    let both = async {
        send(endpoint, first, moved).await?;
        tokio::try_join!(copy(client, endpoint, moved), copy(endpoint, client, moved))
    };
    match watch.guard(both).await {
        Ok(copied) => copied?,
        Err(Ended::Timeout | Ended::Closing) => return Err(io::ErrorKind::TimedOut.into()),
    };
    std::mem::forget(unfinished);
    Ok(())
}

struct ResetBoth<'a>(&'a TcpStream, &'a TcpStream);

impl Drop for ResetBoth<'_> {
    fn drop(&mut self) {
        reset_on_close(self.0);
        reset_on_close(self.1);
    }
}

/// Copies one way until `from` has finished, then tells `to`.
async fn copy(from: &TcpStream, to: &TcpStream, moved: impl Fn()) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = Buffer::take();
        let room = buffer.spare().len();
        match from.try_read(buffer.spare()) {
            Ok(0) => return finish(to),
            Ok(length) => {
                buffer.received(length);
                if length < room {
                    // There was no more, and epoll tells when there is: asking again would be a call for nothing.
                    let _ = from.try_io(Interest::READABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error),
        }
        moved();
        send(to, buffer.filled(), &moved).await?;
        drop(buffer);
        // A fast connection must not keep the others of its thread waiting.
        tokio::task::coop::consume_budget().await;
    }
}

async fn send(to: &TcpStream, mut bytes: &[u8], moved: impl Fn()) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        moved();
    }
    Ok(())
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
