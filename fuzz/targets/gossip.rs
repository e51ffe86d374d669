//! Any bytes as a heartbeat: no panic, and what is understood says the same when written again.
#![cfg_attr(fuzzing, no_main)]

use ferrogate_wire::gossip::{Heartbeat, MAX_LEN};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check(bytes));

/// Decodes, and holds the result to its promises.
pub fn check(bytes: &[u8]) {
    let Ok(heartbeat) = Heartbeat::decode(bytes) else {
        return;
    };
    let encoded = heartbeat.encode().expect("what was decoded is within its bounds");
    assert!(encoded.len() == bytes.len() && encoded.len() <= MAX_LEN, "nothing is added and nothing left out");
    assert_eq!(Heartbeat::decode(&encoded), Ok(heartbeat));
}
