//! Watches the owners of addresses and BGP peers by BFD where the machine wants it, and tells what is seen.

use std::{collections::BTreeMap, time::Duration};

use ferrogate_core::speaker::{
    Event, Watch,
    bfd::sessions::{Path, Wish},
    bgp::Watched,
};
use ferrogate_wire::bfd::{Diagnostic, State};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::{
    bfd::{Bfd, Priority, Report},
    config::BfdProfile,
    metrics::Metrics,
};

/// Reports that may wait for the loop.
const REPORTS: usize = 1024;

/// With shorter intervals any busy machine raises false alarms, unless the thread comes first.
const STEADY_INTERVAL: Duration = Duration::from_millis(50);

/// The sessions, from the first one that is wanted on.
pub(crate) struct Watcher {
    priority: Priority,
    metrics: Metrics,
    reports: mpsc::Sender<Report>,
    bfd: Option<Bfd>,
    watch: Watch,
    /// Sessions with BGP peers.
    peers: BTreeMap<Path, Watched>,
}

/// What a report means.
#[derive(Default)]
pub(crate) struct Seen {
    /// For the machine.
    pub(crate) events: Vec<Event>,
    /// For BGP: by which way, whether it is up, and why it has failed, if it was and has.
    pub(crate) peers: Vec<(Path, bool, Option<Diagnostic>)>,
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
    pub(crate) fn follow_peers(&mut self, peers: BTreeMap<Path, Watched>) {
        let is_quick = |peer: &Watched| peer.wish.settings.desired_min_tx_interval.get() < STEADY_INTERVAL;
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
            let wish = |Watched { wish, .. }: &Watched| Wish { settings: wish.settings, minimum_ttl: wish.minimum_ttl };
            wanted.sessions.extend(self.peers.iter().map(|(path, peer)| (path.clone(), wish(peer))));
            bfd.prefer(self.priority);
            bfd.count(self.peers.iter().map(|(path, peer)| (path.clone(), peer.vrf.clone())).collect());
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
                let peer = self.peers.get(&path).map(|peer| (path, peer.vrf.clone()));
                if let Some(peer) = &peer {
                    self.metrics.bfd_peers.changed(peer, &change);
                }
                let peers = peer.map(|(path, _)| (path, to == State::Up, change.failure())).into_iter().collect();
                Seen { events, peers }
            }
            Report::Standing { paths } => {
                let events = self.watch.standing(&paths);
                let peers = paths.into_iter().filter_map(|path| {
                    let vrf = self.peers.get(&path)?.vrf.clone();
                    let peer = (path, vrf);
                    self.metrics.bfd_peers.is_up(&peer, true);
                    Some((peer.0, true, None))
                });
                Seen { peers: peers.collect(), events }
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use ferrogate_core::speaker::{bfd::Settings, bgp::BfdWish};
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn m_149_a_peer_whose_session_was_up_before_it_was_asked_for_counts_as_up() {
        let mut registry = Registry::default();
        let (mut watcher, _reports) = Watcher::new(BfdProfile::Off, Metrics::register(&mut registry));
        let (remote, local) = ("192.0.2.254".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let path = Path { remote, local, interface: Some("eth1".into()), vrf: None };
        let wish = BfdWish { settings: Settings::DEFAULT, minimum_ttl: NonZeroU8::MAX };
        watcher.peers = BTreeMap::from([(path.clone(), Watched { wish, vrf: None })]);

        let seen = watcher.take(Report::Standing { paths: vec![path.clone()] });

        assert_eq!(seen.peers, [(path, true, None)]);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let line = "bfd_peer_up{address=\"192.0.2.254\",interface=\"eth1\"} 1";
        assert!(text.lines().any(|found| found.ends_with(line)), "{text}");
    }
}
