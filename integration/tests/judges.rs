//! What users have at hand judges the owner of an address on a real link: `arping` and `ndisc6`, the kernel of a client, a
//! switch that forgets, and a router with clients behind it.
//!
//! Three nodes run the product as it ships. They gossip on a network of their own and mostly do not watch each other by BFD,
//! so that nothing but what is under test is seen on the clients' link.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ferrogate_integration::{
    lab::{
        neighbours::one_owner,
        product::Product,
        topology::{CLIENT, CLIENT_V6, Plan, Topology},
        wait::until,
    },
    netns::Namespace,
    router::{Config, Router, Vendor},
    workspace,
};
use ferrogate_wire::ethernet::Mac;

/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(30);

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x200);
const BOTH: [IpAddr; 2] = [IpAddr::V4(VIP), IpAddr::V6(VIP6)];
/// Of a second Service.
const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 201);
const PORT: u16 = 80;

/// The router on the clients' link.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x254);

/// Sessions by which the node whose metric it is watches, or is watched.
const WATCHED: &str = "ferrogate_speaker_bfd_sessions{state=\"Up\"}";

/// Taken in turns: they share the processor with routers and three nodes each.
static TURN: Mutex<()> = Mutex::new(());

/// Nodes, a client, and an application that runs where the client is.
struct Stand {
    topology: Topology,
    product: Product,
    /// Of the application.
    port: u16,
    folder: tempfile::TempDir,
}

impl Stand {
    fn new() -> Self {
        Self::with_flags(&["--bfd-profile=off"])
    }

    fn with_flags(flags: &[&str]) -> Self {
        Self::of(flags, None, |_| {})
    }

    /// With the number of the node that is to own the addresses, and something done to the network before anything runs on it.
    fn of(flags: &[&str], owner: Option<u8>, broken: impl FnOnce(&Topology)) -> Self {
        let topology = Topology::without_pods(Plan { management: true, ..Plan::default() }).unwrap();
        broken(&topology);
        let listener = topology.client.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    // A client that went away is no failure of a test.
                    let _ = stream.write_all(b"here\n");
                    let _ = io::copy(&mut stream.try_clone()?, &mut stream);
                    io::Result::Ok(())
                });
            }
        });
        let folder = tempfile::Builder::new().prefix("ferrogate-judges-").tempdir().unwrap();
        let product = Product::without_manifests(&workspace::ship().unwrap(), folder.path()).unwrap();
        let product = product.with_speaker_flags(flags);
        product.write("all.yaml", &manifests(topology.plan(), port, owner)).unwrap();
        let mut stand = Self { topology, product, port, folder };
        stand.product.start(&stand.topology).unwrap();
        stand.product.wait_ready(&stand.topology).unwrap();
        stand.owner();
        stand
    }

    /// The node that answers for both addresses, once one does.
    fn owner(&self) -> usize {
        let owner = || {
            let [(node, _), (of_six, _)] =
                BOTH.map(|vip| one_owner(&self.topology, vip)).into_iter().collect::<Result<Vec<_>>>()?[..]
            else {
                anyhow::bail!("two addresses have two answers");
            };
            ensure!(node == of_six, "nodes {node} and {of_six} own one each");
            Ok(node)
        };
        until(LIMIT, owner).unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()))
    }

    fn mac(&self, node: usize) -> Mac {
        self.topology.nodes[node].mac
    }

    /// Pulls the cable of the owner. Returns who owns both addresses then.
    fn cut_owner(&self) -> usize {
        let owner = self.owner();
        self.topology.cut(&self.topology.nodes[owner]).unwrap();
        let next = self.owner();
        assert_ne!(owner, next);
        next
    }

    fn logs(&self) -> String {
        let entries = fs::read_dir(self.product.logs()).unwrap().flatten();
        let speakers = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("speaker"));
        speakers.map(|entry| fs::read_to_string(entry.path()).unwrap_or_default()).collect()
    }
}

/// The node that is to own the addresses goes by its number.
fn manifests(plan: Plan, port: u16, owner: Option<u8>) -> String {
    let mut text = format!(
        "
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: {{ name: main }}
spec: {{ addresses: ['{VIP}-{VIP}', '{VIP6}-{VIP6}'] }}
---
apiVersion: ferrogate.io/v1beta1
kind: L2Advertisement
metadata: {{ name: main }}
spec: {{ interfaces: [eth0] }}
{}",
        service("web", &[CLIENT.into(), CLIENT_V6.into()], port, owner)
    );
    for node in 1..=plan.nodes {
        let address = plan.node_address(node);
        text += &format!(
            "---
apiVersion: v1
kind: Node
metadata: {{ name: node-{node} }}
status: {{ addresses: [{{ type: InternalIP, address: {address} }}] }}
"
        );
    }
    text
}

/// A Service of the families that its endpoints have.
fn service(name: &str, endpoints: &[IpAddr], port: u16, owner: Option<u8>) -> String {
    let family = |address: &IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let families: Vec<&str> = endpoints.iter().map(family).collect();
    let policy = if families.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    let wish =
        owner.map(|node| format!(", annotations: {{ ferrogate.io/announce-from: node-{node} }}")).unwrap_or_default();
    let mut text = format!(
        "---
apiVersion: v1
kind: Service
metadata: {{ name: {name}{wish} }}
spec:
  type: LoadBalancer
  ipFamilyPolicy: {policy}
  ipFamilies: [{}]
  ports: [{{ name: tcp, port: {PORT} }}]
",
        families.join(", ")
    );
    for address in endpoints {
        let family = family(address);
        text += &format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: {name}-{}, labels: {{ kubernetes.io/service-name: {name} }} }}
addressType: {family}
ports: [{{ name: tcp, port: {port} }}]
endpoints: [{{ addresses: ['{address}'] }}]
",
            family.to_lowercase()
        );
    }
    text
}

/// A second Service with a pool of its own.
fn other(port: u16, owner: u8) -> String {
    format!(
        "
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: {{ name: other }}
spec: {{ addresses: ['{OTHER_VIP}-{OTHER_VIP}'] }}
{}",
        service("other", &[CLIENT.into()], port, Some(owner))
    )
}

/// Runs a program in a namespace to its end.
fn run(namespace: &Namespace, words: &str) -> Output {
    let mut words = words.split_whitespace();
    let program = words.next().unwrap();
    let output = namespace.run(|| Command::new(program).args(words).stdin(Stdio::null()).output());
    output.unwrap_or_else(|error| {
        panic!("{program} cannot be run ({error}); `cargo verify -- --only net` installs what is missing")
    })
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What `ip` or `bridge` says, which must not fail.
fn tell(namespace: &Namespace, words: &str) -> String {
    let output = run(namespace, words);
    assert!(output.status.success(), "{words}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Every hardware address in a text.
fn macs(text: &str) -> BTreeSet<Mac> {
    let words = text.split(|c: char| !(c.is_ascii_hexdigit() || c == ':'));
    let mac = |word: &str| {
        let bytes: Vec<u8> = word.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>().ok()?;
        // As in fe80::1 there may be colons and digits in what is none.
        let has_full_bytes = word.len() == 17 || word.split(':').all(|byte| !byte.is_empty());
        has_full_bytes.then_some(Mac(bytes.try_into().ok()?))
    };
    words.filter_map(mac).collect()
}

/// A fresh connection to the Service, which must be answered.
fn connect(from: &Namespace, vip: IpAddr) -> Result<TcpStream> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(vip, PORT), Duration::from_millis(500))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        expect(&mut stream, b"here\n")?;
        Ok(stream)
    })
}

fn expect(stream: &mut TcpStream, wanted: &[u8; 5]) -> Result<()> {
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).context("no answer")?;
    ensure!(answer == *wanted, "{answer:?}");
    Ok(())
}

/// A program that prints for as long as it runs.
struct Monitor {
    child: Child,
    printed: Arc<Mutex<String>>,
}

impl Monitor {
    fn start(namespace: &Namespace, words: &[&str]) -> Self {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = namespace.spawn(&mut command).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let printed = Arc::new(Mutex::new(String::new()));
        let into = Arc::clone(&printed);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *into.lock().unwrap_or_else(PoisonError::into_inner) += &format!("{line}\n");
            }
        });
        Self { child, printed }
    }

    fn printed(&self) -> String {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn n_100_arping_and_ndisc6_see_one_owner_by_one_hardware_address() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stand = Stand::new();
    let client = &stand.topology.client;

    let owners: [fn(&Stand) -> usize; 2] = [Stand::owner, Stand::cut_owner];
    for owner in owners {
        let owner = owner(&stand);
        // Broadcast each time, so that whoever would answer is asked each time.
        let arping = run(client, &format!("arping -b -c 3 -I eth0 {VIP}"));
        let said = text(&arping);
        assert!(arping.status.success() && said.contains("Received 3 response(s)"), "{said}\n{}", stand.logs());
        let answers: String = said.lines().filter(|line| line.contains("reply from")).collect();
        assert_eq!(macs(&answers), [stand.mac(owner)].into(), "{said}");

        let ndisc6 = run(client, &format!("ndisc6 -m -n -r 3 -w 500 {VIP6} eth0"));
        let said = text(&ndisc6);
        let targets: Vec<_> = said.lines().filter(|line| line.contains("Target link-layer address")).collect();
        assert!(ndisc6.status.success() && !targets.is_empty(), "{said}");
        assert_eq!(macs(&targets.concat()), [stand.mac(owner)].into(), "{said}");
    }
}

#[test]
fn n_101_whoever_checks_for_duplicates_finds_that_an_owned_address_is_taken() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stand = Stand::new();
    let client = &stand.topology.client;

    let taken = run(client, &format!("arping -D -c 3 -w 5 -I eth0 {VIP}"));
    assert_eq!(taken.status.code(), Some(1), "{}", text(&taken));
    let free = run(client, "arping -D -c 2 -w 5 -I eth0 192.0.2.222");
    assert_eq!(free.status.code(), Some(0), "{}", text(&free));

    // The kernel's own check, for an address that is owned and for one that nobody has.
    for (key, value) in [("accept_dad", "1"), ("dad_transmits", "2")] {
        client.set(&format!("ipv6/conf/eth0/{key}"), value).unwrap();
    }
    let free: Ipv6Addr = "2001:db8::222".parse().unwrap();
    for (address, wanted) in [(VIP6, "dadfailed"), (free, "valid_lft")] {
        tell(client, &format!("ip -6 address add {address}/128 dev eth0"));
        let checked = until(LIMIT, || {
            let shown = tell(client, &format!("ip -6 address show dev eth0 to {address}"));
            let is_done = shown.contains("dadfailed") || !shown.contains("tentative");
            if is_done && !shown.is_empty() { Ok(shown) } else { Err(shown) }
        });
        let shown = checked.unwrap_or_else(|shown| panic!("{address} is still checked: {shown}"));
        assert!(shown.contains(wanted), "{address}: {shown}");
        assert_eq!(shown.contains("dadfailed"), address == VIP6, "{shown}");
    }
}

#[test]
fn n_104_ip_monitor_on_a_client_sees_its_entries_move_to_the_next_owner_and_nowhere_else() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stand = Stand::new();
    let client = &stand.topology.client;
    let owner = stand.owner();
    let monitor = Monitor::start(client, &["ip", "monitor", "neigh", "dev", "eth0"]);
    BOTH.iter().for_each(|vip| drop(until(LIMIT, || connect(client, *vip)).unwrap()));

    let next = stand.cut_owner();

    let about = |vip: IpAddr| -> BTreeSet<Mac> {
        let printed = monitor.printed();
        let lines = printed.lines().filter(|line| line.split_whitespace().any(|word| word == vip.to_string()));
        lines.flat_map(|line| line.split_once("lladdr ").map(|(_, rest)| macs(rest))).flatten().collect()
    };
    for vip in BOTH {
        let moved = until(LIMIT, || {
            let entry = tell(client, &format!("ip neigh show to {vip} dev eth0"));
            ensure!(macs(entry.split_once("lladdr ").context("no address")?.1) == [stand.mac(next)].into(), "{entry}");
            connect(client, vip).map(drop)
        });
        moved.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", monitor.printed(), stand.logs()));
        let seen = about(vip);
        assert!(seen.contains(&stand.mac(next)), "{}", monitor.printed());
        assert!(seen.is_subset(&[stand.mac(owner), stand.mac(next)].into()), "{}", monitor.printed());
    }
}

#[test]
fn n_104_a_switch_that_has_forgotten_the_next_owner_learns_where_it_is_from_its_announcements() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stand = Stand::new();
    let switch = stand.topology.switch();
    // In hundredths of a second: whoever is silent for longer is forgotten.
    tell(switch, "ip link set br0 type bridge ageing_time 100");
    let port = |node: usize| -> Option<String> {
        let learned = tell(switch, "bridge fdb show br br0");
        let mac = stand.mac(node).to_string();
        let line = learned.lines().find(|line| line.starts_with(&mac) && !line.contains("permanent"))?.to_owned();
        line.split_whitespace().skip_while(|word| *word != "dev").nth(1).map(str::to_owned)
    };
    let owner = stand.owner();
    let others = (0..stand.topology.nodes.len()).filter(|node| *node != owner);
    for node in others {
        let forgotten = until(LIMIT, || port(node).map_or(Ok(()), Err));
        forgotten.unwrap_or_else(|at| panic!("node {node} says something all the time, at {at}"));
    }

    // Nobody asks: what the switch learns it learns from what the next owner says by itself.
    stand.topology.cut(&stand.topology.nodes[owner]).unwrap();
    let next = until(LIMIT, || {
        let owners = (0..stand.topology.nodes.len()).filter(|node| *node != owner);
        let owners = owners.filter(|&node| {
            let owned = stand.product.speaker_metric(&stand.topology, node, "ferrogate_speaker_owned_addresses");
            owned.is_ok_and(|owned| owned == 2.0)
        });
        owners.collect::<Vec<_>>().first().copied().context("nobody yet")
    })
    .unwrap();
    let learned = until(LIMIT, || {
        let port = port(next).context("nothing is known of it")?;
        ensure!(port == stand.topology.nodes[next].name, "it is at {port}");
        Ok(())
    });
    learned.unwrap_or_else(|error| panic!("{error:#}\n{}", stand.logs()));
}

#[test]
fn n_104_the_entries_of_a_router_follow_so_that_clients_behind_it_go_on() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stand = Stand::new();
    let (router, behind) = (Namespace::new("router").unwrap(), Namespace::new("behind").unwrap());
    stand.topology.attach(&router, [ROUTER.into(), ROUTER6.into()]).unwrap();
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        router.set(key, "1").unwrap();
    }
    let (ours, theirs) = (Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 100));
    let (ours6, theirs6): (Ipv6Addr, Ipv6Addr) = ("2001:db8:1::1".parse().unwrap(), "2001:db8:1::100".parse().unwrap());
    router.links(async |links| links.add_pair("inside", "eth0", &behind).await).unwrap();
    router
        .links(async |links| {
            links.add_address("inside", ours.into(), 24).await?;
            links.add_address("inside", ours6.into(), 64).await
        })
        .unwrap();
    behind
        .links(async |links| {
            links.add_address("eth0", theirs.into(), 24).await?;
            links.add_address("eth0", theirs6.into(), 64).await?;
            links.up("eth0").await?;
            links.add_route(Ipv4Addr::UNSPECIFIED.into(), 0, ours.into()).await?;
            links.add_route(Ipv6Addr::UNSPECIFIED.into(), 0, ours6.into()).await
        })
        .unwrap();
    for node in &stand.topology.nodes {
        let ways = async |links: &ferrogate_integration::netns::Links| {
            links.add_route(Ipv4Addr::new(198, 51, 100, 0).into(), 24, ROUTER.into()).await?;
            links.add_route("2001:db8:1::".parse()?, 64, ROUTER6.into()).await
        };
        node.namespace.links(ways).unwrap();
    }
    let config = Config { asn: 64512, identifier: ROUTER, neighbors: Vec::new(), extra: String::new() };
    let frr = Router::start(Vendor::Frr, &router, &config).unwrap();
    for vip in BOTH {
        until(LIMIT, || connect(&behind, vip)).map(drop).unwrap_or_else(|error| panic!("{error:#}\n{}", stand.logs()));
    }
    let entry =
        |vip: IpAddr| macs(tell(&router, &format!("ip neigh show to {vip} dev eth0")).split("lladdr ").last().unwrap());
    let owner = stand.owner();
    assert_eq!(BOTH.map(entry), [[stand.mac(owner)].into(), [stand.mac(owner)].into()]);

    stand.topology.cut(&stand.topology.nodes[owner]).unwrap();

    for vip in BOTH {
        let follows = until(LIMIT, || {
            let at = entry(vip);
            ensure!(!at.contains(&stand.mac(owner)), "{vip} is at {at:?}, and that is cut off");
            connect(&behind, vip).map(drop)
        });
        follows.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", stand.logs(), frr.log()));
    }
    let next = stand.owner();
    assert_eq!(BOTH.map(entry), [[stand.mac(next)].into(), [stand.mac(next)].into()]);
}

#[test]
fn n_110_a_neighbour_that_claims_an_address_is_named_in_an_event_by_its_hardware_address() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stand = Stand::new();
    let client = &stand.topology.client;
    let shown = tell(client, "ip link show dev eth0");
    let mac = macs(shown.split_once("link/ether ").unwrap().1.split_whitespace().next().unwrap());
    let mac = mac.first().unwrap().to_string();
    let owner = stand.owner();
    let conflicts =
        || stand.product.speaker_metric(&stand.topology, owner, "ferrogate_speaker_conflicts_total").unwrap();
    let before = conflicts();

    // Somebody gives it to a device of theirs, which says so.
    tell(client, &format!("ip address add {VIP}/32 dev eth0"));
    let event = until(LIMIT, || {
        run(client, &format!("arping -A -c 1 -I eth0 {VIP}"));
        let node = &stand.topology.nodes[owner].name;
        let events = fs::read_to_string(stand.product.state().join(format!("events/speaker-{node}.yaml")))?;
        ensure!(events.contains("addressConflict") && events.contains(&mac), "{events}");
        Ok(events)
    });
    let event = event.unwrap_or_else(|error| panic!("{error:#}\n{}", stand.logs()));
    assert!(event.contains(&VIP.to_string()), "{event}");
    assert!(conflicts() > before);
    let (still, _) = until(LIMIT, || one_owner(&stand.topology, VIP6.into())).unwrap();
    assert_eq!(still, owner, "it does not give way to a stranger");
    drop(stand.folder);
}

#[test]
fn n_079_a_connection_under_way_goes_on_when_its_address_moves_and_new_ones_stay_with_the_new_owner() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    connections_go_on(move_from);
}

/// Waits until no other node has the addresses on its host. One that has had them, as it began before it heard the others,
/// keeps them there for a while, and would pass on for a moment only.
fn only_the_owner_has_them(stand: &Stand, owner: usize) {
    let others = || stand.topology.nodes.iter().enumerate().filter(|(node, _)| *node != owner);
    let has = |namespace, vip| tell(namespace, &format!("ip route get {vip}")).starts_with("local ");
    until(LIMIT, || {
        let holder = others().find(|(_, node)| BOTH.into_iter().any(|vip| has(&node.namespace, vip)));
        holder.map_or(Ok(()), |(_, node)| Err(format!("{} has the addresses on its host", node.name)))
    })
    .unwrap();
}

/// Asks for another node. Returns which, once it owns them.
fn move_from(stand: &mut Stand, before: usize) -> usize {
    let after = (0..stand.topology.nodes.len()).find(|node| *node != before).unwrap();
    let number = stand.topology.nodes[after].number;
    stand.product.write("all.yaml", &manifests(stand.topology.plan(), stand.port, Some(number))).unwrap();
    until(LIMIT, || if stand.owner() == after { Ok(()) } else { Err("the addresses have not moved") }).unwrap();
    after
}

#[test]
fn n_079_what_is_passed_on_goes_on_while_another_address_moves() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stand = Stand::with_flags(&["--hand-over-grace=15s"]);
    let before = stand.owner();
    let to = |stand: &Stand, node: usize| {
        stand.product.write("other.yaml", &other(stand.port, stand.topology.nodes[node].number)).unwrap();
        let is_there = || {
            let (owner, _) = one_owner(&stand.topology, OTHER_VIP.into())?;
            ensure!(owner == node, "node {owner} has it");
            Ok(())
        };
        until(LIMIT, is_there).unwrap_or_else(|error| panic!("{error:#}\n{}", stand.logs()));
    };
    to(&stand, before);
    only_the_owner_has_them(&stand, before);
    let mut old = until(LIMIT, || connect(&stand.topology.client, VIP.into())).unwrap();
    old.write_all(b"begun").unwrap();
    expect(&mut old, b"begun").unwrap();
    // In its first second a speaker may be taking back what it had before, and passes on for a moment only.
    thread::sleep(Duration::from_millis(1500));
    let mut goes_on = |stand: &Stand, after: usize, times: usize| {
        for _ in 0..times {
            old.write_all(b"still").unwrap();
            expect(&mut old, b"still").unwrap_or_else(|error| panic!("{error:#}\n{}", stand.logs()));
        }
        passed_on(&stand.topology.nodes[after].namespace, "ip")
    };

    let after = move_from(&mut stand, before);
    let first = goes_on(&stand, after, 20);
    to(&stand, after);
    let table = || tell(&stand.topology.nodes[after].namespace, "nft list table ip ferrogate");
    let has_both = || if table().contains(&OTHER_VIP.to_string()) { Ok(()) } else { Err(table()) };
    until(LIMIT, has_both).unwrap();

    // A rule that had been made anew would have begun to count anew.
    let second = goes_on(&stand, after, 1);
    assert!(first >= 20 && second > first, "{first}, then {second}");

    // What began first ends first, and the other stays.
    let has_one = || {
        let table = table();
        let [first, second] = [VIP, OTHER_VIP].map(|vip| table.contains(&format!("{vip} :")));
        if !first && second { Ok(()) } else { Err(table) }
    };
    until(LIMIT, has_one).unwrap();
}

/// How many packets the rule of a family has passed on.
fn passed_on(namespace: &Namespace, family: &str) -> u64 {
    let table = tell(namespace, &format!("nft list table {family} ferrogate"));
    let (_, counted) = table.split_once("counter packets ").unwrap_or_else(|| panic!("{table}"));
    counted.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn n_079_a_connection_under_way_goes_on_when_only_the_speaker_of_its_owner_dies() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    connections_go_on(|stand, before| {
        stand.product.kill("speaker", before).unwrap();
        let moved = || Some(stand.owner()).filter(|owner| *owner != before).context("the addresses have not moved");
        until(LIMIT, moved).unwrap()
    });
}

/// It has a carrier and gossips by another network, and nobody has ever seen its interface by BFD.
#[test]
fn whose_interface_was_dead_before_anybody_looked_owns_nothing_until_it_is_seen() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let wished = 0;

    let stand = Stand::of(&[], Some(1), |topology| topology.silence(&topology.nodes[wished]).unwrap());
    let owner = stand.owner();
    assert_ne!(owner, wished);
    only_the_owner_has_them(&stand, owner);
    stand.topology.join(&stand.topology.nodes[wished]).unwrap();

    let is_back = || Some(stand.owner()).filter(|owner| *owner == wished).context("its addresses are elsewhere");
    until(LIMIT, is_back).unwrap_or_else(|error| panic!("{error:#}\n{}", stand.logs()));
}

#[test]
fn n_079_connections_that_began_at_an_owner_that_is_cut_off_end_and_are_counted() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // Without a carrier an owner says so by the other network; with one, its interface is found dead.
    connections_end(|topology, owner| topology.cut(&topology.nodes[owner]), "NotOnLink");
    connections_end(|topology, owner| topology.silence(&topology.nodes[owner]), "NoAnswer");
}

/// Has the owner cut off by `off`, for which nothing is passed on.
fn connections_end(off: impl FnOnce(&Topology, usize) -> Result<()>, reason: &str) {
    let stand = Stand::with_flags(&[]);
    let before = stand.owner();
    let old = BOTH.map(|vip| until(LIMIT, || connect(&stand.topology.client, vip)).unwrap());
    // A session comes up within a second or two.
    let is_watched = || match stand.product.speaker_metric(&stand.topology, before, WATCHED) {
        Ok(1.0..) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    until(LIMIT, is_watched).unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));

    off(&stand.topology, before).unwrap();

    let moved = || Some(stand.owner()).filter(|owner| *owner != before).context("the addresses have not moved");
    let after = until(LIMIT, moved).unwrap();
    let metric = format!("ferrogate_speaker_not_passed_on_total{{reason=\"{reason}\"}}");
    let counted = || match stand.product.speaker_metric(&stand.topology, after, &metric) {
        Ok(2.0) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    until(LIMIT, counted).unwrap_or_else(|error| panic!("{reason}: {error}\n{}", stand.logs()));
    // A thread of its own does that, and nobody waits for it for long.
    let tables =
        || Some(tell(&stand.topology.nodes[after].namespace, "nft list tables")).filter(|text| !text.is_empty());
    until(LIMIT, || tables().map_or(Ok(()), Err)).unwrap_or_else(|tables| panic!("{reason}: still there: {tables}"));
    for mut stream in old {
        stream.write_all(b"still").unwrap();
        let error = stream.read(&mut [0; 5]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{reason}: {stream:?}");
    }
}

/// Has the addresses go elsewhere by `away`, which is told who owns them and says who does then.
fn connections_go_on(away: impl FnOnce(&mut Stand, usize) -> usize) {
    let mut stand = Stand::with_flags(&["--hand-over-grace=15s"]);
    let before = stand.owner();
    only_the_owner_has_them(&stand, before);
    let mut old = BOTH.map(|vip| until(LIMIT, || connect(&stand.topology.client, vip)).unwrap());
    // In its first second a speaker may be taking back what it had before, and passes on for a moment only.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        for stream in &mut old {
            stream.write_all(b"begun").unwrap();
            expect(stream, b"begun").unwrap();
        }
    }

    let after = away(&mut stand, before);

    let client = &stand.topology.client;
    let next = &stand.topology.nodes[after];
    let mut new = BOTH.map(|vip| connect(client, vip).unwrap());
    for stream in old.iter_mut().chain(&mut new) {
        stream.write_all(b"still").unwrap();
        expect(stream, b"still").unwrap_or_else(|error| panic!("{stream:?}: {error:#}\n{}", stand.logs()));
    }
    for family in ["ip", "ip6"] {
        assert!(passed_on(&next.namespace, family) > 0, "nothing was passed on by {family}");
        // Only what began before the move is, and only by who owns the address now.
        let former = &stand.topology.nodes[before].namespace;
        assert!(!run(former, &format!("nft list table {family} ferrogate")).status.success());
    }
    let passing_on = || stand.product.speaker_metric(&stand.topology, after, "ferrogate_speaker_passing_on").unwrap();
    assert_eq!(passing_on(), 2.0);

    // Once the former owner has had its time nothing is left of it.
    until(LIMIT, || if passing_on() == 0.0 { Ok(()) } else { Err("still passing on") }).unwrap();
    assert_eq!(tell(&next.namespace, "nft list tables"), "");
    for stream in &mut new {
        stream.write_all(b"again").unwrap();
        expect(stream, b"again").unwrap();
    }
}
