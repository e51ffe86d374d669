//! Hold, keepalive, connect-retry and send hold timers (RFC 4271 §10, RFC 9687).

use super::*;

/// The times at which KEEPALIVEs were sent.
fn keepalives(heard: &[Heard]) -> Vec<Instant> {
    heard.iter().filter(|heard| heard.message == Message::Keepalive).map(|heard| heard.at).collect()
}

fn nine_seconds() -> Neighbor {
    Neighbor { hold_time: hold(9), keepalive_time: 3 * SECOND, ..neighbor() }
}

#[test]
fn n_007_a_hold_time_of_zero_means_no_keepalive_after_the_first_and_no_expiry() {
    let mut bench = Bench::with(neighbor());
    let connection = bench.connect();
    bench.greet(connection, Open { hold_time: hold(0), ..open() });
    assert_eq!(keepalives(&bench.listen(connection)).len(), 1);

    bench.pass(100_000 * SECOND);

    assert!(bench.listen(connection).is_empty());
    assert_eq!(bench.status().state, State::Established);
}

#[test]
fn n_021_keepalives_come_at_three_quarters_to_the_whole_of_a_third_of_the_hold_time() {
    let (mut bench, connection) = Bench::up(nine_seconds(), open());

    let mut times = vec![bench.now];
    for _ in 0..60 {
        bench.pass(SECOND);
        bench.say(connection, Message::Keepalive);
        times.extend(keepalives(&bench.listen(connection)));
    }

    let gaps: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() >= 20);
    assert!(gaps.iter().all(|gap| (2250 * MS..=3 * SECOND).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().any(|gap| gap.abs_diff(gaps[0]) > 50 * MS), "they are jittered: {gaps:?}");
}

#[test]
fn n_021_silence_for_the_hold_time_is_answered_with_4_0_and_the_end() {
    let (mut bench, connection) = Bench::up(nine_seconds(), open());
    bench.pass(4 * SECOND);
    bench.say(connection, Message::Update(Update::default()));

    bench.pass(9 * SECOND - MS);
    assert!(bench.is_open(connection));
    bench.pass(MS);

    assert_eq!(bench.farewell(connection), Some(Notification::new(4, 0, [])));
    assert_eq!(bench.status().last_close, Some(Closing::Sent(Notification::new(4, 0, []))));
}

#[test]
fn n_022_the_hold_time_in_use_is_the_smaller_of_both() {
    for (ours, theirs, used) in [(90, 30, 30), (30, 90, 30), (0, 90, 0), (90, 0, 0), (9, 3, 3), (180, 180, 180)] {
        let (bench, _) =
            Bench::up(Neighbor { hold_time: hold(ours), ..neighbor() }, Open { hold_time: hold(theirs), ..open() });

        assert_eq!(bench.status().hold_time_seconds, Some(used), "{ours} and {theirs}");
    }
}

#[test]
fn keepalives_are_sent_as_often_as_configured_but_no_less_often_than_a_third_of_the_hold_time() {
    for (keepalive_time, allowed) in [(5, 3750 * MS..=5 * SECOND), (60, 22_500 * MS..=30 * SECOND)] {
        let (mut bench, connection) =
            Bench::up(Neighbor { keepalive_time: keepalive_time * SECOND, ..neighbor() }, open());
        let begin = bench.now;

        bench.pass(40 * SECOND);

        let first = keepalives(&bench.listen(connection))[0] - begin;
        assert!(allowed.contains(&first), "{first:?}");
    }
}

/// The waits between attempts, each of which is refused at once.
fn waits(neighbor: Neighbor, time: Duration) -> Vec<Duration> {
    let mut bench = Bench::with(neighbor);
    let end = bench.now + time;
    let mut times = Vec::new();
    while bench.now < end {
        if let Some((at, connection, _)) = bench.attempts.pop() {
            times.push(at);
            bench.step(Event::Refused { connection, trouble: Trouble::ConnectionRefused });
        }
        let due = bench.peers.deadline().expect("it never gives up");
        bench.pass(due.saturating_duration_since(bench.now));
    }
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

fn assert_within(waits: &[Duration], whole: &[Duration]) {
    for (wait, whole) in waits.iter().zip(whole) {
        assert!((whole.mul_f64(0.75)..=*whole).contains(wait), "{wait:?} of {whole:?}");
    }
}

#[test]
fn n_023_attempts_follow_one_another_at_growing_jittered_waits_up_to_a_cap_and_never_stop() {
    let waits = waits(neighbor(), 3600 * SECOND);

    assert_within(&waits, &[500 * MS, SECOND, 2 * SECOND, 4 * SECOND]);
    let later = &waits[4..];
    assert!(later.len() > 700);
    assert_within(later, &vec![5 * SECOND; later.len()]);
    assert!(later.iter().any(|wait| wait.abs_diff(later[0]) > 100 * MS));
}

#[test]
fn m_139_n_023_the_cap_is_the_connect_retry_time() {
    let waits = waits(Neighbor { connect_retry_time: Some(2 * SECOND), ..neighbor() }, 60 * SECOND);

    assert_within(&waits[..2], &[500 * MS, SECOND]);
    assert_within(&waits[2..], &vec![2 * SECOND; waits.len() - 2]);
}

#[test]
fn n_023_a_refusal_is_told() {
    let mut bench = Bench::with(neighbor());
    let (_, connection, to) = bench.attempts.pop().unwrap();

    bench.step(Event::Refused { connection, trouble: Trouble::ConnectionRefused });

    assert_eq!(to, Target { address: ip(ROUTER), port: port(), interface: None });
    assert_eq!(bench.status().state, State::Active);
    assert_eq!(bench.status().trouble, Some(Trouble::ConnectionRefused));
}

#[test]
fn a_session_that_has_worked_is_tried_again_within_half_a_second() {
    let (mut bench, mut connection) = Bench::up(neighbor(), open());
    for _ in 0..5 {
        bench.step(Event::Ended { connection, loss: Loss::Reset });
        bench.pass(5 * SECOND);
        connection = bench.establish(open());
    }
    bench.pass(30 * SECOND);

    bench.step(Event::Ended { connection, loss: Loss::Reset });
    bench.pass(500 * MS);

    assert_eq!(bench.attempts.len(), 1);
    assert_eq!(bench.status().flaps, 6);
}

#[test]
fn n_024_a_peer_that_takes_the_connection_and_stays_silent_is_let_go_and_tried_again() {
    let mut bench = Bench::with(neighbor());
    let connection = bench.connect();
    assert_eq!(bench.status().state, State::OpenSent);

    bench.pass(10 * SECOND);

    assert!(!bench.is_open(connection));
    assert_eq!(bench.status().last_close, Some(Closing::Lost(Loss::Silent)));
    bench.pass(SECOND);
    assert_eq!(bench.attempts.len(), 1);
}

#[test]
fn a_peer_that_sends_its_open_and_no_keepalive_is_let_go_even_without_a_hold_time() {
    let mut bench = Bench::with(neighbor());
    let connection = bench.connect();
    bench.say(connection, Message::Open(Open { hold_time: hold(0), ..open() }));

    bench.pass(10 * SECOND);

    assert_eq!(bench.farewell(connection), Some(Notification::new(4, 0, [])));
}

#[test]
fn n_028_a_peer_that_takes_nothing_is_dropped_within_the_send_hold_time() {
    // Twice the hold time, but 10 s at least; 8 minutes where there is no hold time (RFC 9687 §3.2).
    for (seconds, patience) in [(3, 10 * SECOND), (9, 18 * SECOND), (0, 480 * SECOND)] {
        let (mut bench, connection) = Bench::up(neighbor(), Open { hold_time: hold(seconds), ..open() });
        bench.stall(connection);
        bench.announce("198.51.100.1/32", part());
        bench.pass(COALESCE);

        let mut left = patience;
        while left > SECOND {
            bench.pass(SECOND);
            bench.say(connection, Message::Keepalive);
            left -= SECOND;
        }
        assert!(bench.is_open(connection), "{seconds}");
        bench.pass(left);

        assert!(!bench.is_open(connection), "{seconds}");
        assert_eq!(bench.status().last_close, Some(Closing::Sent(Notification::new(8, 0, []))));
    }
}

#[test]
fn n_029_a_peer_that_takes_nothing_delays_nobody_elses_keepalives() {
    let other = Neighbor { remote: Remote::Address { address: ip("192.0.2.253"), port: port() }, ..nine_seconds() };
    let mut bench = Bench::new([("stalled", nine_seconds()), ("well", other)]);
    let attempts = std::mem::take(&mut bench.attempts);
    let [stalled, well] = attempts.into_iter().map(|(_, connection, _)| connection).collect::<Vec<_>>()[..] else {
        panic!("two are tried")
    };
    for (connection, remote) in [(stalled, ROUTER), (well, "192.0.2.253")] {
        bench.wires.entry(connection).or_default();
        bench.step(Event::Connected { connection, ends: Ends { remote: ip(remote), ..ends() } });
        bench.greet(connection, Open { identifier: identifier(remote), ..open() });
        bench.hear(connection);
    }
    bench.stall(stalled);

    let mut times = vec![bench.now];
    for _ in 0..12 {
        bench.pass(SECOND);
        bench.say(stalled, Message::Keepalive);
        bench.say(well, Message::Keepalive);
        times.extend(keepalives(&bench.listen(well)));
    }

    assert!(times.len() >= 4);
    let allowed: RangeInclusive<Duration> = 2250 * MS..=3 * SECOND;
    assert!(times.windows(2).all(|pair| allowed.contains(&(pair[1] - pair[0]))));
}

#[test]
fn a_tick_that_comes_early_changes_nothing() {
    let (mut bench, connection) = Bench::up(neighbor(), open());
    bench.done.clear();

    for _ in 0..10 {
        bench.now += MS;
        bench.step(Event::Tick);
    }

    assert!(bench.done.is_empty());
    assert!(bench.hear(connection).is_empty());
}
