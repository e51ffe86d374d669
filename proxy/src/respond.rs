//! Every failure and the HTTP response it becomes, in one match.
//!
//! A client is told in one plain sentence what went wrong, and a program in one word (`x-ferrogate-reason`). Nothing
//! about the inside of the cluster is said.

use ferrogate_core::proxy::NoRoute;
use ferrogate_wire::http1::Fault;

/// Why a request gets an answer of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The request breaks the rules.
    Malformed(Fault),
    /// No rule takes it.
    NoHost,
    NoPath,
    NoDefault,
    /// Its rule leads nowhere.
    ServiceMissing,
    PortMissing,
    NoEndpoint,
    /// The client was too slow.
    HeaderTimeout,
    BodyTimeout,
    /// The endpoint did not do its part.
    ConnectFailed,
    ConnectTimeout,
    UpstreamClosed,
    UpstreamMalformed(Fault),
    ResponseTimeout,
}

/// The line and the words of an answer of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    phrase: &'static str,
    sentence: &'static str,
}

impl From<&NoRoute<'_>> for Refusal {
    fn from(none: &NoRoute<'_>) -> Self {
        match none {
            NoRoute::NoHost => Self::NoHost,
            NoRoute::NoPath => Self::NoPath,
            NoRoute::NoDefault => Self::NoDefault,
            NoRoute::ServiceMissing(_) => Self::ServiceMissing,
            NoRoute::PortMissing(_) => Self::PortMissing,
            NoRoute::NoEndpoint(_) => Self::NoEndpoint,
        }
    }
}

impl Refusal {
    /// Words for metrics and for the header, one for each kind of refusal.
    pub(crate) const WORDS: [&'static str; 14] = [
        "MalformedRequest",
        "NoHost",
        "NoPath",
        "NoDefault",
        "ServiceNotFound",
        "ServicePortNotFound",
        "NoEndpoint",
        "HeaderTimeout",
        "BodyTimeout",
        "ConnectFailed",
        "ConnectTimeout",
        "UpstreamClosed",
        "MalformedResponse",
        "ResponseTimeout",
    ];

    /// Place of this kind in [`Refusal::WORDS`].
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Malformed(_) => 0,
            Self::NoHost => 1,
            Self::NoPath => 2,
            Self::NoDefault => 3,
            Self::ServiceMissing => 4,
            Self::PortMissing => 5,
            Self::NoEndpoint => 6,
            Self::HeaderTimeout => 7,
            Self::BodyTimeout => 8,
            Self::ConnectFailed => 9,
            Self::ConnectTimeout => 10,
            Self::UpstreamClosed => 11,
            Self::UpstreamMalformed(_) => 12,
            Self::ResponseTimeout => 13,
        }
    }

    /// The word for this kind.
    pub(crate) fn word(self) -> &'static str {
        Self::WORDS.get(self.index()).copied().unwrap_or_default()
    }

    /// The response this becomes.
    pub(crate) fn reply(self) -> Reply {
        let (status, phrase, sentence) = match self {
            Self::Malformed(fault) => return malformed(fault),
            Self::NoHost => (404, "Not Found", "no route takes this host"),
            Self::NoPath => (404, "Not Found", "no route takes this path of the host"),
            Self::NoDefault => (404, "Not Found", "the route of this host has no backend"),
            Self::ServiceMissing => (503, "Service Unavailable", "the service behind this route does not exist"),
            Self::PortMissing => (503, "Service Unavailable", "the service behind this route has no such port"),
            Self::NoEndpoint => (503, "Service Unavailable", "the service behind this route has no endpoint"),
            Self::HeaderTimeout => (408, "Request Timeout", "the request head did not come in time"),
            Self::BodyTimeout => (408, "Request Timeout", "the request body did not come in time"),
            Self::ConnectFailed => (502, "Bad Gateway", "no endpoint of the service could be connected to"),
            Self::ConnectTimeout => {
                (504, "Gateway Timeout", "no endpoint of the service could be connected to in time")
            }
            Self::UpstreamClosed => (502, "Bad Gateway", "the endpoint closed the connection without a response"),
            Self::UpstreamMalformed(_) => (502, "Bad Gateway", "the endpoint sent a malformed response"),
            Self::ResponseTimeout => (504, "Gateway Timeout", "the endpoint did not respond in time"),
        };
        Reply { status, phrase, sentence }
    }

    /// Appends the whole answer. The body is left out for HEAD.
    pub(crate) fn write(self, to_head: bool, close: bool, date: &[u8], out: &mut Vec<u8>) {
        let Reply { status, phrase, sentence } = self.reply();
        let detail: String = match self {
            Self::Malformed(fault) => fault.to_string(),
            _ => sentence.to_owned(),
        };
        let word = match self {
            Self::Malformed(fault) => format!("{fault:?}"),
            _ => self.word().to_owned(),
        };
        let connection = if close { "Connection: close\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
             x-ferrogate-reason: {word}\r\nServer: ferrogate\r\n{connection}",
            detail.len() + 1
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(date);
        out.extend_from_slice(b"\r\n");
        if !to_head {
            out.extend_from_slice(detail.as_bytes());
            out.push(b'\n');
        }
    }
}

fn malformed(fault: Fault) -> Reply {
    let (status, phrase) = match fault {
        Fault::HeadTooLarge | Fault::TooManyHeaders => (431, "Request Header Fields Too Large"),
        Fault::TargetTooLong => (414, "URI Too Long"),
        Fault::Version => (505, "HTTP Version Not Supported"),
        Fault::MethodRefused => (405, "Method Not Allowed"),
        Fault::TransferEncodingUnknown => (501, "Not Implemented"),
        Fault::Expectation => (417, "Expectation Failed"),
        Fault::BareLineFeed
        | Fault::RequestLine
        | Fault::HeaderName
        | Fault::HeaderValue
        | Fault::Target
        | Fault::PercentEncoding
        | Fault::EncodedSeparator
        | Fault::AboveRoot
        | Fault::HostMissing
        | Fault::HostRepeated
        | Fault::HostInvalid
        | Fault::HostConflict
        | Fault::ContentLengthInvalid
        | Fault::ContentLengthRepeated
        | Fault::LengthAndChunked
        | Fault::TransferEncodingVersion
        | Fault::TransferEncodingNotFinal
        | Fault::ChunkSize
        | Fault::ChunkLine
        | Fault::ChunkExtensionTooLong
        | Fault::Trailer
        | Fault::TrailersTooLong
        | Fault::StatusLine
        | Fault::UnexpectedUpgrade => (400, "Bad Request"),
    };
    Reply { status, phrase, sentence: "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_why_in_a_sentence_and_in_a_word() {
        let mut out = Vec::new();

        Refusal::NoEndpoint.write(false, true, b"Date: now\r\n", &mut out);

        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 46\r\n\
             x-ferrogate-reason: NoEndpoint\r\nServer: ferrogate\r\nConnection: close\r\nDate: now\r\n\r\n\
             the service behind this route has no endpoint\n"
        );
    }

    #[test]
    fn an_answer_to_head_has_no_body() {
        let mut out = Vec::new();

        Refusal::Malformed(Fault::TargetTooLong).write(true, false, b"", &mut out);

        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("HTTP/1.1 414 URI Too Long\r\n"));
        assert!(text.contains("x-ferrogate-reason: TargetTooLong\r\n"));
        assert!(text.ends_with("\r\n\r\n"));
    }
}
