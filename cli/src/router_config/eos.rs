//! Arista EOS.

use ferrogate_core::model::Family;

use crate::router_config::{Facts, PASSWORD, Text, Words, at_most};

/// The most that every platform takes.
const MAX_PATHS: usize = 64;

/// The configuration.
pub fn config(facts: &Facts) -> String {
    let name = facts.name();
    let mut text = Text::new(facts, "!", "Arista EOS", false);
    // A list that is not there permits everything: nobody speaks until all lists and filters stand.
    text.line(format!("router bgp {}", facts.router_asn));
    text.line(format!("   neighbor {name} peer group"));
    text.line(format!("   neighbor {name} shutdown"));
    text.line("!");
    for family in &facts.families {
        let word = if *family == Family::V4 { "ip" } else { "ipv6" };
        // What an earlier run let in goes.
        text.line(format!("no {word} prefix-list {name}-{}", family.lower()));
        text.line(format!("{word} prefix-list {name}-{}", family.lower()));
        for (number, prefix) in facts.prefixes_of(*family).enumerate() {
            text.line(format!("   seq {} permit {prefix}{}", 10 * (number + 1), at_most(prefix)));
        }
        if facts.prefixes_of(*family).next().is_none() {
            let all = if *family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
            text.line(format!("   seq 10 deny {all} le {}", family.width()));
        }
    }
    text.line(format!("route-map {name}-out deny 10"));
    text.line("!");
    text.line(format!("router bgp {}", facts.router_asn));
    let paths = facts.paths(MAX_PATHS);
    text.line(format!("   maximum-paths {paths} ecmp {paths}"));
    text.line(format!("   neighbor {name} remote-as {}", facts.our_asn));
    text.line_if(facts.has_password, format!("   neighbor {name} password 0 {PASSWORD}"));
    text.line_if(facts.multi_hop, format!("   neighbor {name} ebgp-multihop 255"));
    if let Some(hops) = facts.ttl_security_hops {
        text.line(format!("   neighbor {name} ttl maximum-hops {hops}"));
    }
    if let Some(bfd) = &facts.bfd {
        text.line(format!("   neighbor {name} bfd"));
        text.line(format!(
            "   neighbor {name} bfd interval {} min-rx {} multiplier {}",
            bfd.transmit_ms, bfd.receive_ms, bfd.multiplier
        ));
    }
    text.line_if(facts.graceful_restart, format!("   neighbor {name} graceful-restart-helper"));
    for neighbor in &facts.nodes {
        text.line(format!("   neighbor {} peer group {name}", neighbor.address));
        text.line(format!("   neighbor {} description {}", neighbor.address, neighbor.node));
    }
    for family in [Family::V4, Family::V6] {
        text.line("   !");
        text.line(format!("   address-family {}", family.lower()));
        if facts.carries(family) {
            text.line(format!("      neighbor {name} prefix-list {name}-{} in", family.lower()));
            text.line(format!("      neighbor {name} route-map {name}-out out"));
            text.line(format!("      neighbor {name} activate"));
        } else {
            text.line(format!("      no neighbor {name} activate"));
        }
        text.line("      exit");
    }
    text.line("   !");
    text.line(format!("   no neighbor {name} shutdown"));
    text.0
}
