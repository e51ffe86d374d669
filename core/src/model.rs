//! The names everyone shares, and the facts a [`Snapshot`](crate::snapshot::Snapshot) is made of.
//!
//! These types cannot hold what their source forbids: whoever builds one (`cluster::translate`) has already checked
//! it. Foreign types (Kubernetes API structs) end before they reach this module.

use std::{borrow::Borrow, collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

pub mod advertisement;
pub mod bfd_profile;
pub mod community;
pub mod entry;
pub mod node;
pub mod peer;
pub mod pool;
pub mod route;
pub mod selector;
pub mod service;

/// Labels of an object (`metadata.labels`).
pub type Labels = BTreeMap<String, String>;

/// A prefix of either family, host bits masked off.
pub type Prefix = ipnetwork::IpNetwork;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self(name.into())
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                Self(name.into())
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// Name of a Node (`metadata.name`), which is also the name of its speaker.
    NodeName
}
name! {
    /// Name of an IPAddressPool (`metadata.name`).
    PoolName
}
name! {
    /// Name of a BGPPeer (`metadata.name`).
    PeerName
}
name! {
    /// Name of a network interface as the kernel spells it, at most 15 bytes.
    InterfaceName
}

name! {
    /// Which state of an object was seen (`metadata.resourceVersion`): opaque, and empty where the source has none.
    ResourceVersion
}

impl Default for ResourceVersion {
    fn default() -> Self {
        Self::from("")
    }
}

impl ResourceVersion {
    /// Whether the source tells the states of an object apart.
    pub fn is_known(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Namespace and name of a namespaced object, shown as `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

/// Namespace and name of a Service.
pub type ServiceKey = ObjectKey;

impl ObjectKey {
    /// A key from its two halves.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which object a problem, condition or Event is about; shown as `Kind namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// `apiVersion`, e.g. `v1` or `ferrogate.io/v1beta1`.
    pub api_version: String,
    /// `kind`, e.g. `Service`.
    pub kind: String,
    /// `metadata.namespace`; `None` for cluster-scoped kinds.
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectRef {
    /// Refers to a Service.
    pub fn service(key: &ServiceKey) -> Self {
        Self::namespaced("v1", "Service", key)
    }

    /// Refers to an Ingress.
    pub fn ingress(key: &ObjectKey) -> Self {
        Self::namespaced("networking.k8s.io/v1", "Ingress", key)
    }

    /// Refers to a namespaced object of any kind.
    pub fn namespaced(api_version: &str, kind: &str, key: &ObjectKey) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: Some(key.namespace.to_string()),
            name: key.name.to_string(),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {}/{}", self.kind, namespace, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// IP family, in the order Kubernetes names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address. IPv4-mapped IPv6 addresses count as IPv6; `translate` never lets one in.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The other family.
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
