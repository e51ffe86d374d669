//! The machines of `core` together, on a virtual clock: seeds by the thousand, and what earlier seeds have taught.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ferrogate_core::{
    model::{Family, advertisement::PreferredNodes, selector::LabelSelector},
    speaker::{Config, DataPath, bfd::Settings, bgp},
};
use ferrogate_integration::sim::{World, chaos, facts, routers};

const DEFAULT_SEEDS: u64 = 10_000;
const MS: Duration = Duration::from_millis(1);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// `SEED=7` runs that seed alone; `FERROGATE_SIM_SEEDS` says how many are run otherwise.
fn run_seeds(run: fn(u64) -> Result<u64, Box<chaos::Failure>>) {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FERROGATE_SIM_SEEDS").unwrap_or(DEFAULT_SEEDS),
    };
    let next = AtomicU64::new(seeds.start);
    let begin = Instant::now();

    let worker = || -> Result<u64, Box<chaos::Failure>> {
        let mut steps = 0;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return Ok(steps);
            }
            steps += run(seed).inspect_err(|_| next.store(seeds.end, Ordering::Relaxed))?;
        }
    };
    let outcome: Result<Vec<u64>, _> = thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });

    match outcome {
        Ok(steps) => {
            let (count, steps, time) = (seeds.end - seeds.start, steps.iter().sum::<u64>(), begin.elapsed());
            println!("{count} seeds, {steps} steps in {time:.1?}");
        }
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn whatever_breaks_addresses_never_split_and_all_come_back() {
    run_seeds(chaos::run);
}

#[test]
fn whatever_breaks_where_speakers_know_each_other_by_leases_addresses_never_split_and_all_come_back() {
    run_seeds(chaos::run_by_leases);
}

#[test]
fn whatever_breaks_while_speakers_hear_each_other_by_another_network_addresses_never_split_and_all_come_back() {
    run_seeds(chaos::run_with_management);
}

#[test]
fn whatever_breaks_a_router_holds_no_route_for_long_that_is_not_wanted_and_all_come_back() {
    run_seeds(routers::run);
}

/// Three nodes, the Service `web` in both families, and two clients that know where its addresses are.
struct Scene {
    world: World,
    owner: usize,
    addresses: Vec<IpAddr>,
}

impl Scene {
    fn new() -> Self {
        Self::with(Config::new("any".into(), DataPath::Proxy, 0))
    }

    fn with(config: Config) -> Self {
        let mut world = World::new(1, config, facts::cluster(3), 2);
        let web = facts::service("web", 80, &[Family::V4, Family::V6], &[0, 1, 2]);
        world.change(|facts| drop(facts.services.insert(web.key.clone(), Arc::new(web))));
        world.run(Duration::from_secs(10)).unwrap();
        world.check_settled().unwrap();
        let addresses: Vec<IpAddr> =
            world.truth().services.values().flat_map(|web| web.observed.addresses.clone()).collect();
        let owner = world.owners(addresses[0])[0];
        Self { world, owner, addresses }
    }

    /// Lets time pass and sends a packet from every client to every address each 2 ms. Returns the longest time in
    /// which one of them got none through, and how many were lost.
    fn probe(&mut self, time: Duration) -> (Duration, usize) {
        let end = self.world.now() + time;
        let (mut longest, mut lost) = (Duration::ZERO, 0);
        let mut gaps = vec![Duration::ZERO; 2 * self.addresses.len()];
        while self.world.now() < end {
            self.world.run(MS * 2).unwrap();
            for (way, gap) in gaps.iter_mut().enumerate() {
                if self.world.is_served(way % 2, self.addresses[way / 2]) {
                    *gap = Duration::ZERO;
                } else {
                    *gap += MS * 2;
                    lost += 1;
                }
                longest = longest.max(*gap);
            }
        }
        (longest, lost)
    }

    fn conflicts(&self) -> usize {
        self.world.nodes().iter().map(|node| node.conflicts).sum()
    }
}

#[test]
fn n_100_every_client_is_answered_by_the_one_owner_and_nothing_is_a_conflict() {
    let mut scene = Scene::new();

    scene.world.run(Duration::from_secs(30)).unwrap();

    scene.world.check_settled().unwrap();
    scene.world.check_tidy().unwrap();
    assert_eq!(scene.conflicts(), 0);
}

#[test]
fn n_105_when_the_link_of_the_owner_is_cut_clients_lose_at_most_200_ms() {
    for cut_after in 0..50 {
        let mut scene = Scene::new();
        scene.world.run(MS * cut_after).unwrap();

        scene.world.set_cable(scene.owner, false);
        let (longest, _) = scene.probe(Duration::from_secs(1));

        assert!(longest <= MS * 200, "cut {cut_after} ms later: {longest:?}");
        scene.world.check_settled().unwrap();
    }
}

#[test]
fn m_120_when_the_owner_dies_clients_lose_at_most_200_ms() {
    let mut scene = Scene::new();

    scene.world.set_power(scene.owner, false);
    let (longest, _) = scene.probe(Duration::from_secs(1));

    assert!(longest <= MS * 200, "{longest:?}");
    scene.world.check_settled().unwrap();
}

#[test]
fn n_105_with_the_fast_profile_clients_lose_at_most_60_ms_when_the_link_of_the_owner_is_cut_or_the_owner_dies() {
    for cut_after in 0..50 {
        let config = Config { bfd: Some(Settings::FAST), ..Config::new("any".into(), DataPath::Proxy, 0) };
        let mut scene = Scene::with(config);
        scene.world.run(MS * cut_after).unwrap();

        if cut_after % 2 == 0 {
            scene.world.set_cable(scene.owner, false);
        } else {
            scene.world.set_power(scene.owner, false);
        }
        let (longest, _) = scene.probe(Duration::from_secs(1));

        assert!(longest <= MS * 60, "cut {cut_after} ms later: {longest:?}");
        scene.world.check_settled().unwrap();
    }
}

#[test]
fn n_106_a_speaker_that_is_asked_to_stop_and_starts_again_loses_nothing() {
    let mut scene = Scene::new();

    scene.world.stop(scene.owner);
    let (_, lost) = scene.probe(Duration::from_secs(3));
    assert_eq!(lost, 0);
    assert!(!scene.world.runs(scene.owner));
    scene.world.check_settled().unwrap();

    scene.world.start(scene.owner);
    let (_, lost) = scene.probe(Duration::from_secs(10));
    assert_eq!(lost, 0);
    assert_eq!(scene.world.owners(scene.addresses[0]), [scene.owner]);
    scene.world.check_settled().unwrap();
    assert_eq!(scene.conflicts(), 0);
}

#[test]
fn n_106_a_move_to_a_preferred_node_loses_nothing() {
    let mut scene = Scene::new();
    let next = (scene.owner + 1) % 3;
    let label = ("name".to_owned(), facts::node_name(next).to_string());
    let preference = LabelSelector { match_labels: [label].into(), match_expressions: Vec::new() };
    let mut advertisement = facts::advertisement();
    advertisement.preferred_nodes = vec![PreferredNodes { weight: std::num::NonZeroU8::MIN, preference }];

    scene
        .world
        .change(|facts| drop(facts.l2_advertisements.insert(advertisement.key.clone(), Arc::new(advertisement))));
    let (_, lost) = scene.probe(Duration::from_secs(10));

    assert_eq!(lost, 0);
    assert_eq!(scene.world.owners(scene.addresses[0]), [next]);
    scene.world.check_settled().unwrap();
    scene.world.check_tidy().unwrap();
    assert_eq!(scene.conflicts(), 0);
}

#[test]
fn when_the_proxy_of_the_owner_fails_another_node_takes_over_at_once() {
    let mut scene = Scene::new();

    scene.world.set_proxy(scene.owner, false);
    let (longest, _) = scene.probe(Duration::from_secs(1));

    // Noticing takes up to 20 ms here; the rest is one datagram.
    assert!(longest <= MS * 30, "{longest:?}");
    scene.world.check_settled().unwrap();
}

#[test]
fn n_111_after_a_partition_one_owner_remains_within_a_second_and_clients_follow_it() {
    let mut scene = Scene::new();
    let others: BTreeSet<usize> = (0..3).filter(|&node| node != scene.owner).collect();
    scene.world.link.part(&others, &BTreeSet::from([1]));
    scene.world.run(Duration::from_secs(20)).unwrap();
    assert_eq!(scene.world.owners(scene.addresses[0]).len(), 2);
    assert!(scene.world.is_served(0, scene.addresses[0]) && scene.world.is_served(1, scene.addresses[0]));

    scene.world.link.heal();
    let (_, lost) = scene.probe(Duration::from_secs(1));

    assert_eq!(lost, 0);
    assert_eq!(scene.world.owners(scene.addresses[0]), [scene.owner]);
    scene.world.check_settled().unwrap();
}

#[test]
fn a_node_that_has_lost_its_link_takes_nothing_with_it_when_it_comes_back() {
    let mut scene = Scene::new();
    let other = (scene.owner + 1) % 3;
    scene.world.set_cable(other, false);
    let (_, lost) = scene.probe(Duration::from_secs(20));
    assert_eq!(lost, 0);

    scene.world.set_cable(other, true);
    let (_, lost) = scene.probe(Duration::from_secs(2));

    assert_eq!(lost, 0);
    assert_eq!(scene.conflicts(), 0);
    scene.world.check_settled().unwrap();
}

/// How long it may take until only one owns an address: to miss a node, and to wait for whoever still hears it.
const AGREED: Duration = Duration::from_millis(350);

/// After one-way losses: who owns the addresses once all had time to agree, and the longest time without any.
fn owners_after(scene: &mut Scene, losses: &[(usize, usize)]) -> (Vec<usize>, Duration) {
    for &(speaker, listener) in losses {
        scene.world.link.mute(speaker, listener);
    }
    let (longest, _) = scene.probe(AGREED);
    for address in &scene.addresses {
        assert_eq!(scene.world.owners(*address), scene.world.owners(scene.addresses[0]));
    }
    scene.world.check_agreed().unwrap();
    let owners = scene.world.owners(scene.addresses[0]);
    scene.world.run(Duration::from_secs(30)).unwrap();
    assert_eq!(scene.world.owners(scene.addresses[0]), owners);
    (owners, longest)
}

#[test]
fn an_owner_that_one_node_does_not_hear_and_a_third_does_stays_the_only_one() {
    for next in 1..3 {
        let mut scene = Scene::new();
        let (owner, deaf) = (scene.owner, (scene.owner + next) % 3);

        let (owners, longest) = owners_after(&mut scene, &[(owner, deaf)]);

        assert_eq!(owners, [owner]);
        assert!(longest <= MS * 20, "{longest:?}");
    }
}

#[test]
fn two_that_do_not_hear_each_other_and_a_third_that_hears_both_agree_on_the_owner_there_was() {
    let mut scene = Scene::new();
    let (owner, other) = (scene.owner, (scene.owner + 1) % 3);

    let (owners, longest) = owners_after(&mut scene, &[(owner, other), (other, owner)]);

    assert_eq!(owners, [owner]);
    assert!(longest <= MS * 20, "{longest:?}");
}

#[test]
fn an_owner_that_nobody_hears_any_more_yields_though_it_hears_everybody() {
    let mut scene = Scene::new();
    let owner = scene.owner;

    let (owners, _) = owners_after(&mut scene, &[(owner, (owner + 1) % 3), (owner, (owner + 2) % 3)]);

    assert_eq!(owners.len(), 1);
    assert_ne!(owners, [owner]);
}

#[test]
fn of_two_nodes_the_one_that_is_not_heard_yields_to_the_one_that_is() {
    let mut scene = Scene::new();
    let (owner, other, third) = (scene.owner, (scene.owner + 1) % 3, (scene.owner + 2) % 3);
    scene.world.set_power(third, false);
    scene.world.run(Duration::from_secs(1)).unwrap();

    let (owners, _) = owners_after(&mut scene, &[(owner, other)]);

    assert_eq!(owners, [other]);
}

/// The router holds routes 0 to 2 of both nodes.
fn announced(terms: routers::Terms) -> routers::World {
    let mut world = routers::World::new(1, terms);
    for node in 0..2 {
        for number in 0..3 {
            world.want(node, routers::prefix(number), Some(7));
        }
    }
    world.run(Duration::from_secs(5)).unwrap();
    world.check_settled().unwrap();
    assert_eq!(world.table(0).len(), 3);
    world
}

/// How long the router goes on holding routes of node 0; those of the other node stay.
fn held_for(world: &mut routers::World, at_most: Duration) -> Duration {
    let begin = world.now();
    while !world.table(0).is_empty() {
        world.run(MS).unwrap();
        assert!(world.now() <= begin + at_most, "{:?} after {at_most:?}", world.table(0));
        assert_eq!(world.table(1).len(), 3);
    }
    world.now() - begin
}

#[test]
fn n_070_a_speaker_that_is_killed_and_returns_within_the_restart_time_leaves_no_gap() {
    let mut world = announced(routers::Terms { bfd: false, ..routers::Terms::new() });

    world.kill(0, false);
    for step in 0..8000 {
        if step == 2000 {
            world.start(0, true);
        }
        world.run(MS).unwrap();
        assert_eq!(world.table(0).len(), 3, "after {step} ms");
    }

    world.check_settled().unwrap();
}

#[test]
fn n_071_a_route_that_does_not_return_with_its_speaker_goes_when_the_speaker_knows_all_of_them() {
    let mut world = announced(routers::Terms { bfd: false, ..routers::Terms::new() });
    world.kill(0, false);
    world.want(0, routers::prefix(0), None);
    world.run(Duration::from_secs(1)).unwrap();

    world.start(0, false);
    world.run(Duration::from_secs(3)).unwrap();
    assert_eq!(world.table(0).len(), 3);
    world.complete(0);
    world.run(MS * 100).unwrap();

    assert_eq!(world.table(0).keys().copied().collect::<Vec<_>>(), [routers::prefix(1), routers::prefix(2)]);
    world.check_settled().unwrap();
}

#[test]
fn n_072_the_routes_of_a_speaker_that_does_not_return_go_after_the_restart_time() {
    let mut world = announced(routers::Terms { bfd: false, ..routers::Terms::new() });

    world.kill(0, false);

    let time = held_for(&mut world, Duration::from_millis(4100));
    assert!(time >= Duration::from_secs(4), "{time:?}");
}

#[test]
fn n_073_without_graceful_restart_the_routes_of_a_killed_speaker_go_within_a_second() {
    for terms in [
        routers::Terms { nodes_restart: false, ..routers::Terms::new() },
        routers::Terms { router_restart: None, ..routers::Terms::new() },
    ] {
        let mut world = announced(terms);

        world.kill(0, false);

        held_for(&mut world, Duration::from_secs(1));
    }
}

#[test]
fn n_074_a_speaker_that_leaves_takes_its_routes_along_within_a_second_whatever_was_negotiated() {
    for router_restart in [None, Some(false), Some(true)] {
        let mut world = announced(routers::Terms { router_restart, ..routers::Terms::new() });

        world.depart(0, bgp::Departure::Leave { text: "the node is drained".to_owned() });

        held_for(&mut world, Duration::from_secs(1));
        world.run(Duration::from_secs(10)).unwrap();
        assert!(world.table(0).is_empty() && !world.runs(0));
    }
}

#[test]
fn n_076_a_planned_restart_with_bfd_leaves_no_gap() {
    let mut world = announced(routers::Terms::new());

    world.depart(0, bgp::Departure::Restart);
    for step in 0..8000 {
        if step == 2000 {
            assert!(!world.runs(0));
            world.start(0, true);
        }
        world.run(MS).unwrap();
        assert_eq!(world.table(0).len(), 3, "after {step} ms");
    }

    world.check_settled().unwrap();
}

#[test]
fn n_077_the_routes_of_a_dead_node_go_within_the_bfd_time_although_there_is_graceful_restart() {
    let mut world = announced(routers::Terms::new());

    world.kill(0, true);

    // Three times 200 ms, and one packet under way.
    held_for(&mut world, Duration::from_millis(650));
}

#[test]
fn a_cable_that_is_cut_for_a_moment_costs_no_session_without_bfd_and_all_comes_back_with_it() {
    for bfd in [false, true] {
        let mut world = announced(routers::Terms { bfd, ..routers::Terms::new() });

        world.set_cut(0, true);
        world.run(Duration::from_millis(1500)).unwrap();
        assert_eq!(world.table(0).is_empty(), bfd);
        world.set_cut(0, false);

        world.run(Duration::from_secs(5)).unwrap();
        world.check_settled().unwrap();
    }
}
