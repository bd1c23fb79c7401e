//! Answers as tables for people, or as JSON for programs.

use std::fmt::Write;

use serde_json::Value;

use super::status::Status;
use crate::config::Size;

/// `value`, for a program.
pub fn json(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("a value is always JSON");
    text.push('\n');
    text
}

/// Columns, each as wide as its widest cell. What a cell must not do to a terminal is taken out of it.
pub fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| plain(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `text` without what moves a cursor.
pub fn plain(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.collect()
}

/// The answer to `vmm.ping`.
pub fn ping(answer: &Value) -> String {
    table(&[
        row("version", text(&answer["build_version"])),
        row("process", text(&answer["pid"])),
    ])
}

/// The answer to `vmm.log-level`.
pub fn log_level(answer: &Value) -> String {
    table(&[row("level", text(&answer["level"]))])
}

/// The answer to `vm.add-…`.
pub fn added(answer: &Value) -> String {
    table(&[row("id", text(&answer["id"])), row("address", text(&answer["bdf"]))])
}

/// The answer to `vm.info`, and the VM's size.
pub fn info(answer: &Value, status: &Status) -> String {
    let config = &answer["config"];
    let mut rows = vec![row("state", text(&answer["state"]))];
    rows.extend(sizes(status));
    for (name, file) in [("kernel", "kernel"), ("initramfs", "initramfs")] {
        if let Some(path) = config["payload"][file].as_str() {
            rows.push(row(name, path));
        }
    }
    let devices: [(_, &[_]); 4] = [
        ("disks", &["path"]),
        ("net", &["tap", "backend"]),
        ("fs", &["tag", "dir"]),
        ("pmem", &["file"]),
    ];
    for (kind, details) in devices {
        for device in config[kind].as_array().into_iter().flatten() {
            let told = details.iter().map(|detail| text(&device[*detail]));
            rows.push(row(kind, words(std::iter::once(text(&device["id"])).chain(told))));
        }
    }
    if let Some(vsock) = config.get("vsock").filter(|vsock| vsock.is_object()) {
        let cid = format!("cid {}", text(&vsock["cid"]));
        let told = [cid, text(&vsock["socket"]), text(&vsock["backend"])];
        rows.push(row("vsock", words(told)));
    }
    for port in ["serial", "console"] {
        let place = ["file", "socket"]
            .into_iter()
            .find_map(|key| config[port][key].as_str());
        rows.extend(place.map(|place| row(port, place)));
    }
    table(&rows)
}

/// What there is of `words`, in one line.
fn words(words: impl IntoIterator<Item = String>) -> String {
    let there: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    there.join(" ")
}

/// The size of a VM.
pub fn size(status: &Status) -> String {
    table(&sizes(status))
}

fn sizes(status: &Status) -> Vec<Vec<String>> {
    let (vcpus, memory) = (&status.vcpus, &status.memory);
    let bytes = |bytes: Option<u64>| bytes.map(|bytes| Size(bytes).to_string());
    let count = |count: Option<u32>| count.map(|count| count.to_string());
    let list = |parts: &[(Option<String>, &str)]| {
        let told = parts
            .iter()
            .filter_map(|(value, what)| Some(format!("{} {what}", value.as_ref()?)));
        told.collect::<Vec<_>>().join(", ")
    };
    let mut rows = vec![
        row(
            "vcpus",
            list(&[
                (count(vcpus.present), "present"),
                (count(vcpus.online), "started"),
                (count(vcpus.max), "at most"),
            ]),
        ),
        row(
            "memory",
            list(&[
                (bytes(memory.present_bytes), "present"),
                (bytes(memory.boot_bytes), "since the start"),
                (
                    bytes(memory.hotplug_bytes.filter(|room| *room > 0)),
                    "may be added to that",
                ),
            ]),
        ),
    ];
    if let Some(balloon) = memory.balloon {
        let parts = [
            (bytes(balloon.actual_bytes), "given"),
            (bytes(balloon.target_bytes), "asked for"),
        ];
        rows.push(row("balloon", list(&parts)));
    }
    if let Some(last) = &status.last {
        let (outcome, what) = (last.outcome.as_deref(), last.what.as_deref());
        let said = [outcome, what].into_iter().flatten().filter(|text| !text.is_empty());
        let said = said.collect::<Vec<_>>().join(": ");
        rows.push(row("last resize", said));
    }
    rows
}

/// The answer to `vm.counters`: those of one device together.
pub fn counters(answer: &Value) -> String {
    let mut rows = Vec::new();
    for (device, counters) in answer.as_object().into_iter().flatten() {
        for (name, value) in counters.as_object().into_iter().flatten() {
            rows.push(vec![device.clone(), name.clone(), text(value)]);
        }
    }
    table(&rows)
}

/// The answer to `vm.queues`: a line for each queue, and one for what cannot be told of it. What is not known is `-`.
pub fn queues(answer: &Value) -> String {
    let heads = [
        "DEVICE",
        "QUEUE",
        "SERVED-BY",
        "SIZE",
        "AVAIL",
        "NEXT",
        "USED",
        "USED-EVENT",
        "AVAIL-EVENT",
        "KICK",
        "INTERRUPT",
    ];
    let mut rows = vec![heads.map(String::from).to_vec()];
    let mut faults = String::new();
    for (device, queues) in answer.as_object().into_iter().flatten() {
        for queue in queues.as_array().into_iter().flatten() {
            let (avail, used, interrupt) = (&queue["avail"], &queue["used"], &queue["interrupt"]);
            let cells = [
                &queue["queue"],
                &queue["served_by"],
                &queue["size"],
                &avail["idx"],
                &queue["next_avail"],
                &used["idx"],
                &avail["used_event"],
                &used["avail_event"],
            ];
            let known = |value: &Value| match value.is_null() {
                true => "-".to_owned(),
                false => text(value),
            };
            let kick = match queue["kick_pending"].as_bool() {
                Some(true) => "pending",
                Some(false) => "none",
                None => "-",
            };
            let held = match (interrupt["masked"].as_bool(), interrupt["pending"].as_bool()) {
                (Some(true), Some(true)) => "masked, pending",
                (Some(true), _) => "masked",
                (Some(false), _) => "open",
                (None, _) => "-",
            };
            let row = [device.clone()].into_iter().chain(cells.map(known));
            rows.push(row.chain([kick.into(), held.into()]).collect());
            let errors = [avail, used].into_iter().filter_map(|ring| ring["error"].as_str());
            for error in errors {
                let _ = writeln!(faults, "{}: {}", plain(device), plain(error));
            }
        }
    }
    table(&rows) + &faults
}

fn row(name: &str, value: impl Into<String>) -> Vec<String> {
    vec![name.into(), value.into()]
}

/// A string without its quotes; nothing for nothing.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "show_test.rs"]
mod tests;
