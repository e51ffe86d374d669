//! Which objects of the configuration stand beside each other.
//!
//! Of two that contradict each other the one that stood before stays, then the older one, then the first by name. An
//! object whose new form contradicts another keeps the form that stood before, as one does whose new form nobody can
//! read. So whoever makes a mistake has to mend it, and nobody else feels it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ferrogate_core::{
    model::{ObjectKey, PoolName},
    snapshot::{Problem, Snapshot},
};
use imbl::OrdMap;

use self::{
    aliases::Aliases,
    peers::{Peers, Places},
    ranges::Ranges,
    routes::Routes,
};
use super::{Translator, dangling, set};
use crate::objects::{BgpPeerFact, Fact, Id, Kind, Objects, Spelling};

mod aliases;
mod peers;
mod ranges;
mod routes;

/// How many problems are told of one object that contradicts many others.
const MAX_TOLD: usize = 8;

/// What stands so far, of one kind.
trait Board {
    /// What speaks against this object beside those that stand; nothing, if it may stand as well.
    fn objections(&self, id: &Id, fact: &Fact) -> Vec<Problem>;

    /// Lets an object stand. One that has objections against it stands as far as it can.
    fn place(&mut self, id: &Id, fact: &Fact);

    /// Whether an object can stand in part.
    const STANDS_IN_PART: bool = false;
}

/// The objects of one kind that stand.
struct Choice<B> {
    board: B,
    /// Those that stand as a whole. One that stands in part has no claim to what it did not get, and comes after them.
    stands: BTreeMap<Id, Arc<Fact>>,
    problems: BTreeMap<Id, Vec<Problem>>,
}

/// Lets objects of one kind stand beside each other. `standing` are the forms that stood before.
fn choose<B: Board>(
    objects: &Objects,
    kind: Kind,
    standing: &BTreeMap<Id, Arc<Fact>>,
    board: impl Fn() -> B,
) -> Choice<B> {
    let mut candidates: Vec<(&Id, &Arc<Fact>)> = objects.of_kind(kind).map(|(id, found)| (id, found.fact)).collect();
    candidates.sort_by(|(one, a), (other, b)| {
        (a.created(), &one.key.name, &one.key.namespace).cmp(&(b.created(), &other.key.name, &other.key.namespace))
    });
    // Whatever is said in our words counts before what is said in MetalLB's: while a cluster moves, both say the same.
    candidates.sort_by_key(|(id, _)| id.spelling);
    // Objects that go back to the form that stood before, because another was about to take its place.
    let mut held: BTreeMap<&Id, Vec<Problem>> = BTreeMap::new();
    loop {
        let mut choice = Choice { board: board(), stands: BTreeMap::new(), problems: BTreeMap::new() };
        let stays = |(id, fact): &(&Id, &Arc<Fact>)| held.contains_key(*id) || standing.get(*id) == Some(*fact);
        let mut in_order = candidates.clone();
        in_order.sort_by_key(|candidate| (candidate.0.spelling, !stays(candidate)));
        let mut driven_out = None;
        for (id, fact) in in_order {
            if let Some(problems) = held.get(id) {
                choice.admit(id, standing.get(id).unwrap_or(fact));
                choice.problems.insert(id.clone(), problems.clone());
                continue;
            }
            let problems = choice.board.objections(id, fact);
            let before = standing.get(id).filter(|before| !problems.is_empty() && *before != fact);
            let Some(before) = before else {
                choice.admit(id, fact);
                continue;
            };
            if choice.board.objections(id, before).is_empty() {
                choice.place(id, before);
            } else if B::STANDS_IN_PART {
                choice.board.place(id, before);
            } else {
                driven_out = Some((id, problems));
                break;
            }
            choice.problems.insert(id.clone(), problems);
        }
        // Each round holds one more, so that this ends.
        match driven_out {
            Some((id, problems)) => held.insert(id, problems),
            None => return choice,
        };
    }
}

impl<B: Board> Choice<B> {
    fn admit(&mut self, id: &Id, fact: &Arc<Fact>) {
        let problems = self.board.objections(id, fact);
        if problems.is_empty() {
            self.place(id, fact);
        } else {
            if B::STANDS_IN_PART {
                self.board.place(id, fact);
            }
            self.problems.insert(id.clone(), problems);
        }
    }

    fn place(&mut self, id: &Id, fact: &Arc<Fact>) {
        self.board.place(id, fact);
        self.stands.insert(id.clone(), fact.clone());
    }
}

impl Translator {
    /// Says which objects of the configuration stand. They are few; a change of one compares them all again.
    pub(super) fn settle_configuration(&mut self, next: &mut Snapshot, stale: &mut BTreeSet<Id>) {
        let standing = std::mem::take(&mut self.standing);
        let objects = &self.objects;

        let pools = choose(objects, Kind::IpAddressPool, &standing, Ranges::default);
        let settled = pools.board.pools().map(|pool| (pool.name.clone(), self.with_status(pool)));
        show(&mut next.pools, settled.collect());
        let shadowed = pools.board.shadowed();

        let aliases = choose(objects, Kind::Community, &standing, Aliases::default);
        let shown = aliases.stands.iter().filter_map(|(id, fact)| match &**fact {
            Fact::Community(fact) => Some((id.key.clone(), fact.object.clone())),
            _ => None,
        });
        show(&mut next.communities, shown.collect());

        let profiles = objects.of_kind(Kind::BfdProfile).filter_map(|(id, found)| match &**found.fact {
            Fact::BfdProfile(profile) => Some((id.key.clone(), profile.clone())),
            _ => None,
        });
        show(&mut next.bfd_profiles, profiles.collect());

        let nodes = &next.nodes;
        let peers = choose(objects, Kind::BgpPeer, &standing, || Places::new(nodes));
        let shown = peers.stands.iter().filter_map(|(id, fact)| match &**fact {
            Fact::BgpPeer(BgpPeerFact { peer, .. }) => Some((id.key.clone(), self.with_password(peer))),
            _ => None,
        });
        show(&mut next.bgp_peers, shown.collect());

        let reached = Peers::new(&next.bgp_peers, &next.bfd_profiles);
        let (pools_now, names) = (&next.pools, aliases.board.names());
        let routes =
            choose(objects, Kind::BgpAdvertisement, &standing, || Routes::new(pools_now, &reached, &names, nodes));
        let Choice { board, stands: routes_stand, problems: routes_problems } = routes;
        let advertisements = board.advertisements();
        show(&mut next.bgp_advertisements, advertisements);

        let local = objects.of_kind(Kind::L2Advertisement).filter_map(|(id, found)| match &**found.fact {
            Fact::L2Advertisement(advertisement) => Some((id.key.clone(), advertisement.clone())),
            _ => None,
        });
        show(&mut next.l2_advertisements, local.collect());

        let mut problems: BTreeMap<Id, Vec<Problem>> = BTreeMap::new();
        for (id, mut told) in
            [shadowed, pools.problems, aliases.problems, peers.problems, routes_problems].into_iter().flatten()
        {
            told.truncate(MAX_TOLD);
            problems.insert(id, told);
        }
        self.follow_names(next, &mut problems);
        self.standing = [pools.stands, aliases.stands, peers.stands, routes_stand].into_iter().flatten().collect();
        self.joint_problems.retain(|id, _| {
            let is_settled_here = id.kind.is_configuration();
            if is_settled_here {
                stale.insert(id.clone());
            }
            !is_settled_here
        });
        stale.extend(problems.keys().cloned());
        self.joint_problems.extend(problems);
    }

    /// Finds the names of objects that do not exist.
    fn follow_names(&self, next: &Snapshot, problems: &mut BTreeMap<Id, Vec<Problem>>) {
        let mut tell =
            |kind: Kind, (key, read_only): (&ObjectKey, bool), generation, field: &str, missing: Kind, name: &str| {
                let spelling = if read_only { Spelling::Metallb } else { Spelling::Ours };
                let id = Id::keyed(kind, key.clone()).spelled(spelling);
                let told = problems.entry(id.clone()).or_default();
                if told.len() < MAX_TOLD {
                    told.push(dangling(&id, generation, field, missing.name(), name));
                }
            };
        let names = |kind| self.objects.of_kind(kind).map(|(id, _)| &*id.key.name).collect::<BTreeSet<&str>>();
        let (peers, profiles) = (names(Kind::BgpPeer), names(Kind::BfdProfile));
        let is_missing = |pool: &&PoolName| !next.pools.contains_key(*pool);
        for (key, one) in &next.l2_advertisements {
            for name in one.pools.names.iter().filter(is_missing) {
                let (field, about) = ("spec.ipAddressPools", (key, one.read_only));
                tell(Kind::L2Advertisement, about, one.generation, field, Kind::IpAddressPool, name.as_str());
            }
        }
        for (key, one) in &next.bgp_advertisements {
            let mut tell = |field: &str, missing: Kind, name: &str| {
                tell(Kind::BgpAdvertisement, (key, one.read_only), one.generation, field, missing, name);
            };
            for name in one.pools.names.iter().filter(is_missing) {
                tell("spec.ipAddressPools", Kind::IpAddressPool, name.as_str());
            }
            for name in one.peers.iter().filter(|name| !peers.contains(name.as_str())) {
                tell("spec.peers", Kind::BgpPeer, name.as_str());
            }
            for name in &one.unknown_aliases {
                tell("spec.communities", Kind::Community, name);
            }
        }
        for (key, one) in &next.bgp_peers {
            if let Some(name) = one.bfd_profile.as_deref().filter(|name| !profiles.contains(name)) {
                let (field, about) = ("spec.bfdProfile", (key, one.read_only));
                tell(Kind::BgpPeer, about, one.generation, field, Kind::BfdProfile, name);
            }
        }
        for (key, one) in &next.bgp_peers {
            if let Some(fault) = self.no_password(one) {
                let spelling = if one.read_only { Spelling::Metallb } else { Spelling::Ours };
                let id = Id::keyed(Kind::BgpPeer, key.clone()).spelled(spelling);
                let (object, field) = (Some(id.object()), "spec.passwordSecret.name".to_owned());
                let problem = Problem { object, generation: one.generation, field, fault };
                problems.entry(id).or_default().push(problem);
            }
        }
    }
}

/// Makes a map hold exactly this, and leaves alone what it holds already.
fn show<K: Ord + Clone, T: PartialEq>(map: &mut OrdMap<K, Arc<T>>, now: BTreeMap<K, Arc<T>>) {
    let gone: Vec<K> = map.keys().filter(|key| !now.contains_key(*key)).cloned().collect();
    for key in gone {
        map.remove(&key);
    }
    for (key, value) in now {
        set(map, key, Some(value));
    }
}
