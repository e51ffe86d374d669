//! Strays, TCP connections that routers have brought to the wrong node, as rules of nftables.
//!
//! While there are routers and other nodes, each family has a table `ferrogate_strays`; `nft list table ip ferrogate_strays`
//! shows it. A connection is known by the client's address and port, and ours. A node that offers or confirms says so by a small
//! TTL: what comes from a router has a greater one, and what is routed back is not offered again.
//!
//! ```text
//! arriving    before addresses are translated, and after what is passed on to a former owner
//!             a confirmation of another node   to `confirmed`
//!             a connection begins              nothing is known of it any more
//!             an offer of another node         it is a guest; go on. Where there are too many: drop
//!             what has been round              no offer of it any more: drop, if it is a stray
//!             a guest that comes by itself     it is no guest any more
//!             a stray                          to `found`
//! confirmed   of a stray                       it is kept; drop
//!             else                             drop
//! found       too many at a time               drop
//!             to be answered, and not kept     it is asked for, and a stray for a moment more; to `offering`
//!             else                             to `offering`
//! offering    to each other node: dup to NEXT HOP device INTERFACE; drop
//! leaving     after addresses have been translated back
//!             a reset that answers a guest     drop, unless it is this node's own: it belongs to somebody else
//!             a reset of a stray               drop: it is late
//!             any other, not asked for         it is a stray; drop
//!             an answer to a guest             it is this node's own; now and then to each other node:
//!                                              dup to NEXT HOP device INTERFACE, and with a usual TTL to the client
//! ```
//!
//! A reset without ACK says mostly that a connection is not known (RFC 9293, section 3.10.7.1); one by which its owner ends it
//! has ACK set. What is to be answered, as it has PSH or FIN, is so at once by whoever knows it, and nothing else needs to be. Where
//! the set of strays is full, resets go to clients.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    thread,
    time::Duration,
};

use ferrogate_core::{
    model::Family,
    speaker::{NextHop, StrayRules},
};
use ferrogate_wire::ethernet::Mac;
use imbl::{OrdSet, ordset::DiffItem};
use netlink_packet_netfilter::nftables::{
    Expressions, InetHookNumber, Operator, Register, SetAttribute, SetDescription, SetFlags,
};
use tokio::{runtime::Builder, sync::watch, time::timeout};
use tracing::{Span, info, warn};

use crate::{
    metrics::Metrics,
    nft::{self, Change, ELEMENTS, Kind, Nft, NftError, PARTS},
};

const TABLE: &str = "ferrogate_strays";

/// Addresses of Services.
const ADDRESSES: &str = "addresses";
/// Hardware addresses of other nodes.
const NODES: &str = "nodes";
/// Connections that began at another node, as far as is known.
const STRAYS: &str = "strays";
/// Those of them that a node has confirmed.
const KEPT: &str = "kept";
/// Connections that other nodes have been asked for. Nobody has confirmed them yet.
const ASKED: &str = "asked";
/// Connections that another node has offered.
const GUESTS: &str = "guests";
/// Those of them that are this node's own.
const OWN: &str = "own";
/// Those that have been confirmed a moment ago.
const TOLD: &str = "told";

/// Sets of connections, with how long each remembers one of which nothing else is said.
const CONNECTIONS: [(&str, Duration); 6] =
    [(STRAYS, QUIET), (KEPT, QUIET), (ASKED, QUIET), (GUESTS, QUIET), (OWN, QUIET), (TOLD, CONFIRMED_AGAIN)];

/// How many connections there can be in a set. What is beyond ends as it would without.
const MOST: u32 = 65_535;

/// How long others have to confirm one that they were asked for.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a connection is confirmed: several times while others are patient.
const CONFIRMED_AGAIN: Duration = Duration::from_millis(200);

/// How long anything is remembered of a connection that is silent. The client's next packet is lost then, as its first was.
const QUIET: Duration = Duration::from_secs(60);

const ARRIVING: &str = "arriving";
const CONFIRMED: &str = "confirmed";
const FOUND: &str = "found";
const OFFERING: &str = "offering";
const LEAVING: &str = "leaving";

/// Those that change with whom strays are offered to.
const CHAINS: [&str; 5] = [ARRIVING, CONFIRMED, FOUND, OFFERING, LEAVING];

/// Of `arriving`: after what is passed on to a former owner (-150), before addresses are translated (-100).
const ARRIVING_AT: i32 = -149;

/// Of `leaving`: after addresses are translated (100).
const LEAVING_AT: i32 = 200;

/// The greatest TTL of what comes from another node for the sake of a stray: enough for an endpoint on a third one. The kernel
/// takes one off what it sends on before it is routed.
const NEAR: u8 = 8;

/// The usual TTL of what a host sends (RFC 1700).
const USUAL_TTL: u8 = 64;

/// How many packets of the strays of a family go out in a second, and in a moment. The others are lost, and clients send slower.
const RATE: u64 = 50_000;
const BURST: u32 = 5_000;

/// How long it is waited for the first rules, which take some milliseconds while nobody else changes any: while the node has no
/// address, so that nobody misses it, and else.
const WAIT: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(20)];

/// After how long it is tried again what could not be done.
const RETRY: Duration = Duration::from_secs(5);

/// The thread that has the kernel follow.
pub(crate) struct Strays {
    wanted: watch::Sender<StrayRules>,
    /// Whether there are rules.
    begun: watch::Receiver<bool>,
    has_waited: bool,
}

impl Strays {
    /// Starts the thread, which ends when this is dropped.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(crate) fn start(metrics: Metrics) -> io::Result<Self> {
        let (wanted, to_do) = watch::channel(StrayRules::default());
        let (begins, begun) = watch::channel(false);
        let span = Span::current();
        thread::Builder::new().name("strays".to_owned()).spawn(move || {
            let _entered = span.entered();
            match Builder::new_current_thread().enable_time().build() {
                Ok(runtime) => runtime.block_on(work(to_do, &begins, &metrics)),
                Err(error) => warn!(%error, "TCP connections end when a router sends them to another node"),
            }
        })?;
        Ok(Self { wanted, begun, has_waited: false })
    }

    /// Deals so with strays from soon on. The first rules should be there before this node, which `has_addresses` already or not,
    /// takes any of them, lest it reset what others offer.
    pub(crate) async fn follow(&mut self, wanted: StrayRules, has_addresses: bool) {
        let begins = !wanted.addresses.is_empty() && !std::mem::replace(&mut self.has_waited, true);
        self.wanted.send_replace(wanted);
        if begins {
            // Without rules that is told by the thread, and connections end as they would with nobody to offer them to.
            let _ = timeout(WAIT[usize::from(has_addresses)], self.begun.wait_for(|begun| *begun)).await;
        }
    }
}

/// Has the tables follow what is wanted, until nobody wants anything any more.
async fn work(mut wanted: watch::Receiver<StrayRules>, begins: &watch::Sender<bool>, metrics: &Metrics) {
    let (mut tables, mut trouble) = (Tables::default(), None);
    loop {
        let patience = if trouble.is_some() { RETRY } else { Duration::MAX };
        if let Ok(Err(_)) = timeout(patience, wanted.changed()).await {
            return;
        }
        let now = wanted.borrow_and_update().clone();
        let failure = tables.follow(&now).err();
        metrics.strays_offered_to.set(tables.next_hops() as i64);
        // Whether or not it has come to anything, nobody has to wait again.
        if !now.addresses.is_empty() {
            begins.send_replace(true);
        }
        let Some(error) = failure else {
            trouble = None;
            continue;
        };
        let reason = error.reason();
        if trouble.replace(reason) == Some(reason) {
            continue;
        }
        metrics.not_passed_on(reason);
        match error {
            // Nobody has asked for it.
            NftError::NotPermitted => {
                info!(reason, "TCP connections end when a router sends them to another node, {error}")
            }
            _ => warn!(%error, reason, "TCP connections end when a router sends them to another node"),
        }
    }
}

/// The tables, and the socket they belong to.
#[derive(Default)]
struct Tables {
    nft: Nft,
    /// What the table of a family says, where it has one.
    standing: BTreeMap<Family, Standing>,
    /// What stands may be what was wanted before.
    is_astray: bool,
}

#[derive(Default)]
struct Standing {
    /// Of both families.
    addresses: OrdSet<IpAddr>,
    nodes: BTreeSet<Mac>,
    next_hops: BTreeSet<NextHop>,
}

impl Tables {
    /// To how many neighbours strays are offered.
    fn next_hops(&self) -> usize {
        self.standing.values().map(|standing| standing.next_hops.len()).sum()
    }

    /// Deals so with strays. Where that fails for one family, its strays end, and the other has what is wanted.
    ///
    /// # Errors
    /// The first that happened.
    fn follow(&mut self, wanted: &StrayRules) -> Result<(), NftError> {
        let done = self.try_follow(wanted);
        if !self.is_astray && !self.nft.is_astray() {
            return done;
        }
        // The tables go with the socket.
        *self = Self::default();
        self.try_follow(wanted)
    }

    fn try_follow(&mut self, wanted: &StrayRules) -> Result<(), NftError> {
        let done = [Family::V4, Family::V6].map(|family| {
            let changed = self.change(family, wanted);
            if changed.is_err() {
                self.is_astray |= self.change(family, &StrayRules::default()).is_err();
            }
            changed
        });
        done.into_iter().collect()
    }

    fn change(&mut self, family: Family, wanted: &StrayRules) -> Result<(), NftError> {
        // All of IPv4 come before those of IPv6.
        let outermost = match family {
            Family::V4 => wanted.addresses.get_min(),
            Family::V6 => wanted.addresses.get_max(),
        };
        if outermost.is_none_or(|address| Family::of(*address) != family) {
            if self.standing.contains_key(&family) {
                self.nft.transact(family, TABLE, vec![nft::delete_table(TABLE)])?;
                self.standing.remove(&family);
            }
            return Ok(());
        }
        let of_family = |next_hop: &&NextHop| Family::of(next_hop.address) == family;
        let next_hops: BTreeSet<NextHop> = wanted.next_hops.iter().filter(of_family).copied().collect();
        let is_new = !self.standing.contains_key(&family);
        let none = Standing::default();
        let standing = self.standing.get(&family).unwrap_or(&none);
        let mut changes = if is_new { table(family) } else { Vec::new() };
        let is_known = |nodes: &BTreeSet<Mac>| !nodes.is_empty();
        if is_new || standing.next_hops != next_hops || is_known(&standing.nodes) != is_known(&wanted.offered_by) {
            changes.extend(CHAINS.map(|chain| nft::delete_rules(TABLE, chain)));
            changes.extend(rules(family, &next_hops, is_known(&wanted.offered_by)));
        }
        if !standing.next_hops.is_subset(&next_hops) {
            // Some of them may have been strays of the one that is gone. The others come back.
            changes.extend([STRAYS, KEPT, ASKED].map(|set| nft::delete_all_elements(TABLE, set)));
        }
        let mut elements = Vec::new();
        let macs = |macs: &BTreeSet<Mac>, but: &BTreeSet<Mac>| -> Vec<Vec<u8>> {
            macs.difference(but).map(|mac| mac.0.to_vec()).collect()
        };
        let nodes = [macs(&standing.nodes, &wanted.offered_by), macs(&wanted.offered_by, &standing.nodes)];
        elements.extend(difference(NODES, nodes));
        let [mut gone, mut new] = [Vec::new(), Vec::new()];
        for change in standing.addresses.diff(&wanted.addresses) {
            match change {
                DiffItem::Add(address) if Family::of(*address) == family => new.push(nft::bytes(*address)),
                DiffItem::Remove(address) if Family::of(*address) == family => gone.push(nft::bytes(*address)),
                _ => {}
            }
        }
        elements.extend(difference(ADDRESSES, [gone, new]));
        let mut parts = elements.chunks(PARTS);
        changes.extend(parts.next().into_iter().flatten().cloned());
        for changes in std::iter::once(changes).chain(parts.map(<[Change]>::to_vec)) {
            if !changes.is_empty() {
                self.nft.transact(family, TABLE, changes)?;
                // There is a table from the first on, whatever becomes of the others.
                self.standing.entry(family).or_default();
            }
        }
        let standing = Standing { addresses: wanted.addresses.clone(), nodes: wanted.offered_by.clone(), next_hops };
        self.standing.insert(family, standing);
        Ok(())
    }
}

/// Takes some elements out of a set, and puts others in.
fn difference(set: &str, [gone, new]: [Vec<Vec<u8>>; 2]) -> Vec<Change> {
    let gone = gone.chunks(ELEMENTS).map(|some| nft::delete_elements(TABLE, set, some.to_vec()));
    let new = new.chunks(ELEMENTS).map(|some| {
        let elements = some.iter().map(|key| (key.clone(), None)).collect();
        nft::add_elements(TABLE, set, elements)
    });
    gone.chain(new).collect()
}

/// The table of a family, with nothing in it that says anything.
fn table(family: Family) -> Vec<Change> {
    let (address, address_length) = nft::address(family);
    let (port, port_length) = PORT;
    // As nft(8) puts types together: 6 bits for each.
    let connection = [address, port, address, port].into_iter().fold(0, |kind, next| kind << 6 | next);
    let connections = (connection, 2 * (address_length + port_length));
    let connections = (3..).zip(CONNECTIONS).map(|(id, (set, lasts))| {
        let more = vec![
            SetAttribute::Flags(SetFlags::Eval | SetFlags::Timeout),
            SetAttribute::Timeout(milliseconds(lasts)),
            SetAttribute::Description(vec![SetDescription::Size(MOST)]),
        ];
        nft::new_set(TABLE, set, id, connections, more)
    });
    let mut all = vec![
        nft::new_table(TABLE),
        nft::new_set(TABLE, ADDRESSES, 1, nft::address(family), Vec::new()),
        nft::new_set(TABLE, NODES, 2, nft::ETHERNET_ADDRESS, Vec::new()),
    ];
    all.extend(connections);
    all.extend(CHAINS.map(|chain| {
        let hook = match chain {
            ARRIVING => Some((InetHookNumber::PreRouting, ARRIVING_AT)),
            LEAVING => Some((InetHookNumber::PostRouting, LEAVING_AT)),
            _ => None,
        };
        nft::new_chain(TABLE, chain, hook)
    }));
    all
}

/// `inet_service`, which takes a register of 4 bytes.
const PORT: Kind = (13, 4);

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What the module says, with the hardware addresses of other nodes or without.
fn rules(family: Family, next_hops: &BTreeSet<NextHop>, nodes_are_known: bool) -> Vec<Change> {
    let length = nft::address(family).1;
    let of_ours = |place| vec![nft::load(place, length, Register::Reg1), nft::look_up(ADDRESSES, Register::Reg1, None)];
    let rule = |chain: &str, parts: Vec<Vec<Expressions>>| nft::new_rule(TABLE, chain, parts.concat());
    let near = || {
        let ttl = [nft::load(ttl(family), 1, Register::Reg1), nft::compare(Operator::LessThanEqual, vec![NEAR])];
        let mac = [nft::load(nft::Place::Link(6), 6, Register::Reg1), nft::look_up(NODES, Register::Reg1, None)];
        ttl.into_iter().chain(mac.into_iter().filter(|_| nodes_are_known)).collect::<Vec<_>>()
    };
    let [to, from] = [nft::destination(family), nft::source(family)];
    let not_new = || nft::is_tcp(Operator::NotEqual, nft::SYN).to_vec();
    let reset = || nft::is_tcp(Operator::Equal, nft::RST).to_vec();
    let arriving = || connection(family, Side::Arriving).to_vec();
    let leaving = || connection(family, Side::Leaving).to_vec();
    let is_in = |set: &str| nft::look_up(set, KEY, None);
    let is_not_in = |set: &str| nft::look_up_missing(set, KEY);
    let (count, drop) = (nft::count, nft::drop_packet);

    let forgets = || CONNECTIONS.map(|(set, _)| forget(set)).to_vec();
    let from_ttl = |operator| {
        let ttl = vec![nft::load(ttl(family), 1, Register::Reg1), nft::compare(operator, vec![NEAR])];
        [of_ours(to), ttl, not_new(), arriving()].concat()
    };
    let (far, round) = (|| from_ttl(Operator::GreaterThan), || from_ttl(Operator::LessThanEqual));
    let mut all = vec![
        rule(ARRIVING, vec![of_ours(from), near(), not_new(), vec![nft::jump(CONFIRMED)]]),
        rule(
            ARRIVING,
            vec![
                of_ours(to),
                nft::is_tcp(Operator::Equal, nft::SYN).to_vec(),
                arriving(),
                forgets(),
                vec![nft::accept()],
            ],
        ),
        rule(
            ARRIVING,
            vec![of_ours(to), near(), not_new(), arriving(), vec![remember(GUESTS, QUIET), count(), nft::accept()]],
        ),
        // There are too many, and it must not be ended.
        rule(ARRIVING, vec![of_ours(to), near(), not_new(), vec![drop()]]),
        rule(ARRIVING, vec![round(), vec![is_in(STRAYS), drop()]]),
        rule(ARRIVING, vec![far(), vec![is_in(GUESTS), forget(GUESTS)]]),
        rule(ARRIVING, vec![far(), vec![is_in(STRAYS), count(), nft::jump(FOUND)]]),
        rule(
            CONFIRMED,
            vec![leaving(), vec![is_in(STRAYS), remember(KEPT, QUIET), remember(STRAYS, QUIET), forget(ASKED), drop()]],
        ),
        rule(CONFIRMED, vec![vec![drop()]]),
        rule(LEAVING, vec![of_ours(from), reset(), leaving(), vec![is_in(GUESTS), is_not_in(OWN), count(), drop()]]),
    ];
    if next_hops.is_empty() {
        return all;
    }
    let asks = vec![is_not_in(KEPT), is_not_in(ASKED), remember(STRAYS, PATIENCE), remember(ASKED, QUIET)];
    all.extend([
        rule(FOUND, vec![too_fast(next_hops.len())]),
        rule(FOUND, vec![nft::is_any_of(nft::PSH_FIN).to_vec(), arriving(), asks]),
        rule(FOUND, vec![vec![nft::jump(OFFERING)]]),
        rule(OFFERING, vec![set_ttl(family, NEAR + 1), to_all(next_hops), vec![drop()]]),
        rule(LEAVING, vec![of_ours(from), reset(), leaving(), vec![is_in(STRAYS), drop()]]),
    ]);
    let learns = vec![is_not_in(ASKED), is_not_in(OWN), remember(STRAYS, QUIET), count(), drop()];
    all.push(rule(LEAVING, vec![of_ours(from), reset(), leaving(), learns]));
    let confirms = vec![is_in(GUESTS), remember(OWN, QUIET), is_not_in(TOLD), remember(TOLD, CONFIRMED_AGAIN)];
    all.push(rule(
        LEAVING,
        vec![
            of_ours(from),
            nft::is_tcp(Operator::NotEqual, nft::RST).to_vec(),
            leaving(),
            confirms,
            vec![count()],
            set_ttl(family, NEAR),
            to_all(next_hops),
            // The client has it, too.
            set_ttl(family, USUAL_TTL),
        ],
    ));
    all
}

/// Drops what there is too much of.
fn too_fast(next_hops: usize) -> Vec<Expressions> {
    let rate = RATE / next_hops.max(1) as u64;
    let limit = vec![
        (1, rate.to_be_bytes().to_vec()),
        // Of a second.
        (2, 1_u64.to_be_bytes().to_vec()),
        (3, nft::number(BURST)),
        // Packets, and beyond the limit.
        (4, nft::number(0_u32)),
        (5, nft::number(1_u32)),
    ];
    vec![nft::other("limit", limit), nft::drop_packet()]
}

/// Sends a copy of the packet to each.
fn to_all(next_hops: &BTreeSet<NextHop>) -> Vec<Expressions> {
    let copy = |NextHop { address, interface }: &NextHop| {
        [
            nft::constant(nft::bytes(*address), Register::Reg1),
            nft::constant(interface.to_ne_bytes().to_vec(), Register::Reg2),
            nft::duplicate(),
        ]
    };
    next_hops.iter().flat_map(copy).collect()
}

/// Where a packet says how much farther it may go.
fn ttl(family: Family) -> nft::Place {
    match family {
        Family::V4 => nft::Place::Network(8),
        Family::V6 => nft::Place::Network(7),
    }
}

fn set_ttl(family: Family, value: u8) -> Vec<Expressions> {
    let ttl = ttl(family);
    match family {
        // Checksums are of 16 bits: the protocol is next to it.
        Family::V4 => vec![
            nft::load(ttl, 2, Register::Reg1),
            nft::mask(vec![0, 0xff], vec![value, 0]),
            nft::store(ttl, 2, family),
        ],
        Family::V6 => vec![nft::constant(vec![value], Register::Reg1), nft::store(ttl, 1, family)],
    }
}

/// On whose behalf a packet is seen.
#[derive(Clone, Copy)]
enum Side {
    /// The client sends it.
    Arriving,
    /// It is sent to the client.
    Leaving,
}

/// The first of the registers that hold a connection; register 1 is left to whoever compares.
const KEY: Register = Register::Reg2;

/// Registers of 4 bytes, from [`KEY`] on.
const REGISTERS: [Register; 12] = [
    Register::Reg32_04,
    Register::Reg32_05,
    Register::Reg32_06,
    Register::Reg32_07,
    Register::Reg32_08,
    Register::Reg32_09,
    Register::Reg32_10,
    Register::Reg32_11,
    Register::Reg32_12,
    Register::Reg32_13,
    Register::Reg32_14,
    Register::Reg32_15,
];

/// Loads which connection a packet belongs to: the client's address and port, and ours.
fn connection(family: Family, side: Side) -> [Expressions; 4] {
    let length = nft::address(family).1;
    let (from, to) =
        ((nft::source(family), nft::Place::Transport(0)), (nft::destination(family), nft::Place::Transport(2)));
    let (client, ours) = match side {
        Side::Arriving => (from, to),
        Side::Leaving => (to, from),
    };
    let (port_at, half) = (length as usize / 4, length as usize / 4 + 1);
    [
        nft::load(client.0, length, REGISTERS[0]),
        nft::load(client.1, 2, REGISTERS[port_at]),
        nft::load(ours.0, length, REGISTERS[half]),
        nft::load(ours.1, 2, REGISTERS[half + port_at]),
    ]
}

/// Has a set know a connection for so long from now on.
fn remember(set: &str, lasts: Duration) -> Expressions {
    dynamic(set, 1, Some(lasts))
}

/// Has a set know a connection no more.
fn forget(set: &str) -> Expressions {
    dynamic(set, 2, None)
}

fn dynamic(set: &str, operation: u32, lasts: Option<Duration>) -> Expressions {
    let name = [set.as_bytes(), &[0]].concat();
    let mut attributes = vec![(1, name), (3, nft::number(operation)), (4, nft::number(KEY))];
    attributes.extend(lasts.map(|lasts| (6, milliseconds(lasts).to_be_bytes().to_vec())));
    nft::other("dynset", attributes)
}
