//! The BFD control packet (RFC 5880 §4.1), without the UDP and IP around it.
//!
//! Whatever §6.8.6 has a receiver discard without looking at any session is a [`DecodeError`]. Authentication is not
//! spoken here, so a packet that claims it is one of them.

use std::{
    fmt,
    num::{NonZeroU8, NonZeroU32},
};

/// Length of an encoded packet, in bytes.
pub const LEN: usize = 24;

/// UDP port of sessions over a single hop (RFC 5881 §4).
pub const SINGLE_HOP_PORT: u16 = 3784;

/// UDP port of sessions over several hops (RFC 5883 §5).
pub const MULTIHOP_PORT: u16 = 4784;

const VERSION: u8 = 1;
/// Type and length of an authentication section (RFC 5880 §4.1).
const AUTHENTICATION_HEAD_LEN: usize = 2;

const POLL: u8 = 1 << 5;
const FINAL: u8 = 1 << 4;
const CONTROL_PLANE_INDEPENDENT: u8 = 1 << 3;
const AUTHENTICATION_PRESENT: u8 = 1 << 2;
const DEMAND: u8 = 1 << 1;
const MULTIPOINT: u8 = 1;

/// A BFD control packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender's session last changed its state.
    pub diagnostic: Diagnostic,
    /// The state of the sender's session.
    pub state: State,
    /// P and F.
    pub sequence: Sequence,
    /// C: the sender's BFD outlives its control plane.
    pub control_plane_independent: bool,
    /// D: the sender wants no periodic packets while both ends are up.
    pub demand: bool,
    /// How many packets of the sender may be missing before its session counts as down.
    pub detect_mult: NonZeroU8,
    /// The number of the session at the sender.
    pub my_discriminator: NonZeroU32,
    /// The number of the session at the receiver; `None` (zero) while the sender does not know it, which it may not say
    /// when its state is Init or Up.
    pub your_discriminator: Option<NonZeroU32>,
    /// The shortest interval between its packets that the sender would like to use, less jitter, in microseconds.
    pub desired_min_tx_interval_us: u32,
    /// The shortest interval between packets that the sender can take, in microseconds; 0 if it wants none.
    pub required_min_rx_interval_us: u32,
    /// The shortest interval between echo packets that the sender can take, in microseconds; 0 if it takes none.
    pub required_min_echo_rx_interval_us: u32,
}

/// The state of a session (Sta).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Switched off by a person or by configuration.
    AdminDown,
    /// Not there, or not any more.
    Down,
    /// The other end is heard, and is not known to hear this one.
    Init,
    /// Both ends hear each other.
    Up,
}

/// Whether a packet asks for an answer or is one (P and F): never both (RFC 5880 §6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sequence {
    /// Neither bit.
    None,
    /// P: an answer with F is wanted at once.
    Poll,
    /// F: the answer.
    Final,
}

/// The reason for a change of state (Diag).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Diagnostic {
    /// No Diagnostic.
    None,
    /// Control Detection Time Expired.
    ControlDetectionTimeExpired,
    /// Echo Function Failed.
    EchoFunctionFailed,
    /// Neighbor Signaled Session Down.
    NeighborSignaledSessionDown,
    /// Forwarding Plane Reset.
    ForwardingPlaneReset,
    /// Path Down.
    PathDown,
    /// Concatenated Path Down.
    ConcatenatedPathDown,
    /// Administratively Down.
    AdministrativelyDown,
    /// Reverse Concatenated Path Down.
    ReverseConcatenatedPathDown,
    /// A code that RFC 5880 leaves for later. It says nothing, and is no fault.
    Reserved(ReservedDiagnostic),
}

/// A diagnostic code from 9 to 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReservedDiagnostic(u8);

/// Why bytes are not a BFD control packet for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The datagram is shorter than any packet.
    #[error("{0} bytes are fewer than the {LEN} of a packet")]
    Truncated(usize),
    /// The version is not 1.
    #[error("version is {0}, not {VERSION}")]
    Version(u8),
    /// The length field is less than the mandatory section, with the authentication section that the A bit claims.
    #[error("length is {found}, at least {needed} are needed")]
    Length {
        /// What the field says.
        found: u8,
        /// The least it must say.
        needed: usize,
    },
    /// The length field says more than the datagram holds.
    #[error("length is {length}, and only {available} bytes are there")]
    Overrun {
        /// What the field says.
        length: u8,
        /// Bytes there are.
        available: usize,
    },
    /// The detect multiplier is zero.
    #[error("detect multiplier is zero")]
    DetectMult,
    /// M is set, which is for point to multipoint.
    #[error("multipoint bit is set")]
    Multipoint,
    /// P and F are both set.
    #[error("poll and final bit are both set")]
    PollAndFinal,
    /// The sender's discriminator is zero.
    #[error("my discriminator is zero")]
    MyDiscriminator,
    /// The receiver's discriminator is zero, although the sender must have learned it to be in this state.
    #[error("your discriminator is zero in state {0}")]
    YourDiscriminator(State),
    /// A is set, and authentication is not used.
    #[error("authentication is claimed and not in use")]
    Authenticated,
}

/// Reads the payload of one datagram. What follows after the packet is ignored.
///
/// # Errors
/// Everything that must be discarded whatever the session, by the first rule of RFC 5880 §6.8.6 that it breaks.
pub fn decode(datagram: &[u8]) -> Result<Packet, DecodeError> {
    let Some(&[head, flags, detect_mult, length, ref words @ ..]) = datagram.first_chunk::<LEN>() else {
        return Err(DecodeError::Truncated(datagram.len()));
    };
    let version = head >> 5;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let is_authenticated = flags & AUTHENTICATION_PRESENT != 0;
    let needed = if is_authenticated { LEN + AUTHENTICATION_HEAD_LEN } else { LEN };
    if usize::from(length) < needed {
        return Err(DecodeError::Length { found: length, needed });
    }
    if usize::from(length) > datagram.len() {
        return Err(DecodeError::Overrun { length, available: datagram.len() });
    }
    let detect_mult = NonZeroU8::new(detect_mult).ok_or(DecodeError::DetectMult)?;
    if flags & MULTIPOINT != 0 {
        return Err(DecodeError::Multipoint);
    }
    let sequence = match (flags & POLL != 0, flags & FINAL != 0) {
        (false, false) => Sequence::None,
        (true, false) => Sequence::Poll,
        (false, true) => Sequence::Final,
        (true, true) => return Err(DecodeError::PollAndFinal),
    };
    let (words, _) = words.as_chunks::<4>();
    let [mine, yours, desired_tx, required_rx, required_echo_rx] =
        std::array::from_fn(|index| words.get(index).map_or(0, |word| u32::from_be_bytes(*word)));
    let my_discriminator = NonZeroU32::new(mine).ok_or(DecodeError::MyDiscriminator)?;
    let your_discriminator = NonZeroU32::new(yours);
    let state = State::of(flags >> 6);
    if your_discriminator.is_none() && matches!(state, State::Init | State::Up) {
        return Err(DecodeError::YourDiscriminator(state));
    }
    if is_authenticated {
        return Err(DecodeError::Authenticated);
    }

    Ok(Packet {
        diagnostic: Diagnostic::of(head & 0x1f),
        state,
        sequence,
        control_plane_independent: flags & CONTROL_PLANE_INDEPENDENT != 0,
        demand: flags & DEMAND != 0,
        detect_mult,
        my_discriminator,
        your_discriminator,
        desired_min_tx_interval_us: desired_tx,
        required_min_rx_interval_us: required_rx,
        required_min_echo_rx_interval_us: required_echo_rx,
    })
}

impl Packet {
    /// The payload of a datagram.
    pub fn encode(&self) -> [u8; LEN] {
        let mut flags = self.state.code() << 6;
        flags |= match self.sequence {
            Sequence::None => 0,
            Sequence::Poll => POLL,
            Sequence::Final => FINAL,
        };
        if self.control_plane_independent {
            flags |= CONTROL_PLANE_INDEPENDENT;
        }
        if self.demand {
            flags |= DEMAND;
        }
        let words = [
            self.my_discriminator.get(),
            self.your_discriminator.map_or(0, NonZeroU32::get),
            self.desired_min_tx_interval_us,
            self.required_min_rx_interval_us,
            self.required_min_echo_rx_interval_us,
        ];
        let mut datagram = [0; LEN];
        let (head, body) = datagram.split_at_mut(4);
        head.copy_from_slice(&[VERSION << 5 | self.diagnostic.code(), flags, self.detect_mult.get(), LEN as u8]);
        for (bytes, word) in body.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        datagram
    }
}

impl State {
    fn of(code: u8) -> Self {
        match code & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }

    /// Its number (RFC 5880 §4.1).
    pub fn code(self) -> u8 {
        match self {
            Self::AdminDown => 0,
            Self::Down => 1,
            Self::Init => 2,
            Self::Up => 3,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdminDown => "AdminDown",
            Self::Down => "Down",
            Self::Init => "Init",
            Self::Up => "Up",
        })
    }
}

impl Diagnostic {
    fn of(code: u8) -> Self {
        match code & 0x1f {
            0 => Self::None,
            1 => Self::ControlDetectionTimeExpired,
            2 => Self::EchoFunctionFailed,
            3 => Self::NeighborSignaledSessionDown,
            4 => Self::ForwardingPlaneReset,
            5 => Self::PathDown,
            6 => Self::ConcatenatedPathDown,
            7 => Self::AdministrativelyDown,
            8 => Self::ReverseConcatenatedPathDown,
            code => Self::Reserved(ReservedDiagnostic(code)),
        }
    }

    /// Its number (RFC 5880 §4.1).
    pub fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::ControlDetectionTimeExpired => 1,
            Self::EchoFunctionFailed => 2,
            Self::NeighborSignaledSessionDown => 3,
            Self::ForwardingPlaneReset => 4,
            Self::PathDown => 5,
            Self::ConcatenatedPathDown => 6,
            Self::AdministrativelyDown => 7,
            Self::ReverseConcatenatedPathDown => 8,
            Self::Reserved(ReservedDiagnostic(code)) => code,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "No Diagnostic",
            Self::ControlDetectionTimeExpired => "Control Detection Time Expired",
            Self::EchoFunctionFailed => "Echo Function Failed",
            Self::NeighborSignaledSessionDown => "Neighbor Signaled Session Down",
            Self::ForwardingPlaneReset => "Forwarding Plane Reset",
            Self::PathDown => "Path Down",
            Self::ConcatenatedPathDown => "Concatenated Path Down",
            Self::AdministrativelyDown => "Administratively Down",
            Self::ReverseConcatenatedPathDown => "Reverse Concatenated Path Down",
            Self::Reserved(ReservedDiagnostic(code)) => return write!(f, "Reserved ({code})"),
        })
    }
}
