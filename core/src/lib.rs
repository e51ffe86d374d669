//! Every decision Ferrogate makes, as functions and machines of facts and time.
//!
//! Facts come in as a [`snapshot::Snapshot`], a packet or a timer that ran out; decisions leave as values: a
//! [`write::Write`], an action, a route. Nothing in here waits, sleeps, logs, opens a socket or reads a clock, and
//! every collection iterates in order, so the same facts always give the same answer. Start reading at
//! [`snapshot`], then [`write`](mod@write), then the machine of the room you care about.
#![forbid(unsafe_code)]

pub mod configuration;
pub mod controller;
pub mod lease;
pub mod model;
pub mod proxy;
pub mod snapshot;
pub mod speaker;
pub mod write;
