//! What clients saw of one event, over all its runs.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Serialize;

use crate::lab::{
    event::{Event, Family, Profile},
    probe::Losses,
    report::quantile,
};

/// What clients saw in one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// For how long there was no answer, in milliseconds; after a partition, for how long there was more than one owner;
    /// where routes are waited for, until they were there.
    pub ms: f64,
    /// What was lost.
    pub lost: Lost,
    /// TCP connections that stood before and no longer carry anything after.
    pub broken_tcp: usize,
    /// How many times as long it took as what it was measured beside.
    pub ratio: Option<f64>,
    /// How long it took from the decision that another node owns an address until that node had announced it, in milliseconds.
    pub announced_ms: Option<f64>,
}

/// What was lost in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Questions without an answer.
    Questions {
        /// By UDP.
        datagrams: usize,
        /// By HTTP, each on a new connection.
        requests: usize,
    },
    /// An owner, although nothing had happened to it; so many times.
    Owners(usize),
    /// A session with a router, although nothing had happened to it; so many times.
    Sessions(usize),
}

impl Default for Lost {
    fn default() -> Self {
        Self::Questions { datagrams: 0, requests: 0 }
    }
}

impl Lost {
    fn count(self) -> usize {
        match self {
            Self::Questions { datagrams, requests } => datagrams + requests,
            Self::Owners(count) | Self::Sessions(count) => count,
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Questions { datagrams, requests } => write!(f, "{datagrams} datagrams and {requests} requests lost"),
            Self::Owners(count) => write!(f, "{count} false takeovers"),
            Self::Sessions(count) => write!(f, "{count} sessions lost"),
        }
    }
}

impl From<Losses> for Seen {
    fn from(losses: Losses) -> Self {
        Self {
            ms: losses.silence_ms(),
            lost: Lost::Questions { datagrams: losses.lost, requests: losses.http_failed },
            broken_tcp: losses.tcp_broken,
            ..Self::default()
        }
    }
}

/// All runs of one event: what clients saw by IPv4 and by IPv6.
#[derive(Default)]
pub struct Outcome {
    /// Of each run.
    pub seen: Vec<[Seen; 2]>,
    /// What ended them.
    pub failed: Option<anyhow::Error>,
    /// How long they took together.
    pub took: Duration,
}

impl Outcome {
    /// Lets the event happen once more, unless something has failed, and prints what clients saw.
    pub fn add(&mut self, name: &str, run: impl FnOnce() -> Result<[Seen; 2]>) {
        if self.failed.is_some() {
            return;
        }
        let begun = Instant::now();
        let seen = run();
        self.took += begun.elapsed();
        println!("  {name}: {}", told(seen.as_ref()));
        match seen {
            Ok(seen) => self.seen.push(seen),
            Err(error) => self.failed = Some(error.context(name.to_owned())),
        }
    }

    /// A row for each family.
    pub fn rows(&self, event: Event, profile: Profile) -> Vec<Row> {
        let of = |family: &Family| {
            let seen: Vec<_> = self.seen.iter().map(|seen| seen[*family as usize]).collect();
            Row::new(event, profile, *family, &seen)
        };
        event.families().iter().filter_map(of).collect()
    }
}

/// A run in a line.
fn told(seen: Result<&[Seen; 2], &anyhow::Error>) -> String {
    match seen {
        Ok(seen) => {
            let told = Family::BOTH.iter().zip(seen).map(|(family, seen)| {
                let ratio = seen.ratio.map(|ratio| format!(", {ratio:.2} times as long")).unwrap_or_default();
                format!("{family} {:.1} ms, {}, {} TCP connections broken{ratio}", seen.ms, seen.lost, seen.broken_tcp)
            });
            told.collect::<Vec<_>>().join("; ")
        }
        Err(error) => format!("{error:#}"),
    }
}

/// What clients of one family saw of an event, over all runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What happened.
    pub event: Event,
    /// How quickly failures were noticed.
    pub profile: Profile,
    /// By which addresses the client looked.
    pub family: Family,
    /// How many times it happened.
    pub runs: usize,
    /// The median of [`Seen::ms`].
    pub p50_ms: f64,
    /// What 99 of 100 do not exceed.
    pub p99_ms: f64,
    /// The longest.
    pub worst_ms: f64,
    /// The sum of [`Seen::lost`].
    pub lost: usize,
    /// The sum of [`Seen::broken_tcp`].
    pub broken_tcp: usize,
    /// The median of [`Seen::ratio`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// The longest of [`Seen::announced_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announced_ms: Option<f64>,
}

impl Row {
    /// Adds up some runs; none without any.
    pub fn new(event: Event, profile: Profile, family: Family, runs: &[Seen]) -> Option<Self> {
        let mut times: Vec<_> = runs.iter().map(|seen| seen.ms).collect();
        times.sort_by(f64::total_cmp);
        let mut ratios: Vec<_> = runs.iter().filter_map(|seen| seen.ratio).collect();
        ratios.sort_by(f64::total_cmp);
        Some(Self {
            event,
            profile,
            family,
            runs: runs.len(),
            p50_ms: quantile(&times, 0.5)?,
            p99_ms: quantile(&times, 0.99)?,
            worst_ms: *times.last()?,
            lost: runs.iter().map(|seen| seen.lost.count()).sum(),
            broken_tcp: runs.iter().map(|seen| seen.broken_tcp).sum(),
            ratio: quantile(&ratios, 0.5),
            announced_ms: runs.iter().filter_map(|seen| seen.announced_ms).max_by(f64::total_cmp),
        })
    }
}

/// The rows below each other.
pub fn table(rows: &[Row]) -> String {
    let line = |cells: [String; 11]| {
        let [event, profile, family, numbers @ ..] = cells;
        let numbers: String = numbers.iter().map(|number| format!(" {number:>8}")).collect();
        format!("  {event:<15} {profile:<8} {family:<6}{numbers}\n")
    };
    let heads =
        ["event", "profile", "family", "runs", "p50 ms", "p99 ms", "worst ms", "lost", "tcp", "ratio", "told ms"];
    let rows = rows.iter().map(|row| {
        let [p50, p99, worst] = [row.p50_ms, row.p99_ms, row.worst_ms].map(|ms| format!("{ms:.1}"));
        let [runs, lost, broken] = [row.runs, row.lost, row.broken_tcp].map(|count| count.to_string());
        let [event, profile, family] = [row.event.to_string(), row.profile.to_string(), row.family.to_string()];
        let [ratio, announced] =
            [row.ratio, row.announced_ms].map(|one| one.map_or_else(|| "-".to_owned(), |one| format!("{one:.2}")));
        line([event, profile, family, runs, p50, p99, worst, lost, broken, ratio, announced])
    });
    line(heads.map(str::to_owned)) + &rows.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_promised_shape() {
        let runs = [3.0, 1.0, 2.0].map(|ms| Seen {
            ms,
            lost: Lost::Questions { datagrams: 1, requests: 1 },
            broken_tcp: 1,
            ..Seen::default()
        });
        let row = Row::new(Event::LinkCut, Profile::Default, Family::Ipv4, &runs).unwrap();

        assert_eq!(
            serde_json::to_value(row).unwrap(),
            serde_json::json!({"event": "link-cut", "profile": "default", "family": "ipv4", "runs": 3, "p50_ms": 2.0,
                               "p99_ms": 3.0, "worst_ms": 3.0, "lost": 6, "broken_tcp": 3})
        );
    }

    #[test]
    fn without_a_run_there_is_no_row() {
        assert_eq!(Row::new(Event::Move, Profile::Fast, Family::Ipv6, &[]), None);
    }

    #[test]
    fn columns_of_the_table_end_below_each_other() {
        let runs =
            [Seen { ms: 148.25, lost: Lost::Owners(2), broken_tcp: 20, ratio: Some(1.2), announced_ms: Some(0.5) }];
        let row = Row::new(Event::RollingRestart, Profile::Default, Family::Ipv6, &runs).unwrap();

        let table = table(&[row]);

        let widths: Vec<_> = table.lines().map(|line| line.len()).collect();
        assert_eq!(widths[0], widths[1], "{table}");
        assert!(table.contains(" 148.2 "), "{table}");
    }
}
