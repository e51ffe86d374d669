//! Waiting until something is true, for a limited time; and doing something over and over, for a given time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How often a condition is looked at again.
const INTERVAL: Duration = Duration::from_millis(5);

/// Asks until the answer is `Ok`, and at least once; after `limit` the last answer stands.
///
/// # Errors
/// The last answer, when it never was `Ok`.
pub fn until<T, E>(limit: Duration, ask: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    until_every(INTERVAL, limit, ask)
}

/// As [`until`], for what is to be looked at more often, or is dear to look at.
///
/// # Errors
/// As [`until`].
pub fn until_every<T, E>(interval: Duration, limit: Duration, mut ask: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let begun = Instant::now();
    loop {
        match ask() {
            Err(_) if begun.elapsed() < limit => thread::sleep(interval),
            answer => return answer,
        }
    }
}

/// Does something so many times a second for some time, and tells how many times that was. What has become due while
/// this thread slept is done at once.
///
/// # Errors
/// The first one of what is done.
pub fn steadily<E>(per_second: f64, time: Duration, mut beat: impl FnMut(usize) -> Result<(), E>) -> Result<usize, E> {
    let begun = Instant::now();
    let mut number = 0;
    loop {
        let due = Duration::from_secs_f64(number as f64 / per_second);
        if due >= time {
            return Ok(number);
        }
        thread::sleep(due.saturating_sub(begun.elapsed()));
        beat(number)?;
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_again_until_it_is_told_yes() {
        let mut answers = [Err("not yet"), Err("not yet"), Ok(7)].into_iter();

        assert_eq!(until(Duration::from_secs(60), || answers.next().unwrap()), Ok(7));
    }

    #[test]
    fn what_is_done_steadily_is_done_as_often_as_told_and_no_longer_after_an_error() {
        let mut beats = Vec::new();
        let count = steadily(1000.0, Duration::from_millis(5), |number| {
            beats.push(number);
            Ok::<_, ()>(())
        });

        assert_eq!((count, beats), (Ok(5), vec![0, 1, 2, 3, 4]));
        assert_eq!(steadily(1000.0, Duration::from_millis(5), |_| Err("no")), Err("no"));
    }

    #[test]
    fn the_last_no_is_what_remains() {
        assert_eq!(until(Duration::ZERO, || Err::<(), _>("never")), Err("never"));
    }
}
