//! Router advertisement and solicitation (RFC 4861 §4.1, §4.2), by which BGP speakers on a link learn each other's
//! link-local address.
//!
//! An ICMPv6 socket carries them, so a message begins with its type. The kernel checks the checksum of one that arrives
//! and fills in that of ours (RFC 3542 §3.1). That the source is link-local and the hop limit is
//! [`HOP_LIMIT`](super::HOP_LIMIT), so that no router was in between, is for the reader of the socket to check.

use pnet_packet::icmpv6::{
    Icmpv6Types,
    ndp::{NdpOptionTypes, RouterAdvertPacket},
};

use super::{OptionError, link_layer, link_layer_option};
use crate::ethernet::Mac;

const ADVERTISEMENT_LEN: usize = RouterAdvertPacket::minimum_packet_size();

/// A router says that it is there. What it tells hosts about addresses and timers is nothing to us, and unspecified in
/// ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterAdvertisement {
    /// How long it may be a default router; 0: it is none.
    pub router_lifetime_seconds: u16,
    /// The source link-layer address option, always a station.
    pub source_link_layer: Option<Mac>,
}

/// Why a message is not a router advertisement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouterError {
    /// Shorter than one without options.
    #[error("{0} bytes are fewer than the {ADVERTISEMENT_LEN} of a router advertisement")]
    TooShort(usize),
    /// Another ICMPv6 type.
    #[error("ICMPv6 type is {0}, not router advertisement (134)")]
    Type(u8),
    /// The ICMPv6 code is not zero.
    #[error("ICMPv6 code is {0}, not 0")]
    Code(u8),
    /// The options behind it.
    #[error(transparent)]
    Options(#[from] OptionError),
}

impl RouterAdvertisement {
    /// That a station at `mac` is there and forwards nothing: no host takes it for a default router.
    pub fn presence(mac: Mac) -> Self {
        Self { router_lifetime_seconds: 0, source_link_layer: Some(mac) }
    }

    /// Reads one message. Options of other types are ignored.
    ///
    /// # Errors
    /// What RFC 4861 §6.1.2 tells a node to discard, so far as the message itself shows it.
    pub fn decode(message: &[u8]) -> Result<Self, RouterError> {
        let Some((body, options)) = message.split_first_chunk::<ADVERTISEMENT_LEN>() else {
            return Err(RouterError::TooShort(message.len()));
        };
        let [kind, code, _, _, _, _, lifetime_high, lifetime_low, ..] = *body;
        if kind != Icmpv6Types::RouterAdvert.0 {
            return Err(RouterError::Type(kind));
        }
        if code != 0 {
            return Err(RouterError::Code(code));
        }
        Ok(Self {
            router_lifetime_seconds: u16::from_be_bytes([lifetime_high, lifetime_low]),
            source_link_layer: link_layer(options, NdpOptionTypes::SourceLLAddr.0)?,
        })
    }

    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let [lifetime_high, lifetime_low] = self.router_lifetime_seconds.to_be_bytes();
        let mut message = vec![Icmpv6Types::RouterAdvert.0, 0, 0, 0, 0, 0, lifetime_high, lifetime_low];
        message.resize(ADVERTISEMENT_LEN, 0);
        if let Some(mac) = self.source_link_layer {
            message.extend(link_layer_option(NdpOptionTypes::SourceLLAddr.0, mac));
        }
        message
    }
}

/// The question of a station at `mac` which routers are there: they answer it at once, not at their next interval.
pub fn router_solicitation(mac: Mac) -> Vec<u8> {
    let mut message = vec![Icmpv6Types::RouterSolicit.0, 0, 0, 0, 0, 0, 0, 0];
    message.extend(link_layer_option(NdpOptionTypes::SourceLLAddr.0, mac));
    message
}
