//! Messages of every type as values, and ROUTE-REFRESH (RFC 2918, 7313).

use super::{
    Family, Notification, Open, OpenError, Update, UpdateError,
    frame::{self, Frame, HEADER_LEN, HeaderError, MessageType},
};

/// One message of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who is there.
    Open(Open),
    /// Routes come and go.
    Update(Update),
    /// The session ends.
    Notification(Notification),
    /// The peer is alive.
    Keepalive,
    /// Routes are wanted again, or come again.
    RouteRefresh {
        /// The family concerned. `None`: one that we do not know, or a kind that we do not know, to be ignored.
        family: Option<Family>,
        /// What about them.
        kind: Refresh,
    },
}

/// What a ROUTE-REFRESH says: its subtype (RFC 7313 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refresh {
    /// All routes are wanted again.
    Request = 0,
    /// All routes come again from here on (BoRR).
    Begin = 1,
    /// All routes have come again: what did not come is gone (EoRR).
    End = 2,
}

/// Why a message cannot be read, so that the session has to end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Its header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// It is an OPEN.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is an UPDATE.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// It is a ROUTE-REFRESH of a wrong length, as of one with filters (RFC 5291), which we never agree to.
    #[error("a ROUTE-REFRESH cannot be {} bytes long", .message.len())]
    RouteRefreshLength {
        /// The message with its header.
        message: Vec<u8>,
    },
}

impl MessageError {
    /// What to tell the peer before closing.
    pub fn notification(&self) -> Notification {
        match self {
            Self::Header(error) => error.notification(),
            Self::Open(error) => error.notification(),
            Self::Update(error) => error.notification(),
            Self::RouteRefreshLength { message } => Notification::new(7, 1, &message[..]),
        }
    }
}

impl Message {
    /// Reads one message as [`frame::Cutter`] hands it out.
    ///
    /// # Errors
    /// What cannot be read and, by the RFC of its type, may not be passed over.
    pub fn decode(frame: Frame<'_>) -> Result<Self, MessageError> {
        match frame.kind {
            MessageType::Open => Ok(Self::Open(Open::decode(frame.body)?)),
            MessageType::Update => Ok(Self::Update(Update::decode(frame.body)?)),
            MessageType::Notification => match Notification::decode(frame.body) {
                Some(notification) => Ok(Self::Notification(notification)),
                None => Err(bad_length(frame).into()),
            },
            MessageType::Keepalive => Ok(Self::Keepalive),
            MessageType::RouteRefresh => {
                let &[afi_high, afi_low, subtype, safi] = frame.body else {
                    return Err(MessageError::RouteRefreshLength { message: frame.encode() });
                };
                let family = Family::from_codes(u16::from_be_bytes([afi_high, afi_low]), safi);
                let (family, kind) = match subtype {
                    0 => (family, Refresh::Request),
                    1 => (family, Refresh::Begin),
                    2 => (family, Refresh::End),
                    _ => (None, Refresh::Request),
                };
                Ok(Self::RouteRefresh { family, kind })
            }
        }
    }
}

fn bad_length(frame: Frame<'_>) -> HeaderError {
    let length = u16::try_from(HEADER_LEN + frame.body.len()).unwrap_or(u16::MAX);
    HeaderError::BadLength { kind: frame.kind.code(), length }
}

/// A ROUTE-REFRESH with its header. `Begin` and `End` are only for a peer that sent the enhanced route refresh
/// capability.
pub fn route_refresh(family: Family, kind: Refresh) -> Vec<u8> {
    let [afi_high, afi_low, safi] = family.octets();
    frame::encode(MessageType::RouteRefresh, &[&[afi_high, afi_low, kind as u8, safi]])
}
