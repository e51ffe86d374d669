//! The directory source: manifest files and the state folder, to snapshots.
//!
//! One thread of its own watches both folders, reads what changed and publishes the next snapshot, so that reading
//! ten thousand files never delays a heartbeat. What cannot be read is reported and stays in force as it was last
//! known: a file that is being edited through a broken state, a folder that is unmounted, a state file that was
//! damaged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ferrogate_core::{
    model::{NodeName, ObjectKey, ObjectRef},
    snapshot::{Fault, Origin, Problem, Snapshot},
};
use futures::StreamExt;
use inotify::Inotify;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    document::{MAX_DOCUMENTS, read_documents},
    objects::{Id, Kind, Reading},
    parallel,
    state::{self, Place},
    translate::{self, Entry, Remembered, Rules, Translator},
    write::files::Trouble,
};

mod tree;

use tree::{GRACE, Tree};

/// The largest manifest or state file that is read.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// How many manifest files are read before what they say is taken in, so that a large folder is never held twice.
const FILES_AT_ONCE: usize = 1024;

/// How often both folders are looked at as a whole, for what inotify cannot tell, unless that takes long.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// How many times as long as the last look took nobody looks again, up to [`LONGEST_LOOK_INTERVAL`].
const LOOK_SPARINGLY: u32 = 1000;

/// How often they are looked at in any case.
const LONGEST_LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// How often a folder that is away, or that cannot be watched, is looked for.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Why the directory source cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The manifest folder is not there, or not to be read.
    #[error("cannot read the manifest folder {}; create it or correct --manifests", path.display())]
    Manifests {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The state folder cannot be made.
    #[error("cannot use the state folder {}; give a folder that can be written with --state", path.display())]
    State {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// One of the two folders holds the other, so that what is written would be read as a manifest.
    #[error("the folders {} and {} must not lie in each other; give another one with --state", manifests.display(), state.display())]
    Nested {
        /// The manifest folder.
        manifests: PathBuf,
        /// The state folder.
        state: PathBuf,
    },
    /// Another process writes the same state.
    #[error("{writer} of the state folder {} is running already; stop it or give another folder with --state", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Which writer: `controller`, or `speaker-` and its node.
        writer: String,
    },
    /// The kernel refuses to watch.
    #[error("cannot watch folders; raise the sysctl fs.inotify.max_user_instances")]
    Watch(#[source] io::Error),
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The folders were not read to their end before the process was told to stop.
    #[error("stopped before the folders were read")]
    Stopped,
}

/// Reads both folders and follows them until `shutdown`.
pub struct Directory {
    manifests: Tree,
    state: Tree,
    translator: Translator,
    /// The node whose membership file says which nodes are unreachable.
    node: Option<NodeName>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// Objects nobody defines any more, for the writer to forget; none where nothing is written.
    gone: Option<mpsc::Sender<Vec<Id>>>,
    /// What stands in the way of the writer.
    trouble: watch::Receiver<Trouble>,
    pending_gone: BTreeSet<Id>,
    /// Files a part of which nobody can name: while there are any, no state is forgotten.
    broken: BTreeSet<String>,
    reported: BTreeMap<Origin, Vec<Problem>>,
}

impl Directory {
    /// The two folders, not yet read.
    pub fn new(
        manifests: PathBuf,
        state: PathBuf,
        translator: Translator,
        node: Option<NodeName>,
        snapshots: watch::Sender<Arc<Snapshot>>,
        gone: Option<mpsc::Sender<Vec<Id>>>,
        trouble: watch::Receiver<Trouble>,
    ) -> Self {
        Self {
            manifests: Tree::new(manifests, GRACE),
            state: Tree::new(state, Duration::ZERO),
            translator,
            node,
            snapshots,
            gone,
            trouble,
            pending_gone: BTreeSet::new(),
            broken: BTreeSet::new(),
            reported: BTreeMap::new(),
        }
    }

    /// Reads both folders once, says so on `ready`, and follows them until `shutdown`.
    pub async fn run(mut self, ready: oneshot::Sender<Result<(), DirectoryError>>, shutdown: CancellationToken) {
        let opened = Inotify::init().and_then(|inotify| inotify.into_event_stream([0u8; 64 << 10]));
        let mut events = match opened {
            Ok(events) => events,
            Err(error) => {
                let _ = ready.send(Err(DirectoryError::Watch(error)));
                return;
            }
        };
        let mut watches = events.watches();
        let now = Instant::now();
        // State first: no snapshot may show a Service without the address it has.
        self.look_at_state(now, &mut watches);
        let found = self.manifests.due(now, &mut watches);
        if let Err(source) = found.map(|files| self.read_manifests(files.unwrap_or_default())) {
            let _ = ready.send(Err(DirectoryError::Manifests { path: self.manifests.root().to_owned(), source }));
            return;
        }
        self.publish().await;
        if self.translator.objects().ids().next().is_none() {
            tracing::info!(path = %self.manifests.root().display(), "the manifest folder holds no objects yet");
        }
        if ready.send(Ok(())).is_err() {
            return;
        }
        let mut next_look = Instant::now() + LOOK_INTERVAL;
        loop {
            let deadlines = [self.manifests.deadline(), self.state.deadline(), Some(next_look)];
            let deadline = deadlines.into_iter().flatten().min().unwrap_or(next_look);
            tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => {
                    let now = Instant::now();
                    match event {
                        Some(Ok(event)) => {
                            self.manifests.take_event(&event, now);
                            self.state.take_event(&event, now);
                        }
                        _ => self.look_again(now + RETRY_INTERVAL),
                    }
                }
                Ok(()) = self.trouble.changed() => {
                    let trouble = self.trouble.borrow_and_update().clone();
                    let (path, detail) = trouble.unzip();
                    self.say_folder("state:writing", path.unwrap_or_default(), detail);
                    self.publish().await;
                }
                () = tokio::time::sleep_until(deadline) => {
                    let now = Instant::now();
                    let is_look = next_look <= now;
                    if is_look {
                        self.look_again(now);
                    }
                    self.look_at_state(now, &mut watches);
                    self.look_at_manifests(now, &mut watches);
                    if is_look {
                        let sees_all = self.manifests.trouble.is_none() && self.state.trouble.is_none();
                        next_look = now + look_interval(now.elapsed(), sees_all);
                    }
                    self.publish().await;
                }
            }
        }
    }

    fn look_again(&mut self, at: Instant) {
        self.manifests.rescan_by(at);
        self.state.rescan_by(at);
    }

    fn look_at_manifests(&mut self, now: Instant, watches: &mut inotify::Watches) {
        match self.manifests.due(now, watches) {
            Ok(None) => {}
            Ok(Some(files)) => {
                self.say_folder("", self.manifests.root().to_owned(), self.manifests.trouble.clone());
                self.read_manifests(files);
            }
            Err(error) => {
                let root = self.manifests.root().to_owned();
                self.say_folder("", root, Some(format!("{error}; make the folder readable again")));
                self.manifests.rescan_by(now + RETRY_INTERVAL);
            }
        }
    }

    fn look_at_state(&mut self, now: Instant, watches: &mut inotify::Watches) {
        const SOURCE: &str = "state:";
        match self.state.due(now, watches) {
            Ok(None) => {}
            Ok(Some(files)) => {
                self.say_folder(SOURCE, self.state.root().to_owned(), self.state.trouble.clone());
                let files: Vec<String> = files.into_iter().collect();
                let read = parallel::map(&files, |file| read_state(self.state.path(file), file, self.node.as_ref()));
                for (file, said) in files.iter().zip(read) {
                    let Some(Said { remember, problem }) = said else { continue };
                    remember(&mut self.translator);
                    self.translator.set_source_problems(&format!("state:{file}"), problem.into_iter().collect());
                }
            }
            Err(error) => {
                // A reader may be started before anybody has written.
                let missing = error.kind() == io::ErrorKind::NotFound && self.gone.is_none();
                let detail = (!missing).then(|| format!("{error}; make the state folder readable again"));
                self.say_folder(SOURCE, self.state.root().to_owned(), detail);
                self.state.rescan_by(now + RETRY_INTERVAL);
            }
        }
    }

    fn say_folder(&mut self, source: &str, root: PathBuf, trouble: Option<String>) {
        let origin = Origin::File { path: root.display().to_string(), document: 0 };
        let problem = |detail| {
            let fault = Fault::Unreadable { detail };
            (origin, Problem { object: None, generation: 0, field: String::new(), fault })
        };
        self.translator.set_source_problems(source, trouble.map(problem).into_iter().collect());
    }

    fn read_manifests(&mut self, files: BTreeSet<String>) {
        let files: Vec<String> = files.into_iter().collect();
        for some in files.chunks(FILES_AT_ONCE) {
            let rules = self.translator.rules();
            let read = parallel::map(some, |file| {
                let text = read_text(&self.manifests.path(file));
                text.map(|text| text.map(|text| Manifest::read(file, &text, rules)))
            });
            for (file, manifest) in some.iter().zip(read) {
                self.take_manifest(file, manifest);
            }
        }
    }

    /// Takes in what a file says now; nothing where it is gone.
    fn take_manifest(&mut self, file: &str, manifest: Result<Option<Manifest>, Fault>) {
        let Manifest { readings, problems, nameless, misnamed } = match manifest {
            Ok(manifest) => manifest.unwrap_or_default(),
            Err(fault) => {
                self.broken.insert(file.to_owned());
                let origin = Origin::File { path: file.to_owned(), document: 0 };
                let problem = Problem { object: None, generation: 0, field: String::new(), fault };
                self.translator.set_source_problems(file, vec![(origin, problem)]);
                return;
            }
        };
        match nameless {
            true => self.broken.insert(file.to_owned()),
            false => self.broken.remove(file),
        };
        self.translator.replace(file, readings, |id| nameless || misnamed.contains(&id.key));
        self.translator.set_source_problems(file, problems);
    }

    async fn publish(&mut self) {
        let snapshot = self.translator.snapshot();
        self.forget_gone().await;
        self.report(&snapshot.problems);
        self.snapshots.send_if_modified(|current| {
            let news = !Arc::ptr_eq(current, &snapshot);
            *current = snapshot;
            news
        });
    }

    async fn forget_gone(&mut self) {
        self.pending_gone.append(&mut self.translator.take_gone());
        let Some(gone) = &self.gone else {
            self.pending_gone.clear();
            return;
        };
        let objects = self.translator.objects();
        self.pending_gone.retain(|id| !objects.knows(id));
        // Who knows what stands in the part nobody can read, or in the folder that is away.
        if self.broken.is_empty() && self.manifests.deadline().is_none() && !self.pending_gone.is_empty() {
            let ids = std::mem::take(&mut self.pending_gone).into_iter().collect();
            // A writer that is gone has nothing to forget.
            let _ = gone.send(ids).await;
        }
    }

    /// Logs each problem once when it comes, and that it is gone when it goes.
    fn report(&mut self, problems: &Arc<BTreeMap<Origin, Vec<Problem>>>) {
        if **problems == self.reported {
            return;
        }
        for (origin, now) in &**problems {
            let before = self.reported.get(origin).map(Vec::as_slice).unwrap_or_default();
            for problem in now.iter().filter(|problem| !before.contains(problem)) {
                tracing::warn!(%origin, reason = problem.fault.reason(), error = %problem, "manifest problem");
            }
        }
        for origin in self.reported.keys().filter(|origin| !problems.contains_key(origin)) {
            tracing::info!(%origin, "manifest problem is gone");
        }
        self.reported = (**problems).clone();
    }
}

/// How long nobody looks again after a look that took so long. Where a part of a folder is not watched, nothing else sees it.
fn look_interval(took: Duration, sees_all: bool) -> Duration {
    if sees_all { (took * LOOK_SPARINGLY).clamp(LOOK_INTERVAL, LONGEST_LOOK_INTERVAL) } else { LOOK_INTERVAL }
}

/// What a manifest file says.
#[derive(Default)]
struct Manifest {
    readings: Vec<(Origin, Reading)>,
    problems: Vec<(Origin, Problem)>,
    /// Anything may stand in a part that nobody could read.
    nameless: bool,
    /// Objects of these names may stand in such a part.
    misnamed: BTreeSet<ObjectKey>,
}

impl Manifest {
    /// Reads the text of a file.
    fn read(file: &str, text: &str, rules: &Rules) -> Self {
        let mut manifest = Self::default();
        for document in read_documents(text, |value| translate::read(value, rules)) {
            let origin = Origin::File { path: file.to_owned(), document: document.number };
            let nobody = |fault| Problem { object: None, generation: 0, field: String::new(), fault };
            match document.value {
                _ if document.number > MAX_DOCUMENTS => {
                    let detail = format!("more than {MAX_DOCUMENTS} documents in one file; split it");
                    manifest.problems.push((origin, nobody(Fault::Unreadable { detail })));
                    manifest.nameless = true;
                    break;
                }
                Ok(entries) => entries.into_iter().for_each(|entry| manifest.add(&origin, entry, rules)),
                Err(detail) => {
                    manifest.problems.push((origin, nobody(Fault::Syntax { detail })));
                    manifest.nameless = true;
                }
            }
        }
        manifest
    }

    fn add(&mut self, origin: &Origin, entry: Entry, rules: &Rules) {
        match entry {
            Entry::Object(reading) => self.readings.push((origin.clone(), reading)),
            Entry::Unknown(problem) => {
                match &problem.object {
                    Some(ObjectRef { namespace, name, .. }) => {
                        let homes = ["default", rules.namespace.as_str()];
                        let homes = namespace.as_deref().map_or(homes, |namespace| [namespace; 2]);
                        self.misnamed.extend(homes.map(|namespace| ObjectKey::new(namespace, name.as_str())));
                        self.misnamed.insert(ObjectKey::new("", name.as_str()));
                    }
                    None => self.nameless = true,
                }
                self.problems.push((origin.clone(), problem));
            }
            Entry::Foreign => {}
        }
    }
}

/// What a state file says.
struct Said {
    /// Has it remembered.
    remember: Remember,
    /// What is wrong with the file.
    problem: Option<(Origin, Problem)>,
}

type Remember = Box<dyn FnOnce(&mut Translator) + Send>;

/// Reads a state file, on behalf of a node if there is one. Nothing for a file that nobody reads.
fn read_state(path: PathBuf, file: &str, node: Option<&NodeName>) -> Option<Said> {
    let place = Place::at(file)?;
    let text = read_text(&path);
    let name = file.to_owned();
    let (remember, problem): (Remember, Option<(Option<ObjectRef>, Fault)>) = match place {
        Place::Service(key) => {
            let (said, problem) = remembered(text, state::read_service);
            let object = ObjectRef::service(&key);
            (Box::new(move |to| to.remember_service(key, said)), problem.map(|fault| (Some(object), fault)))
        }
        Place::Pool(key) => {
            let (said, problem) = remembered(text, state::read_pool);
            let object = Id::keyed(Kind::IpAddressPool, key.clone()).object();
            (Box::new(move |to| to.remember_pool(key, said)), problem.map(|fault| (Some(object), fault)))
        }
        Place::Ingress(key) => {
            let (said, problem) = remembered(text, state::read_ingress);
            let object = ObjectRef::ingress(&key);
            (Box::new(move |to| to.remember_ingress(key, said)), problem.map(|fault| (Some(object), fault)))
        }
        Place::L2Status { .. } => {
            let (said, problem) = kept(text, state::read_l2_status);
            let remember: Remember = match said {
                Some(said) => Box::new(move |to| to.remember_announcer(&name, said)),
                None => Box::new(|_| {}),
            };
            (remember, problem.map(|fault| (None, fault)))
        }
        Place::Membership { node: whose } if Some(&whose) == node => {
            let (said, problem) = kept(text, state::read_membership);
            let remember: Remember = match said {
                Some(nodes) => Box::new(move |to| to.set_unreachable(nodes.unwrap_or_default())),
                None => Box::new(|_| {}),
            };
            (remember, problem.map(|fault| (None, fault)))
        }
        Place::Conditions { .. } => {
            let (said, problem) = kept(text, state::read_conditions);
            let remember: Remember = match said {
                Some(said) => Box::new(move |to| to.remember_conditions(&name, said)),
                None => Box::new(|_| {}),
            };
            (remember, problem.map(|fault| (None, fault)))
        }
        // What follows is written anew where it cannot be read, and nothing is lost with it.
        Place::Configuration(reporter) => {
            let said = text.ok().flatten().and_then(|text| state::read_configuration(&text).ok());
            (Box::new(move |to| to.remember_configuration(reporter, said)), None)
        }
        Place::BgpStatus { .. } => {
            let said = text.ok().flatten().and_then(|text| state::read_bgp_status(&text).ok());
            (Box::new(move |to| to.remember_advertiser(&name, said)), None)
        }
        Place::BgpSession { .. } => {
            let said = text.ok().flatten().and_then(|text| state::read_bgp_session(&text).ok());
            (Box::new(move |to| to.remember_session(&name, said)), None)
        }
        Place::EntryService(_) | Place::EntrySlice { .. } | Place::Membership { .. } | Place::Events { .. } => {
            return None;
        }
    };
    let origin = Origin::File { path: path.display().to_string(), document: 0 };
    let problem = problem.map(|(object, fault)| {
        let fault = match fault {
            Fault::Unreadable { .. } => fault,
            other => Fault::Unreadable {
                detail: format!(
                    "{other}; restore the file from a copy, or remove it to give up what it remembers (a Service \
                     that nothing else is known of gets no address until then, so that none moves)"
                ),
            },
        };
        (origin, Problem { object, generation: 0, field: String::new(), fault })
    });
    Some(Said { remember, problem })
}

/// What a state file says now, nothing where it is gone, and what is wrong with it. What was known stays where it cannot
/// be read.
fn kept<T>(
    text: Result<Option<String>, Fault>,
    read: impl Fn(&str) -> Result<T, Fault>,
) -> (Option<Option<T>>, Option<Fault>) {
    match remembered(text, read) {
        (None, fault) => (Some(None), fault),
        (Some(Remembered::Known(said)), fault) => (Some(Some(said)), fault),
        (Some(Remembered::Unreadable), fault) => (None, fault),
    }
}

/// What a state file says, and what is wrong with it.
fn remembered<T>(
    text: Result<Option<String>, Fault>,
    read: impl Fn(&str) -> Result<T, Fault>,
) -> (Option<Remembered<T>>, Option<Fault>) {
    match text {
        Ok(None) => (None, None),
        Ok(Some(text)) => match read(&text) {
            Ok(status) => (Some(Remembered::Known(status)), None),
            Err(fault) => (Some(Remembered::Unreadable), Some(fault)),
        },
        Err(fault) => (Some(Remembered::Unreadable), Some(fault)),
    }
}

/// The text of a file; `None` when there is none.
fn read_text(path: &Path) -> Result<Option<String>, Fault> {
    let unreadable = |detail: String| Fault::Unreadable { detail };
    let metadata = fs::metadata(path).ok();
    // Opening a pipe would wait for somebody to write into it.
    if metadata.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        return Err(unreadable("it is not a regular file; put one in its place".to_owned()));
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(format!("{error}; make it readable for this process"))),
    };
    // With room for all of it, it is read at once; a byte more, and its end is seen without asking for more room.
    let size = metadata.map_or(0, |metadata| metadata.len().min(MAX_FILE_BYTES));
    let mut bytes = Vec::with_capacity(size as usize + 1);
    let read = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(unreadable(format!("larger than {} MiB; split it", MAX_FILE_BYTES >> 20)));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| unreadable(format!("{error}; save it as UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_takes_long_is_taken_seldom_unless_nothing_else_sees_a_part() {
        let interval = |millis, sees_all| look_interval(Duration::from_millis(millis), sees_all).as_secs();

        assert_eq!([0, 1, 40, 300].map(|took| interval(took, true)), [10, 10, 40, 60]);
        assert_eq!([0, 300].map(|took| interval(took, false)), [10, 10]);
    }
}
