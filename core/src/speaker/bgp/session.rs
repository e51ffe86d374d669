//! One connection to a peer, from its first byte to its last (RFC 4271 §8.2, states OpenSent, OpenConfirm and
//! Established).
//!
//! ```text
//!               OPEN                KEEPALIVE
//!   OpenSent ──────────► OpenConfirm ──────────► Established
//!      │                      │                      │  ▲ │ KEEPALIVE, UPDATE,
//!      │   NOTIFICATION, what does not fit, silence  │  └─┘ ROUTE-REFRESH
//!      └──────────────────────┴──────────────────────┴────► ended
//! ```

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ferrogate_wire::bgp::{
    self, Asn, BgpIdentifier, Capabilities, Dialect, ExtendedNextHop, Family, HoldTime, Message, Notification, Open,
    OutOfTurn, Refresh, Role, Update, frame,
};
use rand::{Rng, rngs::SmallRng};

use super::{Closing, Loss, Neighbor, State};
use crate::model::peer::PeerAsn;

/// How long a connection may stand without the peer's OPEN. RFC 4271 §8.2.2 suggests minutes, for peers that were slow then.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// For how long nothing may get out where there is no hold time (RFC 9687).
const SEND_PATIENCE: Duration = Duration::from_secs(480);

/// The least time for which nothing may get out.
const LEAST_SEND_PATIENCE: Duration = Duration::from_secs(10);

/// What both sides can do and agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Negotiated {
    pub(super) remote_asn: Asn,
    pub(super) remote_identifier: BgpIdentifier,
    pub(super) hold_time: HoldTime,
    pub(super) families: BTreeSet<Family>,
    pub(super) dialect: Dialect,
    /// IPv4 routes may have next hops of IPv6 (RFC 8950).
    pub(super) ipv4_by_ipv6: bool,
    pub(super) enhanced_refresh: bool,
    /// The peer keeps our routes while we are away (RFC 4724).
    pub(super) graceful_restart: bool,
    /// A NOTIFICATION does not end that (RFC 8538).
    pub(super) notification_restarts: bool,
}

/// What a session takes in.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// A message, or what to say to one that cannot be read.
    Message(Result<Message, Notification>),
    /// All that was given out to be sent is on its way.
    Written,
    Tick,
}

/// What follows from it.
#[derive(Debug)]
pub(super) enum Output {
    Send(Vec<u8>),
    /// The peer is who it should be: OpenConfirm.
    Opened,
    Established,
    Update(Update),
    /// The peer wants this family again.
    Refresh(Family),
    /// It is over; what there was to tell has been sent.
    Ended(Closing),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    local_identifier: BgpIdentifier,
    local_asn: Asn,
    peer_asn: PeerAsn,
    role: Option<Role>,
    keepalive_time: Duration,
    ours: Open,
    state: State,
    negotiated: Option<Negotiated>,
    hold_at: Option<Instant>,
    keepalive_at: Option<Instant>,
    /// Since when something waits to be written.
    blocked_since: Option<Instant>,
}

impl Session {
    /// A connection that has just been made. Its first output is our OPEN.
    pub(super) fn new(now: Instant, neighbor: &Neighbor, is_restarted: bool) -> (Self, Vec<Output>) {
        let ours = Open {
            asn: neighbor.local_asn,
            hold_time: neighbor.hold_time,
            identifier: neighbor.identifier,
            capabilities: capabilities(neighbor, is_restarted),
        };
        let mut session = Self {
            local_identifier: neighbor.identifier,
            local_asn: neighbor.local_asn,
            peer_asn: neighbor.peer_asn,
            role: neighbor.role,
            keepalive_time: neighbor.keepalive_time,
            ours,
            state: State::OpenSent,
            negotiated: None,
            hold_at: Some(now + OPEN_PATIENCE),
            keepalive_at: None,
            blocked_since: None,
        };
        let mut outputs = Vec::new();
        let open = session.ours.encode();
        session.send(now, open, &mut outputs);
        (session, outputs)
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.as_ref()
    }

    /// Whether something that was given out is not on its way yet.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let send_hold = self.blocked_since.map(|since| since + self.send_patience());
        [self.hold_at, self.keepalive_at, send_hold].into_iter().flatten().min()
    }

    pub(super) fn step(&mut self, now: Instant, input: Input, dice: &mut SmallRng) -> Vec<Output> {
        let mut outputs = Vec::new();
        match input {
            Input::Written => self.blocked_since = None,
            Input::Message(Err(fault)) => self.fail(now, fault, &mut outputs),
            Input::Message(Ok(message)) => self.take(now, message, dice, &mut outputs),
            Input::Tick => self.tick(now, dice, &mut outputs),
        }
        outputs
    }

    /// Hands a message of whoever drives the session on, and notes that it is not written yet.
    pub(super) fn send(&mut self, now: Instant, message: Vec<u8>, outputs: &mut Vec<Output>) {
        self.blocked_since.get_or_insert(now);
        outputs.push(Output::Send(message));
    }

    fn take(&mut self, now: Instant, message: Message, dice: &mut SmallRng, outputs: &mut Vec<Output>) {
        match (self.state, message) {
            (_, Message::Notification(notification)) => outputs.push(Output::Ended(Closing::Received(notification))),
            (State::OpenSent, Message::Open(open)) => match self.negotiate(&open) {
                Ok(negotiated) => self.confirm(now, negotiated, dice, outputs),
                Err(notification) => self.fail(now, notification, outputs),
            },
            (State::OpenConfirm, Message::Keepalive) => {
                self.state = State::Established;
                self.heard(now);
                outputs.push(Output::Established);
            }
            (State::Established, Message::Keepalive) => self.heard(now),
            (State::Established, Message::Update(update)) => {
                self.heard(now);
                outputs.push(Output::Update(update));
            }
            (State::Established, Message::RouteRefresh { family, kind }) => {
                self.heard(now);
                let is_carried =
                    |family: &Family| self.negotiated.as_ref().is_some_and(|ours| ours.families.contains(family));
                if let (Some(family), Refresh::Request) = (family.filter(is_carried), kind) {
                    outputs.push(Output::Refresh(family));
                }
            }
            (state, _) => self.fail(now, Notification::out_of_turn(out_of_turn(state)), outputs),
        }
    }

    /// Judges the peer's OPEN (RFC 4271 §6.2) and works out what both sides can do.
    fn negotiate(&self, theirs: &Open) -> Result<Negotiated, Notification> {
        let is_expected = match self.peer_asn {
            PeerAsn::Fixed(asn) => theirs.asn == asn,
            PeerAsn::Internal => theirs.asn == self.local_asn,
            PeerAsn::External => theirs.asn != self.local_asn,
        };
        if !is_expected {
            return Err(Notification::bad_peer_as());
        }
        let is_internal = theirs.asn == self.local_asn;
        if is_internal && theirs.identifier == self.local_identifier {
            return Err(Notification::bad_identifier());
        }
        if let (Some(own), Some(other)) = (self.role.filter(|_| !is_internal), theirs.capabilities.role)
            && !own.fits(other)
        {
            return Err(Notification::role_mismatch());
        }
        let own = &self.ours.capabilities;
        let can = &theirs.capabilities;
        let only_ipv4 = BTreeSet::from([Family::Ipv4Unicast]);
        let families = own.families.as_ref().unwrap_or(&only_ipv4);
        let families = families.intersection(can.families.as_ref().unwrap_or(&only_ipv4)).copied().collect();
        let extended_message = own.extended_message && can.extended_message;
        let restarts = own.graceful_restart.as_ref().zip(can.graceful_restart.as_ref());
        Ok(Negotiated {
            remote_asn: theirs.asn,
            remote_identifier: theirs.identifier,
            hold_time: self.ours.hold_time.agreed(theirs.hold_time),
            families,
            dialect: Dialect {
                four_octet_asn: own.four_octet_asn && can.four_octet_asn,
                max_len: if extended_message { frame::MAX_EXTENDED_LEN } else { frame::MAX_LEN },
            },
            ipv4_by_ipv6: own.extended_next_hop.contains(&IPV4_BY_IPV6)
                && can.extended_next_hop.contains(&IPV4_BY_IPV6),
            enhanced_refresh: own.enhanced_route_refresh && can.enhanced_route_refresh,
            graceful_restart: restarts.is_some(),
            notification_restarts: restarts.is_some_and(|(own, can)| own.notification && can.notification),
        })
    }

    fn confirm(&mut self, now: Instant, negotiated: Negotiated, dice: &mut SmallRng, outputs: &mut Vec<Output>) {
        self.state = State::OpenConfirm;
        self.negotiated = Some(negotiated);
        self.heard(now);
        // In OpenConfirm somebody waits for us even where there is no hold time.
        if self.hold_at.is_none() {
            self.hold_at = Some(now + OPEN_PATIENCE);
        }
        self.send(now, bgp::keepalive(), outputs);
        self.pace(now, dice);
        outputs.push(Output::Opened);
    }

    /// The peer has said something.
    fn heard(&mut self, now: Instant) {
        self.hold_at = self.hold_time().map(|time| now + time);
    }

    /// The hold time in use; `None` for ever.
    fn hold_time(&self) -> Option<Duration> {
        let seconds = self.negotiated.as_ref()?.hold_time.seconds();
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    fn send_patience(&self) -> Duration {
        match (&self.negotiated, self.hold_time()) {
            (None, _) => LEAST_SEND_PATIENCE,
            (Some(_), Some(time)) => (2 * time).max(LEAST_SEND_PATIENCE),
            (Some(_), None) => SEND_PATIENCE,
        }
    }

    /// Reckons when the next KEEPALIVE is due: no later than a third of the hold time, 75 to 100 % of it (RFC 4271 §10).
    fn pace(&mut self, now: Instant, dice: &mut SmallRng) {
        self.keepalive_at = self.hold_time().map(|hold| {
            let third = (hold / 3).max(Duration::from_secs(1));
            let interval = if self.keepalive_time.is_zero() { third } else { third.min(self.keepalive_time) };
            now + interval.mul_f64(dice.random_range(0.75..=1.0))
        });
    }

    fn tick(&mut self, now: Instant, dice: &mut SmallRng, outputs: &mut Vec<Output>) {
        if self.blocked_since.is_some_and(|since| since + self.send_patience() <= now) {
            // A NOTIFICATION would not get out either (RFC 9687 §3.2).
            outputs.push(Output::Ended(Closing::Sent(Notification::send_hold_timer_expired())));
            return;
        }
        if self.hold_at.is_some_and(|at| at <= now) {
            let silent = match self.state {
                State::OpenSent => Closing::Lost(Loss::Silent),
                _ => Closing::Sent(Notification::hold_timer_expired()),
            };
            outputs.push(Output::Send(Notification::hold_timer_expired().encode()));
            outputs.push(Output::Ended(silent));
            return;
        }
        if self.keepalive_at.is_some_and(|at| at <= now) {
            // What still waits to be written will say as much.
            if self.blocked_since.is_none() {
                self.send(now, bgp::keepalive(), outputs);
            }
            self.pace(now, dice);
        }
    }

    fn fail(&mut self, now: Instant, notification: Notification, outputs: &mut Vec<Output>) {
        self.send(now, notification.encode(), outputs);
        outputs.push(Output::Ended(Closing::Sent(notification)));
    }
}

const IPV4_BY_IPV6: ExtendedNextHop = ExtendedNextHop { family: Family::Ipv4Unicast, next_hop: Family::Ipv6Unicast };

/// What we can do, towards this peer.
fn capabilities(neighbor: &Neighbor, is_restarted: bool) -> Capabilities {
    let graceful_restart = neighbor.graceful_restart.map(|restart| bgp::GracefulRestart {
        restarting: is_restarted,
        notification: true,
        restart_time_seconds: restart.restart_time_seconds,
        // Routes of every family that is listed are kept until we are back, whatever F says (RFC 4724 §4.2): where traffic
        // does not get through meanwhile none is.
        forwarding: neighbor
            .families
            .iter()
            .filter(|_| restart.forwarding_preserved)
            .map(|family| (*family, true))
            .collect(),
    });
    let both = neighbor.families.contains(&Family::Ipv4Unicast) && neighbor.speaks_ipv6();
    Capabilities {
        families: Some(neighbor.families.clone()),
        route_refresh: true,
        extended_next_hop: both.then_some(IPV4_BY_IPV6).into_iter().collect(),
        extended_message: true,
        graceful_restart,
        four_octet_asn: true,
        enhanced_route_refresh: true,
        role: neighbor.role,
    }
}

/// How a message is refused that has no place in a state (RFC 6608).
fn out_of_turn(state: State) -> OutOfTurn {
    match state {
        State::OpenSent => OutOfTurn::OpenSent,
        State::OpenConfirm => OutOfTurn::OpenConfirm,
        State::Idle | State::Connect | State::Active | State::Established => OutOfTurn::Established,
    }
}
