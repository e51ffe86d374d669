//! What the stages need on this machine beyond Rust itself, and how to get it.

use std::{path::Path, process::Stdio};

use super::Stage;
use crate::workspace::Command;

/// Something that must be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// How people call it.
    pub name: &'static str,
    /// The command that succeeds when it is there.
    probe: &'static [&'static str],
    source: Source,
    stages: &'static [Stage],
}

/// Where something comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A package of Debian and its descendants.
    Debian(&'static str),
    /// A program from crates.io.
    Cargo(&'static str),
    /// A component of the Rust toolchain.
    Rustup(&'static str),
    /// What nobody can do for a person; in words.
    ByHand(&'static str),
}

/// Everything any stage needs.
const NEEDS: &[Need] = &[
    Need {
        name: "a C compiler and linker",
        probe: &["cc", "--version"],
        source: Source::Debian("gcc libc6-dev"),
        stages: &[
            Stage::Lint,
            Stage::Unit,
            Stage::Sim,
            Stage::Net,
            Stage::Bgp,
            Stage::Kube,
            Stage::Fuzz,
            Stage::Examples,
        ],
    },
    Need {
        name: "Go (Kubernetes is built from its modules)",
        // Succeeds when this Go can read the module: it is new enough, or may fetch one that is.
        probe: &["env", "GOTOOLCHAIN=auto", "go", "-C", "integration/kube", "list", "-m"],
        source: Source::ByHand(
            "Go 1.26 or later from https://go.dev/dl, or the golang-go of a distribution that has 1.21 or later, \
             which fetches the rest by itself",
        ),
        stages: &[Stage::Kube],
    },
    Need {
        name: "nft (kube-proxy)",
        probe: &["nft", "--version"],
        source: Source::Debian("nftables"),
        stages: &[Stage::Kube],
    },
    Need {
        name: "FRR and BIRD (neighbours for BFD and BGP)",
        probe: &["sh", "-c", "ls /usr/lib/frr/bfdd /usr/lib/frr/bgpd /usr/lib/frr/zebra /usr/sbin/bird"],
        source: Source::Debian("frr bird2"),
        stages: &[Stage::Net, Stage::Bgp],
    },
    Need {
        name: "GoBGP and ExaBGP (neighbours for BGP)",
        probe: &["sh", "-c", "command -v gobgpd && command -v exabgp"],
        source: Source::Debian("gobgpd exabgp"),
        stages: &[Stage::Net, Stage::Bgp, Stage::Kube],
    },
    Need {
        name: "setpriv and chrt",
        probe: &["sh", "-c", "setpriv --version && chrt --version"],
        source: Source::Debian("util-linux"),
        stages: &[Stage::Net, Stage::Kube],
    },
    Need {
        name: "libfaketime (a clock of day that is set while a process runs)",
        probe: &[
            "sh",
            "-c",
            "ls /usr/lib/faketime/libfaketimeMT.so.1 /usr/lib*/*/faketime/libfaketimeMT.so.1 | grep -q .",
        ],
        source: Source::Debian("libfaketime"),
        stages: &[Stage::Kube],
    },
    Need {
        name: "a C++ compiler (libFuzzer)",
        probe: &["c++", "--version"],
        source: Source::Debian("g++"),
        stages: &[Stage::Fuzz],
    },
    Need {
        name: "curl (the README's commands)",
        probe: &["curl", "--version"],
        source: Source::Debian("curl"),
        stages: &[Stage::Examples],
    },
    Need {
        name: "rustfmt",
        probe: &["cargo", "fmt", "--version"],
        source: Source::Rustup("rustfmt"),
        stages: &[Stage::Lint],
    },
    Need {
        name: "clippy",
        probe: &["cargo", "clippy", "--version"],
        source: Source::Rustup("clippy"),
        stages: &[Stage::Lint],
    },
    Need {
        name: "cargo-deny",
        probe: &["cargo", "deny", "--version"],
        source: Source::Cargo("cargo-deny"),
        stages: &[Stage::Lint],
    },
    Need {
        name: "cargo-fuzz",
        probe: &["cargo", "fuzz", "--version"],
        source: Source::Cargo("cargo-fuzz"),
        stages: &[Stage::Fuzz],
    },
];

impl Need {
    /// The commands that install it. Packages of the system need root: without it the command is still the right advice.
    pub fn remedy(&self) -> Vec<Command> {
        match self.source {
            Source::Debian(packages) => vec![
                Command::new("apt-get").args(["update"]),
                Command::new("apt-get")
                    .args(["install", "--yes", "--no-install-recommends"])
                    .args(packages.split(' '))
                    .env("DEBIAN_FRONTEND", "noninteractive"),
            ],
            Source::Cargo(package) => vec![Command::cargo(["install", "--locked", package])],
            Source::Rustup(component) => vec![Command::new("rustup").args(["component", "add", component])],
            Source::ByHand(_) => Vec::new(),
        }
    }

    /// How to get it, as a person is told.
    pub fn advice(&self) -> String {
        match self.source {
            Source::ByHand(words) => words.to_owned(),
            _ => self.remedy().iter().map(ToString::to_string).collect::<Vec<_>>().join(" && "),
        }
    }

    /// Why it cannot be installed from here, if so.
    pub fn obstacle(&self) -> Option<&'static str> {
        if matches!(self.source, Source::ByHand(_)) {
            return Some("it is not known how to get it on this system");
        }
        let system = matches!(self.source, Source::Debian(_));
        if system && !nix::unistd::Uid::effective().is_root() {
            return Some("packages of the system are installed by root only");
        }
        if system && !Path::new("/usr/bin/apt-get").exists() {
            return Some("there is no apt-get here");
        }
        None
    }

    fn is_met(&self) -> bool {
        let probe = Command::new(self.probe[0]).args(&self.probe[1..]);
        let mut probe = probe.to_std();
        let status = probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }
}

/// What these stages need and this machine lacks.
pub fn missing(stages: &[Stage]) -> Vec<Need> {
    let wanted = NEEDS.iter().filter(|need| need.stages.iter().any(|stage| stages.contains(stage)));
    wanted.filter(|need| !need.is_met()).copied().collect()
}
