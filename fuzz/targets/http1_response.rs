//! Any bytes as an HTTP response head: no panic, and what goes to the client has one meaning.
#![cfg_attr(fuzzing, no_main)]

use ferrogate_wire::http1::{Answer, HeadScanner, Limits, ResponseBody, ResponseHead, Slots, Version};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check(bytes));

const LIMITS: Limits = Limits { head_bytes: 2048, headers: 32, target_bytes: 512 };

/// Reads, and holds the result to its promises.
pub fn check(bytes: &[u8]) {
    for (to_head, websocket) in [(false, false), (true, false), (false, true)] {
        let Ok(Some(head)) = HeadScanner::response().scan(bytes, &LIMITS) else { return };
        let mut slots = Slots::default();
        let bytes = &bytes[head.start..head.end];
        let Ok(head) = ResponseHead::parse(bytes, to_head, websocket, &mut slots, &LIMITS) else { continue };
        let mut written = Vec::new();
        head.write(&Answer { version: Version::Http11, close: false, date: b"Date: now\r\n" }, &mut written);

        // What the gateway adds may be more than an endpoint may send.
        let limits = Limits { head_bytes: 4096, headers: 64, ..LIMITS };
        assert_eq!(
            HeadScanner::response().scan(&written, &limits).map(|head| head.map(|head| head.end)),
            Ok(Some(written.len()))
        );
        let mut slots = Slots::default();
        let again =
            ResponseHead::parse(&written, to_head, websocket, &mut slots, &limits).expect("it was written by us");
        assert_eq!(again.status, head.status);
        assert!(again.body == head.body || head.body == ResponseBody::None, "{:?} became {:?}", head.body, again.body);
    }
}
