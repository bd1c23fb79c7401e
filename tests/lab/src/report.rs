//! What test programs print, on its way to the user and counted.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::command::typed;
use crate::host::Host;
use crate::needs;
use crate::suite;
use crate::tally::Tally;

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
    pub fn conclude(&mut self) -> bool {
        let (text, held) = conclusion(&self.tally);
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        held
    }
}

fn conclusion(tally: &Tally) -> (String, bool) {
    let mut lines = vec![String::new()];
    // Once more: what came in between can be long.
    for (name, said) in &tally.said {
        lines.push(format!("---- {name} ----\n{said}"));
    }
    lines.extend(tally.failures.iter().map(|name| format!("failed: {name}")));
    let mut held = tally.failures.is_empty();
    for skip in &tally.skips {
        let excused = needs::allows_skip(&skip.reason, skip.host);
        let verdict = match skip.host {
            _ if excused => "",
            Host::Native => " (this machine can run it)",
            Host::Emulated => " (the emulated host can run it)",
        };
        lines.push(format!("skipped: {}: {}{verdict}", skip.name, skip.reason));
        held &= excused;
    }
    for skip in &tally.left_out {
        lines.push(format!("left out: {}: {}", skip.name, skip.reason));
    }
    lines.push(tally.summary());
    lines.push(String::new());
    (lines.join("\n"), held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Skip;

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
        assert_eq!(conclusion(&tally), (text.into(), false));
    }

    #[test]
    fn a_failure_or_a_skip_without_reason_spoils_the_whole() {
        let mut tally = Tally::default();
        assert_eq!(conclusion(&tally), ("\n0 passed, 0 failed, 0 skipped\n".into(), true));
        tally.failures.push("a".into());
        assert_eq!(
            conclusion(&tally),
            ("\nfailed: a\n0 passed, 1 failed, 0 skipped\n".into(), false)
        );
        let skip = |reason: &str, host| Skip {
            name: "b".into(),
            reason: reason.into(),
            host,
        };
        let mut tally = Tally::default();
        tally.skips.push(skip("flaky", Host::Native));
        tally.skips.push(skip("needs root", Host::Emulated));
        let text = "\nskipped: b: flaky (this machine can run it)\nskipped: b: needs root (the emulated host can run it)\n\
                    0 passed, 0 failed, 1 skipped\n";
        assert_eq!(conclusion(&tally), (text.into(), false));
        let mut tally = Tally::default();
        tally.skips.push(skip("needs a native host", Host::Emulated));
        tally.left_out.push(skip("nobody wants it", Host::Native));
        let text = "\nskipped: b: needs a native host\nleft out: b: nobody wants it\n0 passed, 0 failed, 1 skipped, 1 left out\n";
        assert_eq!(conclusion(&tally), (text.into(), true));
    }
}
