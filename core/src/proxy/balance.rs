//! Which endpoint of a backend comes next.
//!
//! Every thread has a [`Balancer`] of its own; threads and nodes share nothing.
//!
//! *Without affinity* endpoints take turns, and of the next two in turn the one with less work in flight is taken, so
//! that a slow endpoint gets less while equal ones get the same. *With `sessionAffinity: ClientIP`* the endpoint with
//! the highest hash of client address and endpoint address is taken (rendezvous hashing). Every thread of every node
//! computes the same answer without a table of clients: affinity survives a fail-over of the address, costs no
//! memory, and only the clients of an endpoint that goes or comes move. The timeout of `clientIP` needs no
//! clock either: it allows a client to be forgotten after it, and no client is forgotten before.
//!
//! In both cases endpoints that are about to terminate serve only when no ready one is left, and endpoints on nodes
//! out of sight only when no other is left. An endpoint that refuses connections is *ejected*: passed over for a while
//! that doubles with every failure, up to a limit; after it a single request may try again, and its outcome decides.
//! Only when everything is ejected, the ejected ones are tried all the same.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{
    model::service::SessionAffinity,
    proxy::{Backend, BackendId, Target},
};

/// For how long an endpoint is passed over after its first failure. Short, because a failed try costs a client only
/// the time until the next endpoint answers.
pub const FIRST_EJECTION: Duration = Duration::from_secs(1);

/// The longest time an endpoint is passed over, so that one that came back is found again soon.
pub const LONGEST_EJECTION: Duration = Duration::from_secs(10);

/// After this time a try that nobody reported on no longer keeps others from trying.
pub const TRIAL_PATIENCE: Duration = Duration::from_secs(5);

/// Chooses endpoints on one thread.
///
/// It has no deadline: a time limit is looked at when an endpoint is chosen, and never before.
///
/// ```text
///            failed                    time is over, chosen
/// sound ───────────────► ejected ──────────────────────────► on trial
///   ▲                      ▲  (longer each time)    failed      │ │
///   │                      └────────────────────────────────────┘ │
///   └─────────────────────────────────────────────────────────────┘ connected
/// ```
#[derive(Clone, Debug)]
pub struct Balancer {
    seed: u64,
    /// Whose turn it is, by the index of the backend in the table.
    turns: Vec<usize>,
    endpoints: BTreeMap<SocketAddr, State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    in_flight: u32,
    trouble: Option<Trouble>,
}

#[derive(Clone, Debug)]
struct Trouble {
    failures: u32,
    /// Until when it is passed over.
    until: Instant,
    /// Whether it is passed over because somebody is trying it, and not because it failed.
    on_trial: bool,
}

impl Balancer {
    /// A balancer for one thread. Different seeds make threads begin at different endpoints.
    pub fn new(seed: u64) -> Self {
        Self { seed: mix(seed), turns: Vec::new(), endpoints: BTreeMap::new() }
    }

    /// To be called when the thread turns to a new table: forgets whose turn it was, and every endpoint that has
    /// neither work in flight nor anything held against it any more.
    pub fn adopt(&mut self, now: Instant) {
        self.seed = mix(self.seed);
        self.turns.clear();
        self.endpoints.retain(|_, state| {
            let remembered = |trouble: &Trouble| now < trouble.until + LONGEST_EJECTION;
            state.in_flight > 0 || state.trouble.as_ref().is_some_and(remembered)
        });
    }

    /// The endpoint of `backend`, which is number `id` of the table in force, to try next for this client: none of
    /// those already `tried`, and `None` when all were.
    ///
    /// Each choice is followed by one [`Balancer::finished`], and by [`Balancer::connected`] or [`Balancer::failed`]
    /// once its outcome is known.
    pub fn choose(
        &mut self,
        now: Instant,
        id: BackendId,
        backend: &Backend,
        client: IpAddr,
        tried: &[SocketAddr],
    ) -> Option<SocketAddr> {
        let mut tiers = backend.targets().chunk_by(|one, other| one.tier == other.tier);
        let sound = match backend.affinity {
            SessionAffinity::None => tiers.find_map(|tier| self.next_in_turn(now, id, tier, tried)),
            SessionAffinity::ClientIp { .. } => tiers.find_map(|tier| self.own_of(now, client, tier, tried)),
        };
        let chosen = sound.or_else(|| self.least_ejected(backend, tried))?;

        let state = self.endpoints.entry(chosen).or_default();
        state.in_flight = state.in_flight.saturating_add(1);
        if let Some(trouble) = state.trouble.as_mut().filter(|trouble| trouble.until <= now) {
            trouble.until = now + TRIAL_PATIENCE;
            trouble.on_trial = true;
        }
        Some(chosen)
    }

    /// A connection to this endpoint was made, or it answered: nothing is held against it any more.
    pub fn connected(&mut self, endpoint: SocketAddr) {
        if let Some(state) = self.endpoints.get_mut(&endpoint) {
            state.trouble = None;
        }
    }

    /// A connection to this endpoint could not be made: it is ejected. Failures of tries that began before it was
    /// ejected are one failure.
    pub fn failed(&mut self, now: Instant, endpoint: SocketAddr) {
        let trouble = &mut self.endpoints.entry(endpoint).or_default().trouble;
        let failures = match trouble {
            Some(trouble) if now < trouble.until && !trouble.on_trial => return,
            Some(trouble) => trouble.failures.saturating_add(1),
            None => 1,
        };
        let doubled = FIRST_EJECTION.saturating_mul(1 << (failures - 1).min(16));
        *trouble = Some(Trouble { failures, until: now + doubled.min(LONGEST_EJECTION), on_trial: false });
    }

    /// The request, connection or flow that this endpoint was chosen for has ended.
    pub fn finished(&mut self, endpoint: SocketAddr) {
        if let Some(state) = self.endpoints.get_mut(&endpoint) {
            state.in_flight = state.in_flight.saturating_sub(1);
        }
    }

    /// How much work this thread has in flight at this endpoint.
    pub fn in_flight(&self, endpoint: SocketAddr) -> u32 {
        self.endpoints.get(&endpoint).map_or(0, |state| state.in_flight)
    }

    /// Whether this endpoint is passed over at `now`.
    pub fn ejected(&self, now: Instant, endpoint: SocketAddr) -> bool {
        self.endpoints.get(&endpoint).is_some_and(|state| state.passed_over(now))
    }

    fn next_in_turn(
        &mut self,
        now: Instant,
        id: BackendId,
        tier: &[Target],
        tried: &[SocketAddr],
    ) -> Option<SocketAddr> {
        let turn = self.turn(id);
        let in_turn = |step: usize| {
            let index = turn.wrapping_add(step) % tier.len();
            let address = tier.get(index)?.address;
            Some((index, address, self.load(now, address, tried)?))
        };
        let mut loads = (0..tier.len()).filter_map(in_turn);
        let first = loads.next()?;
        let (index, address, _) = loads.next().filter(|second| second.2 < first.2).unwrap_or(first);
        if let Some(turn) = self.turns.get_mut(id.index()) {
            *turn = index + 1;
        }
        Some(address)
    }

    fn own_of(&self, now: Instant, client: IpAddr, tier: &[Target], tried: &[SocketAddr]) -> Option<SocketAddr> {
        let sound =
            tier.iter().map(|target| target.address).filter(|address| self.load(now, *address, tried).is_some());
        sound.max_by_key(|address| (score(client, *address), *address))
    }

    /// What to try when nothing sound is left: of the best tier, what comes back first.
    fn least_ejected(&self, backend: &Backend, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let untried = backend.targets().iter().filter(|target| !tried.contains(&target.address));
        let until = |address| self.endpoints.get(address)?.trouble.as_ref().map(|trouble| trouble.until);
        untried.min_by_key(|target| (target.tier, until(&target.address))).map(|target| target.address)
    }

    /// Work in flight at a sound endpoint that was not tried yet; `None` for any other.
    fn load(&self, now: Instant, endpoint: SocketAddr, tried: &[SocketAddr]) -> Option<u32> {
        if tried.contains(&endpoint) {
            return None;
        }
        match self.endpoints.get(&endpoint) {
            Some(state) if state.passed_over(now) => None,
            Some(state) => Some(state.in_flight),
            None => Some(0),
        }
    }

    fn turn(&mut self, id: BackendId) -> usize {
        let seed = self.seed;
        while self.turns.len() <= id.index() {
            let start = mix(seed ^ self.turns.len() as u64);
            // Kept small, so that counting on never overflows.
            self.turns.push(usize::from(start as u16));
        }
        self.turns.get(id.index()).copied().unwrap_or_default()
    }
}

impl State {
    fn passed_over(&self, now: Instant) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| now < trouble.until)
    }
}

/// How much a client and an endpoint belong together. Part of what every node must agree on: a change of it moves
/// clients while nodes of two releases run side by side.
fn score(client: IpAddr, endpoint: SocketAddr) -> u64 {
    let client = bits(client.to_canonical());
    let address = bits(endpoint.ip());
    [client, address, u128::from(endpoint.port())].iter().fold(0, |hash, part| {
        let high = (part >> 64) as u64;
        let low = *part as u64;
        mix(mix(hash ^ high) ^ low)
    })
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// One step of SplitMix64: every bit of the outcome depends on every bit given.
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;
