//! The shared Ingress entry of a cluster: while an IngressClass of ours exists, its Service and its EndpointSlices.
//!
//! The Service and the slices as they stand are the only memory: the target port that was chosen once is read back
//! from them. Nothing is taken away because a fact is missing, only because the last IngressClass of ours is gone; a
//! watch that failed leaves the facts as they were.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
};

use super::{Books, Clock, flight::Target};
use crate::{
    model::{
        Family, NodeName,
        entry::{
            Entry, EntryEndpoint, EntryPort, EntryService, EntrySlice, EntryWish, FIRST_TARGET_PORT, HTTP_PORT,
            HTTP_PORT_NAME, ProxyPod, TARGET_PORTS,
        },
    },
    snapshot::Snapshot,
    write::Write,
};

/// How many endpoints the API server takes in one EndpointSlice. Of more nodes, the first by name are named.
const MAX_ENDPOINTS: usize = 1000;

impl Books {
    /// What has to be written for the entry to be as it should.
    pub(super) fn entry_writes(&mut self, clock: Clock) -> Vec<Write> {
        let facts = self.facts.clone();
        let Some(entry) = &facts.entry else { return Vec::new() };
        let key = entry.key();
        let mut writes = Vec::new();

        let (service, shown) = match &entry.wish {
            Some(wish) => {
                let service = wished_service(entry, wish);
                let shown = entry.service.as_ref().is_some_and(|observed| shows(observed, &service));
                (Some(service), shown)
            }
            None => (None, !entry.service.as_ref().is_some_and(|observed| observed.is_labelled)),
        };
        let write = Write::EntryService { service: key.clone(), wish: service };
        writes.extend(self.flights.wish(Target::EntryService, write, shown, clock));

        let slices = wished_slices(&facts, entry);
        for family in [Family::V4, Family::V6] {
            let (wish, observed) = (slices.get(&family), entry.slices.get(&family));
            let write = Write::EntrySlice { service: key.clone(), family, wish: wish.cloned() };
            writes.extend(self.flights.wish(Target::EntrySlice(family), write, wish == observed, clock));
        }
        writes
    }
}

/// Whether the entry may have to be another now.
pub(super) fn differs(last: &Snapshot, next: &Snapshot) -> bool {
    let Some(entry) = &next.entry else { return false };
    let key = entry.key();
    last.entry != next.entry || last.nodes != next.nodes || last.services.get(&key) != next.services.get(&key)
}

/// The Service as it should stand.
fn wished_service(entry: &Entry, wish: &EntryWish) -> EntryService {
    let observed = entry.service.as_ref();
    let port = EntryPort {
        name: HTTP_PORT_NAME.to_owned(),
        port: HTTP_PORT,
        target: Some(target_port(entry)),
        has_node_port: wish.node_ports,
    };
    EntryService {
        is_labelled: true,
        is_load_balancer: true,
        is_local: true,
        prefers_dual_stack: true,
        // The API server lets nobody change it.
        class: observed.map_or_else(|| entry.class.clone(), |observed| observed.class.clone()),
        allocates_node_ports: wish.node_ports,
        ports: vec![port],
    }
}

/// The number the proxies listen on for HTTP: the one they listen on already, if there is one.
fn target_port(entry: &Entry) -> NonZeroU16 {
    let of_service = entry.service.as_ref().and_then(|service| service.target_of(HTTP_PORT));
    let of_slices = || {
        let mut ports = entry.slices.values().flat_map(|slice| &slice.ports);
        ports.find(|(name, port)| name == HTTP_PORT_NAME && TARGET_PORTS.contains(&port.get())).map(|(_, port)| *port)
    };
    let taken: BTreeSet<NonZeroU16> =
        entry.service.iter().flat_map(|service| service.targets().map(|(_, target)| target)).collect();
    let first_free = || TARGET_PORTS.filter_map(NonZeroU16::new).find(|port| !taken.contains(port));
    of_service.or_else(of_slices).or_else(first_free).unwrap_or(FIRST_TARGET_PORT)
}

/// Whether a Service is as it is wished for. Ports that the user added are the user's.
fn shows(observed: &EntryService, wish: &EntryService) -> bool {
    let shows_port = |wished: &EntryPort| {
        observed.ports.iter().any(|port| {
            (&port.name, port.port, port.target) == (&wished.name, wished.port, wished.target)
                && (wish.allocates_node_ports || !port.has_node_port)
        })
    };
    observed.is_labelled
        && observed.is_load_balancer
        && observed.is_local
        && observed.prefers_dual_stack
        && observed.allocates_node_ports == wish.allocates_node_ports
        && wish.ports.iter().all(shows_port)
}

/// The slices as they should stand: one for each family of the Service.
fn wished_slices(facts: &Snapshot, entry: &Entry) -> BTreeMap<Family, EntrySlice> {
    if entry.wish.is_none() {
        return BTreeMap::new();
    }
    let (Some(observed), Some(service)) = (&entry.service, facts.services.get(&entry.key())) else {
        // Its families are not known before it is there. Slices of one that was just deleted remember its port.
        return entry.slices.clone();
    };
    let families: BTreeSet<Family> = service.cluster_ips.iter().map(|&address| Family::of(address)).collect();
    let ports = observed.targets().map(|(port, target)| (port.name.clone(), target));
    let ports: BTreeSet<(String, NonZeroU16)> = ports.collect();
    let slice = |family: Family| {
        let mut by_node: BTreeMap<&NodeName, Vec<&ProxyPod>> = BTreeMap::new();
        for pod in entry.proxies.values() {
            by_node.entry(&pod.node).or_default().push(pod);
        }
        let endpoints = by_node.into_iter().filter_map(|(node, pods)| endpoint(facts, family, node, &pods));
        (family, EntrySlice { ports: ports.clone(), endpoints: endpoints.take(MAX_ENDPOINTS).collect() })
    };
    families.into_iter().map(slice).collect()
}

/// The endpoint that the proxies of one node make together: during an update an old and a new one overlap.
fn endpoint(facts: &Snapshot, family: Family, node: &NodeName, pods: &[&ProxyPod]) -> Option<EntryEndpoint> {
    let of_node = facts.nodes.get(node).into_iter().flat_map(|node| &node.internal_addresses);
    let mut addresses = of_node.chain(pods.iter().flat_map(|pod| &pod.addresses));
    let address = *addresses.find(|&&address| Family::of(address) == family)?;
    Some(EntryEndpoint {
        node: node.clone(),
        address,
        ready: pods.iter().any(|pod| pod.ready && !pod.terminating),
        serving: pods.iter().any(|pod| pod.ready),
        terminating: pods.iter().all(|pod| pod.terminating),
    })
}
