//! BFDProfile: ranges, and what stands where nothing is said.

use std::{num::NonZeroU8, sync::Arc, time::Duration};

use ferrogate_core::model::bfd_profile::BfdProfile;
use ferrogate_crds::BFDProfile;

use crate::{
    objects::{Fact, Spelling},
    translate::read::Check,
};

/// What FRR uses, and so what users of MetalLB are used to.
const INTERVAL: Duration = Duration::from_millis(300);
const ECHO_INTERVAL: Duration = Duration::from_millis(50);
const DETECT_MULTIPLIER: NonZeroU8 = NonZeroU8::new(3).unwrap();
/// One hop less than the largest there is (RFC 5082).
const MINIMUM_TTL: NonZeroU8 = NonZeroU8::new(254).unwrap();

/// Reads a BFDProfile.
pub fn read(object: BFDProfile, check: &mut Check) -> Option<Fact> {
    let spec = object.spec;
    let mut interval = |field: &str, said: Option<u32>, default: Duration| match said {
        None => default,
        Some(ms @ 10..=60_000) => Duration::from_millis(ms.into()),
        Some(ms) => {
            check.invalid(field, ms, "10 to 60000 milliseconds");
            default
        }
    };
    let receive_interval = interval("spec.receiveInterval", spec.receive_interval, INTERVAL);
    let transmit_interval = interval("spec.transmitInterval", spec.transmit_interval, INTERVAL);
    let echo_interval = interval("spec.echoInterval", spec.echo_interval, ECHO_INTERVAL);
    let mut number = |field: &str, said: Option<u8>, default: NonZeroU8, least: u8, most: u8| match said {
        None => default,
        Some(number) => match NonZeroU8::new(number).filter(|_| (least..=most).contains(&number)) {
            Some(number) => number,
            None => {
                check.invalid(field, number, &format!("{least} to {most}"));
                default
            }
        },
    };
    let detect_multiplier = number("spec.detectMultiplier", spec.detect_multiplier, DETECT_MULTIPLIER, 2, 255);
    let minimum_ttl = number("spec.minimumTtl", spec.minimum_ttl, MINIMUM_TTL, 1, 254);
    if spec.echo_mode {
        let detail = "echo packets are not sent, and sessions run with the ordinary ones alone: the neighbour is missed \
                      after detectMultiplier times the interval; set that as short as it has to be, and remove echoMode";
        check.ignore("spec.echoMode", detail);
    }
    Some(Fact::BfdProfile(Arc::new(BfdProfile {
        key: check.key.clone(),
        read_only: check.spelling == Spelling::Metallb,
        generation: check.generation,
        receive_interval,
        transmit_interval,
        detect_multiplier,
        echo_interval: spec.echo_mode.then_some(echo_interval),
        passive: spec.passive_mode,
        minimum_ttl,
    })))
}
