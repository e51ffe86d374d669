//! BGPPeer: a router, and how to speak with it.

use std::{
    net::IpAddr,
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
    sync::Arc,
    time::Duration,
};

use ferrogate_core::{
    model::{
        Family, PeerName, Prefix,
        node::ANNOTATION_PREFIX,
        peer::{
            AoAlgorithm, Asn, BgpPeer, HoldTime, Key, NodeKey, Password, PasswordPlace, PeerAsn, PeerPlace, PerNode,
            RestartTime, Role, TcpAo, router_address, router_id_of,
        },
    },
    snapshot::Fault,
};
use ferrogate_crds::{BGPPeer, BGPPeerSpec, BgpRole, DynamicAsn, NodeValue, TcpAoAlgorithm};

use crate::{
    objects::{BgpPeerFact, Fact, Spelling},
    translate::read::{Check, LABEL_KEY, created, interface, is_dns_name, is_label_key, selectors},
};

/// The hold time where nothing is said (RFC 4271 §10).
const HOLD_TIME: u16 = 90;
/// How much longer the hold time is than the keepalive time where one of them follows from the other (RFC 4271 §10).
const HOLD_PER_KEEPALIVE: u64 = 3;
/// The largest port that is taken, as in MetalLB.
const MAX_PORT: u16 = 16_384;

/// The return time where nothing is said.
const RESTART_TIME: Duration = Duration::from_secs(120);
/// What a NOTIFICATION has room for (RFC 9003).
const MAX_SHUTDOWN_BYTES: usize = 255;

/// Reads a BGPPeer.
pub fn read(object: BGPPeer, check: &mut Check) -> Option<Fact> {
    let (spec, created) = (object.spec, created(&object.metadata));
    let of_node = spec.node_values.clone().unwrap_or_default();
    let of_node = OnNodes {
        my_asn: node_key(of_node.my_asn, "myASN", check),
        peer_asn: node_key(of_node.peer_asn, "peerASN", check),
        peer_address: node_key(of_node.peer_address, "peerAddress", check),
        source_address: node_key(of_node.source_address, "sourceAddress", check),
        router_id: node_key(of_node.router_id, "routerID", check),
    };
    let my_asn = match (spec.my_asn, of_node.my_asn) {
        (Some(number), None) => asn(number, "spec.myASN", check).map(PerNode::Same),
        (None, Some(key)) => Some(PerNode::From(key)),
        _ => exactly_one("spec.myASN", "myASN and nodeValues.myASN", check),
    };
    let local_asn = spec.local_asn.and_then(|number| asn(number, "spec.localASN", check));
    let peer_asn = match (spec.peer_asn, spec.dynamic_asn, of_node.peer_asn) {
        (Some(number), None, None) => asn(number, "spec.peerASN", check).map(PeerAsn::Fixed).map(PerNode::Same),
        (None, Some(DynamicAsn::Internal), None) => Some(PerNode::Same(PeerAsn::Internal)),
        (None, Some(DynamicAsn::External), None) => Some(PerNode::Same(PeerAsn::External)),
        (None, None, Some(key)) => Some(PerNode::From(key)),
        _ => exactly_one("spec.peerASN", "peerASN, dynamicASN and nodeValues.peerASN", check),
    };
    let is_internal = |ours: Option<Asn>| match peer_asn.as_ref().and_then(PerNode::same) {
        Some(PeerAsn::Internal) => true,
        Some(theirs) => ours.is_some_and(|ours| theirs.is_internal(ours)),
        None => false,
    };
    let ours = my_asn.as_ref().and_then(PerNode::same).copied();
    if spec.ebgp_multi_hop && is_internal(ours) {
        check.invalid("spec.ebgpMultiHop", true, "false, since the peer is of our own AS");
    }
    let role = spec.role.map(role);
    if role.is_some() && is_internal(local_asn.or(ours)) {
        let detail = "is for peers of another AS only; leave it out".to_owned();
        check.refuse("spec.role", Fault::Schema { detail });
    }
    let place = place(&spec, of_node.peer_address, check);
    let source_address = source_address(&spec, of_node.source_address, place.as_ref(), check);
    let port = NonZeroU16::new(spec.peer_port).filter(|port| port.get() <= MAX_PORT);
    if port.is_none() {
        check.invalid("spec.peerPort", spec.peer_port, "1 to 16384");
    }
    let router_id = match (&spec.router_id, of_node.router_id) {
        (Some(_), Some(_)) => exclude_each_other("spec.routerID", "routerID and nodeValues.routerID", check),
        (None, key) => key.map(PerNode::From),
        (Some(text), None) => {
            let identifier = router_id_of(text);
            if identifier.is_none() {
                check.invalid("spec.routerID", text, "written as an IPv4 address, and not 0.0.0.0");
            }
            identifier.map(PerNode::Same)
        }
    };
    let timers = timers(spec.hold_time.map(Duration::from), spec.keepalive_time.map(Duration::from), check);
    let connect_time = spec.connect_time.map(Duration::from);
    if let Some(time) = connect_time.filter(|time| time.subsec_nanos() > 0 || !(1..=65_535).contains(&time.as_secs())) {
        check.invalid("spec.connectTime", format!("{time:?}"), "a whole number of seconds, 1s to 65535s");
    }
    let tcp_ao = tcp_ao(&spec, check);
    let password = password_place(&spec, check).map(|place| Password { place, tcp_ao });
    let bfd_profile = spec.bfd_profile.clone();
    if let Some(name) = bfd_profile.as_deref().filter(|name| !is_dns_name(name)) {
        check.invalid("spec.bfdProfile", name, "the name of a BFDProfile");
    }
    let graceful_restart = graceful_restart(&spec, check);
    let ttl_security = spec.ttl_security_hops.and_then(|hops| {
        if spec.ebgp_multi_hop {
            return exclude_each_other("spec.ttlSecurityHops", "ttlSecurityHops and ebgpMultiHop", check);
        }
        let number = NonZeroU8::new(hops).filter(|hops| hops.get() < u8::MAX);
        if number.is_none() {
            check.invalid("spec.ttlSecurityHops", hops, "1 to 254");
        }
        number
    });
    let max_prefixes = spec.max_prefixes.and_then(|most| {
        let number = NonZeroU32::new(most);
        if number.is_none() {
            check.invalid("spec.maxPrefixes", most, "1 to 4294967295");
        }
        number
    });
    let shutdown = spec.shutdown.clone();
    if let Some(text) = shutdown.as_ref().filter(|text| text.len() > MAX_SHUTDOWN_BYTES) {
        check.invalid("spec.shutdown", format!("{} bytes", text.len()), "at most 255 bytes");
    }
    let vrf = spec.vrf.as_deref().and_then(|name| interface(name, "spec.vrf", check));
    if spec.disable_mp {
        check.ignore("spec.disableMP", "it has no effect any more; remove it");
    }
    let node_selectors = selectors(spec.node_selectors, "spec.nodeSelectors", check);
    let (hold_time, keepalive_time) = timers?;
    let place = place?;
    let peer = BgpPeer {
        key: check.key.clone(),
        read_only: check.spelling == Spelling::Metallb,
        name: PeerName::from(&*check.key.name),
        generation: check.generation,
        my_asn: my_asn?,
        local_asn,
        peer_asn: peer_asn?,
        port: port?,
        source_address,
        vrf,
        router_id,
        hold_time,
        keepalive_time,
        connect_time,
        password,
        bfd_profile,
        graceful_restart,
        multi_hop: spec.ebgp_multi_hop,
        ttl_security,
        dual_stack: spec.dual_stack_address_family,
        passive: spec.passive || matches!(place, PerNode::Same(PeerPlace::Prefix(_))),
        role,
        max_prefixes,
        shutdown,
        place,
        node_selectors,
    };
    Some(Fact::BgpPeer(BgpPeerFact { peer: Arc::new(peer), created }))
}

fn asn(number: u32, field: &str, check: &mut Check) -> Option<Asn> {
    let asn = Asn::new(number);
    if asn.is_none() {
        check.invalid(field, number, "1 to 4294967295");
    }
    asn
}

fn role(role: BgpRole) -> Role {
    match role {
        BgpRole::Provider => Role::Provider,
        BgpRole::Rs => Role::RouteServer,
        BgpRole::RsClient => Role::RouteServerClient,
        BgpRole::Customer => Role::Customer,
        BgpRole::Peer => Role::Peer,
    }
}

fn exactly_one<T>(field: &str, what: &str, check: &mut Check) -> Option<T> {
    check.refuse(field, Fault::Schema { detail: format!("exactly one of {what} must be set") });
    None
}

fn exclude_each_other<T>(field: &str, what: &str, check: &mut Check) -> Option<T> {
    check.refuse(field, Fault::Schema { detail: format!("{what} exclude each other") });
    None
}

/// Where `spec.nodeValues` says that values stand.
struct OnNodes {
    my_asn: Option<NodeKey>,
    peer_asn: Option<NodeKey>,
    peer_address: Option<NodeKey>,
    source_address: Option<NodeKey>,
    router_id: Option<NodeKey>,
}

fn node_key(said: Option<NodeValue>, name: &str, check: &mut Check) -> Option<NodeKey> {
    let field = format!("spec.nodeValues.{name}");
    let NodeValue { label, annotation } = said?;
    match (label, annotation) {
        (Some(key), None) => {
            if !is_label_key(&key) {
                check.invalid(&format!("{field}.label"), &key, LABEL_KEY);
            }
            Some(NodeKey::Label(key))
        }
        (None, Some(key)) => {
            if !key.starts_with(ANNOTATION_PREFIX) || !is_label_key(&key) {
                let expected = "the key of an annotation that begins with `ferrogate.io/`; no others are read";
                check.invalid(&format!("{field}.annotation"), &key, expected);
            }
            Some(NodeKey::Annotation(key))
        }
        _ => exactly_one(&field, "label and annotation", check),
    }
}

fn place(spec: &BGPPeerSpec, of_node: Option<NodeKey>, check: &mut Check) -> Option<PerNode<PeerPlace>> {
    if spec.passive && spec.interface.is_some() {
        exclude_each_other::<()>("spec.passive", "passive and interface", check);
    }
    match (&spec.peer_address, &spec.interface, &spec.peer_prefix, of_node) {
        (Some(text), None, None, None) => {
            router(text, "spec.peerAddress", check).map(PeerPlace::Address).map(PerNode::Same)
        }
        (None, Some(name), None, None) => {
            interface(name, "spec.interface", check).map(PeerPlace::Interface).map(PerNode::Same)
        }
        (None, None, Some(text), None) => prefix(text, check).map(PeerPlace::Prefix).map(PerNode::Same),
        (None, None, None, Some(key)) => Some(PerNode::From(key)),
        _ => {
            let what = "peerAddress, interface, peerPrefix and nodeValues.peerAddress";
            exactly_one("spec.peerAddress", what, check)
        }
    }
}

fn source_address(
    spec: &BGPPeerSpec,
    of_node: Option<NodeKey>,
    place: Option<&PerNode<PeerPlace>>,
    check: &mut Check,
) -> Option<PerNode<IpAddr>> {
    let text = match (&spec.source_address, of_node) {
        (Some(_), Some(_)) => {
            let what = "sourceAddress and nodeValues.sourceAddress";
            return exclude_each_other("spec.sourceAddress", what, check);
        }
        (None, key) => return key.map(PerNode::From),
        (Some(text), None) => text,
    };
    let source = router(text, "spec.sourceAddress", check)?;
    let (family, theirs) = match place.and_then(PerNode::same) {
        Some(PeerPlace::Address(peer)) => (Family::of(*peer), "an address of the family of peerAddress"),
        Some(PeerPlace::Prefix(prefix)) => (Family::of(prefix.ip()), "an address of the family of peerPrefix"),
        Some(PeerPlace::Interface(_)) | None => return Some(PerNode::Same(source)),
    };
    if family != Family::of(source) {
        check.invalid("spec.sourceAddress", text, theirs);
    }
    Some(PerNode::Same(source))
}

/// An address that one router can have.
fn router(text: &str, field: &str, check: &mut Check) -> Option<IpAddr> {
    let address = router_address(text);
    if address.is_none() {
        check.invalid(field, text, "the IPv4 or IPv6 address of a router");
    }
    address
}

/// A prefix in which routers can be.
fn prefix(text: &str, check: &mut Check) -> Option<Prefix> {
    let is_one = |prefix: &Prefix| {
        let (first, is_mapped) = match prefix {
            Prefix::V4(prefix) => (IpAddr::V4(prefix.network()), false),
            Prefix::V6(prefix) => (IpAddr::V6(prefix.network()), prefix.network().to_ipv4_mapped().is_some()),
        };
        first == prefix.ip() && !first.is_multicast() && !is_mapped
    };
    // Without a length it would be an address.
    let prefix = text.parse().ok().filter(|prefix| text.contains('/') && is_one(prefix));
    if prefix.is_none() {
        let expected = "a prefix of routers such as 10.0.0.0/24, without bits beyond its length";
        check.invalid("spec.peerPrefix", text, expected);
    }
    prefix
}

fn graceful_restart(spec: &BGPPeerSpec, check: &mut Check) -> Option<RestartTime> {
    let said = spec.graceful_restart_time.map(Duration::from);
    if !spec.enable_graceful_restart {
        if said.is_some() {
            let detail = "needs enableGracefulRestart".to_owned();
            check.refuse("spec.gracefulRestartTime", Fault::Schema { detail });
        }
        return None;
    }
    let time = said.unwrap_or(RESTART_TIME);
    let seconds = u16::try_from(time.as_secs()).ok().filter(|_| time.subsec_nanos() == 0);
    let restart_time = seconds.and_then(RestartTime::from_seconds);
    if restart_time.is_none() {
        let shown = ferrogate_crds::Duration::from(time);
        check.invalid("spec.gracefulRestartTime", shown, "a whole number of seconds, 1s to 4095s");
    }
    restart_time
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

fn tcp_ao(spec: &BGPPeerSpec, check: &mut Check) -> Option<TcpAo> {
    let said = spec.tcp_ao.as_ref()?;
    if spec.password.is_none() && spec.password_secret.is_none() {
        let detail = "needs password or passwordSecret, which holds its key; set one, or remove tcpAO".to_owned();
        check.refuse("spec.tcpAO", Fault::Schema { detail });
    }
    Some(TcpAo {
        send_id: said.send_id,
        receive_id: said.recv_id.unwrap_or(said.send_id),
        algorithm: match said.algorithm {
            TcpAoAlgorithm::HmacSha1 => AoAlgorithm::HmacSha1,
            TcpAoAlgorithm::AesCmac => AoAlgorithm::AesCmac,
        },
    })
}

fn password_place(spec: &BGPPeerSpec, check: &mut Check) -> Option<PasswordPlace> {
    match (&spec.password, &spec.password_secret) {
        (None, None) => None,
        (Some(_), Some(_)) => {
            let detail = "password and passwordSecret exclude each other".to_owned();
            check.refuse("spec.password", Fault::Schema { detail });
            None
        }
        (Some(text), None) => {
            let key = Key::new(text);
            if key.is_none() {
                // Its value belongs in no message.
                check.invalid("spec.password", format!("{} bytes", text.len()), "1 to 80 bytes");
            }
            key.map(PasswordPlace::Clear)
        }
        (None, Some(secret)) => {
            if !is_dns_name(&secret.name) {
                check.invalid("spec.passwordSecret.name", &secret.name, "the name of a Secret");
            }
            if secret.namespace.as_ref().is_some_and(|namespace| **namespace != *check.key.namespace) {
                check.ignore("spec.passwordSecret.namespace", "the Secret is read beside the BGPPeer; leave it out");
            }
            Some(PasswordPlace::Secret { name: secret.name.clone(), key: None })
        }
    }
}
