//! Any bytes as a datagram between speakers, sealed or not: no panic, and what is understood says the same when it is
//! written again.
#![cfg_attr(fuzzing, no_main)]

use ferrogate_wire::gossip::{Datagram, Key, Keys, MAX_LEN};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check(bytes));

/// The salt is of no matter where a datagram is sealed only to be opened.
const SALT: [u8; 16] = [7; 16];

/// Decodes, and holds the result to its promises.
pub fn check(bytes: &[u8]) {
    let keys = Keys::new([Key::from([1; 32])]);
    // Only a seed gets beyond the seal; what is inside is reached by those that are not sealed.
    let _ = Datagram::open(bytes, &keys);
    let Ok(datagram) = Datagram::open(bytes, &Keys::default()) else {
        return;
    };
    let encoded = datagram.seal(&Keys::default(), &SALT).expect("what was decoded is within its bounds");
    assert!(encoded.len() == bytes.len() && encoded.len() <= MAX_LEN, "nothing is added and nothing left out");
    assert_eq!(Datagram::open(&encoded, &Keys::default()).as_ref(), Ok(&datagram));
    let sealed = datagram.seal(&keys, &SALT).expect("what was decoded is within its bounds");
    assert_eq!(Datagram::open(&sealed, &keys), Ok(datagram));
}
