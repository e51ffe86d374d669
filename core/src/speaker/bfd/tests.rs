#![allow(clippy::disallowed_methods, reason = "tests need some instant to start from")]

use std::collections::BTreeSet;

use super::*;

mod pair;
mod properties;
mod sessions;

const MS: Duration = Duration::from_millis(1);
const INTERVAL: Duration = Duration::from_millis(50);

fn discriminator(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

fn mult(number: u8) -> NonZeroU8 {
    NonZeroU8::new(number).unwrap()
}

fn session(now: Instant, settings: Settings) -> Session {
    Session::new(now, discriminator(1), settings, 7)
}

/// What a neighbour with the default settings says in a state.
fn says(state: State) -> Packet {
    Packet {
        diagnostic: Diagnostic::None,
        state,
        sequence: Sequence::None,
        control_plane_independent: false,
        demand: false,
        detect_mult: mult(3),
        my_discriminator: discriminator(2),
        your_discriminator: Some(discriminator(1)),
        desired_min_tx_interval_us: 50_000,
        required_min_rx_interval_us: 50_000,
        required_min_echo_rx_interval_us: 0,
    }
}

fn hears(session: &mut Session, now: Instant, state: State) -> Vec<Action> {
    session.step(now, Event::Received(says(state)))
}

/// A session in a state, by the shortest way there.
fn session_in(now: Instant, state: State, settings: Settings) -> Session {
    let mut session = session(now, settings);
    session.step(now, Event::Tick);
    let way = match state {
        State::AdminDown => [Some(Event::Disable), None],
        State::Down => [None, None],
        State::Init => [Some(Event::Received(says(State::Down))), None],
        State::Up => [Some(Event::Received(says(State::Init))), Some(Event::Received(says(State::Up)))],
    };
    for event in way.into_iter().flatten() {
        session.step(now, event);
    }
    assert_eq!(session.state(), state);
    session
}

fn up(now: Instant) -> Session {
    session_in(now, State::Up, Settings::DEFAULT)
}

/// Up, with the Poll that follows answered.
fn settled(now: Instant) -> Session {
    let mut session = up(now);
    session.step(now, Event::Received(Packet { sequence: Sequence::Final, ..says(State::Up) }));
    session
}

fn sent(actions: &[Action]) -> Vec<Packet> {
    let packets = actions.iter().filter_map(|action| match action {
        Action::Send(packet) => Some(*packet),
        _ => None,
    });
    packets.collect()
}

fn changes(actions: &[Action]) -> Vec<Change> {
    let changes = actions.iter().filter_map(|action| match action {
        Action::Changed(change) => Some(*change),
        _ => None,
    });
    changes.collect()
}

/// Ticks whenever it is due, to the end of `until`; the other end says `state` every `interval` if given.
fn run(
    session: &mut Session,
    from: Instant,
    until: Instant,
    other: Option<(Packet, Duration)>,
) -> Vec<(Instant, Action)> {
    let mut actions = Vec::new();
    let mut speaks_at = other.map(|(_, interval)| from + interval);
    loop {
        let due = session.deadline().into_iter().chain(speaks_at).min().filter(|due| *due <= until);
        let Some(due) = due else { return actions };
        let event = match other {
            Some((packet, interval)) if speaks_at == Some(due) => {
                speaks_at = Some(due + interval);
                Event::Received(packet)
            }
            _ => Event::Tick,
        };
        actions.extend(session.step(due, event).into_iter().map(|action| (due, action)));
        let is_done = session.deadline().is_none_or(|deadline| deadline > due);
        assert!(is_done || speaks_at == Some(due), "a step leaves nothing undone");
    }
}

fn sent_at(actions: &[(Instant, Action)]) -> Vec<Instant> {
    actions.iter().filter(|(_, action)| matches!(action, Action::Send(_))).map(|(at, _)| *at).collect()
}

fn gaps(times: &[Instant]) -> Vec<Duration> {
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// RFC 5880 §6.8.6, every line.
#[test]
fn n_081_every_state_answers_every_received_state_as_the_rfc_says() {
    use State::*;
    let signaled = Some(Diagnostic::NeighborSignaledSessionDown);
    let table = [
        (AdminDown, AdminDown, AdminDown, None),
        (AdminDown, Down, AdminDown, None),
        (AdminDown, Init, AdminDown, None),
        (AdminDown, Up, AdminDown, None),
        (Down, AdminDown, Down, None),
        (Down, Down, Init, Some(Diagnostic::None)),
        (Down, Init, Up, Some(Diagnostic::None)),
        (Down, Up, Down, None),
        (Init, AdminDown, Down, signaled),
        (Init, Down, Init, None),
        (Init, Init, Up, Some(Diagnostic::None)),
        (Init, Up, Up, Some(Diagnostic::None)),
        (Up, AdminDown, Down, signaled),
        (Up, Down, Down, signaled),
        (Up, Init, Up, None),
        (Up, Up, Up, None),
    ];

    for (ours, received, expected, diagnostic) in table {
        let now = Instant::now();
        let mut session = session_in(now, ours, Settings::DEFAULT);

        // Long after the last change, so that this one may be told at once.
        let actions = hears(&mut session, now + SLOW_INTERVAL, received);

        assert_eq!(session.state(), expected, "{ours} that hears {received}");
        let change =
            diagnostic.map(|diagnostic| Change { from: ours, to: expected, diagnostic, remote_state: received });
        assert_eq!(changes(&actions), Vec::from_iter(change), "{ours} that hears {received}");
        let is_discarded = actions.contains(&Action::Discarded(Discard::AdminDown));
        assert_eq!(is_discarded, ours == AdminDown);
        if ours != expected {
            assert_eq!(sent(&actions)[0].state, expected, "{ours} that hears {received} says so at once");
        }
    }
}

#[test]
fn n_081_silence_for_the_detection_time_takes_a_session_down() {
    for state in [State::Init, State::Up] {
        let start = Instant::now();
        let mut session = session_in(start, state, Settings::DEFAULT);

        let actions = run(&mut session, start, start + 3 * INTERVAL - MS, None);
        assert_eq!(session.state(), state, "{actions:?}");
        let actions = session.step(start + 3 * INTERVAL, Event::Tick);

        let diagnostic = Diagnostic::ControlDetectionTimeExpired;
        let remote_state = if state == State::Init { State::Down } else { State::Up };
        assert_eq!(changes(&actions), [Change { from: state, to: State::Down, diagnostic, remote_state }]);
        let later = run(&mut session, start + 3 * INTERVAL, start + 2 * SLOW_INTERVAL, None);
        let actions: Vec<Action> = actions.into_iter().chain(later.into_iter().map(|(_, action)| action)).collect();
        let packet = sent(&actions)[0];
        assert_eq!((packet.state, packet.diagnostic), (State::Down, diagnostic));
        assert_eq!(packet.your_discriminator, None, "the other end's discriminator is forgotten");
    }
}

#[test]
fn n_081_a_session_that_is_down_forgets_a_silent_neighbor_too() {
    let now = Instant::now();
    let mut session = session_in(now, State::Down, Settings::DEFAULT);
    hears(&mut session, now, State::AdminDown);
    assert!(session.status().detection_time.is_some());

    run(&mut session, now, now + 3 * INTERVAL, None);

    assert!(session.status().detection_time.is_none());
    assert_eq!(session.state(), State::Down);
}

#[test]
fn n_081_only_what_was_meant_leaves_admin_down() {
    let now = Instant::now();
    let mut session = session_in(now, State::AdminDown, Settings::DEFAULT);

    let actions = session.step(now, Event::Enable);

    let diagnostic = Diagnostic::None;
    let change = Change { from: State::AdminDown, to: State::Down, diagnostic, remote_state: State::Down };
    assert_eq!(changes(&actions), [change]);
    hears(&mut session, now, State::Init);
    assert_eq!(session.state(), State::Up);
    assert_eq!(session.step(now, Event::Enable), []);
}

#[test]
fn the_detection_time_is_the_neighbors_multiplier_and_the_slower_of_two_intervals() {
    let now = Instant::now();
    let cases = [
        // Its multiplier, its desired interval, ours required, in ms.
        (3, 50, 50, 150),
        (5, 50, 50, 250),
        (3, 200, 50, 600),
        (3, 20, 300, 900),
        (1, 0, 50, 50),
    ];

    for (detect_mult, desired, required, expected) in cases {
        let required_min_rx_interval = Interval::nearest(required * MS);
        let mut session = session(now, Settings { required_min_rx_interval, ..Settings::DEFAULT });
        let packet =
            Packet { detect_mult: mult(detect_mult), desired_min_tx_interval_us: desired * 1000, ..says(State::Init) };

        session.step(now, Event::Received(packet));

        assert_eq!(session.status().detection_time, Some(expected * MS));
        run(&mut session, now, now + expected * MS - MS, None);
        assert_eq!(session.state(), State::Up);
        run(&mut session, now, now + expected * MS, None);
        assert_eq!(session.state(), State::Down);
    }
}

#[test]
fn an_intended_end_is_no_failure() {
    for (said, is_failure) in [(State::Down, true), (State::AdminDown, false)] {
        let now = Instant::now();
        let mut session = up(now);

        let actions = hears(&mut session, now, said);

        assert_eq!(changes(&actions)[0].is_failure(), is_failure, "{said}");
        assert_eq!(session.status().losses, u32::from(is_failure));
    }
    let mut session = up(Instant::now());
    assert!(!changes(&session.step(Instant::now(), Event::Disable))[0].is_failure());
}

#[test]
fn n_085_a_session_that_is_not_up_sends_once_a_second_at_most() {
    for state in [State::Down, State::Init, State::AdminDown] {
        let start = Instant::now();
        let mut session = session_in(start, state, Settings::FAST);
        let said = if state == State::Down { State::Up } else { State::Down };

        let actions = run(&mut session, start, start + 60 * SLOW_INTERVAL, Some((says(said), 100 * MS)));

        let gaps = gaps(&sent_at(&actions));
        assert!(gaps.iter().all(|gap| (750 * MS..=SLOW_INTERVAL).contains(gap)), "{state}: {gaps:?}");
        let (least, most) = if state == State::AdminDown { (0, 1) } else { (58, 80) };
        assert!((least..=most).contains(&gaps.len()), "{state}: {}", gaps.len());
        assert!(sent(&actions.into_iter().map(|(_, action)| action).collect::<Vec<_>>()).iter().all(|packet| {
            packet.desired_min_tx_interval_us == 1_000_000 && packet.required_min_rx_interval_us == 10_000
        }));
    }
}

#[test]
fn n_085_gaps_of_a_session_that_is_up_are_75_to_100_percent_of_the_interval() {
    for (detect_mult, most) in [(1, 45 * MS), (2, INTERVAL), (3, INTERVAL)] {
        let start = Instant::now();
        let settings = Settings { detect_mult: mult(detect_mult), ..Settings::DEFAULT };
        let mut session = session_in(start, State::Up, settings);

        let actions = run(&mut session, start, start + 600 * INTERVAL, Some((says(State::Up), 10 * MS)));

        let gaps = gaps(&sent_at(&actions));
        let least = *gaps.iter().min().unwrap();
        let longest = *gaps.iter().max().unwrap();
        assert!(least >= 37_500 * MS / 1000 && longest <= most, "{least:?} to {longest:?}");
        assert!(least < 38 * MS && longest > most - MS, "the whole range is used: {least:?} to {longest:?}");
    }
}

#[test]
fn n_085_a_neighbor_cannot_make_a_session_that_is_not_up_send_faster() {
    let start = Instant::now();
    let mut session = session_in(start, State::Down, Settings::DEFAULT);
    let mut packets = 0;

    for turn in 0..6000 {
        let said = if turn % 2 == 0 { State::Down } else { State::AdminDown };
        packets += sent(&hears(&mut session, start + turn * MS, said)).len();
    }

    assert!(packets <= 6 + 8, "{packets} in six seconds");
}

#[test]
fn n_091_a_millisecond_once_from_either_side_makes_no_busy_loop() {
    let start = Instant::now();
    let shortest = Interval::nearest(MS);
    let settings = Settings {
        desired_min_tx_interval: shortest,
        required_min_rx_interval: shortest,
        detect_mult: mult(1),
        ..Settings::DEFAULT
    };
    let mut session = session_in(start, State::Up, settings);
    let quick = Packet {
        detect_mult: mult(1),
        desired_min_tx_interval_us: 1000,
        required_min_rx_interval_us: 1000,
        ..says(State::Up)
    };

    let actions = run(&mut session, start, start + 10 * SLOW_INTERVAL, Some((quick, 9 * MS)));

    // One packet in 10 ms, less a jitter of a quarter at most.
    let gaps = gaps(&sent_at(&actions));
    assert!(gaps.len() <= 10 * 134 + 1 && gaps.iter().all(|gap| *gap >= 7500 * MS / 1000), "{}", gaps.len());
    assert_eq!(session.state(), State::Up);
}

#[test]
fn n_086_a_poll_is_answered_at_once_in_every_state_but_admin_down() {
    for state in [State::Init, State::Up] {
        let now = Instant::now();
        let mut session = session_in(now, state, Settings::DEFAULT);
        let said = if state == State::Up { State::Up } else { State::Down };

        let actions = session.step(now + MS, Event::Received(Packet { sequence: Sequence::Poll, ..says(said) }));

        let finals: Vec<_> = sent(&actions).into_iter().filter(|packet| packet.sequence == Sequence::Final).collect();
        assert_eq!(finals.len(), 1, "{state}");
        assert_eq!(finals[0].state, state);
    }
    let now = Instant::now();
    let mut session = session_in(now, State::AdminDown, Settings::DEFAULT);
    let poll = Packet { sequence: Sequence::Poll, ..says(State::Up) };
    assert_eq!(session.step(now, Event::Received(poll)), [Action::Discarded(Discard::AdminDown)]);
}

#[test]
fn n_086_a_poll_in_progress_is_not_mixed_with_the_answer_to_another() {
    let now = Instant::now();
    let mut session = up(now);

    let actions = session.step(now + MS, Event::Received(Packet { sequence: Sequence::Poll, ..says(State::Up) }));
    let later = run(&mut session, now + MS, now + 2 * INTERVAL, None);

    assert_eq!(sent(&actions).iter().map(|packet| packet.sequence).collect::<Vec<_>>(), [Sequence::Final]);
    let later: Vec<Action> = later.into_iter().map(|(_, action)| action).collect();
    assert!(
        sent(&later).iter().all(|packet| packet.sequence == Sequence::Poll),
        "our own goes on until it is answered"
    );
}

#[test]
fn n_086_coming_up_polls_until_the_neighbor_answers() {
    let now = Instant::now();
    let mut session = session_in(now, State::Init, Settings::DEFAULT);

    let actions = hears(&mut session, now, State::Up);
    assert_eq!(sent(&actions)[0].sequence, Sequence::Poll);
    assert_eq!(sent(&actions)[0].desired_min_tx_interval_us, 50_000);
    session.step(now, Event::Received(Packet { sequence: Sequence::Final, ..says(State::Up) }));
    let actions = run(&mut session, now, now + 2 * INTERVAL, None);

    assert!(!actions.is_empty());
    let actions: Vec<Action> = actions.into_iter().map(|(_, action)| action).collect();
    assert!(sent(&actions).iter().all(|packet| packet.sequence == Sequence::None));
}

#[test]
fn n_086_slower_packets_and_a_shorter_detection_time_wait_for_the_answer() {
    let now = Instant::now();
    let mut session = settled(now);
    let slower = Settings {
        desired_min_tx_interval: Interval::nearest(400 * MS),
        required_min_rx_interval: Interval::nearest(20 * MS),
        ..Settings::DEFAULT
    };
    let answer = Packet { desired_min_tx_interval_us: 10_000, ..says(State::Up) };

    let actions = session.step(now, Event::Configure(slower));
    session.step(now, Event::Received(answer));

    let [packet] = sent(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!(packet.sequence, Sequence::Poll);
    assert_eq!((packet.desired_min_tx_interval_us, packet.required_min_rx_interval_us), (400_000, 20_000));
    let status = session.status();
    assert_eq!((status.transmit_interval, status.detection_time), (INTERVAL, Some(3 * INTERVAL)));

    session.step(now, Event::Received(Packet { sequence: Sequence::Final, ..answer }));

    let status = session.status();
    assert_eq!((status.transmit_interval, status.detection_time), (400 * MS, Some(60 * MS)));
    assert_eq!(session.state(), State::Up);
}

#[test]
fn n_086_faster_packets_and_a_longer_detection_time_take_effect_at_once() {
    let now = Instant::now();
    let mut session = settled(now);
    session.step(now, Event::Received(Packet { required_min_rx_interval_us: 1, ..says(State::Up) }));
    let faster = Settings {
        desired_min_tx_interval: Interval::nearest(10 * MS),
        required_min_rx_interval: Interval::nearest(500 * MS),
        ..Settings::DEFAULT
    };

    session.step(now, Event::Configure(faster));

    let status = session.status();
    assert_eq!((status.transmit_interval, status.detection_time), (10 * MS, Some(1500 * MS)));
}

#[test]
fn n_086_an_answer_to_older_settings_does_not_settle_newer_ones() {
    let now = Instant::now();
    let mut session = settled(now);
    let tx = |ms: u32| Settings { desired_min_tx_interval: Interval::nearest(ms * MS), ..Settings::DEFAULT };
    let answer = Packet { sequence: Sequence::Final, ..says(State::Up) };

    session.step(now, Event::Configure(tx(200)));
    session.step(now, Event::Configure(tx(300)));
    session.step(now, Event::Received(answer));
    assert_eq!(session.status().transmit_interval, INTERVAL, "it may have known of 200 ms only");
    session.step(now, Event::Received(answer));
    assert_eq!(session.status().transmit_interval, INTERVAL, "it was not asked again yet");
    run(&mut session, now, now + INTERVAL, None);
    session.step(now + INTERVAL, Event::Received(answer));

    assert_eq!(session.status().transmit_interval, 300 * MS);
}

#[test]
fn n_086_an_answer_that_nobody_asked_for_changes_nothing() {
    let now = Instant::now();
    let mut session = settled(now);
    let before = session.status();

    session.step(now, Event::Received(Packet { sequence: Sequence::Final, ..says(State::Up) }));

    assert_eq!(session.status(), before);
}

/// Forgetting this lets a neighbour that reckons with the new interval expire before the old one is over.
#[test]
fn n_087_the_transmit_timer_is_armed_anew_when_the_interval_shrinks() {
    let start = Instant::now();
    let mut session = session_in(start, State::Init, Settings::DEFAULT);
    session.step(start + 10 * MS, Event::Tick);

    let came_up_at = start + 20 * MS;
    hears(&mut session, came_up_at, State::Up);
    assert!(session.deadline().unwrap() <= came_up_at + INTERVAL);

    // And when it is the neighbour that asks for more.
    let slow = Packet { required_min_rx_interval_us: 2_000_000, ..says(State::Up) };
    session.step(came_up_at + MS, Event::Received(slow));
    session.step(came_up_at + 2 * MS, Event::Received(says(State::Up)));

    assert!(session.deadline().unwrap() <= came_up_at + INTERVAL);
}

#[test]
fn n_088_a_neighbor_that_wants_no_packets_gets_none_but_answers() {
    let start = Instant::now();
    let mut session = settled(start);
    let silent = Packet { required_min_rx_interval_us: 0, ..says(State::Up) };

    session.step(start, Event::Received(silent));
    let actions = run(&mut session, start, start + 60 * SLOW_INTERVAL, Some((silent, INTERVAL)));
    assert_eq!(actions, []);
    let poll = Packet { sequence: Sequence::Poll, ..silent };
    let actions = session.step(start + 60 * SLOW_INTERVAL, Event::Received(poll));
    assert_eq!(sent(&actions).len(), 1);
    assert_eq!(sent(&actions)[0].sequence, Sequence::Final);

    let again = start + 60 * SLOW_INTERVAL + MS;
    let actions = session.step(again, Event::Received(says(State::Up)));
    assert_eq!(sent(&actions).len(), 1, "wanted again, they come again");
}

#[test]
fn n_088_a_neighbor_that_takes_fewer_packets_is_obeyed() {
    let start = Instant::now();
    let mut session = settled(start);
    let slow = Packet { required_min_rx_interval_us: 300_000, ..says(State::Up) };

    session.step(start, Event::Received(slow));
    let actions = run(&mut session, start, start + 60 * SLOW_INTERVAL, Some((slow, INTERVAL)));

    let gaps = gaps(&sent_at(&actions));
    assert!(gaps.len() >= 200 && gaps.iter().all(|gap| (225 * MS..=300 * MS).contains(gap)), "{gaps:?}");
}

#[test]
fn n_088_demand_mode_of_a_neighbor_is_obeyed_while_both_are_up() {
    let start = Instant::now();
    let mut session = settled(start);
    let demand = Packet { demand: true, ..says(State::Up) };

    session.step(start, Event::Received(demand));
    assert_eq!(run(&mut session, start, start + SLOW_INTERVAL, Some((demand, INTERVAL))), []);
    let changed =
        Settings { detect_mult: mult(5), required_min_rx_interval: Interval::nearest(80 * MS), ..Settings::DEFAULT };
    let actions = session.step(start + SLOW_INTERVAL, Event::Configure(changed));
    assert_eq!(sent(&actions)[0].sequence, Sequence::Poll, "a Poll is asked in demand mode too");
    session.step(start + SLOW_INTERVAL, Event::Received(Packet { sequence: Sequence::Final, ..demand }));

    let from = start + SLOW_INTERVAL;
    assert_eq!(run(&mut session, from, from + SLOW_INTERVAL, Some((demand, INTERVAL))), []);
}

#[test]
fn a_passive_session_is_silent_until_it_hears_and_again_when_it_does_not() {
    let start = Instant::now();
    let mut session = session(start, Settings::DEFAULT.passive());
    assert_eq!(session.deadline(), None);

    let actions = hears(&mut session, start, State::Down);
    assert_eq!(sent(&actions)[0].state, State::Init);
    run(&mut session, start, start + 3 * INTERVAL, None);

    assert_eq!(session.deadline(), None);
}

/// Time that the process did not see counts as little as on a clock that stood still.
#[test]
fn a_held_up_process_does_not_take_its_own_silence_for_the_neighbors() {
    for heard_before in [MS, 90 * MS] {
        let start = Instant::now();
        let mut session = settled(start);
        run(&mut session, start, start + heard_before, None);
        let resumes_at = start + heard_before + 10 * SLOW_INTERVAL;

        session.step(resumes_at, Event::Tick);
        assert_eq!(session.state(), State::Up);
        let left = 3 * INTERVAL - heard_before;
        let actions = run(&mut session, resumes_at, resumes_at + left + INTERVAL, None);

        let [(lost_at, _)] =
            actions.iter().filter(|(_, action)| matches!(action, Action::Changed(_))).collect::<Vec<_>>()[..]
        else {
            panic!("{actions:?}")
        };
        assert!(*lost_at >= resumes_at && *lost_at <= resumes_at + left + INTERVAL);
    }
}

#[test]
fn a_step_that_is_a_little_late_finds_a_silent_neighbor_all_the_same() {
    let start = Instant::now();
    let mut session = settled(start);
    let mut now = start;
    while session.state() == State::Up {
        now = session.deadline().unwrap() + 5 * MS;
        session.step(now, Event::Tick);
    }

    assert!(now <= start + 3 * INTERVAL + 10 * MS);
}

#[test]
fn admin_down_is_sent_for_a_detection_time_and_until_the_neighbor_knows() {
    let start = Instant::now();
    let mut session = settled(start);

    let actions = session.step(start, Event::Disable);
    let [packet] = sent(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!((packet.state, packet.diagnostic), (State::AdminDown, Diagnostic::AdministrativelyDown));
    hears(&mut session, start + MS, State::Up);
    hears(&mut session, start + 2 * MS, State::Down);
    assert_eq!(session.deadline(), Some(start + 3 * INTERVAL));
    let actions = session.step(start + 3 * INTERVAL, Event::Tick);

    assert_eq!(actions, [Action::Finished]);
    assert!(session.deadline().is_none() || run(&mut session, start, start + 60 * SLOW_INTERVAL, None).is_empty());
}

#[test]
fn admin_down_that_nobody_acknowledges_is_sent_as_often_as_packets_may_be_lost() {
    let start = Instant::now();
    let mut session = settled(start);

    let mut actions: Vec<_> = session.step(start, Event::Disable).into_iter().map(|action| (start, action)).collect();
    actions.extend(run(&mut session, start, start + 60 * SLOW_INTERVAL, Some((says(State::Up), INTERVAL))));

    assert!((3..=4).contains(&sent_at(&actions).len()), "{actions:?}");
    let finished = actions.iter().find(|(_, action)| *action == Action::Finished).unwrap();
    assert_eq!(finished.0, start + 3 * SLOW_INTERVAL);
}

fn lose(session: &mut Session, now: Instant) -> Vec<Action> {
    if session.state() == State::Down {
        hears(session, now, State::Init);
    }
    assert_eq!(session.state(), State::Up);
    hears(session, now, State::Down)
}

#[test]
fn n_092_a_session_that_flaps_is_held_down_for_growing_times_and_shows_it() {
    let mut now = Instant::now();
    let mut session = up(now);
    let mut holds = Vec::new();

    for _ in 0..9 {
        let actions = lose(&mut session, now);
        let held = actions.iter().find_map(|action| match action {
            Action::Held { until } => Some(*until - now),
            _ => None,
        });
        assert_eq!(session.status().held_until, held.map(|held| now + held));
        holds.push(held.unwrap_or_default().as_secs());
        if let Some(held) = held {
            now += held - MS;
            for said in [State::Down, State::Init] {
                hears(&mut session, now, said);
                assert_eq!(session.state(), State::Down);
            }
            now += MS;
        }
    }

    assert_eq!(holds, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
    let status = session.status();
    assert_eq!(status.losses, 9);
    let last = status.last_loss.unwrap();
    assert_eq!((last.from, last.to), (State::Up, State::Down));
    assert_eq!(last.diagnostic, Diagnostic::NeighborSignaledSessionDown);
}

#[test]
fn n_092_a_session_that_has_been_up_for_long_is_not_held() {
    let mut now = Instant::now();
    let mut session = up(now);
    lose(&mut session, now);
    lose(&mut session, now);
    now = session.status().held_until.unwrap();
    hears(&mut session, now, State::Init);
    now += Damping::default().forgive_after;

    lose(&mut session, now);

    assert!(session.status().held_until.is_none());
    assert_eq!(session.status().losses, 3);
}

#[test]
fn n_092_damping_can_be_left_out_and_a_person_can_end_it() {
    let now = Instant::now();
    let mut undamped = session_in(now, State::Up, Settings { damping: None, ..Settings::DEFAULT });
    for _ in 0..9 {
        lose(&mut undamped, now);
    }
    assert_eq!(undamped.status().held_until, None);

    let mut damped = up(now);
    lose(&mut damped, now);
    lose(&mut damped, now);
    assert!(damped.status().held_until.is_some());
    damped.step(now, Event::Disable);
    damped.step(now, Event::Enable);
    hears(&mut damped, now, State::Init);

    assert_eq!(damped.state(), State::Up);
}

#[test]
fn n_092_an_intended_end_counts_as_no_flap() {
    let now = Instant::now();
    let mut session = up(now);

    for _ in 0..5 {
        hears(&mut session, now, State::AdminDown);
        hears(&mut session, now, State::Init);
        assert_eq!(session.state(), State::Up);
    }

    assert_eq!(session.status().losses, 0);
}

#[test]
fn intervals_stay_between_ten_milliseconds_and_a_minute() {
    assert_eq!(Interval::nearest(Duration::ZERO), Interval::MIN);
    assert_eq!(Interval::nearest(Duration::MAX), Interval::MAX);
    assert_eq!(Settings::DEFAULT.desired_min_tx_interval.get(), INTERVAL);
    assert_eq!(Settings::FAST.required_min_rx_interval.get(), 10 * MS);
    assert_eq!(Settings::DEFAULT.damping, Some(Damping::default()));
}

#[test]
fn a_packet_goes_with_those_of_others_no_sooner_than_jitter_allows() {
    let now = Instant::now();
    let mut session = settled(now);

    assert_eq!(sent(&session.step(now + 37 * MS, Event::Join)), []);
    let joined = now + INTERVAL * 3 / 4;
    assert_eq!(sent(&session.step(joined, Event::Join)).len(), 1);
    assert_eq!(sent(&session.step(joined, Event::Join)), []);

    let next = session.deadline().unwrap() - joined;
    assert!((INTERVAL * 3 / 4..=INTERVAL).contains(&next), "{next:?}");
}
