//! One network with the product in it, to which events happen one after the other.
//!
//! Before each, everything is at rest: every speaker has its session with the router, BFD watches it, and the router's
//! kernel spreads flows to both addresses over all nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Setup,
    ground::Ground,
    manifests::{self, LATE},
};
use crate::{
    lab::{
        event::{Event, Options},
        layer2::manifests::{Wishes, endpoints},
        probe::{self, Stream, Targets, busy, finish, milliseconds, steady},
        product::Product,
        row::{Lost, Seen},
        scenario::service_addresses,
        topology::{Node, Plan, pod_address},
        wait::{until, until_every},
    },
    netns::Namespace,
    router::Router,
    workspace,
};

/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(10);

/// How long a network may take to come to rest: longer than two attempts at a session.
const REST: Duration = Duration::from_secs(30);

/// As many datagrams in a row must be answered before and after an event: half a second.
const STEADY: usize = 250;

/// The same as a time.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// How often a moment is looked for that is measured to a millisecond.
const CLOSELY: Duration = Duration::from_micros(500);

/// How many flows show how they spread.
const FLOWS: usize = 150;

/// So many ports are tried until the router's kernel forwards one of them to a given node.
const PORTS: usize = 200;

/// What the metrics of a speaker say when its session with the router is watched.
const WATCHED: &str = "ferrogate_speaker_bfd_sessions{state=\"Up\"} 1";

/// A network at work.
pub struct Stand {
    /// The processes. They end first, and so see nothing of the end of their network.
    pub product: Product,
    router: Router<'static>,
    ground: Ground,
    setup: Setup,
    /// One address of each family, IPv4 first; both Services have them.
    addresses: [IpAddr; 2],
    /// How long busy loops go round in each run.
    busy: Duration,
}

impl Drop for Stand {
    fn drop(&mut self) {
        // Beside the logs of the product, for whoever looks why something failed.
        _ = fs::write(self.logs().join("router.log"), self.router.log());
    }
}

impl Stand {
    /// Makes a network and starts router and product in it, with the files of the latter in `folder`.
    ///
    /// # Errors
    /// When the kernel refuses, or something does not start or gets no address.
    pub(super) fn new(binary: &Path, folder: &Path, setup: Setup, options: &Options) -> Result<Self> {
        let plan = Plan { management: true, ..Plan::default() };
        let ground = Ground::new(plan)?;
        let router = ground.start_router(options.router, setup.profile, setup.graceful_restart)?;
        let example = workspace::root().join("examples/quickstart");
        let mut product = Product::new(binary, folder, &example)?;
        wish(&product, plan, setup, Wishes::default())?;
        product.start(&ground.topology)?;
        let addresses = until(LIMIT, || {
            let (entry, echo) = (service_addresses(&product, "ingress")?, service_addresses(&product, "echo")?);
            ensure!(entry == echo, "the entry has {entry:?} and the echo has {echo:?}, not the same");
            by_family(&entry)
        })
        .context("waiting for addresses of both families")?;
        product.wait_ready(&ground.topology)?;
        let busy = Duration::from_secs(options.busy_seconds);
        Ok(Self { product, router, ground, setup, addresses, busy })
    }

    /// The folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.product.logs()
    }

    /// Every namespace a person may want a shell in.
    pub fn namespaces(&self) -> Vec<&Namespace> {
        let nodes = self.ground.topology.nodes.iter().map(|node| &node.namespace);
        nodes.chain([&self.ground.router, &self.ground.client]).collect()
    }

    /// How requests of one client, each on a new connection, spread over the nodes; fails where a node has none.
    ///
    /// # Errors
    /// When one is not answered, or a node has none.
    pub(super) fn spread(&mut self) -> Result<String> {
        until(REST, || self.at_rest()).context("the network does not come to rest")?;
        let topology = &self.ground.topology;
        let entry = SocketAddr::new(self.addresses[0], 80);
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for _ in 0..FLOWS {
            let (code, body) = self.ground.client.run(|| probe::get(entry, "shop.example", "/clientip"))?;
            ensure!(code == 200, "status {code}: {}", body.trim_end());
            // Whoever asks the pod is the proxy of the node that the router chose.
            let asker = body.trim_end().parse::<SocketAddr>().with_context(|| format!("{body} is no address"))?;
            let asker = asker.ip().to_canonical();
            let own = |node: &Node| [topology.plan().node_address(node.number), pod_address(node.number, 0)];
            let is_it = |node: &&Node| own(node).iter().any(|own| asker == *own);
            let node = topology.nodes.iter().find(is_it).with_context(|| format!("{asker} is no node"))?;
            *counts.entry(&node.name).or_default() += 1;
        }
        let told: Vec<_> = counts.iter().map(|(node, count)| format!("{node} {count}")).collect();
        ensure!(counts.len() == topology.nodes.len(), "of {FLOWS} flows: {}", told.join(", "));
        Ok(format!("of {FLOWS} flows: {}", told.join(", ")))
    }

    /// Lets an event happen while clients ask, undoes it, and tells what they saw, by IPv4 and by IPv6.
    ///
    /// # Errors
    /// What was expected to come of it and did not, in time.
    pub(super) fn run(&mut self, event: Event) -> Result<[Seen; 2]> {
        self.product.wait_ready(&self.ground.topology)?;
        until(REST, || self.at_rest()).context("the network does not come to rest")?;
        match event {
            Event::LinkCut | Event::SpeakerKill | Event::Drain => self.disturb(event),
            Event::RollingRestart | Event::GrRestart => self.restart(),
            Event::EcmpJoin => self.come_back(),
            Event::RouteLatency => self.create(),
            Event::FalseDown => self.load(),
            _ => bail!("{event} does not happen to a network of BGP"),
        }
    }

    fn name(&self, node: usize) -> &str {
        &self.ground.topology.nodes[node].name
    }

    fn all(&self) -> BTreeSet<usize> {
        (0..self.ground.topology.nodes.len()).collect()
    }

    /// Every speaker has its session, and all nodes are reached by both addresses.
    fn at_rest(&self) -> Result<()> {
        for node in self.all() {
            self.is_spoken_with(node)?;
        }
        self.is_spread_over(&self.all())
    }

    /// The speaker of a node has its session with the router, and BFD watches it.
    fn is_spoken_with(&self, node: usize) -> Result<()> {
        let (topology, name) = (&self.ground.topology, self.name(node));
        let up = self.product.speaker_metric(topology, node, "ferrogate_speaker_bgp_session_up")?;
        ensure!(up == 1.0, "{name} has no session with the router");
        let metrics = self.product.speaker_metrics(topology, node)?;
        ensure!(metrics.lines().any(|line| line == WATCHED), "BFD does not watch the session of {name}");
        Ok(())
    }

    /// The router's kernel spreads flows to both addresses over exactly these nodes.
    fn is_spread_over(&self, nodes: &BTreeSet<usize>) -> Result<()> {
        for address in self.addresses {
            let spread = self.ground.spread(address)?;
            ensure!(spread == *nodes, "flows to {address} are spread over nodes {spread:?}, not {nodes:?}");
        }
        Ok(())
    }

    /// Something happens to one node.
    fn disturb(&mut self, event: Event) -> Result<[Seen; 2]> {
        let (streams, node) = self.streams()?;
        let place = &self.ground.topology.nodes[node];
        match event {
            Event::LinkCut => self.ground.topology.cut(place)?,
            Event::SpeakerKill => self.product.kill("speaker", node)?,
            _ => self.wish(Wishes { drained: Some(place.number), ..Wishes::default() })?,
        }
        let mut others = self.all();
        others.remove(&node);
        until(LIMIT, || self.is_spread_over(&others))
            .with_context(|| format!("the router was to do without {} within {LIMIT:?}", self.name(node)))?;
        self.afterwards(&streams)?;
        let seen = finish(streams).map(Seen::from);
        match event {
            Event::LinkCut => {
                self.ground.topology.heal(&self.ground.topology.nodes[node])?;
                // A session of BFD that was lost often is held down for up to a minute. A new speaker has lost none.
                self.product.stop("speaker", node)?;
                self.product.start_one(&self.ground.topology, "speaker", node)?;
            }
            Event::SpeakerKill => self.product.start_one(&self.ground.topology, "speaker", node)?,
            _ => self.wish(Wishes::default())?,
        }
        Ok(seen)
    }

    /// One speaker after the other is ended and started again, the next one when the router has the last one back.
    fn restart(&mut self) -> Result<[Seen; 2]> {
        let (streams, _) = self.streams()?;
        for node in self.all() {
            self.product.stop("speaker", node)?;
            self.product.start_one(&self.ground.topology, "speaker", node)?;
            self.product.wait_ready(&self.ground.topology)?;
            until(REST, || self.at_rest()).with_context(|| format!("{} was to come back", self.name(node)))?;
        }
        self.afterwards(&streams)?;
        Ok(finish(streams).map(Seen::from))
    }

    /// A node that was away comes back.
    fn come_back(&mut self) -> Result<[Seen; 2]> {
        let node = self.ground.topology.nodes.len() - 1;
        self.product.stop("speaker", node)?;
        let mut others = self.all();
        others.remove(&node);
        until(LIMIT, || self.is_spread_over(&others)).context("the router was to do without a node")?;
        let (streams, _) = self.streams()?;
        self.product.start_one(&self.ground.topology, "speaker", node)?;
        until(REST, || self.at_rest()).with_context(|| format!("{} was to come back", self.name(node)))?;
        self.afterwards(&streams)?;
        Ok(finish(streams).map(Seen::from))
    }

    /// A Service is created. From its addresses in the status to the routes in the router's kernel.
    fn create(&self) -> Result<[Seen; 2]> {
        let wanted = self.product.state().join("services/default").join(format!("{LATE}.yaml"));
        ensure!(!wanted.exists(), "there is a Service {LATE} already");
        self.product.write("late.yaml", &manifests::late())?;
        let addresses = until_every(CLOSELY, LIMIT, || by_family(&service_addresses(&self.product, LATE)?))?;
        let given = Instant::now();
        let mut routed = [None; 2];
        // One thread looks for both, and says when it first saw each.
        self.ground.router.run(|| {
            until_every(CLOSELY, LIMIT, || {
                for (address, routed) in addresses.iter().zip(&mut routed) {
                    if routed.is_none() && Ground::has_route(*address)? {
                        *routed = Some(Instant::now());
                    }
                }
                ensure!(routed.iter().all(Option::is_some), "the router's kernel has no route to {addresses:?}");
                Ok(())
            })
        })?;
        self.product.write("late.yaml", "")?;
        for address in addresses {
            until(LIMIT, || {
                let spread = self.ground.spread(address)?;
                ensure!(spread.is_empty(), "the router still has {address} from nodes {spread:?}");
                Ok(())
            })?;
        }
        until(LIMIT, || {
            ensure!(!wanted.exists(), "the state of {LATE} is still there");
            Ok(())
        })?;
        Ok(routed.map(|at| {
            let took = at.map(|at| at.saturating_duration_since(given)).unwrap_or_default();
            Seen { ms: milliseconds(took), ..Seen::default() }
        }))
    }

    /// Nothing happens, but the processors have much to do.
    fn load(&self) -> Result<[Seen; 2]> {
        let before = self.flaps()?;
        let (streams, _) = self.streams()?;
        busy(self.busy)?;
        let mut seen = finish(streams).map(Seen::from);
        let flaps = self.flaps()? - before;
        for seen in &mut seen {
            seen.lost = Lost::Sessions(flaps as usize);
        }
        Ok(seen)
    }

    /// How often a session of any speaker has ended.
    fn flaps(&self) -> Result<f64> {
        let of = |node| self.product.speaker_metric(&self.ground.topology, node, FLAPS);
        self.all().into_iter().map(of).sum()
    }

    /// A stream of questions by each family, both flowing, with the datagrams of both on their way to one node, which is
    /// named.
    fn streams(&self) -> Result<([Stream; 2], usize)> {
        let [v4, v6] = self.addresses.map(|address| {
            let echo = SocketAddr::new(address, 7000);
            Targets { udp: echo, tcp: echo, http: (SocketAddr::new(address, 80), "shop.example".to_owned()) }
        });
        let client = &self.ground.client;
        let (socket, node) = self.ground.socket(v4.udp)?;
        let other = self.socket_to(node, v6.udp)?;
        let start = |targets: &Targets, socket: UdpSocket| {
            Stream::start_from(client, targets, socket)
                .with_context(|| format!("starting the questions to {}", targets.udp))
        };
        let streams = [start(&v4, socket)?, start(&v6, other)?];
        until(LIMIT, || steady(&streams, STEADY)).context("questions to a network at rest")?;
        Ok((streams, node))
    }

    /// A socket of the client whose datagrams the router's kernel forwards to a node.
    fn socket_to(&self, node: usize, to: SocketAddr) -> Result<UdpSocket> {
        for _ in 0..PORTS {
            let (socket, carrier) = self.ground.socket(to)?;
            if carrier == node {
                return Ok(socket);
            }
        }
        bail!("of {PORTS} flows to {to} none goes to {}", self.name(node))
    }

    /// Waits until every question has been answered for a while, from now on.
    fn afterwards(&self, streams: &[Stream; 2]) -> Result<()> {
        let begun = Instant::now();
        until(LIMIT, || {
            ensure!(begun.elapsed() >= AFTERWARDS, "it is too early to tell");
            steady(streams, STEADY)
        })
        .context("questions after the event")
    }

    fn wish(&self, wishes: Wishes) -> Result<()> {
        wish(&self.product, self.ground.topology.plan(), self.setup, wishes)
    }
}

/// What counts ended sessions.
const FLAPS: &str = "ferrogate_speaker_bgp_session_flaps_total";

/// Tells the product what is wanted of the nodes.
fn wish(product: &Product, plan: Plan, setup: Setup, wishes: Wishes) -> Result<()> {
    // The node first: whoever must leave should not be without endpoints before it is known where to go.
    product.write("network.yaml", &manifests::network(plan, wishes, setup))?;
    product.write("endpoints.yaml", &endpoints(plan, wishes))
}

/// One address of each family, IPv4 first.
fn by_family(addresses: &[IpAddr]) -> Result<[IpAddr; 2]> {
    let [v4, v6] = [false, true].map(|v6| addresses.iter().copied().find(|address| address.is_ipv6() == v6));
    Ok([v4.context("no IPv4 address")?, v6.context("no IPv6 address")?])
}
