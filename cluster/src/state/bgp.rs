//! What speakers say of BGP, as it reads back.

use std::collections::BTreeSet;

use ferrogate_core::{
    model::{
        Family, NodeName, PeerName, ServiceKey,
        peer::{Asn, BgpIdentifier},
    },
    snapshot::Fault,
    write::{BgpClose, BgpReport, BgpSession, ClosedBy},
};
use ferrogate_crds::{
    BGPSessionStatus, BGPSessionStatusStatus, ServiceBGPStatus, ServiceBGPStatusStatus, SessionClose, SessionCloser,
};

use crate::state::{only, says_nothing};

/// What a speaker says of a Service that it advertises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertiser {
    /// Which Service.
    pub service: ServiceKey,
    /// The node of the speaker.
    pub node: NodeName,
    /// The peers it is advertised to.
    pub peers: BTreeSet<PeerName>,
}

/// What a speaker says of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reporting {
    /// The node of the speaker.
    pub node: NodeName,
    /// The peer.
    pub peer: PeerName,
    /// How the session is.
    pub report: BgpReport,
}

/// What a ServiceBGPStatus says.
pub fn read_bgp_status(text: &str) -> Result<Advertiser, Fault> {
    let object: ServiceBGPStatus = only(text)?;
    object.status.and_then(advertiser).ok_or_else(|| says_nothing("status"))
}

/// What a BGPSessionStatus says.
pub fn read_bgp_session(text: &str) -> Result<Reporting, Fault> {
    let object: BGPSessionStatus = only(text)?;
    object.status.and_then(reporting).ok_or_else(|| says_nothing("status"))
}

/// What a status says; nothing where it does not say of what.
pub fn advertiser(status: ServiceBGPStatusStatus) -> Option<Advertiser> {
    let says_of_what = !status.node.is_empty() && !status.service_name.is_empty();
    says_of_what.then(|| Advertiser {
        service: ServiceKey::new(status.service_namespace, status.service_name),
        node: status.node.into(),
        peers: status.peers.into_iter().map(PeerName::from).collect(),
    })
}

/// What a status says, as far as it can be read; nothing where it does not say of what.
pub fn reporting(status: BGPSessionStatusStatus) -> Option<Reporting> {
    let says_of_what = !status.node.is_empty() && !status.peer.is_empty();
    let count = |number: i64| u64::try_from(number).unwrap_or_default();
    let address = |text: Option<String>| text.and_then(|text| text.parse().ok());
    let identifier = |text: String| BgpIdentifier::new(text.parse::<std::net::Ipv4Addr>().ok()?.to_bits());
    let (last_close, closed_at) = status.last_close.and_then(close).unzip();
    says_of_what.then(|| Reporting {
        node: status.node.into(),
        peer: status.peer.into(),
        report: BgpReport {
            session: BgpSession {
                state: status.state,
                remote: status.remote,
                remote_asn: status.remote_asn.and_then(Asn::new),
                remote_identifier: status.remote_identifier.and_then(identifier),
                local_address: address(status.local_address),
                remote_address: address(status.remote_address),
                hold_time_seconds: status.hold_time_seconds,
                families: status.families.iter().filter_map(|name| family(name)).collect(),
                prefixes_sent: count(status.prefixes_sent),
                prefixes_received: count(status.prefixes_received),
                withheld: status.withheld.into_iter().map(|one| (one.reason, count(one.count))).collect(),
                flaps: u32::try_from(status.flaps).unwrap_or_default(),
                last_close,
                bfd: status.bfd,
                bfd_losses: u32::try_from(status.bfd_losses).unwrap_or_default(),
                bfd_last_loss: status.bfd_last_loss,
                trouble: status.trouble,
            },
            since: status.since,
            closed_at,
        },
    })
}

fn family(name: &str) -> Option<Family> {
    [Family::V4, Family::V6].into_iter().find(|family| family.to_string() == name)
}

fn close(close: SessionClose) -> Option<(BgpClose, String)> {
    let (code, subcode) = (close.code.unwrap_or_default(), close.subcode.unwrap_or_default());
    let by = match close.by? {
        SessionCloser::Us => ClosedBy::Us { code, subcode },
        SessionCloser::Peer => ClosedBy::Peer { code, subcode },
        SessionCloser::Connection => ClosedBy::Connection,
    };
    Some((BgpClose { by, text: close.message }, close.time))
}
