//! Which address a Service gets, whether it may keep the one it has, and why not.
//!
//! Pure functions of a Service and the [`Ledger`]. The order of preference: the addresses it asks for; the pool it
//! asks for; pools that serve only some Services, lowest positive priority first and 0 last; then the other pools by
//! name. Inside a pool, ranges in the order written and addresses upward.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::OrdMap;

use super::{
    ledger::{Book, Conflict, Ledger, Tenant},
    refusal::{Loss, Mismatch, NAMED, Refusal},
    waiting::Wait,
};
use crate::model::{
    Family, Labels, PoolName, ServiceKey,
    pool::{Pool, ServiceAllocation},
    selector::any_matches,
    service::{FamilyPolicy, LoadBalancer, Request, Service},
};

/// The addresses a Service has, all of one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The pool.
    pub pool: PoolName,
    /// One address of each family at most. The first one decides the layer 2 owner.
    pub addresses: Vec<IpAddr>,
}

/// A refusal, and what would help.
#[derive(Debug)]
pub(super) struct Denied {
    /// Boxed, because a refusal is larger than what is returned when all is well.
    pub refusal: Box<Refusal>,
    pub waits: Vec<Wait>,
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self { refusal: Box::new(refusal), waits: Vec::new() }
    }
}

/// Labels of every Namespace.
type Namespaces = OrdMap<String, Arc<Labels>>;

/// What the pure rules look at.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub ledger: &'a Ledger,
    pub namespaces: &'a Namespaces,
    /// Pools that are there and not in force.
    pub left_out: &'a BTreeSet<PoolName>,
}

/// How many addresses of which families a Service is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    One(Family),
    Both,
    /// Both where possible, else this one, else the other.
    Prefer(Family),
}

impl Need {
    fn families(self) -> Vec<Family> {
        match self {
            Self::One(family) => vec![family],
            Self::Both | Self::Prefer(_) => vec![Family::V4, Family::V6],
        }
    }
}

/// Finds addresses for a Service that has none.
pub(super) fn allocate(
    facts: &Facts<'_>,
    service: &Service,
    wish: &LoadBalancer,
    tenant: &Tenant,
) -> Result<Assignment, Denied> {
    if facts.ledger.has_no_pools() {
        return Err(Refusal::NoPools.into());
    }
    let need = need(wish)?;
    let request = match &wish.request {
        Ok(request) => request,
        Err(unreadable) => return Err(Refusal::UnreadableRequest { fault: unreadable.fault.clone() }.into()),
    };
    if !request.addresses.is_empty() {
        return requested(facts, service, wish, request, tenant);
    }
    match &request.pool {
        Some(name) => from_requested_pool(facts, service, name, need, tenant),
        None => automatic(facts, service, need, tenant),
    }
}

/// Whether a Service may keep these addresses, and in which pool they are now.
pub(super) fn keep(
    facts: &Facts<'_>,
    service: &Service,
    wish: &LoadBalancer,
    addresses: &[IpAddr],
    tenant: &Tenant,
) -> Result<Assignment, Loss> {
    let need = need(wish).map_err(Loss::Refused)?;
    let wanted = need.families();
    let mut families: Vec<_> = addresses.iter().copied().map(Family::of).collect();
    families.sort();
    let may_be_single = matches!(need, Need::Prefer(_)) && families.len() == 1;
    if families != wanted && !may_be_single {
        let families = wanted;
        return Err(Loss::Refused(Refusal::WrongFamilies { requested: addresses.to_vec(), families }));
    }
    let left_out = service.observed.pool.as_ref().filter(|pool| facts.left_out.contains(*pool));
    let pool = match (place(facts, service, addresses, Pool::contains), left_out) {
        // What it may have of a pool that nobody can read, nobody can tell: that takes nothing away.
        (Err(Refusal::OutsidePools { .. }), Some(pool)) => pool.clone(),
        (found, _) => found.map_err(Loss::Refused)?,
    };
    if let Some((address, holder, conflict)) = taken(facts, service, addresses, tenant) {
        return Err(Loss::HeldByOther { address, holder, conflict });
    }
    // A wish that cannot be read takes nothing away.
    if let Ok(request) = &wish.request {
        let asked: BTreeSet<_> = request.addresses.iter().collect();
        if !asked.is_empty() && asked != addresses.iter().collect() {
            return Err(Loss::OtherAddresses { requested: request.addresses.clone() });
        }
        if let Some(requested) = request.pool.as_ref().filter(|requested| **requested != pool) {
            return Err(Loss::OtherPool { requested: requested.clone() });
        }
    }
    Ok(Assignment { pool, addresses: addresses.to_vec() })
}

/// The family that a Service with one address would like to have as well.
pub(super) fn second_family(wish: &LoadBalancer, assignment: &Assignment) -> Option<Family> {
    let asks_for_addresses = wish.request.as_ref().map_or(true, |request| !request.addresses.is_empty());
    let wants_both = matches!(need(wish), Ok(Need::Prefer(_))) && !asks_for_addresses;
    match assignment.addresses[..] {
        [address] if wants_both => Some(Family::of(address).other()),
        _ => None,
    }
}

/// An address of a second family, of the pool the Service is in.
pub(super) fn second(
    facts: &Facts<'_>,
    service: &ServiceKey,
    assignment: &Assignment,
    family: Family,
    tenant: &Tenant,
) -> Result<IpAddr, Vec<Wait>> {
    let book = facts.ledger.book(&assignment.pool);
    let found = book.and_then(|book| facts.ledger.first_usable(book, family, service, tenant));
    found.ok_or_else(|| {
        let mut waits = waits_for_group(tenant);
        waits.push(Wait::Room(assignment.pool.clone(), family));
        waits
    })
}

fn need(wish: &LoadBalancer) -> Result<Need, Refusal> {
    let &primary = wish.families.first().ok_or(Refusal::NoFamily)?;
    let is_dual = wish.families.contains(&primary.other());
    match wish.family_policy {
        FamilyPolicy::SingleStack => Ok(Need::One(primary)),
        FamilyPolicy::PreferDualStack if is_dual => Ok(Need::Prefer(primary)),
        FamilyPolicy::PreferDualStack => Ok(Need::One(primary)),
        FamilyPolicy::RequireDualStack if is_dual => Ok(Need::Both),
        FamilyPolicy::RequireDualStack => Err(Refusal::NotDualStack { present: primary }),
    }
}

/// Addresses by number.
fn requested(
    facts: &Facts<'_>,
    service: &Service,
    wish: &LoadBalancer,
    request: &Request,
    tenant: &Tenant,
) -> Result<Assignment, Denied> {
    let mut addresses = request.addresses.clone();
    addresses.sort();
    let families: Vec<_> = addresses.iter().copied().map(Family::of).collect();
    let fits = match need(wish)? {
        Need::One(family) => families == [family],
        Need::Both => families == [Family::V4, Family::V6],
        Need::Prefer(_) => families == [Family::V4, Family::V6] || families.len() == 1,
    };
    if !fits {
        return Err(Refusal::WrongFamilies { requested: addresses, families: wish.families.clone() }.into());
    }
    let pool = place(facts, service, &addresses, Pool::gives)?;
    if let Some(requested) = request.pool.as_ref().filter(|requested| **requested != pool) {
        let (address, requested) = (addresses[0], requested.clone());
        return Err(Refusal::PoolMismatch { address, holder: pool, requested }.into());
    }
    if let Some((address, holder, conflict)) = taken(facts, service, &addresses, tenant) {
        let waits = addresses.into_iter().map(Wait::Address).collect();
        return Err(Denied { refusal: Box::new(Refusal::AddressTaken { address, holder, conflict }), waits });
    }
    Ok(Assignment { pool, addresses })
}

/// The one pool that has all these addresses, as `has` sees it, if it serves this Service.
fn place(
    facts: &Facts<'_>,
    service: &Service,
    addresses: &[IpAddr],
    has: impl Fn(&Pool, IpAddr) -> bool,
) -> Result<PoolName, Refusal> {
    let mut found: Option<(IpAddr, &Pool)> = None;
    for &address in addresses {
        let pool = &facts.ledger.pool_around(address).ok_or(Refusal::OutsidePools { address })?.pool;
        if !has(pool, address) {
            return Err(Refusal::AddressAvoided { address, pool: pool.name.clone() });
        }
        match found {
            Some((first, first_pool)) if first_pool.name != pool.name => {
                let (first_pool, second_pool) = (first_pool.name.clone(), pool.name.clone());
                return Err(Refusal::DifferentPools { first, first_pool, second: address, second_pool });
            }
            Some(_) => {}
            None => found = Some((address, pool)),
        }
    }
    let (_, pool) = found.ok_or(Refusal::NoFamily)?;
    match mismatch(facts.namespaces, pool, service) {
        Some(mismatch) => Err(Refusal::PoolNotForService { pool: pool.name.clone(), mismatch }),
        None => Ok(pool.name.clone()),
    }
}

/// Whether somebody has one of these addresses and does not share it with this Service.
fn taken(
    facts: &Facts<'_>,
    service: &Service,
    addresses: &[IpAddr],
    tenant: &Tenant,
) -> Option<(IpAddr, ServiceKey, Conflict)> {
    addresses.iter().find_map(|&address| {
        let (holder, conflict) = facts.ledger.conflict(address, &service.key, tenant)?;
        Some((address, holder, conflict))
    })
}

fn from_requested_pool(
    facts: &Facts<'_>,
    service: &Service,
    name: &PoolName,
    need: Need,
    tenant: &Tenant,
) -> Result<Assignment, Denied> {
    let book = facts.ledger.book(name).ok_or_else(|| Refusal::UnknownPool { pool: name.clone() })?;
    if let Some(mismatch) = mismatch(facts.namespaces, &book.pool, service) {
        return Err(Refusal::PoolNotForService { pool: name.clone(), mismatch }.into());
    }
    let offer = offer(facts, book, service, tenant);
    let choice = match need {
        Need::One(family) => offer.one(family),
        Need::Both => offer.both(),
        Need::Prefer(primary) => offer.both().or_else(|| offer.one(primary)).or_else(|| offer.one(primary.other())),
    };
    choice.ok_or_else(|| {
        let families = need.families();
        let refusal = match families.iter().find(|&&family| !book.pool.has_family(family)) {
            // One family is enough for who merely prefers both, and every pool has one.
            Some(&family) if !matches!(need, Need::Prefer(_)) => {
                Refusal::PoolLacksFamily { pool: name.clone(), family }
            }
            _ => Refusal::PoolExhausted { pool: name.clone(), families },
        };
        let mut waits = waits_for_group(tenant);
        waits.extend(rooms(&offer, need));
        Denied { refusal: Box::new(refusal), waits }
    })
}

fn automatic(facts: &Facts<'_>, service: &Service, need: Need, tenant: &Tenant) -> Result<Assignment, Denied> {
    let offers = |family| candidates(facts, service, family, tenant).map(|book| offer(facts, book, service, tenant));
    let choice = match need {
        Need::One(family) => candidates(facts, service, family, tenant).find_map(|book| {
            let address = facts.ledger.first_usable(book, family, &service.key, tenant)?;
            Some(Assignment { pool: book.pool.name.clone(), addresses: vec![address] })
        }),
        Need::Both => offers(Family::V4).find_map(|offer| offer.both()),
        Need::Prefer(primary) => offers(Family::V4)
            .find_map(|offer| offer.both())
            .or_else(|| offers(primary).find_map(|offer| offer.one(primary)))
            .or_else(|| offers(primary.other()).find_map(|offer| offer.one(primary.other()))),
    };
    choice.ok_or_else(|| {
        let mut waits = waits_for_group(tenant);
        let few: Vec<_> = serving(facts, service).take(MAX_ROOMS + 1).collect();
        if few.len() > MAX_ROOMS {
            waits.extend(need.families().into_iter().map(Wait::AnyRoom));
        } else {
            waits.extend(few.iter().flat_map(|book| rooms(&offer(facts, book, service, tenant), need)));
        }
        Denied { refusal: Box::new(why_no_pool(facts, service, need)), waits }
    })
}

/// How many pools a Service waits for one by one. Who could be served by more waits for any room at all.
const MAX_ROOMS: usize = 64;

/// Pools that serve this Service unasked, in order.
fn serving<'a>(facts: &'a Facts<'a>, service: &'a Service) -> impl Iterator<Item = &'a Book> {
    let books = facts.ledger.preference().serving(&service.key.namespace);
    let books = books.filter_map(|name| facts.ledger.book(name));
    books.filter(move |book| mismatch(facts.namespaces, &book.pool, service).is_none())
}

/// Those of them that may have a usable address of this family.
fn candidates<'a>(
    facts: &'a Facts<'a>,
    service: &'a Service,
    family: Family,
    tenant: &Tenant,
) -> impl Iterator<Item = &'a Book> {
    let shared = facts.ledger.pools_of_group(tenant);
    let names = facts.ledger.preference().vacant(&service.key.namespace, family, shared);
    let books = names.filter_map(|name| facts.ledger.book(name));
    books.filter(move |book| mismatch(facts.namespaces, &book.pool, service).is_none())
}

fn why_no_pool(facts: &Facts<'_>, service: &Service, need: Need) -> Refusal {
    let pools: Vec<_> = serving(facts, service).take(NAMED + 1).map(|book| book.pool.name.clone()).collect();
    if pools.is_empty() {
        return Refusal::NoPoolServesIt;
    }
    let families = need.families();
    let has_all = |book: &Book| families.iter().all(|&family| book.pool.has_family(family));
    if matches!(need, Need::Prefer(_)) || serving(facts, service).any(has_all) {
        Refusal::Exhausted { pools, families }
    } else {
        Refusal::NoPoolWithFamilies { pools, families }
    }
}

/// What one pool could give.
struct Offer<'a> {
    pool: &'a Pool,
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

fn offer<'a>(facts: &Facts<'_>, book: &'a Book, service: &Service, tenant: &Tenant) -> Offer<'a> {
    let usable = |family| facts.ledger.first_usable(book, family, &service.key, tenant);
    Offer { pool: &book.pool, v4: usable(Family::V4), v6: usable(Family::V6) }
}

impl Offer<'_> {
    fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    fn one(&self, family: Family) -> Option<Assignment> {
        let address = self.of(family)?;
        Some(Assignment { pool: self.pool.name.clone(), addresses: vec![address] })
    }

    fn both(&self) -> Option<Assignment> {
        Some(Assignment { pool: self.pool.name.clone(), addresses: vec![self.v4?, self.v6?] })
    }
}

/// The room that this pool would have to get before it can help. Where both families are lacking, waiting for one is
/// enough: whoever comes before its turn waits for the other then.
fn rooms(offer: &Offer<'_>, need: Need) -> Vec<Wait> {
    let families: &[Family] = match need {
        Need::One(Family::V4) => &[Family::V4],
        Need::One(Family::V6) => &[Family::V6],
        Need::Both if offer.v4.is_none() => &[Family::V4],
        Need::Both => &[Family::V6],
        Need::Prefer(_) => &[Family::V4, Family::V6],
    };
    let possible = families.iter().filter(|family| offer.pool.has_family(**family));
    possible.map(|&family| Wait::Room(offer.pool.name.clone(), family)).collect()
}

fn waits_for_group(tenant: &Tenant) -> Vec<Wait> {
    tenant.sharing_key.iter().map(|key| Wait::Group(key.clone())).collect()
}

/// Why a pool does not serve a Service, asked or unasked. A pool whose `namespaceSelectors` match nothing serves
/// nobody: what a selector says is a restriction even where it selects nothing.
fn mismatch(namespaces: &Namespaces, pool: &Pool, service: &Service) -> Option<Mismatch> {
    #[cfg(test)]
    LOOKED_AT.with(|count| count.set(count.get() + 1));
    let allocation = pool.allocation.as_ref()?;
    if !serves_namespace(namespaces, allocation, &service.key.namespace) {
        return Some(Mismatch::Namespace { namespace: service.key.namespace.to_string() });
    }
    (!any_matches(&allocation.service_selectors, &service.labels)).then_some(Mismatch::ServiceLabels)
}

fn serves_namespace(namespaces: &Namespaces, allocation: &ServiceAllocation, namespace: &str) -> bool {
    if allocation.namespaces.is_empty() && allocation.namespace_selectors.is_empty() {
        return true;
    }
    let none = Labels::new();
    let labels = namespaces.get(namespace).map_or(&none, |labels| labels);
    allocation.namespaces.contains(namespace)
        || allocation.namespace_selectors.iter().any(|selector| selector.matches(labels))
}

#[cfg(test)]
thread_local! {
    /// How often a pool was held against a Service, for the test that bounds it.
    pub(super) static LOOKED_AT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}
