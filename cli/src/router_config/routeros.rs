//! MikroTik RouterOS 7.

use ferrogate_core::model::Family;

use crate::router_config::{Facts, PASSWORD, Text, Words};

/// The configuration.
pub fn config(facts: &Facts) -> String {
    let name = facts.name();
    let mut text = Text::new(facts, "#", "MikroTik RouterOS 7", false);
    text.line(
        "# See that your version balances over equal BGP routes; one that does not uses one node and keeps the others",
    );
    text.line("# in reserve.");
    text.line_if(
        facts.graceful_restart,
        "# See that your version keeps routes of a neighbour that restarts (RFC 4724).",
    );
    text.line("/routing filter rule");
    // What an earlier run let in goes: rules are added behind those that are there, so behind its `reject` too.
    for direction in ["in", "out"] {
        text.line(format!("remove [find chain=\"{name}-{direction}\"]"));
    }
    for prefix in &facts.prefixes {
        let rule = format!("if (dst in {prefix} && dst-len >= {}) {{ accept }}", prefix.prefix());
        text.line(format!("add chain={name}-in rule=\"{rule}\""));
    }
    text.line(format!("add chain={name}-in rule=\"reject\""));
    text.line(format!("add chain={name}-out rule=\"reject\""));
    if let Some(bfd) = &facts.bfd {
        text.line("/routing bfd configuration");
        for neighbor in &facts.nodes {
            let address = neighbor.address;
            let width = Family::of(address).width();
            text.line(format!(
                "add interfaces=all addresses={address}/{width} min-tx={}ms min-rx={}ms multiplier={}",
                bfd.transmit_ms, bfd.receive_ms, bfd.multiplier
            ));
        }
    }
    text.line("/routing bgp connection");
    let families: Vec<&str> =
        facts.families.iter().map(|family| if *family == Family::V4 { "ip" } else { "ipv6" }).collect();
    for (number, neighbor) in facts.nodes.iter().enumerate() {
        let mut line = format!(
            "add name={name}-{} comment={} as={} local.role={} remote.address={} remote.as={} address-families={} \
             input.filter={name}-in output.filter-chain={name}-out",
            number + 1,
            neighbor.node,
            facts.router_asn,
            facts.kind(),
            neighbor.address,
            facts.our_asn,
            families.join(","),
        );
        let options = [
            (facts.multi_hop || facts.is_far(), " multihop=yes".to_owned()),
            (facts.ttl_security_hops.is_some(), " local.ttl=255".to_owned()),
            (facts.bfd.is_some(), " use-bfd=yes".to_owned()),
            (facts.has_password, format!(" tcp-md5-key=\"{PASSWORD}\"")),
            (facts.port.get() != 179, format!(" local.port={}", facts.port)),
        ];
        line.extend(options.into_iter().filter(|(is_so, _)| *is_so).map(|(_, option)| option));
        text.line(line);
    }
    text.0
}
