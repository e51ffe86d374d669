//! Takes connections of peers that make them themselves. Whose they are is decided in `ferrogate_core::speaker::bgp`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::poll_fn,
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    task::Poll,
};

use ferrogate_core::{
    model::{InterfaceName, Prefix, peer::Signature},
    speaker::bgp::Expected,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use super::{COUNT_INTERVAL, sockopt};

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

/// A socket that listens, and its keys.
struct Listening {
    listener: TcpListener,
    keys: Keys,
}

/// The keys of a socket.
#[derive(Default)]
struct Keys {
    in_force: BTreeMap<Prefix, Signature>,
    /// Those whose key could not be set; they are not taken without.
    unarmed: BTreeSet<Prefix>,
}

impl Keys {
    /// Whether the same socket can have other keys. Those of MD5 can be changed and taken away, those of TCP-AO only be
    /// more than before: Linux keeps one that a connection may still use.
    fn can_become(&self, wanted: &BTreeMap<Prefix, Signature>) -> bool {
        self.in_force.iter().all(|(from, key)| match (key, wanted.get(from)) {
            (Signature::Md5(_), None | Some(Signature::Md5(_))) => true,
            (key, wanted) => wanted == Some(key),
        })
    }

    /// Has the socket have these, as far as that is possible, and says whether any is another than before.
    fn arm(&mut self, socket: &impl AsFd, wanted: &BTreeMap<Prefix, Signature>) -> bool {
        let mut is_different = false;
        for from in self.in_force.keys().filter(|from| !wanted.contains_key(from)).copied().collect::<Vec<_>>() {
            match sockopt::unsign(socket, from) {
                Ok(()) => {
                    self.in_force.remove(&from);
                    is_different = true;
                }
                Err(error) => debug!(%from, %error, "password that no BGP peer has any more could not be taken away"),
            }
        }
        self.unarmed.retain(|from| wanted.contains_key(from));
        for (from, key) in wanted {
            if self.in_force.get(from) == Some(key) {
                self.unarmed.remove(from);
                continue;
            }
            match sockopt::sign(socket, *from, key) {
                Ok(()) => {
                    self.unarmed.remove(from);
                    self.in_force.insert(*from, key.clone());
                    is_different = true;
                }
                Err(error) if self.unarmed.insert(*from) => warn!(
                    %from, %error, again_in = ?COUNT_INTERVAL,
                    "cannot set the password of a passive BGP peer, which cannot connect therefore until that succeeds"
                ),
                Err(error) => debug!(%from, %error, "still cannot set the password of a passive BGP peer"),
            }
        }
        is_different
    }
}

impl Listeners {
    pub(super) fn new(port: u16) -> Self {
        Self { port, expected: Vec::new(), open: BTreeMap::new(), complained: BTreeSet::new(), is_short: false }
    }

    /// Takes connections from exactly these from now on.
    pub(super) fn expect(&mut self, expected: Vec<Expected>) {
        self.expected = expected;
        let places: BTreeSet<Place> = self.expected.iter().map(place).collect();
        self.open.retain(|place, listening| {
            places.contains(place) && listening.keys.can_become(&keys(&self.expected, place))
        });
        self.open_missing();
    }

    /// Opens what is to be open, sets what keys are to be set, and could not be before.
    pub(super) fn open_missing(&mut self) {
        for place in self.expected.iter().map(place).collect::<BTreeSet<_>>() {
            let wanted = keys(&self.expected, &place);
            if let Some(Listening { listener, keys }) = self.open.get_mut(&place) {
                if !keys.arm(listener, &wanted) || turn_away(listener).is_ok() {
                    continue;
                }
                self.open.remove(&place);
            }
            match listen(&place, self.port, &wanted) {
                Ok(listening) => {
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
                        return Poll::Ready((place, &listening.keys.unarmed, accepted));
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

fn place(expected: &Expected) -> Place {
    Place { is_ipv4: expected.from.is_ipv4(), vrf: expected.transport.vrf.clone() }
}

fn keys(expected: &[Expected], place: &Place) -> BTreeMap<Prefix, Signature> {
    let here = expected.iter().filter(|expected| self::place(expected) == *place);
    here.filter_map(|expected| Some((expected.from, expected.transport.signature.clone()?))).collect()
}

/// Closes whoever has connected by the keys from before and was not taken yet; what is half open is held to the new ones.
fn turn_away(listener: &TcpListener) -> io::Result<()> {
    // So many wait at most; further ones have come after the keys.
    for _ in 0..=BACKLOG {
        match SockRef::from(listener).accept() {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn listen(place: &Place, port: u16, wanted: &BTreeMap<Prefix, Signature>) -> io::Result<Listening> {
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
    // Before anybody can connect.
    let mut keys = Keys::default();
    keys.arm(&socket, wanted);
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    Ok(Listening { listener, keys })
}

/// How the kernel's counters of segments begin that it has dropped because of their signatures: `TCPMD5NotFound`,
/// `TCPMD5Unexpected`, `TCPMD5Failure`, `TCPAOBad`, `TCPAOKeyNotFound`, `TCPAORequired`.
const MISTRUST: [&str; 4] = ["TCPMD5", "TCPAOBad", "TCPAOKey", "TCPAORequired"];

/// How many segments those are; 0 where the kernel does not say.
pub(super) fn mistrust() -> u64 {
    let text = fs::read_to_string(COUNTERS).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (Some(names), Some(counts)) = (lines.next(), lines.next()) else { return 0 };
    let all = names.split_whitespace().zip(counts.split_whitespace());
    let of_signatures = all.filter(|(name, _)| MISTRUST.iter().any(|begin| name.starts_with(begin)));
    of_signatures.filter_map(|(_, count)| count.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{IpAddr, TcpStream as Stream},
        num::NonZeroU8,
    };

    use ferrogate_core::{
        model::peer::{AoAlgorithm, Key, TcpAo},
        speaker::bgp::{Transport, Ttl},
    };

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn md5(key: &str) -> Option<Signature> {
        Key::new(key).map(Signature::Md5)
    }

    fn ao(send_id: u8) -> Option<Signature> {
        let terms = TcpAo { send_id, receive_id: 2, algorithm: AoAlgorithm::HmacSha1 };
        Key::new("secret").map(|key| Signature::Ao { key, terms })
    }

    fn expected(from: &str, signature: Option<Signature>) -> Expected {
        let ttl = Ttl::Security { hops: NonZeroU8::MIN };
        Expected { from: from.parse().unwrap(), transport: Transport { source: None, vrf: None, signature, ttl } }
    }

    fn keys_of(all: &[(&str, Option<Signature>)]) -> BTreeMap<Prefix, Signature> {
        all.iter().filter_map(|(from, key)| Some((from.parse().unwrap(), key.clone()?))).collect()
    }

    #[test]
    fn n_061_only_a_key_of_tcp_ao_that_is_another_or_gone_needs_another_socket() {
        let (one, two) = ("192.0.2.1/32", "192.0.2.2/32");
        for (before, after, is_possible) in [
            (vec![], vec![(one, md5("a")), (two, ao(1))], true),
            (vec![(one, md5("a"))], vec![(one, md5("b"))], true),
            (vec![(one, md5("a"))], vec![], true),
            (vec![(one, md5("a"))], vec![(one, ao(1))], false),
            (vec![(one, ao(1))], vec![(one, ao(1)), (two, ao(1))], true),
            (vec![(one, ao(1))], vec![(one, ao(3))], false),
            (vec![(one, ao(1))], vec![], false),
        ] {
            let keys = Keys { in_force: keys_of(&before), unarmed: BTreeSet::new() };

            assert_eq!(keys.can_become(&keys_of(&after)), is_possible, "{before:?} to {after:?}");
        }
    }

    #[tokio::test]
    async fn n_061_another_key_leaves_the_socket_open_and_closes_who_had_connected_without_it() {
        let others = || expected("192.0.2.1/32", md5("of another"));
        let mut listeners = Listeners::new(0);
        listeners.expect(vec![expected("127.0.0.1/32", None), others()]);
        let port = |listeners: &Listeners| {
            listeners.open.values().map(|open| open.listener.local_addr().unwrap().port()).collect::<Vec<_>>()
        };
        let before = port(&listeners);
        let address = SocketAddr::new(HERE, before[0]);
        let mut early = Stream::connect(address).unwrap();

        for key in [md5("secret"), md5("changed")] {
            listeners.expect(vec![expected("127.0.0.1/32", key.clone()), others()]);

            assert_eq!(port(&listeners), before);
            // The one that came before the key is at its end, and whoever has the key is taken.
            assert!(matches!(early.read(&mut [0]), Ok(0) | Err(_)));
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            sockopt::sign(&socket, HERE.into(), &key.unwrap()).unwrap();
            socket.connect(&address.into()).unwrap();
            let own = socket.local_addr().unwrap().as_socket().unwrap();
            let (vrf, taken) = listeners.accept().await;
            assert_eq!((vrf, taken.peer_addr().unwrap()), (None, own));
        }

        listeners.expect(vec![expected("127.0.0.1/32", None), others()]);

        assert_eq!(port(&listeners), before);
        let late = Stream::connect(address).unwrap();
        let (_, taken) = listeners.accept().await;
        assert_eq!(taken.peer_addr().unwrap(), late.local_addr().unwrap());
    }

    #[tokio::test]
    async fn n_061_a_key_that_could_not_be_set_is_tried_again_and_nobody_is_taken_without_it_meanwhile() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let other = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let wanted = keys_of(&[("192.0.2.1/32", md5("secret")), ("2001:db8::1/128", md5("secret"))]);
        let mut keys = Keys::default();

        // A socket of IPv4 has no key for an address of IPv6.
        assert!(keys.arm(&socket, &wanted));
        assert_eq!(keys.unarmed, ["2001:db8::1/128".parse().unwrap()].into());
        assert!(!keys.arm(&socket, &wanted));
        assert_eq!(keys.unarmed.len(), 1);
        assert!(keys.arm(&other, &wanted));

        assert!(keys.unarmed.is_empty() && keys.in_force == wanted);
    }
}
