//! Peers: no two in one place on one node.
//!
//! Each session has its own OPEN, so that peers of one node may well see different identifiers and AS numbers of ours.
//! Only two in one place cannot be told apart: a connection that comes in could be of either. An address within the
//! prefix of another peer can be: the address counts. Where a Node says where a peer is, its speaker finds out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ferrogate_core::{
    model::{
        InterfaceName, NodeName, ObjectKey, PeerName, Prefix,
        advertisement::BgpAdvertisement,
        bfd_profile::BfdProfile,
        node::Node,
        peer::{BgpPeer, Key, Password, PasswordPlace, PeerPlace},
    },
    snapshot::{Fault, PasswordFault, Problem},
};
use imbl::OrdMap;

use super::Board;
use crate::{
    objects::{BgpPeerFact, Fact, Id, Kind},
    translate::Translator,
};

type Nodes = OrdMap<NodeName, Arc<Node>>;

/// Which peers are in each place.
pub(super) struct Places<'a> {
    nodes: &'a Nodes,
    taken: BTreeMap<(Option<InterfaceName>, PeerPlace), Vec<Arc<BgpPeer>>>,
}

impl<'a> Places<'a> {
    pub(super) fn new(nodes: &'a Nodes) -> Self {
        Self { nodes, taken: BTreeMap::new() }
    }

    /// Those that a peer in this place could not be told from, and where each of them is.
    fn others(&self, vrf: &Option<InterfaceName>, place: &PeerPlace) -> Vec<(&PeerPlace, &Arc<BgpPeer>)> {
        let PeerPlace::Prefix(prefix) = place else {
            let here = self.taken.get_key_value(&(vrf.clone(), place.clone()));
            return here.into_iter().flat_map(|((_, at), peers)| peers.iter().map(move |peer| (at, peer))).collect();
        };
        // Prefixes are few.
        let overlapping = self.taken.iter().filter(|((other_vrf, other), _)| {
            matches!(other, PeerPlace::Prefix(other) if other_vrf == vrf && overlap(prefix, other))
        });
        overlapping.flat_map(|((_, at), peers)| peers.iter().map(move |peer| (at, peer))).collect()
    }
}

/// Whether two prefixes have an address in common: the longer one then lies within the other.
fn overlap(one: &Prefix, other: &Prefix) -> bool {
    match (one, other) {
        (Prefix::V4(one), Prefix::V4(other)) => one.overlaps(*other),
        (Prefix::V6(one), Prefix::V6(other)) => one.overlaps(*other),
        _ => false,
    }
}

fn place_of(peer: &BgpPeer) -> Option<(Option<InterfaceName>, PeerPlace)> {
    Some((peer.vrf.clone(), peer.place.same()?.clone()))
}

impl Board for Places<'_> {
    fn objections(&self, id: &Id, fact: &Fact) -> Vec<Problem> {
        let Fact::BgpPeer(BgpPeerFact { peer, .. }) = fact else { return Vec::new() };
        let Some((vrf, place)) = place_of(peer) else { return Vec::new() };
        let clash = self.others(&vrf, &place).into_iter().find_map(|(at, other)| {
            let both = |node: &Node| peer.allows_node(&node.labels) && other.allows_node(&node.labels);
            let node = meeting(self.nodes, both)?;
            let shown = if *at == place { place.to_string() } else { format!("{place} overlaps with {at}, which") };
            let place = match &vrf {
                None => shown,
                Some(vrf) => format!("{shown} in VRF {vrf}"),
            };
            Some(Fault::SamePlace { place, other: other.name.clone(), node })
        });
        let field = match place {
            PeerPlace::Address(_) => "spec.peerAddress",
            PeerPlace::Interface(_) => "spec.interface",
            PeerPlace::Prefix(_) => "spec.peerPrefix",
        };
        let problem =
            |fault| Problem { object: Some(id.object()), generation: peer.generation, field: field.to_owned(), fault };
        clash.map(problem).into_iter().collect()
    }

    fn place(&mut self, _: &Id, fact: &Fact) {
        let Fact::BgpPeer(BgpPeerFact { peer, .. }) = fact else { return };
        if let Some(place) = place_of(peer) {
            self.taken.entry(place).or_default().push(peer.clone());
        }
    }
}

/// Where two objects that choose nodes meet. Before any node is known they are taken to meet everywhere.
pub(super) fn meeting(nodes: &Nodes, both: impl Fn(&Node) -> bool) -> Option<String> {
    if nodes.is_empty() {
        return Some("every node".to_owned());
    }
    nodes.values().find(|node| both(node)).map(|node| format!("node {}", node.name))
}

/// Peers that are watched by BFD echo, with the profile that says so.
pub(super) struct Peers(Vec<(Arc<BgpPeer>, String)>);

impl Peers {
    pub(super) fn new(peers: &OrdMap<ObjectKey, Arc<BgpPeer>>, profiles: &OrdMap<ObjectKey, Arc<BfdProfile>>) -> Self {
        let with_echo = profiles.iter().filter(|(_, profile)| profile.echo_interval.is_some());
        let with_echo: BTreeSet<&str> = with_echo.map(|(key, _)| &*key.name).collect();
        let echoing = peers.values().filter_map(|peer| {
            let name = peer.bfd_profile.as_ref().filter(|name| with_echo.contains(name.as_str()))?;
            Some((peer.clone(), name.clone()))
        });
        Self(echoing.collect())
    }

    /// A peer that this advertisement reaches, and its profile.
    pub(super) fn echoing(&self, advertisement: &BgpAdvertisement) -> Option<(&PeerName, &str)> {
        let reached = self.0.iter().find(|(peer, _)| peer.is_among(&advertisement.peers));
        reached.map(|(peer, profile)| (&peer.name, profile.as_str()))
    }
}

impl Translator {
    /// A peer with the password of its Secret, if it names one and that can be used.
    pub(super) fn with_password(&self, peer: &Arc<BgpPeer>) -> Arc<BgpPeer> {
        let Some(Password { place: PasswordPlace::Secret { name, .. }, tcp_ao }) = &peer.password else {
            return peer.clone();
        };
        let Ok(key) = self.password(peer, name) else { return peer.clone() };
        let place = PasswordPlace::Secret { name: name.clone(), key: Some(key) };
        let password = Password { place, tcp_ao: *tcp_ao };
        Arc::new(BgpPeer { password: Some(password), ..(**peer).clone() })
    }

    /// Why the password of this peer is not to be had, where Secrets are looked at.
    pub(super) fn no_password(&self, peer: &BgpPeer) -> Option<Fault> {
        let Some(Password { place: PasswordPlace::Secret { name, .. }, .. }) = &peer.password else { return None };
        let fault = self.password(peer, name).err().filter(|_| self.rules.secrets)?;
        Some(Fault::NoPassword { secret: format!("{}/{name}", peer.key.namespace), fault })
    }

    fn password(&self, peer: &BgpPeer, secret: &str) -> Result<Key, PasswordFault> {
        match self.objects.in_force(&Id::new(Kind::Secret, &peer.key.namespace, secret)).map(|found| &**found.fact) {
            Some(Fact::Secret(password)) => password.clone(),
            _ => Err(PasswordFault::Missing),
        }
    }
}
