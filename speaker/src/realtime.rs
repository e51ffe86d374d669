//! Priority for one thread.
//!
//! `unsafe` is needed here because no safe wrapper knows `sched_setscheduler`, nor `setpriority` for a thread.
#![allow(unsafe_code)]

use std::io;

/// The lowest of the real-time priorities: before everything that has none, and behind everything that has another.
const PRIORITY: libc::c_int = 1;

/// Gives the calling thread real-time priority (`SCHED_FIFO`). What it starts does not inherit it.
///
/// # Errors
/// `PermissionDenied` without CAP_SYS_NICE or a limit (`RLIMIT_RTPRIO`) that allows it.
pub(crate) fn claim() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the kernel reads one `sched_param`, which lives until the call returns; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How nice a thread is that others must not keep from speaking: among those of its cgroup it counts nine times as much as one
/// of the usual niceness.
const NICENESS: libc::c_int = -10;

/// Has the calling thread go before others of this process. What it starts inherits it.
///
/// # Errors
/// `PermissionDenied` without CAP_SYS_NICE or a limit (`RLIMIT_NICE`) that allows it.
pub(crate) fn go_first() -> io::Result<()> {
    // SAFETY: no memory is passed; 0 is the calling thread.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_that_may_goes_first_and_one_that_may_not_is_told() {
        let gone_first = || {
            let gone_first = go_first();
            // SAFETY: no memory is passed; 0 is the calling thread.
            (gone_first.map_err(|error| error.kind()), unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) })
        };

        let (gone_first, niceness) = thread::spawn(gone_first).join().unwrap();

        match gone_first {
            Ok(()) => assert_eq!(niceness, NICENESS),
            Err(kind) => assert_eq!(kind, io::ErrorKind::PermissionDenied),
        }
    }
}
