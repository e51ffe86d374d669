//! The brain of a speaker: which addresses this node announces, and every frame and datagram it takes.
//!
//! [`Speaker`] remembers; [`announce`], [`elect`] and [`advertise`] decide. What is on the link is the business of
//! `layer2`, what routers are told that of `advertiser`, who is alive that of `membership`, who is watched by BFD that of
//! `watch`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_wire::{
    ethernet::Mac,
    gossip::{Datagram, Keys},
};
use imbl::ordmap::DiffItem;

use crate::{
    model::{InterfaceName, NodeName, ObjectRef, ServiceKey},
    snapshot::Snapshot,
    speaker::{
        advertise::{Advertised, Peering},
        advertiser::Advertiser,
        announce::{Announcement, Ground, Lead, Liveness, Sharing, Silence, Standings},
        detours::Detours,
        health::{HealthChecks, News},
        host::Host,
        layer2::{Layer2, Seen},
        membership::{Heard, Membership, Own, Taken},
        strays::Strays,
        watch::{Saying, Watched, Watches},
    },
    write::{self, L2Conflict, L2Status, Severity, SpeakerLease, Write},
};

pub mod advertise;
mod advertiser;
pub mod announce;
pub mod bfd;
pub mod bgp;
mod config;
mod detours;
pub mod elect;
pub mod health;
mod host;
mod layer2;
mod membership;
mod strays;
#[cfg(test)]
mod tests;
mod traffic;
mod watch;

pub use config::{
    Announcements, Config, DETECT_MULTIPLIER, DataPath, EXCLUDED_INTERFACES, GOSSIP_INTERVAL, HAND_OVER_GRACE,
    LEASE_DURATION, MAX_LEASE_DURATION, MIN_LEASE_DURATION, SHUTDOWN_GRACE,
};
pub use layer2::DEFEND_INTERVAL;
pub use membership::leases::is_leaving;
pub use traffic::{
    Action, Answer, Arrived, Disbelieved, Event, Frame, Interface, NextHop, NotPassedOn, Report, StrayRules, Verdict,
};
pub use watch::Watch;

/// How long an address that was left is remembered: longer than any client trusts what it has not confirmed.
const LEFT_MEMORY: Duration = Duration::from_secs(300);

/// How much longer than others a stopping speaker stays that has routers to tell: whoever keeps its routes for a restart must
/// have heard of a leave.
const PARTING_TIME: Duration = Duration::from_secs(3);

/// The speaker of one node.
///
/// Whoever drives it calls [`step`](Self::step) with every fact as it becomes known, and with [`Event::Tick`] when
/// [`deadline`](Self::deadline) has come, and carries out the actions in their order. Nothing is announced before the
/// first [`Event::Snapshot`] and the first [`Event::Interfaces`] are there. After [`Event::Shutdown`] the calls go on
/// until [`Action::Finished`].
///
/// An address goes through these states; the host holds it (with [`DataPath::Proxy`]) from the first `Hold` on:
///
/// ```text
///              elected                    another is elected           the grace is over,
///                                         or nobody is                 or no Service has it
///   foreign ──────────────► owned ────────────────────────► held ──────────────────────────► foreign
///              Hold, frames   ▲        (answers end when the  │              Release
///                             │         next owner is seen)   │
///                             └───────────────────────────────┘
///                                          elected
/// ```
#[derive(Debug)]
pub struct Speaker {
    config: Config,
    snapshot: Option<Arc<Snapshot>>,
    interfaces: Option<BTreeMap<InterfaceName, Interface>>,
    own: Own,
    membership: Membership,
    health: HealthChecks,
    /// The last [`Action::CheckHealth`].
    checking: Option<Action>,
    layer2: Layer2,
    sharing: Sharing,
    ground: Option<Ground>,
    outcomes: BTreeMap<ServiceKey, Outcome>,
    /// How many Services this node could announce, whether it does or another is ahead of it.
    candidacies: usize,
    owned: BTreeMap<IpAddr, BTreeSet<InterfaceName>>,
    host: Host,
    detours: Detours,
    strays: Strays,
    /// Addresses this node once owned and has left, with the owner that was told so, until it is owned again.
    left: BTreeMap<IpAddr, Left>,
    listening: BTreeSet<InterfaceName>,
    watches: Watches,
    advertiser: Advertiser,
    /// Whom the last `Write::Membership` named.
    missed: BTreeSet<NodeName>,
    phase: Phase,
    /// When the first event came.
    begun_at: Option<Instant>,
    /// See [`Speaker::deadline`].
    due: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Shutting down; over by then at the latest.
    Leaving {
        until: Instant,
    },
    Finished,
}

/// What the last review said about a Service.
#[derive(Debug)]
struct Outcome {
    lead: Option<Lead>,
    watched: Option<Arc<Watched>>,
    result: Result<Announcement, Silence>,
    /// Since when nobody announced it for its clients, where this node has it from one that failed.
    failed_at: Option<Instant>,
    /// The node that announced it before, where this one has just begun to.
    from: Option<NodeName>,
    /// Where it is announced, for the how manieth time it had changed its owner.
    transitions: u32,
    /// Where it is announced, who else claims its addresses.
    conflicts: Vec<L2Conflict>,
    /// Nobody can announce it for want of an interface, and this node is the one to say so.
    complains: bool,
}

impl Outcome {
    fn owner(&self) -> Option<&NodeName> {
        match &self.result {
            Err(Silence::NotElected { owner }) => Some(owner),
            _ => self.lead.as_ref().map(|lead| &lead.rank.node),
        }
    }
}

/// An address that was left. Clients may still send to this node, and only its owner can tell them otherwise.
#[derive(Debug)]
struct Left {
    told: Option<NodeName>,
    /// Later changes of owner are not told: every client has asked again by then.
    until: Instant,
}

/// What a step has to look at again.
#[derive(Debug, Default)]
struct Doubt {
    /// Nodes, pools, advertisements or standings may be different.
    ground: bool,
    /// This node's own interfaces are different.
    everything: bool,
    /// What BGP goes by may be different, whatever the Service.
    terms: bool,
    services: BTreeSet<ServiceKey>,
    /// Addresses that a Service had before.
    addresses: BTreeSet<IpAddr>,
}

impl Speaker {
    /// A speaker that knows nothing yet.
    pub fn new(config: Config) -> Self {
        Self {
            membership: Membership::new(&config),
            health: HealthChecks::new(
                config.node.clone(),
                config.health_checks && config.data_path == DataPath::KubeProxy,
            ),
            checking: None,
            layer2: Layer2::new(&config),
            host: Host::new(config.hand_over_grace),
            watches: Watches::new(config.bfd),
            advertiser: Advertiser::new(config.node.clone(), config.policy()),
            config,
            snapshot: None,
            interfaces: None,
            own: Own::default(),
            sharing: Sharing::default(),
            ground: None,
            outcomes: BTreeMap::new(),
            candidacies: 0,
            owned: BTreeMap::new(),
            detours: Detours::default(),
            strays: Strays::default(),
            left: BTreeMap::new(),
            listening: BTreeSet::new(),
            missed: BTreeSet::new(),
            phase: Phase::Running,
            begun_at: None,
            due: None,
        }
    }

    /// Takes in one event at `now` and returns what must be done about it, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase == Phase::Finished {
            return actions;
        }
        let mut doubt = Doubt::default();
        let mut is_news = true;
        self.begun_at.get_or_insert(now);
        let late = self.membership.wake(now);
        self.watches.delay(late);
        match event {
            Event::Snapshot(snapshot) => self.take_snapshot(now, snapshot, &mut doubt, &mut actions),
            Event::Interfaces(interfaces) => self.take_interfaces(now, interfaces, &mut doubt, &mut actions),
            Event::Heard(arrived) => {
                is_news = false;
                for arrived in arrived {
                    is_news |= self.take_datagram(now, arrived, &mut doubt, &mut actions);
                }
                // There may be something to say.
                let is_sooner = |next| self.due.is_none_or(|due| next < due);
                is_news |= self.membership.deadline().is_some_and(is_sooner);
            }
            Event::Watched { node, interface, verdict } => {
                if self.watches.see(now, &node, &interface, verdict) {
                    let from = self.watches.from(&node, &interface);
                    self.membership.verdict(&node, interface, from, verdict);
                }
            }
            Event::ProxyReady(ready) => {
                if self.own.proxy_ready != ready {
                    self.own.proxy_ready = ready;
                    self.membership.hurry(now);
                    doubt.ground = true;
                    doubt.terms = true;
                }
            }
            Event::Health { port, answer } => self.health.hear(now, port, answer),
            Event::Arp { interface, arp } => {
                is_news = self.layer2.arp(now, &interface, &arp, &mut actions);
                is_news |= self.take_sign_of_life(now, &interface, arp.sender.into(), arp.sender_mac);
            }
            Event::Ndp { interface, ndp } => {
                is_news = self.layer2.ndp(now, &interface, &ndp, &mut actions);
                let (address, mac) = ndp.sender();
                is_news |= self.take_sign_of_life(now, &interface, address.into(), mac);
            }
            Event::Session(status) => self.advertiser.session(&status, &mut actions),
            Event::SessionGone { peer, remote } => self.advertiser.session_gone(&peer, remote, &mut actions),
            Event::Parted => self.take_parting(now, &mut actions),
            Event::Shutdown => {
                if self.phase == Phase::Running {
                    self.advertiser.depart(self.snapshot.as_deref(), &mut actions);
                    doubt.terms = true;
                    self.phase = Phase::Leaving { until: now + self.config.shutdown_grace };
                    self.own.leaving = true;
                    self.membership.hurry(now);
                    doubt.ground = true;
                }
            }
            Event::Tick => is_news = false,
        }
        // Questions come by the thousand each second, and everybody says again and again that all is well: for their sake nothing
        // is looked at before it is due.
        if !is_news && self.due.is_none_or(|due| now < due) {
            return actions;
        }
        for node in self.membership.expire(now) {
            actions.push(Action::Report(Report::MemberLost { node }));
            doubt.ground = true;
        }
        if let Some(is_blind) = self.membership.blindness(now) {
            actions.push(Action::Report(if is_blind { Report::LeasesUnseen } else { Report::LeasesSeen }));
        }
        let taken = self.membership.tick(now);
        self.follow_words(now, &taken, &mut doubt);
        self.look_for_owners(now, &mut doubt, &mut actions);
        if self.membership.looks_elsewhere() {
            self.watches.doubt();
        }
        self.health.expire(now);
        if let Some(news) = self.health.news() {
            self.take_health(now, news, &mut doubt, &mut actions);
        }
        if doubt.ground {
            self.layer2.peers(self.membership.macs());
            self.follow_former_owners(now, &mut actions);
            self.tell_membership(&mut actions);
            self.watches.doubt();
        }
        if doubt.ground || doubt.terms {
            self.follow_others(&mut actions);
        }
        actions.extend(self.strays.news().map(Action::FollowStrays));
        // A proxy that is not ready has none that could go on, and its clients are better off elsewhere.
        let keeps_connections = self.phase == Phase::Running && self.own.proxy_ready && self.strays.are_offered();
        self.host.keep(now, keeps_connections);
        self.advertise(now, &doubt, &mut actions);
        self.review(now, doubt, &mut actions);
        let seen = self.layer2.tick(now, &mut actions);
        let doubt = self.take_seen(now, seen, &mut actions);
        self.review(now, doubt, &mut actions);
        self.watch(now, &mut actions);
        self.host.release_due(now, &mut actions);
        self.ask_former_owners(now, &mut actions);
        if let Some(detours) = self.detours.news() {
            // It must be in force before anybody sends here.
            actions.insert(0, Action::PassOn(detours));
        }
        if self.interfaces.is_some() {
            let datagrams = self.membership.datagrams(now, &self.own).into_iter();
            actions.extend(datagrams.filter_map(|(to, datagram)| self.says(to, datagram)));
        }
        self.finish_if_over(now, &mut actions);
        self.due = self.next_due();
        actions
    }

    /// When `step` wants a [`Event::Tick`] next. A tick that comes early or twice changes nothing.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// When something is due, as all parts stand now.
    fn next_due(&self) -> Option<Instant> {
        let end = match self.phase {
            Phase::Running => None,
            Phase::Leaving { until } if self.advertiser.is_speaking() => Some(until + PARTING_TIME),
            Phase::Leaving { until } => Some(until),
            Phase::Finished => return None,
        };
        // Without interfaces nothing can be said.
        let membership = self.interfaces.as_ref().and_then(|_| self.membership.deadline());
        let [health, layer2] = [self.health.deadline(), self.layer2.deadline()];
        let addresses = [self.host.deadline(), self.detours.deadline()];
        let others = [membership, self.watches.deadline(self.membership.answer_time()), health, layer2, end];
        addresses.into_iter().chain(others).flatten().min()
    }

    /// The addresses this node owns, and the interfaces it announces each on.
    pub fn owned(&self) -> &BTreeMap<IpAddr, BTreeSet<InterfaceName>> {
        &self.owned
    }

    /// What this node announces for each LoadBalancer Service, or why not.
    pub fn outcomes(&self) -> impl Iterator<Item = (&ServiceKey, Result<&Announcement, &Silence>)> {
        self.outcomes.iter().map(|(service, outcome)| (service, outcome.result.as_ref()))
    }

    /// What this node advertises by BGP for each LoadBalancer Service, or why not.
    pub fn advertised(&self) -> impl Iterator<Item = (&ServiceKey, Result<&Advertised, &Silence>)> {
        self.advertiser.table().outcomes().map(|(service, outcome)| (service, outcome.as_ref()))
    }

    /// The routers this node speaks BGP with, and why not with the others.
    pub fn peering(&self) -> &Peering {
        self.advertiser.peering()
    }

    /// What this speaker knows about every node, its own included.
    pub fn standings(&self) -> Standings {
        self.membership.standings(&self.own)
    }

    /// How many datagrams were opened and yet not believed.
    pub fn disbelieved(&self) -> Disbelieved {
        self.membership.disbelieved()
    }

    /// How many renewals of this speaker's own Lease have come back; none where speakers gossip.
    pub fn renewals(&self) -> u64 {
        self.membership.renewals()
    }

    /// The facts this speaker goes by.
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.snapshot.as_ref()
    }

    /// What carries a datagram to the others.
    fn says(&self, to: Vec<IpAddr>, datagram: Datagram) -> Option<Action> {
        let Some(duration) = self.config.lease_duration else { return Some(Action::Gossip { to, datagram }) };
        // Whoever may write Leases at the API server need not prove it to its readers. What has no bytes is outside of its
        // bounds, as the name of a node that cannot be.
        let says = datagram.seal(&Keys::default(), &Default::default()).ok()?;
        let lease = SpeakerLease { duration, says: says.into(), renewed_at: String::new() };
        Some(Action::Write(Write::Lease { node: self.config.node.clone(), lease }))
    }

    fn take_snapshot(&mut self, now: Instant, snapshot: Arc<Snapshot>, doubt: &mut Doubt, actions: &mut Vec<Action>) {
        let before = self.snapshot.replace(snapshot.clone()).unwrap_or_else(|| {
            self.missed.clone_from(&snapshot.unreachable);
            Arc::default()
        });
        for change in before.services.diff(&snapshot.services) {
            let (old, new) = match change {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
            };
            if let Some(old) = old {
                self.sharing.remove(old);
                doubt.services.insert(old.key.clone());
                doubt.addresses.extend(announce::addresses(old));
            }
            if let Some(new) = new {
                self.sharing.insert(new);
                doubt.services.insert(new.key.clone());
            }
            for either in [old, new].into_iter().flatten() {
                self.strays.note(either, &self.sharing);
            }
            if let Some(either) = new.or(old) {
                self.health.note(&either.key, new.map(AsRef::as_ref));
            }
        }
        let neighbours = doubt.addresses.iter().flat_map(|&address| self.sharing.of(address));
        doubt.services.extend(neighbours.cloned());
        if before.nodes != snapshot.nodes || self.ground.is_none() {
            self.membership.nodes(now, &snapshot.nodes, &snapshot.unreachable);
            self.health.note_node(snapshot.nodes.get(&self.config.node).map(AsRef::as_ref));
            self.note_deafness(now);
            doubt.ground = true;
        }
        for (node, taken) in self.membership.look(now, &snapshot.leases) {
            self.take_word(now, node, &taken, doubt, actions);
        }
        if snapshot.l2_advertisements.values().any(|advertisement| advertisement.is_sticky) {
            doubt.services.extend(before.announced_by.diff(&snapshot.announced_by).map(|change| match change {
                DiffItem::Add(service, _) | DiffItem::Remove(service, _) => service.clone(),
                DiffItem::Update { new: (service, _), .. } => service.clone(),
            }));
        }
        doubt.ground |= before.pools != snapshot.pools || before.l2_advertisements != snapshot.l2_advertisements;
        doubt.terms |= before.nodes != snapshot.nodes
            || before.pools != snapshot.pools
            || before.bgp_advertisements != snapshot.bgp_advertisements
            || before.bgp_peers != snapshot.bgp_peers
            || before.bfd_profiles != snapshot.bfd_profiles;
    }

    /// Routers have been told; what they drew here is on its way elsewhere.
    fn take_parting(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.advertiser.part(actions);
        let held: Vec<IpAddr> = self.host.addresses().collect();
        held.into_iter().for_each(|address| self.uphold(now, address, actions));
    }

    fn take_health(&mut self, now: Instant, news: News, doubt: &mut Doubt, actions: &mut Vec<Action>) {
        let News { refusals, asks } = news;
        if refusals != self.own.refusals {
            if let Some(ports) = refusals.difference(&self.own.refusals) {
                doubt.services.extend(ports.iter().flat_map(|port| self.health.services(*port)).cloned());
            }
            self.own.refusals = refusals;
            self.membership.hurry(now);
            doubt.ground = true;
            doubt.terms = true;
        }
        if self.checking.as_ref() != Some(&asks) {
            self.checking = Some(asks.clone());
            actions.push(asks);
        }
    }

    fn take_interfaces(
        &mut self,
        now: Instant,
        interfaces: BTreeMap<InterfaceName, Interface>,
        doubt: &mut Doubt,
        actions: &mut Vec<Action>,
    ) {
        let changed = self.layer2.interfaces(now, &interfaces, &self.config.excluded_interfaces, actions);
        if changed || self.interfaces.is_none() {
            self.own.links = self.layer2.links();
            if self.config.bfd.is_none() {
                // Nobody would answer there.
                for carries in self.own.links.values_mut() {
                    (carries.watch_ipv4, carries.watch_ipv6) = (None, None);
                }
            }
            self.membership.hurry(now);
            doubt.ground = true;
            doubt.everything = true;
        }
        self.interfaces = Some(interfaces);
        self.note_deafness(now);
    }

    /// Whether words could reach this node: not while every interface with one of its own addresses is down.
    fn note_deafness(&mut self, now: Instant) {
        let (Some(snapshot), Some(interfaces)) = (&self.snapshot, &self.interfaces) else { return };
        let Some(node) = snapshot.nodes.get(&self.config.node) else { return };
        let has_own_address = |interface: &&Interface| {
            interface.addresses.iter().any(|prefix| node.internal_addresses.contains(&prefix.ip()))
        };
        let mut ways = interfaces.values().filter(has_own_address).peekable();
        let is_deaf = ways.peek().is_some() && ways.all(|interface| !interface.up || !interface.carrier);
        self.membership.deaf(now, is_deaf);
    }

    /// Returns whether anything may follow from it.
    fn take_datagram(&mut self, now: Instant, arrived: Arrived, doubt: &mut Doubt, actions: &mut Vec<Action>) -> bool {
        let Arrived { at, from, datagram } = arrived;
        let (node, can_wait) = (datagram.origin.node.clone(), datagram.origin.can_wait());
        let mut taken = Taken::default();
        match self.membership.heard(now, at, from, *datagram) {
            Heard::Refused { is_new: true } => {
                actions.push(Action::Report(Report::GossipRefused { from, node }));
            }
            Heard::Refused { is_new: false } | Heard::Ignored => {}
            Heard::Taken(changes) => {
                self.take_word(now, node.into(), &changes, doubt, actions);
                taken = changes;
            }
        }
        !can_wait || taken != Taken::default()
    }

    fn take_word(&mut self, now: Instant, node: NodeName, taken: &Taken, doubt: &mut Doubt, actions: &mut Vec<Action>) {
        if taken.is_new_life {
            self.end_detours_by_reborn(&node, actions);
        }
        if taken.came {
            self.watches.await_anew(now, &node);
            actions.push(Action::Report(Report::MemberAlive { node: node.clone() }));
        }
        if taken.left {
            actions.push(Action::Report(Report::MemberLeaving { node }));
        }
        self.follow_words(now, taken, doubt);
    }

    fn follow_words(&mut self, now: Instant, taken: &Taken, doubt: &mut Doubt) {
        doubt.ground |= taken.changed;
        if !taken.yielded.is_empty() {
            self.layer2.remind(now);
            // They know better now, and may have left what was ceded to them.
            let is_theirs =
                |address: &IpAddr| self.layer2.ceded_to(*address).is_some_and(|to| taken.yielded.contains(to));
            let ceded: Vec<IpAddr> = self.layer2.ceded().filter(is_theirs).collect();
            for address in ceded {
                self.layer2.take_back(address);
                doubt.services.extend(self.sharing.of(address).cloned());
            }
        }
    }

    /// Follows what is seen on the link.
    fn take_seen(&mut self, now: Instant, seen: Vec<Seen>, actions: &mut Vec<Action>) -> Doubt {
        let mut doubt = Doubt::default();
        let mut grounds = BTreeMap::new();
        for seen in seen {
            match seen {
                Seen::Conflict { address, interface, mac } => {
                    doubt.services.extend(self.sharing.of(address).cloned());
                    self.complain(address, interface, mac, actions);
                }
                Seen::Rival { address, interface, node } => {
                    let yields = self.comes_second(address, &node, &mut grounds);
                    if yields {
                        self.layer2.cede(now, address, node.clone(), actions);
                        doubt.services.extend(self.sharing.of(address).cloned());
                    } else {
                        self.layer2.defend(now, address, actions);
                    }
                    actions.push(Action::Report(Report::Rival { address, interface, node, yields }));
                }
                Seen::Settled { address } | Seen::Free { address } => {
                    doubt.services.extend(self.sharing.of(address).cloned())
                }
            }
        }
        doubt
    }

    /// Whether another speaker that owns an address as well comes before this one. Both come to the same answer: where
    /// neither hears the other, their facts are the same but for that; where they do, these are what they differ in, and
    /// only the names are left to go by. Whoever sees no Leases hears nobody and counts as lost to those who do; these leave
    /// it what it has.
    fn comes_second(&self, address: IpAddr, rival: &NodeName, grounds: &mut BTreeMap<NodeName, Ground>) -> bool {
        let own = &self.config.node;
        let is_blind = self.membership.is_blind();
        // By newer facts than its own it is lost, but it is there: it sees no Leases, and has kept what was its own by facts
        // that may differ from ours in anything.
        if self.membership.sees_leases() && self.membership.is_lost(rival) {
            return true;
        }
        let Some(snapshot) = self.snapshot.as_ref().filter(|_| is_blind || self.membership.is_lost(rival)) else {
            let first = self.first_of_set(address);
            return elect::hash(rival, first) < elect::hash(own, first);
        };
        let ground = grounds.entry(rival.clone()).or_insert_with(|| {
            let mut standings = self.standings();
            if let Some(standing) = standings.get_mut(rival) {
                standing.liveness = Liveness::Alive;
                if is_blind {
                    // It can be heard on the link, so no interface that it was lost on is as dead as it seemed.
                    let found = std::mem::take(&mut standing.dead_links);
                    standing.links.get_or_insert_default().extend(found);
                }
            }
            Ground::new(snapshot, self.config.policy(), &standings)
        });
        let Some(service) = self.sharing.of(address).next() else { return false };
        let set = self.sharing.set_of(snapshot, service);
        ground.contest(snapshot, &set).is_ahead(rival, own)
    }

    /// The address by which whoever owns this one is elected: all addresses of a set go by it, lest one of two owners leave
    /// the first and the other the second.
    fn first_of_set(&self, address: IpAddr) -> IpAddr {
        let elected_by = || {
            let (snapshot, ground) = (self.snapshot.as_ref()?, self.ground.as_ref()?);
            let set = self.sharing.set_of(snapshot, self.sharing.of(address).next()?);
            ground.contest(snapshot, &set).elected_by()
        };
        elected_by().unwrap_or(address)
    }

    /// Decides again whatever is in doubt, and does what follows from it.
    fn review(&mut self, now: Instant, mut doubt: Doubt, actions: &mut Vec<Action>) {
        if !doubt.ground && !doubt.everything && doubt.services.is_empty() && doubt.addresses.is_empty() {
            return;
        }
        let Some(snapshot) = self.snapshot.clone().filter(|_| self.interfaces.is_some()) else { return };
        let is_first = self.ground.is_none();
        let mut ground = self.ground.take();
        if is_first || doubt.ground {
            let fresh = Ground::new(&snapshot, self.config.policy(), &self.standings());
            let own = &self.config.node;
            // The Services behind those ports are in doubt already.
            let is_carrying_less =
                ground.as_ref().is_some_and(|ground| fresh.differing_refusals(own, ground).is_some());
            match ground.as_ref().and_then(|ground| fresh.differing_nodes(ground)) {
                // What has changed about others matters only where they own or could.
                Some(mut others) if is_carrying_less || !others.contains(own) => {
                    others.remove(own);
                    let upset = |outcome: &Outcome| {
                        let lead = outcome.lead.as_ref();
                        ground.as_ref().is_none_or(|old| others.iter().any(|node| fresh.upsets(old, node, lead)))
                    };
                    let upset = self.outcomes.iter().filter(|(_, outcome)| upset(outcome));
                    doubt.services.extend(upset.map(|(service, _)| service.clone()));
                }
                _ => doubt.everything = true,
            }
            ground = Some(fresh);
        }
        let Some(ground) = ground else { return };
        let links = self.membership.usable_links(&self.own);
        if doubt.everything {
            doubt.services.extend(snapshot.services.keys().cloned());
        }
        let mut open = doubt.services;
        let mut addresses = doubt.addresses;
        while let Some(service) = open.pop_first() {
            if snapshot.services.get(&service).is_none_or(|service| service.load_balancer.is_none()) {
                self.note(service, None, actions);
                continue;
            }
            let set = self.sharing.set_of(&snapshot, &service);
            let contest = ground.contest(&snapshot, &set);
            let verdict = contest.verdict(&self.config.node, &links);
            let complains = verdict.lead.is_none() && contest.lacks_only_an_interface(&self.config.node);
            let is_lead = verdict.lead.as_ref().is_some_and(|lead| lead.rank.node == self.config.node);
            let rival = self.rival(&snapshot, &set, is_lead);
            for (service, mut result) in verdict.outcomes {
                open.remove(&service);
                if let Some(owner) = rival.clone().filter(|_| result.is_ok()) {
                    result = Err(Silence::NotElected { owner });
                }
                addresses.extend(snapshot.services.get(&service).into_iter().flat_map(|own| announce::addresses(own)));
                let complains = complains && matches!(result, Err(Silence::NoUsableInterface { .. }));
                let transitions = if result.is_ok() { self.transitions(&snapshot, &service) } else { 0 };
                let addresses = result.iter().flat_map(|own| &own.addresses);
                let conflicts = addresses.filter_map(|(address, _)| self.layer2.conflict(*address)).collect();
                let failed_at = result.as_ref().ok().and_then(|_| self.failed_at(&service));
                let from = result.as_ref().ok().and_then(|_| self.former_owner(&snapshot, &service)).cloned();
                let (lead, watched) = (verdict.lead.clone(), verdict.watched.clone());
                let outcome = Outcome { lead, watched, result, failed_at, from, transitions, conflicts, complains };
                self.note(service, Some(outcome), actions);
            }
        }
        self.ground = Some(ground);
        for address in addresses {
            self.settle(now, address, actions);
        }
        if is_first {
            self.clear_old_statuses(&snapshot, actions);
        }
        let mut listening = BTreeSet::new();
        if self.candidacies > 0 {
            listening.extend(self.own.links.keys().cloned());
        }
        if listening != self.listening {
            self.watches.doubt();
            self.listening.clone_from(&listening);
            actions.push(Action::Listen { interfaces: listening });
        }
    }

    /// Decides again what of BGP is in doubt, and does what follows from it.
    fn advertise(&mut self, now: Instant, doubt: &Doubt, actions: &mut Vec<Action>) {
        let is_first = self.advertiser.is_new();
        if !is_first && !doubt.terms && doubt.services.is_empty() && doubt.addresses.is_empty() {
            return;
        }
        let Some(snapshot) = self.snapshot.clone().filter(|_| self.interfaces.is_some()) else { return };
        let mut everything = false;
        if is_first || doubt.terms {
            let standing = self.standings().remove(&self.config.node);
            everything = self.advertiser.reconsider(&snapshot, standing.as_ref(), actions);
        }
        let services = || everything.then(|| snapshot.services.keys()).into_iter().flatten().chain(&doubt.services);
        let mut told = Vec::new();
        self.advertiser.decide(&snapshot, services(), &mut told);
        if is_first {
            self.advertiser.clear_old_statuses(&snapshot, &mut told);
        }
        // Routers hear of it before everybody who reads about it: at a start that is a word about each Service.
        self.advertiser.want(actions);
        actions.append(&mut told);
        let of_services = services().filter_map(|service| snapshot.services.get(service));
        let addresses =
            of_services.flat_map(|service| announce::addresses(service)).chain(doubt.addresses.iter().copied());
        for address in addresses {
            self.uphold(now, address, actions);
        }
    }

    /// Whether BGP draws traffic for an address to this node, which must take it for its own then.
    fn draws(&self, address: IpAddr) -> bool {
        self.config.data_path == DataPath::Proxy
            && self.sharing.of(address).any(|service| self.advertiser.draws(service, address))
    }

    /// Has the host hold an address for as long as BGP draws traffic for it.
    fn uphold(&mut self, now: Instant, address: IpAddr, actions: &mut Vec<Action>) {
        if self.draws(address) {
            self.host.hold(address, actions);
        } else if !self.owned.contains_key(&address) {
            self.host.let_go(now, address);
        }
    }

    /// Asks who sees owners that this node does not, and finds dead those that nobody does.
    fn look_for_owners(&mut self, now: Instant, doubt: &mut Doubt, actions: &mut Vec<Action>) {
        let sayings = self.watches.look(now, |node, interface| self.membership.outlook(node, interface));
        if sayings.is_empty() {
            return;
        }
        for (node, interface, saying) in sayings {
            self.membership.say(&node, &interface, saying);
            if saying == Saying::Ask {
                actions.push(Action::Report(Report::Unseen { node, interface }));
            }
        }
        let taken = self.membership.tick(now);
        self.follow_words(now, &taken, doubt);
    }

    /// Has owners watched, if this node comes next, and lets those who come next watch it.
    fn watch(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // The accused answers, and so does whoever speaks for it: if it were a candidate only while another is found dead, it would
        // stop as soon as it has spoken.
        let is_witness = self.membership.watchable().any(|other| {
            let mut in_doubt = other.in_doubt.iter();
            in_doubt.any(|interface| self.watches.sees(other.node, interface))
        });
        let is_needed = is_witness || !self.membership.accused_links().is_empty();
        let takes_part = !self.own.leaving && (is_needed || !self.listening.is_empty());
        let (accused, others) = (self.membership.accused_links(), self.membership.watchable());
        let (watch, unwatched) = self.watches.review(now, &self.own.links, accused, others, takes_part);
        for (node, interface) in unwatched {
            self.membership.verdict(&node, interface, None, Verdict::Unwatched);
        }
        actions.extend(watch.map(Action::Watch));
    }

    /// For the how manieth time a Service that this node announces has changed its owner.
    fn transitions(&self, snapshot: &Snapshot, service: &ServiceKey) -> u32 {
        if let Some(Outcome { result: Ok(_), transitions, .. }) = self.outcomes.get(service) {
            return *transitions;
        }
        let said = snapshot.announced_by.get(service);
        let of = |is_own: bool| {
            let nodes = said.iter().flat_map(|nodes| nodes.iter());
            nodes
                .filter(move |(node, _)| (**node == self.config.node) == is_own)
                .map(|(_, said)| said.transitions)
                .max()
        };
        match (of(true), of(false)) {
            // Nobody had it since an earlier life of this speaker.
            (Some(own), others) if others.is_none_or(|others| others < own) => own,
            (own, others) => own.max(others).map_or(0, |last| last.saturating_add(1)),
        }
    }

    /// When the node failed that a Service is taken over from.
    fn failed_at(&self, service: &ServiceKey) -> Option<Instant> {
        let before = self.outcomes.get(service)?;
        let owner = before.owner().filter(|owner| **owner != self.config.node)?;
        self.membership.failed_at(owner)
    }

    /// Who announced a Service that this node did not announce until now: as this node decided before, or as is reported
    /// where it has decided nothing yet.
    fn former_owner<'a>(&'a self, snapshot: &'a Snapshot, service: &ServiceKey) -> Option<&'a NodeName> {
        let owner = match self.outcomes.get(service) {
            Some(before) => before.owner(),
            None => snapshot.announcer(service).map(|(node, _)| node),
        };
        owner.filter(|owner| **owner != self.config.node)
    }

    /// To whom addresses of these Services were ceded. That counts only while this node would own them.
    fn rival(&mut self, snapshot: &Snapshot, set: &BTreeSet<ServiceKey>, is_lead: bool) -> Option<NodeName> {
        let services = set.iter().filter_map(|key| snapshot.services.get(key));
        let mut addresses = services.flat_map(|service| announce::addresses(service));
        if is_lead {
            return addresses.find_map(|address| self.layer2.ceded_to(address)).cloned();
        }
        addresses.for_each(|address| self.layer2.take_back(address));
        None
    }

    /// Remembers what was decided about a Service, and tells who reads about it.
    fn note(&mut self, service: ServiceKey, outcome: Option<Outcome>, actions: &mut Vec<Action>) {
        let status = |outcome: &Outcome| outcome.result.as_ref().ok().map(|own| l2_status(own, outcome));
        let is_candidate = |outcome: &Outcome| matches!(outcome.result, Ok(_) | Err(Silence::NotElected { .. }));
        let before = self.outcomes.remove(&service);
        self.candidacies -= usize::from(before.as_ref().is_some_and(is_candidate));
        self.candidacies += usize::from(outcome.as_ref().is_some_and(is_candidate));
        let watched = |outcome: &Option<Outcome>| outcome.as_ref().and_then(|outcome| outcome.watched.clone());
        self.watches.note(watched(&before).as_deref(), watched(&outcome).as_deref());
        let old = before.as_ref().and_then(status);
        let new = outcome.as_ref().and_then(status);
        let node = self.config.node.clone();
        let event = |severity, reason: &str, message| {
            let object = ObjectRef::service(&service);
            Action::Write(Write::Event(write::Event { object, severity, reason: reason.to_owned(), message }))
        };
        if old.is_none() && new.is_some() {
            // MetalLB's words: people and alerts look for them.
            let message = format!("announcing from node \"{node}\" with protocol \"layer2\"");
            actions.push(event(Severity::Normal, "nodeAssigned", message));
        }
        if let Some(Outcome { result: Err(silence), complains: true, .. }) = &outcome
            && !before.is_some_and(|before| before.complains)
        {
            let message = format!("no node can announce it; on node {node}, {silence}");
            actions.push(event(Severity::Warning, "announceFailed", message));
        }
        if old != new {
            actions.push(Action::Write(Write::L2Status { service: service.clone(), node, status: new }));
        }
        if let Some(outcome) = outcome {
            self.outcomes.insert(service, outcome);
        }
    }

    /// Brings one address to where the outcomes of its Services want it.
    fn settle(&mut self, now: Instant, address: IpAddr, actions: &mut Vec<Action>) {
        let outcomes: Vec<&Outcome> =
            self.sharing.of(address).filter_map(|service| self.outcomes.get(service)).collect();
        let announced = outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok());
        let interfaces: BTreeSet<InterfaceName> = announced
            .flat_map(|announcement| &announcement.addresses)
            .filter(|(own, _)| *own == address)
            .flat_map(|(_, interfaces)| interfaces.iter().cloned())
            .collect();
        if !interfaces.is_empty() {
            self.take(now, address, interfaces, actions);
            return;
        }
        let is_gone = outcomes.is_empty();
        let owner =
            outcomes.iter().find_map(|outcome| outcome.owner()).filter(|owner| **owner != self.config.node).cloned();
        // Only a node that still carries traffic well may go on answering until the next owner is heard on the link.
        let serves_on = owner.is_some()
            && outcomes.iter().any(|outcome| {
                matches!(
                    &outcome.result,
                    Err(Silence::NotElected { .. }
                        | Silence::NotInSubnet { .. }
                        | Silence::SpeakerLeaving
                        | Silence::NodeExcluded)
                )
            });
        if self.owned.remove(&address).is_some() {
            self.detours.end(address);
            if serves_on {
                self.layer2.yield_to_next(now, address, actions);
            } else {
                self.layer2.drop(address, actions);
            }
            self.left.insert(address, Left { told: None, until: now + LEFT_MEMORY });
            if !self.draws(address) {
                self.host.let_go(now, address);
            }
            actions.push(Action::Report(Report::Lost { address, owner: owner.clone() }));
        } else if !serves_on {
            self.layer2.drop(address, actions);
        }
        if is_gone {
            self.layer2.take_back(address);
            self.left.remove(&address);
            self.host.release(address, actions);
        }
        self.tell_owner(now, address, owner);
    }

    /// Tells the owner of an address that this node has left it, once for each owner.
    fn tell_owner(&mut self, now: Instant, address: IpAddr, owner: Option<NodeName>) {
        let Some(left) = self.left.get_mut(&address) else { return };
        if left.until <= now {
            self.left.remove(&address);
        } else if let Some(owner) = owner
            && left.told.as_ref() != Some(&owner)
        {
            self.membership.yielded_to(&owner);
            self.membership.hurry(now);
            left.told = Some(owner);
        }
    }

    fn take(&mut self, now: Instant, address: IpAddr, interfaces: BTreeSet<InterfaceName>, actions: &mut Vec<Action>) {
        let before = self.owned.insert(address, interfaces.clone());
        let of_services = self.sharing.of(address).filter_map(|service| self.outcomes.get(service));
        let failed_at = of_services.filter_map(|outcome| outcome.failed_at).min();
        if before.is_none() {
            self.begin_detour(now, address, &interfaces, actions);
        }
        self.left.remove(&address);
        if self.config.data_path == DataPath::Proxy {
            // The host must know the address before anybody sends to it.
            self.host.hold(address, actions);
        }
        if before.as_ref() != Some(&interfaces) {
            let failed_at = failed_at.filter(|_| before.is_none());
            actions.push(Action::Report(Report::Owned { address, interfaces: interfaces.clone(), failed_at }));
        }
        self.layer2.own(now, address, interfaces, actions);
    }

    /// An earlier life of this speaker may have left statuses of what it announced.
    fn clear_old_statuses(&self, snapshot: &Snapshot, actions: &mut Vec<Action>) {
        let node = &self.config.node;
        for (service, _) in snapshot.announced_by.iter().filter(|(_, nodes)| nodes.contains_key(node)) {
            if self.outcomes.get(service).is_none_or(|outcome| outcome.result.is_err()) {
                let write = Write::L2Status { service: service.clone(), node: node.clone(), status: None };
                actions.push(Action::Write(write));
            }
        }
    }

    fn tell_membership(&mut self, actions: &mut Vec<Action>) {
        if self.snapshot.is_none() {
            return;
        }
        let missed = self.membership.missed();
        if missed != self.missed {
            self.missed.clone_from(&missed);
            let write = Write::Membership { node: self.config.node.clone(), unreachable: missed };
            actions.push(Action::Write(write));
        }
    }

    fn complain(&self, address: IpAddr, interface: InterfaceName, mac: Mac, actions: &mut Vec<Action>) {
        let message = format!(
            "{mac} on {interface} of node {} claims {address} too; find that device and take the address from it, or let gossip \
             through if it is a node of this cluster",
            self.config.node
        );
        for service in self.sharing.of(address) {
            actions.push(Action::Write(Write::Event(write::Event {
                object: ObjectRef::service(service),
                severity: Severity::Warning,
                reason: "addressConflict".to_owned(),
                message: message.clone(),
            })));
        }
        actions.push(Action::Report(Report::Conflict { address, interface, mac }));
    }

    /// A stopping speaker goes when nothing is left to hand over, or nobody is there to take it.
    fn finish_if_over(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Phase::Leaving { until } = self.phase else { return };
        let is_empty = self.host.is_empty() && self.layer2.is_quiet();
        let is_handing_over = !is_empty && self.membership.has_company();
        let is_parting = self.advertiser.is_speaking() && now < until + PARTING_TIME;
        if is_parting || (now < until && is_handing_over) {
            return;
        }
        self.layer2.drop_all(actions);
        self.host.release_all(actions);
        self.phase = Phase::Finished;
        actions.push(Action::Finished);
    }
}

fn l2_status(announcement: &Announcement, outcome: &Outcome) -> L2Status {
    let announced = announcement.addresses.iter().filter(|(_, interfaces)| !interfaces.is_empty());
    L2Status {
        pool: announcement.pool.clone(),
        addresses: announced.map(|(address, _)| *address).collect(),
        interfaces: announcement.allowed.clone(),
        transitions: outcome.transitions,
        conflicts: outcome.conflicts.clone(),
    }
}
