//! A router and a node on one cable, and the BGP of a speaker on the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ferrogate_core::{
    model::{InterfaceName, PeerName, Prefix, peer::PeerAsn},
    speaker::{
        Interface,
        bfd::{
            Discard,
            sessions::{self, Wish},
        },
        bgp::{BfdWish, Neighbor, Part, Remote, Route, SessionStatus, State, Transport, Ttl, Wanted},
    },
};
use ferrogate_integration::{
    lab::wait::until,
    netns::Namespace,
    router::{self, PATIENCE, Router, Vendor},
};
use ferrogate_speaker::{
    Metrics,
    bfd::{Bfd, Priority, Report},
    bgp::{Bgp, Sessions},
};
use ferrogate_wire::{
    bfd as bfd_wire,
    bgp::{Asn, BgpIdentifier, Family, HoldTime},
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::sync::{mpsc, watch};

pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
pub const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe);
/// The AS of the node.
pub const OURS: u32 = 64500;
/// The AS of the router, where it is another one.
pub const THEIRS: u32 = 64512;

/// How often the kernel is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The namespaces of the node and the router, and the switch between them.
pub struct Stand {
    pub node: Namespace,
    pub router: Namespace,
    switch: Namespace,
}

impl Stand {
    pub fn new() -> Self {
        Self::with(&[NODE.into(), NODE6.into()], &[ROUTER.into(), ROUTER6.into()])
    }

    /// One where node and router have these addresses and no others but those of the link.
    pub fn with(node_addresses: &[IpAddr], router_addresses: &[IpAddr]) -> Self {
        let [node, router, switch] = ["node", "router", "switch"].map(|name| Namespace::new(name).unwrap());
        switch
            .links(async |links| {
                links.add_bridge("switch").await?;
                links.add_cable("node", "switch", "eth0", &node).await?;
                links.add_cable("router", "switch", "eth0", &router).await
            })
            .unwrap();
        for (namespace, addresses) in [(&node, node_addresses), (&router, router_addresses)] {
            namespace
                .links(async |links| {
                    links.up("eth0").await?;
                    for address in addresses {
                        links.add_address("eth0", *address, if address.is_ipv4() { 24 } else { 64 }).await?;
                    }
                    Ok(())
                })
                .unwrap();
        }
        Self { node, router, switch }
    }

    /// A further namespace on the cable, with these IPv4 addresses.
    pub fn another(&self, name: &str, addresses: &[Ipv4Addr]) -> Namespace {
        let other = Namespace::new(name).unwrap();
        self.switch.links(async |links| links.add_cable(name, "switch", "eth0", &other).await).unwrap();
        other
            .links(async |links| {
                links.up("eth0").await?;
                for address in addresses {
                    links.add_address("eth0", IpAddr::from(*address), 24).await?;
                }
                Ok(())
            })
            .unwrap();
        other
    }

    /// Lets nothing through any more; both sides keep their carrier.
    pub fn cut(&self) {
        self.switch.links(async |links| links.unplug("router").await).unwrap();
    }

    /// Lets everything through again.
    pub fn mend(&self) {
        self.switch.links(async |links| links.plug("router", "switch").await).unwrap();
    }

    /// What the kernel of the router forwards.
    pub fn fib(&self) -> BTreeSet<Prefix> {
        self.router.run(fib)
    }

    /// Waits until the kernel of the router forwards what is wanted.
    pub fn wait_for_fib(&self, what: &str, is_wanted: impl Fn(&BTreeSet<Prefix>) -> bool + Sync) {
        self.router.run(|| wait_until(&format!("{what} in the kernel"), || is_wanted(&fib())));
    }

    /// Watches over some routes in the kernel of the router until [`Guard::misses`] asks.
    pub fn guard(&self, prefixes: &[&str]) -> Guard {
        let prefixes: BTreeSet<Prefix> = prefixes.iter().map(|text| prefix(text)).collect();
        let is_over = Arc::new(AtomicBool::new(false));
        let told = is_over.clone();
        let watch = move || {
            let (mut looks, mut misses) = (0, 0);
            while !told.load(Ordering::Relaxed) {
                looks += 1;
                misses += usize::from(!fib().is_superset(&prefixes));
                thread::sleep(LOOK_AGAIN);
            }
            (looks, misses)
        };
        Guard { is_over, thread: self.router.spawn_thread(watch).unwrap() }
    }

    /// A router of this AS that waits for the node at both of its addresses, each neighbour as `adapt` has it.
    pub fn router(&self, vendor: Vendor, asn: u32, adapt: impl Fn(&mut router::Neighbor)) -> Router<'_> {
        Router::start(vendor, &self.router, &config(asn, adapt)).unwrap()
    }

    /// The speaker's BGP on the node.
    pub fn speaker(&self) -> Speaker {
        self.speaker_on(|| {})
    }

    /// The same, where its thread inherits what `prepare` does to the one that starts it.
    pub fn speaker_on(&self, prepare: impl FnOnce() + Send) -> Speaker {
        speaker_in(&self.node, prepare)
    }

    /// Tells a speaker how the interfaces of the node are now.
    pub fn tell_interfaces(&self, speaker: &Speaker) {
        speaker.bgp.interfaces(Arc::new(self.node.run(interfaces)));
    }

    /// One that also watches its peers by BFD where that is wanted. It comes before all that these tests and others do on
    /// this machine.
    pub fn watching_speaker(&self) -> Speaker {
        self.watching_speaker_of(Priority::RealTime)
    }

    /// The same where the thread of BFD has this priority.
    pub fn watching_speaker_of(&self, priority: Priority) -> Speaker {
        watching_speaker_in(&self.node, priority)
    }
}

/// The BGP of a speaker in a namespace, whose thread inherits what `prepare` does to the one that starts it.
pub fn speaker_in(namespace: &Namespace, prepare: impl FnOnce() + Send) -> Speaker {
    let start = || {
        prepare();
        Bgp::start(ferrogate_speaker::bgp::PORT)
    };
    let bgp = namespace.run(start).unwrap();
    bgp.interfaces(Arc::new(namespace.run(interfaces)));
    let wanted = Wanted { is_complete: true, ..Wanted::default() };
    Speaker { bgp: Arc::new(bgp), wanted, figures: Registry::default() }
}

/// One that also watches its peers by BFD where that is wanted.
pub fn watching_speaker_in(namespace: &Namespace, priority: Priority) -> Speaker {
    let mut speaker = speaker_in(namespace, || {});
    let (sender, reports) = mpsc::channel(64);
    let metrics = Metrics::register(&mut speaker.figures);
    let bfd = namespace.run(move || Bfd::start(sender, &metrics, priority)).unwrap();
    let (bgp, sessions) = (Arc::downgrade(&speaker.bgp), speaker.bgp.sessions());
    thread::spawn(move || runtime().block_on(connect(bgp, sessions, bfd, reports)));
    speaker
}

/// Has BFD watch whom BGP wants watched, and tells BGP what it sees, until that is gone.
async fn connect(
    bgp: Weak<Bgp>,
    mut sessions: watch::Receiver<Sessions>,
    bfd: Bfd,
    mut reports: mpsc::Receiver<Report>,
) {
    loop {
        tokio::select! {
            changed = sessions.changed() => {
                if changed.is_err() {
                    return;
                }
                let watch = sessions.borrow_and_update().watch.clone();
                let wish = |wish: BfdWish| Wish { settings: wish.settings, minimum_ttl: wish.minimum_ttl };
                let watched = watch.into_iter().map(|(path, peer)| (path, wish(peer.wish))).collect();
                bfd.want(sessions::Wanted { sessions: watched, ..Default::default() });
            }
            Some(report) = reports.recv() => {
                let Some(bgp) = bgp.upgrade() else { return };
                match report {
                    Report::Changed { path, change, .. } => {
                        bgp.watched(&path, change.to == bfd_wire::State::Up, change.failure());
                    }
                    Report::Standing { paths } => paths.iter().for_each(|path| bgp.watched(path, true, None)),
                    Report::Held { .. } | Report::Refused { .. } => {}
                }
            }
        }
    }
}

/// Looks at the kernel of a router again and again.
pub struct Guard {
    is_over: Arc<AtomicBool>,
    thread: thread::JoinHandle<(usize, usize)>,
}

impl Guard {
    /// How often the routes were looked for, and how often one of them was not there.
    pub fn misses(self) -> (usize, usize) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// What the kernel of the namespace this runs in forwards, apart from what it has of itself.
pub fn fib() -> BTreeSet<Prefix> {
    let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
    let ipv4 = read("route");
    let ipv4 = ipv4.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |field: usize| u32::from_str_radix(fields.get(field)?, 16).ok().map(u32::from_be);
        let length = number(7)?.leading_ones();
        Prefix::new(Ipv4Addr::from_bits(number(1)?).into(), length as u8).ok()
    });
    let ipv6 = read("ipv6_route");
    let ipv6 = ipv6.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Those of the loopback are what it has of itself.
        if *fields.get(9)? == "lo" {
            return None;
        }
        let address = u128::from_str_radix(fields.first()?, 16).ok()?;
        Prefix::new(Ipv6Addr::from_bits(address).into(), u8::from_str_radix(fields.get(1)?, 16).ok()?).ok()
    });
    ipv4.chain(ipv6).collect()
}

/// How a router of this AS is configured for the node.
pub fn config(asn: u32, adapt: impl Fn(&mut router::Neighbor)) -> router::Config {
    let mut neighbors = vec![router::Neighbor::new(NODE, ROUTER, OURS), router::Neighbor::new(NODE6, ROUTER6, OURS)];
    neighbors.iter_mut().for_each(adapt);
    router::Config { asn, identifier: ROUTER, neighbors, extra: String::new() }
}

/// Every interface of the namespace this runs in.
fn interfaces() -> BTreeMap<InterfaceName, Interface> {
    let all = pnet::datalink::interfaces().into_iter();
    all.map(|found| {
        let interface = Interface {
            index: found.index,
            mac: found.mac.map(|mac| ferrogate_wire::ethernet::Mac(mac.octets())),
            up: found.is_up(),
            carrier: found.is_running(),
            broadcast: found.is_broadcast(),
            no_arp: false,
            loopback: found.is_loopback(),
            controller: None,
            addresses: found.ips.clone(),
        };
        (InterfaceName::from(found.name.as_str()), interface)
    })
    .collect()
}

/// The BGP of a speaker, and what it is to do.
pub struct Speaker {
    pub bgp: Arc<Bgp>,
    pub wanted: Wanted,
    /// What is counted of its BFD, if it has that.
    figures: Registry,
}

impl Speaker {
    /// How many BFD packets were discarded for this reason.
    pub fn discarded(&self, reason: Discard) -> u64 {
        let mut text = String::new();
        encode(&mut text, &self.figures).unwrap();
        let name = format!("ferrogate_speaker_bfd_discarded_total{{reason=\"{reason:?}\"}} ");
        let count = text.lines().find_map(|line| line.strip_prefix(&name));
        count.expect("every reason is shown, once BFD runs").parse().unwrap()
    }

    /// Changes what is wanted.
    pub fn want(&mut self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.wanted);
        self.bgp.want(self.wanted.clone());
    }

    /// Speaks with a peer from now on, or otherwise than before.
    pub fn peer(&mut self, name: &str, neighbor: Neighbor) {
        self.want(|wanted| _ = wanted.neighbors.insert(name.into(), Arc::new(neighbor)));
    }

    /// Advertises prefixes to everybody, with nothing in particular.
    pub fn advertise(&mut self, prefixes: &[&str]) {
        self.advertise_with(prefixes, |_| {});
    }

    /// Advertises prefixes as `adapt` has them.
    pub fn advertise_with(&mut self, prefixes: &[&str], adapt: impl Fn(&mut Part)) {
        let mut part = part();
        adapt(&mut part);
        let route = Arc::new(Route { parts: vec![part] });
        self.want(|wanted| {
            for prefix in prefixes {
                wanted.routes.insert(prefix.parse().unwrap(), route.clone());
            }
        });
    }

    /// Takes prefixes back.
    pub fn withdraw(&mut self, prefixes: &[&str]) {
        self.want(|wanted| {
            for prefix in prefixes {
                wanted.routes.remove(&prefix.parse::<Prefix>().unwrap());
            }
        });
    }

    /// How a session stands now.
    pub fn status(&self, peer: &str) -> Option<SessionStatus> {
        let key = (PeerName::from(peer), None);
        self.bgp.sessions().borrow().statuses.get(&key).map(|status| (**status).clone())
    }

    /// Waits until the status of a peer is as wanted, and returns it.
    pub fn wait_for(&self, peer: &str, is_wanted: impl Fn(&SessionStatus) -> bool) -> SessionStatus {
        let key = (PeerName::from(peer), None);
        self.wait(&format!("{peer} to be as wanted"), |sessions| {
            let status = sessions.statuses.get(&key)?;
            is_wanted(status).then(|| (**status).clone())
        })
    }

    /// Waits until a session is established.
    pub fn wait_until_established(&self, peer: &str) -> SessionStatus {
        self.wait_for(peer, |status| status.state == State::Established)
    }

    /// Watches that what is told of the sessions stays as wanted for all of a time.
    pub fn stays(&self, time: Duration, what: &str, is_wanted: impl Fn(&Sessions) -> bool) {
        let mut sessions = self.bgp.sessions();
        let watched = runtime().block_on(async {
            tokio::time::timeout(time, sessions.wait_for(|told| !is_wanted(told)))
                .await
                .map(|changed| changed.map(drop))
        });
        assert!(watched.is_err(), "no more {what}: {:#?}", self.bgp.sessions().borrow().statuses);
    }

    /// Waits until what is told of the sessions has something.
    pub fn wait<T>(&self, what: &str, find: impl Fn(&Sessions) -> Option<T>) -> T {
        let mut sessions = self.bgp.sessions();
        let mut found = None;
        let waited = runtime().block_on(async {
            tokio::time::timeout(
                PATIENCE,
                sessions.wait_for(|told| {
                    found = find(told);
                    found.is_some()
                }),
            )
            .await
            .map(|result| result.map(drop))
        });
        match (waited, found) {
            (Ok(Ok(())), Some(found)) => found,
            _ => panic!("waited in vain for {what}: {:#?}", self.bgp.sessions().borrow().statuses),
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A neighbour at this address, of this AS, with a hold time of 9 s, both families and nothing else.
pub fn neighbor(address: impl Into<IpAddr>, asn: u32) -> Neighbor {
    Neighbor {
        remote: Remote::Address { address: address.into(), port: NonZeroU16::new(179).unwrap() },
        local_asn: Asn::new(OURS).unwrap(),
        peer_asn: PeerAsn::Fixed(Asn::new(asn).unwrap()),
        identifier: BgpIdentifier::new(NODE.to_bits()).unwrap(),
        hold_time: HoldTime::from_seconds(9).unwrap(),
        keepalive_time: Duration::from_secs(3),
        connect_retry_time: None,
        families: BTreeSet::from([Family::Ipv4Unicast, Family::Ipv6Unicast]),
        graceful_restart: None,
        passive: false,
        role: None,
        max_prefixes: None,
        shutdown: None,
        bfd: None,
        transport: Transport {
            source: None,
            vrf: None,
            signature: None,
            ttl: if asn == OURS { Ttl::MultiHop } else { Ttl::Direct },
        },
    }
}

/// For every peer, with nothing in particular.
pub fn part() -> Part {
    Part {
        peers: Arc::default(),
        local_pref: None,
        multi_exit_disc: None,
        prepend: 0,
        communities: Arc::default(),
        draining: false,
    }
}

pub fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// Checks that something happens within a time from now.
pub fn within<T>(time: Duration, what: &str, act: impl FnOnce() -> T) -> T {
    let since = Instant::now();
    let value = act();
    let took = since.elapsed();
    assert!(took <= time, "{what} took {took:?}, not {time:?} at most");
    value
}

/// Waits until a router has BFD with the node up at 50 ms × 3: at first both sides are slow.
pub fn wait_until_quick(router: &Router<'_>, node: IpAddr) {
    wait_until_every(50, router, node);
}

/// The same with so many milliseconds between packets.
pub fn wait_until_every(interval: u32, router: &Router<'_>, node: IpAddr) {
    let node = node.to_string();
    wait_until("quick BFD at the router", || match router.vendor() {
        Vendor::Frr => {
            let answer = router.ask("show bfd peers json").unwrap();
            let peers: serde_json::Value = serde_json::from_str(&answer).unwrap();
            let is_quick = |peer: &serde_json::Value| {
                let intervals = ["transmit-interval", "remote-transmit-interval", "remote-receive-interval"];
                peer["status"] == "up" && intervals.iter().all(|key| peer[key] == interval)
            };
            peers.as_array().into_iter().flatten().any(|peer| peer["peer"] == node.as_str() && is_quick(peer))
        }
        _ => {
            let answer = router.ask("show bfd sessions").unwrap();
            let of_node = |line: &&str| line.starts_with(&format!("{node} "));
            let detection = format!(" 0.{:03}", 3 * interval);
            answer.lines().filter(of_node).any(|line| line.contains(" Up ") && line.contains(&detection))
        }
    });
}

/// The bodies of the UPDATEs that ExaBGP has received, as hexadecimal digits.
pub fn updates(router: &Router<'_>) -> Vec<String> {
    let messages = router.messages().unwrap().into_iter();
    let raw = messages.filter_map(|message| {
        let message = &message["neighbor"]["message"];
        let body = message["body"].as_str().filter(|_| message["category"] == 2)?;
        Some(body.trim_start_matches("0x").to_lowercase())
    });
    raw.collect()
}

/// Asks again and again until the answer is as wanted.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    until(PATIENCE, || is_so().then_some(()).ok_or(())).unwrap_or_else(|()| panic!("waited in vain for {what}"));
}
