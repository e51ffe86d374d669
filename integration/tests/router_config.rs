//! What `ferrogate router-config` prints for FRR, BIRD and GoBGP is taken by the daemons themselves.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{fs, path::PathBuf, process::Command};

use ferrogate_integration::workspace;
use tempfile::TempDir;

/// Two nodes, pools of both families, and peers with everything that can be asked for and with nothing of it.
const MANIFESTS: &str = r"
apiVersion: v1
kind: Node
metadata: {name: node-1}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}, {type: InternalIP, address: '2001:db8::11'}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-2.rack-1}
status: {addresses: [{type: InternalIP, address: 192.0.2.12}, {type: InternalIP, address: '2001:db8::12'}]}
---
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: {name: first}
spec: {addresses: [198.51.100.0/25, 203.0.113.7-203.0.113.19, '2001:db8:1::/112']}
---
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: {name: second}
spec: {addresses: [203.0.113.99/32, '2001:db8:2::1/128']}
---
apiVersion: ferrogate.io/v1beta1
kind: BFDProfile
metadata: {name: fast}
spec: {transmitInterval: 50, receiveInterval: 60, detectMultiplier: 4, minimumTtl: 250}
---
apiVersion: ferrogate.io/v1beta1
kind: BGPPeer
metadata: {name: plain}
spec: {myASN: 64500, peerASN: 64496, peerAddress: 192.0.2.1}
---
apiVersion: ferrogate.io/v1beta1
kind: BGPPeer
metadata: {name: plain.of-ipv6}
spec: {myASN: 64500, peerASN: 64496, peerAddress: '2001:db8::1'}
---
apiVersion: ferrogate.io/v1beta1
kind: BGPPeer
metadata: {name: our-own-as}
spec: {myASN: 64500, peerASN: 64500, peerAddress: 192.0.2.2, bfdProfile: fast}
---
apiVersion: ferrogate.io/v1beta1
kind: BGPPeer
metadata: {name: everything}
spec:
  myASN: 4200000000
  peerASN: 4200000001
  peerAddress: 192.0.2.3
  peerPort: 1790
  password: secret
  bfdProfile: fast
  enableGracefulRestart: true
  ebgpMultiHop: true
  dualStackAddressFamily: true
---
apiVersion: ferrogate.io/v1beta1
kind: BGPPeer
metadata: {name: counted}
spec: {myASN: 64500, peerASN: 64496, peerAddress: 192.0.2.4, ttlSecurityHops: 3}
";

const PEERS: [&str; 5] = ["plain", "plain.of-ipv6", "our-own-as", "everything", "counted"];

/// A folder of manifests, and files beside it.
struct Stand {
    folder: TempDir,
    product: PathBuf,
}

impl Stand {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("manifests")).unwrap();
        fs::write(folder.path().join("manifests/all.yaml"), MANIFESTS).unwrap();
        Self { folder, product: workspace::ship().unwrap() }
    }

    /// What a command prints, which must succeed.
    fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(&self.product);
        command.args(arguments).arg("--manifests").arg(self.folder.path().join("manifests"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The configuration of a peer in a file, and its text.
    fn config(&self, peer: &str, vendor: &str) -> (PathBuf, String) {
        let text = self.run(&["router-config", "--peer", peer, "--vendor", vendor]);
        let path = self.folder.path().join(format!("{peer}.{vendor}"));
        fs::write(&path, &text).unwrap();
        (path, text)
    }
}

/// Expects that a program takes a configuration without complaint.
fn is_taken(command: &mut Command, text: &str) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let complains = said.lines().any(|line| line.starts_with('%') || line.contains("rror"));
    assert!(output.status.success() && !complains, "{command:?}: {said}\n{text}");
}

#[test]
fn frr_takes_what_is_printed_for_it() {
    let stand = Stand::new();
    for peer in PEERS {
        let (path, text) = stand.config(peer, "frr");

        is_taken(Command::new("vtysh").arg("--dryrun").arg("--inputfile").arg(&path), &text);
    }
}

#[test]
fn bird_takes_what_is_printed_for_it() {
    let stand = Stand::new();
    for peer in PEERS {
        let (path, text) = stand.config(peer, "bird");

        // Without an IPv4 address of its own it would not know its identifier, which no file of ours can make up.
        let text = if text.contains("\nrouter id ") { text } else { format!("router id 192.0.2.1;\n{text}") };
        fs::write(&path, &text).unwrap();
        is_taken(Command::new("/usr/sbin/bird").arg("-p").arg("-c").arg(&path), &text);
    }
}

#[test]
fn gobgp_takes_what_is_printed_for_it() {
    let stand = Stand::new();
    for peer in PEERS {
        let (path, text) = stand.config(peer, "gobgp");

        is_taken(Command::new("gobgpd").arg("--dry-run").arg("--config-file").arg(&path), &text);
    }
}

#[test]
fn a_router_is_told_of_the_nodes_that_were_asked_for_and_of_no_others() {
    let stand = Stand::new();

    let text = stand.run(&["router-config", "--peer", "everything", "--vendor", "frr", "--node", "node-2.rack-1"]);

    assert!(text.contains("neighbor 192.0.2.12 peer-group") && !text.contains("192.0.2.11"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn sessions_that_no_speaker_reports_are_listed_as_missing_in_words_and_as_json() {
    let stand = Stand::new();

    let table = stand.run(&["status", "bgp", "--node", "node-1", "--routes"]);
    let json = stand.run(&["status", "bgp", "--peer", "plain", "--output", "json"]);

    assert_eq!(table.lines().filter(|line| line.contains("the speaker of node-1 does not report it")).count(), 5);
    assert!(table.contains("ADVERTISED TO"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let nodes: Vec<&str> =
        json["sessions"].as_array().unwrap().iter().map(|session| session["node"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["node-1", "node-2.rack-1"]);
}
