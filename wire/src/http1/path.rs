//! The one path a request has: matched by routes and sent to backends alike.
//!
//! A route that sees `/public/../admin` as public while the backend opens `/admin` is a hole, so the path is brought
//! into one form before anything looks at it, and only that form goes on:
//! - encoded characters that need no encoding are decoded (RFC 3986 §6.2.2.2): `%61` becomes `a`, `%2e` a dot;
//! - `.` and `..` segments are resolved (RFC 3986 §5.2.4); `..` above the root is refused;
//! - repeated slashes become one;
//! - an encoded slash, backslash or control character is refused: some backends decode them, some do not.
//!
//! Everything else stays as it is, letter case and other encoded characters included. The query is never touched.

use super::Fault;

/// Brings a path into its one form. `scratch` holds the result where it differs from `path`; its content is replaced.
///
/// # Errors
/// What has no one meaning: [`Fault::AboveRoot`], [`Fault::EncodedSeparator`], [`Fault::PercentEncoding`].
pub fn normalise<'a>(path: &'a str, scratch: &'a mut Vec<u8>) -> Result<&'a str, Fault> {
    if is_normal(path.as_bytes()) {
        return Ok(path);
    }
    scratch.clear();
    let mut rest = path.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let byte = match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let decoded = hex(*high)? << 4 | hex(*low)?;
                if !is_unreserved(decoded) {
                    if matches!(decoded, b'/' | b'\\' | 0..=31 | 127) {
                        return Err(Fault::EncodedSeparator);
                    }
                    scratch.extend_from_slice(&[b'%', *high, *low]);
                    rest = tail;
                    continue;
                }
                rest = tail;
                decoded
            }
            (b'%', _) => return Err(Fault::PercentEncoding),
            (byte, _) => *byte,
        };
        if byte == b'/' {
            end_segment(scratch)?;
        } else {
            scratch.push(byte);
        }
    }
    let ends_in_dots = scratch.ends_with(b"/.") || scratch.ends_with(b"/..");
    if ends_in_dots {
        end_segment(scratch)?;
    }
    // Only ASCII was put in: the target has been checked, and only unreserved characters are decoded.
    std::str::from_utf8(scratch).map_err(|_| Fault::Target)
}

/// Whether nothing would change: almost every request.
fn is_normal(path: &[u8]) -> bool {
    let mut previous = 0;
    for byte in path {
        if *byte == b'%' || (previous == b'/' && matches!(byte, b'/' | b'.')) {
            return false;
        }
        previous = *byte;
    }
    true
}

/// Resolves the segment at the end and begins the next.
fn end_segment(path: &mut Vec<u8>) -> Result<(), Fault> {
    if path.ends_with(b"/..") {
        path.truncate(path.len() - 3);
        let parent = path.iter().rposition(|byte| *byte == b'/').ok_or(Fault::AboveRoot)?;
        path.truncate(parent);
    } else if path.ends_with(b"/.") {
        path.truncate(path.len() - 2);
    } else if path.ends_with(b"/") {
        path.truncate(path.len() - 1);
    }
    path.push(b'/');
    Ok(())
}

fn hex(digit: u8) -> Result<u8, Fault> {
    char::from(digit).to_digit(16).map(|value| value as u8).ok_or(Fault::PercentEncoding)
}

/// RFC 3986 §2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}
