//! Watches the owners of addresses and BGP peers by BFD where the machine wants it, and tells what is seen.

use std::{collections::BTreeMap, time::Duration};

use ferrogate_core::speaker::{
    Event, Watch,
    bfd::sessions::{Path, Wish},
    bgp::BfdWish,
};
use ferrogate_wire::bfd::State;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::{
    bfd::{Bfd, Priority, Report},
    config::BfdProfile,
    metrics::Metrics,
};

/// Reports that may wait for the loop.
const REPORTS: usize = 1024;

/// With shorter intervals a busy machine raises false alarms, unless the thread comes first.
const STEADY_INTERVAL: Duration = Duration::from_millis(50);

/// The sessions, from the first one that is wanted on.
pub(crate) struct Watcher {
    priority: Priority,
    metrics: Metrics,
    reports: mpsc::Sender<Report>,
    bfd: Option<Bfd>,
    watch: Watch,
    /// Sessions with BGP peers.
    peers: BTreeMap<Path, BfdWish>,
}

/// What a report means.
#[derive(Default)]
pub(crate) struct Seen {
    /// For the machine.
    pub(crate) events: Vec<Event>,
    /// For BGP: by which way, whether it is up, and whether it was and has failed.
    pub(crate) peers: Vec<(Path, bool, bool)>,
}

impl Watcher {
    /// Starts nothing. What sessions have to tell comes out of the channel.
    pub(crate) fn new(profile: BfdProfile, metrics: Metrics) -> (Self, mpsc::Receiver<Report>) {
        let (reports, reported) = mpsc::channel(REPORTS);
        let priority = match profile {
            BfdProfile::Fast => Priority::RealTime,
            BfdProfile::Default | BfdProfile::Off => Priority::Usual,
        };
        (Self { priority, metrics, reports, bfd: None, watch: Watch::default(), peers: BTreeMap::new() }, reported)
    }

    /// Watches exactly these owners of addresses from now on.
    pub(crate) fn follow(&mut self, watch: Watch) {
        self.watch = watch;
        self.want();
    }

    /// Watches exactly these BGP peers from now on.
    pub(crate) fn follow_peers(&mut self, peers: BTreeMap<Path, BfdWish>) {
        let is_quick = |wish: &BfdWish| wish.settings.desired_min_tx_interval.get() < STEADY_INTERVAL;
        if peers.values().any(is_quick) {
            self.priority = Priority::RealTime;
        }
        self.peers = peers;
        self.want();
    }

    fn want(&mut self) {
        if self.bfd.is_none() {
            match Bfd::start(self.reports.clone(), &self.metrics, self.priority) {
                Ok(bfd) => self.bfd = Some(bfd),
                Err(error) => {
                    error!(%error, "BFD cannot start: owners are watched by gossip alone, BGP peers by hold times")
                }
            }
        }
        if let Some(bfd) = &self.bfd {
            let mut wanted = self.watch.wanted.clone();
            let wish = |wish: &BfdWish| Wish { settings: wish.settings, minimum_ttl: wish.minimum_ttl };
            wanted.sessions.extend(self.peers.iter().map(|(path, peer)| (path.clone(), wish(peer))));
            bfd.prefer(self.priority);
            bfd.want(wanted);
        }
    }

    /// What a report means.
    pub(crate) fn take(&self, report: Report) -> Seen {
        match report {
            Report::Changed { path, change, at } => {
                let peer = path.remote;
                let interface = path.interface.as_ref().map(tracing::field::display);
                let (from, to, reason) = (change.from, change.to, change.diagnostic);
                debug!(%peer, interface, ?from, ?to, waited = ?at.elapsed(), "BFD session changed");
                if change.is_failure() {
                    warn!(%peer, interface, ?from, ?to, ?reason, "BFD session lost");
                } else if to == State::Up {
                    info!(%peer, interface, "BFD session up");
                } else {
                    info!(%peer, interface, ?from, ?to, ?reason, "BFD session ended");
                }
                let events = self.watch.told(&path, &change).into_iter().collect();
                let is_peer = self.peers.contains_key(&path);
                let peers = is_peer.then(|| (path, to == State::Up, change.is_failure())).into_iter().collect();
                Seen { events, peers }
            }
            Report::Standing { paths } => {
                let events = self.watch.standing(&paths);
                let peers = paths.into_iter().filter(|path| self.peers.contains_key(path));
                Seen { events, peers: peers.map(|path| (path, true, false)).collect() }
            }
            Report::Held { path, time } => {
                let interface = path.interface.as_ref().map(tracing::field::display);
                warn!(peer = %path.remote, interface, ?time, "BFD session flaps and is held down");
                Seen::default()
            }
            Report::Refused { path } => {
                let interface = path.interface.as_ref().map(tracing::field::display);
                warn!(peer = %path.remote, interface, "BFD session refused, there are too many");
                Seen::default()
            }
        }
    }
}
