//! Waiting until something is true, for a limited time.

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
pub fn until<T, E>(limit: Duration, mut ask: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let begun = Instant::now();
    loop {
        match ask() {
            Err(_) if begun.elapsed() < limit => thread::sleep(INTERVAL),
            answer => return answer,
        }
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
    fn the_last_no_is_what_remains() {
        assert_eq!(until(Duration::ZERO, || Err::<(), _>("never")), Err("never"));
    }
}
