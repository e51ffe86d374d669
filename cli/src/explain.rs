//! `ferrogate explain`: the chain from an external address to its endpoints, and the reason at every link.
//!
//! It decides nothing: it asks the functions in `core` that decided, on the same facts, and prints their answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    net::IpAddr,
    num::NonZeroU32,
    process::ExitCode,
    sync::Arc,
};

use anyhow::bail;
use clap::{Args, Subcommand};
use ferrogate_core::{
    controller::{self, Verdict},
    model::{NodeName, Prefix, ServiceKey, peer::BgpPeer, service::Service},
    proxy::explain::{Carried, Hop, Part, chain},
    snapshot::Snapshot,
    speaker::{
        DataPath,
        advertise::{Advertised, Terms, peering},
        announce::{Liveness, Policy, Silence, Standing, Standings, ranking},
        bgp,
        elect::Rank,
        health::Refusals,
        is_leaving,
    },
};
use serde::Serialize;

use crate::{Output, source::SourceArgs};

/// Flags of `ferrogate explain`.
#[derive(Args)]
pub struct ExplainArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A Service: its address, the node that owns it and why, and the endpoints behind
    Service {
        /// NAMESPACE/NAME; without a slash the namespace is `default`
        name: String,
        #[command(flatten)]
        source: SourceArgs,
        #[command(flatten)]
        policy: PolicyArgs,
        /// Shape of the answer
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
}

/// What speakers were told that takes part in elections.
#[derive(Args)]
pub struct PolicyArgs {
    /// Decide as speakers do that were started with the same flag
    #[arg(long)]
    ignore_exclude_lb: bool,
    /// Decide as speakers do that were started with the same flag
    #[arg(long)]
    yield_on_cordon: bool,
}

impl PolicyArgs {
    /// What the speakers of a source go by.
    pub fn policy(&self, source: &SourceArgs) -> Policy {
        Policy {
            data_path: if source.manifests.is_some() { DataPath::Proxy } else { DataPath::KubeProxy },
            ignore_exclude_label: self.ignore_exclude_lb,
            yield_on_cordon: self.yield_on_cordon,
        }
    }
}

/// Prints the explanation; the exit code tells whether the Service exists.
pub async fn show(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let What::Service { name, source, policy, output } = &args.what;
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let key = ServiceKey::new(namespace, name);
    let snapshot = facts(source, &key).await?;
    let Some(explanation) = explain(&snapshot, &key, policy.policy(source)) else {
        bail!("there is no Service {key}; `ferrogate status` lists those there are");
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
        Output::Table => print!("{}", text(&explanation)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The facts as the speaker that announces the Service sees them: only it can say whom it has lost sight of, and only
/// in a folder it does.
async fn facts(source: &SourceArgs, key: &ServiceKey) -> anyhow::Result<Arc<Snapshot>> {
    let snapshot = source.read(None).await?;
    match owners(&snapshot, key).pop_first() {
        Some(owner) if source.manifests.is_some() => source.read(Some(owner)).await,
        _ => Ok(snapshot),
    }
}

/// The nodes that say they announce a Service.
pub fn owners(snapshot: &Snapshot, key: &ServiceKey) -> BTreeSet<NodeName> {
    snapshot.announced_by.get(key).map(|nodes| nodes.keys().cloned().collect()).unwrap_or_default()
}

fn standing(node: &NodeName, liveness: Liveness) -> (NodeName, Standing) {
    let standing = Standing {
        liveness,
        proxy_ready: false,
        refusals: Refusals::default(),
        links: None,
        dead_links: Default::default(),
    };
    (node.clone(), standing)
}

/// What is known of nodes beside their objects: whom the speaker whose view this is has lost sight of, and who says in its
/// Lease that it is stopping. Who is dead a Lease tells only to those who watch it.
pub fn standings(snapshot: &Snapshot) -> Standings {
    let lost = snapshot.unreachable.iter().map(|node| standing(node, Liveness::Lost));
    let leaving = snapshot.leases.iter().filter(|(node, lease)| is_leaving(node, lease) == Some(true));
    leaving.map(|(node, _)| standing(node, Liveness::Leaving)).chain(lost).collect()
}

/// Everything there is to say about a Service.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Explanation {
    service: String,
    address: Address,
    owner: Owner,
    /// What each node advertises by BGP; none where there is no BGPAdvertisement at all.
    bgp: Vec<Advertising>,
    hops: Vec<Link>,
}

/// What one node should advertise by BGP.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Advertising {
    node: String,
    routes: Vec<Route>,
    /// What it does not advertise, and why.
    withheld: Vec<Withheld>,
}

/// What one advertisement says of a prefix.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Route {
    prefix: String,
    peers: Vec<String>,
    local_pref: Option<u32>,
    med: Option<u32>,
    prepend: u8,
    communities: Vec<String>,
    /// With lower preference than any other path.
    draining: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Withheld {
    reason: &'static str,
    message: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Address {
    assigned: bool,
    addresses: Vec<String>,
    pool: Option<String>,
    reason: String,
    message: String,
}

/// Who announces, by report and by rule.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Owner {
    /// The nodes whose speakers say that they announce.
    reported: Vec<String>,
    /// Candidates in the order of the election.
    ranking: Vec<Candidate>,
    /// The other nodes, or nobody at all, and why.
    out: Vec<Out>,
    /// One sentence.
    message: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Candidate {
    node: String,
    /// Last, because it is cordoned.
    cordoned: bool,
    /// How many addresses of the Services that go together it serves.
    serves: usize,
    /// A person wants it.
    wished: bool,
    /// It has the addresses already, and keeps them.
    keeps: bool,
    preference: u32,
    hash: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Out {
    node: Option<String>,
    reason: &'static str,
    message: String,
}

/// One port at one address, and what is behind it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Link {
    address: Option<String>,
    port: u16,
    protocol: String,
    node_port: Option<u16>,
    cluster_ips: Vec<String>,
    carried: String,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Endpoint {
    address: String,
    node: Option<String>,
    used: bool,
    message: String,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.prefix, self.peers.join(", "))?;
        let communities = self.communities.join(" ");
        let attributes = [
            self.local_pref.map(|preference| format!("localPref {preference}")),
            self.med.map(|med| format!("MED {med}")),
            (self.prepend > 0).then(|| format!("prepended {} times", self.prepend)),
            (!communities.is_empty()).then(|| format!("communities {communities}")),
            self.draining.then(|| "draining".to_owned()),
        ];
        let attributes: Vec<String> = attributes.into_iter().flatten().collect();
        if attributes.is_empty() { Ok(()) } else { write!(f, " ({})", attributes.join(", ")) }
    }
}

fn explain(snapshot: &Arc<Snapshot>, key: &ServiceKey, policy: Policy) -> Option<Explanation> {
    let service = snapshot.services.get(key)?;
    let reported = owners(snapshot, key);
    let hops = chain(snapshot, key, reported.first()).unwrap_or_default();
    let via = match (policy.data_path, reported.first()) {
        (DataPath::Proxy, Some(owner)) => Via::Proxy(Some(owner)),
        (DataPath::Proxy, None) => Via::Proxy(None),
        (DataPath::KubeProxy, _) => Via::KubeProxy(&service.cluster_ips),
    };
    let address = Address {
        assigned: !service.observed.addresses.is_empty(),
        addresses: service.observed.addresses.iter().map(ToString::to_string).collect(),
        pool: service.observed.pool.as_ref().map(ToString::to_string),
        ..verdict(controller::explain(snapshot, key))
    };
    Some(Explanation {
        service: key.to_string(),
        address,
        owner: owner(snapshot, key, policy, &reported),
        bgp: advertising(snapshot, service, policy),
        hops: hops.iter().map(|hop| link(hop, &via)).collect(),
    })
}

/// Reason and message of a verdict; the addresses are those the status shows.
fn verdict(verdict: Verdict) -> Address {
    let (reason, message) = match verdict {
        Verdict::NotServed => {
            let message = "the Service is not of type LoadBalancer, or its class is served by others".to_owned();
            ("NotServed", message)
        }
        Verdict::Assigned { ignored: Some(refusal), .. } => {
            (refusal.reason(), format!("keeps its address although its request cannot be read: {refusal}"))
        }
        Verdict::Assigned { assignment, is_advertised: false, .. } => {
            let message = format!("assigned from pool {} but announced by nobody", assignment.pool);
            ("NotAdvertised", message)
        }
        Verdict::Assigned { assignment, .. } => ("Assigned", format!("assigned from pool {}", assignment.pool)),
        Verdict::Refused(refusal) => (refusal.reason(), refusal.to_string()),
    };
    Address { assigned: false, addresses: Vec::new(), pool: None, reason: reason.to_owned(), message }
}

fn owner(snapshot: &Snapshot, key: &ServiceKey, policy: Policy, reported: &BTreeSet<NodeName>) -> Owner {
    let standings = standings(snapshot);
    let names: Vec<String> = reported.iter().map(ToString::to_string).collect();
    let ranking = match ranking(snapshot, policy, &standings, key) {
        Ok(ranking) => ranking,
        Err(silence) => {
            let message = format!("nobody announces it: {silence}");
            return Owner { reported: names, ranking: Vec::new(), out: vec![out(None, &silence)], message };
        }
    };
    let first = ranking.candidates.first().map(|rank| &rank.node);
    let message = match (first, reported.first()) {
        (None, _) => "nobody announces it: no node may".to_owned(),
        (Some(first), Some(owner)) if first == owner && reported.len() == 1 => {
            format!("{owner} announces it: first of {} {}", ranking.candidates.len(), decisive(&ranking.candidates))
        }
        (Some(first), None) => {
            format!("{first} should announce it, but no speaker says so: is the speaker running, and its proxy ready?")
        }
        (Some(_), Some(_)) if reported.len() > 1 => format!(
            "{} say that they announce it: they have lost sight of each other, \
             or one of them is down and its last report stands",
            names.join(" and ")
        ),
        (Some(first), Some(owner)) => format!(
            "{owner} announces it; {} {first} comes first, so its speaker, its proxy or its interface is not ready, \
             or only {owner} is in the subnet of the address",
            decisive(&ranking.candidates)
        ),
    };
    let candidate = |rank: &Rank| Candidate {
        node: rank.node.to_string(),
        cordoned: rank.cordoned,
        serves: rank.serves.0,
        wished: rank.wished.0,
        keeps: rank.keeps.0,
        preference: rank.preference.0,
        hash: rank.hash.iter().take(4).fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        }),
    };
    Owner {
        reported: names,
        ranking: ranking.candidates.iter().map(candidate).collect(),
        out: ranking.out.iter().map(|(node, silence)| out(Some(node), silence)).collect(),
        message,
    }
}

/// What every node should advertise for a Service.
fn advertising(snapshot: &Snapshot, service: &Service, policy: Policy) -> Vec<Advertising> {
    if snapshot.bgp_advertisements.is_empty() {
        return Vec::new();
    }
    let mut facts = snapshot.clone();
    if policy.data_path == DataPath::KubeProxy {
        // The Secrets of a cluster are for its speakers to read.
        let known = |mut peer: Arc<BgpPeer>| {
            if peer.password.as_ref().is_some_and(|password| password.key().is_none()) {
                Arc::make_mut(&mut peer).password = None;
            }
            peer
        };
        facts.bgp_peers = facts.bgp_peers.into_iter().map(|(key, peer)| (key, known(peer))).collect();
    }
    let on_node = |node: &NodeName| {
        let peering = peering(&facts, node, policy.data_path);
        let standing = snapshot.unreachable.contains(node).then(|| standing(node, Liveness::Lost).1);
        let terms = Terms::new(&facts, node, policy, standing.as_ref(), &peering.neighbors);
        let (routes, withheld) = match terms.of(service) {
            Ok(Advertised { routes, withheld, .. }) => (routes, withheld.into_values().collect()),
            Err(silence) => (BTreeMap::new(), vec![silence]),
        };
        let parts = routes.iter().flat_map(|(prefix, parts)| parts.iter().map(move |part| (prefix, part)));
        let route = |(prefix, part): (&Prefix, &bgp::Part)| Route {
            prefix: prefix.to_string(),
            peers: peering.reached(prefix, part).map(ToString::to_string).collect(),
            local_pref: part.local_pref.map(NonZeroU32::get),
            med: part.multi_exit_disc,
            prepend: part.prepend,
            communities: part.communities.iter().map(ToString::to_string).collect(),
            draining: part.draining,
        };
        let why = |silence: &Silence| Withheld { reason: silence.reason(), message: silence.to_string() };
        let routes = parts.map(route).filter(|route| !route.peers.is_empty()).collect();
        Advertising { node: node.to_string(), routes, withheld: withheld.iter().map(why).collect() }
    };
    snapshot.nodes.keys().map(on_node).collect()
}

/// By what the first candidate comes before the second, in words.
fn decisive(candidates: &[Rank]) -> &'static str {
    let [first, second, ..] = candidates else { return "by being the only one" };
    if (first.yields, first.cordoned) != (second.yields, second.cordoned) {
        "by not being cordoned"
    } else if first.serves != second.serves {
        "by what it can serve"
    } else if first.wished != second.wished {
        "by a person's wish (`ferrogate move`)"
    } else if first.keeps != second.keeps {
        "by having it already (stickiness)"
    } else if first.preference != second.preference {
        "by preference"
    } else {
        "by the hash of node and address"
    }
}

fn out(node: Option<&NodeName>, silence: &Silence) -> Out {
    Out { node: node.map(ToString::to_string), reason: silence.reason(), message: silence.to_string() }
}

/// What stands between an address and the endpoints.
enum Via<'a> {
    /// The built-in proxy of the node that owns the address.
    Proxy(Option<&'a NodeName>),
    /// kube-proxy, or what stands for it, which also serves the Service's cluster IPs.
    KubeProxy(&'a [IpAddr]),
}

fn link(hop: &Hop, via: &Via<'_>) -> Link {
    let cluster_ips = match via {
        Via::Proxy(_) => Vec::new(),
        Via::KubeProxy(addresses) => addresses.iter().map(ToString::to_string).collect(),
    };
    let carried = match (via, &hop.carried) {
        (_, None) => "not reachable from outside yet: no address".to_owned(),
        (Via::KubeProxy(_), Some(Ok(Carried::Http))) => {
            "kube-proxy passes it on to the proxy of the node, which serves it as HTTP for every Ingress".to_owned()
        }
        (Via::KubeProxy(_), Some(_)) => "kube-proxy passes it on to the endpoints".to_owned(),
        (Via::Proxy(Some(node)), Some(Ok(carried))) => format!("the proxy of {node}: {carried}"),
        (Via::Proxy(None), Some(Ok(carried))) => format!("the proxy: {carried}"),
        (Via::Proxy(_), Some(Err(why))) => format!("not served: {why}"),
    };
    let endpoint = |endpoint: &ferrogate_core::proxy::explain::EndpointHop| Endpoint {
        address: match &endpoint.part {
            Part::Used(socket) | Part::Spare(socket, _) => socket.to_string(),
            Part::Unused(_) => endpoint.address.to_string(),
        },
        node: endpoint.node.as_ref().map(ToString::to_string),
        used: matches!(endpoint.part, Part::Used(_)),
        message: endpoint.part.to_string(),
    };
    Link {
        address: hop.address.map(|address| address.to_string()),
        port: hop.port.get(),
        protocol: hop.protocol.to_string(),
        node_port: hop.node_port.map(|port| port.get()),
        cluster_ips,
        carried,
        endpoints: hop.endpoints.iter().map(endpoint).collect(),
    }
}

/// The explanation as a chain to read from top to bottom.
fn text(explanation: &Explanation) -> String {
    let mut lines = vec![format!("Service {}", explanation.service)];
    let Address { addresses, reason, message, .. } = &explanation.address;
    let shown = if addresses.is_empty() { "none".to_owned() } else { addresses.join(", ") };
    lines.push(format!("├─ address    {shown}  ({reason}: {message})"));
    let owner = &explanation.owner;
    lines.push(format!("├─ owner      {}", owner.message));
    for (place, candidate) in owner.ranking.iter().enumerate() {
        let Candidate { node, cordoned, serves, wished, keeps, preference, hash } = candidate;
        let marks = [(*cordoned, "cordoned, "), (*wished, "wished, "), (*keeps, "keeps it, ")];
        let marks: String = marks.into_iter().filter(|(is_so, _)| *is_so).map(|(_, mark)| mark).collect();
        let place = place + 1;
        lines.push(format!(
            "│             {place}. {node}  {marks}serves {serves}, preference {preference}, hash {hash}…"
        ));
    }
    for Out { node, message, .. } in owner.out.iter().filter(|out| out.node.is_some()) {
        lines.push(format!("│             -  {}  out: {message}", node.as_deref().unwrap_or_default()));
    }
    let speaking = explanation.bgp.iter().filter(|node| !node.routes.is_empty()).count();
    if !explanation.bgp.is_empty() {
        lines.push(format!("├─ bgp        {speaking} of {} nodes should advertise it", explanation.bgp.len()));
    }
    for Advertising { node, routes, withheld } in &explanation.bgp {
        let routes = routes.iter().map(ToString::to_string);
        let withheld = withheld.iter().map(|Withheld { message, .. }| format!("out: {message}"));
        lines.extend(routes.chain(withheld).map(|line| format!("│             -  {node}  {line}")));
    }
    for hop in &explanation.hops {
        let address = hop.address.as_deref().unwrap_or("no address");
        let node_port = hop.node_port.map(|port| format!(", node port {port}")).unwrap_or_default();
        let cluster_ips = match hop.cluster_ips.as_slice() {
            [] => String::new(),
            addresses => format!(", cluster IP {}", addresses.join(" ")),
        };
        let (port, protocol, carried) = (hop.port, &hop.protocol, &hop.carried);
        lines.push(format!("└─ {address} port {port}/{protocol}{node_port}{cluster_ips} → {carried}"));
        for Endpoint { address, node, message, .. } in &hop.endpoints {
            let node = node.as_deref().map(|node| format!(" on {node}")).unwrap_or_default();
            lines.push(format!("     └─ {address}{node}: {message}"));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const POLICY: Policy =
        Policy { data_path: DataPath::Proxy, ignore_exclude_label: false, yield_on_cordon: false };

    /// A folder of manifests, and the state beside it.
    pub struct Folder(tempfile::TempDir);

    /// With one node, more in its metadata, a pool, an advertisement and the Service `default/web`.
    pub fn folder(node: &str, service: &str) -> Folder {
        let folder = tempfile::tempdir().unwrap();
        let manifests = folder.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        let around = "apiVersion: v1\nkind: Node\nmetadata: {name: node-1NODE}\n---\n\
            apiVersion: ferrogate.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: main}\n\
            spec: {addresses: [192.0.2.0/28]}\n---\n\
            apiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: main}\n---\n"
            .replace("NODE", node);
        std::fs::write(manifests.join("all.yaml"), format!("{around}{service}")).unwrap();
        Folder(folder)
    }

    impl Folder {
        /// Writes a file of the state.
        pub fn says(&self, path: &str, text: &str) {
            let path = self.0.path().join("state").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn source(&self) -> SourceArgs {
            SourceArgs {
                manifests: Some(self.0.path().join("manifests")),
                state: Some(self.0.path().join("state")),
                namespace: "ferrogate-system".to_owned(),
                load_balancer_class: "ferrogate.io/lb".to_owned(),
                serve_classless: true,
                metallb_compat: false,
                metallb_namespace: "metallb-system".to_owned(),
            }
        }

        pub async fn snapshot(&self) -> Arc<Snapshot> {
            facts(&self.source(), &ServiceKey::new("default", "web")).await.unwrap()
        }
    }

    pub fn service(metadata: &str, status: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web{metadata}}}\n\
             spec: {{type: LoadBalancer, ports: [{{port: 80}}]}}\n{status}---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\n\
             ports: [{{port: 8080}}]\nendpoints: [{{addresses: [203.0.113.5]}}]\n"
        )
    }

    async fn explained(service: &str) -> Explanation {
        explained_by(POLICY, "", service).await
    }

    /// The same with more in the metadata of the node.
    async fn explained_by(policy: Policy, node: &str, service: &str) -> Explanation {
        let snapshot = folder(node, service).snapshot().await;
        explain(&snapshot, &ServiceKey::new("default", "web"), policy).unwrap()
    }

    #[tokio::test]
    async fn the_chain_reaches_from_the_address_to_the_endpoints() {
        let status = "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n";

        let text = text(&explained(&service("", status)).await);

        assert!(text.contains("address    192.0.2.1  (Assigned"), "{text}");
        assert!(text.contains("1. node-1"), "{text}");
        assert!(text.contains("192.0.2.1 port 80/TCP → the proxy: passed on to the endpoints"), "{text}");
        assert!(text.contains("203.0.113.5:8080: takes traffic"), "{text}");
    }

    #[tokio::test]
    async fn nodes_that_are_excluded_are_out_unless_the_speakers_ignore_that() {
        let node = ", labels: {node.kubernetes.io/exclude-from-external-load-balancers: ''}";
        let service = service("", "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n");

        let strict = explained_by(POLICY, node, &service).await;
        let ignoring = explained_by(Policy { ignore_exclude_label: true, ..POLICY }, node, &service).await;

        assert_eq!((strict.owner.ranking.len(), strict.owner.out.len()), (0, 1));
        assert_eq!((ignoring.owner.ranking.len(), ignoring.owner.out.len()), (1, 0));
    }

    #[tokio::test]
    async fn the_whole_ranking_is_shown_and_what_decided_it() {
        let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-2}\nspec: {unschedulable: true}\n";
        let assigned = "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n";
        let wish = ", annotations: {ferrogate.io/announce-from: node-2}";
        let both = |metadata: &str| format!("{}{node}", service(metadata, assigned));

        let wished = explained_by(POLICY, "", &both(wish)).await;
        let yielding = explained_by(Policy { yield_on_cordon: true, ..POLICY }, "", &both(wish)).await;

        let order = |explanation: &Explanation| -> Vec<(String, bool, bool)> {
            let ranking = explanation.owner.ranking.iter();
            ranking.map(|one| (one.node.clone(), one.wished, one.cordoned)).collect()
        };
        let (first, second) = ("node-1".to_owned(), "node-2".to_owned());
        assert_eq!(order(&wished), [(second.clone(), true, false), (first.clone(), false, false)]);
        assert_eq!(order(&yielding), [(first, false, false), (second, true, true)]);
        let text = text(&yielding);
        assert!(text.contains("2. node-2  cordoned, wished, serves 1, preference 0, hash "), "{text}");
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_what_to_do() {
        let metadata = ", annotations: {ferrogate.io/loadBalancerIPs: 198.51.100.7}";

        let explanation = explained(&service(metadata, "")).await;

        assert!(!explanation.address.assigned);
        assert_eq!(explanation.address.reason, "OutsidePools");
        assert!(explanation.address.message.contains("198.51.100.7"), "{}", explanation.address.message);
        assert_eq!(explanation.owner.out[0].reason, "NoAddress");
    }

    /// A Service with an address, with BGP to a router beside layer 2.
    fn routed(advertisement: &str) -> String {
        format!(
            "{}---\napiVersion: ferrogate.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {{name: all}}\n\
             spec: {{{advertisement}}}\n---\n\
             apiVersion: ferrogate.io/v1beta1\nkind: BGPPeer\nmetadata: {{name: tor}}\n\
             spec: {{myASN: 64500, peerASN: 64501, peerAddress: 198.51.100.1}}\n",
            service("", "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n")
        )
    }

    #[tokio::test]
    async fn routes_are_told_for_each_node_with_whom_they_reach_and_their_attributes() {
        let node = "}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: node-2, labels: {rack: b}";
        let routed = routed("localPref: 100, communities: ['65000:7'], nodeSelectors: [{matchLabels: {rack: b}}]");

        let text = text(&explained_by(POLICY, node, &routed).await);

        assert!(text.contains("bgp        1 of 2 nodes should advertise it"), "{text}");
        assert!(text.contains("-  node-1  out: no BGPAdvertisement of the Service selects the node"), "{text}");
        assert!(text.contains("-  node-2  192.0.2.1/32 to tor (localPref 100, communities 65000:7)"), "{text}");
    }

    #[tokio::test]
    async fn of_bgp_nothing_is_said_where_there_is_none() {
        let status = "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n";

        let explanation = explained(&service("", status)).await;

        assert_eq!(explanation.bgp, []);
        assert!(!text(&explanation).contains("bgp"));
    }

    #[tokio::test]
    async fn what_keeps_a_node_from_advertising_is_told() {
        let explanation = explained(&routed("peers: [other]")).await;

        let [node] = explanation.bgp.as_slice() else { panic!("{:?}", explanation.bgp) };
        assert_eq!((node.routes.len(), node.withheld[0].reason), (0, "NoPeer"));
    }
}
