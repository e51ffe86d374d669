//! The link: which interfaces serve, what is answered there, and when this node makes itself known.
//!
//! An address is *owned* (answered and announced), *yielding* (still answered while its next owner takes over, so that
//! nobody asks in vain) or nothing. Only for these are frames ever sent.
//!
//! ```text
//!            own                     yield_to                  claimed by another, or time is up
//! nothing ─────────► owned ─────────────────────────► yielding ─────────────────────────────────► nothing
//!            │         │  drop                            │ own                                      ▲
//!            ▲         └──────────────────────────────────┼──────────────────────────────────────────┘
//!            └────────────────────── owned ◄──────────────┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use ferrogate_wire::{
    arp::{Arp, Operation},
    ethernet::Mac,
    gossip::MAX_SUBNETS,
    ndp::{Advertisement, Ndp, Solicitation, solicited_node},
};

use crate::{
    model::{InterfaceName, NodeName, Prefix},
    speaker::{
        Action, Announcements, Config, Frame, Interface,
        announce::{Carries, Links},
    },
    write::L2Conflict,
};

mod ceded;

use self::ceded::Ceded;

/// Time between two defences of an address (RFC 5227 §2.4).
pub const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// For how long after the last claim a conflict is reported: several times the interval at which it is noticed anew.
const CONFLICT_MEMORY: Duration = Duration::from_secs(60);

/// How far announcements may run ahead of their rate: what this much time allows goes out in one breath.
const BREATH: Duration = Duration::from_millis(25);

/// An interface that may be announced on, and how it looks on the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    index: u32,
    mac: Mac,
    pub(super) carries: Carries,
}

/// The interfaces that may be announced on: not excluded by name, up, with a carrier, and no part of something else.
/// ARP needs broadcast, neighbour discovery a link-local address.
pub(super) fn usable(
    interfaces: &BTreeMap<InterfaceName, Interface>,
    excluded: &[String],
) -> BTreeMap<InterfaceName, Port> {
    let port = |(name, interface): (&InterfaceName, &Interface)| {
        let barred = interface.loopback || interface.controller.is_some() || interface.no_arp;
        let excluded = excluded.iter().any(|pattern| matches(pattern, name.as_str()));
        if excluded || barred || !interface.up || !interface.carrier {
            return None;
        }
        let watch_ipv4 = interface.addresses.iter().find_map(|prefix| match prefix.ip() {
            IpAddr::V4(address) if !address.is_link_local() => Some((address, prefix.prefix())),
            _ => None,
        });
        let watch_ipv6 = interface.addresses.iter().find_map(|prefix| match prefix.ip() {
            IpAddr::V6(address) if address.is_unicast_link_local() => Some(address),
            _ => None,
        });
        let (ipv4, ipv6) = (interface.broadcast, watch_ipv6.is_some());
        let subnets = subnets(&interface.addresses);
        let carries = Carries { ipv4, ipv6, mac: interface.mac, watch_ipv4, watch_ipv6, subnets };
        let port = Port { index: interface.index, mac: interface.mac?, carries };
        (ipv4 || ipv6).then(|| (name.clone(), port))
    };
    interfaces.iter().filter_map(port).collect()
}

/// The subnets of an interface; `None` where there are more than others can be told, so that all go by the same.
/// Link-local prefixes are on every link, and a prefix of full length is an address, no subnet.
fn subnets(addresses: &[Prefix]) -> Option<BTreeSet<Prefix>> {
    let is_subnet = |prefix: &&Prefix| match prefix {
        Prefix::V4(prefix) => prefix.prefix() < 32,
        Prefix::V6(prefix) => prefix.prefix() < 128 && !prefix.ip().is_unicast_link_local(),
    };
    let subnet = |prefix: &Prefix| Prefix::new(prefix.network(), prefix.prefix()).ok();
    let subnets: BTreeSet<Prefix> = addresses.iter().filter(is_subnet).filter_map(subnet).collect();
    Some(subnets).filter(|subnets| subnets.len() <= MAX_SUBNETS)
}

/// Whether a name fits a pattern in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|head| name.strip_prefix(head)) else { return false };
    let Some(tail) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(tail)
}

/// What this node does on its links.
#[derive(Debug)]
pub(super) struct Layer2 {
    announcements: Announcements,
    /// How long a claim may last before it is a conflict, and how long an old owner answers on.
    patience: Duration,
    ports: BTreeMap<InterfaceName, Port>,
    own_macs: BTreeSet<Mac>,
    /// The hardware addresses of the other speakers' interfaces.
    peers: BTreeMap<Mac, NodeName>,
    owned: BTreeMap<IpAddr, Owned>,
    yielding: BTreeMap<IpAddr, Yielding>,
    ceded: Ceded,
    /// Claims on owned addresses that wait for an explanation, each by another speaker of ours or by strangers.
    claims: BTreeMap<(IpAddr, Option<NodeName>), Claim>,
    /// Strangers' claims on owned addresses that could not be explained, and until when they are reported.
    conflicts: BTreeMap<IpAddr, (L2Conflict, Instant)>,
    /// What is to be announced when, by round: earlier rounds go first when the rate is short.
    schedule: BTreeMap<u32, BTreeSet<(Instant, IpAddr)>>,
    /// When the rate allows the next frame at the latest (the generic cell rate algorithm).
    paced_until: Option<Instant>,
    /// How many addresses need each group on each interface.
    groups: BTreeMap<(InterfaceName, Ipv6Addr), usize>,
}

#[derive(Debug)]
struct Owned {
    interfaces: BTreeSet<InterfaceName>,
    /// Its entry in the schedule.
    next: Option<(u32, Instant)>,
    defended_at: Option<Instant>,
}

/// Somebody else's frame that says it has an address of ours.
#[derive(Debug)]
struct Claim {
    interface: InterfaceName,
    mac: Mac,
    /// When it was last made.
    seen: Instant,
    /// When it becomes a conflict. A planned move looks the same until the old owner has heard of it.
    due: Instant,
    /// What to find out, where it is another speaker of ours.
    rival: Option<Rival>,
}

/// Another speaker that may have announced its last just before it knew better, so it is asked.
#[derive(Debug)]
struct Rival {
    /// When to ask; past once it was.
    ask_at: Option<Instant>,
    has_answered: bool,
}

/// What is seen on the link of an address that this node owns, or left to another that owns it too.
#[derive(Debug)]
pub(super) enum Seen {
    /// A stranger claims it.
    Conflict { address: IpAddr, interface: InterfaceName, mac: Mac },
    /// No stranger has claimed it for a while.
    Settled { address: IpAddr },
    /// Another speaker of ours answers for it.
    Rival { address: IpAddr, interface: InterfaceName, node: NodeName },
    /// That other speaker does not answer any more.
    Free { address: IpAddr },
}

#[derive(Debug)]
struct Yielding {
    interfaces: BTreeSet<InterfaceName>,
    until: Instant,
}

impl Layer2 {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            announcements: config.announcements.clone(),
            patience: config.patience(),
            ports: BTreeMap::new(),
            own_macs: BTreeSet::new(),
            peers: BTreeMap::new(),
            owned: BTreeMap::new(),
            yielding: BTreeMap::new(),
            ceded: Ceded::default(),
            claims: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            schedule: BTreeMap::new(),
            paced_until: None,
            groups: BTreeMap::new(),
        }
    }

    /// Takes in the interfaces. Returns whether the usable ones are different now.
    pub(super) fn interfaces(
        &mut self,
        now: Instant,
        interfaces: &BTreeMap<InterfaceName, Interface>,
        excluded: &[String],
        actions: &mut Vec<Action>,
    ) -> bool {
        self.own_macs = interfaces.values().filter_map(|interface| interface.mac).collect();
        let before = std::mem::replace(&mut self.ports, usable(interfaces, excluded));
        // Under an index of its own an interface is another one: it is in no group.
        let renewed: Vec<InterfaceName> = before
            .iter()
            .filter(|(name, port)| self.ports.get(*name).is_some_and(|now| now.index != port.index))
            .map(|(name, _)| name.clone())
            .collect();
        for (interface, group) in self.groups.keys().filter(|(interface, _)| renewed.contains(interface)) {
            actions.push(Action::Join { interface: interface.clone(), group: *group });
        }
        // What is new on the link must be told again; ownership itself may well stay.
        let fresh: BTreeSet<InterfaceName> = self
            .ports
            .iter()
            .filter(|(name, port)| before.get(*name) != Some(port))
            .map(|(name, _)| name.clone())
            .collect();
        let again: Vec<IpAddr> = self
            .owned
            .iter()
            .filter(|(_, owned)| !owned.interfaces.is_disjoint(&fresh))
            .map(|(address, _)| *address)
            .collect();
        for address in again {
            self.announce_again(now, address);
        }
        before != self.ports
    }

    /// The usable interfaces, as elections see them.
    pub(super) fn links(&self) -> Links {
        self.ports.iter().map(|(name, port)| (name.clone(), port.carries.clone())).collect()
    }

    /// Answers for an address on these interfaces from now on, and announces it wherever it was not before.
    pub(super) fn own(
        &mut self,
        now: Instant,
        address: IpAddr,
        interfaces: BTreeSet<InterfaceName>,
        actions: &mut Vec<Action>,
    ) {
        if self.owned.get(&address).is_some_and(|owned| owned.interfaces == interfaces) {
            return;
        }
        self.join(address, &interfaces, actions);
        let mut is_fresh = true;
        if let Some(yielding) = self.yielding.remove(&address) {
            self.leave(address, &yielding.interfaces, actions);
        }
        if let Some(owned) = self.owned.get_mut(&address) {
            is_fresh = !interfaces.is_subset(&owned.interfaces);
            let before = std::mem::replace(&mut owned.interfaces, interfaces);
            self.leave(address, &before, actions);
        } else {
            self.owned.insert(address, Owned { interfaces, next: None, defended_at: None });
        }
        if is_fresh {
            self.announce_again(now, address);
        }
    }

    /// Leaves an address to its next owner, and answers on until that one is seen or had its time.
    pub(super) fn yield_to_next(&mut self, now: Instant, address: IpAddr, actions: &mut Vec<Action>) {
        let claim = self.claims_on(address).map(|(_, claim)| claim.seen).max();
        let Some(owned) = self.disown(address) else { return };
        // The next owner was faster than the news about it.
        if claim.is_some_and(|seen| now < seen + self.patience) {
            self.leave(address, &owned.interfaces, actions);
            return;
        }
        self.yielding.insert(address, Yielding { interfaces: owned.interfaces, until: now + self.patience });
    }

    /// Which other speaker's interface has a hardware address.
    pub(super) fn whose(&self, mac: Mac) -> Option<&NodeName> {
        self.peers.get(&mac)
    }

    /// Asks a neighbour for a sign of life, in the name of an address that this node has on the interface.
    pub(super) fn call(&self, interface: &InterfaceName, own: IpAddr, neighbor: IpAddr, actions: &mut Vec<Action>) {
        let Some(Port { mac, .. }) = self.ports.get(interface) else { return };
        let frame = match (own, neighbor) {
            (IpAddr::V4(own), IpAddr::V4(neighbor)) => Frame::Arp(Arp::request(neighbor, own, *mac)),
            (IpAddr::V6(own), IpAddr::V6(neighbor)) => Frame::Solicitation(Solicitation::request(neighbor, own, *mac)),
            _ => return,
        };
        actions.push(Action::Send { interface: interface.clone(), frame });
    }

    /// Takes in where the other speakers' interfaces are found.
    pub(super) fn peers(&mut self, peers: BTreeMap<Mac, NodeName>) {
        self.peers = peers;
    }

    /// Leaves an address at once to another speaker, which answers for it already, for as long as it does.
    pub(super) fn cede(&mut self, now: Instant, address: IpAddr, to: NodeName, actions: &mut Vec<Action>) {
        let Some(owned) = self.disown(address) else { return };
        self.leave(address, &owned.interfaces, actions);
        self.ceded.leave(now, address, to, owned.interfaces, self.patience / ceded::PATIENCE);
    }

    /// To whom an address was ceded.
    pub(super) fn ceded_to(&self, address: IpAddr) -> Option<&NodeName> {
        self.ceded.to(address)
    }

    /// Everything that was ceded.
    pub(super) fn ceded(&self) -> impl Iterator<Item = IpAddr> {
        self.ceded.addresses()
    }

    /// Forgets that an address was ceded.
    pub(super) fn take_back(&mut self, address: IpAddr) {
        self.ceded.take_back(address);
    }

    /// Which stranger claims an owned address.
    pub(super) fn conflict(&self, address: IpAddr) -> Option<L2Conflict> {
        self.conflicts.get(&address).map(|(conflict, _)| conflict.clone())
    }

    /// Says once that an address which is claimed by another stays here.
    pub(super) fn defend(&mut self, now: Instant, address: IpAddr, actions: &mut Vec<Action>) {
        let Some(owned) = self.owned.get_mut(&address) else { return };
        if owned.defended_at.is_none_or(|defended_at| defended_at + DEFEND_INTERVAL <= now) {
            owned.defended_at = Some(now);
            self.announce_once(now, address, actions);
        }
    }

    /// Stops answering for an address at once.
    pub(super) fn drop(&mut self, address: IpAddr, actions: &mut Vec<Action>) {
        let interfaces = match self.disown(address) {
            Some(owned) => Some(owned.interfaces),
            None => self.yielding.remove(&address).map(|yielding| yielding.interfaces),
        };
        if let Some(interfaces) = interfaces {
            self.leave(address, &interfaces, actions);
        }
    }

    /// Stops answering altogether.
    pub(super) fn drop_all(&mut self, actions: &mut Vec<Action>) {
        let addresses: Vec<IpAddr> = self.owned.keys().chain(self.yielding.keys()).copied().collect();
        for address in addresses {
            self.drop(address, actions);
        }
    }

    fn claims_on(&self, address: IpAddr) -> impl Iterator<Item = (&(IpAddr, Option<NodeName>), &Claim)> {
        self.claims.range((address, None)..).take_while(move |((claimed, _), _)| *claimed == address)
    }

    fn disown(&mut self, address: IpAddr) -> Option<Owned> {
        self.schedule_round(address, None);
        let claimants: Vec<_> = self.claims_on(address).map(|(key, _)| key.clone()).collect();
        for key in claimants {
            self.claims.remove(&key);
        }
        self.conflicts.remove(&address);
        self.owned.remove(&address)
    }

    /// Whether nothing is answered any more.
    pub(super) fn is_quiet(&self) -> bool {
        self.owned.is_empty() && self.yielding.is_empty()
    }

    /// Announces everything owned once more, now and a little later: somebody else may have been believed in between.
    pub(super) fn remind(&mut self, now: Instant) {
        let Announcements { quick, slow, .. } = self.announcements;
        let last = (quick + slow).saturating_sub(1);
        let addresses: Vec<(IpAddr, Option<u32>)> =
            self.owned.iter().map(|(address, owned)| (*address, owned.next.map(|(round, _)| round))).collect();
        for (address, round) in addresses {
            // In its quick rounds an address is announced soon enough.
            if round.is_none_or(|round| round > quick) {
                self.schedule_round(address, Some((round.unwrap_or(last).min(last), now)));
            }
        }
    }

    fn announce_again(&mut self, now: Instant, address: IpAddr) {
        self.schedule_round(address, Some((0, now)));
    }

    fn schedule_round(&mut self, address: IpAddr, next: Option<(u32, Instant)>) {
        let Some(owned) = self.owned.get_mut(&address) else { return };
        if let Some((round, due)) = std::mem::replace(&mut owned.next, next)
            && let Some(entries) = self.schedule.get_mut(&round)
        {
            entries.remove(&(due, address));
            // Each step looks at the first of every round.
            if entries.is_empty() {
                self.schedule.remove(&round);
            }
        }
        if let Some((round, due)) = next {
            self.schedule.entry(round).or_default().insert((due, address));
        }
    }

    /// Takes in an ARP message. Returns whether it claims an address of ours: any other changes nothing here.
    pub(super) fn arp(
        &mut self,
        now: Instant,
        interface: &InterfaceName,
        arp: &Arp,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(port) = self.ports.get(interface) else { return false };
        if self.own_macs.contains(&arp.sender_mac) {
            return false;
        }
        let mac = port.mac;
        if self.claimed(now, interface, arp.sender.into(), arp.sender_mac, actions) {
            return true;
        }
        let asks_us =
            arp.operation == Operation::Request && (arp.destination == Mac::BROADCAST || arp.destination == mac);
        let is_probe = arp.sender.is_unspecified();
        if asks_us && self.answers(arp.target.into(), interface, is_probe) {
            answer(interface, Frame::Arp(Arp::answer(arp, mac)), actions);
        }
        false
    }

    /// Takes in a message of neighbour discovery. Returns as [`arp`](Self::arp) does.
    pub(super) fn ndp(
        &mut self,
        now: Instant,
        interface: &InterfaceName,
        ndp: &Ndp,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(port) = self.ports.get(interface) else { return false };
        let (sender, sender_mac) = ndp.sender();
        if self.own_macs.contains(&sender_mac) {
            return false;
        }
        let mac = port.mac;
        if self.claimed(now, interface, sender.into(), sender_mac, actions) {
            return true;
        }
        if let Ndp::Solicitation(solicitation) = ndp {
            let group = solicited_node(solicitation.target);
            let to_us = solicitation.destination == solicitation.target || solicitation.destination == group;
            let to_mac = solicitation.destination_mac == mac || solicitation.destination_mac == Mac::of_group(group);
            let is_probe = solicitation.is_probe();
            if to_us && to_mac && self.answers(solicitation.target.into(), interface, is_probe) {
                answer(interface, Frame::Advertisement(Advertisement::answer(solicitation, mac)), actions);
            }
        }
        false
    }

    /// Probes are answered by the owner alone: another owner who asks must not take one that yields for a rival.
    fn answers(&self, address: IpAddr, interface: &InterfaceName, is_probe: bool) -> bool {
        let owned = self.owned.get(&address).map(|owned| &owned.interfaces);
        let yielding = self.yielding.get(&address).filter(|_| !is_probe).map(|yielding| &yielding.interfaces);
        let interfaces = owned.or(yielding);
        interfaces.is_some_and(|interfaces| interfaces.contains(interface))
    }

    /// Somebody speaks as if it had this address. Returns whether that is one of ours.
    fn claimed(
        &mut self,
        now: Instant,
        interface: &InterfaceName,
        address: IpAddr,
        mac: Mac,
        actions: &mut Vec<Action>,
    ) -> bool {
        // The next owner has made itself known.
        if let Some(yielding) = self.yielding.remove(&address) {
            self.leave(address, &yielding.interfaces, actions);
            return true;
        }
        let peer = self.peers.get(&mac);
        if self.ceded.hear(now, address, peer) {
            return true;
        }
        let Some(owned) = self.owned.get(&address) else { return false };
        let key = (address, peer.cloned());
        if let Some(claim) = self.claims.get_mut(&key) {
            if let Some(rival) = &mut claim.rival {
                rival.has_answered |= rival.ask_at.is_none();
            }
            claim.interface.clone_from(interface);
            (claim.mac, claim.seen) = (mac, now);
            return true;
        }
        let earliest = match (peer, owned.defended_at) {
            (None, Some(defended_at)) => defended_at + DEFEND_INTERVAL,
            (None, None) | (Some(_), _) => now,
        };
        let rival = peer.map(|_| Rival { ask_at: Some(now + self.patience / 2), has_answered: false });
        let due = (now + self.patience).max(earliest);
        self.claims.insert(key, Claim { interface: interface.clone(), mac, seen: now, due, rival });
        true
    }

    /// Does what is due: the end of yielding, questions, defences, announcements. Returns what was found out.
    pub(super) fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) -> Vec<Seen> {
        let over: Vec<IpAddr> =
            self.yielding.iter().filter(|(_, yielding)| yielding.until <= now).map(|(address, _)| *address).collect();
        for address in over {
            self.drop(address, actions);
        }
        let mut seen = Vec::new();
        for ((address, peer), claim) in self.claims.extract_if(.., |_, claim| claim.due <= now) {
            let Claim { interface, mac, rival, .. } = claim;
            match peer {
                // Whose it is may have come to be known in the meantime: a speaker that starts is heard on the link first.
                None if self.peers.contains_key(&mac) => {}
                None => seen.push(Seen::Conflict { address, interface, mac }),
                Some(node) if rival.is_some_and(|rival| rival.has_answered) => {
                    seen.push(Seen::Rival { address, interface, node });
                }
                Some(_) => {}
            }
        }
        for conflict in &seen {
            if let Seen::Conflict { address, interface, mac } = conflict {
                self.defend(now, *address, actions);
                let conflict = L2Conflict { address: *address, interface: interface.clone(), mac: mac.to_string() };
                self.conflicts.insert(*address, (conflict, now + CONFLICT_MEMORY));
            }
        }
        let settled = self.conflicts.extract_if(.., |_, (_, until)| *until <= now);
        seen.extend(settled.map(|(address, _)| Seen::Settled { address }));
        // One question on a link is answered by all who claim the address there.
        let mut asked = BTreeSet::new();
        for ((address, _), claim) in &mut self.claims {
            if let Some(rival) = &mut claim.rival
                && rival.ask_at.take_if(|ask_at| *ask_at <= now).is_some()
            {
                asked.insert((*address, claim.interface.clone()));
            }
        }
        let mut questions: Vec<_> =
            asked.into_iter().map(|(address, interface)| (address, BTreeSet::from([interface]))).collect();
        let due = self.ceded.tick(now, self.patience / ceded::PATIENCE);
        questions.extend(due.questions);
        for (address, interfaces) in questions {
            self.ask(address, &interfaces, actions);
        }
        seen.extend(due.free.into_iter().map(|address| Seen::Free { address }));
        self.announce_due(now, actions);
        seen
    }

    /// Asks who has an address, as somebody who has none of its own (RFC 5227 §2.1.1, RFC 4862 §5.4): what neighbours
    /// know stays as it is.
    fn ask(&self, address: IpAddr, interfaces: &BTreeSet<InterfaceName>, actions: &mut Vec<Action>) {
        for name in interfaces {
            let Some(port) = self.ports.get(name) else { continue };
            let frame = match address {
                IpAddr::V4(address) => Frame::Arp(Arp::probe(address, port.mac)),
                IpAddr::V6(address) => Frame::Solicitation(Solicitation::probe(address, port.mac)),
            };
            actions.push(Action::Send { interface: name.clone(), frame });
        }
    }

    fn announce_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some((round, address)) = self.next_due(now) {
            if self.paced_until.is_some_and(|paced_until| paced_until > now + BREATH) {
                return;
            }
            self.announce_once(now, address, actions);
            let Announcements { quick, quick_interval, slow, slow_interval, periodic, .. } = self.announcements;
            let next = (round + 1).min(quick + slow + 1);
            let wait = if next <= quick {
                Some(quick_interval)
            } else if next <= quick + slow {
                Some(slow_interval)
            } else {
                periodic
            };
            self.schedule_round(address, wait.map(|wait| (next, now + wait)));
        }
    }

    /// The earliest round that is due.
    fn next_due(&self, now: Instant) -> Option<(u32, IpAddr)> {
        let first = self.schedule.iter().filter_map(|(round, entries)| Some((*round, entries.first()?)));
        let mut due = first.filter(|(_, (due, _))| *due <= now);
        due.next().map(|(round, (_, address))| (round, *address))
    }

    /// One round for one address, on each of its interfaces.
    fn announce_once(&mut self, now: Instant, address: IpAddr, actions: &mut Vec<Action>) {
        let Some(owned) = self.owned.get(&address) else { return };
        let mut frames = 0;
        for name in &owned.interfaces {
            let Some(port) = self.ports.get(name) else { continue };
            let round = match address {
                // Some devices learn only from requests, others only from replies.
                IpAddr::V4(address) => [Operation::Request, Operation::Reply]
                    .map(|operation| Frame::Arp(Arp::announcement(operation, address, port.mac)))
                    .to_vec(),
                IpAddr::V6(address) => vec![Frame::Advertisement(Advertisement::announcement(address, port.mac))],
            };
            for frame in round {
                actions.push(Action::Send { interface: name.clone(), frame });
                frames += 1;
            }
        }
        let cost = Duration::from_secs(1) / self.announcements.frames_per_second.max(1) * frames;
        self.paced_until = Some(self.paced_until.map_or(now, |paced_until| paced_until.max(now)) + cost);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let asked = |claim: &Claim| claim.rival.as_ref().and_then(|rival| rival.ask_at);
        let claims = self.claims.values().flat_map(|claim| [asked(claim), Some(claim.due)]).flatten();
        let yields = self.yielding.values().map(|yielding| yielding.until);
        let first = self.schedule.values().filter_map(|entries| entries.first()).map(|(due, _)| *due).min();
        // Out of breath, it pays to wait for more than a single frame's worth.
        let allowed = self.paced_until.and_then(|paced_until| paced_until.checked_sub(BREATH / 2));
        let paced = first.map(|due| allowed.map_or(due, |allowed| due.max(allowed)));
        let conflicts = self.conflicts.values().map(|(_, until)| *until);
        claims.chain(yields).chain(paced).chain(conflicts).chain(self.ceded.deadline()).min()
    }

    fn join(&mut self, address: IpAddr, interfaces: &BTreeSet<InterfaceName>, actions: &mut Vec<Action>) {
        let IpAddr::V6(address) = address else { return };
        let group = solicited_node(address);
        for interface in interfaces {
            let count = self.groups.entry((interface.clone(), group)).or_default();
            *count += 1;
            if *count == 1 {
                actions.push(Action::Join { interface: interface.clone(), group });
            }
        }
    }

    fn leave(&mut self, address: IpAddr, interfaces: &BTreeSet<InterfaceName>, actions: &mut Vec<Action>) {
        let IpAddr::V6(address) = address else { return };
        let group = solicited_node(address);
        for interface in interfaces {
            let key = (interface.clone(), group);
            let Some(count) = self.groups.get_mut(&key) else { continue };
            *count -= 1;
            if *count == 0 {
                self.groups.remove(&key);
                actions.push(Action::Leave { interface: interface.clone(), group });
            }
        }
    }
}

/// An answer is mostly all that a step wants, so that no room is made for more.
fn answer(interface: &InterfaceName, frame: Frame, actions: &mut Vec<Action>) {
    actions.reserve_exact(1);
    actions.push(Action::Send { interface: interface.clone(), frame });
}
