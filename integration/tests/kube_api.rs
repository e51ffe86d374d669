//! Our definitions at a real API server: it takes them, fills in defaults, and refuses what they say is wrong.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::LazyLock;

use ferrogate_integration::kube::{ControlPlane, Options};

/// Every test leaves behind only objects of its own.
static PLANE: LazyLock<ControlPlane> = LazyLock::new(|| {
    let plane = ControlPlane::start(Options::default()).unwrap();
    plane.install_definitions().unwrap();
    plane
});

#[test]
fn every_definition_is_accepted_and_served() {
    let names = PLANE.kubectl(["api-resources", "--api-group", "ferrogate.io", "--output", "name"]).unwrap();
    let mut names: Vec<_> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "bfdprofiles.ferrogate.io",
            "bgpadvertisements.ferrogate.io",
            "bgppeers.ferrogate.io",
            "communities.ferrogate.io",
            "configurationstates.ferrogate.io",
            "ipaddresspools.ferrogate.io",
            "l2advertisements.ferrogate.io",
            "servicebgpstatuses.ferrogate.io",
            "servicel2statuses.ferrogate.io",
        ]
    );
}
