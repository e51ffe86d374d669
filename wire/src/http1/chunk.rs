//! Follows a chunked body (RFC 9112 §7.1) without holding it.
//!
//! Chunk extensions are understood by nobody and read differently by many, so they are dropped; so are trailers. Both
//! are checked on the way. The caller forwards what is kept.

use super::Fault;

/// The longest extension of one chunk, in bytes.
const MAX_EXTENSION: usize = 1024;
/// Hexadecimal digits of a chunk size: 15 keep every size below 2^60, which no reader can overflow on.
const MAX_SIZE_DIGITS: u8 = 15;
/// The longest trailer section, in bytes.
const MAX_TRAILERS: usize = 8 * 1024;

/// What the caller forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Chunks with their framing.
    Framing,
    /// Only what is inside them, for a reader that knows no chunks.
    Payload,
}

/// What one call found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// How many bytes belong to the body; what follows them does not.
    pub consumed: usize,
    /// How many bytes at the front are now to be forwarded.
    pub kept: usize,
    /// Whether the body is complete.
    pub done: bool,
}

/// State of a chunked body between two reads.
#[derive(Clone, Debug)]
pub struct ChunkScanner {
    keep: Keep,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
        length: usize,
    },
    SizeFeed {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataReturn,
    DataFeed,
    /// At the beginning of a trailer line, or of the empty line that ends the body.
    Trailer {
        length: usize,
    },
    TrailerLine {
        length: usize,
    },
    TrailerFeed {
        length: usize,
    },
    LastFeed,
    Done,
}

impl ChunkScanner {
    /// Starts before the first chunk.
    pub fn new(keep: Keep) -> Self {
        Self { keep, state: State::Size { size: 0, digits: 0 } }
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Goes through the next bytes of the body. What is to be forwarded is moved together at the front of `bytes`;
    /// nothing is moved as long as nothing is dropped.
    ///
    /// # Errors
    /// Any byte that RFC 9112 §7.1 does not have in its place.
    pub fn scan(&mut self, bytes: &mut [u8]) -> Result<Scanned, Fault> {
        let mut at = 0;
        let mut kept = 0;
        let framing = self.keep == Keep::Framing;
        while self.state != State::Done {
            if let State::Data { left } = self.state {
                let available = bytes.len() - at;
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(available);
                if kept != at {
                    bytes.copy_within(at..at + length, kept);
                }
                at += length;
                kept += length;
                let left = left - length as u64;
                self.state = if left == 0 { State::DataReturn } else { State::Data { left } };
                if left != 0 {
                    break;
                }
            }
            let Some(byte) = bytes.get(at).copied() else { break };
            at += 1;
            let (next, framed) = step(self.state, byte)?;
            self.state = next;
            if framed && framing {
                if let Some(slot) = bytes.get_mut(kept) {
                    *slot = byte;
                }
                kept += 1;
            }
        }
        Ok(Scanned { consumed: at, kept, done: self.is_done() })
    }
}

/// The next state after a byte outside of chunk data, and whether the byte is framing that goes on.
fn step(state: State, byte: u8) -> Result<(State, bool), Fault> {
    Ok(match (state, byte) {
        (State::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
            if digits == MAX_SIZE_DIGITS {
                return Err(Fault::ChunkSize);
            }
            let digit = char::from(byte).to_digit(16).unwrap_or_default();
            (State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }, true)
        }
        (State::Size { digits: 0, .. }, _) => return Err(Fault::ChunkSize),
        (State::Size { size, .. }, b'\r') => (State::SizeFeed { size }, true),
        (State::Size { size, .. }, b';') => (State::Extension { size, length: 1 }, false),
        (State::Size { .. }, b'\n') => return Err(Fault::ChunkLine),
        (State::Size { .. }, _) => return Err(Fault::ChunkSize),

        (State::Extension { size, .. }, b'\r') => (State::SizeFeed { size }, true),
        (State::Extension { .. }, 0..=8 | 10..=31 | 127) => return Err(Fault::ChunkLine),
        (State::Extension { length: MAX_EXTENSION, .. }, _) => return Err(Fault::ChunkExtensionTooLong),
        (State::Extension { size, length }, _) => (State::Extension { size, length: length + 1 }, false),

        (State::SizeFeed { size: 0 }, b'\n') => (State::Trailer { length: 0 }, true),
        (State::SizeFeed { size }, b'\n') => (State::Data { left: size }, true),
        (State::DataReturn, b'\r') => (State::DataFeed, true),
        (State::DataFeed, b'\n') => (State::Size { size: 0, digits: 0 }, true),
        (State::SizeFeed { .. } | State::DataReturn | State::DataFeed, _) => return Err(Fault::ChunkLine),

        (State::Trailer { .. }, b'\r') => (State::LastFeed, true),
        (State::Trailer { .. }, 0..=32 | b':' | 127..) => return Err(Fault::Trailer),
        (State::Trailer { length }, _) => (State::TrailerLine { length: length + 1 }, false),
        (State::TrailerLine { length }, b'\r') => (State::TrailerFeed { length: length + 1 }, false),
        (State::TrailerLine { .. }, 0..=8 | 10..=31 | 127) => return Err(Fault::Trailer),
        (State::TrailerLine { length: MAX_TRAILERS.. }, _) => return Err(Fault::TrailersTooLong),
        (State::TrailerLine { length }, _) => (State::TrailerLine { length: length + 1 }, false),
        (State::TrailerFeed { length }, b'\n') => (State::Trailer { length: length + 1 }, false),
        (State::TrailerFeed { .. }, _) => return Err(Fault::Trailer),
        (State::LastFeed, b'\n') => (State::Done, true),
        (State::LastFeed, _) => return Err(Fault::ChunkLine),
        (State::Data { .. } | State::Done, _) => (state, false),
    })
}
