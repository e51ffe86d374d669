//! What clients saw of one event, over all its runs.

use std::fmt;

use serde::Serialize;

use super::event::{Event, Family, Profile};
use crate::lab::{probe::Losses, report::quantile};

/// What clients saw in one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// For how long there was no answer, in milliseconds; after a partition, for how long there was more than one owner.
    pub ms: f64,
    /// What was lost.
    pub lost: Lost,
    /// TCP connections that stood before and no longer carry anything after.
    pub broken_tcp: usize,
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
            Self::Owners(count) => count,
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Questions { datagrams, requests } => write!(f, "{datagrams} datagrams and {requests} requests lost"),
            Self::Owners(count) => write!(f, "{count} false takeovers"),
        }
    }
}

impl From<Losses> for Seen {
    fn from(losses: Losses) -> Self {
        Self {
            ms: losses.silence_ms(),
            lost: Lost::Questions { datagrams: losses.lost, requests: losses.http_failed },
            broken_tcp: losses.tcp_broken,
        }
    }
}

/// What clients of one family saw of an event, over all runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What happened.
    pub event: Event,
    /// How quickly speakers watched each other.
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
}

impl Row {
    /// Adds up some runs; none without any.
    pub fn new(event: Event, profile: Profile, family: Family, runs: &[Seen]) -> Option<Self> {
        let mut times: Vec<_> = runs.iter().map(|seen| seen.ms).collect();
        times.sort_by(f64::total_cmp);
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
        })
    }
}

/// The rows below each other.
pub fn table(rows: &[Row]) -> String {
    let line = |cells: [String; 9]| {
        let [event, profile, family, numbers @ ..] = cells;
        let numbers: String = numbers.iter().map(|number| format!(" {number:>8}")).collect();
        format!("  {event:<15} {profile:<8} {family:<6}{numbers}\n")
    };
    let heads = ["event", "profile", "family", "runs", "p50 ms", "p99 ms", "worst ms", "lost", "tcp"];
    let rows = rows.iter().map(|row| {
        let [p50, p99, worst] = [row.p50_ms, row.p99_ms, row.worst_ms].map(|ms| format!("{ms:.1}"));
        let [runs, lost, broken] = [row.runs, row.lost, row.broken_tcp].map(|count| count.to_string());
        let [event, profile, family] = [row.event.to_string(), row.profile.to_string(), row.family.to_string()];
        line([event, profile, family, runs, p50, p99, worst, lost, broken])
    });
    line(heads.map(str::to_owned)) + &rows.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_promised_shape() {
        let runs =
            [3.0, 1.0, 2.0].map(|ms| Seen { ms, lost: Lost::Questions { datagrams: 1, requests: 1 }, broken_tcp: 1 });
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
        let runs = [Seen { ms: 148.25, lost: Lost::Owners(2), broken_tcp: 20 }];
        let row = Row::new(Event::RollingRestart, Profile::Default, Family::Ipv6, &runs).unwrap();

        let table = table(&[row]);

        let widths: Vec<_> = table.lines().map(|line| line.len()).collect();
        assert_eq!(widths[0], widths[1], "{table}");
        assert!(table.contains(" 148.2 "), "{table}");
    }
}
