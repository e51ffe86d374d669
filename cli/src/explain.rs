//! `ferrogate explain`: the chain from an external address to its endpoints, and the reason at every link.
//!
//! It decides nothing: it asks the functions in `core` that decided, on the same facts, and prints their answers.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr, process::ExitCode, sync::Arc};

use anyhow::bail;
use clap::{Args, Subcommand};
use ferrogate_core::{
    controller::{self, Verdict},
    model::{NodeName, ServiceKey},
    proxy::explain::{Carried, Hop, Part, chain},
    snapshot::Snapshot,
    speaker::{
        DataPath,
        announce::{Liveness, Policy, Silence, Standing, Standings, ranking},
        health::Refusals,
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
        /// Explain as speakers decide that were started with the same flag
        #[arg(long)]
        ignore_exclude_lb: bool,
        /// Shape of the answer
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
}

/// Prints the explanation; the exit code tells whether the Service exists.
pub async fn show(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let What::Service { name, source, ignore_exclude_lb, output } = &args.what;
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let key = ServiceKey::new(namespace, name);
    let snapshot = facts(source, &key).await?;
    let data_path = if source.manifests.is_some() { DataPath::Proxy } else { DataPath::KubeProxy };
    let policy = Policy { data_path, ignore_exclude_label: *ignore_exclude_lb };
    let Some(explanation) = explain(&snapshot, &key, policy) else {
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

fn owners(snapshot: &Snapshot, key: &ServiceKey) -> BTreeSet<NodeName> {
    snapshot.announced_by.get(key).map(|nodes| BTreeSet::clone(nodes)).unwrap_or_default()
}

/// Everything there is to say about a Service.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Explanation {
    service: String,
    address: Address,
    owner: Owner,
    hops: Vec<Link>,
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
    let lost = |node: &NodeName| {
        let refusals = Refusals::default();
        (
            node.clone(),
            Standing {
                liveness: Liveness::Lost,
                proxy_ready: false,
                refusals,
                links: None,
                dead_links: Default::default(),
            },
        )
    };
    let standings: Standings = snapshot.unreachable.iter().map(lost).collect();
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
            format!("{owner} announces it: first of {} by the hash of node and address", ranking.candidates.len())
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
            "{owner} announces it; by the hash of node and address {first} comes first, \
             so its speaker, its proxy or its interface is not ready"
        ),
    };
    let candidate = |rank: &ferrogate_core::speaker::elect::Rank| Candidate {
        node: rank.node.to_string(),
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
        let Candidate { node, preference, hash } = candidate;
        lines.push(format!("│             {}. {node}  preference {preference}, hash {hash}…", place + 1));
    }
    for Out { node, message, .. } in owner.out.iter().filter(|out| out.node.is_some()) {
        lines.push(format!("│             -  {}  out: {message}", node.as_deref().unwrap_or_default()));
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
mod tests {
    use super::*;

    const POLICY: Policy = Policy { data_path: DataPath::Proxy, ignore_exclude_label: false };

    /// A folder of manifests with one node, a pool, an advertisement and the Service `default/web`.
    async fn explained(service: &str) -> Explanation {
        explained_by(POLICY, "", service).await
    }

    /// The same with more in the metadata of the node.
    async fn explained_by(policy: Policy, node: &str, service: &str) -> Explanation {
        let folder = tempfile::tempdir().unwrap();
        let manifests = folder.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        let around = "apiVersion: v1\nkind: Node\nmetadata: {name: node-1NODE}\n---\n\
            apiVersion: ferrogate.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: main}\n\
            spec: {addresses: [192.0.2.0/28]}\n---\n\
            apiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: main}\n---\n"
            .replace("NODE", node);
        std::fs::write(manifests.join("all.yaml"), format!("{around}{service}")).unwrap();
        let source = SourceArgs {
            manifests: Some(manifests),
            state: Some(folder.path().join("state")),
            namespace: "ferrogate-system".to_owned(),
            load_balancer_class: "ferrogate.io/lb".to_owned(),
            serve_classless: true,
            metallb_compat: false,
            metallb_namespace: "metallb-system".to_owned(),
        };
        let key = ServiceKey::new("default", "web");
        let snapshot = facts(&source, &key).await.unwrap();
        explain(&snapshot, &key, policy).unwrap()
    }

    fn service(metadata: &str, status: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web{metadata}}}\n\
             spec: {{type: LoadBalancer, ports: [{{port: 80}}]}}\n{status}---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\n\
             ports: [{{port: 8080}}]\nendpoints: [{{addresses: [203.0.113.5]}}]\n"
        )
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
    async fn a_refusal_is_told_with_what_to_do() {
        let metadata = ", annotations: {ferrogate.io/loadBalancerIPs: 198.51.100.7}";

        let explanation = explained(&service(metadata, "")).await;

        assert!(!explanation.address.assigned);
        assert_eq!(explanation.address.reason, "OutsidePools");
        assert!(explanation.address.message.contains("198.51.100.7"), "{}", explanation.address.message);
        assert_eq!(explanation.owner.out[0].reason, "NoAddress");
    }
}
