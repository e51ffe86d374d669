//! A tiny backend, standing in for a pod: HTTP, and an echo by TCP and UDP. Every answer names it.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

/// Longest request head, and longest line to echo, in bytes.
const LIMIT: usize = 16 * 1024;

/// What a backend listens on.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// What it calls itself
    #[arg(long)]
    pub name: String,
    /// Where it answers HTTP with its name, the method and the path; for /clientip, with who asked, and for
    /// /forwardedfor, with whom a proxy says it asks for
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Vec<SocketAddr>,
    /// Where it sends lines (TCP) and datagrams (UDP) back, with its name before or after them
    #[arg(long, value_name = "ADDR:PORT")]
    pub echo: Vec<SocketAddr>,
}

/// Serves until it is killed. Prints one line when it listens everywhere.
///
/// # Errors
/// When it cannot listen.
pub async fn run(config: Config) -> io::Result<()> {
    let name: Arc<str> = config.name.into();
    let mut tasks = JoinSet::new();
    for address in config.http {
        let listener = TcpListener::bind(address).await?;
        tasks.spawn(accept(listener, Arc::clone(&name), http));
    }
    for address in config.echo {
        let listener = TcpListener::bind(address).await?;
        let socket = UdpSocket::bind(address).await?;
        tasks.spawn(accept(listener, Arc::clone(&name), echo_lines));
        tasks.spawn(echo_datagrams(socket, Arc::clone(&name)));
    }
    println!("{name} listens");
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn accept<F>(listener: TcpListener, name: Arc<str>, serve: impl Fn(TcpStream, Arc<str>) -> F) -> io::Result<()>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                // An answer is several small writes; waiting to join them would be measured as the product's delay.
                stream.set_nodelay(true)?;
                connections.spawn(serve(stream, Arc::clone(&name)));
            }
            // A client that went away is not this backend's concern.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers requests one after the other; bodies are read and dropped.
async fn http(stream: TcpStream, name: Arc<str>) -> io::Result<()> {
    let client = stream.peer_addr()?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = None;
        let mut length = 0;
        let mut close = false;
        let mut forwarded = String::new();
        loop {
            let mut line = String::new();
            if (&mut stream).take(LIMIT as u64).read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            match (&request, line.split_once(':')) {
                (None, _) => request = Some(line.to_owned()),
                (_, Some((field, value))) if field.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().map_err(io::Error::other)?;
                }
                (_, Some((field, value))) if field.eq_ignore_ascii_case("connection") => {
                    close = value.trim().eq_ignore_ascii_case("close");
                }
                (_, Some((field, value))) if field.eq_ignore_ascii_case("x-forwarded-for") => {
                    forwarded = value.trim().to_owned();
                }
                _ if line.is_empty() => break,
                _ => {}
            }
        }
        tokio::io::copy(&mut (&mut stream).take(length), &mut tokio::io::sink()).await?;
        let request = request.unwrap_or_default();
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let body = match path {
            "/clientip" => format!("{client}\n"),
            "/forwardedfor" => format!("{forwarded}\n"),
            _ => format!("{name} {method} {path}\n"),
        };
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n");
        let answer = if method == "HEAD" { head } else { head + &body };
        stream.write_all(answer.as_bytes()).await?;
        if close {
            return stream.shutdown().await;
        }
    }
}

async fn echo_lines(stream: TcpStream, name: Arc<str>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        if (&mut stream).take(LIMIT as u64).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let answer = [name.as_bytes(), b": ", &line].concat();
        stream.write_all(&answer).await?;
    }
}

async fn echo_datagrams(socket: UdpSocket, name: Arc<str>) -> io::Result<()> {
    let mut buffer = [0; 2048];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await?;
        let answer = [&buffer[..length], b" ", name.as_bytes()].concat();
        // An ICMP error left by an earlier answer shows up here; it concerns that client only.
        let _ = socket.send_to(&answer, client).await;
    }
}
