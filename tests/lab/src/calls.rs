//! Which system calls husk's threads make while tests run: counted by the host's kernel, for
//! `vmm/src/seccomp/used.txt`.
//!
//! A line is `THREAD CALL` or `THREAD CALL VALUE`: the kind of the thread by its name, the number
//! of the call, and for calls whose filter looks at an argument the value of that.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::{command, output};

/// Set for `cargo lab test`, which passes it on to where tests run.
const WANTED: &str = "HUSK_TEST_CALLS";
/// What a line of a record begins with where tests print.
const LINE: &str = "call: ";

const TRACEFS: &str = "/sys/kernel/tracing";
/// All calls by number; then those with an argument that filters look at, by number, tracepoint and
/// the argument's name there.
const ALL: &str = "raw_syscalls/sys_enter";
const ARGUMENTS: [(u32, &str, &str); 7] = [
    (13, "rt_sigaction", "sig"),
    (16, "ioctl", "cmd"),
    (28, "madvise", "behavior"),
    (41, "socket", "family"),
    (72, "fcntl", "cmd"),
    (157, "prctl", "option"),
    (317, "seccomp", "op"),
];

/// A record that is being made.
pub struct Calls(());

impl Calls {
    /// Begins to count, if that is wanted.
    ///
    /// # Errors
    ///
    /// The kernel cannot, or this is not root.
    pub fn begin() -> Result<Option<Self>> {
        if std::env::var_os(WANTED).is_none() {
            return Ok(None);
        }
        if !event(ALL).exists() {
            output(command("mount").args(["-t", "tracefs", "tracefs", TRACEFS]))?;
        }
        count(&event(ALL), "id")?;
        for (_, call, argument) in ARGUMENTS {
            count(&event(&format!("syscalls/sys_enter_{call}")), argument)?;
        }
        Ok(Some(Self(())))
    }

    /// Prints what was counted.
    ///
    /// # Errors
    ///
    /// The kernel does not say.
    pub fn end(self) -> Result<()> {
        let mut lines = BTreeSet::new();
        let with_argument: Vec<String> = ARGUMENTS.iter().map(|(number, ..)| number.to_string()).collect();
        for (thread, call) in counted(&event(ALL), "id")? {
            if !with_argument.contains(&call) {
                lines.insert(format!("{thread} {call}"));
            }
        }
        for (number, call, argument) in ARGUMENTS {
            for (thread, value) in counted(&event(&format!("syscalls/sys_enter_{call}")), argument)? {
                lines.insert(format!("{thread} {number} {value}"));
            }
        }
        for line in lines {
            println!("{LINE}{line}");
        }
        Ok(())
    }
}

fn event(name: &str) -> PathBuf {
    Path::new(TRACEFS).join("events").join(name)
}

/// Has the kernel count `event` for each thread and each value of `field` (Documentation/trace/histogram.rst).
fn count(event: &Path, field: &str) -> Result<()> {
    let trigger = format!("hist:keys=common_pid.execname,{field}:size=16384");
    fs::write(event.join("trigger"), trigger).with_context(|| format!("cannot count {}", event.display()))
}

/// Kinds of threads that husk has, each with a value of `field` that was counted.
fn counted(event: &Path, field: &str) -> Result<Vec<(&'static str, String)>> {
    let text = fs::read_to_string(event.join("hist")).with_context(|| format!("cannot read {}", event.display()))?;
    Ok(text.lines().filter_map(|line| entry(line, field)).collect())
}

/// `{ common_pid: io-_disk0       [       123], cmd:         16 } hitcount:          3`
fn entry(line: &str, field: &str) -> Option<(&'static str, String)> {
    let (thread, rest) = line.strip_prefix("{ common_pid: ")?.split_once('[')?;
    let (_, value) = rest.split_once(&format!("{field}: "))?;
    let value: String = value.trim().chars().take_while(char::is_ascii_alphanumeric).collect();
    Some((kind(thread.trim())?, value))
}

/// What a thread of husk is by its name; `None` of others, and of a device whose name does not tell its kind.
fn kind(thread: &str) -> Option<&'static str> {
    let whole = ["husk", "spawner", "loader", "api", "writer"]
        .into_iter()
        .find(|name| thread == *name)
        // It does what the first thread may, and beside it.
        .or((thread == "builder").then_some("husk"));
    let device = |name: &str| {
        let devices = [
            "disk", "net", "fs", "files", "vsock", "pmem", "mem", "balloon", "rng", "console",
        ];
        devices
            .into_iter()
            .find(|device| name.trim_start_matches('_').starts_with(device))
    };
    whole
        .or_else(|| thread.strip_prefix("vcpu").map(|_| "vcpu"))
        .or_else(|| thread.strip_prefix("io-").and_then(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_as_the_kernel_prints_it() {
        let line = "{ common_pid: io-_disk0       [       123], id:         16 } hitcount:          3";
        assert_eq!(entry(line, "id"), Some(("disk", "16".into())));
        let line = "{ common_pid: vcpu1           [      1123], cmd:      44672 } hitcount:        123";
        assert_eq!(entry(line, "cmd"), Some(("vcpu", "44672".into())));
        assert_eq!(entry("# event histogram", "id"), None);
        assert_eq!(entry("{ common_pid: virtiofsd [ 1], id: 1 } hitcount: 1", "id"), None);
    }
}
