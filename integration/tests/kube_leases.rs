//! Speakers that know each other by Leases at a real API server, with the rights of `examples/install` and no gossip: who
//! dies is missed, and an API server that is away costs nobody anything.
//!
//! Three speakers, each of a node of its own, share one network namespace: what they say on the link is shown elsewhere.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ferrogate_core::speaker::elect;
use ferrogate_integration::{
    kube::{ControlPlane, Options, install::NAMESPACE, product::Ferrogate},
    lab::wait::until,
    netns::{Links, Namespace},
    workspace,
};
use serde_json::{Value, json};

/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a Lease lasts: long enough for nobody to be late on a machine that does much else.
const LASTS: Duration = Duration::from_secs(6);

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

fn network() -> String {
    let nodes = NODES.map(|node| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{ name: {node} }}\n"));
    format!(
        "
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: {{ name: main, namespace: {NAMESPACE} }}
spec: {{ addresses: [192.0.2.240/28] }}
---
apiVersion: ferrogate.io/v1beta1
kind: L2Advertisement
metadata: {{ name: main, namespace: {NAMESPACE} }}
---
apiVersion: v1
kind: Service
metadata: {{ name: web }}
spec: {{ type: LoadBalancer, ports: [{{ port: 80 }}] }}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: web, labels: {{ kubernetes.io/service-name: web }} }}
addressType: IPv4
ports: [{{ port: 8080 }}]
endpoints: [{{ addresses: [10.0.0.1], conditions: {{ ready: true }} }}]
{}",
        nodes.concat()
    )
}

struct Stand {
    plane: ControlPlane,
    speakers: BTreeMap<&'static str, Ferrogate>,
    _controller: Ferrogate,
}

impl Stand {
    fn new() -> Self {
        let plane = ControlPlane::start(Options::default()).unwrap();
        plane.install().unwrap();
        let rights = fs::read_to_string(workspace::root().join("examples/install/leases.yaml")).unwrap();
        plane.apply(&rights).unwrap();
        plane.apply(&network()).unwrap();
        let mut controller = Ferrogate::start(&plane, "controller", "a", &[]).unwrap();
        controller.wait_ready().unwrap();
        let mut stand = Self { plane, speakers: BTreeMap::new(), _controller: controller };
        NODES.into_iter().for_each(|node| stand.start(node));
        stand
    }

    fn start(&mut self, node: &'static str) {
        // Only one of them could have the port of BFD.
        let flags = ["--node", node, "--liveness=leases", "--lease-duration=6s", "--bfd-profile=off"];
        let mut speaker = Ferrogate::start(&self.plane, "speaker", node, &flags).unwrap();
        speaker.wait_ready().unwrap();
        self.speakers.insert(node, speaker);
    }

    fn list(&self, kind: &str) -> Result<Vec<Value>> {
        let args = ["get", kind, "--namespace", NAMESPACE, "--output", "json"];
        let list: Value = serde_json::from_str(&self.plane.kubectl(args)?)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    fn address(&self) -> Result<IpAddr> {
        let args = ["get", "service", "web", "--output", "jsonpath={.status.loadBalancer.ingress[0].ip}"];
        Ok(self.plane.kubectl(args)?.parse()?)
    }

    /// Waits until this node says that it is the last that announces.
    fn wait_owner(&self, node: &str) {
        let owner = || {
            let statuses = self.list("servicel2statuses.ferrogate.io")?;
            let last = statuses.iter().max_by_key(|one| one["status"]["transitions"].as_i64());
            ensure!(last.is_some_and(|last| last["status"]["node"] == node), "not {node}: {statuses:#?}");
            Ok(())
        };
        until(LIMIT, owner).unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()));
    }

    /// What a speaker counts under this name.
    fn metric(&self, node: &str, name: &str) -> Result<i64> {
        let page = self.speakers[node].get("/metrics")?;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.unwrap_or_default().trim().parse()?)
    }

    fn wait_metric(&self, node: &str, name: &str, wanted: i64) {
        let waited = until(LIMIT, || {
            let found = self.metric(node, name)?;
            ensure!(found == wanted, "{name} of {node} is {found} instead of {wanted}");
            Ok(())
        });
        waited.unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()));
    }

    fn logs(&self) -> String {
        self.speakers.iter().map(|(node, speaker)| format!("{node}:\n{}\n", speaker.output())).collect()
    }
}

/// Runs the rest in a namespace of its own, with a link that is up.
fn apart(work: impl FnOnce() + Send) {
    let (here, far) = (Namespace::new("speakers").unwrap(), Namespace::new("link").unwrap());
    far.links(async |links| links.add_pair("cable", "eth0", &here).await).unwrap();
    let nodes = async |links: &Links| {
        links.add_address("eth0", Ipv4Addr::new(192, 0, 2, 11).into(), 24).await?;
        links.up("eth0").await
    };
    here.links(nodes).unwrap();
    here.run(work);
}

#[test]
fn speakers_without_gossip_know_by_leases_who_is_alive_and_an_api_server_that_is_away_costs_nobody_anything() {
    apart(|| {
        let mut stand = Stand::new();
        let address = until(LIMIT, || stand.address()).unwrap();
        let mut order = NODES;
        order.sort_by_key(|node| elect::hash(&(*node).into(), address));
        let [first, second, third] = order;
        stand.wait_owner(first);
        NODES.iter().for_each(|node| stand.wait_metric(node, "ferrogate_speaker_members", 2));
        let leases = stand.list("leases.coordination.k8s.io").unwrap();
        let holders = leases.iter().filter(|lease| lease["metadata"]["labels"]["ferrogate.io/node"].is_string());
        let holders: Vec<_> = holders.map(|lease| lease["spec"]["holderIdentity"].clone()).collect();
        assert_eq!(holders, NODES.map(|node| json!(node)));
        assert!(leases.iter().all(|lease| lease["metadata"]["name"] == "ferrogate-controller"
            || lease["metadata"]["ownerReferences"][0]["kind"] == "Node"));

        // While they started, one after the other, they may have missed each other.
        let lost = |stand: &Stand, node: &str| stand.speakers[node].output().matches("speaker lost").count();
        let before = (lost(&stand, second), lost(&stand, third));

        // Who dies is missed when its Lease is over.
        let died = Instant::now();
        drop(stand.speakers.remove(first));
        stand.wait_owner(second);
        println!("{second} announces {:?} after {first} was killed; a Lease lasts {LASTS:?}", died.elapsed());
        assert!(stand.metric(second, "ferrogate_speaker_takeover_duration_seconds_count").unwrap() > 0);
        stand.wait_metric(third, "ferrogate_speaker_members", 1);

        // Nobody can renew, nobody is missed.
        stand.plane.pause_api_server().unwrap();
        for node in [second, third] {
            stand.wait_metric(node, "ferrogate_speaker_leases_unseen", 1);
        }
        let blind = Instant::now();
        while blind.elapsed() < LASTS * 3 {
            assert_eq!(stand.metric(second, "ferrogate_speaker_owned_addresses").unwrap(), 1);
            assert_eq!(stand.metric(third, "ferrogate_speaker_owned_addresses").unwrap(), 0);
            assert_eq!(stand.metric(third, "ferrogate_speaker_members").unwrap(), 1);
        }
        stand.plane.resume_api_server().unwrap();
        for node in [second, third] {
            stand.wait_metric(node, "ferrogate_speaker_leases_unseen", 0);
        }
        // Many more renewals, and still nobody is missed.
        let seen = stand.metric(third, "ferrogate_speaker_lease_renewals_total").unwrap();
        until(LIMIT, || {
            let more = stand.metric(third, "ferrogate_speaker_lease_renewals_total")? - seen;
            ensure!(more > 10, "only {more} renewals");
            Ok(())
        })
        .unwrap();
        assert_eq!(stand.metric(second, "ferrogate_speaker_owned_addresses").unwrap(), 1);
        let after = (lost(&stand, second), lost(&stand, third));
        assert_eq!(after, (before.0 + 1, before.1 + 1), "{}", stand.logs());

        // Who comes back has its address again, and who stops says so.
        stand.start(first);
        stand.wait_owner(first);
        let stopped = Instant::now();
        assert!(stand.speakers.get_mut(first).unwrap().stop().unwrap().success());
        stand.wait_owner(second);
        println!("{second} announces {:?} after {first} was asked to stop", stopped.elapsed());
        assert!(stand.speakers[second].output().contains("speaker is stopping"), "{}", stand.logs());

        // A speaker has no business with the Lease by which a controller leads, and no right to it.
        let lease = format!(
            "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {{ name: ferrogate-controller, namespace: \
             {NAMESPACE} }}\nspec: {{ holderIdentity: mine }}\n"
        );
        let user = "--as=system:serviceaccount:ferrogate-system:ferrogate-speaker";
        let steal = ["apply", "--server-side", "--force-conflicts", "--validate=false", user, "--filename", "-"];
        let stolen = stand.plane.try_kubectl(&steal, &lease).unwrap();
        let said = String::from_utf8_lossy(&stolen.stderr).into_owned();
        assert!(!stolen.status.success() && said.contains("a speaker writes the Leases of speakers only"), "{said}");
        assert_eq!(stand.plane.forbidden(NAMESPACE).unwrap(), []);
    });
}
