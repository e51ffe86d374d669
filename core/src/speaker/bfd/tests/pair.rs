//! Two sessions that talk to each other on one virtual clock, over a way that may lose and delay.

use super::*;

/// One way of the link, told of each packet that enters it: whether the packet arrives.
pub(super) type Way = Box<dyn FnMut(Instant, &Packet) -> bool>;

pub(super) struct Pair {
    pub(super) ends: [Session; 2],
    pub(super) now: Instant,
    /// From end 0, and from end 1.
    pub(super) ways: [Way; 2],
    pub(super) latency: Duration,
    /// Packets on their way, with the end they go to.
    flying: Vec<(Instant, usize, Packet)>,
    pub(super) changes: Vec<(Instant, usize, Change)>,
    pub(super) sent: Vec<(Instant, usize, Packet)>,
}

pub(super) fn whole() -> Way {
    Box::new(|_, _| true)
}

pub(super) fn cut() -> Way {
    Box::new(|_, _| false)
}

impl Pair {
    pub(super) fn new(settings: [Settings; 2], seed: u64) -> Self {
        let now = Instant::now();
        let mut number = 0;
        let ends = settings.map(|settings| {
            number += 1;
            Session::new(now, discriminator(number), settings, seed.wrapping_add(number.into()))
        });
        let ways = [whole(), whole()];
        Self { ends, now, ways, latency: MS, flying: Vec::new(), changes: Vec::new(), sent: Vec::new() }
    }

    /// Both up, each knowing that the other knows its intervals.
    pub(super) fn settled(settings: [Settings; 2], seed: u64) -> Self {
        let mut pair = Self::new(settings, seed);
        pair.run(5 * SLOW_INTERVAL);
        assert_eq!(pair.states(), [State::Up; 2]);
        pair.changes.clear();
        pair.sent.clear();
        pair
    }

    pub(super) fn states(&self) -> [State; 2] {
        self.ends.each_ref().map(Session::state)
    }

    pub(super) fn step(&mut self, end: usize, event: Event) {
        for action in self.ends[end].step(self.now, event) {
            match action {
                Action::Send(packet) => {
                    self.sent.push((self.now, end, packet));
                    if self.ways[end](self.now, &packet) {
                        self.flying.push((self.now + self.latency, 1 - end, packet));
                    }
                }
                Action::Changed(change) => self.changes.push((self.now, end, change)),
                Action::Held { .. } | Action::Discarded(_) | Action::Finished => {}
            }
        }
    }

    pub(super) fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            let arrivals = self.flying.iter().map(|(at, ..)| *at);
            let next = arrivals.chain(self.ends.iter().filter_map(Session::deadline)).min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            let (arrived, flying) = std::mem::take(&mut self.flying).into_iter().partition(|(at, ..)| *at <= self.now);
            self.flying = flying;
            let arrived: Vec<_> = arrived;
            for (_, end, packet) in arrived {
                self.step(end, Event::Received(packet));
            }
            for end in [0, 1] {
                if self.ends[end].deadline().is_some_and(|deadline| deadline <= self.now) {
                    self.step(end, Event::Tick);
                }
            }
        }
        self.now = until;
    }
}

fn fast_and_default() -> [Settings; 2] {
    [Settings::FAST, Settings::DEFAULT]
}

#[test]
fn two_ends_come_up_whoever_speaks_first_unless_both_wait() {
    let active = Settings::DEFAULT;
    for (settings, expected) in [
        ([active, active], State::Up),
        ([active, active.passive()], State::Up),
        ([active.passive(), active], State::Up),
        ([active.passive(), active.passive()], State::Down),
    ] {
        let mut pair = Pair::new(settings, 1);

        pair.run(2 * SLOW_INTERVAL);

        assert_eq!(pair.states(), [expected; 2]);
    }
}

#[test]
fn each_end_sends_as_fast_as_both_allow() {
    let pair = Pair::settled(fast_and_default(), 1);

    assert_eq!(pair.ends[0].status().transmit_interval, INTERVAL);
    assert_eq!(pair.ends[1].status().transmit_interval, INTERVAL);
    assert_eq!(pair.ends[0].status().detection_time, Some(150 * MS));
}

#[test]
fn a_cut_is_noticed_at_both_ends_within_the_detection_time() {
    let mut pair = Pair::settled([Settings::DEFAULT; 2], 1);
    let cut_at = pair.now;
    pair.ways = [cut(), cut()];

    pair.run(SLOW_INTERVAL);

    assert_eq!(pair.changes.len(), 2);
    for (at, _, change) in &pair.changes {
        assert!((100 * MS..=151 * MS).contains(&(*at - cut_at)), "{:?}", *at - cut_at);
        assert_eq!(change.diagnostic, Diagnostic::ControlDetectionTimeExpired);
        assert!(change.is_failure());
    }
}

#[test]
fn a_cut_of_one_way_takes_both_ends_down() {
    let mut pair = Pair::settled([Settings::DEFAULT; 2], 1);
    pair.ways = [whole(), cut()];

    pair.run(200 * MS);

    assert_eq!(pair.changes[0].2.diagnostic, Diagnostic::ControlDetectionTimeExpired);
    assert_eq!(pair.changes[1].2.diagnostic, Diagnostic::NeighborSignaledSessionDown);
    assert_eq!(pair.changes[1].1, 1);
    assert!(pair.states().iter().all(|state| *state != State::Up));
}

#[test]
fn a_session_comes_back_with_its_way() {
    let mut pair = Pair::settled([Settings::DEFAULT; 2], 1);
    pair.ways = [cut(), cut()];
    pair.run(5 * SLOW_INTERVAL);
    pair.ways = [whole(), whole()];

    pair.run(SLOW_INTERVAL + 10 * MS);

    assert_eq!(pair.states(), [State::Up; 2]);
}

#[test]
fn a_neighbor_that_was_born_again_is_taken_for_what_it_is() {
    let mut pair = Pair::settled([Settings::DEFAULT; 2], 1);
    pair.ends[1] = Session::new(pair.now, discriminator(77), Settings::DEFAULT, 3);

    pair.run(2 * SLOW_INTERVAL);

    assert_eq!(pair.states(), [State::Up; 2]);
    let (_, end, change) = pair.changes[0];
    assert_eq!((end, change.diagnostic), (0, Diagnostic::NeighborSignaledSessionDown));
}

#[test]
fn the_other_end_of_a_session_that_is_switched_off_knows_it_from_a_failure() {
    let mut pair = Pair::settled([Settings::DEFAULT; 2], 1);

    pair.step(0, Event::Disable);
    pair.run(SLOW_INTERVAL);

    assert_eq!(pair.states(), [State::AdminDown, State::Down]);
    assert!(pair.changes.iter().all(|(_, _, change)| !change.is_failure()));
    pair.step(0, Event::Enable);
    pair.run(2 * SLOW_INTERVAL);
    assert_eq!(pair.states(), [State::Up; 2]);
}

#[test]
fn n_085_no_gap_ever_exceeds_the_interval_and_never_is_one_below_three_quarters() {
    for seed in 0..20 {
        let mut pair = Pair::settled([Settings::DEFAULT; 2], seed);

        pair.run(60 * SLOW_INTERVAL);

        for end in [0, 1] {
            let times: Vec<_> = pair.sent.iter().filter(|(_, from, _)| *from == end).map(|(at, ..)| *at).collect();
            assert!(gaps(&times).iter().all(|gap| *gap >= 37 * MS && *gap <= INTERVAL));
            assert!(times.len() > 1200);
        }
    }
}

#[test]
fn n_086_every_change_of_settings_is_negotiated_without_a_flap() {
    let ms = [10, 50, 300, 2000];
    let every = |tx: u32, rx: u32| Settings {
        desired_min_tx_interval: Interval::nearest(tx * MS),
        required_min_rx_interval: Interval::nearest(rx * MS),
        ..Settings::DEFAULT
    };
    let all: Vec<Settings> = ms.iter().flat_map(|&tx| ms.map(|rx| every(tx, rx))).collect();

    for before in &all {
        let mut pair = Pair::settled([*before, Settings::DEFAULT], 5);
        for after in &all {
            pair.step(0, Event::Configure(*after));
            pair.run(10 * SLOW_INTERVAL);

            let transmit_interval = after.desired_min_tx_interval.get().max(INTERVAL);
            assert_eq!(pair.ends[0].status().transmit_interval, transmit_interval);
            assert_eq!(pair.ends[1].status().detection_time, Some(3 * transmit_interval));
        }
        assert_eq!(pair.changes, [], "from {before:?}");
    }
}

#[test]
fn n_087_the_first_seconds_after_coming_up_are_steady() {
    for seed in 0..200 {
        let mut pair = Pair::new(fast_and_default(), seed);
        pair.latency = Duration::from_micros(100);

        pair.run(3 * SLOW_INTERVAL);

        let losses = pair.changes.iter().filter(|(_, _, change)| change.from == State::Up);
        assert_eq!(losses.count(), 0, "seed {seed}: {:?}", pair.changes);
        assert_eq!(pair.states(), [State::Up; 2]);
    }
}

#[test]
fn n_092_a_flapping_way_takes_a_session_up_less_and_less_often() {
    let mut pair = Pair::settled([Settings::DEFAULT; 2], 1);
    let start = pair.now;
    let flap = move || -> Way { Box::new(move |now, _| (now - start).as_millis() % 3000 >= 1000) };
    pair.ways = [flap(), flap()];

    pair.run(300 * SLOW_INTERVAL);

    let losses = pair.changes.iter().filter(|(_, end, change)| *end == 0 && change.is_failure()).count();
    assert!((4..=15).contains(&losses), "{losses} of 100 interruptions were seen as a loss");
    assert_eq!(pair.ends[0].status().losses as usize, losses);
}
