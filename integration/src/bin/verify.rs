//! Every check, one command.
fn main() {}
