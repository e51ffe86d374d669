//! Time limits without timers: each connection says until when it waits, one sweeper of the thread looks at all of
//! them a few times a second.
//!
//! A timer of its own for every request would cost more than parsing the request.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use ferrogate_core::proxy::ListenerKey;
use slab::Slab;
use tokio::sync::Notify;

/// Why a wait was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its time was over.
    Timeout,
    /// The connection was idle and shall be closed.
    Closing,
}

/// The open connections of one thread.
pub(crate) struct Watches {
    now: Cell<Instant>,
    all: RefCell<Slab<Rc<State>>>,
    /// Told when a connection ends.
    freed: Notify,
}

struct State {
    listener: ListenerKey,
    deadline: Cell<Option<Instant>>,
    idle: Cell<bool>,
    ended: Cell<Option<Ended>>,
    waker: RefCell<Option<Waker>>,
}

impl State {
    fn end(&self, why: Ended) {
        self.ended.set(Some(why));
        self.deadline.set(None);
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

impl Watches {
    /// None yet.
    pub(crate) fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self { now: Cell::new(now), all: RefCell::default(), freed: Notify::new() })
    }

    /// The time of the last sweep: good to one tick, and free.
    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    /// How many connections are open.
    pub(crate) fn len(&self) -> usize {
        self.all.borrow().len()
    }

    /// Waits until a connection ends.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Ends every wait whose time is over.
    pub(crate) fn sweep(&self, now: Instant) {
        self.now.set(now);
        for (_, state) in self.all.borrow().iter() {
            if state.deadline.get().is_some_and(|deadline| deadline <= now) {
                state.end(Ended::Timeout);
            }
        }
    }

    /// Ends every idle connection, of one listener or of all.
    pub(crate) fn close_idle(&self, listener: Option<ListenerKey>) {
        for (_, state) in self.all.borrow().iter() {
            if state.idle.get() && listener.is_none_or(|listener| listener == state.listener) {
                state.end(Ended::Closing);
            }
        }
    }
}

/// One open connection; it counts as open for as long as this lives.
pub(crate) struct Watch {
    watches: Rc<Watches>,
    state: Rc<State>,
    key: usize,
}

impl Watch {
    /// Adds a connection.
    pub(crate) fn new(watches: &Rc<Watches>, listener: ListenerKey) -> Self {
        let state = Rc::new(State {
            listener,
            deadline: Cell::new(None),
            idle: Cell::new(false),
            ended: Cell::new(None),
            waker: RefCell::new(None),
        });
        let key = watches.all.borrow_mut().insert(Rc::clone(&state));
        Self { watches: Rc::clone(watches), state, key }
    }

    /// What follows may take so long from now on.
    pub(crate) fn arm(&self, limit: Duration) {
        self.state.idle.set(false);
        self.state.deadline.set(self.watches.now().checked_add(limit));
    }

    /// What follows is waiting for a next request, which may be ended at any time.
    pub(crate) fn arm_idle(&self, limit: Duration) {
        self.arm(limit);
        self.state.idle.set(true);
    }

    /// Waits for `wait`, or until it is ended from outside. To be used from the task of the connection only.
    pub(crate) async fn guard<T>(&self, wait: impl Future<Output = T>) -> Result<T, Ended> {
        let mut wait = pin!(wait);
        poll_fn(|context| {
            if let Some(why) = self.state.ended.take() {
                return Poll::Ready(Err(why));
            }
            if let Poll::Ready(done) = wait.as_mut().poll(context) {
                return Poll::Ready(Ok(done));
            }
            let mut waker = self.state.waker.borrow_mut();
            match waker.as_mut() {
                Some(waker) => waker.clone_from(context.waker()),
                None => *waker = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watches.all.borrow_mut().try_remove(self.key);
        self.watches.freed.notify_waiters();
        self.watches.freed.notify_one();
    }
}
