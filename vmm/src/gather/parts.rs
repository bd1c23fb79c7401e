//! What is looked at: of the host, and by a husk's own word.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::consoles;
use super::kernel_log::kernel_log;
use super::process_parts::UNKNOWN;
use super::subject::Subject;
use crate::check;
use crate::ctl::client::Client;
use crate::ctl::{events, show};
use crate::fleet::{HuskProcess, table, take_snapshots};

/// The most that is kept of any file: of a log and a console the end.
pub(super) const FILE_BYTES: u64 = 1 << 20;
/// One file of a bundle.
pub(super) struct Part {
    /// Its path below the folder of its subject.
    pub(super) path: String,
    /// What it is.
    pub(super) about: &'static str,
    /// Reads it, and may hang.
    pub(super) read: Reading,
}

/// What reads a part, or says why it cannot be had.
type Reading = Box<dyn FnOnce() -> Result<Vec<u8>, String> + Send>;

pub(super) fn part(
    path: impl Into<String>,
    about: &'static str,
    read: impl FnOnce() -> Result<Vec<u8>, String> + Send + 'static,
) -> Part {
    Part {
        path: path.into(),
        about,
        read: Box::new(read),
    }
}

/// About the host, and all husks that the bundle is about.
pub(super) fn of_host(subjects: &[Subject], limit: Duration) -> Vec<Part> {
    let husks: Vec<HuskProcess> = subjects.iter().filter_map(|subject| subject.husk.clone()).collect();
    let mut parts = vec![
        part("husks.json", "what husk ps says of them", move || {
            // Each is asked for several things.
            let snapshots = take_snapshots(&husks, limit / 4);
            Ok(table::json(&snapshots).into_bytes())
        }),
        part("check.json", "what husk check says of this host", || {
            Ok(check::check(Path::new("/")).to_json().into_bytes())
        }),
        part(
            "kernel-log.txt",
            "lines of the kernel's log about KVM, husk and lack of memory",
            kernel_log,
        ),
        part("kvm-parameters.txt", "the parameters of KVM's modules", || {
            all_of(&[
                "/sys/module/kvm/parameters",
                "/sys/module/kvm_intel/parameters",
                "/sys/module/kvm_amd/parameters",
            ])
        }),
        part(
            "vulnerabilities.txt",
            "what the kernel does about the processor's faults",
            || all_of(&["/sys/devices/system/cpu/vulnerabilities"]),
        ),
    ];
    for (path, file, about) in [
        ("version.txt", "/proc/version", "the kernel"),
        ("cmdline.txt", "/proc/cmdline", "what the kernel was started with"),
        ("meminfo.txt", "/proc/meminfo", "memory"),
        ("loadavg.txt", "/proc/loadavg", "load"),
        (
            "pressure-cpu.txt",
            "/proc/pressure/cpu",
            "how long tasks waited for processors",
        ),
        (
            "pressure-memory.txt",
            "/proc/pressure/memory",
            "how long tasks waited for memory",
        ),
        (
            "pressure-io.txt",
            "/proc/pressure/io",
            "how long tasks waited for input and output",
        ),
    ] {
        parts.push(part(path, about, move || whole(Path::new(file))));
    }
    parts
}

/// Whether the husk answers at all.
pub(super) fn hello(socket: &Path, limit: Duration) -> Vec<Part> {
    vec![get(
        socket,
        limit,
        "vmm.ping",
        "api/ping.json",
        "its version and process",
    )]
}

/// What a husk that answers says.
pub(super) fn said(socket: &Path, limit: Duration) -> Vec<Part> {
    let mut parts = Vec::new();
    for (name, path, about) in [
        ("vm.info", "api/info.json", "the VM's configuration and state"),
        (
            "vm.resize-status",
            "api/resize-status.json",
            "vCPUs and memory, and the last resize",
        ),
        (
            "vm.counters",
            "api/counters.json",
            "what devices and vCPUs have counted",
        ),
        (
            "vm.queues",
            "api/queues.json",
            "where driver and device stand in each virtqueue",
        ),
        ("vmm.log-level", "api/log-level.json", "which lines it logs"),
    ] {
        parts.push(get(socket, limit, name, path, about));
    }
    let at = socket.to_owned();
    parts.push(part("api/metrics.txt", "its figures, for Prometheus", move || {
        let mut client = Client::connect(&at, limit).map_err(|e| told(&e))?;
        client
            .get_text("vmm.metrics")
            .map(String::into_bytes)
            .map_err(|e| told(&e))
    }));
    let at = socket.to_owned();
    parts.push(part(
        "api/events.jsonl",
        "the last events, as far as it has kept them",
        move || {
            let past = events::past(&at, limit).map_err(|e| told(&e))?;
            let lines: String = past.into_iter().map(|event| event.line + "\n").collect();
            Ok(lines.into_bytes())
        },
    ));
    parts
}

/// The end of what its guest printed: by what the husk says where it `answers`, else by what it was
/// started with and has open.
pub(super) fn console(subject: &Subject, answers: bool, limit: Duration) -> Part {
    let (husk, socket) = (subject.husk.clone(), subject.socket.clone());
    part(
        "console.txt",
        "the end of what the guest's console printed, if that is a file",
        move || {
            let husk = husk.ok_or(UNKNOWN)?;
            match socket.filter(|_| answers) {
                Some(socket) => {
                    let mut client = Client::connect(&socket, limit).map_err(|e| told(&e))?;
                    let info = client.get("vm.info").map_err(|e| told(&e))?;
                    consoles::by_word(&info["config"], &husk)
                }
                None => consoles::unasked(&husk),
            }
        },
    )
}

fn get(socket: &Path, limit: Duration, name: &'static str, path: &'static str, about: &'static str) -> Part {
    let socket = socket.to_owned();
    part(path, about, move || {
        let mut client = Client::connect(&socket, limit).map_err(|e| told(&e))?;
        let answer: Value = client.get(name).map_err(|e| told(&e))?;
        Ok(show::json(&answer).into_bytes())
    })
}

/// A failure in one line.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    show::plain(&husk_devices::error_chain(error))
}

/// The start of a file, which may be of the kernel's, as long as one is kept.
pub(super) fn whole(path: &Path) -> Result<Vec<u8>, String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|error| format!("{}: {error}", path.display()))
}

/// A line for each file of `folders`.
fn all_of(folders: &[&str]) -> Result<Vec<u8>, String> {
    let mut text = String::new();
    for folder in folders {
        let mut files: Vec<PathBuf> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|file| file.path())
            .collect();
        files.sort();
        for file in files {
            let value = fs::read_to_string(&file).unwrap_or_else(|error| format!("({error})"));
            text.push_str(&format!("{}: {}\n", file.display(), value.trim()));
        }
    }
    if text.is_empty() {
        return Err("there is none".into());
    }
    Ok(text.into_bytes())
}
