//! Go programs that tests stand on, built once and kept outside of the tree.
//!
//! The list of programs is the `tool` lines of a `go.mod`; what was built lies in a folder named after everything that
//! decides about it, so that two trees that agree share it and a change of one version builds anew.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::workspace::{self, Command};

/// Kubernetes itself: `etcd`, `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`, `kube-proxy`, `kubectl`.
pub const KUBERNETES: Module = Module {
    folder: "integration/kube",
    // Without it every component says v0.0.0, and clients decide by what they are told.
    stamps: &[("k8s.io/component-base/version.gitVersion", "k8s.io/kubernetes")],
    // The package of etcd's program is called so.
    renamed: &[("server", "etcd")],
};

/// MetalLB: `controller` and `speaker`.
pub const METALLB: Module = Module { folder: "integration/metallb", stamps: &[], renamed: &[] };

/// A Go module whose `tool` lines name programs.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Where its `go.mod` lies, from the root of the workspace.
    pub folder: &'static str,
    /// Variables that are set to the version in which a module is used: `(package.variable, module)`.
    pub stamps: &'static [(&'static str, &'static str)],
    /// Programs that go by another name than Go gives them: `(Go's, ours)`.
    pub renamed: &'static [(&'static str, &'static str)],
}

/// Programs that are there.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The folder that holds them and nothing else.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the program of this name lies.
    ///
    /// # Errors
    /// When the module has none of that name.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        ensure!(path.is_file(), "{} has no program {name}", self.folder.display());
        Ok(path)
    }
}

impl Module {
    /// Builds its programs, or finds them built. Whoever comes while another builds waits for it.
    ///
    /// # Errors
    /// When there is no Go, or it cannot build them.
    pub fn build(&self) -> Result<Programs> {
        let cache = cache()?;
        fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
        let flags = format!("-s -w {}", self.stamps()?.join(" "));
        let name = self.folder.rsplit('/').next().unwrap_or(self.folder);
        let folder = cache.join(format!("{name}-{}", self.digest(&flags)?));
        if !folder.is_dir() {
            let lock =
                File::options().create(true).truncate(false).write(true).open(cache.join(format!("{name}.lock")));
            let lock = lock.context("opening a lock")?;
            lock.lock().context("waiting for another build")?;
            if !folder.is_dir() {
                self.build_into(&folder, &cache, &flags)?;
            }
        }
        Ok(Programs { folder })
    }

    fn build_into(&self, folder: &Path, cache: &Path, flags: &str) -> Result<()> {
        let begun = Instant::now();
        eprintln!("building the programs of {} into {}: this once, a few minutes", self.folder, folder.display());
        let half = tempfile::Builder::new().prefix("half-").tempdir_in(cache).context("making a folder to build in")?;
        // The separator at the end tells Go that it is a folder, which must exist.
        let output = format!("{}/", half.path().join("bin").display());
        fs::create_dir(&output).with_context(|| format!("making {output}"))?;
        let command = self.go(&["build", "-buildvcs=false", "-ldflags", flags, "-o", &output, "tool"]);
        let built = command.to_std().output().with_context(|| format!("running {command}"))?;
        ensure!(built.status.success(), "{command}: {}", String::from_utf8_lossy(&built.stderr));
        for (theirs, ours) in self.renamed {
            let (from, to) = (Path::new(&output).join(theirs), Path::new(&output).join(ours));
            fs::rename(&from, &to).with_context(|| format!("renaming {} to {ours}", from.display()))?;
        }
        fs::rename(&output, folder).with_context(|| format!("moving the programs to {}", folder.display()))?;
        eprintln!("built the programs of {} in {:.0} s", self.folder, begun.elapsed().as_secs_f64());
        Ok(())
    }

    fn go(&self, args: &[&str]) -> Command {
        let folder = workspace::root().join(self.folder);
        // Some distributions forbid Go to fetch the version that a module asks for, unless it is asked to.
        Command::new("go").args([Path::new("-C"), &folder]).args(args).env("GOTOOLCHAIN", "auto")
    }

    fn ask(&self, args: &[&str]) -> Result<String> {
        let command = self.go(args);
        let output = command.to_std().output().with_context(|| format!("running {command}; is Go installed?"))?;
        ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Where the source of a module that it is built from lies.
    ///
    /// # Errors
    /// When it is built from no such module.
    pub fn source(&self, module: &str) -> Result<PathBuf> {
        self.ask(&["mod", "download", module])?;
        self.ask(&["list", "-m", "-f", "{{.Dir}}", module]).map(PathBuf::from)
    }

    fn stamps(&self) -> Result<Vec<String>> {
        let stamp = |(variable, module): &(&str, &str)| {
            let version = self.ask(&["list", "-m", "-f", "{{.Version}}", module])?;
            Ok(format!("-X {variable}={version}"))
        };
        self.stamps.iter().map(stamp).collect()
    }

    fn digest(&self, flags: &str) -> Result<String> {
        let mut digest = Sha256::new();
        for name in ["go.mod", "go.sum"] {
            let path = workspace::root().join(self.folder).join(name);
            digest.update(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
        }
        digest.update(self.ask(&["version"])?);
        digest.update(flags);
        digest.update(format!("{:?}", self.renamed));
        Ok(digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Where built programs are kept: below `$XDG_CACHE_HOME`, or `~/.cache`.
fn cache() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let Some(base) = base else { bail!("neither XDG_CACHE_HOME nor HOME says where to keep what was built") };
    Ok(base.join("ferrogate").join("go"))
}
