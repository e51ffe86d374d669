//! nftables by netlink: transactions, and what rules are made of.
//!
//! Tables belong to the socket that made them: they go with this process, however it ends, and nobody else changes them
//! (Linux 5.12).

use std::{io, net::IpAddr};

use ferrogate_core::model::Family;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily,
    nftables::{
        Bitwise, ChainAttribute, ChainMessage, ChecksumType, Cmp, DataAttribute, Expressions, Hook, HookNumber,
        Immediate, InetHookNumber, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register,
        RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetMessage,
        TableAttribute, TableFlags, TableMessage, Verdict, VerdictAttribute,
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
    packet_core::{
        DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER},
};

/// How long the kernel may take for an answer, which it usually gives within the call.
const PATIENCE: TimeVal = TimeVal::new(1, 0);

/// Elements of a set that go into one message; its length has 16 bits.
pub(crate) const ELEMENTS: usize = 256;

/// How many messages with so many elements go into one transaction, at most: all together may be more than the socket takes
/// at once.
pub(crate) const PARTS: usize = 8;

/// Why nftables are not as they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    /// No right to change nftables.
    #[error("the kernel does not let this process change nftables; give it CAP_NET_ADMIN (capability NET_ADMIN)")]
    NotPermitted,
    /// Something else than this process has a table of our name.
    #[error(
        "there is a table {table} in nftables already; find out whose it is, and run: nft delete table {family} {table}"
    )]
    Taken {
        /// As `nft` calls it.
        family: &'static str,
        /// Its name.
        table: &'static str,
    },
    /// An older kernel, or one built without what is needed.
    #[error(
        "the kernel lacks tables with an owner (Linux 5.12), or CONFIG_NF_TABLES, CONFIG_NFT_CT, CONFIG_NFT_LIMIT or \
         CONFIG_NFT_DUP_{0}"
    )]
    Unsupported(&'static str),
    /// Anything else.
    #[error("nftables cannot be changed: {0}")]
    Failed(io::Error),
}

impl NftError {
    fn new(errno: Errno, family: Family, table: &'static str) -> Self {
        let (nft, kconfig) = match family {
            Family::V4 => ("ip", "IPV4"),
            Family::V6 => ("ip6", "IPV6"),
        };
        match errno {
            Errno::EPERM => Self::NotPermitted,
            Errno::EEXIST => Self::Taken { family: nft, table },
            // No such family, flag or expression; no such subsystem.
            Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::ENOENT | Errno::EINVAL => {
                Self::Unsupported(kconfig)
            }
            errno => Self::Failed(errno.into()),
        }
    }

    /// One word for it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NotPermitted => "NotPermitted",
            Self::Taken { .. } => "TableTaken",
            Self::Unsupported(_) => "Unsupported",
            Self::Failed(_) => "Failed",
        }
    }
}

/// A message of a transaction, with its flags.
pub(crate) type Change = (NfTablesMessage, u16);

/// The socket that tables of one name belong to.
#[derive(Default)]
pub(crate) struct Nft {
    socket: Option<Socket>,
    sequence: u32,
    /// What stands may be something else than was told.
    is_astray: bool,
}

impl Nft {
    /// Whether nobody knows what stands any more. With this everything of it goes.
    pub(crate) fn is_astray(&self) -> bool {
        self.is_astray
    }

    /// Does all of this or nothing.
    ///
    /// # Errors
    /// Why nothing of it was done, as far as is known.
    pub(crate) fn transact(
        &mut self,
        family: Family,
        table: &'static str,
        changes: Vec<Change>,
    ) -> Result<(), NftError> {
        self.try_transact(family, changes).map_err(|errno| NftError::new(errno, family, table))
    }

    fn try_transact(&mut self, family: Family, changes: Vec<Change>) -> Result<(), Errno> {
        let family = match family {
            Family::V4 => NetfilterProtoFamily::IPv4,
            Family::V6 => NetfilterProtoFamily::IPv6,
        };
        let frame = |message: ControlMessage| {
            // NFNL_SUBSYS_NFTABLES: whose batch it is.
            (NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 10), message), 0)
        };
        let own =
            |(message, flags): Change| (NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message), flags);
        let mut batch = vec![frame(ControlMessage::BatchBegin)];
        batch.extend(changes.into_iter().map(own));
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

/// What is kept in sets and maps, with the number by which nft(8) knows its type and its length in bytes.
pub(crate) type Kind = (u32, u32);

/// `iface_index`.
pub(crate) const INTERFACE_INDEX: Kind = (20, 4);

/// `ether_addr`.
pub(crate) const ETHERNET_ADDRESS: Kind = (9, 6);

/// `ipv4_addr` or `ipv6_addr`.
pub(crate) fn address(family: Family) -> Kind {
    match family {
        Family::V4 => (7, 4),
        Family::V6 => (8, 16),
    }
}

/// Makes a table that goes with the socket.
pub(crate) fn new_table(table: &str) -> Change {
    let attributes = vec![TableAttribute::Name(table.to_owned()), TableAttribute::Flags(TableFlags::Owner)];
    (NfTablesMessage::NewTable(TableMessage { attributes }), NLM_F_CREATE | NLM_F_EXCL)
}

/// Deletes a table with everything in it.
pub(crate) fn delete_table(table: &str) -> Change {
    let attributes = vec![TableAttribute::Name(table.to_owned())];
    (NfTablesMessage::DeleteTable(TableMessage { attributes }), 0)
}

/// Makes a set with what else is to be said of it. The number is its own in the transaction.
pub(crate) fn new_set(table: &str, name: &str, id: u32, (kind, length): Kind, more: Vec<SetAttribute>) -> Change {
    let mut attributes = vec![
        SetAttribute::Table(table.to_owned()),
        SetAttribute::Name(name.to_owned()),
        SetAttribute::Id(id),
        SetAttribute::KeyType(kind),
        SetAttribute::KeyLen(length),
    ];
    attributes.extend(more);
    (NfTablesMessage::NewSet(SetMessage { attributes }), NLM_F_CREATE | NLM_F_EXCL)
}

/// Makes a chain: one that packets pass at a hook, before and after others by its priority, or one to jump to.
pub(crate) fn new_chain(table: &str, name: &str, hook: Option<(InetHookNumber, i32)>) -> Change {
    let mut attributes = vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(name.to_owned())];
    if let Some((hook, priority)) = hook {
        let hook = vec![Hook::Number(HookNumber::Inet(hook)), Hook::Priority(priority.cast_unsigned())];
        attributes.extend([ChainAttribute::Hook(hook), ChainAttribute::Type("filter".to_owned())]);
    }
    (NfTablesMessage::NewChain(ChainMessage { attributes }), NLM_F_CREATE | NLM_F_EXCL)
}

/// Puts a rule at the end of a chain.
pub(crate) fn new_rule(table: &str, chain: &str, says: Vec<Expressions>) -> Change {
    let attributes = vec![
        RuleAttribute::Table(table.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(says.into_iter().map(ListAttribute::from).collect()),
    ];
    (NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | NLM_F_APPEND)
}

/// Deletes the rules of a chain.
pub(crate) fn delete_rules(table: &str, chain: &str) -> Change {
    let attributes = vec![RuleAttribute::Table(table.to_owned()), RuleAttribute::Chain(chain.to_owned())];
    (NfTablesMessage::DeleteRule(RuleMessage { attributes }), 0)
}

/// Puts elements into a set, at most [`ELEMENTS`], each with its value where it is a map.
pub(crate) fn add_elements(table: &str, set: &str, elements: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Change {
    (NfTablesMessage::NewSetElement(some_elements(table, set, elements)), NLM_F_CREATE)
}

/// Takes elements out of a set, at most [`ELEMENTS`].
pub(crate) fn delete_elements(table: &str, set: &str, keys: Vec<Vec<u8>>) -> Change {
    let elements = keys.into_iter().map(|key| (key, None)).collect();
    (NfTablesMessage::DeleteSetElement(some_elements(table, set, elements)), 0)
}

/// Empties a set.
pub(crate) fn delete_all_elements(table: &str, set: &str) -> Change {
    let attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())];
    (NfTablesMessage::DeleteSetElement(SetElementMessage { attributes }), 0)
}

fn some_elements(table: &str, set: &str, elements: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> SetElementMessage {
    let element = |(key, value): (Vec<u8>, Option<Vec<u8>>)| {
        let mut element = vec![SetElementAttribute::Key(DataAttribute::Value(key))];
        element.extend(value.map(|value| SetElementAttribute::Data(DataAttribute::Value(value))));
        ListAttribute::Element(element)
    };
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.to_owned()),
            SetElementList::Set(set.to_owned()),
            SetElementList::Elements(elements.into_iter().map(element).collect()),
        ],
    }
}

/// An address as it stands in a packet.
pub(crate) fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Where in a packet something is.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// So many bytes after the start of its Ethernet header.
    Link(u32),
    /// So many bytes after the start of its IP header.
    Network(u32),
    /// So many bytes after the start of its TCP header.
    Transport(u32),
}

impl Place {
    /// The number of the header, and the bytes.
    fn numbers(self) -> (u32, u32) {
        match self {
            Self::Link(offset) => (0, offset),
            Self::Network(offset) => (1, offset),
            Self::Transport(offset) => (2, offset),
        }
    }
}

/// Where a packet says to whom it goes.
pub(crate) fn destination(family: Family) -> Place {
    match family {
        Family::V4 => Place::Network(16),
        Family::V6 => Place::Network(24),
    }
}

/// Where a packet says whom it comes from.
pub(crate) fn source(family: Family) -> Place {
    match family {
        Family::V4 => Place::Network(12),
        Family::V6 => Place::Network(8),
    }
}

/// The flags of TCP that tell a packet's part in its connection, and some of them.
pub(crate) const FIN_SYN_RST_ACK: u8 = 0x17;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
/// What has one of these is to be answered at once.
pub(crate) const PSH_FIN: u8 = 0x09;

/// Goes on for TCP that has any of these flags. Takes register 1.
pub(crate) fn is_any_of(flags: u8) -> [Expressions; 3] {
    [load(Place::Transport(13), 1, Register::Reg1), mask(vec![flags], vec![0]), compare(Operator::NotEqual, vec![0])]
}

/// Goes on for TCP where [`FIN_SYN_RST_ACK`] are these, or are not. Takes register 1.
pub(crate) fn is_tcp(operator: Operator, flags: u8) -> [Expressions; 5] {
    [
        Expressions::Meta(vec![Meta::Key(MetaKey::L4Proto), Meta::DestinationRegister(Register::Reg1)]),
        compare(Operator::Equal, vec![6]),
        load(Place::Transport(13), 1, Register::Reg1),
        mask(vec![FIN_SYN_RST_ACK], vec![0]),
        compare(operator, vec![flags]),
    ]
}

pub(crate) fn load(place: Place, length: u32, to: Register) -> Expressions {
    let (base, offset) = place.numbers();
    Expressions::Payload(vec![
        Payload::DestinationRegister(to),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

/// Writes register 1 into a packet of IPv4, or with no checksum in its header of IPv6.
pub(crate) fn store(place: Place, length: u32, family: Family) -> Expressions {
    let (base, offset) = place.numbers();
    let mut attributes = vec![
        Payload::SourceRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ];
    if family == Family::V4 {
        attributes.extend([Payload::CsumType(ChecksumType::Inet), Payload::CsumOffset(10)]);
    }
    Expressions::Payload(attributes)
}

pub(crate) fn constant(value: Vec<u8>, to: Register) -> Expressions {
    Expressions::Immediate(vec![Immediate::DestinationRegister(to), Immediate::Data(DataAttribute::Value(value))])
}

pub(crate) fn look_up(set: &str, key: Register, value: Option<Register>) -> Expressions {
    let mut attributes = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(key)];
    attributes.extend(value.map(Lookup::DestinationRegister));
    Expressions::Lookup(attributes)
}

const NFT_LOOKUP_F_INV: u32 = 1;

/// Goes on where a set has no such element.
pub(crate) fn look_up_missing(set: &str, key: Register) -> Expressions {
    Expressions::Lookup(vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(key), Lookup::Flags(NFT_LOOKUP_F_INV)])
}

/// Compares register 1.
pub(crate) fn compare(operator: Operator, with: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(with)),
    ])
}

/// Keeps the bits of `mask` in register 1, and turns over those of `turn`.
pub(crate) fn mask(mask: Vec<u8>, turn: Vec<u8>) -> Expressions {
    let length = mask.len();
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(length as u32),
        Bitwise::Xor(DataAttribute::Value(turn)),
        Bitwise::Mask(DataAttribute::Value(mask)),
    ])
}

/// Sends a copy to the neighbour at the address in register 1, behind the interface in register 2.
pub(crate) fn duplicate() -> Expressions {
    other("dup", vec![(1, number(Register::Reg1)), (2, number(Register::Reg2))])
}

pub(crate) fn count() -> Expressions {
    other("counter", Vec::new())
}

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

pub(crate) fn drop_packet() -> Expressions {
    verdict_is(vec![VerdictAttribute::Code(Verdict::Other(NF_DROP))])
}

pub(crate) fn accept() -> Expressions {
    verdict_is(vec![VerdictAttribute::Code(Verdict::Other(NF_ACCEPT))])
}

pub(crate) fn jump(chain: &str) -> Expressions {
    verdict_is(vec![VerdictAttribute::Code(Verdict::Jump), VerdictAttribute::Chain(chain.to_owned())])
}

fn verdict_is(verdict: Vec<VerdictAttribute>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ])
}

/// A number as attributes hold it.
pub(crate) fn number(number: impl Into<u32>) -> Vec<u8> {
    number.into().to_be_bytes().to_vec()
}

/// An expression the library has no name for, with its attributes.
pub(crate) fn other(kind: &str, attributes: Vec<(u16, Vec<u8>)>) -> Expressions {
    let attributes = attributes.into_iter().map(|(kind, value)| DefaultNla::new(kind, value));
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
            let error = NftError::new(errno, family, "ferrogate");
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
