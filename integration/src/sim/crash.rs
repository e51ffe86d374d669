//! Two controllers, one API server, and everything that can happen between a decision and its arrival.
//!
//! A process dies between any two of its writes, sleeps past its Lease, or sends what arrives minutes later; answers
//! get lost; watches lag; users create, delete, change and share Services and edit pools all the while. At no moment
//! may a write give a Service an address that another one has, and when it is over every Service that can have one
//! has one and a controller that starts anew has nothing to write.
//!
//! What protects all this can be taken away here piece by piece ([`Guards`]), so that a test can show that the
//! simulation would notice.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_core::{
    controller::{self, Controller},
    snapshot::Snapshot,
    write::Write,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

mod api;
mod replica;
mod users;

use api::{Api, Reply, Request};
use replica::{Effect, Replica};

/// What protects against two Services with one address. In the product all of it is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guards {
    /// Nothing is sent that could outlast the Lease, by a clock that goes on while a process sleeps.
    pub time: bool,
    /// The API server refuses what was decided on another version.
    pub versions: bool,
    /// A new leader gives every Service that could still get a late address a new version first.
    pub fences: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Self { time: true, versions: true, fences: true }
    }
}

/// What becomes of a process and of the write it is just about to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It dies before sending.
    Dies,
    /// It dies right after; the write arrives.
    SendsAndDies,
    /// It dies right after; the write arrives much later.
    SendsLateAndDies,
    /// It lives on, but the answer is lost.
    IsNotAnswered,
    /// It lives on, and the write arrives much later.
    SendsLate,
    /// It stops between looking at its clock and sending, and goes on when its Lease is long over.
    Sleeps,
}

impl Fate {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Dies, Self::SendsAndDies, Self::SendsLateAndDies, Self::IsNotAnswered, Self::SendsLate, Self::Sleeps];
}

/// A schedule: what is drawn from the seed, and what happens at certain writes, counted over all processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// What users do, how late things are, what is lost.
    pub seed: u64,
    /// What becomes of the nth write.
    pub fates: BTreeMap<u64, Fate>,
    /// Whether the seed also draws faults: otherwise only `fates` are out of the ordinary.
    pub is_stormy: bool,
    /// What protects.
    pub guards: Guards,
}

/// What a schedule came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Statuses written.
    pub writes: u64,
    /// How often somebody began to lead.
    pub leaders: u64,
    /// Writes that were refused for their version.
    pub refused: u64,
}

/// A schedule that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which one.
    pub schedule: Schedule,
    /// When, since the beginning of the world.
    pub at: Duration,
    /// What.
    pub what: String,
    /// What happened before, in order.
    pub history: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}\nafter {:?}: {}", self.schedule, self.at, self.what)?;
        self.history.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

impl std::error::Error for Failure {}

/// Runs a schedule to its end.
///
/// # Errors
/// What went wrong. Run it again with `is_told` to be told what happened before.
pub fn run(schedule: &Schedule, is_told: bool) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(schedule.clone(), is_told);
    match world.run() {
        Ok(()) => Ok(world.outcome),
        Err(what) => {
            let (schedule, history) = (schedule.clone(), world.history);
            Err(Box::new(Failure { schedule, at: world.now, what, history }))
        }
    }
}

/// How long users and faults are at work.
const STORM: Duration = Duration::from_secs(75);
/// How long all is well afterwards, at least: a takeover and a few repetitions.
const PEACE: Duration = Duration::from_secs(60);
/// How long a request may be held up at most.
const HELD_MS: u64 = 90_000;
/// How many controllers there are.
const REPLICAS: usize = 2;

#[derive(Debug)]
enum Happening {
    Arrive { from: usize, number: u64, request: Request },
    Answer { to: usize, number: u64, reply: Reply },
    Wake(usize),
    Watch(usize),
    User,
    Kill(usize),
    Pause(usize, Duration),
    End(usize),
    Start,
}

struct Process {
    replica: Replica,
    is_alive: bool,
    paused_until: Duration,
    wake_at: Option<Duration>,
    watches: bool,
    services_seen: usize,
    pools_seen: usize,
    led: bool,
}

struct World {
    schedule: Schedule,
    rng: SmallRng,
    begin: Instant,
    now: Duration,
    agenda: BTreeMap<(Duration, u64), Happening>,
    entries: u64,
    api: Api,
    processes: Vec<Process>,
    sent: u64,
    /// When the last request that was held up arrives.
    last_arrival: Duration,
    outcome: Outcome,
    is_told: bool,
    history: Vec<String>,
}

impl World {
    fn new(schedule: Schedule, is_told: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(schedule.seed);
        let facts = users::beginning(&mut rng);
        Self {
            api: Api::new(facts, schedule.guards),
            schedule,
            rng,
            begin: Instant::now(),
            now: Duration::ZERO,
            agenda: BTreeMap::new(),
            entries: 0,
            processes: Vec::new(),
            sent: 0,
            last_arrival: Duration::ZERO,
            outcome: Outcome::default(),
            is_told,
            history: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<(), String> {
        self.plan(Duration::ZERO, Happening::Start);
        let users = if self.schedule.is_stormy { self.rng.random_range(8..30) } else { 14 };
        for _ in 0..users {
            let at = self.ms(0, 70_000);
            self.plan(at, Happening::User);
        }
        if self.schedule.is_stormy {
            for _ in 0..self.rng.random_range(0..4) {
                let at = self.ms(500, 70_000);
                let replica = self.rng.random_range(0..64);
                let happening = match self.rng.random_range(0..4) {
                    0 => Happening::Kill(replica),
                    1 => Happening::End(replica),
                    _ => Happening::Pause(replica, self.ms(1_000, 40_000)),
                };
                self.plan(at, happening);
            }
        }
        while self.now < STORM.max(self.last_arrival) + PEACE {
            let Some(((at, _), happening)) = self.agenda.pop_first() else { break };
            self.now = at;
            self.happen(happening)?;
        }
        self.check_settled()
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Arrive { from, number, request } => {
                self.tell(|| format!("{from} arrives: {}", described(&request)));
                let is_write = matches!(request, Request::Status { .. });
                let states = self.api.history.len();
                let reply = self.api.answer(request)?;
                self.outcome.refused += u64::from(is_write && matches!(reply, Reply::Refused));
                self.changed(states);
                if !self.is_bad(10) {
                    let delay = self.delay();
                    self.plan(delay, Happening::Answer { to: from, number, reply });
                }
            }
            Happening::Answer { to, number, reply } => {
                if let Some(late) = self.awake(to) {
                    self.plan(late, Happening::Answer { to, number, reply });
                    return Ok(());
                }
                let mut listed = None;
                if let Reply::List(state) = reply {
                    let process = &mut self.processes[to];
                    process.services_seen = process.services_seen.max(state);
                    listed = Some(self.seen_by(to));
                }
                self.step(to, |replica, now, out| replica.answered(now, number, reply, listed, out));
            }
            Happening::Wake(process) => {
                if let Some(late) = self.awake(process) {
                    self.plan(late, Happening::Wake(process));
                    return Ok(());
                }
                self.processes[process].wake_at = None;
                self.step(process, |replica, now, out| replica.wake(now, out));
                if self.processes[process].is_alive && self.processes[process].replica.has_ended() {
                    self.die(process);
                }
            }
            Happening::Watch(process) => {
                if let Some(late) = self.awake(process) {
                    self.plan(late, Happening::Watch(process));
                    return Ok(());
                }
                self.watch(process);
            }
            Happening::User => {
                let states = self.api.history.len();
                let done = users::act(&mut self.rng, &mut self.api);
                self.tell(|| format!("user: {done}"));
                self.changed(states);
            }
            Happening::Kill(which) => {
                if let Some(process) = self.pick(which) {
                    self.die(process);
                }
            }
            Happening::End(which) => {
                if let Some(process) = self.pick(which) {
                    self.tell(|| format!("{process} is asked to end"));
                    self.step(process, |replica, now, out| {
                        replica.end();
                        replica.wake(now, out);
                    });
                }
            }
            Happening::Pause(which, time) => {
                if let Some(process) = self.pick(which) {
                    self.pause(process, time);
                }
            }
            Happening::Start => self.start(),
        }
        Ok(())
    }

    /// Keeps the number of processes.
    fn start(&mut self) {
        while self.processes.iter().filter(|process| process.is_alive).count() < REPLICAS {
            let number = self.processes.len();
            let last = self.api.history.len() - 1;
            // Its first list is as it is; what it lists again later shows what happened since.
            let skew = Duration::from_secs(self.rng.random_range(0..1_000_000));
            let (now, begin) = (self.now, self.begin + skew);
            let mut replica = Replica::new(number as u64, begin, now, self.api.now.clone(), self.schedule.guards);
            let mut out = Vec::new();
            replica.watched(now, self.api.now.clone(), &mut out);
            self.processes.push(Process {
                replica,
                is_alive: true,
                paused_until: Duration::ZERO,
                wake_at: None,
                watches: false,
                services_seen: last,
                pools_seen: last,
                led: false,
            });
            self.tell(|| format!("{number} starts"));
            self.perform(number, out);
        }
    }

    fn die(&mut self, process: usize) {
        self.tell(|| format!("{process} is gone"));
        self.processes[process].is_alive = false;
        let delay = self.ms(100, 15_000);
        self.plan(delay, Happening::Start);
    }

    fn pause(&mut self, process: usize, time: Duration) {
        self.tell(|| format!("{process} sleeps for {time:?}"));
        self.processes[process].paused_until = self.now + time;
        self.processes[process].replica.sleeps(time);
    }

    /// One of those alive; more often than not the one that leads.
    fn pick(&self, which: usize) -> Option<usize> {
        let alive: Vec<usize> = (0..self.processes.len()).filter(|index| self.processes[*index].is_alive).collect();
        let leader = alive.iter().find(|index| self.processes[**index].replica.leads());
        leader
            .copied()
            .filter(|_| !which.is_multiple_of(4))
            .or_else(|| alive.get(which / 4 % alive.len().max(1)).copied())
    }

    /// How long until a process can do anything; none if it can now. What concerns the dead is dropped by `step`.
    fn awake(&self, process: usize) -> Option<Duration> {
        let process = &self.processes[process];
        (process.is_alive && process.paused_until > self.now).then(|| process.paused_until - self.now)
    }

    fn watch(&mut self, index: usize) {
        let last = self.api.history.len() - 1;
        let (services, pools) = if self.is_bad(4) { (self.rng.random(), self.rng.random()) } else { (1.0, 1.0) };
        let process = &mut self.processes[index];
        let onward = |seen: usize, part: f64| seen + ((last - seen) as f64 * part).ceil() as usize;
        process.services_seen = onward(process.services_seen, services);
        process.pools_seen = onward(process.pools_seen, pools);
        process.watches = false;
        let is_behind = process.services_seen < last || process.pools_seen < last;
        let facts = self.seen_by(index);
        self.step(index, |replica, now, out| replica.watched(now, facts, out));
        if is_behind {
            self.plan_watch(index);
        }
    }

    fn seen_by(&self, process: usize) -> Snapshot {
        let process = &self.processes[process];
        let services = self.api.history[process.services_seen].services.clone();
        Snapshot { services, ..self.api.history[process.pools_seen].clone() }
    }

    fn changed(&mut self, states: usize) {
        if self.api.history.len() > states {
            (0..self.processes.len()).for_each(|process| self.plan_watch(process));
        }
    }

    fn plan_watch(&mut self, process: usize) {
        if self.processes[process].is_alive && !self.processes[process].watches {
            self.processes[process].watches = true;
            let lag = if self.is_bad(6) { self.ms(100, 12_000) } else { self.ms(1, 30) };
            self.plan(lag, Happening::Watch(process));
        }
    }

    fn step(&mut self, process: usize, step: impl FnOnce(&mut Replica, Duration, &mut Vec<Effect>)) {
        let now = self.now;
        if !self.processes[process].is_alive {
            return;
        }
        let mut out = Vec::new();
        step(&mut self.processes[process].replica, now, &mut out);
        let leads = self.processes[process].replica.leads();
        if std::mem::replace(&mut self.processes[process].led, leads) != leads {
            self.outcome.leaders += u64::from(leads);
            self.tell(|| format!("{process} {}", if leads { "leads" } else { "follows" }));
        }
        self.perform(process, out);
    }

    fn perform(&mut self, process: usize, effects: Vec<Effect>) {
        let mut wake = None;
        for effect in effects {
            match effect {
                Effect::Send(number, request) => self.send(process, number, request),
                Effect::Pool(key, status) => {
                    let states = self.api.history.len();
                    self.api.edit(|now| {
                        if let Some(pool) = now.pools.get_mut(key.name.as_ref()) {
                            Arc::make_mut(pool).observed = status;
                        }
                    });
                    self.changed(states);
                }
                Effect::Wake(at) => wake = Some(at),
            }
            if !self.processes[process].is_alive {
                return;
            }
        }
        let planned = self.processes[process].wake_at;
        if let Some(at) = wake.filter(|at| planned.is_none_or(|planned| *at < planned)) {
            self.processes[process].wake_at = Some(at);
            self.plan(at.saturating_sub(self.now), Happening::Wake(process));
        }
    }

    fn send(&mut self, from: usize, number: u64, request: Request) {
        let mut delay = self.delay();
        let is_write = matches!(request, Request::Status { .. });
        if is_write {
            self.sent += 1;
        }
        let fate = self.schedule.fates.get(&self.sent).copied().filter(|_| is_write);
        let fate = fate
            .or_else(|| (is_write && self.is_bad(30)).then(|| Fate::ALL[self.rng.random_range(0..Fate::ALL.len())]));
        let long = self.ms(6_000, HELD_MS);
        if let Some(fate) = fate {
            self.tell(|| format!("{from} {fate:?}: {}", described(&request)));
        }
        match fate {
            None if !is_write && self.is_bad(20) => return,
            None => {}
            Some(Fate::Dies) => {
                self.die(from);
                return;
            }
            Some(Fate::SendsAndDies) => self.die(from),
            Some(Fate::SendsLateAndDies) => {
                delay = long;
                self.die(from);
            }
            // Its number means nothing to anybody, so the answer goes nowhere.
            Some(Fate::IsNotAnswered) => return self.plan(delay, Happening::Arrive { from, number: 0, request }),
            Some(Fate::SendsLate) => delay = long,
            Some(Fate::Sleeps) => {
                delay = long;
                self.pause(from, long);
            }
        }
        if delay == long {
            self.last_arrival = self.last_arrival.max(self.now + delay);
        }
        self.plan(delay, Happening::Arrive { from, number, request });
    }

    fn plan(&mut self, after: Duration, happening: Happening) {
        self.entries += 1;
        self.agenda.insert((self.now + after, self.entries), happening);
    }

    fn delay(&mut self) -> Duration {
        if self.is_bad(12) { self.ms(20, 8_000) } else { self.ms(1, 15) }
    }

    /// Once in so many times, while there is a storm.
    fn is_bad(&mut self, once_in: u32) -> bool {
        self.schedule.is_stormy && self.now < STORM && self.rng.random_ratio(1, once_in)
    }

    fn ms(&mut self, first: u64, last: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(first..=last))
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.is_told {
            let line = format!("{:>9.3?} {}", self.now, what());
            self.history.push(line);
        }
    }

    /// What must be in the end.
    fn check_settled(&mut self) -> Result<(), String> {
        self.outcome.writes = self.api.writes;
        if let Some((address, (one, other))) = self.api.doubled().pop_first() {
            return Err(format!("in the end both {one} and {other} have {address}"));
        }
        if !self.processes.iter().any(|process| process.is_alive && process.replica.leads()) {
            return Err("in the end nobody leads".to_owned());
        }
        let mut fresh = Controller::new(controller::Config::default());
        let now = self.begin + self.now;
        fresh.step(now, controller::Event::Snapshot(Arc::new(self.api.now.clone())));
        let writes = fresh.step(now, controller::Event::Leads(true));
        match writes.iter().find(|write| matches!(write, Write::ServiceStatus { .. })) {
            Some(write) => Err(format!("in the end there is something to write still: {write:?}")),
            None => Ok(()),
        }
    }
}

fn described(request: &Request) -> String {
    match request {
        Request::Status { service, wish } => {
            let kind = if wish.fence { "fence" } else { "status" };
            format!("{kind} of {service} at {}: {:?}", wish.version, wish.status.addresses)
        }
        other => format!("{other:?}"),
    }
}
