//! Who uses which address, and what is free: the books behind every allocation.
//!
//! Every question costs the logarithm of what is booked, never the size of a pool: free addresses are kept as
//! intervals, so a pool of 2^64 addresses is one entry.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
};

use super::preference::Preference;
use crate::model::{
    Family, PoolName, ServiceKey,
    pool::{AddressRange, AddressUse, Pool, PoolStatus, Sharing, address_bits, address_from_bits, is_buggy},
    service::{Protocol, Service, TrafficPolicy},
};

/// What decides whether a Service may use an address beside another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tenant {
    /// `ferrogate.io/allow-shared-ip`.
    pub sharing_key: Option<String>,
    /// For `externalTrafficPolicy: Local` the selector, because only equal endpoints can share one node; else empty.
    backend: BTreeMap<String, String>,
    ports: BTreeSet<(Protocol, NonZeroU16)>,
}

/// Why two Services may not use one address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// One of them does not share at all.
    #[error("sharing needs the annotation ferrogate.io/allow-shared-ip on both")]
    NotShared,
    /// They share with others.
    #[error("their values of ferrogate.io/allow-shared-ip differ: {own:?} and {other:?}")]
    DifferentKeys {
        /// Ours.
        own: String,
        /// The other's.
        other: String,
    },
    /// One is `Local` and the other is not, or their selectors differ.
    #[error("sharing needs externalTrafficPolicy Cluster on both, or Local on both with equal selectors")]
    DifferentBackends,
    /// They are of two Namespaces, and the pool lets only those of one share.
    #[error("they are in different Namespaces, and the pool allows sharing only within one (spec.sharing)")]
    OtherNamespace,
    /// Both have this port.
    #[error("both have port {port}/{protocol}")]
    SamePort {
        /// Its protocol.
        protocol: Protocol,
        /// Its number.
        port: NonZeroU16,
    },
}

impl Tenant {
    /// How this Service would use an address.
    pub fn of(service: &Service) -> Self {
        Self {
            sharing_key: service.load_balancer.as_ref().and_then(|wish| wish.sharing_key().cloned()),
            backend: match service.external_traffic_policy {
                TrafficPolicy::Cluster => BTreeMap::new(),
                TrafficPolicy::Local => service.selector.clone(),
            },
            ports: service.ports.iter().map(|port| (port.protocol, port.port)).collect(),
        }
    }

    fn conflict(&self, other: &Self) -> Option<Conflict> {
        let (Some(own_key), Some(other_key)) = (&self.sharing_key, &other.sharing_key) else {
            return Some(Conflict::NotShared);
        };
        if own_key != other_key {
            return Some(Conflict::DifferentKeys { own: own_key.clone(), other: other_key.clone() });
        }
        if self.backend != other.backend {
            return Some(Conflict::DifferentBackends);
        }
        let port = self.ports.intersection(&other.ports).next();
        port.map(|&(protocol, port)| Conflict::SamePort { protocol, port })
    }
}

/// Who uses one address, by name. Nearly always that is one Service, and a map would keep room for eleven.
#[derive(Clone, Debug, Default)]
struct Users(Vec<(ServiceKey, Arc<Tenant>)>);

impl Users {
    fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.0.iter().map(|(key, _)| key)
    }

    /// Adds one, or changes how it uses the address; returns whether it is new.
    fn insert(&mut self, service: &ServiceKey, tenant: &Arc<Tenant>) -> bool {
        match self.find(service) {
            Ok(index) => {
                self.0[index].1 = Arc::clone(tenant);
                false
            }
            Err(index) => {
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.insert(index, (service.clone(), Arc::clone(tenant)));
                true
            }
        }
    }

    fn remove(&mut self, service: &ServiceKey) -> Option<Arc<Tenant>> {
        self.find(service).ok().map(|index| self.0.remove(index).1)
    }

    fn find(&self, service: &ServiceKey) -> Result<usize, usize> {
        self.0.binary_search_by(|(key, _)| key.cmp(service))
    }
}

/// All addresses in use and all pools.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    users: BTreeMap<IpAddr, Users>,
    /// Sharing key to the addresses where it is in use.
    groups: BTreeMap<String, BTreeMap<IpAddr, usize>>,
    books: BTreeMap<PoolName, Book>,
    /// First address of each range to its last one, its pool and its place there. No two ranges overlap.
    ranges: BTreeMap<IpAddr, (IpAddr, PoolName)>,
    preference: Preference,
    /// Pools of which something is used otherwise since the last [`Ledger::take_moved`].
    moved: BTreeSet<PoolName>,
}

/// One pool: what is free in it, and how much is used.
#[derive(Clone, Debug)]
pub(super) struct Book {
    /// The facts.
    pub pool: Arc<Pool>,
    /// Free intervals of each range, in the order of `pool.ranges`.
    free: Vec<Free>,
    /// The ranges, in the order of addresses.
    sorted: Vec<AddressRange>,
    /// Distinct addresses in use.
    used: BTreeMap<Family, u64>,
    /// Those among them that are given to nobody any more.
    kept: BTreeMap<Family, u64>,
}

/// Free addresses of one range as intervals: first to last, as numbers. What `avoidBuggyIPs` leaves out is cut off at
/// both ends of each interval, so that the first number of the first interval can always be handed out.
#[derive(Clone, Debug)]
struct Free {
    range: AddressRange,
    avoid_buggy: bool,
    intervals: BTreeMap<u128, u128>,
}

impl Ledger {
    /// Who uses this address.
    pub fn users(&self, address: IpAddr) -> impl Iterator<Item = &ServiceKey> {
        self.users.get(&address).into_iter().flat_map(Users::keys)
    }

    /// Who uses any address between these two, ends included.
    pub fn users_within(&self, range: AddressRange) -> impl Iterator<Item = &ServiceKey> {
        self.users.range(range.first()..=range.last()).flat_map(|(_, users)| users.keys())
    }

    /// The pool with a range around this address, even if `avoidBuggyIPs` leaves the address itself out.
    pub fn pool_around(&self, address: IpAddr) -> Option<&Book> {
        let (_, (last, name)) = self.ranges.range(..=address).next_back()?;
        let within = Family::of(*last) == Family::of(address) && address <= *last;
        if within { self.books.get(name) } else { None }
    }

    /// One pool.
    pub fn book(&self, name: &PoolName) -> Option<&Book> {
        self.books.get(name)
    }

    /// Every pool, by name.
    pub fn books(&self) -> impl Iterator<Item = (&PoolName, &Book)> {
        self.books.iter()
    }

    /// Whether there is no pool at all.
    pub fn has_no_pools(&self) -> bool {
        self.books.is_empty()
    }

    /// Why `service` may not use `address`, with the user in its way.
    pub fn conflict(&self, address: IpAddr, service: &ServiceKey, tenant: &Tenant) -> Option<(ServiceKey, Conflict)> {
        let users = self.users.get(&address)?;
        let is_one_namespace =
            || self.pool_around(address).is_some_and(|book| book.pool.sharing == Sharing::SameNamespace);
        let mut others = users.0.iter().filter(|(key, _)| key != service);
        others.find_map(|(key, other)| {
            let conflict = tenant.conflict(other).or_else(|| {
                let is_other = key.namespace != service.namespace && is_one_namespace();
                is_other.then_some(Conflict::OtherNamespace)
            });
            Some((key.clone(), conflict?))
        })
    }

    /// The first address of this family that `service` may use: ranges in the order written, addresses upward. An
    /// address of its sharing group counts as well as a free one.
    pub fn first_usable(&self, book: &Book, family: Family, service: &ServiceKey, tenant: &Tenant) -> Option<IpAddr> {
        let group = tenant.sharing_key.as_ref().and_then(|key| self.groups.get(key));
        book.free.iter().filter(|free| free.range.family() == family).find_map(|free| {
            let unused = free.first();
            let shared = group.and_then(|group| {
                let end = unused.unwrap_or(free.range.last());
                let mut candidates = group.range(free.range.first()..=end).map(|(address, _)| *address);
                candidates
                    .find(|&address| book.pool.gives(address) && self.conflict(address, service, tenant).is_none())
            });
            shared.or(unused)
        })
    }

    /// Pools in the order in which they are used unasked.
    pub fn preference(&self) -> &Preference {
        &self.preference
    }

    /// From now on pools are used unasked in this order.
    pub fn prefer(&mut self, mut preference: Preference) {
        for (name, book) in &self.books {
            for family in [Family::V4, Family::V6] {
                preference.note(name, family, book.has_free(family));
            }
        }
        self.preference = preference;
    }

    /// Pools where the sharing group of this Service has addresses.
    pub fn pools_of_group(&self, tenant: &Tenant) -> impl Iterator<Item = &PoolName> {
        let group = tenant.sharing_key.as_ref().and_then(|key| self.groups.get(key));
        let addresses = group.into_iter().flat_map(BTreeMap::keys);
        addresses.filter_map(|address| Some(&self.pool_around(*address)?.pool.name))
    }

    /// Notes that `service` uses `address`.
    pub fn book_in(&mut self, address: IpAddr, service: &ServiceKey, tenant: &Arc<Tenant>) {
        let users = self.users.entry(address).or_default();
        let is_first = users.0.is_empty();
        if !users.insert(service, tenant) {
            return;
        }
        if let Some(key) = &tenant.sharing_key {
            let group = match self.groups.get_mut(key) {
                Some(group) => group,
                None => self.groups.entry(key.clone()).or_default(),
            };
            *group.entry(address).or_default() += 1;
        }
        if let Some(book) = self.book_around(address)
            && is_first
        {
            book.take(address);
            self.note_room(address);
        }
    }

    /// Notes that `service` no longer uses `address`, and returns how it did.
    pub fn book_out(&mut self, address: IpAddr, service: &ServiceKey) -> Option<Arc<Tenant>> {
        let users = self.users.get_mut(&address)?;
        let tenant = users.remove(service)?;
        let is_last = users.0.is_empty();
        if let Some(key) = &tenant.sharing_key
            && let Some(group) = self.groups.get_mut(key)
        {
            if let Some(count) = group.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    group.remove(&address);
                }
            }
            if group.is_empty() {
                self.groups.remove(key);
            }
        }
        if is_last {
            self.users.remove(&address);
        }
        if let Some(book) = self.book_around(address)
            && is_last
        {
            book.give_back(address);
            self.note_room(address);
        }
        Some(tenant)
    }

    /// Puts a pool in, or in the place of its older self.
    pub fn open(&mut self, pool: &Arc<Pool>) {
        self.close(&pool.name);
        for range in &pool.ranges {
            self.ranges.insert(range.first(), (range.last(), pool.name.clone()));
        }
        let free = pool.ranges.iter().map(|&range| Free::new(range, pool.avoid_buggy_ips, &pool.edges)).collect();
        let mut sorted = pool.ranges.clone();
        sorted.sort();
        let pool_now = Arc::clone(pool);
        let mut book = Book { pool: pool_now, free, sorted, used: BTreeMap::new(), kept: BTreeMap::new() };
        for range in &pool.ranges {
            for &address in self.users.range(range.first()..=range.last()).map(|(address, _)| address) {
                book.take(address);
            }
        }
        self.books.insert(pool.name.clone(), book);
        self.moved.insert(pool.name.clone());
    }

    /// Replaces the facts of a pool whose ranges and rules are as before.
    pub fn refresh(&mut self, pool: &Arc<Pool>) {
        if let Some(book) = self.books.get_mut(&pool.name) {
            book.pool = Arc::clone(pool);
        }
    }

    /// Who uses the lowest addresses of a pool that are in use, as its status lists them.
    pub fn lowest_users(&self, book: &Book) -> Vec<AddressUse> {
        let used = book.sorted.iter().flat_map(|range| self.users.range(range.first()..=range.last()));
        let used = used.filter(|(address, _)| book.pool.contains(**address)).take(PoolStatus::LISTED);
        used.map(|(address, users)| AddressUse {
            address: *address,
            services: users.keys().take(PoolStatus::LISTED).cloned().collect(),
        })
        .collect()
    }

    /// Takes a pool away; who has addresses of it stays booked.
    pub fn close(&mut self, name: &PoolName) {
        if let Some(book) = self.books.remove(name) {
            for range in &book.pool.ranges {
                self.ranges.remove(&range.first());
            }
        }
    }

    /// Pools of which something is used otherwise since this was last asked.
    pub fn take_moved(&mut self) -> BTreeSet<PoolName> {
        std::mem::take(&mut self.moved)
    }

    fn note_room(&mut self, address: IpAddr) {
        let family = Family::of(address);
        let book = self.pool_around(address).map(|book| (book.pool.name.clone(), book.has_free(family)));
        if let Some((pool, has_room)) = book {
            self.preference.note(&pool, family, has_room);
        }
    }

    fn book_around(&mut self, address: IpAddr) -> Option<&mut Book> {
        let name = self.pool_around(address)?.pool.name.clone();
        self.moved.insert(name.clone());
        self.books.get_mut(&name)
    }
}

impl Book {
    /// Distinct addresses of a family in use.
    pub fn used(&self, family: Family) -> u64 {
        self.used.get(&family).copied().unwrap_or(0)
    }

    /// How many addresses of a family can be in use together, at most `u128::MAX`.
    pub fn capacity(&self, family: Family) -> u128 {
        let ranges = self.pool.ranges.iter().filter(|range| range.family() == family);
        let inside = ranges.fold(0_u128, |sum, range| {
            let left_out = if self.pool.avoid_buggy_ips { buggy_within(*range) } else { 0 };
            sum.saturating_add(range.span().saturating_add(1) - left_out)
        });
        let edges = self.pool.edges.iter().filter(|&&edge| Family::of(edge) == family && self.pool.contains(edge));
        let kept = self.kept.get(&family).copied().unwrap_or(0);
        inside.saturating_sub(edges.count() as u128).saturating_add(u128::from(kept))
    }

    /// Whether an address of this family is free.
    pub fn has_free(&self, family: Family) -> bool {
        self.free.iter().any(|free| free.range.family() == family && !free.intervals.is_empty())
    }

    fn take(&mut self, address: IpAddr) {
        if !self.pool.contains(address) {
            return;
        }
        if let Some(free) = self.free.iter_mut().find(|free| free.range.contains(address)) {
            free.take(address);
            *self.used.entry(Family::of(address)).or_default() += 1;
            if !self.pool.gives(address) {
                *self.kept.entry(Family::of(address)).or_default() += 1;
            }
        }
    }

    fn give_back(&mut self, address: IpAddr) {
        if !self.pool.contains(address) {
            return;
        }
        if let Some(free) = self.free.iter_mut().find(|free| free.range.contains(address)) {
            if self.pool.gives(address) {
                free.give_back(address);
            } else if let Some(kept) = self.kept.get_mut(&Family::of(address)) {
                *kept = kept.saturating_sub(1);
            }
            if let Some(used) = self.used.get_mut(&Family::of(address)) {
                *used = used.saturating_sub(1);
            }
        }
    }
}

impl Free {
    fn new(range: AddressRange, avoid_buggy: bool, edges: &BTreeSet<IpAddr>) -> Self {
        let avoid_buggy = avoid_buggy && range.family() == Family::V4;
        let mut free = Self { range, avoid_buggy, intervals: BTreeMap::new() };
        free.insert(address_bits(range.first()), address_bits(range.last()));
        for &edge in edges.range(range.first()..=range.last()) {
            free.take(edge);
        }
        free
    }

    fn first(&self) -> Option<IpAddr> {
        let (&first, _) = self.intervals.first_key_value()?;
        Some(address_from_bits(self.range.family(), first))
    }

    fn take(&mut self, address: IpAddr) {
        let bits = address_bits(address);
        let Some((&first, &last)) = self.intervals.range(..=bits).next_back() else { return };
        if bits > last {
            return;
        }
        self.intervals.remove(&first);
        if bits > first {
            self.insert(first, bits - 1);
        }
        if bits < last {
            self.insert(bits + 1, last);
        }
    }

    fn give_back(&mut self, address: IpAddr) {
        let (mut first, mut last) = (address_bits(address), address_bits(address));
        if let Some((&before, &end)) = self.intervals.range(..first).next_back()
            && end.checked_add(1) == Some(first)
        {
            self.intervals.remove(&before);
            first = before;
        }
        if let Some(next) = last.checked_add(1)
            && let Some(end) = self.intervals.remove(&next)
        {
            last = end;
        }
        self.intervals.insert(first, last);
    }

    /// Adds an interval without the addresses at its ends that are never handed out.
    fn insert(&mut self, mut first: u128, mut last: u128) {
        if self.avoid_buggy {
            let buggy = |bits| is_buggy(address_from_bits(Family::V4, bits));
            while first < last && buggy(first) {
                first += 1;
            }
            while first < last && buggy(last) {
                last -= 1;
            }
            if buggy(first) {
                return;
            }
        }
        self.intervals.insert(first, last);
    }
}

/// How many IPv4 addresses of a range end in .0 or .255.
fn buggy_within(range: AddressRange) -> u128 {
    if range.family() == Family::V6 {
        return 0;
    }
    // Counted below an end: whole blocks of 256 hold two each, and the rest one as soon as it is not empty.
    let below = |end: u128| end / 256 * 2 + u128::from(!end.is_multiple_of(256));
    below(address_bits(range.last()) + 1) - below(address_bits(range.first()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: &str, last: &str) -> AddressRange {
        AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
    }

    #[test]
    fn buggy_addresses_are_counted_without_walking_the_range() {
        for (first, last, expected) in [
            ("192.0.2.0", "192.0.2.255", 2),
            ("192.0.2.1", "192.0.2.254", 0),
            ("192.0.2.0", "192.0.2.0", 1),
            ("192.0.2.255", "192.0.2.255", 1),
            ("192.0.2.255", "192.0.3.0", 2),
            ("0.0.0.0", "255.255.255.255", 2 << 24),
            ("2001:db8::", "2001:db8::ffff", 0),
        ] {
            assert_eq!(buggy_within(range(first, last)), expected, "{first}-{last}");
        }
    }

    #[test]
    fn what_is_taken_and_given_back_leaves_one_interval() {
        let mut free = Free::new(range("192.0.2.0", "192.0.2.7"), false, &BTreeSet::new());
        for last in [3, 5, 4, 0, 7] {
            free.take(IpAddr::from([192, 0, 2, last]));
        }
        assert_eq!(free.intervals.len(), 2);

        for last in [4, 0, 7, 3, 5] {
            free.give_back(IpAddr::from([192, 0, 2, last]));
        }

        assert_eq!(free.intervals.len(), 1);
        assert_eq!(free.first(), Some(IpAddr::from([192, 0, 2, 0])));
    }

    #[test]
    fn an_interval_of_only_buggy_addresses_is_not_free() {
        let mut free = Free::new(range("192.0.2.254", "192.0.3.1"), true, &BTreeSet::new());

        free.take(IpAddr::from([192, 0, 2, 254]));
        assert_eq!(free.first(), Some(IpAddr::from([192, 0, 3, 1])));
        free.take(IpAddr::from([192, 0, 3, 1]));

        assert_eq!(free.first(), None);
    }
}
