//! Processes that end with us, however we end.
//!
//! The kernel ties such a child to the *thread* that started it. A test's thread ends with the test, so children are
//! started by a [`Keeper`]: a thread that does nothing else and lives as long as its owner.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Sender, channel},
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

type Job = Box<dyn FnOnce() + Send>;

/// A thread on which children are started. It stays in the network namespace in which it was made.
#[derive(Debug)]
pub struct Keeper {
    jobs: Sender<Job>,
}

impl Keeper {
    /// Starts the thread. It ends, and with it what it started, when the last of those who hold it lets go.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start() -> io::Result<Self> {
        let (jobs, work) = channel::<Job>();
        thread::Builder::new().name("keeper".to_owned()).spawn(move || work.into_iter().for_each(|job| job()))?;
        Ok(Self { jobs })
    }

    /// Does something quick on that thread, and so in its namespace. Threads that are made there inherit it.
    ///
    /// # Errors
    /// When the work panicked.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = channel();
        // Nobody listens any more when the caller has ended.
        let job = Box::new(move || drop(answer.send(work())));
        self.jobs.send(job).map_err(|_| anyhow!("the thread that starts processes has ended"))?;
        answered.recv().context("the thread that starts processes has panicked")
    }

    /// Starts a program that is killed when this thread ends.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        let text = format!("{command:?}");
        self.run(move || command.spawn())?.with_context(|| format!("starting {text}"))
    }
}

/// The command that runs a program so that it is killed with the thread that starts it.
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).stdin(Stdio::null());
    command
}

/// A process with a log. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command made by [`tied`], its output added to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn start(keeper: &Keeper, name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("opening {}", log.display()))?;
        command.stdout(output.try_clone()?).stderr(output);
        Ok(Self { name: name.to_owned(), child: keeper.spawn(command)?, log: log.to_owned() })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// The last lines it has printed, under its name.
    pub fn tail(&self, lines: usize) -> String {
        let text = self.output();
        let all: Vec<_> = text.lines().collect();
        let last = all[all.len().saturating_sub(lines)..].join("\n  | ");
        format!("the end of what {} printed:\n  | {last}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it_and_ends_with_its_keeper() {
        let keeper = Keeper::start().unwrap();
        let mut command = tied("cat");
        let (mut reader, writer) = io::pipe().unwrap();
        command.stdin(Stdio::piped()).stdout(writer);

        let mut child = thread::scope(|scope| scope.spawn(|| keeper.spawn(command).unwrap()).join().unwrap());
        // An echo tells that it runs, the asking thread being gone.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let mut echo = [0];
        reader.read_exact(&mut echo).unwrap();
        drop(keeper);

        assert_eq!(echo, *b"x");
        assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0);
        assert!(!child.wait().unwrap().success());
    }
}
