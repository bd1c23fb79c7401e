//! What is looked at of one process: what the kernel says of it, and its log.

use std::fs;
use std::path::{Path, PathBuf};

use super::parts::{Part, part, whole};
use super::subject::Subject;
use super::threads::threads;
use super::written;
use crate::fleet::HuskProcess;
use crate::fleet::process::KnownArguments;
use crate::log::Destination;
use crate::procfs;

/// Why nothing is known of a process.
pub(super) const UNKNOWN: &str = "its process is not known, or not for this user to look into";

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
            let husk = husk.clone();
            move || arguments(&husk)
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

fn arguments(husk: &HuskProcess) -> Result<Vec<u8>, String> {
    let mut text = husk.arguments.join("\n") + "\n";
    match husk.known {
        KnownArguments::All => {}
        KnownArguments::Beginning => text.push_str("(and what is behind the first MiB of them)\n"),
        KnownArguments::None => return Err("the kernel did not say in time".into()),
    }
    Ok(text.into_bytes())
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
