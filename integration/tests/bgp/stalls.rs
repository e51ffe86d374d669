//! When a processor ran nobody that is urgent: time that a measure must not hold against what it measures.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    process::setpriority_process,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// How long those that look sleep in between.
const LOOK: Duration = Duration::from_millis(5);

/// How late they may wake. A thread that is as urgent and has much to do makes them wait for its slice, which is less.
const LATE: Duration = Duration::from_millis(20);

/// One urgent thread on each processor that only sleeps and wakes. What makes it late by so much is no other thread that is as
/// urgent, but the kernel on behalf of somebody, or whoever runs this machine.
pub struct Stalls {
    seen: Arc<Mutex<Vec<(Duration, Duration)>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Stalls {
    /// Begins to look.
    pub fn watch() -> Self {
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let permitted = sched_getaffinity(None).unwrap();
        let processors = (0..CpuSet::MAX_CPU).filter(|processor| permitted.is_set(*processor));
        let look = |processor| {
            let (seen, stop) = (seen.clone(), stop.clone());
            thread::spawn(move || {
                let mut only = CpuSet::new();
                only.set(processor);
                sched_setaffinity(None, &only).unwrap();
                setpriority_process(None, -20).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let due = now() + LOOK;
                    thread::sleep(LOOK);
                    let woken = now();
                    if woken > due + LATE {
                        seen.lock().unwrap().push((due, woken));
                    }
                }
            })
        };
        let threads = processors.map(look).collect();
        Self { seen, stop, threads }
    }

    /// How much of a time, both ends since 1970, one processor or another did so.
    pub fn between(&self, from: Duration, to: Duration) -> Duration {
        let mut stalls = self.seen.lock().unwrap().clone();
        stalls.sort_unstable();
        let (mut total, mut counted) = (Duration::ZERO, from);
        for (begin, end) in stalls {
            let (begin, end) = (begin.max(counted), end.min(to));
            total += end.saturating_sub(begin);
            counted = counted.max(end);
        }
        total
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            _ = thread.join();
        }
    }
}

/// The time by the clock that the kernel stamps frames by.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}
