//! Leadership: one of several controllers decides, by a Lease of the API server.
//!
//! The holder renews in time or steps down in time: what it believes ends well before anyone else may take over. No
//! clock of another machine is compared to ours; a Lease counts as expired when *we* have seen it unchanged for as
//! long as it says.

use std::time::Duration;

use ::kube::{Api, Client, api::PostParams};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// The name of the Lease.
pub const LEASE: &str = "ferrogate-controller";

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a Lease that is not renewed keeps others away.
    pub lease: Duration,
    /// How long after its last renewal the holder steps down; shorter than `lease`.
    pub give_up: Duration,
    /// How long between two attempts.
    pub retry: Duration,
}

impl Default for Timing {
    /// What Kubernetes' own components use.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { lease: seconds(15), give_up: seconds(10), retry: seconds(2) }
    }
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// We hold the Lease now.
    Held,
    /// Another holds it.
    Others,
}

/// Stands for election until `finish`, and keeps `leads` true while this process holds the Lease.
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
    timing: Timing,
    /// The Lease as it was last seen to change, and when that was.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    /// A candidate that has seen nothing yet.
    pub fn new(client: Client, namespace: &str, identity: String, timing: Timing) -> Self {
        Self { api: Api::namespaced(client, namespace), identity, timing, seen: None }
    }

    /// Stands for election until `finish`.
    pub async fn run(mut self, leads: watch::Sender<bool>, finish: CancellationToken) {
        let mut held_until: Option<Instant> = None;
        loop {
            let started = Instant::now();
            let patience = (started + self.timing.retry).min(held_until.unwrap_or(started + self.timing.retry));
            let attempt = tokio::select! {
                () = finish.cancelled() => break,
                attempt = tokio::time::timeout_at(patience, self.attempt()) => attempt,
            };
            match attempt {
                // Counted from before the request: the API server may have taken it at once.
                Ok(Ok(Outcome::Held)) => held_until = Some(started + self.timing.give_up),
                Ok(Ok(Outcome::Others)) => held_until = None,
                Ok(Err(error)) => tracing::warn!(%error, "lease not renewed, trying again"),
                Err(_) => tracing::warn!(error = "the request took too long", "lease not renewed, trying again"),
            }
            held_until = held_until.filter(|until| Instant::now() < *until);
            tell(&leads, held_until.is_some());
            let next = Instant::now() + self.timing.retry;
            tokio::select! {
                () = finish.cancelled() => break,
                () = tokio::time::sleep_until(next.min(held_until.unwrap_or(next))) => {}
            }
        }
        if leads.send_replace(false) {
            self.release().await;
        }
    }

    async fn attempt(&mut self) -> Result<Outcome, ::kube::Error> {
        let Some(mut lease) = self.api.get_opt(LEASE).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(LEASE.to_owned()), ..Default::default() },
                spec: Some(self.spec(None)),
            };
            return self.written(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let now = Instant::now();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != spec) {
            self.seen = Some((spec.clone(), now));
        }
        let unchanged_since = self.seen.as_ref().map_or(now, |(_, at)| *at);
        if !self.may_take(&spec, now.duration_since(unchanged_since)) {
            return Ok(Outcome::Others);
        }
        // Carries the version that was read, so that of two who try at once only one succeeds.
        lease.spec = Some(self.spec(Some(&spec)));
        let result = self.api.replace(LEASE, &PostParams::default(), &lease).await;
        self.written(result)
    }

    fn may_take(&self, spec: &LeaseSpec, unchanged: Duration) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        // A Lease is written in whole seconds; ours may be shorter in tests only.
        let lease = seconds.map_or(self.timing.lease, Duration::from_secs).min(self.timing.lease);
        holder.is_empty() || holder == self.identity || unchanged >= lease
    }

    fn written(&self, result: Result<Lease, ::kube::Error>) -> Result<Outcome, ::kube::Error> {
        match result {
            Ok(_) => Ok(Outcome::Held),
            // Another was quicker, or has taken it from us.
            Err(::kube::Error::Api(status)) if status.code == 409 => Ok(Outcome::Others),
            Err(error) => Err(error),
        }
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
        match tokio::time::timeout(self.timing.retry, release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "lease not released, it will expire"),
            Err(_) => tracing::warn!("lease not released in time, it will expire"),
        }
    }
}

fn tell(leads: &watch::Sender<bool>, now: bool) {
    leads.send_if_modified(|leads| {
        let changed = *leads != now;
        if changed {
            tracing::info!(leads = now, "leadership changed");
            *leads = now;
        }
        changed
    });
}
