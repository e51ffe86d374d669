//! Bytes to messages and back: total, never panics, never waits.
//!
//! Each module reads one protocol. Decoders take any bytes and return a message or an error that names what is wrong;
//! what was decoded encodes to the same message again.
#![forbid(unsafe_code)]

pub mod arp;
pub mod bfd;
pub mod bgp;
pub mod ethernet;
pub mod gossip;
pub mod http1;
pub mod ndp;
