//! The shared Ingress entry, in a world where every write is carried out.

use super::*;
use crate::model::{
    NodeName,
    entry::{Entry, EntryEndpoint, EntryPort, EntryService, EntrySlice, EntryWish, ProxyPod},
    node::Node,
};

/// A controller that leads, and the facts it sees.
struct Stage {
    controller: Controller,
    facts: Snapshot,
    now: Instant,
}

impl Stage {
    #[allow(clippy::disallowed_methods, reason = "an Instant cannot be had otherwise; from here on time is virtual")]
    fn new() -> Self {
        let mut controller = Controller::new(Config::default());
        let now = Instant::now();
        controller.step(now, Event::Leads(true));
        let entry = Entry {
            namespace: "ferrogate-system".to_owned(),
            class: Some("ferrogate.io/lb".to_owned()),
            wish: Some(EntryWish { node_ports: true }),
            ..Entry::default()
        };
        let facts = Snapshot { entry: Some(Arc::new(entry)), ..Snapshot::default() };
        Self { controller, facts, now }
    }

    fn entry(&mut self) -> &mut Entry {
        Arc::make_mut(self.facts.entry.as_mut().unwrap())
    }

    fn node(mut self, name: &str, addresses: &[&str]) -> Self {
        let internal_addresses = addresses.iter().map(|address| ip(address)).collect();
        let node = Node {
            name: name.into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            internal_addresses,
            network_unavailable: false,
            unschedulable: false,
        };
        self.facts.nodes.insert(name.into(), Arc::new(node));
        self
    }

    fn proxy(&mut self, pod: &str, node: &str, ready: bool, terminating: bool) {
        let proxy = ProxyPod { node: node.into(), addresses: Vec::new(), ready, terminating };
        self.entry().proxies.insert(ObjectKey::new("ferrogate-system", pod), proxy);
    }

    /// What the controller writes about the entry now, without it being carried out.
    fn ask(&mut self) -> Vec<Write> {
        let writes = self.controller.step(self.now, Event::Snapshot(Arc::new(self.facts.clone())));
        let ours = |write: &Write| matches!(write, Write::EntryService { .. } | Write::EntrySlice { .. });
        writes.into_iter().filter(ours).collect()
    }

    /// Carries out writes as the API server would, until nothing more is written. Returns how many there were.
    fn settle(&mut self) -> usize {
        let mut count = 0;
        loop {
            let writes = self.ask();
            if writes.is_empty() {
                return count;
            }
            count += writes.len();
            for write in writes {
                self.carry_out(write);
            }
        }
    }

    fn carry_out(&mut self, write: Write) {
        match write {
            Write::EntryService { service: key, wish } => {
                let mut stands = service(&key.to_string());
                stands.cluster_ips = vec![ip("10.96.0.1"), ip("fd00::1")];
                stands.is_entry = true;
                match &wish {
                    Some(_) => _ = self.facts.services.insert(key, Arc::new(stands)),
                    None => _ = self.facts.services.remove(&key),
                }
                self.entry().service = wish;
            }
            Write::EntrySlice { family, wish, .. } => match wish {
                Some(slice) => _ = self.entry().slices.insert(family, slice),
                None => _ = self.entry().slices.remove(&family),
            },
            _ => {}
        }
    }

    fn target(&self) -> u16 {
        let entry = self.facts.entry.as_ref().unwrap();
        entry.service.as_ref().unwrap().targets().next().unwrap().1.get()
    }

    fn endpoints(&self, family: Family) -> Vec<(NodeName, String, bool, bool, bool)> {
        let slice = &self.facts.entry.as_ref().unwrap().slices[&family];
        let told =
            |one: &EntryEndpoint| (one.node.clone(), one.address.to_string(), one.ready, one.serving, one.terminating);
        slice.endpoints.iter().map(told).collect()
    }
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

#[test]
fn while_an_ingress_class_of_ours_exists_there_is_an_entry() {
    let mut stage = Stage::new().node("a", &["192.0.2.1", "2001:db8::1"]).node("b", &["192.0.2.2"]);
    stage.proxy("p1", "a", true, false);
    stage.proxy("p2", "b", false, false);

    stage.settle();

    let service = stage.facts.entry.as_ref().unwrap().service.clone().unwrap();
    let http = EntryPort { name: "http".into(), port: port(80), target: Some(port(20_000)), has_node_port: true };
    assert_eq!(
        service,
        EntryService {
            is_labelled: true,
            is_load_balancer: true,
            is_local: true,
            prefers_dual_stack: true,
            class: Some("ferrogate.io/lb".into()),
            allocates_node_ports: true,
            ports: vec![http],
        }
    );
    let slices = &stage.facts.entry.as_ref().unwrap().slices;
    assert!(slices.values().all(|slice| slice.ports == BTreeSet::from([("http".to_owned(), port(20_000))])));
    assert_eq!(
        stage.endpoints(Family::V4),
        [
            ("a".into(), "192.0.2.1".to_owned(), true, true, false),
            ("b".into(), "192.0.2.2".to_owned(), false, false, false),
        ]
    );
    assert_eq!(stage.endpoints(Family::V6), [("a".into(), "2001:db8::1".to_owned(), true, true, false)]);
}

#[test]
fn an_entry_that_stands_as_it_should_is_not_written_again() {
    let mut stage = Stage::new().node("a", &["192.0.2.1"]);
    stage.proxy("p1", "a", true, false);
    stage.settle();

    stage.controller = Controller::new(Config::default());
    stage.controller.step(stage.now, Event::Leads(true));

    assert_eq!(stage.ask(), []);
}

#[test]
fn without_an_ingress_class_of_ours_there_is_no_entry_and_its_old_one_goes() {
    let mut stage = Stage::new();
    stage.entry().wish = None;
    assert_eq!(stage.ask(), []);
    stage.entry().wish = Some(EntryWish { node_ports: true });
    stage.settle();

    stage.entry().wish = None;
    stage.settle();

    let entry = stage.facts.entry.as_ref().unwrap();
    assert_eq!((&entry.service, entry.slices.len()), (&None, 0));
}

#[test]
fn a_service_of_that_name_that_is_not_ours_is_not_deleted() {
    let mut stage = Stage::new();
    stage.settle();
    stage.entry().service.as_mut().unwrap().is_labelled = false;
    stage.entry().wish = None;

    let writes = stage.ask();

    assert!(!writes.iter().any(|write| matches!(write, Write::EntryService { .. })), "{writes:?}");
}

#[test]
fn the_target_port_is_kept_when_somebody_chose_another_one() {
    let mut stage = Stage::new();
    stage.settle();
    stage.entry().service.as_mut().unwrap().ports[0].target = Some(port(23_456));

    stage.settle();

    assert_eq!(stage.target(), 23_456);
}

#[test]
fn a_deleted_service_comes_back_with_the_port_its_slices_remember() {
    let mut stage = Stage::new().node("a", &["192.0.2.1"]);
    stage.proxy("p1", "a", true, false);
    stage.settle();
    stage.entry().service.as_mut().unwrap().ports[0].target = Some(port(23_456));
    stage.settle();

    stage.entry().service = None;
    stage.facts.services.remove(&key("ferrogate-system/ferrogate-ingress"));
    stage.settle();

    assert_eq!(stage.target(), 23_456);
}

#[test]
fn a_target_port_that_is_not_allowed_is_replaced() {
    let mut stage = Stage::new();
    stage.settle();
    stage.entry().service.as_mut().unwrap().ports[0].target = None;
    stage.entry().slices.clear();

    stage.settle();

    assert_eq!(stage.target(), 20_000);
}

#[test]
fn ports_and_a_class_that_the_user_gave_survive() {
    let mut stage = Stage::new();
    stage.settle();
    let extra = EntryPort { name: "alt".into(), port: port(8080), target: Some(port(20_001)), has_node_port: true };
    let service = stage.entry().service.as_mut().unwrap();
    service.ports.push(extra);
    service.class = None;

    stage.settle();

    let entry = stage.facts.entry.as_ref().unwrap();
    assert_eq!(entry.service.as_ref().unwrap().class, None);
    let ports: Vec<_> = entry.slices[&Family::V4].ports.iter().map(|(_, port)| port.get()).collect();
    assert_eq!(ports, [20_001, 20_000]);
}

#[test]
fn node_ports_are_given_back_when_the_class_does_without() {
    let mut stage = Stage::new();
    stage.settle();
    stage.entry().wish = Some(EntryWish { node_ports: false });

    let writes = stage.ask();

    let Some(Write::EntryService { wish: Some(wish), .. }) = writes.first() else { panic!("{writes:?}") };
    assert!(!wish.allocates_node_ports && wish.ports.iter().all(|port| !port.has_node_port));
}

#[test]
fn during_an_update_the_old_and_the_new_proxy_of_a_node_are_one_endpoint() {
    let mut stage = Stage::new().node("a", &["192.0.2.1"]);
    stage.proxy("old", "a", true, true);
    stage.settle();
    assert_eq!(stage.endpoints(Family::V4), [("a".into(), "192.0.2.1".to_owned(), false, true, true)]);

    stage.proxy("new", "a", true, false);
    stage.settle();

    assert_eq!(stage.endpoints(Family::V4), [("a".into(), "192.0.2.1".to_owned(), true, true, false)]);
}

#[test]
fn without_a_node_object_the_address_of_the_pod_counts() {
    let mut stage = Stage::new();
    let proxy = ProxyPod { node: "a".into(), addresses: vec![ip("192.0.2.9")], ready: true, terminating: false };
    stage.entry().proxies.insert(ObjectKey::new("ferrogate-system", "p1"), proxy);

    stage.settle();

    assert_eq!(stage.endpoints(Family::V4), [("a".into(), "192.0.2.9".to_owned(), true, true, false)]);
}

#[test]
fn a_write_that_never_shows_is_asked_for_again() {
    let mut stage = Stage::new();
    assert_eq!(stage.ask().len(), 1);
    assert_eq!(stage.ask(), []);

    let again = stage.controller.step(stage.now + Config::default().patience, Event::Tick);

    assert!(matches!(again[..], [Write::EntryService { wish: Some(_), .. }]), "{again:?}");
}

#[test]
fn a_slice_says_what_its_family_needs_and_nothing_more() {
    let mut stage = Stage::new().node("a", &["192.0.2.1"]);
    stage.proxy("p1", "a", true, false);
    stage.settle();

    assert_eq!(
        stage.facts.entry.as_ref().unwrap().slices[&Family::V6],
        EntrySlice { ports: BTreeSet::from([("http".to_owned(), port(20_000))]), endpoints: BTreeSet::new() }
    );
}
