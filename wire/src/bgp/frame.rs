//! Cuts a TCP byte stream into BGP messages (RFC 4271 §4.1, §6.1; RFC 8654).
//!
//! Nothing is looked at here but the header; what is in a body is for the decoder of its type.

use super::Notification;

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 19;
/// Length of the longest message, in bytes.
pub const MAX_LEN: usize = 4096;
/// Length of the longest message once both sides have sent the extended message capability, in bytes.
pub const MAX_EXTENDED_LEN: usize = 65535;

const MARKER: [u8; 16] = [0xff; 16];

/// Type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageType {
    /// OPEN (1).
    Open,
    /// UPDATE (2).
    Update,
    /// NOTIFICATION (3).
    Notification,
    /// KEEPALIVE (4).
    Keepalive,
    /// ROUTE-REFRESH (5, RFC 2918).
    RouteRefresh,
}

impl MessageType {
    /// Every type.
    pub const ALL: [Self; 5] = [Self::Open, Self::Update, Self::Notification, Self::Keepalive, Self::RouteRefresh];

    /// The type with this number; `None` for one we do not know.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().zip(1..).find_map(|(kind, known)| (known == code).then_some(kind))
    }
}

/// One message as it arrived, its header checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its type.
    pub kind: MessageType,
    /// What follows the header. Its length is one the type may have.
    pub body: &'a [u8],
}

/// What is wrong with a header. The stream cannot be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The marker is not all ones.
    #[error("the marker is not all ones")]
    NotSynchronized,
    /// The length is none that a message of this type may have.
    #[error("a message of type {kind} cannot be {length} bytes long")]
    BadLength {
        /// The type field.
        kind: u8,
        /// The length field.
        length: u16,
    },
    /// The type is none we know.
    #[error("message type {0} does not exist")]
    BadType(u8),
}

impl HeaderError {
    /// What to tell the peer before closing.
    pub fn notification(self) -> Notification {
        match self {
            Self::NotSynchronized => Notification::new(1, 1, []),
            Self::BadLength { length, .. } => Notification::new(1, 2, length.to_be_bytes()),
            Self::BadType(kind) => Notification::new(1, 3, [kind]),
        }
    }
}

impl Frame<'_> {
    /// The message as it arrived; a body that no message can have is cut.
    pub(super) fn encode(self) -> Vec<u8> {
        encode(self.kind, &[self.body.get(..MAX_EXTENDED_LEN - HEADER_LEN).unwrap_or(self.body)])
    }
}

impl MessageType {
    /// The type field.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Update => 2,
            Self::Notification => 3,
            Self::Keepalive => 4,
            Self::RouteRefresh => 5,
        }
    }
}

/// The message with this body, which fits [`MAX_EXTENDED_LEN`].
pub(super) fn encode(kind: MessageType, body: &[&[u8]]) -> Vec<u8> {
    let length = HEADER_LEN + body.iter().map(|part| part.len()).sum::<usize>();
    let mut message = Vec::with_capacity(length);
    message.extend(MARKER);
    message.extend(u16::try_from(length).expect("whoever puts a body together keeps to the limit").to_be_bytes());
    message.push(kind.code());
    message.extend(body.iter().copied().flatten());
    message
}

/// Collects the bytes of one connection and hands out one message at a time.
///
/// It never holds more than one message, whatever is fed to it.
#[derive(Clone, Debug)]
pub struct Cutter {
    /// The message under way, from its first byte.
    held: Vec<u8>,
    /// Whether `held` has been handed out and the next byte begins another message.
    taken: bool,
    max_len: usize,
}

impl Default for Cutter {
    fn default() -> Self {
        Self { held: Vec::with_capacity(MAX_LEN), taken: false, max_len: MAX_LEN }
    }
}

impl Cutter {
    /// Lets messages be up to [`MAX_EXTENDED_LEN`] from the next one on. OPEN and KEEPALIVE stay as they are.
    pub fn allow_extended(&mut self) {
        self.max_len = MAX_EXTENDED_LEN;
    }

    /// Takes bytes off the front of `input` until one message is complete. `None` means that `input` is used up and the
    /// message is not complete yet. Call it until it says so.
    ///
    /// # Errors
    /// The header is wrong. Every later call says the same.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Frame<'_>>, HeaderError> {
        if self.taken {
            self.held.clear();
            self.taken = false;
        }
        self.fill(input, HEADER_LEN);
        let Some((kind, length)) = self.header()? else { return Ok(None) };
        self.fill(input, length);
        if self.held.len() < length {
            return Ok(None);
        }
        self.taken = true;
        Ok(Some(Frame { kind, body: &self.held[HEADER_LEN..] }))
    }

    /// Moves bytes over until `length` are held.
    fn fill(&mut self, input: &mut &[u8], length: usize) {
        let wanted = length.saturating_sub(self.held.len()).min(input.len());
        let (taken, rest) = input.split_at(wanted);
        self.held.extend_from_slice(taken);
        *input = rest;
    }

    /// Type and length from the header, once it is there.
    fn header(&self) -> Result<Option<(MessageType, usize)>, HeaderError> {
        let Some((marker, rest)) = self.held.split_first_chunk::<16>() else { return Ok(None) };
        let [high, low, kind, ..] = *rest else { return Ok(None) };
        if *marker != MARKER {
            return Err(HeaderError::NotSynchronized);
        }
        let length = u16::from_be_bytes([high, low]);
        let bad_length = HeaderError::BadLength { kind, length };
        if usize::from(length) < HEADER_LEN || usize::from(length) > self.max_len {
            return Err(bad_length);
        }
        let (kind, allowed) = match kind {
            1 => (MessageType::Open, 29..=MAX_LEN),
            2 => (MessageType::Update, 23..=self.max_len),
            3 => (MessageType::Notification, 21..=self.max_len),
            4 => (MessageType::Keepalive, HEADER_LEN..=HEADER_LEN),
            // One that is too long has an answer of its own (RFC 7313 §5), which its decoder gives.
            5 => (MessageType::RouteRefresh, 23..=self.max_len),
            _ => return Err(HeaderError::BadType(kind)),
        };
        if allowed.contains(&usize::from(length)) { Ok(Some((kind, length.into()))) } else { Err(bad_length) }
    }
}
