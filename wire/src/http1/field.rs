//! What a header line is to a gateway, and the rules that requests and responses share.

use httparse::Header;

use super::Fault;

/// What is done with a header line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Goes on as it is, unless the Connection header names it.
    Plain,
    /// Ends here (RFC 9110 §7.6.1), or says about the client what only we may say.
    Dropped,
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    Upgrade,
    Expect,
    Date,
    Server,
}

impl Kind {
    /// What a request header is. Names with an underscore are dropped: CGI-like backends read `X_Real_IP` and
    /// `X-Real-IP` as the same variable, which would let a client set what we set.
    pub(super) fn in_request(name: &[u8]) -> Self {
        let is = |word: &[u8]| name.eq_ignore_ascii_case(word);
        let known = match name.len() {
            2 if is(b"te") => Self::Dropped,
            4 if is(b"host") => Self::Host,
            6 if is(b"expect") => Self::Expect,
            7 if is(b"upgrade") => Self::Upgrade,
            7 if is(b"trailer") => Self::Dropped,
            9 if is(b"forwarded") || is(b"x-real-ip") => Self::Dropped,
            10 if is(b"connection") => Self::Connection,
            10 if is(b"keep-alive") => Self::Dropped,
            14 if is(b"content-length") => Self::ContentLength,
            14 if is(b"http2-settings") => Self::Dropped,
            16 if is(b"proxy-connection") => Self::Dropped,
            17 if is(b"transfer-encoding") => Self::TransferEncoding,
            _ => Self::Plain,
        };
        let prefix = |word: &[u8]| name.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
        match known {
            Self::Plain if prefix(b"x-forwarded-") || name.contains(&b'_') => Self::Dropped,
            _ => known,
        }
    }

    /// What a response header is.
    pub(super) fn in_response(name: &[u8]) -> Self {
        let is = |word: &[u8]| name.eq_ignore_ascii_case(word);
        match name.len() {
            4 if is(b"date") => Self::Date,
            6 if is(b"server") => Self::Server,
            7 if is(b"upgrade") => Self::Upgrade,
            7 if is(b"trailer") => Self::Dropped,
            10 if is(b"connection") => Self::Connection,
            10 if is(b"keep-alive") => Self::Dropped,
            14 if is(b"content-length") => Self::ContentLength,
            16 if is(b"proxy-connection") => Self::Dropped,
            17 if is(b"transfer-encoding") => Self::TransferEncoding,
            _ => Self::Plain,
        }
    }
}

/// The elements of a comma-separated list, without blanks around them.
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// What all Connection lines of a head say together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Connection {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// Other headers are named, which end here too.
    pub(super) nominates: bool,
}

impl Connection {
    pub(super) fn read(&mut self, value: &[u8]) {
        for option in list(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else {
                self.nominates = true;
            }
        }
    }
}

/// Whether a Connection line of this head names the header.
pub(super) fn is_nominated(headers: &[Header<'_>], kinds: &[Kind], name: &str) -> bool {
    let connections = headers.iter().zip(kinds).filter(|(_, kind)| **kind == Kind::Connection);
    connections.flat_map(|(header, _)| list(header.value)).any(|named| named.eq_ignore_ascii_case(name.as_bytes()))
}

/// How a head says its body is framed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Framing {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
    /// A transfer coding was named; the last one so far was `chunked`.
    coded: bool,
    unknown: bool,
}

impl Framing {
    /// RFC 9110 §8.6: one decimal number. A list is refused although RFC 9112 §6.3 would allow equal values.
    pub(super) fn read_length(&mut self, value: &[u8]) -> Result<(), Fault> {
        if self.length.is_some() || value.contains(&b',') {
            return Err(Fault::ContentLengthRepeated);
        }
        if value.is_empty() || value.len() > 18 {
            return Err(Fault::ContentLengthInvalid);
        }
        let mut length = 0u64;
        for digit in value {
            let digit = char::from(*digit).to_digit(10).ok_or(Fault::ContentLengthInvalid)?;
            length = length * 10 + u64::from(digit);
        }
        self.length = Some(length);
        Ok(())
    }

    /// RFC 9112 §6.1; several lines count as one list.
    pub(super) fn read_coding(&mut self, value: &[u8]) {
        self.coded = true;
        for coding in list(value) {
            self.unknown |= self.chunked || !coding.eq_ignore_ascii_case(b"chunked");
            self.chunked = coding.eq_ignore_ascii_case(b"chunked");
        }
    }

    /// RFC 9112 §6.3, with every ambiguity refused.
    pub(super) fn check(&self, version: super::Version) -> Result<(), Fault> {
        if !self.coded {
            return Ok(());
        }
        if self.length.is_some() {
            return Err(Fault::LengthAndChunked);
        }
        if version == super::Version::Http10 {
            return Err(Fault::TransferEncodingVersion);
        }
        match (self.chunked, self.unknown) {
            (false, _) => Err(Fault::TransferEncodingNotFinal),
            (true, true) => Err(Fault::TransferEncodingUnknown),
            (true, false) => Ok(()),
        }
    }
}

/// Appends a decimal number.
pub(super) fn write_decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at = at.saturating_sub(1);
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + (number % 10) as u8;
        }
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

/// Appends `name: value CR LF`.
pub(super) fn write_header(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
