//! `ferrogate status l2`: which node announces each address by layer 2, or why none does.

use std::net::IpAddr;

use ferrogate_core::{
    model::{NodeName, service::Service},
    snapshot::Snapshot,
    speaker::{
        announce::{Policy, Ranking, Rankings, addresses},
        is_leaving,
    },
    write::L2Status,
};
use serde::Serialize;

use crate::{
    explain::{owners, standings},
    status::or_dash,
    table::Table,
};

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    addresses: Vec<Row>,
    /// By which speakers know each other; none where they gossip.
    leases: Vec<Lease>,
}

/// One address of one Service.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
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

/// What the speaker of one node says of itself to those that do not gossip.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Lease {
    node: String,
    duration_seconds: u64,
    /// When its own clock says that it was renewed; none on its way out.
    renewed_at: Option<String>,
    /// Whether its speaker is stopping; none where it says nothing that is understood here.
    leaving: Option<bool>,
    /// What keeps it from counting.
    message: String,
}

/// What is announced, and by which Leases speakers know each other.
pub fn answer(snapshot: &Snapshot, policy: Policy) -> Answer {
    Answer { addresses: rows(snapshot, policy), leases: leases(snapshot) }
}

/// Every address of every Service that could be announced, in order.
fn rows(snapshot: &Snapshot, policy: Policy) -> Vec<Row> {
    let standings = standings(snapshot);
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

fn leases(snapshot: &Snapshot) -> Vec<Lease> {
    let leases = snapshot.leases.iter().map(|(node, lease)| {
        let leaving = is_leaving(node, lease);
        let message = match leaving {
            _ if !snapshot.nodes.contains_key(node) => "there is no Node of this name any more",
            None => "nothing that is understood here: its speaker is of another version",
            Some(true) => "its speaker is stopping",
            Some(false) => "",
        };
        Lease {
            node: node.to_string(),
            duration_seconds: lease.duration.as_secs(),
            renewed_at: Some(lease.renewed_at.clone()).filter(|text| !text.is_empty()),
            leaving,
            message: message.to_owned(),
        }
    });
    leases.collect()
}

/// The answer for people.
pub fn tables(answer: &Answer) -> String {
    let addresses = address_table(&answer.addresses);
    if answer.leases.is_empty() { addresses } else { format!("{addresses}\n{}", lease_table(&answer.leases)) }
}

fn address_table(rows: &[Row]) -> String {
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

fn lease_table(leases: &[Lease]) -> String {
    let mut table = Table::new(&["LEASE OF", "LASTS", "RENEWED AT, IT SAYS", "SAYS"]);
    for lease in leases {
        let renewed_at = or_dash(lease.renewed_at.clone().unwrap_or_default());
        table.row([&lease.node, &format!("{}s", lease.duration_seconds), &renewed_at, &lease.message]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use ferrogate_core::{model::node::Node, write::SpeakerLease};
    use ferrogate_wire::gossip::{Datagram, Keys, Message, Origin, Word};
    use serde_json::json;

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
        let table = address_table(&rows);
        assert!(table.contains("02:00:00:00:00:42 on eth0"), "{table}");
    }

    #[test]
    fn leases_are_shown_with_what_they_say_and_where_there_are_none_nothing_is() {
        let says = |node: &str, leaving| {
            let word = Word { node: node.to_owned(), leaving, ..Word::default() };
            let origin = Origin { node: node.to_owned(), ..Origin::default() };
            Datagram { origin, message: Message::Word(word) }.seal(&Keys::default(), &[0; 16]).unwrap()
        };
        let lease = |says: Vec<u8>| {
            let (duration, renewed_at) = (Duration::from_secs(10), "2026-01-01T00:00:00Z".to_owned());
            Arc::new(SpeakerLease { duration, says: says.into(), renewed_at })
        };
        let mut snapshot = Snapshot::default();
        assert_eq!(answer(&snapshot, POLICY).leases, []);
        assert!(!tables(&answer(&snapshot, POLICY)).contains("LEASE OF"));

        for node in ["a", "b", "c"] {
            let object = Node {
                name: node.into(),
                labels: Default::default(),
                annotations: Default::default(),
                internal_addresses: Vec::new(),
                network_unavailable: false,
                unschedulable: false,
            };
            snapshot.nodes.insert(node.into(), Arc::new(object));
        }
        snapshot.leases.insert("a".into(), lease(says("a", false)));
        snapshot.leases.insert("b".into(), lease(says("b", true)));
        snapshot.leases.insert("c".into(), lease(b"from the future".to_vec()));
        snapshot.leases.insert("gone".into(), lease(says("gone", false)));

        let answer = answer(&snapshot, POLICY);
        let table = tables(&answer);
        let line = |node: &str| table.lines().find(|line| line.starts_with(node)).unwrap().to_owned();
        assert!(line("a").contains("10s") && line("a").contains("2026-01-01T00:00:00Z"), "{table}");
        assert!(line("b").contains("is stopping"), "{table}");
        assert!(line("c").contains("another version"), "{table}");
        assert!(line("gone").contains("no Node"), "{table}");
        let json = serde_json::to_value(&answer).unwrap();
        let of = |number: usize, field: &str| json["leases"][number][field].clone();
        assert_eq!([0, 1, 2, 3].map(|number| of(number, "node")), ["a", "b", "c", "gone"]);
        assert_eq!([0, 1, 2].map(|number| of(number, "leaving")), [json!(false), json!(true), json!(null)]);
        assert_eq!((of(0, "duration_seconds"), of(0, "renewed_at")), (json!(10), json!("2026-01-01T00:00:00Z")));
        assert_eq!((of(0, "message"), of(1, "message")), (json!(""), json!("its speaker is stopping")));
        assert_eq!(json["addresses"], json!([]));
        let standings = standings(&snapshot);
        assert_eq!(standings.keys().map(ToString::to_string).collect::<Vec<_>>(), ["b"]);
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
