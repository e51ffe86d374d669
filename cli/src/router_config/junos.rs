//! Junos: `set` commands.

use ferrogate_core::model::Family;

use crate::router_config::{Facts, PASSWORD, Text, Words};

/// The configuration.
pub fn config(facts: &Facts) -> String {
    let name = facts.name();
    let mut text = Text::new(facts, "#", "Junos, for `load set terminal`", false);
    // What an earlier run let in goes, in the same commit.
    text.line(format!("delete policy-options policy-statement {name}-in"));
    let policy = format!("set policy-options policy-statement {name}");
    for family in &facts.families {
        if facts.prefixes_of(*family).next().is_none() {
            // A term without a route filter matches everything.
            continue;
        }
        let term = format!("{policy}-in term {}", family.lower());
        for prefix in facts.prefixes_of(*family) {
            text.line(format!("{term} from route-filter {prefix} orlonger"));
        }
        text.line(format!("{term} then accept"));
    }
    text.line(format!("{policy}-in term rest then reject"));
    text.line(format!("{policy}-out term all then reject"));
    text.line(format!("{policy}-ecmp then load-balance per-packet"));
    text.line(format!("set routing-options forwarding-table export {name}-ecmp"));
    let group = format!("set protocols bgp group {name}");
    // A change of the AS of the whole router would reset every other session.
    text.line("# Only where the router has no AS number of its own yet:");
    text.line(format!("# set routing-options autonomous-system {}", facts.router_asn));
    text.line(format!("{group} local-as {}", facts.router_asn));
    text.line(format!("{group} type {}", if facts.is_internal() { "internal" } else { "external" }));
    text.line_if(!facts.is_internal(), format!("{group} peer-as {}", facts.our_asn));
    text.line(format!("{group} import {name}-in"));
    text.line(format!("{group} export {name}-out"));
    for family in &facts.families {
        let inet = if *family == Family::V4 { "inet" } else { "inet6" };
        text.line(format!("{group} family {inet} unicast"));
    }
    text.line(format!("{group} multipath"));
    text.line_if(facts.multi_hop, format!("{group} multihop ttl 255"));
    if facts.ttl_security_hops.is_some() {
        text.line("# A firewall filter must refuse what comes from further away; this is what the nodes ask for.");
        text.line(format!("{group} {}ttl 255", if facts.is_far() { "multihop " } else { "" }));
    }
    text.line_if(facts.has_password, format!("{group} authentication-key \"{PASSWORD}\""));
    if let Some(bfd) = &facts.bfd {
        let liveness = format!("{group} bfd-liveness-detection");
        text.line(format!("{liveness} transmit-interval minimum-interval {}", bfd.transmit_ms));
        text.line(format!("{liveness} minimum-receive-interval {}", bfd.receive_ms));
        text.line(format!("{liveness} multiplier {}", bfd.multiplier));
    }
    text.line_if(facts.graceful_restart, "# Junos helps a neighbour that restarts unless it is told not to.");
    for neighbor in &facts.nodes {
        text.line(format!("{group} neighbor {} description {}", neighbor.address, neighbor.node));
    }
    text.0
}
