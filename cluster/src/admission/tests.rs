//! What is answered to which question, and that no body is ever too much.

use ferrogate_core::{model::service::ClassPolicy, snapshot::Origin};
use proptest::prelude::*;

use super::*;
use crate::translate::{Entry, Rules, Source, Translator, read};

const OURS: &str = "ferrogate-system";

fn object(kind: &str, name: &str, namespace: &str, spec: Value) -> Value {
    json!({
        "apiVersion": OUR_API,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": "2026-01-02T03:04:05Z",
        },
        "spec": spec,
    })
}

fn pool(name: &str, addresses: &[&str]) -> Value {
    object("IPAddressPool", name, OURS, json!({ "addresses": addresses }))
}

fn advertisement(name: &str, pools: &[&str]) -> Value {
    object("L2Advertisement", name, OURS, json!({ "ipAddressPools": pools }))
}

fn asked(operation: &str, object: &Value, old: &Value) -> Value {
    let of = if object.is_null() { old } else { object };
    let mut request = json!({
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": { "group": "ferrogate.io", "version": "v1beta1", "kind": of["kind"] },
        "resource": { "group": "ferrogate.io", "version": "v1beta1", "resource": "any" },
        "name": of["metadata"]["name"],
        "namespace": of["metadata"]["namespace"],
        "operation": operation,
        "dryRun": true,
    });
    request["object"] = object.clone();
    request["oldObject"] = old.clone();
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request })
}

/// A translator that knows these objects.
fn standing(objects: &[Value]) -> Translator {
    let namespace = OURS.to_owned();
    let rules =
        Rules { class: ClassPolicy::default(), namespace, metallb: None, secrets: false, source: Source::Kubernetes };
    let mut translator = Translator::new(rules, None);
    for object in objects {
        let Some(Entry::Object(reading)) = read(object.clone(), translator.rules()).pop() else {
            panic!("{object} is no object of ours")
        };
        let source = reading.id.kind.name();
        translator.apply(source, Origin::Cluster(reading.id.object()), reading);
    }
    translator.snapshot();
    translator
}

fn verdict(translator: &Translator, body: &Value) -> Verdict {
    let question = Question::read(body.to_string().as_bytes(), OURS).unwrap();
    let review = question.proposal().map(|proposal| translator.review(proposal.clone())).unwrap_or_default();
    question.verdict(review)
}

fn create(translator: &Translator, object: &Value) -> Verdict {
    verdict(translator, &asked("CREATE", object, &Value::Null))
}

fn refusal(verdict: &Verdict) -> String {
    verdict.refusal.as_ref().map(Refusal::to_string).unwrap_or_default()
}

#[test]
fn m_008_a_pool_that_overlaps_another_is_refused_and_both_ranges_are_named() {
    let translator = standing(&[pool("first", &["192.0.2.0/24"])]);

    let second = create(&translator, &pool("second", &["192.0.2.128/25"]));
    let beside = create(&translator, &pool("beside", &["198.51.100.0/24"]));

    assert_eq!(
        refusal(&second),
        "IPAddressPool ferrogate-system/second: spec.addresses[0]: 192.0.2.128-192.0.2.255 overlaps with \
         192.0.2.0-192.0.2.255 of pool first; give each address to one pool only"
    );
    assert_eq!(beside.refusal, None);
}

#[test]
fn what_stands_is_not_pushed_out_by_what_comes() {
    // Of two that are made within one second the first by name would stay, were neither there before.
    let translator = standing(&[pool("second", &["192.0.2.0/24"])]);

    let verdict = create(&translator, &pool("first", &["192.0.2.0/24"]));

    assert!(refusal(&verdict).contains("IPAddressPool ferrogate-system/first"), "{}", refusal(&verdict));
    assert!(refusal(&verdict).contains("of pool second"), "{}", refusal(&verdict));
}

#[test]
fn growing_an_older_pool_into_a_younger_one_is_refused() {
    let (old, young) = (pool("a", &["192.0.2.0/25"]), pool("b", &["192.0.2.128/25"]));
    let translator = standing(&[old.clone(), young]);

    let verdict = verdict(&translator, &asked("UPDATE", &pool("a", &["192.0.2.0/24"]), &old));

    assert!(refusal(&verdict).contains("IPAddressPool ferrogate-system/a"), "{}", refusal(&verdict));
    assert!(refusal(&verdict).contains("of pool b"), "{}", refusal(&verdict));
}

#[test]
fn a_reference_to_nothing_is_admitted_with_a_warning() {
    let translator = standing(&[pool("first", &["192.0.2.0/24"])]);

    let verdict = create(&translator, &advertisement("all", &["first", "second"]));

    assert_eq!(verdict.refusal, None);
    let expected = "L2Advertisement ferrogate-system/all: spec.ipAddressPools: IPAddressPool \"second\" does not exist; \
                    create it or correct the name";
    assert_eq!(verdict.warnings, [expected]);
    assert_eq!(verdict.body()["response"]["warnings"], json!([expected]));
    assert_eq!(verdict.body()["response"]["allowed"], json!(true));
}

#[test]
fn a_value_no_schema_could_judge_is_refused_with_its_field_and_remedy() {
    let verdict = create(&standing(&[]), &pool("p", &["192.0.2.0/24", "192.0.2.300/24"]));

    let text = refusal(&verdict);
    assert!(text.contains("spec.addresses[1]") && text.contains("192.0.2.300/24"), "{text}");
    let response = &verdict.body()["response"];
    assert_eq!(response["status"]["code"], json!(422));
    assert_eq!(response["status"]["message"], json!(text));
    assert_eq!(response["uid"], json!("705ab4f5-6393-11e8-b7cc-42010a800002"));
}

#[test]
fn m_011_an_object_in_a_namespace_that_nobody_reads_is_refused_when_it_is_made() {
    let elsewhere = object("IPAddressPool", "p", "default", json!({ "addresses": ["192.0.2.0/24"] }));
    let translator = standing(&[]);

    let made = create(&translator, &elsewhere);
    let edited = verdict(&translator, &asked("UPDATE", &elsewhere, &elsewhere));

    let text = refusal(&made);
    assert!(text.contains("metadata.namespace") && text.contains(OURS), "{text}");
    assert_eq!(edited.refusal, None);
}

#[test]
fn an_object_that_got_in_bad_can_still_be_labelled_and_deleted_but_not_left_bad_by_an_edit() {
    let (first, bad) = (pool("first", &["192.0.2.0/24"]), pool("late", &["192.0.2.0/25"]));
    let translator = standing(&[first, bad.clone()]);
    let mut annotated = bad.clone();
    annotated["metadata"]["annotations"] = json!({ "note": "to be corrected" });
    let mut going = bad.clone();
    going["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");

    let note = verdict(&translator, &asked("UPDATE", &annotated, &bad));
    let farewell = verdict(&translator, &asked("UPDATE", &going, &bad));
    let worse = verdict(&translator, &asked("UPDATE", &pool("late", &["192.0.2.64/26"]), &bad));
    let better = verdict(&translator, &asked("UPDATE", &pool("late", &["198.51.100.0/25"]), &bad));

    assert_eq!(note.refusal, None);
    assert!(note.warnings[0].starts_with("left out: "), "{:?}", note.warnings);
    assert_eq!(farewell.refusal, None);
    assert!(refusal(&worse).contains("overlaps"), "{}", refusal(&worse));
    assert_eq!(better.refusal, None);
}

#[test]
fn taking_a_pool_away_is_always_allowed() {
    let first = pool("first", &["192.0.2.0/24"]);
    let translator = standing(&[first.clone(), advertisement("all", &["first"])]);

    let verdict = verdict(&translator, &asked("DELETE", &Value::Null, &first));

    assert_eq!(verdict.refusal, None);
    assert!(verdict.warnings[0].contains("\"first\" does not exist"), "{:?}", verdict.warnings);
}

#[test]
fn m_027_a_bfd_profile_that_a_peer_names_cannot_be_deleted_and_both_are_named() {
    let spec = json!({ "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1", "bfdProfile": "fast" });
    let (profile, peer) = (object("BFDProfile", "fast", OURS, json!({})), object("BGPPeer", "tor", OURS, spec));
    let in_use = standing(&[profile.clone(), peer.clone()]);
    let unused = standing(std::slice::from_ref(&profile));

    let refused = verdict(&in_use, &asked("DELETE", &Value::Null, &profile));
    let deleted = verdict(&unused, &asked("DELETE", &Value::Null, &profile));

    let text = refusal(&refused);
    assert!(text.contains("BGPPeer ferrogate-system/tor") && text.contains("BFDProfile \"fast\""), "{text}");
    assert_eq!(deleted.refusal, None);
}

#[test]
fn m_028_and_m_029_what_is_named_and_not_there_yet_is_admitted_with_a_warning() {
    let spec = json!({ "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1", "bfdProfile": "fast" });
    let peer = create(&standing(&[]), &object("BGPPeer", "tor", OURS, spec));
    let advertisement =
        create(&standing(&[]), &object("BGPAdvertisement", "all", OURS, json!({ "communities": ["red"] })));

    assert_eq!((peer.refusal, advertisement.refusal), (None, None));
    assert!(peer.warnings.iter().any(|text| text.contains("BFDProfile \"fast\" does not exist")));
    assert!(advertisement.warnings.iter().any(|text| text.contains("Community \"red\" does not exist")));
}

#[test]
fn what_is_not_ours_or_only_a_status_is_not_judged() {
    let translator = standing(&[]);
    let mut foreign = asked("CREATE", &pool("p", &["nonsense"]), &Value::Null);
    foreign["request"]["kind"]["group"] = json!("example.com");
    let mut status = asked("UPDATE", &pool("p", &["nonsense"]), &Value::Null);
    status["request"]["subResource"] = json!("status");

    assert_eq!(verdict(&translator, &foreign).refusal, None);
    assert_eq!(verdict(&translator, &status).refusal, None);
}

#[test]
fn asking_changes_nothing() {
    let mut translator = standing(&[pool("first", &["192.0.2.0/24"])]);
    let before = translator.snapshot();

    create(&translator, &pool("second", &["192.0.2.0/25"]));

    assert!(std::sync::Arc::ptr_eq(&before, &translator.snapshot()));
}

#[test]
fn a_body_that_is_no_review_is_told_apart() {
    let read = |body: &[u8]| Question::read(body, OURS).unwrap_err();
    let whole = asked("CREATE", &pool("p", &["192.0.2.0/24"]), &Value::Null);
    let without = |pointer: &str, field: &str| {
        let mut body = whole.clone();
        body.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(field);
        body.to_string()
    };

    assert!(matches!(read(b""), NotAReview::Syntax(_)));
    assert!(matches!(read(b"\xff\xfe"), NotAReview::Syntax(_)));
    assert!(matches!(read(&[b'['; 100_000]), NotAReview::Syntax(_)));
    for body in ["null", "[]", "7", "{}"] {
        assert!(matches!(read(body.as_bytes()), NotAReview::Shape(_)), "{body}");
    }
    for (pointer, field) in
        [("", "request"), ("", "kind"), ("/request", "uid"), ("/request", "operation"), ("/request", "object")]
    {
        assert!(matches!(read(without(pointer, field).as_bytes()), NotAReview::Shape(_)), "{field}");
    }
}

#[test]
fn an_answer_never_grows_beyond_what_an_api_server_takes() {
    let names: Vec<String> = (0..500).map(|number| format!("pool-{number:0200}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();

    let verdict = create(&standing(&[]), &advertisement("many", &names));

    let body = verdict.body();
    let warnings = body["response"]["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), MAX_WARNINGS);
    assert!(warnings.iter().all(|warning| warning.as_str().unwrap().len() <= MAX_WARNING));
}

proptest! {
    #[test]
    fn any_object_is_answered(object in any_value()) {
        let translator = standing(&[pool("first", &["192.0.2.0/24"])]);
        let mut body = asked("UPDATE", &pool("p", &["192.0.2.0/24"]), &object);
        body["request"]["object"]["spec"] = object.clone();
        body["request"]["object"]["metadata"]["labels"] = object;
        let answer = verdict(&translator, &body);

        prop_assert_eq!(&answer.body()["response"]["uid"], &body["request"]["uid"]);
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Question::read(&bytes, OURS);
    }
}

/// Values such as somebody who means harm, or mistypes, may send.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        Just(json!("192.0.2.0/24")),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let keys = prop_oneof![
            Just("addresses".to_owned()),
            Just("serviceAllocation".to_owned()),
            Just("namespaces".to_owned()),
            Just("serviceSelectors".to_owned()),
            "[a-z]{1,6}",
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec((keys, inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}
