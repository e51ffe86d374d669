//! Where a pod's processes are on the network: in a namespace of their own with a pod address of each family, or on
//! the node.
//!
//! ```text
//!        pod                           node
//!   eth0 ADDRESS/32 ─────────── veth… GATEWAY/32      a route to ADDRESS by veth…
//!   default by GATEWAY
//! ```
//!
//! Pods of one node meet by routing, not on a bridge, so that an answer passes what translated its question.

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};

use crate::{
    lab::topology::{MAX_PODS, pod_address, pod_address_v6},
    netns::Namespace,
};

/// The addresses of a node's pods. The one used longest ago is given next, so that what the network remembers of a pod
/// does not reach another.
#[derive(Debug)]
pub struct Addresses {
    node: u8,
    // Pods come and go on threads that may block; each holds it for an instant.
    free: Mutex<Vec<u8>>,
}

impl Addresses {
    /// All of a node's, none in use.
    pub fn new(node: u8) -> Self {
        Self { node, free: Mutex::new((1..=MAX_PODS).rev().collect()) }
    }

    fn take(&self) -> Option<u8> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give_back(&self, number: u8) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).insert(0, number);
    }
}

/// The place of a pod on the network.
#[derive(Debug)]
pub struct Place {
    namespace: Namespace,
    addresses: Vec<IpAddr>,
    own: Option<(u8, String)>,
}

impl Place {
    /// On the node, from one of whose threads this is called.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn on_node(addresses: Vec<IpAddr>) -> Result<Self> {
        Ok(Self { namespace: Namespace::here("node")?, addresses, own: None })
    }

    /// In a namespace of its own, with a cable to the node, from one of whose threads this is called.
    ///
    /// # Errors
    /// When all addresses are in use, or the kernel refuses.
    pub fn of_its_own(pool: &Addresses, pod: &str, cable: &str) -> Result<Self> {
        let number = pool.take().with_context(|| format!("all {MAX_PODS} pod addresses of the node are in use"))?;
        let addresses: [IpAddr; 2] = [pod_address(pool.node, number).into(), pod_address_v6(pool.node, number).into()];
        let connected = connect(pool.node, pod, cable, &addresses);
        if connected.is_err() {
            pool.give_back(number);
        }
        Ok(Self { namespace: connected?, addresses: addresses.to_vec(), own: Some((number, cable.to_owned())) })
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// A descriptor of its namespace, to hand to a process.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.namespace.try_clone_descriptor()
    }

    /// Unplugs it: nothing reaches the pod from here on, and its addresses may be given again.
    ///
    /// # Errors
    /// When the kernel refuses; its addresses are not given again then.
    pub fn leave(self, pool: &Addresses) -> Result<()> {
        let Some((number, cable)) = self.own else { return Ok(()) };
        Namespace::here("node")?.links(async |links| links.remove(&cable).await)?;
        pool.give_back(number);
        Ok(())
    }
}

fn connect(node: u8, pod: &str, cable: &str, addresses: &[IpAddr; 2]) -> Result<Namespace> {
    let inside = Namespace::new(pod)?;
    // Any user may listen on any port of the pod, as with every container runtime of today.
    inside.set("ipv4/ip_unprivileged_port_start", "0")?;
    let gateways: [IpAddr; 2] = [pod_address(node, 0).into(), pod_address_v6(node, 0).into()];
    let outside = Namespace::here("node")?;
    outside.links(async |links| {
        links.add_pair(cable, "eth0", &inside).await?;
        for (address, gateway) in addresses.iter().zip(gateways) {
            links.add_address(cable, gateway, width(gateway)).await?;
            links.add_link_route(*address, width(*address), cable).await?;
        }
        Ok(())
    })?;
    inside.links(async |links| {
        links.up("eth0").await?;
        for (address, gateway) in addresses.iter().zip(gateways) {
            links.add_address("eth0", *address, width(*address)).await?;
            links.add_link_route(gateway, width(gateway), "eth0").await?;
            let any = if gateway.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            links.add_route(any, 0, gateway).await?;
        }
        Ok(())
    })?;
    Ok(inside)
}

/// The prefix that is one address.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_address_that_was_given_back_waits_until_all_others_were_given() {
        let pool = Addresses::new(1);
        let first = pool.take().unwrap();
        pool.give_back(first);

        let given: Vec<_> = std::iter::from_fn(|| pool.take()).collect();

        assert_eq!(given.last(), Some(&first));
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), usize::from(MAX_PODS));
    }
}
