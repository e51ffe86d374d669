//! BGP of the speaker against real routers, in network namespaces of their own. Tests that prove an item of the routing
//! checklist are named after it.
//!
//! Needs root, FRR, BIRD, GoBGP and ExaBGP; `cargo verify -- --only bgp` installs them.

#[path = "bgp/stand.rs"]
mod stand;

#[path = "bgp/session.rs"]
mod session;
