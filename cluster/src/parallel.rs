//! Work on many things at once, on all processors.

use std::{
    panic::resume_unwind,
    thread::{self, Builder, available_parallelism},
};

/// From how many things on another thread is worth its start.
const ENOUGH: usize = 256;

/// What `work` makes of each, in their order.
pub(crate) fn map<T: Sync, R: Send>(things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let some = |things: &[T]| things.iter().map(&work).collect::<Vec<R>>();
    // Before the processors are counted: that reads files of the control group, which takes longer than one thing does.
    if things.len() <= ENOUGH {
        return some(things);
    }
    let processors = available_parallelism().map_or(1, usize::from);
    let share = things.len().div_ceil(processors).max(ENOUGH);
    if share >= things.len() {
        return some(things);
    }
    thread::scope(|scope| {
        // Where no thread can be had it is done on this one.
        let start = |share| Builder::new().spawn_scoped(scope, move || some(share)).map_err(|_| some(share));
        let started: Vec<_> = things.chunks(share).map(start).collect();
        let ended = started.into_iter().map(|started| match started {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(done) => done,
        });
        ended.flatten().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_there_in_its_order_however_many() {
        for many in [0, 1, ENOUGH, ENOUGH + 1, 20 * ENOUGH + 7] {
            let things: Vec<usize> = (0..many).collect();

            assert_eq!(map(&things, |thing| thing * 2), (0..many).map(|thing| thing * 2).collect::<Vec<_>>());
        }
    }
}
