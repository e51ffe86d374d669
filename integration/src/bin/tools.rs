//! Builds the Go programs that tests stand on, where they are not built yet, and prints the folder of each module:
//! `cargo run --package ferrogate-integration --bin tools`.

use anyhow::Result;
use ferrogate_integration::kube::tools::KUBERNETES;

fn main() -> Result<()> {
    println!("{}", KUBERNETES.build()?.folder().display());
    Ok(())
}
