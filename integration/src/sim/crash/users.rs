//! What users do to Services and pools.

use std::{net::Ipv4Addr, num::NonZeroU16, sync::Arc};

use ferrogate_core::{
    model::{
        Family, ServiceKey,
        pool::{AddressRange, Pool},
        service::{FamilyPolicy, LoadBalancer, Request, Service},
    },
    snapshot::Snapshot,
};
use rand::{Rng, rngs::SmallRng};

use super::api::Api;
use crate::sim::facts;

/// How many names there are; far more than addresses would be dull, far fewer too.
const NAMES: u64 = 7;

/// A pool with too few addresses for all who will come.
pub fn beginning(rng: &mut SmallRng) -> Snapshot {
    let mut facts = facts::cluster(1);
    facts.pools.insert("pool".into(), Arc::new(pool(rng)));
    facts
}

fn pool(rng: &mut SmallRng) -> Pool {
    let first = rng.random_range(1..4);
    let v4 = AddressRange::new(
        Ipv4Addr::new(192, 0, 2, first).into(),
        Ipv4Addr::new(192, 0, 2, first + rng.random_range(1..4)).into(),
    );
    let v6 = AddressRange::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2].into());
    Pool { ranges: v4.into_iter().chain(v6).collect(), ..facts::pool() }
}

/// One thing that a user does; what, in a word.
pub fn act(rng: &mut SmallRng, api: &mut Api) -> String {
    let name = format!("s{}", rng.random_range(0..NAMES));
    let key = ServiceKey::new("default", name.as_str());
    let old = api.now.services.get(&key).cloned();
    let Some(old) = old else {
        let created = i64::try_from(api.history.len()).unwrap_or_default();
        let mut service = facts::service(&name, 80, &[Family::V4], &[]);
        service.created = created;
        wish(rng, &mut service);
        let done = format!("{key} is made");
        put(api, service);
        return done;
    };
    let mut service = (*old).clone();
    let done = match rng.random_range(0..14) {
        0..=3 => {
            api.edit(|now| drop(now.services.remove(&key)));
            return format!("{key} is deleted");
        }
        4 | 5 => {
            let observed = api.now.pools.values().next().map(|pool| pool.observed.clone()).unwrap_or_default();
            let pool = Pool { observed, ..pool(rng) };
            let done = format!("pool has {:?}", pool.ranges);
            api.edit(|now| drop(now.pools.insert("pool".into(), Arc::new(pool))));
            return done;
        }
        6 => {
            api.delete_lease();
            return "the lease is deleted".to_owned();
        }
        7 | 8 if service.load_balancer.is_some() => {
            service.load_balancer = None;
            "is of type LoadBalancer no more"
        }
        7..=10 => {
            wish(rng, &mut service);
            "wishes for something else"
        }
        11 => {
            service.ports[0].port = NonZeroU16::MIN.saturating_add(rng.random_range(0..2));
            "has another port"
        }
        _ => {
            service.generation += 1;
            "is touched"
        }
    };
    put(api, service);
    format!("{key} {done}")
}

fn wish(rng: &mut SmallRng, service: &mut Service) {
    let (families, family_policy) = match rng.random_range(0..6) {
        0 => (vec![Family::V4, Family::V6], FamilyPolicy::PreferDualStack),
        1 => (vec![Family::V4, Family::V6], FamilyPolicy::RequireDualStack),
        _ => (vec![Family::V4], FamilyPolicy::SingleStack),
    };
    let mut request = Request::default();
    if rng.random_ratio(1, 3) {
        request.sharing_key = Some(format!("k{}", rng.random_range(0..2)));
    }
    if rng.random_ratio(1, 5) && families.len() == 1 {
        request.addresses = vec![Ipv4Addr::new(192, 0, 2, rng.random_range(1..6)).into()];
    }
    service.ports[0].port = NonZeroU16::MIN.saturating_add(rng.random_range(0..3));
    service.load_balancer = Some(LoadBalancer { class: None, families, family_policy, request: Ok(request) });
}

fn put(api: &mut Api, mut service: Service) {
    service.version = api.next_version();
    api.edit(|now| drop(now.services.insert(service.key.clone(), Arc::new(service))));
}
