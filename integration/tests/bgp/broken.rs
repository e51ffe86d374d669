//! Messages that cannot be, over a real connection: each is answered with what RFC 4271 §6 says, and the connection ends.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
};

use ferrogate_core::speaker::bgp::{Closing, Neighbor};
use ferrogate_integration::router::PATIENCE;
use ferrogate_wire::bgp::{Asn, BgpIdentifier, Capabilities, HoldTime, Notification, Open, keepalive};

use crate::stand::{OURS, ROUTER, Speaker, Stand, THEIRS, neighbor, wait_until};

/// Offsets in an OPEN with its header (RFC 4271 §4.2).
const VERSION: usize = 19;
const HOLD_TIME: usize = 22;
const IDENTIFIER: usize = 24;

/// What somebody in the place of the router says, and when.
struct Case {
    what: &'static str,
    /// Once the session is established, and not in place of the OPEN.
    is_late: bool,
    bytes: Vec<u8>,
    /// Code, subcode and data of the answer.
    answer: (u8, u8, Vec<u8>),
}

fn open(asn: u32) -> Vec<u8> {
    let open = Open {
        asn: Asn::new(asn).unwrap(),
        hold_time: HoldTime::from_seconds(9).unwrap(),
        identifier: BgpIdentifier::new(ROUTER.to_bits()).unwrap(),
        capabilities: Capabilities { four_octet_asn: true, ..Capabilities::default() },
    };
    open.encode()
}

/// A header with this length and type, and nothing behind it.
fn header(length: u16, kind: u8) -> Vec<u8> {
    let mut header = vec![0xff; 16];
    header.extend(length.to_be_bytes());
    header.push(kind);
    header
}

/// An OPEN that is right but for these bytes.
fn open_with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut open = open(THEIRS);
    open[at..at + bytes.len()].copy_from_slice(bytes);
    open
}

/// The next message with its header; `None` at the end, which is to come.
fn next(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut read = |bytes: &mut [u8]| match stream.read_exact(bytes) {
        Ok(()) => Some(()),
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => None,
        Err(error) => panic!("neither a message nor the end: {error}"),
    };
    let mut message = vec![0; 19];
    read(&mut message)?;
    let length = usize::from(u16::from_be_bytes([message[16], message[17]]));
    message.resize(length, 0);
    read(&mut message[19..])?;
    Some(message)
}

/// The connection that somebody makes.
fn accept(listener: &TcpListener) -> TcpStream {
    let mut accepted = None;
    wait_until("a connection", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.expect("it was waited for");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Connects a peer of this name to the listener, says what the case has to say, and expects the answer and the end.
fn check(speaker: &mut Speaker, listener: &TcpListener, name: &str, peer: Neighbor, case: &Case) {
    let Case { what, is_late, bytes, answer: (code, subcode, data) } = case;
    speaker.peer(name, peer);
    let mut stream = accept(listener);
    if *is_late {
        stream.write_all(&open(THEIRS)).unwrap();
        stream.write_all(&keepalive()).unwrap();
        speaker.wait_until_established(name);
    }
    stream.write_all(bytes).unwrap();

    let last = std::iter::from_fn(|| next(&mut stream)).last();

    let expected = Notification::new(*code, *subcode, data.clone());
    assert_eq!(last, Some(expected.encode()), "{what}");
    let status = speaker.wait_for(name, |status| status.last_close.is_some());
    assert_eq!(status.last_close, Some(Closing::Sent(expected)), "{what}");
    assert_eq!(status.flaps, u32::from(*is_late), "{what}");
    speaker.want(|wanted| _ = wanted.neighbors.remove(name));
}

fn check_all(peer: &Neighbor, cases: impl IntoIterator<Item = Case>) {
    let stand = Stand::new();
    let listener = stand.router.run(|| TcpListener::bind((ROUTER, 179))).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut speaker = stand.speaker();
    for (number, case) in cases.into_iter().enumerate() {
        check(&mut speaker, &listener, &format!("case-{number}"), peer.clone(), &case);
    }
}

/// The same in place of the OPEN and once the session is established.
fn at_any_time(what: &'static str, bytes: &[u8], answer: (u8, u8, Vec<u8>)) -> [Case; 2] {
    [false, true].map(|is_late| Case { what, is_late, bytes: bytes.to_vec(), answer: answer.clone() })
}

#[test]
fn n_001_a_marker_that_is_not_all_ones_is_answered_with_1_1_and_ends_the_session() {
    let mut marker = keepalive();
    marker[3] = 0xfe;
    let zeros = vec![0; 64];

    let cases = [at_any_time("one bit", &marker, (1, 1, vec![])), at_any_time("zeros", &zeros, (1, 1, vec![]))];
    check_all(&neighbor(ROUTER, THEIRS), cases.into_iter().flatten());
}

#[test]
fn n_002_a_length_that_cannot_be_is_answered_with_1_2_and_that_length_and_ends_the_session() {
    // Shorter than a header, longer than any message, and of a type that is always or at least so long.
    let cases = [(18, 4), (0, 2), (4097, 2), (20, 4), (28, 1), (22, 2), (20, 3)].map(|(length, kind): (u16, u8)| {
        at_any_time("length", &header(length, kind), (1, 2, length.to_be_bytes().to_vec()))
    });
    check_all(&neighbor(ROUTER, THEIRS), cases.into_iter().flatten());
}

#[test]
fn n_003_a_type_that_does_not_exist_is_answered_with_1_3_and_that_type_and_ends_the_session() {
    let cases = [0, 6, 255].map(|kind| at_any_time("type", &header(19, kind), (1, 3, vec![kind])));
    check_all(&neighbor(ROUTER, THEIRS), cases.into_iter().flatten());
}

#[test]
fn n_006_an_open_that_does_not_do_is_answered_with_its_subcode_and_ends_the_connection() {
    let case = |what, bytes, answer| Case { what, is_late: false, bytes, answer };
    let cases = [
        case("version", open_with(VERSION, &[3]), (2, 1, vec![0, 4])),
        case("another AS", open(64_513), (2, 2, vec![])),
        case("no identifier", open_with(IDENTIFIER, &[0; 4]), (2, 3, vec![])),
        case("hold time 1", open_with(HOLD_TIME, &[0, 1]), (2, 6, vec![])),
        case("hold time 2", open_with(HOLD_TIME, &[0, 2]), (2, 6, vec![])),
    ];
    check_all(&neighbor(ROUTER, THEIRS), cases);
    // Inside one AS nobody has our identifier.
    let own = crate::stand::NODE.octets();
    let mut bytes = open(OURS);
    bytes[IDENTIFIER..IDENTIFIER + own.len()].copy_from_slice(&own);
    check_all(&neighbor(ROUTER, OURS), [case("our identifier", bytes, (2, 3, vec![]))]);
}
