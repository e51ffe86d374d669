//! A link that carries small packets only (RFC 791 wants 576 bytes of everyone): no IPv6 there, and everything else as
//! anywhere.

use std::{net::IpAddr, sync::Arc, time::Instant};

use ferrogate_core::{model::node::Node, snapshot::Snapshot};
use rtnetlink::{LinkUnspec, LinkVeth};
use rustix::thread::CapabilitySet;

use crate::stand::{CLIENT_IP, Namespace, PATIENCE, RunningSpeaker, Stand, VIP, question, snapshot};

const MTU: u32 = 576;

/// Further interfaces of a node; what a speaker says of them takes more than one packet.
const INTERFACES: u32 = 24;

fn narrow(namespace: &Namespace) {
    namespace.netlink(async |netlink| {
        let link = LinkUnspec::new_with_name("eth0").mtu(MTU).build();
        netlink.link().set(link).execute().await.unwrap();
    });
}

/// Cables within the node, each end an interface that could be announced on.
fn add_interfaces(namespace: &Namespace) {
    namespace.netlink(async |netlink| {
        for number in (0..INTERFACES).step_by(2) {
            let (near, far) = (format!("lan{number:08}"), format!("lan{:08}", number + 1));
            netlink.link().add(LinkVeth::new(&near, &far).build()).execute().await.unwrap();
            for end in [near, far] {
                netlink.link().set(LinkUnspec::new_with_name(&end).up().build()).execute().await.unwrap();
            }
        }
    });
}

/// `node-a` and `node-b`, which is where the client is.
fn two_nodes() -> Snapshot {
    let address: IpAddr = VIP.into();
    let mut facts = snapshot([&[address][..]]);
    let node =
        Node { name: "node-b".into(), internal_addresses: vec![CLIENT_IP.into()], ..(*facts.nodes["node-a"]).clone() };
    facts.nodes.insert(node.name.clone(), Arc::new(node));
    facts
}

#[test]
fn on_a_link_of_576_bytes_addresses_are_announced_and_answered_and_speakers_hear_each_other() {
    let stand = Stand::new();
    for namespace in [&stand.node, &stand.client] {
        narrow(namespace);
        add_interfaces(namespace);
    }
    let mut client = stand.watch("eth0");

    let flags = ["--bfd-profile=off", "--announce-quick=20", "--announce-quick-interval=20ms", "--announce-slow=0"];
    let start = |node: &str, namespace: &Namespace| {
        RunningSpeaker::start_on(node, namespace, two_nodes(), &flags, CapabilitySet::empty())
    };
    let (one, two) = (start("node-a", &stand.node), start("node-b", &stand.client));

    let give_up_at = Instant::now() + PATIENCE;
    let hears = |speaker: &RunningSpeaker| {
        speaker.metrics("ferrogate_speaker_members ") == ["ferrogate_speaker_members 1".to_owned()]
    };
    while !(hears(&one) && hears(&two)) {
        assert!(Instant::now() < give_up_at, "they do not hear each other");
        // Words that are longer than the link come in pieces, so there is something to wait for.
        client.next();
    }
    // Whoever had the address, now it is this one.
    two.stop().unwrap();
    client.ask_until_answered(&question(CLIENT_IP, VIP).encode(), VIP);
    assert!(!one.metrics("ferrogate_speaker_announcements_total").is_empty());
    let fragments = stand.node.read("/proc/thread-self/net/snmp");
    let (names, counts) = {
        let mut lines = fragments.lines().filter(|line| line.starts_with("Ip:")).map(|line| line.split_whitespace());
        (lines.next().unwrap(), lines.next().unwrap())
    };
    let made = names.zip(counts).find(|(name, _)| *name == "FragCreates").unwrap().1;
    assert_ne!(made, "0", "nothing was longer than the link");
    assert_eq!(one.metrics("ferrogate_speaker_unsent_frames"), Vec::<String>::new());
    one.stop().unwrap();
}
