//! Ferrogate runs with the rights that its manifests give it, and with no others.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::scenes::Scene;
use crate::{kube::install::NAMESPACE, lab::topology::NODES};

/// What the API server refused, and what the kernel would refuse.
pub fn as_shipped(scene: &mut Scene<'_>) -> Option<()> {
    scene.check("no request was refused for want of a right", |cluster| {
        let asked = cluster.plane.asked()?.len();
        let forbidden = cluster.plane.forbidden(NAMESPACE)?;
        ensure!(forbidden.is_empty(), "{forbidden:?}");
        Ok(((), format!("{asked} requests of service accounts")))
    })?;
    scene.check("the proxies have no capability at all", |_| {
        let proxies = processes("proxy")?;
        ensure!(proxies.len() == usize::from(NODES), "{} proxies run", proxies.len());
        for proxy in &proxies {
            for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                let bits = field(proxy, set)?;
                ensure!(bits.trim_start_matches('0').is_empty(), "{set} is {bits}");
            }
        }
        Ok(((), format!("{} processes of user {}", proxies.len(), field(&proxies[0], "Uid")?)))
    })
}

/// What the kernel says of every process that is a role of Ferrogate.
fn processes(role: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        // A process may end while it is looked at.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let mut words = line.split(|byte| *byte == 0);
        if words.next() == Some(b"/ferrogate") && words.any(|word| word == role.as_bytes()) {
            found.extend(fs::read_to_string(entry.path().join("status")));
        }
    }
    Ok(found)
}

fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("the kernel does not say {name}"))
}
