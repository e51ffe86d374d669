//! A temporary folder that is removed when this process ends, however it ends.
//!
//! A destructor is not enough: nothing runs it for a `static` that tests share, nor after a kill.

use std::{
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Removes the folder when its input ends; what still runs in there may add a file meanwhile.
const REMOVE: &str = r#"cat >/dev/null; for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$0" && exit; sleep 0.1; done"#;

/// The folder.
#[derive(Debug)]
pub struct Folder {
    folder: TempDir,
    remover: Child,
    alive: Option<ChildStdin>,
}

impl Folder {
    /// Makes one whose name begins with `prefix`.
    ///
    /// # Errors
    /// When the disk is full or no process can be started.
    pub fn new(prefix: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(prefix).tempdir().context("making a temporary folder")?;
        let mut command = Command::new("sh");
        command.args(["-c", REMOVE]).arg(folder.path()).stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C, and whoever kills us as a group, must not reach it.
        let mut remover = command.process_group(0).spawn().context("starting what removes a temporary folder")?;
        let alive = remover.stdin.take();
        Ok(Self { folder, remover, alive })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.alive.take());
        let _: io::Result<_> = self.remover.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_gone_when_nobody_holds_it() {
        let folder = Folder::new("ferrogate-folder-").unwrap();
        let path = folder.path().to_owned();
        std::fs::write(path.join("file"), "text").unwrap();

        drop(folder);

        assert!(!path.exists());
    }
}
