//! The clock by which a Lease is counted: it goes on while the machine is suspended, and no one can set it.
//!
//! tokio's clock is `CLOCK_MONOTONIC`. It counts on while a process is stopped (SIGSTOP), but not while the whole
//! machine sleeps; `CLOCK_BOOTTIME` does, so what it is ahead is added. A virtual machine that its host stops without
//! telling it has no clock that knows. Time of day is never looked at.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Tells the time since it was made; clones agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    began: Instant,
    boot_time: Duration,
}

impl Clock {
    /// One that begins now.
    pub fn new() -> Self {
        Self { began: Instant::now(), boot_time: boot_time() }
    }

    /// The time, as an instant that only this clock and its clones understand.
    pub fn now(&self) -> Instant {
        let asleep = boot_time().saturating_sub(self.boot_time).saturating_sub(self.began.elapsed());
        tokio::time::Instant::now().into_std() + asleep
    }

    /// When tokio's clock will show this time, if the machine stays awake.
    pub fn awake(&self, at: Instant) -> tokio::time::Instant {
        tokio::time::Instant::now() + at.saturating_duration_since(self.now())
    }
}

fn boot_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_goes_back_and_is_not_behind_tokio_s() {
        let clock = Clock::new();
        let (before, tokio) = (clock.now(), tokio::time::Instant::now());

        let at = clock.now() + Duration::from_secs(7);

        assert!(before <= clock.now());
        assert!(clock.now() >= tokio.into_std());
        assert!(clock.awake(at) <= tokio::time::Instant::now() + Duration::from_secs(7));
    }
}
