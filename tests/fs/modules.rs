//! Modules of the host's kernel that only some tests need.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Those of the emulated host that nobody has loaded: a folder for each, with what it needs, in their order.
const LATER: &str = "/later";

/// Loads `module`, as far as this host has it, with `parameters`.
pub fn load(module: &str, parameters: &[&str]) {
    if let Ok(files) = fs::read_dir(Path::new(LATER).join(module)) {
        let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for file in &files {
            // Not every one of them has such parameters, and the others are told in the kernel's
            // log that they have none.
            run(&[&["insmod", file.to_str().unwrap()], parameters].concat());
        }
    } else {
        run(&[&["modprobe", module], parameters].concat());
    }
}

/// Whether a command succeeds.
pub fn run(words: &[&str]) -> bool {
    let ran = Command::new(words[0]).args(&words[1..]).output();
    ran.is_ok_and(|ran| ran.status.success())
}
