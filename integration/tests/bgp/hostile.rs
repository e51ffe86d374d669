//! Peers that do the others no good, and what the others notice of them: nothing.
//!
//! What is judged is the wire. A well-behaved router is told every 30 to 40 ms that we are there; the kernel of its
//! namespace stamps each frame with the time it came. A KEEPALIVE that is late is never made up for, so a gap of 40 ms and
//! the limit on top shows one that was late by the limit. Time in which a processor ran nobody is taken off a gap, for the
//! speaker may have been there; if that is much, nothing can be said.

use std::{
    collections::BTreeMap,
    io::{self, IoSliceMut, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use ferrogate_core::speaker::bgp::{Neighbor, State};
use ferrogate_integration::{netns::Namespace, router::Vendor};
use ferrogate_wire::bgp::{
    Asn, BgpIdentifier, Capabilities, Family, HoldTime, Open, Refresh, keepalive, route_refresh,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use rustix::process::setpriority_process;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    stalls::{self, Stalls},
    stand::{NODE, ROUTER, Stand, THEIRS, neighbor, wait_until},
};

/// The most that one peer may make a KEEPALIVE of another late.
const LIMIT: Duration = Duration::from_millis(100);

/// How often the router that behaves hears of us, at most.
const OFTEN: Duration = Duration::from_millis(40);

/// How long the wire is watched, without and with the peers that do not behave.
const WATCHED: Duration = Duration::from_secs(8);

/// How peers do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Malice {
    /// Asks for all routes as fast as it can, and never reads: its window closes.
    Deaf,
    /// Sends the dearest UPDATEs there are as fast as it can.
    Talkative,
    /// Asks for all routes as fast as it can, and reads them.
    Curious,
    /// Takes the connection and says nothing.
    Silent,
    /// Ends every session as soon as it stands.
    Flapping,
    /// Connects as fast as it can, and leaves at once.
    Knocking,
}

const ALL: [Malice; 6] =
    [Malice::Deaf, Malice::Talkative, Malice::Curious, Malice::Silent, Malice::Flapping, Malice::Knocking];

impl Malice {
    fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, 201 + self as u8)
    }

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// As what it is spoken with.
    fn neighbor(self) -> Neighbor {
        Neighbor {
            passive: self == Self::Knocking,
            // The shortest that may be asked for.
            connect_retry_time: Some(Duration::from_secs(1)),
            ..neighbor(self.address(), THEIRS)
        }
    }

    /// Does harm until told to end, and counts how often.
    fn act(self, stop: &Arc<AtomicBool>, done: &AtomicU64) {
        if self == Self::Knocking {
            while !stop.load(Ordering::Relaxed) {
                done.fetch_add(u64::from(self.knock().is_ok()), Ordering::Relaxed);
            }
            return;
        }
        let listener = TcpListener::bind((self.address(), 179)).unwrap();
        if self == Self::Deaf {
            SockRef::from(&listener).set_recv_buffer_size(1).unwrap();
        }
        listener.set_nonblocking(true).unwrap();
        let mut held = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let Ok((stream, _)) = listener.accept() else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            stream.set_nonblocking(false).unwrap();
            let timeout = Some(Duration::from_secs(1));
            stream.set_read_timeout(timeout).unwrap();
            stream.set_write_timeout(timeout).unwrap();
            match self {
                Self::Silent => {
                    done.fetch_add(1, Ordering::Relaxed);
                    held.push(stream);
                }
                // How its connections end is no concern of it.
                _ => _ = self.harm(stream, stop, done),
            }
        }
    }

    fn harm(self, mut stream: TcpStream, stop: &Arc<AtomicBool>, done: &AtomicU64) -> io::Result<()> {
        establish(&mut stream, self.address())?;
        let ask = route_refresh(Family::Ipv4Unicast, Refresh::Request).repeat(100);
        let dear = [full_of_withdrawals(), full_of_routes()].concat();
        let words = match self {
            Self::Flapping => {
                done.fetch_add(1, Ordering::Relaxed);
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                return Ok(());
            }
            Self::Talkative => dear,
            _ => ask,
        };
        let reader = stream.try_clone()?;
        let reads = (self != Self::Deaf).then(|| thread::spawn(move || drain(reader)));
        while !stop.load(Ordering::Relaxed) {
            let mut rest = &words[..];
            while !rest.is_empty() && !stop.load(Ordering::Relaxed) {
                match stream.write(rest) {
                    Ok(count) => rest = &rest[count..],
                    // Nobody takes it now.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        stream.shutdown(Shutdown::Both)?;
        if let Some(reads) = reads {
            reads.join().unwrap();
        }
        Ok(())
    }

    fn knock(self) -> io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((self.address(), 0)).into())?;
        socket.connect_timeout(&SocketAddr::from((NODE, 179)).into(), Duration::from_secs(1))?;
        socket.set_linger(Some(Duration::ZERO))?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(&open(self.address()))
    }
}

fn open(address: Ipv4Addr) -> Vec<u8> {
    let capabilities = Capabilities {
        families: Some([Family::Ipv4Unicast].into()),
        route_refresh: true,
        extended_message: true,
        four_octet_asn: true,
        ..Capabilities::default()
    };
    Open {
        asn: Asn::new(THEIRS).unwrap(),
        hold_time: HoldTime::from_seconds(90).unwrap(),
        identifier: BgpIdentifier::new(address.to_bits()).unwrap(),
        capabilities,
    }
    .encode()
}

/// Speaks as a router until the session is established on the other side.
fn establish(stream: &mut TcpStream, address: Ipv4Addr) -> io::Result<()> {
    stream.write_all(&open(address))?;
    stream.write_all(&keepalive())?;
    // OPEN and KEEPALIVE of the other side.
    for _ in 0..2 {
        let mut header = [0; 19];
        stream.read_exact(&mut header)?;
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        stream.read_exact(&mut vec![0; length - header.len()])?;
    }
    Ok(())
}

fn drain(mut stream: TcpStream) {
    let mut bytes = vec![0; 65536];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// An UPDATE with its header (RFC 4271 §4.3).
fn update(withdrawn: &[u8], attributes: &[u8], announced: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
    let body = [&length(withdrawn), withdrawn, &length(attributes), attributes, announced].concat();
    let total = u16::try_from(19 + body.len()).unwrap().to_be_bytes();
    [&[0xff; 16][..], &total, &[2], &body].concat()
}

/// 65,512 prefixes of one octet each, as many as a message can hold (RFC 8654).
fn full_of_withdrawals() -> Vec<u8> {
    update(&[0; 65535 - 23], &[], &[])
}

/// 16,000 prefixes of 24 bits with the attributes that they must have.
fn full_of_routes() -> Vec<u8> {
    let [a, b, c, d] = THEIRS.to_be_bytes();
    let attributes = [&[0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, a, b, c, d, 0x40, 3, 4][..], &[192, 0, 2, 202]].concat();
    let routes: Vec<u8> = (0..16_000_u16).flat_map(|number| [24, 20, (number >> 8) as u8, number as u8]).collect();
    update(&[], &attributes, &routes)
}

/// Peers at work.
struct Harm {
    stop: Arc<AtomicBool>,
    done: Vec<(Malice, Arc<AtomicU64>)>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Harm {
    fn start(namespace: &Namespace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done: Vec<_> = ALL.into_iter().map(|malice| (malice, Arc::new(AtomicU64::new(0)))).collect();
        let start = |(malice, done): &(Malice, Arc<AtomicU64>)| {
            let (malice, done, stop) = (*malice, done.clone(), stop.clone());
            namespace.spawn_thread(move || malice.act(&stop, &done)).unwrap()
        };
        let threads = done.iter().map(start).collect();
        Self { stop, done, threads }
    }

    /// How often each has done it.
    fn counts(&self) -> BTreeMap<Malice, u64> {
        self.done.iter().map(|(malice, count)| (*malice, count.load(Ordering::Relaxed))).collect()
    }
}

impl Drop for Harm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            _ = thread.join();
        }
    }
}

/// Writes down when KEEPALIVEs of the node arrive at the well-behaved router.
struct Tap {
    times: Arc<Mutex<Vec<Duration>>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Tap {
    fn start(stand: &Stand) -> Self {
        // All of Ethernet, in the order of the network's bytes (packet(7)).
        let every = i32::from(u16::try_from(nix::libc::ETH_P_ALL).unwrap().to_be());
        let socket = stand.router.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(every)))).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket.set_recv_buffer_size(1 << 20).unwrap();
        let (times, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (sink, told) = (times.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                sink.lock().unwrap().extend(keepalive_at(&socket));
            }
        });
        Self { times, stop, thread: Some(thread) }
    }

    /// The gaps between KEEPALIVEs, from the last one before a watch to the first one after it, without what processors
    /// stood still, and how much that was.
    fn gaps(&self, stalls: &Stalls, watch: impl FnOnce()) -> (Vec<Duration>, Duration) {
        wait_until("a KEEPALIVE before the watch", || !self.times.lock().unwrap().is_empty());
        let begin = self.times.lock().unwrap().len() - 1;
        watch();
        let end = stalls::now();
        wait_until("a KEEPALIVE after the watch", || self.times.lock().unwrap().last() > Some(&end));
        let times = self.times.lock().unwrap();
        let gap = |pair: &[Duration]| pair[1].saturating_sub(pair[0]).saturating_sub(stalls.between(pair[0], pair[1]));
        (times[begin..].windows(2).map(gap).collect(), stalls.between(times[begin], end))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// When the next frame came, by the kernel's clock, if it carries a KEEPALIVE of the node.
fn keepalive_at(socket: &Socket) -> Option<Duration> {
    let mut bytes = [0; 65536];
    let mut control = nix::cmsg_space!(nix::libc::timespec);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()).ok()?;
    let time = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
        _ => None,
    })?;
    let length = message.bytes;
    let frame = bytes.get(..length)?;
    // An IPv4 header without options stands behind 14 octets of Ethernet.
    let is_of_node = frame.get(12..14) == Some(&[8, 0]) && frame.get(26..30) == Some(&NODE.octets());
    let wanted = keepalive();
    (is_of_node && frame.windows(wanted.len()).any(|window| window == wanted)).then_some(time)
}

#[test]
fn n_029_hostile_peers_delay_no_keepalive_of_another_by_more_than_100_ms() {
    for vendor in Vendor::STRICT {
        let stand = Stand::new();
        let _router = stand.router(vendor, THEIRS, |_| {});
        let hostile = stand.another("hostile", &ALL.map(Malice::address));
        // Whatever else this machine does is to make nothing late; what peers do is to be all that can.
        let mut speaker = stand.speaker_on(|| setpriority_process(None, -20).unwrap());
        let routes: Vec<String> = (0..1000).map(|n| format!("198.18.{}.{}/32", n >> 8, n & 255)).collect();
        speaker.advertise(&routes.iter().map(String::as_str).collect::<Vec<_>>());
        speaker.peer("good", Neighbor { keepalive_time: OFTEN, ..neighbor(ROUTER, THEIRS) });
        speaker.wait_for("good", |status| status.state == State::Established && status.prefixes_sent == routes.len());
        let tap = Tap::start(&stand);

        let stalls = Stalls::watch();
        let quiet = tap.gaps(&stalls, || thread::sleep(WATCHED));
        let harm = Harm::start(&hostile);
        for malice in ALL {
            speaker.peer(&malice.name(), malice.neighbor());
        }
        wait_until("all to do harm", || harm.counts().values().all(|count| *count > 0));
        let before = harm.counts();
        let harmed = tap.gaps(&stalls, || thread::sleep(WATCHED));
        let after = harm.counts();

        // What the measure itself adds belongs to it.
        for ((gaps, stalled), how) in [(quiet, "left alone"), (harmed, "beside the others")] {
            let worst = gaps.iter().max().copied().unwrap_or_default();
            let context = format!("{vendor:?}, {how}: {worst:?} of {} gaps, {stalled:?} taken off", gaps.len());
            println!("{context}");
            assert!(stalled <= WATCHED / 4, "{context}: this machine stood still for too long to tell");
            assert!(gaps.len() >= 50 && worst <= OFTEN + LIMIT, "{context}: {gaps:?}");
        }
        for malice in ALL {
            let status = speaker.status(&malice.name());
            let has_gone_on = match malice {
                Malice::Silent => true,
                // The kernels hold what a slow machine takes seconds to read; as long as the session stands there is more.
                Malice::Deaf | Malice::Talkative | Malice::Curious => {
                    after[&malice] > before[&malice]
                        || status.as_ref().is_some_and(|status| status.state == State::Established && status.flaps == 0)
                }
                Malice::Flapping | Malice::Knocking => after[&malice] > before[&malice],
            };
            assert!(has_gone_on, "{vendor:?}: {malice:?} has done no more harm: {before:?} {after:?} {status:#?}");
        }
        assert_eq!(speaker.wait_until_established("good").flaps, 0, "{vendor:?}");
    }
}
