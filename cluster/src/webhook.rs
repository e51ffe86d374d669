//! Hands of the webhook's certificate: keeps it in a Secret, and tells the API server whom to trust.
//!
//! ```text
//!  Secret ───────────────────────┐             ┌─► Secret (made, or replaced at the version that was read)
//!  ValidatingWebhookConfiguration┼─► due? ─────┼─► caBundle (server-side apply, that field alone)
//!  clock ────────────────────────┘             └─► what the listener serves
//! ```
//!
//! Every replica does this, whether it leads or not. Of two that renew at once the API server takes one, and the other
//! serves what it is told. What fails is tried again, later each time; what is served meanwhile stays.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ::kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use futures::StreamExt;
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use rand::Rng;
use serde_json::json;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    certificate::{self, Due, Kept, Lifetimes, NAME},
    kube::{is_expiry, remedy},
};

/// Name of the ValidatingWebhookConfiguration whose `caBundle` is ours.
pub const CONFIGURATION: &str = "ferrogate";
/// The field manager of `caBundle`, and of nothing else.
pub const MANAGER: &str = "ferrogate-webhook-ca";

/// How often the clock is looked at: it may have been set.
const LOOK: Duration = Duration::from_secs(60);
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after a failure it is tried again, at first and at most; each time by chance a little more or less.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// How long between two corrections of a bundle that somebody else keeps changing.
const CORRECTION: Duration = Duration::from_secs(5);

/// How many writes one look may lead to: an authority, a leaf, and as often again where another is quicker.
const MAX_WRITES: u32 = 5;

/// What the listener shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate, as PEM.
    pub chain: String,
    /// Its private key, as PEM.
    pub key: String,
    /// When it ends to be valid, in seconds since 1970.
    pub not_after: i64,
}

impl std::fmt::Debug for Certificate {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// Keeps the certificate until it is told to stop.
pub struct Keeper {
    secrets: Api<Secret>,
    configurations: Api<ValidatingWebhookConfiguration>,
    namespace: String,
    names: Vec<String>,
    lifetimes: Lifetimes,
    serve: watch::Sender<Option<Arc<Certificate>>>,
    /// `None` until it was listed; then whether it is there.
    secret: Option<Option<Secret>>,
    configuration: Option<ValidatingWebhookConfiguration>,
    /// When the bundle was last set, on which object and to what.
    corrected: Option<(Instant, Option<String>, String)>,
    retry_after: Duration,
    /// Kinds whose watch fails.
    failing: BTreeSet<&'static str>,
}

/// What a round came to.
enum Round {
    /// Look again then, or when something changes.
    Settled(Instant),
    /// Something was written; look again at once.
    Again,
}

impl Keeper {
    /// One for the webhook in `namespace`, which tells `serve` what to show.
    pub fn new(
        client: Client,
        namespace: &str,
        lifetimes: Lifetimes,
        serve: watch::Sender<Option<Arc<Certificate>>>,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            configurations: Api::all(client),
            namespace: namespace.to_owned(),
            names: certificate::names(namespace),
            lifetimes,
            serve,
            secret: None,
            configuration: None,
            corrected: None,
            retry_after: RETRY.0,
            failing: BTreeSet::new(),
        }
    }

    /// Keeps it until `finish`.
    pub async fn run(mut self, finish: CancellationToken) {
        // Both are named, so that the right to read these two is enough.
        let only = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut secrets = watcher(self.secrets.clone(), only(NAME)).default_backoff().boxed();
        let mut configurations = watcher(self.configurations.clone(), only(CONFIGURATION)).default_backoff().boxed();
        let mut found = None;
        let mut look_at = Instant::now() + LOOK;
        loop {
            tokio::select! {
                () = finish.cancelled() => return,
                Some(event) = secrets.next() => {
                    self.note("Secret", &event);
                    match event {
                        Ok(watcher::Event::Init) => found = None,
                        Ok(watcher::Event::InitApply(secret)) => found = Some(secret),
                        Ok(watcher::Event::InitDone) => self.secret = Some(found.take()),
                        Ok(watcher::Event::Apply(secret)) => self.secret = Some(Some(secret)),
                        Ok(watcher::Event::Delete(_)) => self.secret = Some(None),
                        Err(_) => {}
                    }
                }
                Some(event) = configurations.next() => {
                    self.note("ValidatingWebhookConfiguration", &event);
                    match event {
                        Ok(watcher::Event::Init | watcher::Event::Delete(_)) => self.configuration = None,
                        Ok(watcher::Event::InitApply(one) | watcher::Event::Apply(one)) => {
                            self.configuration = Some(one);
                        }
                        Ok(watcher::Event::InitDone) if self.configuration.is_none() => {
                            let remedy = "apply the ValidatingWebhookConfiguration that comes with the installation";
                            tracing::warn!(name = CONFIGURATION, remedy, "nobody asks the webhook");
                        }
                        Ok(watcher::Event::InitDone) | Err(_) => {}
                    }
                }
                () = tokio::time::sleep_until(look_at) => {}
            }
            let mut writes = 0;
            look_at = loop {
                if writes > MAX_WRITES {
                    break self.failed("what was written does not stand");
                }
                let round = tokio::select! {
                    () = finish.cancelled() => return,
                    round = tokio::time::timeout(REQUEST_TIMEOUT, self.round()) => round,
                };
                match round {
                    Ok(Ok(Round::Settled(at))) => {
                        self.retry_after = RETRY.0;
                        break at;
                    }
                    Ok(Ok(Round::Again)) => writes += 1,
                    Ok(Err(error)) => break self.failed(&error.to_string()),
                    Err(_) => break self.failed("the request took too long"),
                }
            };
        }
    }

    /// Says once that a watch fails, and that it is back. Without the Secret there is no certificate, and nobody who
    /// calls gets as far as an answer.
    fn note<T>(&mut self, kind: &'static str, event: &watcher::Result<watcher::Event<T>>) {
        match event {
            // A list that begins has not succeeded yet.
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(_) if self.failing.remove(kind) => tracing::info!(kind, "watch is back"),
            Err(error) if !is_expiry(error) && self.failing.insert(kind) => {
                tracing::warn!(kind, %error, remedy = remedy(error), "watch of the webhook failed, trying again");
            }
            _ => {}
        }
    }

    fn failed(&mut self, error: &str) -> Instant {
        tracing::warn!(error, retry_after = ?self.retry_after, "certificate of the webhook not kept, trying again");
        let pause = self.retry_after.mul_f64(rand::rng().random_range(0.5..1.5));
        self.retry_after = (self.retry_after * 2).min(RETRY.1);
        Instant::now() + pause
    }

    /// Does the next thing that is due.
    async fn round(&mut self) -> Result<Round, KeepError> {
        let Some(secret) = &self.secret else { return Ok(Round::Settled(Instant::now() + LOOK)) };
        let now = Timestamp::now().as_second();
        let kept = secret.as_ref().map(kept).unwrap_or_default();
        let until = match certificate::due(now, &kept, &self.names, &self.lifetimes) {
            Due::Nothing { until } => until,
            due => {
                let next = certificate::renewed(now, due, &kept, &self.names, &self.lifetimes)?;
                self.keep(due, secret.clone(), &next).await?;
                return Ok(Round::Again);
            }
        };
        self.show(&kept);
        let look_at = self.correct(&kept.bundle).await?.unwrap_or_else(|| Instant::now() + LOOK);
        let wait = Duration::from_secs(u64::try_from(until.saturating_sub(now)).unwrap_or(0));
        Ok(Round::Settled(look_at.min(Instant::now() + wait)))
    }

    /// Writes the Secret as it should be, unless somebody else was quicker.
    async fn keep(&mut self, due: Due, secret: Option<Secret>, next: &Kept) -> Result<(), KeepError> {
        let is_new = secret.is_none();
        let mut secret = secret.unwrap_or_else(|| self.first_secret());
        secret.data = Some(next.data().into_iter().map(|(field, bytes)| (field, ByteString(bytes))).collect());
        let written = match is_new {
            true => self.secrets.create(&PostParams::default(), &secret).await,
            // Carries the version that was read.
            false => self.secrets.replace(NAME, &PostParams::default(), &secret).await,
        };
        match written {
            Ok(secret) => {
                tracing::info!(?due, "certificate of the webhook renewed");
                self.secret = Some(Some(secret));
                Ok(())
            }
            // Another replica was quicker, or somebody has deleted it: what stands now counts.
            Err(::kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.secret = Some(self.secrets.get_opt(NAME).await?);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn first_secret(&self) -> Secret {
        let labels = [("app.kubernetes.io/name", "ferrogate"), ("app.kubernetes.io/component", "controller")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Secret {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(self.namespace.clone()),
                labels: Some(labels.into()),
                ..Default::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            ..Default::default()
        }
    }

    fn show(&self, kept: &Kept) {
        let not_after = certificate::not_after(kept).unwrap_or(0);
        let shown = Certificate { chain: kept.leaf.clone(), key: kept.leaf_key.clone(), not_after };
        self.serve.send_if_modified(|serve| {
            let is_new = serve.as_deref() != Some(&shown);
            if is_new {
                *serve = Some(Arc::new(shown));
            }
            is_new
        });
    }

    /// Sets the bundle wherever it is another one. Returns when to look again, where that is too early.
    async fn correct(&mut self, bundle: &str) -> Result<Option<Instant>, KeepError> {
        let Some(configuration) = &self.configuration else { return Ok(None) };
        let webhooks = configuration.webhooks.as_deref().unwrap_or_default();
        let is_set = |bytes: &ByteString| bytes.0 == bundle.as_bytes();
        if webhooks.iter().all(|webhook| webhook.client_config.ca_bundle.as_ref().is_some_and(is_set)) {
            return Ok(None);
        }
        let uid = configuration.metadata.uid.clone();
        if let Some((at, on, set)) = &self.corrected
            && (on, set.as_str()) == (&uid, bundle)
            && at.elapsed() < CORRECTION
        {
            return Ok(Some(*at + CORRECTION));
        }
        self.corrected = Some((Instant::now(), uid.clone(), bundle.to_owned()));
        let ours = webhooks.iter().map(|webhook| {
            json!({ "name": webhook.name, "clientConfig": { "caBundle": ByteString(bundle.as_bytes().to_vec()) } })
        });
        // With the identity of the object that was seen: one that is gone must not be made anew from a bundle alone.
        let patch = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": { "name": CONFIGURATION, "uid": uid },
            "webhooks": ours.collect::<Vec<_>>(),
        });
        let parameters = PatchParams::apply(MANAGER).force();
        match self.configurations.patch(CONFIGURATION, &parameters, &Patch::Apply(&patch)).await {
            Ok(configuration) => {
                tracing::info!(name = CONFIGURATION, "the API server is told whom to trust");
                self.configuration = Some(configuration);
                Ok(None)
            }
            // Gone meanwhile, or made anew; its watch tells.
            Err(::kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Why a round did not come to its end.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Make(#[from] certificate::MakeError),
    #[error(transparent)]
    Api(#[from] ::kube::Error),
}

fn kept(secret: &Secret) -> Kept {
    let data = secret.data.iter().flatten().map(|(field, bytes)| (field.clone(), bytes.0.clone()));
    Kept::of(&data.collect())
}
