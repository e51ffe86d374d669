//! Adj-RIB-Out (RFC 4271 §3.2): wanted routes minus sent routes make UPDATEs.
//!
//! Only what differs goes out: a route that changes replaces itself, one that changes back before it was sent is not
//! sent at all, and what waits is a set of prefixes, however long a peer does not read.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ferrogate_wire::bgp::{self, Asn, Attributes, Dialect, Family, NextHop};

use super::{Ends, Neighbor, Remote, Routes, Withheld};
use crate::model::{PeerName, Prefix, community::Community};

/// How many prefixes are looked at before what came of it must be written: some dozen messages.
const BATCH: usize = 4096;

/// GRACEFUL_SHUTDOWN (RFC 8326).
const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;

/// How many times more our AS number stands in the path of a route that is about to go: longer than the detours that
/// operators commonly make.
const DRAIN_PREPEND: usize = 3;

/// What a session makes of a route.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) peer: PeerName,
    pub(super) local_asn: Asn,
    pub(super) is_internal: bool,
    pub(super) dialect: Dialect,
    /// What both sides carry, with the next hop of each; none where we have no address for it.
    pub(super) families: BTreeMap<Family, Option<NextHop>>,
}

/// What one peer was told, and what it has yet to be told.
#[derive(Debug)]
pub(super) struct RibOut {
    terms: Terms,
    sent: BTreeMap<Prefix, Arc<Attributes>>,
    dirty: BTreeSet<Prefix>,
    /// Those of the dirty that the peer has and wants to hear of even if nothing about them is new.
    again: BTreeSet<Prefix>,
    withheld: BTreeMap<Prefix, Withheld>,
    /// How many of them there are for each reason.
    withheld_counts: BTreeMap<Withheld, usize>,
    /// Families whose routes have not all been sent yet (RFC 4724 §2).
    unfinished: BTreeSet<Family>,
    /// Families that are being sent again (RFC 7313).
    refreshing: BTreeSet<Family>,
    /// Those of them whose beginning has yet to be told.
    begun: BTreeSet<Family>,
    /// Everything goes out with lower preference than any other path has.
    draining: bool,
    /// Nothing is wanted any more.
    emptied: bool,
}

impl RibOut {
    /// Nothing sent yet, everything wanted.
    pub(super) fn new(terms: Terms, routes: &Routes) -> Self {
        let unfinished = terms.families.keys().copied().collect();
        Self {
            terms,
            sent: BTreeMap::new(),
            dirty: routes.keys().copied().collect(),
            again: BTreeSet::new(),
            withheld: BTreeMap::new(),
            withheld_counts: BTreeMap::new(),
            unfinished,
            refreshing: BTreeSet::new(),
            begun: BTreeSet::new(),
            draining: false,
            emptied: false,
        }
    }

    /// These may be wanted otherwise now.
    pub(super) fn touch(&mut self, prefixes: impl IntoIterator<Item = Prefix>) {
        self.dirty.extend(prefixes);
    }

    /// Sends a family again (RFC 2918); framed, where both sides know how, but not before its End-of-RIB (RFC 7313 §4).
    pub(super) fn refresh(&mut self, family: Family, framed: bool) {
        if self.again.iter().any(|prefix| Family::of(prefix) == family) {
            // It is on its way already.
            return;
        }
        // What the peer has stays known: it may have to be withdrawn before it is sent again.
        self.again.extend(self.sent.keys().filter(|prefix| Family::of(prefix) == family));
        self.dirty.extend(&self.again);
        if framed && !self.unfinished.contains(&family) {
            self.begun.insert(family);
            self.refreshing.insert(family);
        }
    }

    /// Everything goes out again with the lowest preference.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.dirty.extend(self.sent.keys().copied());
    }

    /// Takes everything back.
    pub(super) fn empty(&mut self) {
        self.emptied = true;
        self.dirty.clear();
        self.dirty.extend(self.sent.keys().copied());
    }

    pub(super) fn has_more(&self, is_complete: bool) -> bool {
        !self.dirty.is_empty() || (is_complete && !self.unfinished.is_empty()) || !self.refreshing.is_empty()
    }

    /// How many routes the peer has of us.
    pub(super) fn len(&self) -> usize {
        self.sent.len()
    }

    /// How much the peer does not get although it should, and why.
    pub(super) fn withheld(&self) -> &BTreeMap<Withheld, usize> {
        &self.withheld_counts
    }

    fn withhold(&mut self, prefix: Prefix, reason: Option<Withheld>) {
        let before = match reason {
            Some(reason) => self.withheld.insert(prefix, reason),
            None => self.withheld.remove(&prefix),
        };
        if before == reason {
            return;
        }
        if let Some(before) = before
            && let Some(count) = self.withheld_counts.get_mut(&before)
        {
            *count -= 1;
            self.withheld_counts.retain(|_, count| *count > 0);
        }
        if let Some(reason) = reason {
            *self.withheld_counts.entry(reason).or_default() += 1;
        }
    }

    /// Whether the peer has yet to be told that it knows all routes.
    pub(super) fn is_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// The next messages; there may be none although there was something to look at. What `is_complete` says is that
    /// nothing else is about to become wanted, so that a peer which kept our routes through a restart may forget the others.
    pub(super) fn next(&mut self, routes: &Routes, is_complete: bool) -> Vec<Vec<u8>> {
        let mut announced: BTreeMap<Arc<Attributes>, Vec<Prefix>> = BTreeMap::new();
        let mut withdrawn = Vec::new();
        for _ in 0..BATCH {
            let Some(prefix) = self.dirty.pop_first() else { break };
            let is_asked_for = self.again.remove(&prefix);
            let wanted = if self.emptied { None } else { self.wanted(routes, prefix) };
            let (wanted, withheld) = match wanted {
                Some(Ok(attributes)) => (Some(attributes), None),
                Some(Err(reason)) => (None, Some(reason)),
                None => (None, None),
            };
            self.withhold(prefix, withheld);
            match wanted {
                Some(attributes) => {
                    if !is_asked_for && self.sent.get(&prefix).is_some_and(|sent| **sent == attributes) {
                        continue;
                    }
                    // Routes of one batch that have the same attributes share them.
                    let attributes = match announced.get_key_value(&attributes) {
                        Some((known, _)) => known.clone(),
                        None => Arc::new(attributes),
                    };
                    announced.entry(attributes.clone()).or_default().push(prefix);
                    self.sent.insert(prefix, attributes);
                }
                None => {
                    if self.sent.remove(&prefix).is_some() {
                        withdrawn.push(prefix);
                    }
                }
            }
        }
        let dialect = self.terms.dialect;
        let begun = std::mem::take(&mut self.begun).into_iter();
        let mut messages: Vec<Vec<u8>> = begun.map(|family| bgp::route_refresh(family, bgp::Refresh::Begin)).collect();
        messages.extend(bgp::withdraw(dialect, &withdrawn));
        for (attributes, prefixes) in &announced {
            messages.extend(bgp::announce(dialect, attributes, prefixes));
        }
        if self.dirty.is_empty() {
            let refreshed = std::mem::take(&mut self.refreshing);
            messages.extend(refreshed.into_iter().map(|family| bgp::route_refresh(family, bgp::Refresh::End)));
            if is_complete {
                messages.extend(std::mem::take(&mut self.unfinished).into_iter().map(bgp::end_of_rib));
            }
        }
        messages
    }

    /// The attributes of a route for this peer, or why it does not get it. `None`: it is not meant to have it.
    fn wanted(&self, routes: &Routes, prefix: Prefix) -> Option<Result<Attributes, Withheld>> {
        let route = routes.get(&prefix)?;
        let mut parts =
            route.parts.iter().filter(|part| part.peers.is_empty() || part.peers.contains(&self.terms.peer));
        let first = parts.next()?;
        let parts = || std::iter::once(first).chain(parts.clone());
        let next_hop = match self.terms.families.get(&Family::of(&prefix)) {
            None => return Some(Err(Withheld::FamilyNotNegotiated)),
            Some(None) => return Some(Err(Withheld::NoNextHop)),
            Some(Some(next_hop)) => *next_hop,
        };
        // It stays at full preference for as long as anything on this node wants it so.
        let draining = self.draining || parts().all(|part| part.draining);
        let mut attributes = Attributes {
            as_path: Vec::new(),
            next_hop,
            multi_exit_disc: parts().filter_map(|part| part.multi_exit_disc).min(),
            local_pref: None,
            communities: BTreeSet::new(),
            extended_communities: BTreeSet::new(),
            large_communities: BTreeSet::new(),
        };
        for community in parts().flat_map(|part| part.communities.iter()) {
            match *community {
                Community::Standard(high, low) => {
                    attributes.communities.insert(u32::from(high) << 16 | u32::from(low));
                }
                Community::Large(a, b, c) => {
                    attributes.large_communities.insert([a, b, c]);
                }
                Community::Extended(octets) => {
                    attributes.extended_communities.insert(octets);
                }
            }
        }
        if draining {
            attributes.communities.insert(GRACEFUL_SHUTDOWN);
        }
        let prepend = parts().map(|part| usize::from(part.prepend)).max().unwrap_or_default();
        if self.terms.is_internal {
            // Without a wish it is what RFC 4271 §9.1.1 leaves to us and routers take for no wish.
            let wished = parts().filter_map(|part| part.local_pref).max();
            attributes.local_pref =
                Some(if draining { 0 } else { wished.map_or(DEFAULT_LOCAL_PREF, |wish| wish.get()) });
        } else {
            let extra = if draining { DRAIN_PREPEND } else { 0 };
            attributes.as_path = vec![self.terms.local_asn; 1 + prepend + extra];
        }
        let fits = attributes.fit(self.terms.dialect, Family::of(&prefix));
        Some(if fits { Ok(attributes) } else { Err(Withheld::TooManyAttributes) })
    }
}

/// LOCAL_PREF where nobody wants another: what routers give routes that come without.
const DEFAULT_LOCAL_PREF: u32 = 100;

/// The next hops of a session: this node, by the address it is spoken with, or one of the same interface where that is
/// of the other family.
pub(super) fn next_hops(
    neighbor: &Neighbor,
    ends: &Ends,
    families: &BTreeSet<Family>,
    ipv4_by_ipv6: bool,
) -> BTreeMap<Family, Option<NextHop>> {
    let mut ipv4 = Vec::new();
    let mut ipv6 = Vec::new();
    for address in ends.addresses.iter().map(Prefix::ip).filter(|address| !address.is_loopback()) {
        match address {
            IpAddr::V4(address) => ipv4.push(address),
            IpAddr::V6(address) => ipv6.push(address),
        }
    }
    match ends.local {
        IpAddr::V4(local) => ipv4.insert(0, local),
        IpAddr::V6(local) => ipv6.insert(0, local),
    }
    let by_ipv4 = ipv4.first().copied().map(NextHop::Ipv4);
    let first = |is_link_local: bool| ipv6.iter().copied().find(|own| own.is_unicast_link_local() == is_link_local);
    // A link-local address says something only to those on the link.
    let is_unnumbered = matches!(neighbor.remote, Remote::Interface { .. });
    let is_on_link = (neighbor.is_direct() || is_unnumbered) && ends.interface.is_some();
    let link_local = first(true).filter(|_| is_on_link);
    let by_ipv6 = match (first(false), link_local) {
        (Some(global), link_local) => Some(NextHop::Ipv6 { global, link_local }),
        (None, Some(only)) => Some(NextHop::Ipv6 { global: only, link_local: None }),
        (None, None) => None,
    };
    let next_hop = |family: &Family| match family {
        Family::Ipv6Unicast => by_ipv6,
        Family::Ipv4Unicast if is_unnumbered && ipv4_by_ipv6 => by_ipv6,
        Family::Ipv4Unicast => by_ipv4.or(by_ipv6.filter(|_| ipv4_by_ipv6)),
    };
    families.iter().map(|family| (*family, next_hop(family))).collect()
}
