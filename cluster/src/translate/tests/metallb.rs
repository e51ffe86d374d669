//! What `--metallb-compat` honours, and how both spellings get on while a cluster moves from one to the other.

use ferrogate_core::model::pool::Sharing;

use super::*;

/// The home of MetalLB's objects in these tests.
const HOME: &str = "metallb-system";

fn rules() -> Rules {
    let (namespace, metallb) = (NAMESPACE.to_owned(), Some(HOME.to_owned()));
    Rules { class: ClassPolicy::default(), namespace, metallb, secrets: true, source: Source::Directory }
}

fn compatible(text: &str) -> Arc<Snapshot> {
    let rules = rules();
    let mut translator = Translator::new(rules, None);
    feed(&mut translator, "f.yaml", text);
    translator.snapshot()
}

fn theirs(kind: &str, name: &str, spec: &str) -> String {
    let version = if kind == "BGPPeer" { "v1beta2" } else { "v1beta1" };
    format!(
        "---\napiVersion: metallb.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {HOME}}}\nspec: \
         {{{spec}}}\n"
    )
}

fn their_pool(name: &str, addresses: &str) -> String {
    theirs("IPAddressPool", name, &format!("addresses: [{addresses}]"))
}

/// Pools in force: name, whether it is MetalLB's, and its ranges.
fn pools(snapshot: &Snapshot) -> Vec<(String, bool, String)> {
    let shown = |pool: &Arc<Pool>| {
        let ranges: Vec<_> = pool.ranges.iter().map(ToString::to_string).collect();
        (pool.name.to_string(), pool.read_only, ranges.join(" "))
    };
    snapshot.pools.values().map(shown).collect()
}

fn requested(annotations: &str) -> Option<String> {
    let snapshot = compatible(&service(&format!(", annotations: {{{annotations}}}"), ""));
    let service = &snapshot.services[&ServiceKey::new("default", "web")];
    let request = service.load_balancer.clone().expect("served").request.expect("readable");
    request.pool.map(|pool| pool.to_string())
}

#[test]
fn objects_of_metallb_become_the_same_facts_as_ours() {
    let text =
        [their_pool("p", "192.0.2.0/28"), theirs("L2Advertisement", "l2", "ipAddressPools: [p], interfaces: [eth0]")];

    let snapshot = compatible(&text.concat());

    assert_eq!(problems(&snapshot), Vec::<String>::new());
    assert_eq!(pools(&snapshot), [("p".to_owned(), true, "192.0.2.0-192.0.2.15".to_owned())]);
    let advertisement = &snapshot.l2_advertisements[&ObjectKey::new(HOME, "l2")];
    assert!(advertisement.read_only && advertisement.pools.names.contains(&PoolName::from("p")));
}

#[test]
fn m_086_services_that_share_across_namespaces_keep_doing_so_in_a_pool_of_metallb() {
    let snapshot = compatible(&[their_pool("p", "192.0.2.0/28"), pool("q", "198.51.100.0/28")].concat());

    let sharing = |name: &str| snapshot.pools[&PoolName::from(name)].sharing;
    assert_eq!((sharing("p"), sharing("q")), (Sharing::AnyNamespace, Sharing::SameNamespace));
}

#[test]
fn without_the_switch_objects_and_annotations_of_metallb_are_nothing_but_told() {
    let metadata = ", annotations: {metallb.io/address-pool: p}";
    let snapshot = snapshot(&[their_pool("p", "192.0.2.0/28"), service(metadata, "")].join("---\n"));

    assert!(snapshot.pools.is_empty());
    assert!(problems(&snapshot)[0].contains("--metallb-compat"), "{:?}", problems(&snapshot));
    let service = &snapshot.services[&ServiceKey::new("default", "web")];
    assert_eq!(service.load_balancer.clone().unwrap().request.unwrap().pool, None);
}

#[test]
fn objects_of_metallb_outside_its_namespace_are_left_out() {
    let text = their_pool("p", "192.0.2.0/28").replace(HOME, "elsewhere");

    let snapshot = compatible(&text);

    assert!(snapshot.pools.is_empty());
    assert!(problems(&snapshot)[0].contains(HOME), "{:?}", problems(&snapshot));
}

#[test]
fn m_032_a_peer_of_the_older_version_is_read_with_the_fields_that_both_share() {
    let older = "---\napiVersion: metallb.io/v1beta1\nkind: BGPPeer\nmetadata: {name: p, namespace: metallb-system}\n\
                 spec: {myASN: 64500, peerASN: 64501, peerAddress: 192.0.2.1, peerPort: 0, holdTime: 30s, \
                 ebgpMultiHop: true, nodeSelectors: [{matchExpressions: [{key: rack, operator: In, values: [a]}]}]}\n";
    let newer = older.replace("v1beta1", "v1beta2").replace("peerPort: 0, ", "");
    let read = |text: &str| {
        let rules = rules();
        let value = documents(text).remove(0).value.unwrap();
        match super::read(value, &rules).remove(0) {
            Entry::Object(reading) => (reading.id, reading.fact, reading.problems),
            other => panic!("{other:?}"),
        }
    };

    assert_eq!(read(older), read(&newer));
}

#[test]
fn m_055_annotations_of_either_age_are_honoured_and_the_outdated_ones_told() {
    assert_eq!(requested("metallb.io/address-pool: a").as_deref(), Some("a"));
    let snapshot = compatible(&service(", annotations: {metallb.universe.tf/address-pool: b}", ""));

    let service = &snapshot.services[&ServiceKey::new("default", "web")];
    assert_eq!(service.load_balancer.clone().unwrap().request.unwrap().pool, Some("b".into()));
    let problem = snapshot.problems.values().flatten().next().expect("told");
    assert!(problem.fault.is_warning());
    assert_eq!(problem.fault.reason(), "deprecatedAnnotation");
    assert_eq!(
        problem.to_string(),
        "Service default/web: metadata.annotations[metallb.universe.tf/address-pool]: \
         metallb.universe.tf/address-pool is outdated; write ferrogate.io/address-pool"
    );
}

#[test]
fn m_056_of_two_names_of_one_annotation_the_newer_counts() {
    assert_eq!(requested("metallb.universe.tf/address-pool: c, metallb.io/address-pool: b").as_deref(), Some("b"));
    assert_eq!(requested("metallb.io/address-pool: b, ferrogate.io/address-pool: a").as_deref(), Some("a"));
    assert_eq!(requested("metallb.universe.tf/address-pool: c, metallb.io/address-pool: ''"), None);
}

#[test]
fn a_wish_under_any_name_is_named_by_it_when_it_cannot_be_read() {
    let snapshot = compatible(&service(", annotations: {metallb.io/loadBalancerIPs: 192.0.2.x}", ""));

    let service = &snapshot.services[&ServiceKey::new("default", "web")];
    let fault = service.load_balancer.clone().unwrap().request.unwrap_err().fault;
    assert!(fault.to_string().starts_with("metallb.io/loadBalancerIPs:"), "{fault}");
}

#[test]
fn the_pool_that_metallb_noted_is_a_fact_until_we_note_one() {
    let metadata = |ours: &str| format!(", annotations: {{metallb.io/ip-allocated-from-pool: a{ours}}}");
    let noted =
        |metadata: &str| compatible(&service(metadata, "")).services.values().next().unwrap().observed.pool.clone();

    assert_eq!(noted(&metadata("")), Some("a".into()));
    let of_another = service(&metadata(""), ", loadBalancerClass: example.com/other");
    assert_eq!(compatible(&of_another).services.values().next().unwrap().observed.pool, None);
    assert_eq!(noted(&metadata(", ferrogate.io/ip-allocated-from-pool: b")), Some("b".into()));
}

#[test]
fn a_copy_in_our_words_takes_the_place_of_metallbs_without_a_complaint() {
    let copy = [
        pool("p", "192.0.2.0/28"),
        "---\napiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: l2}\nspec: {}\n".to_owned(),
    ];
    let original = [their_pool("p", "192.0.2.0/28"), theirs("L2Advertisement", "l2", "ipAddressPools: [p]")];

    let both = compatible(&[original.concat(), copy.concat()].concat());

    assert_eq!(problems(&both), Vec::<String>::new());
    assert_eq!(pools(&both), [("p".to_owned(), false, "192.0.2.0-192.0.2.15".to_owned())]);
    assert_eq!(both.l2_advertisements.values().map(|one| one.read_only).collect::<Vec<_>>(), [false]);
}

#[test]
fn a_copy_that_goes_gives_metallbs_object_its_place_back() {
    // The same namespace too, so that nothing but the spelling tells them apart.
    let mut translator = Translator::new(Rules { namespace: HOME.to_owned(), ..rules() }, None);
    let ours = "---\napiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: l2}\nspec: {}\n";
    feed(&mut translator, "theirs.yaml", &theirs("L2Advertisement", "l2", "interfaces: [eth0]"));
    let standing = |translator: &mut Translator| {
        translator.snapshot().l2_advertisements.values().map(|one| one.read_only).collect::<Vec<_>>()
    };

    assert_eq!(standing(&mut translator), [true]);
    feed(&mut translator, "ours.yaml", ours);
    assert_eq!(standing(&mut translator), [false]);
    feed(&mut translator, "ours.yaml", "");
    assert_eq!(standing(&mut translator), [true]);
    feed(&mut translator, "ours.yaml", ours);
    feed(&mut translator, "theirs.yaml", "");
    assert_eq!(standing(&mut translator), [false]);
}

#[test]
fn a_pool_of_metallbs_keeps_the_addresses_that_no_pool_of_ours_has() {
    let aged = |text: String, year: &str| {
        text.replace("name:", &format!("creationTimestamp: '{year}-01-01T00:00:00Z', name:"))
    };
    let text = [
        aged(their_pool("old", "192.0.2.0/28"), "2020"),
        aged(pool("new", "192.0.2.4-192.0.2.7"), "2024"),
        their_pool("covered", "198.51.100.1-198.51.100.2"),
        pool("cover", "198.51.100.0/24"),
    ];

    let snapshot = compatible(&text.concat());

    let expected = [
        ("cover", false, "198.51.100.0-198.51.100.255"),
        ("new", false, "192.0.2.4-192.0.2.7"),
        ("old", true, "192.0.2.0-192.0.2.3 192.0.2.8-192.0.2.15"),
    ];
    assert_eq!(pools(&snapshot), expected.map(|(name, theirs, ranges)| (name.to_owned(), theirs, ranges.to_owned())));
    assert_eq!(problems(&snapshot).len(), 2, "{:#?}", problems(&snapshot));
}

#[test]
fn objects_of_metallb_have_no_more_than_metallb_gives_them() {
    let peer = "myASN: 64500, peerASN: 64501, peerAddress: 192.0.2.1, passive: true, role: peer";
    let text = [
        theirs("BGPPeer", "tor", peer),
        theirs("BGPAdvertisement", "all", "med: 7, communities: ['65000:1', 'large:1:2:3']"),
        theirs("BFDProfile", "fast", "echoMode: true"),
    ];

    let snapshot = compatible(&text.concat());

    let peer = &snapshot.bgp_peers[&ObjectKey::new(HOME, "tor")];
    assert!(!peer.passive && peer.role.is_none());
    let advertisement = &snapshot.bgp_advertisements[&ObjectKey::new(HOME, "all")];
    assert_eq!((advertisement.multi_exit_disc, advertisement.communities.len()), (None, 2));
    assert_eq!(snapshot.bfd_profiles.len(), 1);
    let said = problems(&snapshot);
    for field in ["spec.passive", "spec.role", "spec.med", "spec.echoMode"] {
        assert!(said.iter().any(|one| one.contains(&format!("{field}: is ignored"))), "{field}: {said:?}");
    }
}

#[test]
fn m_030_metallb_has_no_extended_communities() {
    for text in [
        theirs("BGPAdvertisement", "all", "communities: ['target:1:2']"),
        theirs("Community", "all", "communities: [{name: red, value: 'extended:0x0102030405060708'}]"),
    ] {
        let snapshot = compatible(&text);

        assert!(problems(&snapshot)[0].contains("is not valid: A:B with numbers up to 65535"), "{snapshot:?}");
        assert!(snapshot.bgp_advertisements.is_empty() && snapshot.communities.is_empty());
    }
}
