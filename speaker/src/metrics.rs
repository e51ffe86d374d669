//! What a speaker counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    net::IpAddr,
    time::Duration,
};

use ferrogate_core::{
    configuration::{ConfigurationState, Judgement},
    model::{NodeName, ServiceKey},
    speaker::bfd::Discard,
    write::Write,
};
use ferrogate_wire::{bfd::State, gossip::OpenError};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

mod bfd;
mod bgp;

pub(crate) use bfd::{BfdPeerMetrics, PathCounters, PeerPath};
pub(crate) use bgp::{BgpMetrics, is_shown_alike};

/// Upper bounds of the classes that takeovers are counted in, in seconds: around what BFD takes with the fast and the default
/// profile, gossip, and Leases.
const TAKEOVER_DURATIONS: [f64; 14] = [0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];

/// Upper bounds of the classes that first announcements are counted in, in seconds. Five milliseconds are what they may take.
const ANNOUNCEMENT_DELAYS: [f64; 9] = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2];

/// The speaker's metrics; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) owned: Gauge,
    pub(crate) members: Gauge,
    pub(crate) takeovers: Counter,
    takeover_duration: Histogram,
    announcement_delay: Histogram,
    pub(crate) passing_on: Gauge,
    pub(crate) strays_offered_to: Gauge,
    not_passed_on: family::Family<ReasonLabel, Counter>,
    pub(crate) lease_renewals: Counter,
    pub(crate) leases_unseen: Gauge,
    pub(crate) conflicts: Counter,
    pub(crate) rivals: Counter,
    announced: family::Family<AnnouncedLabels, Gauge>,
    questions: family::Family<AddressLabels, Counter>,
    answers: family::Family<AddressLabels, Counter>,
    announcements: family::Family<AddressLabels, Counter>,
    loaded: Gauge,
    incomplete: Gauge,
    not_sent: family::Family<FamilyLabel, Counter>,
    refused: family::Family<RefusalLabel, Counter>,
    silent: family::Family<ReasonLabel, Gauge>,
    gossip_sent: Counter,
    gossip_received: Counter,
    gossip_refused: family::Family<GossipRefusalLabel, Counter>,
    gossip_sealed: Gauge,
    bfd_sessions: family::Family<StateLabel, Gauge>,
    bfd_transitions: family::Family<StateLabel, Counter>,
    bfd_sent: Counter,
    bfd_received: Counter,
    bfd_unsent: Counter,
    bfd_discarded: family::Family<DiscardLabel, Counter>,
    bfd_real_time: Gauge,
    pub(crate) bgp: BgpMetrics,
    pub(crate) bfd_peers: BfdPeerMetrics,
}

/// What the thread of BFD counts. It never waits for anyone to do so.
#[derive(Clone, Debug)]
pub(crate) struct BfdMetrics {
    sessions: BTreeMap<State, Gauge>,
    transitions: BTreeMap<State, Counter>,
    discarded: BTreeMap<Discard, Counter>,
    pub(crate) sent: Counter,
    pub(crate) received: Counter,
    pub(crate) unsent: Counter,
    pub(crate) real_time: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DiscardLabel {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyLabel {
    family: Family,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AddressLabels {
    family: Family,
    address: Address,
}

impl AddressLabels {
    fn of(address: IpAddr) -> Self {
        let family = if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        Self { family, address: Address(address) }
    }
}

/// An address that is made text for whoever reads the page, not for each frame that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Address(IpAddr);

impl EncodeLabelValue for Address {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        write!(encoder, "{}", self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnnouncedLabels {
    service: String,
    protocol: &'static str,
    node: String,
    address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    family: Family,
    reason: Refusal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Which protocol a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Family {
    /// ARP.
    Ipv4,
    /// Neighbour discovery.
    Ipv6,
}

/// Why a received frame was not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Refusal {
    /// It is not well-formed.
    Malformed,
    /// Too many at once.
    Busy,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GossipRefusalLabel {
    reason: GossipRefusal,
}

/// Why a datagram of gossip was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum GossipRefusal {
    /// Something else, or of another version.
    NotGossip,
    /// Not sealed, and it should be.
    NotSealed,
    /// Sealed, and there is no key here.
    NoKey,
    /// Sealed with a key that is not held here.
    UnknownKey,
    /// Not sealed by a holder of the key, or changed since.
    Forged,
    /// It was opened and cannot be read.
    Malformed,
    /// Not from an address of the node it speaks for.
    Stranger,
    /// Old, or received before.
    Repeated,
}

impl From<&OpenError> for GossipRefusal {
    fn from(error: &OpenError) -> Self {
        match error {
            OpenError::Magic | OpenError::Version(_) | OpenError::Sealing(_) => Self::NotGossip,
            OpenError::NotSealed => Self::NotSealed,
            OpenError::NoKey => Self::NoKey,
            OpenError::UnknownKey => Self::UnknownKey,
            OpenError::Forged => Self::Forged,
            OpenError::Message(_) => Self::Malformed,
        }
    }
}

impl Metrics {
    /// Makes the metrics known to a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("ferrogate_speaker");
        let metrics = Self {
            owned: Gauge::default(),
            members: Gauge::default(),
            takeovers: Counter::default(),
            takeover_duration: Histogram::new(TAKEOVER_DURATIONS),
            announcement_delay: Histogram::new(ANNOUNCEMENT_DELAYS),
            passing_on: Gauge::default(),
            strays_offered_to: Gauge::default(),
            not_passed_on: family::Family::default(),
            lease_renewals: Counter::default(),
            leases_unseen: Gauge::default(),
            conflicts: Counter::default(),
            rivals: Counter::default(),
            announced: family::Family::default(),
            questions: family::Family::default(),
            answers: family::Family::default(),
            announcements: family::Family::default(),
            loaded: Gauge::default(),
            incomplete: Gauge::default(),
            not_sent: family::Family::default(),
            refused: family::Family::default(),
            silent: family::Family::default(),
            gossip_sent: Counter::default(),
            gossip_received: Counter::default(),
            gossip_refused: family::Family::default(),
            gossip_sealed: Gauge::default(),
            bfd_sessions: family::Family::default(),
            bfd_transitions: family::Family::default(),
            bfd_sent: Counter::default(),
            bfd_received: Counter::default(),
            bfd_unsent: Counter::default(),
            bfd_discarded: family::Family::default(),
            bfd_real_time: Gauge::default(),
            bgp: BgpMetrics::register(registry),
            bfd_peers: BfdPeerMetrics::register(registry),
        };
        registry.register(
            "owned_addresses",
            "External addresses that this node owns and answers for",
            metrics.owned.clone(),
        );
        registry.register("members", "Other nodes whose speaker is heard", metrics.members.clone());
        registry.register("takeovers", "Times this node became the owner of an address", metrics.takeovers.clone());
        registry.register(
            "takeover_duration_seconds",
            "Time from a failed owner being heard last, or from an interface of it being found dead, until this node had \
             announced the address in its stead",
            metrics.takeover_duration.clone(),
        );
        registry.register(
            "announcement_delay_seconds",
            "Time from the decision that an address is this node's until what announces it at once had been sent",
            metrics.announcement_delay.clone(),
        );
        registry.register(
            "passing_on",
            "Addresses of this node whose TCP connections that began at the former owner are passed on to it right now",
            metrics.passing_on.clone(),
        );
        registry.register(
            "strays_offered_to",
            "Neighbours to which TCP connections are offered that a router has sent to the wrong node, of both families",
            metrics.strays_offered_to.clone(),
        );
        registry.register(
            "not_passed_on",
            "Times such connections could not be passed on and ended with the move, by reason",
            metrics.not_passed_on.clone(),
        );
        registry.register(
            "lease_renewals",
            "Renewals of this speaker's own Lease that were seen at the API server",
            metrics.lease_renewals.clone(),
        );
        registry.register(
            "leases_unseen",
            "1 while renewals of this speaker's own Lease are not seen at the API server, so that nobody counts as lost for \
             want of one",
            metrics.leases_unseen.clone(),
        );
        registry.register(
            "conflicts",
            "Times a stranger claimed an address that this node owns",
            metrics.conflicts.clone(),
        );
        registry.register(
            "rivals",
            "Times another speaker answered for an address that this node owns, and one of the two left it",
            metrics.rivals.clone(),
        );
        registry.register(
            "announced",
            "1 for each address of each Service that this node announces right now",
            metrics.announced.clone(),
        );
        registry.register(
            "questions",
            "ARP and neighbour questions received that this node has to answer",
            metrics.questions.clone(),
        );
        registry.register(
            "configuration_loaded",
            "1 once the configuration has been read and worked in",
            metrics.loaded.clone(),
        );
        registry.register(
            "configuration_incomplete",
            "1 while part of the newest configuration that concerns this node is not in force; the ConfigurationState \
             says what and why",
            metrics.incomplete.clone(),
        );
        registry.register("answers", "ARP and neighbour questions answered", metrics.answers.clone());
        registry.register(
            "announcements",
            "Gratuitous ARP and unsolicited neighbour advertisements sent",
            metrics.announcements.clone(),
        );
        registry.register("unsent_frames", "Frames the kernel did not take", metrics.not_sent.clone());
        registry.register("refused_frames", "Received frames that were not looked at", metrics.refused.clone());
        registry.register(
            "silent_services",
            "LoadBalancer Services that this node does not announce, by reason",
            metrics.silent.clone(),
        );
        registry.register("gossip_sent", "Datagrams sent to other speakers", metrics.gossip_sent.clone());
        registry.register(
            "gossip_received",
            "Datagrams received that could be opened, from whomever",
            metrics.gossip_received.clone(),
        );
        registry.register(
            "gossip_refused",
            "Datagrams at the gossip port that were not believed, by reason; Repeated ones are usual where a node has \
             several addresses",
            metrics.gossip_refused.clone(),
        );
        registry.register("gossip_sealed", "1 while gossip is sealed with a key", metrics.gossip_sealed.clone());
        registry.register("bfd_sessions", "BFD sessions by state", metrics.bfd_sessions.clone());
        registry.register(
            "bfd_transitions",
            "Times a BFD session came to a state, by that state",
            metrics.bfd_transitions.clone(),
        );
        registry.register("bfd_sent", "BFD packets sent", metrics.bfd_sent.clone());
        registry.register("bfd_received", "BFD packets received, discarded ones too", metrics.bfd_received.clone());
        registry.register("bfd_unsent", "BFD packets the kernel did not take", metrics.bfd_unsent.clone());
        registry.register(
            "bfd_discarded",
            "BFD packets received and discarded, by reason",
            metrics.bfd_discarded.clone(),
        );
        registry.register(
            "bfd_real_time",
            "1 while the thread of BFD runs with real-time priority",
            metrics.bfd_real_time.clone(),
        );
        metrics
    }

    /// Shows what there is of BGP and of the BFD of its peers under MetalLB's names too.
    #[must_use]
    pub fn with_metallb_names(mut self, registry: &mut Registry) -> Self {
        self.bgp.register_metallb(registry);
        self.bfd_peers.register_metallb(registry);
        self
    }

    /// An address was taken over from a node that failed, and has been announced.
    pub(crate) fn took_over(&self, after: Duration) {
        self.takeover_duration.observe(after.as_secs_f64());
    }

    /// An address became this node's, and what announces it at once was sent so long after that was decided.
    pub(crate) fn announced_after(&self, delay: Duration) {
        self.announcement_delay.observe(delay.as_secs_f64());
    }

    pub(crate) fn sent(&self, address: IpAddr, to_all: bool) {
        let counters = if to_all { &self.announcements } else { &self.answers };
        counters.get_or_create(&AddressLabels::of(address)).inc();
    }

    /// Somebody on the link asks for an address, and this node has to answer.
    pub(crate) fn asked(&self, address: IpAddr) {
        self.questions.get_or_create(&AddressLabels::of(address)).inc();
    }

    /// This node has left an address: what was counted of it is the business of its next owner.
    pub(crate) fn lost(&self, address: IpAddr) {
        let labels = AddressLabels::of(address);
        for counters in [&self.questions, &self.answers, &self.announcements] {
            counters.remove(&labels);
        }
    }

    /// Whether an address of a Service is announced by layer 2 now.
    pub(crate) fn announced(&self, service: &ServiceKey, node: &NodeName, address: IpAddr, is_announced: bool) {
        let labels = AnnouncedLabels {
            service: service.to_string(),
            protocol: "layer2",
            node: node.to_string(),
            address: address.to_string(),
        };
        if is_announced {
            self.announced.get_or_create(&labels).set(1);
        } else {
            self.announced.remove(&labels);
        }
    }

    /// What there is to say of the configuration.
    pub(crate) fn judged(&self, state: Option<&ConfigurationState>) {
        let Some(state) = state else { return };
        self.loaded.set(1);
        self.incomplete.set(i64::from(state.judgement != Judgement::Valid));
    }

    pub(crate) fn not_sent(&self, family: Family) {
        self.not_sent.get_or_create(&FamilyLabel { family }).inc();
    }

    pub(crate) fn refused(&self, family: Family, reason: Refusal) {
        self.refused.get_or_create(&RefusalLabel { family, reason }).inc();
    }

    pub(crate) fn not_passed_on(&self, reason: &'static str) {
        self.not_passed_on.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Replaces all figures by these.
    pub(crate) fn silences(&self, by_reason: BTreeMap<&'static str, i64>) {
        self.silent.clear();
        for (reason, count) in by_reason {
            self.silent.get_or_create(&ReasonLabel { reason }).set(count);
        }
    }

    pub(crate) fn gossip_sent(&self) {
        self.gossip_sent.inc();
    }

    pub(crate) fn gossip_received(&self) {
        self.gossip_received.inc();
    }

    pub(crate) fn gossip_refused(&self, reason: GossipRefusal) {
        self.gossip_refused.get_or_create(&GossipRefusalLabel { reason }).inc();
    }

    /// What was opened and yet not believed is counted where it is judged.
    pub(crate) fn gossip_disbelieved(&self, reason: GossipRefusal, more: u64) {
        if more > 0 {
            self.gossip_refused.get_or_create(&GossipRefusalLabel { reason }).inc_by(more);
        }
    }

    pub(crate) fn gossip_sealed(&self, is_sealed: bool) {
        self.gossip_sealed.set(i64::from(is_sealed));
    }

    /// For the thread of BFD; from now on the page shows all of it.
    pub(crate) fn bfd(&self) -> BfdMetrics {
        let states = [State::AdminDown, State::Down, State::Init, State::Up];
        let label = |state: State| StateLabel { state: format!("{state:?}") };
        let sessions = states.map(|state| (state, self.bfd_sessions.get_or_create_owned(&label(state))));
        let transitions = states.map(|state| (state, self.bfd_transitions.get_or_create_owned(&label(state))));
        let discarded = Discard::ALL.map(|discard| {
            let label = DiscardLabel { reason: format!("{discard:?}") };
            (discard, self.bfd_discarded.get_or_create_owned(&label))
        });
        BfdMetrics {
            sessions: sessions.into(),
            transitions: transitions.into(),
            discarded: discarded.into(),
            sent: self.bfd_sent.clone(),
            received: self.bfd_received.clone(),
            unsent: self.bfd_unsent.clone(),
            real_time: self.bfd_real_time.clone(),
        }
    }
}

impl BfdMetrics {
    /// Replaces all figures by those of these sessions.
    pub(crate) fn sessions(&self, states: impl Iterator<Item = State>) {
        let mut counts: BTreeMap<State, i64> = BTreeMap::new();
        for state in states {
            *counts.entry(state).or_default() += 1;
        }
        for (state, gauge) in &self.sessions {
            gauge.set(counts.get(state).copied().unwrap_or_default());
        }
    }

    pub(crate) fn changed(&self, to: State) {
        if let Some(counter) = self.transitions.get(&to) {
            counter.inc();
        }
    }

    pub(crate) fn discarded(&self, reason: Discard) {
        if let Some(counter) = self.discarded.get(&reason) {
            counter.inc();
        }
    }
}

/// Which lines there are of what is announced.
#[derive(Debug, Default)]
pub(crate) struct Announced(BTreeMap<ServiceKey, BTreeSet<IpAddr>>);

impl Announced {
    /// One line for each address of each Service, from the moment it is announced to the moment it is not.
    pub(crate) fn note(&mut self, write: &Write, metrics: &Metrics) {
        let Write::L2Status { service, node, status } = write else { return };
        let now: BTreeSet<IpAddr> = status.iter().flat_map(|status| status.addresses.iter().copied()).collect();
        let before = match now.is_empty() {
            true => self.0.remove(service),
            false => self.0.insert(service.clone(), now.clone()),
        };
        for address in before.unwrap_or_default().difference(&now) {
            metrics.announced(service, node, *address, false);
        }
        for address in now {
            metrics.announced(service, node, address, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use ferrogate_core::write::L2Status;
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn shown(registry: &Registry, metric: &str) -> Vec<String> {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        text.lines().filter(|line| line.starts_with(metric)).map(str::to_owned).collect()
    }

    fn announcing(addresses: &[&str]) -> Write {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let status = L2Status {
            pool: "p".into(),
            addresses,
            interfaces: BTreeSet::new(),
            transitions: 0,
            conflicts: Vec::new(),
        };
        let status = Some(status).filter(|status| !status.addresses.is_empty());
        Write::L2Status { service: ServiceKey::new("default", "web"), node: "node-a".into(), status }
    }

    #[test]
    fn m_150_there_is_one_line_for_each_address_exactly_while_it_is_announced() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let mut announced = Announced::default();
        let line = |address: &str| {
            format!(
                "ferrogate_speaker_announced{{service=\"default/web\",protocol=\"layer2\",node=\"node-a\",\
                 address=\"{address}\"}} 1"
            )
        };
        let mut after = |addresses: &[&str]| {
            announced.note(&announcing(addresses), &metrics);
            let mut lines = shown(&registry, "ferrogate_speaker_announced");
            lines.sort();
            lines
        };

        assert_eq!(after(&["192.0.2.1", "2001:db8::1"]), [line("192.0.2.1"), line("2001:db8::1")]);
        assert_eq!(after(&["192.0.2.2"]), [line("192.0.2.2")]);
        assert_eq!(after(&[]), Vec::<String>::new());
    }

    #[test]
    fn takeovers_are_counted_by_how_long_clients_had_nobody() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);

        for millis in [8, 120, 150, 40_000] {
            metrics.took_over(Duration::from_millis(millis));
        }

        let buckets = shown(&registry, "ferrogate_speaker_takeover_duration_seconds_bucket");
        let count = |bound: &str| {
            let line = buckets.iter().find(|line| line.contains(&format!("le=\"{bound}\""))).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(
            [count("0.01"), count("0.1"), count("0.15"), count("20.0"), count("+Inf")],
            ["1", "1", "3", "3", "4"]
        );
        assert_eq!(
            shown(&registry, "ferrogate_speaker_takeover_duration_seconds_sum"),
            ["ferrogate_speaker_takeover_duration_seconds_sum 40.278"]
        );
    }

    #[test]
    fn what_was_counted_of_an_address_goes_with_it() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        metrics.asked(address);
        metrics.sent(address, false);
        metrics.sent(address, true);
        assert_eq!(
            shown(&registry, "ferrogate_speaker_questions"),
            [r#"ferrogate_speaker_questions_total{family="Ipv6",address="2001:db8::1"} 1"#]
        );

        metrics.lost(address);

        for metric in ["questions", "answers", "announcements"] {
            assert_eq!(shown(&registry, &format!("ferrogate_speaker_{metric}")), Vec::<String>::new());
        }
    }
}
