//! Whom a test speaks with: FRR and BIRD, or ExaBGP where the bytes are what is judged; and with nobody at all, in virtual
//! time, where timers and states are what is tested. Anything else proves too little.
//!
//! The rules read the text of the tests: which router a literal starts, what a loop over routers goes through, and which
//! items tests are named after.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{fs, ops::RangeInclusive};

use ferrogate_integration::workspace;

/// Files that may start one router only, and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    // FRR takes minutes to have a hundred thousand routes of its own.
    ("sent.rs", "Bird"),
    // What is judged is the table of neighbours of the kernel below it.
    ("judges.rs", "Frr"),
    // Debian's BIRD 2.0 finds nobody by router advertisements.
    ("unnumbered.rs", "Frr"),
];

/// What is wrong with a file of tests.
fn complaints(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let mut complain = |what: &str| found.push(format!("{file}:{number}: {what}: {}", line.trim()));
        if let Some(vendor) = started(line)
            && vendor != "Exabgp"
            && !EXCEPTIONS.contains(&(file, vendor))
        {
            complain("one router alone");
        }
        if let Some((_, over)) = line.split_once(" in ").filter(|(head, _)| head.contains("for ")) {
            let is_strict = over.contains("Vendor::STRICT") || over.contains("Vendor::ALL");
            let is_both = over.contains("Vendor::Frr") && over.contains("Vendor::Bird");
            if over.contains("Vendor::") && !is_strict && !is_both {
                complain("not both FRR and BIRD");
            }
        }
    }
    found
}

/// The router that a line starts by its name.
fn started(line: &str) -> Option<&str> {
    let starts = ["Router::start(Vendor::", ".router(Vendor::", "talkative(&stand, Vendor::"];
    let rest = starts.iter().find_map(|start| line.split_once(start)).map(|(_, rest)| rest)?;
    rest.split(|sign: char| !sign.is_ascii_alphanumeric()).next().filter(|name| !name.is_empty())
}

/// Items about timers and states: those of BGP (RFC 4271 §6.8, §8, §10), and BFD (RFC 5880).
const IN_VIRTUAL_TIME: [RangeInclusive<u16>; 3] = [21..=29, 81..=88, 92..=92];

/// Where sessions are tested without clocks and sockets.
const PURE: [&str; 3] = ["core/src/speaker/bgp/tests", "core/src/speaker/bfd", "core/src/speaker/bfd/tests"];

#[test]
fn n_124_every_rule_of_timers_states_and_bfd_has_a_test_in_virtual_time() {
    let entries = PURE.iter().flat_map(|folder| fs::read_dir(workspace::root().join(folder)).unwrap());
    let files = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let text: String = files.map(|path| fs::read_to_string(path).unwrap()).collect();
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines.windows(2).filter(|lines| lines[0] == "#[test]");
    let names: Vec<&str> = tests.filter_map(|lines| lines[1].strip_prefix("fn ")).collect();

    for item in IN_VIRTUAL_TIME.into_iter().flatten() {
        let number = format!("n_{item:03}_");
        assert!(names.iter().any(|name| name.contains(&number)), "nothing tests N-{item:03} in virtual time");
    }
}

#[test]
fn n_122_every_test_with_a_router_speaks_with_frr_and_bird_or_lets_exabgp_judge() {
    let tests = workspace::root().join("integration/tests");
    let mut files: Vec<_> = fs::read_dir(tests.join("bgp")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.extend(["kube_bgp.rs", "judges.rs"].map(|file| tests.join(file)));
    assert!(files.len() >= 10, "{files:?}");

    let found: Vec<String> = files
        .iter()
        .flat_map(|path| complaints(path.file_name().unwrap().to_str().unwrap(), &fs::read_to_string(path).unwrap()))
        .collect();

    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn n_122_one_router_alone_is_noticed() {
    let bad = [
        "let router = stand.router(Vendor::Bird, THEIRS, |_| {});",
        "Router::start(Vendor::Frr, &stand.router, &config).unwrap()",
        "for vendor in [Vendor::Frr, Vendor::Gobgp] {",
        "for vendor in [Vendor::Gobgp] {",
    ];
    for line in bad {
        assert_eq!(complaints("new.rs", line).len(), 1, "{line}");
    }
    let good = [
        "let router = stand.router(Vendor::Exabgp, THEIRS, |_| {});",
        "for vendor in Vendor::STRICT {",
        "for vendor in [Vendor::Frr, Vendor::Bird, Vendor::Exabgp] {",
        "let router = stand.router(vendor, THEIRS, |_| {});",
    ];
    for line in good {
        assert!(complaints("new.rs", line).is_empty(), "{line}");
    }
}
