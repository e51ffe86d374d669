//! What our documents promise about each other: every relative link leads somewhere.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use ferrogate_integration::workspace;

/// Folders that hold nothing of ours.
const FOREIGN: &[&str] = &["target", ".git", "node_modules"];

fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !FOREIGN.contains(&name.as_str()) {
            documents(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// The targets of every `[text](target)`.
fn links(markdown: &str) -> Vec<&str> {
    let starts = markdown.match_indices("](").map(|(at, found)| at + found.len());
    starts.filter_map(|start| markdown[start..].split_once(')').map(|(target, _)| target)).collect()
}

/// The name GitHub gives to a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

fn leads_somewhere(document: &Path, link: &str) -> bool {
    let (path, wanted) = link.split_once('#').map_or((link, None), |(path, wanted)| (path, Some(wanted)));
    let target = if path.is_empty() { document.to_owned() } else { document.parent().unwrap().join(path) };
    match wanted {
        None => target.exists(),
        Some(wanted) => fs::read_to_string(&target)
            .is_ok_and(|text| text.lines().any(|line| line.starts_with('#') && anchor(line) == wanted)),
    }
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut found = Vec::new();
    documents(workspace::root(), &mut found);
    assert!(found.len() > 5, "the documents are found: {found:?}");
    for document in found {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            assert!(leads_somewhere(&document, link), "{}: {link} leads nowhere", document.display());
        }
    }
}

#[test]
fn a_link_to_nothing_is_seen() {
    let document = workspace::root().join("ARCHITECTURE.md");

    assert!(leads_somewhere(&document, "#glossary"));
    assert!(!leads_somewhere(&document, "#no-such-heading"));
    assert!(!leads_somewhere(&document, "no-such-file.md"));
}
