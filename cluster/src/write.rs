//! Writes, to files of the state folder.
//!
//! One thread of its own carries them out, since a disk may take its time. For each object only the latest wish is
//! kept, so that what waits is bounded by the objects there are. A wish that fails is kept and tried again; the first
//! failure is reported with its path and remedy, and everything else goes on. A file is replaced as a whole: written
//! beside, synced, renamed, and the folder synced; one that would not change is not touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ferrogate_core::{
    model::{NodeName, ObjectKey, ObjectRef, pool::PoolStatus, service::ServiceStatus},
    write::{Condition, L2Status, Write},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    objects::{Id, Kind, OUR_API},
    state::{self, Membership, Place},
    translate::service::FROM_POOL_ANNOTATION,
};

mod events;

use events::Events;

/// How many files are written before new wishes are looked at: few, as whom a node cannot see is urgent.
const BATCH: usize = 16;

/// How long after a failure it is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long a failing disk may hold up the end of the process.
const FAREWELL: Duration = Duration::from_secs(3);

/// What stands in the way of writing: the file, and why with the remedy.
pub type Trouble = Option<(PathBuf, String)>;

/// What a file should say.
#[derive(Clone, Debug)]
enum Wish {
    Service(ServiceStatus),
    Pool(PoolStatus),
    Ingress(Vec<IpAddr>),
    Conditions { object: ObjectRef, conditions: BTreeMap<String, Condition> },
    L2Status(L2Status),
    Membership(BTreeSet<NodeName>),
    Events,
    Nothing,
}

/// Carries out writes in a state folder.
pub struct Writer {
    root: PathBuf,
    name: String,
    wishes: BTreeMap<Place, Wish>,
    failed: BTreeMap<Place, Wish>,
    retry_at: Option<Instant>,
    retry_after: Duration,
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
        let (place, wish) = match write {
            Write::ServiceStatus { service, status } => (Place::Service(service), Wish::Service(status)),
            Write::PoolStatus { pool, status } => (Place::Pool(pool), Wish::Pool(status)),
            Write::IngressStatus { ingress, addresses } => (Place::Ingress(ingress), Wish::Ingress(addresses)),
            Write::Condition { object, condition } => {
                let key = ObjectKey::new(object.namespace.as_deref().unwrap_or_default(), object.name.as_str());
                let place = Place::Conditions { kind: object.kind.clone(), key };
                let waiting = self.wishes.remove(&place).or_else(|| self.failed.remove(&place));
                let mut conditions = match waiting {
                    Some(Wish::Conditions { conditions, .. }) => conditions,
                    _ => BTreeMap::new(),
                };
                conditions.insert(condition.kind.clone(), condition);
                (place, Wish::Conditions { object, conditions })
            }
            Write::Event(event) => {
                self.events.add(event, Timestamp::now());
                (Place::Events { writer: self.name.clone() }, Wish::Events)
            }
            Write::L2Status { service, node, status } => {
                let wish = status.map_or(Wish::Nothing, Wish::L2Status);
                (Place::L2Status { node, service }, wish)
            }
            Write::Membership { node, unreachable } => (Place::Membership { node }, Wish::Membership(unreachable)),
        };
        self.failed.remove(&place);
        self.wishes.insert(place, wish);
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
        let before = Conditions::of(&before);
        let now = Timestamp::now();
        let ingress = |addresses: &[IpAddr]| -> Value { addresses.iter().map(|ip| json!({ "ip": ip })).collect() };
        let value = match (place, wish) {
            (Place::Service(key), Wish::Service(status)) => {
                let mut object = object("v1", "Service", key);
                if let Some(pool) = &status.pool {
                    object["metadata"]["annotations"] = json!({ FROM_POOL_ANNOTATION: pool.as_str() });
                }
                object["status"] = json!({
                    "loadBalancer": { "ingress": ingress(&status.addresses) },
                    "conditions": before.next(status.condition.iter(), now),
                });
                object
            }
            (Place::Pool(key), Wish::Pool(status)) => {
                let mut object = object(OUR_API, "IPAddressPool", key);
                object["status"] = json!({
                    "assignedIPv4": status.assigned_ipv4,
                    "assignedIPv6": status.assigned_ipv6,
                    "availableIPv4": status.available_ipv4,
                    "availableIPv6": status.available_ipv6,
                    "conditions": before.next(status.conditions.iter(), now),
                });
                object
            }
            (Place::Ingress(key), Wish::Ingress(addresses)) => {
                let mut object = object("networking.k8s.io/v1", "Ingress", key);
                object["status"] = json!({ "loadBalancer": { "ingress": ingress(addresses) } });
                object
            }
            (Place::Conditions { key, .. }, Wish::Conditions { object: about, conditions }) => {
                let mut object = object(&about.api_version, &about.kind, key);
                object["status"] = json!({ "conditions": before.merged(conditions, now) });
                object
            }
            (Place::L2Status { node, service }, Wish::L2Status(status)) => {
                let name = format!("l2-{node}-{}-{}", service.namespace, service.name);
                let interfaces = status.interfaces.iter().map(|name| json!({ "name": name.as_str() }));
                json!({
                    "apiVersion": OUR_API,
                    "kind": "ServiceL2Status",
                    "metadata": { "name": name, "namespace": &*service.namespace },
                    "spec": {},
                    "status": {
                        "node": node.as_str(),
                        "serviceName": &*service.name,
                        "serviceNamespace": &*service.namespace,
                        "pool": status.pool.as_str(),
                        "addresses": status.addresses,
                        "interfaces": interfaces.collect::<Vec<_>>(),
                    },
                })
            }
            (Place::Membership { node }, Wish::Membership(unreachable)) => json!(Membership::new(node, unreachable)),
            _ => self.events.list(&self.name),
        };
        yaml(&value)
    }
}

fn yaml(value: &Value) -> String {
    // JSON is YAML too, should there ever be a value that YAML has no plainer form for.
    serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string())
}

fn object(api_version: &str, kind: &str, key: &ObjectKey) -> Value {
    let mut object = json!({ "apiVersion": api_version, "kind": kind, "metadata": { "name": &*key.name } });
    if !key.namespace.is_empty() {
        object["metadata"]["namespace"] = json!(&*key.namespace);
    }
    object
}

/// The conditions a file holds, by type.
pub struct Conditions(BTreeMap<String, Value>);

impl Conditions {
    /// Those of an object's status.
    pub fn of(object: &Value) -> Self {
        let listed = object.pointer("/status/conditions").and_then(Value::as_array);
        let named = |one: &Value| Some((one.get("type")?.as_str()?.to_owned(), one.clone()));
        Self(listed.into_iter().flatten().filter_map(named).collect())
    }

    /// These conditions alone; one whose status stays keeps the time of its last change.
    pub fn next<'a>(&self, conditions: impl Iterator<Item = &'a Condition>, now: Timestamp) -> Vec<Value> {
        conditions.map(|condition| self.timed(condition, now)).collect()
    }

    /// These conditions beside the ones of other types.
    fn merged(&self, conditions: &BTreeMap<String, Condition>, now: Timestamp) -> Vec<Value> {
        let mut all = self.0.clone();
        for (kind, condition) in conditions {
            all.insert(kind.clone(), self.timed(condition, now));
        }
        all.into_values().collect()
    }

    fn timed(&self, condition: &Condition, now: Timestamp) -> Value {
        let status = if condition.holds { "True" } else { "False" };
        let before = self.0.get(&condition.kind).filter(|before| before["status"] == status);
        let kept = before.and_then(|before| before["lastTransitionTime"].as_str());
        json!({
            "type": condition.kind,
            "status": status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": condition.observed_generation,
            "lastTransitionTime": kept.map_or_else(|| seconds(now), str::to_owned),
        })
    }
}

/// A time as Kubernetes writes it, to the second.
pub fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
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
