#![allow(clippy::disallowed_methods, reason = "tests need some instant to start from")]

use super::*;

/// An election of `me` and the time, in seconds.
struct Stand {
    election: Election,
    begin: Instant,
    now: u64,
}

impl Stand {
    fn new() -> Self {
        Self { election: Election::new("me".into(), Timing::default()), begin: Instant::now(), now: 0 }
    }

    fn at(&mut self, seconds: u64, event: Event) -> Vec<Action> {
        assert!(seconds >= self.now);
        self.now = seconds;
        self.election.step(self.time(seconds), event)
    }

    fn time(&self, seconds: u64) -> Instant {
        self.begin + Duration::from_secs(seconds)
    }

    fn claimed(&mut self, seconds: u64, version: &str) -> Vec<Action> {
        let asked = self.time(seconds);
        self.at(seconds, Event::Claimed { asked, version: version.into() })
    }

    /// Takes a Lease that was given up, and leads.
    fn leading() -> Self {
        let mut stand = Self::new();
        assert_eq!(stand.at(0, lease(None, "1")), [Action::Claim]);
        assert_eq!(stand.claimed(0, "2"), [Action::List]);
        assert_eq!(stand.at(0, listed(&[])), [Action::Lead]);
        stand
    }

    /// Takes the Lease of one who was seen last at 0, and waits.
    fn waiting() -> Self {
        let mut stand = Self::new();
        assert_eq!(stand.at(0, lease(Some("other"), "1")), []);
        assert_eq!(stand.at(15, lease(Some("other"), "1")), [Action::Claim]);
        assert_eq!(stand.claimed(15, "2"), []);
        stand
    }
}

fn lease(holder: Option<&str>, version: &str) -> Event {
    let duration = Some(Duration::from_secs(15));
    Event::Read(Record { holder: holder.map(str::to_owned), duration, version: version.into() })
}

fn listed(suspects: &[&str]) -> Event {
    Event::Listed { suspects: fences(suspects) }
}

fn fences(names: &[&str]) -> BTreeMap<ServiceKey, ResourceVersion> {
    names.iter().map(|name| (ServiceKey::new("default", *name), "7".into())).collect()
}

fn fenced(name: &str) -> Event {
    Event::Fenced(ServiceKey::new("default", name))
}

#[test]
fn a_lease_without_a_holder_is_taken_and_acted_on_at_once() {
    let stand = Stand::leading();

    assert!(stand.election.leads());
}

#[test]
fn a_lease_of_another_is_taken_when_it_was_seen_unchanged_for_as_long_as_it_says() {
    let mut stand = Stand::new();
    for (seconds, version, expected) in
        [(0, "1", vec![]), (14, "1", vec![]), (15, "2", vec![]), (29, "2", vec![]), (30, "2", vec![Action::Claim])]
    {
        assert_eq!(stand.at(seconds, lease(Some("other"), version)), expected, "at {seconds}");
    }
}

#[test]
fn after_a_lease_that_expired_one_more_request_is_waited_for_before_anything_is_listed() {
    let mut stand = Stand::waiting();

    assert_eq!(stand.election.deadline(), Some(stand.time(20)));
    assert_eq!(stand.at(19, lease(Some("me"), "2")), [Action::Claim]);
    assert_eq!(stand.claimed(19, "3"), []);
    assert_eq!(stand.at(20, Event::Tick), [Action::List]);
    assert!(!stand.election.leads());
    assert_eq!(stand.at(21, listed(&[])), [Action::Lead]);
}

#[test]
fn what_a_late_write_could_reach_is_fenced_and_then_listed_again() {
    let mut stand = Stand::waiting();
    stand.at(19, lease(Some("me"), "2"));
    stand.claimed(19, "3");
    stand.at(20, Event::Tick);

    assert_eq!(stand.at(20, listed(&["a", "b"])), [Action::Fence(fences(&["a", "b"]))]);
    assert_eq!(stand.at(20, fenced("a")), []);
    assert_eq!(stand.at(21, fenced("b")), [Action::List]);
    assert_eq!(stand.at(21, listed(&["c"])), [Action::Lead]);
}

#[test]
fn a_service_that_cannot_be_fenced_does_not_stop_the_rest_for_ever() {
    let mut stand = Stand::waiting();
    for (version, seconds) in (3..).zip(16..80) {
        let actions = stand.at(seconds, lease(Some("me"), &format!("{}", version - 1)));
        assert_eq!(actions.contains(&Action::List), seconds == 20, "at {seconds}");
        assert!(actions.contains(&Action::Claim), "at {seconds}");
        assert_eq!(stand.claimed(seconds, &version.to_string()), [], "at {seconds}");
        if seconds == 20 {
            stand.at(20, listed(&["a"]));
        }
    }

    assert_eq!(stand.at(80, Event::Tick), [Action::List]);
}

#[test]
fn after_a_good_bye_there_is_nothing_to_fence() {
    let mut stand = Stand::new();
    stand.at(0, lease(None, "1"));
    stand.claimed(0, "2");

    assert_eq!(stand.at(0, listed(&["a"])), [Action::Lead]);
}

#[test]
fn whoever_cannot_renew_follows_in_time_and_writes_nothing_that_would_last_longer() {
    let mut stand = Stand::leading();
    assert_eq!(stand.election.writes_until(), Some(stand.time(5)));
    assert_eq!(stand.election.deadline(), Some(stand.time(10)));

    assert_eq!(stand.at(9, Event::Tick), []);
    assert_eq!(stand.at(10, Event::Tick), [Action::Follow]);
    assert_eq!(stand.election.writes_until(), None);
}

#[test]
fn a_renewal_counts_from_when_it_was_asked_for() {
    let mut stand = Stand::leading();
    stand.at(2, lease(Some("me"), "2"));

    let asked = stand.time(2);
    stand.at(6, Event::Claimed { asked, version: "3".into() });

    assert_eq!(stand.election.deadline(), Some(stand.time(12)));
}

#[test]
fn a_process_that_slept_past_its_lease_follows_before_it_does_anything_else() {
    let mut stand = Stand::leading();

    assert_eq!(stand.at(1_000, lease(Some("me"), "2")), [Action::Follow, Action::Claim]);
    assert!(!stand.election.leads());
}

#[test]
fn a_renewal_that_was_answered_after_the_end_gives_nothing() {
    let mut stand = Stand::leading();
    stand.at(9, lease(Some("me"), "2"));
    stand.at(10, Event::Tick);
    let asked = stand.time(9);

    assert_eq!(stand.at(11, Event::Claimed { asked, version: "3".into() }), []);
    assert_eq!(stand.election.writes_until(), None);
}

#[test]
fn a_leader_whose_lease_another_has_taken_follows() {
    let mut stand = Stand::leading();

    assert_eq!(stand.at(2, lease(Some("other"), "9")), [Action::Follow]);
}

#[test]
fn a_lease_in_our_name_that_we_know_nothing_of_is_waited_out_like_any_other() {
    let mut stand = Stand::new();
    assert_eq!(stand.at(0, lease(Some("me"), "1")), []);
    assert_eq!(stand.at(14, lease(Some("me"), "1")), []);
    assert_eq!(stand.at(15, lease(Some("me"), "1")), [Action::Claim]);
    assert_eq!(stand.claimed(15, "2"), []);

    assert_eq!(stand.election.deadline(), Some(stand.time(20)));
}

#[test]
fn of_two_processes_of_one_name_the_second_leaves_the_lease_to_the_first_while_it_is_renewed() {
    let mut first = Stand::leading();
    let mut second = Stand::new();
    for (version, seconds) in (2..).zip((2..60).step_by(2)) {
        let (read, written) = (version.to_string(), (version + 1).to_string());
        assert_eq!(first.at(seconds, lease(Some("me"), &read)), [Action::Claim]);
        first.claimed(seconds, &written);

        assert_eq!(second.at(seconds, lease(Some("me"), &written)), [], "at {seconds}");
    }

    assert!(first.election.leads());
}

#[test]
fn the_first_lease_of_a_cluster_is_acted_on_at_once() {
    let mut stand = Stand::new();
    assert_eq!(stand.at(0, Event::Missing { marked: false }), [Action::Claim]);

    assert_eq!(stand.claimed(0, "1"), [Action::List]);
}

#[test]
fn a_lease_that_somebody_took_away_is_waited_for_as_if_it_were_held() {
    let mut marked = Stand::new();
    marked.at(0, Event::Missing { marked: true });
    let mut seen = Stand::new();
    seen.at(0, lease(Some("other"), "1"));
    seen.at(0, Event::Missing { marked: false });
    let mut own = Stand::leading();
    assert_eq!(own.at(0, Event::Missing { marked: false }), [Action::Follow, Action::Claim]);

    for mut stand in [marked, seen, own] {
        assert_eq!(stand.claimed(0, "9"), []);
        let deadline = stand.election.deadline();
        assert_eq!(deadline, Some(stand.time(10)), "its own tenure, as 20 comes later");
    }
}

#[test]
fn the_lease_is_given_up_only_when_no_write_is_left_and_all_is_fenced() {
    for settled in [true, false] {
        let mut leading = Stand::leading();
        let expected = if settled { vec![Action::Follow, Action::Release] } else { vec![Action::Follow] };
        assert_eq!(leading.at(1, Event::Resign { settled }), expected);
        let mut waiting = Stand::waiting();
        assert_eq!(waiting.at(16, Event::Resign { settled }), [Action::Follow]);
        let mut following = Stand::new();
        assert_eq!(following.at(1, Event::Resign { settled }), []);
    }
}
