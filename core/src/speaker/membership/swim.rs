//! How words get around: SWIM, by the `foca` crate.
//!
//! Every speaker tells every other its word directly. What does not arrive that way (a path that is broken in one
//! direction, a cluster too large to hurry to everybody) comes by others: SWIM keeps a list of members, asks after one of
//! them now and then, by way of others where it does not answer, and lets every packet carry words that are news. Nobody
//! loses an address by what SWIM thinks of a member: that is judged from words.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt,
    num::{NonZeroU8, NonZeroUsize},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ferrogate_wire::gossip::{MAX_PACKET_LEN, NodeTag, Word};
use foca::{BroadcastHandler, Codec, Foca, Invalidates, Member, Notification, PeriodicParams, PostcardCodec, Timer};
use rand_of_foca::{SeedableRng, rngs::SmallRng};
use serde::{Deserialize, Serialize};

/// How many others are told of news in one go, or asked after a member that does not answer.
const FANOUT: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// How often news are passed on by each member: enough for a thousand members, with a fanout of three and some loss.
const TRANSMISSIONS: NonZeroU8 = NonZeroU8::new(8).expect("eight is not zero");

/// A speaker in one of its lives. Whoever was given up and comes back renews itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    node: u64,
    life: u64,
    renewals: u16,
}

impl Identity {
    pub(super) fn new(node: NodeTag, life: u64, renewals: u16) -> Self {
        Self { node: node.0, life, renewals }
    }
}

impl foca::Identity for Identity {
    type Addr = u64;

    fn renew(&self) -> Option<Self> {
        self.renewals.checked_add(1).map(|renewals| Self { renewals, ..*self })
    }

    fn addr(&self) -> u64 {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.life, self.renewals) > (adversary.life, adversary.renewals)
    }
}

/// One member of the protocol: this speaker.
pub(super) struct Swim {
    foca: Foca<Identity, PostcardCodec, SmallRng, Relay>,
    config: foca::Config,
    rng: SmallRng,
    mailbox: Arc<Mutex<Mailbox>>,
    timers: BTreeMap<(Instant, u64), Timer<Identity>>,
    scheduled: u64,
    packets: Vec<(NodeTag, Vec<u8>)>,
}

/// A packet that is not for us, or does not come from where it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotOurs;

impl Swim {
    /// `interval` is the time between two words told directly; `seed` decides every choice.
    pub(super) fn new(identity: Identity, interval: Duration, seed: u64) -> Self {
        let config = foca::Config {
            probe_period: interval * 20,
            probe_rtt: interval * 5,
            num_indirect_probes: FANOUT,
            max_transmissions: TRANSMISSIONS,
            suspect_to_down_after: interval * 60,
            remove_down_after: Some(interval * 200),
            max_packet_size: NonZeroUsize::new(MAX_PACKET_LEN).expect("a packet holds something"),
            notify_down_members: true,
            periodic_announce: None,
            periodic_announce_to_down_members: Some(PeriodicParams { frequency: interval * 50, num_members: FANOUT }),
            periodic_gossip: Some(PeriodicParams { frequency: interval * 2, num_members: FANOUT }),
        };
        let mut rng = SmallRng::seed_from_u64(seed);
        let mailbox = Arc::new(Mutex::new(Mailbox::default()));
        let foca = member(identity, &config, &mut rng, &mailbox);
        Self { foca, config, rng, mailbox, timers: BTreeMap::new(), scheduled: 0, packets: Vec::new() }
    }

    /// How often this speaker had to renew itself.
    pub(super) fn renewals(&self) -> u16 {
        self.foca.identity().renewals
    }

    /// Takes in who may be a member. Words about anybody else are not passed on.
    pub(super) fn nodes(&mut self, nodes: &BTreeSet<NodeTag>) {
        self.open(|mailbox| {
            mailbox.newest.retain(|node, _| nodes.contains(node));
            mailbox.nodes.clone_from(nodes);
        });
    }

    /// Somebody was heard, and is a member from now on.
    pub(super) fn introduce(&mut self, now: Instant, identity: Identity) {
        let is_known = self.foca.iter_members().any(|member| *member.id() == identity);
        if !is_known {
            self.run(now, |foca, runtime| foca.apply_many([Member::alive(identity)].into_iter(), false, runtime));
        }
    }

    /// What is known of a node's words is void: its next life may have begun before the last one.
    pub(super) fn forget(&mut self, node: NodeTag) {
        self.open(|mailbox| mailbox.newest.remove(&node));
    }

    /// Takes in a packet that came from a node.
    pub(super) fn receive(&mut self, now: Instant, from: NodeTag, packet: &[u8]) -> Result<(), NotOurs> {
        let header: foca::Header<Identity> = PostcardCodec.decode_header(packet).map_err(|_| NotOurs)?;
        if header.src.node != from.0 {
            return Err(NotOurs);
        }
        self.run(now, |foca, runtime| foca.handle_data(packet, runtime));
        // What is news here is news elsewhere.
        if self.open(|mailbox| !mailbox.words.is_empty()) {
            self.run(now, |foca, runtime| foca.gossip(runtime));
        }
        self.stay_small();
        Ok(())
    }

    /// Passes on a word of this speaker.
    pub(super) fn tell(&mut self, now: Instant, word: &[u8]) {
        self.run(now, |foca, runtime| {
            foca.add_broadcast(word)?;
            foca.gossip(runtime)
        });
    }

    /// Does what is due up to a time, which is now or soon.
    pub(super) fn tick(&mut self, now: Instant, until: Instant) {
        while let Some(first) = self.timers.first_entry().filter(|timer| timer.key().0 <= until) {
            let timer = first.remove();
            self.run(now, |foca, runtime| foca.handle_timer(timer, runtime));
        }
    }

    /// Moves everything that is due by `late`: the process was held up, and answers with it.
    pub(super) fn delay(&mut self, late: Duration) {
        self.timers = std::mem::take(&mut self.timers)
            .into_iter()
            .map(|((due, number), timer)| ((due + late, number), timer))
            .collect();
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((due, _), _)| *due)
    }

    /// Words of others that have come by way of others, each newer than those before.
    pub(super) fn take_words(&mut self) -> Vec<Word> {
        self.open(|mailbox| std::mem::take(&mut mailbox.words))
    }

    /// Packets to send, each with its receiver.
    pub(super) fn take_packets(&mut self) -> Vec<(NodeTag, Vec<u8>)> {
        std::mem::take(&mut self.packets)
    }

    fn run(
        &mut self,
        now: Instant,
        act: impl FnOnce(&mut Foca<Identity, PostcardCodec, SmallRng, Relay>, &mut Runtime<'_>) -> Result<(), foca::Error>,
    ) {
        let Self { foca, timers, scheduled, packets, .. } = self;
        let mut runtime = Runtime { now, timers, scheduled, packets };
        // An error means that bytes from outside were of no use, or that a timer came when nobody was left to ask after.
        // Neither changes anything.
        let _ = act(foca, &mut runtime);
    }

    fn open<T>(&self, act: impl FnOnce(&mut Mailbox) -> T) -> T {
        act(&mut self.mailbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whoever holds the key can make up members. They are forgotten, with all others, before they are too many; those
    /// that exist are heard of again.
    fn stay_small(&mut self) {
        let nodes = self.open(|mailbox| mailbox.nodes.len());
        if self.foca.iter_membership_state().len() > 2 * nodes + 64 {
            let identity = *self.foca.identity();
            self.foca = member(identity, &self.config, &mut self.rng, &self.mailbox);
            self.timers.clear();
        }
    }
}

fn member(
    identity: Identity,
    config: &foca::Config,
    rng: &mut SmallRng,
    mailbox: &Arc<Mutex<Mailbox>>,
) -> Foca<Identity, PostcardCodec, SmallRng, Relay> {
    let rng = SmallRng::from_rng(rng);
    Foca::with_custom_broadcast(identity, config.clone(), rng, PostcardCodec, Relay { mailbox: mailbox.clone() })
}

impl fmt::Debug for Swim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.foca.iter_membership_state().collect::<Vec<_>>();
        f.debug_struct("Swim")
            .field("identity", self.foca.identity())
            .field("members", &members)
            .finish_non_exhaustive()
    }
}

/// What foca wants done is done after it returns.
struct Runtime<'a> {
    now: Instant,
    timers: &'a mut BTreeMap<(Instant, u64), Timer<Identity>>,
    scheduled: &'a mut u64,
    packets: &'a mut Vec<(NodeTag, Vec<u8>)>,
}

impl foca::Runtime<Identity> for Runtime<'_> {
    fn notify(&mut self, _: Notification<'_, Identity>) {}

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.packets.push((NodeTag(to.node), data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        *self.scheduled += 1;
        self.timers.insert((self.now + after, *self.scheduled), event);
    }
}

/// Words on their way through. Foca owns whoever receives them and gives no way to it, so they meet us here; the lock is
/// never waited for, as both sides are in one call.
#[derive(Debug, Default)]
struct Mailbox {
    nodes: BTreeSet<NodeTag>,
    /// Life and version of the newest word of each node.
    newest: BTreeMap<NodeTag, (u64, u64)>,
    words: Vec<Word>,
}

/// Passes on words that are newer than what it has seen.
struct Relay {
    mailbox: Arc<Mutex<Mailbox>>,
}

/// The words of one node; a newer one takes the place of an older one.
struct WordOf(NodeTag);

impl Invalidates for WordOf {
    fn invalidates(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl BroadcastHandler<Identity> for Relay {
    type Key = WordOf;
    type Error = Infallible;

    fn receive_item(&mut self, data: &[u8], sender: Option<&Identity>) -> Result<Option<WordOf>, Infallible> {
        let Ok(word) = Word::decode(data) else { return Ok(None) };
        let node = NodeTag::of(&word.node);
        let mut mailbox = self.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.is_none() {
            return Ok(Some(WordOf(node)));
        }
        let version = (word.life, word.version);
        let is_news = mailbox.nodes.contains(&node) && mailbox.newest.get(&node).is_none_or(|newest| *newest < version);
        if !is_news {
            return Ok(None);
        }
        mailbox.newest.insert(node, version);
        mailbox.words.push(word);
        Ok(Some(WordOf(node)))
    }
}
