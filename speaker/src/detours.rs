//! Passing packets on to another node, by rules of nftables.
//!
//! While there is something to pass on, each family that needs it has a table `ferrogate`, beside whatever else uses
//! nftables; `nft list table ip ferrogate` shows it. Its rule looks at a packet after the kernel has looked up the
//! connection it belongs to, and before anybody translates addresses:
//!
//! ```text
//! ip daddr @next_hops  tcp flags & (fin | syn | rst | ack) != syn  ct state & (established | related) == 0  counter
//!     dup to ip daddr map @next_hops device ip daddr map @interfaces  drop
//! ```
//!
//! The kernel makes one change of nftables at a time, and those of others (kube-proxy's, say) can take long. So ours are made
//! on a thread of their own, and nobody waits for them longer than [`WAIT`].

use std::{collections::BTreeMap, io, net::IpAddr, thread, time::Duration};

use ferrogate_core::{model::Family, speaker::NextHop};
use netlink_packet_netfilter::nftables::{Expressions, InetHookNumber, Operator, Register, SetAttribute, SetFlags};
use tokio::{runtime::Builder, sync::watch, time::timeout};
use tracing::{Span, warn};

use crate::{
    metrics::Metrics,
    nft::{self, Change, ELEMENTS, Kind, Nft, NftError, PARTS},
};

const TABLE: &str = "ferrogate";
const NEXT_HOPS: &str = "next_hops";
const INTERFACES: &str = "interfaces";
const CHAIN: &str = "prerouting";

/// Of the hook: after connections are looked up (-200), before addresses are translated (-100).
const PRIORITY: i32 = -150;

/// How long announcements wait for the rules: longer than these take while nobody else changes any, and no time in which a
/// client would notice.
const WAIT: Duration = Duration::from_millis(20);

/// Why packets are not passed on. Connections that began at the former owner end with the move.
#[derive(Debug, thiserror::Error)]
enum DetourError {
    /// The rules cannot be made.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Others held nftables for so long that the addresses were announced before.
    #[error("others change nftables for long; it begins a little after the address is announced")]
    Late,
}

impl DetourError {
    /// One word for it.
    fn reason(&self) -> &'static str {
        match self {
            Self::Nft(error) => error.reason(),
            Self::Late => "Late",
        }
    }
}

/// The thread that passes on.
pub(crate) struct Detours {
    wanted: watch::Sender<Wanted>,
    /// The number of what was done last.
    done: watch::Receiver<u64>,
    metrics: Metrics,
}

/// What is to be passed on, with a number of its own.
#[derive(Default)]
struct Wanted {
    number: u64,
    next_hops: BTreeMap<IpAddr, NextHop>,
}

impl Detours {
    /// Starts the thread, which ends when this is dropped.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(crate) fn start(metrics: Metrics) -> io::Result<Self> {
        let (wanted, to_do) = watch::channel(Wanted::default());
        let (doing, done) = watch::channel(0);
        let (span, of_thread) = (Span::current(), metrics.clone());
        thread::Builder::new().name("detours".to_owned()).spawn(move || {
            let _entered = span.entered();
            match Builder::new_current_thread().build() {
                Ok(runtime) => runtime.block_on(work(to_do, &doing, &of_thread)),
                Err(error) => warn!(%error, "TCP connections end when an address moves here"),
            }
        })?;
        Ok(Self { wanted, done, metrics })
    }

    /// Passes on what belongs to connections that began elsewhere, of the traffic to exactly these addresses, from when this
    /// returns on if the kernel is not busy with the rules of others.
    pub(crate) async fn follow(&mut self, next_hops: BTreeMap<IpAddr, NextHop>) {
        let (number, begins) = {
            let before = self.wanted.borrow();
            (before.number + 1, !beyond(&next_hops, &before.next_hops).is_empty())
        };
        self.wanted.send_replace(Wanted { number, next_hops });
        let error = match timeout(WAIT, self.done.wait_for(|done| *done >= number)).await {
            Ok(Ok(_)) => return,
            Ok(Err(_)) => {
                self.metrics.passing_on.set(0);
                NftError::Failed(io::Error::other("the thread that does it has ended")).into()
            }
            Err(_) if begins => DetourError::Late,
            // What ends may end later.
            Err(_) => return,
        };
        warn!(%error, reason = error.reason(), "TCP connections end when an address moves here");
        self.metrics.not_passed_on(error.reason());
    }
}

/// Has the tables follow what is wanted, until nobody wants anything any more.
async fn work(mut wanted: watch::Receiver<Wanted>, done: &watch::Sender<u64>, metrics: &Metrics) {
    let (mut tables, mut trouble) = (Tables::default(), None);
    while wanted.changed().await.is_ok() {
        let (number, next_hops) = {
            let wanted = wanted.borrow_and_update();
            (wanted.number, wanted.next_hops.clone())
        };
        let failure = tables.follow(&next_hops).err();
        metrics.passing_on.set(if failure.is_none() { next_hops.len() as i64 } else { 0 });
        if let Some(error) = failure {
            let reason = error.reason();
            metrics.not_passed_on(reason);
            // Moves come again, and the reason mostly stays.
            if trouble.replace(reason) != Some(reason) {
                warn!(%error, reason, "TCP connections end when an address moves here");
            }
        }
        done.send_replace(number);
    }
}

/// The tables, and the socket they belong to.
#[derive(Default)]
struct Tables {
    nft: Nft,
    /// What the table of a family passes on, where it has one.
    standing: BTreeMap<Family, BTreeMap<IpAddr, NextHop>>,
    /// What stands may be what was wanted of addresses that are elsewhere by now.
    is_astray: bool,
}

impl Tables {
    /// Passes on what belongs to connections that began elsewhere, of the traffic to exactly these addresses. Where that
    /// fails for one family, nothing of it is passed on, and the other has what is wanted.
    ///
    /// # Errors
    /// The first that happened.
    fn follow(&mut self, next_hops: &BTreeMap<IpAddr, NextHop>) -> Result<(), NftError> {
        let done = self.try_follow(next_hops);
        if !self.is_astray && !self.nft.is_astray() {
            return done;
        }
        // The tables go with the socket.
        *self = Self::default();
        self.try_follow(next_hops)
    }

    fn try_follow(&mut self, next_hops: &BTreeMap<IpAddr, NextHop>) -> Result<(), NftError> {
        let by_family = |family| {
            let of_family = next_hops.iter().filter(move |(address, _)| Family::of(**address) == family);
            of_family.map(|(address, next_hop)| (*address, *next_hop)).collect()
        };
        let done = [Family::V4, Family::V6].map(|family| {
            let changed = self.change(family, by_family(family));
            if changed.is_err() {
                // What was there belongs to addresses that are elsewhere by now.
                self.is_astray |= self.change(family, BTreeMap::new()).is_err();
            }
            changed
        });
        done.into_iter().collect()
    }

    /// What stays is passed on all the while.
    fn change(&mut self, family: Family, wanted: BTreeMap<IpAddr, NextHop>) -> Result<(), NftError> {
        let standing = self.standing.get(&family);
        if wanted.is_empty() {
            if standing.is_some() {
                self.nft.transact(family, TABLE, vec![nft::delete_table(TABLE)])?;
                self.standing.remove(&family);
            }
            return Ok(());
        }
        let none = BTreeMap::new();
        let gone = beyond(standing.unwrap_or(&none), &wanted);
        let new = beyond(&wanted, standing.unwrap_or(&none));
        let mut changes = match standing {
            Some(_) => Vec::new(),
            None => table(family),
        };
        let gone = gone.chunks(ELEMENTS).flat_map(|some| {
            let keys = || some.iter().map(|(address, _)| nft::bytes(*address)).collect();
            [NEXT_HOPS, INTERFACES].map(|map| nft::delete_elements(TABLE, map, keys()))
        });
        let new = new.chunks(ELEMENTS).flat_map(|some| {
            let elements = |value: fn(&NextHop) -> Vec<u8>| {
                some.iter().map(|(address, next_hop)| (nft::bytes(*address), Some(value(next_hop)))).collect()
            };
            let next_hops = elements(|next_hop| nft::bytes(next_hop.address));
            let interfaces = elements(|next_hop| next_hop.interface.to_ne_bytes().to_vec());
            [nft::add_elements(TABLE, NEXT_HOPS, next_hops), nft::add_elements(TABLE, INTERFACES, interfaces)]
        });
        for some in gone.chain(new).collect::<Vec<_>>().chunks(PARTS) {
            changes.extend(some.iter().cloned());
            self.nft.transact(family, TABLE, std::mem::take(&mut changes))?;
            // There is a table from the first on, whatever becomes of the others.
            self.standing.entry(family).or_default();
        }
        self.standing.insert(family, wanted);
        Ok(())
    }
}

/// What is in one and not, or another way, in the other.
fn beyond(these: &BTreeMap<IpAddr, NextHop>, those: &BTreeMap<IpAddr, NextHop>) -> Vec<(IpAddr, NextHop)> {
    let beyond = these.iter().filter(|(address, next_hop)| those.get(address) != Some(next_hop));
    beyond.map(|(address, next_hop)| (*address, *next_hop)).collect()
}

/// The table of a family, with its maps still empty.
fn table(family: Family) -> Vec<Change> {
    let map = |(kind, length): Kind| {
        let flags = SetAttribute::Flags(SetFlags::Map);
        vec![flags, SetAttribute::DataType(kind), SetAttribute::DataLen(length)]
    };
    let address = nft::address(family);
    vec![
        nft::new_table(TABLE),
        nft::new_set(TABLE, NEXT_HOPS, 1, address, map(address)),
        nft::new_set(TABLE, INTERFACES, 2, address, map(nft::INTERFACE_INDEX)),
        nft::new_chain(TABLE, CHAIN, Some((InetHookNumber::PreRouting, PRIORITY))),
        nft::new_rule(TABLE, CHAIN, rule(family)),
    ]
}

/// What the module says, an expression after another. Registers of 16 bytes: 1 for what is compared and the next hop, 2 for
/// the interface.
fn rule(family: Family) -> Vec<Expressions> {
    let to = || nft::load(nft::destination(family), nft::address(family).1, Register::Reg1);
    // Bits of `established` and `related`, as nft(8) calls them.
    let known = 6_u32;
    let mut rule = vec![to(), nft::look_up(NEXT_HOPS, Register::Reg1, None)];
    rule.extend(nft::is_tcp(Operator::NotEqual, nft::SYN));
    rule.extend([
        nft::other("ct", vec![(1, nft::number(Register::Reg1)), (2, nft::number(CT_STATE))]),
        nft::mask(known.to_ne_bytes().to_vec(), vec![0; 4]),
        nft::compare(Operator::Equal, vec![0; 4]),
        nft::count(),
        to(),
        nft::look_up(INTERFACES, Register::Reg1, Some(Register::Reg2)),
        nft::look_up(NEXT_HOPS, Register::Reg1, Some(Register::Reg1)),
        nft::duplicate(),
        nft::drop_packet(),
    ]);
    rule
}

const CT_STATE: u32 = 0;
