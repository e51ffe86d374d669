//! `ferrogate router-config`: what the router at the other end needs to accept our nodes, in its own words.
//!
//! Here are the facts: who speaks with the router, from which addresses, and which prefixes may come. Each file below
//! turns them into the configuration of one vendor and decides nothing. Nothing here reads a password: a placeholder
//! stands for it.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr},
    num::{NonZeroU8, NonZeroU16},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ferrogate_core::{
    model::{
        Family, Prefix,
        node::Node,
        peer::{Asn, BgpPeer, PeerAsn, PeerOnNode, PeerPlace, Role, TcpAo},
        pool::{AddressRange, address_bits, address_from_bits},
    },
    snapshot::Snapshot,
};

use crate::source::SourceArgs;

mod bird;
mod eos;
mod frr;
mod gobgp;
mod ios_xe;
mod junos;
mod opnsense;
mod routeros;
#[cfg(test)]
mod tests;
mod vyos;

/// Stands for the password, which is nowhere shown.
const PASSWORD: &str = "REPLACE-WITH-THE-PASSWORD";

/// The longest part of a name that is a peer's, so that the whole is short enough for every vendor.
const MAX_PEER_IN_NAME: usize = 40;

/// Flags of `ferrogate router-config`.
#[derive(Args)]
pub struct RouterConfigArgs {
    /// Name of the BGPPeer that stands for the router
    #[arg(long, value_name = "NAME")]
    peer: String,
    /// Whose words to use
    #[arg(long, value_name = "VENDOR")]
    vendor: Vendor,
    /// Only for this node; may be given more than once; default: every node that speaks with the peer
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,
    /// The router's address, where the BGPPeer stands for several: by nodeValues, or by a prefix
    #[arg(long, value_name = "ADDRESS")]
    router: Option<IpAddr>,
    /// The router's AS number, where the BGPPeer leaves it open (dynamicASN: external)
    #[arg(long, value_name = "NUMBER")]
    asn: Option<u32>,
    #[command(flatten)]
    source: SourceArgs,
}

/// Whose router it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Vendor {
    /// FRR, for vtysh
    Frr,
    /// BIRD 2, a whole file
    Bird,
    /// GoBGP, a whole file of TOML
    Gobgp,
    /// Cisco IOS XE
    IosXe,
    /// Junos, as `set` commands
    Junos,
    /// Arista EOS
    Eos,
    /// MikroTik RouterOS 7
    Routeros,
    /// VyOS 1.4, as `set` commands
    Vyos,
    /// OPNsense with os-frr, as what to enter where
    Opnsense,
}

/// Everything that a router must be told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    /// Name of the BGPPeer.
    peer: String,
    /// The router's address.
    router: IpAddr,
    router_asn: Asn,
    /// The AS that our nodes show.
    our_asn: Asn,
    /// On which the router listens.
    port: NonZeroU16,
    /// Our nodes, in the order of their names.
    nodes: Vec<Neighbor>,
    /// By MD5.
    has_password: bool,
    /// A peer of another AS that is more than one hop away.
    multi_hop: bool,
    /// Both ends send with the highest TTL and take nothing from further away than this many hops (RFC 5082).
    ttl_security_hops: Option<NonZeroU8>,
    graceful_restart: bool,
    bfd: Option<Bfd>,
    families: BTreeSet<Family>,
    /// What may come: these prefixes and all longer ones. Sorted, of the families above.
    prefixes: Vec<Prefix>,
    /// What a person should know besides.
    notes: Vec<String>,
}

/// A node as the router sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Neighbor {
    node: String,
    address: IpAddr,
}

/// The router's half of BFD. It asks of us what we ask of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bfd {
    transmit_ms: u128,
    receive_ms: u128,
    multiplier: NonZeroU8,
    minimum_ttl: NonZeroU8,
}

/// Prints the configuration; fails when there is no such peer, or it leaves open what a router must know.
pub async fn show(args: &RouterConfigArgs) -> anyhow::Result<ExitCode> {
    let snapshot = args.source.read(None).await?;
    let asn = match args.asn {
        Some(number) => Some(Asn::new(number).ok_or_else(|| anyhow::anyhow!("--asn 0: no AS has this number"))?),
        None => None,
    };
    let question = Question { peer: &args.peer, nodes: &args.node, router: args.router, asn };
    let facts = facts(&snapshot, question)?;
    print!("{}", args.vendor.config(&facts));
    Ok(ExitCode::SUCCESS)
}

impl Vendor {
    fn config(self, facts: &Facts) -> String {
        match self {
            Self::Frr => frr::config(facts),
            Self::Bird => bird::config(facts),
            Self::Gobgp => gobgp::config(facts),
            Self::IosXe => ios_xe::config(facts),
            Self::Junos => junos::config(facts),
            Self::Eos => eos::config(facts),
            Self::Routeros => routeros::config(facts),
            Self::Vyos => vyos::config(facts),
            Self::Opnsense => opnsense::config(facts),
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
struct Question<'a> {
    peer: &'a str,
    /// These nodes alone; all where there are none.
    nodes: &'a [String],
    router: Option<IpAddr>,
    asn: Option<Asn>,
}

/// What is known of a router that a peer stands for.
fn facts(snapshot: &Snapshot, question: Question<'_>) -> anyhow::Result<Facts> {
    let name = question.peer;
    let Some(peer) = snapshot.bgp_peers.values().find(|peer| peer.name.as_str() == name) else {
        bail!("no BGPPeer {name} is in force; `ferrogate status` lists what is wrong with those that are not");
    };
    let mut notes = Vec::new();
    let nodes = resolved(snapshot, peer, question.nodes, &mut notes)?;
    let router = router(name, &nodes, question.router)?;
    let nodes: Vec<_> = nodes.into_iter().filter(|(_, known)| is_at(&known.place, router)).collect();
    let our_asn = only(nodes.iter().map(|(_, known)| known.local_asn)).with_context(|| {
        format!("not every node shows {router} the same AS number; name those of one AS with --node")
    })?;
    let peer_asn = only(nodes.iter().map(|(_, known)| known.peer_asn))
        .with_context(|| format!("not every Node says that {router} is of the same AS; correct their nodeValues"))?;
    let router_asn = router_asn(name, our_asn, peer_asn, question.asn)?;
    let nodes = neighbors(name, router, &nodes, &mut notes)?;
    let mut families = BTreeSet::from([Family::of(router)]);
    if peer.dual_stack {
        families.insert(Family::of(router).other());
    }
    let prefixes = prefixes(snapshot, &families);
    for family in &families {
        if !prefixes.iter().any(|prefix| Family::of(prefix.ip()) == *family) {
            notes.push(format!("No pool has {family} addresses: none are accepted."));
        }
    }
    notes.extend(remarks(peer));
    Ok(Facts {
        peer: name.to_owned(),
        router,
        router_asn,
        our_asn,
        port: peer.port,
        nodes,
        has_password: peer.password.as_ref().is_some_and(|password| password.tcp_ao.is_none()),
        multi_hop: peer.multi_hop,
        ttl_security_hops: peer.ttl_security,
        graceful_restart: peer.graceful_restart.is_some(),
        bfd: bfd(snapshot, peer)?,
        families,
        prefixes,
        notes,
    })
}

/// The peer on each node that is asked for and speaks with it.
fn resolved<'a>(
    snapshot: &'a Snapshot,
    peer: &BgpPeer,
    only: &[String],
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<(&'a Node, PeerOnNode)>> {
    for node in only {
        match snapshot.nodes.get(node.as_str()) {
            None => bail!("there is no Node {node}"),
            Some(known) if !peer.allows_node(&known.labels) => {
                bail!("the nodeSelectors of BGPPeer {} leave out {node}", peer.name);
            }
            Some(_) => {}
        }
    }
    let asked = |node: &Node| only.is_empty() || only.iter().any(|name| name == node.name.as_str());
    let mut found = Vec::new();
    for node in snapshot.nodes.values().filter(|node| asked(node) && peer.allows_node(&node.labels)) {
        match peer.on(node) {
            Ok(known) => found.push((&**node, known)),
            Err(error) => notes.push(format!("{} is left out: {error}.", node.name)),
        }
    }
    if found.is_empty() {
        let why: String = notes.iter().map(|note| format!(" {note}")).collect();
        bail!("no Node speaks with BGPPeer {}: its nodeSelectors must match one.{why}", peer.name);
    }
    Ok(found)
}

/// Which router is meant.
fn router(name: &str, nodes: &[(&Node, PeerOnNode)], given: Option<IpAddr>) -> anyhow::Result<IpAddr> {
    let places: BTreeSet<&PeerPlace> = nodes.iter().map(|(_, known)| &known.place).collect();
    if let Some(given) = given {
        if !places.iter().any(|place| is_at(place, given)) {
            bail!("BGPPeer {name} does not stand for {given} on any of these nodes; leave out --router, or correct it");
        }
        return Ok(given);
    }
    let mut places = places.into_iter();
    match (places.next(), places.next()) {
        (Some(PeerPlace::Address(address)), None) => Ok(*address),
        (Some(PeerPlace::Interface(interface)), None) => bail!(
            "BGPPeer {name} is found behind interface {interface} of each node: which interface of the router leads there \
             is not known here; configure it as an unnumbered neighbour on that interface"
        ),
        (Some(PeerPlace::Prefix(prefix)), None) => {
            bail!("BGPPeer {name} stands for every router in {prefix}; say which with --router ADDRESS")
        }
        _ => bail!("BGPPeer {name} stands for a router of its own on some nodes; say which with --router ADDRESS"),
    }
}

fn is_at(place: &PeerPlace, router: IpAddr) -> bool {
    match place {
        PeerPlace::Address(address) => *address == router,
        PeerPlace::Prefix(prefix) => prefix.contains(router),
        PeerPlace::Interface(_) => false,
    }
}

/// What all say, if they say the same.
fn only<T: PartialEq>(mut all: impl Iterator<Item = T>) -> Option<T> {
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

fn router_asn(name: &str, ours: Asn, known: PeerAsn, given: Option<Asn>) -> anyhow::Result<Asn> {
    match (known, given) {
        (PeerAsn::Fixed(known), None) => Ok(known),
        (PeerAsn::Internal, None) => Ok(ours),
        (PeerAsn::External, Some(given)) if given != ours => Ok(given),
        (PeerAsn::External, Some(given)) => bail!("--asn {given}: BGPPeer {name} asks for an AS other than {ours}"),
        (PeerAsn::External, None) => bail!("BGPPeer {name} leaves the router's AS open; give it with --asn NUMBER"),
        (PeerAsn::Fixed(_) | PeerAsn::Internal, Some(_)) => {
            bail!("BGPPeer {name} says the router's AS; leave out --asn")
        }
    }
}

fn neighbors(
    name: &str,
    router: IpAddr,
    nodes: &[(&Node, PeerOnNode)],
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<Neighbor>> {
    let family = Family::of(router);
    let mut found: Vec<Neighbor> = Vec::new();
    for (node, known) in nodes {
        let internal = || node.internal_addresses.iter().copied().find(|address| Family::of(*address) == family);
        match known.source_address.or_else(internal) {
            Some(address) if found.iter().any(|other| other.address == address) => {
                notes.push(format!("{} is left out: another node has its address {address}.", node.name));
            }
            Some(address) => found.push(Neighbor { node: node.name.to_string(), address }),
            None => notes.push(format!("{} is left out: its Node has no InternalIP of {family}.", node.name)),
        }
    }
    if found.is_empty() {
        bail!(
            "no node speaks with BGPPeer {name} from a known {family} address: its nodeSelectors must match a Node that has \
             an InternalIP of the family of {router}"
        );
    }
    Ok(found)
}

/// What the router need not be told and a person should know.
fn remarks(peer: &BgpPeer) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(vrf) = &peer.vrf {
        remarks.push(format!("The nodes connect from their VRF {vrf}: see that these are their addresses there."));
    }
    if peer.passive {
        remarks.push("The nodes wait: the router has to connect to them.".to_owned());
    }
    if let Some(role) = peer.role {
        let (ours, theirs) = match role {
            Role::Provider => ("provider", "customer"),
            Role::Customer => ("customer", "provider"),
            Role::RouteServer => ("route server", "route server client"),
            Role::RouteServerClient => ("route server client", "route server"),
            Role::Peer => ("peer", "peer"),
        };
        remarks
            .push(format!("The nodes say that they are its {ours} (RFC 9234): a role that it has must be {theirs}."));
    }
    if let Some(TcpAo { send_id, receive_id, algorithm }) = peer.password.as_ref().and_then(|password| password.tcp_ao)
    {
        remarks.push(format!(
            "The nodes sign by TCP-AO, which is not written here. Give the router a key with send-id {receive_id}, recv-id \
             {send_id} and {algorithm}, that is the password of the BGPPeer."
        ));
    }
    if peer.shutdown.is_some() {
        remarks.push("The BGPPeer has a shutdown: no session comes up until that is taken away.".to_owned());
    }
    remarks
}

fn bfd(snapshot: &Snapshot, peer: &BgpPeer) -> anyhow::Result<Option<Bfd>> {
    let Some(profile) = &peer.bfd_profile else { return Ok(None) };
    let Some(known) = snapshot.bfd_profiles.values().find(|known| *known.key.name == **profile) else {
        bail!("BFDProfile {profile} of BGPPeer {} is not in force; make it, or take bfdProfile away", peer.name);
    };
    Ok(Some(Bfd {
        transmit_ms: known.transmit_interval.as_millis(),
        receive_ms: known.receive_interval.as_millis(),
        multiplier: known.detect_multiplier,
        minimum_ttl: known.minimum_ttl,
    }))
}

/// The ranges of all pools as prefixes.
fn prefixes(snapshot: &Snapshot, families: &BTreeSet<Family>) -> Vec<Prefix> {
    let ranges = snapshot.pools.values().flat_map(|pool| &pool.ranges);
    let ranges = ranges.filter(|range| families.contains(&range.family()));
    let found: BTreeSet<Prefix> = ranges.flat_map(cover).collect();
    found.into_iter().collect()
}

/// The fewest prefixes that make up a range and nothing else.
fn cover(range: &AddressRange) -> Vec<Prefix> {
    let family = range.family();
    let width = family.width();
    let (mut next, last) = (address_bits(range.first()), address_bits(range.last()));
    let mut found = Vec::new();
    loop {
        // As long as it begins at a multiple of its size and ends within the range.
        let mut host_bits = next.trailing_zeros().min(u32::from(width));
        let end = |host_bits: u32| next | 1_u128.checked_shl(host_bits).unwrap_or(0).wrapping_sub(1);
        while end(host_bits) > last {
            host_bits -= 1;
        }
        let length = width - u8::try_from(host_bits).unwrap_or(width);
        found.extend(Prefix::new(address_from_bits(family, next), length));
        match end(host_bits).checked_add(1) {
            Some(after) if after <= last => next = after,
            _ => return found,
        }
    }
}

/// How many bits an address of a family has, and what vendors call the family.
trait Words {
    fn width(self) -> u8;
    /// `ipv4` or `ipv6`.
    fn lower(self) -> &'static str;
}

impl Words for Family {
    fn width(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    fn lower(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

impl Facts {
    /// What everything of ours is called at the router, so that it can be told from the rest.
    fn name(&self) -> String {
        let letters = self.peer.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
        let short: String = letters.take(MAX_PEER_IN_NAME).collect();
        format!("ferrogate-{short}")
    }

    fn is_internal(&self) -> bool {
        self.router_asn == self.our_asn
    }

    /// `ebgp` or `ibgp`.
    fn kind(&self) -> &'static str {
        if self.is_internal() { "ibgp" } else { "ebgp" }
    }

    fn carries(&self, family: Family) -> bool {
        self.families.contains(&family)
    }

    fn prefixes_of(&self, family: Family) -> impl Iterator<Item = &Prefix> {
        self.prefixes.iter().filter(move |prefix| Family::of(prefix.ip()) == family)
    }

    /// How many ways to one prefix the router should use: one for each node, as many as the vendor allows.
    fn paths(&self, most: usize) -> usize {
        self.nodes.len().clamp(2, most)
    }

    /// How far away our nodes may be, for those who count hops for BGP only.
    fn is_far(&self) -> bool {
        self.ttl_security_hops.is_some_and(|hops| hops.get() > 1)
    }

    /// The router's identifier where it follows from its address.
    fn identifier(&self) -> Option<Ipv4Addr> {
        match self.router {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }
}

/// ` le 32`, where anything longer than the prefix is left.
fn at_most(prefix: &Prefix) -> String {
    let width = Family::of(prefix.ip()).width();
    if prefix.prefix() == width { String::new() } else { format!(" le {width}") }
}

/// A configuration that grows line by line.
struct Text(String);

impl Text {
    /// One that begins by saying whom it is for, behind what marks a comment of this vendor.
    fn new(facts: &Facts, comment: &str, vendor: &str, is_executed: bool) -> Self {
        let mut text = Self(String::new());
        let Facts { peer, router, port, .. } = facts;
        text.line(format!("{comment} BGPPeer {peer} ({router}): what the router needs to accept Ferrogate's nodes."));
        text.line(format!(
            "{comment} {vendor}. Written by `ferrogate router-config`; run it again when nodes or pools change."
        ));
        if !is_executed {
            text.line(format!("{comment} not executed here"));
        }
        if port.get() != 179 {
            text.line(format!("{comment} The nodes connect to port {port}: the router must listen there."));
        }
        if facts.has_password {
            text.line(format!("{comment} The password is that of the BGPPeer; it is not shown here."));
        }
        for note in &facts.notes {
            text.line(format!("{comment} {note}"));
        }
        text
    }

    fn line(&mut self, line: impl fmt::Display) {
        self.0.push_str(&format!("{line}\n"));
    }

    /// A line for those who have it only.
    fn line_if(&mut self, is_so: bool, line: impl fmt::Display) {
        if is_so {
            self.line(line);
        }
    }
}
