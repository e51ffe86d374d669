//! The key that speakers seal their gossip with: made once, in a Secret that every speaker has mounted.
//!
//! It is only ever made where there is none, and never read: a controller needs no right but to create Secrets, and a
//! restart of everything finds the key as it was. Replacing it is the business of a person; see `SECURITY.md`.

use std::time::Duration;

use ::kube::{Api, Client, api::PostParams};
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use tokio_util::sync::CancellationToken;

/// Name of the Secret.
pub const NAME: &str = "ferrogate-gossip";
/// The field of the Secret whose key is sealed with.
pub const FIELD: &str = "current";

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after a failure it is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));

/// Makes the Secret, unless there is one. Tries until it is there, or until `finish`.
pub(crate) async fn make(client: Client, namespace: String, finish: CancellationToken) {
    let secrets: Api<Secret> = Api::namespaced(client, &namespace);
    let secret = secret(&namespace, rand::random());
    let mut retry_after = RETRY.0;
    loop {
        let parameters = PostParams::default();
        let made = tokio::time::timeout(REQUEST_TIMEOUT, secrets.create(&parameters, &secret));
        let made = tokio::select! {
            () = finish.cancelled() => return,
            made = made => made,
        };
        let error = match made {
            Ok(Ok(_)) => {
                tracing::info!(name = NAME, "made the key of the speakers' gossip");
                return;
            }
            // It is there already: by an earlier life, another replica or a person.
            Ok(Err(::kube::Error::Api(status))) if status.code == 409 => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the request took too long".to_owned(),
        };
        tracing::warn!(error, ?retry_after, "the key of the speakers' gossip not made, trying again");
        tokio::select! {
            () = finish.cancelled() => return,
            () = tokio::time::sleep(retry_after) => {}
        }
        retry_after = (retry_after * 2).min(RETRY.1);
    }
}

fn secret(namespace: &str, key: [u8; 32]) -> Secret {
    let labels = [("app.kubernetes.io/name", "ferrogate"), ("app.kubernetes.io/component", "speaker")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels.into()),
            ..Default::default()
        },
        data: Some([(FIELD.to_owned(), ByteString(key.to_vec()))].into()),
        ..Default::default()
    }
}
