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

/// Events of layer 2 that are over soon.
const QUICK: [&str; 6] = ["link-cut", "carrier-up-cut", "speaker-kill", "drain", "move", "partition-heal"];

/// Those that are measured when the lab is run often.
const ALL: [&str; 9] = [
    "link-cut",
    "carrier-up-cut",
    "speaker-kill",
    "speaker-freeze",
    "drain",
    "rolling-restart",
    "move",
    "partition-heal",
    "false-takeover",
];

/// Events of BGP that are over soon.
const QUICK_BGP: [&str; 4] = ["link-cut", "speaker-kill", "drain", "route-latency"];

/// Those that are measured when the lab is run often.
const ALL_BGP: [&str; 9] = [
    "link-cut",
    "speaker-kill",
    "drain",
    "rolling-restart",
    "gr-restart",
    "ecmp-join",
    "route-latency",
    "bulk-10k",
    "false-down",
];

fn show(scenario: Scenario, more: &[String]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("result.json");
    let ferrogate = workspace::ship().unwrap();
    let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
    lab.args(["--scenario", scenario.name(), "--json"]).arg(&json).arg("--binary").arg(ferrogate).args(more);

    let output = lab.stdin(Stdio::null()).output().unwrap();

    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap()
}

fn shows_everything(scenario: Scenario) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..runs() {
        let result = show(scenario, &[]);

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
fn what_clients_lose_by_whatever_happens_to_an_owner_has_a_row_for_each_family() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (events, profiles) =
        if runs() > 1 { (&ALL[..], &["default", "fast"][..]) } else { (&QUICK[..], &["default"][..]) };

    measures(Scenario::L2, events, profiles);
}

#[test]
fn what_clients_behind_a_router_lose_by_whatever_happens_to_a_node_has_a_row_for_each_family() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);

    measures(Scenario::Bgp, if runs() > 1 { &ALL_BGP } else { &QUICK_BGP }, &["default"]);
}

/// Half of all flows go to another node each time, and each connection to the one where it began.
#[test]
fn n_078_no_connection_breaks_and_nothing_is_lost_when_nodes_leave_and_come_back_behind_a_router() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);

    for row in measures(Scenario::Bgp, &["drain", "rolling-restart", "ecmp-join"], &["default"]) {
        assert_eq!((&row["lost"], &row["broken_tcp"]), (&0.into(), &0.into()), "{row}");
    }
}

/// Shows these events and checks that there is a row of each, by each profile and family. Returns the rows.
fn measures(scenario: Scenario, events: &[&str], profiles: &[&str]) -> Vec<Value> {
    let named =
        |flag: &str, values: &[&str]| values.iter().flat_map(|value| [flag, *value].map(str::to_owned)).collect();
    let runs = runs();
    let more: [Vec<String>; 3] =
        [named("--event", events), named("--profile", profiles), vec!["--runs".to_owned(), runs.to_string()]];

    let result = show(scenario, &more.concat());

    assert_eq!((&result["scenario"], &result["ok"]), (&scenario.name().into(), &true.into()));
    let rows = result["rows"].as_array().unwrap();
    let mut wanted = 0;
    for (profile, event) in profiles.iter().flat_map(|profile| events.iter().map(move |event| (*profile, *event))) {
        // Ten thousand routes are of one family.
        for family in if event == "bulk-10k" { &["ipv4"][..] } else { &["ipv4", "ipv6"] } {
            let is_it = |row: &&Value| row["event"] == event && row["profile"] == profile && row["family"] == *family;
            let row = rows.iter().find(is_it).unwrap_or_else(|| panic!("no row of {event}, {profile}, {family}"));
            assert_eq!(row["runs"], runs, "{row}");
            assert!(["p50_ms", "p99_ms", "worst_ms"].iter().all(|figure| row[figure].is_f64()), "{row}");
            assert!(["lost", "broken_tcp"].iter().all(|count| row[count].is_u64()), "{row}");
            wanted += 1;
        }
    }
    assert_eq!(rows.len(), wanted, "{rows:?}");
    rows.clone()
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
