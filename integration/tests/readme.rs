//! The commands in our READMEs, run as they stand there.

use ferrogate_integration::{readme, workspace};

/// It runs this test, so it cannot be run by it.
fn is_verify(command: &str) -> bool {
    command.starts_with("cargo verify")
}

#[test]
fn the_commands_of_the_readmes_do_what_is_written_there() {
    let ferrogate = workspace::ship().unwrap();

    for file in ["README.md", "examples/quickstart/README.md", "docs/migrate-from-metallb.md"] {
        readme::run(&workspace::root().join(file), &ferrogate, is_verify).unwrap();
    }
}
