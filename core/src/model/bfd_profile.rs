//! How quickly a silent neighbour is noticed (BFD, RFC 5880).

use std::{num::NonZeroU8, time::Duration};

use crate::model::ObjectKey;

/// A valid BFDProfile, with what stands where nothing was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BfdProfile {
    /// Where the object lives.
    pub key: ObjectKey,
    /// Written for MetalLB: it counts like any other, and its status is left to MetalLB.
    pub read_only: bool,
    /// `metadata.generation`; 0 where the source has none.
    pub generation: i64,
    /// `spec.receiveInterval`: the shortest time between packets that we take, 10 ms to 60 s.
    pub receive_interval: Duration,
    /// `spec.transmitInterval`: the shortest time between packets that we send, 10 ms to 60 s.
    pub transmit_interval: Duration,
    /// `spec.detectMultiplier`: how many packets may be missing, 2 to 255.
    pub detect_multiplier: NonZeroU8,
    /// `spec.echoInterval` where `spec.echoMode` is on: the shortest time between echo packets, 10 ms to 60 s. None are
    /// sent; it only says who would get them.
    pub echo_interval: Option<Duration>,
    /// `spec.passiveMode`: the neighbour begins.
    pub passive: bool,
    /// `spec.minimumTtl`: the lowest TTL that is taken over several hops, 1 to 254.
    pub minimum_ttl: NonZeroU8,
}
