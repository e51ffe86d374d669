//! The lab in a real Kubernetes, run as a person would, looked into, and then killed.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
};

use ferrogate_integration::workspace;
use serde_json::Value;

/// What must be among what it shows, each by a part of its name.
const SHOWN: &[&str] = &[
    "Ferrogate is installed from its manifests",
    "its pods are ready",
    "a Deployment has a pod on each node",
    "Cluster, IPv4: the client reaches every pod",
    "Cluster, IPv6: the client reaches every pod",
    "Local, IPv4: the pod sees the client's address",
    "Local, IPv6: the pod sees the client's address",
    "IPv4: by NodePort from the client, by cluster IP from a node",
    "Local: the address follows the only pod to another node",
    "a rolling restart of the proxies loses no request",
    "a rolling restart drops no request",
    "connections through kube-proxy stand while their address is moved",
    "a speaker pod is deleted: its address moves",
    "the webhook refuses a pool that overlaps another",
    "no request was refused for want of a right",
    "the proxies have no capability at all",
    "a pod with an image that nobody has says so",
];

#[test]
fn a_cluster_is_brought_up_carries_services_can_be_looked_into_and_leaves_nothing_when_it_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let results = tempfile::tempdir().unwrap();
    let json = results.path().join("result.json");
    let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
    lab.args(["--kubernetes", "--keep", "--json"]).arg(&json).arg("--binary").arg(workspace::ship().unwrap());
    let mut lab = lab.env("TMPDIR", folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(lab.stdout.take().unwrap());

    let mut text = String::new();
    while !text.ends_with("press Enter or Ctrl-C to end it\n") {
        assert_ne!(output.read_line(&mut text).unwrap(), 0, "the lab ended by itself:\n{text}");
    }
    let by_hand = by_hand(&text);
    lab.kill().unwrap();
    lab.wait().unwrap();

    let result: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(result["ok"], true, "{text}");
    let checks = result["checks"].as_array().unwrap();
    for shown in SHOWN {
        let found = checks.iter().any(|check| check["name"].as_str().unwrap().contains(shown) && check["ok"] == true);
        assert!(found, "{shown}:\n{text}");
    }
    assert!(by_hand.contains("ferrogate-speaker-"), "{by_hand}");
    // The end of its output is the end of process 1 in there, and of everything below it.
    output.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// What a person sees who does as the lab says: enters a namespace and asks the API server.
fn by_hand(text: &str) -> String {
    let line = |mark: &str| text.lines().map(str::trim).find(|line| line.contains(mark)).unwrap();
    let enter = text.lines().find(|line| line.trim_start().starts_with("plane ")).unwrap();
    let enter = enter.split_once("nsenter").unwrap().1.replace("$SHELL", "");
    let command = format!("nsenter {enter} {}", line("--kubeconfig"));
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
