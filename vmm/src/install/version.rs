//! The version of a program: as it tells it itself on this system, and as its package says on another one.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::behind;
use crate::regular_file;

/// Where programs are looked for, in this order.
const FOLDERS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin"];
/// For how long a program may say its version.
const LIMIT: Duration = Duration::from_secs(10);
/// As much as is read of what it says.
const MOST_BYTES: u64 = 4096;
/// What dpkg has installed.
const DPKG: &str = "/var/lib/dpkg/status";

/// Where `program` is in the system at `root`.
pub(crate) fn program_path(root: &Path, program: &str) -> Option<PathBuf> {
    let paths = FOLDERS.iter().map(|folder| Path::new(folder).join(program));
    paths.into_iter().find(|path| behind(root, path).is_file())
}

/// The version of `program` of the system at `root`, which any of Debian's `packages` brings: the
/// first word that begins with a digit.
///
/// A program of another system than this one is not run, whoever made that: its package is asked.
/// Nothing is known of one that came without.
pub(crate) fn program_version(root: &Path, program: &str, packages: &[&str]) -> Option<String> {
    let path = program_path(root, program)?;
    if root == Path::new("/") {
        return ask(&path, LIMIT);
    }
    // What is below /usr/local is nobody's package.
    if path.starts_with("/usr/local") {
        return None;
    }
    let status = regular_file::read_text(&behind(root, Path::new(DPKG))).ok()?;
    packages.iter().find_map(|package| packaged(&status, package))
}

/// The version of `package` in dpkg's `status`, without its epoch (deb-version(7)).
fn packaged(status: &str, package: &str) -> Option<String> {
    let field = |paragraph: &str, name: &str| {
        let mut lines = paragraph.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    let is_it = |paragraph: &&str| {
        field(paragraph, "Package").as_deref() == Some(package)
            && field(paragraph, "Status").is_some_and(|status| status.ends_with(" installed"))
    };
    let version = field(status.split("\n\n").find(is_it)?, "Version")?;
    let version = version.split_once(':').map_or(version.as_str(), |(_, version)| version);
    version_in(version)
}

/// What the program at `path` says is its version; `None` if it says none within `limit`, after which it is killed.
fn ask(path: &Path, limit: Duration) -> Option<String> {
    let started = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // With whatever it starts, which may keep its output open.
        .process_group(0)
        .spawn();
    let mut child = started.ok()?;
    let group = Pid::from_child(&child);
    let (tell, told) = mpsc::channel();
    // A thread of its own waits: a process may not be there to be killed at once, in a system call that nothing ends.
    let waiting = thread::Builder::new().spawn(move || {
        let said = said(&mut child);
        let _ = child.wait();
        // Nobody waits any longer.
        let _ = tell.send(said);
    });
    waiting.ok()?;
    let said = match told.recv_timeout(limit) {
        Ok(said) => said,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            let _ = kill_process_group(group, Signal::KILL);
            return None;
        }
    };
    version_in(&said)
}

fn said(child: &mut Child) -> String {
    let mut bytes = Vec::new();
    if let Some(output) = child.stdout.take() {
        // What came before an error is what was said.
        let _ = output.take(MOST_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn version_in(text: &str) -> Option<String> {
    let mut words = text.split_whitespace().map(|word| word.trim_start_matches('v'));
    words
        .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::install::testing::System;

    #[test]
    fn a_program_of_this_system_says_its_version_itself() {
        let system = System::new();
        for (text, version) in [
            (
                "containerd github.com/containerd/containerd/v2 v2.1.5 abc",
                Some("2.1.5"),
            ),
            ("crio version 1.33.1\nVersion: 9", Some("1.33.1")),
            ("containerd unknown", None),
        ] {
            system.program("usr/bin/x", text);
            let told = ask(&system.root().join("usr/bin/x"), LIMIT);
            assert_eq!(told.as_deref(), version);
        }
        system.write("usr/bin/none", "no program");
        assert_eq!(ask(&system.root().join("usr/bin/none"), LIMIT), None);
        // There is a shell, or there is nothing to run these tests with.
        assert!(program_path(Path::new("/"), "sh").is_some() || !Path::new("/usr/bin/sh").exists());
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_what_it_has_started() {
        let system = System::new();
        system.script("usr/bin/x", "sleep 1000 & echo $$ $! >\"$0.pids\"; exec sleep 1000");
        let path = system.root().join("usr/bin/x");
        assert_eq!(ask(&path, Duration::from_millis(300)), None);
        // Nothing, if it was killed before it had said anything.
        let pids = fs::read_to_string(system.root().join("usr/bin/x.pids")).unwrap_or_default();
        for pid in pids.split_whitespace() {
            let is_dead = || match fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
                Err(_) => true,
            };
            while !is_dead() {
                thread::yield_now();
            }
        }
    }

    #[test]
    fn a_program_of_another_system_is_not_run() {
        let system = System::new();
        let ran = system.root().join("ran");
        system.script("usr/bin/containerd", &format!("touch '{}'; echo 9.9", ran.display()));
        let version = || program_version(system.root(), "containerd", &["containerd", "containerd.io"]);
        assert_eq!(version(), None);
        let of = |package: &str, status: &str, version: &str| {
            format!(
                "Package: {package}\nStatus: {status}\nArchitecture: amd64\nVersion: {version}\nDescription: x\n Version: 7\n\n"
            )
        };
        let other = of("containerd-extras", "install ok installed", "3.0");
        for (text, found) in [
            (
                of("containerd", "install ok installed", "1.6.20~ds1-1+b1"),
                Some("1.6.20~ds1-1+b1"),
            ),
            (
                of("containerd.io", "install ok installed", "1:2.1.0-1"),
                Some("2.1.0-1"),
            ),
            (of("containerd", "deinstall ok config-files", "1.6.20"), None),
        ] {
            system.write("var/lib/dpkg/status", &format!("{other}{text}"));
            assert_eq!(version().as_deref(), found, "{text}");
        }
        system.write(
            "var/lib/dpkg/status",
            &of("containerd", "install ok installed", "1.6.20"),
        );
        system.script("usr/local/bin/containerd", &format!("touch '{}'", ran.display()));
        assert_eq!(version(), None, "it is not the package's");
        assert!(!ran.exists());
    }
}
