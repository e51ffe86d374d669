//! The Leases by which speakers know each other where they do not gossip.

use ferrogate_core::write::SpeakerLease;

use super::*;

const NODES: &str = "/api/v1/nodes";

async fn speaker(fake: &Fake, node: &str) -> Cluster {
    open(fake, Role::Speaker { node: node.into(), leases: true }, node).await
}

fn renewal(node: &str, says: &str) -> Write {
    let lease = SpeakerLease { duration: Duration::from_secs(10), says: says.as_bytes().into(), ..Default::default() };
    Write::Lease { node: node.into(), lease }
}

fn says(snapshot: &Snapshot, node: &str) -> Option<String> {
    snapshot.leases.get(node).map(|lease| String::from_utf8(lease.says.to_vec()).unwrap())
}

fn is_renewal(seen: &Seen) -> bool {
    seen.path.ends_with("/leases/ferrogate-speaker-a")
}

#[tokio::test]
async fn what_a_speaker_says_in_its_lease_every_other_sees_and_it_itself() {
    let fake = Fake::start().await;
    fake.put(NODES, json!({ "metadata": { "name": "a" } }));
    fake.put(LEASES, lease_of("somebody"));
    let (mut a, mut b) = (speaker(&fake, "a").await, speaker(&fake, "b").await);
    assert!(b.snapshots.borrow().leases.is_empty(), "that of the controllers is none");

    for text in ["one", "two"] {
        a.writes.send(renewal("a", text)).await.unwrap();
        for cluster in [&mut a, &mut b] {
            until(cluster, |snapshot| says(snapshot, "a").as_deref() == Some(text)).await;
        }
    }

    let lease = fake.get(LEASES, NAMESPACE, "ferrogate-speaker-a").unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "a");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 10);
    let uid = fake.get(NODES, "", "a").unwrap()["metadata"]["uid"].clone();
    let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": "a", "uid": uid }]);
    assert_eq!(lease["metadata"]["ownerReferences"], owner, "it goes with its node");
    assert_eq!(lease["metadata"]["labels"]["ferrogate.io/node"], "a");
    let reader = open(&fake, Role::Reader(None), "reader").await;
    assert_eq!(says(&reader.snapshots.borrow(), "a").as_deref(), Some("two"));

    fake.delete(LEASES, NAMESPACE, "ferrogate-speaker-a");
    until(&mut b, |snapshot| snapshot.leases.is_empty()).await;
}

#[tokio::test]
async fn a_renewal_does_not_wait_for_an_api_server_that_has_failed_other_writes() {
    let fake = Fake::start().await;
    let a = speaker(&fake, "a").await;
    fake.set_mood(Mood::ReadOnly);
    let status = L2Status {
        pool: "p".into(),
        addresses: Vec::new(),
        interfaces: BTreeSet::new(),
        transitions: 0,
        conflicts: Vec::new(),
    };
    let write = Write::L2Status { service: key("web"), node: "a".into(), status: Some(status) };
    a.writes.send(write).await.unwrap();
    fake.seen(|seen| seen.path.contains("servicel2statuses")).await;

    // One after the other, while the other write waits longer and longer.
    for number in 1..=20 {
        a.writes.send(renewal("a", &number.to_string())).await.unwrap();
        let mut last = 0;
        while last < number {
            fake.seen(is_renewal).await;
            last = fake.count(is_renewal);
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_a_speaker_says_last_is_in_its_lease_when_it_ends() {
    let fake = Fake::start().await;
    let mut a = speaker(&fake, "a").await;

    for number in 0..50 {
        a.writes.send(renewal("a", &number.to_string())).await.unwrap();
    }
    a.writes.send(renewal("a", "leaving")).await.unwrap();
    a.closed().await;

    let reader = open(&fake, Role::Reader(None), "reader").await;
    assert_eq!(says(&reader.snapshots.borrow(), "a").as_deref(), Some("leaving"));
}

#[tokio::test]
async fn what_a_speaker_says_last_is_tried_until_it_is_written() {
    let fake = Fake::start().await;
    let mut a = speaker(&fake, "a").await;
    fake.set_mood(Mood::ReadOnly);
    a.writes.send(renewal("a", "leaving")).await.unwrap();

    let recovery = async {
        while fake.count(is_renewal) < 2 {
            fake.seen(is_renewal).await;
            tokio::task::yield_now().await;
        }
        fake.set_mood(Mood::Well);
    };
    tokio::join!(a.closed(), recovery);

    let reader = open(&fake, Role::Reader(None), "reader").await;
    assert_eq!(says(&reader.snapshots.borrow(), "a").as_deref(), Some("leaving"));
}

#[tokio::test]
async fn leases_that_went_while_nobody_looked_are_missed_when_all_are_listed_anew() {
    let fake = Fake::start().await;
    let (a, mut b) = (speaker(&fake, "a").await, speaker(&fake, "b").await);
    a.writes.send(renewal("a", "one")).await.unwrap();
    b.writes.send(renewal("b", "one")).await.unwrap();
    until(&mut b, |snapshot| snapshot.leases.len() == 2).await;

    fake.set_mood(Mood::Down);
    fake.disconnect();
    fake.delete(LEASES, NAMESPACE, "ferrogate-speaker-a");
    let mut lease = fake.get(LEASES, NAMESPACE, "ferrogate-speaker-b").unwrap();
    lease["metadata"]["annotations"]["ferrogate.io/says"] = json!("dHdv");
    fake.put(LEASES, lease);
    fake.forget_history();
    fake.set_mood(Mood::Well);

    until(&mut b, |snapshot| says(snapshot, "a").is_none() && says(snapshot, "b").as_deref() == Some("two")).await;
}
