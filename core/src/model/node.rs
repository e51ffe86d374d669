//! Nodes.

use std::net::IpAddr;

use crate::model::{Family, Labels, NodeName};

/// The label that keeps a node from announcing (any value), as kubeadm sets it on control planes.
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// How the key of an annotation begins that may say something of a node.
pub const ANNOTATION_PREFIX: &str = "ferrogate.io/";

/// A Node object, as far as announcing and forwarding care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: NodeName,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Those of `metadata.annotations` whose key begins with [`ANNOTATION_PREFIX`]. Nobody looks at the others, and
    /// some are large.
    pub annotations: Labels,
    /// `status.addresses` of type `InternalIP`, in the order written.
    pub internal_addresses: Vec<IpAddr>,
    /// Condition `NetworkUnavailable` is `True`.
    pub network_unavailable: bool,
    /// `spec.unschedulable`: it is cordoned.
    pub unschedulable: bool,
}

impl Node {
    /// Whether it has an address of this family; a node of which none is known may have any.
    pub fn has_family(&self, family: Family) -> bool {
        self.internal_addresses.is_empty() || self.internal_addresses.iter().any(|ip| Family::of(*ip) == family)
    }
}
