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
    fn the_closing_line_is_exactly_this() {
        assert_eq!(Tally { passed: 12, failed: 0 }.to_string(), "12 passed, 0 failed");
    }
}
