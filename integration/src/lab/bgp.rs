//! The events that BGP is measured by, each many times, by both families at once: what clients behind a router lose when
//! a cable is cut, a speaker dies, a node is drained or comes back, and how long routes take.
//!
//! ```text
//!              ┌────────────── switch (bridge) ──────────────┐  192.0.2.0/24, 2001:db8::/64
//!              │ eth0            │ eth0          │ eth0      │ eth0
//!            node-1            node-2          node-3      router ── client
//! ```
//!
//! The addresses are from no network that anybody is on: what leads to them is what the router has from the speakers, and
//! it spreads flows over all of them. The nodes have a network of their own beside it, by which they reach each other's
//! pods, so that only the way to the router is ever cut. A network stays for all events that happen to it, one after the other; one in which
//! something failed is made anew.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

pub use self::stand::Stand;
use crate::lab::{
    event::{Event, Options, Profile},
    report::Report,
    row::{Outcome, Row, Seen},
    scenario::Scenario,
};

mod bulk;
mod ground;
mod manifests;
mod stand;

/// The lab of BGP: one network after the other.
pub struct Lab {
    binary: PathBuf,
    folder: PathBuf,
    options: Options,
    stand: Option<(Setup, Stand)>,
    stands: usize,
    /// Where the logs are of the first network in which something failed.
    failed: Option<PathBuf>,
}

/// What the router and the speakers agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Setup {
    profile: Profile,
    graceful_restart: bool,
}

impl Lab {
    /// Makes nothing yet.
    pub fn new(binary: &Path, folder: &Path, options: &Options) -> Self {
        let (binary, folder, options) = (binary.to_owned(), folder.to_owned(), options.clone());
        Self { binary, folder, options, stand: None, stands: 0, failed: None }
    }

    /// The network there is.
    pub fn stand(&self) -> Option<&Stand> {
        self.stand.as_ref().map(|(_, stand)| stand)
    }

    /// Where the logs are of what failed.
    pub fn failed(&self) -> Option<&Path> {
        self.failed.as_deref()
    }

    /// Lets everything happen, and reports a row for each event, profile and family.
    pub fn show(&mut self, report: &mut Report) {
        let mut setups: BTreeMap<Setup, Vec<Event>> = BTreeMap::new();
        let mut wanted = 0;
        for event in self.options.events(Scenario::Bgp) {
            for profile in self.options.bgp_profiles(event) {
                let setup = Setup { profile, graceful_restart: event == Event::GrRestart };
                setups.entry(setup).or_default().push(event);
                wanted += event.families().len();
            }
        }
        for (setup, events) in setups {
            self.show_some(setup, &events, report);
        }
        let there = report.rows().len();
        report.check("every event has its row by each family", || {
            ensure!(there == wanted, "{there} rows, and {wanted} were asked for");
            anyhow::Ok(format!("{there} rows"))
        });
    }

    fn show_some(&mut self, setup: Setup, events: &[Event], report: &mut Report) {
        let (runs, profile) = (self.options.runs, setup.profile);
        if events.iter().any(|event| *event != Event::Bulk10k) {
            report.check(&format!("flows spread over every node, {profile}"), || self.on_stand(setup, Stand::spread));
        }
        let mut outcomes: BTreeMap<Event, Outcome> = BTreeMap::new();
        for run in 1..=runs {
            for &event in events {
                let outcome = outcomes.entry(event).or_default();
                outcome.add(&format!("{event}, {profile}, run {run} of {runs}"), || self.run(setup, event));
            }
        }
        for (event, outcome) in outcomes {
            let name = format!("{event}, {profile}");
            let rows = outcome.rows(event, profile);
            if let Some(error) = outcome.failed {
                report.add(&name, outcome.took, Err::<String, _>(error));
                continue;
            }
            report.add(&name, outcome.took, anyhow::Ok(told(&rows)));
            rows.into_iter().for_each(|row| report.add_row(row));
        }
    }

    fn run(&mut self, setup: Setup, event: Event) -> Result<[Seen; 2]> {
        if event == Event::Bulk10k {
            // Nothing else shall be at work meanwhile.
            self.stand = None;
            let folder = self.next_folder("bulk");
            return bulk::run(&self.binary, &folder, self.options.router).inspect_err(|_| {
                self.failed.get_or_insert_with(|| folder.join("logs"));
            });
        }
        self.on_stand(setup, |stand| stand.run(event))
    }

    fn next_folder(&mut self, name: &str) -> PathBuf {
        self.stands += 1;
        self.folder.join(format!("{}-{name}", self.stands))
    }

    /// Does something on the network of a setup, which is given up when it fails.
    fn on_stand<T>(&mut self, setup: Setup, act: impl FnOnce(&mut Stand) -> Result<T>) -> Result<T> {
        if self.stand.as_ref().is_none_or(|(of, _)| *of != setup) {
            // Gone before the next one comes.
            self.stand = None;
            let folder = self.next_folder(&setup.profile.to_string());
            let stand = Stand::new(&self.binary, &folder, setup, &self.options).inspect_err(|_| {
                self.failed.get_or_insert_with(|| folder.join("logs"));
            })?;
            self.stand = Some((setup, stand));
        }
        let (_, stand) = self.stand.as_mut().expect("one was just made");
        let done = act(stand);
        if done.is_err() {
            self.failed.get_or_insert_with(|| stand.logs());
            self.stand = None;
        }
        done
    }
}

/// The rows of one event in a line.
fn told(rows: &[Row]) -> String {
    let worst = rows.iter().map(|row| row.worst_ms).fold(0.0, f64::max);
    let lost: usize = rows.iter().map(|row| row.lost).sum();
    format!("worst {worst} ms, {lost} lost")
}
