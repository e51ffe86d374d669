//! Bidirectional forwarding detection (RFC 5880 §6): whether the way to one neighbour works, told in milliseconds.
//!
//! [`Session`] is one session; [`Sessions`] finds the one that a packet belongs to. Asynchronous mode is spoken, a
//! neighbour's wish for demand mode is obeyed; echo packets and authentication are not spoken, and said so.
//!
//! Five rules are ours. Time in which this end could not have looked at a packet does not count as silence of the other.
//! A session that flaps is held down for growing times ([`Damping`]). And a state that is left or entered without
//! having been [`State::Up`] is told to the other end at once only once a second, so that nobody makes us send faster
//! than a session that is not up may. A session that is Down is switched off by one packet, and not told so for a
//! detection time (§6.8.16): nobody takes it for a failure. And whoever has switched off is spoken to by the active role as
//! if it had never been heard (Your Discriminator 0, against §6.8.7), so that it answers though it has forgotten the session.

use std::{
    num::{NonZeroU8, NonZeroU32},
    time::{Duration, Instant},
};

use ferrogate_wire::bfd::{DecodeError, Diagnostic, Packet, Sequence, State};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::model::bfd_profile::BfdProfile;

pub mod sessions;
#[cfg(test)]
mod tests;

pub use sessions::Sessions;

/// While a session is not up it sends no faster than this (RFC 5880 §6.8.3).
pub const SLOW_INTERVAL: Duration = Duration::from_secs(1);

/// How much of an interval jitter leaves at least, in thousandths (RFC 5880 §6.8.7).
const LEAST_JITTER: u32 = 750;

const PER_MILLE: u32 = 1000;

/// A desired or required interval: 10 ms to 60 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(Duration);

impl Interval {
    /// The shortest.
    pub const MIN: Self = Self(Duration::from_millis(10));
    /// The longest.
    pub const MAX: Self = Self(Duration::from_secs(60));

    /// The nearest to a duration.
    pub fn nearest(duration: Duration) -> Self {
        Self(duration.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// As a duration.
    pub fn get(self) -> Duration {
        self.0
    }
}

/// Who speaks first (RFC 5880 §6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// This end does, whether it hears the other or not.
    Active,
    /// This end waits for the other.
    Passive,
}

/// How flapping is damped. A session is held down after each loss but the first, and the first again once it has been
/// up for long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damping {
    /// How long after the second loss; twice that after the third, and so on.
    pub initial: Duration,
    /// How long at most.
    pub maximum: Duration,
    /// Up for this long, earlier losses are forgotten.
    pub forgive_after: Duration,
}

impl Default for Damping {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            maximum: Duration::from_secs(60),
            forgive_after: Duration::from_secs(60),
        }
    }
}

/// What a session is told, and may be told anew while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `bfd.DesiredMinTxInterval`, once the session is up.
    pub desired_min_tx_interval: Interval,
    /// `bfd.RequiredMinRxInterval`.
    pub required_min_rx_interval: Interval,
    /// `bfd.DetectMult`: how many of our packets may be missing.
    pub detect_mult: NonZeroU8,
    /// Who speaks first.
    pub role: Role,
    /// What becomes of a session that flaps; `None` lets it.
    pub damping: Option<Damping>,
}

impl Settings {
    /// 50 ms × 3, which a busy machine keeps.
    pub const DEFAULT: Self = Self::every(Duration::from_millis(50));
    /// 10 ms × 3, which wants real-time priority.
    pub const FAST: Self = Self::every(Duration::from_millis(10));

    const fn every(interval: Duration) -> Self {
        Self {
            desired_min_tx_interval: Interval(interval),
            required_min_rx_interval: Interval(interval),
            detect_mult: NonZeroU8::new(3).expect("three is not zero"),
            role: Role::Active,
            damping: Some(Damping {
                initial: Duration::from_secs(1),
                maximum: Duration::from_secs(60),
                forgive_after: Duration::from_secs(60),
            }),
        }
    }

    /// As a BFDProfile has it.
    pub fn of(profile: &BfdProfile) -> Self {
        Self {
            desired_min_tx_interval: Interval::nearest(profile.transmit_interval),
            required_min_rx_interval: Interval::nearest(profile.receive_interval),
            detect_mult: profile.detect_multiplier,
            role: if profile.passive { Role::Passive } else { Role::Active },
            ..Self::DEFAULT
        }
    }

    /// The same, waiting for the other end to speak first.
    pub fn passive(self) -> Self {
        Self { role: Role::Passive, ..self }
    }
}

/// What a session takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A packet for it arrived, from the right distance.
    Received(Packet),
    /// Take up work again after [`Event::Disable`].
    Enable,
    /// Go to AdminDown, and tell the other end.
    Disable,
    /// Be like this from now on, without a flap.
    Configure(Settings),
    /// The deadline has come.
    Tick,
    /// Other sessions send. A packet that jitter could bring forward to now goes with theirs.
    Join,
}

/// What a session wants done, in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a packet to the other end.
    Send(Packet),
    /// The session is in another state.
    Changed(Change),
    /// It has flapped, and stays down until then.
    Held {
        /// Until when.
        until: Instant,
    },
    /// The packet was not taken.
    Discarded(Discard),
    /// The other end knows of [`Event::Disable`], or has had time enough to. Nothing is sent any more.
    Finished,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// `bfd.SessionState` before.
    pub from: State,
    /// And after.
    pub to: State,
    /// `bfd.LocalDiag`: why.
    pub diagnostic: Diagnostic,
    /// `bfd.RemoteSessionState`: what the other end said last; Down if it said nothing.
    pub remote_state: State,
}

impl Change {
    /// Whether the way to the other end has failed. It has not where one of the ends was switched off by intention
    /// (RFC 5882 §4.1).
    pub fn is_failure(&self) -> bool {
        self.failure().is_some()
    }

    /// Why it has failed, if it has.
    pub fn failure(&self) -> Option<Diagnostic> {
        let is_so = self.from == State::Up && self.to == State::Down && self.remote_state != State::AdminDown;
        is_so.then_some(self.diagnostic)
    }
}

/// Why a packet is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Discard {
    /// It crossed a router where none may be, or more than are allowed.
    Ttl,
    /// [`DecodeError::Truncated`].
    Truncated,
    /// [`DecodeError::Version`].
    Version,
    /// [`DecodeError::Length`].
    Length,
    /// [`DecodeError::Overrun`].
    Overrun,
    /// [`DecodeError::DetectMult`].
    DetectMult,
    /// [`DecodeError::Multipoint`].
    Multipoint,
    /// [`DecodeError::PollAndFinal`].
    PollAndFinal,
    /// [`DecodeError::MyDiscriminator`].
    MyDiscriminator,
    /// [`DecodeError::YourDiscriminator`].
    YourDiscriminator,
    /// [`DecodeError::Authenticated`].
    Authenticated,
    /// It names a session that is not there.
    UnknownDiscriminator,
    /// It names a session that is on another interface, or over another number of hops.
    WrongInterface,
    /// It names no session, and comes from where none is.
    NoSession,
    /// It comes from a neighbour that may open a session, and there are as many as can be.
    TooManySessions,
    /// The session is switched off.
    AdminDown,
}

impl Discard {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Ttl,
        Self::Truncated,
        Self::Version,
        Self::Length,
        Self::Overrun,
        Self::DetectMult,
        Self::Multipoint,
        Self::PollAndFinal,
        Self::MyDiscriminator,
        Self::YourDiscriminator,
        Self::Authenticated,
        Self::UnknownDiscriminator,
        Self::WrongInterface,
        Self::NoSession,
        Self::TooManySessions,
        Self::AdminDown,
    ];
}

impl From<DecodeError> for Discard {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Truncated(_) => Self::Truncated,
            DecodeError::Version(_) => Self::Version,
            DecodeError::Length { .. } => Self::Length,
            DecodeError::Overrun { .. } => Self::Overrun,
            DecodeError::DetectMult => Self::DetectMult,
            DecodeError::Multipoint => Self::Multipoint,
            DecodeError::PollAndFinal => Self::PollAndFinal,
            DecodeError::MyDiscriminator => Self::MyDiscriminator,
            DecodeError::YourDiscriminator(_) => Self::YourDiscriminator,
            DecodeError::Authenticated => Self::Authenticated,
        }
    }
}

/// How a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// `bfd.LocalDiscr`.
    pub local_discriminator: NonZeroU32,
    /// `bfd.SessionState`.
    pub state: State,
    /// `bfd.LocalDiag`.
    pub diagnostic: Diagnostic,
    /// `bfd.RemoteSessionState`; Down if the other end said nothing, or nothing for the detection time.
    pub remote_state: State,
    /// Why the other end last changed its state, as it says.
    pub remote_diagnostic: Diagnostic,
    /// The interval between our packets, less jitter.
    pub transmit_interval: Duration,
    /// After how much silence the other end counts as lost; `None` while it is not heard.
    pub detection_time: Option<Duration>,
    /// How often the session was lost.
    pub losses: u32,
    /// The last loss.
    pub last_loss: Option<Change>,
    /// It has flapped, and stays down until then.
    pub held_until: Option<Instant>,
}

/// One BFD session.
///
/// Whoever drives it calls [`step`](Self::step) with every packet by when it arrived, and with [`Event::Tick`] when
/// [`deadline`](Self::deadline) has come and every packet that had arrived before is handed over, and carries out the
/// actions in their order.
///
/// What the other end says moves it (RFC 5880 §6.2; AdminDown is left by [`Event::Enable`] only):
///
/// ```text
///                    Init, unless held
///        ┌──────────────────────────────────────┐
///        │    Down             Init, Up         ▼
///  ┌──► Down ────────► Init ────────────────► Up ───┐
///  │     ▲              │                       │   │
///  │     └──────────────┘                       │   │
///  │    AdminDown, silence         AdminDown,   │   │ Disable, from
///  │                               Down, silence│   │ every state
///  └────────────────────────────────────────────┘   ▼
///                                             AdminDown
/// ```
#[derive(Debug)]
pub struct Session {
    local_discriminator: NonZeroU32,
    settings: Settings,
    dice: SmallRng,
    state: State,
    diagnostic: Diagnostic,
    remote: Option<Remote>,
    /// Our desired interval as it is in use: a longer one waits until a Poll is answered.
    tx_interval: Duration,
    /// Our required interval as it is in use: a shorter one waits until a Poll is answered.
    rx_interval: Duration,
    poll: Option<Poll>,
    sent_at: Option<Instant>,
    send_at: Option<Instant>,
    /// The interval that `send_at` was reckoned by.
    paced_by: Duration,
    /// When the other end was last told at once of a change that had nothing to do with being up.
    hurried_at: Option<Instant>,
    record: Record,
    leaving: Option<Leaving>,
    woke_at: Instant,
}

/// What the other end last said.
#[derive(Clone, Copy, Debug)]
struct Remote {
    discriminator: NonZeroU32,
    state: State,
    diagnostic: Diagnostic,
    demand: bool,
    detect_mult: NonZeroU8,
    desired_min_tx_interval: Duration,
    required_min_rx_interval: Duration,
    heard_at: Instant,
}

/// A Poll sequence (RFC 5880 §6.5).
#[derive(Clone, Copy, Debug, Default)]
struct Poll {
    /// A packet with P has left, so that F may be the answer to it.
    is_asked: bool,
    /// Settings were changed again since, so that the answer may be to the older ones.
    is_outdated: bool,
}

/// Times of being up and of losing that.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    up_since: Option<Instant>,
    losses: u32,
    last_loss: Option<Change>,
    /// Losses that are not forgiven yet.
    streak: u32,
    held_until: Option<Instant>,
}

/// After [`Event::Disable`].
#[derive(Clone, Copy, Debug)]
struct Leaving {
    /// The other end's detection time has to pass at least (RFC 5880 §6.8.16).
    earliest: Instant,
    /// By then three packets or however many it may miss were sent.
    latest: Instant,
    /// It says that it is down itself.
    is_acknowledged: bool,
    /// A packet has said so, if it wants any.
    is_told: bool,
}

impl Session {
    /// A session that is Down and due at once. The discriminator is unique among the sessions of this system and not
    /// easily guessed; `seed` makes its jitter differ from that of the others.
    pub fn new(now: Instant, local_discriminator: NonZeroU32, settings: Settings, seed: u64) -> Self {
        let mut session = Self {
            local_discriminator,
            settings,
            dice: SmallRng::seed_from_u64(seed),
            state: State::Down,
            diagnostic: Diagnostic::None,
            remote: None,
            tx_interval: Duration::ZERO,
            rx_interval: settings.required_min_rx_interval.get(),
            poll: None,
            sent_at: None,
            send_at: None,
            paced_by: Duration::ZERO,
            hurried_at: None,
            record: Record::default(),
            leaving: None,
            woke_at: now,
        };
        session.tx_interval = session.announced_tx_interval();
        session.send_at = session.may_transmit().then_some(now);
        session
    }

    /// Takes in one event at `now` and returns what must be done about it, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        self.wake(now);
        let mut actions = Vec::new();
        let before = self.packet(Sequence::None);
        let was = self.state;
        match event {
            Event::Received(packet) => self.receive(now, packet, &mut actions),
            Event::Enable => self.enable(now, &mut actions),
            Event::Disable => self.disable(now, &mut actions),
            Event::Configure(settings) => self.configure(settings),
            Event::Tick | Event::Join => {}
        }
        if !matches!(event, Event::Received(_)) {
            self.expire(now, &mut actions);
        }
        let is_news = match event {
            // What was learned of the other end is no news to it.
            Event::Received(_) => self.state != was,
            _ => self.packet(Sequence::None) != before,
        };
        let is_urgent = is_news && self.may_hurry(now, was);
        let joins = event == Event::Join && self.may_join(now);
        self.transmit(now, is_urgent || joins, &mut actions);
        self.finish(now, &mut actions);
        actions
    }

    /// When `step` wants an [`Event::Tick`] next. A tick that comes early or twice changes nothing.
    pub fn deadline(&self) -> Option<Instant> {
        let leaves_at = self.leaving.filter(|leaving| leaving.is_told).map(|leaving| leaving.until());
        [self.send_at, self.expires_at(), leaves_at].into_iter().flatten().min()
    }

    /// `bfd.SessionState`.
    pub fn state(&self) -> State {
        self.state
    }

    /// Until when a packet may lie unread, if both ends are up and know of each other's intervals: one is to be left that may
    /// still come in time.
    pub fn unread_until(&self) -> Option<Instant> {
        let remote = self.remote.filter(|remote| remote.state == State::Up && self.poll.is_none())?;
        let expires_at = remote.heard_at + self.detection_time(&remote);
        let until = expires_at.checked_sub(remote.interval(self.rx_interval))?;
        (self.state == State::Up).then_some(until)
    }

    /// Whether the other end is heard, and has not switched the session off.
    pub fn has_remote(&self) -> bool {
        self.remote.is_some_and(|remote| remote.state != State::AdminDown)
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        Status {
            local_discriminator: self.local_discriminator,
            state: self.state,
            diagnostic: self.diagnostic,
            remote_state: self.remote_state(),
            remote_diagnostic: self.remote.map_or(Diagnostic::None, |remote| remote.diagnostic),
            transmit_interval: self.transmit_interval(),
            detection_time: self.remote.map(|remote| self.detection_time(&remote)),
            losses: self.record.losses,
            last_loss: self.record.last_loss,
            held_until: self.record.held_until,
        }
    }

    /// Must come before anything else in a step: how late the step is does not count against the other end. What had
    /// arrived meanwhile was handed over before, and a machine that stood still as a whole received nothing.
    fn wake(&mut self, now: Instant) {
        let due = self.deadline();
        let woke_at = std::mem::replace(&mut self.woke_at, now);
        let rx_interval = self.rx_interval;
        let (Some(due), Some(remote)) = (due, &mut self.remote) else { return };
        // A step was due, so nothing that came after the later of the two has been looked at in time.
        let late = now.saturating_duration_since(woke_at.max(due));
        if late > remote.interval(rx_interval) {
            remote.heard_at += late;
        }
    }

    /// RFC 5880 §6.8.6, from where the session is found.
    fn receive(&mut self, now: Instant, packet: Packet, actions: &mut Vec<Action>) {
        self.remote = Some(Remote {
            discriminator: packet.my_discriminator,
            state: packet.state,
            diagnostic: packet.diagnostic,
            demand: packet.demand,
            detect_mult: packet.detect_mult,
            desired_min_tx_interval: Duration::from_micros(packet.desired_min_tx_interval_us.into()),
            required_min_rx_interval: Duration::from_micros(packet.required_min_rx_interval_us.into()),
            heard_at: now,
        });
        if packet.sequence == Sequence::Final {
            self.hear_final();
        }
        let neighbor_signaled = Diagnostic::NeighborSignaledSessionDown;
        match (self.state, packet.state) {
            (State::AdminDown, said) => {
                if let Some(leaving) = &mut self.leaving {
                    leaving.is_acknowledged |= matches!(said, State::Down | State::AdminDown);
                }
                actions.push(Action::Discarded(Discard::AdminDown));
                return;
            }
            (State::Init, State::AdminDown) | (State::Up, State::AdminDown | State::Down) => {
                self.enter(now, State::Down, neighbor_signaled, actions);
            }
            (State::Down, State::Down | State::Init) if self.record.is_held(now) => {}
            (State::Down, State::Down) => self.enter(now, State::Init, self.diagnostic, actions),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.enter(now, State::Up, Diagnostic::None, actions);
            }
            (State::Down, State::AdminDown | State::Up)
            | (State::Init, State::Down)
            | (State::Up, State::Init | State::Up) => {}
        }
        if packet.sequence == Sequence::Poll {
            // Whatever else holds transmission back, this does not wait (RFC 5880 §6.8.7).
            actions.push(Action::Send(self.packet(Sequence::Final)));
        }
    }

    fn hear_final(&mut self) {
        match self.poll {
            Some(Poll { is_asked: true, is_outdated: false }) => {
                self.poll = None;
                self.tx_interval = self.announced_tx_interval();
                self.rx_interval = self.settings.required_min_rx_interval.get();
            }
            Some(Poll { is_asked: true, is_outdated: true }) => self.poll = Some(Poll::default()),
            // Nobody asked.
            Some(Poll { is_asked: false, .. }) | None => {}
        }
    }

    fn enable(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.state == State::AdminDown {
            self.leaving = None;
            self.enter(now, State::Down, Diagnostic::None, actions);
        }
    }

    fn disable(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.state == State::AdminDown {
            return;
        }
        let detect_mult = u32::from(self.settings.detect_mult.get());
        // It may be at the other end, which has been told of Init.
        let is_up = self.state != State::Down || self.remote_state() == State::Up;
        let earliest = now + self.transmit_interval() * detect_mult;
        self.record.streak = 0;
        self.record.held_until = None;
        self.enter(now, State::AdminDown, Diagnostic::AdministrativelyDown, actions);
        let latest = now + self.transmit_interval() * detect_mult;
        self.leaving = Some(match self.remote {
            Some(_) if is_up => Leaving { earliest, latest, is_acknowledged: false, is_told: false },
            // It is told, and nobody would take it for a failure.
            Some(_) => Leaving { earliest: now, latest: now, is_acknowledged: true, is_told: false },
            // Nobody is there who would miss us.
            None => Leaving { earliest: now, latest: now, is_acknowledged: true, is_told: true },
        });
    }

    fn configure(&mut self, settings: Settings) {
        let before = (self.announced_tx_interval(), self.settings.required_min_rx_interval);
        self.settings = settings;
        let after = (self.announced_tx_interval(), settings.required_min_rx_interval);
        if settings.damping.is_none() {
            self.record.held_until = None;
        }
        if self.state != State::Up {
            (self.tx_interval, self.rx_interval) = (after.0, after.1.get());
        } else if before != after {
            // What makes us send faster, or wait longer, is safe at once (RFC 5880 §6.8.3).
            self.tx_interval = self.tx_interval.min(after.0);
            self.rx_interval = self.rx_interval.max(after.1.get());
            match &mut self.poll {
                Some(poll) => poll.is_outdated = poll.is_asked,
                None => self.poll = Some(Poll::default()),
            }
        }
    }

    /// Forgets the other end after a detection time of silence (RFC 5880 §6.8.1, §6.8.4).
    fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.expires_at().is_none_or(|expires_at| now < expires_at) {
            return;
        }
        if matches!(self.state, State::Init | State::Up) {
            self.enter(now, State::Down, Diagnostic::ControlDetectionTimeExpired, actions);
        }
        self.remote = None;
    }

    fn enter(&mut self, now: Instant, state: State, diagnostic: Diagnostic, actions: &mut Vec<Action>) {
        let from = std::mem::replace(&mut self.state, state);
        self.diagnostic = diagnostic;
        // Up: faster is safe at once, and the other end is asked whether it knows. Not up: nothing is negotiated.
        self.tx_interval = self.announced_tx_interval();
        self.rx_interval = self.settings.required_min_rx_interval.get();
        self.poll = (state == State::Up).then(Poll::default);
        let change = Change { from, to: state, diagnostic, remote_state: self.remote_state() };
        actions.push(Action::Changed(change));
        if state == State::Up {
            self.record.up_since = Some(now);
            self.record.held_until = None;
        }
        if change.is_failure()
            && let Some(until) = self.record.lose(now, change, self.settings.damping)
        {
            actions.push(Action::Held { until });
        }
    }

    /// Whether a change of what we say may go out between two periodic packets.
    fn may_hurry(&mut self, now: Instant, was: State) -> bool {
        if was == State::Up || self.state == State::Up {
            return true;
        }
        let is_soon = self.hurried_at.is_some_and(|hurried_at| now < hurried_at + SLOW_INTERVAL);
        if !is_soon {
            self.hurried_at = Some(now);
        }
        !is_soon
    }

    /// Whether jitter could have had the next packet go now.
    fn may_join(&self, now: Instant) -> bool {
        let earliest = self.transmit_interval() * LEAST_JITTER / PER_MILLE;
        self.sent_at.is_some_and(|sent_at| sent_at + earliest <= now)
    }

    /// Sends if it is time or `is_early`, and reckons when it is next (RFC 5880 §6.8.7).
    fn transmit(&mut self, now: Instant, is_early: bool, actions: &mut Vec<Action>) {
        if !self.may_transmit() {
            self.send_at = None;
            // It wants to hear nothing.
            self.leaving.iter_mut().for_each(|leaving| leaving.is_told = true);
            return;
        }
        let interval = self.transmit_interval();
        let due = match (self.send_at, self.sent_at) {
            _ if is_early => now,
            (Some(send_at), _) if self.paced_by == interval => send_at,
            // The interval is another one now, or there was none. One that shrinks must not wait for its end: the other
            // end reckons with the new one already.
            (_, Some(sent_at)) => sent_at + self.jittered(interval),
            (_, None) => now,
        };
        self.paced_by = interval;
        if now < due {
            self.send_at = Some(due);
            return;
        }
        let sequence = match &mut self.poll {
            Some(poll) => {
                poll.is_asked = true;
                Sequence::Poll
            }
            None => Sequence::None,
        };
        actions.push(Action::Send(self.packet(sequence)));
        self.leaving.iter_mut().for_each(|leaving| leaving.is_told = true);
        self.sent_at = Some(now);
        self.send_at = Some(now + self.jittered(interval));
    }

    fn finish(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.leaving.is_some_and(|leaving| leaving.is_told && leaving.until() <= now) {
            self.leaving = None;
            self.send_at = None;
            actions.push(Action::Finished);
        }
    }

    fn may_transmit(&self) -> bool {
        let is_over = self.state == State::AdminDown && self.leaving.is_none();
        let Some(remote) = &self.remote else {
            return self.settings.role == Role::Active && !is_over;
        };
        let is_demanded = remote.demand && remote.state == State::Up && self.state == State::Up;
        !is_over && !remote.required_min_rx_interval.is_zero() && (!is_demanded || self.poll.is_some())
    }

    fn packet(&self, sequence: Sequence) -> Packet {
        // Whoever has switched off forgets this session soon, and is found by its addresses again.
        let is_switched_off = self.state == State::Down && self.remote_state() == State::AdminDown;
        let is_found_by_addresses = is_switched_off && self.settings.role == Role::Active;
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            sequence,
            control_plane_independent: false,
            demand: false,
            detect_mult: self.settings.detect_mult,
            my_discriminator: self.local_discriminator,
            your_discriminator: self.remote.filter(|_| !is_found_by_addresses).map(|remote| remote.discriminator),
            desired_min_tx_interval_us: in_us(self.announced_tx_interval()),
            required_min_rx_interval_us: in_us(self.settings.required_min_rx_interval.get()),
            required_min_echo_rx_interval_us: 0,
        }
    }

    /// `bfd.DesiredMinTxInterval`.
    fn announced_tx_interval(&self) -> Duration {
        let desired = self.settings.desired_min_tx_interval.get();
        if self.state == State::Up { desired } else { desired.max(SLOW_INTERVAL) }
    }

    fn transmit_interval(&self) -> Duration {
        self.remote.map_or(self.tx_interval, |remote| self.tx_interval.max(remote.required_min_rx_interval))
    }

    fn detection_time(&self, remote: &Remote) -> Duration {
        remote.interval(self.rx_interval) * u32::from(remote.detect_mult.get())
    }

    fn expires_at(&self) -> Option<Instant> {
        self.remote.map(|remote| remote.heard_at + self.detection_time(&remote))
    }

    fn remote_state(&self) -> State {
        self.remote.map_or(State::Down, |remote| remote.state)
    }

    /// 75 to 100 % of an interval, and no more than 90 % where a single late packet would be fatal.
    fn jittered(&mut self, interval: Duration) -> Duration {
        let most = if self.settings.detect_mult.get() == 1 { 900 } else { PER_MILLE };
        interval * self.dice.random_range(LEAST_JITTER * 100..=most * 100) / (PER_MILLE * 100)
    }
}

impl Remote {
    /// How often it sends at least, before jitter.
    fn interval(&self, our_rx_interval: Duration) -> Duration {
        our_rx_interval.max(self.desired_min_tx_interval)
    }
}

impl Record {
    fn is_held(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }

    /// Takes in a loss; says until when the session stays down, if it does.
    fn lose(&mut self, now: Instant, change: Change, damping: Option<Damping>) -> Option<Instant> {
        self.losses = self.losses.saturating_add(1);
        self.last_loss = Some(change);
        let damping = damping?;
        let up_for = self.up_since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.streak = if up_for >= damping.forgive_after { 1 } else { self.streak.saturating_add(1) };
        let doublings = self.streak.checked_sub(2)?;
        let hold = damping.initial.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX));
        self.held_until = Some(now + hold.min(damping.maximum));
        self.held_until
    }
}

impl Leaving {
    fn until(&self) -> Instant {
        if self.is_acknowledged { self.earliest } else { self.latest.max(self.earliest) }
    }
}

fn in_us(interval: Duration) -> u32 {
    interval.as_micros().try_into().unwrap_or(u32::MAX)
}
