//! A real speaker on a real kernel: every frame it sends is seen from the other end of the cable.
//!
//! That something is *not* sent is shown by a question that is answered afterwards: frames of one cable keep their
//! order, so what is missing before the answer was never sent. Nothing waits for a fixed time.
#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

mod bfd;
mod narrow;
mod stand;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_core::{snapshot::Snapshot, write::Write};
use ferrogate_speaker::{HostError, RunError};
use ferrogate_wire::{
    arp::{Arp, Operation},
    ethernet::Mac,
    ndp::{Advertisement, Ndp, solicited_node},
};

use rustix::thread::CapabilitySet;
use socket2::{Domain, Socket, Type};

use crate::stand::{
    CLIENT_IP, CLIENT_IP6, NODE_IP, NODE_MAC, Namespace, PATIENCE, RunningSpeaker, Seen, Stand, VIP, VIP6, question,
    question6, snapshot, with_interfaces,
};

const BOTH: [IpAddr; 2] = [IpAddr::V4(VIP), IpAddr::V6(VIP6)];
/// In the pool, of no Service.
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 8);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3457);

/// The first announcement and no more, so that only questions are answered after it.
const ONCE: &[&str] = &["--announce-quick=0", "--announce-slow=0"];

/// Announcements that go on for a while: a new link of two namespaces swallows frames in its first moments.
const AGAIN: &[&str] = &["--announce-quick=10", "--announce-quick-interval=20ms", "--announce-slow=0"];

fn both_announced(seen: &mut stand::Tap) {
    let mut missing = BTreeSet::from(BOTH);
    while !missing.is_empty() {
        if let Some((address, mac)) = seen.next().says()
            && missing.remove(&address)
        {
            assert_eq!(mac, NODE_MAC);
        }
    }
}

#[test]
fn n_103_an_address_taken_over_is_told_in_every_form_as_often_as_configured() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let flags = ["--announce-quick=2", "--announce-quick-interval=20ms", "--announce-slow=0"];

    let speaker = stand.speaker(snapshot([&BOTH[..]]), &flags);

    let round = [
        Seen::Arp(Arp::announcement(Operation::Request, VIP, NODE_MAC)),
        Seen::Arp(Arp::announcement(Operation::Reply, VIP, NODE_MAC)),
        Seen::Ndp(Ndp::Advertisement(Advertisement::announcement(VIP6, NODE_MAC))),
    ];
    let mut told = Vec::new();
    while told.len() < 9 {
        told.extend(Some(client.next()).filter(|seen| seen.is_about(VIP) || seen.is_about(VIP6)));
    }
    for form in &round {
        assert_eq!(told.iter().filter(|seen| *seen == form).count(), 3, "{form:?}");
    }
    client.ask(VIP);
    let rest = client.up_to(|seen| seen.is_answer_about(VIP));
    assert_eq!(rest.iter().filter(|seen| seen.says().is_some() && !seen.is_answer()).count(), 0, "{rest:?}");
    speaker.stop().unwrap();
}

#[test]
fn n_100_questions_about_an_owned_address_are_answered_and_no_others() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);
    both_announced(&mut client);

    client.ask(OTHER);
    client.ask6(CLIENT_IP6, OTHER6);
    client.ask(VIP);
    client.ask6(CLIENT_IP6, VIP6);

    let mut answers = client.up_to(|seen| seen.is_answer_about(VIP));
    let last = answers.pop().unwrap();
    if !answers.iter().any(|seen| seen.is_answer_about(VIP6)) {
        answers.extend(client.up_to(|seen| seen.is_answer_about(VIP6)));
    }
    assert_eq!(last, Seen::Arp(Arp::answer(&question(CLIENT_IP, VIP), NODE_MAC)));
    let expected = Advertisement::answer(&question6(CLIENT_IP6, VIP6), NODE_MAC);
    assert!(expected.is_solicited && expected.overrides && !expected.is_router);
    assert!(answers.contains(&Seen::Ndp(Ndp::Advertisement(expected))));
    assert!(!answers.iter().any(|seen| seen.is_about(OTHER) || seen.is_about(OTHER6)), "{answers:?}");
    speaker.stop().unwrap();
}

#[test]
fn n_100_the_kernel_of_a_client_reaches_the_node_by_both_families() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);
    both_announced(&mut client);

    for address in BOTH {
        // As the proxy does: no interface has the address.
        let listener = stand.node.run(move || {
            let socket = Socket::new(Domain::for_address((address, 0).into()), Type::DGRAM, None).unwrap();
            if address.is_ipv6() {
                socket.set_freebind_v6(true).unwrap();
            }
            socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
            std::net::UdpSocket::from(socket)
        });
        listener.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let source: IpAddr = if address.is_ipv4() { CLIENT_IP.into() } else { CLIENT_IP6.into() };
        let sender = stand.client.run(move || std::net::UdpSocket::bind((source, 0)).unwrap());

        sender.send_to(b"?", (address, port)).unwrap();

        let (_, from) = listener.recv_from(&mut [0]).unwrap();
        assert_eq!(from.ip(), source);
    }
    speaker.stop().unwrap();
}

#[test]
fn n_101_who_asks_whether_an_owned_address_is_free_learns_that_it_is_not() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);
    both_announced(&mut client);

    let probe = question(Ipv4Addr::UNSPECIFIED, VIP);
    client.send(&probe.encode());
    client.up_to(|seen| *seen == Seen::Arp(Arp::answer(&probe, NODE_MAC)));
    client.ask6(Ipv6Addr::UNSPECIFIED, VIP6);
    let defence = Ndp::Advertisement(Advertisement::announcement(VIP6, NODE_MAC));
    client.up_to(|seen| *seen == Seen::Ndp(defence.clone()));

    speaker.stop().unwrap();
}

#[test]
fn n_102_frames_that_are_not_right_are_never_answered() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);
    both_announced(&mut client);
    let arp = question(CLIENT_IP, VIP);
    let with = |offset: usize, bytes: &[u8]| {
        let mut frame = arp.encode().to_vec();
        frame[offset..offset + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let ndp = question6(CLIENT_IP6, VIP6).encode();
    let ndp_with = |offset: usize, byte: u8| {
        let mut frame = ndp.clone();
        frame[offset] = byte;
        frame
    };
    let mut vlan = arp.encode().to_vec();
    vlan.splice(12..12, [0x81, 0, 0, 5]);

    for frame in [
        arp.encode()[..40].to_vec(),
        with(14, &[0, 6]),
        with(16, &[0x86, 0xdd]),
        with(18, &[8]),
        with(20, &[0, 9]),
        with(6, &[1, 0, 0x5e, 0, 0, 1]),
        with(22, &[0xff; 6]),
        with(28, &VIP.octets()),
        with(0, &[2, 0, 0, 0, 0, 0x77]),
        vlan,
        ndp[..80].to_vec(),
        ndp_with(21, 64),
        ndp_with(55, 1),
        ndp_with(56, ndp[56] ^ 1),
        ndp_with(79, 0),
    ] {
        client.send(&frame);
    }
    client.ask(VIP);
    let mut answers = client.up_to(|seen| seen.is_answer_about(VIP));
    client.ask6(CLIENT_IP6, VIP6);
    answers.extend(client.up_to(|seen| seen.is_answer_about(VIP6)));

    assert_eq!(answers.iter().filter(|seen| seen.is_answer()).count(), 2, "{answers:?}");
    speaker.stop().unwrap();
}

#[test]
fn n_104_a_client_that_holds_an_old_entry_follows_the_first_frame() {
    let stand = Stand::new();
    let former = Mac([2, 0, 0, 0, 0, 9]);
    for address in BOTH {
        stand.client.believe("eth0", address, former);
    }

    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);

    for address in BOTH {
        stand.client.wait_until_believed(address, NODE_MAC);
    }
    speaker.stop().unwrap();
}

#[test]
fn n_107_an_interface_that_comes_back_is_announced_on_again_within_a_second() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);
    both_announced(&mut client);
    stand.node.down("eth0");
    let since = Instant::now();
    stand.node.up("eth0");

    // Each round has one advertisement, and that of the first round was seen.
    client.up_to(|seen| seen.is_about(VIP6));
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    client.ask_until_answered(&question(CLIENT_IP, VIP).encode(), VIP);
    client.ask_until_answered(&question6(CLIENT_IP6, VIP6).encode(), VIP6);
    speaker.stop().unwrap();
}

#[test]
fn n_107_an_interface_that_appears_later_is_announced_on_and_answers() {
    let stand = Stand::new();
    let mut first = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), AGAIN);
    both_announced(&mut first);

    stand.lay_cable("eth1", NODE_MAC);
    let mut second = stand.watch("eth1");
    stand.node.up("eth1");

    both_announced(&mut second);
    second.ask_until_answered(&question(CLIENT_IP, VIP).encode(), VIP);
    assert!(groups(&stand.node, "eth1").contains(&solicited_node(VIP6)));
    speaker.stop().unwrap();
}

#[test]
fn n_107_an_interface_made_anew_under_its_old_name_is_served_like_the_first() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), AGAIN);
    both_announced(&mut client);
    drop(client);

    stand.client.delete("eth0");
    stand.lay_cable("eth0", NODE_MAC);
    let mut client = stand.watch("eth0");
    stand.node.up("eth0");

    both_announced(&mut client);
    assert!(groups(&stand.node, "eth0").contains(&solicited_node(VIP6)));
    client.ask_until_answered(&question(CLIENT_IP, VIP).encode(), VIP);
    client.ask_until_answered(&question6(CLIENT_IP6, VIP6).encode(), VIP6);
    speaker.stop().unwrap();
}

/// Groups an interface is in, as the kernel shows them.
fn groups(node: &Namespace, interface: &str) -> BTreeSet<Ipv6Addr> {
    let table = node.read("/proc/thread-self/net/igmp6");
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_interface = lines.filter(|fields| fields[1] == interface);
    of_interface.map(|fields| u128::from_str_radix(fields[2], 16).unwrap().into()).collect()
}

/// The kernel tells of no joins, so this one wait asks again and again.
fn await_groups(node: &Namespace, interface: &str, are_right: impl Fn(&BTreeSet<Ipv6Addr>) -> bool) {
    let give_up_at = Instant::now() + PATIENCE;
    while !are_right(&groups(node, interface)) {
        assert!(Instant::now() < give_up_at, "{:?} on {interface}", groups(node, interface));
    }
}

#[test]
fn n_108_the_group_of_an_address_is_joined_and_told_to_switches_and_left_with_the_last() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let group = solicited_node(VIP6);
    let twin = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x112, 0x3456);
    assert_eq!(solicited_node(twin), group, "it is made of the last 24 bits");
    let services = [[IpAddr::V6(VIP6)], [IpAddr::V6(twin)]];
    let of = |count: usize| Arc::new(snapshot(services[..count].iter().map(|addresses| &addresses[..])));
    let mut speaker = stand.speaker(Snapshot::clone(&of(2)), ONCE);

    // MLDv2 (RFC 3810 §5.2) in IPv6 with a hop-by-hop option: type 143, the group somewhere in its records.
    let reports = |seen: &Seen| match seen {
        Seen::Other(frame) => frame.get(62) == Some(&143) && frame.windows(16).any(|window| window == group.octets()),
        _ => false,
    };
    client.up_to(reports);
    assert!(groups(&stand.node, "eth0").contains(&group));

    speaker.snapshots.send_replace(of(1));
    while !matches!(speaker.writes.blocking_recv(), Some(Write::L2Status { status: None, .. })) {}
    client.ask6(CLIENT_IP6, VIP6);
    client.up_to(|seen| seen.is_answer_about(VIP6));
    assert!(groups(&stand.node, "eth0").contains(&group));

    speaker.snapshots.send_replace(of(0));
    await_groups(&stand.node, "eth0", |groups| !groups.contains(&group));
    speaker.stop().unwrap();
}

#[test]
fn n_108_five_thousand_addresses_join_their_groups() {
    let stand = Stand::new();
    let addresses: Vec<[IpAddr; 1]> =
        (0..5000).map(|low| [IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, low))]).collect();
    let mut speaker = stand.speaker(snapshot(addresses.iter().map(|address| &address[..])), ONCE);

    speaker.wait_until_ready();

    let joined = groups(&stand.node, "eth0");
    let missing = addresses.iter().filter(|[address]| match address {
        IpAddr::V6(address) => !joined.contains(&solicited_node(*address)),
        IpAddr::V4(_) => true,
    });
    assert_eq!(missing.count(), 0);
    assert_eq!(stand.node.held().len(), 5000);
    speaker.kill();
}

#[test]
fn n_109_unrelated_traffic_never_reaches_the_speaker_and_no_interface_is_promiscuous() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);
    both_announced(&mut client);

    let mut unrelated = question6(CLIENT_IP6, VIP6).encode();
    for (next_header, icmp_type) in [(17, 135), (6, 136), (58, 128), (58, 134)] {
        unrelated[20] = next_header;
        unrelated[54] = icmp_type;
        for _ in 0..500 {
            client.send(&unrelated);
        }
    }
    client.ask6(CLIENT_IP6, VIP6);
    client.up_to(|seen| seen.is_answer_about(VIP6));

    assert_eq!(speaker.metrics("ferrogate_speaker_refused_frames_total"), Vec::<String>::new());
    let flags = stand.node.run(|| {
        let interfaces = pnet::datalink::interfaces();
        interfaces.into_iter().find(|interface| interface.name == "eth0").unwrap().flags
    });
    assert_eq!(flags & libc::IFF_PROMISC as u32, 0);
    speaker.stop().unwrap();
}

#[test]
fn n_113_announcements_leave_by_the_selected_interface_only_and_carry_its_address() {
    let stand = Stand::new();
    let mac = Mac([2, 0, 0, 0, 0, 2]);
    stand.lay_cable("eth1", mac);
    stand.node.up("eth1");
    stand.node.wait_until_linked("eth1");
    let mut unselected = stand.watch("eth0");
    let mut selected = stand.watch("eth1");

    let speaker = stand.speaker(with_interfaces(snapshot([&BOTH[..]]), &["eth1"]), ONCE);

    let mut told = selected.up_to(|seen| seen.is_about(VIP));
    if !told.iter().any(|seen| seen.is_about(VIP6)) {
        told.extend(selected.up_to(|seen| seen.is_about(VIP6)));
    }
    assert!(told.iter().filter_map(Seen::says).all(|(_, said)| said == mac), "{told:?}");
    unselected.ask(VIP);
    // The kernel answers for the node's own address.
    unselected.ask(NODE_IP);
    let elsewhere = unselected.up_to(|seen| seen.is_answer_about(NODE_IP));
    assert!(!elsewhere.iter().any(|seen| seen.is_about(VIP) || seen.is_about(VIP6)), "{elsewhere:?}");
    speaker.stop().unwrap();
}

#[test]
fn an_owned_address_is_on_the_host_and_taken_off_when_no_service_has_it() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);
    both_announced(&mut client);
    assert_eq!(stand.node.held(), BTreeSet::from(BOTH));

    speaker.snapshots.send_replace(Arc::new(snapshot([])));
    stand.node.wait_until_held([]);

    speaker.snapshots.send_replace(Arc::new(snapshot([&BOTH[..1]])));
    stand.node.wait_until_held([VIP.into()]);
    speaker.stop().unwrap();
    assert_eq!(stand.node.held(), BTreeSet::new());
}

#[test]
fn a_node_whose_proxy_is_not_ready_falls_silent_at_once() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), &[ONCE, &["--hand-over-grace=0s"]].concat());
    both_announced(&mut client);

    speaker.proxy_ready.send_replace(false);
    stand.node.wait_until_held([]);
    client.ask(VIP);
    client.ask(NODE_IP);

    let seen = client.up_to(|seen| seen.is_answer_about(NODE_IP));
    assert!(!seen.iter().any(|seen| seen.is_about(VIP)), "{seen:?}");
    speaker.stop().unwrap();
}

#[test]
fn what_a_killed_speaker_left_on_the_host_is_swept_and_nothing_else() {
    let stand = Stand::new();
    let foreign = IpAddr::from([203, 0, 113, 5]);
    stand.node.add_address("lo", foreign, 32);
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);
    both_announced(&mut client);

    speaker.kill();
    assert_eq!(stand.node.held(), BTreeSet::from([BOTH[0], BOTH[1], foreign]));

    // The address still in use stays, the other is swept after the grace.
    let again = stand.speaker(snapshot([&BOTH[..1]]), &[ONCE, &["--hand-over-grace=100ms"]].concat());
    stand.node.wait_until_held([VIP.into(), foreign]);
    again.stop().unwrap();
    stand.node.wait_until_held([foreign]);
}

#[test]
fn what_the_loopback_interface_lost_when_it_went_down_is_put_on_it_again() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);
    both_announced(&mut client);

    stand.node.down("lo");
    // The kernel keeps local routes of IPv4.
    stand.node.wait_until_held([VIP.into()]);
    stand.node.up("lo");

    stand.node.wait_until_held(BOTH);
    speaker.stop().unwrap();
    assert_eq!(stand.node.held(), BTreeSet::new());
}

#[test]
fn what_the_loopback_interface_lost_is_put_on_it_again_though_nobody_saw_it_down() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);
    both_announced(&mut client);

    // Some of the times it is up again before the speaker looks.
    for _ in 0..20 {
        stand.node.flap("lo");
        stand.node.wait_until_held(BOTH);
    }

    speaker.stop().unwrap();
    assert_eq!(stand.node.held(), BTreeSet::new());
}

#[test]
fn what_a_killed_speaker_left_and_the_loopback_interface_lost_is_put_on_it_again() {
    let stand = Stand::new();
    let mut client = stand.watch("eth0");
    let speaker = stand.speaker(snapshot([&BOTH[..]]), ONCE);
    both_announced(&mut client);
    speaker.kill();
    let other = [IpAddr::from(OTHER6)];
    let again = stand.speaker(snapshot([&other[..]]), &[ONCE, &["--hand-over-grace=60s"]].concat());
    stand.node.wait_until_held([BOTH[0], BOTH[1], other[0]]);

    stand.node.flap("lo");
    // What is held is back, so the speaker knows.
    stand.node.wait_until_held([BOTH[0], other[0]]);
    again.snapshots.send_replace(Arc::new(snapshot([&other[..], &BOTH[..]])));

    stand.node.wait_until_held([BOTH[0], BOTH[1], other[0]]);
    again.stop().unwrap();
    assert_eq!(stand.node.held(), BTreeSet::new());
}

#[test]
fn a_kernel_that_would_answer_by_itself_is_refused_with_the_remedy() {
    for (setting, value) in [("arp_ignore", "0"), ("arp_announce", "1")] {
        let stand = Stand::new();
        stand.node.set(&format!("ipv4/conf/all/{setting}"), value);

        let error = stand.speaker(snapshot([&BOTH[..]]), ONCE).fails();

        assert!(matches!(error, RunError::Host(HostError::KernelAnswers { .. })), "{error}");
        let text = error.to_string();
        assert!(text.contains(setting) && text.contains("eth0") && text.contains("sysctl -w net.ipv4"), "{text}");
        assert_eq!(stand.node.held(), BTreeSet::new());
    }
}

#[test]
fn with_nothing_to_announce_no_raw_socket_is_opened_and_the_kernel_may_be_as_it_likes() {
    let stand = Stand::new();
    stand.node.set("ipv4/conf/all/arp_ignore", "0");
    let mut speaker = stand.speaker(snapshot([]), &[]);

    speaker.wait_until_ready();

    assert_eq!(stand.node.read("/proc/thread-self/net/packet").lines().count(), 1, "only the heading");
    assert_eq!(stand.node.read("/proc/thread-self/net/udp").lines().count(), 1, "only the heading");
    speaker.stop().unwrap();
}

#[test]
fn n_125_a_missing_capability_is_named_with_the_remedy() {
    let stand = Stand::new();
    for (missing, name) in [(CapabilitySet::NET_RAW, "CAP_NET_RAW"), (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN")] {
        let speaker = RunningSpeaker::start(&stand.node, snapshot([&BOTH[..]]), ONCE, missing);

        let error = speaker.fails().to_string();

        assert!(error.contains(name) && error.contains("run it as root"), "{error}");
    }
}
