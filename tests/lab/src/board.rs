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
    programs: usize,
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

    /// So many programs with so many tests begin in one host, and are called this.
    pub fn begin(&self, batch: &str, programs: usize, tests: usize) {
        let running = Running {
            programs,
            tests,
            ..Running::default()
        };
        self.state().running.insert(batch.into(), running);
    }

    /// They are as far as `tally` has read them. A failure that is new is said at once.
    pub fn tell(&self, batch: &str, tally: &Tally) {
        for failure in self.news(batch, tally) {
            progress::say(&format!("failed: {failure}"));
        }
    }

    /// The failures that nobody was told of.
    fn news(&self, batch: &str, tally: &Tally) -> Vec<String> {
        let mut state = self.state();
        let Some(running) = state.running.get_mut(batch) else {
            return Vec::new();
        };
        running.verdicts = tally.verdicts;
        let new = tally.failed().filter(|failure| !running.told.contains(*failure));
        let new: Vec<String> = new.cloned().collect();
        running.told.extend_from_slice(&new);
        new
    }

    /// They have ended.
    pub fn end(&self, batch: &str) {
        let mut state = self.state();
        if let Some(running) = state.running.remove(batch) {
            state.ended += running.programs;
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
        board.begin("boot", 1, 3);
        board.begin("fs", 1, 5);
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
    fn programs_of_one_host_end_together() {
        let board = ProgressBoard::new([3, 5, 1].into_iter());
        board.begin("boot, fs", 2, 8);
        assert_eq!(board.line(), ", 0 of 3 programs, 0 of 9 tests; now boot, fs 0/8");
        board.end("boot, fs");
        assert_eq!(board.line(), ", 2 of 3 programs, 8 of 9 tests");
    }

    #[test]
    fn a_failure_is_news_once() {
        let board = ProgressBoard::new([3].into_iter());
        board.begin("boot", 1, 3);
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
