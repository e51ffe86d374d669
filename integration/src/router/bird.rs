//! BIRD 2, asked by birdc.

use std::{fmt::Write as _, net::IpAddr, process::Command};

use anyhow::{Context, Result};
use ferrogate_core::model::Prefix;

use super::{Config, Neighbor, Route, Router, write};

fn name(address: IpAddr) -> String {
    let plain: String =
        address.to_string().chars().map(|sign| if sign.is_ascii_alphanumeric() { sign } else { '_' }).collect();
    format!("s_{plain}")
}

fn text(config: &Config, log: &str) -> String {
    let mut text = format!(
        "log \"{log}\" all;\ntimeformat log iso long us;\nrouter id {};\nprotocol device {{ }}\nprotocol direct {{ ipv4; ipv6; \
         interface \"eth*\"; }}\n",
        config.identifier
    );
    for family in ["ipv4", "ipv6"] {
        _ = writeln!(
            text,
            "protocol kernel {{ {family} {{ export filter {{ if source = RTS_BGP then accept; reject; }}; }}; merge paths on; }}"
        );
    }
    if let Some(interval) = config.neighbors.iter().find_map(|neighbor| neighbor.bfd_ms) {
        let options = format!(
            "min rx interval {interval} ms; min tx interval {interval} ms; idle tx interval 1 s; multiplier 3;"
        );
        _ = writeln!(text, "protocol bfd {{ interface \"eth*\" {{ {options} }}; multihop {{ {options} }}; }}");
    }
    for neighbor in &config.neighbors {
        let Neighbor { address, local, asn, hold_time, extra, .. } = neighbor;
        _ = write!(
            text,
            "protocol bgp {} {{ local {local} as {}; neighbor {address} as {asn}; hold time {hold_time}; error wait time \
             1,2; connect retry time 1; connect delay time 1; ",
            name(*address),
            config.asn
        );
        let mut add = |is_wanted: bool, words: &str| {
            if is_wanted {
                text += words;
            }
        };
        add(true, if neighbor.multi_hop { "multihop 8; " } else { "direct; " });
        add(neighbor.passive, "passive on; ");
        add(neighbor.ttl_security, "ttl security on; ");
        add(true, if neighbor.graceful_restart { "graceful restart on; " } else { "graceful restart off; " });
        add(neighbor.bfd_ms.is_some(), "bfd on; ");
        if let Some(password) = &neighbor.password {
            add(true, &format!("password \"{password}\"; "));
        }
        add(true, extra);
        // Static ones are those of a test.
        let own = "export where source = RTS_STATIC; ";
        let more = if neighbor.extended_next_hop { "extended next hop on; " } else { "" };
        _ = writeln!(text, "ipv4 {{ import all; {own}{more}}}; ipv6 {{ import all; {own}}}; }}");
    }
    text + &config.extra
}

fn configuration(router: &Router<'_>, config: &Config) -> String {
    text(config, &router.path("log").display().to_string())
}

pub(super) fn start(router: &mut Router<'_>, config: &Config) -> Result<()> {
    write(&router.path("bird.conf"), &configuration(router, config))?;
    let mut bird = super::program("/usr/sbin/bird", config.neighbors.iter().any(|neighbor| neighbor.bfd_ms.is_some()));
    bird.arg("-f").arg("-c").arg(router.path("bird.conf")).arg("-s").arg(router.path("ctl"));
    bird.arg("-P").arg(router.path("pid"));
    router.spawn("bird", bird)?;
    router.wait("answer", || {
        Ok(if ask(router, "show status").is_ok_and(|text| text.contains("Daemon is up")) {
            Ok(())
        } else {
            Err("silence".to_owned())
        })
    })
}

pub(super) fn reconfigure(router: &mut Router<'_>, config: &Config) -> Result<()> {
    write(&router.path("bird.conf"), &configuration(router, config))?;
    ask(router, "configure").map(drop)
}

pub(super) fn ask(router: &Router<'_>, words: &str) -> Result<String> {
    let mut birdc = Command::new("/usr/sbin/birdc");
    birdc.arg("-s").arg(router.path("ctl")).args(words.split(' '));
    router.run(&mut birdc)
}

pub(super) fn route(router: &Router<'_>, prefix: Prefix) -> Result<Option<Route>> {
    let table = if prefix.is_ipv4() { "master4" } else { "master6" };
    let mut birdc = Command::new("/usr/sbin/birdc");
    birdc.arg("-s").arg(router.path("ctl")).args(["show", "route", "for", &prefix.to_string(), "table", table, "all"]);
    // It fails where there is none.
    let output = router.namespace.run(|| birdc.output())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some((protocol, mut route)) = parse(&text, prefix) else { return Ok(None) };
    // It does not mark routes themselves.
    let protocol = ask(router, &format!("show protocols all {protocol}"))?;
    route.stale = protocol.contains("Neighbor graceful restart active");
    Ok(Some(route))
}

/// The best route and its protocol, with the next hops of all. A line that begins with the prefix or with blanks and a protocol begins a
/// route; its attributes stand below.
fn parse(text: &str, prefix: Prefix) -> Option<(String, Route)> {
    let start = text.lines().position(|line| line.starts_with(&prefix.to_string()))?;
    let mut routes: Vec<Route> = Vec::new();
    let mut protocol = None;
    for line in text.lines().skip(start) {
        if let Some((_, origin)) = line.split_once("unicast [") {
            protocol = protocol.or(origin.split(' ').next().map(str::to_owned));
            routes.push(Route::default());
            continue;
        }
        let Some(route) = routes.last_mut() else { continue };
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("via ") {
            route.next_hops.extend(rest.split(' ').next().and_then(|hop| hop.parse::<IpAddr>().ok()));
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        let words = |value: &str| -> Vec<String> {
            let inner = value.trim().trim_start_matches('(').trim_end_matches(')');
            let all = inner.split(") (").filter(|word| !word.is_empty());
            all.map(|word| word.replace(", ", ":").replace(',', ":")).collect()
        };
        match key {
            "BGP.as_path" => route.as_path = value.split_whitespace().filter_map(|asn| asn.parse().ok()).collect(),
            "BGP.local_pref" => route.local_pref = value.trim().parse().ok(),
            "BGP.med" => route.multi_exit_disc = value.trim().parse().ok(),
            "BGP.community" => route.communities = words(value),
            "BGP.large_community" => route.large_communities = words(value),
            "BGP.ext_community" => route.extended_communities = words(value),
            _ => {}
        }
    }
    let mut best = routes.first()?.clone();
    best.next_hops = routes.into_iter().flat_map(|route| route.next_hops).collect();
    Some((protocol?, best))
}

pub(super) fn count(router: &Router<'_>) -> Result<usize> {
    let answer = ask(router, "show route count where source = RTS_BGP")?;
    // The total comes last, where there is more than one table.
    let total = answer.lines().rfind(|line| line.starts_with("Total:") || line.contains(" of "));
    let total = total.with_context(|| format!("no count in {answer}"))?;
    let number = total.trim_start_matches("Total:").trim().split(' ').next().and_then(|count| count.parse().ok());
    number.with_context(|| format!("no count in {answer}"))
}

pub(super) fn is_established(router: &Router<'_>, neighbor: IpAddr) -> Result<bool> {
    Ok(ask(router, &format!("show protocols {}", name(neighbor)))?.contains("Established"))
}
