//! Request heads: read strictly (RFC 9112 §3, §5, §6), written anew for the next hop.

use httparse::Header;

use super::{
    Fault, Limits, Slots, Version,
    field::{self, Connection, Framing, Kind},
};

/// The methods whose meaning matters on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD: the answer has no body, whatever its head says.
    Head,
    /// OPTIONS: the only one that may ask for `*`.
    Options,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// Any other; not idempotent as far as we know.
    Other,
}

impl Method {
    /// Whether doing it twice does what doing it once does (RFC 9110 §9.2.2).
    pub fn is_idempotent(self) -> bool {
        self != Self::Other
    }
}

/// How the body of a request is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// There is none.
    None,
    /// So many bytes; not 0.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// A request head that obeys every rule, as views into the bytes it was read from.
pub struct RequestHead<'h, 'b> {
    /// The method.
    pub method: Method,
    /// The method as written.
    pub method_name: &'b str,
    /// Path of the target as written, not yet normalised; `*` for the asterisk form, `/` where an absolute target
    /// has no path.
    pub path: &'b str,
    /// Query with its `?`, or empty.
    pub query: &'b str,
    /// Host and port as the client named them: from an absolute target, else from the Host line; empty where HTTP/1.0
    /// names none.
    pub authority: &'b str,
    /// [`authority`](Self::authority) without its port.
    pub host: &'b str,
    /// Version of the client.
    pub version: Version,
    /// How its body is framed.
    pub body: RequestBody,
    /// Whether the client keeps the connection for another request.
    pub keep_alive: bool,
    /// `Expect: 100-continue`, from a client that understands the answer.
    pub expects_continue: bool,
    /// A WebSocket is asked for. No other protocol is offered to the next hop (above all not `h2c`).
    pub websocket: bool,
    headers: &'h [Header<'b>],
    kinds: &'h [Kind],
    nominates: bool,
}

impl<'h, 'b> RequestHead<'h, 'b> {
    /// Reads a complete head, as [`super::HeadScanner`] delimits it.
    ///
    /// # Errors
    /// Everything that breaks RFC 9112 or that two readers could read differently.
    pub fn parse(head: &'b [u8], slots: &'h mut Slots<'b>, limits: &Limits) -> Result<Self, Fault> {
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(head, &mut slots.headers) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            // A head that ends before its bytes do has an empty line the scanner did not see: a bare LF.
            Ok(httparse::Status::Complete(_)) => return Err(Fault::BareLineFeed),
            Ok(httparse::Status::Partial) => return Err(Fault::RequestLine),
            Err(error) => return Err(syntax(error)),
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
        let method_name = parsed.method.ok_or(Fault::RequestLine)?;
        let target = parsed.path.ok_or(Fault::RequestLine)?;
        if target.len() > limits.target_bytes {
            return Err(Fault::TargetTooLong);
        }
        let method = match method_name {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "OPTIONS" => Method::Options,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "TRACE" | "CONNECT" => return Err(Fault::MethodRefused),
            _ => Method::Other,
        };

        let mut framing = Framing::default();
        let mut connection = Connection::default();
        let mut host_line = None;
        let mut expects_continue = false;
        let mut websocket = false;
        for (header, kind) in headers.iter().zip(&mut slots.kinds) {
            *kind = Kind::in_request(header.name.as_bytes());
            match *kind {
                Kind::Host if host_line.is_some() => return Err(Fault::HostRepeated),
                Kind::Host => host_line = Some(std::str::from_utf8(header.value).map_err(|_| Fault::HostInvalid)?),
                Kind::Connection => connection.read(header.value),
                Kind::ContentLength => framing.read_length(header.value)?,
                Kind::TransferEncoding => framing.read_coding(header.value),
                Kind::Upgrade => {
                    websocket |= field::list(header.value).any(|name| name.eq_ignore_ascii_case(b"websocket"));
                }
                Kind::Expect if header.value.eq_ignore_ascii_case(b"100-continue") => expects_continue = true,
                Kind::Expect => return Err(Fault::Expectation),
                _ => {}
            }
        }
        framing.check(version)?;
        let body = match (framing.chunked, framing.length) {
            (true, _) => RequestBody::Chunked,
            (false, None | Some(0)) => RequestBody::None,
            (false, Some(length)) => RequestBody::Length(length),
        };

        let (named, rest) = split_target(target, method)?;
        let authority = match (named, host_line) {
            (_, None) if version == Version::Http11 => return Err(Fault::HostMissing),
            (None, None) => "",
            (Some(named), None) => named,
            (None, Some(line)) => line,
            // RFC 9112 §3.2.2 lets the target win; a client that names two hosts wants two readers to disagree.
            (Some(named), Some(line)) if same_authority(named, line)? => named,
            (Some(_), Some(_)) => return Err(Fault::HostConflict),
        };
        let host = match authority {
            "" if host_line.is_none() => "",
            _ => host_of(authority)?,
        };
        let (path, query) = rest.split_at(memchr::memchr(b'?', rest.as_bytes()).unwrap_or(rest.len()));

        Ok(Self {
            method,
            method_name,
            path: if path.is_empty() { "/" } else { path },
            query,
            authority,
            host,
            version,
            body,
            keep_alive: !connection.close && (version == Version::Http11 || connection.keep_alive),
            expects_continue: expects_continue && version == Version::Http11 && body != RequestBody::None,
            websocket: websocket && connection.upgrade && version == Version::Http11 && body == RequestBody::None,
            headers,
            kinds: slots.kinds.get(..headers.len()).unwrap_or_default(),
            nominates: connection.nominates,
        })
    }

    /// The value of the first header of that name.
    pub fn header(&self, name: &str) -> Option<&'b [u8]> {
        self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// Appends the head as the next hop shall see it: `path` in place of the target's own, hop-by-hop headers and
    /// everything a client could claim about itself left out, `forwarded` (complete lines) added.
    ///
    /// The next hop is always spoken to in HTTP/1.1; Connection is left to mean keep-alive.
    pub fn write(&self, path: &str, forwarded: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(self.method_name.as_bytes());
        out.push(b' ');
        out.extend_from_slice(path.as_bytes());
        out.extend_from_slice(self.query.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        field::write_header(b"Host", self.authority.as_bytes(), out);
        for (header, kind) in self.headers.iter().zip(self.kinds) {
            let ends_here = self.nominates && field::is_nominated(self.headers, self.kinds, header.name);
            if *kind == Kind::Plain && !ends_here {
                field::write_header(header.name.as_bytes(), header.value, out);
            }
        }
        match self.body {
            RequestBody::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            RequestBody::Length(length) => write_length(length, out),
            // An explicit zero is kept: some backends answer 411 to a POST without a length.
            RequestBody::None if self.kinds.contains(&Kind::ContentLength) => write_length(0, out),
            RequestBody::None => {}
        }
        if self.expects_continue {
            out.extend_from_slice(b"Expect: 100-continue\r\n");
        }
        if self.websocket {
            out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
        }
        out.extend_from_slice(forwarded);
        if !self.authority.is_empty() {
            field::write_header(b"X-Forwarded-Host", self.authority.as_bytes(), out);
        }
        out.extend_from_slice(b"\r\n");
    }
}

fn write_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Content-Length: ");
    field::write_decimal(length, out);
    out.extend_from_slice(b"\r\n");
}

fn syntax(error: httparse::Error) -> Fault {
    match error {
        httparse::Error::HeaderName => Fault::HeaderName,
        httparse::Error::HeaderValue => Fault::HeaderValue,
        httparse::Error::TooManyHeaders => Fault::TooManyHeaders,
        httparse::Error::Version => Fault::Version,
        httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => Fault::RequestLine,
    }
}

/// Splits a target into the authority it names, if it is in absolute form, and path with query.
fn split_target(target: &str, method: Method) -> Result<(Option<&str>, &str), Fault> {
    let allowed = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#' && *byte != b'\\';
    if !target.as_bytes().iter().all(allowed) {
        return Err(Fault::Target);
    }
    if target.starts_with('/') {
        return Ok((None, target));
    }
    if target == "*" {
        return if method == Method::Options { Ok((None, target)) } else { Err(Fault::Target) };
    }
    let scheme_end = target.find("://").ok_or(Fault::Target)?;
    let (scheme, rest) = target.split_at(scheme_end);
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Fault::Target);
    }
    let rest = rest.get(3..).ok_or(Fault::Target)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    Ok((Some(authority), path))
}

/// The host of `host[:port]`, checked.
fn host_of(authority: &str) -> Result<&str, Fault> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']').ok_or(Fault::HostInvalid)?;
            let address = rest.get(..end).ok_or(Fault::HostInvalid)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| Fault::HostInvalid)?;
            authority.split_at(end + 2)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if host.is_empty() || host.len() > 255 || (!host.starts_with('[') && !host.as_bytes().iter().all(name)) {
        return Err(Fault::HostInvalid);
    }
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(host),
        Some("") => Ok(host),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok() => Ok(host),
        _ => Err(Fault::HostInvalid),
    }
}

/// Whether two authorities name the same host and port, port 80 being understood.
fn same_authority(one: &str, other: &str) -> Result<bool, Fault> {
    let (host, other_host) = (host_of(one)?, host_of(other)?);
    let port = |authority: &str, host: &str| {
        authority.get(host.len() + 1..).and_then(|digits| digits.parse::<u16>().ok()).unwrap_or(80)
    };
    Ok(host.eq_ignore_ascii_case(other_host) && port(one, host) == port(other, other_host))
}
