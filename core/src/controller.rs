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
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

pub use self::{
    allocate::Assignment,
    ledger::Conflict,
    refusal::{Loss, Mismatch, Refusal},
    status::Reason,
};
use self::{
    flight::Flights,
    ledger::{Book, Ledger, Tenant},
    report::Reports,
    waiting::{Turn, Wait, Waiting},
};
use crate::{
    model::{
        Family, ObjectKey, ObjectRef, PoolName, ServiceKey,
        advertisement::{BgpAdvertisement, L2Advertisement},
        pool::Pool,
        service::{Service, ServiceStatus},
    },
    snapshot::Snapshot,
    write::{WRITE_PATIENCE, Write},
};

mod allocate;
mod compare;
mod entry;
mod flight;
mod ledger;
mod preference;
mod refusal;
mod report;
mod serve;
mod settle;
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

/// The time of a step, and how long its writes may take to show.
#[derive(Clone, Copy, Debug)]
struct Clock {
    now: Instant,
    patience: Duration,
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
    /// Pools that are used otherwise since [`Controller::take_usage_changes`].
    recounted: BTreeSet<PoolName>,
    /// Pools that are there and not in force: whoever has an address of one keeps it.
    left_out: BTreeSet<PoolName>,
    /// Which advertisements cover a pool.
    advertisements: BTreeMap<PoolName, Covering>,
    /// Who lost an address, and still has to be seen without it before another Service is written with it.
    givers: BTreeSet<(ServiceKey, IpAddr)>,
    /// The same by address.
    given: BTreeSet<(IpAddr, ServiceKey)>,
    /// Services of a class that others serve now, whose status still says what we wrote.
    leaving: BTreeSet<ServiceKey>,
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
    /// The shared Ingress entry may have to be another.
    entry: bool,
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
        let clock = Clock { now, patience: self.config.patience };
        let mut writes = match event {
            Event::Snapshot(snapshot) => {
                self.latest = Some(Arc::clone(&snapshot));
                if self.leads { self.books.advance(snapshot, clock) } else { Vec::new() }
            }
            Event::Leads(leads) if leads == self.leads => Vec::new(),
            Event::Leads(leads) => {
                // What was decided before is in the statuses, or was never carried out.
                self.leads = leads;
                self.books = Books::new(self.config);
                match &self.latest {
                    Some(snapshot) if leads => self.books.advance(Arc::clone(snapshot), clock),
                    _ => Vec::new(),
                }
            }
            Event::Tick => Vec::new(),
        };
        writes.extend(self.books.flights.due(clock));
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
        self.books.ledger.books().flat_map(|(_, book)| usage(book))
    }

    /// Pools that are used otherwise since this was last asked, and how full each is; one that is gone has no usage.
    /// After a change of leadership, what was said before counts no more.
    pub fn take_usage_changes(&mut self) -> Vec<(PoolName, Vec<Usage>)> {
        let changed = std::mem::take(&mut self.books.recounted);
        let usage_of = |pool: &PoolName| self.books.ledger.book(pool).into_iter().flat_map(usage).collect();
        changed.into_iter().map(|pool| (pool.clone(), usage_of(&pool))).collect()
    }

    /// How many Services have no address, by [`Refusal::reason`].
    pub fn pending(&self) -> &BTreeMap<&'static str, usize> {
        &self.books.pending_by_reason
    }
}

fn usage(book: &Book) -> impl Iterator<Item = Usage> {
    let families = [Family::V4, Family::V6].into_iter().filter(|&family| book.pool.has_family(family));
    families.map(|family| Usage {
        pool: book.pool.name.clone(),
        family,
        used: book.used(family),
        capacity: book.capacity(family),
    })
}

/// What a controller that starts on these facts would say of a Service.
pub fn explain(snapshot: &Arc<Snapshot>, service: &ServiceKey) -> Verdict {
    let mut books = Books::default();
    let mut work = Work::default();
    books.decide(Arc::clone(snapshot), &mut work);
    books.verdict(service)
}

/// What it would say of every Service that is served.
pub fn explain_all(snapshot: &Arc<Snapshot>) -> BTreeMap<ServiceKey, Verdict> {
    let mut books = Books::default();
    books.decide(Arc::clone(snapshot), &mut Work::default());
    books.entries.keys().map(|service| (service.clone(), books.verdict(service))).collect()
}

/// The advertisements that cover a pool.
#[derive(Debug, Default)]
struct Covering {
    by_layer2: Vec<Arc<L2Advertisement>>,
    by_bgp: Vec<Arc<BgpAdvertisement>>,
}

impl Books {
    fn new(config: Config) -> Self {
        Self { reports: Reports::new(config.proxy_carries_services), ..Self::default() }
    }

    /// Moves on to newer facts and returns what has to be written.
    fn advance(&mut self, next: Arc<Snapshot>, clock: Clock) -> Vec<Write> {
        let mut work = Work::default();
        self.decide(next, &mut work);
        self.settle(work, clock)
    }

    fn is_advertised(&self, service: &Service, pool: &PoolName) -> bool {
        self.advertisements.get(pool).is_some_and(|covering| {
            covering.by_layer2.iter().any(|advertisement| advertisement.covers_service(&service.labels))
                || covering.by_bgp.iter().any(|advertisement| advertisement.covers_service(&service.labels))
        })
    }

    fn verdict(&self, key: &ServiceKey) -> Verdict {
        let (Some(service), Some(entry)) = (self.facts.services.get(key), self.entries.get(key)) else {
            return Verdict::NotServed;
        };
        match (&entry.assignment, &entry.refusal) {
            (Some(assignment), ignored) => Verdict::Assigned {
                assignment: assignment.clone(),
                ignored: ignored.clone(),
                // Of a pool that is left out nobody knows whether one covers it.
                is_advertised: self.left_out.contains(&assignment.pool)
                    || self.is_advertised(service, &assignment.pool),
            },
            (None, Some(refusal)) => Verdict::Refused(refusal.clone()),
            (None, None) => Verdict::NotServed,
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
            let event = if self.assignment.is_none() { status::failed } else { status::ignored };
            work.tell(key, event(key, refusal));
        }
        // Whether anybody announces it shows when its status is settled.
        let waits_for_status = reason.is_none() && self.told.as_deref() == Some(Reason::NotAdvertised.as_str());
        if !waits_for_status {
            self.told = reason.map(str::to_owned);
        }
        self.refusal = refusal;
    }
}

impl Work {
    fn tell(&mut self, key: &ServiceKey, event: crate::write::Event) {
        self.events.entry(key.clone()).or_default().push(event);
    }
}

/// Whether a status carries a mark of ours. A Service of another class may have addresses too, from somebody else.
fn is_marked(status: &ServiceStatus) -> bool {
    status.pool.is_some() || status.condition.is_some()
}

fn pool_ref(pool: &Pool) -> ObjectRef {
    ObjectRef::namespaced(API_VERSION, "IPAddressPool", &pool.key)
}

/// The pool in force that this is about.
fn pool_named<'a>(facts: &'a Snapshot, object: &ObjectRef) -> Option<&'a Arc<Pool>> {
    facts.pools.get(object.name.as_str()).filter(|pool| pool_ref(pool) == *object)
}

fn advertisement_ref(key: &ObjectKey) -> ObjectRef {
    ObjectRef::namespaced(API_VERSION, "L2Advertisement", key)
}
