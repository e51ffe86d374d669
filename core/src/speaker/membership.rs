//! Which speakers are there, and what they say about themselves.
//!
//! Every speaker sends its *word* to every other at each interval, and one that stays silent for the detection time is
//! not heard any more. What follows from that is settled between all (`settlement`): whoever is not heard here may still
//! be heard by a third. Words also get around by others (`swim`). Three rules keep addresses from moving without need: a
//! speaker that starts believes in everyone for one detection time; time in which this node could not have heard
//! anything (it had no carrier, or the process was held up) does not count against the others; and a speaker that says
//! it is leaving is believed at once.
//!
//! A recording brings nobody back: datagrams count once, and whoever was not heard before is only heard when it *greets*
//! this speaker in its present life. It greets whom it hears for the first time, and who says not to hear it.
//!
//! Where speakers do not gossip, words come by Leases at the API server instead (`leases`), and nobody's by another.
//!
//! What else finds out that a node or one of its interfaces is dead (BFD, say) feeds its [`Verdict`] in beside the words.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::repeat,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_wire::{
    ethernet::Mac,
    gossip::{
        Datagram, Link, MAX_GREETINGS, MAX_LINKS, MAX_STATEMENTS, MAX_YIELDS, Message, NodeTag, Origin, Statement, Word,
    },
};
use imbl::OrdMap;

use self::{
    leases::{Leases, Look, Shown},
    replay::Replay,
    settlement::{Subject, Testimonies, Testimony},
    swim::{Identity, Swim},
};
use crate::{
    model::{InterfaceName, NodeName, Prefix, node::Node},
    speaker::{
        Config, Disbelieved, Verdict,
        announce::{Carries, Links, Liveness, Standing, Standings},
        detours::Whereabouts,
        health::Refusals,
        watch::{Outlook, Saying, Watchable},
    },
    write::SpeakerLease,
};

pub(super) mod leases;
mod replay;
mod settlement;
mod swim;

/// How many strangers' addresses are remembered so that each is reported once.
const MAX_STRANGERS: usize = 64;

/// Up to how many others are told news at once and directly. Beyond, news travel from one to the next.
const MAX_HURRIED: usize = 32;

/// After how many intervals an accused speaker says its word anew, so that it gets around by others.
const REFRESH_INTERVALS: u32 = 4;

/// How many intervals the accused wait for somebody to answer for them.
const SETTLE_INTERVALS: u32 = 2;

/// How long those who are asked for an interface have to see it, which takes as long as a session takes to come up.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// For how many intervals a speaker is greeted.
const GREETING_INTERVALS: u32 = 20;

/// In how many lives a speaker is greeted at once: one is its own, the others may be recordings.
const MAX_GREETED_LIVES: usize = 4;

/// What this speaker says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) proxy_ready: bool,
    pub(super) leaving: bool,
    pub(super) links: Links,
    pub(super) refusals: Refusals,
}

/// Everyone else, as this speaker sees them.
#[derive(Debug)]
pub(super) struct Membership {
    node: NodeName,
    tag: NodeTag,
    interval: Duration,
    detection_time: Duration,
    settle_time: Duration,
    life: u64,
    /// Counts the datagrams of this life.
    counter: u64,
    members: BTreeMap<NodeName, Member>,
    by_address: BTreeMap<IpAddr, NodeName>,
    by_tag: BTreeMap<NodeTag, NodeName>,
    /// Of every node, this one included.
    tags: BTreeSet<NodeTag>,
    looks_elsewhere: bool,
    has_started: bool,
    /// This node has no carrier where words come in.
    is_deaf: bool,
    woke_at: Option<Instant>,
    /// This step comes so late that nothing could be heard in time.
    is_late: bool,
    sent_at: Option<Instant>,
    send_at: Option<Instant>,
    strangers: BTreeSet<IpAddr>,
    disbelieved: Disbelieved,
    /// Where words come by Leases and not by gossip.
    leases: Option<Leases>,
    swim: Swim,
    /// The last word of this speaker, and when it got its version.
    said: Option<(Word, Instant)>,
    /// This speaker's word may be another than was said.
    is_news: bool,
    /// Until when what this speaker says is to be read at once, as it is new to somebody.
    presses_until: Option<Instant>,
    /// What everyone says, this speaker included.
    testimonies: Testimonies,
    /// The testimonies may be others than were judged by.
    is_in_doubt: bool,
    /// Others have gone on without this speaker, and it is alone.
    yields: bool,
    /// The greatest number under which this speaker was accused; 0 while it is not.
    accused: u32,
    /// Interfaces of this node that somebody accuses, or did until lately.
    accused_links: BTreeSet<InterfaceName>,
    /// When to look whether that is so for too long.
    accused_until: Option<Instant>,
    /// Those of them that nobody answers for, since when, and whether for long enough.
    dead_links: BTreeMap<InterfaceName, (Instant, bool)>,
}

#[derive(Debug)]
struct Member {
    tag: NodeTag,
    addresses: Vec<IpAddr>,
    state: State,
    replay: Option<Replay>,
    /// The lives in which it is greeted, at most [`MAX_GREETED_LIVES`], and until when.
    greeted: BTreeMap<u64, Instant>,
    /// The newest word, however it came.
    word: Option<Word>,
    /// What it says about its links.
    links: Option<Links>,
    /// How often this speaker has left addresses to it.
    yielded: u32,
    /// It was heard once and is missed since, in this life of ours or, by the snapshot, in an earlier one.
    is_missed: bool,
    /// An interface of it was found dead, and it was not heard since.
    is_doubted: bool,
    /// When it was heard last.
    heard_at: Option<Instant>,
    /// Since when interfaces of it are found dead.
    cut_off_at: Option<Instant>,
    /// For how long it is there once it was heard.
    lasts: Duration,
    /// Whether it is heard.
    hearing: Watch,
    /// Interfaces of it that are watched.
    watches: BTreeMap<InterfaceName, Watch>,
    /// Interfaces of it that its words come from, with the newest accusation after which one did.
    spoke_from: BTreeMap<InterfaceName, u32>,
    /// Since when it goes on without this speaker though it is within reach, and whether for too long.
    is_mute: Option<(Instant, bool)>,
    /// It is there, as far as words tell.
    is_there: bool,
    /// Interfaces of it that are accused without an answer.
    dead_links: BTreeSet<InterfaceName>,
    /// Interfaces of it that are accused, and that this node is to look at.
    links_in_doubt: BTreeSet<InterfaceName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not heard since our start, and not missed before then.
    Presumed { until: Instant },
    /// Heard; missed from then on, unless it was leaving.
    Heard { until: Instant },
    /// Silent.
    Silent,
}

/// What is seen of a node, or of an interface of it.
#[derive(Debug, Default)]
struct Watch {
    is_up: bool,
    /// The number of this speaker's accusation; 0 if there is none.
    accused: u32,
    /// This speaker never saw it, and asks who does.
    is_asked_for: bool,
    /// The newest accusation after which it was seen.
    seen_after: u32,
    /// The interface of this node that it was seen again from, and the accusation of that by its node which this answers.
    back: Option<(InterfaceName, u32)>,
    /// When it will have been up for long enough to answer an accusation that came in the meantime.
    answers_at: Option<(Instant, u32)>,
}

/// What a datagram has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It comes from nobody, or from somebody else than it says; told the first time only.
    Refused { is_new: bool },
    /// It is old or repeated.
    Ignored,
    /// It counts.
    Taken(Taken),
}

/// What words have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// The sender was not heard, or not known to be, before.
    pub(super) came: bool,
    /// The sender has been started since it was heard last, if it ever was.
    pub(super) is_new_life: bool,
    /// The sender has begun to leave.
    pub(super) left: bool,
    /// What takes part in elections is different now.
    pub(super) changed: bool,
    /// Who has left addresses to us, or may have announced some before it died.
    pub(super) yielded: BTreeSet<NodeName>,
}

impl Membership {
    pub(super) fn new(config: &Config) -> Self {
        let tag = NodeTag::of(config.node.as_str());
        let identity = Identity::new(tag, config.incarnation, 0);
        Self {
            node: config.node.clone(),
            tag,
            interval: config.interval(),
            detection_time: config.detection_time(),
            settle_time: config.interval() * SETTLE_INTERVALS,
            life: config.incarnation,
            counter: 0,
            members: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_tag: BTreeMap::new(),
            tags: BTreeSet::from([tag]),
            looks_elsewhere: false,
            has_started: false,
            is_deaf: false,
            woke_at: None,
            is_late: false,
            sent_at: None,
            send_at: None,
            strangers: BTreeSet::new(),
            disbelieved: Disbelieved::default(),
            leases: config.lease_duration.map(|lasts| Leases::new(config.node.clone(), config.incarnation, lasts)),
            swim: Swim::new(identity, config.interval(), config.seed),
            said: None,
            is_news: true,
            presses_until: None,
            testimonies: Testimonies::default(),
            is_in_doubt: false,
            yields: false,
            accused: 0,
            accused_links: BTreeSet::new(),
            accused_until: None,
            dead_links: BTreeMap::new(),
        }
    }

    /// Must come before anything else in a step: how late the step is does not count against the others. Returns that.
    pub(super) fn wake(&mut self, now: Instant) -> Duration {
        let woke_at = self.woke_at.replace(now);
        self.is_late = false;
        let Some(send_at) = self.send_at else { return Duration::ZERO };
        // A step was due by `send_at`, so nothing that came after the later of the two has been looked at in time.
        let late = now.saturating_duration_since(woke_at.map_or(send_at, |woke_at| woke_at.max(send_at)));
        if late <= self.interval {
            return Duration::ZERO;
        }
        self.is_late = true;
        self.swim.delay(late);
        for (since, _) in self.dead_links.values_mut() {
            *since += late;
        }
        for member in self.members.values_mut() {
            if let State::Presumed { until } | State::Heard { until } = &mut member.state {
                *until += late;
            }
            if let Some((since, _)) = &mut member.is_mute {
                *since += late;
            }
            for (due, _) in member.watches.values_mut().filter_map(|watch| watch.answers_at.as_mut()) {
                *due += late;
            }
        }
        late
    }

    /// Takes in the Node objects. `unreachable` is whom an earlier life of this speaker missed.
    pub(super) fn nodes(
        &mut self,
        now: Instant,
        nodes: &OrdMap<NodeName, Arc<Node>>,
        unreachable: &BTreeSet<NodeName>,
    ) {
        let others = || nodes.values().filter(|node| node.name != self.node);
        self.by_address = others()
            .flat_map(|node| node.internal_addresses.iter().map(|&address| (address, node.name.clone())))
            .collect();
        self.by_tag = others().map(|node| (NodeTag::of(node.name.as_str()), node.name.clone())).collect();
        self.tags = self.by_tag.keys().copied().collect();
        self.swim.nodes(&self.tags);
        self.tags.insert(self.tag);
        let first = if self.has_started { State::Silent } else { State::Presumed { until: now + self.detection_time } };
        self.members.retain(|name, _| nodes.contains_key(name));
        for node in nodes.values().filter(|node| node.name != self.node) {
            let member = self.members.entry(node.name.clone()).or_insert_with(|| Member {
                tag: NodeTag::of(node.name.as_str()),
                addresses: Vec::new(),
                state: first,
                replay: None,
                greeted: BTreeMap::new(),
                word: None,
                links: None,
                yielded: 0,
                is_missed: !self.has_started && unreachable.contains(&node.name),
                is_doubted: false,
                heard_at: None,
                cut_off_at: None,
                lasts: self.detection_time,
                hearing: Watch { accused: u32::from(first == State::Silent), ..Watch::default() },
                watches: BTreeMap::new(),
                spoke_from: BTreeMap::new(),
                is_mute: None,
                is_there: first != State::Silent,
                dead_links: BTreeSet::new(),
                links_in_doubt: BTreeSet::new(),
            });
            member.addresses.clone_from(&node.internal_addresses);
        }
        self.has_started = true;
        self.is_in_doubt = true;
        self.strangers.clear();
        let has_peers = if self.leases.is_some() { !self.members.is_empty() } else { !self.by_address.is_empty() };
        if let Some(leases) = self.leases.as_mut().filter(|_| self.send_at.is_none()) {
            leases.begin(now);
        }
        self.send_at = if has_peers { self.send_at.or(Some(now)) } else { None };
    }

    /// Whether this node could hear anything at the moment.
    pub(super) fn deaf(&mut self, now: Instant, is_deaf: bool) {
        if self.is_deaf && !is_deaf {
            self.bear_with_everyone(now);
        }
        self.is_deaf = is_deaf;
    }

    /// Silence up to now does not count.
    fn bear_with_everyone(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            if let State::Presumed { until } | State::Heard { until } = &mut member.state {
                *until = now + member.lasts;
            }
        }
    }

    /// Takes in the Leases. Returns what words that are new have changed, each with its node; what follows from all of them
    /// together is for [`tick`](Self::tick) to judge.
    pub(super) fn look(
        &mut self,
        now: Instant,
        leases: &OrdMap<NodeName, Arc<SpeakerLease>>,
    ) -> Vec<(NodeName, Taken)> {
        let Some(own) = &mut self.leases else { return Vec::new() };
        let Look { shown, strange, is_back } = own.look(now, leases);
        self.disbelieved.strangers += strange;
        if is_back {
            self.bear_with_everyone(now);
        }
        shown.into_iter().filter_map(|shown| self.take_shown(now, shown)).collect()
    }

    fn take_shown(&mut self, now: Instant, shown: Shown) -> Option<(NodeName, Taken)> {
        let Shown { node, life, word, lasts, is_renewal } = shown;
        let member = self.members.get_mut(&node)?;
        member.lasts = lasts;
        let is_same_life = member.word.as_ref().is_some_and(|known| known.life == life);
        let taken = match is_renewal {
            true => self.hear_word(now, None, &node, word, is_same_life),
            // Whoever renews it next is alive. Until then what it says is the best there is to go by.
            false => {
                if let State::Presumed { until } = &mut member.state {
                    *until = now + lasts;
                }
                self.take_word(&node, word, is_same_life)
            }
        };
        Some((node, taken))
    }

    /// Whether this speaker cannot tell who lives, as nothing of the Leases reaches it.
    pub(super) fn is_blind(&self) -> bool {
        self.leases.as_ref().is_some_and(Leases::is_blind)
    }

    /// Whether this speaker goes by Leases, and sees them.
    pub(super) fn sees_leases(&self) -> bool {
        self.leases.as_ref().is_some_and(|leases| !leases.is_blind())
    }

    /// How many renewals of this speaker's own Lease were seen.
    pub(super) fn renewals(&self) -> u64 {
        self.leases.as_ref().map_or(0, Leases::renewals)
    }

    /// Whether this speaker has lost sight of the Leases, or sees them again; only where that is news.
    pub(super) fn blindness(&mut self, now: Instant) -> Option<bool> {
        self.leases.as_mut().filter(|_| self.send_at.is_some())?.news(now)
    }

    /// Takes in a datagram that was opened, and that arrived `at` some time up to now.
    pub(super) fn heard(&mut self, now: Instant, at: Instant, from: IpAddr, datagram: Datagram) -> Heard {
        let Datagram { origin, message } = datagram;
        // What came while this process was held up would have been heard, and more after it.
        let at = if self.is_late { now } else { at };
        // Somebody who holds the key and speaks for another is no better than a stranger.
        let speaks_for_itself =
            !matches!(&message, Message::Word(word) if word.node != origin.node || word.life != origin.life);
        let sender = self.by_address.get(&from).filter(|name| name.as_str() == origin.node && speaks_for_itself);
        let sender = sender.and_then(|name| Some((name.clone(), self.members.get_mut(name)?)));
        let Some((name, member)) = sender else {
            self.disbelieved.strangers += 1;
            let is_new = self.strangers.len() < MAX_STRANGERS && self.strangers.insert(from);
            return Heard::Refused { is_new };
        };
        let (tag, own) = (member.tag, (self.tag, self.life));
        let is_heard = matches!(member.state, State::Heard { .. });
        let is_same_life = member.replay.as_ref().is_some_and(|replay| replay.life() == origin.life);
        if let Message::Word(word) = &message {
            let is_accused = word.accuses.iter().any(|one| one.node == self.tag && one.interface.is_none());
            let is_known = is_heard && is_same_life;
            let is_news = (is_accused || !is_known) && member.greet(origin.life, now, self.interval);
            let is_welcome = is_known || word.greets.contains(&own);
            if is_news {
                self.hurry(now);
            }
            if !is_welcome {
                return Heard::Ignored;
            }
        } else if !is_heard || !is_same_life {
            return Heard::Ignored;
        }
        let Some(member) = self.members.get_mut(&name) else { return Heard::Ignored };
        let is_over = member.state == State::Silent;
        let is_new = match &mut member.replay {
            None => {
                member.replay = Some(Replay::new(origin.life, origin.counter));
                true
            }
            Some(replay) => replay.admit(origin.life, origin.counter, is_over),
        };
        if !is_new {
            self.disbelieved.repeated += 1;
            return Heard::Ignored;
        }
        match message {
            Message::Word(word) => {
                let identity = Identity::new(tag, word.life, word.renewals);
                let mut taken = self.hear_word(at, Some(from), &name, word, is_same_life);
                self.swim.introduce(now, identity);
                taken.changed |= self.reckon(now);
                Heard::Taken(taken)
            }
            Message::Packet(packet) => match self.swim.receive(now, tag, &packet) {
                Ok(()) => Heard::Taken(self.take_relayed(now)),
                Err(swim::NotOurs) => Heard::Ignored,
            },
        }
    }

    /// A word from the speaker itself that came `at` some time, `from` one of its addresses where that is known.
    fn hear_word(
        &mut self,
        at: Instant,
        from: Option<IpAddr>,
        name: &NodeName,
        word: Word,
        is_same_life: bool,
    ) -> Taken {
        let is_leaving = word.leaving;
        let Some(member) = self.members.get_mut(name) else { return Taken::default() };
        let was_heard = matches!(member.state, State::Heard { .. });
        let was_leaving = was_heard && member.is_leaving();
        // What came earlier may be read later.
        let until = match member.state {
            State::Heard { until } | State::Presumed { until } => until.max(at + member.lasts),
            State::Silent => at + member.lasts,
        };
        member.state = State::Heard { until };
        member.heard_at = member.heard_at.max(Some(at));
        member.is_missed = false;
        // Whoever knew of the accusations of the moment has been told by this word that they are wrong.
        member.hearing.seen_after = self.testimonies.accusation(&Subject::node(member.tag), self.tag);
        member.hearing.is_up = true;
        // So has whoever knew of accusations of the interface that it comes from.
        let has_it = |link: &&Link| {
            let ipv4 = link.watch_ipv4.map(|(address, _)| IpAddr::from(address));
            from.is_some() && [ipv4, link.watch_ipv6.map(IpAddr::from)].contains(&from)
        };
        let is_near = |link: &&Link| {
            let subnets = link.subnets.iter().flatten();
            subnets
                .filter_map(|(network, length)| Prefix::new(*network, *length).ok())
                .any(|subnet| from.is_some_and(|from| subnet.contains(from)))
        };
        let mut sources: Vec<&Link> = word.links.iter().filter(has_it).collect();
        if sources.is_empty() {
            // Not every address is told, but the only interface in its subnet has it.
            sources.extend(word.links.iter().filter(is_near));
            if sources.len() > 1 {
                sources.clear();
            }
        }
        let sources = sources.into_iter().map(|link| {
            let interface = InterfaceName::from(link.name.as_str());
            let subject = Subject { node: member.tag, interface: Some(interface.clone()) };
            (interface, self.testimonies.accusation(&subject, self.tag))
        });
        let sources = sources.collect();
        self.is_in_doubt |= std::mem::replace(&mut member.spoke_from, sources) != member.spoke_from;
        let was_accused = std::mem::take(&mut member.hearing.accused) != 0;
        self.is_in_doubt |= !was_heard || was_accused || member.hearing.seen_after != 0;
        // What it said before it began to leave may be read after that.
        let is_old = member.word.as_ref().is_some_and(|known| known.life == word.life && known.version > word.version);
        let was_there = is_same_life && was_heard && (!was_leaving || is_old);
        let came = !is_leaving && !was_there;
        let left = is_leaving && !(is_same_life && was_leaving);
        let was_doubted = std::mem::take(&mut member.is_doubted);
        let taken = self.take_word(name, word, is_same_life);
        let changed = taken.changed || came || left || was_doubted;
        Taken { came, is_new_life: !is_same_life, left, changed, ..taken }
    }

    /// Words that have come by way of others.
    fn take_relayed(&mut self, now: Instant) -> Taken {
        let mut all = Taken::default();
        for word in self.swim.take_words() {
            let Some(name) = self.by_tag.get(&NodeTag::of(&word.node)).cloned() else { continue };
            let Some(member) = self.members.get(&name).filter(|_| name.as_str() == word.node) else { continue };
            let is_over = member.state == State::Silent && !member.is_there;
            let is_newer = |known: &Word| word.life > known.life || (is_over && word.life != known.life);
            let is_same_life = member.word.as_ref().is_some_and(|known| known.life == word.life);
            if member.word.as_ref().is_none_or(|known| is_same_life || is_newer(known)) {
                let taken = self.take_word(&name, word, is_same_life);
                all.changed |= taken.changed;
                all.yielded.extend(taken.yielded);
            }
        }
        all.changed |= self.reckon(now);
        all
    }

    /// Remembers a word, if it is newer than the last one.
    fn take_word(&mut self, name: &NodeName, word: Word, is_same_life: bool) -> Taken {
        let Some(member) = self.members.get_mut(name) else { return Taken::default() };
        let known = member.word.take();
        if let Some(known) = known.as_ref().filter(|known| known.life == word.life && known.version >= word.version) {
            member.word = Some(known.clone());
            return Taken::default();
        }
        let yields = |word: &Word| word.yields.iter().find(|(to, _)| *to == self.tag).map_or(0, |(_, count)| *count);
        let yielded = match &known {
            Some(known) if is_same_life => yields(known) != yields(&word),
            // Its former life may have died while it announced what is ours.
            Some(known) => !known.leaving || yields(&word) != 0,
            None => yields(&word) != 0,
        };
        let changed = known.as_ref().is_none_or(|known| {
            (known.proxy_ready, known.leaving, known.refuses_all) != (word.proxy_ready, word.leaving, word.refuses_all)
                || known.links != word.links
                || known.refused != word.refused
        });
        self.is_in_doubt |= known.as_ref().is_none_or(|known| {
            (&known.accuses, &known.vouches, known.leaving) != (&word.accuses, &word.vouches, word.leaving)
        });
        if changed {
            member.links =
                Some(word.links.iter().map(|link| (link.name.as_str().into(), Carries::from(link))).collect());
        }
        member.word = Some(word);
        let yielded = yielded.then(|| name.clone()).into_iter().collect();
        Taken { changed, yielded, ..Taken::default() }
    }

    /// Takes in what is seen of an interface of another node, from one of this.
    pub(super) fn verdict(
        &mut self,
        node: &NodeName,
        interface: InterfaceName,
        from: Option<InterfaceName>,
        verdict: Verdict,
    ) {
        let Some(member) = self.members.get_mut(node) else { return };
        let subject = Subject { node: member.tag, interface: Some(interface.clone()) };
        match verdict {
            Verdict::Unwatched => drop(member.watches.remove(&interface)),
            Verdict::Up if member.watches.contains_key(&interface) || member.watches.len() < MAX_LINKS => {
                let watch = member.watches.entry(interface).or_default();
                // Only what was lost is seen again.
                let back = from.filter(|_| watch.accused != 0).and_then(|from| {
                    let number = self.testimonies.link_accused_by(member.tag, self.tag, &from)?;
                    Some((from, number))
                });
                let seen_after = self.testimonies.accusation(&subject, self.tag);
                *watch = Watch { is_up: true, seen_after, back, ..Watch::default() };
            }
            // What was never up cannot have gone down.
            Verdict::Down => {
                if let Some(watch) = member.watches.get_mut(&interface).filter(|watch| watch.is_up) {
                    let accused = self.testimonies.number(&subject).saturating_add(1);
                    *watch = Watch { accused, ..Watch::default() };
                }
            }
            Verdict::Up => {}
        }
        self.is_in_doubt = true;
    }

    /// What speaks for an interface of another node that is not seen.
    pub(super) fn outlook(&self, node: &NodeName, interface: &InterfaceName) -> Outlook {
        let Some(member) = self.members.get(node) else { return Outlook::Excused };
        let is_heard = member.is_there && matches!(member.state, State::Heard { .. });
        // Nor could anybody's answer be heard then.
        if !is_heard || member.spoke_from.contains_key(interface) || self.is_deaf || self.is_blind() {
            return Outlook::Excused;
        }
        let subject = Subject { node: member.tag, interface: Some(interface.clone()) };
        let is_told = self.said.as_ref().is_some_and(|(said, _)| {
            let mut said = said.accuses.iter();
            said.any(|one| {
                one.number == 0 && one.node == member.tag && one.interface.as_deref() == Some(interface.as_str())
            })
        });
        let there = self.members.values().filter(|member| member.is_there).map(|member| member.tag);
        match self.testimonies.is_seen(&subject, there) || !is_told {
            true => Outlook::Answered,
            false => Outlook::Open { for_as_long_as: self.answer_time() },
        }
    }

    /// How long an answer takes at most: the question gets there, a session comes up, and the answer comes back.
    pub(super) fn answer_time(&self) -> Duration {
        self.interval * 2 + ANSWERS_WITHIN
    }

    /// Has this speaker say something of an interface of another node that it does not see.
    pub(super) fn say(&mut self, node: &NodeName, interface: &InterfaceName, saying: Saying) {
        let Some(member) = self.members.get_mut(node) else { return };
        let subject = Subject { node: member.tag, interface: Some(interface.clone()) };
        let watch = match saying {
            Saying::Ask => Watch { is_asked_for: true, ..Watch::default() },
            Saying::Accuse => {
                let accused = self.testimonies.number(&subject).saturating_add(1);
                Watch { accused, ..Watch::default() }
            }
            Saying::Withdraw => {
                member.watches.remove(interface);
                self.is_in_doubt = true;
                return;
            }
        };
        if member.watches.contains_key(interface) || member.watches.len() < MAX_LINKS {
            member.watches.insert(interface.clone(), watch);
            self.is_in_doubt = true;
        }
    }

    /// Everyone who has been silent for too long, once; whoever left in an orderly way is not missed.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<NodeName> {
        let mut lost = Vec::new();
        // Of Leases no more is known than this speaker's own renewals bear out.
        let known = self.leases.as_ref().map_or(Some(now), Leases::covered);
        let Some(known) = known.filter(|_| !self.is_deaf) else { return lost };
        for (name, member) in &mut self.members {
            let (State::Presumed { until } | State::Heard { until }) = member.state else { continue };
            if until > known {
                continue;
            }
            let was_heard = matches!(member.state, State::Heard { .. });
            let has_left = was_heard && member.is_leaving();
            member.state = State::Silent;
            let accused = self.testimonies.number(&Subject::node(member.tag)).saturating_add(1);
            member.hearing = Watch { accused, ..Watch::default() };
            self.is_in_doubt = true;
            self.swim.forget(member.tag);
            if !has_left {
                member.is_missed |= was_heard || member.replay.is_some();
                lost.push(name.clone());
            }
        }
        lost
    }

    /// Does what is due, and judges anew what is in doubt.
    pub(super) fn tick(&mut self, now: Instant) -> Taken {
        // What is due soon is done with what is due now.
        let is_speaking = self.send_at.is_some_and(|send_at| send_at <= now);
        self.swim.tick(now, if is_speaking { now + self.interval / 2 } else { now });
        let mut taken = self.take_relayed(now);
        self.is_in_doubt |= self.settle_deadline().is_some_and(|due| due <= now);
        taken.changed |= self.reckon(now);
        taken
    }

    /// Judges who is there, from all testimonies. Returns whether that is another answer than before.
    fn reckon(&mut self, now: Instant) -> bool {
        if !std::mem::take(&mut self.is_in_doubt) {
            return false;
        }
        self.note_testimonies(now);
        let reached = self.testimonies.within_reach(self.tag, &self.tags);
        let mut has_company = false;
        let mut is_ignored = false;
        for member in self.members.values_mut() {
            let is_leaving = member.is_leaving();
            let is_reached = reached.contains(&member.tag);
            let is_mutual = is_reached && self.testimonies.within_reach(member.tag, &self.tags).contains(&self.tag);
            member.is_mute = (is_reached && !is_mutual).then(|| {
                let since = member.is_mute.map_or(now, |(since, _)| since);
                (since, since + self.settle_time <= now)
            });
            has_company |= is_mutual && !is_leaving && !matches!(member.state, State::Presumed { .. });
            is_ignored |= matches!(member.is_mute, Some((_, true))) && !is_leaving;
        }
        let yields = is_ignored && !has_company;
        let mut changed = std::mem::replace(&mut self.yields, yields) != yields;
        let mut there = BTreeSet::from([self.tag]);
        for member in self.members.values_mut() {
            let goes_without_us = matches!(member.is_mute, Some((_, true)));
            let is_there = reached.contains(&member.tag) && !(goes_without_us && has_company);
            let was_there = std::mem::replace(&mut member.is_there, is_there);
            changed |= was_there != is_there;
            // What it asks counts from now on.
            self.is_in_doubt |= is_there && !was_there;
            if is_there {
                there.insert(member.tag);
            }
        }
        changed | self.judge_links(now, &there)
    }

    /// Whether this node is to look at other interfaces than when this was last asked.
    pub(super) fn looks_elsewhere(&mut self) -> bool {
        std::mem::take(&mut self.looks_elsewhere)
    }

    /// Judges which interfaces are dead.
    fn judge_links(&mut self, now: Instant, there: &BTreeSet<NodeTag>) -> bool {
        let accused = self.testimonies.0.values().flat_map(|own| own.accuses.keys().chain(&own.asks));
        let accused: BTreeSet<&Subject> = accused.filter(|subject| subject.interface.is_some()).collect();
        let mut by_node: BTreeMap<NodeTag, BTreeSet<InterfaceName>> = BTreeMap::new();
        let mut in_doubt: BTreeMap<NodeTag, BTreeSet<InterfaceName>> = BTreeMap::new();
        for subject in accused {
            let Subject { node, interface } = subject;
            if self.testimonies.is_dead(subject, there) {
                by_node.entry(*node).or_default().extend(interface.clone());
            }
            if self.testimonies.needs_witness(subject, self.tag, there) {
                in_doubt.entry(*node).or_default().extend(interface.clone());
            }
        }
        self.note_accused_links(now, there);
        let mut changed = false;
        for member in self.members.values_mut() {
            let dead = by_node.remove(&member.tag).unwrap_or_default();
            let is_leaving = member.is_leaving();
            member.is_doubted |= !dead.is_subset(&member.dead_links) && !is_leaving && !self.is_deaf;
            member.is_doubted &= !dead.is_empty();
            member.cut_off_at = (!dead.is_empty()).then(|| member.cut_off_at.unwrap_or(now));
            changed |= std::mem::replace(&mut member.dead_links, dead.clone()) != dead;
            let in_doubt = in_doubt.remove(&member.tag).unwrap_or_default();
            self.looks_elsewhere |= std::mem::replace(&mut member.links_in_doubt, in_doubt.clone()) != in_doubt;
        }
        let own = by_node.remove(&self.tag).unwrap_or_default();
        let settled = |links: &BTreeMap<InterfaceName, (Instant, bool)>| -> BTreeSet<InterfaceName> {
            links.iter().filter(|(_, (_, is_settled))| *is_settled).map(|(name, _)| name.clone()).collect()
        };
        let before = settled(&self.dead_links);
        let links = own.into_iter().map(|name| {
            let since = self.dead_links.get(&name).map_or(now, |(since, _)| *since);
            (name, (since, since + self.settle_time <= now))
        });
        self.dead_links = links.collect();
        changed | (before != settled(&self.dead_links))
    }

    /// Whoever accuses and is lost may not be so for others yet, who still need their witnesses.
    fn note_accused_links(&mut self, now: Instant, there: &BTreeSet<NodeTag>) {
        let mut accused = self.testimonies.accused_links(self.tag, there);
        self.accused_until = None;
        for member in self.members.values().filter(|member| !there.contains(&member.tag)) {
            let until = member.heard_at.map(|heard_at| heard_at + member.lasts * 2);
            let Some(until) = until.filter(|until| *until > now) else { continue };
            let links = self.testimonies.accused_links(self.tag, &BTreeSet::from([member.tag]));
            if !links.is_empty() {
                accused.extend(links);
                self.accused_until = self.accused_until.max(Some(until));
            }
        }
        self.looks_elsewhere |= accused != self.accused_links;
        self.accused_links = accused;
    }

    /// Collects what everyone says, and what there is to say for this speaker.
    fn note_testimonies(&mut self, now: Instant) {
        let told = |statements: &[Statement]| -> BTreeMap<Subject, u32> {
            let known = statements.iter().filter(|statement| self.tags.contains(&statement.node));
            let subject = |statement: &Statement| Subject {
                node: statement.node,
                interface: statement.interface.as_deref().map(InterfaceName::from),
            };
            known.map(|statement| (subject(statement), statement.number)).collect()
        };
        let others = self.members.values().filter_map(|member| {
            let word = member.word.as_ref()?;
            let (asks, accuses) = told(&word.accuses).into_iter().partition(|(_, number)| *number == 0);
            let asks: BTreeMap<Subject, u32> = asks;
            let asks = asks.into_keys().filter(|subject| subject.interface.is_some() && member.is_there).collect();
            Some((member.tag, Testimony { accuses, asks, vouches: told(&word.vouches) }))
        });
        let own = self.testimonies.0.remove(&self.tag);
        self.testimonies = Testimonies(others.collect());
        let mut testimony = Testimony::default();
        for member in self.members.values_mut() {
            let node = (Subject::node(member.tag), &mut member.hearing);
            let links = member.watches.iter_mut();
            let links = links.map(|(name, watch)| (Subject { node: member.tag, interface: Some(name.clone()) }, watch));
            for (subject, watch) in [node].into_iter().chain(links) {
                let number = self.testimonies.accusation(&subject, self.tag);
                if subject.interface.is_some() {
                    watch.note_accusation(now, number, self.detection_time);
                }
                let is_asked_for = subject.interface.is_some() && self.testimonies.is_asked_for(&subject, self.tag);
                let is_doubted = number != 0 || is_asked_for;
                if watch.accused != 0 {
                    testimony.accuses.insert(subject, watch.accused);
                } else if watch.is_asked_for {
                    testimony.asks.insert(subject);
                } else if is_doubted && watch.is_up && watch.seen_after >= number {
                    testimony.vouches.insert(subject, number);
                }
            }
        }
        for member in self.members.values().filter(|member| matches!(member.state, State::Heard { .. })) {
            for (interface, heard_after) in &member.spoke_from {
                let subject = Subject { node: member.tag, interface: Some(interface.clone()) };
                let number = self.testimonies.accusation(&subject, self.tag);
                let is_doubted = number != 0 || self.testimonies.is_asked_for(&subject, self.tag);
                if is_doubted && *heard_after >= number && !testimony.accuses.contains_key(&subject) {
                    testimony.vouches.insert(subject, number);
                }
            }
        }
        for member in self.members.values_mut() {
            let sees_all = member.watches.values().all(|watch| watch.accused == 0);
            for watch in member.watches.values_mut() {
                // Another accusation is another matter, and numbers begin anew once nobody accuses any more.
                let stands = |(from, number): &(InterfaceName, u32)| {
                    self.testimonies.link_accused_by(member.tag, self.tag, from) == Some(*number)
                };
                watch.back = watch.back.take().filter(stands);
                if let Some((from, number)) = watch.back.clone().filter(|_| sees_all) {
                    let own = testimony.vouches.entry(Subject { node: self.tag, interface: Some(from) }).or_default();
                    *own = number.max(*own);
                }
            }
        }
        let accused = self.testimonies.accusation(&Subject::node(self.tag), self.tag);
        // Whoever is accused speaks up, so that others can answer.
        let is_called = accused > std::mem::replace(&mut self.accused, accused);
        if is_called || own.as_ref().is_some_and(|own| *own != testimony) {
            self.hurry(now);
        }
        self.testimonies.0.insert(self.tag, testimony);
    }

    /// Counts that an address was left to another.
    pub(super) fn yielded_to(&mut self, owner: &NodeName) {
        if let Some(member) = self.members.get_mut(owner) {
            member.yielded = member.yielded.wrapping_add(1);
        }
    }

    /// There is news that should not wait for the next interval.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.is_news = true;
        // A Lease is renewed once, however many there are to see it.
        let is_cheap = self.leases.is_some() || self.members.len() <= MAX_HURRIED;
        let Some(send_at) = self.send_at.filter(|_| is_cheap) else { return };
        // News that come thick and fast are told together.
        let earliest = self.sent_at.map_or(now, |sent_at| sent_at + self.interval / 10);
        self.send_at = Some(send_at.min(earliest.max(now)));
    }

    /// The datagrams that are due, each with the addresses it goes to; none with Leases, which everyone sees.
    pub(super) fn datagrams(&mut self, now: Instant, own: &Own) -> Vec<(Vec<IpAddr>, Datagram)> {
        let mut messages = Vec::new();
        let is_due = self.send_at.is_some_and(|send_at| send_at <= now);
        let is_told_by_others =
            self.leases.is_none() && self.send_at.is_some() && self.is_news && self.members.len() > MAX_HURRIED;
        if is_due || is_told_by_others {
            let word = self.word(now, own);
            if is_due {
                self.sent_at = Some(now);
                self.send_at = Some(now + self.interval);
                let addresses = self.members.values().flat_map(|member| member.addresses.iter().copied());
                let all = if self.leases.is_some() { Vec::new() } else { addresses.collect() };
                messages.push((all, Message::Word(word)));
            }
        }
        for (node, packet) in self.swim.take_packets() {
            let member = self.by_tag.get(&node).and_then(|name| self.members.get(name));
            if let Some(member) = member.filter(|member| !member.addresses.is_empty()) {
                messages.push((member.addresses.clone(), Message::Packet(packet)));
            }
        }
        let datagrams = messages.into_iter().map(|(to, message)| {
            let can_wait = match &message {
                Message::Word(word) => word.greets.is_empty() && self.presses_until.is_none_or(|until| until <= now),
                Message::Packet(_) => false,
            };
            self.counter = Origin::next_counter(self.counter, can_wait);
            let origin = Origin { node: self.node.to_string(), life: self.life, counter: self.counter };
            if let Some(leases) = &mut self.leases {
                leases.asked(now, self.counter);
            }
            (to, Datagram { origin, message })
        });
        datagrams.collect()
    }

    /// What this speaker says now. What is new about it is passed on by others too.
    fn word(&mut self, now: Instant, own: &Own) -> Word {
        let is_news = std::mem::take(&mut self.is_news);
        let (refused, refuses_all) = match &own.refusals {
            Refusals::Some(ports) => (ports.iter().copied().collect(), false),
            Refusals::All => (Box::default(), true),
        };
        let statement = |(subject, number): (&Subject, &u32)| Statement {
            node: subject.node,
            interface: subject.interface.as_ref().map(InterfaceName::to_string),
            number: *number,
        };
        let testimony = self.testimonies.0.get(&self.tag);
        let accuses = testimony.into_iter().flat_map(|own| own.accuses.iter().chain(own.asks.iter().zip(repeat(&0))));
        let vouches = testimony.into_iter().flat_map(|own| &own.vouches);
        let yields = self.members.values().filter(|member| member.yielded != 0);
        let greeted = self.members.values().flat_map(|member| {
            let lives = member.greeted.iter().filter(|(_, until)| **until > now);
            lives.map(|(life, _)| (member.tag, *life))
        });
        let mut word = Word {
            node: self.node.to_string(),
            life: self.life,
            version: 0,
            renewals: self.swim.renewals(),
            proxy_ready: own.proxy_ready,
            leaving: own.leaving,
            links: own.links.iter().take(MAX_LINKS).map(|(name, carries)| carries.link(name)).collect(),
            refused,
            refuses_all,
            accuses: accuses.map(statement).take(MAX_STATEMENTS).collect(),
            vouches: vouches.map(statement).take(MAX_STATEMENTS).collect(),
            yields: yields.map(|member| (member.tag, member.yielded)).take(MAX_YIELDS).collect(),
            greets: greeted.take(MAX_GREETINGS).collect(),
        };
        let version = self.said.as_ref().map_or(0, |(said, _)| said.version);
        let is_stale = self.accused != 0
            && self.said.as_ref().is_some_and(|(_, since)| *since + self.interval * REFRESH_INTERVALS <= now);
        word.version = version;
        let is_another = is_stale || self.said.as_ref().is_none_or(|(said, _)| *said != word);
        if is_another || is_news {
            self.presses_until = Some(now + self.detection_time);
        }
        if is_another {
            word.version = version + 1;
            if self.leases.is_none()
                && let Ok(bytes) = word.encode()
            {
                self.swim.tell(now, &bytes);
            }
            self.said = Some((word.clone(), now));
        }
        word
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let expiries = self.members.values().filter_map(|member| match member.state {
            // A Lease is found to be over when a renewal of ours is seen.
            State::Presumed { until } | State::Heard { until } => {
                (!self.is_deaf && self.leases.is_none()).then_some(until)
            }
            State::Silent => None,
        });
        let blindness = self.leases.as_ref().filter(|_| self.send_at.is_some()).and_then(Leases::deadline);
        expiries.chain(self.send_at).chain(blindness).chain(self.settle_deadline()).chain(self.swim.deadline()).min()
    }

    /// When somebody has waited for long enough.
    fn settle_deadline(&self) -> Option<Instant> {
        let mute = self.members.values().filter_map(|member| member.is_mute);
        let waiting = mute.chain(self.dead_links.values().copied()).filter(|(_, is_settled)| !is_settled);
        let waiting = waiting.map(|(since, _)| since + self.settle_time);
        let answers = self.members.values().flat_map(|member| member.watches.values());
        let answers = answers.filter_map(|watch| watch.answers_at.map(|(due, _)| due));
        waiting.chain(answers).chain(self.accused_until).min()
    }

    /// Whether another speaker is there to take over.
    pub(super) fn has_company(&self) -> bool {
        self.members.values().any(|member| {
            let is_leaving = member.is_leaving();
            matches!(member.state, State::Heard { .. }) && !is_leaving
        })
    }

    /// The links of this node that others can use: those it has, but for those they find dead.
    pub(super) fn usable_links(&self, own: &Own) -> Links {
        let is_dead = |name: &InterfaceName| self.dead_links.get(name).is_some_and(|(_, is_settled)| *is_settled);
        self.links_said(own).filter(|(name, _)| !is_dead(name)).map(owned).collect()
    }

    /// The links of this node that others know of.
    fn links_said<'a>(&self, own: &'a Own) -> impl Iterator<Item = (&'a InterfaceName, &'a Carries)> + use<'a> {
        own.links.iter().take(MAX_LINKS)
    }

    /// What is known about every node, this one included.
    pub(super) fn standings(&self, own: &Own) -> Standings {
        let mut standings: Standings =
            self.members.iter().map(|(name, member)| (name.clone(), member.standing())).collect();
        let liveness = match own.leaving {
            true => Liveness::Leaving,
            false if self.yields => Liveness::Yielding,
            false => Liveness::Alive,
        };
        let usable = self.usable_links(own);
        let standing = Standing {
            liveness,
            proxy_ready: own.proxy_ready,
            refusals: own.refusals.clone(),
            dead_links: self.links_said(own).filter(|(name, _)| !usable.contains_key(*name)).map(owned).collect(),
            links: Some(usable),
        };
        standings.insert(self.node.clone(), standing);
        standings
    }

    /// Interfaces of this node that others may have to look at: somebody says that they are dead, or did until lately.
    pub(super) fn accused_links(&self) -> &BTreeSet<InterfaceName> {
        &self.accused_links
    }

    /// Other nodes that could be watched.
    pub(super) fn watchable(&self) -> impl Iterator<Item = Watchable<'_>> {
        let staying = self.members.iter().filter(|(_, member)| !member.is_leaving());
        staying.filter_map(|(node, member)| {
            Some(Watchable { node, links: member.links.as_ref()?, in_doubt: &member.links_in_doubt })
        })
    }

    /// Whether there are other nodes, of whatever state.
    pub(super) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// Those who are there, and whether each is leaving.
    pub(super) fn present(&self) -> impl Iterator<Item = (&NodeName, bool)> {
        let present = self.members.iter().filter(|(_, member)| member.is_there);
        present.map(|(node, member)| (node, member.is_leaving()))
    }

    /// Where a node is found, or was before it fell silent.
    pub(super) fn whereabouts(&self, node: &NodeName) -> Option<Whereabouts<'_>> {
        let Member { addresses, links, dead_links, is_there, .. } = self.members.get(node)?;
        Some(Whereabouts { addresses, links: links.as_ref(), dead_links, is_heard: *is_there })
    }

    /// Whose interface has which hardware address, as far as words have told, of lost nodes too.
    pub(super) fn macs(&self) -> BTreeMap<Mac, NodeName> {
        let links = |member: &'_ Member| member.links.iter().flatten().filter_map(|(_, carries)| carries.mac).collect();
        let macs = self.members.iter().map(|(name, member)| (name, links(member)));
        macs.flat_map(|(name, macs): (_, Vec<Mac>)| macs.into_iter().map(|mac| (mac, name.clone()))).collect()
    }

    /// Since when clients may have had nobody at a node: since it was heard last, or since interfaces of it were found dead.
    /// `None` while it is well, or leaves in an orderly way.
    pub(super) fn failed_at(&self, node: &NodeName) -> Option<Instant> {
        let member = self.members.get(node).filter(|_| !self.is_leaving(node))?;
        if member.is_there { member.cut_off_at } else { member.heard_at }
    }

    /// Whether the last word of a node's speaker was that it leaves.
    pub(super) fn is_leaving(&self, node: &NodeName) -> bool {
        self.members.get(node).is_some_and(Member::is_leaving)
    }

    /// Whether words tell that a node is lost.
    pub(super) fn is_lost(&self, node: &NodeName) -> bool {
        self.members.get(node).is_none_or(|member| !member.is_there)
    }

    pub(super) fn disbelieved(&self) -> Disbelieved {
        self.disbelieved
    }

    /// Nodes that were heard once and are not now, or of whose interfaces one was found dead since they were heard last:
    /// the first sign of a node that is cut off, long before it has been silent for the detection time.
    pub(super) fn missed(&self) -> BTreeSet<NodeName> {
        let missed = self.members.iter().filter(|(_, member)| member.is_missed || member.is_doubted);
        missed.map(|(name, _)| name.clone()).collect()
    }
}

impl Member {
    /// Whether its last word was that it leaves.
    fn is_leaving(&self) -> bool {
        self.word.as_ref().is_some_and(|word| word.leaving)
    }

    /// Greets a life of it for a while. Returns whether it was not greeted before.
    fn greet(&mut self, life: u64, now: Instant, interval: Duration) -> bool {
        self.greeted.retain(|_, until| *until > now);
        let has_room = self.greeted.len() < MAX_GREETED_LIVES || self.greeted.contains_key(&life);
        has_room && self.greeted.insert(life, now + interval * GREETING_INTERVALS).is_none()
    }

    fn standing(&self) -> Standing {
        let is_dead = |name: &InterfaceName| self.dead_links.contains(name);
        let usable = |links: &Links| links.iter().filter(|(name, _)| !is_dead(name)).map(owned).collect();
        let dead = self.links.iter().flatten().filter(|(name, _)| is_dead(name));
        Standing {
            liveness: match &self.word {
                _ if !self.is_there => Liveness::Lost,
                Some(word) if word.leaving => Liveness::Leaving,
                _ => Liveness::Alive,
            },
            proxy_ready: self.word.as_ref().is_none_or(|word| word.proxy_ready),
            refusals: self.word.as_ref().map(Refusals::of).unwrap_or_default(),
            links: self.links.as_ref().map(usable),
            dead_links: dead.map(owned).collect(),
        }
    }
}

fn owned((name, carries): (&InterfaceName, &Carries)) -> (InterfaceName, Carries) {
    (name.clone(), carries.clone())
}

impl Watch {
    /// Whoever is watched all the time need not be seen anew for an accusation to be wrong: it is enough that it is still
    /// up when a dead one would have been noticed.
    fn note_accusation(&mut self, now: Instant, number: u32, detection_time: Duration) {
        if !self.is_up || number <= self.seen_after {
            self.answers_at = None;
            return;
        }
        match self.answers_at {
            Some((due, answered)) if due <= now => {
                self.seen_after = answered;
                self.answers_at = (number > answered).then_some((now + detection_time, number));
            }
            Some(_) => {}
            None => self.answers_at = Some((now + detection_time, number)),
        }
    }
}

impl From<&Link> for Carries {
    fn from(link: &Link) -> Self {
        let Link { ipv4, ipv6, mac, watch_ipv4, watch_ipv6, .. } = *link;
        let subnet = |&(address, length): &(IpAddr, u8)| Prefix::new(address, length).ok();
        let subnets = link.subnets.as_ref().map(|subnets| subnets.iter().filter_map(subnet).collect());
        Self { ipv4, ipv6, mac, watch_ipv4, watch_ipv6, subnets }
    }
}

impl Carries {
    fn link(&self, name: &InterfaceName) -> Link {
        let Self { ipv4, ipv6, mac, watch_ipv4, watch_ipv6, .. } = *self;
        let subnets = self.subnets.as_ref();
        let subnets = subnets.map(|subnets| subnets.iter().map(|one| (one.ip(), one.prefix())).collect());
        Link { name: name.to_string(), ipv4, ipv6, mac, watch_ipv4, watch_ipv6, subnets }
    }
}
