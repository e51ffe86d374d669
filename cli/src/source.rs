//! Where facts come from: flags of every command that needs them, and the [`Cluster`] they open.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use ferrogate_cluster::{Cluster, DirectoryConfig, KubernetesConfig, NAMESPACE, Role, translate::metallb};
use ferrogate_core::{
    model::{
        NodeName,
        service::{ClassPolicy, DEFAULT_CLASS},
    },
    snapshot::Snapshot,
};
use tokio_util::sync::CancellationToken;

/// How long a command that a person waits for tries to reach the API server.
const READ_PATIENCE: Duration = Duration::from_secs(10);

/// Where facts come from.
#[derive(Args, Clone, Debug)]
pub struct SourceArgs {
    /// Follow this folder of Kubernetes manifests instead of an API server
    #[arg(long, value_name = "DIR", env = "FERROGATE_MANIFESTS")]
    pub manifests: Option<PathBuf>,
    /// Where statuses are kept in directory mode; default: the manifest folder's name with `.state` appended
    #[arg(long, value_name = "DIR", env = "FERROGATE_STATE", requires = "manifests")]
    pub state: Option<PathBuf>,
    /// Namespace of Ferrogate's own objects; those in another are left out
    #[arg(long, value_name = "NAME", default_value = NAMESPACE, env = "FERROGATE_NAMESPACE")]
    pub namespace: String,
    /// The spec.loadBalancerClass that is served; an empty value serves no Service that names a class
    #[arg(long, value_name = "CLASS", default_value = DEFAULT_CLASS)]
    pub load_balancer_class: String,
    /// Whether Services that name no class are served
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub serve_classless: bool,
    /// Honour MetalLB's objects (metallb.io) and annotations (metallb.io, metallb.universe.tf) as well
    #[arg(long, env = "FERROGATE_METALLB_COMPAT")]
    pub metallb_compat: bool,
    /// Namespace in which MetalLB's objects are read
    #[arg(long, value_name = "NAME", default_value = metallb::NAMESPACE, env = "FERROGATE_METALLB_NAMESPACE")]
    pub metallb_namespace: String,
}

/// Which node this process runs on.
#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// Name of the Node this process runs on; default: the host's name
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node: Option<String>,
}

impl NodeArgs {
    /// The name given, or the host's.
    pub fn name(&self) -> anyhow::Result<NodeName> {
        let name = match &self.node {
            Some(name) => name.clone(),
            None => fs::read_to_string("/proc/sys/kernel/hostname")
                .context("the host's name cannot be read; give --node NAME")?
                .trim()
                .to_owned(),
        };
        if name.is_empty() || name.len() > 253 {
            bail!("--node {name:?}: a Node's name has 1 to 253 characters");
        }
        Ok(name.into())
    }
}

impl SourceArgs {
    /// The state folder that goes with `--manifests`.
    pub fn state_folder(&self) -> Option<PathBuf> {
        let manifests = self.manifests.as_ref()?;
        Some(self.state.clone().unwrap_or_else(|| {
            let absolute = fs::canonicalize(manifests).unwrap_or_else(|_| manifests.clone());
            let mut name = absolute.file_name().unwrap_or_default().to_owned();
            name.push(".state");
            absolute.with_file_name(name)
        }))
    }

    fn class(&self) -> ClassPolicy {
        let class = Some(self.load_balancer_class.clone()).filter(|class| !class.is_empty());
        ClassPolicy { class, serve_classless: self.serve_classless }
    }

    fn metallb(&self) -> Option<String> {
        self.metallb_compat.then(|| self.metallb_namespace.clone())
    }

    /// Reads all facts once. `viewpoint` is the node whose speaker is asked whom it has lost sight of.
    pub async fn read(&self, viewpoint: Option<NodeName>) -> anyhow::Result<Arc<Snapshot>> {
        self.read_as(Role::Reader(viewpoint)).await
    }

    /// The same as another role that only reads.
    pub async fn read_as(&self, role: Role) -> anyhow::Result<Arc<Snapshot>> {
        let open = self.open(role, CancellationToken::new());
        let mut cluster = tokio::time::timeout(READ_PATIENCE, open).await.with_context(|| {
            format!("no answer from the API server within {READ_PATIENCE:?}; see the log for why")
        })??;
        let snapshot = cluster.snapshots.borrow().clone();
        cluster.closed().await;
        Ok(snapshot)
    }

    /// Opens the source; the first snapshot is complete when this returns. A long-running role waits for an API
    /// server as long as it takes.
    pub async fn open(&self, role: Role, shutdown: CancellationToken) -> anyhow::Result<Cluster> {
        match (&self.manifests, self.state_folder()) {
            (Some(manifests), Some(state)) => {
                let config = DirectoryConfig {
                    manifests: manifests.clone(),
                    state,
                    namespace: self.namespace.clone(),
                    role,
                    class: self.class(),
                    metallb: self.metallb(),
                };
                let what = format!("cannot follow the manifests in {}", manifests.display());
                Cluster::directory(config, shutdown).await.context(what)
            }
            _ => {
                let identity = identity(&NodeArgs { node: None }.name()?);
                let namespace = self.namespace.clone();
                let (class, metallb) = (self.class(), self.metallb());
                let config = KubernetesConfig { namespace, role, identity, class, metallb };
                Cluster::kubernetes(config, shutdown)
                    .await
                    .context("cannot follow an API server; give --manifests DIR to work without one")
            }
        }
    }
}

/// What no other process is called. Host and process number are not enough: on the host's network every container of
/// a node has the node's name, and each is its first process.
fn identity(host: &NodeName) -> String {
    format!("{host}-{:08x}", rand::random::<u32>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_of_one_host_and_number_are_told_apart() {
        let host = NodeName::from("node-1");

        assert_ne!(identity(&host), identity(&host));
        assert!(identity(&host).starts_with("node-1-"));
    }

    fn args(manifests: Option<&str>, state: Option<&str>) -> SourceArgs {
        SourceArgs {
            manifests: manifests.map(PathBuf::from),
            state: state.map(PathBuf::from),
            namespace: NAMESPACE.to_owned(),
            load_balancer_class: String::new(),
            serve_classless: true,
            metallb_compat: false,
            metallb_namespace: metallb::NAMESPACE.to_owned(),
        }
    }

    #[test]
    fn state_stands_beside_the_manifests_unless_told_otherwise() {
        let beside = args(Some("/srv/manifests"), None).state_folder();
        let told = args(Some("/srv/manifests"), Some("/var/lib/x")).state_folder();

        assert_eq!(beside, Some(PathBuf::from("/srv/manifests.state")));
        assert_eq!(told, Some(PathBuf::from("/var/lib/x")));
        assert_eq!(args(None, None).state_folder(), None);
    }

    #[test]
    fn an_empty_class_serves_no_service_that_names_one() {
        let policy = args(None, None).class();

        assert!(!policy.serves(Some(DEFAULT_CLASS)));
        assert!(policy.serves(None));
    }
}
