//! What is left to measure in emulated hosts, what came of the rest, and what was given up on the way.

use std::fmt;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::rounds::{self, Samples, Turn};
use super::subject::Kind;

/// Guests given to one life, as long as they break.
pub const GUESTS: u32 = 8;

/// Emulated hosts that may be lost one after the other before a life begins.
const HOSTS: u32 = 3;

/// One life as the emulated host is asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Its place in the whole order.
    pub number: usize,
    /// Index of its subject.
    pub subject: usize,
    /// Which part of the profile it measures.
    pub part: usize,
    /// Guests that it has cost already.
    pub broken: u32,
}

/// A guest that was given up, and its life done again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Whose.
    pub kind: Kind,
    /// Why.
    pub why: String,
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: given up and done again: {}", self.kind.name(), self.why)
    }
}

/// One life's entry.
#[derive(Debug)]
struct Entry {
    turn: Turn,
    broken: u32,
    ended: bool,
}

/// All lives of a profile.
#[derive(Debug)]
pub struct WorkQueue<T> {
    entries: Vec<Entry>,
    /// The life under way.
    current: Option<usize>,
    /// Hosts lost since a life has begun.
    lost: u32,
    samples: Vec<Samples<T>>,
    given_up: Vec<GivenUp>,
}

impl<T> WorkQueue<T> {
    /// Nothing done yet, of `runs` lives of each of `kinds` for each of `parts`; without parts, of
    /// those and one that does not count.
    pub fn new(kinds: impl IntoIterator<Item = Kind>, runs: u32, parts: &[usize]) -> Self {
        let samples: Vec<_> = kinds.into_iter().map(Samples::none).collect();
        let entry = |turn| Entry {
            turn,
            broken: 0,
            ended: false,
        };
        Self {
            entries: rounds::order_of_parts(samples.len(), runs, parts)
                .into_iter()
                .map(entry)
                .collect(),
            current: None,
            lost: 0,
            samples,
            given_up: Vec::new(),
        }
    }

    /// Lives that have not ended, of subjects that have not failed.
    pub fn rest(&self) -> Vec<Life> {
        let life = |(number, entry): (usize, &Entry)| {
            let subject = entry.turn.subject;
            let open = !entry.ended && self.samples.get(subject)?.failure.is_none();
            open.then_some(Life {
                number,
                subject,
                part: entry.turn.part,
                broken: entry.broken,
            })
        };
        self.entries.iter().enumerate().filter_map(life).collect()
    }

    /// How many lives there are in all.
    pub fn all(&self) -> usize {
        self.entries.len()
    }

    /// Life `number` begins; whose it is.
    pub fn begins(&mut self, number: usize) -> Option<Kind> {
        (self.current, self.lost) = (Some(number), 0);
        self.kind(number)
    }

    /// A guest of life `number` was given up; whose.
    pub fn broken(&mut self, number: usize, why: String) -> Option<Kind> {
        let kind = self.kind(number)?;
        self.entries.get_mut(number)?.broken += 1;
        self.given_up.push(GivenUp { kind, why });
        Some(kind)
    }

    /// Life `number` has ended; whose it was.
    pub fn ended(&mut self, number: usize, outcome: Result<T, String>) -> Option<Kind> {
        self.current = None;
        let entry = self.entries.get_mut(number)?;
        let samples = self.samples.get_mut(entry.turn.subject)?;
        if !entry.ended {
            entry.ended = true;
            samples.add(entry.turn, outcome);
        }
        Some(samples.kind)
    }

    /// The emulated host was lost. The life that was under way is given up with it; if it has cost
    /// too much, so is its subject, and if hosts do not even come to a life, everything. Whose life
    /// it was.
    pub fn host_lost(&mut self, why: &str) -> Option<Kind> {
        let why = format!("its emulated host {why}");
        let mut kind = None;
        let (failed, attempts, most) = match self.current.take() {
            Some(number) => {
                kind = self.broken(number, why.clone());
                let entry = self.entries.get(number);
                let (subject, broken) = entry.map(|entry| (entry.turn.subject, entry.broken)).unzip();
                (subject, broken.unwrap_or(0), GUESTS)
            }
            None => {
                self.lost += 1;
                (None, self.lost, HOSTS)
            }
        };
        if attempts < most {
            return kind;
        }
        for (subject, samples) in self.samples.iter_mut().enumerate() {
            if failed.is_none_or(|failed| failed == subject) && samples.failure.is_none() {
                samples.failure = Some(format!("given up after {attempts} attempts: {why}"));
            }
        }
        kind
    }

    /// Guests given up so far.
    pub fn given_up(&self) -> &[GivenUp] {
        &self.given_up
    }

    /// What came of it.
    pub fn into_parts(self) -> (Vec<Samples<T>>, Vec<GivenUp>) {
        (self.samples, self.given_up)
    }

    fn kind(&self, number: usize) -> Option<Kind> {
        let subject = self.entries.get(number)?.turn.subject;
        Some(self.samples.get(subject)?.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work_queue() -> WorkQueue<u32> {
        WorkQueue::new([Kind::Husk, Kind::QemuQ35], 1, &[])
    }

    fn numbers(work_queue: &WorkQueue<u32>) -> Vec<usize> {
        work_queue.rest().iter().map(|life| life.number).collect()
    }

    #[test]
    fn a_lost_host_costs_the_life_under_way_and_nothing_else() {
        let mut work_queue = work_queue();
        work_queue.begins(0);
        work_queue.ended(0, Ok(10));
        work_queue.begins(1);
        assert_eq!(work_queue.host_lost("slept"), Some(Kind::QemuQ35));
        assert_eq!(numbers(&work_queue), [1, 2, 3]);
        assert_eq!(work_queue.rest()[0].broken, 1);
        let expected = GivenUp {
            kind: Kind::QemuQ35,
            why: "its emulated host slept".into(),
        };
        assert_eq!(work_queue.given_up(), [expected]);
        for number in 1..4 {
            work_queue.begins(number);
            work_queue.ended(number, Ok(20));
        }
        assert!(work_queue.rest().is_empty());
        assert_eq!(work_queue.into_parts().0[0].values, [20]);
    }

    #[test]
    fn a_life_that_loses_every_host_ends_its_subject_only() {
        let mut work_queue = work_queue();
        for _ in 0..GUESTS {
            work_queue.begins(0);
            work_queue.host_lost("slept");
        }
        assert_eq!(numbers(&work_queue), [1, 2]);
        let samples = work_queue.into_parts().0;
        let expected = "given up after 8 attempts: its emulated host slept";
        assert_eq!(samples[0].failure.as_deref(), Some(expected));
        assert_eq!(samples[1].failure, None);
    }

    #[test]
    fn hosts_that_never_come_to_a_life_end_everything_and_keep_the_samples() {
        let mut work_queue = work_queue();
        for number in 0..3 {
            work_queue.begins(number);
            work_queue.ended(number, Ok(7));
        }
        for _ in 0..HOSTS {
            assert!(!work_queue.rest().is_empty());
            work_queue.host_lost("died");
        }
        assert!(work_queue.rest().is_empty());
        let samples = work_queue.into_parts().0;
        assert!(samples.iter().all(|samples| samples.failure.is_some()));
        assert_eq!(samples[1].values, [7]);
    }

    #[test]
    fn lives_of_a_subject_that_failed_are_left_out() {
        let mut work_queue = work_queue();
        work_queue.begins(0);
        work_queue.broken(0, "panic".into());
        assert_eq!(work_queue.ended(0, Err("no such option".into())), Some(Kind::Husk));
        assert_eq!(numbers(&work_queue), [1, 2]);
        assert_eq!(work_queue.given_up().len(), 1);
    }

    #[test]
    fn what_an_unknown_life_says_is_ignored() {
        let mut work_queue = work_queue();
        assert_eq!(work_queue.begins(99), None);
        assert_eq!(work_queue.broken(99, "?".into()), None);
        assert_eq!(work_queue.ended(99, Ok(1)), None);
        assert_eq!(work_queue.host_lost("died"), None);
        assert_eq!(work_queue.rest().len(), 4);
    }
}
