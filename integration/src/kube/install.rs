//! Ferrogate as its users install it: the definitions of `crds/yaml` and the manifests of `examples/install`.

use anyhow::Result;

use super::ControlPlane;
use crate::workspace;

/// The namespace of Ferrogate's own objects.
pub const NAMESPACE: &str = "ferrogate-system";

/// The folder of generated definitions.
pub const DEFINITIONS: &str = "crds/yaml";

/// The folder of manifests that are applied after them.
pub const MANIFESTS: &str = "examples/install/manifests";

impl ControlPlane {
    /// Applies definitions and manifests, and waits until objects of our kinds can be made.
    ///
    /// # Errors
    /// When the API server refuses something.
    pub fn install(&self) -> Result<()> {
        self.install_definitions()?;
        self.kubectl(["apply", "--filename", &folder(MANIFESTS)])?;
        Ok(())
    }

    /// Applies the definitions of our kinds alone, and waits until the API server serves them.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn install_definitions(&self) -> Result<()> {
        let definitions = folder(DEFINITIONS);
        self.kubectl(["apply", "--filename", &definitions])?;
        self.kubectl(["wait", "--for", "condition=Established", "--timeout", "60s", "--filename", &definitions])?;
        Ok(())
    }
}

fn folder(name: &str) -> String {
    workspace::root().join(name).display().to_string()
}
