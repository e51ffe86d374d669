//! FRR: zebra, bgpd and bfdd of one folder, asked by vtysh.

use std::{
    fmt::Write as _,
    net::IpAddr,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use ferrogate_core::model::Prefix;
use serde_json::Value;

use super::{Config, Neighbor, Route, Router, write};

const DAEMONS: &str = "/usr/lib/frr";

fn text(config: &Config) -> String {
    let mut text = String::from("log stdout debugging\nlog timestamp precision 6\n");
    // First, and no section is left by `exit`: a daemon that does not know it would leave its whole configuration by that.
    if let Some(interval) = config.neighbors.iter().find_map(|neighbor| neighbor.bfd_ms) {
        _ = writeln!(
            text,
            "bfd\n profile test\n  receive-interval {interval}\n  transmit-interval {interval}\n  detect-multiplier 3"
        );
    }
    _ = writeln!(text, "router bgp {}", config.asn);
    _ = writeln!(text, " bgp router-id {}", config.identifier);
    text += " no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n bgp log-neighbor-changes\n";
    text += " timers bgp 3 9\n bgp bestpath as-path multipath-relax\n";
    if config.neighbors.iter().any(|neighbor| neighbor.graceful_restart) {
        text += " bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n";
    }
    for Neighbor { address, asn, hold_time, local, .. } in &config.neighbors {
        _ = writeln!(
            text,
            " neighbor {address} remote-as {asn}\n neighbor {address} timers {} {hold_time}",
            hold_time / 3
        );
        _ = writeln!(text, " neighbor {address} update-source {local}\n neighbor {address} timers connect 1");
    }
    for neighbor in &config.neighbors {
        let Neighbor { address, .. } = neighbor;
        let mut add = |is_wanted: bool, words: &str| {
            if is_wanted {
                _ = writeln!(text, " neighbor {address} {words}");
            }
        };
        add(neighbor.passive, "passive");
        add(neighbor.ttl_security, "ttl-security hops 1");
        add(neighbor.multi_hop, "ebgp-multihop 8");
        add(neighbor.extended_next_hop, "capability extended-nexthop");
        add(neighbor.graceful_restart, "graceful-restart");
        add(neighbor.bfd_ms.is_some(), "bfd");
        add(neighbor.bfd_ms.is_some(), "bfd profile test");
        if let Some(password) = &neighbor.password {
            add(true, &format!("password {password}"));
        }
        text += &neighbor.extra;
    }
    for family in ["ipv4", "ipv6"] {
        _ = writeln!(text, " address-family {family} unicast\n  maximum-paths 8\n  maximum-paths ibgp 8");
        for Neighbor { address, .. } in &config.neighbors {
            _ = writeln!(text, "  neighbor {address} activate\n  neighbor {address} soft-reconfiguration inbound");
        }
        text += " exit-address-family\n";
    }
    text + &config.extra
}

pub(super) fn start(router: &mut Router<'_>, config: &Config) -> Result<()> {
    router.give_folder_to("frr")?;
    write(&router.path("frr.conf"), &text(config))?;
    for name in ["zebra", "bgpd", "bfdd"] {
        let mut daemon = super::program(&format!("{DAEMONS}/{name}"), name == "bfdd");
        daemon.args(["-A", "127.0.0.1", "-P", "0"]).arg("-f").arg(router.path("frr.conf"));
        daemon.arg("-i").arg(router.path(name)).arg("-z").arg(router.path("zserv"));
        daemon.arg("--vty_socket").arg(router.folder.path());
        match name {
            "bfdd" => _ = daemon.arg("--bfdctl").arg(router.path("bfdd.sock")),
            "bgpd" => _ = daemon.args(["-p", "179"]),
            _ => {}
        }
        router.spawn(name, daemon)?;
        if name == "zebra" {
            // Whoever does not find it at once looks again only after ten seconds.
            router.wait("zebra", || {
                let is_there = UnixStream::connect(router.path("zserv")).is_ok();
                Ok(if is_there { Ok(()) } else { Err("silence".to_owned()) })
            })?;
        }
    }
    router.wait("answer", || {
        let answers = |daemon: &str| vtysh(router).args(["-d", daemon, "-c", "show version"]).output();
        let is_ready =
            ["zebra", "bgpd", "bfdd"].iter().all(|daemon| answers(daemon).is_ok_and(|out| out.status.success()));
        let knows = is_ready && ask(router, "show bgp summary json").is_ok_and(|json| json.contains("peers"));
        Ok(if knows || (is_ready && config.neighbors.is_empty()) { Ok(()) } else { Err("silence".to_owned()) })
    })
}

pub(super) fn reconfigure(router: &mut Router<'_>, config: &Config) -> Result<()> {
    write(&router.path("frr.conf"), &text(config))?;
    let mut reload = vtysh(router);
    reload.arg("-f").arg(router.path("frr.conf"));
    router.run(&mut reload).map(drop)
}

fn vtysh(router: &Router<'_>) -> Command {
    let mut command = Command::new("vtysh");
    command.arg("--vty_socket").arg(router.folder.path()).stdin(Stdio::null());
    command
}

pub(super) fn ask(router: &Router<'_>, words: &str) -> Result<String> {
    router.run(vtysh(router).args(["-c", words]))
}

fn json(router: &Router<'_>, words: &str) -> Result<Value> {
    let answer = ask(router, words)?;
    serde_json::from_str(&answer).with_context(|| format!("{words}: {answer}"))
}

fn family(prefix: Prefix) -> &'static str {
    if prefix.is_ipv4() { "ipv4" } else { "ipv6" }
}

pub(super) fn route(router: &Router<'_>, prefix: Prefix) -> Result<Option<Route>> {
    let answer = json(router, &format!("show bgp {} unicast {prefix} json", family(prefix)))?;
    let Some(paths) = answer["paths"].as_array().filter(|paths| !paths.is_empty()) else { return Ok(None) };
    let used: Vec<&Value> = paths.iter().filter(|path| path["valid"] == true).collect();
    // Until it has looked at all paths it uses none.
    let Some(best) = used.iter().find(|path| path["bestpath"]["overall"] == true) else { return Ok(None) };
    let is_used = |path: &&&Value| path["bestpath"]["overall"] == true || path["multipath"] == true;
    let next_hops = used.iter().filter(is_used).flat_map(|path| path["nexthops"].as_array().into_iter().flatten());
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let list = |value: &Value| -> Vec<String> {
        let items = value["list"].as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    Ok(Some(Route {
        next_hops: next_hops.filter_map(|hop| hop["ip"].as_str()?.parse().ok()).collect(),
        as_path: best["aspath"]["segments"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|segment| segment["list"].as_array().into_iter().flatten())
            .filter_map(number)
            .collect(),
        local_pref: number(&best["locPrf"]).or(number(&best["localpref"])),
        multi_exit_disc: number(&best["metric"]),
        communities: list(&best["community"]),
        large_communities: list(&best["largeCommunity"]),
        extended_communities: best["extendedCommunity"]["string"]
            .as_str()
            .map(|text| text.split(' ').map(str::to_owned).collect())
            .unwrap_or_default(),
        stale: best["stale"] == true,
    }))
}

pub(super) fn count(router: &Router<'_>) -> Result<usize> {
    let mut count = 0;
    for family in ["ipv4", "ipv6"] {
        let answer = json(router, &format!("show bgp {family} unicast json"))?;
        count += answer["routes"].as_object().map_or(0, serde_json::Map::len);
    }
    Ok(count)
}

pub(super) fn is_established(router: &Router<'_>, neighbor: IpAddr) -> Result<bool> {
    let answer = json(router, &format!("show bgp neighbors {neighbor} json"))?;
    Ok(answer[neighbor.to_string()]["bgpState"] == "Established")
}
