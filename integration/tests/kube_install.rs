//! Ferrogate as it is installed, at a real API server: the rights of `examples/install` are enough and no wider than
//! they must be, and what a user then sees is what was promised.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{LazyLock, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context, ensure};
use ferrogate_core::model::service::ADDRESS_ASSIGNED;
use ferrogate_integration::{
    kube::{ControlPlane, Options, certificates::Authority, install::NAMESPACE, plane, product::Ferrogate},
    lab::wait::until,
    workspace,
};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{Api, api::PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(60);

const NETWORK: &str = "
apiVersion: ferrogate.io/v1beta1
kind: IPAddressPool
metadata: { name: main, namespace: ferrogate-system }
spec: { addresses: [192.0.2.0/24] }
---
apiVersion: ferrogate.io/v1beta1
kind: L2Advertisement
metadata: { name: main, namespace: ferrogate-system }
";

/// A control plane with everything of `examples/install`, and the controller that would run in its Deployment.
struct Stand {
    plane: ControlPlane,
    controller: Mutex<Ferrogate>,
}

/// For tests that leave the API server alone; each has Services of its own.
static STAND: LazyLock<Stand> = LazyLock::new(Stand::new);

impl Stand {
    fn new() -> Self {
        let plane = ControlPlane::start(Options::default()).unwrap();
        plane.install().unwrap();
        plane.apply(NETWORK).unwrap();
        let mut controller = Ferrogate::start(&plane, "controller", "a", &[]).unwrap();
        controller.wait_ready().unwrap();
        Self { plane, controller: Mutex::new(controller) }
    }

    fn controller(&self) -> MutexGuard<'_, Ferrogate> {
        self.controller.lock().unwrap()
    }

    /// What kubectl shows of an object.
    fn get(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let args = ["get", kind, name, "--namespace", namespace, "--output", "json"];
        serde_json::from_str(&self.plane.kubectl(args).unwrap()).unwrap()
    }

    /// Makes Services of type LoadBalancer in the default namespace.
    fn make(&self, names: &[String]) {
        let service = |name: &String| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\n\
                 spec: {{ type: LoadBalancer, ports: [{{ port: 80 }}] }}\n"
            )
        };
        self.plane.apply(&names.iter().map(service).collect::<Vec<_>>().join("---\n")).unwrap();
    }

    fn delete(&self, names: &[String]) {
        let words = ["delete", "service", "--wait=false"].into_iter().chain(names.iter().map(String::as_str));
        self.plane.kubectl(words).unwrap();
    }

    /// The address of every Service of the default namespace that is to have one, as soon as each has one.
    fn addresses(&self) -> BTreeMap<String, String> {
        let assigned = || {
            let list = self.plane.kubectl(["get", "services", "--output", "json"])?;
            let list: Value = serde_json::from_str(&list)?;
            let services = list["items"].as_array().context("a list")?;
            let served = services.iter().filter(|service| service["spec"]["type"] == "LoadBalancer");
            let address = |service: &Value| {
                let name = service["metadata"]["name"].as_str().context("a name")?.to_owned();
                let address = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str();
                anyhow::Ok((name.clone(), address.with_context(|| format!("{name} has none"))?.to_owned()))
            };
            served.map(address).collect::<anyhow::Result<BTreeMap<_, _>>>()
        };
        until(LIMIT, assigned).unwrap_or_else(|error| panic!("{error:#}\n{}", self.controller().output()))
    }

    /// Waits until the controller has printed something that contains all of `words` in one line, after `from` bytes.
    fn wait_printed(&self, from: usize, words: &[&str]) {
        let printed = || {
            let output = self.controller().output();
            let line = output[from..].lines().any(|line| words.iter().all(|word| line.contains(word)));
            line.then_some(()).ok_or(output)
        };
        until(LIMIT, printed).unwrap_or_else(|output| panic!("it never printed {words:?}\n{output}"));
    }

    /// How often the controller has listed all Services.
    fn lists(&self) -> usize {
        let asked = self.plane.asked().unwrap();
        asked.iter().filter(|one| one.verb == "list" && one.what == "services" && one.code == 200).count()
    }

    /// Nothing was asked for that is not granted.
    fn assert_nothing_forbidden(&self) {
        assert_eq!(self.plane.forbidden(NAMESPACE).unwrap(), []);
    }
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

fn distinct(addresses: &BTreeMap<String, String>) -> usize {
    addresses.values().collect::<BTreeSet<_>>().len()
}

/// Whether somebody may do something, as the API server's own authorizer says.
async fn may(client: &kube::Client, user: &str, verb: &str, resource: &str, namespace: Option<&str>) -> bool {
    let (resource, subresource) = resource.split_once('/').map_or((resource, None), |(one, two)| (one, Some(two)));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let attributes = ResourceAttributes {
        verb: Some(verb.to_owned()),
        resource: Some(resource.to_owned()),
        group: Some(group.to_owned()),
        subresource: subresource.map(str::to_owned),
        namespace: namespace.map(str::to_owned),
        ..Default::default()
    };
    let user = Some(format!("system:serviceaccount:{NAMESPACE}:ferrogate-{user}"));
    let spec = SubjectAccessReviewSpec { user, resource_attributes: Some(attributes), ..Default::default() };
    let review = SubjectAccessReview { spec, ..Default::default() };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await.unwrap();
    answer.status.unwrap().allowed
}

#[test]
fn m_042_m_043_and_m_152_a_service_gets_an_address_a_condition_and_an_event_and_is_counted() {
    STAND.make(&["web".to_owned()]);

    let address = STAND.addresses()["web"].clone();

    let service = STAND.get("service", "default", "web");
    assert_eq!(service["status"]["loadBalancer"]["ingress"], json!([{ "ip": address, "ipMode": "VIP" }]));
    assert_eq!(service["metadata"]["annotations"]["ferrogate.io/ip-allocated-from-pool"], "main");
    let conditions = service["status"]["conditions"].as_array().unwrap();
    let assigned = conditions.iter().find(|condition| condition["type"] == ADDRESS_ASSIGNED).unwrap();
    assert_eq!((&assigned["status"], &assigned["reason"]), (&json!("True"), &json!("Assigned")));
    let pool = || {
        let pool = STAND.get("ipaddresspool", NAMESPACE, "main");
        let (used, free) = (pool["status"]["assignedIPv4"].as_i64(), pool["status"]["availableIPv4"].as_i64());
        if used >= Some(1) && used.zip(free).is_some_and(|(used, free)| used + free == 256) {
            Ok(())
        } else {
            Err(pool)
        }
    };
    until(LIMIT, pool).unwrap();
    let event = || {
        let events = STAND.plane.kubectl(["get", "events", "--field-selector", "involvedObject.name=web"])?;
        ensure!(events.contains(&address), "{events}");
        Ok(())
    };
    until(LIMIT, event).unwrap();
    let lease = STAND.get("lease", NAMESPACE, "ferrogate-controller");
    assert!(lease["spec"]["holderIdentity"].as_str().is_some_and(|holder| !holder.is_empty()), "{lease}");
    STAND.assert_nothing_forbidden();
}

#[test]
fn the_class_as_installed_brings_the_shared_entry_with_an_address() {
    let entry = || {
        let entry = STAND.get("service", NAMESPACE, "ferrogate-ingress");
        if entry["status"]["loadBalancer"]["ingress"][0]["ip"].is_string() { Ok(entry) } else { Err(entry) }
    };

    let entry = until(LIMIT, entry).unwrap();

    assert_eq!(entry["spec"]["externalTrafficPolicy"], "Local");
    assert_eq!(entry["spec"].get("selector"), None);
    STAND.assert_nothing_forbidden();
}

#[test]
fn m_153_the_secret_the_speakers_share_is_made_once_and_survives_restarts() {
    let secret = || {
        let args =
            ["get", "secret", "ferrogate-gossip", "--namespace", NAMESPACE, "--output", "jsonpath={.data.current}"];
        STAND.plane.kubectl(args)
    };
    let made = until(LIMIT, secret).unwrap();
    // 32 bytes in base64.
    assert_eq!(made.len(), 44, "{made}");

    let mut next = Ferrogate::start(&STAND.plane, "controller", "next", &[]).unwrap();
    next.wait_ready().unwrap();
    let tried_again = || {
        let asked = STAND.plane.asked()?;
        let refused = asked.iter().any(|one| one.verb == "create" && one.what == "secrets" && one.code == 409);
        ensure!(refused, "nobody has tried");
        Ok(())
    };
    until(LIMIT, tried_again).unwrap();

    assert_eq!(secret().unwrap(), made);
    STAND.assert_nothing_forbidden();
}

#[tokio::test]
async fn nobody_may_do_what_is_not_needed() {
    let client = STAND.plane.client().await.unwrap();
    let own = Some(NAMESPACE);
    let others = Some("default");
    let table = [
        ("controller", "patch", "services/status", others, true),
        ("controller", "update", "services/status", others, false),
        ("controller", "patch", "services", others, false),
        ("controller", "update", "services", others, false),
        ("controller", "delete", "services", others, false),
        ("controller", "create", "services", others, false),
        ("controller", "patch", "services", own, false),
        ("controller", "create", "endpointslices.discovery.k8s.io", others, false),
        ("controller", "create", "secrets", own, true),
        ("controller", "get", "secrets", own, false),
        ("controller", "get", "secrets", others, false),
        ("controller", "list", "secrets", None, false),
        ("controller", "list", "pods", others, false),
        ("controller", "create", "pods", own, false),
        ("controller", "get", "configmaps", own, false),
        ("controller", "patch", "nodes", None, false),
        ("controller", "get", "nodes/proxy", None, false),
        ("controller", "update", "leases.coordination.k8s.io", own, false),
        ("controller", "create", "leases.coordination.k8s.io", others, false),
        ("controller", "patch", "ipaddresspools.ferrogate.io", own, false),
        ("controller", "create", "ipaddresspools.ferrogate.io", own, false),
        ("controller", "delete", "events.events.k8s.io", others, false),
        ("controller", "create", "serviceaccounts/token", own, false),
        ("controller", "patch", "clusterroles.rbac.authorization.k8s.io", None, false),
        ("controller", "impersonate", "users", None, false),
        ("speaker", "create", "servicel2statuses.ferrogate.io", own, true),
        ("speaker", "create", "servicel2statuses.ferrogate.io", others, false),
        ("speaker", "create", "bgpsessionstatuses.ferrogate.io", own, true),
        ("speaker", "patch", "servicebgpstatuses.ferrogate.io/status", own, true),
        ("controller", "list", "bgpsessionstatuses.ferrogate.io", own, false),
        ("speaker", "patch", "services/status", others, false),
        ("speaker", "patch", "ingresses.networking.k8s.io/status", others, false),
        ("speaker", "patch", "ipaddresspools.ferrogate.io/status", own, false),
        ("speaker", "create", "leases.coordination.k8s.io", own, false),
        ("speaker", "create", "services", own, false),
        ("speaker", "list", "secrets", None, false),
        ("speaker", "list", "secrets", own, true),
        ("speaker", "watch", "secrets", own, true),
        ("speaker", "list", "secrets", others, false),
        ("speaker", "get", "secrets", own, false),
        ("speaker", "patch", "nodes", None, false),
        ("proxy", "watch", "endpointslices.discovery.k8s.io", None, true),
        ("proxy", "list", "ipaddresspools.ferrogate.io", own, false),
        ("proxy", "list", "pods", own, false),
        ("proxy", "get", "secrets", own, false),
        ("proxy", "patch", "services/status", others, false),
        ("proxy", "patch", "ingresses.networking.k8s.io/status", others, false),
        ("proxy", "create", "events.events.k8s.io", others, false),
    ];

    for (user, verb, resource, namespace, expected) in table {
        let found = may(&client, user, verb, resource, namespace).await;
        assert_eq!(found, expected, "{user}: {verb} {resource} in {namespace:?}");
    }
}

/// A client of a listener that shows a certificate of this authority; without a token it says nothing of itself.
async fn scraper(plane: &ControlPlane, server: SocketAddr, authority: &Authority, token: Option<&str>) -> kube::Client {
    let trusted = plane.folder().join("scraped.crt");
    std::fs::write(&trusted, authority.certificate()).unwrap();
    let user = token.map_or(json!({}), |token| json!({ "token": token }));
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "a", "cluster": { "server": format!("https://{server}"), "certificate-authority": trusted } }],
        "users": [{ "name": "a", "user": user }],
        "contexts": [{ "name": "a", "context": { "cluster": "a", "user": "a" } }],
        "current-context": "a",
    });
    let path = plane.folder().join("scraper.kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    plane::client(&path).await.unwrap()
}

#[tokio::test]
async fn m_149_metrics_are_read_by_https_by_whom_the_api_server_lets_and_by_nobody_else() {
    let stage = tokio::task::spawn_blocking(|| {
        let plane = ControlPlane::start(Options::default()).unwrap();
        plane.install().unwrap();
        let rights = workspace::root().join("examples/install/metrics.yaml");
        plane.apply(&std::fs::read_to_string(rights).unwrap()).unwrap();
        for name in ["reader", "other"] {
            plane.kubectl(["create", "serviceaccount", name]).unwrap();
        }
        let bind = ["create", "clusterrolebinding", "reader", "--clusterrole", "ferrogate-metrics-reader"];
        plane.kubectl(bind.into_iter().chain(["--serviceaccount", "default:reader"])).unwrap();
        let tokens =
            ["reader", "other"].map(|name| plane.kubectl(["create", "token", name]).unwrap().trim().to_owned());
        let [second, third, fourth] = rand::random::<[u8; 3]>();
        let server = SocketAddr::from(([127, second.max(1), third, fourth.clamp(1, 254)], 9120));
        let authority = Authority::new().unwrap();
        let shown = authority.server(&["localhost"], &[server.ip()]).unwrap();
        std::fs::write(plane.folder().join("tls.crt"), shown.certificate).unwrap();
        std::fs::write(plane.folder().join("tls.key"), shown.key).unwrap();
        let (listen, folder) = (server.to_string(), plane.folder().display().to_string());
        let flags = ["--metrics-listen", &listen, "--metrics-certificate", &folder];
        let mut controller = Ferrogate::start(&plane, "controller", "scraped", &flags).unwrap();
        controller.wait_ready().unwrap();
        (plane, controller, server, authority, tokens)
    });
    let (plane, controller, server, authority, [reader, other]) = stage.await.unwrap();
    let ask = async |token: Option<&str>| {
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        match scraper(&plane, server, &authority, token).await.request_text(request).await {
            Ok(text) => Ok(text),
            Err(kube::Error::Api(status)) => Err((status.code, status.message.clone())),
            Err(error) => panic!("{error}"),
        }
    };

    let read = ask(Some(&reader)).await.unwrap();
    assert!(read.contains("ferrogate_controller_leading"), "{read}");
    let (code, why) = ask(Some(&other)).await.unwrap_err();
    assert_eq!(code, 403);
    assert!(why.contains("system:serviceaccount:default:other may not get /metrics"), "{why}");
    assert_eq!(ask(None).await.unwrap_err().0, 401);
    assert_eq!(ask(Some("made-up")).await.unwrap_err().0, 401);
    assert_eq!(plane.forbidden(NAMESPACE).unwrap(), []);
    drop(controller);
}

#[test]
fn an_api_server_that_is_killed_and_comes_back_costs_no_address() {
    let stand = Stand::new();
    stand.make(&names("old", 20));
    let before = stand.addresses();

    stand.plane.kill_api_server().unwrap();
    stand.wait_printed(0, &["watch failed"]);
    stand.plane.start_api_server().unwrap();
    stand.make(&names("new", 10));
    stand.delete(&names("old", 5));

    let after = stand.addresses();
    assert_eq!(after.len(), 25);
    assert_eq!(distinct(&after), 25);
    assert!(before.iter().all(|(name, address)| after.get(name).is_none_or(|now| now == address)), "{after:?}");
    stand.assert_nothing_forbidden();
}

#[test]
fn an_api_server_that_answers_nobody_for_longer_than_a_lease_costs_no_address() {
    let stand = Stand::new();
    stand.make(&names("old", 5));
    let before = stand.addresses();
    let printed = stand.controller().output().len();

    stand.plane.pause_api_server().unwrap();
    stand.wait_printed(printed, &["leadership", "leads=false"]);
    let away = stand.controller().output().len();
    stand.plane.resume_api_server().unwrap();
    stand.wait_printed(away, &["leadership", "leads=true"]);
    stand.make(&names("new", 5));

    let after = stand.addresses();
    assert_eq!(distinct(&after), 10);
    assert!(before.iter().all(|(name, address)| after.get(name) == Some(address)), "{after:?}");
    stand.assert_nothing_forbidden();
}

#[test]
fn a_version_that_has_expired_is_listed_anew_and_nothing_is_lost() {
    let stand = Stand::new();
    stand.make(&names("old", 10));
    let before = stand.addresses();
    let lists = stand.lists();

    // Without a connection nothing can be waiting for it in a socket.
    stand.plane.kill_api_server().unwrap();
    stand.controller().process().signal(Signal::SIGSTOP).unwrap();
    stand.plane.start_api_server().unwrap();
    stand.delete(&names("old", 5));
    stand.make(&names("new", 10));
    stand.plane.forget_versions().unwrap();
    stand.plane.kill_api_server().unwrap();
    stand.plane.start_api_server().unwrap();
    stand.controller().process().signal(Signal::SIGCONT).unwrap();

    let after = stand.addresses();
    assert_eq!(distinct(&after), 15);
    assert!(before.iter().all(|(name, address)| after.get(name).is_none_or(|now| now == address)), "{after:?}");
    assert!(stand.lists() > lists, "the version had not expired");
    stand.assert_nothing_forbidden();
}
