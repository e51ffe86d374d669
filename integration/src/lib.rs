//! Proof: the simulator, the lab and the tests. Never shipped.

pub mod kube;
pub mod kubelet;
pub mod lab;
pub mod netns;
pub mod readme;
pub mod router;
pub mod sim;
pub mod verify;
pub mod workspace;
