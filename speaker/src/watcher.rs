//! Watches the owners of addresses by BFD where the machine wants it, and tells it what is seen.

use ferrogate_core::speaker::{Event, Watch};
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

/// The sessions, from the first one that is wanted on.
pub(crate) struct Watcher {
    priority: Priority,
    metrics: Metrics,
    reports: mpsc::Sender<Report>,
    bfd: Option<Bfd>,
    watch: Watch,
}

impl Watcher {
    /// Starts nothing. What sessions have to tell comes out of the channel.
    pub(crate) fn new(profile: BfdProfile, metrics: Metrics) -> (Self, mpsc::Receiver<Report>) {
        let (reports, reported) = mpsc::channel(REPORTS);
        let priority = match profile {
            BfdProfile::Fast => Priority::RealTime,
            BfdProfile::Default | BfdProfile::Off => Priority::Usual,
        };
        (Self { priority, metrics, reports, bfd: None, watch: Watch::default() }, reported)
    }

    /// Has exactly these sessions from now on.
    pub(crate) fn follow(&mut self, watch: Watch) {
        if self.bfd.is_none() {
            match Bfd::start(self.reports.clone(), &self.metrics, self.priority) {
                Ok(bfd) => self.bfd = Some(bfd),
                Err(error) => error!(%error, "BFD cannot start, and owners are watched by gossip alone"),
            }
        }
        if let Some(bfd) = &self.bfd {
            bfd.want(watch.wanted.clone());
        }
        self.watch = watch;
    }

    /// What a report means for the machine.
    pub(crate) fn take(&self, report: Report) -> Vec<Event> {
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
                self.watch.told(&path, &change).into_iter().collect()
            }
            Report::Standing { paths } => self.watch.standing(&paths),
            Report::Held { path, time } => {
                let interface = path.interface.as_ref().map(tracing::field::display);
                warn!(peer = %path.remote, interface, ?time, "BFD session flaps and is held down");
                Vec::new()
            }
            Report::Refused { path } => {
                let interface = path.interface.as_ref().map(tracing::field::display);
                warn!(peer = %path.remote, interface, "BFD session refused, there are too many");
                Vec::new()
            }
        }
    }
}
