//! Any bytes as a frame of neighbour discovery or as a router advertisement: no panic, and what is understood says the same when written again.
//!
//! Random bytes almost never carry the right checksum, so each input is tried as it is and with the checksum mended.
#![cfg_attr(fuzzing, no_main)]

use ferrogate_wire::ndp::{self, Advertisement, DecodeError, Ndp, router::RouterAdvertisement};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check(bytes));

/// Decodes, and holds the result to its promises.
pub fn check(bytes: &[u8]) {
    if let Ok(advertisement) = RouterAdvertisement::decode(bytes) {
        assert_eq!(RouterAdvertisement::decode(&advertisement.encode()), Ok(advertisement));
    }
    let mut bytes = bytes.to_vec();
    let mut decoded = ndp::decode(&bytes);
    if let Err(DecodeError::Checksum { computed, .. }) = decoded {
        // The offset of the checksum: Ethernet, IPv6, then type and code.
        bytes[14 + 40 + 2..][..2].copy_from_slice(&computed.to_be_bytes());
        decoded = ndp::decode(&bytes);
        assert!(!matches!(decoded, Err(DecodeError::Checksum { .. })), "the computed checksum is the right one");
    }
    let Ok(message) = decoded else {
        return;
    };
    if let Ndp::Solicitation(solicitation) = &message {
        let answer = Advertisement::answer(solicitation, solicitation.source_mac);
        assert_eq!(ndp::decode(&answer.encode()), Ok(Ndp::Advertisement(answer)));
    }
    assert_eq!(ndp::decode(&message.encode()), Ok(message));
}
