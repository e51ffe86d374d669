//! The controller: gives Services addresses, and says in every status what came of it.
//!
//! Level, not edge: what is decided follows from the latest [`Snapshot`] alone, and status is the only memory, so a
//! controller that starts anew on the same facts decides the same and writes nothing. Between two snapshots only what
//! differs is looked at; the [`ledger`] and the lists of who waits for what are kept up to date by that difference.
//!
//! An address that is still valid never moves. At the start, addresses found in statuses are taken over first; then
//! come explicit wishes; then creation order, then name.
//!
//! **Crash safety.** An address goes from one Service to another only after a snapshot has shown the first one's status
//! without it. Until then the second one's status says so (reason `Moving`). So whichever of the writes are carried
//! out, in whatever order, no two statuses ever claim an address that they may not share, and a controller that starts
//! on any of them gives it to one Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use imbl::ordmap::DiffItem;

pub use self::{
    allocate::{Assignment, Loss, Mismatch, Refusal},
    ledger::Conflict,
};
use self::{
    allocate::{Denied, Facts},
    flight::{Flights, Target},
    ledger::{Ledger, Tenant},
    report::{Report, Reports},
    waiting::{Rank, Turn, Wait, Waiting},
};
use crate::{
    model::{
        Family, ObjectKey, ObjectRef, PoolName, ServiceKey,
        advertisement::L2Advertisement,
        pool::Pool,
        service::{LoadBalancer, Service, ServiceStatus, TrafficPolicy},
    },
    snapshot::Snapshot,
    write::{ACCEPTED, WRITE_PATIENCE, Write},
};

mod allocate;
mod flight;
mod ledger;
mod report;
mod status;
mod waiting;

#[cfg(test)]
mod tests;

/// `apiVersion` of the kinds that users write for us.
const API_VERSION: &str = "ferrogate.io/v1beta1";

/// How a controller behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a write may take to show in a snapshot before it is asked for again.
    pub patience: Duration,
    /// Whether the built-in proxy carries every LoadBalancer Service, not only the entry: its ports are reported where
    /// the proxy cannot serve them.
    pub proxy_carries_services: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { patience: WRITE_PATIENCE, proxy_carries_services: false }
    }
}

/// What the controller takes in.
#[derive(Clone, Debug)]
pub enum Event {
    /// The facts are these now.
    Snapshot(Arc<Snapshot>),
    /// Whether this process is the one that writes. Until told so, a controller decides and writes nothing.
    Leads(bool),
    /// The deadline has come.
    Tick,
}

/// What came of a Service's wish for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does not exist, is not of type LoadBalancer, or is of a class that others serve.
    NotServed,
    /// It has addresses.
    Assigned {
        /// Which ones, of which pool.
        assignment: Assignment,
        /// Why its request is ignored, if nobody can read it.
        ignored: Option<Refusal>,
        /// Whether an advertisement covers pool and Service.
        is_advertised: bool,
    },
    /// It has none.
    Refused(Refusal),
}

/// How full a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The pool.
    pub pool: PoolName,
    /// The family counted.
    pub family: Family,
    /// Distinct addresses in use.
    pub used: u64,
    /// Addresses that can be handed out in all, at most `u128::MAX`.
    pub capacity: u128,
}

/// Decides about addresses and statuses. Drive it with [`Controller::step`].
#[derive(Debug)]
pub struct Controller {
    config: Config,
    leads: bool,
    /// The newest facts.
    latest: Option<Arc<Snapshot>>,
    books: Books,
}

/// Everything derived from the facts; thrown away and built anew when leadership is gained.
#[derive(Debug, Default)]
struct Books {
    /// The facts that the rest of this rests on.
    facts: Arc<Snapshot>,
    ledger: Ledger,
    entries: BTreeMap<ServiceKey, Entry>,
    waiting: Waiting,
    /// Turns of every Service without an address.
    pending: BTreeSet<Turn>,
    pending_by_reason: BTreeMap<&'static str, usize>,
    /// Pools with `autoAssign`, best first.
    automatic: Vec<PoolName>,
    /// Which advertisements cover a pool.
    advertisements: BTreeMap<PoolName, Vec<Arc<L2Advertisement>>>,
    /// Who lost an address, and still has to be seen without it before another Service is written with it.
    givers: BTreeSet<(ServiceKey, IpAddr)>,
    /// The same by address.
    given: BTreeSet<(IpAddr, ServiceKey)>,
    /// Addresses of every entry Service that has some.
    entrances: BTreeMap<ServiceKey, Vec<IpAddr>>,
    reports: Reports,
    /// What was told of each object that is reported on.
    told: BTreeMap<ObjectRef, String>,
    flights: Flights,
}

/// What is known of one LoadBalancer Service of ours. After a step, at least one of the first two is there.
#[derive(Debug)]
struct Entry {
    assignment: Option<Assignment>,
    /// Why it has no address; with an assignment, why its request is ignored.
    refusal: Option<Refusal>,
    tenant: Arc<Tenant>,
    /// Where it stands in [`Books::waiting`].
    turn: Option<Turn>,
    waits: Vec<Wait>,
    /// The reason last told: by an Event of this process, or in the condition that was found.
    told: Option<String>,
}

/// What one step has to look at, and what it found.
#[derive(Default)]
struct Work {
    /// Services to be judged anew.
    judge: BTreeSet<ServiceKey>,
    /// Services whose status has to be compared with what it should say.
    services: BTreeSet<ServiceKey>,
    pools: BTreeSet<PoolName>,
    ingresses: BTreeSet<ObjectKey>,
    objects: BTreeSet<ObjectRef>,
    /// Everyone without an address gets a new chance.
    retry_all: bool,
    /// Services to be given something, in this order.
    candidates: BTreeSet<Turn>,
    /// Addresses that were in use before: by whom, and how.
    freed: BTreeMap<(IpAddr, ServiceKey), Arc<Tenant>>,
    /// Sharing groups with a new member.
    grown: BTreeSet<String>,
    /// Addresses with a new user. It helps nobody, but who waits for one is to say who has it now.
    taken: BTreeSet<IpAddr>,
    /// Addresses that were taken from a Service that still exists.
    lost: BTreeMap<IpAddr, BTreeSet<ServiceKey>>,
    events: BTreeMap<ServiceKey, Vec<crate::write::Event>>,
}

impl Controller {
    /// A controller that knows nothing yet and does not lead.
    pub fn new(config: Config) -> Self {
        Self { config, leads: false, latest: None, books: Books::new(config) }
    }

    /// Takes in one event at `now` and returns the writes to be carried out, in this order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Write> {
        let mut writes = match event {
            Event::Snapshot(snapshot) => {
                self.latest = Some(Arc::clone(&snapshot));
                if self.leads { self.books.advance(snapshot, now + self.config.patience) } else { Vec::new() }
            }
            Event::Leads(leads) if leads == self.leads => Vec::new(),
            Event::Leads(leads) => {
                // What was decided before is in the statuses, or was never carried out.
                self.leads = leads;
                self.books = Books::new(self.config);
                match &self.latest {
                    Some(snapshot) if leads => self.books.advance(Arc::clone(snapshot), now + self.config.patience),
                    _ => Vec::new(),
                }
            }
            Event::Tick => Vec::new(),
        };
        writes.extend(self.books.flights.repeat(now, self.config.patience));
        writes
    }

    /// When `step` wants a [`Event::Tick`] next.
    pub fn deadline(&self) -> Option<Instant> {
        self.books.flights.deadline()
    }

    /// What came of this Service's wish; [`Verdict::NotServed`] for all while not leading.
    pub fn verdict(&self, service: &ServiceKey) -> Verdict {
        self.books.verdict(service)
    }

    /// How full each pool is, for each family it has.
    pub fn usage(&self) -> impl Iterator<Item = Usage> {
        self.books.ledger.books().flat_map(|(name, book)| {
            let families = [Family::V4, Family::V6].into_iter().filter(|&family| book.pool.has_family(family));
            families.map(|family| Usage {
                pool: name.clone(),
                family,
                used: book.used(family),
                capacity: book.capacity(family),
            })
        })
    }

    /// How many Services have no address, by [`Refusal::reason`].
    pub fn pending(&self) -> &BTreeMap<&'static str, usize> {
        &self.books.pending_by_reason
    }
}

/// What a controller that starts on these facts would say of a Service.
pub fn explain(snapshot: &Arc<Snapshot>, service: &ServiceKey) -> Verdict {
    let mut books = Books::default();
    let mut work = Work::default();
    books.decide(Arc::clone(snapshot), &mut work);
    books.verdict(service)
}

impl Books {
    fn new(config: Config) -> Self {
        Self { reports: Reports::new(config.proxy_carries_services), ..Self::default() }
    }

    /// Moves on to newer facts and returns what has to be written.
    fn advance(&mut self, next: Arc<Snapshot>, repeat_at: Instant) -> Vec<Write> {
        let mut work = Work::default();
        self.decide(next, &mut work);
        self.settle(work, repeat_at)
    }

    /// Brings every assignment in line with newer facts.
    fn decide(&mut self, next: Arc<Snapshot>, work: &mut Work) {
        let last = std::mem::replace(&mut self.facts, Arc::clone(&next));
        self.compare_pools(&last, &next, work);
        self.compare_advertisements(&last, &next, work);
        for object in self.reports.compare(&last, &next) {
            let pool = next.pools.values().find(|pool| pool_ref(pool) == object);
            work.pools.extend(pool.map(|pool| pool.name.clone()));
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
        self.judge(work);
        self.serve(work);
    }

    fn compare_pools(&mut self, last: &Snapshot, next: &Snapshot, work: &mut Work) {
        let mut opened = Vec::new();
        for change in last.pools.diff(&next.pools) {
            match change {
                DiffItem::Add(_, pool) => opened.push(pool),
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
        self.automatic = allocate::preference(next.pools.values());
        work.retry_all = true;
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
        let relabelled = last.pools.diff(&next.pools).filter_map(|change| match change {
            DiffItem::Add(_, pool) => Some(pool),
            DiffItem::Update { old: (_, old), new: (_, new) } => (old.labels != new.labels).then_some(new),
            DiffItem::Remove(..) => None,
        });
        let mut affected: Vec<_> = relabelled.collect();
        if changed.is_empty() && affected.is_empty() {
            return;
        }
        affected.extend(next.pools.values().filter(|pool| changed.iter().any(|changed| changed.pools.covers(pool))));
        for pool in affected {
            let covering = next.l2_advertisements.values().filter(|advertisement| advertisement.pools.covers(pool));
            self.advertisements.insert(pool.name.clone(), covering.cloned().collect());
            for range in &pool.ranges {
                work.services.extend(self.ledger.users_within(*range).cloned());
            }
        }
        self.advertisements.retain(|name, _| next.pools.contains_key(name));
    }

    /// Whether somebody else changed the addresses in a Service's status.
    fn was_edited(&self, service: &Service) -> bool {
        let assigned = self.entries.get(&service.key).and_then(|entry| entry.assignment.as_ref());
        let ours: &[IpAddr] = assigned.map_or(&[], |assignment| &assignment.addresses);
        service.load_balancer.is_some()
            && !self.flights.is_in_flight(&Target::Service(service.key.clone()))
            && service.observed.addresses != ours
    }

    /// Lets every Service that has to be judged keep what it has, where it may.
    fn judge(&mut self, work: &mut Work) {
        let mut claims = Vec::new();
        for key in std::mem::take(&mut work.judge) {
            work.services.insert(key.clone());
            let known = self.release(&key, work);
            let Some(service) = self.facts.services.get(&key).cloned() else { continue };
            let Some(wish) = &service.load_balancer else {
                // It was ours, and its status still claims what is free now.
                for &address in service.observed.addresses.iter().filter(|_| is_marked(&service.observed)) {
                    work.lost.entry(address).or_default().insert(key.clone());
                }
                continue;
            };
            let holds_nothing = known.as_ref().is_none_or(|entry| entry.assignment.is_none());
            claims.push((holds_nothing, turn(&service, wish), service, known));
        }
        // Who holds an address comes before who only has it in its status.
        claims.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
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
                let refusal = unreadable.map(|fault| Refusal::UnreadableRequest { fault: fault.clone() });
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
    fn serve(&mut self, work: &mut Work) {
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
    fn release(&mut self, key: &ServiceKey, work: &mut Work) -> Option<Entry> {
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
        Facts { ledger: &self.ledger, namespaces: &self.facts.namespaces, automatic: &self.automatic }
    }

    fn is_advertised(&self, service: &Service, pool: &PoolName) -> bool {
        let covering = self.advertisements.get(pool).into_iter().flatten();
        covering.into_iter().any(|advertisement| advertisement.covers_service(&service.labels))
    }

    fn verdict(&self, key: &ServiceKey) -> Verdict {
        let (Some(service), Some(entry)) = (self.facts.services.get(key), self.entries.get(key)) else {
            return Verdict::NotServed;
        };
        match (&entry.assignment, &entry.refusal) {
            (Some(assignment), ignored) => Verdict::Assigned {
                assignment: assignment.clone(),
                ignored: ignored.clone(),
                is_advertised: self.is_advertised(service, &assignment.pool),
            },
            (None, Some(refusal)) => Verdict::Refused(refusal.clone()),
            (None, None) => Verdict::NotServed,
        }
    }

    /// Compares what statuses should say with what they say, for everything this step has touched.
    fn settle(&mut self, mut work: Work, repeat_at: Instant) -> Vec<Write> {
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
            self.settle_service(key, &mut work, repeat_at, &mut writes);
            others.extend(self.hand_over(key));
        }
        for key in &others {
            self.settle_service(key, &mut work, repeat_at, &mut writes);
        }
        work.pools.append(&mut self.ledger.take_moved());
        writes.extend(work.pools.iter().filter_map(|name| self.pool_write(name, repeat_at)));
        writes.extend(work.ingresses.iter().filter_map(|key| self.ingress_write(key, repeat_at)));
        for object in &work.objects {
            self.object_writes(object, repeat_at, &mut writes);
        }
        writes
    }

    fn settle_service(&mut self, key: &ServiceKey, work: &mut Work, repeat_at: Instant, writes: &mut Vec<Write>) {
        writes.extend(self.service_write(key, repeat_at));
        writes.extend(work.events.remove(key).into_iter().flatten().map(Write::Event));
        self.note_entrance(key, &mut work.ingresses);
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
        let ours = service.filter(|service| service.load_balancer.is_some() || is_marked(&service.observed));
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

    fn service_write(&mut self, key: &ServiceKey, repeat_at: Instant) -> Option<Write> {
        let service = self.facts.services.get(key)?;
        let status = match self.entries.get(key) {
            Some(Entry { assignment: Some(assignment), refusal, .. }) => match self.held_by(service, assignment) {
                Some((address, giver)) => status::moving(service, assignment, address, &giver),
                None => {
                    let is_advertised = self.is_advertised(service, &assignment.pool);
                    status::assigned(service, assignment, refusal.as_ref(), is_advertised)
                }
            },
            Some(Entry { refusal: Some(refusal), .. }) => status::refused(service, refusal),
            // Not ours, or not ours any more. Only what we wrote is taken away.
            Some(_) | None if is_marked(&service.observed) => ServiceStatus::default(),
            Some(_) | None => service.observed.clone(),
        };
        let shown = service.observed == status;
        let write = Write::ServiceStatus { service: key.clone(), status };
        self.flights.wish(Target::Service(key.clone()), write, shown, repeat_at)
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

    fn pool_write(&mut self, name: &PoolName, repeat_at: Instant) -> Option<Write> {
        let book = self.ledger.book(name)?;
        let status = status::pool(book, &self.reports.of(&pool_ref(&book.pool)));
        let key = book.pool.key.clone();
        let shown = book.pool.observed == status;
        self.flights.wish(Target::Pool(key.clone()), Write::PoolStatus { pool: key, status }, shown, repeat_at)
    }

    fn ingress_write(&mut self, key: &ObjectKey, repeat_at: Instant) -> Option<Write> {
        let ingress = self.facts.ingresses.get(key)?;
        let addresses: BTreeSet<IpAddr> = self.entrances.values().flatten().copied().collect();
        let addresses: Vec<_> = addresses.into_iter().collect();
        let shown = ingress.observed_addresses == addresses;
        let write = Write::IngressStatus { ingress: key.clone(), addresses };
        self.flights.wish(Target::Ingress(key.clone()), write, shown, repeat_at)
    }

    /// The condition of an object without a status of its own in the snapshot, and Events about what is reported of it.
    fn object_writes(&mut self, object: &ObjectRef, repeat_at: Instant, writes: &mut Vec<Write>) {
        let reports = self.reports.of(object);
        let pool = self.facts.pools.values().find(|pool| pool_ref(pool) == *object);
        let key = ObjectKey::new(object.namespace.as_deref().unwrap_or_default(), object.name.as_str());
        let advertisement = self.facts.l2_advertisements.get(&key).filter(|_| advertisement_ref(&key) == *object);
        let shown_conditions = self.facts.conditions.get(object).map_or(&[][..], |conditions| conditions.as_slice());
        let shown = shown_conditions.iter().find(|condition| condition.kind == ACCEPTED);
        let wish = status::accepted(advertisement.map_or(0, |advertisement| advertisement.generation), &reports);

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
        let is_wanted = match (pool, advertisement) {
            (Some(_), _) => false,
            (None, Some(_)) => true,
            (None, None) => !reports.is_empty() && has_conditions(object, &reports),
        };
        let is_outdated = shown.is_some_and(|shown| shown.holds != wish.holds);
        let target = Target::Accepted(object.clone());
        if is_wanted || is_outdated {
            let shown = shown == Some(&wish);
            let write = Write::Condition { object: object.clone(), condition: wish };
            writes.extend(self.flights.wish(target, write, shown, repeat_at));
        } else {
            self.flights.forget(&target);
        }
    }
}

impl Entry {
    /// Sets why it has no address, or why its request is ignored, and tells so once per change of reason.
    fn tell(&mut self, key: &ServiceKey, refusal: Option<Refusal>, work: &mut Work) {
        let reason = refusal.as_ref().map(Refusal::reason);
        if let Some(refusal) = &refusal
            && self.told.as_deref() != reason
        {
            work.tell(key, status::failed(key, refusal));
        }
        self.told = reason.map(str::to_owned);
        self.refusal = refusal;
    }
}

impl Work {
    fn tell(&mut self, key: &ServiceKey, event: crate::write::Event) {
        self.events.entry(key.clone()).or_default().push(event);
    }
}

/// When a Service without an address has its turn.
fn turn(service: &Service, wish: &LoadBalancer) -> Turn {
    let is_explicit = wish.request.as_ref().is_ok_and(|request| !request.addresses.is_empty());
    let rank = if is_explicit { Rank::Explicit } else { Rank::Any };
    Turn { rank, created: service.created, service: service.key.clone() }
}

/// Whether two versions of a Service have the same right to an address.
fn has_same_claim(old: &Service, new: &Service) -> bool {
    let needs_selector = new.external_traffic_policy == TrafficPolicy::Local;
    old.load_balancer == new.load_balancer
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
        && old.allocation == new.allocation
        && old.key == new.key
}

/// Whether a status carries a mark of ours. A Service of another class may have addresses too, from somebody else.
fn is_marked(status: &ServiceStatus) -> bool {
    status.pool.is_some() || status.condition.is_some()
}

fn pool_ref(pool: &Pool) -> ObjectRef {
    ObjectRef::namespaced(API_VERSION, "IPAddressPool", &pool.key)
}

fn advertisement_ref(key: &ObjectKey) -> ObjectRef {
    ObjectRef::namespaced(API_VERSION, "L2Advertisement", key)
}

/// Whether the object can carry our condition: kinds of our own and Services, where the object itself could be read.
fn has_conditions(object: &ObjectRef, reports: &[Report]) -> bool {
    let is_service = object.api_version == "v1" && object.kind == "Service";
    (object.api_version == API_VERSION || is_service) && reports.iter().all(|report| report.is_readable)
}
