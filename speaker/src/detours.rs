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
//! The tables belong to the socket that made them: they go with this process, however it ends, and nobody else changes
//! them (Linux 5.12).
//!
//! The kernel makes one change of nftables at a time, and those of others (kube-proxy's, say) can take long. So ours are made
//! on a thread of their own, and nobody waits for them longer than [`WAIT`].

use std::{collections::BTreeMap, io, net::IpAddr, thread, time::Duration};

use ferrogate_core::{model::Family, speaker::NextHop};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily,
    nftables::{
        Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, HookNumber, Immediate,
        InetHookNumber, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register,
        RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetFlags,
        SetMessage, TableAttribute, TableFlags, TableMessage, Verdict, VerdictAttribute,
    },
    none::ControlMessage,
};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};
use rtnetlink::{
    packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER},
};
use tokio::{runtime::Builder, sync::watch, time::timeout};
use tracing::{Span, warn};

use crate::metrics::Metrics;

const TABLE: &str = "ferrogate";
const NEXT_HOPS: &str = "next_hops";
const INTERFACES: &str = "interfaces";
const CHAIN: &str = "prerouting";

/// Of the hook: after connections are looked up (-200), before addresses are translated (-100).
const PRIORITY: i32 = -150;

/// Elements of a map that go into one message; its length has 16 bits.
const ELEMENTS: usize = 256;

/// How often so many go and come in one transaction, at most: all together may be more than the socket takes at once.
const PARTS: usize = 4;

/// How long the kernel may take for an answer, which it usually gives within the call.
const PATIENCE: TimeVal = TimeVal::new(1, 0);

/// How long announcements wait for the rules: longer than these take while nobody else changes any, and no time in which a
/// client would notice.
const WAIT: Duration = Duration::from_millis(20);

/// Why packets are not passed on. Connections that began at the former owner end with the move.
#[derive(Debug, thiserror::Error)]
enum DetourError {
    /// No right to change nftables.
    #[error("the kernel does not let this process change nftables; give it CAP_NET_ADMIN (capability NET_ADMIN)")]
    NotPermitted,
    /// Something else than this process has a table of our name.
    #[error(
        "there is a table {TABLE} in nftables already; find out whose it is, and run: nft delete table {0} {TABLE}"
    )]
    Taken(&'static str),
    /// An older kernel, or one built without what is needed.
    #[error(
        "the kernel lacks tables with an owner (Linux 5.12), or CONFIG_NF_TABLES, CONFIG_NFT_CT or CONFIG_NFT_DUP_{0}"
    )]
    Unsupported(&'static str),
    /// Others held nftables for so long that the addresses were announced before.
    #[error("others change nftables for long; it begins a little after the address is announced")]
    Late,
    /// Anything else.
    #[error("nftables cannot be changed: {0}")]
    Failed(io::Error),
}

impl DetourError {
    fn new(errno: Errno, family: Family) -> Self {
        let (nft, kconfig) = match family {
            Family::V4 => ("ip", "IPV4"),
            Family::V6 => ("ip6", "IPV6"),
        };
        match errno {
            Errno::EPERM => Self::NotPermitted,
            Errno::EEXIST => Self::Taken(nft),
            // No such family, flag or expression; no such subsystem.
            Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::ENOENT | Errno::EINVAL => {
                Self::Unsupported(kconfig)
            }
            errno => Self::Failed(errno.into()),
        }
    }

    /// One word for it.
    fn reason(&self) -> &'static str {
        match self {
            Self::NotPermitted => "NotPermitted",
            Self::Taken(_) => "TableTaken",
            Self::Unsupported(_) => "Unsupported",
            Self::Late => "Late",
            Self::Failed(_) => "Failed",
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
                DetourError::Failed(io::Error::other("the thread that does it has ended"))
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
    socket: Option<Socket>,
    /// What the table of a family passes on, where it has one.
    standing: BTreeMap<Family, BTreeMap<IpAddr, NextHop>>,
    sequence: u32,
    /// What stands may be something else.
    is_astray: bool,
}

impl Tables {
    /// Passes on what belongs to connections that began elsewhere, of the traffic to exactly these addresses. Where that
    /// fails for one family, nothing of it is passed on, and the other has what is wanted.
    ///
    /// # Errors
    /// The first that happened.
    fn follow(&mut self, next_hops: &BTreeMap<IpAddr, NextHop>) -> Result<(), DetourError> {
        let done = self.try_follow(next_hops);
        if !self.is_astray {
            return done;
        }
        // The tables go with the socket.
        *self = Self::default();
        self.try_follow(next_hops)
    }

    fn try_follow(&mut self, next_hops: &BTreeMap<IpAddr, NextHop>) -> Result<(), DetourError> {
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
            changed.map_err(|errno| DetourError::new(errno, family))
        });
        done.into_iter().collect()
    }

    /// What stays is passed on all the while.
    fn change(&mut self, family: Family, wanted: BTreeMap<IpAddr, NextHop>) -> Result<(), Errno> {
        let standing = self.standing.get(&family);
        if wanted.is_empty() {
            if standing.is_some() {
                let table = NfTablesMessage::DeleteTable(TableMessage { attributes: vec![name()] });
                self.transact(family, vec![(table, 0)])?;
                self.standing.remove(&family);
            }
            return Ok(());
        }
        let none = BTreeMap::new();
        let gone = beyond(standing.unwrap_or(&none), &wanted);
        let new = beyond(&wanted, standing.unwrap_or(&none));
        let mut head = match standing {
            Some(_) => Vec::new(),
            None => table(family).map(|message| (message, NLM_F_CREATE | NLM_F_EXCL)).into(),
        };
        let gone = gone
            .chunks(ELEMENTS)
            .map(|some| elements(some, Side::Key).map(|message| (NfTablesMessage::DeleteSetElement(message), 0)));
        let new = new.chunks(ELEMENTS).map(|some| {
            elements(some, Side::KeyAndValue).map(|message| (NfTablesMessage::NewSetElement(message), NLM_F_CREATE))
        });
        for some in gone.chain(new).collect::<Vec<_>>().chunks(PARTS) {
            head.extend(some.iter().flatten().cloned());
            self.transact(family, std::mem::take(&mut head))?;
            // There is a table from the first on, whatever becomes of the others.
            self.standing.entry(family).or_default();
        }
        self.standing.insert(family, wanted);
        Ok(())
    }

    /// Does all of this or nothing.
    fn transact(&mut self, family: Family, messages: Vec<(NfTablesMessage, u16)>) -> Result<(), Errno> {
        let family = match family {
            Family::V4 => NetfilterProtoFamily::IPv4,
            Family::V6 => NetfilterProtoFamily::IPv6,
        };
        let frame = |message: ControlMessage| {
            // NFNL_SUBSYS_NFTABLES: whose batch it is.
            (NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 10), message), 0)
        };
        let own = |(message, flags): (NfTablesMessage, u16)| {
            (NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message), flags)
        };
        let mut batch = vec![frame(ControlMessage::BatchBegin)];
        batch.extend(messages.into_iter().map(own));
        if let Some((_, flags)) = batch.last_mut() {
            *flags |= NLM_F_ACK;
        }
        let begin = self.sequence.wrapping_add(1);
        let acknowledged = self.sequence.wrapping_add(u32::try_from(batch.len()).unwrap_or(u32::MAX));
        batch.push(frame(ControlMessage::BatchEnd));
        let mut bytes = Vec::new();
        for (message, flags) in batch {
            self.sequence = self.sequence.wrapping_add(1);
            let mut message = NetlinkMessage::from(message);
            message.header.flags = NLM_F_REQUEST | flags;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(&mut bytes[start..]);
        }
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(open().map_err(errno)?),
        };
        let told = tell(socket, &bytes, begin, acknowledged);
        // Without an answer nobody knows what stands, and what becomes of other batches says nothing of it.
        self.is_astray |= told.is_err();
        told.map_err(errno)?
    }
}

/// Sends a batch, and waits for what becomes of it.
fn tell(socket: &Socket, batch: &[u8], begin: u32, acknowledged: u32) -> io::Result<Result<(), Errno>> {
    socket.send_to(batch, &SocketAddr::new(0, 0), 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        if let Some(verdict) = verdict(&answer, begin, acknowledged) {
            return Ok(verdict);
        }
    }
}

/// What is in one and not, or another way, in the other.
fn beyond(these: &BTreeMap<IpAddr, NextHop>, those: &BTreeMap<IpAddr, NextHop>) -> Vec<(IpAddr, NextHop)> {
    let beyond = these.iter().filter(|(address, next_hop)| those.get(address) != Some(next_hop));
    beyond.map(|(address, next_hop)| (*address, *next_hop)).collect()
}

/// What an answer says of the batch whose messages have these numbers: nothing yet, that it is done, or the first error of
/// one of them. Each message that fails is answered for itself, so that answers to an earlier batch may still come.
fn verdict(answer: &[u8], begin: u32, acknowledged: u32) -> Option<Result<(), Errno>> {
    let message = NetlinkMessage::<NetfilterMessage>::deserialize(answer).ok()?;
    let NetlinkPayload::Error(error) = message.payload else { return None };
    let number = message.header.sequence_number;
    let is_of_batch = number.wrapping_sub(begin) <= acknowledged.wrapping_sub(begin);
    match error.code.filter(|_| is_of_batch) {
        Some(code) => Some(Err(Errno::from_raw(-code.get()))),
        None => (number == acknowledged).then_some(Ok(())),
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    // Answers need not repeat what was asked.
    socket.set_cap_ack(true)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;
    Ok(socket)
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn name() -> TableAttribute {
    TableAttribute::Name(TABLE.to_owned())
}

/// The table of a family, with its maps still empty.
fn table(family: Family) -> [NfTablesMessage; 5] {
    // How nft(8) shows them: `ipv4_addr`, `ipv6_addr`, `iface_index`.
    let (address, length) = match family {
        Family::V4 => (7, 4),
        Family::V6 => (8, 16),
    };
    let interface = 20;
    let hook =
        vec![Hook::Number(HookNumber::Inet(InetHookNumber::PreRouting)), Hook::Priority(PRIORITY.cast_unsigned())];
    [
        NfTablesMessage::NewTable(TableMessage { attributes: vec![name(), TableAttribute::Flags(TableFlags::Owner)] }),
        map(NEXT_HOPS, 1, (address, length), (address, length)),
        map(INTERFACES, 2, (address, length), (interface, 4)),
        NfTablesMessage::NewChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(TABLE.to_owned()),
                ChainAttribute::Name(CHAIN.to_owned()),
                ChainAttribute::Hook(hook),
                ChainAttribute::Type("filter".to_owned()),
            ],
        }),
        NfTablesMessage::NewRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(TABLE.to_owned()),
                RuleAttribute::Chain(CHAIN.to_owned()),
                RuleAttribute::Expressions(rule(family).into_iter().map(ListAttribute::from).collect()),
            ],
        }),
    ]
}

/// A map, and what its keys and values are, each with its length in bytes. The number is its own in the transaction.
fn map(name: &str, id: u32, key: (u32, u32), value: (u32, u32)) -> NfTablesMessage {
    NfTablesMessage::NewSet(SetMessage {
        attributes: vec![
            SetAttribute::Table(TABLE.to_owned()),
            SetAttribute::Name(name.to_owned()),
            SetAttribute::Id(id),
            SetAttribute::Flags(SetFlags::Map),
            SetAttribute::KeyType(key.0),
            SetAttribute::KeyLen(key.1),
            SetAttribute::DataType(value.0),
            SetAttribute::DataLen(value.1),
        ],
    })
}

/// What of an element a message has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Key,
    KeyAndValue,
}

/// What goes into the two maps, or out of them.
fn elements(next_hops: &[(IpAddr, NextHop)], side: Side) -> [SetElementMessage; 2] {
    let message = |map: &str, value: fn(&NextHop) -> Vec<u8>| {
        let element = |(address, next_hop): &(IpAddr, NextHop)| {
            let mut element = vec![SetElementAttribute::Key(DataAttribute::Value(bytes(*address)))];
            if side == Side::KeyAndValue {
                element.push(SetElementAttribute::Data(DataAttribute::Value(value(next_hop))));
            }
            ListAttribute::Element(element)
        };
        SetElementMessage {
            attributes: vec![
                SetElementList::Table(TABLE.to_owned()),
                SetElementList::Set(map.to_owned()),
                SetElementList::Elements(next_hops.iter().map(element).collect()),
            ],
        }
    };
    [
        message(NEXT_HOPS, |next_hop| bytes(next_hop.address)),
        message(INTERFACES, |next_hop| next_hop.interface.to_ne_bytes().to_vec()),
    ]
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Where in a packet something is.
enum Place {
    /// So many bytes after the start of its IP header.
    Network(u32),
    /// So many bytes after the start of its TCP header.
    Transport(u32),
}

/// What the module says, an expression after another. Registers of 16 bytes: 1 for what is compared and the next hop, 2 for
/// the interface.
fn rule(family: Family) -> Vec<Expressions> {
    let (destination, length) = match family {
        Family::V4 => (Place::Network(16), 4),
        Family::V6 => (Place::Network(24), 16),
    };
    let tcp = vec![6];
    let flags = Place::Transport(13);
    let (fin_syn_rst_ack, syn) = (vec![0x17], vec![0x02]);
    // Bits of `established` and `related`, as nft(8) calls them.
    let known = 6_u32;
    vec![
        load(&destination, length, Register::Reg1),
        look_up(NEXT_HOPS, Register::Reg1, None),
        Expressions::Meta(vec![Meta::Key(MetaKey::L4Proto), Meta::DestinationRegister(Register::Reg1)]),
        compare(Operator::Equal, tcp),
        load(&flags, 1, Register::Reg1),
        mask(fin_syn_rst_ack),
        compare(Operator::NotEqual, syn),
        other("ct", &[(1, Register::Reg1.into()), (2, CT_STATE)]),
        mask(known.to_ne_bytes().to_vec()),
        compare(Operator::Equal, 0_u32.to_ne_bytes().to_vec()),
        other("counter", &[]),
        load(&destination, length, Register::Reg1),
        look_up(INTERFACES, Register::Reg1, Some(Register::Reg2)),
        look_up(NEXT_HOPS, Register::Reg1, Some(Register::Reg1)),
        other("dup", &[(1, Register::Reg1.into()), (2, Register::Reg2.into())]),
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Other(NF_DROP))])),
        ]),
    ]
}

const CT_STATE: u32 = 0;
const NF_DROP: u32 = 0;

fn load(place: &Place, length: u32, to: Register) -> Expressions {
    let (base, offset) = match place {
        Place::Network(offset) => (1, *offset),
        Place::Transport(offset) => (2, *offset),
    };
    Expressions::Payload(vec![
        Payload::DestinationRegister(to),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn look_up(map: &str, key: Register, value: Option<Register>) -> Expressions {
    let mut attributes = vec![Lookup::Set(map.to_owned()), Lookup::SourceRegister(key)];
    attributes.extend(value.map(Lookup::DestinationRegister));
    Expressions::Lookup(attributes)
}

fn compare(operator: Operator, with: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(with)),
    ])
}

fn mask(mask: Vec<u8>) -> Expressions {
    let length = mask.len();
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(length as u32),
        Bitwise::Xor(DataAttribute::Value(vec![0; length])),
        Bitwise::Mask(DataAttribute::Value(mask)),
    ])
}

/// An expression the library has no name for, with its attributes, all numbers.
fn other(kind: &str, attributes: &[(u16, u32)]) -> Expressions {
    let attributes = attributes.iter().map(|(kind, value)| DefaultNla::new(*kind, value.to_be_bytes().to_vec()));
    Expressions::Other { expression_type: kind.to_owned(), attributes: attributes.collect() }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use rtnetlink::packet_core::{ErrorMessage, NetlinkHeader};

    use super::*;

    #[test]
    fn every_refusal_of_the_kernel_has_a_reason_and_says_what_is_missing() {
        let cases = [
            (Errno::EPERM, Family::V4, "NotPermitted", "CAP_NET_ADMIN"),
            (Errno::EEXIST, Family::V4, "TableTaken", "nft delete table ip ferrogate"),
            (Errno::EEXIST, Family::V6, "TableTaken", "nft delete table ip6 ferrogate"),
            (Errno::EPROTONOSUPPORT, Family::V4, "Unsupported", "CONFIG_NFT_DUP_IPV4"),
            (Errno::ENOENT, Family::V6, "Unsupported", "CONFIG_NFT_DUP_IPV6"),
            (Errno::ENOBUFS, Family::V4, "Failed", "No buffer space"),
        ];
        for (errno, family, reason, said) in cases {
            let error = DetourError::new(errno, family);
            assert_eq!(error.reason(), reason, "{errno}");
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn an_answer_ends_the_wait_when_it_is_the_last_or_an_error() {
        let answer = |sequence: u32, code: i32| {
            let mut message = NetlinkMessage::<NetfilterMessage>::new(
                NetlinkHeader::default(),
                NetlinkPayload::Error(ErrorMessage::default()),
            );
            if let NetlinkPayload::Error(error) = &mut message.payload {
                error.code = NonZeroI32::new(code);
                error.header = vec![0; 16];
            }
            message.header.sequence_number = sequence;
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes
        };

        assert_eq!(verdict(&answer(6, 0), 5, 7), None);
        assert_eq!(verdict(&answer(7, 0), 5, 7), Some(Ok(())));
        assert_eq!(verdict(&answer(5, -libc::EEXIST), 5, 7), Some(Err(Errno::EEXIST)));
        assert_eq!(verdict(&[0; 3], 5, 7), None);
        // One that an earlier batch has left, also where the numbers begin again.
        assert_eq!(verdict(&answer(4, -libc::EEXIST), 5, 7), None);
        assert_eq!(verdict(&answer(u32::MAX - 1, -libc::EEXIST), u32::MAX, 1), None);
        assert_eq!(verdict(&answer(0, -libc::EPERM), u32::MAX, 1), Some(Err(Errno::EPERM)));
    }
}
