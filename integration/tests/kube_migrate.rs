//! MetalLB's own controller gives addresses on a real API server, and Ferrogate takes over: nothing is lost, nothing
//! moves, and the way back is open.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use ferrogate_integration::{
    kube::{
        ControlPlane, Options,
        install::NAMESPACE,
        process::{Process, tied},
        product::Ferrogate,
        tools::METALLB,
    },
    lab::wait::until,
    workspace,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// How long somebody may take to give an address, on a machine that is busy otherwise too.
const PATIENCE: Duration = Duration::from_secs(60);

const COMPATIBLE: &[&str] = &["--metallb-compat"];

/// What MetalLB notes, and what we do.
const THEIR_NOTE: &str = "metallb.io/ip-allocated-from-pool";
const OUR_NOTE: &str = "ferrogate.io/ip-allocated-from-pool";

/// Pools and Services of every sort that MetalLB knows.
const CONFIGURATION: &str = r#"
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: { name: main, namespace: metallb-system }
spec: { addresses: [192.0.2.0/26, "2001:db8::/120"] }
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: { name: kept, namespace: metallb-system, labels: { for: few } }
spec: { addresses: [198.51.100.16-198.51.100.31], autoAssign: false, avoidBuggyIPs: true }
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: { name: team, namespace: metallb-system }
spec: { addresses: [203.0.113.0/28], serviceAllocation: { priority: 10, namespaces: [team] } }
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: { name: all, namespace: metallb-system }
"#;

/// A Service of type LoadBalancer.
fn service(namespace: &str, name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: {namespace}, annotations: {{ \
         example.com/mine: stays{annotations} }} }}\nspec: {{ type: LoadBalancer, selector: {{ app: {name} }}, {spec} }}\n"
    )
}

fn services() -> String {
    let mut all = vec![
        service("team", "pinned", "", "ports: [{ port: 80 }]"),
        service("default", "dual", "", "ipFamilyPolicy: RequireDualStack, ports: [{ port: 80 }]"),
        service("default", "six", "", "ipFamilies: [IPv6], ports: [{ port: 80 }]"),
        service("default", "asked", ", metallb.io/loadBalancerIPs: 192.0.2.40", "ports: [{ port: 80 }]"),
        service("default", "field", "", "loadBalancerIP: 192.0.2.41, ports: [{ port: 80 }]"),
        service("default", "few", ", metallb.universe.tf/address-pool: kept", "ports: [{ port: 80 }]"),
        service("default", "local", "", "externalTrafficPolicy: Local, ports: [{ port: 80 }]"),
    ];
    for (name, namespace, port) in [("dns-tcp", "default", "TCP"), ("dns-udp", "team", "UDP")] {
        let shared = ", metallb.io/allow-shared-ip: dns, metallb.io/loadBalancerIPs: 192.0.2.50";
        all.push(service(namespace, name, shared, &format!("ports: [{{ port: 53, protocol: {port} }}]")));
    }
    all.extend((0..12).map(|number| service("default", &format!("plain-{number}"), "", "ports: [{ port: 80 }]")));
    all.concat()
}

struct Stage {
    plane: ControlPlane,
}

impl Stage {
    fn new() -> Self {
        let plane = ControlPlane::start(Options::default()).unwrap();
        plane.install().unwrap();
        for namespace in ["metallb-system", "team"] {
            plane.kubectl(["create", "namespace", namespace]).unwrap();
        }
        let rights = workspace::root().join("examples/metallb/rights.yaml");
        plane.apply(&fs::read_to_string(rights).unwrap()).unwrap();
        Self { plane }
    }

    fn define_metallb(&self) {
        let source = METALLB.source("go.universe.tf/metallb").unwrap();
        let definitions = source.join("config/crd/bases").display().to_string();
        self.plane.kubectl(["apply", "--filename", &definitions]).unwrap();
        let wait = ["wait", "--for", "condition=Established", "--timeout", "60s", "--filename", &definitions];
        self.plane.kubectl(wait).unwrap();
    }

    fn metallb(&self, name: &str) -> Process {
        let mut command = tied(METALLB.build().unwrap().path("controller").unwrap());
        let kubeconfig = self.plane.kubeconfig().display().to_string();
        command.args(["--webhook-mode", "disabled", "--port", "0", "--kubeconfig", &kubeconfig]);
        command.env("METALLB_NAMESPACE", "metallb-system").env("METALLB_BGP_TYPE", "native");
        let log = self.plane.folder().join(format!("metallb-{name}.log"));
        Process::start(self.plane.keeper(), "metallb controller", command, &log).unwrap()
    }

    fn ferrogate(&self, name: &str) -> Ferrogate {
        let mut controller = Ferrogate::start(&self.plane, "controller", name, COMPATIBLE).unwrap();
        controller.wait_ready().unwrap();
        controller
    }

    /// Every LoadBalancer Service, by namespace and name.
    fn services(&self) -> BTreeMap<String, Value> {
        let listed = self.plane.kubectl(["get", "services", "--all-namespaces", "--output", "json"]).unwrap();
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let balancers = listed["items"].as_array().unwrap().iter().filter(|one| one["spec"]["type"] == "LoadBalancer");
        let key = |one: &Value| {
            let text = |pointer: &str| one.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
            format!("{}/{}", text("/metadata/namespace"), text("/metadata/name"))
        };
        balancers.map(|one| (key(one), one.clone())).collect()
    }

    fn addresses(&self) -> BTreeMap<String, Vec<String>> {
        self.services().into_iter().map(|(name, one)| (name, addresses(&one))).collect()
    }

    /// The addresses once every Service has some.
    fn all_addresses(&self, who: &str) -> BTreeMap<String, Vec<String>> {
        let complete = until(PATIENCE, || {
            let all = self.addresses();
            if all.values().all(|addresses| !addresses.is_empty()) { Ok(all) } else { Err(all) }
        });
        complete.unwrap_or_else(|all| panic!("{who} did not give every Service an address: {all:#?}"))
    }

    /// Waits for something to be true of a Service.
    fn see(&self, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let (namespace, short) = name.split_once('/').unwrap();
        let look = || {
            let text =
                self.plane.kubectl(["get", "service", short, "-n", namespace, "-o", "json", "--show-managed-fields"]);
            let one: Value = serde_json::from_str(&text.unwrap()).unwrap();
            if is_so(&one) { Ok(one) } else { Err(one) }
        };
        until(PATIENCE, look).unwrap_or_else(|one| panic!("{name} was to be seen {what}: {one:#}"))
    }
}

fn addresses(service: &Value) -> Vec<String> {
    let ingress = service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
    ingress.into_iter().flatten().filter_map(|one| Some(one["ip"].as_str()?.to_owned())).collect()
}

fn annotation<'a>(service: &'a Value, name: &str) -> Option<&'a str> {
    service["metadata"]["annotations"].get(name)?.as_str()
}

/// Whether our controller says that the Service has its address.
fn is_ours(service: &Value) -> bool {
    let conditions = service.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let mut own = conditions.filter(|one| one["type"] == "ferrogate.io/AddressAssigned");
    own.any(|one| one["status"] == "True") && annotation(service, OUR_NOTE).is_some()
}

/// Who owns the addresses in the status.
fn owners(service: &Value) -> Vec<&str> {
    let entries = service.pointer("/metadata/managedFields").and_then(Value::as_array).unwrap().iter();
    let of_ingress = entries.filter(|one| one.pointer("/fieldsV1/f:status/f:loadBalancer/f:ingress").is_some());
    of_ingress.filter_map(|one| one["manager"].as_str()).collect()
}

fn end(mut process: Process) {
    process.signal(Signal::SIGTERM).unwrap();
    process.wait().unwrap();
}

/// What `ferrogate migrate metallb` ends with, and prints.
fn migrate(stage: &Stage, flags: &[&str]) -> (Option<i32>, String) {
    let mut command = tied(workspace::ship().unwrap());
    command.args(["migrate", "metallb"]).args(flags).env("KUBECONFIG", stage.plane.kubeconfig());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let output = stage.plane.keeper().spawn(command).unwrap().wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn every_service_keeps_its_address_from_metallb_to_ferrogate_and_back() {
    let stage = Stage::new();
    stage.define_metallb();
    stage.plane.apply(CONFIGURATION).unwrap();
    stage.plane.apply(&services()).unwrap();
    let metallb = stage.metallb("before");
    let before = stage.all_addresses("MetalLB");
    assert_eq!(before.len(), 21);
    assert_eq!(before["default/dns-tcp"], before["team/dns-udp"]);

    // The objects first. Nothing but they changes.
    let (code, printed) = migrate(&stage, &[]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("21 keep their address, 0 get"), "{printed}");
    let (code, printed) = migrate(&stage, &["--apply"]);
    assert_eq!(code, Some(0), "{printed}");
    let (code, printed) = migrate(&stage, &["--apply"]);
    assert_eq!(code, Some(0), "once more: {printed}");
    assert!(printed.contains("(exists)"), "{printed}");
    let ours = stage.plane.kubectl(["get", "ipaddresspools.ferrogate.io", "-n", NAMESPACE, "-o", "name"]).unwrap();
    assert_eq!(ours.lines().count(), 3, "{ours}");
    assert_eq!(stage.addresses(), before);

    // Ours beside MetalLB's: it takes over what is there, and neither moves anything.
    let mut ferrogate = stage.ferrogate("beside");
    for name in before.keys() {
        let adopted = stage.see(name, "adopted", is_ours);
        assert_eq!(addresses(&adopted), before[name]);
        assert_eq!(annotation(&adopted, "example.com/mine"), Some("stays"));
        assert_eq!(annotation(&adopted, THEIR_NOTE), annotation(&adopted, OUR_NOTE));
        assert!(owners(&adopted).contains(&"ferrogate-controller"), "{name}: {:?}", owners(&adopted));
    }

    // MetalLB's controller goes; new Services get addresses from us, each its own.
    end(metallb);
    stage.plane.apply(&service("default", "new", "", "ports: [{ port: 80 }]")).unwrap();
    stage.see("default/new", "served", is_ours);
    let with_new = stage.all_addresses("Ferrogate");
    let taken: BTreeSet<_> = before.values().flatten().collect();
    assert!(with_new["default/new"].iter().all(|address| !taken.contains(address)), "{with_new:#?}");
    for (name, addresses) in &before {
        assert_eq!(&with_new[name], addresses, "{name} has moved");
    }

    // A new life of ours writes nothing: every Service has the version it had.
    let versions = |stage: &Stage| -> BTreeMap<String, Value> {
        let all = stage.services().into_iter();
        all.map(|(name, one)| (name, one["metadata"]["resourceVersion"].clone())).collect()
    };
    let settled = versions(&stage);
    ferrogate.stop().unwrap();
    let mut ferrogate = stage.ferrogate("again");
    stage.plane.apply(&service("default", "probe", "", "ports: [{ port: 80 }]")).unwrap();
    stage.see("default/probe", "served", is_ours);
    stage.plane.kubectl(["delete", "service", "probe"]).unwrap();
    assert_eq!(versions(&stage), settled);

    // The way back: ours stops, MetalLB starts, and has looked at all of them when it has served another one.
    ferrogate.stop().unwrap();
    let metallb = stage.metallb("after");
    stage.plane.apply(&service("default", "newer", "", "ports: [{ port: 80 }]")).unwrap();
    let back = stage.all_addresses("MetalLB again");
    for (name, addresses) in &with_new {
        assert_eq!(&back[name], addresses, "{name} has moved on the way back");
    }
    end(metallb);
    assert_eq!(stage.plane.forbidden(NAMESPACE).unwrap(), []);
}

#[test]
fn what_metallb_wrote_goes_when_its_service_or_pool_does() {
    let stage = Stage::new();
    stage.define_metallb();
    stage.plane.apply(CONFIGURATION).unwrap();
    let kept = service("default", "few", ", metallb.io/address-pool: kept", "ports: [{ port: 80 }]");
    let plain = service("default", "plain", "", "ports: [{ port: 80 }]");
    stage.plane.apply(&[kept, plain].concat()).unwrap();
    let metallb = stage.metallb("before");
    let before = stage.all_addresses("MetalLB");
    end(metallb);
    // Somebody else's condition, in a status that two have written already.
    let condition = r#"{"status":{"conditions":[{"type":"example.com/Seen","status":"True","reason":"Seen","message":"","lastTransitionTime":"2024-01-01T00:00:00Z"}]}}"#;
    stage.plane.kubectl(["patch", "service", "few", "--subresource", "status", "--patch", condition]).unwrap();
    let mut ferrogate = stage.ferrogate("alone");
    for name in before.keys() {
        stage.see(name, "adopted", is_ours);
    }

    stage.plane.kubectl(["patch", "service", "plain", "--patch", r#"{"spec":{"type":"ClusterIP"}}"#]).unwrap();
    stage.plane.kubectl(["delete", "ipaddresspools.metallb.io", "kept", "-n", "metallb-system"]).unwrap();

    let is_free = |one: &Value| {
        addresses(one).is_empty() && annotation(one, THEIR_NOTE).is_none() && annotation(one, OUR_NOTE).is_none()
    };
    stage.see("default/plain", "without an address", is_free);
    let few = stage.see("default/few", "without an address", is_free);
    assert_eq!(annotation(&few, "example.com/mine"), Some("stays"));
    let conditions = few["status"]["conditions"].as_array().unwrap();
    let kinds: BTreeSet<_> = conditions.iter().filter_map(|one| one["type"].as_str()).collect();
    assert_eq!(kinds, BTreeSet::from(["example.com/Seen", "ferrogate.io/AddressAssigned"]));
    ferrogate.stop().unwrap();
    assert_eq!(stage.plane.forbidden(NAMESPACE).unwrap(), []);
}

#[test]
fn definitions_of_metallb_may_come_and_go_while_we_run() {
    let stage = Stage::new();
    stage.plane.apply(&service("default", "web", "", "ports: [{ port: 80 }]")).unwrap();
    // Ready without any of them.
    let mut ferrogate = stage.ferrogate("alone");

    stage.define_metallb();
    stage.plane.apply(CONFIGURATION).unwrap();
    let served = stage.see("default/web", "served", is_ours);
    assert_eq!(addresses(&served), ["192.0.2.0"]);

    stage.plane.kubectl(["delete", "customresourcedefinition", "ipaddresspools.metallb.io"]).unwrap();
    stage.see("default/web", "without an address", |one| addresses(one).is_empty());
    ferrogate.stop().unwrap();
    assert_eq!(stage.plane.forbidden(NAMESPACE).unwrap(), []);
}
