//! `ferrogate`: one binary, one role per process.

mod admin;
mod bgp;
mod doctor;
mod explain;
mod layer2;
mod migrate;
mod ready;
mod router_config;
mod run;
mod scrape;
mod source;
mod status;
mod table;
mod telemetry;
mod tls;
mod transfer;
mod webhook;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    explain::ExplainArgs,
    run::{ControllerArgs, ProxyArgs, SpeakerArgs, StandaloneArgs},
    source::SourceArgs,
    telemetry::LogArgs,
};

/// External addresses for LoadBalancer Services, and the gateway behind them.
#[derive(Parser)]
#[command(name = "ferrogate", version, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Give Services addresses from pools, and write what became of them
    Controller(Box<ControllerArgs>),
    /// Announce addresses from this node
    Speaker(Box<SpeakerArgs>),
    /// Serve Ingress, and forward TCP and UDP, on this node
    Proxy(Box<ProxyArgs>),
    /// Controller, speaker and proxy in one process, on a folder of manifests
    Standalone(Box<StandaloneArgs>),
    /// Show Services with their addresses and owners, pools, and what was left out
    Status(status::StatusArgs),
    /// Say why: the chain from an external address to its endpoints, or why there is none
    Explain(ExplainArgs),
    /// Give an address to another node, or back to the order of the election
    Move(transfer::MoveArgs),
    /// Print what the router of a BGPPeer needs to accept our nodes, in the words of its vendor
    RouterConfig(router_config::RouterConfigArgs),
    /// Look for what would keep Ferrogate from working on this host
    Doctor {
        #[command(flatten)]
        source: SourceArgs,
        /// Shape of the answer
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Move to Ferrogate from something else: show what would change, and write what it takes
    #[command(subcommand)]
    Migrate(migrate::From),
    /// Ask one process of this host, by its name, whether it is ready; the exit code says so
    Ready(ready::ReadyArgs),
    /// Print the version and the licence of this binary
    Version,
}

/// Shape of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match telemetry::start(&cli.log).and_then(|()| dispatch(cli.command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ferrogate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    // Two workers: a disk that is slow to sync must not hold up the task that answers ARP.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match command {
        Command::Controller(args) => runtime.block_on(run::controller(*args)),
        Command::Speaker(args) => runtime.block_on(run::speaker(*args)),
        Command::Proxy(args) => runtime.block_on(run::proxy(*args)),
        Command::Standalone(args) => runtime.block_on(run::standalone(*args)),
        Command::Status(args) => runtime.block_on(status::show(&args)),
        Command::Explain(args) => runtime.block_on(explain::show(&args)),
        Command::Move(args) => runtime.block_on(transfer::transfer(&args)),
        Command::RouterConfig(args) => runtime.block_on(router_config::show(&args)),
        Command::Doctor { source, output } => runtime.block_on(status::doctor(&source, output)),
        Command::Migrate(from) => runtime.block_on(migrate::migrate(from)),
        Command::Ready(args) => ready::ask(&args),
        Command::Version => {
            println!("ferrogate {}", env!("CARGO_PKG_VERSION"));
            println!("source Apache-2.0; this binary GPL-3.0-or-later, because it links bgp-rs (see NOTICE)");
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    fn flags(command: &clap::Command) -> BTreeSet<String> {
        let own = command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_owned);
        own.chain(command.get_subcommands().flat_map(flags)).collect()
    }

    #[test]
    fn whatever_the_documents_tell_people_to_type_is_understood() {
        for document in ["layer2.md", "bgp.md"] {
            is_understood(document);
        }
    }

    fn is_understood(document: &str) {
        let path = format!("{}/../docs/{document}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();

        let commands: Vec<&str> = text.lines().filter(|line| line.starts_with("ferrogate ")).collect();
        assert!(commands.len() >= 5, "{document}: {commands:?}");
        for command in commands {
            let parsed = Cli::try_parse_from(command.split_whitespace());
            assert!(parsed.is_ok(), "{command}: {}", parsed.err().unwrap());
        }
        let flags = flags(&Cli::command());
        let words =
            text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter_map(|word| word.strip_prefix("--"));
        for flag in words.filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase())) {
            assert!(flags.contains(flag), "--{flag} is no flag");
        }
    }
}
