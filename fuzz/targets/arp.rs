//! Any bytes as an ARP frame: no panic, and what is understood says the same when written again.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check(bytes));

/// Decodes, and holds the result to its promises.
pub fn check(bytes: &[u8]) {
    let Ok(message) = ferrogate_wire::arp::decode(bytes) else {
        return;
    };
    let encoded = message.encode();
    assert!(bytes.starts_with(&encoded), "an ARP message has one spelling; {message:?}");
    let answer = ferrogate_wire::arp::Arp::answer(&message, message.source);
    assert_eq!(ferrogate_wire::arp::decode(&encoded), Ok(message));
    // A question may be about an address nobody can have; then the answer must not decode.
    if !answer.sender.is_multicast() && !answer.sender.is_broadcast() && !answer.sender.is_unspecified() {
        assert_eq!(ferrogate_wire::arp::decode(&answer.encode()), Ok(answer));
    }
}
