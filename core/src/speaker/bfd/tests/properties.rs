//! What holds whatever is lost, and whatever is received.

use proptest::prelude::*;

use super::{
    pair::{Pair, cut},
    *,
};

/// Loses up to `most` packets in a row, as the schedule says, and then lets one through.
fn loses(schedule: Vec<u8>, most: usize) -> pair::Way {
    let mut turn = 0;
    let mut lost = 0;
    Box::new(move |_, _| {
        let wanted = schedule[turn % schedule.len()];
        turn += 1;
        if lost < most && usize::from(wanted) % (most + 1) > lost {
            lost += 1;
            return false;
        }
        lost = 0;
        true
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    (10u32..400, 10u32..400, 1u8..6).prop_map(|(tx, rx, detect_mult)| Settings {
        desired_min_tx_interval: Interval::nearest(tx * MS),
        required_min_rx_interval: Interval::nearest(rx * MS),
        detect_mult: mult(detect_mult),
        ..Settings::DEFAULT
    })
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![Just(State::AdminDown), Just(State::Down), Just(State::Init), Just(State::Up)]
}

fn packet() -> impl Strategy<Value = Packet> {
    let sequence = prop_oneof![Just(Sequence::None), Just(Sequence::Poll), Just(Sequence::Final)];
    let interval = || prop_oneof![Just(0u32), Just(1), 1_000u32..2_000_000, Just(u32::MAX)];
    (state(), sequence, any::<bool>(), 1u8.., interval(), interval()).prop_map(
        |(state, sequence, demand, detect_mult, tx, rx)| Packet {
            sequence,
            demand,
            detect_mult: mult(detect_mult),
            desired_min_tx_interval_us: tx,
            required_min_rx_interval_us: rx,
            ..says(state)
        },
    )
}

/// Whatever can happen to a session that stays passive, or becomes it.
fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => packet().prop_map(Event::Received),
        4 => Just(Event::Tick),
        4 => Just(Event::Join),
        1 => Just(Event::Enable),
        1 => Just(Event::Disable),
        1 => settings().prop_map(|settings| Event::Configure(settings.passive())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn loss_shorter_than_the_detect_multiplier_never_drops_a_session(
        ends in [settings(), settings()], schedules in [proptest::collection::vec(any::<u8>(), 1..40), proptest::collection::vec(any::<u8>(), 1..40)],
        seed: u64,
    ) {
        let mut pair = Pair::settled(ends, seed);
        // A packet that is as late as it may be needs the time of its way on top.
        pair.latency = Duration::ZERO;
        let [one, other] = schedules;
        pair.ways = [
            loses(one, usize::from(ends[0].detect_mult.get()) - 1),
            loses(other, usize::from(ends[1].detect_mult.get()) - 1),
        ];

        pair.run(30 * SLOW_INTERVAL);

        prop_assert_eq!(&pair.changes, &[]);
    }

    #[test]
    fn a_session_is_down_a_detection_time_after_the_last_packet(ends in [settings(), settings()], seed: u64, wait in 0u32..500) {
        let mut pair = Pair::settled(ends, seed);
        pair.run(wait * MS);
        let cut_at = pair.now;
        let detection_time = pair.ends[0].status().detection_time.unwrap();
        let interval = pair.ends[1].status().transmit_interval;
        pair.ways = [Box::new(|_, _| true), cut()];

        pair.run(detection_time + pair.latency);

        let (at, _, change) = *pair.changes.iter().find(|(_, end, _)| *end == 0).unwrap();
        prop_assert_eq!(change.diagnostic, Diagnostic::ControlDetectionTimeExpired);
        prop_assert!(at - cut_at <= detection_time + pair.latency);
        prop_assert!(at - cut_at >= detection_time.saturating_sub(interval));
    }

    #[test]
    fn a_poll_is_settled_whatever_part_of_it_is_lost(
        before in settings(), after in settings(), schedules in [proptest::collection::vec(any::<u8>(), 1..40), proptest::collection::vec(any::<u8>(), 1..40)],
        seed: u64,
    ) {
        let [before, after] = [before, after].map(|settings| Settings { detect_mult: mult(5), ..settings });
        let mut pair = Pair::settled([before; 2], seed);
        let [one, other] = schedules;
        pair.ways = [loses(one, 2), loses(other, 1)];

        pair.step(0, Event::Configure(after));
        pair.run(30 * SLOW_INTERVAL);

        prop_assert_eq!(&pair.changes, &[]);
        let wanted = after.desired_min_tx_interval.max(before.required_min_rx_interval);
        prop_assert_eq!(pair.ends[0].status().transmit_interval, wanted.get());
    }

    #[test]
    fn whatever_is_lost_two_ends_come_up_once_nothing_is(
        ends in [settings(), settings()], schedule in proptest::collection::vec(any::<bool>(), 1..200), seed: u64,
    ) {
        let undamped = ends.map(|settings| Settings { damping: None, ..settings });
        let mut pair = Pair::new(undamped, seed);
        let loses = |offset: usize| -> pair::Way {
            let schedule = schedule.clone();
            let mut turn = offset;
            Box::new(move |_, _| { turn += 1; schedule[turn % schedule.len()] })
        };
        pair.ways = [loses(0), loses(7)];
        pair.run(20 * SLOW_INTERVAL);
        pair.ways = [pair::whole(), pair::whole()];

        pair.run(5 * SLOW_INTERVAL);

        prop_assert_eq!(pair.states(), [State::Up; 2]);
    }

    #[test]
    fn whatever_is_heard_the_rules_of_sending_hold(
        events in proptest::collection::vec((0u32..300, event()), 1..300), settings in settings(), is_passive: bool,
    ) {
        let mut now = Instant::now();
        let mut session = session(now, if is_passive { settings.passive() } else { settings });
        // When packets left that had nothing to do with being up.
        let mut slow: Vec<Instant> = Vec::new();
        for (wait, event) in events {
            let until = now + wait * MS;
            let mut steps = Vec::new();
            while let Some(due) = session.deadline() && due <= until {
                now = now.max(due);
                steps.push((now, Event::Tick, session.state(), session.status().detection_time.is_some(), session.step(now, Event::Tick)));
                prop_assert!(session.deadline().is_none_or(|deadline| deadline > now), "a tick leaves nothing undone");
            }
            now = until;
            steps.push((now, event, session.state(), session.status().detection_time.is_some(), session.step(now, event)));
            for (at, event, was, heard, actions) in steps {
                let packets = sent(&actions);
                let (answers, others): (Vec<Packet>, Vec<Packet>) =
                    packets.iter().partition(|packet| packet.sequence == Sequence::Final);
                let is_poll = matches!(event, Event::Received(Packet { sequence: Sequence::Poll, .. }));
                prop_assert_eq!(answers.len(), usize::from(is_poll && was != State::AdminDown));
                prop_assert!(others.len() <= 1);
                let is_slow = others.iter().any(|packet| packet.state != State::Up) && was != State::Up;
                slow.extend(is_slow.then_some(at));
                prop_assert!(!is_passive || heard || matches!(event, Event::Received(_)) || others.is_empty());
            }
            prop_assert_eq!(session.step(now, Event::Tick), [], "a tick that comes again changes nothing");
        }
        prop_assert!(slow.windows(3).all(|three| three[2] - three[0] >= 750 * MS));
    }
}
