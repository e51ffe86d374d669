//! Pods that cannot run: the kubelet says why, in the words that users know.

use anyhow::{Context, ensure};

use super::{
    scenes::{APPS, LIMIT, Scene},
    stand::trouble,
};
use crate::lab::wait::until;

/// What is wrong with a pod, its specification, and what its status must say.
const TROUBLES: &[(&str, &str, &[&str])] = &[
    (
        "an image that nobody has",
        r#"{"containers": [{"name": "c", "image": "registry.example/unknown:v1"}]}"#,
        &["ErrImagePull", "ImagePullBackOff"],
    ),
    (
        "a volume of a Secret that is not there",
        r#"{"containers": [{"name": "c", "image": "backend", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "nowhere"}}]}"#,
        &["FailedMount"],
    ),
    (
        "a program that ends at once",
        r#"{"containers": [{"name": "c", "image": "backend", "args": ["--nonsense"]}]}"#,
        &["CrashLoopBackOff"],
    ),
    (
        "a command that is not in the image",
        r#"{"containers": [{"name": "c", "image": "backend", "command": ["/bin/sh"]}]}"#,
        &["CreateContainerError"],
    ),
];

/// Each says so, and can be deleted.
pub fn are_told(scene: &mut Scene<'_>) -> Option<()> {
    for (number, (what, spec, reasons)) in TROUBLES.iter().enumerate() {
        scene.check(&format!("a pod with {what} says so, and goes when it is deleted"), |cluster| {
            let name = format!("trouble-{number}");
            let metadata = format!(r#"{{"name": "{name}", "labels": {{"app": "{name}"}}}}"#);
            cluster
                .plane
                .apply(&format!(r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {metadata}, "spec": {spec}}}"#))?;
            let text = until(LIMIT, || {
                let pods = cluster.pods(APPS, &format!("app={name}"))?;
                let text = pods.first().and_then(trouble).context("no trouble yet")?;
                ensure!(reasons.iter().any(|reason| text.contains(reason)), "{text}");
                Ok(text)
            })?;
            cluster.plane.kubectl(["delete", "pod", &name, "--timeout=30s"])?;
            Ok(((), text))
        });
    }
    Some(())
}
