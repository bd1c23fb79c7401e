//! The end of what a guest's consoles printed, where that went into files.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::parts::{FILE_BYTES, tail};
use crate::config::{ConsoleConfig, ConsoleMode, MAX_KEEP};
use crate::terminal::numbered;

/// The end of what the ports of the VM `config` printed; `whole_path` makes the path of a file of the process's own words.
///
/// # Errors
/// There is no such file, or none can be read.
pub(super) fn consoles(config: &Value, whole_path: impl Fn(&Path) -> PathBuf) -> Result<Vec<u8>, String> {
    let (mut text, mut missing) = (Vec::new(), Vec::new());
    for port in ["console", "serial"] {
        let Ok(port) = ConsoleConfig::deserialize(&config[port]) else {
            continue;
        };
        let (ConsoleMode::File, Some(file)) = (port.mode, &port.file) else {
            continue;
        };
        let path = whole_path(file);
        let end = match port.limit {
            None => tail(&path),
            Some(_) => end_of_several(&path, port.kept().min(MAX_KEEP)),
        };
        match end {
            Ok(end) => {
                text.extend(format!("==> {} <==\n", file.display()).into_bytes());
                text.extend(end);
            }
            Err(why) => missing.push(why),
        }
    }
    match (text.is_empty(), missing.is_empty()) {
        (true, true) => Err("no console of the VM is a file".into()),
        (true, false) => Err(missing.join("; ")),
        (false, _) => {
            text.extend(missing.iter().flat_map(|why| format!("({why})\n").into_bytes()));
            Ok(text)
        }
    }
}

/// The end of what went into `path` and `beside` more files in turn: the one that was written last has it.
fn end_of_several(path: &Path, beside: u32) -> Result<Vec<u8>, String> {
    let paths = (0..=beside).map(|number| numbered(path, number));
    let mut written: Vec<_> = paths
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    written.sort();
    let mut text = Vec::new();
    for (_, path) in written.iter().rev() {
        let mut earlier = tail(path)?;
        earlier.append(&mut text);
        text = earlier;
        if text.len() as u64 >= FILE_BYTES {
            break;
        }
    }
    match written.is_empty() {
        true => tail(path),
        false => Ok(text.split_off(
            text.len()
                .saturating_sub(usize::try_from(FILE_BYTES).unwrap_or(usize::MAX)),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use serde_json::json;

    use super::*;

    fn shown(config: &Value, folder: &Path) -> Result<String, String> {
        consoles(config, |file| folder.join(file)).map(|text| String::from_utf8(text).unwrap())
    }

    #[test]
    fn files_that_take_turns_are_read_in_the_order_in_which_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        // The third is of before the VM, and has had no turn yet.
        for (name, text, age) in [("c", "last words\n", 1), ("c.1", "after that\n", 3), ("c.2", "", 9)] {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            let file = File::options().append(true).open(path).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        }
        let config = json!({"serial": {"mode": "File", "file": "c", "limit": 4096, "keep": 2}});
        assert_eq!(
            shown(&config, folder.path()).unwrap(),
            "==> c <==\nafter that\nlast words\n"
        );
        let without = json!({"serial": {"mode": "File", "file": "c"}});
        assert_eq!(shown(&without, folder.path()).unwrap(), "==> c <==\nlast words\n");
        let long = vec![b'x'; usize::try_from(FILE_BYTES).unwrap()];
        fs::write(folder.path().join("c.2"), &long).unwrap();
        let kept = shown(&config, folder.path()).unwrap();
        assert_eq!(kept.len() as u64, FILE_BYTES + "==> c <==\n".len() as u64);
        assert!(kept.ends_with("xxx"));
    }

    #[test]
    fn a_port_that_is_no_file_costs_the_other_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("c"), "said\n").unwrap();
        let serial = json!({"mode": "File", "file": "c"});
        for console in [
            json!({"mode": "Pty", "file": "/dev/pts/0"}),
            json!({"mode": "Off", "file": "gone"}),
            Value::Null,
        ] {
            let config = json!({"serial": serial, "console": console});
            assert_eq!(shown(&config, folder.path()).unwrap(), "==> c <==\nsaid\n", "{console}");
        }
        let gone = json!({"serial": serial, "console": {"mode": "File", "file": "gone"}});
        let text = shown(&gone, folder.path()).unwrap();
        assert!(
            text.starts_with("==> c <==\nsaid\n(") && text.contains("gone: "),
            "{text}"
        );
        let config = json!({"console": {"mode": "File", "file": "gone", "limit": 4096}});
        assert!(
            shown(&config, folder.path())
                .unwrap_err()
                .contains("gone: No such file")
        );
        assert_eq!(
            shown(&json!({}), folder.path()),
            Err("no console of the VM is a file".into())
        );
    }
}
