//! `cargo verify`: every check as one command.
//!
//! A stage is a list of steps; a step is a command with the build it needs. Builds are timed apart, the steps of a
//! stage share its budget, and what overruns is killed with everything it started. Every test target of the workspace
//! belongs to exactly one stage ([`plan::stage_of`]), so a new test file is run without being listed anywhere.

use std::time::Duration;

use clap::ValueEnum;

pub mod kernel;
pub mod needs;
pub mod plan;
pub mod report;
pub mod run;

/// One group of checks with a budget of its own, in the order they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Stage {
    /// Format, clippy, documentation, licences and bans.
    Lint,
    /// Tables, properties and everything else that needs only a processor.
    Unit,
    /// The simulator: the real core for many nodes on a virtual clock.
    Sim,
    /// Namespaces: the lab, and rooms on real interfaces.
    Net,
    /// BGP and its BFD against real routers.
    Bgp,
    /// A real Kubernetes control plane.
    Kube,
    /// Every decoder against bytes nobody thought of.
    Fuzz,
    /// The examples, and the README's own commands.
    Examples,
}

impl Stage {
    /// As it is written after `--only`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Sim => "sim",
            Self::Net => "net",
            Self::Bgp => "bgp",
            Self::Kube => "kube",
            Self::Fuzz => "fuzz",
            Self::Examples => "examples",
        }
    }

    /// How long its steps may take together, builds apart.
    pub fn budget(self, length: Length) -> Duration {
        let minutes = match (self, length) {
            (Self::Lint | Self::Unit, _) => 4,
            (Self::Net, Length::Short) => 6,
            (Self::Bgp, _) => 8,
            // Every word of ten thousand worlds is sealed and opened.
            (Self::Sim, Length::Short) => 8,
            (Self::Kube, Length::Short) => 20,
            (Self::Fuzz, Length::Short) | (Self::Examples, _) => 3,
            (Self::Sim, Length::Long) => 30,
            (Self::Kube | Self::Fuzz, Length::Long) => 60,
            // Half an hour of it is the events of layer 2 by one profile.
            (Self::Net, Length::Long) => 120,
        };
        Duration::from_secs(minutes * 60)
    }

    /// What the short run of this stage does less of, as `what: short (long with --long)`.
    pub fn shortened(self) -> Option<String> {
        let short = Length::Short;
        let long = Length::Long;
        match self {
            Self::Sim => Some(format!("simulator seeds: {} ({})", short.seeds(), long.seeds())),
            Self::Net => Some(format!("runs of the lab: {} ({})", short.lab_runs(), long.lab_runs())),
            Self::Fuzz => Some(format!("inputs for each decoder: {} ({})", short.inputs(), long.inputs())),
            Self::Lint | Self::Unit | Self::Bgp | Self::Kube | Self::Examples => None,
        }
    }
}

/// How much is run of what can be run for any length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Within the budgets of an ordinary run.
    Short,
    /// Soaks and large tables.
    Long,
}

impl Length {
    /// Seeds for the simulator.
    pub fn seeds(self) -> u64 {
        match self {
            Self::Short => 10_000,
            Self::Long => 100_000,
        }
    }

    /// How many times the lab is run from nothing.
    pub fn lab_runs(self) -> u32 {
        match self {
            Self::Short => 1,
            Self::Long => 30,
        }
    }

    /// Inputs for each fuzz target.
    pub fn inputs(self) -> u64 {
        match self {
            Self::Short => 1_000_000,
            Self::Long => 10_000_000,
        }
    }
}
