//! This workspace as seen by its own proof: where it lies, how cargo is asked, and the binary that ships.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand};

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("integration lies in the workspace")
}

/// A command line that can be built, shown and run; it always runs in the root of the workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Command {
    /// A program by name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { program: program.as_ref().to_owned(), args: Vec::new(), env: Vec::new() }
    }

    /// `cargo` with these arguments.
    pub fn cargo<I: IntoIterator<Item: AsRef<OsStr>>>(args: I) -> Self {
        Self::new("cargo").args(args)
    }

    /// The same with the least priority there is.
    pub fn nice(self) -> Self {
        let args = ["-n".into(), "19".into(), self.program].into_iter().chain(self.args).collect();
        Self { program: "nice".into(), args, env: self.env }
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The same for the standard library, ready to spawn.
    pub fn to_std(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args).current_dir(root());
        // What `cargo run` and `cargo test` add to the environment would make an inner cargo build things anew.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_left_by_cargo(name)) {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, value) in &self.env {
            write!(f, "{}={} ", name.to_string_lossy(), value.to_string_lossy())?;
        }
        f.write_str(&self.program.to_string_lossy())?;
        for arg in &self.args {
            let arg = arg.to_string_lossy();
            if arg.contains(' ') {
                write!(f, " '{arg}'")?;
            } else {
                write!(f, " {arg}")?;
            }
        }
        Ok(())
    }
}

fn is_left_by_cargo(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let exact = ["CARGO", "CARGO_CRATE_NAME", "CARGO_BIN_NAME", "CARGO_PRIMARY_PACKAGE", "LD_LIBRARY_PATH", "OUT_DIR"];
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_EXE_", "CARGO_FEATURE_"];
    exact.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// What cargo knows of the members of this workspace; dependencies are left out.
///
/// # Errors
/// When cargo cannot be run or does not understand the manifests.
pub fn members() -> Result<Metadata> {
    MetadataCommand::new().current_dir(root()).no_deps().exec().context("asking cargo about the workspace")
}

/// The platform of this machine, as rustc spells it.
///
/// # Errors
/// When rustc cannot be run.
pub fn host() -> Result<String> {
    let output = Command::new("rustc").args(["-vV"]).to_std().output().context("running rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned).context("rustc does not name its host")
}

/// How to build the binary that ships, and where it will lie: optimised, and linked statically.
///
/// The platform is named even though it is this one, because only then do the flags stay away from build scripts and
/// procedural macros, which cannot be static.
///
/// # Errors
/// When cargo or rustc cannot be asked where things are.
pub fn shipping() -> Result<(Command, PathBuf)> {
    let host = host()?;
    let flags = format!(r#"target.{host}.rustflags=["-C", "target-feature=+crt-static"]"#);
    let command = Command::cargo(["build", "--release", "--locked", "--package", "ferrogate-cli", "--target", &host])
        .args(["--config", &flags]);
    let binary = members()?.target_directory.join(&host).join("release").join("ferrogate");
    Ok((command, binary.into_std_path_buf()))
}

/// The variable that names a `ferrogate` that stands already, for trying a test on a build of another profile.
pub const BINARY: &str = "FERROGATE_BINARY";

/// Builds the binary that ships from this tree, showing cargo's progress, and says where it lies. Builds nothing where
/// [`BINARY`] names one.
///
/// # Errors
/// When it does not build.
pub fn ship() -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os(BINARY) {
        return Ok(binary.into());
    }
    let (command, binary) = shipping()?;
    build(&command)?;
    Ok(binary)
}

/// How to build the same binary for people who work on it, and where it will lie: linked dynamically, so that a test can
/// put something between it and the system.
///
/// # Errors
/// When cargo cannot be asked where things are.
pub fn developing() -> Result<(Command, PathBuf)> {
    // With the whole workspace chosen it shares what tests are built of.
    let command = Command::cargo(["build", "--locked", "--workspace", "--bin", "ferrogate"]);
    let binary = members()?.target_directory.join("debug").join("ferrogate");
    Ok((command, binary.into_std_path_buf()))
}

/// Builds the binary of [`developing`], showing cargo's progress, and says where it lies.
///
/// # Errors
/// When it does not build.
pub fn debug() -> Result<PathBuf> {
    let (command, binary) = developing()?;
    build(&command)?;
    Ok(binary)
}

fn build(command: &Command) -> Result<()> {
    let status = command.to_std().status().with_context(|| format!("running {command}"))?;
    ensure!(status.success(), "{command}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let command = Command::cargo(["test", "--config", "a b"]).env("SEEDS", "3");

        assert_eq!(command.to_string(), "SEEDS=3 cargo test --config 'a b'");
    }

    #[test]
    fn a_nice_command_is_the_same_and_goes_last() {
        let command = Command::cargo(["build"]).env("SEEDS", "3").nice();

        assert_eq!(command.to_string(), "SEEDS=3 nice -n 19 cargo build");
    }

    #[test]
    fn an_inner_cargo_does_not_see_what_the_outer_one_set() {
        assert!(is_left_by_cargo(OsStr::new("CARGO_PKG_NAME")));
        assert!(!is_left_by_cargo(OsStr::new("CARGO_HOME")));
        assert!(!is_left_by_cargo(OsStr::new("CARGO_TARGET_DIR")));
    }
}
