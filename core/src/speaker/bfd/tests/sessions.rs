//! Many sessions: which one a packet belongs to, and which there are.

use std::collections::BTreeMap;

use super::*;
use crate::{
    model::InterfaceName,
    speaker::bfd::sessions::{Action, Arrival, Event, MAX_SESSIONS, Neighbor, Path, Sessions, Wanted, Wish},
};

fn path() -> Path {
    Path {
        remote: [192, 0, 2, 2].into(),
        local: [192, 0, 2, 1].into(),
        interface: Some(InterfaceName::from("eth0")),
        vrf: None,
    }
}

fn multihop() -> Path {
    Path { interface: None, ..path() }
}

fn neighbor() -> Neighbor {
    Neighbor { remote: [192, 0, 2, 2].into(), interface: InterfaceName::from("eth0") }
}

fn wish() -> Wish {
    Wish { settings: Settings::DEFAULT, minimum_ttl: mult(254) }
}

fn wanting(paths: impl IntoIterator<Item = Path>) -> Wanted {
    Wanted { sessions: paths.into_iter().map(|path| (path, wish())).collect(), ..Wanted::default() }
}

fn permitting(neighbor: Neighbor) -> Wanted {
    Wanted { permitted: [(neighbor, Settings::DEFAULT)].into(), ..Wanted::default() }
}

/// The sessions with their clock.
struct World {
    sessions: Sessions,
    now: Instant,
}

impl World {
    fn new(wanted: Wanted) -> Self {
        let mut world = Self { sessions: Sessions::new(1), now: Instant::now() };
        world.step(Event::Want(wanted));
        world
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.sessions.step(self.now, event)
    }

    fn run(&mut self, duration: Duration) -> Vec<Action> {
        let until = self.now + duration;
        let mut actions = Vec::new();
        while let Some(deadline) = self.sessions.deadline().filter(|deadline| *deadline <= until) {
            self.now = deadline;
            actions.extend(self.step(Event::Tick));
        }
        self.now = until;
        actions
    }

    fn hears_from(&mut self, path: Path, packet: Packet) -> Vec<Action> {
        self.step(Event::Received { arrival: Arrival { path, ttl: 255 }, packet: Ok(packet) })
    }

    /// The neighbour of a session says something to it.
    fn hears(&mut self, state: State) -> Vec<Action> {
        let packet = Packet { your_discriminator: Some(self.discriminator()), ..says(state) };
        self.hears_from(path(), packet)
    }

    /// The number of the session at `path()`.
    fn discriminator(&self) -> NonZeroU32 {
        self.sessions.status(&path()).unwrap().local_discriminator
    }

    fn state(&self) -> Option<State> {
        self.sessions.status(&path()).map(|status| status.state)
    }

    fn bring_up(&mut self) {
        for state in [State::Down, State::Init, State::Up] {
            let your_discriminator = Some(self.discriminator()).filter(|_| state != State::Down);
            self.hears_from(path(), Packet { your_discriminator, ..says(state) });
        }
        assert_eq!(self.state(), Some(State::Up));
    }
}

fn discards(actions: &[Action]) -> Vec<Discard> {
    let reasons = actions.iter().filter_map(|action| match action {
        Action::Discarded { reason, .. } => Some(*reason),
        _ => None,
    });
    reasons.collect()
}

fn packets(actions: &[Action]) -> usize {
    states(actions).len()
}

/// What each packet says.
fn states(actions: &[Action]) -> Vec<State> {
    let packets = actions.iter().filter_map(|action| match action {
        Action::Send { packet, .. } => Some(packet.state),
        _ => None,
    });
    packets.collect()
}

#[test]
fn n_082_each_packet_that_must_be_discarded_is_counted_and_changes_nothing() {
    use DecodeError as Wrong;
    let elsewhere = Path { interface: Some(InterfaceName::from("eth1")), ..path() };
    let stranger = Path { remote: [192, 0, 2, 66].into(), ..path() };
    let nobodys = Packet { your_discriminator: None, ..says(State::Down) };
    let mut world = World::new(wanting([path()]));
    world.bring_up();
    let mine = world.discriminator();
    let good = Packet { your_discriminator: Some(mine), ..says(State::Down) };
    let unknown = Packet { your_discriminator: NonZeroU32::new(mine.get() ^ 1), ..good };
    let table = [
        (path(), 254, Ok(good), Discard::Ttl),
        (path(), 255, Err(Wrong::Truncated(23)), Discard::Truncated),
        (path(), 255, Err(Wrong::Version(0)), Discard::Version),
        (path(), 255, Err(Wrong::Length { found: 0, needed: 24 }), Discard::Length),
        (path(), 255, Err(Wrong::Overrun { length: 25, available: 24 }), Discard::Overrun),
        (path(), 255, Err(Wrong::DetectMult), Discard::DetectMult),
        (path(), 255, Err(Wrong::Multipoint), Discard::Multipoint),
        (path(), 255, Err(Wrong::PollAndFinal), Discard::PollAndFinal),
        (path(), 255, Err(Wrong::MyDiscriminator), Discard::MyDiscriminator),
        (path(), 255, Err(Wrong::YourDiscriminator(State::Up)), Discard::YourDiscriminator),
        (path(), 255, Err(Wrong::Authenticated), Discard::Authenticated),
        (path(), 255, Ok(unknown), Discard::UnknownDiscriminator),
        (elsewhere.clone(), 255, Ok(good), Discard::WrongInterface),
        (multihop(), 255, Ok(good), Discard::WrongInterface),
        (stranger, 255, Ok(nobodys), Discard::NoSession),
        (elsewhere, 255, Ok(nobodys), Discard::NoSession),
        (multihop(), 255, Ok(nobodys), Discard::NoSession),
    ];

    for (path, ttl, packet, reason) in table {
        let before = (world.sessions.status(&super::sessions::path()), world.sessions.statuses().count());

        let actions = world.step(Event::Received { arrival: Arrival { path: path.clone(), ttl }, packet });

        assert_eq!(actions, [Action::Discarded { path, reason }]);
        let after = (world.sessions.status(&super::sessions::path()), world.sessions.statuses().count());
        assert_eq!(after, before, "{reason:?}");
    }
}

#[test]
fn n_083_one_hop_is_exactly_one_hop_and_several_are_as_many_as_are_allowed() {
    let down = Packet { your_discriminator: None, ..says(State::Down) };
    for (path, ttl, is_taken) in [
        (path(), 255, true),
        (path(), 254, false),
        (path(), 1, false),
        (multihop(), 255, true),
        (multihop(), 254, true),
        (multihop(), 253, false),
        (multihop(), 1, false),
    ] {
        let mut world = World::new(wanting([path.clone()]));

        let actions = world.step(Event::Received { arrival: Arrival { path: path.clone(), ttl }, packet: Ok(down) });

        let expected = if is_taken { State::Init } else { State::Down };
        assert_eq!(world.sessions.status(&path).unwrap().state, expected, "TTL {ttl} by {path:?}");
        assert_eq!(discards(&actions), Vec::from_iter((!is_taken).then_some(Discard::Ttl)));
    }
}

#[test]
fn a_packet_goes_to_the_session_it_names_whatever_address_it_comes_from() {
    let mut world = World::new(wanting([path()]));
    world.bring_up();
    let renumbered = Path { remote: [192, 0, 2, 77].into(), ..path() };
    let packet = Packet { your_discriminator: Some(world.discriminator()), ..says(State::Down) };

    world.hears_from(renumbered, packet);

    assert_eq!(world.state(), Some(State::Down));
}

#[test]
fn sessions_that_differ_in_any_end_or_interface_are_different_sessions() {
    let paths = [
        path(),
        multihop(),
        Path { local: [192, 0, 2, 9].into(), ..path() },
        Path { remote: [192, 0, 2, 9].into(), ..path() },
        Path { interface: Some(InterfaceName::from("eth1")), ..path() },
    ];
    let mut world = World::new(wanting(paths.clone()));
    let down = Packet { your_discriminator: None, ..says(State::Down) };

    world.hears_from(path(), down);

    for path in paths {
        let expected = if path == super::sessions::path() { State::Init } else { State::Down };
        assert_eq!(world.sessions.status(&path).unwrap().state, expected);
    }
    let numbers: BTreeSet<_> = world.sessions.statuses().map(|(_, status)| status.local_discriminator).collect();
    assert_eq!(numbers.len(), 5, "each has a discriminator of its own");
}

#[test]
fn a_permitted_neighbor_opens_a_session_and_has_it_for_as_long_as_it_speaks() {
    let mut world = World::new(permitting(neighbor()));
    assert_eq!(world.sessions.deadline(), None);
    let down = Packet { your_discriminator: None, ..says(State::Down) };

    let actions = world.hears_from(path(), down);
    assert_eq!(actions[0], Action::Opened { path: path() });
    assert_eq!(packets(&actions), 1);
    world.bring_up();
    let actions = world.run(3 * INTERVAL);

    assert_eq!(actions.last(), Some(&Action::Closed { path: path() }));
    assert_eq!(world.sessions.statuses().count(), 0);
    assert_eq!(world.sessions.deadline(), None);
}

#[test]
fn a_neighbor_that_switches_its_session_off_has_none_any_more_and_is_told_that_it_was_understood() {
    let mut world = World::new(permitting(neighbor()));
    world.hears_from(path(), Packet { your_discriminator: None, ..says(State::Down) });
    world.bring_up();

    let actions = world.hears(State::AdminDown);

    assert_eq!(states(&actions), [State::Down]);
    assert_eq!(actions.last(), Some(&Action::Closed { path: path() }));
    // What else it sends on its way out opens nothing.
    let again = Packet { your_discriminator: None, ..says(State::AdminDown) };
    assert_eq!(discards(&world.hears_from(path(), again)), [Discard::NoSession]);
}

#[test]
fn a_stranger_and_a_neighbor_that_is_switching_off_open_nothing() {
    let mut world = World::new(permitting(neighbor()));
    let other = Path { remote: [192, 0, 2, 3].into(), ..path() };
    let elsewhere = Path { interface: Some(InterfaceName::from("eth1")), ..path() };
    let down = Packet { your_discriminator: None, ..says(State::Down) };

    for (path, packet) in
        [(other, down), (elsewhere, down), (multihop(), down), (path(), Packet { state: State::AdminDown, ..down })]
    {
        assert_eq!(discards(&world.hears_from(path, packet)), [Discard::NoSession]);
    }
    assert_eq!(world.sessions.statuses().count(), 0);
}

#[test]
fn a_neighbor_that_is_permitted_no_more_is_told_so() {
    let mut world = World::new(permitting(neighbor()));
    world.hears_from(path(), Packet { your_discriminator: None, ..says(State::Down) });
    world.bring_up();

    world.step(Event::Want(Wanted::default()));
    assert_eq!(world.state(), Some(State::AdminDown));
    world.hears(State::Down);
    world.run(3 * INTERVAL);

    assert_eq!(world.state(), None);
}

#[test]
fn a_neighbor_that_is_permitted_again_goes_on_with_the_session_it_had() {
    let mut world = World::new(permitting(neighbor()));
    world.hears_from(path(), Packet { your_discriminator: None, ..says(State::Down) });
    world.bring_up();
    let before = world.discriminator();
    for _ in 0..2 {
        world.step(Event::Want(Wanted::default()));
        world.hears(State::Down);
    }

    world.step(Event::Want(permitting(neighbor())));
    assert_eq!(world.state(), Some(State::Down));
    world.bring_up();

    assert_eq!(world.discriminator(), before);
    // What was wanted here is not the neighbour's, who may want it no more either.
    let mut world = World::new(wanting([path()]));
    world.bring_up();
    for _ in 0..2 {
        world.step(Event::Want(permitting(neighbor())));
        assert_eq!(world.state(), Some(State::AdminDown));
    }
}

#[test]
fn a_session_that_a_neighbor_has_opened_stays_when_it_is_wanted_too() {
    let mut world = World::new(permitting(neighbor()));
    world.hears_from(path(), Packet { your_discriminator: None, ..says(State::Down) });
    world.bring_up();

    let wanted = Wanted { permitted: permitting(neighbor()).permitted, ..wanting([path()]) };
    for _ in 0..2 {
        let actions = world.step(Event::Want(wanted.clone()));
        assert_eq!(world.state(), Some(State::Up));
        assert!(
            actions.contains(&Action::Standing { paths: vec![path()] }),
            "whoever wants it must hear that it is up"
        );
    }
    world.run(SLOW_INTERVAL);

    assert_eq!(world.state(), Some(State::Down), "and it goes on when the neighbour is silent");
}

#[test]
fn a_session_that_was_wanted_for_a_while_stays_with_the_neighbor_that_had_opened_it() {
    let mut world = World::new(permitting(neighbor()));
    world.hears_from(path(), Packet { your_discriminator: None, ..says(State::Down) });
    world.bring_up();
    let wanted = Wanted { permitted: permitting(neighbor()).permitted, ..wanting([path()]) };
    world.step(Event::Want(wanted.clone()));

    world.step(Event::Want(permitting(neighbor())));
    assert_eq!(world.state(), Some(State::Up));

    // Once that one has had enough nobody has it.
    world.step(Event::Want(wanted));
    world.hears(State::AdminDown);
    world.bring_up();
    world.step(Event::Want(permitting(neighbor())));
    assert_eq!(world.state(), Some(State::AdminDown));
}

#[test]
fn a_session_that_is_wanted_no_more_is_closed_once_the_neighbor_knows() {
    let mut world = World::new(wanting([path()]));
    world.bring_up();

    world.step(Event::Want(Wanted::default()));
    assert_eq!(world.state(), Some(State::AdminDown));
    world.hears(State::Down);
    let actions = world.run(3 * INTERVAL);

    assert_eq!(actions.last(), Some(&Action::Closed { path: path() }));
}

#[test]
fn a_session_that_never_came_up_is_closed_with_a_packet_that_says_so_when_it_is_wanted_no_more() {
    // Of Init the other end may have made Up.
    for said in [None, Some(State::AdminDown)] {
        let mut world = World::new(wanting([path()]));
        if let Some(said) = said {
            world.hears(said);
        }

        let actions = [world.step(Event::Want(Wanted::default())), world.run(SLOW_INTERVAL)].concat();

        assert_eq!(states(&actions), [State::AdminDown]);
        assert_eq!(actions.last(), Some(&Action::Closed { path: path() }));
    }
}

/// By its discriminator it would mean the session that was switched off, of which nobody knows any more.
#[test]
fn a_neighbor_that_switched_off_is_spoken_to_anew() {
    let mut world = World::new(wanting([path()]));
    world.bring_up();
    let after = world.hears(State::AdminDown);
    let later = world.run(SLOW_INTERVAL);

    let sent = [after, later].concat();
    let sent = sent.iter().filter_map(|action| match action {
        Action::Send { packet, .. } => Some((packet.state, packet.your_discriminator)),
        _ => None,
    });
    assert_eq!(sent.collect::<Vec<_>>(), [(State::Down, None); 2]);
}

#[test]
fn a_session_that_is_wanted_again_before_it_is_closed_goes_on() {
    let mut world = World::new(wanting([path()]));
    world.bring_up();
    let before = world.discriminator();
    world.step(Event::Want(Wanted::default()));

    world.step(Event::Want(wanting([path()])));

    assert_eq!(world.state(), Some(State::Down));
    assert_eq!(world.discriminator(), before);
    world.bring_up();
}

#[test]
fn saying_again_what_is_wanted_tells_what_is_up_and_does_nothing() {
    let mut world = World::new(wanting([path(), multihop()]));
    world.bring_up();

    let actions = world.step(Event::Want(wanting([path(), multihop()])));

    assert_eq!(actions, [Action::Standing { paths: vec![path()] }]);
}

#[test]
fn there_are_never_more_sessions_than_can_be_and_whoever_waits_gets_the_next_place() {
    let number = |number: usize| {
        let [.., high, low] = (number as u32).to_be_bytes();
        Path { remote: [10, 0, high, low].into(), ..path() }
    };
    let mut world = World { sessions: Sessions::new(1), now: Instant::now() };
    let wanted = Wanted { permitted: permitting(neighbor()).permitted, ..wanting((0..=MAX_SESSIONS).map(number)) };

    let actions = world.step(Event::Want(wanted.clone()));
    let refused: Vec<_> = actions.iter().filter(|action| matches!(action, Action::Refused { .. })).collect();
    assert_eq!(refused, [&Action::Refused { path: number(MAX_SESSIONS) }]);
    assert_eq!(world.step(Event::Want(wanted.clone())), [], "told once");
    let down = Packet { your_discriminator: None, ..says(State::Down) };
    assert_eq!(discards(&world.hears_from(path(), down)), [Discard::TooManySessions]);
    let sessions = (1..=MAX_SESSIONS).map(|index| (number(index), wish())).collect();
    let actions = world.step(Event::Want(Wanted { sessions, ..wanted }));

    assert!(actions.contains(&Action::Closed { path: number(0) }));
    assert!(actions.contains(&Action::Opened { path: number(MAX_SESSIONS) }));
    assert_eq!(world.sessions.statuses().count(), MAX_SESSIONS);
}

#[test]
fn shutdown_tells_every_neighbor_and_finishes_when_all_had_time_to_know() {
    let mut world = World::new(wanting([path(), multihop()]));
    world.bring_up();

    let actions = world.step(Event::Shutdown);
    assert!(packets(&actions) >= 1 && !actions.contains(&Action::Finished));
    let actions = world.run(3 * SLOW_INTERVAL);

    assert_eq!(actions.last(), Some(&Action::Finished));
    assert_eq!(actions.iter().filter(|action| **action == Action::Finished).count(), 1);
    assert_eq!(world.step(Event::Want(wanting([path()]))), []);
    assert_eq!(world.sessions.deadline(), None);
}

#[test]
fn sessions_that_were_never_heard_finish_at_once() {
    let mut world = World::new(wanting([path()]));

    assert_eq!(world.step(Event::Shutdown).last(), Some(&Action::Finished));
}

#[test]
fn every_reason_to_discard_is_listed_once() {
    assert_eq!(BTreeSet::from(Discard::ALL).len(), Discard::ALL.len());
}

#[test]
fn m_139_the_same_two_addresses_in_two_vrfs_are_two_sessions_and_neither_takes_what_is_for_the_other() {
    let in_vrf = |vrf: Option<&str>| Path { vrf: vrf.map(InterfaceName::from), ..multihop() };
    let mut world = World::new(wanting([in_vrf(Some("red")), in_vrf(Some("blue"))]));
    assert_eq!(world.sessions.statuses().count(), 2);

    let number = world.sessions.status(&in_vrf(Some("red"))).unwrap().local_discriminator;
    for (vrf, is_taken) in [(Some("blue"), false), (None, false), (Some("red"), true)] {
        let to_red = Packet { your_discriminator: Some(number), ..says(State::Down) };
        let actions = world.hears_from(in_vrf(vrf), to_red);
        let expected = if is_taken { vec![] } else { vec![Discard::WrongInterface] };
        assert_eq!(discards(&actions), expected, "{vrf:?}");
    }
    // One that names no session belongs to that of its VRF, if there is one.
    for (vrf, expected) in [(None, vec![Discard::NoSession]), (Some("blue"), vec![])] {
        let nameless = Packet { your_discriminator: None, ..says(State::Down) };
        let actions = world.hears_from(in_vrf(vrf), nameless);
        assert_eq!(discards(&actions), expected, "{vrf:?}");
    }
}

/// Sessions with so many neighbours, settled, which go on speaking every 50 ms without jitter.
fn with_neighbors(count: u8, settings: Settings) -> (World, Vec<Path>) {
    let paths: Vec<Path> =
        (2..).take(count.into()).map(|last| Path { remote: [192, 0, 2, last].into(), ..path() }).collect();
    let wishes = paths.iter().map(|path| (path.clone(), Wish { settings, ..wish() }));
    let mut world = World::new(Wanted { sessions: wishes.collect(), ..Wanted::default() });
    for path in &paths {
        // None of them begins with the others.
        world.run(3 * MS);
        for said in [says(State::Init), Packet { sequence: Sequence::Final, ..says(State::Up) }] {
            let your_discriminator = world.sessions.status(path).map(|status| status.local_discriminator);
            world.hears_from(path.clone(), Packet { your_discriminator, ..said });
        }
    }
    (world, paths)
}

#[test]
fn sessions_send_together_as_far_as_jitter_lets_them() {
    let (mut world, paths) = with_neighbors(4, Settings::DEFAULT);
    let mut sent: BTreeMap<Path, Vec<Instant>> = BTreeMap::new();
    let mut wakes = 0;
    let begin = world.now;
    while world.now < begin + 10 * SLOW_INTERVAL {
        world.now = world.sessions.deadline().unwrap();
        wakes += 1;
        for action in world.step(Event::Tick) {
            let Action::Send { path, .. } = action else { panic!("{action:?}") };
            sent.entry(path).or_default().push(world.now);
        }
        for path in &paths {
            let your_discriminator = world.sessions.status(path).map(|status| status.local_discriminator);
            world.hears_from(path.clone(), Packet { your_discriminator, ..says(State::Up) });
        }
    }

    assert_eq!(sent.len(), 4);
    for times in sent.values() {
        let gaps: Vec<Duration> = times.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(gaps.iter().all(|gap| (37 * MS..=50 * MS).contains(gap)), "{gaps:?}");
        // Jitter stays: no two gaps need be alike.
        assert!(gaps.iter().collect::<BTreeSet<_>>().len() > gaps.len() / 2);
    }
    // Each for itself would be 4 times as many.
    assert!(wakes < 10 * 1000 / 37 + 10, "{wakes}");
}

#[test]
fn a_session_of_another_pace_is_not_hurried() {
    let (mut world, paths) = with_neighbors(2, Settings::DEFAULT);
    let slow = Settings { desired_min_tx_interval: Interval::nearest(SLOW_INTERVAL), ..Settings::DEFAULT };
    let wishes = [(paths[0].clone(), wish()), (paths[1].clone(), Wish { settings: slow, ..wish() })];
    world.step(Event::Want(Wanted { sessions: wishes.into(), ..Wanted::default() }));
    let mut times = Vec::new();
    for turn in 0..1000 {
        for path in &paths {
            let your_discriminator = world.sessions.status(path).map(|status| status.local_discriminator);
            // The second is told of its new pace, and knows it.
            let sequence = if turn == 5 { Sequence::Final } else { Sequence::None };
            world.hears_from(path.clone(), Packet { your_discriminator, sequence, ..says(State::Up) });
        }
        let sent = world.run(10 * MS);
        let of_slow = |action: &Action| matches!(action, Action::Send { path, .. } if *path == paths[1]);
        times.extend(sent.iter().any(of_slow).then_some(turn));
    }

    let late: Vec<i32> = times.windows(2).filter(|two| two[0] > 5).map(|two| two[1] - two[0]).collect();
    assert!(late.len() > 5 && late.iter().all(|turns| (74..=101).contains(turns)), "{late:?}");
}

#[test]
fn packets_lie_unread_only_while_no_session_waits_for_one() {
    let (mut world, paths) = with_neighbors(4, Settings::DEFAULT);
    let unread = |world: &World| world.sessions.unread_until(world.now);
    assert!(unread(&world).is_some());
    assert_eq!(unread(&world), world.sessions.deadline());

    // A change is told by a Poll, which somebody answers.
    let faster = Wish { settings: Settings::FAST, ..wish() };
    let wishes = paths.iter().map(|path| (path.clone(), faster)).collect();
    world.step(Event::Want(Wanted { sessions: wishes, ..Wanted::default() }));
    assert_eq!(unread(&world), None);

    let (mut world, _) = with_neighbors(4, Settings::DEFAULT);
    world.hears(State::Down);
    assert_eq!(unread(&world), None);

    let (mut world, _) = with_neighbors(4, Settings::DEFAULT);
    world.step(Event::Shutdown);
    assert_eq!(unread(&world), None);

    // Two seldom speak, and are not to be kept waiting for each other.
    let seldom = Settings { desired_min_tx_interval: Interval::nearest(SLOW_INTERVAL), ..Settings::DEFAULT };
    let (mut world, _) = with_neighbors(2, seldom);
    world.run(MS);
    assert!(world.sessions.deadline().unwrap() > world.now + 50 * MS);
    assert_eq!(unread(&world), None);

    // More than these fill a socket.
    assert!(unread(&with_neighbors(16, Settings::DEFAULT).0).is_some());
    assert_eq!(unread(&with_neighbors(17, Settings::DEFAULT).0), None);
}

#[test]
fn a_packet_that_could_be_the_last_in_time_is_not_left_unread() {
    let (mut world, paths) =
        with_neighbors(1, Settings { desired_min_tx_interval: Interval::nearest(45 * MS), ..Settings::DEFAULT });
    let your_discriminator = Some(world.discriminator());
    let hears = |world: &mut World, detect_mult, interval_us| {
        let said =
            Packet { detect_mult: mult(detect_mult), desired_min_tx_interval_us: interval_us, ..says(State::Up) };
        world.hears_from(paths[0].clone(), Packet { your_discriminator, ..said });
        world.sessions.unread_until(world.now).map(|until| until - world.now)
    };

    // Its next one may be the last that is not too late.
    assert_eq!(hears(&mut world, 1, 50_000), None);
    assert!(hears(&mut world, 2, 50_000).is_some_and(|time| time <= 50 * MS));
    // Ours goes out within 50 ms; of the neighbour's three that may be missing two have come by 20 ms.
    world.step(Event::Want(wanting_fast_answers(&paths)));
    assert_eq!(hears(&mut world, 3, 10_000), None, "a Poll waits for its answer");
    let answer = Packet { sequence: Sequence::Final, ..says(State::Up) };
    world.hears_from(paths[0].clone(), Packet { your_discriminator, ..answer });
    assert_eq!(hears(&mut world, 3, 10_000), Some(20 * MS));
}

/// The sessions of 45 ms, with neighbours that may speak each 10 ms.
fn wanting_fast_answers(paths: &[Path]) -> Wanted {
    let settings = Settings {
        required_min_rx_interval: Interval::MIN,
        desired_min_tx_interval: Interval::nearest(45 * MS),
        ..Settings::DEFAULT
    };
    let wishes = paths.iter().map(|path| (path.clone(), Wish { settings, ..wish() }));
    Wanted { sessions: wishes.collect(), ..Wanted::default() }
}
