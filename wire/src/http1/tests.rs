use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { head_bytes: 4096, headers: 64, target_bytes: 2048 };

/// What a gateway does with a request: refuses it, or forwards this head and these body bytes.
fn forwarded(bytes: &[u8]) -> Result<String, Fault> {
    forwarded_in_pieces(bytes, &[]).map(|found| found.expect("a complete request"))
}

/// The same, with the bytes arriving cut at `cuts`. `None` means that more bytes are wanted.
fn forwarded_in_pieces(bytes: &[u8], cuts: &[usize]) -> Result<Option<String>, Fault> {
    let mut scanner = HeadScanner::request();
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([bytes.len()]).collect();
    ends.sort_unstable();
    let mut found = None;
    for end in &ends {
        found = scanner.scan(&bytes[..*end], &LIMITS)?;
        if found.is_some() {
            break;
        }
    }
    let Some(Head { start, end }) = found else { return Ok(None) };
    let mut slots = Slots::default();
    let head = RequestHead::parse(&bytes[start..end], &mut slots, &LIMITS)?;
    let mut scratch = Vec::new();
    let path = path::normalise(head.path, &mut scratch)?;
    let mut out = Vec::new();
    head.write(path, b"X-Forwarded-For: 192.0.2.1\r\n", &mut out);
    match head.body {
        RequestBody::None => {}
        RequestBody::Length(length) => {
            let length = length as usize;
            let Some(body) = bytes.get(end..end + length) else { return Ok(None) };
            out.extend_from_slice(body);
        }
        RequestBody::Chunked => {
            let mut chunks = ChunkScanner::new(Keep::Framing);
            let mut from = end;
            for to in ends.into_iter().filter(|to| *to > end) {
                let mut piece = bytes[from..to].to_vec();
                let scanned = chunks.scan(&mut piece)?;
                out.extend_from_slice(&piece[..scanned.kept]);
                from = to;
                if scanned.done {
                    break;
                }
            }
            if !chunks.is_done() {
                return Ok(None);
            }
        }
    }
    Ok(Some(String::from_utf8_lossy(&out).into_owned()))
}

fn refusal(bytes: &str) -> Fault {
    forwarded(bytes.as_bytes()).expect_err(bytes)
}

#[test]
fn l_112_to_l_116_and_l_134_ambiguous_requests_are_refused_and_told_apart() {
    let table: &[(&str, Fault)] = &[
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Fault::LengthAndChunked,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            Fault::LengthAndChunked,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
            Fault::ContentLengthRepeated,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
            Fault::ContentLengthRepeated,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nhi", Fault::ContentLengthRepeated),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", Fault::ContentLengthInvalid),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\nabc", Fault::ContentLengthInvalid),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc", Fault::ContentLengthInvalid),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", Fault::ContentLengthInvalid),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", Fault::ContentLengthInvalid),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Fault::HostRepeated),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Fault::HostRepeated),
        ("GET / HTTP/1.1\r\n\r\n", Fault::HostMissing),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Fault::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Fault::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Fault::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", Fault::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a:80x\r\n\r\n", Fault::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", Fault::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", Fault::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", Fault::HostInvalid),
        ("GET / HTTP/1.1\nHost: a\n\n", Fault::BareLineFeed),
        ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", Fault::BareLineFeed),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", Fault::BareLineFeed),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Fault::TransferEncodingVersion),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", Fault::TransferEncodingNotFinal),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            Fault::TransferEncodingNotFinal,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", Fault::TransferEncodingNotFinal),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            Fault::TransferEncodingUnknown,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Fault::TransferEncodingUnknown,
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n folded\r\n\r\n", Fault::HeaderName),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Fault::HeaderName),
        ("GET / HTTP/1.1\r\n: a\r\n\r\n", Fault::HeaderName),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", Fault::HeaderValue),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n", Fault::HeaderValue),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\0: y\r\n\r\n", Fault::HeaderName),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;a\nb\r\nhi\r\n0\r\n\r\n", Fault::ChunkLine),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\nhi\r\n0\r\n\r\n", Fault::ChunkLine),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\n0\r\n\r\n", Fault::ChunkLine),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi!\r\n0\r\n\r\n", Fault::ChunkLine),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n", Fault::ChunkSize),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n 2\r\nhi\r\n0\r\n\r\n", Fault::ChunkSize),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nhi\r\n0\r\n\r\n", Fault::ChunkSize),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\nhi\r\n0\r\n\r\n", Fault::ChunkSize),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhi\r\n0\r\n\r\n", Fault::ChunkSize),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000002\r\nhi\r\n0\r\n\r\n",
            Fault::ChunkSize,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n", Fault::Trailer),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::HostConflict),
        ("GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::HostConflict),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
        ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", Fault::HostInvalid),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::MethodRefused),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", Fault::MethodRefused),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
        ("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
        ("GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
        ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::RequestLine),
        ("GET /\r\n\r\n", Fault::RequestLine),
        ("\x16\x03\x01", Fault::RequestLine),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Fault::Version),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Fault::Version),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: magic\r\n\r\nx", Fault::Expectation),
    ];

    for (request, fault) in table {
        assert_eq!(refusal(request), *fault, "{request:?}");
    }
}

#[test]
fn l_124_heads_beyond_a_limit_are_told_apart() {
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(64));
    let too_many_for_any = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(MAX_HEADERS));
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(4096));
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(2048));
    let endless = format!("GET /{}", "y".repeat(5000));

    assert_eq!(refusal(&many), Fault::TooManyHeaders);
    assert_eq!(refusal(&too_many_for_any), Fault::TooManyHeaders);
    assert_eq!(refusal(&large), Fault::HeadTooLarge);
    assert_eq!(refusal(&long), Fault::TargetTooLong);
    assert_eq!(refusal(&endless), Fault::TargetTooLong);
}

#[test]
fn a_head_is_written_anew_and_hop_by_hop_headers_end_here() {
    let request = "GET /a?b=../c HTTP/1.1\r\nX-One: 1\r\nhost: Example.test:8080\r\nConnection: close, X-Private\r\n\
        X-Private: secret\r\nKeep-Alive: 5\r\nTE: trailers\r\nTrailer: X\r\nProxy-Connection: keep-alive\r\n\
        Upgrade: h2c\r\nHTTP2-Settings: AAA\r\nX-Two:\t 2 \r\n\r\n";

    let sent = forwarded(request.as_bytes()).unwrap();

    assert_eq!(
        sent,
        "GET /a?b=../c HTTP/1.1\r\nHost: Example.test:8080\r\nX-One: 1\r\nX-Two: 2\r\nX-Forwarded-For: 192.0.2.1\r\n\
         X-Forwarded-Host: Example.test:8080\r\n\r\n"
    );
}

#[test]
fn l_119_a_connection_header_cannot_remove_what_the_gateway_adds() {
    let request = "POST / HTTP/1.1\r\nHost: a\r\nConnection: host, content-length, x-forwarded-for\r\n\
        Content-Length: 2\r\n\r\nhi";

    let sent = forwarded(request.as_bytes()).unwrap();

    assert_eq!(
        sent,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: a\r\n\r\nhi"
    );
}

#[test]
fn l_128_what_a_client_claims_about_itself_is_replaced() {
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 198.51.100.9\r\nx-forwarded-proto: https\r\n\
        X-Forwarded-Host: evil\r\nX-Forwarded-Prefix: /x\r\nForwarded: for=198.51.100.9\r\nX-Real-IP: 198.51.100.9\r\n\r\n";

    let sent = forwarded(request.as_bytes()).unwrap();

    assert_eq!(sent, "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: a\r\n\r\n");
}

#[test]
fn l_131_headers_with_an_underscore_are_dropped() {
    let sent = forwarded(b"GET / HTTP/1.1\r\nHost: a\r\nX_Real_IP: 198.51.100.9\r\n\r\n").unwrap();

    assert!(!sent.contains("Real"), "{sent}");
}

#[test]
fn l_117_an_absolute_target_gives_the_host() {
    let sent = forwarded(b"GET HTTP://example.test/a HTTP/1.1\r\nHost: EXAMPLE.test:80\r\n\r\n").unwrap();
    let old = forwarded(b"GET http://example.test?q HTTP/1.0\r\n\r\n").unwrap();

    assert!(sent.starts_with("GET /a HTTP/1.1\r\nHost: example.test\r\n"), "{sent}");
    assert!(old.starts_with("GET /?q HTTP/1.1\r\nHost: example.test\r\n"), "{old}");
}

#[test]
fn l_120_a_websocket_is_offered_on_and_no_other_upgrade() {
    let head = |upgrade: &str| {
        format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {upgrade}\r\n\r\n")
    };

    assert!(forwarded(head("websocket").as_bytes()).unwrap().contains("Connection: Upgrade\r\nUpgrade: websocket\r\n"));
    assert!(!forwarded(head("h2c").as_bytes()).unwrap().contains("pgrade"));
}

#[test]
fn an_expectation_goes_on_only_with_a_body() {
    let with = forwarded(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\nx").unwrap();
    let without = forwarded(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n").unwrap();

    assert!(with.contains("Expect: 100-continue\r\n"));
    assert!(!without.contains("Expect"));
}

#[test]
fn asterisk_and_old_requests_are_understood() {
    let options = forwarded(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let old = forwarded(b"\r\nGET / HTTP/1.0\r\n\r\n").unwrap();
    let mut slots = Slots::default();
    let kept = RequestHead::parse(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", &mut slots, &LIMITS).unwrap();

    assert!(options.starts_with("OPTIONS * HTTP/1.1\r\n"));
    assert!(old.starts_with("GET / HTTP/1.1\r\nHost: \r\n"));
    assert!(kept.keep_alive);
    assert!(kept.host.is_empty());
}

#[test]
fn the_host_is_told_without_its_port() {
    let host = |line: &'static str| {
        let head = format!("GET / HTTP/1.1\r\nHost: {line}\r\n\r\n");
        let mut slots = Slots::default();
        RequestHead::parse(head.as_bytes(), &mut slots, &LIMITS).map(|head| head.host.to_owned())
    };

    assert_eq!(host("example.test:31234").unwrap(), "example.test");
    assert_eq!(host("example.test:").unwrap(), "example.test");
    assert_eq!(host("192.0.2.1:80").unwrap(), "192.0.2.1");
    assert_eq!(host("[2001:db8::1]:80").unwrap(), "[2001:db8::1]");
    assert_eq!(host("[2001:db8::1]80"), Err(Fault::HostInvalid));
    assert_eq!(host("[x]"), Err(Fault::HostInvalid));
}

#[test]
fn chunk_extensions_and_trailers_are_checked_and_dropped() {
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
        5;name=\"a;b\"\r\nhello\r\n00A\r\n0123456789\r\n0;last\r\nX-Sum: 1\r\nX-Two: 2\r\n\r\nGET /next";

    let sent = forwarded(request).unwrap();

    assert!(sent.ends_with("\r\n\r\n5\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\n"), "{sent}");
    assert!(sent.contains("Transfer-Encoding: chunked\r\n"));
}

#[test]
fn the_payload_of_chunks_can_be_kept_alone() {
    let mut bytes = *b"5;x\r\nhello\r\n6\r\n world\r\n0\r\n\r\nrest";

    let scanned = ChunkScanner::new(Keep::Payload).scan(&mut bytes).unwrap();

    assert_eq!(&bytes[..scanned.kept], b"hello world");
    assert_eq!(&bytes[scanned.consumed..], b"rest");
    assert!(scanned.done);
}

#[test]
fn extensions_and_trailers_have_limits() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extension = format!("{head}1;{}\r\nx\r\n0\r\n\r\n", "y".repeat(2000));
    let trailers = format!("{head}0\r\n{}\r\n", "X: yyyyyyyyyyyyyyyyyyyy\r\n".repeat(1000));

    assert_eq!(refusal(&extension), Fault::ChunkExtensionTooLong);
    assert_eq!(refusal(&trailers), Fault::TrailersTooLong);
}

#[test]
fn l_126_l_127_a_path_has_one_form() {
    let table: &[(&str, Result<&str, Fault>)] = &[
        ("/", Ok("/")),
        ("/a/b.c/.d/..e/f", Ok("/a/b.c/.d/..e/f")),
        ("/a/../b", Ok("/b")),
        ("/a/%2e%2e/b", Ok("/b")),
        ("/a/.%2E/b", Ok("/b")),
        ("/a/./b", Ok("/a/b")),
        ("/a/b/..", Ok("/a/")),
        ("/a/b/.", Ok("/a/b/")),
        ("//a///b//", Ok("/a/b/")),
        ("/a//../b", Ok("/b")),
        ("/%61dmin", Ok("/admin")),
        ("/%7Euser/%41%2d%5F", Ok("/~user/A-_")),
        ("/caf%C3%a9/a%20b%3f", Ok("/caf%C3%a9/a%20b%3f")),
        ("/..", Err(Fault::AboveRoot)),
        ("/a/../../b", Err(Fault::AboveRoot)),
        ("/%2e%2e/", Err(Fault::AboveRoot)),
        ("/a%2fb", Err(Fault::EncodedSeparator)),
        ("/a%5Cb", Err(Fault::EncodedSeparator)),
        ("/a%00", Err(Fault::EncodedSeparator)),
        ("/a%0d%0aX:y", Err(Fault::EncodedSeparator)),
        ("/a%", Err(Fault::PercentEncoding)),
        ("/a%2", Err(Fault::PercentEncoding)),
        ("/a%zz", Err(Fault::PercentEncoding)),
        ("/%252e%252e/a", Ok("/%252e%252e/a")),
    ];

    for (path, expected) in table {
        assert_eq!(path::normalise(path, &mut Vec::new()), *expected, "{path}");
    }
}

/// What a gateway does with the answer to a GET.
fn answered(bytes: &str, to_head: bool, version: Version) -> Result<(ResponseBody, String), Fault> {
    let head = HeadScanner::response().scan(bytes.as_bytes(), &LIMITS)?.expect("a complete head");
    let mut slots = Slots::default();
    let head = ResponseHead::parse(&bytes.as_bytes()[..head.end], to_head, false, &mut slots, &LIMITS)?;
    let mut out = Vec::new();
    head.write(&Answer { version, close: false, date: b"Date: now\r\n" }, &mut out);
    Ok((head.body, String::from_utf8(out).unwrap()))
}

#[test]
fn l_132_the_body_of_an_answer_ends_where_the_specification_says() {
    let table: &[(&str, bool, ResponseBody)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, ResponseBody::Length(5)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, ResponseBody::None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, ResponseBody::None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, ResponseBody::Chunked),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true, ResponseBody::None),
        ("HTTP/1.0 200 OK\r\n\r\n", false, ResponseBody::UntilClose),
        ("HTTP/1.1 204 No Content\r\n\r\n", false, ResponseBody::None),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, ResponseBody::None),
        ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", false, ResponseBody::None),
    ];

    for (head, to_head, body) in table {
        assert_eq!(answered(head, *to_head, Version::Http11).unwrap().0, *body, "{head}");
    }
}

#[test]
fn l_133_malformed_answers_are_refused() {
    let table: &[(&str, Fault)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Fault::LengthAndChunked),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", Fault::ContentLengthRepeated),
        ("HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", Fault::HeaderValue),
        ("HTTP/1.1 200 OK\r\nX: a\n\r\n", Fault::BareLineFeed),
        ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", Fault::HeaderName),
        ("HTTP/1.1 200 OK\r\nX : a\r\n\r\n", Fault::HeaderName),
        ("HTTP/1.1 099 No\r\n\r\n", Fault::StatusLine),
        ("HTTP/1.1 600 No\r\n\r\n", Fault::StatusLine),
        ("HTTP/2 200 OK\r\n\r\n", Fault::Version),
        ("SSH-2.0-x\r\n\r\n", Fault::StatusLine),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Fault::TransferEncodingVersion),
        ("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", Fault::UnexpectedUpgrade),
    ];

    for (head, fault) in table {
        assert_eq!(answered(head, false, Version::Http11).expect_err(head), *fault, "{head}");
    }
}

#[test]
fn an_answer_is_written_anew_with_date_and_server() {
    let head = "HTTP/1.1 200 Fine\r\nConnection: X-Own\r\nX-Own: 1\r\nKeep-Alive: 3\r\nX-App: 2\r\n\
        Transfer-Encoding: chunked\r\n\r\n";

    let (_, new) = answered(head, false, Version::Http11).unwrap();
    let (_, old) = answered(head, false, Version::Http10).unwrap();

    assert_eq!(
        new,
        "HTTP/1.1 200 Fine\r\nX-App: 2\r\nDate: now\r\nServer: ferrogate\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    assert!(!old.contains("Transfer-Encoding"));
    assert!(old.contains("Connection: keep-alive\r\n"));
}

#[test]
fn an_answer_keeps_its_own_date_server_and_length() {
    let (_, written) = answered(
        "HTTP/1.1 304 Not Modified\r\nDate: then\r\nServer: s\r\nContent-Length: 7\r\n\r\n",
        false,
        Version::Http11,
    )
    .unwrap();

    assert_eq!(written, "HTTP/1.1 304 Not Modified\r\nDate: then\r\nServer: s\r\nContent-Length: 7\r\n\r\n");
}

/// Requests that are nearly right, so that mutation reaches deep.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let lines = prop::sample::select(vec![
        "Host: a\r\n",
        "Host: b:80\r\n",
        "Content-Length: 4\r\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Connection: close, x-a\r\n",
        "X-A: 1\r\n",
        "X-A: 1\n",
        " folded\r\n",
        "Expect: 100-continue\r\n",
        "Upgrade: websocket\r\n",
    ]);
    let first = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /a/../b HTTP/1.1\r\n",
        "GET http://a/%2e HTTP/1.1\r\n",
        "GET / HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "\r\nGET /x?y HTTP/1.1\r\n",
    ]);
    let body =
        prop::sample::select(vec!["", "body", "4\r\nbody\r\n0\r\n\r\n", "1;e=f\r\nx\r\n0\r\nT: u\r\n\r\nrest", "zz"]);
    let mutation = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (first, prop::collection::vec(lines, 0..5), body, mutation).prop_map(|(first, lines, body, mutations)| {
        let mut bytes = format!("{first}{}\r\n{body}", lines.concat()).into_bytes();
        for (at, byte) in mutations {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn any_bytes_are_answered_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = forwarded_in_pieces(&bytes, &[]);
        let mut slots = Slots::default();
        let _ = RequestHead::parse(&bytes, &mut slots, &LIMITS);
        let mut slots = Slots::default();
        let _ = ResponseHead::parse(&bytes, false, true, &mut slots, &LIMITS);
        let _ = HeadScanner::response().scan(&bytes, &LIMITS);
        let _ = ChunkScanner::new(Keep::Payload).scan(&mut bytes.clone());
        if let Ok(path) = std::str::from_utf8(&bytes) {
            let _ = path::normalise(path, &mut Vec::new());
        }
    }

    #[test]
    fn how_the_bytes_are_cut_changes_nothing(bytes in requests(), cuts in prop::collection::vec(any::<usize>(), 0..8)) {
        prop_assert_eq!(forwarded_in_pieces(&bytes, &cuts), forwarded_in_pieces(&bytes, &[]));
    }

    #[test]
    fn byte_by_byte_is_the_same_as_at_once(bytes in requests()) {
        let everywhere: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(forwarded_in_pieces(&bytes, &everywhere), forwarded_in_pieces(&bytes, &[]));
    }

    #[test]
    fn what_is_forwarded_is_accepted_again_unchanged(bytes in requests()) {
        if let Ok(Some(once)) = forwarded_in_pieces(&bytes, &[]) {
            let twice = forwarded_in_pieces(once.as_bytes(), &[]);
            // An empty Host is what an HTTP/1.0 request without one becomes.
            if !once.contains("Host: \r\n") {
                prop_assert_eq!(twice, Ok(Some(once)));
            }
        }
    }

    #[test]
    fn a_normal_path_stays_as_it_is(path in "/[a-c./%2eE5f]{0,24}") {
        let (mut scratch, mut again) = (Vec::new(), Vec::new());
        if let Ok(normal) = path::normalise(&path, &mut scratch) {
            prop_assert!(normal.starts_with('/'));
            prop_assert!(!normal.contains("//") && !normal.contains("/./") && !normal.contains("/../"));
            prop_assert_eq!(path::normalise(normal, &mut again), Ok(normal));
        }
    }
}
