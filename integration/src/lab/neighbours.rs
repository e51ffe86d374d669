//! Asking a link who has an address, and counting everyone who says so.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use ferrogate_wire::{
    arp::{self, Arp, Operation},
    ethernet::Mac,
    ndp::{self, Ndp, Solicitation},
};
use pnet::datalink::{self, Channel, Config};

use crate::{lab::topology::Topology, netns::Namespace};

/// How long a question to everyone on the link waits for those who answer late.
const EVERYONE: Duration = Duration::from_millis(200);

/// The one node that answers the client for an address on the link, and its Ethernet address.
///
/// # Errors
/// When nobody answers, several do, or one that is no node.
pub fn one_owner(topology: &Topology, address: IpAddr) -> Result<(usize, Mac)> {
    let claims: BTreeSet<_> = owners(&topology.client, "eth0", address, EVERYONE)?;
    let mut claims = claims.into_iter();
    let mac = claims.next().with_context(|| format!("nobody answers for {address}"))?;
    if let Some(other) = claims.next() {
        bail!("{mac} and {other} both answer for {address}");
    }
    let node = topology.nodes.iter().position(|node| node.mac == mac);
    Ok((node.with_context(|| format!("{mac} answers for {address} and is no node"))?, mac))
}

/// Asks once, and returns every station that says within `patience` that it has the address.
///
/// # Errors
/// When the interface is not there, or has no address of the family to ask from.
pub fn owners(client: &Namespace, interface: &str, address: IpAddr, patience: Duration) -> Result<BTreeSet<Mac>> {
    client.run(|| ask(interface, address, patience))
}

fn ask(interface: &str, address: IpAddr, patience: Duration) -> Result<BTreeSet<Mac>> {
    let interfaces = datalink::interfaces();
    let interface = interfaces.iter().find(|found| found.name == interface).context("no such interface")?;
    let mac = Mac(interface.mac.context("no Ethernet address")?.octets());
    let own = interface.ips.iter().map(|network| network.ip());
    let request = match address {
        IpAddr::V4(target) => {
            let sender = own.filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }).next();
            let sender = sender.context("no IPv4 address")?;
            let request = Arp {
                destination: Mac::BROADCAST,
                source: mac,
                operation: Operation::Request,
                sender_mac: mac,
                sender,
                target_mac: Mac([0; 6]),
                target,
            };
            request.encode().to_vec()
        }
        IpAddr::V6(target) => {
            let source = own.filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }).next();
            let destination = ndp::solicited_node(target);
            let [.., a, b, c] = destination.octets();
            let solicitation = Solicitation {
                destination_mac: Mac([0x33, 0x33, 0xff, a, b, c]),
                source_mac: mac,
                source: source.context("no IPv6 address")?,
                destination,
                target,
                source_link_layer: Some(mac),
            };
            solicitation.encode()
        }
    };
    let config = Config { read_timeout: Some(Duration::from_millis(5)), ..Config::default() };
    let Channel::Ethernet(mut sender, mut receiver) = datalink::channel(interface, config)? else {
        bail!("not an Ethernet channel");
    };
    sender.send_to(&request, None).context("no room to send")??;
    let begun = Instant::now();
    let mut owners = BTreeSet::new();
    while begun.elapsed() < patience {
        match receiver.next() {
            Ok(frame) => owners.extend(claims(frame, address)),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(owners)
}

/// Who claims to have the address, if this frame is such a claim.
fn claims(frame: &[u8], address: IpAddr) -> Option<Mac> {
    match address {
        IpAddr::V4(address) => match arp::decode(frame) {
            Ok(arp) if arp.operation == Operation::Reply && arp.sender == address => Some(arp.sender_mac),
            _ => None,
        },
        IpAddr::V6(address) => match ndp::decode(frame) {
            Ok(Ndp::Advertisement(found)) if found.target == address => found.target_link_layer,
            _ => None,
        },
    }
}
