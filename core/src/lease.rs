//! Leadership: which one of several controllers decides, and from when on what the one before it said cannot come
//! late any more.
//!
//! Two Services must never have one address, and an API server keeps promises about one object only. So whoever
//! follows a leader has to know that nothing of that leader is still on its way. Three things see to it:
//!
//! 1. **Time.** The holder of the Lease starts no write that could last longer than its Lease ([`Election::writes_until`]).
//!    Whoever takes over waits until the Lease it saw expire has been over for one more request, and lists anew then.
//! 2. **Versions.** A write is refused where the Service has another version than the one it was decided on. This
//!    holds for a request too that was held up on the way for longer than anybody waits, or sent by a process that
//!    slept between looking at its clock and sending.
//! 3. **Fences.** What is left is a late write to a Service that nobody has touched since. As an address is only ever
//!    added to a Service that has too few (`core::controller` sees to that), only those count: each of them gets a new
//!    version before the new leader decides anything ([`suspects`]).
//!
//! A leader that ends in good order leaves none of this to do: the Lease has no holder then, and the next one leads at
//! once.
//!
//! ```text
//!            Lease free, or seen unchanged for as long as it says
//!  Following ────────────────────────────────────────────────► Waiting ──► Listing ──► Fencing ──► Relisting
//!     ▲                                                                       │ nothing to fence       │
//!     │              not renewed in time, or taken by another                 ▼                        │
//!     └─────────────────────────────────────────────────────────────────── Leading ◄───────────────────┘
//! ```
//!
//! No clock of another machine is compared to ours: a Lease is over when *we* have seen it unchanged for as long as
//! it says.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    model::{ResourceVersion, ServiceKey, service::Service},
    snapshot::Snapshot,
};

#[cfg(test)]
mod tests;

/// How long Services may be left unfenced before the leader goes on without: an API server ends every request sooner.
const FENCE_PATIENCE: Duration = Duration::from_secs(60);

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a Lease that is not renewed keeps others away. The API has it in whole seconds.
    pub lease: Duration,
    /// How long after its last renewal the holder steps down; shorter than `lease`.
    pub give_up: Duration,
    /// How long between two attempts to take or to renew it.
    pub retry: Duration,
    /// How long a write may take; shorter than `give_up`.
    pub request: Duration,
}

impl Default for Timing {
    /// What Kubernetes' own components use; half of the time to renew is for writes.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { lease: seconds(15), give_up: seconds(10), retry: seconds(2), request: seconds(5) }
    }
}

/// A Lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `spec.holderIdentity`; none, or an empty one, when it was given up.
    pub holder: Option<String>,
    /// `spec.leaseDurationSeconds`; ours where it says none.
    pub duration: Option<Duration>,
    /// `metadata.resourceVersion`.
    pub version: ResourceVersion,
}

/// What the election takes in.
#[derive(Clone, Debug)]
pub enum Event {
    /// The Lease is this.
    Read(Record),
    /// There is no Lease.
    Missing {
        /// Whether statuses show that a controller has been at work here ([`is_marked`]).
        marked: bool,
    },
    /// The claim was accepted.
    Claimed {
        /// When it was sent.
        asked: Instant,
        /// What the Lease has now.
        version: ResourceVersion,
    },
    /// Every Service was listed by requests sent after [`Action::List`].
    Listed {
        /// Those that a late write could give an address ([`suspects`]).
        suspects: BTreeMap<ServiceKey, ResourceVersion>,
    },
    /// A Service that was to be fenced has another version now, or is gone.
    Fenced(ServiceKey),
    /// The process ends.
    Resign {
        /// Whether the fate of every write is known.
        settled: bool,
    },
    /// The deadline has come.
    Tick,
}

/// What the election asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the Lease in our name, over exactly what was read last.
    Claim,
    /// List every Service anew, as it is and not as some cache has it.
    List,
    /// Give each of these a new version, unless it has one already.
    Fence(BTreeMap<ServiceKey, ResourceVersion>),
    /// Decide and write from now on, on what was listed last.
    Lead,
    /// Stop all that, and forget what is not sent yet.
    Follow,
    /// Write the Lease without a holder, if it is still ours.
    Release,
}

/// Whether this process is the one that decides. Drive it with [`Election::step`].
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    timing: Timing,
    /// The version of the Lease, and when it was first seen.
    seen: Option<(ResourceVersion, Instant)>,
    /// What a claim that is accepted now leads to.
    vacancy: Option<Vacancy>,
    tenure: Option<Tenure>,
}

/// How a Lease became free.
#[derive(Clone, Copy, Debug)]
struct Vacancy {
    /// When nothing of the former holder is on its way any more, as far as time can tell.
    act_from: Instant,
    /// Whether there is a former holder who did not say good-bye.
    fence: bool,
}

/// The Lease is ours.
#[derive(Clone, Debug)]
struct Tenure {
    /// When it ends unless it is renewed.
    until: Instant,
    /// Whether a former holder's writes have to be fenced off.
    fence: bool,
    phase: Phase,
}

#[derive(Clone, Debug)]
enum Phase {
    Waiting { act_from: Instant },
    Listing,
    Fencing { left: BTreeMap<ServiceKey, ResourceVersion>, until: Instant },
    Relisting,
    Leading,
}

impl Election {
    /// One that stands under this name and has seen nothing yet.
    pub fn new(identity: String, timing: Timing) -> Self {
        Self { identity, timing, seen: None, vacancy: None, tenure: None }
    }

    /// Takes in one event at `now` and returns what must be done about it, in order. `now` must go on while the
    /// machine is suspended.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.tenure.as_ref().is_some_and(|tenure| tenure.until <= now) {
            self.end(&mut actions);
        }
        match event {
            Event::Read(record) => self.read(now, &record, &mut actions),
            Event::Missing { marked } => {
                self.end(&mut actions);
                // Somebody took it away, perhaps from under a leader.
                let fence = marked || self.seen.is_some();
                let wait = if fence { self.timing.lease + self.timing.request } else { Duration::ZERO };
                self.vacancy = Some(Vacancy { act_from: now + wait, fence });
                actions.push(Action::Claim);
            }
            Event::Claimed { asked, version } => self.claimed(now, asked, version),
            Event::Listed { suspects } => self.listed(now, suspects, &mut actions),
            Event::Fenced(service) => {
                if let Some(Tenure { phase: Phase::Fencing { left, .. }, .. }) = &mut self.tenure {
                    left.remove(&service);
                }
            }
            Event::Resign { settled } => {
                // With fences undone, the next leader has to wait and to fence as we had to.
                let is_clean = |tenure: &Tenure| !tenure.fence || matches!(tenure.phase, Phase::Leading);
                let release = settled && self.tenure.as_ref().is_some_and(is_clean);
                self.end(&mut actions);
                actions.extend(release.then_some(Action::Release));
            }
            Event::Tick => {}
        }
        self.advance(now, &mut actions);
        actions
    }

    /// When `step` wants a [`Event::Tick`] next.
    pub fn deadline(&self) -> Option<Instant> {
        let tenure = self.tenure.as_ref()?;
        Some(match &tenure.phase {
            Phase::Waiting { act_from: other } | Phase::Fencing { until: other, .. } => tenure.until.min(*other),
            Phase::Listing | Phase::Relisting | Phase::Leading => tenure.until,
        })
    }

    /// Until when a write may start, if any may: one that starts then is over when the tenure is.
    pub fn writes_until(&self) -> Option<Instant> {
        self.tenure.as_ref()?.until.checked_sub(self.timing.request)
    }

    /// Whether this process decides.
    pub fn leads(&self) -> bool {
        matches!(self.tenure, Some(Tenure { phase: Phase::Leading, .. }))
    }

    fn read(&mut self, now: Instant, record: &Record, actions: &mut Vec<Action>) {
        self.vacancy = None;
        let since = match &self.seen {
            Some((version, since)) if *version == record.version => *since,
            _ => now,
        };
        self.seen = Some((record.version.clone(), since));
        let holder = record.holder.as_deref().filter(|holder| !holder.is_empty());
        let is_ours = holder == Some(&self.identity);
        if self.tenure.is_some() {
            if is_ours {
                actions.push(Action::Claim);
                return;
            }
            self.end(actions);
        }
        let over = since + record.duration.unwrap_or(self.timing.lease);
        let vacancy = match holder {
            None => Vacancy { act_from: now, fence: false },
            // One in our name too: we know nothing of it. It is that of a former life, or of another process of this name.
            Some(_) if over <= now => Vacancy { act_from: over + self.timing.request, fence: true },
            Some(_) => return,
        };
        self.vacancy = Some(vacancy);
        actions.push(Action::Claim);
    }

    fn claimed(&mut self, now: Instant, asked: Instant, version: ResourceVersion) {
        self.seen = Some((version, now));
        // Counted from before the request: the API server may have taken it at once.
        let until = asked + self.timing.give_up;
        match (&mut self.tenure, self.vacancy.take()) {
            (Some(tenure), _) => tenure.until = tenure.until.max(until),
            (tenure @ None, Some(Vacancy { act_from, fence })) if now < until => {
                *tenure = Some(Tenure { until, fence, phase: Phase::Waiting { act_from } });
            }
            // A renewal that took too long. The next reading finds the Lease in our name.
            (None, _) => {}
        }
    }

    fn listed(&mut self, now: Instant, suspects: BTreeMap<ServiceKey, ResourceVersion>, actions: &mut Vec<Action>) {
        let Some(tenure) = &mut self.tenure else { return };
        match tenure.phase {
            Phase::Listing if tenure.fence && !suspects.is_empty() => {
                actions.push(Action::Fence(suspects.clone()));
                tenure.phase = Phase::Fencing { left: suspects, until: now + FENCE_PATIENCE };
            }
            Phase::Listing | Phase::Relisting => {
                tenure.phase = Phase::Leading;
                actions.push(Action::Lead);
            }
            Phase::Waiting { .. } | Phase::Fencing { .. } | Phase::Leading => {}
        }
    }

    fn advance(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(tenure) = &mut self.tenure else { return };
        let next = match &tenure.phase {
            Phase::Waiting { act_from } if *act_from <= now => Phase::Listing,
            // What landed before its fence has to be seen.
            Phase::Fencing { left, until } if left.is_empty() || *until <= now => Phase::Relisting,
            _ => return,
        };
        tenure.phase = next;
        actions.push(Action::List);
    }

    fn end(&mut self, actions: &mut Vec<Action>) {
        actions.extend(self.tenure.take().map(|_| Action::Follow));
    }
}

/// Services that a late write could give an address: ours, and with fewer than they want. Every other one has to be
/// seen without an address before it is given one.
pub fn suspects(snapshot: &Snapshot) -> BTreeMap<ServiceKey, ResourceVersion> {
    let lacks = |service: &Service| {
        let wish = service.load_balancer.as_ref();
        wish.is_some_and(|wish| service.observed.addresses.len() < wish.families.len().max(1))
    };
    let suspects = snapshot.services.values().filter(|service| service.version.is_known() && lacks(service));
    suspects.map(|service| (service.key.clone(), service.version.clone())).collect()
}

/// Whether any status shows that a controller has been at work here.
pub fn is_marked(snapshot: &Snapshot) -> bool {
    let is_marked = |service: &Service| service.observed.pool.is_some() || service.observed.condition.is_some();
    snapshot.services.values().any(|service| is_marked(service))
}
