//! Every kind keeps every field through reading and writing, under the name users write.

use ferrogate_crds::{
    BFDProfile, BGPAdvertisement, BGPPeer, BGPSessionStatus, Community, ConfigurationState, IPAddressPool,
    L2Advertisement, ServiceBGPStatus, ServiceL2Status,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Reads a manifest, writes it, and expects the same fields back.
fn survives<K: DeserializeOwned + Serialize>(manifest: &str) -> K {
    let written: Value = serde_saphyr::from_str(manifest).expect("the manifest is YAML");
    let object: K = serde_saphyr::from_str(manifest).expect("the manifest fits its kind");
    assert_eq!(serde_json::to_value(&object).expect("an object is plain data"), written);
    object
}

#[test]
fn a_pool_keeps_every_field() {
    let pool: IPAddressPool = survives(
        r"
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: {name: first, namespace: ferrogate-system, labels: {zone: a}}
spec:
  addresses: [192.0.2.0/24, 198.51.100.10-198.51.100.19, '2001:db8::/120']
  autoAssign: false
  avoidBuggyIPs: true
  serviceAllocation:
    priority: 50
    namespaces: [shop]
    namespaceSelectors: [{matchLabels: {team: a}}]
    serviceSelectors: [{matchExpressions: [{key: app, operator: In, values: [web]}]}]
status:
  assignedIPv4: 1
  assignedIPv6: 2
  availableIPv4: 3
  availableIPv6: 9223372036854775807
  conditions:
  - {type: Accepted, status: 'True', reason: Accepted, message: in force, lastTransitionTime: '2026-01-02T03:04:05Z', observedGeneration: 7}
",
    );
    let status = pool.status.expect("a status");
    assert_eq!((status.assigned_ipv4, status.available_ipv6), (1, i64::MAX));
    assert_eq!(pool.spec.addresses.len(), 3);
}

#[test]
fn a_layer_2_advertisement_keeps_every_field() {
    let advertisement: L2Advertisement = survives(
        r"
apiVersion: ferrogate.io/v1beta1
kind: L2Advertisement
metadata: {name: first}
spec:
  ipAddressPools: [first]
  ipAddressPoolSelectors: [{matchLabels: {zone: a}}]
  nodeSelectors: [{matchLabels: {kubernetes.io/hostname: a}}]
  interfaces: [eth0, bond0.7]
  serviceSelectors: [{}]
  preferredNodeSelectors: [{weight: 100, preference: {matchLabels: {rack: '1'}}}]
  stickiness: Owner
",
    );
    assert_eq!(advertisement.spec.preferred_node_selectors[0].weight, 100);
}

#[test]
fn a_bgp_advertisement_keeps_every_field() {
    let advertisement: BGPAdvertisement = survives(
        r"
apiVersion: ferrogate.io/v1beta1
kind: BGPAdvertisement
metadata: {name: first}
spec:
  aggregationLength: 24
  aggregationLengthV6: 64
  localPref: 4294967295
  med: 0
  asPathPrepend: 250
  communities: ['65000:100', 'large:4294967295:1:2', no-export]
  ipAddressPools: [first]
  ipAddressPoolSelectors: [{matchLabels: {zone: a}}]
  nodeSelectors: [{matchLabels: {rack: '1'}}]
  peers: [tor-a, tor-b]
  serviceSelectors: [{matchLabels: {app: web}}]
",
    );
    assert_eq!(advertisement.spec.local_pref, Some(u32::MAX));
}

#[test]
fn a_bgp_peer_keeps_every_field() {
    let peer: BGPPeer = survives(
        r"
apiVersion: ferrogate.io/v1beta1
kind: BGPPeer
metadata: {name: tor-a}
spec:
  myASN: 64500
  peerASN: 4200000001
  dynamicASN: external
  localASN: 64501
  peerAddress: 2001:db8::1
  interface: eth0
  peerPrefix: 2001:db8::/64
  passive: true
  ttlSecurityHops: 254
  role: rs-client
  maxPrefixes: 4294967295
  shutdown: until monday
  gracefulRestartTime: 5s
  nodeValues:
    myASN: {label: rack.example.com/asn}
    peerASN: {label: tor-asn}
    peerAddress: {annotation: ferrogate.io/tor}
    sourceAddress: {label: source}
    routerID: {annotation: ferrogate.io/id}
  sourceAddress: 2001:db8::2
  peerPort: 1179
  holdTime: 9s
  keepaliveTime: 3s
  connectTime: 5s
  routerID: 192.0.2.1
  nodeSelectors: [{matchLabels: {rack: '1'}}]
  password: secret
  passwordSecret: {name: tor-a, namespace: ferrogate-system}
  tcpAO: {sendID: 0, recvID: 255, algorithm: aes-128-cmac-96}
  bfdProfile: fast
  enableGracefulRestart: true
  ebgpMultiHop: true
  vrf: red
  disableMP: true
  dualStackAddressFamily: true
",
    );
    assert_eq!(peer.spec.hold_time.map(std::time::Duration::from), Some(std::time::Duration::from_secs(9)));
}

#[test]
fn a_bfd_profile_keeps_every_field() {
    survives::<BFDProfile>(
        r"
apiVersion: ferrogate.io/v1beta1
kind: BFDProfile
metadata: {name: fast}
spec:
  receiveInterval: 60000
  transmitInterval: 10
  detectMultiplier: 255
  echoInterval: 50
  echoMode: true
  passiveMode: true
  minimumTtl: 254
",
    );
}

#[test]
fn a_community_keeps_every_field() {
    survives::<Community>(
        r"
apiVersion: ferrogate.io/v1beta1
kind: Community
metadata: {name: names}
spec: {communities: [{name: no-export, value: '65535:65281'}, {name: mine, value: 'large:64496:1:2'}]}
",
    );
}

#[test]
fn status_kinds_keep_every_field() {
    survives::<ServiceL2Status>(
        r"
apiVersion: ferrogate.io/v1beta1
kind: ServiceL2Status
metadata: {name: l2-abc}
spec: {}
status:
  node: a
  serviceName: web
  serviceNamespace: shop
  interfaces: [{name: eth0}]
  pool: first
  addresses: [192.0.2.7]
  transitions: 3
  conflicts: [{address: 192.0.2.7, interface: eth0, mac: '02:00:00:00:00:42'}]
",
    );
    survives::<ServiceBGPStatus>(
        r"
apiVersion: ferrogate.io/v1beta1
kind: ServiceBGPStatus
metadata: {name: bgp-abc}
spec: {}
status: {node: a, serviceName: web, serviceNamespace: shop, peers: [tor-a, tor-b]}
",
    );
    survives::<BGPSessionStatus>(
        r"
apiVersion: ferrogate.io/v1beta1
kind: BGPSessionStatus
metadata: {name: session-abc}
spec: {}
status:
  node: a
  peer: tor-a
  remote: 192.0.2.1
  state: Established
  since: '2026-01-02T03:04:05Z'
  remoteASN: 4200000000
  remoteIdentifier: 192.0.2.1
  localAddress: 192.0.2.10
  remoteAddress: 192.0.2.1
  holdTimeSeconds: 9
  families: [IPv4, IPv6]
  prefixesSent: 3
  prefixesReceived: 2
  withheld: [{reason: NotNegotiated, count: 1}]
  flaps: 4
  lastClose: {by: Peer, code: 6, subcode: 2, message: administrative shutdown, time: '2026-01-02T03:00:00Z'}
  bfd: Up
  bfdLosses: 3
  bfdLastLoss: nothing was heard for the detection time
  trouble: none worth telling
",
    );
    survives::<ConfigurationState>(
        r"
apiVersion: ferrogate.io/v1beta1
kind: ConfigurationState
metadata: {name: speaker-a}
spec: {}
status:
  result: Invalid
  errorSummary: 'configuration error: one is wrong'
  conditions:
  - {type: configReconcilerValid, status: 'False', reason: ConfigurationError, message: one is wrong, lastTransitionTime: '2026-01-02T03:04:05Z'}
",
    );
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let read = |kind: &str, spec: Value| json!({"apiVersion": "ferrogate.io/v1beta1", "kind": kind, "metadata": {"name": "x"}, "spec": spec});
    let pool: IPAddressPool =
        serde_json::from_value(read("IPAddressPool", json!({"addresses": ["192.0.2.0/24"]}))).expect("a pool");
    assert!(pool.spec.auto_assign && !pool.spec.avoid_buggy_ips && pool.spec.service_allocation.is_none());

    let advertisement: BGPAdvertisement =
        serde_json::from_value(read("BGPAdvertisement", json!({}))).expect("an advertisement");
    assert_eq!((advertisement.spec.aggregation_length, advertisement.spec.aggregation_length_v6), (32, 128));
    assert_eq!(advertisement.spec.local_pref, None);

    let peer: BGPPeer =
        serde_json::from_value(read("BGPPeer", json!({"myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1"})))
            .expect("a peer");
    assert_eq!(peer.spec.peer_port, 179);
    assert_eq!((peer.spec.hold_time, peer.spec.keepalive_time, peer.spec.connect_time), (None, None, None));
    assert!(!peer.spec.ebgp_multi_hop && !peer.spec.enable_graceful_restart && !peer.spec.dual_stack_address_family);

    let advertisement: L2Advertisement =
        serde_json::from_value(read("L2Advertisement", json!({}))).expect("an advertisement");
    assert_eq!(advertisement.spec, Default::default());
    let profile: BFDProfile = serde_json::from_value(read("BFDProfile", json!({}))).expect("a profile");
    assert_eq!(profile.spec, Default::default());
}
