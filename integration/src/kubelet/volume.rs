//! The volumes of a pod: folders of the machine, filled from the API server and kept true to it.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    ByteString,
    api::{authentication::v1 as authentication, core::v1 as core},
};
use kube::{Api, Client, api::PostParams};

use super::environment::{Facts, field_value};

/// How long a token is good when its pod does not say, in seconds.
const TOKEN: i64 = 3600;

/// Files of a folder, by their paths in it.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A volume of a pod.
pub struct Volumes<'a> {
    /// Asks the API server, as the node.
    pub client: &'a Client,
    /// Whose they are.
    pub pod: &'a core::Pod,
    /// What it is told of itself.
    pub facts: &'a Facts,
    /// Where they lie.
    pub folder: &'a Path,
}

impl Volumes<'_> {
    /// Makes every volume, or makes it true again. Returns where each lies.
    ///
    /// # Errors
    /// When something it is made of is not there; the text says what.
    pub async fn make(&self) -> Result<BTreeMap<String, PathBuf>, String> {
        let mut places = BTreeMap::new();
        for volume in self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let place = self.make_one(volume).await.map_err(|error| format!("volume {:?}: {error}", volume.name))?;
            places.insert(volume.name.clone(), place);
        }
        Ok(places)
    }

    async fn make_one(&self, volume: &core::Volume) -> Result<PathBuf, String> {
        let place = self.folder.join(&volume.name);
        if let Some(host) = &volume.host_path {
            return Ok(PathBuf::from(&host.path));
        }
        if volume.empty_dir.is_some() {
            return shared_folder(&place).map(|()| place).map_err(|error| error.to_string());
        }
        let mut files = Files::new();
        if let Some(secret) = &volume.secret {
            let name = secret.secret_name.clone().unwrap_or_default();
            let data = self.secret(&name, secret.optional).await?;
            select(data, secret.items.as_deref(), secret.optional, &mut files)?;
        } else if let Some(map) = &volume.config_map {
            let data = self.config_map(&map.name, map.optional).await?;
            select(data, map.items.as_deref(), map.optional, &mut files)?;
        } else if let Some(downward) = &volume.downward_api {
            self.fields(downward.items.as_deref(), &mut files)?;
        } else if let Some(projected) = &volume.projected {
            for source in projected.sources.iter().flatten() {
                self.project(source, &place, &mut files).await?;
            }
        } else {
            return Err("this kind of volume is not made here".to_owned());
        }
        fill(&place, &files).map_err(|error| error.to_string())?;
        Ok(place)
    }

    async fn project(&self, source: &core::VolumeProjection, place: &Path, files: &mut Files) -> Result<(), String> {
        if let Some(secret) = &source.secret {
            let data = self.secret(&secret.name, secret.optional).await?;
            select(data, secret.items.as_deref(), secret.optional, files)
        } else if let Some(map) = &source.config_map {
            let data = self.config_map(&map.name, map.optional).await?;
            select(data, map.items.as_deref(), map.optional, files)
        } else if let Some(downward) = &source.downward_api {
            self.fields(downward.items.as_deref(), files)
        } else if let Some(token) = &source.service_account_token {
            let seconds = token.expiration_seconds.unwrap_or(TOKEN);
            let path = PathBuf::from(&token.path);
            // One is good for a while, and made anew when a fifth of that is left.
            let old = place.join(&path);
            let life = Duration::from_secs(u64::try_from(seconds).unwrap_or_default()) / 5 * 4;
            let text = match fresh(&old, life) {
                Some(text) => text,
                None => self.token(token.audience.clone(), seconds).await?.into_bytes(),
            };
            files.insert(path, text);
            Ok(())
        } else {
            Err("this kind of projection is not made here".to_owned())
        }
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// The values of a Secret; none when it is optional and not there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn secret(&self, name: &str, optional: Option<bool>) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let api: Api<core::Secret> = Api::namespaced(self.client.clone(), self.namespace());
        let found = api.get_opt(name).await.map_err(|error| format!("secret {name:?}: {error}"))?;
        match found {
            Some(secret) => Ok(bytes(secret.data)),
            None if optional == Some(true) => Ok(BTreeMap::new()),
            None => Err(format!("secret {name:?} not found")),
        }
    }

    /// The same of a ConfigMap.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn config_map(&self, name: &str, optional: Option<bool>) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let api: Api<core::ConfigMap> = Api::namespaced(self.client.clone(), self.namespace());
        let found = api.get_opt(name).await.map_err(|error| format!("configmap {name:?}: {error}"))?;
        match found {
            Some(map) => {
                let mut data = bytes(map.binary_data);
                data.extend(map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes())));
                Ok(data)
            }
            None if optional == Some(true) => Ok(BTreeMap::new()),
            None => Err(format!("configmap {name:?} not found")),
        }
    }

    fn fields(&self, items: Option<&[core::DownwardAPIVolumeFile]>, files: &mut Files) -> Result<(), String> {
        for item in items.unwrap_or_default() {
            let field = item.field_ref.as_ref().ok_or("only fields are told here")?;
            let value = field_value(&field.field_path, self.pod, self.facts)?;
            files.insert(PathBuf::from(&item.path), value.into_bytes());
        }
        Ok(())
    }

    async fn token(&self, audience: Option<String>, seconds: i64) -> Result<String, String> {
        let account = self.pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let metadata = &self.pod.metadata;
        let request = authentication::TokenRequest {
            spec: Some(authentication::TokenRequestSpec {
                audiences: audience.map(|audience| vec![audience]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(authentication::BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: metadata.name.clone(),
                    uid: metadata.uid.clone(),
                }),
            }),
            ..authentication::TokenRequest::default()
        };
        let api: Api<core::ServiceAccount> = Api::namespaced(self.client.clone(), self.namespace());
        let answer = api.create_token_request(account, &PostParams::default(), &request).await;
        let answer = answer.map_err(|error| format!("token of service account {account:?}: {error}"))?;
        answer.status.and_then(|status| status.token).ok_or_else(|| "no token was given".to_owned())
    }
}

fn bytes(data: Option<BTreeMap<String, ByteString>>) -> BTreeMap<String, Vec<u8>> {
    data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()
}

/// Picks the keys that a volume names, or all.
fn select(
    mut data: BTreeMap<String, Vec<u8>>,
    items: Option<&[core::KeyToPath]>,
    optional: Option<bool>,
    files: &mut Files,
) -> Result<(), String> {
    let Some(items) = items else {
        files.extend(data.into_iter().map(|(key, value)| (PathBuf::from(key), value)));
        return Ok(());
    };
    for item in items {
        match data.remove(&item.key) {
            Some(value) => drop(files.insert(PathBuf::from(&item.path), value)),
            None if optional == Some(true) => {}
            None => return Err(format!("no key {:?}", item.key)),
        }
    }
    Ok(())
}

/// What a file holds, if it was written not longer than `life` ago.
fn fresh(path: &Path, life: Duration) -> Option<Vec<u8>> {
    let written = fs::metadata(path).ok()?.modified().ok()?;
    let age = SystemTime::now().duration_since(written).ok()?;
    if age < life { fs::read(path).ok() } else { None }
}

/// Writes what is not so yet, each file at once, and removes what is gone.
fn fill(place: &Path, files: &Files) -> io::Result<()> {
    fs::create_dir_all(place)?;
    for (name, text) in files {
        let path = place.join(name);
        if fs::read(&path).is_ok_and(|known| known == *text) {
            continue;
        }
        path.parent().map(fs::create_dir_all).transpose()?;
        let half = path.with_extension("half");
        fs::write(&half, text)?;
        fs::set_permissions(&half, fs::Permissions::from_mode(0o644))?;
        fs::rename(&half, &path)?;
    }
    for entry in fs::read_dir(place)? {
        let path = entry?.path();
        let is_wanted = files.keys().any(|name| place.join(name).starts_with(&path));
        match is_wanted {
            true => {}
            false if path.is_dir() => fs::remove_dir_all(path)?,
            false => fs::remove_file(path)?,
        }
    }
    Ok(())
}

/// A folder into which every user may write.
fn shared_folder(place: &Path) -> io::Result<()> {
    fs::create_dir_all(place)?;
    fs::set_permissions(place, fs::Permissions::from_mode(0o777))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Files {
        pairs.iter().map(|(path, text)| (PathBuf::from(path), text.as_bytes().to_vec())).collect()
    }

    #[test]
    fn a_folder_follows_what_it_is_filled_from() {
        let folder = tempfile::tempdir().unwrap();

        fill(folder.path(), &files(&[("a", "1"), ("sub/b", "2")])).unwrap();
        fill(folder.path(), &files(&[("sub/b", "3")])).unwrap();

        assert!(!folder.path().join("a").exists());
        assert_eq!(fs::read_to_string(folder.path().join("sub/b")).unwrap(), "3");
    }

    #[test]
    fn a_token_is_kept_while_it_is_fresh() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "t").unwrap();

        assert_eq!(fresh(&path, Duration::from_secs(3600)), Some(b"t".to_vec()));
        assert_eq!(fresh(&path, Duration::ZERO), None);
        assert_eq!(fresh(&folder.path().join("none"), Duration::from_secs(3600)), None);
    }

    #[test]
    fn a_key_that_a_volume_names_must_be_there_unless_it_is_optional() {
        let items = [core::KeyToPath { key: "k".into(), path: "p".into(), mode: None }];
        let data = || BTreeMap::from([("other".to_owned(), Vec::new())]);

        assert!(select(data(), Some(&items), None, &mut Files::new()).is_err_and(|error| error.contains("\"k\"")));
        assert_eq!(select(data(), Some(&items), Some(true), &mut Files::new()), Ok(()));
    }
}
