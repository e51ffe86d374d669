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
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::lab::{
    layer2::{
        event::{Event, Family, Profile},
        row::{Row, Seen},
        stand::Stand,
    },
    report::Report,
    topology::Plan,
};

pub mod event;
mod manifests;
pub mod row;
mod stand;

/// How long two nodes may own an address after a switch is whole again.
const SETTLED_MS: f64 = 1000.0;

/// What is measured, and how often.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How often each event happens (scenario l2)
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// What happens; may be repeated. Everything unless given (scenario l2)
    #[arg(long = "event", value_enum, value_name = "EVENT")]
    pub events: Vec<Event>,
    /// How quickly speakers watch each other; may be repeated. Both unless given (scenario l2)
    #[arg(long = "profile", value_enum, value_name = "PROFILE")]
    pub profiles: Vec<Profile>,
}

impl Options {
    /// Whether they say anything.
    pub fn are_given(&self) -> bool {
        self.runs > 1 || !self.events.is_empty() || !self.profiles.is_empty()
    }

    fn events(&self) -> Vec<Event> {
        chosen(&self.events)
    }

    fn profiles(&self) -> Vec<Profile> {
        chosen(&self.profiles)
    }
}

/// Each of them once in their own order; all of them when none is named.
fn chosen<T: ValueEnum + PartialEq>(named: &[T]) -> Vec<T> {
    T::value_variants().iter().filter(|value| named.is_empty() || named.contains(value)).cloned().collect()
}

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
        let (events, profiles) = (self.options.events(), self.options.profiles());
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
                if outcome.failed.is_some() {
                    continue;
                }
                let begun = Instant::now();
                let seen = self.run(profile, event);
                outcome.took += begun.elapsed();
                println!("  {event}, {profile}, run {run} of {runs}: {}", told(seen.as_ref()));
                match seen {
                    Ok(seen) => outcome.seen.push(seen),
                    Err(error) => outcome.failed = Some(error.context(format!("run {run} of {runs}"))),
                }
            }
        }
        for (event, Outcome { seen, failed, took }) in outcomes {
            let name = format!("{event}, {profile}");
            if let Some(error) = failed {
                report.add(&name, took, Err::<String, _>(error));
                continue;
            }
            let rows = [0, 1].map(|family| {
                let seen: Vec<_> = seen.iter().map(|seen| seen[family]).collect();
                Row::new(event, profile, Family::BOTH[family], &seen)
            });
            let rows: Vec<_> = rows.into_iter().flatten().collect();
            report.add(&name, took, verdict(event, &rows));
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
            let stand = Stand::new(&self.binary, &folder, plan, profile).inspect_err(|_| {
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

/// All runs of one event.
#[derive(Default)]
struct Outcome {
    seen: Vec<[Seen; 2]>,
    failed: Option<anyhow::Error>,
    took: Duration,
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

/// A run in a line.
fn told(seen: Result<&[Seen; 2], &anyhow::Error>) -> String {
    match seen {
        Ok(seen) => {
            let told = Family::BOTH.iter().zip(seen).map(|(family, seen)| {
                format!("{family} {:.1} ms, {}, {} TCP connections broken", seen.ms, seen.lost, seen.broken_tcp)
            });
            told.collect::<Vec<_>>().join("; ")
        }
        Err(error) => format!("{error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_measured_once_and_everything_when_nothing_is() {
        assert_eq!(chosen(&[Event::Move, Event::LinkCut, Event::Move]), [Event::LinkCut, Event::Move]);
        assert_eq!(chosen::<Event>(&[]).len(), 9);
    }

    #[test]
    fn two_owners_for_longer_than_a_second_after_a_partition_do_not_pass() {
        let row =
            |event, ms| Row::new(event, Profile::Default, Family::Ipv4, &[Seen { ms, ..Seen::default() }]).unwrap();

        assert!(verdict(Event::PartitionHeal, &[row(Event::PartitionHeal, 1000.1)]).is_err());
        assert!(verdict(Event::PartitionHeal, &[row(Event::PartitionHeal, 999.9)]).is_ok());
        assert!(verdict(Event::LinkCut, &[row(Event::LinkCut, 3000.0)]).is_ok());
    }
}
