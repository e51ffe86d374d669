//! HTTP/1.1 messages (RFC 9112) for a gateway: read strictly, written anew, never passed through as they came.
//!
//! Two readers that understand the same bytes differently are how requests are smuggled. So a head is read by one
//! set of rules that refuses everything ambiguous, and what goes on to the other side is written from what was
//! *understood*. Nothing here holds a body, and nothing is allocated per message: heads are views into the caller's
//! buffer, and output goes into the caller's buffers.
//!
//! The order of calls: [`HeadScanner`] says where a head ends (and refuses bare line feeds and oversize on the way,
//! whichever way the bytes were cut into reads), [`RequestHead::parse`] or [`ResponseHead::parse`] reads it,
//! [`ChunkScanner`] follows a chunked body, [`path::normalise`] gives the one path that is both matched and forwarded.
//!
//! Where RFC 9112 leaves a choice, the choice is refusal: Content-Length beside Transfer-Encoding, repeated
//! Content-Length even when equal, any transfer coding but `chunked`, a Host line that disagrees with an absolute
//! target.

use httparse::Header;

mod chunk;
mod field;
pub mod path;
mod request;
mod response;
mod scan;
#[cfg(test)]
mod tests;

pub use chunk::{ChunkScanner, Keep, Scanned};
pub use request::{Method, RequestBody, RequestHead};
pub use response::{Answer, ResponseBody, ResponseHead};
pub use scan::{Head, HeadScanner, Limits};

/// The most header lines a head may ever have; [`Limits::headers`] can only be lower.
pub const MAX_HEADERS: usize = 128;

/// Version of a message. HTTP/0.9 and anything above 1.1 is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0: no chunks, no interim answers, closes unless told otherwise.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// Where the header lines of one head are noted while it is looked at. Reusable storage on the caller's stack.
pub struct Slots<'b> {
    headers: [std::mem::MaybeUninit<Header<'b>>; MAX_HEADERS],
    kinds: [field::Kind; MAX_HEADERS],
}

impl Default for Slots<'_> {
    fn default() -> Self {
        Self {
            headers: [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS],
            kinds: [field::Kind::Plain; MAX_HEADERS],
        }
    }
}

/// Why a message is refused. Which status a client is told is the proxy's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A line that ends in LF without CR (RFC 9112 §2.2 lets us accept it; peers disagree about it, so we do not).
    #[error("a line ends without a carriage return")]
    BareLineFeed,
    /// The head does not fit in [`Limits::head_bytes`].
    #[error("the head is too large")]
    HeadTooLarge,
    /// More header lines than [`Limits::headers`].
    #[error("there are too many header lines")]
    TooManyHeaders,
    /// The request target does not fit in [`Limits::target_bytes`].
    #[error("the request target is too long")]
    TargetTooLong,
    /// The request line is not `METHOD SP target SP HTTP/1.x`.
    #[error("the request line is malformed")]
    RequestLine,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("the HTTP version is not supported")]
    Version,
    /// Not a token before the colon: space before the colon, a folded line (RFC 9112 §5.2), a control character.
    #[error("a header name is malformed")]
    HeaderName,
    /// CR, NUL or another control character in a value.
    #[error("a header value is malformed")]
    HeaderValue,
    /// TRACE, which shows a client what others must not see, or CONNECT, which no route asks for.
    #[error("the method is refused")]
    MethodRefused,
    /// A target in none of the forms of RFC 9112 §3.2, or one with a fragment, a backslash or a byte beyond ASCII.
    #[error("the request target is malformed")]
    Target,
    /// A `%` that two hexadecimal digits do not follow.
    #[error("the path has a malformed percent encoding")]
    PercentEncoding,
    /// An encoded slash, backslash or control character: peers disagree about what such a path names.
    #[error("the path has an encoded slash, backslash or control character")]
    EncodedSeparator,
    /// `..` beyond the root.
    #[error("the path leads above the root")]
    AboveRoot,
    /// HTTP/1.1 without a Host line (RFC 9112 §3.2).
    #[error("the Host header is missing")]
    HostMissing,
    /// Two Host lines.
    #[error("the Host header is repeated")]
    HostRepeated,
    /// Not a host name or IP literal with an optional port.
    #[error("the host is malformed")]
    HostInvalid,
    /// An absolute target names one host, the Host line another.
    #[error("the request target and the Host header name different hosts")]
    HostConflict,
    /// Not a decimal number that fits.
    #[error("Content-Length is malformed")]
    ContentLengthInvalid,
    /// Two Content-Length lines or a list in one, even of equal values.
    #[error("Content-Length is repeated")]
    ContentLengthRepeated,
    /// Content-Length beside Transfer-Encoding (RFC 9112 §6.1: ought to be handled as an error).
    #[error("Content-Length and Transfer-Encoding are both there")]
    LengthAndChunked,
    /// Transfer-Encoding in an HTTP/1.0 message (RFC 9112 §6.1: faulty framing).
    #[error("Transfer-Encoding in an HTTP/1.0 message")]
    TransferEncodingVersion,
    /// The last coding is not `chunked`, so no one can tell where the body ends.
    #[error("the last transfer coding is not chunked")]
    TransferEncodingNotFinal,
    /// A coding beside `chunked` that we do not undo.
    #[error("a transfer coding other than chunked is not supported")]
    TransferEncodingUnknown,
    /// An expectation other than `100-continue`.
    #[error("the expectation is not supported")]
    Expectation,
    /// A chunk size that is no hexadecimal number, is too large, or has anything before its line end but an extension.
    #[error("a chunk size is malformed")]
    ChunkSize,
    /// A chunk line or chunk that does not end in CR LF, or a control character in an extension.
    #[error("a chunk line is malformed")]
    ChunkLine,
    /// Chunk extensions beyond the limit.
    #[error("a chunk extension is too long")]
    ChunkExtensionTooLong,
    /// Malformed trailers.
    #[error("a trailer line is malformed")]
    Trailer,
    /// Trailers beyond the limit.
    #[error("the trailers are too long")]
    TrailersTooLong,
    /// Not a status line with a status from 100 to 599.
    #[error("the status line is malformed")]
    StatusLine,
    /// Protocols were switched though nobody asked for it, or to another one than was asked for.
    #[error("the protocol was switched without being asked for")]
    UnexpectedUpgrade,
}
