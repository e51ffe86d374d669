//! GoBGP, asked by gobgp.

use std::{fmt::Write as _, net::IpAddr, process::Command};

use anyhow::{Context, Result};
use ferrogate_core::model::Prefix;
use serde_json::Value;

use super::{Config, Neighbor, Route, Router, write};

/// Where its API listens, on the loopback of its namespace.
const API: &str = "50051";

fn text(config: &Config) -> String {
    let mut text = format!("[global.config]\n  as = {}\n  router-id = \"{}\"\n", config.asn, config.identifier);
    for neighbor in &config.neighbors {
        let Neighbor { address, local, asn, hold_time, passive, .. } = neighbor;
        _ = writeln!(
            text,
            "[[neighbors]]\n  [neighbors.config]\n    neighbor-address = \"{address}\"\n    peer-as = {asn}"
        );
        if let Some(password) = &neighbor.password {
            _ = writeln!(text, "    auth-password = \"{password}\"");
        }
        _ = writeln!(
            text,
            "  [neighbors.transport.config]\n    passive-mode = {passive}\n    local-address = \"{local}\"\n  \
             [neighbors.timers.config]\n    hold-time = {hold_time}\n    keepalive-interval = {}\n    connect-retry = 1\n    \
             idle-hold-time-after-reset = 1",
            hold_time / 3
        );
        if neighbor.graceful_restart {
            text += "  [neighbors.graceful-restart.config]\n    enabled = true\n    restart-time = 20\n";
        }
        for family in ["ipv4-unicast", "ipv6-unicast"] {
            _ = writeln!(
                text,
                "  [[neighbors.afi-safis]]\n    [neighbors.afi-safis.config]\n      afi-safi-name = \"{family}\""
            );
            if neighbor.graceful_restart {
                text += "    [neighbors.afi-safis.mp-graceful-restart.config]\n      enabled = true\n";
            }
        }
    }
    text + &config.extra
}

pub(super) fn start(router: &mut Router<'_>, config: &Config) -> Result<()> {
    write(&router.path("gobgpd.toml"), &text(config))?;
    let mut gobgpd = Command::new("gobgpd");
    gobgpd.arg("-f").arg(router.path("gobgpd.toml")).args(["--log-level", "debug", "--api-hosts"]);
    gobgpd.arg(format!("127.0.0.1:{API}"));
    router.spawn("gobgpd", gobgpd)?;
    router.wait("answer", || {
        let knows = |address: &IpAddr| ask(router, &format!("neighbor {address}")).is_ok();
        let is_ready = config.neighbors.iter().all(|neighbor| knows(&neighbor.address));
        Ok(if is_ready { Ok(()) } else { Err("silence".to_owned()) })
    })
}

pub(super) fn ask(router: &Router<'_>, words: &str) -> Result<String> {
    router.run(Command::new("gobgp").args(["--port", API]).args(words.split(' ')))
}

fn rib(router: &Router<'_>, family: &str) -> Result<Value> {
    let answer = ask(router, &format!("global rib -a {family} -j"))?;
    serde_json::from_str(&answer).with_context(|| format!("no JSON: {answer}"))
}

pub(super) fn route(router: &Router<'_>, prefix: Prefix) -> Result<Option<Route>> {
    let table = rib(router, if prefix.is_ipv4() { "ipv4" } else { "ipv6" })?;
    let Some(paths) = table[prefix.to_string()].as_array() else { return Ok(None) };
    let Some(first) = paths.first() else { return Ok(None) };
    let mut route = Route { stale: first["stale"] == true, ..Route::default() };
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    for attribute in first["attrs"].as_array().into_iter().flatten() {
        let value = &attribute["value"];
        match attribute["type"].as_u64() {
            Some(2) => {
                let segments = attribute["as_paths"].as_array().into_iter().flatten();
                let asns = segments.flat_map(|segment| segment["asns"].as_array().into_iter().flatten());
                route.as_path = asns.filter_map(number).collect();
            }
            Some(3 | 14) => {
                let hop = attribute["nexthop"].as_str();
                route.next_hops.extend(hop.and_then(|hop| hop.parse::<IpAddr>().ok()));
            }
            Some(4) => route.multi_exit_disc = number(&attribute["metric"]),
            Some(5) => route.local_pref = number(value),
            Some(8) => {
                let all = attribute["communities"].as_array().into_iter().flatten().filter_map(number);
                route.communities = all.map(|value| format!("{}:{}", value >> 16, value & 0xffff)).collect();
            }
            Some(32) => {
                let all = value.as_array().into_iter().flatten();
                route.large_communities =
                    all.map(|one| format!("{}:{}:{}", one["ASN"], one["LocalData1"], one["LocalData2"])).collect();
            }
            _ => {}
        }
    }
    Ok(Some(route))
}

pub(super) fn count(router: &Router<'_>) -> Result<usize> {
    let mut count = 0;
    for family in ["ipv4", "ipv6"] {
        count += rib(router, family)?.as_object().map_or(0, serde_json::Map::len);
    }
    Ok(count)
}

pub(super) fn is_established(router: &Router<'_>, neighbor: IpAddr) -> Result<bool> {
    Ok(ask(router, &format!("neighbor {neighbor}"))?.contains("BGP state = ESTABLISHED"))
}
