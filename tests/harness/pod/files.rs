//! The files of a pod: its sockets, and what its VMM tells of events.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::api::Shim;

/// The file of a pod's events.
pub(super) const EVENTS: &str = "events";

/// What a VMM with its files in `folder`, launched [with events](super::Launch::with_events), has told so far.
///
/// # Errors
///
/// There is no such file, or a line of it is no event.
pub fn events(folder: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(folder.join(EVENTS))?;
    // A line without its end is still being written.
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines
        .map(|line| serde_json::from_str(line).with_context(|| format!("strange event {line:?}")))
        .collect()
}

/// The API socket of a pod with its files in `folder`.
pub fn api_socket(shim: Shim, folder: &Path) -> PathBuf {
    folder.join(match shim {
        Shim::Rust => "ch-api.sock",
        Shim::Go => "clh-api.sock",
    })
}

/// The vsock socket of a pod with its files in `folder`.
pub fn vsock(shim: Shim, folder: &Path) -> PathBuf {
    folder.join(match shim {
        Shim::Rust => "ch-vm.sock",
        Shim::Go => "clh.sock",
    })
}
