//! Gossip between speakers over UDP: sealed here on its way out, opened here on its way in.
//!
//! Datagrams are sent with a TTL or hop limit of 255, and a filter in the kernel drops every one that arrives with
//! less: it has crossed a router, and speakers of one layer-2 network are neighbours (RFC 5082). Who may speak for
//! which node, and what has been said before, is decided in `core`.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ferrogate_core::{model::Family, speaker::Event};
use ferrogate_wire::gossip::{Datagram, Keys, MAX_LEN, Salt};
use libc::{BPF_ABS, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, SKF_NET_OFF};
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, trace, warn};

use crate::{keys, metrics::Metrics};

/// TTL and hop limit of a packet that no router has touched.
const NEIGHBOUR_HOPS: u8 = 255;

/// A socket for gossip cannot be had. Going on would let two nodes own the same address, each deaf to the other.
#[derive(Debug, thiserror::Error)]
#[error("cannot gossip on UDP {address}; free it, or choose another by --gossip-port or --gossip-bind on every node")]
pub struct GossipError {
    /// Where it was to be bound.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The sockets, opened when the first datagram is sent.
pub(crate) struct Gossip {
    port: u16,
    bind: Vec<IpAddr>,
    keys: watch::Receiver<Keys>,
    /// Drawn anew at each start: no nonce comes twice under one key.
    salt: Salt,
    events: mpsc::Sender<Event>,
    metrics: Metrics,
    /// The first socket of a family sends for it.
    senders: BTreeMap<Family, Arc<UdpSocket>>,
    readers: Vec<AbortOnDropHandle<()>>,
}

impl Gossip {
    /// Opens nothing. What is heard goes to `events`; when that is full it is lost, and the next one comes soon.
    pub(crate) fn new(
        port: u16,
        bind: Vec<IpAddr>,
        keys: watch::Receiver<Keys>,
        events: mpsc::Sender<Event>,
        metrics: Metrics,
    ) -> Self {
        let (salt, senders) = (rand::random(), BTreeMap::new());
        Self { port, bind, keys, salt, events, metrics, senders, readers: Vec::new() }
    }

    /// Seals a datagram and sends it to each address.
    ///
    /// # Errors
    /// When it is the first and no socket can be opened.
    pub(crate) fn send(&mut self, to: &[IpAddr], datagram: &Datagram) -> Result<(), GossipError> {
        if self.senders.is_empty() {
            self.open()?;
        }
        let datagram = match datagram.seal(&self.keys.borrow(), &self.salt) {
            Ok(datagram) => datagram,
            Err(error) => {
                debug!(%error, "gossip not sent");
                return Ok(());
            }
        };
        for &address in to {
            let Some(socket) = self.senders.get(&Family::of(address)) else {
                debug!(%address, "no gossip socket of this family");
                continue;
            };
            match socket.try_send_to(&datagram, SocketAddr::new(address, self.port)) {
                Ok(_) => self.metrics.gossip_sent(),
                Err(error) => debug!(%address, %error, "gossip not sent"),
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), GossipError> {
        if self.keys.borrow().are_there() {
            info!(keys = ?keys::shown(&self.keys.borrow()), "gossip is sealed with the first of these keys");
        } else {
            warn!(
                "gossip is not sealed: any host on this network can make speakers believe anything; give every speaker \
                 the same --gossip-key"
            );
        }
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let addresses = if self.bind.is_empty() { &any[..] } else { &self.bind[..] };
        for &ip in addresses {
            let address = SocketAddr::new(ip, self.port);
            let socket = match bind(address) {
                Ok(socket) => Arc::new(socket),
                // A kernel without IPv6, unless it was asked for.
                Err(error)
                    if ip == any[1]
                        && self.bind.is_empty()
                        && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
                {
                    debug!(%address, %error, "no gossip over IPv6");
                    continue;
                }
                Err(source) => return Err(GossipError { address, source }),
            };
            self.senders.entry(Family::of(ip)).or_insert_with(|| socket.clone());
            let reader = read(socket, self.keys.clone(), self.events.clone(), self.metrics.clone());
            self.readers.push(AbortOnDropHandle::new(tokio::spawn(reader)));
        }
        Ok(())
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    // The offset of TTL or hop limit in the IP header.
    let hops_at = if address.is_ipv4() {
        socket.set_ttl_v4(NEIGHBOUR_HOPS.into())?;
        8
    } else {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(NEIGHBOUR_HOPS.into())?;
        7
    };
    socket.attach_filter(&[
        SockFilter::new((BPF_LD | BPF_B | BPF_ABS) as u16, 0, 0, (SKF_NET_OFF + hops_at) as u32),
        SockFilter::new((BPF_JMP | BPF_JEQ | BPF_K) as u16, 1, 0, NEIGHBOUR_HOPS.into()),
        SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, 0),
        SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, u32::MAX),
    ])?;
    // Only now, so that nothing is queued unfiltered.
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

async fn read(socket: Arc<UdpSocket>, keys: watch::Receiver<Keys>, events: mpsc::Sender<Event>, metrics: Metrics) {
    // One byte more than the longest, so that what was cut off cannot be opened.
    let mut buffer = [0; MAX_LEN + 1];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error for an earlier datagram: its receiver is not there yet.
            Err(error) => {
                trace!(%error, "gossip bounced");
                continue;
            }
        };
        let opened = Datagram::open(buffer.get(..length).unwrap_or_default(), &keys.borrow());
        match opened {
            Ok(datagram) => {
                metrics.gossip_received();
                // Full: the loop is behind by a thousand events; the next word says the same.
                let _ = events.try_send(Event::Heard { from: from.ip(), datagram: Box::new(datagram) });
            }
            Err(error) => {
                trace!(address = %from.ip(), %error, "gossip refused");
                metrics.gossip_refused((&error).into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ferrogate_wire::gossip::{Key, Message, Origin};

    use super::*;

    const SALT: Salt = [1; 16];

    fn datagram(counter: u64) -> Datagram {
        let origin = Origin { node: "node-b".to_owned(), life: 1, counter };
        Datagram { origin, message: Message::Packet(vec![1]) }
    }

    fn keys(bytes: &[u8]) -> Keys {
        Keys::new(bytes.iter().map(|&byte| Key::from([byte; 32])))
    }

    fn metrics() -> Metrics {
        Metrics::register(&mut prometheus_client::registry::Registry::default())
    }

    async fn heard_with_hops(bind_to: &str, hops: u32) -> bool {
        let socket = bind(SocketAddr::new(bind_to.parse().unwrap(), 0)).unwrap();
        let to = socket.local_addr().unwrap();
        let (events, mut heard) = mpsc::channel(4);
        let (_keys, keys) = watch::channel(keys(&[1]));
        let reader = read(Arc::new(socket), keys.clone(), events, metrics());
        let _reader = AbortOnDropHandle::new(tokio::spawn(reader));
        let sender = Socket::new(Domain::for_address(to), Type::DGRAM, None).unwrap();
        let set_hops = |hops| if to.is_ipv4() { sender.set_ttl_v4(hops) } else { sender.set_unicast_hops_v6(hops) };
        let send = |datagram: Datagram| {
            let bytes = datagram.seal(&keys.borrow(), &SALT).unwrap();
            sender.send_to(&bytes, &to.into()).unwrap();
        };

        set_hops(hops).unwrap();
        send(datagram(2));
        // What arrives after it by the same way shows that the first one had its chance.
        set_hops(255).unwrap();
        send(datagram(3));

        let first = tokio::time::timeout(Duration::from_secs(5), heard.recv()).await.unwrap().unwrap();
        let Event::Heard { from, datagram: first } = first else { panic!("{first:?}") };
        assert_eq!(from, bind_to.parse::<IpAddr>().unwrap());
        *first == datagram(2)
    }

    #[tokio::test]
    async fn a_datagram_that_crossed_a_router_is_not_heard() {
        for address in ["127.0.0.1", "::1"] {
            assert!(heard_with_hops(address, 255).await, "{address}");
            assert!(!heard_with_hops(address, 254).await, "{address}");
        }
    }

    #[tokio::test]
    async fn only_what_opens_is_heard_and_a_new_key_counts_from_the_next_datagram_on() {
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = socket.local_addr().unwrap();
        let (events, mut heard) = mpsc::channel(4);
        let (held, receiver) = watch::channel(keys(&[1]));
        let _reader = AbortOnDropHandle::new(tokio::spawn(read(Arc::new(socket), receiver, events, metrics())));
        let sender = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        sender.set_ttl_v4(255).unwrap();
        let send = |counter, sealed_with: &[u8]| {
            let bytes = datagram(counter).seal(&keys(sealed_with), &SALT).unwrap();
            sender.send_to(&bytes, &to.into()).unwrap();
        };
        let mut next = async || {
            let event = tokio::time::timeout(Duration::from_secs(5), heard.recv()).await.unwrap().unwrap();
            let Event::Heard { datagram, .. } = event else { panic!("{event:?}") };
            datagram.origin.counter
        };

        send(1, &[]);
        send(2, &[2]);
        send(3, &[1]);
        assert_eq!(next().await, 3);
        held.send_replace(keys(&[1, 2]));
        send(4, &[2]);
        assert_eq!(next().await, 4);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_remedy() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let (events, _heard) = mpsc::channel(4);
        let (_keys, keys) = watch::channel(Keys::default());
        let mut gossip = Gossip::new(port, vec!["127.0.0.1".parse().unwrap()], keys, events, metrics());

        let error = gossip.send(&["127.0.0.2".parse().unwrap()], &datagram(1)).unwrap_err().to_string();

        assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("--gossip-port"), "{error}");
    }
}
