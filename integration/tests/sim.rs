//! The machines of `core` together, on a virtual clock: seeds by the thousand, and what earlier seeds have taught.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use ferrogate_integration::sim::chaos;

const DEFAULT_SEEDS: u64 = 10_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// `SEED=7` runs that seed alone; `FERROGATE_SIM_SEEDS` says how many are run otherwise.
#[test]
fn whatever_breaks_addresses_never_split_and_all_come_back() {
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
            steps += chaos::run(seed).inspect_err(|_| next.store(seeds.end, Ordering::Relaxed))?;
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
