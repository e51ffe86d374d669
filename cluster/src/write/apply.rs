//! Writes to an API server: which wish is carried out when.
//!
//! Each wish is one request, or two where the object must exist first. A few run at a time, never two for the same
//! place. Statuses come first; Events follow when there is room, and are dropped when there are too many. One that
//! fails is tried again, later each time, for as long as it is wished for; while the API server is ill only one
//! request at a time asks whether it is well again. One that was decided on an older version than the object has is
//! dropped: whoever decided sees the newer version too, and decides anew.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use ferrogate_core::{
    model::{ObjectRef, ResourceVersion, ServiceKey},
    write::{Event, Write},
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::jiff::Timestamp;
use rand::Rng;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use super::request::{CONTROLLER, Requests, SPEAKER};
use crate::{
    clock::Clock,
    heartbeat::Renewal,
    objects::Id,
    state::Place,
    write::{Request, Wish, bgp::Clocked},
};

/// How many requests run at a time.
const AT_ONCE: usize = 16;
/// How many of them may tell Events.
const EVENTS_AT_ONCE: usize = 4;
/// How long one request may take where no Lease says otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an Event is told before it is dropped.
const EVENT_ATTEMPTS: u32 = 5;
/// How long after the first failure a write is tried again; twice as long after each further one.
const RETRY: Duration = Duration::from_millis(200);
/// How long after a failure it is tried again at most.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// How long an API server that is ill is left alone at most.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How long one is left alone that says it has too much to do, unless it says how long.
const OVERLOADED: Duration = Duration::from_secs(1);
/// How many Events may wait. One each for ten thousand Services that come at once.
const MAX_EVENTS: usize = 10_000;
/// How long requests may hold up the end of the process.
const FAREWELL: Duration = Duration::from_secs(5);

/// Until when writes may start.
#[derive(Clone, Debug)]
pub struct Mandate {
    /// The time by `clock`; nothing where this process does not decide.
    pub until: watch::Receiver<Option<std::time::Instant>>,
    /// By which it is counted.
    pub clock: Clock,
    /// How long a write may take.
    pub request: Duration,
}

impl Mandate {
    fn holds(&self) -> bool {
        self.until.borrow().is_some_and(|until| self.clock.now() <= until)
    }
}

/// Carries out writes at an API server.
pub struct Applier {
    requests: Requests,
    /// None for those who need no leadership.
    mandate: Option<Mandate>,
    jobs: BTreeMap<Place, Attempt>,
    later: BTreeMap<Place, (Instant, Attempt)>,
    sessions: Clocked,
    events: VecDeque<(Event, u32)>,
    /// What runs, with the version it was decided on.
    busy: BTreeMap<Work, Option<ResourceVersion>>,
    /// Statuses of Services of which nobody knows whether they were written, with the version they were decided on.
    doubtful: BTreeMap<ServiceKey, ResourceVersion>,
    /// Where renewals of a Lease go, which wait for nothing; none where nobody asks for any.
    renewals: Option<watch::Sender<Option<Renewal>>>,
    illness: Illness,
}

/// What a request is about; two for the same never run together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Say(Place),
    Tell(Event),
}

#[derive(Clone, Debug)]
struct Attempt {
    wish: Wish,
    failures: u32,
}

/// How an API server has been of late.
#[derive(Debug, Default)]
struct Illness {
    /// How many requests in a row it did not serve, those that ran at the same time counted once.
    failures: u32,
    /// When it is asked again.
    until: Option<Instant>,
}

type Done = (Work, Attempt, Result<(), ::kube::Error>);

impl Applier {
    /// One that carries out what these requests say, for as long as it has the mandate, if it needs one.
    pub fn new(requests: Requests, mandate: Option<Mandate>) -> Self {
        Self {
            requests,
            mandate,
            jobs: BTreeMap::new(),
            later: BTreeMap::new(),
            sessions: Clocked::default(),
            events: VecDeque::new(),
            busy: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            renewals: None,
            illness: Illness::default(),
        }
    }

    /// The same, which hands on renewals of a Lease.
    pub fn renewing(self, renewals: watch::Sender<Option<Renewal>>) -> Self {
        Self { renewals: Some(renewals), ..self }
    }

    /// Carries out what comes until `finish`, and then what is left, for a short while. Where the mandate ends, what
    /// still waits is for another to decide. Returns whether the fate of every write is known.
    pub async fn run(mut self, mut writes: mpsc::Receiver<Write>, finish: CancellationToken) -> bool {
        let needs_mandate = self.mandate.is_some();
        let mut until = self.mandate.as_ref().map_or_else(|| watch::channel(None).1, |mandate| mandate.until.clone());
        let mut running: FuturesUnordered<BoxFuture<'static, Done>> = FuturesUnordered::new();
        let mut give_up: Option<Instant> = None;
        loop {
            self.start(&mut running);
            if give_up.is_some() && running.is_empty() && self.is_idle() {
                return self.is_settled();
            }
            let later = self.later.values().map(|(at, _)| *at);
            let patience = later.chain(self.illness.until).chain(give_up).min();
            let patience = patience.unwrap_or_else(|| Instant::now() + REQUEST_TIMEOUT);
            tokio::select! {
                () = finish.cancelled(), if give_up.is_none() => {
                    give_up = Some(Instant::now() + FAREWELL);
                    while let Ok(write) = writes.try_recv() {
                        self.ask(write);
                    }
                }
                Ok(()) = until.changed(), if needs_mandate => {
                    if until.borrow_and_update().is_none() {
                        self.jobs.clear();
                        self.later.clear();
                        self.events.clear();
                        // One that ran on and failed would be tried again, over what the next leader says.
                        running.clear();
                        self.doubt();
                    }
                }
                Some(write) = writes.recv(), if give_up.is_none() => self.ask(write),
                Some((work, attempt, result)) = running.next() => self.done(work, attempt, result),
                () = tokio::time::sleep_until(patience) => {
                    let now = Instant::now();
                    if give_up.is_some_and(|at| at <= now) {
                        let count = running.len() + self.jobs.len() + self.later.len();
                        tracing::error!(count, "writes that the API server did not take before the end");
                        self.doubt();
                        return self.is_settled();
                    }
                    self.illness.until = self.illness.until.filter(|until| *until > now);
                    let due = self.later.iter().filter(|(_, (at, _))| *at <= now).map(|(place, _)| place.clone());
                    for place in due.collect::<Vec<_>>() {
                        if let Some((_, attempt)) = self.later.remove(&place) {
                            self.jobs.entry(place).or_insert(attempt);
                        }
                    }
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.later.is_empty() && self.events.is_empty()
    }

    /// What runs is not waited for any more.
    fn doubt(&mut self) {
        for (work, version) in std::mem::take(&mut self.busy) {
            if let (Work::Say(Place::Service(key)), Some(version)) = (work, version) {
                self.doubtful.insert(key, version);
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.doubtful.iter().all(|(key, version)| self.has_passed(key, version))
    }

    /// Whether a write decided on this version was carried out or is refused for ever: the Service has another by now.
    fn has_passed(&self, key: &ServiceKey, version: &ResourceVersion) -> bool {
        let id = Id::of(&ObjectRef::service(key));
        id.and_then(|id| self.requests.live(&id)).is_none_or(|live| live.version != *version)
    }

    fn ask(&mut self, write: Write) {
        let (place, wish) = match Request::from(write) {
            Request::Say(place, mut wish) => {
                self.sessions.stamp(&place, &mut wish, Timestamp::now());
                (place, wish)
            }
            Request::Tell(event) => {
                if self.events.len() < MAX_EVENTS {
                    self.events.push_back((event, 0));
                } else {
                    tracing::debug!(reason = event.reason, "too many events are waiting, this one is not told");
                }
                return;
            }
            Request::Renew(renewal) => {
                if let Some(renewals) = &self.renewals {
                    renewals.send_replace(Some(renewal));
                }
                return;
            }
        };
        if self.later.get(&place).is_some_and(|(_, attempt)| attempt.wish == wish) {
            // Asked for again while it waits for its turn.
            return;
        }
        let waiting = self.jobs.remove(&place).or_else(|| self.later.remove(&place).map(|(_, attempt)| attempt));
        let wish = wish.over(waiting.map(|attempt| attempt.wish));
        self.jobs.insert(place, Attempt { wish, failures: 0 });
    }

    fn start(&mut self, running: &mut FuturesUnordered<BoxFuture<'static, Done>>) {
        let now = Instant::now();
        if self.illness.until.is_some_and(|until| now < until) {
            return;
        }
        let at_once = if self.illness.failures == 0 { AT_ONCE } else { 1 };
        while running.len() < at_once && self.mandate.as_ref().is_none_or(Mandate::holds) {
            let Some((work, attempt)) = self.next() else { break };
            let version = match &attempt.wish {
                Wish::Service { version, .. } if version.is_known() => Some(version.clone()),
                _ => None,
            };
            self.busy.insert(work.clone(), version);
            let request = match &work {
                Work::Tell(event) => self.requests.tell(event),
                Work::Say(place) => self.requests.say(place, &attempt.wish),
            };
            let mandate = self.mandate.clone();
            let patience = mandate.as_ref().map_or(REQUEST_TIMEOUT, |mandate| mandate.request);
            let done = async move {
                let failed = |why: &'static str| Err(::kube::Error::Service(why.into()));
                if mandate.is_some_and(|mandate| !mandate.holds()) {
                    return (work, attempt, failed("too little of the lease is left"));
                }
                let result = tokio::time::timeout(patience, request).await;
                (work, attempt, result.unwrap_or_else(|_| failed("the request took too long")))
            };
            running.push(done.boxed());
        }
    }

    /// What comes next: anything but an Event, as long as there is any.
    fn next(&mut self) -> Option<(Work, Attempt)> {
        let free = self.jobs.keys().find(|place| !self.busy.contains_key(&Work::Say((*place).clone()))).cloned();
        if let Some((place, attempt)) = free.and_then(|place| self.jobs.remove_entry(&place)) {
            return Some((Work::Say(place), attempt));
        }
        let events = self.busy.keys().filter(|work| matches!(work, Work::Tell(_))).count();
        let is_free = |(event, _): &(Event, u32)| !self.busy.contains_key(&Work::Tell(event.clone()));
        let index = self.events.iter().position(is_free).filter(|_| events < EVENTS_AT_ONCE)?;
        let (event, failures) = self.events.remove(index)?;
        Some((Work::Tell(event), Attempt { wish: Wish::Events, failures }))
    }

    fn done(&mut self, work: Work, attempt: Attempt, result: Result<(), ::kube::Error>) {
        let version = self.busy.remove(&work).flatten();
        let Err(error) = result else {
            self.illness = Illness::default();
            if let Work::Say(Place::Service(key)) = &work {
                self.doubtful.remove(key);
            }
            return;
        };
        let code = match &error {
            ::kube::Error::Api(status) => Some(status.code),
            _ => None,
        };
        if let (Work::Say(Place::Service(key)), Some(version), None) = (&work, version, code) {
            // Those that nobody asked for again would stay for ever.
            let mut doubtful = std::mem::take(&mut self.doubtful);
            doubtful.retain(|key, version| !self.has_passed(key, version));
            doubtful.insert(key.clone(), version);
            self.doubtful = doubtful;
        }
        match code {
            None | Some(429 | 500..) => self.illness.worsen(&error),
            Some(_) => self.illness = Illness::default(),
        }
        let failures = attempt.failures + 1;
        let place = match work {
            Work::Say(place) => place,
            Work::Tell(event) => {
                let has_expired = self.requests.forget(&event) && code == Some(404);
                let is_refused = matches!(code, Some(400..=499)) && code != Some(429);
                if failures < EVENT_ATTEMPTS && (has_expired || !is_refused) {
                    self.events.push_back((event, failures));
                } else {
                    tracing::warn!(object = %event.object, reason = event.reason, %error, "event is not told");
                }
                return;
            }
        };
        match code {
            Some(404) => tracing::debug!(?place, "object is gone, nothing is written"),
            Some(409) if matches!(attempt.wish, Wish::Service { .. }) => {
                tracing::debug!(?place, "service has changed meanwhile, what to write is decided anew");
            }
            Some(400 | 422) => tracing::error!(?place, %error, "write given up, it will be asked for again"),
            _ => {
                if let Some(newer) = self.jobs.get_mut(&place) {
                    newer.wish = newer.wish.clone().over(Some(attempt.wish));
                    return;
                }
                tracing::warn!(?place, %error, failures, "write failed, trying again");
                let pause = RETRY.saturating_mul(1 << (failures - 1).min(16)).min(MAX_RETRY);
                let at = Instant::now() + jittered(pause);
                self.later.insert(place, (at, Attempt { failures, ..attempt }));
            }
        }
    }
}

impl Illness {
    fn worsen(&mut self, error: &::kube::Error) {
        if self.until.is_some() {
            return;
        }
        let asked = match error {
            ::kube::Error::Api(status) if status.code == 429 || status.code == 503 => {
                let seconds = status.details.as_ref().map_or(0, |details| u64::from(details.retry_after_seconds));
                Some(Duration::from_secs(seconds).clamp(OVERLOADED, MAX_RETRY))
            }
            _ => None,
        };
        let pause = jittered(RETRY.saturating_mul(1 << self.failures.min(16)).min(MAX_PAUSE));
        self.failures = self.failures.saturating_add(1);
        self.until = Some(Instant::now() + asked.map_or(pause, |asked| asked.max(pause)));
    }
}

/// About as long, so that not all who wait come back together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use ::kube::Client;
    use ferrogate_core::{
        model::ObjectKey,
        write::{Condition, Severity},
    };

    use super::*;
    use crate::kube::LiveObjects;

    fn applier() -> Applier {
        let client = Client::try_from(::kube::Config::new(hyper::Uri::from_static("http://127.0.0.1:1"))).unwrap();
        let live = watch::channel(LiveObjects::new()).1;
        Applier::new(Requests::new(client, "default".to_owned(), CONTROLLER, "one".to_owned(), live), None)
    }

    fn web() -> ObjectRef {
        ObjectRef::service(&ObjectKey::new("default", "web"))
    }

    /// Begins to tell an Event and answers with this code; whether it is told again.
    fn is_told_again(applier: &mut Applier, event: &Event, code: u16) -> bool {
        drop(applier.requests.tell(event));
        let status = ::kube::core::Status { code, ..::kube::core::Status::default() };
        let attempt = Attempt { wish: Wish::Events, failures: 0 };
        applier.done(Work::Tell(event.clone()), attempt, Err(::kube::Error::Api(status.boxed())));
        !std::mem::take(&mut applier.events).is_empty()
    }

    #[tokio::test]
    async fn an_event_that_has_expired_or_came_at_a_busy_moment_is_told_again_and_one_that_is_refused_is_not() {
        let mut applier = applier();
        let (object, reason) = (web(), "Tested".to_owned());
        let event = Event { object, severity: Severity::Normal, reason, message: String::new() };

        assert!(is_told_again(&mut applier, &event, 429));
        assert!(!is_told_again(&mut applier, &event, 404), "its Namespace is gone");
        drop(applier.requests.tell(&event));
        assert!(is_told_again(&mut applier, &event, 404), "the one that was to be counted has expired");
        assert!(!is_told_again(&mut applier, &event, 403));
    }

    #[tokio::test]
    async fn a_doubt_about_a_service_that_is_gone_or_has_changed_is_not_kept_for_ever() {
        let mut applier = applier();
        for number in 0..3 {
            let place = Place::Service(ObjectKey::new("default", format!("web-{number}")));
            let status = ferrogate_core::model::service::ServiceStatus::default();
            let attempt = Attempt { wish: Wish::Service { status, version: "7".into(), fence: false }, failures: 0 };
            applier.busy.insert(Work::Say(place.clone()), Some("7".into()));
            applier.done(Work::Say(place), attempt, Err(::kube::Error::Service("it took too long".into())));
        }

        assert!(applier.is_settled() && applier.doubtful.len() <= 1, "{:?}", applier.doubtful);
    }

    #[tokio::test]
    async fn a_condition_that_failed_is_still_wished_for_beside_one_that_came_meanwhile() {
        let (mut applier, object) = (applier(), web());
        let condition = |kind: &str| Write::Condition {
            object: object.clone(),
            condition: Condition {
                kind: kind.to_owned(),
                holds: true,
                reason: "Tested".to_owned(),
                message: String::new(),
                observed_generation: 0,
            },
        };
        applier.ask(condition("First"));
        let (place, attempt) = applier.jobs.pop_first().unwrap();

        applier.ask(condition("Second"));
        applier.done(Work::Say(place), attempt, Err(::kube::Error::Service("it did not work".into())));

        let waiting = applier.jobs.values().map(|attempt| &attempt.wish);
        let kinds: Vec<_> = waiting
            .flat_map(|wish| match wish {
                Wish::Conditions { conditions, .. } => conditions.keys().cloned().collect(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(kinds, ["First", "Second"]);
    }
}
