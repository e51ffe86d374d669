//! What a person should know before moving: what MetalLB takes from elsewhere than its objects, and where we do
//! something else than it does.

use ferrogate_core::model::service::{ClassPolicy, DEFAULT_CLASS};
use serde_json::Value;

use super::{Found, Remark, Settings, name_of};

/// Flags that make Ferrogate serve the Services that MetalLB serves, and which these are.
pub fn class(found: &[Found], settings: &Settings) -> (Vec<String>, ClassPolicy) {
    let wanted = workloads(found, settings).find_map(|workload| flag(workload, "lb-class"));
    match (&settings.class, wanted.filter(|class| !class.is_empty())) {
        (Some(class), _) => (Vec::new(), class.clone()),
        (None, Some(class)) => {
            let flags = vec![format!("--load-balancer-class={class}"), "--serve-classless=false".to_owned()];
            (flags, ClassPolicy { class: Some(class), serve_classless: false })
        }
        (None, None) => (Vec::new(), ClassPolicy { class: Some(DEFAULT_CLASS.to_owned()), serve_classless: true }),
    }
}

/// What there is to know. `objects` are the ones of ours that will be written.
pub fn remarks(found: &[Found], settings: &Settings, objects: &[Value]) -> Vec<Remark> {
    let mut remarks = Vec::new();
    for one in found {
        let value = &one.value;
        let (kind, name) = (text(value, "/kind"), text(value, "/metadata/name"));
        let is_home = text(value, "/metadata/namespace") == settings.metallb_namespace;
        let said = |key: &str| value["data"][key].as_str().is_some_and(|text| !text.trim().is_empty());
        match (kind, name) {
            ("ConfigMap", "bgpextras") if is_home && said("extras") => {
                let message = "lines for FRR that MetalLB passes on as they are; Ferrogate has its own BGP and cannot \
                               use them: say the same with fields of BGPPeer and BGPAdvertisement, or on the routers";
                remarks.push(Remark::must(name_of(value), message));
            }
            ("ConfigMap", "metallb-excludel2") if is_home => {
                let message = "Ferrogate's speaker leaves out the same kinds of interfaces; if you have changed the \
                               list, give yours with --exclude-interface";
                remarks.push(Remark::note(name_of(value), message));
            }
            ("FRRConfiguration", _) if text(value, "/metadata/labels/app.kubernetes.io~1managed-by") != "metallb" => {
                let by_metallb = name.starts_with("metallb-") && value["spec"].get("nodeSelector").is_some();
                if !by_metallb {
                    let message = "configures FRR beside MetalLB; Ferrogate does not read it: say the same with BGPPeer \
                                   objects, or keep FRR-K8s for what is not about load balancers";
                    remarks.push(Remark::must(name_of(value), message));
                }
            }
            _ => {}
        }
    }
    for workload in workloads(found, settings) {
        if flag(workload, "ignore-exclude-lb").is_some_and(|said| said != "false") {
            remarks.push(Remark::note(name_of(workload), "runs with --ignore-exclude-lb; give it to our speaker too"));
        }
    }
    let backend = workloads(found, settings).find_map(|workload| variable(workload, "METALLB_BGP_TYPE"));
    for peer in objects.iter().filter(|object| object["kind"] == "BGPPeer") {
        let spec = &peer["spec"];
        let about = name_of(peer);
        if backend.as_deref() == Some("frr-k8s") {
            for field in ["sourceAddress", "localASN"].into_iter().filter(|field| spec.get(*field).is_some()) {
                let message =
                    format!("spec.{field}: MetalLB drops it without a word in its FRR-K8s mode; here it counts");
                remarks.push(Remark::note(&about, message));
            }
        }
        if matches!(backend.as_deref(), Some("native")) && spec["myASN"] == spec["peerASN"] {
            let message = "MetalLB sends LOCAL_PREF 0 where an advertisement sets none; Ferrogate sends the usual 100";
            remarks.push(Remark::note(&about, message));
        }
        if spec["disableMP"] == true {
            remarks.push(Remark::note(&about, "spec.disableMP: has no effect, as with MetalLB; leave it out"));
        }
    }
    for pool in objects.iter().filter(|object| object["kind"] == "IPAddressPool") {
        let allocation = &pool["spec"]["serviceAllocation"];
        let is_empty = |field: &str| allocation[field].as_array().is_none_or(Vec::is_empty);
        if !is_empty("namespaceSelectors") && is_empty("namespaces") {
            let message = "where its namespaceSelectors match no Namespace, MetalLB lets anybody ask for it by name; \
                           here it serves nobody then";
            remarks.push(Remark::note(name_of(pool), message));
        }
    }
    remarks
}

/// MetalLB's own Deployments and DaemonSets.
fn workloads<'a>(found: &'a [Found], settings: &'a Settings) -> impl Iterator<Item = &'a Value> {
    let workloads = found.iter().map(|one| &one.value).filter(|value| {
        matches!(text(value, "/kind"), "Deployment" | "DaemonSet")
            && text(value, "/metadata/namespace") == settings.metallb_namespace
    });
    workloads.filter(|value| containers(value).any(|one| variables(one).any(|(name, _)| name.starts_with("METALLB_"))))
}

fn containers(workload: &Value) -> impl Iterator<Item = &Value> {
    workload.pointer("/spec/template/spec/containers").and_then(Value::as_array).into_iter().flatten()
}

fn variables(container: &Value) -> impl Iterator<Item = (&str, &str)> {
    let all = container["env"].as_array().into_iter().flatten();
    all.map(|one| (one["name"].as_str().unwrap_or_default(), one["value"].as_str().unwrap_or_default()))
}

fn variable(workload: &Value, wanted: &str) -> Option<String> {
    let mut all = containers(workload).flat_map(variables);
    all.find(|(name, _)| *name == wanted).map(|(_, said)| said.to_owned())
}

/// What a flag of a workload says; empty where it stands without a value.
fn flag(workload: &Value, wanted: &str) -> Option<String> {
    let args = containers(workload).flat_map(|one| one["args"].as_array().into_iter().flatten());
    let mut args = args.filter_map(Value::as_str).map(|arg| arg.trim_start_matches('-'));
    args.find_map(|arg| match arg.split_once('=') {
        Some((name, said)) if name == wanted => Some(said.to_owned()),
        None if arg == wanted => Some(String::new()),
        _ => None,
    })
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
