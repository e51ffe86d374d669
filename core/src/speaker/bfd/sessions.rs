//! All sessions of one system, and which of them a packet belongs to (RFC 5880 §6.3, RFC 5881, RFC 5883).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::{NonZeroU8, NonZeroU32},
    time::{Duration, Instant},
};

use ferrogate_wire::bfd::{DecodeError, Packet, State};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{Change, Discard, Session, Settings, Status};
use crate::{model::InterfaceName, speaker::bfd};

/// How many sessions there may be at a time.
pub const MAX_SESSIONS: usize = 4096;

/// How soon a session must be due to be asked whether it sends with others already: what jitter can take of 100 ms.
const TOGETHER: Duration = Duration::from_millis(25);

/// How many send together at most, so that a burst holds nothing up.
const MAX_TOGETHER: usize = 64;

/// For how long packets may lie unread.
const PATIENCE: Duration = Duration::from_millis(50);

/// With how many sessions they may: a socket holds what all these send in that time, at 10 ms each.
const MAX_UNREAD: usize = 16;

/// TTL or hop limit of a packet that no router has touched; over a single hop no other is taken (RFC 5881 §5).
const SINGLE_HOP_TTL: NonZeroU8 = NonZeroU8::MAX;

/// What a session watches. There is one session for each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    /// The neighbour's address.
    pub remote: IpAddr,
    /// Our address that it sends to and hears from.
    pub local: IpAddr,
    /// Where it is a neighbour; `None` where routers are, or may be, in between.
    pub interface: Option<InterfaceName>,
    /// The VRF device by which it goes over several hops; `None` in the main routing table, and wherever the interface
    /// says as much.
    pub vrf: Option<InterfaceName>,
}

/// Somebody on the link who may open a session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbor {
    /// Its address.
    pub remote: IpAddr,
    /// Where.
    pub interface: InterfaceName,
}

/// How a session is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What it is told.
    pub settings: Settings,
    /// The lowest TTL or hop limit that is taken over several hops. Over a single hop it is always 255.
    pub minimum_ttl: NonZeroU8,
}

/// Everything that is wanted at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Sessions that are to be there.
    pub sessions: BTreeMap<Path, Wish>,
    /// Whoever may open one, which is then passive whatever the role given here.
    pub permitted: BTreeMap<Neighbor, Settings>,
}

/// Where a packet comes from, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The IP source as remote, the IP destination as local; without the interface where it came to the port for
    /// several hops, and with the VRF then.
    pub path: Path,
    /// Its TTL or hop limit.
    pub ttl: u8,
}

/// What [`Sessions`] take in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This is wanted from now on, and nothing else.
    Want(Wanted),
    /// A packet arrived.
    Received {
        /// How.
        arrival: Arrival,
        /// What it says.
        packet: Result<Packet, DecodeError>,
    },
    /// Switch every session off, then finish.
    Shutdown,
    /// The deadline has come.
    Tick,
}

/// What [`Sessions`] want done, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// There is a session from now on; it needs a UDP source port of its own.
    Opened {
        /// Which.
        path: Path,
    },
    /// It is gone.
    Closed {
        /// Which.
        path: Path,
    },
    /// Send a packet.
    Send {
        /// From and to where.
        path: Path,
        /// What.
        packet: Packet,
    },
    /// A session is in another state.
    Changed {
        /// Which.
        path: Path,
        /// How.
        change: Change,
    },
    /// These sessions that are wanted are up. Told with every [`Event::Want`], if there are any.
    Standing {
        /// Which.
        paths: Vec<Path>,
    },
    /// A session has flapped, and stays down until then.
    Held {
        /// Which.
        path: Path,
        /// Until when.
        until: Instant,
    },
    /// A packet was not taken.
    Discarded {
        /// Where it came from.
        path: Path,
        /// Why.
        reason: Discard,
    },
    /// A session that is wanted cannot be, because there are [`MAX_SESSIONS`]. It is opened when there is room. Told once.
    Refused {
        /// Which.
        path: Path,
    },
    /// Every neighbour knows of [`Event::Shutdown`], or has had time enough to. No action follows.
    Finished,
}

/// All sessions of one system.
///
/// A session that is wanted no more goes through AdminDown, so that its neighbour does not take it for a failure, and is
/// closed when that is known there, or as soon as it is said where it was Down. A neighbour that is permitted may open a
/// session, and has it for as long as it speaks and does not switch it off; one that goes on speaking to a session that we
/// have closed gets another.
#[derive(Debug)]
pub struct Sessions {
    dice: SmallRng,
    wanted: Wanted,
    /// What is wanted and has no room.
    refused: BTreeSet<Path>,
    sessions: BTreeMap<NonZeroU32, Entry>,
    by_path: BTreeMap<Path, NonZeroU32>,
    due: BTreeSet<(Instant, NonZeroU32)>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Leaving,
    Finished,
}

#[derive(Debug)]
struct Entry {
    path: Path,
    session: Session,
    origin: Origin,
    /// The neighbour has opened it, and has it since, whoever else wants it.
    is_neighbors: bool,
    minimum_ttl: NonZeroU8,
    /// As in `due`.
    due: Option<Instant>,
}

/// Why there is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// It is wanted.
    Wanted,
    /// A permitted neighbour has opened it.
    Neighbor,
    /// It was wanted, and is on its way out.
    Past,
    /// A neighbour has opened it that may have none any more, and it is on its way out.
    Barred,
}

impl Sessions {
    /// None yet. The seed makes discriminators that cannot be guessed and jitter: take it from where strangers cannot
    /// look.
    pub fn new(seed: u64) -> Self {
        Self {
            dice: SmallRng::seed_from_u64(seed),
            wanted: Wanted::default(),
            refused: BTreeSet::new(),
            sessions: BTreeMap::new(),
            by_path: BTreeMap::new(),
            due: BTreeSet::new(),
            phase: Phase::Running,
        }
    }

    /// Takes in one event at `now` and returns what must be done about it, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Want(wanted) => {
                if self.phase == Phase::Running {
                    self.want(now, wanted, &mut actions);
                }
            }
            Event::Received { arrival, packet } => {
                if let Err(reason) = self.receive(now, &arrival, packet, &mut actions) {
                    actions.push(Action::Discarded { path: arrival.path, reason });
                }
            }
            Event::Shutdown => {
                if self.phase == Phase::Running {
                    self.want(now, Wanted::default(), &mut actions);
                    self.phase = Phase::Leaving;
                }
            }
            Event::Tick => {
                let is_due = self.deadline().is_some_and(|deadline| deadline <= now);
                while let Some(&(at, discriminator)) = self.due.first()
                    && at <= now
                {
                    self.drive(now, discriminator, bfd::Event::Tick, &mut actions);
                }
                if is_due {
                    self.gather(now, &mut actions);
                }
            }
        }
        if self.phase == Phase::Leaving && self.sessions.is_empty() {
            self.phase = Phase::Finished;
            actions.push(Action::Finished);
        }
        actions
    }

    /// When `step` wants a [`Event::Tick`] next. A tick that comes early or twice changes nothing.
    pub fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Until when packets may lie unread that say no more than that their sender is up, if each is then taken in by when it
    /// arrived: until the next deadline, where that is near and every session is up. `None`: they are wanted as they come.
    /// Silence is noticed no later for it.
    pub fn unread_until(&self, now: Instant) -> Option<Instant> {
        if self.phase != Phase::Running || self.sessions.len() > MAX_UNREAD {
            return None;
        }
        let sessions = self.sessions.values().map(|entry| entry.session.unread_until());
        let until = sessions.chain([self.deadline()]).collect::<Option<Vec<_>>>()?.into_iter().min()?;
        (now < until && until <= now + PATIENCE).then_some(until)
    }

    /// How every session stands.
    pub fn statuses(&self) -> impl Iterator<Item = (&Path, Status)> {
        self.sessions.values().map(|entry| (&entry.path, entry.session.status()))
    }

    /// How one session stands, if it is there.
    pub fn status(&self, path: &Path) -> Option<Status> {
        let entry = self.sessions.get(self.by_path.get(path)?)?;
        Some(entry.session.status())
    }

    /// Lets sessions that are due soon send with those that were due, so that all are served at one time.
    fn gather(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let soon = self.due.range(..=(now + TOGETHER, NonZeroU32::MAX)).take(MAX_TOGETHER);
        let soon: Vec<NonZeroU32> = soon.map(|(_, discriminator)| *discriminator).collect();
        for discriminator in soon {
            self.drive(now, discriminator, bfd::Event::Join, actions);
        }
    }

    fn want(&mut self, now: Instant, wanted: Wanted, actions: &mut Vec<Action>) {
        self.wanted = wanted;
        self.refused.retain(|path| self.wanted.sessions.contains_key(path));
        let known: Vec<NonZeroU32> = self.sessions.keys().copied().collect();
        for discriminator in known {
            self.review(now, discriminator, actions);
        }
        self.open_wanted(now, actions);
        // Whoever wants a session that is there already hears of it no sooner than of its end otherwise.
        let standing = self.sessions.values().filter(|entry| entry.origin == Origin::Wanted);
        let standing = standing.filter(|entry| entry.session.state() == State::Up);
        let paths: Vec<Path> = standing.map(|entry| entry.path.clone()).collect();
        if !paths.is_empty() {
            actions.push(Action::Standing { paths });
        }
    }

    /// Tells a session what is wanted of it now.
    fn review(&mut self, now: Instant, discriminator: NonZeroU32, actions: &mut Vec<Action>) {
        let Some(entry) = self.sessions.get_mut(&discriminator) else { return };
        let permitted = entry.path.neighbor().and_then(|neighbor| self.wanted.permitted.get(&neighbor));
        let (origin, settings) = match (self.wanted.sessions.get(&entry.path), permitted, entry.origin) {
            (Some(wish), _, _) => {
                entry.minimum_ttl = wish.minimum_ttl;
                (Origin::Wanted, Some(wish.settings))
            }
            // Once it is gone, the neighbour has to forget about it before it can open another.
            (None, Some(settings), Origin::Neighbor | Origin::Barred) => (Origin::Neighbor, Some(settings.passive())),
            (None, None, Origin::Neighbor | Origin::Barred) => (Origin::Barred, None),
            (None, Some(settings), Origin::Wanted) if entry.is_neighbors => {
                (Origin::Neighbor, Some(settings.passive()))
            }
            (None, None, Origin::Wanted) if entry.is_neighbors => (Origin::Barred, None),
            (None, _, Origin::Wanted | Origin::Past) => (Origin::Past, None),
        };
        entry.origin = origin;
        match settings {
            Some(settings) => {
                self.drive(now, discriminator, bfd::Event::Configure(settings), actions);
                self.drive(now, discriminator, bfd::Event::Enable, actions);
            }
            None => self.drive(now, discriminator, bfd::Event::Disable, actions),
        }
    }

    fn open_wanted(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let missing = self.wanted.sessions.iter().filter(|(path, _)| !self.by_path.contains_key(path));
        let missing: Vec<(Path, Wish)> = missing.map(|(path, wish)| (path.clone(), *wish)).collect();
        for (path, wish) in missing {
            if self.sessions.len() >= MAX_SESSIONS {
                if self.refused.insert(path.clone()) {
                    actions.push(Action::Refused { path });
                }
                continue;
            }
            self.refused.remove(&path);
            let discriminator = self.open(now, path, wish, Origin::Wanted, actions);
            self.drive(now, discriminator, bfd::Event::Tick, actions);
        }
    }

    fn open(&mut self, now: Instant, path: Path, wish: Wish, origin: Origin, actions: &mut Vec<Action>) -> NonZeroU32 {
        let discriminator = loop {
            let Some(drawn) = NonZeroU32::new(self.dice.random()) else { continue };
            if !self.sessions.contains_key(&drawn) {
                break drawn;
            }
        };
        let session = Session::new(now, discriminator, wish.settings, self.dice.random());
        actions.push(Action::Opened { path: path.clone() });
        self.by_path.insert(path.clone(), discriminator);
        let minimum_ttl = wish.minimum_ttl;
        let is_neighbors = origin == Origin::Neighbor;
        self.sessions.insert(discriminator, Entry { path, session, origin, is_neighbors, minimum_ttl, due: None });
        discriminator
    }

    fn receive(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        packet: Result<Packet, DecodeError>,
        actions: &mut Vec<Action>,
    ) -> Result<(), Discard> {
        // Before anything is read (RFC 5082): whatever came through a router can say anything.
        if arrival.path.interface.is_some() && arrival.ttl != SINGLE_HOP_TTL.get() {
            return Err(Discard::Ttl);
        }
        let packet = packet?;
        let discriminator = match packet.your_discriminator {
            Some(discriminator) => {
                let entry = self.sessions.get(&discriminator).ok_or(Discard::UnknownDiscriminator)?;
                // The address may be another one than before (RFC 5881 §3); the interface is what we watch.
                let by = |path: &Path| (path.interface.clone(), path.vrf.clone());
                if by(&entry.path) != by(&arrival.path) {
                    return Err(Discard::WrongInterface);
                }
                discriminator
            }
            None => match self.by_path.get(&arrival.path) {
                Some(discriminator) => *discriminator,
                None => self.admit(now, arrival, &packet, actions)?,
            },
        };
        let entry = self.sessions.get(&discriminator).ok_or(Discard::UnknownDiscriminator)?;
        if arrival.ttl < entry.minimum_ttl.get() {
            return Err(Discard::Ttl);
        }
        self.drive(now, discriminator, bfd::Event::Received(packet), actions);
        Ok(())
    }

    /// Opens a session for a neighbour that may have one.
    fn admit(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        packet: &Packet,
        actions: &mut Vec<Action>,
    ) -> Result<NonZeroU32, Discard> {
        let neighbor = arrival.path.neighbor().ok_or(Discard::NoSession)?;
        let settings = *self.wanted.permitted.get(&neighbor).ok_or(Discard::NoSession)?;
        // One that is switching off wants none.
        if packet.state != State::Down {
            return Err(Discard::NoSession);
        }
        if self.sessions.len() >= MAX_SESSIONS {
            return Err(Discard::TooManySessions);
        }
        let wish = Wish { settings: settings.passive(), minimum_ttl: SINGLE_HOP_TTL };
        Ok(self.open(now, arrival.path.clone(), wish, Origin::Neighbor, actions))
    }

    /// Steps one session, and closes it where that was its end.
    fn drive(&mut self, now: Instant, discriminator: NonZeroU32, event: bfd::Event, actions: &mut Vec<Action>) {
        let Some(entry) = self.sessions.get_mut(&discriminator) else { return };
        let mut is_over = false;
        for action in entry.session.step(now, event) {
            let path = entry.path.clone();
            actions.push(match action {
                bfd::Action::Send(packet) => Action::Send { path, packet },
                bfd::Action::Changed(change) => Action::Changed { path, change },
                bfd::Action::Held { until } => Action::Held { path, until },
                bfd::Action::Discarded(reason) => Action::Discarded { path, reason },
                bfd::Action::Finished => {
                    is_over = true;
                    continue;
                }
            });
        }
        // Or the neighbour that has opened it has gone.
        entry.is_neighbors &= entry.session.has_remote();
        is_over |= entry.origin == Origin::Neighbor && !entry.is_neighbors;
        if let Some(due) = entry.due.take() {
            self.due.remove(&(due, discriminator));
        }
        if !is_over {
            entry.due = entry.session.deadline();
            self.due.extend(entry.due.map(|due| (due, discriminator)));
            return;
        }
        if let Some(entry) = self.sessions.remove(&discriminator) {
            self.by_path.remove(&entry.path);
            actions.push(Action::Closed { path: entry.path });
        }
        if !self.refused.is_empty() {
            self.open_wanted(now, actions);
        }
    }
}

impl Path {
    fn neighbor(&self) -> Option<Neighbor> {
        let interface = self.interface.clone()?;
        Some(Neighbor { remote: self.remote, interface })
    }
}
