//! Heartbeats between speakers over UDP.
//!
//! They are sent with a TTL or hop limit of 255, and a filter in the kernel drops every datagram that arrives with
//! less: it has crossed a router, and speakers of one layer-2 network are neighbours (RFC 5082). Who may speak for
//! which node is decided in `core`.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ferrogate_core::{model::Family, speaker::Event};
use ferrogate_wire::gossip::{Heartbeat, MAX_LEN};
use libc::{BPF_ABS, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, SKF_NET_OFF};
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::{net::UdpSocket, sync::mpsc};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, trace};

use crate::metrics::Metrics;

/// TTL and hop limit of a packet that no router has touched.
const NEIGHBOUR_HOPS: u8 = 255;

/// A socket for heartbeats cannot be had. Going on would let two nodes own the same address, each deaf to the other.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot exchange heartbeats on UDP {address}; free it, or choose another by --heartbeat-port or --heartbeat-bind on every node"
)]
pub struct HeartbeatError {
    /// Where it was to be bound.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The sockets, opened when the first heartbeat is sent.
pub(crate) struct Heartbeats {
    port: u16,
    bind: Vec<IpAddr>,
    events: mpsc::Sender<Event>,
    metrics: Metrics,
    /// The first socket of a family sends for it.
    senders: BTreeMap<Family, Arc<UdpSocket>>,
    readers: Vec<AbortOnDropHandle<()>>,
}

impl Heartbeats {
    /// Opens nothing. What is heard goes to `events`; when that is full it is lost, and the next one comes soon.
    pub(crate) fn new(port: u16, bind: Vec<IpAddr>, events: mpsc::Sender<Event>, metrics: Metrics) -> Self {
        Self { port, bind, events, metrics, senders: BTreeMap::new(), readers: Vec::new() }
    }

    /// Sends one heartbeat to each address.
    ///
    /// # Errors
    /// When it is the first and no socket can be opened.
    pub(crate) fn send(&mut self, to: &[IpAddr], heartbeat: &Heartbeat) -> Result<(), HeartbeatError> {
        if self.senders.is_empty() {
            self.open()?;
        }
        let datagram = match heartbeat.encode() {
            Ok(datagram) => datagram,
            Err(error) => {
                debug!(%error, "heartbeat not sent");
                return Ok(());
            }
        };
        for &address in to {
            let Some(socket) = self.senders.get(&Family::of(address)) else {
                debug!(%address, "no heartbeat socket of this family");
                continue;
            };
            match socket.try_send_to(&datagram, SocketAddr::new(address, self.port)) {
                Ok(_) => self.metrics.heartbeat_sent(),
                Err(error) => debug!(%address, %error, "heartbeat not sent"),
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), HeartbeatError> {
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
                    debug!(%address, %error, "no heartbeats over IPv6");
                    continue;
                }
                Err(source) => return Err(HeartbeatError { address, source }),
            };
            self.senders.entry(Family::of(ip)).or_insert_with(|| socket.clone());
            let reader = tokio::spawn(read(socket, self.events.clone(), self.metrics.clone()));
            self.readers.push(AbortOnDropHandle::new(reader));
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

async fn read(socket: Arc<UdpSocket>, events: mpsc::Sender<Event>, metrics: Metrics) {
    // One byte more than the longest, so that what was cut off does not decode.
    let mut buffer = [0; MAX_LEN + 1];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error for an earlier heartbeat: its receiver is not there yet.
            Err(error) => {
                trace!(%error, "heartbeat bounced");
                continue;
            }
        };
        match Heartbeat::decode(buffer.get(..length).unwrap_or_default()) {
            Ok(heartbeat) => {
                metrics.heartbeat_received();
                // Full: the loop is behind by a thousand events; the next heartbeat says the same.
                let _ = events.try_send(Event::Heard { from: from.ip(), heartbeat });
            }
            Err(error) => {
                trace!(address = %from.ip(), %error, "heartbeat refused");
                metrics.heartbeat_refused();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn heartbeat() -> Heartbeat {
        Heartbeat { node: "node-b".to_owned(), incarnation: 1, sequence: 2, ..Heartbeat::default() }
    }

    async fn heard_with_hops(bind_to: &str, hops: u32) -> bool {
        let socket = bind(SocketAddr::new(bind_to.parse().unwrap(), 0)).unwrap();
        let to = socket.local_addr().unwrap();
        let (events, mut heard) = mpsc::channel(4);
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let _reader = AbortOnDropHandle::new(tokio::spawn(read(Arc::new(socket), events, metrics)));
        let sender = Socket::new(Domain::for_address(to), Type::DGRAM, None).unwrap();
        let set_hops = |hops| if to.is_ipv4() { sender.set_ttl_v4(hops) } else { sender.set_unicast_hops_v6(hops) };

        set_hops(hops).unwrap();
        sender.send_to(&heartbeat().encode().unwrap(), &to.into()).unwrap();
        // What arrives after it by the same way shows that the first one had its chance.
        set_hops(255).unwrap();
        let mark = Heartbeat { sequence: 3, ..heartbeat() };
        sender.send_to(&mark.encode().unwrap(), &to.into()).unwrap();

        let first = tokio::time::timeout(Duration::from_secs(5), heard.recv()).await.unwrap().unwrap();
        let Event::Heard { from, heartbeat: first } = first else { panic!("{first:?}") };
        assert_eq!(from, bind_to.parse::<IpAddr>().unwrap());
        first == heartbeat()
    }

    #[tokio::test]
    async fn a_heartbeat_that_crossed_a_router_is_not_heard() {
        for address in ["127.0.0.1", "::1"] {
            assert!(heard_with_hops(address, 255).await, "{address}");
            assert!(!heard_with_hops(address, 254).await, "{address}");
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_remedy() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let (events, _heard) = mpsc::channel(4);
        let mut heartbeats = Heartbeats::new(port, vec!["127.0.0.1".parse().unwrap()], events, metrics);

        let error = heartbeats.send(&["127.0.0.2".parse().unwrap()], &heartbeat()).unwrap_err().to_string();

        assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("--heartbeat-port"), "{error}");
    }
}
