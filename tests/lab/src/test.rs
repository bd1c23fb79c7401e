//! `cargo lab test`: every test there is, with one summary.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::build::{self, Built, Programs};
use crate::command::typed;
use crate::emulator::{Emulator, Request};
use crate::host::{self, Choice, Host};
use crate::paths::Lab;
use crate::progress;
use crate::tally::{Skip, Tally};
use crate::{images, suite, sys};

/// When the emulated host is taken to hang. The whole suite takes a fraction of it.
const TIMEOUT: Duration = Duration::from_secs(40 * 60);

/// Emulated hosts that may be tried: QEMU's threads do not always agree in time on code that a kernel rewrites while it runs, and the
/// host dies of it, mostly within its first seconds.
pub const HOSTS: u32 = 5;

/// Runs all tests, or those with a guest, or those whose name contains `filter`; whether they held.
///
/// # Errors
///
/// Something does not compile or cannot be fetched, or the emulated host died.
pub fn run(lab: &Lab, choice: &Choice, guests_only: bool, filter: Option<&str>) -> Result<bool> {
    let start = Instant::now();
    progress::say(&choice.why);
    let mut report = Report::new(Box::new(std::io::stdout()));
    let units = guests_only || unit_tests(lab, filter, &mut report)?;
    progress::say("building what guests run");
    let programs = build::programs(lab)?;
    let tests = build::guest_tests(lab)?;
    let guests = match choice.host {
        Host::Native => natively(lab, &programs, &tests, filter, &mut report),
        Host::Emulated => emulated(lab, &programs, &tests, filter, &mut report),
    };
    report.tally.close();
    if let Err(error) = &guests {
        report.tally.failures.push(format!("guest-driven tests: {error:#}"));
    }
    let held = report.conclude(choice.host);
    progress::say(&format!("took {} s", start.elapsed().as_secs()));
    Ok(held && units && guests.unwrap_or(false))
}

/// The tests that need no guest, run by cargo here; whether cargo was content.
fn unit_tests(lab: &Lab, filter: Option<&str>, report: &mut Report) -> Result<bool> {
    progress::say("unit and integration tests without a guest");
    let mut cargo = build::cargo(lab);
    cargo
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
    report: &mut Report,
) -> Result<bool> {
    images::ensure_guests(lab, &programs.guest_init)?;
    let mut inside = Command::new(std::env::current_exe()?);
    inside
        .arg("suite")
        .args(filter.map(|filter| format!("--filter={filter}")));
    inside.args(tests.iter().map(|test| &test.path));
    inside.env("HUSK_LAB_DIR", lab.guest()).env("HUSK_BIN", &programs.husk);
    report.watch(&mut inside)
}

fn emulated(
    lab: &Lab,
    programs: &Programs,
    tests: &[Built],
    filter: Option<&str>,
    report: &mut Report,
) -> Result<bool> {
    let emulator = Emulator::prepare(lab, programs)?;
    let mut request = Request {
        timeout: Some(TIMEOUT),
        // How large, how long: what a test takes from its environment.
        env: std::env::vars()
            .filter(|(name, _)| name.starts_with("HUSK_TEST_"))
            .collect(),
        ..Request::default()
    };
    request.files.push((std::env::current_exe()?, "bin/husk-lab".into()));
    request.command.extend(["husk-lab".into(), "suite".into()]);
    request
        .command
        .extend(filter.map(|filter| format!("--filter={filter}")));
    // A host of its own for each program, unless a filter leaves little to do: one that dies takes the less with it.
    let per_host = if filter.is_some() { tests.len().max(1) } else { 1 };
    let mut held = true;
    for tests in tests.chunks(per_host) {
        let mut request = request.clone();
        for test in tests {
            let place = format!("tests/{}", test.name);
            request.files.push((test.path.clone(), place.clone()));
            request.command.push(format!("/work/{place}"));
        }
        held &= beyond_doubt(&emulator, &request, report)?;
    }
    Ok(held)
}

/// Whether all tests of `request` held, in the first host or in a second one. What kills an emulated host can also kill a guest in it, and
/// then a test fails that has found nothing: what fails twice has.
fn beyond_doubt(emulator: &Emulator, request: &Request, report: &mut Report) -> Result<bool> {
    let before = report.tally.clone();
    if in_some_host(emulator, request, report)? {
        return Ok(true);
    }
    if sys::interrupted() {
        return Ok(false);
    }
    report.tally.close();
    let failed = report
        .tally
        .failures
        .split_off(before.failures.len().min(report.tally.failures.len()));
    progress::say(&format!(
        "failed in this emulated host: {}; what fails in another one, too, has failed",
        failed.join(", ")
    ));
    report.tally = before;
    in_some_host(emulator, request, report)
}

/// Whether all tests of `request` held. An emulated host that dies takes its tests with it and says nothing of them: they get another
/// one, and the user is told.
fn in_some_host(emulator: &Emulator, request: &Request, report: &mut Report) -> Result<bool> {
    let before = report.tally.clone();
    for _ in 1..HOSTS {
        match in_one_host(emulator, request, report) {
            Err(death) if !sys::interrupted() => progress::say(&format!(
                "{death:#}\nlab: the emulated host did not last: its tests run again"
            )),
            ended => return ended,
        }
        report.tally = before.clone();
    }
    in_one_host(emulator, request, report)
}

/// Whether all tests of `request` held in one boot of the emulated host.
fn in_one_host(emulator: &Emulator, request: &Request, report: &mut Report) -> Result<bool> {
    let mut booting = Some(progress::Ticker::start("booting the emulated host"));
    let finished = emulator.run(request, &mut |bytes| {
        if let Some(ticker) = booting.take() {
            ticker.end("");
        }
        report.bytes(bytes);
    })?;
    Ok(finished.exit == 0)
}

/// What the tests print, on its way to the user and counted.
struct Report {
    tally: Tally,
    out: Box<dyn Write>,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
}

impl Report {
    fn new(out: Box<dyn Write>) -> Self {
        Self {
            tally: Tally::default(),
            out,
            partial: Vec::new(),
        }
    }

    /// Runs a command and reads its standard output; whether it succeeded.
    fn watch(&mut self, command: &mut Command) -> Result<bool> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", typed(command)))?;
        let mut output = BufReader::new(child.stdout.take().context("no pipe from the tests")?);
        loop {
            let bytes = output.fill_buf()?;
            let count = bytes.len();
            if count == 0 {
                break;
            }
            self.bytes(bytes);
            output.consume(count);
        }
        Ok(child.wait()?.success())
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.line(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(program) = line.strip_prefix(suite::HEADING) {
            self.tally.close();
            self.tally.name_program(program);
        }
        if self.tally.line(line) {
            let _ = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
        }
    }

    /// Prints what failed, what was skipped, and the summary; whether everything that can run here ran and held.
    fn conclude(&self, host: Host) -> bool {
        println!();
        for name in &self.tally.failures {
            println!("failed: {name}");
        }
        let mut held = self.tally.failures.is_empty();
        for skip in &self.tally.skips {
            let excused = excused(skip, host);
            let verdict = if excused { "" } else { " (this machine can run it)" };
            println!("skipped: {}: {}{verdict}", skip.name, skip.reason);
            held &= excused;
        }
        println!("{}", self.tally.summary());
        held
    }
}

/// Whether this machine really lacks what the test says it needs. A reason that is not known here excuses nothing.
fn excused(skip: &Skip, host: Host) -> bool {
    let root = || crate::command::output(crate::command::command("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    match skip.reason.as_str() {
        reason if reason.contains("needs a native host") => host == Host::Emulated,
        reason if reason.contains("needs /dev/kvm") => host::open_kvm().is_err(),
        reason if reason.contains("needs root") => !root(),
        _ => false,
    }
}

/// The test programs as the suite takes them.
#[derive(clap::Args)]
pub struct SuiteArgs {
    /// Run only tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Test programs.
    programs: Vec<PathBuf>,
}

/// `husk-lab suite`: the part of `cargo lab test` that runs where guests run.
///
/// # Errors
///
/// A test program did not start.
pub fn suite(arguments: &SuiteArgs) -> Result<bool> {
    suite::run(&arguments.programs, arguments.filter.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_excused_only_by_what_this_machine_lacks() {
        let skip = |reason: &str| Skip {
            name: "t".into(),
            reason: reason.into(),
        };
        assert!(excused(&skip("needs a native host"), Host::Emulated));
        assert!(!excused(&skip("needs a native host"), Host::Native));
        assert!(!excused(&skip("flaky"), Host::Emulated));
        assert!(!excused(&skip(""), Host::Emulated));
        assert_eq!(
            excused(&skip("needs /dev/kvm"), Host::Native),
            host::open_kvm().is_err()
        );
    }

    #[test]
    fn lines_split_between_reads_are_read_whole() {
        // Not to standard output: a runner's words there would be counted by the lab that runs this test.
        let mut report = Report::new(Box::new(std::io::sink()));
        for part in [
            "runn",
            "ing 1 test\ntest a ... o",
            "k\ntest result: ok. 1 passed; 0 fa",
            "iled; 0 ignored\n",
        ] {
            report.bytes(part.as_bytes());
        }
        assert_eq!(report.tally.summary(), "1 passed, 0 failed, 0 skipped");
    }
}
