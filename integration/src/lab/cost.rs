//! What a process of the product takes, and a proxy that is always ready, for those who measure a speaker alone.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::{prctl::set_pdeathsig, signal::Signal};

use super::product::PROXY_ADMIN;
use crate::{netns, workspace};

/// What a program that measures the cost of speakers is told.
#[derive(Parser)]
struct Args {
    /// Length of one measurement, in seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// The binary to measure; by default the one of this tree, built first
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Be the inner process, with its files in this folder
    #[arg(long, value_name = "DIR", hide = true, requires = "binary")]
    inside: Option<PathBuf>,
}

/// Measures in namespaces of its own: the binary, with its files in a folder, for a time. Whatever way this ends, the
/// kernel ends everything that was started.
pub fn measure(seconds: u64, inside: impl FnOnce(&Path, &Path, Duration) -> Result<ExitCode>) -> ExitCode {
    let args = Args::parse();
    let seconds = args.seconds.unwrap_or(seconds);
    let done = match (&args.inside, &args.binary) {
        (Some(folder), Some(binary)) => settle().and_then(|()| inside(binary, folder, Duration::from_secs(seconds))),
        _ => outside(args.binary.as_deref(), seconds),
    };
    done.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

/// Leaves the machine's namespaces and starts the inner process.
fn outside(binary: Option<&Path>, seconds: u64) -> Result<ExitCode> {
    let binary = match binary {
        Some(binary) => fs::canonicalize(binary).with_context(|| format!("looking for {}", binary.display()))?,
        None => workspace::ship()?,
    };
    let folder = tempfile::tempdir()?;
    netns::enter()?;
    let mut command = Command::new(std::env::current_exe().context("looking for this program")?);
    command.arg("--binary").arg(binary).arg("--inside").arg(folder.path());
    let status = command.args(["--seconds", &seconds.to_string()]).status().context("starting the inner process")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn settle() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("asking to end with the outer process")?;
    netns::settle()?;
    netns::check()
}

/// CPU time that all threads of a process have taken, in nanoseconds, and how often one of them had waited and went on.
///
/// # Errors
/// When there is no such process in the `/proc` that is seen.
pub fn taken(pid: u32) -> Result<(u64, u64)> {
    let (mut cpu, mut wakes) = (0, 0);
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("this needs a /proc of its own")? {
        let task = task?.path();
        let schedstat = fs::read_to_string(task.join("schedstat"))?;
        cpu += schedstat.split(' ').next().unwrap_or_default().parse::<u64>()?;
        wakes += field(&fs::read_to_string(task.join("status"))?, "voluntary_ctxt_switches:")?;
    }
    Ok((cpu, wakes))
}

/// CPU time that the threads of this name in a process have taken, in nanoseconds.
///
/// # Errors
/// When there is no such thread in the `/proc` that is seen.
pub fn taken_by(pid: u32, name: &str) -> Result<u64> {
    let mut cpu = None;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("this needs a /proc of its own")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim_end() == name {
            let schedstat = fs::read_to_string(task.join("schedstat"))?;
            *cpu.get_or_insert(0) += schedstat.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
    }
    cpu.with_context(|| format!("process {pid} has no thread {name}"))
}

/// What of a process's memory is resident, in MiB.
///
/// # Errors
/// When there is no such process in the `/proc` that is seen.
pub fn resident_mib(pid: u32) -> Result<f64> {
    Ok(field(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:")? as f64 / 1024.0)
}

/// What of a process's resident memory is its own and no file's, in MiB.
///
/// # Errors
/// When there is no such process in the `/proc` that is seen.
pub fn own_mib(pid: u32) -> Result<f64> {
    Ok(field(&fs::read_to_string(format!("/proc/{pid}/status"))?, "RssAnon:")? as f64 / 1024.0)
}

/// What of a process's memory has been resident at most since [`forget_peak`], in MiB.
///
/// # Errors
/// When there is no such process in the `/proc` that is seen.
pub fn peak_mib(pid: u32) -> Result<f64> {
    Ok(field(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmHWM:")? as f64 / 1024.0)
}

/// Begins anew to watch for the most that is resident.
///
/// # Errors
/// When there is no such process in the `/proc` that is seen, or it is somebody else's.
pub fn forget_peak(pid: u32) -> Result<()> {
    // proc_pid_clear_refs(5).
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the peak of a process")
}

/// A number of `/proc/PID/status`.
fn field(status: &str, name: &str) -> Result<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    let value = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("no {name} in /proc"))
}

/// Says to whoever asks, on a connection that stays, that the proxy of this node is ready.
///
/// # Errors
/// When something else listens where a proxy does.
pub fn say_ready() -> io::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, PROXY_ADMIN)))?;
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || answer(stream));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) {
    let mut buffer = [0; 1024];
    // A question fits into one read, and the next one comes after its answer.
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        // Who asks to hear of a change is told each second that there is none.
        if String::from_utf8_lossy(&buffer[..length]).contains("?while=ready ") {
            thread::sleep(Duration::from_secs(1));
        }
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
            return;
        }
    }
}
