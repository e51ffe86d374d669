//! Buffers that exist only while bytes are in them: each thread keeps a few and lends them out.
//!
//! A connection that waits for its next request holds none, which is what makes ten thousand idle clients cheap.

use std::cell::RefCell;

/// Bytes of one buffer. With 64 KiB a plain copy costs no more than `splice`, and a head with a short body is one read.
pub(crate) const BUFFER_BYTES: usize = 64 * 1024;

/// Buffers that a thread keeps for later, at most. Few are lent at the same time: waiting needs none.
const KEPT: usize = 64;

/// Bytes that an output begins with: a head and a short body. It grows where that is not enough.
const OUTPUT_BYTES: usize = 4 * 1024;

/// The largest output that is kept for later.
const KEPT_OUTPUT_BYTES: usize = 16 * 1024;

/// Outputs that a thread keeps for later, at most: each request that waits for its answer holds one.
const KEPT_OUTPUTS: usize = 512;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static OUTPUTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Received bytes that are not dealt with yet.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// An empty buffer.
    pub(crate) fn take() -> Self {
        let mut buffer = Self::none();
        buffer.borrow();
        buffer
    }

    fn borrow(&mut self) {
        let kept = BUFFERS.with_borrow_mut(Vec::pop);
        self.bytes = kept.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice());
    }

    /// An empty buffer that borrows its room once something is to be received.
    pub(crate) fn none() -> Self {
        Self { bytes: Box::default(), start: 0, end: 0 }
    }

    /// What is not dealt with yet.
    pub(crate) fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// The same, to be changed in place.
    pub(crate) fn filled_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.end).unwrap_or_default()
    }

    /// Gives the room back for as long as there is nothing in it. What is lent again at once is still in the cache.
    pub(crate) fn rest(&mut self) {
        if self.start == self.end {
            *self = Self::none();
        }
    }

    /// Where more can be received; empty when the buffer is full.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.borrow();
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes were received into [`spare`](Self::spare).
    pub(crate) fn received(&mut self, length: usize) {
        self.end = (self.end + length).min(self.bytes.len());
    }

    /// So many bytes from the front are dealt with.
    pub(crate) fn consume(&mut self, length: usize) {
        self.start = (self.start + length).min(self.end);
    }

    /// Makes room behind what is there.
    pub(crate) fn compact(&mut self) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // At the end of the thread its store may be gone already.
        let _ = BUFFERS.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT && bytes.len() == BUFFER_BYTES {
                kept.push(bytes);
            }
        });
    }
}

/// Bytes that are put together to be sent.
pub(crate) struct Output(Vec<u8>);

impl Output {
    /// An empty output.
    pub(crate) fn take() -> Self {
        Self(OUTPUTS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(OUTPUT_BYTES)))
    }
}

impl std::ops::Deref for Output {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl std::ops::DerefMut for Output {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        bytes.clear();
        let _ = OUTPUTS.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT_OUTPUTS && bytes.capacity() <= KEPT_OUTPUT_BYTES {
                kept.push(bytes);
            }
        });
    }
}
