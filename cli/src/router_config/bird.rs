//! BIRD 2: a whole file, parts of which give way to what the router has already.

use crate::router_config::{Facts, PASSWORD, Text, Words};

/// As many as the kernel is given in one route.
const MAX_PATHS: usize = 64;

/// The configuration.
pub fn config(facts: &Facts) -> String {
    let name = facts.name().replace('-', "_");
    let mut text = Text::new(facts, "#", "BIRD 2, a whole file", true);
    text.line(
        "# Where the router has a `protocol device`, `direct`, `kernel` or `bfd` already, keep that one, and give its",
    );
    text.line("# kernel protocol the `merge paths` below.");
    match facts.identifier() {
        Some(identifier) => text.line(format!("router id {identifier};")),
        None => text.line("# Where the router has no IPv4 address, it needs a line such as: router id 192.0.2.1;"),
    }
    text.line("protocol device {}");
    // A next hop that is looked up, as with `multihop`, is found only by the routes of the interfaces. The kernel has them.
    text.line("protocol direct { ipv4; ipv6; }");
    text.line_if(facts.bfd.is_some(), "protocol bfd {}");
    for family in &facts.families {
        text.line("protocol kernel {");
        text.line(format!("  {} {{ import none; export where source != RTS_DEVICE; }};", family.lower()));
        text.line(format!("  merge paths yes limit {};", facts.paths(MAX_PATHS)));
        text.line("}");
    }
    for family in &facts.families {
        let sets: Vec<String> = facts
            .prefixes_of(*family)
            .map(|prefix| format!("{prefix}{{{},{}}}", prefix.prefix(), family.width()))
            .collect();
        text.line(format!("filter {name}_{} {{", family.lower()));
        text.line_if(!sets.is_empty(), format!("  if net ~ [ {} ] then accept;", sets.join(", ")));
        text.line("  reject;");
        text.line("}");
    }
    text.line(format!("template bgp {name} {{"));
    let port = if facts.port.get() == 179 { String::new() } else { format!(" port {}", facts.port) };
    // BFD over several hops asks for the address.
    text.line(format!("  local {}{port} as {};", facts.router, facts.router_asn));
    text.line(format!("  {}", reach(facts)));
    text.line_if(facts.ttl_security_hops.is_some(), "  ttl security on;");
    text.line_if(facts.has_password, format!("  password \"{PASSWORD}\";"));
    if let Some(bfd) = &facts.bfd {
        if facts.graceful_restart {
            // Otherwise it takes our going to AdminDown for a failure, and drops what it should keep over a restart.
            text.line("  # Keeps routes while a speaker restarts, but those of a node that dies for as long; without this line both go.");
            text.line("  bfd graceful;");
        }
        text.line(format!(
            "  bfd {{ min rx interval {} ms; min tx interval {} ms; multiplier {}; }};",
            bfd.receive_ms, bfd.transmit_ms, bfd.multiplier
        ));
    }
    let restart = if facts.graceful_restart { "aware" } else { "off" };
    text.line(format!("  graceful restart {restart};"));
    for family in &facts.families {
        text.line(format!("  {} {{ import filter {name}_{}; export none; }};", family.lower(), family.lower()));
    }
    text.line("}");
    for (number, neighbor) in facts.nodes.iter().enumerate() {
        text.line(format!("protocol bgp {name}_{} from {name} {{", number + 1));
        text.line(format!("  description \"{}\";", neighbor.node));
        text.line(format!("  neighbor {} as {};", neighbor.address, facts.our_asn));
        text.line("}");
    }
    text.0
}

/// How far away our nodes are. Unless told, BIRD takes those of its own AS for several hops away.
fn reach(facts: &Facts) -> String {
    match facts.ttl_security_hops {
        _ if facts.multi_hop => "multihop;".to_owned(),
        Some(hops) if facts.is_far() => format!("multihop {hops};"),
        _ => "direct; # take this line away where the nodes are not on a link of the router".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use ferrogate_core::model::Family;

    use super::*;
    use crate::router_config::tests::facts;

    #[test]
    fn a_name_that_is_no_symbol_of_bird_is_made_one() {
        let facts = Facts { peer: "tor-a.rack-1".to_owned(), ..facts() };

        let text = config(&facts);

        assert!(text.contains("template bgp ferrogate_tor_a_rack_1 {\n"), "{text}");
        assert!(text.contains(&format!("filter ferrogate_tor_a_rack_1_{} {{\n", Family::V4.lower())), "{text}");
    }
}
