//! Running commands: into a log, within a limit, and never leaving anything behind.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio_util::sync::CancellationToken;

use crate::workspace::Command;

/// How a command ended.
#[derive(Debug)]
pub enum End {
    /// By itself.
    Exit(ExitStatus),
    /// It took longer than it may and was killed.
    Overrun,
    /// The user wants to stop.
    Stopped,
}

/// Runs a command with its output in a log, for at most `limit`.
///
/// It gets a process group of its own, which is killed as a whole at the limit, when `stop` is cancelled, and when the
/// command has ended but left something behind. It reads nothing from the terminal.
///
/// # Errors
/// When it cannot be started.
pub async fn run(command: &Command, log: &Path, limit: Option<Duration>, stop: &CancellationToken) -> Result<End> {
    let output = File::options().create(true).append(true).open(log).context("opening the log")?;
    let mut command_line = command.to_std();
    command_line.env("CI", "true").env("CARGO_TERM_COLOR", "never").stdin(Stdio::null());
    // Stack frames would push the reason of a failure out of what is shown of a log.
    command_line.env("RUST_BACKTRACE", "0");
    command_line.stdout(output.try_clone()?).stderr(output);
    let mut command_line = tokio::process::Command::from(command_line);
    let mut child = command_line.process_group(0).spawn().with_context(|| format!("starting {command}"))?;
    let group = Pid::from_raw(child.id().context("the command ended before it began")?.cast_signed());
    let patience = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        status = child.wait() => End::Exit(status?),
        () = patience => End::Overrun,
        () = stop.cancelled() => End::Stopped,
    };
    // No such group any more is the usual and welcome answer.
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait().await;
    Ok(end)
}

/// A log file of this run; what an earlier run left there is gone.
///
/// # Errors
/// When the folder cannot be written.
pub fn log_file(folder: &Path, stage: &str, step: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let path = folder.join(format!("{stage}-{step}.log"));
    File::create(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

/// Time spent and left of a budget.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    whole: Duration,
    spent: Duration,
}

impl Budget {
    /// Nothing spent yet.
    pub fn new(whole: Duration) -> Self {
        Self { whole, spent: Duration::ZERO }
    }

    /// What is left.
    pub fn left(&self) -> Duration {
        self.whole.saturating_sub(self.spent)
    }

    /// What was spent.
    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// Counts the time since `start` as spent.
    pub fn spend_since(&mut self, start: Instant) {
        self.spent += start.elapsed();
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::fs::OpenOptionsExt};

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    fn shell(script: &str) -> Command {
        Command::new("sh").args(["-c", script])
    }

    #[tokio::test]
    async fn an_overrun_kills_what_the_command_started_too() {
        let folder = tempfile::tempdir().unwrap();
        let log = log_file(folder.path(), "unit", "overrun").unwrap();
        // The grandchild holds the write end of a pipe; reading to its end proves that it is gone.
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut reader = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&pipe).unwrap();
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let script = shell(&format!("sleep 600 > {} & wait", pipe.display()));

        let end = run(&script, &log, Some(Duration::from_millis(300)), &CancellationToken::new()).await.unwrap();

        assert!(matches!(end, End::Overrun));
        assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0);
    }

    #[tokio::test]
    async fn output_goes_to_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = log_file(folder.path(), "unit", "echo").unwrap();

        let end = run(&shell("echo out; echo err >&2; exit 3"), &log, None, &CancellationToken::new()).await.unwrap();

        assert!(matches!(end, End::Exit(status) if status.code() == Some(3)));
        assert_eq!(std::fs::read_to_string(log).unwrap(), "out\nerr\n");
    }

    #[tokio::test]
    async fn stopping_ends_a_command_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let log = log_file(folder.path(), "unit", "stop").unwrap();
        let stop = CancellationToken::new();
        stop.cancel();

        let end = run(&shell("sleep 600"), &log, None, &stop).await.unwrap();

        assert!(matches!(end, End::Stopped));
    }
}
