//! virtiofsd, the file server of pods' shares: built from crates.io, since Debian 12 has no package of it.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::shown;
use crate::packages::{self, Package};
use crate::paths::{Lab, PART};
use crate::{build, progress};

/// The version that Kata 4.1 has.
const VERSION: &str = "virtiofsd@1.14.0";

/// Debian packages with the static libraries that it is linked with, and the variables by which the build finds them.
const LIBRARIES: [(&str, &str); 2] = [("libcap-ng-dev", "LIBCAPNG"), ("libseccomp-dev", "LIBSECCOMP")];

/// Fetches the packages that building virtiofsd takes, unless it was built before.
///
/// # Errors
///
/// One cannot be fetched.
pub fn fetch(lab: &Lab) -> Result<()> {
    if program(lab).exists() {
        return Ok(());
    }
    for (package, _) in LIBRARIES {
        packages::fetch(lab, package, Package::Named(package))?;
    }
    Ok(())
}

fn program(lab: &Lab) -> PathBuf {
    lab.path("tools/bin/virtiofsd")
}

/// Builds virtiofsd unless that was done before, linked statically as everything that goes into the
/// emulated host; its path.
///
/// # Errors
///
/// A package or a crate cannot be fetched, or it does not compile.
pub fn ensure(lab: &Lab) -> Result<PathBuf> {
    let tools = lab.path("tools");
    let program = program(lab);
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&tools)?;
    let scratch = tempfile::Builder::new().prefix(PART).tempdir_in(&tools)?;
    let libraries = unpack_libraries(lab, scratch.path())?;
    let mut install = build::cargo_install(lab, VERSION, &tools, &scratch.path().join("build"));
    install
        .arg(format!("--target={ARCH}-unknown-linux-gnu"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    for (_, variable) in LIBRARIES {
        install
            .env(format!("{variable}_LINK_TYPE"), "static")
            .env(format!("{variable}_LIB_PATH"), &libraries);
    }
    progress::step(&format!("building {VERSION}"), || shown(&mut install))?;
    Ok(program)
}

/// Unpacks the packages of [`LIBRARIES`] without installing them; the folder of their libraries.
fn unpack_libraries(lab: &Lab, target: &Path) -> Result<PathBuf> {
    for (package, _) in LIBRARIES {
        let deb = packages::fetch(lab, package, Package::Named(package))?;
        packages::unpack(&deb, target)?;
    }
    let libraries = target.join(format!("usr/lib/{ARCH}-linux-gnu"));
    let found = LIBRARIES.len();
    let archives = fs::read_dir(&libraries)
        .with_context(|| format!("no libraries in {}", libraries.display()))?
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "a"))
        .count();
    anyhow::ensure!(
        archives >= found,
        "the packages have {archives} static libraries, not {found}"
    );
    Ok(libraries)
}
