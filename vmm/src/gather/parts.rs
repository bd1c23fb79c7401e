//! What is looked at: of the host, by a husk's own word, and of its process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::consoles;
use super::subject::Subject;
use super::threads::threads;
use super::written;
use crate::check;
use crate::ctl::client::Client;
use crate::ctl::{events, show};
use crate::fleet::{HuskProcess, table, take_snapshots};
use crate::log::Destination;
use crate::procfs;

/// The most that is kept of any file: of a log and a console the end.
pub(super) const FILE_BYTES: u64 = 1 << 20;
/// What a line of the kernel's log has in it that is of interest here, in small letters.
const KERNEL_LOG: [&str; 5] = ["kvm", "husk", "cloud-hyperviso", "out of memory", "oom-kill"];

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

fn part(
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
            let mut lines = String::new();
            let followed = events::follow(&at, limit, true, |event| {
                lines.push_str(&event.line);
                lines.push('\n');
                true
            });
            followed.map(|()| lines.into_bytes()).map_err(|e| told(&e))
        },
    ));
    parts
}

/// The end of what its guest printed: by what the husk says where it `answers`, else by what it was started with and has open.
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

/// Why nothing is known of a process.
const UNKNOWN: &str = "its process is not known, or not for this user to look into";

/// What the kernel says of its process.
pub(super) fn of_process(subject: &Subject) -> Vec<Part> {
    let Some(husk) = &subject.husk else {
        return vec![part("process", "all that the kernel says of its process", || {
            Err(UNKNOWN.into())
        })];
    };
    let folder = husk.folder.clone();
    let mut parts = vec![
        part(
            "threads.txt",
            "where each thread is: state, wait, system call, stack in the kernel",
            {
                let folder = folder.clone();
                move || threads(&folder)
            },
        ),
        part("arguments.txt", "what it was started with", {
            let arguments = husk.arguments.join("\n");
            move || Ok((arguments + "\n").into_bytes())
        }),
        part("descriptors.txt", "what its descriptors are", {
            let folder = folder.clone();
            move || descriptors(&folder)
        }),
        part("log.txt", "the end of its log, if that is a file", {
            let husk = husk.clone();
            move || log(&husk)
        }),
        part("cgroup.txt", "what its control group may have, and has had", {
            let folder = folder.clone();
            move || control_group(&folder)
        }),
    ];
    for (name, about) in [
        ("status", "memory, threads, signals, capabilities"),
        ("stat", "times"),
        ("limits", "limits"),
        ("io", "input and output"),
        ("sched", "scheduling"),
        ("oom_score", "how soon it is killed for lack of memory"),
        ("smaps_rollup", "memory by kind"),
        ("maps", "what is mapped where: names of mappings, not what is in them"),
    ] {
        let file = folder.join(name);
        parts.push(part(format!("proc/{name}"), about, move || whole(&file)));
    }
    parts
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
fn whole(path: &Path) -> Result<Vec<u8>, String> {
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

/// Lines of interest of what the kernel's log still has.
fn kernel_log() -> Result<Vec<u8>, String> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .map_err(|error| format!("/dev/kmsg: {error}"))?;
    let (mut text, mut record) = (Vec::new(), vec![0; 8 << 10]);
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(bytes) => text.extend(line_of_interest(record.get(..bytes).unwrap_or_default()).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // What was overwritten before it was read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(format!("/dev/kmsg: {error}")),
        }
        // The last are of most interest.
        if text.len() as u64 > 2 * FILE_BYTES {
            text = the_last(text);
        }
    }
    Ok(the_last(text))
}

/// The last lines of `text`, of which there are [`FILE_BYTES`] at most.
fn the_last(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(surplus) = text
        .len()
        .checked_sub(usize::try_from(FILE_BYTES).unwrap_or(usize::MAX))
        .filter(|surplus| *surplus > 0)
    {
        let line = text.iter().skip(surplus - 1).position(|byte| *byte == b'\n');
        text.drain(..line.map_or(text.len(), |end| surplus + end));
    }
    text
}

/// A record of `/dev/kmsg` (`level,number,microseconds,flags;text`, then properties) as a line, if it is of interest.
fn line_of_interest(record: &[u8]) -> Option<Vec<u8>> {
    let record = String::from_utf8_lossy(record);
    let (head, text) = record.lines().next()?.split_once(';')?;
    let small = text.to_lowercase();
    if !KERNEL_LOG.iter().any(|word| small.contains(word)) {
        return None;
    }
    let at: u64 = head.split(',').nth(2)?.parse().ok()?;
    Some(format!("[{:>5}.{:06}] {text}\n", at / 1_000_000, at % 1_000_000).into_bytes())
}

fn descriptors(folder: &Path) -> Result<Vec<u8>, String> {
    let folder = folder.join("fd");
    let numbers = procfs::numbers(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut text = String::new();
    for number in numbers {
        if let Ok(target) = fs::read_link(folder.join(number.to_string())) {
            text.push_str(&format!("{number} {}\n", target.display()));
        }
    }
    Ok(text.into_bytes())
}

/// The file that it was told to log to.
pub(super) fn log_file(husk: &HuskProcess) -> Option<PathBuf> {
    let destination = || match husk.option("--log")?.parse() {
        Ok(Destination::File(file)) => Some(file),
        _ => None,
    };
    husk.option("--log-file").map(PathBuf::from).or_else(destination)
}

/// Where it was told to log, or what its standard error is.
fn log(husk: &HuskProcess) -> Result<Vec<u8>, String> {
    if let Some(file) = log_file(husk) {
        return written::called(husk, &file)?.tail();
    }
    let error = fs::read_link(husk.folder.join("fd/2")).map_err(|error| error.to_string())?;
    written::behind(husk, 2).map_or_else(
        |why| {
            Err(format!(
                "it logs to {}: whoever started it has it, or the journal ({why})",
                error.display()
            ))
        },
        |file| file.tail(),
    )
}

/// Limits and counts of the control group of the process in `folder`, of either version of cgroups.
fn control_group(folder: &Path) -> Result<Vec<u8>, String> {
    let groups = fs::read_to_string(folder.join("cgroup")).map_err(|error| error.to_string())?;
    let mut text = groups.clone();
    let two = [
        "memory.current",
        "memory.high",
        "memory.max",
        "memory.swap.max",
        "memory.events",
        "memory.stat",
        "memory.pressure",
        "cpu.max",
        "cpu.stat",
        "cpu.pressure",
        "io.pressure",
        "pids.current",
        "pids.max",
    ];
    let one = [
        "memory.usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.failcnt",
        "memory.oom_control",
        "memory.stat",
    ];
    for line in groups.lines() {
        let Some((controllers, group)) = procfs::control_group(line) else {
            continue;
        };
        let (root, files) = match controllers {
            "" => ("/sys/fs/cgroup", two.as_slice()),
            "memory" => ("/sys/fs/cgroup/memory", one.as_slice()),
            _ => continue,
        };
        let place = Path::new(root).join(group.trim_start_matches('/'));
        for file in files {
            if let Ok(value) = fs::read_to_string(place.join(file)) {
                text.push_str(&format!("\n{}:\n{value}", place.join(file).display()));
            }
        }
    }
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_lines_the_last_are_kept_whole() {
        let text: Vec<u8> = (0..200_000).flat_map(|n| format!("{n:09}\n").into_bytes()).collect();
        let kept = the_last(text.clone());
        assert_eq!(kept.len() as u64, FILE_BYTES / 10 * 10);
        assert!(text.ends_with(&kept) && kept.len().is_multiple_of(10));
        assert_eq!(the_last(kept.clone()), kept);
        assert_eq!(the_last(vec![b'x'; 2 << 20]), b"");
    }

    #[test]
    fn lines_of_the_kernel_about_others_are_left_out() {
        let line = |record: &str| line_of_interest(record.as_bytes()).map(|line| String::from_utf8(line).unwrap());
        assert_eq!(
            line("6,12,61000042,-;KVM: vcpu stuck\n SUBSYSTEM=x\n").unwrap(),
            "[   61.000042] KVM: vcpu stuck\n"
        );
        assert_eq!(line("6,12,1,-;usb 1-1: new device\n kvm=1\n"), None);
        assert_eq!(line("nonsense"), None);
    }

    #[test]
    fn a_log_is_a_file_if_that_was_asked_for() {
        let log = |arguments: &[&str]| {
            let words = ["husk", "--api-socket", "/s"].iter().chain(arguments);
            log_file(&HuskProcess {
                arguments: words.map(|word| (*word).to_owned()).collect(),
                ..HuskProcess::sample()
            })
        };
        for arguments in [
            &["--log-file", "/l"][..],
            &["--log", "/l"],
            &["--log=/l", "-v"],
            &["--log", "file=/l"],
        ] {
            assert_eq!(log(arguments).unwrap(), Path::new("/l"), "{arguments:?}");
        }
        for arguments in [
            &[][..],
            &["--log", "stderr"],
            &["--log=journald=/run/j"],
            &["--log-format", "json"],
        ] {
            assert_eq!(log(arguments), None, "{arguments:?}");
        }
    }
}
