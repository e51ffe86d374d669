//! Who is spoilt by what, and when a report is written.

#![allow(clippy::disallowed_methods, reason = "tests need some instant to start from")]

use std::net::IpAddr;

use super::*;
use crate::{
    model::{node::Node, selector::LabelSelector},
    snapshot::PasswordFault,
};

fn object(kind: &str, name: &str) -> ObjectRef {
    ObjectRef {
        api_version: "ferrogate.io/v1beta1".to_owned(),
        kind: kind.to_owned(),
        namespace: Some("ferrogate-system".to_owned()),
        name: name.to_owned(),
    }
}

fn invalid(object: &ObjectRef) -> Problem {
    let fault = Fault::Invalid { value: "x".to_owned(), expected: "an address".to_owned() };
    Problem { object: Some(object.clone()), generation: 1, field: "spec.peerAddress".to_owned(), fault }
}

fn facts(problems: Vec<Problem>) -> Snapshot {
    let mut facts = Snapshot::default();
    for name in ["a", "b"] {
        let labels = Labels::from([("name".to_owned(), name.to_owned())]);
        let node = Node {
            name: name.into(),
            labels,
            annotations: BTreeMap::new(),
            internal_addresses: Vec::<IpAddr>::new(),
            network_unavailable: false,
            unschedulable: false,
        };
        facts.nodes.insert(name.into(), Arc::new(node));
    }
    let mut by_origin: BTreeMap<Origin, Vec<Problem>> = BTreeMap::new();
    for problem in problems {
        let origin = match &problem.object {
            Some(object) => Origin::Cluster(object.clone()),
            None => Origin::File { path: "broken.yaml".to_owned(), document: 0 },
        };
        by_origin.entry(origin).or_default().push(problem);
    }
    facts.problems = Arc::new(by_origin);
    facts
}

fn speaker(node: &str) -> Reporter {
    Reporter::Speaker(node.into())
}

/// The judgements of the controller and of the speakers of nodes a and b.
fn judgements(facts: &Snapshot) -> [Judgement; 3] {
    [Reporter::Controller, speaker("a"), speaker("b")].map(|reporter| judge(facts, &reporter).judgement)
}

const VALID: Judgement = Judgement::Valid;
const INVALID: Judgement = Judgement::Invalid;

#[test]
fn m_038_without_problems_everybody_says_valid_and_nothing_more() {
    let facts = facts(Vec::new());

    assert_eq!(judgements(&facts), [VALID, VALID, VALID]);
    let state = judge(&facts, &Reporter::Controller);
    assert_eq!(state.summary, "");
    assert!(state.condition().holds);
    assert_eq!([Reporter::Controller.name(), speaker("a").name()], ["controller", "speaker-a"]);
    for reporter in [Reporter::Controller, speaker("a")] {
        assert_eq!(Reporter::of(&reporter.name()), Some(reporter));
    }
    assert_eq!(Reporter::of("speaker-"), None);
}

#[test]
fn m_039_on_a_bad_pool_everybody_says_invalid_and_every_line_begins_with_the_same_words() {
    let facts = facts(vec![invalid(&object("IPAddressPool", "p")), invalid(&object("IPAddressPool", "q"))]);

    assert_eq!(judgements(&facts), [INVALID, INVALID, INVALID]);
    let state = judge(&facts, &Reporter::Controller);
    let lines: Vec<_> = state.summary.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| line.starts_with("configuration error: ")), "{lines:?}");
    assert!(lines[0].contains("ferrogate-system/p") && lines[0].contains("spec.peerAddress"), "{lines:?}");
    assert!(!state.condition().holds);
    assert_eq!(state.condition().reason, "ConfigurationError");
}

#[test]
fn m_040_a_bad_peer_that_chooses_one_node_spoils_the_report_of_that_node_only() {
    let peer = object("BGPPeer", "rack-a");
    let mut facts = facts(vec![invalid(&peer)]);
    let chosen = LabelSelector { match_labels: [("name".to_owned(), "a".to_owned())].into(), ..Default::default() };
    facts.concerned_nodes.insert(peer, Arc::new(vec![chosen]));

    assert_eq!(judgements(&facts), [VALID, INVALID, VALID]);
}

#[test]
fn a_bad_peer_of_which_nobody_can_tell_the_nodes_spoils_the_report_of_every_speaker() {
    assert_eq!(judgements(&facts(vec![invalid(&object("BGPPeer", "any"))])), [VALID, INVALID, INVALID]);
}

#[test]
fn what_users_run_and_what_is_only_worth_knowing_spoil_nothing() {
    let mut service = invalid(&object("Service", "web"));
    service.object = Some(ObjectRef { api_version: "v1".to_owned(), ..object("Service", "web") });
    let mut dangling = invalid(&object("L2Advertisement", "all"));
    dangling.fault = Fault::DanglingReference { kind: "IPAddressPool".to_owned(), name: "p".to_owned() };

    assert_eq!(judgements(&facts(vec![service, dangling])), [VALID, VALID, VALID]);
}

#[test]
fn what_cannot_be_seen_is_unknown_unless_something_is_known_to_be_wrong() {
    let unseen = || Problem {
        object: None,
        generation: 0,
        field: String::new(),
        fault: Fault::Unreadable { detail: "forbidden".to_owned() },
    };

    assert_eq!(judgements(&facts(vec![unseen()])), [Judgement::Unknown; 3]);
    let both = facts(vec![unseen(), invalid(&object("IPAddressPool", "p"))]);
    assert_eq!(judgements(&both), [INVALID, INVALID, INVALID]);
    assert_eq!(judge(&both, &Reporter::Controller).summary.lines().count(), 2);
}

#[test]
fn a_summary_has_an_end_however_much_is_wrong() {
    let problems = (0..5000).map(|number| {
        let mut problem = invalid(&object("IPAddressPool", &format!("p{number}")));
        problem.fault = Fault::Schema { detail: format!("line\nbreak {}", "ä".repeat(1000)) };
        problem
    });

    let summary = judge(&facts(problems.collect()), &Reporter::Controller).summary;

    assert_eq!(summary.lines().count(), 65);
    assert!(summary.len() < 32768, "{}", summary.len());
    assert!(summary.ends_with("configuration error: and 4936 more"));
    assert!(summary.lines().all(|line| line.starts_with(ERROR)));
}

/// A keeper with the facts it goes by.
struct Stand {
    keeper: Keeper,
    now: Instant,
    facts: Snapshot,
}

impl Stand {
    fn new(leads: bool) -> Self {
        Self { keeper: Keeper::new(Reporter::Controller, leads), now: Instant::now(), facts: facts(Vec::new()) }
    }

    fn look(&mut self) -> Option<ConfigurationState> {
        let write = self.keeper.step(self.now, Event::Snapshot(Arc::new(self.facts.clone())))?;
        let Write::Configuration { reporter, state } = write else { panic!("{write:?}") };
        assert_eq!(reporter, Reporter::Controller);
        Some(state)
    }

    fn show(&mut self, state: &ConfigurationState) {
        self.facts.configuration_states.insert(Reporter::Controller, Arc::new(state.clone()));
    }
}

#[test]
fn a_report_is_written_when_it_changes_and_not_again() {
    let mut stand = Stand::new(true);
    let first = stand.look().unwrap();
    assert_eq!(first.judgement, VALID);
    assert_eq!(stand.look(), None);
    stand.show(&first);
    assert_eq!(stand.look(), None);
    assert_eq!(stand.keeper.deadline(), None);

    stand.facts.problems = facts(vec![invalid(&object("IPAddressPool", "p"))]).problems;
    let second = stand.look().unwrap();

    assert_eq!(second.judgement, INVALID);
    stand.show(&second);
    assert_eq!(stand.look(), None);
}

#[test]
fn m_041_a_report_that_somebody_deletes_or_edits_is_written_again() {
    let mut stand = Stand::new(true);
    let state = stand.look().unwrap();
    stand.show(&state);
    assert_eq!(stand.look(), None);

    stand.facts.configuration_states.remove(&Reporter::Controller);
    assert_eq!(stand.look(), Some(state.clone()));
    stand.show(&state);
    assert_eq!(stand.look(), None);

    stand.show(&ConfigurationState { judgement: INVALID, summary: "edited".to_owned() });
    assert_eq!(stand.look(), Some(state));
}

#[test]
fn a_write_that_does_not_show_is_asked_for_again_after_patience() {
    let mut stand = Stand::new(true);
    stand.look().unwrap();
    let due = stand.keeper.deadline().unwrap();
    assert_eq!(due, stand.now + WRITE_PATIENCE);

    assert_eq!(stand.keeper.step(due - Duration::from_millis(1), Event::Tick), None);
    assert!(stand.keeper.step(due, Event::Tick).is_some());
    assert_eq!(stand.keeper.deadline(), Some(due + WRITE_PATIENCE));
}

#[test]
fn what_shows_already_is_asked_for_once_more_when_something_else_is_on_its_way() {
    let mut stand = Stand::new(true);
    let valid = stand.look().unwrap();
    stand.show(&valid);
    stand.look();
    let good = stand.facts.problems.clone();
    stand.facts.problems = facts(vec![invalid(&object("IPAddressPool", "p"))]).problems;
    stand.look().unwrap();

    stand.facts.problems = good;

    assert_eq!(stand.look(), Some(valid));
    assert_eq!(stand.look(), None);
    assert_eq!(stand.keeper.deadline(), None);
}

#[test]
fn who_does_not_lead_knows_and_writes_nothing() {
    let mut stand = Stand::new(false);

    assert_eq!(stand.look(), None);
    assert_eq!(stand.keeper.state().map(|state| state.judgement), Some(VALID));
    assert_eq!(stand.keeper.deadline(), None);
    assert!(stand.keeper.step(stand.now, Event::Leads(true)).is_some());
}

#[test]
fn m_028_m_136_a_peer_without_its_password_stands_and_is_an_error_in_the_report_of_its_speakers() {
    let fault = Fault::NoPassword { secret: "ferrogate-system/key".to_owned(), fault: PasswordFault::NoKey };
    assert!(fault.is_warning());
    let field = "spec.passwordSecret.name".to_owned();
    let facts = facts(vec![Problem { object: Some(object("BGPPeer", "tor")), generation: 1, field, fault }]);

    let said = judge(&facts, &Reporter::Speaker("a".into()));

    assert_eq!(said.judgement, Judgement::Invalid);
    let expected = "configuration error: BGPPeer ferrogate-system/tor: spec.passwordSecret.name: Secret \
                    ferrogate-system/key has no key `password`; add it; there is no session until then";
    assert_eq!(said.summary, expected);
    assert_eq!(judge(&facts, &Reporter::Controller).judgement, Judgement::Valid);
}
