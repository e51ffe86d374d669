//! `ferrogate status` and `ferrogate doctor`: what is, as tables or JSON.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use ferrogate_cluster::Role;
use ferrogate_core::{
    model::{NodeName, PeerName},
    snapshot::Snapshot,
};
use serde::Serialize;

use crate::{
    Output, bgp,
    doctor::{self, Check, Host, Verdict},
    explain::PolicyArgs,
    layer2,
    run::{CONTROLLER_ADMIN, PROXY_ADMIN, SPEAKER_ADMIN},
    source::SourceArgs,
    table::Table,
};

/// Flags of `ferrogate status`.
#[derive(Args)]
pub struct StatusArgs {
    /// One part alone, with more about it
    part: Option<Part>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// With `bgp`: the sessions of this node alone
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// With `bgp`: the sessions with this BGPPeer alone
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// With `bgp`: also to which peers each Service is advertised
    #[arg(long)]
    routes: bool,
    /// Shape of the answer
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// What there is more about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Which node announces each address by ARP and NDP, and who else claims it
    L2,
    /// How the BGP session of each node with each peer is
    Bgp,
}

/// What `status` shows.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Status {
    services: Vec<ServiceRow>,
    pools: Vec<PoolRow>,
    problems: Vec<ProblemRow>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct ServiceRow {
    service: String,
    addresses: Vec<String>,
    pool: Option<String>,
    announced_by: Vec<String>,
    endpoints_ready: usize,
    message: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct PoolRow {
    pool: String,
    ranges: Vec<String>,
    auto_assign: bool,
    assigned_ipv4: i64,
    available_ipv4: i64,
    assigned_ipv6: i64,
    available_ipv6: i64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct ProblemRow {
    origin: String,
    reason: String,
    message: String,
}

/// Prints the status; the exit code is 0 whatever it says, since problems are findings, not failures.
pub async fn show(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let filter = args.filter()?;
    let role = if args.part == Some(Part::Bgp) { Role::BgpReader } else { Role::Reader(None) };
    let snapshot = args.source.read_as(role).await?;
    let text = match (args.part, args.output) {
        (None, Output::Json) => json(&status(&snapshot))?,
        (None, Output::Table) => tables(&status(&snapshot)),
        (Some(Part::L2), Output::Json) => json(&layer2::answer(&snapshot, args.policy.policy(&args.source)))?,
        (Some(Part::L2), Output::Table) => layer2::tables(&layer2::answer(&snapshot, args.policy.policy(&args.source))),
        (Some(Part::Bgp), Output::Json) => json(&bgp::answer(&snapshot, &filter)?)?,
        (Some(Part::Bgp), Output::Table) => bgp::tables(&bgp::answer(&snapshot, &filter)?),
    };
    print!("{text}");
    Ok(ExitCode::SUCCESS)
}

impl StatusArgs {
    /// What of BGP is asked for.
    fn filter(&self) -> anyhow::Result<bgp::Filter> {
        let given = [("--node", self.node.is_some()), ("--peer", self.peer.is_some()), ("--routes", self.routes)];
        if let Some((flag, _)) = given.into_iter().find(|(_, given)| *given && self.part != Some(Part::Bgp)) {
            bail!("{flag} goes with `ferrogate status bgp`");
        }
        let node = self.node.as_deref().map(NodeName::from);
        Ok(bgp::Filter { node, peer: self.peer.as_deref().map(PeerName::from), routes: self.routes })
    }
}

fn json(answer: &impl Serialize) -> anyhow::Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(answer)?))
}

fn status(snapshot: &Snapshot) -> Status {
    let services = snapshot.services.values().filter(|service| service.load_balancer.is_some());
    let services = services.map(|service| ServiceRow {
        service: service.key.to_string(),
        addresses: service.observed.addresses.iter().map(ToString::to_string).collect(),
        pool: service.observed.pool.as_ref().map(ToString::to_string),
        announced_by: snapshot
            .announced_by
            .get(&service.key)
            .map(|nodes| nodes.keys().map(ToString::to_string).collect())
            .unwrap_or_default(),
        endpoints_ready: service.endpoints.iter().filter(|endpoint| endpoint.servable()).count(),
        message: service.observed.condition.as_ref().map(|condition| condition.message.clone()).unwrap_or_default(),
    });
    let pools = snapshot.pools.values().map(|pool| PoolRow {
        pool: pool.name.to_string(),
        ranges: pool.ranges.iter().map(ToString::to_string).collect(),
        auto_assign: pool.auto_assign,
        assigned_ipv4: pool.observed.assigned_ipv4,
        available_ipv4: pool.observed.available_ipv4,
        assigned_ipv6: pool.observed.assigned_ipv6,
        available_ipv6: pool.observed.available_ipv6,
    });
    let problems = snapshot.problems.iter().flat_map(|(origin, problems)| {
        problems.iter().map(move |problem| ProblemRow {
            origin: origin.to_string(),
            reason: problem.fault.reason().to_owned(),
            message: problem.to_string(),
        })
    });
    Status { services: services.collect(), pools: pools.collect(), problems: problems.collect() }
}

fn tables(status: &Status) -> String {
    let mut services = Table::new(&["SERVICE", "ADDRESSES", "POOL", "ANNOUNCED BY", "ENDPOINTS", "SAYS"]);
    for row in &status.services {
        services.row([
            row.service.clone(),
            or_dash(row.addresses.join(",")),
            or_dash(row.pool.clone().unwrap_or_default()),
            or_dash(row.announced_by.join(",")),
            row.endpoints_ready.to_string(),
            row.message.clone(),
        ]);
    }
    let mut pools = Table::new(&["POOL", "RANGES", "AUTO", "IPV4 USED/FREE", "IPV6 USED/FREE"]);
    for row in &status.pools {
        pools.row([
            row.pool.clone(),
            row.ranges.join(","),
            if row.auto_assign { "yes" } else { "no" }.to_owned(),
            format!("{}/{}", row.assigned_ipv4, row.available_ipv4),
            format!("{}/{}", row.assigned_ipv6, row.available_ipv6),
        ]);
    }
    let mut text = format!("{services}\n{pools}");
    if !status.problems.is_empty() {
        let mut problems = Table::new(&["PROBLEM IN", "REASON", "WHAT"]);
        for row in &status.problems {
            problems.row([&row.origin, &row.reason, &row.message]);
        }
        text.push_str(&format!("\n{problems}"));
    }
    text
}

/// The text, or what stands for none.
pub fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Runs every check and prints them; fails when one of them failed.
pub async fn doctor(source: &SourceArgs, output: Output) -> anyhow::Result<ExitCode> {
    let mut checks = Host::this().checks();
    let admin = [("controller", CONTROLLER_ADMIN), ("speaker", SPEAKER_ADMIN), ("proxy", PROXY_ADMIN)];
    checks.extend(doctor::ports(ferrogate_speaker::GOSSIP_PORT, &admin));
    checks.extend(doctor::gossip(SPEAKER_ADMIN));
    if let Some(state) = source.state_folder() {
        checks.push(doctor::state_folder(&state));
    }
    checks.extend(facts(source).await);
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&checks)?),
        Output::Table => print!("{}", doctor::table(&checks)),
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Failure);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether facts can be had, and what is wrong with them.
async fn facts(source: &SourceArgs) -> Vec<Check> {
    const NAME: &str = "source of facts";
    let snapshot = match source.read(None).await {
        Ok(snapshot) => snapshot,
        Err(error) => {
            let remedy = "give --manifests DIR, or a kubeconfig that reaches the API server";
            return vec![Check::failure(NAME, format!("{error:#}"), remedy)];
        }
    };
    let found = format!(
        "{} Services, {} pools, {} Nodes, {} Ingresses",
        snapshot.services.len(),
        snapshot.pools.len(),
        snapshot.nodes.len(),
        snapshot.ingresses.len()
    );
    let mut checks = vec![Check::ok(NAME, found)];
    for (origin, problems) in snapshot.problems.iter() {
        checks.extend(problems.iter().map(|problem| {
            // The text of a fault ends with what to do about it.
            Check::warning(&origin.to_string(), problem.to_string(), String::new())
        }));
    }
    checks
}
