//! ConfigurationState: whether a component could use the configuration. Written by controller and speakers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::schema;

/// Nothing to wish for: this kind only reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "ferrogate.io",
    version = "v1beta1",
    kind = "ConfigurationState",
    plural = "configurationstates",
    singular = "configurationstate",
    namespaced,
    status = "ConfigurationStateStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "fgconfig",
    category = "ferrogate",
    doc = "Reports whether the controller, or the speaker of one node, could use all of the configuration. \
           Written by them; editing it has no effect.",
    printcolumn(name = "Result", type_ = "string", json_path = ".status.result"),
    printcolumn(name = "ErrorSummary", type_ = "string", json_path = ".status.errorSummary"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct ConfigurationStateSpec {}

/// What a component makes of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationStateStatus {
    /// `Valid`: all of it is in force. `Invalid`: something is left out, see errorSummary. `Unknown`: not looked yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ConfigurationResult")]
    pub result: Option<ConfigurationResult>,

    /// What is wrong, one line for each problem; empty when nothing is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32768))]
    pub error_summary: String,

    /// The judgement of each part of the component.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Whether a component could use the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ConfigurationResult {
    /// All of it is in force.
    Valid,
    /// Something is left out.
    Invalid,
    /// Not looked yet.
    Unknown,
}
