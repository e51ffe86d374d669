//! `ferrogate status l2`: which node announces each address by layer 2, or why none does.

use std::net::IpAddr;

use ferrogate_core::{
    model::{NodeName, service::Service},
    snapshot::Snapshot,
    speaker::announce::{Policy, Ranking, Rankings, Standings, addresses},
    write::L2Status,
};
use serde::Serialize;

use crate::{
    explain::{lost, owners},
    status::or_dash,
    table::Table,
};

/// One address of one Service.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    address: IpAddr,
    service: String,
    /// The node that announces it.
    node: Option<String>,
    /// Other nodes that say so too: they have lost touch, or died.
    also: Vec<String>,
    /// Interfaces it is announced on; none means every suitable one.
    interfaces: Vec<String>,
    /// How often the Service had got another owner when this one became it.
    transitions: Option<u32>,
    conflicts: Vec<Conflict>,
    /// Why nobody announces it, or what else there is to know.
    message: String,
}

/// A device that claims the address, too.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Conflict {
    interface: String,
    mac: String,
}

/// Every address of every Service that could be announced, in order.
pub fn rows(snapshot: &Snapshot, policy: Policy) -> Vec<Row> {
    let standings: Standings = snapshot.unreachable.iter().map(lost).collect();
    let rankings = Rankings::new(snapshot, policy, &standings);
    let services = snapshot.services.values().filter(|service| service.load_balancer.is_some());
    let mut rows: Vec<Row> = services
        .flat_map(|service| addresses(service).map(|address| row(snapshot, &rankings, service, address)))
        .collect();
    rows.sort_by(|a, b| (a.address, &a.service).cmp(&(b.address, &b.service)));
    rows
}

fn row(snapshot: &Snapshot, rankings: &Rankings<'_>, service: &Service, address: IpAddr) -> Row {
    let announcer = snapshot.announcer(&service.key).filter(|(_, status)| status.addresses.contains(&address));
    let node = announcer.map(|(node, _)| node);
    let status: Option<&L2Status> = announcer.map(|(_, status)| status);
    let also = owners(snapshot, &service.key).into_iter().filter(|one| node.is_some_and(|node| node != one));
    let ranking = rankings.of(&service.key);
    let gone = node.and_then(|node| gone(snapshot, ranking.as_ref().ok(), node));
    let message = match (node, &service.wished_node) {
        _ if gone.is_some() => gone.unwrap_or_default(),
        (Some(node), Some(wished)) if node == wished => "moved there by a person".to_owned(),
        (Some(_), Some(wished)) => format!("a person wants it on {wished}"),
        (Some(_), None) => String::new(),
        (None, _) => match ranking {
            Err(silence) => silence.to_string(),
            Ok(ranking) => match (ranking.candidates.first(), ranking.out.iter().next()) {
                (Some(first), _) => format!("{} should announce it", first.node),
                (None, Some((node, silence))) => format!("on {node}, {silence}"),
                (None, None) => "there is no Node".to_owned(),
            },
        },
    };
    let conflicts = status.iter().flat_map(|status| &status.conflicts).filter(|conflict| conflict.address == address);
    Row {
        address,
        service: service.key.to_string(),
        node: node.map(ToString::to_string),
        also: also.map(|node| node.to_string()).collect(),
        interfaces: status.iter().flat_map(|status| &status.interfaces).map(ToString::to_string).collect(),
        transitions: status.map(|status| status.transitions),
        conflicts: conflicts
            .map(|conflict| Conflict { interface: conflict.interface.to_string(), mac: conflict.mac.clone() })
            .collect(),
        message,
    }
}

/// Why a node that said so last announces nothing any more. Only its own speaker takes back what it said.
fn gone(snapshot: &Snapshot, ranking: Option<&Ranking>, node: &NodeName) -> Option<String> {
    if !snapshot.nodes.contains_key(node) {
        return Some(format!("said so last, but there is no Node {node} any more"));
    }
    ranking?.out.get(node).map(|silence| format!("said so last, but {silence}"))
}

/// The rows for people.
pub fn table(rows: &[Row]) -> String {
    let mut table =
        Table::new(&["ADDRESS", "SERVICE", "NODE", "ALSO SAID BY", "INTERFACES", "MOVES", "CONFLICTS", "SAYS"]);
    for row in rows {
        let interfaces = if row.interfaces.is_empty() { "any".to_owned() } else { row.interfaces.join(",") };
        let conflicts: Vec<String> =
            row.conflicts.iter().map(|conflict| format!("{} on {}", conflict.mac, conflict.interface)).collect();
        table.row([
            row.address.to_string(),
            row.service.clone(),
            or_dash(row.node.clone().unwrap_or_default()),
            or_dash(row.also.join(",")),
            or_dash(row.node.as_ref().map(|_| interfaces).unwrap_or_default()),
            or_dash(row.transitions.map(|transitions| transitions.to_string()).unwrap_or_default()),
            or_dash(conflicts.join(", ")),
            row.message.clone(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::tests::{POLICY, folder, service};

    const STATUS: &str = "apiVersion: ferrogate.io/v1beta1\nkind: ServiceL2Status\n\
        metadata: {name: l2-NODE-default-web, namespace: default}\nspec: {}\nstatus:\n  node: NODE\n  \
        serviceName: web\n  serviceNamespace: default\n  pool: main\n  addresses: [192.0.2.1]\n  \
        interfaces: [{name: eth0}]\n  transitions: NUMBER\n  \
        conflicts: [{address: 192.0.2.1, interface: eth0, mac: '02:00:00:00:00:42'}]\n";

    #[tokio::test]
    async fn an_address_is_shown_with_whoever_announced_it_last_and_who_else_claims_it() {
        let folder = folder("", &service("", "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n"));
        for (node, number) in [("node-1", "4"), ("node-2", "3")] {
            let text = STATUS.replace("NODE", node).replace("NUMBER", number);
            folder.says(&format!("speakers/{node}/l2status/default_web.yaml"), &text);
        }

        let snapshot = folder.snapshot().await;
        let rows = rows(&snapshot, POLICY);

        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((row.node.as_deref(), row.transitions), (Some("node-1"), Some(4)));
        assert_eq!(row.also, ["node-2"]);
        assert_eq!(row.interfaces, ["eth0"]);
        let table = table(&rows);
        assert!(table.contains("02:00:00:00:00:42 on eth0"), "{table}");
    }

    #[tokio::test]
    async fn an_address_that_nobody_announces_says_why() {
        let excluded = ", labels: {node.kubernetes.io/exclude-from-external-load-balancers: ''}";
        let folder = folder(excluded, &service("", "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n"));

        let snapshot = folder.snapshot().await;
        let rows = rows(&snapshot, POLICY);

        assert_eq!(rows[0].node, None);
        assert!(rows[0].message.starts_with("on node-1, the node has the label"), "{}", rows[0].message);
    }

    #[tokio::test]
    async fn who_said_so_last_and_cannot_announce_it_any_more_is_told_as_such() {
        let excluded = ", labels: {node.kubernetes.io/exclude-from-external-load-balancers: ''}";
        let status = "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n";
        for (node, expected) in [
            ("node-1", "said so last, but the node has the label"),
            ("node-9", "said so last, but there is no Node node-9 any more"),
        ] {
            let folder = folder(excluded, &service("", status));
            let text = STATUS.replace("NODE", node).replace("NUMBER", "1");
            folder.says(&format!("speakers/{node}/l2status/default_web.yaml"), &text);

            let snapshot = folder.snapshot().await;
            let rows = rows(&snapshot, POLICY);

            assert!(rows[0].message.starts_with(expected), "{}", rows[0].message);
        }
    }
}
