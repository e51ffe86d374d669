//! Probes: questions to a container from its node, by HTTP, by a mere connection or by a program that is run in it, and
//! what their answers add up to.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::util::intstr::IntOrString};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};

/// As much of an answer is read, in bytes, as its first line can need.
const HEAD: u64 = 1024;

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The others wait for it; a container that fails it is started anew.
    Startup,
    /// Traffic comes only while it holds.
    Readiness,
    /// A container that fails it is started anew.
    Liveness,
}

/// What is asked.
#[derive(Clone, Debug)]
enum Question {
    Get { address: SocketAddr, host: String, path: String, headers: Vec<(String, String)> },
    Connect(SocketAddr),
    Run(Exec),
}

/// How a program is run as the container's own would be: with its files, its rights, its network.
#[derive(Clone, Debug)]
pub struct Exec {
    /// The lab's own program, whose command `container` is [`super::launch::run`].
    pub launcher: PathBuf,
    /// What it is to start, as a file.
    pub file: PathBuf,
    /// The network it is in.
    pub network: Arc<OwnedFd>,
}

impl Exec {
    /// Whether it ends well.
    async fn run(&self) -> std::io::Result<bool> {
        let mut command = Command::new(&self.launcher);
        command.arg("container").arg(&self.file).stdin(Stdio::from(self.network.try_clone()?));
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        Ok(command.status().await?.success())
    }
}

/// A probe, every default filled in.
#[derive(Clone, Debug)]
pub struct Probe {
    /// What it is for.
    pub kind: Kind,
    question: Question,
    delay: Duration,
    period: Duration,
    patience: Duration,
    successes: u32,
    failures: u32,
}

impl Probe {
    /// The probe of a container whose pod has this address. `exec` prepares a program to be run in it.
    ///
    /// # Errors
    /// When it is of a kind that is not asked here, or names a port that is not there; the text says so.
    pub fn new(
        kind: Kind,
        probe: &core::Probe,
        address: IpAddr,
        container: &core::Container,
        exec: impl FnOnce(&[String]) -> Result<Exec, String>,
    ) -> Result<Self, String> {
        let question = if let Some(get) = &probe.http_get {
            if get.scheme.as_deref().unwrap_or("HTTP") != "HTTP" {
                return Err("probes by HTTPS are not asked here".to_owned());
            }
            let host = match &get.host {
                Some(host) => host.parse().map_err(|_| format!("probe host {host:?} is not an address"))?,
                None => address,
            };
            let headers = get.http_headers.iter().flatten();
            let address = SocketAddr::new(host, port(&get.port, container)?);
            Question::Get {
                address,
                host: address.to_string(),
                path: get.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned()),
                headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
            }
        } else if let Some(socket) = &probe.tcp_socket {
            let host = match &socket.host {
                Some(host) => host.parse().map_err(|_| format!("probe host {host:?} is not an address"))?,
                None => address,
            };
            Question::Connect(SocketAddr::new(host, port(&socket.port, container)?))
        } else if let Some(action) = &probe.exec {
            Question::Run(exec(action.command.as_deref().unwrap_or_default())?)
        } else {
            return Err("only probes by httpGet, tcpSocket and exec are asked here".to_owned());
        };
        let seconds = |given: Option<i32>, default: u64| {
            Duration::from_secs(given.and_then(|given| u64::try_from(given).ok()).unwrap_or(default))
        };
        let count = |given: Option<i32>, default| given.and_then(|given| u32::try_from(given).ok()).unwrap_or(default);
        Ok(Self {
            kind,
            question,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            patience: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: count(probe.success_threshold, 1).max(1),
            failures: count(probe.failure_threshold, 3).max(1),
        })
    }

    /// Asks for ever, and tells whenever what the answers add up to changes.
    pub async fn ask(self, tell: mpsc::Sender<(Kind, bool)>) {
        sleep(self.delay).await;
        let mut score = Score::default();
        loop {
            let next = Instant::now() + self.period;
            let answer = self.once().await;
            if let Some(verdict) = score.count(answer, self.successes, self.failures)
                && tell.send((self.kind, verdict)).await.is_err()
            {
                return;
            }
            // Readiness that has not held yet is looked at sooner, so that nobody waits for a period. The others count
            // their failures, and must not count faster.
            let soon = Instant::now() + EAGER;
            let eager = self.kind == Kind::Readiness && !score.held;
            sleep_until(if eager { next.min(soon) } else { next }).await;
        }
    }

    async fn once(&self) -> bool {
        let answer = async {
            match &self.question {
                Question::Connect(address) => TcpStream::connect(address).await.map(|_| true),
                Question::Run(exec) => exec.run().await,
                Question::Get { address, host, path, headers } => {
                    let mut stream = TcpStream::connect(address).await?;
                    let mut request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
                    request.push_str("user-agent: kube-probe/lab\r\n");
                    headers.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
                    stream.write_all(format!("{request}\r\n").as_bytes()).await?;
                    // Some servers keep the connection whatever they are asked: the first line is enough.
                    let mut line = Vec::new();
                    BufReader::new(stream.take(HEAD)).read_until(b'\n', &mut line).await?;
                    Ok(is_success(&line))
                }
            }
        };
        matches!(timeout(self.patience, answer).await, Ok(Ok(true)))
    }
}

/// Time between two questions while the answer has never been yes.
const EAGER: Duration = Duration::from_millis(250);

/// What the answers of one probe add up to.
#[derive(Debug, Default)]
struct Score {
    /// Whether it was yes at least once.
    held: bool,
    verdict: Option<bool>,
    last: bool,
    in_a_row: u32,
}

impl Score {
    /// Counts an answer. Returns the verdict when it is reached, and a failed one again whenever it is confirmed.
    fn count(&mut self, answer: bool, successes: u32, failures: u32) -> Option<bool> {
        self.in_a_row = if self.last == answer { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = answer;
        if self.in_a_row < if answer { successes } else { failures } || self.verdict == Some(answer) {
            return None;
        }
        self.held |= answer;
        self.verdict = Some(answer);
        self.verdict
    }
}

fn is_success(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let code = line.split(|byte| *byte == b' ').nth(1).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
    code.is_some_and(|code: u16| (200..400).contains(&code))
}

fn port(port: &IntOrString, container: &core::Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let found = ports.filter(|port| port.name.as_ref() == Some(name)).map(|port| port.container_port).next();
            found.ok_or_else(|| format!("a probe names port {name:?}, which the container does not have"))?
        }
    };
    u16::try_from(number).map_err(|_| format!("a probe names port {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_reached_by_answers_in_a_row_and_told_once() {
        let mut score = Score::default();
        let mut told = Vec::new();

        for answer in [false, true, true, false, false, true, false, false, false, false] {
            told.push(score.count(answer, 2, 3));
        }

        assert_eq!(told.iter().flatten().collect::<Vec<_>>(), [&true, &false]);
        assert_eq!(told[2], Some(true));
        assert_eq!(told[8], Some(false));
    }

    #[test]
    fn codes_below_400_are_success() {
        assert!(is_success(b"HTTP/1.1 200 OK\r\n"));
        assert!(is_success(b"HTTP/1.1 302 Found\r\n"));
        assert!(!is_success(b"HTTP/1.1 404 Not Found\r\n"));
        assert!(!is_success(b"HTTP/1.1 100 Continue\r\n"));
        assert!(!is_success(b"nonsense"));
        assert!(!is_success(b""));
    }

    #[test]
    fn a_port_goes_by_number_or_by_the_name_it_has_in_the_container() {
        let container = core::Container {
            ports: Some(vec![core::ContainerPort {
                name: Some("web".into()),
                container_port: 80,
                ..Default::default()
            }]),
            ..Default::default()
        };

        assert_eq!(port(&IntOrString::Int(8080), &container), Ok(8080));
        assert_eq!(port(&IntOrString::String("web".into()), &container), Ok(80));
        assert!(port(&IntOrString::String("db".into()), &container).is_err());
        assert!(port(&IntOrString::Int(-1), &container).is_err());
    }

    #[test]
    fn a_probe_that_cannot_be_asked_is_refused_in_words() {
        let probe = core::Probe { grpc: Some(core::GRPCAction::default()), ..Default::default() };
        let nothing = |_: &[String]| Err("nothing is run".to_owned());

        let refused = Probe::new(Kind::Liveness, &probe, [192, 0, 2, 1].into(), &core::Container::default(), nothing);

        assert!(refused.is_err_and(|error| error.contains("httpGet")));
    }
}
