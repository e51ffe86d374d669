//! Real routers to speak with: FRR, BIRD, GoBGP and ExaBGP as Debian has them, in a namespace, configured by a test.
//!
//! A router is a folder of its own, with its configuration, its sockets and its log, and the programs that run on it.
//! Both are gone with the value, however the test ends.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use ferrogate_core::model::Prefix;
use nix::unistd::{User, chown};
use tempfile::TempDir;

use crate::{lab::wait::until_every, netns::Namespace};

mod bird;
mod exabgp;
mod frr;
mod gobgp;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a router is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vendor {
    /// zebra, bgpd and bfdd.
    Frr,
    /// BIRD 2.
    Bird,
    /// gobgpd.
    Gobgp,
    /// ExaBGP 4, which installs nothing and tells every message as it came.
    Exabgp,
}

impl Vendor {
    /// Those that a claim about peers is held to.
    pub const STRICT: [Self; 2] = [Self::Frr, Self::Bird];
    /// All.
    pub const ALL: [Self; 4] = [Self::Frr, Self::Bird, Self::Gobgp, Self::Exabgp];
}

/// How a router is configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its AS.
    pub asn: u32,
    /// Its BGP identifier.
    pub identifier: Ipv4Addr,
    /// Whom it speaks with.
    pub neighbors: Vec<Neighbor>,
    /// Further lines for the end of its configuration, in its own language.
    pub extra: String,
}

/// A speaker as the router sees it.
#[derive(Clone, Debug)]
pub struct Neighbor {
    /// Its address.
    pub address: IpAddr,
    /// The router's own towards it.
    pub local: IpAddr,
    /// Its AS.
    pub asn: u32,
    /// Whether the router waits for it.
    pub passive: bool,
    /// The hold time in seconds; a third of it is the keepalive time.
    pub hold_time: u16,
    /// The key of TCP MD5 signatures.
    pub password: Option<String>,
    /// GTSM with one hop.
    pub ttl_security: bool,
    /// Keeps its routes while it restarts.
    pub graceful_restart: bool,
    /// Watches it by BFD: milliseconds between packets.
    pub bfd_ms: Option<u32>,
    /// It is several hops away.
    pub multi_hop: bool,
    /// Takes IPv6 next hops for IPv4.
    pub extended_next_hop: bool,
    /// Further lines about it, in the router's own language.
    pub extra: String,
}

impl Neighbor {
    /// One that is waited for, with a hold time of 9 s and nothing else.
    pub fn new(address: impl Into<IpAddr>, local: impl Into<IpAddr>, asn: u32) -> Self {
        Self {
            address: address.into(),
            local: local.into(),
            asn,
            passive: true,
            hold_time: 9,
            password: None,
            ttl_security: false,
            graceful_restart: false,
            bfd_ms: None,
            multi_hop: false,
            extended_next_hop: false,
            extra: String::new(),
        }
    }
}

/// A route as a router holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub next_hops: BTreeSet<IpAddr>,
    /// The AS path.
    pub as_path: Vec<u32>,
    /// LOCAL_PREF; routers fill in their own for routes of other ASes.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub multi_exit_disc: Option<u32>,
    /// Communities in the usual spelling, in the order the router shows them.
    pub communities: Vec<String>,
    /// Large communities likewise.
    pub large_communities: Vec<String>,
    /// Extended communities, as the router spells them.
    pub extended_communities: Vec<String>,
    /// Whether the router keeps it for a speaker that restarts.
    pub stale: bool,
}

/// A running router.
#[derive(Debug)]
pub struct Router<'a> {
    vendor: Vendor,
    namespace: Cow<'a, Namespace>,
    folder: TempDir,
    daemons: Vec<(String, Child)>,
}

impl Drop for Router<'_> {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("the log of {:?}:\n{}", self.vendor, self.log());
        }
    }
}

impl<'a> Router<'a> {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When it is not installed, or does not take its configuration; the text has its log.
    pub fn start(vendor: Vendor, namespace: &'a Namespace, config: &Config) -> Result<Self> {
        Self::start_in(vendor, Cow::Borrowed(namespace), config)
    }

    fn start_in(vendor: Vendor, namespace: Cow<'a, Namespace>, config: &Config) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut router = Self { vendor, namespace, folder, daemons: Vec::new() };
        match vendor {
            Vendor::Frr => frr::start(&mut router, config),
            Vendor::Bird => bird::start(&mut router, config),
            Vendor::Gobgp => gobgp::start(&mut router, config),
            Vendor::Exabgp => exabgp::start(&mut router, config),
        }
        .with_context(|| format!("{vendor:?} does not start; its log:\n{}", router.log()))?;
        Ok(router)
    }

    /// As [`Self::start`], with a hold of its own on the namespace.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_holding(vendor: Vendor, namespace: &Namespace, config: &Config) -> Result<Router<'static>> {
        Router::start_in(vendor, Cow::Owned(namespace.clone()), config)
    }

    /// Which program it is.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        for (_, daemon) in &mut self.daemons {
            _ = daemon.kill();
            _ = daemon.wait();
        }
        self.daemons.clear();
    }

    /// Has it take another configuration as a person would, keeping the sessions that this leaves alone.
    ///
    /// # Errors
    /// When it does not take it, or cannot do so while it runs.
    pub fn reconfigure(&mut self, config: &Config) -> Result<()> {
        match self.vendor {
            Vendor::Frr => frr::reconfigure(self, config),
            Vendor::Bird => bird::reconfigure(self, config),
            Vendor::Gobgp | Vendor::Exabgp => bail!("{:?} is not reconfigured in these tests", self.vendor),
        }
    }

    /// What it wrote into its log so far.
    pub fn log(&self) -> String {
        fs::read(self.path("log")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The route that it has from its neighbours, if any.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn route(&self, prefix: Prefix) -> Result<Option<Route>> {
        match self.vendor {
            Vendor::Frr => frr::route(self, prefix),
            Vendor::Bird => bird::route(self, prefix),
            Vendor::Gobgp => gobgp::route(self, prefix),
            Vendor::Exabgp => exabgp::route(self, prefix),
        }
    }

    /// How many routes of IPv4 and of IPv6 it has from its neighbours.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn count(&self) -> Result<usize> {
        match self.vendor {
            Vendor::Frr => frr::count(self),
            Vendor::Bird => bird::count(self),
            Vendor::Gobgp => gobgp::count(self),
            Vendor::Exabgp => exabgp::count(self),
        }
    }

    /// Whether the session with a neighbour is established.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn is_established(&self, neighbor: IpAddr) -> Result<bool> {
        match self.vendor {
            Vendor::Frr => frr::is_established(self, neighbor),
            Vendor::Bird => bird::is_established(self, neighbor),
            Vendor::Gobgp => gobgp::is_established(self, neighbor),
            Vendor::Exabgp => exabgp::is_established(self, neighbor),
        }
    }

    /// Every message of a neighbour as ExaBGP tells it, one JSON object each.
    ///
    /// # Errors
    /// When it is another router.
    pub fn messages(&self) -> Result<Vec<serde_json::Value>> {
        ensure!(self.vendor == Vendor::Exabgp, "only ExaBGP tells messages");
        exabgp::messages(self)
    }

    /// Asks it in its own words and returns the answer.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, words: &str) -> Result<String> {
        match self.vendor {
            Vendor::Frr => frr::ask(self, words),
            Vendor::Bird => bird::ask(self, words),
            Vendor::Gobgp => gobgp::ask(self, words),
            Vendor::Exabgp => bail!("ExaBGP is not asked"),
        }
    }

    /// Waits until it has a route that is as wanted, and returns it.
    ///
    /// # Errors
    /// When that takes longer than [`PATIENCE`]; the text has what it has instead, and its log.
    pub fn wait_for_route(&self, prefix: Prefix, is_wanted: impl Fn(&Route) -> bool) -> Result<Route> {
        let route = self.wait(&format!("route to {prefix}"), || {
            let route = self.route(prefix)?;
            Ok(if route.as_ref().is_some_and(&is_wanted) { Ok(route) } else { Err(format!("{route:?}")) })
        })?;
        route.context("it was there")
    }

    /// Waits until it has no route there any more.
    ///
    /// # Errors
    /// As [`Self::wait_for_route`].
    pub fn wait_until_gone(&self, prefix: Prefix) -> Result<()> {
        self.wait(&format!("end of the route to {prefix}"), || {
            let route = self.route(prefix)?;
            Ok(if route.is_none() { Ok(()) } else { Err(format!("{route:?}")) })
        })
    }

    /// Waits until it has so many routes.
    ///
    /// # Errors
    /// As [`Self::wait_for_route`].
    pub fn wait_for_count(&self, count: usize) -> Result<()> {
        self.wait(&format!("{count} routes"), || {
            let has = self.count()?;
            Ok(if has == count { Ok(()) } else { Err(format!("{has} routes")) })
        })
    }

    /// Waits until the session with a neighbour is established.
    ///
    /// # Errors
    /// As [`Self::wait_for_route`].
    pub fn wait_until_established(&self, neighbor: IpAddr) -> Result<()> {
        self.wait(&format!("session with {neighbor}"), || {
            Ok(if self.is_established(neighbor)? { Ok(()) } else { Err("none".to_owned()) })
        })
    }

    /// Waits until its log has this text.
    ///
    /// # Errors
    /// As [`Self::wait_for_route`].
    pub fn wait_for_log(&self, text: &str) -> Result<()> {
        self.wait(&format!("{text:?} in the log"), || {
            Ok(if self.log().contains(text) { Ok(()) } else { Err("not there".to_owned()) })
        })
    }

    /// Asks again and again. The inner error says what is there instead.
    fn wait<T>(&self, what: &str, ask: impl Fn() -> Result<std::result::Result<T, String>>) -> Result<T> {
        // One that does not answer is not asked again.
        let found =
            until_every(ASK_AGAIN, PATIENCE, || ask().map_or_else(|error| Ok(Err(error)), |found| found.map(Ok)));
        found.unwrap_or_else(|instead| {
            bail!("{:?}: no {what} within {PATIENCE:?}, but {instead}; its log:\n{}", self.vendor, self.log())
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Lets a user of this name write in the folder.
    fn give_folder_to(&self, user: &str) -> Result<()> {
        let found = User::from_name(user)?;
        let user = found.with_context(|| format!("there is no user {user}: apt-get install frr bird2"))?;
        chown(self.folder.path(), Some(user.uid), Some(user.gid))?;
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn spawn(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let daemon = self.namespace.spawn(&mut command);
        let daemon = daemon.with_context(|| format!("{name} is installed: apt-get install frr bird2 gobgpd exabgp"))?;
        self.daemons.push((name.to_owned(), daemon));
        Ok(())
    }

    /// Runs a program in the router's namespace and returns what it prints.
    fn run(&self, command: &mut Command) -> Result<String> {
        let output = self.namespace.run(|| command.output())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{command:?} fails: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }
}

/// A program, before all that tests and others do on this machine where it has to keep the times of BFD.
fn program(path: &str, is_urgent: bool) -> Command {
    if !is_urgent {
        return Command::new(path);
    }
    let mut program = Command::new("chrt");
    program.args(["-f", "1", path]);
    program
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
