//! Ferrogate as its users install it: the definitions of `crds/yaml` and the manifests of `examples/install`.

use std::fs;

use anyhow::Result;

use super::ControlPlane;
use crate::workspace;

/// The namespace of Ferrogate's own objects.
pub const NAMESPACE: &str = "ferrogate-system";

/// The folder of generated definitions.
pub const DEFINITIONS: &str = "crds/yaml";

/// The folder of manifests that are applied after them.
pub const MANIFESTS: &str = "examples/install/manifests";

/// The one of them with the webhook. Its Service leads nowhere without somebody who carries Services, and an API server
/// would look for it outside of this machine.
pub const WEBHOOK: &str = "2-webhook.yaml";

impl ControlPlane {
    /// Applies definitions and manifests but the webhook's, and waits until objects of our kinds can be made.
    ///
    /// # Errors
    /// When the API server refuses something.
    pub fn install(&self) -> Result<()> {
        self.install_definitions()?;
        let mut files: Vec<_> = fs::read_dir(folder(MANIFESTS))?.collect::<Result<_, _>>()?;
        files.retain(|file| file.file_name() != WEBHOOK);
        files.sort_by_key(|file| file.file_name());
        for file in files {
            self.kubectl(["apply", "--filename", &file.path().display().to_string()])?;
        }
        Ok(())
    }

    /// Applies definitions and every manifest, as users do: where the webhook's Service leads to the controllers.
    ///
    /// # Errors
    /// When the API server refuses something.
    pub fn install_whole(&self) -> Result<()> {
        self.install_definitions()?;
        self.kubectl(["apply", "--filename", &folder(MANIFESTS)])?;
        Ok(())
    }

    /// Applies the webhook's manifest. Its cluster IP must lead to a controller, or nowhere within this namespace.
    ///
    /// # Errors
    /// When the API server refuses something.
    pub fn install_webhook(&self) -> Result<()> {
        self.kubectl(["apply", "--filename", &format!("{}/{WEBHOOK}", folder(MANIFESTS))])?;
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
