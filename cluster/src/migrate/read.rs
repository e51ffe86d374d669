//! Where a migration gets its facts, and the one thing it ever writes: from a folder, or from an API server.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ::kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams},
};
use ferrogate_core::{model::ObjectRef, snapshot::Origin};
use serde_json::Value;

use super::{Found, Plan, Settings};
use crate::{
    document::documents,
    kube::{KubernetesError, client, resource},
};

/// The field manager of what a migration applies.
pub const MANAGER: &str = "ferrogate-migrate";

/// How often it is asked again when it says that it is busy.
const ATTEMPTS: u32 = 10;

/// The longest pause before it is asked again that is taken from it, in seconds.
const LONGEST_PAUSE: u32 = 5;

/// Why a migration cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A folder or file cannot be read.
    #[error("cannot read {}", path.display())]
    Folder {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A document is not YAML.
    #[error("{}: {detail}; correct the file, so that nothing is overlooked", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        detail: String,
    },
    /// There is no API server to ask.
    #[error("cannot tell where the API server is; set KUBECONFIG, or give --manifests DIR")]
    Client(#[source] KubernetesError),
    /// The API server refuses to list something that must be known.
    #[error("cannot list {what}")]
    List {
        /// What.
        what: String,
        /// What it said.
        #[source]
        source: Box<::kube::Error>,
    },
    /// The API server would not take an object. Nothing was written.
    #[error("{object} would be refused; nothing was written")]
    Refused {
        /// Which one.
        object: String,
        /// What it said.
        #[source]
        source: Box<::kube::Error>,
    },
    /// The API server took some objects and not this one.
    #[error("{object} was refused after {written} were written; run it again")]
    Halfway {
        /// Which one.
        object: String,
        /// How many were written before.
        written: usize,
        /// What it said.
        #[source]
        source: Box<::kube::Error>,
    },
}

/// Every object in the YAML and JSON files of a folder and those below it. Lists are taken apart.
///
/// # Errors
/// When something cannot be read: a migration that overlooks a file is worse than none.
pub fn folder(path: &Path) -> Result<Vec<Found>, MigrateError> {
    let mut files = Vec::new();
    files_below(path, &mut files).map_err(|(path, source)| MigrateError::Folder { path, source })?;
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|source| MigrateError::Folder { path: file.clone(), source })?;
        let shown = file.strip_prefix(path).unwrap_or(&file).display().to_string();
        for document in documents(&text) {
            let origin = Origin::File { path: shown.clone(), document: document.number };
            let value = document.value.map_err(|detail| MigrateError::Syntax { path: file.clone(), detail })?;
            take_apart(value, &origin, &mut found);
        }
    }
    Ok(found)
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), (PathBuf, io::Error)> {
    let failed = |error| (folder.to_owned(), error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, name) = (entry.path(), entry.file_name());
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        // A link is followed to a file, and not to a folder, where it might lead in a circle.
        if entry.file_type().map_err(failed)?.is_dir() {
            files_below(&path, files)?;
        } else if path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known)) {
            files.push(path);
        }
    }
    Ok(())
}

/// An object, or those of a list: `kubectl get -o yaml` and dumps of clients write lists.
fn take_apart(mut value: Value, origin: &Origin, found: &mut Vec<Found>) {
    let is_list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) && value["items"].is_array();
    if !is_list {
        found.push(Found { origin: origin.clone(), value });
        return;
    }
    let (version, kind) = (value["apiVersion"].clone(), value["kind"].as_str().unwrap_or_default().to_owned());
    let Value::Array(items) = value["items"].take() else { return };
    for mut item in items {
        // Items of a list of one kind need not repeat it.
        if item["kind"].is_null() && kind != "List" && item.is_object() {
            item["kind"] = Value::from(kind.trim_end_matches("List"));
            item["apiVersion"] = version.clone();
        }
        found.push(Found { origin: origin.clone(), value: item });
    }
}

/// A client for the API server that KUBECONFIG names.
///
/// # Errors
/// When it names none that can be used.
pub async fn connect() -> Result<Client, MigrateError> {
    client().await.map_err(MigrateError::Client)
}

/// Everything at an API server that a migration looks at.
///
/// # Errors
/// When something that must be known cannot be listed.
pub async fn cluster(client: &Client, settings: &Settings) -> Result<Vec<Found>, MigrateError> {
    let (home, ours) = (Some(settings.metallb_namespace.as_str()), Some(settings.namespace.as_str()));
    let mut found = Vec::new();
    for kind in ["Namespace", "Node", "Service"] {
        found.extend(list(client, "v1", kind, None, false).await?);
    }
    for kind in ["IPAddressPool", "L2Advertisement", "BGPAdvertisement", "BFDProfile", "Community"] {
        found.extend(list(client, "metallb.io/v1beta1", kind, home, false).await?);
        found.extend(list(client, "ferrogate.io/v1beta1", kind, ours, false).await?);
    }
    found.extend(list(client, "metallb.io/v1beta2", "BGPPeer", home, false).await?);
    found.extend(list(client, "ferrogate.io/v1beta1", "BGPPeer", ours, false).await?);
    found.extend(list(client, "metallb.io/v1beta1", "AddressPool", home, false).await?);
    for (version, kind) in [("v1", "ConfigMap"), ("apps/v1", "Deployment"), ("apps/v1", "DaemonSet")] {
        found.extend(list(client, version, kind, home, true).await?);
    }
    found.extend(list(client, "frrk8s.metallb.io/v1beta1", "FRRConfiguration", None, true).await?);
    Ok(found)
}

/// All objects of a kind; none where the kind does not exist, or where it `may_be_hidden` and is.
async fn list(
    client: &Client,
    version: &str,
    kind: &str,
    namespace: Option<&str>,
    may_be_hidden: bool,
) -> Result<Vec<Found>, MigrateError> {
    let resource = resource(version, kind);
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let mut answer = api.list(&ListParams::default()).await;
    for _ in 0..ATTEMPTS {
        let Err(::kube::Error::Api(status)) = &answer else { break };
        if status.code != 429 {
            break;
        }
        // It says that it is not ready, as it is for a moment after a kind has been defined, and when to come back.
        let told = status.details.as_ref().map_or(1, |details| details.retry_after_seconds);
        tokio::time::sleep(Duration::from_secs(u64::from(told.clamp(1, LONGEST_PAUSE)))).await;
        answer = api.list(&ListParams::default()).await;
    }
    let listed = match answer {
        Ok(listed) => listed,
        Err(::kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        Err(::kube::Error::Api(status)) if status.code == 403 && may_be_hidden => {
            tracing::warn!(kind, "not allowed to look at these; what they say is not taken into account");
            return Ok(Vec::new());
        }
        Err(error) => {
            return Err(MigrateError::List { what: format!("{version} {kind}"), source: Box::new(error) });
        }
    };
    let found = listed.items.into_iter().map(|mut object| {
        let meta = &mut object.metadata;
        meta.managed_fields = None;
        let origin = Origin::Cluster(ObjectRef {
            api_version: version.to_owned(),
            kind: kind.to_owned(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
        });
        let mut value = serde_json::to_value(object).unwrap_or_default();
        value["apiVersion"] = Value::from(version);
        value["kind"] = Value::from(kind);
        Found { origin, value }
    });
    Ok(found.collect())
}

/// Applies the objects of a plan: all of them for show first, and only when none would be refused in earnest.
/// Objects that exist are in no plan.
///
/// # Errors
/// When one is refused.
pub async fn apply(client: &Client, plan: &Plan) -> Result<usize, MigrateError> {
    for object in &plan.objects {
        let trial = PatchParams { dry_run: true, ..PatchParams::apply(MANAGER) };
        let refused = |error| MigrateError::Refused { object: super::name_of(object), source: Box::new(error) };
        patch(client, object, &trial).await.map_err(refused)?;
    }
    for (written, object) in plan.objects.iter().enumerate() {
        let halfway = |error| {
            let object = super::name_of(object);
            MigrateError::Halfway { object, written, source: Box::new(error) }
        };
        patch(client, object, &PatchParams::apply(MANAGER)).await.map_err(halfway)?;
    }
    Ok(plan.objects.len())
}

async fn patch(client: &Client, object: &Value, parameters: &PatchParams) -> Result<(), ::kube::Error> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let resource = resource(text("/apiVersion"), text("/kind"));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), text("/metadata/namespace"), &resource);
    api.patch(text("/metadata/name"), parameters, &Patch::Apply(object)).await.map(|_| ())
}
