//! How far test programs are that run at the same time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::progress;
use crate::tally::Tally;

/// What the user is told of while programs run.
pub struct ProgressBoard(Mutex<State>);

#[derive(Default)]
struct State {
    programs: usize,
    tests: usize,
    ended: usize,
    /// Tests that programs that have ended have had.
    behind: usize,
    running: BTreeMap<String, Running>,
}

#[derive(Default)]
struct Running {
    tests: usize,
    verdicts: usize,
    /// Failures that the user has been told of.
    told: Vec<String>,
}

impl ProgressBoard {
    /// Programs of so many tests each, none of which has begun.
    pub fn new(programs: impl Iterator<Item = usize>) -> Self {
        let mut state = State::default();
        for tests in programs {
            state.programs += 1;
            state.tests += tests;
        }
        Self(Mutex::new(state))
    }

    /// A program of so many tests begins.
    pub fn begin(&self, program: &str, tests: usize) {
        let running = Running {
            tests,
            ..Running::default()
        };
        self.state().running.insert(program.into(), running);
    }

    /// A program is as far as `tally` has read it. A failure that is new is said at once.
    pub fn tell(&self, program: &str, tally: &Tally) {
        for failure in self.news(program, tally) {
            progress::say(&format!("failed: {failure}"));
        }
    }

    /// The failures that nobody was told of.
    fn news(&self, program: &str, tally: &Tally) -> Vec<String> {
        let mut state = self.state();
        let Some(running) = state.running.get_mut(program) else {
            return Vec::new();
        };
        running.verdicts = tally.verdicts;
        let new = tally.failed().filter(|failure| !running.told.contains(*failure));
        let new: Vec<String> = new.cloned().collect();
        running.told.extend_from_slice(&new);
        new
    }

    /// A program has ended.
    pub fn end(&self, program: &str) {
        let mut state = self.state();
        if let Some(running) = state.running.remove(program) {
            state.ended += 1;
            state.behind += running.tests;
        }
    }

    /// What follows the seconds in the line of the step.
    pub fn line(&self) -> String {
        let state = self.state();
        let running = state.running.iter();
        let running: Vec<String> = running
            .map(|(name, at)| format!("{name} {}/{}", at.verdicts.min(at.tests), at.tests))
            .collect();
        let now: usize = state.running.values().map(|at| at.verdicts.min(at.tests)).sum();
        let mut line = format!(
            ", {} of {} programs, {} of {} tests",
            state.ended,
            state.programs,
            state.behind + now,
            state.tests
        );
        if !running.is_empty() {
            line.push_str("; now ");
            line.push_str(&running.join(", "));
        }
        line
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_runs_and_what_is_done() {
        let board = ProgressBoard::new([3, 5].into_iter());
        board.begin("boot", 3);
        board.begin("fs", 5);
        let mut tally = Tally::default();
        for line in ["running 3 tests", "test a ... ok", "test b ... ok"] {
            tally.line(line);
        }
        board.tell("boot", &tally);
        assert_eq!(board.line(), ", 0 of 2 programs, 2 of 8 tests; now boot 2/3, fs 0/5");
        board.end("boot");
        assert_eq!(board.line(), ", 1 of 2 programs, 3 of 8 tests; now fs 0/5");
        board.end("fs");
        assert_eq!(board.line(), ", 2 of 2 programs, 8 of 8 tests");
    }

    #[test]
    fn a_failure_is_news_once() {
        let board = ProgressBoard::new([3].into_iter());
        board.begin("boot", 3);
        let mut tally = Tally::default();
        tally.name_program("boot");
        for line in ["running 3 tests", "test a ... FAILED"] {
            tally.line(line);
        }
        assert_eq!(board.news("boot", &tally), ["boot: a"]);
        assert_eq!(board.news("boot", &tally), [""; 0]);
        tally.line("test b ... FAILED");
        assert_eq!(board.news("boot", &tally), ["boot: b"]);
    }
}
