//! A clock of day for one process, which can be set while it runs.
//!
//! No namespace has a time of day of its own, so the process is lied to: libfaketime stands before libc and adds what
//! a file says. Clocks that nobody can set (`CLOCK_MONOTONIC`, `CLOCK_BOOTTIME`) stay true, as when a person or NTP sets
//! the time of a machine. A static binary has no libc to stand before; the process must be a
//! [`crate::workspace::debug`] build.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

/// Where distributions put libraries: here, or in a folder named after the platform.
const LIBRARIES: [&str; 2] = ["/usr/lib", "/usr/lib64"];

/// The variant for programs with threads.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// The clock. Processes under it share it.
#[derive(Clone, Debug)]
pub struct ClockOfDay {
    file: PathBuf,
    library: PathBuf,
}

impl ClockOfDay {
    /// One that is right, with its file at `file`.
    ///
    /// # Errors
    /// When libfaketime is not installed or the file cannot be written.
    pub fn new(file: &Path) -> Result<Self> {
        let clock = Self { file: file.to_owned(), library: library()? };
        clock.set_ahead(0)?;
        Ok(clock)
    }

    /// Sets it: so many seconds ahead of the right time, or behind it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_ahead(&self, seconds: i64) -> Result<()> {
        let new = self.file.with_extension("new");
        let written = fs::write(&new, format!("{seconds:+}s\n")).and_then(|()| fs::rename(&new, &self.file));
        written.with_context(|| format!("writing {}", self.file.display()))
    }

    /// Puts what a command starts under this clock.
    pub fn rule(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", &self.file);
        // It looks at the file at every question, and leaves the clocks alone that nobody can set; the second of these
        // went by the third name before.
        for variable in ["FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC", "DONT_FAKE_MONOTONIC"] {
            command.env(variable, "1");
        }
    }
}

fn library() -> Result<PathBuf> {
    let folders = LIBRARIES.iter().flat_map(|folder| {
        let below = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        below.chain([PathBuf::from(folder)])
    });
    let found = folders.map(|folder| folder.join(LIBRARY)).find(|library| library.is_file());
    found.context("libfaketime is not installed (Debian: apt-get install libfaketime)")
}
