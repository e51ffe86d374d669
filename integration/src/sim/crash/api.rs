//! As much of an API server as two controllers can quarrel over: Services with versions, pools, one Lease.
//!
//! It keeps every promise a real one makes and no other: one object changes at a time, a version is refused where it
//! is not the present one, a list is as fresh as the moment it is answered, a watch is as late as it likes.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ferrogate_core::{
    lease::{Record, Timing},
    model::{ResourceVersion, ServiceKey, service::ServiceStatus},
    snapshot::Snapshot,
};

use super::Guards;
use crate::sim::facts::may_share;

/// What is asked of it.
#[derive(Clone, Debug)]
pub enum Request {
    /// Reads the Lease.
    ReadLease,
    /// Writes the Lease in a name, over the version that was read; `None` makes it.
    Claim { holder: u64, over: Option<ResourceVersion> },
    /// Takes the name out of the Lease.
    Release { over: Option<ResourceVersion> },
    /// Lists everything as it is.
    List,
    /// Writes the status of a Service.
    Status { service: ServiceKey, wish: Wish },
}

/// A status to be written, and the version it was decided on.
#[derive(Clone, Debug)]
pub struct Wish {
    pub status: ServiceStatus,
    pub version: ResourceVersion,
    pub fence: bool,
}

/// What it answers.
#[derive(Clone, Debug)]
pub enum Reply {
    Lease(Option<Record>),
    Claimed(ResourceVersion),
    /// How far the history went.
    List(usize),
    Done,
    /// There is another version, or nothing at all.
    Refused,
}

/// The API server.
#[derive(Debug)]
pub struct Api {
    guards: Guards,
    version: u64,
    lease: Option<Record>,
    pub now: Snapshot,
    /// Every state there was; the last one is the present.
    pub history: Vec<Snapshot>,
    /// How many statuses of Services were changed.
    pub writes: u64,
}

impl Api {
    pub fn new(facts: Snapshot, guards: Guards) -> Self {
        Self { guards, version: 1, lease: None, history: vec![facts.clone()], now: facts, writes: 0 }
    }

    /// Carries out a request; an error is an address that two Services have now and must not share.
    pub fn answer(&mut self, request: Request) -> Result<Reply, String> {
        Ok(match request {
            Request::ReadLease => Reply::Lease(self.lease.clone()),
            Request::Claim { holder, over } if self.lease.as_ref().map(|lease| &lease.version) == over.as_ref() => {
                self.put_lease(Some(holder.to_string()))
            }
            Request::Release { over }
                if over.is_some() && self.lease.as_ref().map(|lease| &lease.version) == over.as_ref() =>
            {
                self.put_lease(None)
            }
            Request::Claim { .. } | Request::Release { .. } => Reply::Refused,
            Request::List => Reply::List(self.history.len() - 1),
            Request::Status { service, wish } => self.write(&service, wish)?,
        })
    }

    /// A user takes the Lease away.
    pub fn delete_lease(&mut self) {
        self.lease = None;
    }

    /// A user changes something.
    pub fn edit(&mut self, edit: impl FnOnce(&mut Snapshot)) {
        edit(&mut self.now);
        self.history.push(self.now.clone());
    }

    /// A version for an object that has just been changed.
    pub fn next_version(&mut self) -> ResourceVersion {
        self.version += 1;
        self.version.to_string().into()
    }

    fn put_lease(&mut self, holder: Option<String>) -> Reply {
        let version = self.next_version();
        self.lease = Some(Record { holder, duration: Some(Timing::default().lease), version: version.clone() });
        Reply::Claimed(version)
    }

    fn write(&mut self, key: &ServiceKey, wish: Wish) -> Result<Reply, String> {
        let Some(before) = self.now.services.get(key).cloned() else { return Ok(Reply::Refused) };
        if self.guards.versions && before.version != wish.version {
            return Ok(Reply::Refused);
        }
        if before.observed == wish.status && !wish.fence {
            // What changes nothing gives no version, as with a real one.
            return Ok(Reply::Done);
        }
        let version = self.next_version();
        let gained: Vec<IpAddr> = wish
            .status
            .addresses
            .iter()
            .filter(|address| !before.observed.addresses.contains(address))
            .copied()
            .collect();
        self.edit(|now| {
            let mut service = (*before).clone();
            service.version = version;
            service.observed = wish.status;
            now.services.insert(key.clone(), Arc::new(service));
        });
        self.writes += 1;
        self.check(key, &gained, &before.version)?;
        Ok(Reply::Done)
    }

    /// Whether an address that was just given away may be had by all who have it. What a user did to the other one
    /// since this one had the version that was decided on is not held against anybody: no controller can know.
    fn check(&self, key: &ServiceKey, gained: &[IpAddr], version: &ResourceVersion) -> Result<(), String> {
        let own = &self.now.services[key];
        let before = self.history.iter().rev().skip(1);
        let since = before.take_while(|state| state.services.get(key).is_some_and(|then| then.version == *version));
        for other in self.now.services.values().filter(|other| other.key != *key) {
            let Some(address) = gained.iter().find(|address| other.observed.addresses.contains(address)) else {
                continue;
            };
            let could = |state: &Snapshot| state.services.get(&other.key).is_some_and(|then| may_share(own, then));
            if !may_share(own, other) && !since.clone().any(could) {
                return Err(format!("{address} was given to {key} while {} has it", other.key));
            }
        }
        Ok(())
    }

    /// Addresses that two Services have and must not share, with both.
    pub fn doubled(&self) -> BTreeMap<IpAddr, (ServiceKey, ServiceKey)> {
        let mut doubled = BTreeMap::new();
        for one in self.now.services.values() {
            for other in self.now.services.values().filter(|other| other.key > one.key && !may_share(one, other)) {
                let both = one.observed.addresses.iter().filter(|address| other.observed.addresses.contains(address));
                doubled.extend(both.map(|address| (*address, (one.key.clone(), other.key.clone()))));
            }
        }
        doubled
    }
}
