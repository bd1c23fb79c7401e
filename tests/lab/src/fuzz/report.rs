//! What became of one target, as libFuzzer's log tells it.

use std::path::PathBuf;

/// Above the rows.
pub const HEADING: &str = "target        executions   exec/s  coverage   corpus  crashes";

/// Lines of a log that are shown where it names no input.
const TAIL: usize = 12;

/// Figures of one target, and what was wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    executions: u64,
    per_second: u64,
    /// Edges between basic blocks that some input of the corpus takes.
    coverage: u64,
    /// Inputs in the corpus.
    corpus: u64,
    held: bool,
    crash: Option<String>,
    /// What the panic said, or the sanitizer.
    why: Vec<String>,
    log: PathBuf,
}

impl Outcome {
    /// From what libFuzzer wrote to `log`, and whether it was content.
    pub fn read(said: &str, held: bool, log: PathBuf) -> Self {
        let stat = |name: &str| {
            let mut values = said
                .lines()
                .filter_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            values.next_back().unwrap_or(0)
        };
        let progress = |name: &str| {
            let mut values = said.lines().filter_map(|line| {
                let (_, value) = line.split_once(name)?;
                let value = value.trim_start();
                let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
                value.get(..end)?.parse().ok()
            });
            values.next_back().unwrap_or(0)
        };
        let crash = said.lines().find_map(|line| line.split_once("Test unit written to "));
        Self {
            executions: stat("stat::number_of_executed_units:"),
            per_second: stat("stat::average_exec_per_sec:"),
            coverage: progress(" cov: "),
            corpus: progress(" corp: "),
            held,
            crash: crash.map(|(_, path)| path.trim().to_owned()),
            why: why(said),
            log,
        }
    }

    /// One line of the table.
    pub fn row(&self, target: &str) -> String {
        let Self {
            executions,
            per_second,
            coverage,
            corpus,
            ..
        } = self;
        let crashes = u8::from(!self.held);
        format!("{target:<12} {executions:>11} {per_second:>8} {coverage:>9} {corpus:>8} {crashes:>8}")
    }

    /// What is wrong, where the input is and how it is seen again; `None` if nothing is.
    pub fn complaint(&self, target: &str) -> Option<String> {
        if self.held {
            return None;
        }
        let mut lines = self.why.clone();
        match &self.crash {
            Some(input) => {
                lines.push(format!("input: {input}"));
                lines.push(format!("again: cargo lab fuzz {target} --input {input}"));
            }
            None => lines.push("it ended without naming an input".into()),
        }
        lines.push(format!("log: {}", self.log.display()));
        Some(format!("  {}", lines.join("\n  ")))
    }
}

/// The panic's place and message, or libFuzzer's and the sanitizer's one-line verdicts, or else the log's last lines.
fn why(said: &str) -> Vec<String> {
    let lines: Vec<&str> = said.lines().collect();
    let panicked = lines.iter().position(|line| line.contains(" panicked at "));
    let found: Vec<&str> = match panicked {
        Some(at) => lines.iter().skip(at).take(2).copied().collect(),
        None => {
            let verdict = |line: &&str| line.contains("ERROR: ") || line.starts_with("SUMMARY: ");
            lines.iter().copied().filter(verdict).collect()
        }
    };
    let shown = if found.is_empty() {
        lines.iter().copied().skip(lines.len().saturating_sub(TAIL)).collect()
    } else {
        found
    };
    shown.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &str = "INFO: Loaded 1 modules   (73 inline 8-bit counters): 73 [0x1, 0x2),
#2\tINITED cov: 3 ft: 4 corp: 1/1b exec/s: 0 rss: 31Mb
#5000\tDONE   cov: 120 ft: 240 corp: 33/1kb lim: 4096 exec/s: 2500 rss: 60Mb
stat::number_of_executed_units: 5000
stat::average_exec_per_sec:     2500
";
    const CRASHED: &str = "#2\tINITED cov: 3 ft: 4 corp: 1/1b exec/s: 0 rss: 31Mb

thread '<unnamed>' (1) panicked at virtio/src/ring.rs:1:2:
index out of bounds
==1== ERROR: libFuzzer: deadly signal
artifact_prefix='/l/'; Test unit written to /l/crash-1
stat::number_of_executed_units: 7
";

    fn read(said: &str, held: bool) -> Outcome {
        Outcome::read(said, held, "/l/ring.log".into())
    }

    #[test]
    fn figures_are_the_last_that_the_log_has() {
        let outcome = read(CONTENT, true);
        let figures = (outcome.executions, outcome.per_second, outcome.coverage, outcome.corpus);
        assert_eq!(figures, (5000, 2500, 120, 33));
        assert_eq!(outcome.complaint("ring"), None);
        assert_eq!(outcome.row("ring").len(), HEADING.len());
    }

    #[test]
    fn a_crash_comes_with_its_reason_its_input_and_a_command() {
        let complaint = read(CRASHED, false).complaint("ring").unwrap();
        for part in [
            "index out of bounds",
            "input: /l/crash-1",
            "cargo lab fuzz ring --input /l/crash-1",
            "log: /l/ring.log",
        ] {
            assert!(complaint.contains(part), "{complaint}");
        }
    }

    #[test]
    fn a_death_without_words_shows_the_end_of_the_log() {
        let complaint = read("one\ntwo\n", false).complaint("ring").unwrap();
        assert!(complaint.contains("two"), "{complaint}");
    }
}
