//! What this node advertises by BGP from one step of the speaker to the next, and who is told of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ferrogate_wire::{bfd::Diagnostic, bgp};

use super::{
    Action, Report,
    advertise::{self, Advertised, Peering, Table, Terms, Unpeered},
    announce::{Policy, Silence, Standing},
    bgp::{BfdState, Closing, Departure, SessionStatus, State, Wanted},
};
use crate::{
    model::{
        Family, Labels, NodeName, ObjectRef, PeerName, ServiceKey,
        node::EXCLUDE_LABEL,
        peer::{BgpPeer, PerNode},
    },
    snapshot::Snapshot,
    write::{self, BgpClose, BgpSession, ClosedBy, Severity, Write},
};

/// The part of a speaker that advertises.
#[derive(Debug)]
pub(super) struct Advertiser {
    node: NodeName,
    policy: Policy,
    peering: Peering,
    terms: Option<Terms>,
    table: Table,
    /// No Service has been waiting to be carried at one time at least.
    is_complete: bool,
    /// The last [`Action::Peer`].
    wanted: Option<Arc<Wanted>>,
    /// What was written last of each session; of a BGPPeer that stands for a prefix there may be several.
    sessions: BTreeMap<PeerName, BTreeMap<Option<IpAddr>, BgpSession>>,
    /// What is written, in place of sessions, of BGPPeers that are for this node and yet not spoken with.
    unspoken: BTreeMap<PeerName, BgpSession>,
    departing: Option<Departure>,
    has_parted: bool,
}

impl Advertiser {
    pub(super) fn new(node: NodeName, policy: Policy) -> Self {
        Self {
            node,
            policy,
            peering: Peering::default(),
            terms: None,
            table: Table::default(),
            is_complete: false,
            wanted: None,
            sessions: BTreeMap::new(),
            unspoken: BTreeMap::new(),
            departing: None,
            has_parted: false,
        }
    }

    /// Whether nothing has been decided yet.
    pub(super) fn is_new(&self) -> bool {
        self.terms.is_none()
    }

    pub(super) fn peering(&self) -> &Peering {
        &self.peering
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Whether routers were spoken with that have not been told of the end.
    pub(super) fn is_speaking(&self) -> bool {
        self.wanted.is_some() && !self.has_parted
    }

    /// Whether traffic for this address of a Service is drawn here.
    pub(super) fn draws(&self, service: &ServiceKey, address: IpAddr) -> bool {
        let routes = self.table.advertised(service).filter(|_| !self.has_parted).map(|advertised| &advertised.routes);
        routes.is_some_and(|routes| routes.keys().any(|prefix| prefix.contains(address)))
    }

    /// Looks at everything that Services have in common again; whether all of them have to be, too.
    pub(super) fn reconsider(
        &mut self,
        snapshot: &Snapshot,
        standing: Option<&Standing>,
        actions: &mut Vec<Action>,
    ) -> bool {
        let mut peering = advertise::peering(snapshot, &self.node, self.policy.data_path);
        for (name, neighbor) in &mut peering.neighbors {
            // Who compares the two sees at once that nothing is different.
            if let Some(before) = self.peering.neighbors.get(name).filter(|before| *before == neighbor) {
                neighbor.clone_from(before);
            }
        }
        let is_for_others = |why: &Unpeered| matches!(why, Unpeered::NotSelected | Unpeered::NodeUnknown);
        let mut unspoken = BTreeMap::new();
        for (key, why) in peering.unpeered.iter().filter(|(_, why)| !is_for_others(why)) {
            if self.peering.unpeered.get(key) != Some(why) {
                let (peer, why) = (key.clone(), why.clone());
                actions.push(Action::Report(Report::Unpeered { peer, why }));
            }
            // What is written goes by names, and this one is taken.
            let is_nameless = matches!(why, Unpeered::SameName { .. });
            if let Some(peer) = snapshot.bgp_peers.get(key).filter(|_| !is_nameless) {
                unspoken.insert(peer.name.clone(), unspoken_session(peer, why));
            }
        }
        let before = std::mem::replace(&mut self.unspoken, unspoken.clone());
        for peer in before.keys().filter(|peer| !unspoken.contains_key(*peer)) {
            self.change_session(peer, actions, |sessions| _ = sessions.remove(&None));
        }
        for (peer, session) in unspoken {
            self.change_session(&peer, actions, |sessions| *sessions = BTreeMap::from([(None, session)]));
        }
        self.peering = peering;
        let terms = Terms::new(snapshot, &self.node, self.policy, standing, &self.peering.neighbors);
        let is_upset = self.terms.as_ref().is_none_or(|before| terms.upsets(before));
        self.terms = Some(terms);
        is_upset
    }

    /// Decides about these Services again, and tells who reads about it.
    pub(super) fn decide<'a>(
        &mut self,
        snapshot: &Snapshot,
        services: impl IntoIterator<Item = &'a ServiceKey>,
        actions: &mut Vec<Action>,
    ) {
        let Some(terms) = &self.terms else { return };
        let is_silenced = matches!(self.departing, Some(Departure::Leave { .. }));
        for key in services {
            let served = snapshot.services.get(key).filter(|service| service.load_balancer.is_some());
            let outcome = served.map(|service| terms.of(service));
            let peers = |outcome: Option<&Result<Advertised, Silence>>| match outcome {
                Some(Ok(advertised)) => advertised.peers.clone(),
                _ => BTreeSet::new(),
            };
            let new = peers(outcome.as_ref());
            let old = peers(self.table.note(key, outcome).as_ref());
            let said = || snapshot.advertised_by.get(key).and_then(|nodes| nodes.get(&self.node));
            // An earlier life of this speaker may have said the same.
            if old == new || is_silenced || (old.is_empty() && said() == Some(&new)) {
                continue;
            }
            if old.is_empty() {
                // MetalLB's words: people and alerts look for them.
                let message = format!("announcing from node \"{}\" with protocol \"bgp\"", self.node);
                actions.push(Action::Write(Write::Event(write::Event {
                    object: ObjectRef::service(key),
                    severity: Severity::Normal,
                    reason: "nodeAssigned".to_owned(),
                    message,
                })));
            }
            actions.push(self.status(key, new));
        }
        self.is_complete |= !self.table.is_waiting();
    }

    fn status(&self, service: &ServiceKey, peers: BTreeSet<PeerName>) -> Action {
        Action::Write(Write::BgpStatus { service: service.clone(), node: self.node.clone(), peers })
    }

    /// An earlier life of this speaker may have left statuses of what it advertised and whom it spoke with.
    pub(super) fn clear_old_statuses(&self, snapshot: &Snapshot, actions: &mut Vec<Action>) {
        for (service, _) in snapshot.advertised_by.iter().filter(|(_, nodes)| nodes.contains_key(&self.node)) {
            if self.table.advertised(service).is_none() {
                actions.push(self.status(service, BTreeSet::new()));
            }
        }
        for (node, peer) in snapshot.bgp_sessions.keys() {
            let is_known = self.peering.neighbors.contains_key(peer) || self.unspoken.contains_key(peer);
            if *node == self.node && !is_known {
                actions.push(self.session_write(peer, None));
            }
        }
    }

    /// Wants what has been decided from now on. The first word is for those with somebody to hear it.
    pub(super) fn want(&mut self, actions: &mut Vec<Action>) {
        let is_silent = self.wanted.is_none() && self.peering.neighbors.is_empty();
        if self.has_parted || is_silent {
            return;
        }
        let wanted = Wanted {
            neighbors: self.peering.neighbors.clone(),
            routes: self.table.routes().clone(),
            is_complete: self.is_complete,
            departing: self.departing.clone(),
        };
        if self.wanted.as_deref() != Some(&wanted) {
            let wanted = Arc::new(wanted);
            self.wanted = Some(wanted.clone());
            actions.push(Action::Peer(wanted));
        }
    }

    /// Begins to take leave. Routers keep the routes of a node that will be back; one that is to carry nothing any more
    /// takes them along.
    pub(super) fn depart(&mut self, snapshot: Option<&Snapshot>, actions: &mut Vec<Action>) {
        let leave = |text: &str| Departure::Leave { text: text.to_owned() };
        let is_excluded = |labels: &Labels| !self.policy.ignore_exclude_label && labels.contains_key(EXCLUDE_LABEL);
        let departure = match snapshot.map(|snapshot| snapshot.nodes.get(&self.node)) {
            Some(None) => leave("the node is gone and its speaker stops"),
            Some(Some(node)) if node.unschedulable => leave("the node is cordoned and its speaker stops"),
            Some(Some(node)) if is_excluded(&node.labels) => {
                leave("the node is excluded from load balancing and its speaker stops")
            }
            Some(Some(_)) | None => Departure::Restart,
        };
        if let Departure::Leave { .. } = departure {
            let advertised = self.table.outcomes().filter(|(_, outcome)| outcome.is_ok());
            actions.extend(advertised.map(|(service, _)| self.status(service, BTreeSet::new())));
        }
        self.departing = Some(departure);
    }

    /// Every router has been told of the end. One that comes back finds its sessions again.
    pub(super) fn part(&mut self, actions: &mut Vec<Action>) {
        self.has_parted = self.departing.is_some();
        if let Some(Departure::Leave { .. }) = self.departing {
            let gone = std::mem::take(&mut self.sessions);
            actions.extend(gone.keys().map(|peer| self.session_write(peer, None)));
        }
    }

    /// Tells how a session stands. How one ends that must not be is not of interest any more.
    pub(super) fn session(&mut self, status: &SessionStatus, actions: &mut Vec<Action>) {
        if self.unspoken.contains_key(&status.peer) {
            return;
        }
        self.change_session(&status.peer, actions, |sessions| {
            sessions.insert(status.dynamic, session_of(status));
        });
    }

    /// A session is no more.
    pub(super) fn session_gone(&mut self, peer: &PeerName, remote: Option<IpAddr>, actions: &mut Vec<Action>) {
        if self.unspoken.contains_key(peer) {
            return;
        }
        self.change_session(peer, actions, |sessions| _ = sessions.remove(&remote));
    }

    fn change_session(
        &mut self,
        peer: &PeerName,
        actions: &mut Vec<Action>,
        change: impl FnOnce(&mut BTreeMap<Option<IpAddr>, BgpSession>),
    ) {
        let mut sessions = self.sessions.remove(peer).unwrap_or_default();
        let before = worst(&sessions).cloned();
        change(&mut sessions);
        let now = worst(&sessions).cloned();
        if now != before {
            actions.push(self.session_write(peer, now));
        }
        if !sessions.is_empty() {
            self.sessions.insert(peer.clone(), sessions);
        }
    }

    fn session_write(&self, peer: &PeerName, session: Option<BgpSession>) -> Action {
        let (peer, node, status) = (peer.clone(), self.node.clone(), session.map(Box::new));
        Action::Write(Write::BgpSession { peer, node, status })
    }
}

/// Of several sessions the one that somebody should look at: one that is not established comes first.
fn worst(sessions: &BTreeMap<Option<IpAddr>, BgpSession>) -> Option<&BgpSession> {
    let is_down = |session: &&BgpSession| session.state != State::Established.name();
    sessions.values().find(is_down).or_else(|| sessions.values().next())
}

/// What is written of a BGPPeer that is not spoken with.
fn unspoken_session(peer: &BgpPeer, why: &Unpeered) -> BgpSession {
    let remote = match &peer.place {
        PerNode::Same(place) => place.to_string(),
        PerNode::From(key) => key.to_string(),
    };
    BgpSession { state: State::Idle.name().to_owned(), remote, trouble: why.to_string(), ..BgpSession::default() }
}

/// Why BFD has lost a peer.
fn why_lost(diagnostic: Diagnostic) -> String {
    let text = match diagnostic {
        Diagnostic::None | Diagnostic::Reserved(_) => "the peer does not say why",
        Diagnostic::ControlDetectionTimeExpired => "nothing was heard for the detection time",
        Diagnostic::EchoFunctionFailed => "the peer says that its echo has failed",
        Diagnostic::NeighborSignaledSessionDown => "the peer says that its session is down",
        Diagnostic::ForwardingPlaneReset => "the peer says that its forwarding has started anew",
        Diagnostic::PathDown => "the peer says that the path is down",
        Diagnostic::ConcatenatedPathDown => "the peer says that a path behind it is down",
        Diagnostic::AdministrativelyDown => "the peer has switched its session off",
        Diagnostic::ReverseConcatenatedPathDown => "the peer says that a path back from behind it is down",
    };
    text.to_owned()
}

/// What is written of a session.
fn session_of(status: &SessionStatus) -> BgpSession {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let family = |family: &bgp::Family| match family {
        bgp::Family::Ipv4Unicast => Family::V4,
        bgp::Family::Ipv6Unicast => Family::V6,
    };
    let close = |closing: &Closing| BgpClose {
        by: match closing {
            Closing::Sent(notification) => ClosedBy::Us { code: notification.code, subcode: notification.subcode },
            Closing::Received(notification) => {
                ClosedBy::Peer { code: notification.code, subcode: notification.subcode }
            }
            Closing::Lost(_) => ClosedBy::Connection,
        },
        text: closing.to_string(),
    };
    BgpSession {
        state: status.state.name().to_owned(),
        remote: status.remote.clone(),
        remote_asn: status.remote_asn,
        remote_identifier: status.remote_identifier,
        local_address: status.local_address,
        remote_address: status.remote_address,
        hold_time_seconds: status.hold_time_seconds,
        families: status.families.iter().map(family).collect(),
        prefixes_sent: count(status.prefixes_sent),
        prefixes_received: status.prefixes_received,
        withheld: status.withheld.iter().map(|(why, routes)| (why.reason().to_owned(), count(*routes))).collect(),
        flaps: status.flaps,
        last_close: status.last_close.as_ref().map(close),
        bfd: status.bfd.map(|state| match state {
            BfdState::Down => "Down".to_owned(),
            BfdState::Up => "Up".to_owned(),
        }),
        bfd_losses: status.bfd_losses,
        bfd_last_loss: status.bfd_last_loss.map(why_lost).unwrap_or_default(),
        trouble: status.trouble.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}
