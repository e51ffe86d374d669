//! The import rule of ARCHITECTURE.md, held by a machine: which of our crates may use which, what must never reach
//! `core` and `wire`, and where two outside names may be spelled. And that one build serves every command.
//!
//! Each rule is a plain function from facts to complaints, so that each is also shown to fail on made-up facts.
//! Features are unified across the workspace in `cargo metadata`, so a rule about a feature (such as the randomness
//! of the operating system in `rand`) cannot be held here; `core/clippy.toml` holds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use cargo_metadata::{DependencyKind, MetadataCommand};

const PREFIX: &str = "ferrogate-";
const PROOF: &str = "ferrogate-integration";

/// Which of our crates each of our crates may use, without the prefix.
const ALLOWED: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("crds", &[]),
    ("core", &["wire"]),
    ("cluster", &["core", "crds"]),
    ("controller", &["core"]),
    ("proxy", &["core", "wire"]),
    ("speaker", &["core", "wire"]),
    ("cli", &["core", "wire", "crds", "cluster", "controller", "speaker", "proxy"]),
    ("integration", &["core", "wire", "crds", "cluster", "controller", "speaker", "proxy", "cli"]),
];

/// What must not be reachable from a crate by ordinary and build dependencies.
const UNREACHABLE: &[(&str, &[&str])] = &[
    ("wire", &["tokio", "mio", "kube", "kube-client", "tracing", "socket2", "async-std", "smol", "nix", "rustix"]),
    ("core", &["tokio", "mio", "kube", "kube-client", "tracing", "socket2", "async-std", "smol", "nix", "rustix"]),
    ("controller", &["kube", "kube-client", "k8s-openapi"]),
    ("speaker", &["kube", "kube-client", "k8s-openapi"]),
    ("proxy", &["kube", "kube-client", "k8s-openapi", "rtnetlink", "pnet"]),
];

/// What a crate must not name as a dependency of its own, although it may be linked for another reason.
const UNNAMED: &[(&str, &[&str])] = &[
    ("wire", &["pnet"]),
    ("crds", &["tokio"]),
    ("cluster", &["socket2", "hyper"]),
    ("controller", &["socket2"]),
    ("cli", &["kube", "socket2", "rtnetlink", "pnet"]),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Shipped,
    Development,
}

/// Packages by name, with what each depends on.
#[derive(Default)]
struct Graph {
    ours: BTreeSet<String>,
    edges: BTreeMap<String, BTreeSet<(String, Kind)>>,
}

impl Graph {
    fn of_this_workspace() -> Self {
        let metadata = MetadataCommand::new()
            .manifest_path(root().join("Cargo.toml"))
            .other_options(["--locked".to_owned(), "--filter-platform".to_owned(), host()])
            .exec()
            .expect("cargo metadata describes this workspace");
        let names: BTreeMap<_, _> =
            metadata.packages.iter().map(|package| (package.id.clone(), package.name.to_string())).collect();
        let ours = metadata.workspace_members.iter().map(|id| names[id].clone()).collect();
        let mut edges = BTreeMap::<_, BTreeSet<_>>::new();
        for node in metadata.resolve.expect("the dependency graph is resolved").nodes {
            let uses = edges.entry(names[&node.id].clone()).or_default();
            for dependency in node.deps {
                let shipped = dependency.dep_kinds.iter().any(|found| found.kind != DependencyKind::Development);
                let kind = if shipped { Kind::Shipped } else { Kind::Development };
                uses.insert((names[&dependency.pkg].clone(), kind));
            }
        }
        Self { ours, edges }
    }

    fn uses(&self, package: &str) -> impl Iterator<Item = (&str, Kind)> {
        self.edges.get(package).into_iter().flatten().map(|(name, kind)| (name.as_str(), *kind))
    }

    /// Everything linked into a package, each with one path that leads to it.
    fn closure(&self, package: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut open = vec![(package.to_owned(), package.to_owned())];
        while let Some((name, path)) = open.pop() {
            for (next, kind) in self.uses(&name) {
                if kind == Kind::Shipped && !found.contains_key(next) {
                    let path = format!("{path} -> {next}");
                    found.insert(next.to_owned(), path.clone());
                    open.push((next.to_owned(), path));
                }
            }
        }
        found
    }
}

fn wrong_names(graph: &Graph) -> Vec<String> {
    let known: BTreeSet<_> = ALLOWED.iter().map(|(name, _)| format!("{PREFIX}{name}")).collect();
    graph.ours.iter().filter(|name| !known.contains(*name)).map(|name| format!("{name} has no place here")).collect()
}

fn forbidden_edges(graph: &Graph) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, allowed) in ALLOWED {
        let package = format!("{PREFIX}{name}");
        for (used, _) in graph.uses(&package).filter(|(used, _)| graph.ours.contains(*used)) {
            let bare = used.strip_prefix(PREFIX).unwrap_or(used);
            if !allowed.contains(&bare) {
                complaints.push(format!("{package} must not use {used}"));
            }
        }
    }
    complaints
}

fn shipped_proof(graph: &Graph) -> Vec<String> {
    let others = graph.ours.iter().filter(|name| *name != PROOF);
    let guilty = others.filter(|name| graph.uses(name).any(|(used, _)| used == PROOF));
    guilty.map(|name| format!("{name} uses {PROOF}, which is never shipped")).collect()
}

fn forbidden_reach(graph: &Graph) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, forbidden) in UNREACHABLE {
        let closure = graph.closure(&format!("{PREFIX}{name}"));
        complaints.extend(forbidden.iter().filter_map(|name| closure.get(*name)).cloned());
    }
    complaints
}

fn forbidden_names(graph: &Graph) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, forbidden) in UNNAMED {
        let package = format!("{PREFIX}{name}");
        let guilty = graph.uses(&package).filter(|(used, kind)| *kind == Kind::Shipped && forbidden.contains(used));
        complaints.extend(guilty.map(|(used, _)| format!("{package} must not name {used}")));
    }
    complaints
}

/// A source file: its path from the root, and its text.
struct Source {
    path: String,
    text: String,
}

/// `bgp-rs` decides the licence of the binary, so one file knows it and can be replaced.
fn codec_named_elsewhere(sources: &[Source]) -> Vec<String> {
    let (in_code, in_manifest) = (concat!("bgp", "_rs"), concat!("bgp", "-rs"));
    let guilty = sources.iter().filter(|source| match source.path.as_str() {
        "wire/src/bgp.rs" | "wire/Cargo.toml" | "Cargo.toml" => false,
        path if path.ends_with(".toml") => source.text.contains(in_manifest),
        _ => source.text.contains(in_code),
    });
    guilty.map(|source| format!("{} names {in_manifest}; only wire/src/bgp.rs may", source.path)).collect()
}

/// The proxy knows nothing of ARP, NDP, BGP or gossip.
fn proxy_beyond_http1(sources: &[Source]) -> Vec<String> {
    let word = concat!("ferrogate", "_wire");
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.path.starts_with("proxy/")) {
        for (number, line) in source.text.lines().enumerate() {
            if line.replace(&format!("{word}::http1"), "").contains(word) {
                complaints.push(format!("{}:{} uses more of wire than http1", source.path, number + 1));
            }
        }
    }
    complaints
}

/// Dependencies with their features, as cargo resolves them for a choice of packages; some are resolved twice, once for what
/// runs while others are compiled.
type Resolved = BTreeSet<(String, String)>;

/// What is compiled for the proof alone and not for all members together.
fn compiled_twice(proof: &Resolved, all: &Resolved) -> Vec<String> {
    let odd = proof.difference(all).map(|(package, features)| {
        let others = all.iter().filter(|(other, _)| other == package).map(|(_, features)| format!("[{features}]"));
        let others = others.collect::<Vec<_>>().join(" or ");
        format!("{package} is compiled with [{features}] for {PROOF} and with {others} for all members together")
    });
    odd.collect()
}

fn resolved(selection: &[&str]) -> Resolved {
    let format = ["--prefix", "none", "--no-dedupe", "--format", "{p}|{f}"];
    let mut tree = std::process::Command::new("cargo");
    tree.args(["tree", "--locked", "--quiet"]).args(selection).args(format).current_dir(root());
    let output = tree.output().expect("cargo runs");
    assert!(output.status.success(), "{tree:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo speaks UTF-8");
    text.lines().filter_map(|line| line.split_once('|')).map(|(p, f)| (p.to_owned(), f.to_owned())).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("integration lies in the workspace").to_owned()
}

/// The platform this test was built for, as rustc spells it.
fn host() -> String {
    let output = std::process::Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8(output.stdout).expect("rustc speaks UTF-8");
    text.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host").to_owned()
}

fn sources() -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    let mut open: Vec<_> = ALLOWED.iter().map(|(name, _)| root.join(name)).collect();
    open.push(root.join("Cargo.toml"));
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a folder of the workspace can be listed");
            open.extend(entries.map(|entry| entry.expect("an entry can be read").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "toml") {
            let text = fs::read_to_string(&path).expect("a source file is text");
            let path = path.strip_prefix(&root).expect("it lies below the root").display().to_string();
            found.push(Source { path, text });
        }
    }
    found
}

#[test]
fn every_crate_of_the_workspace_has_its_place_and_our_prefix() {
    assert_eq!(wrong_names(&Graph::of_this_workspace()), Vec::<String>::new());
}

#[test]
fn no_crate_uses_one_it_must_not() {
    let graph = Graph::of_this_workspace();

    assert_eq!(forbidden_edges(&graph), Vec::<String>::new());
    assert_eq!(forbidden_names(&graph), Vec::<String>::new());
}

#[test]
fn nothing_shipped_uses_the_proof() {
    assert_eq!(shipped_proof(&Graph::of_this_workspace()), Vec::<String>::new());
}

#[test]
fn nothing_that_waits_or_talks_reaches_a_crate_that_must_not() {
    assert_eq!(forbidden_reach(&Graph::of_this_workspace()), Vec::<String>::new());
}

#[test]
fn one_file_names_the_bgp_codec() {
    assert_eq!(codec_named_elsewhere(&sources()), Vec::<String>::new());
}

#[test]
fn the_proxy_uses_only_http1_of_wire() {
    assert_eq!(proxy_beyond_http1(&sources()), Vec::<String>::new());
}

#[test]
fn cargo_compiles_nothing_twice() {
    let proof = resolved(&["--package", PROOF, "--edges", "normal,build"]);
    let all = resolved(&["--workspace", "--edges", "normal,build,dev"]);

    assert_eq!(compiled_twice(&proof, &all), Vec::<String>::new());
}

/// The rules themselves, on worlds made up to break them.
mod a_broken_world_is_seen {
    use super::*;

    fn graph(edges: &[(&str, &str, Kind)]) -> Graph {
        let mut graph = Graph::default();
        for (from, to, kind) in edges {
            graph.edges.entry((*from).to_owned()).or_default().insert(((*to).to_owned(), *kind));
            for name in [from, to].into_iter().filter(|name| name.starts_with(PREFIX)) {
                graph.ours.insert((*name).to_owned());
            }
        }
        graph
    }

    #[test]
    fn a_crate_without_prefix_or_place() {
        let mut world = graph(&[]);
        world.ours.extend(["core".to_owned(), "ferrogate-utils".to_owned()]);

        assert_eq!(wrong_names(&world), ["core has no place here", "ferrogate-utils has no place here"]);
    }

    #[test]
    fn an_edge_between_rooms_even_for_development() {
        let world = graph(&[
            ("ferrogate-proxy", "ferrogate-speaker", Kind::Shipped),
            ("ferrogate-core", "ferrogate-wire", Kind::Shipped),
            ("ferrogate-core", "ferrogate-cluster", Kind::Development),
        ]);

        let expected =
            ["ferrogate-core must not use ferrogate-cluster", "ferrogate-proxy must not use ferrogate-speaker"];
        assert_eq!(forbidden_edges(&world), expected);
    }

    #[test]
    fn a_shipped_crate_that_uses_the_proof() {
        let world = graph(&[("ferrogate-cli", PROOF, Kind::Development)]);

        assert_eq!(shipped_proof(&world), ["ferrogate-cli uses ferrogate-integration, which is never shipped"]);
    }

    #[test]
    fn a_runtime_that_hides_behind_two_crates() {
        let world = graph(&[
            ("ferrogate-core", "innocent", Kind::Shipped),
            ("innocent", "inner", Kind::Shipped),
            ("inner", "tokio", Kind::Shipped),
        ]);

        assert_eq!(forbidden_reach(&world), ["ferrogate-core -> innocent -> inner -> tokio"]);
    }

    #[test]
    fn a_runtime_for_tests_only_is_allowed() {
        let world = graph(&[("ferrogate-core", "tokio", Kind::Development)]);

        assert_eq!(forbidden_reach(&world), Vec::<String>::new());
    }

    #[test]
    fn a_dependency_named_where_it_must_not_be() {
        let world = graph(&[("ferrogate-cluster", "socket2", Kind::Shipped)]);

        assert_eq!(forbidden_names(&world), ["ferrogate-cluster must not name socket2"]);
    }

    #[test]
    fn the_codec_in_a_second_file() {
        let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        let world = [
            source("wire/src/bgp.rs", concat!("use bgp", "_rs::Open;")),
            source("speaker/src/bgp.rs", concat!("use bgp", "_rs::Open;")),
        ];

        assert_eq!(
            codec_named_elsewhere(&world),
            [concat!("speaker/src/bgp.rs names bgp", "-rs; only wire/src/bgp.rs may")]
        );
    }

    #[test]
    fn a_feature_that_only_one_member_asks_for() {
        let resolved = |all: &[(&str, &str)]| all.iter().map(|(p, f)| ((*p).to_owned(), (*f).to_owned())).collect();
        let proof = resolved(&[("libc v0.2.0", "std"), ("tokio v1.0.0", "net")]);
        let all = resolved(&[("libc v0.2.0", "std"), ("rand v0.9.0", "std"), ("tokio v1.0.0", "net,rt")]);

        let expected =
            "tokio v1.0.0 is compiled with [net] for ferrogate-integration and with [net,rt] for all members together";
        assert_eq!(compiled_twice(&proof, &all), [expected]);
    }

    #[test]
    fn a_proxy_that_speaks_arp() {
        let text = concat!("use ferrogate", "_wire::http1;\nuse ferrogate", "_wire::arp;\n");
        let world = [Source { path: "proxy/src/lib.rs".to_owned(), text: text.to_owned() }];

        assert_eq!(proxy_beyond_http1(&world), ["proxy/src/lib.rs:2 uses more of wire than http1"]);
    }
}
