//! When the kernel had a packet, by the clock that machines go by.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How far the clock of day may be from where it was to be before what it stamped is not believed: more than what it is
/// slewed by, and what lies between reading two clocks.
const ASTRAY: Duration = Duration::from_millis(1);

/// Both clocks, at one time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    now: Instant,
    day: Duration,
}

impl Clocks {
    pub(super) fn read() -> Self {
        let day = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { now: Instant::now(), day }
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// When something was that the clock of day has stamped since an earlier reading; now, if that clock was set meanwhile.
    pub(super) fn when(&self, stamp: Option<Duration>, earlier: &Self) -> Instant {
        let day = self.day.checked_sub(earlier.day);
        let is_astray = day.is_none_or(|day| day.abs_diff(self.now - earlier.now) > ASTRAY);
        let age = stamp.filter(|_| !is_astray).map_or(Duration::ZERO, |stamp| self.day.saturating_sub(stamp));
        self.now.checked_sub(age).unwrap_or(self.now).max(earlier.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_counts_from_its_stamp_unless_the_clock_was_set() {
        const MS: Duration = Duration::from_millis(1);
        let start = Instant::now();
        let at = |now: u32, day: u32| Clocks { now: start + now * MS, day: day * MS };
        let earlier = at(0, 10_000);
        let when = |clocks: Clocks, stamp: Option<u32>| {
            clocks.when(stamp.map(|stamp| stamp * MS), &earlier).duration_since(start).as_millis()
        };

        assert_eq!(when(at(50, 10_050), Some(10_010)), 10);
        assert_eq!(when(at(50, 10_050), None), 50);
        // It was stamped before the earlier reading, and yet not there; or after this one.
        assert_eq!(when(at(50, 10_050), Some(9_990)), 0);
        assert_eq!(when(at(50, 10_050), Some(10_060)), 50);
        // Slewed a little; set forward, a little back, and to before the earlier reading.
        assert_eq!(when(at(50, 10_051), Some(10_011)), 10);
        assert_eq!(when(at(50, 3_610_050), Some(10_010)), 50);
        assert_eq!(when(at(50, 10_040), Some(10_010)), 50);
        assert_eq!(when(at(50, 5_000), Some(10_010)), 50);
    }
}
