//! Any bytes as a BGP connection: no panic, the cut does not depend on how the bytes arrive, and what is understood
//! says the same when written again.
#![cfg_attr(fuzzing, no_main)]

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use ferrogate_wire::bgp::{
    Asn, AttributeFault, Attributes, Dialect, Family, Message, MessageError, NextHop, Notification, Open, Prefix,
    Update, announce, end_of_rib,
    frame::{Cutter, Frame, HEADER_LEN, HeaderError, MAX_EXTENDED_LEN, MAX_LEN, MessageType},
    route_refresh, withdraw,
};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check(bytes));

/// A message with its header off.
type Body = (MessageType, Vec<u8>);

const TYPES: [MessageType; 5] = [
    MessageType::Open,
    MessageType::Update,
    MessageType::Notification,
    MessageType::Keepalive,
    MessageType::RouteRefresh,
];

/// Messages of one connection whose bytes arrive in pieces of these sizes, then all that is left, and how it ends.
fn cut(
    mut bytes: &[u8],
    pieces: impl IntoIterator<Item = usize>,
    extended: bool,
) -> (Vec<Body>, Result<(), HeaderError>) {
    let mut cutter = Cutter::default();
    if extended {
        cutter.allow_extended();
    }
    let mut messages = Vec::new();
    for size in pieces.into_iter().chain([bytes.len()]) {
        let (mut piece, rest) = bytes.split_at(size.min(bytes.len()));
        bytes = rest;
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
        let whole = cut(bytes, [], extended);
        assert_eq!(whole, cut(bytes, bytes.iter().map(|_| 1), extended), "single bytes give the same");
        // The input says itself how it is torn apart.
        let torn = bytes.iter().map(|&byte| usize::from(byte));
        assert_eq!(whole, cut(bytes, torn, extended), "any pieces give the same");
        for (kind, body) in whole.0 {
            check_message(kind, &body);
        }
    }
    // Bytes at random rarely have a header: the decoders of bodies get them as they are, too.
    for kind in TYPES {
        check_message(kind, bytes);
    }
}

fn check_message(kind: MessageType, body: &[u8]) {
    let message = match Message::decode(Frame { kind, body }) {
        Ok(message) => message,
        Err(error) => return check_error(body, &error),
    };
    match message {
        Message::Open(open) => check_open(open),
        Message::Update(update) => check_update(body, update),
        Message::Notification(notification) => check_notification(notification),
        Message::Keepalive => {}
        Message::RouteRefresh { family, kind } => {
            let written = family.map(|family| route_refresh(family, kind));
            assert!(written.is_none_or(|message| message[HEADER_LEN..] == *body));
        }
    }
}

fn check_error(body: &[u8], error: &MessageError) {
    assert!(!error.to_string().is_empty());
    let notification = error.notification();
    let code = match error {
        MessageError::Header(_) => {
            let fits = (2..=MAX_EXTENDED_LEN - HEADER_LEN).contains(&body.len());
            assert!(!fits, "only a short or huge NOTIFICATION is refused");
            1
        }
        MessageError::Open(_) => 2,
        MessageError::Update(_) => 3,
        MessageError::RouteRefreshLength { .. } => 7,
    };
    assert_eq!(notification.code, code);
    assert_eq!(cut(&notification.encode(), [], false).1, Ok(()));
}

fn check_open(mut open: Open) {
    // We cannot say that we carry nothing; a peer can, by naming only families unknown to us.
    open.capabilities.families.take_if(|families| families.is_empty());
    let encoded = open.encode();
    assert_eq!(Open::decode(&encoded[HEADER_LEN..]), Ok(open));
    assert_eq!(cut(&encoded, [7, 7, 7], false).1, Ok(()));
}

fn check_notification(notification: Notification) {
    assert!(notification.to_string().len() < 4096);
    if notification.data.len() <= Notification::MAX_DATA_LEN {
        assert_eq!(Notification::decode(&notification.encode()[HEADER_LEN..]), Some(notification));
    }
}

fn check_update(body: &[u8], update: Update) {
    let Update { announced, withdrawn, end_of_rib: end, discarded } = update;
    assert!(announced.len() + withdrawn.len() <= body.len(), "a prefix takes an octet at least");
    assert!(announced.iter().chain(&withdrawn).all(|prefix| prefix.ip() == prefix.network()));
    assert!(discarded.is_none_or(|fault| !fault.to_string().is_empty() && !fault.reason().is_empty()));
    assert!(!discarded.is_some_and(AttributeFault::withdraws) || announced.is_empty());
    if let Some(family) = end {
        assert!(announced.is_empty() && withdrawn.is_empty());
        let again = Update { end_of_rib: end, ..Update::default() };
        assert_eq!(Update::decode(&end_of_rib(family)[HEADER_LEN..]), Ok(again));
    }

    let dialect = Dialect {
        four_octet_asn: body.len().is_multiple_of(2),
        max_len: if body.len().is_multiple_of(3) { MAX_EXTENDED_LEN } else { MAX_LEN },
    };
    for next_hop in [
        NextHop::Ipv4(Ipv4Addr::LOCALHOST),
        NextHop::Ipv6 { global: Ipv6Addr::LOCALHOST, link_local: Some(Ipv6Addr::LOCALHOST) },
    ] {
        let attributes = Attributes {
            as_path: Asn::new(65536).into_iter().collect(),
            next_hop,
            multi_exit_disc: None,
            local_pref: None,
            communities: BTreeSet::new(),
            extended_communities: BTreeSet::new(),
            large_communities: BTreeSet::new(),
        };
        let read = read_all(dialect, announce(dialect, &attributes, &announced));
        assert_eq!(read, Update { announced: by_family(&announced), ..Update::default() });
    }
    let read = read_all(dialect, withdraw(dialect, &withdrawn));
    assert_eq!(read, Update { withdrawn: by_family(&withdrawn), ..Update::default() });
}

/// All that these messages of ours say.
fn read_all(dialect: Dialect, messages: Vec<Vec<u8>>) -> Update {
    let mut all = Update::default();
    for message in messages {
        assert!(message.len() <= dialect.max_len);
        let update = Update::decode(&message[HEADER_LEN..]).expect("our own message");
        assert_eq!((update.end_of_rib, update.discarded), (None, None));
        all.announced.extend(update.announced);
        all.withdrawn.extend(update.withdrawn);
    }
    all
}

/// The prefixes in the order in which they are sent.
fn by_family(prefixes: &[Prefix]) -> Vec<Prefix> {
    let mut prefixes = prefixes.to_vec();
    prefixes.sort_by_key(Family::of);
    prefixes
}
