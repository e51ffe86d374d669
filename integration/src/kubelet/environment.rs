//! The environment of a container: what its pod writes, what the pod is, and where the API server is.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;

/// Where programs are looked for, as in most images.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a pod is at the moment it starts.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Its first address.
    pub pod_ip: String,
    /// All of them.
    pub pod_ips: Vec<String>,
    /// The first address of its node.
    pub host_ip: String,
    /// All of them.
    pub host_ips: Vec<String>,
}

/// Values of Secrets and ConfigMaps by the object's kind and name, and the key.
pub type Sources = BTreeMap<(&'static str, String), BTreeMap<String, String>>;

/// The environment before the container's own: where the API server is, as every pod is told.
pub fn first(hostname: &str, api_server: (&str, u16)) -> Vec<(String, String)> {
    let (host, port) = api_server;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![
        pair("PATH", PATH),
        pair("HOSTNAME", hostname),
        pair("HOME", "/"),
        pair("KUBERNETES_SERVICE_HOST", host),
        pair("KUBERNETES_SERVICE_PORT", &port.to_string()),
        pair("KUBERNETES_SERVICE_PORT_HTTPS", &port.to_string()),
    ]
}

/// Adds a container's own variables, which may refer to those before them.
///
/// # Errors
/// When one cannot be known; the text says which.
pub fn add(
    environment: &mut Vec<(String, String)>,
    container: &core::Container,
    pod: &core::Pod,
    facts: &Facts,
    sources: &Sources,
) -> Result<(), String> {
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let named = [
            from.config_map_ref.as_ref().map(|map| ("ConfigMap", &map.name, map.optional)),
            from.secret_ref.as_ref().map(|secret| ("Secret", &secret.name, secret.optional)),
        ];
        for (kind, name, optional) in named.into_iter().flatten() {
            match sources.get(&(kind, name.clone())) {
                Some(values) => {
                    environment.extend(values.iter().map(|(key, value)| (format!("{prefix}{key}"), value.clone())));
                }
                None if optional == Some(true) => {}
                None => return Err(format!("{kind} {name:?} not found")),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, environment)),
            (None, None) => Some(String::new()),
            (None, Some(from)) => {
                value_from(from, pod, facts, sources).map_err(|error| format!("variable {}: {error}", variable.name))?
            }
        };
        environment.extend(value.map(|value| (variable.name.clone(), value)));
    }
    Ok(())
}

fn value_from(
    from: &core::EnvVarSource,
    pod: &core::Pod,
    facts: &Facts,
    sources: &Sources,
) -> Result<Option<String>, String> {
    let of_key = |kind, name: &String, key: &str, optional: Option<bool>| match sources
        .get(&(kind, name.clone()))
        .and_then(|values| values.get(key))
    {
        Some(value) => Ok(Some(value.clone())),
        None if optional == Some(true) => Ok(None),
        None => Err(format!("{kind} {name:?} with key {key:?} not found")),
    };
    match (&from.field_ref, &from.config_map_key_ref, &from.secret_key_ref) {
        (Some(field), _, _) => field_value(&field.field_path, pod, facts).map(Some),
        (_, Some(map), _) => of_key("ConfigMap", &map.name, &map.key, map.optional),
        (_, _, Some(secret)) => of_key("Secret", &secret.name, &secret.key, secret.optional),
        _ => Err("only fields, ConfigMaps and Secrets give values here".to_owned()),
    }
}

/// What a field of a pod says, by its path.
///
/// # Errors
/// When it is none of those a pod may be told about.
pub fn field_value(path: &str, pod: &core::Pod, facts: &Facts) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let optional = |value: Option<&String>| Ok(value.cloned().unwrap_or_default());
    match path {
        "metadata.name" => optional(pod.metadata.name.as_ref()),
        "metadata.namespace" => optional(pod.metadata.namespace.as_ref()),
        "metadata.uid" => optional(pod.metadata.uid.as_ref()),
        "spec.nodeName" => optional(spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => optional(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.podIP" => Ok(facts.pod_ip.clone()),
        "status.podIPs" => Ok(facts.pod_ips.join(",")),
        "status.hostIP" => Ok(facts.host_ip.clone()),
        "status.hostIPs" => Ok(facts.host_ips.join(",")),
        _ => {
            let of = |map: &Option<BTreeMap<String, String>>, key: &str| {
                map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
            };
            if let Some(key) = path.strip_prefix("metadata.labels['").and_then(|rest| rest.strip_suffix("']")) {
                return Ok(of(&pod.metadata.labels, key));
            }
            if let Some(key) = path.strip_prefix("metadata.annotations['").and_then(|rest| rest.strip_suffix("']")) {
                return Ok(of(&pod.metadata.annotations, key));
            }
            Err(format!("field {path:?} is not known"))
        }
    }
}

/// Replaces `$(NAME)` by the value of that variable; `$$` is a dollar sign, and a name nobody knows stays as it is.
pub fn expand(text: &str, environment: &[(String, String)]) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let reference = after.strip_prefix('(').and_then(|after| after.split_once(')'));
        let known = reference.and_then(|(name, after)| {
            // The last one of a name counts, as it will for the program.
            let found = environment.iter().rev().find(|(known, _)| known == name);
            found.map(|(_, value)| (value, after))
        });
        match known {
            Some((value, after)) => {
                expanded.push_str(value);
                rest = after;
            }
            None => {
                expanded.push('$');
                rest = after;
            }
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Vec<(String, String)> {
        vec![("A".to_owned(), "one".to_owned()), ("A".to_owned(), "two".to_owned())]
    }

    #[test]
    fn references_are_replaced_and_everything_else_stays() {
        assert_eq!(expand("x=$(A)/$(A)", &environment()), "x=two/two");
        assert_eq!(expand("$$(A) $(B) $A $", &environment()), "$(A) $(B) $A $");
        assert_eq!(expand("$(A", &environment()), "$(A");
    }

    #[test]
    fn a_container_is_told_what_its_pod_is() {
        let container: core::Container = serde_json::from_value(serde_json::json!({
            "name": "c",
            "env": [
                { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                { "name": "WHERE", "value": "$(NODE)/$(POD)" },
                { "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } },
                { "name": "NONE", "valueFrom": { "configMapKeyRef": { "name": "m", "key": "k", "optional": true } } },
            ],
        }))
        .unwrap();
        let pod: core::Pod = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "p" }, "spec": { "nodeName": "node-1", "containers": [] },
        }))
        .unwrap();
        let sources = Sources::from([(("Secret", "s".to_owned()), BTreeMap::from([("k".to_owned(), "v".to_owned())]))]);
        let mut environment = vec![("POD".to_owned(), "p".to_owned())];

        add(&mut environment, &container, &pod, &Facts::default(), &sources).unwrap();

        let pairs: Vec<_> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(pairs, ["POD=p", "NODE=node-1", "WHERE=node-1/p", "KEY=v"]);
    }

    #[test]
    fn a_missing_key_is_named() {
        let from = core::EnvVarSource {
            secret_key_ref: Some(core::SecretKeySelector { name: "s".into(), key: "k".into(), optional: None }),
            ..Default::default()
        };

        let refused = value_from(&from, &core::Pod::default(), &Facts::default(), &Sources::new());

        assert_eq!(refused, Err("Secret \"s\" with key \"k\" not found".to_owned()));
    }
}
