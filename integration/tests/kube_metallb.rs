//! MetalLB as it is installed, controller and speakers, announces the addresses of a cluster; Ferrogate comes beside it
//! as docs/migrate-from-metallb.md has it, and stays when MetalLB goes. A client on the link asks all the while, and
//! for no address does it ever hear of two stations.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ferrogate_core::speaker::elect;
use ferrogate_integration::{
    kube::{
        install::{MANIFESTS, NAMESPACE},
        process::tied,
        tools::{KUBERNETES, METALLB},
    },
    kubelet::image::{Image, Images},
    lab::{
        kubernetes::{
            Cluster,
            scenes::{name, node_of, page},
        },
        neighbours::{Claims, Witness, one_owner},
        probe,
        topology::NODES,
        wait::until,
    },
    netns::Namespace,
    workspace,
};
use ferrogate_wire::ethernet::Mac;

/// How long anything may take, on a machine that is busy otherwise too.
const LIMIT: Duration = Duration::from_secs(120);

/// Time between two requests of the client.
const RHYTHM: Duration = Duration::from_millis(20);

const METALLB_NAMESPACE: &str = "metallb-system";

/// What MetalLB is given to announce. None of it is written for Ferrogate.
const CONFIGURATION: &str = r#"
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: { name: lab, namespace: metallb-system }
spec: { addresses: [192.0.2.240-192.0.2.250, "2001:db8::f0-2001:db8::ff"] }
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: { name: lab, namespace: metallb-system }
spec: { ipAddressPools: [lab] }
"#;

/// The pods, one on each node.
const PODS: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      containers:
      - name: web
        image: registry.example/backend:v1
        args: ["--name=$(POD_NAME)", "--http=[::]:8080"]
        env: [{ name: POD_NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }]
        ports: [{ name: http, containerPort: 8080 }]
        readinessProbe: { httpGet: { port: http } }
"#;

/// Services of both traffic policies; those of two families have two addresses.
const SERVICES: [(&str, &str); 5] = [
    ("one", "ipFamilies: [IPv4]"),
    ("two", "ipFamilies: [IPv4]"),
    ("six", "ipFamilies: [IPv6]"),
    ("dual", "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]"),
    ("local", "externalTrafficPolicy: Local, ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]"),
];

fn services() -> String {
    let service = |(name, spec): &(&str, &str)| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec: {{ type: LoadBalancer, selector: {{ \
             app: web }}, ports: [{{ port: 80, targetPort: http }}], {spec} }}\n"
        )
    };
    SERVICES.iter().map(service).collect()
}

struct Stage {
    cluster: Cluster,
    _folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        // What has to be fetched is fetched before anything runs.
        KUBERNETES.build().unwrap();
        let metallb = METALLB.build().unwrap();
        let folder = tempfile::Builder::new().prefix("ferrogate-metallb-").tempdir().unwrap();
        let lab = env!("CARGO_BIN_EXE_lab");
        let program = |name: &str| Image::new(metallb.path(name).unwrap(), name);
        let images = Images::default()
            .with("ferrogate", Image::new(workspace::ship().unwrap(), "ferrogate"))
            .with("backend", Image::new(lab, "backend").args(&["backend"]))
            .with("controller", program("controller"))
            .with("speaker", program("speaker"));
        let cluster = Cluster::start(folder.path(), lab.as_ref(), &images).unwrap();
        Self { cluster, _folder: folder }
    }

    fn kubectl(&self, args: &[&str]) -> String {
        self.cluster.plane.kubectl(args.iter().copied()).unwrap()
    }

    /// Waits for pods to be ready; a failure shows what they printed last.
    fn pods(&self, namespace: &str, labels: &str, count: usize) {
        self.cluster.wait_pods(namespace, labels, count, LIMIT).unwrap_or_else(|error| {
            let tail = |path: &std::path::PathBuf| {
                let text = fs::read_to_string(path).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                format!("{}:\n{}", path.display(), lines[lines.len().saturating_sub(12)..].join("\n"))
            };
            let logs: Vec<_> = self.cluster.all_logs().iter().map(tail).collect();
            panic!("{error:#}\n{}", logs.join("\n"))
        });
    }

    /// MetalLB as its own manifest installs it, and what it is to announce.
    fn install_metallb(&self) {
        let source = METALLB.source("go.universe.tf/metallb").unwrap();
        let manifest = source.join("config/manifests/metallb-native.yaml").display().to_string();
        self.kubectl(&["apply", "--filename", &manifest]);
        self.pods(METALLB_NAMESPACE, "component=controller", 1);
        self.pods(METALLB_NAMESPACE, "component=speaker", usize::from(NODES));
        // Its webhook refuses everything until it has its certificate.
        until(LIMIT, || self.cluster.plane.apply(CONFIGURATION)).unwrap();
    }

    /// Every external address, by Service.
    fn addresses(&self) -> BTreeMap<&'static str, Vec<IpAddr>> {
        let of = |(name, _): (&'static str, &str)| {
            let addresses = self.cluster.wait_addresses("default", name, LIMIT).unwrap();
            (name, addresses)
        };
        SERVICES.into_iter().map(of).collect()
    }

    /// Which station answers for each address, once one does alone.
    fn owners(&self, addresses: &[IpAddr]) -> BTreeMap<IpAddr, Mac> {
        let owner = |address: &IpAddr| {
            let (_, mac) = until(LIMIT, || one_owner(&self.cluster.topology, *address)).unwrap();
            (*address, mac)
        };
        addresses.iter().map(owner).collect()
    }

    /// What `ferrogate migrate metallb` prints when all is well with it.
    fn migrate(&self, flags: &[&str]) -> String {
        let mut command = tied(workspace::ship().unwrap());
        command.args(["migrate", "metallb"]).args(flags).env("KUBECONFIG", self.cluster.plane.kubeconfig());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.cluster.plane.keeper().spawn(command).unwrap();
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        String::from_utf8_lossy(&stdout).into_owned()
    }

    /// Applies one of the manifests that Ferrogate is installed from, one word of it changed.
    fn apply(&self, manifest: &str, from: &str, to: &str) {
        let path = workspace::root().join(MANIFESTS).join(manifest);
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{manifest} has no {from}");
        self.cluster.plane.apply(&text.replace(from, to)).unwrap();
    }

    /// The node that MetalLB's published rule chooses among all.
    fn expected(&self, first: IpAddr) -> Mac {
        let nodes = &self.cluster.topology.nodes;
        nodes.iter().min_by_key(|node| elect::hash(&node.name.clone().into(), first)).unwrap().mac
    }
}

/// A client that asks every Service for a page, again and again.
struct Client {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<(usize, Vec<String>)>,
}

impl Client {
    fn start(namespace: &Namespace, addresses: &[IpAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ends, addresses) = (Arc::clone(&stop), addresses.to_vec());
        let asks = move || {
            let (mut asked, mut failed) = (0, Vec::new());
            while !ends.load(Ordering::Relaxed) {
                let next = Instant::now() + RHYTHM;
                for address in &addresses {
                    asked += 1;
                    failed.extend(ask(*address).err().map(|error| format!("{address}: {error:#}")));
                }
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            (asked, failed)
        };
        Self { stop, thread: namespace.spawn_thread(asks).unwrap() }
    }

    /// How often it has asked; every page has come.
    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let (asked, failed) = self.thread.join().unwrap();
        assert!(
            failed.is_empty(),
            "{} of {asked} requests failed: {:#?}",
            failed.len(),
            &failed[..failed.len().min(5)]
        );
        asked
    }
}

fn ask(address: IpAddr) -> Result<()> {
    let (code, body) = probe::get(SocketAddr::new(address, 80), "web.example", "/")?;
    ensure!(code == 200, "status {code}: {body}");
    Ok(())
}

/// Nobody but these ever said to have these addresses, and each was heard.
fn only(claims: &Claims, owners: &BTreeMap<IpAddr, Mac>) -> usize {
    let mut heard = 0;
    for (address, macs) in claims {
        let known: Vec<_> = macs.keys().collect();
        assert_eq!(known, [&owners[address]], "who said to have {address}: {macs:?}");
        heard += macs.values().sum::<usize>();
    }
    heard
}

#[test]
fn m_099_addresses_pass_from_metallbs_speakers_to_ours_and_no_client_hears_of_a_second_owner() {
    let stage = Stage::new();
    let cluster = &stage.cluster;
    until(LIMIT, || cluster.ready_nodes(usize::from(NODES))).unwrap();
    stage.install_metallb();
    cluster.plane.apply(&[PODS, &services()].concat()).unwrap();
    stage.pods("default", "app=web", usize::from(NODES));

    // Before: MetalLB announces, each address where its rule says.
    let services = stage.addresses();
    let all: Vec<IpAddr> = services.values().flatten().copied().collect();
    for addresses in services.values() {
        let expected = stage.expected(addresses[0]);
        let wanted: BTreeMap<_, _> = addresses.iter().map(|address| (*address, expected)).collect();
        let settled = || {
            let now = stage.owners(addresses);
            if now == wanted { Ok(()) } else { Err(now) }
        };
        until(LIMIT, settled).unwrap_or_else(|now| panic!("MetalLB announces {now:?} instead of {wanted:?}"));
    }
    let owners = stage.owners(&all);
    for address in &all {
        until(LIMIT, || page(cluster, SocketAddr::new(*address, 80), "/")).unwrap();
    }
    let witness = Witness::start(&cluster.topology.client, &all).unwrap();
    let client = Client::start(&cluster.topology.client, &all);

    // During. The objects but those by which speakers announce; MetalLB's controller goes, ours comes.
    cluster.plane.install_definitions().unwrap();
    stage.apply("1-namespace.yaml", "ferrogate-system", "ferrogate-system");
    stage.apply("2-rights.yaml", "ferrogate-system", "ferrogate-system");
    stage.apply("2-webhook.yaml", "ferrogate-system", "ferrogate-system");
    cluster.plane.apply(&fs::read_to_string(workspace::root().join("examples/metallb/rights.yaml")).unwrap()).unwrap();
    let printed = stage.migrate(&["--apply", "--without-l2-advertisements"]);
    assert!(printed.contains(&format!("{} keep their address, 0 get", SERVICES.len())), "{printed}");
    stage.kubectl(&["scale", "deployment", "controller", "--namespace", METALLB_NAMESPACE, "--replicas=0"]);
    stage.pods(METALLB_NAMESPACE, "component=controller", 0);
    stage.apply("3-controller.yaml", "args: [controller, ", "args: [controller, --metallb-compat, ");
    let ours = |component: &str| format!("app.kubernetes.io/name=ferrogate,app.kubernetes.io/component={component}");
    stage.pods(NAMESPACE, &ours("controller"), 2);

    // Speakers beside MetalLB's, first with nothing to announce, then all with the same.
    stage.apply("4-speaker.yaml", "args: [speaker, ", "args: [speaker, ");
    stage.pods(NAMESPACE, &ours("speaker"), usize::from(NODES));
    assert_eq!(announced_by_us(&stage), 0);
    let printed = stage.migrate(&["--apply"]);
    assert!(printed.contains("1 objects of Ferrogate's were applied"), "{printed}");
    until(LIMIT, || {
        let announced = announced_by_us(&stage);
        ensure!(announced == SERVICES.len(), "{announced} of {} Services are announced", SERVICES.len());
        Ok(())
    })
    .unwrap();
    assert_eq!(stage.owners(&all), owners);

    // After: MetalLB's speakers go, and nobody notices. With anything to announce each of them would hand it to another.
    stage.kubectl(&["delete", "l2advertisements.metallb.io", "--all", "--namespace", METALLB_NAMESPACE]);
    until(LIMIT, || {
        let said = stage.kubectl(&["get", "servicel2statuses.metallb.io", "--all-namespaces", "--output", "name"]);
        ensure!(said.trim().is_empty(), "MetalLB still announces: {said}");
        Ok(())
    })
    .unwrap();
    stage.kubectl(&["delete", "daemonset", "speaker", "--namespace", METALLB_NAMESPACE]);
    stage.pods(METALLB_NAMESPACE, "component=speaker", 0);
    assert_eq!(stage.owners(&all), owners);
    assert_eq!(stage.addresses(), services);
    let asked = client.finish();
    let heard = only(&witness.finish().unwrap(), &owners);
    println!("{asked} requests answered, {heard} answers and announcements, each from the one owner");

    // A witness hears it when there is something to hear: the speaker of an owner goes, and the next one in order comes.
    let (address, owner) = (all[0], owners[&all[0]]);
    let witness = Witness::start(&cluster.topology.client, &[address]).unwrap();
    let node = &cluster.topology.nodes.iter().find(|node| node.mac == owner).unwrap().name;
    let speakers = cluster.pods(NAMESPACE, &ours("speaker")).unwrap();
    let speaker = name(speakers.iter().find(|pod| node_of(pod) == node).unwrap());
    stage.kubectl(&["delete", "pod", speaker, "--namespace", NAMESPACE, "--wait=false"]);
    // The pod that follows takes the address back as soon as it runs: whoever asks for the owner may come too late.
    until(LIMIT, || {
        let speakers = cluster.pods(NAMESPACE, &ours("speaker"))?;
        ensure!(speakers.iter().all(|pod| name(pod) != speaker), "{speaker} is still there");
        Ok(())
    })
    .unwrap();
    let claims = witness.finish().unwrap();
    assert!(claims[&address].contains_key(&owner) && claims[&address].len() > 1, "{claims:?}");
    assert_eq!(cluster.plane.forbidden(NAMESPACE).unwrap(), []);
}

/// How many Services our speakers say that they announce.
fn announced_by_us(stage: &Stage) -> usize {
    let listed =
        stage.kubectl(&["get", "servicel2statuses.ferrogate.io", "--namespace", NAMESPACE, "--output", "name"]);
    listed.lines().count()
}
