//! Gossip between speakers over UDP: sealed here on its way out, opened here on its way in.
//!
//! Datagrams are sent with a TTL or hop limit of 255, and a filter in the kernel drops every one that arrives with
//! less: it has crossed a router, and speakers of one layer-2 network are neighbours (RFC 5082). Who may speak for
//! which node, and what has been said before, is decided in `core`.
//!
//! Most datagrams say nothing new, and say so. They are left at a socket of their own until there is something to do anyway.
//! Each counts from when the kernel had it.

use std::{
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, RawFd},
    task::Poll,
    time::{Duration, Instant},
};

use ferrogate_core::{model::Family, speaker::Arrived};
use ferrogate_wire::gossip::{COUNTER_ENDS_AT, Datagram, Keys, MAX_LEN, Salt};
use libc::{BPF_A, BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, SKF_NET_OFF};
use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
};
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, sync::watch};
use tracing::{debug, info, trace, warn};

use crate::{
    clock::Clocks,
    keys,
    metrics::Metrics,
    patience::{self, Kind, instruction},
};

/// TTL and hop limit of a packet that no router has touched.
const NEIGHBOUR_HOPS: u8 = 255;

/// Bytes that a socket for what can wait has room for, with what the kernel needs beside them: some hundred datagrams.
const ROOM: usize = 1 << 19;

/// Datagrams that are taken from one socket in one go at most: more than one holds, unless somebody floods it.
const BATCH: usize = 2048;

/// How many of those that can wait may gather before they are looked for, as fast as they come: a part of what fits.
const MANY: u32 = 64;

/// How soon they are looked for again at the earliest.
const SOON: Duration = Duration::from_millis(2);

/// For how long they are after a socket had no room for all.
const ALERT: Duration = Duration::from_secs(60);

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
    metrics: Metrics,
    /// The first of a family sends for it.
    ports: Vec<Port>,
    /// When they were looked at last.
    looked: Clocks,
    /// When they are to be looked at whatever else there is to do.
    gather_at: Option<Instant>,
    alert_until: Option<Instant>,
    /// Whether so much was taken that more may have come since.
    is_flooded: bool,
}

impl Gossip {
    /// Opens nothing.
    pub(crate) fn new(port: u16, bind: Vec<IpAddr>, keys: watch::Receiver<Keys>, metrics: Metrics) -> Self {
        Self {
            port,
            bind,
            keys,
            salt: rand::random(),
            metrics,
            ports: Vec::new(),
            looked: Clocks::read(),
            gather_at: None,
            alert_until: None,
            is_flooded: false,
        }
    }

    /// Seals a datagram and sends it to each address.
    ///
    /// # Errors
    /// When it is the first and no socket can be opened.
    pub(crate) fn send(&mut self, to: &[IpAddr], datagram: &Datagram) -> Result<(), GossipError> {
        if self.ports.is_empty() {
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
            let Some(port) = self.ports.iter().find(|port| port.family == Family::of(address)) else {
                debug!(%address, "no gossip socket of this family");
                continue;
            };
            match port.calm.send_to(&datagram, &SocketAddr::new(address, self.port).into()) {
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
            match Port::open(address) {
                Ok(port) => self.ports.push(port),
                // A kernel without IPv6, unless it was asked for.
                Err(error)
                    if ip == any[1]
                        && self.bind.is_empty()
                        && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
                {
                    debug!(%address, %error, "no gossip over IPv6");
                }
                Err(source) => return Err(GossipError { address, source }),
            }
        }
        Ok(())
    }

    /// Waits for what cannot wait.
    pub(crate) async fn comes(&self) {
        poll_fn(|context| {
            let is_there = |port: &Port| port.news.poll_recv_ready(context).is_ready();
            // All of them, so that each wakes this task.
            if self.ports.iter().map(is_there).fold(false, |any, is_there| any | is_there) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Takes what has come, oldest first.
    pub(crate) fn gather(&mut self) -> Vec<Arrived> {
        let Self { ports, keys, metrics, .. } = self;
        let (keys, mut arrived) = (keys.borrow(), Vec::new());
        // One byte more than the longest, so that what was cut off cannot be opened.
        let mut bytes = [0; MAX_LEN + 1];
        let mut counts = [0; 2];
        for port in ports.iter_mut() {
            for kind in Kind::BOTH {
                for _ in 0..BATCH {
                    match port.next(kind, &mut bytes, &keys, metrics) {
                        Ok(Some(Received { stamp, from, datagram })) => {
                            counts[kind as usize] += 1;
                            arrived.extend(datagram.map(|datagram| (stamp, from, datagram)));
                        }
                        Ok(None) => break,
                        Err(error) => trace!(%error, "gossip not received"),
                    }
                }
            }
        }
        let [calm, news] = counts;
        self.is_flooded = calm.max(news) >= MANY;
        let clocks = Clocks::read();
        let (now, looked) = (clocks.now(), std::mem::replace(&mut self.looked, clocks));
        if self.ports.iter_mut().any(|port| std::mem::take(&mut port.has_overflowed)) {
            self.alert_until = Some(now + ALERT);
        }
        let is_alert = self.alert_until.is_some_and(|alert_until| now < alert_until);
        let gathering = if is_alert { Some(SOON) } else { gathering(now - looked.now(), calm) };
        self.gather_at = gathering.map(|gathering| now + gathering);
        let arrived = arrived.into_iter().map(|(stamp, from, datagram)| Arrived {
            at: clocks.when(stamp, &looked),
            from,
            datagram,
        });
        let mut arrived: Vec<_> = arrived.collect();
        // Each socket has them in order, but there are several.
        arrived.sort_by_key(|arrived| arrived.at);
        arrived
    }

    /// Whether so much was taken that everything else has to be let in before more is.
    pub(crate) fn is_flooded(&self) -> bool {
        self.is_flooded
    }

    /// When [`Self::gather`] is to be asked, if nothing else has it asked before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.gather_at
    }
}

/// For how long datagrams may gather, if so many came in a time.
fn gathering(elapsed: Duration, count: u32) -> Option<Duration> {
    // A few in a moment say nothing of how fast they come.
    (elapsed.max(SOON) * MANY).checked_div(count).map(|gathering| gathering.max(SOON))
}

/// The sockets of an address.
struct Port {
    family: Family,
    /// What can wait, and all that is sent: the runtime is not to be told whenever there is room for more.
    calm: Socket,
    news: UdpSocket,
    control: Vec<u8>,
    /// How much that could wait found no room, as far as the kernel has told.
    dropped: u32,
    has_overflowed: bool,
}

/// What came, if it could be opened.
struct Received {
    /// When the kernel had it, by the clock of day, since its beginning.
    stamp: Option<Duration>,
    from: IpAddr,
    datagram: Option<Box<Datagram>>,
}

impl Port {
    fn open(address: SocketAddr) -> io::Result<Self> {
        // Which is which is told by the lowest bit of the counter. What has crossed a router is not let in: the kernel would count
        // it among what found no room.
        let mut program = [
            instruction(BPF_LD | BPF_B | BPF_ABS, 0, 0, hops_at(address)),
            instruction(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, NEIGHBOUR_HOPS.into()),
            instruction(BPF_RET | BPF_K, 0, 0, Kind::News as u32),
            instruction(BPF_LD | BPF_B | BPF_ABS, 0, 0, COUNTER_ENDS_AT as u32),
            instruction(BPF_ALU | BPF_AND | BPF_K, 0, 0, 1),
            instruction(BPF_RET | BPF_A, 0, 0, 0),
        ];
        const { assert!(Kind::Calm as u32 == 0 && Kind::News as u32 == 1) };
        let [(_, calm), (_, news)] = patience::pair(address, || new(address), &mut program)?;
        setsockopt(&calm, sockopt::RxqOvfl, &1)?;
        if setsockopt(&calm, sockopt::RcvBufForce, &ROOM).is_err() {
            // Without CAP_NET_ADMIN it gets as much as the host allows (`net.core.rmem_max`).
            calm.set_recv_buffer_size(ROOM)?;
        }
        let news = UdpSocket::from_std(news.into())?;
        let (family, control) = (Family::of(address.ip()), cmsg_space!(libc::timespec, u32));
        Ok(Self { family, calm, news, control, dropped: 0, has_overflowed: false })
    }

    /// The next of a kind, if one waits.
    fn next(&mut self, kind: Kind, bytes: &mut [u8], keys: &Keys, metrics: &Metrics) -> io::Result<Option<Received>> {
        let Self { calm, news, .. } = self;
        let descriptor = match kind {
            Kind::Calm => calm.as_raw_fd(),
            Kind::News => news.as_raw_fd(),
        };
        let mut read = receive(descriptor, bytes, &mut self.control);
        if kind == Kind::News && is_none(&read) {
            // The runtime is to know that there is nothing more.
            read = news.try_io(Interest::READABLE, || receive(descriptor, bytes, &mut self.control));
        }
        let Message { length, from, stamp, dropped } = match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            read => read?,
        };
        if let Some(dropped) = dropped {
            self.has_overflowed |= std::mem::replace(&mut self.dropped, dropped) != dropped;
        }
        let datagram = open(bytes.get(..length).unwrap_or_default(), from, keys, metrics).map(Box::new);
        Ok(Some(Received { stamp, from, datagram }))
    }
}

/// What the kernel says of a datagram.
struct Message {
    length: usize,
    from: IpAddr,
    stamp: Option<Duration>,
    dropped: Option<u32>,
}

fn is_none(read: &io::Result<Message>) -> bool {
    read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn receive(descriptor: RawFd, bytes: &mut [u8], control: &mut [u8]) -> io::Result<Message> {
    let mut parts = [IoSliceMut::new(bytes)];
    let message = recvmsg::<SockaddrStorage>(descriptor, &mut parts, Some(control), MsgFlags::MSG_DONTWAIT)?;
    let (mut stamp, mut dropped) = (None, None);
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::ScmTimestampns(time) => stamp = Some(time.into()),
            ControlMessageOwned::RxqOvfl(count) => dropped = Some(count),
            _ => {}
        }
    }
    let from = message.address.and_then(|from| {
        let ipv4 = from.as_sockaddr_in().map(|from| IpAddr::from(from.ip()));
        ipv4.or_else(|| from.as_sockaddr_in6().map(|from| IpAddr::from(from.ip())))
    });
    let from = from.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Message { length: message.bytes, from, stamp, dropped })
}

/// A socket that is not bound yet.
fn new(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    if address.is_ipv4() {
        socket.set_ttl_v4(NEIGHBOUR_HOPS.into())?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(NEIGHBOUR_HOPS.into())?;
    }
    // Before it is bound, so that nothing is queued unfiltered.
    socket.attach_filter(&[
        SockFilter::new((BPF_LD | BPF_B | BPF_ABS) as u16, 0, 0, hops_at(address)),
        SockFilter::new((BPF_JMP | BPF_JEQ | BPF_K) as u16, 1, 0, NEIGHBOUR_HOPS.into()),
        SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, 0),
        SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, u32::MAX),
    ])?;
    Ok(socket)
}

/// Where programs find TTL or hop limit.
fn hops_at(address: SocketAddr) -> u32 {
    let offset = if address.is_ipv4() { 8 } else { 7 };
    (SKF_NET_OFF + offset) as u32
}

fn open(bytes: &[u8], from: IpAddr, keys: &Keys, metrics: &Metrics) -> Option<Datagram> {
    match Datagram::open(bytes, keys) {
        Ok(datagram) => {
            metrics.gossip_received();
            Some(datagram)
        }
        Err(error) => {
            trace!(address = %from, %error, "gossip refused");
            metrics.gossip_refused((&error).into());
            None
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

    /// How long anything may take to become true.
    const LIMIT: Duration = Duration::from_secs(10);

    /// Gossip at an address of this host, and a neighbour.
    struct Stand {
        gossip: Gossip,
        keys: watch::Sender<Keys>,
        neighbour: Socket,
        to: SocketAddr,
    }

    impl Stand {
        fn new(address: &str) -> Self {
            let address: IpAddr = address.parse().unwrap();
            let port = std::net::UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap().port();
            let to = SocketAddr::new(address, port);
            let (held, keys) = watch::channel(keys(&[1]));
            let mut gossip = Gossip::new(port, vec![address], keys, metrics());
            gossip.open().unwrap();
            let neighbour = Socket::new(Domain::for_address(to), Type::DGRAM, None).unwrap();
            let stand = Self { gossip, keys: held, neighbour, to };
            stand.set_hops(NEIGHBOUR_HOPS.into());
            stand
        }

        fn set_hops(&self, hops: u32) {
            let set = if self.to.is_ipv4() { Socket::set_ttl_v4 } else { Socket::set_unicast_hops_v6 };
            set(&self.neighbour, hops).unwrap();
        }

        fn send(&self, counter: u64) {
            self.send_sealed(counter, &[1]);
        }

        fn send_sealed(&self, counter: u64, with: &[u8]) {
            let bytes = datagram(counter).seal(&keys(with), &SALT).unwrap();
            self.neighbour.send_to(&bytes, &self.to.into()).unwrap();
        }

        /// Waits until what comes counts from when it came: the kernel begins to stamp a little after it was first asked to.
        async fn is_stamped(&mut self) {
            let limit = Instant::now() + LIMIT;
            loop {
                assert!(Instant::now() < limit, "nothing counts from when it came");
                let before = Instant::now();
                self.send(2);
                let sent = Instant::now();
                tokio::time::sleep(Duration::from_millis(5)).await;
                let at = self.gossip.gather()[0].at;
                assert!(at >= before);
                if at < sent + Duration::from_millis(2) {
                    return;
                }
            }
        }

        /// The counters of what has come.
        fn gather(&mut self) -> Vec<u64> {
            self.gossip.gather().iter().map(|arrived| arrived.datagram.origin.counter).collect()
        }

        /// Whether something has come that cannot wait.
        async fn has_news(&self) -> bool {
            // The runtime looks at its sockets before at its clock.
            tokio::time::timeout(Duration::from_millis(1), self.gossip.comes()).await.is_ok()
        }
    }

    #[tokio::test]
    async fn what_can_wait_wakes_nobody_and_everything_counts_from_when_it_came() {
        for address in ["127.0.0.1", "::1"] {
            let mut stand = Stand::new(address);
            stand.is_stamped().await;
            let begin = Instant::now();

            stand.send(2);
            // Too short to say whether it can wait, and no gossip either.
            stand.neighbour.send_to(b"FGSP", &stand.to.into()).unwrap();
            assert!(!stand.has_news().await, "{address}");
            stand.send(5);
            stand.send(4);
            assert!(stand.has_news().await, "{address}");
            let gathered = stand.gossip.gather();

            let counters = gathered.iter().map(|arrived| arrived.datagram.origin.counter);
            assert_eq!(counters.collect::<Vec<_>>(), [2, 5, 4], "{address}");
            assert!(gathered.iter().all(|arrived| arrived.from == stand.to.ip() && arrived.at >= begin), "{address}");
            assert!(!stand.has_news().await && stand.gather().is_empty(), "{address}");
            // What was taken before anybody was woken for it wakes nobody.
            stand.send(7);
            assert_eq!(stand.gather(), [7], "{address}");
            assert!(!stand.has_news().await, "{address}");
        }
    }

    #[tokio::test]
    async fn what_was_left_to_wait_counts_from_when_it_came() {
        Stand::new("127.0.0.1").is_stamped().await;
    }

    #[tokio::test]
    async fn what_crossed_a_router_is_neither_heard_nor_taken_for_want_of_room() {
        for address in ["127.0.0.1", "::1"] {
            let mut stand = Stand::new(address);
            for hops in [254, 255] {
                stand.set_hops(hops);
                stand.send(2 * u64::from(hops));
                stand.send(2 * u64::from(hops) + 1);
            }

            assert_eq!(stand.gather(), [510, 511], "{address}");
            assert_eq!(stand.gossip.alert_until, None, "{address}");
        }
    }

    #[tokio::test]
    async fn only_what_opens_is_heard_and_a_new_key_counts_from_the_next_datagram_on() {
        let mut stand = Stand::new("127.0.0.1");

        for (counter, with) in [(1, &[][..]), (2, &[2]), (3, &[2]), (5, &[1])] {
            stand.send_sealed(counter, with);
        }
        assert_eq!(stand.gather(), [5]);
        stand.keys.send_replace(keys(&[1, 2]));
        stand.send_sealed(6, &[2]);
        assert_eq!(stand.gather(), [6]);
    }

    #[test]
    fn what_can_wait_is_looked_for_as_soon_as_so_much_may_have_come_again() {
        const MS: Duration = Duration::from_millis(1);
        assert_eq!(gathering(50 * MS, 0), None);
        assert_eq!(gathering(50 * MS, 4), Some(800 * MS));
        assert_eq!(gathering(50 * MS, 640), Some(5 * MS));
        assert_eq!(gathering(5 * MS, 640), Some(SOON));
        assert_eq!(gathering(Duration::ZERO, 1), Some(128 * MS));
    }

    #[tokio::test]
    async fn after_much_has_come_everything_else_is_let_in() {
        // By both sockets, and whether or not it is gossip.
        for counter in [2, 3] {
            let mut stand = Stand::new("127.0.0.1");
            stand.send(counter);
            stand.gather();
            assert!(!stand.gossip.is_flooded());

            for _ in 0..MANY {
                stand.send_sealed(counter, &[9]);
            }
            stand.gather();
            assert!(stand.gossip.is_flooded());
            stand.gather();
            assert!(!stand.gossip.is_flooded());
        }
    }

    #[tokio::test]
    async fn after_a_socket_had_no_room_it_is_looked_at_all_the_time_for_a_while() {
        let mut stand = Stand::new("127.0.0.1");
        // Garbage fills it too.
        for _ in 0..20_000 {
            stand.neighbour.send_to(b"FGSP", &stand.to.into()).unwrap();
        }
        let limit = Instant::now() + LIMIT;
        while stand.gossip.alert_until.is_none() {
            assert!(Instant::now() < limit, "the socket had room for everything");
            // The kernel tells what was lost with what comes after that.
            stand.send(2);
            stand.gather();
        }
        while !stand.gather().is_empty() {}

        assert_eq!(stand.gossip.deadline(), Some(stand.gossip.looked.now() + SOON));
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_remedy() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let (_keys, keys) = watch::channel(Keys::default());
        let mut gossip = Gossip::new(port, vec!["127.0.0.1".parse().unwrap()], keys, metrics());

        let error = gossip.send(&["127.0.0.2".parse().unwrap()], &datagram(1)).unwrap_err().to_string();

        assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("--gossip-port"), "{error}");
    }
}
