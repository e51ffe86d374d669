//! Any bytes as a chunked body: no panic, the same however the bytes are cut, and what is kept means the same.
#![cfg_attr(fuzzing, no_main)]

use ferrogate_wire::http1::{ChunkScanner, Fault, Keep};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check(bytes));

/// What a whole body came to.
#[derive(Debug, PartialEq)]
struct Body {
    kept: Vec<u8>,
    consumed: usize,
    done: bool,
}

/// Scans, and holds the result to its promises.
pub fn check(bytes: &[u8]) {
    let framed = scanned(bytes, Keep::Framing, bytes.len());
    assert_eq!(scanned(bytes, Keep::Framing, 1), framed);
    assert_eq!(scanned(bytes, Keep::Framing, 7), framed);
    let payload = scanned(bytes, Keep::Payload, bytes.len());
    assert_eq!(framed.is_ok(), payload.is_ok());

    let (Ok(framed), Ok(payload)) = (framed, payload) else { return };
    let again = scanned(&framed.kept, Keep::Framing, framed.kept.len()).expect("what is kept is accepted");
    assert_eq!((&again.kept, again.done), (&framed.kept, framed.done));
    let inside = scanned(&framed.kept, Keep::Payload, framed.kept.len()).expect("what is kept is accepted");
    assert_eq!(inside.kept, payload.kept);
}

fn scanned(bytes: &[u8], keep: Keep, piece: usize) -> Result<Body, Fault> {
    let mut scanner = ChunkScanner::new(keep);
    let mut body = Body { kept: Vec::new(), consumed: 0, done: false };
    for piece in bytes.chunks(piece.max(1)) {
        let mut piece = piece.to_vec();
        let scanned = scanner.scan(&mut piece)?;
        assert!(scanned.kept <= scanned.consumed && scanned.consumed <= piece.len());
        body.kept.extend_from_slice(&piece[..scanned.kept]);
        body.consumed += scanned.consumed;
        body.done = scanned.done;
        if scanned.done {
            break;
        }
    }
    Ok(body)
}
