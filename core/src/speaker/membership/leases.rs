//! Who is alive by Leases at the API server, where speakers do not gossip.
//!
//! Every speaker renews a Lease of its own, and each renewal carries its word. What time it says there is never looked at:
//! a Lease is alive when *this* speaker sees it change, and over when it has not changed for as long as it lasts. For an API
//! server that is away nothing changes, so that alone would tell of the death of everyone. Therefore no more time counts
//! than this speaker's own renewals bear out: a renewal that comes back shows that all was known up to the moment it was
//! asked for, since one watch shows all Leases in their order.
//!
//! ```text
//!  a renewal of ours is seen within half a Lease            for longer none is
//!  CURRENT ───────────────────────────────────────────────────────────────────► BLIND
//!  silence counts      ◄─────────────────────────────────   nobody is lost, whatever is heard counts
//!                       one is seen: everyone has as long as a Lease lasts again
//! ```
//!
//! Half a Lease is what keeps the living alive through an outage that is not noticed: one that was due after a fifth of its
//! time comes after a fifth, the outage, and a request of a fifth at most that was under way, which is nine tenths.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use ferrogate_wire::gossip::{Datagram, Keys, Message, Origin, Word};
use imbl::{OrdMap, ordmap::DiffItem};

use crate::{
    model::NodeName,
    speaker::config::{MAX_LEASE_DURATION, MIN_LEASE_DURATION},
    write::SpeakerLease,
};

/// The Leases as this speaker sees them.
#[derive(Debug)]
pub(super) struct Leases {
    node: NodeName,
    life: u64,
    duration: Duration,
    /// Renewals of ours that were not seen yet, and when they were asked for.
    asked: BTreeMap<u64, Instant>,
    seen: OrdMap<NodeName, Arc<SpeakerLease>>,
    /// Up to when everything was seen; `None` before the first look.
    covered: Option<Instant>,
    is_blind: bool,
    /// How many renewals of ours were seen.
    renewals: u64,
}

/// What a Lease shows that is different from before.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) node: NodeName,
    pub(super) life: u64,
    pub(super) word: Word,
    /// How long it counts.
    pub(super) lasts: Duration,
    /// It was seen to change: whoever did that lives. Otherwise nobody knows how old it is.
    pub(super) is_renewal: bool,
}

/// What a look at all Leases has brought.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) shown: Vec<Shown>,
    /// Leases that say nothing for their node.
    pub(super) strange: u64,
    /// Too much was missed in between: silence up to now says nothing.
    pub(super) is_back: bool,
}

impl Leases {
    pub(super) fn new(node: NodeName, life: u64, duration: Duration) -> Self {
        let (asked, seen) = (BTreeMap::new(), OrdMap::new());
        Self { node, life, duration, asked, seen, covered: None, is_blind: false, renewals: 0 }
    }

    /// How much of what goes unseen is not noticed.
    fn patience(&self) -> Duration {
        self.duration / 2
    }

    /// There is somebody to know about, after a time when there was nobody and nothing was renewed.
    pub(super) fn begin(&mut self, now: Instant) {
        self.covered = self.covered.map(|_| now);
    }

    /// Whether too much goes unseen at the moment.
    pub(super) fn is_blind(&self) -> bool {
        self.is_blind
    }

    /// How many renewals of ours were seen.
    pub(super) fn renewals(&self) -> u64 {
        self.renewals
    }

    /// A renewal of ours is on its way.
    pub(super) fn asked(&mut self, now: Instant, renewal: u64) {
        // One that takes longer than the Lease lasts bears out nothing.
        self.asked.retain(|_, asked| *asked + self.duration > now);
        self.asked.insert(renewal, now);
    }

    /// Takes in all Leases as they are now.
    pub(super) fn look(&mut self, now: Instant, leases: &OrdMap<NodeName, Arc<SpeakerLease>>) -> Look {
        let is_first = self.covered.is_none();
        let before = std::mem::replace(&mut self.seen, leases.clone());
        let mut look = Look::default();
        for change in before.diff(leases) {
            let (node, lease) = match change {
                DiffItem::Add(node, lease) | DiffItem::Update { new: (node, lease), .. } => (node, lease),
                // Its speaker makes it anew, if it lives.
                DiffItem::Remove(..) => continue,
            };
            let Some((origin, word)) = read(node, lease) else {
                look.strange += 1;
                continue;
            };
            if *node == self.node {
                look.is_back |= origin.life == self.life && self.came_back(origin.counter);
                continue;
            }
            let marks = |lease: &Arc<SpeakerLease>| read(node, lease).map(|(origin, _)| (origin.life, origin.counter));
            // Its labels alone may have changed, by anybody; and an API server that was set back shows what is over.
            let known = before.get(node).and_then(marks);
            if known.is_some_and(|(life, counter)| life == origin.life && counter >= origin.counter) {
                continue;
            }
            // Less than ours would be over in an outage that is shorter than our patience.
            let lasts = lease.duration.clamp(MIN_LEASE_DURATION, MAX_LEASE_DURATION).max(self.duration);
            let node = node.clone();
            look.shown.push(Shown { node, life: origin.life, word, lasts, is_renewal: !is_first });
        }
        self.covered.get_or_insert(now);
        look
    }

    /// A renewal of ours was seen. Returns whether too much had gone unseen before it.
    fn came_back(&mut self, renewal: u64) -> bool {
        let Some(asked) = self.asked.remove(&renewal) else { return false };
        self.asked = self.asked.split_off(&renewal);
        self.renewals += 1;
        let before = self.covered.replace(asked);
        before.is_some_and(|before| before + self.patience() < asked)
    }

    /// A Lease that was over by then, and was not seen to change, is over.
    pub(super) fn covered(&self) -> Option<Instant> {
        self.covered
    }

    /// Whether renewals of ours are seen no more, or are again; only where that is news.
    pub(super) fn news(&mut self, now: Instant) -> Option<bool> {
        let is_blind = self.blind_at().is_some_and(|at| at <= now);
        (std::mem::replace(&mut self.is_blind, is_blind) != is_blind).then_some(is_blind)
    }

    fn blind_at(&self) -> Option<Instant> {
        self.covered.map(|covered| covered + self.patience())
    }

    /// When [`news`](Self::news) should be looked at next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.blind_at().filter(|_| !self.is_blind)
    }
}

/// Whether the Lease of a node's speaker says that it is stopping; `None` where it says nothing for that node.
pub fn is_leaving(node: &NodeName, lease: &SpeakerLease) -> Option<bool> {
    read(node, lease).map(|(_, word)| word.leaving)
}

/// What a Lease says, if it says it for its own node.
fn read(node: &NodeName, lease: &SpeakerLease) -> Option<(Origin, Word)> {
    let Datagram { origin, message: Message::Word(word) } = Datagram::open(&lease.says, &Keys::default()).ok()? else {
        return None;
    };
    (origin.node == node.as_str() && word.node == origin.node && word.life == origin.life).then_some((origin, word))
}
