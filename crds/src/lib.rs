//! The custom resources that users write: group `ferrogate.io/v1beta1`, one file per kind.
//!
//! Kinds and fields are spelled as MetalLB spells them, so that its users' hands already know them. Whatever a schema
//! can say (ranges, patterns, relations between fields) is said here, so that a mistake is refused at the door; what
//! needs a second object to judge is left to `ferrogate-cluster`. The comments on fields are what
//! `kubectl explain` prints. `crds/yaml` holds [`definitions`] as files.

// Clippy takes the repeated `type_` and `json_path` of printer columns for attributes given twice.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{CustomResourceExt, KubeSchema};
use serde::{Deserialize, Serialize};

mod bfd_profile;
mod bgp_advertisement;
mod bgp_peer;
mod bgp_session_status;
mod community;
mod configuration_state;
mod duration;
mod ip_address_pool;
mod l2_advertisement;
mod schema;
mod service_bgp_status;
mod service_l2_status;

pub use bfd_profile::{BFDProfile, BFDProfileSpec};
pub use bgp_advertisement::{BGPAdvertisement, BGPAdvertisementSpec};
pub use bgp_peer::{
    BGPPeer, BGPPeerSpec, BgpRole, DynamicAsn, NodeValue, NodeValues, SecretReference, TcpAo, TcpAoAlgorithm,
};
pub use bgp_session_status::{
    BGPSessionStatus, BGPSessionStatusSpec, BGPSessionStatusStatus, SessionClose, SessionCloser, WithheldPrefixes,
};
pub use community::{Community, CommunityAlias, CommunitySpec};
pub use configuration_state::{
    ConfigurationResult, ConfigurationState, ConfigurationStateSpec, ConfigurationStateStatus,
};
pub use duration::{Duration, ParseDurationError};
pub use ip_address_pool::{
    AddressUse, IPAddressPool, IPAddressPoolSpec, IPAddressPoolStatus, ServiceAllocation, Sharing,
};
pub use l2_advertisement::{L2Advertisement, L2AdvertisementSpec, PreferredNodeSelector, Stickiness};
pub use service_bgp_status::{ServiceBGPStatus, ServiceBGPStatusSpec, ServiceBGPStatusStatus};
pub use service_l2_status::{
    ConflictStatus, InterfaceStatus, ServiceL2Status, ServiceL2StatusSpec, ServiceL2StatusStatus,
};

/// The API group of every kind here.
pub const GROUP: &str = "ferrogate.io";
/// The one version of every kind here.
pub const VERSION: &str = "v1beta1";
/// `apiVersion` of every kind here.
pub const API_VERSION: &str = "ferrogate.io/v1beta1";

/// What was found about a configuration object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationStatus {
    /// `Accepted` says whether the object is in force, and if not, which field is wrong and what it should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// The definitions of all kinds, ready for an API server, in alphabetical order of their plural names.
///
/// Use these rather than `Kind::crd()`: they are rid of what an API server would warn about or read differently
/// (`nullable`, number formats of Rust, Rust names as titles).
pub fn definitions() -> Vec<CustomResourceDefinition> {
    [
        BFDProfile::crd(),
        BGPAdvertisement::crd(),
        BGPPeer::crd(),
        BGPSessionStatus::crd(),
        Community::crd(),
        ConfigurationState::crd(),
        IPAddressPool::crd(),
        L2Advertisement::crd(),
        ServiceBGPStatus::crd(),
        ServiceL2Status::crd(),
    ]
    .into_iter()
    .map(schema::finish)
    .collect()
}
