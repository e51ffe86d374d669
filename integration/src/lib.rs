//! Proof: the simulator, the lab and the tests. Never shipped.

pub mod lab;
pub mod netns;
pub mod verify;
pub mod workspace;
