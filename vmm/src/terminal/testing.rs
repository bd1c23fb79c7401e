//! What tests of outputs need.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// A new FIFO in `folder`.
pub fn fifo(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}
