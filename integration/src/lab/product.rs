//! The product as it ships: one controller, and a speaker and a proxy on each node, each its own process.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    lab::{topology::Topology, wait::until},
    netns::Namespace,
};

/// Admin ports, as the product has them by default; each node has a loopback of its own.
const CONTROLLER_ADMIN: u16 = 17480;
const SPEAKER_ADMIN: u16 = 17481;
/// Where a speaker asks whether its node's proxy is ready.
pub const PROXY_ADMIN: u16 = 17482;

/// A process has this long to say that it is ready.
const START: Duration = Duration::from_secs(15);

/// A process that was asked to end has this long to do so.
const END: Duration = Duration::from_secs(15);

/// One process of the product.
#[derive(Debug)]
struct Process {
    role: &'static str,
    node: usize,
    admin: u16,
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Binary, folders and processes.
#[derive(Debug)]
pub struct Product {
    binary: PathBuf,
    folder: PathBuf,
    speaker_flags: Vec<String>,
    processes: Vec<Process>,
}

impl Product {
    /// Lays out the folders of a run below `folder`: the manifests of a quickstart, as the lab changes them.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn new(binary: &Path, folder: &Path, example: &Path) -> Result<Self> {
        let product = Self::without_manifests(binary, folder)?;
        for source in ["manifests", "lab"] {
            let source = example.join(source);
            for entry in fs::read_dir(&source).with_context(|| format!("reading {}", source.display()))? {
                let path = entry?.path();
                let name = path.file_name().context("a file without a name")?;
                fs::copy(&path, product.manifests().join(name))
                    .with_context(|| format!("copying {}", path.display()))?;
            }
        }
        Ok(product)
    }

    /// Lays out the folders of a run below `folder`, without anything in them.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn without_manifests(binary: &Path, folder: &Path) -> Result<Self> {
        let (binary, folder) = (binary.to_owned(), folder.to_owned());
        let product = Self { binary, folder, speaker_flags: Vec::new(), processes: Vec::new() };
        for made in [product.manifests(), product.state(), product.logs()] {
            fs::create_dir_all(&made).with_context(|| format!("making {}", made.display()))?;
        }
        Ok(product)
    }

    /// Starts speakers with these flags too.
    #[must_use]
    pub fn with_speaker_flags(mut self, flags: &[&str]) -> Self {
        self.speaker_flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Writes a manifest as editors do: by a rename.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.manifests().join(name);
        let new = path.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, &path).with_context(|| format!("replacing {}", path.display()))
    }

    /// What users write.
    pub fn manifests(&self) -> PathBuf {
        self.folder.join("manifests")
    }

    /// What the product writes.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// What the processes print.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Starts every process. The controller runs on the first node.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(&mut self, topology: &Topology) -> Result<()> {
        self.start_one(topology, "controller", 0)?;
        for node in 0..topology.nodes.len() {
            self.start_one(topology, "speaker", node)?;
            self.start_one(topology, "proxy", node)?;
        }
        Ok(())
    }

    /// Starts one process; its output is added to its log.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_one(&mut self, topology: &Topology, role: &'static str, node: usize) -> Result<()> {
        let admin = match role {
            "controller" => CONTROLLER_ADMIN,
            "speaker" => SPEAKER_ADMIN,
            _ => PROXY_ADMIN,
        };
        let place = &topology.nodes[node];
        let log = self.logs().join(format!("{role}-{}.log", place.name));
        let log = File::options().create(true).append(true).open(&log).context("opening a log")?;
        let mut command = self.command(&[role]);
        if role != "controller" {
            command.args(["--node", &place.name]);
        }
        if role == "speaker" {
            command.args(&self.speaker_flags);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = place.namespace.spawn(&mut command);
        let child = child.with_context(|| format!("starting {role} on {}", place.name))?;
        self.processes.push(Process { role, node, admin, child });
        Ok(())
    }

    /// Kills one process without a warning.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&mut self, role: &str, node: usize) -> Result<()> {
        self.signal(role, node, Signal::SIGKILL)?;
        self.forget(role, node)
    }

    /// Asks one process to end, and waits until it has.
    ///
    /// # Errors
    /// When there is none, or it does not end in time or well.
    pub fn stop(&mut self, role: &str, node: usize) -> Result<()> {
        self.signal(role, node, Signal::SIGTERM)?;
        let at = self.find(role, node)?;
        let ended = until(END, || self.processes[at].child.try_wait()?.context("it still runs"));
        let ended = ended.with_context(|| format!("{role} {node} was asked to end"))?;
        ensure!(ended.success(), "{role} {node} was asked to end: {ended}");
        self.forget(role, node)
    }

    /// Sends one process a signal.
    ///
    /// # Errors
    /// When there is none.
    pub fn signal(&self, role: &str, node: usize, signal: Signal) -> Result<()> {
        let pid = self.pid(role, node)?;
        kill(Pid::from_raw(pid.cast_signed()), signal).with_context(|| format!("sending {signal} to {role} {node}"))
    }

    /// The number of one process.
    ///
    /// # Errors
    /// When there is none.
    pub fn pid(&self, role: &str, node: usize) -> Result<u32> {
        Ok(self.processes[self.find(role, node)?].child.id())
    }

    fn find(&self, role: &str, node: usize) -> Result<usize> {
        let found = self.processes.iter().position(|process| process.role == role && process.node == node);
        found.with_context(|| format!("no {role} runs on node {node}"))
    }

    fn forget(&mut self, role: &str, node: usize) -> Result<()> {
        drop(self.processes.swap_remove(self.find(role, node)?));
        Ok(())
    }

    /// What the speaker of a node says of itself, in the text format of metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn speaker_metrics(&self, topology: &Topology, node: usize) -> Result<String> {
        ask(&topology.nodes[node].namespace, SPEAKER_ADMIN, "/metrics")
    }

    /// The sum of all series of one metric of a node's speaker.
    ///
    /// # Errors
    /// When it does not answer, or has no such metric.
    pub fn speaker_metric(&self, topology: &Topology, node: usize, name: &str) -> Result<f64> {
        sum(&self.speaker_metrics(topology, node)?, name)
            .with_context(|| format!("the speaker of {} has no {name}", topology.nodes[node].name))
    }

    /// Waits until every process says that it is ready.
    ///
    /// # Errors
    /// When one does not, or has ended.
    pub fn wait_ready(&mut self, topology: &Topology) -> Result<String> {
        for process in &mut self.processes {
            let place = &topology.nodes[process.node];
            let ended = |child: &mut Child| child.try_wait().ok().flatten();
            let answer = until(START, || {
                if let Some(status) = ended(&mut process.child) {
                    return Ok(Err(status));
                }
                ready(&place.namespace, process.admin).map(Ok)
            });
            match answer.with_context(|| format!("{} on {} is not ready", process.role, place.name))? {
                Ok(()) => {}
                Err(status) => bail!("{} on {} has ended: {status}", process.role, place.name),
            }
        }
        Ok(format!("{} processes", self.processes.len()))
    }

    /// Asks the product to explain a Service, as a person on the first node would. Returns the text.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn explain(&self, topology: &Topology, service: &str) -> Result<String> {
        let mut command = self.command(&["explain", "service", service]);
        let output = topology.nodes[0].namespace.run(|| command.output()).context("running explain")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(words).arg("--manifests").arg(self.manifests()).arg("--state").arg(self.state());
        command
    }
}

/// Whether the process behind an admin port says that it is ready.
fn ready(namespace: &Namespace, admin: u16) -> Result<()> {
    ask(namespace, admin, "/readyz").map(drop)
}

/// What is answered at an admin port; fails unless that is a 200.
fn ask(namespace: &Namespace, admin: u16, path: &str) -> Result<String> {
    namespace.run(|| {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, admin)))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{}", answer.lines().last().unwrap_or("no answer"));
        Ok(answer)
    })
}

/// The sum of all series of a metric in the text format.
fn sum(text: &str, name: &str) -> Option<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (_, value) = rest.strip_prefix('{').map_or(Some(("", rest)), |labels| labels.rsplit_once('}'))?;
        value.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
    };
    text.lines().filter_map(value).fold(None, |sum, value| Some(sum.unwrap_or_default() + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_one_metric_are_summed_and_longer_names_are_others() {
        let text = "# HELP answers Questions.\nanswers_total{family=\"Ipv4\"} 3\nanswers_total{family=\"Ipv6\"} 4\n\
                    members 2\nmembers_ever 9\n";

        assert_eq!(sum(text, "answers_total"), Some(7.0));
        assert_eq!(sum(text, "members"), Some(2.0));
        assert_eq!(sum(text, "answers"), None);
    }
}
