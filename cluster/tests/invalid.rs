//! Configuration that is wrong, a folder of it: each file breaks one rule and says, in its first lines, which object is
//! expected to be told of which field, and for what reason. Whatever else is in a file is in force.
//!
//! What is told of every object of a kind whatever it says (that BGP is not announced yet) is not repeated in the files.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Arc, LazyLock},
};

use ferrogate_cluster::{
    NAMESPACE,
    document::documents,
    objects::{Id, Reading},
    translate::{Entry, Rules, Source, Translator, read},
};
use ferrogate_core::{
    model::{ObjectRef, service::ClassPolicy},
    snapshot::{Fault, Origin, Problem, Snapshot},
};
use proptest::prelude::*;

/// Object, field and reason, as the head of a file expects them.
type Finding = (String, String, String);

/// One file: what it is expected to lead to, and its objects as values.
struct Example {
    name: String,
    expected: BTreeSet<Finding>,
    objects: Vec<serde_json::Value>,
}

fn rules() -> Rules {
    let namespace = NAMESPACE.to_owned();
    Rules { class: ClassPolicy::default(), namespace, metallb: None, secrets: true, source: Source::Directory }
}

static EXAMPLES: LazyLock<Vec<Example>> = LazyLock::new(examples);

fn examples() -> Vec<Example> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/invalid");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let example = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let expected = text.lines().filter_map(|line| line.strip_prefix("# expect: ")).map(|line| {
            let (object, rest) = line.rsplit_once(" spec.").or(line.rsplit_once(" metadata.")).expect(line);
            let (field, reason) = line[object.len()..].trim().rsplit_once(' ').expect(rest);
            (object.to_owned(), field.to_owned(), reason.to_owned())
        });
        Example {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            expected: expected.collect(),
            objects: documents(&text).into_iter().map(|document| document.value.unwrap()).collect(),
        }
    };
    paths.iter().map(|path| example(path)).collect()
}

fn snapshot<'a>(objects: impl Iterator<Item = &'a serde_json::Value>) -> Arc<Snapshot> {
    let mut translator = Translator::new(rules(), None);
    let readings: Vec<(Origin, Reading)> = objects
        .enumerate()
        .map(|(number, object)| {
            let Some(Entry::Object(reading)) = read(object.clone(), translator.rules()).pop() else {
                panic!("{object} is no object of ours")
            };
            (Origin::File { path: "all.yaml".to_owned(), document: number + 1 }, reading)
        })
        .collect();
    translator.replace("all.yaml", readings, |_| false);
    translator.snapshot()
}

fn problems(snapshot: &Snapshot) -> impl Iterator<Item = &Problem> {
    snapshot.problems.values().flatten()
}

fn finding(problem: &Problem) -> Finding {
    let ObjectRef { kind, name, .. } = problem.object.as_ref().expect("an object");
    (format!("{kind} {name}"), problem.field.clone(), problem.fault.reason().to_owned())
}

/// Objects that stand, of every kind.
fn standing(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    all.extend(snapshot.pools.iter().map(|(name, one)| (format!("IPAddressPool {name}"), format!("{one:?}"))));
    let mut add = |kind: &str, key: &ferrogate_core::model::ObjectKey, form: String| {
        all.insert(format!("{kind} {}", key.name), form);
    };
    snapshot.l2_advertisements.iter().for_each(|(key, one)| add("L2Advertisement", key, format!("{one:?}")));
    snapshot.bgp_advertisements.iter().for_each(|(key, one)| add("BGPAdvertisement", key, format!("{one:?}")));
    snapshot.bgp_peers.iter().for_each(|(key, one)| add("BGPPeer", key, format!("{one:?}")));
    snapshot.bfd_profiles.iter().for_each(|(key, one)| add("BFDProfile", key, format!("{one:?}")));
    snapshot.communities.iter().for_each(|(key, one)| add("Community", key, format!("{one:?}")));
    all
}

/// Checks every example of one item.
fn check(item: &str) {
    let of_item: Vec<&Example> = EXAMPLES.iter().filter(|example| example.name.starts_with(item)).collect();
    assert!(!of_item.is_empty(), "{item}");
    for Example { name, expected, objects } in of_item {
        let snapshot = snapshot(objects.iter());

        assert_eq!(problems(&snapshot).map(finding).collect::<BTreeSet<_>>(), *expected, "{name}");
        let stands = standing(&snapshot);
        for object in objects {
            let called = called(object);
            let of_it: Vec<&Problem> = problems(&snapshot).filter(|problem| finding(problem).0 == called).collect();
            let is_left_out = of_it.iter().any(|problem| !problem.fault.is_warning());
            // An advertisement that cannot stand for a pool still stands for others.
            let stands_in_part = of_it.iter().all(|problem| {
                use Fault::{AggregateTooWide, EchoTowardsIpv6, LocalPrefConflict};
                matches!(problem.fault, AggregateTooWide { .. } | EchoTowardsIpv6 { .. } | LocalPrefConflict { .. })
            });
            assert_eq!(stands.contains_key(&called), !is_left_out || stands_in_part, "{name}: {called}");
        }
    }
}

macro_rules! items {
    ($(fn $test:ident() { $item:literal })*) => {
        $(#[test]
        fn $test() {
            check($item);
        })*

        #[test]
        fn every_example_is_looked_at() {
            for example in &*EXAMPLES {
                assert!([$($item),*].iter().any(|item| example.name.starts_with(item)), "{}", example.name);
            }
        }
    };
}

items! {
    fn m_005_a_pool_without_addresses_is_left_out_and_told_so() { "m_005" }
    fn m_006_what_is_no_prefix_and_no_range_is_named() { "m_006" }
    fn m_008_a_pool_that_overlaps_is_named_with_its_entry() { "m_008" }
    fn m_010_whatever_stands_twice_or_cannot_be_in_a_selector_is_named() { "m_010" }
    fn m_011_configuration_of_another_namespace_is_left_out() { "m_011" }
    fn m_012_a_length_that_no_prefix_has_is_named() { "m_012" }
    fn m_013_an_aggregate_that_reaches_outside_an_entry_of_its_pool_is_refused() { "m_013" }
    fn m_014_choosing_services_and_bundling_them_is_refused() { "m_014" }
    fn m_015_the_later_of_two_local_preferences_of_one_pool_is_refused() { "m_015" }
    fn m_017_two_local_preferences_are_refused_where_one_family_has_one_length() { "m_017" }
    fn m_018_a_peer_with_no_as_or_two_is_refused() { "m_018" }
    fn m_019_a_peer_with_no_place_or_two_is_refused() { "m_019" }
    fn m_020_a_peer_that_cannot_be_reached_is_refused() { "m_020" }
    fn m_021_timers_that_cannot_be_are_refused() { "m_021" }
    fn m_023_connect_times_that_cannot_be_are_refused() { "m_023" }
    fn m_025_ports_that_cannot_be_are_refused() { "m_025" }
    fn m_026_bfd_settings_outside_their_ranges_are_refused() { "m_026" }
    fn m_028_a_profile_or_secret_that_is_missing_is_a_warning() { "m_028" }
    fn m_029_an_alias_that_is_missing_is_a_warning() { "m_029" }
    fn m_030_a_community_that_is_none_is_refused() { "m_030" }
    fn m_031_an_alias_that_is_given_twice_is_refused() { "m_031" }
    fn m_033_echo_towards_a_peer_that_gets_ipv6_is_refused() { "m_033" }
    fn m_034_two_peers_in_one_place_on_one_node_are_refused() { "m_034" }
    fn m_035_an_outdated_field_hides_no_mistake() { "m_035" }
}

fn called(object: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

proptest! {
    #[test]
    fn m_036_an_object_that_is_left_out_changes_nothing_for_any_other(
        chosen in proptest::collection::vec(any::<bool>(), 128),
        gone in any::<prop::sample::Index>(),
    ) {
        let all = EXAMPLES.iter().flat_map(|example| &example.objects);
        let kept: Vec<_> = all.zip(chosen.iter().cycle()).filter(|(_, chosen)| **chosen).map(|(one, _)| one).collect();
        let with = snapshot(kept.iter().copied());
        let stands = standing(&with);
        let left_out: Vec<&serde_json::Value> =
            kept.iter().copied().filter(|object| !stands.contains_key(&called(object))).collect();
        prop_assume!(!left_out.is_empty());
        let gone = left_out[gone.index(left_out.len())];

        let without = snapshot(kept.iter().copied().filter(|object| *object != gone));

        prop_assert_eq!(&standing(&without), &stands);
        let id = Id::of(&reference(gone));
        let others = |snapshot: &Snapshot| -> BTreeSet<Finding> {
            let problems = problems(snapshot).filter(|problem| problem.object.as_ref().and_then(Id::of) != id);
            problems.map(finding).collect()
        };
        prop_assert_eq!(others(&with), others(&without));
    }
}

fn reference(object: &serde_json::Value) -> ObjectRef {
    let Some(Entry::Object(reading)) = read(object.clone(), &rules()).pop() else { panic!("{object}") };
    reading.id.object()
}
