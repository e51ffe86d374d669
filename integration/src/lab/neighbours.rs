//! Asking a link who has an address, and counting everyone who says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    net::IpAddr,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use ferrogate_wire::{
    arp::{self, Arp, Operation},
    ethernet::Mac,
    ndp::{self, Ndp, Solicitation},
};
use nix::{
    ifaddrs::getifaddrs,
    libc,
    sys::socket::bind,
    time::{ClockId, clock_gettime},
};
use pnet::datalink::{self, Channel, Config, DataLinkReceiver, DataLinkSender, NetworkInterface};
use socket2::{Domain, Socket, Type};

use crate::{
    lab::{topology::Topology, wait::steadily},
    netns::Namespace,
};

/// How long a question to everyone on the link waits for those who answer late.
const EVERYONE: Duration = Duration::from_millis(200);

/// The one node that answers the client for an address on the link, and its Ethernet address.
///
/// # Errors
/// When nobody answers, several do, or one that is no node.
pub fn one_owner(topology: &Topology, address: IpAddr) -> Result<(usize, Mac)> {
    let claims: BTreeSet<_> = owners(&topology.client, "eth0", address, EVERYONE)?;
    let mut claims = claims.into_iter();
    let mac = claims.next().with_context(|| format!("nobody answers for {address}"))?;
    if let Some(other) = claims.next() {
        bail!("{mac} and {other} both answer for {address}");
    }
    let node = topology.nodes.iter().position(|node| node.mac == mac);
    Ok((node.with_context(|| format!("{mac} answers for {address} and is no node"))?, mac))
}

/// Asks once, and returns every station that says within `patience` that it has the address.
///
/// # Errors
/// When the interface is not there, or has no address of the family to ask from.
pub fn owners(client: &Namespace, interface: &str, address: IpAddr, patience: Duration) -> Result<BTreeSet<Mac>> {
    client.run(|| ask(interface, address, patience))
}

fn ask(interface: &str, address: IpAddr, patience: Duration) -> Result<BTreeSet<Mac>> {
    let (mut link, mac) = Link::open(interface)?;
    link.ask(mac, address)?;
    let begun = Instant::now();
    let mut owners = BTreeSet::new();
    while begun.elapsed() < patience {
        owners.extend(link.receive()?.and_then(|frame| answer(frame, address)));
    }
    Ok(owners)
}

/// Asks for some addresses in turn, steadily for a while. Returns how many questions left. Answers are not looked at, and go to
/// no socket: in the kernel that would be work of whoever answers.
///
/// # Errors
/// When the interface is not there, or does not take a question.
pub fn ask_steadily(
    client: &Namespace,
    interface: &str,
    addresses: &[IpAddr],
    per_second: f64,
    time: Duration,
) -> Result<usize> {
    client.run(|| {
        let (socket, mac) = raw_socket(interface, Hears::Nothing)?;
        let interface = find(interface)?;
        let questions = addresses.iter().map(|address| question(&interface, mac, *address));
        let questions = questions.collect::<Result<Vec<_>>>()?;
        steadily(per_second, time, |number| Ok(socket.send(&questions[number % questions.len()]).map(drop)?))
    })
}

/// How long questions gather for somebody who answers barely.
const GATHERING: Duration = Duration::from_millis(5);

/// Answers requests by ARP for some addresses until it is told to stop, and does nothing else: a thread that looks each 5 ms reads
/// what came and answers it. Returns how many it answered, and the CPU time that it took.
///
/// # Errors
/// When the interface is not there, or does not take an answer.
pub fn answer_barely(
    node: &Namespace,
    interface: &str,
    addresses: &BTreeSet<IpAddr>,
    stop: &AtomicBool,
) -> Result<(usize, Duration)> {
    node.run(|| {
        let (socket, mac) = raw_socket(interface, Hears::Arp)?;
        socket.set_nonblocking(true)?;
        let (mut answered, mut frame) = (0, [0; 128]);
        let taken = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        while !stop.load(Ordering::Relaxed) {
            thread::sleep(GATHERING);
            loop {
                let length = match (&socket).read(&mut frame) {
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("reading a question"),
                };
                let Ok(request) = arp::decode(&frame[..length]) else { continue };
                if request.operation == Operation::Request && addresses.contains(&request.target.into()) {
                    socket.send(&Arp::answer(&request, mac).encode()).context("answering")?;
                    answered += 1;
                }
            }
        }
        let taken = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - taken;
        Ok((answered, taken.into()))
    })
}

/// What a socket receives.
#[derive(Clone, Copy)]
enum Hears {
    Nothing,
    Arp,
}

/// A socket that sends by an interface, and the Ethernet address of that.
fn raw_socket(interface: &str, hears: Hears) -> Result<(Socket, Mac)> {
    let mut all = getifaddrs().context("listing the interfaces")?.filter(|found| found.interface_name == interface);
    let link = all.find_map(|found| found.address?.as_link_addr().copied()).context("no such interface")?;
    let mac = Mac(link.addr().context("no Ethernet address")?);
    let protocol = match hears {
        Hears::Nothing => 0,
        Hears::Arp => i32::from((libc::ETH_P_ARP as u16).to_be()),
    };
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol.into())).context("opening a raw socket")?;
    bind(socket.as_raw_fd(), &link).context("binding it to the interface")?;
    Ok((socket, mac))
}

fn find(interface: &str) -> Result<NetworkInterface> {
    datalink::interfaces().into_iter().find(|found| found.name == interface).context("no such interface")
}

/// An interface on which frames are sent and received.
struct Link {
    interface: NetworkInterface,
    sender: Box<dyn DataLinkSender>,
    receiver: Box<dyn DataLinkReceiver>,
}

impl Link {
    /// Opens it; returns its Ethernet address too.
    fn open(name: &str) -> Result<(Self, Mac)> {
        let interface = find(name)?;
        let mac = Mac(interface.mac.context("no Ethernet address")?.octets());
        let config = Config { read_timeout: Some(Duration::from_millis(5)), ..Config::default() };
        let Channel::Ethernet(sender, receiver) = datalink::channel(&interface, config)? else {
            bail!("not an Ethernet channel");
        };
        Ok((Self { interface, sender, receiver }, mac))
    }

    /// Asks everyone on the link who has an address.
    fn ask(&mut self, mac: Mac, address: IpAddr) -> Result<()> {
        let question = question(&self.interface, mac, address)?;
        self.sender.send_to(&question, None).context("no room to send")??;
        Ok(())
    }

    /// The next frame, or none within a moment.
    fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        match self.receiver.next() {
            Ok(frame) => Ok(Some(frame)),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn question(interface: &NetworkInterface, mac: Mac, address: IpAddr) -> Result<Vec<u8>> {
    let own = interface.ips.iter().map(|network| network.ip());
    Ok(match address {
        IpAddr::V4(target) => {
            let sender = own.filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }).next();
            let sender = sender.context("no IPv4 address")?;
            let request = Arp {
                destination: Mac::BROADCAST,
                source: mac,
                operation: Operation::Request,
                sender_mac: mac,
                sender,
                target_mac: Mac([0; 6]),
                target,
            };
            request.encode().to_vec()
        }
        IpAddr::V6(target) => {
            let source = own.filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }).next();
            let destination = ndp::solicited_node(target);
            let [.., a, b, c] = destination.octets();
            let solicitation = Solicitation {
                destination_mac: Mac([0x33, 0x33, 0xff, a, b, c]),
                source_mac: mac,
                source: source.context("no IPv6 address")?,
                destination,
                target,
                source_link_layer: Some(mac),
            };
            solicitation.encode()
        }
    })
}

/// Who answers that it has the address, if this frame is such an answer.
fn answer(frame: &[u8], address: IpAddr) -> Option<Mac> {
    let is_answer = address.is_ipv6() || arp::decode(frame).is_ok_and(|arp| arp.operation == Operation::Reply);
    claim(frame).filter(|(claimed, _)| is_answer && *claimed == address).map(|(_, mac)| mac)
}

/// Which address somebody says to have, asked or unasked, and who.
fn claim(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    if let Ok(arp) = arp::decode(frame) {
        return Some((arp.sender.into(), arp.sender_mac));
    }
    match ndp::decode(frame) {
        Ok(Ndp::Advertisement(found)) => Some((found.target.into(), found.target_link_layer?)),
        _ => None,
    }
}

/// How often a witness asks for each address.
const QUESTIONS: Duration = Duration::from_millis(50);

/// Asks for some addresses all the time, and remembers everyone who ever said to have one of them, asked or unasked.
#[derive(Debug)]
pub struct Witness {
    addresses: Vec<IpAddr>,
    heard: Arc<Mutex<Vec<Claim>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

/// Somebody said to have an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// When it was heard.
    pub at: Instant,
    /// Which.
    pub address: IpAddr,
    /// Who.
    pub mac: Mac,
}

/// Who said to have an address, and how often.
pub type Claims = BTreeMap<IpAddr, BTreeMap<Mac, usize>>;

impl Witness {
    /// Begins, at the interface `eth0` of a client.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(client: &Namespace, addresses: &[IpAddr]) -> io::Result<Self> {
        let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (ends, addresses, log) = (Arc::clone(&stop), addresses.to_vec(), Arc::clone(&heard));
        let asked = addresses.clone();
        let thread = client.spawn_thread(move || watch(&asked, &log, &ends))?;
        Ok(Self { addresses, heard, stop, thread })
    }

    /// Everything heard so far, in order.
    pub fn heard(&self) -> Vec<Claim> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends, and tells.
    ///
    /// # Errors
    /// When it could not ask or listen.
    pub fn finish(self) -> Result<Claims> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the witness has panicked"))??;
        let mut claims: Claims = self.addresses.into_iter().map(|address| (address, BTreeMap::new())).collect();
        for Claim { address, mac, .. } in self.heard.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            *claims.entry(*address).or_default().entry(*mac).or_default() += 1;
        }
        Ok(claims)
    }
}

fn watch(addresses: &[IpAddr], log: &Mutex<Vec<Claim>>, stop: &AtomicBool) -> Result<()> {
    let (mut link, mac) = Link::open("eth0")?;
    let mut asked = None;
    while !stop.load(Ordering::Relaxed) {
        if asked.is_none_or(|asked: Instant| asked.elapsed() >= QUESTIONS) {
            asked = Some(Instant::now());
            addresses.iter().try_for_each(|address| link.ask(mac, *address))?;
        }
        if let Some((address, mac)) = link.receive()?.and_then(claim)
            && addresses.contains(&address)
        {
            let claim = Claim { at: Instant::now(), address, mac };
            log.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
        }
    }
    Ok(())
}
