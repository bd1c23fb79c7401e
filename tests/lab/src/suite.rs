//! Runs the guest-driven test programs one after another, on the machine where guests run.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::calls::Calls;
use crate::command::command;

/// What a line that names the next test program begins with.
pub const HEADING: &str = "lab: testing ";

/// Tests that run at the same time: one goes on while the guest of the other waits.
const JOBS: &str = "2";

/// Which tests to run.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'a> {
    /// Those whose name contains this, and all of a program that is called so.
    Containing(&'a str),
    /// Those of these names, or all if there is none.
    Exact(&'a [String]),
}

/// Runs tests of `programs`; whether all held.
///
/// # Errors
///
/// A program did not start.
pub fn run(programs: &[PathBuf], selection: Selection) -> Result<bool> {
    let calls = Calls::begin()?;
    let mut held = true;
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        println!("{HEADING}{name}");
        let mut test = command(program);
        test.args(["--test-threads", JOBS, "--show-output"])
            .stdout(Stdio::inherit())
            .env("RUST_BACKTRACE", "0");
        match selection {
            Selection::Containing(filter) if filter != name => drop(test.arg(filter)),
            Selection::Exact(names @ [_, ..]) => drop(test.arg("--exact").args(names)),
            Selection::Containing(_) | Selection::Exact([]) => {}
        }
        let status = test.status().with_context(|| format!("cannot start {name}"))?;
        held &= status.success();
    }
    calls.map_or(Ok(()), Calls::end)?;
    Ok(held)
}
