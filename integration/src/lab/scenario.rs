//! What the lab shows, one scenario at a time. Each step waits until something is true, for a limited time, and says
//! how long that took; none waits for luck.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::Value;

use crate::{
    kubelet::image::{Image, Images},
    lab::{
        bgp,
        event::Options,
        kubernetes::{Cluster, scenes},
        layer2,
        neighbours::one_owner,
        probe::{self, Stream, Targets},
        product::Product,
        report::Report,
        standalone::Host,
        topology::{CLIENT, Node, Plan, STRANGER, Topology},
        wait::until,
    },
    netns::Namespace,
    workspace,
};

/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(10);

/// How long one question waits for its answer, when it is asked again and again.
const ANSWER: Duration = Duration::from_millis(200);

/// Longest gap in a failover that still counts as one.
const LONGEST_GAP_MS: f64 = 1000.0;

/// As many datagrams in a row must be answered before the path counts as whole: half a second.
const STEADY: usize = 250;

/// The same where nothing may be lost in between: the first half second, and another one.
const STEADY_AGAIN: usize = 2 * STEADY;

/// What a person is told of a network that is no more.
const GONE: &str = "what it ran on has gone: something failed in it, or it was for one event only";

/// Something the lab can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// From a manifest to a curl; then the owner's cable is cut, and put back
    Quickstart,
    /// The controller is killed and started again: no address moves, and clients notice nothing
    Restart,
    /// A manifest is edited: it takes effect within a second, and no request is dropped
    Edit,
    /// One host, one process, loopback addresses: the quickstart as its README starts it
    Standalone,
    /// A real Kubernetes cluster, and Ferrogate in it as it is installed
    Kubernetes,
    /// What clients lose by everything that can happen to the owner of an address, measured
    L2,
    /// What clients behind a router lose by everything that can happen to a node that it reaches by BGP, measured
    Bgp,
}

impl Scenario {
    /// As it is written after `--scenario`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quickstart => "quickstart",
            Self::Restart => "restart",
            Self::Edit => "edit",
            Self::Standalone => "standalone",
            Self::Kubernetes => "kubernetes",
            Self::L2 => "l2",
            Self::Bgp => "bgp",
        }
    }
}

/// Where a scenario takes place.
pub enum World {
    /// The switch, the nodes and the client, with a process of the product for each role.
    Network(Topology, Product),
    /// One host with one process.
    Host(Host),
    /// A Kubernetes cluster.
    Cluster(Box<Cluster>),
    /// Networks for one event after the other.
    Layer2(Box<layer2::Lab>),
    /// The same behind a router.
    Bgp(Box<bgp::Lab>),
}

impl World {
    /// Makes the world of a scenario and starts what runs in it, with its files below `folder`.
    ///
    /// # Errors
    /// When the kernel refuses, or something does not start.
    pub fn new(scenario: Scenario, options: &Options, binary: &Path, folder: &Path) -> Result<Self> {
        let example = workspace::root().join("examples/quickstart");
        if scenario == Scenario::Standalone {
            return Ok(Self::Host(Host::new(binary, folder, &example)?));
        }
        if scenario == Scenario::Kubernetes {
            let lab = std::env::current_exe().context("looking for this program")?;
            let images = Images::default()
                .with("ferrogate", Image::new(binary, "ferrogate"))
                .with("backend", Image::new(&lab, "backend").args(&["backend"]));
            return Ok(Self::Cluster(Box::new(Cluster::start(folder, &lab, &images)?)));
        }
        if scenario == Scenario::L2 {
            return Ok(Self::Layer2(Box::new(layer2::Lab::new(binary, folder, options))));
        }
        if scenario == Scenario::Bgp {
            return Ok(Self::Bgp(Box::new(bgp::Lab::new(binary, folder, options))));
        }
        let topology = Topology::new(Plan::default())?;
        let mut product = Product::new(binary, folder, &example)?;
        product.start(&topology)?;
        Ok(Self::Network(topology, product))
    }

    /// Shows a scenario. It ends early when a step fails on which the rest stands.
    pub fn show(&mut self, scenario: Scenario, report: &mut Report) {
        let (topology, product) = match self {
            Self::Host(host) => return host.show(report),
            Self::Cluster(cluster) => return scenes::show(cluster, report),
            Self::Layer2(lab) => return lab.show(report),
            Self::Bgp(lab) => return lab.show(report),
            Self::Network(topology, product) => (topology, product),
        };
        let mut stage = Stage { topology, product, report };
        let Some(addresses) = stage.settle() else { return };
        let shown = match scenario {
            Scenario::Quickstart | Scenario::Standalone | Scenario::Kubernetes | Scenario::L2 | Scenario::Bgp => {
                stage.quickstart(&addresses)
            }
            Scenario::Restart => stage.restart(&addresses),
            Scenario::Edit => stage.edit(&addresses),
        };
        if shown.is_none() {
            stage.report.add(
                "the rest",
                Duration::ZERO,
                Err::<String, _>("not shown, because it stands on what failed"),
            );
        }
    }

    /// Every namespace a person may want a shell in.
    pub fn namespaces(&self) -> Vec<&Namespace> {
        match self {
            Self::Host(host) => vec![&host.namespace],
            Self::Cluster(cluster) => {
                let nodes = cluster.topology.nodes.iter().map(|node| &node.namespace);
                nodes.chain([&cluster.topology.client, &cluster.namespace]).collect()
            }
            Self::Network(topology, _) => topology.namespaces(),
            Self::Layer2(lab) => lab.stand().map(|stand| stand.topology.namespaces()).unwrap_or_default(),
            Self::Bgp(lab) => lab.stand().map(bgp::Stand::namespaces).unwrap_or_default(),
        }
    }

    /// What a person does to change something, in words.
    pub fn remote(&self) -> String {
        let (manifests, state) = match self {
            Self::Host(host) => (host.manifests(), host.state()),
            Self::Network(_, product) => (product.manifests(), product.state()),
            Self::Cluster(cluster) => return cluster.remote(),
            Self::Layer2(lab) => match lab.stand() {
                Some(stand) => (stand.product.manifests(), stand.product.state()),
                None => return GONE.to_owned(),
            },
            Self::Bgp(lab) => match lab.stand() {
                Some(stand) => (stand.product.manifests(), stand.product.state()),
                None => return GONE.to_owned(),
            },
        };
        format!("edit {} and watch {}", manifests.display(), state.display())
    }

    /// Every log of the product.
    pub fn logs(&self) -> Vec<PathBuf> {
        match self {
            Self::Host(host) => vec![host.log()],
            Self::Cluster(cluster) => cluster.all_logs(),
            Self::Network(_, product) => files(&product.logs()),
            Self::Layer2(lab) => lab.failed().map(files).unwrap_or_default(),
            Self::Bgp(lab) => lab.failed().map(files).unwrap_or_default(),
        }
    }
}

/// The files in a folder, by their names.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|file| file.path()).collect();
    files.sort();
    files
}

/// The addresses that the Services of the quickstart were given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Addresses {
    ingress: Vec<IpAddr>,
    echo: Vec<IpAddr>,
    private: Vec<IpAddr>,
}

impl Addresses {
    fn http(&self, v6: bool) -> Option<SocketAddr> {
        of_family(&self.ingress, v6).map(|address| SocketAddr::new(address, 80))
    }

    fn echo(&self, v6: bool) -> Option<SocketAddr> {
        of_family(&self.echo, v6).map(|address| SocketAddr::new(address, 7000))
    }

    fn targets(&self) -> Option<Targets> {
        let http = (self.http(false)?, "shop.example".to_owned());
        Some(Targets { udp: self.echo(false)?, tcp: self.echo(false)?, http })
    }
}

fn of_family(addresses: &[IpAddr], v6: bool) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv6() == v6)
}

struct Stage<'a> {
    topology: &'a Topology,
    product: &'a mut Product,
    report: &'a mut Report,
}

impl Stage<'_> {
    /// Everything runs and every Service has its addresses.
    fn settle(&mut self) -> Option<Addresses> {
        let Self { topology, product, report } = self;
        let mut found = None;
        report.check("each Service has its addresses", || {
            let addresses = until(LIMIT, || addresses(product))?;
            let text = format!(
                "ingress {}; echo {}; private {}",
                list(&addresses.ingress),
                list(&addresses.echo),
                list(&addresses.private)
            );
            found = Some(addresses);
            anyhow::Ok(text)
        });
        report.check("controller, speakers and proxies are ready", || product.wait_ready(topology)).then_some(())?;
        found
    }

    fn quickstart(&mut self, addresses: &Addresses) -> Option<()> {
        let owner = self.owner(addresses)?;
        self.client_reaches(addresses, owner)?;
        self.cut(addresses, owner)?;
        self.heal(addresses, owner)
    }

    /// One node owns the address, and the product says why.
    fn owner(&mut self, addresses: &Addresses) -> Option<usize> {
        let Self { topology, product, report } = self;
        let address = of_family(&addresses.ingress, false)?;
        let mut owner = None;
        report.check("one node owns the address, and explain says why", || {
            // Speakers that have just started may pass an address on once more: wait for the one that comes first.
            let (found, mac, text) = until(LIMIT, || {
                let (found, mac) = one_owner(topology, address)?;
                let name = &topology.nodes[found].name;
                let text = product.explain(topology, "default/ingress")?;
                ensure!(
                    text.contains(&format!("{name} announces it: first")),
                    "{name} answers, but explain says:\n{text}"
                );
                Ok((found, mac, text))
            })?;
            let node = &topology.nodes[found];
            owner = Some(found);
            anyhow::Ok(format!("{} ({mac}) owns {address}\n{}", node.name, indent(&text)))
        });
        owner
    }

    /// The client reaches everything, by both families.
    fn client_reaches(&mut self, addresses: &Addresses, owner: usize) -> Option<()> {
        let Self { topology, report, .. } = self;
        let client = &topology.client;
        let node = &topology.nodes[owner];
        let (http, http_v6) = (addresses.http(false)?, addresses.http(true)?);
        let echo = addresses.echo(false)?;

        report.check("GET / through the Ingress", || until(LIMIT, || page(topology, http, "/"))).then_some(())?;
        report.check("the ARP entry the client learned is the owner", || neighbour(topology, http.ip(), node));
        report.check("GET /cart goes to the other backend", || page(topology, http, "/cart"));
        report.check("an unknown host is not found", || {
            let (code, _) = client.run(|| probe::get(http, "unknown.example", "/"))?;
            ensure!(code == 404, "status {code}");
            anyhow::Ok("status 404".to_owned())
        });
        report.check("a TCP Service", || {
            until(LIMIT, || client.run(|| probe::say(&probe::connect(echo, None, ANSWER)?, "hello")))
        });
        report.check("a UDP Service", || until(LIMIT, || client.run(|| probe::datagram(echo, "hello", ANSWER))));
        report.check("GET / by IPv6", || until(LIMIT, || page(topology, http_v6, "/")));
        report.check("the NDP entry the client learned is the owner", || {
            // The elections of the two families agree, because both go by the first address.
            neighbour(topology, http_v6.ip(), node)
        });
        let private = SocketAddr::new(of_family(&addresses.private, false)?, 7001);
        report.check("source ranges let the client in", || {
            until(LIMIT, || client.run(|| probe::say(&probe::connect(private, Some(CLIENT.into()), ANSWER)?, "hello")))
        });
        report.check("source ranges keep a stranger out", || {
            let answer = client.run(|| probe::say(&probe::connect(private, Some(STRANGER.into()), ANSWER)?, "hello"));
            match answer {
                Ok(answer) => bail!("{STRANGER} was answered: {answer}"),
                Err(error) => Ok(format!("{STRANGER}: {error}")),
            }
        });
        Some(())
    }

    /// The owner's cable is cut while the client asks without a pause.
    fn cut(&mut self, addresses: &Addresses, owner: usize) -> Option<()> {
        let Self { topology, report, .. } = self;
        let node = &topology.nodes[owner];
        let address = of_family(&addresses.ingress, false)?;
        let targets = addresses.targets()?;
        let mut stream = None;
        report
            .check("a steady stream of questions is answered", || {
                stream = Some(steady(topology, &targets)?);
                anyhow::Ok(format!("{STEADY} datagrams in a row"))
            })
            .then_some(())?;
        let stream = stream?;

        let begun = Instant::now();
        let cut = topology.cut(node);
        report.check(&format!("the cable of {} is cut: another node owns the address", node.name), || {
            cut?;
            let (found, mac) = until(LIMIT, || {
                let mac = topology.client.links(async |links| links.neighbour(address).await)?.context("no entry")?;
                let others = topology.nodes.iter().position(|other| other.mac == mac && other.name != node.name);
                others.map(|other| (other, mac)).with_context(|| format!("the client still goes to {mac}"))
            })?;
            anyhow::Ok(format!("{}; the client's ARP entry says {mac}", topology.nodes[found].name))
        });
        let since = until(LIMIT, || steady_since(&stream));
        let took = since.as_ref().map_or_else(|_| begun.elapsed(), |since| since.duration_since(begun));
        report.add("every question is answered again", took, since.map(|_| "and stays so".to_owned()));
        let losses = stream.finish();
        report.set_failover(losses);
        let gap = losses.longest_gap_ms;
        let text = format!(
            "{} of {} datagrams, {} of {} HTTP requests, {} of {} TCP connections",
            losses.lost, losses.sent, losses.http_failed, losses.http_sent, losses.tcp_broken, losses.tcp_open
        );
        let verdict =
            if gap < LONGEST_GAP_MS { Ok(text) } else { Err(format!("longer than {LONGEST_GAP_MS} ms; {text}")) };
        report.add("what the client lost: the longest gap", Duration::from_secs_f64(gap / 1e3), verdict);
        Some(())
    }

    /// The cable is put back.
    fn heal(&mut self, addresses: &Addresses, cut: usize) -> Option<()> {
        let Self { topology, report, .. } = self;
        let begun = Instant::now();
        let healed = topology.heal(&topology.nodes[cut]);
        let mut since = begun;
        let owners = until(LIMIT, || {
            // Two may answer for a moment; it is over when the same one answers alone three times in a row.
            since = Instant::now();
            let ask =
                || addresses.ingress.iter().map(|address| one_owner(topology, *address)).collect::<Result<Vec<_>>>();
            let rounds = [ask()?, ask()?, ask()?];
            ensure!(rounds.iter().all(|round| *round == rounds[0]), "the owner changes: {rounds:?}");
            Ok(rounds[0].clone())
        });
        let seen = healed.and(owners).map(|owners| {
            let pairs = addresses.ingress.iter().zip(owners);
            let text = pairs.map(|(address, (owner, _))| format!("{} owns {address}", topology.nodes[owner].name));
            text.collect::<Vec<_>>().join(", ")
        });
        report.add("the cable is back: exactly one node owns each address", since.duration_since(begun), seen);
        let http = addresses.http(false)?;
        report.check("GET / through the Ingress again", || until(LIMIT, || page(topology, http, "/")));
        Some(())
    }

    fn restart(&mut self, addresses: &Addresses) -> Option<()> {
        self.owner(addresses)?;
        let Self { topology, product, report } = self;
        let targets = addresses.targets()?;
        let mut stream = None;
        report
            .check("a steady stream of questions is answered", || {
                stream = Some(steady(topology, &targets)?);
                anyhow::Ok(format!("{STEADY} datagrams in a row"))
            })
            .then_some(())?;
        report.check("the controller is killed and started again", || {
            product.kill("controller", 0)?;
            product.start_one(topology, "controller", 0)?;
            product.wait_ready(topology)
        });
        let stream = stream?;
        // As long again as it took to trust the stream before.
        let steady = until(LIMIT, || stream.steady_since(STEADY_AGAIN).context("answers are missing"));
        let losses = stream.finish();
        report.check("no address moved", || {
            let now = self::addresses(product)?;
            ensure!(now == *addresses, "{now:?} instead of {addresses:?}");
            anyhow::Ok(format!("ingress {}; echo {}", list(&now.ingress), list(&now.echo)))
        });
        report.check("clients noticed nothing", || steady.and_then(|_| losses.none()));
        report.set_failover(losses);
        Some(())
    }

    fn edit(&mut self, addresses: &Addresses) -> Option<()> {
        self.owner(addresses)?;
        let Self { topology, product, report } = self;
        let targets = addresses.targets()?;
        let http = addresses.http(false)?;
        let mut stream = None;
        report
            .check("a steady stream of questions is answered", || {
                stream = Some(steady(topology, &targets)?);
                anyhow::Ok(format!("{STEADY} datagrams in a row"))
            })
            .then_some(())?;
        let path = product.manifests().join("apps.yaml");
        let begun = Instant::now();
        let moved = edit_file(&path, "path: /cart", "path: /basket")
            .and_then(|()| until(Duration::from_secs(1), || page(topology, http, "/basket").and_then(from_cart)));
        report.add("an edited path is served within a second", begun.elapsed(), moved);
        let begun = Instant::now();
        let broken = edit_file(&path, "path: /basket", "path: [/basket")
            .and_then(|()| until(LIMIT, || product.explain(topology, "default/ingress")))
            .and_then(|_| page(topology, http, "/basket").and_then(from_cart));
        report.add("a file that is broken changes nothing that works", begun.elapsed(), broken);
        let begun = Instant::now();
        let repaired = edit_file(&path, "path: [/basket", "path: /cart")
            .and_then(|()| until(Duration::from_secs(1), || page(topology, http, "/cart").and_then(from_cart)));
        report.add("the repaired file is served within a second", begun.elapsed(), repaired);
        let losses = stream?.finish();
        report.check("no request was dropped", || losses.none());
        report.set_failover(losses);
        Some(())
    }
}

/// Starts a stream and waits until it flows.
fn steady(topology: &Topology, targets: &Targets) -> Result<Stream> {
    let stream = until(LIMIT, || Stream::start(&topology.client, targets)).context("starting the questions")?;
    until(LIMIT, || steady_since(&stream))?;
    Ok(stream)
}

fn steady_since(stream: &Stream) -> Result<Instant> {
    stream.steady_since(STEADY).context("answers are missing")
}

/// Replaces a file as editors do: by a rename.
fn edit_file(path: &Path, from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(path)?;
    ensure!(text.contains(from), "{} does not contain {from:?}", path.display());
    let new = path.with_extension("new");
    fs::write(&new, text.replace(from, to))?;
    fs::rename(&new, path).with_context(|| format!("replacing {}", path.display()))
}

fn page(topology: &Topology, http: SocketAddr, path: &str) -> Result<String> {
    let (code, body) = topology.client.run(|| probe::get(http, "shop.example", path))?;
    ensure!(code == 200, "status {code}: {}", body.trim_end());
    Ok(body.trim_end().to_owned())
}

/// The second pod of each node stands behind the cart.
fn from_cart(body: String) -> Result<String> {
    ensure!(body.split(' ').next().is_some_and(|pod| pod.ends_with("-2")), "the shop answered: {body}");
    Ok(body)
}

fn neighbour(topology: &Topology, address: IpAddr, owner: &Node) -> Result<String> {
    let found = topology.client.links(async |links| links.neighbour(address).await)?;
    let mac = found.with_context(|| format!("the client has no entry for {address}"))?;
    ensure!(mac == owner.mac, "{address} is at {mac}, but {} is {}", owner.name, owner.mac);
    Ok(format!("{address} is at {mac}, which is {}", owner.name))
}

/// What the state folder says the Services were given; fails until each has all it asked for.
fn addresses(product: &Product) -> Result<Addresses> {
    let of = |name| service_addresses(product, name);
    let found = Addresses { ingress: of("ingress")?, echo: of("echo")?, private: of("private")? };
    for (name, addresses, families) in
        [("ingress", &found.ingress, 2), ("echo", &found.echo, 2), ("private", &found.private, 1)]
    {
        ensure!(addresses.len() == families, "{name} has {} of {families} addresses: {addresses:?}", addresses.len());
    }
    Ok(found)
}

/// What the state folder says one Service was given.
///
/// # Errors
/// When it says nothing yet.
pub fn service_addresses(product: &Product, name: &str) -> Result<Vec<IpAddr>> {
    let path = product.state().join("services/default").join(format!("{name}.yaml"));
    let text = fs::read_to_string(&path).with_context(|| format!("{name} has no status yet"))?;
    let service: Value = serde_saphyr::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    let addresses = ingress.iter().filter_map(|entry| entry["ip"].as_str()?.parse().ok());
    Ok(addresses.collect())
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
