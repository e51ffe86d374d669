//! What no test shows because kernels are built without it, and so is named at the end of a run with its reason.

use anyhow::Result;

use super::Stage;
use crate::netns::{Device, Namespace};

/// Something that depends on how a kernel was built.
struct Feature {
    stage: Stage,
    /// What would be shown.
    claim: &'static str,
    device: Device,
    /// The option by which kernels have it.
    option: &'static str,
}

const FEATURES: &[Feature] = &[
    Feature {
        stage: Stage::Net,
        claim: "layer 2 on a bond (read from recorded messages only)",
        device: Device::Bond,
        option: "CONFIG_BONDING",
    },
    Feature {
        stage: Stage::Net,
        claim: "layer 2 on a VLAN (read from recorded messages only)",
        device: Device::Vlan,
        option: "CONFIG_VLAN_8021Q",
    },
    Feature {
        stage: Stage::Bgp,
        claim: "BGP and BFD by way of a VRF device",
        device: Device::Vrf,
        option: "CONFIG_NET_VRF",
    },
];

/// What a stage does not show, each with the reason.
pub fn not_run(stage: Stage) -> Vec<String> {
    let of_stage = FEATURES.iter().filter(|feature| feature.stage == stage);
    of_stage.map(|feature| note(feature, &makes(feature.device))).collect()
}

fn makes(device: Device) -> Result<bool> {
    Namespace::new("kernel")?.links(async |links| links.makes(device).await)
}

fn note(feature: &Feature, makes: &Result<bool>) -> String {
    let Feature { claim, device, option, .. } = feature;
    match makes {
        Ok(false) => format!("not run: {claim}: this kernel makes no {device:?} interface ({option})"),
        Ok(true) => format!("not run: {claim}: this kernel could, but there is no test of it yet"),
        Err(error) => format!("not run: {claim}: it is not known whether this kernel could ({option}): {error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn n_121_what_a_kernel_lacks_is_named_with_the_reason() {
        let bgp = FEATURES.iter().find(|feature| feature.stage == Stage::Bgp).unwrap();

        assert_eq!(
            note(bgp, &Ok(false)),
            "not run: BGP and BFD by way of a VRF device: this kernel makes no Vrf interface (CONFIG_NET_VRF)"
        );
        assert!(note(bgp, &Ok(true)).ends_with("this kernel could, but there is no test of it yet"));
        assert!(note(bgp, &Err(anyhow!("permission denied"))).ends_with("(CONFIG_NET_VRF): permission denied"));
    }
}
