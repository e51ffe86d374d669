//! What a kubelet has to say: lines with a time, in a file of its own.

use std::{
    fmt,
    fs::File,
    io::{self, Write},
    path::Path,
    time::Instant,
};

/// The file.
#[derive(Debug)]
pub struct Log {
    file: File,
    begun: Instant,
}

impl Log {
    /// Opens it, and begins to count the time.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::options().create(true).append(true).open(path)?, begun: Instant::now() })
    }

    /// Adds a line.
    pub fn line(&self, text: fmt::Arguments<'_>) {
        let line = format!("{:9.3} {text}\n", self.begun.elapsed().as_secs_f64());
        // A disk that is full must not stop the pods.
        let _ = (&self.file).write_all(line.as_bytes());
    }
}
