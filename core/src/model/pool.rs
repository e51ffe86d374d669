//! Address pools.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    model::{Family, Labels, ObjectKey, PoolName, ServiceKey, selector::LabelSelector},
    write::Condition,
};

/// A valid IPAddressPool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Where the object lives.
    pub key: ObjectKey,
    /// Written for MetalLB: it counts like any other, and its status is left to MetalLB.
    pub read_only: bool,
    /// `metadata.name`.
    pub name: PoolName,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `metadata.generation`; 0 where the source has none.
    pub generation: i64,
    /// `spec.addresses`, at least one, in the order written; no two ranges of a snapshot overlap.
    pub ranges: Vec<AddressRange>,
    /// `spec.autoAssign`: whether addresses are given without being asked for by name.
    pub auto_assign: bool,
    /// `spec.avoidBuggyIPs`: leave out IPv4 addresses ending in .0 or .255.
    pub avoid_buggy_ips: bool,
    /// With `spec.avoidBuggyIPs`, the network and broadcast address of each IPv4 prefix in `spec.addresses` and the
    /// subnet-router anycast address of each IPv6 prefix (RFC 4291 §2.6.1). They are given to nobody any more; who has
    /// one keeps it.
    pub edges: BTreeSet<IpAddr>,
    /// `spec.sharing`: who may use one address together.
    pub sharing: Sharing,
    /// `spec.serviceAllocation`: present, the pool serves only who matches it.
    pub allocation: Option<ServiceAllocation>,
    /// What the object's status says now.
    pub observed: PoolStatus,
}

/// Which Services may share an address of a pool, where they ask for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Those of one Namespace.
    #[default]
    SameNamespace,
    /// All.
    AnyNamespace,
}

/// `spec.serviceAllocation` of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAllocation {
    /// Lower wins; 0 is last.
    pub priority: i32,
    /// Namespaces by name.
    pub namespaces: BTreeSet<String>,
    /// Namespaces by label; added to `namespaces`.
    pub namespace_selectors: Vec<LabelSelector>,
    /// Services by label; any must match.
    pub service_selectors: Vec<LabelSelector>,
}

/// Counters and conditions in the status of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolStatus {
    /// Distinct IPv4 addresses in use.
    pub assigned_ipv4: i64,
    /// Distinct IPv6 addresses in use.
    pub assigned_ipv6: i64,
    /// IPv4 addresses left, at most `i64::MAX`.
    pub available_ipv4: i64,
    /// IPv6 addresses left, at most `i64::MAX`.
    pub available_ipv6: i64,
    /// Who uses the lowest [`PoolStatus::LISTED`] of the addresses in use, in the order of addresses.
    pub used_by: Vec<AddressUse>,
    /// `status.conditions` that are ours.
    pub conditions: Vec<Condition>,
}

/// Who uses one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressUse {
    /// The address.
    pub address: IpAddr,
    /// The first [`PoolStatus::LISTED`] of its users, by name.
    pub services: Vec<ServiceKey>,
}

impl PoolStatus {
    /// How many addresses, and Services of each, are listed: enough for the pools that people fill by hand, and the
    /// status of a large pool costs no more.
    pub const LISTED: usize = 32;
}

/// Consecutive addresses of one family, both ends included; `first <= last`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// A range, or `None` when the ends are of two families or in the wrong order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (Family::of(first) == Family::of(last) && first <= last).then_some(Self { first, last })
    }

    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// The family of every address in it.
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether the address lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family() && self.first <= address && address <= self.last
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.family() == other.family() && self.first <= other.last && other.first <= self.last
    }

    /// How many addresses it holds, less one, so that the whole IPv6 space still fits.
    pub fn span(&self) -> u128 {
        address_bits(self.last) - address_bits(self.first)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl fmt::Debug for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The address as a number: 0..2^32 for IPv4, 0..2^128 for IPv6.
pub fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of this family with these bits; for IPv4 only the low 32 are used.
pub fn address_from_bits(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits((bits & u128::from(u32::MAX)) as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

impl Pool {
    /// Whether a Service that has this address may keep it: it is inside a range and, with `avoidBuggyIPs`, does not
    /// end in .0 or .255.
    pub fn contains(&self, address: IpAddr) -> bool {
        !(self.avoid_buggy_ips && is_buggy(address)) && self.ranges.iter().any(|range| range.contains(address))
    }

    /// Whether the pool gives this address to anybody.
    pub fn gives(&self, address: IpAddr) -> bool {
        self.contains(address) && !self.edges.contains(&address)
    }

    /// Whether the pool has any range of this family.
    pub fn has_family(&self, family: Family) -> bool {
        self.ranges.iter().any(|range| range.family() == family)
    }
}

/// IPv4 addresses ending in .0 or .255, which some old equipment mistakes for network and broadcast addresses.
pub fn is_buggy(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if matches!(address.octets()[3], 0 | 255))
}
