//! Speaks BGP where the machine wants it, and tells it how the sessions stand.

use std::{collections::BTreeMap, future::pending, sync::Arc};

use ferrogate_core::speaker::{
    Event,
    bfd::sessions::Path,
    bgp::{Wanted, Watched},
};
use ferrogate_wire::bfd::Diagnostic;
use imbl::ordmap::DiffItem;
use tokio::sync::watch;
use tracing::error;

use crate::{
    bgp::{Bgp, Interfaces, PORT, Sessions},
    metrics::{BgpMetrics, is_shown_alike},
};

/// The sessions, from the first router that is wanted on.
pub(crate) struct Peering {
    running: Option<Running>,
    interfaces: Arc<Interfaces>,
    metrics: BgpMetrics,
}

struct Running {
    bgp: Bgp,
    sessions: watch::Receiver<Sessions>,
    /// How they stood when that was last told.
    told: Sessions,
}

/// What is new of the sessions.
#[derive(Default)]
pub(crate) struct News {
    /// For the machine.
    pub(crate) events: Vec<Event>,
    /// BFD sessions that are wanted from now on, and no others, if these are not those from before.
    pub(crate) watch: Option<BTreeMap<Path, Watched>>,
}

impl Peering {
    /// Starts nothing.
    pub(crate) fn new(metrics: BgpMetrics) -> Self {
        Self { running: None, interfaces: Arc::default(), metrics }
    }

    /// Speaks with exactly these from now on.
    pub(crate) fn follow(&mut self, wanted: &Wanted) {
        if self.running.is_none() {
            match Bgp::start(PORT) {
                Ok(bgp) => {
                    bgp.interfaces(self.interfaces.clone());
                    let sessions = bgp.sessions();
                    self.running = Some(Running { bgp, sessions, told: Sessions::default() });
                }
                Err(error) => error!(%error, "BGP cannot start, and no router is spoken with"),
            }
        }
        if let Some(running) = &self.running {
            running.bgp.want(wanted.clone());
        }
    }

    /// The node's interfaces are these.
    pub(crate) fn interfaces(&mut self, interfaces: &Interfaces) {
        self.interfaces = Arc::new(interfaces.clone());
        if let Some(running) = &self.running {
            running.bgp.interfaces(self.interfaces.clone());
        }
    }

    /// What BFD sees by a way has changed.
    pub(crate) fn watched(&self, path: &Path, is_up: bool, failure: Option<Diagnostic>) {
        if let Some(running) = &self.running {
            running.bgp.watched(path, is_up, failure);
        }
    }

    /// What is new, as soon as anything is. Nothing is lost where nobody waits until then. `None`: BGP has ended by itself.
    pub(crate) async fn news(&mut self) -> Option<News> {
        let Some(Running { sessions, told, .. }) = &mut self.running else { return pending().await };
        sessions.changed().await.ok()?;
        let before = std::mem::replace(told, sessions.borrow_and_update().clone());
        let mut news = News::default();
        for change in before.statuses.diff(&told.statuses) {
            let (old, new) = match change {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
            };
            if let Some(old) = old.filter(|old| new.is_none_or(|new| !is_shown_alike(old, new))) {
                self.metrics.forget(old);
            }
            match (old, new) {
                (old, Some(new)) => {
                    self.metrics.note(old.filter(|old| is_shown_alike(old, new)).map(AsRef::as_ref), new);
                    news.events.push(Event::Session(Box::new((**new).clone())));
                }
                (Some(old), None) => {
                    news.events.push(Event::SessionGone { peer: old.peer.clone(), remote: old.dynamic });
                }
                (None, None) => {}
            }
        }
        for change in before.messages.diff(&told.messages) {
            let (DiffItem::Add(key, new) | DiffItem::Update { new: (key, new), .. }) = change else { continue };
            if let Some(status) = told.statuses.get(key) {
                self.metrics.count(status, before.messages.get(key), new);
            }
        }
        news.watch = (before.watch != told.watch).then(|| told.watch.clone());
        if told.parted && !before.parted {
            news.events.push(Event::Parted);
        }
        Some(news)
    }
}
