//! Our definitions at a real API server: it takes them, fills in defaults, shows the columns, and refuses what they say
//! is wrong. `crds/tests/admission.rs` asks an imitation of it for more, and sooner.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::LazyLock;

use ferrogate_integration::kube::{ControlPlane, Options};
use kube::{
    Api, Error,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// Every test leaves behind only objects of its own.
static PLANE: LazyLock<ControlPlane> = LazyLock::new(|| {
    let plane = ControlPlane::start(Options::default()).unwrap();
    plane.install_definitions().unwrap();
    plane
});

/// Objects of one kind, as an administrator makes them.
struct Door {
    kind: &'static str,
    api: Api<DynamicObject>,
}

impl Door {
    async fn of(kind: &'static str) -> Self {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("ferrogate.io", "v1beta1", kind));
        Self { kind, api: Api::default_namespaced_with(PLANE.client().await.unwrap(), &resource) }
    }

    /// The specification as it would be stored, or what is said against it. Nothing is kept.
    async fn create(&self, spec: &Value) -> Result<Value, String> {
        let object = self.object("trial", spec);
        match self.api.create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await {
            Ok(object) => Ok(object.data["spec"].clone()),
            Err(Error::Api(status)) if status.code == 422 => Err(status.message),
            Err(error) => panic!("{spec}: {error}"),
        }
    }

    fn object(&self, name: &str, spec: &Value) -> DynamicObject {
        let object = json!({
            "apiVersion": "ferrogate.io/v1beta1", "kind": self.kind, "metadata": { "name": name }, "spec": spec,
        });
        serde_json::from_value(object).unwrap()
    }

    async fn accepts(&self, specs: impl IntoIterator<Item = Value>) {
        for spec in specs {
            assert_eq!(self.create(&spec).await.err(), None, "{spec}");
        }
    }

    /// The answer names the field.
    async fn refuses(&self, field: &str, specs: impl IntoIterator<Item = Value>) {
        for spec in specs {
            let answer = self.create(&spec).await.expect_err(&format!("{spec} is refused"));
            assert!(answer.contains(field), "{spec}: {answer:?} names {field}");
        }
    }
}

fn pool(addresses: &[&str]) -> Value {
    json!({ "addresses": addresses })
}

/// A valid peer with some fields replaced; `null` takes a field away.
fn peer(changes: Value) -> Value {
    let mut spec = json!({ "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1" });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            spec.as_object_mut().unwrap().remove(name);
        } else {
            spec[name] = value.clone();
        }
    }
    spec
}

/// What the heading of a list begins with.
fn heading(resource: &str, manifest: &str) -> String {
    PLANE.apply(manifest).unwrap();
    let list = PLANE.kubectl(["get", resource]).unwrap();
    list.lines()
        .next()
        .unwrap()
        .split("   ")
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join("|")
}

#[test]
fn m_001_a_real_api_server_serves_every_kind_in_namespaces_with_a_short_name() {
    let table = PLANE.kubectl(["api-resources", "--api-group", "ferrogate.io", "--no-headers"]).unwrap();

    let mut kinds: Vec<_> = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    kinds.sort_by_key(|words| words.last().copied());
    let expected = [
        "BFDProfile",
        "BGPAdvertisement",
        "BGPPeer",
        "BGPSessionStatus",
        "Community",
        "ConfigurationState",
        "IPAddressPool",
        "L2Advertisement",
        "ServiceBGPStatus",
        "ServiceL2Status",
    ];
    assert_eq!(kinds.len(), expected.len(), "{table}");
    for (words, kind) in kinds.iter().zip(expected) {
        let [_, short, version, namespaced, found] = words[..] else { panic!("{words:?}") };
        assert_eq!((found, version, namespaced), (kind, "ferrogate.io/v1beta1", "true"));
        assert!(short.starts_with("fg"), "{short}");
    }
}

#[test]
fn m_002_kubectl_shows_how_pools_are_used_and_what_they_hold() {
    let heading = heading(
        "ipaddresspools",
        "{apiVersion: ferrogate.io/v1beta1, kind: IPAddressPool, metadata: {name: shown}, spec: {addresses: [192.0.2.0/24]}}",
    );

    assert!(heading.starts_with("NAME|AUTO ASSIGN|AVOID BUGGY IPS|ADDRESSES"), "{heading}");
}

#[test]
fn m_003_kubectl_shows_who_peers_are() {
    let heading = heading(
        "bgppeers",
        "{apiVersion: ferrogate.io/v1beta1, kind: BGPPeer, metadata: {name: shown},
          spec: {myASN: 64500, peerASN: 64501, peerAddress: 192.0.2.1}}",
    );

    assert!(heading.starts_with("NAME|ADDRESS|ASN|BFD PROFILE|MULTI HOPS"), "{heading}");
}

#[tokio::test]
async fn m_004_a_real_api_server_reads_a_pool_back_with_auto_assign_on_and_avoidance_off() {
    let stored = Door::of("IPAddressPool").await.create(&pool(&["192.0.2.0/24"])).await;

    let expected = json!({ "addresses": ["192.0.2.0/24"], "autoAssign": true, "avoidBuggyIPs": false });
    assert_eq!(stored, Ok(expected));
}

#[tokio::test]
async fn m_005_a_real_api_server_refuses_a_pool_without_addresses() {
    let door = Door::of("IPAddressPool").await;

    door.refuses("spec.addresses", [json!({}), pool(&[])]).await;
}

#[tokio::test]
async fn m_006_m_007_and_m_009_a_real_api_server_takes_prefixes_and_ranges_and_nothing_else() {
    let door = Door::of("IPAddressPool").await;

    let good = ["192.0.2.5/24", "2001:db8::5/64", "192.0.2.1-192.0.2.9", "192.0.2.1 - 192.0.2.9"];
    door.accepts(good.map(|entry| pool(&[entry]))).await;
    door.accepts([pool(&["192.0.2.0/24", "2001:db8::/120"])]).await;
    let bad = [" 192.0.2.0/24", "192.0.2.1", "192.0.2.0/33", "192.0.2.1-2001:db8::9", "web", ""];
    door.refuses("spec.addresses[0]", bad.map(|entry| pool(&[entry]))).await;
    door.refuses("spec.addresses[1]", [pool(&["192.0.2.0/24", "nonsense"])]).await;
}

#[tokio::test]
async fn m_010_a_real_api_server_refuses_what_stands_twice_in_a_service_allocation() {
    let door = Door::of("IPAddressPool").await;
    let with = |allocation: Value| json!({ "addresses": ["192.0.2.0/24"], "serviceAllocation": allocation });
    let web = json!({ "matchLabels": { "app": "web" } });
    let values = json!([{ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["web", "web"] }] }]);

    door.accepts([with(
        json!({ "namespaces": ["a", "b"], "namespaceSelectors": [web], "serviceSelectors": [web, {}] }),
    )])
    .await;
    door.refuses("spec.serviceAllocation.namespaces", [with(json!({ "namespaces": ["a", "b", "a"] }))]).await;
    door.refuses("spec.serviceAllocation.namespaceSelectors", [with(json!({ "namespaceSelectors": [web, web] }))])
        .await;
    door.refuses("matchExpressions[0].values", [with(json!({ "serviceSelectors": values }))]).await;
}

#[tokio::test]
async fn m_012_a_real_api_server_knows_the_lengths_of_prefixes() {
    let door = Door::of("BGPAdvertisement").await;

    let ends = [(1, 1), (32, 128)];
    door.accepts(ends.map(|(v4, v6)| json!({ "aggregationLength": v4, "aggregationLengthV6": v6 }))).await;
    door.refuses("spec.aggregationLength:", [0, 33].map(|length| json!({ "aggregationLength": length }))).await;
    door.refuses("spec.aggregationLengthV6:", [0, 129].map(|length| json!({ "aggregationLengthV6": length }))).await;
}

#[tokio::test]
async fn m_014_a_real_api_server_refuses_service_selectors_beside_aggregation() {
    let door = Door::of("BGPAdvertisement").await;
    let with = |v4: u8, v6: u8| json!({ "serviceSelectors": [{}], "aggregationLength": v4, "aggregationLengthV6": v6 });

    door.accepts([with(32, 128), json!({ "serviceSelectors": [{}] }), json!({ "aggregationLength": 24 })]).await;
    door.refuses("spec", [with(24, 128), with(32, 64)]).await;
}

#[tokio::test]
async fn m_018_and_m_019_a_real_api_server_wants_one_as_and_one_place_of_a_peer() {
    let door = Door::of("BGPPeer").await;

    door.accepts([
        peer(json!({})),
        peer(json!({ "peerASN": null, "dynamicASN": "internal" })),
        peer(json!({ "peerAddress": null, "interface": "eth0" })),
    ])
    .await;
    door.refuses(
        "spec",
        [
            peer(json!({ "peerASN": null })),
            peer(json!({ "dynamicASN": "external" })),
            peer(json!({ "peerAddress": null })),
            peer(json!({ "interface": "eth0" })),
        ],
    )
    .await;
}

#[tokio::test]
async fn m_020_a_real_api_server_refuses_a_peer_that_cannot_work() {
    let door = Door::of("BGPPeer").await;

    door.accepts([peer(json!({ "ebgpMultiHop": true, "routerID": "192.0.2.9", "sourceAddress": "192.0.2.3" }))]).await;
    for (field, changes) in [
        ("spec.myASN", json!({ "myASN": 0 })),
        ("spec", json!({ "ebgpMultiHop": true, "peerASN": 64500 })),
        ("spec.peerAddress", json!({ "peerAddress": "192.0.2" })),
        ("spec.peerAddress", json!({ "peerAddress": "tor-a" })),
        ("spec.sourceAddress", json!({ "sourceAddress": "192.0.2.0/24" })),
        ("spec", json!({ "sourceAddress": "2001:db8::1" })),
        ("spec.routerID", json!({ "routerID": "2001:db8::1" })),
        ("spec.routerID", json!({ "routerID": "0.0.0.0" })),
    ] {
        door.refuses(field, [peer(changes)]).await;
    }
}

#[tokio::test]
async fn m_021_a_real_api_server_knows_which_hold_times_there_are() {
    let door = Door::of("BGPPeer").await;
    let hold = |time: &str| peer(json!({ "holdTime": time }));

    door.accepts(["0s", "3s", "1m30s", "65535s"].map(hold)).await;
    door.accepts([peer(json!({ "holdTime": "9s", "keepaliveTime": "9s" }))]).await;
    door.refuses("spec.holdTime", ["1s", "2s", "65536s", "-3s", "soon", "99999999999999999h"].map(hold)).await;
    door.refuses("spec", [peer(json!({ "holdTime": "9s", "keepaliveTime": "10s" }))]).await;
}

#[tokio::test]
async fn m_023_a_real_api_server_wants_connect_times_in_whole_seconds() {
    let door = Door::of("BGPPeer").await;
    let connect = |time: &str| peer(json!({ "connectTime": time }));

    door.accepts(["1s", "10s", "65535s"].map(connect)).await;
    door.refuses("spec.connectTime", ["0s", "500ms", "1.5s", "65536s"].map(connect)).await;
}

#[tokio::test]
async fn m_024_a_real_api_server_does_not_let_graceful_restart_be_switched() {
    let door = Door::of("BGPPeer").await;
    let on = door.object("graceful", &peer(json!({ "enableGracefulRestart": true })));
    door.api.create(&PostParams::default(), &on).await.unwrap();
    let change = async |spec: Value| {
        let patch = Patch::Merge(json!({ "spec": spec }));
        door.api.patch("graceful", &PatchParams::default(), &patch).await.map(|_| ()).map_err(|error| error.to_string())
    };

    let elsewhere = change(json!({ "peerPort": 1179 })).await;
    let off = change(json!({ "enableGracefulRestart": false })).await;
    let away = change(json!({ "enableGracefulRestart": null })).await;

    assert_eq!(elsewhere, Ok(()));
    assert!(off.clone().is_err_and(|answer| answer.contains("cannot be changed")), "{off:?}");
    assert!(away.clone().is_err_and(|answer| answer.contains("cannot be changed")), "{away:?}");
}

#[tokio::test]
async fn m_025_a_real_api_server_knows_which_ports_a_peer_may_have() {
    let door = Door::of("BGPPeer").await;
    let port = |number: u16| peer(json!({ "peerPort": number }));

    assert_eq!(door.create(&peer(json!({}))).await.unwrap()["peerPort"], 179);
    door.accepts([port(1), port(16384)]).await;
    door.refuses("spec.peerPort", [port(0), port(16385)]).await;
}

#[tokio::test]
async fn m_026_a_real_api_server_keeps_bfd_settings_within_their_ranges() {
    let door = Door::of("BFDProfile").await;

    for (field, least, most) in [
        ("receiveInterval", 10, 60_000),
        ("transmitInterval", 10, 60_000),
        ("echoInterval", 10, 60_000),
        ("detectMultiplier", 2, 255),
        ("minimumTtl", 1, 254),
    ] {
        door.accepts([json!({ field: least }), json!({ field: most })]).await;
        door.refuses(&format!("spec.{field}"), [json!({ field: least - 1 }), json!({ field: most + 1 })]).await;
    }
}

#[tokio::test]
async fn m_030_and_m_031_a_real_api_server_knows_what_a_community_is() {
    let door = Door::of("Community").await;
    let alias = |value: &str| json!({ "communities": [{ "name": "x", "value": value }] });
    let twice = json!({ "communities": [{ "name": "a", "value": "1:1" }, { "name": "a", "value": "1:2" }] });

    door.accepts(["0:0", "65535:65281", "large:1:2:4294967295"].map(alias)).await;
    door.refuses("spec.communities[0].value", ["1:65536", "large:1:2", "extended:1:2:3", "a:b"].map(alias)).await;
    door.refuses("spec.communities", [twice]).await;
}

#[tokio::test]
async fn the_costliest_objects_the_schema_lets_in_stay_within_the_budget_of_the_rules() {
    let address =
        |number: u16| format!("2001:db8:ffff:ffff:ffff:{number:x}::1 - 2001:db8:ffff:ffff:ffff:{number:x}::f");
    let addresses: Vec<_> = (0..1024).map(address).collect();
    let values: Vec<_> = (0..64).map(|number| format!("{number:063}")).collect();
    let selector = |number: usize| json!({ "matchExpressions": [{ "key": format!("key-{number}"), "operator": "In", "values": values }] });
    let selectors: Vec<_> = (0..64).map(selector).collect();
    let namespaces: Vec<_> = (0..256).map(|number| format!("{number:063}")).collect();
    let allocation =
        json!({ "namespaces": namespaces, "namespaceSelectors": selectors, "serviceSelectors": selectors });

    let stored = Door::of("IPAddressPool")
        .await
        .create(&json!({ "addresses": addresses, "serviceAllocation": allocation }))
        .await;

    assert_eq!(stored.err(), None);
}
