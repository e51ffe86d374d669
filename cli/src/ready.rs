//! Whether one process is ready, told to whoever asks for it by its name: `ferrogate ready`.
//!
//! While one proxy follows another, both have the addresses of the node, and nobody who asks an address knows which one
//! has answered. A name is one process's own; in Kubernetes it is the identity of the pod. It is bound in the abstract
//! namespace of Unix sockets, which is the host's network: there is no file to leave behind, and no port to be taken.

use std::{
    io::{self, Read as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixStream},
    },
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Args;
use tokio::{io::AsyncWriteExt, net::UnixListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// The variable that names a process.
pub const NAME: &str = "POD_UID";

/// What is told.
const READY: &[u8] = b"ready\n";
const NOT_READY: &[u8] = b"not ready\n";

/// How long the answer may take; it is written at once, unless the process hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long accepting rests when it fails: out of file descriptors, say.
const REST: Duration = Duration::from_millis(100);

/// Flags of `ferrogate ready`.
#[derive(Args)]
pub struct ReadyArgs {
    /// What the process was given as `--ready-name`
    #[arg(long, value_name = "NAME", env = NAME)]
    name: String,
}

/// Asks; the exit code is 0 only if the process is ready.
pub fn ask(args: &ReadyArgs) -> anyhow::Result<ExitCode> {
    let stream = address(&args.name).and_then(|address| UnixStream::connect_addr(&address));
    let mut stream = stream.with_context(|| format!("nobody of the name {:?} is there to be asked", args.name))?;
    stream.set_read_timeout(Some(PATIENCE)).context("asking")?;
    let mut answer = Vec::new();
    let limit = NOT_READY.len() as u64;
    stream.by_ref().take(limit).read_to_end(&mut answer).context("reading the answer")?;
    ensure!(answer == READY, "not ready");
    println!("ready");
    Ok(ExitCode::SUCCESS)
}

/// Takes the name.
pub fn bind(name: &str) -> anyhow::Result<UnixListener> {
    let bind = || {
        let listener = std::os::unix::net::UnixListener::bind_addr(&address(name)?)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    };
    bind().with_context(|| format!("--ready-name {name:?} cannot be taken; is another process of that name running?"))
}

/// Tells everybody who asks until `stop`.
pub async fn tell(listener: UnixListener, ready: watch::Receiver<bool>, stop: CancellationToken) {
    loop {
        // Cancel-safe: whoever is not accepted stays in the queue.
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let answer = if *ready.borrow() { READY } else { NOT_READY };
        // A line fits into any socket's buffer, so this waits for nobody.
        let told = match accepted {
            Ok((mut stream, _)) => stream.write_all(answer).await,
            Err(error) => {
                tokio::time::sleep(REST).await;
                Err(error)
            }
        };
        if let Err(error) = told {
            debug!(%error, "somebody was not told whether this process is ready");
        }
    }
}

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("ferrogate-ready/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(test: &str) -> String {
        format!("{test}-{}", std::process::id())
    }

    async fn says(name: &str) -> Result<(), String> {
        let args = ReadyArgs { name: name.to_owned() };
        let asked = tokio::task::spawn_blocking(move || ask(&args)).await.unwrap();
        asked.map(drop).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn each_of_two_processes_speaks_for_itself_alone() {
        let (old, new) = (name("old"), name("new"));
        let (_old_room, old_ready) = watch::channel(true);
        let (new_room, new_ready) = watch::channel(false);
        tokio::spawn(tell(bind(&old).unwrap(), old_ready, CancellationToken::new()));
        tokio::spawn(tell(bind(&new).unwrap(), new_ready, CancellationToken::new()));

        assert_eq!(says(&old).await, Ok(()));
        assert_eq!(says(&new).await.unwrap_err(), "not ready");
        new_room.send_replace(true);
        assert_eq!(says(&new).await, Ok(()));
    }

    #[tokio::test]
    async fn a_process_that_is_not_there_is_not_ready() {
        let gone = name("gone");

        assert!(says(&gone).await.unwrap_err().contains(&gone));
    }

    #[tokio::test]
    async fn a_name_is_taken_once() {
        let name = name("once");
        let _listener = bind(&name).unwrap();

        assert!(bind(&name).unwrap_err().to_string().contains("--ready-name"));
    }
}
