//! BGP of the speaker against real routers, in network namespaces of their own. Tests that prove an item of the routing
//! checklist are named after it.
//!
//! Needs root, FRR, BIRD, GoBGP and ExaBGP; `cargo verify -- --only bgp` installs them.

#![allow(clippy::unwrap_used, reason = "tests may")]

#[path = "bgp/stand.rs"]
mod stand;

#[path = "bgp/stalls.rs"]
mod stalls;

#[path = "bgp/bfd.rs"]
mod bfd;

#[path = "bgp/broken.rs"]
mod broken;

#[path = "bgp/hostile.rs"]
mod hostile;

#[path = "bgp/load.rs"]
mod load;

#[path = "bgp/protection.rs"]
mod protection;

#[path = "bgp/reach.rs"]
mod reach;

#[path = "bgp/restart.rs"]
mod restart;

#[path = "bgp/sent.rs"]
mod sent;

#[path = "bgp/timers.rs"]
mod timers;

#[path = "bgp/session.rs"]
mod session;

#[path = "bgp/unnumbered.rs"]
mod unnumbered;
