//! `ferrogate migrate metallb`: what would change, as a table or JSON, and on request the objects to go on with.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use ferrogate_cluster::{
    NAMESPACE,
    migrate::{self, Outcome, Plan, Settings, read},
    translate::{Source, metallb},
};
use ferrogate_core::model::service::ClassPolicy;
use serde_json::Value;

use crate::{Output, table::Table};

/// The exit code when somebody has to decide or do something before the migration.
const NEEDS_A_PERSON: u8 = 3;

/// The file of objects that a migration writes.
const OBJECTS: &str = "ferrogate.yaml";
/// The file of those by which speakers begin to announce, which come last.
const LAYER_2: &str = "l2-advertisements.yaml";
/// The file of annotations that Services need once the compatibility switch is off.
const ANNOTATIONS: &str = "service-annotations.yaml";

/// Where from.
#[derive(Subcommand)]
pub enum From {
    /// From MetalLB, of any version and with its old ConfigMap too. Exit code 0: nothing is lost and nothing moves;
    /// 3: a person is needed first; 1: it could not be found out
    Metallb(Box<MetallbArgs>),
}

/// Flags of `ferrogate migrate metallb`.
#[derive(Args)]
pub struct MetallbArgs {
    /// Look at the manifests in this folder instead of a cluster
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Write Ferrogate's manifests into this folder
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Create Ferrogate's objects in the cluster, if nothing needs a person; a dry run of all comes first
    #[arg(long, conflicts_with = "manifests")]
    apply: bool,
    /// Leave out L2Advertisements, which a second --apply adds: so all speakers are there before any of them announces
    #[arg(long, requires = "apply")]
    without_l2_advertisements: bool,
    /// Namespace of Ferrogate's objects
    #[arg(long, value_name = "NAME", default_value = NAMESPACE, env = "FERROGATE_NAMESPACE")]
    namespace: String,
    /// Namespace of MetalLB's objects
    #[arg(long, value_name = "NAME", default_value = metallb::NAMESPACE, env = "FERROGATE_METALLB_NAMESPACE")]
    metallb_namespace: String,
    /// The spec.loadBalancerClass that MetalLB serves alone; default: what its --lb-class says
    #[arg(long, value_name = "CLASS")]
    load_balancer_class: Option<String>,
    /// Shape of the answer
    #[arg(short = 'o', long = "format", value_name = "FORMAT", default_value = "table")]
    format: Output,
}

/// Looks, says what would change, and does what was asked for.
pub async fn migrate(from: From) -> anyhow::Result<ExitCode> {
    let From::Metallb(args) = from;
    let class =
        args.load_balancer_class.clone().map(|class| ClassPolicy { class: Some(class), serve_classless: false });
    let mut settings = Settings {
        namespace: args.namespace.clone(),
        metallb_namespace: args.metallb_namespace.clone(),
        class,
        source: Source::Directory,
    };
    let (found, client) = match &args.manifests {
        Some(folder) => (read::folder(folder)?, None),
        None => {
            settings.source = Source::Kubernetes;
            let client = read::connect().await?;
            (read::cluster(&client, &settings).await?, Some(client))
        }
    };
    let mut plan = migrate::plan(&found, &settings);
    if args.without_l2_advertisements {
        plan.objects.retain(|object| !is_layer_2(object));
    }
    let needs_a_person = plan.needs_a_person();
    match args.format {
        Output::Json => println!("{}", serde_json::to_string_pretty(&plan)?),
        Output::Table => print!("{}", report(&plan)),
    }
    if let Some(folder) = &args.output {
        write(&plan, folder)?;
    }
    let written = match client.filter(|_| args.apply && !needs_a_person) {
        Some(client) => Some(read::apply(&client, &plan).await?),
        None => None,
    };
    if let Output::Table = args.format {
        if let Some(count) = written {
            println!("{count} objects of Ferrogate's were applied.\n");
        } else if args.apply {
            println!("Nothing was applied: settle first what needs a person.\n");
        }
        print!("{}", steps(&plan, &args, written.is_some()));
    }
    Ok(if needs_a_person { ExitCode::from(NEEDS_A_PERSON) } else { ExitCode::SUCCESS })
}

fn report(plan: &Plan) -> String {
    let mut text = String::new();
    if plan.changes.is_empty() {
        text.push_str("There is nothing of MetalLB's here.\n\n");
    } else {
        let mut table = Table::new(&["METALLB", "FERROGATE"]);
        for change in &plan.changes {
            let to = if change.to.is_empty() { "nothing".to_owned() } else { change.to.join(", ") };
            table.row([change.from.as_str(), to.as_str()]);
        }
        let _ = writeln!(text, "{table}");
    }
    if !plan.services.is_empty() {
        let mut table = Table::new(&["SERVICE", "NOW", "THEN", "POOL", "ADDRESS", "REASON"]);
        for service in &plan.services {
            let list = |addresses: &[std::net::IpAddr]| {
                let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                if shown.is_empty() { "-".to_owned() } else { shown.join(",") }
            };
            table.row([
                service.service.clone(),
                list(&service.now),
                list(&service.then),
                service.pool.clone().unwrap_or_else(|| "-".to_owned()),
                word(service.outcome).to_owned(),
                service.reason.clone(),
            ]);
        }
        let _ = writeln!(text, "{table}");
    }
    for (needs_a_person, heading) in [(true, "Needs a person first:"), (false, "Good to know:")] {
        let remarks: Vec<_> = plan.remarks.iter().filter(|one| one.needs_a_person == needs_a_person).collect();
        if !remarks.is_empty() {
            let _ = writeln!(text, "{heading}");
            for remark in remarks {
                let _ = writeln!(text, "- {}: {}", remark.about, remark.message);
            }
            text.push('\n');
        }
    }
    let moved = |outcome| plan.services.iter().filter(|service| service.outcome == outcome).count();
    let _ = writeln!(
        text,
        "{} keep their address, {} get the one they would have had, {} wait, {} would move, {} would lose theirs.\n",
        moved(Outcome::Keeps),
        moved(Outcome::Gets),
        moved(Outcome::Waits),
        moved(Outcome::Moves),
        moved(Outcome::Loses),
    );
    text
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Waits => "waits",
        Outcome::Gets => "gets",
        Outcome::Keeps => "keeps",
        Outcome::Moves => "MOVES",
        Outcome::Loses => "LOSES",
    }
}

fn write(plan: &Plan, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (layer_2, objects) = plan.objects.iter().partition(|object| is_layer_2(object));
    for (name, objects) in [(OBJECTS, objects), (LAYER_2, layer_2), (ANNOTATIONS, plan.annotations.iter().collect())] {
        let path = folder.join(name);
        fs::write(&path, documents(objects)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn is_layer_2(object: &Value) -> bool {
    object["kind"] == "L2Advertisement"
}

fn documents(objects: Vec<&Value>) -> String {
    objects.into_iter().map(|object| format!("---\n{}\n", migrate::yaml(object).trim_end())).collect()
}

/// What to do, in which order, and why nothing is without an answer in between.
fn steps(plan: &Plan, args: &MetallbArgs, is_applied: bool) -> String {
    let mut steps = Vec::new();
    let ours = &args.namespace;
    let theirs = &args.metallb_namespace;
    let (announces, but, flag) = match plan.uses_layer2 {
        true => (true, " but the L2Advertisements", " --without-l2-advertisements"),
        false => (!plan.uses_bgp, "", ""),
    };
    let waits = plan.uses_layer2 && (args.without_l2_advertisements || !is_applied);
    if !is_applied {
        steps.push(format!(
            "Install Ferrogate's definitions and namespace, then its objects{but}: `ferrogate migrate metallb \
             --apply{flag}`, or `kubectl apply --server-side -f {OBJECTS}` from --output. MetalLB does not look at them."
        ));
    }
    let all = |first: &[&str]| {
        let flags = first.iter().copied().chain(plan.flags.iter().map(String::as_str));
        flags.collect::<Vec<_>>().join(" ")
    };
    steps.push(format!(
        "Stop MetalLB's controller: `kubectl -n {theirs} scale deployment controller --replicas=0`. Addresses stay \
         where they are; until the next step new Services wait."
    ));
    steps.push(format!(
        "Start Ferrogate's controller with {}. It takes over every Service with its address; look at \
         `ferrogate status --metallb-compat`, or at the conditions of the Services.",
        all(&["--metallb-compat"])
    ));
    if announces {
        let flags = Some(all(&[])).filter(|flags| !flags.is_empty()).map(|flags| format!(" with {flags}"));
        steps.push(format!(
            "Layer 2: start Ferrogate's speakers{}, beside MetalLB's and without --metallb-compat. They find nothing to \
             announce yet. Wait until every one of them is ready.",
            flags.unwrap_or_default()
        ));
    }
    if waits {
        steps.push(format!(
            "Add the L2Advertisements: `ferrogate migrate metallb --apply`, or `kubectl apply --server-side -f {LAYER_2}` \
             from --output. For each address the speakers choose the node that MetalLB has chosen, and both answer there \
             with the same hardware address."
        ));
    }
    if plan.uses_bgp {
        steps.push(
            "BGP: a router takes one session from one address, so change node by node: MetalLB's speaker away (a \
             nodeSelector on its DaemonSet), Ferrogate's there, until the session is established; the other nodes \
             carry the traffic meanwhile."
                .to_owned(),
        );
    }
    if announces {
        steps.push(format!(
            "Take MetalLB's L2Advertisements away, keeping what you need to go back: `kubectl -n {theirs} delete \
             l2advertisements.metallb.io --all`, and wait until `kubectl -n {theirs} get servicel2statuses.metallb.io` \
             shows none. Else each of its speakers hands its addresses to another of them as it goes."
        ));
    }
    steps.push(format!(
        "Stop MetalLB's speakers: `kubectl -n {theirs} delete daemonset speaker`. The way back up to here: stop \
         Ferrogate, start MetalLB; it finds every address in the Services."
    ));
    steps.push(format!(
        "Uninstall MetalLB. Its chart takes its definitions and objects along; Ferrogate's in {ours} stand by then."
    ));
    if !plan.annotations.is_empty() {
        steps.push(format!(
            "To drop --metallb-compat: `kubectl apply --server-side -f {ANNOTATIONS}` from --output, and the same in \
             your sources."
        ));
    }
    let mut text = "Steps:\n".to_owned();
    for (number, step) in (1..).zip(steps) {
        let _ = writeln!(text, "{number}. {step}");
    }
    text
}
