//! The end of what a guest's consoles printed, where that went into files.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::parts::FILE_BYTES;
use super::process_parts::log_file;
use super::written::{Written, called, outputs};
use crate::cli::parse_console;
use crate::config::{ConsoleConfig, ConsoleMode, MAX_KEEP};
use crate::fleet::HuskProcess;
use crate::terminal::numbered;

/// Why there is nothing to read.
const NONE: &str = "no console of the VM is a file";

/// The end of what the ports of the VM `config` of `husk` printed.
///
/// # Errors
/// There is no such file, or none can be read.
pub(super) fn by_word(config: &Value, husk: &HuskProcess) -> Result<Vec<u8>, String> {
    let ports = ["console", "serial"].map(|port| ConsoleConfig::deserialize(&config[port]).ok());
    of_ports(ports.into_iter().flatten(), husk).unwrap_or_else(|| Err(NONE.into()))
}

/// The end of what the ports of `husk` printed, who is not asked: by what it was started with, or
/// else by what it has open.
///
/// # Errors
/// There is no such file, or none can be read.
pub(super) fn unasked(husk: &HuskProcess) -> Result<Vec<u8>, String> {
    let ports = ["--console", "--serial"].map(|port| parse_console(husk.option(port)?).ok());
    of_ports(ports.into_iter().flatten(), husk).unwrap_or_else(|| open(husk))
}

/// The end of what `ports` printed; `None` if none of them is a file.
fn of_ports(ports: impl Iterator<Item = ConsoleConfig>, husk: &HuskProcess) -> Option<Result<Vec<u8>, String>> {
    let (mut text, mut missing) = (Vec::new(), Vec::new());
    for port in ports {
        let (ConsoleMode::File, Some(file)) = (port.mode, &port.file) else {
            continue;
        };
        let beside = port.limit.map_or(0, |_| port.kept().min(MAX_KEEP));
        let found = (0..=beside).map(|number| called(husk, &numbered(file, number)));
        let (mut files, mut why) = (Vec::new(), Vec::new());
        found.for_each(|found| match found {
            Ok(file) => files.push(file),
            Err(error) => why.push(error),
        });
        files.sort_by_key(|file| file.modified);
        match end(&files) {
            Ok(end) if !files.is_empty() => {
                text.extend(format!("==> {} <==\n", file.display()).into_bytes());
                text.extend(end);
            }
            Ok(_) => missing.extend(why.into_iter().next()),
            Err(why) => missing.push(why),
        }
    }
    match (text.is_empty(), missing.is_empty()) {
        (true, true) => None,
        (true, false) => Some(Err(missing.join("; "))),
        (false, _) => {
            text.extend(missing.iter().flat_map(|why| format!("({why})\n").into_bytes()));
            Some(Ok(text))
        }
    }
}

/// The end of what `husk` has open as a guest's output is.
fn open(husk: &HuskProcess) -> Result<Vec<u8>, String> {
    let places = ["--event-monitor", "--boot-trace"].map(|name| {
        let place = husk.option(name)?;
        Some(PathBuf::from(place.strip_prefix("path=").unwrap_or(place)))
    });
    let others: Vec<PathBuf> = places.into_iter().chain([log_file(husk)]).flatten().collect();
    let files = outputs(husk, &others)?;
    let mut text = Vec::new();
    for file in &files {
        text.extend(format!("==> {} <==\n", file.name.display()).into_bytes());
        text.extend(file.tail()?);
    }
    match files.is_empty() {
        true => Err(NONE.into()),
        false => Ok(last(text)),
    }
}

/// The end of what went into `files` in turn: the last one was written to last.
fn end(files: &[Written]) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    for file in files.iter().rev() {
        let mut earlier = file.tail()?;
        earlier.append(&mut text);
        text = earlier;
        if text.len() as u64 >= FILE_BYTES {
            break;
        }
    }
    Ok(last(text))
}

/// As much of the end of `text` as is kept of a file.
fn last(mut text: Vec<u8>) -> Vec<u8> {
    let kept = usize::try_from(FILE_BYTES).unwrap_or(usize::MAX);
    text.split_off(text.len().saturating_sub(kept))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use serde_json::json;

    use super::*;

    /// What is shown of the files of `config` in `folder`, which this process has open.
    fn shown(mut config: Value, folder: &Path) -> Result<String, String> {
        for port in ["serial", "console"] {
            if let Some(Value::String(file)) = config.pointer_mut(&format!("/{port}/file")) {
                *file = folder.join(&*file).to_str().unwrap().to_owned();
            }
        }
        let text = by_word(&config, &HuskProcess::sample())?;
        let name = format!("{}/", folder.display());
        Ok(String::from_utf8(text).unwrap().replace(&name, ""))
    }

    /// `text` in the file `name`, which stays open.
    fn file(folder: &Path, name: &str, text: &[u8]) -> File {
        fs::write(folder.join(name), text).unwrap();
        File::options().append(true).open(folder.join(name)).unwrap()
    }

    #[test]
    fn files_that_take_turns_are_read_in_the_order_in_which_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let now = SystemTime::now();
        // The third is of before the VM, and has had no turn yet.
        let texts: [(&str, &[u8], u64); 3] = [("c", b"last words\n", 1), ("c.1", b"after that\n", 3), ("c.2", b"", 9)];
        let _open = texts.map(|(name, text, age)| {
            let file = file(folder, name, text);
            file.set_modified(now - Duration::from_secs(age)).unwrap();
            file
        });
        let config = json!({"serial": {"mode": "File", "file": "c", "limit": 4096, "keep": 2}});
        assert_eq!(
            shown(config.clone(), folder).unwrap(),
            "==> c <==\nafter that\nlast words\n"
        );
        let without = json!({"serial": {"mode": "File", "file": "c"}});
        assert_eq!(shown(without, folder).unwrap(), "==> c <==\nlast words\n");
        let long = vec![b'x'; usize::try_from(FILE_BYTES).unwrap()];
        fs::write(folder.join("c.2"), &long).unwrap();
        let kept = shown(config, folder).unwrap();
        assert_eq!(kept.len() as u64, FILE_BYTES + "==> c <==\n".len() as u64);
        assert!(kept.ends_with("xxx"));
    }

    #[test]
    fn a_port_that_is_no_file_costs_the_other_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let _open = file(folder, "c", b"said\n");
        let serial = json!({"mode": "File", "file": "c"});
        for console in [
            json!({"mode": "Pty", "file": "/dev/pts/0"}),
            json!({"mode": "Off", "file": "gone"}),
            Value::Null,
        ] {
            let config = json!({"serial": serial, "console": console});
            assert_eq!(shown(config, folder).unwrap(), "==> c <==\nsaid\n", "{console}");
        }
        let gone = json!({"serial": serial, "console": {"mode": "File", "file": "gone"}});
        let text = shown(gone, folder).unwrap();
        assert_eq!(text, "==> c <==\nsaid\n(gone: not open there for writing)\n");
        let config = json!({"console": {"mode": "File", "file": "gone", "limit": 4096}});
        let refused = shown(config, folder).unwrap_err();
        assert!(refused.ends_with("gone: not open there for writing"), "{refused}");
        assert_eq!(shown(json!({}), folder), Err(NONE.into()));
    }

    #[test]
    fn whoever_is_not_asked_has_said_it_on_the_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let _open = [file(folder, "c", b"said\n"), file(folder, "c.1", b"before\n")];
        _open[1]
            .set_modified(SystemTime::now() - Duration::from_secs(3))
            .unwrap();
        let name = folder.join("c");
        let words = ["husk", "run", "--console=null", "--serial"].map(str::to_owned);
        let husk = HuskProcess {
            arguments: words
                .into_iter()
                .chain([format!("file={},limit=4K,keep=1", name.display())])
                .collect(),
            ..HuskProcess::sample()
        };
        let text = String::from_utf8(unasked(&husk).unwrap()).unwrap();
        assert_eq!(text, format!("==> {} <==\nbefore\nsaid\n", name.display()));
    }
}
