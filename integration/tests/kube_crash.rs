//! Two controllers on a modelled API server, killed, stopped and delayed between every two of their writes.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use ferrogate_integration::sim::crash::{Failure, Fate, Guards, Outcome, Schedule, run};

const DEFAULT_SEEDS: u64 = 100_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn storm(seed: u64, guards: Guards) -> Schedule {
    Schedule { seed, fates: BTreeMap::new(), is_stormy: true, guards }
}

/// Runs `count` schedules on all processors; the first that fails ends it.
fn run_all(count: u64, schedule: impl Fn(u64) -> Schedule + Sync) -> Result<Outcome, Box<Failure>> {
    let next = AtomicU64::new(0);
    let begin = Instant::now();
    let worker = || -> Result<Outcome, Box<Failure>> {
        let mut sum = Outcome::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return Ok(sum);
            }
            let schedule = schedule(index);
            let outcome = run(&schedule, false).map_err(|failure| {
                next.store(count, Ordering::Relaxed);
                run(&schedule, true).err().unwrap_or(failure)
            })?;
            sum.writes += outcome.writes;
            sum.leaders += outcome.leaders;
            sum.refused += outcome.refused;
        }
    };
    let outcomes: Result<Vec<Outcome>, _> = thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let sum = outcomes?.into_iter().fold(Outcome::default(), |sum, one| Outcome {
        writes: sum.writes + one.writes,
        leaders: sum.leaders + one.leaders,
        refused: sum.refused + one.refused,
    });
    println!("{count} schedules in {:.1?}: {sum:?}", begin.elapsed());
    Ok(sum)
}

/// `SEED=7` runs that seed alone; `FERROGATE_CRASH_SEEDS` says how many are run otherwise.
#[test]
fn whatever_becomes_of_two_controllers_no_address_is_given_twice_and_all_is_well_in_the_end() {
    let (first, count) = match number("SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("FERROGATE_CRASH_SEEDS").unwrap_or(DEFAULT_SEEDS)),
    };

    let outcome = run_all(count, |index| storm(first + index, Guards::default()));

    let outcome = outcome.unwrap_or_else(|failure| panic!("{failure}"));
    if count > 1 {
        assert!(outcome.leaders > 2 * count && outcome.refused > count / 10, "too dull: {outcome:?}");
    }
}

/// Every pair of writes of one script, and every fate of each of them.
#[test]
fn a_leader_that_dies_or_sleeps_at_any_two_of_its_writes_gives_no_address_twice() {
    let fates = Fate::ALL.len() as u64;
    let points = 24;
    let count = points * points * fates * fates;
    let fate = |index: u64| Fate::ALL[usize::try_from(index).unwrap()];

    let outcome = run_all(count, |index| {
        let (first, index) = (index % points, index / points);
        let (second, index) = (index % points, index / points);
        let fates_at = BTreeMap::from([(1 + first, fate(index % fates)), (2 + first + second, fate(index / fates))]);
        Schedule { seed: 3, fates: fates_at, is_stormy: false, guards: Guards::default() }
    });

    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn the_simulation_notices_when_any_one_of_the_guards_is_missing() {
    let all = Guards::default();
    for guards in [Guards { time: false, ..all }, Guards { versions: false, ..all }, Guards { fences: false, ..all }] {
        let failure = run_all(20_000, |seed| storm(seed, guards)).expect_err(&format!("{guards:?} is not missed"));

        println!("{guards:?}: seed {}: {}", failure.schedule.seed, failure.what);
        assert!(failure.what.contains("was given to"), "{failure}");
    }
}
