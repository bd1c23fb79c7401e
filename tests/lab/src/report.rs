//! What test programs print, on its way to the user and counted.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::command::typed;
use crate::host::{self, Host};
use crate::suite;
use crate::tally::{Skip, Tally};

/// Output of test programs, counted line by line and passed on to `out`, less what tests that held have written.
pub struct Report<W> {
    /// What has been counted.
    pub tally: Tally,
    /// Where lines go.
    pub out: W,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
}

impl<W: Write> Report<W> {
    /// A report of nothing yet.
    pub fn new(out: W) -> Self {
        Self {
            tally: Tally::default(),
            out,
            partial: Vec::new(),
        }
    }

    /// Runs a command and reads its standard output; whether it succeeded.
    ///
    /// # Errors
    ///
    /// It did not start, or its output cannot be read.
    pub fn watch(&mut self, command: &mut Command) -> Result<bool> {
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

    /// Reads what programs print, however it is cut.
    pub fn bytes(&mut self, bytes: &[u8]) {
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
    pub fn conclude(&mut self, host: Host) -> bool {
        let (text, held) = conclusion(&self.tally, host);
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        held
    }
}

fn conclusion(tally: &Tally, host: Host) -> (String, bool) {
    let mut lines = vec![String::new()];
    // Once more: what came in between can be long.
    for (name, said) in &tally.said {
        lines.push(format!("---- {name} ----\n{said}"));
    }
    lines.extend(tally.failures.iter().map(|name| format!("failed: {name}")));
    let mut held = tally.failures.is_empty();
    for skip in &tally.skips {
        let excused = excused(skip, host);
        let verdict = if excused { "" } else { " (this machine can run it)" };
        lines.push(format!("skipped: {}: {}{verdict}", skip.name, skip.reason));
        held &= excused;
    }
    lines.push(tally.summary());
    lines.push(String::new());
    (lines.join("\n"), held)
}

/// Whether this machine really lacks what the test says it needs. A reason that is not known here excuses nothing.
fn excused(skip: &Skip, host: Host) -> bool {
    let root = || crate::command::output(crate::command::command("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    match skip.reason.as_str() {
        reason if reason.contains("needs a native host") => host == Host::Emulated,
        reason if reason.contains("needs /dev/kvm") => host::open_kvm().is_err(),
        reason if reason.contains("needs root") => !root(),
        reason if reason.contains("needs qemu-system-x86_64") => crate::command::find("qemu-system-x86_64").is_none(),
        reason if reason.contains("needs a loop device") => !can_open("/dev/loop-control"),
        reason if reason.contains("needs null_blk") => host == Host::Native && !knows_module("null_blk"),
        reason if reason.contains("needs quota_v2") => host == Host::Native && !knows_module("quota_v2"),
        _ => false,
    }
}

fn knows_module(name: &str) -> bool {
    crate::command::output(crate::command::command("modprobe").args(["--dry-run", name])).is_ok()
}

fn can_open(path: &str) -> bool {
    std::fs::File::options().read(true).write(true).open(path).is_ok()
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
        let qemu = crate::command::find("qemu-system-x86_64").is_some();
        assert_eq!(excused(&skip("needs qemu-system-x86_64"), Host::Native), !qemu);
        let loops = can_open("/dev/loop-control");
        assert_eq!(excused(&skip("needs a loop device"), Host::Native), !loops);
        // The emulated host has them.
        assert!(!excused(&skip("needs null_blk"), Host::Emulated));
        assert!(!excused(&skip("needs quota_v2"), Host::Emulated));
        assert!(can_open("/dev/null") && !can_open("/nowhere"));
    }

    #[test]
    fn lines_split_between_reads_are_read_whole() {
        // Not to standard output: a runner's words there would be counted by the lab that runs this test.
        let mut report = Report::new(Vec::new());
        for part in [
            "runn",
            "ing 1 test\ntest a ... o",
            "k\ntest result: ok. 1 passed; 0 fa",
            "iled; 0 ignored\n",
        ] {
            report.bytes(part.as_bytes());
        }
        assert_eq!(report.tally.summary(), "1 passed, 0 failed, 0 skipped");
        let shown = "running 1 test\ntest a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        assert_eq!(String::from_utf8(report.out).unwrap(), shown);
    }

    #[test]
    fn what_a_failed_test_has_written_is_shown_again_at_the_end() {
        let mut tally = Tally::default();
        tally.failures.push("p: a".into());
        tally.said.push(("p: a".into(), "panicked\n".into()));
        let text = "\n---- p: a ----\npanicked\n\nfailed: p: a\n0 passed, 1 failed, 0 skipped\n";
        assert_eq!(conclusion(&tally, Host::Native), (text.into(), false));
    }

    #[test]
    fn a_failure_or_a_skip_without_reason_spoils_the_whole() {
        let mut tally = Tally::default();
        assert_eq!(
            conclusion(&tally, Host::Native),
            ("\n0 passed, 0 failed, 0 skipped\n".into(), true)
        );
        tally.failures.push("a".into());
        assert_eq!(
            conclusion(&tally, Host::Native),
            ("\nfailed: a\n0 passed, 1 failed, 0 skipped\n".into(), false)
        );
        let skip = Skip {
            name: "b".into(),
            reason: "flaky".into(),
        };
        let mut tally = Tally::default();
        tally.skips.push(skip);
        let text = "\nskipped: b: flaky (this machine can run it)\n0 passed, 0 failed, 1 skipped\n";
        assert_eq!(conclusion(&tally, Host::Native), (text.into(), false));
    }
}
