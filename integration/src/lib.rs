//! Proof: the simulator, the lab and the tests. Never shipped.
