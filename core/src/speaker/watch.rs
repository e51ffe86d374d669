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
//! next in line then looks at others from the same interface. Once it sees one of them, and unless the owner is heard from the
//! interface that is not seen, it asks who else sees that.

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
    verdict: Verdict,
    /// Since when it could have come up.
    since: Instant,
    /// It should have by now.
    is_overdue: bool,
    /// Both ends are in one subnet, so that whoever sees others from there should see this one.
    is_near: bool,
}

impl Session {
    /// It has come to this. If it is not up it may come up from now on.
    fn turn(&mut self, now: Instant, verdict: Verdict) {
        (self.verdict, self.since, self.is_overdue) = (verdict, now, false);
    }

    fn is_awaited(&self) -> bool {
        self.verdict == Verdict::Unwatched && self.is_near
    }
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
        let is_news = session.verdict != verdict;
        if is_news {
            session.turn(now, verdict);
        }
        self.is_in_doubt |= is_news;
        is_news
    }

    /// A node has been started, or is heard again. Its sessions may come up from now on.
    pub(super) fn await_anew(&mut self, now: Instant, node: &NodeName) {
        let sessions = self.sessions.iter_mut().filter(|((subject, _), _)| subject == node);
        sessions.for_each(|(_, session)| session.since = now);
    }

    /// This step comes so late; in that time nothing was looked at.
    pub(super) fn delay(&mut self, late: Duration) {
        self.sessions.values_mut().for_each(|session| session.since += late);
    }

    /// When the next session should have come up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let awaited = self.sessions.iter().filter(|(subject, session)| {
            session.is_awaited() && !session.is_overdue && self.services.contains_key(*subject)
        });
        awaited.map(|(_, session)| session.since + COMES_UP_WITHIN).min()
    }

    /// Interfaces of owners that are not seen though they should be by now, each told once: others are seen from the same interface
    /// of this node, and nothing else excuses it.
    pub(super) fn unseen(
        &mut self,
        now: Instant,
        is_excused: impl Fn(&NodeName, &InterfaceName) -> bool,
    ) -> Vec<(NodeName, InterfaceName)> {
        let services = &self.services;
        let is_due = |subject: &(NodeName, InterfaceName), session: &Session| {
            session.is_awaited() && session.since + COMES_UP_WITHIN <= now && services.contains_key(subject)
        };
        let is_up = |session: &&Session| session.verdict == Verdict::Up;
        let sees: BTreeSet<_> = self.sessions.values().filter(is_up).map(|up| up.path.interface.clone()).collect();
        let mut unseen = Vec::new();
        for (subject, session) in self.sessions.iter_mut().filter(|(subject, session)| is_due(subject, session)) {
            let was_overdue = session.is_overdue;
            if is_excused(&subject.0, &subject.1) {
                session.turn(now, Verdict::Unwatched);
            } else if sees.contains(&session.path.interface) {
                session.turn(now, Verdict::Down);
                unseen.push(subject.clone());
            } else {
                session.is_overdue = true;
            }
            self.is_in_doubt |= session.is_overdue != was_overdue;
        }
        unseen
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
            let is_up = session.is_some_and(|session| session.verdict == Verdict::Up);
            is_up && path.interface.as_ref().is_some_and(|interface| accused.contains(interface))
        };
        let looks_around = self.looks_around();
        for Watchable { node, links, in_doubt } in others.filter(|_| takes_part) {
            for (interface, carries) in links {
                permitted.extend(neighbors(own, carries).map(|neighbor| (neighbor, settings)));
                let subject = (node.clone(), interface.clone());
                let Some(path) = path(own, interface, carries) else { continue };
                let comes_next = self.services.contains_key(&subject);
                let is_in_question = in_doubt.contains(interface) || looks_around.contains(&path.interface);
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
            let is_kept = path.is_some_and(|(path, _)| *path == session.path || session.verdict == Verdict::Down);
            if !is_kept && session.verdict != Verdict::Unwatched {
                unwatched.push(subject.clone());
            }
            is_kept
        });
        for (subject, (path, is_near)) in &paths {
            let session = self.sessions.entry(subject.clone()).or_insert_with(|| Session {
                path: path.clone(),
                verdict: Verdict::Unwatched,
                since: now,
                is_overdue: false,
                is_near: *is_near,
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

    /// The interfaces of this node from which any other will do that can be seen, as an owner cannot.
    fn looks_around(&self) -> BTreeSet<Option<InterfaceName>> {
        let overdue = self
            .sessions
            .iter()
            .filter(|(subject, session)| session.is_overdue && self.services.contains_key(*subject));
        overdue.map(|(_, session)| session.path.interface.clone()).collect()
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
fn is_in_common_subnet(ours: &Carries, theirs: &Carries) -> bool {
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
