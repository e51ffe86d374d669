//! `docs/metrics.md` names every metric of controller, speaker and webhook, and none that does not exist.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{collections::BTreeSet, fs};

use ferrogate_integration::workspace;

/// Where metrics are registered, and what their names begin with.
const SOURCES: [(&str, &str); 5] = [
    ("controller/src/metrics.rs", "ferrogate_controller"),
    ("speaker/src/metrics.rs", "ferrogate_speaker"),
    ("speaker/src/metrics/bgp.rs", "ferrogate_speaker"),
    ("speaker/src/metrics/bfd.rs", "ferrogate_speaker"),
    ("cli/src/webhook.rs", "ferrogate_webhook"),
];

fn read(path: &str) -> String {
    fs::read_to_string(workspace::root().join(path)).unwrap()
}

/// The first string literal of each call of `function`.
fn named<'a>(source: &'a str, function: &str) -> impl Iterator<Item = &'a str> {
    let calls = source.split(function).skip(1);
    calls.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
}

/// Every metric that is registered, without the ending that counters are given.
fn registered() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (path, prefix) in SOURCES {
        let source = read(path);
        all.extend(named(&source, "registry.register(").map(|name| format!("{prefix}_{name}")));
    }
    all
}

/// Every metric of ours that the page names.
fn documented() -> BTreeSet<String> {
    let page = read("docs/metrics.md");
    let words = page.split('`').filter(|word| word.starts_with("ferrogate_"));
    words.map(|word| word.strip_suffix("_total").unwrap_or(word).to_owned()).collect()
}

#[test]
fn every_metric_stands_on_the_page_and_the_page_names_no_other() {
    let registered = registered();

    assert!(registered.len() > 20, "{registered:?}");
    assert_eq!(documented(), registered);
}

#[test]
fn m_149_what_metallb_counts_of_pools_configuration_layer_2_and_sessions_has_a_counterpart() {
    let page = read("docs/metrics.md");
    let families = ["allocator_addresses", "allocator_ipv4_addresses", "allocator_ipv6_addresses"];
    let allocator = families.iter().flat_map(|family| [format!("{family}_total"), format!("{family}_in_use_total")]);
    let others = [
        "allocator_services_allocated_total",
        "k8s_client_updates_total",
        "k8s_client_update_errors_total",
        "k8s_client_config_loaded_bool",
        "k8s_client_config_stale_bool",
        "speaker_announced",
        "layer2_requests_received",
        "layer2_responses_sent",
        "layer2_gratuitous_sent",
        "bgp_session_up",
        "bgp_announced_prefixes_total",
        "bgp_pending_prefixes_total",
        "bgp_received_prefixes_total",
        "bgp_updates_total",
        "bgp_updates_total_received",
        "bgp_opens_sent",
        "bgp_opens_received",
        "bgp_notifications_sent",
        "bgp_keepalives_sent",
        "bgp_keepalives_received",
        "bgp_route_refresh_sent",
        "bgp_total_sent",
        "bgp_total_received",
        "bfd_session_up",
        "bfd_session_up_events",
        "bfd_session_down_events",
        "bfd_control_packet_input",
        "bfd_control_packet_output",
    ];

    for name in allocator.chain(others.map(str::to_owned)) {
        let row = page.lines().find(|line| line.contains(&format!("`metallb_{name}`")));
        assert!(row.is_some_and(|row| row.contains("`ferrogate_")), "{name} has no counterpart");
    }
}
