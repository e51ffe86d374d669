//! Response heads: read as strictly as requests, for a backend is not trusted with framing either.

use httparse::Header;

use super::{
    Fault, Limits, Slots, Version,
    field::{self, Connection, Framing, Kind},
};

/// How the body of a response is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// There is none: 1xx, 204, 304, an answer to HEAD, or a length of zero.
    None,
    /// So many bytes; not 0.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Everything until the backend closes.
    UntilClose,
}

/// A response head that obeys every rule, as views into the bytes it was read from.
pub struct ResponseHead<'h, 'b> {
    /// Status, 100 to 599.
    pub status: u16,
    /// How its body is framed.
    pub body: ResponseBody,
    /// Whether the backend keeps the connection for another request.
    pub keep_alive: bool,
    reason: &'b str,
    /// What the Content-Length line says, which for HEAD and 304 is not the length of the body.
    length: Option<u64>,
    headers: &'h [Header<'b>],
    kinds: &'h [Kind],
    nominates: bool,
}

/// What the client's side wants to know of an answer beside what the backend said.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Version of the client.
    pub version: Version,
    /// Whether its connection ends with this answer.
    pub close: bool,
    /// The `Date:` line to add where the backend sent none (RFC 9110 §6.6.1), complete.
    pub date: &'a [u8],
}

impl<'h, 'b> ResponseHead<'h, 'b> {
    /// Reads a complete head, as [`super::HeadScanner`] delimits it. `to_head` says that the request was HEAD,
    /// `websocket` that it asked for a WebSocket.
    ///
    /// # Errors
    /// Everything that breaks RFC 9112 or that two readers could read differently.
    pub fn parse(
        head: &'b [u8],
        to_head: bool,
        websocket: bool,
        slots: &'h mut Slots<'b>,
        limits: &Limits,
    ) -> Result<Self, Fault> {
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut parsed, head, &mut slots.headers) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Ok(httparse::Status::Complete(_)) => return Err(Fault::BareLineFeed),
            Ok(httparse::Status::Partial) => return Err(Fault::StatusLine),
            Err(httparse::Error::HeaderName) => return Err(Fault::HeaderName),
            Err(httparse::Error::HeaderValue) => return Err(Fault::HeaderValue),
            Err(httparse::Error::TooManyHeaders) => return Err(Fault::TooManyHeaders),
            Err(httparse::Error::Version) => return Err(Fault::Version),
            Err(_) => return Err(Fault::StatusLine),
        }
        let headers: &'h [Header<'b>] = parsed.headers;
        if headers.len() > limits.headers {
            return Err(Fault::TooManyHeaders);
        }
        let version = match parsed.version {
            Some(0) => Version::Http10,
            Some(1) => Version::Http11,
            _ => return Err(Fault::Version),
        };
        let status = parsed.code.filter(|code| (100..600).contains(code)).ok_or(Fault::StatusLine)?;

        let mut framing = Framing::default();
        let mut connection = Connection::default();
        let mut upgraded = false;
        for (header, kind) in headers.iter().zip(&mut slots.kinds) {
            *kind = Kind::in_response(header.name.as_bytes());
            match *kind {
                Kind::Connection => connection.read(header.value),
                Kind::ContentLength => framing.read_length(header.value)?,
                Kind::TransferEncoding => framing.read_coding(header.value),
                Kind::Upgrade => upgraded |= header.value.eq_ignore_ascii_case(b"websocket"),
                _ => {}
            }
        }
        framing.check(version)?;
        if status == 101 && !(websocket && upgraded && connection.upgrade) {
            return Err(Fault::UnexpectedUpgrade);
        }
        // RFC 9112 §6.3, in its order.
        let body = match (framing.chunked, framing.length) {
            _ if to_head || status < 200 || status == 204 || status == 304 => ResponseBody::None,
            (true, _) => ResponseBody::Chunked,
            (false, Some(0)) => ResponseBody::None,
            (false, Some(length)) => ResponseBody::Length(length),
            (false, None) => ResponseBody::UntilClose,
        };

        Ok(Self {
            status,
            body,
            keep_alive: !connection.close && (version == Version::Http11 || connection.keep_alive),
            reason: parsed.reason.unwrap_or_default(),
            length: framing.length,
            headers,
            kinds: slots.kinds.get(..headers.len()).unwrap_or_default(),
            nominates: connection.nominates,
        })
    }

    /// Whether another head follows (1xx but 101, RFC 9110 §15.2).
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// Appends the head as the client shall see it. A chunked body goes to an HTTP/1.0 client without its chunks, so
    /// its end must be the end of the connection.
    pub fn write(&self, answer: &Answer<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        field::write_decimal(u64::from(self.status), out);
        out.push(b' ');
        out.extend_from_slice(self.reason.as_bytes());
        out.extend_from_slice(b"\r\n");
        let (mut date, mut server) = (false, false);
        for (header, kind) in self.headers.iter().zip(self.kinds) {
            date |= *kind == Kind::Date;
            server |= *kind == Kind::Server;
            let goes_on = matches!(kind, Kind::Plain | Kind::Date | Kind::Server);
            if goes_on && !(self.nominates && field::is_nominated(self.headers, self.kinds, header.name)) {
                field::write_header(header.name.as_bytes(), header.value, out);
            }
        }
        if self.status >= 200 {
            if !date {
                out.extend_from_slice(answer.date);
            }
            if !server {
                out.extend_from_slice(b"Server: ferrogate\r\n");
            }
        }
        self.write_framing(answer, out);
        out.extend_from_slice(b"\r\n");
    }

    fn write_framing(&self, answer: &Answer<'_>, out: &mut Vec<u8>) {
        if self.status == 101 {
            out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
            return;
        }
        if self.status < 200 {
            return;
        }
        match (self.body, self.length) {
            (ResponseBody::Chunked, _) if answer.version == Version::Http11 => {
                out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            }
            // RFC 9110 §8.6: no Content-Length in a 204.
            (_, Some(length)) if self.status != 204 => {
                out.extend_from_slice(b"Content-Length: ");
                field::write_decimal(length, out);
                out.extend_from_slice(b"\r\n");
            }
            _ => {}
        }
        if answer.close {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if answer.version == Version::Http10 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
    }
}
