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
        name: "nft (kube-proxy, and a judge of what is passed on)",
        probe: &["nft", "--version"],
        source: Source::Debian("nftables"),
        stages: &[Stage::Net, Stage::Kube],
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
        name: "ip and bridge (judges of the link)",
        probe: &["sh", "-c", "ip -V && bridge -V"],
        source: Source::Debian("iproute2"),
        stages: &[Stage::Net],
    },
    Need {
        // The one with `-D`; another package has another program of that name.
        name: "arping of iputils, and ndisc6 (judges of the link)",
        probe: &["sh", "-c", "arping -V | grep -q iputils && ndisc6 -V"],
        source: Source::Debian("iputils-arping ndisc6"),
        stages: &[Stage::Net],
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
            // Optimised they would be built for minutes and then run for seconds.
            Source::Cargo(package) => vec![Command::cargo(["install", "--locked", "--debug", package])],
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A need whose program nobody has.
    fn absent(source: Source) -> Need {
        Need { name: "a router", probe: &["/nonexistent/router", "--version"], source, stages: &[Stage::Bgp] }
    }

    #[test]
    fn n_121_every_router_is_needed_where_it_is_spoken_with_and_can_be_installed() {
        for router in ["FRR", "BIRD", "GoBGP", "ExaBGP"] {
            let need = NEEDS.iter().find(|need| need.name.contains(router)).unwrap();

            assert!(need.stages.contains(&Stage::Bgp), "{router}");
            assert!(matches!(need.source, Source::Debian(_)), "{router}");
        }
    }

    #[test]
    fn n_121_a_peer_that_is_missing_is_installed_or_is_a_failure_with_its_remedy() {
        let debian = absent(Source::Debian("frr bird2"));
        assert!(!debian.is_met());
        assert!(debian.advice().contains("apt-get install --yes --no-install-recommends frr bird2"));
        // Either it is installed, or there is a reason why that cannot be.
        assert!(!debian.remedy().is_empty() || debian.obstacle().is_some());

        let by_hand = absent(Source::ByHand("from https://router.example"));
        assert!(by_hand.obstacle().is_some() && by_hand.advice() == "from https://router.example");
    }

    #[test]
    fn n_121_everything_that_is_needed_has_a_remedy_in_words() {
        for need in NEEDS {
            assert!(!need.advice().is_empty() && !need.stages.is_empty(), "{}", need.name);
        }
    }
}
