//! Two connections to one peer (RFC 4271 §6.8, RFC 6286 §2.3, RFC 4724 §4.2).

use proptest::prelude::*;
use rand::Rng;

use super::*;

const COLLISION: (u8, u8) = (6, 7);

/// An engine with a connection of ours and one of the peer's, both waiting for its OPEN.
fn both(neighbor: Neighbor) -> (Bench, Connection, Connection) {
    let mut bench = Bench::with(neighbor);
    let ours = bench.connect();
    let theirs = bench.accept(ends());
    assert_eq!(bench.status().state, State::OpenSent);
    (bench, ours, theirs)
}

#[test]
fn n_026_of_two_connections_that_of_the_higher_identifier_survives_and_the_other_gets_cease_7() {
    let (low, high) = ("192.0.2.1", "192.0.2.254");
    let table = [
        // Our identifier, theirs, their AS, whose connection stays.
        (high, low, THEIRS, "ours"),
        (low, high, THEIRS, "theirs"),
        // Numbers are compared, not texts.
        ("100.0.0.0", "20.0.0.0", THEIRS, "ours"),
        // Of equal ones the higher AS wins.
        (low, low, OURS + 1, "theirs"),
        (low, low, OURS - 1, "ours"),
    ];
    for (own, other, their_asn, stays) in table {
        for first_on_ours in [true, false] {
            let neighbor =
                Neighbor { identifier: identifier(own), peer_asn: PeerAsn::Fixed(asn(their_asn)), ..neighbor() };
            let open = Open { identifier: identifier(other), asn: asn(their_asn), ..open() };
            let (mut bench, ours, theirs) = both(neighbor);

            let order = if first_on_ours { [ours, theirs] } else { [theirs, ours] };
            for connection in order {
                bench.say(connection, Message::Open(open.clone()));
            }

            let (kept, closed) = if stays == "ours" { (ours, theirs) } else { (theirs, ours) };
            assert!(bench.is_open(kept), "{own} {other} {first_on_ours}");
            let farewell = bench.farewell(closed).unwrap();
            assert_eq!((farewell.code, farewell.subcode), COLLISION);
            bench.say(kept, Message::Keepalive);
            assert_eq!(bench.status().state, State::Established);
            assert_eq!(bench.status().flaps, 0);
        }
    }
}

#[test]
fn n_026_an_established_connection_wins_over_a_new_one() {
    for own in ["192.0.2.1", "192.0.2.255"] {
        let (mut bench, first) = Bench::up(Neighbor { identifier: identifier(own), ..neighbor() }, open());

        let second = bench.accept(ends());
        bench.say(second, Message::Open(open()));

        let farewell = bench.farewell(second).unwrap();
        assert_eq!((farewell.code, farewell.subcode), COLLISION);
        assert!(bench.is_open(first));
        assert_eq!(bench.status().state, State::Established);
    }
}

#[test]
fn n_027_a_new_connection_of_a_peer_that_restarts_gracefully_replaces_the_old_and_gets_all_routes() {
    let neighbor = Neighbor { graceful_restart: restarts(), ..neighbor() };
    let (mut bench, old) = Bench::up(neighbor, restarting_open(true));
    bench.announce("198.51.100.1/32", part());
    bench.pass(COALESCE);
    assert_eq!(bench.hear(old), [announces(&["198.51.100.1/32"])]);

    let new = bench.accept(ends());
    assert!(bench.is_open(old));
    bench.greet(new, restarting_open(true));

    // A NOTIFICATION would be for the peer's earlier life, which cannot read it.
    assert_eq!(bench.farewell(old), None);
    let said = bench.hear(new);
    assert_eq!(said[2..], [announces(&["198.51.100.1/32"]), end_of_rib(Family::Ipv4Unicast)]);
    assert_eq!(bench.status().state, State::Established);
    assert_eq!(bench.status().last_close, Some(Closing::Lost(Loss::Replaced)));
}

#[test]
fn a_peer_that_connects_again_before_it_is_established_gives_up_its_earlier_connection() {
    let mut bench = Bench::with(Neighbor { passive: true, ..neighbor() });
    let first = bench.accept(ends());

    let second = bench.accept(ends());

    assert!(!bench.is_open(first));
    bench.greet(second, open());
    assert_eq!(bench.status().state, State::Established);
}

#[test]
fn an_attempt_of_ours_is_given_up_once_the_peer_has_said_who_it_is() {
    let mut bench = Bench::with(neighbor());
    let theirs = bench.accept(ends());
    assert_eq!(bench.attempts.len(), 1);

    bench.say(theirs, Message::Open(open()));

    assert!(bench.attempts.is_empty());
}

#[derive(Debug)]
enum Delivery {
    /// An attempt of an end arrives at the other.
    Accept {
        link: usize,
    },
    /// The end that has made it knows.
    Stand {
        link: usize,
    },
    Bytes {
        link: usize,
        to: usize,
        bytes: Vec<u8>,
    },
    Closed {
        link: usize,
        to: usize,
    },
}

/// One TCP connection.
#[derive(Debug)]
struct Link {
    ends: [Option<Connection>; 2],
    cutters: [Cutter; 2],
    /// Nothing sent to an end overtakes what was sent before.
    latest: [Instant; 2],
    maker: usize,
    is_closed: [bool; 2],
}

/// Two engines that know each other, and a network that takes its time.
struct Pair {
    now: Instant,
    engines: [Peers; 2],
    agenda: BTreeMap<(Instant, usize), Delivery>,
    entries: usize,
    links: Vec<Link>,
    delays: SmallRng,
    longest: u64,
}

const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

impl Pair {
    fn new(seed: u64, longest: u64, gr: bool, identifiers: [&str; 2]) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            now,
            engines: [Peers::new(now, seed), Peers::new(now, seed + 1)],
            agenda: BTreeMap::new(),
            entries: 0,
            links: Vec::new(),
            delays: SmallRng::seed_from_u64(seed),
            longest,
        };
        for own in [0, 1] {
            let numbers = [asn(64500), asn(64501)];
            let facing = Neighbor {
                remote: Remote::Address { address: ip(ADDRESSES[1 - own]), port: port() },
                local_asn: numbers[own],
                peer_asn: PeerAsn::Fixed(numbers[1 - own]),
                identifier: identifier(identifiers[own]),
                graceful_restart: restarts().filter(|_| gr),
                ..neighbor()
            };
            // Somebody else is waited for, so that both listen.
            let waits = Neighbor {
                remote: Remote::Address { address: ip("192.0.2.200"), port: port() },
                passive: true,
                ..neighbor()
            };
            let neighbors = [("facing", facing), ("waits", waits)];
            let neighbors = neighbors.into_iter().map(|(name, neighbor)| (name.into(), Arc::new(neighbor))).collect();
            pair.step(own, Event::Want(Wanted { neighbors, is_complete: true, ..Wanted::default() }));
        }
        pair
    }

    fn plan(&mut self, link: usize, to: usize, delivery: Delivery) {
        let delay = MS * u32::try_from(self.delays.random_range(0..=self.longest)).unwrap();
        let latest = &mut self.links[link].latest[to];
        *latest = (*latest).max(self.now + delay);
        self.entries += 1;
        self.agenda.insert((*latest, self.entries), delivery);
    }

    fn end_of(&self, engine: usize, connection: Connection) -> Option<usize> {
        self.links.iter().position(|link| link.ends[engine] == Some(connection))
    }

    fn step(&mut self, engine: usize, event: Event) {
        for action in self.engines[engine].step(self.now, event) {
            match action {
                Action::Connect { connection, .. } => {
                    let mut ends = [None; 2];
                    ends[engine] = Some(connection);
                    let link = self.links.len();
                    self.links.push(Link {
                        ends,
                        cutters: [Cutter::default(), Cutter::default()],
                        latest: [self.now; 2],
                        maker: engine,
                        is_closed: [false; 2],
                    });
                    self.plan(link, 1 - engine, Delivery::Accept { link });
                }
                Action::Send { connection, bytes } => {
                    let link = self.end_of(engine, connection).unwrap();
                    self.plan(link, 1 - engine, Delivery::Bytes { link, to: 1 - engine, bytes });
                    self.step(engine, Event::Written { connection });
                }
                Action::Close { connection } | Action::Reject { connection, .. } => {
                    let link = self.end_of(engine, connection).unwrap();
                    if !std::mem::replace(&mut self.links[link].is_closed[engine], true) {
                        self.plan(link, 1 - engine, Delivery::Closed { link, to: 1 - engine });
                    }
                }
                _ => {}
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Accept { link } => {
                let maker = self.links[link].maker;
                let connection = self.engines[1 - maker].accept();
                self.links[link].ends[1 - maker] = Some(connection);
                self.plan(link, maker, Delivery::Stand { link });
                self.step(1 - maker, Event::Accepted { connection, vrf: None, ends: ends_of(1 - maker) });
            }
            Delivery::Stand { link } => {
                let maker = self.links[link].maker;
                if let (Some(connection), false) = (self.links[link].ends[maker], self.links[link].is_closed[maker]) {
                    self.step(maker, Event::Connected { connection, ends: ends_of(maker) });
                }
            }
            Delivery::Bytes { link, to, bytes } => {
                let mut rest = &bytes[..];
                while !self.links[link].is_closed[to] {
                    let Some(frame) = self.links[link].cutters[to].feed(&mut rest).unwrap() else { break };
                    let (message, connection) = (Message::decode(frame), self.links[link].ends[to].unwrap());
                    self.step(to, Event::Received { connection, message });
                }
            }
            Delivery::Closed { link, to } => {
                if let (Some(connection), false) = (self.links[link].ends[to], self.links[link].is_closed[to]) {
                    self.links[link].is_closed[to] = true;
                    self.step(to, Event::Ended { connection, loss: Loss::Closed });
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = [0, 1].into_iter().filter_map(|engine| Some((self.engines[engine].deadline()?, engine))).min();
            let arrival = self.agenda.keys().next().map(|(at, _)| *at);
            match (due, arrival) {
                (due, Some(at)) if at <= end && due.is_none_or(|(due, _)| at <= due) => {
                    self.now = at;
                    let (_, delivery) = self.agenda.pop_first().unwrap();
                    self.deliver(delivery);
                }
                (Some((due, engine)), _) if due <= end => {
                    self.now = self.now.max(due);
                    self.step(engine, Event::Tick);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn standing(&self) -> usize {
        self.links.iter().filter(|link| link.is_closed == [false; 2]).count()
    }

    fn flaps(&self) -> Vec<(State, u32)> {
        let facing = |engine: &Peers| engine.statuses().find(|status| status.peer.as_str() == "facing").unwrap();
        self.engines.iter().map(|engine| (facing(engine).state, facing(engine).flaps)).collect()
    }
}

fn ends_of(engine: usize) -> Ends {
    Ends {
        local: ip(ADDRESSES[engine]),
        remote: ip(ADDRESSES[1 - engine]),
        interface: Some("eth1".into()),
        addresses: vec![prefix("192.0.2.0/24")],
    }
}

proptest! {
    #[test]
    fn n_026_two_engines_that_face_each_other_end_with_one_connection(
        seed: u64,
        longest in prop_oneof![Just(0u64), 1..50u64, 50..400u64],
        gr: bool,
        which in 0..3usize,
    ) {
        let identifiers = [["192.0.2.1", "192.0.2.2"], ["192.0.2.2", "192.0.2.1"], ["192.0.2.9", "192.0.2.9"]][which];
        let mut pair = Pair::new(seed >> 1, longest, gr, identifiers);

        pair.pass(60 * SECOND);

        prop_assert_eq!(pair.standing(), 1);
        let flaps = pair.flaps();
        prop_assert!(flaps.iter().all(|(state, _)| *state == State::Established), "{:?}", flaps);
        pair.pass(300 * SECOND);
        prop_assert_eq!(pair.standing(), 1);
        prop_assert_eq!(pair.flaps(), flaps);
    }
}
