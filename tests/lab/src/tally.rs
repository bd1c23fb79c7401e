//! Counting tests by reading what Rust's test runner prints.
//!
//! A test that finds that it cannot run here prints `skipped: REASON` and returns; the runner shows
//! that only with `--show-output`, in a section that is read here and not passed on. A test marked
//! `#[ignore = "REASON"]` counts as skipped too. One that is not wanted unless somebody asks for it
//! prints `left out: REASON`.

use std::collections::BTreeSet;

use crate::host::Host;

/// A test that did not run, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The test.
    pub name: String,
    /// Why, as the test says.
    pub reason: String,
    /// Where it was to run.
    pub host: Host,
}

/// Tests counted so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Tests that ran and held.
    pub passed: usize,
    /// Names of tests that did not hold, and of test programs that died.
    pub failures: Vec<String>,
    /// Tests that did not run, once for each reason.
    pub skips: Vec<Skip>,
    /// Tests that nobody has asked for, in the same way.
    pub left_out: Vec<Skip>,
    /// What tests that did not hold have written: name and text.
    pub said: Vec<(String, String)>,
    /// Where the tests run.
    host: Host,
    /// Tests that have a verdict, of whatever kind.
    pub verdicts: usize,
    /// Set between the head and the summary of a test program.
    program: Option<Program>,
    /// What the next test program is called in messages.
    next_name: String,
}

#[derive(Clone, Debug, Default)]
struct Program {
    name: String,
    /// The runner's sections of captured output.
    section: Section,
    /// Whose captured output is being read.
    test: String,
    skips: Vec<Skip>,
    left_out: Vec<Skip>,
    failures: Vec<String>,
    said: Vec<(String, String)>,
    host: Host,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Section {
    #[default]
    Tests,
    /// Output of tests that held: not shown.
    Successes,
    Failures,
}

impl Tally {
    /// A tally of nothing yet, for tests that run on `host`.
    pub fn on(host: Host) -> Self {
        Self {
            host,
            ..Self::default()
        }
    }

    /// Names the test programs that follow.
    pub fn name_program(&mut self, name: &str) {
        self.next_name = name.to_string();
    }

    /// Reads one line without its end; whether to show it.
    pub fn line(&mut self, line: &str) -> bool {
        if is_head(line) {
            self.close();
            self.program = Some(Program {
                name: self.next_name.clone(),
                host: self.host,
                ..Program::default()
            });
            return true;
        }
        let Some(program) = &mut self.program else { return true };
        if let Some(counts) = line.strip_prefix("test result: ") {
            let read = program.clone();
            self.program = None;
            self.end(read, counts);
            return true;
        }
        if program.section == Section::Tests && verdict(line).is_some() {
            self.verdicts += 1;
        }
        program.line(line)
    }

    /// Names of tests that are known not to have held, those of a program that is still under way too.
    pub fn failed(&self) -> impl Iterator<Item = &String> {
        let under_way = self.program.iter().flat_map(|program| &program.failures);
        self.failures.iter().chain(under_way)
    }

    /// Whether there was no test at all.
    pub fn is_empty(&self) -> bool {
        self.passed == 0 && self.failures.is_empty() && self.skips.is_empty() && self.left_out.is_empty()
    }

    /// Adds what was counted elsewhere, to its end.
    pub fn add(&mut self, mut other: Self) {
        other.close();
        self.passed += other.passed;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
        self.left_out.extend(other.left_out);
        self.said.extend(other.said);
        self.verdicts += other.verdicts;
    }

    /// The output has ended: a test program without a summary has died.
    pub fn close(&mut self) {
        if let Some(program) = self.program.take() {
            self.failures.extend(program.failures);
            self.skips.extend(program.skips);
            self.left_out.extend(program.left_out);
            self.said.extend(program.said);
            let name = if program.name.is_empty() {
                "a test program"
            } else {
                &program.name
            };
            self.failures.push(format!("{name} (died before its summary)"));
        }
    }

    fn end(&mut self, program: Program, counts: &str) {
        // A test that skipped itself has passed in the runner's eyes.
        let did_not_run = names(program.skips.iter().chain(&program.left_out)).len();
        let own = did_not_run.saturating_sub(count(counts, "ignored"));
        self.passed += count(counts, "passed").saturating_sub(own);
        let unnamed = count(counts, "failed").saturating_sub(program.failures.len());
        self.failures.extend(program.failures);
        self.failures
            .extend((0..unnamed).map(|_| format!("{} (a test without a name)", program.name)));
        self.skips.extend(program.skips);
        self.left_out.extend(program.left_out);
        self.said.extend(program.said);
    }

    /// `1 passed, 2 failed, 3 skipped`, and `, 4 left out` if there are any.
    pub fn summary(&self) -> String {
        let mut summary = format!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failures.len(),
            names(&self.skips).len()
        );
        if !self.left_out.is_empty() {
            summary.push_str(&format!(", {} left out", names(&self.left_out).len()));
        }
        summary
    }
}

/// Whom these are about: a test can have more than one reason.
fn names<'a>(skips: impl IntoIterator<Item = &'a Skip>) -> BTreeSet<&'a str> {
    skips.into_iter().map(|skip| skip.name.as_str()).collect()
}

impl Program {
    fn line(&mut self, line: &str) -> bool {
        match line {
            "successes:" => self.section = Section::Successes,
            "failures:" => self.section = Section::Failures,
            _ => {}
        }
        if let Some(test) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.test = test.to_string();
            if self.section == Section::Failures {
                self.said.push((self.full_name(test), String::new()));
            }
            return self.section != Section::Successes;
        }
        match self.section {
            Section::Tests => self.test_line(line),
            Section::Successes => {
                let skip = |reason| self.skip(&self.test, reason);
                if let Some(skip) = line.strip_prefix("skipped: ").map(skip) {
                    add(&mut self.skips, skip);
                } else if let Some(skip) = line.strip_prefix("left out: ").map(skip) {
                    add(&mut self.left_out, skip);
                }
            }
            // After what they have written comes a list of their names, under the same word once more.
            Section::Failures if line == "failures:" => self.test.clear(),
            Section::Failures if !self.test.is_empty() => {
                if let Some((_, said)) = self.said.last_mut() {
                    said.push_str(line);
                    said.push('\n');
                }
            }
            Section::Failures => {}
        }
        self.section != Section::Successes
    }

    /// `test NAME ... ok`, `... FAILED` or `... ignored, REASON`.
    fn test_line(&mut self, line: &str) {
        let Some((name, verdict)) = verdict(line) else { return };
        let name = name.trim_end_matches(" - should panic");
        if verdict.starts_with("FAILED") {
            self.failures.push(self.full_name(name));
        } else if let Some(reason) = verdict.strip_prefix("ignored") {
            let skip = self.skip(name, reason.trim_start_matches(", "));
            self.skips.push(skip);
        }
    }

    fn skip(&self, test: &str, reason: &str) -> Skip {
        Skip {
            name: self.full_name(test),
            reason: reason.to_string(),
            host: self.host,
        }
    }

    fn full_name(&self, test: &str) -> String {
        if self.name.is_empty() {
            test.to_string()
        } else {
            format!("{}: {test}", self.name)
        }
    }
}

/// Adds a skip, unless the test has said the same before.
fn add(skips: &mut Vec<Skip>, skip: Skip) {
    if !skips.contains(&skip) {
        skips.push(skip);
    }
}

/// The parts of `test NAME ... VERDICT`.
fn verdict(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.rsplit_once(" ... ")
}

/// `running 3 tests`.
fn is_head(line: &str) -> bool {
    let count = line
        .strip_prefix("running ")
        .and_then(|rest| rest.strip_suffix(" tests").or(rest.strip_suffix(" test")));
    count.is_some_and(|count| count.parse::<usize>().is_ok())
}

/// The number before `what` in `ok. 3 passed; 1 failed; …`.
fn count(summary: &str, what: &str) -> usize {
    let mut parts = summary.split([';', '.']).map(str::trim);
    parts
        .find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
#[path = "tally_test.rs"]
mod tests;
