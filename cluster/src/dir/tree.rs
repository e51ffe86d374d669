//! A folder and everything below it: which files it holds, and which of them may have changed.
//!
//! inotify says what changed at once; a look at the whole folder, which compares sizes and times only, finds what
//! inotify cannot tell (a file behind a symlink, a network file system, a queue that overflowed).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use inotify::{EventMask, WatchDescriptor, WatchMask, Watches};
use tokio::time::Instant;

/// Folders inside folders are followed this deep.
const MAX_DEPTH: usize = 16;

/// How many files one folder may hold.
pub const MAX_FILES: usize = 200_000;

/// How long after a change it is read, so that a burst is read once. Later changes do not put it off.
pub const SETTLE: Duration = Duration::from_millis(2);

/// How long a file may be away, or be there without having been closed, before that counts. Editors remove and
/// create a file to replace it.
pub const GRACE: Duration = Duration::from_millis(100);

/// One folder that is watched.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    /// The file system it was on when it last held a file.
    device: Option<u64>,
    files: BTreeMap<String, Mark>,
    watched: BTreeMap<i32, (WatchDescriptor, String)>,
    due: BTreeMap<String, Due>,
    /// How long to wait before a missing or unfinished file counts; nothing where files are replaced as a whole.
    grace: Duration,
    rescan_at: Option<Instant>,
    /// Why not all of the folder is seen, if so.
    pub trouble: Option<String>,
}

/// When a file is to be read again.
#[derive(Clone, Copy, Debug)]
struct Due {
    at: Instant,
    /// Whether it has been waited for already, so that it counts as gone if it is not there.
    waited: bool,
}

/// Enough of a file's metadata to tell that it may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Mark {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Tree {
    /// The folder at `root`, nothing of it seen yet. `grace` is [`GRACE`], or zero where every file is replaced as a
    /// whole.
    pub fn new(root: PathBuf, grace: Duration) -> Self {
        let (files, watched, due) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { root, device: None, files, watched, due, grace, rescan_at: Some(Instant::now()), trouble: None }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a file of the folder is.
    pub fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    /// When [`Tree::due`] has something to say.
    pub fn deadline(&self) -> Option<Instant> {
        self.due.values().map(|due| due.at).chain(self.rescan_at).min()
    }

    /// Takes in an event, if it is about this folder.
    pub fn take_event(&mut self, event: &inotify::Event<std::ffi::OsString>, now: Instant) {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            self.rescan_by(now + SETTLE);
            return;
        }
        let Some((_, folder)) = self.watched.get(&event.wd.get_watch_descriptor_id()) else { return };
        let Some(name) = &event.name else {
            self.rescan_by(now + SETTLE);
            return;
        };
        let Some(name) = name.to_str() else { return };
        let away = event.mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM);
        let file = join(folder, name);
        if name.starts_with("..") || event.mask.contains(EventMask::ISDIR) || self.path(&file).is_dir() {
            // A folder came or went, or the link behind which the files of a mounted ConfigMap stand was turned.
            self.rescan_by(now + if away { self.grace.max(SETTLE) } else { SETTLE });
        } else if !is_manifest_name(name) {
            // Nothing of ours.
        } else if event.mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) {
            // What is due sooner stays due; a file that was away is back and need not wait.
            let at = self.due.get(&file).map_or(now + SETTLE, |due| due.at.min(now + SETTLE));
            self.due.insert(file, Due { at, waited: false });
        } else {
            self.due.entry(file).or_insert(Due { at: now + self.grace, waited: true });
        }
    }

    /// Asks for a look at the whole folder.
    pub fn rescan_by(&mut self, at: Instant) {
        self.rescan_at = Some(self.rescan_at.map_or(at, |before| before.min(at)));
    }

    /// The files that must be read again at `now`, first to last; those that are gone are among them. `None` when it
    /// is not time to look. After an error nothing is due: whoever asks says when to look again.
    pub fn due(&mut self, now: Instant, watches: &mut Watches) -> Result<Option<BTreeSet<String>>, io::Error> {
        if self.deadline().is_none_or(|at| at > now) {
            return Ok(None);
        }
        let changed = self.look(now, watches);
        if changed.is_err() {
            // Nothing counts as gone while the folder itself is: a look at all of it follows when it is back.
            self.due.clear();
        }
        changed.map(Some)
    }

    fn look(&mut self, now: Instant, watches: &mut Watches) -> Result<BTreeSet<String>, io::Error> {
        let rescan = self.rescan_at.take_if(|at| *at <= now).is_some();
        fs::metadata(&self.root)?;
        let mut changed = if rescan { self.rescan(now, watches)? } else { BTreeSet::new() };
        let ready = self.due.iter().filter(|(_, due)| due.at <= now).map(|(file, due)| (file.clone(), due.waited));
        for (file, waited) in ready.collect::<Vec<_>>() {
            self.due.remove(&file);
            match fs::metadata(self.path(&file)) {
                Ok(metadata) => {
                    self.files.insert(file.clone(), Mark::of(&metadata));
                }
                Err(_) if !waited && !self.grace.is_zero() => {
                    self.due.insert(file, Due { at: now + self.grace, waited: true });
                    continue;
                }
                Err(_) => {
                    self.files.remove(&file);
                }
            }
            changed.insert(file);
        }
        Ok(changed)
    }

    /// Looks at the whole folder. An error leaves everything as it was known.
    fn rescan(&mut self, now: Instant, watches: &mut Watches) -> Result<BTreeSet<String>, io::Error> {
        let (found, seen) = (BTreeMap::new(), BTreeSet::new());
        let mut scan = Scan { watches, found, watched: BTreeMap::new(), seen, trouble: None };
        scan.folder(&self.root, "", 0)?;
        let Scan { found, watched, trouble, .. } = scan;
        let device = fs::metadata(&self.root)?.dev();
        if found.is_empty() && self.device.is_some_and(|before| before != device) {
            return Err(io::Error::other("another file system with nothing in it is mounted there"));
        }
        if !found.is_empty() {
            self.device = Some(device);
        }
        let is_first = self.watched.is_empty();
        for (id, (descriptor, _)) in std::mem::replace(&mut self.watched, watched) {
            if !self.watched.contains_key(&id) {
                // A folder that is gone takes its watch with it, so that there may be nothing to remove.
                let _ = watches.remove(descriptor);
            }
        }
        self.trouble = trouble;
        let away = self.files.keys().filter(|file| !found.contains_key(*file));
        for file in away.cloned().collect::<Vec<_>>() {
            self.due.entry(file).or_insert(Due { at: now + self.grace, waited: true });
        }
        let mut changed = BTreeSet::new();
        for (file, (mark, age)) in found {
            if self.files.get(&file) == Some(&mark) {
                continue;
            }
            // Somebody may be in the middle of writing it.
            if age < self.grace && !is_first {
                self.due.entry(file).or_insert(Due { at: now + self.grace, waited: false });
                continue;
            }
            self.files.insert(file.clone(), mark);
            changed.insert(file);
        }
        Ok(changed)
    }
}

struct Scan<'a> {
    watches: &'a mut Watches,
    /// Each file with its mark and how long ago it was changed.
    found: BTreeMap<String, (Mark, Duration)>,
    watched: BTreeMap<i32, (WatchDescriptor, String)>,
    /// Folders by device and inode, so that a link to a folder above ends.
    seen: BTreeSet<(u64, u64)>,
    trouble: Option<String>,
}

impl Scan<'_> {
    fn folder(&mut self, path: &Path, relative: &str, depth: usize) -> io::Result<()> {
        let metadata = fs::metadata(path)?;
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        // Watched before it is read, so that nothing falls between.
        match self.watches.add(path, mask) {
            Ok(watch) => {
                self.watched.insert(watch.get_watch_descriptor_id(), (watch, relative.to_owned()));
            }
            Err(error) => {
                let what = format!("{} cannot be watched: {error}", path.display());
                let remedy = "raise the sysctl fs.inotify.max_user_watches; until then it is looked at now and then";
                self.trouble = Some(format!("{what}; {remedy}"));
            }
        }
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            // Through links, as the files of a mounted ConfigMap are links.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            let relative = join(relative, name);
            if metadata.is_dir() {
                if depth == MAX_DEPTH {
                    let what =
                        format!("{} is more than {MAX_DEPTH} folders deep and is not read", entry.path().display());
                    self.trouble = Some(what);
                } else if let Err(error) = self.folder(&entry.path(), &relative, depth + 1) {
                    // Gone while we looked: its own event follows.
                    if error.kind() != io::ErrorKind::NotFound {
                        return Err(error);
                    }
                }
            } else if metadata.is_file() && is_manifest_name(name) {
                if self.found.len() == MAX_FILES {
                    let what = format!("more than {MAX_FILES} files; {relative} and others are not read");
                    self.trouble = Some(format!("{what}; put several objects into one file"));
                    return Ok(());
                }
                let age = metadata.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
                self.found.insert(relative, (Mark::of(&metadata), age));
            }
        }
        Ok(())
    }
}

/// Whether a file is read: `.yaml`, `.yml` or `.json`, and neither hidden nor left behind by an editor.
fn is_manifest_name(name: &str) -> bool {
    let left_behind = name.starts_with(['.', '#', '~']) || name.ends_with('~');
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    !left_behind && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

#[cfg(test)]
mod tests {
    use inotify::Inotify;

    use super::*;

    #[test]
    fn a_folder_that_is_away_is_looked_for_when_told_and_no_sooner() {
        let watches = &mut Inotify::init().unwrap().watches();
        let mut tree = Tree::new(PathBuf::from("/nonexistent/manifests"), GRACE);
        let now = Instant::now();
        let later = now + Duration::from_millis(250);

        assert!(tree.due(now, watches).is_err());
        tree.rescan_by(later);

        assert_eq!(tree.deadline(), Some(later));
        assert!(matches!(tree.due(now, watches), Ok(None)), "nobody may take this for a folder that is there");
        assert!(tree.due(later, watches).is_err());
    }
}
