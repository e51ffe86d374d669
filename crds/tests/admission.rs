//! What the schemas let in, what they fill in, and what they turn away.
//!
//! [`Door`] does to an object what an API server does: fills in defaults, checks the structural keywords, evaluates
//! the CEL rules. It reads the very definitions that are shipped.

use ferrogate_crds::definitions;
use kube::core::cel::{Validator, apply_defaults};
use regex::Regex;
use serde_json::{Value, json};

/// Admission of one kind.
struct Door {
    schema: Value,
}

impl Door {
    fn of(kind: &str) -> Self {
        let definition = definitions().into_iter().find(|definition| definition.spec.names.kind == kind);
        let schema =
            definition.expect(kind).spec.versions[0].schema.clone().and_then(|schema| schema.open_api_v3_schema);
        let mut schema = serde_json::to_value(schema.expect("a schema")).expect("a schema is plain data");
        schema = schema["properties"]["spec"].take();
        Self { schema }
    }

    /// The object as stored, or what is wrong with it.
    fn create(&self, spec: Value) -> Result<Value, Vec<String>> {
        self.admit(spec, None)
    }

    /// The object as stored after a change.
    fn update(&self, old: &Value, spec: Value) -> Result<Value, Vec<String>> {
        self.admit(spec, Some(old))
    }

    fn admit(&self, spec: Value, old: Option<&Value>) -> Result<Value, Vec<String>> {
        let stored = apply_defaults(&self.schema, &spec);
        let mut faults = Vec::new();
        check("spec", &self.schema, &stored, &mut faults);
        if faults.is_empty()
            && let Err(errors) = Validator::new().validate(&self.schema, &stored, old)
        {
            faults.extend(errors.as_slice().iter().map(|error| format!("spec.{error}")));
        }
        if faults.is_empty() { Ok(stored) } else { Err(faults) }
    }
}

/// The structural keywords, by the rules of OpenAPI and of Kubernetes' list types.
fn check(path: &str, schema: &Value, value: &Value, faults: &mut Vec<String>) {
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            faults.push(format!("{path}: {what}"));
        }
    };
    let limit = |keyword: &str| schema[keyword].as_u64().map(|limit| limit as usize);
    if let Some(allowed) = schema["enum"].as_array() {
        expect(allowed.contains(value), "not one of the allowed values");
    }
    match (schema["type"].as_str().expect("a type"), value) {
        ("object", Value::Object(fields)) => {
            for name in schema["required"].as_array().into_iter().flatten() {
                expect(fields.contains_key(name.as_str().expect("a name")), &format!("{name} is required"));
            }
            expect(limit("maxProperties").is_none_or(|limit| fields.len() <= limit), "too many fields");
            for (name, value) in fields {
                let inner = schema["properties"].get(name).or(schema.get("additionalProperties"));
                match inner {
                    Some(inner) => check(&format!("{path}.{name}"), inner, value, faults),
                    None => faults.push(format!("{path}.{name}: unknown field")),
                }
            }
        }
        ("array", Value::Array(items)) => {
            expect(limit("minItems").is_none_or(|limit| items.len() >= limit), "too few items");
            expect(limit("maxItems").is_none_or(|limit| items.len() <= limit), "too many items");
            let identity = |item: &Value| match schema["x-kubernetes-list-map-keys"].as_array() {
                Some(keys) => keys.iter().map(|key| item[key.as_str().expect("a name")].clone()).collect(),
                None => item.clone(),
            };
            if matches!(schema["x-kubernetes-list-type"].as_str(), Some("set" | "map")) {
                for (index, item) in items.iter().enumerate() {
                    let first = items.iter().position(|other| identity(other) == identity(item));
                    expect(first == Some(index), &format!("[{index}] is there twice"));
                }
            }
            for (index, item) in items.iter().enumerate() {
                check(&format!("{path}[{index}]"), &schema["items"], item, faults);
            }
        }
        ("string", Value::String(text)) => {
            let length = text.chars().count();
            expect(limit("minLength").is_none_or(|limit| length >= limit), "too short");
            expect(limit("maxLength").is_none_or(|limit| length <= limit), "too long");
            if let Some(pattern) = schema["pattern"].as_str() {
                expect(Regex::new(pattern).expect(pattern).is_match(text), "does not match the pattern");
            }
        }
        ("integer", Value::Number(number)) if number.is_i64() || number.is_u64() => {
            let number = number.as_f64().expect("a number");
            expect(schema["minimum"].as_f64().is_none_or(|limit| number >= limit), "too small");
            expect(schema["maximum"].as_f64().is_none_or(|limit| number <= limit), "too large");
        }
        ("boolean", Value::Bool(_)) => {}
        (expected, _) => expect(false, &format!("not of type {expected}")),
    }
}

/// A fault for each spec, naming the field.
fn refuses(door: &Door, field: &str, specs: impl IntoIterator<Item = Value>) {
    for spec in specs {
        let faults = door.create(spec.clone()).expect_err(&format!("{spec} is refused"));
        assert!(faults.iter().any(|fault| fault.starts_with(field)), "{spec}: {faults:?} names {field}");
    }
}

fn accepts(door: &Door, specs: impl IntoIterator<Item = Value>) {
    for spec in specs {
        assert_eq!(door.create(spec.clone()).err(), None, "{spec}");
    }
}

/// A valid peer with some fields replaced; `null` takes a field away.
fn peer(changes: Value) -> Value {
    let mut spec = json!({"myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1"});
    for (name, value) in changes.as_object().expect("an object") {
        if value.is_null() {
            spec.as_object_mut().expect("an object").remove(name);
        } else {
            spec[name] = value.clone();
        }
    }
    spec
}

fn pool(addresses: &[&str]) -> Value {
    json!({"addresses": addresses})
}

#[test]
fn m_004_a_pool_reads_back_with_auto_assign_on_and_avoidance_off() {
    let stored = Door::of("IPAddressPool").create(pool(&["192.0.2.0/24"])).expect("a valid pool");
    assert_eq!(stored, json!({"addresses": ["192.0.2.0/24"], "autoAssign": true, "avoidBuggyIPs": false}));
}

#[test]
fn m_005_a_pool_without_addresses_is_refused() {
    refuses(&Door::of("IPAddressPool"), "spec", [json!({}), pool(&[])]);
}

#[test]
fn m_006_an_address_entry_is_a_prefix_or_a_range_of_one_family() {
    let door = Door::of("IPAddressPool");
    accepts(&door, [pool(&["192.0.2.5/24"]), pool(&["2001:db8::5/64"]), pool(&["192.0.2.1-192.0.2.9"])]);
    refuses(
        &door,
        "spec.addresses[0]",
        [
            pool(&[" 192.0.2.0/24"]),
            pool(&["192.0.2.1"]),
            pool(&["10.0.0.300/24"]),
            pool(&["192.0.2.0/33"]),
            pool(&["192.0.2.1-2001:db8::9"]),
            pool(&["192.0.2.1-192.0.2.9-192.0.2.12"]),
            pool(&["192.0.2.1-"]),
            pool(&["-"]),
            pool(&[""]),
            pool(&["web.example.org"]),
        ],
    );
    refuses(&door, "spec.addresses[1]", [pool(&["192.0.2.0/24", "nonsense"])]);
}

#[test]
fn m_007_blanks_around_the_ends_of_a_range_are_accepted() {
    accepts(&Door::of("IPAddressPool"), [pool(&["192.0.2.1 - 192.0.2.9"]), pool(&["2001:db8::1 - 2001:db8::9"])]);
}

#[test]
fn m_009_one_pool_may_hold_both_families() {
    accepts(&Door::of("IPAddressPool"), [pool(&["192.0.2.0/24", "2001:db8::/120"])]);
}

#[test]
fn m_010_nothing_may_stand_twice_in_a_service_allocation() {
    let door = Door::of("IPAddressPool");
    let with = |allocation: Value| json!({"addresses": ["192.0.2.0/24"], "serviceAllocation": allocation});
    let web = json!({"matchLabels": {"app": "web"}});
    let app_in = |values: Value| json!({"matchExpressions": [{"key": "app", "operator": "In", "values": values}]});
    accepts(
        &door,
        [
            with(json!({"priority": 5})),
            with(json!({"namespaces": ["a", "b"], "namespaceSelectors": [web], "serviceSelectors": [web, {}]})),
            with(json!({"serviceSelectors": [app_in(json!(["web", "api"]))]})),
        ],
    );
    refuses(&door, "spec.serviceAllocation.namespaces", [with(json!({"namespaces": ["a", "b", "a"]}))]);
    refuses(&door, "spec.serviceAllocation.namespaceSelectors", [with(json!({"namespaceSelectors": [web, web]}))]);
    refuses(&door, "spec.serviceAllocation.serviceSelectors", [with(json!({"serviceSelectors": [web, web]}))]);
    refuses(
        &door,
        "spec.serviceAllocation.serviceSelectors[0].matchExpressions[0].values",
        [with(json!({"serviceSelectors": [app_in(json!(["web", "web"]))]}))],
    );
}

#[test]
fn selectors_give_values_exactly_where_the_operator_needs_them() {
    let door = Door::of("L2Advertisement");
    let with = |expression: Value| json!({"nodeSelectors": [{"matchExpressions": [expression]}]});
    accepts(
        &door,
        [
            with(json!({"key": "rack", "operator": "In", "values": ["1"]})),
            with(json!({"key": "rack", "operator": "Exists"})),
            with(json!({"key": "rack", "operator": "DoesNotExist", "values": []})),
            with(json!({"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a_1.b", ""]})),
        ],
    );
    refuses(
        &door,
        "spec.nodeSelectors[0].matchExpressions[0]",
        [
            with(json!({"key": "rack", "operator": "In"})),
            with(json!({"key": "rack", "operator": "NotIn", "values": []})),
            with(json!({"key": "rack", "operator": "Exists", "values": ["1"]})),
            with(json!({"key": "rack", "operator": "Gt", "values": ["1"]})),
            with(json!({"key": "the rack", "operator": "Exists"})),
            with(json!({"key": "a/b/rack", "operator": "Exists"})),
            with(json!({"key": "rack", "operator": "In", "values": ["-1"]})),
            with(json!({"operator": "Exists"})),
        ],
    );
}

#[test]
fn a_preference_weighs_1_to_100() {
    let door = Door::of("L2Advertisement");
    let with = |weight: i64| json!({"preferredNodeSelectors": [{"weight": weight, "preference": {}}]});
    accepts(&door, [with(1), with(100)]);
    refuses(&door, "spec.preferredNodeSelectors[0].weight", [with(0), with(101), with(-1)]);
    refuses(&door, "spec.preferredNodeSelectors[0]", [json!({"preferredNodeSelectors": [{"weight": 1}]})]);
}

#[test]
fn interfaces_are_names_the_kernel_would_take() {
    let door = Door::of("L2Advertisement");
    let with = |name: &str| json!({"interfaces": [name]});
    accepts(&door, [with("eth0"), with("bond0.100"), with("a23456789012345")]);
    refuses(&door, "spec.interfaces[0]", [with(""), with("a/b"), with("a b"), with("a234567890123456")]);
    refuses(&door, "spec.interfaces", [json!({"interfaces": ["eth0", "eth0"]})]);
}

#[test]
fn m_012_aggregation_lengths_are_lengths_of_prefixes() {
    let door = Door::of("BGPAdvertisement");
    accepts(
        &door,
        [
            json!({"aggregationLength": 1, "aggregationLengthV6": 1}),
            json!({"aggregationLength": 32, "aggregationLengthV6": 128}),
        ],
    );
    refuses(&door, "spec.aggregationLength:", [json!({"aggregationLength": 0}), json!({"aggregationLength": 33})]);
    refuses(
        &door,
        "spec.aggregationLengthV6:",
        [json!({"aggregationLengthV6": 0}), json!({"aggregationLengthV6": 129})],
    );
}

#[test]
fn m_014_service_selectors_exclude_aggregation() {
    let door = Door::of("BGPAdvertisement");
    let with = |v4: u8, v6: u8| json!({"serviceSelectors": [{}], "aggregationLength": v4, "aggregationLengthV6": v6});
    accepts(
        &door,
        [with(32, 128), json!({"serviceSelectors": [{}]}), json!({"serviceSelectors": [], "aggregationLength": 24})],
    );
    refuses(&door, "spec", [with(24, 128), with(32, 64)]);
}

#[test]
fn m_018_a_peer_has_exactly_one_of_a_fixed_and_a_dynamic_as() {
    let door = Door::of("BGPPeer");
    accepts(&door, [peer(json!({})), peer(json!({"peerASN": null, "dynamicASN": "internal"}))]);
    refuses(&door, "spec", [peer(json!({"peerASN": null})), peer(json!({"dynamicASN": "external"}))]);
    refuses(&door, "spec.dynamicASN", [peer(json!({"peerASN": null, "dynamicASN": "any"}))]);
    refuses(&door, "spec.peerASN", [peer(json!({"peerASN": 0})), peer(json!({"peerASN": 4294967296u64}))]);
}

#[test]
fn m_019_a_peer_has_exactly_one_of_an_address_and_an_interface() {
    let door = Door::of("BGPPeer");
    accepts(&door, [peer(json!({"peerAddress": null, "interface": "eth0"}))]);
    refuses(&door, "spec", [peer(json!({"peerAddress": null})), peer(json!({"interface": "eth0"}))]);
}

#[test]
fn m_020_a_peer_that_cannot_work_is_refused() {
    let door = Door::of("BGPPeer");
    accepts(
        &door,
        [
            peer(json!({"ebgpMultiHop": true, "routerID": "192.0.2.9", "sourceAddress": "192.0.2.3"})),
            peer(json!({"localASN": 4294967295u32, "vrf": "red"})),
        ],
    );
    refuses(&door, "spec.myASN", [peer(json!({"myASN": 0})), peer(json!({"myASN": -1}))]);
    refuses(&door, "spec", [peer(json!({"myASN": null}))]);
    refuses(&door, "spec.localASN", [peer(json!({"localASN": 0}))]);
    refuses(
        &door,
        "spec",
        [
            peer(json!({"ebgpMultiHop": true, "peerASN": 64500})),
            peer(json!({"ebgpMultiHop": true, "peerASN": null, "dynamicASN": "internal"})),
        ],
    );
    refuses(
        &door,
        "spec.peerAddress",
        [peer(json!({"peerAddress": "192.0.2"})), peer(json!({"peerAddress": "tor-a"}))],
    );
    refuses(&door, "spec.sourceAddress", [peer(json!({"sourceAddress": "192.0.2.0/24"}))]);
    refuses(&door, "spec", [peer(json!({"sourceAddress": "2001:db8::1"}))]);
    refuses(
        &door,
        "spec.routerID",
        [
            peer(json!({"routerID": "0.0.0.0"})),
            peer(json!({"routerID": "2001:db8::1"})),
            peer(json!({"routerID": "1.2.3.4.5"})),
        ],
    );
    refuses(&door, "spec", [peer(json!({"password": "x", "passwordSecret": {"name": "y"}}))]);
    let ao = |more: serde_json::Value| {
        let mut spec = json!({"passwordSecret": {"name": "y"}, "tcpAO": {"sendID": 1}});
        spec["tcpAO"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        peer(spec)
    };
    accepts(&door, [ao(json!({})), ao(json!({"sendID": 0, "recvID": 255, "algorithm": "aes-128-cmac-96"}))]);
    refuses(&door, "spec", [peer(json!({"tcpAO": {"sendID": 1}}))]);
    refuses(
        &door,
        "spec.tcpAO",
        [
            ao(json!({"sendID": 256})),
            ao(json!({"recvID": -1})),
            ao(json!({"algorithm": "md5"})),
            peer(json!({"password": "x", "tcpAO": {}})),
        ],
    );
    refuses(
        &door,
        "spec.passwordSecret",
        [peer(json!({"passwordSecret": {}})), peer(json!({"passwordSecret": {"name": ""}}))],
    );
}

#[test]
fn m_021_a_hold_time_is_zero_or_three_seconds_and_no_shorter_than_the_keepalive() {
    let door = Door::of("BGPPeer");
    for hold in ["0s", "0", "500ms", "3s", "3.5s", "1m30s", "65535s"] {
        accepts(&door, [peer(json!({"holdTime": hold}))]);
    }
    for hold in ["1s", "2s", "2999ms", "65536s", "-3s", "3", "soon", "99999999999999999h"] {
        refuses(&door, "spec.holdTime", [peer(json!({"holdTime": hold}))]);
    }
    accepts(&door, [peer(json!({"holdTime": "9s", "keepaliveTime": "9s"})), peer(json!({"keepaliveTime": "20s"}))]);
    refuses(&door, "spec", [peer(json!({"holdTime": "9s", "keepaliveTime": "10s"}))]);
    accepts(
        &door,
        [
            peer(json!({"keepaliveTime": "0s"})),
            peer(json!({"holdTime": "0s", "keepaliveTime": "0s"})),
            peer(json!({"keepaliveTime": "21845s"})),
        ],
    );
    refuses(
        &door,
        "spec",
        [
            peer(json!({"keepaliveTime": "21846s"})),
            peer(json!({"keepaliveTime": "500ms"})),
            peer(json!({"holdTime": "9s", "keepaliveTime": "0s"})),
        ],
    );
}

#[test]
fn m_023_a_connect_time_is_whole_seconds_from_1_to_65535() {
    let door = Door::of("BGPPeer");
    for time in ["1s", "10s", "1m", "65535s", "1000ms"] {
        accepts(&door, [peer(json!({"connectTime": time}))]);
    }
    for time in ["0s", "500ms", "1.5s", "65536s"] {
        refuses(&door, "spec.connectTime", [peer(json!({"connectTime": time}))]);
    }
}

#[test]
fn m_024_graceful_restart_is_decided_once() {
    let door = Door::of("BGPPeer");
    let on = door.create(peer(json!({"enableGracefulRestart": true}))).expect("a valid peer");
    let off = door.create(peer(json!({}))).expect("a valid peer");
    assert!(door.update(&on, peer(json!({"enableGracefulRestart": true, "peerPort": 1179}))).is_ok());
    for (old, new) in [
        (&on, json!({"enableGracefulRestart": false})),
        (&on, json!({})),
        (&off, json!({"enableGracefulRestart": true})),
    ] {
        let faults = door.update(old, peer(new)).expect_err("the change is refused");
        assert!(faults[0].contains("cannot be changed"), "{faults:?}");
    }
}

#[test]
fn m_025_a_peer_port_is_1_to_16384_and_179_by_default() {
    let door = Door::of("BGPPeer");
    assert_eq!(door.create(peer(json!({}))).expect("a valid peer")["peerPort"], 179);
    accepts(&door, [peer(json!({"peerPort": 1})), peer(json!({"peerPort": 16384}))]);
    refuses(&door, "spec.peerPort", [peer(json!({"peerPort": 0})), peer(json!({"peerPort": 16385}))]);
}

#[test]
fn a_peer_may_be_waited_for_kept_near_given_a_role_and_shut_down() {
    let door = Door::of("BGPPeer");
    accepts(
        &door,
        [
            peer(json!({"passive": true, "ttlSecurityHops": 1, "maxPrefixes": 1, "shutdown": ""})),
            peer(json!({"ttlSecurityHops": 254, "maxPrefixes": 4294967295u32, "role": "rs-client"})),
            peer(json!({"enableGracefulRestart": true, "gracefulRestartTime": "4095s"})),
            peer(json!({"shutdown": "x".repeat(255)})),
        ],
    );
    refuses(
        &door,
        "spec.ttlSecurityHops",
        [peer(json!({"ttlSecurityHops": 0})), peer(json!({"ttlSecurityHops": 255}))],
    );
    refuses(&door, "spec.maxPrefixes", [peer(json!({"maxPrefixes": 0}))]);
    refuses(&door, "spec.role", [peer(json!({"role": "friend"}))]);
    refuses(
        &door,
        "spec.shutdown",
        [peer(json!({"shutdown": "x".repeat(256)})), peer(json!({"shutdown": "\u{e9}".repeat(128)}))],
    );
    for time in ["0s", "500ms", "1.5s", "4096s"] {
        let spec = json!({"enableGracefulRestart": true, "gracefulRestartTime": time});
        refuses(&door, "spec.gracefulRestartTime", [peer(spec)]);
    }
    refuses(
        &door,
        "spec",
        [
            peer(json!({"gracefulRestartTime": "5s"})),
            peer(json!({"ttlSecurityHops": 1, "ebgpMultiHop": true})),
            peer(json!({"peerAddress": null, "interface": "eth0", "passive": true})),
            peer(json!({"role": "peer", "peerASN": 64500})),
            peer(json!({"role": "peer", "localASN": 64501})),
            peer(json!({"role": "peer", "peerASN": null, "dynamicASN": "internal"})),
        ],
    );
}

#[test]
fn a_peer_may_be_whoever_connects_from_a_prefix() {
    let door = Door::of("BGPPeer");
    let from = |prefix: &str| peer(json!({"peerAddress": null, "peerPrefix": prefix}));
    accepts(&door, [from("10.0.0.0/24"), from("2001:db8::/64"), from("192.0.2.1/32")]);
    for prefix in ["10.0.0.1/24", "10.0.0.0", "10.0.0.0/33", "racks"] {
        refuses(&door, "spec.peerPrefix", [from(prefix)]);
    }
    refuses(
        &door,
        "spec",
        [
            peer(json!({"peerPrefix": "10.0.0.0/24"})),
            peer(json!({"peerAddress": null, "peerPrefix": "10.0.0.0/24", "sourceAddress": "2001:db8::1"})),
        ],
    );
}

#[test]
fn values_of_a_peer_may_stand_on_nodes() {
    let door = Door::of("BGPPeer");
    let label = json!({"label": "rack.example.com/tor"});
    accepts(
        &door,
        [
            json!({"nodeValues": {"myASN": label, "peerASN": label, "peerAddress": {"annotation": "ferrogate.io/tor"}}}),
            peer(json!({"nodeValues": {"routerID": label, "sourceAddress": label}})),
        ],
    );
    refuses(
        &door,
        "spec.nodeValues.routerID",
        [
            peer(json!({"nodeValues": {"routerID": {}}})),
            peer(json!({"nodeValues": {"routerID": {"label": "a", "annotation": "ferrogate.io/a"}}})),
            peer(json!({"nodeValues": {"routerID": {"label": "a b"}}})),
            peer(json!({"nodeValues": {"routerID": {"annotation": "example.com/a"}}})),
        ],
    );
    refuses(
        &door,
        "spec",
        [
            peer(json!({"nodeValues": {"myASN": label}})),
            peer(json!({"nodeValues": {"peerASN": label}})),
            peer(json!({"nodeValues": {"peerAddress": label}})),
            peer(json!({"routerID": "192.0.2.9", "nodeValues": {"routerID": label}})),
            peer(json!({"sourceAddress": "192.0.2.9", "nodeValues": {"sourceAddress": label}})),
        ],
    );
}

#[test]
fn a_route_may_have_a_med_and_a_longer_path() {
    let door = Door::of("BGPAdvertisement");
    accepts(&door, [json!({"med": 0, "asPathPrepend": 250}), json!({"med": 4294967295u32})]);
    refuses(&door, "spec.med", [json!({"med": -1}), json!({"med": 4294967296u64})]);
    refuses(&door, "spec.asPathPrepend", [json!({"asPathPrepend": 251})]);
    assert_eq!(door.create(json!({})).expect("a valid advertisement")["asPathPrepend"], 0);
}

#[test]
fn an_extended_community_is_a_target_an_origin_or_eight_octets() {
    let aliases = Door::of("Community");
    let advertisements = Door::of("BGPAdvertisement");
    let alias = |value: &str| json!({"communities": [{"name": "x", "value": value}]});
    let used = |value: &str| json!({"communities": [value]});
    for value in [
        "target:64512:100",
        "target:0:4294967295",
        "target:65536:65535",
        "origin:192.0.2.1:7",
        "extended:0x4004FC0000000064",
    ] {
        accepts(&aliases, [alias(value)]);
        accepts(&advertisements, [used(value)]);
    }
    for value in [
        "target:64512",
        "target:65536:65536",
        "target:192.0.2.1:65536",
        "target:192.0.2:1",
        "target:4294967296:1",
        "target:1:4294967296",
        "extended:0002fc0000000064",
        "extended:0x0002fc000000006",
        "extended:0x0002fc00000000641",
    ] {
        refuses(&aliases, "spec.communities[0].value", [alias(value)]);
        refuses(&advertisements, "spec.communities[0]", [used(value)]);
    }
}

#[test]
fn m_026_bfd_settings_stay_within_their_ranges() {
    let door = Door::of("BFDProfile");
    for interval in ["receiveInterval", "transmitInterval", "echoInterval"] {
        accepts(&door, [json!({interval: 10}), json!({interval: 60000})]);
        refuses(&door, &format!("spec.{interval}"), [json!({interval: 9}), json!({interval: 60001})]);
    }
    accepts(
        &door,
        [json!({"detectMultiplier": 2, "minimumTtl": 1}), json!({"detectMultiplier": 255, "minimumTtl": 254})],
    );
    refuses(&door, "spec.detectMultiplier", [json!({"detectMultiplier": 1}), json!({"detectMultiplier": 256})]);
    refuses(&door, "spec.minimumTtl", [json!({"minimumTtl": 0}), json!({"minimumTtl": 255})]);
}

#[test]
fn m_030_a_community_is_two_short_or_three_long_numbers() {
    let aliases = Door::of("Community");
    let advertisements = Door::of("BGPAdvertisement");
    let alias = |value: &str| json!({"communities": [{"name": "x", "value": value}]});
    let used = |value: &str| json!({"communities": [value]});
    for value in ["0:0", "65535:65281", "large:1:2:4294967295"] {
        accepts(&aliases, [alias(value)]);
        accepts(&advertisements, [used(value)]);
    }
    for value in ["1:65536", "large:1:2", "large:1:2:4294967296", "extended:1:2:3", "1:2:3", "a:b", ":", "-1:1"] {
        refuses(&aliases, "spec.communities[0].value", [alias(value)]);
        refuses(&advertisements, "spec.communities[0]", [used(value)]);
    }
    accepts(&advertisements, [used("no-export")]);
    refuses(&aliases, "spec.communities[0].value", [alias("no-export")]);
}

#[test]
fn m_031_an_alias_is_given_once_in_one_object() {
    let door = Door::of("Community");
    let two = |first: &str, second: &str| json!({"communities": [{"name": first, "value": "1:1"}, {"name": second, "value": "1:2"}]});
    accepts(&door, [two("a", "b")]);
    refuses(&door, "spec.communities", [two("a", "a")]);
    refuses(&door, "spec.communities[0].name", [two("1:1", "b"), two("", "b")]);
}

#[test]
fn m_133_an_advertisement_has_at_most_63_communities() {
    let door = Door::of("BGPAdvertisement");
    let with =
        |count: u16| json!({"communities": (0..count).map(|number| format!("65000:{number}")).collect::<Vec<_>>()});
    accepts(&door, [with(63)]);
    refuses(&door, "spec.communities", [with(64)]);
}

#[test]
fn what_identifies_a_status_cannot_be_changed() {
    let service = &["node", "serviceName", "serviceNamespace"][..];
    let kinds = [("ServiceL2Status", service), ("ServiceBGPStatus", service), ("BGPSessionStatus", &["node", "peer"])];
    for (kind, fields) in kinds {
        let definition = definitions().into_iter().find(|definition| definition.spec.names.kind == kind).expect(kind);
        let schema = definition.spec.versions[0].schema.clone().and_then(|schema| schema.open_api_v3_schema);
        let schema = serde_json::to_value(schema.expect("a schema")).expect("a schema is plain data");
        let mut old = json!({"spec": {}, "status": {}});
        for field in fields {
            old["status"][field] = json!("a");
        }
        assert!(Validator::new().validate(&schema, &old, Some(&old)).is_ok());
        for field in fields {
            let mut new = old.clone();
            new["status"][field] = json!("other");
            let errors = Validator::new().validate(&schema, &new, Some(&old)).expect_err("the change is refused");
            assert_eq!(errors[0].field_path, format!("status.{field}"));
        }
    }
}

#[test]
fn a_spec_is_filled_in_exactly_where_an_empty_one_is_admitted() {
    for definition in definitions() {
        let kind = definition.spec.names.kind.clone();
        let door = Door::of(&kind);

        // An API server refuses a definition whose default does not keep to its own rules.
        assert_eq!(door.schema.get("default").is_some(), door.create(json!({})).is_ok(), "{kind}");
    }
}
