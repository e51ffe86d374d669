//! The validating webhook at a real API server, reached through its Service as it is shipped: what it refuses and what
//! it lets pass, that its certificate is renewed without a request lost, that nobody fights over `caBundle`, and that
//! nothing depends on it.
//!
//! Everything runs in a network namespace of its own, in which the cluster IP of the Service stands on the loopback: so
//! it leads to the controller without kube-proxy.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use ferrogate_cluster::certificate::{self, Due, Kept, Lifetimes};
use ferrogate_integration::{
    kube::{
        ControlPlane, Options,
        install::{MANIFESTS, NAMESPACE, WEBHOOK},
        product::Ferrogate,
    },
    lab::wait::until,
    netns::Namespace,
    workspace,
};
use k8s_openapi::ByteString;
use serde_json::{Value, json};

/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(90);

struct Stand {
    plane: ControlPlane,
    /// The Service's cluster IP.
    address: String,
    /// The one the Service leads to, and another replica.
    controllers: Vec<Ferrogate>,
    namespace: Namespace,
}

static STAND: LazyLock<Mutex<Stand>> = LazyLock::new(|| Mutex::new(Stand::new()));

/// The stand, for one test at a time.
fn stand() -> MutexGuard<'static, Stand> {
    STAND.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stand {
    fn new() -> Self {
        let namespace = Namespace::new("webhook").unwrap();
        let plane = namespace.run(|| ControlPlane::start(Options::default()).unwrap());
        plane.install().unwrap();
        plane.install_webhook().unwrap();
        let args = ["get", "service", "ferrogate-webhook", "--namespace", NAMESPACE];
        let address = plane.kubectl(args.into_iter().chain(["--output", "jsonpath={.spec.clusterIP}"])).unwrap();
        let ip = address.parse().unwrap();
        namespace.links(async |links| links.add_address("lo", ip, 32).await).unwrap();
        let mut stand = Self { plane, address, controllers: Vec::new(), namespace };
        stand.start_controllers();
        stand
    }

    fn start_controllers(&mut self) {
        for (name, listen) in [("a", format!("{}:443", self.address)), ("b", "127.0.0.1:9443".to_owned())] {
            let mut controller =
                Ferrogate::start(&self.plane, "controller", name, &["--webhook-listen", &listen]).unwrap();
            self.namespace.run(|| controller.wait_ready().unwrap());
            self.controllers.push(controller);
        }
        self.wait(|stand| {
            let kept = stand.kept()?;
            ensure!(!kept.bundle.is_empty() && stand.bundle()? == kept.bundle, "the API server does not know it yet");
            Ok(())
        });
    }

    fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let args = ["get", kind, name, "--namespace", NAMESPACE, "--output", "json"];
        Ok(serde_json::from_str(&self.plane.kubectl(args)?)?)
    }

    /// What the API server trusts.
    fn bundle(&self) -> Result<String> {
        let found = self.get("validatingwebhookconfiguration", "ferrogate")?;
        let bundle = found["webhooks"][0]["clientConfig"]["caBundle"].clone();
        let bundle: ByteString = serde_json::from_value(bundle).context("no bundle")?;
        Ok(String::from_utf8(bundle.0)?)
    }

    /// What the Secret holds.
    fn kept(&self) -> Result<Kept> {
        let data: std::collections::BTreeMap<String, ByteString> =
            serde_json::from_value(self.get("secret", certificate::NAME)?["data"].clone())?;
        Ok(Kept::of(&data.into_iter().map(|(field, bytes)| (field, bytes.0)).collect()))
    }

    fn keep(&self, kept: &Kept) {
        let texts: serde_json::Map<String, Value> = kept
            .data()
            .into_iter()
            .map(|(field, bytes)| (field, Value::from(String::from_utf8(bytes).unwrap())))
            .collect();
        let patch = json!({ "stringData": texts }).to_string();
        let args = ["patch", "secret", certificate::NAME, "--namespace", NAMESPACE, "--type=merge", "--patch", &patch];
        self.plane.kubectl(args).unwrap();
    }

    /// Whether an object is taken, and all that kubectl says.
    fn apply(&self, manifest: &str, more: &[&str]) -> (bool, String) {
        let args: Vec<&str> = ["apply", "--filename", "-"].into_iter().chain(more.iter().copied()).collect();
        let output = self.plane.try_kubectl(&args, manifest).unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn patch_webhook(&self, patch: &str) {
        let args = ["patch", "validatingwebhookconfiguration", "ferrogate", "--type=json", "--patch", patch];
        self.plane.kubectl(args).unwrap();
    }

    fn delete(&self, kind: &str, names: &[&str]) {
        let args = ["delete", kind, "--namespace", NAMESPACE, "--ignore-not-found"];
        self.plane.kubectl(args.into_iter().chain(names.iter().copied())).unwrap();
    }

    fn wait(&self, what: impl Fn(&Self) -> Result<()>) {
        until(LIMIT, || what(self)).unwrap_or_else(|error| {
            let output: Vec<_> = self.controllers.iter().map(Ferrogate::output).collect();
            panic!("{error:#}\n{}", output.join("\n---\n"))
        });
    }

    /// Waits until the controllers have seen an object: nothing else says what they answer by.
    fn wait_accepted(&self, kind: &str, name: &str, status: &str) -> Value {
        let condition = || {
            let found = self.get(kind, name)?;
            let conditions = found["status"]["conditions"].as_array().context("no conditions")?.clone();
            let accepted = conditions.into_iter().find(|condition| condition["type"] == "Accepted");
            accepted.filter(|condition| condition["status"] == status).context("not judged so")
        };
        until(LIMIT, condition).unwrap()
    }
}

fn pool(name: &str, addresses: &str) -> String {
    format!(
        "apiVersion: ferrogate.io/v1beta1\nkind: IPAddressPool\nmetadata: {{ name: {name}, namespace: {NAMESPACE} }}\n\
         spec: {{ addresses: [{addresses}] }}\n"
    )
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

#[test]
fn m_008_kubectl_is_told_of_both_ranges_when_pools_would_overlap() {
    let stand = stand();
    assert!(stand.apply(&pool("first", "192.0.2.0/25"), &[]).0);
    stand.wait_accepted("ipaddresspool", "first", "True");

    for more in [&[][..], &["--dry-run=server"]] {
        let (taken, said) = stand.apply(&pool("second", "192.0.2.64/26"), more);

        assert!(!taken, "{said}");
        assert!(said.contains("192.0.2.64-192.0.2.127") && said.contains("192.0.2.0-192.0.2.127"), "{said}");
        assert!(said.contains("give each address to one pool only"), "{said}");
    }
    let (taken, said) = stand.apply(&pool("second", "192.0.2.128/25"), &[]);
    assert!(taken, "{said}");
    stand.delete("ipaddresspool", &["first", "second"]);
}

#[test]
fn m_011_kubectl_is_told_that_nobody_reads_another_namespace() {
    let stand = stand();

    let (taken, said) = stand.apply(&pool("other", "203.0.113.0/24").replace(NAMESPACE, "default"), &[]);

    assert!(!taken && said.contains("metadata.namespace"), "{said}");
}

#[test]
fn what_names_something_that_is_not_there_is_taken_with_a_warning() {
    let stand = stand();

    let (taken, said) = stand.apply(
        &format!(
            "apiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: {{ name: all, namespace: {NAMESPACE} }}\n\
             spec: {{ ipAddressPools: [nowhere] }}\n"
        ),
        &[],
    );

    assert!(taken, "{said}");
    assert!(said.contains("Warning: ") && said.contains("\"nowhere\" does not exist"), "{said}");
    stand.delete("l2advertisement", &["all"]);
}

#[test]
fn ca_bundle_stays_whoever_applies_the_manifest_and_comes_back_when_it_is_wiped() {
    let stand = stand();
    let before = stand.bundle().unwrap();
    let manifest = workspace::root().join(MANIFESTS).join(WEBHOOK).display().to_string();

    let gitops = ["apply", "--server-side", "--field-manager=gitops", "--force-conflicts", "--filename", &manifest];
    stand.plane.kubectl(gitops).unwrap();
    assert_eq!(stand.bundle().unwrap(), before);
    stand.plane.kubectl(["apply", "--filename", &manifest]).unwrap();
    assert_eq!(stand.bundle().unwrap(), before);

    stand.patch_webhook(r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]"#);
    stand.wait(|stand| {
        ensure!(stand.bundle()? == before, "another bundle");
        Ok(())
    });
    assert_eq!(stand.plane.forbidden(NAMESPACE).unwrap(), []);
}

#[test]
fn the_certificate_is_renewed_under_load_without_a_request_refused() {
    let stand = stand();
    let (names, lifetimes) = (certificate::names(NAMESPACE), Lifetimes::default());
    let propagation = i64::try_from(lifetimes.propagation.as_secs()).unwrap();
    // As it would stand after ten days, and one new authority that may sign in a moment.
    let old = certificate::renewed(now() - 864_000, Due::Everything, &Kept::default(), &names, &lifetimes).unwrap();
    stand.keep(&old);
    stand.wait(|stand| {
        ensure!(stand.bundle()? == old.bundle, "the old authority is not trusted yet");
        Ok(())
    });
    stand.patch_webhook(r#"[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}]"#);
    let joined = certificate::renewed(now() - propagation + 15, Due::Authority, &old, &names, &lifetimes).unwrap();
    let done = AtomicBool::new(false);

    let (asked, refused) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let (mut asked, mut refused) = (0, Vec::new());
            while !done.load(Ordering::Relaxed) {
                let (taken, said) = stand.apply(&pool("load", "203.0.113.0/24"), &["--dry-run=server"]);
                asked += 1;
                refused.extend((!taken).then_some(said));
            }
            (asked, refused)
        });
        stand.keep(&joined);
        let is_renewed = || {
            let kept = stand.kept()?;
            ensure!(kept.leaf != old.leaf, "still the old leaf");
            ensure!(stand.bundle()? == joined.bundle, "another bundle");
            anyhow::Ok(kept)
        };
        let renewed = until(LIMIT, is_renewed);
        done.store(true, Ordering::Relaxed);
        assert!(renewed.is_ok(), "{renewed:?}");
        load.join().unwrap()
    });

    stand.patch_webhook(r#"[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]"#);
    assert_eq!(refused, Vec::<String>::new());
    assert!(asked > 5, "{asked}");
}

#[test]
fn m_041_the_controller_reports_on_the_configuration_and_a_report_that_is_deleted_comes_back() {
    let stand = stand();
    let result = |wanted: &str| {
        stand.wait(|stand| {
            let found = stand.get("configurationstate", "controller")?;
            ensure!(found["status"]["result"] == wanted, "{}", found["status"]);
            Ok(())
        });
    };
    result("Valid");
    let found = stand.get("configurationstate", "controller").unwrap();
    assert_eq!(found["metadata"]["labels"]["ferrogate.io/component-type"], "controller");

    stand.delete("configurationstate", &["controller"]);
    result("Valid");
    assert_eq!(stand.plane.forbidden(NAMESPACE).unwrap(), []);
}

#[test]
fn without_a_webhook_everything_is_taken_and_what_is_wrong_is_left_out_with_a_condition() {
    let mut stand = stand();
    assert!(stand.apply(&pool("early", "198.51.100.0/25"), &[]).0);
    stand.wait_accepted("ipaddresspool", "early", "True");
    stand.controllers.clear();

    let (taken, said) = stand.apply(&pool("late", "198.51.100.0/26"), &[]);
    assert!(taken, "{said}");

    stand.start_controllers();
    let condition = stand.wait_accepted("ipaddresspool", "late", "False");
    assert_eq!(condition["reason"], "OverlappingPools");
    stand.wait(|stand| {
        let status = stand.get("configurationstate", "controller")?["status"].clone();
        ensure!(status["result"] == "Invalid", "{status}");
        let summary = status["errorSummary"].as_str().unwrap_or_default();
        ensure!(summary.starts_with("configuration error: "), "{summary}");
        Ok(())
    });
    stand.delete("ipaddresspool", &["late", "early"]);
    stand.wait(|stand| {
        let status = stand.get("configurationstate", "controller")?["status"].clone();
        ensure!(status["result"] == "Valid", "{status}");
        Ok(())
    });
    assert_eq!(stand.plane.forbidden(NAMESPACE).unwrap(), []);
}
