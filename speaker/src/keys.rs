//! The keys that gossip is sealed with: files in a folder, read again while the speaker runs.
//!
//! Every file is a key, but for those whose name begins with a dot (where a Secret is mounted, the kubelet keeps its own
//! there). The file `current` is sealed with, all are opened with; without a file of that name it is the first by name.
//! So a key is replaced without a gap: add the new one under another name, wait until every node has it, rename, wait
//! again, take the old one away.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ferrogate_wire::gossip::{Key, KeyId, Keys, MAX_KEYS, NotAKey};
use tokio::sync::watch;
use tracing::{info, warn};

/// The file whose key is sealed with.
pub const CURRENT_KEY: &str = "current";

/// How often the folder is read. The kubelet itself takes a minute to change a mounted Secret.
const READ_INTERVAL: Duration = Duration::from_secs(5);

/// Keys cannot be had. To go on without would be to believe whatever anybody on the network says.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read {path} for --gossip-key")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not a key.
    #[error("{path} in the folder of --gossip-key")]
    NotAKey {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: NotAKey,
    },
    /// There is no file.
    #[error("there is no key in {path}, the folder of --gossip-key; put 32 random bytes into its file {CURRENT_KEY}")]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// There are too many files.
    #[error("{count} keys in {path}, the folder of --gossip-key; at most {MAX_KEYS} are allowed")]
    TooMany {
        /// The folder.
        path: PathBuf,
        /// How many.
        count: usize,
    },
}

/// Reads the keys of a folder.
pub(crate) fn read(folder: &Path) -> Result<Keys, KeysError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| KeysError::Unreadable { path, source }
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable(folder))? {
        let name = entry.map_err(unreadable(folder))?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            files.push(folder.join(name));
        }
    }
    if files.is_empty() {
        return Err(KeysError::Empty { path: folder.to_owned() });
    }
    if files.len() > MAX_KEYS {
        return Err(KeysError::TooMany { path: folder.to_owned(), count: files.len() });
    }
    files.sort_by_key(|path| (path.file_name().is_none_or(|name| name != CURRENT_KEY), path.clone()));
    let key = |path: PathBuf| {
        let bytes = fs::read(&path).map_err(unreadable(&path))?;
        Key::parse(&bytes).map_err(|source| KeysError::NotAKey { path, source })
    };
    Ok(Keys::new(files.into_iter().map(key).collect::<Result<Vec<_>, _>>()?))
}

/// Reads the folder again and again. What cannot be read leaves the keys as they are.
pub(crate) async fn follow(folder: PathBuf, keys: watch::Sender<Keys>) {
    let mut trouble = None;
    loop {
        tokio::time::sleep(READ_INTERVAL).await;
        match read(&folder) {
            Ok(read) => {
                trouble = None;
                let changed = keys.send_if_modified(|keys| {
                    let changed = *keys != read;
                    *keys = read;
                    changed
                });
                if changed {
                    info!(keys = ?shown(&keys.borrow()), "keys of gossip changed, sealing with the first");
                }
            }
            Err(error) => {
                let told = Some(error.to_string());
                if trouble != told {
                    warn!(%error, "keys of gossip stay as they are");
                    trouble = told;
                }
            }
        }
    }
}

/// The names of keys, which tell nothing about them.
pub(crate) fn shown(keys: &Keys) -> Vec<String> {
    keys.ids().map(|id: KeyId| id.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn keys(bytes: &[u8]) -> Keys {
        Keys::new(bytes.iter().map(|&byte| Key::from([byte; 32])))
    }

    #[test]
    fn the_file_named_current_comes_first_and_then_the_others_by_name() {
        let three = folder(&[("b", &[2; 32]), ("current", &[3; 32]), ("a", &[1; 32]), ("..data", b"not a key")]);
        let without = folder(&[("2026-02", &[2; 32]), ("2026-01", &[1; 32])]);

        assert_eq!(read(three.path()).unwrap(), keys(&[3, 1, 2]));
        assert_eq!(read(without.path()).unwrap(), keys(&[1, 2]));
    }

    #[test]
    fn a_folder_without_usable_keys_is_refused_by_name_and_no_key_is_shown() {
        let names: Vec<String> = (0..9).map(|number| format!("key-{number}")).collect();
        let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &[1; 32][..])).collect();

        let refused = |folder: &Path| {
            let error = read(folder).unwrap_err();
            format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string))
        };

        assert!(refused(Path::new("/nonexistent")).starts_with("cannot read /nonexistent for --gossip-key"));
        assert!(refused(folder(&[]).path()).contains("there is no key"));
        assert!(refused(folder(&many).path()).contains("9 keys"));
        let wrong = refused(folder(&[("current", b"my secret")]).path());
        assert!(wrong.contains("current") && wrong.contains("9 bytes") && !wrong.contains("my secret"), "{wrong}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_folder_changes_the_keys_and_a_broken_one_does_not() {
        let files = folder(&[("current", &[1; 32])]);
        let (sender, mut changes) = watch::channel(read(files.path()).unwrap());
        let _task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(follow(files.path().to_owned(), sender)));

        fs::write(files.path().join("current"), b"broken").unwrap();
        tokio::time::sleep(READ_INTERVAL * 2).await;
        assert!(!changes.has_changed().unwrap());

        fs::write(files.path().join("current"), [2; 32]).unwrap();
        changes.changed().await.unwrap();
        assert_eq!(*changes.borrow(), keys(&[2]));
    }
}
