use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    model::service::{Endpoint, Service},
    proxy::{
        RouteTable, Serves,
        fixtures::{BuildEndpoint, BuildService, address, endpoint, number, service, snapshot},
    },
};

const CLIENT: &str = "203.0.113.1";

struct Bench {
    backend: Backend,
    balancer: Balancer,
    now: Instant,
}

impl Bench {
    fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        Self::of(endpoints.into_iter().fold(service("web"), BuildService::with))
    }

    fn sticky(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let service = endpoints.into_iter().fold(service("web"), BuildService::with);
        let session_affinity = SessionAffinity::ClientIp { timeout: Duration::from_secs(10_800) };
        Self::of(Service { session_affinity, ..service })
    }

    fn of(service: Service) -> Self {
        Self::out_of_sight(service, &[])
    }

    fn out_of_sight(service: Service, nodes: &[&str]) -> Self {
        let mut facts = snapshot([service.at("192.0.2.1")], []);
        facts.unreachable = nodes.iter().map(|node| (*node).into()).collect();
        let table = RouteTable::compile(&facts, None);
        let Some(Serves::Tcp(id)) = table.listeners().values().next().map(|listener| listener.serves) else { panic!() };
        #[expect(clippy::disallowed_methods, reason = "any moment will do to count from")]
        let now = Instant::now();
        Self { backend: table.backend(id).unwrap().clone(), balancer: Balancer::new(1), now }
    }

    fn choose(&mut self, client: &str, tried: &[&str]) -> Option<String> {
        let tried: Vec<SocketAddr> = tried.iter().map(|text| socket(text)).collect();
        let chosen = self.balancer.choose(self.now, BackendId(0), &self.backend, address(client), &tried)?;
        Some(chosen.ip().to_string())
    }

    /// Chooses and is done with it at once.
    fn turn(&mut self) -> String {
        let chosen = self.choose(CLIENT, &[]).unwrap();
        self.balancer.finished(socket(&chosen));
        chosen
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn fail(&mut self, text: &str) {
        self.balancer.failed(self.now, socket(text));
    }
}

fn socket(text: &str) -> SocketAddr {
    SocketAddr::new(address(text), 8080)
}

fn pods(count: u8) -> impl Iterator<Item = Endpoint> {
    (1..=count).map(|last| endpoint(&pod(last)))
}

fn pod(last: u8) -> String {
    format!("198.51.100.{last}")
}

#[test]
fn l_027_a_hundred_requests_to_ten_pods_give_each_of_them_ten() {
    let mut bench = Bench::new(pods(10));

    let mut served: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..100 {
        *served.entry(bench.turn()).or_default() += 1;
    }

    assert_eq!(served.len(), 10);
    assert!(served.values().all(|count| *count == 10), "{served:?}");
}

#[test]
fn threads_begin_at_different_endpoints() {
    let first = |seed| {
        let mut bench = Bench { balancer: Balancer::new(seed), ..Bench::new(pods(10)) };
        bench.turn()
    };

    let starts: BTreeSet<String> = (0..32).map(first).collect();

    assert!(starts.len() >= 5, "{starts:?}");
}

#[test]
fn an_endpoint_that_is_slow_to_finish_gets_less() {
    let mut bench = Bench::new(pods(3));
    let slow = pod(2);

    let mut served: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..90 {
        let chosen = bench.choose(CLIENT, &[]).unwrap();
        if chosen != slow {
            bench.balancer.finished(socket(&chosen));
        }
        *served.entry(chosen).or_default() += 1;
    }

    assert_eq!(served[&slow], 1);
}

#[test]
fn a_retry_goes_to_an_endpoint_that_was_not_tried() {
    let mut bench = Bench::new(pods(3));

    assert_eq!(bench.choose(CLIENT, &[&pod(1), &pod(3)]), Some(pod(2)));
    assert_eq!(bench.choose(CLIENT, &[&pod(1), &pod(2), &pod(3)]), None);
}

#[test]
fn endpoints_that_are_not_ready_are_never_chosen() {
    let mut bench = Bench::new([endpoint(&pod(1)).not_ready(), endpoint(&pod(2))]);

    assert_eq!(bench.choose(CLIENT, &[&pod(2)]), None);
}

#[test]
fn terminating_endpoints_serve_when_no_ready_one_is_left() {
    let mut bench = Bench::new([endpoint(&pod(1)).terminating(), endpoint(&pod(2))]);

    assert_eq!((bench.turn(), bench.turn()), (pod(2), pod(2)));
    assert_eq!(bench.choose(CLIENT, &[&pod(2)]), Some(pod(1)));
    assert_eq!(Bench::new([endpoint(&pod(1)).terminating()]).turn(), pod(1));
}

#[test]
fn endpoints_on_nodes_out_of_sight_serve_when_no_other_is_left() {
    let service = service("web").with(endpoint(&pod(1)).on("a")).with(endpoint(&pod(2)).on("b").terminating());
    let mut bench = Bench::out_of_sight(service, &["a"]);

    assert_eq!((bench.turn(), bench.turn()), (pod(2), pod(2)));
    assert_eq!(bench.choose(CLIENT, &[&pod(2)]), Some(pod(1)));
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_until_its_time_is_over() {
    let mut bench = Bench::new(pods(2));
    bench.fail(&pod(1));

    let before: BTreeSet<String> = (0..10).map(|_| bench.turn()).collect();
    bench.wait(FIRST_EJECTION);
    let after: BTreeSet<String> = (0..10).map(|_| bench.turn()).collect();

    assert_eq!(before, BTreeSet::from([pod(2)]));
    assert_eq!(after, BTreeSet::from([pod(1), pod(2)]));
}

#[test]
fn after_the_ejection_one_request_tries_and_the_others_wait_for_its_outcome() {
    let mut bench = Bench::new(pods(2));
    bench.fail(&pod(1));
    bench.wait(FIRST_EJECTION);

    let tries = (0..10).filter(|_| bench.turn() == pod(1)).count();
    bench.balancer.connected(socket(&pod(1)));
    let later = (0..10).filter(|_| bench.turn() == pod(1)).count();

    assert_eq!((tries, later), (1, 5));
}

#[test]
fn a_try_that_nobody_reports_on_is_repeated() {
    let mut bench = Bench::new(pods(2));
    bench.fail(&pod(1));
    bench.wait(FIRST_EJECTION);

    let first = (0..10).filter(|_| bench.turn() == pod(1)).count();
    bench.wait(TRIAL_PATIENCE);
    let second = (0..10).filter(|_| bench.turn() == pod(1)).count();

    assert_eq!((first, second), (1, 1));
}

#[test]
fn each_failed_try_doubles_the_ejection_up_to_the_limit() {
    let mut bench = Bench::new(pods(2));

    let mut ejections = Vec::new();
    for _ in 0..6 {
        bench.fail(&pod(1));
        let began = bench.now;
        while bench.balancer.ejected(bench.now, socket(&pod(1))) {
            bench.wait(Duration::from_millis(500));
        }
        ejections.push((bench.now - began).as_secs());
        assert!((0..2).any(|_| bench.turn() == pod(1)));
    }

    assert_eq!(ejections, [1, 2, 4, 8, 10, 10]);
}

#[test]
fn failures_of_tries_that_ran_side_by_side_count_once() {
    let mut bench = Bench::new(pods(2));

    (0..20).for_each(|_| bench.fail(&pod(1)));

    bench.wait(FIRST_EJECTION);
    assert!(!bench.balancer.ejected(bench.now, socket(&pod(1))));
}

#[test]
fn when_every_endpoint_is_ejected_the_one_that_returns_first_is_tried() {
    let mut bench = Bench::new(pods(2));
    bench.fail(&pod(2));
    bench.wait(Duration::from_millis(100));
    bench.fail(&pod(1));

    assert_eq!(bench.turn(), pod(2));
    assert_eq!(bench.choose(CLIENT, &[&pod(2)]), Some(pod(1)));
}

#[test]
fn an_ejection_outlives_a_new_table_and_work_in_flight_is_still_known() {
    let mut bench = Bench::new(pods(2));
    bench.choose(CLIENT, &[&pod(1)]).unwrap();
    bench.fail(&pod(1));

    bench.balancer.adopt(bench.now);

    assert!(bench.balancer.ejected(bench.now, socket(&pod(1))));
    assert_eq!(bench.balancer.in_flight(socket(&pod(2))), 1);
    bench.balancer.finished(socket(&pod(2)));
    bench.wait(FIRST_EJECTION + LONGEST_EJECTION);
    bench.balancer.adopt(bench.now);
    assert!(bench.balancer.endpoints.is_empty());
}

#[test]
fn a_client_keeps_its_endpoint_on_every_thread_and_node() {
    let clients: Vec<String> = (0..=255).map(|last| format!("203.0.113.{last}")).collect();
    let mut here = Bench::sticky(pods(5));
    let mut there = Bench { balancer: Balancer::new(99), ..Bench::sticky(pods(5)) };

    for client in &clients {
        let choice = here.choose(client, &[]);
        assert_eq!(choice, here.choose(client, &[]));
        assert_eq!(choice, there.choose(client, &[]));
    }
}

#[test]
fn an_endpoint_that_goes_moves_only_its_own_clients_and_they_return_with_it() {
    let clients: Vec<String> = (0..=255).map(|last| format!("203.0.113.{last}")).collect();
    let mut all = Bench::sticky(pods(5));
    let mut fewer = Bench::sticky(pods(4));

    for client in &clients {
        let before = all.choose(client, &[]).unwrap();
        let after = fewer.choose(client, &[]).unwrap();
        assert!(before == after || before == pod(5), "{client} moved from {before} to {after}");
    }
}

#[test]
fn clients_with_affinity_spread_over_all_endpoints() {
    let mut bench = Bench::sticky(pods(4));

    let mut served: BTreeMap<String, usize> = BTreeMap::new();
    for last in 0..=255 {
        *served.entry(bench.choose(&format!("203.0.113.{last}"), &[]).unwrap()).or_default() += 1;
    }

    assert!(served.len() == 4 && served.values().all(|count| (40..90).contains(count)), "{served:?}");
}

#[test]
fn a_client_whose_endpoint_is_ejected_goes_to_the_same_other_one_everywhere() {
    let mut here = Bench::sticky(pods(5));
    let own = here.choose(CLIENT, &[]).unwrap();
    let mut there = Bench { balancer: Balancer::new(7), ..Bench::sticky(pods(5)) };
    here.fail(&own);
    there.fail(&own);

    let other = here.choose(CLIENT, &[]);

    assert_ne!(other.as_deref(), Some(own.as_str()));
    assert_eq!(other, there.choose(CLIENT, &[]));
}

#[test]
fn the_hash_of_client_and_endpoint_stays_what_it_is() {
    let endpoint = SocketAddr::new(address("198.51.100.1"), number(8080).get());

    assert_eq!(score(address("203.0.113.1"), endpoint), score(address("::ffff:203.0.113.1"), endpoint));
    assert_eq!(score(address("203.0.113.1"), endpoint), 0xba2d_2107_f57e_bd78);
}

#[derive(Clone, Debug)]
enum Step {
    Choose { client: u8, tried: Vec<u8> },
    Finish(u8),
    Fail(u8),
    Connect(u8),
    Wait(u16),
    Adopt,
}

fn any_step() -> impl Strategy<Value = Step> {
    let one = 1..8_u8;
    prop_oneof![
        4 => (any::<u8>(), prop::collection::vec(1..8_u8, 0..4)).prop_map(|(client, tried)| Step::Choose { client, tried }),
        2 => one.clone().prop_map(Step::Finish),
        2 => one.clone().prop_map(Step::Fail),
        1 => one.prop_map(Step::Connect),
        1 => any::<u16>().prop_map(Step::Wait),
        1 => Just(Step::Adopt),
    ]
}

proptest! {
    #[test]
    fn a_choice_is_untried_and_of_the_best_tier_that_is_sound(
        kinds in prop::collection::vec(0..4_u8, 1..7),
        sticky in any::<bool>(),
        steps in prop::collection::vec(any_step(), 0..60),
    ) {
        let endpoints = kinds.iter().zip(1_u8..).map(|(kind, last)| {
            let endpoint = endpoint(&pod(last)).on(if kind & 1 == 0 { "near" } else { "far" });
            if kind & 2 == 0 { endpoint } else { endpoint.terminating() }
        });
        let mut service = endpoints.fold(service("web"), BuildService::with);
        if sticky {
            service.session_affinity = SessionAffinity::ClientIp { timeout: Duration::from_secs(1) };
        }
        let mut bench = Bench::out_of_sight(service, &["far"]);
        for step in steps {
            match step {
                Step::Choose { client, tried } => {
                    let tried: Vec<String> = tried.into_iter().map(pod).collect();
                    let tried: Vec<&str> = tried.iter().map(String::as_str).collect();
                    let open: Vec<Target> = bench.backend.targets().iter()
                        .filter(|target| !tried.contains(&target.address.ip().to_string().as_str()))
                        .cloned().collect();
                    let best = open.iter().filter(|target| !bench.balancer.ejected(bench.now, target.address))
                        .map(|target| target.tier).min();
                    let chosen = bench.choose(&format!("203.0.113.{client}"), &tried);
                    let chosen = chosen.map(|text| {
                        open.iter().find(|target| target.address == socket(&text)).expect("untried").tier
                    });
                    prop_assert_eq!(chosen, best.or(open.iter().map(|target| target.tier).min()));
                }
                Step::Finish(last) => bench.balancer.finished(socket(&pod(last))),
                Step::Fail(last) => bench.fail(&pod(last)),
                Step::Connect(last) => bench.balancer.connected(socket(&pod(last))),
                Step::Wait(ms) => bench.wait(Duration::from_millis(ms.into())),
                Step::Adopt => bench.balancer.adopt(bench.now),
            }
            for target in bench.backend.targets() {
                prop_assert!(!bench.balancer.ejected(bench.now + LONGEST_EJECTION, target.address));
            }
        }
    }
}
