//! The lab with a real Kubernetes in it: `cargo lab -- --kubernetes`.
//!
//! ```text
//!          ┌──────────────────── switch ─────────────────────┐   192.0.2.0/24, 2001:db8::/64
//!        plane            node-1 … node-3                  client
//!   etcd, API server,   kubelet, kube-proxy (nftables),
//!   controllers,        speaker and proxy on the node,
//!   scheduler           pods in namespaces of their own
//! ```
//!
//! [`Cluster`] is the stand; [`scenes`] is what is shown on it, and says how to show more.

pub mod admission;
pub mod entry;
pub mod moves;
pub mod rights;
pub mod scenes;
pub mod stand;
pub mod troubles;

pub use stand::Cluster;
