//! Ingresses of our class.

use std::{fmt, net::IpAddr, num::NonZeroU16};

use crate::model::{ObjectKey, ServiceKey};

/// An Ingress whose class is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.creationTimestamp` in seconds since 1970; 0 where the source has none. Older rules win.
    pub created: i64,
    /// `metadata.generation`; 0 where the source has none.
    pub generation: i64,
    /// `spec.defaultBackend`.
    pub default_backend: Option<Backend>,
    /// `spec.rules`.
    pub rules: Vec<IngressRule>,
    /// `status.loadBalancer.ingress[].ip` as it stands now.
    pub observed_addresses: Vec<IpAddr>,
}

/// One rule: a host and its paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressRule {
    /// Which hosts it takes.
    pub host: Host,
    /// `http.paths`; empty sends everything of the host to the default backend.
    pub paths: Vec<IngressPath>,
}

/// A host a rule takes, in lower case and without port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// Exactly this name.
    Exact(String),
    /// Exactly one label before this suffix; `*.example.com` is kept as `example.com`.
    Wildcard(String),
    /// Every host that no other rule claims.
    Any,
}

/// One path of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressPath {
    /// The path as written; begins with `/`.
    pub path: String,
    /// How it is compared.
    pub kind: PathKind,
    /// Where requests go.
    pub backend: Backend,
}

/// `pathType`. `ImplementationSpecific` is read as `Prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathKind {
    /// The whole path, case-sensitive.
    Exact,
    /// Whole elements between slashes, case-sensitive.
    Prefix,
}

/// A Service port that takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The Service, in the namespace of the Ingress.
    pub service: ServiceKey,
    /// Which of its ports.
    pub port: BackendPort,
}

/// A Service port by name or number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendPort {
    /// `port.name`.
    Name(String),
    /// `port.number`.
    Number(NonZeroU16),
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "Exact",
            Self::Prefix => "Prefix",
        })
    }
}

impl fmt::Display for BackendPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name:?}"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl Ingress {
    /// Every Service it sends requests to, in the order written.
    pub fn backends(&self) -> impl Iterator<Item = &ServiceKey> {
        let paths = self.rules.iter().flat_map(|rule| &rule.paths).map(|path| &path.backend);
        self.default_backend.iter().chain(paths).map(|backend| &backend.service)
    }
}
