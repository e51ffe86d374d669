//! OPNsense: what to enter in the pages of its plugin os-frr.

use crate::router_config::{Facts, PASSWORD, Text, Words};

/// The configuration.
pub fn config(facts: &Facts) -> String {
    let name = facts.name();
    let mut text = Text::new(facts, "#", "OPNsense with the plugin os-frr: what to enter where", false);
    text.line("Routing > BGP > General");
    text.line("  Enable:         yes");
    text.line(format!("  BGP AS Number:  {}", facts.router_asn));
    text.line(format!("  Maximum Paths:  {} ({})", facts.paths(64), facts.kind()));
    text.line(format!(
        "# Remove the prefix lists {name}-ipv4 and {name}-ipv6 of an earlier run before you enter these:"
    ));
    for family in &facts.families {
        text.line("Routing > BGP > Prefix Lists");
        for (number, prefix) in facts.prefixes_of(*family).enumerate() {
            let longer =
                if prefix.prefix() < family.width() { format!(" le {}", family.width()) } else { String::new() };
            text.line(format!(
                "  {name}-{}  {family}  sequence {}  permit  {prefix}{longer}",
                family.lower(),
                10 * (number + 1)
            ));
        }
    }
    text.line("Routing > BGP > Route Maps");
    for (number, family) in facts.families.iter().enumerate() {
        text.line(format!("  {name}-in   permit  ID {}  Prefix List {name}-{}", 10 * (number + 1), family.lower()));
    }
    text.line(format!("  {name}-out  deny    ID 10"));
    if let Some(bfd) = &facts.bfd {
        text.line("Routing > BFD > General");
        text.line("  Enable:         yes");
        text.line(format!(
            "  # Timers to give each neighbour, where your version asks for them: transmit {} ms, receive {} ms, multiplier {}",
            bfd.transmit_ms, bfd.receive_ms, bfd.multiplier
        ));
    }
    for neighbor in &facts.nodes {
        text.line("Routing > BGP > Neighbors");
        text.line(format!("  Description:    {}", neighbor.node));
        text.line(format!("  Peer-IP:        {}", neighbor.address));
        text.line(format!("  Remote AS:      {}", facts.our_asn));
        text.line_if(facts.has_password, format!("  BGP MD5 Password: {PASSWORD}"));
        text.line_if(facts.multi_hop, "  Multi-Hop:      yes");
        if let Some(hops) = facts.ttl_security_hops {
            text.line(format!("  # The nodes ask for TTL security (RFC 5082), {hops} hops: in vtysh, `neighbor {} ttl-security hops {hops}`", neighbor.address));
        }
        text.line_if(facts.bfd.is_some(), "  BFD:            yes");
        text.line_if(facts.families.len() > 1, "  Multi-Protocol: yes");
        text.line(format!("  Route-Map In:   {name}-in"));
        text.line(format!("  Route-Map Out:  {name}-out"));
    }
    text.line_if(facts.graceful_restart, "# FRR helps a neighbour that restarts unless it is told not to.");
    text.0
}
