//! FRR: commands for `vtysh`, which go well with whatever else the router does.

use ferrogate_core::model::Family;

use crate::router_config::{Facts, PASSWORD, Text, Words, at_most};

/// As many paths as FRR is built with in Debian, and no more.
const MAX_PATHS: usize = 256;

/// The configuration.
pub fn config(facts: &Facts) -> String {
    let (name, ours) = (facts.name(), facts.our_asn);
    let mut text = Text::new(facts, "!", "FRR, for `vtysh -f FILE`", true);
    text.line("!");
    if let Some(bfd) = &facts.bfd {
        text.line("bfd");
        text.line(format!(" profile {name}"));
        text.line(format!("  detect-multiplier {}", bfd.multiplier));
        text.line(format!("  receive-interval {}", bfd.receive_ms));
        text.line(format!("  transmit-interval {}", bfd.transmit_ms));
        text.line_if(facts.multi_hop, format!("  minimum-ttl {}", bfd.minimum_ttl));
        text.line(" exit");
        text.line("exit");
        text.line("!");
    }
    for family in &facts.families {
        let list = format!("{} prefix-list {name}-{}", word(*family), family.lower());
        // What an earlier run let in goes. Until the list is there again, the route map that asks for it lets in nothing.
        text.line(format!("no {list}"));
        for (number, prefix) in facts.prefixes_of(*family).enumerate() {
            let sequence = 5 * (number + 1);
            text.line(format!("{list} seq {sequence} permit {prefix}{}", at_most(prefix)));
        }
    }
    text.line("!");
    for (number, family) in facts.families.iter().enumerate() {
        text.line(format!("route-map {name}-in permit {}", 10 * (number + 1)));
        text.line(format!(" match {} address prefix-list {name}-{}", word(*family), family.lower()));
        text.line("exit");
    }
    text.line(format!("route-map {name}-out deny 10"));
    text.line("exit");
    text.line("!");
    text.line(format!("router bgp {}", facts.router_asn));
    text.line(format!(" neighbor {name} peer-group"));
    text.line(format!(" neighbor {name} remote-as {ours}"));
    text.line_if(facts.has_password, format!(" neighbor {name} password {PASSWORD}"));
    text.line_if(facts.multi_hop, format!(" neighbor {name} ebgp-multihop"));
    if let Some(hops) = facts.ttl_security_hops {
        text.line(format!(" neighbor {name} ttl-security hops {hops}"));
    }
    text.line_if(facts.bfd.is_some(), format!(" neighbor {name} bfd"));
    text.line_if(facts.bfd.is_some(), format!(" neighbor {name} bfd profile {name}"));
    text.line_if(facts.graceful_restart, format!(" neighbor {name} graceful-restart-helper"));
    for neighbor in &facts.nodes {
        text.line(format!(" neighbor {} peer-group {name}", neighbor.address));
        text.line(format!(" neighbor {} description {}", neighbor.address, neighbor.node));
    }
    for family in [Family::V4, Family::V6] {
        let carried = facts.carries(family);
        if !carried && family == Family::V6 {
            continue;
        }
        text.line(" !");
        text.line(format!(" address-family {} unicast", family.lower()));
        if carried {
            text.line(format!("  neighbor {name} activate"));
            text.line(format!("  neighbor {name} route-map {name}-in in"));
            text.line(format!("  neighbor {name} route-map {name}-out out"));
            let ibgp = if facts.is_internal() { "ibgp " } else { "" };
            text.line(format!("  maximum-paths {ibgp}{}", facts.paths(MAX_PATHS)));
        } else {
            // It is there unless somebody says otherwise.
            text.line(format!("  no neighbor {name} activate"));
        }
        text.line(" exit-address-family");
    }
    text.line("exit");
    text.0
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ipv6",
    }
}
