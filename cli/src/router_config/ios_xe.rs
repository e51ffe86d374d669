//! Cisco IOS XE.

use ferrogate_core::model::Family;

use crate::router_config::{Facts, PASSWORD, Text, Words, at_most};

/// The most that `maximum-paths` takes.
const MAX_PATHS: usize = 32;

/// The configuration.
pub fn config(facts: &Facts) -> String {
    let (name, ours) = (facts.name(), facts.our_asn);
    let mut text = Text::new(facts, "!", "Cisco IOS XE", false);
    if let Some(bfd) = &facts.bfd {
        let hops = if facts.multi_hop { "multi-hop" } else { "single-hop" };
        text.line(format!("bfd-template {hops} {name}"));
        text.line(format!(
            " interval min-tx {} min-rx {} multiplier {}",
            bfd.transmit_ms, bfd.receive_ms, bfd.multiplier
        ));
        if facts.multi_hop {
            for neighbor in &facts.nodes {
                text.line(multi_hop_map(facts, neighbor.address, &name));
            }
        } else {
            text.line("! The interface that leads to the nodes:");
            text.line("interface REPLACE-WITH-THE-INTERFACE");
            text.line(format!(" bfd template {name}"));
        }
        text.line("!");
    }
    // A list that is not there permits everything: nobody speaks until all lists and filters stand.
    text.line(format!("router bgp {}", facts.router_asn));
    text.line(format!(" neighbor {name} peer-group"));
    text.line(format!(" neighbor {name} shutdown"));
    text.line("!");
    for family in &facts.families {
        let word = if *family == Family::V4 { "ip" } else { "ipv6" };
        let list = format!("{word} prefix-list {name}-{}", family.lower());
        // What an earlier run let in goes.
        text.line(format!("no {list}"));
        for (number, prefix) in facts.prefixes_of(*family).enumerate() {
            text.line(format!("{list} seq {} permit {prefix}{}", 5 * (number + 1), at_most(prefix)));
        }
        if facts.prefixes_of(*family).next().is_none() {
            let all = if *family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
            text.line(format!("{list} seq 5 deny {all} le {}", family.width()));
        }
    }
    text.line(format!("route-map {name}-out deny 10"));
    text.line("!");
    text.line(format!("router bgp {}", facts.router_asn));
    text.line_if(facts.graceful_restart, " bgp graceful-restart");
    text.line(format!(" neighbor {name} remote-as {ours}"));
    text.line_if(facts.has_password, format!(" neighbor {name} password {PASSWORD}"));
    text.line_if(facts.multi_hop, format!(" neighbor {name} ebgp-multihop 255"));
    if let Some(hops) = facts.ttl_security_hops {
        text.line(format!(" neighbor {name} ttl-security hops {hops}"));
    }
    let hops = if facts.multi_hop { " multi-hop" } else { "" };
    text.line_if(facts.bfd.is_some(), format!(" neighbor {name} fall-over bfd{hops}"));
    for neighbor in &facts.nodes {
        text.line(format!(" neighbor {} peer-group {name}", neighbor.address));
        text.line(format!(" neighbor {} description {}", neighbor.address, neighbor.node));
    }
    for family in &facts.families {
        text.line(" !");
        text.line(format!(" address-family {}", family.lower()));
        text.line(format!("  neighbor {name} prefix-list {name}-{} in", family.lower()));
        text.line(format!("  neighbor {name} route-map {name}-out out"));
        for neighbor in &facts.nodes {
            text.line(format!("  neighbor {} activate", neighbor.address));
        }
        let ibgp = if facts.is_internal() { "ibgp " } else { "" };
        text.line(format!("  maximum-paths {ibgp}{}", facts.paths(MAX_PATHS)));
        text.line(" exit-address-family");
    }
    if !facts.carries(Family::V4) {
        // It is there unless somebody says otherwise.
        text.line(" !");
        text.line(" address-family ipv4");
        for neighbor in &facts.nodes {
            text.line(format!("  no neighbor {} activate", neighbor.address));
        }
        text.line(" exit-address-family");
    }
    text.line(" !");
    text.line(format!(" no neighbor {name} shutdown"));
    text.0
}

/// Which template watches a node that is several hops away.
fn multi_hop_map(facts: &Facts, node: std::net::IpAddr, name: &str) -> String {
    let family = Family::of(node);
    format!("bfd map {} {node}/{width} {}/{width} {name}", family.lower(), facts.router, width = family.width())
}
