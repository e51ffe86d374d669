//! The validating webhook, asked by the API server at the controllers' pods.

use anyhow::{Result, ensure};

use super::{
    scenes::{LIMIT, Scene},
    stand::Cluster,
};
use crate::lab::wait::until;

/// A pool within the one that the lab has.
const OVERLAP: &str = r#"{"apiVersion": "ferrogate.io/v1beta1", "kind": "IPAddressPool",
    "metadata": {"name": "overlap", "namespace": "ferrogate-system"}, "spec": {"addresses": ["192.0.2.245/32"]}}"#;

/// A mistake that only two objects together show is refused at the door.
pub fn refuses(scene: &mut Scene<'_>) -> Option<()> {
    scene.check("the webhook refuses a pool that overlaps another", |cluster| {
        // Every change is taken until the API server has been told whom to trust.
        Ok(((), until(LIMIT, || refused(cluster))?))
    })
}

fn refused(cluster: &Cluster) -> Result<String> {
    let output = cluster.plane.try_kubectl(&["apply", "--dry-run=server", "--filename", "-"], OVERLAP)?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(!output.status.success(), "it was taken");
    ensure!(said.contains("denied the request"), "{said}");
    Ok(said)
}
