//! VyOS 1.4: `set` commands.

use ferrogate_core::model::Family;

use crate::router_config::{Facts, PASSWORD, Text, Words};

/// As many as FRR in VyOS takes.
const MAX_PATHS: usize = 256;

/// The configuration.
pub fn config(facts: &Facts) -> String {
    let name = facts.name();
    let mut text = Text::new(facts, "#", "VyOS 1.4 and later, in configuration mode", false);
    for family in &facts.families {
        let kind = if *family == Family::V4 { "prefix-list" } else { "prefix-list6" };
        // What an earlier run let in goes, in the same commit.
        text.line(format!("delete policy {kind} {name}-{}", family.lower()));
        let list = format!("set policy {kind} {name}-{}", family.lower());
        for (number, prefix) in facts.prefixes_of(*family).enumerate() {
            let rule = format!("{list} rule {}", 5 * (number + 1));
            text.line(format!("{rule} action permit"));
            text.line(format!("{rule} prefix {prefix}"));
            text.line_if(prefix.prefix() < family.width(), format!("{rule} le {}", family.width()));
        }
        if facts.prefixes_of(*family).next().is_none() {
            let all = if *family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
            text.line(format!("{list} rule 5 action deny"));
            text.line(format!("{list} rule 5 prefix {all}"));
            text.line(format!("{list} rule 5 le {}", family.width()));
        }
    }
    text.line(format!("set policy route-map {name}-out rule 10 action deny"));
    if let Some(bfd) = &facts.bfd {
        let profile = format!("set protocols bfd profile {name}");
        text.line(format!("{profile} interval transmit {}", bfd.transmit_ms));
        text.line(format!("{profile} interval receive {}", bfd.receive_ms));
        text.line(format!("{profile} interval multiplier {}", bfd.multiplier));
    }
    text.line(format!("set protocols bgp system-as {}", facts.router_asn));
    let group = format!("set protocols bgp peer-group {name}");
    text.line(format!("{group} remote-as {}", facts.our_asn));
    text.line_if(facts.has_password, format!("{group} password {PASSWORD}"));
    text.line_if(facts.multi_hop, format!("{group} ebgp-multihop 255"));
    if let Some(hops) = facts.ttl_security_hops {
        text.line(format!("{group} ttl-security hops {hops}"));
    }
    text.line_if(facts.bfd.is_some(), format!("{group} bfd profile {name}"));
    text.line_if(facts.graceful_restart, format!("{group} graceful-restart restart-helper"));
    for family in &facts.families {
        let carried = format!("{group} address-family {}-unicast", family.lower());
        text.line(format!("{carried} prefix-list import {name}-{}", family.lower()));
        text.line(format!("{carried} route-map export {name}-out"));
        let paths = facts.paths(MAX_PATHS);
        let all = format!("set protocols bgp address-family {}-unicast", family.lower());
        text.line(format!("{all} maximum-paths {} {paths}", facts.kind()));
    }
    for neighbor in &facts.nodes {
        text.line(format!("set protocols bgp neighbor {} peer-group {name}", neighbor.address));
        text.line(format!("set protocols bgp neighbor {} description {}", neighbor.address, neighbor.node));
    }
    text.0
}
