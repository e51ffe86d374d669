//! What must be true once nothing is broken and time has passed. It is told in the words of a user, not of `core`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ferrogate_core::{
    model::{
        NodeName,
        node::EXCLUDE_LABEL,
        service::{Service, TrafficPolicy},
    },
    speaker::DataPath,
};

use super::{Violation, World, facts};

impl World {
    /// Checks that every address with a usable endpoint and an able node has exactly one owner, that everybody on the
    /// link knows it, and that statuses say so.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn check_settled(&mut self) -> Result<(), Violation> {
        let mut owners: BTreeMap<IpAddr, Option<usize>> = BTreeMap::new();
        for service in self.truth.services.values().filter(|service| service.load_balancer.is_some()) {
            if service.observed.addresses.is_empty() {
                return self.fault(format!("{} has no address", service.key));
            }
            for &address in &service.observed.addresses {
                owners.insert(address, None);
            }
        }
        for (&address, owner) in &mut owners {
            *owner = self.sole_owner(address)?;
        }
        self.check_statuses(&owners)?;
        self.check_neighbours(&owners)?;
        for client in 0..self.link.clients.len() {
            for &address in owners.keys() {
                self.ask(client, address);
            }
        }
        self.run(Duration::from_millis(5))?;
        for (client, state) in self.link.clients.iter().enumerate() {
            for (address, owner) in &owners {
                let answers = &state.asking[address];
                let expected: BTreeSet<_> = owner.map(facts::node_mac).into_iter().collect();
                if *answers != expected {
                    return self.fault(format!(
                        "client {client} asked for {address} and was answered by {answers:?} instead of {expected:?}"
                    ));
                }
            }
        }
        self.check_neighbours(&owners)
    }

    /// Checks, some seconds later, that nothing is left over: hosts have what their speakers own, and the link is quiet.
    ///
    /// # Errors
    /// What is left over.
    pub fn check_tidy(&mut self) -> Result<(), Violation> {
        for host in &self.nodes {
            let owned: BTreeSet<IpAddr> =
                host.speaker.iter().flat_map(|speaker| speaker.owned().keys().copied()).collect();
            let expected = if self.template.data_path == DataPath::Proxy { owned } else { BTreeSet::new() };
            if host.addresses != expected {
                return self.fault(format!("{} has {:?} on the host and owns {expected:?}", host.name, host.addresses));
            }
        }
        Ok(())
    }

    /// Checks what must be true in a network that carries some things in one direction only, once all had time to find
    /// out: every address that somebody can serve has an owner, and of two that know of each other only one owns it.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn check_agreed(&mut self) -> Result<(), Violation> {
        let services: Vec<_> =
            self.truth.services.values().filter(|one| one.load_balancer.is_some()).cloned().collect();
        let addresses: BTreeSet<IpAddr> = services.iter().flat_map(|one| one.observed.addresses.clone()).collect();
        for address in addresses {
            let behind: Vec<&Service> =
                services.iter().filter(|one| one.observed.addresses.contains(&address)).map(|one| &**one).collect();
            let is_able = |&node: &usize| behind.iter().any(|service| self.is_able(node, service));
            let able: BTreeSet<usize> = (0..self.nodes.len()).filter(is_able).collect();
            let owners = self.owners(address);
            if owners.is_empty() != able.is_empty() || !owners.iter().all(|owner| able.contains(owner)) {
                return self.fault(format!("{address} is owned by {owners:?}; able are {able:?}"));
            }
            for (one, other) in owners.iter().flat_map(|one| owners.iter().map(move |other| (*one, *other))) {
                let has_company = (0..self.nodes.len()).any(|node| node != one && self.see_each_other(node, one));
                let must_yield = self.link.hears(one, other) && !has_company;
                if one != other && (must_yield || self.has_management || self.see_each_other(one, other)) {
                    return self.fault(format!("{address} is owned by {owners:?}, of whom {one} knows of {other}"));
                }
            }
        }
        Ok(())
    }

    /// The node that owns an address, which must be one that can serve it; `None` where no node can.
    fn sole_owner(&self, address: IpAddr) -> Result<Option<usize>, Violation> {
        let services = self.truth.services.values().filter(|service| service.observed.addresses.contains(&address));
        let services: Vec<&Service> = services.map(|service| &**service).collect();
        let mut able: BTreeSet<usize> =
            (0..self.nodes.len()).filter(|&node| services.iter().any(|service| self.is_able(node, service))).collect();
        if !able.is_disjoint(&self.at_home) {
            able.retain(|node| self.at_home.contains(node));
        }
        match self.owners(address)[..] {
            [] if able.is_empty() => Ok(None),
            [owner] if able.contains(&owner) => Ok(Some(owner)),
            ref owners => {
                let names =
                    |nodes: &[usize]| -> Vec<NodeName> { nodes.iter().map(|&node| facts::node_name(node)).collect() };
                let able: Vec<usize> = able.into_iter().collect();
                self.fault(format!("{address} is owned by {:?}; able are {:?}", names(owners), names(&able)))
            }
        }
    }

    /// Checks that a node which nobody sees on the link owns nothing that two others could, who see each other and from
    /// there look for it.
    ///
    /// # Errors
    /// What it owns.
    pub fn check_unseen(&self, unseen: usize) -> Result<(), Violation> {
        for service in self.truth.services.values().filter(|service| service.load_balancer.is_some()) {
            let able = (0..self.nodes.len()).filter(|&node| node != unseen && self.is_candidate(node, service));
            let owns = |address: &&IpAddr| self.owners(**address).contains(&unseen);
            if able.count() > 1
                && let Some(address) = service.observed.addresses.iter().find(owns)
            {
                return self.fault(format!("{address} is owned by {}, which nobody sees", facts::node_name(unseen)));
            }
        }
        Ok(())
    }

    /// Checks that no address has moved.
    ///
    /// # Errors
    /// Which one has.
    pub fn check_unmoved(
        &self,
        before: &BTreeMap<IpAddr, Vec<usize>>,
        after: &BTreeMap<IpAddr, Vec<usize>>,
    ) -> Result<(), Violation> {
        match before.iter().find(|(address, owners)| after.get(address) != Some(owners)) {
            Some((address, owners)) => self.fault(format!("{address} was owned by {owners:?} and is not any more")),
            None => Ok(()),
        }
    }

    /// Whether a node could own some address, so that it watches others and is watched.
    pub fn takes_part(&self, node: usize) -> bool {
        self.truth.services.values().any(|service| self.is_candidate(node, service))
    }

    /// Whether a node is able, and in the subnets of the pool if any is.
    fn is_candidate(&self, node: usize, service: &Service) -> bool {
        self.is_able(node, service) && (self.at_home.is_empty() || self.at_home.contains(&node))
    }

    fn is_able(&self, node: usize, service: &Service) -> bool {
        let host = &self.nodes[node];
        let Some(object) = self.truth.nodes.get(&host.name) else { return false };
        let port = &self.link.nodes[node];
        let is_up = host.speaker.is_some() && port.has_power && port.has_cable;
        let carries = self.template.data_path == DataPath::KubeProxy || host.proxy_ready;
        let is_chosen =
            self.truth.l2_advertisements.values().any(|advertisement| advertisement.allows_node(&object.labels));
        let is_welcome = !object.labels.contains_key(EXCLUDE_LABEL) && !object.network_unavailable;
        let mut usable = service.endpoints.iter().filter(|endpoint| endpoint.ready || endpoint.serving);
        let has_endpoint = match service.external_traffic_policy {
            TrafficPolicy::Cluster => usable.next().is_some(),
            TrafficPolicy::Local => usable.any(|endpoint| endpoint.node.as_ref() == Some(&host.name)),
        };
        service.load_balancer.is_some() && is_up && carries && is_chosen && is_welcome && has_endpoint
    }

    fn check_statuses(&self, owners: &BTreeMap<IpAddr, Option<usize>>) -> Result<(), Violation> {
        // A node that died could not take its status away.
        let runs = |name: &NodeName| self.nodes.iter().any(|host| host.name == *name && host.speaker.is_some());
        let named = |service: &Service| -> BTreeSet<NodeName> {
            let nodes = self.truth.announced_by.get(&service.key);
            nodes.into_iter().flat_map(|nodes| nodes.keys()).filter(|name| runs(name)).cloned().collect()
        };
        for service in self.truth.services.values() {
            let owner = service.observed.addresses.first().and_then(|address| owners.get(address).copied().flatten());
            let serves = owner.filter(|&owner| self.is_able(owner, service));
            let expected: BTreeSet<NodeName> = serves.map(facts::node_name).into_iter().collect();
            if named(service) != expected {
                let what = format!("{} is said to be announced by {:?}, not {expected:?}", service.key, named(service));
                return self.fault(what);
            }
        }
        Ok(())
    }

    fn check_neighbours(&self, owners: &BTreeMap<IpAddr, Option<usize>>) -> Result<(), Violation> {
        for (client, state) in self.link.clients.iter().enumerate() {
            for (address, mac) in &state.neighbours {
                let Some(Some(owner)) = owners.get(address) else { continue };
                if *mac != facts::node_mac(*owner) && !state.deprived.contains(address) {
                    return self.fault(format!(
                        "client {client} sends what is for {address} to {mac}; its owner is {}",
                        facts::node_name(*owner)
                    ));
                }
            }
        }
        Ok(())
    }

    fn fault<T>(&self, what: String) -> Result<T, Violation> {
        Err(Violation { at: self.now, what })
    }
}
