//! Any bytes as a BGP connection: no panic, the cut does not depend on how the bytes arrive, and what is understood
//! says the same when written again.
#![cfg_attr(fuzzing, no_main)]

use ferrogate_wire::bgp::{
    Notification, Open,
    frame::{Cutter, Frame, HEADER_LEN, HeaderError, MessageType},
};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check(bytes));

type Message = (MessageType, Vec<u8>);

/// Messages of one connection whose bytes arrive in pieces of this size, and how it ends.
fn cut(bytes: &[u8], piece: usize, extended: bool) -> (Vec<Message>, Result<(), HeaderError>) {
    let mut cutter = Cutter::default();
    if extended {
        cutter.allow_extended();
    }
    let mut messages = Vec::new();
    for mut piece in bytes.chunks(piece.max(1)) {
        loop {
            match cutter.feed(&mut piece) {
                Ok(Some(Frame { kind, body })) => messages.push((kind, body.to_vec())),
                Ok(None) => break,
                Err(error) => {
                    let again = cutter.feed(&mut piece);
                    assert_eq!(again, Err(error), "a broken stream stays broken");
                    assert!(!error.notification().encode().is_empty());
                    return (messages, Err(error));
                }
            }
        }
        assert!(piece.is_empty(), "nothing is left behind");
    }
    (messages, Ok(()))
}

/// Cuts and decodes, and holds the results to their promises.
pub fn check(bytes: &[u8]) {
    for extended in [false, true] {
        let whole = cut(bytes, bytes.len(), extended);
        assert_eq!(whole, cut(bytes, 1, extended), "single bytes give the same");
        for (kind, body) in whole.0 {
            match kind {
                MessageType::Open => check_open(&body),
                MessageType::Notification => check_notification(&body),
                MessageType::Keepalive => assert!(body.is_empty()),
                MessageType::Update | MessageType::RouteRefresh => {}
            }
        }
    }
    // Bytes at random rarely have a header: the decoders of bodies get them as they are, too.
    check_open(bytes);
    check_notification(bytes);
}

fn check_open(body: &[u8]) {
    match Open::decode(body) {
        Ok(mut open) => {
            // We cannot say that we carry nothing; a peer can, by naming only families unknown to us.
            open.capabilities.families.take_if(|families| families.is_empty());
            let encoded = open.encode();
            assert_eq!(Open::decode(&encoded[HEADER_LEN..]), Ok(open));
            assert_eq!(cut(&encoded, 7, false).1, Ok(()));
        }
        Err(error) => assert_eq!(error.notification().code, 2),
    }
}

fn check_notification(body: &[u8]) {
    let Some(notification) = Notification::decode(body) else {
        assert!(
            body.len() < 2 || body.len() > usize::from(u16::MAX) - HEADER_LEN,
            "only a short or huge one is refused"
        );
        return;
    };
    assert!(notification.to_string().len() < 4096);
    if notification.data.len() <= Notification::MAX_DATA_LEN {
        assert_eq!(Notification::decode(&notification.encode()[HEADER_LEN..]), Some(notification));
    }
}
