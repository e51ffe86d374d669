//! One object as a value to a [`Reading`]: which kind it is, whether it fits its schema, and what its kind's own file
//! makes of it. Nothing here looks at a second object.

use std::{collections::BTreeSet, net::IpAddr};

use ferrogate_core::{
    model::{
        InterfaceName, ObjectKey, ObjectRef,
        selector::{LabelSelector, Operator, Requirement},
        service::ClassPolicy,
    },
    snapshot::{Fault, Problem},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    objects::{Fact, Id, Kind, OUR_API, Reading, Spelling},
    translate::{
        advertisement, bfd_profile, bgp_advertisement, bgp_peer, community, endpoints, entry, ingress, ingress_class,
        metallb, node, pool, secret, service,
    },
};

/// How objects are to be read.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Which load balancer classes are served.
    pub class: ClassPolicy,
    /// The namespace of our own objects.
    pub namespace: String,
    /// MetalLB's namespace, where its objects and annotations are honoured too.
    pub metallb: Option<String>,
    /// Whether Secrets are looked at, so that the passwords of peers are known.
    pub secrets: bool,
    /// Where objects come from.
    pub source: Source,
}

/// Where objects come from; decides what has been checked and filled in before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Manifest files: nobody has checked a schema or filled in a default.
    Directory,
    /// An API server: schemas hold, and fields that we do not know are newer than we are.
    Kubernetes,
}

/// What became of one value.
#[derive(Debug)]
pub enum Entry {
    /// An object of a kind that is read.
    Object(Reading),
    /// An object nobody could name, or of a kind nobody knows.
    Unknown(Problem),
    /// An object of a kind that is known and does not concern us.
    Foreign,
}

/// Reads one value: an object, or a `List` of them.
pub fn read(value: Value, rules: &Rules) -> Vec<Entry> {
    let is_list = value.get("apiVersion").and_then(Value::as_str) == Some("v1")
        && value.get("kind").and_then(Value::as_str) == Some("List");
    match value {
        Value::Object(mut list) if is_list => match list.remove("items") {
            Some(Value::Array(items)) => items.into_iter().map(|item| read_one(item, rules)).collect(),
            None | Some(Value::Null) => Vec::new(),
            Some(_) => {
                vec![Entry::Unknown(anonymous("items", Fault::Schema { detail: "must be a list of objects".into() }))]
            }
        },
        value => vec![read_one(value, rules)],
    }
}

fn anonymous(field: &str, fault: Fault) -> Problem {
    Problem { object: None, generation: 0, field: field.to_owned(), fault }
}

fn read_one(value: Value, rules: &Rules) -> Entry {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let (Some(api_version), Some(kind_name)) = (text("/apiVersion"), text("/kind")) else {
        let detail = "apiVersion and kind are missing".to_owned();
        return Entry::Unknown(anonymous("", Fault::Syntax { detail }));
    };
    let (name, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
    let generation = value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    let (kind, spelling) = match classify(api_version, kind_name, rules) {
        Class::Read(kind) => (kind, Spelling::Ours),
        Class::Metallb(kind) => (kind, Spelling::Metallb),
        Class::Foreign => return Entry::Foreign,
        class => {
            let fault = match class {
                Class::Retired { instead } => {
                    Fault::Unsupported { feature: format!("{api_version} {kind_name}"), instead: instead.to_owned() }
                }
                _ => Fault::UnknownKind { api_version: api_version.to_owned(), kind: kind_name.to_owned() },
            };
            let object = name.map(|name| ObjectRef {
                api_version: api_version.to_owned(),
                kind: kind_name.to_owned(),
                namespace: namespace.map(str::to_owned),
                name: name.to_owned(),
            });
            return Entry::Unknown(Problem { object, generation, field: String::new(), fault });
        }
    };
    let home = match (spelling, &rules.metallb) {
        (Spelling::Metallb, Some(home)) => home,
        _ if kind.is_configuration() => &rules.namespace,
        _ => "default",
    };
    let namespace = namespace.filter(|namespace| !namespace.is_empty()).unwrap_or(home).to_owned();
    let Some(name) = name else {
        let fault = Fault::Schema { detail: format!("a {kind_name} needs a name") };
        return Entry::Unknown(anonymous("metadata.name", fault));
    };
    // Names become paths of the state folder, so that one that is no name must not get any further.
    for (field, value) in [("metadata.name", name), ("metadata.namespace", &namespace)] {
        if !is_dns_name(value) {
            let expected = "lower case letters, digits, `-` and `.`, at most 253 characters".to_owned();
            return Entry::Unknown(anonymous(field, Fault::Invalid { value: value.to_owned(), expected }));
        }
    }
    let id = Id::new(kind, &namespace, name).spelled(spelling);
    let mut value = if spelling == Spelling::Metallb { metallb::in_our_words(value) } else { value };
    let mut check =
        Check { object: id.object(), key: id.key.clone(), spelling, generation, problems: Vec::new(), refused: false };
    if kind.is_configuration() && namespace != home {
        check.refuse("metadata.namespace", Fault::ForeignNamespace { ours: home.to_owned() });
    }
    if spelling == Spelling::Metallb {
        for field in metallb::drop_ours(kind, &mut value) {
            check.ignore(&field, "MetalLB has no such field; write the object with apiVersion ferrogate.io/v1beta1");
        }
    }
    let concerned_nodes = concerned_nodes(kind, &value, &check);
    let fact = read_kind(kind, value, rules, &mut check);
    let Check { problems, refused, .. } = check;
    let fact = if refused { fact.and_then(service::remnant) } else { fact };
    Entry::Object(Reading { id, generation, fact, is_remnant: refused, problems, concerned_nodes })
}

/// Which nodes an object is about, so that others need not be told what is wrong with it.
fn concerned_nodes(kind: Kind, value: &Value, check: &Check) -> Vec<LabelSelector> {
    if !matches!(kind, Kind::L2Advertisement | Kind::BgpAdvertisement | Kind::BgpPeer) {
        return Vec::new();
    }
    let listed = value.pointer("/spec/nodeSelectors").cloned().unwrap_or_default();
    let Ok(listed) = serde_json::from_value::<Vec<meta::LabelSelector>>(listed) else { return Vec::new() };
    let mut aside = Check { problems: Vec::new(), refused: false, ..check.clone() };
    let read = selectors(listed, "spec.nodeSelectors", &mut aside);
    // One that cannot be read may have meant any node.
    if aside.refused { Vec::new() } else { read }
}

fn read_kind(kind: Kind, mut value: Value, rules: &Rules, check: &mut Check) -> Option<Fact> {
    if matches!(kind, Kind::L2Advertisement | Kind::BgpAdvertisement | Kind::BfdProfile | Kind::Community)
        && let Some(object) = value.as_object_mut()
    {
        // As the schema's default: whoever wishes for nothing in particular need not say so.
        object.entry("spec").or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    match kind {
        Kind::Service => service::read(decode(value, rules, check)?, rules, check),
        Kind::EndpointSlice => endpoints::read(decode(value, rules, check)?, check),
        Kind::Pod => Some(entry::pod(decode(value, rules, check)?)),
        Kind::Node => node::read(decode(value, rules, check)?, check),
        Kind::Namespace => Some(node::read_namespace(decode(value, rules, check)?)),
        Kind::Ingress => ingress::read(decode(value, rules, check)?, check),
        Kind::IngressClass => ingress_class::read(decode(value, rules, check)?),
        Kind::IpAddressPool => pool::read(decode(value, rules, check)?, check),
        Kind::L2Advertisement => advertisement::read(decode(value, rules, check)?, check),
        Kind::Secret => Some(secret::read(decode(value, rules, check)?)),
        Kind::BgpAdvertisement => bgp_advertisement::read(decode(value, rules, check)?, check),
        Kind::BgpPeer => bgp_peer::read(decode(value, rules, check)?, check),
        Kind::BfdProfile => bfd_profile::read(decode(value, rules, check)?, check),
        Kind::Community => community::read(decode(value, rules, check)?, check),
        Kind::Gateway(_) => {
            check.refuse(
                "",
                Fault::Unsupported {
                    feature: "the Gateway API".to_owned(),
                    instead: "this release serves Ingress only; the object is not in force".to_owned(),
                },
            );
            None
        }
    }
}

/// The value as its kind's type; a field that does not fit refuses the object, one that nobody knows is told.
fn decode<T: DeserializeOwned>(value: Value, rules: &Rules, check: &mut Check) -> Option<T> {
    let mut unknown = Vec::new();
    let Ok(object) = serde_ignored::deserialize(&value, |path| unknown.push(path.to_string())) else {
        return locate(value, check);
    };
    if rules.source == Source::Directory {
        // The wrapping types of optional fields show up as `?` elements of the path.
        // The derived types of our own kinds do not look at what has been looked at already.
        let paths = unknown.iter().map(|path| path.replace(".?", ""));
        for path in paths.filter(|path| !matches!(path.as_str(), "apiVersion" | "kind")) {
            check.ignore(&path, "there is no such field in this kind; check its spelling and its indentation");
        }
    }
    Some(object)
}

/// Reads a value that does not fit once more, and says at which field. To know that the name of every field is copied,
/// which would be for nothing with the many values that fit.
#[cold]
fn locate<T: DeserializeOwned>(value: Value, check: &mut Check) -> Option<T> {
    match serde_path_to_error::deserialize(value) {
        Ok(object) => Some(object),
        Err(error) => {
            let path = error.path().to_string();
            let field = if path == "." { String::new() } else { path };
            // What the decoder says shows the value.
            let detail = match may_be_secret(&check.object.kind, &field) {
                true => "its value is not of the type that the kind has there (in quotes a number is text)".to_owned(),
                false => error.into_inner().to_string(),
            };
            check.refuse(&field, Fault::Schema { detail });
            None
        }
    }
}

/// Whether the value of a field belongs in no message.
fn may_be_secret(kind: &str, field: &str) -> bool {
    kind == Kind::Secret.name() || (kind == Kind::BgpPeer.name() && field.starts_with("spec.password"))
}

enum Class {
    Read(Kind),
    Metallb(Kind),
    Foreign,
    Retired { instead: &'static str },
    Unknown,
}

fn classify(api_version: &str, kind: &str, rules: &Rules) -> Class {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    match (group, version, kind) {
        ("", "v1", "Namespace") => Class::Read(Kind::Namespace),
        ("", "v1", "Node") => Class::Read(Kind::Node),
        ("", "v1", "Secret") => Class::Read(Kind::Secret),
        ("", "v1", "Service") => Class::Read(Kind::Service),
        // In a folder the proxies are no pods, and other people's may well lie there.
        ("", "v1", "Pod") if rules.source == Source::Kubernetes => Class::Read(Kind::Pod),
        ("discovery.k8s.io", "v1", "EndpointSlice") => Class::Read(Kind::EndpointSlice),
        ("networking.k8s.io", "v1", "IngressClass") => Class::Read(Kind::IngressClass),
        ("networking.k8s.io", "v1", "Ingress") => Class::Read(Kind::Ingress),
        ("extensions" | "networking.k8s.io", "v1beta1", "Ingress" | "IngressClass") => {
            Class::Retired { instead: "write it as networking.k8s.io/v1" }
        }
        ("", "v1", "Endpoints") => Class::Retired { instead: "write a discovery.k8s.io/v1 EndpointSlice" },
        ("metallb.io", version, kind) => classify_metallb(version, kind, rules),
        ("", "v1", kind) if CORE_KINDS.contains(&kind) => Class::Foreign,
        ("gateway.networking.k8s.io" | "gateway.networking.x-k8s.io", _, kind) => {
            match GATEWAY_KINDS.iter().find(|known| **known == kind) {
                Some(kind) => Class::Read(Kind::Gateway(kind)),
                None => Class::Unknown,
            }
        }
        _ if api_version == OUR_API => match kind {
            "IPAddressPool" => Class::Read(Kind::IpAddressPool),
            "L2Advertisement" => Class::Read(Kind::L2Advertisement),
            "BGPAdvertisement" => Class::Read(Kind::BgpAdvertisement),
            "BGPPeer" => Class::Read(Kind::BgpPeer),
            "BFDProfile" => Class::Read(Kind::BfdProfile),
            "Community" => Class::Read(Kind::Community),
            // What we write ourselves and nobody needs to hand us.
            "ServiceL2Status" | "ServiceBGPStatus" | "BGPSessionStatus" | "ConfigurationState" => Class::Foreign,
            _ => Class::Unknown,
        },
        (group, version, kind) => {
            let known = FOREIGN_KINDS.iter().find(|(known, _, _)| *known == group);
            match known {
                Some((_, versions, kinds)) if versions.contains(&version) && kinds.contains(&kind) => Class::Foreign,
                _ => Class::Unknown,
            }
        }
    }
}

fn classify_metallb(version: &str, kind: &str, rules: &Rules) -> Class {
    let is_outdated_peer = (version, kind) == ("v1beta1", "BGPPeer");
    let is_read = |known: &Kind| {
        known.is_configuration() && known.name() == kind && known.metallb_api_version().ends_with(version)
    };
    match Kind::ALL.into_iter().find(|known| is_read(known) || (is_outdated_peer && *known == Kind::BgpPeer)) {
        Some(kind) if rules.metallb.is_some() => Class::Metallb(kind),
        Some(_) => Class::Retired {
            instead: "write it with apiVersion ferrogate.io/v1beta1, as `ferrogate migrate metallb` does, or start \
                      with --metallb-compat",
        },
        None if METALLB_REPORTS.contains(&kind) => Class::Foreign,
        None => Class::Retired { instead: "`ferrogate migrate metallb` writes it as ferrogate.io/v1beta1" },
    }
}

/// What MetalLB writes about itself.
const METALLB_REPORTS: &[&str] = &["ServiceL2Status", "ServiceBGPStatus", "ConfigurationState"];

/// Kinds of the core group that people keep beside their Services.
const CORE_KINDS: &[&str] = &[
    "Binding",
    "ConfigMap",
    "Event",
    "LimitRange",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "ServiceAccount",
];

const GATEWAY_KINDS: &[&str] = &[
    "BackendTLSPolicy",
    "GRPCRoute",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "UDPRoute",
    "XBackend",
    "XBackendTrafficPolicy",
    "XMesh",
];

/// Group, versions and kinds of Kubernetes itself that people keep beside their Services.
const FOREIGN_KINDS: &[(&str, &[&str], &[&str])] = &[
    (
        "admissionregistration.k8s.io",
        &["v1"],
        &[
            "MutatingWebhookConfiguration",
            "ValidatingWebhookConfiguration",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ],
    ),
    ("apiextensions.k8s.io", &["v1"], &["CustomResourceDefinition"]),
    ("apiregistration.k8s.io", &["v1"], &["APIService"]),
    ("apps", &["v1"], &["ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"]),
    ("autoscaling", &["v1", "v2"], &["HorizontalPodAutoscaler"]),
    ("batch", &["v1"], &["CronJob", "Job"]),
    ("certificates.k8s.io", &["v1"], &["CertificateSigningRequest"]),
    ("coordination.k8s.io", &["v1"], &["Lease"]),
    ("events.k8s.io", &["v1"], &["Event"]),
    ("flowcontrol.apiserver.k8s.io", &["v1"], &["FlowSchema", "PriorityLevelConfiguration"]),
    ("kustomize.config.k8s.io", &["v1beta1", "v1alpha1"], &["Kustomization", "Component"]),
    ("networking.k8s.io", &["v1"], &["IPAddress", "NetworkPolicy", "ServiceCIDR"]),
    ("node.k8s.io", &["v1"], &["RuntimeClass"]),
    ("policy", &["v1"], &["PodDisruptionBudget"]),
    ("rbac.authorization.k8s.io", &["v1"], &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
    ("scheduling.k8s.io", &["v1"], &["PriorityClass"]),
    ("storage.k8s.io", &["v1"], &["CSIDriver", "CSINode", "StorageClass", "VolumeAttachment"]),
];

/// Collects what is wrong with one object while its kind's file reads it.
#[derive(Clone, Debug)]
pub struct Check {
    object: ObjectRef,
    /// Namespace and name of the object.
    pub key: ObjectKey,
    /// In whose words it is written.
    pub spelling: Spelling,
    /// `metadata.generation`.
    pub generation: i64,
    problems: Vec<Problem>,
    refused: bool,
}

impl Check {
    /// Says that the object cannot be in force.
    pub fn refuse(&mut self, field: &str, fault: Fault) {
        self.refused = true;
        self.say(field, fault);
    }

    /// Refuses the object for a value that is not allowed.
    pub fn invalid(&mut self, field: &str, value: impl ToString, expected: &str) {
        self.refuse(field, Fault::Invalid { value: value.to_string(), expected: expected.to_owned() });
    }

    /// Refuses the object for a field that must be there.
    pub fn missing(&mut self, field: &str, detail: &str) {
        self.refuse(field, Fault::Schema { detail: detail.to_owned() });
    }

    /// Says that a part is left out while the rest stays in force.
    pub fn ignore(&mut self, field: &str, detail: &str) {
        self.say(field, Fault::Ignored { detail: detail.to_owned() });
    }

    /// Adds a problem without refusing the object.
    pub fn say(&mut self, field: &str, fault: Fault) {
        let object = Some(self.object.clone());
        self.problems.push(Problem { object, generation: self.generation, field: field.to_owned(), fault });
    }
}

/// Whether a text can be the name of an object: an RFC 1123 subdomain.
pub fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// An IP address in its plainest form: an IPv4-mapped IPv6 address is the IPv4 address it stands for.
pub fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Seconds since 1970 of `metadata.creationTimestamp`; 0 where it is not set.
pub fn created(meta: &meta::ObjectMeta) -> i64 {
    meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

/// Names of objects, checked; the same name twice is refused.
pub fn each_once<T: From<String> + Ord>(from: Vec<String>, field: &str, check: &mut Check) -> BTreeSet<T> {
    let mut names = BTreeSet::new();
    for (index, name) in from.into_iter().enumerate() {
        let field = format!("{field}[{index}]");
        if !is_dns_name(&name) {
            check.invalid(&field, &name, "the name of an object");
        } else if !names.insert(T::from(name.clone())) {
            check.invalid(&field, &name, "each name once");
        }
    }
    names
}

/// The longest name of an interface that the kernel takes (`IFNAMSIZ` less the ending zero).
const MAX_INTERFACE_NAME: usize = 15;

/// The name of an interface, checked.
pub fn interface(name: &str, field: &str, check: &mut Check) -> Option<InterfaceName> {
    let fits = !name.is_empty()
        && name.len() <= MAX_INTERFACE_NAME
        && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
    if !fits {
        check.invalid(field, name, "the exact name of an interface, at most 15 characters");
    }
    fits.then(|| InterfaceName::from(name))
}

/// A label selector, checked as an API server would.
pub fn selector(from: meta::LabelSelector, field: &str, check: &mut Check) -> LabelSelector {
    let match_labels = from.match_labels.unwrap_or_default();
    for (key, value) in &match_labels {
        let field = format!("{field}.matchLabels[{key}]");
        if !is_label_key(key) {
            check.invalid(&field, key, LABEL_KEY);
        }
        if !is_label_value(value) {
            check.invalid(&field, value, LABEL_VALUE);
        }
    }
    let mut match_expressions = Vec::new();
    for (index, requirement) in from.match_expressions.unwrap_or_default().into_iter().enumerate() {
        let field = format!("{field}.matchExpressions[{index}]");
        if !is_label_key(&requirement.key) {
            check.invalid(&format!("{field}.key"), &requirement.key, LABEL_KEY);
        }
        let values = requirement.values.unwrap_or_default();
        let mut distinct = BTreeSet::new();
        for (index, value) in values.iter().enumerate() {
            let field = format!("{field}.values[{index}]");
            if !is_label_value(value) {
                check.invalid(&field, value, LABEL_VALUE);
            }
            if !distinct.insert(value) {
                check.invalid(&field, value, "each value once");
            }
        }
        let no_values = values.is_empty();
        let operator = match requirement.operator.as_str() {
            "In" if !no_values => Operator::In(values),
            "NotIn" if !no_values => Operator::NotIn(values),
            "Exists" if no_values => Operator::Exists,
            "DoesNotExist" if no_values => Operator::DoesNotExist,
            other => {
                let expected = "In or NotIn with values, Exists or DoesNotExist without";
                check.invalid(&format!("{field}.operator"), other, expected);
                continue;
            }
        };
        match_expressions.push(Requirement { key: requirement.key, operator });
    }
    LabelSelector { match_labels, match_expressions }
}

/// What [`is_label_key`] wants.
pub const LABEL_KEY: &str = "a label: letters, digits, `-`, `_` and `.`, at most 63, after a domain and `/` if need be";
const LABEL_VALUE: &str = "a value of a label: letters, digits, `-`, `_` and `.`, at most 63";

/// Whether a text can be the key of a label or an annotation.
pub fn is_label_key(key: &str) -> bool {
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    domain.is_none_or(is_dns_name) && !name.is_empty() && is_label_value(name)
}

fn is_label_value(value: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && is_end(bytes.first())
        && is_end(bytes.last())
}

/// A list of selectors, checked; the same selector twice is refused.
pub fn selectors(from: Vec<meta::LabelSelector>, field: &str, check: &mut Check) -> Vec<LabelSelector> {
    let mut selectors = Vec::new();
    for (index, one) in from.into_iter().enumerate() {
        let field = format!("{field}[{index}]");
        let one = selector(one, &field, check);
        if selectors.contains(&one) {
            check.refuse(&field, Fault::Schema { detail: "the same selector stands here twice; remove one".into() });
        }
        selectors.push(one);
    }
    selectors
}
