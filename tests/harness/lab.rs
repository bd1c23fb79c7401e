//! Where the VMM and the guests' kernels are.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn variable(name: &str) -> PathBuf {
    match env::var_os(name) {
        Some(value) => value.into(),
        None => panic!("{name} is not set: guest-driven tests run by `cargo lab test [FILTER]`"),
    }
}

/// The VMM under test.
pub fn husk() -> Command {
    Command::new(variable("HUSK_BIN"))
}

/// A file of `kernel`, for example `vmlinuz` of `6.12`.
pub fn kernel_file(kernel: &str, name: &str) -> PathBuf {
    lab_file(&format!("{kernel}/{name}"))
}

/// A file that the lab has made.
pub(crate) fn lab_file(name: &str) -> PathBuf {
    let path = variable("HUSK_LAB_DIR").join(name);
    assert!(
        path.exists(),
        "{} is missing: `cargo lab test` makes it",
        path.display()
    );
    path
}
