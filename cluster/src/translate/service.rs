//! Service: what it wishes for, and what it may not say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use ferrogate_core::{
    model::{
        Family, PoolName, Prefix, ResourceVersion,
        entry::ENTRY_NAME,
        service::{
            ADDRESS_ASSIGNED, ENTRY_LABEL, FamilyPolicy, LoadBalancer, Protocol, Request, RequestFault, Service,
            ServicePort, ServiceStatus, SessionAffinity, TrafficPolicy, UnreadableRequest,
        },
    },
    write::Condition,
};
use k8s_openapi::{
    api::core::v1::{self, ServiceSpec},
    apimachinery::pkg::apis::meta::v1 as meta,
};

use crate::{
    objects::{Fact, ServiceFact},
    translate::{
        entry, metallb, pool,
        read::{Check, Rules, Source, address, created},
    },
};

/// What ports may be, for messages.
pub const PORT_RANGE: &str = "a port from 1 to 65535";

/// The annotation that names the wanted pool.
pub const POOL_ANNOTATION: &str = "ferrogate.io/address-pool";
/// The annotation that lists the wanted addresses.
pub const ADDRESSES_ANNOTATION: &str = "ferrogate.io/loadBalancerIPs";
/// The annotation that holds the sharing key.
pub const SHARING_ANNOTATION: &str = "ferrogate.io/allow-shared-ip";
/// The annotation that says which pool the addresses are from.
pub const FROM_POOL_ANNOTATION: &str = "ferrogate.io/ip-allocated-from-pool";
/// The annotation that gives a Service a new version, so that no write decided on an older one comes after it. Its
/// value is that older version.
pub const FENCE_ANNOTATION: &str = "ferrogate.io/fence";
/// The annotation that names the node which shall announce the Service by layer 2.
pub const NODE_ANNOTATION: &str = "ferrogate.io/announce-from";
/// The older way to write `spec.loadBalancerSourceRanges`, which counts where the field is not set.
const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

const OUR_ANNOTATIONS: [&str; 6] = [
    POOL_ANNOTATION,
    ADDRESSES_ANNOTATION,
    SHARING_ANNOTATION,
    FROM_POOL_ANNOTATION,
    FENCE_ANNOTATION,
    NODE_ANNOTATION,
];

/// `timeoutSeconds` where `sessionAffinityConfig` is not set.
const DEFAULT_AFFINITY_TIMEOUT: i32 = 10_800;

/// Reads a Service.
pub fn read(object: v1::Service, rules: &Rules, check: &mut Check) -> Option<Fact> {
    let annotations = object.metadata.annotations.clone().unwrap_or_default();
    let labels = object.metadata.labels.clone().unwrap_or_default();
    let mut observed = observed(&object);
    let honours_metallb = rules.metallb.is_some();
    let entry = (*check.key.name == *ENTRY_NAME).then(|| Box::new(entry::service(&object)));
    let Some(spec) = object.spec else {
        check.missing("spec", "a Service needs a spec");
        return None;
    };
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if !["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind) {
        check.invalid("spec.type", kind, "ClusterIP, NodePort, LoadBalancer or ExternalName");
    }
    let is_load_balancer = kind == "LoadBalancer";
    let served = is_load_balancer && rules.class.serves(spec.load_balancer_class.as_deref());
    // Of a Service that another serves it would look like ours to take away.
    if served && honours_metallb && observed.pool.is_none() {
        observed.pool = annotations
            .get(metallb::FROM_POOL_ANNOTATION)
            .filter(|name| !name.is_empty())
            .map(|name| name.as_str().into());
    }
    let cluster_ips = cluster_ips(&spec, is_load_balancer, check);
    let ports = ports(&spec, is_load_balancer, check);
    let source_ranges = source_ranges(&spec, &annotations, is_load_balancer, check);
    let session_affinity = session_affinity(&spec, check);
    let external_traffic_policy = match spec.external_traffic_policy.as_deref() {
        None | Some("Cluster" | "") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            check.invalid("spec.externalTrafficPolicy", other, "Cluster or Local");
            TrafficPolicy::Cluster
        }
    };
    let is_entry = match labels.get(ENTRY_LABEL).map(String::as_str) {
        None => false,
        Some("ingress") => is_load_balancer,
        Some(other) => {
            check.invalid(&format!("metadata.labels[{ENTRY_LABEL}]"), other, "`ingress`, or no such label");
            false
        }
    };
    let load_balancer = served.then(|| {
        for name in annotations.keys().filter(|name| name.starts_with("ferrogate.io/")) {
            if !OUR_ANNOTATIONS.contains(&name.as_str()) {
                let detail = format!("no such annotation; known are {}", OUR_ANNOTATIONS.join(", "));
                check.ignore(&format!("metadata.annotations[{name}]"), &detail);
            }
        }
        if honours_metallb {
            for (name, fault) in metallb::outdated(&annotations) {
                check.say(&format!("metadata.annotations[{name}]"), fault);
            }
        }
        let request = request(&spec, &annotations, honours_metallb);
        let (families, family_policy) = families(&spec, &cluster_ips, &request, rules.source, check);
        LoadBalancer { class: spec.load_balancer_class.clone(), families, family_policy, request }
    });
    let service = Service {
        key: check.key.clone(),
        labels,
        created: created(&object.metadata),
        generation: check.generation,
        // One in a file is a leftover of the cluster that the manifest was read from.
        version: match rules.source {
            Source::Kubernetes => object.metadata.resource_version.as_deref().unwrap_or_default().into(),
            Source::Directory => ResourceVersion::default(),
        },
        load_balancer,
        is_foreign: is_load_balancer && !served,
        ports,
        cluster_ips,
        selector: spec.selector.unwrap_or_default(),
        external_traffic_policy,
        health_check_node_port: spec.health_check_node_port.and_then(port_number),
        session_affinity,
        source_ranges,
        is_entry,
        wished_node: annotations.get(NODE_ANNOTATION).filter(|node| !node.is_empty()).map(|node| node.as_str().into()),
        endpoints: Vec::new(),
        observed,
    };
    let external_name = kind == "ExternalName";
    Some(Fact::Service(ServiceFact { service: Arc::new(service), external_name, is_left_out: false, entry }))
}

/// What is left of a Service that is refused: that it has the address its status shows, so that nobody else is given
/// it. Nothing leads to such a Service, and it is given nothing.
pub fn remnant(fact: Fact) -> Option<Fact> {
    let Fact::Service(fact) = fact else { return None };
    let mut service = Arc::unwrap_or_clone(fact.service);
    let wish = service.load_balancer.as_mut()?;
    let sharing_key = wish.sharing_key().cloned();
    wish.request = Err(UnreadableRequest { fault: RequestFault::LeftOut, sharing_key });
    service.is_entry = false;
    let service = Arc::new(service);
    Some(Fact::Service(ServiceFact { service, external_name: false, is_left_out: true, entry: None }))
}

/// The families of a Service that is left out: those of the addresses it has, so that it keeps them.
pub fn keep_families(service: &mut Service) {
    let Some(wish) = &mut service.load_balancer else { return };
    wish.families = service.observed.addresses.iter().map(|address| Family::of(*address)).collect();
    wish.family_policy =
        if wish.families.len() > 1 { FamilyPolicy::RequireDualStack } else { FamilyPolicy::SingleStack };
}

/// What the status and output annotation of a Service say.
pub fn observed(object: &v1::Service) -> ServiceStatus {
    let annotations = object.metadata.annotations.as_ref();
    let pool = annotations.and_then(|all| all.get(FROM_POOL_ANNOTATION)).filter(|name| !name.is_empty());
    let status = object.status.as_ref();
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let addresses = ingress.into_iter().flatten().filter_map(|one| address(one.ip.as_deref()?)).collect();
    let is_altered = ingress.into_iter().flatten().any(is_altered);
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let condition = conditions.into_iter().flatten().find(|one| one.type_ == ADDRESS_ASSIGNED);
    ServiceStatus {
        addresses,
        pool: pool.map(|name| PoolName::from(name.as_str())),
        condition: condition.map(|one: &meta::Condition| -> Condition { pool::condition(one.clone()) }),
        is_altered,
        assigned_at: condition.filter(|one| one.status == "True").map(|one| one.last_transition_time.0.as_second()),
    }
}

/// Whether an entry of the status says something else than one address of ours would. The API server adds the mode.
fn is_altered(entry: &v1::LoadBalancerIngress) -> bool {
    let is_plain =
        entry.ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()).is_some_and(|ip| ip == ip.to_canonical());
    !is_plain
        || entry.hostname.as_ref().is_some_and(|name| !name.is_empty())
        || entry.ip_mode.as_ref().is_some_and(|mode| mode != "VIP")
        || entry.ports.as_ref().is_some_and(|ports| !ports.is_empty())
}

/// A port number, if it is one.
pub fn port_number(number: i32) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}

/// A protocol by its Kubernetes name; none means TCP.
pub fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("TCP" | "") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

fn cluster_ips(spec: &ServiceSpec, is_load_balancer: bool, check: &mut Check) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.clone().unwrap_or_default();
    let (field, texts) = match &spec.cluster_ip {
        Some(one) if listed.is_empty() && !one.is_empty() => ("spec.clusterIP", vec![one.clone()]),
        _ => ("spec.clusterIPs", listed),
    };
    if texts.iter().any(|text| text == "None") {
        if is_load_balancer {
            check.invalid(field, "None", "no headless Service may be of type LoadBalancer");
        }
        return Vec::new();
    }
    let mut found = Vec::new();
    for text in texts {
        match address(&text) {
            Some(address) => found.push(address),
            None => check.invalid(field, text, "an IP address"),
        }
    }
    found
}

fn ports(spec: &ServiceSpec, is_load_balancer: bool, check: &mut Check) -> Vec<ServicePort> {
    let from = spec.ports.as_deref().unwrap_or_default();
    if from.is_empty() && is_load_balancer {
        check.missing("spec.ports", "a Service of type LoadBalancer needs at least one port");
    }
    let mut ports: Vec<ServicePort> = Vec::new();
    let mut names = BTreeSet::new();
    for (index, one) in from.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let name = one.name.clone().unwrap_or_default();
        if name.is_empty() && from.len() > 1 {
            check.missing(&format!("{field}.name"), "where there are several ports each needs a name");
        } else if !names.insert(name.clone()) {
            check.invalid(&format!("{field}.name"), &name, "each name once");
        }
        let Some(protocol) = protocol(one.protocol.as_deref()) else {
            let value = one.protocol.clone().unwrap_or_default();
            check.invalid(&format!("{field}.protocol"), value, "TCP, UDP or SCTP");
            continue;
        };
        let Some(port) = port_number(one.port) else {
            check.invalid(&format!("{field}.port"), one.port, PORT_RANGE);
            continue;
        };
        if ports.iter().any(|other| (other.protocol, other.port) == (protocol, port)) {
            check.invalid(&format!("{field}.port"), port, "each port once for each protocol");
        }
        let node_port = match one.node_port {
            None | Some(0) => None,
            Some(number) => {
                let port = port_number(number);
                if port.is_none() {
                    check.invalid(&format!("{field}.nodePort"), number, PORT_RANGE);
                }
                port
            }
        };
        ports.push(ServicePort { name, protocol, port, node_port });
    }
    ports
}

/// Who may connect. A range nobody can read refuses the Service: leaving it out could open the Service to everyone.
fn source_ranges(
    spec: &ServiceSpec,
    annotations: &BTreeMap<String, String>,
    is_load_balancer: bool,
    check: &mut Check,
) -> Vec<Prefix> {
    let listed = spec.load_balancer_source_ranges.clone().unwrap_or_default();
    let (field, texts) = match annotations.get(SOURCE_RANGES_ANNOTATION) {
        Some(value) if listed.is_empty() && !value.trim().is_empty() => {
            let parts = value.split(',').map(str::to_owned).collect();
            (format!("metadata.annotations[{SOURCE_RANGES_ANNOTATION}]"), parts)
        }
        _ => ("spec.loadBalancerSourceRanges".to_owned(), listed),
    };
    if !is_load_balancer {
        return Vec::new();
    }
    let mut ranges = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let trimmed = text.trim();
        let parsed = trimmed.contains('/').then(|| trimmed.parse::<Prefix>().ok()).flatten();
        match parsed.and_then(|prefix| Prefix::new(prefix.network(), prefix.prefix()).ok()) {
            Some(prefix) if prefix.ip() == prefix.ip().to_canonical() => ranges.push(prefix),
            _ => check.invalid(&format!("{field}[{index}]"), text, "a prefix such as 198.51.100.0/24"),
        }
    }
    ranges.sort();
    ranges.dedup();
    ranges
}

fn session_affinity(spec: &ServiceSpec, check: &mut Check) -> SessionAffinity {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => SessionAffinity::None,
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let seconds = config.and_then(|client| client.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_TIMEOUT);
            match u64::try_from(seconds) {
                Ok(seconds @ 1..=86_400) => SessionAffinity::ClientIp { timeout: Duration::from_secs(seconds) },
                _ => {
                    let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                    check.invalid(field, seconds, "1 to 86400 seconds");
                    SessionAffinity::None
                }
            }
        }
        Some(other) => {
            check.invalid("spec.sessionAffinity", other, "None or ClientIP");
            SessionAffinity::None
        }
    }
}

/// What the Service asks for. A wish that cannot be read refuses an address, not the Service: it is kept as its fault.
fn request(
    spec: &ServiceSpec,
    annotations: &BTreeMap<String, String>,
    honours_metallb: bool,
) -> Result<Request, UnreadableRequest> {
    let written = |ours: &'static str| match honours_metallb {
        true => metallb::wish(annotations, ours),
        false => annotations.get(ours).map(|value| (ours, value.as_str())),
    };
    let wish = |ours| written(ours).map(|(name, value)| (name, value.trim())).filter(|(_, value)| !value.is_empty());
    let said = |ours| wish(ours).map(|(_, value)| value);
    let sharing_key = said(SHARING_ANNOTATION).map(str::to_owned);
    match requested(wish(ADDRESSES_ANNOTATION), spec.load_balancer_ip.as_deref()) {
        Ok(addresses) => Ok(Request { addresses, pool: said(POOL_ANNOTATION).map(PoolName::from), sharing_key }),
        Err(fault) => Err(UnreadableRequest { fault, sharing_key }),
    }
}

/// The addresses that an annotation (its name and value) or `spec.loadBalancerIP` asks for.
fn requested(annotation: Option<(&str, &str)>, field: Option<&str>) -> Result<Vec<IpAddr>, RequestFault> {
    let field = field.map(str::trim).filter(|value| !value.is_empty());
    let (source, texts): (&str, Vec<&str>) = match (annotation, field) {
        (Some(_), Some(_)) => return Err(RequestFault::TwoSources),
        (Some((name, list)), None) => (name, list.split(',').map(str::trim).collect()),
        (None, Some(one)) => ("spec.loadBalancerIP", vec![one]),
        (None, None) => ("", Vec::new()),
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in texts {
        let Some(address) = address(text) else {
            return Err(RequestFault::NotAnAddress { field: source.to_owned(), value: text.to_owned() });
        };
        addresses.push(address);
    }
    match addresses[..] {
        [first, second] if Family::of(first) == Family::of(second) => {
            Err(RequestFault::SameFamily { field: source.to_owned(), first, second })
        }
        _ if addresses.len() > 2 => Err(RequestFault::TooMany { field: source.to_owned(), count: addresses.len() }),
        _ => Ok(addresses),
    }
}

/// The families of a Service. An API server has given it cluster IPs, and those decide. A manifest has none: there
/// `ipFamilies` and `ipFamilyPolicy` decide, then the addresses it asks for, and otherwise it is IPv4.
fn families(
    spec: &ServiceSpec,
    cluster_ips: &[IpAddr],
    request: &Result<Request, UnreadableRequest>,
    source: Source,
    check: &mut Check,
) -> (Vec<Family>, FamilyPolicy) {
    let mut listed = Vec::new();
    for (index, text) in spec.ip_families.iter().flatten().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        match text.as_str() {
            "IPv4" if !listed.contains(&Family::V4) => listed.push(Family::V4),
            "IPv6" if !listed.contains(&Family::V6) => listed.push(Family::V6),
            other => check.invalid(&field, other, "IPv4 or IPv6, each once"),
        }
    }
    let named = match spec.ip_family_policy.as_deref() {
        None | Some("") => None,
        Some("SingleStack") => Some(FamilyPolicy::SingleStack),
        Some("PreferDualStack") => Some(FamilyPolicy::PreferDualStack),
        Some("RequireDualStack") => Some(FamilyPolicy::RequireDualStack),
        Some(other) => {
            check.invalid("spec.ipFamilyPolicy", other, "SingleStack, PreferDualStack or RequireDualStack");
            None
        }
    };
    if named == Some(FamilyPolicy::SingleStack) && listed.len() > 1 {
        check.invalid("spec.ipFamilies", "IPv4, IPv6", "one family, as ipFamilyPolicy is SingleStack");
    }
    if !cluster_ips.is_empty() || source == Source::Kubernetes {
        let families = cluster_ips.iter().map(|address| Family::of(*address)).collect();
        return (families, named.unwrap_or_default());
    }
    let asked: Vec<Family> = match request {
        Ok(request) => request.addresses.iter().map(|address| Family::of(*address)).collect(),
        Err(_) => Vec::new(),
    };
    let mut families = if !listed.is_empty() {
        listed
    } else if !asked.is_empty() {
        asked
    } else {
        vec![Family::V4]
    };
    let policy = match named {
        Some(policy) => policy,
        None if families.len() > 1 => FamilyPolicy::RequireDualStack,
        None => FamilyPolicy::SingleStack,
    };
    if policy != FamilyPolicy::SingleStack
        && let [only] = families[..]
    {
        families.push(only.other());
    }
    if policy == FamilyPolicy::SingleStack {
        families.truncate(1);
    }
    (families, policy)
}
