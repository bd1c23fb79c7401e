//! Programs of others that tests hold husk against. Not installed: Debian's packages would start servers.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::command;
use crate::packages::{self, Package};
use crate::paths::{Lab, PART};

/// A program of one of Debian's packages.
struct Tool {
    /// The variable by which tests are told where it is.
    variable: &'static str,
    name: &'static str,
    package: &'static str,
    /// Where the package has it.
    path: &'static str,
}

const TOOLS: [Tool; 4] = [
    // Judges husk's figures, takes them, and passes them on: the way that docs/operate.md shows.
    Tool {
        variable: "HUSK_TEST_PROMTOOL",
        name: "promtool",
        package: "prometheus",
        path: "usr/bin/promtool",
    },
    Tool {
        variable: "HUSK_TEST_PROMETHEUS",
        name: "prometheus",
        package: "prometheus",
        path: "usr/bin/prometheus",
    },
    Tool {
        variable: "HUSK_TEST_NGINX",
        name: "nginx",
        package: "nginx",
        path: "usr/sbin/nginx",
    },
    // Reads the handlers that husk install writes.
    Tool {
        variable: "HUSK_TEST_CONTAINERD",
        name: "containerd",
        package: "containerd",
        path: "usr/bin/containerd",
    },
];

/// Where the program `name` is below the lab's tools, if it was put there.
fn own(lab: &Lab, name: &str) -> PathBuf {
    lab.path("tools/bin").join(name)
}

/// The system's program `name`, or that below the lab's tools.
pub fn find(lab: &Lab, name: &str) -> Option<PathBuf> {
    command::find(name).or_else(|| Some(own(lab, name)).filter(|own| own.exists()))
}

/// The variables by which tests are told where these programs are: the system's own, or else those
/// of Debian's packages, fetched and unpacked unless that was done before.
///
/// # Errors
///
/// A package cannot be fetched.
pub fn variables(lab: &Lab) -> Result<Vec<(&'static str, PathBuf)>> {
    let folder = lab.path("tools");
    for missing in &TOOLS {
        if find(lab, missing.name).is_some() {
            continue;
        }
        let package = missing.package;
        let deb = packages::fetch(lab, package, Package::Named(package))
            .with_context(|| format!("{} is what tests hold husk against", missing.name))?;
        fs::create_dir_all(folder.join("bin"))?;
        let scratch = tempfile::Builder::new().prefix(PART).tempdir_in(&folder)?;
        packages::unpack(&deb, scratch.path())?;
        for tool in TOOLS.iter().filter(|tool| tool.package == package) {
            fs::rename(scratch.path().join(tool.path), own(lab, tool.name))?;
        }
        // Megabytes that nobody needs again.
        let _ = fs::remove_file(deb);
    }
    let told = TOOLS.iter().map(|tool| Some((tool.variable, find(lab, tool.name)?)));
    told.collect::<Option<_>>().context("a package lacks its program")
}
