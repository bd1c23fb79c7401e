//! What a run needs from outside, looked for and fetched before anything is built: what is missing
//! is known in the first minute.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};

use crate::host::Host;
use crate::paths::Lab;
use crate::{images, packages};

/// Free space that everything together takes in `target/`, when nothing is there yet.
const SPACE_BYTES: u64 = 4 << 30;

/// Finds or installs tools, fetches packages, and looks for room, for guests on `host`.
///
/// # Errors
///
/// Something is missing; the message says what, and what to do.
pub fn ensure(lab: &Lab, host: Host) -> Result<()> {
    packages::ensure_tools(host)?;
    if !lab.guest().exists() {
        enough(free_bytes(lab)?).with_context(|| format!("in {}", lab.state.display()))?;
    }
    images::fetch(lab)
}

fn free_bytes(lab: &Lab) -> Result<u64> {
    let folder = File::open(&lab.state)?;
    let space = rustix::fs::fstatvfs(folder.as_fd())?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

fn enough(free: u64) -> Result<()> {
    if free < SPACE_BYTES {
        bail!(
            "{} MiB are free, and a first run takes {} MiB: make room, or name another folder by CARGO_TARGET_DIR",
            free >> 20,
            SPACE_BYTES >> 20
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_said_with_both_figures() {
        enough(SPACE_BYTES).unwrap();
        let error = enough(SPACE_BYTES - 1).unwrap_err().to_string();
        assert!(
            error.starts_with("4095 MiB are free, and a first run takes 4096 MiB"),
            "{error}"
        );
    }
}
