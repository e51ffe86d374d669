//! One controller process: the machines of `core`, driven as `cluster` drives them, and what it has asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_core::{
    controller::{self, Controller},
    lease::{self, Election, Record, Timing},
    model::{ObjectKey, ResourceVersion, ServiceKey, pool::PoolStatus},
    snapshot::Snapshot,
    write::Write,
};

use super::{
    Guards,
    api::{Reply, Request, Wish},
};

/// How many statuses are written at a time.
const AT_ONCE: usize = 3;
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_millis(400);

/// What a process does.
#[derive(Debug)]
pub enum Effect {
    /// Sends a request under a number.
    Send(u64, Request),
    /// A pool's counters. They decide nothing, so they are simply there.
    Pool(ObjectKey, PoolStatus),
    /// Wants to be woken then.
    Wake(Duration),
}

/// One process.
#[derive(Debug)]
pub struct Replica {
    guards: Guards,
    /// Its own clock at the beginning of the world.
    begin: Instant,
    /// How long it slept without noticing.
    uncounted: Duration,
    identity: u64,
    election: Election,
    controller: Controller,
    leads: bool,
    facts: Arc<Snapshot>,
    lease: Option<Record>,
    requests: u64,
    asked: BTreeMap<u64, (Duration, Asked)>,
    jobs: BTreeMap<ServiceKey, (Duration, Wish)>,
    fencing: BTreeMap<ServiceKey, ResourceVersion>,
    /// Writes of which nobody knows what became.
    doubtful: BTreeMap<ServiceKey, ResourceVersion>,
    is_ending: bool,
    resigned: bool,
    next_attempt: Duration,
    /// Writes of this process for Services.
    pub sent: u64,
}

#[derive(Clone, Debug)]
enum Asked {
    Lease,
    Claim,
    List,
    Status(ServiceKey, Wish),
    Fence(ServiceKey),
}

impl Replica {
    /// One that starts at `now` with these facts.
    pub fn new(identity: u64, begin: Instant, now: Duration, facts: Snapshot, guards: Guards) -> Self {
        Self {
            guards,
            begin,
            uncounted: Duration::ZERO,
            identity,
            election: Election::new(identity.to_string(), Timing::default()),
            controller: Controller::new(controller::Config::default()),
            leads: false,
            facts: Arc::new(facts),
            lease: None,
            requests: identity << 32,
            asked: BTreeMap::new(),
            jobs: BTreeMap::new(),
            fencing: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            is_ending: false,
            resigned: false,
            next_attempt: now,
            sent: 0,
        }
    }

    /// Whether it decides now.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// Whether it ended in good order.
    pub fn has_ended(&self) -> bool {
        self.resigned && self.asked.is_empty()
    }

    /// It sleeps for so long. Whether its clock goes on meanwhile is one of the guards.
    pub fn sleeps(&mut self, time: Duration) {
        if !self.guards.time {
            self.uncounted += time;
        }
    }

    fn local(&self, now: Duration) -> Instant {
        self.begin + now.saturating_sub(self.uncounted)
    }

    /// Asks it to end in good order.
    pub fn end(&mut self) {
        self.is_ending = true;
    }

    /// Its watch has come so far.
    pub fn watched(&mut self, now: Duration, facts: Snapshot, out: &mut Vec<Effect>) {
        self.facts = Arc::new(facts);
        self.controller_step(now, controller::Event::Snapshot(Arc::clone(&self.facts)), out);
        self.wake(now, out);
    }

    /// A request was answered. Facts are those of a list.
    pub fn answered(
        &mut self,
        now: Duration,
        number: u64,
        reply: Reply,
        listed: Option<Snapshot>,
        out: &mut Vec<Effect>,
    ) {
        let Some((sent, asked)) = self.asked.remove(&number) else { return };
        match (asked, reply) {
            (Asked::Lease, Reply::Lease(lease)) => {
                self.lease = lease.clone();
                let event = match lease {
                    Some(record) => lease::Event::Read(record),
                    None => lease::Event::Missing { marked: lease::is_marked(&self.facts) },
                };
                self.election_step(now, event, out);
            }
            (Asked::Claim, Reply::Claimed(version)) => {
                let event = lease::Event::Claimed { asked: self.local(sent), version };
                self.election_step(now, event, out);
            }
            (Asked::List, Reply::List(_)) => {
                if let Some(facts) = listed {
                    self.facts = Arc::new(facts);
                    self.controller_step(now, controller::Event::Snapshot(Arc::clone(&self.facts)), out);
                }
                let suspects = if self.guards.fences { lease::suspects(&self.facts) } else { BTreeMap::new() };
                self.election_step(now, lease::Event::Listed { suspects }, out);
            }
            // A refused one has another version already.
            (Asked::Fence(service), _) => {
                self.fencing.remove(&service);
                self.election_step(now, lease::Event::Fenced(service), out);
            }
            _ => {}
        }
        self.wake(now, out);
    }

    /// Looks at its clock, and does what is due.
    pub fn wake(&mut self, now: Duration, out: &mut Vec<Effect>) {
        self.election_step(now, lease::Event::Tick, out);
        if self.controller.deadline().is_some_and(|deadline| deadline <= self.local(now)) {
            self.controller_step(now, controller::Event::Tick, out);
        }
        self.give_up_waiting(now, out);
        self.note_fences(now, out);
        if self.is_ending && !self.resigned && !self.asked.values().any(|(_, asked)| matches!(asked, Asked::Status(..)))
        {
            self.resigned = true;
            self.jobs.clear();
            let settled = self.doubtful.is_empty();
            self.election_step(now, lease::Event::Resign { settled }, out);
        }
        self.start(now, out);
        let is_asking = self.asked.values().any(|(_, asked)| matches!(asked, Asked::Lease | Asked::Claim));
        if self.next_attempt <= now && !is_asking && !self.resigned {
            self.next_attempt = now + Timing::default().retry;
            self.send(now, Asked::Lease, Request::ReadLease, out);
        }
        out.extend(self.deadline(now).map(Effect::Wake));
    }

    fn deadline(&self, now: Duration) -> Option<Duration> {
        let machines = [self.election.deadline(), self.controller.deadline().filter(|_| self.leads)];
        let machines =
            machines.into_iter().flatten().map(|at| at.saturating_duration_since(self.begin) + self.uncounted);
        let jobs = self.jobs.values().map(|(at, _)| *at);
        let asked = self.asked.values().map(|(sent, _)| *sent + Timing::default().request);
        machines.chain(jobs).chain(asked).chain([self.next_attempt]).filter(|at| *at > now).min()
    }

    fn election_step(&mut self, now: Duration, event: lease::Event, out: &mut Vec<Effect>) {
        for action in self.election.step(self.local(now), event) {
            match action {
                lease::Action::Claim => {
                    let over = self.lease.as_ref().map(|lease| lease.version.clone());
                    self.send(now, Asked::Claim, Request::Claim { holder: self.identity, over }, out);
                }
                lease::Action::Release => {
                    let over = self.lease.as_ref().map(|lease| lease.version.clone());
                    self.requests += 1;
                    out.push(Effect::Send(self.requests, Request::Release { over }));
                }
                lease::Action::List => self.send(now, Asked::List, Request::List, out),
                lease::Action::Fence(services) => self.fencing = services,
                lease::Action::Lead => {
                    self.leads = true;
                    self.controller_step(now, controller::Event::Leads(true), out);
                }
                lease::Action::Follow => {
                    self.leads = false;
                    self.fencing.clear();
                    self.jobs.clear();
                    self.controller_step(now, controller::Event::Leads(false), out);
                }
            }
        }
    }

    fn controller_step(&mut self, now: Duration, event: controller::Event, out: &mut Vec<Effect>) {
        for write in self.controller.step(self.local(now), event) {
            match write {
                Write::ServiceStatus { service, status, version, fence } => {
                    let wish = Wish { status, version, fence };
                    self.jobs.insert(service, (now, wish));
                }
                Write::PoolStatus { pool, status } => out.push(Effect::Pool(pool, status)),
                _ => {}
            }
        }
        // A write that is refused or was seen is in doubt no more.
        let services = &self.facts.services;
        self.doubtful.retain(|key, version| services.get(key).is_some_and(|service| service.version == *version));
    }

    /// What was to be fenced and is seen with another version is fenced.
    fn note_fences(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let services = &self.facts.services;
        let has_changed = |(key, version): &(&ServiceKey, &ResourceVersion)| {
            services.get(*key).is_none_or(|service| service.version != **version)
        };
        let changed: Vec<_> = self.fencing.iter().filter(has_changed).map(|(key, _)| key.clone()).collect();
        for service in changed {
            self.fencing.remove(&service);
            self.election_step(now, lease::Event::Fenced(service), out);
        }
    }

    fn start(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let may = self.election.writes_until().is_some_and(|until| self.local(now) <= until);
        if !may || self.is_ending {
            return;
        }
        let busy: BTreeSet<ServiceKey> =
            self.asked.values().filter_map(|(_, asked)| asked.service().cloned()).collect();
        let mut free = AT_ONCE.saturating_sub(busy.len());
        for (service, version) in self.fencing.clone() {
            if free == 0 || busy.contains(&service) {
                continue;
            }
            let seen = self.facts.services.get(&service).filter(|seen| seen.version == version);
            let Some(status) = seen.map(|seen| seen.observed.clone()) else { continue };
            let wish = Wish { status, version, fence: true };
            free -= 1;
            self.send(now, Asked::Fence(service.clone()), Request::Status { service, wish }, out);
        }
        let due: Vec<ServiceKey> =
            self.jobs.iter().filter(|(_, (at, _))| *at <= now).map(|(key, _)| key.clone()).collect();
        for service in due.into_iter().filter(|service| !busy.contains(service)).take(free) {
            if let Some((_, wish)) = self.jobs.remove(&service) {
                self.sent += 1;
                self.send(now, Asked::Status(service.clone(), wish.clone()), Request::Status { service, wish }, out);
            }
        }
    }

    fn send(&mut self, now: Duration, asked: Asked, request: Request, out: &mut Vec<Effect>) {
        self.requests += 1;
        self.asked.insert(self.requests, (now, asked));
        out.push(Effect::Send(self.requests, request));
    }

    /// What was not answered in time is tried again, if nothing newer was decided meanwhile.
    fn give_up_waiting(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let late = self.asked.iter().filter(|(_, (sent, _))| *sent + Timing::default().request <= now);
        for number in late.map(|(number, _)| *number).collect::<Vec<_>>() {
            match self.asked.remove(&number) {
                Some((_, Asked::Status(service, wish))) => {
                    self.doubtful.insert(service.clone(), wish.version.clone());
                    if self.leads && !self.is_ending {
                        self.jobs.entry(service).or_insert((now + RETRY, wish));
                    }
                }
                Some((_, Asked::List)) if self.election.writes_until().is_some() => {
                    self.send(now, Asked::List, Request::List, out);
                }
                _ => {}
            }
        }
    }
}

impl Asked {
    fn service(&self) -> Option<&ServiceKey> {
        match self {
            Self::Status(service, _) | Self::Fence(service) => Some(service),
            _ => None,
        }
    }
}
