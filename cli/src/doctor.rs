//! `ferrogate doctor`: looks at this host and at the source of facts, and says what would keep Ferrogate from working.
//!
//! It only looks; nothing is changed. Reading the host goes through [`Host`], so that tests lay out a host of files.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use crate::table::Table;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing to do.
    Ok,
    /// Works, but something asked for later may not.
    Warning,
    /// Something will not work.
    Failure,
}

/// One check: what was looked at, how it came out, what was found and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub finding: String,
    /// What to do; empty when nothing is to be done.
    pub remedy: String,
}

impl Check {
    /// Nothing to do.
    pub fn ok(name: &str, finding: impl Into<String>) -> Self {
        Self { name: name.to_owned(), verdict: Verdict::Ok, finding: finding.into(), remedy: String::new() }
    }

    /// Works, but not everything will.
    pub fn warning(name: &str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (finding, remedy) = (finding.into(), remedy.into());
        Self { name: name.to_owned(), verdict: Verdict::Warning, finding, remedy }
    }

    /// Will not work.
    pub fn failure(name: &str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (finding, remedy) = (finding.into(), remedy.into());
        Self { name: name.to_owned(), verdict: Verdict::Failure, finding, remedy }
    }
}

/// The files of a host that tell about its kernel.
pub struct Host {
    root: PathBuf,
}

/// Linux capabilities Ferrogate may need: bit, name, who needs it.
const CAPABILITIES: [(u32, &str, &str); 3] = [
    (13, "NET_RAW", "the speaker answers ARP and NDP with it"),
    (12, "NET_ADMIN", "in directory mode the speaker puts addresses on the host with it"),
    (10, "NET_BIND_SERVICE", "the proxy opens ports below net.ipv4.ip_unprivileged_port_start with it"),
];

/// Watches that a folder of manifests may need before the kernel's limit is felt.
const COMFORTABLE_WATCHES: u64 = 8192;

/// Files that thousands of proxied connections need: two sockets each.
const COMFORTABLE_FILES: u64 = 16_384;

impl Host {
    /// This host.
    pub fn this() -> Self {
        Self { root: PathBuf::from("/") }
    }

    fn read(&self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.root.join(path)).ok()?.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    /// Every check that only reads files.
    pub fn checks(&self) -> Vec<Check> {
        let mut checks = vec![self.kernel()];
        checks.extend(self.capabilities());
        checks.push(self.arp());
        checks.push(self.low_ports());
        checks.push(self.watches());
        checks.push(self.open_files());
        checks
    }

    fn kernel(&self) -> Check {
        const NAME: &str = "kernel";
        let Some(release) = self.read("proc/sys/kernel/osrelease") else {
            return Check::failure(NAME, "no /proc/sys/kernel/osrelease", "run on Linux with /proc mounted");
        };
        let mut parts = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        match (parts.next(), parts.next()) {
            (Some(major), Some(minor)) if (major, minor) >= (4, 20) => Check::ok(NAME, release),
            _ => Check::failure(NAME, release, "4.20 is the first release with PACKET_IGNORE_OUTGOING; upgrade"),
        }
    }

    fn capabilities(&self) -> Vec<Check> {
        let status = self.read("proc/self/status").unwrap_or_default();
        let effective = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0);
        let check = |(bit, name, purpose): &(u32, &str, &str)| {
            let title = format!("capability {name}");
            if effective & (1 << bit) != 0 {
                return Check::ok(&title, "held");
            }
            Check::warning(&title, "not held", format!("{purpose}: grant it to that role, or run it as root"))
        };
        CAPABILITIES.iter().map(check).collect()
    }

    /// The kernel must not answer ARP for addresses that the speaker keeps on `lo`.
    fn arp(&self) -> Check {
        const NAME: &str = "kernel ARP";
        let interfaces = fs::read_dir(self.root.join("proc/sys/net/ipv4/conf")).into_iter().flatten().flatten();
        let names = interfaces.filter_map(|entry| entry.file_name().into_string().ok());
        let mut loose: Vec<String> = names
            .filter(|name| !matches!(name.as_str(), "all" | "default" | "lo"))
            .filter(|name| self.arp_value(name, "arp_ignore") < 1 || self.arp_value(name, "arp_announce") < 2)
            .collect();
        loose.sort();
        if loose.is_empty() {
            return Check::ok(NAME, "arp_ignore and arp_announce keep addresses on lo to themselves");
        }
        Check::warning(
            NAME,
            format!("would answer for addresses on lo at {}", loose.join(", ")),
            "before announcing in directory mode: sysctl net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2",
        )
    }

    fn arp_value(&self, interface: &str, setting: &str) -> u64 {
        let of = |name: &str| self.number(&format!("proc/sys/net/ipv4/conf/{name}/{setting}")).unwrap_or(0);
        of("all").max(of(interface))
    }

    fn low_ports(&self) -> Check {
        const NAME: &str = "unprivileged ports";
        match self.number("proc/sys/net/ipv4/ip_unprivileged_port_start") {
            Some(start) if start <= 80 => Check::ok(NAME, format!("from {start}")),
            Some(start) => Check::warning(
                NAME,
                format!("from {start}"),
                "a proxy without NET_BIND_SERVICE needs sysctl net.ipv4.ip_unprivileged_port_start=0 for port 80",
            ),
            None => Check::warning(NAME, "not known", "mount /proc/sys to let this be checked"),
        }
    }

    fn watches(&self) -> Check {
        const NAME: &str = "inotify watches";
        let limit = self.number("proc/sys/fs/inotify/max_user_watches").unwrap_or(0);
        if limit >= COMFORTABLE_WATCHES {
            return Check::ok(NAME, limit.to_string());
        }
        Check::warning(NAME, limit.to_string(), format!("sysctl fs.inotify.max_user_watches={COMFORTABLE_WATCHES}"))
    }

    fn open_files(&self) -> Check {
        const NAME: &str = "open files";
        let limits = self.read("proc/self/limits").unwrap_or_default();
        let soft = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .and_then(|rest| rest.split_whitespace().next())
            .map(|soft| soft.parse().unwrap_or(u64::MAX))
            .unwrap_or(0);
        if soft >= COMFORTABLE_FILES {
            return Check::ok(NAME, soft.to_string());
        }
        Check::warning(
            NAME,
            soft.to_string(),
            format!("a busy proxy needs two files a connection: ulimit -n {COMFORTABLE_FILES}"),
        )
    }
}

/// Whether a port that a role will want is free.
pub fn port_is_free(name: &str, taken: io::Result<()>, address: SocketAddr) -> Check {
    match taken {
        Ok(()) => Check::ok(name, format!("{address} is free")),
        Err(error) => Check::warning(
            name,
            format!("{address}: {error}"),
            "fine if Ferrogate itself runs here already; otherwise stop what holds it, or choose another by flag",
        ),
    }
}

/// Binds each port for a moment.
pub fn ports(gossip: u16, admin: &[(&str, SocketAddr)]) -> Vec<Check> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, gossip));
    let mut checks = vec![port_is_free("gossip port (UDP)", UdpSocket::bind(any).map(drop), any)];
    for (role, address) in admin {
        checks.push(port_is_free(&format!("admin port of the {role}"), TcpListener::bind(address).map(drop), *address));
    }
    checks
}

/// Whether the speaker of this host seals its gossip, by what its metrics say; nothing where no speaker answers.
pub fn gossip(admin: SocketAddr) -> Option<Check> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    // More than all metrics of a speaker come to, and a bound on what a stranger can make us hold.
    stream.take(MAX_METRICS).read_to_string(&mut answer).ok()?;
    is_gossip_sealed(&answer)
}

/// The most that is read of a speaker's metrics, in bytes.
const MAX_METRICS: u64 = 16 << 20;

fn is_gossip_sealed(metrics: &str) -> Option<Check> {
    const NAME: &str = "gossip of the speaker";
    let renewals = metrics.lines().find_map(|line| line.strip_prefix("ferrogate_speaker_lease_renewals_total "));
    if renewals.is_some_and(|renewals| renewals.trim() != "0") {
        return Some(Check::ok(NAME, "none; speakers know each other by Leases"));
    }
    match metrics.lines().find_map(|line| line.strip_prefix("ferrogate_speaker_gossip_sealed "))?.trim() {
        "1" => Some(Check::ok(NAME, "sealed with a key")),
        _ => Some(Check::warning(
            NAME,
            "not sealed: any host on the network of the nodes can make speakers give up or take addresses",
            "give every speaker the same --gossip-key; SECURITY.md says how to make one",
        )),
    }
}

/// Whether statuses can be kept in this folder, or in the nearest parent that exists.
pub fn state_folder(state: &Path) -> Check {
    const NAME: &str = "state folder";
    let existing = state.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    match tempfile::Builder::new().prefix(".ferrogate-doctor").tempfile_in(existing) {
        Ok(_) => Check::ok(NAME, format!("{} can be written", state.display())),
        Err(error) => Check::failure(
            NAME,
            format!("{}: {error}", existing.display()),
            "choose another folder with --state, or let this user write there",
        ),
    }
}

/// The checks as a table, worst last seen first in its verdict column.
pub fn table(checks: &[Check]) -> String {
    let mut table = Table::new(&["", "CHECK", "FOUND", "WHAT TO DO"]);
    for check in checks {
        let mark = match check.verdict {
            Verdict::Ok => "✔",
            Verdict::Warning => "!",
            Verdict::Failure => "✘",
        };
        table.row([mark, &check.name, &check.finding, &check.remedy]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files {
        _folder: tempfile::TempDir,
    }

    impl Files {
        fn new(files: &[(&str, &str)]) -> (Self, Host) {
            let folder = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = folder.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            let host = Host { root: folder.path().to_owned() };
            (Self { _folder: folder }, host)
        }
    }

    #[test]
    fn gossip_that_is_not_sealed_is_a_warning_and_no_speaker_is_no_matter() {
        let verdict = |metrics: &str| is_gossip_sealed(metrics).map(|check| check.verdict);

        assert_eq!(verdict("HTTP/1.0 200 OK\r\n\r\nferrogate_speaker_gossip_sealed 1\n"), Some(Verdict::Ok));
        assert_eq!(verdict("ferrogate_speaker_gossip_sealed 0\n"), Some(Verdict::Warning));
        let by_leases = "ferrogate_speaker_gossip_sealed 0\nferrogate_speaker_lease_renewals_total 3\n";
        assert_eq!(verdict(by_leases), Some(Verdict::Ok));
        assert_eq!(verdict("ferrogate_controller_leading 1\n"), None);
    }

    #[test]
    fn a_kernel_that_would_answer_arp_is_named_with_the_sysctl() {
        let (_files, host) = Files::new(&[
            ("proc/sys/net/ipv4/conf/all/arp_ignore", "0"),
            ("proc/sys/net/ipv4/conf/all/arp_announce", "2"),
            ("proc/sys/net/ipv4/conf/eth0/arp_ignore", "0"),
            ("proc/sys/net/ipv4/conf/eth1/arp_ignore", "1"),
        ]);

        let check = host.arp();

        assert_eq!(check.verdict, Verdict::Warning);
        assert!(check.finding.contains("eth0") && !check.finding.contains("eth1"), "{}", check.finding);
        assert!(check.remedy.contains("net.ipv4.conf.all.arp_ignore=1"), "{}", check.remedy);
    }

    #[test]
    fn the_stricter_of_all_and_the_interface_counts() {
        let (_files, host) = Files::new(&[
            ("proc/sys/net/ipv4/conf/all/arp_ignore", "1"),
            ("proc/sys/net/ipv4/conf/all/arp_announce", "2"),
            ("proc/sys/net/ipv4/conf/eth0/arp_ignore", "0"),
        ]);

        assert_eq!(host.arp().verdict, Verdict::Ok);
    }

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let (_files, host) = Files::new(&[("proc/self/status", "Name:\tx\nCapEff:\t0000000000002000\n")]);

        let verdicts: Vec<_> = host.capabilities().into_iter().map(|check| check.verdict).collect();

        assert_eq!(verdicts, [Verdict::Ok, Verdict::Warning, Verdict::Warning]);
    }

    #[test]
    fn an_old_kernel_fails_and_a_new_one_passes() {
        let verdict = |release| {
            let (_files, host) = Files::new(&[("proc/sys/kernel/osrelease", release)]);
            host.kernel().verdict
        };

        assert_eq!(verdict("4.19.0-26-amd64\n"), Verdict::Failure);
        assert_eq!(verdict("6.1.0\n"), Verdict::Ok);
        assert_eq!(verdict("nonsense"), Verdict::Failure);
    }

    #[test]
    fn a_taken_port_is_a_warning_that_names_the_address() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = holder.local_addr().unwrap();

        let check = port_is_free("admin", TcpListener::bind(address).map(drop), address);

        assert_eq!(check.verdict, Verdict::Warning);
        assert!(check.finding.contains(&address.to_string()));
    }
}
