//! Sessions with the BFD of FRR and of BIRD, as they come with Debian.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    sync::mpsc as std_mpsc,
    thread,
};

use nix::unistd::{User, chown};
use tempfile::TempDir;

use super::*;

const FRR: &str = "/usr/lib/frr";

/// A router's BFD on the client's end of the cable, with a session to the node in each family. It ends with this value.
struct Peer {
    daemons: Vec<Child>,
    _folder: TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Peer {
    /// Ends it without a word.
    fn kill(&mut self) {
        for daemon in &mut self.daemons {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
        self.daemons.clear();
    }

    fn start(name: &str, stand: &Stand) -> Self {
        if name == "FRR" { Self::frr(stand) } else { Self::bird(stand) }
    }

    fn frr(stand: &Stand) -> Self {
        let folder = folder("frr");
        let (near, far) = (link_local(&stand.node), link_local(&stand.client));
        let timers = "  receive-interval 50\n  transmit-interval 50\n  detect-multiplier 3\n";
        let config = format!(
            "bfd\n peer {NODE_IP} interface eth0\n{timers} exit\n peer {near} local-address {far} interface eth0\n{timers}"
        );
        let file = folder.path().join("frr.conf");
        fs::write(&file, config).unwrap();
        let daemon = |name: &str| {
            let mut command = real_time(&format!("{FRR}/{name}"));
            let path = |file: &str| folder.path().join(file);
            command.args(["-P", "0", "-f"]).arg(&file);
            command.arg("-i").arg(path(name)).arg("-z").arg(path("zserv")).arg("--vty_socket").arg(folder.path());
            if name == "bfdd" {
                command.arg("--bfdctl").arg(path("bfdd.sock"));
            }
            command
        };
        let (zebra, bfdd) = (daemon("zebra"), daemon("bfdd"));
        // bfdd asks zebra for the interfaces, again and again until it is there.
        let daemons = vec![start(&stand.client, zebra), start(&stand.client, bfdd)];
        Self { daemons, _folder: folder }
    }

    fn bird(stand: &Stand) -> Self {
        let folder = folder("bird");
        let (near, far) = (link_local(&stand.node), link_local(&stand.client));
        let config = format!(
            "log stderr {{ fatal, bug, error }};\nrouter id {CLIENT_IP};\nprotocol device {{ }}\nprotocol bfd {{\n\
             interface \"eth0\" {{ min rx interval 50 ms; min tx interval 50 ms; idle tx interval 1 s; multiplier 3; }};\n\
             neighbor {NODE_IP} dev \"eth0\";\nneighbor {near} dev \"eth0\" local {far};\n}}\n"
        );
        let path = |file: &str| folder.path().join(file);
        fs::write(path("bird.conf"), config).unwrap();
        let mut bird = real_time("/usr/sbin/bird");
        bird.arg("-f").arg("-c").arg(path("bird.conf")).arg("-s").arg(path("ctl")).arg("-P").arg(path("pid"));
        let daemons = vec![start(&stand.client, bird)];
        Self { daemons, _folder: folder }
    }
}

/// A program that comes before what else runs on this machine, as ours does: otherwise it is the machine that is tested.
fn real_time(program: &str) -> Command {
    let mut command = Command::new("chrt");
    command.args(["--fifo", "1", program]);
    command
}

/// A folder of its own that a user of this name may write in.
fn folder(user: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let user = User::from_name(user).unwrap();
    let user = user.expect("FRR and BIRD are installed: apt-get install frr bird2");
    chown(folder.path(), Some(user.uid), Some(user.gid)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn start(namespace: &Namespace, mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    namespace.run(move || command.spawn()).expect("chrt is there: apt-get install util-linux")
}

/// Waits until a neighbour speaks to this address of the node.
fn wait_until_spoken_to(node: &Namespace, address: IpAddr) {
    let (sender, heard) = std_mpsc::channel();
    let listener = node.run(move || {
        let scope = pnet::datalink::interfaces().into_iter().find(|interface| interface.name == "eth0").unwrap().index;
        match address {
            IpAddr::V4(address) => UdpSocket::bind((address, 3784)).unwrap(),
            IpAddr::V6(address) => UdpSocket::bind(std::net::SocketAddrV6::new(address, 3784, 0, scope)).unwrap(),
        }
    });
    thread::spawn(move || {
        let spoken = listener.recv_from(&mut [0; 64]).map(drop);
        // The port is free again when this is told.
        drop(listener);
        sender.send(spoken)
    });
    heard.recv_timeout(PATIENCE).expect("the neighbour speaks").unwrap();
}

#[test]
fn n_080_n_087_sessions_with_frr_and_bird_come_up_whoever_starts_and_stay_until_the_peer_dies() {
    for (name, is_first) in [("FRR", true), ("FRR", false), ("BIRD", true), ("BIRD", false)] {
        let stand = Stand::new();
        let addresses = [IpAddr::from(NODE_IP), link_local(&stand.node)];
        let remotes = [IpAddr::from(CLIENT_IP), link_local(&stand.client)];
        for (local, remote) in addresses.into_iter().zip(remotes) {
            let mut peer = None;
            if !is_first {
                peer = Some(Peer::start(name, &stand));
                wait_until_spoken_to(&stand.node, local);
            }
            let mut end = End::start(&stand.node);
            end.watches(remote, local);
            let mut peer = peer.unwrap_or_else(|| Peer::start(name, &stand));

            end.comes_to(State::Up);
            end.reckons_with(Duration::from_millis(150));

            let context = format!("{name} over {local}, ours first: {is_first}");
            // As many seconds as a loop of Up and Down would have shown itself in.
            assert_eq!(end.changes_within(Duration::from_secs(3)), None, "{context}");
            peer.kill();
            let killed = Instant::now();
            let (change, at) = end.comes_to(State::Down);
            assert!(change.is_failure(), "{context}: {change:?}");
            let silent = at.saturating_duration_since(killed);
            assert!(silent <= Duration::from_millis(200), "{context}: {silent:?}");
        }
    }
}
