//! `cargo lab`: the product on a small network of its own, shown at work. Arguments stand after `--`.

use std::{
    fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use ferrogate_integration::{
    kube::tools,
    kubelet::{launch, proxy},
    lab::{
        backend,
        event::{Options, Peer},
        report::Report,
        scenario::{Scenario, World},
    },
    netns, workspace,
};
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use tokio::signal::unix::{SignalKind, signal};

/// How long the inner process may take to clean up after a signal.
const FAREWELL: Duration = Duration::from_secs(5);

/// Lines of a log that are shown when something failed.
const TAIL: usize = 30;

/// Builds Ferrogate from this tree, runs it on a switch, three nodes and a client made of network namespaces, and
/// shows that it works. Nothing of it survives this command, and nothing leaves by this machine's own interfaces.
#[derive(Parser)]
#[command(name = "cargo lab --", bin_name = "cargo lab --", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// What to show
    #[arg(long, value_enum, default_value = "quickstart")]
    scenario: Scenario,
    /// Show it in a real Kubernetes cluster: the same as --scenario kubernetes
    #[arg(long, conflicts_with = "scenario")]
    kubernetes: bool,
    #[command(flatten)]
    measured: Options,
    /// Write the result as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave everything running until Enter or Ctrl-C, and say how to get inside
    #[arg(long)]
    keep: bool,
    /// Run this binary instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Be the inner process, with its files in this folder
    #[arg(long, value_name = "DIR", hide = true, requires = "binary")]
    inside: Option<PathBuf>,
    /// The inner process has a user namespace of its own
    #[arg(long, hide = true)]
    own_user: bool,
    #[command(subcommand)]
    command: Option<Other>,
}

#[derive(Subcommand)]
enum Other {
    /// Be a tiny backend: HTTP, and an echo by TCP and UDP
    Backend(backend::Config),
    /// Become the program of a container
    #[command(hide = true)]
    Container(launch::Config),
}

impl Arguments {
    fn scenario(&self) -> Scenario {
        if self.kubernetes { Scenario::Kubernetes } else { self.scenario }
    }

    /// What was asked for and does not go together.
    fn conflict(&self) -> Option<String> {
        let scenario = self.scenario();
        if !matches!(scenario, Scenario::L2 | Scenario::Bgp) {
            let wrong = "--runs, --event, --profile, --busy-seconds and --router belong to --scenario l2 and bgp";
            return self.measured.are_given().then(|| wrong.to_owned());
        }
        if scenario == Scenario::L2 && self.measured.router != Peer::Bird {
            return Some("--router belongs to --scenario bgp".to_owned());
        }
        let stranger = self.measured.stranger(scenario)?;
        Some(format!("{stranger} does not happen in scenario {}", scenario.name()))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(wrong) = arguments.conflict() {
        Arguments::command().error(ErrorKind::ArgumentConflict, wrong).exit();
    }
    let done = match (&arguments.command, &arguments.inside) {
        (Some(Other::Backend(config)), _) => serve(config.clone()),
        (Some(Other::Container(config)), _) => contain(config),
        (None, Some(folder)) => inside(&arguments, folder),
        (None, None) => outside(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("cargo lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn serve(config: backend::Config) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(backend::run(config)).context("serving")?;
    Ok(ExitCode::SUCCESS)
}

fn contain(config: &launch::Config) -> Result<ExitCode> {
    let Err(error) = launch::run(config);
    eprintln!("container: {error:#}");
    Ok(ExitCode::from(launch::FAILED))
}

/// The outer process: builds, leaves the machine's namespaces, starts the inner one and waits for it.
fn outside(arguments: &Arguments) -> Result<ExitCode> {
    let binary = match &arguments.binary {
        Some(binary) => fs::canonicalize(binary).with_context(|| format!("looking for {}", binary.display()))?,
        None => workspace::ship()?,
    };
    if arguments.scenario() == Scenario::Kubernetes {
        // Inside there is no network to fetch anything from.
        proxy::check()?;
        tools::KUBERNETES.build().context("building Kubernetes")?;
    }
    let folder = tempfile::Builder::new().prefix("ferrogate-lab-").tempdir().context("making a temporary folder")?;
    let mut command = Command::new(std::env::current_exe().context("looking for this program")?);
    command.args(std::env::args_os().skip(1)).arg("--inside").arg(folder.path());
    // Whatever else makes temporary files makes them in there.
    command.env("TMPDIR", folder.path());
    if arguments.binary.is_none() {
        command.arg("--binary").arg(&binary);
    }
    if netns::enter()? {
        command.arg("--own-user");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut child = tokio::process::Command::from(command).spawn().context("starting the inner process")?;
        let status = tokio::select! {
            status = child.wait() => return Ok(status?),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
            _ = hangup.recv() => None,
        };
        if let Some(id) = child.id() {
            let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGTERM);
        }
        if let Ok(status) = tokio::time::timeout(FAREWELL, child.wait()).await {
            return Ok(status?);
        }
        child.kill().await.context("ending the inner process")?;
        anyhow::Ok(status.unwrap_or_default())
    })?;
    folder.close().or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The inner process: process 1 of a process namespace, so that everything ends when it does.
fn inside(arguments: &Arguments, folder: &Path) -> Result<ExitCode> {
    // Read before a /proc of our own hides what the machine calls this process.
    let outer_name = fs::read_link("/proc/self").context("reading /proc")?;
    set_pdeathsig(Signal::SIGTERM).context("asking to be told when the outer process ends")?;
    leave_on_signal(folder.to_owned())?;
    netns::settle()?;
    netns::check()?;
    let binary = arguments.binary.as_ref().context("no binary")?;

    let scenario = arguments.scenario();
    println!("making the network of scenario {}", scenario.name());
    let mut world = World::new(scenario, &arguments.measured, binary, folder)?;
    let mut report = Report::new(scenario.name());
    world.show(scenario, &mut report);

    println!("\n{}", report.table());
    if !report.ok() {
        world.logs().iter().for_each(|log| show_tail(log));
    }
    if let Some(path) = &arguments.json {
        report.write(path).with_context(|| format!("writing {}", path.display()))?;
    }
    if arguments.keep {
        hint(arguments.own_user, &outer_name, &world);
        wait_for_enter();
    }
    Ok(if report.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// On a signal the process ends as a whole, and with it everything it started. The outer process removes the folder;
/// it is removed here too, for the case that the outer process was killed.
fn leave_on_signal(folder: PathBuf) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        if std::process::id() == 1 {
            // Everybody else here; what still wrote into the folder would keep it.
            let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        }
        let _ = fs::remove_dir_all(folder);
        std::process::exit(130);
    });
    Ok(())
}

fn show_tail(log: &Path) {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    println!("the end of {}:", log.file_name().unwrap_or_default().to_string_lossy());
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        println!("  | {line}");
    }
}

fn hint(own_user: bool, outer_name: &Path, world: &World) {
    let pid = outer_name.display();
    // Descriptors of this process hold the namespaces; only the root of its user namespace may enter them.
    let user = if own_user { format!("--preserve-credentials --user=/proc/{pid}/ns/user ") } else { String::new() };
    println!("it keeps running; {}", world.remote());
    println!("a shell in a namespace:");
    for namespace in world.namespaces() {
        let (name, descriptor) = (namespace.name(), namespace.descriptor());
        println!("  {name:<8} nsenter {user}--net=/proc/{pid}/fd/{descriptor} $SHELL");
    }
    println!("press Enter or Ctrl-C to end it");
}

fn wait_for_enter() {
    if io::stdin().is_terminal() {
        let _ = io::stdin().read_line(&mut String::new());
    } else {
        // Nobody can press a key; the signal that ends this process is what it waits for.
        loop {
            thread::park();
        }
    }
}
