//! Runs the guest-driven test programs one after another, on the machine where guests run.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::command::command;

/// What a line that names the next test program begins with.
pub const HEADING: &str = "lab: testing ";

/// Tests that run at the same time: each has a guest, and the emulated host two processors.
const JOBS: &str = "2";

/// Runs the tests of `programs` whose name contains `filter`, and all of a program that is called so; whether all held.
///
/// # Errors
///
/// A program did not start.
pub fn run(programs: &[PathBuf], filter: Option<&str>) -> Result<bool> {
    let mut held = true;
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        println!("{HEADING}{name}");
        // The name of a program stands for all of its tests.
        let filter = filter.filter(|filter| *filter != name);
        let mut test = command(program);
        test.args(["--test-threads", JOBS, "--show-output"])
            .args(filter)
            .stdout(Stdio::inherit())
            .env("RUST_BACKTRACE", "0");
        let status = test.status().with_context(|| format!("cannot start {name}"))?;
        held &= status.success();
    }
    Ok(held)
}
