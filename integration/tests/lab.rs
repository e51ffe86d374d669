//! The lab as a test: every scenario, run as a person would.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use ferrogate_integration::{lab::scenario::Scenario, verify::plan::LAB_RUNS, workspace};
use serde_json::Value;

/// Labs measure time, so they take turns on the processor.
static TURN: Mutex<()> = Mutex::new(());

/// How often each scenario is shown.
fn runs() -> u32 {
    std::env::var(LAB_RUNS).map_or(1, |runs| runs.parse().expect("a number of runs"))
}

fn show(scenario: Scenario) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("result.json");
    let ferrogate = workspace::ship().unwrap();
    let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
    lab.args(["--scenario", scenario.name(), "--json"]).arg(&json).arg("--binary").arg(ferrogate);

    let output = lab.stdin(Stdio::null()).output().unwrap();

    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap()
}

fn shows_everything(scenario: Scenario) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..runs() {
        let result = show(scenario);

        assert_eq!(result["scenario"], scenario.name());
        assert_eq!(result["ok"], true);
        for check in result["checks"].as_array().unwrap() {
            assert_eq!(check["ok"], true, "{check}");
            assert!(check["name"].is_string() && check["ms"].is_f64(), "{check}");
        }
        assert!(result["failover"]["longest_gap_ms"].is_f64(), "{result}");
        assert!(result["failover"]["lost"].is_u64(), "{result}");
    }
}

#[test]
fn from_a_manifest_to_a_curl_and_through_a_cut_cable() {
    shows_everything(Scenario::Quickstart);
}

#[test]
fn no_address_moves_when_the_controller_is_killed() {
    shows_everything(Scenario::Restart);
}

#[test]
fn an_edited_manifest_takes_effect_and_drops_nothing() {
    shows_everything(Scenario::Edit);
}

#[test]
fn one_process_serves_a_folder_of_manifests_and_keeps_its_addresses() {
    shows_everything(Scenario::Standalone);
}

#[test]
fn nothing_survives_a_lab_that_is_killed_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    // Anything that ends at once does; the lab itself stays because of --keep.
    let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
    lab.args(["--keep", "--binary", "/bin/false"]).env("TMPDIR", folder.path());
    let mut lab = lab.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = std::io::BufReader::new(lab.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("press Enter") {
        line.clear();
        assert_ne!(std::io::BufRead::read_line(&mut output, &mut line).unwrap(), 0, "the lab ended by itself");
    }

    lab.kill().unwrap();
    lab.wait().unwrap();

    // Every process of the lab holds the write end of its output; the end of it is the end of all of them.
    std::io::Read::read_to_end(&mut output, &mut Vec::new()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
