//! Which speakers are alive.
//!
//! Every speaker sends heartbeats to every other; one that stays silent for the detection time is lost. Three rules
//! keep addresses from moving without need: a speaker that starts believes in everyone for one detection time; time
//! in which this node could not have heard anything (it had no carrier, or the process was held up) does not count
//! against the others; and a speaker that says it is leaving is believed at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_wire::gossip::{Heartbeat, Link, MAX_LINKS};
use imbl::OrdMap;

use crate::{
    model::{NodeName, node::Node},
    speaker::{
        Config,
        announce::{Carries, Links, Liveness, Standing, Standings},
        health::Refusals,
    },
};

/// How many strangers' addresses are remembered so that each is reported once.
const MAX_STRANGERS: usize = 64;

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
    interval: Duration,
    detection_time: Duration,
    incarnation: u64,
    sequence: u64,
    members: BTreeMap<NodeName, Member>,
    by_address: BTreeMap<IpAddr, NodeName>,
    has_started: bool,
    /// This node has no carrier where heartbeats come in.
    is_deaf: bool,
    woke_at: Option<Instant>,
    sent_at: Option<Instant>,
    send_at: Option<Instant>,
    strangers: BTreeSet<IpAddr>,
}

#[derive(Debug)]
struct Member {
    addresses: Vec<IpAddr>,
    state: State,
    /// The last heartbeat that was taken, if any.
    last: Option<Heartbeat>,
    /// What it said about its links in that heartbeat.
    links: Option<Links>,
    /// How often this speaker has left addresses to it.
    yielded: u32,
    /// It was heard once and is missed since, in this life of ours or, by the snapshot, in an earlier one.
    is_missed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not heard since our start, and not missed before then.
    Presumed { until: Instant },
    /// Heard; missed from then on.
    Alive { until: Instant },
    /// Said it is leaving; forgotten from then on.
    Leaving { until: Instant },
    /// Silent. Whoever left in an orderly way is not missed.
    Lost,
}

/// What a heartbeat has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It comes from nobody, or from somebody else than it says; told the first time only.
    Refused { is_new: bool },
    /// It is old or repeated.
    Ignored,
    /// It counts.
    Taken {
        /// Its sender was not there, or not known to be, before.
        came: bool,
        /// Its sender has begun to leave.
        left: bool,
        /// What takes part in elections is different now.
        changed: bool,
        /// The sender has left addresses to us, or may have announced some before it died.
        yielded: bool,
    },
}

impl Membership {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            node: config.node.clone(),
            interval: config.heartbeat_interval,
            detection_time: config.detection_time(),
            incarnation: config.incarnation,
            sequence: 0,
            members: BTreeMap::new(),
            by_address: BTreeMap::new(),
            has_started: false,
            is_deaf: false,
            woke_at: None,
            sent_at: None,
            send_at: None,
            strangers: BTreeSet::new(),
        }
    }

    /// Must come before anything else in a step: how late the step is does not count against the others.
    pub(super) fn wake(&mut self, now: Instant) {
        let woke_at = self.woke_at.replace(now);
        let Some(send_at) = self.send_at else { return };
        // A step was due by `send_at`, so nothing that came after the later of the two has been looked at in time.
        let late = now.saturating_duration_since(woke_at.map_or(send_at, |woke_at| woke_at.max(send_at)));
        if late <= self.interval {
            return;
        }
        for member in self.members.values_mut() {
            if let State::Presumed { until } | State::Alive { until } = &mut member.state {
                *until += late;
            }
        }
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
        let first = if self.has_started { State::Lost } else { State::Presumed { until: now + self.detection_time } };
        self.members.retain(|name, _| nodes.contains_key(name));
        for node in nodes.values().filter(|node| node.name != self.node) {
            let member = self.members.entry(node.name.clone()).or_insert_with(|| Member {
                addresses: Vec::new(),
                state: first,
                last: None,
                links: None,
                yielded: 0,
                is_missed: !self.has_started && unreachable.contains(&node.name),
            });
            member.addresses.clone_from(&node.internal_addresses);
        }
        self.has_started = true;
        self.strangers.clear();
        let has_peers = !self.by_address.is_empty();
        self.send_at = if has_peers { self.send_at.or(Some(now)) } else { None };
    }

    /// Whether this node could hear anything at the moment.
    pub(super) fn deaf(&mut self, now: Instant, is_deaf: bool) {
        if self.is_deaf && !is_deaf {
            for member in self.members.values_mut() {
                if let State::Presumed { until } | State::Alive { until } = &mut member.state {
                    *until = now + self.detection_time;
                }
            }
        }
        self.is_deaf = is_deaf;
    }

    pub(super) fn heard(&mut self, now: Instant, from: IpAddr, heartbeat: Heartbeat) -> Heard {
        let sender = self.by_address.get(&from).filter(|name| name.as_str() == heartbeat.node);
        let Some(member) = sender.and_then(|name| self.members.get_mut(name)) else {
            let is_new = self.strangers.len() < MAX_STRANGERS && self.strangers.insert(from);
            return Heard::Refused { is_new };
        };
        if let Some(last) = &member.last {
            let is_newer = (heartbeat.incarnation, heartbeat.sequence) > (last.incarnation, last.sequence);
            // A node whose clock went back starts with a lower incarnation. It is believed once its former life is over.
            let is_reborn = heartbeat.incarnation < last.incarnation && member.state == State::Lost;
            if !is_newer && !is_reborn {
                return Heard::Ignored;
            }
        }
        let until = now + self.detection_time;
        let was = member.state;
        member.state = if heartbeat.leaving { State::Leaving { until } } else { State::Alive { until } };
        let is_same_life = member.last.as_ref().is_some_and(|last| last.incarnation == heartbeat.incarnation);
        let yielded = match &member.last {
            Some(last) if is_same_life => last.yielded != heartbeat.yielded,
            // Its former life may have died while it announced what is ours.
            Some(last) => !last.leaving || heartbeat.yielded != 0,
            None => heartbeat.yielded != 0,
        };
        let is_alive = !heartbeat.leaving;
        let came = is_alive && !(is_same_life && matches!(was, State::Alive { .. }));
        let left = !is_alive && !matches!(was, State::Leaving { .. });
        let same_words = member.last.as_ref().is_some_and(|last| {
            last.proxy_ready == heartbeat.proxy_ready
                && last.links == heartbeat.links
                && (&last.refused, last.refuses_all) == (&heartbeat.refused, heartbeat.refuses_all)
                && !came
                && !left
        });
        if !same_words {
            let link = |link: &Link| (link.name.as_str().into(), Carries { ipv4: link.ipv4, ipv6: link.ipv6 });
            member.links = Some(heartbeat.links.iter().map(link).collect());
        }
        member.is_missed = false;
        member.last = Some(heartbeat);
        Heard::Taken { came, left, changed: !same_words, yielded }
    }

    /// Everyone who has been silent for too long, once.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<NodeName> {
        let mut lost = Vec::new();
        for (name, member) in &mut self.members {
            match member.state {
                State::Alive { until } | State::Presumed { until } if until <= now && !self.is_deaf => {
                    member.is_missed |= member.last.is_some();
                    member.state = State::Lost;
                    lost.push(name.clone());
                }
                State::Leaving { until } if until <= now => member.state = State::Lost,
                _ => {}
            }
        }
        lost
    }

    /// Counts that an address was left to another.
    pub(super) fn yielded_to(&mut self, owner: &NodeName) {
        if let Some(member) = self.members.get_mut(owner) {
            member.yielded = member.yielded.wrapping_add(1);
        }
    }

    /// There is news that should not wait for the next interval.
    pub(super) fn hurry(&mut self, now: Instant) {
        let Some(send_at) = self.send_at else { return };
        // News that come thick and fast are told together.
        let earliest = self.sent_at.map_or(now, |sent_at| sent_at + self.interval / 10);
        self.send_at = Some(send_at.min(earliest.max(now)));
    }

    /// The heartbeats that are due, each with the addresses of its receiver.
    pub(super) fn heartbeats(&mut self, now: Instant, own: &Own) -> Vec<(Vec<IpAddr>, Heartbeat)> {
        if self.send_at.is_none_or(|send_at| send_at > now) {
            return Vec::new();
        }
        self.sent_at = Some(now);
        self.send_at = Some(now + self.interval);
        self.sequence += 1;
        let links = own.links.iter().take(MAX_LINKS).map(|(name, carries)| Link {
            name: name.to_string(),
            ipv4: carries.ipv4,
            ipv6: carries.ipv6,
        });
        let links: Vec<Link> = links.collect();
        let (refused, refuses_all) = match &own.refusals {
            Refusals::Some(ports) => (ports.iter().copied().collect(), false),
            Refusals::All => (Box::default(), true),
        };
        let receivers = self.members.values().filter(|member| !member.addresses.is_empty());
        let heartbeats = receivers.map(|member| {
            let heartbeat = Heartbeat {
                node: self.node.to_string(),
                incarnation: self.incarnation,
                sequence: self.sequence,
                yielded: member.yielded,
                proxy_ready: own.proxy_ready,
                leaving: own.leaving,
                links: links.clone(),
                refused: refused.clone(),
                refuses_all,
            };
            (member.addresses.clone(), heartbeat)
        });
        heartbeats.collect()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let expiries = self.members.values().filter_map(|member| match member.state {
            State::Presumed { until } | State::Alive { until } => (!self.is_deaf).then_some(until),
            State::Leaving { until } => Some(until),
            State::Lost => None,
        });
        expiries.chain(self.send_at).min()
    }

    /// Whether another speaker is there to take over.
    pub(super) fn has_company(&self) -> bool {
        self.members.values().any(|member| matches!(member.state, State::Alive { .. }))
    }

    /// What is known about every node, this one included.
    pub(super) fn standings(&self, own: &Own) -> Standings {
        let mut standings: Standings =
            self.members.iter().map(|(name, member)| (name.clone(), member.standing())).collect();
        let standing = Standing {
            liveness: if own.leaving { Liveness::Leaving } else { Liveness::Alive },
            proxy_ready: own.proxy_ready,
            refusals: own.refusals.clone(),
            links: Some(own.links.iter().take(MAX_LINKS).map(|(name, &carries)| (name.clone(), carries)).collect()),
        };
        standings.insert(self.node.clone(), standing);
        standings
    }

    /// Nodes that were heard once and are not now.
    pub(super) fn missed(&self) -> BTreeSet<NodeName> {
        self.members.iter().filter(|(_, member)| member.is_missed).map(|(name, _)| name.clone()).collect()
    }
}

impl Member {
    fn standing(&self) -> Standing {
        Standing {
            liveness: match self.state {
                State::Presumed { .. } | State::Alive { .. } => Liveness::Alive,
                State::Leaving { .. } => Liveness::Leaving,
                State::Lost => Liveness::Lost,
            },
            proxy_ready: self.last.as_ref().is_none_or(|last| last.proxy_ready),
            refusals: self.last.as_ref().map(Refusals::of).unwrap_or_default(),
            links: self.links.clone(),
        }
    }
}
