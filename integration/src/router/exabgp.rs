//! ExaBGP: installs nothing and tells every message it receives as JSON, so that exactly what was sent can be seen.

use std::{collections::BTreeMap, fmt::Write as _, fs, net::IpAddr, os::unix::fs::PermissionsExt, process::Command};

use anyhow::{Context, Result};
use ferrogate_core::model::Prefix;
use serde_json::Value;

use super::{Config, Neighbor, Route, Router, write};

/// Copies what it is told into a file. ExaBGP hands over a pipe that does not block, which most programs take for its end.
const TELLER: &str = "#!/usr/bin/env python3
import os
os.set_blocking(0, True)
sink = os.open('SINK', os.O_WRONLY | os.O_APPEND)
while piece := os.read(0, 65536):
    os.write(sink, piece)
";

fn text(config: &Config, teller: &str) -> String {
    let mut text = format!("process tell {{ run {teller}; encoder json; }}\n");
    for Neighbor { address, local, asn, hold_time, password, extra, .. } in &config.neighbors {
        _ = writeln!(
            text,
            "neighbor {address} {{ router-id {}; local-address {local}; local-as {}; peer-as {asn}; hold-time {hold_time}; \
             passive true; listen 179; capability {{ asn4; route-refresh; graceful-restart 60; nexthop; extended-message; }} \
             family {{ ipv4 unicast; ipv6 unicast; }} api {{ processes [ tell ]; neighbor-changes; receive {{ parsed; \
             packets; open; keepalive; update; refresh; notification; }} }} {} {extra} }}",
            config.identifier,
            config.asn,
            password.as_ref().map(|password| format!("md5-password \"{password}\";")).unwrap_or_default()
        );
    }
    text + &config.extra
}

pub(super) fn start(router: &mut Router<'_>, config: &Config) -> Result<()> {
    let sink = router.path("messages");
    fs::write(&sink, "")?;
    let teller = router.path("tell");
    write(&teller, &TELLER.replace("SINK", &sink.display().to_string()))?;
    fs::set_permissions(&teller, fs::Permissions::from_mode(0o755))?;
    write(&router.path("exabgp.conf"), &text(config, &teller.display().to_string()))?;
    let bind = config.neighbors.first().context("ExaBGP needs a neighbour")?.local;
    let mut exabgp = Command::new("exabgp");
    exabgp
        .env("exabgp.daemon.daemonize", "false")
        .env("exabgp.daemon.user", "root")
        .env("exabgp.tcp.bind", bind.to_string())
        .env("exabgp.tcp.port", "179")
        .env("exabgp.api.cli", "false")
        .arg(router.path("exabgp.conf"));
    router.spawn("exabgp", exabgp)?;
    router.wait("listening socket", || {
        let sockets = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
            .map(|file| router.namespace.run(|| fs::read_to_string(file).unwrap_or_default()));
        let listens =
            sockets.iter().any(|text| text.lines().any(|line| line.contains(":00B3 ") && line.contains(" 0A ")));
        Ok(if listens { Ok(()) } else { Err("silence".to_owned()) })
    })
}

pub(super) fn messages(router: &Router<'_>) -> Result<Vec<Value>> {
    let text = fs::read_to_string(router.path("messages"))?;
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// The table that all UPDATEs since the last session came up make.
fn table(router: &Router<'_>) -> Result<BTreeMap<Prefix, Route>> {
    let mut table = BTreeMap::new();
    for message in messages(router)? {
        if message["type"] == "state" {
            table.clear();
        }
        let update = &message["neighbor"]["message"]["update"];
        let prefixes = |items: &Value| -> Vec<Prefix> {
            let items = items.as_array().into_iter().flatten();
            items.filter_map(|item| item["nlri"].as_str().or(item.as_str())?.parse().ok()).collect()
        };
        for (_, items) in update["withdraw"].as_object().into_iter().flatten() {
            for prefix in prefixes(items) {
                table.remove(&prefix);
            }
        }
        for (_, by_hop) in update["announce"].as_object().into_iter().flatten() {
            for (hop, items) in by_hop.as_object().into_iter().flatten() {
                for prefix in prefixes(items) {
                    let mut route = attributes(&update["attribute"]);
                    route.next_hops.extend(hop.parse::<IpAddr>());
                    table.insert(prefix, route);
                }
            }
        }
    }
    Ok(table)
}

fn attributes(value: &Value) -> Route {
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let numbers = |value: &Value| -> Vec<u32> { value.as_array().into_iter().flatten().filter_map(number).collect() };
    let joined = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        let parts = |one: &Value| numbers(one).iter().map(ToString::to_string).collect::<Vec<_>>().join(":");
        all.map(|one| one["string"].as_str().map_or_else(|| parts(one), str::to_owned)).collect()
    };
    let as_path = match &value["as-path"] {
        Value::Object(segments) => segments.values().flat_map(|segment| numbers(&segment["value"])).collect(),
        other => numbers(other),
    };
    Route {
        as_path,
        local_pref: number(&value["local-preference"]),
        multi_exit_disc: number(&value["med"]),
        communities: joined(&value["community"]),
        large_communities: joined(&value["large-community"]),
        extended_communities: joined(&value["extended-community"]),
        ..Route::default()
    }
}

pub(super) fn route(router: &Router<'_>, prefix: Prefix) -> Result<Option<Route>> {
    Ok(table(router)?.remove(&prefix))
}

pub(super) fn count(router: &Router<'_>) -> Result<usize> {
    Ok(table(router)?.len())
}

pub(super) fn is_established(router: &Router<'_>, neighbor: IpAddr) -> Result<bool> {
    let neighbor = neighbor.to_string();
    let of_neighbor = |message: &&Value| message["neighbor"]["address"]["peer"] == neighbor.as_str();
    let messages = messages(router)?;
    let mut states = messages.iter().filter(of_neighbor).filter(|message| message["type"] == "state");
    Ok(states.next_back().is_some_and(|message| message["neighbor"]["state"] == "up"))
}
