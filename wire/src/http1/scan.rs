//! Finds the end of a head, however the bytes were cut into reads.

use super::Fault;

/// How large a head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a whole head, its last empty line included.
    pub head_bytes: usize,
    /// Header lines; never more than [`super::MAX_HEADERS`].
    pub headers: usize,
    /// Bytes of the request target.
    pub target_bytes: usize,
}

/// Looks for the empty line that ends a head. It looks at each byte once, so a head that comes byte by byte costs no
/// more than one that comes at once.
#[derive(Clone, Debug)]
pub struct HeadScanner {
    /// Empty lines before the first line (RFC 9112 §2.2 asks a server to skip them); 0 in responses.
    start: usize,
    started: bool,
    searched: usize,
    lines: usize,
    request: bool,
}

/// Where a head lies in the bytes that were scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// First byte of the first line.
    pub start: usize,
    /// One past the last byte of the empty line.
    pub end: usize,
}

impl HeadScanner {
    /// For a head that begins with a request line.
    pub fn request() -> Self {
        Self { start: 0, started: false, searched: 0, lines: 0, request: true }
    }

    /// For a head that begins with a status line.
    pub fn response() -> Self {
        Self { start: 0, started: false, searched: 0, lines: 0, request: false }
    }

    /// Looks at all bytes received so far, of which earlier calls may have seen a part. `None` means more are needed.
    ///
    /// # Errors
    /// A head that is too large, a line that ends in a bare LF, or a first byte that begins no HTTP message.
    pub fn scan(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<Head>, Fault> {
        let window = bytes.get(..limits.head_bytes).unwrap_or(bytes);
        if !self.started && !self.skip_to_first_line(window)? {
            return self.more_or_too_large(window, limits);
        }
        while let Some(offset) = memchr::memchr(b'\n', window.get(self.searched..).unwrap_or_default()) {
            let feed = self.searched + offset;
            let line = window.get(..=feed).unwrap_or_default();
            if !line.ends_with(b"\r\n") {
                return Err(Fault::BareLineFeed);
            }
            self.searched = feed + 1;
            if line.ends_with(b"\r\n\r\n") {
                return Ok(Some(Head { start: self.start, end: self.searched }));
            }
            self.lines += 1;
        }
        self.searched = window.len();
        self.more_or_too_large(window, limits)
    }

    /// Whether the first line has begun.
    fn skip_to_first_line(&mut self, window: &[u8]) -> Result<bool, Fault> {
        loop {
            match (window.get(self.start), window.get(self.start + 1)) {
                (None, _) | (Some(b'\r'), None) => return Ok(false),
                (Some(b'\r'), Some(b'\n')) if self.request => self.start += 2,
                (Some(b'\n'), _) if self.request => return Err(Fault::BareLineFeed),
                (Some(first), _) if self.request && first.is_ascii_graphic() => break,
                (Some(b'H'), _) if !self.request => break,
                _ if self.request => return Err(Fault::RequestLine),
                _ => return Err(Fault::StatusLine),
            }
        }
        self.started = true;
        self.searched = self.start;
        Ok(true)
    }

    fn more_or_too_large(&self, window: &[u8], limits: &Limits) -> Result<Option<Head>, Fault> {
        match window.len() < limits.head_bytes {
            true => Ok(None),
            false if self.request && self.started && self.lines == 0 => Err(Fault::TargetTooLong),
            false => Err(Fault::HeadTooLarge),
        }
    }
}
