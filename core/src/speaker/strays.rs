//! TCP connections that routers have brought to the wrong node.
//!
//! When a router has one way more or less to an address, it sends many flows elsewhere than before, and not only those of the
//! node that has come or gone (RFC 2992). Whoever gets them knows nothing of their connections, and its kernel would end them
//! by a reset. That is not believed at once: the reset is kept back, and the connection counts as a *stray*, whose packets are
//! offered to all other nodes. The one that it began at takes them, answers the client, and confirms that to the others, who
//! keep silent. What was reset is one packet that the client sends again.
//!
//! ```text
//!                a reset is kept back           offered                 somebody confirms
//!  (not known) ───────────────────────► stray ───────────► asked for ───────────────────────► kept ◄─┐
//!      ▲                                                     │                                 │ └────┘
//!      │         the next reset is believed, and it ends ◄───┘ nobody does                     │ confirmed again
//!      └───────────────────────────────────────────────────────────────────────────────────────┘ nobody does for long
//! ```
//!
//! All of that is the kernel's to do, packet by packet. What is decided here is whom strays are offered to.

use std::{collections::BTreeSet, net::IpAddr};

use ferrogate_wire::ethernet::Mac;
use imbl::OrdSet;

use crate::{
    model::{Family, InterfaceName, NodeName, service::Service},
    speaker::{
        Action, DataPath, NextHop, Report, Speaker, StrayRules,
        announce::{self, Sharing},
        detours::way,
        watch::is_in_common_subnet,
    },
};

/// What is known of strays.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// Every address of a Service.
    addresses: OrdSet<IpAddr>,
    /// There are routers, and other nodes.
    is_wanted: bool,
    next_hops: BTreeSet<NextHop>,
    offered_by: BTreeSet<Mac>,
    /// There are so many other nodes that nobody is asked.
    is_too_much: bool,
    is_news: bool,
}

impl Strays {
    /// Takes in which addresses a Service had and has, all of them being shared as `sharing` says by now.
    pub(super) fn note(&mut self, service: &Service, sharing: &Sharing) {
        for address in announce::addresses(service) {
            let changed = match sharing.of(address).next() {
                Some(_) => self.addresses.insert(address).is_none(),
                None => self.addresses.remove(&address).is_some(),
            };
            self.is_news |= changed && self.is_wanted;
        }
    }

    /// Whether other nodes bring back what has begun at this one.
    pub(super) fn are_offered(&self) -> bool {
        self.is_wanted && !self.next_hops.is_empty()
    }

    /// Everything, if it is something else than when this was last asked.
    pub(super) fn news(&mut self) -> Option<StrayRules> {
        let all = || match self.is_wanted {
            true => StrayRules {
                addresses: self.addresses.clone(),
                next_hops: self.next_hops.clone(),
                offered_by: self.offered_by.clone(),
            },
            false => StrayRules::default(),
        };
        std::mem::take(&mut self.is_news).then(all)
    }
}

impl Speaker {
    /// Has strays offered to those who are there, if there are routers.
    pub(super) fn follow_others(&mut self, actions: &mut Vec<Action>) {
        let Some(snapshot) = self.snapshot.as_ref().filter(|_| self.interfaces.is_some()) else { return };
        let has_routers = !snapshot.bgp_peers.is_empty() && !snapshot.bgp_advertisements.is_empty();
        let is_wanted = has_routers && self.membership.has_members();
        self.strays.is_news |= std::mem::replace(&mut self.strays.is_wanted, is_wanted) != is_wanted;
        if !is_wanted {
            return;
        }
        let (mut next_hops, nodes) = self.others();
        let is_too_much = nodes > StrayRules::MAX_NODES;
        if is_too_much {
            next_hops.clear();
        }
        if is_too_much && !self.strays.is_too_much {
            actions.push(Action::Report(Report::TooManyNodes { nodes }));
        }
        self.strays.is_too_much = is_too_much;
        let offered_by = self.membership.macs().into_keys().collect();
        self.strays.is_news |= next_hops != self.strays.next_hops || offered_by != self.strays.offered_by;
        (self.strays.next_hops, self.strays.offered_by) = (next_hops, offered_by);
    }

    /// Where the other nodes are, on links of this one, and how many these are.
    fn others(&self) -> (BTreeSet<NextHop>, usize) {
        // With kube-proxy a node goes on without its speaker, and nobody keeps its resets back then.
        let is_silent = |is_leaving: bool| !is_leaving || self.config.data_path == DataPath::Proxy;
        let nodes = self.membership.present().filter(|(_, is_leaving)| is_silent(*is_leaving));
        let interfaces: BTreeSet<InterfaceName> = self.own.links.keys().cloned().collect();
        let (mut next_hops, mut count) = (BTreeSet::new(), 0);
        for (node, _) in nodes {
            let before = next_hops.len();
            let of = |family| self.next_hop(node, &interfaces, family);
            next_hops.extend([Family::V4, Family::V6].into_iter().filter_map(of));
            count += usize::from(next_hops.len() > before);
        }
        (next_hops, count)
    }

    /// Where a node is found that is known to be on a link of this one.
    fn next_hop(&self, node: &NodeName, interfaces: &BTreeSet<InterfaceName>, family: Family) -> Option<NextHop> {
        let there = self.membership.whereabouts(node)?;
        let way = way(Some(there), &self.own.links, interfaces, family).ok().filter(|way| way.is_sound)?;
        let ours = self.own.links.get(way.interface)?;
        // Links of one name, and all link-local addresses, count as near to whoever looks for candidates.
        let is_it = |address: Option<_>| address.map(IpAddr::from) == Some(way.address);
        let mut theirs = there.links.into_iter().flat_map(|links| links.values());
        let is_near = ours.is_near(way.address)
            || theirs.any(|theirs| is_it(theirs.watch_ipv6) && is_in_common_subnet(ours, theirs));
        let interface = self.interfaces.as_ref()?.get(way.interface).filter(|_| is_near)?.index;
        Some(NextHop { address: way.address, interface })
    }
}
