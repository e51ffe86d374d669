//! What differs between two snapshots, and whom that concerns.

use std::{net::IpAddr, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

use super::{
    API_VERSION, Books, Covering, Entry, Work, advertisement_ref, entry, flight::Target, pool_named,
    preference::Preference,
};
use crate::{
    model::{
        ObjectKey, ObjectRef,
        pool::Pool,
        service::{Service, TrafficPolicy},
    },
    snapshot::Snapshot,
};

impl Books {
    /// Brings every assignment in line with newer facts.
    pub(super) fn decide(&mut self, next: Arc<Snapshot>, work: &mut Work) {
        let last = std::mem::replace(&mut self.facts, Arc::clone(&next));
        self.compare_pools(&last, &next, work);
        self.compare_left_out(&last, &next, work);
        self.compare_advertisements(&last, &next, work);
        self.compare_bgp(&last, &next, work);
        for object in self.reports.compare(&last, &next) {
            work.pools.extend(pool_named(&next, &object).map(|pool| pool.name.clone()));
            work.objects.insert(object);
        }
        for change in last.namespaces.diff(&next.namespaces) {
            let (DiffItem::Add(name, _) | DiffItem::Update { new: (name, _), .. } | DiffItem::Remove(name, _)) = change;
            let start = ObjectKey::new(name.as_str(), "");
            let inside = self.entries.range(start..).take_while(|(key, _)| *key.namespace == **name);
            work.judge.extend(inside.map(|(key, _)| key.clone()));
        }
        for change in last.ingresses.diff(&next.ingresses) {
            match change {
                DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } => {
                    _ = work.ingresses.insert(key.clone())
                }
                DiffItem::Remove(key, _) => self.flights.forget(&Target::Ingress(key.clone())),
            }
        }
        for change in last.conditions.diff(&next.conditions) {
            match change {
                DiffItem::Add(object, _) | DiffItem::Update { new: (object, _), .. } | DiffItem::Remove(object, _) => {
                    work.objects.insert(object.clone());
                }
            }
        }
        for change in last.services.diff(&next.services) {
            match change {
                DiffItem::Add(key, _) => _ = work.judge.insert(key.clone()),
                DiffItem::Remove(key, _) => {
                    self.release(key, work);
                    self.leaving.remove(key);
                    work.services.insert(key.clone());
                    self.flights.forget(&Target::Service(key.clone()));
                    self.flights.forget(&Target::Accepted(ObjectRef::service(key)));
                }
                DiffItem::Update { old: (key, old), new: (_, new) } => {
                    work.services.insert(key.clone());
                    if !has_same_claim(old, new) || self.was_edited(new) {
                        work.judge.insert(key.clone());
                    }
                }
            }
        }
        work.entry |= entry::differs(&last, &next);
        self.judge(work);
        self.serve(work);
    }

    fn compare_pools(&mut self, last: &Snapshot, next: &Snapshot, work: &mut Work) {
        let mut opened = Vec::new();
        for change in last.pools.diff(&next.pools) {
            match change {
                DiffItem::Add(_, pool) => {
                    // Some may have kept addresses of it while it was left out.
                    self.judge_users(pool, work);
                    opened.push(pool);
                }
                DiffItem::Update { old: (_, old), new: (name, new) } if has_same_rules(old, new) => {
                    self.ledger.refresh(new);
                    work.pools.insert(name.clone());
                }
                DiffItem::Update { old: (name, old), new: (_, new) } => {
                    self.judge_users(old, work);
                    self.ledger.close(name);
                    opened.push(new);
                }
                DiffItem::Remove(name, pool) => {
                    self.judge_users(pool, work);
                    self.ledger.close(name);
                    self.flights.forget(&Target::Pool(pool.key.clone()));
                    work.pools.insert(name.clone());
                    work.retry_all = true;
                }
            }
        }
        if opened.is_empty() && !work.retry_all {
            return;
        }
        // Closed first and opened then: a range may have moved from one pool to another.
        for pool in opened {
            self.ledger.open(pool);
        }
        self.ledger.prefer(Preference::new(next.pools.values()));
        work.retry_all = true;
    }

    /// Who has an address of a pool that is left out now, or no longer.
    fn compare_left_out(&mut self, last: &Snapshot, next: &Snapshot, work: &mut Work) {
        if Arc::ptr_eq(&last.problems, &next.problems) && last.pools.ptr_eq(&next.pools) {
            return;
        }
        let before = std::mem::replace(&mut self.left_out, next.pools_left_out());
        let differs = |entry: &Entry| {
            let pool = entry.assignment.as_ref().map(|assignment| &assignment.pool);
            pool.is_some_and(|pool| before.contains(pool) != self.left_out.contains(pool))
        };
        if before != self.left_out {
            let concerned = self.entries.iter().filter(|(_, entry)| differs(entry));
            work.judge.extend(concerned.map(|(key, _)| key.clone()));
        }
    }

    /// Everyone with an address of this pool.
    fn judge_users(&self, pool: &Pool, work: &mut Work) {
        for range in &pool.ranges {
            work.judge.extend(self.ledger.users_within(*range).cloned());
        }
    }

    fn compare_advertisements(&mut self, last: &Snapshot, next: &Snapshot, work: &mut Work) {
        let mut changed = Vec::new();
        for change in last.l2_advertisements.diff(&next.l2_advertisements) {
            match change {
                DiffItem::Add(key, advertisement) => {
                    work.objects.insert(advertisement_ref(key));
                    changed.push(Arc::clone(advertisement));
                }
                DiffItem::Update { old: (key, old), new: (_, new) } => {
                    work.objects.insert(advertisement_ref(key));
                    changed.extend([Arc::clone(old), Arc::clone(new)]);
                }
                DiffItem::Remove(key, advertisement) => {
                    self.flights.forget(&Target::Accepted(advertisement_ref(key)));
                    changed.push(Arc::clone(advertisement));
                }
            }
        }
        let changed_bgp = last.bgp_advertisements.diff(&next.bgp_advertisements).flat_map(|change| match change {
            DiffItem::Add(_, advertisement) | DiffItem::Remove(_, advertisement) => vec![advertisement],
            DiffItem::Update { old: (_, old), new: (_, new) } => vec![old, new],
        });
        let changed_bgp: Vec<_> = changed_bgp.collect();
        let relabelled = last.pools.diff(&next.pools).filter_map(|change| match change {
            DiffItem::Add(_, pool) => Some(pool),
            DiffItem::Update { old: (_, old), new: (_, new) } => (old.labels != new.labels).then_some(new),
            DiffItem::Remove(..) => None,
        });
        let mut affected: Vec<_> = relabelled.collect();
        if changed.is_empty() && changed_bgp.is_empty() && affected.is_empty() {
            return;
        }
        let is_affected = |pool: &Pool| {
            changed.iter().any(|changed| changed.pools.covers(pool))
                || changed_bgp.iter().any(|changed| changed.covers(pool))
        };
        affected.extend(next.pools.values().filter(|pool| is_affected(pool)));
        for pool in affected {
            let by_layer2 = next.l2_advertisements.values().filter(|advertisement| advertisement.pools.covers(pool));
            let by_bgp = next.bgp_advertisements.values().filter(|advertisement| advertisement.covers(pool));
            let covering = Covering { by_layer2: by_layer2.cloned().collect(), by_bgp: by_bgp.cloned().collect() };
            self.advertisements.insert(pool.name.clone(), covering);
            for range in &pool.ranges {
                work.services.extend(self.ledger.users_within(*range).cloned());
            }
        }
        self.advertisements.retain(|name, _| next.pools.contains_key(name));
    }

    /// What only speakers go by has a condition all the same.
    pub(super) fn compare_bgp(&mut self, last: &Snapshot, next: &Snapshot, work: &mut Work) {
        self.compare_kind("BGPAdvertisement", &last.bgp_advertisements, &next.bgp_advertisements, work);
        self.compare_kind("BGPPeer", &last.bgp_peers, &next.bgp_peers, work);
        self.compare_kind("BFDProfile", &last.bfd_profiles, &next.bfd_profiles, work);
        self.compare_kind("Community", &last.communities, &next.communities, work);
    }

    fn compare_kind<T: PartialEq>(
        &mut self,
        kind: &str,
        last: &OrdMap<ObjectKey, Arc<T>>,
        next: &OrdMap<ObjectKey, Arc<T>>,
        work: &mut Work,
    ) {
        for change in last.diff(next) {
            match change {
                DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } => {
                    work.objects.insert(ObjectRef::namespaced(API_VERSION, kind, key));
                }
                DiffItem::Remove(key, _) => {
                    self.flights.forget(&Target::Accepted(ObjectRef::namespaced(API_VERSION, kind, key)));
                }
            }
        }
    }

    /// Whether somebody else changed the addresses in a Service's status.
    fn was_edited(&self, service: &Service) -> bool {
        let assigned = self.entries.get(&service.key).and_then(|entry| entry.assignment.as_ref());
        let ours: &[IpAddr] = assigned.map_or(&[], |assignment| &assignment.addresses);
        service.load_balancer.is_some()
            && !self.flights.is_in_flight(&Target::Service(service.key.clone()))
            && service.observed.addresses != ours
    }
}

/// Whether two versions of a Service have the same right to an address.
fn has_same_claim(old: &Service, new: &Service) -> bool {
    let needs_selector = new.external_traffic_policy == TrafficPolicy::Local;
    old.load_balancer == new.load_balancer
        && old.is_foreign == new.is_foreign
        && old.labels == new.labels
        && old.created == new.created
        && old.ports == new.ports
        && old.external_traffic_policy == new.external_traffic_policy
        && (!needs_selector || old.selector == new.selector)
}

/// Whether two versions of a pool give the same addresses to the same Services.
fn has_same_rules(old: &Pool, new: &Pool) -> bool {
    old.ranges == new.ranges
        && old.auto_assign == new.auto_assign
        && old.avoid_buggy_ips == new.avoid_buggy_ips
        && old.edges == new.edges
        && old.sharing == new.sharing
        && old.allocation == new.allocation
        && old.key == new.key
}
