//! Leadership at an API server: reads and writes the Lease, lists and fences as [`ferrogate_core::lease`] decides.
//!
//! One task. It never waits for anything but the next event: a request about the Lease, a list, a change of facts and
//! room for a fence are all waited for at once, so that nothing delays a renewal.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use ::kube::{Api, Client, api::PostParams};
pub use ferrogate_core::lease::Timing;
use ferrogate_core::{
    lease::{self, Action, Election, Event, Record},
    model::{ResourceVersion, ServiceKey},
    snapshot::Snapshot,
    write::Write,
};
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{clock::Clock, kube::Relist};

/// The name of the Lease.
pub const LEASE: &str = "ferrogate-controller";

/// What a [`Candidate`] asks of the rest of the process.
pub struct Surroundings {
    /// The facts.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Lists every Service anew.
    pub relist: Relist,
    /// Where fences go.
    pub writes: mpsc::Sender<Write>,
    /// Until when a write may start, by `clock`; nothing when none may.
    pub until: watch::Sender<Option<std::time::Instant>>,
    /// Whether this process decides.
    pub leads: watch::Sender<bool>,
    /// By which all of this is counted.
    pub clock: Clock,
}

/// Stands for election until it resigns.
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
    timing: Timing,
    election: Election,
    /// The Lease as it was read last.
    read: Option<Lease>,
    around: Surroundings,
    /// The list that is waited for.
    listing: Option<u64>,
    fences: VecDeque<Write>,
    /// What is not seen with another version yet.
    unfenced: BTreeMap<ServiceKey, ResourceVersion>,
}

/// What became of a request about the Lease.
enum Answer {
    Read(Result<Option<Lease>, ::kube::Error>),
    Claimed(std::time::Instant, Result<Lease, ::kube::Error>),
    TooLate,
}

impl Candidate {
    /// A candidate that has seen nothing yet.
    pub fn new(client: Client, namespace: &str, identity: String, timing: Timing, around: Surroundings) -> Self {
        let election = Election::new(identity.clone(), timing);
        let api = Api::namespaced(client, namespace);
        let (fences, unfenced) = (VecDeque::new(), BTreeMap::new());
        Self { api, identity, timing, election, read: None, around, listing: None, fences, unfenced }
    }

    /// Stands for election until `resign` says whether the fate of every write is known.
    pub async fn run(mut self, mut resign: oneshot::Receiver<bool>) {
        let mut request: Option<BoxFuture<'static, Answer>> = None;
        let mut next = Instant::now();
        loop {
            if request.is_none() && next <= Instant::now() {
                next = Instant::now() + self.timing.retry;
                request = Some(self.ask());
            }
            let deadline = self.election.deadline().map(|at| self.around.clock.awake(at));
            let patience = if request.is_none() { Some(next) } else { None };
            let patience = deadline.into_iter().chain(patience).min();
            let (writes, mut done) = (self.around.writes.clone(), self.around.relist.done.clone());
            // Every arm is cancel-safe: what is not finished is looked at again in the next round.
            let actions = tokio::select! {
                biased;
                settled = &mut resign => {
                    let settled = settled.unwrap_or(false);
                    let actions = self.step(Event::Resign { settled });
                    let is_clean = actions.contains(&Action::Release);
                    self.perform(actions);
                    if is_clean {
                        self.release().await;
                    }
                    return;
                }
                answer = some(&mut request) => {
                    request = None;
                    self.answered(answer)
                }
                () = reached(&mut done, self.listing) => {
                    self.listing = None;
                    self.listed()
                }
                Ok(()) = self.around.snapshots.changed(), if !self.unfenced.is_empty() => self.look(),
                Ok(room) = writes.reserve(), if !self.fences.is_empty() => {
                    if let Some(fence) = self.fences.pop_front() {
                        room.send(fence);
                    }
                    Vec::new()
                }
                () = sleep_until(patience) => self.step(Event::Tick),
            };
            request = self.perform(actions).or(request);
        }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.election.step(self.around.clock.now(), event)
    }

    /// Performs what is left to be done; a claim is to be waited for.
    fn perform(&mut self, actions: Vec<Action>) -> Option<BoxFuture<'static, Answer>> {
        let until = self.election.writes_until();
        let mut request = None;
        for action in actions {
            match action {
                Action::Claim => request = Some(self.claim()),
                // The last thing `run` does.
                Action::Release => {}
                Action::List => {
                    tracing::info!("listing every service anew before leading");
                    let number = *self.around.relist.wanted.borrow() + 1;
                    self.around.relist.wanted.send_replace(number);
                    self.listing = Some(number);
                }
                Action::Fence(suspects) => self.fence(suspects),
                Action::Lead => {
                    self.tell_until(until);
                    tracing::info!(leads = true, "leadership changed");
                    self.around.leads.send_replace(true);
                }
                Action::Follow => {
                    self.listing = None;
                    self.fences.clear();
                    self.unfenced.clear();
                    self.tell_until(None);
                    if self.around.leads.send_replace(false) {
                        tracing::info!(leads = false, "leadership changed");
                    }
                }
            }
        }
        self.tell_until(until);
        request
    }

    fn tell_until(&self, until: Option<std::time::Instant>) {
        self.around.until.send_if_modified(|told| std::mem::replace(told, until) != until);
    }

    fn fence(&mut self, suspects: BTreeMap<ServiceKey, ResourceVersion>) {
        tracing::info!(count = suspects.len(), "fencing services that a late write could reach");
        let facts = self.around.snapshots.borrow_and_update().clone();
        self.unfenced = suspects;
        for (key, version) in &self.unfenced {
            let Some(service) = facts.services.get(key).filter(|service| service.version == *version) else { continue };
            self.fences.push_back(Write::ServiceStatus {
                service: key.clone(),
                status: service.observed.clone(),
                version: version.clone(),
                fence: true,
            });
        }
        // Some may have changed since they were listed.
        self.around.snapshots.mark_changed();
    }

    /// Looks which Services are seen with another version by now.
    fn look(&mut self) -> Vec<Action> {
        let facts = self.around.snapshots.borrow_and_update().clone();
        let is_fenced = |key: &ServiceKey, version: &ResourceVersion| {
            facts.services.get(key).is_none_or(|service| service.version != *version)
        };
        let fenced: Vec<_> = self.unfenced.extract_if(.., |key, version| is_fenced(key, version)).collect();
        fenced.into_iter().flat_map(|(service, _)| self.step(Event::Fenced(service))).collect()
    }

    fn listed(&mut self) -> Vec<Action> {
        let suspects = lease::suspects(&self.around.snapshots.borrow().clone());
        self.step(Event::Listed { suspects })
    }

    fn answered(&mut self, answer: Answer) -> Vec<Action> {
        match answer {
            Answer::Read(Ok(Some(lease))) => {
                let spec = lease.spec.clone().unwrap_or_default();
                let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                let record = Record {
                    holder: spec.holder_identity,
                    duration: seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs),
                    version: lease.metadata.resource_version.clone().unwrap_or_default().into(),
                };
                self.read = Some(lease);
                self.step(Event::Read(record))
            }
            Answer::Read(Ok(None)) => {
                self.read = None;
                let marked = lease::is_marked(&self.around.snapshots.borrow());
                self.step(Event::Missing { marked })
            }
            Answer::Claimed(asked, Ok(lease)) => {
                let version = lease.metadata.resource_version.unwrap_or_default().into();
                self.step(Event::Claimed { asked, version })
            }
            // Another was quicker, or has taken it from us: the next reading says which.
            Answer::Claimed(_, Err(::kube::Error::Api(status))) if status.code == 409 => self.step(Event::Tick),
            Answer::Read(Err(error)) | Answer::Claimed(_, Err(error)) => {
                tracing::warn!(%error, "lease not renewed, trying again");
                self.step(Event::Tick)
            }
            Answer::TooLate => {
                tracing::warn!(error = "the request took too long", "lease not renewed, trying again");
                self.step(Event::Tick)
            }
        }
    }

    fn ask(&self) -> BoxFuture<'static, Answer> {
        let (api, patience) = (self.api.clone(), self.timing.request);
        async move {
            let answer = tokio::time::timeout(patience, api.get_opt(LEASE)).await;
            answer.map_or(Answer::TooLate, Answer::Read)
        }
        .boxed()
    }

    fn claim(&self) -> BoxFuture<'static, Answer> {
        let (api, patience, asked) = (self.api.clone(), self.timing.request, self.around.clock.now());
        let before = self.read.as_ref().and_then(|lease| lease.spec.as_ref());
        let spec = self.spec(before);
        let read = self.read.clone();
        async move {
            let claim = async {
                match read {
                    // Carries the version that was read, so that of two who try at once only one succeeds.
                    Some(lease) => {
                        let lease = Lease { spec: Some(spec), ..lease };
                        api.replace(LEASE, &PostParams::default(), &lease).await
                    }
                    None => {
                        let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..Default::default() };
                        api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
                    }
                }
            };
            let answer = tokio::time::timeout(patience, claim).await;
            answer.map_or(Answer::TooLate, |answer| Answer::Claimed(asked, answer))
        }
        .boxed()
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.filter(|before| before.holder_identity.as_deref() == Some(&self.identity));
        let transitions = before.and_then(|before| before.lease_transitions).unwrap_or(0);
        let seconds = self.timing.lease.as_secs().max(1);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(seconds).ok(),
            acquire_time: ours.and_then(|ours| ours.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if ours.is_some() { transitions } else { transitions.saturating_add(1) }),
            ..Default::default()
        }
    }

    /// Lets the next one take over at once.
    async fn release(&mut self) {
        let release = async {
            let mut lease = self.api.get(LEASE).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = None;
                self.api.replace(LEASE, &PostParams::default(), &lease).await?;
            }
            Ok::<(), ::kube::Error>(())
        };
        match tokio::time::timeout(self.timing.request, release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "lease not released, it will expire"),
            Err(_) => tracing::warn!("lease not released in time, it will expire"),
        }
    }
}

/// Waits for a list; for ever where none is waited for, or nobody lists any more.
async fn reached(done: &mut watch::Receiver<u64>, number: Option<u64>) {
    let Some(number) = number else { return std::future::pending().await };
    if done.wait_for(|done| *done >= number).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn some<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
