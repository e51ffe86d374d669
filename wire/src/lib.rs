//! Bytes to messages and back: total, never panics, never waits.
