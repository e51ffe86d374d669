//! `cargo verify`: every check, one command. Arguments stand after `--`: `cargo verify -- --only unit`.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use cargo_metadata::Metadata;
use clap::{Parser, ValueEnum};
use ferrogate_integration::{
    verify::{
        Length, Stage, kernel,
        needs::{self, Need},
        plan::{self, Counts, Step},
        report::{self, Tally},
        run::{self, Budget, End},
    },
    workspace,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// First lines that are shown of a log, or of what one test has printed, when it failed: why it did, before the logs of
/// others.
const HEAD: usize = 20;

/// Last lines of it that are shown.
const TAIL: usize = 50;

/// Runs every check of this repository and closes with `N passed, N failed`.
#[derive(Parser)]
#[command(name = "cargo verify --", bin_name = "cargo verify --")]
struct Arguments {
    /// Run only this stage; may be given more than once.
    #[arg(long, value_name = "STAGE", value_enum)]
    only: Vec<Stage>,
    /// Run the soaks and large tables too: more seeds, more inputs, more runs of the lab.
    #[arg(long)]
    long: bool,
    /// Print what would have to be installed, and stop if there is something.
    #[arg(long)]
    no_install: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let stop = CancellationToken::new();
    match verify(Arguments::parse(), &stop).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo verify: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn verify(arguments: Arguments, stop: &CancellationToken) -> Result<bool> {
    stop_on_signals(stop.clone())?;
    let length = if arguments.long { Length::Long } else { Length::Short };
    let mut stages = if arguments.only.is_empty() { Stage::value_variants().to_vec() } else { arguments.only };
    stages.sort();
    stages.dedup();
    let members = workspace::members()?;
    let logs = members.target_directory.join("verify").into_std_path_buf();

    prepare(&stages, arguments.no_install, &logs, stop).await?;
    let mut ahead = build_ahead(&stages, &logs, stop)?;
    let mut verifier =
        Verifier { members, logs, length, stop: stop.clone(), total: Tally::default(), notes: Vec::new() };
    let begun = Instant::now();
    let done = verifier.stages(&stages, &mut ahead).await;
    if done.is_err() && !ahead.is_finished() {
        // It would go on without us.
        stop.cancel();
        let _ = ahead.await;
    }
    done?;
    for note in &verifier.notes {
        println!("{note}");
    }
    println!("took {}", minutes(begun.elapsed()));
    println!("{}", verifier.total);
    Ok(verifier.total.failed == 0)
}

fn stop_on_signals(stop: CancellationToken) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}

/// Installs what is missing, saying what; or says what would have to be installed, and fails.
async fn prepare(stages: &[Stage], no_install: bool, logs: &Path, stop: &CancellationToken) -> Result<()> {
    let missing = needs::missing(stages);
    let advice = |need: &Need| format!("missing: {}; install it with: {}", need.name, need.advice());
    if no_install && !missing.is_empty() {
        missing.iter().for_each(|need| println!("{}", advice(need)));
        bail!("{} things are missing and --no-install was given", missing.len());
    }
    for need in missing {
        if let Some(obstacle) = need.obstacle() {
            bail!("{}; {obstacle}", advice(&need));
        }
        let log = run::log_file(logs, "install", need.name.split([' ', ':']).next().unwrap_or(need.name))?;
        for command in need.remedy() {
            println!("installing {}: {command}", need.name);
            match run::run(&command, &log, None, stop).await? {
                End::Exit(status) if status.success() => {}
                end => {
                    show_failures(&log);
                    bail!("{command}: {end:?}");
                }
            }
        }
    }
    Ok(())
}

/// Begins what takes long to build. What does not build is told by the stage that needs it.
fn build_ahead(stages: &[Stage], logs: &Path, stop: &CancellationToken) -> Result<JoinHandle<()>> {
    let (builds, stop) = (plan::ahead(stages)?, stop.clone());
    let log = run::log_file(logs, "build", "ahead")?;
    Ok(tokio::spawn(async move {
        for build in builds {
            if !matches!(run::run(&build.nice(), &log, None, &stop).await, Ok(End::Exit(status)) if status.success()) {
                return;
            }
        }
    }))
}

struct Verifier {
    members: Metadata,
    logs: PathBuf,
    length: Length,
    stop: CancellationToken,
    total: Tally,
    notes: Vec<String>,
}

impl Verifier {
    /// Runs them. Nothing is built beside those from [`Stage::Net`] on: they have real clocks.
    async fn stages(&mut self, stages: &[Stage], ahead: &mut JoinHandle<()>) -> Result<()> {
        for stage in stages {
            if *stage >= Stage::Net && !ahead.is_finished() {
                self.progress("what ships, and what the next stages need, is built");
                (&mut *ahead).await.context("building ahead")?;
            }
            self.stage(*stage).await?;
        }
        Ok(())
    }

    async fn stage(&mut self, stage: Stage) -> Result<()> {
        let mut budget = Budget::new(stage.budget(self.length));
        let mut build = Duration::ZERO;
        let mut tally = Tally::default();
        let mut failures = Vec::new();
        match plan::steps(stage, self.length, &self.members) {
            Err(error) => {
                tally += Tally::one(false);
                failures.push((format!("{error:#}"), None));
            }
            Ok(steps) => {
                for step in steps {
                    self.progress(&format!("{:<9} {}", stage.name(), step.name));
                    let log = run::log_file(&self.logs, stage.name(), &step.name)?;
                    let (found, failure) = self.step(&step, &log, &mut budget, &mut build).await?;
                    tally += found;
                    failures.extend(failure.map(|text| (format!("{}: {text}", step.name), Some(log))));
                }
            }
        }
        self.clear_progress();
        let verdict = if tally.failed == 0 { "ok  " } else { "FAIL" };
        println!(
            "{:<9} {verdict}  {:<24} {:>8} of {} min, builds {}",
            stage.name(),
            tally.to_string(),
            minutes(budget.spent()),
            stage.budget(self.length).as_secs() / 60,
            minutes(build),
        );
        for (text, log) in failures {
            println!("  {text}");
            if let Some(log) = log {
                show_failures(&log);
            }
        }
        self.notes.extend(kernel::not_run(stage));
        if self.length == Length::Short {
            self.notes.extend(stage.shortened().map(|text| format!("shortened: {text} with --long")));
        }
        self.total += tally;
        Ok(())
    }

    /// Builds and runs one step; says what it counts for, and what went wrong beyond single tests.
    async fn step(
        &mut self,
        step: &Step,
        log: &Path,
        budget: &mut Budget,
        build: &mut Duration,
    ) -> Result<(Tally, Option<String>)> {
        let begun = Instant::now();
        for command in &step.build {
            match run::run(command, log, None, &self.stop).await? {
                End::Exit(status) if status.success() => {}
                End::Stopped => bail!("stopped"),
                end => return Ok((Tally::one(false), Some(format!("does not build: {command}: {}", told(&end))))),
            }
        }
        *build += begun.elapsed();
        if budget.left().is_zero() {
            return Ok((Tally::one(false), Some("no time was left of the budget".to_owned())));
        }

        let begun = Instant::now();
        let end = run::run(&step.command, log, Some(budget.left()), &self.stop).await?;
        budget.spend_since(begun);
        let succeeded = match &end {
            End::Stopped => bail!("stopped"),
            End::Exit(status) => status.success(),
            End::Overrun => false,
        };
        let failure = (!succeeded).then(|| format!("{}: {}", step.command, told(&end)));
        if step.counts == Counts::ExitCode {
            return Ok((Tally::one(succeeded), failure));
        }
        let text = std::fs::read(log).with_context(|| format!("reading {}", log.display()))?;
        let mut found = report::read(&String::from_utf8_lossy(&text));
        for (name, reason) in found.ignored {
            match reason {
                Some(reason) => self.notes.push(format!("not run: {name}: {reason}")),
                None => {
                    self.notes.push(format!("not run: {name}: it gives no reason, so it counts as failed"));
                    found.tally += Tally::one(false);
                }
            }
        }
        if !succeeded && found.tally.failed == 0 {
            found.tally += Tally::one(false);
        }
        Ok((found.tally, failure))
    }

    fn progress(&self, what: &str) {
        if std::io::stdout().is_terminal() {
            print!("\r\x1b[K{what} …");
            let _ = std::io::stdout().flush();
        }
    }

    fn clear_progress(&self) {
        if std::io::stdout().is_terminal() {
            print!("\r\x1b[K");
        }
    }
}

fn told(end: &End) -> String {
    match end {
        End::Exit(status) => status.to_string(),
        End::Overrun => "killed, because the stage is over its budget".to_owned(),
        End::Stopped => "stopped".to_owned(),
    }
}

/// Shows how what the tests that failed have printed begins and ends, or how a log does that has none.
fn show_failures(log: &Path) {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut shown = report::failures(&text);
    if shown.is_empty() {
        shown.push(text.lines().collect());
    }
    println!("  from {}:", log.display());
    for lines in shown {
        let (head, rest) = lines.split_at(lines.len().min(HEAD));
        let (left_out, tail) = rest.split_at(rest.len().saturating_sub(TAIL));
        head.iter().for_each(|line| println!("  | {line}"));
        if !left_out.is_empty() {
            println!("  ({} lines left out)", left_out.len());
        }
        tail.iter().for_each(|line| println!("  | {line}"));
    }
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0)
    }
}
