//! What speakers tell each other over UDP, and the envelope it is sealed in.
//!
//! A datagram, in network byte order:
//!
//! ```text
//! magic "FGSP" | version 1 | sealing | counter u64 | life u64 | node name: length u8, bytes
//! | sealed only: key id [4] | salt [16]
//! | kind | word, or packet of the membership protocol        (ciphertext where sealed)
//! | sealed only: tag [16]
//! ```
//!
//! `sealing` is 0 for none, or 1 for XChaCha20-Poly1305 with the nonce salt | counter. All before `kind` is
//! authenticated too. A nonce never comes twice under one key: the salt is drawn anew by each process that seals, and a
//! process never repeats a counter. What was opened is genuine, but may be a replay: that the counter goes up is judged
//! by whoever remembers it, and so is whether the sender may be believed. An even counter says that the datagram can wait,
//! where everybody can read it and nobody can change it.

use std::fmt;

use chacha20poly1305::{AeadInOut, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};

pub mod word;

pub use word::{
    Link, MAX_GREETINGS, MAX_LINK_LEN, MAX_LINKS, MAX_NODE_LEN, MAX_REFUSED, MAX_STATEMENTS, MAX_SUBNETS, MAX_WORD_LEN,
    MAX_YIELDS, NodeTag, Statement, Word,
};

/// The longest datagram, in bytes. Most are shorter than 300; only a node with dozens of interfaces makes some that are
/// carried in IP fragments.
pub const MAX_LEN: usize = 4 + 1 + 1 + 8 + 8 + 1 + MAX_NODE_LEN + KEY_ID_LEN + SALT_LEN + 1 + MAX_PACKET_LEN + TAG_LEN;

/// The longest packet of the membership protocol: room for a word and for news of some dozens of members.
pub const MAX_PACKET_LEN: usize = MAX_WORD_LEN + 1024;

/// How many keys are held at once.
pub const MAX_KEYS: usize = 8;

/// Length of a [`Salt`].
pub const SALT_LEN: usize = 16;

const MAGIC: [u8; 4] = *b"FGSP";
const VERSION: u8 = 1;
const KEY_LEN: usize = 32;
const KEY_ID_LEN: usize = 4;
const TAG_LEN: usize = 16;

const SEALING_NONE: u8 = 0;
const SEALING_XCHACHA20_POLY1305: u8 = 1;
/// Where in a datagram the byte is whose lowest bit is the lowest of the counter, see [`Origin::counter`].
pub const COUNTER_ENDS_AT: usize = 4 + 1 + 1 + 7;

const KIND_WORD: u8 = 1;
const KIND_PACKET: u8 = 2;

/// Sixteen bytes that a process draws at random at its start, and seals with until its end.
pub type Salt = [u8; SALT_LEN];

/// A message, and who sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sends it.
    pub origin: Origin,
    /// What it says.
    pub message: Message,
}

/// Who sends a datagram, and which of its datagrams it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The sender's node, 1 to [`MAX_NODE_LEN`] bytes.
    pub node: String,
    /// Which life of the sender this is.
    pub life: u64,
    /// Counts the datagrams of one life, upwards. It is even where the datagram says nothing new and can wait for its reader
    /// to have more to do, and odd where it cannot.
    pub counter: u64,
}

impl Origin {
    /// The count of the next datagram, after those before.
    pub fn next_counter(before: u64, can_wait: bool) -> u64 {
        let next = before + 1;
        next + u64::from(next.is_multiple_of(2) != can_wait)
    }

    /// Whether the datagram says nothing new.
    pub fn can_wait(&self) -> bool {
        self.counter.is_multiple_of(2)
    }
}

/// What a datagram says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// What the sender says about itself.
    Word(Word),
    /// A packet of the membership protocol, 1 to [`MAX_PACKET_LEN`] bytes, in that protocol's own encoding.
    Packet(Vec<u8>),
}

/// A secret that speakers share. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_LEN]);

/// By what a datagram names the key it is sealed with. It tells nothing about the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyId([u8; KEY_ID_LEN]);

/// The keys of a speaker: it seals with the current one and opens with any. Without keys nothing is sealed, and nothing
/// sealed can be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// The current one first.
    keys: Vec<(KeyId, Key)>,
}

/// Why bytes are not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key is 32 bytes, or 64 hexadecimal digits; these are {0} bytes of something else")]
pub struct NotAKey(pub usize);

/// Why a datagram cannot be put into bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The node name is empty or too long.
    #[error("node name of {0} bytes, 1 to {MAX_NODE_LEN} are allowed")]
    NodeLength(usize),
    /// An interface name is empty or too long.
    #[error("interface name of {0} bytes, 1 to {MAX_LINK_LEN} are allowed")]
    LinkLength(usize),
    /// A packet is empty or too long.
    #[error("packet of {0} bytes, 1 to {MAX_PACKET_LEN} are allowed")]
    PacketLength(usize),
    /// Too many of something.
    #[error("{count} in a list, at most {max} are allowed")]
    TooMany {
        /// How many.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They end too early.
    #[error("truncated")]
    Truncated,
    /// A kind of message we do not know.
    #[error("kind {0} of message")]
    Kind(u8),
    /// A name that is empty or too long.
    #[error("name of {0} bytes")]
    NameLength(u8),
    /// A name that is not UTF-8.
    #[error("name is not UTF-8")]
    NameEncoding,
    /// A packet that is empty or too long.
    #[error("packet of {0} bytes")]
    PacketLength(usize),
    /// Too many of something.
    #[error("{count} in a list, at most {max} are allowed")]
    TooMany {
        /// How many.
        count: u8,
        /// How many are allowed.
        max: usize,
    },
    /// A port that is none.
    #[error("port 0")]
    Port,
    /// A prefix longer than an address.
    #[error("prefix length {0} is beyond the address")]
    PrefixLength(u8),
    /// A subnet of neither IPv4 nor IPv6.
    #[error("subnet of IP version {0}")]
    SubnetVersion(u8),
    /// They go on after the end.
    #[error("{0} bytes after the end")]
    TrailingBytes(usize),
}

/// Why a datagram is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It does not begin as one of ours does.
    #[error("not gossip")]
    Magic,
    /// A version we do not speak.
    #[error("version {0}, only {VERSION} is spoken here")]
    Version(u8),
    /// A way of sealing we do not know.
    #[error("sealing {0}")]
    Sealing(u8),
    /// It is not sealed, and we hold keys.
    #[error("not sealed")]
    NotSealed,
    /// It is sealed, and we hold no key.
    #[error("sealed, and there is no key here")]
    NoKey,
    /// It is sealed with a key we do not hold.
    #[error("sealed with a key that is not known here")]
    UnknownKey,
    /// It was not sealed by a holder of the key, or was changed since.
    #[error("forged or damaged")]
    Forged,
    /// What it says cannot be read.
    #[error(transparent)]
    Message(#[from] DecodeError),
}

impl Key {
    /// Reads a key as it stands in a file: 32 bytes, or 64 hexadecimal digits with white space around them.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotAKey> {
        if let Ok(key) = bytes.try_into() {
            return Ok(Self(key));
        }
        let digit = |digit: &u8| char::from(*digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let digits: Option<Vec<u8>> = bytes.trim_ascii().iter().map(digit).collect();
        let (pairs, rest) = digits.as_deref().unwrap_or_default().as_chunks::<2>();
        let key: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
        key.try_into().ok().filter(|_| rest.is_empty()).map(Self).ok_or(NotAKey(bytes.len()))
    }

    /// By what datagrams name it.
    pub fn id(&self) -> KeyId {
        let digest: [u8; 32] =
            Sha256::new().chain_update("ferrogate gossip key id").chain_update(self.0).finalize().into();
        let [a, b, c, d, ..] = digest;
        KeyId([a, b, c, d])
    }
}

impl From<[u8; KEY_LEN]> for Key {
    fn from(key: [u8; KEY_LEN]) -> Self {
        Self(key)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Keys {
    /// Keys, the current one first; what comes beyond [`MAX_KEYS`] is left out.
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Self {
        Self { keys: keys.into_iter().map(|key| (key.id(), key)).take(MAX_KEYS).collect() }
    }

    /// Whether datagrams are sealed.
    pub fn are_there(&self) -> bool {
        !self.keys.is_empty()
    }

    /// What datagrams name them by, the current one first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(|(id, _)| *id)
    }
}

impl Datagram {
    /// The bytes, at most [`MAX_LEN`]; sealed with the current key where there is one.
    ///
    /// Under one key, no two datagrams may have both salt and counter in common.
    ///
    /// # Errors
    /// When something is outside its bounds.
    pub fn seal(&self, keys: &Keys, salt: &Salt) -> Result<Vec<u8>, EncodeError> {
        let current = keys.keys.first();
        let Origin { node, life, counter } = &self.origin;
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(MAGIC);
        bytes.push(VERSION);
        bytes.push(if current.is_some() { SEALING_XCHACHA20_POLY1305 } else { SEALING_NONE });
        bytes.extend(counter.to_be_bytes());
        bytes.extend(life.to_be_bytes());
        bytes.push(name_len(node, MAX_NODE_LEN).ok_or(EncodeError::NodeLength(node.len()))?);
        bytes.extend(node.as_bytes());
        if let Some((id, _)) = current {
            bytes.extend(id.0);
            bytes.extend(salt);
        }
        let mut body = Vec::with_capacity(256);
        match &self.message {
            Message::Word(word) => {
                body.push(KIND_WORD);
                word.encode_into(&mut body)?;
            }
            Message::Packet(packet) => {
                if packet.is_empty() || packet.len() > MAX_PACKET_LEN {
                    return Err(EncodeError::PacketLength(packet.len()));
                }
                body.push(KIND_PACKET);
                body.extend(packet);
            }
        }
        if let Some((_, key)) = current {
            let tag = cipher(key)
                .encrypt_inout_detached(&nonce(salt, *counter), &bytes, body.as_mut_slice().into())
                .expect("a few kilobytes are far below what the cipher can take");
            bytes.extend(body);
            bytes.extend(tag);
        } else {
            bytes.extend(body);
        }
        Ok(bytes)
    }

    /// Opens and reads a datagram.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn open(bytes: &[u8], keys: &Keys) -> Result<Self, OpenError> {
        let mut reader = Reader { rest: bytes };
        if reader.array()? != MAGIC {
            return Err(OpenError::Magic);
        }
        match reader.byte()? {
            VERSION => {}
            other => return Err(OpenError::Version(other)),
        }
        let sealing = reader.byte()?;
        let counter = u64::from_be_bytes(reader.array()?);
        let life = u64::from_be_bytes(reader.array()?);
        let node = reader.name(MAX_NODE_LEN)?;
        let origin = Origin { node, life, counter };
        match sealing {
            SEALING_NONE if keys.are_there() => Err(OpenError::NotSealed),
            SEALING_NONE => Ok(Self { origin, message: Message::decode(reader.rest)? }),
            SEALING_XCHACHA20_POLY1305 if !keys.are_there() => Err(OpenError::NoKey),
            SEALING_XCHACHA20_POLY1305 => {
                let id = KeyId(reader.array()?);
                let salt: Salt = reader.array()?;
                let (_, key) = keys.keys.iter().find(|(held, _)| *held == id).ok_or(OpenError::UnknownKey)?;
                let (body, tag) = reader.rest.split_last_chunk::<TAG_LEN>().ok_or(DecodeError::Truncated)?;
                let head = bytes.get(..bytes.len() - reader.rest.len()).unwrap_or_default();
                let mut body = body.to_vec();
                cipher(key)
                    .decrypt_inout_detached(&nonce(&salt, counter), head, body.as_mut_slice().into(), &Tag::from(*tag))
                    .map_err(|_| OpenError::Forged)?;
                Ok(Self { origin, message: Message::decode(&body)? })
            }
            other => Err(OpenError::Sealing(other)),
        }
    }
}

impl Message {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { rest: bytes };
        match reader.byte()? {
            KIND_WORD => Word::decode(reader.rest).map(Self::Word),
            KIND_PACKET if reader.rest.is_empty() || reader.rest.len() > MAX_PACKET_LEN => {
                Err(DecodeError::PacketLength(reader.rest.len()))
            }
            KIND_PACKET => Ok(Self::Packet(reader.rest.to_vec())),
            other => Err(DecodeError::Kind(other)),
        }
    }
}

fn cipher(key: &Key) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&key.0.into())
}

fn nonce(salt: &Salt, counter: u64) -> XNonce {
    let mut nonce = [0; SALT_LEN + 8];
    let (front, back) = nonce.split_at_mut(SALT_LEN);
    front.copy_from_slice(salt);
    back.copy_from_slice(&counter.to_be_bytes());
    nonce.into()
}

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn name_len(name: &str, max: usize) -> Option<u8> {
    u8::try_from(name.len()).ok().filter(|&length| length > 0 && usize::from(length) <= max)
}

/// Takes bytes from the front, never beyond the end.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[byte]| byte)
    }

    fn name(&mut self, max: usize) -> Result<String, DecodeError> {
        let length = self.byte()?;
        self.name_of(length, max)
    }

    fn name_of(&mut self, length: u8, max: usize) -> Result<String, DecodeError> {
        if length == 0 || usize::from(length) > max {
            return Err(DecodeError::NameLength(length));
        }
        let (name, rest) = self.rest.split_at_checked(usize::from(length)).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        std::str::from_utf8(name).map(str::to_owned).map_err(|_| DecodeError::NameEncoding)
    }

    fn list<T>(
        &mut self,
        max: usize,
        item: impl Fn(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.byte()?;
        if usize::from(count) > max {
            return Err(DecodeError::TooMany { count, max });
        }
        (0..count).map(|_| item(self)).collect()
    }

    fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes(self.rest.len())) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SALT: Salt = [9; SALT_LEN];

    fn key(byte: u8) -> Key {
        Key::from([byte; KEY_LEN])
    }

    fn keys(bytes: &[u8]) -> Keys {
        Keys::new(bytes.iter().map(|&byte| key(byte)))
    }

    fn datagram(message: Message) -> Datagram {
        Datagram { origin: Origin { node: "node-a".to_owned(), life: 7, counter: 258 }, message }
    }

    fn packet() -> Datagram {
        datagram(Message::Packet(b"swim".to_vec()))
    }

    /// By hand, from the picture in the module's documentation.
    const PLAIN: &[u8] = b"FGSP\x01\x00\
        \x00\x00\x00\x00\x00\x00\x01\x02\
        \x00\x00\x00\x00\x00\x00\x00\x07\
        \x06node-a\
        \x02swim";

    #[test]
    fn the_vector_stands_for_its_value_both_ways() {
        assert_eq!(packet().seal(&Keys::default(), &SALT).unwrap(), PLAIN);
        assert_eq!(Datagram::open(PLAIN, &Keys::default()), Ok(packet()));
    }

    /// The test vector of draft-irtf-cfrg-xchacha-03 A.3.1 pins down cipher, nonce and order of the tag.
    #[test]
    fn the_cipher_is_the_one_it_is_said_to_be() {
        let key = Key(std::array::from_fn(|at| 0x80 + at as u8));
        let salt: Salt = std::array::from_fn(|at| 0x40 + at as u8);
        let counter = 0x5051_5253_5455_5657;
        let aad = [0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
        let mut text = *b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
            sunscreen would be it.";

        let tag =
            cipher(&key).encrypt_inout_detached(&nonce(&salt, counter), &aad, text.as_mut_slice().into()).unwrap();

        assert_eq!(text[..8], [0xbd, 0x6d, 0x17, 0x9d, 0x3e, 0x83, 0xd4, 0x3b]);
        let expected = [0xc0, 0x87, 0x59, 0x24, 0xc1, 0xc7, 0x98, 0x79, 0x47, 0xde, 0xaf, 0xd8, 0x78, 0x0a, 0xcf, 0x49];
        assert_eq!(tag[..], expected);
    }

    #[test]
    fn what_is_sealed_is_opened_with_any_key_held_and_not_readable_without() {
        let word = word::tests::value();
        let sealed = datagram(Message::Word(word.clone())).seal(&keys(&[1, 2]), &SALT).unwrap();

        assert_eq!(Datagram::open(&sealed, &keys(&[1])), Ok(datagram(Message::Word(word.clone()))));
        assert_eq!(Datagram::open(&sealed, &keys(&[3, 2, 1])), Ok(datagram(Message::Word(word))));
        assert_eq!(Datagram::open(&sealed, &keys(&[2])), Err(OpenError::UnknownKey));
        assert_eq!(Datagram::open(&sealed, &Keys::default()), Err(OpenError::NoKey));
        assert!(!sealed.windows(4).any(|window| window == b"eth0"));
    }

    #[test]
    fn whoever_holds_keys_takes_nothing_that_is_not_sealed() {
        assert_eq!(Datagram::open(PLAIN, &keys(&[1])), Err(OpenError::NotSealed));
    }

    #[test]
    fn a_key_is_replaced_step_by_step_without_anybody_missing_a_word() {
        // Add the new one behind the old, put it in front, take the old one away.
        let steps = [keys(&[1]), keys(&[1, 2]), keys(&[2, 1]), keys(&[2])];

        for pair in steps.windows(2) {
            let [before, after] = pair else { unreachable!() };
            for (sender, receiver) in [(before, after), (after, before), (before, before), (after, after)] {
                let sealed = packet().seal(sender, &SALT).unwrap();
                assert_eq!(Datagram::open(&sealed, receiver), Ok(packet()));
            }
        }
        let sealed = packet().seal(&steps[3], &SALT).unwrap();
        assert_eq!(Datagram::open(&sealed, &steps[0]), Err(OpenError::UnknownKey));
    }

    #[test]
    fn no_bit_of_a_sealed_datagram_can_be_changed() {
        let sealed = packet().seal(&keys(&[1]), &SALT).unwrap();

        for bit in 0..sealed.len() * 8 {
            let mut bytes = sealed.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Datagram::open(&bytes, &keys(&[1])).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(Datagram::open(&sealed[..length], &keys(&[1])).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn what_is_not_gossip_is_refused_by_its_first_fault() {
        let with = |at: usize, byte: u8| {
            let mut bytes = PLAIN.to_vec();
            bytes[at] = byte;
            Datagram::open(&bytes, &Keys::default())
        };

        assert_eq!(with(0, b'X'), Err(OpenError::Magic));
        assert_eq!(with(4, 2), Err(OpenError::Version(2)));
        assert_eq!(with(5, 2), Err(OpenError::Sealing(2)));
        assert_eq!(with(22, 0), Err(OpenError::Message(DecodeError::NameLength(0))));
        assert_eq!(with(29, 3), Err(OpenError::Message(DecodeError::Kind(3))));
        let empty = Datagram::open(&PLAIN[..PLAIN.len() - 4], &Keys::default());
        assert_eq!(empty, Err(OpenError::Message(DecodeError::PacketLength(0))));
    }

    #[test]
    fn a_key_is_read_as_bytes_or_as_digits_and_never_shown() {
        let digits = "0a".repeat(32);

        assert_eq!(Key::parse(&[0xa; 32]), Ok(key(0xa)));
        assert_eq!(Key::parse(format!("{digits}\n").as_bytes()), Ok(key(0xa)));
        assert_eq!(Key::parse(digits.to_uppercase().as_bytes()), Ok(key(0xa)));
        for wrong in ["", "0a", "secret", &digits[1..], &format!("{digits}0a"), &digits.replace('a', "g")] {
            assert_eq!(Key::parse(wrong.as_bytes()), Err(NotAKey(wrong.len())), "{wrong}");
        }
        let shown = format!("{:?} {:?}", key(0xab), keys(&[0xab]));
        assert!(!shown.contains("ab, ") && !shown.contains("171"), "{shown}");
    }

    #[test]
    fn the_longest_datagram_is_within_its_bound() {
        let node = "n".repeat(MAX_NODE_LEN);
        let origin = Origin { node, life: u64::MAX, counter: u64::MAX };
        let longest = Datagram { origin, message: Message::Packet(vec![1; MAX_PACKET_LEN]) };

        assert_eq!(longest.seal(&keys(&[1]), &SALT).unwrap().len(), MAX_LEN);
        let too_long = datagram(Message::Packet(vec![1; MAX_PACKET_LEN + 1]));
        assert_eq!(too_long.seal(&keys(&[1]), &SALT), Err(EncodeError::PacketLength(MAX_PACKET_LEN + 1)));
    }

    proptest! {
        #[test]
        fn opening_any_bytes_returns(bytes in prop::collection::vec(any::<u8>(), 0..2 * MAX_LEN), is_keyed: bool) {
            let _ = Datagram::open(&bytes, &keys(if is_keyed { &[1] } else { &[] }));
        }

        #[test]
        fn every_word_survives_being_sealed(word in word::tests::words(), counter: u64, is_keyed: bool) {
            let keys = keys(if is_keyed { &[1] } else { &[] });
            let origin = Origin { node: word.node.clone(), life: word.life, counter };
            let datagram = Datagram { origin, message: Message::Word(word) };

            let bytes = datagram.seal(&keys, &SALT).unwrap();

            prop_assert!(bytes.len() <= MAX_LEN);
            prop_assert_eq!(Datagram::open(&bytes, &keys), Ok(datagram));
        }
    }
}
