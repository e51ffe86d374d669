//! A router as far as its neighbours can tell: small enough to be believed, and without a line of the engine it judges.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ferrogate_wire::bgp::{
    self, Capabilities, Cease, Family, GracefulRestart, Message, Notification, Open, Prefix, Refresh, Update,
    frame::Cutter,
};

use super::Terms;

/// How long it waits before it tries to connect again.
const CONNECT_EVERY: Duration = Duration::from_millis(700);

/// What it wants done.
#[derive(Debug)]
pub(super) enum Deed {
    Send { link: usize, bytes: Vec<u8> },
    Close { link: usize },
    Connect { node: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    OpenSent,
    OpenConfirm,
    Established,
}

/// A connection.
#[derive(Debug)]
struct Session {
    node: usize,
    is_ours: bool,
    phase: Phase,
    cutter: Cutter,
    heard_at: Duration,
    speak_at: Duration,
    open: Option<Open>,
    /// What the node has said of each route in this session.
    told: BTreeMap<Prefix, Vec<u8>>,
    /// It was asked to say it again.
    is_asked: bool,
}

/// What it knows of one node.
#[derive(Debug, Default)]
pub(super) struct Side {
    /// The routes in use, each with its MULTI_EXIT_DISC.
    pub(super) table: BTreeMap<Prefix, u32>,
    /// Those kept from before the session was lost.
    stale: BTreeSet<Prefix>,
    stale_until: Option<Duration>,
    connect_at: Duration,
}

#[derive(Debug)]
pub(super) struct Router {
    terms: Terms,
    sessions: BTreeMap<usize, Session>,
    pub(super) sides: Vec<Side>,
    /// What a node did that it must not.
    pub(super) fault: Option<String>,
}

impl Router {
    pub(super) fn new(terms: Terms, nodes: usize) -> Self {
        let sides = (0..nodes).map(|_| Side::default()).collect();
        Self { terms, sessions: BTreeMap::new(), sides, fault: None }
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let hold = self.terms.hold();
        let sessions = self.sessions.values().map(|session| session.speak_at.min(session.heard_at + hold));
        let sides = self.sides.iter().enumerate().flat_map(|(node, side)| {
            let connect = (self.terms.router_connects && !self.has_session(node)).then_some(side.connect_at);
            [side.stale_until, connect].into_iter().flatten()
        });
        sessions.chain(sides).min()
    }

    fn has_session(&self, node: usize) -> bool {
        self.sessions.values().any(|session| session.node == node)
    }

    /// Whether a session with this node is established.
    pub(super) fn is_established(&self, node: usize) -> bool {
        self.sessions.values().any(|session| session.node == node && session.phase == Phase::Established)
    }

    /// A connection stands, whoever has made it.
    pub(super) fn stands(&mut self, now: Duration, link: usize, node: usize, is_ours: bool) -> Vec<Deed> {
        let session = Session {
            node,
            is_ours,
            phase: Phase::OpenSent,
            cutter: Cutter::default(),
            heard_at: now,
            speak_at: now + self.terms.hold(),
            open: None,
            told: BTreeMap::new(),
            is_asked: false,
        };
        self.sessions.insert(link, session);
        let graceful_restart = self.terms.router_restart.map(|notification| GracefulRestart {
            restarting: false,
            notification,
            restart_time_seconds: self.terms.restart_seconds,
            forwarding: [(Family::Ipv4Unicast, true)].into(),
        });
        let open = Open {
            asn: self.terms.router_asn,
            hold_time: self.terms.hold_time,
            identifier: self.terms.router_identifier,
            capabilities: Capabilities {
                families: Some([Family::Ipv4Unicast].into()),
                route_refresh: true,
                four_octet_asn: true,
                graceful_restart,
                ..Capabilities::default()
            },
        };
        vec![Deed::Send { link, bytes: open.encode() }]
    }

    pub(super) fn takes(&mut self, now: Duration, link: usize, bytes: &[u8]) -> Vec<Deed> {
        let mut deeds = Vec::new();
        let mut rest = bytes;
        // The cutter goes along, for the session may end meanwhile.
        let Some(session) = self.sessions.get_mut(&link) else { return deeds };
        let mut cutter = std::mem::take(&mut session.cutter);
        while self.sessions.contains_key(&link) {
            match cutter.feed(&mut rest) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    let body = frame.body.to_vec();
                    match Message::decode(frame) {
                        Ok(message) => self.message(now, link, message, &body, &mut deeds),
                        Err(error) => self.fault = Some(format!("a node sent what cannot be read: {error}")),
                    }
                }
                Err(error) => {
                    self.fault = Some(format!("a node sent what cannot be read: {error}"));
                    break;
                }
            }
        }
        if let Some(session) = self.sessions.get_mut(&link) {
            session.cutter = cutter;
        }
        deeds
    }

    fn message(&mut self, now: Duration, link: usize, message: Message, body: &[u8], deeds: &mut Vec<Deed>) {
        let Some(session) = self.sessions.get_mut(&link) else { return };
        session.heard_at = now;
        match (session.phase, message) {
            (_, Message::Notification(notification)) => {
                // Without N any NOTIFICATION ends it; with N only a hard reset (RFC 8538 §4).
                let keeps = self.restarts(link).is_some_and(|both| both.notification)
                    && notification.hard_reset_reason().is_none()
                    && self.terms.router_restart == Some(true);
                self.leave(now, link, keeps);
                deeds.push(Deed::Close { link });
            }
            (Phase::OpenSent, Message::Open(open)) => {
                session.phase = Phase::OpenConfirm;
                session.open = Some(open);
                session.speak_at = now + self.terms.hold() / 3;
                deeds.push(Deed::Send { link, bytes: bgp::keepalive() });
                self.collide(now, link, deeds);
            }
            (Phase::OpenConfirm, Message::Keepalive) => {
                session.phase = Phase::Established;
                let node = session.node;
                let is_kept = self
                    .restarts(link)
                    .is_some_and(|restart| restart.forwarding.get(&Family::Ipv4Unicast) == Some(&true));
                let Some(side) = self.sides.get_mut(node) else { return };
                side.stale_until = None;
                if !is_kept {
                    side.drop_stale();
                }
            }
            (Phase::Established, Message::Update(update)) => self.update(link, &update, body),
            (Phase::Established, Message::Keepalive) => {}
            (phase, message) => self.fault = Some(format!("a node sent {message:?} in {phase:?}")),
        }
    }

    /// The node's graceful restart capability, where this router has it too.
    fn restarts(&self, link: usize) -> Option<&GracefulRestart> {
        let open = self.sessions.get(&link)?.open.as_ref()?;
        open.capabilities.graceful_restart.as_ref().filter(|_| self.terms.router_restart.is_some())
    }

    /// Of two connections one stays (RFC 4271 §6.8, RFC 4724 §4.2). What waits for an OPEN does not count.
    fn collide(&mut self, now: Duration, link: usize, deeds: &mut Vec<Deed>) {
        let Some(session) = self.sessions.get(&link) else { return };
        let Some(open) = &session.open else { return };
        let (node, is_ours) = (session.node, session.is_ours);
        let ours_stays = self.terms.router_identifier.get() > open.identifier.get();
        let counts = |(other, session): (&usize, &Session)| {
            (*other != link && session.node == node && session.phase != Phase::OpenSent).then_some(*other)
        };
        for other in self.sessions.iter().filter_map(counts).collect::<Vec<_>>() {
            let is_established = self.sessions.get(&other).is_some_and(|other| other.phase == Phase::Established);
            if is_established && !is_ours && self.restarts(other).is_some() {
                self.leave(now, other, true);
                deeds.push(Deed::Close { link: other });
                continue;
            }
            let loser = if is_established || is_ours != ours_stays { link } else { other };
            let bytes = Notification::cease(Cease::ConnectionCollision).encode();
            deeds.extend([Deed::Send { link: loser, bytes }, Deed::Close { link: loser }]);
            self.leave(now, loser, false);
            if loser == link {
                return;
            }
        }
    }

    fn update(&mut self, link: usize, update: &Update, body: &[u8]) {
        let Some(session) = self.sessions.get_mut(&link) else { return };
        let Some(side) = self.sides.get_mut(session.node) else { return };
        for prefix in &update.withdrawn {
            if session.told.remove(prefix).is_none() {
                self.fault = Some(format!("node {} withdraws {prefix}, which it has not announced", session.node));
            }
            side.table.remove(prefix);
            side.stale.remove(prefix);
        }
        let attributes = attributes(body);
        for prefix in &update.announced {
            let before = session.told.insert(*prefix, attributes.to_vec());
            if !session.is_asked && before.is_some_and(|before| before == attributes) {
                self.fault = Some(format!("node {} sends {prefix} twice", session.node));
            }
            side.table.insert(*prefix, multi_exit_disc(attributes).unwrap_or_default());
            side.stale.remove(prefix);
        }
        if update.end_of_rib.is_some() {
            side.drop_stale();
        }
    }

    /// Asks a node for all routes again, if a session with it is established.
    pub(super) fn ask(&mut self, node: usize) -> Vec<Deed> {
        let established = self.sessions.iter_mut();
        let mut established =
            established.filter(|(_, session)| session.node == node && session.phase == Phase::Established);
        let Some((link, session)) = established.next() else { return Vec::new() };
        session.is_asked = true;
        vec![Deed::Send { link: *link, bytes: bgp::route_refresh(Family::Ipv4Unicast, Refresh::Request) }]
    }

    /// A connection is over; the routes of an established one are kept for a while or go.
    fn leave(&mut self, now: Duration, link: usize, keeps: bool) {
        let restart_seconds = self.restarts(link).map(|restart| restart.restart_time_seconds);
        let Some(session) = self.sessions.remove(&link) else { return };
        let Some(side) = self.sides.get_mut(session.node) else { return };
        side.connect_at = now + CONNECT_EVERY;
        if session.phase != Phase::Established {
            return;
        }
        match restart_seconds.filter(|_| keeps) {
            Some(seconds) => {
                side.stale = side.table.keys().copied().collect();
                side.stale_until = Some(now + Duration::from_secs(seconds.into()));
            }
            None => *side = Side { connect_at: side.connect_at, ..Side::default() },
        }
    }

    /// A connection has ended without a word.
    pub(super) fn ended(&mut self, now: Duration, link: usize) {
        self.leave(now, link, true);
    }

    /// BFD says that the way to a node has failed: nothing is kept (RFC 5882 §4.3.2.2).
    pub(super) fn fails(&mut self, now: Duration, node: usize) -> Vec<Deed> {
        let mut deeds = Vec::new();
        let of_node = |(link, session): (&usize, &Session)| (session.node == node).then_some(*link);
        for link in self.sessions.iter().filter_map(of_node).collect::<Vec<_>>() {
            let bytes = Notification::hard_reset(&Notification::cease(Cease::BfdDown)).encode();
            deeds.extend([Deed::Send { link, bytes }, Deed::Close { link }]);
            self.leave(now, link, false);
        }
        if let Some(side) = self.sides.get_mut(node) {
            *side = Side { connect_at: now + CONNECT_EVERY, ..Side::default() };
        }
        deeds
    }

    pub(super) fn tick(&mut self, now: Duration) -> Vec<Deed> {
        let mut deeds = Vec::new();
        for link in self.sessions.keys().copied().collect::<Vec<_>>() {
            let Some(session) = self.sessions.get_mut(&link) else { continue };
            if session.heard_at + self.terms.hold() <= now {
                let bytes = Notification::hold_timer_expired().encode();
                deeds.extend([Deed::Send { link, bytes }, Deed::Close { link }]);
                let keeps = self.restarts(link).is_some_and(|both| both.notification)
                    && self.terms.router_restart == Some(true);
                self.leave(now, link, keeps);
            } else if session.speak_at <= now {
                session.speak_at = now + self.terms.hold() / 3;
                deeds.push(Deed::Send { link, bytes: bgp::keepalive() });
            }
        }
        for node in 0..self.sides.len() {
            let is_alone = !self.has_session(node);
            let Some(side) = self.sides.get_mut(node) else { continue };
            if side.stale_until.is_some_and(|until| until <= now) {
                side.stale_until = None;
                side.drop_stale();
            }
            if self.terms.router_connects && is_alone && side.connect_at <= now {
                side.connect_at = now + CONNECT_EVERY;
                deeds.push(Deed::Connect { node });
            }
        }
        deeds
    }
}

impl Side {
    fn drop_stale(&mut self) {
        for prefix in std::mem::take(&mut self.stale) {
            self.table.remove(&prefix);
        }
    }
}

/// The attributes of an UPDATE as they came.
fn attributes(body: &[u8]) -> &[u8] {
    let field = |at: &[u8]| match at {
        [high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    let rest = body.get(2 + field(body)..).unwrap_or_default();
    rest.get(2..2 + field(rest)).unwrap_or_default()
}

fn multi_exit_disc(attributes: &[u8]) -> Option<u32> {
    const MULTI_EXIT_DISC: u8 = 4;
    const EXTENDED_LENGTH: u8 = 0x10;
    let mut rest = attributes;
    loop {
        let (code, length, value) = match rest {
            [flags, code, high, low, value @ ..] if flags & EXTENDED_LENGTH != 0 => {
                (*code, usize::from(u16::from_be_bytes([*high, *low])), value)
            }
            [_, code, length, value @ ..] => (*code, usize::from(*length), value),
            _ => return None,
        };
        if code == MULTI_EXIT_DISC {
            return value.first_chunk().map(|value| u32::from_be_bytes(*value));
        }
        rest = value.get(length..)?;
    }
}
