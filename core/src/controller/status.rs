//! What the status of every object should say, and the Events beside it: the one place where decisions of the
//! controller become text for people.

use std::net::IpAddr;

use super::{
    allocate::Assignment,
    ledger::Book,
    refusal::{Loss, Refusal, list},
    report::Report,
};
use crate::{
    model::{
        Family, ObjectRef, ServiceKey,
        pool::{AddressUse, PoolStatus},
        service::{ADDRESS_ASSIGNED, Service, ServiceStatus},
    },
    write::{ACCEPTED, Condition, Event, Severity},
};

/// Why a condition or an Event of the controller says what it says, where it is no [`Refusal`] and no
/// [`Fault`](crate::snapshot::Fault): those have reasons of their own. MetalLB's alerts look for the last four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// [`ADDRESS_ASSIGNED`]: all is well.
    Assigned,
    /// [`ADDRESS_ASSIGNED`], and a warning: no advertisement covers pool and Service.
    NotAdvertised,
    /// [`ADDRESS_ASSIGNED`]: it keeps its address, and its pool is there and not in force.
    PoolLeftOut,
    /// [`ADDRESS_ASSIGNED`]: it gets its address as soon as another one is seen gone.
    Moving,
    /// [`ACCEPTED`]: the object is in force.
    Accepted,
    /// Event: it got addresses.
    IpAllocated,
    /// Warning: it got none.
    AllocationFailed,
    /// Warning: what it asks for cannot be read, so it keeps what it has.
    LoadBalancerFailed,
    /// Event: it may not keep what it had, or what its status claimed.
    ClearAssignment,
}

impl Reason {
    /// One CamelCase word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Assigned => "Assigned",
            Self::NotAdvertised => "NotAdvertised",
            Self::PoolLeftOut => "PoolLeftOut",
            Self::Moving => "Moving",
            Self::Accepted => "Accepted",
            Self::IpAllocated => "IPAllocated",
            Self::AllocationFailed => "AllocationFailed",
            Self::LoadBalancerFailed => "LoadBalancerFailed",
            Self::ClearAssignment => "ClearAssignment",
        }
    }
}

/// Status of a Service that has addresses. `refusal` is set when its request cannot be read and is therefore ignored.
pub(super) fn assigned(
    service: &Service,
    assignment: &Assignment,
    refusal: Option<&Refusal>,
    is_advertised: bool,
) -> ServiceStatus {
    let Assignment { pool, addresses } = assignment;
    let has = format!("has {} of pool {pool}", list(addresses));
    let (reason, message) = match refusal {
        Some(refusal) => (refusal.reason(), format!("{has} and keeps it, but its request is ignored: {refusal}")),
        // A loopback address is reached without being announced.
        None if is_advertised || addresses.iter().all(IpAddr::is_loopback) => (Reason::Assigned.as_str(), has),
        None => (
            Reason::NotAdvertised.as_str(),
            format!(
                "{has}, but it is announced by nobody: no L2Advertisement and no BGPAdvertisement covers this pool and \
                 Service; create one"
            ),
        ),
    };
    holding(service, assignment, reason, message)
}

/// Status of a Service that keeps an address of a pool which is there and not in force.
pub(super) fn of_pool_left_out(service: &Service, assignment: &Assignment) -> ServiceStatus {
    let Assignment { pool, addresses } = assignment;
    let message = format!(
        "has {} of pool {pool} and keeps it, but the pool is left out; the condition {ACCEPTED} of the pool says why",
        list(addresses)
    );
    holding(service, assignment, Reason::PoolLeftOut.as_str(), message)
}

fn holding(service: &Service, assignment: &Assignment, reason: &str, message: String) -> ServiceStatus {
    let condition = address_condition(service, true, reason, message);
    ServiceStatus {
        addresses: assignment.addresses.clone(),
        pool: Some(assignment.pool.clone()),
        condition: Some(condition),
        ..ServiceStatus::default()
    }
}

/// Status of a Service that has no address.
pub(super) fn refused(service: &Service, refusal: &Refusal) -> ServiceStatus {
    let condition = address_condition(service, false, refusal.reason(), refusal.to_string());
    ServiceStatus { condition: Some(condition), ..ServiceStatus::default() }
}

/// Status of a Service that moves to another address: it goes by way of none, so that a write which comes late can
/// only ever take an address away.
pub(super) fn leaving(service: &Service, next: &Assignment, leaving: IpAddr) -> ServiceStatus {
    on_the_move(
        service,
        next,
        format!("gets {} of pool {} as soon as {leaving} is seen gone", list(&next.addresses), next.pool),
    )
}

/// Status of a Service whose next address is still in the status of another one. It keeps what it has already.
pub(super) fn moving(service: &Service, next: &Assignment, address: IpAddr, giver: &ServiceKey) -> ServiceStatus {
    on_the_move(
        service,
        next,
        format!("gets {address} of pool {} as soon as Service {giver} is seen without it", next.pool),
    )
}

fn on_the_move(service: &Service, next: &Assignment, message: String) -> ServiceStatus {
    let kept = service.observed.addresses.iter().filter(|address| next.addresses.contains(address));
    let addresses: Vec<_> = kept.copied().collect();
    let condition = address_condition(service, !addresses.is_empty(), Reason::Moving.as_str(), message);
    let pool = (!addresses.is_empty()).then(|| next.pool.clone());
    ServiceStatus { addresses, pool, condition: Some(condition), ..ServiceStatus::default() }
}

fn address_condition(service: &Service, holds: bool, reason: &str, message: String) -> Condition {
    Condition {
        kind: ADDRESS_ASSIGNED.to_owned(),
        holds,
        reason: reason.to_owned(),
        message,
        observed_generation: service.generation,
    }
}

/// Counters and condition of a pool.
pub(super) fn pool(book: &Book, used_by: Vec<AddressUse>, reports: &[Report]) -> PoolStatus {
    let assigned = |family| i64::try_from(book.used(family)).unwrap_or(i64::MAX);
    let available = |family| {
        let left = book.capacity(family).saturating_sub(u128::from(book.used(family)));
        i64::try_from(left).unwrap_or(i64::MAX)
    };
    PoolStatus {
        assigned_ipv4: assigned(Family::V4),
        assigned_ipv6: assigned(Family::V6),
        available_ipv4: available(Family::V4),
        available_ipv6: available(Family::V6),
        used_by,
        conditions: vec![accepted(book.pool.generation, reports, Some(Kept::VersionBefore))],
    }
}

/// How much of an object is in force while there is something wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// All of it, as it was before the last change.
    VersionBefore,
    /// All but for the pools that are named.
    OtherPools,
}

/// [`ACCEPTED`] of an object of which this is reported. Warnings alone leave it true. `kept` is set while the object is
/// in force.
pub(super) fn accepted(generation: i64, reports: &[Report], kept: Option<Kept>) -> Condition {
    let worst = reports.iter().find(|report| !report.is_warning).or(reports.first());
    let holds = worst.is_none_or(|report| report.is_warning);
    let kept = match kept.filter(|_| !holds) {
        Some(Kept::VersionBefore) => Some("the version before stays in force"),
        Some(Kept::OtherPools) => Some("for its other pools it is in force"),
        None => None,
    };
    let messages: Vec<_> = reports.iter().map(|report| report.message.as_str()).chain(kept).collect();
    Condition {
        kind: ACCEPTED.to_owned(),
        holds,
        reason: worst.map_or(Reason::Accepted.as_str(), |report| report.reason).to_owned(),
        message: if messages.is_empty() { "in force".to_owned() } else { messages.join("; ") },
        observed_generation: reports.iter().map(|report| report.generation).max().unwrap_or(0).max(generation),
    }
}

/// An object, or a part of it, is not in force.
pub(super) fn reported(object: &ObjectRef, report: &Report) -> Event {
    Event {
        object: object.clone(),
        severity: Severity::Warning,
        reason: report.reason.to_owned(),
        message: report.message.clone(),
    }
}

/// A Service got addresses. The first words are MetalLB's.
pub(super) fn allocated(service: &ServiceKey, assignment: &Assignment) -> Event {
    let addresses: Vec<_> = assignment.addresses.iter().map(|address| format!("{:?}", address.to_string())).collect();
    let message = format!("Assigned IP [{}] of pool {}", addresses.join(" "), assignment.pool);
    service_event(service, Severity::Normal, Reason::IpAllocated, message)
}

/// A Service got an address of its second family.
pub(super) fn allocated_second(service: &ServiceKey, assignment: &Assignment, address: IpAddr) -> Event {
    let message = format!("Assigned additional IP \"{address}\" of pool {}", assignment.pool);
    service_event(service, Severity::Normal, Reason::IpAllocated, message)
}

/// A Service got none.
pub(super) fn failed(service: &ServiceKey, refusal: &Refusal) -> Event {
    let message = format!("Failed to allocate IP for \"{service}\": {refusal}");
    service_event(service, Severity::Warning, Reason::AllocationFailed, message)
}

/// A Service keeps what it has, since what it asks for cannot be read.
pub(super) fn ignored(service: &ServiceKey, refusal: &Refusal) -> Event {
    let message = format!("invalid requested loadbalancer IPs: {refusal}");
    service_event(service, Severity::Warning, Reason::LoadBalancerFailed, message)
}

/// A Service may not keep what it had, or what its status claimed.
pub(super) fn cleared(service: &ServiceKey, addresses: &[IpAddr], loss: &Loss) -> Event {
    let message = format!("may not keep {}: {loss}", list(addresses));
    service_event(service, Severity::Normal, Reason::ClearAssignment, message)
}

/// Nobody announces the address of a Service; `message` is that of its condition.
pub(super) fn not_advertised(service: &ServiceKey, message: &str) -> Event {
    service_event(service, Severity::Warning, Reason::NotAdvertised, message.to_owned())
}

fn service_event(service: &ServiceKey, severity: Severity, reason: Reason, message: String) -> Event {
    Event { object: ObjectRef::service(service), severity, reason: reason.as_str().to_owned(), message }
}
