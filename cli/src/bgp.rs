//! `ferrogate status bgp`: how the session of each node with each peer is, and to whom every Service is advertised.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::bail;
use ferrogate_core::{
    model::{NodeName, PeerName, node::Node, peer::BgpPeer},
    snapshot::Snapshot,
    write::{BgpClose, BgpReport, ClosedBy},
};
use serde::Serialize;

use crate::{status::or_dash, table::Table};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// This node alone.
    pub node: Option<NodeName>,
    /// This peer alone.
    pub peer: Option<PeerName>,
    /// Services too.
    pub routes: bool,
}

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    sessions: Vec<Session>,
    /// To whom each Service is advertised, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    services: Option<Vec<Advertised>>,
}

/// The session of one node with one peer.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Session {
    node: String,
    peer: String,
    /// None where no speaker reports one.
    state: Option<String>,
    since: Option<String>,
    remote: String,
    local_address: Option<IpAddr>,
    remote_address: Option<IpAddr>,
    remote_asn: Option<u32>,
    remote_identifier: Option<String>,
    hold_time_seconds: Option<u16>,
    families: Vec<String>,
    prefixes_sent: u64,
    prefixes_received: u64,
    withheld: BTreeMap<String, u64>,
    flaps: u32,
    last_close: Option<Close>,
    bfd: Option<String>,
    bfd_losses: u32,
    /// Why BFD has lost the peer last; empty where it has not.
    bfd_last_loss: String,
    /// What keeps it down, or what else there is to know.
    message: String,
}

/// How the last connection ended.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Close {
    /// `us`, `peer` or `connection`.
    by: &'static str,
    code: Option<u8>,
    subcode: Option<u8>,
    message: String,
    time: String,
}

/// One Service on one node.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Advertised {
    service: String,
    addresses: Vec<IpAddr>,
    node: String,
    peers: Vec<String>,
}

/// What speakers report, and which sessions should be there and nobody reports.
///
/// # Errors
/// When there is no such node or peer.
pub fn answer(snapshot: &Snapshot, filter: &Filter) -> anyhow::Result<Answer> {
    let mut sessions: BTreeMap<(NodeName, PeerName), Session> = BTreeMap::new();
    for ((node, peer), report) in &snapshot.bgp_sessions {
        sessions.insert((node.clone(), peer.clone()), reported(snapshot, node, peer, report));
    }
    for peer in snapshot.bgp_peers.values() {
        for node in snapshot.nodes.values().filter(|node| peer.allows_node(&node.labels)) {
            let place = (node.name.clone(), peer.name.clone());
            sessions.entry(place).or_insert_with(|| missing(node, peer));
        }
    }
    check(snapshot, &sessions, filter)?;
    let wanted = |node: &NodeName| filter.node.as_ref().is_none_or(|wanted| wanted == node);
    let wanted_peer = |peer: &PeerName| filter.peer.as_ref().is_none_or(|wanted| wanted == peer);
    sessions.retain(|(node, peer), _| wanted(node) && wanted_peer(peer));
    let mut services = Vec::new();
    for (service, nodes) in snapshot.advertised_by.iter().filter(|_| filter.routes) {
        let observed = snapshot.services.get(service).map(|service| &service.observed.addresses);
        let nodes = nodes.iter().filter(|(node, peers)| wanted(node) && peers.iter().any(wanted_peer));
        services.extend(nodes.map(|(node, peers)| Advertised {
            service: service.to_string(),
            addresses: observed.cloned().unwrap_or_default(),
            node: node.to_string(),
            peers: peers.iter().filter(|peer| wanted_peer(peer)).map(ToString::to_string).collect(),
        }));
    }
    Ok(Answer { sessions: sessions.into_values().collect(), services: filter.routes.then_some(services) })
}

/// That a name that was given is known at all.
fn check(
    snapshot: &Snapshot,
    sessions: &BTreeMap<(NodeName, PeerName), Session>,
    filter: &Filter,
) -> anyhow::Result<()> {
    if let Some(node) = &filter.node
        && !snapshot.nodes.contains_key(node)
        && !sessions.keys().any(|(known, _)| known == node)
    {
        bail!("there is no Node {node}; `ferrogate status bgp` lists those that have sessions");
    }
    if let Some(peer) = &filter.peer
        && !snapshot.bgp_peers.values().any(|known| known.name == *peer)
        && !sessions.keys().any(|(_, known)| known == peer)
    {
        bail!("there is no BGPPeer {peer}; `ferrogate status bgp` lists those there are");
    }
    Ok(())
}

fn reported(snapshot: &Snapshot, node: &NodeName, peer: &PeerName, report: &BgpReport) -> Session {
    let session = &report.session;
    let close = |close: &BgpClose| {
        let (by, notification) = match close.by {
            ClosedBy::Us { code, subcode } => ("us", Some((code, subcode))),
            ClosedBy::Peer { code, subcode } => ("peer", Some((code, subcode))),
            ClosedBy::Connection => ("connection", None),
        };
        let (code, subcode) = notification.unzip();
        Close { by, code, subcode, message: close.text.clone(), time: report.closed_at.clone().unwrap_or_default() }
    };
    // Only its own speaker takes back what it said.
    let message = if !snapshot.nodes.contains_key(node) {
        format!("said so last, but there is no Node {node} any more")
    } else if !snapshot.bgp_peers.values().any(|known| known.name == *peer) {
        format!("said so last, but no BGPPeer {peer} is in force")
    } else {
        session.trouble.clone()
    };
    Session {
        node: node.to_string(),
        peer: peer.to_string(),
        state: Some(session.state.clone()),
        since: Some(report.since.clone()),
        remote: session.remote.clone(),
        local_address: session.local_address,
        remote_address: session.remote_address,
        remote_asn: session.remote_asn.map(|asn| asn.get()),
        remote_identifier: session.remote_identifier.map(|identifier| identifier.to_string()),
        hold_time_seconds: session.hold_time_seconds,
        families: session.families.iter().map(ToString::to_string).collect(),
        prefixes_sent: session.prefixes_sent,
        prefixes_received: session.prefixes_received,
        withheld: session.withheld.clone(),
        flaps: session.flaps,
        last_close: session.last_close.as_ref().map(close),
        bfd: session.bfd.clone(),
        bfd_losses: session.bfd_losses,
        bfd_last_loss: session.bfd_last_loss.clone(),
        message,
    }
}

/// A session that should be there.
fn missing(node: &Node, peer: &BgpPeer) -> Session {
    let (remote, message) = match peer.on(node) {
        Ok(known) => {
            let message = format!("the speaker of {} does not report it: is it running?", node.name);
            (known.place.to_string(), message)
        }
        Err(error) => (String::new(), error.to_string()),
    };
    Session { node: node.name.to_string(), peer: peer.name.to_string(), remote, message, ..Session::default() }
}

/// The answer for people.
pub fn tables(answer: &Answer) -> String {
    let mut sessions = Table::new(&[
        "NODE",
        "PEER",
        "STATE",
        "SINCE",
        "REMOTE",
        "ASN",
        "FAMILIES",
        "SENT",
        "BFD",
        "LAST CLOSE",
        "SAYS",
    ]);
    for row in &answer.sessions {
        let remote = match row.remote_address {
            Some(address) if address.to_string() != row.remote => format!("{} ({address})", row.remote),
            _ => row.remote.clone(),
        };
        let withheld: Vec<String> = row.withheld.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let sent = match (&row.state, withheld.is_empty()) {
            (None, _) => String::new(),
            (Some(_), true) => row.prefixes_sent.to_string(),
            (Some(_), false) => format!("{}, not {}", row.prefixes_sent, withheld.join(", ")),
        };
        let close = row.last_close.as_ref().map(|close| format!("{} by {}: {}", close.time, close.by, close.message));
        sessions.row([
            row.node.clone(),
            row.peer.clone(),
            or_dash(row.state.clone().unwrap_or_default()),
            or_dash(row.since.clone().unwrap_or_default()),
            or_dash(remote),
            or_dash(row.remote_asn.map(|asn| asn.to_string()).unwrap_or_default()),
            or_dash(row.families.join(",")),
            or_dash(sent),
            or_dash(watched(row)),
            or_dash(close.unwrap_or_default()),
            row.message.clone(),
        ]);
    }
    let Some(services) = &answer.services else { return sessions.to_string() };
    let mut routes = Table::new(&["SERVICE", "ADDRESSES", "NODE", "ADVERTISED TO"]);
    for row in services {
        let addresses: Vec<String> = row.addresses.iter().map(ToString::to_string).collect();
        routes.row([row.service.clone(), or_dash(addresses.join(",")), row.node.clone(), row.peers.join(",")]);
    }
    format!("{sessions}\n{routes}")
}

/// What BFD sees, and how often it saw the peer lost.
fn watched(row: &Session) -> String {
    let state = row.bfd.clone().unwrap_or_default();
    match row.bfd_losses {
        0 => state,
        losses => {
            let times = if losses == 1 { "once".to_owned() } else { format!("{losses} times") };
            format!("{state}, lost {times}, last: {}", row.bfd_last_loss).trim_start_matches(", ").to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::tests::{Folder, folder, service};

    const PEERS: &str = "---\napiVersion: ferrogate.io/v1beta1\nkind: BGPPeer\nmetadata: {name: tor-a}\n\
        spec: {myASN: 64512, peerASN: 64496, peerAddress: 192.0.2.1}\n---\n\
        apiVersion: ferrogate.io/v1beta1\nkind: BGPPeer\nmetadata: {name: tor-b}\n\
        spec: {myASN: 64512, peerASN: 64496, peerAddress: 192.0.2.2}\n";

    const SESSION: &str = "apiVersion: ferrogate.io/v1beta1\nkind: BGPSessionStatus\nmetadata: {name: x}\nspec: {}\n\
        status:\n  node: NODE\n  peer: PEER\n  remote: 192.0.2.1\n  state: Established\n  \
        since: '2026-01-02T03:04:05Z'\n  remoteASN: 64496\n  families: [IPv4, IPv6]\n  prefixesSent: 3\n  \
        withheld: [{reason: NotNegotiated, count: 2}]\n  flaps: 1\n  bfd: Up\n  \
        lastClose: {by: Peer, code: 6, subcode: 2, message: administrative shutdown, time: '2026-01-02T03:00:00Z'}\n";

    const ADVERTISED: &str = "apiVersion: ferrogate.io/v1beta1\nkind: ServiceBGPStatus\n\
        metadata: {name: x, namespace: default}\nspec: {}\n\
        status: {node: node-1, serviceName: web, serviceNamespace: default, peers: [tor-a, tor-b]}\n";

    /// A node with two peers, a Service, and what its speaker says of one session.
    fn world() -> Folder {
        let status = format!("status: {{loadBalancer: {{ingress: [{{ip: 192.0.2.1}}]}}}}\n{PEERS}");
        let folder = folder("", &service("", &status));
        said(&folder, "node-1", "tor-a");
        folder.says("speakers/node-1/bgpstatus/default_web.yaml", ADVERTISED);
        folder
    }

    fn said(folder: &Folder, node: &str, peer: &str) {
        let text = SESSION.replace("NODE", node).replace("PEER", peer);
        folder.says(&format!("speakers/{node}/bgpsession/{peer}.yaml"), &text);
    }

    async fn asked(folder: &Folder, filter: Filter) -> Answer {
        let snapshot = folder.snapshot().await;
        answer(&snapshot, &filter).unwrap()
    }

    #[tokio::test]
    async fn a_session_is_shown_with_its_state_and_how_the_last_one_ended() {
        let answer = asked(&world(), Filter::default()).await;

        let row = &answer.sessions[0];
        assert_eq!(
            (row.node.as_str(), row.peer.as_str(), row.state.as_deref()),
            ("node-1", "tor-a", Some("Established"))
        );
        let close = row.last_close.as_ref().unwrap();
        assert_eq!((close.by, close.code, close.subcode), ("peer", Some(6), Some(2)));
        let text = tables(&answer);
        for part in [
            "Established  2026-01-02T03:04:05Z  192.0.2.1  64496  IPv4,IPv6  3, not 2 NotNegotiated  Up",
            "2026-01-02T03:00:00Z by peer: administrative shutdown",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("ADVERTISED TO") && answer.services.is_none());
    }

    #[tokio::test]
    async fn n_092_how_often_bfd_has_lost_a_peer_is_shown_with_why_it_did_last() {
        let folder = world();
        let lost = SESSION.replace("bfd: Up", "bfd: Down\n  bfdLosses: 4\n  bfdLastLoss: nothing was heard");
        folder.says("speakers/node-1/bgpsession/tor-a.yaml", &lost.replace("NODE", "node-1").replace("PEER", "tor-a"));

        let answer = asked(&folder, Filter::default()).await;

        let row = &answer.sessions[0];
        assert_eq!(
            (row.bfd.as_deref(), row.bfd_losses, row.bfd_last_loss.as_str()),
            (Some("Down"), 4, "nothing was heard")
        );
        let text = tables(&answer);
        assert!(text.contains("Down, lost 4 times, last: nothing was heard"), "{text}");
        let once = Session { bfd_losses: 1, bfd_last_loss: "nothing was heard".to_owned(), ..Session::default() };
        assert_eq!(watched(&once), "lost once, last: nothing was heard");
    }

    #[tokio::test]
    async fn a_session_that_nobody_reports_is_shown_as_missing() {
        let answer = asked(&world(), Filter::default()).await;

        let row = &answer.sessions[1];
        assert_eq!((row.peer.as_str(), row.state.as_deref()), ("tor-b", None));
        assert!(row.message.starts_with("the speaker of node-1 does not report it"), "{}", row.message);
    }

    #[tokio::test]
    async fn what_a_node_or_peer_that_is_gone_said_last_is_told_as_such() {
        let folder = world();
        said(&folder, "node-9", "tor-a");
        said(&folder, "node-1", "tor-z");

        let answer = asked(&folder, Filter::default()).await;

        let messages: Vec<&str> = answer.sessions.iter().map(|row| row.message.as_str()).collect();
        assert!(messages.contains(&"said so last, but there is no Node node-9 any more"), "{messages:?}");
        assert!(messages.contains(&"said so last, but no BGPPeer tor-z is in force"), "{messages:?}");
    }

    #[tokio::test]
    async fn m_146_services_are_shown_with_the_peers_they_go_to_from_each_node() {
        let folder = world();

        let all = asked(&folder, Filter { routes: true, ..Filter::default() }).await;
        let one = asked(&folder, Filter { routes: true, peer: Some("tor-b".into()), ..Filter::default() }).await;

        assert_eq!(all.services.as_ref().unwrap()[0].peers, ["tor-a", "tor-b"]);
        assert_eq!(one.services.as_ref().unwrap()[0].peers, ["tor-b"]);
        assert_eq!(one.sessions.len(), 1);
        let text = tables(&all);
        assert!(text.contains("default/web  192.0.2.1  node-1  tor-a,tor-b"), "{text}");
    }

    #[tokio::test]
    async fn a_name_that_nobody_has_is_refused() {
        let snapshot = world().snapshot().await;

        let node = answer(&snapshot, &Filter { node: Some("node-8".into()), ..Filter::default() });
        let peer = answer(&snapshot, &Filter { peer: Some("tor-y".into()), ..Filter::default() });

        assert!(node.unwrap_err().to_string().starts_with("there is no Node node-8"));
        assert!(peer.unwrap_err().to_string().starts_with("there is no BGPPeer tor-y"));
    }
}
