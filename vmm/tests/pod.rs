//! `husk run --pod` on a guest of a few instructions. Needs `/dev/kvm`.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use serde_json::json;

/// The reserve is all that the host has: it costs nothing.
#[test]
fn a_sandbox_boots_with_its_size_and_room() {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        println!("skipped: needs /dev/kvm");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (kernel, sandbox) = (folder.path().join("vmlinux"), folder.path().join("config.json"));
    fs::write(
        &kernel,
        husk_benches::elf_of(&husk_benches::code(husk_benches::Then::PowerOff)),
    )
    .unwrap();
    let memory = "io.katacontainers.config.hypervisor.default_memory";
    fs::write(&sandbox, json!({"annotations": {memory: "256"}}).to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_husk"));
    command.args(["run", "--serial", "null", "--kernel"]).arg(&kernel);
    command.arg("--pod").arg(&sandbox).stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
}
