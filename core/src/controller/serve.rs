//! Who keeps what it has, and who gets something: every Service in its turn.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    Books, Entry, Work,
    allocate::{self, Assignment, Denied, Facts},
    flight::Target,
    is_marked,
    ledger::Tenant,
    refusal::Refusal,
    status,
    waiting::{Rank, Turn, Wait},
};
use crate::model::{
    Family, ServiceKey,
    service::{LoadBalancer, Service},
};

impl Books {
    /// Lets every Service that has to be judged keep what it has, where it may.
    pub(super) fn judge(&mut self, work: &mut Work) {
        let mut claims = Vec::new();
        for key in std::mem::take(&mut work.judge) {
            work.services.insert(key.clone());
            let known = self.release(&key, work);
            let Some(service) = self.facts.services.get(&key).cloned() else { continue };
            let Some(wish) = &service.load_balancer else {
                if service.is_foreign && known.is_some_and(|entry| still_shows(&service, &entry)) {
                    self.leaving.insert(key.clone());
                }
                // It was ours, and its status still claims what is free now.
                let claimed = if self.is_ours_to_clear(&service) { &service.observed.addresses[..] } else { &[] };
                for &address in claimed {
                    work.lost.entry(address).or_default().insert(key.clone());
                }
                continue;
            };
            self.leaving.remove(&key);
            let holds_nothing = known.as_ref().is_none_or(|entry| entry.assignment.is_none());
            claims.push((Claim::new(holds_nothing, &service), turn(&service, wish), service, known));
        }
        claims.sort_by(|(one, ..), (other, ..)| one.cmp(other));
        for (_, turn, service, known) in claims {
            self.claim(turn, &service, known, work);
        }
    }

    /// Lets one Service keep what its status or the ledger says it has, and notes whether it needs something more.
    fn claim(&mut self, turn: Turn, service: &Service, known: Option<Entry>, work: &mut Work) {
        let Some(wish) = &service.load_balancer else { return };
        let key = &service.key;
        let tenant = Arc::new(Tenant::of(service));
        // While a write of ours is on its way, the status tells what was, not what somebody wants.
        let in_flight = self.flights.is_in_flight(&Target::Service(key.clone()));
        let observed = (!in_flight).then_some(&service.observed.addresses);
        let booked = known.as_ref().and_then(|entry| entry.assignment.as_ref()).map(|booked| &booked.addresses);
        let mut claims: Vec<_> = [observed, booked].into_iter().flatten().filter(|claim| !claim.is_empty()).collect();
        claims.dedup();
        let kept = claims.into_iter().find_map(|addresses| {
            let loss = match allocate::keep(&self.rules(), service, wish, addresses, &tenant) {
                Ok(assignment) => return Some(assignment),
                Err(loss) => loss,
            };
            for &address in addresses {
                work.lost.entry(address).or_default().insert(key.clone());
            }
            work.tell(key, status::cleared(key, addresses, &loss));
            None
        });

        let told = match &known {
            Some(entry) => entry.told.clone(),
            None => service.observed.condition.as_ref().map(|condition| condition.reason.clone()),
        };
        let entry = Entry { assignment: None, refusal: None, tenant, turn: None, waits: Vec::new(), told };
        self.entries.insert(key.clone(), entry);
        match kept {
            Some(assignment) => {
                let wants_second = allocate::second_family(wish, &assignment).is_some();
                for &address in &assignment.addresses {
                    self.book_in(address, key, work);
                }
                let unreadable = wish.request.as_ref().err();
                let refusal = unreadable.map(|one| Refusal::UnreadableRequest { fault: one.fault.clone() });
                if let Some(entry) = self.entries.get_mut(key) {
                    entry.assignment = Some(assignment);
                    entry.tell(key, refusal, work);
                }
                if wants_second {
                    work.candidates.insert(Turn { rank: Rank::Second, ..turn });
                }
            }
            None => _ = work.candidates.insert(turn),
        }
    }

    /// Gives addresses to those without, in turn, until nobody can be helped any more.
    pub(super) fn serve(&mut self, work: &mut Work) {
        if work.retry_all {
            work.candidates.extend(self.pending.iter().cloned());
        }
        // Rooms that got bigger, and how far along those who wait for each have been tried.
        let mut rooms: BTreeMap<Wait, Option<Turn>> = BTreeMap::new();
        for ((address, _), tenant) in std::mem::take(&mut work.freed) {
            work.candidates.extend(self.waiting.all(&Wait::Address(address)).cloned());
            work.grown.extend(tenant.sharing_key.clone());
            if let Some(book) = self.ledger.pool_around(address) {
                rooms.insert(Wait::Room(book.pool.name.clone(), Family::of(address)), None);
                rooms.insert(Wait::AnyRoom(Family::of(address)), None);
            }
        }
        loop {
            let groups = std::mem::take(&mut work.grown).into_iter().map(Wait::Group);
            for wait in groups.chain(std::mem::take(&mut work.taken).into_iter().map(Wait::Address)) {
                work.candidates.extend(self.waiting.all(&wait).cloned());
            }
            let roomy = rooms.iter().filter(|(room, _)| self.has_room(room));
            let waiting = roomy.filter_map(|(room, tried)| self.waiting.next(room, tried.as_ref())).min();
            let Some(turn) = [work.candidates.first(), waiting].into_iter().flatten().min().cloned() else { break };
            work.candidates.remove(&turn);
            for tried in rooms.values_mut().filter(|tried| tried.as_ref() < Some(&turn)) {
                *tried = Some(turn.clone());
            }
            self.attempt(turn, work);
        }
    }

    fn has_room(&self, room: &Wait) -> bool {
        match room {
            Wait::Room(pool, family) => self.ledger.book(pool).is_some_and(|book| book.has_free(*family)),
            Wait::AnyRoom(family) => self.ledger.preference().has_room(*family),
            Wait::Address(_) | Wait::Group(_) => false,
        }
    }

    /// Tries to give one Service what it waits for.
    fn attempt(&mut self, turn: Turn, work: &mut Work) {
        let key = turn.service.clone();
        self.stop_waiting(&key);
        let Some(service) = self.facts.services.get(&key).cloned() else { return };
        let (Some(wish), Some(entry)) = (&service.load_balancer, self.entries.get(&key)) else { return };
        work.services.insert(key.clone());
        let Some(assignment) = entry.assignment.clone() else {
            match allocate::allocate(&self.rules(), &service, wish, &entry.tenant) {
                Ok(assignment) => self.assign(turn, wish, assignment, work),
                Err(denied) => self.refuse(turn, denied, work),
            }
            return;
        };
        let Some(family) = allocate::second_family(wish, &assignment) else { return };
        match allocate::second(&self.rules(), &key, &assignment, family, &entry.tenant) {
            Ok(address) => {
                self.book_in(address, &key, work);
                work.tell(&key, status::allocated_second(&key, &assignment, address));
                let Some(entry) = self.entries.get_mut(&key) else { return };
                entry.assignment.iter_mut().for_each(|assignment| assignment.addresses.push(address));
            }
            Err(waits) => self.wait(turn, waits),
        }
    }

    fn assign(&mut self, turn: Turn, wish: &LoadBalancer, assignment: Assignment, work: &mut Work) {
        let key = &turn.service;
        for &address in &assignment.addresses {
            self.book_in(address, key, work);
        }
        work.tell(key, status::allocated(key, &assignment));
        let wants_second = allocate::second_family(wish, &assignment).is_some();
        if let Some(entry) = self.entries.get_mut(key) {
            entry.assignment = Some(assignment);
            entry.tell(key, None, work);
        }
        if wants_second {
            work.candidates.insert(Turn { rank: Rank::Second, ..turn });
        }
    }

    fn refuse(&mut self, turn: Turn, denied: Denied, work: &mut Work) {
        if let Some(entry) = self.entries.get_mut(&turn.service) {
            *self.pending_by_reason.entry(denied.refusal.reason()).or_default() += 1;
            entry.tell(&turn.service, Some(*denied.refusal), work);
        }
        self.pending.insert(turn.clone());
        self.wait(turn, denied.waits);
    }

    fn wait(&mut self, turn: Turn, waits: Vec<Wait>) {
        for wait in &waits {
            self.waiting.add(wait, &turn);
        }
        if let Some(entry) = self.entries.get_mut(&turn.service) {
            entry.waits = waits;
            entry.turn = Some(turn);
        }
    }

    /// Takes a Service off every list of those who wait.
    fn stop_waiting(&mut self, key: &ServiceKey) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Some(turn) = entry.turn.take() else { return };
        for wait in std::mem::take(&mut entry.waits) {
            self.waiting.remove(&wait, &turn);
        }
        if self.pending.remove(&turn)
            && let Some(refusal) = &entry.refusal
            && let Some(count) = self.pending_by_reason.get_mut(refusal.reason())
        {
            *count -= 1;
            if *count == 0 {
                self.pending_by_reason.remove(refusal.reason());
            }
        }
    }

    fn book_in(&mut self, address: IpAddr, key: &ServiceKey, work: &mut Work) {
        let Some(entry) = self.entries.get(key) else { return };
        self.ledger.book_in(address, key, &entry.tenant);
        if let Some(losers) = work.lost.get_mut(&address) {
            losers.remove(key);
        }
        let place = (address, key.clone());
        if work.freed.get(&place) == Some(&entry.tenant) {
            work.freed.remove(&place);
        } else {
            work.grown.extend(entry.tenant.sharing_key.clone());
            work.taken.insert(address);
        }
    }

    /// Takes every address from a Service and forgets it. What was known of it is returned.
    pub(super) fn release(&mut self, key: &ServiceKey, work: &mut Work) -> Option<Entry> {
        self.stop_waiting(key);
        let entry = self.entries.remove(key)?;
        for &address in entry.assignment.iter().flat_map(|assignment| &assignment.addresses) {
            if let Some(tenant) = self.ledger.book_out(address, key) {
                work.freed.insert((address, key.clone()), tenant);
            }
            work.lost.entry(address).or_default().insert(key.clone());
        }
        Some(entry)
    }

    fn rules(&self) -> Facts<'_> {
        Facts { ledger: &self.ledger, namespaces: &self.facts.namespaces, left_out: &self.left_out }
    }
}

/// Which of two Services keeps an address that both claim and cannot share: the lesser one. The fields stand in the
/// order of the rule.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    /// Who was given it by this process comes before who only has it in its status.
    holds_nothing: bool,
    /// Without a claim of ours in its status it is somebody else's word.
    is_unvouched: bool,
    /// The older assignment comes first.
    assigned_at: Option<i64>,
    /// Then the older Service.
    created: i64,
    /// Then by name.
    service: ServiceKey,
}

impl Claim {
    fn new(holds_nothing: bool, service: &Service) -> Self {
        let assigned_at = service.observed.assigned_at;
        let (created, service) = (service.created, service.key.clone());
        Self { holds_nothing, is_unvouched: assigned_at.is_none(), assigned_at, created, service }
    }
}

/// Whether the status of a Service that others serve now still says what we wrote.
fn still_shows(service: &Service, entry: &Entry) -> bool {
    let ours = entry.assignment.as_ref().map_or(&[][..], |assignment| &assignment.addresses);
    is_marked(&service.observed) && service.observed.addresses == ours
}

/// When a Service without an address has its turn.
fn turn(service: &Service, wish: &LoadBalancer) -> Turn {
    let is_explicit = wish.request.as_ref().is_ok_and(|request| !request.addresses.is_empty());
    let rank = if is_explicit { Rank::Explicit } else { Rank::Any };
    Turn { rank, created: service.created, service: service.key.clone() }
}
