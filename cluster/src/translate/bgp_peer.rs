//! BGPPeer: a router, and how to speak with it.

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use ferrogate_core::{
    model::{
        Family, PeerName,
        peer::{Asn, BgpIdentifier, BgpPeer, HoldTime, Password, PeerAsn, PeerPlace},
    },
    snapshot::Fault,
};
use ferrogate_crds::{BGPPeer, BGPPeerSpec, DynamicAsn};

use crate::{
    objects::{BgpPeerFact, Fact, Spelling},
    translate::read::{Check, address, created, interface, is_dns_name, not_yet, selectors},
};

/// The hold time where nothing is said (RFC 4271 §10).
const HOLD_TIME: u16 = 90;
/// How much longer the hold time is than the keepalive time where one of them follows from the other (RFC 4271 §10).
const HOLD_PER_KEEPALIVE: u64 = 3;
/// The largest port that is taken, as in MetalLB.
const MAX_PORT: u16 = 16_384;

/// Reads a BGPPeer.
pub fn read(object: BGPPeer, check: &mut Check) -> Option<Fact> {
    let (spec, created) = (object.spec, created(&object.metadata));
    let asn = |number: u32, field: &str, check: &mut Check| {
        let asn = Asn::new(number);
        if asn.is_none() {
            check.invalid(field, number, "1 to 4294967295");
        }
        asn
    };
    let my_asn = asn(spec.my_asn, "spec.myASN", check);
    let local_asn = spec.local_asn.and_then(|number| asn(number, "spec.localASN", check));
    let peer_asn = match (spec.peer_asn, spec.dynamic_asn) {
        (Some(number), None) => asn(number, "spec.peerASN", check).map(PeerAsn::Fixed),
        (None, Some(DynamicAsn::Internal)) => Some(PeerAsn::Internal),
        (None, Some(DynamicAsn::External)) => Some(PeerAsn::External),
        _ => exactly_one("spec.peerASN", "peerASN and dynamicASN", check),
    };
    let is_internal = peer_asn == Some(PeerAsn::Internal) || peer_asn == my_asn.map(PeerAsn::Fixed);
    if spec.ebgp_multi_hop && is_internal {
        check.invalid("spec.ebgpMultiHop", true, "false, since the peer is of our own AS");
    }
    let place = place(&spec, check);
    let source_address = spec.source_address.as_deref().and_then(|text| {
        let source = router(text, "spec.sourceAddress", check)?;
        if let Some(PeerPlace::Address(peer)) = place
            && Family::of(peer) != Family::of(source)
        {
            check.invalid("spec.sourceAddress", text, "an address of the family of peerAddress");
        }
        Some(source)
    });
    let port = NonZeroU16::new(spec.peer_port).filter(|port| port.get() <= MAX_PORT);
    if port.is_none() {
        check.invalid("spec.peerPort", spec.peer_port, "1 to 16384");
    }
    let router_id = spec.router_id.as_deref().and_then(|text| {
        let identifier = text.parse().ok().and_then(|address: Ipv4Addr| BgpIdentifier::new(address.to_bits()));
        if identifier.is_none() {
            check.invalid("spec.routerID", text, "written as an IPv4 address, and not 0.0.0.0");
        }
        identifier
    });
    let timers = timers(spec.hold_time.map(Duration::from), spec.keepalive_time.map(Duration::from), check);
    let connect_time = spec.connect_time.map(Duration::from);
    if let Some(time) = connect_time.filter(|time| time.subsec_nanos() > 0 || !(1..=65_535).contains(&time.as_secs())) {
        check.invalid("spec.connectTime", format!("{time:?}"), "a whole number of seconds, 1s to 65535s");
    }
    let password = password(&spec, check);
    let bfd_profile = spec.bfd_profile.clone();
    if let Some(name) = bfd_profile.as_deref().filter(|name| !is_dns_name(name)) {
        check.invalid("spec.bfdProfile", name, "the name of a BFDProfile");
    }
    let vrf = spec.vrf.as_deref().and_then(|name| interface(name, "spec.vrf", check));
    if spec.disable_mp {
        check.ignore("spec.disableMP", "it has no effect any more; remove it");
    }
    not_yet(check);
    let node_selectors = selectors(spec.node_selectors, "spec.nodeSelectors", check);
    let (hold_time, keepalive_time) = timers?;
    let peer = BgpPeer {
        key: check.key.clone(),
        read_only: check.spelling == Spelling::Metallb,
        name: PeerName::from(&*check.key.name),
        generation: check.generation,
        my_asn: my_asn?,
        local_asn,
        peer_asn: peer_asn?,
        place: place?,
        port: port?,
        source_address,
        vrf,
        router_id,
        hold_time,
        keepalive_time,
        connect_time,
        password,
        bfd_profile,
        graceful_restart: spec.enable_graceful_restart,
        multi_hop: spec.ebgp_multi_hop,
        dual_stack: spec.dual_stack_address_family,
        node_selectors,
    };
    Some(Fact::BgpPeer(BgpPeerFact { peer: Arc::new(peer), created }))
}

fn exactly_one<T>(field: &str, what: &str, check: &mut Check) -> Option<T> {
    check.refuse(field, Fault::Schema { detail: format!("exactly one of {what} must be set") });
    None
}

fn place(spec: &BGPPeerSpec, check: &mut Check) -> Option<PeerPlace> {
    match (&spec.peer_address, &spec.interface) {
        (Some(text), None) => router(text, "spec.peerAddress", check).map(PeerPlace::Address),
        (None, Some(name)) => interface(name, "spec.interface", check).map(PeerPlace::Interface),
        _ => exactly_one("spec.peerAddress", "peerAddress and interface", check),
    }
}

/// An address that one router can have.
fn router(text: &str, field: &str, check: &mut Check) -> Option<IpAddr> {
    let is_one = |address: &IpAddr| {
        !address.is_unspecified() && !address.is_multicast() && *address != IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    let address = address(text).filter(is_one);
    if address.is_none() {
        check.invalid(field, text, "the IPv4 or IPv6 address of a router");
    }
    address
}

/// Hold time and keepalive time, in whole seconds. Of the two, one that is missing follows from the other.
fn timers(hold: Option<Duration>, keepalive: Option<Duration>, check: &mut Check) -> Option<(HoldTime, Duration)> {
    let hold_time = |seconds: u64| u16::try_from(seconds).ok().and_then(HoldTime::from_seconds);
    let shown = |time: Duration| ferrogate_crds::Duration::from(time).to_string();
    if let (Some(hold), Some(keepalive)) = (hold, keepalive)
        && keepalive > hold
    {
        check.invalid("spec.keepaliveTime", shown(keepalive), &format!("not longer than holdTime, {}", shown(hold)));
        return None;
    }
    let hold_time = match (hold, keepalive) {
        (Some(hold), _) => match hold_time(hold.as_secs()) {
            Some(time) => time,
            None => {
                check.invalid("spec.holdTime", shown(hold), "0s, or 3s to 65535s");
                return None;
            }
        },
        (None, Some(keepalive)) => match hold_time(keepalive.as_secs().saturating_mul(HOLD_PER_KEEPALIVE)) {
            Some(time) => time,
            None => {
                check.invalid("spec.keepaliveTime", shown(keepalive), "at most 21845s where holdTime is not set");
                return None;
            }
        },
        (None, None) => HoldTime::from_seconds(HOLD_TIME)?,
    };
    let hold_seconds = u64::from(hold_time.seconds());
    let seconds = keepalive.map_or(hold_seconds / HOLD_PER_KEEPALIVE, |time| time.as_secs());
    // Never to say anything is right only where the peer waits for ever.
    if seconds == 0 && (hold_seconds > 0 || (hold.is_none() && keepalive.is_some_and(|time| !time.is_zero()))) {
        let said = keepalive.map(shown).unwrap_or_default();
        check.invalid("spec.keepaliveTime", said, "at least 1s, or 0s with a holdTime of 0s");
        return None;
    }
    Some((hold_time, Duration::from_secs(seconds)))
}

fn password(spec: &BGPPeerSpec, check: &mut Check) -> Option<Password> {
    match (&spec.password, &spec.password_secret) {
        (None, None) => None,
        (Some(_), Some(_)) => {
            let detail = "password and passwordSecret exclude each other".to_owned();
            check.refuse("spec.password", Fault::Schema { detail });
            None
        }
        (Some(text), None) => {
            // Its value belongs in no message.
            if text.is_empty() || text.len() > 80 {
                check.invalid("spec.password", format!("{} characters", text.len()), "1 to 80 characters");
            }
            Some(Password::Clear(text.clone()))
        }
        (None, Some(secret)) => {
            if !is_dns_name(&secret.name) {
                check.invalid("spec.passwordSecret.name", &secret.name, "the name of a Secret");
            }
            if secret.namespace.as_ref().is_some_and(|namespace| **namespace != *check.key.namespace) {
                check.ignore("spec.passwordSecret.namespace", "the Secret is read beside the BGPPeer; leave it out");
            }
            Some(Password::Secret(secret.name.clone()))
        }
    }
}
