//! The lab: Ferrogate as it ships, on a switch, three nodes and a client made of network namespaces.
//!
//! ```text
//!              ┌────────────── switch (bridge) ──────────────┐  192.0.2.0/24, 2001:db8::/64
//!              │ eth0            │ eth0          │ eth0      │ eth0
//!            node-1            node-2          node-3      client
//!              │ cni0            │ cni0          │ cni0
//!          pod    pod        pod    pod      pod    pod       198.51.100.16·N/28, 2001:db8:N::/64
//! ```
//!
//! Two processes make it. The outer one builds the product, leaves the machine's namespaces and starts the inner one
//! as process 1 of a process namespace; whatever way either of them ends, the kernel ends everything below, and with
//! the last process go the namespaces. Files lie in one temporary folder that both remove.

pub mod backend;
pub mod bgp;
pub mod cost;
pub mod event;
pub mod kubernetes;
pub mod layer2;
pub mod neighbours;
pub mod probe;
pub mod product;
pub mod report;
pub mod row;
pub mod scenario;
pub mod standalone;
pub mod topology;
pub mod wait;
