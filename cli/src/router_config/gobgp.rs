//! GoBGP: a whole file of TOML. Policies name our nodes, so that other neighbours in the same file are left alone.

use ferrogate_core::model::{Family, Prefix};

use crate::router_config::{Facts, PASSWORD, Text, Words};

/// The configuration.
pub fn config(facts: &Facts) -> String {
    let name = facts.name();
    let mut text = Text::new(facts, "#", "GoBGP, a whole file for `gobgpd -f FILE`", true);
    text.line_if(facts.bfd.is_some(), "# GoBGP speaks no BFD: use a BGPPeer without bfdProfile for it.");
    global(facts, &name, &mut text);
    sets(facts, &name, &mut text);
    policies(facts, &name, &mut text);
    for neighbor in &facts.nodes {
        text.line("[[neighbors]]");
        text.line("  [neighbors.config]");
        text.line(format!("    neighbor-address = \"{}\"", neighbor.address));
        text.line(format!("    peer-as = {}", facts.our_asn));
        text.line(format!("    description = \"{}\"", neighbor.node));
        text.line_if(facts.has_password, format!("    auth-password = \"{PASSWORD}\""));
        if facts.multi_hop {
            text.line("  [neighbors.ebgp-multihop.config]");
            text.line("    enabled = true");
            text.line("    multihop-ttl = 255");
        }
        if let Some(hops) = facts.ttl_security_hops {
            text.line("  [neighbors.ttl-security.config]");
            text.line("    enabled = true");
            text.line(format!("    ttl-min = {}", 256 - u16::from(hops.get())));
        }
        if facts.graceful_restart {
            text.line("  [neighbors.graceful-restart.config]");
            text.line("    enabled = true");
            text.line("    helper-only = true");
            text.line("    restart-time = 120");
        }
        for family in &facts.families {
            text.line("  [[neighbors.afi-safis]]");
            text.line("    [neighbors.afi-safis.config]");
            text.line(format!("      afi-safi-name = \"{}-unicast\"", family.lower()));
            if facts.graceful_restart {
                text.line("    [neighbors.afi-safis.mp-graceful-restart.config]");
                text.line("      enabled = true");
            }
        }
    }
    text.0
}

fn global(facts: &Facts, name: &str, text: &mut Text) {
    text.line("[global.config]");
    text.line(format!("  as = {}", facts.router_asn));
    match facts.identifier() {
        Some(identifier) => text.line(format!("  router-id = \"{identifier}\"")),
        None => text.line("  router-id = \"192.0.2.1\" # replace it with an IPv4 address of the router"),
    }
    text.line(format!("  port = {}", facts.port));
    text.line("[global.use-multiple-paths.config]");
    text.line("  enabled = true");
    text.line("[global.apply-policy.config]");
    text.line(format!("  import-policy-list = [\"{name}-in\"]"));
    text.line(format!("  export-policy-list = [\"{name}-out\"]"));
}

fn sets(facts: &Facts, name: &str, text: &mut Text) {
    for family in lists(facts) {
        text.line("[[defined-sets.prefix-sets]]");
        text.line(format!("  prefix-set-name = \"{name}-{}\"", family.lower()));
        for prefix in facts.prefixes_of(family) {
            text.line("  [[defined-sets.prefix-sets.prefix-list]]");
            text.line(format!("    ip-prefix = \"{prefix}\""));
            text.line(format!("    masklength-range = \"{}..{}\"", Prefix::prefix(prefix), family.width()));
        }
    }
    text.line("[[defined-sets.neighbor-sets]]");
    text.line(format!("  neighbor-set-name = \"{name}\""));
    let nodes: Vec<String> = facts.nodes.iter().map(|neighbor| format!("\"{}\"", neighbor.address)).collect();
    text.line(format!("  neighbor-info-list = [{}]", nodes.join(", ")));
}

/// The families of which anything may come; a set must not be empty.
fn lists(facts: &Facts) -> impl Iterator<Item = Family> {
    facts.families.iter().copied().filter(|family| facts.prefixes_of(*family).next().is_some())
}

fn policies(facts: &Facts, name: &str, text: &mut Text) {
    text.line("[[policy-definitions]]");
    text.line(format!("  name = \"{name}-in\""));
    for family in lists(facts) {
        statement(name, &format!("in-{}", family.lower()), text);
        text.line("    [policy-definitions.statements.conditions.match-prefix-set]");
        text.line(format!("      prefix-set = \"{name}-{}\"", family.lower()));
        text.line("    [policy-definitions.statements.actions]");
        text.line("      route-disposition = \"accept-route\"");
    }
    for (policy, direction) in [(None, "in"), (Some("out"), "out")] {
        if let Some(policy) = policy {
            text.line("[[policy-definitions]]");
            text.line(format!("  name = \"{name}-{policy}\""));
        }
        statement(name, &format!("{direction}-rest"), text);
        text.line("    [policy-definitions.statements.actions]");
        text.line("      route-disposition = \"reject-route\"");
    }
}

/// The beginning of a statement about routes from or to our nodes.
fn statement(name: &str, suffix: &str, text: &mut Text) {
    text.line("  [[policy-definitions.statements]]");
    text.line(format!("    name = \"{name}-{suffix}\""));
    text.line("    [policy-definitions.statements.conditions.match-neighbor-set]");
    text.line(format!("      neighbor-set = \"{name}\""));
}
