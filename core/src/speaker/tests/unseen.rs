//! Owners whose interface never answers by BFD.

use ferrogate_wire::gossip::Statement;

use super::{
    watch::{AFTER_K3, accusation as statement, link_local, path, watch, watch_link},
    *,
};

/// How long a session may take to come up, and a moment less.
const LIMIT: Duration = Duration::from_secs(3);
const NOT_YET: Duration = Duration::from_millis(2_900);

/// How long those who are asked have to answer, with the way there and back.
const ANSWERS: Duration = Duration::from_millis(3_100);

/// `k1` among three nodes, which comes after `k2` for an address and has not seen it yet.
struct Waiting {
    stand: Stand,
    links: BTreeMap<u8, Link>,
    /// Of `k2`.
    life: u64,
    /// What `k3` answers.
    vouches: Vec<Statement>,
    /// Whom it is to look at.
    looks_at: Vec<IpAddr>,
    /// Whom it says not to see.
    unseen: Vec<NodeName>,
    accuses: Vec<Statement>,
}

impl Waiting {
    fn new() -> Self {
        let mut stand = Stand::with(Config::new("k1".into(), DataPath::KubeProxy, 1));
        stand.snapshot(&snapshot(3, [service("second", &[SECOND])]));
        let links = [2, 3].map(|node| (node, watch_link(node))).into();
        let mut waiting = Self {
            stand,
            links,
            life: 1,
            vouches: Vec::new(),
            looks_at: Vec::new(),
            unseen: Vec::new(),
            accuses: Vec::new(),
        };
        let met = waiting.stand.step(Event::Interfaces(interfaces(1)));
        waiting.note(&met);
        waiting.hear(&[2, 3]);
        assert_eq!(waiting.looks_at, [path(2).remote]);
        waiting
    }

    /// One that sees `k3`, and asks.
    fn asking() -> Self {
        let mut waiting = Self::new();
        waiting.pass(LIMIT + INTERVAL);
        waiting.see(3, Verdict::Up);
        assert_eq!(waiting.accuses, [statement(0)]);
        waiting
    }

    fn note(&mut self, actions: &[Action]) {
        if let Some(watch) = watch(actions) {
            self.looks_at = watch.wanted.sessions.into_keys().map(|path| path.remote).collect();
        }
        self.unseen.extend(reports(actions).into_iter().filter_map(|report| match report {
            Report::Unseen { node, .. } => Some(node.clone()),
            _ => None,
        }));
        if let Some(word) = words(actions).last() {
            self.accuses.clone_from(&word.accuses);
        }
    }

    fn hear(&mut self, nodes: &[u8]) {
        for node in nodes {
            let links = self.links.get(node).cloned().into_iter().collect();
            let life = if *node == 2 { self.life } else { 1 };
            let vouches = if *node == 3 { self.vouches.clone() } else { Vec::new() };
            let word = Word { life, links, vouches, ..self.stand.word(*node) };
            let heard = self.stand.receive(*node, word);
            self.note(&heard);
        }
    }

    fn pass_hearing(&mut self, time: Duration, nodes: &[u8]) {
        let end = self.stand.now + time;
        while self.stand.now < end {
            self.hear(nodes);
            let passed = only(self.stand.pass(INTERVAL.min(end - self.stand.now)));
            self.note(&passed);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.pass_hearing(time, &[2, 3]);
    }

    fn see(&mut self, node: u8, verdict: Verdict) {
        let node = format!("k{node}").as_str().into();
        let seen = self.stand.step(Event::Watched { node, interface: "eth1".into(), verdict });
        self.note(&seen);
        self.pass(INTERVAL);
    }

    fn owns(&self) -> bool {
        self.stand.owns(SECOND)
    }
}

#[test]
fn an_owner_that_is_never_seen_is_dead_where_another_is_and_nobody_answers_for_it() {
    let mut waiting = Waiting::new();

    waiting.pass(NOT_YET);
    assert_eq!(waiting.looks_at, [path(2).remote]);
    waiting.pass(LIMIT - NOT_YET + INTERVAL);
    assert_eq!(waiting.looks_at, [path(2).remote, path(3).remote]);
    assert_eq!(waiting.accuses, []);
    waiting.see(3, Verdict::Up);
    assert_eq!(waiting.accuses, [statement(0)]);
    assert_eq!(waiting.unseen, ["k2".into()]);
    assert_eq!(waiting.looks_at, [path(2).remote, path(3).remote]);
    waiting.pass(ANSWERS - INTERVAL * 3);
    assert!(!waiting.owns());
    waiting.pass(INTERVAL * 3);

    assert!(waiting.owns());
    assert_eq!(waiting.accuses, [statement(1)]);

    waiting.see(2, Verdict::Up);
    assert!(!waiting.owns());
    assert_eq!(waiting.accuses, []);
}

#[test]
fn an_owner_that_another_sees_stays_for_as_long_as_that_one_does() {
    let mut waiting = Waiting::asking();
    waiting.pass(ANSWERS / 2);
    waiting.vouches = vec![statement(0)];

    waiting.pass(ANSWERS * 3);
    assert!(!waiting.owns());
    assert_eq!(waiting.accuses, [statement(0)]);

    waiting.vouches.clear();
    waiting.pass(ANSWERS - INTERVAL * 2);
    assert!(!waiting.owns());
    waiting.pass(INTERVAL * 3);
    assert!(waiting.owns());
}

/// Two that do not see each other cannot tell who of them is cut off.
#[test]
fn whoever_sees_nobody_any_more_asks_no_more() {
    let mut waiting = Waiting::asking();
    waiting.vouches = vec![statement(0)];
    waiting.pass(ANSWERS * 2);
    assert!(!waiting.owns());

    waiting.see(3, Verdict::Unwatched);
    assert_eq!(waiting.accuses, []);
    waiting.pass_hearing(ANSWERS * 3, &[2]);
    assert!(!waiting.accuses.contains(&statement(1)));

    // Another is seen.
    waiting.vouches.clear();
    waiting.pass(INTERVAL);
    waiting.see(3, Verdict::Up);
    assert_eq!(waiting.accuses, [statement(0)]);
    waiting.pass(ANSWERS);
    assert!(waiting.owns());
}

#[test]
fn nobody_is_asked_for_while_no_answer_could_be_heard() {
    let mut waiting = Waiting::asking();
    let mut own = interfaces(1);
    own.get_mut("eth1").unwrap().carrier = false;
    own.insert("eth2".into(), interfaces(2)["eth2"].clone());

    let deaf = waiting.stand.step(Event::Interfaces(own));
    waiting.note(&deaf);
    let passed = only(waiting.stand.pass(ANSWERS * 2));
    waiting.note(&passed);

    assert_eq!(waiting.accuses, []);
    assert!(!waiting.owns());
}

#[test]
fn an_owner_that_is_heard_from_the_interface_or_begins_anew_is_given_time_while_it_is_asked_for() {
    let mut waiting = Waiting::asking();
    waiting.pass(ANSWERS / 2);
    waiting.life = 2;
    waiting.pass(ANSWERS + LIMIT / 2);
    assert_eq!(waiting.accuses, [statement(0)]);

    waiting.links.insert(2, Link { watch_ipv6: Some(link_local(2)), ..watch_link(2) });
    waiting.links.get_mut(&2).unwrap().watch_ipv4 = Some((v4("198.51.100.12"), 24));
    waiting.pass(INTERVAL * 2);
    assert_eq!(waiting.accuses, []);
}

#[test]
fn whoever_comes_next_no_more_asks_no_more() {
    let mut waiting = Waiting::asking();

    let taken = waiting.stand.snapshot(&snapshot(3, [local("second", &[SECOND], &["k2"]), service("won", &[WON])]));
    waiting.note(&taken);
    waiting.pass(ANSWERS * 2);

    assert_eq!(waiting.accuses, []);
    assert!(waiting.looks_at.is_empty());
}

#[test]
fn time_in_which_nobody_could_answer_does_not_count_either() {
    let mut waiting = Waiting::asking();

    waiting.stand.now += ANSWERS * 2;
    waiting.pass(INTERVAL);

    assert!(!waiting.owns());
}

#[test]
fn who_is_asked_looks_and_answers_and_nothing_moves() {
    let mut waiting = Waiting::new();
    let asked = |waiting: &mut Waiting| {
        let links = vec![watch_link(3)];
        let word = Word { accuses: vec![statement(0)], links, ..waiting.stand.word(3) };
        let heard = [waiting.stand.receive(3, word), only(waiting.stand.pass(INTERVAL))].concat();
        waiting.note(&heard);
        words(&heard).last().unwrap().vouches.clone()
    };
    // It comes after the owner no more, as another comes before it, and looks all the same.
    let facts = snapshot(3, [service("won", &[WON]), local("second", &[SECOND], &["k2", "k3"])]);
    let taken = waiting.stand.snapshot(&facts);
    waiting.note(&taken);
    waiting.hear(&[2]);
    assert!(waiting.looks_at.is_empty());

    assert_eq!(asked(&mut waiting), []);
    assert_eq!(waiting.looks_at, [path(2).remote]);
    waiting.stand.step(Event::Watched { node: "k2".into(), interface: "eth1".into(), verdict: Verdict::Up });

    assert_eq!(asked(&mut waiting), [statement(0)]);
    assert!(waiting.stand.owns(WON));
}

#[test]
fn whoever_was_seen_before_the_owner_was_due_is_enough() {
    let mut waiting = Waiting::new();
    waiting.stand.snapshot(&snapshot(3, [service("second", &[SECOND]), service("third", &[AFTER_K3])]));
    waiting.see(3, Verdict::Up);
    waiting.pass(NOT_YET - INTERVAL);
    assert_eq!(waiting.accuses, []);

    waiting.pass(INTERVAL * 2);

    assert_eq!(waiting.accuses, [statement(0)]);
}

#[test]
fn where_nobody_is_seen_an_owner_that_is_never_seen_keeps_what_it_has() {
    let mut waiting = Waiting::new();

    waiting.pass(LIMIT * 4);

    assert!(!waiting.owns());
    assert_eq!(waiting.accuses, []);
    assert_eq!(waiting.looks_at, [path(2).remote, path(3).remote]);
}

#[test]
fn an_owner_whose_words_come_from_the_interface_need_not_be_seen() {
    let mut waiting = Waiting::new();
    waiting.links.insert(2, Link { watch_ipv4: Some((v4("198.51.100.12"), 24)), ..watch_link(2) });

    waiting.pass(LIMIT * 2);
    waiting.see(3, Verdict::Up);
    waiting.pass(LIMIT * 2);

    assert_eq!(waiting.accuses, []);
    assert_eq!(waiting.looks_at, [ip("198.51.100.12")]);
}

/// Link-local addresses are found from every interface of a node, whatever link that is on.
#[test]
fn an_owner_of_whom_no_common_subnet_is_known_need_not_be_seen() {
    for (subnets, expected) in [(None, false), (Some(vec![(ip("2001:db8::"), 64)]), true)] {
        let mut waiting = Waiting::new();
        waiting.links.insert(2, Link { watch_ipv4: None, subnets, ..watch_link(2) });
        waiting.pass(LIMIT + INTERVAL * 2);

        waiting.see(3, Verdict::Up);

        assert_eq!(!waiting.accuses.is_empty(), expected);
    }
}

#[test]
fn an_owner_that_was_away_or_began_anew_or_ended_the_session_has_the_whole_time_again() {
    let away = |waiting: &mut Waiting| {
        waiting.pass_hearing(DETECTION * 2, &[3]);
        waiting.hear(&[2]);
    };
    let begins_anew = |waiting: &mut Waiting| {
        waiting.life = 2;
        waiting.hear(&[2]);
    };
    let ends = |waiting: &mut Waiting| {
        waiting.see(2, Verdict::Up);
        waiting.see(2, Verdict::Unwatched);
    };
    for begin in [&away as &dyn Fn(&mut Waiting), &begins_anew, &ends] {
        let mut waiting = Waiting::new();
        waiting.stand.snapshot(&snapshot(3, [service("second", &[SECOND]), service("third", &[AFTER_K3])]));
        waiting.see(3, Verdict::Up);
        waiting.pass(NOT_YET - INTERVAL);

        begin(&mut waiting);
        waiting.pass(NOT_YET - INTERVAL * 2);
        assert_eq!(waiting.accuses, []);

        waiting.pass(INTERVAL * 6);
        assert_eq!(waiting.accuses, [statement(0)]);
    }
}

#[test]
fn time_in_which_nobody_looked_does_not_count() {
    let mut waiting = Waiting::new();
    waiting.stand.snapshot(&snapshot(3, [service("second", &[SECOND]), service("third", &[AFTER_K3])]));
    waiting.see(3, Verdict::Up);

    waiting.stand.now += LIMIT * 2;
    waiting.pass(INTERVAL);
    assert_eq!(waiting.accuses, []);

    waiting.pass(LIMIT);
    assert_eq!(waiting.accuses, [statement(0)]);
}
