//! An alarm of the kernel's for the loop. The runtime's own clock goes by the millisecond, wakes up for nothing whenever 64 of
//! them are over, and is told of each new time by a message to itself: for a loop that waits for little else that is a quarter
//! of its wake-ups.

use std::{
    future::pending,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{io::unix::AsyncFd, time::sleep_until};

use crate::packet;

/// It is set for one time, and set anew only for another.
pub(crate) struct Alarm {
    timer: TimerFd,
    /// The same timer, for the runtime.
    watched: AsyncFd<Arc<OwnedFd>>,
    set_for: Option<Instant>,
}

impl Alarm {
    /// Not set yet.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let watched = packet::register(Arc::new(timer.as_fd().try_clone_to_owned()?))?;
        Ok(Self { timer, watched, set_for: None })
    }

    /// Waits until then; for ever where there is no such time. It can be dropped at any point.
    pub(crate) async fn rings(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return pending().await };
        if self.wait(at).await.is_err() {
            sleep_until(at.into()).await;
        }
    }

    async fn wait(&mut self, at: Instant) -> io::Result<()> {
        loop {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if self.set_for != Some(at) {
                self.set_for = None;
                // Whatever it was set for is over with that.
                self.timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())?;
                self.set_for = Some(at);
            }
            // It may still be that of an earlier time, or ring a little early by this clock: it is set again then.
            self.watched.readable().await?.clear_ready();
            self.set_for = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    /// Longer than this thread is held up.
    const LATER: Duration = Duration::from_millis(300);
    const LATE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn it_rings_when_it_is_time_and_again_for_another_time_and_not_before() {
        let mut alarm = Alarm::new().unwrap();

        for _ in 0..3 {
            let at = Instant::now() + SOON;
            timeout(LATE, alarm.rings(Some(at))).await.unwrap();
            assert!(Instant::now() >= at);
            // What is over rings at once.
            timeout(LATE, alarm.rings(Some(at))).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_it_was_set_for_before_does_not_make_it_ring() {
        let mut alarm = Alarm::new().unwrap();

        for other in [Some(Instant::now() + LATE), None] {
            assert!(timeout(Duration::ZERO, alarm.rings(Some(Instant::now() + LATER))).await.is_err());
            assert!(timeout(2 * LATER, alarm.rings(other)).await.is_err());
        }
        // Put forward, while nobody waited.
        let at = Instant::now() + SOON;
        timeout(LATE, alarm.rings(Some(at))).await.unwrap();
        assert!(Instant::now() >= at);
    }

    #[tokio::test]
    async fn a_time_that_nobody_waited_for_to_the_end_rings_when_somebody_does() {
        let mut alarm = Alarm::new().unwrap();
        let at = Instant::now() + LATER;

        assert!(timeout(Duration::ZERO, alarm.rings(Some(at))).await.is_err());
        assert!(timeout(LATER, alarm.rings(None)).await.is_err());
        timeout(LATE, alarm.rings(Some(at))).await.unwrap();

        assert!(Instant::now() >= at);
    }
}
