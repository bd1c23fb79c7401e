//! Programs of Debian's for guests that are asked to do real work: a compiler, git, dpkg, sqlite,
//! rsync. Unpacked, and not installed.

use std::fs;

use anyhow::Result;

use crate::packages::{self, Package};
use crate::paths::{self, Lab};
use crate::progress;

/// The variable by which a run asks for tests that need them. They are 23 MB to fetch, and take
/// minutes of an emulated host.
const WANTED: &str = "HUSK_TEST_PROGRAMS";

/// The programs, and the libraries that those load.
const PACKAGES: [&str; 24] = [
    "dpkg",
    "git",
    "libacl1",
    "libbz2-1.0",
    "libc6",
    "libc6-dev",
    "liblz4-1",
    "liblzma5",
    "libmd0",
    "libpcre2-8-0",
    "libpopt0",
    "libreadline8",
    "libselinux1",
    "libsqlite3-0",
    "libssl3",
    "libtinfo6",
    "libxxhash0",
    "libzstd1",
    "linux-libc-dev",
    "rsync",
    "sqlite3",
    "tar",
    "tcc",
    "zlib1g",
];

/// The package that stays beside the programs, for guests to unpack.
const UNPACKED_BY_GUESTS: &str = "rsync";

/// Makes `guest/programs` of the packages, if this run wants that and it was not done before.
///
/// # Errors
///
/// A package cannot be fetched.
pub fn ensure(lab: &Lab) -> Result<()> {
    let folder = lab.guest().join("programs");
    if std::env::var_os(WANTED).is_none() || folder.exists() {
        return Ok(());
    }
    let mut debs = Vec::new();
    for package in PACKAGES {
        debs.push((package, packages::fetch(lab, package, Package::Named(package))?));
    }
    progress::step("unpacking programs for guests", || {
        paths::fill_folder(&folder, |folder| {
            for (package, deb) in &debs {
                packages::unpack(deb, folder)?;
                if *package == UNPACKED_BY_GUESTS {
                    fs::copy(deb, folder.join(format!("{package}.deb")))?;
                }
            }
            // Megabytes that nobody reads.
            for name in ["doc", "locale", "man"] {
                let _ = fs::remove_dir_all(folder.join("usr/share").join(name));
            }
            Ok(())
        })
    })
}
