//! Whom this node watches by BFD, and who may watch it.
//!
//! Next in line for an address watches the interfaces on which its owner announces it: one session for each interface,
//! however many addresses are announced there. What such a session sees is the [`Verdict`] on that interface; the
//! owner's end of it only answers. Any speaker that gossip knows on a link of this node may watch it, so that a new one
//! next in line need not wait until this node has found out who that is.
//!
//! While an interface is said to be dead everyone watches it, next in line or not: whoever took over gives back when its
//! session is up again, and whoever sees that interface says so, for it may be the way of the one who took over that is
//! lost. A few of those who see it go on for as long as another says that it is dead. So does the accused, with whom it sees
//! from there: a session has two ends, and those who answer for it could do so no longer if it closed its own.
//!
//! A session that never comes up says nothing by itself: a firewall may be in its way, or this node's own cable be cut. So
//! next in line then looks at others from the same interface. While it sees one of them, and nothing excuses the owner, it
//! asks who sees that; where nobody answers, the owner's interface counts as dead:
//!
//! ```text
//!              3 s             sees another                nobody answers
//!   Awaited ────────► overdue ◄─────────────► Asked ─────────────────────► Lost
//!      ▲                        sees nobody     │
//!      └───── excused, or not next in line ─────┘     (Up from all of them)
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU8,
    time::{Duration, Instant},
};

use ferrogate_wire::bfd::State;

use crate::{
    model::{Family, InterfaceName, NodeName},
    speaker::{
        Event, Verdict,
        announce::{Carries, Links},
        bfd::{
            Change, Settings,
            sessions::{Neighbor, Path, Wanted, Wish},
        },
    },
};

/// How long a session may take to come up. Both ends speak once a second until then (RFC 5880, section 6.8.3), and some of
/// that may be lost.
const COMES_UP_WITHIN: Duration = Duration::from_secs(3);

/// How many owners are asked for at once. Questions share their place in a word with accusations.
const MAX_QUESTIONS: usize = 16;

/// Sessions that are to be there from now on, and no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// For whatever runs the sessions.
    pub wanted: Wanted,
    /// The node and its interface that each wanted session looks at.
    subjects: BTreeMap<Path, (NodeName, InterfaceName)>,
}

impl Watch {
    /// What there is to tell the speaker of sessions that are up already.
    pub fn standing(&self, paths: &[Path]) -> Vec<Event> {
        let subjects = paths.iter().filter_map(|path| self.subjects.get(path).cloned());
        subjects.map(|(node, interface)| Event::Watched { node, interface, verdict: Verdict::Up }).collect()
    }

    /// What there is to tell the speaker of a session that has changed. Nothing of one that a neighbour has opened, or
    /// that is wanted no more.
    pub fn told(&self, path: &Path, change: &Change) -> Option<Event> {
        let (node, interface) = self.subjects.get(path)?.clone();
        let verdict = match change.to {
            State::Up => Verdict::Up,
            State::Down if change.is_failure() => Verdict::Down,
            // Either end was switched off.
            State::Down | State::AdminDown if change.from == State::Up => Verdict::Unwatched,
            // On its way up, or not even that.
            State::Down | State::AdminDown | State::Init => return None,
        };
        Some(Event::Watched { node, interface, verdict })
    }
}

/// Interfaces of a node that owns addresses, to be watched by who comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) node: NodeName,
    pub(crate) interfaces: BTreeSet<InterfaceName>,
}

/// A node that could be watched: it is not stopping.
pub(super) struct Watchable<'a> {
    pub(super) node: &'a NodeName,
    /// The interfaces it says it has.
    pub(super) links: &'a Links,
    /// Those of them that this node is to look at though it may not come next.
    pub(super) in_doubt: &'a BTreeSet<InterfaceName>,
}

/// Keeps the sessions that are wanted in step with the elections.
#[derive(Debug)]
pub(super) struct Watches {
    settings: Option<Settings>,
    /// How many Services there are for which an interface of another node is to be watched.
    services: BTreeMap<(NodeName, InterfaceName), usize>,
    /// By which session each is watched.
    sessions: BTreeMap<(NodeName, InterfaceName), Session>,
    watch: Watch,
    is_in_doubt: bool,
}

#[derive(Debug)]
struct Session {
    path: Path,
    /// Both ends are in one subnet, so that whoever sees others from there should see this one.
    is_near: bool,
    sight: Sight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    /// It may come up since then; where it is overdue others are looked at.
    Awaited { since: Instant, is_overdue: bool },
    /// It is asked who sees it, and since then nobody answers.
    Asked { unanswered_since: Option<Instant> },
    /// It is seen.
    Up,
    /// It was seen and is not any more, or nobody sees it who was asked.
    Lost,
}

impl Sight {
    fn awaited(since: Instant) -> Self {
        Self::Awaited { since, is_overdue: false }
    }

    /// Whether only times differ.
    fn is_like(self, other: Self) -> bool {
        match (self, other) {
            (Self::Awaited { is_overdue, .. }, Self::Awaited { is_overdue: other, .. }) => is_overdue == other,
            (Self::Asked { .. }, Self::Asked { .. }) => true,
            _ => self == other,
        }
    }
}

/// What speaks for an interface of another node that is not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// Nothing is to be concluded from that.
    Excused,
    /// Somebody else sees it, or cannot know yet that this is asked.
    Answered,
    /// Nothing, for as long as this.
    Open { for_as_long_as: Duration },
}

/// What is to be said of an interface of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saying {
    /// Who sees it?
    Ask,
    /// Nobody need answer any more.
    Withdraw,
    /// It is dead.
    Accuse,
}

impl Watches {
    pub(super) fn new(settings: Option<Settings>) -> Self {
        Self {
            settings,
            services: BTreeMap::new(),
            sessions: BTreeMap::new(),
            watch: Watch::default(),
            is_in_doubt: false,
        }
    }

    /// Whether an interface of another node is seen.
    pub(super) fn sees(&self, node: &NodeName, interface: &InterfaceName) -> bool {
        let session = self.sessions.get(&(node.clone(), interface.clone()));
        session.is_some_and(|session| session.sight == Sight::Up)
    }

    /// What is known about nodes and their interfaces, this one included, may be different.
    pub(super) fn doubt(&mut self) {
        self.is_in_doubt = true;
    }

    /// Takes in what a Service wants watched now instead of before.
    pub(super) fn note(&mut self, before: Option<&Watched>, now: Option<&Watched>) {
        if before == now {
            return;
        }
        if let Some(Watched { node, interfaces }) = now {
            for interface in interfaces {
                let count = self.services.entry((node.clone(), interface.clone())).or_default();
                self.is_in_doubt |= *count == 0;
                *count += 1;
            }
        }
        if let Some(Watched { node, interfaces }) = before {
            for interface in interfaces {
                let subject = (node.clone(), interface.clone());
                let Some(count) = self.services.get_mut(&subject) else { continue };
                *count -= 1;
                if *count == 0 {
                    self.services.remove(&subject);
                    self.is_in_doubt = true;
                }
            }
        }
    }

    /// Takes in what is seen of an interface of another node. Returns whether that is news.
    pub(super) fn see(&mut self, now: Instant, node: &NodeName, interface: &InterfaceName, verdict: Verdict) -> bool {
        let Some(session) = self.sessions.get_mut(&(node.clone(), interface.clone())) else { return false };
        let sight = match (verdict, session.sight) {
            (Verdict::Up, Sight::Awaited { .. } | Sight::Asked { .. } | Sight::Lost) => Sight::Up,
            (Verdict::Down, Sight::Up) => Sight::Lost,
            (Verdict::Unwatched, Sight::Up) => Sight::awaited(now),
            _ => return false,
        };
        session.sight = sight;
        self.is_in_doubt = true;
        true
    }

    /// A node has been started, or is heard again. What was not seen of it may be from now on.
    pub(super) fn await_anew(&mut self, now: Instant, node: &NodeName) {
        for (_, session) in self.sessions.iter_mut().filter(|((subject, _), _)| subject == node) {
            match &mut session.sight {
                awaited @ Sight::Awaited { .. } => *awaited = Sight::awaited(now),
                Sight::Asked { unanswered_since } => *unanswered_since = Some(now + COMES_UP_WITHIN),
                Sight::Up | Sight::Lost => {}
            }
        }
    }

    /// This step comes so late; in that time nothing was looked at.
    pub(super) fn delay(&mut self, late: Duration) {
        for session in self.sessions.values_mut() {
            match &mut session.sight {
                Sight::Awaited { since, .. } | Sight::Asked { unanswered_since: Some(since) } => *since += late,
                Sight::Asked { unanswered_since: None } | Sight::Up | Sight::Lost => {}
            }
        }
    }

    /// When [`look`](Self::look) is to be asked again, whatever else there is to do. An answer takes so long.
    pub(super) fn deadline(&self, answer: Duration) -> Option<Instant> {
        let due = self.sessions.iter().filter_map(|(subject, session)| match session.sight {
            Sight::Awaited { since, is_overdue: false } if self.is_missed(subject, session) => {
                Some(since + COMES_UP_WITHIN)
            }
            Sight::Asked { unanswered_since: Some(since) } => Some(since + answer),
            _ => None,
        });
        due.min()
    }

    /// Whether it matters that it is not seen.
    fn is_missed(&self, subject: &(NodeName, InterfaceName), session: &Session) -> bool {
        session.is_near && self.services.contains_key(subject)
    }

    /// Looks at the owners that are not seen, and says what follows.
    pub(super) fn look(
        &mut self,
        now: Instant,
        outlook: impl Fn(&NodeName, &InterfaceName) -> Outlook,
    ) -> Vec<(NodeName, InterfaceName, Saying)> {
        let is_open = |(subject, session): &(&(NodeName, InterfaceName), &Session)| match session.sight {
            Sight::Awaited { since, .. } => self.is_missed(subject, session) && since + COMES_UP_WITHIN <= now,
            Sight::Asked { .. } => true,
            Sight::Up | Sight::Lost => false,
        };
        let open: Vec<_> = self.sessions.iter().filter(is_open).map(|(subject, _)| subject.clone()).collect();
        if open.is_empty() {
            return Vec::new();
        }
        let is_up = |session: &&Session| session.sight == Sight::Up;
        let sees: BTreeSet<_> = self.sessions.values().filter(is_up).map(|up| up.path.interface.clone()).collect();
        let is_asked = |session: &&Session| matches!(session.sight, Sight::Asked { .. });
        let mut questions = self.sessions.values().filter(is_asked).count();
        let mut sayings = Vec::new();
        for subject in open {
            let Some(session) = self.sessions.get_mut(&subject) else { continue };
            let outlook = outlook(&subject.0, &subject.1);
            let is_seeing = sees.contains(&session.path.interface);
            let is_missed = session.is_near && self.services.contains_key(&subject);
            let (sight, saying) = match (session.sight, outlook) {
                (Sight::Awaited { .. }, Outlook::Excused) => (Sight::awaited(now), None),
                (Sight::Awaited { .. }, _) if is_seeing && questions < MAX_QUESTIONS => {
                    questions += 1;
                    (Sight::Asked { unanswered_since: None }, Some(Saying::Ask))
                }
                (Sight::Awaited { since, .. }, _) => (Sight::Awaited { since, is_overdue: true }, None),
                (Sight::Asked { .. }, Outlook::Excused) => (Sight::awaited(now), Some(Saying::Withdraw)),
                (Sight::Asked { .. }, _) if !is_missed => (Sight::awaited(now), Some(Saying::Withdraw)),
                (Sight::Asked { .. }, _) if !is_seeing => {
                    (Sight::Awaited { since: now, is_overdue: true }, Some(Saying::Withdraw))
                }
                (Sight::Asked { .. }, Outlook::Answered) => (Sight::Asked { unanswered_since: None }, None),
                (Sight::Asked { unanswered_since }, Outlook::Open { for_as_long_as }) => {
                    let since = unanswered_since.unwrap_or(now);
                    match since + for_as_long_as <= now {
                        true => (Sight::Lost, Some(Saying::Accuse)),
                        false => (Sight::Asked { unanswered_since: Some(since) }, None),
                    }
                }
                (sight @ (Sight::Up | Sight::Lost), _) => (sight, None),
            };
            self.is_in_doubt |= !sight.is_like(std::mem::replace(&mut session.sight, sight));
            sayings.extend(saying.map(|saying| (subject.0, subject.1, saying)));
        }
        sayings
    }

    /// The interface of this node from which one of another is looked at.
    pub(super) fn from(&self, node: &NodeName, interface: &InterfaceName) -> Option<InterfaceName> {
        self.sessions.get(&(node.clone(), interface.clone()))?.path.interface.clone()
    }

    /// Decides again which sessions there are to be, if that is in doubt: between `own` interfaces, some of which are
    /// `accused`, and those of the `others`, none at all unless this node `takes_part`.
    ///
    /// Returns what is wanted if that is new, and the interfaces that nobody looks at any more.
    pub(super) fn review<'a>(
        &mut self,
        now: Instant,
        own: &Links,
        accused: &BTreeSet<InterfaceName>,
        others: impl Iterator<Item = Watchable<'a>>,
        takes_part: bool,
    ) -> (Option<Watch>, Vec<(NodeName, InterfaceName)>) {
        let Some(settings) = self.settings.filter(|_| std::mem::take(&mut self.is_in_doubt)) else {
            return (None, Vec::new());
        };
        let mut paths: BTreeMap<(NodeName, InterfaceName), (Path, bool)> = BTreeMap::new();
        let mut permitted = BTreeMap::new();
        let is_witness = |subject: &(NodeName, InterfaceName), path: &Path| {
            let session = self.sessions.get(subject).filter(|session| session.path == *path);
            let is_up = session.is_some_and(|session| session.sight == Sight::Up);
            is_up && path.interface.as_ref().is_some_and(|interface| accused.contains(interface))
        };
        let looks_around = self.looks_around();
        for Watchable { node, links, in_doubt } in others.filter(|_| takes_part) {
            for (interface, carries) in links {
                permitted.extend(neighbors(own, carries).map(|neighbor| (neighbor, settings)));
                let subject = (node.clone(), interface.clone());
                let Some(path) = path(own, interface, carries) else { continue };
                let comes_next = self.services.contains_key(&subject);
                let seen = looks_around.get(&path.interface);
                let may_be_seen = seen.is_some_and(|seen| seen.as_ref().is_none_or(|seen| *seen == subject));
                let is_in_question = in_doubt.contains(interface) || may_be_seen;
                if comes_next || is_in_question || is_witness(&subject, &path) {
                    let ours = path.interface.as_ref().and_then(|name| own.get(name));
                    let is_near = path.remote.is_ipv4() || ours.is_some_and(|ours| is_in_common_subnet(ours, carries));
                    paths.insert(subject, (path, is_near));
                }
            }
        }
        let mut unwatched = Vec::new();
        self.sessions.retain(|subject, session| {
            let path = paths.get(subject);
            // What was found dead stays so until a session is up, also one by another way.
            let is_kept = path.is_some_and(|(path, _)| *path == session.path || session.sight == Sight::Lost);
            if !is_kept && !matches!(session.sight, Sight::Awaited { .. }) {
                unwatched.push(subject.clone());
            }
            is_kept
        });
        for (subject, (path, is_near)) in &paths {
            let session = self.sessions.entry(subject.clone()).or_insert_with(|| Session {
                path: path.clone(),
                is_near: *is_near,
                sight: Sight::awaited(now),
            });
            session.path.clone_from(path);
            session.is_near = *is_near;
        }
        let wish = Wish { settings, minimum_ttl: NonZeroU8::MAX };
        let sessions = paths.values().map(|(path, _)| (path.clone(), wish)).collect();
        let subjects = paths.into_iter().map(|(subject, (path, _))| (path, subject)).collect();
        let watch = Watch { wanted: Wanted { sessions, permitted }, subjects };
        if watch == self.watch {
            return (None, unwatched);
        }
        self.watch = watch.clone();
        (Some(watch), unwatched)
    }

    /// The interfaces of this node from which others are looked at, as an owner is not seen: every one of them until one is
    /// seen, which then is enough.
    fn looks_around(&self) -> BTreeMap<Option<InterfaceName>, Option<(NodeName, InterfaceName)>> {
        let is_unseen = |(subject, session): &(&(NodeName, InterfaceName), &Session)| match session.sight {
            Sight::Awaited { is_overdue: true, .. } | Sight::Asked { .. } => self.is_missed(subject, session),
            Sight::Awaited { is_overdue: false, .. } | Sight::Up | Sight::Lost => false,
        };
        let seen = |from: &Option<InterfaceName>| {
            let mut sessions = self.sessions.iter();
            let seen = sessions.find(|(_, session)| session.sight == Sight::Up && session.path.interface == *from);
            seen.map(|(subject, _)| subject.clone())
        };
        let unseen = self.sessions.iter().filter(is_unseen).map(|(_, session)| session.path.interface.clone());
        unseen.map(|from| (from.clone(), seen(&from))).collect()
    }
}

/// By which way an interface of another node is watched, if there is one: IPv4 where both ends are in one subnet, else
/// link-local addresses from the interface of the same name, or the first that has one.
fn path(own: &Links, interface: &InterfaceName, theirs: &Carries) -> Option<Path> {
    let by = |family| way(own.iter(), interface, theirs, family);
    let way = by(Family::V4).or_else(|| by(Family::V6))?;
    Some(Path { remote: way.address, local: way.local, interface: Some(way.interface.clone()), vrf: None })
}

/// How an interface of another node is found on a link of this one.
pub(super) struct Way<'a> {
    /// Our interface.
    pub(super) interface: &'a InterfaceName,
    /// Our address there.
    local: IpAddr,
    /// Its address.
    pub(super) address: IpAddr,
}

/// By an address of this family: IPv4 where both ends are in one subnet, or link-local addresses. The interface of the same
/// name comes before others.
pub(super) fn way<'a>(
    own: impl Iterator<Item = (&'a InterfaceName, &'a Carries)> + Clone,
    interface: &InterfaceName,
    theirs: &Carries,
    family: Family,
) -> Option<Way<'a>> {
    let same_name = own.clone().filter(|(name, _)| *name == interface);
    let mut candidates = same_name.chain(own.filter(|(name, _)| *name != interface));
    match family {
        Family::V4 => candidates.find_map(|(interface, ours)| {
            let (local, address) = in_one_subnet(ours, theirs)?;
            Some(Way { interface, local: local.into(), address: address.into() })
        }),
        Family::V6 => {
            let address = theirs.watch_ipv6?;
            let (interface, local) = candidates.find_map(|(name, ours)| Some((name, ours.watch_ipv6?)))?;
            (local != address).then_some(Way { interface, local: local.into(), address: address.into() })
        }
    }
}

/// At which addresses an interface of another node may be heard, and where.
fn neighbors<'a>(own: &'a Links, theirs: &'a Carries) -> impl Iterator<Item = Neighbor> + 'a {
    own.iter().flat_map(|(name, ours)| {
        let ipv4 = in_one_subnet(ours, theirs).map(|(_, remote)| IpAddr::from(remote));
        let ipv6 = theirs.watch_ipv6.filter(|_| ours.watch_ipv6.is_some()).map(IpAddr::from);
        let remotes = ipv4.into_iter().chain(ipv6);
        remotes.map(|remote| Neighbor { remote, interface: name.clone() })
    })
}

/// Whether both are known to be in one subnet.
pub(super) fn is_in_common_subnet(ours: &Carries, theirs: &Carries) -> bool {
    ours.subnets.is_some() && theirs.subnets.is_some() && ours.shares_subnet(theirs)
}

/// The addresses of two interfaces, ours first, if each finds the other on its link.
fn in_one_subnet(ours: &Carries, theirs: &Carries) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let ((local, length), (remote, their_length)) = (ours.watch_ipv4?, theirs.watch_ipv4?);
    // The shorter prefix finds whom the longer one does.
    let mask = u32::MAX.checked_shl(32 - u32::from(length.max(their_length).min(32))).unwrap_or_default();
    let is_neighbor = (local.to_bits() ^ remote.to_bits()) & mask == 0 && local != remote;
    is_neighbor.then_some((local, remote))
}
