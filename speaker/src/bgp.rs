//! BGP on a thread of its own, so that nothing else this process does makes a KEEPALIVE late. What is said to whom and
//! when is decided in `ferrogate_core::speaker::bgp`.
//!
//! ```text
//!  wanted, interfaces (watch) ──┐                 ┌─► connection (task each): bytes out
//!  BFD changes ─────────────────┼─► loop: Peers ──┼─► dial (task each): connections made
//!  connection, dial, listen, ───┘                 ├─► listen (task each): connections taken
//!  discovery (tasks): events                      ├─► discovery (task per interface): router advertisements
//!                                                 └─► Sessions (watch): how everything stands
//! ```

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ferrogate_core::{
    model::{InterfaceName, PeerName},
    speaker::{
        Interface,
        bfd::sessions::Path,
        bgp::{
            self, Action, Connection, Ends, Event, Kernel, Messages, Peers, Rejection, SessionStatus, Trouble, Wanted,
            Watched,
        },
    },
};
use ferrogate_wire::bfd::Diagnostic;
use imbl::OrdMap;
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    runtime,
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{sleep_until, timeout},
};
use tracing::{debug, info, trace, warn};

use self::{connection::Outgoing, discovery::Discovery, listen::Listeners};

mod connection;
mod dial;
mod discovery;
mod listen;
mod sockopt;

/// The port that BGP is taken at (RFC 4271 §8.2).
pub const PORT: u16 = 179;

/// Messages of peers and news of connections that may wait for the loop. Beyond, peers wait.
/// One of them may hold tens of thousands of prefixes.
const EVENTS: usize = 16;

/// Changes of BFD sessions that may wait for the loop. Those on top are lost, and the hold time has to do.
const CHANGES: usize = 1024;

/// How long the last words to every peer may take together.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How often messages are counted, and the kernel is asked whether it has dropped segments for their signatures.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// What is known of a node's interfaces.
pub type Interfaces = BTreeMap<InterfaceName, Interface>;

/// How everything stands.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    /// Every router that is spoken with, by its object and, where that stands for a prefix, by its address.
    pub statuses: OrdMap<(PeerName, Option<IpAddr>), Arc<SessionStatus>>,
    /// How many messages went to and from each of them, as of the last few seconds.
    pub messages: OrdMap<(PeerName, Option<IpAddr>), Messages>,
    /// BFD sessions that are wanted.
    pub watch: BTreeMap<Path, Watched>,
    /// Everybody was told after [`Wanted::departing`].
    pub parted: bool,
}

/// The sessions of this process. When it is dropped connections end without a word.
#[derive(Debug)]
pub struct Bgp {
    wanted: watch::Sender<Wanted>,
    interfaces: watch::Sender<Arc<Interfaces>>,
    watched: mpsc::Sender<Event>,
    sessions: watch::Receiver<Sessions>,
    thread: Option<JoinHandle<()>>,
}

impl Bgp {
    /// Starts the thread, with nobody to speak with yet. It stays in the network namespace of the caller. Peers that
    /// connect are taken at `port`.
    ///
    /// # Errors
    /// When the kernel has no thread or descriptor left.
    pub fn start(port: u16) -> io::Result<Self> {
        let (wanted, wishes) = watch::channel(Wanted::default());
        let (interfaces, links) = watch::channel(Arc::default());
        let (watched, changes) = mpsc::channel(CHANGES);
        let (told, sessions) = watch::channel(Sessions::default());
        let kernel = Kernel { tcp_ao: sockopt::ao_algorithms() };
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("bgp".to_owned()).spawn(move || {
            let (events, received) = mpsc::channel(EVENTS);
            let hands = Hands {
                peers: Peers::new(Instant::now(), rand::random()).on(kernel),
                links,
                told,
                connections: BTreeMap::new(),
                dialing: BTreeMap::new(),
                tasks: JoinSet::new(),
                listeners: Listeners::new(port),
                discovery: Discovery::new(events.clone()),
                events,
                mistrust: listen::mistrust(),
            };
            runtime.block_on(hands.run(wishes, changes, received));
        })?;
        Ok(Self { wanted, interfaces, watched, sessions, thread: Some(thread) })
    }

    /// Speaks with exactly these from now on.
    pub fn want(&self, wanted: Wanted) {
        self.wanted.send_replace(wanted);
    }

    /// The node's interfaces are these.
    pub fn interfaces(&self, interfaces: Arc<Interfaces>) {
        self.interfaces.send_replace(interfaces);
    }

    /// What BFD sees by a way has changed: whether it is up, and why it has failed, if it was and has.
    pub fn watched(&self, path: &Path, is_up: bool, failure: Option<Diagnostic>) {
        _ = self.watched.try_send(Event::Bfd { path: path.clone(), is_up, failure });
    }

    /// How everything stands, now and whenever that changes.
    pub fn sessions(&self) -> watch::Receiver<Sessions> {
        self.sessions.clone()
    }
}

impl Drop for Bgp {
    fn drop(&mut self) {
        // The loop ends with its last sender.
        let (gone, _) = watch::channel(Wanted::default());
        drop(std::mem::replace(&mut self.wanted, gone));
        if let Some(thread) = self.thread.take() {
            // A panic of it has been told where it happened.
            _ = thread.join();
        }
    }
}

/// Everything the loop acts with.
struct Hands {
    peers: Peers,
    links: watch::Receiver<Arc<Interfaces>>,
    told: watch::Sender<Sessions>,
    connections: BTreeMap<Connection, Outgoing>,
    dialing: BTreeMap<Connection, AbortHandle>,
    tasks: JoinSet<Option<Dialled>>,
    listeners: Listeners,
    discovery: Discovery,
    events: mpsc::Sender<Event>,
    /// Segments that the kernel had dropped for their signatures when it was last asked.
    mistrust: u64,
}

/// A connection that was made, or why not.
struct Dialled {
    connection: Connection,
    result: Result<TcpStream, Trouble>,
}

impl Hands {
    async fn run(
        mut self,
        mut wishes: watch::Receiver<Wanted>,
        mut changes: mpsc::Receiver<Event>,
        mut received: mpsc::Receiver<Event>,
    ) {
        let mut count_at = Instant::now() + COUNT_INTERVAL;
        loop {
            let due = self.peers.deadline().map_or(count_at, |deadline| deadline.min(count_at));
            // What is due comes first: a peer that never stops talking must make nobody else's KEEPALIVE late.
            let event = if due <= Instant::now() {
                self.due(&mut count_at)
            } else {
                // Every arm is cancel-safe: channels, watches, a timer, and sockets that accept.
                tokio::select! {
                    changed = wishes.changed() => match changed {
                        Ok(()) => Event::Want(wishes.borrow_and_update().clone()),
                        Err(_) => return self.end().await,
                    },
                    Some(event) = changes.recv() => event,
                    Some(dialled) = self.tasks.join_next(), if !self.tasks.is_empty() => match dialled {
                        Ok(Some(Dialled { connection, result })) => match self.dialled(connection, result) {
                            Some(event) => event,
                            None => continue,
                        },
                        // One that was given up, or a connection that is over.
                        Ok(None) | Err(_) => continue,
                    },
                    Some(event) = received.recv() => event,
                    (vrf, stream) = self.listeners.accept() => match self.accepted(vrf, stream) {
                        Some(event) => event,
                        None => continue,
                    },
                    () = sleep_until(due.into()) => continue,
                }
            };
            trace!(?event, "event");
            let actions = self.peers.step(Instant::now(), event);
            for action in actions {
                self.perform(action);
            }
        }
    }

    /// Lets the last words to every peer get out, if there are any.
    async fn end(mut self) {
        let has_parted = self.told.borrow().parted;
        self.connections.clear();
        if has_parted {
            _ = timeout(LAST_WORDS, async { while self.tasks.join_next().await.is_some() {} }).await;
        }
    }

    /// What a deadline that has come is about.
    fn due(&mut self, count_at: &mut Instant) -> Event {
        let now = Instant::now();
        if now < *count_at {
            return Event::Tick;
        }
        *count_at = now + COUNT_INTERVAL;
        self.listeners.open_missing();
        self.count();
        let before = std::mem::replace(&mut self.mistrust, listen::mistrust());
        if before < self.mistrust { Event::Mistrusted } else { Event::Tick }
    }

    /// Tells how many messages there were.
    fn count(&self) {
        let messages: OrdMap<_, _> = self.peers.messages().map(|(key, messages)| (key, messages.clone())).collect();
        self.told.send_if_modified(|told| {
            let is_new = told.messages != messages;
            told.messages = messages;
            is_new
        });
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send { connection, bytes } => {
                trace!(?connection, bytes = bytes.len(), "send");
                if let Some(outgoing) = self.connections.get(&connection) {
                    outgoing.send(bytes);
                }
            }
            Action::Connect { connection, to, transport } => {
                debug!(?connection, address = %to.address, "connect");
                let task = self.tasks.spawn(async move {
                    let result = dial::dial(&to, &transport).await;
                    Some(Dialled { connection, result })
                });
                self.dialing.insert(connection, task);
            }
            Action::Close { connection } => {
                debug!(?connection, "close");
                self.connections.remove(&connection);
                if let Some(task) = self.dialing.remove(&connection) {
                    task.abort();
                }
            }
            Action::Reject { connection, remote, reason } => {
                self.connections.remove(&connection);
                reject(remote, reason);
            }
            Action::Listen(expected) => self.listeners.expect(expected),
            Action::Discover(interfaces) => self.discovery.follow(interfaces),
            Action::Watch(watch) => self.told.send_modify(|told| told.watch = watch),
            Action::Status(status) => {
                log(self.told.borrow().statuses.get(&(status.peer.clone(), status.dynamic)), &status);
                self.told.send_modify(|told| {
                    told.statuses.insert((status.peer.clone(), status.dynamic), Arc::new(*status));
                });
            }
            Action::Gone { peer, remote } => {
                info!(%peer, "peer is spoken with no more");
                let key = (peer, remote);
                self.told.send_modify(|told| {
                    told.statuses.remove(&key);
                    told.messages.remove(&key);
                });
            }
            Action::Parted => self.told.send_modify(|told| told.parted = true),
        }
    }

    fn dialled(&mut self, connection: Connection, result: Result<TcpStream, Trouble>) -> Option<Event> {
        self.dialing.remove(&connection)?;
        Some(
            match result.and_then(|stream| {
                let vrf = self.peers.vrf_of(connection).cloned();
                self.ends(&stream, vrf.as_ref())
                    .map(|ends| (stream, ends))
                    .map_err(|error| Trouble::Other(error.to_string()))
            }) {
                Ok((stream, ends)) => {
                    self.serve(connection, stream);
                    Event::Connected { connection, ends }
                }
                Err(trouble) => Event::Refused { connection, trouble },
            },
        )
    }

    fn accepted(&mut self, vrf: Option<InterfaceName>, stream: TcpStream) -> Option<Event> {
        let ends = self.ends(&stream, vrf.as_ref()).ok()?;
        let Some(transport) = self.peers.transport_for(vrf.as_ref(), &ends) else {
            reject(ends.remote, Rejection::Stranger);
            return None;
        };
        if let Err(error) = dial::dress(&SockRef::from(&stream), ends.local.is_ipv4(), transport.ttl) {
            debug!(address = %ends.remote, %error, "connection lost");
            return None;
        }
        let connection = self.peers.accept();
        self.serve(connection, stream);
        Some(Event::Accepted { connection, vrf, ends })
    }

    fn serve(&mut self, connection: Connection, stream: TcpStream) {
        let (outgoing, incoming) = Outgoing::new();
        self.connections.insert(connection, outgoing);
        let events = self.events.clone();
        self.tasks.spawn(async move {
            connection::serve(connection, stream, incoming, events).await;
            None
        });
    }

    /// Who is at the ends of a connection, and which of our interfaces it leaves by, as far as addresses and the VRF tell.
    fn ends(&self, stream: &TcpStream, vrf: Option<&InterfaceName>) -> io::Result<Ends> {
        let (local, remote) = (stream.local_addr()?.ip().to_canonical(), stream.peer_addr()?);
        let scope = match remote {
            std::net::SocketAddr::V6(remote) if remote.scope_id() != 0 => Some(remote.scope_id()),
            _ => None,
        };
        let remote = remote.ip().to_canonical();
        let links = self.links.borrow();
        let own = own_interface(&links, vrf, local, scope);
        let interface = own.map(|(name, _)| name.clone());
        // What else is on the loopback is nobody's next hop: addresses of Services, say.
        let is_link = |(_, interface): &(&InterfaceName, &Interface)| !interface.loopback;
        let addresses = own.filter(is_link).map(|(_, interface)| interface.addresses.clone()).unwrap_or_default();
        Ok(Ends { local, remote, interface, addresses })
    }
}

/// Our interface at one end of a connection by a VRF: the one with this index, or else with this address. An address may be
/// there once in every VRF: on an interface that belongs to the device, on a bridge that does, or on the device itself.
fn own_interface<'a>(
    links: &'a Interfaces,
    vrf: Option<&InterfaceName>,
    local: IpAddr,
    scope: Option<u32>,
) -> Option<(&'a InterfaceName, &'a Interface)> {
    let has = |interface: &Interface| match scope {
        Some(index) => interface.index == index,
        None => interface.addresses.iter().any(|own| own.ip() == local),
    };
    let device = vrf.and_then(|vrf| links.get(vrf)).map(|device| device.index);
    let strangeness = |(name, interface): &(&InterfaceName, &Interface)| match vrf {
        Some(_) if device.is_some() && interface.controller == device => 0,
        Some(vrf) if *name == vrf => 1,
        None if interface.controller.is_none() => 0,
        _ => 2,
    };
    links.iter().filter(|(_, interface)| has(interface)).min_by_key(strangeness)
}

/// Anybody can connect, and so have this said.
fn reject(remote: IpAddr, reason: Rejection) {
    debug!(address = %remote, reason = reason.reason(), error = %reason, "BGP connection rejected");
}

/// A line for the timeline where a session is another than before.
fn log(before: Option<&Arc<SessionStatus>>, status: &SessionStatus) {
    let peer = &status.peer;
    let remote = &status.remote;
    let from = before.map(|before| before.state);
    if from != Some(status.state) {
        let (was_up, is_up) = (from == Some(bgp::State::Established), status.state == bgp::State::Established);
        if is_up {
            let families = &status.families;
            info!(%peer, remote, ?families, asn = status.remote_asn.map(|asn| asn.get()), "BGP session established");
        } else if was_up {
            let reason = status.last_close.as_ref().map(tracing::field::display);
            warn!(%peer, remote, to = %status.state, reason, "BGP session lost");
        } else {
            debug!(%peer, remote, from = from.map(bgp::State::name), to = %status.state, "BGP session changed");
        }
    }
    if let Some(trouble) = &status.trouble
        && before.is_none_or(|before| before.trouble.as_ref() != Some(trouble))
    {
        warn!(%peer, remote, error = %trouble, "peer cannot be reached");
    }
    if let Some(closing) = &status.last_close
        && status.state != bgp::State::Established
        && before
            .is_none_or(|before| before.last_close.as_ref() != Some(closing) && before.state != bgp::State::Established)
    {
        warn!(%peer, remote, reason = %closing, "BGP connection ended before there was a session");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, controller: Option<u32>, addresses: &[&str]) -> Interface {
        Interface {
            index,
            mac: None,
            up: true,
            carrier: true,
            broadcast: true,
            no_arp: false,
            loopback: false,
            controller,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn m_139_of_interfaces_with_one_address_the_one_that_belongs_to_the_vrf_of_the_peer_is_ours() {
        let (address, of_device) = ("192.0.2.1/24", "192.0.2.100/32");
        let links: Interfaces = [
            ("eth0", link(1, None, &[address])),
            ("eth1", link(2, Some(11), &[address])),
            ("eth2", link(3, Some(12), &[address])),
            ("vrf-blue", link(11, None, &[of_device])),
            ("vrf-red", link(12, None, &[])),
            // A plain interface in place of a device.
            ("plain", link(13, None, &[address])),
        ]
        .map(|(name, link)| (name.into(), link))
        .into();
        let found = |vrf: Option<&str>, local: &str, scope| {
            let vrf = vrf.map(InterfaceName::from);
            own_interface(&links, vrf.as_ref(), local.parse().unwrap(), scope).map(|(name, _)| name.to_string())
        };

        for (vrf, interface) in
            [(None, "eth0"), (Some("vrf-blue"), "eth1"), (Some("vrf-red"), "eth2"), (Some("plain"), "plain")]
        {
            assert_eq!(found(vrf, "192.0.2.1", None).as_deref(), Some(interface), "{vrf:?}");
        }
        assert_eq!(found(Some("vrf-blue"), "192.0.2.100", None).as_deref(), Some("vrf-blue"));
        assert_eq!(found(Some("vrf-red"), "fe80::1", Some(3)).as_deref(), Some("eth2"));
        assert_eq!(found(None, "198.51.100.1", None), None);
    }
}
