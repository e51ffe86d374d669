//! Who is there, from what everyone says of hearing everyone: the same answer for all who know the same words.
//!
//! Whoever does not hear a node any more *accuses* it, under a number that no accusation of that node had before.
//! Whoever has heard the node since it learned of that number *vouches* for it. So a voucher is never older than the
//! accusation it answers, and news of a death need not wait for anyone: the accuser goes by its own ears until somebody
//! answers. The accused, once it knows, speaks up at once, and a third node that hears it answers in the same round.
//!
//! A node is *within reach* of another if that one hears it, or if somebody within its reach vouches for it. Where reach
//! is mutual both are there for each other. Where it is not, for longer than an answer takes, one side is deaf to the
//! other and will take over what that one has:
//!
//! | the accused | what follows |
//! |---|---|
//! | has a voucher that the accuser can reach | the accused stays, the accuser gives back what it took |
//! | is in mutual reach of somebody else | it stays with them, and all of them count the deaf one as lost |
//! | has nobody else | it yields to the accuser, but for what the accuser cannot serve |
//!
//! The same is said of a single interface of a node, by whoever watches that interface. Whoever hears the node speak from
//! an address of that interface vouches for it too. There both sides of a cut may accuse each other and yet speak, by
//! another network. Unless somebody vouches for one of them, the smaller tag stays. Whoever comes next and never saw an
//! interface *asks* at first, so that those who could vouch look at it, and accuses only where nobody does.

use std::collections::{BTreeMap, BTreeSet};

use ferrogate_wire::gossip::NodeTag;

use crate::model::InterfaceName;

/// How many of those who can answer for an accused interface go on looking at it: more than one, as one may leave.
const WITNESSES: usize = 2;

/// What is accused or vouched for: a node, or one of its interfaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subject {
    pub(super) node: NodeTag,
    pub(super) interface: Option<InterfaceName>,
}

impl Subject {
    pub(super) fn node(node: NodeTag) -> Self {
        Self { node, interface: None }
    }
}

/// What one speaker says of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Testimony {
    /// Whom it does not hear, with the number of the accusation.
    pub(super) accuses: BTreeMap<Subject, u32>,
    /// Interfaces that it should see and never saw.
    pub(super) asks: BTreeSet<Subject>,
    /// Whom it has heard, with the number of the newest accusation that this answers. Of its own interfaces, those whose
    /// accusers it sees again.
    pub(super) vouches: BTreeMap<Subject, u32>,
}

/// What everyone who has spoken says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Testimonies(pub(super) BTreeMap<NodeTag, Testimony>);

impl Testimonies {
    /// Everyone within reach of a listener, itself included. Who has not spoken yet accuses nobody.
    pub(super) fn within_reach(&self, listener: NodeTag, nodes: &BTreeSet<NodeTag>) -> BTreeSet<NodeTag> {
        let Some(own) = self.0.get(&listener) else { return nodes.clone() };
        let accused = |node: &NodeTag| own.accuses.get(&Subject::node(*node)).copied();
        let mut reached: BTreeSet<NodeTag> =
            nodes.iter().copied().filter(|node| *node == listener || accused(node).is_none()).collect();
        let mut open: Vec<(NodeTag, u32)> = nodes
            .iter()
            .filter(|node| !reached.contains(node))
            .filter_map(|node| Some((*node, accused(node)?)))
            .collect();
        loop {
            let before = open.len();
            open.retain(|&(node, number)| {
                let is_answered = self.is_answered(&Subject::node(node), number, &reached);
                if is_answered {
                    reached.insert(node);
                }
                !is_answered
            });
            if open.len() == before {
                return reached;
            }
        }
    }

    /// The greatest number under which anybody but these two accuses a subject now; 0 if nobody does.
    pub(super) fn accusation(&self, subject: &Subject, but: NodeTag) -> u32 {
        let others = self.0.iter().filter(|(node, _)| **node != but && **node != subject.node);
        others.filter_map(|(_, testimony)| testimony.accuses.get(subject)).max().copied().unwrap_or_default()
    }

    /// Whether anybody but these two asks who sees an interface.
    pub(super) fn is_asked_for(&self, subject: &Subject, but: NodeTag) -> bool {
        let mut others = self.0.iter().filter(|(node, _)| **node != but && **node != subject.node);
        others.any(|(_, testimony)| testimony.asks.contains(subject))
    }

    /// Whether one of these vouches for an interface.
    pub(super) fn is_seen(&self, subject: &Subject, by: impl Iterator<Item = NodeTag>) -> bool {
        let mut others = by.filter(|node| *node != subject.node);
        others.any(|node| self.0.get(&node).is_some_and(|own| own.vouches.contains_key(subject)))
    }

    /// The number under which a node accuses an interface of another, if it does.
    pub(super) fn link_accused_by(&self, accuser: NodeTag, node: NodeTag, interface: &InterfaceName) -> Option<u32> {
        self.0.get(&accuser)?.accuses.get(&Subject { node, interface: Some(interface.clone()) }).copied()
    }

    /// The greatest number that was ever used about a subject, as far as words that stand can tell.
    pub(super) fn number(&self, subject: &Subject) -> u32 {
        let numbers = self.0.values().flat_map(|own| [own.accuses.get(subject), own.vouches.get(subject)]);
        numbers.flatten().max().copied().unwrap_or_default()
    }

    /// Whether nobody within reach disputes that an interface is dead.
    pub(super) fn is_dead(&self, subject: &Subject, reached: &BTreeSet<NodeTag>) -> bool {
        self.open_accusers(subject, reached).any(|accuser| {
            let is_mutual = self.0.get(&subject.node).is_some_and(|own| {
                let back = own.accuses.keys().filter(|back| back.node == accuser && back.interface.is_some());
                back.into_iter().any(|back| self.open_accusers(back, reached).any(|node| node == subject.node))
            });
            !is_mutual || subject.node > accuser
        })
    }

    /// Whether somebody is to look at an interface as well: everyone while it is dead, and the first few as long as it is
    /// accused. Once it is answered for, whoever accuses may go on for as long as a session that flaps is held down; if those
    /// who answer stopped looking, it would be dead again, and so on, and addresses would move each time.
    pub(super) fn needs_witness(&self, subject: &Subject, witness: NodeTag, reached: &BTreeSet<NodeTag>) -> bool {
        let others = || self.0.iter().filter(|(node, _)| reached.contains(node) && **node != subject.node);
        // By its own accusation alone nobody goes on once that is answered, or both would go on because of each other.
        let doubts = |own: &Testimony| own.accuses.contains_key(subject) || own.asks.contains(subject);
        let is_accused = others().any(|(node, own)| *node != witness && doubts(own));
        let earlier = others().filter(|(node, own)| **node < witness && own.vouches.contains_key(subject));
        self.is_dead(subject, reached) || (is_accused && earlier.count() < WITNESSES)
    }

    /// The interfaces of a node that somebody else within reach says are dead, answered or not.
    pub(super) fn accused_links(&self, node: NodeTag, reached: &BTreeSet<NodeTag>) -> BTreeSet<InterfaceName> {
        let others = self.0.iter().filter(|(other, _)| reached.contains(other) && **other != node);
        let accused = others.flat_map(|(_, own)| own.accuses.keys()).filter(|subject| subject.node == node);
        accused.filter_map(|subject| subject.interface.clone()).collect()
    }

    /// Those within reach whose accusation of a subject nobody answers.
    fn open_accusers<'a>(
        &'a self,
        subject: &'a Subject,
        reached: &'a BTreeSet<NodeTag>,
    ) -> impl Iterator<Item = NodeTag> + 'a {
        let within = self.0.iter().filter(|(node, _)| reached.contains(node) && **node != subject.node);
        within.filter_map(move |(node, testimony)| {
            let number = *testimony.accuses.get(subject)?;
            (!self.is_answered(subject, number, reached)).then_some(*node)
        })
    }

    fn is_answered(&self, subject: &Subject, number: u32, by: &BTreeSet<NodeTag>) -> bool {
        let may_answer = |voucher: &&NodeTag| **voucher != subject.node || subject.interface.is_some();
        by.iter().filter(may_answer).any(|voucher| {
            self.0.get(voucher).and_then(|own| own.vouches.get(subject)).is_some_and(|answered| *answered >= number)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: NodeTag = NodeTag(1);
    const B: NodeTag = NodeTag(2);
    const C: NodeTag = NodeTag(3);
    const D: NodeTag = NodeTag(4);

    fn all() -> BTreeSet<NodeTag> {
        BTreeSet::from([A, B, C, D])
    }

    #[derive(Default)]
    struct Words(Testimonies);

    impl Words {
        fn accuses(mut self, who: NodeTag, whom: NodeTag, number: u32) -> Self {
            self.0.0.entry(who).or_default().accuses.insert(Subject::node(whom), number);
            self
        }

        fn vouches(mut self, who: NodeTag, whom: NodeTag, number: u32) -> Self {
            self.0.0.entry(who).or_default().vouches.insert(Subject::node(whom), number);
            self
        }

        fn reach(&self, listener: NodeTag) -> Vec<NodeTag> {
            self.0.within_reach(listener, &all()).into_iter().collect()
        }
    }

    fn link(node: NodeTag) -> Subject {
        Subject { node, interface: Some("eth1".into()) }
    }

    #[test]
    fn who_accuses_nobody_reaches_everybody() {
        assert_eq!(Words::default().reach(A), [A, B, C, D]);
    }

    #[test]
    fn an_accusation_stands_until_somebody_within_reach_answers_that_very_one() {
        let accused = || Words::default().accuses(B, A, 2);

        assert_eq!(accused().reach(B), [B, C, D]);
        assert_eq!(accused().vouches(C, A, 1).reach(B), [B, C, D]);
        assert_eq!(accused().vouches(C, A, 2).reach(B), [A, B, C, D]);
        assert_eq!(accused().vouches(C, A, 3).reach(B), [A, B, C, D]);
        assert_eq!(accused().vouches(C, A, 2).accuses(B, C, 1).reach(B), [B, D]);
    }

    #[test]
    fn whoever_takes_back_first_may_answer_for_its_own_interface() {
        let mut words = Testimonies::default();
        words.0.entry(A).or_default().accuses.insert(link(B), 1);
        words.0.entry(B).or_default().accuses.insert(link(A), 1);
        let is_dead = |words: &Testimonies| [A, B].map(|node| words.is_dead(&link(node), &all()));
        assert_eq!(is_dead(&words), [false, true]);

        let mut alone = words.clone();
        alone.0.entry(A).or_default().accuses.clear();
        assert_eq!(is_dead(&alone), [true, false]);
        for (first, other) in [(A, B), (B, A)] {
            let mut words = words.clone();
            let own = words.0.entry(first).or_default();
            own.accuses.clear();
            own.vouches.insert(link(first), 1);
            assert_eq!(is_dead(&words), [false, false], "{first:?}, {other:?}");
            // Another accusation is another matter.
            words.0.entry(other).or_default().accuses.insert(link(first), 2);
            assert!(words.is_dead(&link(first), &all()));
        }
    }

    #[test]
    fn a_voucher_may_itself_be_vouched_for_but_two_that_nobody_hears_cannot_vouch_for_each_other() {
        let deaf = || Words::default().accuses(B, A, 1).accuses(B, C, 1);

        assert_eq!(deaf().vouches(C, A, 1).vouches(D, C, 1).reach(B), [A, B, C, D]);
        assert_eq!(deaf().vouches(C, A, 1).vouches(A, C, 1).reach(B), [B, D]);
    }

    #[test]
    fn no_node_vouches_for_itself() {
        assert_eq!(Words::default().accuses(B, A, 1).vouches(A, A, 1).reach(B), [B, C, D]);
    }

    #[test]
    fn an_interface_is_dead_while_an_accusation_of_it_stands() {
        let mut words = Words::default();
        words.0.0.entry(B).or_default().accuses.insert(link(A), 1);
        assert!(words.0.is_dead(&link(A), &all()));
        assert!(!words.0.is_dead(&link(A), &BTreeSet::from([A, C])));

        words.0.0.entry(C).or_default().vouches.insert(link(A), 1);
        assert!(!words.0.is_dead(&link(A), &all()));
    }

    #[test]
    fn while_an_interface_is_dead_all_look_at_it_and_while_it_is_accused_the_first_two_who_see_it() {
        let [subject, accuser] = [NodeTag(9), NodeTag(5)];
        let needs = |witness: u64, vouchers: &[(u64, u32)]| {
            let mut words = Testimonies::default();
            words.0.entry(accuser).or_default().accuses.insert(link(subject), 3);
            for (voucher, number) in vouchers {
                words.0.entry(NodeTag(*voucher)).or_default().vouches.insert(link(subject), *number);
            }
            words.needs_witness(&link(subject), NodeTag(witness), &(1..=9).map(NodeTag).collect())
        };

        assert!(needs(1, &[]) && needs(8, &[]), "nobody answers");
        assert!(needs(8, &[(1, 2), (2, 2)]), "nobody answers the newest accusation");
        assert!(needs(1, &[(1, 3)]) && needs(8, &[(1, 3)]), "one is too few");
        let all = [(1, 3), (2, 3), (8, 3)];
        assert!(needs(1, &all) && needs(2, &all));
        assert!(!needs(8, &all), "two before it go on");
        assert!(!needs(5, &[(1, 3)]), "it is told that it is wrong");
    }

    #[test]
    fn of_two_interfaces_that_accuse_each_other_exactly_one_is_dead() {
        let mut words = Words::default();
        words.0.0.entry(B).or_default().accuses.insert(link(A), 1);
        words.0.0.entry(A).or_default().accuses.insert(link(B), 1);
        assert!(!words.0.is_dead(&link(A), &all()) && words.0.is_dead(&link(B), &all()));

        // With a voucher it is not a matter of names.
        words.0.0.entry(C).or_default().vouches.insert(link(B), 1);
        assert!(words.0.is_dead(&link(A), &all()) && !words.0.is_dead(&link(B), &all()));
    }

    proptest! {
        /// The rule in other words: a chain of vouchers leads to whom one hears.
        #[test]
        fn whoever_is_reached_is_heard_or_has_a_chain_of_vouchers(
            accusations in prop::collection::vec((1_u64..7, 1_u64..7, 1_u32..4), 0..20),
            vouchers in prop::collection::vec((1_u64..7, 1_u64..7, 1_u32..4), 0..20),
        ) {
            let nodes: BTreeSet<NodeTag> = (1..7).map(NodeTag).collect();
            let mut words = Words::default();
            for (who, whom, number) in accusations {
                words = words.accuses(NodeTag(who), NodeTag(whom), number);
            }
            for (who, whom, number) in vouchers {
                words = words.vouches(NodeTag(who), NodeTag(whom), number);
            }
            for &listener in &nodes {
                let reached = words.0.within_reach(listener, &nodes);
                let Some(own) = words.0.0.get(&listener) else { continue };
                for node in nodes.iter().filter(|node| **node != listener) {
                    let Some(number) = own.accuses.get(&Subject::node(*node)) else {
                        prop_assert!(reached.contains(node));
                        continue;
                    };
                    let vouched = reached.iter().any(|voucher| {
                        let answer = words.0.0.get(voucher).and_then(|own| own.vouches.get(&Subject::node(*node)));
                        voucher != node && answer.is_some_and(|answer| answer >= number)
                    });
                    prop_assert_eq!(reached.contains(node), vouched);
                }
            }
        }
    }
}
