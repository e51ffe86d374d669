//! Reading verdicts out of a log, and adding them up.

use std::ops::AddAssign;

/// How many checks passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Checks that held.
    pub passed: u64,
    /// Checks that did not, or could not be made.
    pub failed: u64,
}

impl Tally {
    /// One check.
    pub fn one(holds: bool) -> Self {
        Self { passed: u64::from(holds), failed: u64::from(!holds) }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// What the log of a test run says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestRun {
    /// Sum over every `test result:` line.
    pub tally: Tally,
    /// Tests that were left out, each with the reason it gives, if it gives one.
    pub ignored: Vec<(String, Option<String>)>,
}

/// Reads the log of `cargo test`.
pub fn read(log: &str) -> TestRun {
    let mut run = TestRun::default();
    for line in log.lines() {
        if let Some(summary) = line.strip_prefix("test result: ") {
            run.tally += Tally { passed: number_before(summary, " passed"), failed: number_before(summary, " failed") };
        } else if let Some((name, verdict)) =
            line.strip_prefix("test ").and_then(|line| line.split_once(" ... ignored"))
        {
            let reason = verdict.strip_prefix(", ").map(str::to_owned);
            run.ignored.push((name.to_owned(), reason));
        }
    }
    run
}

/// What tests that failed have printed, each with the line that names it, from the log of `cargo test`.
pub fn failures(log: &str) -> Vec<Vec<&str>> {
    let mut found: Vec<Vec<&str>> = Vec::new();
    let mut is_inside = false;
    for line in log.lines() {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            is_inside = true;
            found.push(Vec::new());
        } else if line == "failures:" || line.starts_with("test result: ") {
            is_inside = false;
        }
        if let Some(last) = found.last_mut().filter(|_| is_inside) {
            last.push(line);
        }
    }
    found
}

fn number_before(text: &str, word: &str) -> u64 {
    let Some(end) = text.find(word) else { return 0 };
    let digits = text[..end].rsplit(|letter: char| !letter.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed() {
        let log = "test result: ok. 14 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
                   noise 3 failed\n\
                   test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";

        assert_eq!(read(log).tally, Tally { passed: 19, failed: 2 });
    }

    #[test]
    fn a_test_that_is_left_out_is_named_with_its_reason() {
        let log = "test a ... ignored, needs a moon\ntest b ... ignored\ntest c ... ok\n";

        let expected = [("a".to_owned(), Some("needs a moon".to_owned())), ("b".to_owned(), None)];
        assert_eq!(read(log).ignored, expected);
    }

    #[test]
    fn a_test_that_failed_is_found_wherever_the_log_has_it() {
        let log = "test a ... FAILED\nnoise\n\nfailures:\n\n---- a stdout ----\npanicked at x\n\n---- b stdout ----\nsaid\n\n\
                   failures:\n    a\n    b\n\ntest result: FAILED. 0 passed; 2 failed\nnoise\nfailures:\n\n\
                   ---- c stdout ----\nthat\n\nfailures:\n    c\n\ntest result: FAILED. 0 passed; 1 failed\nend\n";

        let expected = [
            vec!["---- a stdout ----", "panicked at x", ""],
            vec!["---- b stdout ----", "said", ""],
            vec!["---- c stdout ----", "that", ""],
        ];
        assert_eq!(failures(log), expected);
        assert!(failures("error: could not compile").is_empty());
    }

    #[test]
    fn the_closing_line_is_exactly_this() {
        assert_eq!(Tally { passed: 12, failed: 0 }.to_string(), "12 passed, 0 failed");
    }
}
