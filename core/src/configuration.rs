//! Whether the controller, or the speaker of one node, could use all of the configuration: what its
//! ConfigurationState says.
//!
//! Each answers for what it uses. The controller uses pools; a speaker uses pools and everything that says how they
//! are announced, as far as its node is concerned. So a peer that is wrong and chosen for one node spoils the report of
//! that node only.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    model::{Labels, NodeName, ObjectRef, selector::any_matches},
    snapshot::{Fault, Origin, Problem, Snapshot},
    write::{Condition, WRITE_PATIENCE, Write},
};

/// How an error summary begins, and each of its lines.
pub const ERROR: &str = "configuration error: ";
/// Condition type of a ConfigurationState.
pub const CONFIGURATION_VALID: &str = "ConfigurationValid";

/// How many lines a summary has.
const MAX_LINES: usize = 64;
/// How long a line may be, in bytes.
const MAX_LINE: usize = 480;

/// Whose report it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reporter {
    /// The controller that leads.
    Controller,
    /// The speaker of this node.
    Speaker(NodeName),
}

impl Reporter {
    /// Name of its ConfigurationState.
    pub fn name(&self) -> String {
        match self {
            Self::Controller => "controller".to_owned(),
            Self::Speaker(node) => format!("speaker-{node}"),
        }
    }

    /// Whose report has this name.
    pub fn of(name: &str) -> Option<Self> {
        match name.strip_prefix("speaker-") {
            Some(node) if !node.is_empty() => Some(Self::Speaker(NodeName::from(node))),
            _ => (name == "controller").then_some(Self::Controller),
        }
    }
}

/// What is said of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// All of it is in force.
    Valid,
    /// Something is left out.
    Invalid,
    /// Some of it cannot be seen.
    Unknown,
}

impl Judgement {
    /// Reason for the condition: one CamelCase word.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Valid => "Reconciled",
            Self::Invalid => "ConfigurationError",
            Self::Unknown => "ConfigurationUnseen",
        }
    }
}

/// What a ConfigurationState says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigurationState {
    /// The judgement.
    pub judgement: Judgement,
    /// What is wrong, one line for each problem, each beginning with [`ERROR`]; empty when nothing is.
    pub summary: String,
}

impl ConfigurationState {
    /// The same as a condition.
    pub fn condition(&self) -> Condition {
        Condition {
            kind: CONFIGURATION_VALID.to_owned(),
            holds: self.judgement == Judgement::Valid,
            reason: self.judgement.reason().to_owned(),
            message: self.summary.clone(),
            observed_generation: 0,
        }
    }
}

/// What there is to report of these facts.
pub fn judge(snapshot: &Snapshot, reporter: &Reporter) -> ConfigurationState {
    let labels = match reporter {
        Reporter::Controller => None,
        Reporter::Speaker(node) => snapshot.nodes.get(node).map(|node| &node.labels),
    };
    let mut lines = Vec::new();
    let mut unseen = Vec::new();
    for (origin, problem) in snapshot.problems.iter().flat_map(|(origin, all)| all.iter().map(move |one| (origin, one)))
    {
        // Without its password a peer is spoken with no more than one that is left out.
        let is_error = !problem.fault.is_warning() || matches!(problem.fault, Fault::NoPassword { .. });
        if !is_error || !concerns(problem, snapshot, reporter, labels) {
            continue;
        }
        let is_unseen = problem.object.is_none() && matches!(problem.fault, Fault::Unreadable { .. });
        let text = line(origin, problem);
        if is_unseen {
            unseen.push(text)
        } else {
            lines.push(text)
        };
    }
    let judgement = match (lines.is_empty(), unseen.is_empty()) {
        (false, _) => Judgement::Invalid,
        (true, false) => Judgement::Unknown,
        (true, true) => Judgement::Valid,
    };
    lines.append(&mut unseen);
    let more = lines.len().saturating_sub(MAX_LINES);
    lines.truncate(MAX_LINES);
    if more > 0 {
        lines.push(format!("{ERROR}and {more} more"));
    }
    ConfigurationState { judgement, summary: lines.join("\n") }
}

fn line(origin: &Origin, problem: &Problem) -> String {
    let text = match &problem.object {
        Some(_) => format!("{ERROR}{problem}"),
        None => format!("{ERROR}{origin}: {problem}"),
    };
    let one_line = text.replace(['\n', '\r'], " ");
    one_line.get(..one_line.floor_char_boundary(MAX_LINE)).unwrap_or(&one_line).to_owned()
}

fn concerns(problem: &Problem, snapshot: &Snapshot, reporter: &Reporter, labels: Option<&Labels>) -> bool {
    // Nobody knows what stands in a part that cannot be read.
    let Some(object) = &problem.object else { return true };
    if !is_configuration(object) {
        return false;
    }
    match (object.kind.as_str(), reporter) {
        ("L2Advertisement" | "BGPAdvertisement" | "BGPPeer" | "BFDProfile" | "Community", Reporter::Controller) => {
            false
        }
        (_, Reporter::Controller) => true,
        (_, Reporter::Speaker(_)) => match (snapshot.concerned_nodes.get(object), labels) {
            (Some(selectors), Some(labels)) => any_matches(selectors, labels),
            _ => true,
        },
    }
}

/// Whether an object says what Ferrogate should do, in our words or in MetalLB's.
pub(crate) fn is_configuration(object: &ObjectRef) -> bool {
    let group = object.api_version.split('/').next().unwrap_or_default();
    matches!(group, "ferrogate.io" | "metallb.io")
}

/// What a keeper takes in.
#[derive(Clone, Debug)]
pub enum Event {
    /// The facts are these now.
    Snapshot(Arc<Snapshot>),
    /// Whether this process is the one that writes the report.
    Leads(bool),
    /// The deadline has come.
    Tick,
}

/// Keeps one ConfigurationState as it should be: written when it is something else or gone, and not otherwise.
#[derive(Debug)]
pub struct Keeper {
    reporter: Reporter,
    leads: bool,
    snapshot: Option<Arc<Snapshot>>,
    /// What it should say; `None` until the first facts are there.
    state: Option<ConfigurationState>,
    /// What was asked for and does not show yet, and when it is asked for again.
    asked: Option<(ConfigurationState, Instant)>,
}

impl Keeper {
    /// The keeper of one report. Where only one of several writes it, `leads` is told by [`Event::Leads`].
    pub fn new(reporter: Reporter, leads: bool) -> Self {
        Self { reporter, leads, snapshot: None, state: None, asked: None }
    }

    /// What there is to report, whether this process writes it or not.
    pub fn state(&self) -> Option<&ConfigurationState> {
        self.state.as_ref()
    }

    /// Takes in one event at `now` and returns what has to be written, if anything.
    pub fn step(&mut self, now: Instant, event: Event) -> Option<Write> {
        match event {
            Event::Snapshot(snapshot) => {
                if !self.snapshot.as_ref().is_some_and(|before| is_judged_alike(before, &snapshot, &self.reporter)) {
                    self.state = Some(judge(&snapshot, &self.reporter));
                }
                self.snapshot = Some(snapshot);
            }
            Event::Leads(leads) => {
                self.leads = leads;
                self.asked = None;
            }
            Event::Tick => {}
        }
        let (true, Some(state), Some(snapshot)) = (self.leads, &self.state, &self.snapshot) else { return None };
        let is_shown = snapshot.configuration_states.get(&self.reporter).is_some_and(|shown| **shown == *state);
        let is_asked = self.asked.as_ref().is_some_and(|(asked, _)| asked == state);
        let is_due = self.asked.as_ref().is_none_or(|(_, repeat_at)| *repeat_at <= now);
        if is_shown && (self.asked.is_none() || is_asked) {
            self.asked = None;
            return None;
        }
        if !is_shown && is_asked && !is_due {
            return None;
        }
        // Also where it shows already while something else is on its way: this has to come after that.
        self.asked = (!is_shown).then(|| (state.clone(), now + PATIENCE));
        Some(Write::Configuration { reporter: self.reporter.clone(), state: state.clone() })
    }

    /// When `step` wants a [`Event::Tick`] next.
    pub fn deadline(&self) -> Option<Instant> {
        self.asked.as_ref().filter(|_| self.leads).map(|(_, repeat_at)| *repeat_at)
    }
}

const PATIENCE: Duration = WRITE_PATIENCE;

/// Whether two snapshots have the same problems for this reporter without a look at them.
fn is_judged_alike(before: &Snapshot, after: &Snapshot, reporter: &Reporter) -> bool {
    let same_labels = match reporter {
        Reporter::Controller => true,
        Reporter::Speaker(node) => {
            let labels = |snapshot: &Snapshot| snapshot.nodes.get(node).map(|node| node.labels.clone());
            labels(before) == labels(after)
        }
    };
    let same = |one: &Arc<BTreeMap<Origin, Vec<Problem>>>, other| Arc::ptr_eq(one, other);
    same_labels && same(&before.problems, &after.problems) && before.concerned_nodes.ptr_eq(&after.concerned_nodes)
}

#[cfg(test)]
mod tests;
