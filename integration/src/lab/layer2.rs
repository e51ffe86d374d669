//! The events that layer 2 is measured by, each many times, by both families at once: what clients lose when a cable is
//! cut, a speaker dies, a node is drained, a switch is parted.
//!
//! ```text
//! profile ─► network ─► run 1, 2, … ─► event after event ─► what clients saw ─► a row for each family
//! ```
//!
//! A network stays for all events that happen to it, one after the other; one in which something failed is made anew.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

use crate::lab::{
    event::{Event, Family, Options, Profile, chosen},
    layer2::stand::Stand,
    report::Report,
    row::{Outcome, Row, Seen},
    scenario::Scenario,
    topology::Plan,
};

pub(in crate::lab) mod manifests;
mod stand;

/// How long two nodes may own an address after a switch is whole again.
const SETTLED_MS: f64 = 1000.0;

/// The lab of layer 2: one network after the other.
pub struct Lab {
    binary: PathBuf,
    folder: PathBuf,
    options: Options,
    stand: Option<(Profile, Plan, Stand)>,
    stands: usize,
    /// Where the logs are of the first network in which something failed.
    failed: Option<PathBuf>,
}

impl Lab {
    /// Makes nothing yet.
    pub fn new(binary: &Path, folder: &Path, options: &Options) -> Self {
        let (binary, folder, options) = (binary.to_owned(), folder.to_owned(), options.clone());
        Self { binary, folder, options, stand: None, stands: 0, failed: None }
    }

    /// The network there is.
    pub fn stand(&self) -> Option<&Stand> {
        self.stand.as_ref().map(|(_, _, stand)| stand)
    }

    /// Where the logs are of what failed.
    pub fn failed(&self) -> Option<&Path> {
        self.failed.as_deref()
    }

    /// Lets everything happen, and reports a row for each event, profile and family.
    pub fn show(&mut self, report: &mut Report) {
        let (events, profiles) = (self.options.events(Scenario::L2), chosen(&self.options.profiles));
        for &profile in &profiles {
            for plan in [false, true].map(|management| Plan { management, ..Plan::default() }) {
                let events: Vec<_> = events.iter().copied().filter(|event| event.plan() == plan).collect();
                self.show_some(profile, &events, report);
            }
        }
        let wanted = events.len() * profiles.len() * Family::BOTH.len();
        let there = report.rows().len();
        report.check("every event has its row by both families", || {
            ensure!(there == wanted, "{there} rows, and {wanted} were asked for");
            anyhow::Ok(format!("{there} rows"))
        });
    }

    fn show_some(&mut self, profile: Profile, events: &[Event], report: &mut Report) {
        let runs = self.options.runs;
        let mut outcomes: BTreeMap<Event, Outcome> = BTreeMap::new();
        for run in 1..=runs {
            for &event in events {
                let outcome = outcomes.entry(event).or_default();
                outcome.add(&format!("{event}, {profile}, run {run} of {runs}"), || self.run(profile, event));
            }
        }
        for (event, outcome) in outcomes {
            let name = format!("{event}, {profile}");
            let rows = outcome.rows(event, profile);
            if let Some(error) = outcome.failed {
                report.add(&name, outcome.took, Err::<String, _>(error));
                continue;
            }
            report.add(&name, outcome.took, verdict(event, &rows));
            rows.into_iter().for_each(|row| report.add_row(row));
        }
    }

    fn run(&mut self, profile: Profile, event: Event) -> Result<[Seen; 2]> {
        let plan = event.plan();
        if self.stand.as_ref().is_none_or(|(of, on, _)| (*of, *on) != (profile, plan)) {
            // Gone before the next one comes.
            self.stand = None;
            self.stands += 1;
            let folder = self.folder.join(format!("{}-{profile}", self.stands));
            let stand =
                Stand::new(&self.binary, &folder, plan, profile, self.options.busy_seconds).inspect_err(|_| {
                    self.failed.get_or_insert_with(|| folder.join("logs"));
                })?;
            self.stand = Some((profile, plan, stand));
        }
        let (_, _, stand) = self.stand.as_mut().expect("one was just made");
        let seen = stand.run(event);
        if seen.is_err() {
            self.failed.get_or_insert_with(|| stand.logs());
            self.stand = None;
        }
        seen
    }
}

/// What must hold however busy the machine is.
fn verdict(event: Event, rows: &[Row]) -> Result<String> {
    let worst = rows.iter().map(|row| row.worst_ms).fold(0.0, f64::max);
    ensure!(
        event != Event::PartitionHeal || worst <= SETTLED_MS,
        "two nodes owned an address for {worst} ms after the switch was whole again, not for {SETTLED_MS} ms at most"
    );
    let lost: usize = rows.iter().map(|row| row.lost).sum();
    Ok(format!("worst {worst} ms, {lost} lost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_owners_for_longer_than_a_second_after_a_partition_do_not_pass() {
        let row =
            |event, ms| Row::new(event, Profile::Default, Family::Ipv4, &[Seen { ms, ..Seen::default() }]).unwrap();

        assert!(verdict(Event::PartitionHeal, &[row(Event::PartitionHeal, 1000.1)]).is_err());
        assert!(verdict(Event::PartitionHeal, &[row(Event::PartitionHeal, 999.9)]).is_ok());
        assert!(verdict(Event::LinkCut, &[row(Event::LinkCut, 3000.0)]).is_ok());
    }
}
