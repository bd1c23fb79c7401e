//! promtool, which judges the figures that husk has for Prometheus. Not installed: Debian's package starts a server.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::command::find;
use crate::packages::{self, Package};
use crate::paths::{Lab, PART};

const PACKAGE: &str = "prometheus";

/// The program that this system has, or else the one in Debian's package, fetched and unpacked unless that was done before; its path.
///
/// # Errors
///
/// The package cannot be fetched.
pub fn promtool(lab: &Lab) -> Result<PathBuf> {
    let program = lab.path("tools/bin/promtool");
    if let Some(found) = find("promtool").or_else(|| program.exists().then(|| program.clone())) {
        return Ok(found);
    }
    let deb = packages::fetch(lab, PACKAGE, Package::Named(PACKAGE)).context("promtool judges husk's figures")?;
    let tools = lab.path("tools");
    fs::create_dir_all(tools.join("bin"))?;
    let scratch = tempfile::Builder::new().prefix(PART).tempdir_in(&tools)?;
    packages::unpack(&deb, scratch.path())?;
    fs::rename(scratch.path().join("usr/bin/promtool"), &program)?;
    // 19 MB that nobody needs again.
    let _ = fs::remove_file(deb);
    Ok(program)
}
