//! The file of the boot trace: opened before there is a guest, so that a name that cannot be written costs no run, and
//! written when the VM has ended. A run that fails leaves it as it was found.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::config::VmConfig;
use crate::seccomp::Mode;
use crate::terminal::{FileId, NonBlockingFile, ProtectedFiles};
use crate::trace::Trace;

/// Permissions of the file, less the user's mask.
const MODE: u32 = 0o666;

/// Where a boot trace goes. What an earlier run has left there stays until it is written; a file that was made for it
/// and is not written goes when this is dropped.
#[derive(Debug)]
pub(super) struct TraceFile {
    path: PathBuf,
    file: NonBlockingFile,
    /// Whether it is to go when this is dropped.
    unwritten: bool,
}

impl TraceFile {
    /// Opens `path`, or makes a file there. One that is also `protected`, or a port's of `config`, is appended to in
    /// the end.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub(super) fn open(path: &Path, config: &VmConfig, protected: &ProtectedFiles) -> Result<Self> {
        let opened = NonBlockingFile::append_or_make(path, MODE);
        let (file, made) = opened.with_context(|| format!("boot trace {}", path.display()))?;
        let id = file.file_id();
        let mut ports = config.output_files().into_iter();
        let is_shared = protected.is_kept(id) || ports.any(|(_, port)| id.is_some() && FileId::at(&port) == id);
        Ok(Self {
            path: path.into(),
            file: if is_shared { file } else { file.replacing() },
            unwritten: made && !is_shared,
        })
    }

    /// Which file this is, if it is a regular one.
    pub(super) fn file_id(&self) -> Option<FileId> {
        self.file.file_id()
    }

    /// Has a thread write to it, confined as `seccomp` says, if it is a regular file.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(super) fn start_writer(&self, seccomp: Mode) -> Result<()> {
        let started = self.file.start_writer(seccomp);
        started.context("cannot start the thread that writes the boot trace")
    }

    /// Writes `trace`, and waits up to `limit` for a reader or a file system.
    ///
    /// # Errors
    /// It is not written, or not all of it.
    pub(super) fn write(mut self, trace: &Trace, limit: Duration) -> Result<()> {
        let mut json = Vec::new();
        let path = &self.path;
        self.unwritten = false;
        let written = trace.write_json(&mut json);
        written
            .and_then(|()| self.file.write_all_within(&json, limit))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        // Whatever has come to stand there meanwhile is somebody else's.
        if self.unwritten && FileId::at(&self.path) == self.file.file_id() {
            // What cannot be removed is empty.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConsoleConfig;

    const EARLIER: &str = "{ the trace of an earlier run, and a long one }";

    fn open(path: &Path, config: &VmConfig) -> TraceFile {
        let file = TraceFile::open(path, config, &ProtectedFiles::default()).unwrap();
        file.start_writer(Mode::Off).unwrap();
        file
    }

    #[test]
    fn a_run_that_writes_none_leaves_the_file_as_it_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        drop(open(&path, &VmConfig::default()));
        assert!(!path.exists());
        fs::write(&path, EARLIER).unwrap();
        drop(open(&path, &VmConfig::default()));
        assert_eq!(fs::read_to_string(&path).unwrap(), EARLIER);
        fs::remove_file(&path).unwrap();
        let made = open(&path, &VmConfig::default());
        fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(made);
        assert_eq!(fs::read_to_string(&path).unwrap(), "somebody else's");
    }

    #[test]
    fn a_trace_takes_the_place_of_the_earlier_one_but_not_of_what_a_port_has_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        fs::write(&path, EARLIER).unwrap();
        let limit = Duration::from_secs(60);
        let file = open(&path, &VmConfig::default());
        assert_eq!(fs::read_to_string(&path).unwrap(), EARLIER);
        file.write(&Trace::off(), limit).unwrap();
        let written = fs::read_to_string(&path).unwrap();
        assert!(
            !written.contains("earlier") && written.starts_with(['{', '[']),
            "{written}"
        );
        let config = VmConfig {
            serial: ConsoleConfig::file(&path),
            ..VmConfig::default()
        };
        let file = open(&path, &config);
        fs::write(&path, "the guest's words\n").unwrap();
        file.write(&Trace::off(), limit).unwrap();
        let both = format!("the guest's words\n{written}");
        assert_eq!(fs::read_to_string(&path).unwrap(), both);
    }
}
