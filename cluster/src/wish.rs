//! What a person asks of the speakers, as an annotation of the Service: every speaker reads it, and it outlives them all.

use ferrogate_core::model::{NodeName, ServiceKey};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::{Cluster, translate::service::NODE_ANNOTATION};

/// Under which name the annotation is written.
const MANAGER: &str = "ferrogate-move";

/// Why a wish was not written.
#[derive(Debug, thiserror::Error)]
pub enum WishError {
    /// Manifests of a folder are not ours to write.
    #[error("a folder of manifests is written by its owner alone")]
    Folder,
    /// The API server did not take it.
    #[error("the API server does not let the annotations of Service {service} be patched")]
    Refused {
        /// The Service.
        service: ServiceKey,
        /// What it said.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Cluster {
    /// Asks that a node announce a Service by layer 2 whenever it can, or takes that back.
    ///
    /// # Errors
    /// Where there is no API server, and when it refuses; it wants the right to patch this Service.
    pub async fn wish(&self, service: &ServiceKey, node: Option<&NodeName>) -> Result<(), WishError> {
        let client = self.client.clone().ok_or(WishError::Folder)?;
        let api: Api<Service> = Api::namespaced(client, &service.namespace);
        let annotation = json!({ NODE_ANNOTATION: node.map(NodeName::as_str) });
        let patch = Patch::Merge(json!({ "metadata": { "annotations": annotation } }));
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let refused = |error| WishError::Refused { service: service.clone(), source: Box::new(error) };
        api.patch(&service.name, &parameters, &patch).await.map(drop).map_err(refused)
    }
}
