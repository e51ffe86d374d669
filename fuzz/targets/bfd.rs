//! Any bytes as a BFD control packet: no panic, and what is understood says the same when written again.
#![cfg_attr(fuzzing, no_main)]

use ferrogate_wire::bfd::{self, LEN};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check(bytes));

/// Decodes, and holds the result to its promises.
pub fn check(bytes: &[u8]) {
    let Ok(packet) = bfd::decode(bytes) else {
        return;
    };
    let encoded = packet.encode();
    // A packet has one spelling but for its length, which may count what follows.
    let mut expected = bytes[..LEN].to_vec();
    expected[3] = LEN as u8;
    assert_eq!(encoded.as_slice(), expected, "{packet:?}");
    assert_eq!(bfd::decode(&encoded), Ok(packet));
}
