//! One router: how it is reached, which of two connections is kept, and when to try again (RFC 4271 §6.8, §8).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_wire::{
    bfd::Diagnostic,
    bgp::{Cease, Message, MessageError, Notification, Update, frame::MessageType},
};
use rand::Rng;

use super::{
    Action, BfdState, COALESCE, Closing, Common, Connection, DRAIN_TIME, Departure, Direction, Ends, Loss, Messages,
    Neighbor, PeerId, Remote, SessionStatus, State, Target, Trouble, WITHDRAW_TIME, Watched,
    rib_out::{self, RibOut, Terms},
    session::{Input, Output, Session},
};
use crate::{
    model::{PeerName, Prefix},
    speaker::bfd::sessions::Path,
};

/// The wait after the first failed attempt; each further one doubles it.
pub const RETRY_FIRST: Duration = Duration::from_millis(500);

/// The longest wait between two attempts unless told otherwise.
pub const RETRY_MAX: Duration = Duration::from_secs(5);

/// Up for this long, a session counts as one that works: the next loss is followed by an attempt at once.
const FORGIVE_AFTER: Duration = Duration::from_secs(30);

/// How long changes of numbers are gathered before they are told.
const NEWS_DELAY: Duration = Duration::from_secs(1);

/// How often they are told at most: each time ends in a write to the API server, from every node.
const NEWS_INTERVAL: Duration = Duration::from_secs(10);

/// How long a peer is left alone that has sent more prefixes than it may: it would send them again, and every attempt would
/// have all traffic spread anew.
const TOO_MANY_PREFIXES: Duration = Duration::from_secs(300);

/// For how long BFD goes on when the connections of a speaker that restarts have ended: peers have noticed by then.
const RESTART_TIME: Duration = Duration::from_millis(100);

/// Doublings beyond which the wait does not grow any more.
const MAX_DOUBLINGS: u32 = 16;

#[derive(Debug)]
pub(super) struct Peer {
    name: PeerName,
    neighbor: Arc<Neighbor>,
    /// The address that connected, where the object stands for a prefix.
    dynamic: Option<IpAddr>,
    attempt: Attempt,
    /// Attempts that came to nothing, one after the other.
    failures: u32,
    live: BTreeMap<Connection, Live>,
    /// Why there is to be no connection, whoever would make it. As long as there is such a reason nothing is tried.
    hindrance: Option<Trouble>,
    /// Why the last attempt came to nothing.
    trouble: Option<Trouble>,
    last_close: Option<Closing>,
    flaps: u32,
    /// Between which addresses BFD watches, from the last connection.
    path: Option<Path>,
    bfd: BfdState,
    bfd_losses: u32,
    bfd_last_loss: Option<Diagnostic>,
    messages: Messages,
    received: Received,
    leaving: Option<Leaving>,
    retired: bool,
    told: Option<SessionStatus>,
    /// When numbers alone were told last.
    numbers_told_at: Option<Instant>,
    news_at: Option<Instant>,
}

/// What is done about a connection of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// Nothing: there is one, or the peer is to make it.
    None,
    /// The next is made then.
    Waiting {
        at: Instant,
    },
    Connecting {
        connection: Connection,
    },
}

/// A connection that stands.
#[derive(Debug)]
struct Live {
    session: Session,
    is_ours: bool,
    ends: Ends,
    rib: Option<RibOut>,
    established_at: Option<Instant>,
    flush_at: Option<Instant>,
}

/// What the peer has sent.
#[derive(Debug, Default)]
struct Received {
    count: u64,
    /// Which, where there is a limit to it.
    prefixes: BTreeSet<Prefix>,
}

/// A session on its way out.
#[derive(Clone, Debug)]
enum Leaving {
    /// Every other path is preferred by then.
    Draining {
        until: Instant,
        text: String,
    },
    /// The peer has taken the withdrawals in by then.
    Withdrawing {
        until: Instant,
        text: String,
    },
    /// The peer knows by then that the connection has ended, and keeps our routes.
    Restarting {
        until: Instant,
    },
    Parted,
}

impl Peer {
    pub(super) fn new(name: PeerName, neighbor: Arc<Neighbor>, dynamic: Option<IpAddr>) -> Self {
        Self {
            name,
            neighbor,
            dynamic,
            attempt: Attempt::None,
            failures: 0,
            live: BTreeMap::new(),
            hindrance: None,
            trouble: None,
            last_close: None,
            flaps: 0,
            path: None,
            bfd: BfdState::Down,
            bfd_losses: 0,
            bfd_last_loss: None,
            messages: Messages::new(),
            received: Received::default(),
            leaving: None,
            retired: false,
            told: None,
            numbers_told_at: None,
            news_at: None,
        }
    }

    pub(super) fn neighbor(&self) -> &Neighbor {
        &self.neighbor
    }

    /// How many messages went which way.
    pub(super) fn messages(&self) -> &Messages {
        &self.messages
    }

    pub(super) fn count_message(&mut self, direction: Direction, kind: MessageType) {
        *self.messages.entry((direction, kind)).or_default() += 1;
    }

    /// For how long after the start of this speaker the peer may hold routes of its earlier life.
    pub(super) fn restart_time(&self) -> Duration {
        let seconds = self.neighbor.graceful_restart.map_or(0, |restart| restart.restart_time_seconds);
        Duration::from_secs(seconds.into())
    }

    /// Whether there is a peer that could be told that it knows all routes, and was not.
    pub(super) fn awaits_completion(&self) -> bool {
        let awaits = |live: &Live| !live.session.is_blocked() && live.rib.as_ref().is_some_and(RibOut::is_unfinished);
        self.live.values().any(awaits)
    }

    /// Nothing is left of it.
    pub(super) fn is_over(&self) -> bool {
        // BFD outlives the connections of a restart.
        let restarts = matches!(self.leaving, Some(Leaving::Restarting { .. }));
        self.live.is_empty() && (self.retired || self.dynamic.is_some() && !restarts)
    }

    /// Whether there is nothing left to say after [`Self::depart`].
    pub(super) fn has_parted(&self) -> bool {
        matches!(self.leaving, Some(Leaving::Parted))
    }

    /// How BFD is to watch it, once it is known between which addresses.
    pub(super) fn watch(&self) -> Option<(Path, Watched)> {
        let is_going =
            self.retired || self.neighbor.shutdown.is_some() || matches!(self.leaving, Some(Leaving::Parted));
        let vrf = self.neighbor.transport.vrf.clone();
        let watched = self.neighbor.bfd.map(|wish| Watched { wish, vrf });
        self.path.clone().zip(watched).filter(|_| !is_going)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let attempt = match self.attempt {
            Attempt::Waiting { at } => Some(at),
            Attempt::None | Attempt::Connecting { .. } => None,
        };
        let leaving = match self.leaving {
            Some(
                Leaving::Draining { until, .. } | Leaving::Withdrawing { until, .. } | Leaving::Restarting { until },
            ) => Some(until),
            Some(Leaving::Parted) | None => None,
        };
        let live = self.live.values().flat_map(|live| {
            [live.session.deadline(), live.flush_at.filter(|_| !live.session.is_blocked())].into_iter().flatten()
        });
        live.chain(attempt).chain(leaving).chain(self.news_at).min()
    }

    /// Sets out to reach it.
    pub(super) fn start(&mut self, common: &mut Common<'_>, actions: &mut Vec<Action>) {
        let is_off = self.neighbor.shutdown.is_some() || self.leaving.is_some() || self.retired;
        if is_off || !self.live.is_empty() {
            return;
        }
        if self.hindrance.is_some() || self.neighbor.passive || self.dynamic.is_some() {
            return;
        }
        let (address, port, interface) = match &self.neighbor.remote {
            Remote::Address { address, port } => (*address, *port, None),
            Remote::Interface { name, port } => match common.routers.get(name) {
                Some(router) => (*router, *port, Some(name.clone())),
                None => {
                    // It is tried as soon as it makes itself known.
                    self.trouble = Some(Trouble::NoRouter(name.clone()));
                    self.attempt = Attempt::None;
                    return;
                }
            },
            Remote::Prefix(_) => return,
        };
        let connection = common.connection();
        self.attempt = Attempt::Connecting { connection };
        let to = Target { address, port, interface };
        actions.push(Action::Connect { connection, to, transport: self.neighbor.transport.clone() });
    }

    /// Takes in why there is to be no connection with it from now on, if there is a reason.
    pub(super) fn hinder(&mut self, hindrance: Option<Trouble>) {
        self.hindrance = hindrance;
    }

    /// A router has been found where this one is to be.
    pub(super) fn found(&mut self, common: &mut Common<'_>, actions: &mut Vec<Action>) {
        if !matches!(self.attempt, Attempt::Connecting { .. }) {
            self.start(common, actions);
        }
    }

    /// Is spoken with like this from now on.
    pub(super) fn configure(&mut self, common: &mut Common<'_>, neighbor: Arc<Neighbor>, actions: &mut Vec<Action>) {
        // On its way out it ends as it has begun to: a reset in between might have the peer keep routes.
        if self.neighbor == neighbor || self.leaving.is_some() {
            return;
        }
        let before = std::mem::replace(&mut self.neighbor, neighbor);
        if let Some(text) = self.neighbor.shutdown.clone() {
            if before.shutdown != self.neighbor.shutdown {
                self.give_up(actions);
                self.close_all(
                    common,
                    Notification::cease_with_text(Cease::AdministrativeShutdown, &text),
                    true,
                    actions,
                );
            }
            return;
        }
        if before.is_same_session(&self.neighbor) && before.shutdown.is_none() {
            if before.max_prefixes != self.neighbor.max_prefixes && self.has_had_too_many() {
                self.give_up(actions);
                self.start(common, actions);
            }
            return;
        }
        let moves = before.remote != self.neighbor.remote;
        self.give_up(actions);
        self.close_all(common, Notification::cease(Cease::OtherConfigurationChange), moves, actions);
        self.failures = 0;
        self.trouble = None;
        self.path = None;
        self.start(common, actions);
    }

    /// Is spoken with no more.
    pub(super) fn retire(&mut self, common: &mut Common<'_>, why: Notification, actions: &mut Vec<Action>) {
        self.retired = true;
        self.give_up(actions);
        self.close_all(common, why, true, actions);
    }

    /// This speaker stops.
    pub(super) fn depart(&mut self, common: &mut Common<'_>, departure: &Departure, actions: &mut Vec<Action>) {
        self.give_up(actions);
        let text = match departure {
            Departure::Restart => "the speaker restarts",
            Departure::Leave { text } => text,
        };
        let established = self.live.values().find(|live| live.rib.is_some());
        // Where traffic does not get through meanwhile, there is no use in that.
        let may_keep = self.neighbor.graceful_restart.is_some_and(|restart| restart.forwarding_preserved);
        let keeps_routes = may_keep
            && established.and_then(|live| live.session.negotiated()).is_some_and(|both| both.graceful_restart);
        if established.is_none() {
            self.close_all(common, Notification::cease_with_text(Cease::AdministrativeShutdown, text), true, actions);
            self.leaving = Some(Leaving::Parted);
        } else if keeps_routes && *departure == Departure::Restart {
            // Before BFD: routers that take AdminDown for a failure, against RFC 5882 §4.2, would forget our routes.
            for connection in self.live.keys().copied().collect::<Vec<_>>() {
                self.finish(common, connection, Closing::Lost(Loss::Restart), actions);
            }
            self.give_up(actions);
            self.leaving = Some(Leaving::Restarting { until: common.now + RESTART_TIME });
        } else {
            self.leaving = Some(Leaving::Draining { until: common.now + DRAIN_TIME, text: text.to_owned() });
            self.each_rib(common, actions, RibOut::drain);
        }
    }

    /// Follows changed routes.
    pub(super) fn touch(
        &mut self,
        common: &mut Common<'_>,
        changed: &[Prefix],
        is_complete_now: bool,
        actions: &mut Vec<Action>,
    ) {
        for (connection, live) in &mut self.live {
            let Some(rib) = &mut live.rib else { continue };
            rib.touch(changed.iter().copied());
            if !changed.is_empty() {
                live.flush_at.get_or_insert(common.now + COALESCE);
            } else if is_complete_now {
                live.flush(common, *connection, actions);
            }
        }
    }

    /// A connection of ours stands.
    pub(super) fn connected(
        &mut self,
        common: &mut Common<'_>,
        connection: Connection,
        ends: Ends,
        actions: &mut Vec<Action>,
    ) {
        if self.attempt != (Attempt::Connecting { connection }) {
            actions.push(Action::Close { connection });
            return;
        }
        self.attempt = Attempt::None;
        self.open(common, connection, ends, true, actions);
    }

    /// It has connected.
    pub(super) fn accepted(
        &mut self,
        common: &mut Common<'_>,
        connection: Connection,
        ends: Ends,
        actions: &mut Vec<Action>,
    ) {
        if self.neighbor.shutdown.is_some() || self.leaving.is_some() || self.retired {
            let bytes = Notification::cease(Cease::ConnectionRejected).encode();
            actions.extend([Action::Send { connection, bytes }, Action::Close { connection }]);
            return;
        }
        // One that is not established and not ours has been given up by the peer, or it is somebody who piles them up.
        let stale = self.live.iter().find(|(_, live)| !live.is_ours && live.rib.is_none()).map(|(old, _)| *old);
        if let Some(old) = stale {
            self.live.remove(&old);
            actions.push(Action::Close { connection: old });
        }
        self.open(common, connection, ends, false, actions);
    }

    fn open(
        &mut self,
        common: &mut Common<'_>,
        connection: Connection,
        ends: Ends,
        is_ours: bool,
        actions: &mut Vec<Action>,
    ) {
        self.trouble = None;
        let (session, outputs) = Session::new(common.now, &self.neighbor, common.is_restarted);
        let live = Live { session, is_ours, ends, rib: None, established_at: None, flush_at: None };
        self.live.insert(connection, live);
        self.perform(common, connection, outputs, actions);
    }

    /// An attempt came to nothing.
    pub(super) fn refused(
        &mut self,
        common: &mut Common<'_>,
        connection: Connection,
        trouble: Trouble,
        actions: &mut Vec<Action>,
    ) {
        if self.attempt == (Attempt::Connecting { connection }) {
            actions.push(Action::Close { connection });
            self.attempt = Attempt::None;
            self.trouble = Some(trouble);
            self.retry(common);
        }
    }

    pub(super) fn received(
        &mut self,
        common: &mut Common<'_>,
        connection: Connection,
        message: Result<Message, MessageError>,
        actions: &mut Vec<Action>,
    ) {
        self.step(common, connection, Input::Message(message.map_err(|error| error.notification())), actions);
    }

    pub(super) fn written(&mut self, common: &mut Common<'_>, connection: Connection, actions: &mut Vec<Action>) {
        self.step(common, connection, Input::Written, actions);
        let Some(live) = self.live.get_mut(&connection) else { return };
        if live.flush_at.is_none_or(|at| at <= common.now) {
            live.flush(common, connection, actions);
        }
    }

    pub(super) fn ended(
        &mut self,
        common: &mut Common<'_>,
        connection: Connection,
        loss: Loss,
        actions: &mut Vec<Action>,
    ) {
        self.finish(common, connection, Closing::Lost(loss), actions);
    }

    /// The kernel has dropped segments for their signatures, whoever sent them.
    pub(super) fn mistrust(&mut self) {
        let is_unexplained = matches!(self.trouble, None | Some(Trouble::TimedOut));
        let signature = self.neighbor.transport.signature.as_ref();
        if is_unexplained && self.live.is_empty() && signature.is_some() {
            self.trouble = Some(Trouble::silence(signature));
        }
    }

    /// What BFD sees of it.
    pub(super) fn bfd(
        &mut self,
        common: &mut Common<'_>,
        is_up: bool,
        failure: Option<Diagnostic>,
        actions: &mut Vec<Action>,
    ) {
        self.bfd = if is_up { BfdState::Up } else { BfdState::Down };
        if failure.is_some() {
            self.bfd_losses = self.bfd_losses.saturating_add(1);
            self.bfd_last_loss = failure;
            self.close_all(common, Notification::cease(Cease::BfdDown), true, actions);
        }
    }

    pub(super) fn tick(&mut self, common: &mut Common<'_>, actions: &mut Vec<Action>) {
        let now = common.now;
        if matches!(self.attempt, Attempt::Waiting { at } if at <= now) {
            self.attempt = Attempt::None;
            self.start(common, actions);
        }
        for connection in self.live.keys().copied().collect::<Vec<_>>() {
            let is_due = |live: &Live| live.session.deadline().is_some_and(|at| at <= now);
            if self.live.get(&connection).is_some_and(is_due) {
                self.step(common, connection, Input::Tick, actions);
            }
            let Some(live) = self.live.get_mut(&connection) else { continue };
            let is_waited_for = common.is_complete && live.rib.as_ref().is_some_and(RibOut::is_unfinished);
            if is_waited_for || live.flush_at.is_some_and(|at| at <= now) {
                live.flush(common, connection, actions);
            }
        }
        match self.leaving.clone() {
            Some(Leaving::Draining { until, text }) if until <= now => {
                self.leaving = Some(Leaving::Withdrawing { until: now + WITHDRAW_TIME, text });
                self.each_rib(common, actions, RibOut::empty);
            }
            Some(Leaving::Withdrawing { until, text }) if until <= now => {
                self.leaving = Some(Leaving::Parted);
                let why = Notification::cease_with_text(Cease::AdministrativeShutdown, &text);
                self.close_all(common, why, true, actions);
            }
            Some(Leaving::Restarting { until }) if until <= now => self.leaving = Some(Leaving::Parted),
            _ => {}
        }
    }

    fn step(&mut self, common: &mut Common<'_>, connection: Connection, input: Input, actions: &mut Vec<Action>) {
        let Some(live) = self.live.get_mut(&connection) else { return };
        let outputs = live.session.step(common.now, input, common.dice);
        self.perform(common, connection, outputs, actions);
    }

    fn perform(
        &mut self,
        common: &mut Common<'_>,
        connection: Connection,
        outputs: Vec<Output>,
        actions: &mut Vec<Action>,
    ) {
        for output in outputs {
            match output {
                Output::Send(bytes) => actions.push(Action::Send { connection, bytes }),
                Output::Opened => self.collide(common, connection, actions),
                Output::Established => self.establish(common, connection, actions),
                Output::Update(update) => self.count(common, connection, &update, actions),
                Output::Refresh(family) => {
                    let Some(live) = self.live.get_mut(&connection) else { continue };
                    let framed = live.session.negotiated().is_some_and(|both| both.enhanced_refresh);
                    let Some(rib) = &mut live.rib else { continue };
                    rib.refresh(family, framed);
                    live.flush(common, connection, actions);
                }
                Output::Ended(closing) => self.finish(common, connection, closing, actions),
            }
        }
    }

    /// The peer has said on one connection who it is: of two only one stays (RFC 4271 §6.8, RFC 6286 §2.3).
    fn collide(&mut self, common: &mut Common<'_>, connection: Connection, actions: &mut Vec<Action>) {
        // What has not got as far as an OPEN does not count.
        self.give_up(actions);
        let Some(live) = self.live.get(&connection) else { return };
        let Some(negotiated) = live.session.negotiated() else { return };
        let own = (self.neighbor.identifier.get(), self.neighbor.local_asn);
        let ours_stays = own > (negotiated.remote_identifier.get(), negotiated.remote_asn);
        let is_ours = live.is_ours;
        for other in self.live.keys().copied().filter(|other| *other != connection).collect::<Vec<_>>() {
            let Some(theirs) = self.live.get(&other) else { continue };
            if theirs.rib.is_some() {
                let has_restarted = theirs.session.negotiated().is_some_and(|both| both.graceful_restart);
                if has_restarted && !is_ours {
                    self.finish(common, other, Closing::Lost(Loss::Replaced), actions);
                } else {
                    self.reject(connection, actions);
                    return;
                }
            } else if is_ours == ours_stays {
                self.reject(other, actions);
            } else {
                self.reject(connection, actions);
                return;
            }
        }
    }

    /// Closes the connection of a collision that is not kept.
    fn reject(&mut self, connection: Connection, actions: &mut Vec<Action>) {
        self.live.remove(&connection);
        let bytes = Notification::cease(Cease::ConnectionCollision).encode();
        actions.extend([Action::Send { connection, bytes }, Action::Close { connection }]);
    }

    fn establish(&mut self, common: &mut Common<'_>, connection: Connection, actions: &mut Vec<Action>) {
        let Some(live) = self.live.get_mut(&connection) else { return };
        let Some(both) = live.session.negotiated() else { return };
        let terms = Terms {
            peer: self.name.clone(),
            local_asn: self.neighbor.local_asn,
            is_internal: both.remote_asn == self.neighbor.local_asn,
            dialect: both.dialect,
            families: rib_out::next_hops(&self.neighbor, &live.ends, &both.families, both.ipv4_by_ipv6),
        };
        self.received = Received::default();
        live.rib = Some(RibOut::new(terms, common.routes));
        live.established_at = Some(common.now);
        live.flush(common, connection, actions);
        // Only now is it sure who is there, and by which way.
        let is_multi_hop = self.neighbor.is_far() || !live.ends.is_on_link();
        let interface = live.ends.interface.clone().filter(|_| !is_multi_hop);
        let vrf = self.neighbor.transport.vrf.clone().filter(|_| is_multi_hop);
        let path = Path { remote: live.ends.remote, local: live.ends.local, interface, vrf };
        if self.path.as_ref() != Some(&path) {
            self.path = Some(path);
            self.bfd = BfdState::Down;
        }
    }

    /// Counts what the peer sends, and forgets it.
    fn count(&mut self, common: &mut Common<'_>, connection: Connection, update: &Update, actions: &mut Vec<Action>) {
        let Some(limit) = self.neighbor.max_prefixes else {
            let (more, less) = (update.announced.len() as u64, update.withdrawn.len() as u64);
            self.received.prefixes.clear();
            self.received.count = self.received.count.saturating_add(more).saturating_sub(less);
            return;
        };
        let limit = limit.get() as usize;
        for prefix in &update.withdrawn {
            self.received.prefixes.remove(prefix);
        }
        for prefix in &update.announced {
            self.received.prefixes.insert(*prefix);
            if self.received.prefixes.len() > limit {
                self.close(common, connection, Notification::cease(Cease::MaximumPrefixes), true, actions);
                return;
            }
        }
        self.received.count = self.received.prefixes.len() as u64;
    }

    fn each_rib(&mut self, common: &mut Common<'_>, actions: &mut Vec<Action>, change: impl Fn(&mut RibOut)) {
        for (connection, live) in &mut self.live {
            if let Some(rib) = &mut live.rib {
                change(rib);
                live.flush(common, *connection, actions);
            }
        }
    }

    /// Ends an attempt, or the wait for one.
    fn give_up(&mut self, actions: &mut Vec<Action>) {
        if let Attempt::Connecting { connection } = std::mem::replace(&mut self.attempt, Attempt::None) {
            actions.push(Action::Close { connection });
        }
    }

    fn close_all(&mut self, common: &mut Common<'_>, why: Notification, is_final: bool, actions: &mut Vec<Action>) {
        for connection in self.live.keys().copied().collect::<Vec<_>>() {
            self.close(common, connection, why.clone(), is_final, actions);
        }
    }

    /// Tells the peer why and closes. Where it `is_final` the peer is not to keep our routes, whatever a NOTIFICATION
    /// means to it otherwise (RFC 8538).
    fn close(
        &mut self,
        common: &mut Common<'_>,
        connection: Connection,
        why: Notification,
        is_final: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(live) = self.live.get(&connection) else { return };
        let restarts = live.session.negotiated().is_some_and(|both| both.notification_restarts);
        let said = if is_final && restarts { Notification::hard_reset(&why) } else { why.clone() };
        actions.push(Action::Send { connection, bytes: said.encode() });
        self.finish(common, connection, Closing::Sent(why), actions);
    }

    /// A connection is over.
    fn finish(&mut self, common: &mut Common<'_>, connection: Connection, closing: Closing, actions: &mut Vec<Action>) {
        actions.push(Action::Close { connection });
        let Some(live) = self.live.remove(&connection) else { return };
        self.last_close = Some(closing);
        if let Some(since) = live.established_at {
            self.flaps = self.flaps.saturating_add(1);
            self.received = Received::default();
            if since + FORGIVE_AFTER <= common.now {
                self.failures = 0;
            }
        }
        if matches!(self.leaving, Some(Leaving::Draining { .. } | Leaving::Withdrawing { .. })) && self.live.is_empty()
        {
            self.leaving = Some(Leaving::Parted);
        }
        self.retry(common);
    }

    /// Whether the last connection ended because the peer sent more prefixes than it may.
    fn has_had_too_many(&self) -> bool {
        self.last_close == Some(Closing::Sent(Notification::cease(Cease::MaximumPrefixes)))
    }

    /// Waits for the next attempt, longer after each that came to nothing (RFC 4271 §8.2.1.1 damps so).
    fn retry(&mut self, common: &mut Common<'_>) {
        let is_wanted = self.leaving.is_none()
            && !self.retired
            && self.dynamic.is_none()
            && !self.neighbor.passive
            && self.neighbor.shutdown.is_none()
            && self.hindrance.is_none()
            && self.live.is_empty()
            && self.attempt == Attempt::None;
        if is_wanted {
            let most = self.neighbor.connect_retry_time.unwrap_or(RETRY_MAX);
            let wait = match self.has_had_too_many() {
                true => TOO_MANY_PREFIXES,
                false => (RETRY_FIRST * 2u32.saturating_pow(self.failures.min(MAX_DOUBLINGS))).min(most),
            };
            self.failures = self.failures.saturating_add(1);
            self.attempt = Attempt::Waiting { at: common.now + wait.mul_f64(common.dice.random_range(0.75..=1.0)) };
        }
    }

    fn state(&self) -> State {
        let live = self.live.values().map(|live| live.session.state()).max();
        live.unwrap_or(match self.attempt {
            // Told of the first attempt only: with every further one the status would go to and fro.
            Attempt::Connecting { .. } if self.failures == 0 => State::Connect,
            Attempt::Connecting { .. } => State::Active,
            Attempt::Waiting { .. } => State::Active,
            Attempt::None if self.neighbor.shutdown.is_some() || self.leaving.is_some() => State::Idle,
            Attempt::None if self.hindrance.is_some() => State::Idle,
            Attempt::None => State::Active,
        })
    }

    /// Why it is not spoken with. Who is not to be spoken with needs no other reason.
    fn trouble(&self) -> Option<Trouble> {
        let hindrance = self.hindrance.as_ref().filter(|_| self.neighbor.shutdown.is_none());
        hindrance.or(self.trouble.as_ref()).cloned()
    }

    pub(super) fn status(&self, id: &PeerId) -> SessionStatus {
        let foremost = self.live.values().max_by_key(|live| live.session.state());
        let both = foremost.and_then(|live| live.session.negotiated());
        let rib = foremost.and_then(|live| live.rib.as_ref());
        SessionStatus {
            peer: id.name.clone(),
            remote: id.dynamic.map_or_else(|| self.neighbor.remote.to_string(), |address| address.to_string()),
            port: match self.neighbor.remote {
                Remote::Address { port, .. } | Remote::Interface { port, .. } => Some(port),
                Remote::Prefix(_) => None,
            },
            dynamic: id.dynamic,
            vrf: self.neighbor.transport.vrf.clone(),
            state: self.state(),
            trouble: self.trouble(),
            remote_asn: both.map(|both| both.remote_asn),
            remote_identifier: both.map(|both| both.remote_identifier),
            local_address: foremost.map(|live| live.ends.local),
            remote_address: foremost.map(|live| live.ends.remote),
            hold_time_seconds: both.map(|both| both.hold_time.seconds()),
            families: both.map(|both| both.families.clone()).unwrap_or_default(),
            prefixes_sent: rib.map_or(0, RibOut::len),
            prefixes_received: self.received.count,
            withheld: rib.map(RibOut::withheld).cloned().unwrap_or_default(),
            flaps: self.flaps,
            last_close: self.last_close.clone(),
            bfd: self.neighbor.bfd.map(|_| self.bfd),
            bfd_losses: self.bfd_losses,
            bfd_last_loss: self.bfd_last_loss,
        }
    }

    /// How it was lost, if it is one of a prefix that has gone by itself: nobody can ask for its status any more. Who has
    /// never had a session is anybody.
    pub(super) fn last_news(&self, id: &PeerId) -> Option<SessionStatus> {
        let was_up = self.told.as_ref().is_some_and(|told| told.state == State::Established);
        (was_up && !self.retired).then(|| self.status(id))
    }

    /// How it stands, if that is worth telling: at once where the session is another, and now and then where numbers are.
    pub(super) fn news(&mut self, now: Instant, id: &PeerId) -> Option<SessionStatus> {
        let status = self.status(id);
        if self.told.as_ref() == Some(&status) {
            self.news_at = None;
            return None;
        }
        let is_urgent = self.told.as_ref().is_none_or(|told| {
            let numbers = SessionStatus {
                prefixes_sent: status.prefixes_sent,
                prefixes_received: status.prefixes_received,
                withheld: status.withheld.clone(),
                ..told.clone()
            };
            numbers != status
        });
        if !is_urgent {
            let soon = self.numbers_told_at.map_or(now, |told_at| now.max(told_at + NEWS_INTERVAL - NEWS_DELAY));
            if now < *self.news_at.get_or_insert(soon + NEWS_DELAY) {
                return None;
            }
            self.numbers_told_at = Some(now);
        }
        self.news_at = None;
        self.told = Some(status.clone());
        Some(status)
    }
}

impl Live {
    /// Sends what waits, unless the last of it is not written yet: then the rest waits for that.
    fn flush(&mut self, common: &mut Common<'_>, connection: Connection, actions: &mut Vec<Action>) {
        let Some(rib) = &mut self.rib else { return };
        let mut outputs = Vec::new();
        while !self.session.is_blocked() && rib.has_more(common.is_complete) {
            for message in rib.next(common.routes, common.is_complete) {
                self.session.send(common.now, message, &mut outputs);
            }
        }
        if !rib.has_more(common.is_complete) {
            self.flush_at = None;
        }
        // One write for all of them.
        let bytes: Vec<u8> = outputs
            .into_iter()
            .filter_map(|output| match output {
                Output::Send(bytes) => Some(bytes),
                _ => None,
            })
            .flatten()
            .collect();
        if !bytes.is_empty() {
            actions.push(Action::Send { connection, bytes });
        }
    }
}
