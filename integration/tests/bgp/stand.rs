//! A router and a node on one cable, and the BGP of a speaker on the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_core::{
    model::{InterfaceName, PeerName, Prefix, peer::PeerAsn},
    speaker::{
        Interface,
        bgp::{Neighbor, Part, Remote, Route, SessionStatus, State, Transport, Ttl, Wanted},
    },
};
use ferrogate_integration::{
    netns::Namespace,
    router::{self, PATIENCE, Router, Vendor},
};
use ferrogate_speaker::bgp::{Bgp, Sessions};
use ferrogate_wire::bgp::{Asn, BgpIdentifier, Family, HoldTime};

pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
pub const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe);
/// The AS of the node.
pub const OURS: u32 = 64500;
/// The AS of the router, where it is another one.
pub const THEIRS: u32 = 64512;

/// The two namespaces and the cable.
pub struct Stand {
    pub node: Namespace,
    pub router: Namespace,
}

impl Stand {
    pub fn new() -> Self {
        let (node, router) = (Namespace::new("node").unwrap(), Namespace::new("router").unwrap());
        router.links(async |links| links.add_pair("eth0", "eth0", &node).await).unwrap();
        for (namespace, addresses) in
            [(&node, [IpAddr::from(NODE), NODE6.into()]), (&router, [ROUTER.into(), ROUTER6.into()])]
        {
            namespace
                .links(async |links| {
                    links.up("eth0").await?;
                    for address in addresses {
                        links.add_address("eth0", address, if address.is_ipv4() { 24 } else { 64 }).await?;
                    }
                    Ok(())
                })
                .unwrap();
        }
        Self { node, router }
    }

    /// A router of this AS that waits for the node at both of its addresses, each neighbour as `adapt` has it.
    pub fn router(&self, vendor: Vendor, asn: u32, adapt: impl Fn(&mut router::Neighbor)) -> Router<'_> {
        Router::start(vendor, &self.router, &config(asn, adapt)).unwrap()
    }

    /// The speaker's BGP on the node.
    pub fn speaker(&self) -> Speaker {
        let interfaces = self.node.run(interfaces);
        let bgp = self.node.run(|| Bgp::start(ferrogate_speaker::bgp::PORT)).unwrap();
        bgp.interfaces(Arc::new(interfaces));
        Speaker { bgp, wanted: Wanted { is_complete: true, ..Wanted::default() } }
    }
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
            enslaved: false,
            addresses: found.ips.clone(),
        };
        (InterfaceName::from(found.name.as_str()), interface)
    })
    .collect()
}

/// The BGP of a speaker, and what it is to do.
pub struct Speaker {
    pub bgp: Bgp,
    pub wanted: Wanted,
}

impl Speaker {
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

    /// Waits until what is told of the sessions has something.
    pub fn wait<T>(&self, what: &str, find: impl Fn(&Sessions) -> Option<T>) -> T {
        let mut sessions = self.bgp.sessions();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut found = None;
        let waited = runtime.block_on(async {
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
            password: None,
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
