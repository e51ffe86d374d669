//! What a container's process does before it becomes the container's program: it takes its place in namespaces, gets
//! a file system of its own, and gives up every right that its pod does not ask for.
//!
//! It is a fresh process with one thread, because the kernel lets only such a one do all of this.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{PermissionsExt, symlink},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{prctl, signal::Signal},
    unistd::{Gid, Uid, chdir, dup2_stdin, pivot_root, setgid, setgroups, sethostname, setuid},
};
use rustix::thread::{CapabilitySet, clear_ambient_capability_set, remove_capability_from_bounding_set};
use serde::{Deserialize, Serialize};

/// How the process ends when it cannot become the container's program, as container runtimes say it.
pub const FAILED: u8 = 128;

/// Of the machine's own files a container sees these, and cannot change them: the images are programs of this
/// machine, and some of them need its libraries.
const SYSTEM: &[&str] = &["bin", "lib", "lib32", "lib64", "sbin", "usr"];

/// The same of `/etc`, which a volume may be mounted below.
const SETTINGS: &[&str] = &["group", "hosts", "ld.so.cache", "localtime", "nsswitch.conf", "passwd", "ssl"];

/// What the kernel shows as files.
const KERNEL: &[&str] = &["dev", "proc", "sys"];

const NONE: Option<&str> = None;

/// A folder or file of the machine that a container sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Where it lies on the machine.
    pub source: PathBuf,
    /// Where the container sees it.
    pub target: PathBuf,
    /// Whether the container may not change it.
    pub read_only: bool,
}

/// Everything that makes a container's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// What the process sees as the name of its host.
    pub hostname: String,
    /// An empty folder of the machine over which the container's file system is made.
    pub root: PathBuf,
    /// What lies in it.
    pub binds: Vec<Bind>,
    /// Whether nothing else may be written there.
    pub read_only: bool,
    /// User of the process; groups follow.
    pub user: u32,
    /// Group of the process.
    pub group: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Capabilities it may have, without `CAP_`; `ALL` for every one. As with every container runtime, a user other
    /// than root has none in effect.
    pub capabilities: Vec<String>,
    /// Whether the process may never have more rights than now.
    pub no_new_privileges: bool,
    /// The program, as the container sees it.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, whole.
    pub environment: Vec<(String, String)>,
    /// Its working directory.
    pub directory: PathBuf,
}

/// Which file says what to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The file, as JSON; standard input is the network namespace to go to
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Becomes the container's program.
///
/// # Errors
/// When the kernel refuses, or there is no such program; it returns in no other case.
pub fn run(config: &Config) -> Result<std::convert::Infallible> {
    let text = fs::read(&config.file).with_context(|| format!("reading {}", config.file.display()))?;
    let launch: Launch = serde_json::from_slice(&text).context("understanding what to start")?;
    setns(io::stdin().as_fd(), CloneFlags::CLONE_NEWNET).context("going to the network of the pod")?;
    dup2_stdin(File::open("/dev/null").context("opening /dev/null")?).context("giving up standard input")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
        .context("making namespaces of its own")?;
    sethostname(&launch.hostname).context("setting the host's name")?;
    files(&launch).context("making the file system of the container")?;
    give_up(&launch)?;
    let mut command = Command::new(&launch.program);
    command.args(&launch.args).env_clear().envs(launch.environment).current_dir(&launch.directory);
    Err(command.exec()).with_context(|| format!("starting {}", launch.program.display()))
}

/// Makes the container's file system and leaves the machine's.
fn files(launch: &Launch) -> Result<()> {
    let root = &launch.root;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("keeping mounts apart")?;
    mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::MS_NODEV | MsFlags::MS_NOSUID, Some("mode=755"))
        .context("making an empty one")?;
    for name in SYSTEM.iter().chain(KERNEL) {
        let source = Path::new("/").join(name);
        let target = root.join(name);
        match fs::symlink_metadata(&source) {
            Err(_) => {}
            Ok(link) if link.is_symlink() => symlink(fs::read_link(&source)?, &target)?,
            Ok(_) => bind(&Bind { source, target, read_only: SYSTEM.contains(name) })?,
        }
    }
    // The one that was bound shows the interfaces of another namespace. An ordinary user may not be let have its own.
    let _ = mount(Some("sysfs"), &root.join("sys"), Some("sysfs"), MsFlags::MS_RDONLY, NONE);
    for name in SETTINGS {
        let source = Path::new("/etc").join(name);
        if source.exists() {
            bind(&Bind { source, target: root.join("etc").join(name), read_only: true })?;
        }
    }
    for name in ["tmp", "run", "var"] {
        fs::create_dir(root.join(name)).with_context(|| format!("making /{name}"))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    symlink("/run", root.join("var/run"))?;
    for Bind { source, target, read_only } in &launch.binds {
        // Service accounts are mounted below /var/run, which is a link.
        let target = Path::new("/run").join(target.strip_prefix("/var/run").unwrap_or(target));
        let target = root.join(target.strip_prefix("/").unwrap_or(&target));
        bind(&Bind { source: source.clone(), target, read_only: *read_only })?;
    }
    chdir(root).context("entering it")?;
    pivot_root(".", ".").context("making it the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leaving the machine's")?;
    if launch.read_only {
        mount(NONE, "/", NONE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | PLAIN, NONE)
            .context("making it read-only")?;
    }
    chdir("/").context("entering it")
}

/// Flags the root has already; an ordinary user's remount must repeat them.
const PLAIN: MsFlags = MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID);

fn bind(Bind { source, target, read_only }: &Bind) -> Result<()> {
    let what = || format!("showing {} at {}", source.display(), target.display());
    if source.is_dir() {
        fs::create_dir_all(target).with_context(what)?;
    } else {
        target.parent().map(fs::create_dir_all).transpose().with_context(what)?;
        File::options().create(true).append(true).open(target).with_context(what)?;
    }
    mount(Some(source), target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).with_context(what)?;
    if *read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        // An ordinary user may not drop flags that the machine has set, and does not know which.
        let locked = [MsFlags::empty(), MsFlags::MS_NOSUID, PLAIN, PLAIN | MsFlags::MS_RELATIME];
        let done = locked.iter().map(|more| mount(NONE, target, NONE, flags | *more, NONE));
        done.reduce(|first, next| first.or(next)).unwrap_or(Ok(())).with_context(what)?;
    }
    Ok(())
}

/// Gives up every right the pod does not ask for. The order is the kernel's: only who has rights may drop them.
fn give_up(launch: &Launch) -> Result<()> {
    let keep = capabilities(&launch.capabilities);
    clear_ambient_capability_set().context("giving up ambient capabilities")?;
    for capability in CapabilitySet::all().difference(keep).iter() {
        match remove_capability_from_bounding_set(capability) {
            // This kernel is older than the capability.
            Err(rustix::io::Errno::INVAL) => {}
            done => done.with_context(|| format!("giving up {capability:?}"))?,
        }
    }
    if launch.no_new_privileges {
        prctl::set_no_new_privs().context("giving up new privileges")?;
    }
    // In a user namespace with one user there is nobody else to become; the bounding set still holds.
    if maps_others()? {
        let groups: Vec<_> = launch.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).context("setting groups")?;
        setgid(Gid::from_raw(launch.group)).context("setting the group")?;
        setuid(Uid::from_raw(launch.user)).context("setting the user")?;
    } else if launch.user != 0 {
        for capability in keep.iter() {
            remove_capability_from_bounding_set(capability).with_context(|| format!("giving up {capability:?}"))?;
        }
    }
    // Last, because a change of user undoes it.
    prctl::set_pdeathsig(Signal::SIGKILL).context("tying it to the kubelet")
}

/// Whether there are users besides root here.
fn maps_others() -> Result<bool> {
    let map = fs::read_to_string("/proc/self/uid_map").context("reading which users there are")?;
    Ok(map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum::<u64>() > 1)
}

/// Capabilities by the names that Kubernetes uses; names nobody knows give nothing.
fn capabilities(names: &[String]) -> CapabilitySet {
    let known = |name: &String| match name.as_str() {
        "ALL" => Some(CapabilitySet::all()),
        name => CapabilitySet::from_name(name.strip_prefix("CAP_").unwrap_or(name)),
    };
    names.iter().filter_map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_go_by_the_names_of_kubernetes() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();

        assert_eq!(capabilities(&names(&["NET_RAW"])), CapabilitySet::NET_RAW);
        assert_eq!(capabilities(&names(&["CAP_NET_RAW", "NO_SUCH"])), CapabilitySet::NET_RAW);
        assert_eq!(capabilities(&names(&["ALL"])), CapabilitySet::all());
        assert_eq!(capabilities(&[]), CapabilitySet::empty());
    }
}
