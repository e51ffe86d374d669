//! Every "no" of the controller: why a Service has no address, and why it may not keep the one it had.

use std::net::IpAddr;

use super::ledger::Conflict;
use crate::model::{Family, PoolName, ServiceKey, service::RequestFault};

/// Why a Service has no address. The text says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no pool at all.
    #[error("there is no IPAddressPool; create one")]
    NoPools,
    /// Nobody can tell which families it wants.
    #[error("the Service has no cluster IP and no IP family; set spec.ipFamilies, or wait for its cluster IP")]
    NoFamily,
    /// `RequireDualStack` with one family.
    #[error(
        "RequireDualStack needs cluster IPs of both families, and the Service has only {present}; \
             use SingleStack or PreferDualStack, or make the cluster dual-stack"
    )]
    NotDualStack {
        /// The family it has.
        present: Family,
    },
    /// Its wish cannot be read.
    #[error("{fault}")]
    UnreadableRequest {
        /// What is wrong with it.
        fault: RequestFault,
    },
    /// It asks for addresses of families that it does not have.
    #[error(
        "asks for {}, but its IP families are {}; ask for one address of each family",
        list(requested),
        list(families)
    )]
    WrongFamilies {
        /// What it asks for.
        requested: Vec<IpAddr>,
        /// The families it has.
        families: Vec<Family>,
    },
    /// It asks for an address that no pool has.
    #[error("asks for {address}, which is in no IPAddressPool; add it to a pool or ask for another")]
    OutsidePools {
        /// The address.
        address: IpAddr,
    },
    /// It asks for an address that its pool never hands out.
    #[error("asks for {address}, which avoidBuggyIPs of pool {pool} leaves out; ask for another")]
    AddressAvoided {
        /// The address.
        address: IpAddr,
        /// The pool around it.
        pool: PoolName,
    },
    /// It asks for addresses of two pools.
    #[error("asks for {first} of pool {first_pool} and {second} of pool {second_pool}; both must be of one pool")]
    DifferentPools {
        /// One address.
        first: IpAddr,
        /// Its pool.
        first_pool: PoolName,
        /// The other address.
        second: IpAddr,
        /// Its pool.
        second_pool: PoolName,
    },
    /// It asks for an address and for another pool than the one that has it.
    #[error(
        "asks for {address} and for pool {requested}, but {address} is in pool {holder}; drop one of the two wishes"
    )]
    PoolMismatch {
        /// The address.
        address: IpAddr,
        /// The pool that has it.
        holder: PoolName,
        /// The pool it asks for.
        requested: PoolName,
    },
    /// It asks for a pool that does not exist.
    #[error("asks for pool {pool}, which does not exist or was refused; create it or correct the name")]
    UnknownPool {
        /// The name it asks for.
        pool: PoolName,
    },
    /// It asks for a pool, or an address of one, that does not serve it.
    #[error("pool {pool} does not serve it: {mismatch}")]
    PoolNotForService {
        /// The pool.
        pool: PoolName,
        /// What does not match.
        mismatch: Mismatch,
    },
    /// It asks for a pool that has no range of a family it needs.
    #[error("asks for pool {pool}, which has no {family} range; add one or ask for another pool")]
    PoolLacksFamily {
        /// The pool.
        pool: PoolName,
        /// What it lacks.
        family: Family,
    },
    /// It asks for an address that another Service has.
    #[error("asks for {address}, which {holder} has: {conflict}")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: ServiceKey,
        /// Why they cannot share it.
        conflict: Conflict,
    },
    /// The pool it asks for is full.
    #[error("no free {} address in pool {pool}; enlarge it or release an address", families_together(families))]
    PoolExhausted {
        /// The pool.
        pool: PoolName,
        /// What it needs.
        families: Vec<Family>,
    },
    /// No pool serves this Service unasked.
    #[error("no IPAddressPool with autoAssign serves it; ask for a pool by annotation, or let a pool match it")]
    NoPoolServesIt,
    /// Pools would serve it, but none has the families it needs.
    #[error("none of the pools that serve it ({}) has {} ranges; add one", some(pools), families_together(families))]
    NoPoolWithFamilies {
        /// The first pools that serve it, [`NAMED`] and one more at most.
        pools: Vec<PoolName>,
        /// What it needs.
        families: Vec<Family>,
    },
    /// Every pool that serves it is full.
    #[error(
        "no free {} address in any pool that serves it ({}); enlarge one or release an address",
        families_together(families),
        some(pools)
    )]
    Exhausted {
        /// The first pools that serve it, [`NAMED`] and one more at most.
        pools: Vec<PoolName>,
        /// What it needs.
        families: Vec<Family>,
    },
}

impl Refusal {
    /// Reason for conditions and metrics: the variant's own name.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoPools => "NoPools",
            Self::NoFamily => "NoFamily",
            Self::NotDualStack { .. } => "NotDualStack",
            Self::UnreadableRequest { .. } => "UnreadableRequest",
            Self::WrongFamilies { .. } => "WrongFamilies",
            Self::OutsidePools { .. } => "OutsidePools",
            Self::AddressAvoided { .. } => "AddressAvoided",
            Self::DifferentPools { .. } => "DifferentPools",
            Self::PoolMismatch { .. } => "PoolMismatch",
            Self::UnknownPool { .. } => "UnknownPool",
            Self::PoolNotForService { .. } => "PoolNotForService",
            Self::PoolLacksFamily { .. } => "PoolLacksFamily",
            Self::AddressTaken { .. } => "AddressTaken",
            Self::PoolExhausted { .. } => "PoolExhausted",
            Self::NoPoolServesIt => "NoPoolServesIt",
            Self::NoPoolWithFamilies { .. } => "NoPoolWithFamilies",
            Self::Exhausted { .. } => "Exhausted",
        }
    }
}

/// Why a pool does not serve a Service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Its Namespace is not among those of the pool.
    #[error("its Namespace {namespace} is not among the namespaces of the pool")]
    Namespace {
        /// The Namespace.
        namespace: String,
    },
    /// No `serviceSelectors` entry matches its labels.
    #[error("its labels match no serviceSelectors entry of the pool")]
    ServiceLabels,
}

/// Why a Service may not keep addresses it has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// They would be refused if it asked for them.
    #[error("{0}")]
    Refused(Refusal),
    /// Another Service has one of them, and had it first.
    #[error("{holder} has {address} already: {conflict}")]
    HeldByOther {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: ServiceKey,
        /// Why they cannot share it.
        conflict: Conflict,
    },
    /// It asks for others.
    #[error("it asks for {}", list(.requested))]
    OtherAddresses {
        /// What it asks for.
        requested: Vec<IpAddr>,
    },
    /// It asks for another pool.
    #[error("it asks for pool {requested}")]
    OtherPool {
        /// What it asks for.
        requested: PoolName,
    },
}

/// How many pools a message names; there may be thousands.
pub(super) const NAMED: usize = 8;

fn some(pools: &[PoolName]) -> String {
    match pools.get(..NAMED) {
        Some(first) if pools.len() > NAMED => format!("{} and others", list(first)),
        _ => list(pools),
    }
}

/// Values as a person lists them.
pub(super) fn list<T: std::fmt::Display>(values: &[T]) -> String {
    let values: Vec<_> = values.iter().map(T::to_string).collect();
    values.join(", ")
}

fn families_together(families: &[Family]) -> String {
    let families: Vec<_> = families.iter().map(Family::to_string).collect();
    families.join(" and ")
}
