//! Writes to files of the state folder.
//!
//! One thread of its own carries them out, since a disk may take its time. A wish that fails is kept and tried again;
//! the first failure is reported with its path and remedy, and everything else goes on. A file is replaced as a
//! whole: written beside, synced, renamed, and the folder synced; one that would not change is not touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use ferrogate_core::write::Write;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    objects::{Id, Kind},
    state::{self, Place},
    write::{Conditions, Request, Wish, bgp::Clocked, body, events::Events},
};

/// How many files are written before new wishes are looked at: few, as whom a node cannot see is urgent.
const BATCH: usize = 16;

/// How long after a failure it is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long a failing disk may hold up the end of the process.
const FAREWELL: Duration = Duration::from_secs(3);

/// What stands in the way of writing: the file, and why with the remedy.
pub type Trouble = Option<(PathBuf, String)>;

/// Carries out writes in a state folder.
pub struct Writer {
    root: PathBuf,
    name: String,
    wishes: BTreeMap<Place, Wish>,
    failed: BTreeMap<Place, Wish>,
    retry_at: Option<Instant>,
    retry_after: Duration,
    sessions: Clocked,
    events: Events,
    trouble: watch::Sender<Trouble>,
    /// Folders in which something was renamed and which are not yet synced.
    unsynced: BTreeSet<PathBuf>,
    /// Held while this process writes here.
    _locks: Vec<File>,
}

/// Takes the lock of a writer of a state folder; `None` when another process has it.
pub fn lock(root: &Path, writer: &str) -> io::Result<Option<File>> {
    let path = root.join(format!(".{writer}.lock"));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

impl Writer {
    /// A writer called `name` (`controller`, or `speaker-` and its node), which continues its own list of Events.
    pub fn new(root: PathBuf, name: String, locks: Vec<File>, trouble: watch::Sender<Trouble>) -> Self {
        let place = Place::Events { writer: name.clone() };
        let events = fs::read_to_string(root.join(place.path())).map(|text| Events::read(&text)).unwrap_or_default();
        Self {
            root,
            name,
            wishes: BTreeMap::new(),
            failed: BTreeMap::new(),
            retry_at: None,
            retry_after: RETRY.0,
            sessions: Clocked::default(),
            events,
            trouble,
            unsynced: BTreeSet::new(),
            _locks: locks,
        }
    }

    /// Carries out what comes until `finish`, and then what is left.
    pub async fn run(
        mut self,
        mut writes: mpsc::Receiver<Write>,
        mut gone: mpsc::Receiver<Vec<Id>>,
        finish: CancellationToken,
    ) {
        loop {
            // Without an arm that is ready at once, only when there is nothing to write.
            let idle = self.wishes.is_empty();
            let retry_at = self.retry_at.unwrap_or_else(|| Instant::now() + RETRY.1);
            tokio::select! {
                biased;
                () = finish.cancelled() => break,
                Some(write) = writes.recv() => self.wish(write),
                Some(ids) = gone.recv() => ids.iter().for_each(|id| self.forget(id)),
                () = tokio::time::sleep_until(retry_at), if self.retry_at.is_some() => self.retry(),
                () = std::future::ready(()), if !idle => {}
            }
            while let Ok(write) = writes.try_recv() {
                self.wish(write);
            }
            self.write_batch();
        }
        let give_up = Instant::now() + FAREWELL;
        while let Ok(write) = writes.try_recv() {
            self.wish(write);
        }
        while let Ok(ids) = gone.try_recv() {
            ids.iter().for_each(|id| self.forget(id));
        }
        loop {
            while !self.wishes.is_empty() {
                self.write_batch();
            }
            let Some(at) = self.retry_at.filter(|at| *at < give_up) else { break };
            tokio::time::sleep_until(at).await;
            self.retry();
        }
        if !self.failed.is_empty() {
            tracing::error!(state = %self.root.display(), count = self.failed.len(), "state files could not be written before the end");
        }
    }

    fn wish(&mut self, write: Write) {
        match Request::from(write) {
            Request::Say(place, mut wish) => {
                self.sessions.stamp(&place, &mut wish, Timestamp::now());
                let waiting = self.wishes.remove(&place).or_else(|| self.failed.remove(&place));
                self.wishes.insert(place, wish.over(waiting));
            }
            Request::Tell(event) => {
                self.events.add(event, Timestamp::now());
                let place = Place::Events { writer: self.name.clone() };
                self.failed.remove(&place);
                self.wishes.insert(place, Wish::Events);
            }
            // There is nobody to see it: `cli` refuses what would ask for it.
            Request::Renew(_) => {}
        }
    }

    fn forget(&mut self, id: &Id) {
        let status = match id.kind {
            Kind::Service => Some(Place::Service(id.key.clone())),
            Kind::IpAddressPool => Some(Place::Pool(id.key.clone())),
            Kind::Ingress => Some(Place::Ingress(id.key.clone())),
            _ => None,
        };
        let conditions = Place::Conditions { kind: id.kind.name().to_owned(), key: id.key.clone() };
        for place in status.into_iter().chain([conditions]) {
            self.failed.remove(&place);
            self.wishes.insert(place, Wish::Nothing);
        }
    }

    fn retry(&mut self) {
        self.retry_at = None;
        for (place, wish) in std::mem::take(&mut self.failed) {
            self.wishes.entry(place).or_insert(wish);
        }
    }

    fn write_batch(&mut self) {
        for _ in 0..BATCH {
            let Some((place, wish)) = self.wishes.pop_first() else { break };
            if let Err((path, error)) = self.carry_out(&place, &wish) {
                self.fail(place, wish, path, &error);
            }
        }
        for folder in std::mem::take(&mut self.unsynced) {
            if let Err(error) = File::open(&folder).and_then(|folder| folder.sync_all()) {
                tracing::warn!(path = %folder.display(), %error, "folder not synced");
            }
        }
        if self.wishes.is_empty() && self.failed.is_empty() && self.retry_after != RETRY.0 {
            self.retry_after = RETRY.0;
            if self.trouble.send_replace(None).is_some() {
                tracing::info!(state = %self.root.display(), "state is written again");
            }
        }
    }

    fn fail(&mut self, place: Place, wish: Wish, path: PathBuf, error: &io::Error) {
        let no_room = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
        );
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there",
            io::ErrorKind::ReadOnlyFilesystem => "mount it for writing",
            _ => "make the folder writable for this process",
        };
        let detail = format!("cannot be written: {error}; {remedy}; it is tried again and nothing is lost");
        self.trouble.send_if_modified(|trouble| {
            let first = trouble.is_none();
            if first {
                tracing::error!(path = %path.display(), %error, remedy, "state cannot be written");
                *trouble = Some((path, detail));
            }
            first
        });
        self.failed.insert(place, wish);
        if no_room {
            // The others would fare no better.
            self.failed.append(&mut self.wishes);
        }
        if self.retry_at.is_none() {
            self.retry_at = Some(Instant::now() + self.retry_after);
            self.retry_after = (self.retry_after * 2).min(RETRY.1);
        }
    }

    fn carry_out(&mut self, place: &Place, wish: &Wish) -> Result<(), (PathBuf, io::Error)> {
        let path = self.root.join(place.path());
        let written = match wish {
            Wish::Nothing => remove(&path),
            wish => {
                let before = fs::read_to_string(&path).ok();
                let text = self.text(place, wish, before.as_deref());
                // Whom a node cannot see is void after a restart, and urgent.
                let durable = !matches!(wish, Wish::Membership(_));
                if before.as_deref() == Some(&text) {
                    Ok(false)
                } else {
                    // A folder that is new is only there for good when the one above it knows of it.
                    let missing = path.ancestors().skip(1).take_while(|folder| !folder.exists());
                    self.unsynced.extend(missing.filter_map(Path::parent).map(Path::to_owned));
                    replace(&path, &text, durable).map(|()| durable)
                }
            }
        };
        match written {
            Ok(true) => {
                self.unsynced.extend(path.parent().map(Path::to_owned));
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => Err((path, error)),
        }
    }

    fn text(&self, place: &Place, wish: &Wish, before: Option<&str>) -> String {
        let before: Value = before.and_then(|text| state::only(text).ok()).unwrap_or_default();
        let object = body(place, wish, &Conditions::of(&before), Timestamp::now());
        text(&object.unwrap_or_else(|| self.events.list(&self.name)))
    }
}

/// An object as a file has it: as JSON, which is YAML too, and read in much less time. Whoever starts with ten thousand
/// Services reads as many files.
pub fn text(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Replaces a file as a whole: there is always either the old one or the new one.
fn replace(path: &Path, text: &str, durable: bool) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(io::Error::from(io::ErrorKind::InvalidFilename));
    };
    fs::create_dir_all(folder)?;
    let beside = folder.join(format!(".{name}.new"));
    let mut file = File::create(&beside)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| if durable { file.sync_all() } else { Ok(()) });
    if let Err(error) = written.and_then(|()| fs::rename(&beside, path)) {
        // Half a file takes room that is needed.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    Ok(())
}

/// Removes a file; whether there was one.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
