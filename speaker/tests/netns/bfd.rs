//! BFD on a real kernel: sessions between two of ours, and what becomes of an address when one is lost.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    num::NonZeroU8,
    time::{Duration, Instant},
};

use ferrogate_core::{
    model::node::Node,
    snapshot::Snapshot,
    speaker::bfd::{
        Change, Settings,
        sessions::{Neighbor, Path, Wanted, Wish},
    },
};
use ferrogate_speaker::{
    Metrics,
    bfd::{Bfd, Priority, Report},
};
use ferrogate_wire::{bfd::State, ethernet::Mac};
use prometheus_client::registry::Registry;
use rustix::thread::CapabilitySet;
use tokio::sync::mpsc;

use crate::stand::{
    CLIENT_IP, NODE_IP, Namespace, PATIENCE, RunningSpeaker, Stand, VIP, runtime, snapshot, with_interfaces,
};

mod peers;

/// 50 ms × 3, and as often as one likes.
const STEADY: Settings = Settings { damping: None, ..Settings::DEFAULT };

/// One end of sessions. Its thread comes before all that these tests and others do on this machine.
struct End {
    bfd: Bfd,
    reports: mpsc::Receiver<Report>,
    registry: Registry,
}

impl End {
    fn start(namespace: &Namespace) -> Self {
        let (sender, reports) = mpsc::channel(1024);
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let bfd = namespace.run(move || Bfd::start(sender, &metrics, Priority::RealTime)).unwrap();
        Self { bfd, reports, registry }
    }

    fn watches(&self, remote: IpAddr, local: IpAddr) {
        let path = Path { remote, local, interface: Some("eth0".into()), vrf: None };
        let wish = Wish { settings: STEADY, minimum_ttl: NonZeroU8::MAX };
        self.bfd.want(Wanted { sessions: [(path, wish)].into(), ..Wanted::default() });
    }

    fn lets_watch(&self, remote: IpAddr) {
        let neighbor = Neighbor { remote, interface: "eth0".into() };
        self.bfd.want(Wanted { permitted: [(neighbor, STEADY)].into(), ..Wanted::default() });
    }

    /// The next change, which must be to this state, and when it came.
    fn comes_to(&mut self, state: State) -> (Change, Instant) {
        let report = runtime().block_on(async { tokio::time::timeout(PATIENCE, self.reports.recv()).await });
        match report {
            Ok(Some(Report::Changed { change, at, .. })) if change.to == state => (change, at),
            other => panic!("{other:?} instead of a change to {state:?}"),
        }
    }

    /// Waits until a neighbour that has come up says so, and how often it sends from then on.
    fn reckons_with(&self, detection_time: Duration) {
        let give_up_at = Instant::now() + PATIENCE;
        while runtime().block_on(self.bfd.statuses())[0].1.detection_time != Some(detection_time) {
            assert!(Instant::now() < give_up_at, "the neighbour does not say that it is up");
        }
    }

    /// What changes within a time.
    fn changes_within(&mut self, time: Duration) -> Option<Report> {
        runtime().block_on(async { tokio::time::timeout(time, self.reports.recv()).await.ok().flatten() })
    }

    fn metrics(&self, prefix: &str) -> Vec<String> {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry).unwrap();
        page.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
    }
}

fn link_local(namespace: &Namespace) -> IpAddr {
    let mut addresses = namespace.netlink(async |netlink| crate::stand::addresses_on(&netlink, "eth0").await);
    addresses.retain(|address| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()));
    addresses.pop_first().unwrap()
}

#[test]
fn two_of_ours_come_up_over_either_family_and_say_when_one_is_switched_off() {
    let stand = Stand::new();
    let pairs =
        [(IpAddr::from(NODE_IP), IpAddr::from(CLIENT_IP)), (link_local(&stand.node), link_local(&stand.client))];
    for (near, far) in pairs {
        let (mut watcher, mut watched) = (End::start(&stand.node), End::start(&stand.client));

        watched.lets_watch(near);
        watcher.watches(far, near);

        watcher.comes_to(State::Up);
        watched.comes_to(State::Up);
        assert!(watcher.metrics("ferrogate_speaker_bfd_sessions").iter().any(|line| line.ends_with("\"Up\"} 1")));
        let statuses = runtime().block_on(watcher.bfd.statuses());
        assert_eq!(statuses.iter().map(|(_, status)| status.state).collect::<Vec<_>>(), [State::Up]);

        drop(watched.bfd);
        let (change, _) = watcher.comes_to(State::Down);
        assert_eq!(change.remote_state, State::AdminDown);
        assert!(!change.is_failure());
    }
}

#[test]
fn n_084_a_cut_link_is_noticed_within_the_detection_time_twenty_times_of_twenty() {
    let stand = Stand::new();
    let (mut watcher, watched) = (End::start(&stand.node), End::start(&stand.client));
    watched.lets_watch(NODE_IP.into());
    watcher.watches(CLIENT_IP.into(), NODE_IP.into());

    for round in 0..20 {
        watcher.comes_to(State::Up);
        watcher.reckons_with(Duration::from_millis(150));
        let since = Instant::now();
        stand.client.down("eth0");
        let cut = Instant::now();
        let (change, at) = watcher.comes_to(State::Down);

        // A packet may have been an interval old when the link was cut.
        let (least, most) = (at.saturating_duration_since(cut), at.saturating_duration_since(since));
        assert!(
            most >= Duration::from_millis(100) && least <= Duration::from_millis(200),
            "{round}: {least:?}, {most:?}"
        );
        assert!(change.is_failure());
        stand.client.up("eth0");
    }
}

#[test]
fn n_082_n_083_what_is_no_packet_of_a_neighbour_is_counted_and_nothing_else() {
    let stand = Stand::new();
    let (mut watcher, watched) = (End::start(&stand.node), End::start(&stand.client));
    watcher.watches(CLIENT_IP.into(), NODE_IP.into());
    // The socket is there when a packet has left by the session.
    watched.lets_watch(NODE_IP.into());
    watcher.comes_to(State::Up);
    let forger = stand.client.run(|| UdpSocket::bind((CLIENT_IP, 0)).unwrap());
    let from = |ttl: u32, bytes: &[u8]| {
        forger.set_ttl(ttl).unwrap();
        forger.send_to(bytes, (NODE_IP, 3784)).unwrap();
    };
    let down = |length: usize, version: u8| {
        let mut bytes = vec![version << 5, 1 << 6, 3, 24, 0, 0, 0, 9];
        bytes.resize(length, 0);
        bytes
    };

    from(254, &down(24, 1));
    from(255, &down(23, 1));
    from(255, &down(24, 0));
    from(255, &[]);
    // Packets of one socket keep their order, and this one takes the session down.
    let status = runtime().block_on(watcher.bfd.statuses())[0].1;
    let mut last = down(24, 1);
    last[8..12].copy_from_slice(&status.local_discriminator.get().to_be_bytes());
    from(255, &last);
    watcher.comes_to(State::Down);

    let discarded = watcher.metrics("ferrogate_speaker_bfd_discarded_total");
    let mut counted: Vec<&str> = discarded.iter().filter(|line| !line.ends_with(" 0")).map(String::as_str).collect();
    counted.sort();
    assert_eq!(
        counted,
        [
            "ferrogate_speaker_bfd_discarded_total{reason=\"Truncated\"} 2",
            "ferrogate_speaker_bfd_discarded_total{reason=\"Ttl\"} 1",
            "ferrogate_speaker_bfd_discarded_total{reason=\"Version\"} 1",
        ]
    );
}

#[test]
fn n_083_datagrams_of_strangers_that_fill_the_socket_take_no_session_down() {
    let stand = Stand::new();
    let (mut watcher, mut watched) = (End::start(&stand.node), End::start(&stand.client));
    watched.lets_watch(NODE_IP.into());
    watcher.watches(CLIENT_IP.into(), NODE_IP.into());
    watcher.comes_to(State::Up);
    watched.comes_to(State::Up);
    watcher.reckons_with(Duration::from_millis(150));
    let stranger = stand.client.run(|| UdpSocket::bind((CLIENT_IP, 0)).unwrap());
    stranger.set_ttl(255).unwrap();

    // They look like what may lie unread. A socket holds less than three hundred, and between two looks at it come more.
    let mut calm = [0; 24];
    calm[1] = 0xc0;
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        while f64::from(sent) < 20_000.0 * begun.elapsed().as_secs_f64() {
            stranger.send_to(&calm, (NODE_IP, 3784)).unwrap();
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }

    let discarded = watcher.metrics("ferrogate_speaker_bfd_discarded_total");
    assert!(discarded.iter().any(|line| line.contains("Version") && !line.ends_with(" 0")), "{discarded:?}");
    assert_eq!(watcher.changes_within(Duration::ZERO), None);
    assert_eq!(watched.changes_within(Duration::ZERO), None);
}

/// Two nodes on the cable.
fn two_nodes() -> Snapshot {
    let mut snapshot = snapshot([&[IpAddr::from(VIP)][..]]);
    let node = snapshot.nodes.get("node-a").unwrap();
    let other = Node { name: "node-b".into(), internal_addresses: vec![CLIENT_IP.into()], ..Node::clone(node) };
    snapshot.nodes.insert(other.name.clone(), other.into());
    snapshot
}

/// Gossip that would miss nobody for half an hour.
const SLOW_GOSSIP: &[&str] = &["--gossip-interval=10s", "--detect-multiplier=255"];

/// The speakers of two nodes, with their session up.
fn two_speakers(stand: &Stand, snapshot: &Snapshot, flags: &[&str]) -> [RunningSpeaker; 2] {
    stand.client.set("ipv4/conf/all/arp_ignore", "1");
    stand.client.set("ipv4/conf/all/arp_announce", "2");
    let speakers = [("node-a", &stand.node), ("node-b", &stand.client)].map(|(node, namespace)| {
        RunningSpeaker::start_on(node, namespace, snapshot.clone(), flags, CapabilitySet::empty())
    });
    let is_up = |speaker: &RunningSpeaker| {
        let states = speaker.metrics("ferrogate_speaker_bfd_sessions");
        states.iter().any(|line| line.ends_with("\"Up\"} 1"))
    };
    let give_up_at = Instant::now() + PATIENCE;
    while !speakers.iter().all(is_up) {
        assert!(Instant::now() < give_up_at, "no session");
    }
    stand.node.wait_until_held([VIP.into()]);
    stand.client.wait_until_held([]);
    speakers
}

#[test]
fn next_in_line_takes_over_when_the_session_with_the_owner_is_lost_whatever_gossip_says() {
    let stand = Stand::new();
    let speakers = two_speakers(&stand, &two_nodes(), SLOW_GOSSIP);

    stand.node.lose("eth0", CLIENT_IP.into());
    stand.client.lose("eth0", NODE_IP.into());

    stand.client.wait_until_held([VIP.into()]);
    speakers.into_iter().for_each(RunningSpeaker::kill);
}

#[test]
fn an_interface_that_is_dead_while_gossip_goes_on_by_another_costs_its_node_the_address() {
    let (near, far) = (Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2));
    let stand = Stand::new();
    stand.lay_cable("eth1", Mac([2, 0, 0, 0, 0, 2]));
    stand.node.up("eth1");
    stand.node.add_address("eth1", near.into(), 24);
    stand.client.add_address("eth1", far.into(), 24);
    stand.node.wait_until_linked("eth1");
    stand.client.wait_until_linked("eth1");
    let speakers = two_speakers(&stand, &with_interfaces(two_nodes(), &["eth1"]), &["--hand-over-grace=0s"]);

    stand.node.lose("eth1", far.into());
    stand.client.lose("eth1", near.into());

    stand.client.wait_until_held([VIP.into()]);
    stand.node.wait_until_held([]);
    speakers.into_iter().for_each(RunningSpeaker::kill);
}
