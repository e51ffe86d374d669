//! Who may read metrics from elsewhere, as the API server says: whoever shows a token is reviewed (TokenReview), and then
//! asked after whether they may `get` the path of the metrics (SubjectAccessReview).
//!
//! Answers are kept for a while, so that a scraper costs next to nothing; and few questions are under way at once, so
//! that whoever tries one token after another keeps no API server busy.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::kube::{Api, Client, api::PostParams};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, time::Instant};

/// The path that they must be allowed to `get`.
pub const PATH: &str = "/metrics";

/// How long an answer holds. A right that is taken away is gone after that.
const KEPT: Duration = Duration::from_secs(60);
/// How many answers are kept; where there are more, the oldest goes.
const MAX_KEPT: usize = 64;
/// How many questions are under way at once.
const AT_ONCE: usize = 4;
/// How long an answer may take, waiting in line included; scrapers commonly wait for ten seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why somebody may not read them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// They show no token.
    #[error("a bearer token is wanted")]
    NoToken,
    /// The API server knows nobody by it.
    #[error("the API server knows nobody by this token")]
    UnknownToken,
    /// They may not.
    #[error("{user} may not get {PATH}; a ClusterRole with nonResourceURLs [{PATH}] and verbs [get] says who may")]
    MayNotGet {
        /// Who.
        user: String,
    },
    /// The API server did not say.
    #[error("the API server could not be asked: {detail}")]
    NotAsked {
        /// Why.
        detail: String,
    },
}

/// Asks the API server, and remembers. Clones share what they remember.
#[derive(Clone, Debug)]
pub struct Scrapers(Arc<Shared>);

struct Shared {
    client: Client,
    questions: Semaphore,
    // Connections are served on several tasks; each holds it for an instant.
    known: Mutex<Known>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Scrapers {
    /// Asks by this client, whose user must be allowed to create both reviews.
    pub fn new(client: Client) -> Self {
        Self(Arc::new(Shared { client, questions: Semaphore::new(AT_ONCE), known: Mutex::default() }))
    }

    /// Whether whoever shows this token may read.
    ///
    /// # Errors
    /// Why not.
    pub async fn admit(&self, token: Option<&str>) -> Result<(), Denied> {
        let token = token.filter(|token| !token.is_empty()).ok_or(Denied::NoToken)?;
        let key: Key = Sha256::digest(token).into();
        if let Some(answer) = self.known(|known| known.find(Instant::now(), &key)) {
            return answer;
        }
        let asked = tokio::time::timeout(PATIENCE, self.ask(token)).await;
        let answer = asked.unwrap_or_else(|_| Err(Denied::NotAsked { detail: "it took too long".to_owned() }));
        if !matches!(answer, Err(Denied::NotAsked { .. })) {
            self.known(|known| known.note(Instant::now(), key, answer.clone()));
        }
        answer
    }

    fn known<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.0.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ask(&self, token: &str) -> Result<(), Denied> {
        let failed = |error: ::kube::Error| Denied::NotAsked { detail: error.to_string() };
        // It is never closed.
        let _turn = self.0.questions.acquire().await;
        let spec = TokenReviewSpec { token: token.to_owned(), ..Default::default() };
        let review = TokenReview { spec, ..Default::default() };
        let review = Api::all(self.0.client.clone()).create(&PostParams::default(), &review).await.map_err(failed)?;
        let status = review.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).ok_or(Denied::UnknownToken)?;
        let UserInfo { username, uid, groups, extra } = user;
        let path = NonResourceAttributes { path: Some(PATH.to_owned()), verb: Some("get".to_owned()) };
        let spec = SubjectAccessReviewSpec {
            user: username.clone(),
            uid,
            groups,
            extra,
            non_resource_attributes: Some(path),
            ..Default::default()
        };
        let review = SubjectAccessReview { spec, ..Default::default() };
        let review = Api::all(self.0.client.clone()).create(&PostParams::default(), &review).await.map_err(failed)?;
        let may = review.status.is_some_and(|status| status.allowed);
        if may { Ok(()) } else { Err(Denied::MayNotGet { user: username.unwrap_or_default() }) }
    }
}

/// What a token is known by; the token itself is not kept.
type Key = [u8; 32];

/// Answers, and when each was given.
#[derive(Debug, Default)]
struct Known(BTreeMap<Key, (Instant, Result<(), Denied>)>);

impl Known {
    fn find(&self, now: Instant, key: &Key) -> Option<Result<(), Denied>> {
        let (at, answer) = self.0.get(key)?;
        (now.saturating_duration_since(*at) < KEPT).then(|| answer.clone())
    }

    fn note(&mut self, now: Instant, key: Key, answer: Result<(), Denied>) {
        self.0.insert(key, (now, answer));
        if self.0.len() > MAX_KEPT
            && let Some(oldest) = self.0.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| *key)
        {
            self.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use http_body_util::{BodyExt, Full};
    use hyper::{Request, Response, body::Bytes};
    use serde_json::{Value, json};

    use super::*;

    /// An API server that knows `reader`, who may, and `other`, who may not; and how often it was asked.
    fn server() -> (Scrapers, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&count);
        let service = tower::service_fn(move |request: Request<::kube::client::Body>| {
            asked.fetch_add(1, Ordering::Relaxed);
            async {
                let (head, body) = request.into_parts();
                let mut body: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
                body["status"] = match head.uri.path() {
                    "/apis/authentication.k8s.io/v1/tokenreviews" => match body["spec"]["token"].as_str().unwrap() {
                        "stuck" => std::future::pending().await,
                        name @ ("reader" | "other") => json!({ "authenticated": true, "user": { "username": name } }),
                        _ => json!({ "authenticated": false }),
                    },
                    "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
                        assert_eq!(body["spec"]["nonResourceAttributes"], json!({ "path": "/metrics", "verb": "get" }));
                        json!({ "allowed": body["spec"]["user"] == "reader" })
                    }
                    path => panic!("{path}"),
                };
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body.to_string()))))
            }
        });
        (Scrapers::new(Client::new(service, "default")), count)
    }

    #[tokio::test]
    async fn m_149_the_api_server_says_who_may_read_metrics() {
        let (scrapers, _) = server();

        assert_eq!(scrapers.admit(Some("reader")).await, Ok(()));
        assert_eq!(scrapers.admit(Some("other")).await, Err(Denied::MayNotGet { user: "other".to_owned() }));
        assert_eq!(scrapers.admit(Some("stranger")).await, Err(Denied::UnknownToken));
        assert_eq!(scrapers.admit(Some("")).await, Err(Denied::NoToken));
        assert_eq!(scrapers.admit(None).await, Err(Denied::NoToken));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_for_a_minute_and_no_more_of_them_than_there_is_room_for() {
        let (scrapers, asked) = server();
        scrapers.admit(Some("reader")).await.unwrap();
        let once = asked.load(Ordering::Relaxed);

        scrapers.admit(Some("reader")).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), once);
        tokio::time::advance(KEPT).await;
        scrapers.admit(Some("reader")).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2 * once);

        for number in 0..3 * MAX_KEPT {
            tokio::time::advance(Duration::from_millis(1)).await;
            scrapers.admit(Some(&format!("stranger-{number}"))).await.unwrap_err();
        }
        assert_eq!(scrapers.known(|known| known.0.len()), MAX_KEPT);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_let_in_while_the_api_server_does_not_answer_and_nothing_of_it_is_kept() {
        let (scrapers, _) = server();

        let answer = scrapers.admit(Some("stuck")).await;

        assert_eq!(answer, Err(Denied::NotAsked { detail: "it took too long".to_owned() }));
        assert_eq!(scrapers.known(|known| known.0.len()), 0);
    }
}
