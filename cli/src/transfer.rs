//! `ferrogate move`: gives an address to the node that a person wants, or back to the order of the election.
//!
//! It decides nothing: it asks the election what would become of the wish, and writes it if it would come true.

use std::{net::IpAddr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::bail;
use clap::Args;
use ferrogate_cluster::{Role, WishError, translate::service::NODE_ANNOTATION};
use ferrogate_core::{
    model::{NodeName, ServiceKey},
    snapshot::Snapshot,
    speaker::announce::{Policy, Ranking, ranking},
};
use tokio_util::sync::CancellationToken;

use crate::{
    explain::{PolicyArgs, owners, standings},
    source::SourceArgs,
};

/// How long a node may take to say that it announces an address.
const PATIENCE: Duration = Duration::from_secs(10);

/// Flags of `ferrogate move`.
#[derive(Args)]
pub struct MoveArgs {
    /// The external address; with it go all addresses of the Services that have it
    address: IpAddr,
    #[command(flatten)]
    target: Target,
    /// Say what would happen, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// The node that shall announce it from now on, whenever it can
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// Let the order of the election decide again
    #[arg(long)]
    back: bool,
}

/// Moves an address; the exit code tells whether its new owner has said so in time.
pub async fn transfer(args: &MoveArgs) -> anyhow::Result<ExitCode> {
    let policy = args.policy.policy(&args.source);
    let wish = args.target.to.as_deref().map(NodeName::from);
    let mut cluster = args.source.open(Role::Reader(None), CancellationToken::new()).await?;
    let snapshot = cluster.snapshots.borrow().clone();
    let plan = plan(&snapshot, policy, args.address, wish.as_ref())?;
    println!("{}", plan.message);
    if args.dry_run {
        cluster.closed().await;
        return Ok(ExitCode::SUCCESS);
    }
    for service in &plan.services {
        match cluster.wish(service, wish.as_ref()).await {
            Ok(()) => {}
            Err(WishError::Folder) => match &wish {
                Some(node) => bail!("write this annotation to Service {service} yourself: {NODE_ANNOTATION}: {node}"),
                None => bail!("take the annotation {NODE_ANNOTATION} from Service {service} yourself"),
            },
            Err(error) => return Err(error.into()),
        }
    }
    let announced = |snapshot: &Arc<Snapshot>| {
        plan.services.iter().any(|key| snapshot.announcer(key).is_some_and(|(node, _)| *node == plan.first))
    };
    let seen =
        tokio::time::timeout(PATIENCE, cluster.snapshots.wait_for(announced)).await.is_ok_and(|seen| seen.is_ok());
    cluster.closed().await;
    if !seen {
        let PlannedMove { first, services, .. } = &plan;
        let service = services.first().map(ToString::to_string).unwrap_or_default();
        bail!(
            "{first} does not say that it announces it; `ferrogate explain service {service}` may tell why. The wish \
             stands until `ferrogate move {} --back`",
            args.address
        );
    }
    println!("{} announces it", plan.first);
    Ok(ExitCode::SUCCESS)
}

/// What would become of a wish.
#[derive(Debug, PartialEq, Eq)]
struct PlannedMove {
    /// The Services that go together.
    services: Vec<ServiceKey>,
    /// The node that will announce them.
    first: NodeName,
    /// What will happen, in one sentence.
    message: String,
}

fn plan(snapshot: &Snapshot, policy: Policy, address: IpAddr, wish: Option<&NodeName>) -> anyhow::Result<PlannedMove> {
    let is_behind = |key: &&ServiceKey| {
        let service = snapshot.services.get(*key);
        service.is_some_and(|one| one.load_balancer.is_some() && one.observed.addresses.contains(&address))
    };
    let Some(service) = snapshot.services.keys().find(is_behind) else {
        bail!("no Service served here has {address}; `ferrogate status` lists those there are");
    };
    let standings = standings(snapshot);
    let rank = |snapshot: &Snapshot| match ranking(snapshot, policy, &standings, service) {
        Ok(ranking) => Ok(ranking),
        Err(silence) => bail!("no node can announce {address}: {silence}"),
    };
    let Ranking { services, .. } = rank(snapshot)?;
    let mut wished = snapshot.clone();
    for key in &services {
        if let Some(service) = wished.services.get_mut(key) {
            Arc::make_mut(service).wished_node = wish.cloned();
        }
    }
    let Ranking { candidates, out, .. } = rank(&wished)?;
    if let Some(node) = wish {
        if let Some(silence) = out.get(node) {
            bail!("{node} cannot announce {address}: {silence}");
        }
        if !snapshot.nodes.contains_key(node) {
            bail!("there is no Node {node}");
        }
    }
    let Some(first) = candidates.first() else { bail!("no node can announce {address}") };
    if let Some(node) = wish
        && first.node != *node
    {
        let own = candidates.iter().find(|rank| rank.node == *node);
        let why = match own {
            Some(own) if own.cordoned && !first.cordoned => "is cordoned, and speakers yield on that".to_owned(),
            Some(own) => {
                format!("can serve {} of what goes with it, and {} {}", own.serves.0, first.node, first.serves.0)
            }
            None => "cannot".to_owned(),
        };
        bail!("{node} would not announce {address}: it {why}");
    }
    let names: Vec<String> = services.iter().map(ToString::to_string).collect();
    let of = format!("{address} of {}", names.join(", "));
    let message = match owners(snapshot, service).iter().map(ToString::to_string).collect::<Vec<_>>().as_slice() {
        [] => format!("{of}: nobody says that they announce it, {} will", first.node),
        [owner] if first.node.as_str() == owner => format!("{of}: {owner} announces it, and it stays there"),
        owners => format!("{of}: {} announces it, {} takes it over", owners.join(" and "), first.node),
    };
    Ok(PlannedMove { services: services.into_iter().collect(), first: first.node.clone(), message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::tests::{Folder, POLICY, folder, service};

    /// Two nodes, of which `node-2` has more in its manifest, and `default/web` with an address.
    fn two_nodes(second: &str) -> Folder {
        let status = "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n";
        let node = format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: node-2}}\n{second}");
        folder("", &format!("{}{node}", service("", status)))
    }

    async fn planned(folder: &Folder, policy: Policy, address: &str, to: Option<&str>) -> Result<PlannedMove, String> {
        let node = to.map(NodeName::from);
        let snapshot = folder.snapshot().await;
        plan(&snapshot, policy, address.parse().unwrap(), node.as_ref()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_move_says_who_announces_now_and_who_will() {
        let folder = two_nodes("");
        let status = "apiVersion: ferrogate.io/v1beta1\nkind: ServiceL2Status\nmetadata: {name: l2}\nspec: {}\n\
            status: {node: node-1, serviceName: web, serviceNamespace: default, addresses: [192.0.2.1]}\n";
        folder.says("speakers/node-1/l2status/default_web.yaml", status);

        for (to, message) in [
            ("node-2", "192.0.2.1 of default/web: node-1 announces it, node-2 takes it over"),
            ("node-1", "192.0.2.1 of default/web: node-1 announces it, and it stays there"),
        ] {
            let plan = planned(&folder, POLICY, "192.0.2.1", Some(to)).await.unwrap();
            assert_eq!((plan.first.as_str(), plan.message.as_str()), (to, message));
            assert_eq!(plan.services, [ServiceKey::new("default", "web")]);
        }
    }

    #[tokio::test]
    async fn back_goes_to_the_first_in_the_order_of_the_election() {
        let plan = planned(&two_nodes(""), POLICY, "192.0.2.1", None).await.unwrap();

        let address = "192.0.2.1".parse().unwrap();
        let nodes = [NodeName::from("node-1"), NodeName::from("node-2")];
        let first = nodes.iter().min_by_key(|node| ferrogate_core::speaker::elect::hash(node, address));
        assert_eq!(Some(&plan.first), first);
    }

    #[tokio::test]
    async fn a_node_that_cannot_have_it_is_refused_with_the_reason() {
        let unavailable = "status: {conditions: [{type: NetworkUnavailable, status: 'True'}]}\n";
        let cordoned = "spec: {unschedulable: true}\n";
        let yielding = Policy { yield_on_cordon: true, ..POLICY };

        for (second, policy, address, to, expected) in [
            ("", POLICY, "192.0.2.9", "node-2", "no Service served here has 192.0.2.9"),
            ("", POLICY, "192.0.2.1", "node-3", "there is no Node node-3"),
            (unavailable, POLICY, "192.0.2.1", "node-2", "the node's condition NetworkUnavailable is True"),
            (cordoned, yielding, "192.0.2.1", "node-2", "it is cordoned"),
        ] {
            let error = planned(&two_nodes(second), policy, address, Some(to)).await.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
