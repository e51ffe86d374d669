//! The Leases of speakers at an API server, where they know each other by these: writes the one of this node, and reads
//! all.
//!
//! A renewal that fails is not tried again, for the next one says more and comes soon; but the last one is, which says that
//! the speaker is stopping. None waits for other writes or for an API server that has failed those, since whoever is late with
//! it counts as lost. What the Leases mean is decided in
//! `ferrogate_core::speaker`.

use std::time::Duration;

use ::kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
};
use ferrogate_core::{
    model::{NodeName, entry::COMPONENT_LABEL},
    write::SpeakerLease,
};
use k8s_openapi::{
    ByteString,
    api::coordination::v1::LeaseSpec,
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    kube::{LiveObjects, resource},
    write::{MAX_LABEL, NODE_LABEL, apply::SPEAKER, owner, report_name},
};

/// What a Lease is, for the API server.
pub const API: &str = "coordination.k8s.io/v1";
/// The label by which Leases of speakers are found, with its value.
pub const LABEL: (&str, &str) = (COMPONENT_LABEL, "speaker");
/// The annotation that holds what a speaker says.
const SAYS: &str = "ferrogate.io/says";
/// The longest name of an object.
const MAX_NAME: usize = 253;
/// A renewal may take this part of the time for which it counts: as long as it is until the next.
const REQUESTS: u32 = 5;
/// The longest that one takes, however long it counts: the next may say that the speaker is stopping.
const MAX_REQUEST: Duration = Duration::from_secs(2);
/// How long the last one is tried.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long after the last attempt it is tried again.
const FAREWELL_RETRY: Duration = Duration::from_millis(250);

/// What a speaker wants its Lease to say.
pub type Renewal = (NodeName, SpeakerLease);

/// The name of the Lease of a node's speaker. It is none that a controller has.
pub fn name(node: &NodeName) -> String {
    let name = format!("ferrogate-speaker-{node}");
    if name.len() <= MAX_NAME { name } else { report_name("ferrogate-speaker", node.as_str()) }
}

/// Keeps the Lease of this node as it was asked for last, until nobody can ask any more.
pub async fn keep(
    client: Client,
    namespace: String,
    live: watch::Receiver<LiveObjects>,
    mut renewals: watch::Receiver<Option<Renewal>>,
) {
    let api: Api<DynamicObject> = Api::namespaced_with(client, &namespace, &resource(API, "Lease"));
    let mut is_failing = false;
    while renewals.changed().await.is_ok() {
        let Some(renewal) = renewals.borrow_and_update().clone() else { continue };
        let renewed = renew(&api, &namespace, &live, &renewal).await;
        match &renewed {
            Err(error) if !is_failing => {
                tracing::warn!(error, "lease of this speaker not renewed; others may count this node as lost");
            }
            Ok(()) if is_failing => tracing::info!("lease of this speaker is renewed again"),
            _ => {}
        }
        is_failing = renewed.is_err();
    }
    let Some(last) = renewals.borrow().clone().filter(|_| is_failing) else { return };
    let farewell = async {
        while renew(&api, &namespace, &live, &last).await.is_err() {
            sleep(FAREWELL_RETRY).await;
        }
    };
    if timeout(FAREWELL, farewell).await.is_err() {
        tracing::warn!("others were not told that this speaker is stopping, and count this node as lost");
    }
}

async fn renew(
    api: &Api<DynamicObject>,
    namespace: &str,
    live: &watch::Receiver<LiveObjects>,
    (node, lease): &Renewal,
) -> Result<(), String> {
    let body = body(namespace, node, lease, owner(live, node), Timestamp::now());
    let (name, parameters, patch) = (name(node), PatchParams::apply(SPEAKER).force(), Patch::Apply(&body));
    let request = api.patch(&name, &parameters, &patch);
    match timeout((lease.duration / REQUESTS).min(MAX_REQUEST), request).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the request took too long".to_owned()),
    }
}

fn body(namespace: &str, node: &NodeName, lease: &SpeakerLease, owner: Value, now: Timestamp) -> Value {
    let mut labels = json!({ "app.kubernetes.io/name": "ferrogate", LABEL.0: LABEL.1 });
    if node.as_str().len() <= MAX_LABEL {
        labels[NODE_LABEL] = json!(node.as_str());
    }
    json!({
        "apiVersion": API,
        "kind": "Lease",
        "metadata": {
            "name": name(node),
            "namespace": namespace,
            "labels": labels,
            "ownerReferences": owner,
            "annotations": { SAYS: ByteString(lease.says.to_vec()) },
        },
        "spec": {
            "holderIdentity": node.as_str(),
            "leaseDurationSeconds": lease.duration.as_secs(),
            "renewTime": MicroTime(now),
        },
    })
}

/// What an object says, if it is the Lease of a speaker.
pub fn read(metadata: &ObjectMeta, spec: &Value) -> Option<Renewal> {
    let spec: LeaseSpec = serde_json::from_value(spec.clone()).ok()?;
    let node = NodeName::from(spec.holder_identity?);
    let is_its_own = metadata.name.as_deref() == Some(&name(&node));
    let says = metadata.annotations.as_ref()?.get(SAYS)?;
    let ByteString(says) = serde_json::from_value(json!(says)).ok()?;
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok())?;
    let renewed_at = spec.renew_time.map(|MicroTime(time)| time.to_string()).unwrap_or_default();
    let lease = SpeakerLease { duration: Duration::from_secs(seconds), says: says.into(), renewed_at };
    is_its_own.then_some((node, lease))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> SpeakerLease {
        SpeakerLease { duration: Duration::from_secs(10), says: [0, 255, 7].into(), renewed_at: String::new() }
    }

    fn read_back(object: &Value) -> Option<Renewal> {
        read(&serde_json::from_value(object["metadata"].clone()).unwrap(), &object["spec"])
    }

    #[test]
    fn a_lease_reads_back_as_it_was_written() {
        let node = NodeName::from("node-a");
        let written_at = |time: &str| body("ferrogate-system", &node, &lease(), json!([]), time.parse().unwrap());
        let object = written_at("2026-01-02T03:04:05.104850Z");

        let (holder, read) = read_back(&object).unwrap();

        assert_eq!((&holder, read.duration, &*read.says), (&node, lease().duration, &*lease().says));
        // With all six digits: the API server takes no fewer.
        assert_eq!(object["spec"]["renewTime"], "2026-01-02T03:04:05.104850Z");
        let (_, next) = read_back(&written_at("2026-01-02T03:04:05.104851Z")).unwrap();
        assert_ne!(read.renewed_at, next.renewed_at);
        assert_eq!(object["metadata"]["labels"][LABEL.0], LABEL.1);
        assert_eq!(object["metadata"]["labels"][NODE_LABEL], "node-a");
    }

    #[test]
    fn whatever_is_no_lease_of_a_speaker_says_nothing() {
        let good = body("ferrogate-system", &"node-a".into(), &lease(), json!([]), Timestamp::UNIX_EPOCH);
        let changes: [(&str, Value); 6] = [
            ("/metadata/name", json!("ferrogate-speaker-node-b")),
            ("/metadata/annotations", json!({})),
            ("/metadata/annotations/ferrogate.io~1says", json!("no base64!")),
            ("/spec/holderIdentity", json!(null)),
            ("/spec/leaseDurationSeconds", json!(-1)),
            ("/spec", json!("none")),
        ];

        for (field, value) in changes {
            let mut object = good.clone();
            *object.pointer_mut(field).unwrap() = value;
            assert_eq!(read_back(&object), None, "{field}");
        }
    }

    #[test]
    fn the_name_of_a_lease_is_one_whatever_the_length_of_the_name_of_its_node() {
        for length in [1, 63, 235, 236, 253] {
            let node = NodeName::from("n".repeat(length).as_str());

            assert!(name(&node).len() <= MAX_NAME, "{length}");
        }
    }
}
