//! Any bytes as an HTTP request head: no panic, and what goes on to the next hop is read by the same rules as the
//! same request, however the bytes were cut.
#![cfg_attr(fuzzing, no_main)]

use ferrogate_wire::http1::{Fault, HeadScanner, Limits, RequestBody, RequestHead, Slots, path};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check(bytes));

const LIMITS: Limits = Limits { head_bytes: 2048, headers: 32, target_bytes: 512 };

/// Reads, and holds the result to its promises.
pub fn check(bytes: &[u8]) {
    let at_once = HeadScanner::request().scan(bytes, &LIMITS);
    let mut scanner = HeadScanner::request();
    let mut byte_by_byte = Ok(None);
    for end in 0..=bytes.len() {
        byte_by_byte = scanner.scan(&bytes[..end], &LIMITS);
        if !matches!(byte_by_byte, Ok(None)) {
            break;
        }
    }
    assert_eq!(byte_by_byte, at_once);

    let Ok(Some(head)) = at_once else { return };
    let Ok(once) = forwarded(&bytes[head.start..head.end], &LIMITS) else { return };
    // What the gateway adds may be more than a client may send.
    let limits = Limits { headers: 64, ..LIMITS };
    let twice = forwarded(&once.bytes, &limits).expect("what is forwarded is accepted");
    assert_eq!(String::from_utf8_lossy(&once.bytes), String::from_utf8_lossy(&twice.bytes));
    assert_eq!(once.body, twice.body);
}

struct Forwarded {
    bytes: Vec<u8>,
    body: RequestBody,
}

fn forwarded(head: &[u8], limits: &Limits) -> Result<Forwarded, Fault> {
    let mut slots = Slots::default();
    let head = RequestHead::parse(head, &mut slots, limits)?;
    if head.authority.is_empty() {
        // Only HTTP/1.0 may leave its host out; the request that goes on has an empty one.
        return Err(Fault::HostMissing);
    }
    let mut scratch = Vec::new();
    let path = path::normalise(head.path, &mut scratch)?;
    assert!(path == "*" || path.starts_with('/'), "{path}");
    assert!(!path.contains("//") && !path.contains("/../") && !path.contains("/./"), "{path}");
    let mut bytes = Vec::new();
    head.write(path, b"X-Forwarded-For: 192.0.2.1\r\n", &mut bytes);
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    assert!(
        lines[..lines.len() - 1].iter().all(|line| line.ends_with(b"\r") && !line[..line.len() - 1].contains(&b'\r'))
    );
    assert!(bytes.ends_with(b"\r\n\r\n"));
    Ok(Forwarded { bytes, body: head.body })
}
