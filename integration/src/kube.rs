//! A real Kubernetes control plane for tests: etcd, API server and what else is asked for, as ordinary processes on
//! this machine, with certificates and data that are thrown away.
//!
//! ```text
//! tools   integration/kube, a Go module ──► programs in a cache outside of the tree
//! plane   programs ──► processes on one address, a folder, a kubeconfig for whoever is asked for
//! ```
//!
//! What runs there is the product with the manifests and rights of `examples/install`, never an administrator; and
//! the API server's own audit log ([`audit`]) says what was asked for, and what was refused.

pub mod audit;
pub mod certificates;
pub mod clock;
pub mod folder;
pub mod http1;
pub mod install;
pub mod plane;
pub mod process;
pub mod product;
pub mod tools;

pub use plane::{ControlPlane, Options};
