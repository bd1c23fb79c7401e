//! Distribution packages: tools that must be installed, and files that are only fetched and unpacked.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::command::{command, find, output, shown, typed};
use crate::host::Host;
use crate::paths::{Lab, PART};
use crate::progress;

/// A program that the lab or a test runs on this machine. What every Linux has (`sh` and POSIX
/// utilities without options of GNU's) is not listed; in the emulated host, busybox is all of them.
struct Tool {
    program: &'static str,
    /// The Debian package that has it.
    package: &'static str,
    /// Only where guests run there; `None`: everywhere.
    host: Option<Host>,
}

const fn tool(program: &'static str, package: &'static str, host: Option<Host>) -> Tool {
    Tool { program, package, host }
}

const TOOLS: [Tool; 10] = [
    tool("qemu-system-x86_64", "qemu-system-x86", Some(Host::Emulated)),
    tool("mke2fs", "e2fsprogs", None),
    tool("debugfs", "e2fsprogs", None),
    // Tests without a guest: signals as a parent has left them, loop devices.
    tool("env", "coreutils", None),
    tool("losetup", "mount", None),
    // Guest-driven tests: taps and what goes through them, mounts below a share.
    tool("ip", "iproute2", Some(Host::Native)),
    tool("ping", "iputils-ping", Some(Host::Native)),
    tool("nc", "netcat-traditional", Some(Host::Native)),
    tool("mount", "mount", Some(Host::Native)),
    tool("umount", "mount", Some(Host::Native)),
];

/// The line of sources.list(5) by which Debian 12 has its security archive.
const SECURITY_ARCHIVE: &str = "deb http://security.debian.org/debian-security bookworm-security main";

/// Installs the tools that are needed where guests run on `host`, or says how.
///
/// # Errors
///
/// Something is missing and cannot be installed from here; the message has the command that installs it.
pub fn ensure_tools(host: Host) -> Result<()> {
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|tool| tool.host.is_none_or(|only| only == host) && find(tool.program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs = missing.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ");
    if find("apt-get").is_none() {
        bail!("the lab needs {programs}: install them with this system's package manager and try again");
    }
    let mut arguments = vec!["apt-get", "install", "--yes", "--no-install-recommends"];
    for tool in missing {
        if !arguments.contains(&tool.package) {
            arguments.push(tool.package);
        }
    }
    let by_hand = format!("sudo apt-get update && sudo {}", arguments.join(" "));
    let sudo = || anyhow!("{programs} missing, and this user cannot install packages. Run:\n  {by_hand}");
    let prefix = root_prefix().ok_or_else(sudo)?;
    progress::say(&format!("installing what is missing: {programs}"));
    update(prefix)?;
    as_root(prefix, &arguments).with_context(|| format!("cannot install {programs}; try by hand:\n  {by_hand}"))
}

/// What to put before a command so that root runs it; `None` if that would ask for a password.
pub fn root_prefix() -> Option<&'static [&'static str]> {
    let root = output(command("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if root {
        return Some(&[]);
    }
    output(command("sudo").args(["--non-interactive", "true"])).ok()?;
    Some(&["sudo", "--non-interactive"])
}

fn as_root(prefix: &[&str], arguments: &[&str]) -> Result<()> {
    let mut words = prefix.iter().chain(arguments);
    let program = words.next().context("no command")?;
    shown(command(program).args(words).env("DEBIAN_FRONTEND", "noninteractive"))
}

fn update(prefix: &[&str]) -> Result<()> {
    as_root(prefix, &["apt-get", "update", "--quiet"]).context("cannot refresh the package lists")
}

/// The newest package that the meta package `name` stands for.
fn resolve(name: &str) -> Result<String> {
    let answer = output(command("apt-cache").args(["depends", "--important", name]))?;
    let found = answer
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .map(str::to_string);
    found.with_context(|| format!("package {name} depends on nothing"))
}

/// A package by its own name, or through a meta package that always names the newest.
#[derive(Clone, Copy, Debug)]
pub enum Package {
    /// Its own name.
    Named(&'static str),
    /// The name of a meta package.
    Newest(&'static str),
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) | Self::Newest(name) => f.write_str(name),
        }
    }
}

/// Fetches a package without installing it; the path of the `.deb`. A package that was fetched
/// under `name` before is used again.
///
/// # Errors
///
/// There is no apt here, or the archive does not have the package, or cannot be reached.
pub fn fetch(lab: &Lab, name: &str, package: Package) -> Result<PathBuf> {
    let folder = lab.path("packages");
    fs::create_dir_all(&folder)?;
    let complete = folder.join(format!("{name}.deb"));
    if complete.exists() {
        return Ok(complete);
    }
    if find("apt-get").is_none() || find("dpkg").is_none() {
        bail!("{package} comes from Debian's archive, and apt-get and dpkg are not here: run this on Debian 12");
    }
    let exact = locate(package)?;
    progress::step(&format!("fetching {exact}"), || {
        let temporary = tempfile::Builder::new().prefix(PART).tempdir_in(&folder)?;
        // As root, apt warns that its unprivileged user cannot enter this folder: harmless, and hidden with the rest.
        output(
            command("apt-get")
                .args(["download", "--quiet", &exact])
                .current_dir(temporary.path()),
        )?;
        let downloaded = fs::read_dir(temporary.path())?
            .next()
            .context("apt-get left no file")??
            .path();
        fs::rename(downloaded, &complete)?;
        Ok(complete.clone())
    })
}

/// The exact package, refreshing the package lists if they do not know it.
fn locate(package: Package) -> Result<String> {
    let look = || match package {
        Package::Named(name) => {
            output(command("apt-cache").args(["show", "--no-all-versions", name])).map(|_| name.to_string())
        }
        Package::Newest(name) => resolve(name),
    };
    if let Ok(found) = look() {
        return Ok(found);
    }
    match root_prefix() {
        Some(prefix) => progress::step("refreshing the package lists", || update(prefix))?,
        None => bail!("the package lists do not have {package}. Run:\n  sudo apt-get update"),
    }
    look().map_err(|error| anyhow!("{error:#}\n{}", absent(package)))
}

/// What to do about a package that no source of this system has. Systems that were put together by
/// hand often lack the security archive.
fn absent(package: Package) -> String {
    format!(
        "no package source of this system has {package}: Debian 12 has it in its security archive. \
         Add this line to /etc/apt/sources.list and try again:\n  {SECURITY_ARCHIVE}"
    )
}

/// Unpacks a package below `folder`.
///
/// # Errors
///
/// The package is damaged; it is removed so that the next run fetches it again.
pub fn unpack(deb: &Path, folder: &Path) -> Result<()> {
    let mut dpkg = command("dpkg-deb");
    dpkg.arg("--extract").arg(deb).arg(folder);
    output(&mut dpkg)
        .map(drop)
        .inspect_err(|_| {
            let _ = fs::remove_file(deb);
        })
        .with_context(|| {
            format!(
                "{} is damaged and was removed: try again (`{}`)",
                deb.display(),
                typed(&dpkg)
            )
        })
}
