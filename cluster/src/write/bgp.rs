//! What is said of BGP: how the sessions are and since when, and to whom a Service is advertised.

use std::collections::{BTreeMap, BTreeSet};

use ferrogate_core::{
    model::{NodeName, PeerName, ServiceKey},
    write::{BgpClose, BgpReport, BgpSession, ClosedBy},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    objects::OUR_API,
    state::Place,
    write::{Wish, seconds},
};

/// The most bytes of a text that a status takes.
const MAX_TEXT: usize = 1024;

/// When the sessions came to be as they are that this process tells of. No report of an earlier life is looked at: its
/// sessions ended with it.
#[derive(Debug, Default)]
pub struct Clocked(BTreeMap<Place, BgpReport>);

impl Clocked {
    /// Adds the times to a wish about a session. One that stays in its state keeps the time at which it entered it, and a
    /// connection that ended as the one before it did, without having been of use, keeps the time of that one.
    pub fn stamp(&mut self, place: &Place, wish: &mut Wish, now: Timestamp) {
        let Place::BgpSession { .. } = place else { return };
        let Wish::BgpSession(report) = wish else {
            self.0.remove(place);
            return;
        };
        let session = &report.session;
        // The state may be the same again although the session was lost meanwhile.
        let before = self.0.get(place).filter(|before| before.session.flaps == session.flaps);
        let since = before.filter(|before| before.session.state == session.state).map(|before| before.since.clone());
        let closed = before.filter(|before| before.session.last_close == session.last_close);
        let closed_at = closed.and_then(|before| before.closed_at.clone()).unwrap_or_else(|| seconds(now));
        report.since = since.unwrap_or_else(|| seconds(now));
        report.closed_at = report.session.last_close.is_some().then_some(closed_at);
        self.0.insert(place.clone(), BgpReport::clone(report));
    }
}

/// A ServiceBGPStatus.
pub fn status_body(node: &NodeName, service: &ServiceKey, peers: &BTreeSet<PeerName>) -> Value {
    json!({
        "apiVersion": OUR_API,
        "kind": "ServiceBGPStatus",
        "metadata": {
            "name": format!("bgp-{node}-{}-{}", service.namespace, service.name),
            "namespace": &*service.namespace,
        },
        "spec": {},
        "status": {
            "node": node.as_str(),
            "serviceName": &*service.name,
            "serviceNamespace": &*service.namespace,
            "peers": peers.iter().map(PeerName::as_str).collect::<Vec<_>>(),
        },
    })
}

/// A BGPSessionStatus.
pub fn session_body(node: &NodeName, peer: &PeerName, report: &BgpReport) -> Value {
    let BgpSession {
        state,
        remote,
        remote_asn,
        remote_identifier,
        local_address,
        remote_address,
        hold_time_seconds,
        families,
        prefixes_sent,
        prefixes_received,
        withheld,
        flaps,
        last_close,
        bfd,
        bfd_losses,
        bfd_last_loss,
        trouble,
    } = &report.session;
    let withheld = withheld.iter().map(|(reason, count)| json!({ "reason": reason, "count": number(*count) }));
    let mut status = json!({
        "node": node.as_str(),
        "peer": peer.as_str(),
        "remote": remote,
        "state": state,
        "since": report.since,
        "families": families.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "prefixesSent": number(*prefixes_sent),
        "prefixesReceived": number(*prefixes_received),
        "withheld": withheld.collect::<Vec<_>>(),
        "flaps": flaps,
        "bfdLosses": bfd_losses,
        "bfdLastLoss": printable(bfd_last_loss),
        "trouble": printable(trouble),
    });
    let known = [
        ("remoteASN", remote_asn.map(|asn| json!(asn.get()))),
        ("remoteIdentifier", remote_identifier.map(|identifier| json!(identifier.to_string()))),
        ("localAddress", local_address.map(|address| json!(address))),
        ("remoteAddress", remote_address.map(|address| json!(address))),
        ("holdTimeSeconds", hold_time_seconds.map(|seconds| json!(seconds))),
        ("bfd", bfd.as_ref().map(|state| json!(state))),
        ("lastClose", last_close.as_ref().map(|last| close(last, report.closed_at.as_deref()))),
    ];
    for (field, value) in known {
        if let Some(value) = value {
            status[field] = value;
        }
    }
    json!({
        "apiVersion": OUR_API,
        "kind": "BGPSessionStatus",
        "metadata": { "name": format!("session-{node}-{peer}") },
        "spec": {},
        "status": status,
    })
}

fn close(close: &BgpClose, at: Option<&str>) -> Value {
    let mut body = json!({ "message": printable(&close.text) });
    if let Some(at) = at {
        body["time"] = json!(at);
    }
    let (by, notification) = match close.by {
        ClosedBy::Us { code, subcode } => ("Us", Some((code, subcode))),
        ClosedBy::Peer { code, subcode } => ("Peer", Some((code, subcode))),
        ClosedBy::Connection => ("Connection", None),
    };
    body["by"] = json!(by);
    if let Some((code, subcode)) = notification {
        body["code"] = json!(code);
        body["subcode"] = json!(subcode);
    }
    body
}

/// Numbers of the API are signed.
fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A text that may quote the peer, fit for a terminal and not too long.
fn printable(text: &str) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use ferrogate_core::model::{Family, peer::Asn};
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::state;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn place() -> Place {
        Place::BgpSession { node: "a".into(), peer: "tor".into() }
    }

    fn session(state: &str, flaps: u32) -> BgpSession {
        BgpSession { state: state.to_owned(), flaps, ..BgpSession::default() }
    }

    fn lost(text: &str) -> Option<BgpClose> {
        Some(BgpClose { by: ClosedBy::Connection, text: text.to_owned() })
    }

    /// What the clock makes of a session that is told of at this second: since when, and when it closed last.
    fn stamped(clock: &mut Clocked, session: &BgpSession, second: i64) -> (String, Option<String>) {
        let report = BgpReport { session: session.clone(), since: String::new(), closed_at: None };
        let mut wish = Wish::BgpSession(Box::new(report));
        clock.stamp(&place(), &mut wish, at(second));
        let Wish::BgpSession(report) = wish else { panic!("still about a session") };
        (report.since, report.closed_at)
    }

    #[test]
    fn since_stays_while_the_state_does_whatever_else_changes() {
        let mut clock = Clocked::default();
        let up = session("Established", 0);
        let more = BgpSession { prefixes_sent: 7, ..up.clone() };

        assert_eq!(stamped(&mut clock, &up, 1).0, at(1).to_string());
        assert_eq!(stamped(&mut clock, &more, 2).0, at(1).to_string());
        assert_eq!(stamped(&mut clock, &session("Idle", 1), 3).0, at(3).to_string());
        assert_eq!(stamped(&mut clock, &session("Established", 1), 4).0, at(4).to_string());
    }

    #[test]
    fn a_session_that_was_lost_and_came_back_between_two_reports_counts_anew() {
        let mut clock = Clocked::default();
        stamped(&mut clock, &session("Established", 0), 1);

        let lost = BgpSession { last_close: lost("cut"), ..session("Established", 1) };
        let first = stamped(&mut clock, &lost, 5);
        let again = stamped(&mut clock, &BgpSession { flaps: 2, ..lost }, 9);

        assert_eq!(first, (at(5).to_string(), Some(at(5).to_string())));
        assert_eq!(again, (at(9).to_string(), Some(at(9).to_string())));
    }

    #[test]
    fn attempts_that_fail_alike_are_told_with_the_time_of_the_first() {
        let mut clock = Clocked::default();
        let refused = |state: &str| BgpSession { last_close: lost("connection refused"), ..session(state, 0) };
        stamped(&mut clock, &session("Connect", 0), 1);

        assert_eq!(stamped(&mut clock, &refused("Active"), 2).1, Some(at(2).to_string()));
        assert_eq!(stamped(&mut clock, &refused("Connect"), 3).1, Some(at(2).to_string()));
        let other = BgpSession { last_close: lost("no route to host"), ..session("Active", 0) };
        assert_eq!(stamped(&mut clock, &other, 4).1, Some(at(4).to_string()));
    }

    #[test]
    fn a_session_that_is_told_of_again_after_it_was_taken_back_begins_anew() {
        let mut clock = Clocked::default();
        stamped(&mut clock, &session("Idle", 0), 1);

        clock.stamp(&place(), &mut Wish::Nothing, at(2));

        assert_eq!(stamped(&mut clock, &session("Idle", 0), 3).0, at(3).to_string());
    }

    fn status<T: DeserializeOwned>(body: &Value) -> T {
        serde_json::from_value(body["status"].clone()).unwrap()
    }

    #[test]
    fn a_session_reads_back_as_it_was_written() {
        let bare = BgpSession { state: "Active".to_owned(), ..BgpSession::default() };
        let full = BgpSession {
            state: "Established".to_owned(),
            remote: "192.0.2.1".to_owned(),
            remote_asn: Asn::new(4_200_000_000),
            remote_identifier: ferrogate_core::model::peer::BgpIdentifier::new(7),
            local_address: Some("192.0.2.10".parse().unwrap()),
            remote_address: Some("192.0.2.1".parse().unwrap()),
            hold_time_seconds: Some(9),
            families: [Family::V4, Family::V6].into(),
            prefixes_sent: 3,
            prefixes_received: 2,
            withheld: [("NotNegotiated".to_owned(), 1)].into(),
            flaps: 4,
            last_close: Some(BgpClose {
                by: ClosedBy::Peer { code: 6, subcode: 2 },
                text: "administrative shutdown: \"maintenance\"".to_owned(),
            }),
            bfd: Some("Up".to_owned()),
            bfd_losses: 3,
            bfd_last_loss: "nothing was heard for the detection time".to_owned(),
            trouble: "none worth telling".to_owned(),
        };
        for (session, closed_at) in [(bare, None), (full, Some(at(1).to_string()))] {
            let report = BgpReport { session, since: at(2).to_string(), closed_at };

            let body = session_body(&"a".into(), &"tor".into(), &report);

            let read = state::reporting(status(&body)).unwrap();
            assert_eq!((read.node.as_str(), read.peer.as_str(), read.report), ("a", "tor", report));
        }
    }

    #[test]
    fn m_146_who_a_service_goes_to_reads_back_as_it_was_written() {
        let peers: BTreeSet<PeerName> = ["tor-a".into(), "tor-b".into()].into();
        let service = ServiceKey::new("shop", "web");

        let body = status_body(&"a".into(), &service, &peers);

        let read = state::advertiser(status(&body)).unwrap();
        assert_eq!((read.service, read.node, read.peers), (service, "a".into(), peers));
    }

    #[test]
    fn what_a_peer_says_cannot_steer_a_terminal_or_fill_the_status() {
        let text = format!("\u{1b}[2J{}", "ä".repeat(2000));

        let shown = printable(&text);

        assert!(shown.starts_with("\u{fffd}[2Jä") && shown.len() <= MAX_TEXT, "{shown}");
    }
}
