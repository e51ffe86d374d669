//! What held and what did not: lines as they come, a table at the end, and the same as JSON.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::lab::{
    probe::{Losses, milliseconds},
    row::{self, Row},
};

/// One thing that was to be shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What should hold.
    pub name: String,
    /// Whether it does.
    pub ok: bool,
    /// How long it took to become true, in milliseconds.
    pub ms: f64,
    /// What was seen.
    #[serde(skip)]
    pub detail: String,
}

/// Everything a scenario showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    scenario: String,
    ok: bool,
    checks: Vec<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failover: Option<Losses>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rows: Vec<Row>,
}

impl Report {
    /// Nothing shown yet.
    pub fn new(scenario: &str) -> Self {
        Self { scenario: scenario.to_owned(), ok: true, checks: Vec::new(), failover: None, rows: Vec::new() }
    }

    /// Whether everything held so far.
    pub fn ok(&self) -> bool {
        self.ok
    }

    /// Runs one check, measures it and prints its line. An `Ok` is what was seen, an `Err` what was seen instead.
    /// Returns whether it held.
    pub fn check<E: Display>(&mut self, name: &str, look: impl FnOnce() -> Result<String, E>) -> bool {
        if io::stdout().is_terminal() {
            print!("\r\x1b[K… {name}");
            let _ = io::stdout().flush();
        }
        let begun = Instant::now();
        let seen = look();
        self.add(name, begun.elapsed(), seen)
    }

    /// Adds a check that was measured elsewhere.
    pub fn add<E: Display>(&mut self, name: &str, took: Duration, seen: Result<String, E>) -> bool {
        let ok = seen.is_ok();
        let detail = seen.unwrap_or_else(|error| format!("{error:#}"));
        let check = Check { name: name.to_owned(), ok, ms: milliseconds(took), detail };
        if io::stdout().is_terminal() {
            print!("\r\x1b[K");
        }
        println!("{} {} ({} ms): {}", mark(ok), check.name, check.ms, check.detail);
        self.ok &= ok;
        self.checks.push(check);
        ok
    }

    /// Keeps what a failover cost.
    pub fn set_failover(&mut self, losses: Losses) {
        self.failover = Some(losses);
    }

    /// Keeps what was measured of one event.
    pub fn add_row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// What was measured of each event so far.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The table.
    pub fn table(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
        let mut table = String::new();
        for check in &self.checks {
            let Check { name, ok, ms, detail } = check;
            table += &format!("{} {name:<width$}  {ms:>9.1} ms  {}\n", mark(*ok), detail.lines().next().unwrap_or(""));
        }
        if let Some(lost) = &self.failover {
            table += &format!(
                "  what the client lost: longest gap {:.1} ms; {} of {} datagrams; {} of {} HTTP requests, \
                 longest gap {:.1} ms; {} of {} TCP connections broken\n",
                lost.longest_gap_ms,
                lost.lost,
                lost.sent,
                lost.http_failed,
                lost.http_sent,
                lost.http_longest_gap_ms,
                lost.tcp_broken,
                lost.tcp_open,
            );
        }
        if !self.rows.is_empty() {
            table += &row::table(&self.rows);
        }
        let failed = self.checks.iter().filter(|check| !check.ok).count();
        match failed {
            0 => table += &format!("{} all {} held in scenario {}\n", mark(true), self.checks.len(), self.scenario),
            _ => table += &format!("{} {failed} of {} did not hold\n", mark(false), self.checks.len()),
        }
        table
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text)
    }
}

/// The smallest of some sorted values that at least this share of all does not exceed.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

fn mark(ok: bool) -> char {
    if ok { '✔' } else { '✘' }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new("quickstart");
        report.add("short", Duration::from_micros(12_340), Ok::<_, String>("seen".to_owned()));
        report.add("a longer name", Duration::from_secs(2), Err::<String, _>("not seen"));
        report.set_failover(Losses { longest_gap_ms: 150.5, lost: 3, ..Losses::default() });
        report
    }

    #[test]
    fn one_that_does_not_hold_fails_the_whole() {
        assert!(!report().ok());
        assert!(report().table().contains("✘ 1 of 2 did not hold"));
    }

    #[test]
    fn columns_of_the_table_stand_below_each_other() {
        let table = report().table();
        let columns: Vec<_> = table.lines().take(2).map(|line| line.find(" ms").unwrap()).collect();

        assert_eq!(columns[0], columns[1]);
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values: Vec<_> = (1..=30).map(f64::from).collect();

        assert_eq!(quantile(&values, 0.5), Some(15.0));
        assert_eq!(quantile(&values, 0.99), Some(30.0));
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn json_has_the_promised_shape() {
        let value = serde_json::to_value(report()).unwrap();

        assert_eq!(value["scenario"], "quickstart");
        assert_eq!(value["ok"], false);
        assert_eq!(value["checks"][0], serde_json::json!({"name": "short", "ok": true, "ms": 12.3}));
        assert_eq!(value["failover"]["longest_gap_ms"], 150.5);
        assert_eq!(value["failover"]["lost"], 3);
    }
}
