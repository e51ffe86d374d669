//! The product beside a control plane, with the rights it has as installed.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::{
    ControlPlane,
    clock::ClockOfDay,
    http1,
    install::NAMESPACE,
    process::{Process, tied},
};
use crate::{lab::wait::until, workspace};

/// How long a process may take until it says that it is ready.
const READY: Duration = Duration::from_secs(30);

/// Lines that are shown of one that fails.
const TAIL: usize = 40;

/// One process of the product: `ferrogate controller`, say. It is killed when this is dropped.
#[derive(Debug)]
pub struct Ferrogate {
    process: Process,
    admin: SocketAddr,
}

impl Ferrogate {
    /// Starts a role with the token of its ServiceAccount, `ferrogate-ROLE` of our namespace. `name` tells it apart
    /// from others of its kind, in its log's name too.
    ///
    /// # Errors
    /// When the product does not build, there is no such ServiceAccount, or it cannot be started.
    pub fn start(plane: &ControlPlane, role: &str, name: &str, flags: &[&str]) -> Result<Self> {
        let kubeconfig = plane.service_account_kubeconfig(NAMESPACE, &format!("ferrogate-{role}"))?;
        Self::start_as(plane, role, name, flags, kubeconfig)
    }

    /// The same with a kubeconfig of somebody else's.
    ///
    /// # Errors
    /// When the product does not build or cannot be started.
    pub fn start_as(plane: &ControlPlane, role: &str, name: &str, flags: &[&str], kubeconfig: PathBuf) -> Result<Self> {
        Self::run(plane, role, name, flags, kubeconfig, tied(workspace::ship()?))
    }

    /// The same under a clock of day of its own, and so not the binary that ships.
    ///
    /// # Errors
    /// When the product does not build or cannot be started.
    pub fn start_under(
        clock: &ClockOfDay,
        plane: &ControlPlane,
        role: &str,
        name: &str,
        kubeconfig: PathBuf,
    ) -> Result<Self> {
        let mut command = tied(workspace::debug()?);
        clock.rule(&mut command);
        Self::run(plane, role, name, &[], kubeconfig, command)
    }

    fn run(
        plane: &ControlPlane,
        role: &str,
        name: &str,
        flags: &[&str],
        kubeconfig: PathBuf,
        mut command: Command,
    ) -> Result<Self> {
        let [second, third, fourth] = rand::random::<[u8; 3]>();
        let address = IpAddr::V4(Ipv4Addr::new(127, second.max(1), third, fourth.clamp(1, 254)));
        let admin = SocketAddr::new(address, 17480);
        command.arg(role).arg("--admin").arg(admin.to_string()).args(flags);
        command.env("KUBECONFIG", kubeconfig).env("RUST_LOG", "info");
        let log = plane.folder().join(format!("{role}-{name}.log"));
        Ok(Self { process: Process::start(plane.keeper(), role, command, &log)?, admin })
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it does not, or has ended; the text shows what it printed last.
    pub fn wait_ready(&mut self) -> Result<()> {
        let answer = until(READY, || match self.process.ended()? {
            Some(status) => Ok(Err(status)),
            None => self.get("/readyz").map(Ok),
        });
        match answer {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => bail!("it has ended: {status}\n{}", self.process.tail(TAIL)),
            Err(error) => Err(error).with_context(|| format!("not ready\n{}", self.process.tail(TAIL))),
        }
    }

    /// What its admin listener answers.
    ///
    /// # Errors
    /// When it does not answer with 200.
    pub fn get(&self, path: &str) -> Result<String> {
        http1::ask(self.admin, "GET", path, "")
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait()
    }
}
