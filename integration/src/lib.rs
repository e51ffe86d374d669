//! Proof: the simulator, the lab and the tests. Never shipped.

pub mod verify;
pub mod workspace;
