//! `cargo lab test`: every test there is, with one summary.

use std::io::Stdout;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::build::{self, Built, Programs};
use crate::emulator::Emulator;
use crate::host::{Choice, Host};
use crate::paths::Lab;
use crate::progress;
use crate::report::Report;
use crate::suite::{self, Selection};
use crate::{images, pool, ready, tools};

/// Runs all tests, or those with a guest, or those whose name contains `filter`; whether they held.
///
/// # Errors
///
/// Something does not compile or cannot be fetched, or the emulated host died.
pub fn run(lab: &Lab, choice: &Choice, guests_only: bool, filter: Option<&str>) -> Result<bool> {
    let start = Instant::now();
    progress::say(&choice.why);
    let mut report = Report::new(std::io::stdout());
    ready::ensure(lab, choice.host)?;
    let units = guests_only || unit_tests(lab, filter, &mut report)?;
    progress::say("building what guests run");
    let programs = build::programs(lab)?;
    let tests = pool::with_tests(build::guest_tests(lab)?, filter);
    let guests = match choice.host {
        _ if tests.is_empty() => Ok(true),
        Host::Native => natively(lab, &programs, &tests, filter, &mut report),
        Host::Emulated => {
            Emulator::prepare(lab, &programs).and_then(|emulator| pool::run(&emulator, &tests, filter, &mut report))
        }
    };
    if let Some(filter) = filter.filter(|_| guests.is_ok() && report.tally.is_empty()) {
        bail!("no test has '{filter}' in its name, and no program of guest-driven tests is called so");
    }
    if let Err(error) = &guests {
        report.tally.failures.push(format!("guest-driven tests: {error:#}"));
    }
    let held = report.conclude();
    progress::say(&format!("took {} s", start.elapsed().as_secs()));
    Ok(held && units && guests.unwrap_or(false))
}

/// The tests that need no guest, run by cargo here; whether cargo was content.
fn unit_tests(lab: &Lab, filter: Option<&str>, report: &mut Report<Stdout>) -> Result<bool> {
    progress::say("unit and integration tests without a guest");
    let tools = tools::variables(lab)?;
    let mut cargo = build::cargo(lab);
    cargo
        .envs(tools)
        .args([
            "test",
            "--workspace",
            "--exclude",
            "husk-tests",
            "--no-fail-fast",
            "--",
            "--show-output",
        ])
        .args(filter);
    report.tally.name_program("");
    let held = report.watch(&mut cargo)?;
    report.tally.close();
    Ok(held)
}

fn natively(
    lab: &Lab,
    programs: &Programs,
    tests: &[Built],
    filter: Option<&str>,
    report: &mut Report<Stdout>,
) -> Result<bool> {
    images::ensure_guests(lab, &programs.guest_init)?;
    let mut inside = Command::new(std::env::current_exe()?);
    inside
        .arg("suite")
        .args(filter.map(|filter| format!("--filter={filter}")));
    inside.args(tests.iter().map(|test| &test.path));
    inside.env("HUSK_LAB_DIR", lab.guest()).env("HUSK_BIN", &programs.husk);
    let held = report.watch(&mut inside)?;
    report.tally.close();
    Ok(held)
}

/// The test programs as the suite takes them.
#[derive(clap::Args)]
pub struct SuiteArgs {
    /// Run only tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Run only the tests of these names.
    #[arg(long, conflicts_with = "filter")]
    exact: Vec<String>,
    /// Test programs.
    programs: Vec<PathBuf>,
}

/// `husk-lab suite`: the part of `cargo lab test` that runs where guests run.
///
/// # Errors
///
/// A test program did not start.
pub fn suite(arguments: &SuiteArgs) -> Result<bool> {
    let selection = match &arguments.filter {
        Some(filter) => Selection::Containing(filter),
        None => Selection::Exact(&arguments.exact),
    };
    suite::run(&arguments.programs, selection)
}
