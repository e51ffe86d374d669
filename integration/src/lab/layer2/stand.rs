//! One network with the product in it, to which events happen one after the other.
//!
//! Before each, everything is at rest: every speaker hears every other, one node owns both addresses, and no other
//! still has one of them on its host.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::manifests::{self, Wishes};
use crate::{
    lab::{
        event::{Event, Profile},
        neighbours::{Claim, Witness, one_owner, owners},
        probe::{Stream, Targets, busy, finish, milliseconds, steady},
        product::Product,
        row::{Lost, Seen},
        scenario::service_addresses,
        topology::{Plan, Topology},
        wait::until,
    },
    netns::Namespace,
    workspace,
};

/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(10);

/// How long a network may take to come to rest: longer than an address outlives its ownership on a host.
const REST: Duration = Duration::from_secs(30);

/// As many datagrams in a row must be answered before and after an event: half a second.
const STEADY: usize = 250;

/// The same as a time.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// How long a question to everyone on the far side waits for those who answer late.
const EVERYONE: Duration = Duration::from_millis(200);

/// How long one node alone must have answered before it counts as the only owner.
const ALONE: Duration = Duration::from_secs(1);

/// What the metrics of an owner say when one session is up: the one by which it is watched.
const WATCHED: &str = "ferrogate_speaker_bfd_sessions{state=\"Up\"} 1";

/// A network at work.
pub struct Stand {
    /// The processes. They end first, and so see nothing of the end of their network.
    pub product: Product,
    /// The switch, the nodes and the client.
    pub topology: Topology,
    /// A client on the other side of the switch when it is parted.
    far: Namespace,
    /// One address of each family, IPv4 first; both Services have them.
    addresses: [IpAddr; 2],
    /// How long busy loops go round in each run.
    busy: Duration,
}

impl Stand {
    /// Makes a network and starts the product in it, with its files in `folder`.
    ///
    /// # Errors
    /// When the kernel refuses, or something does not start or gets no address.
    pub fn new(binary: &Path, folder: &Path, plan: Plan, profile: Profile, busy_seconds: u64) -> Result<Self> {
        let topology = Topology::new(plan)?;
        let far = topology.attach_far()?;
        let example = workspace::root().join("examples/quickstart");
        let mut product = Product::new(binary, folder, &example)?.with_speaker_flags(profile.flags());
        wish(&product, plan, Wishes::default())?;
        product.start(&topology)?;
        let addresses = until(LIMIT, || {
            let (entry, echo) = (service_addresses(&product, "ingress")?, service_addresses(&product, "echo")?);
            ensure!(entry == echo, "the entry has {entry:?} and the echo has {echo:?}, not the same");
            let [v4, v6] = [false, true].map(|v6| entry.iter().copied().find(|address| address.is_ipv6() == v6));
            Ok([v4.context("no IPv4 address")?, v6.context("no IPv6 address")?])
        })
        .context("waiting for addresses of both families")?;
        product.wait_ready(&topology)?;
        let busy = Duration::from_secs(busy_seconds);
        Ok(Self { product, topology, far, addresses, busy })
    }

    /// The folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.product.logs()
    }

    /// Lets an event happen while clients ask, undoes it, and tells what they saw, by IPv4 and by IPv6.
    ///
    /// # Errors
    /// What was expected to come of it and did not, in time.
    pub fn run(&mut self, event: Event) -> Result<[Seen; 2]> {
        self.product.wait_ready(&self.topology)?;
        let owner = until(REST, || self.at_rest()).context("the network does not come to rest")?;
        match event {
            Event::PartitionHeal => self.part(owner),
            Event::FalseTakeover => self.load(owner),
            _ => self.disturb(event, owner),
        }
    }

    /// Who owns both addresses, when all is at rest: next in line watches it, and nobody else has the addresses.
    fn at_rest(&self) -> Result<usize> {
        self.everyone_is_heard()?;
        let owner = self.owner()?;
        let metrics = self.product.speaker_metrics(&self.topology, owner)?;
        ensure!(metrics.lines().any(|line| line == WATCHED), "nobody watches {} by BFD", self.name(owner));
        for node in self.topology.nodes.iter().filter(|node| node.name != self.name(owner)) {
            for address in self.addresses {
                let holds = node.namespace.run(|| is_local(address));
                ensure!(!holds, "{} still has {address} on its host", node.name);
            }
        }
        Ok(owner)
    }

    /// Every speaker hears every other.
    fn everyone_is_heard(&self) -> Result<()> {
        let others = self.topology.nodes.len() - 1;
        for node in 0..=others {
            let heard = self.product.speaker_metric(&self.topology, node, "ferrogate_speaker_members")?;
            ensure!(heard == others as f64, "{}'s speaker hears {heard} others, not {others}", self.name(node));
        }
        Ok(())
    }

    fn name(&self, node: usize) -> &str {
        &self.topology.nodes[node].name
    }

    /// The one node that answers for both addresses.
    fn owner(&self) -> Result<usize> {
        let [v4, v6] = self.addresses;
        let ((owner, _), (other, _)) = (one_owner(&self.topology, v4)?, one_owner(&self.topology, v6)?);
        ensure!(owner == other, "{} owns {v4}, and {} owns {v6}", self.name(owner), self.name(other));
        Ok(owner)
    }

    /// Something happens to the owner, or to every speaker.
    fn disturb(&mut self, event: Event, owner: usize) -> Result<[Seen; 2]> {
        let streams = self.streams()?;
        let nodes = 0..self.topology.nodes.len();
        let before = nodes.map(|node| self.announcing(node)).collect::<Result<Vec<_>>>()?;
        self.act(event, owner)?;
        if event != Event::RollingRestart {
            self.clients_go_elsewhere(owner)?;
        }
        self.afterwards(&streams)?;
        let mut seen = finish(streams).map(Seen::from);
        if event != Event::RollingRestart {
            let owner = self.owner()?;
            let ((took, times), (took_before, times_before)) = (self.announcing(owner)?, before[owner]);
            ensure!(times > times_before, "{} has announced nothing", self.name(owner));
            // Both addresses move at a time.
            let each = Duration::from_secs_f64((took - took_before) / (times - times_before));
            let announced_ms = Some(milliseconds(each));
            seen = seen.map(|seen| Seen { announced_ms, ..seen });
        }
        self.undo(event, owner)?;
        if matches!(event, Event::LinkCut | Event::CarrierUpCut) {
            // A session of BFD that was lost often is held down for up to a minute. Speakers that are new have lost none.
            (0..self.topology.nodes.len()).try_for_each(|node| self.restart_speaker(node))?;
        }
        Ok(seen)
    }

    /// How long a node has taken to announce what it was to own, in seconds, and how many addresses these were, since its
    /// speaker was started.
    fn announcing(&self, node: usize) -> Result<(f64, f64)> {
        let value = |what| {
            let metric = format!("ferrogate_speaker_announcement_delay_seconds_{what}");
            self.product.speaker_metric(&self.topology, node, &metric)
        };
        Ok((value("sum")?, value("count")?))
    }

    fn act(&mut self, event: Event, owner: usize) -> Result<()> {
        let node = &self.topology.nodes[owner];
        let plan = self.topology.plan();
        match event {
            Event::LinkCut => self.topology.cut(node),
            Event::CarrierUpCut => self.topology.silence(node),
            Event::SpeakerKill => self.product.kill("speaker", owner),
            Event::SpeakerFreeze => self.product.signal("speaker", owner, Signal::SIGSTOP),
            Event::Drain => wish(&self.product, plan, Wishes { drained: Some(node.number), ..Wishes::default() }),
            Event::Move => {
                let to = &self.topology.nodes[(owner + 1) % self.topology.nodes.len()];
                wish(&self.product, plan, Wishes { owner: Some(to.number), ..Wishes::default() })
            }
            Event::RollingRestart => (0..self.topology.nodes.len()).try_for_each(|node| self.restart_speaker(node)),
            Event::PartitionHeal => self.topology.part(node),
            Event::FalseTakeover => Ok(()),
            _ => bail!("{event} does not happen in layer 2"),
        }
    }

    fn undo(&mut self, event: Event, owner: usize) -> Result<()> {
        let node = &self.topology.nodes[owner];
        match event {
            Event::LinkCut => self.topology.heal(node),
            Event::CarrierUpCut | Event::PartitionHeal => self.topology.join(node),
            Event::SpeakerKill => self.product.start_one(&self.topology, "speaker", owner),
            Event::SpeakerFreeze => self.product.signal("speaker", owner, Signal::SIGCONT),
            Event::Drain | Event::Move => wish(&self.product, self.topology.plan(), Wishes::default()),
            _ => Ok(()),
        }
    }

    /// As a DaemonSet does it: the next one only when this one is ready, and here also heard.
    fn restart_speaker(&mut self, node: usize) -> Result<()> {
        self.product.stop("speaker", node)?;
        self.product.start_one(&self.topology, "speaker", node)?;
        self.product.wait_ready(&self.topology)?;
        until(LIMIT, || self.everyone_is_heard())
    }

    /// The client goes to another node than before, by both families.
    fn clients_go_elsewhere(&self, before: usize) -> Result<()> {
        let before = &self.topology.nodes[before];
        for address in self.addresses {
            until(LIMIT, || {
                let found = self.topology.client.links(async |links| links.neighbour(address).await)?;
                let mac = found.with_context(|| format!("the client has no entry for {address}"))?;
                ensure!(mac != before.mac, "the client still goes to {} ({mac}) for {address}", before.name);
                Ok(())
            })
            .with_context(|| format!("another node was to take over within {LIMIT:?}"))?;
        }
        Ok(())
    }

    /// A stream of questions by each family, both flowing.
    fn streams(&self) -> Result<[Stream; 2]> {
        let start = |address: IpAddr| {
            let echo = SocketAddr::new(address, 7000);
            let http = (SocketAddr::new(address, 80), "shop.example".to_owned());
            let targets = Targets { udp: echo, tcp: echo, http };
            until(LIMIT, || Stream::start(&self.topology.client, &targets))
                .with_context(|| format!("starting the questions to {address}"))
        };
        let streams = [start(self.addresses[0])?, start(self.addresses[1])?];
        until(LIMIT, || steady(&streams, STEADY)).context("questions to a network at rest")?;
        Ok(streams)
    }

    /// Waits until every question has been answered for a while, from now on.
    fn afterwards(&self, streams: &[Stream; 2]) -> Result<()> {
        let begun = Instant::now();
        until(LIMIT, || {
            ensure!(begun.elapsed() >= AFTERWARDS, "it is too early to tell");
            steady(streams, STEADY)
        })
        .context("questions after the event")
    }

    /// The switch is parted and made whole again. What counts begins with the latter.
    fn part(&mut self, owner: usize) -> Result<[Seen; 2]> {
        self.act(Event::PartitionHeal, owner)?;
        until(LIMIT, || {
            let near = self.owner()?;
            ensure!(near != owner, "{} still answers on the near side", self.name(near));
            Ok(())
        })
        .context("one owner on the near side")?;
        let far = BTreeSet::from([self.topology.nodes[owner].mac]);
        for address in self.addresses {
            until(LIMIT, || {
                let found = owners(&self.far, "eth0", address, EVERYONE)?;
                ensure!(found == far, "{found:?} answer for {address}, not {far:?} alone");
                Ok(())
            })
            .context("one owner on the far side")?;
        }
        let streams = self.streams()?;
        let witness = Witness::start(&self.topology.client, &self.addresses)?;
        let healed = Instant::now();
        self.undo(Event::PartitionHeal, owner)?;
        let shared = until(LIMIT, || alone_since(&witness.heard(), self.addresses, healed))
            .context("exactly one owner after the switch is whole again");
        witness.finish()?;
        let shared = shared?;
        self.afterwards(&streams)?;
        let mut seen = finish(streams).map(Seen::from);
        for (seen, shared) in seen.iter_mut().zip(shared) {
            seen.ms = milliseconds(shared);
        }
        Ok(seen)
    }

    /// Nothing happens, but the processors have much to do.
    fn load(&self, owner: usize) -> Result<[Seen; 2]> {
        let streams = self.streams()?;
        let witness = Witness::start(&self.topology.client, &self.addresses)?;
        busy(self.busy)?;
        let heard = witness.heard();
        witness.finish()?;
        let mut seen = finish(streams).map(Seen::from);
        for (seen, address) in seen.iter_mut().zip(self.addresses) {
            let first = Claim { at: Instant::now(), address, mac: self.topology.nodes[owner].mac };
            seen.lost = Lost::Owners(changes(&[&[first], heard.as_slice()].concat(), address));
        }
        Ok(seen)
    }
}

/// Tells the product what is wanted of the nodes.
fn wish(product: &Product, plan: Plan, wishes: Wishes) -> Result<()> {
    // The node first: whoever must leave should not be without endpoints before it is known where to go.
    product.write("network.yaml", &manifests::network(plan, wishes))?;
    product.write("endpoints.yaml", &manifests::endpoints(plan, wishes))
}

/// For how long each address had another owner beside its last one after a moment, once that one has been alone for a
/// while.
fn alone_since(claims: &[Claim], addresses: [IpAddr; 2], moment: Instant) -> Result<[Duration; 2]> {
    let mut shared = [Duration::ZERO; 2];
    for (shared, address) in shared.iter_mut().zip(addresses) {
        let mut claims = claims.iter().rev().filter(|claim| claim.address == address);
        let last = claims.next().with_context(|| format!("nobody says to have {address}"))?;
        let other = claims.find(|claim| claim.mac != last.mac);
        let since = other.map_or(moment, |other| other.at.max(moment));
        ensure!(since.elapsed() >= ALONE, "{} had {address} {:?} ago beside {}", mac(other), since.elapsed(), last.mac);
        ensure!(last.at.elapsed() < ALONE, "nobody has said to have {address} for {:?}", last.at.elapsed());
        *shared = since.duration_since(moment);
    }
    Ok(shared)
}

fn mac(claim: Option<&Claim>) -> String {
    claim.map_or_else(|| "nobody".to_owned(), |claim| claim.mac.to_string())
}

/// Whether the kernel takes an address for one of its host: it would speak with it by loopback.
fn is_local(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address || source.ip().is_loopback())
}

/// How often somebody else than before said to have an address.
fn changes(claims: &[Claim], address: IpAddr) -> usize {
    let claims: Vec<_> = claims.iter().filter(|claim| claim.address == address).collect();
    claims.windows(2).filter(|pair| pair[0].mac != pair[1].mac).count()
}

#[cfg(test)]
mod tests {
    use ferrogate_wire::ethernet::Mac;

    use super::*;

    const ADDRESS: [IpAddr; 2] = [
        IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 200)),
        IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x200)),
    ];

    /// Claims on both addresses: who said so how many milliseconds ago, oldest first.
    fn claims(now: Instant, said: &[(u8, u64)]) -> Vec<Claim> {
        let claim = |address: IpAddr, (node, ago): (u8, u64)| {
            let at = now.checked_sub(Duration::from_millis(ago)).unwrap();
            Claim { at, address, mac: Mac([2, 0, 0, 0, 0, node]) }
        };
        said.iter().flat_map(|said| ADDRESS.map(|address| claim(address, *said))).collect()
    }

    #[test]
    fn an_owner_is_alone_when_no_other_has_said_anything_for_a_while() {
        let now = Instant::now();
        let healed = now.checked_sub(Duration::from_millis(1500)).unwrap();
        let said = claims(now, &[(1, 1490), (2, 1480), (1, 1400), (2, 1350), (2, 10)]);

        let shared = alone_since(&said, ADDRESS, healed).unwrap();

        assert_eq!(shared, [Duration::from_millis(100); 2]);
    }

    #[test]
    fn who_was_heard_before_the_moment_shares_nothing_after_it() {
        let now = Instant::now();
        let healed = now.checked_sub(Duration::from_millis(1500)).unwrap();

        let shared = alone_since(&claims(now, &[(1, 1600), (2, 10)]), ADDRESS, healed).unwrap();

        assert_eq!(shared, [Duration::ZERO; 2]);
    }

    #[test]
    fn an_owner_whose_other_was_just_heard_is_not_alone() {
        let now = Instant::now();
        let healed = now.checked_sub(Duration::from_millis(1500)).unwrap();

        assert!(alone_since(&claims(now, &[(1, 200), (2, 10)]), ADDRESS, healed).is_err());
        assert!(alone_since(&claims(now, &[(2, 1200)]), ADDRESS, healed).is_err());
        assert!(alone_since(&[], ADDRESS, healed).is_err());
    }

    #[test]
    fn a_takeover_is_a_change_of_who_says_to_have_an_address() {
        let said = claims(Instant::now(), &[(1, 40), (1, 30), (2, 20), (1, 10)]);

        assert_eq!(changes(&said, ADDRESS[0]), 2);
        assert_eq!(changes(&said[..4], ADDRESS[1]), 0);
    }
}
