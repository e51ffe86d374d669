//! Who is alive by Leases, where speakers do not gossip.

use ferrogate_wire::gossip::Keys;
use imbl::OrdMap;
use proptest::prelude::*;

use super::{watch::watch_link, *};
use crate::{speaker::LEASE_DURATION, write::SpeakerLease};

const LASTS: Duration = LEASE_DURATION;
const RENEWAL: Duration = Duration::from_secs(2);
/// How long a renewal takes to be seen by everyone.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

/// What an API server has, and what the others see of it when it is up.
type Leases = OrdMap<NodeName, Arc<SpeakerLease>>;

fn config(node: &str, life: u64) -> Config {
    Config { lease_duration: Some(LASTS), ..Config::new(node.into(), DataPath::KubeProxy, life) }
}

fn name(number: u8) -> NodeName {
    format!("k{number}").as_str().into()
}

/// The renewal among these actions.
fn renewal(actions: &[Action]) -> Option<SpeakerLease> {
    let mut renewals = actions.iter().rev().filter_map(|action| match action {
        Action::Write(Write::Lease { lease, .. }) => Some(lease.clone()),
        _ => None,
    });
    renewals.next()
}

fn said(lease: &SpeakerLease) -> Word {
    let datagram = Datagram::open(&lease.says, &Keys::default()).unwrap();
    let Message::Word(word) = datagram.message else { panic!("no word") };
    word
}

/// A speaker and its way to the API server.
struct Member {
    speaker: Speaker,
    is_running: bool,
    reaches: bool,
    /// A renewal that was asked for and is not with the API server yet. It is not tried again.
    on_its_way: Option<(Instant, SpeakerLease)>,
    reported: Vec<Report>,
    shown: Leases,
}

/// Speakers of `k1` to `kN` on one link, and an API server, on one clock.
struct World {
    now: Instant,
    facts: Snapshot,
    is_up: bool,
    leases: Leases,
    members: BTreeMap<NodeName, Member>,
    /// Frames that the others have yet to see.
    on_the_link: Vec<(NodeName, Frame)>,
}

impl World {
    #[allow(clippy::disallowed_methods, reason = "an instant cannot be had otherwise; only differences matter")]
    fn new(facts: Snapshot) -> Self {
        let members = facts.nodes.keys().map(|node| (node.clone(), Member::new(config(node.as_str(), 1))));
        let members = members.collect();
        let mut world =
            Self { now: Instant::now(), facts, is_up: true, leases: Leases::new(), members, on_the_link: Vec::new() };
        for (number, node) in (1..).zip(world.members.keys().cloned().collect::<Vec<_>>()) {
            let interface = Interface { index: 2, ..interface(10 * number) };
            world.step(&node, Event::Interfaces([("eth1".into(), interface)].into()));
            world.step(&node, Event::Snapshot(Arc::new(world.facts.clone())));
        }
        world
    }

    /// Everybody has been heard by everybody.
    fn settled(facts: Snapshot) -> Self {
        let mut world = Self::new(facts);
        world.pass(LASTS);
        world
    }

    fn step(&mut self, node: &NodeName, event: Event) {
        let now = self.now;
        let Some(member) = self.members.get_mut(node).filter(|member| member.is_running) else { return };
        let actions = member.speaker.step(now, event);
        assert!(!actions.iter().any(|action| matches!(action, Action::Gossip { .. })), "{node} gossips");
        if let Some(lease) = renewal(&actions) {
            member.on_its_way = Some((now + ON_ITS_WAY / 2, lease));
        }
        member.reported.extend(reports(&actions).into_iter().cloned());
        member.is_running &= !actions.contains(&Action::Finished);
        for (_, frame) in frames(&actions) {
            self.on_the_link.push((node.clone(), frame.clone()));
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += ON_ITS_WAY / 2;
            let now = self.now;
            for (node, member) in &mut self.members {
                let arrived = member.on_its_way.take_if(|(due, _)| *due <= now);
                if let Some((_, lease)) = arrived.filter(|_| self.is_up && member.reaches) {
                    self.leases.insert(node.clone(), Arc::new(lease));
                }
            }
            self.carry();
            for node in self.members.keys().cloned().collect::<Vec<_>>() {
                let member = self.members.get_mut(&node).unwrap();
                if self.is_up && member.reaches && !member.shown.ptr_eq(&self.leases) {
                    member.shown = self.leases.clone();
                    let snapshot = Snapshot { leases: self.leases.clone(), ..self.facts.clone() };
                    self.step(&node, Event::Snapshot(Arc::new(snapshot)));
                }
                while self.members[&node].is_running
                    && self.members[&node].speaker.deadline().is_some_and(|deadline| deadline <= now)
                {
                    self.step(&node, Event::Tick);
                }
            }
        }
    }

    fn carry(&mut self) {
        for (from, frame) in std::mem::take(&mut self.on_the_link) {
            let interface = InterfaceName::from("eth1");
            let event = match frame {
                Frame::Arp(arp) => Event::Arp { interface, arp },
                Frame::Advertisement(own) => Event::Ndp { interface, ndp: Ndp::Advertisement(own) },
                Frame::Solicitation(own) => Event::Ndp { interface, ndp: Ndp::Solicitation(own) },
            };
            for node in self.members.keys().filter(|node| **node != from).cloned().collect::<Vec<_>>() {
                self.step(&node, event.clone());
            }
        }
    }

    fn member(&mut self, number: u8) -> &mut Member {
        self.members.get_mut(&name(number)).unwrap()
    }

    fn crash(&mut self, number: u8) {
        self.member(number).is_running = false;
    }

    /// Which nodes one of them counts as there.
    fn alive(&self, number: u8) -> Vec<u8> {
        let standings = self.members[&name(number)].speaker.standings();
        let is_alive = |number: &u8| standings[&name(*number)].liveness == Liveness::Alive;
        (1..=self.members.len() as u8).filter(is_alive).collect()
    }

    fn owners(&self, address: &str) -> Vec<u8> {
        let owns = |number: &u8| {
            let member = &self.members[&name(*number)];
            member.is_running && member.speaker.owned().contains_key(&ip(address))
        };
        (1..=self.members.len() as u8).filter(owns).collect()
    }
}

impl Member {
    fn new(config: Config) -> Self {
        let (speaker, reported, shown) = (Speaker::new(config), Vec::new(), Leases::new());
        Self { speaker, is_running: true, reaches: true, on_its_way: None, reported, shown }
    }
}

fn facts(nodes: u8) -> Snapshot {
    snapshot(nodes, [service("won", &[WON]), service("second", &[SECOND])])
}

#[test]
fn a_speaker_that_renews_its_lease_no_more_is_lost_when_that_has_lasted() {
    let mut world = World::settled(facts(3));
    assert_eq!((world.owners(WON), world.owners(SECOND)), (vec![1], vec![2]));

    world.crash(2);
    world.pass(LASTS - RENEWAL);
    assert_eq!(world.alive(1), [1, 2, 3]);
    assert_eq!(world.owners(SECOND), []);

    // Its last renewal is as old as that at most, and the next one of ours has to come back.
    world.pass(RENEWAL * 2 + ON_ITS_WAY);
    assert_eq!((world.alive(1), world.alive(3)), (vec![1, 3], vec![1, 3]));
    assert_eq!(world.owners(SECOND).len(), 1);
    assert!(world.member(1).reported.contains(&Report::MemberLost { node: "k2".into() }));
}

#[test]
fn a_speaker_that_stops_hands_over_as_soon_as_its_lease_says_so() {
    let mut world = World::settled(facts(3));

    world.step(&name(2), Event::Shutdown);
    world.pass(ON_ITS_WAY * 4);

    assert_eq!(world.owners(SECOND).len(), 1);
    assert_ne!(world.owners(SECOND), [2]);
    assert!(world.member(1).reported.contains(&Report::MemberLeaving { node: "k2".into() }));
}

#[test]
fn without_the_api_server_nobody_is_lost_and_nothing_moves() {
    let mut world = World::settled(facts(3));
    let before = (world.owners(WON), world.owners(SECOND));

    world.is_up = false;
    world.pass(LASTS * 10);
    assert_eq!((world.owners(WON), world.owners(SECOND)), before);
    for number in 1..=3 {
        assert_eq!(world.alive(number), [1, 2, 3]);
        let news = world.member(number).reported.iter().filter(|report| **report == Report::LeasesUnseen);
        assert_eq!(news.count(), 1, "it is said once");
    }

    world.is_up = true;
    world.pass(LASTS * 2);
    assert_eq!((world.owners(WON), world.owners(SECOND)), before);
    assert_eq!(world.member(1).reported.last(), Some(&Report::LeasesSeen));
    assert!(!world.member(1).reported.iter().any(|report| matches!(report, Report::MemberLost { .. })));
}

#[test]
fn who_died_while_the_api_server_was_away_is_lost_one_lease_after_it_is_back() {
    let mut world = World::settled(facts(3));

    world.is_up = false;
    world.pass(LASTS);
    world.crash(2);
    world.pass(LASTS * 3);
    assert_eq!(world.owners(SECOND), []);
    world.is_up = true;
    world.pass(LASTS - RENEWAL);
    assert_eq!(world.alive(1), [1, 2, 3]);

    world.pass(RENEWAL * 3);
    assert_eq!(world.alive(1), [1, 3]);
    assert_eq!(world.owners(SECOND).len(), 1);
}

#[test]
fn a_node_that_alone_has_lost_the_api_server_keeps_what_it_has() {
    let mut world = World::settled(facts(3));

    world.member(2).reaches = false;
    world.pass(LASTS * 3);

    assert_eq!(world.alive(2), [1, 2, 3], "it cannot know better");
    assert_eq!(world.alive(1), [1, 3]);
    assert_eq!(world.owners(SECOND), [2], "whoever took over hears it on the link");
    world.member(2).reaches = true;
    world.pass(LASTS * 2);
    assert_eq!((world.alive(1), world.owners(SECOND)), (vec![1, 2, 3], vec![2]));
}

/// `k1`, which has renewals of its own come back and sees `k2` renew, until `k2` is heard.
struct Alone {
    stand: Stand,
    facts: Snapshot,
}

impl Alone {
    fn new(facts: Snapshot) -> Self {
        let mut stand = Stand::with(config("k1", 1));
        stand.snapshot(&facts);
        let actions = stand.step(Event::Interfaces(interfaces(1)));
        let mut alone = Self { stand, facts };
        alone.give_back(&actions);
        alone
    }

    /// What `k1` asked for stands at the API server.
    fn give_back(&mut self, actions: &[Action]) -> Vec<Action> {
        let Some(lease) = renewal(actions) else { return Vec::new() };
        self.facts.leases.insert("k1".into(), Arc::new(lease));
        self.stand.snapshot(&self.facts)
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.stand.now + time;
        let mut all = Vec::new();
        while self.stand.now < end {
            let step = ON_ITS_WAY.min(end - self.stand.now);
            let actions = only(self.stand.pass(step));
            all.extend(self.give_back(&actions));
            all.extend(actions);
        }
        all
    }

    /// `k2` renews its Lease with a word about `link`.
    fn renewed(&mut self, link: Link) -> Vec<Action> {
        let word = Word { links: vec![link], ..self.stand.word(2) };
        self.shows(word)
    }

    fn shows(&mut self, word: Word) -> Vec<Action> {
        let says = self.stand.datagram(word).seal(&Keys::default(), &[0; 16]).unwrap();
        let lease = SpeakerLease { duration: LASTS, says: says.into(), renewed_at: String::new() };
        self.facts.leases.insert("k2".into(), Arc::new(lease));
        self.stand.snapshot(&self.facts)
    }
}

#[test]
fn a_lease_that_was_there_before_does_not_show_that_its_speaker_lives() {
    let mut facts = facts(2);
    let mut stand = Stand::new(DataPath::KubeProxy);
    let datagram = Word { links: vec![watch_link(2)], ..stand.word(2) };
    let says = stand.datagram(datagram).seal(&Keys::default(), &[0; 16]).unwrap();
    let lease = SpeakerLease { duration: LASTS, says: says.into(), renewed_at: "2999-01-01T00:00:00Z".to_owned() };
    facts.leases.insert("k2".into(), Arc::new(lease));

    let mut alone = Alone::new(facts);
    let standing = alone.stand.speaker.standings().remove("k2").unwrap();
    assert_eq!(standing.links.map(|links| links.into_keys().collect()), Some(vec![InterfaceName::from("eth1")]));
    alone.pass(LASTS - ON_ITS_WAY);
    assert!(!alone.stand.owns(SECOND));
    alone.pass(RENEWAL + ON_ITS_WAY);

    assert!(alone.stand.owns(SECOND), "its time says nothing, whatever it is");
}

#[test]
fn a_lease_that_is_taken_away_costs_its_speaker_nothing() {
    let mut alone = Alone::new(facts(2));
    alone.renewed(wire_link("eth1"));

    alone.facts.leases.remove("k2");
    let facts = alone.facts.clone();
    alone.stand.snapshot(&facts);
    alone.pass(LASTS - RENEWAL);
    alone.renewed(wire_link("eth1"));
    alone.pass(LASTS - RENEWAL);

    assert!(!alone.stand.owns(SECOND));
}

#[test]
fn a_lease_that_changes_without_a_renewal_keeps_nobody_alive() {
    let mut alone = Alone::new(facts(2));
    alone.renewed(wire_link("eth1"));

    for number in 0..8 {
        alone.pass(RENEWAL);
        let mut lease = (*alone.facts.leases["k2"]).clone();
        lease.renewed_at = format!("by hand {number}");
        alone.facts.leases.insert("k2".into(), Arc::new(lease));
        let facts = alone.facts.clone();
        alone.stand.snapshot(&facts);
    }

    assert!(alone.stand.owns(SECOND));
}

#[test]
fn a_lease_that_speaks_for_another_node_is_not_believed() {
    let mut alone = Alone::new(facts(3));

    let of_k3 = alone.stand.word(3);
    let actions = alone.shows(of_k3);

    assert_eq!(reports(&actions), Vec::<&Report>::new());
    assert_eq!(alone.stand.speaker.disbelieved().strangers, 1);
}

#[test]
fn a_lease_counts_for_as_long_as_it_says_but_no_less_than_ones_own_and_within_bounds() {
    for (says, counts) in [(LASTS * 2, LASTS * 2), (LASTS / 2, LASTS), (Duration::from_secs(86_400), MAX)] {
        let mut alone = Alone::new(facts(2));
        alone.renewed(wire_link("eth1"));
        let mut lease = (*alone.facts.leases["k2"]).clone();
        lease.duration = says;
        let word = Word { links: vec![wire_link("eth1")], ..alone.stand.word(2) };
        lease.says = alone.stand.datagram(word).seal(&Keys::default(), &[0; 16]).unwrap().into();
        alone.facts.leases.insert("k2".into(), Arc::new(lease));
        let facts = alone.facts.clone();
        alone.stand.snapshot(&facts);

        alone.pass(counts - MS);
        assert!(!alone.stand.owns(SECOND), "{says:?}");
        alone.pass(RENEWAL + ON_ITS_WAY * 2);
        assert!(alone.stand.owns(SECOND), "{says:?}");
    }
}

const MAX: Duration = crate::speaker::MAX_LEASE_DURATION;

#[test]
fn a_renewal_goes_out_each_fifth_of_a_lease_and_at_once_with_news() {
    let mut alone = Alone::new(facts(2));

    let actions = alone.stand.pass(LASTS);
    let renewals: Vec<Duration> = actions
        .iter()
        .filter(|(_, action)| renewal(std::slice::from_ref(action)).is_some())
        .map(|(at, _)| *at)
        .collect();
    assert_eq!(renewals, [2, 4, 6, 8, 10].map(Duration::from_secs));

    alone.stand.pass(RENEWAL / 2);
    let lease = renewal(&alone.stand.step(Event::ProxyReady(true))).unwrap();
    assert_eq!(lease.duration, LASTS);
    assert!(said(&lease).proxy_ready);
}

#[test]
fn an_owner_whose_interface_is_found_dead_by_bfd_is_replaced_at_once_with_and_without_an_api_server() {
    for is_up in [true, false] {
        let mut alone = Alone::new(facts(2));
        alone.renewed(watch_link(2));
        let see = |stand: &mut Stand, verdict| {
            stand.step(Event::Watched { node: "k2".into(), interface: "eth1".into(), verdict })
        };
        see(&mut alone.stand, Verdict::Up);
        if !is_up {
            alone.stand.pass(LASTS * 2);
        }
        assert!(!alone.stand.owns(SECOND));

        let down = alone.stand.now;
        let actions = see(&mut alone.stand, Verdict::Down);

        assert!(alone.stand.owns(SECOND), "the API server is up: {is_up}");
        let is_takeover = |report: &&Report| matches!(report, Report::Owned { failed_at: Some(at), .. } if *at == down);
        assert!(reports(&actions).iter().any(is_takeover), "{actions:?}");
    }
}

/// Found by `sim::chaos::run_by_leases`.
#[test]
fn what_is_judged_as_a_renewal_of_its_own_is_seen_is_acted_on() {
    let mut alone = Alone::new(facts(2));
    alone.renewed(watch_link(2));
    for verdict in [Verdict::Up, Verdict::Down] {
        alone.stand.step(Event::Watched { node: "k2".into(), interface: "eth1".into(), verdict });
    }
    assert!(alone.stand.owns(SECOND));
    let own = only(alone.stand.pass(RENEWAL));
    // Nobody can watch it any more, and so nobody finds it dead.
    alone.renewed(wire_link("eth1"));

    alone.give_back(&own);

    assert!(!alone.stand.owns(SECOND));
}

/// A node that others count as lost goes by what they go by, so that one of the two stays.
#[test]
fn a_node_without_an_api_server_and_whoever_took_over_from_it_agree_on_who_stays() {
    // k2 comes first by its hash, and k1 by preference.
    let mut facts = snapshot(2, [service("web", &[SECOND])]);
    let preferred = PreferredNodes { weight: NonZeroU8::new(10).unwrap(), preference: named("k1") };
    set_advertisement(&mut facts, L2Advertisement { preferred_nodes: vec![preferred], ..advertisement() });
    for (is_up, yields) in [(true, true), (false, false)] {
        let mut alone = Alone::new(facts.clone());
        let link = Link { mac: Some(mac(20)), ..wire_link("eth1") };
        alone.renewed(link.clone());
        assert!(alone.stand.owns(SECOND));
        if !is_up {
            alone.stand.pass(LASTS);
        }

        let is_k2 = Event::Ndp {
            interface: "eth1".into(),
            ndp: Ndp::Advertisement(Advertisement::announcement(v6(SECOND), mac(20))),
        };
        let mut actions = Vec::new();
        for _ in 0..30 {
            actions.extend(alone.stand.step(is_k2.clone()));
            actions.extend(only(alone.stand.pass(ON_ITS_WAY)));
        }

        // Where k2 is heard only the names are left to go by; where nobody is, k1 is the one that has it by right.
        let rivals = reports(&actions).into_iter().filter(|report| matches!(report, Report::Rival { .. }));
        let expected = Report::Rival { address: ip(SECOND), interface: "eth1".into(), node: "k2".into(), yields };
        assert_eq!(rivals.take(1).collect::<Vec<_>>(), [&expected]);
        assert_eq!(alone.stand.owns(SECOND), !yields);
    }
}

/// What the other goes by is older, so that each may come first by its own facts.
#[test]
fn whoever_sees_leases_leaves_an_address_to_a_node_whose_lease_is_over_and_that_still_has_it() {
    let mut facts = snapshot(2, [service("web", &[SECOND])]);
    let preferred = PreferredNodes { weight: NonZeroU8::new(10).unwrap(), preference: named("k1") };
    set_advertisement(&mut facts, L2Advertisement { preferred_nodes: vec![preferred], ..advertisement() });
    let mut alone = Alone::new(facts);
    alone.renewed(Link { mac: Some(mac(20)), ..wire_link("eth1") });
    alone.pass(LASTS * 2);
    assert!(alone.stand.owns(SECOND));

    let is_k2 = Event::Ndp {
        interface: "eth1".into(),
        ndp: Ndp::Advertisement(Advertisement::announcement(v6(SECOND), mac(20))),
    };
    for _ in 0..30 {
        alone.stand.step(is_k2.clone());
        alone.pass(ON_ITS_WAY);
    }

    assert!(!alone.stand.owns(SECOND));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Times are in tenths of a second.
    #[test]
    fn however_often_the_api_server_is_away_nobody_who_lives_is_lost(
        times in prop::collection::vec((1_u32..300, 1_u32..300, prop::option::of(1_u8..=3)), 1..8),
    ) {
        let mut world = World::settled(facts(3));
        for (up, down, alone) in times {
            world.pass(Duration::from_millis(100) * up);
            match alone {
                None => world.is_up = false,
                // Others may count it as lost then. It counts nobody so.
                Some(number) => world.member(number).reaches = false,
            }
            for _ in 0..down {
                world.pass(Duration::from_millis(100));
                if let Some(number) = alone {
                    prop_assert_eq!(world.alive(number), [1, 2, 3]);
                } else {
                    prop_assert_eq!(world.alive(1), [1, 2, 3]);
                    prop_assert_eq!((world.owners(WON), world.owners(SECOND)), (vec![1], vec![2]));
                }
            }
            world.is_up = true;
            for member in world.members.values_mut() {
                member.reaches = true;
            }
            if alone.is_some() {
                world.pass(LASTS * 2);
            }
        }
        for number in 1..=3 {
            prop_assert_eq!(world.alive(number), [1, 2, 3]);
        }
        prop_assert_eq!((world.owners(WON), world.owners(SECOND)), (vec![1], vec![2]));
    }

    #[test]
    fn whoever_dies_is_lost_once_the_api_server_stays_for_two_leases(
        dies_at in 0_u32..400, up in 1_u32..200, down in 1_u32..200, dead in 1_u8..=3,
    ) {
        let mut world = World::settled(facts(3));
        for tenth in 0..400 {
            if tenth == dies_at {
                world.crash(dead);
            }
            world.is_up = tenth % (up + down) < up;
            world.pass(Duration::from_millis(100));
        }

        world.is_up = true;
        world.pass(LASTS * 2);

        let living: Vec<u8> = (1..=3).filter(|number| *number != dead).collect();
        for &number in &living {
            prop_assert_eq!(&world.alive(number), &living);
        }
        for address in [WON, SECOND] {
            prop_assert_eq!(world.owners(address).len(), 1, "{}", address);
        }
    }
}
