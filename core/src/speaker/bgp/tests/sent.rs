//! What a peer is told: always the difference, and nothing twice (RFC 4271 §9.2, RFC 2918, 7313).

use proptest::prelude::*;

use super::*;

const ONE: &str = "198.51.100.1/32";
const TWO: &str = "198.51.100.2/32";

fn med(value: u32) -> Part {
    Part { multi_exit_disc: Some(value), ..part() }
}

fn over_ipv6() -> (Neighbor, Ends) {
    let neighbor = Neighbor {
        remote: Remote::Address { address: ip("2001:db8::fe"), port: port() },
        families: Family::ALL.into(),
        ..neighbor()
    };
    let ends = Ends {
        local: ip("2001:db8::1"),
        remote: ip("2001:db8::fe"),
        interface: Some("eth1".into()),
        addresses: vec![prefix("2001:db8::1/64")],
    };
    (neighbor, ends)
}

#[test]
fn n_044_ipv4_by_an_ipv6_next_hop_needs_the_peers_word_or_is_withheld_with_the_reason() {
    for can in [false, true] {
        let (neighbor, ends) = over_ipv6();
        let mut bench = Bench::with(neighbor);
        let (_, connection, _) = bench.attempts.pop().unwrap();
        bench.step(Event::Connected { connection, ends });
        let mut open = open();
        if can {
            open.capabilities.extended_next_hop =
                [ExtendedNextHop { family: Family::Ipv4Unicast, next_hop: Family::Ipv6Unicast }].into();
        }
        bench.greet(connection, open);
        bench.listen(connection);

        bench.announce(ONE, part());
        bench.pass(2 * SECOND);

        let heard = bench.listen(connection);
        if can {
            // AFI 1, SAFI 1, 16 octets: 2001:db8::1.
            let reach = &only_attributes(&heard)[&MP_REACH_NLRI];
            assert_eq!(reach[..8], [0, 1, 1, 16, 0x20, 0x01, 0x0d, 0xb8]);
            assert!(bench.current().withheld.is_empty());
        } else {
            assert!(heard.is_empty());
            assert_eq!(bench.current().withheld, [(Withheld::NoNextHop, 1)].into());
        }
    }
}

#[test]
fn n_042_the_next_hop_is_the_address_of_the_session_with_the_link_local_one_for_a_peer_on_the_link() {
    for (ttl, length) in [(Ttl::Direct, 32), (Ttl::MultiHop, 16)] {
        let (neighbor, mut ends) = over_ipv6();
        ends.addresses.insert(0, prefix("fe80::a/64"));
        let mut bench =
            Bench::with(Neighbor { transport: Transport { ttl, ..neighbor.transport.clone() }, ..neighbor });
        let (_, connection, _) = bench.attempts.pop().unwrap();
        bench.step(Event::Connected { connection, ends });
        bench.greet(connection, open());
        bench.listen(connection);

        bench.announce("2001:db8:1::1/128", part());
        bench.pass(COALESCE);

        let reach = &only_attributes(&bench.listen(connection))[&MP_REACH_NLRI];
        assert_eq!(reach[..8], [0, 2, 1, length, 0x20, 0x01, 0x0d, 0xb8]);
        if length == 32 {
            assert_eq!(reach[20..22], [0xfe, 0x80]);
        }
    }
}

#[test]
fn n_046_prepending_n_times_gives_n_and_one_as_numbers() {
    for (prepend, expected) in [(0, vec![1]), (3, vec![4]), (254, vec![255]), (255, vec![255, 1])] {
        let (mut bench, connection) = Bench::up(neighbor(), open());

        bench.announce(ONE, Part { prepend, ..part() });
        bench.pass(COALESCE);

        let path = only_attributes(&bench.listen(connection)).remove(&AS_PATH).unwrap();
        let mut rest = &path[..];
        let mut segments = Vec::new();
        while let [2, count, more @ ..] = rest {
            let (numbers, more) = more.split_at(4 * usize::from(*count));
            assert!(numbers.chunks(4).all(|number| number == [0, 0, 0xfb, 0xf4]));
            segments.push(*count);
            rest = more;
        }
        assert!(rest.is_empty());
        assert_eq!(segments, expected);
    }
}

#[test]
fn n_041_inside_one_as_the_path_is_empty_and_local_pref_is_there() {
    for (wish, expected) in [(None, 100u32), (Some(300), 300)] {
        let internal = Neighbor { peer_asn: PeerAsn::Internal, ..neighbor() };
        let (mut bench, connection) = Bench::up(internal, Open { asn: asn(OURS), ..open() });

        bench.announce(ONE, Part { local_pref: wish.and_then(NonZeroU32::new), prepend: 3, ..part() });
        bench.pass(COALESCE);

        let attributes = only_attributes(&bench.listen(connection));
        assert_eq!(attributes[&AS_PATH], []);
        assert_eq!(attributes[&LOCAL_PREF], expected.to_be_bytes());
    }
}

#[test]
fn n_045_communities_of_all_parts_are_united_sorted_and_sent_once() {
    let of = |pairs: &[(u16, u16)]| Part {
        communities: Arc::new(pairs.iter().map(|(high, low)| Community::Standard(*high, *low)).collect()),
        ..part()
    };
    let (mut bench, connection) = Bench::up(neighbor(), open());

    bench.want(|wanted| {
        let parts = vec![of(&[(64500, 2), (64500, 1)]), of(&[(64500, 1), (1, 1)])];
        wanted.routes.insert(prefix(ONE), Arc::new(Route { parts }));
    });
    bench.pass(COALESCE);

    let attributes = only_attributes(&bench.listen(connection));
    assert_eq!(attributes[&COMMUNITIES], [0, 1, 0, 1, 0xfb, 0xf4, 0, 1, 0xfb, 0xf4, 0, 2]);
}

#[test]
fn a_part_for_other_peers_does_not_count_and_a_route_without_parts_for_a_peer_is_not_for_it() {
    let only = |peer: &str, value| Part { peers: Arc::new([peer.into()].into()), ..med(value) };
    let (mut bench, connection) = Bench::up(neighbor(), open());

    bench.want(|wanted| {
        wanted.routes.insert(prefix(ONE), Arc::new(Route { parts: vec![only("other", 1), only("tor", 2)] }));
        wanted.routes.insert(prefix(TWO), Arc::new(Route { parts: vec![only("other", 1)] }));
    });
    bench.pass(COALESCE);

    let heard = bench.listen(connection);
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].message, announces(&[ONE]));
    assert_eq!(attributes(&heard[0].body)[&4], [0, 0, 0, 2]);
}

#[test]
fn n_051_what_has_not_changed_is_not_sent_again_and_a_change_is_one_replacement() {
    let (mut bench, connection) = Bench::up(neighbor(), open());
    bench.announce(ONE, med(1));
    bench.announce(TWO, med(1));
    bench.pass(SECOND);
    assert_eq!(bench.hear(connection), [announces(&[ONE, TWO])]);

    bench.want(|wanted| drop(wanted.routes.insert(prefix(ONE), route(med(1)))));
    bench.pass(SECOND);
    assert!(bench.hear(connection).is_empty());

    bench.announce(ONE, med(2));
    bench.pass(SECOND);
    let heard = bench.listen(connection);
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].message, announces(&[ONE]));
    assert_eq!(attributes(&heard[0].body)[&4], [0, 0, 0, 2]);
}

#[test]
fn n_052_what_comes_and_goes_within_the_coalescing_window_is_sent_in_its_final_state_only() {
    let (mut bench, connection) = Bench::up(neighbor(), open());
    bench.announce(ONE, part());
    bench.pass(COALESCE - MS);
    bench.withdraw(ONE);
    bench.pass(SECOND);
    assert!(bench.hear(connection).is_empty());

    bench.announce(ONE, med(1));
    bench.announce(ONE, med(2));
    bench.pass(COALESCE);
    assert_eq!(attributes(&bench.listen(connection)[0].body)[&4], [0, 0, 0, 2]);

    bench.withdraw(ONE);
    bench.announce(ONE, med(2));
    bench.pass(SECOND);
    assert!(bench.hear(connection).is_empty());
}

#[test]
fn changes_wait_no_longer_than_the_coalescing_window_however_many_follow() {
    let (mut bench, connection) = Bench::up(neighbor(), open());

    for last in 0..10 {
        bench.announce(&format!("198.51.100.{last}/32"), part());
        bench.pass(MS);
    }

    assert!(!bench.hear(connection).is_empty());
}

fn two_families(enhanced: bool) -> (Bench, Connection) {
    let ends = Ends { addresses: vec![prefix("192.0.2.1/24"), prefix("2001:db8::1/64")], ..ends() };
    let mut bench = Bench::with(Neighbor { families: Family::ALL.into(), ..neighbor() });
    let (_, connection, _) = bench.attempts.pop().unwrap();
    bench.step(Event::Connected { connection, ends });
    let mut open = open();
    open.capabilities.enhanced_route_refresh = enhanced;
    bench.greet(connection, open);
    bench.announce(ONE, part());
    bench.announce("2001:db8:1::1/128", part());
    bench.pass(SECOND);
    bench.hear(connection);
    (bench, connection)
}

#[test]
fn n_053_a_route_refresh_sends_exactly_that_family_again() {
    let (mut bench, connection) = two_families(false);

    for (family, text) in [(Family::Ipv4Unicast, ONE), (Family::Ipv6Unicast, "2001:db8:1::1/128")] {
        bench.say(connection, refresh(Refresh::Request, family));
        bench.pass(SECOND);

        assert_eq!(bench.hear(connection), [announces(&[text])]);
    }
}

#[test]
fn n_053_with_capability_70_it_is_framed() {
    let (mut bench, connection) = two_families(true);

    bench.say(connection, refresh(Refresh::Request, Family::Ipv4Unicast));
    bench.pass(SECOND);

    let begin = refresh(Refresh::Begin, Family::Ipv4Unicast);
    let end = refresh(Refresh::End, Family::Ipv4Unicast);
    assert_eq!(bench.hear(connection), [begin, announces(&[ONE]), end]);
}

#[test]
fn n_053_a_refresh_of_what_is_not_carried_or_asked_is_ignored() {
    let (mut bench, connection) = Bench::up(neighbor(), open());
    bench.announce(ONE, part());
    bench.pass(SECOND);
    bench.hear(connection);

    bench.say(connection, refresh(Refresh::Request, Family::Ipv6Unicast));
    bench.say(connection, Message::RouteRefresh { family: None, kind: Refresh::Request });
    bench.say(connection, refresh(Refresh::Begin, Family::Ipv4Unicast));
    bench.say(connection, refresh(Refresh::End, Family::Ipv4Unicast));
    bench.pass(SECOND);

    assert!(bench.hear(connection).is_empty());
    assert!(bench.is_open(connection));
}

#[test]
fn a_refresh_before_the_end_of_rib_is_not_framed() {
    let mut bench = Bench::with(neighbor());
    bench.want(|wanted| wanted.is_complete = false);
    let mut open = open();
    open.capabilities.enhanced_route_refresh = true;
    let connection = bench.establish(open);
    bench.announce(ONE, part());
    bench.pass(COALESCE);
    bench.hear(connection);

    bench.say(connection, refresh(Refresh::Request, Family::Ipv4Unicast));

    // BoRR may not come before End-of-RIB (RFC 7313 §4).
    assert_eq!(bench.hear(connection), [announces(&[ONE])]);
}

#[test]
fn a_route_that_goes_before_a_refresh_is_answered_is_withdrawn() {
    let (mut bench, connection) = two_families(false);
    bench.stall(connection);
    bench.announce(TWO, part());
    bench.pass(SECOND);
    assert_eq!(bench.hear(connection), [announces(&[TWO])]);
    bench.say(connection, refresh(Refresh::Request, Family::Ipv4Unicast));
    bench.withdraw(ONE);
    bench.pass(SECOND);
    assert!(bench.hear(connection).is_empty());

    bench.relieve(connection);

    assert_eq!(bench.hear(connection), [withdraws(&[ONE]), announces(&[TWO])]);
}

#[test]
fn numbers_are_told_once_in_ten_seconds_at_most() {
    let patient = Neighbor { hold_time: HoldTime::from_seconds(0).unwrap(), ..neighbor() };
    let (mut bench, _) = Bench::up(patient, open());
    bench.pass(20 * SECOND);
    bench.done.clear();

    for last in 0..100 {
        bench.announce(&format!("198.51.100.{last}/32"), part());
        bench.pass(200 * MS);
    }
    bench.pass(15 * SECOND);

    // After one second, eleven, twenty-one.
    let told = bench.done.iter().filter(|action| matches!(action, Action::Status(_))).count();
    assert_eq!(told, 3);
    assert_eq!(bench.status().prefixes_sent, 100);
}

#[test]
fn numbers_that_change_and_change_back_wake_nobody_in_vain() {
    let (mut bench, _) = Bench::up(neighbor(), open());
    bench.pass(2 * SECOND);

    bench.announce(ONE, part());
    bench.pass(100 * MS);
    bench.withdraw(ONE);
    bench.pass(10 * SECOND);

    assert_eq!(bench.status().prefixes_sent, 0);
}

#[derive(Clone, Debug)]
enum Change {
    Announce(u8, Part),
    Withdraw(u8),
    Refresh(Family),
    Stall,
    Relieve,
    Lose,
    Pass(u16),
}

fn parts() -> impl Strategy<Value = Part> {
    let peers = prop_oneof![3 => Just(vec![]), 1 => Just(vec!["tor"]), 1 => Just(vec!["other"])];
    let preference = proptest::option::of(1..3u32);
    let communities = proptest::collection::btree_set((0..2u16, 0..2u16), 0..3);
    (peers, preference, proptest::option::of(0..2u32), 0..2u8, communities, proptest::bool::weighted(0.1)).prop_map(
        |(peers, local_pref, multi_exit_disc, prepend, communities, draining)| Part {
            peers: Arc::new(peers.into_iter().map(PeerName::from).collect()),
            local_pref: local_pref.and_then(NonZeroU32::new),
            multi_exit_disc,
            prepend,
            communities: Arc::new(communities.into_iter().map(|(a, b)| Community::Standard(a, b)).collect()),
            draining,
        },
    )
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (0..12u8, parts()).prop_map(|(at, part)| Change::Announce(at, part)),
        4 => (0..12u8).prop_map(Change::Withdraw),
        1 => prop_oneof![Just(Family::Ipv4Unicast), Just(Family::Ipv6Unicast)].prop_map(Change::Refresh),
        2 => Just(Change::Stall),
        2 => Just(Change::Relieve),
        1 => Just(Change::Lose),
        4 => (0..30u16).prop_map(Change::Pass),
    ]
}

/// Half of them IPv4, half IPv6.
fn nth(at: u8) -> Prefix {
    prefix(&if at.is_multiple_of(2) { format!("198.51.100.{at}/32") } else { format!("2001:db8:1::{at}/128") })
}

/// The attributes that the router is to see, by the rules of the parts alone.
fn expected(part: &Part, internal: bool, prefix: &Prefix) -> BTreeMap<u8, Vec<u8>> {
    let mut communities: BTreeSet<u32> = part
        .communities
        .iter()
        .map(|community| match community {
            Community::Standard(high, low) => u32::from(*high) << 16 | u32::from(*low),
            other => panic!("{other:?} is not among the changes"),
        })
        .collect();
    let mut numbers = if internal { 0 } else { 1 + usize::from(part.prepend) };
    let mut local_pref = internal.then_some(part.local_pref.map_or(100, NonZeroU32::get));
    if part.draining {
        communities.insert(0xffff_0000);
        local_pref = local_pref.map(|_| 0);
        if !internal {
            numbers += 3;
        }
    }
    let attributes = bgp::Attributes {
        as_path: vec![asn(OURS); numbers],
        next_hop: match Family::of(prefix) {
            Family::Ipv4Unicast => bgp::NextHop::Ipv4(Ipv4Addr::new(192, 0, 2, 1)),
            Family::Ipv6Unicast => bgp::NextHop::Ipv6 { global: "2001:db8::1".parse().unwrap(), link_local: None },
        },
        multi_exit_disc: part.multi_exit_disc,
        local_pref,
        communities,
        extended_communities: BTreeSet::new(),
        large_communities: BTreeSet::new(),
    };
    let dialect = bgp::Dialect { four_octet_asn: true, max_len: MAX_LEN };
    super::attributes(&bgp::announce(dialect, &attributes, &[*prefix])[0][19..])
}

/// What a router makes of the UPDATEs of one session.
#[derive(Default)]
struct Table {
    routes: BTreeMap<Prefix, BTreeMap<u8, Vec<u8>>>,
    /// Those that may come again unchanged.
    asked_for: BTreeSet<Prefix>,
}

impl Table {
    fn take(&mut self, heard: Vec<Heard>) {
        for heard in heard {
            let Message::Update(update) = heard.message else { continue };
            for prefix in update.withdrawn {
                assert!(self.routes.remove(&prefix).is_some(), "{prefix} is withdrawn without being there");
            }
            for prefix in update.announced {
                let attributes = attributes(&heard.body);
                let before = self.routes.insert(prefix, attributes.clone());
                let is_news = before != Some(attributes);
                assert!(self.asked_for.remove(&prefix) || is_news, "{prefix} is sent twice");
            }
        }
    }
}

proptest! {
    #[test]
    fn n_051_what_was_sent_on_an_empty_table_is_what_is_wanted_whatever_happened(
        internal: bool,
        enhanced: bool,
        changes in proptest::collection::vec(changes(), 0..60),
    ) {
        let peer_asn = if internal { PeerAsn::Internal } else { PeerAsn::External };
        let mut bench = Bench::with(Neighbor { peer_asn, families: Family::ALL.into(), ..neighbor() });
        let greet = |bench: &mut Bench| {
            while bench.attempts.is_empty() {
                bench.pass(500 * MS);
            }
            let (_, connection, _) = bench.attempts.pop().unwrap();
            let addresses = vec![prefix("192.0.2.1/24"), prefix("2001:db8::1/64")];
            bench.step(Event::Connected { connection, ends: Ends { addresses, ..ends() } });
            let mut open = Open { asn: asn(if internal { OURS } else { THEIRS }), ..open() };
            open.capabilities.enhanced_route_refresh = enhanced;
            bench.greet(connection, open);
            connection
        };
        let mut connection = greet(&mut bench);
        let mut table = Table::default();

        for change in changes {
            match change {
                Change::Announce(at, part) => {
                    bench.want(|wanted| drop(wanted.routes.insert(nth(at), route(part))));
                }
                Change::Withdraw(at) => bench.want(|wanted| drop(wanted.routes.remove(&nth(at)))),
                Change::Refresh(family) => {
                    table.take(bench.listen(connection));
                    let of_family = |prefix: &&Prefix| Family::of(prefix) == family;
                    table.asked_for.extend(table.routes.keys().filter(of_family));
                    bench.say(connection, refresh(Refresh::Request, family));
                }
                Change::Stall => bench.stall(connection),
                Change::Relieve => bench.relieve(connection),
                Change::Lose => {
                    bench.step(Event::Ended { connection, loss: Loss::Reset });
                    connection = greet(&mut bench);
                    table = Table::default();
                }
                Change::Pass(ms) => bench.pass(MS * u32::from(ms)),
            }
            table.take(bench.listen(connection));
        }
        bench.relieve(connection);
        bench.pass(COALESCE);
        table.take(bench.listen(connection));

        let is_for_it = |part: &Part| part.peers.is_empty() || part.peers.contains("tor");
        let wanted: BTreeMap<Prefix, BTreeMap<u8, Vec<u8>>> = bench
            .wanted
            .routes
            .iter()
            .filter(|(_, route)| is_for_it(&route.parts[0]))
            .map(|(prefix, route)| (*prefix, expected(&route.parts[0], internal, prefix)))
            .collect();
        prop_assert_eq!(&table.routes, &wanted);
        prop_assert_eq!(bench.peers.statuses().next().unwrap().prefixes_sent, wanted.len());
    }
}
