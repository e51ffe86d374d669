//! Builds the Go programs that tests stand on, where they are not built yet, and prints the folder of each module:
//! `cargo run --package ferrogate-integration --bin tools`.

use anyhow::Result;
use ferrogate_integration::kube::tools::{KUBERNETES, METALLB};

fn main() -> Result<()> {
    for module in [KUBERNETES, METALLB] {
        println!("{}", module.build()?.folder().display());
    }
    Ok(())
}
