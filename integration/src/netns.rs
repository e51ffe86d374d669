//! Network namespaces without a name: held by a descriptor, gone with their last process.
//!
//! Nothing is written below `/run`, so this works without root too ([`enter`]). No thread of the program itself is
//! ever moved: whatever happens in a namespace happens on a thread made for it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::{Child, Command},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use ferrogate_wire::ethernet::Mac;
use futures::TryStreamExt;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Uid},
};
use rtnetlink::{
    Handle, LinkBond, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan, LinkVrf, RouteMessageBuilder,
    packet_route::{
        address::AddressHeaderFlags,
        neighbour::{NeighbourAddress, NeighbourAttribute},
        route::{RouteAddress, RouteAttribute, RouteScope},
    },
};

/// Leaves the machine's own namespaces: from here on this process can make namespaces and interfaces of its own, and
/// the children it starts can reach nothing of the machine's network. The first child it starts is process 1 of a
/// process namespace: when that one ends, the kernel ends everything below it.
///
/// As root this needs no more; everyone else becomes root of a user namespace of their own, if the kernel lets them.
/// Returns whether that was so.
///
/// # Errors
/// When the kernel refuses; the text says what would help. This process must have one thread only.
pub fn enter() -> Result<bool> {
    let parts = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    if Uid::effective().is_root() {
        match unshare(parts) {
            Err(Errno::EPERM) => {}
            done => return done.map(|()| false).context("leaving the machine's namespaces"),
        }
    }
    let (user, group) = (Uid::effective(), Gid::effective());
    unshare(parts | CloneFlags::CLONE_NEWUSER).map_err(|error| {
        anyhow!(error).context(
            "this kernel does not let an ordinary user make namespaces; run as root, or allow it \
             (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, \
             kernel.apparmor_restrict_unprivileged_userns=0)",
        )
    })?;
    // Until this is written no group may be mapped (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny").context("giving up supplementary groups")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1")).context("mapping the user")?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1")).context("mapping the group")?;
    Ok(true)
}

/// Gives process 1 of the new namespaces a `/proc` that matches, where the kernel allows one. Without it everything
/// works but `ps`.
///
/// # Errors
/// When the mounts of the machine cannot be kept apart from ours.
pub fn settle() -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("keeping mounts to ourselves")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(Some("proc"), "/proc", Some("proc"), flags, none);
    Ok(())
}

/// One network namespace, or another hold on it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    file: Arc<File>,
}

impl Namespace {
    /// A new one with its loopback up. Addresses are usable at once (no duplicate address detection), and routers on
    /// the link are not listened to.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let make = || -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        let made = thread::spawn(make).join().map_err(|_| anyhow!("a thread that makes a namespace panicked"))?;
        let file = Arc::new(made.with_context(|| format!("making namespace {name}"))?);
        let namespace = Self { name, file };
        for scope in ["all", "default"] {
            namespace.set(&format!("ipv6/conf/{scope}/accept_dad"), "0")?;
            namespace.set(&format!("ipv6/conf/{scope}/accept_ra"), "0")?;
        }
        namespace.links(async |links| links.up("lo").await)?;
        Ok(namespace)
    }

    /// The one this thread is in.
    ///
    /// # Errors
    /// When no descriptor is left for it.
    pub fn here(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let file = File::open("/proc/thread-self/ns/net").with_context(|| format!("holding namespace {name}"))?;
        Ok(Self { name, file: Arc::new(file) })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The descriptor that holds it, as others see it below `/proc/PID/fd`.
    pub fn descriptor(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Another descriptor that holds it, to hand to a process.
    ///
    /// # Errors
    /// When none is left.
    pub fn try_clone_descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Runs something inside, on a thread of its own. Sockets it opens and processes it starts stay inside.
    ///
    /// # Panics
    /// When the work does, or when the namespace cannot be entered, which the kernel allows to whoever made it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).expect("a namespace we made can be entered");
            work()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Starts a thread inside that goes on by itself.
    ///
    /// # Errors
    /// When no descriptor is left for it.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<thread::JoinHandle<T>> {
        let file = self.file.try_clone()?;
        thread::Builder::new().name(self.name.clone()).spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("a namespace we made can be entered");
            work()
        })
    }

    /// Starts a process inside.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        self.run(|| command.spawn())
    }

    /// Sets one of its parameters; `key` is a path below `/proc/sys/net`.
    ///
    /// # Errors
    /// When the kernel has no such parameter, or `/proc/sys` is mounted read-only.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        self.run(|| fs::write(&path, value)).with_context(|| format!("{}: setting {}", self.name, path.display()))
    }

    /// Works on its interfaces.
    ///
    /// # Errors
    /// What the work returns, with the name of the namespace.
    pub fn links<T: Send>(&self, work: impl AsyncFnOnce(&Links) -> Result<T> + Send) -> Result<T> {
        let inside = || -> Result<T> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().context("opening netlink")?;
                let connection = tokio::spawn(connection);
                let result = work(&Links { handle }).await;
                connection.abort();
                result
            })
        };
        self.run(inside).with_context(|| format!("namespace {}", self.name))
    }
}

/// A kind of interface that a kernel may have been built without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// One with a routing table of its own.
    Vrf,
    /// Several that are one.
    Bond,
    /// A part of one, by a tag.
    Vlan,
}

/// The interfaces, addresses, routes and neighbours of one namespace.
pub struct Links {
    handle: Handle,
}

impl Links {
    async fn index(&self, name: &str) -> Result<u32> {
        let found = self.handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        Ok(found.with_context(|| format!("looking for {name}"))?.with_context(|| format!("no {name}"))?.header.index)
    }

    /// Whether this kernel makes such an interface. One that it makes stays here as `trial`, beside a bridge.
    ///
    /// # Errors
    /// When it refuses for another reason.
    pub async fn makes(&self, device: Device) -> Result<bool> {
        let base = format!("{TRIAL}-base");
        self.add_bridge(&base).await?;
        let message = match device {
            Device::Vrf => LinkVrf::new(TRIAL, 1).build(),
            Device::Bond => LinkBond::new(TRIAL).build(),
            Device::Vlan => LinkVlan::new(TRIAL, self.index(&base).await?, 1).build(),
        };
        match self.handle.link().add(message).execute().await {
            Ok(()) => Ok(true),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -(Errno::EOPNOTSUPP as i32) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("trying to make a {device:?} interface")),
        }
    }

    /// Makes a bridge that forwards at once and everything: no spanning tree, no snooping.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_bridge(&self, name: &str) -> Result<()> {
        let bridge = LinkBridge::new(name).forward_delay(0).mcast_snooping(false).up().build();
        self.handle.link().add(bridge).execute().await.with_context(|| format!("adding bridge {name}"))
    }

    /// Makes a cable: one end stays here as `name`, attached to `bridge` and up; the other becomes `peer` in another
    /// namespace, still down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_cable(&self, name: &str, bridge: &str, peer: &str, other: &Namespace) -> Result<()> {
        let bridge = self.index(bridge).await?;
        self.add_veth(name, peer, other).await?;
        let near = LinkUnspec::new_with_index(self.index(name).await?).controller(bridge).up().build();
        self.handle.link().set(near).execute().await.with_context(|| format!("attaching {name}"))
    }

    /// Gives an interface its Ethernet address.
    ///
    /// # Errors
    /// When there is no such interface or the kernel refuses.
    pub async fn set_mac(&self, name: &str, mac: Mac) -> Result<()> {
        self.change(name, |link| link.address(mac.0.to_vec())).await
    }

    /// Makes a cable whose near end hangs free: it stays here as `name`, up; the other becomes `peer` in another
    /// namespace, still down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_pair(&self, name: &str, peer: &str, other: &Namespace) -> Result<()> {
        self.add_veth(name, peer, other).await?;
        self.up(name).await
    }

    async fn add_veth(&self, name: &str, peer: &str, other: &Namespace) -> Result<()> {
        // The far end gets its name where it goes; here that name may be taken.
        let far = format!("{name}-");
        let cable = LinkVeth::new(name, &far).build();
        self.handle.link().add(cable).execute().await.with_context(|| format!("adding {name}"))?;
        let far =
            LinkUnspec::new_with_index(self.index(&far).await?).name(peer).setns_by_fd(other.descriptor()).build();
        self.handle.link().set(far).execute().await.with_context(|| format!("moving {peer} to {}", other.name))
    }

    /// Removes an interface, and with it the other end of its cable, and every route by it.
    ///
    /// # Errors
    /// When there is no such interface.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let remove = self.handle.link().del(self.index(name).await?);
        remove.execute().await.with_context(|| format!("removing {name}"))
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// When there is no such interface or the kernel refuses.
    pub async fn up(&self, name: &str) -> Result<()> {
        self.change(name, LinkMessageBuilder::up).await
    }

    /// Sets an interface down; whoever holds the other end of the cable loses the carrier.
    ///
    /// # Errors
    /// When there is no such interface or the kernel refuses.
    pub async fn down(&self, name: &str) -> Result<()> {
        self.change(name, LinkMessageBuilder::down).await
    }

    /// Plugs the near end of a cable into a bridge, out of whatever other bridge it was in.
    ///
    /// # Errors
    /// When there is no such interface or the kernel refuses.
    pub async fn plug(&self, name: &str, bridge: &str) -> Result<()> {
        let bridge = self.index(bridge).await?;
        self.change(name, |link| link.controller(bridge)).await
    }

    /// Pulls the near end of a cable out of its bridge and leaves it up: whoever holds the other end keeps the carrier
    /// and is heard by nobody.
    ///
    /// # Errors
    /// When there is no such interface or the kernel refuses.
    pub async fn unplug(&self, name: &str) -> Result<()> {
        self.change(name, LinkMessageBuilder::nocontroller).await
    }

    async fn change(
        &self,
        name: &str,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        let link = change(LinkUnspec::new_with_index(self.index(name).await?)).build();
        self.handle.link().set(link).execute().await.with_context(|| format!("changing {name}"))
    }

    /// Adds an address to an interface, usable when this returns. (That the namespace detects no duplicates is not enough: the
    /// kernel holds an IPv6 address back until a thread of its own has found that out.)
    ///
    /// # Errors
    /// When there is no such interface or the kernel refuses.
    pub async fn add_address(&self, name: &str, address: IpAddr, length: u8) -> Result<()> {
        let mut add = self.handle.address().add(self.index(name).await?, address, length);
        add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        add.execute().await.with_context(|| format!("adding {address}/{length} to {name}"))
    }

    /// Adds a route; a length of 0 makes it the default route.
    ///
    /// # Errors
    /// When the gateway is not on a link or the kernel refuses.
    pub async fn add_route(&self, prefix: IpAddr, length: u8, gateway: IpAddr) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(prefix, length)?.gateway(gateway)?.build();
        let add = self.handle.route().add(route).execute().await;
        add.with_context(|| format!("adding a route to {prefix}/{length} by {gateway}"))
    }

    /// Adds a route to what is on the other end of an interface.
    ///
    /// # Errors
    /// When there is no such interface or the kernel refuses.
    pub async fn add_link_route(&self, prefix: IpAddr, length: u8, name: &str) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(prefix, length)?;
        // IPv6 knows no scopes of routes.
        let route = if prefix.is_ipv4() { route.scope(RouteScope::Link) } else { route };
        let route = route.output_interface(self.index(name).await?).build();
        let add = self.handle.route().add(route).execute().await;
        add.with_context(|| format!("adding a route to {prefix}/{length} by {name}"))
    }

    /// By which gateways traffic to exactly this prefix is spread; none without a route to it.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn gateways(&self, prefix: IpAddr, length: u8) -> Result<BTreeSet<IpAddr>> {
        let wanted = RouteAttribute::Destination(prefix.into());
        let family = match prefix {
            IpAddr::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpAddr::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let mut routes = self.handle.route().get(family).execute();
        let mut found = BTreeSet::new();
        while let Some(route) = routes.try_next().await.context("reading the routes")? {
            if route.header.destination_prefix_length == length && route.attributes.contains(&wanted) {
                found.extend(gateways(&route.attributes));
            }
        }
        Ok(found)
    }

    /// By which gateway a datagram is forwarded that comes in by an interface.
    ///
    /// # Errors
    /// When there is no such interface, or no route by a gateway.
    pub async fn way(&self, interface: &str, from: SocketAddr, to: SocketAddr) -> Result<IpAddr> {
        let length = if to.is_ipv4() { 32 } else { 128 };
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.ip(), length)?
            .source_prefix(from.ip(), length)?
            .input_interface(self.index(interface).await?);
        let mut route = route.build();
        let udp = RouteAttribute::IpProto(UDP);
        route.attributes.extend([udp, RouteAttribute::Sport(from.port()), RouteAttribute::Dport(to.port())]);
        let answer = self.handle.route().get(route).execute().try_next().await;
        let answer = answer.with_context(|| format!("asking for the way to {to}"))?.context("no answer")?;
        gateways(&answer.attributes).next().with_context(|| format!("no gateway on the way from {from} to {to}"))
    }

    /// Whom this namespace believes to have an address on its links, if anyone.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn neighbour(&self, address: IpAddr) -> Result<Option<Mac>> {
        let mut entries = self.handle.neighbours().get().execute();
        while let Some(entry) = entries.try_next().await.context("reading the neighbour table")? {
            let (mut is_it, mut found) = (false, None);
            for attribute in &entry.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(known)) => {
                        is_it |= address == IpAddr::V4(*known)
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(known)) => {
                        is_it |= address == IpAddr::V6(*known)
                    }
                    NeighbourAttribute::LinkLayerAddress(bytes) => found = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
                    _ => {}
                }
            }
            if is_it && let Some(mac) = found {
                return Ok(Some(Mac(mac)));
            }
        }
        Ok(None)
    }
}

/// The name of an interface that is made to see whether it can be.
const TRIAL: &str = "trial";

/// The number of UDP among the protocols over IP.
const UDP: u8 = 17;

/// The gateways of a route.
fn gateways(attributes: &[RouteAttribute]) -> impl Iterator<Item = IpAddr> {
    let one = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(IpAddr::V4(*gateway)),
        RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => Some(IpAddr::V6(*gateway)),
        _ => None,
    };
    let several = move |attribute: &RouteAttribute| match attribute {
        RouteAttribute::MultiPath(hops) => hops.iter().flat_map(|hop| hop.attributes.iter().filter_map(one)).collect(),
        _ => Vec::new(),
    };
    attributes.iter().flat_map(move |attribute| one(attribute).into_iter().chain(several(attribute)))
}

/// Fails with a remedy when this process cannot write the parameters of a network namespace it made.
///
/// # Errors
/// When `/proc/sys/net` is read-only.
pub fn check() -> Result<()> {
    if let Err(error) = Namespace::new("trial") {
        bail!("{error:#}; /proc/sys must be writable in here: in a container, start it with --privileged");
    }
    Ok(())
}
