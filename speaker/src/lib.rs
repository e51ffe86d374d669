//! Hands of the speaker: raw frames, heartbeats, interfaces.
