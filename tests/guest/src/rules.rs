//! The rules of a Linux file system, a case each: what a call answers, who may make it, what it
//! changes and what it leaves.
//!
//! A case is some calls in a folder of its own and a line of text that says what they answered,
//! beside the line that POSIX and the manual pages of Linux ask for. The same cases run in a guest
//! on a share and on the host in a folder of the file system that is shared, so the lines of both
//! can be compared ([`Line`]).

mod access;
mod attributes;
mod bits;
mod case;
mod contents;
mod kinds;
mod links;
mod locks;
mod owners;
mod paths;
mod renames;
mod times;

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use self::case::Cases;

/// What a case found.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Of the case: the call, and the circumstance.
    pub name: String,
    /// What was answered.
    pub found: String,
    /// What the rule is.
    pub rule: String,
}

impl Line {
    /// Whether it is as it should be.
    pub fn holds(&self) -> bool {
        self.found == self.rule
    }
}

/// `NAME: FOUND`, and the rule if that is another.
impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.found)?;
        if !self.holds() {
            write!(f, " (the rule: {})", self.rule)?;
        }
        Ok(())
    }
}

/// Which cases are run.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Every so many of them: 1 for all.
    pub every: usize,
    /// And those whose names begin with one of these.
    pub also: Vec<String>,
}

impl Choice {
    /// All cases.
    #[must_use]
    pub fn all() -> Self {
        Self {
            every: 1,
            also: Vec::new(),
        }
    }

    fn has(&self, number: usize, name: &str) -> bool {
        number.is_multiple_of(self.every) || self.also.iter().any(|beginning| name.starts_with(beginning))
    }
}

/// Runs the cases of a choice, each in a folder of its own below `root`, which must be empty; what
/// they found, in their order. The folders stay.
///
/// # Errors
///
/// The caller is not root, who alone can be everybody, or cannot make folders there.
pub fn run(root: &Path, choice: &Choice) -> io::Result<Vec<Line>> {
    if !rustix::process::geteuid().is_root() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the rules need root"));
    }
    let mut lines = Vec::new();
    let chosen = cases().into_iter().enumerate();
    for (number, case) in chosen.filter(|(number, case)| choice.has(*number, &case.name)) {
        let folder = root.join(number.to_string());
        fs::create_dir(&folder)?;
        let found = case.run(&folder);
        let (name, rule) = (case.name, case.rule);
        lines.push(Line { name, found, rule });
    }
    Ok(lines)
}

fn cases() -> Vec<case::Case> {
    let mut cases = Cases::default();
    paths::add(&mut cases);
    kinds::add(&mut cases);
    renames::add(&mut cases);
    links::add(&mut cases);
    access::add(&mut cases);
    owners::add(&mut cases);
    bits::add(&mut cases);
    times::add(&mut cases);
    contents::add(&mut cases);
    attributes::add(&mut cases);
    locks::add(&mut cases);
    cases.0
}

#[cfg(test)]
#[path = "rules_test.rs"]
mod tests;
