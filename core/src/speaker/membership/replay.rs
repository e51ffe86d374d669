//! Which datagrams of a sender are new: a sealed one is genuine, but whoever listens in can send it again.

use std::collections::VecDeque;

/// How far behind the newest datagram one may arrive.
const WINDOW: u64 = 64;

/// How many former lives of a sender are remembered.
const FORMER_LIVES: usize = 16;

/// What was received of one sender.
#[derive(Debug)]
pub(super) struct Replay {
    life: u64,
    newest: u64,
    /// Bit `n` is set if the datagram `n` before the newest was received.
    received: u64,
    /// Lives that are over. What was recorded of them brings nobody back.
    former: VecDeque<u64>,
}

impl Replay {
    /// What is known after the first datagram of a sender.
    pub(super) fn new(life: u64, counter: u64) -> Self {
        Self { life, newest: counter, received: 1, former: VecDeque::new() }
    }

    /// The life that counts.
    pub(super) fn life(&self) -> u64 {
        self.life
    }

    /// Whether a datagram is new; it is not from then on. A life that began before the one that counts (the clock of
    /// its node went back) is taken only once the other is over, and none is taken twice.
    pub(super) fn admit(&mut self, life: u64, counter: u64, is_over: bool) -> bool {
        if life != self.life {
            let is_later = life > self.life || is_over;
            if !is_later || self.former.contains(&life) {
                return false;
            }
            if self.former.len() >= FORMER_LIVES {
                self.former.pop_front();
            }
            self.former.push_back(self.life);
            (self.life, self.newest, self.received) = (life, counter, 1);
            return true;
        }
        if let Some(ahead) = counter.checked_sub(self.newest).filter(|ahead| *ahead > 0) {
            let kept = if ahead < WINDOW { self.received << ahead } else { 0 };
            (self.newest, self.received) = (counter, kept | 1);
            return true;
        }
        let behind = self.newest - counter;
        if behind >= WINDOW || self.received & (1 << behind) != 0 {
            return false;
        }
        self.received |= 1 << behind;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_datagram_is_taken_once_and_late_only_within_the_window() {
        let mut replay = Replay::new(1, 100);

        assert!(!replay.admit(1, 100, false));
        assert!(replay.admit(1, 99, false) && !replay.admit(1, 99, false));
        assert!(replay.admit(1, 200, false));
        assert!(replay.admit(1, 137, false) && !replay.admit(1, 136, false) && !replay.admit(1, 100, false));
    }

    #[test]
    fn a_life_that_began_earlier_is_taken_only_when_the_later_one_is_over() {
        let mut replay = Replay::new(5, 100);

        assert!(!replay.admit(4, 1, false));
        assert!(replay.admit(4, 1, true) && replay.admit(4, 2, false) && !replay.admit(4, 2, true));
        assert_eq!(replay.life(), 4);
    }

    #[test]
    fn nothing_recorded_of_a_former_life_is_taken_even_when_the_last_one_is_over() {
        let mut replay = Replay::new(5, 100);
        assert!(replay.admit(6, 1, false));

        assert!(!replay.admit(5, 101, true) && !replay.admit(5, 1, false));
    }

    proptest! {
        #[test]
        fn whatever_the_order_nothing_is_taken_twice(arrivals in prop::collection::vec((0_u64..3, 0_u64..200, any::<bool>()), 1..300)) {
            let mut replay = Replay::new(0, 0);
            let mut taken = BTreeSet::from([(0, 0)]);

            for (life, counter, is_over) in arrivals {
                if replay.admit(life, counter, is_over) {
                    prop_assert!(taken.insert((life, counter)), "{} of life {} twice", counter, life);
                }
            }
        }
    }
}
