//! Wrong input of every kind: one line that names it, the right exit code, nothing left running. No guest is started.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use husk_tests::{end_of, husk, kernel_file};
use tempfile::TempDir;

/// No wrong input takes longer to be refused.
const PATIENCE: Duration = Duration::from_secs(240);

const USAGE: i32 = 2;
const FAILURE: i32 = 1;

/// Runs `husk run` with a good kernel unless `arguments` have one.
fn run(arguments: &[&str]) -> Output {
    let mut command = husk();
    command.arg("run");
    if !arguments.contains(&"--kernel") {
        command.arg("--kernel").arg(kernel_file("6.12", "vmlinuz"));
    }
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    if end_of(&mut child, PATIENCE).unwrap().is_none() {
        child.kill().unwrap();
        panic!("still running after {PATIENCE:?}: {arguments:?}");
    }
    child.wait_with_output().unwrap()
}

/// Asserts that `arguments` are refused with `code` and one line that has all `words`.
#[track_caller]
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{arguments:?} wrote to standard output");
    // The command line parser adds a hint below; the message itself is one line.
    let message = errors.trim_end().split("\n\n").next().unwrap_or_default();
    assert_eq!(message.lines().count(), 1, "{arguments:?}: {errors}");
    for word in words {
        assert!(message.contains(word), "{arguments:?}: no {word:?} in {message:?}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// The first `length` bytes of a kernel.
    fn cut(&self, name: &str, length: u64) -> PathBuf {
        let mut content = Vec::new();
        File::open(kernel_file("6.12", name))
            .unwrap()
            .take(length)
            .read_to_end(&mut content)
            .unwrap();
        self.file(name, &content)
    }
}

#[test]
fn a_missing_kernel_is_named() {
    refused(
        &["--kernel", "/nowhere/vmlinuz"],
        FAILURE,
        &["/nowhere/vmlinuz", "No such file"],
    );
    refused(&["--kernel", "/"], FAILURE, &["/"]);
}

#[test]
fn what_is_not_a_kernel_is_named() {
    let folder = Folder::new();
    for content in [b"".as_slice(), b"#!/bin/sh\n", &[0; 4096], &[0xff; 100_000]] {
        let path = folder.file("kernel", content);
        refused(&["--kernel", text(&path)], FAILURE, &[text(&path)]);
    }
}

#[test]
fn a_truncated_kernel_is_named() {
    let folder = Folder::new();
    for (name, length) in [
        ("vmlinux", 40),
        ("vmlinux", 200),
        ("vmlinux", 1 << 20),
        ("vmlinuz", 0x210),
        ("vmlinuz", 1 << 20),
    ] {
        let path = folder.cut(name, length);
        refused(&["--kernel", text(&path)], FAILURE, &[text(&path)]);
    }
}

/// Offsets of fields in the first program header of a 64-bit ELF file (ELF-64 Object File Format 1.5, figures 2 and 6).
mod elf {
    pub const PHOFF: u64 = 0x20;
    pub const P_OFFSET: u64 = 0x08;
    pub const P_PADDR: u64 = 0x18;
    pub const P_FILESZ: u64 = 0x20;
    pub const P_MEMSZ: u64 = 0x28;
}

/// A kernel whose first program header has `value` at `field`.
fn hostile(folder: &Folder, field: u64, value: u64) -> PathBuf {
    let path = folder.0.path().join("hostile");
    fs::copy(kernel_file("6.12", "vmlinux"), &path).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut table = [0; 8];
    file.read_exact_at(&mut table, elf::PHOFF).unwrap();
    file.write_all_at(&value.to_le_bytes(), u64::from_le_bytes(table) + field)
        .unwrap();
    path
}

#[test]
fn a_hostile_elf_file_is_named() {
    let folder = Folder::new();
    let huge = [1 << 40, 1 << 63, u64::MAX, u64::MAX - 0xfff];
    let fields = [elf::P_OFFSET, elf::P_PADDR, elf::P_FILESZ, elf::P_MEMSZ];
    for (index, field) in fields.into_iter().enumerate() {
        let path = hostile(&folder, field, huge[index]);
        refused(&["--kernel", text(&path)], FAILURE, &[text(&path)]);
    }
    let path = hostile(&folder, elf::P_PADDR, u64::MAX);
    refused(&["--kernel", text(&path)], FAILURE, &[text(&path)]);
}

#[test]
fn a_hostile_bzimage_is_named() {
    let folder = Folder::new();
    let good = fs::read(kernel_file("6.12", "vmlinuz")).unwrap();
    // Boot protocol fields: setup_sects, payload_offset, payload_length (Documentation/arch/x86/boot.rst).
    for (offset, value) in [(0x248, u32::MAX), (0x24c, u32::MAX), (0x24c, 3)] {
        let mut bad = good.clone();
        bad[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
        let path = folder.file("bad", &bad);
        refused(&["--kernel", text(&path)], FAILURE, &[text(&path)]);
    }
}

#[test]
fn a_kernel_or_initramfs_that_does_not_fit_is_named_with_the_memory_there_is() {
    refused(&["--memory", "32M"], FAILURE, &["vmlinuz"]);
    let folder = Folder::new();
    let path = folder.0.path().join("initramfs");
    File::create(&path).unwrap().set_len(1 << 30).unwrap();
    refused(
        &["--initramfs", text(&path), "--memory", "256M"],
        FAILURE,
        &[text(&path)],
    );
    refused(
        &["--initramfs", "/nowhere/initramfs"],
        FAILURE,
        &["/nowhere/initramfs", "No such file"],
    );
}

#[test]
fn impossible_memory_is_named() {
    refused(&["--memory", "0"], USAGE, &["memory", "0"]);
    refused(&["--memory", "1234567T"], USAGE, &["memory"]);
    refused(
        &["--memory", "99999999999999999999G"],
        USAGE,
        &["memory", "99999999999999999999G"],
    );
    refused(&["--memory", "lots"], USAGE, &["memory", "lots"]);
}

#[test]
fn impossible_processors_are_named() {
    refused(&["--cpus", "0"], USAGE, &["cpus", "0"]);
    refused(&["--cpus", "-1"], USAGE, &["-1"]);
    refused(&["--cpus", "two"], USAGE, &["cpus", "two"]);
    let output = run(&["--cpus", "1000000"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        matches!(output.status.code(), Some(FAILURE | USAGE)) && errors.contains("1000000"),
        "{errors}"
    );
}

#[test]
fn unknown_options_and_keys_are_named_with_what_is_allowed() {
    refused(&["--colour", "blue"], USAGE, &["--colour"]);
    refused(&["--disk", "path=/tmp/x,colour=blue"], USAGE, &["colour", "readonly"]);
    refused(&["--disk", "readonly=on"], USAGE, &["path"]);
    refused(
        &["--disk", "path=/tmp/x,readonly=perhaps"],
        USAGE,
        &["readonly", "perhaps"],
    );
    refused(&["--serial", "telepathy"], USAGE, &["telepathy"]);
    refused(&["--serial", "stdio", "--console", "stdio"], USAGE, &["stdio"]);
}

#[test]
fn a_command_line_that_is_too_long_is_named() {
    refused(&["--cmdline", &"x".repeat(2048)], USAGE, &["2048", "2047"]);
}

#[test]
fn disks_that_cannot_be_are_named() {
    refused(
        &["--disk", "path=/nowhere/disk"],
        FAILURE,
        &["/nowhere/disk", "No such file"],
    );
    refused(&["--disk", "path=/"], FAILURE, &["/"]);
    let folder = Folder::new();
    let path = folder.file("disk", &[0; 4096]);
    let key = format!("path={},id=a", text(&path));
    refused(&["--disk", &key, "--disk", &key], USAGE, &["a"]);
    let queues = format!("path={},queues=0", text(&path));
    refused(&["--disk", &queues], USAGE, &["queues", "0"]);
}

#[test]
fn files_that_cannot_be_written_are_named() {
    refused(
        &["--serial", "file=/nowhere/serial.log"],
        FAILURE,
        &["/nowhere/serial.log"],
    );
    refused(
        &["--boot-trace", "/nowhere/trace.json"],
        FAILURE,
        &["/nowhere/trace.json"],
    );
}

#[test]
fn a_reader_that_leaves_does_not_keep_the_message_from_ending_the_program() {
    let mut command = husk();
    command.args(["run", "--kernel", "/nowhere"]).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(FAILURE));
    std::io::stdout().flush().unwrap();
}
