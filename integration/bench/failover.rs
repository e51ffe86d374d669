//! What clients lose when the cable of an address's owner is pulled: the lab's quickstart, many times over.
//!
//! Each run is a lab of its own with the binary that ships. One datagram every 2 ms and one fresh HTTP request every
//! 10 ms ask through the whole path; the longest silence of each run goes into the table. The program fails when a run
//! does not hold, and it gates nothing else: a busy machine makes every gap longer.

use std::{env, fs, path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use ferrogate_integration::{lab::report::quantile, workspace};
use serde_json::Value;

/// Runs unless the first argument says otherwise.
const RUNS: usize = 30;

/// What is read from each run's `failover`, and how the table calls it.
const FIGURES: [(&str, &str); 5] = [
    ("longest_gap_ms", "longest gap between answered datagrams, ms"),
    ("lost", "datagrams lost, one every 2 ms"),
    ("http_longest_gap_ms", "longest gap between answered HTTP requests, ms"),
    ("http_failed", "HTTP requests failed, one every 10 ms"),
    ("tcp_broken", "open TCP connections broken, of 20"),
];

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let runs = match env::args().nth(1) {
        Some(runs) => runs.parse().with_context(|| format!("{runs:?} is not a number of runs"))?,
        None => RUNS,
    };
    ensure!(runs > 0, "at least one run is needed");
    let binary = workspace::ship()?;
    let folder = tempfile::tempdir()?;
    let mut figures: [Vec<f64>; FIGURES.len()] = Default::default();
    for run in 1..=runs {
        let failover = run_lab(&binary, &folder.path().join("result.json"))?;
        for ((key, _), values) in FIGURES.iter().zip(&mut figures) {
            values.push(failover[*key].as_f64().with_context(|| format!("the lab's result has no {key}"))?);
        }
        eprintln!("run {run} of {runs}: {:.0} ms", figures[0][run - 1]);
    }
    println!("| {runs} runs | p50 | p99 | worst |\n|---|---:|---:|---:|");
    for ((_, name), mut values) in FIGURES.into_iter().zip(figures) {
        values.sort_by(f64::total_cmp);
        let [p50, p99, worst] = [0.5, 0.99, 1.0].map(|share| quantile(&values, share).unwrap_or_default());
        println!("| {name} | {p50:.0} | {p99:.0} | {worst:.0} |");
    }
    Ok(())
}

fn run_lab(binary: &Path, json: &Path) -> Result<Value> {
    let command = workspace::Command::cargo(["lab", "--", "--json"]);
    let output = command.to_std().arg(json).arg("--binary").arg(binary).output().context("running the lab")?;
    ensure!(output.status.success(), "the lab failed:\n{}", String::from_utf8_lossy(&output.stdout));
    let result: Value = serde_json::from_str(&fs::read_to_string(json)?)?;
    Ok(result["failover"].clone())
}
