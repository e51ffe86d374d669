//! Which commands a stage consists of.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::{Metadata, TargetKind};

use super::{Length, Stage};
use crate::workspace::{Command, developing, shipping};

/// The variable that tells the simulator's tests how many seeds to run.
pub const SEEDS: &str = "FERROGATE_SIM_SEEDS";

/// The variable that tells the lab's tests how often to run it.
pub const LAB_RUNS: &str = "FERROGATE_LAB_RUNS";

/// One check: what must be built for it, the command, and how its verdict is read.
#[derive(Debug)]
pub struct Step {
    /// Short, for the log file and the report.
    pub name: String,
    /// Built first, outside of the budget.
    pub build: Vec<Command>,
    /// The check itself.
    pub command: Command,
    /// What counts as one check.
    pub counts: Counts,
}

/// How the verdict of a step is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// The exit code is one verdict.
    ExitCode,
    /// Every `test result:` line is summed.
    Tests,
}

/// The steps of a stage.
///
/// # Errors
/// When cargo cannot be asked what there is to run, or there is nothing.
pub fn steps(stage: Stage, length: Length, members: &Metadata) -> Result<Vec<Step>> {
    let steps = match stage {
        Stage::Lint => lint(),
        Stage::Fuzz => fuzz(length, members)?,
        Stage::Bgp => {
            let mut step = targets(stage, members)?;
            step.build.insert(0, shipping()?.0);
            vec![step]
        }
        Stage::Unit => {
            let mut steps = vec![
                tests("unit", ["--workspace", "--lib", "--bins"]),
                // Documentation tests cannot be built apart.
                Step {
                    name: "doc".to_owned(),
                    build: Vec::new(),
                    command: Command::cargo(["test", "--locked", "--no-fail-fast", "--workspace", "--doc"]),
                    counts: Counts::Tests,
                },
            ];
            steps.push(targets(stage, members)?);
            steps
        }
        Stage::Sim => {
            let mut step = targets(stage, members)?;
            step.command = step.command.env(SEEDS, length.seeds().to_string());
            vec![step]
        }
        Stage::Kube => {
            let ((product, _), (debug, _)) = (shipping()?, developing()?);
            let mut step = targets(stage, members)?;
            step.build.splice(0..0, [product, debug]);
            step.build.push(tools());
            vec![step]
        }
        Stage::Net | Stage::Examples => {
            let ((product, _), (debug, _)) = (shipping()?, developing()?);
            let mut step = targets(stage, members)?;
            // The READMEs start what a developer builds, too.
            step.build.splice(0..0, [product, debug]);
            step.command = step.command.env(LAB_RUNS, length.lab_runs().to_string());
            vec![step]
        }
    };
    Ok(steps)
}

/// What takes longest to build, in the order in which it is needed, where other stages come first. It is begun with them and has
/// what they leave of the processors: much of it goes on one at a time.
///
/// # Errors
/// When cargo cannot be asked where things are.
pub fn ahead(stages: &[Stage]) -> Result<Vec<Command>> {
    let mut builds = Vec::new();
    if stages.first().is_none_or(|first| *first >= Stage::Net) {
        return Ok(builds);
    }
    let has = |wanted: &[Stage]| stages.iter().any(|stage| wanted.contains(stage));
    if has(&[Stage::Net, Stage::Bgp, Stage::Kube, Stage::Examples]) {
        builds.push(shipping()?.0);
    }
    if has(&[Stage::Kube]) {
        builds.push(tools());
    }
    Ok(builds)
}

/// Builds the control plane.
fn tools() -> Command {
    Command::cargo(["run", "--locked", "--package", "ferrogate-integration", "--bin", "tools"])
}

/// Where a test target of a package is run.
pub fn stage_of(package: &str, target: &str) -> Stage {
    match (package, target) {
        ("ferrogate-integration", "sim") => Stage::Sim,
        ("ferrogate-integration", name) if name.starts_with("kube_") => Stage::Kube,
        ("ferrogate-integration", "lab" | "judges") | ("ferrogate-speaker", _) => Stage::Net,
        ("ferrogate-integration", "bgp" | "router_config") => Stage::Bgp,
        ("ferrogate-integration", "examples" | "readme" | "standalone") => Stage::Examples,
        _ => Stage::Unit,
    }
}

/// One step for all test targets of this stage.
///
/// They are chosen by name from the whole workspace: cargo compiles a dependency anew for each set of features, and members
/// that are chosen one by one want different ones.
///
/// # Errors
/// When there is none, or its name would also choose one that is for another stage.
fn targets(stage: Stage, members: &Metadata) -> Result<Step> {
    let mut found = BTreeMap::<&str, BTreeSet<Stage>>::new();
    for package in &members.packages {
        for target in package.targets.iter().filter(|target| target.kind.contains(&TargetKind::Test)) {
            found.entry(&target.name).or_default().insert(stage_of(&package.name, &target.name));
        }
    }
    found.retain(|_, stages| stages.contains(&stage));
    ensure!(!found.is_empty(), "no package has a test for this stage");
    if let Some((name, _)) = found.iter().find(|(_, stages)| stages.len() > 1) {
        bail!("two packages have a test `{name}`, for different stages; rename one of them");
    }
    Ok(tests("tests", ["--workspace"].into_iter().chain(found.into_keys().flat_map(|name| ["--test", name]))))
}

fn tests<'a>(name: &str, selection: impl IntoIterator<Item = &'a str>) -> Step {
    let command = Command::cargo(["test", "--locked", "--no-fail-fast"]).args(selection);
    let build = vec![command.clone().args(["--no-run"])];
    Step { name: name.to_owned(), build, command, counts: Counts::Tests }
}

fn lint() -> Vec<Step> {
    let step = |name: &str, args: &[&str]| Step {
        name: name.to_owned(),
        build: Vec::new(),
        command: Command::cargo(args),
        counts: Counts::ExitCode,
    };
    let mut steps = vec![
        step("format", &["fmt", "--all", "--check"]),
        step("clippy", &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
        step("doc", &["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"]),
        step("deny", &["deny", "--locked", "check", "licenses", "bans", "sources"]),
    ];
    // Most of these two is compiling: clippy says again what it found, and documentation needs what is built without clippy.
    steps[1].build = vec![steps[1].command.clone()];
    steps[2].build = vec![Command::cargo(["check", "--workspace", "--locked"])];
    // The reader has the source: links to private items lead somewhere.
    let flags = "-D warnings -A rustdoc::private_intra_doc_links";
    steps[2].command = steps[2].command.clone().env("RUSTDOCFLAGS", flags);
    steps
}

fn fuzz(length: Length, members: &Metadata) -> Result<Vec<Step>> {
    let list = Command::cargo(["fuzz", "list"]);
    let output = list.to_std().output().with_context(|| format!("running {list}"))?;
    ensure!(output.status.success(), "{list}: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).context("the names of the fuzz targets")?;
    let step = |name: &str| {
        // What is found goes to the first folder; the second holds the seeds that are kept in the repository.
        let found = members.target_directory.join("verify/corpus").join(name).into_string();
        let seeds = format!("fuzz/corpus/{name}");
        // Without a sanitizer the stable compiler is enough; the decoders have no unsafe code for one to watch.
        Step {
            name: name.to_owned(),
            build: vec![
                Command::new("mkdir").args(["-p", &found]),
                Command::cargo(["fuzz", "build", "--sanitizer", "none", name]),
            ],
            command: Command::cargo(["fuzz", "run", "--sanitizer", "none", name, &found, &seeds, "--"]).args([
                format!("-runs={}", length.inputs()),
                "-max_len=4096".to_owned(),
                "-timeout=5".to_owned(),
            ]),
            counts: Counts::ExitCode,
        }
    };
    let steps: Vec<_> = names.lines().map(str::trim).filter(|name| !name.is_empty()).map(step).collect();
    ensure!(!steps.is_empty(), "{list} lists no decoder");
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_file_nobody_heard_of_is_a_unit_test() {
        assert_eq!(stage_of("ferrogate-core", "new"), Stage::Unit);
        assert_eq!(stage_of("ferrogate-integration", "new"), Stage::Unit);
    }

    #[test]
    fn a_test_file_whose_name_says_so_gets_a_control_plane() {
        assert_eq!(stage_of("ferrogate-integration", "kube_new"), Stage::Kube);
    }

    #[test]
    fn what_takes_longest_is_built_ahead_where_something_comes_before_it() {
        let ahead = |stages: &[Stage]| super::ahead(stages).unwrap();
        let product = shipping().unwrap().0;

        assert_eq!(ahead(&[Stage::Lint, Stage::Unit, Stage::Fuzz]), []);
        assert_eq!(ahead(&[Stage::Net, Stage::Kube]), []);
        assert_eq!(ahead(&[Stage::Sim, Stage::Bgp]), std::slice::from_ref(&product));
        assert_eq!(ahead(&[Stage::Lint, Stage::Kube]), [product, tools()]);
    }

    #[test]
    fn tests_are_compiled_outside_of_the_budget() {
        let step = tests("core", ["--package", "ferrogate-core"]);

        assert_eq!(step.build, [step.command.clone().args(["--no-run"])]);
    }
}
