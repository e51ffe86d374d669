//! What statuses should say, against what they say: every write that follows from a step.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    API_VERSION, Books, Clock, Entry, Work,
    allocate::Assignment,
    flight::Target,
    is_marked, pool_named, pool_ref,
    report::Report,
    status::{self, Kept, Reason},
};
use crate::{
    model::{
        ObjectKey, ObjectRef, PoolName, ServiceKey,
        service::{Service, ServiceStatus},
    },
    snapshot::Snapshot,
    write::{ACCEPTED, Write},
};

impl Books {
    /// Compares what statuses should say with what they say, for everything this step has touched.
    pub(super) fn settle(&mut self, mut work: Work, clock: Clock) -> Vec<Write> {
        let losers = work.lost.iter().flat_map(|(address, losers)| losers.iter().map(|loser| (*address, loser)));
        for (address, loser) in losers.filter(|(_, loser)| self.facts.services.contains_key(*loser)) {
            self.givers.insert((loser.clone(), address));
            self.given.insert((address, loser.clone()));
        }
        let mut writes = Vec::new();
        let services = std::mem::take(&mut work.services);
        let (givers, others): (Vec<_>, Vec<_>) = services.into_iter().partition(|key| self.gives(key).next().is_some());
        let mut others: BTreeSet<_> = others.into_iter().collect();
        for key in &givers {
            self.settle_service(key, &mut work, clock, &mut writes);
            others.extend(self.hand_over(key));
        }
        for key in &others {
            self.settle_service(key, &mut work, clock, &mut writes);
        }
        work.pools.append(&mut self.ledger.take_moved());
        self.recounted.extend(work.pools.iter().cloned());
        writes.extend(work.pools.iter().filter_map(|name| self.pool_write(name, clock)));
        writes.extend(work.ingresses.iter().filter_map(|key| self.ingress_write(key, clock)));
        for object in &work.objects {
            self.object_writes(object, clock, &mut writes);
        }
        if work.entry {
            writes.extend(self.entry_writes(clock));
        }
        writes
    }

    fn settle_service(&mut self, key: &ServiceKey, work: &mut Work, clock: Clock, writes: &mut Vec<Write>) {
        if self.facts.services.get(key).is_none_or(|service| !is_marked(&service.observed)) {
            self.leaving.remove(key);
        }
        let write = self.service_write(key, clock);
        self.tell_silence(key, write.as_ref(), work);
        writes.extend(write);
        // Where a status changes all the time, its condition says enough.
        if !self.flights.is_slowed(&Target::Service(key.clone())) {
            writes.extend(work.events.remove(key).into_iter().flatten().map(Write::Event));
        }
        self.note_entrance(key, &mut work.ingresses);
    }

    /// Tells once that nobody announces the address which a Service has or is written with.
    fn tell_silence(&mut self, key: &ServiceKey, write: Option<&Write>, work: &mut Work) {
        let (Some(service), Some(entry)) = (self.facts.services.get(key), self.entries.get_mut(key)) else { return };
        let status = match write {
            Some(Write::ServiceStatus { status, .. }) => status,
            _ => &service.observed,
        };
        let Some(condition) = &status.condition else { return };
        let silence = Reason::NotAdvertised.as_str();
        let was_told = entry.told.as_deref() == Some(silence);
        if condition.reason == silence && !was_told {
            entry.told = Some(silence.to_owned());
            work.tell(key, status::not_advertised(key, &condition.message));
        } else if condition.reason == Reason::Assigned.as_str() && was_told {
            entry.told = None;
        }
    }

    /// Addresses that this Service still has to be seen without.
    fn gives(&self, key: &ServiceKey) -> impl Iterator<Item = IpAddr> {
        let from = (key.clone(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        self.givers.range(from..).take_while(move |(giver, _)| giver == key).map(|(_, address)| *address)
    }

    /// Forgets what this Service was seen to have given back; returns who may be written with it now.
    fn hand_over(&mut self, giver: &ServiceKey) -> Vec<ServiceKey> {
        let service = self.facts.services.get(giver);
        // What others write into a Service of theirs is not ours to wait for.
        let ours = service.filter(|service| service.load_balancer.is_some() || self.is_ours_to_clear(service));
        let observed = ours.map(|service| &service.observed.addresses);
        let is_settled = observed.is_none() || !self.flights.is_in_flight(&Target::Service(giver.clone()));
        let is_given = |address: &IpAddr| {
            let has_it_again = self.ledger.users(*address).any(|user| user == giver);
            has_it_again || (is_settled && observed.is_none_or(|observed| !observed.contains(address)))
        };
        let given: Vec<_> = self.gives(giver).filter(is_given).collect();
        let mut takers = Vec::new();
        for address in given {
            self.givers.remove(&(giver.clone(), address));
            self.given.remove(&(address, giver.clone()));
            takers.extend(self.ledger.users(address).cloned());
        }
        takers
    }

    /// Who still has to be seen without an address of this assignment.
    fn held_by(&self, service: &Service, assignment: &Assignment) -> Option<(IpAddr, ServiceKey)> {
        let new = assignment.addresses.iter().filter(|address| !service.observed.addresses.contains(address));
        new.into_iter().find_map(|&address| {
            let from = (address, ObjectKey::new("", ""));
            let mut givers = self.given.range(from..).take_while(|(given, _)| *given == address);
            givers.find(|(_, giver)| *giver != service.key).cloned()
        })
    }

    /// Whether the status of a Service that we do not serve says what we wrote when we did. A mark on a Service of a
    /// class that others serve may be that of another Ferrogate.
    pub(super) fn is_ours_to_clear(&self, service: &Service) -> bool {
        is_marked(&service.observed) && (!service.is_foreign || self.leaving.contains(&service.key))
    }

    /// What has to be seen gone from this Service before it is written with something new. A write that comes late
    /// then never adds an address to a Service that seems to have all it wants ([`crate::lease`] relies on it). A
    /// source without versions carries out writes in order, and needs none of this.
    fn leaves(service: &Service, assignment: &Assignment) -> Option<IpAddr> {
        let observed = &service.observed.addresses;
        let gains = assignment.addresses.iter().any(|address| !observed.contains(address));
        let leaving = observed.iter().find(|address| !assignment.addresses.contains(address));
        leaving.copied().filter(|_| gains && service.version.is_known())
    }

    fn service_write(&mut self, key: &ServiceKey, clock: Clock) -> Option<Write> {
        let service = self.facts.services.get(key)?;
        let status = match self.entries.get(key) {
            Some(Entry { assignment: Some(assignment), refusal, .. }) => {
                if let Some((address, giver)) = self.held_by(service, assignment) {
                    status::moving(service, assignment, address, &giver)
                } else if let Some(address) = Self::leaves(service, assignment) {
                    status::leaving(service, assignment, address)
                } else if refusal.is_none() && self.left_out.contains(&assignment.pool) {
                    status::of_pool_left_out(service, assignment)
                } else {
                    let is_advertised = self.is_advertised(service, &assignment.pool);
                    status::assigned(service, assignment, refusal.as_ref(), is_advertised)
                }
            }
            Some(Entry { refusal: Some(refusal), .. }) => status::refused(service, refusal),
            // Not ours, or not ours any more. Only what we wrote is taken away.
            Some(_) | None if self.is_ours_to_clear(service) => ServiceStatus::default(),
            Some(_) | None => service.observed.clone(),
        };
        let shown = service.observed == status;
        let target = Target::Service(key.clone());
        let mut fence = false;
        if service.version.is_known() {
            if self.flights.version(&target) == Some(&service.version) {
                // What was asked for may still be carried out, after this one even.
                fence = shown;
            } else {
                // It was carried out, or is refused for ever.
                self.flights.forget(&target);
            }
        }
        let write = Write::ServiceStatus { service: key.clone(), status, version: service.version.clone(), fence };
        self.flights.wish(target, write, shown && !fence, clock)
    }

    /// Keeps the addresses of entry Services; every Ingress shows them.
    fn note_entrance(&mut self, key: &ServiceKey, ingresses: &mut BTreeSet<ObjectKey>) {
        let is_entry = self.facts.services.get(key).is_some_and(|service| service.is_entry);
        let entry = self.entries.get(key).filter(|_| is_entry);
        let addresses = entry.and_then(|entry| entry.assignment.as_ref()).map(|assignment| &assignment.addresses);
        if self.entrances.get(key) == addresses {
            return;
        }
        match addresses {
            Some(addresses) => _ = self.entrances.insert(key.clone(), addresses.clone()),
            None => _ = self.entrances.remove(key),
        }
        ingresses.extend(self.facts.ingresses.keys().cloned());
    }

    fn pool_write(&mut self, name: &PoolName, clock: Clock) -> Option<Write> {
        let book = self.ledger.book(name).filter(|book| !book.pool.read_only)?;
        let users = self.ledger.lowest_users(book);
        let status = status::pool(book, users, &self.reports.of(&pool_ref(&book.pool)));
        let key = book.pool.key.clone();
        let shown = book.pool.observed == status;
        self.flights.wish(Target::Pool(key.clone()), Write::PoolStatus { pool: key, status }, shown, clock)
    }

    fn ingress_write(&mut self, key: &ObjectKey, clock: Clock) -> Option<Write> {
        let ingress = self.facts.ingresses.get(key)?;
        let addresses: BTreeSet<IpAddr> = self.entrances.values().flatten().copied().collect();
        let addresses: Vec<_> = addresses.into_iter().collect();
        let shown = ingress.observed_addresses == addresses;
        let write = Write::IngressStatus { ingress: key.clone(), addresses };
        self.flights.wish(Target::Ingress(key.clone()), write, shown, clock)
    }

    /// The condition of an object without a status of its own in the snapshot, and Events about what is reported of it.
    fn object_writes(&mut self, object: &ObjectRef, clock: Clock, writes: &mut Vec<Write>) {
        let reports = self.reports.of(object);
        let pool = pool_named(&self.facts, object);
        let standing = standing(&self.facts, object);
        let shown_conditions = self.facts.conditions.get(object).map_or(&[][..], |conditions| conditions.as_slice());
        let shown = shown_conditions.iter().find(|condition| condition.kind == ACCEPTED);
        let kept = standing.or(pool.map(|pool| (pool.generation, Kept::VersionBefore)));
        let (generation, kept) = kept.unzip();
        let wish = status::accepted(generation.unwrap_or(0), &reports, kept);

        let mut known = shown.into_iter().chain(pool.into_iter().flat_map(|pool| &pool.observed.conditions));
        let was_told = known.any(|condition| condition.kind == ACCEPTED && condition.message == wish.message);
        let told = self.told.get(object) == Some(&wish.message);
        if reports.is_empty() {
            self.told.remove(object);
        } else if !told {
            self.told.insert(object.clone(), wish.message.clone());
            if !was_told {
                writes.extend(reports.iter().map(|report| Write::Event(status::reported(object, report))));
            }
        }

        // The status of a pool in force is written with its counters; what was said of it before is only taken back.
        let is_wanted = match (pool, standing) {
            (Some(_), _) => false,
            (None, Some(_)) => true,
            (None, None) => !reports.is_empty() && has_conditions(object, &reports),
        };
        let is_outdated = shown.is_some_and(|shown| shown.holds != wish.holds);
        let target = Target::Accepted(object.clone());
        if is_wanted || is_outdated {
            let shown = shown == Some(&wish);
            let write = Write::Condition { object: object.clone(), condition: wish };
            writes.extend(self.flights.wish(target, write, shown, clock));
        } else {
            self.flights.forget(&target);
        }
    }
}

/// The `metadata.generation` of a piece of configuration that is in force and has a status for conditions only, and how
/// much of it is in force while there is something wrong with it.
fn standing(facts: &Snapshot, object: &ObjectRef) -> Option<(i64, Kept)> {
    if object.api_version != API_VERSION {
        return None;
    }
    let key = ObjectKey::new(object.namespace.as_deref().unwrap_or_default(), object.name.as_str());
    let (generation, read_only, kept) = match object.kind.as_str() {
        "L2Advertisement" => {
            facts.l2_advertisements.get(&key).map(|one| (one.generation, one.read_only, Kept::VersionBefore))
        }
        "BGPAdvertisement" => facts.bgp_advertisements.get(&key).map(|one| {
            let kept = if one.unfit_pools.is_empty() { Kept::VersionBefore } else { Kept::OtherPools };
            (one.generation, one.read_only, kept)
        }),
        "BGPPeer" => facts.bgp_peers.get(&key).map(|one| (one.generation, one.read_only, Kept::VersionBefore)),
        "BFDProfile" => facts.bfd_profiles.get(&key).map(|one| (one.generation, one.read_only, Kept::VersionBefore)),
        "Community" => facts.communities.get(&key).map(|one| (one.generation, one.read_only, Kept::VersionBefore)),
        _ => None,
    }?;
    (!read_only).then_some((generation, kept))
}

/// Whether the object can carry our condition: kinds of our own and Services, where the object itself could be read.
fn has_conditions(object: &ObjectRef, reports: &[Report]) -> bool {
    let is_service = object.api_version == "v1" && object.kind == "Service";
    (object.api_version == API_VERSION || is_service) && reports.iter().all(|report| report.is_readable)
}
