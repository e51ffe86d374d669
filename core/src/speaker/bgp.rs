//! BGP (RFC 4271): everything this node says to routers, and when.
//!
//! [`Peers`] holds one machine for each router; each of those has its connections, at most two of them, and for the one that
//! is established what the router was told ([`rib_out`]). Routes are announced and never learned: what a peer sends is
//! counted and forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_wire::bgp::{Cease, Notification};
use imbl::ordmap::DiffItem;
use rand::{SeedableRng, rngs::SmallRng};

use self::peer::Peer;
use crate::{
    model::{
        InterfaceName, PeerName, Prefix,
        peer::{AoAlgorithm, Signature},
    },
    speaker::bfd::sessions::Path,
};

mod peer;
mod rib_out;
mod session;
mod status;
#[cfg(test)]
mod tests;
mod traffic;
mod wanted;

pub use status::{BfdState, Closing, Loss, SessionStatus, State, Trouble, Withheld};
pub use traffic::{Action, Connection, Direction, Ends, Event, Expected, Messages, Rejection, Target};
pub use wanted::{
    BfdWish, Departure, GracefulRestart, Neighbor, Part, Remote, Route, Routes, Transport, Ttl, Wanted, Watched,
};

/// How long changes are gathered before they are sent, so that one that is taken back at once is not sent at all.
pub const COALESCE: Duration = Duration::from_millis(5);

/// For how long after its start a speaker may still not know everything it is to announce. Then it tells its peers that
/// it does all the same, and they forget what it has not repeated.
pub const DEFERRAL: Duration = Duration::from_secs(10);

/// How long routes stay with the lowest preference before they are withdrawn: other paths are in use by then.
pub const DRAIN_TIME: Duration = Duration::from_millis(600);

/// How long a session outlives the withdrawal of its routes: the time a router needs to take it in.
pub const WITHDRAW_TIME: Duration = Duration::from_millis(200);

/// How many routers one BGPPeer with a prefix can be.
pub const MAX_DYNAMIC: usize = 128;

/// All peers of one node.
///
/// Whoever drives it calls [`step`](Self::step) with every event as it comes, and with [`Event::Tick`] when
/// [`deadline`](Self::deadline) has come, and carries out the actions in their order.
#[derive(Debug)]
pub struct Peers {
    kernel: Kernel,
    dice: SmallRng,
    started_at: Instant,
    wanted: Wanted,
    /// Neighbours whose keys could be mistaken for those of another, and which.
    overlaps: BTreeMap<PeerName, PeerName>,
    peers: BTreeMap<PeerId, Peer>,
    /// Whose each connection is.
    owners: BTreeMap<Connection, PeerId>,
    next_connection: u64,
    /// Where routers were found.
    routers: BTreeMap<InterfaceName, IpAddr>,
    expected: Vec<Expected>,
    discovered: BTreeSet<InterfaceName>,
    /// How each peer is watched.
    watches: BTreeMap<PeerId, (Path, Watched)>,
    parted: bool,
}

/// What the kernel of a node can do. Without anything said it can do none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// TCP-AO (RFC 5925), with these algorithms.
    pub tcp_ao: BTreeSet<AoAlgorithm>,
}

impl Kernel {
    /// Why it cannot make such connections.
    fn lacks(&self, transport: &Transport) -> Option<Trouble> {
        match &transport.signature {
            Some(Signature::Ao { terms, .. }) if !self.tcp_ao.contains(&terms.algorithm) => {
                Some(Trouble::NoTcpAo(terms.algorithm))
            }
            _ => None,
        }
    }
}

/// A router: by its object, and where that stands for several, by its address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PeerId {
    name: PeerName,
    dynamic: Option<IpAddr>,
}

/// What the peers have in common.
struct Common<'a> {
    now: Instant,
    dice: &'a mut SmallRng,
    routes: &'a Routes,
    /// Whether it may be said that all routes were sent.
    is_complete: bool,
    /// Whether peers may take this for the return of an earlier life.
    is_restarted: bool,
    next_connection: &'a mut u64,
    routers: &'a BTreeMap<InterfaceName, IpAddr>,
}

impl Common<'_> {
    fn connection(&mut self) -> Connection {
        *self.next_connection += 1;
        Connection(*self.next_connection)
    }
}

impl Peers {
    /// No peer yet. The seed makes jitter.
    pub fn new(now: Instant, seed: u64) -> Self {
        Self {
            kernel: Kernel::default(),
            dice: SmallRng::seed_from_u64(seed),
            started_at: now,
            wanted: Wanted::default(),
            overlaps: BTreeMap::new(),
            peers: BTreeMap::new(),
            owners: BTreeMap::new(),
            next_connection: 0,
            routers: BTreeMap::new(),
            expected: Vec::new(),
            discovered: BTreeSet::new(),
            watches: BTreeMap::new(),
            parted: false,
        }
    }

    /// With a kernel that can do this.
    pub fn on(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    /// The number of a connection that somebody has made to this node.
    pub fn accept(&mut self) -> Connection {
        self.next_connection += 1;
        Connection(self.next_connection)
    }

    /// The VRF device that a connection of ours was to be made from.
    pub fn vrf_of(&self, connection: Connection) -> Option<&InterfaceName> {
        self.peers.get(self.owners.get(&connection)?)?.neighbor().transport.vrf.as_ref()
    }

    /// When [`Event::Tick`] is wanted next.
    pub fn deadline(&self) -> Option<Instant> {
        if self.parted {
            return None;
        }
        let deferral = (!self.wanted.is_complete).then(|| self.started_at + DEFERRAL);
        let is_waited_for = self.peers.values().any(Peer::awaits_completion);
        self.peers.values().filter_map(Peer::deadline).chain(deferral.filter(|_| is_waited_for)).min()
    }

    /// How every session stands.
    pub fn statuses(&self) -> impl Iterator<Item = SessionStatus> {
        self.peers.iter().map(|(id, peer)| peer.status(id))
    }

    /// How many messages went between this node and each router since it is spoken with; with one that a prefix stands for,
    /// since it has connected.
    pub fn messages(&self) -> impl Iterator<Item = ((PeerName, Option<IpAddr>), &Messages)> {
        self.peers.iter().map(|(id, peer)| ((id.name.clone(), id.dynamic), peer.messages()))
    }

    /// Whether it may be said that all routes were sent.
    fn is_complete(&self, now: Instant) -> bool {
        self.wanted.is_complete || self.started_at + DEFERRAL <= now
    }

    /// Takes in one event at `now` and returns what must be done about it, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.parted {
            match event {
                Event::Connected { connection, .. } => actions.push(Action::Close { connection }),
                Event::Accepted { connection, ends, .. } => {
                    actions.push(Action::Reject { connection, remote: ends.remote, reason: Rejection::Parted });
                }
                _ => {}
            }
            return actions;
        }
        let mut touched = BTreeSet::new();
        match event {
            Event::Want(wanted) => {
                self.want(now, wanted, &mut touched, &mut actions);
                self.expect(&mut actions);
            }
            Event::Accepted { connection, vrf, ends } => match self.peer_at(vrf.as_ref(), &ends) {
                Ok(id) => {
                    self.owners.insert(connection, id.clone());
                    self.with(now, &id, &mut actions, |peer, common, actions| {
                        peer.accepted(common, connection, ends, actions);
                    });
                    touched.insert(id);
                }
                Err(reason) => actions.push(Action::Reject { connection, remote: ends.remote, reason }),
            },
            Event::Found { interface, address } => {
                if self.routers.insert(interface.clone(), address) != Some(address) {
                    let behind = |peer: &Peer| matches!(&peer.neighbor().remote, Remote::Interface { name, .. } if *name == interface);
                    touched.extend(self.peers.iter().filter(|(_, peer)| behind(peer)).map(|(id, _)| id.clone()));
                    for id in touched.clone() {
                        self.with(now, &id, &mut actions, |peer, common, actions| peer.found(common, actions));
                    }
                }
            }
            Event::Bfd { path, is_up, failure } => {
                let watches = self.peers.iter().filter(|(_, peer)| peer.watch().is_some_and(|(own, _)| own == path));
                touched.extend(watches.map(|(id, _)| id.clone()));
                for id in touched.clone() {
                    self.with(now, &id, &mut actions, |peer, common, actions| {
                        peer.bfd(common, is_up, failure, actions);
                    });
                }
            }
            Event::Mistrusted => {
                touched.extend(self.peers.keys().cloned());
                self.peers.values_mut().for_each(Peer::mistrust);
            }
            Event::Tick => {
                let is_complete = self.is_complete(now);
                let due = self.peers.iter().filter(|(_, peer)| {
                    peer.deadline().is_some_and(|at| at <= now) || (is_complete && peer.awaits_completion())
                });
                touched.extend(due.map(|(id, _)| id.clone()));
                for id in touched.clone() {
                    self.with(now, &id, &mut actions, |peer, common, actions| peer.tick(common, actions));
                }
            }
            Event::Connected { connection, .. }
            | Event::Refused { connection, .. }
            | Event::Received { connection, .. }
            | Event::Written { connection }
            | Event::Ended { connection, .. } => {
                if let Some(id) = self.owners.get(&connection).cloned() {
                    if let (Event::Received { message: Ok(message), .. }, Some(peer)) =
                        (&event, self.peers.get_mut(&id))
                    {
                        peer.count_message(Direction::Received, traffic::type_of(message));
                    }
                    self.with(now, &id, &mut actions, |peer, common, actions| match event {
                        Event::Connected { ends, .. } => peer.connected(common, connection, ends, actions),
                        Event::Refused { trouble, .. } => peer.refused(common, connection, trouble, actions),
                        Event::Received { message, .. } => peer.received(common, connection, message, actions),
                        Event::Ended { loss, .. } => peer.ended(common, connection, loss, actions),
                        _ => peer.written(common, connection, actions),
                    });
                    touched.insert(id);
                }
            }
        }
        self.settle(now, touched, &mut actions);
        actions
    }

    fn with(
        &mut self,
        now: Instant,
        id: &PeerId,
        actions: &mut Vec<Action>,
        act: impl FnOnce(&mut Peer, &mut Common<'_>, &mut Vec<Action>),
    ) {
        let is_complete = self.is_complete(now);
        // What is on its way out needs none.
        let hindrance = self.wanted.neighbors.get(&id.name).and_then(|neighbor| self.hindrance(&id.name, neighbor));
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.hinder(hindrance);
        let mut common = Common {
            now,
            dice: &mut self.dice,
            routes: &self.wanted.routes,
            is_complete,
            is_restarted: now < self.started_at + peer.restart_time(),
            next_connection: &mut self.next_connection,
            routers: &self.routers,
        };
        let before = actions.len();
        act(peer, &mut common, actions);
        for action in &actions[before..] {
            match action {
                Action::Connect { connection, .. } => _ = self.owners.insert(*connection, id.clone()),
                Action::Close { connection } => _ = self.owners.remove(connection),
                Action::Send { bytes, .. } => {
                    traffic::types_of(bytes).into_iter().for_each(|kind| peer.count_message(Direction::Sent, kind));
                }
                _ => {}
            }
        }
    }

    fn want(&mut self, now: Instant, wanted: Wanted, touched: &mut BTreeSet<PeerId>, actions: &mut Vec<Action>) {
        let before = std::mem::replace(&mut self.wanted, wanted);
        let changed: Vec<Prefix> = before
            .routes
            .diff(&self.wanted.routes)
            .map(|change| match change {
                DiffItem::Add(prefix, _) | DiffItem::Remove(prefix, _) => *prefix,
                DiffItem::Update { new: (prefix, _), .. } => *prefix,
            })
            .collect();
        let is_complete_now = self.wanted.is_complete && !before.is_complete;
        self.overlaps = overlaps(&self.wanted.neighbors);
        for id in self.peers.keys().cloned().collect::<Vec<_>>() {
            // An object that stood for one router and stands for several now, or the reverse, is another.
            let is_same_kind =
                |neighbor: &Arc<Neighbor>| self.stands_for_several(&id.name, neighbor) == id.dynamic.is_some();
            match self.wanted.neighbors.get(&id.name).cloned().filter(is_same_kind) {
                Some(neighbor) => {
                    self.with(now, &id, actions, |peer, common, actions| {
                        peer.configure(common, neighbor, actions);
                        peer.touch(common, &changed, is_complete_now, actions);
                    });
                }
                None => self.with(now, &id, actions, |peer, common, actions| {
                    peer.retire(common, Notification::cease(Cease::PeerDeconfigured), actions);
                }),
            }
            touched.insert(id);
        }
        // Nobody is spoken with who was not when the speaker began to stop.
        let running = if before.departing.is_none() { self.wanted.neighbors.clone() } else { BTreeMap::new() };
        for (name, neighbor) in running {
            let id = PeerId { name, dynamic: None };
            if self.stands_for_several(&id.name, &neighbor) || self.peers.contains_key(&id) {
                continue;
            }
            self.peers.insert(id.clone(), Peer::new(id.name.clone(), neighbor, None));
            self.with(now, &id, actions, |peer, common, actions| peer.start(common, actions));
            touched.insert(id);
        }
        if let Some(departure) = self.wanted.departing.clone().filter(|_| before.departing.is_none()) {
            for id in self.peers.keys().cloned().collect::<Vec<_>>() {
                self.with(now, &id, actions, |peer, common, actions| peer.depart(common, &departure, actions));
                touched.insert(id);
            }
        }
    }

    /// Whether there is a peer for each router that connects, and none before. Where none can there is one that says why.
    fn stands_for_several(&self, name: &PeerName, neighbor: &Neighbor) -> bool {
        matches!(neighbor.remote, Remote::Prefix(_)) && self.hindrance(name, neighbor).is_none()
    }

    /// Why there is to be no connection with a neighbour, whoever would make it.
    fn hindrance(&self, name: &PeerName, neighbor: &Neighbor) -> Option<Trouble> {
        let overlap = || Some(Trouble::KeyOverlap { other: self.overlaps.get(name)?.clone() });
        self.kernel.lacks(&neighbor.transport).or_else(overlap)
    }

    /// How whoever has connected is spoken with; `None` means that it is a stranger.
    pub fn transport_for(&self, vrf: Option<&InterfaceName>, ends: &Ends) -> Option<&Transport> {
        self.neighbor_at(vrf, ends).map(|(_, neighbor)| &neighbor.transport)
    }

    /// Who is at the other end of a connection that came by a VRF: an address before an interface before a prefix.
    fn neighbor_at(&self, vrf: Option<&InterfaceName>, ends: &Ends) -> Option<(&PeerName, &Arc<Neighbor>)> {
        let is_link_local = matches!(ends.remote, IpAddr::V6(remote) if remote.is_unicast_link_local());
        let precedence = |neighbor: &Neighbor| match &neighbor.remote {
            Remote::Address { address, .. } => (*address == ends.remote).then_some(0),
            Remote::Interface { name, .. } => (is_link_local && ends.interface.as_ref() == Some(name)).then_some(1),
            Remote::Prefix(prefix) => prefix.contains(ends.remote).then_some(2),
        };
        let here = self.wanted.neighbors.iter().filter(|(_, neighbor)| neighbor.transport.vrf.as_ref() == vrf);
        let found = here.filter_map(|entry| Some((precedence(entry.1)?, entry)));
        found.min_by_key(|(precedence, _)| *precedence).map(|(_, entry)| entry)
    }

    /// Whose peer it is that has connected.
    fn peer_at(&mut self, vrf: Option<&InterfaceName>, ends: &Ends) -> Result<PeerId, Rejection> {
        let (name, neighbor) = self.neighbor_at(vrf, ends).ok_or(Rejection::Stranger)?;
        if self.hindrance(name, neighbor).is_some() {
            return Err(Rejection::Unsigned);
        }
        // The kernel looks keys up by address, and where it is was not known when the socket was to get its keys.
        if matches!(neighbor.remote, Remote::Interface { .. }) && neighbor.transport.signature.is_some() {
            return Err(Rejection::Keyless);
        }
        let is_dynamic = matches!(neighbor.remote, Remote::Prefix(_));
        let (id, neighbor) =
            (PeerId { name: name.clone(), dynamic: is_dynamic.then_some(ends.remote) }, neighbor.clone());
        if is_dynamic && !self.peers.contains_key(&id) {
            if self.peers.keys().filter(|other| other.name == id.name).count() >= MAX_DYNAMIC {
                return Err(Rejection::TooManyRouters);
            }
            self.peers.insert(id.clone(), Peer::new(id.name.clone(), neighbor, id.dynamic));
        }
        Ok(id)
    }

    /// Tells what has changed around the peers that something happened to.
    fn settle(&mut self, now: Instant, touched: BTreeSet<PeerId>, actions: &mut Vec<Action>) {
        let mut is_watched_otherwise = false;
        for id in touched {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let is_over = peer.is_over();
            let watch = peer.watch().filter(|_| !is_over);
            if self.watches.get(&id) != watch.as_ref() {
                is_watched_otherwise = true;
                match watch {
                    Some(watch) => _ = self.watches.insert(id.clone(), watch),
                    None => _ = self.watches.remove(&id),
                }
            }
            if is_over {
                if let Some(status) = peer.last_news(&id) {
                    actions.push(Action::Status(Box::new(status)));
                }
                self.peers.remove(&id);
                self.owners.retain(|_, owner| *owner != id);
                actions.push(Action::Gone { peer: id.name, remote: id.dynamic });
            } else if let Some(status) = peer.news(now, &id) {
                actions.push(Action::Status(Box::new(status)));
            }
        }
        if is_watched_otherwise {
            // Whoever is told AdminDown is to be told before the connection ends.
            actions.insert(0, Action::Watch(self.watches.values().cloned().collect()));
        }
        if self.wanted.departing.is_some() && self.peers.values().all(Peer::has_parted) {
            self.parted = true;
            actions.push(Action::Parted);
        }
    }

    /// Says who may connect, and where routers are to be found.
    fn expect(&mut self, actions: &mut Vec<Action>) {
        let running = || self.wanted.neighbors.iter().filter(|_| self.wanted.departing.is_none());
        let possible = || running().filter(|(name, neighbor)| self.hindrance(name, neighbor).is_none());
        let expected: Vec<Expected> = if possible().any(|(_, neighbor)| is_waited_for(neighbor)) {
            possible().filter_map(|(_, neighbor)| expected(neighbor)).collect()
        } else {
            Vec::new()
        };
        if expected != self.expected {
            self.expected.clone_from(&expected);
            actions.push(Action::Listen(expected));
        }
        let discovered: BTreeSet<InterfaceName> = running()
            .filter_map(|(_, neighbor)| match &neighbor.remote {
                Remote::Interface { name, .. } => Some(name.clone()),
                _ => None,
            })
            .collect();
        if discovered != self.discovered {
            self.routers.retain(|interface, _| discovered.contains(interface));
            self.discovered.clone_from(&discovered);
            actions.push(Action::Discover(discovered));
        }
    }
}

/// Whether it is the neighbour who connects.
fn is_waited_for(neighbor: &Neighbor) -> bool {
    neighbor.passive || matches!(neighbor.remote, Remote::Prefix(_))
}

/// From where a peer may connect.
fn expected(neighbor: &Neighbor) -> Option<Expected> {
    Some(Expected { from: origin(neighbor)?, transport: neighbor.transport.clone() })
}

/// Addresses that a peer can have, if that is known.
fn origin(neighbor: &Neighbor) -> Option<Prefix> {
    match &neighbor.remote {
        Remote::Address { address, .. } => Some(Prefix::from(*address)),
        Remote::Prefix(prefix) => Some(*prefix),
        Remote::Interface { .. } => None,
    }
}

/// Neighbours whose prefix holds the place of another where a listening socket could mistake the key of one for that of the
/// other, and that other. Of MD5 keys Linux takes that of the longest prefix. Of keys of TCP-AO it takes any that fits, or
/// refuses to have the second one, or one of the other kind beside it; and within the prefix of one it takes nothing that
/// is not signed (net/ipv4/tcp_ao.c).
fn overlaps(neighbors: &BTreeMap<PeerName, Arc<Neighbor>>) -> BTreeMap<PeerName, PeerName> {
    let by_ao = |neighbor: &Neighbor| matches!(neighbor.transport.signature, Some(Signature::Ao { .. }));
    let is_mistaken = |outer: &Neighbor, inner: &Neighbor| match &inner.transport.signature {
        Some(_) => outer.transport.signature.is_some() && (by_ao(outer) || by_ao(inner)),
        None => by_ao(outer) && is_waited_for(inner),
    };
    let overlap = |name: &PeerName, outer: &Neighbor| {
        let Remote::Prefix(prefix) = &outer.remote else { return None };
        let holds = |other: &PeerName, inner: &Neighbor| {
            let Some(from) = origin(inner) else { return false };
            let is_wider = match &inner.remote {
                Remote::Prefix(_) => (prefix.prefix(), other) < (from.prefix(), name),
                _ => true,
            };
            is_wider && prefix.contains(from.ip())
        };
        let mut here = neighbors.iter().filter(|(_, inner)| outer.transport.vrf == inner.transport.vrf);
        let (other, _) = here.find(|(other, inner)| holds(other, inner) && is_mistaken(outer, inner))?;
        Some((name.clone(), other.clone()))
    };
    neighbors.iter().filter_map(|(name, outer)| overlap(name, outer)).collect()
}
