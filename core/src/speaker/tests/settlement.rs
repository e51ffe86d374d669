//! What becomes of an owner that some hear and others do not.

use ferrogate_wire::gossip::Statement;

use super::{watch::watch_link, *};

/// How long the accused wait for a voucher.
const SETTLE: Duration = Duration::from_millis(100);

/// `won` belongs to `k1` while it is able, `second` to `k2` and after that to `k1`.
fn facts() -> Snapshot {
    snapshot(3, [service("won", &[WON]), service("second", &[SECOND])])
}

/// `k1` among three nodes, all of which it has heard.
fn settled() -> Stand {
    let mut stand = Stand::started(DataPath::KubeProxy, facts());
    stand.pass_saying(INTERVAL * 4, &[(2, &[], &[]), (3, &[], &[])]);
    stand
}

fn about(node: &str, number: u32) -> Statement {
    Statement { node: tag(node), interface: None, number }
}

fn about_link(node: &str, number: u32) -> Statement {
    Statement { node: tag(node), interface: Some("eth1".to_owned()), number }
}

/// Nodes, each with whom it accuses and for whom it vouches.
type Says<'a> = &'a [(u8, &'a [Statement], &'a [Statement])];

impl Stand {
    /// Lets time pass while nodes say this every interval.
    fn pass_saying(&mut self, time: Duration, says: Says<'_>) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while self.now < end {
            for (node, accuses, vouches) in says {
                let (accuses, vouches, links) = (accuses.to_vec(), vouches.to_vec(), vec![watch_link(*node)]);
                let word = Word { accuses, vouches, links, ..self.word(*node) };
                actions.extend(self.receive(*node, word));
            }
            let step = INTERVAL.min(end - self.now);
            actions.extend(only(self.pass(step)));
        }
        actions
    }

    fn watched(&mut self, verdict: Verdict) -> Vec<Action> {
        self.step(Event::Watched { node: "k2".into(), interface: "eth1".into(), verdict })
    }
}

#[test]
fn whoever_is_not_heard_any_more_is_accused_at_once() {
    let mut stand = settled();

    let actions = stand.pass_hearing(DETECTION * 2, &[3]);

    assert!(stand.owns(SECOND));
    assert_eq!(words(&actions).last().unwrap().accuses, [about("k2", 1)]);
}

#[test]
fn what_was_taken_is_given_back_when_a_third_node_answers_and_only_then() {
    let mut stand = settled();
    stand.pass_hearing(DETECTION * 2, &[3]);

    stand.pass_saying(INTERVAL, &[(3, &[], &[about("k2", 0)])]);
    assert!(stand.owns(SECOND));
    stand.pass_saying(INTERVAL, &[(3, &[], &[about("k2", 1)])]);
    assert!(!stand.owns(SECOND));

    // The voucher is gone, and what it vouched for with it.
    stand.pass(DETECTION * 2);
    assert!(stand.owns(SECOND));
}

#[test]
fn a_node_vouches_for_whom_it_hears_after_it_learned_of_the_accusation() {
    let mut stand = settled();

    let before = stand.pass_saying(MS * 10, &[(3, &[about("k2", 4)], &[])]);
    let after = stand.pass_saying(MS * 10, &[(2, &[], &[])]);

    assert!(words(&before).iter().all(|word| word.vouches.is_empty()));
    assert_eq!(words(&after).last().unwrap().vouches, [about("k2", 4)]);
}

#[test]
fn the_accused_speaks_up_at_once_and_yields_where_nobody_answers_in_time() {
    let mut stand = settled();
    stand.pass(MS * 20);
    let accused: Says<'_> = &[(2, &[about("k1", 1)], &[]), (3, &[about("k1", 1)], &[])];

    let actions = stand.pass_saying(SETTLE - MS, accused);
    assert!(!words(&actions[..actions.len().min(2)]).is_empty());
    assert!(stand.owns(WON));
    stand.pass_saying(INTERVAL, accused);
    assert_eq!(stand.silence("won"), Some(Silence::NotElected { owner: "k2".into() }));

    // Heard again, it takes back what is its own.
    stand.pass_saying(INTERVAL, &[(2, &[], &[]), (3, &[], &[])]);
    assert!(stand.owns(WON));
}

#[test]
fn the_accused_stays_where_a_third_node_answers() {
    let mut stand = settled();

    stand.pass_saying(Duration::from_secs(1), &[(2, &[about("k1", 1)], &[]), (3, &[], &[about("k1", 1)])]);

    assert!(stand.owns(WON) && !stand.owns(SECOND));
}

#[test]
fn a_node_that_hears_nobody_is_lost_for_those_who_hear_each_other() {
    let mut stand = settled();
    let deaf: Says<'_> = &[(2, &[about("k1", 1), about("k3", 1)], &[]), (3, &[], &[about("k1", 1)])];

    stand.pass_saying(SETTLE - MS, deaf);
    assert!(stand.owns(WON) && !stand.owns(SECOND));
    stand.pass_saying(INTERVAL, deaf);

    assert!(stand.owns(WON) && stand.owns(SECOND));
}

#[test]
fn whoever_yields_keeps_what_nobody_else_can_serve() {
    let mut stand =
        Stand::started(DataPath::KubeProxy, snapshot(2, [local("mine", &[WON], &["k1"]), service("any", &[SECOND])]));
    stand.pass_hearing(INTERVAL * 4, &[2]);

    stand.pass_saying(SETTLE * 2, &[(2, &[about("k1", 1)], &[])]);

    assert!(stand.owns(WON) && !stand.owns(SECOND));
}

#[test]
fn an_interface_seen_dead_costs_its_node_what_it_announces_there_until_another_answers_for_it() {
    let mut stand = settled();
    stand.watched(Verdict::Up);
    stand.pass(MS * 20);
    assert!(!stand.owns(SECOND));

    let actions = stand.watched(Verdict::Down);
    assert!(stand.owns(SECOND));
    assert_eq!(words(&actions).last().unwrap().accuses, [about_link("k2", 1)]);

    stand.pass_saying(INTERVAL, &[(2, &[], &[]), (3, &[], &[about_link("k2", 1)])]);
    assert!(!stand.owns(SECOND));
    stand.pass_saying(INTERVAL, &[(2, &[], &[]), (3, &[], &[])]);
    assert!(stand.owns(SECOND));

    stand.watched(Verdict::Up);
    assert!(!stand.owns(SECOND));
}

#[test]
fn what_was_never_seen_up_cannot_be_seen_dead() {
    let mut stand = settled();

    stand.watched(Verdict::Down);

    assert!(!stand.owns(SECOND));
}

#[test]
fn an_interface_of_ones_own_that_others_find_dead_is_left_when_nobody_answers_for_it() {
    let mut stand = settled();
    let accused: Says<'_> = &[(2, &[about_link("k1", 1)], &[]), (3, &[], &[])];

    stand.pass_saying(SETTLE - MS, accused);
    assert!(stand.owns(WON));
    stand.pass_saying(INTERVAL, accused);
    assert!(!stand.owns(WON));

    stand.pass_saying(INTERVAL, &[(2, &[about_link("k1", 1)], &[]), (3, &[], &[about_link("k1", 1)])]);
    assert!(stand.owns(WON));
}

#[test]
fn whoever_watches_an_interface_answers_for_it_when_a_dead_one_would_have_been_noticed() {
    let mut stand = settled();
    stand.watched(Verdict::Up);
    let accused: Says<'_> = &[(2, &[], &[]), (3, &[about_link("k2", 7)], &[])];

    let early = stand.pass_saying(DETECTION - MS, accused);
    let late = stand.pass_saying(INTERVAL, accused);

    assert!(words(&early).iter().all(|word| word.vouches.is_empty()));
    assert_eq!(words(&late).last().unwrap().vouches, [about_link("k2", 7)]);
}
