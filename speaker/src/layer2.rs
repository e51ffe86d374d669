//! Raw frames: one ARP and one neighbour-discovery socket per interface, and the solicited-node groups.
//!
//! The sockets follow what is wanted and what is there: when an interface goes they go, and when one of that name
//! comes back they are opened anew and its groups joined again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    net::{IpAddr, Ipv6Addr},
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_core::{
    model::InterfaceName,
    speaker::{Event, Frame},
};
use ferrogate_wire::{arp, ethernet::MAX_FRAME_LEN, ndp};
use socket2::{Domain, Socket, Type};
use tokio::{io::unix::AsyncFd, sync::mpsc, time::sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, trace, warn};

use crate::{
    interfaces::Interfaces,
    metrics::{Family, Metrics, Refusal},
    packet::{self, Protocol},
};

/// Frames that come so soon after those before them are not waited for one by one.
const THICK_AND_FAST: Duration = Duration::from_micros(250);

/// How long frames are then left to gather: no asker notices, and the socket has room for what 100,000 a second bring.
const GATHERING: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(5);

/// How many frames are to gather within that time, so that one wake-up and what it brings into the caches is for all of them.
const GATHERED: u32 = 64;

/// How long frames are looked for where the kernel had no room to say when they come, before it is asked again.
const REGISTER_AGAIN: Duration = Duration::from_secs(10);

/// Frames that are read at a time, so that a flood leaves time for everything else.
const AT_ONCE: usize = 512;

/// No raw socket may be opened at all.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel does not let this process open raw sockets; give it CAP_NET_RAW (run it as root, or add the \
     capability NET_RAW to its container or service)"
)]
pub struct RawSocketsRefused;

/// The sockets of every interface that is listened on.
pub(crate) struct Layer2 {
    events: mpsc::Sender<Event>,
    metrics: Metrics,
    /// What the machine wants.
    listen: BTreeSet<InterfaceName>,
    groups: BTreeMap<InterfaceName, BTreeSet<Ipv6Addr>>,
    /// The kernel's numbers of the interfaces there are.
    indices: BTreeMap<InterfaceName, u32>,
    ports: BTreeMap<InterfaceName, Port>,
}

/// What is open on one interface. A socket that could not be opened is tried again with the next change.
struct Port {
    index: u32,
    arp: Option<Tap>,
    ndp: Option<Tap>,
    memberships: Memberships,
}

/// A socket and the task that reads it.
struct Tap {
    socket: Arc<Socket>,
    _reader: AbortOnDropHandle<()>,
}

impl Layer2 {
    /// Opens nothing. Frames go to `events`; when that is full they are lost, as on a busy wire.
    pub(crate) fn new(events: mpsc::Sender<Event>, metrics: Metrics) -> Self {
        Self {
            events,
            metrics,
            listen: BTreeSet::new(),
            groups: BTreeMap::new(),
            indices: BTreeMap::new(),
            ports: BTreeMap::new(),
        }
    }

    /// Takes note of the interfaces there are.
    pub(crate) fn interfaces(&mut self, interfaces: &Interfaces) -> Result<(), RawSocketsRefused> {
        self.indices = interfaces.iter().map(|(name, interface)| (name.clone(), interface.index)).collect();
        self.reconcile()
    }

    /// Receives on exactly these interfaces from now on.
    pub(crate) fn listen(&mut self, interfaces: BTreeSet<InterfaceName>) -> Result<(), RawSocketsRefused> {
        self.listen = interfaces;
        self.reconcile()
    }

    /// The interfaces that are listened on.
    pub(crate) fn listening(&self) -> &BTreeSet<InterfaceName> {
        &self.listen
    }

    /// Joins a group; it is joined again whenever the interface comes back.
    pub(crate) fn join(&mut self, interface: InterfaceName, group: Ipv6Addr) {
        if let Some(port) = self.ports.get_mut(&interface) {
            port.memberships.join(&interface, group);
        }
        self.groups.entry(interface).or_default().insert(group);
    }

    /// Leaves a group.
    pub(crate) fn leave(&mut self, interface: &InterfaceName, group: Ipv6Addr) {
        if let Some(port) = self.ports.get_mut(interface) {
            port.memberships.leave(group);
        }
        if let Some(groups) = self.groups.get_mut(interface) {
            groups.remove(&group);
            if groups.is_empty() {
                self.groups.remove(interface);
            }
        }
    }

    /// Sends a frame at once, or not at all.
    pub(crate) fn send(&self, interface: &InterfaceName, frame: &Frame) {
        let port = self.ports.get(interface);
        let (tap, bytes, family) = match frame {
            Frame::Arp(arp) => (port.and_then(|port| port.arp.as_ref()), arp.encode().to_vec(), Family::Ipv4),
            Frame::Advertisement(ndp) => (port.and_then(|port| port.ndp.as_ref()), ndp.encode(), Family::Ipv6),
            Frame::Solicitation(ndp) => (port.and_then(|port| port.ndp.as_ref()), ndp.encode(), Family::Ipv6),
        };
        let sent = match tap {
            Some(tap) => tap.socket.send(&bytes).map(drop),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        match sent {
            Ok(()) => {
                if let Some(address) = about(frame) {
                    self.metrics.sent(address, is_to_all(frame));
                }
            }
            Err(error) => {
                debug!(%interface, %error, "frame not sent");
                self.metrics.not_sent(family);
            }
        }
    }

    fn reconcile(&mut self) -> Result<(), RawSocketsRefused> {
        let Self { listen, indices, .. } = self;
        self.ports.retain(|name, port| listen.contains(name) && indices.get(name) == Some(&port.index));
        for name in &self.listen {
            let Some(&index) = self.indices.get(name) else { continue };
            let port = self.ports.entry(name.clone()).or_insert_with(|| Port {
                index,
                arp: None,
                ndp: None,
                memberships: Memberships { interface: index, sockets: Vec::new() },
            });
            for (protocol, tap) in [(Protocol::Arp, &mut port.arp), (Protocol::Ndp, &mut port.ndp)] {
                if tap.is_some() {
                    continue;
                }
                match packet::open(protocol, index) {
                    Ok(socket) => *tap = Some(read_in_task(socket, protocol, name, &self.events, &self.metrics)),
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(RawSocketsRefused),
                    Err(error) => warn!(interface = %name, ?protocol, %error, "cannot open a raw socket"),
                }
            }
            for &group in self.groups.get(name).into_iter().flatten() {
                port.memberships.join(name, group);
            }
        }
        Ok(())
    }
}

/// The external address that a frame says is here; none where it only asks.
pub(crate) fn about(frame: &Frame) -> Option<IpAddr> {
    match frame {
        // Who asks where another address is says its own, which is none of these, or none.
        Frame::Arp(arp) => {
            (arp.operation == arp::Operation::Reply || arp.sender == arp.target).then_some(arp.sender.into())
        }
        Frame::Advertisement(advertisement) => Some(advertisement.target.into()),
        Frame::Solicitation(_) => None,
    }
}

/// Whether a frame speaks to everyone rather than to one asker.
fn is_to_all(frame: &Frame) -> bool {
    match frame {
        Frame::Arp(arp) => arp.destination.is_group(),
        Frame::Advertisement(advertisement) => advertisement.destination_mac.is_group(),
        Frame::Solicitation(solicitation) => solicitation.destination_mac.is_group(),
    }
}

fn read_in_task(
    socket: Socket,
    protocol: Protocol,
    interface: &InterfaceName,
    events: &mpsc::Sender<Event>,
    metrics: &Metrics,
) -> Tap {
    let socket = Arc::new(socket);
    let (interface, events, metrics) = (interface.clone(), events.clone(), metrics.clone());
    let reader = Reader { socket: socket.clone(), protocol, interface, events, metrics };
    Tap { socket, _reader: AbortOnDropHandle::new(tokio::spawn(reader.run())) }
}

/// Reads the frames of one socket.
struct Reader {
    socket: Arc<Socket>,
    protocol: Protocol,
    interface: InterfaceName,
    events: mpsc::Sender<Event>,
    metrics: Metrics,
}

impl Reader {
    /// Reads until the socket is closed, each frame as it comes. Where they come thick and fast it looks for them now and
    /// then instead, and has the kernel say nothing: being woken for each would cost more than all that is done about it.
    ///
    /// An interface that is switched off makes the socket say so once and then waits with it; one that has gone is found
    /// out by [`Layer2::interfaces`].
    async fn run(self) {
        loop {
            let mut look_until = None;
            match packet::register(self.socket.clone()) {
                Ok(watched) => {
                    if self.watch(&watched).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    warn!(interface = %self.interface, %error, "the kernel cannot say when frames come; they are looked for");
                    look_until = Some(Instant::now() + REGISTER_AGAIN);
                }
            }
            let (mut gathering, mut looked_at) = (*GATHERING.start(), Instant::now());
            loop {
                sleep(gathering).await;
                let frames = self.drain();
                let now = Instant::now();
                if frames == 0 && look_until.is_none_or(|until| until <= now) {
                    break;
                }
                gathering = next_gathering(now - looked_at, frames);
                looked_at = now;
            }
        }
    }

    /// Reads frames as they come, until they come thick and fast.
    async fn watch(&self, watched: &AsyncFd<Arc<Socket>>) -> io::Result<()> {
        let mut read_at = None;
        loop {
            let mut readable = watched.readable().await?;
            if read_at.is_some_and(|read_at: Instant| read_at.elapsed() < THICK_AND_FAST) {
                return Ok(());
            }
            if self.drain() == AT_ONCE {
                return Ok(());
            }
            readable.clear_ready();
            read_at = Some(Instant::now());
        }
    }

    /// Reads the frames that are there, as many as fit into [`AT_ONCE`], and says how many these were.
    fn drain(&self) -> usize {
        // One byte more than is looked at, so that what was cut off still counts as oversized.
        let mut buffer = [0; MAX_FRAME_LEN + 1];
        let mut was_interrupted = false;
        for frames in 0..AT_ONCE {
            match self.socket.as_ref().read(&mut buffer) {
                Ok(length) => self.take(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock || was_interrupted => return frames,
                Err(error) => {
                    debug!(interface = %self.interface, %error, "raw socket interrupted");
                    was_interrupted = true;
                }
            }
        }
        AT_ONCE
    }

    fn take(&self, frame: &[u8]) {
        let interface = &self.interface;
        let (event, family) = match self.protocol {
            Protocol::Arp => {
                let decoded = arp::decode(frame).map_err(|error| error.to_string());
                (decoded.map(|arp| Event::Arp { interface: interface.clone(), arp }), Family::Ipv4)
            }
            Protocol::Ndp => {
                let decoded = ndp::decode(frame).map_err(|error| error.to_string());
                (decoded.map(|ndp| Event::Ndp { interface: interface.clone(), ndp }), Family::Ipv6)
            }
        };
        match event.map(|event| self.events.try_send(event)) {
            Ok(Ok(())) => {}
            Ok(Err(_)) => self.metrics.refused(family, Refusal::Busy),
            Err(error) => {
                trace!(%interface, error, "frame refused");
                self.metrics.refused(family, Refusal::Malformed);
            }
        }
    }
}

/// How long frames are left to gather next, where so many came in a time.
fn next_gathering(time: Duration, frames: usize) -> Duration {
    let each = time / u32::try_from(frames).unwrap_or(u32::MAX).max(1);
    (each * GATHERED).clamp(*GATHERING.start(), *GATHERING.end())
}

/// Group memberships on one interface. They are made by ordinary sockets, so that the kernel tells switches by MLD and
/// the network card what to let through; a socket holds only so many (`net.core.optmem_max`), so there may be several.
struct Memberships {
    interface: u32,
    sockets: Vec<(Socket, BTreeSet<Ipv6Addr>)>,
}

impl Memberships {
    fn join(&mut self, name: &InterfaceName, group: Ipv6Addr) {
        if self.sockets.iter().any(|(_, groups)| groups.contains(&group)) {
            return;
        }
        if let Err(error) = self.try_join(group) {
            warn!(interface = %name, %group, %error, "cannot join the solicited-node group");
        }
    }

    fn try_join(&mut self, group: Ipv6Addr) -> io::Result<()> {
        for (socket, groups) in self.sockets.iter_mut().rev() {
            match socket.join_multicast_v6(&group, self.interface) {
                Ok(()) => {
                    groups.insert(group);
                    return Ok(());
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM)) => {}
                Err(error) => return Err(error),
            }
        }
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        socket.join_multicast_v6(&group, self.interface)?;
        self.sockets.push((socket, BTreeSet::from([group])));
        Ok(())
    }

    fn leave(&mut self, group: Ipv6Addr) {
        for (socket, groups) in &mut self.sockets {
            if groups.remove(&group)
                && let Err(error) = socket.leave_multicast_v6(&group, self.interface)
            {
                debug!(%group, %error, "cannot leave the solicited-node group");
            }
        }
        self.sockets.retain(|(_, groups)| !groups.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_frames_come_the_shorter_they_gather_and_never_for_so_long_that_somebody_notices() {
        let next = |millis, frames| next_gathering(Duration::from_millis(millis), frames);

        // 100,000, 20,000 and 10,000 a second, and one now and then.
        assert_eq!(next(2, 200), Duration::from_millis(1));
        assert_eq!(next(2, 40), Duration::from_micros(3_200));
        assert_eq!(next(2, 20), Duration::from_millis(5));
        assert_eq!(next(1, 1), Duration::from_millis(5));
        assert_eq!(next(3, 0), Duration::from_millis(5));
        assert_eq!(next(1, AT_ONCE), Duration::from_millis(1));
    }
}
