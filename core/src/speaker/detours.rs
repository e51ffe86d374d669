//! Connections that began at the former owner of an address.
//!
//! When an address moves although its owner serves on, the packets of connections that are under way reach the next owner,
//! which knows nothing of them and would end them. Until the former owner has had its grace time they are passed on to it;
//! connections that begin now stay where they began.
//!
//! A former owner whose speaker is silent may be lost, or only its speaker is: its kernel is asked, by ARP or neighbour
//! discovery, and again and again while it answers. Until it should have answered packets are passed on, so that
//! connections to a node that is lost end that much later.
//!
//! ```text
//!                  heard                 its speaker falls silent
//!  the address ───────────► passed on ────────────────────────────┐
//!  comes here                   │ the grace is over,              ▼
//!      │                        │ or the address goes      ┌── asked ◄──┐ a second later
//!      │ not heard              ▼                          │      └─────┘ it answers
//!      └───────────────────► (nothing) ◄───────────────────┘
//!                                        no answer to either of two questions
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ferrogate_wire::ethernet::Mac;

use crate::{
    model::{Family, InterfaceName, NodeName, Prefix},
    speaker::{
        Action, DataPath, NextHop, NotPassedOn, Report, Speaker,
        announce::{Carries, Links},
        watch,
    },
};

/// How long the kernel of a former owner has for an answer: a neighbour on the link needs less than a millisecond.
pub(super) const ANSWER_TIME: Duration = Duration::from_millis(50);

/// Questions in a row without an answer that show that nobody is there. Two, for one may get lost, and the answer to it may
/// wait behind what this node has to do first.
pub(super) const QUESTIONS: u32 = 2;

/// How long an answer counts.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long connections are passed on from where others may stand that began earlier: long enough for a request that is
/// under way, and short for connections that live long, which would be passed on with them and end.
const RETURN_GRACE: Duration = Duration::from_millis(200);

/// How long after its start a speaker may be taking back what it had before.
const RETURN_TIME: Duration = Duration::from_secs(1);

/// Which addresses of this node's have a former owner that still serves, or may.
#[derive(Debug, Default)]
pub(super) struct Detours {
    by_address: BTreeMap<IpAddr, Detour>,
    ends: BTreeSet<(Instant, IpAddr)>,
    /// What is asked, of whom and where.
    questions: BTreeMap<(NodeName, NextHop), Question>,
    is_news: bool,
}

#[derive(Debug)]
struct Detour {
    by: NodeName,
    next_hop: NextHop,
    until: Instant,
    /// Its speaker is not heard, so that it hangs on answers.
    is_asked: bool,
}

/// Whether a node is there.
#[derive(Debug)]
struct Question {
    /// What hangs on it.
    addresses: BTreeSet<IpAddr>,
    /// When it is asked again, or given up.
    due: Instant,
    unanswered: u32,
    /// This node was late itself to give it up, and waits once more.
    is_put_off: bool,
}

/// What is known of the speaker of a former owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    /// It is heard; or it has left, and its node goes on without it.
    Well,
    /// It has fallen silent.
    No,
    /// It has left, and taken its addresses off the host.
    NoMore,
}

/// What is due.
#[derive(Debug, Default)]
struct Due {
    /// Neighbours to ask for a sign of life.
    questions: Vec<NextHop>,
    /// What is not passed on any more before its time.
    given_up: Vec<(IpAddr, NodeName)>,
}

impl Detours {
    /// Passes on to a node, as long as it answers if its speaker is not heard.
    fn begin(
        &mut self,
        now: Instant,
        address: IpAddr,
        by: NodeName,
        next_hop: NextHop,
        until: Instant,
        is_heard: bool,
    ) {
        self.end(address);
        self.by_address.insert(address, Detour { by, next_hop, until, is_asked: false });
        self.ends.insert((until, address));
        self.is_news = true;
        if !is_heard {
            self.ask(now, address);
        }
    }

    fn ask(&mut self, now: Instant, address: IpAddr) {
        let Some(detour) = self.by_address.get_mut(&address) else { return };
        detour.is_asked = true;
        let question = self.questions.entry((detour.by.clone(), detour.next_hop)).or_insert_with(|| Question {
            addresses: BTreeSet::new(),
            due: now,
            unanswered: 0,
            is_put_off: false,
        });
        question.addresses.insert(address);
        (question.due, question.unanswered, question.is_put_off) = (now, 0, false);
    }

    /// Whether anybody is asked.
    fn is_asking(&self) -> bool {
        !self.questions.is_empty()
    }

    /// Takes in that a node is heard on the link. Returns whether it is asked there.
    fn answered(&mut self, now: Instant, by: &NodeName, next_hop: NextHop) -> bool {
        let Some(question) = self.questions.get_mut(&(by.clone(), next_hop)) else { return false };
        (question.due, question.unanswered, question.is_put_off) = (now + ASK_AGAIN, 0, false);
        true
    }

    pub(super) fn end(&mut self, address: IpAddr) {
        let Some(Detour { by, next_hop, until, .. }) = self.by_address.remove(&address) else { return };
        self.ends.remove(&(until, address));
        let key = (by, next_hop);
        if let Some(question) = self.questions.get_mut(&key) {
            question.addresses.remove(&address);
            if question.addresses.is_empty() {
                self.questions.remove(&key);
            }
        }
        self.is_news = true;
    }

    /// Follows what has become of the speakers of former owners. Returns the addresses that those have taken off their
    /// hosts.
    fn follow(&mut self, now: Instant, speaks: impl Fn(&NodeName) -> Speaks) -> Vec<(IpAddr, NodeName)> {
        let is_silent = |detour: &Detour| !detour.is_asked && speaks(&detour.by) == Speaks::No;
        let silent = self.by_address.iter().filter(|(_, detour)| is_silent(detour));
        for address in silent.map(|(address, _)| *address).collect::<Vec<_>>() {
            self.ask(now, address);
        }
        self.end_where(|detour| speaks(&detour.by) == Speaks::NoMore)
    }

    fn end_where(&mut self, is_over: impl Fn(&Detour) -> bool) -> Vec<(IpAddr, NodeName)> {
        let over = self.by_address.iter().filter(|(_, detour)| is_over(detour));
        let over: Vec<_> = over.map(|(address, detour)| (*address, detour.by.clone())).collect();
        over.iter().for_each(|(address, _)| self.end(*address));
        over
    }

    /// Ends what has had its time, and asks who is to be asked now.
    fn tick(&mut self, now: Instant) -> Due {
        while let Some(&(_, address)) = self.ends.first().filter(|(until, _)| *until <= now) {
            self.end(address);
        }
        let mut due = Due::default();
        for ((by, next_hop), question) in self.questions.iter_mut().filter(|(_, question)| question.due <= now) {
            if question.unanswered < QUESTIONS {
                due.questions.push(*next_hop);
                question.unanswered += 1;
                question.due = now + ANSWER_TIME;
            } else if !question.is_put_off && question.due + ANSWER_TIME < now {
                question.is_put_off = true;
                question.due = now + ANSWER_TIME;
            } else {
                due.given_up.extend(question.addresses.iter().map(|address| (*address, by.clone())));
            }
        }
        due.given_up.iter().for_each(|(address, _)| self.end(*address));
        due
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let end = self.ends.first().map(|(until, _)| *until);
        self.questions.values().map(|question| question.due).chain(end).min()
    }

    /// All of them, if they are others than when this was last asked.
    pub(super) fn news(&mut self) -> Option<BTreeMap<IpAddr, NextHop>> {
        let all = || self.by_address.iter().map(|(address, detour)| (*address, detour.next_hop)).collect();
        std::mem::take(&mut self.is_news).then(all)
    }
}

impl Speaker {
    /// Passes on what began at the former owner of an address, unless that one is lost.
    pub(super) fn begin_detour(
        &mut self,
        now: Instant,
        address: IpAddr,
        interfaces: &BTreeSet<InterfaceName>,
        actions: &mut Vec<Action>,
    ) {
        let mut of_services = self.sharing.of(address).filter_map(|service| self.outcomes.get(service));
        let Some(from) = of_services.find_map(|outcome| outcome.from.clone()) else { return };
        let mut grace = self.config.hand_over_grace;
        let may_return = self.host.has(address) || self.begun_at.is_none_or(|begun| now < begun + RETURN_TIME);
        // The kernel of a proxy's node need not know the proxy's connections from others'.
        if self.config.data_path == DataPath::Proxy && may_return {
            grace = grace.min(RETURN_GRACE);
        }
        if grace.is_zero() {
            return;
        }
        let there = self.membership.whereabouts(&from);
        match way(there, &self.own.links, interfaces, Family::of(address)) {
            Ok(way) => {
                let Some(interface) = self.interfaces.as_ref().and_then(|all| all.get(way.interface)) else { return };
                let next_hop = NextHop { address: way.address, interface: interface.index };
                self.detours.begin(now, address, from, next_hop, now + grace, way.is_sound);
            }
            Err(why) => actions.push(Action::Report(Report::NotPassedOn { address, from, why })),
        }
    }

    /// Follows what has become of the speakers of former owners.
    pub(super) fn follow_former_owners(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let (membership, is_proxy) = (&self.membership, self.config.data_path == DataPath::Proxy);
        let released = self.detours.follow(now, |node| match (membership.is_lost(node), membership.is_leaving(node)) {
            // What the proxy serves is taken off the host by a speaker that leaves.
            (true, true) if is_proxy => Speaks::NoMore,
            (true, false) => Speaks::No,
            (false, _) | (true, true) => Speaks::Well,
        });
        report_ended(released, NotPassedOn::Released, actions);
    }

    /// Takes in that a node's speaker has begun anew, which takes off its host what an earlier life has left there.
    pub(super) fn end_detours_by_reborn(&mut self, node: &NodeName, actions: &mut Vec<Action>) {
        if self.config.data_path == DataPath::Proxy {
            let released = self.detours.end_where(|detour| detour.is_asked && detour.by == *node);
            report_ended(released, NotPassedOn::Released, actions);
        }
    }

    /// Asks former owners whose speakers are silent for signs of life, and gives up those that give none.
    pub(super) fn ask_former_owners(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Due { questions, given_up } = self.detours.tick(now);
        for next_hop in questions {
            let mut interfaces = self.interfaces.iter().flatten();
            let Some((name, interface)) = interfaces.find(|(_, interface)| interface.index == next_hop.interface)
            else {
                continue;
            };
            // A prefix of ours may be longer than the neighbour's.
            let of_family = |prefix: &&Prefix| Family::of(prefix.ip()) == Family::of(next_hop.address);
            let mut addresses = interface.addresses.iter().filter(of_family);
            let near = addresses.clone().find(|prefix| prefix.contains(next_hop.address));
            if let Some(own) = near.or_else(|| addresses.next()) {
                self.layer2.call(name, own.ip(), next_hop.address, actions);
            }
        }
        report_ended(given_up, NotPassedOn::NoAnswer, actions);
    }

    /// Somebody is on a link at an address. Returns whether a former owner was asked there, and this is it.
    pub(super) fn take_sign_of_life(&mut self, now: Instant, on: &InterfaceName, address: IpAddr, mac: Mac) -> bool {
        if !self.detours.is_asking() {
            return false;
        }
        let interface = self.interfaces.as_ref().and_then(|all| all.get(on));
        let (Some(node), Some(interface)) = (self.layer2.whose(mac), interface) else { return false };
        self.detours.answered(now, node, NextHop { address, interface: interface.index })
    }
}

fn report_ended(ended: Vec<(IpAddr, NodeName)>, why: NotPassedOn, actions: &mut Vec<Action>) {
    let report = |(address, from)| Action::Report(Report::NotPassedOn { address, from, why });
    actions.extend(ended.into_iter().map(report));
}

/// Where another node was found last, and whether it is there still.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whereabouts<'a> {
    /// Of its Node object.
    pub(super) addresses: &'a [IpAddr],
    /// As it has said.
    pub(super) links: Option<&'a Links>,
    pub(super) dead_links: &'a BTreeSet<InterfaceName>,
    /// Its speaker is heard.
    pub(super) is_heard: bool,
}

/// A way to another node.
pub(super) struct Way<'a> {
    /// Our interface.
    pub(super) interface: &'a InterfaceName,
    /// Its address there.
    pub(super) address: IpAddr,
    /// Nothing speaks against its being there.
    pub(super) is_sound: bool,
}

/// How to reach the former owner of an address of this family that is announced on these interfaces of ours. It must be on
/// a link of theirs, for its answers go out there; what is passed on may take another.
pub(super) fn way<'a>(
    there: Option<Whereabouts<'_>>,
    own: &'a Links,
    interfaces: &BTreeSet<InterfaceName>,
    family: Family,
) -> Result<Way<'a>, NotPassedOn> {
    let there = there.filter(|there| there.is_heard || there.links.is_some()).ok_or(NotPassedOn::Unknown)?;
    let serving = || own.iter().filter(|(name, _)| interfaces.contains(*name));
    let links = || there.links.into_iter().flatten();
    let is_alive = |(name, _): &(&InterfaceName, &Carries)| !there.dead_links.contains(*name);
    let is_on_link = |(name, theirs): &(&InterfaceName, &Carries)| {
        serving().any(|(ours, carries)| ours == *name || carries.shares_subnet(theirs))
    };
    let direct = |(name, theirs): (&InterfaceName, &Carries)| {
        let near = serving().filter(|(_, ours)| ours.shares_subnet(theirs));
        watch::way(near, name, theirs, family).or_else(|| watch::way(serving(), name, theirs, family))
    };
    // It may not have said yet what links it has, or not by which addresses it is found there.
    let by_address = || {
        let own_link = |address| own.iter().find(|(_, carries)| carries.is_near(address));
        let mut addresses = there.addresses.iter().filter(|address| Family::of(**address) == family);
        addresses.find_map(|address| Some((own_link(*address)?.0, *address)))
    };
    let is_sound = there.is_heard && (there.links.is_none() || links().filter(is_alive).any(|link| is_on_link(&link)));
    let found = if is_sound {
        let any = |(name, theirs)| watch::way(own.iter(), name, theirs, family);
        let on_link = links().filter(is_alive).filter(is_on_link).find_map(direct);
        on_link.or_else(|| links().filter(is_alive).find_map(any))
    } else {
        let mut before = links().filter(is_on_link).peekable();
        before.peek().ok_or(NotPassedOn::NotOnLink)?;
        before.find_map(direct)
    };
    let found = found.map(|way| (way.interface, way.address));
    let (interface, address) = found.or_else(by_address).ok_or(NotPassedOn::NoSharedLink)?;
    Ok(Way { interface, address, is_sound })
}
