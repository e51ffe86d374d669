//! Takes connections of peers that make them themselves. Whose they are is decided in `ferrogate_core::speaker::bgp`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::poll_fn,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    task::Poll,
};

use ferrogate_core::{
    model::{InterfaceName, Prefix, peer::Key},
    speaker::bgp::Expected,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use super::sockopt;

/// Connections that the kernel holds until they are taken.
const BACKLOG: i32 = 128;

/// TTL or hop limit before it is known who connects; whoever checks it expects no less (RFC 5082 §3).
const FAR: u32 = 255;

/// Where the kernel counts what it drops.
const COUNTERS: &str = "/proc/thread-self/net/netstat";

/// Where is listened: one family in one VRF.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    is_ipv4: bool,
    vrf: Option<InterfaceName>,
}

/// All listening sockets.
pub(super) struct Listeners {
    port: u16,
    expected: Vec<Expected>,
    open: BTreeMap<Place, Listening>,
    /// Where it was said already that listening is not possible.
    complained: BTreeSet<Place>,
    /// The last connection could not be taken, and that was said.
    is_short: bool,
}

struct Listening {
    listener: TcpListener,
    keys: BTreeMap<Prefix, Key>,
    /// Those whose key could not be set; they are not taken without.
    unarmed: BTreeSet<Prefix>,
}

impl Listeners {
    pub(super) fn new(port: u16) -> Self {
        Self { port, expected: Vec::new(), open: BTreeMap::new(), complained: BTreeSet::new(), is_short: false }
    }

    /// Takes connections from exactly these from now on.
    pub(super) fn expect(&mut self, expected: Vec<Expected>) {
        self.expected = expected;
        let places: BTreeSet<Place> = self.expected.iter().map(place).collect();
        self.open.retain(|place, _| places.contains(place));
        for (place, listening) in &mut self.open {
            listening.arm(keys(&self.expected, place));
        }
        self.open_missing();
    }

    /// Opens what is to be open and could not be before.
    pub(super) fn open_missing(&mut self) {
        for place in self.expected.iter().map(place).collect::<BTreeSet<_>>() {
            if self.open.contains_key(&place) {
                continue;
            }
            match listen(&place, self.port) {
                Ok(listener) => {
                    let mut listening = Listening { listener, keys: BTreeMap::new(), unarmed: BTreeSet::new() };
                    listening.arm(keys(&self.expected, &place));
                    self.complained.remove(&place);
                    self.open.insert(place, listening);
                }
                Err(error) if self.complained.insert(place) => warn!(
                    port = self.port, %error,
                    "cannot listen for BGP, and passive peers cannot connect; end whatever has the port, or give this \
                     process CAP_NET_BIND_SERVICE"
                ),
                Err(error) => debug!(port = self.port, %error, "still cannot listen for BGP"),
            }
        }
    }

    /// The next connection that somebody makes, and the VRF that it came by. Nobody is taken without the key that belongs
    /// to its address.
    pub(super) async fn accept(&mut self) -> (Option<InterfaceName>, TcpStream) {
        loop {
            let (place, unarmed, accepted) = poll_fn(|context| {
                for (place, listening) in &self.open {
                    if let Poll::Ready(accepted) = listening.listener.poll_accept(context) {
                        return Poll::Ready((place, &listening.unarmed, accepted));
                    }
                }
                Poll::Pending
            })
            .await;
            match accepted {
                Ok((_, from)) if unarmed.iter().any(|unarmed| unarmed.contains(from.ip().to_canonical())) => {
                    debug!(%from, "connection refused, its password could not be set");
                }
                Ok((stream, _)) => {
                    let vrf = place.vrf.clone();
                    self.is_short = false;
                    return (vrf, stream);
                }
                Err(error) => {
                    // Out of descriptors, say: whoever waits is taken when one is free.
                    if !std::mem::replace(&mut self.is_short, true) {
                        warn!(%error, "a connection of a BGP peer could not be taken");
                    }
                    std::future::pending().await
                }
            }
        }
    }
}

impl Listening {
    fn arm(&mut self, keys: BTreeMap<Prefix, Key>) {
        for from in self.keys.keys().filter(|from| !keys.contains_key(from)) {
            if let Err(error) = sockopt::set_md5_key(&self.listener, *from, None) {
                debug!(%from, %error, "key not removed");
            }
        }
        self.unarmed.clear();
        for (from, key) in &keys {
            if self.keys.get(from) != Some(key)
                && let Err(error) = sockopt::set_md5_key(&self.listener, *from, Some(key))
            {
                warn!(%from, %error, "cannot set the password of a passive BGP peer, which cannot connect therefore");
                self.unarmed.insert(*from);
            }
        }
        self.keys = keys;
        self.keys.retain(|from, _| !self.unarmed.contains(from));
    }
}

fn place(expected: &Expected) -> Place {
    Place { is_ipv4: expected.from.is_ipv4(), vrf: expected.transport.vrf.clone() }
}

fn keys(expected: &[Expected], place: &Place) -> BTreeMap<Prefix, Key> {
    let here = expected.iter().filter(|expected| self::place(expected) == *place);
    here.filter_map(|expected| Some((expected.from, expected.transport.password.clone()?))).collect()
}

fn listen(place: &Place, port: u16) -> io::Result<TcpListener> {
    let (domain, address) = match place.is_ipv4 {
        true => (Domain::IPV4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        false => (Domain::IPV6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if place.is_ipv4 {
        socket.set_ttl_v4(FAR)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(FAR)?;
    }
    if let Some(vrf) = &place.vrf {
        socket.bind_device(Some(vrf.as_str().as_bytes()))?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// How many segments the kernel has dropped because of their signatures (`TCPMD5NotFound`, `TCPMD5Unexpected`,
/// `TCPMD5Failure`); 0 where it does not say.
pub(super) fn mistrust() -> u64 {
    let text = fs::read_to_string(COUNTERS).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (Some(names), Some(counts)) = (lines.next(), lines.next()) else { return 0 };
    let all = names.split_whitespace().zip(counts.split_whitespace());
    let of_signatures = all.filter(|(name, _)| name.starts_with("TCPMD5"));
    of_signatures.filter_map(|(_, count)| count.parse::<u64>().ok()).sum()
}
